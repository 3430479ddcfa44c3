"""The training loss: a weighted squared error at levels drawn by a schedule.

A weighting is written once, as the logarithm of its weight W on the *x* error. On the error of an eps-network that is W / SNR, on
that of a v-network W / (SNR + 1); the logarithms are subtracted, so nothing is ever computed as 0/0. To add one, write its
function below and put `@weighting` over it: that enrols it in the configs and the tests.

What popular texts get wrong: a weight means nothing without the error it acts on. min-SNR is min(SNR, gamma) on x, which is
min(1, gamma / SNR) on eps and min(SNR, gamma) / (SNR + 1) on v; P2's 1 / (k + SNR)^gamma multiplies the eps error. Weights
that vanish at SNR = 0 on the v error (eps, min-SNR, P2, the likelihood's) undo zero-terminal training exactly where it
matters: the network gets no gradient there.
"""

import dataclasses
import inspect
import math
import typing

import jax
import jax.numpy as jnp

from noisesched import diffusion, schedules, spec

WEIGHTINGS = {}  # name -> function(log_snr, rate, **parameters) -> log of the weight on the x error
RANGES = dict.fromkeys(("gamma", "k", "sigma_data"), (1e-9, 1e9))  # (lowest, highest) of parameters by name


def weighting(function):
    """Enrols a weighting under its function's name."""
    spec.check_new(WEIGHTINGS, function)
    WEIGHTINGS[function.__name__] = function
    return function


@weighting
def eps(log_snr, rate):
    """Plain squared error of eps: DDPM's "simple" loss (Ho et al. 2020, eq. 14). Weight SNR on x."""
    return log_snr


@weighting
def x(log_snr, rate):
    """Plain squared error of x."""
    return jnp.zeros_like(log_snr)


@weighting
def v(log_snr, rate):
    """Plain squared error of v: SNR + 1 on x (Salimans & Ho 2022). Does not vanish at SNR = 0."""
    return jnp.logaddexp(log_snr, 0.0)


@weighting
def vlb(log_snr, rate):
    """The variational bound, whichever schedule draws the levels: SNR |d log_snr / du| / 2 on x (Kingma et al. 2021, eq. 17)."""
    return log_snr + jnp.log(rate / 2)


@weighting
def min_snr(log_snr, rate, gamma=5.0):
    """min(SNR, gamma) on x (Hang et al. 2023)."""
    return jnp.minimum(log_snr, math.log(gamma))


@weighting
def soft_min_snr(log_snr, rate, gamma=4.0):
    """SNR gamma / (SNR + gamma) on x, min-SNR without its kink (Crowson et al. 2024, sec. 3.4; gamma = 1 / sigma_data^2)."""
    return -jnp.logaddexp(-log_snr, -math.log(gamma))


@weighting
def debiased(log_snr, rate):
    """sqrt(SNR) on x, 1 / sqrt(SNR) on eps (Yu et al. 2023, "Debias the training of diffusion models", eq. 12)."""
    return log_snr / 2


@weighting
def p2(log_snr, rate, k=1.0, gamma=1.0):
    """1 / (k + SNR)^gamma on the eps error (Choi et al. 2022)."""
    return log_snr - gamma * jnp.logaddexp(log_snr, math.log(k))


@weighting
def edm(log_snr, rate, sigma_data=0.5):
    """(sigma_ve^2 + sigma_data^2) / (sigma_ve sigma_data)^2 = SNR + 1 / sigma_data^2 on x (Karras et al. 2022, table 1)."""
    return jnp.logaddexp(log_snr, -2 * math.log(sigma_data))


@weighting
def sigmoid(log_snr, rate, bias=2.0):
    """The bound weighted by sigmoid(bias - log_snr), per unit of log-SNR (Kingma & Gao 2023, sec. 6; Hoogeboom et al. 2024)."""
    return vlb(log_snr, rate) + jax.nn.log_sigmoid(bias - log_snr)


@weighting
def uncertain(log_snr, rate, weighting="v"):
    """Any weighting divided by exp(u), with u(log_snr) learned beside the network: the loss w |error|^2 / exp(u) + u (Karras et
    al. 2024, eq. 15). It is least at exp(u) = the mean weighted error of a level, so that all levels come to count alike."""
    return make_weighting(weighting)(log_snr, rate)


@dataclasses.dataclass(frozen=True)
class Weighting:
    """A callable (log_snr, rate) -> log of the weight on the x error, arrays of one shape. Hashable, and prints as its spec."""

    call: spec.Call

    @property
    def learned(self):
        """Whether it needs a network that holds an `uncertainty` of its loss."""
        return self.call.name == "uncertain"

    def __call__(self, log_snr, rate):
        return WEIGHTINGS[self.call.name](log_snr, rate, *self.call.args, **dict(self.call.kwargs))

    def __str__(self):
        return str(self.call)

    __repr__ = __str__


def make_weighting(text):
    """The Weighting of a spec such as "min_snr(gamma=5)". A Weighting is returned as it is; ValueError if unknown."""
    if isinstance(text, Weighting):
        return text
    call = text if isinstance(text, spec.Call) else spec.parse(text)
    function = spec.bind(call, WEIGHTINGS, "weighting", skip=2)
    shown = spec.shortened(str(call), 80)
    names = list(inspect.signature(function).parameters)[2:]
    for name, value in [*zip(names, call.args, strict=False), *call.kwargs]:
        if call.name == "uncertain":
            if make_weighting(value).learned:
                raise ValueError(f"weighting {shown!r}: what is learned already cannot be learned again")
        else:
            spec.check_number(f"weighting {shown!r}", name, value, *RANGES.get(name, ()))
    made = Weighting(call)
    try:
        with jax.ensure_compile_time_eval():
            weights = made(jnp.array([-30.0, 0.0, 30.0]), jnp.ones(3))
            finite = weights.shape == (3,) and bool(jnp.isfinite(weights).all())
    except Exception as error:  # of a function that is not ours
        raise ValueError(f"weighting {shown!r} fails: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not finite:
        raise ValueError(f"weighting {shown!r} must give the logarithm of a finite weight for each log-SNR")
    return made


def weight(weighting, prediction, log_snr, rate):
    """The weight on the squared error of what the network predicts, [B], finite from log-SNR -inf to +30.

    `weighting`: a `Weighting`. At SNR = 0 the weight is its limit (0 for those like the bound).
    """
    # At -inf the formulas read inf - inf. In floats, all of them reach their limit long before -80.
    level = jnp.maximum(log_snr, -80.0)
    # A schedule that ends at -inf has an infinite rate there (NaN, by differentiation); where one is flat, rounding may make the
    # rate negative.
    rate = jnp.where(jnp.isnan(rate), 1e25, jnp.clip(rate, 0.0, 1e25))
    conversion = {"eps": level, "x": jnp.zeros_like(level), "v": jnp.logaddexp(level, 0.0)}[prediction]
    return jnp.exp(weighting(level, rate) - conversion)


def vanishes_at_zero_snr(weighting):
    """Whether a weighting (or its spec) gives the v error no weight at SNR = 0, so that the network learns nothing there."""
    at_zero = weight(make_weighting(weighting), "v", jnp.array([-jnp.inf]), jnp.ones(1))
    return bool(at_zero[0] < 1e-6)


def trained_range(schedule, num_draws):
    """(lowest, highest) log-SNR that `num_draws` training levels reach: about one of them exceeds the highest."""
    return float(schedule(1.0)), float(schedule(1.0 / num_draws))


class Draw(typing.NamedTuple):
    """The random part of a training example: u in (0, 1], the noise like x, a key for dropout, a number in [0, 1)."""

    u: jax.Array  # [B]
    eps: jax.Array  # [B, H, W, C]
    dropout_keys: jax.Array  # [B]
    label_draw: jax.Array  # [B]


def draw(key, index, batch_size, shape, noise_offset=0.0):
    """The random numbers of the examples at positions `index` [B] in a global batch; `key` is that of (seed, step).

    An example depends on its own position alone, not on how the batch is split. Position i draws u from the i-th of `batch_size`
    equal strata of (0, 1], so that the batch as a whole covers the schedule evenly (Kingma et al. 2021, I.1). `noise_offset`: see
    `noise`.
    """

    def one(i):
        u_key, eps_key, dropout_key, label_key = jax.random.split(jax.random.fold_in(key, i), 4)
        within = jax.random.uniform(u_key)
        u = jnp.maximum(1 - (i + within) / batch_size, 2.0**-24)  # never 0, which rounding could make it
        return Draw(u, noise(eps_key, shape, noise_offset), dropout_key, jax.random.uniform(label_key))

    return jax.vmap(one)(index)


def noise(key, shape, noise_offset=0.0):
    """Standard normal noise [H, W, C], plus `noise_offset` (from 0 up) times one normal number for all pixels of a channel.

    Offset noise (Guttenberg 2023, "Diffusion with offset noise") has covariance I + noise_offset^2 1 1^T. The noise on the mean
    of a channel's d pixels then has variance 1/d + noise_offset^2 instead of 1/d, which drowns the mean at levels that would leak
    it. A network trained with it must sample from it: from plain noise its images are drawn to mid-grey more than without it.
    """
    plain = jax.random.normal(key, shape)
    if not noise_offset:
        return plain
    return plain + noise_offset * jax.random.normal(jax.random.fold_in(key, 1), (1, 1, shape[-1]))  # a key of its own


def errors(denoiser, images, labels, random, schedule, weighting):
    """Per-example training loss [B] and log-SNR [B].

    images [B, H, W, C] in [-1, 1]; labels [B] or None; random: a `Draw`. The loss is the mean over pixels of the squared
    error of what the network predicts, times `weight`; with a learned weighting, divided by exp(u), plus u.
    """
    log_snr = schedule(random.u)
    z = diffusion.add_noise(images, random.eps, log_snr)
    output = denoiser.output(z, log_snr, labels, random.dropout_keys)
    target = diffusion.target(denoiser.prediction, images, random.eps, log_snr)
    error = jnp.square(output - target).mean(axis=tuple(range(1, images.ndim)))
    rate = schedules.rate(schedule, random.u)
    losses = weight(weighting, denoiser.prediction, log_snr, rate) * error
    if weighting.learned:
        uncertainty = denoiser.uncertainty(log_snr)
        losses = losses * jnp.exp(-uncertainty) + uncertainty
    return losses, log_snr
