"""How much a noise level leaks: how well a line from the mean of z predicts the mean of the image.

The mean over the d = H W pixels of a channel of z = alpha x + sigma eps is alpha m + (sigma / sqrt(d)) n, with m the mean of
the image's channel and n standard normal: averaging keeps the image's mean and reduces the noise. The best line from it to m
explains this share of the variance of m:

    R^2 = alpha^2 Var(m) / (alpha^2 Var(m) + sigma^2 / d) = sigmoid(log_snr + log(d Var(m)))

so the mean has a log-SNR higher by log(d Var(m)), and each doubling of the side adds 2 log 2: the shift that Hoogeboom et al.
2023 (sec. 2.1) use for larger images. With offset noise, 1/d is replaced by 1/d + noise_offset^2.

Sampling starts from pure noise, which shows no image's mean (Lin et al. 2023, sec. 3.1). For normal m, an exact deterministic
sampler that starts from it at a level with some R^2 makes images whose mean is drawn to mid-grey (0) by sqrt(R^2) of the way and
has (1 - R^2) / sigma^2 of its variance; DDPM's ancestral sampler draws it by R^2 of the way.
"""

import numpy as np

from noisesched import diffusion
from noisesched.runtime import pictures

BATCH = 2**22  # values per batch of noised images


def r2(log_snr, variance, dimensions, noise_offset=0.0):
    """R^2 in [0, 1], float64, at the levels `log_snr` (any array, -inf included): exactly 0 at SNR 0.

    `variance`: Var(m) of images in [-1, 1], at least 0; `dimensions`: d = H W, the pixels of a channel; `noise_offset`: see
    `loss.noise`.
    """
    dimensions = 1 / (1 / dimensions + noise_offset**2)
    with np.errstate(divide="ignore"):
        seen_at = np.asarray(log_snr, np.float64) + np.log(np.float64(variance) * dimensions)
    return np.exp(-np.logaddexp(0.0, -seen_at))


def mean_variance(images):
    """Var(m) of images [n, H, W, C], uint8 (scaled to [-1, 1]) or floats: the variance over images, averaged over channels."""
    return float(pictures.as_x(images).mean(axis=(1, 2), dtype=np.float64).var(axis=0).mean())


def measured(images, log_snr, noises=1, seed=0, noise_offset=0.0):
    """(R^2, its standard error) on images [n, H, W, C], n at least 4, noised `noises` times each at the level `log_snr`.

    A line from the mean of a channel of z to that of x, with one slope for all channels, is fitted to every other image and
    tested on the rest, and vice versa: no image is predicted by a line fitted to it. Without a leak R^2 is 0 within its error,
    and may be negative. The error is over the images. (0, 0) if all images have the same mean.
    """
    rng, size = np.random.default_rng(seed), max(BATCH // images[0].size, 1)
    truth, seen = [], []
    for first in range(0, len(images), size):
        x = pictures.as_x(images[first : first + size])
        truth.append(x.mean(axis=(1, 2), dtype=np.float64))
        draws = []
        for _ in range(noises):
            eps = rng.standard_normal(x.shape, np.float32)
            eps += noise_offset * rng.standard_normal((len(x), 1, 1, x.shape[3]), np.float32) if noise_offset else 0
            z = np.asarray(diffusion.add_noise(x, eps, np.full(len(x), log_snr, np.float32)))
            draws.append(z.mean(axis=(1, 2), dtype=np.float64))
        seen.append(np.stack(draws, axis=1))
    truth, seen = np.concatenate(truth)[:, None], np.concatenate(seen)  # [n, 1, C], [n, noises, C]

    errors, total = np.empty(len(images)), np.empty(len(images))  # summed squares, of the line and of the mean
    for half in (0, 1):
        fit, rest = slice(1 - half, None, 2), slice(half, None, 2)
        centre, offset = truth[fit].mean(axis=(0, 1)), seen[fit].mean(axis=(0, 1))
        slope = ((seen[fit] - offset) * (truth[fit] - centre)).sum() / np.square(seen[fit] - offset).sum()
        errors[rest] = np.square(truth[rest] - centre - slope * (seen[rest] - offset)).mean(axis=1).sum(axis=1)
        total[rest] = np.square(truth[rest] - centre).mean(axis=1).sum(axis=1)
    if not total.sum():
        return 0.0, 0.0
    missed = errors.sum() / total.sum()
    return float(1 - missed), float(np.sqrt(np.square(errors - missed * total).sum()) / total.sum())
