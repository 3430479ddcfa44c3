"""The command `diagnose`: what is wrong with a config and the levels it will be sampled at, before a GPU hour is spent.

`checks` defines what is examined and how it is graded. Here the config and the data set are read and the findings are printed,
and on request also written as `diagnosis.json` and a picture, `diagnosis.png`. A built-in data set or a folder of images is
prepared as for training; without data, the diagnosis says what it assumes instead.
"""

import dataclasses
import math
import sys
import textwrap
from pathlib import Path

import numpy as np

from noisesched import spec
from noisesched.data import pipeline
from noisesched.diagnosis import checks, leak, scheduler_file
from noisesched.runs import config as configuration
from noisesched.runs import subject
from noisesched.runtime.files import write_json
from noisesched.runtime.pictures import COLOURS, NOISE_LEFT, beside_results, new_figure, save_figure, tidy_axes

IMAGES = 2048  # at most so many images of the training split are read, the first ones
VALUES = 2**27  # at most so many pixel values are read, and noised: a few seconds
NOISES = 16  # draws per image, if the images are few or small
ASSUMED = 0.07  # Var(m): CIFAR-10's (JPEG re-encoded, 50,000 images) is 0.066, 0.063 and 0.093 for red, green and blue
LOG_SNR = (-16.0, 16.0)  # the range of the plots
TRAINED = "trained"  # as an inference schedule: the training schedule
ROWS = (COLOURS[0], COLOURS[2], COLOURS[4], COLOURS[6])  # of inferences


# -- the program


def main(request):
    """The command: ends with exit status 1 if there is a fault."""
    if request.scheduler and not (request.config or request.workdir):
        raise configuration.ConfigError(
            "--scheduler needs --config=FILE or --workdir=DIR too, for what that file does not say: the images, their size, the "
            "weighting"
        )
    if bool(request.config) == bool(request.workdir):
        raise configuration.ConfigError("give either --config=FILE or --workdir=DIR, which is to be diagnosed")
    contrary = [f"--{flag}" for flag in ("schedule", "spacing") if getattr(request, flag)]
    contrary += [
        word
        for word in (f"--config.{name}" for name in scheduler_file.SAID)
        if any(override.partition("=")[0] == word for override in request.overrides)
    ]
    if request.scheduler and contrary:
        raise configuration.ConfigError(
            f"{contrary[0]} and --scheduler contradict each other: that file says schedule, prediction and levels; leave out one "
            "of them"
        )
    if request.config:
        config = configuration.load(request.config, request.overrides)
    else:
        config = subject.of_workdir(request.workdir).config
    found = run(
        config,
        request.config or request.workdir,
        request.schedule,
        request.steps,
        request.spacing or "trailing",
        request.out,
        request.scheduler,
    )
    if found[0].severity == "fault":
        sys.exit(1)


def run(config, name, specs=(), steps=(), spacing="trailing", out="", scheduler="", say=print):
    """Diagnoses a checked Config, called `name`, and says what was found; returns the `checks.Finding`s, the worst first.

    specs, steps  inference schedules ("trained": the training schedule) and numbers of levels, in all combinations; default:
                  those of the config's previews
    out           a folder for diagnosis.json and diagnosis.png, or ""
    scheduler     the path of a scheduler_config.json, or "": its schedule, prediction and levels replace the config's, `specs`
                  and `spacing`

    Raises ValueError or OSError, in one line, if the request is invalid; a data set that is missing is only a finding.
    """
    counts = tuple(dict.fromkeys(steps or (config.preview.steps,)))
    given = scheduler_file.read(scheduler) if scheduler else None
    inferences = scheduler_file.inferences(given, counts) if given else _inferences(config, specs, counts, spacing)
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)  # fails now rather than after the work
    images, reason, repair = training_images(config.data)
    plan = own = plan_of(config, ASSUMED if images is None else leak.mean_variance(images))
    plan, measured = scheduler_file.plan_of(given, own) if given else own, None
    if images is not None:
        measured = leak.measured(
            images, plan.last, noises=int(np.clip(VALUES // images.size, 1, NOISES)), noise_offset=config.noise_offset
        )
    if given:
        found = scheduler_file.examine(given, own, counts, measured)
        name, sources = f"{scheduler} with {name}", list(scheduler_file.sources(given, scheduler, name, counts, found))
    else:
        found, sources = checks.examine(plan, inferences, measured), []
    if images is None:
        found = sorted([*found, not_there(reason, repair)], key=lambda finding: checks.SEVERITIES.index(finding.severity))
    for line in text(name, plan, found, 0 if images is None else len(images), sources):
        say(line)
    if out:
        write_json(Path(out) / "diagnosis.json", as_json(name, plan, inferences, found, images is None, sources))
        with beside_results(say):
            plot(Path(out) / "diagnosis.png", plan, inferences, measured)
        say(f"written to {out}: diagnosis.json, diagnosis.png")
    return found


def _inferences(config, specs, counts, spacing):
    # Previews under the training schedule follow it if it changes: "trained" is resolved when a config is read.
    own, preview = str(config.schedule), str(config.preview.schedule)
    words = specs or (TRAINED if preview == own else preview,)
    return [
        checks.inference(own if word == TRAINED else word, n, spacing, follows=word == TRAINED)
        for word in dict.fromkeys(words)
        for n in counts
    ]


def plan_of(config, variance):
    """The `checks.Plan` of a Config, for images of that Var(m)."""
    return checks.Plan(
        config.schedule,
        config.model.prediction,
        config.weighting,
        config.data.image_size,
        variance,
        config.training.num_steps * config.training.batch_size,
        config.conditioning.table,
        config.noise_offset,
    )


def training_images(given):
    """(the first images of a Config's training split, [n, H, W, C], "", ""), or (None, why there are none, the repair)."""
    wanted = {"image_folder": "FOLDER", "huggingface": "FOLDER", "arrays": "FILE"}.get(given.name)
    repair = f"--config.data.path={wanted}" if wanted else "--config.data.data_dir=DIR"
    if wanted and not given.path:
        return None, f"no {wanted.lower()} of images is given", repair
    try:
        split = pipeline.open_config(given)
    except FileNotFoundError as error:
        return None, str(error), repair
    count = min(len(split), IMAGES, max(VALUES // (given.channels * given.image_size**2), 4))
    if count < 4:
        larger = f"--config.data.split={given.split.partition('[')[0]}" if "[" in given.split else repair
        return None, f"{split.name} has {len(split)} images, too few to measure", larger
    return pipeline.examples(split, count)["image"], "", ""


def not_there(reason, repair):
    """The finding on a missing data set."""
    return checks.Finding(
        "warning",
        "data",
        f"Var(m) = {ASSUMED} is assumed, that of CIFAR-10's photographs: {reason}",
        "leaks grow with the variance of the images' means, which is not known here",
        repair,
        {"variance": ASSUMED},
    )


# -- text and JSON


def text(name, plan, found, num_images, sources=()):
    """The diagnosis as lines of text: what was examined, its `sources`, then each finding with its repair."""
    counts = {severity: sum(finding.severity == severity for finding in found) for severity in checks.SEVERITIES}
    plural = {severity: severity + "s" * (severity != "fine" and count != 1) for severity, count in counts.items()}
    yield f"{name}: {', '.join(f'{count} {plural[severity]}' for severity, count in counts.items())}"
    known = f"measured on {num_images:,} training images" if num_images else "assumed"
    yield from wrapped(
        f"trained on {spec.shortened(str(plan.schedule), 120)}, {plan.prediction}-prediction, weighting "
        f"{plan.weighting}, {plan.image_size}x{plan.image_size} pixels; Var(m) = {plan.variance:.3g} "
        f"of the images' means ({known})"
    )
    for sentence in sources:
        yield from wrapped(sentence)
    for finding in found:
        yield ""
        yield f"{finding.severity}: {finding.about}"
        yield from wrapped(f"{finding.measured}.")
        yield from wrapped(f"{finding.why[0].upper()}{finding.why[1:]}.")
        if finding.repair:
            yield f"  repair: {finding.repair}"  # not wrapped, so that it can be copied
        if finding.file_repair:
            yield f"  in the file: {finding.file_repair}"


def wrapped(text):
    return textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def as_json(name, plan, inferences, found, assumed, sources=()):
    """The content of diagnosis.json."""
    levels, weight = shares(plan)
    sampled = [{"schedule": str(each.schedule), "spacing": each.spacing, "log_snrs": each.log_snrs} for each in inferences]
    return {
        "name": name,
        "taken": list(sources),
        "severity": found[0].severity,
        "findings": [dataclasses.asdict(finding) for finding in found],
        "setting": dataclasses.asdict(plan)
        | {
            "schedule": str(plan.schedule),
            "weighting": str(plan.weighting),
            "variance_assumed": assumed,
            "table": str(plan.table) if plan.table else None,
        },
        "inference": sampled,
        "log_snr_edges": checks.EDGES.tolist(),
        "levels": levels,
        "weight": weight,
    }


def shares(plan):
    """`plan.shares` as lists, or (None, None) where the weight is not defined, which is a finding."""
    try:
        return tuple(share.tolist() for share in plan.shares)
    except ValueError:
        return None, None


# -- the picture


def plot(path, plan, inferences, measured):
    """Writes the picture. Left: training's levels and weight, below them the levels of inference; right: R^2 against log-SNR."""
    below = 0.9 + 0.17 * (3 + len(inferences))  # inches for the legends, below the panels, where long names fit
    figure = new_figure(13, 4.6 + below)
    left, right = figure.subplots(
        1, 2, gridspec_kw={"left": 0.02, "right": 0.985, "wspace": 0.12, "top": 0.94, "bottom": below / (4.6 + below)}
    )
    _plot_shares(left, plan, inferences)
    _plot_r2(right, plan, inferences, measured)
    tidy_axes((left, right))
    for panel in (left, right):
        panel.set(xlabel=NOISE_LEFT, xlim=LOG_SNR)
        panel.legend(fontsize=8, loc="upper left", bbox_to_anchor=(-0.02, -0.11), frameon=False)
    save_figure(path, figure)


def _plot_shares(panel, plan, inferences):
    found, width = shares(plan), np.diff(checks.EDGES)
    tallest = 1e-9
    if found[0]:
        levels, weight = (np.array(share)[1:-1] / width for share in found)
        tallest = max(levels.max(), weight.max())
        panel.stairs(
            levels,
            checks.EDGES,
            fill=True,
            color=COLOURS[5],
            alpha=0.4,
            label=f"levels drawn: {spec.shortened(str(plan.schedule), 80)}",
        )
        panel.stairs(
            weight,
            checks.EDGES,
            color=COLOURS[3],
            linewidth=1.6,
            label=f"weight of the loss: {plan.weighting} on {plan.prediction}",
        )
    low, high = plan.trained
    rows = [-0.06 * tallest * (row + 1) for row in range(len(inferences))]
    for row, each in enumerate(inferences):
        colour = ROWS[row % len(ROWS)]
        panel.plot([], [], "|", color=colour, markersize=7, label=f"inference {row + 1}: {_name(each)}")
        log_snrs = np.array(each.log_snrs)
        inside = (log_snrs >= low - checks.SAME) & (log_snrs <= high + checks.SAME)
        at = np.full(len(log_snrs), rows[row])
        shown = np.clip(log_snrs, *LOG_SNR)
        mark = {"linestyle": "", "clip_on": False}
        panel.plot(shown[inside], at[inside], "|", color=colour, markersize=7, **mark)
        panel.plot(shown[~inside], at[~inside], "x", color="red", markersize=6, **mark)
        if log_snrs[0] < LOG_SNR[0]:
            panel.plot(LOG_SNR[0], at[0], "<", color=colour if inside[0] else "red", markersize=7, **mark)
    panel.set(
        title="Training per unit of log-SNR; below, levels of inference",
        yticks=[],
        ylim=(-0.06 * tallest * (len(rows) + 1), 1.05 * tallest),
    )
    panel.plot([], [], "x", color="red", linestyle="", label="levels outside the trained range")


def _plot_r2(panel, plan, inferences, measured):
    log_snr = np.linspace(*LOG_SNR, 400)
    panel.plot(log_snr, plan.r2(log_snr), color="black", label=f"{plan.image_size}x{plan.image_size} pixels")
    bottom = 1e-6  # where R^2 = 0 is shown
    for level, word in ((checks.FAULT, "fault"), (checks.WARNING, "warning")):
        panel.axhline(level, color="red" if word == "fault" else COLOURS[1], linewidth=1, linestyle="--")
        panel.annotate(f"{word} above {level:g}", (LOG_SNR[1], level), (0, 2), textcoords="offset points", ha="right", fontsize=8)
    panel.axvline(math.log(checks.SNR), color="red", linewidth=1, linestyle="--")
    panel.annotate(
        f"fault right of SNR {checks.SNR:g}", (math.log(checks.SNR), 2 * bottom), (4, 0), textcoords="offset points", fontsize=8
    )
    marks = [("end of training", plan.last, COLOURS[3], "o")]
    marks += [
        (f"start of inference {row + 1}", each.log_snrs[0], ROWS[row % len(ROWS)], "|") for row, each in enumerate(inferences)
    ]
    for label, level, colour, marker in marks:
        # An end left of the picture, zero SNR included, is shown as an arrowhead at its edge.
        shape, r2 = "<" if marker == "o" and level < LOG_SNR[0] else marker, float(plan.r2(level))
        panel.plot(
            max(level, LOG_SNR[0]),
            max(r2, bottom),
            shape,
            color=colour,
            linestyle="",
            clip_on=False,
            zorder=3,
            markersize=8 if marker == "o" else 10,
            label=f"{label}: {level:.2f}, R² = {r2:.2g}",
        )
    if measured and plan.last > LOG_SNR[0]:
        panel.errorbar(
            plan.last,
            max(measured[0], bottom),
            2 * measured[1],
            color=COLOURS[3],
            capsize=4,
            zorder=2,
            label=f"measured: {measured[0]:.2g} ± {measured[1]:.2g}",
        )
    panel.set(title="$R^2$ of predicting the image's mean from z", yscale="log", ylim=(bottom, 1.5))


def _name(inference):
    """An `Inference`'s name for a legend."""
    return f"{spec.shortened(str(inference.schedule), 60)}, {len(inference.log_snrs)} steps, {inference.spacing}"
