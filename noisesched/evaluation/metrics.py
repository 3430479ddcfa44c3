"""Metrics: one number for how far n samples are from n real images.

A metric compares two sets of equal size. Most see the images only as an extractor's features (`noisesched.evaluation.features`).
The value depends on the extractor and on n, so a number is always named with both, as in "frechet(classifier, n=256)". Compare a
value with the floor, the same metric between two sets of n real images: only for `kernel` is that 0 on average.

Published FIDs compare with all real images of a split instead, however many samples there are. Metrics that need no more of real
images than their `Moments` can do that, too; the number's name then has both counts, "frechet(inception, n=50000, real=50000)".

All use the whole sets, without subsets, in float64; where all pairs of 10,000 images of 3,072 numbers are needed, products of
blocks are in float32, whose rounding is averaged (`kernel`) or decides nothing alone (`precision`, `recall`).

To add a metric, write it below with `@metric(..)` above it: a function of (the real set, the fake set); or with `prepare`, of
(prepare(the real set), the fake set). With `of_moments=True`, prepare takes the real set or its Moments.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from noisesched import spec
from noisesched.evaluation import image_stats

EXTRACTORS = ("raw", "classifier", "inception")
# What a metric may compare, and the extractors that provide it.
INPUTS = {"features": EXTRACTORS, "probabilities": ("inception",), "images": ()}
NEIGHBOURS = 3  # k of precision and recall, as published
CANDIDATES = 8  # nearest points found in float32, whose distances are then computed in float64
PROJECTIONS = 512  # of the sliced Wasserstein distance
BLOCK = 1024  # rows at a time: 1024 x 10,000 float32 are 40 MB


@dataclasses.dataclass(frozen=True)
class Moments:
    """Number, mean [d] and scatter [d, d], the covariance times count - 1, of features, in float64.

    Moments of parts add up to those of the whole (Chan et al. 1979), so that no set has to be in memory at once.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features):
        """Of features [n, d]."""
        mean = features.mean(0, dtype=np.float64)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def __add__(self, other):
        count, difference = self.count + other.count, other.mean - self.mean
        between = np.outer(difference, difference) * (self.count * other.count / count)
        return Moments(count, self.mean + difference * (other.count / count), self.scatter + other.scatter + between)


@dataclasses.dataclass(frozen=True)
class Metric:
    """How two sets are compared: distance(prepare(real), fake) -> float, both of n >= at_least."""

    distance: Callable
    prepare: Callable
    takes: str  # of INPUTS
    better: str  # "lower" | "higher"
    at_least: int
    of_moments: bool  # whether `prepare` takes Moments, too

    def against(self, real):
        """The distance from one real set as a function of the fake set; the part that depends on `real` alone is computed once.

        Features are float [n, d], probabilities float [n, classes], images uint8 [n, H, W, C]. A metric `of_moments`
        also takes a real set's Moments, and then fake sets of any size. Raises ValueError for other arrays, fewer than
        `at_least` rows, values that are not finite, and sets of different shapes.
        """
        whole, name = isinstance(real, Moments), self.distance.__name__
        if whole:
            self.check(real.count, whole=True)
            if not np.isfinite(real.scatter).all():
                raise ValueError(f"{name}: some of {real.count} rows of {self.takes} are not finite")
            shape = real.mean.shape
        else:
            real = self._checked(real)
            shape = real.shape
        statistics = self.prepare(real)

        def distance(fake):
            fake = self._checked(fake)
            if fake.shape[whole:] != shape:
                raise ValueError(
                    f"{name} compares two sets of one shape; got {('any', *shape) if whole else shape} and {fake.shape}"
                )
            return float(self.distance(statistics, fake))

        return distance

    def _checked(self, values):
        values, name = np.asarray(values), self.distance.__name__
        kind, ndim = (np.uint8, 4) if self.takes == "images" else (np.floating, 2)
        if values.ndim != ndim or not np.issubdtype(values.dtype, kind) or not values[:1].size:
            raise ValueError(
                f"{name} takes {self.takes}: {kind.__name__}, {ndim} axes, none empty; got {values.dtype} {values.shape}"
            )
        self.check(len(values))
        if kind is np.floating and not np.isfinite(values).all():
            rows = len(values) - np.isfinite(values).all(1).sum()
            raise ValueError(f"{name}: {rows} of {len(values)} rows of {self.takes} are not finite")
        return values

    def check(self, n, whole=False):
        """Raises ValueError if sets of n are too small, or for `whole`, if Moments are not enough for this metric."""
        if n < self.at_least:
            raise ValueError(f"{self.distance.__name__} needs sets of at least {self.at_least}; got n={n}")
        if whole and not self.of_moments:
            able = ", ".join(name for name, known in METRICS.items() if known.of_moments)
            raise ValueError(f"{self.distance.__name__} compares sets of one size; with all real images: {able}")


METRICS = {}  # name -> Metric, in the order of this file


def metric(takes="features", better="lower", at_least=1, prepare=lambda real: real, of_moments=False):
    """Registers a metric under its function's name."""

    def enrol(distance):
        spec.check_new(METRICS, distance)
        METRICS[distance.__name__] = Metric(distance, prepare, takes, better, at_least, of_moments)
        return distance

    return enrol


# -- the notation: frechet(classifier), brightness


@dataclasses.dataclass(frozen=True)
class Measure:
    """A metric and its extractor, None if it compares the images themselves. Prints as its spec."""

    metric: str
    extractor: str | None

    def __str__(self):
        return f"{self.metric}({self.extractor})" if self.extractor else self.metric


def parse(text):
    """The Measure for a text such as "frechet(classifier)" or "brightness". ValueError, in one line, for any other."""
    call = spec.parse(text)
    spec.bind(spec.Call(call.name), {name: known.distance for name, known in METRICS.items()}, "metric", skip=2)
    choices = [Measure(call.name, extractor) for extractor in INPUTS[METRICS[call.name].takes] or (None,)]
    for measure in choices:
        if str(measure) == str(call):
            return measure
    hint = "; n is given separately, by --num_samples of evaluate or num_images of compare" if "n" in dict(call.kwargs) else ""
    raise ValueError(f"metric {text!r}: write {' or '.join(map(str, choices))}{hint}")


def name(measure, n, real=None):
    """A number's name: the measure with its sample count, such as "frechet(classifier, n=256)" or "brightness(n=256)".

    `real`: the number of real images, where that is another: "frechet(inception, n=50000, real=50000)".
    """
    counts = f"n={n}" if real is None else f"n={n}, real={real}"
    return f"{measure.metric}({measure.extractor}, {counts})" if measure.extractor else f"{measure.metric}({counts})"


# -- the metrics


def _gaussian(real):
    """(mean [d], trace of the covariance C, its factor [d, r] with C = factor factor^T), of features [n, d] or their Moments."""
    if not isinstance(real, Moments):
        if len(real) <= real.shape[1]:
            mean, centred = _centred(real)
            return mean, np.vdot(centred, centred), centred.T
        real = Moments.of(real)
    values, vectors = np.linalg.eigh(real.scatter / (real.count - 1))
    size = max(real.count, len(values))
    kept = values > values[-1] * size * np.finfo(float).eps  # directions without variance only add rounding errors
    return real.mean, values.sum(), vectors[:, kept] * np.sqrt(values[kept])


def _centred(features):
    """(mean, (features - mean) / sqrt(n - 1)) in float64; the Gram matrix of the latter is the covariance."""
    mean = features.mean(0, dtype=np.float64)
    return mean, (features - mean) / np.sqrt(len(features) - 1)


@metric(at_least=2, prepare=_gaussian, of_moments=True)
def frechet(real, fake):
    """Squared Frechet distance of two Gaussians, |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^.5 C2 C1^.5)^.5; FID with `inception`.

    With factors C1 = A A^T, C2 = B B^T the last trace is the sum of the singular values of A^T B, so all problems are symmetric
    and the result is real for any ranks. For n <= d the sets are their own factors, n x n; else it takes the eigenvalues of
    A^T C2 A, at most d x d. Biased upwards, more so for small n. Heusel et al. 2017; Dowson & Landau 1982.
    """
    (mean, trace, factor), (fake_mean, centred) = real, _centred(fake)
    if len(fake) <= fake.shape[1]:
        cross = np.linalg.svd(factor.T @ centred.T, compute_uv=False).sum()
    else:
        cross = np.sqrt(np.maximum(np.linalg.eigvalsh(factor.T @ (centred.T @ centred) @ factor), 0)).sum()
    difference = mean - fake_mean
    return difference @ difference + trace + np.vdot(centred, centred) - 2 * cross


def _own_kernel(features):
    """(features float32, mean kernel of its pairs of different rows)."""
    x, total = features.astype(np.float32), 0.0
    for start in range(0, len(x), BLOCK):  # each pair once: a block of rows with itself and with all later rows
        values = _cubed(x[start : start + BLOCK], x[start:])
        square = values[:, : len(values)]
        total += square.sum(dtype=np.float64) - np.trace(square, dtype=np.float64)
        total += 2 * values[:, len(values) :].sum(dtype=np.float64)
    return x, total / (len(x) * (len(x) - 1))


def _cubed(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


@metric(at_least=2, prepare=_own_kernel)
def kernel(real, fake):
    """Squared maximum mean discrepancy with the kernel (x.y / d + 1)^3, unbiased: for equal distributions of mean 0, either sign.

    The U-statistic over the whole sets, not a mean over subsets. KID with `inception`. Binkowski et al. 2018.
    """
    (x, within), (y, fake_within) = real, _own_kernel(fake)
    rows = range(0, len(x), BLOCK)
    across = sum(_cubed(x[start : start + BLOCK], y).sum(dtype=np.float64) for start in rows) / len(x) ** 2
    return within + fake_within - 2 * across


def _manifold(features):
    """(features, squared distance [n] from each row to its NEIGHBOURS-th nearest other row)."""
    return features, np.sort(_nearest(features, features, itself=True)[1])[:, NEIGHBOURS - 1]


def _nearest(x, y, slack=0.0, itself=False):
    """For each row of x, the CANDIDATES rows of y with the lowest |x - y|^2 - slack: their numbers, and |x - y|^2 in float64.

    `slack`: [len(y)] or 0. `itself`: x is y, and a row is not its own candidate. The candidates are found in float32, on centred
    and scaled sets, so that little cancels.
    """
    # Not sklearn.neighbors: it has no radius per point, and its distances of equal points are not exactly 0, so points on the
    # boundary of a ball, frequent among pixels of few values, are counted wrongly.
    centre = y.mean(0, dtype=np.float64)
    near, far = ((values - centre) for values in (x, y))
    scale = max(np.abs(near).max(), np.abs(far).max()) or 1.0
    near, far = (near / scale).astype(np.float32), (far / scale).astype(np.float32)
    offset = ((far.astype(np.float64) ** 2).sum(1) - slack / scale**2).astype(np.float32)
    across = -2 * far.T
    count = min(CANDIDATES, len(y) - itself)
    numbers, squared = np.empty((len(x), count), int), np.empty((len(x), count))
    for start in range(0, len(x), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(x)))
        scores = near[rows] @ across
        scores += offset  # |x - y|^2 - slack, less |x|^2, which is the same for all y
        if itself:
            scores[rows - start, rows] = np.inf
        numbers[rows] = np.argpartition(scores, count - 1, axis=1)[:, :count]
        for column in range(count):
            squared[rows, column] = ((x[rows].astype(np.float64) - y[numbers[rows, column]]) ** 2).sum(1)
    return numbers, squared


def _covered(x, manifold):
    """The share of the rows of x that lie in a ball of the manifold, boundaries included."""
    y, radii = manifold
    numbers, squared = _nearest(x, y, slack=radii)
    return (squared <= radii[numbers]).any(1).mean()


@metric(better="higher", at_least=NEIGHBOURS + 1, prepare=_manifold)
def precision(real, fake):
    """The share of fake points in the real manifold: the balls around real points up to their 3rd nearest other. In [0, 1].

    Kynkaanniemi et al. 2019. Its floor, between two real sets, is well below 1.
    """
    return _covered(fake, real)


@metric(better="higher", at_least=NEIGHBOURS + 1)
def recall(real, fake):
    """The share of real points within the fake manifold: `precision` with the sets exchanged. Kynkaanniemi et al. 2019."""
    return _covered(real, _manifold(fake))


def _projected(features):
    """[n, PROJECTIONS]: the features along fixed random directions, each sorted."""
    directions = np.random.default_rng(0).standard_normal((features.shape[1], PROJECTIONS))
    return np.sort(features @ (directions / np.linalg.norm(directions, axis=0)), axis=0)


@metric(prepare=_projected)
def sliced_wasserstein(real, fake):
    """Wasserstein-1 distance of one-dimensional projections, averaged over 512 fixed random directions of unit length.

    On the scale of one coordinate: a shift of all points by s moves it by about s sqrt(2 / (pi d)). Bonneel et al. 2015.
    """
    return np.abs(real - _projected(fake)).mean()


def _brightness(images):
    return np.sort(image_stats.means(images))


@metric(takes="images", prepare=_brightness)
def brightness(real, fake):
    """Wasserstein-1 distance between the distributions of an image's mean pixel, on the scale of x, [-1, 1].

    Shows the fault of schedules that end above zero SNR: no sample is dark or bright. Lin et al. 2023.
    """
    return np.abs(real - _brightness(fake)).mean()


@metric(takes="probabilities", better="higher", prepare=lambda real: None, of_moments=True)
def inception_score(real, fake):
    """exp of the mean KL divergence of an image's class probabilities from their mean, for the fake set. In [1, classes].

    Over the whole set, not a mean over ten parts. The real set only gives the floor. Salimans et al. 2016.
    """
    p = fake / fake.sum(1, dtype=np.float64, keepdims=True)
    ratio = np.divide(p, p.mean(0), out=np.ones_like(p), where=p > 0)
    return np.exp((p * np.log(ratio)).sum(1).mean())
