"""Data: what is stored is what was given, and a batch is a function of (seed, step)."""

import collections
import dataclasses
import fcntl
import importlib.util
import io
import json
import os
import pickle
import platform
import re
import resource
import shutil
import socket
import struct
import sys
import tarfile
import threading
import time
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from noisesched.data import datasets, pipeline
from noisesched.evaluation import features
from noisesched.runs import config
from noisesched.runtime import pictures
from noisesched.runtime.files import WriteError


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("cache"))
    datasets.digits(folder)
    return folder


@pytest.fixture(scope="session")
def digits(cache):
    return pipeline.open_split("digits", split="train", image_size=8, channels=1, data_dir=cache)


@dataclasses.dataclass
class Numbered:
    """Records whose image spells their number; asymmetric, so that a mirrored one is told apart."""

    n: int

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return {"image": np.array([i % 256, i // 256, 255, 0], np.uint8).reshape(1, 4, 1), "label": i % 10}

    def __getitems__(self, numbers):
        return [self[i] for i in numbers]


def numbered(n):
    return pipeline.Split(pipeline._Images(Numbered(n), "numbered", (1, 4, 1), True), 10, "numbered")


def take(split, count, **options):
    options = {"batch_size": 8, "seed": 0, "flip": False} | options
    with pipeline.batches(split, **options) as batches:
        return [next(batches) for _ in range(count)]


def numbers_of(batches):
    images = np.concatenate([batch["image"] for batch in batches])[:, 0, :, 0].astype(int)
    return images[:, 0] + 256 * images[:, 1]


def assert_same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key])


# ---------------------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns(cache):
    published = load_digits()
    for split, rows in {"train": slice(1500), "test": slice(1500, None)}.items():
        opened = pipeline.open_split("digits", split=split, image_size=8, channels=1, data_dir=cache)
        got = pipeline.examples(opened)
        expected = [[round(v * 255 / 16) for v in image.ravel()] for image in published.images[rows]]
        np.testing.assert_array_equal(got["image"].reshape(-1, 64), expected)
        np.testing.assert_array_equal(got["label"], published.target[rows])
        assert got["image"].dtype == np.uint8 and got["label"].dtype == np.int32
        assert (got["image"].min(), got["image"].max()) == (0, 255)
        assert opened.num_classes == 10


def test_brightness_spans_black_to_white_and_its_flat_images_are_flat(cache):
    opened = pipeline.open_split("brightness", split="test", image_size=32, channels=1, data_dir=cache)
    examples = pipeline.examples(opened)
    images, labels = examples["image"] / 127.5 - 1, examples["label"]
    assert images.shape == (5 * 297, 32, 32, 1) and opened.num_classes == 11
    means, deviations = images.mean((1, 2, 3)), images.std((1, 2, 3))
    assert means.std() == pytest.approx(2 / 12**0.5, rel=0.01) and means.min() < -0.99 and means.max() > 0.99  # uniform
    assert (labels == 10).sum() == 297 and np.ptp(images[labels == 10], axis=(1, 2, 3)).max() == 0
    middle = (labels < 10) & (np.abs(means) < 0.3)
    assert deviations[middle].min() > 0.2  # digits, not faint ones
    # The same digits as they are published, with the mean taken out.
    ink = load_digits().images[1500:] / 16
    texture = images[::5, ::4, ::4, 0] - means[::5, None, None]
    same = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(texture, ink, strict=True) if a.std() > 0.1]
    assert len(same) > 200 and min(same) > 0.99


def test_split_is_random_access(digits):
    assert len(digits) == 1500
    assert digits[3]["image"].shape == (8, 8, 1) and digits[3]["label"] == load_digits().target[3]
    np.testing.assert_array_equal(digits[-1]["image"], digits[1499]["image"])
    with pytest.raises(IndexError):
        digits[1500]


@pytest.mark.parametrize(
    "split, rows", [("train[:90%]", range(1350)), ("train[10:20]", range(10, 20)), ("train+test", range(1797))]
)
def test_split_syntax(cache, split, rows):
    opened = pipeline.open_split("digits", split=split, image_size=8, channels=1, data_dir=cache)
    np.testing.assert_array_equal(pipeline.examples(opened)["label"], load_digits().target[rows])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"split": "valid"}, "no split 'valid' in data set 'digits': it has test, train"),
        ({"split": "train[:9x]"}, "'train[:9x]'"),
        ({"split": "train[:2000]"}, "1500 examples"),
        ({"split": "train[:0]"}, "is empty"),
        ({"channels": 3}, "channels=1, not 3"),
        ({"image_size": 0}, "image_size=0"),
        ({"data_dir": "gs://bucket/data"}, "local folder"),
        ({"name": "no_such_set"}, "'no_such_set' is not prepared: no dataset_info.json in "),
        ({"name": "image_folder"}, "needs a path"),
        ({"name": "image_folder", "path": "/no/such/folder"}, "no such image folder: /no/such/folder"),
    ],
)
def test_faults_are_told_in_one_line(cache, change, message):
    arguments = dict(name="digits", split="train", image_size=8, channels=1, data_dir=cache) | change
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        pipeline.open_split(arguments.pop("name"), **arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_data_set_says_how_to_prepare_it(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        pipeline.open_split("cifar10", split="train", image_size=32, channels=3, data_dir=str(tmp_path))
    for part in (str(tmp_path / "cifar10"), "download_and_prepare", "array_record", "image_folder"):
        assert part in str(error.value)


def test_resize(cache):
    images = {}
    for size in (4, 8, 16):
        split = pipeline.open_split("digits", split="train[:50]", image_size=size, channels=1, data_dir=cache)
        images[size] = pipeline.examples(split)["image"].astype(float)
        assert images[size].shape == (50, size, size, 1)
    for size in (4, 8):  # averages of 2x2 pixels, nearly
        averages = images[2 * size].reshape(50, size, 2, size, 2).mean((2, 4))
        assert np.corrcoef(averages.ravel(), images[size].ravel())[0, 1] > 0.97
        assert abs(averages.mean() - images[size].mean()) < 3


# --------------------------------------------------------------------------------------------- preparing once


def test_simultaneous_preparation(tmp_path):
    builders_made = []

    def make(data_dir):
        builders_made.append(data_dir)
        return datasets._Digits(data_dir=data_dir)

    (tmp_path / "digits" / "incomplete-killed_1").mkdir(parents=True)
    (tmp_path / "digits" / ".lock").touch()
    arguments = (tmp_path, "digits", make)
    threads = [threading.Thread(target=datasets._prepared_once, args=arguments) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builders_made) == 1
    assert sorted(os.listdir(tmp_path / "digits")) == [".lock", "1.0.0"]


def test_the_rename_is_enough_without_a_lock(tmp_path):
    final = tmp_path / "digits" / "1.0.0"
    final.parent.mkdir()
    datasets._prepare(final, datasets._Digits)
    before = final.stat().st_ino
    datasets._prepare(final, datasets._Digits)  # a process that began before the first one was done
    assert final.stat().st_ino == before
    assert os.listdir(final.parent) == ["1.0.0"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path, cache):
    shutil.copytree(os.path.join(cache, "digits"), tmp_path / "digits")
    gone, busy = tmp_path / "image_folder_8x3_0123456789abcdef", tmp_path / "brightness"
    here, elsewhere, long_gone = (f"incomplete-{name}@abcd_123" for name in (platform.node(), "elsewhere", "there"))
    for folder in (gone / here, busy / here, gone / elsewhere, gone / long_gone):
        (folder / "x").mkdir(parents=True)
        (folder.parent / ".lock").touch()
    os.utime(gone / long_gone / "x", (time.time() - 90000,) * 2)
    os.utime(gone / long_gone, (time.time() - 90000,) * 2)
    # The folder of prepared data may hold anything else.
    others = {"thesis/incomplete-drafts", f"thesis/{here}", "digits/incomplete-drafts", "digits/1.0.0/incomplete-abcd_123"}
    for name in others:
        (tmp_path / name / "x").mkdir(parents=True)
    with open(busy / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        datasets.digits(str(tmp_path))  # which is prepared already
    assert sorted(os.listdir(busy)) == [".lock", here]
    assert sorted(os.listdir(gone)) == [".lock", elsewhere]
    assert all((tmp_path / name / "x").is_dir() for name in others) and not (tmp_path / "thesis" / ".lock").exists()


def test_a_disk_that_is_full_while_data_are_prepared(tmp_path):
    """Files of at most 4 kB stand for it: the same calls of the system fail."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, usual[1]))
    try:
        with pytest.raises(WriteError) as error:
            datasets.digits(str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert str(error.value) == (
        f"cannot prepare data in {tmp_path}/digits: File too large; make room, or set data_dir to another folder"
    )
    assert os.listdir(tmp_path / "digits") == [".lock"]
    assert len(pipeline.open_split("digits", split="test", image_size=8, channels=1, data_dir=str(tmp_path))) == 297


def test_default_cache_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(pipeline.open_split("digits", split="test", image_size=8, channels=1)) == 297
    assert (tmp_path / "noisesched" / "digits" / "1.0.0").is_dir()


# ---------------------------------------------------------------------------------------------- image folder


def save(array, path, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array, mode)
    image.save(path, **options)


def open_folder(root, tmp_path, split="train", image_size=8, channels=3):
    return pipeline.open_split(
        "image_folder", split=split, image_size=image_size, channels=channels, path=str(root), data_dir=str(tmp_path / "cache")
    )


def test_image_folder_reads_every_kind_of_file(tmp_path):
    root = tmp_path / "images"
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    gray = colour[..., 0]
    palette = Image.fromarray(colour // 128 * 255).convert("P", palette=Image.Palette.ADAPTIVE)
    save(colour, root / "train" / "a_rgb" / "1.png")
    save(gray, root / "train" / "b_gray" / "1.PNG")
    save(np.dstack([colour, gray]), root / "train" / "c_rgba" / "1.png")
    save(palette, root / "train" / "d_palette" / "1.png")
    save((gray.astype(np.uint16) << 8) + 7, root / "train" / "e_16_bits" / "1.png")
    save(np.full((8, 8, 3), 60, np.uint8), root / "train" / "f_jpeg" / "1.jpg")
    (root / "train" / "f_jpeg" / "notes.txt").write_text("not an image")
    repeated = np.dstack([gray] * 3)
    alpha = gray[..., None] / 255
    on_white = np.round(colour * alpha + 255 * (1 - alpha))
    expected = [colour, repeated, on_white, colour // 128 * 255, repeated, np.full((8, 8, 3), 60)]

    split = open_folder(root, tmp_path)
    got = {int(label): image for image, label in zip(*pipeline.examples(split).values(), strict=True)}
    assert split.num_classes == len(split) == 6
    for label, image in enumerate(expected):
        np.testing.assert_allclose(got[label], image, atol=label == 2, err_msg=sorted(os.listdir(root / "train"))[label])

    one_channel = pipeline.examples(open_folder(root, tmp_path, channels=1))
    at = list(one_channel["label"])
    np.testing.assert_array_equal(one_channel["image"][at.index(1), ..., 0], gray)
    luma = colour @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(one_channel["image"][at.index(0), ..., 0], luma, atol=1)


COLOUR = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
GRAY = COLOUR[..., 0]
CLEAR = np.zeros((8, 8, 4), np.uint8)  # a black drawing on transparency
CLEAR[2:4, 2:6, 3] = 255
DRAWN = CLEAR[..., 3] == 255


def png(depth, kind, pixels, transparent=b"", size=8):
    """A PNG that Pillow cannot write: `pixels` are the bytes of each of eight rows."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, depth, kind, 0, 0, 0)) + (
        transparent and chunk(b"tRNS", transparent)
    )
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress((b"\0" + pixels) * 8)) + chunk(b"IEND", b"")


def tiff(bits, photometric, pixels):
    """A grey TIFF of 8x8 pixels; photometric 0: white is 0."""
    tags = {256: 8, 257: 8, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 8, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


def read(tmp_path, name, content, channels=3, background=(255, 255, 255), **options):
    file = tmp_path / name
    file.write_bytes(content) if isinstance(content, bytes) else save(content, file, **options)
    image, _ = datasets.read_image(file, 8, channels, background)
    return image[..., 0] if channels == 1 else image


@pytest.mark.parametrize("suffix", "webp bmp dib tif TIFF gif ppm tga jp2 ico dds pcx sgi qoi apng".split())
def test_every_format_without_loss_is_read_as_it_is(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    root = tmp_path / "images"
    save(COLOUR, root / "train" / "a" / f"1.{suffix}", **options)
    assert set(datasets.list_folder(str(root))) == {"train"}
    np.testing.assert_array_equal(read(root / "train" / "a", f"1.{suffix}", COLOUR, **options), COLOUR)


@pytest.mark.parametrize(
    "name, content, clear, options",
    [
        ("1.png", CLEAR, ~DRAWN, {}),
        ("1.webp", CLEAR, ~DRAWN, {"lossless": True}),
        ("1.tif", CLEAR, ~DRAWN, {}),
        ("1.png", Image.fromarray(CLEAR).convert("LA"), ~DRAWN, {}),
        ("1.gif", Image.fromarray(DRAWN.astype(np.uint8)).convert("P"), ~DRAWN, {"transparency": 0}),
        ("1.png", Image.fromarray(DRAWN.astype(np.uint8)).convert("P"), ~DRAWN, {"transparency": 0}),
        ("1.png", Image.fromarray(DRAWN.astype(np.uint8)).convert("P"), ~DRAWN, {"transparency": bytes([0, 255])}),
        ("1.png", GRAY, GRAY == GRAY[3, 3], {"transparency": int(GRAY[3, 3])}),
        ("1.png", COLOUR, (COLOUR == COLOUR[3, 3]).all(-1), {"transparency": tuple(COLOUR[3, 3].tolist())}),
        ("1.png", Image.fromarray(DRAWN), ~DRAWN, {"transparency": 0}),
        ("1.png", png(2, 0, b"\x1b\x1b", b"\0\1"), np.tile(np.arange(8) % 4 == 1, (8, 1)), {}),
        ("1.png", png(4, 0, b"\x01\x23\x45\x67", b"\0\1"), np.tile(np.arange(8) == 1, (8, 1)), {}),
        ("1.png", png(16, 0, b"\x80\1\x80\2" * 4, b"\x80\1"), np.tile(np.arange(8) % 2 == 0, (8, 1)), {}),
        ("1.png", png(16, 2, b"\x80\0\1\2\3\4" * 4 + bytes(24), b"\x80\0\1\2\3\4"), np.tile(np.arange(8) < 4, (8, 1)), {}),
        ("1.png", png(16, 4, b"\0\0\0\0\0\0\xff\xff" * 4), np.tile(np.arange(8) % 2 == 0, (8, 1)), {}),
    ],
)
def test_what_is_transparent_shows_the_background(tmp_path, name, content, clear, options):
    for background in ((254, 255, 253), (10, 200, 30)):
        image = read(tmp_path, name, content, background=background, **options)
        assert (image[clear] == background).all() and (image[~clear] != background).any(-1).all()


def test_half_transparent_colours_are_mixed_with_the_background(tmp_path):
    image = read(tmp_path, "1.png", Image.new("RGBA", (8, 8), (200, 0, 100, 51)), background=(0, 255, 100))
    np.testing.assert_array_equal(image[0, 0], [40, 204, 100])
    gray = read(tmp_path, "1.png", Image.new("LA", (8, 8), (200, 51)), channels=1, background=(100, 100, 100))
    assert gray[0, 0] == 120


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("1.png", GRAY.astype(np.uint16) * 257, GRAY),
        ("1.tif", GRAY.astype(np.uint16) * 257, GRAY),
        ("1.tif", Image.frombytes("I;16B", (8, 8), (GRAY.astype(">u2") * 257).tobytes()), GRAY),
        ("1.tif", tiff(16, 0, (GRAY.astype("<u2") * 257).tobytes()), 255 - GRAY),
        ("1.tif", tiff(8, 0, GRAY.tobytes()), 255 - GRAY),
        ("1.tif", tiff(12, 1, b"\xff\xf0\x00" * 32), np.tile([255, 0], (8, 4))),
        ("1.pgm", b"P5 8 8 65535\n" + (GRAY.astype(">u2") * 257).tobytes(), GRAY),
        ("1.tif", (GRAY / 255).astype(np.float32), GRAY),
        ("1.pfm", (GRAY / 255).astype(np.float32), GRAY),
        ("1.png", Image.fromarray(DRAWN), DRAWN * 255),
        ("1.jpg", Image.new("CMYK", (8, 8), (0, 0, 0, 255)), np.zeros((8, 8))),
        ("1.jpg", Image.new("CMYK", (8, 8), (0, 0, 0, 0)), np.full((8, 8), 255)),
    ],
)
def test_white_is_white_whatever_the_number_of_bits(tmp_path, name, content, expected):
    np.testing.assert_array_equal(read(tmp_path, name, content, channels=1), expected)
    np.testing.assert_array_equal(read(tmp_path, name, content)[..., 1], expected)


@pytest.mark.parametrize("values", [GRAY.astype(np.int32), GRAY.astype(np.float32), np.full((8, 8), np.nan, np.float32)])
def test_images_without_a_known_white_are_refused(tmp_path, values):
    with pytest.raises(ValueError, match=r"1\.tif: its pixels are (int|float)32 from .* save it with 8 or 16 bits"):
        read(tmp_path, "1.tif", values)


@pytest.mark.parametrize("suffix, options", [("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("tif", {})])
def test_the_first_picture_of_an_animation_is_the_image(tmp_path, suffix, options):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "lime"))
    image = read(tmp_path, f"1.{suffix}", first, save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(image, np.asarray(first))


def test_too_many_pixels_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(
        ValueError, match=r"1\.png: it has 196,000,000 pixels, and no more than .*; save it smaller, or take it out"
    ):
        read(tmp_path, "1.png", png(1, 0, b"\0", size=14000))


def test_no_image_makes_another_program_run(tmp_path):
    """Pillow has Ghostscript run what is in an EPS file, whatever its name."""
    save(COLOUR, tmp_path / "1.eps")
    with pytest.raises(ValueError, match="no image in a format that is known"):
        read(tmp_path, "1.png", (tmp_path / "1.eps").read_bytes())


def test_what_is_passed_over_is_told_once(tmp_path, capsys):
    root = tmp_path / "images"
    for file in ("a/1.webp", "a/2.PNG", "b/1.bmp", "a/deeper/1.png", "a/.hidden/1.png", "a/._1.jpg"):
        save(COLOUR, root / "train" / file, format="PNG")
    for file in ("a/.DS_Store", "a/1.txt", "a/2.TXT", "b/3.txt", "b/page.html", "b/none"):
        (root / "train" / file).write_text("no image")
    save(COLOUR, root / "caf\udce9" / "a" / "1.png")
    save(COLOUR, root / "1.png")
    os.mkfifo(root / "train" / "a" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(os.path.relpath(root / "train" / "a" / "s.png"))
    for target, link in {
        "2.PNG": "link.png",
        "gone": "broken.png",
        "loop.png": "loop.png",
        "/dev/zero": "zero.png",
        ".": "c",
    }.items():
        (root / "train" / "a" / link).symlink_to(target)
    for _ in range(2):
        assert [file for file, *_ in datasets.list_folder(str(root))["train"]] == [
            *(f"train/a/{name}" for name in ("1.webp", "2.PNG", "link.png")),
            "train/b/1.bmp",
        ]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: image folder {root}: passed over 17 files: 3 .txt in train/a and 1 more; 2 .png (a broken link) in train/a; "
        "2 .png (not in <split>/<class>/) in train/a/deeper and 1 more; 1 .html in train/b; 1 .png (a device) in train/a; "
        "1 .png (a pipe) in train/a; 1 .png (a socket) in train/a; 1 .png (the folder's name cannot be that of a split) in "
        "caf\\xe9/a; 1 hidden .jpg in train/a; 1 hidden .png in train/a/.hidden; 1 hidden without suffix in train/a; "
        "1 without suffix in train/b; 1 without suffix (a linked folder) in train/a"
    )


def test_many_kinds_of_files_are_told_in_a_short_line(tmp_path, capsys):
    save(COLOUR, tmp_path / "train" / "a" / "1.png")
    for i in range(50):
        (tmp_path / "train" / "a" / f"1.{i}{'x' * 100}").touch()
    datasets.list_folder(str(tmp_path))
    (line,) = capsys.readouterr().err.splitlines()
    assert "passed over 50 files: 1 .0xx" in line and line.endswith("; 30 of other kinds") and len(line) < 1500


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    for i in range(3):
        save(COLOUR, tmp_path / "train" / "a" / f"{i}.xyz", format="PNG")
    with pytest.raises(ValueError, match=r"no images in .*: expected .*; passed over: 3 \.xyz in train/a$"):
        datasets.list_folder(str(tmp_path))


def test_a_pipe_that_takes_the_place_of_an_image_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: it is not a regular file"):
        datasets.read_image(tmp_path / "1.png", 8, 1)


def test_repeated_images_are_told(tmp_path, capsys):
    root = tmp_path / "images"
    for i in range(6):
        save(CLEAR[..., [3, 3, 3, 3]] if i < 4 else COLOUR // i, root / "train" / "a" / f"{i}.png")  # white on transparency
        save(COLOUR // (i + 1), root / "test" / "a" / f"{i}.png")
    for _ in range(2):  # also when they are prepared already
        datasets._say.cache_clear()
        open_folder(root, tmp_path)
        assert (
            capsys.readouterr()
            .err.strip()
            .endswith("3 of the 6 images of train repeat another one, pixel for pixel, at 8x8x3 on white; 4 are train/a/0.png")
        )
    black = pipeline.open_split(
        "image_folder",
        split="train",
        image_size=8,
        channels=3,
        path=str(root),
        data_dir=str(tmp_path / "cache"),
        background="black",
    )
    assert black.identity != open_folder(root, tmp_path).identity
    assert (pipeline.examples(black)["image"].min((1, 2, 3)) == 0).sum() >= 4


def test_small_images_that_are_enlarged_are_told(tmp_path, capsys):
    root = tmp_path / "images"
    for name, size in {"a": (16, 16), "b": (40, 12), "c": (12, 40), "d": (40, 20)}.items():
        for suffix in ("png", "jpg"):
            save(Image.linear_gradient("L").resize(size).rotate(len(name) + size[0]), root / "train" / "a" / f"{name}.{suffix}")
    open_folder(root, tmp_path, image_size=16)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: image folder {root}: 4 of the 8 images of train are smaller than 16x16 and are enlarged, such as train/a/b.jpg"
    )
    open_folder(root, tmp_path, image_size=12)
    assert not capsys.readouterr().err


def test_folders_that_cannot_be_read(tmp_path, capsys, monkeypatch):
    root = tmp_path / "images"
    for file in ("train/a/1.png", ".Trash/1.png", "train/a/deeper/1.png", "train/b/1.png"):
        save(COLOUR, root / file)
    scandir, closed = os.scandir, {".Trash", "deeper"}

    def guarded(path):  # permissions do not stop an administrator, who may run this test
        if os.path.basename(path) in closed:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert [file for file, *_ in datasets.list_folder(str(root))["train"]] == ["train/a/1.png", "train/b/1.png"]
    assert "passed over 2 files: 2 folder(s) that cannot be read in the folder itself and 1 more" in capsys.readouterr().err
    closed.add("b")
    with pytest.raises(PermissionError, match="train/b"):
        datasets.list_folder(str(root))


def test_a_config_that_is_older_than_the_background(small):
    old = config.to_dict(small(), short=True)
    assert "background" not in old["data"] and config.from_dict(old) == small({"data.background": "white"})
    assert config.to_dict(small())["data"] == old["data"] | {"background": "white", "dtype": "uint8"}
    black = small({"data.background": "#000"})
    assert config.to_dict(black, short=True)["data"]["background"] == "#000"
    assert config.from_dict(config.to_dict(black, short=True)) == black
    for wrong in ("whit", "#ffffff80", "", "rgb(0, 0, 300)", "\ud800", "#" * 200):
        with pytest.raises(
            config.ConfigError, match=r"data\.background(: .* is no opaque colour; write one as white|=.* is not text)"
        ):
            small({"data.background": wrong})


def test_names_of_any_bytes(tmp_path):
    root = tmp_path / "p[1]*caf\udce9"
    for i, file in enumerate(("caf\udce9.png", "x[1].png", "new\nline.png", "\udcff.png")):
        for label in ("caf\udce9", " a", "a", "new\nline"):
            save(COLOUR // (i + 1), root / "train" / label / file)
    opened = open_folder(root, tmp_path)
    assert opened.num_classes == 4 and len(pipeline.examples(opened)["label"]) == 16
    (root / "train" / "a" / "b\udce9.png").write_bytes(b"no image")
    with pytest.raises(ValueError) as error:
        open_folder(root, tmp_path)
    assert str(error.value).startswith(f"cannot read the image {tmp_path}/p[1]*caf\\xe9/train/a/b\\xe9.png: ")
    for path in (f"{root}x", "\ud800", "a\0b"):
        with pytest.raises(FileNotFoundError, match="no such image folder: ") as error:
            open_folder(path, tmp_path)
        str(error.value).encode()


@pytest.mark.parametrize("name", ["d[1]", "d*?", "{a,b}", "d@3", "d[0:1]", "a\nb"])
def test_data_folders_whose_names_are_patterns(tmp_path, name, cache):
    shutil.copytree(os.path.join(cache, "digits"), tmp_path / name / "digits")
    opened = pipeline.open_split("digits", split="test[:3]", image_size=8, channels=1, data_dir=str(tmp_path / name))
    np.testing.assert_array_equal(pipeline.examples(opened)["label"], load_digits().target[1500:1503])


@pytest.mark.parametrize("data_set", ["digits", "cifar10"])
@pytest.mark.parametrize("folder, words", [("/caf\udce9", r"in /caf\xe9, which is not UTF-8"), ("/\ud800", "not UTF-8")])
def test_data_folders_that_cannot_be_used_are_told(data_set, folder, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        pipeline.open_split(data_set, split="train", image_size=8, channels=1, data_dir=folder)


def test_the_home_of_nobody():
    with pytest.raises(ValueError, match="data_dir='~nobody_is_so_called/x': "):
        pipeline.open_split("digits", split="train", image_size=8, channels=1, data_dir="~nobody_is_so_called/x")


def test_image_folder_crops_and_antialiases(tmp_path):
    root = tmp_path / "images"
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 200  # only the centre square is bright
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    save(wide, root / "train" / "a" / "1.png")
    save(checkers, root / "train" / "b" / "1.png")
    got = pipeline.examples(open_folder(root, tmp_path))
    a, b = (got["image"][list(got["label"]).index(label)] for label in (0, 1))
    np.testing.assert_array_equal(a, 200)
    np.testing.assert_allclose(b, 127.5, atol=4)  # picking pixels would give 0 or 255


def test_photographs_are_turned_upright(tmp_path):
    root = tmp_path / "images"
    lying = np.zeros((32, 32), np.uint8)
    lying[:, :16] = 250  # bright on the left as stored, at the top when turned clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    save(lying, root / "train" / "a" / "1.jpg", exif=exif)
    image = open_folder(root, tmp_path, channels=1)[0]["image"]
    assert image[:3].min() > 200 and image[-3:].max() < 50


def test_corrupt_image_is_named_and_leaves_nothing_behind(tmp_path):
    root = tmp_path / "images"
    good = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    save(good, root / "train" / "cat" / "good.png")
    save(good, root / "train" / "cat" / "torn.jpg")
    whole = (root / "train" / "cat" / "torn.jpg").read_bytes()
    for torn in (whole[: len(whole) // 2], b"not an image", b""):
        (root / "train" / "cat" / "torn.jpg").write_bytes(torn)
        with pytest.raises(ValueError, match=r"^cannot read the image .*/train/cat/torn\.jpg: [^\n]+$"):
            open_folder(root, tmp_path)
        for folder in (tmp_path / "cache").iterdir():
            assert os.listdir(folder) == [".lock"]
    (root / "train" / "cat" / "torn.jpg").write_bytes(whole)
    assert len(open_folder(root, tmp_path)) == 2


def test_image_folder_splits(tmp_path):
    root = tmp_path / "images"
    for split, count in (("train", 40), ("held-out", 4)):
        for i in range(count):
            save(np.full((8, 8, 3), i, np.uint8), root / split / "ab"[i * 2 // count] / f"{i:02}.png")
    (root / "train" / ".hidden").mkdir()
    assert len(open_folder(root, tmp_path, "held-out")) == 4
    with pytest.raises(ValueError, match="no split 'test' in image folder .*: it has held-out, train"):
        open_folder(root, tmp_path, "test")
    most, rest = (open_folder(root, tmp_path, split) for split in ("train[:80%]", "train[80%:]"))
    most, rest = pipeline.examples(most), pipeline.examples(rest)
    assert sorted([*most["image"][:, 0, 0, 0], *rest["image"][:, 0, 0, 0]]) == list(range(40))
    assert set(rest["label"]) == {0, 1}  # the order is not the folder's: both classes are in both parts


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["1.png", "2.png"], {"train": {"images": 2}}),
        (["cat/1.png", "dog/1.png", "dog/2.png"], {"train": {"cat": 1, "dog": 2}}),
        (["train/1.png", "test/1.png", "test/2.png"], {"train": {"images": 1}, "test": {"images": 2}}),
        (["train/1.png", "car/1.png"], {"train": {"car": 1, "train": 1}}),
        (["train/a/1.png", "test/b/1.png", "c/3.png", "4.png"], {"train": {"a": 1}, "test": {"b": 1}}),
        (["a/1.png", "2.png"], {"train": {"a": 1}}),
    ],
)
def test_layouts_of_folders(tmp_path, capsys, files, splits):
    root = tmp_path / "images"
    for number, file in enumerate(files):
        save(np.full((8, 8), number, np.uint8), root / file)
    listing = datasets.list_folder(str(root))
    passed = len(files) - sum(map(len, listing.values()))
    assert (f"passed over {passed} file" in capsys.readouterr().err) == bool(passed)
    classes = datasets._classes(listing)
    found = {split: collections.Counter(classes[file] for file, *_ in given) for split, given in listing.items()}
    assert found == splits
    split = open_folder(root, tmp_path)
    assert len(split) == sum(splits["train"].values()) and split.num_classes == len(set().union(*splits.values()))


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"no images in .*: expected some in it, in <class>/ or in <split>/<class>/"):
        open_folder(tmp_path, tmp_path / "data")


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder like that of CIFAR-10's binary version, with 7 images a file."""
    monkeypatch.setattr(datasets, "CIFAR10_IMAGES", 7)
    rng, folder = np.random.default_rng(0), tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in datasets.CIFAR10:
        records = rng.integers(0, 256, (7, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    return folder


def test_cifar10_without_tensorflow(cifar, tmp_path):
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(cifar, cifar.name)
    for number, path in enumerate((cifar, tmp_path / "cifar-10-binary.tar.gz")):
        opened = {
            split: pipeline.open_split(
                "cifar10_binary", split=split, image_size=32, channels=3, path=str(path), data_dir=str(tmp_path / str(number))
            )
            for split in ("train", "test")
        }
        assert (len(opened["train"]), len(opened["test"]), opened["test"].num_classes) == (35, 7, 10)
        record = (cifar / "data_batch_2.bin").read_bytes()[3 * 3073 : 4 * 3073]
        example = opened["train"][7 + 3]
        assert example["label"] == record[0]
        for channel in range(3):  # 1024 bytes of each colour, row by row
            assert example["image"][..., channel].tobytes() == record[1 + 1024 * channel : 1 + 1024 * (channel + 1)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "test_batch.bin").unlink(),
        lambda folder: os.truncate(folder / "data_batch_3.bin", 5 * 3073),
        lambda folder: (folder / "data_batch_3.bin").write_bytes(bytes([10]) * 7 * 3073),
        lambda folder: [path.unlink() for path in folder.iterdir()],
    ],
)
def test_what_is_not_cifar10_is_told(cifar, tmp_path, damage):
    damage(cifar)
    with pytest.raises(ValueError, match=r"CIFAR-10.*: get cifar-10-binary\.tar\.gz") as error:
        datasets.cifar10_binary(str(cifar), str(tmp_path / "data"))
    assert "\n" not in str(error.value) and not list((tmp_path / "data").glob("*/incomplete-*"))
    for path in ("", str(tmp_path / "nothing.tar.gz"), __file__):
        with pytest.raises(ValueError, match=r"get cifar-10-binary\.tar\.gz"):
            datasets.cifar10_binary(path, str(tmp_path / "data"))


def test_folder_is_converted_once_and_anew_when_it_changes(tmp_path, monkeypatch):
    root = tmp_path / "images"
    save(np.zeros((8, 8, 3), np.uint8), root / "train" / "a" / "1.png")
    prepared = []
    prepare = datasets._prepare
    monkeypatch.setattr(datasets, "_prepare", lambda *arguments: (prepared.append(1), prepare(*arguments)))
    for _ in range(2):
        open_folder(root, tmp_path)
    assert len(prepared) == 1
    open_folder(root, tmp_path, image_size=4)
    open_folder(root, tmp_path, channels=1)
    assert len(prepared) == 3
    save(np.full((8, 8, 3), 9, np.uint8), root / "train" / "a" / "1.png")
    os.utime(root / "train" / "a" / "1.png", ns=(1, 1))
    assert open_folder(root, tmp_path)[0]["image"].max() == 9
    save(np.zeros((8, 8, 3), np.uint8), root / "train" / "a" / "2.png")
    assert len(open_folder(root, tmp_path)) == 2
    assert len(prepared) == 5


# ------------------------------------------------------------------------------- data sets prepared elsewhere


class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stands for a public TFDS data set: encoded images of several sizes, a label, and more."""

    VERSION = tfds.core.Version("2.0.0")
    SUPPORTED_VERSIONS = [tfds.core.Version("10.0.0")]

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "id": tfds.features.Text()}
        if self.version > "2.0.0":
            features["label"] = tfds.features.ClassLabel(names=["cat", "dog"])
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, size in enumerate([(8, 8), (12, 8), (16, 16)]):
            example = {"image": Image.new("RGB", size, (10, 20, 30 + i)), "id": str(i)}
            yield i, example | ({"label": i % 2} if self.version > "2.0.0" else {})


def test_prepared_data_set(tmp_path, caplog):
    for version in ("2.0.0", "10.0.0"):
        Photos(version=version, data_dir=tmp_path).download_and_prepare(file_format="array_record")
    newest = pipeline.open_split("photos", split="train", image_size=8, channels=3, data_dir=str(tmp_path))
    got = pipeline.examples(newest)
    assert newest.num_classes == 2
    np.testing.assert_array_equal(got["label"], [0, 1, 0])
    for i in range(3):
        np.testing.assert_array_equal(got["image"][i], np.broadcast_to([10, 20, 30 + i], (8, 8, 3)))
    old = pipeline.open_split("photos:2.0.0", split="train[1:]", image_size=8, channels=3, data_dir=str(tmp_path))
    assert old.num_classes == 0 and len(old) == 2
    np.testing.assert_array_equal(pipeline.examples(old)["label"], 0)
    assert "OpenCV" not in caplog.text
    with pytest.raises(ValueError, match="channels=3, not 1"):
        pipeline.open_split("photos", split="train", image_size=8, channels=1, data_dir=str(tmp_path))


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "digits-test.array_record-00000-of-00001"])
@pytest.mark.parametrize("name", ["digits", "digits:1.0.0"])  # our own, and one prepared elsewhere
def test_damaged_data_sets_are_told_and_pipes_are_not_opened(cache, tmp_path, name, file):
    shutil.copytree(os.path.join(cache, "digits"), tmp_path / "digits")
    path = tmp_path / "digits" / "1.0.0" / file

    def told():
        with pytest.raises(ValueError) as error:
            split = pipeline.open_split(name, split="test", image_size=8, channels=1, data_dir=str(tmp_path))
            pipeline.examples(split)
        assert "\n" not in str(error.value)
        return str(error.value)

    for content in (b"", b"[]", b"null", b'{"name": 5}', b"\xe9"):
        path.write_bytes(content)
        assert re.search("not valid|no data set that can be read|cannot read example 0", told())
    path.unlink()
    os.mkfifo(path)
    assert told() == f"{path} is neither a file nor a folder"


def test_damaged_records_are_told(cache, tmp_path):
    datasets.digits(str(tmp_path))
    (file,) = (tmp_path / "digits" / "1.0.0").glob("digits-test*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    split = pipeline.open_split("digits", split="test", image_size=8, channels=1, data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="data set 'digits', test: cannot read example [0-9]+: "):
        pipeline.examples(split)


# --------------------------------------------------------------------------------------------------- batches


def test_batch_contents(digits):
    (batch,) = take(digits, 1, batch_size=16)
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "image": ((16, 8, 8, 1), np.uint8),
        "label": ((16,), np.int32),
        "index": ((16,), np.int32),
    }
    everything = pipeline.examples(digits)
    for image, label in zip(batch["image"], batch["label"], strict=True):
        (at,) = np.nonzero((everything["image"] == image).all((1, 2, 3)))
        assert label in everything["label"][at]  # labels travel with their images
    np.testing.assert_array_equal(batch["index"], np.arange(16))


@pytest.mark.parametrize("n, batch_size", [(300, 8), (300, 100), (5, 8), (1, 4)])
def test_each_epoch_is_a_fresh_permutation(n, batch_size):
    epochs = 4
    numbers = numbers_of(take(numbered(n), -(-epochs * n // batch_size), batch_size=batch_size))
    epochs = numbers[: epochs * n].reshape(epochs, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (len(epochs), 1)))
    if n > 5:
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_seeds_and_their_epochs_are_unrelated():
    orders = [tuple(numbers_of(take(numbered(300), 9, batch_size=100, seed=seed))) for seed in range(5)]
    epochs = {order[i : i + 300] for order in orders for i in (0, 300, 600)}
    assert len(epochs) == 15  # none shared, not even between neighbouring seeds


def test_order_is_uniform():
    positions = np.zeros((6, 6))
    for seed in range(600):
        positions[np.arange(6), pipeline._numbers(6, seed, 6, 12)] += 1
    # Each of 36 counts has mean 100, standard deviation 9.1.
    assert np.abs(positions - 100).max() < 40


def test_restart_at_a_step(digits):
    whole = take(digits, 60, batch_size=64, flip=True, seed=3)  # more than two epochs
    for step in (1, 23, 24, 57):
        late = take(digits, 3, batch_size=64, flip=True, seed=3, start_step=step)
        assert_same(late, whole[step : step + 3])
    (late,) = take(digits, 1, batch_size=64, start_step=10**9)
    assert late["image"].shape == (64, 8, 8, 1)


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_global_batch(digits, process_count):
    options = dict(batch_size=16, seed=1, flip=True)
    whole = take(digits, 5, **options)
    parts = [take(digits, 5, **options, process_index=p, process_count=process_count) for p in range(process_count)]
    joined = [{key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts, strict=True)]
    assert_same(joined, whole)


def test_worker_processes_and_threads_change_nothing(digits):
    options = dict(batch_size=16, seed=1, flip=True, start_step=7)
    whole = take(digits, 9, **options)
    assert_same(take(digits, 9, **options, num_threads=4, prefetch=3), whole)
    assert_same(take(digits, 9, **options, num_workers=2), whole)


def test_memory_changes_nothing(digits, cache, monkeypatch):
    monkeypatch.setattr(pipeline, "_CACHE_BYTES", 0)
    bare = pipeline.open_split("digits", split="train", image_size=8, channels=1, data_dir=cache)
    assert bare.source._cache is None and digits.source._cache is not None
    assert_same(take(bare, 5, flip=True), take(digits, 5, flip=True))
    twice = take(digits, 1, start_step=4) + take(digits, 1, start_step=4)  # read anew, then from memory
    assert_same(twice[:1], twice[1:])
    twice[0]["image"][:] = 0  # a batch is the caller's own
    assert_same(take(digits, 1, start_step=4), twice[1:])


def test_flips(digits):
    straight, flipped = (take(digits, 40, batch_size=64, flip=flip) for flip in (False, True))
    again = take(digits, 40, batch_size=64, flip=True, seed=0)
    assert_same(flipped, again)
    before, after = (np.concatenate([batch["image"] for batch in b]) for b in (straight, flipped))
    kept = (after == before).all((1, 2, 3))
    mirrored = (after == before[:, :, ::-1]).all((1, 2, 3))
    assert (kept | mirrored).all()
    assert not (kept & mirrored).mean() > 0.01
    assert abs(mirrored.mean() - 0.5) < 0.05  # 5 standard deviations
    # Two epochs of the same image do not always get the same coin.
    assert kept.reshape(40, 64).any(0).all() and mirrored.reshape(40, 64).any(0).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 6, "process_count": 4}, "batch_size=6 .* process_count=4"),
        ({"process_index": 1}, "process_index=1"),
        ({"seed": -1}, "seed=-1"),
        ({"start_step": -1}, "start_step=-1"),
        ({"num_threads": 0}, "num_threads=0"),
    ],
)
def test_refused_options(digits, change, message):
    with pytest.raises(ValueError, match=message):
        pipeline.batches(digits, **({"batch_size": 8, "seed": 0, "flip": False} | change))


def test_close_stops_the_threads(digits):
    batches = pipeline.batches(digits, batch_size=8, seed=0, flip=False)
    next(iter(batches))
    assert any("grain" in thread.name for thread in threading.enumerate())
    batches.close()
    for thread in threading.enumerate():
        if "grain" in thread.name:
            thread.join(5)
            assert not thread.is_alive()


# --------------------------------------------------------------------------------------------------- scaling


def test_scale_and_unscale():
    levels = np.arange(256, dtype=np.uint8)
    x = jax.jit(pictures.scale)(levels)
    assert x.dtype == jnp.float32 and (x[0], x[255]) == (-1, 1)
    np.testing.assert_allclose(x, levels.astype(float) * 2 / 255 - 1, atol=1e-6)
    np.testing.assert_array_equal(x, -x[::-1])
    back = jax.jit(pictures.unscale)(x)
    assert back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, levels)
    np.testing.assert_array_equal(pictures.unscale(np.array([-9.0, 9.0, 0.001])), [0, 255, 128])


def test_examples(digits):
    some = pipeline.examples(digits, 7)
    np.testing.assert_array_equal(some["label"], load_digits().target[:7])
    with pytest.raises(ValueError, match="n=1501"):
        pipeline.examples(digits, 1501)


# ---------------------------------------------------------------------------------------------------- arrays


def open_arrays(path, split="train", image_size=4, channels=3, dtype="uint8"):
    return pipeline.open_split("arrays", split=split, image_size=image_size, channels=channels, dtype=dtype, path=str(path))


def random_images(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.dtype(">f8")])
@pytest.mark.parametrize("shape", [(10, 4, 4), (10, 4, 4, 5)])
def test_an_array_is_read_as_it_is(tmp_path, dtype, shape):
    array = random_images(*shape).astype(dtype) * (
        1 if dtype == np.uint8 else dtype.type(0.25) if dtype == ">f8" else dtype(0.25)
    )
    np.save(tmp_path / "a.npy", np.asfortranarray(array))
    kind = "uint8" if dtype == np.uint8 else "float32"
    opened = open_arrays(tmp_path / "a.npy", channels=(*shape, 1)[3], dtype=kind)
    got = pipeline.examples(opened)
    assert got["image"].dtype == kind and opened.num_classes == 0 and len(opened) == 10 and not got["label"].any()
    np.testing.assert_array_equal(got["image"].reshape(shape), array)
    assert opened[-1]["image"].shape == (4, 4, (*shape, 1)[3])


def test_splits_and_labels_of_arrays(tmp_path):
    train, test = random_images(10, 4, 4, 3), random_images(5, 4, 4, 3, seed=1)
    labels = {"train_labels": np.arange(10) % 3, "test_labels": np.array([6, 0, 1, 2, 3], np.uint8)}
    np.savez_compressed(tmp_path / "a.npz", train=train, test=test, extra=test, unrelated=np.arange(3), **labels)
    both, classes = np.concatenate([train, test]), np.concatenate(list(labels.values()))
    rows = {
        "train": range(10),
        "test": range(10, 15),
        "train[:90%]": range(9),
        "train[2:5]": range(2, 5),
        "test+train[-1:]": [*range(10, 15), 9],
    }
    for split, numbers in rows.items():
        opened = open_arrays(tmp_path / "a.npz", split)
        got = pipeline.examples(opened)
        np.testing.assert_array_equal(got["image"], both[numbers])
        np.testing.assert_array_equal(got["label"], classes[numbers])
        assert opened.num_classes == 7 and got["label"].dtype == np.int32  # of all splits
    assert open_arrays(tmp_path / "a.npz", "extra").num_classes == 0 == open_arrays(tmp_path / "a.npz", "extra+train").num_classes
    np.savez(tmp_path / "b.npz", images=train, labels=labels["train_labels"])
    np.testing.assert_array_equal(pipeline.examples(open_arrays(tmp_path / "b.npz"))["label"], labels["train_labels"])


def test_batches_of_arrays_are_memory_mapped_and_the_same_in_other_processes(tmp_path):
    array = np.random.default_rng(0).standard_normal((24, 4, 4, 4), np.float32)
    np.save(tmp_path / "a.npy", array)
    opened = open_arrays(tmp_path / "a.npy", "train[4:]", channels=4, dtype="float32")
    assert len(pickle.dumps(opened.source)) < 1000 and isinstance(opened.source._parts[0][0], np.memmap)
    epoch = take(opened, 5, batch_size=4)
    assert epoch[0]["image"].dtype == np.float32
    np.testing.assert_array_equal(np.unique(np.concatenate([b["image"] for b in epoch])), np.unique(array[4:]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(opened.source)).read(np.array([3, 0]))[0], array[[7, 4]])
    flipped = take(opened, 5, batch_size=4, flip=True)
    assert any((a["image"] != b["image"]).any() for a, b in zip(epoch, flipped, strict=True))
    np.save(tmp_path / "a.npy", array[:20])
    with pytest.raises(ValueError, match="has changed since it was opened"):
        pickle.loads(pickle.dumps(opened.source))


def test_the_identity_of_arrays_is_that_of_their_content(tmp_path):
    array = np.zeros((4, 4, 4, 3), np.uint8)
    np.save(tmp_path / "a.npy", array)
    first = open_arrays(tmp_path / "a.npy").identity
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "a.npy", tmp_path / "copy" / "a.npy")
    assert open_arrays(tmp_path / "copy" / "a.npy", "train[:2]").identity == first == f"a.npy, crc32 {first[-8:]}"
    array[3, 3, 3, 2] = 1
    np.save(tmp_path / "a.npy", array)
    assert open_arrays(tmp_path / "a.npy").identity != first


@pytest.mark.parametrize(
    "content, given, says",
    [
        (np.zeros((2, 4, 4, 3), np.int64), {}, "a.npy holds int64: images are uint8, from 0 to 255, or floats"),
        (np.zeros((2, 4, 4, 3), bool), {}, "a.npy holds bool"),
        (np.zeros((2, 4, 4, 3), np.float32), {}, "a.npy holds float32, not uint8: set data.dtype=float32"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"dtype": "float32"}, "a.npy holds uint8, not float32: set data.dtype=uint8"),
        (np.zeros((2, 48), np.uint8), {}, r"a.npy has the shape \[2, 48\]: images are \[N, H, W, C\] or \[N, H, W\]$"),
        (np.zeros((2, 3, 8, 8), np.uint8), {}, r"a.npy has images \[3, 8, 8\], which are not square"),
        (np.zeros((2, 8, 8), np.uint8), {}, r"images \[8, 8, 1\], not \[4, 4, 3\]: set image_size=8 and channels=1"),
        (np.zeros((0, 4, 4, 3), np.uint8), {}, "split 'train' of array file .*a.npy is empty"),
        (np.full((9, 4, 4, 3), 1e39), {"dtype": "float32"}, "a.npy has values that are not finite as float32, .* image 0"),
        (np.array([[{}]], object), {}, "a.npy cannot be read: Array can't be memory-mapped: Python objects"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", {}, "a.npy cannot be read"),
        (b"", {}, "a.npy cannot be read"),
        (pickle.dumps([1]), {}, "a.npy cannot be read"),
        (np.zeros((9, 4, 4, 3), np.uint8), {"split": "test"}, "no split 'test' in array file .*a.npy: it has train"),
        (np.zeros((9, 4, 4, 3), np.uint8), {"split": "train[:10]"}, r"'train\[:10\]' of array file .*9 examples; write 'train'"),
        (np.zeros((9, 4, 4, 3), np.uint8), {"split": "train[:9x]"}, r"'train\[:9x\]'"),
        (np.zeros((9, 4, 4, 3), np.uint8), {"split": "train[5:2]"}, r"split 'train\[5:2\]' of array file .*a.npy is empty"),
        ({"train": np.full((1, 4, 4, 3), np.nan)}, {"dtype": "float32"}, "a.npz: 'train' has values that are not finite"),
        ({"train": np.array([None])}, {}, "a.npz: 'train' cannot be read: Object arrays cannot be loaded"),
        ({"train": np.zeros((1, 4, 4, 3), np.uint8), "train_labels": np.array([1, 2])}, {}, "2 labels, and 'train' has 1 images"),
        ({"train": np.zeros((1, 4, 4, 3), np.uint8), "train_labels": np.array([-1])}, {}, "'train_labels' goes from -1 to -1"),
        ({"train": np.zeros((1, 4, 4, 3), np.uint8), "train_labels": np.array([0.5])}, {}, "'train_labels' is float64"),
        (
            {"train": np.zeros((1, 4, 4, 3), np.uint8), "test_labels": np.array([0])},
            {},
            "are labels of 'test', which is not there",
        ),
        ({"arr_0": np.zeros((1, 4, 4, 3), np.uint8)}, {}, "no split 'train' in array file .*a.npz: it has arr_0"),
    ],
)
def test_faulty_arrays_are_told_in_one_line(tmp_path, content, given, says):
    path = tmp_path / ("a.npz" if isinstance(content, dict) else "a.npy")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content)
    with pytest.raises(ValueError, match=says) as error:
        open_arrays(path, **given)
    assert "\n" not in str(error.value) and path.name in str(error.value)


def test_the_image_that_is_not_finite_is_named_however_far_it_is(tmp_path, monkeypatch):
    from noisesched.data import arrays

    monkeypatch.setattr(arrays, "_CHUNK", 100)
    array = np.zeros((20, 4, 4, 3), np.float16)
    array[17, 2, 1, 0] = np.inf
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match="the first in image 17$"):
        open_arrays(tmp_path / "a.npy", dtype="float32")


def test_array_files_that_are_none(tmp_path):
    for name, says in {
        "": "needs a path",
        "gs://b/a.npy": "local files only",
        "a.txt": "a .npy or a .npz",
        "f.npy": "regular",
    }.items():
        (tmp_path / "a.txt").touch()
        os.makedirs(tmp_path / "f.npy", exist_ok=True)
        with pytest.raises(ValueError, match=says):
            open_arrays(tmp_path / name if name and "://" not in name else name)
    with pytest.raises(FileNotFoundError, match="no such array file: .*nothing.npy"):
        open_arrays(tmp_path / "nothing.npy")
    np.save(tmp_path / "a.npy", np.zeros((1, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "a.npz", train=np.zeros((1, 4, 4, 3), np.uint8))
    whole = (tmp_path / "a.npz").read_bytes()
    for content in ((tmp_path / "a.npy").read_bytes(), whole[:-30], whole.replace(b"\x93NUMPY", b"\x93NUMPX")):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match="bad.npz.* cannot be read|no split"):
            open_arrays(tmp_path / "bad.npz")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(ValueError, match="pipe.npy is not a regular file"):
        open_arrays(tmp_path / "pipe.npy")


def latents(folder, **changes):
    """A file of latents of five channels on a scale of their own, and the settings of a run on it."""
    array = np.random.default_rng(0).standard_normal((40, 8, 8, 5)) * 3
    np.savez(folder / "latents.npz", train=array, test=array)
    return {
        "data.name": "arrays",
        "data.path": folder / "latents.npz",
        "data.channels": 5,
        "data.dtype": "float32",
        "preview.every": 2,
        "training.num_steps": 2,
        "training.log_every": 2,
        "training.checkpoint_every": 2,
    } | changes


def test_latents_are_trained_and_sampled(main, words, stand_in, tmp_path):
    run, out = f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"
    assert main("train", *words(latents(tmp_path)), run)[0] == 0
    with Image.open(tmp_path / "run" / "samples" / "step_0000002.png") as picture:
        assert picture.mode == "RGB"  # of the first three channels
    assert (
        main("sample", run, out, "--steps=1", "--num_images=64", "--schedule", "cosine", "linear", "--formats", "npy", "npz")[0]
        == 0
    )
    folders = [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    made = [np.load(path / "samples.npy") for path in folders]
    assert len(made) == 2 and all(each.dtype == np.float32 and each.shape == (64, 8, 8, 5) for each in made)
    assert (tmp_path / "out" / "overview.png").exists() and (folders[0] / "grid.png").exists()
    code, _, err = main("sample", run, out, "--steps=1", "--formats=png")
    assert code == 2 and "are not 8-bit pictures" in err and err.count("\n") == 1
    code, _, err = main("evaluate", run)
    assert code == 2 and "bits per dimension are defined for 8-bit images, and these are float32" in err and err.count("\n") == 1
    assert "measured on 40 training images" in main("diagnose", *words(latents(tmp_path)))[1]


def test_distances_of_latents_are_raw(words, small, tmp_path):
    given = small(latents(tmp_path)).data
    reference = features.reference(given, 10, ("frechet(raw)", "precision(raw)"), split="train")
    images = pipeline.examples(pipeline.open_config(given), 10)["image"]
    assert images.std() == pytest.approx(3, rel=0.05) and reference.appearance is None
    np.testing.assert_allclose(reference.extractors["raw"].extract(images)["features"], images.reshape(10, -1))
    assert reference.measure(images)["frechet(raw, n=10)"] > 0
    with pytest.raises(ValueError, match=r"compare float32 images \[10, 8, 8, 5\]; got uint8"):
        reference.measure(images.astype(np.uint8))
    for metric in ("frechet(classifier)", "frechet(inception)", "brightness"):
        with pytest.raises(ValueError, match=re.escape(metric) + " is of 8-bit images"):
            features.check(given, 10, (metric,), split="train")


def test_settings_of_arrays(small):
    for changes, says in (
        ({"data.channels": 4}, "data.channels=4: choose one of 1, 3; other numbers are for data.name='arrays'"),
        ({"data.dtype": "float32"}, "data.dtype='float32' is for data.name='arrays'; 'digits' has uint8 images"),
    ):
        with pytest.raises(config.ConfigError, match=re.escape(says)):
            small(changes)


def test_visible_pictures_of_latents():
    floats = np.linspace(-5, 3, 2 * 4 * 4 * 5).reshape(2, 4, 4, 5).astype(np.float32)
    seen = pictures.visible(floats)
    shown = floats[..., :3]
    assert seen.dtype == np.uint8 and seen.shape == (2, 4, 4, 3) and (seen.min(), seen.max()) == (0, 255)
    np.testing.assert_allclose(seen / 255 * np.ptp(shown) + shown.min(), shown, atol=np.ptp(shown) / 500)
    assert pictures.visible(floats[..., :2]).shape == (2, 4, 4, 1) and not pictures.visible(np.ones((1, 2, 2, 1))).any()
    image = random_images(2, 4, 4, 4)
    np.testing.assert_array_equal(pictures.visible(image), image[..., :3])
    for kind in (np.float32, np.float64):
        assert pictures.as_x(floats, kind).dtype == kind and pictures.as_x(image, kind).max() <= 1
    np.testing.assert_array_equal(pictures.as_x(floats), floats)


# ---------------------------------------------------------------------------------------------------- Hugging Face


class Rows(list):
    """Stands in for the library's Dataset."""

    def select_columns(self, names):
        return Rows({name: row[name] for name in names} for row in self)

    def cast_column(self, name, kind):
        assert not kind["decode"]  # with it, the library itself would open what a path names
        return self


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """`saved({split: rows}, features)`: a folder as save_to_disk writes it, and the library, or a stand-in, to read it."""
    if importlib.util.find_spec("datasets"):
        library = pytest.importorskip("datasets")

        def write(splits, features):
            made = library.Features.from_dict(features)
            rows = {split: library.Dataset.from_list(given, features=made) for split, given in splits.items()}
            whole = library.DatasetDict(rows) if list(rows) != ["train"] else rows["train"]
            whole.save_to_disk(tmp_path / "hf")
            return tmp_path / "hf"

        return write
    stored = {}
    load = lambda path: Rows(stored[os.path.normpath(path)])
    stand_in = types.SimpleNamespace(Image=lambda decode: {"decode": decode}, load_from_disk=load)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)

    def write(splits, features):
        root = tmp_path / "hf"
        for split, rows in splits.items():
            folder = root / split if list(splits) != ["train"] else root
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
            (folder / "state.json").write_text(repr(rows))
            stored[os.path.normpath(folder)] = rows
        if list(splits) != ["train"]:
            (root / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
        return root

    return write


IMAGE, CLASSES = {"_type": "Image"}, {"_type": "ClassLabel", "names": ["cat", "dog"]}


def image_rows(n, **more):
    rows = []
    for number in range(n):
        Image.fromarray(random_images(1, 8, 8, 3, seed=number)[0]).save(content := io.BytesIO(), format="PNG")
        rows.append({"img": {"bytes": content.getvalue(), "path": None}, **{name: of(number) for name, of in more.items()}})
    return rows


def open_saved(folder, cache, split="train", **changes):
    given = {"image_size": 8, "channels": 3, "path": str(folder), "data_dir": str(cache)} | changes
    return pipeline.open_split("huggingface", split=split, **given)


def test_hugging_face_folders_are_converted_once(saved, tmp_path, monkeypatch):
    rows = image_rows(6, y=lambda number: number % 2, other=lambda number: number)
    folder = saved(
        {"train": rows[:4], "test": rows[4:]}, {"img": IMAGE, "y": CLASSES, "other": {"_type": "Value", "dtype": "int64"}}
    )
    opened = open_saved(folder, tmp_path / "cache")
    got = pipeline.examples(opened)
    assert len(opened) == 4 and opened.num_classes == 2 and open_saved(folder, tmp_path / "cache", "test[:50%]").num_classes == 2
    expected = {random_images(1, 8, 8, 3, seed=number).tobytes(): number % 2 for number in range(4)}
    assert {image.tobytes(): label for image, label in zip(got["image"], got["label"], strict=True)} == expected
    monkeypatch.setitem(sys.modules, "datasets", None)  # it can no longer be imported
    monkeypatch.chdir(tmp_path)
    assert open_saved("hf", tmp_path / "cache").identity == opened.identity
    with pytest.raises(ValueError, match=r"pip install noisesched\[huggingface\]$"):
        open_saved(folder, tmp_path / "cache", image_size=4)
    with pytest.raises(ValueError, match="no split 'valid' in Hugging Face folder .*hf: it has test, train"):
        open_saved(folder, tmp_path / "cache", "valid")


def test_one_split_of_hugging_face_without_labels(saved, tmp_path):
    opened = open_saved(saved({"train": image_rows(3)}, {"img": IMAGE}), tmp_path / "cache", channels=1)
    assert len(opened) == 3 and opened[0]["image"].shape == (8, 8, 1) and opened.num_classes == 1  # as an image folder


def test_faults_of_hugging_face_folders(saved, tmp_path):
    two = {"a": IMAGE, "b": IMAGE}
    rows = [{"a": row["img"], "b": row["img"]} for row in image_rows(1)]
    folder = saved({"train": rows}, two)
    with pytest.raises(ValueError, match="several columns of type Image, a, b: call the one to take 'image'"):
        open_saved(folder, tmp_path)
    for columns, says in (
        ({"x": {"_type": "Value"}}, "has no column of type Image; its columns are x"),
        ({"img": IMAGE, "y": [{"_type": "generate_from_dict"}]}, "has a column of the unknown type 'generate_from_dict'"),
        ([], "its splits have no columns"),
    ):
        (folder / "dataset_info.json").write_text(json.dumps({"features": columns}))
        with pytest.raises(ValueError, match=says):
            open_saved(folder, tmp_path)
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"img": IMAGE}}))
    os.mkfifo(folder / "data.arrow")
    with pytest.raises(ValueError, match="data.arrow is neither a file nor a folder"):
        open_saved(folder, tmp_path)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="dataset_info.json cannot be read: "):
        open_saved(folder, tmp_path)
    for splits in (["../hf"], [], 3, ["all"]):
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
        with pytest.raises(ValueError, match="dataset_dict.json names no splits that can be used"):
            open_saved(folder, tmp_path)
    for path, kind, says in (
        ("", ValueError, "needs a path"),
        (tmp_path / "nowhere", FileNotFoundError, "no such folder"),
        (tmp_path, ValueError, "neither dataset_dict.json nor dataset_info.json"),
    ):
        with pytest.raises(kind, match=says):
            open_saved(path, tmp_path)


@pytest.mark.parametrize(
    "content, says",
    [
        ({"bytes": None, "path": "/etc/passwd"}, r"image train\[1\] is not in the folder"),
        (None, r"image train\[1\] is not in the folder"),
        ({"bytes": b"", "path": None}, r"cannot read the image train\[1\]: it is empty"),
        ({"bytes": b"no image", "path": None}, r"cannot read the image train\[1\]: it is damaged"),
    ],
)
def test_an_image_that_hugging_face_lacks_is_named(saved, tmp_path, content, says):
    if content and content["path"] and not isinstance(sys.modules["datasets"], types.SimpleNamespace):
        pytest.skip("the library itself reads the file that a path names when it writes a folder")
    folder = saved({"train": [*image_rows(1), {"img": content}]}, {"img": IMAGE})
    with pytest.raises(ValueError, match=says):
        open_saved(folder, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/incomplete-*"))
