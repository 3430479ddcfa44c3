"""What a comparison found: its files read and checked, and the statistics that a report may state.

The unit of replication is the training seed. Sampling seeds of one trained network are averaged first, and every spread,
standard error and verdict is over training seeds. All runs of a seed saw the same images and the same noise in the same order,
so two ways of training are compared seed by seed: what the seeds share cancels.
"""

import dataclasses
import functools
import itertools
import math
from pathlib import Path
from types import NoneType
from typing import NamedTuple

import numpy as np

from noisesched import schedules, spec
from noisesched.evaluation import image_stats, metrics
from noisesched.runtime import files

CONFIDENCE = 0.95
SAME = 0.15  # two schedules are one if they differ by less in log-SNR at every step: a table and its continuous curve do


class Condition(NamedTuple):
    """A way of training, and for networks told timesteps also how levels became timesteps at inference (else None)."""

    run: str
    drawn: str
    told: str
    translation: str | None

    def __str__(self):
        return f"{self.run}, {self.translation}" if self.translation else self.run


class Task(NamedTuple):
    """What was asked of every condition. `calls`: the budget; a method may make a few fewer network calls."""

    schedule: str
    method: str  # with its guidance, if there is any: "ddim, cfg(3)"
    spacing: str
    calls: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` left, read. `cells[condition, task]`: its rows, one for each training seed and sampling seed."""

    folder: Path
    config: dict
    runs: dict
    rows: list  # those that config.json asks for
    left_out: int  # rows of earlier requests, which are there too
    floor: dict
    about: dict
    appearance: dict  # {"real": of the images compared with, "floor": of as many others}, `appearance.describe`; or {}
    evaluations: dict  # run -> {workdir: evaluation}
    metrics: list  # the names of the numbers, the main one first
    cells: dict

    @functools.cached_property
    def conditions(self):
        """In the order of runs.json."""
        found = dict.fromkeys(condition for condition, _ in self.cells)
        return sorted(found, key=lambda condition: list(self.runs).index(condition.run))

    @functools.cached_property
    def schedules(self):
        return list(dict.fromkeys(task.schedule for _, task in self.cells))

    @functools.cached_property
    def variants(self):
        """[(method, spacing), ..]"""
        return list(dict.fromkeys((task.method, task.spacing) for _, task in self.cells))

    @functools.cached_property
    def calls(self):
        return sorted({task.calls for _, task in self.cells})

    @property
    def middle(self):
        """The number of calls that the summaries are about."""
        return self.calls[len(self.calls) // 2]

    def of_variant(self, variant):
        """(conditions, schedules, numbers of calls) that a (method, spacing) has rows of, each in its order."""
        cells = [(condition, task) for condition, task in self.cells if (task.method, task.spacing) == variant]
        return (
            [condition for condition in self.conditions if any(condition == other for other, _ in cells)],
            [schedule for schedule in self.schedules if any(schedule == task.schedule for _, task in cells)],
            sorted({task.calls for _, task in cells}),
        )

    def middle_of(self, variant):
        """The middle number of calls, or where a (method, spacing) has no rows of it, the middle one of its own."""
        calls = self.of_variant(variant)[2]
        return self.middle if self.middle in calls else calls[len(calls) // 2]

    @functools.cached_property
    def seeds(self):
        return sorted({row["train_seed"] for row in self.rows})

    @property
    def tasks(self):
        return [
            Task(schedule, *variant, calls)
            for variant, calls, schedule in itertools.product(self.variants, self.calls, self.schedules)
        ]

    def values(self, condition, task, metric):
        """{(training seed, sampling seed): value}, without what was refused or is not finite."""
        rows = self.cells.get((condition, task), ())
        return {
            (row["train_seed"], row["seed"]): row["metrics"][metric]
            for row in rows
            if math.isfinite(row["metrics"].get(metric, math.nan))
        }

    def appearances(self, condition, task):
        """{(training seed, sampling seed): what the samples look like}, of the rows that say it: `appearance.describe`."""
        rows = self.cells.get((condition, task), ())
        return {(row["train_seed"], row["seed"]): row["appearance"] for row in rows if row.get("appearance")}

    def look(self, condition, task, name, over=1.0):
        """The Summary of a statistic of appearance in a cell, divided by `over`; None if it has no value, or `over` is 0."""
        found = {
            key: each[name] / over
            for key, each in self.appearances(condition, task).items()
            if over and each.get(name) is not None
        }
        return summarise(by_training_seed(found).values()) if found else None

    def summary(self, condition, task, metric):
        """The Summary of a cell, or None if it has no value."""
        values = by_training_seed(self.values(condition, task, metric))
        return summarise(values.values()) if values else None


# -- reading

ROW = {
    "key": str,
    "run": str,
    "train_seed": int,
    "schedule": str,
    "method": str,
    "spacing": str,
    "calls": int,
    "network_calls": int,
    "levels": int,
    "seed": int,
    "num_images": int,
    "metrics": dict,
    "outside": dict,
    "seconds": (int, float),
    "refused": (str, NoneType),
    "translation": (str, NoneType),
    "preview": (str, NoneType),
}
LATER = {"guidance": str, "appearance": (dict, NoneType)}  # which rows of older comparisons lack
RUN = {
    "drawn": str,
    "told": str,
    "workdirs": list,
    "seconds": list,
    "num_parameters": int,
    "train_steps": int,
    "batch_size": int,
    "config": dict,
    "evaluations": dict,
    "train_seeds": list,
}


def read(directory):
    """The Comparison in a folder that `compare` wrote: of its rows, those that its config asks for.

    A torn last line of compare.jsonl is left out. Raises FileNotFoundError or ValueError, in one line, for a missing file, a
    damaged one, or one without any row.
    """
    folder = Path(directory)
    config, runs = _read(folder / "config.json"), _read(folder / "runs.json")
    _check(config, {"comparison": dict, "keys": list}, folder / "config.json")
    _check(config["comparison"], {"metrics": list}, folder / "config.json")
    for label, run in runs.items():
        where = f"{folder / 'runs.json'}, run {label!r}"
        _check(run, RUN, where)
        for name, kind in (("workdirs", str), ("train_seeds", int), ("seconds", (int, float))):
            _check(dict(enumerate(run[name])), dict.fromkeys(range(len(run[name])), kind), f"{where}, {name}")
        spec.bind(spec.parse(run["drawn"]), schedules.DEFINITIONS, "schedule")  # a file that it names may be gone
    rows = _read_rows(folder / "compare.jsonl", runs)
    reference = _read(folder / "reference.json")
    _check(reference, {"floor": dict, "about": dict}, folder / "reference.json")
    _check(reference["floor"], dict.fromkeys(reference["floor"], (int, float)), f"{folder / 'reference.json'}, floor")
    halves = {}
    if reference.get("appearance") is not None:  # older comparisons do not say it
        _check(reference, {"appearance": dict}, folder / "reference.json")
        halves = {half: reference["appearance"].get(half) for half in ("real", "floor")}
        for half, found in halves.items():
            _check_appearance(found, f"{folder / 'reference.json'}, appearance, {half!r}")
    _check({"extractors": {}} | reference["about"], {"extractors": dict}, f"{folder / 'reference.json'}, about")
    asked = [row for key, row in rows.items() if key in set(config["keys"])]
    if not asked:
        raise ValueError(f"{folder / 'compare.jsonl'} holds no row yet of those that config.json asks for: nothing to report")
    wanted = [str(text) for text in config["comparison"]["metrics"]]
    names = list(dict.fromkeys(name for row in asked for name in row["metrics"]))
    names.sort(key=lambda name: wanted.index(measure(name)) if measure(name) in wanted else len(wanted))
    cells = {}
    for row in asked:
        if (run := runs.get(row["run"])) is None:
            raise ValueError(
                f"{folder / 'runs.json'} lacks the run {row['run']!r} of compare.jsonl; it has {', '.join(map(repr, runs))}"
            )
        condition = Condition(row["run"], run["drawn"], run["told"], row["translation"])
        guidance = row.get("guidance", "none")
        method = row["method"] if guidance == "none" else f"{row['method']}, {guidance}"
        cell = cells.setdefault((condition, Task(row["schedule"], method, row["spacing"], row["calls"])), [])
        if any((other["train_seed"], other["seed"]) == (row["train_seed"], row["seed"]) for other in cell):
            where = f"{condition}, {row['schedule']}, {row['calls']} calls, seed {row['seed']}"
            raise ValueError(f"{folder / 'compare.jsonl'} holds two numbers for {where}: run `compare` again")
        cell.append(row)
    evaluations = {label: _read_evaluations(folder / "evaluations" / label, run) for label, run in runs.items()}
    return Comparison(
        folder,
        config,
        runs,
        asked,
        len(rows) - len(asked),
        reference["floor"],
        reference["about"],
        halves,
        evaluations,
        names,
        cells,
    )


def _read_rows(path, runs):
    rows = {}
    for number, row in enumerate(_read(path, files.read_lines), 1):
        where = f"{path}, line {number}"
        _check(row, ROW, where)
        _check(row, {name: kind for name, kind in LATER.items() if name in row}, where)
        if row.get("appearance"):
            _check_appearance(row["appearance"], where)
        for name, value in row["metrics"].items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{where}: the value of {name!r} must be a number; got {value!r}")
            try:
                better(name)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        rows[row["key"]] = row  # a row that was made again stands for the older one
    return rows


def _check_appearance(found, where):
    try:
        image_stats.check(found)
    except ValueError as error:
        raise ValueError(f"{where} is damaged: {error}") from None


def _read_evaluations(folder, run):
    """{workdir: evaluation}, of those that have one: in `folder`/seed<n>."""
    found = {}
    for directory, seed in zip(run["workdirs"], run["train_seeds"], strict=True):
        path = folder / f"seed{seed}" / "evaluation.json"
        if run["evaluations"].get(directory) is not None or not path.exists():
            continue
        try:
            found[directory] = _read_evaluation(path)
        except ValueError as error:  # the report says why it lacks this one
            run["evaluations"][directory] = str(error)
    return found


def _read_evaluation(path):
    result = _read(path)
    _check(result, {"bits_per_dim": dict, "profile": dict}, path)
    _check(result["bits_per_dim"], {"value": (int, float)}, f"{path}, bits_per_dim")
    _check(result["profile"], {"log_snr": list, "eps": list, "v": list}, f"{path}, profile")
    columns = [result["profile"][name] for name in ("log_snr", "eps", "v")]
    if len({len(column) for column in columns}) > 1 or not all(isinstance(x, int | float) for x in sum(columns, [])):
        raise ValueError(f"{path} is damaged: log_snr, eps and v of its profile must be as many numbers each")
    return result


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
            raise ValueError(f"{where} is damaged: {name!r} cannot be {value[name]!r}")


# -- names


def measure(name):
    """The measure of a number's name, without its sample count: "frechet(classifier, n=256)" -> "frechet(classifier)"."""
    call = spec.parse(name)
    return str(spec.Call(call.name, call.args))


def better(name):
    """ "lower" | "higher", of a number's name. ValueError for a metric that there is not."""
    return metrics.METRICS[metrics.parse(measure(name)).metric].better


@functools.lru_cache(maxsize=4096)
def own(drawn, schedule):
    """Whether an inference schedule is the one that training drew from, or the continuous curve of its table.

    One that is read from a file is known by its text alone: the file may be another by now, or gone.
    """
    calls = spec.parse(drawn), spec.parse(schedule)
    if calls[0] == calls[1] or any(map(_reads_file, calls)):
        return calls[0] == calls[1]
    drawn, schedule = schedules.make(drawn), schedules.make(schedule)
    num_steps = max(drawn.table.num_steps if drawn.table else 1000, 2)
    u = np.linspace(1, num_steps - 1, 100).round() / num_steps  # steps, without u = 1, where published tables are clipped
    return bool(np.isclose(np.asarray(drawn(u)), np.asarray(schedule(u)), rtol=0, atol=SAME).all())


def _reads_file(call):
    """Whether a parsed schedule, or one in it, has a text as argument: always a file's name."""
    values = (*call.args, *dict(call.kwargs).values())
    return any(isinstance(value, str) or isinstance(value, spec.Call) and _reads_file(value) for value in values)


def levels(comparison, task):
    """The log-SNRs that a task was sampled at, noisiest first, float64 [N]; empty if it has no row.

    As its rows store them. Rows of older comparisons do not: then as the schedule's text gives them today.
    """
    row = next((row for (_, other), rows in comparison.cells.items() if other == task for row in rows), None)
    if row is None:
        return np.empty(0)
    stored = row.get("log_snrs")
    return np.asarray(schedules.levels(task.schedule, row["levels"], task.spacing) if stored is None else stored, np.float64)


def network_calls(comparison, calls, variant=None):
    """The numbers of network calls truly made within a budget of `calls`, ascending: by all, or by one (method, spacing)."""
    return sorted(
        {
            row["network_calls"]
            for (_, task), rows in comparison.cells.items()
            for row in rows
            if task.calls == calls and variant in (None, (task.method, task.spacing))
        }
    )


def handled(rows, how):
    """How many of some rows had levels outside the network's table that were "clamped" or "refused"."""
    return sum(bool(row["refused"]) if how == "refused" else row["outside"].get("handled") == how for row in rows)


# -- statistics, float64


class Summary(NamedTuple):
    mean: float
    std: float | None  # over training seeds, n - 1 in the denominator; None for one seed
    n: int


class Difference(NamedTuple):
    """The mean over training seeds of paired differences, with its standard error and t interval (None for one seed)."""

    mean: float
    std_error: float | None
    low: float | None
    high: float | None
    n: int


def by_training_seed(values):
    """{(training seed, sampling seed): value} -> {training seed: mean over its sampling seeds}."""
    seeds = sorted({seed for seed, _ in values})
    return {seed: float(np.mean([value for (other, _), value in values.items() if other == seed])) for seed in seeds}


def summarise(values):
    values = np.asarray(list(values), np.float64)
    return Summary(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, len(values))


def difference(values):
    """The Difference of paired differences, one for each training seed; an interval of `CONFIDENCE` by Student's t."""
    from scipy import stats

    mean, std, n = summarise(values)
    if std is None:
        return Difference(mean, None, None, None, n)
    std_error = std / math.sqrt(n)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std_error
    return Difference(mean, std_error, mean - reach, mean + reach, n)


def verdict(found, metric):
    """ "better" | "worse" | "no difference seen" | "one seed": the first two only if the interval leaves out 0."""
    if found.std_error is None:
        return "one seed"
    if found.low <= 0 <= found.high:
        return "no difference seen"
    return "better" if (found.mean < 0) == (better(metric) == "lower") else "worse"


def differences(comparison, first, second, task, metric):
    """{training seed: first - second}, from what both have of the same training seed and sampling seed."""
    a, b = (comparison.values(condition, task, metric) for condition in (first, second))
    return by_training_seed({key: a[key] - b[key] for key in a if key in b})


def average(comparison, cells, metric):
    """(Difference averaged over cells [(first, second, task), ..], how many count), or (None, 0).

    A cell counts if it has every seed that any of them has, so that all seeds are averages over the same cells.
    """
    found = [values for cell in cells if (values := differences(comparison, *cell, metric))]
    seeds = sorted({seed for values in found for seed in values})
    full = [values for values in found if len(values) == len(seeds)]
    if not full:
        return None, 0
    return difference([np.mean([values[seed] for values in full]) for seed in seeds]), len(full)
