"""Discrete schedules: T published betas, what DDPM derives from them, and which of the T steps a sampler visits.

A table is *not* its continuous namesake read at T points: DDPM's linear betas and the continuous `linear` schedule agree
only to first order in 1/T. People use both; `schedules.table` makes either. Everything here is float64 numpy on the host.
"""

import dataclasses
from fractions import Fraction

import numpy as np

SPACINGS = ("trailing", "leading", "linspace")


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A discrete schedule of T steps. Every array is float64 [T]; entry i belongs to timestep i + 1, the cleanest first.

    Notation of Ho et al. 2020: alpha_t = 1 - beta_t, alpha_bar_t = prod of alpha up to t, and the posterior
    q(x_{t-1} | x_t, x_0) of eq. 7. With zero terminal SNR the last alpha is 0, so the last `sqrt_recip_alpha` is infinite.
    """

    betas: np.ndarray
    alpha_bar: np.ndarray

    @property
    def num_steps(self):
        return len(self.betas)

    @property
    def alphas(self):
        return 1.0 - self.betas

    @property
    def alpha_bar_prev(self):
        """alpha_bar of the step before; 1 before the first."""
        return np.concatenate([[1.0], self.alpha_bar[:-1]])

    @property
    def sqrt_alpha_bar(self):
        return np.sqrt(self.alpha_bar)

    @property
    def sqrt_one_minus_alpha_bar(self):
        return np.sqrt(1.0 - self.alpha_bar)

    @property
    def sqrt_recip_alpha(self):
        with np.errstate(divide="ignore"):
            return 1.0 / np.sqrt(self.alphas)

    @property
    def posterior_variance(self):
        """beta_tilde_t = beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t); 0 at the first step."""
        return self.betas * (1.0 - self.alpha_bar_prev) / (1.0 - self.alpha_bar)

    @property
    def posterior_log_variance(self):
        """log beta_tilde, with the first entry (log 0) replaced by the second, as in DDPM's code."""
        variance = self.posterior_variance
        return np.log(np.concatenate([variance[1:2], variance[1:]]) if len(variance) > 1 else np.maximum(variance, 1e-20))

    @property
    def snr(self):
        return self.alpha_bar / (1.0 - self.alpha_bar)

    @property
    def log_snr(self):
        """Decreasing; -inf at a last step of zero SNR."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha_bar) - np.log1p(-self.alpha_bar)


def from_betas(betas):
    """The table of given betas, each in (0, 1]; only the last may be 1."""
    betas = np.asarray(betas, np.float64)
    if not ((betas > 0) & (betas <= 1)).all() or (betas[:-1] == 1).any():
        raise ValueError(f"betas lie in (0, 1), the last may be 1; got betas from {betas.min():.4g} to {betas.max():.4g}")
    return Table(betas, np.cumprod(1.0 - betas))


def from_alpha_bar(alpha_bar):
    """The table of given alpha_bar, decreasing within [0, 1)."""
    alpha_bar = np.asarray(alpha_bar, np.float64)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    if not ((alpha_bar < before) & (alpha_bar >= 0)).all():
        raise ValueError("alpha_bar must decrease from below 1 to not below 0")
    return Table((before - alpha_bar) / before, alpha_bar)


def rescaled_to_zero_terminal(table):
    """sqrt(alpha_bar) mapped linearly so that its last value is exactly 0 and its first unchanged (Lin et al. 2023, alg. 1)."""
    root = table.sqrt_alpha_bar
    return from_alpha_bar((root[0] * (root - root[-1]) / (root[0] - root[-1])) ** 2)


def snr_rescaled_to_zero_terminal(table):
    """The SNR mapped linearly so that its last value is exactly 0 and its first unchanged: `schedules.zero_terminal_snr`."""
    snr = table.snr
    rescaled = snr[0] * ((snr - snr[-1]) / (snr[0] - snr[-1]))
    return from_alpha_bar(rescaled / (1.0 + rescaled))


# -- published betas: functions of the number of steps, with the published values as defaults


def linear(num_steps, beta_min=1e-4, beta_max=0.02):
    """Ho et al. 2020, for 1000 steps. At other T the ends are kept as given, so the terminal SNR changes with T."""
    return np.linspace(beta_min, beta_max, num_steps)


def scaled_linear(num_steps, beta_min=0.00085, beta_max=0.012):
    """Linear in sqrt(beta): latent diffusion and Stable Diffusion (Rombach et al. 2022)."""
    return np.linspace(beta_min**0.5, beta_max**0.5, num_steps) ** 2


def quadratic(num_steps, beta_min=1e-4, beta_max=0.02):
    """beta = beta_min + r^2 (beta_max - beta_min), r from 0 to 1. (DDPM's code calls the sqrt-linear one "quad".)"""
    return beta_min + np.linspace(0.0, 1.0, num_steps) ** 2 * (beta_max - beta_min)


def constant(num_steps, beta=0.01):
    """The same beta at every step: the flawed baseline."""
    return np.full(num_steps, beta)


def cosine(num_steps, s=0.008, beta_limit=0.999):
    """Nichol & Dhariwal 2021, eq. 17, with betas cut at 0.999: so even this one has a terminal SNR above 0 (2.4e-9)."""
    # cos((t/T + s)/(1 + s) pi/2), written as a sine of what is left, so that the end is exactly 0
    root = np.sin((1.0 - np.arange(num_steps + 1) / num_steps) / (1.0 + s) * np.pi / 2)
    return np.minimum(1.0 - (root[1:] / root[:-1]) ** 2, beta_limit)


PUBLISHED = {f.__name__: f for f in (linear, scaled_linear, quadratic, constant, cosine)}


# -- step selection


def select_steps(num_train_steps, num_steps, spacing="trailing"):
    """Which of the timesteps 1..num_train_steps a sampler of `num_steps` visits: int64 [num_steps], noisiest first.

    trailing  T, T(1 - 1/N), ..: starts at the last step, where training ended (Lin et al. 2023, table 2)
    leading   multiples of T // N, plus 1: never visits the last step (DDIM, Stable Diffusion as released)
    linspace  both ends and evenly between (N = 1: the noisiest)

    The arithmetic is exact (rational, halves rounded to even as numpy's `round` does), so N steps are N steps for every N.
    Raises ValueError if N is not in 1..T or the spacing is unknown.
    """
    total, n = num_train_steps, num_steps
    if not 1 <= n <= total:
        raise ValueError(f"cannot select {n} of {total} steps: choose 1 to {total}")
    if spacing == "trailing":
        steps = [round(Fraction(total * k, n)) for k in range(n, 0, -1)]
    elif spacing == "leading":
        steps = [1 + k * (total // n) for k in range(n - 1, -1, -1)]
    elif spacing == "linspace":
        steps = [1 + round(Fraction((total - 1) * k, n - 1)) for k in range(n - 1, -1, -1)] if n > 1 else [total]
    else:
        raise ValueError(f"unknown spacing {spacing!r}; known: {', '.join(SPACINGS)}")
    return np.array(steps, np.int64)
