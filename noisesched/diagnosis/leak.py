"""What a noise level still shows of the image: how well a linear read-out of z recovers the image's mean.

The mean over the d = H W pixels of a channel of z = alpha x + sigma eps is alpha m + (sigma / sqrt(d)) n, with m the mean of
the image's channel and n standard normal: averaging keeps the image's mean and divides the noise. The best line from it to m
explains of the variance of m the share

    R^2 = alpha^2 Var(m) / (alpha^2 Var(m) + sigma^2 / d) = sigmoid(log_snr + log(d Var(m)))

so the mean is seen at a log-SNR higher by log(d Var(m)), and every doubling of the side shows it 2 log 2 more clearly: the
shift that Hoogeboom et al. 2023 (sec. 2.1) give larger images. Offset noise has 1/d + noise_offset^2 in place of 1/d.

Sampling starts from pure noise, which has no image's mean (Lin et al. 2023, sec. 3.1). Where m is normal, an exact deterministic
sampler that starts so, at a level of some R^2, makes images whose mean is drawn to mid-grey (0) by sqrt(R^2) of the way, with
(1 - R^2) / sigma^2 of its variance; DDPM's ancestral sampler by R^2 of the way.
"""

import numpy as np

from noisesched import diffusion
from noisesched.runtime import pictures

BATCH = 2**22  # values that are noised at once


def read_out(log_snr, variance, dimensions, noise_offset=0.0):
    """R^2 in [0, 1], float64, at the levels `log_snr` (any array, -inf included): exactly 0 at SNR = 0.

    `variance`: Var(m) of images in [-1, 1], at least 0; `dimensions`: d = H W, the pixels of a channel; `noise_offset`: of the
    noise, `objective.noise`.
    """
    dimensions = 1 / (1 / dimensions + noise_offset**2)
    with np.errstate(divide="ignore"):
        seen_at = np.asarray(log_snr, np.float64) + np.log(np.float64(variance) * dimensions)
    return np.exp(-np.logaddexp(0.0, -seen_at))


def mean_variance(images):
    """Var(m) of uint8 images [n, H, W, C], scaled to [-1, 1]: over the images, averaged over the channels."""
    return float(pictures.scale(images).mean(axis=(1, 2), dtype=np.float64).var(axis=0).mean())


def measured(images, log_snr, noises=1, seed=0, noise_offset=0.0):
    """(R^2, its standard error) on uint8 images [n, H, W, C], n at least 4, noised `noises` times each at the level `log_snr`.

    A line from the mean of a channel of z to that of x, with one slope for all channels, is fitted on every other image and
    tried on the rest, and the reverse: no image is judged by a line that it helped to fit. Where nothing is to be read, R^2 is
    0 within its error, and may be negative. The error is over the images. (0, 0) if all images have the same mean.
    """
    rng, size = np.random.default_rng(seed), max(BATCH // images[0].size, 1)
    truth, read = [], []
    for first in range(0, len(images), size):
        x = pictures.scale(images[first : first + size])
        truth.append(x.mean(axis=(1, 2), dtype=np.float64))
        draws = []
        for _ in range(noises):
            eps = rng.standard_normal(x.shape, np.float32)
            eps += noise_offset * rng.standard_normal((len(x), 1, 1, x.shape[3]), np.float32) if noise_offset else 0
            z = np.asarray(diffusion.add_noise(x, eps, np.full(len(x), log_snr, np.float32)))
            draws.append(z.mean(axis=(1, 2), dtype=np.float64))
        read.append(np.stack(draws, axis=1))
    truth, read = np.concatenate(truth)[:, None], np.concatenate(read)  # [n, 1, C], [n, noises, C]

    errors, spread = np.empty(len(images)), np.empty(len(images))
    for half in (0, 1):
        fit, rest = slice(1 - half, None, 2), slice(half, None, 2)
        centre, offset = truth[fit].mean(axis=(0, 1)), read[fit].mean(axis=(0, 1))
        slope = ((read[fit] - offset) * (truth[fit] - centre)).sum() / np.square(read[fit] - offset).sum()
        errors[rest] = np.square(truth[rest] - centre - slope * (read[rest] - offset)).mean(axis=1).sum(axis=1)
        spread[rest] = np.square(truth[rest] - centre).mean(axis=1).sum(axis=1)
    if not spread.sum():
        return 0.0, 0.0
    missed = errors.sum() / spread.sum()
    return float(1 - missed), float(np.sqrt(np.square(errors - missed * spread).sum()) / spread.sum())
