"""The training loss: published formulas in float64, laws of what is drawn, and what popular texts get wrong."""

import functools
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from noisesched import diffusion, schedules
from noisesched import loss as losses_of
from noisesched.data.pipeline import batches, open_config
from noisesched.loss import WEIGHTINGS, make_weighting, weight
from noisesched.models import build, conditioning
from noisesched.models.denoiser import Uncertainty
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.metrics_log import read_metrics
from noisesched.runs.workdir import Workdir
from noisesched.runtime.pictures import scale
from noisesched.schedules import make

LEVELS = np.linspace(-12, 12, 49)
PUBLISHED = [
    "eps",
    "x",
    "v",
    "vlb",
    "min_snr",
    "min_snr(gamma=1)",
    "p2",
    "p2(k=2, gamma=0.5)",
    "edm",
    "edm(sigma_data=1)",
    "sigmoid",
    "sigmoid(bias=-1)",
    "soft_min_snr",
    "soft_min_snr(gamma=1)",
    "debiased",
    "uncertain",
    "uncertain(min_snr(gamma=1))",
]
EXAMPLES = PUBLISHED + [name for name in WEIGHTINGS if name not in PUBLISHED]  # new ones, with their defaults


def published(text, prediction, log_snr, rate):
    """The weight on the squared error of `prediction`, as its paper writes it, in float64."""
    snr = np.exp(np.float64(log_snr))
    if text.startswith("uncertain"):  # before anything is learned
        return published(text[10:-1] or "v", prediction, log_snr, rate)
    sigma_ve = snr**-0.5
    elbo = 0.5 * rate  # on eps: Kingma et al. 2021, eq. 17; Kingma & Gao 2023, eq. 12
    bias = {"sigmoid": 2, "sigmoid(bias=-1)": -1}.get(text)
    tables = {  # {error: weight}, as each paper states them
        "eps": {"eps": 1 + 0 * snr, "x": snr, "v": snr / (snr + 1)},
        "x": {"eps": 1 / snr, "x": 1 + 0 * snr, "v": 1 / (snr + 1)},
        "v": {"eps": 1 + 1 / snr, "x": snr + 1, "v": 1 + 0 * snr},
        "vlb": {"eps": elbo, "x": elbo * snr, "v": elbo * snr / (snr + 1)},
        "min_snr": {"eps": np.minimum(1, 5 / snr), "x": np.minimum(snr, 5), "v": np.minimum(snr, 5) / (snr + 1)},
        "min_snr(gamma=1)": {"eps": np.minimum(1, 1 / snr), "x": np.minimum(snr, 1), "v": np.minimum(snr, 1) / (snr + 1)},
        "p2": {"eps": 1 / (1 + snr), "x": snr / (1 + snr), "v": snr / (1 + snr) ** 2},
        "p2(k=2, gamma=0.5)": {"eps": (2 + snr) ** -0.5, "x": snr * (2 + snr) ** -0.5, "v": snr * (2 + snr) ** -0.5 / (snr + 1)},
    }
    for name, gamma in (("soft_min_snr", 4), ("soft_min_snr(gamma=1)", 1)):  # 1 / (sigma_ve^2 + sigma_data^2) on x
        on_x = 1 / (sigma_ve**2 + 1 / gamma)
        tables[name] = {"eps": on_x / snr, "x": on_x, "v": on_x / (snr + 1)}
    tables["debiased"] = {"eps": 1 / np.sqrt(snr), "x": np.sqrt(snr), "v": np.sqrt(snr) / (snr + 1)}
    for name, data in (("edm", 0.5), ("edm(sigma_data=1)", 1.0)):
        on_x = (sigma_ve**2 + data**2) / (sigma_ve * data) ** 2
        tables[name] = {"eps": on_x * sigma_ve**2, "x": on_x, "v": on_x / (1 + sigma_ve**-2)}
    if bias is not None:
        on_eps = elbo / (1 + np.exp(log_snr - bias))
        tables[text] = {"eps": on_eps, "x": on_eps * snr, "v": on_eps * snr / (snr + 1)}
    return tables[text][prediction]


def known(prediction, output):
    """Stands for a denoiser: `output(z, log_snr)` is what its network says."""
    return types.SimpleNamespace(
        prediction=prediction,
        output=lambda z, log_snr, labels, keys: output(z, log_snr),
        uncertainty=lambda log_snr: jnp.zeros_like(log_snr),
    )


# -- weights


def test_every_weighting_says_what_it_is():
    assert all(function.__doc__ for function in WEIGHTINGS.values())


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
@pytest.mark.parametrize("text", PUBLISHED)
def test_weights_are_the_published_formulas(text, prediction):
    rate = 3 + LEVELS**2
    got = weight(make_weighting(text), prediction, np.float32(LEVELS), np.float32(rate))
    np.testing.assert_allclose(got, published(text, prediction, LEVELS, rate), rtol=2e-5)


@pytest.mark.parametrize("text", ["cosine", "linear", "karras", "log_normal", "flow"])
def test_vlb_is_half_the_rate_at_which_snr_falls(text):
    schedule, u = make(text), np.linspace(0.05, 0.95, 19)
    with jax.enable_x64(True):
        snr = lambda u: np.exp(np.asarray(schedule(u)))
        expected = -(snr(u + 1e-5) - snr(u - 1e-5)) / 2e-5 / 2  # -1/2 dSNR/du on x (Kingma et al. 2021, eq. 15)
    u = np.float32(u)
    got = weight(make_weighting("vlb"), "x", schedule(u), schedules.rate(schedule, u))
    np.testing.assert_allclose(got, expected, rtol=2e-4)


@pytest.mark.parametrize("text", EXAMPLES)
def test_weights_are_finite_at_every_level_and_rate(text):
    log_snr, rate = np.meshgrid(np.float32([-np.inf, -1e30, -100, -30, 0, 30]), np.float32([0, 1, -1e-9, np.inf, np.nan]))
    for prediction in diffusion.PREDICTIONS:
        got = np.asarray(weight(make_weighting(text), prediction, log_snr.ravel(), rate.ravel()))
        assert np.isfinite(got).all() and (got >= 0).all()


@pytest.mark.parametrize("text", WEIGHTINGS)
def test_one_denoiser_has_one_loss_whatever_it_predicts(text):
    """x_hat = x + d means eps_hat = eps - (alpha/sigma) d and v_hat = v - d/sigma: the same loss from all three."""
    x, eps, d = jax.random.normal(jax.random.key(0), (3, 12, 4, 4, 1))
    u = jnp.linspace(0.1, 0.9, 12)
    random = losses_of.Draw(u, eps, None, None)
    schedule = make("uniform_log_snr(8, -8)")

    def says(prediction):
        def output(z, log_snr):
            a, s = (f(log_snr)[:, None, None, None] for f in (diffusion.alpha, diffusion.sigma))
            return {"x": x + d, "eps": eps - a / s * d, "v": a * eps - s * x - d / s}[prediction]

        return losses_of.errors(known(prediction, output), x, None, random, schedule, make_weighting(text))[0]

    losses = [says(prediction) for prediction in diffusion.PREDICTIONS]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-3)
    plain = published(text, "x", schedule(u), 16.0) * np.square(np.float64(d)).mean((1, 2, 3))
    np.testing.assert_allclose(losses[1], plain, rtol=1e-4)


INSIDE = ["cosine", "linear", "karras", "flow", "log_normal", "cauchy", "sigmoid"]
SAME_ENDS = ["uniform_log_snr(10, -9)", *(f"truncated({name}, -9, 10)" for name in INSIDE)]


@pytest.mark.parametrize("spec", SAME_ENDS)
def test_the_bound_does_not_depend_on_what_draws_the_levels(spec):
    """For unit Gaussian data E|x - x_hat|^2 = sigma^2, so the bound is the integral of w/2 SNR sigma^2 over log-SNR."""
    schedule, n = make(spec), 2**14
    u = (jnp.arange(n) + 0.5) / n
    log_snr = schedule(u)
    on_x, rate = jax.nn.sigmoid(-log_snr), schedules.rate(schedule, u)
    level = np.linspace(-9, 10, 100_001)
    for text, of_level in (("vlb", 1.0), ("sigmoid", 1 / (1 + np.exp(level - 2)))):
        losses = weight(make_weighting(text), "v", log_snr, rate) * on_x * (1 + jnp.exp(log_snr))
        expected = np.trapezoid(0.5 * of_level / (1 + np.exp(-level)), level)
        assert float(losses.mean()) == pytest.approx(expected, rel=1e-3)


# -- what popular texts get wrong


def test_a_weight_says_nothing_without_its_error():
    level = jnp.array([-np.inf, -3.0, 0.0, 3.0])
    snr = np.exp(np.float64(level))
    on = lambda text, prediction: np.asarray(weight(make_weighting(text), prediction, level, jnp.ones(4)))
    # min-SNR on eps: min(1, g/SNR), 1 at SNR = 0; min(SNR, g)/SNR would be 0/0 there
    np.testing.assert_allclose(on("min_snr", "eps"), [1, 1, 1, 5 / snr[3]], rtol=1e-5)
    # P2's 1/(k + SNR)^g acts on eps; taken on x it would be another loss
    np.testing.assert_allclose(on("p2", "eps"), 1 / (1 + snr), rtol=1e-5)
    assert abs(on("p2", "x")[1] - 1 / (1 + snr[1])) > 0.9
    # The plain error of eps is SNR on x, not 1; that of v is SNR + 1
    np.testing.assert_allclose(on("eps", "x"), snr, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(on("v", "x"), snr + 1, rtol=1e-5)


@pytest.mark.parametrize("text", EXAMPLES)
def test_weightings_that_undo_zero_terminal_training(text):
    """What is learned at SNR = 0: nothing, where the weight on the v error vanishes; `vanishes_at_zero_snr` says so."""
    vanishes = published(text, "v", -60.0, 1.0) < 1e-6
    assert losses_of.vanishes_at_zero_snr(text) == vanishes
    x, eps = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 1))
    random = losses_of.Draw(jnp.ones(2), eps, None, None)

    def loss(scale):
        network = known("v", lambda z, log_snr: scale * z)
        return losses_of.errors(network, x, None, random, make("zero_terminal(linear)"), make_weighting(text))[0].sum()

    slope = float(jax.jit(jax.grad(loss))(0.5))
    assert np.isfinite(slope) and (abs(slope) < 1e-6) == vanishes


def test_which_weightings_vanish():
    assert {name for name in WEIGHTINGS if losses_of.vanishes_at_zero_snr(name)} == {
        "eps",
        "vlb",
        "min_snr",
        "p2",
        "sigmoid",
        "soft_min_snr",
        "debiased",
    }


# -- errors in a spec


@pytest.mark.parametrize(
    "text, says",
    [
        ("snr", f"unknown weighting 'snr' (did you mean 'min_snr'?); known: {', '.join(sorted(WEIGHTINGS))}"),
        ("uncertain(cosine)", f"unknown weighting 'cosine'; known: {', '.join(sorted(WEIGHTINGS))}"),
        ("min_snr(gama=5)", "weighting 'min_snr(gama=5)': got an unexpected keyword argument 'gama'; min_snr takes (gamma=5.0)"),
        ("v(1)", "weighting 'v(1)': too many positional arguments; v takes (no parameters)"),
    ],
)
def test_bad_weightings(text, says):
    with pytest.raises(ValueError) as error:
        make_weighting(text)
    assert str(error.value) == says


NUMBERS = [(name, p) for name, f in WEIGHTINGS.items() for p in list(inspect.signature(f).parameters)[2:] if p != "weighting"]


@pytest.mark.parametrize(("name", "parameter"), NUMBERS)
def test_numbers_of_weightings_have_ranges(name, parameter):
    low, high = losses_of.RANGES.get(parameter, (-1e9, 1e9))
    for text in ["True", "'1'", "[1, 2]", "nan", "cosine", "-inf", repr(high * 1.01), repr(low - 0.01 * abs(low) - 1e-7)]:
        with pytest.raises(ValueError) as error:
            make_weighting(f"{name}({parameter}={text})")
        says = f"weighting {f'{name}({parameter}={text})'!r}: {parameter} is a number from {low:g} to {high:g}; got {text}"
        assert str(error.value) == says
    for text in map(repr, (low, high)):
        weights = weight(make_weighting(f"{name}({parameter}={text})"), "v", jnp.array([-jnp.inf, -30.0, 0.0, 30.0]), jnp.ones(4))
        assert jnp.isfinite(weights).all()


# -- draws

SHAPE = (8, 8, 1)


draw = jax.jit(losses_of.draw, static_argnums=(2, 3, 4))


def drawn(step=0, seed=0, batch=64, index=None, shape=SHAPE, offset=0.0):
    key = jax.random.fold_in(jax.random.key(seed), step)
    return draw(key, jnp.arange(batch) if index is None else index, batch, shape, offset)


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_one_u_in_each_of_as_many_equal_strata(batch):
    for step in range(5):
        u = np.float64(drawn(step, batch=batch).u)
        below = np.sort(u) * batch - np.arange(batch)  # in (0, 1]: rounded to float32, and never 0
        assert below.min() > -1e-4 and below.max() < 1 + 1e-4 and u.min() > 0 and u.max() <= 1


def test_u_within_its_stratum_is_uniform_and_free_of_the_others():
    within = np.concatenate([np.float64(drawn(step).u) * 64 % 1 for step in range(30)]).reshape(30, 64)
    assert stats.kstest(within.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(within[:, :-1].ravel(), within[:, 1:].ravel())[0, 1]) < 0.06
    assert stats.kstest(np.concatenate([drawn(step).label_draw for step in range(30)]), "uniform").pvalue > 0.01


def test_an_average_over_strata_is_close_to_the_integral():
    means = np.array([np.cos(np.pi / 2 * np.float64(drawn(step).u)).mean() for step in range(20)])
    assert np.abs(means - 2 / np.pi).max() < 4e-3  # 64 independent draws: 0.04


def test_eps_is_standard_normal():
    eps = np.concatenate([drawn(step).eps.ravel() for step in range(8)])  # 32768 of them
    assert stats.kstest(eps, "norm").pvalue > 0.01
    images = np.asarray(drawn().eps).reshape(64, -1)
    assert np.abs(np.corrcoef(images) - np.eye(64)).max() < 0.6  # 64 pixels each: 1/8 is one standard deviation


def test_offset_noise_is_one_number_more_for_each_image_and_channel():
    """Covariance I + offset^2 1 1^T in a channel, none between channels or images: Guttenberg 2023."""
    offset, shape = 0.3, (2, 2, 3)
    eps = lambda offset: np.concatenate([drawn(step, batch=1000, shape=shape, offset=offset).eps for step in range(8)])
    plain, noisy = eps(0.0), eps(offset)
    added = (noisy - plain) / offset
    assert np.ptp(added, axis=(1, 2)).max() < 1e-5  # the same for all pixels of a channel
    number = added[:, 0, 0]
    assert stats.kstest(number.ravel(), "norm").pvalue > 0.01 and len(np.unique(number)) > 0.99 * number.size
    assert np.abs(np.corrcoef(number.T) - np.eye(3)).max() < 0.05  # 8000 images: 0.011 is one standard deviation
    assert abs(np.corrcoef(number[:-1, 0], number[1:, 0])[0, 1]) < 0.05
    flat = noisy.transpose(0, 3, 1, 2).reshape(len(noisy), 12)
    wanted = np.eye(12) + offset**2 * np.kron(np.eye(3), np.ones((4, 4)))
    assert np.abs(np.cov(flat.T) - wanted).max() < 0.06
    means = noisy.mean(axis=(1, 2)).var(axis=0)
    np.testing.assert_allclose(means, 1 / 4 + offset**2, rtol=0.06)  # without it, 1/4: a quarter less


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_offset_noise_leaves_all_other_draws_as_they_were(offset):
    """The keys and the numbers are those of a draw written out as it was before there was an offset."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def before(key, i):
        u_key, eps_key, dropout_key, label_key = jax.random.split(jax.random.fold_in(key, i), 4)
        u = jnp.maximum(1 - (i + jax.random.uniform(u_key)) / 64, 2.0**-24)
        return u, jax.random.normal(eps_key, SHAPE), jax.random.key_data(dropout_key), jax.random.uniform(label_key)

    u, eps, dropout_keys, label_draw = before(jax.random.fold_in(jax.random.key(3), 5), jnp.arange(64))
    random = drawn(5, 3, offset=offset)
    np.testing.assert_array_equal(random.u, u)
    np.testing.assert_array_equal(jax.random.key_data(random.dropout_keys), dropout_keys)
    np.testing.assert_array_equal(random.label_draw, label_draw)
    assert (random.eps == eps).all() == (not offset)


def test_without_offset_noise_nothing_is_computed_for_it():
    program = lambda *given: str(
        jax.make_jaxpr(lambda key, index: losses_of.draw(key, index, 4, SHAPE, *given))(jax.random.key(0), jnp.arange(4))
    )
    assert program() == program(0.0) != program(0.1)


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_an_example_does_not_depend_on_how_the_batch_is_split(offset):
    whole = drawn(offset=offset)
    order = np.random.default_rng(0).permutation(64)
    for part in (order[:32], order[32:]):
        split = drawn(index=jnp.asarray(part), offset=offset)
        for ours, theirs in zip(split, whole, strict=True):
            if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
                ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
            np.testing.assert_array_equal(ours, theirs[part])


def test_steps_seeds_and_examples_draw_anew():
    first, again = drawn(), drawn()
    np.testing.assert_array_equal(first.eps, again.eps)
    for other in (drawn(step=1), drawn(seed=1)):
        assert (first.u != other.u).all() and (first.eps != other.eps).mean() > 0.99
    assert len(np.unique(jax.random.key_data(first.dropout_keys), axis=0)) == 64
    assert len({float(value) for value in first.eps[:, 0, 0, 0]}) == 64


@pytest.mark.parametrize("spec", ["discrete(linear, num_steps=32)", "discrete(scaled_linear, num_steps=32, zero_terminal=True)"])
def test_a_table_gives_exactly_its_levels_and_all_alike(spec):
    schedule = make(spec)
    levels, counts = np.unique(schedule(drawn(batch=96).u), return_counts=True)
    np.testing.assert_array_equal(levels, np.float32(schedule.table.log_snr)[::-1])
    assert (counts == 3).all()


def test_a_continuous_schedule_draws_levels_with_its_own_density():
    log_snr = np.concatenate([make("log_normal(mean=1, std=2)")(drawn(step).u) for step in range(20)])
    assert log_snr.mean() == pytest.approx(1, abs=0.02) and log_snr.std() == pytest.approx(2, abs=0.05)


# -- the loss


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_losses_equal_a_plain_computation(prediction):
    x, random, schedule = jnp.tanh(drawn(seed=9).eps), drawn(), make("linear")
    losses, log_snr = losses_of.errors(
        known(prediction, lambda z, log_snr: 0.3 * z + 0.01 * log_snr[:, None, None, None]),
        x,
        None,
        random,
        schedule,
        make_weighting("min_snr"),
    )
    u, x, eps = np.float64(random.u), np.float64(x), np.float64(random.eps)
    alpha_bar = np.exp(-(0.1 * u + 9.95 * u**2)).reshape(-1, 1, 1, 1)
    level = np.log(alpha_bar / (1 - alpha_bar))
    z = alpha_bar**0.5 * x + (1 - alpha_bar) ** 0.5 * eps
    target = {"x": x, "eps": eps, "v": alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x}[prediction]
    error = ((0.3 * z + 0.01 * level - target) ** 2).mean((1, 2, 3))
    level = level[:, 0, 0, 0]
    np.testing.assert_allclose(log_snr, level, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses, published("min_snr", prediction, level, 1.0) * error, rtol=2e-4)


@pytest.mark.parametrize("spec", ["cosine", "zero_terminal(linear)", "discrete(linear, num_steps=10, zero_terminal=True)"])
def test_the_loss_and_its_gradient_are_finite_at_zero_snr(spec):
    x, eps = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 1))
    random = losses_of.Draw(jnp.array([1.0, 0.5]), eps, None, None)
    cases = [(prediction, make_weighting(text)) for prediction in ("x", "v") for text in WEIGHTINGS]

    @jax.jit
    def losses(scale):
        network = lambda prediction: known(prediction, lambda z, log_snr: scale * z)
        return jnp.stack(
            [
                losses_of.errors(network(prediction), x, None, random, make(spec), log_weight)[0]
                for prediction, log_weight in cases
            ]
        )

    assert np.isneginf(make(spec)(random.u)[0]) and np.isfinite(losses(0.5)).all() and np.isfinite(jax.jacrev(losses)(0.5)).all()


def test_learned_uncertainty_is_the_logarithm_of_the_expected_loss_of_each_level():
    """A network with a weighted error of a(level): Adam on the series alone arrives at u = log a, where the loss is 1 + log a."""
    wanted = lambda log_snr: jnp.cos(2 * conditioning.angle(log_snr)) - 2  # of log a
    schedule, weighting = make("cosine"), make_weighting("uncertain(x)")
    x = jnp.zeros((64, 2, 2, 1))

    def losses(coefficients, random):
        series = Uncertainty()
        series.coefficients[...] = coefficients
        wrong = lambda z, log_snr, *given: jnp.exp(0.5 * wanted(log_snr)).reshape(-1, 1, 1, 1) * jnp.ones_like(z)
        return losses_of.errors(
            types.SimpleNamespace(prediction="x", output=wrong, uncertainty=series), x, None, random, schedule, weighting
        )

    @jax.jit
    def descend(coefficients):
        optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 300))

        def step(carry, key):
            random = losses_of.draw(key, jnp.arange(64), 64, (2, 2, 1))
            grads = jax.grad(lambda c: losses(c, random)[0].mean())(carry[0])
            updates, moments = optimizer.update(grads, carry[1])
            return (optax.apply_updates(carry[0], updates), moments), None

        return jax.lax.scan(step, (coefficients, optimizer.init(coefficients)), jax.random.split(jax.random.key(0), 300))[0][0]

    found = descend(jnp.zeros(Uncertainty.TERMS))
    series, levels = Uncertainty(), jnp.linspace(-6, 6, 9)
    assert jnp.abs(series(levels)).max() == 0
    series.coefficients[...] = found
    np.testing.assert_allclose(series(levels), wanted(levels), atol=0.02)
    value, log_snr = losses(found, drawn(shape=(2, 2, 1)))
    np.testing.assert_allclose(value, 1 + wanted(log_snr), atol=0.02)
    assert np.isfinite(series(jnp.array([-jnp.inf, jnp.inf]))).all()


@pytest.mark.slow
def test_a_run_that_learns_its_uncertainty_is_trained_continued_and_sampled(main, words, stand_in, tmp_path):
    changes = {"weighting": "uncertain(v)", "training.num_steps": "4"}
    assert main("train", f"--workdir={tmp_path}/run", *words(changes))[0] == 0
    assert main("train", f"--workdir={tmp_path}/run", *words(changes | {"training.num_steps": "6"}), "--accept_changes")[0] == 0
    with Checkpoints(Workdir(tmp_path / "run"), max_to_keep=None) as checkpoints:
        _, items = checkpoints.restore({"params": build.abstract_denoiser(stand_in(changes))[1]})
    assert np.abs(items["params"]["uncertainty"]["coefficients"]).max() > 0
    code, _, err = main("sample", f"--workdir={tmp_path}/run", "--num_images=2", "--steps=2", f"--out={tmp_path}/samples")
    assert code == 0, err


def test_labels_and_dropout_keys_reach_the_network():
    seen = []
    network = types.SimpleNamespace(prediction="x", output=lambda z, *given: seen.append(given) or z)
    random, labels = drawn(), jnp.arange(64)
    losses_of.errors(network, jnp.zeros((64, *SHAPE)), labels, random, make("cosine"), make_weighting("x"))
    assert seen[0][1] is labels and seen[0][2] is random.dropout_keys


@pytest.mark.slow
def test_a_training_step_with_offset_noise_from_the_command_line(main, words, stand_in, tmp_path):
    """An untrained network answers 0, so the first loss is the mean square of v, of the noise that is asked for."""
    changes = {"noise_offset": "2", "training.num_steps": "1"}
    assert main("train", f"--workdir={tmp_path}", *words(changes))[0] == 0
    workdir, config = Workdir(tmp_path), stand_in(changes)
    assert workdir.read_config()["noise_offset"] == 2.0
    with batches(open_config(config.data), batch_size=16, seed=0, flip=False) as stream:
        x = scale(next(stream)["image"])
    wanted = []
    for offset in (2.0, 0.0):
        random = drawn(batch=16, offset=offset)
        wanted.append(float(jnp.square(diffusion.v_from(x, random.eps, make(config.schedule)(random.u))).mean()))
    (line,) = read_metrics(workdir.metrics)
    assert line["loss"] == pytest.approx(wanted[0], rel=1e-4) and wanted[0] > 1.5 * wanted[1]
