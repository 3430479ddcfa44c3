"""The scheduler classes of PyTorch's diffusers library: their fields and defaults, and the levels that they visit.

As in version 0.42; neither the library nor PyTorch is needed. Everything is float64 numpy on the host, in the library's own
arithmetic, rounding included: for some numbers of steps it visits a timestep next to the exact one. It counts timesteps from 0,
we from 1: its timestep t is step t + 1 here.
"""

import dataclasses
import json
import math

import numpy as np
from scipy import special

from noisesched import schedules, spec

STAND_IN = 2.0**-24  # replaces a zero terminal alpha_bar in schedulers that work with sigmas

# The fields that choose the sigmas, each with the value that does, in the order in which they precede one another.
CHOICES = {
    "karras": ("use_karras_sigmas", True),
    "lu": ("use_lu_lambdas", True),
    "exponential": ("use_exponential_sigmas", True),
    "beta": ("use_beta_sigmas", True),
    "log_linear": ("interpolation_type", "log_linear"),
}


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a scheduler places its N levels: where on the table of T timesteps, and with which sigmas."""

    # "whole" | "fractional" (linspace is not rounded) | "of one more" (N of N + 1) | "of those distilled"; without a table of
    # betas "flow", "solver's flow", "UniPC's flow" (times) | "edm", "consistency" (sigmas between sigma_max and sigma_min)
    timesteps: str
    spacing: str = "linspace"
    offset: int = 0
    sigmas: str = "table"  # "table": those of the timesteps | one of CHOICES: between the ends of those visited, or these
    sigma_min: float | None = None
    sigma_max: float | None = None
    stand_in: bool = False  # whether the table's last alpha_bar is STAND_IN there, not 0
    clipped: int = 0  # how many of the noisiest timesteps lambda_min_clipped leaves out
    falls: bool = False  # whether linspace goes from the noisiest timestep down, so that a single one is the noisiest
    least: int = 1  # the smallest N
    shift: float = 1.0  # of a flow
    dynamic: bool = False  # whether the image's size decides it
    terminal: float | None = None  # the last time, to which a flow's are stretched
    rho: float = 7.0  # of "karras"
    distilled: int = 50  # how many evenly spaced timesteps "of those distilled" chooses from

    def visited(self, total, n):
        """The library's timesteps for n steps of `total`, from 0: float64 [n], decreasing; whole numbers except for "fractional".

        Raises ValueError if its arithmetic does not give n timesteps of the table.
        """
        steps = self._listed(total, n)
        if n < self.least or len(steps) != n or steps[0] >= total or steps[-1] < 0 or not (np.diff(steps) < 0).all():
            raise ValueError(
                f"the library does not visit {n} different timesteps of 0 to {total - 1} with {self}: "
                "choose another number of steps"
            )
        return steps

    def _listed(self, total, n):
        """What the library's arithmetic gives, be they timesteps of the table or not."""
        many = n + 1 if self.timesteps == "of one more" else n
        last = total - self.clipped
        if self.timesteps == "of those distilled":
            known = (np.arange(self.distilled, 0, -1) * (total // self.distilled) - 1).astype(float)
            return known[np.floor(np.linspace(0, len(known), n, endpoint=False)).astype(int)]
        if self.spacing == "trailing":
            return np.arange(last, 0, -total / n).round() - 1
        if self.spacing == "leading":
            return (np.arange(many) * (last // many))[::-1][:n] + float(self.offset)
        if self.timesteps == "fractional":
            up = np.linspace(0, last - 1, n, dtype=np.float32).astype(np.float64)
            return last - 1 - up if self.falls else up[::-1]
        return np.linspace(0, last - 1, many).round()[::-1][:n]

    def sigma_ve(self, log_snr, n):
        """sigma_ve = exp(-log_snr / 2) of the n levels: float64 [n], decreasing; the first may be inf.

        `log_snr` [T]: the table, cleanest first (of a flow only T is used).
        """
        total = len(log_snr)
        if "flow" in self.timesteps:
            with np.errstate(divide="ignore", invalid="ignore"):
                return (times := self._times(total, n)) / (1 - times)
        if self.timesteps == "consistency":
            return self._between(self.sigma_max, self.sigma_min, np.arange(n) * (total // n) / (total - 1))
        if self.sigmas != "table" and self.sigma_min and self.sigma_max:
            return self._between(self.sigma_max, self.sigma_min, self._shares(n))
        table = self.table(log_snr)
        if self.sigmas == "table":
            return np.interp(self.visited(total, n), np.arange(total), table)
        high, low = np.interp(self._listed(total, n)[[0, -1]], np.arange(total), table)  # beyond the table's ends, these
        return self._between(self.sigma_max or high, self.sigma_min or low, self._shares(n))

    def table(self, log_snr):
        """sigma_ve [T] of a table, as the library has it."""
        sigmas = np.exp(-np.asarray(log_snr, np.float64) / 2)
        if self.stand_in:
            sigmas[-1] = math.sqrt((1 - STAND_IN) / STAND_IN)
        return sigmas

    def _times(self, total, n):
        """The times of a rectified flow, from 1 (noise) down."""
        shifted = lambda s: self.shift * s / (1 + (self.shift - 1) * s)
        if self.timesteps == "flow":  # the library shifts the smallest time twice, unless the image's size decides the shift
            times = np.linspace(1.0, 1 / total if self.dynamic else shifted(1 / total), n)
        elif self.timesteps == "solver's flow":
            times = np.linspace(1 - 1 / total, 0.0, n + 1)[:-1]
        else:
            times = np.linspace(1.0, 1 / total, n + 1)[:-1]
        times = shifted(times)
        if self.terminal:
            times = 1 - (1 - times) * (1 - self.terminal) / (1 - times[-1])
        if self.sigmas != "table":
            times = self._between(self.sigma_max or times[0], self.sigma_min or times[-1], self._shares(n))
        return np.minimum(times, 1 - 1e-6) if self.timesteps == "UniPC's flow" else times  # the library's own limit

    def _shares(self, n):
        if self.sigmas == "log_linear":  # of one more
            return np.arange(n) / n
        if self.timesteps == "edm" and self.sigmas == "exponential" and n == 1:
            return np.ones(1)  # the library lists these upwards, and turns them around
        return np.linspace(0.0, 1.0, n)

    def _between(self, high, low, share):
        """From `high`, at share 0, to `low`, at 1."""
        if self.sigmas == "karras":  # Karras et al. 2022, eq. 5
            return (high ** (1 / self.rho) * (1 - share) + low ** (1 / self.rho) * share) ** self.rho
        if self.sigmas == "beta":  # Lee et al. 2024
            return low + (high - low) * special.betaincinv(0.6, 0.6, 1 - share)
        return np.exp(np.log(high) * (1 - share) + np.log(low) * share)

    def __str__(self):
        """In the words of a file's fields."""
        if self.sigma_min and self.sigma_max:
            return f"{self.sigmas} sigmas from {self.sigma_max:g} to {self.sigma_min:g}"
        words = [f"shift={self.shift:g}" if "flow" in self.timesteps else f"timestep_spacing={self.spacing}"]
        words += [
            f"{field}={value:g}" for field, value in (("steps_offset", self.offset), ("shift_terminal", self.terminal)) if value
        ]
        words += ["lambda_min_clipped"] * bool(self.clipped)
        if self.sigmas != "table":
            field, value = CHOICES[self.sigmas]
            words.append(field if value is True else f"{field}={value}")
        return " and ".join(words)


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a scheduler class."""

    fields: dict  # its fields with their defaults, which differ between classes
    grid: Grid  # how it places its levels, unless its fields say otherwise
    method: str | None = None  # the sampler here that takes its steps, unless its fields say otherwise
    betas: tuple[str, ...] = ("linear", "scaled_linear", "squaredcos_cap_v2")  # the names of tables that it knows
    spacings: tuple[str, ...] = schedules.SPACINGS
    own_ends: tuple[str, ...] = ("lu", "log_linear")  # the sigmas whose ends are the table's, whatever sigma_min and sigma_max
    flow: str = "solver's flow"  # the kind of its grid with use_flow_sigmas
    note: str = ""  # another remark


# Fields that classes share.
_TABLE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_SPACED = _TABLE | {"timestep_spacing": "linspace", "steps_offset": 0}
_LEADING = _SPACED | {"timestep_spacing": "leading"}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
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
_DYNAMIC = {
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
_DDIM = _LEADING | _ZERO | _THRESHOLD | _CLIP | {"set_alpha_to_one": True}
_DDPM = _LEADING | _ZERO | _THRESHOLD | _CLIP | {"variance_type": "fixed_small"}
_PNDM = {"skip_prk_steps": False, "set_alpha_to_one": False}
_KARRAS = _SPACED | _SIGMAS | _LATENT
_FLOW_SIGMAS = {"use_flow_sigmas": False, "flow_shift": 1.0}
_SOLVER = _SPACED | _THRESHOLD | _SIGMAS | _FLOW_SIGMAS | _DYNAMIC | {"solver_order": 2, "lower_order_final": True}
_DPM = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
_CLIPPED = {"lambda_min_clipped": -math.inf, "variance_type": None}
_FINAL = {"final_sigmas_type": "zero"}
_COGVIDEOX = (
    _LEADING
    | _ZERO
    | _LATENT
    | {"beta_schedule": "scaled_linear", "set_alpha_to_one": True, "sample_max_value": 1.0, "snr_shift_scale": 3.0}
)
_LCM = (
    _DDIM
    | _LATENT
    | {"beta_schedule": "scaled_linear", "clip_sample": False}
    | {"original_inference_steps": 50, "timestep_scaling": 10.0}
)
_EDM = {
    "num_train_timesteps": 1000,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "rho": 7.0,
    "prediction_type": "epsilon",
} | _FINAL
_FLOW = _SIGMAS | _DYNAMIC | {"num_train_timesteps": 1000, "shift": 1.0, "invert_sigmas": False, "shift_terminal": None}
_HALFWAY = "each of its steps calls the network twice, the second time half-way in log-SNR to {}"
_DDPM_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")


def _without(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


CLASSES = {
    "DDIMScheduler": Known(_DDIM, Grid("whole"), "ddim"),
    "DDIMParallelScheduler": Known(_DDIM, Grid("whole"), "ddim"),
    "DDPMScheduler": Known(_DDPM, Grid("whole"), "ancestral", _DDPM_BETAS),
    "DDPMParallelScheduler": Known(_DDPM, Grid("whole"), "ancestral", _DDPM_BETAS),
    "EulerDiscreteScheduler": Known(
        _SPACED | _ZERO | _SIGMAS | _FINAL | {"interpolation_type": "linear", "timestep_type": "discrete"},
        Grid("fractional"),
        "ddim",
    ),
    "EulerAncestralDiscreteScheduler": Known(_SPACED | _ZERO, Grid("fractional"), "ancestral"),
    "HeunDiscreteScheduler": Known(
        _KARRAS | _CLIP | {"clip_sample": False},
        Grid("fractional"),
        "heun",
        ("linear", "scaled_linear", "squaredcos_cap_v2", "exp"),
    ),
    "DPMSolverMultistepScheduler": Known(
        _SOLVER | _ZERO | _DPM | _CLIPPED | _FINAL | {"euler_at_final": False, "use_lu_lambdas": False},
        Grid("of one more"),
        "dpmpp_2m",
    ),
    "DPMSolverSinglestepScheduler": Known(
        _without(_SOLVER, "timestep_spacing", "steps_offset") | _DPM | _CLIPPED | _FINAL | {"lower_order_final": False},
        Grid("of one more"),
    ),
    "DEISMultistepScheduler": Known(_SOLVER | {"algorithm_type": "deis", "solver_type": "logrho"}, Grid("of one more")),
    "UniPCMultistepScheduler": Known(
        _SOLVER
        | _ZERO
        | _FINAL
        | {"predict_x0": True, "solver_type": "bh2", "disable_corrector": [], "solver_p": None, "shift_terminal": None},
        Grid("of one more"),
        flow="UniPC's flow",
    ),
    "SASolverScheduler": Known(
        _without(_SOLVER, "solver_order", *_DYNAMIC)
        | _CLIPPED
        | {"predictor_order": 2, "corrector_order": 2, "tau_func": None, "algorithm_type": "data_prediction"},
        Grid("of one more"),
    ),
    "PNDMScheduler": Known(_LEADING | _PNDM, Grid("whole")),
    "LMSDiscreteScheduler": Known(_SPACED | _SIGMAS, Grid("fractional"), own_ends=("karras",)),
    "KDPM2DiscreteScheduler": Known(_KARRAS, Grid("fractional"), note=_HALFWAY.format("the next level")),
    "KDPM2AncestralDiscreteScheduler": Known(
        _KARRAS, Grid("fractional"), note=_HALFWAY.format("the level to which it goes before noise is added again")
    ),
    "DPMSolverSDEScheduler": Known(
        _KARRAS | {"noise_sampler_seed": None}, Grid("fractional"), note=_HALFWAY.format("the next level"), own_ends=("karras",)
    ),
    "LCMScheduler": Known(_LCM, Grid("of those distilled")),
    "TCDScheduler": Known(_LCM, Grid("of those distilled")),
    "RePaintScheduler": Known(
        _without(_TABLE, "prediction_type") | {"eta": 0.0, "clip_sample": True},
        Grid("whole", "leading"),
        betas=("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
        note="at every tenth level it goes back up by ten and down again, nine times, unless the call says otherwise",
    ),
    "UnCLIPScheduler": Known(
        {
            "num_train_timesteps": 1000,
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": "epsilon",
            "variance_type": "fixed_small_log",
        }
        | _CLIP,
        Grid("whole", least=2),
        "ancestral",
        ("squaredcos_cap_v2",),
    ),
    "CogVideoXDDIMScheduler": Known(_COGVIDEOX, Grid("whole"), "ddim"),
    "CogVideoXDPMScheduler": Known(_COGVIDEOX, Grid("whole")),
    "EDMEulerScheduler": Known(_EDM, Grid("edm"), "ddim"),
    "EDMDPMSolverMultistepScheduler": Known(
        _EDM | _THRESHOLD | _DPM | {"solver_order": 2, "lower_order_final": True, "euler_at_final": False},
        Grid("edm"),
        "dpmpp_2m",
    ),
    "CMStochasticIterativeScheduler": Known(
        _without(_EDM, "sigma_schedule", "prediction_type", "final_sigmas_type")
        | {"num_train_timesteps": 40, "s_noise": 1.0, "clip_denoised": True},
        Grid("consistency"),
    ),
    "FlowMatchEulerDiscreteScheduler": Known(_FLOW | {"stochastic_sampling": False}, Grid("flow"), "ddim"),
    "FlowMatchHeunDiscreteScheduler": Known({"num_train_timesteps": 1000, "shift": 1.0}, Grid("flow")),
    "FlowMatchLCMScheduler": Known(_FLOW | {"scale_factors": None, "upscale_mode": "bicubic"}, Grid("flow")),
    # The library's former JAX side, as in its last version before its removal: fewer fields, and some spacings fixed.
    "FlaxDDIMScheduler": Known(_TABLE | _CLIP | {"set_alpha_to_one": True, "steps_offset": 0}, Grid("whole", "leading"), "ddim"),
    "FlaxDDPMScheduler": Known(
        _TABLE | {"clip_sample": True, "variance_type": "fixed_small"},
        Grid("whole", "leading"),
        note="every step of it goes from timestep t to t - 1, which is the next level only if N is the number of timesteps",
    ),
    "FlaxPNDMScheduler": Known(_TABLE | _PNDM | {"steps_offset": 0}, Grid("whole", "leading")),
    "FlaxLMSDiscreteScheduler": Known(_TABLE, Grid("fractional", falls=True)),
    "FlaxEulerDiscreteScheduler": Known(
        _TABLE | {"timestep_spacing": "linspace"},
        Grid("fractional", offset=1, falls=True),
        "ddim",
        spacings=("linspace", "leading"),
    ),
    "FlaxDPMSolverMultistepScheduler": Known(
        _SPACED | _THRESHOLD | _DPM | {"solver_order": 2, "lower_order_final": True}, Grid("of one more")
    ),
}
FIELDS = {name: known.fields for name, known in CLASSES.items()}
KNOWN = {name for fields in FIELDS.values() for name in fields}


def betas(name, num_steps, *ends):
    """The betas [num_steps], cleanest first, of a beta_schedule that no spec names: "sigmoid" (with ends), "laplace", "exp"."""
    if name == "sigmoid":
        return ends[0] + (ends[1] - ends[0]) * special.expit(np.linspace(-6, 6, num_steps))
    u = np.arange(num_steps + 1) / num_steps
    if name == "exp":
        alpha_bar = np.exp(-12 * u)
    else:
        log_snr = -0.5 * np.copysign(1, 0.5 - u) * np.log(1 - 2 * np.abs(0.5 - u) + 1e-6)
        alpha_bar = np.sqrt(special.expit(log_snr))
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


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
        self.name, self.known, self.defaults, self.asked = name, CLASSES[name], FIELDS[name], set()
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
        """The field's value, one of the choices; None if this class has no such field."""
        if (value := self[field]) not in choices and field in self.defaults:
            raise ValueError(f"{field}={quoted(value)} is not known here; known: {', '.join(map(str, choices))}")
        return value

    def number(self, field):
        """The field's value, a positive number or None."""
        value = self[field]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9):
            raise ValueError(f"{field}={quoted(value)} must be a number above 0, or null")
        return value


def quoted(value):
    """A value of a JSON file, for a message."""
    return spec.shortened(json.dumps(value))


def readable(field):
    """The name of a field, for a message: in quotes if it is not a plain word."""
    return field if field.isascii() and field.isidentifier() else quoted(field)
