"""The sentences of a report, made from the numbers of a `results.Comparison` by stated rules; none knows how one came out."""

from noisesched.comparison import pairs as pairing
from noisesched.comparison import results
from noisesched.comparison.html import number, plus_minus

TELLS = {
    "log_snr": "told the log-SNR of the level itself",
    "sigma": "told sigma of the level itself",
    "none": "told nothing",
    "timestep": "told a timestep of its table",
}
TRANSLATES = {
    "nearest": "the timestep whose log-SNR lies nearest to the level",
    "interpolated": "a fraction of a timestep, interpolated in its table",
    "raw": "the timestep that the training schedule would have had at that point of sampling, whatever the level is: the mistake "
    "of changing the schedule and forgetting the network",
}
FACTORS = {pairing.CONDITIONING: "what the network is told", "schedule": "training schedule"}  # others by the setting's name


def question(comparison, pairs):
    """What the comparison asks."""
    if ("log_snr", "timestep") in {(pair.first.told, pair.second.told) for pair in pairs}:
        return (
            "What does telling the network the noise level, rather than the timestep, buy when the schedule changes at inference?"
        )
    if pairs:
        return f"What does a change of {listed(factors(pairs), 'or')} do under each inference schedule?"
    if all(results.own(condition.drawn, task.schedule) for condition, task in comparison.cells):
        return "How do these networks do under the schedules that they were trained with?"
    return "How do these networks do under inference schedules that they were not trained with?"


def factors(pairs):
    """In what the runs of pairs differ, in words."""
    return list(dict.fromkeys(FACTORS.get(pair.factor, pair.factor) for pair in pairs))


def scope(comparison):
    """What there is, and whether it is all."""
    refused = sum(row["refused"] is not None for row in comparison.rows)
    rows, asked, runs = len(comparison.rows), len(comparison.config["keys"]), len(comparison.runs)
    seeds = [len({row["train_seed"] for row in comparison.rows if row["run"] == name}) for name in comparison.runs]
    each = count(max(seeds), "seed") if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)} seeds"
    return (
        f"{count(runs, 'way')} of training a network, {each}{' each' * (runs > 1)}, sampled under "
        f"{under_how_many(comparison)} with {budgets(comparison)}, without retraining: "
        f"{rows:,} of {count(asked, 'row')}{f', {refused:,} of them refused' * bool(refused)}."
        + " The comparison is unfinished."
        * (rows < asked)
    )


def under_how_many(comparison):
    """ "5 inference schedules", or "1 to 2 of 5 inference schedules each" where not every condition was sampled under all."""
    found = {condition: set() for condition in comparison.conditions}
    for condition, task in comparison.cells:
        found[condition].add(task.schedule)
    least, most = min(map(len, found.values())), max(map(len, found.values()))
    text = count(len(comparison.schedules), "inference schedule")
    if least == len(comparison.schedules):
        return text
    return f"{least if least == most else f'{least} to {most}'} of {text} each"


def budget(comparison, calls, variant=None):
    """ "10 network calls", or "9 network calls (at most 10)" where what sampled, or a `variant` of it, does not make them all."""
    made = results.network_calls(comparison, calls, variant) or [calls]
    text = count(made[0], "network call") if len(made) == 1 else f"{listed(made)} network calls"
    return text if made == [calls] else f"{text} (at most {calls})"


def budgets(comparison):
    """All numbers of network calls."""
    exact = all(results.network_calls(comparison, calls) == [calls] for calls in comparison.calls)
    noun = "network call" if comparison.calls == [1] else "network calls"
    return f"{'' if exact else 'at most '}{listed(comparison.calls)} {noun}"


def meanings(comparison):
    """What the names of what networks are told stand for."""
    told = {condition.told for condition in comparison.conditions}
    used = {condition.translation for condition in comparison.conditions}
    return [f"{kind}: the network is {TELLS[kind]}." for kind in TELLS if kind in told] + [
        f"{name}: at inference it is told {TRANSLATES[name]}." for name in TRANSLATES if name in used
    ]


def chosen(about):
    """The real images: "256 of the 1,500 images of 'train' (digits/1.0.0), chosen at random (seed 0)"."""
    size, n = (f"{about[name]:,}" if isinstance(about.get(name), int) else "" for name in ("split_size", "n"))
    if not n or "split" not in about:
        return flat(about | {"extractors": None}) or "nothing is stored of them"
    return (
        f"{n} of the {f'{size} ' * bool(size)}images of {about['split']!r}"
        + f" ({about.get('data')})" * ("data" in about)
        + ", chosen at random"
        + f" (seed {about.get('seed')})" * ("seed" in about)
    )


def extremes(comparison, metric):
    """The best and the worst cell at the middle number of calls."""
    found = ranked(comparison, metric, comparison.middle)
    if not found:
        return
    spread = "; mean ± standard deviation over seeds" if len(comparison.seeds) > 1 else ""
    cells = [f"{plus_minus(*cell[:2])} ({condition} under {place(comparison, task)})" for condition, task, cell in found]
    text = f"At {budget(comparison, comparison.middle)}, {metric} ({results.better(metric)} is better{spread}) "
    text += f"runs from {cells[0]} to {cells[-1]}" if len(cells) > 1 else f"is {cells[0]}"
    floor = comparison.floor.get(metric)
    yield text + (f"; between two sets of real images it is {number(floor)}." if floor is not None else ".")


def answers(comparison, metric, pairs):
    """A sentence for each question: the mean difference and the verdicts, over all pairs that it is asked of."""
    told = []
    for (factor, *values), chosen in pairing.questions(pairing.foremost(pairs)).items():
        parts = []
        for own in (False, True):
            cells = select(comparison, chosen, own)
            found, _ = results.average(comparison, cells, metric)
            if found:
                verdicts = [said for cell in cells if (said := verdict(comparison, *cell, metric))]
                mean = plus_minus(found.mean, found.std_error) if found.mean or found.std_error else "exactly 0"
                parts.append(f"{mean} {under(factor, own)} ({tally(verdicts)})")
        if parts:
            told.append(f"{rather(factor, *values)}: {'; '.join(parts)}.")
    if told:
        error = ", ± its standard error over training seeds" if len(comparison.seeds) > 1 else ""
        sign = "negative" if results.better(metric) == "lower" else "positive"
        yield f"The difference in {metric}, averaged over schedules and numbers of calls{error}; {sign} is better:"
    yield from told


def rather(factor, first, second):
    """ "Told log_snr rather than none", "With weighting v rather than eps"."""
    return f"{'Told' if factor == pairing.CONDITIONING else 'With'} {named(factor, first)} rather than {second}"


def named(factor, value):
    """What sets one of a pair apart: "timestep (raw)", "weighting v"."""
    return value if factor == pairing.CONDITIONING else f"{FACTORS.get(factor, factor)} {value}"


def under(factor, own):
    """Which inference schedules `select` selects."""
    if factor == "schedule":
        return "under a schedule that one of the two was trained with" if own else "under schedules that neither was trained with"
    return "under that of training" if own else "under schedules other than that of training"


def select(comparison, pairs, own):
    """[(first, second, task)]: the cells of pairs under the schedule of their training, or (`own` False) under the others."""
    return [(pair.first, pair.second, task) for pair in pairs for task in comparison.tasks if framed(pair, task.schedule) == own]


def framed(pair, schedule):
    """Whether either of a pair was trained with this inference schedule."""
    return any(results.own(each.drawn, schedule) for each in (pair.first, pair.second))


def unpaired(comparison):
    """Why nothing is compared seed by seed."""
    if len(comparison.runs) == 1:
        return "There is one run: nothing can be paired."
    if pairing.pairs(comparison):
        return (
            "No two of these runs that differ in one thing alone have a number under the same inference schedule: nothing is "
            "paired."
        )
    return (
        "No two of these runs differ in one thing alone (what the network is told, or another setting of their "
        "configurations): a difference between them has no one cause, and nothing is paired."
    )


def rule(comparison, pairs):
    """How verdicts are made, and what they are worth with so many seeds."""
    n = len(comparison.seeds)
    text = (
        f"Runs whose configurations differ in nothing but {listed(factors(pairs), 'or')} are compared seed by seed: the "
        "difference of two numbers with the same training seed and the same noise. "
    )
    if n == 1:
        return text + "There is one training seed: a difference is given as it is, with no error and no verdict."
    from scipy import stats

    reach = stats.t.ppf((1 + results.CONFIDENCE) / 2, n - 1)
    weak = ": weak evidence, which only large effects pass" if n < 5 else ""
    return text + (
        "One is called better or worse only if the 95 % interval of its mean, by Student's t over the training seeds, leaves out "
        f"0; else no difference is seen, which does not say that there is none. With {n} seeds the interval reaches {reach:.1f} "
        f"standard errors to each side{weak}. The intervals are not corrected for how many there are: of comparisons without any "
        "effect, one in twenty is called better or worse by chance."
    )


# -- parts of sentences


def ranked(comparison, metric, calls):
    """[(condition, task, Summary)] of one number of calls, the best first."""
    cells = [
        (condition, task, cell)
        for condition, task in comparison.cells
        if task.calls == calls and (cell := comparison.summary(condition, task, metric))
    ]
    return sorted(cells, key=lambda found: found[2].mean, reverse=results.better(metric) == "higher")


def meet(comparison, pair, metric, tasks):
    """Whether a pair has a difference in any of some tasks: two that were each sampled under another schedule have none."""
    return any(results.differences(comparison, pair.first, pair.second, task, metric) for task in tasks)


def verdict(comparison, first, second, task, metric):
    """The verdict on a pair of conditions in one cell; None if they have nothing in common there."""
    values = results.differences(comparison, first, second, task, metric)
    return results.verdict(results.difference(values.values()), metric) if values else None


def tally(said, short=False):
    """How many verdicts came out which way."""
    kinds = ("better", "worse", "no difference seen")
    if short:
        return " / ".join(str(said.count(kind)) for kind in kinds)
    if said.count("one seed") == len(said):
        return f"{count(len(said), 'cell')}, one seed: no verdict"
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


def every(n, noun):
    return f"The one {noun}" if n == 1 else f"All {n:,} {noun}s"


def listed(entries, last_by="and"):
    """Entries as prose: a, b and c."""
    *most, last = map(str, entries)
    return f"{', '.join(most)} {last_by} {last}" if most else last


# -- captions and columns


def sampled(comparison, variant):
    """What sampled, where it has to be said."""
    return f" with {variant[0]}, {variant[1]} spacing" if len(comparison.variants) > 1 else ""


def spread(comparison):
    return " ± standard deviation over seeds" if len(comparison.seeds) > 1 else " (one seed: no spread)"


def task_head(comparison):
    return ["schedule", *(["method", "spacing"] if len(comparison.variants) > 1 else []), "calls"]


def task_columns(comparison, task):
    return [task.schedule, *([task.method, task.spacing] if len(comparison.variants) > 1 else []), calls_made(comparison, task)]


def calls_made(comparison, task):
    """The network calls that a task made, and its budget where that is more."""
    made = results.network_calls(comparison, task.calls, (task.method, task.spacing))
    return str(task.calls) if made == [task.calls] else f"{listed(made)} (at most {task.calls})"
