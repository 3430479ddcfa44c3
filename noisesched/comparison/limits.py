"""What the data of a comparison do not show, as sentences made from its facts; and of which images its numbers are.

Splits are compared by their texts alone, in tensorflow-datasets' notation ("train[:90%]", "train+test"): two of one name are
called disjoint only where the texts show that they are.
"""

import math
import re

from noisesched.comparison import pairs as pairing
from noisesched.comparison import results
from noisesched.comparison.html import number
from noisesched.comparison.text import count, listed

HOLDS = {  # how much of a split was trained on -> a clause that says so
    "all": "which {} trained on",
    "some": "which holds images that {} trained on",
    "maybe": "which may include images that {} trained on",
    "none": "which {} not trained on",
}


def limits(comparison, metric, pairs):
    """[str]: of every comparison, as its facts have it."""
    parts = (replication, networks, real, distances, likelihood, levels)
    return [line for part in parts for line in part(comparison, metric, pairs)]


# -- the parts


def replication(comparison, metric, pairs):
    rows, asked, n = comparison.rows, len(comparison.config["keys"]), len(comparison.seeds)
    few = ", so few that real differences are missed" * (n < 5)
    yield f"{count(n, 'training seed')}: " + (
        "no spread, no error and no verdict can be given." if n == 1 else f"spreads and intervals rest on {n} networks each{few}."
    )
    if len({row["seed"] for row in rows}) == 1:
        yield (
            "1 sampling seed: all networks started from the same noise, so that what other noise would change is in no spread "
            "and no interval."
        )
    cells = sum(
        bool(results.differences(comparison, pair.first, pair.second, task, metric))
        for pair in pairs
        for task in comparison.tasks
    )
    if n > 1 and cells:
        chance = (1 - results.CONFIDENCE) * cells
        yield (
            f"{count(cells, 'difference')} looked at one by one: were there no effect at all, "
            f"{f'about {chance:.0f}' if chance >= 1 else f'{chance:.2g} of them'} would be called better or worse."
        )
    if len(rows) < asked:
        yield f"{asked - len(rows)} of {count(asked, 'row')} are not there yet; means are over the rows that are."
    if comparison.left_out:
        yield f"{count(comparison.left_out, 'row')} of earlier requests in the same folder left out."


def networks(comparison, metric, pairs):
    """Of what images and networks all of it is."""
    common, varying = pairing.common(comparison), pairing.varying(comparison)
    differing = lambda group: [name for name in varying if name.startswith(f"{group}.")]
    name, size, channels = (common.get(f"data.{setting}") for setting in ("name", "image_size", "channels"))
    data = "one data set" + (f", {name!r} at {size}x{size}x{channels}" if None not in (name, size, channels) else "")
    data = f"images that differ in {listed(differing('data'))}" if differing("data") else data
    width, prediction = (common.get(f"model.{setting}") for setting in ("width", "prediction"))
    network = "one network" + (f", of width {width} predicting {prediction}" if None not in (width, prediction) else "")
    network = f"networks that differ in {listed(differing('model'))}" if differing("model") else network
    yield f"{data[0].upper()}{data[1:]}, and {network}: what holds here may not hold for others."


def real(comparison, metric, pairs):
    """The real images, if copies of what was trained on would be near to them."""
    split = comparison.about.get("split")
    if not isinstance(split, str):
        return
    found, which = held(comparison, split)
    if found != "none":
        learnt = "classifier" in comparison.about.get("extractors", {}) and overlap(split, "train") != "none"
        yield (
            f"The real images, those of the floor too, are of {split!r}, {which}: a network that copied the images it was "
            f"trained on would score well.{' The classifier was trained on images of that split, too.' * learnt}"
        )


def distances(comparison, metric, pairs):
    rows = comparison.rows
    sizes = sorted({row["num_images"] for row in rows})
    yield (
        f"Distances are between sets of {listed(sizes)} images, the real ones the same throughout, and depend on that number "
        "and on the extractor: they compare with numbers of the same name alone."
    )
    extractors = sorted({name for name in ("raw", "classifier", "inception") if any(f"({name}" in m for m in comparison.metrics)})
    if extractors:
        yield f"What the extractor does not see ({listed(extractors)}), these distances do not see."
    for name in comparison.metrics:
        cells = [cell for place in comparison.cells if (cell := comparison.summary(*place, name))]
        if name in comparison.floor and cells:
            sign = 1 if results.better(name) == "lower" else -1
            reached = sum(sign * cell.mean <= sign * comparison.floor[name] for cell in cells)
            yield f"{name}: " + (
                f"{reached} of {count(len(cells), 'cell')} at the floor or beyond, where it cannot tell samples from real images."
                if reached
                else "no cell reaches the floor."
            )
    strange = sum(not math.isfinite(value) for row in rows for value in row["metrics"].values())
    if strange:
        yield f"{count(strange, 'number')} infinite or undefined, and in no mean."


def likelihood(comparison, metric, pairs):
    """Of which images the bits are, and how exact."""
    if not (found := [each for of_run in comparison.evaluations.values() for each in of_run.values()]):
        return
    yield f"Bits per dimension and the errors at every level are of {evaluated(comparison)}."
    errors = [
        (typical(found), "of drawing levels and noise (Monte Carlo)"),
        (typical(found, "bits_per_dim", "std_error_images"), "of having these images and no others"),
    ]
    errors = [f"{number(error)} {of}" for error, of in errors if error is not None]
    if errors:
        seeds = numbers(found, "request", "seed")
        alike = len(seeds) == len(found) and len(set(seeds)) == 1
        yield (
            f"The standard error of one network's bits per dimension is about {listed(errors)}."
            + " All networks share the same draws: that is no part of their spread over seeds." * alike
        )


def levels(comparison, metric, pairs):
    """What networks could not be told."""
    rows = comparison.rows
    refused, clamped = results.handled(rows, "refused"), [row for row in rows if results.handled([row], "clamped")]
    if refused:
        reasons = dict.fromkeys(row["refused"] for row in rows if row["refused"])
        yield (
            f"{count(refused, 'row')} refused, and in no mean: {next(iter(reasons))}"
            + (f" (and {count(len(reasons) - 1, 'other reason')})" if len(reasons) > 1 else "")
        )
    if clamped:
        beyond = [row["outside"].get("by", 0) for row in clamped]
        finite = [by for by in beyond if math.isfinite(by)]
        parts = [f"-inf is among them in {count(len(beyond) - len(finite), 'row')}"] * (len(finite) < len(beyond))
        parts += [f"{'in the others ' * bool(parts)}up to {max(finite):.3g} in log-SNR beyond"] if finite else []
        yield (
            f"{count(len(clamped), 'row')} with levels outside the network's table of timesteps, told as its nearest end "
            f"({', '.join(parts)})."
        )


# -- of which images


def evaluated(comparison):
    """The images of the evaluations: "297 images of 'test', which the networks were not trained on"."""
    found = dict.fromkeys(
        (each.get("num_images"), each.get("split")) for of_run in comparison.evaluations.values() for each in of_run.values()
    )
    texts = []
    for n, split in found:
        images = count(n, "image") if isinstance(n, int) else "images"
        known = isinstance(split, str)
        texts.append(f"{images} of {f'{split!r}, {held(comparison, split)[1]}' if known else 'a split that is not stored'}")
    return "; and ".join(texts)


def held(comparison, split):
    """("all" | "some" | "maybe" | "none", a clause that says so): how much of a split the networks were trained on."""
    by_kind = {}
    for label, run in comparison.runs.items():
        trained = pairing.settings(run).get("data.split")
        by_kind.setdefault(overlap(split, trained) if isinstance(trained, str) else "maybe", []).append(label)
    kinds = [kind for kind in HOLDS if kind in by_kind]
    who = {kind: "the networks were" if len(kinds) == 1 else f"those of {listed(by_kind[kind])} were" for kind in kinds}
    return kinds[0], " and ".join(HOLDS[kind].format(who[kind]) for kind in kinds)


def overlap(split, trained):
    """How much of a split is in another: "all" | "some" | "maybe" | "none", as far as their texts show."""
    others, found = [_slice(part) for part in trained.split("+")], []
    for name, begin, end in (_slice(part) for part in split.split("+")):
        same = [other for other in others if other[0] == name or "all" in (other[0], name)]
        within = any(other[0] == name and other[1:] in ((begin, end), (None, None)) for other in same)
        holds = begin is end is None and any(other[0] == name for other in same)
        apart = all(other[0] == name and _before((begin, end), other[1:]) for other in same)
        found.append("all" if within else "none" if apart else "some" if holds else "maybe")
    if len(set(found)) == 1:
        return found[0]
    return "some" if {"all", "some"} & set(found) else "maybe"


def _slice(part):
    """(name, begin, end) of "train[:90%]": ("train", None, "90%"). For what is not of this form, they begin with "?"."""
    found = re.fullmatch(r"\s*(\w+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*", part)
    if not found:
        return re.match(r"\s*(\w*)", part)[1], f"?{part}", f"?{part}"
    name, begin, end = found.groups()
    return name, None if begin in ("0", "0%") else begin, None if end == "100%" else end


def _before(one, other):
    """Whether one of two slices visibly ends where the other begins, or before that."""

    def reaches(end, begin):
        if None in (end, begin) or "?" in end + begin:
            return False
        units = ["%" in each for each in (end, begin)] + [each.startswith("-") for each in (end, begin)]
        values = [int(each.rstrip("%")) for each in (end, begin)]
        if all(units[:2]):  # percent from the end are percent from the beginning
            values = [value + 100 * (value < 0) for value in values]
            return values[0] <= values[1]
        return units[0] == units[1] and units[2] == units[3] and values[0] <= values[1]

    return reaches(one[1], other[0]) or reaches(other[1], one[0])


def typical(evaluations, *keys):
    """The root mean square over evaluations of an error, the bound's own or the one at `keys`; None if none is stored."""
    errors = numbers(evaluations, *(keys or ("bits_per_dim", "std_error")))
    return math.sqrt(sum(error**2 for error in errors) / len(errors)) if errors else None


def disagreement(evaluations):
    """[how many standard errors the diffusion term and the profile's integral lie apart], of evaluations that store both."""
    found = []
    for each in evaluations:
        keys = (
            ("bits_per_dim", "diffusion"),
            ("profile", "bits_per_dim"),
            ("bits_per_dim", "std_error"),
            ("profile", "bits_per_dim_std_error"),
        )
        terms = [value for place in keys for value in numbers([each], *place)]
        if len(terms) == 4 and (error := math.hypot(*terms[2:])):
            found.append(abs(terms[0] - terms[1]) / error)
    return found


def numbers(evaluations, *keys):
    """The finite numbers at these keys of evaluations, of those that have one."""
    found = []
    for value in evaluations:
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found.append(value)
    return found
