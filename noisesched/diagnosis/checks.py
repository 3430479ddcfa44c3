"""What is wrong with a training plan and the levels it will be sampled at, found before anything is trained.

`examine` is a pure function from a `Plan` and `Inference`s to `Finding`s; it reads no files (`diagnose` does). Apply all
suggested repairs together: those of training lead to one plan, `repaired`, and those of inference are made for that plan,
so that afterwards nothing is left to repair.
"""

import dataclasses
import functools
import math

import jax
import numpy as np

from noisesched import loss, schedules, spec
from noisesched.diagnosis import leak
from noisesched.models import conditioning
from noisesched.schedules import Schedule

SEVERITIES = ("fault", "warning", "fine")  # it spoils a run; it has a cost, but may be intended; there is nothing wrong
# Leaks are graded by R^2, the share of the variance of images' means that a linear read-out of z recovers.
FAULT = 0.05  # brightness is drawn 22 % of the way to mid-grey, a black image by 28 of 255 grey levels: visible at a glance
WARNING = 0.01  # 10 % of the way, 13 grey levels
# The SNR that is a fault at any image size, since not only the mean leaks: the digits' first principal component has a variance
# of 2.8, ten times that of their mean's direction, and with scaled_linear (SNR 0.0047) an R^2 of 0.013 even at 8x8 pixels. The
# published ends are a factor of 5 above (scaled_linear, Kingma et al. 2021) or 6 and more below (karras, linear, cosine).
SNR = 1e-3
NOISE = -10.0  # the log-SNR below which weight is counted as spent on noise: linear's end
WASTE = 0.1  # share of weight on levels that show nothing; no published schedule has more than 0.02
UNTOLD = 0.01  # share of levels cleaner than the table's first step; 0.001 for a table of a thousand steps and its own curve
SAME = 1e-3  # log-SNRs this close are one level: float32's rounding
EDGES = np.linspace(-20.0, 20.0, 161)  # of the bins in which levels and weight are counted; NOISE is one of them


# -- what is examined, and what is found


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained. The schedule may end at log-SNR -inf."""

    schedule: Schedule  # draws the training levels
    prediction: str  # "eps" | "x" | "v"
    weighting: loss.Weighting
    image_size: int  # pixels a side
    variance: float  # Var(m) of the mean m of an image's channel in [-1, 1]: `leak.mean_variance`, or assumed
    num_draws: int  # levels that training draws in total: steps times batch size
    table: Schedule | None = None  # the discrete schedule whose timesteps the network is told
    noise_offset: float = 0.0  # of the noise in training, and at the start of sampling

    @functools.cached_property
    def drawn(self):
        """(lowest, highest) log-SNR that training draws."""
        return loss.trained_range(self.schedule, self.num_draws)

    @property
    def last(self):
        """The noisiest level that is trained."""
        return self.drawn[0]

    @property
    def trained(self):
        """(lowest, highest) log-SNR that training draws and that the network can be told."""
        told = self.table.table.log_snr if self.table else (math.inf, -math.inf)
        return max(self.drawn[0], float(told[-1])), min(self.drawn[1], float(told[0]))

    def r2(self, log_snr):
        """R^2 of the image's mean at a level, or levels: see `leak`."""
        return leak.r2(log_snr, self.variance, self.image_size**2, self.noise_offset)

    @functools.cached_property
    def shares(self):
        """`shares` of the levels and of the weight below, between and above `EDGES`."""
        return shares(self.schedule, self.weighting, self.prediction, EDGES, self.num_draws)


@dataclasses.dataclass(frozen=True)
class Inference:
    """The levels of sampling, noisiest first, and where they come from."""

    schedule: Schedule
    spacing: str
    log_snrs: tuple[float, ...]
    follows: bool = False  # it is the training schedule, whichever that is, and changes with it

    def __str__(self):
        return f"{self.schedule}, {len(self.log_snrs)} steps, {self.spacing}"


def inference(schedule, num_steps, spacing, follows=False):
    """The `Inference` with the `schedules.levels` of a schedule or its spec; ValueError if these are not defined."""
    made = schedules.make(schedule)
    return Inference(made, spacing, tuple(float(level) for level in schedules.levels(made, num_steps, spacing)), follows)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was examined."""

    severity: str  # of SEVERITIES
    about: str
    measured: str
    why: str
    repair: str  # command-line words; "" if nothing needs a change, or nothing helps
    figures: dict  # the numbers in `measured`, for programs
    file_repair: str = ""  # the repair as fields of a scheduler_config.json, if one is examined: see `scheduler_file`


# -- the distribution of training over log-SNR


def shares(schedule, weighting, prediction, edges, num_draws):
    """The distribution over log-SNR of training's levels, and of the weight of its loss: (levels, weight), each summing to 1.

    `edges` [K], increasing, finite -> float64 [K + 1]: the shares below the first edge (-inf included), between the edges, and
    from the last one up. `weight` is that of w(log_snr) p(log_snr), with w the `loss.Weighting` on the squared error of what
    the network predicts, and p = 1 / rate the density of the levels, or the T atoms of a table (Kingma & Gao 2023). Levels
    cleaner than `num_draws` draws reach are left out: there some weights grow without bound. ValueError if w overflows float32
    or is 0.
    """
    with jax.enable_x64(True):
        if schedule.table:
            u = np.arange(1, schedule.table.num_steps + 1) / schedule.table.num_steps
            mass = np.full(len(u), 1 / len(u))
        else:  # cells of u, narrow at both ends, where schedules are steep
            first = min(1 / num_draws, 0.25)
            clean, noisy = np.geomspace(first, 0.5, 6000), np.geomspace(1e-7, 0.5, 6000)
            ends = np.unique(np.concatenate([clean, np.linspace(first, 1.0, 8000), 1 - noisy]))
            u, mass = (ends[1:] + ends[:-1]) / 2, np.diff(ends)
        log_snr, weights = map(np.asarray, _weights(schedule, weighting, prediction, u))
    if (too_large := ~(weights <= np.finfo(np.float32).max)).any():
        raise ValueError(
            f"weighting '{weighting}' on the {prediction} error overflows float32 at log-SNR {log_snr[too_large].min():.4g}"
        )
    if not (mass * weights).sum() > 0:
        raise ValueError(f"weighting '{weighting}' on the {prediction} error is 0 at all levels that {str(schedule)!r} draws")
    bins = np.searchsorted(edges, log_snr, side="right")
    sums = [np.bincount(bins, of, len(edges) + 1) for of in (mass, mass * weights)]
    return tuple(each / each.sum() for each in sums)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _weights(schedule, weighting, prediction, u):
    """The levels at u, and their weights."""
    log_snr = schedule(u)
    return log_snr, loss.weight(weighting, prediction, log_snr, schedules.rate(schedule, u))


# -- severities


def leak_severity(plan, log_snr):
    """The severity of ending training, or starting to sample, at a level."""
    r2 = plan.r2(log_snr)
    return "fault" if r2 > FAULT or log_snr > math.log(SNR) else "warning" if r2 > WARNING else "fine"


def table_severity(plan):
    """The severity of levels missing from the table: noisier ones, told as its last step, harm as much as starting there."""
    last = float(plan.table.table.log_snr[-1])
    if plan.last < last - SAME:
        return min(leak_severity(plan, last), "warning", key=SEVERITIES.index)
    return "warning" if untold(plan)[1] > UNTOLD else "fine"


def untold(plan):
    """The shares of drawn levels that are noisier than the table's last step, and cleaner than its first."""
    by = conditioning.outside(plan.schedule((np.arange(10_000) + 0.5) / 10_000), plan.table.table.log_snr)
    return float((by < -SAME).mean()), float((by > SAME).mean())


def start_severity(plan, each):
    """The severity of the first level of sampling: a leak there counts unless training ended with it."""
    if each.log_snrs[0] <= plan.last + SAME:
        return "fine"
    # Leading spacing is at least a warning: trailing has no such flaw, with the same number of calls.
    return min(leak_severity(plan, each.log_snrs[0]), "warning" if each.spacing == "leading" else "fine", key=SEVERITIES.index)


def trained_severity(plan, each):
    """The severity of levels of sampling that are outside the trained range."""
    if plan.prediction == "eps" and each.log_snrs[0] == -math.inf:
        return "fault"
    return "warning" if any((by > SAME).any() for by in distances(plan, each).values()) else "fine"


def distances(plan, each):
    """{in which way: how far each level of an `Inference` is outside the trained range, in log-SNR}."""
    log_snrs, (low, high) = np.array(each.log_snrs), plan.drawn
    told = plan.table.table.log_snr if plan.table else np.array([np.inf, -np.inf])
    off_table = np.abs(conditioning.outside(log_snrs, told))
    with np.errstate(invalid="ignore"):
        noisier = np.nan_to_num(low - log_snrs, nan=0.0)  # -inf is not noisier than -inf
    return {
        "are noisier than any trained": noisier,
        "are cleaner than any trained": log_snrs - high,
        "lie outside the table of timesteps": off_table,
    }


def wasteful(plan):
    """Whether much weight goes to levels that show nothing of the image; ValueError where the weight is not defined."""
    return below(plan)[1] > WASTE and plan.r2(NOISE) <= WARNING


def below(plan):
    """The shares of the levels and of the weight below `NOISE`; ValueError where the weight is not defined."""
    bins = len(EDGES[EDGES <= NOISE])
    return tuple(float(share[:bins].sum()) for share in plan.shares)


# -- findings


def examine(plan, inferences=(), measured=None, written=None):
    """The `Finding`s on a `Plan` and its `Inference`s, the worst first.

    `measured`: (R^2, standard error) from `leak.measured` at the plan's last level, reported beside the closed form;
    `written`: the plan of the config that repairs are written for, if it is another one.
    """
    better = repaired(plan)
    changes = _changes(written or plan, better)
    found = [_terminal(plan, measured, changes), *_zero_snr(plan, changes), *_table(plan, changes), _weight(plan, changes)]
    for each in inferences:
        severities = start_severity(plan, each), trained_severity(plan, each)
        repair = "" if set(severities) == {"fine"} else _resampled(better, each) or _flags(changes)
        found += [_start(plan, each, repair), _trained(plan, each, repair)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _terminal(plan, measured, changes):
    last, r2 = plan.last, float(plan.r2(plan.last))
    severity = leak_severity(plan, last)
    beside = f" (measured {measured[0]:.2g} ± {measured[1]:.1g})" if measured else ""
    size = f"{plan.image_size}x{plan.image_size}"
    return Finding(
        severity,
        "end of the training schedule",
        f"{plan.schedule} ends at {_level(last)}: the best line from the mean of z to that of the image, at {size} pixels, "
        f"has R^2 = {_r2(r2)}{beside}",
        "training ends with pure noise, from which sampling starts"
        if last == -math.inf
        else "the last level is as good as pure noise, from which sampling starts"
        if severity == "fine"
        else "sampling starts from pure noise, which training never showed: samples are drawn to mid-grey (by deterministic "
        f"samplers {math.sqrt(r2):.0%} of the way), and patterns stronger than the mean leak more" + _exploding(plan.schedule),
        "" if severity == "fine" else _flags(changes),
        {
            "log_snr": last,
            "snr": math.exp(last),
            "r2": r2,
            "measured_r2": measured and measured[0],
            "measured_r2_std_error": measured and measured[1],
        },
    )


def _zero_snr(plan, changes):
    """If the schedule ends at zero SNR: whether the network can learn an image there, and whether the loss makes it."""
    if plan.last > -math.inf:
        return
    if plan.prediction == "eps":
        yield Finding(
            "fault",
            "prediction at zero SNR",
            f"eps is predicted, and {plan.schedule} ends at SNR 0",
            "there z is the noise itself, from which no image follows",
            _flags(changes, "model.prediction", "weighting"),
            {},
        )
        return
    vanishes = loss.vanishes_at_zero_snr(plan.weighting)
    how = "vanishes" if vanishes else "does not vanish"
    # Only a warning, as in `config.warnings`: levels next to the end are still learned a little.
    yield Finding(
        "warning" if vanishes else "fine",
        "weight at zero SNR",
        f"weighting {plan.weighting} on the {plan.prediction} error {how} at SNR 0, where {plan.schedule} ends",
        f"the level that sampling starts from is {'not ' if vanishes else ''}learned",
        _flags(changes, "weighting") if vanishes else "",
        {"vanishes": vanishes},
    )


def _table(plan, changes):
    """If the network is told timesteps: whether their table has the levels that training draws."""
    if not plan.table:
        return
    (noisier, cleaner), first, last = untold(plan), *plan.table.table.log_snr[[0, -1]]
    severity = table_severity(plan)
    worst = f", and {_level(plan.last)} is drawn" if plan.last < last - SAME else ""
    yield Finding(
        severity,
        "table of timesteps",
        f"{plan.table} tells {_level(float(first))} to {_level(float(last))}{worst}; of the levels drawn {noisier:.1%} are "
        f"noisier and {cleaner:.1%} cleaner",
        "the network can be told all levels that it is trained on"
        if severity == "fine"
        else "levels outside the table are told as its last or its first step, so the network cannot distinguish them",
        "" if severity == "fine" else _flags(changes),
        {"noisier": noisier, "cleaner": cleaner},
    )


def _weight(plan, changes):
    """How much of training goes to levels so noisy that they show nothing; of large images they still show something."""
    try:
        drawn, share = below(plan)
    except ValueError as error:
        return Finding(
            "fault", "weight over log-SNR", str(error), "the loss of such levels means nothing", _flags(changes, "weighting"), {}
        )
    r2, wasted = float(plan.r2(NOISE)), wasteful(plan)
    why = (
        "such levels show nothing of the image: they only teach the mean of the data"
        if wasted
        else "little weight goes to levels that are nearly pure noise"
        if share <= WASTE
        else f"the image's mean is still seen there (R^2 = {_r2(r2)} at {NOISE:g}), at this image size"
    )
    return Finding(
        "warning" if wasted else "fine",
        "weight over log-SNR",
        f"{share:.1%} of the loss's weight and {drawn:.1%} of its levels lie below log-SNR {NOISE:g}",
        why,
        _flags(changes) if wasted else "",
        {"weight_below": share, "levels_below": drawn, "below": NOISE},
    )


def _start(plan, each, repair):
    first, last = each.log_snrs[0], plan.last
    r2 = float(plan.r2(first))
    reached = first <= last + SAME
    severity = start_severity(plan, each)
    measured = f"{each}: starts at {_level(first)}" + ("" if reached else f", R^2 = {_r2(r2)}; training went to {_level(last)}")
    why = (
        "it is at least as noisy as the last level of training"
        if reached
        else "the first level is as good as pure noise"
        if severity == "fine"
        else "the sampler starts from pure noise, but tells the network a level at which it has seen images"
        + (
            "; leading spacing never visits the schedule's last level, and saves no network call"
            if each.spacing == "leading"
            else ""
        )
        + (_exploding(each.schedule) if last == -math.inf else "")
    )
    return Finding(
        severity,
        "first level of sampling",
        measured,
        why,
        "" if severity == "fine" else repair,
        {"inference": str(each), "log_snr": first, "trained_log_snr": last, "r2": r2},
    )


def _trained(plan, each, repair):
    """Levels that training did not draw, or that the table of timesteps lacks.

    Networks tolerate these to some degree, hence a warning; eps-prediction at zero SNR is a fault, as no sampler accepts it.
    """
    log_snrs = np.array(each.log_snrs)
    away = distances(plan, each)
    counts = [int((by > SAME).sum()) for by in away.values()]
    parts = [
        f"{count} of {len(log_snrs)} levels {how}, as far as {_level(log_snrs[by.argmax()])}"
        for (how, by), count in zip(away.items(), counts, strict=True)
        if count
    ]
    figures = {
        "inference": str(each),
        **dict(zip(("noisier", "cleaner", "untold"), counts, strict=True)),
        "log_snr_min": plan.trained[0],
        "log_snr_max": plan.trained[1],
    }
    severity = trained_severity(plan, each)
    if severity == "fine":
        return Finding(
            "fine",
            "trained levels",
            f"{each}: all {len(log_snrs)} levels are within the trained range",
            "the network is only called at levels that it has learned",
            "",
            figures,
        )
    return Finding(
        severity,
        "trained levels",
        f"{each}: {'; '.join(parts) or 'the first level is SNR 0'}",
        "this network predicts the noise, from which no image follows at SNR 0"
        if severity == "fault"
        else "the network never learned what to answer there",
        repair,
        figures,
    )


# -- repairs


def repaired(plan):
    """The plan after all training repairs.

    Training ends with pure noise (Lin et al. 2023, sec. 3.1 and 3.2), where the network still learns something, and the table of
    timesteps has all drawn levels; if no table can have them, the network is told log-SNR (`table` is None).
    """
    better = plan
    if leak_severity(better, better.last) != "fine":
        better = dataclasses.replace(better, schedule=_rescaled(better.schedule, better.image_size))
    better = _learning_at_zero_snr(better)
    try:
        wasted = wasteful(better)
    except ValueError:
        better = dataclasses.replace(better, weighting=loss.make_weighting(better.prediction))
        wasted = wasteful(better)
    if wasted:
        better = _learning_at_zero_snr(dataclasses.replace(better, schedule=schedules.recommended(better.image_size)))
    if better.table and table_severity(better) != "fine":
        better = dataclasses.replace(better, table=_table_of(better.schedule))
    return better


def _learning_at_zero_snr(plan):
    """The plan with a prediction that gives an image at SNR 0, and a weighting that is not 0 there."""
    if plan.last > -math.inf:
        return plan
    return dataclasses.replace(
        plan,
        prediction="v" if plan.prediction == "eps" else plan.prediction,
        weighting=loss.make_weighting("v") if loss.vanishes_at_zero_snr(plan.weighting) else plan.weighting,
    )


def _rescaled(schedule, image_size):
    if schedule.table and schedule.table.num_steps == 1:  # a single level cannot be both ends
        return schedules.make(f"discrete({schedules.recommended(image_size)}, num_steps=1000)")
    return schedules.with_zero_terminal(schedule)


def _table_of(schedule):
    """A table with the levels of a schedule: its own, else one of a thousand steps; None if it is too steep for that."""
    if schedule.table:
        return schedule
    try:
        table = schedules.make(f"discrete({schedule}, num_steps=1000)")
    except ValueError:
        return None
    # A published name, such as cosine, gets its published betas, which may end above SNR 0.
    return schedules.with_zero_terminal(table) if schedule(1.0) == -math.inf else table


def _resampled(plan, each):
    """The words that change an `Inference` the least to fit the plan; "" if it fits already, or nothing helps."""
    own = plan.schedule if each.follows else each.schedule
    for schedule in _nearest(plan, own):
        for spacing in dict.fromkeys((each.spacing, "trailing")):
            try:
                other = inference(schedule, len(each.log_snrs), spacing)
            except ValueError:  # a table of fewer steps
                continue
            if start_severity(plan, other) == trained_severity(plan, other) == "fine":
                words = [f'--schedule="{schedule}"'] if schedule != own else []
                return " ".join(words + ["--spacing=trailing"] * (spacing != each.spacing))
    return ""


def _nearest(plan, own):
    """Schedules to sample under, the closest to `own` first: itself, its trained part, the training schedule."""
    yield own
    if plan.last == -math.inf:
        yield (noisier := _rescaled(own, plan.image_size))
        yield from _part(plan, noisier)
    yield from _part(plan, own)
    yield plan.table or plan.schedule
    yield plan.schedule
    yield from _part(plan, plan.schedule)
    yield from _part(plan, schedules.recommended(plan.image_size))


def _part(plan, schedule):
    """The trained part of a schedule; none of a table, which cannot be cut, or of a schedule outside the trained range."""
    low, high = plan.trained
    low, high = math.ceil(100 * low) / 100 if math.isfinite(low) else low, math.floor(100 * min(high, 1e4)) / 100
    if schedule.table is None and low < high and float(schedule(0.0)) > low and float(schedule(1.0)) < high:
        yield schedules.make(str(spec.Call("truncated", (schedule.call,), (("log_snr_min", low), ("log_snr_max", high)))))


def _changes(plan, better):
    """{name in the config: new value} of the settings that differ."""
    changes = {}
    if better.schedule != plan.schedule:
        changes["schedule"] = str(better.schedule)
    if better.table != plan.table:
        if not better.table or not plan.table:  # only this kind has a table
            changes["conditioning.kind"] = "timestep" if better.table else "log_snr"
        changes["conditioning.table"] = str(better.table or "")
    if better.prediction != plan.prediction:
        changes["model.prediction"] = better.prediction
    if better.weighting != plan.weighting:
        changes["weighting"] = str(better.weighting)
    return changes


# -- words


def _flags(changes, *names):
    """The changes (or only those named) as words of the command line."""
    chosen = {name: value for name, value in changes.items() if not names or name in names}
    return " ".join(
        f"--config.{name}=" + (f'"{value}"' if "(" in value or not value else value) for name, value in chosen.items()
    )


def _exploding(schedule):
    """The end of a sentence: why a schedule defined by sigma_ve leaks; "" for others, and for one that ends at SNR 0."""
    sigma_ve = schedules.terminal_sigma_ve(schedule)
    return (
        f"; it is defined by sigma_ve, up to {sigma_ve:.4g}: x + sigma_ve eps has SNR 0 at no finite "
        "sigma_ve, though in unit variance it can"
        if sigma_ve
        else ""
    )


def _level(log_snr):
    return "SNR 0 (log-SNR -inf)" if log_snr == -math.inf else f"log-SNR {log_snr:.2f} (SNR {math.exp(min(log_snr, 700)):.2g})"


def _r2(value):
    return f"{value:.2g}" if value else "0"
