"""Pictures of brightness in a report: its distribution over that of the data, and its spread against network calls, as the bytes
of PNG files. A network has one colour in both."""

import itertools

import numpy as np

from noisesched.comparison import plots
from noisesched.comparison.plots import plain
from noisesched.evaluation import image_stats

DATA = "#C9D1D8"
HEADROOM = 8  # how many times the data's tallest bar a panel can show


def distributions(comparison, tasks):
    """Histograms of an image's mean pixel: a row for each condition, a column for each (method, spacing).

    tasks: {(condition, (method, spacing)): task}. All seeds of a task as one outline, over the real images of both
    halves, shaded.
    """
    from matplotlib.figure import Figure

    rows, columns = (list(dict.fromkeys(found)) for found in zip(*tasks, strict=True))
    edges, options = np.linspace(-1, 1, image_stats.BINS + 1), plots.styles(comparison)
    data = _shares(comparison.appearance.values())
    shares = {place: _shares(comparison.appearances(place[0], task).values()) for place, task in tasks.items()}
    tallest = max(values.max() for values in (data, *shares.values()))
    names = [plain(condition, 26) for condition in rows]
    left = 0.085 * max(len(line) for name in names for line in name.split("\n")) + 0.7
    figure = Figure(figsize=(max(left + 3.1 * len(columns), 5), 0.78 * len(rows) + 1.1), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.02, hspace=0.0)
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    for (row, condition), (column, variant) in itertools.product(enumerate(rows), enumerate(columns)):
        axis = axes[row, column]
        axis.stairs(data, edges, fill=True, color=DATA)
        if (condition, variant) in shares:
            axis.stairs(shares[condition, variant], edges, color=options[condition]["color"], linewidth=1.5)
            if spread := comparison.look(condition, tasks[condition, variant], "brightness_spread"):
                axis.text(
                    1, 1, f"spread {spread.mean:.2f}", transform=axis.transAxes, ha="right", va="top", fontsize=8, color="#1c2329"
                )
        else:
            axis.text(0, 0.5, "·", transform=axis.get_xaxis_transform(), ha="center", va="center", color="#66707a")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(labelsize=8, length=2)
        axis.set(xlim=(-1.02, 1.02), ylim=(0, 1.08 * min(tallest, HEADROOM * data.max())), yticks=[])
        axis.set_xticks([-1, -0.5, 0, 0.5, 1], ["-1\nblack", "-0.5", "0", "0.5", "1\nwhite"])
        if column == 0:
            axis.set_ylabel(names[row], rotation=0, ha="right", va="center", fontsize=8.5, labelpad=6)
        if row == 0:
            axis.set_title(plain(f"{variant[0]}, {variant[1]} spacing", 40), fontsize=9.5, loc="left")
    figure.supxlabel("mean pixel of an image", fontsize=9)
    return plots.png(figure)


def spreads(comparison, tasks):
    """The spread of brightness against network calls: a panel for each (method, spacing), a line for each condition, a band of
    one standard deviation over training seeds, dashes at the data's own. `tasks`: as `distributions` takes them."""
    columns, options = list(dict.fromkeys(variant for _, variant in tasks)), plots.styles(comparison)
    figure, axes = plots.panels(len(columns), 3.6, 2.9, sharey=True)
    real = comparison.appearance["real"]["brightness_spread"]
    for axis, variant in zip(axes, columns, strict=True):
        made = set()
        for condition in comparison.conditions:
            points = []
            for n in comparison.calls if (condition, variant) in tasks else ():
                task = tasks[condition, variant]._replace(calls=n)
                if summary := comparison.look(condition, task, "brightness_spread"):
                    points.append((comparison.cells[condition, task][0]["network_calls"], summary.mean, summary.std or 0.0))
            if points:
                calls, mean, spread = np.array(points).T
                axis.plot(calls, mean, **options[condition])
                axis.fill_between(calls, mean - spread, mean + spread, color=options[condition]["color"], alpha=0.1, linewidth=0)
                made.update(calls.astype(int).tolist())
        axis.axhline(real, color="#66707a", linestyle="--", linewidth=1)
        axis.set_title(plain(f"{variant[0]}, {variant[1]} spacing", 42), fontsize=10, loc="left")
        plots.calls_axis(axis, sorted(made))
        axis.set(xlabel="network calls", ylim=(0, None))
    figure.supylabel("spread of brightness", fontsize=10)
    plots.legend(figure, comparison, list(dict.fromkeys(condition for condition, _ in tasks)))
    return plots.png(figure)


def _shares(descriptions):
    """The histograms of `appearance.describe` as one, which adds up to 1: float64 [BINS]."""
    counts = np.sum([each["histogram"] for each in descriptions], axis=0, dtype=np.float64)
    return counts / counts.sum()
