"""The variance-preserving diffusion process, with everything derived from log-SNR.

    z = alpha x + sigma eps,   alpha^2 + sigma^2 = 1,   log_snr = log(alpha^2 / sigma^2)

`log_snr` is any array that broadcasts against the images from the left: `[B]` against `[B, H, W, C]`. Every function is
exact at log-SNR = -inf (alpha = 0: pure noise) and at +inf (sigma = 0: clean), and safe in float32 from -inf to +30.

A network may predict the image x, the noise eps, or v = alpha eps - sigma x (Salimans & Ho 2022, appendix D). For the same
estimate the three squared errors differ by a factor that depends on log-SNR alone:

    |eps error|^2 = SNR |x error|^2          |v error|^2 = (SNR + 1) |x error|^2

so a loss weight means nothing until one says which error it acts on.

A variance-*exploding* process, y = x + sigma_ve eps, is this one divided by alpha: sigma_ve^2 = 1 / SNR. It cannot have
SNR = 0 at any finite sigma_ve; the variance-preserving process can, at alpha = 0.
"""

import jax
import jax.numpy as jnp

PREDICTIONS = ("eps", "x", "v")


def alpha(log_snr):
    """Signal scale sqrt(sigmoid(log_snr)), in [0, 1]. Never sqrt(1 - sigma^2), which loses a small alpha.

    Computed through the logarithm, because the root of an underflowed sigmoid has no finite gradient.
    """
    return jnp.exp(0.5 * jax.nn.log_sigmoid(_real(log_snr)))


def sigma(log_snr):
    """Noise scale sqrt(sigmoid(-log_snr)), in [0, 1]."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(-_real(log_snr)))


def snr(log_snr):
    """Signal-to-noise ratio alpha^2 / sigma^2 = exp(log_snr), in [0, inf]."""
    return jnp.exp(_real(log_snr))


def alpha_bar(log_snr):
    """DDPM's cumulative product: alpha^2 = sigmoid(log_snr), in [0, 1]."""
    return jax.nn.sigmoid(_real(log_snr))


def log_snr_from_alpha_bar(alpha_bar):
    """The log-SNR of a given alpha_bar in [0, 1]: its logit; 0 -> -inf, 1 -> +inf."""
    alpha_bar = _real(alpha_bar)
    return jnp.log(alpha_bar) - jnp.log1p(-alpha_bar)


def betas(log_snrs):
    """Per-step noise variances of a discrete process, from its levels ordered cleanest first.

    `log_snrs` [T], non-increasing -> beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}, [T] in [0, 1], with alpha_bar_0 = 1
    (Ho et al. 2020, eq. 4). The ratio is taken between logarithms, so small betas keep their digits.
    """
    log_alpha_bar = jax.nn.log_sigmoid(_real(log_snrs))
    before = jnp.concatenate([jnp.zeros_like(log_alpha_bar[:1]), log_alpha_bar[:-1]])
    return -jnp.expm1(log_alpha_bar - before)


def like(log_snr, z):
    """`log_snr` [B] with trailing axes of length 1 added, so that it broadcasts against `z` [B, ...]."""
    log_snr = _real(log_snr)
    return log_snr.reshape(log_snr.shape + (1,) * (jnp.ndim(z) - log_snr.ndim))


def add_noise(x, eps, log_snr):
    """Noisy image z = alpha x + sigma eps at the given level: a draw from q(z | x) for standard normal eps."""
    log_snr = like(log_snr, x)
    return alpha(log_snr) * x + sigma(log_snr) * eps


def more_noise(z, eps, log_snr, lower):
    """Carries `z` forward from level `log_snr` to the noisier level `lower`: a draw from q(z_lower | z).

    Mean (alpha'/alpha) z and variance 1 - (alpha'/alpha)^2, for standard normal eps (Kingma et al. 2021, appendix A.1).
    """
    log_snr, lower = like(log_snr, z), like(lower, z)
    # log (alpha'/alpha)^2 <= 0. Both terms are -inf only if z is pure noise already, and then z is kept.
    log_ratio = jnp.where(jnp.isneginf(log_snr), 0.0, jax.nn.log_sigmoid(lower) - jax.nn.log_sigmoid(log_snr))
    return jnp.exp(0.5 * log_ratio) * z + jnp.sqrt(-jnp.expm1(log_ratio)) * eps


def v_from(x, eps, log_snr):
    """v = alpha eps - sigma x: the training target of v-prediction. At SNR = 0 it is -x, at sigma = 0 it is eps."""
    log_snr = like(log_snr, x)
    return alpha(log_snr) * eps - sigma(log_snr) * x


def target(prediction, x, eps, log_snr):
    """What a network of that prediction kind ("eps", "x" or "v") should output for z = alpha x + sigma eps."""
    return {"eps": lambda: eps, "x": lambda: x, "v": lambda: v_from(x, eps, log_snr)}[prediction]()


def x_from(prediction, output, z, log_snr):
    """Estimate of x from a network's raw output of the given prediction kind.

    From v and x it is finite at every level. From eps, x = (z - sigma eps) / alpha amplifies errors at low SNR and is undefined
    at SNR = 0, where z is the very noise that the network is asked for.
    """
    log_snr = like(log_snr, z)
    if prediction == "eps":
        return (z - sigma(log_snr) * output) / alpha(log_snr)
    if prediction == "v":
        return alpha(log_snr) * z - sigma(log_snr) * output
    return output


def eps_from(x, z, log_snr):
    """The noise that an estimate of x implies: eps = (z - alpha x) / sigma; 0 at sigma = 0, where z holds no noise."""
    log_snr = like(log_snr, z)
    scale = sigma(log_snr)
    return jnp.where(scale > 0, (z - alpha(log_snr) * x) / jnp.where(scale > 0, scale, 1.0), 0.0)


def _real(values):
    """As an array of at least float32; whole numbers too."""
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
