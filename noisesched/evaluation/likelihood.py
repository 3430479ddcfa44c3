"""How many bits a denoiser needs for an image: the variational bound, and its loss at every level.

A diffusion model bounds the code length of an image by three terms (Kingma et al. 2021, VDM, eq. 11):

    prior           the image's remains at the noisiest level, relative to N(0, I)
    diffusion       1/2 E||x - x_hat||^2, integrated over the SNR from the noisiest level to the cleanest
    reconstruction  which of the 256 grey levels each pixel has, decoded at the cleanest level

Written in log-SNR, the diffusion term in continuous time is 1/2 the integral of the *eps* error SNR ||x - x_hat||^2: it depends
on a schedule only through its two ends. Only the diffusion term needs the network; the other two are computed exactly.

A `Path` is the levels that a bound visits, with their weights: `continuous` draws them by a schedule's density, `discrete` takes
the N levels of an inference schedule. A `Plan` holds drawn levels; `bound` and `profile` turn the network's errors there into
numbers. Everything but the network's own arithmetic is float64 on the host. Bits are per dimension.
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from noisesched import diffusion, schedules
from noisesched.runtime import pictures

GREY_LEVELS = 256
LOG_SNR_MIN = -12.0  # makes the prior term less than 1e-5 bits
LOG_SNR_MAX = 13.3  # VDM's: two grey levels are 6 standard deviations of the noise apart, and decoding them costs 0.01 bits
RESOLUTION = 0.05  # in log-SNR, of the levels that the best are chosen from


class Path(typing.NamedTuple):
    """The levels of a bound, as a function of a position in [0, 1)."""

    log_snr_min: float  # may be -inf in a discrete path
    log_snr_max: float
    locate: typing.Callable  # position -> (log_snr, weight): the diffusion term is the mean of weight * ||x - x_hat||^2, in nats


class Plan(typing.NamedTuple):
    """The levels of K draws for each of n images, and the weight of the squared error there: both float64 [n, K]."""

    log_snr: np.ndarray
    weight: np.ndarray


@dataclasses.dataclass(frozen=True)
class Bound:
    """Bits per dimension, the mean over the images; `value` is the sum of the three terms.

    std_error         the standard deviation over seeds, for these images
    std_error_images  the standard deviation over sets of images and seeds
    """

    value: float
    std_error: float
    std_error_images: float
    diffusion: float
    prior: float
    reconstruction: float
    log_snr_min: float
    log_snr_max: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """Mean squared errors per dimension against log-SNR, [L] each, with standard errors over the images.

    `bits_per_dim`: the integral of the eps error, which is the diffusion term between the first level and the last; its standard
    error is over seeds.
    """

    log_snr: np.ndarray
    eps: np.ndarray
    eps_std_error: np.ndarray
    x: np.ndarray
    x_std_error: np.ndarray
    v: np.ndarray
    v_std_error: np.ndarray
    bits_per_dim: float
    bits_per_dim_std_error: float


# -- which levels


def continuous(schedule):
    """The path in continuous time between a schedule's two ends, with levels drawn as training under it would draw them.

    The bound is the same for every schedule with these ends (VDM, sec. 5.1); only the error of its estimate differs. `schedule`:
    a schedule or its spec. ValueError for one with an infinite end, or a table.
    """
    schedule = schedules.make(schedule)
    with jax.enable_x64(True):
        low, high = (float(schedule(np.float64(u))) for u in (1.0, 0.0))
    if schedule.table:
        raise ValueError(f"schedule {str(schedule)!r}: a table has no density to draw levels by; give its continuous curve")
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(
            f"schedule {str(schedule)!r}: a bound needs finite ends, these are {low:g} and {high:g}; give "
            f"'truncated({schedule}, log_snr_min={LOG_SNR_MIN:g}, log_snr_max={LOG_SNR_MAX:g})'"
        )

    def locate(position):
        with jax.enable_x64(True):
            log_snr, rate = np.asarray(schedule(position)), np.asarray(schedules.rate(schedule, position))
        return log_snr, 0.5 * np.exp(log_snr) * rate

    return Path(low, high, locate)


def discrete(log_snrs):
    """The path of N steps between the N + 1 levels `log_snrs`, increasing; the first may be -inf (VDM, eq. 14).

    The network is called at the first N; at the last, the image is decoded. The diffusion term is the sum over steps of
    1/2 (SNR_next - SNR) E||x - x_hat||^2: the left Riemann sum, in SNR, of the continuous term, and larger than that for a
    denoiser whose error falls as SNR rises. Half of the draws are uniform over steps, half follow the steps' weights for
    normally distributed pixels.
    """
    log_snrs = np.asarray(log_snrs, np.float64)
    if log_snrs.ndim != 1 or len(log_snrs) < 2 or not (np.diff(log_snrs) > 0).all() or not math.isfinite(log_snrs[-1]):
        raise ValueError(
            f"a path takes 2 or more log-SNRs, strictly increasing to a finite one; got {np.shape(log_snrs)}: "
            f"{np.array2string(log_snrs, threshold=6, precision=4, max_line_width=200)}"
        )
    snr = np.exp(log_snrs)
    gain = np.diff(snr)
    normal = gain / (1 + snr[:-1])  # normal x of variance 1 has error 1 / (1 + SNR)
    probability = 0.5 / len(gain) + 0.5 * normal / normal.sum()
    ends = np.cumsum(probability)

    def locate(position):
        step = np.minimum(np.searchsorted(ends, position, side="right"), len(gain) - 1)
        return log_snrs[step], 0.5 * gain[step] / probability[step]

    return Path(float(log_snrs[0]), float(log_snrs[-1]), locate)


def plan(path, seed, index, noises):
    """The `Plan` [n, noises] of draws for the images numbered `index` [n] in the data set.

    Each image has two draws in each of noises / 2 equal parts of the path: covering the path evenly removes most of the error,
    and the two draws of a part give an unbiased estimate of the rest. Draw k of an image depends on (seed, its number, k).
    """
    if noises < 2 or noises % 2:
        raise ValueError(f"noises={noises}: draws come in pairs, which give the error; give an even number, 2 or more")
    within = np.stack([np.random.default_rng((seed, int(i))).random(noises) for i in index])
    log_snr, weight = path.locate((np.arange(noises) // 2 + within) / (noises // 2))
    return Plan(log_snr, weight)


def end_of(log_snr):
    """A good end for a discrete path whose last network call is at `log_snr`.

    Its SNR is higher by 1 / (the mean squared error of x), which is 1 / (1 + SNR) for normally distributed pixels, so that little
    is left to decode. A jump to LOG_SNR_MAX could cost hundreds of bits.
    """
    return np.log1p(2 * np.exp(log_snr))


def best_levels(log_snrs, x, prior_bits, decoding_bits, n):
    """The n of the levels `log_snrs` [L] (increasing) with the lowest bound in discrete time, by dynamic programming: [n].

    x              mean squared errors of x at these levels, [L]: a profile's
    prior_bits     the prior term of a path that begins there, in bits per dimension, [L]
    decoding_bits  the reconstruction term of a path that ends at `end_of` them, [L]

    The bound is a sum over steps of 1/2 (SNR_next - SNR) x (VDM, eq. 14), so the best path to a level is the best path to some
    earlier level and one step more (Watson et al. 2021 choose timesteps in this way).
    """
    if not 1 <= n <= len(log_snrs):
        raise ValueError(f"cannot choose {n} of {len(log_snrs)} levels")
    snr, slope = np.exp(log_snrs), np.asarray(x) / (2 * math.log(2))
    step = np.where(snr[None] > snr[:, None], (snr[None] - snr[:, None]) * slope[:, None], np.inf)  # [from, to]
    cost, before = np.asarray(prior_bits, np.float64), []
    for _ in range(n - 1):
        ways = cost[:, None] + step
        before.append(ways.argmin(axis=0))
        cost = ways.min(axis=0)
    chosen = [int(np.argmin(cost + (np.exp(end_of(log_snrs)) - snr) * slope + decoding_bits))]
    for came_from in reversed(before):
        chosen.append(int(came_from[chosen[-1]]))
    return np.asarray(log_snrs)[chosen[::-1]]


def candidates(log_snr_min, log_snr_max):
    """The levels that the best are chosen from, [L]: between the ends of a profile, `RESOLUTION` apart. L may be 0."""
    high = min(log_snr_max, LOG_SNR_MAX - 1.5)  # since a path ends a little beyond its last level
    return np.linspace(log_snr_min, high, max(1 + round((high - log_snr_min) / RESOLUTION), 0))


def best_schedule(log_snrs, x, images, n):
    """The n levels with the lowest bound in discrete time, for the schedule `piecewise`: [n + 1], cleanest first.

    The first one is the end of the path. `log_snrs`, `x`: a profile's, [L]; `images`: uint8 [N, ...]. ValueError if n is too
    large.
    """
    among, bit = candidates(log_snrs[0], log_snrs[-1]), math.log(2) * math.prod(images.shape[1:])
    prior_bits = [float(prior(images, level).mean()) / bit for level in among]
    ends = np.arange(0.0, end_of(among[-1]) + 0.5, 0.5)
    decoding_bits = np.interp(end_of(among), ends, [float(reconstruction(images, level).mean()) / bit for level in ends])
    chosen = best_levels(among, np.exp(np.interp(among, log_snrs, np.log(x))), prior_bits, decoding_bits, n)
    return np.concatenate([end_of(chosen[-1:]), chosen[::-1]])


# -- the network's errors


def estimates(denoise, seed, x, index, draw, log_snr):
    """(x_hat [B, ...], ||x - x_hat||^2 [B], summed over dimensions), float32; jittable.

    denoise(z, log_snr [B]) -> x_hat; x [B, ...] in [-1, 1]; `index` and `draw` [B]: the numbers of the image and of its draw.
    The noise is a function of (seed, index, draw) alone: not of the batch, the device or the level.
    """
    keys = jax.vmap(lambda i, k: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), i), k))(index, draw)
    eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    x_hat = denoise(diffusion.add_noise(x, eps, log_snr), log_snr)
    return x_hat, jnp.square(x - x_hat).sum(axis=tuple(range(1, x.ndim)))


# -- the two terms without the network


def prior(images, log_snr_min):
    """KL(q(z | x) || N(0, I)) at the noisiest level, in nats, [n], for uint8 images [n, ...]. 0 at -inf."""
    x = pictures.scale(images.reshape(len(images), -1), np.float64)
    alpha_bar = math.exp(-np.logaddexp(0.0, -log_snr_min))
    return 0.5 * (alpha_bar * (x**2 - 1) + np.logaddexp(0.0, log_snr_min)).sum(axis=1)


def reconstruction(images, log_snr_max):
    """E -log p(x | z) at the cleanest level, in nats, [n], for uint8 images [n, ...].

    Each pixel is decoded by itself: p(x | z) is proportional to q(z | x) over the 256 grey levels, -1 to 1 in steps of 2/255
    (VDM, eq. 12 ff.). The cost depends on the grey level and the noise alone, so its mean over the noise is an integral, computed
    here by the trapezoidal rule (which converges exponentially). The decoder does not know that a data set may use few grey
    levels (the digits 17): the network has to learn that.
    """
    return decoding_cost(log_snr_max)[images.reshape(len(images), -1)].sum(axis=1)


@functools.lru_cache(maxsize=64)
def decoding_cost(log_snr_max):
    """The expected nats for decoding a pixel, for each true grey level: [256]."""
    spacing = 2 / (GREY_LEVELS - 1) * math.exp(0.5 * log_snr_max)  # in standard deviations of the noise
    eps = np.linspace(-9.0, 9.0, 361)
    density = np.exp(-0.5 * eps**2)
    density /= density.sum()
    cost = np.empty(GREY_LEVELS // 2)
    for level in range(len(cost)):
        away = spacing * (np.arange(GREY_LEVELS) - level)
        logits = eps[:, None] * away - 0.5 * away**2  # of each grey level, relative to the true one
        most = logits.max(axis=1)
        cost[level] = density @ (most + np.log(np.exp(logits - most[:, None]).sum(axis=1)))
    return np.concatenate([cost, cost[::-1]])  # white costs what black does


# -- numbers


def bound(path, drawn, errors, images):
    """The `Bound` of uint8 `images` [n, ...], from the squared `errors` [n, K] at the levels `drawn`, a `Plan`."""
    bit = math.log(2) * math.prod(images.shape[1:])
    n, draws = errors.shape
    parts = drawn.weight * np.asarray(errors, np.float64) / bit
    terms = parts.mean(axis=1), prior(images, path.log_snr_min) / bit, reconstruction(images, path.log_snr_max) / bit
    # Of a pair of draws a, b the variance of a + b is E (a - b)^2.
    pairs = parts.reshape(n, draws // 2, 2)
    std_error = math.sqrt(np.square(pairs[..., 0] - pairs[..., 1]).sum()) / parts.size
    means = [float(term.mean()) for term in terms]
    over_images = float(sum(terms).std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Bound(sum(means), std_error, over_images, *means, path.log_snr_min, path.log_snr_max)


def diffusion_outside(drawn, errors, images, low, high):
    """The bits of the diffusion term from levels noisier than `low`, and from levels cleaner than `high`."""
    parts = drawn.weight * np.asarray(errors, np.float64) / (math.log(2) * math.prod(images.shape[1:]))
    return float((parts * (drawn.log_snr < low)).mean()), float((parts * (drawn.log_snr > high)).mean())


def profile(log_snrs, errors, dimensions):
    """The `Profile` from the squared errors [n, L, K] of n images at evenly spaced, finite levels `log_snrs` [L], with K >= 2.

    The noise must be independent at every level: then the integral averages over it, and its error follows from the K draws. The
    three errors are one error rescaled: the eps error is SNR times the x error, the v error SNR + 1 times.
    """
    from scipy import integrate

    n, count, noises = errors.shape
    log_snrs, errors = np.asarray(log_snrs, np.float64), np.asarray(errors, np.float64) / dimensions
    snr = np.exp(log_snrs)
    weight = integrate.simpson(np.eye(count), x=log_snrs) * snr / (2 * math.log(2))
    noise = errors.var(axis=2, ddof=1).sum(axis=0) / (noises * n**2)  # variance of each level's mean
    each = errors.mean(axis=2)  # [n, L]
    x, x_std_error = each.mean(axis=0), each.std(axis=0, ddof=1) / math.sqrt(n)
    return Profile(
        log_snrs,
        snr * x,
        snr * x_std_error,
        x,
        x_std_error,
        (snr + 1) * x,
        (snr + 1) * x_std_error,
        float(weight @ x),
        math.sqrt(weight**2 @ noise),
    )
