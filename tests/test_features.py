"""The real side of a comparison: halves, features, and what is kept of them."""

import dataclasses
import json
import os
import zlib

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from noisesched.evaluation import classifier as classifiers
from noisesched.evaluation import features, metrics
from noisesched.runs import config

N = 256
MEASURES = ["frechet(classifier)", "precision(classifier)", "kernel(raw)", "recall(raw)", "brightness"]
FEW = ["frechet(classifier)"]
NAMES = [metrics.name(metrics.parse(text), N) for text in MEASURES]


def digits_in(folder):
    return config.Data(
        name="digits", path="", data_dir=str(folder), split="train", image_size=8, channels=1, flip=False, num_workers=0
    )


def half(which, n=N):
    """The n digits that a reference is made of (0) or that give its floor (1), taken from scikit-learn itself."""
    images = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    return images[np.random.default_rng(features.SEED).permutation(1797)[which * n : (which + 1) * n]]


def make(folder, say=lambda text: None, n=N, measures=MEASURES, split="train+test", **options):
    return features.reference(digits_in(folder), n, measures, split=split, say=say, **options)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def reference(home, said):
    """The real thing, classifier trained in full."""
    return make(home, said.append)


@pytest.fixture
def quick(monkeypatch):
    """A classifier that is left as it starts, and every call of its training counted."""
    calls = []
    start = lambda images, labels, num_classes: calls.append(1) or classifiers._initial(*images.shape[2:], num_classes)
    monkeypatch.setattr(classifiers, "fit", start)
    return calls


@pytest.fixture
def folder(tmp_path):
    """A photograph folder, made by folder({"train": {"cat": 20, "dog": 5}}) and given as config data."""

    def made(splits, size=8):
        rng = np.random.default_rng(0)
        for split, classes in splits.items():
            for label, count in classes.items():
                (tmp_path / "images" / split / label).mkdir(parents=True)
                for i in range(count):
                    pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
                    Image.fromarray(pixels).save(tmp_path / "images" / split / label / f"{i}.png")
        return config.Data(
            name="image_folder",
            path=str(tmp_path / "images"),
            data_dir=str(tmp_path / "data"),
            split="train",
            image_size=size,
            channels=3,
            flip=False,
            num_workers=0,
        )

    return made


def kept(home):
    return sorted((home / "digits" / "1.0.0" / features.FOLDER).iterdir())


# -- what is compared with what


def test_the_classifier_of_digits_knows_digits_it_has_not_seen(reference, said):
    about = reference.about["extractors"]["classifier"]
    assert about["accuracy"] > 0.95 and about["held_out"] == "297 images of test" and about["classes"] == 10
    assert len(said) == 1 and f"{about['accuracy']:.1%} right of 297 images of test" in said[0]


def test_numbers_are_named_in_the_order_asked_and_about_is_json(reference):
    assert list(reference.floor) == NAMES == list(reference.measure(half(0)))
    about = json.loads(json.dumps(reference.about, allow_nan=False))
    assert (about["split"], about["n"], about["split_size"]) == ("train+test", N, 1797)
    assert set(about["extractors"]) == {"classifier", "raw"}
    assert all(type(value) is float for value in reference.floor.values())


def test_the_first_half_is_at_distance_zero_from_itself_in_any_order(reference):
    values = reference.measure(half(0)[::-1])
    expected = dict.fromkeys(NAMES, 0) | {name: 1 for name in NAMES if metrics.METRICS[name.partition("(")[0]].better == "higher"}
    kernel = next(name for name in NAMES if name.startswith("kernel"))
    assert values.pop(kernel) < 0  # unbiased
    assert values == pytest.approx({name: expected[name] for name in values}, abs=1e-4)


def test_the_floor_is_what_the_other_half_gets(reference):
    assert reference.measure(half(1)) == pytest.approx(reference.floor, rel=1e-5)
    assert not {image.tobytes() for image in half(0)} & {image.tobytes() for image in half(1)}


def test_noise_is_further_away_than_the_floor_by_every_metric(reference):
    noise = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 1), np.uint8)
    for name, value in reference.measure(noise).items():
        floor = reference.floor[name]
        assert value < floor / 2 if name.startswith(("precision", "recall")) else value > 10 * abs(floor)


def test_raw_features_are_pixels_from_minus_one_to_one(home):
    values = make(home, measures=["frechet(raw)", "sliced_wasserstein(raw)"], n=40).measure(half(1, 40))
    pixels = [half(which, 40).reshape(40, 64) / 127.5 - 1 for which in (0, 1)]
    for name, value in values.items():
        assert value == pytest.approx(metrics.METRICS[name.partition("(")[0]].against(pixels[0])(pixels[1]), rel=1e-5)


def test_a_measure_asked_twice_is_one_number(home):
    floor = make(home, measures=["brightness", metrics.parse("brightness"), " brightness"], n=30).floor
    assert list(floor) == ["brightness(n=30)"]


def test_all_real_images_with_any_number_of_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 500)
    made = make(tmp_path, n=300, measures=["frechet(raw)"], split="train+test", real="all")
    pixels = np.round(load_digits().images * (255 / 16)).reshape(1797, 64) / 127.5 - 1
    samples = half(1, 300)
    flat = samples.reshape(300, 64) / 127.5 - 1
    root = np.sqrt(np.abs(np.linalg.eigvals(np.cov(pixels.T) @ np.cov(flat.T)))).sum()
    expected = ((pixels.mean(0) - flat.mean(0)) ** 2).sum() + np.trace(np.cov(pixels.T) + np.cov(flat.T)) - 2 * root
    assert made.measure(samples) == {"frechet(raw, n=300, real=1797)": pytest.approx(expected, rel=1e-4)}
    assert made.floor == {} and made.about["real"] == made.about["split_size"] == 1797 and made.shape == (300, 8, 8, 1)
    many = make(tmp_path, n=2000, measures=["frechet(raw)"], split="train+test", real="all")
    truth = load_digits().target
    counts = np.bincount(many.labels[:1797])
    assert (counts == np.bincount(truth)).all() and (many.labels[1797:] == many.labels[:203]).all()


def test_moments_of_all_real_images_are_kept(tmp_path, stub):
    shown, weights = stub
    asked = dict(measures=["frechet(inception)", "inception_score(inception)"], inception_weights=str(weights))
    first = make(tmp_path, n=40, real="all", **asked).measure(half(0, 40))
    assert list(first) == [f"{name}(inception, n=40, real=1797)" for name in ("frechet", "inception_score")]
    shown.clear()
    again, paired = make(tmp_path, n=898, real="all", **asked), make(tmp_path, n=898, **asked)
    assert len(shown) == 2 * 15  # batches of 64: of the two halves
    score, same = (list(made.measure(half(0, 898)).values())[1] for made in (again, paired))
    assert score == same  # which real images do not matter to


def test_what_cannot_be_measured_against_all_is_refused(home, quick, monkeypatch):
    assert "kernel compares sets of one size; with all" in refused(home, measures=["kernel(raw)"], real="all")
    monkeypatch.setattr(features, "WIDEST", 63)
    assert "raw has 64 features; with all real images up to 63" in refused(home, measures=["frechet(raw)"], real="all")


# -- what is kept


def test_a_second_reference_is_the_same_without_training_or_a_word(reference, home, quick):
    again, said = make(home, say := [].append), say.__self__
    assert again.floor == reference.floor and again.about == reference.about
    assert not quick and not said
    assert again.measure(half(1)) == reference.measure(half(1))


def test_what_is_kept_says_what_made_it_and_holds_no_pickle(reference, home):
    files = kept(home)
    assert {file.suffix for file in files} == {".npz", ".json"}  # no temporary is left
    for file in files[::2]:
        described = json.loads(file.read_text())
        with np.load(file.with_suffix(".npz"), allow_pickle=False) as arrays:
            assert json.loads(str(arrays["made_by"])) == described["made_by"]
            assert set(arrays) == {"made_by", *described["holds"]}
    classifier = json.loads(next(file for file in files if file.name.startswith("classifier-")).read_text())
    assert classifier["holds"]["accuracy"] == reference.about["extractors"]["classifier"]["accuracy"]


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


class Loud:
    def __reduce__(self):
        return print, ("a pickle was loaded",)


def pickled(path):
    np.savez(path, made_by=np.array([Loud()], dtype=object))


def piped(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [flip, lambda content: content[: len(content) // 2], lambda content: b"", pickled, piped])
def test_damaged_files_are_made_anew_and_named(tmp_path, quick, capsys, damage):
    whole = make(tmp_path, measures=FEW)
    paths = [path for path in kept(tmp_path) if path.suffix == ".npz"]
    before = {path: path.read_bytes() for path in paths}
    for path in paths:
        if damage in (pickled, piped):
            damage(path)
        else:
            path.write_bytes(damage(path.read_bytes()))
    said = []
    again = make(tmp_path, said.append, measures=FEW)
    assert again.floor == whole.floor and len(quick) == 2
    for path in paths:
        assert sum(f"{path} is damaged" in line and "\n" not in line for line in said) == 1
        assert path.read_bytes()[-200:] == before[path][-200:]
    assert "a pickle" not in capsys.readouterr().out
    make(tmp_path, said := [].append, measures=FEW)
    assert not said.__self__ and len(quick) == 2


def test_what_something_else_made_is_not_taken(tmp_path, quick, monkeypatch):
    make(tmp_path, measures=FEW)
    monkeypatch.setattr(classifiers, "VERSION", classifiers.VERSION + 1)
    make(tmp_path, measures=FEW)
    assert len(quick) == 2
    old, new = [path for path in kept(tmp_path) if path.match("classifier-*.npz")]
    old.write_bytes(content := new.read_bytes())
    new.write_bytes(content)
    said = []
    for version in (classifiers.VERSION, classifiers.VERSION - 1):
        monkeypatch.setattr(classifiers, "VERSION", version)
        make(tmp_path, said.append, measures=FEW)
    assert len([line for line in said if "made by something else" in line]) == 1 and len(quick) == 3


@pytest.mark.parametrize("changed", [{"n": N - 1}, {"split": "train"}])
def test_features_of_other_images_are_not_taken_and_the_classifier_is(tmp_path, quick, changed):
    make(tmp_path, measures=FEW)
    before = kept(tmp_path)
    make(tmp_path, measures=FEW, **changed)
    new = set(kept(tmp_path)) - set(before)
    assert len(new) == 4 and all(path.name.startswith("classifier_features-") for path in new) and len(quick) == 1


def test_a_folder_that_cannot_be_written_costs_one_line_and_nothing_else(tmp_path, quick):
    whole = make(tmp_path)
    for path in kept(tmp_path):
        path.unlink()
    place = tmp_path / "digits" / "1.0.0" / features.FOLDER
    place.rmdir()
    place.write_text("a file where the folder would be")
    said = []
    assert make(tmp_path, said.append).floor == whole.floor
    assert len([line for line in said if "cannot be written" in line]) == 1
    assert place.read_text() == "a file where the folder would be"


# -- extractors


def test_every_extractor_that_a_measure_can_name_is_there():
    assert set(features.EXTRACTORS) == set(metrics.EXTRACTORS)


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_features_of_an_image_do_not_depend_on_the_batch_and_its_shape_is_always_the_same(count):
    shapes, images = set(), np.random.default_rng(0).integers(0, 256, (count, 2, 2, 1), np.uint8)

    def network(part):
        shapes.add(part.shape)
        return {"features": part.reshape(len(part), -1).astype(np.float32)}

    np.testing.assert_array_equal(features.in_batches(network, images, 4)["features"], images.reshape(count, 4))
    assert shapes == {(4, 2, 2, 1)}


@pytest.mark.parametrize("size, channels", [(1, 1), (4, 3), (5, 1), (8, 1), (28, 1), (33, 3)])
def test_the_classifier_takes_images_of_any_size(size, channels):
    params = classifiers._initial(size, channels, 7)
    images = jax.ShapeDtypeStruct((2, size, size, channels), np.uint8)
    seen, logits = jax.eval_shape(classifiers.network, params, images)
    assert seen.shape == (2, classifiers.FEATURES) and logits.shape == (2, 7)


def test_training_is_a_function_of_images_and_labels(monkeypatch):
    monkeypatch.setattr(classifiers, "STEPS", 3)
    images, labels = half(0), np.arange(N, dtype=np.int32) % 10
    first, second = classifiers.fit(images, labels, 10), classifiers.fit(images, labels, 10)
    assert all((first[name] == second[name]).all() for name in first)
    other = classifiers.fit(images, labels[::-1].copy(), 10)
    assert any((first[name] != other[name]).any() for name in first)


@dataclasses.dataclass
class Numbered:
    """A split whose images are their numbers and whose labels are all one value."""

    count: int
    label: int
    name: str = "numbered"

    def __len__(self):
        return self.count

    @property
    def source(self):
        return self

    def read(self, numbers):
        return numbers.astype(np.uint8).reshape(-1, 1, 1, 1), np.full(len(numbers), self.label, np.int32)


@pytest.mark.parametrize(
    "others, where",
    [
        ({"test": 1, "validation": 1}, "7 images of test"),
        ({"test": -1, "validation": 1}, "7 images of validation"),
        ({"validation": 1}, "7 images of validation"),
        ({"test": -1}, "10 images of train, not trained on"),
    ],
)
def test_held_out_images_have_labels_and_are_not_trained_on(monkeypatch, others, where):
    def opened(config_data, split):
        if split not in others:
            raise ValueError("no such split")
        return Numbered(7, others[split])

    monkeypatch.setattr(features.pipeline, "open_config", opened)
    (images, _), (held, labels), said = classifiers.labelled(None, Numbered(100, 0))
    assert said == where and labels.min() >= 0
    if "train" in where:
        assert sorted([*images.ravel(), *held.ravel()]) == list(range(100))
    else:
        assert sorted(images.ravel()) == list(range(100)) and len(held) == 7


def test_of_many_images_a_random_part_is_trained_on(monkeypatch):
    monkeypatch.setattr(classifiers, "TRAINED_ON", 20)
    monkeypatch.setattr(classifiers, "HELD_OUT", 4)
    monkeypatch.setattr(features.pipeline, "open_config", lambda config_data, split: Numbered(200, 0))
    (images, _), (held, _), _ = classifiers.labelled(None, Numbered(200, 0))
    assert len(set(images.ravel())) == 20 and images.max() > 100 and len(set(held.ravel())) == 4


def test_a_folder_of_photographs_has_a_classifier_too(folder, quick):
    made = features.reference(
        folder({"train": {"cat": 30, "dog": 10}}), 15, ["kernel(classifier)"], split="train", say=lambda text: None
    )
    assert made.about["extractors"]["classifier"]["held_out"] == "4 images of train, not trained on"
    assert made.about["data"].startswith("image_folder_8x3_")


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """A file of weights, and in Inception's place a network of 8 features that counts what it is shown."""
    shown, weights = [], tmp_path / "weights.npz"
    weights.write_bytes(b"one")

    def apply(params, images):
        assert images.shape == (64, 8, 8, 3) and images.dtype == np.uint8 and (images[..., 0] == images[..., 2]).all()
        shown.append(1)
        seen = images[:, 3, :, 0].astype(np.float32)
        return jax.numpy.asarray(seen), jax.numpy.asarray(seen * 0.1)

    monkeypatch.setattr(features.inception, "load", lambda path: {})
    monkeypatch.setattr(features.inception, "apply", apply)
    return shown, weights


def test_inception_sees_gray_images_as_colour_and_gives_probabilities(tmp_path, stub):
    shown, weights = stub
    made = make(tmp_path, n=100, measures=["frechet(inception)", "inception_score(inception)"], inception_weights=str(weights))
    assert made.about["extractors"]["inception"]["weights_crc32"] == zlib.crc32(b"one")
    pixels = half(1, 100)[:, 3, :, 0].astype(float)
    p = np.exp(pixels * 0.1) / np.exp(pixels * 0.1).sum(1, keepdims=True)
    expected = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert made.floor["inception_score(inception, n=100)"] == pytest.approx(expected, rel=1e-4)
    assert len(shown) == 4  # two batches for each half, for both numbers


def test_real_features_are_kept_for_one_file_of_weights(tmp_path, stub):
    shown, weights = stub
    for content, calls in ((b"one", 2), (b"one", 2), (b"two", 4), (b"one", 4)):
        weights.write_bytes(content)
        make(tmp_path, n=50, measures=["frechet(inception)"], inception_weights=str(weights))
        assert len(shown) == calls


# -- what is refused, in one line and before any training


def refused(*arguments, kind=ValueError, **options):
    with pytest.raises(kind) as error:
        make(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("n", [0, 899, 10**9])
def test_a_number_that_the_split_has_not_twice_is_refused_with_the_largest_that_it_has(home, quick, n):
    text = refused(home, n=n, measures=["brightness", *FEW])
    assert "needs sets of at least 1; got n=0" in text or "1797 images, and two sets of n are needed: choose 1 to 898" in text
    assert not quick


def test_the_largest_number_is_measured(home):
    assert len(make(home, n=898, measures=["brightness"]).floor) == 1


def test_too_few_for_a_metric_are_refused(home):
    assert "precision needs sets of at least 4; got n=3" in refused(home, n=3, measures=["precision(raw)"])


def test_an_unknown_measure_and_an_unknown_split_are_refused_with_those_there_are(home):
    assert "known: brightness" in refused(home, measures=["fid"])
    assert "test, train" in refused(home, split="validation")


def test_inception_without_weights_names_what_works_without(home, quick):
    text = refused(home, measures=["frechet(classifier)", "frechet(inception)"])
    assert "inception_weights" in text and "raw" in text and not quick
    refused(home, measures=["frechet(inception)"], inception_weights="/nowhere/weights.npz", kind=FileNotFoundError)


def test_data_without_labels_are_told_of_raw(folder, quick):
    with pytest.raises(ValueError, match=r"two or more labelled classes, not 1; measure by raw instead"):
        features.reference(folder({"train": {"all": 12}}), 6, ["frechet(classifier)"], split="train")
    assert not quick


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((N - 1, 8, 8, 1), np.uint8),
        np.zeros((N, 8, 8, 3), np.uint8),
        np.zeros((N, 8, 8), np.uint8),
        np.zeros((N, 8, 8, 1), np.float32),
        [[1]],
    ],
    ids=lambda wrong: f"{getattr(wrong, 'dtype', 'list')} {np.shape(wrong)}",
)
def test_samples_of_another_number_shape_or_kind_are_refused(reference, wrong):
    with pytest.raises(ValueError, match=r"compare uint8 images \[256, 8, 8, 1\]; got [^\n]*$"):
        reference.measure(wrong)
