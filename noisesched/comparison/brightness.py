"""The section of a report on brightness: whether samples span it as the data do, with the black images and the white ones.

It is there where compare.jsonl and reference.json say what their images look like (`noisesched.evaluation.image_stats`). A
network is shown under the schedule that it was trained with, without guidance, at its largest number of calls; a folded table has
all the rest.
"""

import math

from noisesched import spec
from noisesched.comparison import heatmaps, histograms, plots, results
from noisesched.comparison import text as wording
from noisesched.comparison.html import Heading, Items, Picture, Table, Text, number, plus_minus
from noisesched.comparison.text import count, every, listed, sampled, spread, task_columns, task_head
from noisesched.evaluation.image_stats import STATISTICS

ACROSS = 3  # columns of a picture
GUIDED = ("brightness_spread", "contrast", "saturation", "clipped")  # what guidance changes
SAYS = {
    "recovered": "{} recovered",
    "undecided": "{} undecided",
    "too few": "too few {} images",
    "too many": "too many {} images",
}


def section(comparison, metric, pairs):
    """The blocks of the section; none where there is nothing to show."""
    if not (tasks := shown(comparison)):
        return
    yield Heading("Brightness")
    if shares(comparison):
        yield Text(rule(comparison))
    yield Items([*recoveries(comparison, tasks), *extremes(comparison, tasks)])
    variants = list(dict.fromkeys(variant for _, variant in tasks))
    for first in range(0, len(variants), ACROSS):
        chosen = {place: task for place, task in tasks.items() if place[1] in variants[first : first + ACROSS]}
        yield Picture(
            f"brightness_{first // ACROSS + 1}",
            histograms.distributions(comparison, chosen),
            (
                f"How bright images are: outlines, samples, all seeds together; shaded, the real images, both halves together. "
                f"{where(comparison, tasks)} No panel is higher than {histograms.HEADROOM} times the tallest shaded bar."
            ),
        )
    yield table(
        comparison,
        [(condition, task) for (condition, _), task in tasks.items()],
        f"{where(comparison, tasks)} {caption(comparison)}",
    )
    cells = [place for place in comparison.cells if comparison.appearances(*place)]
    if len(cells) > len(tasks):
        yield table(comparison, cells, caption(comparison), f"{every(len(cells), 'cell')}, what the images look like")
    if comparison.appearance["real"].get("brightness_spread") is not None and len(calls(comparison, tasks)) > 1:
        several = " Bands: one standard deviation over seeds." if len(comparison.seeds) > 1 else ""
        yield Picture(
            "brightness_spreads",
            histograms.spreads(comparison, tasks),
            (
                f"The standard deviation of an image's brightness over images, against network calls. {under(comparison, tasks)} "
                f"Gray dashes: the real images.{several}"
            ),
        )
    if guided := guidances(comparison):
        rows, columns, places = grid(comparison, guided)
        yield Picture(
            "guidance",
            heatmaps.guidance_maps(rows, columns, looks(comparison, metric, places)),
            ("Guidance, and what it does to the images: mean over seeds. Darker is farther from the real images."),
        )
        across = {(column, row): place for (row, column), place in places.items()}
        yield Picture(
            "guided_images",
            plots.strips(comparison, columns, rows, across),
            ("The same, guidances downwards: all start from the same noise. Not chosen: the first images of the first seeds."),
        )
        yield guidance_table(comparison, metric, guided)


# -- which cells


def shown(comparison):
    """{(condition, (method, spacing)): the task that stands for it}: under the schedule of training, or else the first.

    At the most calls; of rows that say what their images look like, without guidance, or with it if all have it. {} where
    it is not said of the real images.
    """
    cells = [place for place in comparison.cells if comparison.appearance and comparison.appearances(*place)]
    plain = [place for place in cells if guidance(comparison, place) == "none"]
    found = {}
    for condition, task in plain or cells:
        found.setdefault((condition, (task.method, task.spacing)), []).append(task)
    return {(condition, variant): at_home(condition, tasks) for (condition, variant), tasks in found.items()}


def at_home(condition, tasks):
    """Of tasks, the one under the schedule that a condition was trained with, or else the first one's, at the most calls."""
    same = [task for task in tasks if spec.parse(task.schedule) == spec.parse(condition.drawn)]
    own = same or [task for task in tasks if results.own(condition.drawn, task.schedule)] or tasks
    return max((task for task in own if task.schedule == own[0].schedule), key=lambda task: task.calls)


def calls(comparison, tasks):
    """All numbers of calls at which any of some tasks was done."""
    return {
        n
        for (condition, _), task in tasks.items()
        for n in comparison.calls
        if comparison.appearances(condition, task._replace(calls=n))
    }


def guidance(comparison, place):
    return comparison.cells[place][0].get("guidance", "none")


def guidances(comparison):
    """[(condition, task)] of those that were sampled with guidance, and the same without it, as `at_home` chooses the guided."""
    alike = {}
    for condition, task in comparison.cells:
        if comparison.appearance and comparison.appearances(condition, task):
            key = condition, comparison.cells[condition, task][0]["method"], task.spacing
            alike.setdefault(key, []).append((condition, task))
    found = []
    for (condition, *_), cells in alike.items():
        if guided := [task for place, task in cells if guidance(comparison, (place, task)) != "none"]:
            home = at_home(condition, guided)
            found += [cell for cell in cells if (cell[1].schedule, cell[1].calls) == (home.schedule, home.calls)]
    return found


def grid(comparison, cells):
    """(names of rows: networks, and how they were sampled; names of columns: guidances; {(row, column): cell}) of `guidances`."""
    how = lambda condition, task: (condition, comparison.cells[condition, task][0]["method"], task.spacing)
    rows = list(dict.fromkeys(how(*place) for place in cells))
    columns = list(dict.fromkeys(guidance(comparison, place) for place in cells))
    several = len({row[1:] for row in rows}) > 1
    names = [f"{condition}, {method}, {spacing}" if several else str(condition) for condition, method, spacing in rows]
    return names, columns, {(rows.index(how(*place)), columns.index(guidance(comparison, place))): place for place in cells}


def looks(comparison, metric, places):
    """{title: ({(row, column): Summary}, the real images' value)} of the cells of a `grid`, for `heatmaps.guidance_maps`."""
    real, floor = comparison.appearance["real"], comparison.floor.get(metric, 0.0)
    distances = {at: comparison.summary(*place, metric) for at, place in places.items()}
    found = {f"{metric} (floor {number(floor)})": (distances, floor)}
    for name in GUIDED:
        if real.get(name) is not None:
            cells = {at: comparison.look(*place, name) for at, place in places.items()}
            found[f"{name.replace('_', ' ')} (real images {number(real[name])})"] = cells, real[name]
    return found


def in_grid(comparison):
    """The (method, spacing)s with guidance of which every cell is among the `guidances`: no other picture need show them."""
    shown, found = set(guidances(comparison)), {}
    for place in comparison.cells:
        if guidance(comparison, place) != "none":
            found.setdefault((place[1].method, place[1].spacing), []).append(place)
    return {variant for variant, places in found.items() if shown.issuperset(places)}


# -- black and white


def shares(comparison):
    """{name: (share among the real images, both halves together, its variance)} of the statistics that are such shares."""
    halves, found = [comparison.appearance[half] for half in ("real", "floor")], {}
    counts = [sum(half["histogram"]) for half in halves]
    for name, each in STATISTICS.items():
        if each.relative and all(half.get(name) is not None for half in halves):
            share = sum(n * half[name] for n, half in zip(counts, halves, strict=True)) / sum(counts)
            found[name] = share, binomial_variance(share, sum(counts))
    return found


def binomial_variance(share, n):
    """Of a share of n, not 0 at 0 or 1 (Agresti & Coull 1998): that of a share with two more of either kind."""
    p = (share * n + 2) / (n + 4)
    return p * (1 - p) / (n + 4)


def recovery(comparison, condition, task, name):
    """(how a share of samples compares with that among the real images, a key of SAYS; its Summary), or None if it has no value.

    Alike, if the interval of their difference holds 0: by the binomial error of the real share and the spread over training
    seeds (Welch's t), or of one seed the binomial error of its share. Undecided, if a share of 0 would be alike, too.
    """
    from scipy import stats

    found = comparison.look(condition, task, name)
    if found is None:
        return None
    share, variance = shares(comparison)[name]
    if found.std is None:
        images = sum(sum(each["histogram"]) for each in comparison.appearances(condition, task).values())
        own, freedom = binomial_variance(found.mean, images), math.inf
    else:
        own = found.std**2 / found.n
        freedom = (found.n - 1) * ((variance + own) / own) ** 2 if own else math.inf
    reach = float(stats.t.ppf((1 + results.CONFIDENCE) / 2, freedom)) * math.sqrt(variance + own)
    if abs(found.mean - share) > reach:
        return "too few" if found.mean < share else "too many", found
    return "undecided" if share <= reach else "recovered", found


def outcome(comparison, condition, task):
    """{name: its `recovery`} of all shares that have a value."""
    return {name: said for name in shares(comparison) if (said := recovery(comparison, condition, task, name))}


# -- in words


def rule(comparison):
    found, total = shares(comparison), sum(sum(each["histogram"]) for each in comparison.appearance.values())
    real = listed([f"{share:.1%} {name}" for name, (share, _) in found.items()])
    means = "; ".join(f"{name}: {STATISTICS[name].meaning}" for name in found)
    return (
        f"Of the {total:,} real images, both halves together, {real} ({means}). A network recovers such images if the "
        f"{results.CONFIDENCE:.0%} interval of the difference between its share and that holds 0: by the binomial error of "
        "the real share (with two images more of either kind, Agresti and Coull) and, by Welch's t, the spread over training "
        "seeds; of one seed, by the binomial error of its share. It is undecided where a network that made none would "
        "pass, too."
    )


def recoveries(comparison, tasks):
    """A sentence for each outcome under each (method, spacing): which networks have it, with their shares."""
    found = {}
    for (condition, variant), task in tasks.items():
        if said := outcome(comparison, condition, task):
            values = listed([f"{summary.mean:.1%}" for _, summary in said.values()])
            found.setdefault((variant, phrase(said)), []).append(f"{condition} ({values})")
    for (variant, text), names in found.items():
        yield f"{text[0].upper()}{text[1:]}{sampled(comparison, variant)}: {listed(names)}."


def phrase(said):
    """{"black": ("too few", _), "white": ("too few", _)} -> "too few black and white images"."""
    groups = {}
    for name, (how, _) in said.items():
        groups.setdefault(how, []).append(name)
    return ", ".join(SAYS[how].format(listed(names)) for how, names in groups.items())


def extremes(comparison, tasks):
    """The networks of the least and the greatest spread of brightness."""
    real = comparison.appearance["real"].get("brightness_spread")
    found = [
        (summary, f"{condition}{sampled(comparison, variant)}")
        for (condition, variant), task in tasks.items()
        if (summary := comparison.look(condition, task, "brightness_spread"))
    ]
    if real is not None and found:
        found.sort(key=lambda each: each[0].mean)
        ends = " to ".join(f"{plus_minus(*summary[:2])} ({name})" for summary, name in (found[:1] + found[1:][-1:]))
        yield f"The spread of brightness is {number(real)} among the real images; of samples, {ends}."


def abstract(comparison):
    """The section in a sentence, if there is one."""
    said = {place: outcome(comparison, place[0], task) for place, task in shown(comparison).items()}
    said = {place: {name: how for name, (how, _) in found.items() if how != "undecided"} for place, found in said.items()}
    said = {place: found for place, found in said.items() if found}  # of the others nothing can be told
    if said:
        names = [
            f"{condition}{sampled(comparison, variant)}"
            for (condition, variant), found in said.items()
            if set(found.values()) == {"recovered"}
        ]
        text = (
            f"{listed(shares(comparison))} images come out as often as among the real ones from {len(names)} of "
            f"{count(len(said), 'way')} to train and sample{f': {listed(names)}' if names else ''}."
        )
        yield f"{text[0].upper()}{text[1:]}"


def limits(comparison):
    """What the data do not show of brightness."""
    if not shown(comparison):
        return
    total = sum(sum(each["histogram"]) for each in comparison.appearance.values())
    if found := shares(comparison):
        rare = [
            f"{round(share * total):,} {name}, a share known to ± {2 * math.sqrt(variance):.1%}"
            for name, (share, variance) in found.items()
        ]
        yield (
            f"Among {total:,} real images are {listed(rare)} (two standard errors): a smaller lack or excess is not "
            "seen; of shares that are in truth the data's, about one in twenty is called too small or too large by chance."
            + " One training seed: what another would change is in no verdict on brightness."
            * (len(comparison.seeds) == 1)
        )
        yield (
            "Whether black and white are recovered is said under one schedule and one number of calls for each network, those "
            "of the picture; an image's mean pixel does not say what is to be seen in it."
        )
    silent = sum(not row.get("appearance") and not row["refused"] for row in comparison.rows)
    if silent:
        yield f"{count(silent, 'row')} of an earlier version without a description of the images: in no number on brightness."


# -- tables


def where(comparison, tasks):
    """Under which schedules, and at how many calls."""
    budgets = {task.calls for task in tasks.values()}
    calls = f"at {wording.budget(comparison, *budgets)}" if len(budgets) == 1 else "at its largest number of calls"
    return f"{under(comparison, tasks)[:-1]}, {calls}."


def under(comparison, tasks):
    others = dict.fromkeys(
        f"{condition} under {task.schedule}"
        for (condition, _), task in tasks.items()
        if not results.own(condition.drawn, task.schedule)
    )
    return f"Each network under the schedule that it was trained with{f', but {listed(others)}' if others else ''}."


def caption(comparison):
    means = "; ".join(
        f"{name.replace('_', ' ')}: {each.meaning}"
        for name, each in STATISTICS.items()
        if comparison.appearance["real"].get(name) is not None
    )
    return f"Mean{spread(comparison)}, on the scale of x, from -1 to 1. {means[0].upper()}{means[1:]}."


def table(comparison, cells, caption, folded=""):
    """What samples look like, in a line for each (condition, task), under the same of the real images and of as many others."""
    real, floor = (comparison.appearance[half] for half in ("real", "floor"))
    names = [name for name in STATISTICS if real.get(name) is not None]
    distance = next((name for name in comparison.metrics if results.measure(name) == "brightness"), None)
    head, own = ["condition", *task_head(comparison)], lambda name: STATISTICS[name].relative
    rows = []
    for label, half, apart in (("real images", real, 0.0), ("as many others, the floor", floor, comparison.floor.get(distance))):
        values = [_real(half.get(name), real[name], own(name)) for name in names]
        rows.append([label, *["-"] * (len(head) - 1), *[_number(apart)] * bool(distance), *values])
    for condition, task in cells:
        found = [comparison.look(condition, task, name, over=real[name] if own(name) else 1.0) for name in names]
        found = [comparison.summary(condition, task, distance)] * bool(distance) + found
        rows.append([str(condition), *task_columns(comparison, task), *map(_cell, found)])
    columns = [name.replace("_", " ") + ", over the real images'" * own(name) for name in names]
    return Table(head + [distance] * bool(distance) + columns, rows, caption, folded)


def guidance_table(comparison, metric, cells):
    """What images look like and a distance against guidance, of `guidances`."""
    real = comparison.appearance["real"]
    names = [name for name in GUIDED if real.get(name) is not None]
    rows = [
        ["real images", *["-"] * 5, *(number(real[name]) for name in names), "-"],
        [
            "as many others, the floor",
            *["-"] * 5,
            *(_number(comparison.appearance["floor"].get(name)) for name in names),
            _number(comparison.floor.get(metric)),
        ],
    ]
    for condition, task in cells:
        row = comparison.cells[condition, task][0]
        values = [*(comparison.look(condition, task, name) for name in names), comparison.summary(condition, task, metric)]
        rows.append(
            [
                str(condition),
                task.schedule,
                row["method"],
                task.spacing,
                wording.calls_made(comparison, task),
                guidance(comparison, (condition, task)),
                *map(_cell, values),
            ]
        )
    return Table(
        ["condition", "schedule", "method", "spacing", "calls", "guidance", *(name.replace("_", " ") for name in names), metric],
        rows,
        f"Guidance, and what it does to the images: mean{spread(comparison)}.",
    )


def _real(value, real, relative):
    """A statistic of real images: a share over that of the first half, with the share itself."""
    if value is None or not relative:
        return _number(value)
    return f"{number(value / real)} ({value:.1%})" if real else f"{value:.1%}"


def _number(value):
    return "-" if value is None else number(value)


def _cell(summary):
    return plus_minus(*summary[:2]) if summary else "-"
