"""The report: what `compare` left in a folder, told as a short paper, in one HTML page and in Markdown.

Every sentence with a finding is made from the numbers, by rules that the report states; nothing here knows how a comparison
came out. The statistics are in `findings`, the pictures in `figures`, the two ways of writing them down in `document`.
"""

import importlib.metadata
import platform
import shlex
from pathlib import Path

from tqdm import tqdm

from noisesched.comparison import brightness, heatmaps, html, limits, plots, results
from noisesched.comparison import pairs as pairing
from noisesched.comparison import text as wording
from noisesched.comparison.html import Code, Heading, Items, Picture, Table, Text, Title, number, plus_minus
from noisesched.comparison.text import calls_made, count, every, listed, sampled, spread, task_columns, task_head

PACKAGES = ("noisesched", "jax", "flax", "numpy", "scipy", "matplotlib")


def run(directory, out="", say=tqdm.write):
    """Writes report.html, report.md and report_pictures/ into `out` (or directory/report); returns the path of the page.

    Raises FileNotFoundError or ValueError, in one line, for what is missing or damaged in the comparison's `directory`.
    """
    comparison = results.read(directory)
    if not comparison.metrics:
        raise ValueError(
            f"{comparison.folder}: none of its {len(comparison.rows)} rows has a number, all were refused: "
            f"{comparison.rows[0]['refused']}"
        )
    command = shlex.join(["noisesched", "report", f"--compare={directory}", *([f"--out={out}"] if out else [])])
    folder = Path(out or comparison.folder / "report")
    html.write(compose(comparison, command), folder, "report")
    say(f"{len(comparison.rows)} of {len(comparison.config['keys'])} rows: see {folder / 'report.html'}")
    return folder / "report.html"


def compose(comparison, command):
    """The blocks of the report."""
    metric = comparison.metrics[0]
    pairs = [pair for pair in pairing.pairs(comparison) if wording.meet(comparison, pair, metric, comparison.tasks)]
    parts = (heading, compared, by_schedule, by_calls, brightness.section, paired, losses, placed, images, numbers, costs)
    blocks = [block for part in parts for block in part(comparison, metric, pairs)]
    unseen = [*limits.limits(comparison, metric, pairs), *brightness.limits(comparison)]
    return [*blocks, *made_by(comparison, command), Heading("What the data do not show"), Items(unseen)]


# -- the parts, in order


def heading(comparison, metric, pairs):
    told = [
        wording.scope(comparison),
        *wording.extremes(comparison, metric),
        *brightness.abstract(comparison),
        *wording.answers(comparison, metric, pairs),
    ]
    return [Title("Noise schedules compared", wording.question(comparison, pairs)), Items(told, abstract=True)]


def compared(comparison, metric, pairs):
    config, about = comparison.config["comparison"], comparison.about
    columns = ["run", "levels drawn in training", "told", "table of timesteps", "parameters", "steps x batch", "seeds"]
    others = {label: differs(comparison, label) for label in comparison.runs}
    rows = [
        [
            name,
            run["drawn"],
            wording.told(comparison, name),
            run.get("table") or "-",
            f"{run['num_parameters']:,}",
            f"{run['train_steps']:,} x {run['batch_size']}",
            str(len(run["workdirs"])),
            *[others[name]] * any(others.values()),
        ]
        for name, run in comparison.runs.items()
    ]
    measured = [
        [name, results.better(name), number(comparison.floor[name]) if name in comparison.floor else "-"]
        for name in comparison.metrics
    ]
    extra = [f"parameters: {config['parameters']}"] * ("parameters" in config)
    seen = [f"extractor {name}: {wording.flat(what)}" for name, what in about.get("extractors", {}).items()]
    return [
        Heading("What was compared"),
        Table(columns + ["differs in"] * any(others.values()), rows),
        Table(
            ["setting", "value"],
            [list(each) for each in pairing.common(comparison).items()],
            "Without those that leave the trained network as it is.",
            folded="What all runs have in common" if len(comparison.runs) > 1 else "The run's settings",
        ),
        Items(wording.meanings(comparison)),
        Text(
            f"Inference: {listed(comparison.schedules)}; {listed([f'{m}, {s} spacing' for m, s in comparison.variants])}; "
            f"{wording.budgets(comparison)}; {count(len({row['seed'] for row in comparison.rows}), 'seed')} of the "
            f"noise, image i of a seed from the same noise throughout{''.join('; ' + text for text in extra)}."
        ),
        Text(
            f"Real images: {wording.chosen(about)}. The floor is each number between those and as many others: what cannot be "
            "told from real images lies there."
        ),
        *[Items(seen)] * bool(seen),
        Table(["number", "better", "floor"], measured),
    ]


def differs(comparison, label):
    """The settings in which a run differs from others, but for those that have columns of their own."""
    told = ("schedule", "conditioning.kind", "conditioning.table", "training.num_steps", "training.batch_size")
    found = {name: texts[label] for name, texts in pairing.varying(comparison).items() if name not in told}
    return ", ".join(f"{name} {text}" for name, text in found.items())


def by_schedule(comparison, metric, pairs):
    yield Heading("Quality under each schedule")
    for which, variant in enumerate(variants(comparison), 1):
        where, middle, calls = sampled(comparison, variant), comparison.middle_of(variant), comparison.of_variant(variant)[2]
        yield Picture(
            f"heat_map_{which}",
            heatmaps.heat_maps(comparison, metric, variant, [middle]),
            (
                f"{metric} at {wording.budget(comparison, middle, variant)}{where}: mean{spread(comparison)}. Darker "
                f"is worse. An orange frame: the schedule of training.{_marks(comparison)}"
            ),
        )
        if len(calls) > 1:
            yield Picture(
                f"heat_maps_{which}",
                heatmaps.heat_maps(comparison, metric, variant, calls),
                (f"The same for all numbers of calls{where}; each panel has a scale of its own."),
            )


def by_calls(comparison, metric, pairs):
    yield Heading("Quality against network calls")
    for which, variant in enumerate(variants(comparison), 1):
        yield Picture(
            f"quality_{which}",
            plots.quality(comparison, metric, variant),
            (
                f"{metric} against network calls{sampled(comparison, variant)}, a panel for each inference schedule."
                + (" Bands: one standard deviation over seeds." if len(comparison.seeds) > 1 else "")
                + (" Gray dashes: the floor." if metric in comparison.floor else "")
            ),
        )


def paired(comparison, metric, pairs):
    yield Heading("Seed by seed" + (f": {listed(wording.factors(pairs))}" if pairs else ""))
    if not pairs:
        yield Text(wording.unpaired(comparison))
        return
    yield Text(wording.rule(comparison, pairs))
    columns = ["schedules", "cells", "seeds", "difference ± standard error", "95 % interval", "the first is"]
    caption = (
        f"Differences of {metric}, first minus second, averaged over schedules and numbers of calls: where distances are "
        "large, they weigh most."
    )
    asked = pairing.questions(pairs)
    told = {pair.factor for pair in pairs} == {pairing.CONDITIONING}
    yield averages(
        comparison,
        metric,
        {tuple(wording.named(factor, value) for value in values): chosen for (factor, *values), chosen in asked.items()},
        [*(["first told", "second told"] if told else ["first has", "second has"]), *columns],
        caption + " Over all pairs of runs that differ so." * (len(pairs) > len(asked)),
    )
    for which, variant in enumerate(comparison.variants, 1):
        tasks = [task for task in comparison.tasks if (task.method, task.spacing) == variant]
        met = [pair for pair in pairing.foremost(pairs) if wording.meet(comparison, pair, metric, tasks)]
        if not met:
            continue
        yield Picture(
            f"differences_{which}",
            heatmaps.difference_maps(comparison, metric, variant, met),
            (
                f"Mean difference of {metric}{sampled(comparison, variant)}, the first condition minus the second. Blue: the "
                "first "
                "is better; orange: it is worse; gray: no difference seen (or one seed). Framed: the schedule of training."
            ),
        )
    if len(pairs) > len(asked):
        yield averages(
            comparison,
            metric,
            {(str(pair.first), str(pair.second)): [pair] for pair in pairs},
            ["first", "second", *columns],
            caption,
            "Each pair of runs by itself",
        )
    if len(comparison.metrics) > 1:
        verdicts = lambda *pair, name: [
            said for task in comparison.tasks if (said := wording.verdict(comparison, *pair, task, name))
        ]
        rows = [
            [str(a), str(b), *(wording.tally(verdicts(a, b, name=name), short=True) for name in comparison.metrics)]
            for a, b, *_ in pairs
        ]
        yield Table(
            ["first", "second", *comparison.metrics],
            rows,
            "Verdicts over all cells: better / worse / no difference seen.",
            folded="By every number, not the main one alone",
        )
    rows = []
    for first, second, *_ in pairs:
        for task in comparison.tasks:
            if values := results.differences(comparison, first, second, task, metric):
                found = results.difference(values.values())
                rows.append(
                    [
                        str(first),
                        str(second),
                        *task_columns(comparison, task),
                        *_difference(found),
                        str(found.n),
                        results.verdict(found, metric),
                    ]
                )
    header = ["first", "second", *task_head(comparison), "difference ± standard error", "95 % interval", "seeds", "the first is"]
    yield Table(header, rows, folded=f"{every(len(rows), 'difference')} of {metric}, cell by cell")


def averages(comparison, metric, asked, header, caption, folded=""):
    """The table of {(first, second): pairs}: their average differences under the schedule of training, and under others."""
    rows, verdicts = [], []
    for names, pairs in asked.items():
        for own, where in ((True, "of training"), (False, "others")):
            cells = wording.select(comparison, pairs, own)
            found, full = results.average(comparison, cells, metric)
            if found:
                verdicts.append(results.verdict(found, metric))
                rows.append([*names, where, f"{full} of {len(cells)}", str(found.n), *_difference(found), verdicts[-1]])
    return Table(header, rows, caption, folded, verdicts)


def losses(comparison, metric, pairs):
    yield Heading("Likelihood and loss at every level")
    evaluated, missing = {label: list(found.values()) for label, found in comparison.evaluations.items() if found}, {}
    for label, run in comparison.runs.items():
        for directory, seed in zip(run["workdirs"], run["train_seeds"], strict=True):
            if directory not in comparison.evaluations[label]:
                reason = str(run["evaluations"].get(directory) or "evaluation.json is missing")
                missing.setdefault(reason, []).append(f"{label}, seed {seed}")
    done, left = (sum(map(len, which.values())) for which in (evaluated, missing))
    if evaluated:
        several = " mean over seeds with one standard deviation;" if max(map(len, evaluated.values())) > 1 else ""
        told = any(run["told"] == "timestep" for run in comparison.runs.values())
        yield Picture(
            "profiles",
            plots.profiles(comparison),
            (
                f"Squared error of the network at every log-SNR, on {limits.evaluated(comparison)};{several} {done} of "
                f"{count(done + left, 'network')}."
                + " What a network is told of timesteps here is as its own config says."
                * told
            ),
        )
        yield bounds(comparison, evaluated)
        if any(limits.numbers(found, "last_level", "x") for found in evaluated.values()):  # older evaluations do not have it
            yield noisiest(comparison, evaluated)
    elif len(missing) == 1:
        yield Text(f"No run has been evaluated: {next(iter(missing))}.")
        return
    if missing:
        yield Items([f"Not evaluated: {'; '.join(names)} ({reason})." for reason, names in missing.items()])


def bounds(comparison, evaluated):
    """The table of bits per dimension, of {run: its evaluations}."""
    rows, apart = [], []
    for name, found in evaluated.items():
        bits = results.summarise([each["bits_per_dim"]["value"] for each in found])
        error, by_profile = limits.typical(found), limits.typical(found, "profile", "bits_per_dim_std_error")
        diffusion, integral, share = (
            limits.numbers(found, *keys)
            for keys in (("bits_per_dim", "diffusion"), ("profile", "bits_per_dim"), ("bits_per_dim", "untrained", "share"))
        )
        mean = lambda values, error=None: plus_minus(results.summarise(values).mean, error) if values else "-"
        rows.append(
            [
                name,
                wording.told(comparison, name),
                plus_minus(bits.mean, bits.std),
                str(bits.n),
                number(error) if error is not None else "-",
                mean(diffusion, error),
                mean(integral, by_profile),
                f"{results.summarise(share).mean:.1%}" if share else "-",
            ]
        )
        apart += limits.disagreement(found)
    header = [
        "run",
        "told",
        "bits per dimension",
        "seeds",
        "Monte-Carlo error",
        "diffusion term",
        "the same by the profile",
        "of the bits, at levels never drawn",
    ]
    return Table(
        header,
        rows,
        (
            f"Bits, lower is better: mean{spread(comparison)}, on {limits.evaluated(comparison)}. Monte-Carlo error: of one "
            "network's bits, from drawing levels and noise. The diffusion term is measured twice, for the bound and as the "
            "integral "
            "of the profile, each ± its Monte-Carlo error"
            + (f"; in no network do the two differ by more than {max(apart):.1f} standard errors." if apart else ".")
            + " That is more than noise explains: the levels of the profile may lie too far apart." * (max(apart, default=0) > 4)
        ),
    )


def noisiest(comparison, evaluated):
    """The table of what networks know at their last trained level, and answer at zero SNR, of {run: its evaluations}."""
    rows = []
    for name, found in evaluated.items():

        def mean(*keys, found=found):
            values = limits.numbers(found, *keys)
            return plus_minus(*results.summarise(values)[:2]) if values else "-"

        levels = dict.fromkeys(each["last_level"].get("log_snr") for each in found if isinstance(each.get("last_level"), dict))
        levels = [f"{level:.4g}" for level in levels if isinstance(level, float)]  # -inf, too
        rows.append(
            [
                name,
                wording.told(comparison, name),
                listed(levels) or "-",
                *(mean("last_level", key) for key in ("eps", "v", "x", "constant_x", "gain")),
                *(mean("zero_snr", key) for key in ("spread", "brightness_spread", "off_mean", "data_std")),
            ]
        )
    header = [
        "run",
        "told",
        "last log-SNR of training",
        "eps error there",
        "v error",
        "x error",
        "of answering the mean",
        "gain over it",
        "at zero SNR: answers vary by",
        "their brightness by",
        "they miss the mean by",
        "the data",
    ]
    return Table(
        header,
        rows,
        (
            f"Where sampling starts: mean{spread(comparison)}, on {limits.evaluated(comparison)}. Errors are mean squares per "
            "dimension; at zero SNR, root mean squares per pixel between the answers to different noises, which should be one, "
            "the "
            "mean of the data (of the class, if the network is told it), beside the standard deviation of the data about it. "
            "-: a network that predicts eps has no answer there."
        ),
    )


def placed(comparison, metric, pairs):
    yield Heading("Where the schedules put their levels")
    for which, variant in enumerate(variants(comparison), 1):
        calls = comparison.middle_of(variant)
        yield Picture(
            f"levels_{which}",
            plots.levels(comparison, variant, calls),
            (
                f"The levels of each inference schedule for {wording.budget(comparison, calls, variant)}"
                f"{sampled(comparison, variant)}, under "
                "the density of the levels that training drew. Orange: outside of it; an arrowhead: -inf, or beyond the picture."
            ),
        )


def images(comparison, metric, pairs):
    yield Heading("Images from the same noise")
    for which, variant in enumerate(variants(comparison), 1):
        conditions, schedules, numbers = comparison.of_variant(variant)
        for calls in dict.fromkeys((numbers[0], comparison.middle_of(variant))):
            places = {
                (row, column): (condition, results.Task(schedule, *variant, calls))
                for row, condition in enumerate(conditions)
                for column, schedule in enumerate(schedules)
            }
            yield Picture(
                f"images_{which}_{calls}",
                plots.strips(comparison, [*map(str, conditions)], schedules, places),
                (
                    f"{wording.budget(comparison, calls, variant)}{sampled(comparison, variant)}: rows are networks, columns "
                    "inference schedules; every cell starts from the same noise. Not chosen: the first images of the first seeds."
                ),
            )


def numbers(comparison, metric, pairs):
    yield Heading("The numbers")
    rows = []
    for calls in comparison.calls:
        found = wording.ranked(comparison, metric, calls)
        for word, (condition, task, cell) in zip(
            ("best", "worst") if len(found) > 1 else ("only",), found[:1] + found[1:][-1:], strict=False
        ):
            rows.append(
                [
                    calls_made(comparison, task),
                    word,
                    str(condition),
                    wording.place(comparison, task),
                    plus_minus(*cell[:2]),
                    str(cell.n),
                ]
            )
    yield Table(["calls", "", "condition", "schedule", metric, "seeds"], rows, f"Mean{spread(comparison)}.")
    full = []
    for (condition, task), found in comparison.cells.items():
        cells = [comparison.summary(condition, task, name) for name in comparison.metrics]
        full.append(
            [
                str(condition),
                *task_columns(comparison, task),
                str(len(found)),
                *(plus_minus(*cell[:2]) if cell else "-" for cell in cells),
                _notes(found),
            ]
        )
    yield Table(
        ["condition", *task_head(comparison), "rows", *comparison.metrics, "notes"],
        full,
        f"Mean{spread(comparison)}.",
        folded=f"{every(len(full), 'cell')}, all numbers",
    )


def costs(comparison, metric, pairs):
    rows, total = [], [0.0, 0.0, 0]
    for name, run in comparison.runs.items():
        mine = [row for row in comparison.rows if row["run"] == name]
        sampling = sum(row["seconds"] for row in mine)
        calls = sum(row["network_calls"] * row["num_images"] for row in mine if not row["refused"])
        spent = results.summarise(run["seconds"]) if run["seconds"] else None
        rows.append([name, plus_minus(spent.mean, spent.std) if spent else "-", number(sampling), f"{calls:,}"])
        total = [total[0] + sum(run["seconds"]), total[1] + sampling, total[2] + calls]
    rows.append(["all", number(total[0]), number(total[1]), f"{total[2]:,}"])
    header = ["run", "training, seconds each", "sampling and measuring, seconds", "network calls x images"]
    return [Heading("What it cost"), Table(header, rows, f"Mean{spread(comparison)}; in the last row, sums.")]


def made_by(comparison, command):
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    stored = comparison.config.get("command") or "# the command of the comparison is not stored"
    return [
        Heading("How to make it again"),
        Code(f"{stored}\n{command}"),
        Text(f"This report was written with Python {platform.python_version()}, {versions}."),
    ]


# -- captions and columns


def variants(comparison):
    """The (method, spacing)s that have pictures of their own: those in the grid of guidances need none."""
    shown = brightness.in_grid(comparison)
    return [variant for variant in comparison.variants if variant not in shown] or comparison.variants[:1]


def _marks(comparison):
    """What the marks in a heat map mean, if there are any."""
    refused, clamped = (results.handled(comparison.rows, how) for how in ("refused", "clamped"))
    text = " Hatched: rows refused, with their number." if refused else ""
    return text + (" †: levels outside the table of timesteps, told as its nearest end." if clamped else "")


def _difference(found):
    """A Difference's two columns, with as many decimals each."""
    if found.std_error is None:
        return [number(found.mean), "-"]
    text = plus_minus(found.mean, found.std_error)
    decimals = len(text.partition(" ± ")[0].partition(".")[2])
    exact = "e" in text  # too small or large for decimals
    return [text, " to ".join(number(limit) if exact else f"{limit:,.{decimals}f}" for limit in (found.low, found.high))]


def _notes(rows):
    counts = {how: results.handled(rows, how) for how in ("refused", "clamped")}
    return ", ".join(f"{n} {how}" for how, n in counts.items() if n)


def main(request):
    """The command."""
    run(request.compare, request.out)
