"""What is sampled and measured: a network, the levels that it was trained on, and the images it is measured against.

Either a run's, read from its workdir, or anybody's own: FILE.py:NAME names what `noisesched.wrap` made there. That file is run,
because the user named it; nothing in a workdir ever is.
"""

import dataclasses
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from noisesched import guidance, loss, schedules
from noisesched.models import build, conditioning, denoiser
from noisesched.models.denoiser import Network
from noisesched.models.wrap import Wrapped
from noisesched.runs import config as configuration
from noisesched.runs import plugins
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.config import Config, Data
from noisesched.runs.settings import ConfigError, named, require
from noisesched.runs.workdir import Workdir
from noisesched.runtime import sharding
from noisesched.runtime.files import reason


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A network to sample and to measure.

    name         the workdir, or FILE.py:NAME
    network      with its parameters; None until `loaded`
    schedule     that training drew its levels from, `num_draws` times; 0 where it is not known how often
    told         what the network is told of the level: a conditioning.kind, or what `wrap` calls it
    table        log-SNRs of the timesteps that it is told; () for none
    translation  how a level becomes one of them
    unlabelled   whether it was trained without labels, too, as guidance needs
    stored       what identifies it beside its parameters, in JSON's types
    config       of a run; None for an own network
    """

    name: str
    network: Network | Wrapped | None
    data: Data | None  # of an own network that is only sampled
    schedule: schedules.Schedule
    num_draws: int
    told: str
    table: tuple[float, ...]
    translation: str
    prediction: str
    num_classes: int
    unlabelled: bool
    stored: dict[str, Any]
    config: Config | None
    step: int | None = None  # of the checkpoint

    @property
    def trained_range(self):
        """(lowest, highest) log-SNR that training has drawn; about one of all its images exceeded the highest. The whole schedule
        where it is not known how often it drew."""
        return loss.trained_range(self.schedule, self.num_draws or math.inf)

    @property
    def pictures(self):
        """Whether its images are of 8 bits, gray or RGB."""
        if self.config:
            return self.data.dtype == "uint8" and self.data.channels in (1, 3)
        return not self.network.floats

    def check_levels(self, schedule, log_snrs):
        """Raises ConfigError for sampling levels (of `schedule`, or its spec) at which this network estimates no image."""
        if self.config:
            configuration.check_levels(self.config, schedule, log_snrs)
        else:
            named(f"schedule {str(schedule)!r}", self.network.check, log_snrs)

    def check_guidance(self, text):
        """Raises ConfigError for guidance that this network cannot be given. ValueError if there is no such guidance."""
        guide = guidance.parse(text)
        if guide and guide.both and not (self.num_classes and self.unlabelled):
            why = "was trained without classes" if not self.num_classes else "never went without its label (label_dropout=0)"
            raise ConfigError(f"guidance {text!r} needs a network's answer with and without a label; this one {why}")

    @property
    def num_parameters(self):
        """How many parameters the network is known to have; 0 for a function, which holds its own."""
        return denoiser.num_parameters(self.network.params if self.network else build.abstract_denoiser(self.config)[1])

    def check_translation(self, translation, known):
        """Raises ConfigError unless `translation` is None, or one of `known` and this a run's network told timesteps."""
        if translation:
            require(translation in known, f"unknown translation {translation!r}; known: {', '.join(known)}")
            told = self.told if self.config else "what `wrap` says"
            fits = self.config and self.told == "timestep"
            require(fits, f"translation {translation!r} is for networks told a timestep; this one is told {told}")


def asked(request, needs_data=True):
    """The Subject that a request names by `workdir`, or by `denoiser` and `data`; its parameters are not read yet.

    Raises ConfigError, FileNotFoundError or ValueError, in one line.
    """
    own = getattr(request, "denoiser", "")
    require(bool(own) != bool(request.workdir), "give the --workdir of a run, or your own network as --denoiser=FILE.py:NAME")
    if not own:
        require(not getattr(request, "data", ""), f"data={request.data!r} is for a --denoiser: a run has its own")
        return of_workdir(request.workdir)
    given = [name for name in ("checkpoint", "translation") if getattr(request, name) is not None]
    require(not given, f"{', '.join(given)}: this is for a run; --denoiser={own} is one network as it is")
    return of_file(own, request.data, needs_data)


def of_workdir(workdir):
    """The Subject of the run in a workdir, its parameters unread. Raises FileNotFoundError, ConfigError or ValueError."""
    opened = Workdir(workdir)
    stored = opened.read_config()
    with plugins.of(opened):
        return of_config(configuration.from_dict(stored), str(opened.path), stored)


def of_config(config, name="", stored=None, params=None, step=None):
    """The Subject of a config; with `params`, those after `step` steps."""
    return Subject(
        name=name,
        network=None if params is None else build.network(config, params),
        data=config.data,
        schedule=config.schedule,
        num_draws=(step or 0) * config.training.batch_size,
        told=config.conditioning.kind,
        table=build.make_conditioning(config).table,
        translation=config.conditioning.translation,
        prediction=config.model.prediction,
        num_classes=config.model.num_classes,
        unlabelled=config.model.label_dropout > 0,
        stored=stored or {},
        config=config,
        step=step,
    )


def loaded(subject, parameters, checkpoint=None, say=print):
    """The Subject with its network: of a run, with the parameters ("ema" or "params") of a checkpoint, None for the newest.

    Raises CheckpointError if the checkpoint cannot be used; `say` is told of a damaged one.
    """
    config = subject.config
    if not config:
        return subject
    _, template = build.abstract_denoiser(config)
    with Checkpoints(Workdir(subject.name), max_to_keep=None, say=say) as checkpoints:
        step, items = checkpoints.restore({parameters: template}, checkpoint)
    params = sharding.at_rest(items[parameters], config.training.parallel)
    return of_config(config, subject.name, subject.stored, params, step)


def translated(subject, translation):
    """A run's loaded Subject with another of conditioning.TRANSLATIONS; as it is for None, "raw", and own networks."""
    if not subject.config or translation not in conditioning.TRANSLATIONS:
        return subject
    return dataclasses.replace(subject, network=build.network(subject.config, subject.network.params, translation))


def network_answers(network, level):
    """Whether a network has an estimate at a log-SNR."""
    try:
        network.check(np.array([level]))
    except ValueError:
        return False
    return True


# -- somebody's own network


def of_file(text, data, needs_data=True):
    """The Subject of FILE.py:NAME, for the images that `data` names: see `images`. ConfigError, in one line, for any fault."""
    path, colon, name = text.rpartition(":")
    require(colon and path.endswith(".py") and name.isidentifier(), f"denoiser={text!r} must be FILE.py:NAME")
    network = _value(path, name)
    where = f"denoiser={text!r}"
    require(isinstance(network, Wrapped), f"{where} is a {type(network).__name__}: make it by noisesched.wrap(..)")
    shape = network.shape
    square = len(shape) == 3 and shape[0] == shape[1]
    require(square, f"{where}: wrap(.., shape={shape}) must be the shape of an image, (size, size, channels)")
    drawn = network.drawn
    require(drawn, f"{where}: say which levels it was trained on: wrap(.., drawn='cosine') or another schedule")
    settings = {
        field.name: str(getattr(network, field.name))
        for field in dataclasses.fields(network)
        if field.name not in ("params", "apply", "table")
    }
    return Subject(
        name=text,
        network=network,
        data=images(data, shape) if data or needs_data else None,
        schedule=drawn,
        num_draws=0,
        told=network.told,
        table=network.table,
        translation=network.translation,
        prediction=network.prediction,
        num_classes=network.num_classes,
        unlabelled=True,
        stored={"denoiser": text, **settings, "answers_crc32": _answers(network)},
        config=None,
    )


def images(data, shape):
    """The settings of the images [H, W, C] that `data` names: a config file, a folder <split>/<class>/.., or a prepared data set.

    Raises ConfigError, in one line, if it names none, or a config's images have another shape.
    """
    require(data, "data='': name the images that it was trained on: a config file, an image folder, or a prepared data set")
    size, channels = shape[1:]
    if data.endswith(".py"):
        found = configuration.load(configuration.find(data)).data
        theirs = (found.image_size, found.image_size, found.channels)
        require(theirs == shape, f"data={data!r} has images {theirs}, but the network's have the shape {shape}")
        dtype = "uint8" if channels in (1, 3) else "float32"
        require(
            found.dtype == dtype, f"data={data!r} has {found.dtype} images, but a network of shape {shape} makes {dtype} ones"
        )
        return found
    require(channels in (1, 3), f"data={data!r}: for latents of shape {shape}, give a config file with data.name='arrays'")
    base = configuration.load(configuration.find("digits")).data
    folder = Path(data).expanduser().is_dir()
    if not folder and data not in ("digits", "brightness"):
        named(f"data={data!r}", _prepared, data)
    return dataclasses.replace(
        base, name="image_folder" if folder else data, path=data if folder else "", image_size=size, channels=channels
    )


def _prepared(name):
    from noisesched.data import datasets  # here, as it loads tensorflow-datasets

    try:
        datasets.find_prepared(name, "")
    except FileNotFoundError as error:
        raise ValueError(f"there is no such folder, config file or prepared data set ({error})") from None


def _value(path, name):
    """What a Python file calls `name`; ConfigError that names the line for an exception, and the names there are."""
    require(Path(path).is_file(), f"there is no file {path!r}")
    made = plugins.run(path, [str(Path(path).resolve().parent), *sys.path], dict)  # where it finds its neighbours
    known = sorted(key for key, value in made.items() if isinstance(value, Wrapped))
    require(name in made, f"{path} has no {name!r}; made there by noisesched.wrap: {', '.join(known) or 'nothing'}")
    return made[name]


def _answers(network):
    """A checksum of what the network says of fixed noise: it changes with weights that the file itself loads from elsewhere."""
    levels = np.asarray(network.drawn(np.array([0.8, 0.5, 0.2])), np.float32)
    z = np.random.default_rng(0).standard_normal((len(levels), *network.shape)).astype(np.float32)
    labels = np.zeros(len(levels), np.int32) if network.num_classes else None
    try:
        made = np.asarray(jax.jit(network)(z, levels, labels))  # as the commands call it
    except Exception as error:
        kind = "" if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: "
        raise ConfigError(f"the network cannot be called: {kind}{reason(error)}") from error
    said = ", ".join(f"{level:.3g}" for level in levels)
    require(np.isfinite(made).all(), f"the network's answers at log-SNR {said} are not finite")
    return zlib.crc32(np.round(made.astype(np.float64), 2).tobytes())
