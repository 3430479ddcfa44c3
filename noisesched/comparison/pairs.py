"""What the runs of a comparison differ in, and which of them may be compared seed by seed: those that differ in one thing alone.

All of a run's configuration counts, but for its seed and what leaves the trained network as it is (`IDLE`). What a network is
told, with the table of timesteps that belongs to it, is one thing; each other setting is one by itself.
"""

import itertools
from typing import NamedTuple

from noisesched.comparison.results import Condition

TOLD = ("log_snr", "sigma", "timestep", "none")  # the order in which they are compared: a former with each later one
CONDITIONING = "conditioning"
IDLE = (
    "seed",
    "preview",
    "data.num_workers",
    "training.parallel",
    "training.steps_per_dispatch",
    "training.accumulate",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.keep_every",
    "training.keep_best",
    "training.best_split",
)


class Pair(NamedTuple):
    """Two conditions whose runs differ in one `factor` alone, and what that is in each of them, as text.

    factor: "conditioning", or the name of a setting, such as "weighting" or "model.prediction"
    """

    first: Condition
    second: Condition
    factor: str
    values: tuple[str, str]


# -- settings


def settings(run):
    """{name: value} of a run's configuration, such as {"model.width": 16}, without those in IDLE. `run`: of runs.json."""
    flat = {}

    def add(name, value):
        if isinstance(value, dict):
            for key, entry in value.items():
                add(f"{name}.{key}" if name else key, entry)
        else:
            flat[name] = value

    add("", run["config"])
    if flat.get("conditioning.kind") != "timestep":  # which alone is translated to
        flat.pop("conditioning.translation", None)
    return {name: value for name, value in flat.items() if name not in IDLE and name.partition(".")[0] not in IDLE}


def varying(comparison):
    """{name of a setting that is not the same in all runs: {run: its value as text}}"""
    given = {label: settings(run) for label, run in comparison.runs.items()}
    names = dict.fromkeys(name for each in given.values() for name in each)
    found = {name: {label: shown(each, name) for label, each in given.items()} for name in names}
    return {name: texts for name, texts in found.items() if len(set(texts.values())) > 1}


def common(comparison):
    """{name: value as text} of the settings that all runs have alike."""
    first = settings(next(iter(comparison.runs.values())))
    other = varying(comparison)
    return {name: shown(first, name) for name in first if name not in other}


def shown(settings, name):
    """A setting as text: "v", "(1, 2, 2)", "''", or "absent"."""
    if name not in settings:
        return "absent"
    value = settings[name]
    if isinstance(value, list | tuple):
        return f"({', '.join(map(str, value))})"
    return "''" if value == "" else str(value)


# -- pairs


def pairs(comparison):
    """[Pair]: for conditioning if any two runs differ in it alone, else for each setting that two runs alone differ in.

    For conditioning, the first of a pair is told what comes first in TOLD. For another setting, the second of a pair is the one
    that is listed first, as the usual: the first is measured against it.
    """
    found = [pair for two in itertools.combinations(comparison.conditions, 2) if (pair := _pair(comparison, *two))]
    told = [pair for pair in found if pair.factor == CONDITIONING]
    if not told:
        factors = list(dict.fromkeys(pair.factor for pair in found))
        return sorted(found, key=lambda pair: factors.index(pair.factor))
    drawn = [condition.drawn for condition in comparison.conditions]
    return sorted(told, key=lambda pair: (drawn.index(pair.first.drawn), _rank(pair.first), _rank(pair.second)))


def foremost(pairs):
    """The pairs that answer the question, where the others are its context.

    For conditioning, those whose first is told what comes first in TOLD; else, those against the value that is listed first.
    """
    least = min((_rank(pair.first) for pair in pairs), default=None)
    usual = {}
    for pair in pairs:
        usual.setdefault(pair.factor, pair.values[1])
    return [
        pair
        for pair in pairs
        if (_rank(pair.first) == least if pair.factor == CONDITIONING else pair.values[1] == usual[pair.factor])
    ]


def questions(pairs):
    """{(factor, value of the first, value of the second): its pairs}, whatever else those have in common."""
    found = {}
    for pair in pairs:
        found.setdefault((pair.factor, *pair.values), []).append(pair)
    return found


def _pair(comparison, one, other):
    """The Pair of two conditions, or None if their runs differ in more than one thing, or in nothing."""
    given = [settings(comparison.runs[each.run]) for each in (one, other)]
    names = [name for name in {**given[0], **given[1]} if shown(given[0], name) != shown(given[1], name)]
    factors = {CONDITIONING if name.startswith(f"{CONDITIONING}.") else name for name in names}
    if len(factors) != 1 or (one.told == other.told and one.translation != other.translation):
        return None
    (factor,) = factors
    if factor != CONDITIONING:
        return Pair(other, one, factor, (shown(given[1], factor), shown(given[0], factor)))
    marks = names if one.told == other.told else ()
    values = {each: _told(each, mine, marks) for each, mine in zip((one, other), given, strict=True)}
    first, second = sorted((one, other), key=_rank)
    return Pair(first, second, factor, (values[first], values[second]))


def _told(condition, settings, names):
    """ "timestep (nearest)", with the settings `names` where what is told does not tell two conditions apart."""
    marks = [f"{name.partition('.')[2]} {shown(settings, name)}" for name in names]
    marks += [condition.translation] if condition.translation else []
    return f"{condition.told} ({', '.join(marks)})" if marks else condition.told


def _rank(condition):
    return TOLD.index(condition.told) if condition.told in TOLD else len(TOLD)
