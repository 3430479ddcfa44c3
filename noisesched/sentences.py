"""The sentences of a report, made from the numbers of a `findings.Comparison` by stated rules; none knows how one came out."""

import math

from noisesched import findings, workdir
from noisesched.document import number, plus_minus

TELLS = {
    "log_snr": "told the log-SNR of the level itself", "sigma": "told sigma of the level itself", "none": "told nothing",
    "timestep": "told a timestep of its table",
}  # fmt: skip
TRANSLATES = {
    "nearest": "the timestep whose log-SNR lies nearest to the level",
    "interpolated": "a fraction of a timestep, interpolated in its table",
    "raw": "the timestep that the training schedule would have had at that point of sampling, whatever the level is: the mistake "
           "of changing the schedule and forgetting the network",
}  # fmt: skip


def question(pairs):
    """What the comparison asks."""
    if ("log_snr", "timestep") in {(first.told, second.told) for first, second in pairs}:
        return ("What does telling the network the noise level, rather than the timestep, buy when the schedule changes at "
                "inference?")  # fmt: skip
    return "How do these networks do under inference schedules that are not the one they were trained with?"


def scope(comparison):
    """What there is, and whether it is all."""
    rows, asked, runs = len(comparison.rows), len(comparison.config["keys"]), len(comparison.runs)
    seeds = [len({row["train_seed"] for row in comparison.rows if row["run"] == name}) for name in comparison.runs]
    each = count(max(seeds), "seed") if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)} seeds"
    return (f"{count(runs, 'way')} of training a network, {each} each, sampled under "
            f"{count(len(comparison.schedules), 'inference schedule')} with {listed(comparison.calls)} network calls, without "
            f"retraining: {rows:,} of {asked:,} rows." + " The comparison is unfinished." * (rows < asked))  # fmt: skip


def meanings(comparison):
    """What the names of what networks are told stand for."""
    told = {condition.told for condition in comparison.conditions}
    used = {condition.translation for condition in comparison.conditions}
    return ([f"{kind}: the network is {TELLS[kind]}." for kind in TELLS if kind in told]
            + [f"{name}: at inference it is told {TRANSLATES[name]}." for name in TRANSLATES if name in used])  # fmt: skip


def extremes(comparison, metric):
    """The best and the worst cell at the middle number of calls."""
    found = ranked(comparison, metric, comparison.middle)
    if not found:
        return
    (best, best_task, best_cell), (worst, worst_task, worst_cell) = found[0], found[-1]
    floor = comparison.floor.get(metric)
    text = (f"At {comparison.middle} network calls, {metric} ({findings.better(metric)} is better) runs from "
            f"{plus_minus(*best_cell[:2])} ({best} under {place(comparison, best_task)}) to {plus_minus(*worst_cell[:2])} "
            f"({worst} under {place(comparison, worst_task)})")  # fmt: skip
    yield text + (f"; two sets of real images are {number(floor)} apart." if floor is not None else ".")


def answers(comparison, metric, pairs):
    """A sentence for the first thing told against each of the others: the verdicts, over all ways of drawing levels."""
    told = []
    for names, chosen in questions(findings.foremost(pairs)).items():
        parts = []
        for own, where in ((False, "under schedules other than that of training"), (True, "under that of training")):
            cells = select(comparison, chosen, own)
            found, _ = findings.average(comparison, cells, metric)
            if found:
                verdicts = [said for cell in cells if (said := verdict(comparison, *cell, metric))]
                parts.append(f"{plus_minus(found.mean, found.std_error)} {where} ({tally(verdicts)})")
        if parts:
            told.append(f"Told {names[0]} rather than {names[1]}: {'; '.join(parts)}.")
    if told:
        error = " ± standard error" if len(comparison.seeds) > 1 else ""
        sign = "negative" if findings.better(metric) == "lower" else "positive"
        yield f"What it is told, as the difference in {metric}, mean{error} over all numbers of calls; {sign} is better:"
    yield from told


def questions(pairs):
    """{(what the first is told, what the second is told): its pairs}, whatever levels training drew."""
    found = {}
    for pair in pairs:
        names = tuple(f"{each.told} ({each.translation})" if each.translation else each.told for each in pair)
        found.setdefault(names, []).append(pair)
    return found


def select(comparison, pairs, own):
    """[(first, second, task)]: the cells of pairs under the schedule of their training, or (`own` False) under the others."""
    return [(*pair, task) for pair in pairs for task in comparison.tasks if findings.own(pair[0].drawn, task.schedule) == own]


def rule(comparison):
    """How verdicts are made, and what they are worth with so many seeds."""
    n = len(comparison.seeds)
    text = ("Runs that drew the same levels and differ in what the network is told are compared seed by seed: the difference of "
            "two numbers with the same training seed and the same noise. ")  # fmt: skip
    if n == 1:
        return text + "There is one training seed: a difference is given as it is, with no error and no verdict."
    from scipy import stats

    reach = stats.t.ppf((1 + findings.CONFIDENCE) / 2, n - 1)
    weak = ": weak evidence, which only large effects pass" if n < 5 else ""
    return text + (
        "One is called better or worse only if the 95 % interval of its mean, by Student's t over the training seeds, leaves out "
        f"0; else no difference is seen, which does not say that there is none. With {n} seeds the interval reaches {reach:.1f} "
        f"standard errors to each side{weak}. The intervals are not corrected for how many there are: of comparisons without any "
        "effect, one in twenty is called better or worse by chance.")  # fmt: skip


def limits(comparison, metric, pairs):
    """What the data do not show, [str]: of every comparison, as its facts have it."""
    rows, asked, n = comparison.rows, len(comparison.config["keys"]), len(comparison.seeds)
    said = [f"{count(n, 'training seed')}: " + ("no spread, no error and no verdict can be given." if n == 1 else
            f"spreads and intervals rest on {n} networks each" + ", so few that real differences are missed" * (n < 5) + ".")]
    cells = sum(bool(findings.differences(comparison, *pair, task, metric)) for pair in pairs for task in comparison.tasks)
    if n > 1 and cells:
        said.append(f"{count(cells, 'difference')} looked at one by one: were there no effect at all, about "
                    f"{(1 - findings.CONFIDENCE) * cells:.0f} would be called better or worse.")  # fmt: skip
    if len(rows) < asked:
        said.append(f"{asked - len(rows)} of {asked} rows are not there yet; means are over the rows that are.")
    if comparison.left_out:
        said.append(f"{count(comparison.left_out, 'row')} of earlier requests in the same folder left out.")
    said += settings(comparison)
    counts = sorted({row["num_images"] for row in rows})
    said.append(f"Distances are between sets of {listed(counts)} images, and depend on that number and on the extractor: they "
                "compare with numbers of the same name alone.")  # fmt: skip
    extractors = sorted({name for name in ("raw", "classifier", "inception") if any(f"({name}" in m for m in comparison.metrics)})
    if extractors:
        said.append(f"What the extractor does not see ({listed(extractors)}), these distances do not see.")
    for name in comparison.metrics:
        cells = [cell for place in comparison.cells if (cell := comparison.summary(*place, name))]
        if name in comparison.floor and cells:
            sign = 1 if findings.better(name) == "lower" else -1
            reached = sum(sign * cell.mean <= sign * comparison.floor[name] for cell in cells)
            said.append(f"{name}: {reached} of {len(cells)} cells are at the floor or beyond, where it cannot tell them from "
                        "real images, nor from one another." if reached else f"{name}: no cell reaches the floor.")  # fmt: skip
    refused, clamped = findings.handled(rows, "refused"), findings.handled(rows, "clamped")
    if refused:
        reasons = dict.fromkeys(row["refused"] for row in rows if row["refused"])
        said.append(f"{count(refused, 'row')} refused, and in no mean: {next(iter(reasons))}"
                    + (f" (and {count(len(reasons) - 1, 'other reason')})" if len(reasons) > 1 else ""))  # fmt: skip
    if clamped:
        said.append(f"{count(clamped, 'row')} with levels outside the network's table of timesteps, told as its nearest end "
                    f"(up to {max(row['outside'].get('by', 0) for row in rows):.3g} in log-SNR beyond).")  # fmt: skip
    strange = sum(not math.isfinite(value) for row in rows for value in row["metrics"].values())
    if strange:
        said.append(f"{count(strange, 'number')} infinite or undefined, and in no mean.")
    return said


def settings(comparison):
    """Of what images and which network all of it is, by the first workdir's config."""
    try:
        stored = workdir.Workdir(next(iter(comparison.runs.values()))["workdirs"][0]).read_config()
        data, model = stored["data"], stored["model"]
        image = f"{data['image_size']}x{data['image_size']}x{data['channels']}"
        return [f"One data set, {data['name']!r} at {image}, and one network, of width {model['width']} predicting "
                f"{model['prediction']}: what holds here may not hold for larger ones."]  # fmt: skip
    except (FileNotFoundError, IndexError, KeyError, TypeError):
        return ["One data set and one kind of network (the workdirs, which say which, are not there to be read): what holds here "
                "may not hold for others."]  # fmt: skip


# -- parts of sentences

def ranked(comparison, metric, calls):
    """[(condition, task, Summary)] of one number of calls, the best first."""
    cells = [(condition, task, cell) for condition, task in comparison.cells
             if task.calls == calls and (cell := comparison.summary(condition, task, metric))]  # fmt: skip
    return sorted(cells, key=lambda found: found[2].mean, reverse=findings.better(metric) == "higher")


def verdict(comparison, first, second, task, metric):
    """The verdict on a pair of conditions in one cell; None if they have nothing in common there."""
    values = findings.differences(comparison, first, second, task, metric)
    return findings.verdict(findings.difference(values.values()), metric) if values else None


def tally(said, short=False):
    """How many verdicts came out which way."""
    kinds = ("better", "worse", "no difference seen")
    if short:
        return " / ".join(str(said.count(kind)) for kind in kinds)
    if said.count("one seed") == len(said):
        return f"{count(len(said), 'cell')}, of one seed each: no verdict"
    parts = [f"{kind} in {said.count(kind)}" for kind in (*kinds, "one seed") if kind in said]
    return f"{', '.join(parts)} of {count(len(said), 'cell')}"


def place(comparison, task):
    """A task in words: the schedule, and what else tells it from others."""
    variants = len(comparison.variants) > 1
    return f"{task.schedule}, {task.method}, {task.spacing}" if variants else task.schedule


def told(comparison, run):
    """What a run's network is told, with the ways in which levels became timesteps."""
    found = [condition for condition in comparison.conditions if condition.run == run]
    translations = [condition.translation for condition in found if condition.translation]
    kind = comparison.runs[run]["told"]
    return f"{kind} ({', '.join(translations)})" if translations else kind


def flat(value, name=""):
    """Nested settings on one line: "split train, n 256, classifier accuracy 0.98"."""
    if isinstance(value, dict):
        return ", ".join(part for key, entry in value.items() if (part := flat(entry, f"{name} {key}".strip())))
    return f"{name} {number(value) if isinstance(value, float) else value}" if value not in (None, "") else ""


def count(n, noun):
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listed(entries):
    """Entries as prose: a, b and c."""
    *most, last = map(str, entries)
    return f"{', '.join(most)} and {last}" if most else last
