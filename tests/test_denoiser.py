"""The denoiser: one contract, (z, log_snr) -> x_hat, whatever its network outputs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_unet import HASTE

from noisesched import diffusion, schedules
from noisesched.models import build, denoiser
from noisesched.models.conditioning import KINDS, Conditioning
from noisesched.models.denoiser import Denoiser
from noisesched.models.unet import UNet

BATCH = 3
TABLE = tuple(schedules.make("discrete(linear, num_steps=200)").table.log_snr.tolist())


class Linear(nnx.Module):
    """Stands for a UNet: its output is linear in the noisy image and in what it is told."""

    def __init__(self):
        self.kernel = nnx.Param(jnp.linspace(0.2, 1.0, 8)[:, None])

    def __call__(self, z, features, labels=None, dropout_keys=None):
        return 0.3 * z + (features @ self.kernel[...])[:, :, None, None]


def linear(prediction="v", kind="log_snr"):
    return Denoiser(Linear(), Conditioning(kind, 8, TABLE if kind == "timestep" else ()), prediction)


def unet(num_classes=0):
    """(definition, params) of the smallest real network, with no parameter at zero, where nothing could be told apart."""
    network = lambda: UNet(
        image_size=4,
        channels=1,
        width=8,
        multipliers=(1,),
        blocks=1,
        attention=(),
        heads=1,
        dropout=0.0,
        features=8,
        num_classes=num_classes,
        dtype="float32",
        rngs=nnx.Rngs(0),
    )
    definition, shapes = denoiser.split(nnx.eval_shape(lambda: Denoiser(network(), Conditioning("log_snr", 8), "v")))
    random = np.random.default_rng(0)
    return definition, jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.fixture(scope="module")
def z():
    return jax.random.normal(jax.random.key(2), (BATCH, 4, 4, 1))


def test_x_hat_of_each_prediction(z):
    log_snr = np.float32([-4, 0.5, 6])
    a = (1 / (1 + np.exp(-np.float64(log_snr)))).reshape(-1, 1, 1, 1) ** 0.5
    s = (1 - a**2) ** 0.5
    output, noisy = np.float64(linear().output(z, log_snr)), np.float64(z)
    for prediction, expected in {"x": output, "eps": (noisy - s * output) / a, "v": a * noisy - s * output}.items():
        np.testing.assert_allclose(linear(prediction)(z, log_snr), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_a_perfect_output_gives_back_x(prediction, z, monkeypatch):
    x, log_snr = jnp.tanh(z), np.float32([-6, 0, 6])
    eps = jax.random.normal(jax.random.key(3), z.shape)
    monkeypatch.setattr(Denoiser, "output", lambda *_: diffusion.target(prediction, x, eps, log_snr))
    np.testing.assert_allclose(linear(prediction)(diffusion.add_noise(x, eps, log_snr), log_snr), x, atol=1e-4)


@pytest.mark.parametrize("prediction", ["x", "v"])
@pytest.mark.parametrize("kind", KINDS)
def test_finite_at_zero_snr(prediction, kind, z):
    network, levels = linear(prediction, kind), jnp.array([-jnp.inf, -100.0, 30.0])
    x_hat = network(z, levels)
    assert np.isfinite(x_hat).all() and x_hat.shape == z.shape and x_hat.dtype == jnp.float32
    at_zero = network.output(z, levels)[0]
    np.testing.assert_array_equal(x_hat[0], at_zero if prediction == "x" else -at_zero)  # v = -x where there is only noise


def test_an_eps_network_estimates_no_image_at_zero_snr(z):
    assert not np.isfinite(linear("eps")(z, jnp.full(BATCH, -jnp.inf))).any()  # so such a config is refused: see test_config


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_told_matters_and_none_tells_nothing(kind, z):
    network = linear("x", kind)
    assert (np.abs(network(z, jnp.full(BATCH, 2.0)) - network(z, jnp.full(BATCH, 4.0))).max() > 0.1) == (kind != "none")


def test_labels(z):
    definition, params = unet(num_classes=2)
    network = jax.jit(lambda labels: denoiser.merge(definition, params)(z, jnp.zeros(BATCH), labels))
    first, second, null = (network(jnp.full(BATCH, label)) for label in range(3))
    assert min(np.abs(a - b).max() for a, b in [(first, second), (second, null), (null, first)]) > 1e-3
    np.testing.assert_allclose(network(jnp.array([0, 1, 2])), jnp.stack([first[0], second[1], null[2]]), atol=1e-4)
    with pytest.raises(ValueError, match="this UNet needs labels: 0..1, or 2 for the null class"):
        network(None)
    with pytest.raises(ValueError, match="this UNet takes no labels"):
        jax.eval_shape(lambda: denoiser.merge(*unet())(z, jnp.zeros(BATCH), jnp.zeros(BATCH, jnp.int32)))


def test_split_and_merge(z):
    definition, params = unet()
    call = jax.jit(lambda network, z, log_snr: network(z, log_snr))
    network, log_snr = denoiser.merge(definition, params), jnp.zeros(BATCH)
    again = denoiser.split(network)
    assert again[0] == definition and hash(again[0]) == hash(definition)
    assert jax.tree.structure(again[1]) == jax.tree.structure(params) and isinstance(again[1], dict)
    jax.tree.map(np.testing.assert_array_equal, again[1], params)
    inside = jax.jit(lambda params: denoiser.merge(definition, params)(z, log_snr))
    np.testing.assert_allclose(inside(params), call(network, z, log_snr), atol=1e-4)
    np.testing.assert_allclose(call(network, z[1:2], log_snr[1:2]), call(network, z, log_snr)[1:2], atol=1e-4)
    zeros = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_allclose(inside(zeros), z / 2**0.5, atol=1e-6)  # v = 0: x_hat = alpha z
    assert denoiser.num_parameters(params) == sum(np.size(leaf) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_the_weights_is_a_parameter(kind):
    _, params = denoiser.split(linear(kind=kind))
    assert list(params) == ["unet"] and list(params["unet"]) == ["kernel"]


def test_it_holds_no_schedule():
    assert [field.name for field in dataclasses.fields(Conditioning)] == ["kind", "width", "table", "translation"]
    assert {name for name in vars(linear()) if not name.startswith("_")} == {"unet", "conditioning", "prediction", "uncertainty"}


def test_parameters_are_those_of_the_seed_whatever_is_told_and_predicted(small):
    told = {"conditioning.kind": "timestep", "conditioning.table": "discrete(linear, num_steps=20)"}
    timestep = small(told)

    @functools.partial(jax.jit, compiler_options=HASTE)
    def made():
        networks = (
            build.make_denoiser(timestep, "interpolated"),
            build.make_denoiser(small({"model.prediction": "x"})),
            build.make_denoiser(small({"seed": 2})),
        )
        return [denoiser.split(network)[1] for network in networks]

    one, same, other = made()
    jax.tree.map(np.testing.assert_array_equal, same, one)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))
    assert build.make_conditioning(timestep, "interpolated").translation == "interpolated"
    assert build.make_conditioning(timestep).translation == "nearest"


def test_unknown_prediction():
    with pytest.raises(ValueError, match="^unknown prediction 'noise'; known: eps, x, v$"):
        Denoiser(None, Conditioning("none", 8), "noise")
