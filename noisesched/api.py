"""The Python face: a trained run as an object, a comparison as a frame, schedules and images as figures.

    import noisesched

    run = noisesched.load("runs/digits")
    images = run.sample("karras", steps=10, method="dpmpp_2m", num_images=16)  # uint8 [16, H, W, C]
    noisesched.show(images)  # a matplotlib Figure, which a notebook displays

What the command line checks and warns of is checked and warned of here: a fault is a ValueError or FileNotFoundError in one line,
a note is a Python warning. Defaults are the command line's.
"""

import dataclasses
import warnings
from typing import Any

import numpy as np
import pandas as pd

from noisesched import guidance as guidances
from noisesched import samplers, schedules
from noisesched.comparison import results as comparisons
from noisesched.diagnosis import plot as plots
from noisesched.evaluation import evaluate, sample
from noisesched.models import generate
from noisesched.models.denoiser import Network
from noisesched.runs import requests
from noisesched.runs import subject as subjects
from noisesched.runs.config import Config
from noisesched.runs.subject import Subject
from noisesched.runtime import backend, pictures
from noisesched.spec import shortened


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained network and what its workdir says of it, as `load` makes it.

    denoise   (z [B, H, W, C], log_snr [B] or a number, labels [B] or None) -> x_hat [B, H, W, C]: a pytree of `params`, and so
              an argument of jax.jit, grad and `samplers.sample`, differentiable in z, its parameters and log_snr where that is
              finite
    """

    subject: Subject
    parameters: str  # "ema" or "params": which of the checkpoint's

    @property
    def workdir(self) -> str:
        return self.subject.name

    @property
    def config(self) -> Config:
        return self.subject.config

    @property
    def step(self) -> int:
        """How many steps it has been trained."""
        return self.subject.step

    @property
    def denoise(self) -> Network:
        return self.subject.network

    @property
    def params(self) -> Any:
        """The parameters, nested dictionaries of arrays."""
        return self.denoise.params

    @property
    def schedule(self) -> schedules.Schedule:
        """The schedule that training drew its levels from."""
        return self.subject.schedule

    @property
    def trained_range(self) -> tuple[float, float]:
        """(lowest, highest) log-SNR that training has drawn up to this step."""
        return self.subject.trained_range

    def sample(
        self,
        schedule: str | schedules.Schedule | np.ndarray | None = None,
        steps: int = 25,
        num_images: int = 64,
        method: str = "ddim",
        guidance: str = "none",
        labels: tuple[int, ...] = (),
        seed: int = 0,
        spacing: str = "trailing",
    ) -> np.ndarray:
        """Images, uint8 (of latents float32) [num_images, H, W, C]: those of `noisesched sample`, bit for bit.

        schedule  the inference schedule, or its levels: log-SNRs [N], noisiest first (then `steps` and `spacing` have no
                  effect); None for the one trained with
        labels    the classes to cycle through, for a network with classes; () for all

        Warns where levels lie outside the trained range. Raises ValueError, in one line, for anything invalid.
        """
        given = schedule is not None and not isinstance(schedule, str | schedules.Schedule)
        request = requests.Sample(
            workdir=self.workdir,
            out="",
            steps=(steps,),
            method=(method,),
            spacing=spacing,
            num_images=num_images,
            seed=seed,
            guidance=(guidance,),
            labels=tuple(np.atleast_1d(np.asarray(labels, int)).tolist()),
        )
        sample.check(self.subject, request)
        if given:
            try:
                log_snrs = np.asarray(schedule, np.float64)
            except (TypeError, ValueError):
                log_snrs = np.zeros(0)
            if log_snrs.ndim != 1 or not log_snrs.size:
                raise ValueError(f"schedule is a spec, a Schedule or log-SNRs [N]; got {shortened(repr(schedule))}")
            text = f"{len(log_snrs)} levels"
        else:
            text = str(schedules.make(self.schedule if schedule is None else schedule))
            log_snrs = np.asarray(schedules.levels(text, steps, spacing))
        samplers.check_levels(self.denoise, log_snrs)
        for line in sample.outside(self.subject, {(text, len(log_snrs)): log_snrs}):
            warnings.warn(line, stacklevel=2)
        return generate.generate(
            self.denoise,
            log_snrs,
            num_images,
            method,
            seed=seed,
            guide=guidances.parse(guidance),
            labels=generate.cycled_labels(self.denoise.num_classes, num_images, request.labels),
        )

    def evaluate(self, say=print, **options) -> dict:
        """What `noisesched evaluate` writes to evaluation.json, in WORKDIR/evaluation or `out`: see `figure`.

        `options`: the fields of `runs.requests.Evaluate`, which are the command's flags, such as num_images=100 or
        metrics=("frechet(classifier)",). An evaluation that exists already is read, not repeated. `say` is called with each line.
        """
        known = [field.name for field in dataclasses.fields(requests.Evaluate)]
        if unknown := [name for name in options if name not in known]:
            raise ValueError(f"evaluate has no option {unknown[0]!r}; known: {', '.join(known)}")
        options = {"checkpoint": self.step, "parameters": self.parameters} | options
        return evaluate.run(requests.Evaluate(workdir=self.workdir, **options), say)

    def figure(self, evaluation: dict):
        """The errors of an evaluation against log-SNR, above the levels that training drew: a matplotlib Figure."""
        return evaluate.profile_figure(evaluation, self.schedule)


def load(workdir: str, checkpoint: int | None = None, parameters: str = "ema") -> Run:
    """The run in a workdir, a folder or a bucket such as gs://bucket/run, whether it still trains or not.

    checkpoint  its step; None for the newest. parameters: "ema", the averaged ones, or "params"

    Raises FileNotFoundError for a folder without a run, ValueError for one that is damaged or lacks that checkpoint, each in one
    line. Warns of a damaged checkpoint if an older one is used instead.
    """
    backend.prepare()
    request = requests.Sample(workdir=str(workdir), out="", checkpoint=checkpoint, parameters=parameters)
    say = lambda line: warnings.warn(line, stacklevel=3)
    subject = subjects.loaded(subjects.asked(request), parameters, checkpoint, say)
    return Run(subject, parameters)


def results(folder: str) -> pd.DataFrame:
    """The rows of a comparison made by `noisesched compare`, one per measured set of samples.

    Columns: run, train_seed, schedule, method, guidance, spacing, calls (the budget), network_calls, seed, log_snrs, .., each
    metric by its name, such as "frechet(classifier, n=256)", and each image statistic, such as "images black". Raises
    FileNotFoundError or ValueError, in one line, for a folder that holds none.
    """
    return comparisons.read(folder).frame


def plot(*specs: str | schedules.Schedule):
    """Schedules side by side, as alpha-bar, log-SNR, beta and SNR: a matplotlib Figure. ValueError for a bad spec."""
    if not specs:
        raise ValueError("plot takes schedules, such as plot('cosine', 'linear')")
    return plots.figure([str(text) for text in specs])


def show(images: np.ndarray, columns: int = 8):
    """Images [N, H, W, C] side by side, as `sample` returns them: a matplotlib Figure. ValueError for other arrays.

    Of floats, or other numbers of channels than 1 and 3, those of `pictures.visible`.
    """
    if np.ndim(images) != 4 or not np.size(images):
        raise ValueError(f"show takes images [N, H, W, C]; got shape {np.shape(images)}")
    picture = pictures.grid(pictures.visible(images), columns)
    figure = pictures.new_figure(picture.shape[1] / 100, picture.shape[0] / 100)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_axis_off()
    return figure
