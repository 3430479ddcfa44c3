"""Every sampler on data whose exact denoiser is known: where it ends, how fast it gets there, that all stays finite, and what
compiles."""

import functools
import gc
import itertools
import statistics
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noisesched import diffusion, samplers, schedules
from noisesched.samplers import METHODS, sample
from noisesched.schedules import levels, make

MEAN, VARIANCE = 0.3, 0.25
DETERMINISTIC = ["ddim", "heun", "dpmpp_2m"]
STOCHASTIC = ["ddim(eta=1)", "ddim(eta=0.5)", "ancestral", "ancestral(variance=1)", "heun(churn=20)"]
OTHERS = [name for name in METHODS if name not in {samplers.make(text).name for text in DETERMINISTIC + STOCHASTIC}]  # new ones
every_method = pytest.mark.parametrize("text", DETERMINISTIC + STOCHASTIC + OTHERS)


def gaussian(z, log_snr):
    """The exact denoiser of x ~ N(MEAN, VARIANCE), finite at both ends."""
    alpha, sigma = (diffusion.like(f(log_snr), z) for f in (diffusion.alpha, diffusion.sigma))
    return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (z - alpha * MEAN)


def mixture(z, log_snr):
    """The exact denoiser of equal parts of N(-1, 0.1^2) and N(1, 0.1^2)."""
    alpha, sigma = (diffusion.like(f(log_snr), z) for f in (diffusion.alpha, diffusion.sigma))
    total = alpha**2 * 0.01 + sigma**2
    share = jax.nn.sigmoid(2 * alpha * z / total)  # of the mode at 1
    means = [mode + alpha * 0.01 / total * (z - alpha * mode) for mode in (-1, 1)]
    return (1 - share) * means[0] + share * means[1]


def run(text, denoise, z, log_snrs, seed=1, **given):
    method, options = samplers.make(text).name, samplers.make(text).options
    return sample(denoise, jax.random.key(seed), z, log_snrs, method, **given, **options)


@functools.cache
def quantiles(n):
    """Those of a standard normal at the middles of n equal shares, float32 [n]: noise without noise."""
    return np.array([statistics.NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)], np.float32)


# -- where they end


@every_method
@pytest.mark.parametrize("schedule", ["cosine", "zero_terminal(scaled_linear)", "flow", "karras"])
def test_gaussian_mean_and_variance(text, schedule):
    random = text not in DETERMINISTIC
    x = run(text, gaussian, quantiles(8_000 if random else 1_000), levels(make(schedule), 200))
    assert x.mean() == pytest.approx(MEAN, abs=0.02 if random else 0.005)
    assert x.std() / VARIANCE**0.5 == pytest.approx(1, abs=0.04 if random else 0.03)


@every_method
def test_mixture_weights_and_modes(text):
    x = run(text, mixture, quantiles(8_000), levels(make("cosine"), 300))
    right = x > 0
    assert right.mean() == pytest.approx(0.5, abs=0.02)
    assert x[right].mean() == pytest.approx(1, abs=0.01) and x[right].std() == pytest.approx(0.1, abs=0.025)


# -- how fast: order of convergence to the closed form of the ODE, in float64


def ode_error(method, n, ends):
    """Largest error at the last level, where the ODE's exact solution for a Gaussian is linear in z."""
    with jax.enable_x64(True):
        z = jnp.linspace(-2, 2, 9)
        log_snrs = make(ends)(np.linspace(1, 0, n))
        alpha, sigma = diffusion.alpha(log_snrs), diffusion.sigma(log_snrs)
        scale = jnp.sqrt(alpha**2 * VARIANCE + sigma**2)
        exact = alpha[-1] * MEAN + scale[-1] / scale[0] * (z - alpha[0] * MEAN)
        # the sampler returns x_hat at the last level, from which the exact denoiser lets one read z
        x = sample(gaussian, jax.random.key(0), z, log_snrs, method)
        return float(jnp.abs(x - gaussian(exact, log_snrs[-1:])).max())


@pytest.mark.slow
@pytest.mark.parametrize("method, order", [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
@pytest.mark.parametrize("ends", ["truncated(cosine, -6, 6)", "truncated(flow, -4, 4)", "truncated(cosine, -1e9, 6)"])
def test_order_of_convergence(method, order, ends):
    """Also from log-SNR -inf, where the first step is of lower order but its length shrinks with the others'."""
    coarse, fine = ode_error(method, 100, ends), ode_error(method, 200, ends)
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.3), (coarse, fine)


def test_ddim_with_eta_1_is_ancestral():
    z = jax.random.normal(jax.random.key(0), (50,))
    for schedule in ("cosine", "linear"):
        log_snrs = levels(make(schedule), 9)
        np.testing.assert_allclose(run("ddim(eta=1)", mixture, z, log_snrs), run("ancestral", mixture, z, log_snrs), atol=2e-4)


@pytest.mark.parametrize("variance, name", [(0.0, "posterior_variance"), (1.0, "betas")])
def test_ancestral_is_ddpms_reverse_step(variance, name):
    """Ho et al. 2020, eq. 7 and 11, with the arrays of the published table: mean and variance of one step 500 -> 499."""
    table, many, x, z = schedules.table("linear"), 100_000, 0.4, 0.9
    beta, alpha_bar, before = table.betas[499], table.alpha_bar[499], table.alpha_bar_prev[499]
    mean = before**0.5 * beta / (1 - alpha_bar) * x + (1 - beta) ** 0.5 * (1 - before) / (1 - alpha_bar) * z

    def denoise(state, log_snr):  # x at the first call; then the state itself, which the sampler thereby returns
        return jnp.where(log_snr < table.log_snr[498] - 1e-3, x, state)

    with jax.enable_x64(True):
        levels_ = table.log_snr[[499, 498]]
        step = np.asarray(sample(denoise, jax.random.key(0), jnp.full(many, z), levels_, "ancestral", variance=variance))
    std = getattr(table, name)[499] ** 0.5
    assert step.mean() == pytest.approx(mean, abs=4 * std / many**0.5) and step.std() == pytest.approx(std, rel=0.01)


def test_heun_is_edms_algorithm_1():
    """The scan in VP terms against EDM's loop in sigma_ve written plainly in float64."""
    sigmas = np.exp(-np.asarray(levels(make("karras"), 8), np.float64) / 2)

    def denoise_ve(y, sigma):
        return np.asarray(mixture(jnp.asarray(y / np.sqrt(1 + sigma**2)), jnp.full(len(y), -2 * np.log(sigma))))

    with jax.enable_x64(True):
        y = np.random.default_rng(0).normal(size=20) * np.sqrt(1 + sigmas[0] ** 2)
        z = jnp.asarray(y / np.sqrt(1 + sigmas[0] ** 2))
        for now, following in itertools.pairwise(sigmas):
            slope = (y - denoise_ve(y, now)) / now
            euler = y + (following - now) * slope
            slope_next = (euler - denoise_ve(euler, following)) / following
            y = y + (following - now) * (slope + slope_next) / 2
        expected = denoise_ve(y, sigmas[-1])  # EDM's last step, to sigma = 0, is Euler's: it returns the denoised image
        np.testing.assert_allclose(sample(mixture, jax.random.key(0), z, -2 * np.log(sigmas), "heun"), expected, atol=1e-9)


def test_dpmpp_2m_is_the_papers_algorithm_2():
    with jax.enable_x64(True):
        log_snrs = np.asarray(levels(make("linear"), 7), np.float64)
        half, z = log_snrs / 2, np.linspace(-2, 2, 5)
        alpha, sigma = np.asarray(diffusion.alpha(log_snrs)), np.asarray(diffusion.sigma(log_snrs))
        state, before = z, None
        for i in range(6):
            x = np.asarray(mixture(jnp.asarray(state), jnp.full(5, log_snrs[i])))
            h = half[i + 1] - half[i]
            if before is None:
                ahead = x
            else:
                r = (half[i] - half[i - 1]) / h
                ahead = (1 + 1 / (2 * r)) * x - 1 / (2 * r) * before
            state, before = sigma[i + 1] / sigma[i] * state - alpha[i + 1] * (np.exp(-h) - 1) * ahead, x
        expected = mixture(jnp.asarray(state), jnp.full(5, log_snrs[-1]))
        np.testing.assert_allclose(sample(mixture, jax.random.key(0), z, log_snrs, "dpmpp_2m"), expected, atol=1e-9)


# -- that nothing is ever infinite


def wrong_x(z, log_snr):
    """A network that is wrong by a bounded amount everywhere."""
    return jnp.tanh(3 * z + 0.5)


def wrong_v(z, log_snr):
    return diffusion.x_from("v", jnp.tanh(3 * z + 0.5), z, log_snr)


@every_method
@pytest.mark.parametrize("denoise", [wrong_x, wrong_v])
def test_finite_from_zero_snr(text, denoise):
    z = jax.random.normal(jax.random.key(0), (4, 2, 2, 1))
    for log_snrs in ([-np.inf], [-np.inf, 30.0], [-np.inf, -80.0, -20.0, 0.0, 30.0], [-20.0, -19.0, 0.0, 29.0, 30.0]):
        x = run(text, denoise, z, np.array(log_snrs))
        assert jnp.isfinite(x).all()
        if "heun" not in text:  # whose trapezoid takes a wrong network's slopes at their word, over however long a step
            assert jnp.abs(x).max() < 20


@every_method
def test_finite_to_a_level_without_noise(text):
    z = jax.random.normal(jax.random.key(0), (4,))
    assert jnp.isfinite(run(text, gaussian, z, np.array([-np.inf, 0.0, 20.0, np.inf]))).all()


@every_method
def test_gradients_with_respect_to_the_levels_after_the_first_are_true_from_zero_snr_too(text):
    with jax.enable_x64(True):
        log_snrs = np.array([-np.inf, -3.0, -0.5, 2.0, 5.0])
        z = jnp.array([[-1.2], [0.4], [1.5]])
        total = jax.jit(lambda tail: jnp.square(run(text, mixture, z, jnp.append(-jnp.inf, tail))).sum())
        gradient, step = jax.grad(total)(log_snrs[1:]), 1e-6
        for index, unit in enumerate(np.eye(4)):
            numeric = (total(log_snrs[1:] + step * unit) - total(log_snrs[1:] - step * unit)) / (2 * step)
            np.testing.assert_allclose(gradient[index], numeric, rtol=1e-4, atol=1e-7)


# -- the interface


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
@every_method
def test_shape_and_dtype_are_kept(text, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        z = jnp.ones((2, 4, 4, 3), dtype)
        x = run(text, gaussian, z, np.array([-np.inf, 0.0, 5.0]))
        assert x.shape == z.shape and x.dtype == dtype


def test_one_level_is_one_call():
    z = jnp.linspace(-1, 1, 5)
    np.testing.assert_allclose(sample(gaussian, jax.random.key(0), z, jnp.array([1.0])), gaussian(z, jnp.ones(5)), rtol=1e-6)


@every_method
def test_levels_are_called_for_in_turn_and_told_by_index(text):
    """Method by method: which levels the network is called at, what it is told there, and how often it is called."""
    seen, log_snrs, told = [], np.array([-np.inf, -3.0, 0.0, 4.0], np.float32), np.array([7.0, 5.0, 3.0, 1.0], np.float32)

    def denoise(z, log_snr, told):
        jax.debug.callback(lambda *pair: seen.append(tuple(map(float, pair))), log_snr[0], told[0], ordered=True)
        return gaussian(z, log_snr)

    x = run(text, denoise, jnp.ones(2), log_snrs, told=told)
    jax.effects_barrier()
    assert len(seen) == samplers.make(text).network_calls(4)
    if METHODS[samplers.make(text).name].calls == 2:  # both ends of every interval, then the last level
        expected = [*(pair for i in range(3) for pair in ((log_snrs[i], told[i]), (log_snrs[i + 1], told[i + 1])))]
        expected.append((log_snrs[3], told[3]))
    else:
        expected = list(zip(log_snrs, told, strict=True))
    assert [number for _, number in seen] == [number for _, number in expected]
    if "churn" in text:  # noisier than the level it starts from, which it is told
        assert all(low < high for (low, _), (high, _) in zip(seen[2:-1:2], expected[2:-1:2], strict=True))
    else:
        assert seen == expected
    np.testing.assert_allclose(x, run(text, gaussian, jnp.ones(2), log_snrs), rtol=1e-5)


@every_method
def test_an_image_does_not_depend_on_its_batch(text):
    method, options = samplers.make(text).name, samplers.make(text).options
    z, keys = jax.random.normal(jax.random.key(0), (6, 3)), jax.random.split(jax.random.key(1), 6)
    whole = sample(mixture, keys, z, levels(make("cosine"), 5), method, **options)
    part = sample(mixture, keys[2:4], z[2:4], levels(make("cosine"), 5), method, **options)
    np.testing.assert_allclose(part, whole[2:4], rtol=1e-5, atol=1e-6)


def test_arguments_of_another_kind_are_refused():
    levels_ = levels(make("cosine"), 3)
    for key, z, says in (
        (0, jnp.ones(2), "PRNG key"),
        (jax.random.key(0), jnp.ones(2, int), "floating"),
        (jax.random.key(0), jnp.ones(()), "floating"),
    ):
        with pytest.raises(ValueError, match=says):
            sample(gaussian, key, z, levels_)
    with pytest.raises(ValueError, match="each of the 3 levels"):
        sample(gaussian, jax.random.key(0), jnp.ones(2), levels_, told=np.zeros(2))
    with pytest.raises(ValueError, match="eta is a number from 0 to 1; got 'much'"):
        sample(gaussian, jax.random.key(0), jnp.ones(2), levels_, eta="much")


@pytest.mark.parametrize("log_snrs", [[1.0, 0.0], [np.nan], [0.0, np.nan, 1.0], [-np.inf, 2.0, 1.9], [5.0, -np.inf]])
def test_levels_that_do_not_increase_are_refused(log_snrs):
    with pytest.raises(ValueError, match=r"log_snrs increase, the noisiest first; log_snrs\[\d\] is"):
        sample(gaussian, jax.random.key(0), jnp.ones(2), np.array(log_snrs))


@pytest.mark.parametrize("text", ["ddim(eta=True)", "ddim(eta=1" + "0" * 400 + ")", "heun(churn=nan)", "ddim(eta=2)"])
def test_odd_numbers_are_refused_in_one_line(text):
    with pytest.raises(ValueError, match="is a number from 0 to") as error:
        samplers.make(text)
    assert len(str(error.value)) < 200


def test_an_interval_of_churn_is_not_empty():
    with pytest.raises(ValueError, match="churn_from=3 must be below churn_to=-3"):
        samplers.make("heun(churn=10, churn_from=3, churn_to=-3)")


def test_old_style_keys_and_seeds():
    z, log_snrs = jnp.ones(3), levels(make("cosine"), 4)
    old = sample(gaussian, jax.random.PRNGKey(3), z, log_snrs, "ancestral")
    assert (old == sample(gaussian, jax.random.key(3), z, log_snrs, "ancestral")).all()
    assert (old != sample(gaussian, jax.random.key(4), z, log_snrs, "ancestral")).all()


# -- what compiles


@pytest.fixture
def compiled():
    """`compiled(function, ..)` -> how many programs JAX compiled for that call."""
    count = []

    def listen(name, seconds, **_):
        count.extend([name] * (name == "/jax/core/compile/backend_compile_duration"))

    def during(function, *given, **options):
        count.clear()
        jax.block_until_ready(function(*given, **options))
        return len(count)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield during
    jax.monitoring.unregister_event_duration_listener(listen)


def network(params, z, log_snr):
    return params["scale"] * gaussian(z, log_snr)


class Network:
    """A denoiser that is a method."""

    def denoise(self, z, log_snr):
        return gaussian(z, log_snr)


@pytest.mark.slow
def test_one_compilation_for_one_denoiser_shape_and_method(compiled):
    """Schedules, keys, options and the arrays of a Partial are data. Outside jit; within one, the same by tracing."""
    z, keys = jnp.ones((3, 1)), [jax.random.key(seed) for seed in range(3)]
    grids = [np.asarray(levels(make(text), 5)) for text in schedules.EXAMPLES.values()]
    partials = [jax.tree_util.Partial(network, {"scale": jnp.array(scale)}) for scale in (1.0, 0.5)]
    fresh, one = lambda z, log_snr: gaussian(z, log_snr), Network()
    of = lambda *given, **options: compiled(sample, *given, **options)
    assert [of(fresh, keys[0], z, grid) for grid in grids] == [1] + [0] * (len(grids) - 1)
    assert [of(fresh, key, z, grids[0], "ddim", eta=eta) for key, eta in zip(keys, (0.2, 0.7, 1), strict=True)] == [1, 0, 0]
    assert of(fresh, keys[0], z, grids[0], "ddim", eta=0) == 1  # another program: one that draws no noise
    assert of(fresh, keys[0], z, grids[0], "dpmpp_2m") == 1
    assert of(fresh, keys[0], z[:2], grids[0]) == 1
    assert of(fresh, keys[0], z, grids[1]) == 0  # others in between do not matter
    assert [of(each, keys[0], z, grids[0]) for each in partials] == [1, 0]
    assert [of(one.denoise, keys[0], z, grids[0]) for _ in range(2)] == [1, 0]
    assert [of(lambda z, log_snr: gaussian(z, log_snr), keys[0], z, grids[0]) for _ in range(2)] == [1, 1]  # two functions
    halved = sample(partials[1], keys[0], z, grids[0])
    np.testing.assert_allclose(halved, sample(lambda z, log_snr: gaussian(z, log_snr) / 2, keys[0], z, grids[0]), rtol=1e-6)

    traces = []
    draw = jax.jit(lambda z, grid: traces.append(1) or sample(fresh, keys[0], z, grid))
    for grid in grids:
        np.testing.assert_allclose(draw(z, grid), sample(fresh, keys[0], z, grid), rtol=1e-5)
    assert len(traces) == 1


@pytest.mark.slow
def test_functions_that_close_over_what_is_traced():
    """In grad, vmap and jit, of parameters that the function does not take; nothing of them is kept."""
    z, key, log_snrs = quantiles(4), jax.random.key(0), np.array([-np.inf, 0.0, 5.0], np.float32)
    model = Network()  # one function, which at every call reads another traced value

    def denoise(z, log_snr):
        return model.scale * gaussian(z, log_snr)

    def total(scale):
        model.scale = scale
        image = sample(denoise, key, z, log_snrs)
        del model.scale
        return image.sum()

    explicit = lambda scale: sample(jax.tree_util.Partial(network, {"scale": scale}), key, z, log_snrs).sum()
    with jax.checking_leaks():
        scales = jnp.array([0.5, 0.9])
        wanted = jnp.stack([explicit(scale) for scale in scales])
        np.testing.assert_allclose(jnp.stack([jax.jit(total)(scale) for scale in scales]), wanted, rtol=1e-5)
        np.testing.assert_allclose(jax.vmap(total)(scales), wanted, rtol=1e-5)
        step = 1e-2
        slope = (explicit(0.9 + step) - explicit(0.9 - step)) / (2 * step)
        for function in (total, explicit):
            np.testing.assert_allclose(jax.grad(function)(0.9), slope, rtol=1e-3)


def test_functions_are_not_kept_for_ever():
    def made():
        array = jnp.ones(1)
        return (lambda z, log_snr: z * array), weakref.ref(array)

    key, z, log_snrs = jax.random.key(0), jnp.ones(1), np.zeros(1)
    references = []
    for _ in range(18):
        denoise, reference = made()
        sample(denoise, key, z, log_snrs)
        references.append(reference)
    del denoise
    gc.collect()
    assert [reference() is None for reference in references] == [True] * 2 + [False] * 16


# -- options and specs


def test_churn_interval_is_in_log_snr():
    z, log_snrs = jnp.ones(3), levels(make("cosine"), 6)
    quiet = run("heun", mixture, z, log_snrs)
    np.testing.assert_allclose(run("heun(churn=20, churn_from=50)", mixture, z, log_snrs), quiet, atol=1e-5)
    assert jnp.abs(run("heun(churn=20, churn_from=-1, churn_to=1)", mixture, z, log_snrs) - quiet).max() > 1e-3


@pytest.mark.parametrize(
    "text, says",
    [
        ("euler_b", "known: ancestral, ddim, dpmpp_2m, heun"),
        ("ddim(noise=1)", "ddim takes (eta=0.0)"),
        ("dpmpp_2m(eta=1)", "no parameters"),
        ("ddim(eta=5)", "from 0 to 1"),
        ("heun(churn=-5)", "from 0"),
        ("ddim(eta=inf)", "from 0 to 1"),
        ("ancestral(variance=3)", "from 0 to 1"),
        ("ddim(1)", "name its options"),
    ],
)
def test_bad_methods(text, says):
    with pytest.raises(ValueError) as error:
        samplers.make(text)
    assert says in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError):
        sample(gaussian, jax.random.key(0), jnp.ones(2), jnp.zeros((2, 2)))


def test_euler_is_another_name_of_ddim():
    assert samplers.make("euler") == samplers.make("ddim") and "euler" not in METHODS
