"""The results of a comparison: its files, read and checked, as frames from which a report takes every number.

The unit of replication is the training seed. Sampling seeds of one trained network are averaged first, and every spread,
standard error and verdict is over training seeds.
"""

import dataclasses
import functools
import itertools
import math
from pathlib import Path
from types import NoneType
from typing import NamedTuple

import numpy as np
import pandas as pd

from noisesched import schedules, spec
from noisesched.evaluation import image_stats, metrics
from noisesched.runtime import files

PREVIEW = 8  # images of a row in its preview
SAME = 0.15  # schedules that differ by less in log-SNR at every step count as one: a table and its curve
LOOK = "images {}".format  # the column of an image statistic: "images black"


class Condition(NamedTuple):
    """A way of training; for networks told timesteps, also how levels become timesteps at inference (else "")."""

    run: str
    translation: str
    drawn: str
    told: str

    def __str__(self):
        return f"{self.run}, {self.translation}" if self.translation else self.run


class How(NamedTuple):
    """A way of sampling, whatever the schedule."""

    method: str
    guidance: str
    spacing: str

    def __str__(self):
        return ", ".join([self.method, *[self.guidance] * (self.guidance != "none"), f"{self.spacing} spacing"])


class Task(NamedTuple):
    """One way to sample from any condition. `calls`: the budget; a method may make a few fewer network calls."""

    schedule: str
    method: str
    guidance: str
    spacing: str
    calls: int

    @property
    def how(self):
        return How(*self[1:4])


class Summary(NamedTuple):
    mean: float
    std: float  # over training seeds, n - 1 in the denominator; NaN for one seed
    n: int


class Grid(NamedTuple):
    """What there are rows of for one How; `middle`: one of its numbers of calls."""

    conditions: list
    schedules: list
    calls: list
    middle: int


TASK = list(Task._fields)
CELL = [*Condition._fields, *TASK]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The results of a comparison. A cell is a (Condition, Task).

    frame     one row per measured set of samples: the columns of CELL, train_seed, seed, network_calls, .., each metric by its
              name, each image statistic as LOOK(name); NaN for what was refused, is not finite or not stored
    networks  one row per trained network: run, train_seed, seconds, reason (why it has no evaluation, or None), and its
              evaluation.json with a column for each number, such as "bits_per_dim.value"
    """

    folder: Path
    config: dict
    runs: dict
    frame: pd.DataFrame
    networks: pd.DataFrame
    left_out: int  # how many rows of earlier requests the folder holds besides
    floor: dict
    about: dict
    appearance: dict  # {"real": of the images compared with, "floor": of as many others}, by `image_stats.describe`; or {}
    metrics: list  # the names of the metrics, the main one first

    @functools.cached_property
    def cells(self):
        """{(condition, task): the indices of its rows}"""
        groups = self.frame.groupby(CELL, sort=False).indices
        return {_cell(key): groups[key] for key in dict.fromkeys(self.frame[CELL].itertuples(index=False, name=None))}

    @functools.cached_property
    def conditions(self):
        """In the order of runs.json."""
        return sorted(dict.fromkeys(condition for condition, _ in self.cells), key=lambda each: list(self.runs).index(each.run))

    @functools.cached_property
    def hows(self):
        return list(dict.fromkeys(task.how for _, task in self.cells))

    @functools.cached_property
    def schedules(self):
        return list(self.frame["schedule"].unique())

    @functools.cached_property
    def calls(self):
        return sorted(self.frame["calls"].unique().tolist())

    @functools.cached_property
    def seeds(self):
        return sorted(self.frame["train_seed"].unique().tolist())

    @property
    def tasks(self):
        """The tasks of all conditions: by How, then by calls, then by schedule."""
        everything = itertools.product(self.hows, self.calls, self.schedules)
        there = {task for _, task in self.cells}
        return [task for how, calls, schedule in everything if (task := Task(schedule, *how, calls)) in there]

    @property
    def middle(self):
        """The number of calls whose results the abstract gives."""
        return self.calls[len(self.calls) // 2]

    def grid(self, how):
        cells = [cell for cell in self.cells if cell[1].how == how]
        calls = sorted({task.calls for _, task in cells})
        return Grid(
            [condition for condition in self.conditions if any(condition == other for other, _ in cells)],
            [schedule for schedule in self.schedules if any(schedule == task.schedule for _, task in cells)],
            calls,
            self.middle if self.middle in calls else calls[len(calls) // 2],
        )

    @functools.cache  # noqa: B019
    def summary(self, column):
        """{cell: Summary} of a column, of the cells that have a value."""
        if column not in self.frame:
            return {}
        seeds = self.frame.dropna(subset=[column]).groupby([*CELL, "train_seed"], sort=False)[column].mean()
        found = seeds.groupby(CELL, sort=False).agg(["mean", "std", "count"])
        return {_cell(key): Summary(mean, std, int(n)) for key, mean, std, n in found.itertuples(name=None)}

    @functools.cache  # noqa: B019
    def rows(self, cell):
        """The rows of a cell, ordered by seeds; none if it is not there."""
        return self.frame.iloc[self.cells.get(cell, [])].sort_values(["train_seed", "seed"])

    @functools.cache  # noqa: B019
    def network_calls(self, calls, how=None):
        """The numbers of network calls actually made within a budget, ascending: by all, or by one How."""
        rows = self.frame[self.frame["calls"] == calls]
        for name, value in how._asdict().items() if how else ():
            rows = rows[rows[name] == value]
        return sorted(rows["network_calls"].unique().tolist())

    def levels(self, cell):
        """The log-SNRs that a cell was sampled at, noisiest first, float64 [N]; empty if it has no row.

        As stored in its rows; rows of older comparisons store none, so those follow from the schedule's text.
        """
        rows = self.rows(cell)
        if not len(rows):
            return np.empty(0)
        stored = rows["log_snrs"].iloc[0]
        again = lambda: schedules.levels(cell[1].schedule, int(rows["levels"].iloc[0]), cell[1].spacing)
        return np.asarray(stored if isinstance(stored, list) else again(), np.float64)

    def evaluated(self, column):
        """A number of the evaluations, a Series over `networks`; NaN where it is missing or not finite."""
        found = self.networks.get(column, pd.Series(np.nan, self.networks.index))
        return pd.to_numeric(found, errors="coerce").replace([-math.inf, math.inf], math.nan)


def _cell(key):
    return Condition(*key[:4]), Task(*key[4:])


def summarise(values):
    """The Summary of one number for each training seed."""
    values = pd.Series(values, dtype=float).dropna()
    return Summary(float(values.mean()), float(values.std()), len(values))


# -- reading

ROW = {
    **dict.fromkeys(("key", "run", "schedule", "method", "spacing"), str),
    **dict.fromkeys(("train_seed", "seed", "levels", "calls", "network_calls", "num_images"), int),
    **dict.fromkeys(("refused", "translation", "preview"), (str, NoneType)),
    **{"metrics": dict, "outside": dict, "seconds": (int, float)},
}
LATER = {"guidance": str, "appearance": (dict, NoneType), "log_snrs": (list, NoneType)}  # older rows lack these
RUN = {
    **dict.fromkeys(("drawn", "told"), str),
    **dict.fromkeys(("num_parameters", "train_steps", "batch_size"), int),
    **dict.fromkeys(("workdirs", "train_seeds", "seconds"), list),
    **dict.fromkeys(("config", "evaluations"), dict),
}


def read(directory):
    """The Comparison in a folder that `compare` wrote, with those of its rows that its config asks for.

    An incomplete last line of compare.jsonl is left out. Raises FileNotFoundError or ValueError, in one line, for a missing file,
    a damaged one, or one without any row.
    """
    folder = Path(directory)
    config, runs = _read(folder / "config.json"), _read(folder / "runs.json")
    _check(config, {"comparison": dict, "keys": list}, folder / "config.json")
    _check(dict(enumerate(config["keys"])), dict.fromkeys(range(len(config["keys"])), str), f"{folder / 'config.json'}, keys")
    _check(config["comparison"], {"metrics": list, "parameters": str}, folder / "config.json")
    for label, run in runs.items():
        where = f"{folder / 'runs.json'}, run {label!r}"
        _check(run, RUN, where)
        kinds = {"workdirs": str, "train_seeds": int, "seconds": (int, float)}
        for name, kind in kinds.items():
            numbered = range(max(len(run[other]) for other in kinds))
            _check(dict(enumerate(run[name])), dict.fromkeys(numbered, kind), f"{where}, {name}")
        spec.bind(spec.parse(run["drawn"]), schedules.DEFINITIONS, "schedule")  # a file that it names may be gone
    path = folder / "compare.jsonl"
    rows = _read_rows(path)
    reference, where = _read(folder / "reference.json"), f"{folder / 'reference.json'}"
    _check(reference, {"floor": dict, "about": dict}, where)
    _check(reference["floor"], dict.fromkeys(reference["floor"], (int, float)), f"{where}, floor")
    _check({"extractors": {}} | reference["about"], {"extractors": dict}, f"{where}, about")
    halves = {}
    if reference.get("appearance") is not None:  # older comparisons lack it
        _check(reference, {"appearance": dict}, where)
        halves = {half: reference["appearance"].get(half) for half in ("real", "floor")}
        for half, found in halves.items():
            _check_appearance(found, f"{where}, appearance, {half!r}")
    keys = set(config["keys"])
    asked = [row for key, row in rows.items() if key in keys]
    if not asked:
        raise ValueError(f"{path} holds no row yet of those that config.json asks for: nothing to report")
    for row in asked:
        if row["run"] not in runs:
            raise ValueError(
                f"{folder / 'runs.json'} lacks the run {row['run']!r} of {path.name}; it has {', '.join(map(repr, runs))}"
            )
    frame = pd.DataFrame([_flat(row, runs[row["run"]]) for row in asked])
    if len(twice := frame[frame.duplicated([*CELL, "train_seed", "seed"])]):
        where = twice.iloc[0]
        raise ValueError(
            f"{path} holds two numbers for {where['run']}, {where['schedule']}, {where['calls']} calls, seed {where['seed']}: "
            "run `compare` again"
        )
    wanted = [str(text) for text in config["comparison"]["metrics"]]
    names = list(dict.fromkeys(name for row in asked for name in row["metrics"]))
    names.sort(key=lambda name: wanted.index(measure(name)) if measure(name) in wanted else len(wanted))
    floor, about, left_out = reference["floor"], reference["about"], len(rows) - len(asked)
    return Comparison(folder, config, runs, frame, _read_networks(folder, runs), left_out, floor, about, halves, names)


def _flat(row, run):
    """A row of compare.jsonl as one of the frame."""
    finite = lambda value: value if value is not None and math.isfinite(value) else math.nan
    looks = row.get("appearance") or {}
    return (
        {name: row[name] for name in ROW if name not in ("metrics", "outside")}
        | {"translation": row["translation"] or "", "guidance": row.get("guidance", "none")}
        | {"drawn": run["drawn"], "told": run["told"], "log_snrs": row.get("log_snrs")}
        | {"clamped": row["outside"].get("handled") == "clamped", "beyond": row["outside"].get("by", 0)}
        | {"strange": sum(not math.isfinite(value) for value in row["metrics"].values())}
        | {name: finite(value) for name, value in row["metrics"].items()}
        | {LOOK(name): finite(looks.get(name)) for name in image_stats.STATISTICS}
        | {LOOK("histogram"): looks.get("histogram")}
    )


def _read_rows(path):
    """{key: row}, checked; a row that was made again replaces the older one."""
    rows = {}
    for number, row in enumerate(_read(path, files.read_lines), 1):
        where = f"{path}, line {number}"
        _check(row, ROW | {name: kind for name, kind in LATER.items() if name in row}, where)
        if row.get("appearance"):
            _check_appearance(row["appearance"], where)
        for name, value in row["metrics"].items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{where}: the value of {name!r} must be a number; got {value!r}")
            try:
                better(name)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        rows[row["key"]] = row
    return rows


def _check_appearance(found, where):
    try:
        image_stats.check(found)
    except ValueError as error:
        raise ValueError(f"{where} is damaged: {error}") from None


def _read_networks(folder, runs):
    """The frame `networks`, with the evaluations in `folder`/evaluations/<run>/seed<n>."""
    found, evaluations = [], []
    for label, run in runs.items():
        for directory, seed, seconds in zip(run["workdirs"], run["train_seeds"], run["seconds"], strict=True):
            path, reason = folder / "evaluations" / label / f"seed{seed}" / "evaluation.json", run["evaluations"].get(directory)
            evaluations.append({})
            if reason is None:
                try:
                    evaluations[-1] = _read_evaluation(path) if path.exists() else {}
                    reason = None if path.exists() else "evaluation.json is missing"
                except ValueError as error:  # the report says why it lacks this one
                    reason = str(error)
            found.append(
                {"run": label, "train_seed": seed, "seconds": seconds, "reason": None if reason is None else str(reason)}
            )
    return pd.concat([pd.DataFrame(found), pd.json_normalize(evaluations)], axis=1)


def _read_evaluation(path):
    result = _read(path)
    _check(result, {"bits_per_dim": dict, "profile": dict}, path)
    _check(result, {name: kind for name, kind in {"num_images": int, "split": str}.items() if name in result}, path)
    _check(result["bits_per_dim"], {"value": (int, float)}, f"{path}, bits_per_dim")
    _check(result["profile"], {"log_snr": list, "eps": list, "v": list}, f"{path}, profile")
    columns = [result["profile"][name] for name in ("log_snr", "eps", "v")]
    if len({len(column) for column in columns}) > 1 or not all(isinstance(x, int | float) for x in sum(columns, [])):
        raise ValueError(f"{path} is damaged: log_snr, eps and v of its profile must be as many numbers each")
    return {name: value for name, value in result.items() if name not in ("run", "train_seed", "seconds", "reason")}


def _read(path, how=files.read_json):
    try:
        return how(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is missing: give the --compare=DIR of a comparison made by `compare`") from None


def _check(value, kinds, where):
    """ValueError unless `value` is a dictionary with at least these entries, of these kinds."""
    for name, kind in kinds.items():
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"{where} is damaged: it has no {name!r}")
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            raise ValueError(f"{where} is damaged: {name!r} cannot be {spec.shortened(repr(value[name]))}")


# -- names


def measure(name):
    """The name of a number without its sample count: "frechet(classifier, n=256)" -> "frechet(classifier)"."""
    call = spec.parse(name)
    return str(spec.Call(call.name, call.args))


@functools.cache
def better(name):
    """ "lower" | "higher", of a number's name. ValueError for an unknown metric."""
    return metrics.METRICS[metrics.parse(measure(name)).metric].better


@functools.cache
def own(drawn, schedule):
    """Whether an inference schedule is the one that training drew from, or the continuous curve of its table.

    Schedules read from files are compared by their texts alone: a file may have changed by now, or be gone.
    """
    calls = spec.parse(drawn), spec.parse(schedule)
    if calls[0] == calls[1] or any(map(_reads_file, calls)):
        return calls[0] == calls[1]
    drawn, schedule = schedules.make(drawn), schedules.make(schedule)
    num_steps = max(drawn.table.num_steps if drawn.table else 1000, 2)
    u = np.linspace(1, num_steps - 1, 100).round() / num_steps  # not u = 1, where published tables are clipped
    return bool(np.isclose(np.asarray(drawn(u)), np.asarray(schedule(u)), rtol=0, atol=SAME).all())


def _reads_file(call):
    """Whether a parsed schedule, or one within it, has a text as argument, which is always the name of a file."""
    values = (*call.args, *dict(call.kwargs).values())
    return any(isinstance(value, str) or isinstance(value, spec.Call) and _reads_file(value) for value in values)
