"""Metrics: laws that each obeys, and answers known from elsewhere."""

import functools
import operator

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats

from noisesched.evaluation import metrics
from noisesched.evaluation.metrics import METRICS, Measure, Moments

TAKES = {name: metric.takes for name, metric in METRICS.items()}
ON_FEATURES = [name for name, takes in TAKES.items() if takes == "features"]
DISTANCES = ["frechet", "kernel", "sliced_wasserstein", "brightness"]
SIZES = {"more images than dimensions": (60, 7), "fewer images than dimensions": (20, 45)}


def some(takes, seed, n=40, d=6, shift=0.0):
    rng = np.random.default_rng(seed)
    if takes == "images":
        return rng.integers(0, 200, (n, 1, 1, 1), np.uint8) + rng.integers(0, 50, (n, 4, 3, 2), np.uint8)
    features = rng.standard_normal((n, d)) @ np.random.default_rng(seed + 1).standard_normal((d, d)) + shift
    return scipy.special.softmax(features, axis=1) if takes == "probabilities" else features


def measure(name, real, fake):
    return METRICS[name].against(real)(fake)


# -- laws


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_a_set_does_not_matter(name, size):
    real, fake = some(TAKES[name], 0, *size), some(TAKES[name], 2, *size, shift=0.5)
    rng = np.random.default_rng(4)
    permuted = measure(name, rng.permutation(real), rng.permutation(fake))
    np.testing.assert_allclose(permuted, measure(name, real, fake), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", METRICS)
def test_a_set_is_best_matched_by_itself(name, size):
    if name == "inception_score":
        pytest.skip("of the fake set alone")
    real, fake = some(TAKES[name], 0, *size), some(TAKES[name], 2, *size, shift=3.0)
    same, other = measure(name, real, real[::-1].copy()), measure(name, real, fake)
    best = {"precision": 1, "recall": 1}.get(name, 0)
    if name == "kernel":  # unbiased, so below 0 here
        assert same < 0
    else:
        np.testing.assert_allclose(same, best, atol=1e-6)
    assert same > other if METRICS[name].better == "higher" else same < other


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_symmetric(name):
    a, b = some(TAKES[name], 0), some(TAKES[name], 2)
    np.testing.assert_allclose(measure(name, a, b), measure(name, b, a), rtol=1e-6)


def test_recall_is_precision_with_the_sets_exchanged():
    a, b = some("features", 0), some("features", 2)
    assert 0 < measure("precision", a, b) == measure("recall", b, a) < 1


@pytest.mark.parametrize("name", ["frechet", "kernel", "precision", "recall"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_common_rotation_changes_nothing(name, size):
    a, b = some("features", 0, *size), some("features", 2, *size)
    rotation = scipy.stats.ortho_group.rvs(size[1], random_state=0)
    np.testing.assert_allclose(measure(name, a @ rotation, b @ rotation), measure(name, a, b), rtol=1e-5)


@pytest.mark.parametrize("name", ["frechet", "precision", "recall", "sliced_wasserstein"])
def test_a_common_shift_changes_nothing_even_a_large_one(name):
    a, b = some("features", 0), some("features", 2)
    np.testing.assert_allclose(measure(name, a + 1e4, b + 1e4), measure(name, a, b), rtol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_a_prepared_real_set_serves_many_fake_ones_and_none_is_changed(name):
    real, first, second = (some(TAKES[name], seed) for seed in (0, 2, 4))
    copies = real.copy(), first.copy()
    distance = METRICS[name].against(real)
    alone = distance(first)
    distance(second)
    assert distance(first) == alone == measure(name, *copies)
    np.testing.assert_array_equal(real, copies[0])


@pytest.mark.parametrize("name", ON_FEATURES)
def test_float32_features_are_measured_as_float64_ones(name):
    a, b = (some("features", seed).astype(np.float32) for seed in (0, 2))
    exact = measure(name, a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(measure(name, a, b), exact, rtol=1e-6)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_identical_images_are_measured_too(name):
    black = np.full((30, 5), -1.0)
    assert np.isfinite(measure(name, black, some("features", 0, 30, 5)))
    assert np.isfinite(measure(name, some("features", 0, 30, 5), black))
    np.testing.assert_allclose(measure(name, black, black), {"precision": 1, "recall": 1}.get(name, 0), atol=1e-6)


# -- Frechet


def gaussian(mean, covariance, n):
    """n points whose sample mean and covariance are exactly those."""
    points = np.random.default_rng(0).standard_normal((n, len(mean)))
    points -= points.mean(0)
    points = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T
    return points @ np.real(scipy.linalg.sqrtm(covariance)) + mean


def closed_form(m1, c1, m2, c2):
    return ((m1 - m2) ** 2).sum() + np.trace(c1 + c2) - 2 * np.trace(scipy.linalg.sqrtm(c1 @ c2)).real


def test_frechet_of_commuting_gaussians():
    m1, m2, s1, s2 = np.array([0, 1, 2.0]), np.array([1, -1, 2.0]), np.array([1, 2, 3.0]), np.array([0.1, 5, 3])
    a, b = gaussian(m1, np.diag(s1**2), 50), gaussian(m2, np.diag(s2**2), 50)
    np.testing.assert_allclose(measure("frechet", a, b), ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum(), rtol=1e-9)


def test_frechet_of_gaussians_that_do_not_commute():
    rng = np.random.default_rng(1)
    c1, c2 = (factor @ factor.T for factor in rng.standard_normal((2, 6, 6)))
    m1, m2 = rng.standard_normal((2, 6))
    assert np.abs(c1 @ c2 - c2 @ c1).max() > 1
    np.testing.assert_allclose(
        measure("frechet", gaussian(m1, c1, 40), gaussian(m2, c2, 40)), closed_form(m1, c1, m2, c2), rtol=1e-8
    )


def test_frechet_in_one_dimension():
    a, b = np.random.default_rng(0).normal(1, 2, (500, 1)), np.random.default_rng(1).normal(3, 0.5, (500, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    np.testing.assert_allclose(measure("frechet", a, b), expected, rtol=1e-9)


@pytest.mark.parametrize("n", [12, 13, 14, 29, 30, 31, 60])
def test_frechet_of_covariances_of_low_rank_and_at_either_side_of_n_equal_d(n):
    rng = np.random.default_rng(n)  # 30 dimensions, of which the first 5 are constant, as the corners of digits
    a, b = rng.standard_normal((n, 30)) * (np.arange(30) >= 5), rng.standard_normal((n, 30)) * np.linspace(0, 1, 30)
    # Independently: tr (C1^.5 C2 C1^.5)^.5 = the sum of singular values of C1^.5 C2^.5.
    roots = []
    for points in (a, b):
        values, vectors = np.linalg.eigh(np.cov(points.T))
        roots.append(vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T)
    cross = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * cross
    np.testing.assert_allclose(measure("frechet", a, b), expected, rtol=1e-6)


@pytest.mark.parametrize("many, few", [(900, 70), (900, 17), (20, 500)])  # 24 features: covariances of full rank, and of less
def test_frechet_of_all_real_images_and_any_number_of_samples(many, few):
    rng = np.random.default_rng(many + few)
    real, fake = (rng.standard_normal((n, 24)) @ rng.standard_normal((24, 24)) + 3 for n in (many, few))
    moments = functools.reduce(operator.add, [Moments.of(part) for part in np.array_split(real, [1, 4, 15])])
    assert moments.count == many
    np.testing.assert_allclose(moments.mean, real.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.scatter / (many - 1), np.cov(real.T), rtol=1e-9, atol=1e-9)
    expected = closed_form(real.mean(0), np.cov(real.T), fake.mean(0), np.cov(fake.T))
    assert METRICS["frechet"].against(moments)(fake) == pytest.approx(expected, rel=1e-5)
    assert METRICS["frechet"].against(moments)(real) == pytest.approx(0, abs=1e-9 * expected)


def test_moments_far_from_zero_lose_nothing():
    real = np.random.default_rng(0).standard_normal((300, 3)) + 1e6
    parts = functools.reduce(operator.add, [Moments.of(part) for part in np.array_split(real, 7)])
    np.testing.assert_allclose(parts.scatter / 299, np.cov(real.T), rtol=1e-7, atol=1e-9)


def test_frechet_is_biased_upwards_less_so_for_larger_sets():
    values = [
        np.mean([measure("frechet", *np.random.default_rng(seed).standard_normal((2, n, 8))) for seed in range(5)])
        for n in (50, 500)
    ]
    assert values[0] > 5 * values[1] > 0


# -- kernel


def test_kernel_is_the_mean_over_pairs_of_different_images():
    a, b = some("features", 0, 9, 4), some("features", 2, 9, 4)
    value = lambda x, y: (float(x @ y) / 4 + 1) ** 3
    within = [sum(value(s[i], s[j]) for i in range(9) for j in range(9) if i != j) / 72 for s in (a, b)]
    across = sum(value(x, y) for x in a for y in b) / 81
    np.testing.assert_allclose(measure("kernel", a, b), sum(within) - 2 * across, rtol=1e-5)


def test_kernel_is_unbiased_of_mean_zero_at_equal_distributions():
    values = [measure("kernel", *np.random.default_rng(seed).standard_normal((2, 30, 5))) for seed in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20 and min(values) < 0 < max(values)


def test_kernel_has_the_expectation_that_algebra_gives():
    # For one dimension and a shift s of a standard normal: E (xy + 1)^3 = 1 + 3 m1 m2 + 3 q1 q2 + c1 c2 in the moments.
    s = 1.0
    moments = [np.array([1, m, m * m + 1, m**3 + 3 * m]) for m in (0.0, s)]
    expected = (np.array([1, 3, 3, 1]) * (moments[0] - moments[1]) ** 2).sum()
    values = []
    for seed in range(300):
        a, b = np.random.default_rng(seed).standard_normal((2, 100, 1))
        values.append(measure("kernel", a, b + s))
    assert abs(np.mean(values) - expected) < 3 * np.std(values) / np.sqrt(300)


def test_kernel_in_blocks_is_the_kernel_in_float64(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 16)  # does not divide 90
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 90, 300))
    k = lambda x, y: (x @ y.T / 300 + 1) ** 3
    off = ~np.eye(90, dtype=bool)
    np.testing.assert_allclose(measure("kernel", a, b), k(a, a)[off].mean() + k(b, b)[off].mean() - 2 * k(a, b).mean(), atol=1e-7)


# -- precision and recall


def brute_precision(real, fake, k=3):
    distance = lambda x, y: np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))
    radii = np.sort(distance(real, real), axis=1)[:, k]  # the first is the point itself
    return (distance(fake, real) <= radii).any(1).mean()


@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0])
def test_precision_and_recall_are_those_of_all_distances(monkeypatch, shift):
    monkeypatch.setattr(metrics, "BLOCK", 32)
    a, b = some("features", 0, 150, 5), some("features", 2, 150, 5, shift=shift)
    assert measure("precision", a, b) == brute_precision(a, b)
    assert measure("recall", a, b) == brute_precision(b, a)


def test_half_of_the_modes_is_all_of_the_precision_and_half_of_the_recall():
    rng = np.random.default_rng(0)
    real = np.repeat([[0.0, 0], [100, 0]], 50, axis=0) + rng.uniform(-1, 1, (100, 2))
    fake = np.concatenate([real[:50], real[:50]]) + rng.uniform(-1e-6, 1e-6, (100, 2))
    assert measure("precision", real, fake) == 1
    assert measure("recall", real, fake) == 0.5


def test_far_away_there_is_neither_precision_nor_recall():
    a, b = some("features", 0), some("features", 2, shift=1e3)
    assert measure("precision", a, b) == measure("recall", a, b) == 0


def test_a_ball_includes_its_boundary_and_reaches_the_third_other_point():
    real = np.array([[0.0], [1], [2], [3], [1000]])  # radii 3, 2, 2, 3, 999
    fake = np.array([[-3.0], [-3.0001], [6], [1999], [1999.001]])
    assert measure("precision", real, fake) == 3 / 5


def test_points_that_repeat_have_balls_of_radius_zero_which_hold_their_like():
    real = np.repeat(np.array([[0.1, 0.7], [0.3, 0.2]]), 20, axis=0)
    fake = np.where(np.arange(40)[:, None] < 10, real[0], real[0] + 1e-9)
    assert measure("precision", real, fake) == 10 / 40


def test_a_distance_far_from_zero_on_a_large_scale_is_not_lost_in_float32():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 100, 3))
    a[0], b[0] = 1e5, -1e5  # an outlier makes all others near in float32
    assert measure("precision", a, b) == brute_precision(a, b)


# -- Wasserstein


def test_sliced_wasserstein_is_the_mean_of_one_dimensional_ones():
    a, b = some("features", 0), some("features", 2)
    directions = np.random.default_rng(0).standard_normal((6, metrics.PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    expected = np.mean([scipy.stats.wasserstein_distance(a @ direction, b @ direction) for direction in directions.T])
    np.testing.assert_allclose(measure("sliced_wasserstein", a, b), expected, rtol=1e-9)


def test_sliced_wasserstein_in_one_dimension_is_wasserstein():
    a, b = some("features", 0, d=1), some("features", 2, d=1)
    np.testing.assert_allclose(measure("sliced_wasserstein", a, b), scipy.stats.wasserstein_distance(a[:, 0], b[:, 0]), rtol=1e-9)


def test_sliced_wasserstein_of_a_shift_is_as_documented_and_much_the_same_in_a_rotated_frame():
    a, s, d = some("features", 0, d=50), 3.0, 50
    shift = s * np.eye(d)[0]
    rotation = scipy.stats.ortho_group.rvs(d, random_state=0)
    np.testing.assert_allclose(measure("sliced_wasserstein", a, a + shift), s * np.sqrt(2 / (np.pi * d)), rtol=0.1)
    np.testing.assert_allclose(
        measure("sliced_wasserstein", a @ rotation, (a + shift) @ rotation), s * np.sqrt(2 / (np.pi * d)), rtol=0.1
    )


def test_brightness_is_the_wasserstein_distance_of_mean_pixels():
    a, b = some("images", 0), some("images", 2)
    means = [(images.astype(np.float64) / 127.5 - 1).mean((1, 2, 3)) for images in (a, b)]
    np.testing.assert_allclose(measure("brightness", a, b), scipy.stats.wasserstein_distance(*means), rtol=1e-9)


def test_brightness_between_black_and_white_is_two():
    assert measure("brightness", np.zeros((3, 2, 2, 1), np.uint8), np.full((3, 2, 2, 1), 255, np.uint8)) == 2


# -- inception score


def test_inception_score_is_the_number_of_classes_that_are_sure_and_equally_frequent():
    sure = np.eye(8)[np.arange(40) % 8]
    assert measure("inception_score", sure, sure) == pytest.approx(8)
    assert measure("inception_score", sure, np.full((40, 8), 1 / 8)) == pytest.approx(1)
    assert measure("inception_score", sure, np.eye(8)[np.zeros(40, int)]) == pytest.approx(1)


def test_inception_score_is_the_mutual_information_of_image_and_class_exponentiated():
    p = some("probabilities", 0)
    expected = np.exp(scipy.stats.entropy(p.mean(0)) - scipy.stats.entropy(p, axis=1).mean())
    assert measure("inception_score", p, p.astype(np.float32)) == pytest.approx(expected, rel=1e-6)


# -- names, and what is refused


@pytest.mark.parametrize(
    "text, measure",
    [
        ("frechet(classifier)", Measure("frechet", "classifier")),
        (" kernel( raw )", Measure("kernel", "raw")),
        ("brightness", Measure("brightness", None)),
        ("inception_score(inception)", Measure("inception_score", "inception")),
    ],
)
def test_a_measure_is_read_and_prints_as_its_text(text, measure):
    assert metrics.parse(text) == measure
    assert str(measure) == text.replace(" ", "") and metrics.parse(str(measure)) == measure


def test_a_number_is_named_with_its_extractor_and_count():
    assert metrics.name(metrics.parse("frechet(classifier)"), 256) == "frechet(classifier, n=256)"
    assert metrics.name(metrics.parse("brightness"), 256) == "brightness(n=256)"
    assert metrics.name(metrics.parse("frechet(inception)"), 50000, 50000) == "frechet(inception, n=50000, real=50000)"


def test_metrics_that_need_more_of_real_images_than_moments_say_which_do_not():
    moments = Moments.of(some("features", 0))
    for name, metric in METRICS.items():
        if not metric.of_moments:
            with pytest.raises(
                ValueError, match=f"{name} compares sets of one size; with all real images: frechet, inception_sc"
            ):
                metric.against(moments)
    with pytest.raises(ValueError, match="two sets of one shape"):
        METRICS["frechet"].against(moments)(some("features", 0)[:, 1:])


@pytest.mark.parametrize(
    "text, says",
    [
        ("frechett(raw)", "did you mean 'frechet'"),
        ("fid", "known: brightness, frechet, "),
        ("frechet", "write frechet(raw) or frechet(classifier) or frechet(inception)"),
        ("frechet(vgg)", "write frechet(raw)"),
        ("frechet(raw, 2)", "write "),
        ("frechet(raw, n=3)", "write frechet(raw)"),
        ("frechet('raw')", "write frechet(raw)"),
        ("brightness(raw)", "write brightness"),
        ("frechet(raw", "cannot read the spec"),
        ("inception_score(classifier)", "write inception_score(inception)"),
        (3, "a spec is a string"),
    ],
)
def test_a_measure_that_is_none_is_refused_in_one_line_with_the_choices(text, says):
    with pytest.raises(ValueError) as error:
        metrics.parse(text)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", METRICS)
def test_sets_of_different_sizes_are_refused(name):
    with pytest.raises(ValueError, match="two sets of one shape"):
        measure(name, some(TAKES[name], 0, 40), some(TAKES[name], 0, 39))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", [name for name in METRICS if TAKES[name] != "images"])
def test_values_that_are_not_finite_are_refused(name, bad):
    good = some(TAKES[name], 0)
    broken = good.copy()
    broken[3, 2] = broken[5, 1] = bad
    for pair in ((good, broken), (broken, good)):
        with pytest.raises(ValueError, match=f"{name}: 2 of 40 rows of {TAKES[name]} are not finite"):
            measure(name, *pair)


@pytest.mark.parametrize("name", METRICS)
def test_sets_too_small_are_refused_and_the_smallest_is_measured(name):
    least = METRICS[name].at_least
    small = some(TAKES[name], 0, least)
    assert np.isfinite(measure(name, small, small))
    with pytest.raises(ValueError, match="at least|none empty"):
        measure(name, small[1:], small[1:])


@pytest.mark.parametrize("name", METRICS)
def test_arrays_of_another_kind_are_refused(name):
    right = some(TAKES[name], 0)
    for wrong in (right.astype(np.int64), right[0], right[:, :0], "text"):
        with pytest.raises(ValueError, match=f"{name} takes {TAKES[name]}"):
            METRICS[name].against(wrong)
