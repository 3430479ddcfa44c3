"""An experiment's configuration: typed, complete, and checked before any long work starts.

People write a configuration as a config file (`configs/*.py`, ml-collections). It becomes the frozen dataclasses below: specs
are parsed here, once, and what is known of a field stands at the field. There are no defaults: the page `configs/digits.py`
states every setting and explains it. In a workdir a configuration is JSON, which goes through the same checks, so nothing in a
workdir is ever executed.
"""

import dataclasses
import difflib
import math
import re
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags
from PIL import ImageColor

from noisesched import diffusion, loss, samplers, schedules
from noisesched.loss import Weighting
from noisesched.models import build, conditioning, dit
from noisesched.models.unet2d import Architecture
from noisesched.runs import plugins
from noisesched.runs.settings import ConfigError, brief, check_path, is_group, named, require, setting, shown, stated_type, typed
from noisesched.runtime import sharding
from noisesched.samplers import Sampler
from noisesched.schedules import Schedule


def _table(text):
    """The schedule of a table of timesteps, or None for ""."""
    return schedules.make(text) if text else None


def _colour(text):
    """The text of an opaque colour as CSS writes it; ValueError for another."""
    try:
        values = ImageColor.getrgb(text)
    except ValueError:
        values = ()
    if len(values) != 3 or max(values) > 255:
        raise ValueError(f"{shown(text)} is no opaque colour; write one as white, gray, #ff8000 or rgb(255, 128, 0)")
    return text


NUMBERS = {int: "whole number", float: "number"}
OTHER_IMAGES = "it was trained on other images"
FAR = 2**16  # far beyond what anybody needs: a config may come from anybody


@dataclasses.dataclass(frozen=True)
class Data:
    name: str = setting(fixed=OTHER_IMAGES)
    path: str
    data_dir: str
    split: str = setting(fixed=OTHER_IMAGES)
    image_size: int = setting(at_least=1, below=2**14, fixed=OTHER_IMAGES)
    channels: int = setting(at_least=1, below=FAR, fixed=OTHER_IMAGES)
    flip: bool
    num_workers: int = setting(at_least=0, below=2**10, idle=True)
    background: str = setting(parse=_colour, absent="white", fixed=OTHER_IMAGES)
    dtype: str = setting(choices=("uint8", "float32"), absent="uint8", fixed=OTHER_IMAGES)


@dataclasses.dataclass(frozen=True)
class Conditioning:
    kind: str = setting(choices=tuple(conditioning.KINDS))
    table: Schedule | None = setting(parse=_table)
    translation: str = setting(choices=conditioning.TRANSLATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Settings that only some kinds of network take (`build.NETWORKS`) are None where they are not stated."""

    kind: str = setting(choices=tuple(build.NETWORKS), absent="unet")
    prediction: str = setting(choices=diffusion.PREDICTIONS)
    width: int | None = setting(at_least=1, below=FAR, absent=None)
    multipliers: tuple[int, ...] | None = setting(at_least=1, below=1025, absent=None)
    blocks: int | None = setting(at_least=1, below=257, absent=None)
    attention: tuple[int, ...] | None = setting(absent=None)
    heads: int | None = setting(at_least=1, below=FAR, absent=None)
    patch: int = setting(choices=dit.PATCHES, absent=2)
    dropout: float | None = setting(at_least=0, below=1, absent=None)
    architecture: Architecture | None = setting(absent=None)
    num_classes: int = setting(at_least=0, below=2**24)
    label_dropout: float = setting(at_least=0, below=1)
    dtype: str = setting(choices=("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = setting(at_least=0)
    warmup_steps: int = setting(at_least=0, below=2**31)  # as training.num_steps
    decay: str = setting(choices=("constant", "linear", "cosine"))
    b1: float = setting(at_least=0, below=1)
    b2: float = setting(at_least=0, below=1)
    weight_decay: float = setting(at_least=0)
    clip_norm: float = setting(at_least=0)


@dataclasses.dataclass(frozen=True)
class Training:
    num_steps: int = setting(at_least=1, below=2**31)  # steps are counted in an int32
    batch_size: int = setting(at_least=1, below=2**24)
    accumulate: int = setting(at_least=1, idle=True)
    steps_per_dispatch: int = setting(at_least=1, below=FAR, idle=True)
    parallel: str = setting(choices=sharding.KINDS, idle=True)
    ema_decay: float = setting(at_least=0, below=1)
    skip_nonfinite: int = setting(at_least=0)
    log_every: int = setting(at_least=1, idle=True)
    checkpoint_every: int = setting(at_least=1, idle=True)
    keep_checkpoints: int = setting(at_least=1, idle=True)
    keep_every: int = setting(at_least=0, idle=True)
    keep_best: int = setting(at_least=0, idle=True)
    best_split: str = setting(fixed="the best of its checkpoints were found with other images", idle=True)


@dataclasses.dataclass(frozen=True)
class Preview:
    every: int = setting(at_least=0)
    num_images: int = setting(at_least=1, below=FAR)
    schedule: Schedule = setting(parse=schedules.make)
    steps: int = setting(at_least=1)
    method: Sampler = setting(parse=samplers.make)


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = setting(at_least=0, fixed="it tells a run from others, and its noise was drawn by it", idle=True)
    data: Data
    schedule: Schedule = setting(parse=schedules.make, network=True)
    weighting: Weighting = setting(parse=loss.make_weighting, fixed="it was trained for another loss")
    noise_offset: float = setting(at_least=0, fixed="samples start from the noise that was trained with")
    conditioning: Conditioning = setting(network=True)
    model: Model = setting(network=True)
    optimizer: Optimizer
    training: Training
    preview: Preview = setting(idle=True)


def load(path, overrides=()):
    """The checked Config of a config file and overrides such as "--config.optimizer.learning_rate=1e-3".

    Raises ConfigError for a missing or faulty file, an unknown or mistyped field, and everything `check` refuses.
    """
    return from_dict(read(path, Config, overrides))


def read(path, kind, overrides=()):
    """The settings in a config file for a `kind` of settings (such as Config), with overrides, as nested dictionaries.

    `path`: FILE, or FILE:ARGUMENT for a `get_config(argument)`, which is given the text after the colon.
    """
    path, argument = (find(path), None) if Path(path).is_file() or ":" not in path else _with_argument(path)
    last = {}  # the last of repeated settings counts; ml-collections would concatenate tuples
    for override in overrides:
        prefix = next((p for p in ("--config.", "--noconfig.") if override.startswith(p)), None)
        require(prefix, f"{override!r} is no setting: write --config.NAME=value")
        name, equals, text = override.removeprefix(prefix).partition("=")
        expected = _check_override(kind, name)
        last[name] = f"{prefix}{name}={_read_as(expected, name, text)}" if equals else override
    page = _run_file(path, argument)
    fields = {field.name for field in dataclasses.fields(kind)}
    for mark, what in (("runs", "a comparison: give it to noisesched compare"), ("model", "a run: give it to noisesched train")):
        require(mark in fields or mark not in page, f"config {path} describes {what}")
    values, arguments = flags.FlagValues(), ["noisesched", *last.values()]
    try:
        config_flags.DEFINE_config_dict("config", page, flag_values=values, sys_argv=arguments)
        values(arguments)
    except flags.IllegalFlagValueError as error:
        name, _, text = str(error).removeprefix("flag --config.").partition(": ")[0].partition("=")
        wanted = "write a list such as (1, 2)" if text.startswith("(") else "the config file has another type of value there"
        raise ConfigError(f"{name}={shown(text)} cannot be read: {wanted}") from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"config {path}: {' '.join(str(error).split())}") from None
    return values.config.to_dict()


def from_dict(values):
    """The checked Config of nested dictionaries, e.g. a workdir's config.json. Lists stand for tuples."""
    config = typed(Config, _chosen(values))
    check(config)
    return config


def _chosen(values):
    """`values` with the schedules that "recommended" and "trained" stand for; what is invalid is left for `typed` to refuse."""
    if not isinstance(values, dict) or not all(isinstance(values.get(group), dict) for group in ("data", "preview")):
        return values
    values, size = dict(values), values["data"].get("image_size")
    if values.get("schedule") == "recommended" and isinstance(size, int) and 1 <= size < 2**14:
        values["schedule"] = str(schedules.recommended(size))
    if values["preview"].get("schedule") == "trained" and "schedule" in values:
        values["preview"] = values["preview"] | {"schedule": values["schedule"]}
    return values


def to_dict(config, short=False):
    """Nested dictionaries, lists, numbers and texts: what `from_dict` reads, and JSON holds.

    `short`: without the settings that have the value which they have where they are not stated. So what was written before there
    were such settings equals what is written now.
    """
    plain = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("parse"):
            plain[field.name] = "" if value is None else str(value)
        else:
            plain[field.name] = to_dict(value) if is_group(field) and value is not None else value
    return brief(type(config), plain) if short else plain


def check(config):
    """Raises ConfigError, with the fix, for settings that do not go together. Touches no data and builds no network."""
    training, preview = config.training, config.preview
    check_path("data.path", config.data.path)
    check_path("data.data_dir", config.data.data_dir)
    if (name := config.data.name) != "arrays":
        channels, dtype = config.data.channels, config.data.dtype
        require(channels in (1, 3), f"data.channels={channels}: choose one of 1, 3; other numbers are for data.name='arrays'")
        require(dtype == "uint8", f"data.dtype={dtype!r} is for data.name='arrays'; {name!r} has uint8 images")
    log_snrs = named("preview.steps", schedules.levels, preview.schedule, preview.steps)
    for name in build.NETWORKS[config.model.kind].takes:
        require(getattr(config.model, name) is not None, f"missing setting model.{name}")
    named("conditioning", build.make_conditioning, config)
    require(config.model.multipliers != (), "model.multipliers=() must be one whole number for each level")
    named("model", build.abstract_denoiser, config)
    require(
        not (config.model.prediction == "eps" and math.isinf(float(config.schedule(1.0)))),
        f"model.prediction='eps' with schedule '{config.schedule}', which ends at zero SNR: there z holds nothing of the image, "
        "and no image follows from the noise; set model.prediction to 'v' (or 'x'), or truncate the schedule",
    )
    if preview.every:
        check_levels(config, preview.schedule, log_snrs)
    require(
        training.batch_size % training.accumulate == 0,
        f"training.batch_size={training.batch_size} is not a multiple of training.accumulate={training.accumulate}",
    )
    chunk = training.steps_per_dispatch
    for name in ("num_steps", "log_every", "checkpoint_every"):
        steps = getattr(training, name)
        require(steps % chunk == 0, f"training.{name}={steps} is not a multiple of training.steps_per_dispatch={chunk}")
    require(preview.every % chunk == 0, f"preview.every={preview.every} is not a multiple of training.steps_per_dispatch={chunk}")
    require(
        training.keep_every % training.checkpoint_every == 0,
        f"training.keep_every={training.keep_every} is not a multiple of training.checkpoint_every={training.checkpoint_every}",
    )


def check_levels(config, schedule, log_snrs):
    """Raises ConfigError for sampling levels (of `schedule`, or its spec) at which this network estimates no image."""
    require(
        config.model.prediction != "eps" or not math.isinf(log_snrs[0]),
        f"sampling under '{schedule}' starts at zero SNR, where no image follows from the noise that this network predicts "
        f"(model.prediction='eps'); truncate it: 'truncated({schedule}, log_snr_min=-12, log_snr_max=20)'",
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
    """Lines on what works but is probably not intended."""
    warmup, steps, peak = config.optimizer.warmup_steps, config.training.num_steps, config.optimizer.learning_rate
    if warmup > steps:
        yield (
            f"optimizer.warmup_steps={warmup} is longer than the run of training.num_steps={steps}: the learning rate rises to "
            f"{peak * steps / warmup:.3g} at the last step, and never reaches optimizer.learning_rate={peak:g}"
        )
    if math.isinf(float(config.schedule(1.0))) and loss.vanishes_at_zero_snr(config.weighting):
        yield (
            f"weighting '{config.weighting}' vanishes at log-SNR -inf, where schedule '{config.schedule}' ends: nothing is "
            "learned at the level that sampling starts from; 'v' does not vanish there"
        )


# -- reading


_PACKAGE = Path(__file__).resolve().parent.parent
# The folder `configs`: inside the package when installed from a wheel, beside it in the repository.
SHIPPED = (_PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent) / "configs"


def find(path):
    """The path of a config file: `path` if it exists, else the shipped config "configs/NAME.py", "NAME.py" or "NAME"; the name
    alone always means that.

    Raises ConfigError, which lists the shipped ones, if there is neither.
    """
    shipped = {file.stem: file for file in sorted(SHIPPED.glob("*.py"))}
    name = path.removeprefix("configs/").removesuffix(".py")
    if Path(path).is_file() and not (path == name and name in shipped):
        return path
    require(name in shipped, f"config file {path!r} not found; shipped with noisesched: {', '.join(shipped) or 'none'}")
    return str(shipped[name])


def _with_argument(text):
    """(the path, the argument) of FILE:ARGUMENT, for the first colon before which there is a file."""
    parts = text.split(":")
    at = next((n for n in range(1, len(parts)) if Path(":".join(parts[:n])).is_file()), 1)
    return find(":".join(parts[:at])), ":".join(parts[at:])


def _run_file(path, argument=None):
    """The ConfigDict that the config file's `get_config()`, or get_config(argument), returns; ConfigError if there is none."""
    # So that `from configs import digits` finds the file's own neighbours, those of the working directory, or the shipped ones.
    folders = [str(Path(path).resolve().parent.parent), ".", *sys.path, str(SHIPPED.parent)]
    given = [] if argument is None else [argument]
    made = lambda names: names["get_config"](*given) if "get_config" in names else None
    result = plugins.run(path, folders, made, "config ")
    require(isinstance(result, ConfigDict), f"config {path} must have a function get_config() that returns a ConfigDict")
    return result


def _read_as(kind, name, text):
    """The text of a setting of that type as ml-collections reads it. Raises ConfigError if it is no value of that type."""
    if kind is bool:
        require(text.lower() in ("true", "false", "t", "f", "1", "0"), f"{name}={shown(text)} must be true or false")
    elif kind in (int, float):
        try:
            number = float(text)
        except ValueError:
            number = None
        whole = number is not None and number.is_integer()
        require(number is not None and (whole or kind is float), f"{name}={shown(text)} must be a {NUMBERS[kind]}")
        if kind is int and not re.fullmatch("[+-]?[0-9]+", text):
            return str(int(number))  # 1e3
    return text


def _check_override(kind, name):
    """The type of the setting `name` ("optimizer.learning_rate") of `kind`, or None if that is for the config file to say.

    Raises ConfigError, which lists the known settings, if there is none.
    """
    where = []
    for part in name.split("."):
        if kind is dict:  # a group whose members the config file chooses
            return None
        fields = {field.name: field for field in dataclasses.fields(kind)} if kind else {}
        close = difflib.get_close_matches(part, fields, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        group = f" in {'.'.join(where)}" if where else ""
        require(part in fields, f"unknown setting {name!r}{hint}; known{group}: {', '.join(fields) or 'none'}")
        given = None if fields[part].metadata.get("parse") else stated_type(fields[part].type)
        kind = stated_type(fields[part].type) if is_group(fields[part]) else None
        where.append(part)
    require(not kind or kind is dict, f"{name!r} is a group of settings: give one of them, --config.{name}.NAME=value")
    return given
