"""Comparison: runs x inference schedules x samplers x network calls x seeds, each a row of numbers.

All of it is in one directory: config.json (what was asked), runs.json (the networks), reference.json (the real images, and the
distance between two disjoint sets of them), evaluations/ (bits per dimension), previews/, and compare.jsonl, a line for each row
with everything it depends on. No row is computed twice: its key is a checksum of what it depends on. So a killed comparison
continues where it stopped, and asking for more adds to what is there.
"""

import contextlib
import dataclasses
import os
import shlex
import time

import jax
import numpy as np
from tqdm import tqdm

from noisesched import guidance, schedules
from noisesched.comparison.results import PREVIEW
from noisesched.comparison.study import find_runs, load, rows_of, settings, shared
from noisesched.data import pipeline
from noisesched.evaluation import evaluate, features
from noisesched.models import conditioning
from noisesched.models.generate import generate, told_raw
from noisesched.runs import config as configuration
from noisesched.runs import requests
from noisesched.runs import subject as subjects
from noisesched.runs.checkpoints import CheckpointError
from noisesched.runs.metrics_log import read_metrics
from noisesched.runs.settings import ConfigError, require
from noisesched.runs.workdir import Workdir, differences
from noisesched.runtime import cluster
from noisesched.runtime.files import json_line, read_file, read_json, read_lines, write_atomically, write_json
from noisesched.runtime.pictures import beside_results, grid, visible, write_png
from noisesched.training import loop, monitor

SHARES = "shares"  # the folder of what several processes make


def main(request):
    """The command."""
    words = ["noisesched", "compare", f"--config={request.config}", f"--out={request.out}", *request.overrides]
    run(load(request.config, request.overrides), request.out, shlex.join(words), share=request.share)


def run(study, out, command="", say=tqdm.write, share=None):
    """Carries out a `Study` in the directory `out`; returns the finished rows, [dict], in the order they were asked for.

    `share`: (k, n) for the k-th of n shares of the runs (from 1); without it, gathers the shares and writes what a report needs.
    Raises ValueError, OSError or TrainingStopped, each with one line; what is finished by then stays.
    """
    # ---- Faults that can be found at once are.
    out = Workdir(out)
    runs = find_runs(study, out.path)
    given = cluster.in_turn(lambda: check_images(study, runs))
    of_run = out.config.exists() and "keys" not in out.read_config()
    require(not of_run, f"{out.path} is the workdir of a run: give a comparison a folder of its own, --out=DIR")
    all_runs, runs = runs, share_of(runs, share)
    rows = rows_of(study, runs, given)
    check_guidances(study, all_runs)
    cluster.by_first(lambda: check_shares(out, share))  # by one process: it locks each folder for a moment
    with contextlib.ExitStack() as stack:
        records = Workdir(stack.enter_context(cluster.own(out.path)))  # `out` in the process that writes
        folder = Workdir(records.path / SHARES / "{}of{}".format(*share)) if share else records
        stack.enter_context(folder.held())

        # ---- The networks: trained to their end, if they are not yet.
        for number, each in enumerate(runs, 1):
            if each.trainable and not cluster.by_first(lambda each=each: complete(each)):
                say(f"training run {number} of {len(runs)}: {each.label}, seed {each.seed}")
                loop.train(each.config, each.workdir.path, say)
        for each in runs:
            latest(each)  # refused before any long work if there is none
        evaluated = {each: evaluation(study, each, out.path, say) for each in runs}
        steps = {each: cluster.by_first(lambda each=each: latest(each)) for each in runs}

        # ---- The rows that are still missing.
        path = folder.path / "compare.jsonl"
        mend(path)
        known = {row["key"]: row for row in read_rows(path)}
        for line in read_rows(out.path / "compare.jsonl") if share else gathered(out):
            if line["checkpoint"] > known.get(line["key"], {"checkpoint": -1})["checkpoint"]:
                known[line["key"]] = line
                if not share:
                    append(path, line)
        new = [row.key for row in rows if row.key not in known or known[row.key]["checkpoint"] != steps[row.run]]
        new = set(cluster.by_first(lambda: new))
        missing = [row for row in rows if row.key in new]
        if not share:
            describe_all(study, runs, rows, known, steps, given, evaluated, records, command)

        # ---- Make them, each on disk before the next.
        asked = {"reference": given, "metrics": list(study.metrics)}
        if cluster.by_first(lambda: bool(missing or not share and asked != asked_of(out.path / "reference.json"))):
            reference = cluster.in_turn(
                lambda: features.reference(
                    all_runs[0].subject.data,
                    study.num_images,
                    study.metrics,
                    split=study.reference,
                    inception_weights=study.inception_weights,
                    say=say,
                )
            )
            if not share:
                write_json(
                    records.path / "reference.json",
                    {"floor": reference.floor, "appearance": reference.appearance, "about": reference.about, "asked": asked},
                )
        if missing:
            say(f"{len(missing)} of {len(rows)} rows to make, {study.num_images} images each")
            with Progress(missing, study.num_images, say) as progress:
                for row, line in measure(missing, steps, study, reference, records.path, progress):
                    known[row.key] = line
                    append(path, line)
                    if line["refused"]:
                        say(f"no numbers for {row.run.label}, {row.schedule}, {row.calls} calls: {line['refused']}")
        if not cluster.is_first():
            return []
        refused = sum(known[row.key]["refused"] is not None for row in rows)
        report = shlex.join(["noisesched", "report", f"--compare={out.path}"])
        then = "when all shares are, the same command without --share puts them together" if share else f"see them by: {report}"
        say(f"{path}: all {len(rows)} rows are there, {len(missing)} of them new{f', {refused} refused' * bool(refused)}; {then}")
        return [known[row.key] for row in rows]


def share_of(runs, share):
    """The k-th of n shares of the runs, none if there are fewer; all for None. Raises ConfigError unless 1 <= k <= n."""
    if share is None:
        return runs
    k, n = share
    require(1 <= k <= n, f"share {k}/{n}: give K/N with K from 1 to N")
    return runs[k - 1 :: n]


def check_shares(out, share):
    """Raises ConfigError while another process carries out a share whose work this one would repeat."""
    for folder in sorted((out.path / SHARES).glob("*of*")):
        if share and folder.name.endswith(f"of{share[1]}"):  # another of the same shares; or this one, which is locked later
            continue
        try:
            with Workdir(folder).held():
                pass
        except ValueError:
            raise ConfigError(f"{folder} is in use: wait until the shares that are being carried out have ended") from None


def check_guidances(study, runs):
    """Raises ConfigError for guidance that no network of the study accepts."""
    for text in study.guidances:
        reasons = []
        for each in runs:
            try:
                each.subject.check_guidance(text)
            except ConfigError as error:
                reasons.append(str(error))
        require(len(reasons) < len(runs), next(iter(reasons), ""))


def gathered(out):
    """The rows that shares of this comparison have made."""
    for folder in sorted((out.path / SHARES).glob("*of*")):
        yield from read_rows(folder / "compare.jsonl")


def describe_all(study, runs, rows, known, steps, given, evaluated, out, command):
    """Writes what a report reads besides the rows: config.json, with the keys of the rows it shows, and runs.json."""
    labels = dict.fromkeys(each.label for each in runs)
    write_json(
        out.path / "runs.json", {label: describe([each for each in runs if each.label == label], evaluated) for label in labels}
    )
    beside = {(each.label, each.seed): (shared(study, each, given), steps[each]) for each in runs}
    meant = {row.schedule: row.asked["schedule"] for row in rows}  # a text may name a file
    keys = [row.key for row in rows] + [key for key, row in known.items() if stands_beside(row, beside, meant)]
    write_json(
        out.path / "config.json", {"command": command, "comparison": dataclasses.asdict(study), "keys": list(dict.fromkeys(keys))}
    )


def measure(rows, steps, study, reference, out, progress):
    """Yields (row, its line) for every row. One program is compiled for each network, method and number of levels."""
    current, subject = None, None
    (out / "previews").mkdir(exist_ok=True)
    for row in rows:
        begin = time.perf_counter()
        if row.run is not current:  # the rows of a run are together
            current, subject = row.run, subjects.loaded(row.run.subject, study.parameters, say=progress.say)
            steps[row.run] = subject.step or 0  # an older one, if the newest is damaged
        log_snrs = np.asarray(schedules.levels(row.schedule, row.num_levels, row.spacing), np.float32)
        line = {
            "key": row.key,
            "run": row.run.label,
            "train_seed": row.run.seed,
            "workdir": row.run.place,
            "checkpoint": steps[row.run],
            "drawn": str(subject.schedule),
            "told": subject.told,
            **{name: getattr(row, name) for name in ("schedule", "method", "guidance", "spacing", "calls")},
            **{name: getattr(row, name) for name in ("network_calls", "seed", "translation")},
            "levels": row.num_levels,
            "outside": outside(subject, log_snrs, row.translation, study.outside),
            "num_images": study.num_images,
            "log_snrs": log_snrs.tolist(),
            "asked": row.asked,
            "metrics": {},
            **dict.fromkeys(("appearance", "preview", "refused")),
        }
        try:
            check_levels(subject, row, log_snrs, line["outside"])
            subject.check_guidance(row.guidance)
            told = told_raw(subject.config, row.num_levels, row.spacing) if row.translation == "raw" else None
            images = generate(
                subjects.translated(subject, row.translation).network,
                log_snrs,
                study.num_images,
                row.method,
                seed=row.seed,
                told=told,
                guide=guidance.parse(row.guidance),
                labels=reference.labels if subject.num_classes else None,
                progress=lambda count, row=row: progress.made(count * row.network_calls),
            )
            line["metrics"] = {name: float(value) for name, value in reference.measure(images).items()}
            line["appearance"] = features.looks(images)
        except ValueError as error:  # this row cannot be made; the others may be
            line["refused"] = str(error)
        else:
            with beside_results(progress.say):
                write_png(out / (preview := f"previews/{row.key}.png"), grid(visible(images[:PREVIEW]), columns=PREVIEW))
                line["preview"] = preview
        yield row, line | {"seconds": round(time.perf_counter() - begin, 3)}


def check_levels(subject, row, log_snrs, beyond):
    """Raises ConfigError for levels at which this network has no estimate, or that lie outside its table and are refused."""
    subject.check_levels(row.schedule, log_snrs)
    how = "-inf among them" if np.isinf(beyond["by"]) else f"by up to {beyond['by']} in log-SNR"
    require(
        beyond["handled"] != "refused",
        f"{beyond['levels']} of {row.num_levels} levels lie outside the table of timesteps that the network knows, {how} "
        "(outside='clamp' tells it the timestep at the nearest end)",
    )


def outside(subject, log_snrs, translation, handling):
    """How many levels lie outside the table of a network told timesteps, by how much at most, and how they are handled."""
    table, handling = subject.table, handling if subject.config else subject.network.outside
    if not table or translation == "raw":  # "raw" always tells it steps of the table
        return {"levels": 0, "by": 0.0, "handled": None}
    beyond = conditioning.outside(log_snrs, table)
    count, by = np.count_nonzero(beyond), float(np.abs(beyond).max())
    handled = {"refuse": "refused", "clamp": "clamped"}[handling] if count else None
    return {"levels": count, "by": round(by, 3), "handled": handled}


def append(path, line):
    """Puts a row on disk. Raises OSError with the file's name; complete rows stay, and a restart continues from them."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json_line(line))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


class Progress:
    """A bar over the network calls of all rows; without a terminal, a line a minute."""

    def __init__(self, rows, num_images, say):
        self.say, self.begun, self.done = say, time.perf_counter(), 0
        self.said, self.total = self.begun, sum(row.network_calls for row in rows) * num_images
        self.bar = tqdm(total=self.total, unit="call", unit_scale=True, disable=None)

    def made(self, calls):
        self.bar.update(calls)
        self.done, now = self.done + calls, time.perf_counter()
        if self.bar.disable and now > self.said + monitor.SILENCE:
            self.said, left = now, (now - self.begun) * (self.total / self.done - 1)
            self.say(f"{self.done / self.total:.0%} of {self.total:,} network calls, {left // 60:.0f}m{left % 60:02.0f}s left")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()


# -- the runs


def check_images(study, runs):
    """Which real images samples are compared with, as `features.check` says. Raises ConfigError if they cannot be."""
    data, num_classes = runs[0].subject.data, [each.subject.num_classes for each in runs if each.subject.num_classes]
    try:
        given = features.check(
            data,
            study.num_images,
            study.metrics,
            split=study.reference,
            inception_weights=study.inception_weights,
            num_classes=min(num_classes, default=0),
        )
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"reference={study.reference!r}, num_images={study.num_images}: {error}") from None
    if study.likelihood:
        try:
            number = len(pipeline.open_config(data, study.likelihood))
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(f"likelihood={study.likelihood!r}: {error}") from None
        enough = number >= max(study.likelihood_images, 2)
        require(enough, f"likelihood_images={study.likelihood_images}: {study.likelihood!r} has {number} images")
    return given


def evaluation(study, each, out, say):
    """Evaluates a run, in evaluations/<label>/seed<n> of the comparison; returns the reason why it cannot be, or None."""
    if not study.likelihood:
        return "not asked for"
    request = requests.Evaluate(
        workdir=each.place if each.config else "",
        denoiser="" if each.config else each.place,
        data="" if each.config else study.data,
        split=study.likelihood,
        num_images=study.likelihood_images,
        parameters=study.parameters,
        out=str(out / "evaluations" / each.label / f"seed{each.seed}"),
    )
    try:
        evaluate.run(request, say)
    except CheckpointError:
        raise
    except ValueError as error:  # this run cannot be evaluated; others may be
        if jax.process_count() > 1 and not isinstance(error, ConfigError):
            raise  # the other processes may not have failed
        say(f"no bits per dimension for {each.label}, seed {each.seed}: {error}")
        return str(error)
    return None


def complete(each):
    """Whether a described run has been trained to its end. ConfigError if its workdir holds a run of another configuration."""
    if not each.workdir.config.exists():
        return False
    written = configuration.to_dict(configuration.from_dict(each.workdir.read_config()))
    changed = differences(written, configuration.to_dict(each.config))
    require(
        not changed,
        f"{each.workdir.path} holds a run of another configuration ({'; '.join(changed)}): take another --out, or move it away",
    )
    return each.workdir.latest_step() == each.config.training.num_steps


def latest(each):
    """The step of a run's last checkpoint, 0 for an own network. ValueError if it has none."""
    step = each.workdir.latest_step() if each.workdir else 0
    require(step is not None, f"{each.place} holds no checkpoint yet: train it first")
    return step


def describe(runs, evaluated):
    """What the report says of the seeds of one run. `evaluated`: {run: the reason why it has no evaluation, or None}."""
    config, subject = runs[0].config, runs[0].subject
    return {
        "config": settings(runs[0]),
        "evaluations": {each.place: evaluated[each] for each in runs},
        "drawn": str(subject.schedule),
        "told": subject.told,
        "table": str(config.conditioning.table or "") if config else str(subject.schedule) if subject.table else "",
        "workdirs": [each.place for each in runs],
        "train_seeds": [each.seed for each in runs],
        "num_parameters": subject.num_parameters,
        "train_steps": latest(runs[0]),
        "batch_size": config.training.batch_size if config else 0,
        "seconds": [round(seconds_spent(each), 1) for each in runs],
    }


def seconds_spent(each):
    """How long the steps of a run took, from its metrics; 0 if it has none."""
    seconds, before = 0.0, 0
    for line in read_metrics(each.workdir.metrics) if each.workdir and each.workdir.metrics.exists() else ():
        seconds += (line["step"] - before) * each.config.training.batch_size / line["images_per_second"]
        before = line["step"]
    return seconds


def stands_beside(row, beside, meant):
    """Whether a row that was asked for earlier belongs in one report with those asked for now: of the same checkpoint, measured
    in the same way; schedule, sampler, number of calls, seed and translation may differ.

    `beside`: {(label, training seed): (what its rows share, its checkpoint)}; `meant`: {a schedule's text: the schedule in full}.
    """
    common, step = beside.get((row.get("run"), row.get("train_seed")), ({}, None))
    if row["checkpoint"] != step or {name: row.get("asked", {}).get(name) for name in common} != common:
        return False
    return meant.setdefault(row["schedule"], row["asked"]["schedule"]) == row["asked"]["schedule"]


def asked_of(path):
    """What a reference.json was asked for, or None."""
    try:
        return read_json(path).get("asked")
    except (FileNotFoundError, ValueError):
        return None


def read_rows(path):
    """The finished rows, without a last line that a kill left half written. ValueError names a bad line."""
    rows = read_lines(path) if path.exists() else []
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("key"), str) or "checkpoint" not in row or not isinstance(row.get("asked", {}), dict):
            raise ValueError(f"{path}, line {number}: no row of a comparison")
    return rows


def mend(path):
    """Removes a last line that a kill left half written."""
    if path.exists() and not read_file(path, 2**30).endswith(b"\n"):
        write_atomically(path, "".join(map(json_line, read_rows(path))))
