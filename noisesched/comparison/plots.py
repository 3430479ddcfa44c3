"""The pictures of a report, but for its heat-maps: each takes a `findings.Comparison` and returns the bytes of a PNG file.

Throughout, the colour of a line says what the network was told, and its dashes say how training drew its levels; where that would
not tell the conditions apart, each has a colour of its own. The colours are Okabe and Ito's, told apart by the colour-blind too.
"""

import io
import itertools
import math
import textwrap
from pathlib import Path

import numpy as np

from noisesched import schedules
from noisesched.comparison import results
from noisesched.comparison.results import Task

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
TELLING = {  # (told, translation) -> colour
    ("log_snr", None): "#0072B2",
    ("sigma", None): "#56B4E9",
    ("none", None): "#7A828A",
    ("timestep", "nearest"): "#E69F00",
    ("timestep", "interpolated"): "#009E73",
    ("timestep", "raw"): "#D55E00",
    ("timestep", None): "#CC79A7",
}
DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.5)), (0, (6, 2, 1, 2)))
MARKERS = "osD^v<>P"
STRIP = 4  # of a preview's images, those shown


def png(figure, dpi=150):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def plain(text, width=None):
    """A text that is drawn as it is: "$" begins no formula, and a leading "_" hides no label. Broken into lines of `width`."""
    text = " ".join(str(text).split())
    text = "\n".join(textwrap.wrap(text, width)) if width else text
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def styles(comparison):
    """{condition: the options of its line}"""
    conditions = comparison.conditions
    drawn = list(dict.fromkeys(condition.drawn for condition in conditions))
    by_meaning = len({(c.drawn, c.told, c.translation) for c in conditions}) == len(conditions) and len(drawn) <= len(DASHES)
    found = {}
    for index, condition in enumerate(conditions):
        colour = TELLING.get((condition.told, condition.translation)) if by_meaning else None
        place = drawn.index(condition.drawn) if by_meaning else index // len(COLOURS)
        found[condition] = {
            "color": colour or COLOURS[index % len(COLOURS)],
            "linestyle": DASHES[place % len(DASHES)],
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 3.6,
            "linewidth": 1.5,
            "zorder": 3 - index / len(conditions),
        }  # the first on top
    return found


# -- lines


def quality(comparison, metric, variant):
    """The metric against network calls: a panel for each inference schedule, a line for each condition, a band of one standard
    deviation over seeds, dashes at the floor."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    names, options = comparison.of_variant(variant)[1], styles(comparison)
    made = sorted({n for calls in comparison.calls for n in results.network_calls(comparison, calls, variant)})
    figure, axes = panels(len(names), 3.6, 2.75, sharey=True)
    seen = [comparison.floor[metric]] if metric in comparison.floor else []
    for axis, schedule in zip(axes, names, strict=True):
        for condition in comparison.conditions:
            points = []
            for n in comparison.calls:
                task = Task(schedule, *variant, n)
                if summary := comparison.summary(condition, task, metric):
                    points.append((comparison.cells[condition, task][0]["network_calls"], summary.mean, summary.std or 0.0))
            if points:
                calls, mean, spread = np.array(points).T
                axis.plot(calls, mean, **options[condition])
                axis.fill_between(calls, mean - spread, mean + spread, color=options[condition]["color"], alpha=0.1, linewidth=0)
                seen += mean.tolist()
        if metric in comparison.floor:
            axis.axhline(comparison.floor[metric], color="#66707a", linestyle="--", linewidth=1)
        axis.set_title(plain(schedule, 42), fontsize=10, loc="left")
        calls_axis(axis, made)
    if seen and min(seen) > 0 and max(seen) > 10 * min(seen):
        axes[0].set_yscale("log")
        axes[0].set_ylim(min(seen) / 1.2, max(seen) * 1.2)
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(seen) < 1000 * min(seen) else (1,)))
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes[0].yaxis.set_minor_formatter(NullFormatter())
    for axis in axes[-axes[0].get_gridspec().ncols :]:  # under which there is no other
        axis.set_xlabel("network calls", fontsize=9)
    figure.supylabel(plain(metric), fontsize=10)
    legend(figure, comparison, comparison.of_variant(variant)[0])
    return png(figure)


def profiles(comparison):
    """The error of v and of eps against log-SNR: the mean over seeds, with a band of one standard deviation."""
    runs = [run for run in comparison.runs if comparison.evaluations[run]]
    chosen = {run: next((c for c in comparison.conditions if c.run == run), None) for run in runs}
    chosen = {run: condition for run, condition in chosen.items() if condition}
    options = styles(comparison)
    figure, axes = panels(2, 5.4, 3.7)
    for axis, kind in zip(axes, ("v", "eps"), strict=True):
        for run, condition in chosen.items():
            line = options[condition] | {"marker": "", "linewidth": 1.6}
            by_grid = {}
            for evaluation in comparison.evaluations[run].values():
                by_grid.setdefault(tuple(evaluation["profile"]["log_snr"]), []).append(evaluation["profile"][kind])
            for log_snr, errors in by_grid.items():  # several only if the seeds were evaluated at different levels
                mean = np.mean(errors, axis=0)
                axis.plot(log_snr, mean, **line)
                if len(errors) > 1:
                    spread = np.std(errors, axis=0, ddof=1)
                    axis.fill_between(log_snr, mean - spread, mean + spread, color=line["color"], alpha=0.15, linewidth=0)
        axis.set_title(f"squared error of {kind}, per dimension", fontsize=10, loc="left")
        axis.set(xlabel="log-SNR: noise left, clean right", **({"yscale": "log"} if kind == "eps" else {"ylim": (0, None)}))
    legend(figure, comparison, list(chosen.values()), lines_only=True)
    return png(figure)


def panels(count, width, height, sharey=False):
    """A figure with `count` axes, three to a row at most."""
    from matplotlib.figure import Figure

    across = min(count, 3 if count != 4 else 2)
    down = -(-count // across)
    figure = Figure(figsize=(max(across * width, 7.2), down * height + 1.2), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=sharey).ravel()
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8.5)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def calls_axis(axis, made):
    """Numbers of network calls along the bottom: by logarithm, a tick at each of `made`."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axis.set_xscale("log")
    axis.set_xticks(made, map(str, made))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())


def legend(figure, comparison, conditions, lines_only=False):
    from matplotlib.lines import Line2D

    options = styles(comparison)
    handles = [Line2D([], [], **options[condition] | ({"marker": ""} if lines_only else {})) for condition in conditions]
    names = [plain(condition.run if lines_only else condition, 34) for condition in conditions]
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=4 if len(names) > 6 else 3,
        frameon=False,
        fontsize=8.5,
        handlelength=3.4,
    )


# -- levels and images


def levels(comparison, variant, n):
    """Over the density of the levels that training drew, a row of ticks for each inference schedule: a panel for each density."""
    conditions, names, _ = comparison.of_variant(variant)
    drawn = list(dict.fromkeys(condition.drawn for condition in conditions))
    placed = {name: results.levels(comparison, Task(name, *variant, n)) for name in names}
    finite = np.concatenate([values[np.isfinite(values)] for values in placed.values()])
    low, high = max(finite.min(initial=-10) - 1, -20), min(finite.max(initial=10) + 1, 20)
    seen = max(run["train_steps"] * run["batch_size"] for run in comparison.runs.values())  # the cleanest: about one draw in all
    figure, axes = panels(len(drawn), 4.2, 0.24 * len(names) + 2.0, sharey=True)
    for axis, text in zip(axes, drawn, strict=True):
        first, last = _density(axis, text, seen)
        for row, name in enumerate(names):
            values, height = placed[name], -0.7 - row
            inside = (values >= max(last, low) - 1e-3) & (values <= first + 1e-3)
            for chosen, colour in ((inside, "#1c2329"), (~inside & (values >= low) & (values <= high), "#D55E00")):
                axis.plot(values[chosen], np.full(chosen.sum(), height), "|", color=colour, markersize=8, markeredgewidth=1)
            if (values < low).any():
                axis.plot([low + 0.3], [height], "<", color="#1c2329" if last < low else "#D55E00", markersize=5)
        axis.set(
            xlim=(low, high),
            ylim=(-len(names) - 0.3, 2.6),
            xlabel="log-SNR: noise left, clean right",
            xticks=range(5 * math.ceil(low / 5), math.floor(high) + 1, 5),
        )
        axis.set_yticks([1.1, *(-0.7 - row for row in range(len(names)))], ["density drawn", *(plain(x, 26) for x in names)])
        axis.set_title(plain(f"training drew {text}", 52), fontsize=9.5, loc="left")
        axis.grid(visible=False, axis="y")
    return png(figure)


def _density(axis, drawn, seen):
    """Draws the density of the levels that training drew; returns their ends: (cleanest of `seen` draws, noisiest)."""
    try:
        schedule = schedules.make(drawn)
    except ValueError:  # its file is gone: no level can be said to lie outside
        axis.text(
            0.5,
            1.1,
            "not there to be read",
            transform=axis.get_yaxis_transform(),
            ha="center",
            va="center",
            fontsize=8,
            color="#66707a",
        )
        return math.inf, -math.inf
    count = schedule.table.num_steps if schedule.table else 1000
    u = (np.arange(count) + (1.0 if schedule.table else 0.5)) / count
    log_snr = np.asarray(schedule(u), np.float64)
    density = 1 / np.asarray(schedules.rate(schedule, u), np.float64)
    if count < 200:  # a table so coarse that its levels are seen apart
        axis.vlines(log_snr, 0, 2.2 * density / density.max(), color="#56B4E9", alpha=0.8, linewidth=1.2)
    else:
        axis.fill_between(log_snr, 0, 2.2 * density / density.max(), color="#56B4E9", alpha=0.45, linewidth=0)
    first, last = (float(edge) for edge in schedule(np.array([1.0 / seen, 1.0])))
    return first, last


def strips(comparison, rows, columns, places):
    """Images from the same noise, from previews/ of the first seeds; rows, columns: names; places: {(row, column): its cell}."""
    from matplotlib.figure import Figure

    shown, missing = {}, {}
    for place in itertools.product(range(len(rows)), range(len(columns))):
        found = sorted(comparison.cells.get(places.get(place), []), key=lambda row: (row["train_seed"], row["seed"]))
        try:
            shown[place] = preview(comparison.folder, found[0])
        except IndexError:  # no row: not asked for, or not yet
            missing[place] = "·"
        except FileNotFoundError:
            missing[place] = "refused" if found[0]["refused"] else "not there"
        except OSError:
            missing[place] = "cannot be read"
    height, width = next(iter(shown.values())).shape[:2] if shown else (1, STRIP)
    pitch = np.array([height * 1.12, width * 1.04])
    left = 0.1 * max(map(len, rows)) + 0.3
    figure = Figure(figsize=(1.75 * len(columns) + left, 1.75 * height / width * 1.08 * len(rows) + 0.8), layout="constrained")
    axis = figure.subplots()
    for (row, column), strip in shown.items():
        top, left = pitch * (row, column)
        axis.imshow(strip, extent=(left, left + width, top + height, top), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    for (row, column), text in missing.items():
        axis.text(
            *(pitch * (row, column) + (height / 2, width / 2))[::-1], text, ha="center", va="center", fontsize=8, color="#66707a"
        )
    axis.set(xlim=(0, pitch[1] * len(columns)), ylim=(pitch[0] * len(rows), -0.2 * height), aspect="equal")
    axis.set_xticks(np.arange(len(columns)) * pitch[1] + width / 2, [plain(name, 24) for name in columns], fontsize=9)
    axis.set_yticks(np.arange(len(rows)) * pitch[0] + height / 2, [plain(name, 40) for name in rows], fontsize=8.5)
    axis.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axis.set_frame_on(False)
    return png(figure)


def preview(folder, row):
    """The first images of a row's preview, uint8 [H, W] or [H, W, 3].

    Raises FileNotFoundError if there is none, OSError if it is damaged, ValueError if it would be from elsewhere.
    """
    from PIL import Image

    if not row["preview"]:
        raise FileNotFoundError(f"{Path(folder) / 'compare.jsonl'}: the row {row['key']} has no preview")
    path = Path(folder) / "previews" / Path(row["preview"]).name
    if row["preview"] != f"previews/{path.name}":
        raise ValueError(f"{Path(folder) / 'compare.jsonl'}: the preview {row['preview']!r} is not in previews/")
    try:
        with Image.open(path, formats=("PNG",)) as image:
            pixels = np.asarray(image.convert("L" if image.mode in ("L", "1") else "RGB"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: compare.jsonl says that it is there") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise OSError(f"{path} is no picture that can be read: {error}") from None
    shown = math.ceil(pixels.shape[1] * STRIP / 8)
    return pixels[:, :shown]
