"""What is wrong with a training setting and the levels it is to be sampled at, found before anything is trained.

`examine` is a pure function from a `Setting` and `Inference`s to `Finding`s. It knows no files: configs are read by `diagnose`.
The repairs belong together: those of training lead to one setting, `repaired`, and those of inference are for that one, so that
obeying them all leaves nothing to repair.
"""

import dataclasses
import math

import numpy as np

from noisesched import ends, judgement, objective, schedules, spec
from noisesched.judgement import EDGES, FAULT, NOISE, SAME, SEVERITIES, SNR, WARNING, WASTE, Inference, Setting, inference  # noqa: F401


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing examined: `figures` are what `measured` says, for programs; `repair` is "" where nothing is to be repaired, or
    the config already says so."""

    severity: str  # of SEVERITIES
    about: str
    measured: str
    why: str
    repair: str
    figures: dict
    file_repair: str = ""  # the same as fields of a scheduler_config.json, if one is examined (`scheduler_file`) and has them


def examine(setting, inferences=(), measured=None, written=None):
    """The `Finding`s on a `Setting` and its `Inference`s, the worst first.

    `measured`: (R^2, standard error) that `leak.measured` found at the setting's last level, told beside the closed form;
    `written`: the setting of the config that repairs are to be written in, if that is another.
    """
    better = repaired(setting)
    changes = _changes(written or setting, better)
    found = [_terminal(setting, measured, changes), *_zero_snr(setting, changes), *_told(setting, changes),
             _weight(setting, changes)]  # fmt: skip
    for each in inferences:
        severities = judgement.start_severity(setting, each), judgement.trained_severity(setting, each)
        repair = "" if set(severities) == {"fine"} else _resampled(better, each) or _flags(changes)
        found += [_start(setting, each, repair), _trained(setting, each, repair)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


# -- the training schedule

def _terminal(setting, measured, changes):
    last, r2 = setting.last, float(setting.read_out(setting.last))
    severity = judgement.leaks(setting, last)
    beside = f" (measured {measured[0]:.2g} ± {measured[1]:.1g})" if measured else ""
    size = f"{setting.image_size}x{setting.image_size}"
    return Finding(
        severity, "end of the training schedule",
        f"{setting.schedule} ends at {_level(last)}: the best line from the mean of z to that of the image, at {size} pixels, "
        f"has R^2 = {_r2(r2)}{beside}",
        "pure noise, from which sampling starts, is what training ends with" if last == -math.inf else
        "the last level is as good as pure noise, from which sampling starts" if severity == "fine" else
        "sampling starts from pure noise, which training never showed: samples are drawn to mid-grey (those of deterministic "
        f"samplers by {math.sqrt(r2):.0%} of the way), and patterns stronger than the mean leak more" +
        _exploding(setting.schedule),
        "" if severity == "fine" else _flags(changes),
        {"log_snr": last, "snr": math.exp(last), "r2": r2, "measured_r2": measured and measured[0],
         "measured_r2_std_error": measured and measured[1]},
    )  # fmt: skip


def _zero_snr(setting, changes):
    """Of a schedule that ends at zero SNR: whether there is something to learn there, and whether it is learned."""
    if setting.last > -math.inf:
        return
    if setting.prediction == "eps":
        yield Finding("fault", "prediction at zero SNR", f"eps is predicted, and {setting.schedule} ends at SNR 0",
                      "there z is the noise itself, from which no image follows",
                      _flags(changes, "model.prediction", "weighting"), {})
        return
    vanishes = _vanishes(setting)
    how = "vanishes" if vanishes else "does not vanish"
    # As `config.warnings` has it: levels next to the end are still learned a little, and training is let go on.
    yield Finding(
        "warning" if vanishes else "fine", "weight at zero SNR",
        f"weighting {setting.weighting} on the {setting.prediction} error {how} at SNR 0, where {setting.schedule} ends",
        f"the level that sampling starts from is {'not ' if vanishes else ''}learned",
        _flags(changes, "weighting") if vanishes else "", {"vanishes": vanishes},
    )  # fmt: skip


def _told(setting, changes):
    """Of a network that is told timesteps: whether the levels that training draws are in their table."""
    if not setting.table:
        return
    (noisier, cleaner), first, last = judgement.untold(setting), *setting.table.table.log_snr[[0, -1]]
    severity = judgement.told_severity(setting)
    worst = f", and {_level(setting.last)} is drawn" if setting.last < last - SAME else ""
    yield Finding(
        severity, "table of timesteps",
        f"{setting.table} tells {_level(float(first))} to {_level(float(last))}{worst}; of the levels drawn {noisier:.1%} are "
        f"noisier and {cleaner:.1%} cleaner",
        "the network can be told of what it is trained on" if severity == "fine" else
        "levels beyond the table are told as its last step or its first, and are not told apart",
        "" if severity == "fine" else _flags(changes), {"noisier": noisier, "cleaner": cleaner},
    )  # fmt: skip


def _weight(setting, changes):
    """How much of training goes to levels so noisy that they show nothing. Where images are large, they still show something."""
    try:
        drawn, share = judgement.below(setting)
    except ValueError as error:
        return Finding("fault", "weight over log-SNR", str(error), "the loss of such levels says nothing",
                       _flags(changes, "weighting"), {})  # fmt: skip
    r2, wasted = float(setting.read_out(NOISE)), judgement.wasteful(setting)
    why = ("such levels show nothing of the image: what they teach is the mean of the data" if wasted else
           "little is spent on levels that are all but pure noise" if share <= WASTE else
           f"the image's mean is still seen there (R^2 = {_r2(r2)} at {NOISE:g}), at this image size")  # fmt: skip
    return Finding("warning" if wasted else "fine", "weight over log-SNR",
                   f"{share:.1%} of the loss's weight and {drawn:.1%} of its levels lie below log-SNR {NOISE:g}", why,
                   _flags(changes) if wasted else "", {"weight_below": share, "levels_below": drawn, "below": NOISE})  # fmt: skip


# -- the levels of inference

def _start(setting, each, repair):
    first, last = each.log_snrs[0], setting.last
    r2 = float(setting.read_out(first))
    reached = first <= last + SAME
    severity = judgement.start_severity(setting, each)
    measured = f"{each}: starts at {_level(first)}" + ("" if reached else f", R^2 = {_r2(r2)}; training went to {_level(last)}")
    why = ("it is as noisy as training went, or more" if reached else
           "the first level is still as good as pure noise" if severity == "fine" else
           "the sampler's pure noise is told to be a level at which the network was shown images" +
           ("; leading spacing never visits the schedule's last level, and saves no call" if each.spacing == "leading" else "") +
           (_exploding(each.schedule) if last == -math.inf else ""))
    return Finding(severity, "first level of sampling", measured, why, "" if severity == "fine" else repair,
                   {"inference": str(each), "log_snr": first, "trained_log_snr": last, "r2": r2})  # fmt: skip


def _trained(setting, each, repair):
    """Levels that training did not draw, or that a table of timesteps cannot tell. Networks bear them to some degree (README,
    "What telling the noise level buys"): a warning, but for eps at zero SNR, which no sampler accepts."""
    log_snrs = np.array(each.log_snrs)
    away = judgement.beyond(setting, each)
    counts = [int((by > SAME).sum()) for by in away.values()]
    parts = [f"{count} of {len(log_snrs)} levels {how}, as far as {_level(log_snrs[by.argmax()])}"
             for (how, by), count in zip(away.items(), counts, strict=True) if count]  # fmt: skip
    figures = {"inference": str(each), **dict(zip(("noisier", "cleaner", "untold"), counts, strict=True)),
               "log_snr_min": setting.trained[0], "log_snr_max": setting.trained[1]}  # fmt: skip
    severity = judgement.trained_severity(setting, each)
    if severity == "fine":
        return Finding("fine", "trained levels", f"{each}: all {len(log_snrs)} levels lie inside what is trained",
                       "the network is asked nothing that it did not learn", "", figures)  # fmt: skip
    return Finding(
        severity, "trained levels", f"{each}: {'; '.join(parts) or 'the first level is SNR 0'}",
        "no image follows at SNR 0 from the noise that this network predicts" if severity == "fault" else
        "there the network answers what it was never taught", repair, figures,
    )  # fmt: skip


# -- repairs

def repaired(setting):
    """The setting with all that is amiss in training repaired.

    Training ends with pure noise (Lin et al. 2023, sec. 3.1 and 3.2), at which something is learned, and a table of timesteps
    has all the levels that are drawn; where no table can, the network is told log-SNR (`table` is None).
    """
    better = setting
    if judgement.leaks(better, better.last) != "fine":
        better = dataclasses.replace(better, schedule=_rescaled(better.schedule, better.image_size))
    better = _learning_at_zero_snr(better)
    try:
        wasted = judgement.wasteful(better)
    except ValueError:
        better = dataclasses.replace(better, weighting=better.prediction)
        wasted = judgement.wasteful(better)
    if wasted:
        better = _learning_at_zero_snr(dataclasses.replace(better, schedule=schedules.recommended(better.image_size)))
    if better.table and judgement.told_severity(better) != "fine":
        better = dataclasses.replace(better, table=_table_of(better.schedule))
    return better


def _learning_at_zero_snr(setting):
    """An eps-network has no image at SNR 0, and some weightings have no weight there."""
    if setting.last > -math.inf:
        return setting
    return dataclasses.replace(setting, prediction="v" if setting.prediction == "eps" else setting.prediction,
                               weighting="v" if _vanishes(setting) else setting.weighting)  # fmt: skip


def _rescaled(schedule, image_size):
    if schedule.table and schedule.table.num_steps == 1:  # a single level cannot be both ends
        return schedules.make(f"discrete({schedules.recommended(image_size)}, num_steps=1000)")
    return ends.with_zero_terminal(schedule)


def _table_of(schedule):
    """The table whose steps tell the levels of a schedule: its own; else of a thousand steps; None if it is too steep for any."""
    if schedule.table:
        return schedule
    try:
        table = schedules.make(f"discrete({schedule}, num_steps=1000)")
    except ValueError:
        return None
    # That of a published name, such as cosine's, has its published betas, which may end above SNR 0.
    return ends.with_zero_terminal(table) if schedule(1.0) == -math.inf else table


def _resampled(setting, each):
    """The words with which an inference fits the setting, the nearest to what it is; "" if it fits as it is, or nothing does."""
    own = setting.schedule if each.follows else each.schedule
    for schedule in _nearest(setting, own):
        for spacing in dict.fromkeys((each.spacing, "trailing")):
            try:
                other = inference(schedule, len(each.log_snrs), spacing)
            except ValueError:  # a table of fewer steps
                continue
            if judgement.start_severity(setting, other) == judgement.trained_severity(setting, other) == "fine":
                words = [f'--schedule="{schedule}"'] if schedule != own else []
                return " ".join(words + ["--spacing=trailing"] * (spacing != each.spacing))
    return ""


def _nearest(setting, own):
    """Schedules to sample under in place of `own`: itself, ending where training does, its trained part; that of training."""
    yield own
    if setting.last == -math.inf:
        yield (noisier := _rescaled(own, setting.image_size))
        yield from _part(setting, noisier)
    yield from _part(setting, own)
    yield setting.table or setting.schedule
    yield setting.schedule
    yield from _part(setting, setting.schedule)
    yield from _part(setting, schedules.recommended(setting.image_size))


def _part(setting, schedule):
    """The part of a schedule that was trained; a table cannot be cut, nor one that lies outside altogether."""
    low, high = setting.trained
    low, high = math.ceil(100 * low) / 100 if math.isfinite(low) else low, math.floor(100 * min(high, 1e4)) / 100
    if schedule.table is None and low < high and float(schedule(0.0)) > low and float(schedule(1.0)) < high:
        yield schedules.make(str(spec.Call("truncated", (schedule.call,), (("log_snr_min", low), ("log_snr_max", high)))))


def _changes(setting, better):
    """The settings in which two `Setting`s differ: {name in the config: value}."""
    changes = {}
    if better.schedule != setting.schedule:
        changes["schedule"] = str(better.schedule)
    if better.table != setting.table:
        if not better.table or not setting.table:  # a table is for this kind alone
            changes["conditioning.kind"] = "timestep" if better.table else "log_snr"
        changes["conditioning.table"] = str(better.table or "")
    if better.prediction != setting.prediction:
        changes["model.prediction"] = better.prediction
    if better.weighting != setting.weighting:
        changes["weighting"] = better.weighting
    return changes


def _flags(changes, *names):
    """Changes, or those of the names, as words of the command line."""
    chosen = {name: value for name, value in changes.items() if not names or name in names}
    return " ".join(f"--config.{name}=" + (f'"{value}"' if "(" in value or not value else value)
                    for name, value in chosen.items())  # fmt: skip


# -- the parts

def _exploding(schedule):
    """Why a schedule given in sigma_ve leaks, as the end of a sentence; "" for any other, and for one that ends at SNR 0."""
    sigma_ve = ends.terminal_sigma_ve(schedule)
    return (f"; it is given in sigma_ve, up to {sigma_ve:.4g}: x + sigma_ve eps has no SNR of 0 at any finite one, in unit "
            "variance it has" if sigma_ve else "")  # fmt: skip


def _vanishes(setting):
    return objective.vanishes_at_zero_snr(setting.weighting)


def _level(log_snr):
    return "SNR 0 (log-SNR -inf)" if log_snr == -math.inf else f"log-SNR {log_snr:.2f} (SNR {math.exp(min(log_snr, 700)):.2g})"


def _r2(value):
    return f"{value:.2g}" if value else "0"
