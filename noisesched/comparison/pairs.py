"""Which runs of a comparison may be compared seed by seed, and the statistics of their differences.

Two runs make a pair if they differ in one thing alone. A run's whole configuration counts, except its seed and the settings that
leave the trained network as it is (`IDLE`). What a network is told, together with its table of timesteps, is one thing; so is
each other setting. All runs of a seed saw the same images and the same noise in the same order, so what the seeds have in common
cancels in a difference.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from noisesched.comparison.results import TASK, Condition, better, own
from noisesched.runs.config import Config
from noisesched.runs.settings import stated

CONFIDENCE = 0.95
VERDICTS = ("better", "worse", "no difference seen", "one seed")
TOLD = ("log_snr", "sigma", "timestep", "none")  # each is compared with those after it
CONDITIONING = "conditioning"
IDLE = set(stated("idle", Config))  # settings that leave the trained network as it is


class Pair(NamedTuple):
    """Two conditions whose runs differ in one `factor` alone, and its value in each, as text.

    factor: "conditioning", or the name of a setting, such as "weighting" or "model.prediction"
    """

    first: Condition
    second: Condition
    factor: str
    values: tuple[str, str]

    def trained(self, schedule):
        """Whether either was trained with this inference schedule."""
        return own(self.first.drawn, schedule) or own(self.second.drawn, schedule)


# -- settings


def settings(run):
    """{name: value as text} of a run's configuration, such as {"model.width": "16"}, without IDLE. `run`: of runs.json."""

    def flat(value, name=""):
        if not isinstance(value, dict):
            return {name: f"({', '.join(map(str, value))})" if isinstance(value, list | tuple) else str(value) or "''"}
        parts = (flat(entry, f"{name}.{key}" if name else key) for key, entry in value.items())
        return {key: text for part in parts for key, text in part.items()}

    found = flat(run["config"])
    if found.get("conditioning.kind") != "timestep":  # the only kind with a translation
        found.pop("conditioning.translation", None)
    return {name: text for name, text in found.items() if not {name, name.partition(".")[0]} & IDLE}


def table(comparison):
    """A frame of the settings: a column for each run, a row for each setting, "absent" where a run does not have it."""
    return pd.DataFrame({label: settings(run) for label, run in comparison.runs.items()}, dtype=object).fillna("absent")


def common(comparison):
    """{name: value as text} of the settings that are the same in all runs."""
    found = table(comparison)
    return found[found.nunique(axis=1) == 1].iloc[:, 0].to_dict()


def varying(comparison):
    """{name of a setting that differs between runs: {run: its value as text}}"""
    found = table(comparison)
    return found[found.nunique(axis=1) > 1].to_dict("index")


# -- pairs


def pairs(comparison):
    """(Pair, ..): those that differ in conditioning, if there are any; else those that differ in any other single setting.

    For conditioning, the first of a pair is told what comes first in TOLD. For another setting, the second of a pair is the run
    that is listed first, the baseline against which the first is measured.
    """
    given = table(comparison)
    found = [pair for two in itertools.combinations(comparison.conditions, 2) if (pair := _pair(given, *two))]
    told = [pair for pair in found if pair.factor == CONDITIONING]
    if not told:
        factors = list(dict.fromkeys(pair.factor for pair in found))
        return tuple(sorted(found, key=lambda pair: factors.index(pair.factor)))
    drawn = [condition.drawn for condition in comparison.conditions]
    return tuple(sorted(told, key=lambda pair: (drawn.index(pair.first.drawn), _rank(pair.first), _rank(pair.second))))


def foremost(pairs):
    """The pairs that answer the main question.

    For conditioning, those whose first is told what comes first in TOLD; else, those against the value that is listed first.
    """
    least, usual = min((_rank(pair.first) for pair in pairs), default=None), {}
    for pair in pairs:
        usual.setdefault(pair.factor, pair.values[1])
    of = lambda pair: _rank(pair.first) == least if pair.factor == CONDITIONING else pair.values[1] == usual[pair.factor]
    return tuple(pair for pair in pairs if of(pair))


def questions(pairs):
    """{(factor, value of the first, value of the second): the pairs with these}."""
    found = {}
    for pair in pairs:
        found.setdefault((pair.factor, *pair.values), []).append(pair)
    return found


def _pair(given, one, other):
    """The Pair of two conditions, or None if their runs differ in more than one thing, or in nothing."""
    mine, theirs = given[one.run], given[other.run]
    names = list(given.index[mine != theirs])
    factors = {CONDITIONING if name.startswith(f"{CONDITIONING}.") else name for name in names}
    if len(factors) != 1 or (one.told == other.told and one.translation != other.translation):
        return None
    (factor,) = factors
    if factor != CONDITIONING:
        return Pair(other, one, factor, (theirs[factor], mine[factor]))

    def value(condition):
        marks = [f"{name.partition('.')[2]} {given[condition.run][name]}" for name in names if one.told == other.told]
        marks += [condition.translation] * bool(condition.translation)
        return f"{condition.told} ({', '.join(marks)})" if marks else condition.told

    first, second = sorted((one, other), key=_rank)
    return Pair(first, second, factor, (value(first), value(second)))


def _rank(condition):
    return TOLD.index(condition.told) if condition.told in TOLD else len(TOLD)


# -- statistics, float64


@functools.lru_cache
def differences(comparison, pairs, metric):
    """First minus second of every pair: a row for each (index of the pair, *TASK) that both have, a column for each seed.

    Rows of the same training seed and sampling seed are subtracted, then sampling seeds averaged. A pair never sampled under the
    same schedule has no row.
    """
    frame = comparison.frame.set_index([*TASK, "train_seed", "seed"])[[*Condition._fields, metric]]
    values = {Condition(*key): rows[metric] for key, rows in frame.groupby(list(Condition._fields))}
    found = {number: (values[pair.first] - values[pair.second]).dropna() for number, pair in enumerate(pairs)}
    found = {number: each.groupby([*TASK, "train_seed"]).mean() for number, each in found.items() if len(each)}
    if not found:
        return pd.DataFrame(index=pd.MultiIndex.from_arrays([[]] * (1 + len(TASK)), names=["pair", *TASK]))
    wide = pd.concat(found, names=["pair"]).unstack("train_seed")
    order = {task: number for number, task in enumerate(comparison.tasks)}
    return wide.iloc[sorted(range(len(wide)), key=lambda n: (wide.index[n][0], order[wide.index[n][1:]]))]


def judged(differences, metric):
    """Statistics of paired differences, a row for each row of them: mean, error, low, high, n, verdict.

    error: the standard error over training seeds; low, high: the interval of CONFIDENCE by Student's t; NaN for one seed.
    A difference is "better" or "worse" only if its interval excludes 0.
    """
    found = pd.DataFrame({"mean": differences.mean(axis=1), "error": differences.sem(axis=1), "n": differences.count(axis=1)})
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, found["n"] - 1) * found["error"]
    found["low"], found["high"] = found["mean"] - reach, found["mean"] + reach
    good = (found["mean"] < 0) == (better(metric) == "lower")
    unseen = (found["low"] <= 0) & (found["high"] >= 0)
    found["verdict"] = np.select([found["n"] == 1, unseen, good], ["one seed", "no difference seen", "better"], "worse")
    return found


def averaged(differences):
    """(one row: the mean over cells for each training seed, how many cells count); (None, 0) if no cell counts.

    A cell counts if it has every seed that any cell has, so that all seeds are averages over the same cells.
    """
    full = differences.dropna(axis=1, how="all").dropna()
    return (full.mean().to_frame().T, len(full)) if len(full) else (None, 0)


def of(differences, pairs, group):
    """The differences of a group of the pairs."""
    return differences[[pairs[number] in group for number in differences.index.get_level_values("pair")]]


def under(differences, pairs, trained):
    """The differences under a schedule that one of the pair was trained with, or (`trained` False) under the others."""
    return differences[[pairs[n].trained(schedule) == trained for n, schedule in differences.index.droplevel([*TASK[1:]])]]
