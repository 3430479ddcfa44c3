"""The real half of a comparison: as many real images as samples, or all of a split, and the features that metrics compare.

Three extractors turn images into features:

- `raw`: the pixels themselves. Needs nothing; similar means equal in pixels, not in content.
- `classifier`: the last hidden layer of a small convolutional network, trained here on the data set's own labels if it has any.
  `about` has its accuracy on images it was not trained on; the images compared are partly ones it was trained on.
- `inception`: Inception-V3 from a file of weights (`noisesched.evaluation.inception`), as in published FIDs.

Results that depend on real images alone are kept beside the prepared data set, in `noisesched_features/`. Each file is named by,
and holds, everything that determined its content, so no other request finds it (the .json next to it is for people).
"""

import dataclasses
import functools
import hashlib
import io
import json
import uuid
import zlib
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from noisesched.data import pipeline
from noisesched.evaluation import classifier, image_stats, inception, metrics
from noisesched.runtime import pictures
from noisesched.runtime.files import read_file, reason

FOLDER = "noisesched_features"
MOST = 2**34  # bytes of the largest file of kept features that is read
SEED = 0  # of the choice of real images, and of the classifier
PART = 1024  # images at a time, where all of a split are read
WIDEST = 2**13  # features whose moments are taken: their scatter has 512 MiB


# -- the two halves


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real images, prepared for the metrics; `measure` compares n samples with them."""

    shape: tuple[int, ...]  # of the samples: (n, H, W, C)
    dtype: np.dtype  # uint8 or float32
    labels: np.ndarray  # int32 [n], of as many real images: compare with samples of the same classes
    floor: dict[str, float]  # the same numbers for n other real images: what a perfect sampler would get; {} where all are used
    appearance: dict[str, dict] | None  # {"real", "floor"}: the `looks` of these and the other images, if they have any
    about: dict  # a description for JSON
    extractors: dict
    distances: dict[str, tuple[metrics.Measure, Callable]]  # of each number's name

    def measure(self, images):
        """{name: float} for samples [n, H, W, C]. ValueError for another number, shape or type of images."""
        if getattr(images, "dtype", None) != self.dtype or np.shape(images) != self.shape:
            got = f"{getattr(images, 'dtype', type(images).__name__)} {list(np.shape(images))}"
            raise ValueError(f"these metrics compare {self.dtype} images {list(self.shape)}; got {got}")
        return _compare(self.distances, _extracted(self.extractors, np.asarray(images)))


def reference(config_data, n, measures, *, split, inception_weights="", real="paired", say=tqdm.write):
    """The Reference of images of a data set for n samples.

    config_data        a Config's `data`: which data set, at which image size
    measures           metrics.Measure or their texts, e.g. "frechet(classifier)"
    split              the real images to choose from, e.g. "train+test": the first n of a seeded random permutation are compared
                       with samples, the next n give the floor
    inception_weights  the file of weights that `inception` needs
    real               "paired"; or "all": every image of the split, of which only the moments of the features are kept, for any
                       n, without a floor, as published FIDs are computed

    Raises ValueError or FileNotFoundError, in one line, if the split has fewer than 2 n images, n is too small for a metric, a
    metric cannot take all images, or the data or files lack what an extractor needs. Trains the classifier if it is needed and
    not kept, which takes a while.
    """
    measures, whole = _parsed(measures), real == "all"
    real = _real(config_data, n, measures, split, whole)
    kept = Kept(real.folder, say)
    made = {
        name: ready(config_data, inception_weights, kept, say)
        for name, ready in EXTRACTORS.items()
        if any(each.extractor == name for each in measures)
    }
    key = {"data": real.identity, "split": split, "image_size": config_data.image_size, "channels": config_data.channels}
    if whole:
        for name, each in made.items():
            if each.about["dimension"] > WIDEST:
                raise ValueError(
                    f"{name} has {each.about['dimension']} features; with all real images up to {WIDEST} can be used"
                )
        count, seen = len(real), {name: _moments(name, each, real, kept, key) for name, each in made.items()}
        labels = np.resize(next(iter(seen.values()))["labels"][_chosen(real, count)], n)
        shape, others, look = (n, *real.source.shape), None, None
    else:
        numbers, count = _chosen(real, 2 * n), None
        (images, labels), (rest, _) = real.source.read(numbers[:n]), real.source.read(numbers[n:])
        seen, others = (_extracted(made, half, kept, key | {"n": n}) for half in (images, rest))
        shape = images.shape
        look = {"real": looks(images), "floor": looks(rest)}
        look = look if all(look.values()) else None
    distances = {}
    for each in measures:
        metric = metrics.METRICS[each.metric]
        distances[metrics.name(each, n, count)] = each, metric.against(seen[each.extractor][metric.takes])
    about = {
        "data": real.identity,
        "split": split,
        "split_size": len(real),
        "n": n,
        "real": count or n,
        "seed": SEED,
        "extractors": {name: each.about for name, each in made.items()},
    }
    floor = _compare(distances, others) if others else {}
    return Reference(shape, np.dtype(config_data.dtype), labels, floor, look, about, made, distances)


def looks(images):
    """`image_stats.describe` of images [n, H, W, C]; None where it is not defined: floats, and neither gray nor RGB."""
    return image_stats.describe(images) if images.dtype == np.uint8 and images.shape[3] in (1, 3) else None


def check(config_data, n, measures, *, split, inception_weights="", num_classes=0):
    """Raises what `reference` would raise for its arguments, without training or extracting anything.

    Returns what the arguments refer to now: {"data": the data set's identity, "split", "n", "version": of the extractors,
    "weights_crc32": Inception's or None}. `num_classes`: of a network with classes, whose samples are made for the real images'
    labels; 0: without classes.
    """
    measures = _parsed(measures)
    real = _real(config_data, n, measures, split)
    if num_classes:
        labels = real.source.read(_chosen(real, n))[1]
        if not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(
                f"{real.name} has labels {labels.min()} to {labels.max()} (-1: kept secret), and the network has "
                f"0 to {num_classes - 1}: take another split, such as 'train'"
            )
    wanted, crc32 = {each.extractor for each in measures}, None
    if "classifier" in wanted:
        classifier.training_split(config_data)
    if "inception" in wanted:
        crc32 = EXTRACTORS["inception"](config_data, inception_weights, None, None).about["weights_crc32"]
    return {"data": real.identity, "split": split, "n": n, "version": classifier.VERSION, "weights_crc32": crc32}


def _parsed(measures):
    return list(dict.fromkeys(metrics.parse(each) if isinstance(each, str) else each for each in measures))


def _real(config_data, n, measures, split, whole=False):
    for each in measures:
        metrics.METRICS[each.metric].check(n, whole)
        if config_data.dtype != "uint8" and each.extractor != "raw":
            raise ValueError(f"{each} is of 8-bit images, and these are {config_data.dtype}: measure by raw, e.g. frechet(raw)")
        if config_data.channels not in (1, 3) and each.extractor == "inception":
            raise ValueError(f"{each} is of gray or RGB images, and these have {config_data.channels} channels: measure by raw")
    real = pipeline.open_config(config_data, split)
    if not whole and not 0 < 2 * n <= len(real):
        raise ValueError(f"n={n}: {real.name} has {len(real)} images, and two sets of n are needed: choose 1 to {len(real) // 2}")
    return real


def _chosen(real, count):
    """The numbers of the first `count` images of the seeded permutation."""
    return np.random.default_rng(SEED).permutation(len(real))[:count]


def _moments(name, extractor, real, kept, key):
    """{"features": Moments, .., "labels": int32 [N]} of all N images of a split, read in parts; through `kept`."""

    def make():
        found, labels = {}, []
        with tqdm(total=len(real), desc="real images", unit="image", disable=None) as bar:
            for start in range(0, len(real), PART):
                images, part = real.source.read(np.arange(start, min(start + PART, len(real))))
                for output, values in extractor.extract(images).items():
                    moments = metrics.Moments.of(values)
                    found[output] = found[output] + moments if output in found else moments
                labels.append(part)
                bar.update(len(part))
        arrays = {(output, field): value for output, moments in found.items() for field, value in vars(moments).items()}
        return {"labels": np.concatenate(labels)} | {" ".join(names): np.asarray(value) for names, value in arrays.items()}

    if extractor.identity:
        arrays = kept.get(f"{name} moments", key | {"extractor": name, **extractor.identity}, make)
    else:
        arrays = make()
    outputs = [label.removesuffix(" mean") for label in arrays if label.endswith(" mean")]
    fields = [field.name for field in dataclasses.fields(metrics.Moments)]
    moments = {output: metrics.Moments(*(arrays[f"{output} {field}"] for field in fields)) for output in outputs}
    return moments | {"labels": arrays["labels"]}


def _extracted(extractors, images, kept=None, key=None):
    """{extractor: its output for the images}, and under None the images themselves; through `kept`, if given."""
    seen = {None: {"images": images}}
    for name, each in extractors.items():
        extract = functools.partial(each.extract, images)
        if kept and each.identity:
            extract = functools.partial(
                kept.get,
                f"{name} features",
                key | {"images_crc32": zlib.crc32(images.tobytes()), "extractor": name, **each.identity},
                extract,
            )
        seen[name] = extract()
    return seen


def _compare(distances, seen):
    return {
        name: distance(seen[each.extractor][metrics.METRICS[each.metric].takes]) for name, (each, distance) in distances.items()
    }


# -- results kept beside the data set


class Kept:
    """Arrays computed once, in a subfolder of the prepared data set's folder, `.../name/version`, local or in a bucket."""

    def __init__(self, folder, say):
        self.path, self.say, self.writable = epath.Path(folder) / FOLDER, say, True

    def get(self, what, key, make):
        """{name: array} kept under `key` (of JSON's types, everything that determines the arrays), or else from make().

        If a file is damaged the arrays are computed again, if it cannot be written they are not kept; `say` reports both.
        """
        text = json.dumps(key, sort_keys=True)
        path = self.path / f"{what.replace(' ', '_')}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        found = self._read(path, text)
        if found is None:
            found = make()
            self._write(path, what, text, found)
        return found

    def _read(self, path, text):
        try:
            if not path.exists():
                return None
            with np.load(io.BytesIO(read_file(path, MOST)), allow_pickle=False) as file:  # which checks the file's checksums
                arrays = dict(file)
            if str(arrays.pop("made_by")) != text:
                raise ValueError("it was made by something else")
            return arrays
        except Exception as error:  # damaged files raise almost anything
            self.say(f"{path} is damaged ({reason(error)}): it is made again")

    def _write(self, path, what, text, arrays):
        if not self.writable:
            return
        buffer = io.BytesIO()
        np.savez(buffer, made_by=np.array(text), **arrays)
        holds = {name: f"{each.dtype} {list(each.shape)}" if each.ndim else each.tolist() for name, each in arrays.items()}
        described = json.dumps({"made_by": json.loads(text), "holds": holds}, indent=2) + "\n"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for target, content in ((path, buffer.getvalue()), (path.with_suffix(".json"), described.encode())):
                temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
                temporary.write_bytes(content)
                temporary.replace(target)
        except OSError as error:
            self.writable = False  # and this is said only once
            self.say(f"{self.path} cannot be written ({error.strerror}): {what} and others are not kept for the next time")


# -- extractors


@dataclasses.dataclass(frozen=True)
class Extractor:
    """images [n, H, W, C], uint8 (raw: or floats) -> {"features": float32 [n, d]}, for some also "probabilities" [n, classes]."""

    extract: Callable
    about: dict  # a description for JSON
    identity: dict | None  # what determines its output, besides the images; None: its output is too cheap to keep


EXTRACTORS = {}  # name -> function of (config_data, inception_weights, kept, say) -> Extractor


def extractor(name):
    """Registers an extractor: a function that prepares it."""
    return lambda ready: EXTRACTORS.setdefault(name, ready)


@extractor("raw")
def _raw(config_data, inception_weights, kept, say):
    """x: pixels in [-1, 1], or floats as they are, flattened."""
    about = {"dimension": config_data.image_size**2 * config_data.channels}
    return Extractor(lambda images: {"features": pictures.as_x(images).reshape(len(images), -1)}, about, None)


@extractor("inception")  # before the classifier, so that faulty weights are found before it is trained
def _inception(config_data, inception_weights, kept, say):
    """Inception-V3's 2048 pooled features and its class probabilities. Grey images are repeated to RGB."""
    if not inception_weights:
        raise ValueError("the extractor inception needs a file, inception_weights; without one, measure by classifier or raw")
    params = inception.load(inception_weights)
    crc32 = zlib.crc32(epath.Path(inception_weights).read_bytes())

    def network(images):
        features, logits = inception.apply(params, np.repeat(images, 3 // images.shape[-1], axis=-1))
        return {"features": features, "probabilities": jax.nn.softmax(logits)}

    about = {"dimension": inception.FEATURES, "weights": str(inception_weights), "weights_crc32": crc32}
    return Extractor(lambda images: in_batches(network, images, 64), about, {"version": 1, "weights_crc32": crc32})


def in_batches(network, images, batch):
    """{name: float32 [n, ..]} from network(images [batch, ..]), for images [n, ..]; the last batch is padded."""
    made = []
    with tqdm(total=len(images), desc="features", unit="image", delay=2, leave=False, disable=None) as bar:
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
            made.append({name: np.asarray(values)[: len(part)] for name, values in network(filled).items()})
            bar.update(len(part))
    return {name: np.concatenate([each[name] for each in made]) for name in made[0]}


@extractor("classifier")
def _classifier(config_data, inception_weights, kept, say):
    """The last hidden layer of a classifier of the data set's own classes, trained once on its split 'train'."""
    train = classifier.training_split(config_data)
    key = {
        "data": train.identity,
        "image_size": config_data.image_size,
        "channels": config_data.channels,
        "version": classifier.VERSION,
    }

    def make():
        (images, labels), (held_images, held_labels), where = classifier.labelled(config_data, train)
        params = classifier.fit(images, labels, train.num_classes)
        made = in_batches(lambda part: {"logits": classifier.network(params, part)[1]}, held_images, classifier.BATCH)
        right = (made["logits"].argmax(1) == held_labels).mean()
        say(f"classifier of {train.name}: trained on {len(images)} images; {right:.1%} right of {where}")
        return params | {"accuracy": right, "held_out": np.array(where)}

    params = dict(kept.get("classifier", key, make))
    about = {"accuracy": float(params.pop("accuracy")), "held_out": str(params.pop("held_out"))}
    crc32 = zlib.crc32(b"".join(params[name].tobytes() for name in sorted(params)))
    about |= {"dimension": classifier.FEATURES, "classes": train.num_classes, "weights_crc32": crc32}
    network = lambda part: {"features": classifier.network(params, part)[0]}
    return Extractor(
        lambda images: in_batches(network, images, classifier.BATCH),
        about,
        {"version": classifier.VERSION, "weights_crc32": crc32},
    )
