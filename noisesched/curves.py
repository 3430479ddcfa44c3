"""The schedules themselves: functions from u in [0, 1] (0 clean, 1 noise) to log-SNR.

To add one, write its function below and put `@definition` over it: that alone enrols it in the parser, the help texts, the
plots and every test. A definition takes u (a float array) and its parameters, uses jax operations (so it can be jitted,
vmapped and differentiated), and loses no digits at either end: with I(u) the integral of beta, alpha_bar = exp(-I) and
log_snr = -log(expm1(I)), in a form that cannot overflow.

Some end at an SNR of exactly 0 by construction and need no rescaling: `cosine`, `sigmoid`, `flow`, and the unbounded training
densities `log_normal`, `logit_normal`, `laplace` and `cauchy`. The others, given by finite betas, log-SNRs or sigmas, leak;
`zero_terminal` and `zero_terminal_snr` make them end at 0 by changing their last levels. As u goes to 1 the
SNR falls like (1 - u)^2 under cosine, flow and `zero_terminal`, and like 1 - u under sigmoid and `zero_terminal_snr`: the
former draw more levels near pure noise. (DDPM's *table* of cosine, its betas cut at 0.999, does not end at 0.)

`schedules` makes them from specs and adds the wrappers, which are schedules made of schedules.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from noisesched import spec

DEFINITIONS = {}  # name -> function(u, **parameters)
EXAMPLES = {}  # name -> a spec that uses it: what help texts show and tests run over

# (lowest, highest) of parameters by name; others are numbers of any size that `spec.check_number` lets pass
POSITIVE = (1e-6, 1e6)
RANGES = dict.fromkeys(("sigma_min", "sigma_max", "shift", "std", "scale", "image_size", "base"), POSITIVE)
RANGES |= {"beta_min": (0, 1e4), "beta_max": (0, 1e4), "beta": (1e-6, 1e4), "s": (0, 10), "tau": (1e-3, 1e6)}
RANGES |= {"rho": (0.5, 1e3), "start": (-1e3, 1e3), "end": (-1e3, 1e3)}
RANGES |= dict.fromkeys(("log_snr_min", "log_snr_max"), (-math.inf, math.inf))

ORDERED = {"sigma_min": "sigma_max", "log_snr_min": "log_snr_max", "start": "end"}  # each below the other


def definition(example):
    """Enrols a schedule under its function's name; `example` is a spec that uses it."""

    def enrol(function):
        spec.check_new(DEFINITIONS, function)
        DEFINITIONS[function.__name__] = function
        EXAMPLES[function.__name__] = example
        return function

    return enrol


# -- schedules given by their betas


@definition("linear")
def linear(u, beta_min=0.1, beta_max=20.0):
    """beta linear in u: the continuous limit of DDPM's (Ho et al. 2020; Song et al. 2021). Terminal SNR 4.3e-5."""
    return _from_integral(u * (beta_min + (beta_max - beta_min) * u / 2))


@definition("scaled_linear")
def scaled_linear(u, beta_min=0.85, beta_max=12.0):
    """sqrt(beta) linear in u: Stable Diffusion (Rombach et al. 2022). Terminal SNR 0.0047: it leaks."""
    root = math.sqrt(beta_min)
    slope = math.sqrt(beta_max) - root
    return _from_integral(u * (root * root + u * slope * (root + u * slope / 3)))


@definition("quadratic")
def quadratic(u, beta_min=0.1, beta_max=20.0):
    """beta = beta_min + u^2 (beta_max - beta_min). Not the sqrt-linear one, which some code calls "quad"."""
    return _from_integral(u * (beta_min + (beta_max - beta_min) * u * u / 3))


@definition("constant")
def constant(u, beta=10.0):
    """beta constant: the flawed baseline, which destroys most of the image early and still ends at SNR e^-10."""
    return _from_integral(u * beta)


# -- schedules given by alpha_bar or log-SNR


@definition("cosine")
def cosine(u, s=0.008):
    """alpha_bar = cos^2((u + s)/(1 + s) pi/2), normalised to 1 at u = 0 (Nichol & Dhariwal 2021). Ends at exactly 0.

    Its log-SNR is close to -2 log tan(pi u / 2): steep at both ends, not near uniform as is often said.
    """
    quarter = jnp.pi / 2 / (1 + s)
    # cos^2 a - cos^2 b = sin(b - a) sin(b + a) keeps 1 - alpha_bar exact near u = 0, and cos = sin(pi/2 - ..) alpha_bar near 1
    return 2 * jnp.log(jnp.sin((1 - u) * quarter)) - jnp.log(jnp.sin(u * quarter)) - jnp.log(jnp.sin((u + 2 * s) * quarter))


@definition("sigmoid")
def sigmoid(u, start=-3.0, end=3.0, tau=1.0):
    """alpha_bar = (S(end/tau) - S(w/tau)) / (S(end/tau) - S(start/tau)), w = start + u (end - start), S the logistic.

    Jabri et al. 2022; Chen 2023. Normalised, so alpha_bar runs from 1 to exactly 0 and log-SNR is *not* linear. Two other
    schedules go by this name: S(a - 2 a u) without the normalisation is exactly linear log-SNR and, with a = 3, leaks badly
    (terminal SNR e^-3); S(-a + 2 a u) rises with u, which is a sign error.
    """
    span = (end - start) / tau
    # S(a) - S(b) = sinh((a - b)/2) / (2 cosh(a/2) cosh(b/2)); the factor cosh(w/2) cancels between signal and noise
    return (
        _log_sinh((1 - u) * span / 2)
        - _log_cosh(jnp.asarray(end / tau / 2, u.dtype))
        - _log_sinh(u * span / 2)
        + _log_cosh(jnp.asarray(start / tau / 2, u.dtype))
    )


@definition("uniform_log_snr")
def uniform_log_snr(u, log_snr_max=13.3, log_snr_min=-5.0):
    """log-SNR linear in u; the defaults are the ends of Kingma et al. 2021 (whose terminal SNR, e^-5, leaks).

    So sigma_ve = exp(-log_snr / 2) is geometric in u, as in the variance-exploding process of Song et al. 2021.
    """
    return log_snr_max * (1 - u) + log_snr_min * u


@definition("karras")
def karras(u, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    """sigma_ve^(1/rho) linear in u, log_snr = -2 log sigma_ve: EDM's sampling grid (Karras et al. 2022, eq. 5).

    The variance-exploding process y = x + sigma_ve eps has SNR 1 / sigma_ve^2, above 0 at every finite sigma_max; a larger one
    only leaks less. Scaled to unit variance, as every process is here, z = y / sqrt(1 + sigma_ve^2) = alpha x + sigma eps,
    the same curve can end at SNR 0, because alpha = 0 and sigma = 1 are plain numbers: `zero_terminal(karras)`.
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return -2 * rho * jnp.log(low * (1 - u) + high * u)


@definition("flow")
def flow(u, shift=1.0):
    """log_snr = 2 log((1 - u)/u) - 2 log(shift): rectified flow (Lipman et al. 2023), shifted as in Esser et al. 2024.

    The path (1 - u) x + u eps, divided by sqrt((1 - u)^2 + u^2) to preserve variance.
    """
    return 2 * (jnp.log1p(-u) - jnp.log(u)) - 2 * math.log(shift)


@definition("piecewise([12, 4, 0, -4, -12])")
def piecewise(u, log_snrs):
    """Monotone cubic (PCHIP) interpolation of log-SNRs at equally spaced u, the first at u = 0: custom or learned schedules.

    `log_snrs`: a decreasing list of finite numbers, or the path of a file that holds one (.npy, or text). The file is read
    once: the schedule prints, and is stored, with its numbers.
    """
    coefficients = _pchip(log_snrs)  # [4, n - 1]
    intervals = coefficients.shape[1]
    index = jnp.clip(jnp.floor(u * intervals).astype(jnp.int32), 0, intervals - 1)
    offset = u * intervals - index
    c3, c2, c1, c0 = (jnp.asarray(c, u.dtype)[index] for c in coefficients)
    return ((c3 * offset + c2) * offset + c1) * offset + c0


# -- training densities: u is the cumulative distribution of the noise level, so that uniform u draws log-SNR from it


@definition("log_normal")
def log_normal(u, mean=2.4, std=2.4):
    """log-SNR normal with that mean and std. The defaults are EDM's: log sigma_ve ~ N(-1.2, 1.2^2) (Karras et al. 2022)."""
    return mean - std * ndtri(u)


@definition("logit_normal")
def logit_normal(u, mean=0.0, std=1.0):
    """The time of a rectified flow has a logit normal with that mean and std (Esser et al. 2024); log_snr = -2 logit."""
    return -2 * (mean + std * ndtri(u))


@definition("laplace")
def laplace(u, mean=0.0, scale=0.5):
    """log-SNR Laplace-distributed (Hang et al. 2024)."""
    near, sign = _nearer_end(u)
    return mean - scale * sign * jnp.log(2 * near)


@definition("cauchy")
def cauchy(u, location=0.0, scale=1.0):
    """log-SNR Cauchy-distributed (Hang et al. 2024): heavy tails at both ends."""
    near, sign = _nearer_end(u)
    return location + scale * sign / jnp.tan(jnp.pi * near)


# -- the parts


def _from_integral(integral):
    """log-SNR = -log(expm1(I)), in a form that neither overflows nor cancels."""
    return -integral - jnp.log(-jnp.expm1(-integral))


def _nearer_end(u):
    """Distance to the nearer end, and +1 if that is 0, -1 if it is 1: so symmetric densities keep their digits in both tails."""
    return jnp.where(u < 0.5, u, 1 - u), jnp.where(u < 0.5, 1.0, -1.0).astype(u.dtype)


def _log_sinh(y):
    return y + jnp.log(-jnp.expm1(-2 * y)) - math.log(2)


def _log_cosh(y):
    return jnp.abs(y) + jnp.log1p(jnp.exp(-2 * jnp.abs(y))) - math.log(2)


@functools.lru_cache(maxsize=64)
def _pchip(log_snrs):
    from scipy.interpolate import PchipInterpolator

    listed = isinstance(log_snrs, tuple) and all(isinstance(value, int | float) and abs(value) < 1e9 for value in log_snrs)
    if not listed or len(log_snrs) < 2:
        raise ValueError("piecewise takes a list of two or more finite log-SNRs, the cleanest first")
    values = np.array(log_snrs, np.float64)
    return PchipInterpolator(np.arange(len(values)), values).c
