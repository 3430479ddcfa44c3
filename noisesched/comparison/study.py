"""A study: the settings of a comparison, typed and checked; the networks it names, and its rows.

Nothing here trains, samples or writes.
"""

import dataclasses
import hashlib
import inspect
import itertools
import json
import re
from pathlib import Path
from typing import Any

from noisesched import guidance, samplers, schedules, spec
from noisesched.evaluation import metrics
from noisesched.runs import config as configuration
from noisesched.runs import requests
from noisesched.runs import subject as subjects
from noisesched.runs.settings import named, require, setting, typed
from noisesched.runs.subject import Subject
from noisesched.runs.workdir import Workdir, differences

TRAINED = "trained"  # among schedules: the one that each network was trained with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """The settings of a comparison: the page `configs/compare.py` explains each field."""

    workdirs: tuple[str, ...]
    runs: dict
    denoisers: tuple[str, ...] = setting(absent=())
    data: str = setting(absent="")
    train_seeds: tuple[int, ...] = setting(at_least=0, below=2**32)
    parameters: str = setting(choices=requests.PARAMETERS)
    schedules: tuple[str, ...]
    methods: tuple[str, ...]
    guidances: tuple[str, ...]
    calls: tuple[int, ...] = setting(at_least=1, below=10**5 + 1)
    spacings: tuple[str, ...] = setting(choices=requests.SPACINGS)
    seeds: tuple[int, ...] = setting(at_least=0, below=2**32)
    translations: tuple[str, ...] = setting(choices=(*requests.TRANSLATIONS, "raw"))
    outside: str = setting(choices=("refuse", "clamp"))
    metrics: tuple[str, ...]
    num_images: int = setting(at_least=1)
    reference: str
    inception_weights: str
    likelihood: str
    likelihood_images: int = setting(at_least=0)


@dataclasses.dataclass(frozen=True)
class Run:
    """One network: Runs of one `label` differ in nothing but their `seed`."""

    label: str
    seed: int
    workdir: Workdir | None  # None for an own network
    subject: Subject
    trainable: bool  # whether the study describes it, and so trains it

    @property
    def config(self):
        return self.subject.config

    @property
    def place(self):
        """Its workdir, or FILE.py:NAME, as text."""
        return str(self.workdir.path) if self.workdir else self.subject.name


@dataclasses.dataclass(frozen=True)
class Row:
    """One combination; `asked`: everything its numbers depend on, except the checkpoint, in JSON's types."""

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
    def num_levels(self):
        return samplers.make(self.method).num_levels(self.calls)

    @property
    def network_calls(self):
        return samplers.make(self.method).network_calls(self.num_levels)


# -- what is asked


def load(path, overrides=()):
    """The checked Study of a config file. Raises ConfigError, in one line, if the file or a setting is invalid."""
    return from_dict(configuration.read(path, Study, overrides))


def from_dict(values):
    """The checked Study of nested dictionaries. Raises ConfigError, in one line, for faults of its own."""
    study = typed(Study, values)
    for name in ("schedules", "methods", "guidances", "spacings", "calls", "seeds", "translations", "metrics", "train_seeds"):
        given = getattr(study, name)
        require(given, f"{name} is empty: nothing is asked")
        for value in given:
            require(given.count(value) == 1, f"{name}: {value!r} is given twice")
    nothing = "runs, workdirs and denoisers are empty: there is nothing to compare; give --config.workdirs=\"('DIR', 'DIR')\""
    require(study.runs or study.workdirs or study.denoisers, nothing)
    parsers = {
        "schedules": lambda text: text if text == TRAINED else schedules.make(text),
        "methods": _with_all_options,
        "guidances": guidance.parse,
        "metrics": metrics.parse,
    }
    for name, parse in parsers.items():
        spelled = {}
        for text in getattr(study, name):
            same = spelled.setdefault(str(named(name, parse, text)), text)  # cfg(3), cfg(3.0)
            require(same == text, f"{name}: {same!r} and {text!r} are the same")
    check_levels(study, [text for text in study.schedules if text != TRAINED])
    return study


def _with_all_options(text):
    """The name of a sampler and all its options, as floats: alike for "euler", "ddim" and "ddim(eta=0)"."""
    sampler = samplers.make(text)
    parameters = inspect.signature(samplers.METHODS[sampler.name].move).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
    return sampler.name, {name: float(sampler.options.get(name, default)) for name, default in defaults.items()}


def check_levels(study, texts):
    """Raises ConfigError if more levels are asked of a schedule than its table has steps."""
    for schedule, method, spacing, calls in itertools.product(texts, study.methods, study.spacings, study.calls):
        num_levels = samplers.make(method).num_levels(calls)
        named(f"{schedule}, {calls} calls of {method}", schedules.levels, schedule, num_levels, spacing)


def canonical(text):
    """The same text for all spellings of a schedule, sampler or metric; of a schedule in a file, with its levels."""
    call = spec.parse(text)
    return str(schedules.make(text)) if call.name in schedules.DEFINITIONS else str(call)


def find_runs(study, out):
    """The networks asked for, [Run]: existing ones are read, described ones checked. Nothing is trained yet."""
    found = []
    for label, values in study.runs.items():
        fits = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.=-]*", label)
        require(fits, f"runs: {label!r} cannot be the name of a folder: use letters, digits and _.=-")
        for seed in study.train_seeds:
            config = named(f"runs.{label}", configuration.from_dict, values | {"seed": seed})
            workdir = Workdir(Path(out) / "runs" / label / f"seed{seed}")
            found.append(Run(label, seed, workdir, subjects.of_config(config, str(workdir.path)), True))
    for directory in study.workdirs:
        workdir = Workdir(directory)
        subject = subjects.of_workdir(directory)
        label = workdir.path.parent.name if re.fullmatch(r"seed_?\d+", workdir.path.name) else workdir.path.name
        found.append(Run(label, subject.config.seed, workdir, subject, False))
    for text in study.denoisers:
        path, _, name = text.rpartition(":")
        found.append(Run(f"{Path(path).stem}.{name}", 0, None, subjects.of_file(text, study.data), False))
    firsts, images = {}, images_of(found[0].subject.data)
    for run in found:
        path, first = run.place, firsts.setdefault(run.label, run)
        number = run.label in ("nan", "inf", "-inf")  # which our JSON files hold as texts
        require(not number, f"{path}: the name {run.label!r} stands for a number in our files; take another")
        changed = differences(*(settings(each) | {"seed": 0} for each in (first, run)))
        both = f"{first.place} and {path}"
        require(not changed, f"{both} have one name, {run.label!r}, but differ in more than the seed: {'; '.join(changed)}")
        same = firsts.setdefault((run.label, run.seed), run)
        require(run is same, f"{same.place} and {path} are both seed {run.seed} of one run, {run.label!r}")
        require(
            images_of(run.subject.data) == images,
            f"{path} was trained on other images than {found[0].place}: {images_of(run.subject.data)}, not {images}; "
            "samples of the two have no common distance",
        )
    return found


def settings(run, short=False):
    """What a run's network was made by, in JSON's types: see `config.to_dict`."""
    if run.config:
        return configuration.to_dict(run.config, short)
    return {"data": configuration.to_dict(run.subject.data, short), "denoiser": run.subject.stored}


def images_of(given):
    """Of the settings of data, those that must agree for two networks to be measured against the same real images."""
    agreed = ("name", "path", "image_size", "channels", "background")
    return {name: getattr(given, name) for name in agreed}


def shared(study, run, given):
    """What all rows of a run ask for, in JSON's types. `given`: the real images, as `features.check` names them."""
    asked = {
        "run": settings(run, short=True),
        "parameters": study.parameters,
        "metrics": study.metrics,
        "num_images": study.num_images,
        "reference": given,
        "outside": study.outside if run.config and run.subject.table else None,
        "workdir": None if run.trainable else run.place,
    } | ({"labels": "of the real images"} if run.subject.num_classes else {})
    return json.loads(json.dumps(asked))


def rows_of(study, runs, given):
    """All combinations, [Row]: run by run, the fewest calls first."""
    rows, spelled = [], {canonical(text): text for text in study.schedules if text != TRAINED}
    if TRAINED in study.schedules:
        check_levels(study, {str(run.subject.schedule) for run in runs})
    for run in runs:
        common = shared(study, run, given)
        translations = study.translations if run.config and run.subject.table else (None,)
        trained = str(run.subject.schedule)
        texts = dict.fromkeys(spelled.get(trained, trained) if text == TRAINED else text for text in study.schedules)
        for method, guide, translation, spacing, calls, schedule, seed in itertools.product(
            study.methods, study.guidances, translations, study.spacings, sorted(study.calls), texts, study.seeds
        ):
            own = {"schedule": canonical(schedule), "method": canonical(method), "spacing": spacing, "calls": calls, "seed": seed}
            own |= {"translation": translation} | ({} if guide == "none" else {"guidance": canonical(guide)})
            rows.append(Row(run, schedule, method, guide, spacing, calls, seed, translation, common | own))
    return rows
