"""Sampling from one network under any inference schedule, number of steps, spacing and sampler.

Each requested combination writes its images (`samples.npy`, [N, H, W, C], uint8 or for latents float32), `grid.png` and
`settings.json`; several also write `overview.png`, with a row per schedule and sampler and a column per number of network calls,
all from the same noise.
"""

import contextlib
import dataclasses
import io
import itertools
import math
import re
import textwrap
import time
import zlib

import numpy as np
from etils import epath
from tqdm import tqdm

from noisesched import diffusion, guidance, samplers, schedules, spec
from noisesched.models import conditioning, generate
from noisesched.runs import subject as subjects
from noisesched.runs.settings import ConfigError, require
from noisesched.runtime import cluster
from noisesched.runtime.files import read_json, replacing, to_json, write_json
from noisesched.runtime.pictures import beside_results, grid, new_figure, save_figure, visible, write_png

NEARLY_NOISE = -3.0  # log-SNR below which a schedule's first level counts as the noise that sampling starts from
TRANSLATIONS = (*conditioning.TRANSLATIONS, "raw")  # "raw": the timesteps of the training table, whatever the levels are


# -- the program


def main(request):
    """The command: of several processes, the first one writes."""
    with cluster.own(request.out) as out:
        run(dataclasses.replace(request, out=out))


def run(request, say=tqdm.write):
    """Carries out a `requests.Sample`; returns {(schedule, way, steps): images}, a way being a method and a guidance.

    Raises ValueError or FileNotFoundError, in one line and before any computation, if the request is invalid.
    """
    # ---- The run and the requested combinations.
    asked = subjects.asked(request, needs_data=False)
    made_from = [schedules.make(text) for text in request.schedule or (asked.schedule,)]
    chosen = {str(schedule): schedule for schedule in made_from}
    levels = {
        (text, n): np.asarray(schedules.levels(schedule, n, request.spacing))
        for (text, schedule), n in itertools.product(chosen.items(), request.steps)
    }
    guides = {text: guidance.parse(text) for text in request.guidance}
    ways = {
        method if text == "none" else f"{method}, {text}": (method, text)
        for method, text in itertools.product(request.method, request.guidance)
    }
    nfe = {
        (way, n): samplers.make(method).network_calls(n)
        for (way, (method, _)), n in itertools.product(ways.items(), request.steps)
    }
    check(asked, request)
    for (text, _), log_snrs in levels.items():
        asked.check_levels(text, log_snrs)
    subject = subjects.loaded(asked, request.parameters, request.checkpoint, say)
    subject = subjects.translated(subject, request.translation)
    for line in outside(subject, levels):
        say(f"note: {line}")

    # ---- One compiled program per (method, number of levels); the schedule is data.
    out = epath.Path(request.out)
    out.mkdir(parents=True, exist_ok=True)  # fails now rather than after the work
    labels = generate.cycled_labels(subject.num_classes, request.num_images, request.labels)
    translation = (request.translation or subject.translation) if subject.table else None
    several = len(levels) * len(ways) > 1
    images = {}
    bar = tqdm(total=sum(nfe.values()) * len(chosen) * request.num_images, unit="call", unit_scale=True, disable=None)
    for way, (method, guide) in ways.items():
        for (text, n), log_snrs in sorted(levels.items(), key=lambda item: item[0][1]):
            begin, calls = time.perf_counter(), nfe[way, n]
            told = generate.told_raw(subject.config, n, request.spacing) if request.translation == "raw" else None
            made = generate.generate(
                subject.network,
                log_snrs,
                request.num_images,
                method,
                seed=request.seed,
                told=told,
                guide=guides[guide],
                labels=labels,
                progress=lambda count, calls=calls: bar.update(count * calls),
            )
            images[text, way, n] = made
            settings = {
                **({"workdir": subject.name} if subject.config else {"denoiser": subject.name}),
                "checkpoint": subject.step,
                "parameters": request.parameters,
                "schedule": text,
                "steps": n,
                "spacing": request.spacing,
                "method": method,
                "guidance": guide,
                "network_calls": calls,
                "log_snrs": [float(level) for level in log_snrs],
                "num_images": request.num_images,
                "seed": request.seed,
                "translation": translation,
                "labels": None if labels is None else labels.tolist(),
                "seconds": round(time.perf_counter() - begin, 3),
            }
            write(out / slug(text, way, n) if several else out, made, settings, say, request.formats)
    bar.close()
    if several:
        with beside_results(say):
            overview(out / "overview.png", images, nfe)
    of = f"step {subject.step}" if subject.config else subject.name
    say(f"{len(images)} x {request.num_images} images of {of} in {out}" + (": see overview.png" if several else ""))
    return images


def check(subject, request):
    """Raises ConfigError if the request is invalid for this network."""
    classes = subject.num_classes
    bad = [label for label in request.labels if not 0 <= label <= classes]
    if request.labels and not classes:
        raise ConfigError(f"labels {list(request.labels)}: this network was trained without classes")
    if bad:
        raise ConfigError(f"label {bad[0]}: choose 0 to {classes - 1}, or {classes} for no label")
    require(
        "png" not in request.formats or subject.pictures,
        "formats png: this network's images are not 8-bit pictures, gray or RGB; give npy or npz",
    )
    subject.check_translation(request.translation, TRANSLATIONS)
    for text in request.guidance:
        subject.check_guidance(text)


def outside(subject, levels):
    """Lines of text on levels that the network was never trained on, or cannot be told."""
    low, high = subject.trained_range
    for (text, n), log_snrs in levels.items():
        name, drawn = spec.shortened(text), spec.shortened(str(subject.schedule))
        beyond = conditioning.outside(log_snrs, (high, low))
        for which, word, edge in ((beyond < 0, "noisier", low), (beyond > 0, "cleaner", high)):
            if which.any():
                yield (
                    f"{name}, {n} steps: {which.sum()} of {n} levels are {word} than training with {drawn} went "
                    f"(log-SNR {edge:.2f}), by up to {np.abs(beyond[which]).max():.2f}"
                )
        if log_snrs[0] > NEARLY_NOISE:
            yield (
                f"{name}, {n} steps: sampling starts from pure noise, but at log-SNR {log_snrs[0]:.2f}, where z would hold "
                f"{diffusion.alpha(log_snrs[0]):.0%} of the image: noisier levels are missing"
            )
        if subject.table and (beyond := conditioning.outside(log_snrs, subject.table)).any():
            yield (
                f"{name}, {n} steps: {np.count_nonzero(beyond)} of {n} levels lie outside the table of timesteps, by up to "
                f"{np.abs(beyond).max():.2f} in log-SNR: there the network is told the nearest timestep"
            )


def slug(*parts):
    """A folder name for a combination of settings; a long or nested spec is cut and gets a checksum of the whole."""

    def short(text):
        name = re.sub(r"[^A-Za-z0-9.=-]+", "_", text).strip("_")
        plain = len(name) <= 80 and len(re.findall(r"[(\[]", text)) <= 1  # then no other spec has this name
        return name if plain else f"{name[:70]}_{zlib.crc32(text.encode()):08x}"

    return "-".join(short(str(part)) for part in parts)


def write(folder, images, settings, say, formats=("npy",)):
    """Writes the images in those formats, settings.json and grid.png (strict JSON: an infinite level is the string "-inf").

    npy: samples.npy, uint8 or float32 [N, H, W, C]; npz: samples.npz, the same array as arr_0; png: images/00000.png and so on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError, ValueError):  # none there, or damaged
        before = read_json(folder / "settings.json")
        others = [
            name for name, value in settings.items() if name not in ("seconds", "log_snrs") and before.get(name) != to_json(value)
        ]
        if others:
            say(f"note: {folder} held samples of another {' and '.join(others[:2])}; they are replaced")
    for name, save in (("npy", np.save), ("npz", np.savez)):
        if name in formats:
            save(array := io.BytesIO(), images)
            with replacing(folder / f"samples.{name}") as file:
                file.write(array.getbuffer())
    if "png" in formats:
        (folder / "images").mkdir(exist_ok=True)
        for number, image in enumerate(images):
            write_png(folder / "images" / f"{number:05d}.png", image)
    write_json(folder / "settings.json", settings)
    with beside_results(say):
        write_png(folder / "grid.png", grid(visible(images), columns=math.ceil(math.sqrt(len(images)))))


def overview(path, images, nfe, columns=6):
    """Writes one picture: a row per schedule and way, a column per number of levels, the same noise throughout.

    images: {(schedule, way, number of levels): [n, H, W, C]}; nfe: {(way, number of levels): network calls}.
    """
    texts, steps = list(dict.fromkeys(k[0] for k in images)), sorted({k[2] for k in images})
    ways = list(dict.fromkeys(way for way, _ in nfe))
    rows = list(itertools.product(texts, ways))
    shown = visible(np.stack([made[:columns] for made in images.values()]))  # together, so that all have one range
    cells = {key: grid(made, columns) for key, made in zip(images, shown, strict=True)}
    mixed = any(len({nfe[way, n] for way in ways}) > 1 for n in steps)  # then a column's cells differ
    height, width = next(iter(cells.values())).shape[:2]
    size = (0.012 * width * len(steps) + 2.4, (0.012 * height + 0.25 * mixed) * len(rows) + 0.9)
    figure = new_figure(*size)
    axes = figure.subplots(len(rows), len(steps), squeeze=False)
    for (row, (text, way)), (column, n) in itertools.product(enumerate(rows), enumerate(steps)):
        axis = axes[row, column]
        cell = cells[text, way, n]
        axis.imshow(cell[..., 0] if cell.shape[-1] == 1 else cell, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
        if row == 0 or mixed:
            axis.set_title(f"{nfe[way, n]} network calls", fontsize=10)
        if column == 0:
            label = "\n".join(textwrap.wrap(spec.shortened(text, 150), 30) + textwrap.wrap(way, 30) * (len(ways) > 1))
            axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
    figure.suptitle("One checkpoint, the same noise: inference schedules (rows) by network calls", fontsize=11)
    figure.tight_layout()
    save_figure(path, figure)
