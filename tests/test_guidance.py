"""Guidance: what it is at scale 0 and 1, a model where guided sampling has a closed form, and what corrections restore."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noisesched import diffusion, guidance, samplers, schedules

DETERMINISTIC = ["ddim", "heun", "dpmpp_2m"]
SHAPE = (6, 4, 4, 3)
LEVELS = (-math.inf, -30.0, -3.0, 0.0, 4.0, 30.0)
every_correction = pytest.mark.parametrize("name", guidance.CORRECTIONS)


def gaussian(mean, std):
    """The exact denoiser of x ~ N(mean, std^2) as a function (z, log_snr)."""

    def denoise(z, log_snr):
        alpha, sigma = (diffusion.like(f(log_snr), z) for f in (diffusion.alpha, diffusion.sigma))
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (z - alpha * mean)

    return denoise


def two_gaussians(z, log_snr, labels):
    """A network told class 0, N(MEAN, STD^2), or nothing (label 1), N(0, WIDE^2)."""
    told, not_told = gaussian(MEAN, STD)(z, log_snr), gaussian(0.0, WIDE)(z, log_snr)
    return jnp.where(diffusion.like(labels, z) == 0, told, not_told)


MEAN, STD, WIDE = 0.4, 0.5, 0.8


def sampled(text, method="ddim", n=400, schedule="truncated(flow, -1e9, 12)", z=None):
    z = jnp.linspace(-2, 2, 9) if z is None else z
    guide, labels = guidance.parse(text), jnp.zeros(len(z), int)
    draw = jax.jit(
        lambda z, log_snrs, guide: samplers.sample(
            guidance.guided(two_gaussians, guide, labels, 1), jax.random.key(0), z, log_snrs, method
        )
    )
    return draw(z, schedules.levels(schedules.make(schedule), n), guide)


# -- closed forms


@pytest.mark.parametrize("method", DETERMINISTIC)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 3.5])
def test_guided_sampling_of_gaussians_has_a_closed_form(method, scale, monkeypatch):
    """With means 0 the ODE from pure noise ends in z STD^scale WIDE^(1 - scale): its logarithm is what guidance weighs."""
    monkeypatch.setitem(globals(), "MEAN", 0.0)
    z = jnp.linspace(-2, 2, 9)
    np.testing.assert_allclose(sampled(f"cfg({scale})", method, z=z), z * STD**scale * WIDE ** (1 - scale), atol=0.02)


@pytest.mark.parametrize("method", [*DETERMINISTIC, "ancestral"])
def test_with_one_deviation_it_is_the_denoiser_of_a_shifted_mean(method, monkeypatch):
    monkeypatch.setitem(globals(), "WIDE", STD)
    z = jax.random.normal(jax.random.key(1), (20_000,)) if method == "ancestral" else jnp.linspace(-2, 2, 9)
    x = sampled("cfg(3)", method, z=z)
    if method == "ancestral":
        assert x.mean() == pytest.approx(3 * MEAN, abs=0.02) and x.std() == pytest.approx(STD, abs=0.02)
    else:
        np.testing.assert_allclose(x, 3 * MEAN + STD * z, atol=0.02)


# -- scales and intervals


def answers(seed=0):
    """(z, with a label, without), random."""
    return jax.random.normal(jax.random.key(seed), (3, *SHAPE))


def guide(text, z, level, conditional, unconditional):
    """x_hat of a network with those two answers, and the sizes of the batches that it was asked."""
    asked = []

    def network(z, log_snr, labels):
        asked.append(len(z))
        assert len(z) == len(log_snr) == len(labels)
        image = jnp.arange(len(z)) % len(conditional)
        return jnp.where(diffusion.like(labels, z) == 9, unconditional[image], conditional[image])

    denoise = guidance.guided(network, guidance.parse(text), jnp.full(len(z), 3), 9)
    return denoise(z, jnp.full(len(z), level)), asked


@pytest.mark.parametrize("level", LEVELS)
def test_scale_1_is_the_conditional_network_exactly_and_costs_no_more(level):
    z, conditional, unconditional = answers()
    for text in ("none", "cfg(1)"):
        x, asked = guide(text, z, level, conditional, unconditional)
        np.testing.assert_array_equal(x, conditional)
        assert asked == [len(z)]
    x, asked = guide("cfg(1.0000001)", z, level, conditional, unconditional)  # both branches, in one call
    assert asked == [2 * len(z)]
    np.testing.assert_allclose(x, conditional, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_scale_0_is_the_network_without_a_label(level):
    z, conditional, unconditional = answers()
    np.testing.assert_allclose(guide("cfg(0)", z, level, conditional, unconditional)[0], unconditional, atol=1e-6)


@pytest.mark.parametrize("level, acts", [(-3.1, False), (-3.0, True), (1.0, True), (1.1, False), (-math.inf, False)])
def test_outside_its_interval_it_does_nothing(level, acts):
    z, conditional, unconditional = answers()
    x, _ = guide("cfg(4, log_snr_min=-3, log_snr_max=1)", z, level, conditional, unconditional)
    np.testing.assert_array_equal(x, guide("cfg(4)" if acts else "none", z, level, conditional, unconditional)[0])


@pytest.mark.parametrize("level", [-8.0, -2.0, 0.0, 3.0])
@pytest.mark.parametrize("space", ["eps", "v"])
def test_guiding_eps_or_v_is_the_same(level, space):
    """But for rounding, at any level above SNR = 0: the weights add up to one."""
    with jax.enable_x64(True):
        z, conditional, unconditional = (jnp.asarray(a, jnp.float64) for a in answers())
        levels = jnp.full(len(z), level, jnp.float64)

        def output(x):
            eps = diffusion.eps_from(x, z, levels)
            return eps if space == "eps" else diffusion.v_from(x, eps, levels)

        guided = output(unconditional) + 3 * (output(conditional) - output(unconditional))
        x, _ = guide("cfg(3)", z, level, conditional, unconditional)
        np.testing.assert_allclose(diffusion.x_from(space, guided, z, levels), x, atol=1e-9)


# -- corrections


@every_correction
@pytest.mark.parametrize("level", LEVELS)
def test_corrections_keep_shape_dtype_and_finiteness(name, level):
    z, conditional, unconditional = answers()
    for images in ((conditional, unconditional), (jnp.full(SHAPE, 0.5), jnp.full(SHAPE, 0.2))):  # noise, and flat images
        x, _ = guide(f"cfg(7, {name})", z, level, *images)
        assert x.shape == SHAPE and x.dtype == jnp.float32 and jnp.isfinite(x).all()


def deviation(values):
    return np.asarray(values, np.float64).reshape(len(values), -1).std(axis=1)


def v_of(x, z, level):
    level = np.float64(level)
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-level))), np.sqrt(1 / (1 + np.exp(level)))
    return (alpha * np.asarray(z, np.float64) - np.asarray(x, np.float64)) / sigma


@pytest.mark.parametrize("level", [-math.inf, -10.0, -1.0, 2.0, 8.0])
def test_phi_1_restores_each_samples_deviation(level):
    z, conditional, unconditional = answers()
    plain, _ = guide("cfg(5)", z, level, conditional, unconditional)
    x, _ = guide("cfg(5, rescaled(1))", z, level, conditional, unconditional)
    wanted = deviation(v_of(conditional, z, level))
    np.testing.assert_allclose(deviation(v_of(x, z, level)), wanted, rtol=1e-3)
    assert (deviation(v_of(plain, z, level)) > 1.01 * wanted).mean() > 0.9 or level > 5  # there v is nearly eps for both
    x, _ = guide("cfg(5, rescaled_x(1))", z, level, conditional, unconditional)
    np.testing.assert_allclose(deviation(x), deviation(conditional), rtol=1e-5)
    x, _ = guide("cfg(5, rescaled_contrast(1))", z, level, conditional, unconditional)
    np.testing.assert_allclose(deviation(x), deviation(conditional), rtol=1e-5)
    means = [np.mean(np.asarray(images, np.float64), axis=(1, 2, 3)) for images in (x, plain)]
    np.testing.assert_allclose(*means, atol=1e-5)


@pytest.mark.parametrize("name", ["rescaled", "rescaled_x", "rescaled_contrast"])
def test_phi_0_changes_nothing_and_phi_is_a_share(name):
    z, conditional, unconditional = answers()
    at = {phi: guide(f"cfg(5, {name}({phi}))", z, 0.0, conditional, unconditional)[0] for phi in (0, 0.25, 1)}
    np.testing.assert_allclose(at[0], guide("cfg(5)", z, 0.0, conditional, unconditional)[0], atol=1e-5)
    np.testing.assert_allclose(at[0.25], 0.75 * at[0] + 0.25 * at[1], atol=1e-5)


def test_thresholds_bound_x_hat_and_leave_what_is_within():
    z, conditional, unconditional = answers()
    plain, _ = guide("cfg(5)", z, 0.0, conditional, unconditional)
    np.testing.assert_array_equal(guide("cfg(5, static)", z, 0.0, conditional, unconditional)[0], np.clip(plain, -1, 1))
    x = np.asarray(guide("cfg(5, dynamic(0.9))", z, 0.0, conditional, unconditional)[0], np.float64)
    limit = np.maximum([np.quantile(np.abs(image), 0.9) for image in np.asarray(plain, np.float64)], 1)[:, None, None, None]
    np.testing.assert_allclose(x, np.clip(plain, -limit, limit) / limit, atol=1e-5)
    assert np.abs(x).max() <= 1 + 1e-6
    within = 0.1 * conditional
    np.testing.assert_array_equal(guide("cfg(1, dynamic)", z, 0.0, within, within)[0], within)


def test_a_corrected_image_has_its_own_noise():
    """A step of ddim from a thresholded x_hat goes along the eps of that x_hat, not of the one before."""
    z, now, following = jnp.array([[3.0, -0.2]]), 0.0, 2.0
    network = lambda z, log_snr, labels: 4 * z
    denoise = guidance.guided(network, guidance.parse("cfg(1, static)"), None, 0)
    seen = []
    spy = lambda z, log_snr: seen.append(z) or denoise(z, log_snr)
    with jax.disable_jit():
        samplers.sample(spy, jax.random.key(0), z, jnp.array([now, following]))
    x = np.array([[1.0, -0.8]])
    eps = (np.asarray(z) - math.sqrt(0.5) * x) / math.sqrt(0.5)
    alpha, sigma = 1 / math.sqrt(1 + math.exp(-2)), 1 / math.sqrt(1 + math.exp(2))
    np.testing.assert_allclose(seen[-1], alpha * x + sigma * eps, rtol=1e-5)


def test_both_estimates_are_told_the_same():
    z, told = jnp.ones((3, 2)), jnp.arange(3.0)

    def network(z, log_snr, labels, told):
        return told[:, None] * jnp.where(labels == 9, 0.0, 1.0)[:, None] * z

    x = guidance.guided(network, guidance.parse("cfg(2)"), jnp.full(3, 1), 9)(z, jnp.zeros(3), told)
    np.testing.assert_array_equal(x, 2 * told[:, None] * z)


def test_numbers_are_data():
    """Other scales, intervals and strengths of one kind share a compiled program."""
    traced = []

    @jax.jit
    def draw(z, guide):
        traced.append(guide)
        return guidance.guided(two_gaussians, guide, jnp.zeros(len(z), int), 1)(z, jnp.zeros(len(z)))

    z = jnp.linspace(-2, 2, 9)[:, None]
    texts = ("cfg(2, rescaled(0.5))", "cfg(3, rescaled(1), log_snr_max=5)", "cfg(0, rescaled)")
    made = [draw(z, guidance.parse(text)) for text in texts]
    assert len(traced) == 1 and len({np.asarray(x).tobytes() for x in made}) == 3


# -- specs


@pytest.mark.parametrize(
    "text, message",
    [
        ("cfg", "missing a required argument: 'scale'; cfg takes (scale, correction=None, log_snr_min=-inf, log_snr_max=inf)"),
        ("cgf(3)", "unknown guidance 'cgf' (did you mean 'cfg'?); known: cfg, none"),
        *(
            (f"cfg({text})", f"cfg: scale (0: no label, 1: the label) is a number from 0 to 1000; got {text}")
            for text in ("'3'", "nan", "-1")
        ),
        (
            "cfg(3, rescale)",
            "unknown correction 'rescale' (did you mean 'rescaled'?); known: dynamic, rescaled, "
            "rescaled_contrast, rescaled_x, static",
        ),
        ("cfg(3, 0.7)", "cfg: a correction is one of rescaled, rescaled_x, rescaled_contrast, static, dynamic; got 0.7"),
        ("cfg(3, rescaled(2))", "rescaled: phi is a number from 0 to 1; got 2"),
        ("cfg(3, rescaled(0.5, 2))", "too many positional arguments; rescaled takes (phi=0.7)"),
        ("cfg(3, dynamic(percentile=nan))", "dynamic: percentile is a number from 0 to 1; got nan"),
        ("cfg(3, log_snr_min=1, log_snr_max=0)", "cfg: log_snr_min=1 must be below log_snr_max=0"),
        ("none(1)", "too many positional arguments; none takes (no parameters)"),
    ],
)
def test_a_wrong_spec_is_named(text, message):
    with pytest.raises(ValueError) as raised:
        guidance.parse(text)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_none_is_no_guidance():
    assert guidance.parse("none") is None
    assert guidance.parse("cfg(1)").both is False and guidance.parse("cfg(0)").both is True
