"""An experiment's configuration: typed, complete, and checked before any long work starts.

A config file (`configs/*.py`, ml-collections) is where a person writes it; it becomes the frozen dataclasses below, which
have no defaults: every setting is stated on the page `configs/digits.py`. In a workdir it is JSON, read back through the same
checks, so nothing of a workdir is ever executed. What every field means, and its choices, is said on that page.
"""

import dataclasses
import difflib
import json
import math
import sys
import traceback
import types
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from noisesched import diffusion, guidance, loss, samplers, schedules
from noisesched.models import build, conditioning
from noisesched.runtime import sharding


class ConfigError(ValueError):
    """A fault in a configuration, in one line."""


@dataclasses.dataclass(frozen=True)
class Data:
    name: str
    path: str
    data_dir: str
    split: str
    image_size: int
    channels: int
    flip: bool
    num_workers: int


@dataclasses.dataclass(frozen=True)
class Conditioning:
    kind: str
    table: str
    translation: str


@dataclasses.dataclass(frozen=True)
class Model:
    prediction: str
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    heads: int
    dropout: float
    num_classes: int
    label_dropout: float
    dtype: str


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float
    warmup_steps: int
    decay: str
    b1: float
    b2: float
    weight_decay: float
    clip_norm: float


@dataclasses.dataclass(frozen=True)
class Training:
    num_steps: int
    batch_size: int
    accumulate: int
    steps_per_dispatch: int
    parallel: str
    ema_decay: float
    skip_nonfinite: int
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    keep_every: int
    keep_best: int
    best_split: str


@dataclasses.dataclass(frozen=True)
class Preview:
    every: int
    num_images: int
    schedule: str
    steps: int
    method: str


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int
    data: Data
    schedule: str
    weighting: str
    noise_offset: float
    conditioning: Conditioning
    model: Model
    optimizer: Optimizer
    training: Training
    preview: Preview


CHOICES = {
    "conditioning.translation": conditioning.TRANSLATIONS,
    "model.prediction": diffusion.PREDICTIONS,
    "model.dtype": ("float32", "bfloat16"),
    "optimizer.decay": ("constant", "linear", "cosine"),
    "training.parallel": sharding.KINDS,
}
AT_LEAST = {
    0: (
        "seed",
        "noise_offset",
        "data.num_workers",
        "model.dropout",
        "model.num_classes",
        "model.label_dropout",
        "optimizer.learning_rate",
        "optimizer.warmup_steps",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "optimizer.b1",
        "optimizer.b2",
        "training.ema_decay",
        "training.skip_nonfinite",
        "training.keep_every",
        "training.keep_best",
        "preview.every",
    ),
    1: (
        "data.image_size",
        "data.channels",
        "model.width",
        "model.blocks",
        "model.heads",
        "training.num_steps",
        "training.batch_size",
        "training.accumulate",
        "training.steps_per_dispatch",
        "training.log_every",
        "training.checkpoint_every",
        "training.keep_checkpoints",
        "preview.num_images",
        "preview.steps",
    ),
}
BELOW = {
    "model.dropout": 1,
    "model.label_dropout": 1,
    "optimizer.b1": 1,
    "optimizer.b2": 1,
    "training.ema_decay": 1,
    "model.width": 2**16,
    "model.blocks": 1000,
    "model.heads": 2**16,
    "model.num_classes": 2**24,
    "training.num_steps": 2**31,  # steps are counted in an int32
    # Far beyond what anybody means: a config may come from anybody.
    "data.image_size": 2**14,
    "data.num_workers": 2**10,
    "training.batch_size": 2**24,
    "training.steps_per_dispatch": 2**16,
    "preview.num_images": 2**16,
}


def load(path, overrides=()):
    """The checked Config of a config file and overrides such as "--config.optimizer.learning_rate=1e-3".

    Raises ConfigError for a missing or faulty file, an unknown or mistyped field, and everything `check` refuses.
    """
    return from_dict(read(path, Config, overrides))


def read(path, kind, overrides=()):
    """What a config file states of a `kind` (Config, say), with overrides, as nested dictionaries: for `typed`."""
    path = find(path)
    last = {}  # of a setting given twice, the last counts, where ml-collections would add tuples up
    for override in overrides:
        prefix = next((p for p in ("--config.", "--noconfig.") if override.startswith(p)), None)
        _require(prefix, f"{override!r} is no setting: write --config.NAME=value")
        name = override.partition("=")[0].removeprefix(prefix)
        _check_override(kind, name)
        last[name] = override
    values, arguments = flags.FlagValues(), ["noisesched", *last.values()]
    config_flags.DEFINE_config_dict("config", _run_file(path), flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"config {path}: {' '.join(str(error).split())}") from None
    return values.config.to_dict()


def from_dict(values):
    """The checked Config of nested dictionaries, e.g. a workdir's config.json. Lists stand for tuples."""
    config = typed(Config, values)
    if config.schedule == "recommended":
        config = dataclasses.replace(config, schedule=str(schedules.recommended(config.data.image_size)))
    if config.preview.schedule == "trained":
        config = dataclasses.replace(config, preview=dataclasses.replace(config.preview, schedule=config.schedule))
    check(config)
    return config


def to_dict(config):
    """Nested dictionaries and lists: what `from_dict` reads, and JSON holds."""
    return dataclasses.asdict(config)


def check(config):
    """Raises ConfigError, with the fix, for a configuration that cannot work. Touches no data and builds no network."""
    fields = _flat(to_dict(config))
    for name, choices in CHOICES.items():
        _require(fields[name] in choices, f"{name}={fields[name]!r}: choose one of {', '.join(choices)}")
    for bound, names in AT_LEAST.items():
        for name in names:
            _require(fields[name] >= bound, f"{name}={fields[name]!r} must be at least {bound}")
    for name, bound in BELOW.items():
        _require(fields[name] < bound, f"{name}={_shown(fields[name])} must be below {bound}")
    training, preview = config.training, config.preview
    schedule = _named("schedule", schedules.make, config.schedule)
    _require(config.data.channels in (1, 3), f"data.channels={config.data.channels}: choose 1 (gray) or 3 (colour)")
    sampled = _named("preview.schedule", schedules.make, preview.schedule)
    log_snrs = _named("preview.steps", schedules.levels, sampled, preview.steps)
    _named("preview.method", samplers.parse, preview.method)
    _named("weighting", loss.make_weighting, config.weighting)
    _named("conditioning", build.make_conditioning, config)
    multipliers = config.model.multipliers
    _require(
        multipliers and all(1 <= m <= 1024 for m in multipliers),
        f"model.multipliers={_shown(multipliers)} must be one whole number from 1 to 1024 for each level",
    )
    _named("model", build.abstract_denoiser, config)
    _require(
        not (config.model.prediction == "eps" and math.isinf(float(schedule(1.0)))),
        f"model.prediction='eps' with schedule {config.schedule!r}, which ends at zero SNR: there z holds nothing of the image, "
        "and no image follows from the noise; set model.prediction to 'v' (or 'x'), or truncate the schedule",
    )
    if preview.every:
        check_levels(config, preview.schedule, log_snrs)
    _require(
        training.batch_size % training.accumulate == 0,
        f"training.batch_size={training.batch_size} is not a multiple of training.accumulate={training.accumulate}",
    )
    chunk = training.steps_per_dispatch
    for name in ("training.num_steps", "training.log_every", "training.checkpoint_every", "preview.every"):
        _require(fields[name] % chunk == 0, f"{name}={fields[name]} is not a multiple of training.steps_per_dispatch={chunk}")
    _require(
        training.keep_every % training.checkpoint_every == 0,
        f"training.keep_every={training.keep_every} is not a multiple of training.checkpoint_every={training.checkpoint_every}",
    )


def check_levels(config, name, log_snrs):
    """Raises ConfigError for sampling levels (of the schedule called `name`) at which this network estimates no image."""
    _require(
        config.model.prediction != "eps" or not math.isinf(log_snrs[0]),
        f"sampling under {name!r} starts at zero SNR, where no image follows from the noise that this network predicts "
        f"(model.prediction='eps'); truncate it: 'truncated({name}, log_snr_min=-12, log_snr_max=20)'",
    )


def check_devices(config, num_devices):
    """Raises ConfigError unless the batch can be divided among the devices."""
    batch, accumulate = config.training.batch_size, config.training.accumulate
    if batch % (num_devices * accumulate):
        factor = num_devices * accumulate
        nearest = " or ".join(str(n * factor) for n in (batch // factor, batch // factor + 1) if n)
        raise ConfigError(
            f"training.batch_size={batch} cannot be divided among {num_devices} devices x accumulate="
            f"{accumulate}; nearest: {nearest}"
        )


def warnings(config):
    """What works but is probably not meant, in one line each."""
    if math.isinf(float(schedules.make(config.schedule)(1.0))) and loss.vanishes_at_zero_snr(config.weighting):
        yield (
            f"weighting {config.weighting!r} vanishes at log-SNR -inf, where schedule {config.schedule!r} ends: nothing is "
            "learned at the level that sampling starts from; 'v' does not vanish there"
        )


# -- reading


_PACKAGE = Path(__file__).resolve().parent.parent
# The folder `configs`: inside the package when installed from a wheel, beside it in the repository.
SHIPPED = (_PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent) / "configs"


def find(path):
    """The path of a config file: `path` if it exists, else the shipped config "configs/NAME.py", "NAME.py" or "NAME".

    Raises ConfigError, which lists the shipped ones, if there is neither.
    """
    if Path(path).is_file():
        return path
    shipped = {file.stem: file for file in sorted(SHIPPED.glob("*.py"))}
    name = path.removeprefix("configs/").removesuffix(".py")
    _require(name in shipped, f"config file {path!r} not found; shipped with noisesched: {', '.join(shipped) or 'none'}")
    return str(shipped[name])


def _run_file(path):
    """The ConfigDict that the config file's `get_config()` returns; ConfigError if there is none."""
    folders = list(sys.path)
    # So that `from configs import digits` finds the file's own neighbours, those of the working directory, or the shipped ones.
    sys.path[:] = [str(Path(path).resolve().parent.parent), ".", *folders, str(SHIPPED.parent)]
    try:
        # A module of its own. (ml-collections' loader runs every file in one and the same, where the last one's names stay.)
        names = {"__name__": "config", "__file__": path}
        exec(compile(Path(path).read_bytes(), path, "exec"), names)
        result = names["get_config"]() if "get_config" in names else None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f", line {lines[-1]}" if lines else ""
        raise ConfigError(f"config {path}{where}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        sys.path[:] = folders
    _require(isinstance(result, ConfigDict), f"config {path} must have a function get_config() that returns a ConfigDict")
    return result


def typed(kind, value, where=""):
    """`value` as an instance of the annotation `kind`; ConfigError, naming the field `where`, if it is not one."""
    if dataclasses.is_dataclass(kind):
        _require(isinstance(value, dict), f"{where or 'a configuration'} must be a group of settings; got {_shown(value)}")
        known = {field.name: field.type for field in dataclasses.fields(kind)}
        unknown, missing = [k for k in value if k not in known], [k for k in known if k not in value]
        group = f"{where}." if where else ""
        _require(not unknown, f"unknown setting {group}{next(iter(unknown), '')}; known: {', '.join(known)}")
        _require(not missing, f"missing setting {group}{next(iter(missing), '')}{_added(known, missing, where)}")
        return kind(**{name: typed(known[name], value[name], group + name) for name in known})
    if isinstance(kind, types.GenericAlias):  # tuple[int, ...]
        _require(isinstance(value, list | tuple), f"{where}={_shown(value)} must be a list")
        return tuple(typed(kind.__args__[0], element, where) for element in value)
    if kind is dict:
        _require(isinstance(value, dict), f"{where}={_shown(value)} must be a group")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else math.inf
    _require(type(value) is kind, f"{where}={_shown(value)} must be of type {kind.__name__}")
    _require(kind is not float or math.isfinite(value), f"{where}={value!r} must be finite")
    _require(kind is not int or abs(value) < 2**32, f"{where}={_shown(value)} must be below 2**32")
    return value


# What settings that came later stand for in a config.json from before them.
ADDED = {"training": {"skip_nonfinite": 0, "keep_every": 0, "keep_best": 0, "best_split": "test"}}


def _added(known, missing, where):
    """What to write into a config.json that lacks settings, if each of them came later; otherwise nothing."""
    added = ADDED.get(where, {})
    if not set(missing) <= set(added):
        return ""
    words = ", ".join(f"{json.dumps(name)}: {json.dumps(added[name])}" for name in missing)
    return f"; to go on with a run from before there was one, add {words} to {json.dumps(where)} in its config.json"


def _check_override(kind, name):
    """Raises ConfigError, which lists what there is, unless `name` ("optimizer.learning_rate") is a setting of `kind`."""
    where = []
    for part in name.split("."):
        if kind is dict:  # a group whose members the config file chooses
            return
        known = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
        group = ".".join(where)
        close = difflib.get_close_matches(part, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        _require(
            part in known, f"unknown setting {name!r}{hint}; known{f' in {group}' if group else ''}: {', '.join(known) or 'none'}"
        )
        kind = {field.name: field.type for field in dataclasses.fields(kind)}[part]
        where.append(part)
    _require(not dataclasses.is_dataclass(kind), f"{name!r} is a group of settings: give one of them, --config.{name}.NAME=value")


def _flat(values, prefix=""):
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _named(name, function, *arguments):
    try:
        return function(*arguments)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def _shown(value, limit=80):
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _require(condition, message):
    if not condition:
        raise ConfigError(message)


def check_guidance(config, text):
    """Raises ConfigError for guidance that this network cannot be given. ValueError if there is no such guidance."""
    guide, model = guidance.parse(text), config.model
    if guide and guide.both and not (model.num_classes and model.label_dropout):
        why = "was trained without classes" if not model.num_classes else "never went without its label (label_dropout=0)"
        raise ConfigError(f"guidance {text!r} needs a network's answer with and without a label; this one {why}")
