"""Statistics of a single set of images: brightness, contrast, saturation, clipped pixels.

All numbers are on the scale of x, where black is -1 and white is 1. Their values for real images are what samples should have.

To add a statistic, write it below with `@statistic(..)` above it: a function of uint8 images [n, H, W, C]. `describe` and the
report's tables then include it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from noisesched import spec
from noisesched.runtime import pictures

BLACK, WHITE = -0.9, 0.9  # an image counts as black if its mean is below the first, as white if above the second
BINS = 20  # of the histogram


@dataclasses.dataclass(frozen=True)
class Statistic:
    """of(uint8 images [n, H, W, C]) -> a number in [-1, 1], or None where it is not defined."""

    of: Callable
    meaning: str  # in one line
    relative: bool  # a share, to be compared with that among real images by their ratio


STATISTICS = {}  # name -> Statistic, in the order of this file


def statistic(meaning, relative=False):
    """Registers a statistic under its function's name."""

    def enrol(function):
        STATISTICS[function.__name__] = Statistic(function, meaning, relative)
        return function

    return enrol


def describe(images):
    """{name: float or None} for all STATISTICS, and "histogram": the counts of `histogram`. All in JSON's types.

    images: uint8 [n, H, W, C], C 1 (grey) or 3 (RGB). Raises ValueError for other arrays, and empty ones.
    """
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 4
        or not images.size
        or (images.shape[3] not in (1, 3))
    ):
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(f"statistics take uint8 images [n, H, W, C], n, H, W at least 1, C 1 or 3; got {got}")
    values = {name: each.of(images) for name, each in STATISTICS.items()}
    found = {name: None if value is None else float(value) for name, value in values.items()}
    return found | {"histogram": histogram(images)}


def check(found):
    """Raises ValueError, in one line, unless `found` is a result of `describe`, now or before a statistic was added."""
    if not isinstance(found, dict):
        raise ValueError(f"a description of images is a dictionary; got {spec.shortened(repr(found))}")
    counts = found.get("histogram")
    if (
        not isinstance(counts, list)
        or len(counts) != BINS
        or not all(type(n) is int and 0 <= n < 2**53 for n in counts)
        or (not any(counts))
    ):
        raise ValueError(f"'histogram' must be {BINS} whole numbers of images, not all 0; got {spec.shortened(repr(counts))}")
    for name, each in STATISTICS.items():
        value, least = found.get(name), 0 if each.relative else -1
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and least <= value <= 1 + 1e-9):  # rounding may pass 1
            raise ValueError(f"{name!r} must be a number from {least} to 1; got {spec.shortened(repr(value))}")


def means(images):
    """The mean over pixels and channels of each image, float64 [n], on the scale of x."""
    return pictures.scale(images.mean((1, 2, 3), dtype=np.float64), np.float64)


def histogram(images):
    """How many images have their mean in each of BINS equal bins of [-1, 1], lower ends included: [int].

    In integer arithmetic: flat images lie on the ends of bins, where rounding would decide.
    """
    totals = images.sum((1, 2, 3), dtype=np.int64)
    return np.bincount(np.minimum(totals * BINS // (255 * images[0].size), BINS - 1), minlength=BINS).tolist()


# -- the statistics


@statistic("the mean pixel")
def brightness(images):
    return means(images).mean()


@statistic("the standard deviation, over images, of an image's mean pixel")
def brightness_spread(images):
    return means(images).std()


@statistic(f"the share of images whose mean pixel is below {BLACK}", relative=True)
def black(images):
    return (means(images) < BLACK).mean()


@statistic(f"the share of images whose mean pixel is above {WHITE}", relative=True)
def white(images):
    return (means(images) > WHITE).mean()


@statistic("the standard deviation of an image's pixels, averaged over images")
def contrast(images):
    return np.mean([image.std() for image in images]) / 127.5  # one by one: all in float64 would take eight times the memory


@statistic("the saturation of a pixel, (max - min) / max of its channels and 0 in black (HSV), averaged over pixels")
def saturation(images):
    if images.shape[3] == 1:
        return None
    high, low = images.max(3), images.min(3)
    return np.divide(high - low, high, out=np.zeros(high.shape), where=high > 0).mean()


@statistic("the share of pixel values that are the darkest or the brightest possible, 0 or 255")
def clipped(images):
    return ((images == 0) | (images == 255)).mean()
