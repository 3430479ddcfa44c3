"""Evaluation of a checkpoint on images that it was not trained on, independent of the schedule that it is sampled with.

It computes the bound in bits per dimension, in continuous time and for the levels of inference schedules; the loss profile, which
is the network's error at every level; its answers at the last trained level and at zero SNR (`zero_snr`); and, if metrics are
requested, the quality of samples. `evaluation.json` holds the numbers, `profile.png` shows the errors above the levels that
training drew. The bound has the same two ends whatever the training schedule, so that runs can be compared, and the share of it
that comes from levels that training never drew is reported. All noise is standard normal, without training's noise offset.

An existing evaluation of the same request, checkpoint, config, data and files is not repeated.
"""

import dataclasses
import json
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tqdm import tqdm

from noisesched import guidance, samplers, schedules
from noisesched.data import pipeline
from noisesched.evaluation import likelihood, metrics, zero_snr
from noisesched.models import conditioning, generate
from noisesched.runs import subject as subjects
from noisesched.runs.requests import Evaluate, Job
from noisesched.runs.settings import ConfigError, require
from noisesched.runs.workdir import Workdir
from noisesched.runtime import cluster, pictures, sharding
from noisesched.runtime.files import read_json, write_atomically, write_json
from noisesched.spec import shortened

BATCH = 128  # images per dispatch and device
PROFILE_NOISES = 2  # draws per image and level of the profile: the fewest that give an error of its integral
PROFILE_DRAWS = 2**20  # the number of the profile's first draw: it shares no noise with the bound
ZERO_SNR_DRAWS = 2**21  # the number of the first draw at the last level and at zero SNR
MOST_DRAWS = 2**24  # of all images together: these take 2 GB of the host's memory
MEAN_VALUES = 2**26  # the data's mean is taken over at most so many values: 21845 images of CIFAR-10
HOLDS = ("checkpoint", "bits_per_dim", "profile", "last_level", "zero_snr")  # what a complete evaluation.json holds
WHERE = (
    "workdir",
    "denoiser",
    "out",
    "checkpoint",
    *(field.name for field in dataclasses.fields(Job)),
)  # fields that affect no number
OF_SAMPLES = ("schedule", "steps", "method", "guidance", "num_samples", "real", "inception_weights")  # for samples alone


# -- the program


def main(request):
    """The command."""
    run(request)


def run(request, say=tqdm.write):
    """Carries out a `requests.Evaluate`; returns the content of evaluation.json. All processes call it, the first one writes.

    Raises ValueError or FileNotFoundError, in one line and before any long work, if the request is invalid; ValueError that names
    the level if the network's estimates are not finite.
    """
    asked = subjects.asked(request)
    out = request.out or (Workdir(asked.name).path / "evaluation" if asked.config else "")
    if not out:
        raise ConfigError("give --out=DIR: a --denoiser has no folder of its own")
    with cluster.own(out) as folder:
        return _run(asked, request, epath.Path(folder), say)


def _run(asked, request, out, say):
    # ---- The network, and whether it is evaluated already.
    check(asked, request)
    paths = discrete_paths(asked, request)
    split = cluster.in_turn(lambda: held_out(asked, request))
    whole, plain = (identity(asked, each, split) for each in (request, without_metrics(request)))
    wanted = request.checkpoint
    if asked.config and wanted is None:
        wanted = cluster.by_first(Workdir(asked.name).latest_step)
    found = cluster.by_first(lambda: existing(out, request.best_levels))
    if found and found["checkpoint"] == wanted and whole.items() <= found.items():
        say(f"{out}: {'step ' + str(wanted) if asked.config else asked.name} is evaluated already")
        return found

    # ---- The network, the images, and those to compare samples with.
    subject = subjects.loaded(asked, request.parameters, request.checkpoint, say)
    subject = subjects.translated(subject, request.translation)
    examples = pipeline.examples(split, request.num_images or None)
    images, labels = examples["image"], examples["label"] if subject.num_classes else None
    average = trained_average(subject)
    reference = cluster.in_turn(lambda: real_images(subject, request, say))
    out.mkdir(parents=True, exist_ok=True)  # fails now rather than after the work

    # ---- Likelihood, written to disk before any sample is made.
    result = {
        "checkpoint": subject.step,
        "parameters": request.parameters,
        "split": request.split,
        "num_images": len(images),
        "noises": request.noises,
        **plain,
    }
    result |= likelihood_of(subject, images, labels, request, paths)
    result |= zero_snr_of(subject, images, labels, request.seed, average)
    for line in summary(result, subject):
        say(line)
    path, profile = best_path(out, request.best_levels), result["profile"]
    path.unlink(missing_ok=True)  # of another evaluation
    write_json(out / "evaluation.json", result)
    with pictures.beside_results(say):
        pictures.save_figure(out / "profile.png", profile_figure(result, subject.schedule))
    if request.best_levels:
        found = likelihood.best_schedule(profile["log_snr"], profile["x"], images, request.best_levels)
        write_atomically(path, "".join(f"{level:.6f}\n" for level in found))
        say(f"  the {request.best_levels} levels with the lowest bound in discrete time: \"piecewise('{path}')\"")
    if not reference:
        return result

    # ---- Samples.
    with tqdm(total=request.num_samples, desc="sampling", unit="image", disable=None) as bar:
        made = generate.generate(
            subject.network,
            schedules.levels(sampled_schedule(subject, request), request.steps),
            request.num_samples,
            request.method,
            seed=request.seed,
            guide=guidance.parse(request.guidance),
            progress=bar.update,
            labels=reference.labels if subject.num_classes else None,
        )
    quality = reference.measure(made)
    for name, value in quality.items():
        floor = f"   (between real images: {reference.floor[name]:.4g})" if name in reference.floor else ""
        say(f"{name:34} {value:.4g}{floor}")
    result |= whole | {"quality": quality, "floor": reference.floor, "reference": reference.about}
    write_json(out / "evaluation.json", result)
    return result


def identity(subject, request, split):
    """Everything but the checkpoint that determines the numbers of an evaluation, in JSON's types.

    Schedules are printed with the numbers of their files, so that a file's content counts, not
    its name; the data and the file of Inception's weights have checksums.
    """
    left_out = [*WHERE, *(() if request.metrics else OF_SAMPLES)]
    asked = {name: value for name, value in dataclasses.asdict(request).items() if name not in left_out}
    asked["discrete"] = [[str(schedules.make(text)), n] for text, n in request.discrete]
    asked["metrics"] = [str(metrics.parse(text)) for text in request.metrics]
    if request.metrics:
        asked["schedule"] = str(sampled_schedule(subject, request))
    if request.metrics and request.inception_weights:
        from noisesched.evaluation import inception

        asked["inception_weights_crc32"] = zlib.crc32(inception.find(request.inception_weights).read_bytes())
    return {
        "config_crc32": zlib.crc32(json.dumps(subject.stored).encode()),
        "drawn": str(subject.schedule),
        "data": split.identity,
        "request": json.loads(json.dumps(asked)),
    }


def without_metrics(request):
    """The same request without samples."""
    fields = {field.name: field.default for field in dataclasses.fields(Evaluate)}
    return dataclasses.replace(request, **{name: fields[name] for name in ("metrics", *OF_SAMPLES)})


def sampled_schedule(subject, request):
    """The schedule that samples are made with: the training schedule, unless the request names another."""
    return schedules.make(request.schedule or subject.schedule)


def check(subject, request):
    """Raises ConfigError if the request is invalid for this network."""
    require(request.split, "split='': name the images to measure, such as 'test'")
    require(
        subject.data.dtype == "uint8",
        f"bits per dimension are defined for 8-bit images, and these are {subject.data.dtype}: `noisesched compare` measures "
        "samples of them, with likelihood='' and metrics such as frechet(raw)",
    )
    low, high = request.log_snr_min, request.log_snr_max
    require(-30 <= low < high <= 20, f"the ends of the bound, log-SNR {low:g} to {high:g}, must rise and lie in -30 to 20")
    require(
        2 <= request.noises < PROFILE_DRAWS and request.noises % 2 == 0,
        f"noises={request.noises}: draws come in pairs, which give the error; give an even number from 2 to {PROFILE_DRAWS - 2}",
    )
    known = len(likelihood.candidates(low, high))
    require(
        request.best_levels <= known,
        f"best_levels={request.best_levels}: the measured range of log-SNR, {low:g} to {high:g}, has only {known} levels to "
        f"choose from, {likelihood.RESOLUTION} apart",
    )
    require(request.num_images != 1, f"num_images={request.num_images}: give 2 or more, or 0 for all")
    subject.check_translation(request.translation, conditioning.TRANSLATIONS)
    plain = without_metrics(request)
    given = [name for name in OF_SAMPLES if getattr(request, name) != getattr(plain, name)]
    require(
        request.metrics or not given,
        f"{', '.join(f'{name}={getattr(request, name)!r}' for name in given)}: samples are only made for metrics; give "
        "some, such as --metrics 'frechet(classifier)'",
    )
    extractors = {metrics.parse(text).extractor for text in request.metrics}
    require(
        "inception" in extractors or not request.inception_weights,
        f"inception_weights={request.inception_weights!r}: none of the metrics uses them; given: {', '.join(request.metrics)}",
    )
    if request.metrics:
        schedule = sampled_schedule(subject, request)
        log_snrs = np.asarray(schedules.levels(schedule, request.steps))
        subject.check_levels(request.schedule or schedule, log_snrs)
        samplers.make(request.method)
        subject.check_guidance(request.guidance)


def discrete_paths(subject, request):
    """[(schedule, number of levels, path)] for `request.discrete`: the levels that sampling visits, and where they end.

    Levels cleaner than log_snr_max are left out. The first level may be -inf.
    """
    paths = []
    for text, n in request.discrete:
        log_snrs = np.asarray(schedules.levels(schedules.make(text), n), np.float64)
        subject.check_levels(text, log_snrs)
        log_snrs = log_snrs[log_snrs < request.log_snr_max]
        log_snrs = np.append(log_snrs, np.minimum(likelihood.end_of(log_snrs[-1:]), request.log_snr_max))
        try:
            paths.append((text, len(log_snrs) - 1, likelihood.discrete(log_snrs)))
        except ValueError as error:
            raise ConfigError(f"the bound of {n} levels of {text!r}: {error}") from None
    return paths


def held_out(subject, request):
    """The requested pipeline.Split. ConfigError if its classes are not the network's, or it has too few or too many images."""
    split = pipeline.open_config(subject.data, request.split)
    if subject.num_classes not in (0, split.num_classes):
        raise ConfigError(f"this network knows {subject.num_classes} classes, {split.name} has {split.num_classes}")
    if request.num_images > len(split):
        raise ConfigError(f"num_images={request.num_images}: {split.name} has {len(split)} images")
    count = request.num_images or len(split)
    if count < 2:
        raise ConfigError(f"{split.name} has one image, which gives no standard error: give 2 or more")
    for name, draws in (("noises", 1), ("profile_levels", PROFILE_NOISES)):
        most = MOST_DRAWS // (count * draws) // 2 * 2
        if getattr(request, name) > most:
            raise ConfigError(
                f"{name}={getattr(request, name)} for {count} images: memory is limited to {MOST_DRAWS} draws, so give up to "
                f"{most}, or take fewer images, or several seeds"
            )
    return split


def real_images(subject, request, say):
    """The `features.Reference` for samples, from the split that was trained on; None without metrics."""
    if not request.metrics:
        return None
    from noisesched.evaluation import features

    return features.reference(
        subject.data,
        request.num_samples,
        request.metrics,
        split=subject.data.split,
        inception_weights=request.inception_weights,
        real=request.real,
        say=say,
    )


def trained_average(subject):
    """The `zero_snr.Average` of the training images, by class if the network has classes; of evenly spaced ones if many."""
    given, classes = subject.data, subject.num_classes
    split = pipeline.open_config(given)
    count = min(len(split), max(MEAN_VALUES // (given.image_size**2 * given.channels), 1))
    images, labels = split.source.read(np.arange(count) * len(split) // count)
    return zero_snr.average(images, labels if classes else np.zeros_like(labels), classes or 1, given.flip)


# -- likelihood


def likelihood_of(subject, images, labels, request, paths=()):
    """{"bits_per_dim": .., "discrete": [..], "profile": ..} of held-out images, uint8 [n, H, W, C], and labels [n] or None.

    `paths`: from `discrete_paths`. All parts use one compiled program, and all bounds the same positions and noise.
    """
    low, high = request.log_snr_min, request.log_snr_max
    everywhere = likelihood.continuous(f"uniform_log_snr(log_snr_max={high!r}, log_snr_min={low!r})")
    index, dimensions = np.arange(len(images)), math.prod(images.shape[1:])
    profile_levels = np.linspace(low, high, request.profile_levels)
    repeated = np.tile(np.repeat(profile_levels, PROFILE_NOISES), (len(images), 1))
    total = len(images) * request.noises * (1 + len(paths)) + repeated.size
    with tqdm(total=total, desc="likelihood", unit="image", unit_scale=True, disable=None) as bar:
        errors = squared_errors(subject.network, images, labels, request.seed, bar.update)

        def bounded(path):
            drawn = likelihood.plan(path, request.seed, index, request.noises)
            found = errors(drawn.log_snr)
            return drawn, found, dataclasses.asdict(likelihood.bound(path, drawn, found, images))

        drawn, found, bits = bounded(everywhere)
        discrete = [{"schedule": text, "num_levels": n} | bounded(path)[2] for text, n, path in paths]
        found_profile = errors(repeated, PROFILE_DRAWS).reshape(len(images), request.profile_levels, PROFILE_NOISES)
    profile = dataclasses.asdict(likelihood.profile(profile_levels, found_profile, dimensions))
    profile = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in profile.items()}
    profile["noises"] = PROFILE_NOISES
    first, last = subject.trained_range
    noisier, cleaner = likelihood.diffusion_outside(drawn, found, images, first, last)
    untrained = {
        "log_snr_min": first,
        "log_snr_max": last,
        "noisier": noisier,
        "cleaner": cleaner,
        "share": (noisier + cleaner) / bits["value"],
    }
    return {"bits_per_dim": bits | {"untrained": untrained}, "discrete": discrete, "profile": profile}


def zero_snr_of(subject, images, labels, seed, average):
    """{"last_level": .., "zero_snr": ..} of held-out images, as defined in `zero_snr`: by the same compiled program."""
    errors = squared_errors(subject.network, images, labels, seed, lambda count: None)
    ask = lambda log_snrs, first_draw=0, out=None: errors(log_snrs, ZERO_SNR_DRAWS + first_draw, out)
    classes = np.zeros(len(images), int) if labels is None else labels
    end, answers = float(subject.schedule(1.0)), subjects.network_answers(subject.network, -math.inf)
    if math.isinf(end) and not answers:  # as of EDM's, whose density of levels has no end: one in a thousand is noisier
        end = float(subject.schedule(0.999))
    last = zero_snr.last_level(ask, end, images, classes, average)
    zero = zero_snr.zero_snr(ask, images, classes, average, answers=answers)
    return {"last_level": dataclasses.asdict(last), "zero_snr": dataclasses.asdict(zero)}


def squared_errors(network, images, labels, seed, progress):
    """The function (log_snrs [n, K], number of the first draw, out) -> squared errors float64 [n, K] of the first n images.

    The estimates x_hat are written to `out`, if given: float32 [n, K, H, W, C]. It works in batches of one size, each split over
    the devices of all processes, and the errors do not depend on these.
    """
    size = BATCH * jax.device_count()
    network, seed = sharding.on_all((network, jnp.uint32(seed)))

    def errors(log_snrs, first_draw=0, out=None):
        draws, levels, results = log_snrs.shape[1], log_snrs.ravel().astype(np.float32), np.empty(log_snrs.size)
        for first in range(0, levels.size, size):
            rows = np.arange(first, first + size) % levels.size  # the last batch is filled up with earlier rows
            index, draw = (rows // draws).astype(np.int32), (first_draw + rows % draws).astype(np.int32)
            batch = sharding.rows_over_all(
                (images[index], None if labels is None else labels[index].astype(np.int32), index, draw, levels[rows])
            )
            x_hat, error = estimates(network, seed, *batch)
            made = np.asarray(sharding.collected(error), np.float64)[: levels.size - first]
            if not np.isfinite(made).all():
                bad = levels[first : first + size][~np.isfinite(made)]
                raise ValueError(
                    f"the network's estimate of the image is not finite at log-SNR {bad[0]:.4g} ({bad.size} of "
                    f"{made.size} estimates, from {bad.min():.4g} to {bad.max():.4g})"
                )
            results[first : first + size] = made
            if out is not None:
                out.reshape(levels.size, *images.shape[1:])[first : first + size] = sharding.collected(x_hat)[: made.size]
            progress(made.size)
        return results.reshape(log_snrs.shape)

    return errors


@jax.jit
def estimates(network, seed, images, labels, index, draw, log_snr):
    """`likelihood.estimates` of a network for images uint8 [B, H, W, C]. Compiled once for all runs of one network."""
    denoise = lambda z, log_snr: network(z, log_snr, labels)
    return likelihood.estimates(denoise, seed, pictures.scale(images), index, draw, log_snr)


# -- files, tables, plots


def existing(out, n):
    """The evaluation in a folder, or None if it is missing or incomplete, the file of its n best levels included."""
    try:
        found = read_json(out / "evaluation.json")
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    files = [out / "profile.png", *([best_path(out, n)] if n else [])]
    return found if all(name in found for name in HOLDS) and all(path.exists() for path in files) else None


def best_path(out, n):
    return out / f"best_{n}_levels.txt"


def summary(result, subject):
    """The lines of an evaluation's table."""
    bits, profile, untrained = result["bits_per_dim"], result["profile"], result["bits_per_dim"]["untrained"]
    of = f"step {subject.step} ({result['parameters']})" if subject.config else subject.name
    yield (f"{of}, {result['num_images']} images of {result['split']!r}, bits per dimension:")
    rows = {"continuous time": bits}
    for row in result["discrete"]:
        rows[f"{shortened(row['schedule'])}, {row['num_levels']} levels"] = row
    for name, row in rows.items():
        yield (
            f"  {name:28} {row['value']:.4f} +- {row['std_error']:.4f} = diffusion {row['diffusion']:.4f} + prior "
            f"{row['prior']:.4f} + reconstruction {row['reconstruction']:.4f}"
        )
    yield f"  {'diffusion, by the profile':28} {profile['bits_per_dim']:.4f} +- {profile['bits_per_dim_std_error']:.4f}"
    yield (
        f"  {'at levels never drawn':28} {untrained['noisier']:.4f} noisier, {untrained['cleaner']:.4f} cleaner than training "
        f"with {shortened(str(subject.schedule))} went, together {untrained['share']:.1%} of the bound"
    )
    yield from zero_snr.lines(result["last_level"], result["zero_snr"])


def profile_figure(result, schedule):
    """A Figure of the loss profile as eps, x and v error, above the density of the levels that training drew."""
    profile, bits = result["profile"], result["bits_per_dim"]
    log_snr = np.asarray(profile["log_snr"])
    figure = pictures.new_figure(13, 4.4, layout="constrained")
    panels = figure.subplots(1, 3)
    pictures.tidy_axes(panels)
    drawn = np.asarray(schedule((np.arange(20_000) + 0.5) / 20_000))
    density, edges = np.histogram(drawn[np.isfinite(drawn)], bins=60, range=(log_snr[0], log_snr[-1]))
    for panel, kind in zip(panels, ("eps", "x", "v"), strict=True):
        error, margin = np.asarray(profile[kind]), 2 * np.asarray(profile[f"{kind}_std_error"])
        below = panel.twinx()
        below.set(ylim=(0, 2.5 * max(density.max(), 1)), yticks=[])
        below.stairs(density, edges, fill=True, color=pictures.COLOURS[5], alpha=0.3)
        below.spines[["top", "right"]].set_visible(False)
        panel.set_zorder(below.get_zorder() + 1)
        panel.patch.set_visible(False)
        pictures.line_and_band(panel, log_snr, error, margin, opacity=0.3, color=pictures.COLOURS[3], linewidth=1.6)
        panel.set(title=f"{kind} error", xlabel=pictures.NOISE_LEFT, xlim=log_snr[[0, -1]], ylim=(0, None))
    figure.suptitle(
        f"{bits['value']:.3f} ± {bits['std_error']:.3f} bits per dimension on {result['num_images']} images of "
        f"{result['split']!r}\nmean squared error per dimension, within two standard errors; shaded: levels drawn in "
        f"training, {shortened(str(schedule))}",
        fontsize=10,
    )
    return figure
