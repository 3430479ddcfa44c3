"""The report: the results of a comparison as a short paper, in one HTML page and in Markdown.

An abstract of numbers, tables, plots, and what the data do not show, by the same rules whatever the outcome. The numbers are in
`results` and `pairs`, the sentences in `text`, the pictures in `plots`; `html` writes the document.
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
from noisesched.evaluation.image_stats import STATISTICS

PACKAGES = ("noisesched", "jax", "flax", "numpy", "pandas", "scipy", "matplotlib")
ACROSS = 3  # columns of a picture of brightness
GUIDED = (plots.SPREAD, "contrast", "saturation", "clipped")  # what guidance changes


def main(request):
    """The command."""
    run(request.compare, request.out)


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
    pairs = tuple(pair for number, pair in enumerate(pairs) if number in there)  # the others share no schedule
    shown = home(comparison)
    return [
        *heading(comparison, metric, pairs, shown),
        *compared(comparison),
        *quality(comparison, metric),
        *brightness(comparison, metric, shown),
        *paired(comparison, metric, pairs),
        *losses(comparison),
        *placed(comparison),
        *images(comparison),
        *numbers(comparison, metric),
        *costs(comparison),
        *made_by(comparison, command),
        html.heading("What the data do not show"),
        html.items(text.limits(comparison, metric, pairs, shown.values())),
    ]


# -- the parts, in order


def heading(comparison, metric, pairs, shown):
    yield html.title("Noise schedules compared", text.question(comparison, pairs))
    told = text.extremes(comparison, metric), text.recovered(comparison, shown.values()), text.answers(comparison, metric, pairs)
    yield html.abstract([text.scope(comparison), *(line for lines in told for line in lines)])


def compared(comparison):
    yield html.heading("What was compared")
    columns = ("schedule", "conditioning.kind", "conditioning.table", "training.num_steps", "training.batch_size")
    has = lambda texts: {run: text for run, text in texts.items() if text != "absent"}  # own networks lack a run's settings
    varying = {name: has(texts) for name, texts in pairing.varying(comparison).items() if name not in columns}
    varying = {name: texts for name, texts in varying.items() if len({*texts.values()}) > 1}
    yield html.table(
        [
            {
                "run": name,
                "levels drawn in training": run["drawn"],
                "told": text.told(comparison, name),
                "table of timesteps": run.get("table") or "-",
                "parameters": f"{run['num_parameters']:,}" if run["num_parameters"] else "-",
                "steps x batch": f"{run['train_steps']:,} x {run['batch_size']}" if run["train_steps"] else "-",
                "seeds": str(len(run["workdirs"])),
            }
            | (
                {"differs in": ", ".join(f"{setting} {texts[name]}" for setting, texts in varying.items() if name in texts)}
                if varying
                else {}
            )
            for name, run in comparison.runs.items()
        ],
        text.meanings(comparison),
    )
    config, about, frame = comparison.config["comparison"], comparison.about, comparison.frame
    folded = "What all runs have in common" if len(comparison.runs) > 1 else "The run's settings"
    rows = [{"setting": name, "value": value} for name, value in pairing.common(comparison).items()]
    if rows:
        yield html.table(rows, "Without settings that leave the trained network as it is.", folded)
    sampling = {
        "inference schedules": text.listed(comparison.schedules),
        "sampled with": "; ".join(map(str, comparison.hows)),
        "network calls": ", ".join(text.budget(comparison, calls).replace(" network calls", "") for calls in comparison.calls),
        "noise": f"{text.count(frame['seed'].nunique(), 'seed')}; image i of a seed starts from the same noise throughout",
        "parameters": config.get("parameters", ""),
        "real images": f"{text.flat(about | {'extractors': None})}; chosen at random",
    } | {f"extractor {name}": text.flat(what) for name, what in about.get("extractors", {}).items()}
    yield html.table([{"sampling": name, "": value} for name, value in sampling.items() if value])
    floors = {name: text.number(comparison.floor[name]) if name in comparison.floor else "-" for name in comparison.metrics}
    yield html.table(
        [{"number": name, "better": results.better(name), "floor": floor} for name, floor in floors.items()],
        "The floor is the distance between those real images and as many others; samples at the floor cannot be told from real "
        "images.",
    )


def quality(comparison, metric):
    yield html.heading("Quality")
    frame = comparison.frame
    marks = " Hatched: rows refused, with their number." if frame["refused"].notna().any() else ""
    marks += " †: with levels outside the table of timesteps, told as the nearest end of it." if frame["clamped"].any() else ""
    for which, how in enumerate(pictured(comparison), 1):
        grid = comparison.grid(how)
        where = text.sampled(comparison, how)
        means = f"mean{text.spread(comparison)}" if len(grid.calls) == 1 else "means, each number of calls on its own scale"
        yield html.picture(
            f"heat_map_{which}",
            plots.heat_maps(comparison, metric, how, grid.calls),
            f"{metric}{where}: {means}. Darker is worse. Framed: the schedule of training.{marks}",
        )
        panels = {
            name: [cell for cell in comparison.cells if (cell[1].schedule, cell[1].how) == (name, how)] for name in grid.schedules
        }
        yield html.picture(
            f"quality_{which}",
            plots.against_calls(comparison, metric, panels, comparison.floor.get(metric), metric),
            f"{metric} against network calls{where}, a panel for each inference schedule.{text.bands(comparison)}"
            + " Gray dashes: the floor." * (metric in comparison.floor),
        )


def brightness(comparison, metric, shown):
    """Whether samples cover the same range of brightness as the data, with black and white images; if rows describe images."""
    if not shown:
        return
    yield html.heading("Brightness")
    if text.real_shares(comparison):
        yield html.paragraph(text.recovery_rule(comparison))
    others = dict.fromkeys(
        f"{condition} under {task.schedule}"
        for condition, task in shown.values()
        if not results.own(condition.drawn, task.schedule)
    )
    under = f"Each network under the schedule that it was trained with{f', but {text.listed(others)}' if others else ''}"
    budgets = {task.calls for _, task in shown.values()}
    where = f"{under}, at {text.budget(comparison, *budgets) if len(budgets) == 1 else 'its largest number of calls'}."
    hows = list(dict.fromkeys(how for _, how in shown))
    for first in range(0, len(hows), ACROSS):
        chosen = {place: cell for place, cell in shown.items() if place[1] in hows[first : first + ACROSS]}
        yield html.picture(
            f"brightness_{first // ACROSS + 1}",
            plots.distributions(comparison, chosen),
            f"How bright images are. Outlines: samples, all seeds together; shaded: the real images, both halves together. "
            f"{where} Panels are cut off at {plots.HEADROOM} times the tallest shaded bar.",
        )
    means = [f"{_words(name)}: {STATISTICS[name].meaning}" for name in _known(comparison, STATISTICS)]
    distances = [name for name in comparison.metrics if results.measure(name) == "brightness"]
    caption = f"Mean{text.spread(comparison)}, on the scale of x, from -1 to 1. {'; '.join(means).capitalize()}."
    yield html.table(_looks(comparison, list(shown.values()), distances), f"{where} {caption}")
    cells = [cell for cell in comparison.cells if comparison.rows(cell)[results.LOOK("histogram")].notna().any()]
    if len(cells) > len(shown):
        yield html.table(
            _looks(comparison, cells, distances), caption, f"{text.every(len(cells), 'cell')}, what the images look like"
        )
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
            plots.against_calls(comparison, results.LOOK(plots.SPREAD), panels, real, "spread of brightness"),
            f"The standard deviation of an image's brightness over images, against network calls. {under}. Gray dashes: the real "
            f"images.{text.bands(comparison)}",
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
    panels = {f"{metric} (floor {text.number(floor)})": (of(metric), floor)}
    panels |= {f"{_words(name)} (real images {text.number(real[name])})": (of(results.LOOK(name)), real[name]) for name in names}
    yield html.picture(
        "guidance",
        plots.guidance_maps(labels, columns, panels),
        "Guidance, and what it does to the images: mean over seeds. Darker is farther from the real images.",
    )
    yield html.picture(
        "guided_images",
        plots.strips(comparison, columns, labels, {(column, row): cell for (row, column), cell in places.items()}),
        "Guidance by rows; all start from the same noise. Not selected: the first images of the first seeds.",
    )
    yield html.table(
        _looks(comparison, guided, [metric]), f"Guidance, and what it does to the images: mean{text.spread(comparison)}."
    )


def _looks(comparison, cells, distances):
    """What samples look like, and some distances: a line for the real images, one for as many others, and one for each cell."""
    halves, place = comparison.appearance, ["condition", *text.task_columns(comparison, cells[0][1])]
    names, shares = _known(comparison, STATISTICS), text.real_shares(comparison)  # shares: such as of black images
    title = lambda name: _words(name) + ", relative to real images" * STATISTICS[name].relative

    def of_real(half, name):
        """A statistic of real images: a share relative to that of the first half, and the share itself."""
        value, real = halves[half].get(name), halves["real"][name]
        if value is None or not STATISTICS[name].relative:
            return _number(value)
        return f"{text.number(value / real)} ({value:.1%})" if real else f"{value:.1%}"

    def of_samples(cell, name):
        found, real = comparison.summary(results.LOOK(name)).get(cell), halves["real"][name] if STATISTICS[name].relative else 1.0
        return text.plus_minus(found.mean / real, found.std / real) if found and real else "-"

    def verdict(cell, name):
        said = text.recovery(comparison, cell, name)
        return f"{comparison.summary(results.LOOK(name))[cell].mean:.1%}, {said}" if said else "-"

    rows = [
        dict.fromkeys(place, "-")
        | {"condition": label}
        | {name: _number(floor.get(name)) for name in distances}
        | {f"{_words(name)} images": "-" for name in shares}
        | {title(name): of_real(half, name) for name in names}
        for label, half, floor in (("real images", "real", {}), ("as many others, the floor", "floor", comparison.floor))
    ]
    return rows + [
        {"condition": str(cell[0]), **text.task_columns(comparison, cell[1])}
        | {name: _cell(comparison, cell, name) for name in distances}
        | {f"{_words(name)} images": verdict(cell, name) for name in shares}
        | {title(name): of_samples(cell, name) for name in names}
        for cell in cells
    ]


def paired(comparison, metric, pairs):
    yield html.heading("Seed by seed" + (f": {text.listed(text.factors(pairs))}" if pairs else ""))
    if not pairs:
        yield html.paragraph(text.unpaired(comparison))
        return
    yield html.paragraph(text.rule(comparison, pairs))
    differences = pairing.differences(comparison, pairs, metric)
    asked = pairing.questions(pairs)
    heads = ("first told", "second told") if pairs[0].factor == pairing.CONDITIONING else ("first has", "second has")
    caption = (
        f"Differences of {metric}, first minus second, averaged over schedules and numbers of calls; the largest weigh most."
    )
    groups = {tuple(text.named(factor, value) for value in values): chosen for (factor, *values), chosen in asked.items()}
    yield html.table(_averages(differences, pairs, groups, heads, metric), caption)
    for which, how in enumerate(comparison.hows, 1):
        if (drawn := plots.difference_maps(comparison, metric, how, pairing.foremost(pairs))) is not None:
            yield html.picture(
                f"differences_{which}",
                drawn,
                f"Mean difference of {metric}{text.sampled(comparison, how)}, first minus second. Blue: the first is better; "
                "orange: worse; gray: no difference seen (or one seed). Framed: a schedule of training.",
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
            "By every metric, not the main one alone",
        )
    yield html.table(
        [
            names(pairs[found.Index[0]]) | text.task_columns(comparison, results.Task(*found.Index[1:])) | text.interval(found)
            for found in pairing.judged(differences, metric).itertuples()
        ],
        folded=f"{text.every(len(differences), 'difference')} of {metric}, cell by cell",
    )


def _averages(differences, pairs, groups, heads, metric):
    """For each {(first, second): pairs} the average differences under schedules of training and under others, as rows."""
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


def losses(comparison):
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
            f"{text.count(len(networks), 'network')}."
            + " Levels become timesteps as each network's own config says."
            * any(run["told"] == "timestep" for run in comparison.runs.values()),
        )
        yield from _bits(comparison)
    if len(missing):
        names = {reason: "; ".join(f"{row.run}, seed {row.train_seed}" for row in rows.itertuples()) for reason, rows in missing}
        yield html.items([f"Not evaluated: {which} ({reason})." for reason, which in names.items()])


def _bits(comparison):
    """The tables of bits per dimension, and of networks' errors at the last level of training and answers at zero SNR."""
    networks = comparison.networks[comparison.networks["reason"].isna()]
    bits, last = [], []
    for name, rows in networks.groupby("run", sort=False):
        of = lambda column, rows=rows: comparison.evaluated(column)[rows.index]
        cell = lambda column, of=of: text.mean_and_spread(results.summarise(of(column)))
        mean = lambda column, error, of=of: text.plus_minus(of(column).mean(), error)
        error, by_profile = text.typical(of("bits_per_dim.std_error")), text.typical(of("profile.bits_per_dim_std_error"))
        share = of("bits_per_dim.untrained.share").mean()
        who = {"run": name, "told": text.told(comparison, name)}
        bits.append(
            who
            | {"bits per dimension": cell("bits_per_dim.value"), "seeds": str(len(rows)), "Monte-Carlo error": _number(error)}
            | {"diffusion term": mean("bits_per_dim.diffusion", error)}
            | {"diffusion term by the profile": mean("profile.bits_per_dim", by_profile)}
            | {"share of bits from levels never drawn": "-" if np.isnan(share) else f"{share:.1%}"}
        )
        ends = dict.fromkeys(value for value in rows.get("last_level.log_snr", ()) if isinstance(value, float) and value == value)
        columns = {
            "eps error there": "last_level.eps",
            "v error": "last_level.v",
            "x error": "last_level.x",
            "x error of the data's mean": "last_level.constant_x",
            "gain over the mean": "last_level.gain",
            "at zero SNR: answers vary by": "zero_snr.spread",
            "their brightness varies by": "zero_snr.brightness_spread",
            "distance of answers from the mean": "zero_snr.off_mean",
            "standard deviation of the data": "zero_snr.data_std",
        }
        ends = {"last log-SNR of training": text.listed([f"{value:.4g}" for value in ends]) if ends else "-"}  # -inf, too
        last.append(who | ends | {head: cell(column) for head, column in columns.items()})
    apart, of = text.disagreement(comparison), text.evaluated(comparison)
    yield html.table(
        bits,
        f"Bits, lower is better: mean{text.spread(comparison)}, on {of}. Monte-Carlo error: of one network's bits, from drawing "
        "levels and noise. The diffusion term is measured twice, for the bound and as the integral of the profile, each ± its "
        "Monte-Carlo error"
        + ("." if np.isnan(apart) else f"; the two differ by at most {apart:.1f} standard errors in any network.")
        + " That is more than noise explains: the levels of the profile may lie too far apart." * bool(apart > 4),
    )
    if comparison.evaluated("last_level.x").notna().any():  # older evaluations do not have it
        yield html.table(
            last,
            f"Where sampling starts: mean{text.spread(comparison)}, on {of}. Errors are mean squares per dimension. At zero SNR "
            "all answers should be the mean of the data (of the class, if the network is told it), whatever the noise; given are "
            "root mean squares per pixel. -: a network that predicts eps has no answer there.",
        )


def placed(comparison):
    yield html.heading("Where the schedules put their levels")
    for which, how in enumerate(pictured(comparison), 1):
        calls = comparison.grid(how).middle
        yield html.picture(
            f"levels_{which}",
            plots.levels(comparison, how, calls),
            f"The levels of each inference schedule for {text.budget(comparison, calls, how)}{text.sampled(comparison, how)}, "
            "below the density of the levels that training drew. Orange: outside of it; an arrowhead: -inf, or off the axis.",
        )


def images(comparison):
    yield html.heading("Images from the same noise")
    for which, how in enumerate(pictured(comparison), 1):
        grid = comparison.grid(how)
        for calls in dict.fromkeys((grid.calls[0], grid.middle)):
            places = {
                (row, column): (condition, results.Task(schedule, *how, calls))
                for row, condition in enumerate(grid.conditions)
                for column, schedule in enumerate(grid.schedules)
            }
            yield html.picture(
                f"images_{which}_{calls}",
                plots.strips(comparison, [*map(str, grid.conditions)], grid.schedules, places),
                f"{text.budget(comparison, calls, how)}{text.sampled(comparison, how)}: rows are networks, columns inference "
                "schedules; all start from the same noise. Not selected: the first images of the first seeds.",
            )


def numbers(comparison, metric):
    yield html.heading("The numbers")
    rows = []
    for calls in comparison.calls:
        found = text.ranked(comparison, metric, calls)
        words = ("best", "worst") if len(found) > 1 else ("only",)
        for word, (cell, summary) in zip(words, [*found[:1], *found[1:][-1:]], strict=False):
            condition, task = cell
            place = text.task_columns(comparison, task)
            line = {"calls": place.pop("calls"), "": word, "condition": str(condition), **place}
            rows.append(line | {metric: text.mean_and_spread(summary), "seeds": str(summary.n)})
    if rows:  # none if no value of the main metric is finite
        yield html.table(rows, f"Mean{text.spread(comparison)}.")
    full = []
    for cell in comparison.cells:
        rows = comparison.rows(cell)
        notes = {"refused": rows["refused"].notna().sum(), "clamped": rows["clamped"].sum()}
        full.append(
            {"condition": str(cell[0]), **text.task_columns(comparison, cell[1]), "rows": str(len(rows))}
            | {name: _cell(comparison, cell, name) for name in comparison.metrics}
            | {"notes": ", ".join(f"{n} {how}" for how, n in notes.items() if n)}
        )
    yield html.table(full, f"Mean{text.spread(comparison)}.", f"{text.every(len(full), 'cell')}, all metrics")


def costs(comparison):
    frame, networks = comparison.frame, comparison.networks
    made = (frame["network_calls"] * frame["num_images"]).where(frame["refused"].isna(), 0)
    line = lambda name, training, rows: {
        "run": name,
        "training, seconds each": training,
        "sampling and measuring, seconds": text.number(frame["seconds"][rows].sum()),
        "network calls x images": f"{made[rows].sum():,.0f}",
    }
    seconds = {name: results.summarise(networks["seconds"][networks["run"] == name]) for name in comparison.runs}
    rows = [line(name, text.mean_and_spread(seconds[name]), frame["run"] == name) for name in comparison.runs]
    yield html.heading("What it cost")
    total = line("all", text.number(networks["seconds"].sum()), frame["run"].notna())
    yield html.table([*rows, total], f"Mean{text.spread(comparison)}; in the last row, sums.")


def made_by(comparison, command):
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    stored = comparison.config.get("command") or "# the command of the comparison is not stored"
    yield html.heading("How to reproduce it")
    yield html.code(f"{stored}\n{command}")
    yield html.paragraph(f"This report was written with Python {platform.python_version()}, {versions}.")


# -- which cells


def home(comparison):
    """{(condition, how): the cell that represents it}: under the schedule of training, or else the first, at the most calls.

    Of cells with described images, without guidance unless all have it. {} where the real images are not described.
    """
    cells = _described(comparison)
    plain, found = [cell for cell in cells if cell[1].guidance == "none"], {}
    for condition, task in plain or cells:
        found.setdefault((condition, task.how), []).append(task)
    return {place: (place[0], at_home(place[0], tasks)) for place, tasks in found.items()}


def at_home(condition, tasks):
    """The task under the schedule that a condition was trained with, or else that of the first task, at the most calls."""
    same = [task for task in tasks if spec.parse(task.schedule) == spec.parse(condition.drawn)]
    own = same or [task for task in tasks if results.own(condition.drawn, task.schedule)] or tasks
    return max((task for task in own if task.schedule == own[0].schedule), key=lambda task: task.calls)


def guidances(comparison):
    """[cell] with guidance, and the same without it, at the schedule and number of calls that `at_home` chooses."""
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
    """The Hows that have their own pictures: those with a cell that the pictures of guidance do not show."""
    shown = set(guidances(comparison))
    apart = {task.how for condition, task in comparison.cells if task.guidance == "none" or (condition, task) not in shown}
    return [how for how in comparison.hows if how in apart] or comparison.hows[:1]


def _described(comparison):
    there = comparison.frame[results.LOOK("histogram")].notna().to_numpy()
    return [cell for cell, rows in comparison.cells.items() if there[rows].any()] if comparison.appearance else []


# -- cells of tables


def _known(comparison, names):
    """The statistics that are known of the real images."""
    return [name for name in names if comparison.appearance["real"].get(name) is not None]


def _words(name):
    return name.replace("_", " ")


def _number(value):
    return "-" if value is None or np.isnan(value) else text.number(value)


def _cell(comparison, cell, column):
    found = comparison.summary(column).get(cell)
    return text.mean_and_spread(found) if found else "-"
