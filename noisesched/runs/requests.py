"""What each program may be asked: the arguments of its Python function, and the flags of its command.

One dataclass per command: its docstring is the command's description, and each field is a flag, with its type, default, range,
choices and help (`noisesched.flags` makes the parser). This file loads no JAX, so that help appears at once; a test holds the few
choices that it repeats against the mathematics.
"""

import dataclasses
import numbers
import typing

from noisesched.runs.settings import check_value, require, setting

PARAMETERS = ("ema", "params")
SPACINGS = ("trailing", "leading", "linspace")  # where N levels lie on a schedule: see `tables.select_steps`
TRANSLATIONS = ("nearest", "interpolated")  # how a level becomes the timestep that a network is told: see `conditioning.timestep`
WRONG_TRANSLATION = "raw"  # the mistake of telling a network the timesteps of its own table, whatever the levels
PREDICTIONS = ("eps", "x", "v")


def _schedule_and_count(text):
    spec, _, count = text.rpartition(":")
    if not spec or int(count) < 1:
        raise ValueError
    return spec, int(count)


def _share(text):
    number, _, total = text.partition("/")
    if not 1 <= int(number) <= int(total):
        raise ValueError
    return int(number), int(total)


_schedule_and_count.__name__, _share.__name__ = "SPEC:N, such as cosine:100", "share K/N, such as 1/2"


WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}  # for the types of values
KINDS = {int: numbers.Integral, float: numbers.Real}


@dataclasses.dataclass(frozen=True)
class Request:
    """Checks the types, ranges and choices of its fields: raises ConfigError, in one line."""

    plugin: tuple[str, ...] = setting(
        (), metavar="FILE", help="Python files, run first, that add a schedule, sampler, weighting, metric, .. of your own (none)"
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if typing.get_origin(field.type) is tuple:
                require(isinstance(value, tuple), f"{field.name}={value!r} must be a tuple")
            if value is not field.default and not field.metadata.get("read"):
                for each in value if isinstance(value, tuple) else (value,):
                    kind = next((kind for kind in WORDS if kind in (field.type, *typing.get_args(field.type))), object)
                    fits = isinstance(each, KINDS.get(kind, kind)) and (kind is bool or not isinstance(each, bool))
                    require(fits, f"{field.name}={each!r} must be {WORDS.get(kind, 'given')}")
                    check_value(field.name, each, field.metadata)


def _workdir(default=dataclasses.MISSING):
    return setting(default, metavar="DIR", help="folder of the run, or gs://bucket/folder")


def _denoiser():
    what = "instead of a run, your own network: what noisesched.wrap made in a file of yours, which is run"
    return setting("", metavar="FILE.py:NAME", help=what)


def _data():
    what = "of the --denoiser: the images that it was trained on; a config file, an image folder or a prepared data set"
    return setting("", metavar="DATA", help=what)


def _config(of="", default=dataclasses.MISSING):
    return setting(
        default,
        metavar="FILE",
        help=f"config file{of}, or FILE:ARGUMENT of its get_config; --config.NAME=value changes a setting",
    )


def _seed(what):
    return setting(0, at_least=0, below=2**32, help=what)


def _parameters():
    return setting("ema", choices=PARAMETERS, help="averaged or raw parameters")


def _checkpoint():
    return setting(None, at_least=0, below=2**32, metavar="STEP", help="step of the checkpoint (the latest)")


@dataclasses.dataclass(frozen=True)
class Job(Request):
    """Each process, on its own host or devices, runs the same command.

    On Cloud TPU, SLURM and Open MPI they find each other; elsewhere give all three.
    """

    coordinator: str | None = setting(None, metavar="HOST:PORT", help="where process 0 listens: its host, and a free port there")
    num_processes: int | None = setting(None, at_least=1, metavar="N", help="how many processes there are")
    process_id: int | None = setting(None, at_least=0, metavar="K", help="the number of this one, from 0")
    wait: int | None = setting(
        None,
        at_least=1,
        below=10**6,
        metavar="SECONDS",
        help="give up if the others have not come after so many seconds (300; 1800 where a cluster starts them)",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Job):
    """Train the network that a config file describes, in a workdir.

    The same command again continues from the last checkpoint, as after a kill. The workdir holds config.json, checkpoints,
    metrics.jsonl, TensorBoard events and sample grids. Exit status: 0 done; 75 stopped by a signal, saved: the same command
    continues; 1 stopped by a fault; 2 wrong input.
    """

    workdir: str = _workdir()
    config: str = setting(
        "",
        metavar="FILE",
        help="config file; may be left out to continue the run in the workdir. --config.NAME=value changes any setting of it; "
        "configs/digits.py explains them all",
    )
    overrides: tuple[str, ...] = ()
    tracker: str = setting("", metavar="NAME", help="also send numbers and pictures to a service: wandb (none)")
    accept_changes: bool = setting(
        False, help="continue a run although the config differs from its own (the network and the data cannot differ)"
    )
    profile: int = setting(
        0, at_least=0, metavar="N", help="trace N steps, after 10 others, into WORKDIR/profile, for TensorBoard (none)"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Job):
    """Sample the run in a workdir under every combination of the given schedules, steps and methods.

    It needs nothing but the workdir. Writes samples.npy, grid.png and settings.json; for several combinations, a folder each and
    overview.png.
    """

    workdir: str = _workdir("")
    denoiser: str = _denoiser()
    data: str = _data()
    schedule: tuple[str, ...] = setting((), metavar="SPEC", help="inference schedules (the one trained with)")
    steps: tuple[int, ...] = setting((25,), at_least=1, metavar="N", help="numbers of levels")
    method: tuple[str, ...] = setting(("ddim",), metavar="SPEC", help='samplers, e.g. ddim "ddim(eta=1)" heun')
    spacing: str = setting("trailing", choices=SPACINGS, help="where the levels lie on the schedule")
    num_images: int = setting(64, at_least=1, metavar="N", help="images of each combination")
    seed: int = _seed("of the noise, the same for all combinations")
    parameters: str = _parameters()
    checkpoint: int | None = _checkpoint()
    translation: str | None = setting(
        None,
        choices=(*TRANSLATIONS, WRONG_TRANSLATION),
        help="for a network told timesteps: how a level becomes one (as its config says); raw: the mistake of telling it the "
        "steps of its own table, whatever the levels",
    )
    guidance: tuple[str, ...] = setting(
        ("none",), metavar="SPEC", help='for a network with classes, e.g. none "cfg(3)" "cfg(3, rescaled(0.7))"'
    )
    labels: tuple[int, ...] = setting((), at_least=0, metavar="K", help="classes, cycled through (all)")
    formats: tuple[str, ...] = setting(
        ("npy",),
        choices=("npy", "npz", "png"),
        help="samples.npy; samples.npz, whose arr_0 other tools read; png: a file for each",
    )
    out: str = setting(metavar="DIR", help="folder to write to")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Job):
    """Measure the run in a workdir on held-out images.

    Bits per dimension, in continuous time and for the levels of given schedules; the network's error against log-SNR; what it
    knows at its last trained level and answers at zero SNR; and, if metrics are given, distances of samples from real images.
    Writes evaluation.json and profile.png. An evaluation that exists already is not repeated.
    """

    workdir: str = _workdir("")
    denoiser: str = _denoiser()
    data: str = _data()
    split: str = setting("test", help="held-out images, e.g. test, 'test[:100]'")
    num_images: int = setting(0, at_least=0, metavar="N", help="measure only the first N images (all)")
    noises: int = setting(16, at_least=2, metavar="N", help="draws of (level, noise) for each image, an even number")
    log_snr_min: float = setting(-12.0, metavar="LOG_SNR", help="noisiest level of the bound")
    log_snr_max: float = setting(13.3, metavar="LOG_SNR", help="cleanest level of the bound")
    profile_levels: int = setting(41, at_least=5, below=10_001, metavar="N", help="levels of the loss profile")
    discrete: tuple[tuple[str, int], ...] = setting(
        (),
        metavar="SPEC:N",
        read=_schedule_and_count,
        help="also the bound in discrete time, for N levels of a schedule, e.g. cosine:100",
    )
    best_levels: int = setting(
        0,
        at_least=0,
        below=201,
        metavar="N",
        help="also find the N levels of the least discrete bound, written as a schedule (none)",
    )
    checkpoint: int | None = _checkpoint()
    parameters: str = _parameters()
    translation: str | None = setting(
        None, choices=TRANSLATIONS, help="for a network told timesteps: how a level becomes one (as the run's config says)"
    )
    seed: int = _seed("of levels, noise and samples")
    metrics: tuple[str, ...] = setting(
        (), metavar="METRIC", help='distances of samples from real images, e.g. "frechet(classifier)"'
    )
    schedule: str = setting("", metavar="SPEC", help="of the samples (the one trained with)")
    steps: int = setting(25, at_least=1, metavar="N", help="levels of the samples")
    method: str = setting("ddim", metavar="SPEC", help="sampler")
    guidance: str = setting("none", metavar="SPEC", help='of the samples, e.g. "cfg(3)"')
    num_samples: int = setting(256, at_least=1, metavar="N", help="samples to measure")
    real: str = setting(
        "paired",
        choices=("paired", "all"),
        help="images of the training split that samples are compared with: as many, and as many others for the floor; or all of "
        'them, as published FIDs do: "frechet(inception, n=50000, real=50000)"',
    )
    inception_weights: str = setting("", metavar="FILE", help="Inception-V3's, for metrics that need it")
    out: str = setting("", metavar="DIR", help="folder to write to (WORKDIR/evaluation)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnose(Request):
    """Say what is wrong with a config and the levels it is to be sampled at, before anything is trained.

    What the training schedule leaks at its end, where the weight of the loss lies over log-SNR, whether sampling starts where
    training ended and stays where it went; each with the flags that repair it (those that begin with --config are for a run
    started from scratch). Trains nothing; where the data set is not there, it says what it assumes.

    With --scheduler, it diagnoses the scheduler_config.json of a network of PyTorch's diffusers; images, their size (for a latent
    network, of its latents) and weighting stay the config's, and repairs are told as fields of the file, too. Of those,
    timestep_spacing needs no new training. Exit status: 0; 1 if there is a fault; 2 if nothing could be diagnosed.
    """

    config: str = _config(default="")
    overrides: tuple[str, ...] = ()
    workdir: str = setting("", metavar="DIR", help="or the folder of a run")
    scheduler: str = setting(
        "", metavar="FILE", help="a scheduler_config.json, which says schedule, prediction and levels in place of the config"
    )
    schedule: tuple[str, ...] = setting((), metavar="SPEC", help="inference schedules (that of the previews)")
    steps: tuple[int, ...] = setting((), at_least=1, metavar="N", help="numbers of levels (the previews')")
    spacing: str | None = setting(None, choices=SPACINGS, help="where the levels lie on the schedule (trailing)")
    out: str = setting("", metavar="DIR", help="also write diagnosis.json and diagnosis.png to a folder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot(Request):
    """Draw alpha-bar, log-SNR, beta and SNR of schedules side by side, with each one's terminal SNR marked and printed."""

    schedules: tuple[str, ...] = setting(metavar="SPEC", help="schedules, e.g. linear cosine 'shifted(cosine, by=-2)'")
    out: str = setting("schedules.png", metavar="FILE", help="picture to write, .png, .svg or .pdf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(Job):
    """Carry out the comparison that a config file describes (configs/compare.py is the page that explains it).

    Train what is not trained yet, then sample and measure every run x schedule x sampler x number of calls x seed, a line each in
    compare.jsonl. The same command continues where it was stopped.
    """

    config: str = _config(" of the comparison")
    overrides: tuple[str, ...] = ()
    out: str = setting(metavar="DIR", help="folder of the comparison")
    share: tuple[int, int] | None = setting(
        None,
        metavar="K/N",
        read=_share,
        help="carry out only the K-th of N shares of the runs, beside other processes or machines with the same --out; "
        "afterwards, without it, put them together",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Request):
    """Tell what `compare` left in a folder as a short paper: report.html, one page that needs no network, and report.md with its
    pictures. It says what differs, by a rule that it states, what it cost, and what the data do not show."""

    compare: str = setting(metavar="DIR", help="folder of the comparison")
    out: str = setting("", metavar="DIR", help="folder to write to (DIR/report)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interchange(Request):
    """Read a scheduler_config.json into a schedule, a prediction, a spacing and a sampler here, and say what does not carry over;
    or write one with which PyTorch's diffusers samples as we do. Neither that library nor PyTorch is needed.

    Read the folder of a pipeline, or of a UNet2DModel alone, into a run in --workdir, which then can be sampled, evaluated and
    compared. Weights are read from safetensors only.
    """

    read: str = setting("", metavar="FILE", help="a scheduler_config.json to explain; or a folder to read into --workdir")
    write: str = setting("", metavar="FILE", help="a scheduler_config.json to write, of a --workdir or a --schedule")
    workdir: str | None = setting(
        None, metavar="DIR", help="folder of a run, whose schedule and prediction to write; or to make of the network read"
    )
    config: str = setting(
        "",
        metavar="FILE",
        help="of a run to make: the config file that says where its images are (image_folder); --config.NAME=value changes a "
        "setting",
    )
    overrides: tuple[str, ...] = ()
    num_classes: int | None = setting(
        None, at_least=1, metavar="N", help="of a network whose last class embedding stands for no label: the classes without it"
    )
    schedule: str | None = setting(None, metavar="SPEC", help="schedule to write (the run's), or of a folder that states none")
    prediction: str | None = setting(None, choices=PREDICTIONS, help="of the network (the run's)")
    spacing: str | None = setting(None, choices=SPACINGS, help="of the steps to write (trailing)")
    method: str | None = setting(None, metavar="SPEC", help="sampler to write, or euler (ddim)")
    steps: int | None = setting(None, at_least=1, metavar="N", help="number of steps, for --sigmas")
    image_size: int | None = setting(
        None, at_least=1, metavar="PIXELS", help="of a side, where neither file nor folder states it"
    )
    sigmas: str = setting(
        "", metavar="FILE", help="write the levels of these steps, as sigmas, for that library, and for \"sigmas('FILE')\" here"
    )
    betas: str = setting("", metavar="FILE", help="write the table's betas, for \"betas('FILE')\" here")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Request):
    """Write the parameters of a run as safetensors, and what network they are of as JSON.

    Where PyTorch's diffusers has the same network, its UNet2DModel, the folder is one of that library: from_pretrained loads it.
    Of a network told the timesteps of a table it is a whole pipeline. Other networks keep the names that parameters have here.
    """

    workdir: str = _workdir()
    parameters: str = _parameters()
    checkpoint: int | None = _checkpoint()
    out: str = setting(metavar="DIR", help="folder to write to")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark(Request):
    """Measure a config's training step against the bare jitted step of the same network, loss, optimizer and EMA; sampling
    against bare network calls; the wait for input; compilation, and compilation from the persistent cache."""

    config: str = _config()
    overrides: tuple[str, ...] = ()
    seconds: int = setting(60, at_least=1, help="about how long to measure, without compilation")
    calls: int = setting(50, at_least=1, metavar="N", help="network calls of the sampling run")
    json: str = setting("", metavar="FILE", help="also write the figures to this file")
