"""What a denoiser knows at its noisiest levels: the best estimate of normal pixels, flawed ones of known flaws, trained ones."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noisesched import diffusion
from noisesched.evaluation import evaluate, likelihood, zero_snr
from noisesched.models import build
from noisesched.runs import subject
from noisesched.training import step as training_step

MEAN, STD = 0.1, 0.3


def uint8(x):
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)


def scaled(images):
    return images.astype(np.float64) / 127.5 - 1


IMAGES = uint8(np.random.default_rng(0).normal(MEAN, STD, (400, 4, 4, 1)))
ALL = np.zeros(len(IMAGES), int)
EXACT = zero_snr.Average(np.full((1, 4, 4, 1), MEAN), STD, STD / 4, 400)  # of the density, not of the images


@functools.cache
def compiled(denoise):
    return jax.jit(lambda *drawn: likelihood.estimates(denoise, jnp.uint32(0), *drawn))


def asking(denoise, images=IMAGES):
    """The function `ask` of `denoise` for `zero_snr.last_level`."""
    compute = compiled(denoise)

    def ask(log_snrs, first_draw=0, out=None):
        m, draws = log_snrs.shape
        index, draw = (a.ravel() for a in np.mgrid[:m, first_draw : first_draw + draws])
        x_hat, error = compute(np.float32(scaled(images))[index], index, draw, np.float32(log_snrs.ravel()))
        if out is not None:
            out[:] = x_hat.reshape(out.shape)
        return np.asarray(error, np.float64).reshape(m, draws)

    return ask


def best(z, log_snr):
    """E[x | z] of pixels x ~ N(MEAN, STD^2)."""
    alpha, sigma = (diffusion.like(f(log_snr), z) for f in (diffusion.alpha, diffusion.sigma))
    return MEAN + STD**2 * alpha / (STD**2 * alpha**2 + sigma**2) * (z - alpha * MEAN)


# -- the mean of the data


@pytest.mark.parametrize("batch", [2**22, 7 * 48])
def test_the_average_of_each_class(monkeypatch, batch):
    monkeypatch.setattr(zero_snr, "BATCH", batch)
    random = np.random.default_rng(1)
    classes = np.arange(30) % 3  # of four: the last has no images
    images = random.integers(0, 80 * (classes + 1)[:, None, None, None], (30, 4, 4, 3)).astype(np.uint8)
    for mirrored in (False, True):
        x = scaled(images)
        its = classes
        if mirrored:
            x, its = np.concatenate([x, x[:, :, ::-1]]), np.tile(classes, 2)
        means = np.stack([x[its == k].mean(axis=0) for k in range(3)] + [x.mean(axis=0)])
        got = zero_snr.average(images, classes, 4, mirrored)
        np.testing.assert_allclose(got.mean, means, atol=1e-12)
        away = x - means[its]
        assert got.std == pytest.approx(np.sqrt(np.square(away).mean())) and got.num_images == 30
        assert got.brightness_std == pytest.approx(away.mean(axis=(1, 2, 3)).std())
    everything = zero_snr.average(images, 0 * classes)
    np.testing.assert_allclose(everything.mean, scaled(images).mean(axis=0, keepdims=True), atol=1e-12)


# -- the last level


@pytest.mark.parametrize("log_snr", [-math.inf, -6.0, 0.0, 2.0])
def test_the_best_estimate_at_the_last_level(log_snr):
    """Of images at mean square distance s from the mean it has the error (s + std^4 r) / (1 + std^2 r)^2 at SNR r."""
    found = zero_snr.last_level(asking(best), log_snr, IMAGES, ALL, EXACT)
    r, square = math.exp(log_snr), np.square(scaled(IMAGES) - MEAN).mean()
    wanted = (square + STD**4 * r) / (1 + STD**2 * r) ** 2
    assert found.log_snr == log_snr and abs(found.x - wanted) < 4 * found.x_std_error + 1e-7
    assert found.x_std_error == pytest.approx(wanted * math.sqrt(2 / 16 / 400), rel=0.2)  # a sum of 16 squares of normals
    assert found.eps == pytest.approx(r * found.x, abs=1e-15) and found.v == pytest.approx((r + 1) * found.x)
    assert found.eps_std_error == pytest.approx(r * found.x_std_error, abs=1e-15)
    assert found.v_std_error == pytest.approx((r + 1) * found.x_std_error)
    assert found.constant_x == pytest.approx(square) and found.gain == pytest.approx(square - found.x, abs=1e-12)
    if log_snr == -math.inf:
        assert abs(found.gain) < 1e-6 > found.gain_std_error  # rounded to float32
    else:
        assert abs(found.gain - (square - wanted)) < 4 * found.gain_std_error
        if log_snr == -6:  # where answers are all but constant, what images differ in falls out, taken one by one
            assert found.gain_std_error < 0.1 * found.x_std_error


def test_the_last_level_is_measured_against_the_mean_of_the_class():
    classes, means = np.arange(400) % 2, np.full((2, 4, 4, 1), MEAN)
    means[1] += 0.5
    found = zero_snr.last_level(asking(best), -math.inf, IMAGES, classes, EXACT._replace(mean=means))
    assert found.gain == pytest.approx(0.25 / 2, abs=0.01)  # these images have no such classes


# -- zero SNR


def test_the_best_estimate_at_zero_snr_is_the_mean_whatever_the_noise():
    found = zero_snr.zero_snr(asking(best), IMAGES, ALL, EXACT)
    assert found.noises == 2 * zero_snr.PAIRS and found.reason is None
    assert max(found.off_mean, found.spread, found.brightness_spread) < 1e-6
    assert (found.data_std, found.data_brightness_std, found.data_images) == (STD, STD / 4, 400)


def test_an_estimate_that_takes_noise_for_an_image():
    """0.2 z + 0.05 off the mean: brightness varies by 0.2 / sqrt(16)."""
    found = zero_snr.zero_snr(asking(lambda z, log_snr: MEAN + 0.05 + 0.2 * z), IMAGES, ALL, EXACT)
    assert found.spread == pytest.approx(0.2, rel=0.06)  # 127 * 16 degrees of freedom: 1.6 % is one standard deviation
    assert found.brightness_spread == pytest.approx(0.05, rel=0.25)  # 127: 6.3 %
    assert found.off_mean == pytest.approx(0.05, abs=0.015)
    few = zero_snr.zero_snr(asking(lambda z, log_snr: 0.2 * z, IMAGES[:2]), IMAGES[:2], ALL[:2], EXACT)
    assert few.noises == 4 and few.spread == pytest.approx(0.2, rel=0.5)


@pytest.mark.parametrize("num_classes", [1, 8])
def test_what_few_noises_cause_is_not_taken_for_a_wrong_mean(num_classes):
    random, n, shape = np.random.default_rng(2), 32, (8, 8, 1)
    means = random.normal(size=(num_classes, *shape))
    classes = np.arange(n) % num_classes
    found = [
        zero_snr.about_mean(
            means[classes] + 0.1 + 0.5 * random.normal(size=(n, *shape)), classes, zero_snr.Average(means, 1.0, 1.0, n)
        )
        for _ in range(60)
    ]
    squares = lambda name: np.mean([getattr(each, name) ** 2 for each in found])
    # As they are, mean answers lie 0.1^2 + num_classes * 0.5^2 / 32 off.
    assert squares("off_mean") == pytest.approx(0.1**2, abs=0.002)
    assert squares("spread") == pytest.approx(0.5**2, rel=0.02)
    assert squares("brightness_spread") == pytest.approx((0.5 / 8) ** 2, rel=0.15)


def test_classes_are_kept_apart():
    """Every class answers the mean of the other one: right on the whole, but of no class, and all noises alike."""
    means = np.stack([np.full((2, 2, 1), level) for level in (-0.4, 0.4)])
    classes = np.array([0, 0, 1, 1])
    found = zero_snr.about_mean(means[1 - classes], classes, zero_snr.Average(means, 1.0, 1.0, 4))
    assert (found.off_mean, found.spread, found.brightness_spread) == (pytest.approx(0.8), 0, 0)


def test_a_network_that_predicts_eps_has_no_answer():
    found = zero_snr.zero_snr(None, IMAGES, ALL, EXACT, answers=False)
    assert (found.noises, found.off_mean, found.spread, found.brightness_spread) == (0, None, None, None)
    assert "predicts eps" in found.reason and found.data_std == STD


# -- networks that were trained


class Small(nnx.Module):
    """Stands for the UNet, and learns in a second or two of the CPU."""

    def __init__(self, *, image_size, channels, features, rngs, **others):
        size = image_size * image_size * channels
        linear = lambda inputs, outputs: nnx.Linear(inputs, outputs, rngs=rngs)
        self.see, self.mix, self.say = linear(size, 64), linear(64, 64), linear(64, size)
        self.tell, self.tell_again, self.keep = linear(features, 64), linear(features, 64), linear(features, 1)

    def __call__(self, z, features, labels=None, dropout_keys=None):
        flat = z.reshape(len(z), -1)
        h = jax.nn.silu(self.see(flat) + self.tell(features))
        h = jax.nn.silu(self.mix(h) + self.tell_again(features))
        return (self.say(h) + self.keep(features) * flat).reshape(z.shape)


def flat_and_textured(n, seed):
    """uint8 [n, 8, 8, 1]: a grey from black to white, and a little noise. Brightness varies by 0.52, as it does in no digits."""
    random = np.random.default_rng(seed)
    return uint8(random.uniform(-0.9, 0.9, (n, 1, 1, 1)) + 0.1 * random.normal(size=(n, 8, 8, 1)))


@pytest.fixture
def trained(small, monkeypatch):
    """`trained(schedule)` -> the `zero_snr_of` of a v-network trained on such images with v weighting, 2000 steps."""
    images, held_out = flat_and_textured(2000, 0), flat_and_textured(128, 1)
    average = zero_snr.average(images, np.zeros(len(images), int))
    monkeypatch.setitem(build.NETWORKS, "unet", dataclasses.replace(build.NETWORKS["unet"], make=Small))
    monkeypatch.setattr(evaluate, "BATCH", 16)
    build._abstract_denoiser.cache_clear()  # which may hold a UNet of the same configuration

    def made(schedule):
        config = small(
            {
                "schedule": schedule,
                "model.width": "16",
                "training.num_steps": "2000",
                "training.batch_size": "96",
                "optimizer.learning_rate": "3e-3",
                "optimizer.warmup_steps": "20",
                "training.ema_decay": "0.99",
            }
        )
        definition, state = training_step.init(config)
        step, rows = training_step.make_step(config, definition), np.random.default_rng(0).integers(0, len(images), (2000, 96))

        @jax.jit
        def run(state, images, rows):
            batch = lambda chosen: {"image": images[chosen], "label": jnp.zeros(96, int), "index": jnp.arange(96)}
            return jax.lax.scan(lambda state, chosen: (step(state, batch(chosen), None)[0], None), state, rows)[0]

        given = subject.of_config(config, params=run(state, images, rows).ema)
        return evaluate.zero_snr_of(given, held_out, None, 0, average)

    yield made
    build._abstract_denoiser.cache_clear()


def test_a_trained_network_answers_the_mean_at_zero_snr_if_it_was_trained_there(trained):
    """Measured, as shares of the data's spread: 0.10 of pixels and 0.09 of brightness; trained on what leaks, 0.32 and 0.32."""
    zero, leaking = trained("zero_terminal(scaled_linear)"), trained("scaled_linear")
    assert zero["last_level"]["log_snr"] == -math.inf and leaking["last_level"]["log_snr"] == pytest.approx(-5.34, abs=0.01)
    zero, leaking = zero["zero_snr"], leaking["zero_snr"]
    for name in ("", "brightness_"):
        assert zero[f"{name}spread"] < 0.18 * zero[f"data_{name}std"] and leaking[f"{name}spread"] > 1.8 * zero[f"{name}spread"]
    assert zero["off_mean"] < 0.1 * zero["data_std"]
