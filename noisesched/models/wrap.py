"""Anybody's network as a denoiser: from what it is given, told and outputs to (z, log_snr) -> x_hat.

Networks differ in three ways, and each is a word here: what they predict, in which coordinates their noisy image is, and which
number tells them the noise level. With s = sigma / alpha = exp(-log_snr / 2):

    coordinates  vp: z = alpha x + sigma eps        ve: x + s eps = z / alpha        flow: (1 - t) x + t eps = z / (alpha + sigma)
    prediction   eps | x | v = alpha eps - sigma x | velocity = eps - x | edm: the raw network inside EDM's c_in, c_skip, c_out
    told         log_snr | sigma: s | c_noise: log(s) / 4 | alpha_bar | flow_time: t = s / (1 + s) | u | timestep

All of it is written with alpha and sigma, so that whatever has a limit at log-SNR -inf is finite there. What has none (eps, or a
variance-exploding image) is refused by name, wherever the levels are known.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from noisesched import diffusion, schedules
from noisesched.models import conditioning
from noisesched.models.denoiser import NO_IMAGE, check_numbers

PREDICTIONS = (*diffusion.PREDICTIONS, "velocity", "edm")
COORDINATES = {  # what z is divided by
    "vp": lambda alpha, sigma: 1.0,
    "ve": lambda alpha, sigma: alpha,
    "flow": lambda alpha, sigma: alpha + sigma,
}
TOLD = {  # the number that a network is told of log_snr [B]
    "log_snr": lambda self, log_snr: log_snr,
    "sigma": lambda self, log_snr: jnp.exp(-log_snr / 2),
    "c_noise": lambda self, log_snr: -log_snr / 8,
    "alpha_bar": lambda self, log_snr: diffusion.alpha_bar(log_snr),
    "flow_time": lambda self, log_snr: jax.nn.sigmoid(-log_snr / 2),
    "u": lambda self, log_snr: schedules.invert(self.schedule, log_snr),
    "timestep": lambda self, log_snr: conditioning.timestep(log_snr, self.table, self.translation) - 1 + self.first_timestep,
}
UNBOUNDED = ("sigma", "c_noise")  # told this, a network cannot be called at log-SNR -inf
OUTSIDE = ("refuse", "clamp")


@dataclasses.dataclass(frozen=True, eq=False)  # so that it may be jitted itself
class Wrapped:
    """A denoiser (z [B, ...], log_snr [B], labels [B] or None) -> x_hat [B, ...] made by `wrap`: a pytree of its parameters."""

    params: Any
    apply: Callable  # (params, y, told [B], *labels) -> output
    prediction: str
    told: str
    coordinates: str
    schedule: Any  # a Schedule, for "u"
    table: tuple[float, ...]  # log-SNRs of timesteps 1..T, for "timestep"
    first_timestep: int
    translation: str
    outside: str
    scale: float
    sigma_data: float
    shape: tuple[int, ...]
    num_classes: int
    drawn: Any  # the Schedule that training drew its levels from, or None

    noise_offset = 0.0  # of the noise that sampling starts from, as of `denoiser.Network`

    @property
    def floats(self):
        """Whether its images are no 8-bit pictures, gray or RGB, but latents."""
        return self.shape[-1:] not in ((1,), (3,))

    def check(self, log_snrs):
        """Raises ValueError, in one line, for levels at which this network has no estimate; `samplers.sample` asks first."""
        log_snrs = np.asarray(log_snrs, np.float64)
        check_numbers(log_snrs)
        if np.isneginf(log_snrs).any():
            word = {self.prediction == "eps": NO_IMAGE}
            word |= {self.coordinates == "ve": "its image is variance-exploding, infinite there"}
            word |= {self.told in UNBOUNDED: f"it is told {self.told}, which is infinite there"}
            if True in word:
                raise ValueError(
                    f"this network cannot be called at log-SNR -inf: {word[True]}; begin at a finite level, for example under "
                    "schedules.make('truncated(cosine, log_snr_min=-12, log_snr_max=20)')"
                )
        if self.table and self.outside == "refuse":
            beyond = conditioning.outside(log_snrs, self.table)
            if count := np.count_nonzero(beyond):
                raise ValueError(
                    f"{count} of {log_snrs.size} levels lie outside the table of timesteps that this network knows, log-SNR "
                    f"{self.table[-1]:.4g} to {self.table[0]:.4g}, by up to {np.abs(beyond).max():.4g} (outside='clamp' tells "
                    "it the timestep at the nearest end)"
                )

    def __call__(self, z, log_snr, labels=None):
        if not isinstance(log_snr, jax.core.Tracer):
            self.check(log_snr)
        z, log_snr = jnp.asarray(z), jnp.asarray(log_snr)
        shaped = z.ndim and log_snr.shape in ((), z.shape[:1])
        _require(shaped, f"z {z.shape} with log_snr {log_snr.shape}: give one number, or one for each image")
        log_snr = jnp.broadcast_to(log_snr, len(z))
        level = diffusion.like(log_snr, z)
        alpha, sigma = diffusion.alpha(level), diffusion.sigma(level)
        told = self.scale * TOLD[self.told](self, log_snr)
        if self.told == "timestep" and self.translation == "nearest" and self.scale == 1:
            told = told.astype(jnp.int32)  # so that it may be an index
        given = () if labels is None else (labels,)

        def network(y):
            try:
                output = self.apply(self.params, y.astype(z.dtype), told, *given)
            except jax.errors.TracerArrayConversionError:
                raise ValueError("this network is a function of NumPy arrays: wrap(.., numpy=True)") from None
            fits = isinstance(output, jax.Array | np.ndarray) and output.shape == y.shape and jnp.isrealobj(output)
            said = f"{output.dtype} {output.shape}" if hasattr(output, "shape") else f"a {type(output).__name__}"
            _require(fits, f"this network answers images {y.shape} with {said}")
            return output

        if self.prediction == "edm":  # table 1 of Karras et al. 2022, with s and y = z / alpha multiplied out
            norm = jnp.sqrt(sigma**2 + self.sigma_data**2 * alpha**2)
            c_skip, c_out = self.sigma_data**2 * alpha / norm**2, sigma * self.sigma_data / norm
            x = c_skip * z + c_out * network(z / norm)
        else:
            output = network(z / COORDINATES[self.coordinates](alpha, sigma))
            if self.prediction == "velocity":
                x = (z - sigma * output) / (alpha + sigma)
            else:
                x = diffusion.x_from(self.prediction, output, z, log_snr)
        return x.astype(z.dtype)


jax.tree_util.register_dataclass(
    Wrapped, ["params"], [field.name for field in dataclasses.fields(Wrapped) if field.name != "params"]
)


def wrap(
    function,
    prediction="eps",
    told="timestep",
    *,
    table="",
    schedule="",
    coordinates="vp",
    first_timestep=1,
    translation="nearest",
    outside="refuse",
    scale=1.0,
    sigma_data=0.5,
    params=None,
    numpy=False,
    shape=(),
    num_classes=0,
    drawn="",
):
    """Your own network as a denoiser (z, log_snr, labels=None) -> x_hat, for `samplers.sample` and everything built on it.

    function    (y [B, ...], told [B]) -> output [B, ...], and labels [B] as a third argument where there are classes: any JAX
                function, a Flax NNX module, or with `params` a function (params, y, told) or a Linen module. Parameters in a
                module or in `params` are data: other ones compile nothing
    prediction  what it outputs: eps | x | v | velocity (eps - x, of flow matching; one that points to the data is its
                negative) | edm (the raw network F of Karras et al. 2022, eq. 7, with `sigma_data`; it is given c_in y)
    told        the number that tells it the noise level: timestep (of `table`) | u (of `schedule`) | log_snr | sigma
                (sigma / alpha, as EDM) | c_noise (log(sigma) / 4, as EDM) | alpha_bar | flow_time (t in [0, 1], 1 is noise)
    table       for timestep: any schedule of steps, such as "discrete(linear, num_steps=1000)" or "betas('FILE')".
                Timesteps are 1..T, or 0..T-1 with first_timestep=0. `translation`: a level between two steps becomes the
                "nearest" (int32), or a fraction ("interpolated"). `outside`: levels beyond its ends are refused, or told as the
                nearest end ("clamp")
    schedule    for u: "linear" is the continuous one that the score-SDE networks are told
    coordinates of the image that it is given: vp | ve | flow
    scale       the number told is multiplied by it: 1000 for a flow network told 0 to 1000, 999 for score-SDE's
    numpy       the function takes and returns NumPy arrays. It is called from the compiled program through
                `jax.pure_callback`: a PyTorch network works so, slowly, without gradients
    shape       of its images, (H, W, C); num_classes: K for labels 0..K-1, and K for no label; drawn: the schedule that its
                training drew levels from, where `table`, `schedule` or a flow does not say. The commands need to know these:
                `noisesched sample --denoiser=FILE.py:NAME`

    The result has `check(log_snrs)`, which raises ValueError for levels at which the network has no estimate: log-SNR -inf for
    eps, for variance-exploding images and for one told sigma, and levels outside the table. Raises ValueError, in one line, for
    anything that does not fit together.

    >>> from noisesched import samplers, schedules
    >>> denoise = wrap(lambda z, timestep: 0 * z, prediction="v", table="discrete(linear)")
    >>> log_snrs = schedules.levels(schedules.make("discrete(linear)"), 10)
    >>> samplers.sample(denoise, jax.random.key(0), jnp.ones((2, 8, 8, 1)), log_snrs).shape
    (2, 8, 8, 1)
    """
    for name, value, known in (
        ("prediction", prediction, PREDICTIONS),
        ("told", told, tuple(TOLD)),
        ("coordinates", coordinates, tuple(COORDINATES)),
        ("translation", translation, conditioning.TRANSLATIONS),
        ("outside", outside, OUTSIDE),
        ("first_timestep", first_timestep, (0, 1)),
    ):
        _require(value in known, f"unknown {name} {value!r}; known: {', '.join(map(str, known))}")
    _require(isinstance(shape, tuple) and all(isinstance(n, int) and n > 0 for n in shape), f"shape={shape!r}: give (H, W, C)")
    whole = isinstance(num_classes, int) and num_classes >= 0
    _require(whole, f"num_classes={num_classes!r} must be a whole number from 0 up")
    _require(math.isfinite(scale) and scale, f"scale={scale!r} must be a number other than 0")
    _require(0 < sigma_data < math.inf, f"sigma_data={sigma_data!r} must be a number above 0")
    _require(
        isinstance(table, str | schedules.Schedule), f"table={table!r} is a spec such as 'discrete(linear)' or \"betas('FILE')\""
    )
    _require(bool(table) == (told == "timestep"), f"told={told!r} with table={table!r}: a network told timesteps needs a table")
    _require(bool(schedule) == (told == "u"), f"told={told!r} with schedule={schedule!r}: a network told u needs a schedule")
    _require(prediction != "edm" or coordinates == "vp", "prediction='edm' scales its image itself: leave out coordinates")
    _require(callable(function) or hasattr(function, "apply"), f"function is called as function(y, told); got {function!r}")
    levels = ()
    if table:
        made = schedules.make(table)
        _require(made.table, f"table={table!r} has no steps: use one such as 'discrete(linear, num_steps=1000)'")
        levels = tuple(made.table.log_snr.tolist())
    flow = "flow" if coordinates == "flow" or told == "flow_time" else ""
    drawn = drawn or table or schedule or flow
    apply, params = _applied(function, params, numpy)
    return Wrapped(
        params=params,
        apply=apply,
        prediction=prediction,
        told=told,
        coordinates=coordinates,
        schedule=schedules.make(schedule) if schedule else None,
        table=levels,
        first_timestep=first_timestep,
        translation=translation,
        outside=outside,
        scale=float(scale),
        sigma_data=float(sigma_data),
        shape=tuple(shape),
        num_classes=num_classes,
        drawn=schedules.make(drawn) if drawn else None,
    )


@dataclasses.dataclass(frozen=True)
class _Plain:
    function: Callable

    def __call__(self, params, *arguments):
        return self.function(*arguments)


@dataclasses.dataclass(frozen=True)
class _Module:
    definition: Any

    def __call__(self, params, *arguments):
        return nnx.merge(self.definition, params)(*arguments)


@dataclasses.dataclass(frozen=True)
class _NumPy:
    function: Callable

    def __call__(self, params, y, *others):
        def made(*arrays):
            try:
                answer = np.asarray(self.function(*map(np.asarray, arrays)))
                _require(answer.shape == y.shape, f"this network answers images {y.shape} with {answer.dtype} {answer.shape}")
            except Exception as error:
                if jax.device_count() == 1:
                    raise
                # Where several devices wait for each other, XLA would abort the process: what follows is not finite instead.
                warnings.warn(f"a function of NumPy arrays failed: {type(error).__name__}: {error}", stacklevel=2)
                answer = np.full(y.shape, np.nan)
            return answer.astype(y.dtype)

        return jax.pure_callback(made, jax.ShapeDtypeStruct(y.shape, y.dtype), y, *others, vmap_method="sequential")


def _applied(function, params, numpy):
    """(apply, params) of whatever `wrap` accepts."""
    if numpy:
        _require(params is None, "numpy=True with params: a function of NumPy arrays holds its own parameters")
        return _NumPy(function), ()
    if params is not None:  # a Linen module, or a function of them
        return getattr(function, "apply", function), params
    if isinstance(function, nnx.Module):
        definition, state = nnx.split(function)
        return _Module(definition), state
    _require(callable(function), f"{type(function).__name__} is not callable: a Linen module needs params=variables")
    return _Plain(function), ()


def _require(condition, message):
    if not condition:
        raise ValueError(message)
