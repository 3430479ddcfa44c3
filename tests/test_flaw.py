"""The flaw and its repair with an exact denoiser, where both follow in closed form: no network, so nothing else is at fault.

The images are flat, of a brightness b uniform on [-0.95, 0.95], plus a texture whose mean is 0. Of d pixels of z, the mean times
sqrt(d) is alpha B + sigma n, with B = b sqrt(d): the brightness is carried by the probability-flow ODE of one number, which keeps
ranks. From pure noise n it ends at the b whose rank is that of n among the *true* values of alpha B + sigma n at the first level:
b = 0.95 (2 F(n) - 1), with F their distribution, a uniform one convolved with a normal one. Offset noise has means of variance
1/d + offset^2 instead of 1/d, so B = b / sqrt(1/d + offset^2); from plain noise, n is then too small a number.
"""

import functools
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from noisesched import samplers, schedules
from noisesched.diffusion import alpha, sigma
from noisesched.evaluation import metrics
from noisesched.runtime import pictures

WIDEST, TEXTURE, SIDE, COUNT = 0.95, 0.03, 32, 500
LEAKING, REPAIRED = "discrete(scaled_linear)", "discrete(scaled_linear, zero_terminal=True)"
SPREAD = WIDEST / math.sqrt(3)  # of the data's brightness: 0.548


def denoise(z, log_snr, offset=0.0):
    """The exact E[x | z] of z [B, H, W, 1]: of the mean by summing over 401 brightnesses, of the texture linear."""
    a, s, d = alpha(log_snr), sigma(log_snr), 1 / (1 / z[0].size + offset**2)
    mean = z.mean((1, 2, 3))
    b = jnp.linspace(-WIDEST, WIDEST, 401)
    brightness = jax.nn.softmax(-0.5 * d * ((mean[:, None] - a[:, None] * b[None]) / s[:, None]) ** 2) @ b
    kept = a * TEXTURE**2 / (a**2 * TEXTURE**2 + s**2)
    per_image = lambda values: values[:, None, None, None]
    return per_image(brightness) + per_image(kept) * (z - per_image(mean))


@functools.lru_cache
def images(log_snrs, offset=0.0, start=0.0):
    """uint8 [COUNT, H, W, 1] made at these levels from pure noise, whose means are the quantiles of their distribution.

    `offset`: of the noise that the denoiser knows; `start`: of the noise that it is given.
    """
    z = jax.random.normal(jax.random.key(1), (COUNT, SIDE, SIDE, 1))
    means = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / COUNT) for i in range(COUNT)])
    means *= math.hypot(1 / SIDE, start)
    z = z - z.mean((1, 2, 3), keepdims=True) + means[:, None, None, None].astype(np.float32)
    return np.asarray(pictures.unscale(_sample(z, jnp.array(log_snrs, jnp.float32), offset)))


@jax.jit
def _sample(z, log_snrs, offset):
    return samplers.sample(lambda z, log_snr: denoise(z, log_snr, offset), jax.random.key(0), z, log_snrs)


def finely(schedule, steps, spacing):
    """The first level of an inference schedule, from which the ODE is then solved in so small steps that they do not count."""
    first = float(schedules.levels(schedule, steps, spacing)[0])
    path = np.linspace(-16, 10, 131)
    return (first, *path[path > first + 0.1].tolist())


def brightness(made):
    return made.mean((1, 2, 3)) / 127.5 - 1


def predicted(schedule, steps, spacing, offset=0.0, start=0.0):
    """(spread, Wasserstein-1 distance from the data) of the brightness that an exact solver of the ODE ends with, float64."""
    level = float(schedules.levels(schedule, steps, spacing)[0])
    signal = math.sqrt(1 / (1 + math.exp(-level))) if level > -700 else 0.0
    noise, reach = math.sqrt(1 - signal**2), signal * WIDEST / math.hypot(1 / SIDE, offset)
    n = np.linspace(-8, 8, 1601)
    weight = np.exp(-(n**2) / 2) / math.sqrt(2 * math.pi) * (n[1] - n[0])
    summed = lambda t: t * ndtr(t) + np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)  # the integral of ndtr
    m = n * math.hypot(1 / SIDE, start) / math.hypot(1 / SIDE, offset)
    rank = ndtr(m) if not reach else (summed((m + reach) / noise) - summed((m - reach) / noise)) * noise / (2 * reach)
    made, true = (WIDEST * (2 * r - 1) for r in (rank, ndtr(n)))
    return math.sqrt((weight * made**2).sum()), (weight * np.abs(made - true)).sum()


def test_predictions_have_the_limits_that_they_must():
    assert predicted(REPAIRED, 10, "trailing") == pytest.approx((SPREAD, 0.0), abs=1e-6)
    assert predicted(LEAKING, 10, "leading")[0] == pytest.approx(0.26, abs=0.005)  # less than half of the data's
    nearly = "truncated(cosine, log_snr_min=-20, log_snr_max=10)"
    assert predicted(nearly, 4, "trailing") == pytest.approx((SPREAD, 0.0), abs=2e-3)  # at such a level no image is seen
    clean = "truncated(cosine, log_snr_min=6, log_snr_max=10)"  # and here all of it is, so noise is taken for the image's own
    assert predicted(clean, 4, "trailing")[0] == pytest.approx(1 / SIDE, rel=2e-3)


@pytest.mark.parametrize(
    ("schedule", "steps", "spacing"),
    [
        (LEAKING, 10, "leading"),
        (LEAKING, 50, "trailing"),
        (REPAIRED, 10, "leading"),
        (REPAIRED, 50, "trailing"),
        ("cosine", 10, "trailing"),
    ],
)
def test_brightness_is_that_of_the_first_level(schedule, steps, spacing):
    spread, distance = predicted(schedule, steps, spacing)
    made = images(finely(schedule, steps, spacing))
    assert brightness(made).std() == pytest.approx(spread, rel=0.02)
    true = (np.linspace(-WIDEST, WIDEST, COUNT) * 127.5 + 127.5).round().astype(np.uint8)
    found = metrics.METRICS["brightness"].against(np.broadcast_to(true[:, None, None, None], made.shape))(made)
    assert found == pytest.approx(distance, abs=0.01)


def test_each_part_of_the_repair_is_needed():
    spread = {
        (schedule, spacing): brightness(images(finely(schedule, 10, spacing))).std()
        for schedule in (LEAKING, REPAIRED)
        for spacing in ("trailing", "leading")
    }
    whole = spread.pop((REPAIRED, "trailing"))
    assert whole > 0.95 * SPREAD and max(spread.values()) < 0.85 * SPREAD


@pytest.mark.parametrize("start", [0.0, 0.1])
def test_offset_noise_repairs_what_also_starts_from_it(start):
    spread, _ = predicted(LEAKING, 50, "trailing", offset=0.1, start=start)
    found = brightness(images(finely(LEAKING, 50, "trailing"), offset=0.1, start=start)).std()
    assert found == pytest.approx(spread, rel=0.04)
    assert spread > 0.93 * SPREAD if start else spread < 0.6 * predicted(LEAKING, 50, "trailing")[0]


def test_few_steps_cost_spread_too():
    # From zero SNR the first step goes to the data's mean; what the mean of 1024 pixels says of the image comes in few levels.
    made = [steps_alone(REPAIRED, n) for n in (5, 50)]
    assert made[0] < 0.6 * SPREAD and 0.9 * SPREAD < made[1] < SPREAD


def steps_alone(schedule, steps, spacing="trailing"):
    return brightness(images(tuple(map(float, schedules.levels(schedule, steps, spacing))))).std()


def table():
    """Prints what README shows: the spread of the brightness of samples by an exact denoiser."""
    counts = (5, 10, 25, 50, 100)
    print(f"data: {SPREAD:.3f}; an exact solver from the first level, then DDIM with {counts} steps")
    for schedule in (LEAKING, REPAIRED, "cosine"):
        for spacing in ("trailing", "leading"):
            exact = [f"{predicted(schedule, n, spacing)[0]:.3f}" for n in counts]
            print(schedule, spacing, "exact", *exact, "ddim", *(f"{steps_alone(schedule, n, spacing):.3f}" for n in counts))
    for start in (0.0, 0.1):
        exact = predicted(LEAKING, 50, "trailing", offset=0.1, start=start)[0]
        print(f"{LEAKING} trailing, offset noise 0.1, sampled from noise of offset {start}: exact {exact:.3f}")


if __name__ == "__main__":
    table()
