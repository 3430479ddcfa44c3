"""scheduler_config.json against PyTorch's diffusers itself, where it is installed (checked with 0.42 and torch 2.15): the same
tables, the same levels, and the same images from the same noise."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_interchange import ANCESTRAL, DDIM, DDPM, EULER, FLOW, HEUN, LATENT, PUBLISHED, ROUND_TRIPS, SOLVER

from noisesched import diffusion, samplers, schedules
from noisesched.interchange import schedulers
from noisesched.interchange.scheduler_config import from_fields, to_fields

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

EDM = {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_max": 20.0}
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
FILES = [
    *({"_class_name": name} for name in schedulers.CLASSES if not name.startswith("Flax")),  # which the library no longer has
    *(fields for name, fields in PUBLISHED.items() if name != "Stable Diffusion 1.5"),
    *(
        fields | LATENT | {"timestep_spacing": spacing, "steps_offset": 1}
        for fields in (DDIM, EULER, HEUN, SOLVER)
        for spacing in schedules.SPACINGS
    ),
    *(fields | LATENT | ZERO for fields in (DDIM, DDPM, EULER, ANCESTRAL, SOLVER)),
    *(
        fields | LATENT | {"use_karras_sigmas": True, "timestep_spacing": spacing}
        for fields in (EULER, HEUN, SOLVER)
        for spacing in ("leading", "trailing")
    ),
    DDIM | {"beta_schedule": "squaredcos_cap_v2"},
    *(
        {"_class_name": f"{name}Scheduler"} | changes
        for name in ("DEISMultistep", "UniPCMultistep", "LMSDiscrete", "SASolver")
        for changes in (LATENT, {"use_karras_sigmas": True}, {"timestep_spacing": "trailing"})
    ),
    *({"_class_name": f"{name}Scheduler", "timestep_spacing": "leading"} for name in ("PNDM", "KDPM2Discrete")),
    *(
        {"_class_name": f"{name}Scheduler", "sigma_min": 0.05} | {f"use_{kind}_sigmas": True}
        for name in ("LMSDiscrete", "KDPM2Discrete", "DPMSolverMultistep")
        for kind in ("karras", "exponential", "beta")
    ),
    *(FLOW | {"shift": 3.0, f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta")),
    FLOW | {"shift": 3.0, "shift_terminal": 0.1, "_class_name": "FlowMatchLCMScheduler"},
    *(
        {"_class_name": f"{name}MultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"} | changes
        for name, changes in (("DPMSolver", {"flow_shift": 3.0}), ("UniPC", {"shift_terminal": 0.1}))
    ),
    SOLVER | {"use_lu_lambdas": True, "sigma_min": 0.05},
    *(SOLVER | {"lambda_min_clipped": -3.0, "timestep_spacing": spacing} for spacing in ("linspace", "leading")),
    EULER | {"interpolation_type": "log_linear"},
    EULER | {"use_karras_sigmas": True, "steps_offset": 5000, "sigma_min": 0.01, "timestep_spacing": "leading"},
    *(DDPM | {"beta_schedule": name} for name in ("sigmoid", "laplace")),
    HEUN | {"beta_schedule": "exp"},
    EULER | {"use_exponential_sigmas": True},
    DDIM | {"trained_betas": [0.1, 0.2, 0.3, 0.5] * 5, "num_train_timesteps": 20, "timestep_spacing": "trailing"},
]


FLOWS = tuple(getattr(diffusers, f"FlowMatch{name}Scheduler") for name in ("EulerDiscrete", "HeunDiscrete", "LCM"))


def named(fields):
    return "-".join(str(value) for value in fields.values())[:80]


def library(fields):
    return getattr(diffusers, fields["_class_name"]).from_config(dict(fields))


def library_sigmas(scheduler, n):
    """sigma_ve of the n levels that the library's own scheduler visits, noisiest first; some are listed twice."""
    scheduler.set_timesteps(n)
    with np.errstate(divide="ignore"):
        if not hasattr(scheduler, "sigmas"):
            steps = (
                scheduler._timesteps[::-1].astype(int) if isinstance(scheduler, diffusers.PNDMScheduler) else scheduler.timesteps
            )
            alpha_bar = np.unique(scheduler.alphas_cumprod.numpy().astype(np.float64)[np.asarray(steps)])
            return np.sqrt((1 - alpha_bar) / alpha_bar)
        sigmas = np.unique(scheduler.sigmas.numpy().astype(np.float64)[:-1])[::-1][:n]
        sigmas = sigmas[sigmas > 0]
        return sigmas / (1 - sigmas) if isinstance(scheduler, FLOWS) or scheduler.config.get("use_flow_sigmas") else sigmas


@pytest.mark.parametrize("fields", FILES, ids=named)
def test_the_same_table_and_the_same_levels(fields):
    if fields["_class_name"] == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    scheduler, settings = library(fields), from_fields(fields)
    if hasattr(scheduler, "alphas_cumprod") and settings.schedule.table:
        count = settings.num_steps - settings.grid.stand_in
        expected = settings.schedule.table.alpha_bar[:count]
        np.testing.assert_allclose(scheduler.alphas_cumprod.numpy()[:count], expected, rtol=5e-5)
    compared = 0
    for n in (5, 7, 10, 20) if settings.num_steps == 20 else (1, 2, 7, 20, 48, 50, 61, 103, 999):
        try:
            ours = np.exp(-settings.levels(n) / 2)
        except ValueError:
            assert n in (1, 61, 103, 999) or n < settings.grid.least or n > settings.num_steps  # where it does not visit n
            continue
        theirs, compared = library_sigmas(scheduler, n), compared + 1
        if "flow" in settings.grid.timesteps:  # times near 1 in float32
            ours, theirs = 1 / (1 + 1 / ours), 1 / (1 + 1 / theirs)
        np.testing.assert_allclose(ours, theirs, rtol=4e-4, err_msg=str(n))  # beta_1 in float32
    assert compared >= 4


@pytest.mark.parametrize(
    "fields",
    [
        DDIM | LATENT,
        EULER | LATENT,
        HEUN,
        SOLVER,
        SOLVER | {"solver_order": 1},
        EULER | {"use_karras_sigmas": True},
        DDIM | LATENT | ZERO,
        SOLVER | LATENT | ZERO,
        EULER | LATENT | {"prediction_type": "v_prediction"},
        *(EDM | {"_class_name": f"EDM{name}Scheduler"} for name in ("Euler", "DPMSolverMultistep")),
        EDM | {"_class_name": "EDMDPMSolverMultistepScheduler", "solver_order": 1, "solver_type": "heun"},
    ],
    ids=named,
)
def test_the_same_image_from_the_same_noise(fields):
    """All the steps, for a network that is right about normal data, and predicts as the file says."""
    fields = fields | ({"clip_sample": False} if "clip_sample" in schedulers.FIELDS[fields["_class_name"]] else {})
    scheduler, settings, noise = library(fields), from_fields(fields), np.linspace(-2, 2, 7, dtype=np.float32)
    levels = jnp.asarray(settings.levels(20), jnp.float32)
    ours = samplers.sample(estimate, jax.random.key(0), jnp.asarray(noise), levels, settings.method)
    scheduler.set_timesteps(20)
    exploding = fields["_class_name"].startswith(("EulerDiscrete", "Heun", "EDM"))  # then it is z / alpha that moves
    sample = torch.tensor(noise / float(diffusion.alpha(levels[0])) if exploding else noise)[:, None, None, None]
    for index, step in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "sigmas"):
            log_snr = jnp.full(7, -2 * math.log(scheduler.sigmas[index]))
        else:
            log_snr = diffusion.log_snr_from_alpha_bar(jnp.full(7, float(scheduler.alphas_cumprod[step])))
        z = jnp.asarray((scheduler.scale_model_input(sample, step) if exploding else sample).numpy().reshape(7))
        x = estimate(z, log_snr)
        output = np.array(diffusion.target(settings.prediction, x, diffusion.eps_from(x, z, log_snr), log_snr))
        sample = scheduler.step(torch.tensor(output)[:, None, None, None], step, sample).prev_sample
    assert np.abs(ours).max() > 0.5
    np.testing.assert_allclose(sample.numpy().reshape(7), ours, atol=1e-3)


def estimate(z, log_snr):
    """The posterior mean of x given z, for x normal with standard deviation 0.5."""
    alpha, sigma = diffusion.alpha(log_snr), diffusion.sigma(log_snr)
    return alpha / 4 / (alpha**2 / 4 + sigma**2) * z


@pytest.mark.parametrize("case", ROUND_TRIPS, ids=[case[0] for case in ROUND_TRIPS])
def test_the_library_makes_our_table_of_what_is_written(case):
    fields, notes = to_fields(*case[:4])
    made = schedules.make(case[0]).table
    scheduler = library(json.loads(json.dumps(fields)))
    alpha_bar = scheduler.alphas_cumprod.numpy().astype(np.float64)
    finite = made.alpha_bar > 0
    gap = np.abs(np.log(alpha_bar[finite]) - np.log1p(-alpha_bar[finite]) - made.log_snr[finite]).max()
    told = next(note for note in notes if "float32" in note)
    assert gap < 5e-3 and gap / 5 < float(told.split("up to about ")[1].split(",")[0]) < 5 * gap
    if from_fields(fields).grid.stand_in:
        assert alpha_bar[-1] == pytest.approx(schedulers.STAND_IN)
    else:
        assert alpha_bar[-1] == pytest.approx(made.alpha_bar[-1], rel=3e-5)  # exactly 0 where ours is
