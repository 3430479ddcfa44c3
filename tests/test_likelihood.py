"""The bound against densities, integrals and sums that are known in closed form, and the errors it states against its spread.

For pixels x ~ N(mean, std^2) the best estimate of x is known, and so is its error at any SNR r: std^2 / (1 + std^2 r) on
average, and (square + std^4 r) / (1 + std^2 r)^2 given an x at mean square distance `square` from the mean.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from noisesched import diffusion, schedules
from noisesched.evaluation import likelihood

MEAN, STD = 0.1, 0.3
LOW, HIGH = -9.0, 6.0
UNIFORM = f"uniform_log_snr(log_snr_max={HIGH}, log_snr_min={LOW})"
SCHEDULES = [UNIFORM, *(f"truncated({name}, log_snr_min={LOW}, log_snr_max={HIGH})" for name in ("cosine", "linear", "flow"))]


def best(z, log_snr, std=STD):
    """E[x | z] of x ~ N(MEAN, std^2)."""
    alpha, sigma = (diffusion.like(f(log_snr), z) for f in (diffusion.alpha, diffusion.sigma))
    return MEAN + std**2 * alpha / (std**2 * alpha**2 + sigma**2) * (z - alpha * MEAN)


WRONG = functools.partial(best, std=0.6)


def gaussian_images(n, shape=(4, 4, 1), seed=0):
    x = np.random.default_rng(seed).normal(MEAN, STD, (n, *shape))
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)


def scaled(images):
    return images.astype(np.float64) / 127.5 - 1


IMAGES = gaussian_images(24)
SQUARE = np.square(scaled(IMAGES) - MEAN).mean()


@functools.cache
def compiled(denoise):
    return jax.jit(lambda *drawn: likelihood.estimates(denoise, *drawn)[1])


def errors(images, log_snr, seed=0, denoise=best, first=0):
    """Squared errors [n, K] at levels [n, K], in batches of one size, so that one program does them all."""
    n, draws = log_snr.shape
    index, draw = (a.ravel() for a in np.mgrid[:n, first : first + draws])
    x, level, made = scaled(images).astype(np.float32), np.float32(log_snr.ravel()), []
    for start in range(0, len(index), 512):
        rows = np.arange(start, start + 512) % len(index)
        made.append(compiled(denoise)(jnp.uint32(seed), x[index[rows]], index[rows], draw[rows], level[rows]))
    return np.concatenate(made)[: len(index)].reshape(n, draws)


def estimate(path, images=IMAGES, noises=8, seed=0, denoise=best):
    drawn = likelihood.plan(path, seed, np.arange(len(images)), noises)
    return likelihood.bound(path, drawn, errors(images, drawn.log_snr, seed, denoise), images)


def error_at(snr, square=SQUARE, std=STD):
    return (square + std**4 * snr) / (1 + std**2 * snr) ** 2


def integral(low, high, square=SQUARE, std=STD):
    """1/2 the integral of `error_at` over the SNR, in bits: by its antiderivative."""
    antiderivative = lambda r: (1 - square / std**2) / (1 + std**2 * r) + np.log1p(std**2 * r)
    return 0.5 * (antiderivative(math.exp(high)) - antiderivative(math.exp(low))) / math.log(2)


def riemann(log_snrs):
    snr = np.exp(np.asarray(log_snrs, np.float64))
    return 0.5 * (np.diff(snr) * error_at(snr[:-1])).sum() / math.log(2)


def test_the_antiderivative_used_here():
    numeric = integrate.quad(lambda level: 0.5 * math.exp(level) * error_at(math.exp(level)), LOW, HIGH)[0] / math.log(2)
    assert integral(LOW, HIGH) == pytest.approx(numeric, rel=1e-9)


# -- the terms without a network


@pytest.mark.parametrize("log_snr", [-6.0, 0.0, 4.0])
def test_prior_is_the_divergence_of_two_normals(log_snr):
    images = np.array([[0, 51], [255, 128]], np.uint8)
    alpha, sigma = math.sqrt(special.expit(log_snr)), math.sqrt(special.expit(-log_snr))
    for got, image in zip(likelihood.prior(images, log_snr), images, strict=True):
        total = 0.0
        for pixel in image:
            q, p = stats.norm(alpha * (pixel / 127.5 - 1), sigma), stats.norm()
            edges = q.mean() - 12 * sigma, q.mean() + 12 * sigma
            total += integrate.quad(lambda z, q=q, p=p: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), *edges, epsabs=1e-12)[0]
        assert got == pytest.approx(total, rel=1e-7, abs=1e-10)


def test_prior_is_nothing_at_zero_snr():
    np.testing.assert_array_equal(likelihood.prior(IMAGES, -math.inf), 0.0)


@pytest.mark.parametrize("log_snr", [1.0, 9.0, likelihood.LOG_SNR_MAX])
def test_reconstruction_is_the_expected_code_length_of_the_true_grey_level(log_snr):
    levels = np.array([0, 1, 100, 255], np.uint8)
    x, alpha, sigma = np.arange(256) / 127.5 - 1, math.sqrt(special.expit(log_snr)), math.sqrt(special.expit(-log_snr))

    def cost(z, level):
        likelihoods = stats.norm.logpdf(z, alpha * x, sigma)
        return stats.norm.pdf(z, alpha * x[level], sigma) * (special.logsumexp(likelihoods) - likelihoods[level])

    wanted = [integrate.quad(cost, alpha * x[k] - 9 * sigma, alpha * x[k] + 9 * sigma, (k,), limit=500)[0] for k in levels]
    got = likelihood.reconstruction(levels[:, None], log_snr)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    np.testing.assert_allclose(likelihood.reconstruction(levels[None], log_snr), [sum(wanted)], rtol=1e-6)  # pixels add up


def test_reconstruction_of_noise_is_8_bits_and_of_a_clean_image_none():
    np.testing.assert_allclose(likelihood.reconstruction(IMAGES, -40.0), 16 * math.log(256), rtol=1e-6)
    np.testing.assert_allclose(likelihood.reconstruction(IMAGES, 20.0), 0.0, atol=1e-12)
    assert likelihood.reconstruction(IMAGES, likelihood.LOG_SNR_MAX).mean() / 16 / math.log(2) < 0.011  # as the constant says


# -- the bound


def test_the_bound_of_the_best_denoiser_is_the_entropy_of_the_density():
    """In continuous time the bound is tight: -log2 of the density at the image, times the width of a grey level."""
    path = likelihood.continuous("uniform_log_snr(log_snr_max=6, log_snr_min=-15)")
    got = estimate(path, noises=512)
    wanted = -stats.norm.logpdf(scaled(IMAGES), MEAN, STD).mean() / math.log(2) - math.log2(2 / 255)
    assert got.std_error < 0.03 and abs(got.value - wanted) < 4 * got.std_error + 1e-4
    assert got.value == pytest.approx(got.diffusion + got.prior + got.reconstruction, rel=1e-12)
    wrong = estimate(path, noises=512, denoise=WRONG)
    assert wrong.value > got.value + 10 * got.std_error  # any other denoiser is a longer code


def test_the_diffusion_term_of_normal_pixels_is_that_of_a_gaussian_channel():
    """1/2 log(1 + std^2 SNR), over images drawn from the density (Guo, Shamai & Verdu 2005, I-MMSE)."""
    images = gaussian_images(400, seed=1)
    got = estimate(likelihood.continuous(UNIFORM), images)
    wanted = 0.5 * (math.log1p(STD**2 * math.exp(HIGH)) - math.log1p(STD**2 * math.exp(LOW))) / math.log(2)
    assert got.std_error < got.std_error_images < 0.05 and abs(got.diffusion - wanted) < 4 * got.std_error_images


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_does_not_depend_on_the_schedule_between_its_ends(schedule):
    path = likelihood.continuous(schedule)
    assert path.log_snr_min == pytest.approx(LOW) and path.log_snr_max == pytest.approx(HIGH)
    got = estimate(path, noises=512)
    assert got.std_error < 0.06 and abs(got.diffusion - integral(LOW, HIGH)) < 4 * got.std_error


def grids():
    yield "even", np.linspace(LOW, HIGH, 11)
    yield "cosine", np.append(np.asarray(schedules.levels("truncated(cosine, -9, 6)", 20)), 7.0)
    yield "from zero SNR", np.array([-math.inf, -3.0, -1.0, 0.0, 2.0, 3.5])
    yield "one step", np.array([-1.0, 1.0])


@pytest.mark.parametrize(("name", "log_snrs"), list(grids()), ids=[name for name, _ in grids()])
def test_discrete_bounds_are_riemann_sums(name, log_snrs):
    got = estimate(likelihood.discrete(log_snrs), noises=64)
    assert got.std_error < 0.02 * got.diffusion and abs(got.diffusion - riemann(log_snrs)) < 4 * got.std_error
    assert (got.log_snr_min, got.log_snr_max) == (log_snrs[0], pytest.approx(log_snrs[-1]))
    assert (got.prior == 0) == math.isinf(log_snrs[0])


def test_discrete_bounds_fall_to_the_continuous_one_as_steps_multiply():
    ends = {n: estimate(likelihood.discrete(np.linspace(LOW, HIGH, n + 1)), noises=64) for n in (4, 16, 64, 1024)}
    limit = estimate(likelihood.continuous(UNIFORM), noises=64)
    excess = [bound.value - limit.value for bound in ends.values()]
    assert excess[0] > 4 * excess[1] > 12 * excess[2] > 0  # about 1/n, or faster while steps are wide
    assert abs(excess[3]) < 4 * limit.std_error
    assert len({(bound.prior, bound.reconstruction) for bound in (*ends.values(), limit)}) == 1


# -- the stated error


@pytest.mark.parametrize(
    ("path", "noises"),
    [
        (likelihood.continuous(UNIFORM), 2),
        (likelihood.continuous(SCHEDULES[1]), 8),
        (likelihood.discrete(np.linspace(LOW, HIGH, 13)), 2),
        (likelihood.discrete(np.linspace(LOW, HIGH, 13)), 8),
    ],
    ids=["uniform 2", "cosine 8", "discrete 2", "discrete 8"],
)
def test_the_spread_over_seeds_is_the_stated_error(path, noises):
    made = [estimate(path, noises=noises, seed=seed) for seed in range(120)]
    values, stated = np.array([m.value for m in made]), np.sqrt(np.mean([m.std_error**2 for m in made]))
    assert 0.8 < values.std(ddof=1) / stated < 1.25  # a spread of 120 is known to 6.5 %: three times that
    bits = sum(made[0].__dict__[term] for term in ("prior", "reconstruction"))
    exact = integral(LOW, HIGH) if path.locate.__qualname__.startswith("continuous") else riemann(np.linspace(LOW, HIGH, 13))
    assert abs(values.mean() - bits - exact) < 4 * stated / math.sqrt(120)  # and no bias


def test_even_coverage_takes_most_of_the_error_away():
    """16 draws in 8 parts against 16 drawn anywhere (8 times 2 in one part)."""
    path = likelihood.continuous(UNIFORM)
    together, anywhere = estimate(path, noises=16).std_error, estimate(path, noises=2).std_error / math.sqrt(8)
    assert together < 0.5 * anywhere


def test_the_error_over_images_is_the_spread_over_sets_of_images():
    path = likelihood.continuous(UNIFORM)
    made = [estimate(path, gaussian_images(24, seed=seed), seed=seed) for seed in range(100)]
    stated = np.sqrt(np.mean([m.std_error_images**2 for m in made]))
    assert 0.78 < np.std([m.value for m in made], ddof=1) / stated < 1.28
    assert np.mean([m.std_error for m in made]) < stated


# -- the profile

LEVELS = np.linspace(LOW, HIGH, 31)


@pytest.fixture(scope="module")
def profile():
    found = errors(IMAGES, np.tile(np.repeat(LEVELS, 8), (len(IMAGES), 1)), first=1000).reshape(len(IMAGES), len(LEVELS), 8)
    return likelihood.profile(LEVELS, found, 16)


def test_profile_is_the_error_at_each_level(profile):
    snr, each = np.exp(LEVELS), np.square(scaled(IMAGES) - MEAN).mean(axis=(1, 2, 3))
    for kind, factor in (("x", 1.0), ("eps", snr), ("v", snr + 1)):
        wanted = factor * error_at(snr)
        off = np.abs(getattr(profile, kind) - wanted) / getattr(profile, f"{kind}_std_error")
        assert off.max() < 4
    # At low SNR the estimate is the mean: what is left is the image, and the error that of the images alone.
    assert profile.x_std_error[0] == pytest.approx(each.std(ddof=1) / math.sqrt(24), rel=0.03)


def test_the_integral_of_the_profile_is_the_diffusion_term(profile):
    bound = estimate(likelihood.continuous(UNIFORM), noises=512)
    together = math.hypot(profile.bits_per_dim_std_error, bound.std_error)
    assert together < 0.03 and abs(profile.bits_per_dim - bound.diffusion) < 4 * together
    assert abs(profile.bits_per_dim - integral(LOW, HIGH)) < 4 * profile.bits_per_dim_std_error


def test_the_error_of_the_integral_is_its_spread_over_seeds():
    levels, made = np.linspace(LOW, HIGH, 11), []
    for seed in range(120):
        found = errors(IMAGES, np.tile(np.repeat(levels, 2), (len(IMAGES), 1)), seed=seed)
        made.append(likelihood.profile(levels, found.reshape(len(IMAGES), 11, 2), 16))
    stated = np.sqrt(np.mean([m.bits_per_dim_std_error**2 for m in made]))
    assert 0.8 < np.std([m.bits_per_dim for m in made], ddof=1) / stated < 1.25


def test_what_lies_outside_a_range():
    path = likelihood.continuous(UNIFORM)
    drawn = likelihood.plan(path, 0, np.arange(len(IMAGES)), 64)
    found = errors(IMAGES, drawn.log_snr)
    noisier, cleaner = likelihood.diffusion_outside(drawn, found, IMAGES, -1.0, 3.0)
    assert noisier == pytest.approx(integral(LOW, -1.0), rel=0.1) and cleaner == pytest.approx(integral(3.0, HIGH), rel=0.1)
    assert likelihood.diffusion_outside(drawn, found, IMAGES, -math.inf, HIGH) == (0.0, 0.0)


# -- what an error depends on


def test_a_draw_depends_on_the_seed_the_image_and_its_number_alone():
    path = likelihood.continuous(UNIFORM)
    drawn = likelihood.plan(path, 0, np.arange(24), 8)
    some = likelihood.plan(path, 0, np.array([20, 3]), 8)
    np.testing.assert_array_equal(some.log_snr, drawn.log_snr[[20, 3]])
    assert len(np.unique(drawn.log_snr)) == drawn.log_snr.size
    assert (likelihood.plan(path, 1, np.arange(24), 8).log_snr != drawn.log_snr).all()
    level = np.zeros((24, 4))
    whole = errors(IMAGES, level)
    assert len(np.unique(whole)) == whole.size
    x, index, draw = scaled(IMAGES).astype(np.float32), np.array([20, 3]), np.array([1, 2])  # in a batch of their own
    alone = compiled(best)(jnp.uint32(0), x[index], index, draw, np.zeros(2, np.float32))
    np.testing.assert_allclose(alone, whole[index, draw], rtol=1e-5)
    assert (errors(IMAGES, level, seed=1) != whole).all() and (errors(IMAGES, level, first=4) != whole).all()


def test_every_part_of_the_path_has_two_draws_of_every_image():
    positions = (likelihood.plan(likelihood.continuous(UNIFORM), 3, np.arange(50), 6).log_snr - LOW) / (HIGH - LOW)
    np.testing.assert_array_equal(np.sort(np.floor(positions * 3), axis=1), np.tile([0, 0, 1, 1, 2, 2], (50, 1)))


def test_new_data_compile_nothing_new():
    compute = jax.jit(functools.partial(likelihood.estimates, best))
    for seed in range(3):
        x, index = scaled(gaussian_images(8, seed=seed)).astype(np.float32), np.arange(8) + seed
        compute(jnp.uint32(seed), x, index, index, np.full(8, seed, np.float32))
    assert compute._cache_size() == 1


# -- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: likelihood.continuous("cosine"), "finite ends, these are -inf and inf; give 'truncated(cosine, log_snr_min=-12"),
        (lambda: likelihood.continuous("discrete(linear)"), "has no density"),
        (lambda: likelihood.discrete([3.0, 1.0, 0.0]), "strictly increasing"),
        (lambda: likelihood.discrete([1.0]), "2 or more"),
        (lambda: likelihood.discrete([1.0, math.inf]), "to a finite one"),
        (lambda: likelihood.discrete([math.nan, 1.0]), "strictly increasing"),
        (lambda: likelihood.plan(likelihood.discrete([0.0, 1.0]), 0, [0], 3), "noises=3: draws come in pairs"),
    ],
)
def test_refused_in_one_line(make, message):
    with pytest.raises(ValueError) as refused:
        make()
    assert message in str(refused.value) and "\n" not in str(refused.value)


# -- the best levels


def test_the_best_levels_are_those_of_an_exhaustive_search():
    import itertools

    log_snrs = np.linspace(-6, 6, 11)
    x = 1 / (1 + np.exp(log_snrs)) ** 0.8
    prior, read = 0.3 * np.exp(log_snrs / 2), 3 * np.exp(-log_snrs / 3)

    def cost(chosen):
        levels = log_snrs[list(chosen)]
        gains = np.diff(np.exp(np.append(levels, likelihood.end_of(levels[-1]))))
        return prior[chosen[0]] + read[chosen[-1]] + (gains * x[list(chosen)]).sum() / (2 * math.log(2))

    for n in (1, 3, 4):
        best = min(itertools.combinations(range(11), n), key=cost)
        np.testing.assert_allclose(likelihood.best_levels(log_snrs, x, prior, read, n), log_snrs[list(best)])


def test_the_best_are_chosen_where_the_profile_was_measured():
    """However much there would be to gain beyond, and up to all there are to choose among."""
    assert likelihood.candidates(-12.0, 13.3)[[0, -1]].tolist() == [-12, pytest.approx(11.8)]
    np.testing.assert_allclose(likelihood.candidates(-0.5, 0.25), np.linspace(-0.5, 0.25, 16))
    assert len(likelihood.candidates(12.5, 13.0)) == 0
    for n in (1, 4, 16):
        end, *levels = likelihood.best_schedule(np.array([-0.5, 0.0, 0.25]), np.array([0.5, 0.4, 0.2]), IMAGES, n)
        assert len(levels) == n and -0.5 <= levels[-1] and levels[0] <= 0.25 and end == likelihood.end_of(levels[0])
        assert n == 1 or (np.diff(levels) < 0).all()
    with pytest.raises(ValueError, match="cannot choose 17 of 16 levels"):
        likelihood.best_schedule(np.array([-0.5, 0.25]), np.array([0.5, 0.2]), IMAGES, 17)
