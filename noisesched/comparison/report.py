"""The report: what `compare` left in a folder, told as a short paper, in one HTML page and in Markdown.

An abstract of numbers, tables, plots, and what the data do not show; nothing here knows how a comparison came out. The numbers
are in `results` and `pairs`, the sentences in `text`, the pictures in `plots`; `html` writes the document.
"""

import importlib.metadata
import platform
import shlex
from pathlib import Path

import numpy as np
from tqdm import tqdm

from noisesched import spec
from noisesched.comparison import html, plots, results, text
from noisesched.comparison import pairs as pairing
from noisesched.comparison.results import LOOK, Task, better
from noisesched.comparison.text import bands, budget, count, every, listed, number, plus_minus, sampled, spread, task_columns
from noisesched.evaluation.image_stats import STATISTICS

PACKAGES = ("noisesched", "jax", "flax", "numpy", "pandas", "scipy", "matplotlib")
ACROSS = 3  # columns of a picture of brightness
GUIDED = (plots.SPREAD, "contrast", "saturation", "clipped")  # what guidance changes


def run(directory, out="", say=tqdm.write):
    """Writes report.html, report.md and report_pictures/ into `out` (or directory/report); returns the path of the page.

    Raises FileNotFoundError or ValueError, in one line, for what is missing or damaged in the comparison's `directory`.
    """
    comparison = results.read(directory)
    rows, asked = len(comparison.frame), len(comparison.config["keys"])
    if not comparison.metrics:
        reason = comparison.frame["refused"].iloc[0]
        raise ValueError(f"{comparison.folder}: none of its {rows} rows has a number, all were refused: {reason}")
    command = shlex.join(["noisesched", "report", f"--compare={directory}", *([f"--out={out}"] if out else [])])
    folder = Path(out or comparison.folder / "report")
    html.write(compose(comparison, command), folder, "report")
    say(f"{rows} of {asked} rows: see {folder / 'report.html'}")
    return folder / "report.html"


def compose(comparison, command):
    """The blocks of the report."""
    metric, pairs = comparison.metrics[0], pairing.pairs(comparison)
    there = set(pairing.differences(comparison, pairs, metric).index.get_level_values("pair"))
    pairs = tuple(pair for number, pair in enumerate(pairs) if number in there)  # others never met under one schedule
    shown = home(comparison)
    parts = (heading, compared, quality, brightness, paired, losses, placed, images, numbers, costs)
    blocks = [block for part in parts for block in part(comparison, metric, pairs, shown)]
    unseen = text.limits(comparison, metric, pairs, shown.values())
    return [*blocks, *made_by(comparison, command), html.heading("What the data do not show"), html.items(unseen)]


# -- the parts, in order


def heading(comparison, metric, pairs, shown):
    yield html.title("Noise schedules compared", text.question(comparison, pairs))
    told = text.extremes(comparison, metric), text.recovered(comparison, shown.values()), text.answers(comparison, metric, pairs)
    yield html.abstract([text.scope(comparison), *(line for lines in told for line in lines)])


def compared(comparison, metric, pairs, shown):
    yield html.heading("What was compared")
    columns = ("schedule", "conditioning.kind", "conditioning.table", "training.num_steps", "training.batch_size")
    varying = {name: texts for name, texts in pairing.varying(comparison).items() if name not in columns}
    yield html.table(
        [
            {
                "run": name,
                "levels drawn in training": run["drawn"],
                "told": text.told(comparison, name),
                "table of timesteps": run.get("table") or "-",
                "parameters": f"{run['num_parameters']:,}",
                "steps x batch": f"{run['train_steps']:,} x {run['batch_size']}",
                "seeds": str(len(run["workdirs"])),
            }
            | ({"differs in": ", ".join(f"{setting} {texts[name]}" for setting, texts in varying.items())} if varying else {})
            for name, run in comparison.runs.items()
        ],
        text.meanings(comparison),
    )
    config, about, frame = comparison.config["comparison"], comparison.about, comparison.frame
    folded = "What all runs have in common" if len(comparison.runs) > 1 else "The run's settings"
    rows = [{"setting": name, "value": value} for name, value in pairing.common(comparison).items()]
    yield html.table(rows, "Without those that leave the trained network as it is.", folded)
    sampling = {
        "inference schedules": listed(comparison.schedules),
        "sampled with": "; ".join(map(str, comparison.hows)),
        "network calls": ", ".join(budget(comparison, calls).replace(" network calls", "") for calls in comparison.calls),
        "noise": f"{count(frame['seed'].nunique(), 'seed')}; image i of a seed starts from the same noise throughout",
        "parameters": config.get("parameters", ""),
        "real images": f"{text.flat(about | {'extractors': None})}; chosen at random",
    } | {f"extractor {name}": text.flat(what) for name, what in about.get("extractors", {}).items()}
    yield html.table([{"sampling": name, "": value} for name, value in sampling.items() if value])
    floors = {name: number(comparison.floor[name]) if name in comparison.floor else "-" for name in comparison.metrics}
    yield html.table(
        [{"number": name, "better": better(name), "floor": floor} for name, floor in floors.items()],
        "The floor is between those real images and as many others: what cannot be told from real images lies there.",
    )


def quality(comparison, metric, pairs, shown):
    yield html.heading("Quality")
    frame = comparison.frame
    marks = " Hatched: rows refused, with their number." if frame["refused"].notna().any() else ""
    marks += " †: levels outside the table of timesteps, told as its nearest end." if frame["clamped"].any() else ""
    for which, how in enumerate(pictured(comparison), 1):
        _, schedules, calls, _ = comparison.of(how)
        where = sampled(comparison, how)
        means = f"mean{spread(comparison)}" if len(calls) == 1 else "means, each number of calls on its own scale"
        yield html.picture(
            f"heat_map_{which}",
            plots.heat_maps(comparison, metric, how, calls),
            f"{metric}{where}: {means}. Darker is worse. Framed: the schedule of training.{marks}",
        )
        panels = {
            name: [cell for cell in comparison.cells if (cell[1].schedule, cell[1].how) == (name, how)] for name in schedules
        }
        yield html.picture(
            f"quality_{which}",
            plots.against_calls(comparison, metric, panels, comparison.floor.get(metric), metric),
            f"{metric} against network calls{where}, a panel for each inference schedule.{bands(comparison)}"
            + " Gray dashes: the floor." * (metric in comparison.floor),
        )


def brightness(comparison, metric, pairs, shown):
    """Whether samples span brightness as the data do, black images and white ones too; where the rows say how images look."""
    if not shown:
        return
    yield html.heading("Brightness")
    if text.shares(comparison):
        yield html.paragraph(text.recovery_rule(comparison))
    others = dict.fromkeys(
        f"{condition} under {task.schedule}"
        for condition, task in shown.values()
        if not results.own(condition.drawn, task.schedule)
    )
    under = f"Each network under the schedule that it was trained with{f', but {listed(others)}' if others else ''}"
    budgets = {task.calls for _, task in shown.values()}
    where = f"{under}, at {budget(comparison, *budgets) if len(budgets) == 1 else 'its largest number of calls'}."
    hows = list(dict.fromkeys(how for _, how in shown))
    for first in range(0, len(hows), ACROSS):
        chosen = {place: cell for place, cell in shown.items() if place[1] in hows[first : first + ACROSS]}
        yield html.picture(
            f"brightness_{first // ACROSS + 1}",
            plots.distributions(comparison, chosen),
            f"How bright images are: outlines, samples, all seeds together; shaded, the real images, both halves together. "
            f"{where} No panel is higher than {plots.HEADROOM} times the tallest shaded bar.",
        )
    means = [f"{_words(name)}: {STATISTICS[name].meaning}" for name in _known(comparison, STATISTICS)]
    distances = [name for name in comparison.metrics if results.measure(name) == "brightness"]
    caption = f"Mean{spread(comparison)}, on the scale of x, from -1 to 1. {'; '.join(means).capitalize()}."
    yield html.table(_looks(comparison, list(shown.values()), distances), f"{where} {caption}")
    cells = [cell for cell in comparison.cells if comparison.rows(cell)[LOOK("histogram")].notna().any()]
    if len(cells) > len(shown):
        yield html.table(_looks(comparison, cells, distances), caption, f"{every(len(cells), 'cell')}, what the images look like")
    alike = [(cell, (cell[0], cell[1].how)) for cell in cells]
    panels = {
        str(how): [cell for cell, place in alike if place[1] == how and cell[1].schedule == shown[place][1].schedule]
        for how in hows
        if (alike := [(cell, place) for cell, place in alike if place in shown])
    }
    real = comparison.appearance["real"].get(plots.SPREAD)
    if real is not None and len({cell[1].calls for panel in panels.values() for cell in panel}) > 1:
        yield html.picture(
            "brightness_spreads",
            plots.against_calls(comparison, LOOK(plots.SPREAD), panels, real, "spread of brightness"),
            f"The standard deviation of an image's brightness over images, against network calls. {under}. Gray dashes: the real "
            f"images.{bands(comparison)}",
        )
    if guided := guidances(comparison):
        yield from _guidance(comparison, metric, guided)


def _guidance(comparison, metric, guided):
    real, floor, names = comparison.appearance["real"], comparison.floor.get(metric, 0.0), _known(comparison, GUIDED)
    how = {cell: (cell[0], *(cell[1].how._replace(guidance="none"))) for cell in guided}
    rows, columns = list(dict.fromkeys(how.values())), list(dict.fromkeys(task.guidance for _, task in guided))
    several = len({row[1:] for row in rows}) > 1
    labels = [f"{row[0]}, {row[1]}, {row[3]}" if several else str(row[0]) for row in rows]
    places = {(rows.index(how[cell]), columns.index(cell[1].guidance)): cell for cell in guided}
    of = lambda column: {at: comparison.summary(column).get(cell) for at, cell in places.items()}
    panels = {f"{metric} (floor {number(floor)})": (of(metric), floor)}
    panels |= {f"{_words(name)} (real images {number(real[name])})": (of(LOOK(name)), real[name]) for name in names}
    yield html.picture(
        "guidance",
        plots.guidance_maps(labels, columns, panels),
        "Guidance, and what it does to the images: mean over seeds. Darker is farther from the real images.",
    )
    yield html.picture(
        "guided_images",
        plots.strips(comparison, columns, labels, {(column, row): cell for (row, column), cell in places.items()}),
        "The same, guidances downwards: all start from the same noise. Not chosen: the first images of the first seeds.",
    )
    yield html.table(_looks(comparison, guided, [metric]), f"Guidance, and what it does to the images: mean{spread(comparison)}.")


def _looks(comparison, cells, distances):
    """What samples look like, and some distances, a line for each cell under those of the real images and of as many others."""
    halves, place = comparison.appearance, ["condition", *task_columns(comparison, cells[0][1])]
    names, shares = _known(comparison, STATISTICS), text.shares(comparison)
    title = lambda name: _words(name) + ", over the real images'" * STATISTICS[name].relative

    def of_real(half, name):
        """A statistic of real images: a share over that of the first half, with the share itself."""
        value, real = halves[half].get(name), halves["real"][name]
        if value is None or not STATISTICS[name].relative:
            return _number(value)
        return f"{number(value / real)} ({value:.1%})" if real else f"{value:.1%}"

    def of_samples(cell, name):
        found, real = comparison.summary(LOOK(name)).get(cell), halves["real"][name] if STATISTICS[name].relative else 1.0
        return plus_minus(found.mean / real, found.std / real) if found and real else "-"

    def verdict(cell, name):
        said = text.recovery(comparison, cell, name)
        return f"{comparison.summary(LOOK(name))[cell].mean:.1%}, {said}" if said else "-"

    rows = [
        dict.fromkeys(place, "-")
        | {"condition": label}
        | {name: _number(floor.get(name)) for name in distances}
        | {f"{_words(name)} images": "-" for name in shares}
        | {title(name): of_real(half, name) for name in names}
        for label, half, floor in (("real images", "real", {}), ("as many others, the floor", "floor", comparison.floor))
    ]
    return rows + [
        {"condition": str(cell[0]), **task_columns(comparison, cell[1])}
        | {name: _cell(comparison, cell, name) for name in distances}
        | {f"{_words(name)} images": verdict(cell, name) for name in shares}
        | {title(name): of_samples(cell, name) for name in names}
        for cell in cells
    ]


def paired(comparison, metric, pairs, shown):
    yield html.heading("Seed by seed" + (f": {listed(text.factors(pairs))}" if pairs else ""))
    if not pairs:
        yield html.paragraph(text.unpaired(comparison))
        return
    yield html.paragraph(text.rule(comparison, pairs))
    differences = pairing.differences(comparison, pairs, metric)
    asked = pairing.questions(pairs)
    heads = ("first told", "second told") if pairs[0].factor == pairing.CONDITIONING else ("first has", "second has")
    caption = (
        f"Differences of {metric}, first minus second, averaged over schedules and numbers of calls: the largest weigh most."
    )
    groups = {tuple(text.named(factor, value) for value in values): chosen for (factor, *values), chosen in asked.items()}
    yield html.table(_averages(differences, pairs, groups, heads, metric), caption)
    for which, how in enumerate(comparison.hows, 1):
        if (drawn := plots.difference_maps(comparison, metric, how, pairing.foremost(pairs))) is not None:
            yield html.picture(
                f"differences_{which}",
                drawn,
                f"Mean difference of {metric}{sampled(comparison, how)}, first minus second. Blue: the first is better; orange: "
                "worse; gray: no difference seen (or one seed). Framed: a schedule of training.",
            )
    if len(pairs) > len(asked):
        groups = {(str(pair.first), str(pair.second)): [pair] for pair in pairs}
        yield html.table(_averages(differences, pairs, groups, ("first", "second"), metric), caption, "Each pair by itself")
    names = lambda pair: {"first": str(pair.first), "second": str(pair.second)}
    if len(comparison.metrics) > 1:
        said = {
            name: pairing.judged(pairing.differences(comparison, pairs, name), name)["verdict"] for name in comparison.metrics
        }
        tally = lambda verdicts: " / ".join(str((verdicts == kind).sum()) for kind in pairing.VERDICTS[:3])
        yield html.table(
            [
                names(pair) | {name: tally(pairing.of(verdicts, pairs, [pair])) for name, verdicts in said.items()}
                for pair in pairs
            ],
            "Verdicts over all cells: better / worse / no difference seen.",
            "By every number, not the main one alone",
        )
    yield html.table(
        [
            names(pairs[found.Index[0]]) | task_columns(comparison, Task(*found.Index[1:])) | text.interval(found)
            for found in pairing.judged(differences, metric).itertuples()
        ],
        folded=f"{every(len(differences), 'difference')} of {metric}, cell by cell",
    )


def _averages(differences, pairs, groups, heads, metric):
    """The rows of {(first, second): pairs}: their average differences under the schedule of training, and under others."""
    rows = []
    for names, group in groups.items():
        for trained, where in ((True, "of training"), (False, "others")):
            cells = pairing.under(pairing.of(differences, pairs, group), pairs, trained)
            mean, full = pairing.averaged(cells)
            if mean is not None:
                (found,) = pairing.judged(mean, metric).itertuples()
                place = {"schedules": where, "cells": f"{full} of {len(cells)}"}
                rows.append(dict(zip(heads, names, strict=True)) | place | text.interval(found))
    return rows


def losses(comparison, metric, pairs, shown):
    yield html.heading("Likelihood and loss at every level")
    networks = comparison.networks
    missing = networks[networks["reason"].notna()].groupby("reason", sort=False)
    done = networks["reason"].isna().sum()
    if not done and len(missing) == 1:
        yield html.paragraph(f"No run has been evaluated: {networks['reason'].iloc[0]}.")
        return
    if done:
        several = networks.loc[networks["reason"].isna(), "run"].duplicated().any()
        band = ", mean over seeds with one standard deviation" if several else ""
        yield html.picture(
            "profiles",
            plots.profiles(comparison),
            f"Squared error of the network at every log-SNR, on {text.evaluated(comparison)}{band}; {done} of "
            f"{count(len(networks), 'network')}."
            + " What a network is told of timesteps here is as its own config says."
            * any(run["told"] == "timestep" for run in comparison.runs.values()),
        )
        yield from _bits(comparison)
    if len(missing):
        names = {reason: "; ".join(f"{row.run}, seed {row.train_seed}" for row in rows.itertuples()) for reason, rows in missing}
        yield html.items([f"Not evaluated: {which} ({reason})." for reason, which in names.items()])


def _bits(comparison):
    """The tables of bits per dimension, and of what networks know at their last trained level and answer at zero SNR."""
    networks = comparison.networks[comparison.networks["reason"].isna()]
    bits, last = [], []
    for name, rows in networks.groupby("run", sort=False):
        of = lambda column, rows=rows: comparison.evaluated(column)[rows.index]
        cell = lambda column, of=of: plus_minus(*results.summarise(of(column)))
        mean = lambda column, error, of=of: plus_minus(of(column).mean(), error)
        error, by_profile = text.typical(of("bits_per_dim.std_error")), text.typical(of("profile.bits_per_dim_std_error"))
        share = of("bits_per_dim.untrained.share").mean()
        who = {"run": name, "told": text.told(comparison, name)}
        bits.append(
            who
            | {"bits per dimension": cell("bits_per_dim.value"), "seeds": str(len(rows)), "Monte-Carlo error": _number(error)}
            | {"diffusion term": mean("bits_per_dim.diffusion", error)}
            | {"the same by the profile": mean("profile.bits_per_dim", by_profile)}
            | {"of the bits, at levels never drawn": "-" if np.isnan(share) else f"{share:.1%}"}
        )
        ends = dict.fromkeys(value for value in rows.get("last_level.log_snr", ()) if isinstance(value, float) and value == value)
        columns = {
            "eps error there": "last_level.eps",
            "v error": "last_level.v",
            "x error": "last_level.x",
            "of answering the mean": "last_level.constant_x",
            "gain over it": "last_level.gain",
            "at zero SNR: answers vary by": "zero_snr.spread",
            "their brightness by": "zero_snr.brightness_spread",
            "they miss the mean by": "zero_snr.off_mean",
            "the data": "zero_snr.data_std",
        }
        ends = {"last log-SNR of training": listed([f"{value:.4g}" for value in ends]) if ends else "-"}  # -inf, too
        last.append(who | ends | {head: cell(column) for head, column in columns.items()})
    apart, of = text.disagreement(comparison), text.evaluated(comparison)
    yield html.table(
        bits,
        f"Bits, lower is better: mean{spread(comparison)}, on {of}. Monte-Carlo error: of one network's bits, from drawing "
        "levels and noise. The diffusion term is measured twice, for the bound and as the integral of the profile, each ± its "
        "Monte-Carlo error"
        + ("." if np.isnan(apart) else f"; in no network do the two differ by more than {apart:.1f} standard errors.")
        + " That is more than noise explains: the levels of the profile may lie too far apart." * bool(apart > 4),
    )
    if comparison.evaluated("last_level.x").notna().any():  # older evaluations do not have it
        yield html.table(
            last,
            f"Where sampling starts: mean{spread(comparison)}, on {of}. Errors are mean squares per dimension; at zero SNR, root "
            "mean squares per pixel between the answers to different noises, which should be one, the mean of the data (of the "
            "class, if the network is told it), beside the standard deviation of the data about it. -: a network that predicts "
            "eps has no answer there.",
        )


def placed(comparison, metric, pairs, shown):
    yield html.heading("Where the schedules put their levels")
    for which, how in enumerate(pictured(comparison), 1):
        calls = comparison.of(how)[3]
        yield html.picture(
            f"levels_{which}",
            plots.levels(comparison, how, calls),
            f"The levels of each inference schedule for {budget(comparison, calls, how)}{sampled(comparison, how)}, under the "
            "density of the levels that training drew. Orange: outside of it; an arrowhead: -inf, or beyond the picture.",
        )


def images(comparison, metric, pairs, shown):
    yield html.heading("Images from the same noise")
    for which, how in enumerate(pictured(comparison), 1):
        conditions, schedules, numbers, middle = comparison.of(how)
        for calls in dict.fromkeys((numbers[0], middle)):
            places = {
                (row, column): (condition, Task(schedule, *how, calls))
                for row, condition in enumerate(conditions)
                for column, schedule in enumerate(schedules)
            }
            yield html.picture(
                f"images_{which}_{calls}",
                plots.strips(comparison, [*map(str, conditions)], schedules, places),
                f"{budget(comparison, calls, how)}{sampled(comparison, how)}: rows are networks, columns inference schedules; "
                "all start from the same noise. Not chosen: the first images of the first seeds.",
            )


def numbers(comparison, metric, pairs, shown):
    yield html.heading("The numbers")
    rows = []
    for calls in comparison.calls:
        found = text.ranked(comparison, metric, calls)
        words = ("best", "worst") if len(found) > 1 else ("only",)
        for word, (cell, summary) in zip(words, [*found[:1], *found[1:][-1:]], strict=False):
            condition, task = cell
            place = task_columns(comparison, task)
            line = {"calls": place.pop("calls"), "": word, "condition": str(condition), **place}
            rows.append(line | {metric: plus_minus(*summary), "seeds": str(summary.n)})
    if rows:  # else no value of the main number is finite
        yield html.table(rows, f"Mean{spread(comparison)}.")
    full = []
    for cell in comparison.cells:
        rows = comparison.rows(cell)
        notes = {"refused": rows["refused"].notna().sum(), "clamped": rows["clamped"].sum()}
        full.append(
            {"condition": str(cell[0]), **task_columns(comparison, cell[1]), "rows": str(len(rows))}
            | {name: _cell(comparison, cell, name) for name in comparison.metrics}
            | {"notes": ", ".join(f"{n} {how}" for how, n in notes.items() if n)}
        )
    yield html.table(full, f"Mean{spread(comparison)}.", f"{every(len(full), 'cell')}, all numbers")


def costs(comparison, metric, pairs, shown):
    frame, networks = comparison.frame, comparison.networks
    made = (frame["network_calls"] * frame["num_images"]).where(frame["refused"].isna(), 0)
    line = lambda name, training, rows: {
        "run": name,
        "training, seconds each": training,
        "sampling and measuring, seconds": number(frame["seconds"][rows].sum()),
        "network calls x images": f"{made[rows].sum():,.0f}",
    }
    seconds = {name: results.summarise(networks["seconds"][networks["run"] == name]) for name in comparison.runs}
    rows = [line(name, plus_minus(*seconds[name]), frame["run"] == name) for name in comparison.runs]
    yield html.heading("What it cost")
    total = line("all", number(networks["seconds"].sum()), frame["run"].notna())
    yield html.table([*rows, total], f"Mean{spread(comparison)}; in the last row, sums.")


def made_by(comparison, command):
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    stored = comparison.config.get("command") or "# the command of the comparison is not stored"
    yield html.heading("How to make it again")
    yield html.code(f"{stored}\n{command}")
    yield html.paragraph(f"This report was written with Python {platform.python_version()}, {versions}.")


# -- which cells


def home(comparison):
    """{(condition, how): the cell that stands for it}: under the schedule of training, or else the first, at the most calls.

    Of rows that say what their images look like, without guidance, or with it if all have it. {} where it is not said of the
    real images.
    """
    cells = _described(comparison)
    plain, found = [cell for cell in cells if cell[1].guidance == "none"], {}
    for condition, task in plain or cells:
        found.setdefault((condition, task.how), []).append(task)
    return {place: (place[0], at_home(place[0], tasks)) for place, tasks in found.items()}


def at_home(condition, tasks):
    """Of tasks, the one under the schedule that a condition was trained with, or else the first one's, at the most calls."""
    same = [task for task in tasks if spec.parse(task.schedule) == spec.parse(condition.drawn)]
    own = same or [task for task in tasks if results.own(condition.drawn, task.schedule)] or tasks
    return max((task for task in own if task.schedule == own[0].schedule), key=lambda task: task.calls)


def guidances(comparison):
    """[cell] of those that were sampled with guidance, and the same without it, as `at_home` chooses the guided."""
    alike = {}
    for condition, task in _described(comparison):
        alike.setdefault((condition, task.method, task.spacing), []).append((condition, task))
    found = []
    for (condition, *_), cells in alike.items():
        if guided := [task for _, task in cells if task.guidance != "none"]:
            home = at_home(condition, guided)
            found += [cell for cell in cells if (cell[1].schedule, cell[1].calls) == (home.schedule, home.calls)]
    return found


def pictured(comparison):
    """The Hows that have pictures of their own: not those of which every cell is in the grid of guidances."""
    shown = set(guidances(comparison))
    apart = {task.how for condition, task in comparison.cells if task.guidance == "none" or (condition, task) not in shown}
    return [how for how in comparison.hows if how in apart] or comparison.hows[:1]


def _described(comparison):
    there = comparison.frame[LOOK("histogram")].notna().to_numpy()
    return [cell for cell, rows in comparison.cells.items() if there[rows].any()] if comparison.appearance else []


# -- cells of tables


def _known(comparison, names):
    """Those statistics that real images have."""
    return [name for name in names if comparison.appearance["real"].get(name) is not None]


def _words(name):
    return name.replace("_", " ")


def _number(value):
    return "-" if value is None or np.isnan(value) else number(value)


def _cell(comparison, cell, column):
    found = comparison.summary(column).get(cell)
    return plus_minus(*found) if found else "-"


def main(request):
    """The command."""
    run(request.compare, request.out)
