"""`wrap`: every kind of network, given the exact answers for Gaussian data in its own terms, becomes the exact denoiser."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from noisesched import samplers, schedules
from noisesched.models import wrap

MEAN, STD = 0.3, 0.6  # of the data, one number a pixel
LEVELS = np.array([-9.0, -2.5, 0.0, 1.7, 6.0])


def exact(z, log_snr):
    """E[x | z] in float64, from the variance of z."""
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-log_snr))), np.sqrt(1 / (1 + np.exp(log_snr)))
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (z - alpha * MEAN)


# From the number told back to s = sigma / alpha, each in the textbook's own form.
BACK = {
    "log_snr": lambda told: np.exp(-told / 2),
    "sigma": lambda told: told,
    "c_noise": lambda told: np.exp(4 * told),
    "alpha_bar": lambda told: np.sqrt(1 / told - 1),
    "flow_time": lambda told: told / (1 - told),
}
TO_VP = {  # from the coordinates' own image to z, with s
    "vp": lambda y, s: y,
    "ve": lambda y, s: y / np.sqrt(1 + s**2),
    "flow": lambda y, s: y * (1 + s) / np.sqrt(1 + s**2),
}


def network(prediction, told, coordinates, sigma_data=0.5):
    """The exact network of NumPy arrays, which knows only its own input and the number that it is told."""

    def answer(y, number):
        s = BACK[told](number.astype(np.float64))[:, None]
        alpha, sigma = 1 / np.sqrt(1 + s**2), s / np.sqrt(1 + s**2)
        if prediction == "edm":  # given c_in y_ve; F = (D - c_skip y_ve) / c_out
            y_ve = y * np.sqrt(s**2 + sigma_data**2)
            x = exact(y_ve * alpha, -2 * np.log(s))
            c_skip, c_out = sigma_data**2 / (s**2 + sigma_data**2), s * sigma_data / np.sqrt(s**2 + sigma_data**2)
            return (x - c_skip * y_ve) / c_out
        z = TO_VP[coordinates](y, s)
        x = exact(z, -2 * np.log(s))
        eps = (z - alpha * x) / sigma
        return {"eps": eps, "x": x, "v": alpha * eps - sigma * x, "velocity": eps - x}[prediction]

    return answer


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


CASES = [case for case in itertools.product(wrap.PREDICTIONS, BACK, wrap.COORDINATES) if case[0] != "edm" or case[2] == "vp"]


@pytest.mark.parametrize(("prediction", "told", "coordinates"), CASES)
def test_every_kind_of_network_is_the_same_denoiser(prediction, told, coordinates):
    denoise = wrap.wrap(network(prediction, told, coordinates), prediction, told, coordinates=coordinates, numpy=True)
    z = np.linspace(-2, 2, 15).reshape(5, 3)
    np.testing.assert_allclose(denoise(z, LEVELS), exact(z, LEVELS[:, None]), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("translation", ["nearest", "interpolated"])
def test_timesteps_are_counted_as_the_network_counts(first, translation):
    table = schedules.make("discrete(linear, num_steps=100)").table
    told = []
    denoise = wrap.wrap(
        lambda z, t: told.append(np.asarray(t)) or z,
        "v",
        table="discrete(linear, num_steps=100)",
        first_timestep=first,
        translation=translation,
        numpy=True,
    )
    jax.block_until_ready(denoise(np.zeros((3, 1)), np.asarray(table.log_snr)[[0, 41, 99]]))
    np.testing.assert_allclose(told[0], np.array([0, 41, 99]) + first, atol=2e-3)
    assert (told[0].dtype.kind == "i") == (translation == "nearest")  # then it may be an index


def test_u_is_the_schedule_s_own():
    told = []
    denoise = wrap.wrap(lambda z, u: told.append(np.asarray(u)) or z, "v", "u", schedule="linear", scale=999, numpy=True)
    u = np.array([0.1, 0.5, 0.9])
    jax.block_until_ready(denoise(np.zeros((3, 1)), schedules.make("linear")(u)))
    np.testing.assert_allclose(told[0], 999 * u, rtol=1e-4)


@pytest.mark.parametrize(
    ("prediction", "told", "coordinates"),
    [("v", "alpha_bar", "vp"), ("x", "flow_time", "flow"), ("velocity", "flow_time", "flow"), ("edm", "alpha_bar", "vp")],
)
def test_what_has_a_limit_at_zero_snr_is_finite_there(prediction, told, coordinates):
    denoise = wrap.wrap(lambda y, told: 0.5 * y, prediction, told, coordinates=coordinates)
    for dtype in (np.float32, np.float64):
        x = denoise(np.ones((1, 2), dtype), np.array([-np.inf], dtype))
        assert x.dtype == dtype and np.isfinite(x).all()


@pytest.mark.parametrize(
    ("prediction", "told", "coordinates", "word"),
    [("eps", "alpha_bar", "vp", "eps"), ("x", "alpha_bar", "ve", "variance-exploding"), ("v", "sigma", "vp", "sigma")],
)
def test_what_has_no_limit_is_refused_by_name(prediction, told, coordinates, word):
    denoise = wrap.wrap(lambda y, told: y, prediction, told, coordinates=coordinates)
    levels = np.asarray(schedules.levels(schedules.make("cosine"), 4))
    with pytest.raises(ValueError, match=word):
        denoise(np.ones((4, 2)), levels)
    with pytest.raises(ValueError, match=word):
        samplers.sample(denoise, jax.random.key(0), np.ones((2, 2)), levels)


def test_levels_outside_the_table_are_refused_or_clamped():
    levels = np.array([-20.0, 0.0, 20.0])
    made = lambda **given: wrap.wrap(lambda z, t: t[:, None] * jnp.ones_like(z), "x", table="discrete(linear)", **given)
    with pytest.raises(ValueError, match="2 of 3 levels"):
        made()(np.ones((3, 2)), levels)
    told = made(outside="clamp")(np.ones((3, 2)), levels)[:, 0]
    assert told[0] == 1000 and told[2] == 1


def test_a_mistake_is_named():
    for given, word in (
        ({"prediction": "noise"}, "prediction 'noise'"),
        ({"table": "cosine"}, "has no steps"),
        ({}, "needs a table"),
        ({"told": "u"}, "needs a schedule"),
        ({"told": "sigma", "prediction": "edm", "coordinates": "ve"}, "leave out coordinates"),
    ):
        with pytest.raises(ValueError, match=word):
            wrap.wrap(lambda z, t: z, **given)


@jax.enable_x64(False)  # a callback runs in a thread of its own, which does not know of this context
def test_modules_of_both_kinds_and_functions_of_parameters_and_numpy_agree():
    kernel, table = np.array([[0.3, -0.2], [0.1, 0.4]], np.float32), "discrete(linear)"
    log_snrs = schedules.levels(schedules.make(table), 5)
    z = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)

    class Net(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.asarray(kernel))

        def __call__(self, z, t):
            return z @ self.kernel[...]

    class Linen(linen.Module):
        @linen.compact
        def __call__(self, z, t):
            return z @ self.param("kernel", lambda key: jnp.asarray(kernel))

    plain = lambda z, t: z @ kernel
    variables = Linen().init(jax.random.key(0), z, np.ones(4))
    made = [
        wrap.wrap(each, "v", table=table, **given)
        for each, given in (
            (Net(), {}),
            (Linen(), {"params": variables}),
            (lambda kernel, z, t: z @ kernel, {"params": jnp.asarray(kernel)}),
            (plain, {}),
            (plain, {"numpy": True}),
        )
    ]
    images = [samplers.sample(denoise, jax.random.key(0), z, log_snrs) for denoise in made]
    for each in images[1:]:
        np.testing.assert_allclose(each, images[0], rtol=1e-5)


def test_parameters_are_data_and_have_gradients():
    table, log_snrs = "discrete(linear)", schedules.levels(schedules.make("discrete(linear)"), 3)
    function = lambda scale, z, t: scale * z
    made = lambda scale: samplers.sample(
        wrap.wrap(function, "v", table=table, params=scale), jax.random.key(0), jnp.ones((1, 2)), log_snrs
    )
    step = 1e-6
    numeric = (made(0.5 + step) - made(0.5 - step)).sum() / (2 * step)
    np.testing.assert_allclose(jax.grad(lambda scale: made(scale).sum())(0.5), numeric, rtol=1e-6)
