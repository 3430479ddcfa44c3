"""Guidance: combines a network's estimates with and without a label into the one x_hat that a sampler takes.

The scale's convention: x_hat = without + scale (with - without). Scale 1 is exactly the network given the label, 0 the network
given none, and above 1 the label's effect is exaggerated. (Ho & Salimans 2022 call scale - 1 their w.)

At a given z and level, eps and v are affine in x_hat, and guidance's weights add up to one: guiding any of the three is the
same, except at SNR = 0. There eps is z whatever x_hat is, so guiding eps does nothing. Here x_hat is guided, which works from
log-SNR -inf on. Samplers derive eps from x_hat, so a corrected x_hat has its own eps.

A spec is "none" or cfg(scale, correction, log_snr_min=.., log_snr_max=..), for example "cfg(3, rescaled(0.7))". Its numbers are
data: another scale compiles nothing. To add a correction, write it below and put `@correction(..)` over it.
"""

import dataclasses
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp

from noisesched import spec
from noisesched.diffusion import alpha, like

CORRECTIONS = {}  # name -> function(x [B, ...], conditional, z, log_snr [B], number) -> x
RANGES = {}  # name of a correction -> (lowest, highest) of its number


def correction(low, high):
    """Enrols a correction of the guided x_hat under its function's name; its one number lies in [low, high]."""

    def enrol(function):
        CORRECTIONS[function.__name__], RANGES[function.__name__] = function, (low, high)
        return function

    return enrol


@dataclasses.dataclass(frozen=True)
class Guidance:
    """A pytree whose numbers are leaves. `both`: whether both estimates are needed, with and without the label."""

    scale: Any
    log_snr_min: Any  # the interval in which it acts (Kynkaanniemi et al. 2024), in log-SNR: the same under every schedule
    log_snr_max: Any
    strength: Any  # the correction's number
    correction: str  # "" for none
    both: bool


jax.tree_util.register_dataclass(Guidance, ["scale", "log_snr_min", "log_snr_max", "strength"], ["correction", "both"])


def cfg(scale, correction=None, log_snr_min=-math.inf, log_snr_max=math.inf):
    """Classifier-free guidance (Ho & Salimans 2022) at levels in [log_snr_min, log_snr_max], corrected by one of CORRECTIONS."""
    ends = {"log_snr_min": log_snr_min, "log_snr_max": log_snr_max}
    for name, value in ends.items():
        spec.check_number("cfg", name, value, -math.inf, math.inf)
    spec.check_order("cfg", ends, {"log_snr_min": "log_snr_max"})
    spec.check_number("cfg", "scale (0: no label, 1: the label)", scale, 0, 1000)
    name, strength = "", 0.0
    if correction is not None:
        if not isinstance(correction, spec.Call):
            raise ValueError(f"cfg: a correction is one of {', '.join(CORRECTIONS)}; got {spec.show(correction)}")
        function = spec.bind(correction, CORRECTIONS, "correction", skip=4)
        name, values = correction.name, [*correction.args, *dict(correction.kwargs).values(), *function.__defaults__]
        strength = values[0]
        spec.check_number(f"cfg: {name}", list(inspect.signature(function).parameters)[4], strength, *RANGES[name])
    return Guidance(float(scale), float(log_snr_min), float(log_snr_max), float(strength), name, scale != 1)


def none():
    """The network as it is, given the label if it has classes."""
    return None


DEFINITIONS = {"none": none, "cfg": cfg}


def parse(text):
    """The Guidance of a spec such as "cfg(3, rescaled(0.7))", or None for "none". ValueError, in one line, if it is neither."""
    call = spec.parse(text)
    return spec.bind(call, DEFINITIONS, "guidance", skip=0)(*call.args, **dict(call.kwargs))


def guided(network, guidance, labels, null_label):
    """The function denoise(z [B, ...], log_snr [B], *told) -> x_hat [B, ...] of a network(z, log_snr, labels, *told) -> x_hat.

    guidance    from `parse`; None is the network itself
    labels      int [B], or None for a network without classes, which can be corrected but not guided
    null_label  the label that means "no label"

    Both estimates come from one call on a batch of 2B. `told` [B]: what `samplers.sample` tells the network instead of log_snr.
    """

    def denoise(z, log_snr, *told):
        if guidance is None or not guidance.both:
            conditional = x = network(z, log_snr, labels, *told)
        else:
            twice = lambda array: jnp.concatenate([array, array])
            both_labels = jnp.concatenate([labels, jnp.full_like(labels, null_label)])
            conditional, unconditional = jnp.split(network(twice(z), twice(log_snr), both_labels, *map(twice, told)), 2)
            acts = (guidance.log_snr_min <= log_snr) & (log_snr <= guidance.log_snr_max)
            beyond = like(jnp.where(acts, guidance.scale - 1, 0.0), z)  # written so that scale 1 changes no bit
            x = conditional + beyond.astype(z.dtype) * (conditional - unconditional)
        if guidance is None or not guidance.correction:
            return x
        return CORRECTIONS[guidance.correction](x, conditional, z, log_snr, guidance.strength).astype(z.dtype)

    return denoise


# -- the corrections


@correction(0, 1)
def rescaled(x, conditional, z, log_snr, phi=0.7):
    """Takes v a share phi of the way back to its standard deviation without guidance (Lin et al. 2023, eq. 15 and 16).

    One standard deviation per sample, over all pixels and channels. sigma v = alpha z - x_hat, and sigma cancels.
    """
    noisy = alpha(like(log_snr, z)) * z
    return noisy - _restoring(noisy - x, noisy - conditional, phi) * (noisy - x)


@correction(0, 1)
def rescaled_x(x, conditional, z, log_snr, phi=0.7):
    """The same for x_hat itself, whose mean is scaled too."""
    return _restoring(x, conditional, phi) * x


@correction(0, 1)
def rescaled_contrast(x, conditional, z, log_snr, phi=0.7):
    """The same for x_hat about its own mean, which is kept. (The two above scale a sample's brightness too, and so pull all
    samples towards mid-grey.) Not in the paper."""
    mean = x.mean(axis=tuple(range(1, x.ndim)), keepdims=True)
    return mean + _restoring(x, conditional, phi) * (x - mean)


@correction(0, math.inf)
def static(x, conditional, z, log_snr, limit=1.0):
    """Clips x_hat to [-limit, limit], the data's range."""
    return jnp.clip(x, -limit, limit)


@correction(0, 1)
def dynamic(x, conditional, z, log_snr, percentile=0.995):
    """Clips x_hat at that quantile of its absolute values, if above 1, and divides by it (Saharia et al. 2022)."""
    limit = jnp.maximum(jnp.quantile(jnp.abs(x).reshape(len(x), -1), percentile, axis=1), 1.0)
    limit = limit.reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.clip(x, -limit, limit) / limit


def _restoring(guided, conditional, phi):
    """The factor [B, 1, ..] that moves the standard deviation a share phi of the way to `conditional`'s; 1 for a flat image."""
    axes = tuple(range(1, guided.ndim))
    have, want = (value.std(axis=axes, keepdims=True) for value in (guided, conditional))
    return 1 + phi * jnp.where(have > 0, want / jnp.where(have > 0, have, 1.0) - 1, 0.0)
