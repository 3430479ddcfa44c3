"""Samplers: one scan over an array of log-SNRs, noisiest first.

A sampler knows a function `denoise(z, log_snr) -> x_hat` and an array of levels, nothing else: not what the network predicts,
nor how it is told the level, nor which schedule the levels came from. The array is data, so all schedules of one length share
a compiled program. After the last level the sampler returns x_hat: N levels are N network calls for a first-order method, and
there is no step "to clean" and no appended zero.

To add a sampler, write its move below and put `@sampler(calls=..)` over it. A move goes from one level to the next:

    move(interval, z, denoise, memory, keys, **options) -> (z at the next level, memory)

and calls denoise(z, log_snr, index): `index` is the position in the array of the level that it calls for.

All moves are written with alpha and sigma, not their ratios, and are finite from log-SNR = -inf (alpha = 0), where
ratios such as z / alpha are not. With w = z / sigma and k = alpha / sigma = exp(log_snr / 2), the probability-flow ODE is
dw/dk = x_hat(w, k) (the data-prediction form of Lu et al. 2022): regular at k = 0, and Euler's step in it is DDIM's.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state

from noisesched import spec
from noisesched.diffusion import alpha, eps_from, more_noise, sigma


@dataclasses.dataclass(frozen=True)
class Method:
    """A sampler's move, its network calls per interval, and its memory before the first: memory(z, levels)."""

    move: Callable
    calls: int
    memory: Callable


METHODS = {}  # name -> Method
ALIASES = {"euler": "ddim"}  # Euler's step, as other libraries call it
# (lowest, highest) of the methods' options
RANGES = {"eta": (0, 1), "variance": (0, 1), "churn": (0, 1e9), "churn_noise": (0, 1e9)}
RANGES |= dict.fromkeys(("churn_from", "churn_to"), (-math.inf, math.inf))


def sampler(calls, memory=lambda z, levels: ()):
    """Enrols a sampler under its function's name, with its network calls per interval between levels."""

    def enrol(move):
        spec.check_new(METHODS, move)
        METHODS[move.__name__] = Method(move, calls, memory)
        return move

    return enrol


@dataclasses.dataclass(frozen=True)
class Interval:
    """From level `index` of the array to the next, less noisy one: scalars, with `now < next` in log-SNR; `count` in all."""

    index: Any
    now: Any
    next: Any
    count: int

    @property
    def removed(self):
        """1 - SNR_now / SNR_next in [0, 1]: the share of the noise that the reverse step draws anew; 1 from SNR = 0."""
        return -jnp.expm1(self.now - self.next)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A method and its options, as `sample` takes them. Hashable, and prints as its spec."""

    call: spec.Call

    @property
    def name(self):
        return self.call.name

    @property
    def options(self):
        return dict(self.call.kwargs)

    def network_calls(self, num_levels):
        """Network calls (NFE) of a run over `num_levels` levels."""
        return METHODS[self.name].calls * (num_levels - 1) + 1

    def num_levels(self, network_calls):
        """The most levels that it visits with no more than so many network calls."""
        return (network_calls - 1) // METHODS[self.name].calls + 1

    def __str__(self):
        return str(self.call)

    __repr__ = __str__


def make(text):
    """The Sampler of a spec such as "heun(churn=40)"; a Sampler is returned as it is. ValueError, in one line, if unknown."""
    if isinstance(text, Sampler):
        return text
    call = spec.parse(text)
    if call.args:
        raise ValueError(f"sampling method {text!r}: name its options, as in 'ddim(eta=1)'")
    call = dataclasses.replace(call, name=ALIASES.get(call.name, call.name))
    check(call.name, **dict(call.kwargs))
    return Sampler(call)


def check(method, **options):
    """Raises ValueError, in one line, unless `method` is a known sampler that takes these options."""
    definitions = {name: known.move for name, known in METHODS.items()}
    spec.bind(spec.Call(method, (), tuple(options.items())), definitions, "sampling method", skip=5)
    for name, value in options.items():
        if isinstance(value, jax.Array | np.ndarray):  # perhaps traced: then its value is not known here
            continue
        spec.check_number(f"sampling method {method!r}", name, value, *RANGES[name])
    if {"churn_from", "churn_to"} <= {*options} and not any(isinstance(value, jax.Array) for value in options.values()):
        spec.check_order(f"sampling method {method!r}", options, {"churn_from": "churn_to"})


def check_levels(denoise, log_snrs):
    """Raises ValueError, in one line, unless `log_snrs` [N] increase and `denoise` can be called at them."""
    values = np.asarray(log_snrs, np.float64)
    if np.isnan(values).any() or (values[1:] < values[:-1]).any():
        at = int(np.argmax(np.isnan(values) | np.append(False, values[1:] < values[:-1])))
        after = f" after {values[at - 1]:g}" if at else ""
        raise ValueError(f"log_snrs increase, the noisiest first; log_snrs[{at}] is {values[at]:g}{after}")
    if hasattr(denoise, "check"):
        denoise.check(values)


def sample(denoise, key, z, log_snrs, method="ddim", *, told=None, **options):
    """Carries `z` from the first level to a clean image.

    denoise   (z [B, ...], log_snr [B]) -> x_hat [B, ...]: a function, or a pytree such as a `jax.tree_util.Partial`. If it has
              a method check(log_snrs), that is asked first, and raises ValueError for levels it cannot be called at
    key       one PRNG key, from which each example derives its own, or [B] keys, so that an example does not depend on
              its batch
    z         [B, ...] of any shape, at level log_snrs[0] (from -inf, standard normal noise); its dtype is kept
    log_snrs  [N], increasing (noisiest first), e.g. `schedules.levels(schedule, N)`; the first may be -inf
    method    one of METHODS: "ddim" (eta), "ancestral" (variance), "heun" (churn, ..), "dpmpp_2m"; or a Sampler
    told      [N], one number for each level, or None. If given, the sampler calls denoise(z, log_snr [B], told [B])

    Returns x of z's shape and dtype. Raises ValueError for an unknown method or option, and for arguments of another kind.

    Compiled once for each denoiser, shape and method: levels, keys, `told` and the options' values are data. Of a Partial,
    so are the arguments it holds. A function is known by its identity, and what it closes over is fixed when it is compiled,
    as under `jax.jit`: put parameters that change into a Partial. The programs of the last 16 functions are kept. Within
    `jax.jit`, `grad` or `vmap` this is a plain scan, which may close over what they trace.
    """
    if isinstance(method, Sampler):
        method, options = method.name, method.options | options
    method = ALIASES.get(method, method)
    check(method, **options)
    z = jnp.asarray(z)
    if not jnp.issubdtype(z.dtype, jnp.floating) or not z.ndim:
        raise ValueError(f"z is a floating-point array [B, ...]; got {z.dtype} {z.shape}")
    if not isinstance(key, jax.Array | np.ndarray):
        raise ValueError(f"key is a JAX PRNG key, as of jax.random.key(0); got {key!r}")
    levels = jnp.asarray(log_snrs, jnp.promote_types(z.dtype, jnp.float32))
    if levels.ndim != 1 or not len(levels):
        raise ValueError(f"log_snrs is an array [N] of one or more levels; got shape {levels.shape}")
    if not isinstance(levels, jax.core.Tracer):
        check_levels(denoise, levels)
    told = None if told is None else jnp.asarray(told)
    if told is not None and told.shape != levels.shape:
        raise ValueError(f"told has one number for each of the {len(levels)} levels; got shape {told.shape}")
    if get_opaque_trace_state(convention="noisesched") != _OUTSIDE:
        # Within a transformation the denoiser may close over tracers, which nothing may keep.
        return _scan(denoise, METHODS[method], (), key, z, levels, told, options)
    # Whether noise is drawn at all is part of the program, how much is data.
    off = tuple(name for name, value in options.items() if _is_off(value))
    numbers = {name: jnp.asarray(value, levels.dtype) for name, value in options.items() if name not in off}
    data = key, z, levels, told, numbers
    if not jax.tree_util.all_leaves([denoise]):  # a pytree: a Partial
        return _scan_of_data(denoise, METHODS[method], off, *data)
    try:
        program = _program(denoise)
    except TypeError:  # a callable that has no hash, as it may change
        program = functools.partial(_scan, denoise)
    return program(METHODS[method], off, *data)


_OUTSIDE = get_opaque_trace_state(convention="noisesched")


@functools.lru_cache(maxsize=16)
def _program(denoise):
    """`_scan` compiled for one function. It is not an argument of the compiled program, or JAX would keep it for ever."""
    return jax.jit(functools.partial(_scan, denoise), static_argnums=(0, 1))


def _scan(denoise, method, off, key, z, levels, told, numbers):
    options = numbers | dict.fromkeys(off, 0.0)
    keys = _example_keys(key, len(z))
    batch = lambda number: jnp.broadcast_to(number, (len(z),))

    def call(state, log_snr, index):
        extra = () if told is None else (batch(told[index]),)
        return denoise(state.astype(z.dtype), batch(log_snr), *extra).astype(z.dtype)

    def advance(carry, inputs):
        state, memory = carry
        interval = Interval(*inputs, len(levels) - 1)
        noise_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, interval.index)
        state, memory = method.move(interval, state, call, memory, noise_keys, **options)
        return (state.astype(z.dtype), memory), None

    steps = (jnp.arange(len(levels) - 1), levels[:-1], levels[1:])
    (state, _), _ = jax.lax.scan(advance, (z, method.memory(z, levels)), steps)
    return call(state, levels[-1], len(levels) - 1)


_scan_of_data = jax.jit(_scan, static_argnums=(1, 2))


# -- the methods: each moves z from interval.now to interval.next


@sampler(calls=1)
def ddim(interval, z, denoise, memory, keys, eta=0.0):
    """Song, Meng & Ermon 2021, eq. 12 and 16. eta = 0: deterministic, Euler's step of the ODE; eta = 1: DDPM's posterior."""
    x = denoise(z, interval.now, interval.index)
    eps = eps_from(x, z, interval.now)
    if not _is_off(eta):
        fresh = eta * jnp.sqrt(interval.removed)
        old = 1 - fresh**2  # 0 from SNR = 0 with eta = 1, where a root has no gradient
        eps = jnp.where(old > 0, jnp.sqrt(jnp.where(old > 0, old, 1)), 0) * eps + fresh * _normal(keys, z)
    return alpha(interval.next) * x + sigma(interval.next) * eps, memory


@sampler(calls=1)
def ancestral(interval, z, denoise, memory, keys, variance=0.0):
    """DDPM's reverse step (Ho et al. 2020, eq. 7; in log-SNR, Kingma et al. 2021, eq. 33).

    variance = 0: the posterior's, beta_tilde; 1: the forward step's, beta; between: interpolated in the logarithm
    (Nichol & Dhariwal 2021, eq. 15). At 0 it equals ddim with eta = 1.
    """
    x = denoise(z, interval.now, interval.index)
    removed, sigma_now, sigma_next = interval.removed, sigma(interval.now), sigma(interval.next)
    kept = (
        jnp.exp((interval.now - interval.next) / 2) * sigma_next / sigma_now
    )  # = (alpha_now / alpha_next) (sigma_next / sigma_now)^2
    share = jnp.where(variance < 1, sigma_next ** (1 - variance), 1.0)  # 0^0 = 1, which XLA does not keep to
    std = jnp.sqrt(removed) * share * sigma_now**variance
    return alpha(interval.next) * removed * x + kept * z + std * _normal(keys, z), memory


@sampler(calls=2)
def heun(interval, z, denoise, memory, keys, churn=0.0, churn_noise=1.0, churn_from=-math.inf, churn_to=math.inf):
    """EDM's sampler: Heun's second-order step, and with churn > 0 its stochastic one (Karras et al. 2022, alg. 1 and 2).

    In sigma_ve = sigma / alpha the ODE is dy/dsigma_ve = eps_hat, y = z / alpha. `churn` is S_churn and `churn_noise`
    S_noise; noise is added while log-SNR is in [churn_from, churn_to] (S_max and S_min, as log-SNRs). 2N - 1 network calls.
    """
    # Churn: add noise, back up to level `start`.
    start = interval.now
    if not _is_off(churn):
        active = (interval.now >= churn_from) & (interval.now <= churn_to)
        gain = jnp.where(active, jnp.minimum(churn / max(interval.count, 1), math.sqrt(2) - 1), 0.0)
        start = interval.now - 2 * jnp.log1p(gain)
        z = more_noise(z, churn_noise * _normal(keys, z), interval.now, start)

    # Euler step.
    x = denoise(z, start, interval.index)
    eps = eps_from(x, z, start)
    euler = alpha(interval.next) * x + sigma(interval.next) * eps

    # Trapezoidal correction: z/alpha moves along the mean of the two slopes, over the step in sigma_ve; from SNR = 0,
    # z/sigma along the mean of the two x_hat, over the step in alpha/sigma, which is finite there.
    x_next = denoise(euler, interval.next, interval.index + 1)
    change = eps_from(x_next, euler, interval.next) - eps
    width = jnp.exp(-interval.next / 2) - jnp.exp(-start / 2)
    correction = jnp.where(jnp.isfinite(width), jnp.where(jnp.isfinite(width), width, 0.0) * change, x_next - x)
    return euler + alpha(interval.next) * correction / 2, memory


@sampler(calls=1, memory=lambda z, levels: (jnp.zeros_like(z), jnp.zeros_like(levels[0])))
def dpmpp_2m(interval, z, denoise, memory, keys):
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2): second order by remembering the last x_hat; one call a step.

    The step after one from SNR = 0, whose length in half log-SNR is infinite, is of first order, as the first one is.
    """
    x = denoise(z, interval.now, interval.index)
    x_before, step_before = memory
    step = (interval.next - interval.now) / 2
    slope = jnp.where((step_before > 0) & jnp.isfinite(step), step / (2 * jnp.where(step_before > 0, step_before, 1)), 0.0)
    x_ahead = x + slope * (x - x_before)
    # exp(-step) = (alpha_now sigma_next) / (alpha_next sigma_now): 0 from SNR = 0
    z = sigma(interval.next) / sigma(interval.now) * z - alpha(interval.next) * jnp.expm1(-step) * x_ahead
    return z, (x, step)


# -- the parts


def _example_keys(key, count):
    key = jnp.asarray(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def _is_off(strength):
    """Whether noise of that strength need not be drawn: known only of a plain number, not of a traced one."""
    return isinstance(strength, int | float) and strength == 0


def _normal(keys, z):
    return jax.vmap(lambda key: jax.random.normal(key, z.shape[1:], z.dtype))(keys)
