"""scheduler_config.json: published files and figures, every field accounted for, and what is written is read back.

Against PyTorch's diffusers itself: test_interchange_library.py.
"""

import functools
import json
import math
import os

import jax
import numpy as np
import pytest
from scipy import special, stats

from noisesched import diffusion, samplers, schedules
from noisesched.interchange import schedulers
from noisesched.interchange.scheduler_config import WRITTEN, from_fields, read, run_write, to_fields

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LATENT_SPEC = "discrete(scaled_linear, num_steps=1000, beta_min=0.00085, beta_max=0.012)"
LINEAR_SPEC = "discrete(linear, num_steps=1000, beta_min=0.0001, beta_max=0.02)"
DDIM, DDPM, EULER = ({"_class_name": f"{name}Scheduler"} for name in ("DDIM", "DDPM", "EulerDiscrete"))
ANCESTRAL, HEUN = ({"_class_name": f"{name}DiscreteScheduler"} for name in ("EulerAncestral", "Heun"))
SOLVER, FLOW = {"_class_name": "DPMSolverMultistepScheduler"}, {"_class_name": "FlowMatchEulerDiscreteScheduler"}

PUBLISHED = {  # as they are distributed with the networks
    "Stable Diffusion 1.5": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        **LATENT,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
    "Stable Diffusion 2.1": {
        **DDIM,
        "_diffusers_version": "0.8.0",
        **LATENT,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "steps_offset": 1,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "trained_betas": None,
    },
    "Stable Diffusion XL": {
        **EULER,
        "_diffusers_version": "0.19.0.dev0",
        **LATENT,
        "clip_sample": False,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "use_karras_sigmas": False,
    },
    "Stable Video Diffusion": {
        **EULER,
        "_diffusers_version": "0.24.0.dev0",
        **LATENT,
        "clip_sample": False,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "sigma_max": 700.0,
        "sigma_min": 0.002,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "timestep_type": "continuous",
        "trained_betas": None,
        "use_karras_sigmas": True,
    },
    "DDPM": {
        **DDPM,
        "_diffusers_version": "0.1.1",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "variance_type": "fixed_large",
    },
    "Stable Diffusion 3": {**FLOW, "_diffusers_version": "0.29.0.dev0", "num_train_timesteps": 1000, "shift": 3.0},
    "FLUX.1 schnell": {
        **FLOW,
        "_diffusers_version": "0.30.0.dev0",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
    },
}


# -- published files


@pytest.mark.parametrize(
    "name, schedule, prediction, method, spacing, no_effect",
    [
        ("Stable Diffusion 1.5", LATENT_SPEC, "eps", None, None, "_diffusers_version set_alpha_to_one clip_sample"),
        ("Stable Diffusion 2.1", LATENT_SPEC, "v", "ddim", None, "_diffusers_version skip_prk_steps"),
        (
            "Stable Diffusion XL",
            LATENT_SPEC,
            "eps",
            "ddim",
            None,
            "_diffusers_version clip_sample sample_max_value set_alpha_to_one skip_prk_steps",
        ),
        (
            "Stable Video Diffusion",
            "karras(sigma_min=0.002, sigma_max=700.0, rho=7.0)",
            "v",
            "ddim",
            None,
            "_diffusers_version clip_sample set_alpha_to_one skip_prk_steps",
        ),
        ("DDPM", LINEAR_SPEC, "eps", "ancestral(variance=1)", "leading", "_diffusers_version"),
        ("Stable Diffusion 3", "flow(shift=3.0)", None, "ddim", None, "_diffusers_version"),
        (
            "FLUX.1 schnell",
            "flow",
            None,
            "ddim",
            "linspace",
            "_diffusers_version base_image_seq_len base_shift max_image_seq_len max_shift",
        ),
    ],
)
def test_published_files(name, schedule, prediction, method, spacing, no_effect):
    settings = from_fields(PUBLISHED[name])
    assert (str(settings.schedule), settings.prediction, settings.method, settings.spacing) == (
        schedule,
        prediction,
        method,
        spacing,
    )
    assert settings.num_steps == 1000 and sorted(settings.no_effect) == sorted(no_effect.split())
    assert method is None or samplers.make(method)


def table(fields):
    return from_fields(fields).schedule.table


def test_published_terminal_values():
    """Stable Diffusion's sigma of 14.6146 and alpha_bar of 0.00466; DDPM's 4.0358e-05; and exactly 0 once rescaled."""
    latent, linear = table(PUBLISHED["Stable Diffusion 1.5"]), table(PUBLISHED["DDPM"])
    assert latent.alpha_bar[-1] == pytest.approx(0.00466009, rel=2e-6) and latent.alpha_bar[0] == pytest.approx(0.99915, abs=1e-7)
    assert math.exp(-latent.log_snr[-1] / 2) == pytest.approx(14.6146, abs=5e-5)
    assert linear.alpha_bar[-1] == pytest.approx(4.0358e-05, rel=2e-5)
    for rescaled in (DDIM | LATENT, DDPM, SOLVER | LATENT):
        made = table(rescaled | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
        assert made.alpha_bar[-1] == 0 and made.betas[-1] == 1 and made.log_snr[-1] == -np.inf
        assert made.alpha_bar[0] == pytest.approx(table(rescaled).alpha_bar[0], rel=1e-12)
    assert table(DDIM | {"beta_schedule": "squaredcos_cap_v2"}).snr[-1] == pytest.approx(2.4288e-09, rel=2e-4)


def test_defaults_differ_between_classes():
    assert (
        from_fields(DDIM).schedule == from_fields(EULER).schedule == from_fields(SOLVER).schedule == schedules.make(LINEAR_SPEC)
    )
    assert (
        str(from_fields(HEUN).schedule) == "discrete(linear, num_steps=1000, beta_min=0.00085, beta_max=0.012)"
    )  # linear with those ends
    leading = {name for name, fields in schedulers.FIELDS.items() if fields.get("timestep_spacing") == "leading"}
    families = ("DDIM", "DDPM", "PNDM", "DDIMParallel", "DDPMParallel", "LCM", "TCD", "CogVideoXDDIM", "CogVideoXDPM")
    assert leading == {f"{name}Scheduler" for name in families}
    assert from_fields(DDPM).method == "ancestral" and from_fields(DDIM).grid.offset == 0
    assert any("clip_sample" in note for note in from_fields(DDIM).notes) and not any(
        "clip" in note for note in from_fields(HEUN).notes
    )
    passed_over = from_fields(EULER | {"timestep_spacing": "leading", "_use_default_values": ["timestep_spacing"]})
    assert passed_over.grid.spacing == "linspace" and passed_over.no_effect == ("timestep_spacing",)


# -- levels


def visited(fields, n):
    return from_fields(fields).grid.visited(1000, n).tolist()


def test_published_timesteps():
    """The library's, counted from 0. Leading with an offset of 1: 981, 961, .. 1; Lin et al. 2023, table 2, less 1."""
    assert visited(DDIM | {"steps_offset": 1}, 50) == list(range(981, 0, -20))
    assert visited(PUBLISHED["Stable Diffusion 1.5"], 50) == list(range(981, 0, -20))  # the network is called at 961 twice
    assert visited(DDIM, 50) == list(range(980, -1, -20))
    assert visited(DDIM | {"timestep_spacing": "trailing"}, 50) == list(range(999, 0, -20))
    assert visited(DDIM | {"timestep_spacing": "linspace"}, 10) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    np.testing.assert_allclose(visited(EULER, 5), [999, 749.25, 499.5, 249.75, 0])
    assert visited(SOLVER, 10) == [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]  # ten of eleven
    assert visited(SOLVER | {"timestep_spacing": "leading"}, 50) == list(range(950, 0, -19))


@pytest.mark.parametrize("spacing", schedules.SPACINGS)
@pytest.mark.parametrize("fields", [DDIM, DDPM, EULER, ANCESTRAL, HEUN, SOLVER], ids=lambda fields: fields["_class_name"])
def test_a_spacing_is_ours_only_if_it_visits_our_levels(fields, spacing):
    for offset in (0, 1):
        settings = from_fields(fields | {"timestep_spacing": spacing, "steps_offset": offset})
        ours = schedules.levels(settings.schedule, 40, spacing)
        same = np.allclose(settings.levels(40), ours, rtol=1e-5, atol=1e-5)
        assert same == (settings.spacing == spacing) and settings.spacing in (spacing, None)
        assert same or any("no spacing here" in note for note in settings.notes)


def test_an_offset_is_one_step_noisier():
    log_snr = table(DDIM).log_snr
    np.testing.assert_allclose(
        from_fields(DDIM | {"steps_offset": 1}).levels(50), log_snr[np.arange(982, 1, -20) - 1], rtol=1e-12
    )
    np.testing.assert_allclose(from_fields(DDIM).levels(50), log_snr[np.arange(981, 0, -20) - 1], rtol=1e-12)


def test_levels_between_timesteps_are_interpolated_in_sigma():
    sigma = np.exp(-table(EULER).log_snr / 2)
    expected = [
        sigma[999],
        0.75 * sigma[749] + 0.25 * sigma[750],
        0.5 * sigma[499] + 0.5 * sigma[500],
        0.25 * sigma[249] + 0.75 * sigma[250],
        sigma[0],
    ]
    for fields in (EULER, ANCESTRAL, HEUN | {"beta_start": 1e-4, "beta_end": 0.02}):
        np.testing.assert_allclose(np.exp(-from_fields(fields).levels(5) / 2), expected, rtol=1e-9)


@pytest.mark.parametrize(
    "fields, high, low",
    [
        (EULER | LATENT, 14.6146, 0.029167),
        (SOLVER | LATENT | {"timestep_spacing": "leading"}, 14.6146, 0.029167),
        (EULER | LATENT | {"timestep_spacing": "leading"}, None, 0.029167),
        (EULER | {"sigma_min": 0.002, "sigma_max": 700}, 700, 0.002),
    ],
)
def test_karras_and_exponential_sigmas(fields, high, low):
    """Between the table's ends or given ones; Euler's ends are those of the timesteps visited."""
    karras = np.exp(-from_fields(fields | {"use_karras_sigmas": True}).levels(20) / 2)
    high = high or np.exp(-table(fields).log_snr[950] / 2)  # timestep 950, of 0 to 999
    expected = [(high ** (1 / 7) + k / 19 * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for k in range(20)]
    np.testing.assert_allclose(karras, expected, rtol=1e-4)
    exponential = np.exp(-from_fields(fields | {"use_exponential_sigmas": True}).levels(20) / 2)
    np.testing.assert_allclose(exponential, [high * (low / high) ** (k / 19) for k in range(20)], rtol=1e-4)


@pytest.mark.parametrize(
    "fields", [EULER, HEUN, SOLVER, {"_class_name": "KDPM2DiscreteScheduler"}], ids=lambda fields: fields["_class_name"]
)
def test_beta_sigmas_are_quantiles(fields):
    """Of Beta(0.6, 0.6), from the cleanest sigma to the noisiest: shares of its probability are evenly spaced."""
    for ends in ({}, {"sigma_min": 0.05, "sigma_max": 50.0}):
        sigmas = np.exp(-from_fields(fields | ends | {"use_beta_sigmas": True}).levels(9) / 2)
        low, high = ends.values() if ends else np.exp(-table(fields).log_snr[[0, -1]] / 2)
        shares = stats.beta.cdf((sigmas - low) / (high - low), 0.6, 0.6)
        np.testing.assert_allclose(shares, np.linspace(1, 0, 9), atol=1e-7)


def test_log_linear_sigmas():
    """Lu's lambdas between the table's ends, whatever sigma_min says, unless Karras' are chosen; Euler's are N of N + 1."""
    ends = table(SOLVER).log_snr[[-1, 0]]
    lu = SOLVER | {"use_lu_lambdas": True, "sigma_min": 1.0}
    np.testing.assert_allclose(from_fields(lu | {"use_beta_sigmas": True}).levels(9), np.linspace(*ends, 9), rtol=1e-12)
    karras = {"use_karras_sigmas": True}
    np.testing.assert_array_equal(from_fields(lu | karras).levels(9), from_fields(SOLVER | karras | {"sigma_min": 1.0}).levels(9))
    euler = from_fields(EULER | {"interpolation_type": "log_linear", "timestep_spacing": "leading"})
    np.testing.assert_allclose(euler.levels(9), np.linspace(*ends, 10)[:9], rtol=1e-12)
    assert any("not those of these sigmas" in note for note in euler.notes)


@pytest.mark.parametrize("spacing, first, gap", [("trailing", 912, 125), ("leading", 808, 101), ("linspace", 912, 114)])
def test_the_noisiest_timesteps_can_be_left_out(spacing, first, gap):
    """913 of the 1000 have a log-SNR of -4 or more: eight of nine even ones among these, or every 125th from the last."""
    fields = SOLVER | {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": spacing}
    log_snr = table(fields).log_snr
    levels = from_fields(fields | {"lambda_min_clipped": -2}).levels(8)
    steps = [int(np.abs(log_snr - level).argmin()) for level in levels]
    np.testing.assert_allclose(log_snr[steps], levels, rtol=1e-9)
    assert steps[0] == first and set(-np.diff(steps)) == {gap}
    np.testing.assert_array_equal(from_fields(fields | {"lambda_min_clipped": -1e3}).levels(8), from_fields(fields).levels(8))


@pytest.mark.parametrize(
    "fields",
    [
        EULER | {"use_karras_sigmas": True, "timestep_spacing": "trailing"},  # whose arithmetic lists 62 timesteps for 61
        EULER | {"use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 5000, "sigma_min": 0.01},
        SOLVER | {"use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 5000},
        SOLVER | {"use_karras_sigmas": True, "num_train_timesteps": 50},
    ],
)
def test_timesteps_that_rule_no_sigma_may_be_any(fields):
    sigmas = np.exp(-from_fields(fields).levels(61) / 2)
    assert sigmas[0] == pytest.approx(np.exp(-table(fields).log_snr[-1] / 2)) and np.ptp(np.diff(sigmas ** (1 / 7))) < 1e-12


def test_tables_that_no_spec_names():
    """exp: alpha_bar = e^(-12 u). sigmoid: the logits of the betas are evenly spaced. laplace: the logit of alpha_bar^2 is
    -log(2 u) / 2, and in the noisier half log(2 (1 - u)) / 2."""
    u = np.arange(1, 1001) / 1000
    exponential = table(HEUN | {"beta_schedule": "exp"})
    np.testing.assert_allclose(np.log(exponential.alpha_bar), -12 * u, rtol=1e-9)
    sigmoid = table(DDPM | {"beta_schedule": "sigmoid", "beta_end": 0.01})
    np.testing.assert_allclose(sigmoid.betas + sigmoid.betas[::-1], 0.0101, rtol=1e-9)
    np.testing.assert_allclose(np.diff(special.logit((sigmoid.betas - 1e-4) / 0.0099)), 12 / 999, rtol=1e-6)
    laplace = table(DDPM | {"beta_schedule": "laplace"})
    snr = np.where(u < 0.5, (2 * u + 1e-6) ** -0.5, (2 * (1 - u) + 1e-6) ** 0.5)
    np.testing.assert_allclose(laplace.alpha_bar, np.sqrt(snr / (1 + snr) * 1.001), rtol=1e-6)
    zero = table(DDPM | {"beta_schedule": "sigmoid", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    assert zero.alpha_bar[-1] == 0
    with pytest.raises(ValueError, match="known: linear, scaled_linear, squaredcos_cap_v2"):
        from_fields(EULER | {"beta_schedule": "sigmoid"})


def test_flow_levels():
    """sigma in the library's sense is the time s of (1 - s) x + s eps: s shifted, from 1 to 1/T shifted twice."""
    shifted = lambda s: 3 * s / (1 + 2 * s)
    s = np.array([shifted(1 + k / 3 * (shifted(1 / 1000) - 1)) for k in range(4)])
    log_snrs = from_fields(PUBLISHED["Stable Diffusion 3"]).levels(4)
    assert log_snrs[0] == -np.inf
    np.testing.assert_allclose(log_snrs[1:], 2 * np.log((1 - s[1:]) / s[1:]), rtol=1e-12)
    settings = from_fields(PUBLISHED["FLUX.1 schnell"])
    np.testing.assert_allclose(settings.levels(30), schedules.levels("flow", 30, "linspace"), rtol=1e-5)


def times(fields, n):
    """The times of a flow's levels."""
    return special.expit(-from_fields(fields, image_size=512).levels(n) / 2)


def test_a_flows_times_between_its_own_ends():
    """stretched to a last one; or evenly spaced in s^(1/7), in log s, or in probability."""
    shifted = FLOW | {"shift": 3.0}
    plain, stretched = times(shifted, 9), times(shifted | {"shift_terminal": 0.1}, 9)
    assert stretched[0] == 1 and stretched[-1] == pytest.approx(0.1)
    np.testing.assert_allclose((1 - stretched[1:]) / (1 - plain[1:]), 0.9 / (1 - plain[-1]), rtol=1e-9)
    for kind, even in {
        "karras": lambda s: s ** (1 / 7),
        "exponential": np.log,
        "beta": lambda s: stats.beta.cdf((s - s[-1]) / (s[0] - s[-1]), 0.6, 0.6),
    }.items():
        found = times(shifted | {f"use_{kind}_sigmas": True}, 9)
        assert found[0] == 1 and found[-1] == pytest.approx(plain[-1])
        np.testing.assert_allclose(np.diff(even(found), 2), 0, atol=1e-7)
    settings = from_fields(FLOW | {"stochastic_sampling": True})
    assert settings.method is None and from_fields(FLOW).method == "ddim" and settings.levels(5)[0] == -math.inf


def test_the_stand_in_for_zero_terminal_snr():
    zero = LATENT | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    for fields in (EULER, ANCESTRAL, SOLVER):
        settings = from_fields(fields | zero)
        assert settings.levels(10)[0] == pytest.approx(-math.log(2**24 - 1), rel=1e-12)
        assert any("2^-24" in note and "-16.64" in note for note in settings.notes)
    for fields in (DDIM, DDPM):
        assert from_fields(fields | zero).levels(10)[0] == -np.inf


# -- no field is passed over in silence


@pytest.mark.parametrize("name", schedulers.FIELDS)
def test_every_field_is_accounted_for(name):
    """Nonsense in any field is refused by its name, or noted, or the field is named as one of no effect."""
    for field in schedulers.KNOWN:
        try:
            settings = from_fields({"_class_name": name, field: {"non": "sense"}})
        except ValueError as error:
            assert field in str(error) and "\n" not in str(error)
        else:
            assert field in settings.no_effect or any(field in note for note in settings.notes), field


def test_unknown_fields_are_named_and_refused():
    for name in schedulers.FIELDS:
        with pytest.raises(ValueError, match=r"unknown fields: shift_snr=3.0, beta_stat=0.1; .* remove those that you know"):
            from_fields({"_class_name": name, "shift_snr": 3.0, "_note": 1, "beta_stat": 0.1})
    assert from_fields(DDIM | {"_note": 1}).no_effect == ("_note",)


@pytest.mark.parametrize(
    "fields, says",
    [
        (SOLVER | {"solver_order": 3}, "solver_order=3"),
        (SOLVER | {"algorithm_type": "sde-dpmsolver++"}, "sde-dpmsolver++"),
        (SOLVER | {"solver_type": "heun"}, 'solver_type="heun"'),
        (DDPM | {"variance_type": "learned_range"}, "learned_range"),
        (DDPM | {"variance_type": "fixed_large_log"}, "fixed_large_log"),
        ({"_class_name": "UniPCMultistepScheduler"}, "UniPC"),
    ],
)
def test_steps_that_no_sampler_here_takes_are_at_levels_that_are_known(fields, says):
    """Levels depend on the table, the spacing and the sigma fields alone."""
    settings = from_fields(fields)
    assert settings.method is None and str(settings.schedule) == LINEAR_SPEC
    assert any(says in note and "no sampler here" in note for note in settings.notes)
    usual = from_fields(
        {"_class_name": DDPM["_class_name"] if fields["_class_name"].startswith("DDPM") else SOLVER["_class_name"]}
    )
    for n in (1, 7, 50):
        np.testing.assert_array_equal(settings.levels(n), usual.levels(n))
    assert not {"timestep_spacing", "beta_schedule", "use_karras_sigmas"} & set(settings.no_effect)


SIBLINGS = {  # classes that place their levels alike
    "DDIMScheduler": ["DDPMScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler"],
    "EulerDiscreteScheduler": ["EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler"],
    "HeunDiscreteScheduler": ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"],
    "DPMSolverMultistepScheduler": ["DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"],
    "LCMScheduler": ["TCDScheduler"],
    "CogVideoXDDIMScheduler": ["CogVideoXDPMScheduler"],
    "FlowMatchEulerDiscreteScheduler": ["FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"],
}


@pytest.mark.parametrize("name, other", [(name, other) for name, others in SIBLINGS.items() for other in others])
@pytest.mark.parametrize("spacing", schedules.SPACINGS)
def test_classes_that_place_their_levels_alike(name, other, spacing):
    for changes in (
        LATENT,
        {"beta_schedule": "squaredcos_cap_v2"},
        {"use_karras_sigmas": True},
        {"steps_offset": 1},
        {"shift": 3},
    ):
        if changes.keys() <= schedulers.FIELDS[name].keys() & schedulers.FIELDS[other].keys():
            levels = [from_fields({"_class_name": n, "timestep_spacing": spacing} | changes).levels(9) for n in (name, other)]
            np.testing.assert_array_equal(*levels)


def test_flax_classes_place_their_levels_as_their_sources_do():
    """By fewer fields than their namesakes; and where these list linspace upwards, these begin at the noisiest timestep."""
    leading, trailing, linspace = np.arange(900, -1, -100), np.arange(999, 0, -100), np.arange(999, -1, -111)
    log_snr, fields = table(DDIM | LATENT).log_snr, LATENT | {"timestep_spacing": "trailing", "steps_offset": 3}
    for name, steps in {
        "DDIM": leading + 3,
        "PNDM": leading + 3,
        "DDPM": leading,
        "LMSDiscrete": linspace,
        "DPMSolverMultistep": trailing,
    }.items():
        scheduler = from_fields(fields | {"_class_name": f"Flax{name}Scheduler"})
        np.testing.assert_allclose(scheduler.levels(10), log_snr[steps], rtol=1e-12)
        assert ("timestep_spacing" in scheduler.no_effect) == (name != "DPMSolverMultistep")
        assert ("steps_offset" in scheduler.no_effect) == (name not in ("DDIM", "PNDM"))
    euler = {"_class_name": "FlaxEulerDiscreteScheduler"} | LATENT
    for spacing, steps in (("leading", leading + 1), ("linspace", linspace)):
        np.testing.assert_allclose(
            from_fields(euler | {"timestep_spacing": spacing, "steps_offset": 3}).levels(10), log_snr[steps], rtol=1e-12
        )
    assert from_fields(euler).levels(1) == pytest.approx(log_snr[-1]) and from_fields(EULER | LATENT).levels(1) > 0
    with pytest.raises(ValueError, match="known: linspace, leading"):
        from_fields(euler | {"timestep_spacing": "trailing"})


def test_classes_without_a_spacing():
    expected = from_fields(DDPM).levels(25)
    np.testing.assert_array_equal(from_fields({"_class_name": "RePaintScheduler"}).levels(25), expected)
    unclip = from_fields({"_class_name": "UnCLIPScheduler"})
    cosine = DDIM | {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"}
    np.testing.assert_array_equal(unclip.levels(25), from_fields(cosine).levels(25))
    assert unclip.method == "ancestral" and from_fields(unclip.fields | {"variance_type": "learned_range"}).method is None
    with pytest.raises(ValueError, match="choose another number"):
        unclip.levels(1)  # there it divides by N - 1


def test_runge_kutta_steps_are_between_the_same_levels():
    skipped, taken = (from_fields({"_class_name": "PNDMScheduler", "skip_prk_steps": skip}) for skip in (True, False))
    np.testing.assert_array_equal(skipped.levels(4), taken.levels(4))
    assert any("Runge-Kutta" in note for note in taken.notes) and skipped.levels(3)[0] < 0
    with pytest.raises(ValueError, match="choose another number"):
        taken.levels(3)


def test_distilled_timesteps_are_the_published_four():
    scheduler = from_fields({"_class_name": "LCMScheduler"})
    assert scheduler.grid.visited(1000, 4).tolist() == [999, 759, 499, 259]
    with pytest.raises(ValueError, match="choose another number"):
        scheduler.levels(51)


def test_cogvideox_shifts_the_log_snr():
    plain, shifted = (from_fields({"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": k}) for k in (1.0, 3.0))
    np.testing.assert_allclose(shifted.levels(20), plain.levels(20) - math.log(3), rtol=1e-9)
    zero = from_fields(
        {"_class_name": "CogVideoXDDIMScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    )
    assert zero.schedule(1.0) == -math.inf and zero.method == "ddim"


def test_edms_levels_are_karras_ones():
    for changes, (low, high, rho) in (({}, (0.002, 80, 7)), ({"sigma_max": 50.0, "rho": 5.0}, (0.002, 50, 5))):
        scheduler = from_fields({"_class_name": "EDMEulerScheduler"} | changes)
        sigma = np.linspace(high ** (1 / rho), low ** (1 / rho), 9) ** rho
        np.testing.assert_allclose(scheduler.levels(9), -2 * np.log(sigma), rtol=1e-12)
        assert scheduler.prediction is None and scheduler.schedule(1.0) == pytest.approx(-2 * math.log(high))


@pytest.mark.parametrize(
    "name, times",  # of five steps at flow_shift 3, as the library lists them
    [
        ("DPMSolverMultistepScheduler", [0.9997, 0.9227, 0.8178, 0.6663, 0.4283]),
        ("UniPCMultistepScheduler", [1.0000, 0.9232, 0.8184, 0.6672, 0.4298]),
    ],
)
def test_solvers_of_flows(name, times):
    fields = {"_class_name": name, "use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    sigma_ve = np.exp(-from_fields(fields).levels(5) / 2)
    np.testing.assert_allclose(sigma_ve / (1 + sigma_ve), times, atol=5.1e-5)
    with pytest.raises(ValueError, match="prediction_type"):
        from_fields(fields | {"prediction_type": "epsilon"})
    dynamic = from_fields(fields | {"use_dynamic_shifting": True}, image_size=512)
    shift = math.exp(0.5 + 0.65 * 768 / 3840)  # the published line, whose ends the file need not state
    np.testing.assert_allclose(dynamic.levels(5), from_fields(fields | {"flow_shift": shift}).levels(5), rtol=1e-12)
    for sigmas in ("karras", "beta"):
        changed = fields | {f"use_{sigmas}_sigmas": True}
        if name.startswith("UniPC") and sigmas == "karras":  # there s / (1 - s) are the table's
            plain = {"_class_name": name, "use_karras_sigmas": True}
            np.testing.assert_allclose(from_fields(changed).levels(5), from_fields(plain).levels(5), rtol=1e-12)
        else:
            with pytest.raises(ValueError, match="a table of betas for a flow's times"):
                from_fields(changed)


DYNAMIC = FLOW | {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


@pytest.mark.parametrize(("size", "mu"), [(256, 0.5), (1024, 1.15), (512, 0.5 + 0.65 * 768 / 3840)])
def test_a_shift_that_the_images_size_decides(size, mu):
    """Linear in the number of tokens, from 256 (0.5) to 4,096 (1.15): the published ends."""
    for kind, shift in (("exponential", math.exp(mu)), ("linear", mu)):
        scheduler = from_fields(DYNAMIC | {"time_shift_type": kind}, image_size=size)
        times = np.linspace(1, 1 / 1000, 9)
        times = shift * times / (1 + (shift - 1) * times)
        np.testing.assert_allclose(scheduler.levels(9)[1:], 2 * np.log((1 - times[1:]) / times[1:]), rtol=1e-9)
        assert scheduler.levels(9)[0] == -math.inf
    for wrong, says in ((None, "give --image_size"), (250, "multiple of 16")):
        with pytest.raises(ValueError, match=says):
            from_fields(DYNAMIC, image_size=wrong)


def test_a_pipe_is_no_scheduler_file(tmp_path):
    os.mkfifo(tmp_path / "scheduler_config.json")
    with pytest.raises(ValueError, match="not a regular file"):
        read(str(tmp_path / "scheduler_config.json"))


def test_levels_that_a_written_file_does_not_give_back_are_told(tmp_path):
    told = {}
    for n in (7, 10):
        said = []
        run_write(str(tmp_path / "f.json"), "discrete(linear, num_steps=150)", "eps", n=n, say=said.append)
        told[n] = [line for line in said if "cannot take" in line or "visits other levels" in line]
    assert not told[10] and "cannot take 7 steps" in told[7][0]  # T / N is no whole number: it lists eight
    said = []
    run_write(str(tmp_path / "f.json"), "discrete(linear)", "eps", spacing="linspace", n=1, say=said.append)
    assert any("1 of 1 differ" in line for line in said)  # there one level is the cleanest, here the noisiest
    said = []
    run_write(
        str(tmp_path / "f.json"), "discrete(linear, num_steps=150)", "eps", say=said.append
    )  # no number of steps: the usual
    (line,) = (line for line in said if "visits other levels" in line)
    assert "in 7 steps, as it rounds timesteps (1, 2, 3" in line


def test_solvers_of_known_steps():
    assert from_fields(SOLVER).method == "dpmpp_2m" and from_fields(SOLVER | {"solver_order": 1}).method == "ddim"
    assert from_fields(SOLVER | {"solver_order": 1, "solver_type": "heun"}).method == "ddim"
    edm = {"_class_name": "EDMDPMSolverMultistepScheduler"}
    assert from_fields(edm).method == "dpmpp_2m" and from_fields(edm | {"solver_order": 1}).method == "ddim"
    for changes in ({"solver_type": "heun"}, {"solver_order": 3}, {"algorithm_type": "sde-dpmsolver++"}):
        assert from_fields(edm | changes).method is None


def test_edms_network_predicts_v_for_data_of_std_1():
    """x_hat = c_skip y + c_out F(c_in y), with its scalings at sigma_data = 1, is alpha z - sigma F, as v's."""
    named = {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", "sigma_data": 1.0}
    assert from_fields(named).prediction == "v" and from_fields(named).told_sigma
    for other in ({"sigma_data": 0.5}, {"prediction_type": "epsilon"}):
        assert from_fields(named | other).prediction is None
    s, z, f = np.geomspace(0.01, 80, 9), 0.3, -0.7
    log_snr, c_in = -2 * np.log(s), 1 / np.sqrt(s**2 + 1)
    x_hat = z / c_in / (s**2 + 1) - s / np.sqrt(s**2 + 1) * f
    np.testing.assert_allclose(x_hat, diffusion.alpha(log_snr) * z - diffusion.sigma(log_snr) * f, rtol=1e-5, atol=1e-6)


def test_a_network_told_sigmas_has_the_levels_that_rule_as_its_schedule():
    """Karras' or exponential ones between given ends; without both, the table's."""
    told = PUBLISHED["Stable Video Diffusion"]
    assert from_fields(told).told_sigma and not from_fields(told | {"timestep_type": "discrete"}).told_sigma
    exponential = from_fields(told | {"use_karras_sigmas": False, "use_exponential_sigmas": True})
    assert exponential.schedule(1.0) == pytest.approx(-2 * math.log(700)) and exponential.schedule(0.0) > 12
    assert str(from_fields(told | {"sigma_min": None}).schedule) == LATENT_SPEC
    np.testing.assert_array_equal(from_fields(told).levels(9), from_fields(told | {"timestep_type": "discrete"}).levels(9))


def test_a_consistency_models_levels_are_of_a_table_of_karras():
    """Of 40 sigmas, every (40 // N)th from the noisiest."""
    table = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 40) ** 7
    scheduler = from_fields({"_class_name": "CMStochasticIterativeScheduler"})
    for n in (1, 2, 7, 40):
        np.testing.assert_allclose(np.exp(-scheduler.levels(n) / 2), table[:: 40 // n][:n], rtol=1e-9)
    with pytest.raises(ValueError, match="choose another number"):
        scheduler.levels(41)


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "is not JSON"),
        ("[1]", "JSON object"),
        ("{}", "JSON object"),
        ("[" * 100_000, "is not JSON"),
        ("\x00", "is not JSON"),
        ('{"_class_name": 3}', "_class_name=3"),
        ('{"_class_name": "KarrasVeScheduler"}', "DDIM, DDIMParallel, DDPM"),
        (DDIM | {"beta_start": "low"}, 'beta_start="low" must be a number'),
        (DDIM | {"beta_end": True}, "beta_end=true"),
        (DDIM | {"beta_end": math.inf}, "finite"),
        (DDIM | {"beta_end": 2}, "betas lie in"),
        (DDIM | {"beta_end": 10**400}, "finite"),
        (DDIM | {"num_train_timesteps": 10**12}, "2**31"),
        (DDIM | {"num_train_timesteps": 1}, "number from 2 up"),
        (DDIM | {"num_train_timesteps": 50.5}, "a whole number"),
        (DDIM | {"num_train_timesteps": -3}, "whole number"),
        (DDIM | {"beta_schedule": "cosine"}, "known: linear, scaled_linear, squaredcos_cap_v2"),
        (DDIM | {"prediction_type": "flow_prediction"}, "known: epsilon, v_prediction, sample"),
        (DDIM | {"timestep_spacing": "even"}, "known: trailing, leading, linspace"),
        (DDIM | {"timestep_spacing": None}, "a string"),
        (DDIM | {"trained_betas": [0.1, 0.2]}, "2 betas, but num_train_timesteps=1000"),
        (DDIM | {"trained_betas": "many"}, "list of betas"),
        (DDIM | {"trained_betas": [[0.1]], "num_train_timesteps": 1}, "list of"),
        (DDIM | {"trained_betas": [0.1, math.nan], "num_train_timesteps": 2}, "list of betas"),
        (DDIM | {"trained_betas": [0.1, -0.1], "num_train_timesteps": 2}, "betas lie in"),
        (EULER | {"use_karras_sigmas": True, "sigma_max": "big"}, "sigma_max"),
        (EULER | {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "both true"),
        (SOLVER | {"use_flow_sigmas": True}, "use_flow_sigmas"),
        (FLOW | {"use_dynamic_shifting": True}, "use_dynamic_shifting=true"),
        (EULER | {"interpolation_type": "cubic"}, 'interpolation_type="cubic" is not known here; known: linear, log_linear'),
        (DDIM | {"steps_offset": -5}, "steps_offset=-5 must be from 0 to 999"),
        (DDIM | {"steps_offset": 1000}, "from 0 to 999"),
        (EULER | {"steps_offset": -1, "timestep_spacing": "leading", "num_train_timesteps": 50}, "from 0 to 49"),
        (json.dumps(DDIM)[:-1] + ', "_class_name": "DDPMScheduler"}', '"_class_name" occurs more than once'),
        (json.dumps(DDIM)[:-1] + ', "_note": {"a": 1, "a": 1}}', '"a" occurs more than once'),
        (FLOW | {"shift": -1}, "shift=-1 must be above 0"),
        (FLOW | {"num_train_timesteps": 0}, "num_train_timesteps=0"),
    ],
)
def test_garbage_is_refused_in_one_line(tmp_path, content, says):
    path = tmp_path / "scheduler_config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError) as error:
        read(path)
    assert says in str(error.value) and "\n" not in str(error.value) and str(path) in str(error.value)
    assert len(str(error.value)) < 800


@pytest.mark.parametrize(
    "fields, n, says",
    [
        (DDIM, 1001, "does not visit 1001"),
        (DDIM | {"steps_offset": 1}, 1000, "does not visit 1000"),
        (DDIM | {"timestep_spacing": "trailing"}, 61, "does not visit 61"),  # its arithmetic gives 62, the last of them -1
        (DDIM | {"steps_offset": 999}, 2, "does not visit 2"),
        (SOLVER, 1000, "does not visit"),
        (DDIM, 0, "from 1 to 100000"),
        (EULER, 10**6, "from 1 to 100000"),
        (EULER | {"use_karras_sigmas": True, "sigma_max": 0.001}, 10, "increasing levels"),
    ],
)
def test_numbers_of_steps_that_the_library_does_not_visit(fields, n, says):
    with pytest.raises(ValueError) as error:
        from_fields(fields).levels(n)
    assert says in str(error.value) and "\n" not in str(error.value)


# -- writing

ROUND_TRIPS = [
    ("discrete(linear)", "eps", "trailing", "ddim", "linear"),
    (LATENT_SPEC, "x", "leading", "euler", "scaled_linear"),
    ("discrete(scaled_linear, zero_terminal=True)", "v", "trailing", "ddim", "scaled_linear"),
    ("discrete(cosine, num_steps=400)", "v", "linspace", "ancestral(variance=1)", "squaredcos_cap_v2"),
    ("discrete(cosine, zero_terminal=True)", "v", "trailing", "dpmpp_2m", "squaredcos_cap_v2"),
    ("discrete(linear, 50, beta_min=0.001)", "eps", "leading", "heun", "linear"),
    ("betas([0.1, 0.2, 0.3, 0.4])", "x", "trailing", "ancestral", "linear"),
    ("betas([0.1, 0.2, 0.3, 0.5])", "x", "trailing", "ancestral", None),
    ("betas([0.1, 0.2, 0.3, 0.5], zero_terminal=True)", "x", "trailing", "euler", None),
    ("discrete(quadratic, num_steps=100)", "eps", "trailing", "dpmpp_2m", None),
    ("discrete(cosine, s=0.02)", "v", "trailing", "ddim", None),
    ("sigmas([80, 9, 2, 0.5, 0.1])", "v", "trailing", "ddim", None),
    ("discrete(flow, num_steps=100)", "v", "trailing", "ddim", None),
]


@pytest.mark.parametrize("schedule, prediction, spacing, method, named", ROUND_TRIPS, ids=[case[0] for case in ROUND_TRIPS])
def test_what_is_written_is_read_back(schedule, prediction, spacing, method, named):
    made = schedules.make(schedule)
    fields, _ = to_fields(schedule, prediction, spacing, method)
    settings = from_fields(json.loads(json.dumps(fields, allow_nan=False)))
    assert (settings.prediction, settings.spacing) == (prediction, spacing)
    assert settings.method == ("ddim" if method == "euler" else method)
    assert fields["_class_name"] == WRITTEN[method.partition("(")[0]]
    assert ("trained_betas" in fields) == (named is None) and (named is None or fields["beta_schedule"] == named)
    back = settings.schedule.table
    np.testing.assert_allclose(back.alpha_bar, made.table.alpha_bar, rtol=1e-9, atol=1e-18)
    np.testing.assert_allclose(back.log_snr, made.table.log_snr, rtol=1e-9, atol=1e-9)
    assert (back.alpha_bar[-1] == 0) == fields.get("rescale_betas_zero_snr", False) == (made.table.alpha_bar[-1] == 0)


def test_published_ends_are_written_as_published():
    fields, notes = to_fields(LATENT_SPEC, "eps", "leading")
    assert fields | LATENT == fields and fields["_class_name"] == "DDIMScheduler" and fields["clip_sample"] is False
    assert any("float32" in note for note in notes)


def test_a_continuous_schedule_is_written_as_a_thousand_of_its_levels():
    for schedule in ("cosine", "karras", "shifted(linear, by=-1)"):
        fields, notes = to_fields(schedule, "v")
        back = from_fields(fields).schedule.table
        with jax.enable_x64(True):
            expected = np.asarray(schedules.make(schedule)(np.arange(1, 1001) / 1000))
        np.testing.assert_allclose(back.log_snr, expected, rtol=1e-8, atol=1e-8)
        assert back.num_steps == 1000 and any("is continuous" in note for note in notes)


def test_what_float32_loses_is_told():
    """The first beta of DDPM, 1e-4, is kept to half of 2^-24 (the spacing of floats below 1); betas below that are refused."""
    gap, step = schedulers.lost_to_float32(table(DDIM), table(DDIM).betas)
    kept = float(np.float32(1) - np.float32(1e-4))
    assert step == 1 and gap == pytest.approx(abs(math.log(kept / (1 - kept)) - math.log(0.9999 / 1e-4)), rel=1e-6) and gap < 3e-4
    with pytest.raises(ValueError, match="timestep 1 of 4 has beta 1e-09, which the library"):
        to_fields("betas([1e-9, 0.1, 0.2, 0.4])", "v")


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("cosin", "v"), "did you mean 'cosine'"),
        (("linear", "noise"), "choose one of eps, x, v"),
        (("cosine", "eps"), "predict v or x"),
        (("linear", "v", "even"), "known: trailing, leading, linspace"),
        (("linear", "v", "trailing", "unipc"), "unknown sampling method"),
        (("discrete(linear)", "v", "linspace", "euler"), "choose trailing or leading"),
        (("discrete(linear)", "v", "leading", "dpmpp_2m"), "choose trailing"),
        (("cosine", "v", "trailing", "heun"), "infinite"),
        (("linear", "v", "trailing", "ddim(eta=1)"), "cannot be written"),
        (("linear", "v", "trailing", "heun(churn=4)"), "cannot be written"),
        (("linear", "v", "trailing", "ancestral(variance=0.5)"), "ancestral(variance=1)"),
        (("betas([1e-9, 0.1])", "v"), "float32"),
    ],
)
def test_what_cannot_be_written(arguments, says):
    with pytest.raises(ValueError) as error:
        to_fields(*arguments)
    assert says in str(error.value) and "\n" not in str(error.value)


# -- the command


@pytest.fixture
def main(main, monkeypatch, tmp_path):
    """`main("--read=..")` -> (exit code, stdout, stderr) of `noisesched interchange`, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(main, "interchange")


def test_reading_tells_how_to_train_and_sample(main, tmp_path):
    (tmp_path / "sd.json").write_text(json.dumps(PUBLISHED["Stable Diffusion 2.1"]))
    code, out, err = main("--read=sd.json", "--steps=50", "--sigmas=levels.txt", "--betas=betas.txt")
    assert code == 0 and not err
    for words in (
        "alpha_bar 0.0046601, sigma_ve 14.6146",
        "prediction  v",
        "timesteps 981, 961, 941 .. 1 there",
        "of no effect here: _diffusers_version, skip_prk_steps",
        "config.model.prediction = 'v'",
        """--schedule="sigmas('levels.txt')" --steps=50 --method="ddim\"""",
    ):
        assert words in out
    settings = read("sd.json")
    levels = schedules.levels("sigmas('levels.txt')", 50)  # the printed command's
    np.testing.assert_allclose(levels, settings.levels(50), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(schedules.make("betas('betas.txt')").table.log_snr, table(PUBLISHED["DDPM"] | LATENT).log_snr)
    (tmp_path / "ddpm.json").write_text(json.dumps(PUBLISHED["DDPM"]))
    assert f'--schedule="{LINEAR_SPEC}" --spacing=leading --steps=N' in main("--read=ddpm.json")[1]


def test_writing_from_a_spec(main, tmp_path):
    code, out, err = main(
        "--schedule=discrete(scaled_linear, zero_terminal=True)",
        "--prediction=v",
        "--write=w.json",
        "--steps=4",
        "--sigmas=s.txt",
    )
    assert code == 0 and not err and "the first sigma of s.txt is inf" in out and "DDIMScheduler" in out
    assert str(read("w.json").schedule) == LATENT_SPEC[:-1] + ", zero_terminal=True)"
    *sigmas, end = [float(line) for line in (tmp_path / "s.txt").read_text().split()]
    assert sigmas[0] == math.inf and end == 0
    np.testing.assert_allclose(sigmas, np.exp(-read("w.json").levels(4) / 2), rtol=1e-5)
    code, out, err = main("--read=w.json")
    assert code == 0 and "alpha_bar 0, sigma_ve inf, log-SNR -inf" in out


def test_a_network_told_sigmas_is_read_by_the_levels_that_rule(main, tmp_path):
    (tmp_path / "video.json").write_text(json.dumps(PUBLISHED["Stable Video Diffusion"]))
    code, out, err = main("--read=video.json", "--steps=25")
    assert code == 0 and "  schedule    karras(sigma_min=0.002, sigma_max=700.0, rho=7.0)\n" in out
    assert "sigma_ve 700, log-SNR -13.1" in out and "25 levels  log-SNR -13.1 to 12.43" in out and "conditioning" not in out


def test_a_single_level_can_be_sampled_from(main, tmp_path):
    (tmp_path / "euler.json").write_text(json.dumps(EULER))
    code, out, err = main("--read=euler.json", "--steps=1", "--sigmas=one.txt")
    inference = out.partition('--schedule="')[2].partition('"')[0]
    assert code == 0 and schedules.levels(inference, 1) == pytest.approx(from_fields(EULER).levels(1))
    assert float((tmp_path / "one.txt").read_text().split()[0]) == pytest.approx(math.exp(-from_fields(EULER).levels(1)[0] / 2))


def test_what_was_there_is_told_and_its_own_input_kept(main, tmp_path):
    content = json.dumps(EULER | {"_odd\nname\ud800": 1})
    (tmp_path / "e.json").write_text(content)
    (tmp_path / "link.json").symlink_to("e.json")
    for path in ("e.json", "./e.json", "link.json"):
        code, out, err = main("--read=e.json", "--steps=3", f"--sigmas={path}")
        assert code == 2 and "--read and --sigmas are the same file" in err
    assert main("--read=e.json", "--steps=3", "--sigmas=x", "--betas=x")[0] == 2 and not (tmp_path / "x").exists()
    os.mkfifo(tmp_path / "pipe")
    for arguments in (("--read=e.json", "--betas=pipe"), ("--write=pipe", "--schedule=discrete(linear)", "--prediction=v")):
        code, out, err = main(*arguments)
        assert code == 2 and "pipe is not a regular file" in err
    assert (tmp_path / "e.json").read_text() == content
    (tmp_path / "x").write_text("mine")
    assert main("--write=new", "--schedule=discrete(linear)", "--prediction=v", "--betas=x")[0] == 0
    (tmp_path / "x").write_text("mine")
    for told in (", in place of other content", ""):
        code, out, err = main("--read=e.json", "--betas=x")
        assert code == 0 and out.startswith(f"x: the betas of the table{told}\n")
        assert 'of no effect here: "_odd\\nname\\ud800"\n' in out


def test_writing_a_run(main, small, tmp_path):
    """A network told timesteps has those of its table, whatever it was drawn from."""
    from noisesched.runs import config
    from noisesched.runs.workdir import Workdir

    changes = {"conditioning.kind": "timestep", "conditioning.table": "discrete(cosine, num_steps=100)", "model.prediction": "x"}
    Workdir(tmp_path / "run").write_config(config.to_dict(small(changes)))
    code, out, err = main("--workdir=run", "--method=dpmpp_2m", "--write=w.json")
    assert code == 0 and not err and "is told" not in out
    settings = read("w.json")
    assert (str(settings.schedule), settings.prediction) == (
        "discrete(cosine, num_steps=100)",
        "x",
    ) and settings.method == "dpmpp_2m"
    for schedule in ("discrete(linear, num_steps=100)", "discrete(cosine)", "cosine"):  # another table, or of another length
        out = main("--workdir=run", f"--schedule={schedule}", "--write=w.json")[1]
        assert "this network is told the timesteps of discrete(cosine, num_steps=100), and with this file the library" in out
    assert "this network" not in main("--workdir=run", "--schedule=discrete(cosine, num_steps=100)", "--write=w.json")[1]

    Workdir(tmp_path / "other").write_config(config.to_dict(small({"conditioning.kind": "sigma"})))
    assert "network of this run is told sigma" in main("--workdir=other", "--write=w.json")[1]


@pytest.mark.parametrize(
    "arguments, says",
    [
        ((), "--read"),
        (("--read=none.json",), "none.json: No such file"),
        (("--read=a", "--write=b"), "give either --read=FILE or --write=FILE"),
        (("--read=a", "--schedule=linear"), "--schedule is for --write"),
        (("--read=a", "--workdir=w"), "a: no such folder"),
        (("--write=b",), "--write needs --schedule"),
        (("--write=b", "--schedule=linear"), "--write needs --prediction"),
        (("--write=b", "--schedule=linear", "--prediction=v", "--sigmas=s"), "give --steps=N"),
        (("--write=b", "--schedule=cosine", "--prediction=eps"), "predict v or x"),
        (("--write=b", "--workdir=w"), "holds no run"),
        (("--write=none/b", "--schedule=linear", "--prediction=v"), "none/b: No such file"),
        (("--write=b", "--schedule=discrete(linear)", "--prediction=v", "--steps=2000", "--sigmas=s"), "cannot select 2000"),
    ],
)
def test_faults_of_the_command_in_one_line(main, tmp_path, arguments, says):
    code, out, err = main(*arguments)
    assert code == 2 and err.startswith("noisesched: error: ") and err.count("\n") == 1 and says in err
    assert list(tmp_path.iterdir()) == []
