"""Heat-maps of a report: conditions, or pairs of them, by inference schedules, as the bytes of PNG files."""

import itertools

import numpy as np

from noisesched.comparison import results
from noisesched.comparison import text as wording
from noisesched.comparison.html import number, plus_minus
from noisesched.comparison.plots import plain, png
from noisesched.comparison.results import Task

VERDICTS = {"better": "#9CCBE8", "worse": "#F2B48B", "no difference seen": "#ECEEF0", "one seed": "#ECEEF0"}


def heat_maps(comparison, metric, variant, calls):
    """Conditions by inference schedules, a panel for each of `calls`. One panel alone also says the spread over seeds.

    Darker is worse, on one scale for each panel. A frame marks the schedule of training; hatching, what was refused.
    """
    conditions, names, _ = comparison.of_variant(variant)
    found = {
        n: {
            (row, column): _cell(comparison, condition, Task(schedule, *variant, n), metric)
            for row, condition in enumerate(conditions)
            for column, schedule in enumerate(names)
        }
        for n in calls
    }

    def draw(axis, n, small):
        means = [summary.mean for summary, *_ in found[n].values() if summary]
        shade = _shade(means, results.better(metric))
        for (row, column), (summary, rows, refused, clamped) in found[n].items():
            condition, schedule = conditions[row], names[column]
            text = "" if rows else "·"
            if summary:
                text = number(summary.mean) if small or summary.std is None else plus_minus(summary.mean, summary.std)
                text += "†" * bool(clamped)
            if refused:
                text += ("\n" if text else "") + (f"{refused} refused" if not small else f"{refused} ref.")
            _box(
                axis,
                row,
                column,
                text,
                shade(summary.mean) if summary else "white",
                hatch=bool(refused),
                frame=results.own(condition.drawn, schedule),
            )

    titles = {n: wording.budget(comparison, n, variant) for n in calls}
    groups = [condition.drawn for condition in conditions]
    return _panels(calls, titles, list(map(str, conditions)), names, draw, groups, cell=0.56 if len(calls) > 1 else 1.15)


def difference_maps(comparison, metric, variant, pairs):
    """`pairing.Pair`s by inference schedules, a panel for each number of calls: the mean difference, coloured by verdict.

    Schedules that no pair has in common are left out; each pair must have one.
    """
    _, columns, calls = comparison.of_variant(variant)
    columns = [
        schedule
        for schedule in columns
        if any(wording.meet(comparison, pair, metric, [Task(schedule, *variant, n) for n in calls]) for pair in pairs)
    ]

    def draw(axis, n, small):
        for (row, pair), (column, schedule) in itertools.product(enumerate(pairs), enumerate(columns)):
            values = results.differences(comparison, pair.first, pair.second, Task(schedule, *variant, n), metric)
            if not values:
                _box(axis, row, column, "·", "white")
                continue
            found = results.difference(values.values())
            said = results.verdict(found, metric)
            _box(
                axis,
                row,
                column,
                f"{'+' if found.mean > 0 else ''}{number(found.mean)}",
                VERDICTS[said],
                frame=wording.framed(pair, schedule),
            )

    names = [f"{pair.first} − {pair.second}" for pair in pairs]
    titles = {n: wording.budget(comparison, n, variant) for n in calls}
    groups = [(pair.factor, pair.first.drawn) for pair in pairs]
    return _panels(calls, titles, names, columns, draw, groups, cell=0.56)


def guidance_maps(rows, columns, statistics):
    """Networks by guidances, a panel for each of {title: ({(row, column): Summary or None}, the real images' value)}.

    Darker is farther from the real images.
    """

    def draw(axis, title, small):
        cells, real = statistics[title]
        off = {place: abs(summary.mean - real) for place, summary in cells.items() if summary}
        shade = _shade(list(off.values()), "lower")
        for place, summary in cells.items():
            _box(axis, *place, number(summary.mean) if summary else "·", shade(off[place]) if summary else "white")

    return _panels(list(statistics), {title: title for title in statistics}, rows, columns, draw, [0] * len(rows), cell=0.56)


def _cell(comparison, condition, task, metric):
    rows = comparison.cells.get((condition, task), [])
    return (comparison.summary(condition, task, metric), rows, results.handled(rows, "refused"), results.handled(rows, "clamped"))


def _panels(keys, titles, rows, columns, draw, groups, cell):
    """A panel for each key, filled by `draw(axis, key, small)`; a line is ruled where the group of the rows changes."""
    from matplotlib.figure import Figure

    across = 1 if len(keys) == 1 else max(1, min(len(keys), 3, int(11 / (cell * len(columns) + 0.3))))
    down = -(-len(keys) // across)
    names, below = [plain(name, 34) for name in rows], [plain(name, 26) for name in columns]
    slant = 90 if cell < 1 and any("\n" in name for name in below) else 32  # lines of a slanted name run into the next one
    left = 0.085 * max(len(line) for name in names for line in name.split("\n")) + 0.2
    height = 0.34 if len(keys) == 1 else 0.27
    height = max(height, 0.15 * max(name.count("\n") + 1 for name in names) + 0.05)
    ragged = len(keys) % across > 0  # then two rows of panels have names below
    foot = 0.075 * max(len(line) for name in below for line in name.split("\n")) * (1 if slant == 90 else 0.6)
    size = left + across * (cell * len(columns) + 0.2), down * (height * len(rows) + 0.5) + max((1 + ragged) * foot, 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axis, key in itertools.zip_longest(axes.flat, keys):
        if key is None:
            axis.set_visible(False)
            continue
        draw(axis, key, len(keys) > 1)
        axis.set_title(plain(titles[key], max(7, int(15 * cell * len(columns)))), fontsize=9.5, loc="left")  # 15 letters an inch
        axis.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
        axis.set_yticks(np.arange(len(rows)) + 0.5, names, fontsize=8.5)
        axis.set_xticks(
            np.arange(len(columns)) + 0.5,
            below,
            fontsize=8.5,
            rotation=slant,
            ha="right",
            va="center" if slant == 90 else "top",
            rotation_mode="anchor",
        )
        axis.tick_params(length=0, labelbottom=True)
        axis.spines[:].set_visible(False)
        for row in range(1, len(rows)):
            if groups[row] != groups[row - 1]:
                axis.axhline(row, color="#1c2329", linewidth=0.9)
    for row, column in itertools.product(range(down), range(across)):  # names only under the last panel of a column
        axes[row, column].tick_params(labelbottom=(row + 1) * across + column >= len(keys))
    return png(figure)


def _shade(means, direction):
    """The colour of a mean among others: pale the best, dark the worst; by logarithm where they differ tenfold."""
    import matplotlib

    means = np.asarray(means)
    scale = np.log if len(means) and means.min() > 0 and means.max() > 10 * means.min() else lambda value: value
    low, high = (scale(means.min()), scale(means.max())) if len(means) else (0.0, 1.0)
    colours = matplotlib.colormaps["YlGnBu"]

    def colour(mean):
        place = (scale(mean) - low) / (high - low) if high > low else 0.0
        return colours(0.05 + 0.8 * (place if direction == "lower" else 1 - place))

    return colour


def _box(axis, row, column, text, colour, hatch=False, frame=False):
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    options = {"hatch": "////", "edgecolor": "#9AA3AB", "linewidth": 0} if hatch else {"edgecolor": "white", "linewidth": 1.5}
    axis.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, **options))
    if frame:
        axis.add_patch(Rectangle((column + 0.035, row + 0.07), 0.93, 0.86, fill=False, edgecolor="#D55E00", linewidth=1.3))
    dark = np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) < 0.5
    ground = {"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"} if hatch else None
    axis.text(
        column + 0.5,
        row + 0.5,
        text,
        ha="center",
        va="center",
        fontsize=7.4,
        color="white" if dark else "#15191d",
        bbox=ground,
        linespacing=0.95,
    )
