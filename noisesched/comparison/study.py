"""A study: what a comparison is asked for, as typed, checked settings; the networks it names, and its rows.

Nothing here trains, samples or writes.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

from noisesched import guidance, samplers, schedules, spec, tables
from noisesched.evaluation import metrics, sample
from noisesched.runs import config as configuration
from noisesched.runs.config import ConfigError
from noisesched.runs.workdir import Workdir, differences

TRAINED = "trained"  # among schedules: the one that each network was trained with


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked: the page `configs/compare.py` says what each field means."""

    workdirs: tuple[str, ...]
    runs: dict
    train_seeds: tuple[int, ...]
    parameters: str
    schedules: tuple[str, ...]
    methods: tuple[str, ...]
    guidances: tuple[str, ...]
    calls: tuple[int, ...]
    spacings: tuple[str, ...]
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
    trainable: bool  # described by the study, which trains it


@dataclasses.dataclass(frozen=True)
class Row:
    """One combination; `asked` is all that its numbers depend on but the checkpoint, in JSON's kinds."""

    run: Run
    schedule: str
    method: str
    guidance: str
    spacing: str
    calls: int
    seed: int
    translation: str | None
    asked: dict[str, Any]

    @property
    def key(self):
        return hashlib.sha256(json.dumps(self.asked, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def levels(self):
        return samplers.make(self.method).num_levels(self.calls)

    @property
    def network_calls(self):
        return samplers.make(self.method).network_calls(self.levels)


# -- what is asked


def load(path, overrides=()):
    """The checked Study of a config file. Raises ConfigError, in one line, if the file or a setting is invalid."""
    study = configuration.typed(Study, configuration.read(path, Study, overrides))
    check(study)
    return study


def check(study):
    """Raises ConfigError for what is wrong whatever the runs are."""
    given = dataclasses.asdict(study)
    for name in ("schedules", "methods", "guidances", "spacings", "calls", "seeds", "translations", "metrics", "train_seeds"):
        _require(given[name], f"{name} is empty: nothing is asked")
        _require(len(set(given[name])) == len(given[name]), f"{name}: an entry is there twice")
    nothing = "runs and workdirs are both empty: there is nothing to compare; give --config.workdirs=\"('DIR', 'DIR')\""
    _require(study.runs or study.workdirs, nothing)
    for name, known in {"parameters": ("ema", "params"), "outside": ("refuse", "clamp")}.items():
        _require(given[name] in known, f"{name}={given[name]!r}: choose one of {', '.join(known)}")
    for name, known in {"translations": sample.TRANSLATIONS, "spacings": tables.SPACINGS}.items():
        for text in given[name]:
            _require(text in known, f"{name}: {text!r} is none of {', '.join(known)}")
    for calls in study.calls:
        _require(1 <= calls <= 10**5, f"calls: {calls} is not a whole number from 1 to 100000")
    for seed in (*study.seeds, *study.train_seeds):
        _require(0 <= seed < 2**32, f"seed {seed} is not a whole number from 0 to 2**32 - 1")
    _require(study.likelihood_images >= 0, f"likelihood_images={study.likelihood_images} must be 0 (all) or more")
    _require(study.num_images >= 1, f"num_images={study.num_images} must be at least 1")
    parsers = {"schedules": schedules.make, "methods": samplers.make, "guidances": guidance.parse, "metrics": metrics.parse}
    for name, parse in parsers.items():
        spelled = {}
        for text in given[name]:
            if (name, text) == ("schedules", TRAINED):
                continue
            try:
                parsed = parse(text)
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from None
            same = spelled.setdefault(str(parsed) if name == "guidances" else canonical(text), text)  # cfg(3), cfg(3.0)
            _require(same == text, f"{name}: {same!r} and {text!r} are the same")
    check_levels(study, [text for text in study.schedules if text != TRAINED])


def check_levels(study, texts):
    """Raises ConfigError for a schedule that does not have the levels asked for: more than its table has steps."""
    for schedule, method, spacing, calls in itertools.product(texts, study.methods, study.spacings, study.calls):
        try:
            schedules.levels(schedule, samplers.make(method).num_levels(calls), spacing)
        except ValueError as error:
            raise ConfigError(f"{schedule}, {calls} calls of {method}: {error}") from None


def canonical(text):
    """One text for all ways to write a schedule, sampler or metric; a schedule's from a file has the file's levels in it."""
    call = spec.parse(text)
    return str(schedules.make(text)) if call.name in schedules.DEFINITIONS else str(call)


def find_runs(study, out):
    """The networks asked for, [Run]: existing ones read, described ones checked. Nothing is trained yet."""
    found = []
    for label, values in study.runs.items():
        named = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.=-]*", label)
        _require(named, f"runs: {label!r} cannot be the name of a folder: use letters, digits and _.=-")
        for seed in study.train_seeds:
            try:
                config = configuration.from_dict(values | {"seed": seed})
            except ValueError as error:
                raise ConfigError(f"runs.{label}: {error}") from None
            found.append(Run(label, seed, Workdir(Path(out) / "runs" / label / f"seed{seed}"), config, True))
    for directory in study.workdirs:
        workdir = Workdir(directory)
        config = configuration.from_dict(workdir.read_config())
        numbered = re.fullmatch(r"seed_?\d+", workdir.path.name)
        found.append(Run(workdir.path.parent.name if numbered else workdir.path.name, config.seed, workdir, config, False))
    firsts, images = {}, images_of(found[0].config)
    for run in found:
        path, first = run.workdir.path, firsts.setdefault(run.label, run)
        number = run.label in ("nan", "inf", "-inf")
        _require(not number, f"{path}: the name {run.label!r} stands for a number in our files; take another")
        changed = differences(*(configuration.to_dict(each.config) | {"seed": 0} for each in (first, run)))
        named = f"{first.workdir.path} and {path} have one name, {run.label!r}, but differ in more than the seed"
        _require(not changed, f"{named}: {'; '.join(changed)}")
        twice = run is not firsts.setdefault((run.label, run.seed), run)
        _require(not twice, f"{first.workdir.path} and {path} are both seed {run.seed} of one run, {run.label!r}")
        _require(
            images_of(run.config) == images,
            f"{path} was trained on other images than {found[0].workdir.path}: {images_of(run.config)} against {images}; "
            "no distance compares them",
        )
    return found


def images_of(config):
    """What must agree for two networks to be measured against the same real images."""
    given = config.data
    return {"name": given.name, "path": given.path, "image_size": given.image_size, "channels": given.channels}


def shared(study, run, given):
    """What all rows of a run ask for, in JSON's kinds. `given`: what the names of the real images stand for, `features.check`."""
    timesteps = run.config.conditioning.kind == "timestep"
    asked = {
        "run": configuration.to_dict(run.config),
        "parameters": study.parameters,
        "metrics": study.metrics,
        "num_images": study.num_images,
        "reference": given,
        "outside": study.outside if timesteps else None,
        "workdir": None if run.trainable else str(run.workdir.path),
    } | ({"labels": "of the real images"} if run.config.model.num_classes else {})
    return json.loads(json.dumps(asked))


def rows_of(study, runs, given):
    """All combinations, [Row], those of one run together and the fewest calls first."""
    rows, spelled = [], {canonical(text): text for text in study.schedules if text != TRAINED}
    if TRAINED in study.schedules:
        check_levels(study, {str(run.config.schedule) for run in runs})
    for run in runs:
        common = shared(study, run, given)
        translations = study.translations if run.config.conditioning.kind == "timestep" else (None,)
        trained = str(run.config.schedule)
        texts = dict.fromkeys(spelled.get(trained, trained) if text == TRAINED else text for text in study.schedules)
        for method, guide, translation, spacing, calls, schedule, seed in itertools.product(
            study.methods, study.guidances, translations, study.spacings, sorted(study.calls), texts, study.seeds
        ):
            own = {"schedule": canonical(schedule), "method": canonical(method), "spacing": spacing, "calls": calls, "seed": seed}
            own |= {"translation": translation} | ({} if guide == "none" else {"guidance": canonical(guide)})
            rows.append(Row(run, schedule, method, guide, spacing, calls, seed, translation, common | own))
    return rows


def _require(good, message):
    if not good:
        raise ConfigError(message)
