"""What the network is told of the noise level, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noisesched import schedules
from noisesched.models import conditioning
from noisesched.models.conditioning import KINDS, TRANSLATIONS, Conditioning

ENDS = np.array([-np.inf, -200, -30, 0, 30, 200, np.inf], np.float32)
TABLES = [
    "discrete(linear)",
    "discrete(cosine)",
    "discrete(scaled_linear, zero_terminal=True)",
    "discrete(flow, num_steps=7)",
    "discrete(linear, num_steps=4000)",
    "discrete(karras, num_steps=50)",
    "discrete(constant, num_steps=2)",
]


def table_of(text):
    return tuple(schedules.make(text).table.log_snr.tolist())


TABLE = table_of("discrete(linear, num_steps=10)")


def angle64(log_snr):
    with np.errstate(over="ignore"):
        return 2 / np.pi * np.arctan(np.exp(-np.asarray(log_snr, np.float64) / 2))


def make(kind, width=16, translation="nearest"):
    return Conditioning(kind, width, TABLE if kind == "timestep" else (), translation)


def position(kind, log_snr):
    return np.asarray(KINDS[kind](make(kind, translation="interpolated"), jnp.asarray(log_snr, jnp.float32)))


# -- all kinds


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_bounded_and_finite_at_every_level(kind):
    features = make(kind)(ENDS)
    assert features.shape == (len(ENDS), 16) and features.dtype == jnp.float32
    assert np.isfinite(features).all() and np.abs(features).max() <= 1
    assert make(kind)(ENDS.astype(np.float16)).dtype == jnp.float32


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_position_falls_from_1_at_noise_to_0_at_image(kind):
    at = position(kind, np.linspace(-12, 12, 201))
    assert (np.diff(at) <= 0).all() and at.min() >= 0 and at.max() <= 1
    inside = at[(at > at.min()) & (at < at.max())]  # levels beyond a table's ends are told as its ends
    assert (np.diff(inside) < 0).all() and len(inside) > 50  # no two levels are told alike
    assert position(kind, [-np.inf]) == 1 and position(kind, [np.inf]) == (1 / len(TABLE) if kind == "timestep" else 0)


def test_none_tells_nothing():
    features = np.asarray(make("none")(ENDS))
    assert (features == features[0]).all()


def test_positions_are_the_angle_and_sigma():
    log_snr = np.linspace(-25, 25, 101)
    np.testing.assert_allclose(position("log_snr", log_snr), angle64(log_snr), rtol=1e-6)
    np.testing.assert_allclose(position("sigma", log_snr), (1 / (1 + np.exp(log_snr))) ** 0.5, rtol=1e-6)
    flow = schedules.make("flow")  # (1 - u) x + u eps: the tangent of the angle is u / (1 - u)
    u = np.linspace(0.01, 0.99, 99, dtype=np.float32)
    np.testing.assert_allclose(np.tan(np.pi / 2 * position("log_snr", flow(u))), u / (1 - u), rtol=2e-5)


@pytest.mark.parametrize(
    "pair, differ",
    [((10, 10.5), 0.7), ((15, 16), 0.13), ((20, 21), 0.011), ((-10, -10.5), 0.7), ((-15, -16), 0.1), ((0, 0.01), 1.0)],
)
def test_log_snr_is_resolved_at_both_ends(pair, differ):
    here, there = np.asarray(make("log_snr", width=32)(np.float32(pair)))
    assert np.abs(here - there).max() > differ


def test_sigma_is_resolved_for_nearly_clean_images_only():
    features = np.asarray(make("sigma", width=32)(np.float32([15, 16, -15, -16])))
    assert np.abs(features[0] - features[1]).max() > 0.19  # 1000 (e^-7.5 - e^-8)
    assert np.abs(features[2] - features[3]).max() < 2e-4  # why log_snr is the default


def test_sinusoids_are_ddpms_at_its_timesteps():
    steps, width = np.arange(1, 1001), 64
    rates = 10000.0 ** (-2 * np.arange(width // 2) / width)  # Vaswani et al. 2017, sec. 3.5
    expected = np.concatenate([np.cos(steps[:, None] * rates), np.sin(steps[:, None] * rates)], axis=1)
    told = Conditioning("timestep", width, table_of("discrete(linear)"))(np.float32(table_of("discrete(linear)")))
    np.testing.assert_allclose(told, expected, atol=2e-4)  # a step of 1000, in float32, is known to 6e-5


def test_a_network_that_makes_its_own_features_is_told_a_number():
    levels = np.linspace(-8, 8, 33, dtype=np.float32)
    np.testing.assert_allclose(make("log_snr", width=None)(levels), 1000 * angle64(levels), rtol=1e-5)
    table = np.float32(table_of("discrete(linear)"))
    told = Conditioning("timestep", None, table_of("discrete(linear)"))(table)
    np.testing.assert_array_equal(told, np.arange(1000))  # from 0, as diffusers counts


def test_jit_and_gradient():
    told = make("log_snr")
    np.testing.assert_allclose(jax.jit(told)(ENDS), told(ENDS), atol=1e-4)
    slope = jax.grad(lambda level: told(level[None]).sum())(jnp.float32(3.0))
    assert np.isfinite(slope) and slope != 0


# -- timesteps


@pytest.mark.parametrize("translation", TRANSLATIONS)
@pytest.mark.parametrize("text", TABLES)
def test_every_level_of_a_table_is_told_as_its_own_step(text, translation):
    table = table_of(text)
    steps = conditioning.timestep(np.float32(table), table, translation)
    np.testing.assert_allclose(steps, np.arange(1, len(table) + 1), atol=0 if translation == "nearest" else 1e-3)


@pytest.mark.parametrize("text", TABLES)
def test_steps_are_those_of_a_plain_float64_search(text):
    table = np.array(table_of(text))
    log_snr = np.float32([*np.linspace(-12, 12, 173), -np.inf, np.inf, -50, 50])
    distance = np.abs(angle64(log_snr)[:, None] - angle64(table)[None])
    nearest = conditioning.timestep(log_snr, tuple(table.tolist()), "nearest")
    chosen = np.take_along_axis(distance, np.int64(nearest)[:, None] - 1, axis=1)[:, 0]
    np.testing.assert_allclose(chosen, distance.min(axis=1), atol=1e-7)  # another one only where two are equally near
    interpolated = conditioning.timestep(log_snr, tuple(table.tolist()), "interpolated")
    expected = np.interp(angle64(log_snr), angle64(table), np.arange(1, len(table) + 1))
    np.testing.assert_allclose(interpolated, expected, atol=2e-3)


def test_translations_between_two_steps():
    table = (4.0, 0.0, -np.inf)  # angles 0.0856, 0.5, 1
    just_above, just_below = angle_to_log_snr(0.76), angle_to_log_snr(0.74)
    levels = np.float32([5, 4, just_below, just_above, -np.inf])
    assert conditioning.timestep(levels, table, "nearest").tolist() == [1, 1, 2, 3, 3]
    np.testing.assert_allclose(conditioning.timestep(levels, table, "interpolated"), [1, 1, 2.48, 2.52, 3], atol=1e-5)


def angle_to_log_snr(angle):
    return -2 * np.log(np.tan(np.pi / 2 * angle))


def test_levels_beyond_the_table_are_told_as_its_ends():
    table = (3.0, 0.0, -3.0)
    for translation in TRANSLATIONS:
        assert conditioning.timestep(np.float32([np.inf, 3.1, -3.1, -np.inf]), table, translation).tolist() == [1, 1, 3, 3]


def test_outside_says_how_far():
    levels = [5, 3, 0, -3, -4, -np.inf, np.inf]
    assert conditioning.outside(levels, (3.0, 0.0, -3.0)).tolist() == [2, 0, 0, 0, -1, -np.inf, np.inf]
    assert conditioning.outside([-1e6, -np.inf, 4], (3.0, -np.inf)).tolist() == [0, 0, 1]


# -- errors


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("time", 8), "unknown conditioning.kind 'time'; known: log_snr, sigma, timestep, none"),
        (("log_snr", 7), "the noise level is told by an even number of features, 2 or more; got 7"),
        (("log_snr", 0), "the noise level is told by an even number of features, 2 or more; got 0"),
        (("timestep", 8), "conditioning.kind 'timestep' with a table of 0 steps: only 'timestep' has a table, and needs one"),
        (
            ("sigma", 8, (1.0, 0.0)),
            "conditioning.kind 'sigma' with a table of 2 steps: only 'timestep' has a table, and needs one",
        ),
        (("timestep", 8, (1.0, 0.0), "closest"), "unknown conditioning.translation 'closest'; known: nearest, interpolated"),
    ],
)
def test_refusals(arguments, says):
    with pytest.raises(ValueError) as error:
        Conditioning(*arguments)
    assert str(error.value) == says
