"""DDPM's discrete schedules against published figures and direct recomputation; step selection."""

import math

import numpy as np
import pytest

from noisesched import schedules, tables
from noisesched.schedules import make, select_steps, table

EVERY = [*tables.PUBLISHED, "sigmoid", "flow", "karras", "zero_terminal(linear)", "cosine(s=0.02)"]


# -- published figures, recomputed


@pytest.mark.parametrize(
    "name, parameters, snr, root",
    [
        ("linear", {}, 4.035993e-05, 0.006353),
        ("cosine", {}, 2.4288e-09, 4.928e-05),
        ("scaled_linear", dict(beta_min=0.00085, beta_max=0.012), 0.004682, 0.068265),
    ],
)
def test_terminal_values(name, parameters, snr, root):
    made = table(name, num_steps=1000, **parameters)
    assert made.snr[-1] == pytest.approx(snr, rel=2e-4) and made.sqrt_alpha_bar[-1] == pytest.approx(root, rel=1e-4)


def test_linear_by_a_plain_loop():
    made, product = table("linear", num_steps=1000, beta_min=1e-4, beta_max=0.02), 1.0
    for step in range(1000):
        beta, before = 1e-4 + (0.02 - 1e-4) * step / 999, product
        product *= 1 - beta
        assert made.betas[step] == pytest.approx(beta, rel=1e-12) and made.alphas[step] == pytest.approx(1 - beta, rel=1e-12)
        assert made.alpha_bar[step] == pytest.approx(product, rel=1e-10)
        assert made.alpha_bar_prev[step] == pytest.approx(before, rel=1e-10)
        assert made.posterior_variance[step] == pytest.approx(beta * (1 - before) / (1 - product), rel=1e-9)
        assert made.sqrt_recip_alpha[step] == pytest.approx((1 - beta) ** -0.5, rel=1e-12)
        assert made.log_snr[step] == pytest.approx(math.log(product / (1 - product)), rel=1e-9)
        assert made.sqrt_one_minus_alpha_bar[step] == pytest.approx((1 - product) ** 0.5, rel=1e-9)


def test_cosine_betas_are_cut_at_their_published_limit():
    made = table("cosine")
    assert made.betas[-1] == 0.999 and (made.betas[:-1] < 0.999).all()


def test_posterior_log_variance_starts_with_its_second_entry():
    made = table("linear")
    assert made.posterior_variance[0] == 0 and made.posterior_log_variance[0] == made.posterior_log_variance[1]
    np.testing.assert_allclose(np.exp(made.posterior_log_variance[1:]), made.posterior_variance[1:])


# -- laws of every table


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("num_steps", [2, 50, 1000])
@pytest.mark.parametrize("zero_terminal", [False, True])
def test_laws(name, num_steps, zero_terminal):
    made = table(name, num_steps=num_steps, zero_terminal=zero_terminal)
    assert made.num_steps == len(made.betas) == num_steps
    assert ((made.betas > 0) & (made.betas <= 1)).all() and (np.diff(made.alpha_bar) < 0).all()
    np.testing.assert_allclose(np.cumprod(made.alphas), made.alpha_bar, rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(made.sqrt_alpha_bar**2 + made.sqrt_one_minus_alpha_bar**2, 1)
    for array in (made.betas, made.snr, made.posterior_variance, made.posterior_log_variance, made.sqrt_recip_alpha):
        assert array.shape == (num_steps,) and array.dtype == np.float64
    if zero_terminal:
        assert made.snr[-1] == 0 and made.log_snr[-1] == -np.inf and made.betas[-1] == 1
        assert made.alpha_bar[0] == pytest.approx(table(name, num_steps=num_steps).alpha_bar[0], rel=1e-12)


def test_a_table_is_not_its_curve_but_tends_to_it():
    """DDPM's 1000 linear betas and beta(u) = 0.1 + 19.9 u agree to first order in 1/T only."""
    curve = schedules.make("linear")

    def gap(num_steps):
        discrete = table("linear", num_steps=num_steps, beta_min=0.1 / num_steps, beta_max=20 / num_steps)
        return abs(discrete.log_snr[num_steps // 2 - 1] - float(curve(0.5)))

    assert 1e-4 < gap(1000) < 0.05 and gap(4000) == pytest.approx(gap(1000) / 4, rel=0.1)


def test_a_spec_with_arguments_samples_the_curve():
    u = np.arange(1, 11) / 10
    np.testing.assert_allclose(table("flow", num_steps=10).log_snr[:-1], 2 * np.log((1 - u[:-1]) / u[:-1]), atol=1e-9)
    assert table("flow", num_steps=10).snr[-1] == 0


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: table("linear", beta=3), "linear takes (beta_min"),
        (lambda: table("lin"), "unknown schedule"),
        (lambda: table("linear", num_steps=0), "whole number"),
        (lambda: table("linear", beta_max=2.0), "betas lie in"),
        (lambda: table("karras", rho=3), "belong inside the spec"),
    ],
)
def test_bad_tables(call, says):
    with pytest.raises(ValueError) as error:
        call()
    assert says in str(error.value) and "\n" not in str(error.value)


# -- discrete schedules: the staircase over a table


@pytest.mark.parametrize("num_steps", [10, 50, 1000])
def test_staircase_draws_every_step_alike_and_exactly(num_steps):
    schedule = make(f"discrete(linear, num_steps={num_steps})")
    log_snr = table("linear", num_steps=num_steps).log_snr
    steps = np.arange(1, num_steps + 1)
    np.testing.assert_allclose(schedule(steps / num_steps), log_snr, rtol=1e-6)  # u = t/T, whatever its float32 rounding
    np.testing.assert_allclose(schedule((steps - 0.5) / num_steps), log_snr, rtol=1e-6)


@pytest.mark.parametrize("spacing", tables.SPACINGS)
def test_levels_of_a_staircase_are_the_selected_steps(spacing):
    schedule, log_snr = make("discrete(linear, num_steps=1000)"), table("linear").log_snr
    for n in (1, 3, 7, 10, 333, 1000):
        expected = log_snr[select_steps(1000, n, spacing) - 1]
        np.testing.assert_allclose(schedules.levels(schedule, n, spacing), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="cannot select 1001 of 1000"):
        schedules.levels(schedule, 1001, spacing)


# -- step selection


def test_published_selections():
    assert select_steps(1000, 10, "leading").tolist() == list(range(901, 0, -100))
    assert select_steps(1000, 10, "linspace").tolist() == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]
    assert select_steps(1000, 10, "trailing").tolist() == list(range(1000, 0, -100))


@pytest.mark.parametrize("spacing", tables.SPACINGS)
@pytest.mark.parametrize("total", [1, 10, 997, 1000])
def test_n_steps_are_n_steps(spacing, total):
    for n in range(1, total + 1):
        steps = select_steps(total, n, spacing)
        assert len(steps) == n and 1 <= steps.min() and steps.max() <= total and (np.diff(steps) < 0).all()
        if spacing != "leading":
            assert steps[0] == total


def test_trailing_is_the_papers_formula():
    """Lin et al. 2023, table 2: round(flip(arange(T, 0, -T/S)))."""
    for n in (3, 7, 9, 27, 50):
        expected = np.round(1000 - 1000 / n * np.arange(n)).astype(int)
        assert select_steps(1000, n, "trailing").tolist() == expected.tolist()


@pytest.mark.parametrize(
    "n, spacing, says",
    [(0, "trailing", "choose 1 to 10"), (11, "leading", "choose 1 to 10"), (5, "tailing", "known: trailing, leading, linspace")],
)
def test_bad_selections(n, spacing, says):
    with pytest.raises(ValueError, match=says):
        select_steps(10, n, spacing)
