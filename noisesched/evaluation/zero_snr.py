"""A denoiser at its noisiest levels: the last one that its training drew, and zero SNR, where sampling should start.

At zero SNR z is pure noise, so the best estimate of the image is the mean of the data, whatever the noise. A network trained at
this level answers that. One whose training schedule ended before takes the noise for the remains of an image, and answers each
noise with another image: from their first step on, samples then have what the data do not (Lin et al. 2023, sec. 3.1).

Images and estimates are compared with the mean image of their class (for a network without classes, of all images). The network
is called through a function `ask`, see `last_level`; everything but its own arithmetic is float64 on the host.
"""

import dataclasses
import math
import typing

import numpy as np

from noisesched.runtime import pictures

PAIRS = 64  # images with two draws of noise each for zero SNR: a standard deviation is then known to a tenth
BATCH = 2**22  # values that are compared at once
NO_ESTIMATE = "it predicts eps, and where z is pure noise, no image follows from the noise"


class Average(typing.NamedTuple):
    """The mean images of a data set of `num_images`, and how far its images are from them.

    mean            float64 [K, H, W, C]: of K classes, or with K = 1 of all images
    std             root mean square over images and pixels of an image less its mean
    brightness_std  the same of the mean over an image's pixels and channels
    """

    mean: np.ndarray
    std: float
    brightness_std: float
    num_images: int


@dataclasses.dataclass(frozen=True)
class LastLevel:
    """Mean squared errors per dimension at the last level of the training schedule, with standard errors over the images.

    constant_x  the x error of the data's mean as the answer
    gain        constant_x - x, with the error of paired differences: 0 for a network that sees nothing in z
    """

    log_snr: float  # may be -inf; the eps error is then 0, since eps is z
    eps: float
    eps_std_error: float
    x: float
    x_std_error: float
    v: float
    v_std_error: float
    constant_x: float
    gain: float
    gain_std_error: float


@dataclasses.dataclass(frozen=True)
class ZeroSnr:
    """The estimates of the image at log-SNR -inf. All numbers are root mean squares, on the scale of x.

    off_mean           over pixels, of the mean answer minus the data's mean, corrected for the finite number of noises
    spread             over pixels, of an answer minus the mean answer: should be 0
    brightness_spread  of the mean pixel of an answer minus that of the mean answer: should be 0
    reason             why these numbers are not defined: they are then None

    `data_std` and `data_brightness_std`: for comparison, those of an `Average` of `data_images` images.
    """

    noises: int
    off_mean: float | None
    spread: float | None
    brightness_spread: float | None
    data_std: float
    data_brightness_std: float
    data_images: int
    reason: str | None = None


def average(images, classes, num_classes=1, mirrored=False):
    """The `Average` of uint8 images [n, H, W, C] of the `classes` [n], each below num_classes.

    `mirrored`: every image counts together with its left-right mirror image. A class without images gets the mean of all.
    """
    everything, means = images.mean(axis=0, dtype=np.float64), np.empty((num_classes, *images.shape[1:]))
    for number in range(num_classes):
        its = images[classes == number]
        means[number] = its.mean(axis=0, dtype=np.float64) if len(its) else everything
    means = pictures.scale(means, np.float64)
    if mirrored:
        means = (means + means[:, :, ::-1]) / 2
    squares, brightness = deviations(images, classes, means)
    return Average(means, math.sqrt(squares.mean() / images[0].size), math.sqrt(np.square(brightness).mean()), len(images))


def deviations(images, classes, mean):
    """(||x - mean||^2, the mean of x - mean over pixels and channels), float64 [n] each, of uint8 images [n, H, W, C]."""
    squares, brightness, size = np.empty(len(images)), np.empty(len(images)), max(BATCH // images[0].size, 1)
    for first in range(0, len(images), size):
        part = slice(first, first + size)
        away = pictures.scale(images[part], np.float64) - mean[classes[part]]
        squares[part], brightness[part] = np.square(away).sum(axis=(1, 2, 3)), away.mean(axis=(1, 2, 3))
    return squares, brightness


def last_level(ask, log_snr, images, classes, data):
    """The `LastLevel` of uint8 images [n, H, W, C], n at least 2, noised once each. `data`: the training images' `Average`.

    ask(log_snrs [m, K], first_draw=, out=) -> squared errors ||x - x_hat||^2, float64 [m, K], of the first m images with K draws
    of noise each, numbered from `first_draw`; x_hat is written to `out`, if given: float32 [m, K, H, W, C].
    """
    dimensions, snr = images[0].size, math.exp(log_snr)
    x = ask(np.full((len(images), 1), log_snr), first_draw=2)[:, 0] / dimensions
    constant = deviations(images, classes, data.mean)[0] / dimensions
    error = lambda each: (float(each.mean()), float(each.std(ddof=1)) / math.sqrt(len(each)))
    return LastLevel(log_snr, *error(snr * x), *error(x), *error((snr + 1) * x), float(constant.mean()), *error(constant - x))


def zero_snr(ask, images, classes, data, answers=True):
    """The `ZeroSnr` from two noises for each of the first images (at most PAIRS).

    `ask`, `data`: see `last_level`; of the images only the classes matter; `answers`: False for a network whose estimate is not
    defined there.
    """
    if not answers:
        return ZeroSnr(0, None, None, None, *data[1:], NO_ESTIMATE)
    count = min(len(images), PAIRS)
    x_hat = np.empty((count, 2, *images.shape[1:]), np.float32)
    ask(np.full((count, 2), -np.inf), out=x_hat)
    return about_mean(x_hat.reshape(-1, *images.shape[1:]), np.repeat(classes[:count], 2), data)


def about_mean(x_hat, classes, data):
    """The `ZeroSnr` from estimates x_hat [n, H, W, C] for n noises of the `classes` [n], each with two noises or more."""
    x_hat, present, dimensions = x_hat.astype(np.float64), np.unique(classes), x_hat[0].size
    off, spread, brightness = 0.0, 0.0, 0.0
    for number in present:
        its = x_hat[classes == number]
        centre = its.mean(axis=0)
        off += len(its) * np.square(centre - data.mean[number]).sum()
        spread += np.square(its - centre).sum()
        brightness += np.square((its - centre).mean(axis=(1, 2, 3))).sum()
    n, free = len(x_hat), len(x_hat) - len(present)
    off -= len(present) * spread / free  # the variance of the mean of n answers is an nth of theirs
    return ZeroSnr(
        n,
        math.sqrt(max(off, 0.0) / (n * dimensions)),
        math.sqrt(spread / (free * dimensions)),
        math.sqrt(brightness / free),
        *data[1:],
    )


def lines(last, zero):
    """Two lines of text on a `LastLevel` and a `ZeroSnr`, given as dictionaries."""
    yield (
        f"  {'last trained level':28} log-SNR {last['log_snr']:.4g}: error of eps {last['eps']:.4g}, of v {last['v']:.4g}, "
        f"of x {last['x']:.4g}; that of the data's mean {last['constant_x']:.4g} (difference {last['gain']:.2g} +- "
        f"{last['gain_std_error']:.1g})"
    )
    if zero["reason"]:
        yield f"  {'zero SNR':28} not defined for this network: {zero['reason']}"
        return
    yield (
        f"  {'zero SNR':28} answers vary by {zero['spread']:.3g} with the noise (best: 0) and miss the data's mean by "
        f"{zero['off_mean']:.3g} (the data: {zero['data_std']:.3g}); their brightness varies by "
        f"{zero['brightness_spread']:.3g} (the data's: {zero['data_brightness_std']:.3g})"
    )
