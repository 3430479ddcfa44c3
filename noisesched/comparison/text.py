"""The words of a report, made from the numbers of a `results.Comparison` by stated rules, whatever the outcome.

Sentences, what the data do not show, and numbers as text. Splits of images are compared by their texts alone, in
tensorflow-datasets' notation ("train[:90%]", "train+test"): two are called disjoint only where the texts show that they are.
"""

import math
import re

import numpy as np
from scipy import stats

from noisesched.comparison import pairs as pairing
from noisesched.comparison.results import LOOK, better, own
from noisesched.evaluation.image_stats import STATISTICS

TELLS = {
    "log_snr": "the log-SNR of the level",
    "sigma": "sigma of the level",
    "none": "nothing",
    "timestep": "a timestep of its table",
    "nearest": "the timestep whose log-SNR is nearest to the level",
    "interpolated": "a fractional timestep, interpolated in its table",
    "raw": "the timestep that the training schedule would have at that point of sampling, whatever the level: the mistake of "
    "changing the schedule but not what the network is told",
}
FACTORS = {
    pairing.CONDITIONING: "what the network is told",
    "schedule": "training schedule",
}  # other factors go by the setting's name
LINES = 6  # of answers in the abstract


# -- numbers


def number(value):
    """Three digits: "0.0123", "4.56", "1,230", "1.2e-07"."""
    if 1e-4 <= abs(value) < 1000:
        return f"{value:.{_decimals(value)}f}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else "0" if value == 0 else f"{value:.1e}"


def plus_minus(mean, spread):
    """ "4.56 ± 0.12": to two digits of the spread, or one where the mean would have more than four; of a spread NaN, none."""
    if math.isnan(spread):
        return "-" if math.isnan(mean) else number(mean)
    if abs(mean) >= 1e6 or not 1e-4 <= spread < 1e6:
        return f"{number(mean)} ± {number(spread)}"
    decimals = max(min(_decimals(spread) - 1, _decimals(mean) + 1), _decimals(spread) - 2, 0)
    return f"{mean:,.{decimals}f} ± {spread:,.{decimals}f}"


def mean_and_spread(summary):
    """A Summary as `plus_minus`."""
    return plus_minus(summary.mean, summary.std)


def interval(found):
    """The columns of a row of `pairs.judged`: its mean with its error, and its interval with as many decimals."""
    text = plus_minus(found.mean, found.error)
    decimals = len(text.partition(" ± ")[0].partition(".")[2])
    limit = lambda value: number(value) if "e" in text else f"{value:,.{decimals}f}"  # too small or large for decimals
    return {
        "difference ± standard error": text,
        "95 % interval": "-" if math.isnan(found.error) else f"{limit(found.low)} to {limit(found.high)}",
        "seeds": str(found.n),
        "the first is": found.verdict,
    }


def _decimals(value):
    """How many decimals show three digits."""
    return max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0


def count(n, noun):
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def every(n, noun):
    return f"The one {noun}" if n == 1 else f"All {n:,} {noun}s"


def listed(entries, last_by="and"):
    """Entries as prose: a, b and c."""
    *most, last = map(str, entries)
    return f"{', '.join(most)} {last_by} {last}" if most else last


# -- parts of sentences and captions


def budget(comparison, calls, how=None):
    """ "10 network calls", or "9 network calls (at most 10)" where fewer were made, by all or by one How."""
    made = comparison.network_calls(calls, how) or [calls]
    text = count(made[0], "network call") if len(made) == 1 else f"{listed(made)} network calls"
    return text if made == [calls] else f"{text} (at most {calls})"


def task_columns(comparison, task):
    """{column: text} of what distinguishes a task from others."""
    made = comparison.network_calls(task.calls, task.how)
    several = {name: value for name, value in task.how._asdict().items() if comparison.frame[name].nunique() > 1}
    calls = str(task.calls) if made == [task.calls] else f"{listed(made)} (at most {task.calls})"
    return {"schedule": task.schedule, **several, "calls": calls}


def sampled(comparison, how):
    """ " with " and the How, if there are several."""
    return f" with {how}" if len(comparison.hows) > 1 else ""


def spread(comparison):
    return " ± standard deviation over seeds" if len(comparison.seeds) > 1 else " (one seed: no spread)"


def bands(comparison):
    return " Bands: one standard deviation over seeds." if len(comparison.seeds) > 1 else ""


def told(comparison, run):
    """What a run's network is told, with the ways in which levels become timesteps."""
    translations = [each.translation for each in comparison.conditions if each.run == run and each.translation]
    kind = comparison.runs[run]["told"]
    return f"{kind} ({', '.join(translations)})" if translations else kind


def meanings(comparison):
    """What the kinds of conditioning mean."""
    used = {name for condition in comparison.conditions for name in (condition.told, condition.translation)}
    return "Told: " + "; ".join(f"{name}: {meaning}" for name, meaning in TELLS.items() if name in used) + "."


def flat(value, name=""):
    """Nested settings on one line: "split train, n 256, classifier accuracy 0.98"."""
    if isinstance(value, dict):
        return ", ".join(part for key, entry in value.items() if (part := flat(entry, f"{name} {key}".strip())))
    return f"{name} {number(value) if isinstance(value, float) else value}" if value not in (None, "") else ""


# -- the abstract


def question(comparison, pairs):
    if any((pair.first.told, pair.second.told) == ("log_snr", "timestep") for pair in pairs):
        return "When the schedule changes at inference, what is gained by telling a network the noise level, not the timestep?"
    if pairs:
        return f"What does {listed(factors(pairs), 'or')} change under each inference schedule?"
    home = all(own(condition.drawn, task.schedule) for condition, task in comparison.cells)
    return f"How do these networks do under {'the schedules' if home else 'schedules other than those'} of their training?"


def factors(pairs):
    """What the runs of pairs differ in, in words."""
    return list(dict.fromkeys(FACTORS.get(pair.factor, pair.factor) for pair in pairs))


def scope(comparison):
    """What was sampled, and whether all of it is there."""
    frame, asked = comparison.frame, len(comparison.config["keys"])
    seeds = frame.groupby("run")["train_seed"].nunique()
    under = frame.groupby(["run", "translation"])["schedule"].nunique()
    between = lambda n: f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
    some = f"{between(under)} of " if under.min() < len(comparison.schedules) else ""
    exact = all(comparison.network_calls(calls) == [calls] for calls in comparison.calls)
    refused = int(frame["refused"].notna().sum())
    return (
        f"{count(len(comparison.runs), 'way')} of training, {between(seeds)} seed{'' if seeds.max() == 1 else 's'}, sampled "
        f"under {some}{count(len(comparison.schedules), 'inference schedule')} with {'' if exact else 'at most '}"
        f"{listed(comparison.calls)} network call{'s' * (comparison.calls != [1])}, without retraining: {len(frame):,} of "
        f"{count(asked, 'row')}{f', {refused:,} of them refused' * bool(refused)}."
        + " The comparison is unfinished."
        * (len(frame) < asked)
    )


def ranked(comparison, metric, calls):
    """[((condition, task), Summary)] of one number of calls, the best first."""
    cells = [(cell, found) for cell, found in comparison.summary(metric).items() if cell[1].calls == calls]
    return sorted(cells, key=lambda each: each[1].mean, reverse=better(metric) == "higher")


def extremes(comparison, metric):
    """The best and the worst cell at the middle number of calls."""
    found = ranked(comparison, metric, comparison.middle)
    if not found:
        return
    of = lambda cell: f"{cell[0]} under {cell[1].schedule}{sampled(comparison, cell[1].how)}"
    cells = [f"{mean_and_spread(summary)} ({of(cell)})" for cell, summary in found]
    error = "; mean ± standard deviation over seeds" if len(comparison.seeds) > 1 else ""
    text = f"At {budget(comparison, comparison.middle)}, {metric} ({better(metric)} is better{error}) "
    text += f"ranges from {cells[0]} to {cells[-1]}" if len(cells) > 1 else f"is {cells[0]}"
    floor = comparison.floor.get(metric)
    yield text + (f"; between two sets of real images it is {number(floor)}." if floor is not None else ".")


def answers(comparison, metric, pairs):
    """A sentence for each question: the mean difference and the verdicts, over all pairs that answer it."""
    found, differences = [], pairing.differences(comparison, pairs, metric)
    for (factor, *values), asked in pairing.questions(pairing.foremost(pairs)).items():
        parts = []
        for trained in (False, True):
            chosen = pairing.under(pairing.of(differences, pairs, asked), pairs, trained)
            mean, _ = pairing.averaged(chosen)
            if mean is not None:
                (all_,) = pairing.judged(mean, metric).itertuples()
                text = plus_minus(all_.mean, all_.error) if all_.mean or all_.error > 0 else "exactly 0"
                where = "the schedule of training" if trained else "other schedules"
                parts.append(f"{text} under {where} ({tally(pairing.judged(chosen, metric)['verdict'])})")
        if parts:
            verb = "Told" if factor == pairing.CONDITIONING else "With"
            found.append(f"{verb} {named(factor, values[0])} rather than {values[1]}: {'; '.join(parts)}.")
    if found:
        error = ", ± its standard error over training seeds" if len(comparison.seeds) > 1 else ""
        sign = "negative" if better(metric) == "lower" else "positive"
        yield f"Difference in {metric}, averaged over schedules and numbers of calls{error}; {sign} is better:"
    yield from found[:LINES]
    if len(found) > LINES:
        yield f"{len(found) - LINES} more: see “Seed by seed”."


def named(factor, value):
    """What distinguishes one of a pair: "timestep (raw)", "weighting v"."""
    return value if factor == pairing.CONDITIONING else f"{FACTORS.get(factor, factor)} {value}"


def tally(verdicts):
    """Verdicts counted: "better in 3, worse in 1 of 4 cells"."""
    said = list(verdicts)
    parts = [f"{kind} in {said.count(kind)}" for kind in pairing.VERDICTS if kind in said]
    return f"{', '.join(parts)} of {count(len(said), 'cell')}"


def rule(comparison, pairs):
    """How verdicts are reached, and how much the number of seeds lets them show."""
    n = len(comparison.seeds)
    text = f"Runs that differ only in {listed(factors(pairs), 'or')} are compared seed by seed, with the same noise. "
    if n == 1:
        return text + "One training seed: differences have no error and no verdict."
    reach = stats.t.ppf((1 + pairing.CONFIDENCE) / 2, n - 1)
    return text + (
        "Better or worse: the 95 % interval of the mean difference, by Student's t over training seeds, excludes 0. Otherwise "
        f"no difference is seen, which does not show that there is none. With {n} seeds the interval reaches {reach:.1f} "
        f"standard errors to each side{', so that only large effects pass' * (n < 5)}. Intervals are not corrected for the "
        "number of comparisons."
    )


def unpaired(comparison):
    """Why nothing is compared seed by seed."""
    if len(comparison.runs) == 1:
        return "There is only one run: nothing can be paired."
    if pairing.pairs(comparison):
        return "No two runs that differ in one thing alone were sampled under the same inference schedule: nothing is paired."
    return "No two of these runs differ in one thing alone: a difference between them would have several causes."


# -- black and white


def real_shares(comparison):
    """{name: (share, its variance)} of the real images, both halves together, of statistics that are shares, such as "black"."""
    halves = [comparison.appearance[half] for half in ("real", "floor")]
    counts, found = [sum(half["histogram"]) for half in halves], {}
    for name, each in STATISTICS.items():
        if each.relative and all(half.get(name) is not None for half in halves):
            share = float(np.average([half[name] for half in halves], weights=counts))
            found[name] = share, _binomial_variance(share, sum(counts))
    return found


def _binomial_variance(share, n):
    """The variance of a share of n (Agresti & Coull 1998): as if there were two more of either kind, so never 0."""
    p = (share * n + 2) / (n + 4)
    return p * (1 - p) / (n + 4)


def recovery(comparison, cell, name):
    """How the share of such samples compares with that of the real images: "recovered", "too few", "too many", "undecided", or
    None if it has no value.

    Recovered if the interval of their difference includes 0: by the binomial error of the real share and the spread over training
    seeds (Welch's t), or for one seed the binomial error of its share. Undecided if a share of 0 would pass, too.
    """
    if (found := comparison.summary(LOOK(name)).get(cell)) is None:
        return None
    share, variance = real_shares(comparison)[name]
    if found.n == 1:
        images = comparison.rows(cell)[LOOK("histogram")].dropna().map(sum).sum()
        error, freedom = _binomial_variance(found.mean, images), math.inf
    else:
        error = found.std**2 / found.n
        freedom = (found.n - 1) * ((variance + error) / error) ** 2 if error else math.inf
    reach = float(stats.t.ppf((1 + pairing.CONFIDENCE) / 2, freedom)) * math.sqrt(variance + error)
    if abs(found.mean - share) > reach:
        return "too few" if found.mean < share else "too many"
    return "undecided" if share <= reach else "recovered"


def recovered(comparison, cells):
    """Which networks make black and white images as often as they occur among the real ones, if that can be decided for any."""
    said = {cell: {recovery(comparison, cell, name) for name in real_shares(comparison)} - {None, "undecided"} for cell in cells}
    said = {cell: found for cell, found in said.items() if found}
    if said:
        names = [f"{cell[0]}{sampled(comparison, cell[1].how)}" for cell, found in said.items() if found == {"recovered"}]
        what = listed(real_shares(comparison)).capitalize()
        yield (
            f"{what} images come out as often as they occur among the real ones from {len(names)} of "
            f"{count(len(said), 'way')} to train and sample{f': {listed(names)}' if names else ''}."
        )


def recovery_rule(comparison):
    found, total = real_shares(comparison), sum(sum(each["histogram"]) for each in comparison.appearance.values())
    real = listed([f"{share:.1%} {name}" for name, (share, _) in found.items()])
    means = "; ".join(f"{name}: {STATISTICS[name].meaning}" for name in found)
    return (
        f"Of the {total:,} real images, both halves together, {real} ({means}). Recovered: the {pairing.CONFIDENCE:.0%} interval "
        "of the difference between a network's share and the real one includes 0, by the binomial error of the real share "
        "(Agresti and Coull) and the spread over training seeds (Welch's t; for one seed, the binomial error of its share). "
        "Undecided: a share of 0 would pass, too."
    )


# -- what the data do not show


def limits(comparison, metric, pairs, shown):
    """Yields the limits of every comparison, by its facts. `shown`: the cells whose brightness is shown."""
    yield from replication(comparison, metric, pairs)
    yield networks(comparison)
    yield from real(comparison)
    yield from distances(comparison)
    yield from likelihood(comparison)
    yield from levels(comparison)
    yield from brightness(comparison, shown)


def replication(comparison, metric, pairs):
    frame, asked, n = comparison.frame, len(comparison.config["keys"]), len(comparison.seeds)
    few = ", so few that real differences are missed" * (n < 5)
    yield f"{count(n, 'training seed')}: " + (
        "no spread, error or verdict can be given." if n == 1 else f"spreads and intervals rest on {n} networks each{few}."
    )
    if frame["seed"].nunique() == 1:
        yield "1 sampling seed: spreads and intervals do not include what other noise would change."
    cells = len(pairing.differences(comparison, pairs, metric))
    if n > 1 and cells:
        chance = (1 - pairing.CONFIDENCE) * cells
        yield (
            f"{count(cells, 'difference')} judged one by one: with no effect at all, about "
            f"{f'{chance:.0f}' if chance >= 1 else f'{chance:.2g}'} would still be called better or worse."
        )
    if len(frame) < asked:
        yield f"{asked - len(frame)} of {count(asked, 'row')} are not there yet; means are over the rows that are there."
    if comparison.left_out:
        yield f"{count(comparison.left_out, 'row')} of earlier requests in the same folder left out."


def networks(comparison):
    """The images and networks that all results are about."""
    alike, varying = pairing.common(comparison), pairing.varying(comparison)
    differing = lambda group: [name for name in varying if name.startswith(f"{group}.")]
    name, size, channels = (alike.get(f"data.{setting}") for setting in ("name", "image_size", "channels"))
    data = "one data set" + (f", {name!r} at {size}x{size}x{channels}" if None not in (name, size, channels) else "")
    data = f"images that differ in {listed(differing('data'))}" if differing("data") else data
    width, prediction = (alike.get(f"model.{setting}") for setting in ("width", "prediction"))
    network = "one network" + (f", of width {width} predicting {prediction}" if None not in (width, prediction) else "")
    network = f"networks that differ in {listed(differing('model'))}" if differing("model") else network
    return f"{data[0].upper()}{data[1:]}, and {network}: the results may not hold for others."


def real(comparison):
    """A warning if networks could score well by copying images they were trained on."""
    split = comparison.about.get("split")
    if not isinstance(split, str):
        return
    found, which = held(comparison, split)
    if found != "none":
        learnt = "classifier" in comparison.about.get("extractors", {}) and overlap(split, "train") != "none"
        yield (
            f"The real images, also those of the floor, are of {split!r}, {which}: a network that copied the images it was "
            f"trained on would score well.{' The classifier was trained on images of that split, too.' * learnt}"
        )


def distances(comparison):
    sizes = sorted(comparison.frame["num_images"].unique().tolist())
    yield f"Distances are between sets of {listed(sizes)} images: compare them only with numbers of the same name and size."
    extractors = sorted({name for name in ("raw", "classifier", "inception") if any(f"({name}" in m for m in comparison.metrics)})
    if extractors:
        yield f"These distances see only what their extractors see ({listed(extractors)})."
    for name in comparison.metrics:
        cells = comparison.summary(name).values()
        if name in comparison.floor and cells:
            sign = 1 if better(name) == "lower" else -1
            reached = sum(sign * cell.mean <= sign * comparison.floor[name] for cell in cells)
            yield f"{name}: " + (
                f"{reached} of {count(len(cells), 'cell')} at the floor or beyond, where it cannot tell samples from real images."
                if reached
                else "no cell reaches the floor."
            )
    if strange := comparison.frame["strange"].sum():
        yield f"{count(strange, 'number')} infinite or undefined, and left out of all means."


def likelihood(comparison):
    """Which images bits per dimension are measured on, and how precisely."""
    if not (images := evaluated(comparison)):
        return
    yield f"Bits per dimension and the errors at every level are measured on {images}."
    errors = {
        "from drawing levels and noise (Monte Carlo)": typical(comparison.evaluated("bits_per_dim.std_error")),
        "from the choice of images": typical(comparison.evaluated("bits_per_dim.std_error_images")),
    }
    if texts := [f"{number(error)} {source}" for source, error in errors.items() if not math.isnan(error)]:
        seeds = comparison.evaluated("request.seed")[comparison.networks["reason"].isna()]
        alike = bool(seeds.notna().all()) and seeds.nunique() == 1
        yield (
            f"The standard error of one network's bits per dimension is about {listed(texts)}."
            + " All networks share the same draws, so their spread over seeds does not include it." * alike
        )


def levels(comparison):
    """Levels that networks could not be told."""
    refused, clamped = comparison.frame["refused"].dropna(), comparison.frame[comparison.frame["clamped"]]
    if len(refused):
        reasons, others = refused.iloc[0], refused.nunique() - 1
        more = f" (and {count(others, 'other reason')})" if others else ""
        yield f"{count(len(refused), 'row')} refused, and left out of all means: {reasons}{more}"
    if len(clamped):
        finite = clamped["beyond"][np.isfinite(clamped["beyond"])]
        parts = [f"-inf is among them in {count(len(clamped) - len(finite), 'row')}"] * (len(finite) < len(clamped))
        parts += [f"{'in the others ' * bool(parts)}up to {finite.max():.3g} in log-SNR beyond"] if len(finite) else []
        yield (
            f"{count(len(clamped), 'row')} with levels outside the network's table of timesteps, told as the nearest end of it "
            f"({', '.join(parts)})."
        )


def brightness(comparison, shown):
    if not shown:
        return
    total = sum(sum(each["histogram"]) for each in comparison.appearance.values())
    if found := real_shares(comparison):
        rare = [
            f"{round(share * total):,} {name}, a share known to ± {2 * math.sqrt(variance):.1%}"
            for name, (share, variance) in found.items()
        ]
        yield (
            f"Among {total:,} real images are {listed(rare)} (two standard errors): a smaller lack or excess cannot be seen, and "
            "of verdicts on shares that are right, one in twenty is wrong by chance."
            + " One training seed: verdicts on brightness do not include what another would change."
            * (len(comparison.seeds) == 1)
        )
        yield f"{listed(found).capitalize()} are judged under one schedule and one number of calls for each network, those shown."
    silent = (comparison.frame[LOOK("histogram")].isna() & comparison.frame["refused"].isna()).sum()
    if silent:
        yield f"{count(silent, 'row')} of an earlier version without a description of the images: in no number on brightness."


def typical(errors):
    """The root mean square of the errors that are not NaN; NaN if all are."""
    return math.sqrt((errors**2).mean()) if errors.notna().any() else math.nan


def disagreement(comparison):
    """The largest distance of the diffusion term from the profile's integral in any network, in standard errors; or NaN."""
    apart = comparison.evaluated("bits_per_dim.diffusion") - comparison.evaluated("profile.bits_per_dim")
    error = np.hypot(comparison.evaluated("bits_per_dim.std_error"), comparison.evaluated("profile.bits_per_dim_std_error"))
    return (apart.abs() / error.where(error > 0)).max()


# -- of which images

HOLDS = {  # how much of a split was trained on -> a clause that says so
    "all": "which {} trained on",
    "some": "which holds images that {} trained on",
    "maybe": "which may include images that {} trained on",
    "none": "which {} not trained on",
}


def evaluated(comparison):
    """The images of the evaluations: "297 images of 'test', which the networks were not trained on"; "" if there are none."""
    there = comparison.networks[comparison.networks["reason"].isna()].reindex(columns=["num_images", "split"])
    texts = []
    for n, split in dict.fromkeys(there.itertuples(index=False, name=None)):
        images = count(int(n), "image") if isinstance(n, int | float) and n == n else "images"
        known = f"{split!r}, {held(comparison, split)[1]}" if isinstance(split, str) else "a split that is not stored"
        texts.append(f"{images} of {known}")
    return "; and ".join(texts)


def held(comparison, split):
    """("all" | "some" | "maybe" | "none", a clause that says so): how much of a split the networks were trained on."""
    by_kind = {}
    for label, run in comparison.runs.items():
        trained = pairing.settings(run).get("data.split")
        by_kind.setdefault(overlap(split, trained) if trained else "maybe", []).append(label)
    kinds = [kind for kind in HOLDS if kind in by_kind]
    who = {kind: "the networks were" if len(kinds) == 1 else f"those of {listed(by_kind[kind])} were" for kind in kinds}
    return kinds[0], " and ".join(HOLDS[kind].format(who[kind]) for kind in kinds)


def overlap(split, trained):
    """How much of a split is contained in another, as far as their texts show: "all" | "some" | "maybe" | "none"."""
    found = {_overlap(_slice(part), [_slice(other) for other in trained.split("+")]) for part in split.split("+")}
    if len(found) == 1:
        return found.pop()
    return "some" if {"all", "some"} & found else "maybe"


def _overlap(part, others):
    name, begin, end = part
    same = [other for other in others if other[0] == name]
    if any(_before(first, begin) and _before(end, last) for _, first, last in same):
        return "all"
    if "all" in {name, *(other[0] for other in others)}:  # "all" holds every split
        return "maybe"
    apart = [_before(end, first) or _before(last, begin) for _, first, last in same]
    touch = [_before(end, first) is False and _before(last, begin) is False for _, first, last in same]
    return "none" if all(apart) else "some" if any(touch) else "maybe"


def _slice(part):
    """(name, begin, end) of "train[:90%]": ("train", ("", -inf), ("%", 90)); a bound has a unit: "%", images, or from the end."""
    name, _, bounds = part.partition("[")
    begin, _, end = bounds.strip().removesuffix("]").partition(":")

    def bound(text, whole, least):
        text = text.strip()
        if text in whole:
            return "", least
        if not re.fullmatch(r"-?\d+%?", text):
            return f"?{part}", 0
        value = int(text.rstrip("%"))
        if "%" in text:
            return "%", value + 100 * (value < 0)
        return "from the end" if value < 0 else "images", value

    return name.strip(), bound(begin, ("", "0", "0%"), -math.inf), bound(end, ("", "100%"), math.inf)


def _before(one, other):
    """Whether one bound equals another or comes before it; None if their texts do not show it."""
    known = one[0] == other[0] or math.isinf(one[1]) or math.isinf(other[1])
    return one[1] <= other[1] if known else None
