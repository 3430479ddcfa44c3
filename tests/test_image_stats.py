"""What images look like, against closed forms, known images and the standard library's colours."""

import colorsys
import itertools
import json
from fractions import Fraction

import numpy as np
import pytest

from noisesched.evaluation import image_stats


def flat(*values, size=4, channels=1):
    """Images of one value each, uint8 [n, size, size, channels]."""
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), size, size, channels)).copy()


def test_flat_images_of_every_value_are_uniform():
    found = image_stats.describe(flat(*range(256)))
    assert found["brightness"] == pytest.approx(0, abs=1e-12)
    assert found["brightness_spread"] == pytest.approx(np.sqrt((256**2 - 1) / 12) / 127.5)  # a discrete uniform's
    assert found["black"] == found["white"] == 13 / 256  # 0 to 12, of 12.75: -0.9
    assert found["contrast"] == 0 and found["clipped"] == 2 / 256 and found["saturation"] is None
    assert found["histogram"] == [13, 13, 13, 12] * 4 + [13] * 4  # 51 and its multiples begin bins


def test_a_leaking_and_a_whole_distribution_have_their_known_spread():
    rng = np.random.default_rng(0)
    for deviation in (0.26, 0.55):
        values = np.clip(127.5 + 127.5 * deviation * np.sqrt(3) * rng.uniform(-1, 1, 20000), 0, 255)
        found = image_stats.describe(flat(*values.round().astype(np.uint8), size=1))
        assert found["brightness_spread"] == pytest.approx(deviation, abs=0.01)
        edge = max(0, (deviation * np.sqrt(3) - 0.9) / (2 * deviation * np.sqrt(3)))  # of a uniform distribution
        assert found["black"] == pytest.approx(edge, abs=0.01) and found["white"] == pytest.approx(edge, abs=0.01)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_contrast_is_that_of_two_values(share):
    image = np.where(np.arange(64) < 64 * share, 255, 0).astype(np.uint8).reshape(1, 8, 8, 1)
    found = image_stats.describe(image)
    assert found["contrast"] == pytest.approx(2 * np.sqrt(share * (1 - share)))  # of a coin between -1 and 1
    assert found["brightness"] == pytest.approx(2 * share - 1) and found["clipped"] == 1
    assert found["brightness_spread"] == 0


def test_contrast_is_within_images_and_spread_between_them():
    image = np.array([100, 155], np.uint8).reshape(1, 1, 2, 1)
    found = image_stats.describe(np.concatenate([image, image[:, :, ::-1], flat(0, size=1).repeat(2, 2)]))
    assert found["contrast"] == pytest.approx(2 / 3 * 27.5 / 127.5)
    assert found["brightness_spread"] == pytest.approx(np.sqrt(2) / 3)  # of 0, 0, -1
    assert found["clipped"] == 1 / 3 and found["black"] == 1 / 3 and found["white"] == 0


def test_saturation_is_that_of_the_standard_library():
    colours = list(itertools.product((0, 1, 77, 200, 255), repeat=3))
    image = np.array(colours, np.uint8).reshape(1, 5, 25, 3)
    expected = np.mean([colorsys.rgb_to_hsv(*(value / 255 for value in colour))[1] for colour in colours])
    assert image_stats.describe(image)["saturation"] == pytest.approx(expected)
    assert image_stats.describe(flat(0, 9, 255, channels=3))["saturation"] == 0


def test_the_histogram_holds_every_image_once():
    images = np.random.default_rng(1).integers(0, 256, (500, 2, 2, 3), np.uint8)
    counts = image_stats.describe(images)["histogram"]
    exact = [Fraction(int(image.sum()), 12) / Fraction(255, 2) - 1 for image in images]
    by_hand = [sum(Fraction(number - 10, 10) <= mean < Fraction(number - 9, 10) for mean in exact) for number in range(20)]
    assert counts == by_hand and sum(counts) == 500
    assert image_stats.describe(flat(0, 255, 255))["histogram"] == [1, *[0] * 18, 2]


def test_a_description_is_json_and_is_what_check_takes():
    for images in (flat(0, 255), flat(3, channels=3), np.random.default_rng(0).integers(0, 256, (9, 3, 5, 3), np.uint8)):
        found = image_stats.describe(images)
        assert json.loads(json.dumps(found)) == found
        assert list(found) == [*image_stats.STATISTICS, "histogram"]
        image_stats.check(found)
        image_stats.check({"histogram": found["histogram"], "of a later version": "anything"})


def test_every_statistic_says_in_a_line_what_it_is():
    assert all(each.meaning and "\n" not in each.meaning for each in image_stats.STATISTICS.values())


def test_a_new_statistic_is_described_and_checked(monkeypatch):
    old = image_stats.describe(flat(255))
    monkeypatch.setattr(image_stats, "STATISTICS", dict(image_stats.STATISTICS))

    @image_stats.statistic("the brightest pixel")
    def highest(images):
        return images.max() / 127.5 - 1

    new = image_stats.describe(flat(255))
    assert new == old | {"highest": 1.0}
    image_stats.check(old)
    with pytest.raises(ValueError, match="'highest' must be a number from -1 to 1; got 'high'"):
        image_stats.check(new | {"highest": "high"})


@pytest.mark.parametrize(
    "images, got",
    [
        (flat(1).astype(np.float32), r"float32 \[1, 4, 4, 1\]"),
        (flat(1)[0], r"uint8 \[4, 4, 1\]"),
        (flat(), r"uint8 \[0, 4, 4, 1\]"),
        (flat(1, size=0), r"uint8 \[1, 0, 0, 1\]"),
        (flat(1, channels=2), r"uint8 \[1, 4, 4, 2\]"),
        ([[1]], "list"),
        (None, "NoneType"),
    ],
)
def test_other_arrays_are_named(images, got):
    with pytest.raises(ValueError, match=rf"^statistics take uint8 images \[n, H, W, C\][^\n]*; got {got}$"):
        image_stats.describe(images)


GOOD = image_stats.describe(flat(0, 128))


@pytest.mark.parametrize(
    "found, said",
    [
        (3, "is a dictionary; got 3"),
        ([GOOD], "is a dictionary"),
        ({}, "'histogram' must be 20 whole numbers"),
        (GOOD | {"histogram": [0] * 20}, "not all 0"),
        (GOOD | {"histogram": [1] * 19}, "'histogram' must be 20"),
        (GOOD | {"histogram": [1.5] * 20}, "'histogram' must be"),
        (GOOD | {"histogram": [True] * 20}, "'histogram' must be"),
        (GOOD | {"histogram": [-1, *[1] * 19]}, "'histogram' must be"),
        (GOOD | {"histogram": [10**400] * 20}, "'histogram' must be"),
        (GOOD | {"histogram": {"0": 1}}, "'histogram' must be"),
        (GOOD | {"black": "a"}, "'black' must be a number from 0 to 1; got 'a'"),
        (GOOD | {"black": -0.1}, "got -0.1"),
        (GOOD | {"white": True}, "'white' must be"),
        (GOOD | {"contrast": float("nan")}, "'contrast' must be"),
        (GOOD | {"contrast": 10**400}, "'contrast' must be"),
        (GOOD | {"clipped": -7}, "got -7"),
        (GOOD | {"clipped": [[1]]}, "got"),
    ],
)
def test_garbage_is_named_in_one_line(found, said):
    with pytest.raises(ValueError) as error:
        image_stats.check(found)
    assert said in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 200
