"""A scheduler_config.json as `diagnosis` sees it: the setting and the levels it stands for, and the repairs as fields of it.

The file says which table the network was trained on and is told the timesteps of, what it predicts and which levels are visited;
what it does not say, images and weighting, is a config's. A repair is offered as fields only if the file with them, read and
examined in its turn, is well where it was not.
"""

import dataclasses
import json

from noisesched import schedules, spec
from noisesched.diagnosis import checks
from noisesched.diagnosis.checks import SEVERITIES, Finding, Inference
from noisesched.interchange import scheduler_config, schedulers

# The settings of a config in whose place a file's are taken.
SAID = ("schedule", "conditioning.kind", "conditioning.table", "model.prediction", "preview.schedule", "preview.method")
UNKNOWN = "levels of sampling"
LONG = 150  # characters of a spec that nobody reads: given betas


def read(path):
    """The `scheduler_config.Settings` of a file that can be diagnosed; raises ValueError and OSError as
    `scheduler_config.read` does, and ValueError for networks that predict none of eps, v and x."""
    settings = scheduler_config.read(path)
    if settings.prediction is None:
        raise ValueError(
            f"{path}: the networks of {settings.class_name} predict a velocity; diagnosed are those that predict "
            f"{', '.join(scheduler_config.PREDICTIONS)}"
        )
    return settings


def setting(settings, own):
    """The `diagnosis.Setting` of a file, and of the config's `own` for what the file does not say."""
    table = schedules.make(settings.schedule)
    draws = max(own.num_draws, settings.num_steps)  # however short the config's training, that network was shown every timestep
    return dataclasses.replace(own, schedule=table, table=table, prediction=settings.prediction, num_draws=draws)


def inferences(settings, counts):
    """The levels that the library visits in these numbers of steps, as `Inference`s; none where they are not known here.

    Raises ValueError for a number of steps that the library does not do.
    """
    if settings.grid is None:
        return []
    made = schedules.make(settings.schedule)
    return [Inference(made, settings.grid.spacing, tuple(settings.levels(n).tolist()), follows=True) for n in counts]


def examine(settings, own, counts, measured=None):
    """`diagnosis.examine` of a file, with `Finding.file_repair`; the other repairs are for the config whose setting is `own`."""
    found = _examined(settings, own, counts, measured)
    training, sampling, left = _repairs(settings, own, counts, found)
    repaired = []
    for finding in found:
        changes = sampling or training if _of_sampling(finding) else training
        mends = finding.severity != "fine" and finding.about not in left
        repaired.append(dataclasses.replace(finding, file_repair=_line(changes) if mends else ""))
    return [_readable(finding, settings) for finding in repaired]


def told(settings, path, name, counts, found):
    """What was taken from the file at `path`, what from the config called `name`, and what does not carry over: sentences."""
    levels = ", levels" if settings.grid else ""
    yield (
        f"from the file ({settings.class_name}): schedule, prediction{levels}, and that the network is told the schedule's "
        f"timesteps; method {settings.method or 'none here'}, spacing {settings.spacing or 'none here'}"
    )
    if settings.grid:
        yield from (f"{n} levels: {scheduler_config.visited(settings, n)}" for n in counts)
    yield f"from {name}: images and their size, weighting, noise_offset; no more"
    yield from (f"note: {note}" for note in settings.notes)
    if settings.no_effect:
        yield f"of no effect here: {', '.join(settings.no_effect)}"
    if any(finding.file_repair for finding in found):
        yield (
            "repairs in words (--..) are for a run here, without --scheduler; of those in the file, rescale_betas_zero_snr "
            "and prediction_type are for a network trained with them, anew or further, the others for any"
        )
    if len(settings.schedule) > LONG:
        yield f"betas('FILE') below is a file of these betas: noisesched interchange --read={path} --betas=FILE"


def _examined(settings, own, counts, measured=None):
    found = checks.examine(setting(settings, own), inferences(settings, counts), measured, written=own)
    if settings.grid is None:
        found.append(
            Finding(
                "warning",
                UNKNOWN,
                f"which levels {settings.class_name} visits is not known here (see the notes)",
                "it was not examined whether sampling starts where training ended",
                "--spacing=trailing",
                {},
            )
        )
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _of_sampling(finding):
    return finding.about == UNKNOWN or "inference" in finding.figures


# -- repairs


def _repairs(settings, own, counts, found):
    """(fields that repair training, fields that repair sampling, what is not fine with both of them)."""
    given = setting(settings, own)
    better, training, moved = checks.repaired(given), {}, {}
    if better.last < given.last:
        training["rescale_betas_zero_snr"] = True
    if better.prediction != given.prediction:
        training["prediction_type"] = next(
            there for there, ours in scheduler_config.PREDICTIONS.items() if ours == better.prediction
        )
    if not training.keys() <= schedulers.FIELDS[settings.class_name].keys():
        training = _moved(settings) | training
    elif settings.grid is None:
        moved = _moved(settings)
    trailing = {"timestep_spacing": "trailing"}
    table = {f"use_{settings.grid.sigmas}_sigmas": False} if settings.grid and settings.grid.sigmas != "table" else {}
    left = {finding.about for finding in found if finding.severity != "fine"}
    for sampling in (moved, moved | trailing, moved | table, moved | trailing | table):
        counting = _counting(settings, training | sampling)
        try:
            again = _examined(scheduler_config.parse(settings.fields | training | sampling | counting), own, counts)
        except ValueError:  # a number of steps that the library does not do so
            continue
        left = {finding.about for finding in again if finding.severity != "fine"}
        if not any(_of_sampling(finding) for finding in again if finding.severity != "fine"):
            break
    return training and training | counting, sampling and sampling | counting, left


def _moved(settings):
    """The fields that make the file one of DDIMScheduler, which can begin at zero SNR and whose levels are known, and keep what
    was the default of its own class."""
    name, other = settings.class_name, "DDIMScheduler"
    before, after = schedulers.Fields(name, settings.fields).given, schedulers.FIELDS[other]
    kept = {
        field: value
        for field, value in schedulers.FIELDS[name].items()
        if field not in before and after.get(field, value) != value
    }
    return {"_class_name": other} | kept


def _counting(settings, changes):
    """What makes changes count: the library passes over fields that a file lists in _use_default_values."""
    passed_over = settings.fields.get("_use_default_values")
    if not isinstance(passed_over, list) or not any(field in passed_over for field in changes):
        return {}
    return {"_use_default_values": [field for field in passed_over if field not in list(changes)]}


def _line(changes):
    """Fields as they are written in the file."""
    return json.dumps(changes)[1:-1]


def _readable(finding, settings):
    """Without a list of betas too long to be read or pasted."""
    if len(settings.schedule) <= LONG:
        return finding
    values = spec.show(spec.parse(settings.schedule).args[0])
    parts = {name: getattr(finding, name).replace(values, "'FILE'") for name in ("measured", "repair")}
    return dataclasses.replace(finding, **parts)
