"""Diagnosis: what leaks, by closed form and measured; the effective weight; findings by law; repairs that repair; the command."""

import dataclasses
import functools
import json
import math
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BASE
from test_interchange import DDIM, DDPM, EULER, HEUN, LATENT, PUBLISHED, SOLVER

from noisesched import samplers, schedules
from noisesched.diagnosis import checks, diagnose, leak, scheduler_file
from noisesched.diffusion import alpha, sigma
from noisesched.interchange import scheduler_config
from noisesched.loss import make_weighting
from noisesched.runs import config
from noisesched.runs.workdir import Workdir

SIZES = (8, 32, 64, 256)

# -- what a level shows of the image's mean


def test_r2_is_the_textbook_ratio():
    levels = np.array([-30.0, -12, -5, 0, 3, 20])
    for variance, pixels in ((0.07, 64), (0.3, 65536)):
        signal, noise = variance / (1 + np.exp(-levels)), 1 / (1 + np.exp(levels)) / pixels
        np.testing.assert_allclose(leak.r2(levels, variance, pixels), signal / (signal + noise), rtol=1e-12)
    assert leak.r2(-np.inf, 0.07, 65536) == 0 and leak.r2(3.0, 0.0, 64) == 0
    assert leak.r2(-math.log(0.07 * 64), 0.07, 64) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("betas", "r2"),
    [
        (np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, (0.0206, 0.251, 0.573, 0.9555)),  # Stable Diffusion's
        (np.linspace(1e-4, 0.02, 1000), (0.00018, 0.00288, 0.01144, 0.1562)),  # DDPM's
    ],
)
def test_what_published_tables_leak(betas, r2):
    """More on larger images, for Var(m) = 0.07; the figures by hand from DDPM's product."""
    alpha_bar = np.prod(1 - betas)
    by_hand = [alpha_bar * 0.07 / (alpha_bar * 0.07 + (1 - alpha_bar) / size**2) for size in SIZES]
    name = "scaled_linear" if betas[-1] < 0.013 else "linear"
    ends = [plan(f"discrete({name})", size=size) for size in SIZES]
    found = [float(each.r2(each.last)) for each in ends]
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    np.testing.assert_allclose(found, r2, rtol=0.01)
    assert (np.diff(found) > 0).all()


def photographs(n=400, size=8, channels=3, seed=0):
    """Images uint8 [n, size, size, channels] of various brightness, the channels' means unlike, with structure of their own."""
    rng = np.random.default_rng(seed)
    colour = rng.normal([100, 120, 150][:channels], [35, 25, 20][:channels], (n, 1, 1, channels))
    return np.clip(colour + rng.normal(0, 40, (n, size, size, channels)), 0, 255).astype(np.uint8)


def test_measured_agrees_with_the_closed_form():
    for channels, size, levels in ((3, 8, (-6.0, -3.0, 0.0)), (1, 16, (-4.0,))):
        images = photographs(size=size, channels=channels)
        variance = leak.mean_variance(images)
        for log_snr in levels:
            r2, error = leak.measured(images, log_snr, noises=4)
            assert 0 < error < 0.05 and abs(r2 - leak.r2(log_snr, variance, size**2)) < 4 * error
    r2, error = leak.measured(images, -4.0, noises=4, noise_offset=0.1)  # which drowns the mean of 256 pixels
    assert abs(r2 - leak.r2(-4.0, variance, size**2, noise_offset=0.1)) < 4 * error
    assert r2 + 8 * error < leak.r2(-4.0, variance, size**2)
    r2, error = leak.measured(images, log_snr, noises=4)
    # which it could fail to: a sum over channels taken for pixels, say
    assert abs(r2 - leak.r2(log_snr, variance, 3 * size**2)) > 4 * error


def test_the_error_of_the_measured_one_is_its_spread():
    images = photographs(n=100)
    draws = np.array([leak.measured(images, -5.0, seed=seed) for seed in range(40)])
    wanted = leak.r2(-5.0, leak.mean_variance(images), 64)
    assert 0.6 < draws[:, 0].std() / draws[:, 1].mean() < 1.6 and abs(draws[:, 0].mean() - wanted) < draws[:, 1].mean()
    assert leak.measured(images, -5.0, seed=3) == tuple(draws[3])


def test_nothing_is_measured_where_nothing_is():
    r2, error = leak.measured(photographs(), -np.inf, noises=4)
    assert abs(r2) < 4 * error < 0.02
    alike = np.full((20, 4, 4, 1), 90, np.uint8)
    assert leak.mean_variance(alike) == 0 and leak.measured(alike, 2.0) == (0, 0)


@pytest.mark.parametrize(("method", "power"), [("ddim", 1), ("ancestral", 2)])
def test_what_a_leak_does_to_samples(method, power):
    """The law that severities rest on, by our own samplers with the exact denoiser of a normal m, seen in one pixel: from pure
    noise at a level of R^2, the mean is drawn to 0 by R (deterministic) or R^2 (ancestral)."""
    mean, variance, first = 2.0, 8.0, -4.0
    r2, noise = float(leak.r2(first, variance, 1)), float(sigma(first)) ** 2

    def denoise(z, log_snr):
        signal, noise = alpha(log_snr)[:, None], sigma(log_snr)[:, None]
        return mean + signal * variance / (signal**2 * variance + noise**2) * (z - signal * mean)

    z = jax.random.normal(jax.random.key(0), (20_000, 1))
    levels = jnp.linspace(first, 12.0, 200)
    x = jax.jit(lambda z: samplers.sample(denoise, jax.random.key(1), z, levels, method))(z)
    assert float(x.mean()) == pytest.approx(mean * (1 - r2 ** (power / 2)), abs=0.05)
    if method == "ddim":
        assert float(x.var()) == pytest.approx(variance * (1 - r2) / noise, rel=0.03)
    assert r2 > 0.1  # so that R and R^2, and either and none, are told apart


# -- where the levels and the weight of training lie


def shares(text, weighting="v", prediction="v", edges=checks.EDGES, num_draws=192_000):
    return checks.shares(schedules.make(text), make_weighting(weighting), prediction, np.asarray(edges), num_draws)


@pytest.mark.parametrize("text", ["linear", "cosine", "discrete(linear)"])
def test_shares_sum_to_one_and_are_the_schedules_own(text):
    for weighting in ("vlb", "min_snr(gamma=5)"):
        levels, weight = shares(text, weighting)
        assert levels.sum() == pytest.approx(1) and weight.sum() == pytest.approx(1)
        assert (levels >= 0).all() and (weight >= 0).all()
    edges = [-8.0, -3.0, 2.0]  # below an edge lies what u draws beyond it
    beyond = 1 - np.asarray(schedules.invert(text, jnp.array(edges)))
    np.testing.assert_allclose(shares(text, edges=edges)[0].cumsum()[:3], beyond, atol=1.1e-3 if "discrete" in text else 2e-4)
    levels, weight = shares(text, "v", "v")  # the error's own weighting weighs all draws alike
    np.testing.assert_allclose(weight, levels, rtol=1e-9)


def test_the_bounds_weight_is_no_schedules_business():
    """Kingma et al. 2021: between the same ends, weight times density of the bound's weighting is one for all schedules; on the
    eps error it is uniform in log-SNR."""
    edges = np.linspace(-9.0, 9.0, 37)
    found = [
        shares(text, "vlb", "eps", edges, 10**8)
        for text in ("truncated(linear, log_snr_min=-10, log_snr_max=10)", "uniform_log_snr(log_snr_max=10, log_snr_min=-10)")
    ]
    for _, weight in found:
        np.testing.assert_allclose(weight, [0.05, *[0.025] * 36, 0.05], rtol=0.01)
    assert np.abs(found[0][0] - found[1][0]).max() > 0.01  # though they draw unlike


def test_another_weighting_by_hand():
    """min-SNR on the x error, of levels uniform between -10 and 10: the integral of min(SNR, 5), by parts."""
    _, weight = shares("uniform_log_snr(log_snr_max=10, log_snr_min=-10)", "min_snr(gamma=5)", "x", [-1.0, math.log(5)])
    parts = np.array([math.exp(-1) - math.exp(-10), 5 - math.exp(-1), 5 * (10 - math.log(5))])
    np.testing.assert_allclose(weight, parts / parts.sum(), rtol=1e-3)


def test_a_table_has_atoms():
    log_snr = schedules.table("linear", 50, zero_terminal=True).log_snr
    levels, weight = shares("discrete(linear, num_steps=50, zero_terminal=True)", "eps", "v", [-20.0, 0.0])
    np.testing.assert_allclose(levels, [1 / 50, ((log_snr > -20) & (log_snr < 0)).mean(), (log_snr >= 0).mean()])
    snr = np.exp(log_snr)
    kept = snr / (snr + 1)
    np.testing.assert_allclose(
        weight, [0, kept[(log_snr > -20) & (log_snr < 0)].sum() / kept.sum(), kept[log_snr >= 0].sum() / kept.sum()], atol=1e-6
    )
    assert shares("discrete(linear)", edges=[-10.0])[0][0] == pytest.approx((schedules.table("linear").log_snr < -10).mean())


def test_a_weight_that_is_no_number():
    with pytest.raises(ValueError, match="overflows float32 at log-SNR 8"):
        shares("cauchy", "eps", "x")
    with pytest.raises(ValueError, match="0 at all levels"):
        shares("linear", "p2(k=1e9, gamma=90)")
    (fault,) = [f for f in examined(plan("cauchy", "x", "eps")) if f.about == "weight over log-SNR"]
    assert fault.severity == "fault" and fault.repair == "--config.weighting=x"


# -- findings


def plan(schedule="cosine", prediction="v", weighting="v", size=64, variance=0.07, num_draws=192_000, table=None):
    made = schedules.make(table) if table else None
    return checks.Plan(schedules.make(schedule), prediction, make_weighting(weighting), size, variance, num_draws, made)


def examined(given, *inferences):
    return checks.examine(given, [checks.inference(*each) for each in inferences])


def severity(found, about):
    return next(finding.severity for finding in found if finding.about == about)


def applied(given, inferences, repairs):
    """The setting and inferences with the words of repairs obeyed, as the command line would: the last of a name counts."""
    for word in shlex.split(" ".join(repairs)):
        name, _, value = word.partition("=")
        field = name.split(".")[-1]
        if field in ("schedule", "table") and name.startswith("--config."):
            given = dataclasses.replace(given, **{field: schedules.make(value) if value else None})
        elif field == "weighting":
            given = dataclasses.replace(given, weighting=make_weighting(value))
        elif name.startswith("--config."):
            given = dataclasses.replace(given, **({field: value} if field != "kind" else {}))
        elif name == "--schedule":
            inferences = list(dict.fromkeys((value, n, spacing, False) for _, n, spacing, *_ in inferences))
        else:
            assert word == "--spacing=trailing"
            inferences = list(dict.fromkeys((text, n, "trailing", *rest) for text, n, _, *rest in inferences))
    return given, [(str(given.schedule) if rest == [True] else text, n, spacing, *rest) for text, n, spacing, *rest in inferences]


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("table", [None, "discrete(scaled_linear)"])
def test_stable_diffusions_setting_is_flagged_and_the_repaired_one_passes(size, table):
    """Lin et al. 2023: eps-prediction on scaled_linear, leading spacing; rescaled to zero SNR, v-prediction, trailing."""
    schedule = table or "scaled_linear"
    for variance in (0.07, 0.0045):  # photographs, and the digits
        found = examined(plan(schedule, "eps", "eps", size, variance, table=table), (schedule, 10, "leading", True))
        assert severity(found, "end of the training schedule") == severity(found, "first level of sampling") == "fault"
        assert [f.repair for f in found if f.about == "first level of sampling"] == ["--spacing=trailing"]
        assert [f.severity for f in found] == sorted((f.severity for f in found), key=checks.SEVERITIES.index)
    repaired = "discrete(scaled_linear, zero_terminal=True)" if table else "zero_terminal(scaled_linear)"
    found = examined(plan(repaired, size=size, table=table and repaired), (repaired, 10, "trailing"))
    assert {f.severity for f in found} == {"fine"} and not any(f.repair for f in found)
    assert found[0].figures["snr"] == 0 and found[0].figures["r2"] == 0 and found[0].figures["log_snr"] == -math.inf


TABLE, COARSE = "discrete(linear)", "discrete(linear, num_steps=50)"
CASES = [
    (plan("scaled_linear", "eps", "eps"), [("scaled_linear", 10, "leading")]),
    (plan("linear", "v", "vlb", 256), [("linear", 10, "leading")]),
    (plan(TABLE, "eps", "eps", 128, table=TABLE), [(TABLE, 10, "leading")]),
    (plan("cosine", "v", "min_snr", 256), [("karras", 10, "leading"), ("scaled_linear", 10, "linspace")]),
    (plan("cosine", "eps", "eps"), [("cosine", 10, "trailing")]),
    (plan("linear", "eps", "eps", 8), [("cosine", 10, "trailing"), (TABLE, 10, "trailing")]),
    (plan("linear", size=8, table=COARSE), [("cosine", 10, "trailing")]),
    (plan("uniform_log_snr(log_snr_max=10, log_snr_min=-30)", size=8), [("linear", 10, "trailing")]),
    (plan("cauchy", "x", "eps"), []),
    (plan("sigmas([30, 5, 1, 0.2, 0.01])", "eps", "eps"), [("sigmas([30, 5, 1, 0.2, 0.01])", 4, "leading")]),
    (plan("cosine"), [("karras", 10, "trailing"), ("discrete(karras)", 10, "leading")]),
]


@pytest.mark.parametrize(("given", "inferences"), CASES, ids=range(len(CASES)))
def test_every_repair_repairs(given, inferences):
    """What a repair was for is better when its words are obeyed, those of inference after those of training."""
    found = examined(given, *inferences)
    assert any(finding.repair for finding in found)
    training = [f.repair for f in found if "inference" not in f.figures]
    for finding in found:
        assert bool(finding.repair) == (finding.severity != "fine")
        if finding.repair:
            named = [each for each in inferences if finding.figures.get("inference") == str(checks.inference(*each))]
            repairs = [*training, finding.repair] if named else [finding.repair]
            changed, sampled = applied(given, named or inferences, repairs)
            again = examined(changed, *sampled)
            assert all(f.severity == "fine" for f in again if f.about == finding.about), finding


RESCALED = "discrete(scaled_linear, zero_terminal=True)"
LEAKY = "discrete(scaled_linear)"
ENTANGLED = CASES + [  # what stood in each other's way, or called for each other without end
    (plan(RESCALED, table=LEAKY, size=8), [(RESCALED, 10, "trailing", True)]),
    (plan(RESCALED, table=LEAKY), [(LEAKY, 10, "leading")]),
    (plan("linear", "v", "eps"), [("scaled_linear", 10, "trailing")]),
    (plan("linear", "eps", "eps", table=TABLE), [("linear", 10, "leading", True), ("karras", 10, "trailing")]),
    (plan("karras", "eps", "edm", 256), [("karras(sigma_max=20)", 10, "leading"), ("cosine", 10, "trailing")]),
    (plan("truncated(sigmoid, log_snr_min=-6, log_snr_max=6)"), [("sigmoid", 10, "trailing"), ("linear", 10, "leading")]),
    (plan("sigmoid", size=8), [("truncated(sigmoid, log_snr_min=-4, log_snr_max=8)", 10, "leading")]),
    (plan("truncated(cosine, log_snr_min=-4, log_snr_max=4)", "eps", "vlb", table=COARSE), [("cosine", 60, "linspace")]),
    (plan("cosine", table="discrete(cosine)"), [("cosine", 25, "trailing", True)]),
    (plan("cauchy", "x", "eps", table=TABLE), [("cauchy", 10, "trailing")]),
    (plan("sigmas([30, 5, 1])", table="sigmas([5, 1])"), [("cosine", 10, "trailing"), ("sigmas([5, 1])", 2, "trailing")]),
    (plan("flow", "eps", "eps"), [("uniform_log_snr", 10, "leading")]),
    (plan("uniform_log_snr(log_snr_max=10, log_snr_min=-30)", "eps", "x", 8, table=COARSE), [("karras", 10, "leading")]),
]


@pytest.mark.parametrize(("given", "inferences"), ENTANGLED, ids=range(len(ENTANGLED)))
def test_all_repairs_together_leave_nothing_to_repair(given, inferences):
    """Obeyed all at once; and of several words on one inference, none says another thing."""
    found = examined(given, *inferences)
    for each in inferences:
        name = str(checks.inference(*each))
        assert len({f.repair for f in found if f.repair and f.figures.get("inference") == name}) <= 1
    given, inferences = applied(given, inferences, [f.repair for f in found])
    assert [(f.about, f.measured) for f in examined(given, *inferences) if f.severity != "fine"] == []


def test_a_table_that_was_forgotten():
    """Stable Diffusion's schedule repaired, but not its table of timesteps: training's fault, not that of the levels."""
    found = examined(plan(RESCALED, size=8, table=LEAKY), (RESCALED, 10, "trailing", True))
    (fault,) = [f for f in found if f.severity == "fault"]
    assert fault.about == "table of timesteps" and "SNR 0 (log-SNR -inf) is drawn" in fault.measured
    log_snr = {text: schedules.make(text).table.log_snr for text in (RESCALED, LEAKY)}
    assert fault.figures["noisier"] == (log_snr[RESCALED] < log_snr[LEAKY][-1]).mean() > 0.1
    assert {f.repair for f in found if f.severity != "fine"} == {f'--config.conditioning.table="{RESCALED}"'}
    assert severity(examined(plan("linear", table=TABLE)), "table of timesteps") == "fine"
    few = examined(plan("linear", table="discrete(linear, num_steps=20)"))
    assert severity(few, "table of timesteps") == "fault"
    steep = examined(plan("cauchy", table="discrete(cosine)"))
    assert [f.repair for f in steep if f.repair] == ['--config.conditioning.kind=log_snr --config.conditioning.table=""']


@pytest.mark.parametrize("schedule", ["linear", "karras", "cosine"])
def test_larger_images_are_never_better_off(schedule):
    ends = [plan(schedule, size=size) for size in (8, 16, 32, 64, 128, 256)]
    worst = [severity(examined(end), "end of the training schedule") for end in ends]
    rank = [-checks.SEVERITIES.index(word) for word in worst]
    assert rank == sorted(rank)
    assert set(worst) == ({"fine"} if schedule == "cosine" else {"fine", "warning", "fault"})


@pytest.mark.parametrize(
    ("schedule", "wanted"), [("scaled_linear", "fault"), ("karras", "warning"), ("linear", "fine"), ("discrete(cosine)", "fine")]
)
def test_severities_at_32_pixels(schedule, wanted):
    assert severity(examined(plan(schedule, size=32)), "end of the training schedule") == wanted


def test_a_leak_of_schedules_in_sigma_is_explained():
    """Where training ends so, and where sampling starts so though training went to SNR 0; the repair keeps the schedule."""
    (end,) = [f for f in examined(plan("karras")) if f.about == "end of the training schedule"]
    assert "sigma_ve, up to 80: " in end.why and end.repair == '--config.schedule="zero_terminal(karras)"'
    (start,) = [f for f in examined(plan("cosine"), ("karras", 10, "trailing")) if f.about == "first level of sampling"]
    assert "sigma_ve, up to 80: " in start.why and start.repair == '--schedule="zero_terminal(karras)"'
    for given in (plan("karras", size=8), plan("scaled_linear"), plan("zero_terminal(karras)")):
        assert not any("sigma_ve" in finding.why for finding in examined(given, (str(given.schedule), 10, "leading")))


def test_leading_spacing_is_told_of_even_where_it_does_no_harm():
    found = examined(plan("linear", size=8), ("linear", 10, "leading"), ("linear", 10, "linspace"))
    assert [f.severity for f in found if f.about == "first level of sampling"] == ["warning", "fine"]
    assert severity(examined(plan("cosine", size=8), ("cosine", 10, "leading")), "first level of sampling") == "fault"


def test_levels_outside_what_is_trained():
    given = plan("uniform_log_snr(6, -8)", table="discrete(uniform_log_snr(4, -6), num_steps=10)")
    (found,) = [f for f in examined(given, ("uniform_log_snr(9, -11)", 20, "trailing")) if f.about == "trained levels"]
    levels = np.arange(-11, 9)  # the table's first step is at u = 1/10, log-SNR 3
    counts = (levels < -8).sum(), (levels > 6).sum(), ((levels < -6) | (levels > 3)).sum()
    assert tuple(found.figures[name] for name in ("noisier", "cleaner", "untold")) == counts == (3, 2, 10)
    assert found.severity == "warning" and "as far as log-SNR -11.00" in found.measured
    assert severity(examined(plan("cosine"), ("cosine", 10, "trailing")), "trained levels") == "fine"


def test_zero_snr_needs_a_prediction_and_a_weight():
    assert severity(examined(plan("cosine", "eps", "eps")), "prediction at zero SNR") == "fault"
    for weighting, wanted in {"v": "fine", "x": "fine", "eps": "warning", "min_snr": "warning", "vlb": "warning"}.items():
        assert severity(examined(plan("cosine", "v", weighting)), "weight at zero SNR") == wanted
    assert not [f for f in examined(plan("linear", "v", "eps")) if f.about == "weight at zero SNR"]
    found = examined(plan("linear", "eps", "eps"), ("cosine", 10, "trailing"))
    assert severity(found, "trained levels") == "fault"
    assert severity(examined(plan("linear"), ("cosine", 10, "trailing")), "trained levels") == "warning"


def test_weight_on_levels_that_show_nothing():
    low = "uniform_log_snr(log_snr_max=10, log_snr_min=-20)"
    (small,), (large,) = ([f for f in examined(plan(low, size=size)) if f.about == "weight over log-SNR"] for size in (8, 256))
    assert small.severity == "warning" and small.figures["weight_below"] == pytest.approx(1 / 3, abs=1e-3)
    assert large.severity == "fine" and "still seen" in large.why
    for text in ("linear", "cosine", "shifted(cosine, image_size=256)", "zero_terminal(scaled_linear)"):
        (found,) = [f for f in examined(plan(text, size=8)) if f.about == "weight over log-SNR"]
        assert found.severity == "fine" and found.figures["weight_below"] < 0.02


# -- a scheduler_config.json

DIFFUSION = DDIM | LATENT | {"steps_offset": 1, "prediction_type": "epsilon", "clip_sample": False, "set_alpha_to_one": False}
REPAIRED = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
RUNGE_KUTTA = PUBLISHED["Stable Diffusion 1.5"] | {"skip_prk_steps": False}
FILES = {
    "Stable Diffusion": DIFFUSION,
    "repaired but for eps": DIFFUSION | REPAIRED | {"prediction_type": "epsilon"},
    "repaired but for its spacing": DIFFUSION | REPAIRED | {"timestep_spacing": "leading"},
    "Karras": EULER | LATENT | {"use_karras_sigmas": True},
    "solver": SOLVER | LATENT | {"use_lu_lambdas": True},
    "Heun": HEUN,
    "Runge-Kutta": RUNGE_KUTTA,
    "given betas": DDPM | {"trained_betas": np.linspace(1e-4, 0.012, 500).tolist(), "num_train_timesteps": 500},
    "passed over": DIFFUSION | {"timestep_spacing": "trailing", "_use_default_values": ["timestep_spacing", "clip_sample"]},
    "single steps": LATENT | {"_class_name": "DPMSolverSinglestepScheduler"},  # whose spacing no field sets
    "Flax": LATENT | {"_class_name": "FlaxPNDMScheduler", "skip_prk_steps": True, "steps_offset": 1},
    **{name: PUBLISHED[name] for name in ("Stable Diffusion 1.5", "Stable Diffusion 2.1", "Stable Diffusion XL", "DDPM")},
}


def examined_file(fields, own, *counts):
    return scheduler_file.examine(scheduler_config.from_fields(fields), own, counts or (25,))


@pytest.mark.parametrize("fields", [DIFFUSION, PUBLISHED["Stable Diffusion 1.5"]], ids=lambda fields: fields["_class_name"])
def test_stable_diffusions_file_is_flagged_and_the_repaired_one_passes(fields):
    """The levels by hand: timestep 961 of 0 to 999 comes first of 25 with leading spacing and an offset of 1."""
    found = examined_file(fields, plan(size=64))
    end, start = (
        next(f for f in found if f.about == about) for about in ("end of the training schedule", "first level of sampling")
    )
    assert end.severity == start.severity == "fault" and {f.severity for f in found if f not in (end, start)} == {"fine"}
    alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    for finding, at in ((end, alpha_bar[-1]), (start, alpha_bar[961])):
        assert finding.figures["log_snr"] == pytest.approx(math.log(at / (1 - at)), abs=1e-5)
        assert finding.figures["r2"] == pytest.approx(at * 0.07 / (at * 0.07 + (1 - at) / 64**2), rel=1e-4)
    moved = '"_class_name": "DDIMScheduler", ' * (fields["_class_name"] == "PNDMScheduler")
    assert end.file_repair == moved + '"rescale_betas_zero_snr": true, "prediction_type": "v_prediction"'
    assert start.file_repair == '"timestep_spacing": "trailing"' and start.repair == "--spacing=trailing"
    rescaled = "discrete(scaled_linear, num_steps=1000, beta_min=0.00085, beta_max=0.012, zero_terminal=True)"
    assert end.repair == (
        f'--config.schedule="{rescaled}" --config.conditioning.kind=timestep --config.conditioning.table="{rescaled}"'
    )  # v is the config's own
    for size in (64, 256):
        found = examined_file(fields | DDIM | REPAIRED, plan(size=size), 10, 50)
        assert len(found) == 8 and {(f.severity, f.repair, f.file_repair) for f in found} == {("fine", "", "")}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        *((name, plan(size=64)) for name in FILES),
        *((name, plan("linear", "eps", "eps", 8, table="discrete(linear)")) for name in ("Stable Diffusion", "DDPM")),
    ],
)
def test_a_files_repairs_leave_nothing_to_repair(name, own):
    """Obeyed all at once: as fields of the file; and, of training, as settings of the config."""
    found = examined_file(FILES[name], own)
    amiss = [finding for finding in found if finding.severity != "fine"]
    assert amiss and not any(finding.file_repair for finding in found if finding not in amiss)
    lines = dict.fromkeys(finding.file_repair for finding in amiss if finding.file_repair)
    fields = FILES[name] | json.loads("{" + ", ".join(lines) + "}")
    again = [finding for finding in examined_file(fields, own) if finding.severity != "fine"]
    weights = [finding for finding in again if finding.about == "weight at zero SNR"]  # of which no file tells
    assert again == weights and (str(own.weighting) == "eps" or not weights)
    assert all(finding.file_repair for finding in amiss if finding.about != "weight at zero SNR")

    if name != "given betas":
        repairs = [finding.repair for finding in found if finding.repair]
        changed, _ = applied(own, [], [repair for repair in repairs if repair.startswith("--config.")])
        assert {finding.severity for finding in examined(changed)} == {"fine"}


def test_a_class_that_cannot_begin_at_zero_snr_is_replaced():
    """With what was its default said: Heun's ends are not DDIM's, and PNDM's images are not clipped."""
    found = examined_file(HEUN, plan())
    (end,) = [f for f in found if f.about == "end of the training schedule"]
    changes = json.loads("{" + end.file_repair + "}")
    assert changes["_class_name"] == "DDIMScheduler" and (changes["beta_start"], changes["beta_end"]) == (0.00085, 0.012)
    (end,) = [f for f in examined_file(FILES["Flax"], plan()) if f.about == "end of the training schedule"]
    changes = json.loads("{" + end.file_repair + "}")
    assert changes["_class_name"] == "DDIMScheduler" and changes["clip_sample"] is changes["set_alpha_to_one"] is False
    (end,) = [f for f in examined_file({"_class_name": "FlaxDDPMScheduler"}, plan()) if f.about == "end of the training schedule"]
    assert json.loads("{" + end.file_repair + "}")["_class_name"] == "DDPMScheduler"


def test_what_the_sampler_is_does_not_hide_a_fault_of_the_levels():
    found = {
        variance: [(f.severity, f.about) for f in examined_file(DDPM | {"variance_type": variance}, plan(), 10)]
        for variance in ("fixed_small", "learned_range")
    }
    assert found["learned_range"] == found["fixed_small"] and found["fixed_small"][0][0] == "fault"


def test_a_network_told_sigmas_is_not_judged_by_a_table(tmp_path):
    for fields in (
        PUBLISHED["Stable Video Diffusion"],
        {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", "sigma_data": 1.0},
    ):
        (tmp_path / "scheduler_config.json").write_text(json.dumps(fields))
        with pytest.raises(ValueError, match="told log.sigma_ve. / 4.*not judged"):
            scheduler_file.read(str(tmp_path / "scheduler_config.json"))


def test_no_field_is_offered_that_does_not_help():
    spoilt = plan(weighting="p2(k=1e9, gamma=90)")
    (fault,) = [f for f in examined_file(DIFFUSION | REPAIRED, spoilt) if f.severity == "fault"]
    assert fault.about == "weight over log-SNR" and fault.repair == "--config.weighting=v" and fault.file_repair == ""


# -- the command


@pytest.fixture
def main(main):
    """`main("--config=..", ..)` -> (exit code, stdout, stderr) of `noisesched diagnose` in this process."""
    return functools.partial(main, "diagnose")


def strict(path):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_digits_measured(main, words, tmp_path):
    """Flagged, then repaired by its own words."""
    out = tmp_path / "made" / "out"
    bad = {
        "schedule": "scaled_linear",
        "model.prediction": "eps",
        "weighting": "eps",
        "training.num_steps": 3000,
        "preview.steps": 10,
    }
    code, said, err = main(*words(bad), "--spacing=leading", f"--out={out}")
    assert code == 1 and err == "" and said.startswith(f"{BASE}: 2 faults, 0 warnings, 2 fine\n")
    assert "measured on 1,500 training images" in said and said.index("fault: ") < said.index("fine: ")
    assert {path.name for path in out.iterdir()} == {"diagnosis.json", "diagnosis.png"}
    assert (out / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    held = strict(out / "diagnosis.json")
    assert held["severity"] == "fault" and not held["setting"]["variance_assumed"]
    figures = next(f["figures"] for f in held["findings"] if f["about"] == "end of the training schedule")
    assert abs(figures["measured_r2"] - figures["r2"]) < 4 * figures["measured_r2_std_error"] < 0.01
    assert sum(held["weight"]) == pytest.approx(1) and len(held["levels"]) == len(held["log_snr_edges"]) + 1

    repairs = [line.removeprefix("  repair: ") for line in said.splitlines() if line.startswith("  repair: ")]
    assert repairs[0].startswith('--config.schedule="zero_terminal(scaled_linear)" --config.model.prediction=v')
    code, said, err = main(*words(bad), "--spacing=leading", *shlex.split(" ".join(repairs)), f"--out={out}")
    assert (code, err) == (0, "") and "0 faults, 0 warnings, 5 fine" in said and "repair" not in said
    held = strict(out / "diagnosis.json")
    assert held["inference"][0]["log_snrs"][0] == "-inf" and held["findings"][0]["figures"]["log_snr"] == "-inf"


def test_without_the_data_it_says_what_it_assumes(main, words, tmp_path):
    nowhere = {"data.name": "cifar10", "data.data_dir": tmp_path / "nowhere", "data.channels": 3}
    code, said, err = main(*words(nowhere), "--schedule", "linear", "karras", "--steps", "5", "10")
    assert code == 0 and err == "" and "Var(m) = 0.07 is assumed" in said
    assert "'cifar10' is not prepared" in " ".join(said.split())
    assert said.count("first level of sampling") == 4 and "measured" not in said
    code, said, err = main(*words({"data.name": "image_folder"}))
    assert code == 0 and "repair: --config.data.path=FOLDER" in said
    code, said, err = main(*words({"data.split": "train[:3]"}))
    assert code == 0 and "too few to measure" in said and "repair: --config.data.split=train\n" in said
    assert list(tmp_path.iterdir()) == []


def test_the_configs_own_schedule_can_be_named(main, words):
    """`--schedule trained` is repaired with training, at once."""
    leaky = words({"schedule": "scaled_linear", "preview.schedule": "cosine"})
    code, said, err = main(*leaky, "--spacing=leading", "--schedule", "trained")
    assert code == 1 and err == "" and "scaled_linear, 2 steps, leading" in said and "  repair: --spacing=trailing\n" in said
    code, said, err = main(*leaky, "--schedule", "trained", "--config.schedule=zero_terminal(scaled_linear)")
    assert code == 0 and " 0 faults, 0 warnings" in said


def test_a_workdir_needs_no_checkpoint(main, small, tmp_path):
    workdir = Workdir(tmp_path / "run")
    workdir.write_config(config.to_dict(small({"schedule": "constant", "data.name": "image_folder", "data.image_size": 16})))
    code, said, err = main(f"--workdir={tmp_path / 'run'}")
    assert code == 0 and err == "" and "constant, 2 steps, trailing" in said  # the preview's schedule and steps
    assert [path.name for path in workdir.path.iterdir()] == ["config.json"]


def test_a_scheduler_file_is_diagnosed_and_mended_by_its_own_words(main, words, tmp_path):
    path, out = tmp_path / "scheduler_config.json", tmp_path / "out"
    path.write_text(json.dumps(DIFFUSION | {"_diffusers_version": "0.6.0"}))
    given = (*words({"data.name": "image_folder", "data.image_size": 64, "weighting": "v"}), f"--scheduler={path}", "--steps=50")
    code, said, err = main(*given, f"--out={out}")
    assert (code, err) == (1, "") and said.startswith(f"{path} with {BASE}: 2 faults, 1 warning, 3 fine\n")
    text = " ".join(said.split())
    for part in (
        "64x64 pixels",
        "eps-prediction",
        "50 levels: timesteps 981, 961, 941 .. 1 there",
        "from the file (DDIMScheduler)",
        "method ddim, spacing none here",
        f"from {BASE}: images and their size",
        "note: there the last step ends",
        "the others fit any network",
        "of no effect here: _diffusers_version",
    ):
        assert part in text, part
    held = strict(out / "diagnosis.json")
    assert held["findings"][0]["file_repair"] and len(held["taken"]) == 7 and len(held["inference"][0]["log_snrs"]) == 50
    assert held["setting"]["prediction"] == "eps" and (out / "diagnosis.png").exists()

    lines = [line.partition("in the file: ")[2] for line in said.splitlines() if line.startswith("  in the file: ")]
    path.write_text(json.dumps(DIFFUSION | json.loads("{" + ", ".join(lines) + "}")))
    assert json.loads(path.read_text()) == DIFFUSION | REPAIRED
    code, said, err = main(*given)
    assert (code, err) == (0, "") and " 0 faults, 1 warning, 6 fine\n" in said and "in the file" not in said  # no images


def test_a_run_is_diagnosed_under_a_file_with_too_many_betas_to_read(main, small, tmp_path):
    workdir, path = Workdir(tmp_path / "run"), tmp_path / "betas.json"
    workdir.write_config(config.to_dict(small({"model.prediction": "eps", "schedule": "linear"})))
    path.write_text(json.dumps(DDPM | {"trained_betas": [1e-4 + 1e-5 * t for t in range(1000)]} | REPAIRED))
    code, said, err = main(f"--workdir={tmp_path / 'run'}", f"--scheduler={path}", "--steps=2")
    assert (code, err) == (0, "") and f"{path} with {tmp_path / 'run'}: 0 faults" in said and "v-prediction" in said
    assert max(map(len, said.splitlines())) < 400


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ["--scheduler needs --config=FILE or --workdir=DIR"]),
        ((f"--config={BASE}", "--workdir=w"), ["either --config=FILE or --workdir=DIR"]),
        ((f"--config={BASE}", "--spacing=trailing"), ["--spacing and --scheduler contradict"]),
        ((f"--config={BASE}", "--schedule", "cosine"), ["--schedule and --scheduler contradict"]),
        ((f"--config={BASE}", "--config.schedule=cosine"), ["--config.schedule and --scheduler contradict"]),
        ((f"--config={BASE}", "--config.model.prediction=x"), ["--config.model.prediction and --scheduler contradict"]),
        ((f"--config={BASE}", "--scheduler=none.json"), ["none.json: No such file"]),
        ((f"--config={BASE}", "--scheduler="), ["--scheduler"]),
        ((f"--config={BASE}", f"--scheduler={BASE}"), ["is not JSON"]),
        ((f"--config={BASE}", "--steps=1001"), ["does not visit 1001"]),
        ((f"--config={BASE}", "--scheduler=flow.json"), ["flow.json", "predict a velocity", "epsilon, v_prediction, sample"]),
    ],
)
def test_faults_of_a_scheduler_file_in_one_line(main, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    for name, fields in {"sd.json": DIFFUSION, "flow.json": PUBLISHED["Stable Diffusion 3"]}.items():
        (tmp_path / name).write_text(json.dumps(fields))
    code, said, err = main("--scheduler=sd.json", *arguments)
    assert code == 2 and said == "" and err.startswith("noisesched: error: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flow.json", "sd.json"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ["--config=FILE", "--workdir=DIR"]),
        ((f"--config={BASE}", "--workdir=w"), ["either --config=FILE or --workdir=DIR"]),
        (("--workdir=w",), ["holds no run"]),
        (("--workdir=w", "--config.seed=1"), ["--config.seed=1", "none is given"]),
        (("--config=none.py",), ["'none.py' not found"]),
        ((f"--config={BASE}", "--config.model.prediction=eps"), ["prediction='eps'", "zero SNR", "set model.prediction to 'v'"]),
        ((f"--config={BASE}", "--schedule", "cosin"), ["did you mean 'cosine'"]),
        ((f"--config={BASE}", "--steps=0"), ["--steps", "whole number from 1 up"]),
        ((f"--config={BASE}", "--schedule=discrete(linear, num_steps=10)", "--steps=11"), ["choose 1 to 10"]),
        ((f"--config={BASE}", "--config.schedule=sigmas([80, 1, 0.1])", "--steps=3"), ["preview.steps: cannot select 25 of 3"]),
        ((f"--config={BASE}", "--spacing=even"), ["--spacing", "trailing"]),
        ((f"--config={BASE}", "--config.data.split=trian"), ["no split 'trian'"]),
        ((f"--config={BASE}", "--out="), ["--out"]),
        ((f"--config={BASE}", f"--out={BASE}"), [BASE]),
    ],
)
def test_faults_in_one_line(main, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    code, said, err = main(*arguments)
    assert code == 2 and said == "" and err.startswith("noisesched: error: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert list(tmp_path.iterdir()) == []


def test_help_teaches(main):
    code, said, _ = main("--help")
    assert code == 0 and "1 if there is a fault" in said and "trailing" in said and "noisesched diagnose --config=" in said
    assert "noisesched diagnose --scheduler=scheduler_config.json --config=" in said and "timestep_spacing needs no new" in said


def test_repairs_can_be_pasted(small):
    """A repair stands on one line, however long; all other lines are short."""
    given = diagnose.plan_of(small({"schedule": "scaled_linear"}), 0.07)
    lines = list(diagnose.text("it", given, examined(given, ("scaled_linear", 2, "trailing")), 0))
    assert lines[0] == "it: 1 fault, 0 warnings, 3 fine" and all(len(line) <= 100 for line in lines if "repair" not in line)
    assert '  repair: --config.schedule="zero_terminal(scaled_linear)"' in lines
