"""Laws of the variance-preserving process, against float64 and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noisesched import diffusion

LEVELS = np.array([-np.inf, -100, -30, -8, -1, 0, 1, 8, 30], np.float32)


def test_alpha_sigma_match_float64():
    log_snr = LEVELS.astype(np.float64)
    np.testing.assert_allclose(diffusion.alpha(LEVELS), (1 / (1 + np.exp(-log_snr))) ** 0.5, rtol=2e-6, atol=1e-20)
    np.testing.assert_allclose(diffusion.sigma(LEVELS), (1 / (1 + np.exp(log_snr))) ** 0.5, rtol=2e-6)


def test_exact_ends():
    ends = jnp.array([-jnp.inf, jnp.inf])
    assert diffusion.alpha(ends).tolist() == [0, 1] and diffusion.sigma(ends).tolist() == [1, 0]
    assert diffusion.snr(ends).tolist() == [0, np.inf] and diffusion.alpha_bar(ends).tolist() == [0, 1]


def test_variance_is_preserved():
    log_snr = jnp.linspace(-30, 30, 601)
    np.testing.assert_allclose(diffusion.alpha(log_snr) ** 2 + diffusion.sigma(log_snr) ** 2, 1, atol=2e-7)


def test_log_snr_round_trip():
    log_snr = jnp.linspace(-30, 10, 81)
    np.testing.assert_allclose(diffusion.log_snr_from_alpha_bar(diffusion.alpha_bar(log_snr)), log_snr, atol=2e-3)
    assert diffusion.log_snr_from_alpha_bar(jnp.array([0.0, 1.0])).tolist() == [-np.inf, np.inf]


def test_betas_are_ddpms():
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - betas)
    log_snr = np.log(alpha_bar) - np.log1p(-alpha_bar)
    np.testing.assert_allclose(diffusion.betas(log_snr), betas, rtol=2e-3)
    assert diffusion.betas(np.array([3.0, -np.inf]))[-1] == 1


@pytest.mark.parametrize(
    "prediction, log_snr",
    [
        (prediction, log_snr)
        for prediction in diffusion.PREDICTIONS
        for log_snr in (-8.0, 0.0, 8.0, -np.inf, 30.0)
        if (prediction, log_snr) != ("eps", -np.inf)  # which no image follows from: refused at start-up, see test_config
    ],
)
def test_predictions_give_back_x(prediction, log_snr):
    x, eps = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
    level = jnp.full(3, log_snr)
    z = diffusion.add_noise(x, eps, level)
    output = diffusion.target(prediction, x, eps, level)
    np.testing.assert_allclose(diffusion.x_from(prediction, output, z, level), x, atol=1e-4)
    if log_snr < 30:  # at 30, z and x agree to float32 and no eps can be read off
        np.testing.assert_allclose(diffusion.eps_from(x, z, level), eps, atol=1e-3)


@pytest.mark.parametrize("log_snr", [-6.0, 0.0, 6.0])
def test_errors_of_one_estimate_differ_by_known_factors(log_snr):
    """|eps error|^2 = SNR |x error|^2 and |v error|^2 = (SNR + 1) |x error|^2, for an arbitrary wrong output."""
    x, eps, wrong = jax.random.normal(jax.random.key(0), (3, 5, 4))
    level = jnp.full(5, log_snr)
    z = diffusion.add_noise(x, eps, level)
    for prediction, factor in (("eps", np.exp(log_snr)), ("v", np.exp(log_snr) + 1), ("x", 1.0)):
        error = jnp.square(wrong - diffusion.target(prediction, x, eps, level)).sum()
        x_error = jnp.square(diffusion.x_from(prediction, wrong, z, level) - x).sum()
        np.testing.assert_allclose(error, factor * x_error, rtol=1e-3)


def test_v_at_the_ends():
    x, eps = jax.random.normal(jax.random.key(0), (2, 2, 3))
    assert (diffusion.v_from(x, eps, jnp.full(2, -jnp.inf)) == -x).all()
    assert (diffusion.v_from(x, eps, jnp.full(2, jnp.inf)) == eps).all()


@pytest.mark.parametrize("start, lower", [(3.0, -2.0), (10.0, 9.9), (0.0, -np.inf), (-np.inf, -np.inf), (4.0, 4.0)])
def test_more_noise_composes(start, lower):
    """q(z_lower | z_start) after q(z_start | x) is q(z_lower | x): mean alpha x, variance sigma^2."""
    x, many = 1.5, 200_000
    first, second = jax.random.normal(jax.random.key(1), (2, many))
    z = diffusion.more_noise(diffusion.add_noise(x * jnp.ones(many), first, start), second, start, lower)
    np.testing.assert_allclose(z.mean(), diffusion.alpha(lower) * x, atol=0.01)
    np.testing.assert_allclose(z.std(), diffusion.sigma(lower), atol=0.01)


def test_variance_exploding_process_needs_infinite_sigma_for_zero_snr():
    """y = z / alpha has sigma_ve = exp(-log_snr / 2), finite for every SNR above 0 and infinite only at SNR = 0."""
    with np.errstate(divide="ignore"):
        sigma_ve = np.float64(diffusion.sigma(LEVELS[[0, 2, 5]])) / np.float64(diffusion.alpha(LEVELS[[0, 2, 5]]))
    assert sigma_ve[0] == np.inf and np.isfinite(sigma_ve[1:]).all()
    np.testing.assert_allclose(sigma_ve[1:], np.exp(-LEVELS[[2, 5]] / 2), rtol=1e-5)
