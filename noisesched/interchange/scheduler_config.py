"""Schedules and sampler settings to and from `scheduler_config.json`, the file in which PyTorch's diffusers library keeps them.

    scheduler = read("scheduler_config.json")      # .schedule, .prediction, .method, .spacing, .notes
    scheduler.levels(50)                           # the log-SNRs that the library visits in 50 steps, noisiest first
    fields, notes = to_fields("discrete(linear)", "eps")

The library's `leading` equals ours if steps_offset is 0. Stable Diffusion's offset of 1 makes every level one step noisier, which
no spacing here does. Such levels, like the sigmas of Karras et al. and the fractional timesteps of Euler's linspace, are still
available exactly: `levels` returns them, and a list of sigmas is a schedule here, `sigmas('FILE')`.

Every field of a file is accounted for. A field that no known scheduler has is refused, since its effect is unknown; a field that
was not needed is listed in `no_effect`; what the library does and the method here does not is listed in `notes`.
"""

import collections
import dataclasses
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np

from noisesched import diffusion, samplers, schedules, spec, tables
from noisesched.interchange import schedulers
from noisesched.runs import subject

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
WRITTEN = {
    "ddim": "DDIMScheduler",
    "ancestral": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",  # ddim by the name that asks for this class
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
FLOW = "its networks predict the velocity eps - x of y = (1 - s) x + s eps, not eps, v or x: x_hat = y - s velocity"
EULER = "its steps, Euler's for the probability-flow ODE, are ddim's here"
USUAL = (*range(1, 11), 12, 15, 20, 25, 30, 40, 50, 100)  # numbers of steps to try where none is given
SAME_SPACING = {"whole": schedules.SPACINGS, "fractional": ("trailing", "leading"), "of one more": ("trailing",)}  # no others


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    """The content of a scheduler_config.json, in this package's terms."""

    class_name: str
    schedule: schedules.Schedule  # of training: a table, or a flow; for a network told sigmas, the levels between their ends
    num_steps: int  # timesteps in training
    prediction: str | None  # "eps" | "v" | "x", or None if no network here predicts the same
    method: str | None  # the sampler that takes the same steps, or None
    spacing: str | None  # the spacing that visits the same steps (up to the library's rounding), or None: see `levels`
    grid: schedulers.Grid  # how the library places its levels
    told_sigma: bool  # whether the network is told log(sigma_ve) / 4, as EDM's are, and not a timestep of the table
    notes: tuple[str, ...]  # what the library does and `method` does not, and other remarks
    no_effect: tuple[str, ...]  # fields of the file without effect on any of this
    fields: dict  # the file's content

    def levels(self, n):
        """The log-SNRs that the library visits in n steps: float64 [n], increasing (noisiest first; the first may be -inf).

        Raises ValueError if the library does not visit n increasing levels.
        """
        if not 1 <= n <= 10**5:
            raise ValueError(f"the number of levels must be a whole number from 1 to 100000; got {n}")
        table = self.schedule.table
        sigmas = self.grid.sigma_ve(table.log_snr if table else np.zeros(self.num_steps), n)
        if not (sigmas[1:] < sigmas[:-1]).all() or not sigmas[-1] > 0:
            raise ValueError(f"{self.class_name} does not visit {n} increasing levels: choose another number of steps")
        return -2 * np.log(sigmas)


# -- reading


def read(path, image_size=None):
    """The `SchedulerConfig` of a scheduler_config.json; `image_size`: pixels a side, for a flow that is shifted by it.

    Raises ValueError, in one line, for another kind of file, or one whose schedule has options not known here; OSError for one
    that cannot be opened.
    """
    twice = []

    def object_of(pairs):
        keys = [key for key, _ in pairs]
        twice.extend(key for key, count in collections.Counter(keys).items() if count > 1)
        return dict(pairs)

    try:
        fields = json.loads(spec.read_file(path, spec.FILE_BYTES), object_pairs_hook=object_of)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if twice:  # JSON does not say which one counts
        raise ValueError(f"{path}: the key {schedulers.quoted(twice[0])} occurs more than once: keep the one that is meant")
    try:
        return from_fields(fields, image_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def from_fields(fields, image_size=None):
    """The `SchedulerConfig` of the fields of such a file. ValueError as for `read`."""
    if not isinstance(fields, dict) or "_class_name" not in fields:
        raise ValueError("not a scheduler_config.json, which is a JSON object with a field _class_name")
    name = fields["_class_name"]
    if not isinstance(name, str) or name not in schedulers.FIELDS:
        known = ", ".join(name.removesuffix("Scheduler") for name in schedulers.FIELDS)
        raise ValueError(
            f"_class_name={schedulers.quoted(name)}: this scheduler is not known here; known, each followed by Scheduler: {known}"
        )
    unknown = [
        f"{schedulers.readable(field)}={schedulers.quoted(value)}"
        for field, value in fields.items()
        if field not in schedulers.KNOWN and not field.startswith("_")
    ]
    if unknown:
        raise ValueError(
            f"unknown fields: {spec.shortened(', '.join(unknown), 300)}; their effect is not known here: "
            "remove those that you know to have none"
        )
    given, notes = schedulers.Fields(name, fields), []
    if given.known.grid.timesteps == "flow" or given["use_flow_sigmas"]:
        parts = _flow(given, notes, image_size)
    elif given.known.grid.timesteps in ("edm", "consistency"):
        parts = _edm(given, notes)
    else:
        parts = _discrete(given, notes)
    used = {"_class_name", "_use_default_values"} | (given.asked & given.given.keys())
    no_effect = tuple(schedulers.readable(field) for field in fields if field not in used)
    return SchedulerConfig(class_name=name, **parts, notes=tuple(notes), no_effect=no_effect, fields=fields)


def _discrete(fields, notes):
    """The entries of `SchedulerConfig` for a table of betas."""
    schedule = _schedule(fields)
    table, zero = schedule.table, schedule.table.alpha_bar[-1] == 0
    prediction = PREDICTIONS[fields.choice("prediction_type", PREDICTIONS) or "epsilon"]
    told = fields["timestep_type"] == "continuous" and prediction == "v"
    if zero and prediction == "eps":
        notes.append("prediction eps: at zero SNR no image follows from the noise; use v or x with such a schedule")
    method, grid = _method(fields, notes), _grid(fields, table.log_snr)
    if told:
        notes.append("timestep_type continuous: there the network is told log(sigma_ve) / 4, not a timestep")
        if grid.sigmas in ("karras", "exponential") and grid.sigma_min and grid.sigma_max:
            schedule = _between(grid)
    if grid.sigmas == "log_linear" and not told:
        notes.append("interpolation_type log_linear: the network is told the spacing's timesteps, not those of these sigmas")
    if fields["skip_prk_steps"]:
        notes.append(f"{fields.name} with skip_prk_steps calls the network at its second level twice")
    elif fields["skip_prk_steps"] is False:
        notes.append(
            f"{fields.name} without skip_prk_steps: its first three steps, Runge-Kutta's, call the network twice at the next "
            "level, and twice T // N // 2 timesteps above it"
        )
    if zero and grid.stand_in:
        notes.append(
            f"zero terminal SNR: log-SNR -inf here, exactly; {fields.name} puts alpha_bar 2^-24 in its place, log-SNR "
            f"{math.log(schedulers.STAND_IN / (1 - schedulers.STAND_IN)):.2f}"
        )
    same = grid.sigmas == "table" and not grid.offset and not grid.clipped
    same = same and grid.spacing in SAME_SPACING.get(grid.timesteps, ())
    if not same:
        notes.append(_no_spacing(fields, grid))
    return {
        "schedule": schedule,
        "num_steps": table.num_steps,
        "prediction": prediction,
        "method": method,
        "grid": grid,
        "told_sigma": told,
        "spacing": grid.spacing if same else None,
    }


def _no_spacing(fields, grid):
    return f"no spacing here visits the levels of {fields.name} with {grid}: take them from a file of sigmas"


def _between(grid):
    """The schedule of the sigmas between a grid's ends."""
    low, high = grid.sigma_min, grid.sigma_max
    if grid.sigmas == "karras":
        return schedules.make(f"karras(sigma_min={low!r}, sigma_max={high!r}, rho={grid.rho!r})")
    return schedules.make(f"uniform_log_snr(log_snr_max={-2 * math.log(low)!r}, log_snr_min={-2 * math.log(high)!r})")


def _schedule(fields):
    zero = (("zero_terminal", True),) if fields["rescale_betas_zero_snr"] else ()
    if (scale := fields.number("snr_shift_scale")) is None:
        return _table(fields, zero)
    table = _table(fields, ()).table  # CogVideoX: SNR / scale, before zero terminal SNR
    return _given(tables.from_alpha_bar(table.alpha_bar / (scale + (1 - scale) * table.alpha_bar)).betas, zero)


def _given(betas, zero):
    return schedules.make(str(spec.Call("betas", (tuple(map(float, betas)),), zero)))


def _table(fields, zero):
    num_steps, given = fields["num_train_timesteps"], fields["trained_betas"]
    if given is not None:
        if not isinstance(given, list) or not all(type(beta) in (int, float) and abs(beta) < 2 for beta in given):
            raise ValueError(f"trained_betas={schedulers.quoted(given)} must be a list of betas")
        if len(given) != num_steps:
            raise ValueError(f"trained_betas holds {len(given)} betas, but num_train_timesteps={num_steps}")
        return _given(given, zero)
    name = fields.choice("beta_schedule", fields.known.betas)
    if name == "squaredcos_cap_v2":
        inside, ends = "cosine", ()
    elif name in ("linear", "scaled_linear"):
        inside, ends = name, (("beta_min", fields["beta_start"]), ("beta_max", fields["beta_end"]))
    else:
        ends = (fields["beta_start"], fields["beta_end"]) if name == "sigmoid" else ()
        return _given(schedulers.betas(name, _num_steps(fields), *ends), zero)
    return schedules.make(str(spec.Call("discrete", (spec.Call(inside),), (("num_steps", num_steps), *ends, *zero))))


STEPS = {  # the values of the fields with which a class takes the steps of a sampler here
    "ddim": {"stochastic_sampling": (False,)},
    "ancestral": {"variance_type": ("fixed_small", "fixed_small_log", "fixed_large")},
    "dpmpp_2m": {
        "solver_order": (1, 2),
        "algorithm_type": ("dpmsolver++", "deis"),
        "variance_type": (None,),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
    },
}


def _method(fields, notes):
    """The sampler that takes the steps of this class, or None; differences are added to the notes."""
    name, method = fields.name, fields.known.method
    if fields.known.note:
        notes.append(f"{name}: {fields.known.note}")
    choices = {field: known for field, known in STEPS.get(method, {}).items() if field in fields.defaults}
    if method == "dpmpp_2m" and fields["solver_order"] == 1:  # of which there is one kind
        method, choices = "ddim", {field: known for field, known in choices.items() if field != "solver_type"}
    missing = [field for field, known in choices.items() if fields[field] not in known]
    if method is None or missing:
        asked = "".join(f" with {field}={schedulers.quoted(fields[field])}" for field in missing)
        notes.append(f"no sampler here takes the steps of {name}{asked}; known: {', '.join(samplers.METHODS)}")
        return None
    if fields["variance_type"] == "fixed_large":
        method = "ancestral(variance=1)"
        notes.append(f"fixed_large: {name} adds noise to the final image too, unless its last timestep is 0; none here")
    if method == "ddim" and "Euler" in name:
        notes.append(EULER)
    if "DDIM" in name and fields["timestep_spacing"] in ("trailing", "linspace"):
        notes.append(
            f"{name} steps from timestep t to t - T // N, which is the next one that it visits only if N divides T "
            "and the spacing is trailing; here every step goes to the next level"
        )
    if fields["thresholding"]:
        notes.append(
            f"thresholding: every estimate of the image is cut at its {fields['dynamic_thresholding_ratio']:g} quantile "
            f"there, between 1 and {fields['sample_max_value']:g}, and divided by it; {method} does not"
        )
    elif fields["clip_sample"]:
        limit = fields["clip_sample_range"] or 1.0
        notes.append(f"clip_sample: every estimate of the image is cut at -{limit:g} and {limit:g} there; {method} does not")
    if fields["set_alpha_to_one"] is False or fields["final_sigmas_type"] == "sigma_min" or _sigmas(fields) == "log_linear":
        notes.append("there the last step ends at the first timestep's level, still a little noisy; here in the clean image")
    return method


def _grid(fields, log_snr):
    """How this class places its levels on the table of these log-SNRs."""
    grid, num_steps = fields.known.grid, len(log_snr)
    spacing = fields.choice("timestep_spacing", fields.known.spacings) or grid.spacing
    offset = grid.offset
    if spacing == "leading" and "steps_offset" in fields.defaults:
        offset = fields["steps_offset"]
    grid = dataclasses.replace(
        grid,
        spacing=spacing,
        offset=offset if spacing == "leading" else 0,
        stand_in=bool(fields["rescale_betas_zero_snr"]) and grid.timesteps in ("fractional", "of one more"),
        sigmas=_sigmas(fields),
    )
    if grid.timesteps == "of those distilled":
        grid = dataclasses.replace(grid, distilled=(distilled := fields["original_inference_steps"]))
        if not 1 <= distilled <= num_steps:
            raise ValueError(f"original_inference_steps={distilled} must be from 1 to {num_steps}, the number of timesteps")
    if fields["skip_prk_steps"] is False:
        grid = dataclasses.replace(grid, least=4)
    sigmas = grid.table(log_snr)
    if grid.sigmas == "table":
        if not 0 <= grid.offset < num_steps:
            raise ValueError(f"steps_offset={grid.offset} must be from 0 to {num_steps - 1}, the last timestep")
        limit = fields["lambda_min_clipped"]
        return grid if limit is None else dataclasses.replace(grid, clipped=int((-np.log(sigmas) < limit).sum()))
    ends = {}
    if grid.timesteps == "of one more" or fields["interpolation_type"] == "log_linear":
        ends = {"sigma_min": float(sigmas[0]), "sigma_max": float(sigmas[-1])}
    if grid.sigmas not in fields.known.own_ends:
        ends |= {end: value for end in ("sigma_min", "sigma_max") if (value := fields.number(end))}
    grid = dataclasses.replace(grid, **ends)
    if grid.sigma_min and grid.sigma_max and not grid.sigma_min < grid.sigma_max:
        raise ValueError(f"sigma_min={grid.sigma_min:g} must be below sigma_max={grid.sigma_max:g}")
    return grid


def _sigmas(fields):
    """Which sigmas a file chooses: one of `schedulers.CHOICES`, or "table"."""
    fields.choice("interpolation_type", ("linear", "log_linear"))
    chosen = [kind for kind, (field, value) in schedulers.CHOICES.items() if fields[field] == value]
    if len(several := [kind for kind in chosen if kind in ("karras", "exponential", "beta")]) > 1:
        raise ValueError(f"{' and '.join(schedulers.CHOICES[kind][0] for kind in several)} are both true: choose one")
    return chosen[0] if chosen else "table"


def _num_steps(fields):
    num_steps = fields["num_train_timesteps"]
    if not 2 <= num_steps <= 10**5:
        raise ValueError(f"num_train_timesteps={schedulers.quoted(num_steps)} must be a whole number from 2 to 100000")
    return num_steps


def _edm(fields, notes):
    """The entries of `SchedulerConfig` for EDM's own levels, which have no table."""
    low, high, rho = (fields.number(name) for name in ("sigma_min", "sigma_max", "rho"))
    if not low < high:
        raise ValueError(f"sigma_min={low:g} must be below sigma_max={high:g}")
    sigmas = fields.choice("sigma_schedule", ("karras", "exponential")) or "karras"
    grid = dataclasses.replace(fields.known.grid, sigmas=sigmas, sigma_min=low, sigma_max=high, rho=rho)
    method, data = _method(fields, notes), fields["sigma_data"]
    v = data == 1 and fields.choice("prediction_type", ("epsilon", "v_prediction")) == "v_prediction"
    predicts = "v" if v else "EDM's F, not eps, v or x"
    told = "250 log(sigma_ve)" if grid.timesteps == "consistency" else "log(sigma_ve) / 4"
    notes.append(f"its networks are told {told}, and predict, for data of std {data:g}, {predicts}")
    notes.append(_no_spacing(fields, grid))
    return {
        "schedule": _between(grid),
        "num_steps": _num_steps(fields),
        "prediction": "v" if v else None,
        "method": method,
        "grid": grid,
        "told_sigma": True,
        "spacing": None,
    }


TOKEN = 16  # pixels a side of a flow transformer's token: 8 of the autoencoder, 2 of the patch


def _flow(fields, notes, image_size):
    """The entries of `SchedulerConfig` for rectified flow: a class of flows, or a solver with use_flow_sigmas."""
    solver = fields.known.grid.timesteps != "flow"
    if solver and (prediction := fields["prediction_type"]) != "flow_prediction":
        raise ValueError(f"use_flow_sigmas with prediction_type={schedulers.quoted(prediction)}: a flow's is flow_prediction")
    if fields["invert_sigmas"]:
        raise ValueError("invert_sigmas=true: a time that runs from image to noise; such levels are not known here")
    num_steps, size = _num_steps(fields), "flow_shift" if solver else "shift"
    shift, dynamic, sigmas = fields[size], fields["use_dynamic_shifting"], _sigmas(fields)
    if dynamic:
        shift = _shift_of(fields, image_size)
        notes.append(
            f"use_dynamic_shifting: shift {shift:.6g} for {image_size} pixels a side, as {(image_size // TOKEN) ** 2} tokens of "
            f"{TOKEN}x{TOKEN} pixels; a pipeline that lists its own times before the shift (Flux: 1 to 1/N) visits other levels"
        )
    elif not shift > 0:
        raise ValueError(f"{size}={shift:g} must be above 0")
    terminal = fields.number("shift_terminal") if fields["shift_terminal"] else None
    if terminal is not None and not 0 < terminal < 1:
        raise ValueError(f"shift_terminal={terminal:g} must be a time between 0 and 1")
    grid = schedulers.Grid("flow", sigmas=sigmas, shift=shift, dynamic=bool(dynamic), terminal=terminal)
    if not solver and sigmas != "table":
        grid = dataclasses.replace(grid, sigma_min=fields.number("sigma_min"), sigma_max=fields.number("sigma_max"))
    elif solver and sigmas == "table":
        grid = dataclasses.replace(grid, timesteps=fields.known.flow)
    elif solver:
        if sigmas != "karras" or fields.known.flow != "UniPC's flow":
            raise ValueError(
                f"use_flow_sigmas with {schedulers.CHOICES[sigmas][0]}: {fields.name} takes the sigmas of a table of betas for "
                "a flow's times, which end at 1"
            )
        grid = dataclasses.replace(_grid(fields, _schedule(fields).table.log_snr), timesteps="edm")
    method = _method(fields, notes)
    notes.append(FLOW)
    same = shift == 1 and num_steps == 1000 and not solver and sigmas == "table" and not terminal
    if not same:
        notes.append(_no_spacing(fields, grid))
    return {
        "schedule": schedules.make("flow" if shift == 1 else f"flow(shift={shift!r})"),
        "num_steps": num_steps,
        "prediction": None,
        "method": method,
        "grid": grid,
        "told_sigma": False,
        "spacing": "linspace" if same else None,
    }


def _shift_of(fields, image_size):
    """The shift of a flow for images of so many pixels a side: mu is linear in the number of tokens (Esser et al. 2024)."""
    if image_size is None:
        raise ValueError("use_dynamic_shifting=true: the image's size decides the shift: give --image_size=PIXELS, of a side")
    if image_size % TOKEN or image_size < TOKEN:
        raise ValueError(f"image_size={image_size} must be a multiple of {TOKEN} pixels")
    tokens = (image_size // TOKEN) ** 2
    first, last, low, high = (fields[name] for name in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"))
    if not 0 < first < last:
        raise ValueError(f"base_image_seq_len={first} must be below max_image_seq_len={last}")
    mu = low + (high - low) * (tokens - first) / (last - first)
    if fields.choice("time_shift_type", ("exponential", "linear")) == "exponential":
        return math.exp(mu) if mu < 60 else math.inf
    if not mu > 0:
        raise ValueError(f"base_shift and max_shift give a shift of {mu:g}, which must be above 0")
    return mu


# -- writing


def to_fields(schedule, prediction, spacing="trailing", method="ddim"):
    """(fields, notes): a scheduler_config.json with which the library samples as we do, and remarks on it.

    schedule    a spec. A table is written by the library's name for it, or as its betas; a continuous schedule as the betas of
                1000 steps of it
    prediction  "eps" | "v" | "x"
    method      one of WRITTEN, which gives the class; "ancestral(variance=1)" is DDPM's fixed_large

    Raises ValueError, in one line, for what such a file cannot express: other methods and options, spacings that visit other
    steps there, eps at zero SNR, and levels so clean that the library's float32 loses them.
    """
    schedule, sampler = schedules.make(schedule), samplers.make(method)
    name, options = sampler.name, sampler.options
    name = "euler" if spec.parse(method).name == "euler" else name  # which `make` takes for ddim
    variance = options.pop("variance", 0) if name == "ancestral" else 0
    if name not in WRITTEN or any(options.values()) or variance not in (0, 1):
        raise ValueError(
            f"method {method!r} cannot be written: scheduler_config.json has {', '.join(WRITTEN)} and ancestral(variance=1)"
        )
    if prediction not in diffusion.PREDICTIONS:
        raise ValueError(f"prediction {prediction!r}: choose one of {', '.join(diffusion.PREDICTIONS)}")
    table, notes = schedule.table or schedules.sampled(schedule), []
    if not schedule.table:
        notes.append(
            f"{spec.shortened(str(schedule))} is continuous: the file has the betas of 1000 steps of it, at u = t / 1000 "
            "(published tables are called discrete(..), as in discrete(linear))"
        )
    class_name, zero = WRITTEN[name], bool(table.alpha_bar[-1] == 0)
    if zero and prediction == "eps":
        raise ValueError("prediction 'eps' with zero terminal SNR: no image follows from the noise there; predict v or x")
    if zero and "rescale_betas_zero_snr" not in schedulers.FIELDS[class_name]:
        raise ValueError(f"{class_name} cannot begin at zero SNR, where sigma_ve is infinite; choose another method than {name}")
    theirs = {ours: there for there, ours in PREDICTIONS.items()}
    named, betas = _betas(schedule, table)
    fields = (
        schedulers.FIELDS[class_name]
        | named
        | {
            "_class_name": class_name,
            "num_train_timesteps": table.num_steps,
            "prediction_type": theirs[prediction],
            "timestep_spacing": spacing,
        }
    )
    fields |= {"rescale_betas_zero_snr": True} if zero else {}
    fields |= {"clip_sample": False} if "clip_sample" in fields else {}
    fields |= {"variance_type": "fixed_large"} if variance else {}
    fields = {field: value for field, value in fields.items() if value is not None and value != -math.inf}
    scheduler = from_fields(fields)
    if scheduler.spacing != spacing:
        raise ValueError(
            f"{class_name} with timestep_spacing={spacing!r} visits other steps than {spacing!r} here; choose "
            f"{' or '.join(SAME_SPACING[scheduler.grid.timesteps])}"
        )
    gap, step = schedulers.lost_to_float32(table, betas)
    notes.append(
        f"the library keeps its table in float32: its log-SNR differs by up to about {gap:.1g}, at timestep {step - 1} "
        f"of 0 to {table.num_steps - 1}"
    )
    if zero and spacing == "leading":
        notes.append("leading never visits the zero terminal SNR: trailing does")
    return fields, [*scheduler.notes, *notes]


def _betas(schedule, table):
    """(the fields for a table, the betas that they give): the library's name for the table and its ends, or all its betas."""
    raw, call = table, schedule.call
    if dict(call.kwargs).get("zero_terminal") and schedule.table:  # the library's names are for tables before rescaling
        kwargs = tuple(pair for pair in call.kwargs if pair[0] != "zero_terminal")
        raw = schedules.make(str(dataclasses.replace(call, kwargs=kwargs))).table
    ends = [float(f"{beta:.12g}") for beta in raw.betas[[0, -1]]]
    for name, make in (("linear", tables.linear), ("scaled_linear", tables.scaled_linear)):
        if np.allclose(make(raw.num_steps, *ends), raw.betas, rtol=1e-9, atol=0):
            return {"beta_schedule": name, "beta_start": ends[0], "beta_end": ends[1]}, raw.betas
    if np.allclose(tables.cosine(raw.num_steps), raw.betas, rtol=1e-9, atol=0):
        return {"beta_schedule": "squaredcos_cap_v2"}, raw.betas
    return {"trained_betas": table.betas.tolist()}, table.betas


# -- the command


def main(request):
    """The command."""
    if bool(request.read) == bool(request.write):
        raise ValueError("give either --read=FILE or --write=FILE")
    if request.sigmas and not request.steps:
        raise ValueError("--sigmas writes the levels of a number of steps: give --steps=N")
    _check_files({flag: path for flag in ("read", "write", "sigmas", "betas") if (path := getattr(request, flag))})
    asked = {name: getattr(request, name) for name in ("schedule", "prediction", "spacing", "method")}
    asked = {name: value for name, value in asked.items() if value is not None}
    files = {"n": request.steps, "sigmas": request.sigmas or None, "betas": request.betas or None}
    if request.read:
        if asked or request.workdir:
            raise ValueError(f"--{next(iter(asked), 'workdir')} is for --write: --read takes all from the file")
        run_read(request.read, image_size=request.image_size, **files)
        return
    if request.image_size is not None:
        raise ValueError("--image_size is for --read, of a file with use_dynamic_shifting")
    asked = (of_run(request.workdir) if request.workdir else {}) | asked
    for name in ("schedule", "prediction"):
        if name not in asked:
            raise ValueError(f"--write needs --{name}, or the --workdir of a run")
    run_write(request.write, **asked, **files)


def _check_files(paths):
    """ValueError if two of these paths are of one file, or one to write is of something that is not a plain file."""
    for flag, path in paths.items():
        if flag != "read" and os.path.exists(path) and not os.path.isfile(path):
            raise ValueError(f"--{flag}={path} is not a regular file")
    for (flag, path), (other, its) in itertools.combinations(paths.items(), 2):
        there = os.path.exists(path) and os.path.exists(its)
        if os.path.samefile(path, its) if there else os.path.realpath(path) == os.path.realpath(its):
            raise ValueError(f"--{flag} and --{other} are the same file, {path}")


def run_read(path, n=None, sigmas=None, betas=None, image_size=None, say=print):
    """Says what a scheduler_config.json means here; writes its levels in n steps to the file `sigmas`, its table to `betas`."""
    scheduler = read(path, image_size)
    schedule, levels = scheduler.schedule, scheduler.levels(n) if n else None
    _write_lists(sigmas, levels, betas, schedule, say)
    said = str(schedule)
    if schedule.table and (betas or len(said) > 150):  # given betas are too long to read
        said = f"betas({betas or 'FILE'!r})"
    log_snr = float(schedule(1.0))
    alpha_bar, sigma_ve = float(diffusion.alpha_bar(log_snr)), math.exp(-log_snr / 2)
    say(f"{scheduler.class_name}\n  schedule    {said}")
    say(f"  its end     alpha_bar {alpha_bar:.6g}, sigma_ve {sigma_ve:.6g}, log-SNR {log_snr:.4g}")
    for name in ("prediction", "method", "spacing"):
        say(f"  {name:10}  {getattr(scheduler, name) or 'none here'}")
    if n:
        say(f"  {n} level{'s' * (n > 1)}  {visited(scheduler, n)}")
    for note in scheduler.notes:
        say(f"note: {note}")
    if scheduler.no_effect:
        say(f"of no effect here: {', '.join(scheduler.no_effect)}")
    say(f"in a config:\n  config.schedule = {said!r}")
    if schedule.table and not scheduler.told_sigma:
        say(
            "  config.conditioning.kind = 'timestep'  # counted from 1 here, from 0 there\n"
            "  config.conditioning.table = config.schedule"
        )
    if scheduler.prediction:
        say(f"  config.model.prediction = {scheduler.prediction!r}")
    if scheduler.method:
        same = scheduler.spacing and (not n or _same(levels, schedules.levels(schedule, n, scheduler.spacing)))
        inference = _visiting(levels, sigmas or "FILE") if sigmas or not same else said
        spacing = "" if sigmas or not same else f" --spacing={scheduler.spacing}"
        say(
            f'sampling:\n  noisesched sample --workdir=RUN --schedule="{inference}"{spacing} --steps={n or "N"} '
            f'--method="{scheduler.method}" --out=DIR'
        )
    if "'FILE'" in (inference if scheduler.method else "") + said:
        say("  (such files: noisesched interchange --read=.. --steps=N --sigmas=FILE --betas=FILE)")


def _visiting(levels, path):
    """The spec of a schedule that visits these levels (None: unknown ones), which are in the file as sigmas."""
    if levels is None:
        return f"sigmas({path!r})"
    sigma = math.exp(-levels[0] / 2)
    kind = ", kind='ve'" * (sigma <= 1)
    if len(levels) > 1:
        return f"sigmas({path!r}{kind})"
    return f"sigmas([{sigma!r}, {min(1.0, sigma / 2)!r}]{kind})"  # one level is no schedule; one step visits the first of two


def visited(scheduler, n):
    """The levels that the library visits in n steps, as text: "timesteps 981, 961, 941 .. 1 there, log-SNR -5.1 to 6.8"."""
    levels, table = scheduler.levels(n), scheduler.schedule.table
    at = scheduler.grid.visited(scheduler.num_steps, n) if scheduler.grid.sigmas == "table" and table else []
    named = f"timesteps {', '.join(f'{step:g}' for step in at[:3])} .. {at[-1]:g} there, " if len(at) else ""
    return f"{named}log-SNR {levels[0]:.4g} to {levels[-1]:.4g}"


def run_write(
    path,
    schedule,
    prediction,
    spacing="trailing",
    method="ddim",
    told="timestep",
    table=None,
    n=None,
    sigmas=None,
    betas=None,
    say=print,
):
    """Writes a scheduler_config.json, the levels that sampling visits in n steps to the file `sigmas`, the table to `betas`.

    `told`: what the network is told of the level, one of conditioning.KINDS; `table`: the schedule whose timesteps it is told.
    """
    schedule = schedules.make(schedule)
    fields, notes = to_fields(schedule, prediction, spacing, method)
    scheduler, most = from_fields(fields), schedule.table.num_steps if schedule.table else 1000
    counts = [n] if n else [count for count in USUAL if count <= most]
    levels = [np.asarray(schedules.levels(schedule, n, spacing), np.float64)] if n else _levels(schedule, counts, spacing)
    replaced = _write_text(path, json.dumps(fields, indent=2, sort_keys=True, allow_nan=False) + "\n")
    _write_lists(sigmas, levels[0], betas, schedule, say)
    say(f"{path}: {fields['_class_name']}{replaced}")
    others = {count: other for count, at in zip(counts, levels, strict=True) if (other := _elsewhere(scheduler, at))}
    if n:
        notes = [*others.values(), *notes]
    elif others:
        say(
            f"note: with this file the library visits other levels in {', '.join(map(str, others))} steps, as it rounds "
            f"timesteps ({', '.join(map(str, counts))} were tried; --steps=N says where)"
        )
    for note in notes:
        say(f"note: {note}")
    if table and (wrong := _told_wrongly(table, schedule)):
        say(f"note: {wrong}")
    if told != "timestep":
        say(f"note: the network of this run is told {told}; the library tells a network timesteps from 0: translate them")
    if sigmas and np.isneginf(levels[0][0]):
        say(
            f"note: the first sigma of {sigmas} is inf, which the library cannot begin with; its own schedulers put "
            f"{math.sqrt(1 / schedulers.STAND_IN - 1):.0f} in its place"
        )


def of_run(directory):
    """The arguments of `run_write` for the run in a workdir; the schedule is the table that its network is told, if any."""
    config = subject.of_workdir(directory).config
    told = config.conditioning
    return {
        "schedule": told.table or config.schedule,
        "prediction": config.model.prediction,
        "told": told.kind,
        "table": told.table,
    }


def _told_wrongly(table, schedule):
    """A note if the library, with the steps of `schedule`, tells a network other timesteps than those of its `table`; else ""."""
    own, written = table.table.log_snr, (schedule.table or schedules.sampled(schedule)).log_snr
    if len(own) == len(written) and np.allclose(own, written, rtol=1e-5, atol=1e-3):
        return ""
    at = min(len(own), len(written)) // 2
    return (
        f"this network is told the timesteps of {spec.shortened(str(table))}, and with this file the library tells it those of "
        f"another table: its timestep {at} is log-SNR {written[at]:.4g}, where the network takes it for {own[at]:.4g}"
    )


def _levels(schedule, counts, spacing):
    """`schedules.levels` for each of these numbers of steps, evaluated at once: float64."""
    total = schedule.table and schedule.table.num_steps
    u = [tables.select_steps(total, n, spacing) / total if total else schedules.positions(n, spacing) for n in counts]
    return np.split(np.asarray(schedule(np.concatenate(u)), np.float64), np.cumsum(counts)[:-1])


def _elsewhere(scheduler, levels):
    """A note if the library, with that file, does not visit these levels; ""  if it does, up to its stand-in for zero SNR."""
    n = len(levels)
    try:
        theirs = scheduler.levels(n)
    except ValueError as error:
        return f"with this file the library cannot take {n} steps: {error}"
    apart = ~np.isclose(levels, theirs, rtol=1e-5, atol=1e-2)
    apart[0] &= not (np.isneginf(levels[0]) and scheduler.grid.stand_in)
    if not apart.any():
        return ""
    at = int(apart.argmax())
    return (
        f"in {n} steps the library visits other levels with this file, as it rounds timesteps: {apart.sum()} of {n} differ, "
        f"the first at log-SNR {theirs[at]:.4g} instead of {levels[at]:.4g}"
    )


def _write_lists(sigmas, levels, betas, schedule, say):
    """Writes the files of sigmas and of betas that are asked for."""
    if sigmas:  # of the levels, noisiest first, and the 0 with which the library's own lists end
        replaced = _write_numbers(sigmas, [*np.exp(-levels / 2).tolist(), 0.0])
        say(f"{sigmas}: the sigmas of {len(levels)} level{'s' * (len(levels) > 1)}{replaced}")
    if betas:
        replaced = _write_numbers(betas, (schedule.table or schedules.sampled(schedule)).betas.tolist())
        say(f"{betas}: the betas of the table{replaced}")


def _write_numbers(path, numbers):
    return _write_text(path, "".join(f"{number!r}\n" for number in numbers))


def _write_text(path, text):
    """Writes a file, and returns what to say of the one that was there."""
    replaced = Path(path).is_file() and Path(path).read_bytes() != text.encode()
    Path(path).write_text(text)
    return ", in place of other content" * replaced


def _same(levels, others):
    return np.allclose(levels, np.asarray(others, np.float64), rtol=1e-5, atol=1e-5)
