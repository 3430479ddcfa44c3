"""Diagnosis of a scheduler_config.json: the plan and the levels that it stands for, and repairs as fields of the file.

The file gives the table that the network was trained on and whose timesteps it is told, the prediction, and the levels that
sampling visits; images and weighting come from a config. Repairs are offered as fields only if the file with these fields, read
and examined again, has fewer faults.
"""

import dataclasses
import json

from noisesched import spec
from noisesched.diagnosis import checks
from noisesched.interchange import scheduler_config, schedulers

# The settings of a config that a file replaces.
SAID = ("schedule", "conditioning.kind", "conditioning.table", "model.prediction", "preview.schedule", "preview.method")
LONG = 150  # characters of a spec too long to read: given betas


def read(path):
    """The `scheduler_config.SchedulerConfig` of a file.

    Raises what `scheduler_config.read` raises, and ValueError if the network predicts none of eps, v and x.
    """
    scheduler = scheduler_config.read(path)
    if scheduler.prediction is None:
        raise ValueError(
            f"{path}: the networks of {scheduler.class_name} predict a velocity or EDM's F here; only networks that predict "
            f"{', '.join(scheduler_config.PREDICTIONS)} can be diagnosed"
        )
    if scheduler.told_sigma:
        raise ValueError(
            f"{path}: the network of {scheduler.class_name} is told log(sigma_ve) / 4, and nothing in the file says which levels "
            f"it was trained on: its levels of sampling can be read (noisesched interchange --read={path}), but not judged"
        )
    return scheduler


def plan_of(scheduler, own):
    """The `checks.Plan` of a file, completed by the config's `own`."""
    table = scheduler.schedule
    draws = max(own.num_draws, scheduler.num_steps)  # the network has seen every timestep, however short the config's training
    return dataclasses.replace(own, schedule=table, table=table, prediction=scheduler.prediction, num_draws=draws)


def inferences(scheduler, counts):
    """The levels that the library visits in these numbers of steps, as `Inference`s.

    Raises ValueError for a number of steps that the library cannot do.
    """
    schedule, spacing = scheduler.schedule, scheduler.grid.spacing
    return [checks.Inference(schedule, spacing, tuple(scheduler.levels(n).tolist()), follows=True) for n in counts]


def examine(scheduler, own, counts, measured=None):
    """`checks.examine` for a file, with `Finding.file_repair`; the other repairs are for the config whose plan is `own`."""
    found = _examined(scheduler, own, counts, measured)
    training, sampling, left = _repairs(scheduler, own, counts, found)
    repaired = []
    for finding in found:
        changes = sampling or training if "inference" in finding.figures else training
        mends = finding.severity != "fine" and finding.about not in left
        repaired.append(dataclasses.replace(finding, file_repair=_line(changes) if mends else ""))
    return [_readable(finding, scheduler) for finding in repaired]


def sources(scheduler, path, name, counts, found):
    """Sentences: what comes from the file at `path`, what from the config called `name`, and what has no equivalent here."""
    yield (
        f"from the file ({scheduler.class_name}): schedule, prediction, levels, and that the network is told the schedule's "
        f"timesteps; method {scheduler.method or 'none here'}, spacing {scheduler.spacing or 'none here'}"
    )
    yield from (f"{n} levels: {scheduler_config.visited(scheduler, n)}" for n in counts)
    yield f"from {name}: images and their size, weighting, noise_offset; nothing else"
    yield from (f"note: {note}" for note in scheduler.notes)
    if scheduler.no_effect:
        yield f"of no effect here: {', '.join(scheduler.no_effect)}"
    if any(finding.file_repair for finding in found):
        yield (
            "repairs in words (--..) are for a run here, without --scheduler; of the repairs in the file, rescale_betas_zero_snr "
            "and prediction_type need a network that was trained with them, from scratch or further; the others fit any network"
        )
    if len(str(scheduler.schedule)) > LONG:
        yield f"betas('FILE') below stands for a file of these betas: noisesched interchange --read={path} --betas=FILE"


def _examined(scheduler, own, counts, measured=None):
    found = checks.examine(plan_of(scheduler, own), inferences(scheduler, counts), measured, written=own)
    return sorted(found, key=lambda finding: checks.SEVERITIES.index(finding.severity))


# -- repairs


def _repairs(scheduler, own, counts, found):
    """(fields that repair training, fields that repair sampling, what is still not fine with both)."""
    plan = plan_of(scheduler, own)
    better, training = checks.repaired(plan), {}
    if better.last < plan.last:
        training["rescale_betas_zero_snr"] = True
    if better.prediction != plan.prediction:
        training["prediction_type"] = next(
            there for there, ours in scheduler_config.PREDICTIONS.items() if ours == better.prediction
        )
    if not training.keys() <= schedulers.FIELDS[scheduler.class_name].keys():
        training = _moved(scheduler) | training
    trailing = {"timestep_spacing": "trailing"}
    chosen = {field for field, value in schedulers.CHOICES.values() if scheduler.fields.get(field) == value}
    table = {field: value for field, value in schedulers.FIELDS[scheduler.class_name].items() if field in chosen}
    left = {finding.about for finding in found if finding.severity != "fine"}
    for sampling in ({}, trailing, table, trailing | table, _moved(scheduler) | trailing):
        counting = _counting(scheduler, training | sampling)
        try:
            again = _examined(scheduler_config.from_fields(scheduler.fields | training | sampling | counting), own, counts)
        except ValueError:  # a number of steps that the library cannot do in this way
            continue
        left = {finding.about for finding in again if finding.severity != "fine"}
        if not any("inference" in finding.figures for finding in again if finding.severity != "fine"):
            break
    return training and training | counting, sampling and sampling | counting, left


def _moved(scheduler):
    """The fields that change the file's class to one that can begin at zero SNR and has a spacing, its namesake if the class is
    one of Flax, and that keep the defaults of its own class."""
    name = scheduler.class_name
    namesake, wanted = name.removeprefix("Flax"), {"rescale_betas_zero_snr", "timestep_spacing"}
    other = namesake if namesake != name and wanted <= schedulers.FIELDS[namesake].keys() else "DDIMScheduler"
    fixed = {"clip_sample": False, "timestep_spacing": scheduler.grid.spacing, "steps_offset": scheduler.grid.offset}
    own, after = fixed | schedulers.FIELDS[name], schedulers.FIELDS[other]
    before = schedulers.Fields(other, scheduler.fields).given
    kept = {field: value for field, value in own.items() if field not in before and after.get(field, value) != value}
    return {"_class_name": other} | kept


def _counting(scheduler, changes):
    """The field that makes changes count: the library ignores fields that a file lists in _use_default_values."""
    ignored = scheduler.fields.get("_use_default_values")
    if not isinstance(ignored, list) or not any(field in ignored for field in changes):
        return {}
    return {"_use_default_values": [field for field in ignored if field not in list(changes)]}


def _line(changes):
    """Fields as text for the file."""
    return json.dumps(changes)[1:-1]


def _readable(finding, scheduler):
    """The finding without a list of betas that is too long to read or copy."""
    if len(str(scheduler.schedule)) <= LONG:
        return finding
    values = spec.show(scheduler.schedule.call.args[0])
    parts = {name: getattr(finding, name).replace(values, "'FILE'") for name in ("measured", "repair")}
    return dataclasses.replace(finding, **parts)
