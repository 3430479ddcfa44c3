"""Every schedule of the registry through every property; published figures; float64; and what popular texts get wrong."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from noisesched import curves, diffusion, samplers, schedules, tables
from noisesched.diagnosis import leak
from noisesched.schedules import DEFINITIONS, EXAMPLES, RANGES, invert, levels, make, rate, recommended, unevenness

U = np.concatenate([10.0 ** np.arange(-6, -1), np.linspace(0.05, 0.95, 19), 1 - 10.0 ** np.arange(-5.0, -1)]).astype(np.float32)
SMOOTH = [name for name in EXAMPLES if name not in ("discrete", "betas", "sigmas")]
every_schedule = pytest.mark.parametrize("text", EXAMPLES.values(), ids=EXAMPLES)


def in_float64(schedule, u):
    with jax.enable_x64(True):
        return np.asarray(schedule(np.asarray(u, np.float64)))


# -- properties of all


@every_schedule
def test_decreasing_and_never_nan(text):
    log_snr = np.asarray(make(text)(np.linspace(0, 1, 2001)), np.float64)
    assert not np.isnan(log_snr).any() and log_snr[0] > log_snr[-1] and log_snr[-1] < np.inf
    with np.errstate(invalid="ignore"):
        assert (np.nan_to_num(np.diff(log_snr)) < 1e-5 * (1 + np.abs(np.nan_to_num(log_snr[1:])))).all()


@every_schedule
def test_float32_agrees_with_float64(text):
    schedule = make(text)
    expected = in_float64(schedule, U)
    tolerance = 2e-3 if text.startswith("zero_terminal") else 2e-6  # alpha - alpha_end cancels within 1e-5 of the end
    np.testing.assert_allclose(schedule(U), expected, rtol=tolerance, atol=2e-6)


@every_schedule
def test_prints_as_the_spec_that_makes_it(text):
    assert str(make(text)) == repr(make(text)) == text and make(str(make(text))) == make(text)
    assert make(make(text)) is make(text) and hash(make(text)) == hash(make(text))


def test_numbers_that_are_equal_print_as_they_were_given():
    assert [str(schedules.make(f"flow(shift={shift})")) for shift in ("3", "3.0", "3")] == [
        f"flow(shift={shift})" for shift in ("3", "3.0", "3")
    ]
    schedules.make("discrete(linear, zero_terminal=True)")
    with pytest.raises(ValueError, match="zero_terminal must be True or False; got 1"):
        schedules.make("discrete(linear, zero_terminal=1)")


@every_schedule
def test_inverse(text):
    schedule = make(text)
    log_snr = schedule(U)
    if schedule.table:  # a staircase: the position at which it steps down to the level
        np.testing.assert_allclose(invert(schedule, log_snr), U, atol=1.01 / schedule.table.num_steps)
    else:
        np.testing.assert_allclose(schedule(invert(schedule, log_snr)), log_snr, rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(invert(schedule, log_snr), U, rtol=2e-4, atol=1e-6)
    assert invert(schedule, schedule(1.0)) <= 1 and invert(schedule, jnp.inf) == 0 and invert(schedule, -jnp.inf) == 1
    assert invert(schedule, schedule(jnp.ones(()))) == pytest.approx(1, abs=2e-3) and jnp.isnan(invert(schedule, jnp.nan))


@pytest.mark.slow
@every_schedule
def test_any_array_and_every_transformation(text):
    schedule = make(text)
    u = jnp.linspace(0.1, 0.9, 6)
    expected = schedule(u)
    np.testing.assert_allclose(jax.jit(schedule)(u), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(schedule)(u), expected, rtol=1e-5, atol=1e-5)
    assert schedule(u.reshape(2, 3)).shape == (2, 3) and schedule(0.5).shape == () and schedule(1).dtype == jnp.float32
    assert in_float64(schedule, 0.5).dtype == np.float64
    jax.jit(lambda s, u: s(u), static_argnums=0)(schedule, u)


@pytest.mark.parametrize("name", SMOOTH)
def test_rate_is_the_slope(name):
    schedule, u = make(EXAMPLES[name]), np.linspace(0.051, 0.949, 13)
    slope = -(in_float64(schedule, u + 1e-6) - in_float64(schedule, u - 1e-6)) / 2e-6
    np.testing.assert_allclose(rate(schedule, jnp.asarray(u, jnp.float32)), slope, rtol=2e-3)


@every_schedule
@pytest.mark.parametrize("spacing", tables.SPACINGS)
@pytest.mark.parametrize("n", [1, 7, 1000])
def test_levels(text, spacing, n):
    schedule = make(text)
    if schedule.table and n > schedule.table.num_steps:
        with pytest.raises(ValueError, match=f"cannot select {n} of {schedule.table.num_steps} steps"):
            levels(schedule, n, spacing)
        return
    log_snrs = np.asarray(levels(schedule, n, spacing))
    assert log_snrs.shape == (n,) and (np.diff(log_snrs) > 0).all() and log_snrs[-1] < np.inf
    if spacing == "trailing" and not schedule.table:
        np.testing.assert_allclose(log_snrs, schedule(np.arange(n, 0, -1) / n), rtol=1e-6)
    if spacing != "leading":
        np.testing.assert_allclose(log_snrs[0], schedule(1.0), rtol=1e-6)
    elif n < (schedule.table.num_steps if schedule.table else 1000):
        assert log_snrs[0] > schedule(1.0)


def test_levels_of_more_than_a_thousand():
    for spacing in tables.SPACINGS:
        assert (np.diff(levels(make("cosine"), 2500, spacing)) > 0).all()


# -- closed forms, independent of the code's own forms: numerical integrals of beta, and published definitions

BETAS = {
    "linear": lambda u: 0.1 + 19.9 * u,
    "scaled_linear": lambda u: (0.85**0.5 + u * (12**0.5 - 0.85**0.5)) ** 2,
    "quadratic": lambda u: 0.1 + 19.9 * u**2,
    "constant": lambda u: 10.0 + 0 * u,
}


@pytest.mark.parametrize("name", BETAS)
def test_schedules_given_by_beta(name):
    for u in (0.001, 0.3, 0.9, 1.0):
        integral = integrate.quad(BETAS[name], 0, u, epsabs=0, epsrel=1e-12)[0]
        assert in_float64(make(name), u) == pytest.approx(-np.log(np.expm1(integral)), rel=1e-9, abs=1e-9)


def logistic(y):
    return 1 / (1 + np.exp(-y))


ALPHA_BARS = {
    "cosine": lambda u: (np.cos((u + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2,
    "sigmoid": lambda u: (logistic(3) - logistic(6 * u - 3)) / (logistic(3) - logistic(-3)),
    "sigmoid(start=0, end=3, tau=0.3)": lambda u: (logistic(10) - logistic(10 * u)) / (logistic(10) - 0.5),
}


@pytest.mark.parametrize("text", ALPHA_BARS)
def test_schedules_given_by_alpha_bar(text):
    u = np.linspace(0.01, 0.99, 50)
    alpha_bar = ALPHA_BARS[text](u)
    np.testing.assert_allclose(in_float64(make(text), u), np.log(alpha_bar / (1 - alpha_bar)), rtol=1e-8, atol=1e-8)


def test_schedules_given_by_log_snr():
    u = np.linspace(0.05, 0.95, 7)
    cases = {
        "uniform_log_snr(log_snr_max=8, log_snr_min=-6)": 8 - 14 * u,
        "karras": -2 * np.log((0.002 ** (1 / 7) + u * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7),
        "flow(shift=3)": 2 * np.log((1 - u) / u) - 2 * np.log(3),
        "log_normal(mean=1, std=2)": stats.norm.isf(u, 1, 2),
        "log_normal": -2 * stats.norm.ppf(u, -1.2, 1.2),  # EDM's training density over log sigma
        "logit_normal(mean=0.5, std=0.8)": -2 * stats.norm.ppf(u, 0.5, 0.8),
        "laplace(mean=1, scale=2)": stats.laplace.isf(u, 1, 2),
        "cauchy(location=-1, scale=2)": stats.cauchy.isf(u, -1, 2),
    }
    for text, expected in cases.items():
        np.testing.assert_allclose(in_float64(make(text), u), expected, rtol=1e-9, atol=1e-9, err_msg=text)


def test_karras_at_even_positions_is_edms_grid():
    """Karras et al. 2022, eq. 5, for 5 levels of sigma from 80 to 0.002."""
    expected = [80.0, 17.5278, 2.5152, 0.16975, 0.002]
    sigma_ve = np.exp(-in_float64(make("karras"), np.linspace(1, 0, 5)) / 2)
    np.testing.assert_allclose(sigma_ve, expected, rtol=1e-4)


def test_training_densities_draw_what_they_say():
    u = (np.arange(100_000) + 0.5) / 100_000
    assert stats.kstest(in_float64(make("laplace(mean=1, scale=2)"), u), stats.laplace(1, 2).cdf).statistic < 1e-4
    assert stats.kstest(in_float64(make("log_normal(mean=-1, std=3)"), u), stats.norm(-1, 3).cdf).statistic < 1e-4


# -- wrappers


@pytest.mark.parametrize("inside", ["linear", "scaled_linear", "constant", "karras", "uniform_log_snr", "quadratic"])
def test_zero_terminal(inside):
    schedule, wrapped = make(inside), make(f"zero_terminal({inside})")
    assert wrapped(1.0) == -jnp.inf and jax.jit(wrapped)(jnp.ones(3))[0] == -jnp.inf
    assert wrapped(0.0) == pytest.approx(float(schedule(0.0)), abs=1e-4) or wrapped(0.0) == schedule(0.0)
    u = np.linspace(0.05, 0.999, 20)
    root = np.sqrt(logistic(in_float64(schedule, np.concatenate([[0.0], u, [1.0]]))))
    expected = root[0] * (root[1:-1] - root[-1]) / (root[0] - root[-1])
    np.testing.assert_allclose(np.sqrt(logistic(in_float64(wrapped, u))), expected, rtol=1e-7)


def test_zero_terminal_leaves_a_schedule_that_ends_at_zero():
    u = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(in_float64(make("zero_terminal(cosine)"), u), in_float64(make("cosine"), u), atol=1e-9)


LEAKING = ["linear", "scaled_linear", "constant", "karras", "uniform_log_snr", "quadratic", "uniform_log_snr(1, -1)"]


@pytest.mark.parametrize("inside", LEAKING)
def test_zero_terminal_snr(inside):
    """SNR - SNR(1), scaled so that SNR(0) stays: the closed form, exact ends, and dSNR/du kept."""
    schedule, wrapped = make(inside), make(f"zero_terminal_snr({inside})")
    assert wrapped(1.0) == -jnp.inf and jax.jit(wrapped)(jnp.ones(3))[0] == -jnp.inf and wrapped(0.0) == schedule(0.0)
    u = np.linspace(0.02, 0.999, 40)
    with np.errstate(over="ignore"):
        first, last, *snr = np.exp(in_float64(schedule, np.concatenate([[0.0, 1.0], u])))
    scale = 1 / (1 - last / first)
    assert scale == 1 or inside.startswith(("uniform", "karras"))
    np.testing.assert_allclose(np.exp(in_float64(wrapped, u)), (snr - last) * scale, rtol=1e-9)

    inner = jnp.asarray(u[u < 0.97], jnp.float32)
    kept = rate(schedule, inner) * diffusion.snr(schedule(inner)) * scale
    np.testing.assert_allclose(rate(wrapped, inner) * diffusion.snr(wrapped(inner)), kept, rtol=1e-3)
    everywhere = jnp.linspace(1e-4, 1 - 1e-4, 2001)
    assert np.isfinite(slope := rate(wrapped, everywhere)).all() and (slope > 0).all()
    assert np.isfinite(log_snr := np.asarray(wrapped(everywhere))).all() and (np.diff(log_snr) < 0).all()


@pytest.mark.parametrize("inside", LEAKING)
def test_zero_terminal_snr_changes_less_than_the_linear_rescaling(inside):
    """At every position, near the end too; and h above the end by log(1 - e^-h), if the clean end is clean."""
    u = np.concatenate([np.linspace(1e-4, 1, 2000, endpoint=False), 1 - 10.0 ** np.arange(-7.0, -3)])
    plain, by_snr, linearly = (
        in_float64(make(text.format(inside)), u) for text in ("{}", "zero_terminal_snr({})", "zero_terminal({})")
    )
    assert (by_snr <= plain + 1e-8).all() and (by_snr >= linearly - 1e-8).all()
    assert (by_snr > linearly + 0.01).any()
    if inside != "uniform_log_snr(1, -1)":
        np.testing.assert_allclose(by_snr - plain, np.log(-np.expm1(in_float64(make(inside), 1.0) - plain)), atol=1e-4, rtol=1e-6)


def test_what_rescaling_costs_as_its_docstring_says():
    """`zero_terminal_snr`: the greatest change of log-SNR at levels not below -3, -2 and 0; the share of u below the old end."""
    u = np.linspace(1e-6, 1, 20_000, endpoint=False)
    said = {
        "scaled_linear": {"zero_terminal": (0.64, 0.34, 0.12, 0.120), "zero_terminal_snr": (0.10, 0.036, 0.0048, 0.060)},
        "linear": {"zero_terminal": (0.050, 0.029, 0.011, None), "zero_terminal_snr": (0.00087, 0.00032, 0.000043, None)},
    }
    for inside, ways in said.items():
        plain = in_float64(make(inside), u)
        for name, (*changes, share) in ways.items():
            rescaled = in_float64(make(f"{name}({inside})"), u)
            for level, wanted in zip((-3, -2, 0), changes, strict=True):
                assert np.abs(rescaled - plain)[plain >= level].max() == pytest.approx(wanted, rel=0.02)
            if share:
                assert (rescaled < in_float64(make(inside), 1.0)).mean() == pytest.approx(share, abs=5e-4)


def test_zero_terminal_snr_of_published_tables():
    """By the definition, in float64; and near the table of the curve, as near as the published table is to its curve."""
    plain, rescaled = schedules.table("scaled_linear"), schedules.table("scaled_linear", zero_terminal_snr=True)
    first, last = plain.snr[0], plain.snr[-1]
    np.testing.assert_allclose(rescaled.snr[:-1], first * (plain.snr[:-1] - last) / (first - last), rtol=1e-9)
    assert rescaled.snr[-1] == 0 and rescaled.betas[-1] == 1 and rescaled.snr[0] == pytest.approx(first, rel=1e-12)
    staircase = make("discrete(scaled_linear, num_steps=1000, zero_terminal_snr=True)")
    np.testing.assert_array_equal(staircase.table.betas, rescaled.betas)
    assert schedules.with_zero_terminal(staircase) == staircase

    sampled = make("discrete(zero_terminal_snr(scaled_linear), num_steps=1000)")
    assert sampled(1.0) == -jnp.inf and levels(sampled, 10)[0] == -jnp.inf
    curve = in_float64(make("zero_terminal_snr(scaled_linear)"), np.arange(1, 1000) / 1000)
    np.testing.assert_allclose(sampled.table.log_snr[:-1], curve, atol=1e-6)
    middle = slice(100, 900)
    gap = np.abs(plain.log_snr[middle] - schedules.table("scaled_linear(beta_min=0.85)").log_snr[middle]).max()
    assert np.abs(rescaled.log_snr[middle] - sampled.table.log_snr[middle]).max() < 1.5 * gap < 0.03


# -- who ends at zero

ENDS = np.array([0, *U, np.nextafter(np.float32(1), np.float32(0)), 1], np.float32)


def falls_without_bound(text):
    near, nearer = in_float64(make(text), 1 - np.array([1e-6, 1e-12]))
    return nearer < near - 1


def test_which_schedules_end_at_zero_snr():
    """Exactly those whose log-SNR falls without bound towards u = 1, of all that there are: none jumps there."""
    ending = {name for name, text in EXAMPLES.items() if make(text)(1.0) == -jnp.inf}
    assert ending == {name for name, text in EXAMPLES.items() if falls_without_bound(text)}
    for name, text in EXAMPLES.items():
        end = make(text)(1.0)
        assert (diffusion.alpha(end) == 0) == (diffusion.snr(end) == 0) == (name in ending)
        assert diffusion.sigma(end) == 1 or name not in ending
    by_construction = {name for name in ending if schedules.DEFINITIONS[name].__module__ == curves.__name__}
    assert by_construction == {"cosine", "sigmoid", "flow", "log_normal", "logit_normal", "laplace", "cauchy"}
    assert all(f"`{name}`" in curves.__doc__ for name in by_construction)
    assert ending - by_construction == {"zero_terminal", "zero_terminal_snr", "shifted"}  # the last, of cosine


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["zero_terminal", "zero_terminal_snr"])
@pytest.mark.parametrize("name", [name for name in SMOOTH if schedules.DEFINITIONS[name].__module__ == curves.__name__])
def test_every_curve_can_end_at_zero(wrapper, name):
    """Rescaled, all do; and those that did are what they were."""
    plain, rescaled = make(EXAMPLES[name]), make(f"{wrapper}({EXAMPLES[name]})")
    assert rescaled(1.0) == -jnp.inf
    if plain(1.0) == -jnp.inf:
        told = np.abs(in_float64(plain, U) + 335) <= 365  # from -700 to 30: in the tails of `cauchy` alpha is 0 or 1 in any float
        np.testing.assert_allclose(in_float64(rescaled, U)[told], in_float64(plain, U)[told], rtol=1e-9, atol=1e-9)
        if wrapper == "zero_terminal_snr":
            np.testing.assert_array_equal(rescaled(ENDS), plain(ENDS))


def test_rescaling_twice_is_rescaling_once():
    """Also where float32 reaches -inf a little before u = 1."""
    once, twice = make("zero_terminal(constant(beta=0.1))"), make("zero_terminal_snr(zero_terminal(constant(beta=0.1)))")
    np.testing.assert_array_equal(twice(ENDS), once(ENDS))
    assert once(ENDS)[-2] == -jnp.inf


def test_how_schedules_approach_zero():
    """SNR in proportion to (1 - u)^2, or to 1 - u."""
    powers = {"cosine": 2, "flow": 2, "zero_terminal(linear)": 2, "sigmoid": 1, "zero_terminal_snr(linear)": 1}
    for text, power in powers.items():
        near, nearer = in_float64(make(text), 1 - np.array([1e-5, 1e-6]))
        assert (near - nearer) / math.log(10) == pytest.approx(power, abs=1e-3), text


@every_schedule
def test_with_zero_terminal(text):
    schedule, ended = make(text), schedules.with_zero_terminal(text)
    assert ended(1.0) == -jnp.inf and make(str(ended)) == ended and schedules.with_zero_terminal(ended) == ended
    assert bool(ended.table) == bool(schedule.table) and (ended == schedule) == (schedule(1.0) == -jnp.inf)


def test_with_zero_terminal_of_options_without_a_name():
    assert str(schedules.with_zero_terminal("betas([0.1, 0.2], False)")) == "betas([0.1, 0.2], zero_terminal=True)"
    rescaled = make("sigmas([80, 5, 0.1], zero_terminal=True)").table
    np.testing.assert_array_equal(rescaled.betas, tables.rescaled_to_zero_terminal(make("sigmas([80, 5, 0.1])").table).betas)


# -- variance-exploding processes


def test_terminal_sigma_ve():
    expected = {
        "karras": 80,
        "karras(sigma_max=7)": 7,
        f"shifted(karras, by={2 * math.log(2)})": 40,
        "sigmas([80, 5, 0.1])": 80,
        "discrete(karras, num_steps=20)": 80,
        "truncated(karras, log_snr_min=0, log_snr_max=5)": 1,
    }
    for text, sigma_ve in expected.items():
        assert schedules.terminal_sigma_ve(text) == pytest.approx(sigma_ve, rel=1e-5), text
    for text in (*EXAMPLES.values(), "zero_terminal(karras)", "sigmas([inf, 5, 0.1])", "sigmas([80, 5], zero_terminal=True)"):
        assert (schedules.terminal_sigma_ve(text) is None) == (text not in (EXAMPLES["karras"], EXAMPLES["sigmas"])), text


def test_variance_exploding_processes_leak_at_every_finite_sigma():
    """y = x + sigma_ve eps has SNR 1 / sigma_ve^2; on images of 256 x 256 pixels even 1e4 shows something of their means. The
    same curve in unit variance ends at alpha = 0 and sigma = 1."""
    sigmas = np.array([1.0, 80, 1e3, 1e4])
    ends = np.array([make(f"karras(sigma_max={sigma_ve})")(1.0) for sigma_ve in sigmas])
    np.testing.assert_allclose(diffusion.snr(ends), sigmas**-2, rtol=1e-5)
    r2 = leak.r2(ends, 0.07, 256**2)
    np.testing.assert_allclose(r2, 0.07 / (0.07 + sigmas**2 / 256**2), rtol=1e-5)
    assert (np.diff(r2) < 0).all() and r2[-1] > 4e-5
    end = make("zero_terminal(karras)")(1.0)
    assert diffusion.alpha(end) == 0 and diffusion.sigma(end) == 1 and leak.r2(end, 0.07, 256**2) == 0


@pytest.mark.parametrize("method", ["ddim", "heun", "dpmpp_2m"])
def test_sampling_a_variance_exploding_curve_from_zero_snr(method):
    """Normal data and the exact denoiser, for which samplers are lines from noise to samples: that at noise 0 is the samples'
    mean, and the slope their std. From pure noise at karras's own end the mean is drawn to 0 by sqrt(R^2), from SNR 0 not."""
    mean, std = 60.0, 20.0

    def denoise(z, log_snr):
        signal, noise = (scale(log_snr)[:, None] for scale in (diffusion.alpha, diffusion.sigma))
        return mean + signal * std**2 / (signal**2 * std**2 + noise**2) * (z - signal * mean)

    z = jnp.array([[-1.0], [0.0], [1.0]])
    draw = jax.jit(lambda log_snrs: samplers.sample(denoise, jax.random.key(0), z, log_snrs, method))
    drawn = math.sqrt(leak.r2(make("karras")(1.0), std**2, 1))
    assert drawn > 0.2
    for text, wanted in (("karras", mean * (1 - drawn)), ("zero_terminal(karras)", mean), ("zero_terminal_snr(karras)", mean)):
        low, middle, high = (float(x) for x in draw(levels(make(text), 200))[:, 0])
        assert middle == pytest.approx(wanted, rel=0.02), text
        assert (high - low) / 2 == pytest.approx(std, rel=0.04) and high - middle == pytest.approx(middle - low, rel=1e-3), text


def test_shifted():
    u = jnp.linspace(0.1, 0.9, 5)
    np.testing.assert_allclose(make("shifted(cosine, by=-2)")(u), make("cosine")(u) - 2, rtol=1e-6)
    # Hoogeboom et al. 2023: 256 x 256 seen at 64 x 64 has 4^2 pixels averaged: noise variance 16 times smaller
    np.testing.assert_allclose(make("shifted(cosine, image_size=256)")(u), make("cosine")(u) - np.log(16), atol=1e-5)
    np.testing.assert_allclose(make("shifted(cosine, image_size=64, base=32)")(u), make("cosine")(u) - np.log(4), atol=1e-5)


def test_truncated_is_the_truncated_density():
    schedule, wrapped = make("log_normal(mean=0, std=2)"), make("truncated(log_normal(mean=0, std=2), -3, 1)")
    assert wrapped(0.0) == 1 and wrapped(1.0) == -3
    u = (np.arange(20_000) + 0.5) / 20_000
    expected = stats.truncnorm(-3 / 2, 1 / 2, 0, 2)
    assert stats.kstest(np.asarray(wrapped(u)), expected.cdf).statistic < 1e-3
    assert np.unique(np.asarray(wrapped(np.linspace(0, 1, 1001)))).size == 1001  # strictly decreasing: not clipped
    beyond = make("truncated(karras, -100, 5)")  # a bound beyond the end leaves the end
    assert beyond(1.0) == pytest.approx(float(make("karras")(1.0)), abs=1e-4) and beyond(0.0) == 5
    assert schedule(0.5) == pytest.approx(0, abs=1e-6)


def test_piecewise_from_list_and_file(tmp_path):
    knots = [9.0, 4.0, 1.5, -2.0, -7.0]
    schedule = make(f"piecewise({knots})")
    np.testing.assert_allclose(schedule(np.linspace(0, 1, 5)), knots, atol=1e-5)
    (tmp_path / "levels.txt").write_text("9, 4\n1.5 -2\n-7\n")
    np.save(tmp_path / "levels.npy", np.array(knots))
    for name in ("levels.txt", "levels.npy"):
        assert str(make(f"piecewise({str(tmp_path / name)!r})")) == str(schedule)  # prints without the file


def test_betas_are_a_table(tmp_path):
    """The published betas, given one by one, are the published table, its rescaled one too."""
    published = tables.linear(50)
    np.save(tmp_path / "betas.npy", published)
    (tmp_path / "betas.txt").write_text("\n".join(map(repr, published.tolist())))
    for name in ("betas.npy", "betas.txt"):
        for option in ("", ", zero_terminal=True"):
            schedule, expected = make(f"betas({str(tmp_path / name)!r}{option})"), make(f"discrete(linear, num_steps=50{option})")
            np.testing.assert_array_equal(schedule.table.betas, expected.table.betas)
            np.testing.assert_array_equal(schedule(U), expected(U))
            np.testing.assert_array_equal(levels(schedule, 7, "leading"), levels(expected, 7, "leading"))
            assert make(str(schedule)) == schedule  # prints without the file


def test_sigmas_are_their_levels(tmp_path):
    """n levels of n sigmas are -2 log sigma, noisiest first; inf is SNR 0; the 0 that ends samplers' lists is no level."""
    (tmp_path / "sigmas.txt").write_text("inf 14.6146\n3, 0.5 0.0292 0.0\n")
    for text in ("sigmas([inf, 14.6146, 3, 0.5, 0.0292])", f"sigmas({str(tmp_path / 'sigmas.txt')!r})"):
        log_snrs = levels(make(text), 5)
        np.testing.assert_allclose(log_snrs, [-np.inf, *(-2 * np.log([14.6146, 3, 0.5, 0.0292]))], rtol=1e-6)


# -- bad specs: one line each, naming the choices


@pytest.mark.parametrize(
    "text, says",
    [
        ("cosin", "did you mean 'cosine'"),
        ("foo", "known: betas, cauchy, constant"),
        ("cosine(t=3)", "cosine takes (s=0.008)"),
        ("linear(beta_min=-5)", "beta_min is a number from 0 to 10000; got -5"),
        ("karras(sigma_min=90)", "sigma_min=90 must be below sigma_max=80.0"),
        ("piecewise([1, 2])", "does not decrease"),
        ("piecewise([1])", "two or more"),
        ("piecewise([1, -inf])", "finite"),
        ("piecewise('/nowhere')", "cannot read numbers"),
        ("piecewise(3)", "two or more"),
        ("shifted(cosine)", "takes by="),
        ("shifted(cosine, by=1, image_size=2)", "takes by="),
        ("zero_terminal", "missing a required argument: 'schedule'"),
        ("zero_terminal(3)", "must be a schedule"),
        ("zero_terminal_snr(discrete(linear))", "cannot be wrapped"),
        ("discrete(linear, zero_terminal=True, zero_terminal_snr=True)", "choose one"),
        ("cosine(cosine)", "cannot be a schedule"),
        ("shifted(discrete(linear), by=-1)", "cannot be wrapped"),
        ("truncated(cosine, 3, 1)", "must be below"),
        ("discrete(linear, num_steps=0)", "whole number"),
        ("discrete(linear, foo=1)", "linear takes"),
        ("zero_terminal(nope)", "unknown schedule 'nope'"),
        ("uniform_log_snr(5, 5)", "log_snr_min=5 must be below log_snr_max=5"),
        ("betas([0.1])", "2 to 100000 numbers"),
        ("betas([])", "2 to 100000 numbers"),
        ("betas([0.1, 1.5])", "betas lie in"),
        ("betas([0.1, 'a'])", "a list of numbers"),
        ("betas(0.1)", "a list of numbers"),
        ("betas([0.1, nan])", "betas lie in"),
        ("betas([0.1, [0.2]])", "a list of numbers"),
        ("betas('/nowhere')", "cannot read numbers"),
        ("sigmas([1, 2])", "sigmas fall"),
        ("sigmas([2, 2, 1])", "sigmas fall"),
        ("sigmas([2, 1, -1])", "sigmas fall"),
        ("sigmas([nan, 1])", "sigmas fall"),
        ("sigmas([2, 0])", "does not decrease"),
        ("sigmas([1, 0.5, 0])", "say kind='flow'"),
        ("sigmas([5, 0.5, 0], kind='flow')", "are times from 1 (noise) down to 0; got 5"),
        ("sigmas([5, 0.5, 0], kind='x')", "choose 've'"),
        ("zero_terminal(" * 6 + "linear" + ")" * 6, "nests specs more than 6 deep"),
        ("shifted(sigmas([3, 2]), by=1)", "cannot be wrapped"),
        ("discrete(cosine(s=0.01), s=3)", "belong inside the spec"),
        ("quadratic(1, cosine)", "cannot be a schedule"),
        ("discrete(linear, num_steps=1)", "num_steps is a whole number from 2 up to 100000; got 1"),
        ("shifted(cosine, image_size=0)", "image_size is a number from 1e-06 to 1e+06; got 0"),
    ],
)
def test_bad_specs(text, says):
    with pytest.raises(ValueError) as error:
        make(text)
    assert says in str(error.value) and "\n" not in str(error.value)


NUMBERS = [
    (name, parameter)
    for name, function in DEFINITIONS.items()
    for parameter in list(inspect.signature(function).parameters)[1:]
    if parameter not in (*schedules.OTHERS, "table_options")
]


def with_number(name, parameter, text):
    """A spec of the schedule `name` with one parameter set."""
    others = {"schedule": "cosine", "log_snr_min": "-5", "log_snr_max": "5"} if name in ("truncated", "shifted") else {}
    others |= {"image_size": "256"} if parameter == "base" else {}
    given = {key: value for key, value in others.items() if key in inspect.signature(DEFINITIONS[name]).parameters}
    return f"{name}({', '.join(f'{key}={value}' for key, value in (given | {parameter: text}).items())})"


@pytest.mark.parametrize(("name", "parameter"), NUMBERS)
def test_a_number_out_of_range_is_named_with_its_range(name, parameter):
    low, high = RANGES.get(parameter, (-1e9, 1e9))
    beyond = [] if low == -math.inf else ["inf", "-inf", repr(high * 1.01), repr(low - 0.01 * abs(low) - 1e-7)]
    for text in ["True", "'1'", "[1, 2]", "nan", "1" + "0" * 400, "1e10", *beyond]:
        with pytest.raises(ValueError) as error:
            make(with_number(name, parameter, text))
        assert f": {parameter} is a number from {low:g} to {high:g}; got " in str(error.value)
        assert "\n" not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize(("name", "parameter"), NUMBERS)
def test_every_number_in_range_makes_a_schedule_or_is_named(name, parameter):
    low, high = RANGES.get(parameter, (-1e9, 1e9))
    for text in map(repr, (low, high)):
        try:
            made = make(with_number(name, parameter, text))
        except ValueError as error:
            assert any(words in str(error) for words in ("must be below", "does not decrease", "must be a finite number"))
        else:
            assert not np.isnan(made(np.linspace(0, 1, 99))).any()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("levels.txt", None, "not a regular file"),
        ("levels.npy", None, "not a regular file"),
        ("levels.txt", b"3 two 1", "'two'"),
        ("levels.npy", b"3 2 1", "magic string"),
        ("levels.npy", b"", "magic string"),
        ("levels.txt", b"\xff\xfe", "decode"),
        ("levels.npy", np.array([2j, 1j]), "complex128"),
        ("levels.npy", np.array([None]), "Object arrays"),
    ],
)
def test_bad_files(tmp_path, name, content, reason):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ValueError) as error:
        make(f"piecewise('{path}')")
    said = str(error.value)
    assert said.startswith(f"cannot read numbers from '{path}': ") and reason in said
    assert said.count(str(path)) == 1 and "Errno" not in said and "\n" not in said


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_bad_numbers_of_levels(n):
    with pytest.raises(ValueError, match="whole number from 1 up"):
        levels(make("cosine"), n)
    with pytest.raises(ValueError, match="known: trailing, leading, linspace"):
        levels(make("cosine"), 5, "tailing")


# -- what popular texts get wrong


def test_popular_sigmoids_are_wrong():
    """S(-a + 2 a u), normalised by its start, rises to 20 and has negative betas; S(a - 2 a u) is linear log-SNR and leaks."""
    u = np.linspace(0, 1, 101)
    popular = logistic(-3 + 6 * u) / logistic(-3)
    assert popular[-1] == pytest.approx(20.09, abs=0.01) and (1 - popular[1:] / popular[:-1] < 0).all()
    leaking = logistic(3 - 6 * u)
    np.testing.assert_allclose(np.log(leaking / (1 - leaking)), make("uniform_log_snr(3, -3)")(u), atol=1e-5)
    assert leaking[-1] / (1 - leaking[-1]) == pytest.approx(math.exp(-3))
    ours = make("sigmoid")
    assert ours(1.0) == -jnp.inf and ours(0.0) == jnp.inf
    bends = np.diff(np.asarray(ours(np.linspace(0.02, 0.98, 50))), 2)
    assert np.abs(bends).max() > 0.1  # not linear in log-SNR


def test_cosine_is_not_near_uniform_in_log_snr():
    u = np.linspace(0.05, 0.95, 7)
    np.testing.assert_allclose(in_float64(make("cosine(s=0)"), u), -2 * np.log(np.tan(np.pi * u / 2)), rtol=1e-9, atol=1e-9)
    middle, end = rate(make("cosine"), jnp.array([0.5, 0.99]))
    assert end > 30 * middle


def test_terminal_snrs_of_the_continuous_schedules():
    """What leaks: exp(-I) / (1 - exp(-I)) with I = 10.05, (0.85 + sqrt(0.85 12) + 12) / 3, 6.733, 10."""
    integrals = {"linear": 10.05, "scaled_linear": (0.85 + 10.2**0.5 + 12) / 3, "quadratic": 0.1 + 19.9 / 3, "constant": 10.0}
    for name, integral in integrals.items():
        assert float(diffusion.snr(make(name)(1.0))) == pytest.approx(1 / math.expm1(integral), rel=1e-5)
    for name in ("cosine", "sigmoid", "flow", "zero_terminal(linear)", "shifted(cosine, by=3)"):
        assert make(name)(1.0) == -jnp.inf


# -- unevenness


def test_unevenness_of_the_uniform_schedule_is_zero_and_of_plain_cosine_its_closed_form():
    assert unevenness("uniform_log_snr(log_snr_max=20, log_snr_min=-20)") < 1e-5
    levels = np.linspace(10, -10, 20001)
    u = 2 / np.pi * np.arctan(np.exp(-levels / 2))  # cosine with s = 0: log_snr = -2 log tan(pi u / 2)
    expected = np.abs((u - u[0]) / (u[-1] - u[0]) - np.linspace(0, 1, len(u))).max()
    assert unevenness("cosine(s=0)") == pytest.approx(expected, abs=2e-4)


def test_unevenness_does_not_change_with_a_shift_that_moves_the_window_too():
    shifted = unevenness("shifted(linear, by=3)", -4, 8)
    assert shifted == pytest.approx(unevenness("linear", -7, 5), abs=1e-5)


def test_recommended_is_cosine_up_to_64_and_shifted_beyond():
    assert [str(recommended(size)) for size in (8, 64)] == ["cosine", "cosine"]
    assert str(recommended(256)) == "shifted(cosine, image_size=256)"


def test_times_of_a_flow_are_the_flows_own_levels():
    times = [1.0, 0.8, 0.5, 0.2]
    schedule = make(f"sigmas({[*times, 0.0]}, kind='flow')")
    assert make(str(schedule)) == schedule and levels(schedule, 4)[0] == -np.inf
    np.testing.assert_allclose(levels(schedule, 4), make("flow")(np.array(times)), rtol=1e-6)


@pytest.mark.parametrize("wrapper", ["zero_terminal({})", "zero_terminal_snr({})", "shifted({}, by=0.5)", "truncated({}, -9, 9)"])
def test_what_is_wrapped_is_evaluated_once(wrapper, monkeypatch):
    """At every depth, so that the cost of nested wrappers adds up instead of multiplying."""
    calls, linear = [], schedules.DEFINITIONS["linear"]
    nested = make(wrapper.format(wrapper.format(wrapper.format("linear"))))
    nested(0.5)  # ends that are found once are known
    monkeypatch.setitem(schedules.DEFINITIONS, "linear", lambda u: calls.append(1) or linear(u))
    nested(0.5)
    assert len(calls) == 1
