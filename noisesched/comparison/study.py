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
from noisesched.runs.settings import named, require, setting, typed
from noisesched.runs.workdir import Workdir, differences

TRAINED = "trained"  # among schedules: the one that each network was trained with


@dataclasses.dataclass(frozen=True)
class Study:
    """The settings of a comparison: the page `configs/compare.py` explains each field."""

    workdirs: tuple[str, ...]
    runs: dict
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
    workdir: Workdir
    config: configuration.Config
    trainable: bool  # whether the study describes it, and so trains it


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
    nothing = "runs and workdirs are both empty: there is nothing to compare; give --config.workdirs=\"('DIR', 'DIR')\""
    require(study.runs or study.workdirs, nothing)
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
            found.append(Run(label, seed, Workdir(Path(out) / "runs" / label / f"seed{seed}"), config, True))
    for directory in study.workdirs:
        workdir = Workdir(directory)
        config = configuration.from_dict(workdir.read_config())
        numbered = re.fullmatch(r"seed_?\d+", workdir.path.name)
        found.append(Run(workdir.path.parent.name if numbered else workdir.path.name, config.seed, workdir, config, False))
    firsts, images = {}, images_of(found[0].config)
    for run in found:
        path, first = run.workdir.path, firsts.setdefault(run.label, run)
        number = run.label in ("nan", "inf", "-inf")  # which our JSON files hold as texts
        require(not number, f"{path}: the name {run.label!r} stands for a number in our files; take another")
        changed = differences(*(configuration.to_dict(each.config) | {"seed": 0} for each in (first, run)))
        both = f"{first.workdir.path} and {path}"
        require(not changed, f"{both} have one name, {run.label!r}, but differ in more than the seed: {'; '.join(changed)}")
        same = firsts.setdefault((run.label, run.seed), run)
        require(run is same, f"{same.workdir.path} and {path} are both seed {run.seed} of one run, {run.label!r}")
        require(
            images_of(run.config) == images,
            f"{path} was trained on other images than {found[0].workdir.path}: {images_of(run.config)}, not {images}; "
            "samples of the two have no common distance",
        )
    return found


def images_of(config):
    """The settings that must agree for two networks to be measured against the same real images."""
    given = config.data
    agreed = ("name", "path", "image_size", "channels", "background")
    return {name: getattr(given, name) for name in agreed}


def shared(study, run, given):
    """What all rows of a run ask for, in JSON's types. `given`: the real images, as `features.check` names them."""
    timesteps = run.config.conditioning.kind == "timestep"
    asked = {
        "run": configuration.to_dict(run.config, short=True),
        "parameters": study.parameters,
        "metrics": study.metrics,
        "num_images": study.num_images,
        "reference": given,
        "outside": study.outside if timesteps else None,
        "workdir": None if run.trainable else str(run.workdir.path),
    } | ({"labels": "of the real images"} if run.config.model.num_classes else {})
    return json.loads(json.dumps(asked))


def rows_of(study, runs, given):
    """All combinations, [Row]: run by run, the fewest calls first."""
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
