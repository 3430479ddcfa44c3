"""What is trained and the levels that are sampled at, as `diagnosis` examines them, and how badly each thing about them counts.

How bad a leak is, is judged by what it does to samples (see `leak`): a deterministic sampler that starts from pure noise at a
level of some R^2 draws its images' brightness to mid-grey by sqrt(R^2) of the way. For images of 64x64 pixels with
Var(m) = 0.07, as photographs have, the published schedules end at R^2 = 0.57 (scaled_linear), 0.043 (karras), 0.012 (linear)
and 7e-7 (cosine's table): the first is known to make no very dark or bright images (Lin et al. 2023), the next two to do well
enough at that size; at 256x256 linear ends at 0.17.
"""

import dataclasses
import functools
import math

import numpy as np

from noisesched import conditioning, leak, objective, schedules
from noisesched.schedules import Schedule

SEVERITIES = ("fault", "warning", "fine")  # what spoils a run; what may be meant, at a cost; what was examined and is well
FAULT = 0.05  # R^2: brightness is drawn 22 % of the way to mid-grey, a black image by 28 of 255 grey levels: seen at a glance
WARNING = 0.01  # R^2: 10 % of the way, 13 grey levels
# SNR that is a fault at any image size, since the mean is not all that leaks: the digits' first principal component has a
# variance of 2.8, ten times that of their mean's direction, and with scaled_linear (SNR 0.0047) an R^2 of 0.013 even at 8x8
# pixels. The published ends lie a factor of 5 above (scaled_linear, Kingma et al. 2021) or 6 and more below (karras, linear,
# cosine).
SNR = 1e-3
NOISE = -10.0  # the log-SNR below which weight is told apart: linear's end
WASTE = 0.1  # share of weight on levels that show nothing; of the published schedules none has more than 0.02
UNTOLD = 0.01  # share of levels cleaner than the table's first step; 0.001 for a table of a thousand steps and its own curve
SAME = 1e-3  # log-SNRs this near are one level: float32's rounding
EDGES = np.linspace(-20.0, 20.0, 161)  # of the bins in which levels and weight are counted; NOISE is one of them


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained. The schedule may end at -inf."""

    schedule: Schedule  # that draws the training levels
    prediction: str  # "eps" | "x" | "v"
    weighting: str  # a spec, such as "min_snr(gamma=5)"
    image_size: int  # pixels a side
    variance: float  # Var(m), of the mean of an image's channel in [-1, 1]: `leak.mean_variance`, or assumed
    num_draws: int  # levels that training draws in all: steps times batch size
    table: Schedule | None = None  # the discrete schedule whose timesteps the network is told
    noise_offset: float = 0.0  # of the noise that is trained with, and sampled from

    @functools.cached_property
    def drawn(self):
        """(lowest, highest) log-SNR that training draws."""
        return objective.trained_range(self.schedule, self.num_draws)

    @property
    def last(self):
        """The noisiest level that is trained."""
        return self.drawn[0]

    @property
    def trained(self):
        """(lowest, highest) log-SNR that training draws and the network can be told."""
        told = self.table.table.log_snr if self.table else (math.inf, -math.inf)
        return max(self.drawn[0], float(told[-1])), min(self.drawn[1], float(told[0]))

    def read_out(self, log_snr):
        """R^2 of the image's mean at a level, or levels."""
        return leak.read_out(log_snr, self.variance, self.image_size**2, self.noise_offset)

    @functools.cached_property
    def spread(self):
        """Shares of the levels and of the weight below, between and above `EDGES`: `objective.spread`."""
        return objective.spread(self.schedule, self.weighting, self.prediction, EDGES, self.num_draws)


@dataclasses.dataclass(frozen=True)
class Inference:
    """Levels that are to be sampled at, noisiest first, and what they came from."""

    schedule: Schedule
    spacing: str
    log_snrs: tuple[float, ...]
    follows: bool = False  # the schedule is that of training, whichever this is, and is repaired with it

    def __str__(self):
        return f"{self.schedule}, {len(self.log_snrs)} steps, {self.spacing}"


def inference(schedule, num_steps, spacing, follows=False):
    """The `Inference` at `schedules.levels` of a schedule or its spec; raises ValueError as they do."""
    made = schedules.make(schedule)
    return Inference(made, spacing, tuple(float(level) for level in schedules.levels(made, num_steps, spacing)), follows)


# -- how bad it is: each but the shares and the distances one of SEVERITIES

def leaks(setting, log_snr):
    r2 = setting.read_out(log_snr)
    return "fault" if r2 > FAULT or log_snr > math.log(SNR) else "warning" if r2 > WARNING else "fine"


def told_severity(setting):
    """What is told as the last step, though it is noisier, spoils samples as much as a start at the last step does."""
    last = float(setting.table.table.log_snr[-1])
    if setting.last < last - SAME:
        return min(leaks(setting, last), "warning", key=SEVERITIES.index)
    return "warning" if untold(setting)[1] > UNTOLD else "fine"


def untold(setting):
    """Shares of the levels drawn that are noisier than the table's last step, and cleaner than its first."""
    by = conditioning.outside(setting.schedule((np.arange(10_000) + 0.5) / 10_000), setting.table.table.log_snr)
    return float((by < -SAME).mean()), float((by > SAME).mean())


def below(setting):
    """Shares of the levels and of the weight below `NOISE`; ValueError where the weight is no number."""
    bins = len(EDGES[EDGES <= NOISE])
    return tuple(float(share[:bins].sum()) for share in setting.spread)


def wasteful(setting):
    return below(setting)[1] > WASTE and setting.read_out(NOISE) <= WARNING


def start_severity(setting, each):
    """A leak where sampling starts counts unless training ended no noisier: then it is the training schedule's."""
    if each.log_snrs[0] <= setting.last + SAME:
        return "fine"
    # Leading spacing is at least worth a warning: the same number of calls would do without its flaw.
    return min(leaks(setting, each.log_snrs[0]), "warning" if each.spacing == "leading" else "fine", key=SEVERITIES.index)


def trained_severity(setting, each):
    if setting.prediction == "eps" and each.log_snrs[0] == -math.inf:
        return "fault"
    return "warning" if any((by > SAME).any() for by in beyond(setting, each).values()) else "fine"


def beyond(setting, each):
    """How far each level lies outside what is trained, in log-SNR, by how it does."""
    log_snrs, (low, high) = np.array(each.log_snrs), setting.drawn
    told = setting.table.table.log_snr if setting.table else np.array([np.inf, -np.inf])
    untold = np.abs(conditioning.outside(log_snrs, told))
    with np.errstate(invalid="ignore"):
        noisier = np.nan_to_num(low - log_snrs, nan=0.0)  # -inf is no noisier than -inf
    return {"are noisier than any trained": noisier, "are cleaner than any trained": log_snrs - high,
            "lie outside the table of timesteps": untold}  # fmt: skip
