"""How the network is told the noise level: log-SNR -> features.

This is one of two factors that are kept apart: which levels training *draws* is the schedule's business; what the network
is *told* is decided here, and is nobody else's. A kind maps log-SNR to a position in [0, 1] (0 clean, 1 noise), bounded and
finite at log-SNR = -inf, from which sinusoids are taken as in DDPM. To add a kind, write its function and put it in KINDS.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from noisesched import diffusion

TRANSLATIONS = ("nearest", "interpolated")
ROUNDING = 1e-3  # in log-SNR: a level beyond an end by no more is at it


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What the network is told of the noise level.

    kind         one of KINDS: "log_snr" | "sigma" | "timestep" | "none"
    width        number of features, even; None for a network that makes its own, of one number (see `number`)
    table        log-SNRs of timesteps 1..T, decreasing (kind "timestep" only): a tuple, so that it is no parameter
    translation  how a level is turned into a timestep: "nearest" or "interpolated"; levels beyond the table's ends are
                 told as its first or last step
    """

    kind: str
    width: int | None
    table: tuple[float, ...] = ()
    translation: str = "nearest"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"unknown conditioning.kind {self.kind!r}; known: {', '.join(KINDS)}")
        if self.translation not in TRANSLATIONS:
            raise ValueError(f"unknown conditioning.translation {self.translation!r}; known: {', '.join(TRANSLATIONS)}")
        if self.width is not None and (self.width < 2 or self.width % 2):
            raise ValueError(f"the noise level is told by an even number of features, 2 or more; got {self.width}")
        if (self.kind == "timestep") != bool(self.table):
            raise ValueError(
                f"conditioning.kind {self.kind!r} with a table of {len(self.table)} steps: only "
                "'timestep' has a table, and needs one"
            )

    def __call__(self, log_snr):
        """log_snr [B] -> features [B, width], float32, each in [-1, 1]; the `number` [B] if width is None."""
        if self.width is None:
            return self.number(log_snr)
        return sinusoids(KINDS[self.kind](self, log_snr.astype(jnp.float32)), self.width)

    def number(self, log_snr):
        """log_snr [B] -> [B], float32: the timestep from 0, as diffusers counts; of other kinds 1000 times the position."""
        log_snr = log_snr.astype(jnp.float32)
        if self.kind == "timestep":
            return timestep(log_snr, self.table, self.translation) - 1
        return 1000.0 * KINDS[self.kind](self, log_snr)


def sinusoids(position, width):
    """Position [B] in [0, 1] -> [B, width]: cosines and sines of 1000 times it, at frequencies from 1 down to 1e-4.

    DDPM's features of its thousand timesteps (Ho et al. 2020; Vaswani et al. 2017), whatever the position stands for.
    """
    frequencies = np.exp(-np.log(1e4) * np.arange(width // 2) / (width // 2)).astype(np.float32)
    angles = 1000.0 * position[:, None] * frequencies[None]  # [B, width / 2]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def angle(log_snr):
    """(2/pi) atan(sigma/alpha) in [0, 1]: the share of a right angle between image (0) and noise (1); u of plain cosine."""
    return jnp.arctan(jnp.exp(-0.5 * log_snr)) * (2 / jnp.pi)


def timestep(log_snr, table, translation):
    """log_snr [B] -> the timestep in [1, T], float32 [B], of a table of log-SNRs (decreasing, [T], the last may be -inf).

    Whole numbers for "nearest", fractions for "interpolated". Distances are measured in `angle`, which is finite where
    log-SNR is not. Timesteps are 1-based, 1 the cleanest.
    """
    table = jnp.asarray(table, jnp.float32)
    steps = jnp.arange(1, len(table) + 1, dtype=jnp.float32)
    # Angles from the nearer of image and noise: 1 - 1e-8 is 1 in float32, and would merge a table's noisiest steps.
    from_image = jnp.interp(angle(log_snr), angle(table), steps)
    from_noise = jnp.interp(-angle(-log_snr), -angle(-table), steps)
    step = jnp.where(log_snr > 0, from_image, from_noise)
    return jnp.round(step) if translation == "nearest" else step


def outside(log_snrs, table):
    """How far each level lies beyond a table's ends, in log-SNR: > 0 cleaner than its first step, < 0 noisier than its last, 0 if
    by no more than ROUNDING. Of the table only the ends matter, (cleanest, .., noisiest)."""
    log_snrs = np.asarray(log_snrs, np.float64)
    first, last = table[0], table[-1]
    with np.errstate(invalid="ignore"):
        beyond = np.where(log_snrs > first, log_snrs - first, np.where(log_snrs < last, log_snrs - last, 0.0))
    return np.where(np.abs(beyond) > ROUNDING, beyond, 0.0)


KINDS = {
    "log_snr": lambda self, log_snr: angle(log_snr),
    "sigma": lambda self, log_snr: diffusion.sigma(log_snr),
    "timestep": lambda self, log_snr: timestep(log_snr, self.table, self.translation) / len(self.table),
    "none": lambda self, log_snr: jnp.zeros_like(log_snr),
}
