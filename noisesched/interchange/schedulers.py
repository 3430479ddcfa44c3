"""The scheduler classes of PyTorch's diffusers library: their fields and defaults, and the levels that they visit.

As in version 0.42; neither the library nor PyTorch is needed. Everything is float64 numpy on the host, in the library's own
arithmetic, rounding included: for some numbers of steps it visits a timestep next to the exact one. It counts timesteps from 0,
we from 1: its timestep t is step t + 1 here.
"""

import dataclasses
import json
import math

import numpy as np

from noisesched import spec

STAND_IN = 2.0**-24  # replaces a zero terminal alpha_bar in schedulers that work with sigmas

# The fields of each class with their defaults, which differ between classes.
_TABLE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
_LEADING = _TABLE | {"timestep_spacing": "leading"}
_ZERO = {"rescale_betas_zero_snr": False}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_SIGMAS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "sigma_min": None,
    "sigma_max": None,
}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0, "use_dynamic_shifting": False, "time_shift_type": "exponential"}
_SOLVER = _TABLE | _THRESHOLD | _SIGMAS | _FLOW | {"solver_order": 2, "lower_order_final": True}
_COGVIDEOX = (
    _LEADING
    | _ZERO
    | _CLIP
    | {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "set_alpha_to_one": True,
        "sample_max_value": 1.0,
        "snr_shift_scale": 3.0,
    }
)
_EDM = {
    "num_train_timesteps": 1000,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "rho": 7.0,
    "prediction_type": "epsilon",
    "final_sigmas_type": "zero",
}
FIELDS = {
    "DDIMScheduler": _LEADING | _ZERO | _THRESHOLD | _CLIP | {"set_alpha_to_one": True},
    "DDPMScheduler": _LEADING | _ZERO | _THRESHOLD | _CLIP | {"variance_type": "fixed_small"},
    "EulerDiscreteScheduler": _TABLE
    | _ZERO
    | _SIGMAS
    | {"interpolation_type": "linear", "timestep_type": "discrete", "final_sigmas_type": "zero"},
    "EulerAncestralDiscreteScheduler": _TABLE | _ZERO,
    "HeunDiscreteScheduler": _TABLE | _SIGMAS | _CLIP | {"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False},
    "DPMSolverMultistepScheduler": _SOLVER
    | _ZERO
    | {
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
    },
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "time_shift_type": "exponential",
        "stochastic_sampling": False,
    },
    # Of these the tables and levels are read; no sampler here takes their steps.
    "PNDMScheduler": _LEADING | {"skip_prk_steps": False, "set_alpha_to_one": False},
    "LMSDiscreteScheduler": _TABLE | _SIGMAS,
    "DEISMultistepScheduler": _SOLVER | {"algorithm_type": "deis", "solver_type": "logrho"},
    "UniPCMultistepScheduler": _SOLVER
    | _ZERO
    | {
        "predict_x0": True,
        "solver_type": "bh2",
        "disable_corrector": [],
        "solver_p": None,
        "final_sigmas_type": "zero",
        "shift_terminal": None,
    },
    "LCMScheduler": _LEADING
    | _ZERO
    | _THRESHOLD
    | _CLIP
    | {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "original_inference_steps": 50,
        "timestep_scaling": 10.0,
    },
    "CogVideoXDDIMScheduler": _COGVIDEOX,
    "CogVideoXDPMScheduler": _COGVIDEOX,
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM
    | _THRESHOLD
    | {
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
    },
    "DPMSolverSinglestepScheduler": {
        name: value for name, value in _SOLVER.items() if name not in ("timestep_spacing", "steps_offset")
    }
    | {
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": False,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
    },
    "SASolverScheduler": {name: value for name, value in _SOLVER.items() if name not in ("solver_order", "use_dynamic_shifting")}
    | {
        "predictor_order": 2,
        "corrector_order": 2,
        "tau_func": None,
        "algorithm_type": "data_prediction",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
    },
}
FIELDS["TCDScheduler"] = FIELDS["LCMScheduler"]
FIELDS["DDIMParallelScheduler"], FIELDS["DDPMParallelScheduler"] = FIELDS["DDIMScheduler"], FIELDS["DDPMScheduler"]
TIMESTEPS = {  # how each class that has a table of betas places its levels: see Grid
    **dict.fromkeys(("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler"), "whole"),
    **dict.fromkeys(("PNDMScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"), "whole"),
    **dict.fromkeys(("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"), "fractional"),
    "LMSDiscreteScheduler": "fractional",
    **dict.fromkeys(("DPMSolverMultistepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"), "of one more"),
    **dict.fromkeys(("DPMSolverSinglestepScheduler", "SASolverScheduler"), "of one more"),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), "of those distilled"),
}
SOLVER_FLOWS = ("solver's flow", "UniPC's flow")
KNOWN = {name for fields in FIELDS.values() for name in fields}


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a scheduler places its N levels: where on the table of T timesteps, and with which sigmas."""

    # "whole" | "fractional" (linspace is not rounded) | "of one more" (N of N + 1) | "of those distilled"; without a table of
    # betas "flow" (times) | SOLVER_FLOWS | "edm" (sigmas between sigma_max and sigma_min)
    timesteps: str
    spacing: str
    offset: int = 0
    sigmas: str = "table"  # "table": those of the timesteps | "karras", "exponential": between the table's ends or these:
    sigma_min: float | None = None
    sigma_max: float | None = None
    stand_in: bool = False  # whether the table's last alpha_bar is STAND_IN there, not 0
    shift: float = 1.0  # of a flow
    dynamic: bool = False  # whether the image's size decides it
    rho: float = 7.0  # of "karras"
    distilled: int = 50  # how many evenly spaced timesteps "of those distilled" chooses from

    def visited(self, total, n):
        """The library's timesteps for n steps of `total`, from 0: float64 [n], decreasing; whole numbers except for "fractional".

        Raises ValueError if its arithmetic does not give n timesteps of the table.
        """
        many = n + 1 if self.timesteps == "of one more" else n
        if self.timesteps == "of those distilled":
            known = (np.arange(self.distilled, 0, -1) * (total // self.distilled) - 1).astype(float)
            steps = known[np.floor(np.linspace(0, len(known), n, endpoint=False)).astype(int)]
        elif self.spacing == "trailing":
            steps = np.arange(total, 0, -total / n).round() - 1
        elif self.spacing == "leading":
            steps = (np.arange(many) * (total // many))[::-1][:n] + float(self.offset)
        elif self.timesteps == "fractional":
            steps = np.linspace(0, total - 1, n, dtype=np.float32)[::-1].astype(np.float64)
        else:
            steps = np.linspace(0, total - 1, many).round()[::-1][:n]
        if len(steps) != n or steps[0] >= total or steps[-1] < 0 or not (np.diff(steps) < 0).all():
            raise ValueError(
                f"the library does not visit {n} different timesteps of 0 to {total - 1} with {self}: "
                "choose another number of steps"
            )
        return steps

    def sigma_ve(self, log_snr, n):
        """sigma_ve = exp(-log_snr / 2) of the n levels: float64 [n], decreasing; the first may be inf.

        `log_snr` [T]: the table, cleanest first (of a flow only T is used).
        """
        if self.timesteps == "flow":
            shifted = lambda s: self.shift * s / (1 + (self.shift - 1) * s)
            smallest = 1 / len(log_snr)
            # The library shifts the smallest time twice, unless the image's size decides the shift.
            s = shifted(np.linspace(1.0, smallest if self.dynamic else shifted(smallest), n))
            with np.errstate(divide="ignore"):
                return s / (1 - s)
        if self.timesteps in SOLVER_FLOWS:
            first = 1.0 if self.timesteps == "UniPC's flow" else 1 - 1 / len(log_snr)
            s = np.linspace(first, 1 / len(log_snr) if first == 1 else 0.0, n + 1)[:-1]
            s = np.minimum(self.shift * s / (1 + (self.shift - 1) * s), 1 - 1e-6)  # the library's own limit
            return s / (1 - s)
        if self.timesteps == "edm":
            return self._between(self.sigma_max, self.sigma_min, n)
        steps, table = self.visited(len(log_snr), n), np.exp(-np.asarray(log_snr, np.float64) / 2)
        if self.stand_in:
            table[-1] = math.sqrt((1 - STAND_IN) / STAND_IN)
        whole = steps.astype(int)
        sigmas = table[whole] if (steps == whole).all() else np.interp(steps, np.arange(len(table)), table)
        if self.sigmas == "table":
            return sigmas
        # Between the ends of the whole table, or of its visited part: the classes differ.
        high, low = table[[-1, 0]] if self.timesteps == "of one more" else sigmas[[0, -1]]
        return self._between(self.sigma_max or high, self.sigma_min or low, n)

    def _between(self, high, low, n):
        share = np.linspace(0.0, 1.0, n)
        if self.timesteps == "edm" and self.sigmas == "exponential" and n == 1:
            return np.array([low])  # the library lists these upwards, and turns them around
        if self.sigmas == "karras":  # Karras et al. 2022, eq. 5
            return (high ** (1 / self.rho) * (1 - share) + low ** (1 / self.rho) * share) ** self.rho
        return np.exp(np.log(high) * (1 - share) + np.log(low) * share)

    def __str__(self):
        """As fields of a file."""
        if self.timesteps in ("edm", "solver's flow"):
            return (
                f"sigma_schedule={self.sigmas}" if self.timesteps == "edm" else f"use_flow_sigmas and flow_shift={self.shift:g}"
            )
        words = [f"timestep_spacing={self.spacing}"] + [f"steps_offset={self.offset}"] * bool(self.offset)
        return " and ".join(words + [f"use_{self.sigmas}_sigmas"] * (self.sigmas != "table"))


def lost_to_float32(table, betas):
    """(largest difference in log-SNR, its timestep) between a `tables.Table` and the library's float32 table from the betas [T].

    The library computes 1 - beta, the products and, for a table that ends at zero SNR, its rescaling in float32 (the last is
    reproduced up to a few roundings). ValueError if whole steps are lost.
    """
    alpha_bar = _float32_products(np.float32(1) - np.asarray(betas, np.float32))
    if table.alpha_bar[-1] == 0:
        root = np.sqrt(alpha_bar)
        alpha_bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        alphas = alpha_bar / np.concatenate([np.ones(1, np.float32), alpha_bar[:-1]])
        alpha_bar = _float32_products(np.float32(1) - (np.float32(1) - alphas))
    alpha_bar = alpha_bar.astype(np.float64)
    if alpha_bar[0] == 1 or not (np.diff(alpha_bar) < 0).all():
        step = 1 if alpha_bar[0] == 1 else int(np.argmax(np.diff(alpha_bar) >= 0)) + 2
        raise ValueError(
            f"timestep {step} of {table.num_steps} has beta {table.betas[step - 1]:.3g}, which the library's float32 loses: "
            "cut the schedule's clean end, as in 'truncated(cosine, -20, 12)'"
        )
    finite = alpha_bar > 0
    log_snr = np.log(alpha_bar[finite]) - np.log1p(-alpha_bar[finite])
    gaps = np.abs(log_snr - table.log_snr[finite])
    return float(gaps.max()), int(gaps.argmax()) + 1


def _float32_products(alphas):
    """Cumulative products as PyTorch computes them on the CPU: accumulated in float64, each rounded to float32."""
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


class Fields:
    """A file's fields over the defaults of its class, each checked when it is read; `asked` has those that were read."""

    def __init__(self, name, fields):
        self.name, self.defaults, self.asked = name, FIELDS[name], set()
        left_out = fields.get("_use_default_values", [])  # a file may name fields whose values are ignored
        left_out = left_out if isinstance(left_out, list) else []
        self.given = {key: value for key, value in fields.items() if key in self.defaults and key not in left_out}

    def __getitem__(self, field):
        """The field's value, of its default's type; None if this class has no such field."""
        if field in self.defaults:
            self.asked.add(field)
        default = self.defaults.get(field)
        value = self.given.get(field, default)
        if isinstance(default, bool) and value is None:
            return False
        if isinstance(default, float) and type(value) is int:
            value = float(value) if abs(value) < 2**31 else math.inf
        if default is not None and type(value) is not type(default):
            kind = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}[type(default)]
            raise ValueError(f"{field}={quoted(value)} must be {kind}")
        if default is not None and type(value) in (int, float) and not abs(value) < 2**31 and value != default:
            raise ValueError(f"{field}={quoted(value)} must be finite, and below 2**31")
        return value

    def choice(self, field, choices):
        if (value := self[field]) not in choices:
            raise ValueError(f"{field}={quoted(value)} is not known here; known: {', '.join(map(str, choices))}")
        return value

    def number(self, field):
        """The field's value, a positive number or None."""
        value = self[field]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9):
            raise ValueError(f"{field}={quoted(value)} must be a number above 0, or null")
        return value

    def refuse(self, *names):
        """ValueError if one of these options is on: they change the levels in ways not known here."""
        for field in names:
            if field in self.defaults and self[field]:
                raise ValueError(f"{field}={quoted(self[field])}: such levels are not known here")


def quoted(value):
    """A value of a JSON file, for a message."""
    return spec.shortened(json.dumps(value))
