"""Comparison: runs x inference schedules x samplers x network calls x seeds, each a row of numbers.

Everything is in one directory: config.json (what was asked), runs.json (the networks), reference.json (the real images, and the
distance between two halves of them), previews/, and compare.jsonl, a line for each row, with all that made it. A row is
never computed twice: its key is a checksum of what it depends on. So a killed comparison goes on where it was, and asking
for more adds to what is there.
"""

import dataclasses
import functools
import json
import os
import re
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from tqdm import tqdm

from noisesched import conditioning, denoiser, evaluate, features, metrics, samplers, schedules, tables, train
from noisesched import config as configuration
from noisesched.checkpoints import Checkpoints
from noisesched.config import ConfigError
from noisesched.pictures import grid, write_png
from noisesched.sample import TRANSLATIONS, cycled_labels, generate, make_sampler, told_raw
from noisesched.workdir import Workdir, differences, json_line, read_lines, read_metrics, write_atomically, write_json

PREVIEW = 8  # images of a row that are kept


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is asked: the page `configs/compare.py` says what each field means."""

    workdirs: tuple[str, ...]
    runs: dict
    train_seeds: tuple[int, ...]
    parameters: str
    schedules: tuple[str, ...]
    methods: tuple[str, ...]
    calls: tuple[int, ...]
    spacing: str
    seeds: tuple[int, ...]
    translations: tuple[str, ...]
    outside: str
    metrics: tuple[str, ...]
    num_images: int
    reference: str
    inception_weights: str
    likelihood: str
    likelihood_images: int


@dataclasses.dataclass(frozen=True)
class Run:
    """One network: `label` names what is compared, whose `seed`s differ in nothing else."""

    label: str
    seed: int
    workdir: Workdir
    config: configuration.Config
    trainable: bool  # described by the comparison, which trains it


@dataclasses.dataclass(frozen=True)
class Row:
    """One combination; `asked` is all that its numbers depend on, as JSON."""

    run: Run
    schedule: str
    method: str
    calls: int
    seed: int
    translation: str | None
    asked: dict[str, Any]

    @property
    def key(self):
        return f"{zlib.crc32(json.dumps(self.asked, sort_keys=True).encode()):08x}"

    @property
    def levels(self):
        per_interval = samplers.METHODS[samplers.parse(self.method)[0]].calls
        return (self.calls - 1) // per_interval + 1


# -- what is asked

def load(path, overrides=()):
    """The checked Comparison of a config file. Raises ConfigError, in one line, for anything that cannot be had."""
    comparison = configuration.typed(Comparison, configuration.read(path, Comparison, overrides))
    check(comparison)
    return comparison


def check(comparison):
    """Raises ConfigError for what can be seen to be wrong without looking at any run."""
    given = dataclasses.asdict(comparison)
    require = lambda good, message: None if good else _fail(message)
    for name in ("schedules", "methods", "calls", "seeds", "translations", "metrics", "train_seeds"):
        require(given[name], f"{name} is empty: nothing is asked")
        require(len(set(given[name])) == len(given[name]), f"{name}: an entry is there twice")
    require(comparison.runs or comparison.workdirs, "runs and workdirs are both empty: there is nothing to compare; give "
            "--config.workdirs=\"('DIR', 'DIR')\"")  # fmt: skip
    choices = {"parameters": ("ema", "params"), "spacing": tables.SPACINGS, "outside": ("refuse", "clamp")}
    for name, known in choices.items():
        require(given[name] in known, f"{name}={given[name]!r}: choose one of {', '.join(known)}")
    for translation in comparison.translations:
        require(translation in TRANSLATIONS, f"translations: {translation!r} is none of {', '.join(TRANSLATIONS)}")
    for calls in comparison.calls:
        require(1 <= calls <= 10**5, f"calls: {calls} is not a whole number from 1 to 100000")
    for seed in (*comparison.seeds, *comparison.train_seeds):
        require(0 <= seed < 2**32, f"seed {seed} is not a whole number from 0 to 2**32 - 1")
    require(comparison.likelihood_images >= 0, f"likelihood_images={comparison.likelihood_images} must be 0 (all) or more")
    require(comparison.num_images >= 1, f"num_images={comparison.num_images} must be at least 1")
    for name, parse in (("schedules", schedules.make), ("methods", samplers.parse), ("metrics", metrics.parse)):
        for text in given[name]:
            try:
                parse(text)
            except ValueError as error:
                _fail(f"{name}: {error}")


def find_runs(comparison, out):
    """The networks asked for, [Run]: existing ones read, described ones checked. Nothing is trained yet."""
    found = []
    for label, values in comparison.runs.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.=-]*", label):
            _fail(f"runs: {label!r} cannot be the name of a folder: use letters, digits and _.=-")
        for seed in comparison.train_seeds:
            try:
                config = configuration.from_dict(values | {"seed": seed})
            except ValueError as error:
                _fail(f"runs.{label}: {error}")
            found.append(Run(label, seed, Workdir(Path(out) / "runs" / label / f"seed{seed}"), config, True))
    for directory in comparison.workdirs:
        workdir = Workdir(directory)
        config = configuration.from_dict(workdir.read_config())
        numbered = re.fullmatch(r"seed_?\d+", workdir.path.name)
        found.append(Run(workdir.path.parent.name if numbered else workdir.path.name, config.seed, workdir, config, False))
    for run in found:
        first = next(other for other in found if other.label == run.label)
        settings = [configuration.to_dict(each.config) | {"seed": 0} for each in (first, run)]
        if changed := differences(*settings):
            _fail(f"{first.workdir.path} and {run.workdir.path} have one name, {run.label!r}, but differ in more than the seed: "
                  f"{'; '.join(changed)}")  # fmt: skip
        if run is not first and sum((other.label, other.seed) == (run.label, run.seed) for other in found) > 1:
            _fail(f"{first.workdir.path} and {run.workdir.path} are both seed {run.seed} of one run, {run.label!r}")
        if images_of(run.config) != images_of(found[0].config):
            _fail(f"{run.workdir.path} was trained on other images than {found[0].workdir.path}: "
                  f"{images_of(run.config)} against {images_of(found[0].config)}; no distance compares them")  # fmt: skip
    return found


def images_of(config):
    """What must agree for two networks to be measured against the same real images."""
    given = config.data
    return {"name": given.name, "path": given.path, "image_size": given.image_size, "channels": given.channels}


def rows_of(comparison, runs):
    """All combinations, [Row], those of one run together and the fewest calls first."""
    rows = []
    for run in runs:
        timesteps = run.config.conditioning.kind == "timestep"
        shared = {
            "run": configuration.to_dict(run.config), "parameters": comparison.parameters, "spacing": comparison.spacing,
            "metrics": comparison.metrics, "num_images": comparison.num_images, "reference": comparison.reference,
            "inception_weights": comparison.inception_weights, "outside": comparison.outside if timesteps else None,
            "workdir": None if run.trainable else str(run.workdir.path),
        }  # fmt: skip
        for method in comparison.methods:
            for translation in comparison.translations if timesteps else (None,):
                for calls in sorted(comparison.calls):
                    for schedule in comparison.schedules:
                        for seed in comparison.seeds:
                            own = {"schedule": schedule, "method": method, "calls": calls, "seed": seed,
                                   "translation": translation}  # fmt: skip
                            rows.append(Row(run, schedule, method, calls, seed, translation, shared | own))
    return rows


# -- the program

def run(comparison, out, command="", say=tqdm.write):
    """Carries out what is asked in the directory `out`; returns the finished rows, [dict], in the order they were asked.

    Raises ValueError, OSError or TrainingStopped, each with one line; what is finished by then stays.
    """
    out = Workdir(out)
    runs = find_runs(comparison, out.path)
    rows = rows_of(comparison, runs)
    with out.held():
        # ---- The networks: trained to their end if need be.
        for number, each in enumerate(runs, 1):
            if each.trainable and not complete(each):
                say(f"training run {number} of {len(runs)}: {each.label}, seed {each.seed}")
                train.train(each.config, each.workdir.path, say)
        steps = {each: latest(each) for each in runs}
        write_json(out.path / "runs.json", {label: describe([each for each in runs if each.label == label])
                                            for label in dict.fromkeys(each.label for each in runs)})  # fmt: skip
        if comparison.likelihood:
            request = evaluate.Request(split=comparison.likelihood, num_images=comparison.likelihood_images,
                                       parameters=comparison.parameters)  # fmt: skip
            for each in runs:
                evaluate.run(each.workdir.path, request, say)

        # ---- The rows that are not there yet.
        path = out.path / "compare.jsonl"
        known = {row["key"]: row for row in read_rows(path)}
        keys = [row.key for row in rows] + [key for key, row in known.items() if stands_beside(row, runs, comparison)]
        write_json(out.path / "config.json", {"command": command, "comparison": dataclasses.asdict(comparison),
                                              "keys": list(dict.fromkeys(keys))})  # fmt: skip
        current = lambda row: row.key in known and known[row.key]["checkpoint"] == steps[row.run]
        missing = [row for row in rows if not current(row)]
        if missing:
            reference = features.reference(
                runs[0].config.data, comparison.num_images, comparison.metrics, split=comparison.reference,
                inception_weights=comparison.inception_weights, say=say)  # fmt: skip
            write_json(out.path / "reference.json", {"floor": reference.floor, "about": reference.about})
            say(f"{len(missing)} of {len(rows)} rows to make, {comparison.num_images} images each")
            calls = sum(samplers.network_calls(samplers.parse(row.method)[0], row.levels) for row in missing)
            bar = tqdm(total=calls * comparison.num_images, unit="call", unit_scale=True, disable=None)
            with open(path, "a", encoding="utf-8") as file:
                for row, made in measure(missing, steps, comparison, reference, out.path, bar):
                    known[row.key] = made
                    try:
                        file.write(json_line(made))
                        file.flush()
                        os.fsync(file.fileno())
                    except OSError as error:  # a full disk, say: what is complete stays, and the next start goes on from it
                        raise OSError(error.errno, error.strerror, str(path)) from None
                    if made["refused"]:
                        say(f"no row for {row.run.label}, {row.schedule}, {row.calls} calls: {made['refused']}")
            bar.close()
        say(f"{path}: all {len(rows)} rows are there, {len(missing)} of them new; "
            f"see them by: noisesched report --compare={out.path}")  # fmt: skip
    return [known[row.key] for row in rows]


def measure(rows, steps, comparison, reference, out, bar):
    """Yields (row, its line) for every row. One compiled program for every network, method and number of levels."""
    programs, current, params = {}, None, None
    previews = out / "previews"
    previews.mkdir(exist_ok=True)
    for row in rows:
        begin, config = time.perf_counter(), row.run.config
        raw = row.translation == "raw"
        definition, template = _network(config, None if raw else row.translation)
        if row.run is not current:  # the rows of a run are together
            with Checkpoints(row.run.workdir, max_to_keep=None) as checkpoints:
                _, items = checkpoints.restore({comparison.parameters: template}, steps[row.run])
            current, params = row.run, items[comparison.parameters]
        name, _ = samplers.parse(row.method)
        log_snrs = np.asarray(schedules.levels(row.schedule, row.levels, comparison.spacing), np.float32)
        line = {
            "key": row.key, "run": row.run.label, "train_seed": row.run.seed, "workdir": str(row.run.workdir.path),
            "checkpoint": steps[row.run], "drawn": config.schedule, "told": config.conditioning.kind, "schedule": row.schedule,
            "method": row.method, "spacing": comparison.spacing, "levels": row.levels, "calls": row.calls,
            "network_calls": samplers.network_calls(name, row.levels), "seed": row.seed, "translation": row.translation,
            "outside": outside(config, log_snrs, row.translation, comparison.outside), "num_images": comparison.num_images,
            "metrics": {}, "refused": None, "preview": None,
        }  # fmt: skip
        if (definition, row.method) not in programs:
            programs[definition, row.method] = make_sampler(config, definition, row.method)
        try:
            configuration.check_levels(config, row.schedule, log_snrs)
            if line["outside"]["handled"] == "refused":
                count, by = line["outside"]["levels"], line["outside"]["by"]
                _fail(f"{count} of {row.levels} levels lie outside the table of timesteps that the network knows, by up to {by} "
                      "in log-SNR (outside='clamp' tells it the nearest end's)")  # fmt: skip
            images = generate(programs[definition, row.method], params, log_snrs, comparison.num_images, seed=row.seed,
                              told=told_raw(config, row.levels, comparison.spacing) if raw else None,
                              labels=cycled_labels(config, comparison.num_images),
                              progress=lambda count, nfe=line["network_calls"]: bar.update(count * nfe))  # fmt: skip
            line["metrics"] = {name: float(value) for name, value in reference.measure(images).items()}
            line["preview"] = f"previews/{row.key}.png"
            write_png(out / line["preview"], grid(images[:PREVIEW], columns=PREVIEW))
        except ValueError as error:  # of this row alone: the others are still wanted
            line["refused"] = str(error)
            bar.total -= line["network_calls"] * comparison.num_images
        yield row, line | {"seconds": round(time.perf_counter() - begin, 3)}


def outside(config, log_snrs, translation, handling):
    """How many levels a network that knows timesteps cannot be told, by how much, and what is done about it."""
    table = configuration.make_conditioning(config).table
    if not table or translation == "raw":  # raw tells the steps that there are
        return {"levels": 0, "by": 0.0, "handled": None}
    beyond = conditioning.outside(log_snrs, table)
    count, by = int((np.abs(beyond) > 1e-3).sum()), float(np.abs(beyond).max())  # not what rounding puts outside
    handled = {"refuse": "refused", "clamp": "clamped"}[handling] if count else None
    return {"levels": count, "by": round(by, 3), "handled": handled}


# -- the runs

def complete(each):
    """Whether a described run has been trained to its end. ConfigError if its workdir holds another one."""
    if not each.workdir.config.exists():
        return False
    written = configuration.to_dict(configuration.from_dict(each.workdir.read_config()))
    if changed := differences(written, configuration.to_dict(each.config)):
        _fail(f"{each.workdir.path} holds a run of another configuration ({'; '.join(changed)}): take another --out, or "
              "move it away")  # fmt: skip
    return steps_on_disk(each.workdir) == each.config.training.num_steps


def latest(each):
    """The step of a run's last checkpoint. ValueError if it has none."""
    step = steps_on_disk(each.workdir)
    if step is None:
        _fail(f"{each.workdir.path} holds no checkpoint yet: train it first")
    return step


def steps_on_disk(workdir):
    """The last complete checkpoint, or None, seen from the names of folders alone: in a moment."""
    folders = workdir.checkpoints.iterdir() if workdir.checkpoints.exists() else ()
    return max((int(path.name) for path in folders if path.name.isdigit()), default=None)


def describe(runs):
    """What the report says of the seeds of one run."""
    config = runs[0].config
    _, params = _network(config, None)
    return {
        "drawn": config.schedule, "told": config.conditioning.kind, "table": config.conditioning.table,
        "workdirs": [str(each.workdir.path) for each in runs], "num_parameters": denoiser.num_parameters(params),
        "train_steps": config.training.num_steps, "batch_size": config.training.batch_size,
        "seconds": [round(seconds_spent(each), 1) for each in runs],
    }  # fmt: skip


def seconds_spent(each):
    """How long the steps of a run took, from its metrics; 0 if it has none."""
    seconds, before = 0.0, 0
    for line in read_metrics(each.workdir.metrics) if each.workdir.metrics.exists() else ():
        seconds += (line["step"] - before) * each.config.training.batch_size / line["images_per_second"]
        before = line["step"]
    return seconds


def stands_beside(row, runs, comparison):
    """Whether a row that was asked for earlier belongs in one report with those asked for now."""
    seeds = {(each.label, each.seed) for each in runs}
    return (row["run"], row["train_seed"]) in seeds and row["num_images"] == comparison.num_images


def read_rows(path):
    """The finished rows; what a kill left half written at the end is removed from the file. ValueError names a bad line."""
    if not path.exists():
        return []
    rows = read_lines(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("key"), str) or "checkpoint" not in row:
            raise ValueError(f"{path}, line {number}: no row of a comparison")
    if not path.read_bytes().endswith(b"\n"):
        write_atomically(path, "".join(map(json_line, rows)))
    return rows


@functools.cache
def _network(config, translation):
    """(definition, shapes of the parameters) of a run's network; equal for runs that differ in the schedule alone."""
    definition, template = denoiser.split(nnx.eval_shape(lambda: configuration.make_denoiser(config, translation)))
    return definition, template


def _fail(message):
    raise ConfigError(message)
