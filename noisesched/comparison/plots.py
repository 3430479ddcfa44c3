"""The pictures of a report: each takes a `results.Comparison` and returns the bytes of a PNG file.

In all of them the colour of a line says what the network was told, and its dashes how training drew its levels; where these do
not tell the conditions apart, each condition has its own colour.
"""

import io
import itertools
import math
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure  # not pyplot, which keeps figures and looks for a display
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from noisesched import schedules
from noisesched.comparison import pairs as pairing
from noisesched.comparison.results import LOOK, PREVIEW, How, Task, better, own
from noisesched.comparison.text import budget, mean_and_spread, number
from noisesched.evaluation import image_stats
from noisesched.runtime.pictures import COLOURS

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, _ = COLOURS
INK, GRAY, PALE = "#1c2329", "#66707a", "#C9D1D8"
TELLING = {  # (told, translation) -> colour
    ("log_snr", ""): BLUE,
    ("sigma", ""): SKY,
    ("none", ""): GRAY,
    ("timestep", "nearest"): ORANGE,
    ("timestep", "interpolated"): GREEN,
    ("timestep", "raw"): RED,
    ("timestep", ""): PURPLE,
}
VERDICTS = {"better": "#9CCBE8", "worse": "#F2B48B", "no difference seen": "#ECEEF0", "one seed": "#ECEEF0"}
DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.5)), (0, (6, 2, 1, 2)))
MARKERS = "osD^v<>P"
SPREAD = "brightness_spread"  # the statistic written into histograms of brightness
STRIP = 4  # images of a preview that are shown
HEADROOM = 8  # the highest that a histogram of brightness goes, in units of the tallest bar of the real images
NOISE_LEFT = "log-SNR: noise left, clean right"


def png(figure, dpi=150):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def plain(text, width=None):
    """A text for matplotlib to draw literally: "$" begins no formula, a leading "_" hides no label. `width`: of its lines."""
    text = " ".join(str(text).split())
    text = "\n".join(textwrap.wrap(text, width)) if width else text
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def styles(comparison):
    """{condition: the options of its line}"""
    conditions = comparison.conditions
    drawn = list(dict.fromkeys(condition.drawn for condition in conditions))
    by_meaning = len({each[1:] for each in conditions}) == len(conditions) and len(drawn) <= len(DASHES)
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
            "zorder": 3 - index / len(conditions),  # the first on top
        }
    return found


# -- lines


def line_and_band(axis, x, mean, spread, **line):
    """A line with a band of one spread to each side; NaN: none there."""
    axis.plot(x, mean, **line)
    mean, spread = np.asarray(mean), np.nan_to_num(np.asarray(spread, float))
    axis.fill_between(x, mean - spread, mean + spread, color=line["color"], alpha=0.12, linewidth=0)


def against_calls(comparison, column, panels, real, label):
    """A number against network calls: a panel for each {title: [cell]}, a line for each condition, dashes at the value of real
    images (None: no dashes)."""
    summary, options = comparison.summary(column), styles(comparison)
    figure, axes = _axes(len(panels), 3.6, 2.75, sharey=True)
    seen = [] if real is None else [real]
    for axis, (title, cells) in zip(axes, panels.items(), strict=True):
        made = {cell: int(comparison.rows(cell)["network_calls"].iloc[0]) for cell in cells if cell in summary}
        for condition in comparison.conditions:
            points = sorted((n, *summary[cell][:2]) for cell, n in made.items() if cell[0] == condition)
            if points:
                calls, mean, spread = np.array(points).T
                line_and_band(axis, calls, mean, spread, **options[condition])
                seen += mean.tolist()
        if real is not None:
            axis.axhline(real, color=GRAY, linestyle="--", linewidth=1)
        axis.set_title(plain(title, 42), fontsize=10, loc="left")
        axis.set_xscale("log")
        ticks = sorted(set(made.values()))
        axis.set_xticks(ticks, map(str, ticks))
        axis.xaxis.set_minor_locator(NullLocator())
    if seen and min(seen) > 0 and max(seen) > 10 * min(seen):
        axes[0].set_yscale("log")
        axes[0].set_ylim(min(seen) / 1.2, max(seen) * 1.2)
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(seen) < 1000 * min(seen) else (1,)))
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes[0].yaxis.set_minor_formatter(NullFormatter())
    elif seen and min(seen) >= 0:
        axes[0].set_ylim(0, None)
    for axis in axes[-axes[0].get_gridspec().ncols :]:  # the lowest of each column
        axis.set_xlabel("network calls", fontsize=9)
    figure.supylabel(plain(label), fontsize=10)
    there = {cell[0] for cells in panels.values() for cell in cells}
    _legend(figure, options, [condition for condition in comparison.conditions if condition in there])
    return png(figure)


def profiles(comparison):
    """The error of v and of eps against log-SNR: the mean over seeds, with a band of one standard deviation."""
    options = {each: line | {"marker": ""} for each, line in styles(comparison).items()}
    there = comparison.networks[comparison.networks["reason"].isna()]
    chosen = {each.run: each for each in reversed(comparison.conditions) if each.run in set(there["run"])}
    figure, axes = _axes(2, 5.4, 3.7)
    for axis, kind in zip(axes, ("v", "eps"), strict=True):
        grids = there["profile.log_snr"].map(tuple)  # several in a run only if its seeds were evaluated at different levels
        for (run, log_snr), rows in there.groupby(["run", grids], sort=False):
            if run in chosen:
                errors = np.array(rows[f"profile.{kind}"].tolist())
                spread = errors.std(0, ddof=1) if len(errors) > 1 else np.zeros(len(log_snr))
                line_and_band(axis, log_snr, errors.mean(0), spread, **options[chosen[run]])
        axis.set_title(f"squared error of {kind}, per dimension", fontsize=10, loc="left")
        axis.set(xlabel=NOISE_LEFT, **({"yscale": "log"} if kind == "eps" else {"ylim": (0, None)}))
    _legend(figure, options, [each for each in comparison.conditions if each in chosen.values()], lambda each: each.run)
    return png(figure)


def _axes(count, width, height, sharey=False):
    """A figure with `count` axes, three to a row at most."""
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


def _legend(figure, options, conditions, name=str):
    figure.legend(
        [Line2D([], [], **options[condition]) for condition in conditions],
        [plain(name(condition), 34) for condition in conditions],
        loc="outside lower center",
        ncols=4 if len(conditions) > 6 else 3,
        frameon=False,
        fontsize=8.5,
        handlelength=3.4,
    )


# -- levels, brightness and images


def levels(comparison, how, n):
    """A row of ticks for each inference schedule, below the density of the levels of training: a panel for each density."""
    names, drawn = comparison.grid(how).schedules, list(dict.fromkeys(each.drawn for each in comparison.grid(how).conditions))
    cells = {task.schedule: (condition, task) for condition, task in comparison.cells if task == Task(task.schedule, *how, n)}
    placed = {name: comparison.levels(cells.get(name)) for name in names}
    finite = np.concatenate([values[np.isfinite(values)] for values in placed.values()])
    low, high = max(finite.min(initial=-10) - 1, -20), min(finite.max(initial=10) + 1, 20)
    seen = max(run["train_steps"] * run["batch_size"] for run in comparison.runs.values()) or 10**6  # draws of the longest run
    figure, axes = _axes(len(drawn), 4.2, 0.24 * len(names) + 2.0, sharey=True)
    for axis, text in zip(axes, drawn, strict=True):
        first, last = _density(axis, text, seen)
        for row, name in enumerate(names):
            values, height = placed[name], -0.7 - row
            inside = (values >= max(last, low) - 1e-3) & (values <= first + 1e-3)
            for chosen, colour in ((inside, INK), (~inside & (values >= low) & (values <= high), RED)):
                axis.plot(values[chosen], np.full(chosen.sum(), height), "|", color=colour, markersize=8, markeredgewidth=1)
            if (values < low).any():
                axis.plot([low + 0.3], [height], "<", color=INK if last < low else RED, markersize=5)
        ticks = range(5 * math.ceil(low / 5), math.floor(high) + 1, 5)
        axis.set(xlim=(low, high), ylim=(-len(names) - 0.3, 2.6), xlabel=NOISE_LEFT, xticks=ticks)
        axis.set_yticks([1.1, *(-0.7 - row for row in range(len(names)))], ["density drawn", *(plain(x, 26) for x in names)])
        axis.set_title(plain(f"training drew {text}", 52), fontsize=9.5, loc="left")
        axis.grid(visible=False, axis="y")
    return png(figure)


def _density(axis, drawn, seen):
    """Draws the density of the levels that training drew; returns its ends: (about the cleanest of `seen` draws, noisiest)."""
    try:
        schedule = schedules.make(drawn)
    except ValueError:  # its file is gone, so no level is marked as outside
        _note(axis, 0.5, 1.1, "cannot be read", transform=axis.get_yaxis_transform())
        return math.inf, -math.inf
    count = schedule.table.num_steps if schedule.table else 1000
    u = (np.arange(count) + (1.0 if schedule.table else 0.5)) / count
    log_snr = np.asarray(schedule(u), np.float64)
    density = 1 / np.asarray(schedules.rate(schedule, u), np.float64)
    if count < 200:  # a table so coarse that single levels are visible
        axis.vlines(log_snr, 0, 2.2 * density / density.max(), color=SKY, alpha=0.8, linewidth=1.2)
    else:
        axis.fill_between(log_snr, 0, 2.2 * density / density.max(), color=SKY, alpha=0.45, linewidth=0)
    return tuple(float(edge) for edge in schedule(np.array([1.0 / seen, 1.0])))


def _note(axis, x, y, text, **options):
    axis.text(x, y, text, ha="center", va="center", fontsize=8, color=GRAY, **options)


def distributions(comparison, cells):
    """Histograms of an image's mean pixel: a row for each condition, a column for each How, of {(condition, how): cell}.

    All seeds of a cell as one outline, over the real images of both halves, shaded.
    """
    rows, columns = (list(dict.fromkeys(found)) for found in zip(*cells, strict=True))
    edges, options, spreads = np.linspace(-1, 1, image_stats.BINS + 1), styles(comparison), comparison.summary(LOOK(SPREAD))
    of = lambda counts: np.sum(counts, axis=0, dtype=np.float64) / np.sum(counts)
    data = of([each["histogram"] for each in comparison.appearance.values()])
    sampled = {place: of(comparison.rows(cell)[LOOK("histogram")].dropna().tolist()) for place, cell in cells.items()}
    tallest = max(values.max() for values in (data, *sampled.values()))
    names = [plain(condition, 26) for condition in rows]
    size = max(_width(names) + 0.5 + 3.1 * len(columns), 5), 0.78 * len(rows) + 1.1
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.02, hspace=0.0)
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    for (row, condition), (column, how) in itertools.product(enumerate(rows), enumerate(columns)):
        axis = axes[row, column]
        axis.stairs(data, edges, fill=True, color=PALE)
        if (condition, how) in sampled:
            axis.stairs(sampled[condition, how], edges, color=options[condition]["color"], linewidth=1.5)
            if spread := spreads.get(cells[condition, how]):
                place = {"transform": axis.transAxes, "ha": "right", "va": "top"}
                axis.text(1, 1, f"spread {spread.mean:.2f}", fontsize=8, color=INK, **place)
        else:
            _note(axis, 0, 0.5, "·", transform=axis.get_xaxis_transform())
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(labelsize=8, length=2)
        axis.set(xlim=(-1.02, 1.02), ylim=(0, 1.08 * min(tallest, HEADROOM * data.max())), yticks=[])
        axis.set_xticks([-1, -0.5, 0, 0.5, 1], ["-1\nblack", "-0.5", "0", "0.5", "1\nwhite"])
        if column == 0:
            axis.set_ylabel(names[row], rotation=0, ha="right", va="center", fontsize=8.5, labelpad=6)
        if row == 0:
            axis.set_title(plain(how, 40), fontsize=9.5, loc="left")
    figure.supxlabel("mean pixel of an image", fontsize=9)
    return png(figure)


def strips(comparison, rows, columns, places):
    """Images from the same noise, from previews/ of the first seeds; rows, columns: names; places: {(row, column): its cell}."""
    shown, missing = {}, {}
    for place in itertools.product(range(len(rows)), range(len(columns))):
        found = comparison.rows(places.get(place))
        if not len(found):  # not asked for, or not yet
            missing[place] = "·"
            continue
        try:
            shown[place] = preview(comparison.folder, found.iloc[0])
        except FileNotFoundError:
            missing[place] = "refused" if isinstance(found.iloc[0]["refused"], str) else "not there"
        except OSError:
            missing[place] = "cannot be read"
    height, width = next(iter(shown.values())).shape[:2] if shown else (1, STRIP)
    pitch = np.array([height * 1.12, width * 1.04])
    size = 1.75 * len(columns) + 0.1 * max(map(len, rows)) + 0.3, 1.75 * height / width * 1.08 * len(rows) + 0.8
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    for place, strip in shown.items():
        top, left = pitch * place
        axis.imshow(strip, extent=(left, left + width, top + height, top), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    for place, text in missing.items():
        top, left = pitch * place
        _note(axis, left + width / 2, top + height / 2, text)
    axis.set(xlim=(0, pitch[1] * len(columns)), ylim=(pitch[0] * len(rows), -0.2 * height), aspect="equal")
    axis.set_xticks(np.arange(len(columns)) * pitch[1] + width / 2, [plain(name, 24) for name in columns], fontsize=9)
    axis.set_yticks(np.arange(len(rows)) * pitch[0] + height / 2, [plain(name, 40) for name in rows], fontsize=8.5)
    axis.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axis.set_frame_on(False)
    return png(figure)


def preview(folder, row):
    """The first images of a row's preview, uint8 [H, W] or [H, W, 3].

    Raises FileNotFoundError if there is none, OSError if it is damaged, ValueError if its path leads elsewhere.
    """
    from PIL import Image

    if not isinstance(row["preview"], str):
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
    return pixels[:, : math.ceil(pixels.shape[1] * STRIP / PREVIEW)]


# -- heat maps


def heat_maps(comparison, metric, how, calls):
    """Conditions by inference schedules, a panel for each of `calls`. A single panel also gives the spread over seeds.

    Darker is worse, on one scale for each panel. A frame marks the schedule of training; hatching, what was refused.
    """
    grid, summary = comparison.grid(how), comparison.summary(metric)
    conditions, names = grid.conditions, grid.schedules

    mean_of = mean_and_spread if len(calls) == 1 else lambda found: number(found.mean)

    def draw(axis, n):
        cells = {(condition, schedule): (condition, Task(schedule, *how, n)) for condition in conditions for schedule in names}
        shade = _shade([summary[cell].mean for cell in cells.values() if cell in summary], better(metric))
        for (row, condition), (column, schedule) in itertools.product(enumerate(conditions), enumerate(names)):
            cell = cells[condition, schedule]
            rows, found = comparison.rows(cell), summary.get(cell)
            texts = [mean_of(found) + "†" * bool(rows["clamped"].any())] if found else []
            refused = rows["refused"].notna().sum()
            texts += [f"{refused} {'ref.' if len(calls) > 1 else 'refused'}"] * bool(refused)
            colour = shade(found.mean) if found else "white"
            frame = own(condition.drawn, schedule)
            _box(axis, row, column, "\n".join(texts) if len(rows) else "·", colour, hatch=bool(refused), frame=frame)

    titles = {n: budget(comparison, n, how) for n in calls}
    return _maps(titles, list(map(str, conditions)), names, draw, [condition.drawn for condition in conditions], len(calls) == 1)


def difference_maps(comparison, metric, how, pairs):
    """`pairs.Pair`s by inference schedules, a panel for each number of calls: the mean difference, coloured by verdict.

    Pairs and schedules for which there is no difference are left out; None if there is none at all.
    """
    found = pairing.judged(pairing.differences(comparison, pairs, metric), metric)
    found = {index: row for index, row in zip(found.index, found.itertuples(), strict=True) if How(*index[2:5]) == how}
    chosen = sorted({index[0] for index in found})
    names = [schedule for schedule in comparison.grid(how).schedules if any(schedule == index[1] for index in found)]
    if not found:
        return None

    def draw(axis, n):
        for (row, pair), (column, schedule) in itertools.product(enumerate(chosen), enumerate(names)):
            if cell := found.get((pair, schedule, *how, n)):
                text = f"{'+' if cell.mean > 0 else ''}{number(cell.mean)}"
                _box(axis, row, column, text, VERDICTS[cell.verdict], frame=pairs[pair].trained(schedule))
            else:
                _box(axis, row, column, "·", "white")

    titles = {n: budget(comparison, n, how) for n in comparison.grid(how).calls}
    rows = [f"{pairs[pair].first} − {pairs[pair].second}" for pair in chosen]
    return _maps(titles, rows, names, draw, [(pairs[pair].factor, pairs[pair].first.drawn) for pair in chosen])


def guidance_maps(rows, columns, statistics):
    """Networks by guidances, a panel for each of {title: ({(row, column): Summary or None}, the real images' value)}.

    Darker is farther from the real images.
    """

    def draw(axis, title):
        cells, real = statistics[title]
        off = {place: abs(summary.mean - real) for place, summary in cells.items() if summary}
        shade = _shade(list(off.values()), "lower")
        for place, summary in cells.items():
            _box(axis, *place, number(summary.mean) if summary else "·", shade(off[place]) if summary else "white")

    return _maps({title: title for title in statistics}, rows, columns, draw, [0] * len(rows))


def _maps(titles, rows, columns, draw, groups, large=False):
    """A panel for each {key: title}, filled by `draw(axis, key)`, with a line wherever the group of the rows changes."""
    cell = 1.15 if large else 0.56
    across = 1 if len(titles) == 1 else max(1, min(len(titles), 3, int(11 / (cell * len(columns) + 0.3))))
    down = -(-len(titles) // across)
    names, below = [plain(name, 34) for name in rows], [plain(name, 26) for name in columns]
    slant = (
        90 if not large and any("\n" in name for name in below) else 32
    )  # slanted, a name of several lines would run into the next
    height = max(0.34 if len(titles) == 1 else 0.27, 0.15 * max(name.count("\n") + 1 for name in names) + 0.05)
    ragged = len(titles) % across > 0  # then the names stand below two rows of panels
    foot = (_width(below) - 0.2) * (0.88 if slant == 90 else 0.53)
    size = _width(names) + across * (cell * len(columns) + 0.2), down * (height * len(rows) + 0.5) + max((1 + ragged) * foot, 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axis, (key, title) in itertools.zip_longest(axes.flat, titles.items(), fillvalue=(None, None)):
        if key is None:
            axis.set_visible(False)
            continue
        draw(axis, key)
        axis.set_title(plain(title, max(7, int(15 * cell * len(columns)))), fontsize=9.5, loc="left")  # 15 letters an inch
        axis.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
        axis.set_yticks(np.arange(len(rows)) + 0.5, names, fontsize=8.5)
        turned = {"rotation": slant, "ha": "right", "va": "center" if slant == 90 else "top", "rotation_mode": "anchor"}
        axis.set_xticks(np.arange(len(columns)) + 0.5, below, fontsize=8.5, **turned)
        axis.spines[:].set_visible(False)
        for row in range(1, len(rows)):
            if groups[row] != groups[row - 1]:
                axis.axhline(row, color=INK, linewidth=0.9)
    for place, axis in enumerate(axes.flat):  # names only under the last panel of a column
        axis.tick_params(length=0, labelbottom=place + across >= len(titles))
    return png(figure)


def _width(names):
    """The width of the longest line of names, in inches, with a margin."""
    return 0.085 * max(len(line) for name in names for line in name.split("\n")) + 0.2


def _shade(means, direction):
    """The colour of a mean among others: pale the best, dark the worst; by logarithm where they differ tenfold."""
    scale = np.log if len(means) and min(means) > 0 and max(means) > 10 * min(means) else lambda value: value
    low, high = (scale(min(means)), scale(max(means))) if len(means) else (0.0, 1.0)

    def colour(mean):
        place = (scale(mean) - low) / (high - low) if high > low else 0.0
        return matplotlib.colormaps["YlGnBu"](0.05 + 0.8 * (place if direction == "lower" else 1 - place))

    return colour


def _box(axis, row, column, text, colour, hatch=False, frame=False):
    options = {"hatch": "////", "edgecolor": "#9AA3AB", "linewidth": 0} if hatch else {"edgecolor": "white", "linewidth": 1.5}
    axis.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, **options))
    if frame:
        axis.add_patch(Rectangle((column + 0.035, row + 0.07), 0.93, 0.86, fill=False, edgecolor=RED, linewidth=1.3))
    ink = "white" if np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) < 0.5 else "#15191d"
    ground = {"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"} if hatch else None
    place = {"ha": "center", "va": "center", "linespacing": 0.95}
    axis.text(column + 0.5, row + 0.5, text, fontsize=7.4, color=ink, bbox=ground, **place)
