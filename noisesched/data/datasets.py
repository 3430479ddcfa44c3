"""The data sets: prepared and read by tensorflow-datasets, without TensorFlow.

`digits` is scikit-learn's handwritten digits, `brightness` the same digits at brightnesses from black to white, `image_folder`
a converted folder of photographs: each is written once, to a cache folder, as array_record files of uint8 images.
`find_prepared` opens a data set that was prepared elsewhere. All return the tfds builder that reads the data.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import tempfile

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging
from etils import epath
from PIL import Image, ImageOps

from noisesched.runtime.files import reason
from noisesched.spec import shortened

_VERSION = "1.0.0"  # part of every prepared path: raise it when the output of a builder changes
_SUFFIXES = (".jpg", ".jpeg", ".png")


class _Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """1,797 real handwritten digits, 8x8 gray: UCI's optical recognition of handwritten digits."""

    VERSION = tfds.core.Version(_VERSION)
    name = "digits"

    def _info(self):
        features = _features(8, 1, tfds.features.ClassLabel(num_classes=10))
        # The published order, which mixes the digits already, is kept: `test` is the last 297.
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits  # takes a second to import, needed only here

        digits = load_digits()
        ink = digits.images / 16  # [1797, 8, 8] in [0, 1]
        return {
            "train": self._generate_examples(ink[:1500], digits.target[:1500]),
            "test": self._generate_examples(ink[1500:], digits.target[1500:]),
        }

    def _generate_examples(self, ink, labels):
        for i, (image, label) in enumerate(zip(ink, labels, strict=True)):
            yield i, {"image": np.round(image * 255).astype(np.uint8)[..., None], "label": int(label)}


class _Brightness(_Digits, skip_registration=True):
    """The digits at 32x32 pixels and every mean brightness from black to white; one image in five is flat (label 10).

    The mean is uniform on [0, 1], stratified over the split, so its standard deviation on the scale of x is 0.577. Contrast is
    the largest up to 0.5 at which no pixel is clipped: a digit near black or white is faint.
    """

    VERSION = tfds.core.Version(_VERSION)
    name = "brightness"

    def _info(self):
        features = _features(32, 1, tfds.features.ClassLabel(names=[*map(str, range(10)), "flat"]))
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _generate_examples(self, ink, labels):
        number, rng = 5 * len(ink), np.random.default_rng(0)
        means = rng.permutation((np.arange(number) + rng.random(number)) / number)
        for i, mean in enumerate(means):
            image, label = np.kron(ink[i // 5], np.ones((4, 4))), int(labels[i // 5])
            texture = image - image.mean()
            if i % 5 == 4:
                texture, label = np.zeros_like(texture), 10
            room = min(mean / max(-texture.min(), 1e-9), (1 - mean) / max(texture.max(), 1e-9))
            image = mean + min(0.5, room) * texture
            yield i, {"image": np.round(image * 255).astype(np.uint8)[..., None], "label": label}


class _ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Converts `root/split/class/*.jpg|jpeg|png` to square uint8 images of one size."""

    VERSION = tfds.core.Version(_VERSION)

    def __init__(self, root, listing, image_size, channels, name, **kwargs):
        self.root, self.listing, self.name = root, listing, name
        self.image_size, self.channels = image_size, channels
        super().__init__(**kwargs)

    def _info(self):
        classes = sorted({file.split("/")[1] for files in self.listing.values() for file, *_ in files})
        features = _features(self.image_size, self.channels, tfds.features.ClassLabel(names=classes))
        # tfds orders examples by a hash of their file name: in a folder's own order, sorted by class, 'train[:90%]' would lack
        # the last classes.
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.listing}

    def _generate_examples(self, split):
        def convert(file):
            return file, read_image(self.root / file, self.image_size, self.channels)

        files = [file for file, *_ in self.listing[split]]
        bar = tqdm.tqdm(total=len(files), desc=f"preparing {split}", unit=" images", disable=None)
        # Pillow releases the GIL while it decodes and resizes. Chunks bound the memory.
        with bar, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(files), 256):
                for file, image in pool.map(convert, files[start : start + 256]):
                    yield file, {"image": image, "label": file.split("/")[1]}
                    bar.update()


def _features(size: int, channels: int, label: tfds.features.ClassLabel) -> tfds.features.FeaturesDict:
    # encoding="bytes" stores the raw pixels as one string, which is the fastest to read at these sizes.
    image = tfds.features.Tensor(shape=(size, size, channels), dtype=np.uint8, encoding="bytes")
    return tfds.features.FeaturesDict({"image": image, "label": label})


def square(image: Image.Image, size: int) -> Image.Image:
    """The centre square of an image, resized to size x size by an antialiasing bicubic filter."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Not resize(.., box=..): its filter reads pixels beyond the box.
    image = image.crop((left, top, left + side, top + side))
    return image.resize((size, size), Image.Resampling.BICUBIC)


def read_image(file: pathlib.Path, size: int, channels: int) -> np.ndarray:
    """Decodes a JPEG or PNG to uint8 [size, size, channels]: upright, grey or RGB, without alpha, the centre square.

    Raises ValueError, naming the file, if it cannot be decoded.
    """
    try:
        with Image.open(file) as image:
            # A JPEG far larger than needed is decoded at 1/2, 1/4 or 1/8 of its size, still at least twice the final one.
            image.draft(None, (2 * size, 2 * size))
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits, which convert() would clip at 255 instead of scaling
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = square(image.convert("L" if channels == 1 else "RGB"), size)
            return np.asarray(image).reshape(size, size, channels)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and more
        raise ValueError(f"cannot read the image {file}: {reason(error)}") from error


def list_folder(path: str) -> dict[str, list[tuple[str, int, int]]]:
    """`{split: [("split/class/file", bytes, mtime in ns), ..]}` of a folder of images, sorted by name.

    Raises FileNotFoundError if the folder does not exist, ValueError if it holds no `split/class/image`.
    """
    if not path:
        raise ValueError("'image_folder' needs a path: a folder laid out as split/class/*.jpg|jpeg|png")
    if not os.path.isdir(path):
        raise FileNotFoundError(f"no such image folder: {path}")
    listing = {}
    for split in _subfolders(path):
        files = []
        for label in _subfolders(split.path):
            for entry in os.scandir(label.path):
                if entry.name.lower().endswith(_SUFFIXES) and not entry.name.startswith("."):
                    stat = entry.stat()
                    files.append((f"{split.name}/{label.name}/{entry.name}", stat.st_size, stat.st_mtime_ns))
        if files:
            listing[split.name] = sorted(files)
    if not listing:
        raise ValueError(
            f"no images in {path}: expected <split>/<class>/*.jpg|jpeg|png in it, such as train/cat/001.jpg "
            "(one folder per class, even if there is only one)"
        )
    return listing


def _subfolders(path) -> list[os.DirEntry]:
    folders = [entry for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(folders, key=lambda entry: entry.name)


def digits(data_dir: str = ""):
    """The builder of the digits, prepared under `data_dir` (default: the user's cache) on first use."""
    return _prepared_once(_local(data_dir), "digits", _Digits)


def brightness(data_dir: str = ""):
    """The builder of the digits from black to white, prepared under `data_dir` (default: the user's cache) on first use."""
    return _prepared_once(_local(data_dir), "brightness", _Brightness)


def image_folder(listing: dict, path: str, image_size: int, channels: int, data_dir: str = ""):
    """The builder of a folder of images, converted under `data_dir` (default: the user's cache) on first use.

    The converted copy is keyed by the names, sizes and modification times in `listing`, by `image_size` and `channels`: a folder
    that has changed is converted again.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} for an image folder: choose 1 (gray) or 3 (RGB)")
    fingerprint = hashlib.sha256(repr(sorted(listing.items())).encode()).hexdigest()[:16]
    name = f"image_folder_{image_size}x{channels}_{fingerprint}"

    def make_builder(data_dir):
        logging.info("converting the images in %s, once, to %s", path, data_dir)
        return _ImageFolder(pathlib.Path(path), listing, image_size, channels, name, data_dir=data_dir)

    return _prepared_once(_local(data_dir), name, make_builder)


def _local(data_dir: str) -> pathlib.Path:
    if "://" in data_dir:
        raise ValueError(f"data_dir={data_dir!r}: this data set can only be prepared in a local folder")
    if data_dir:
        return pathlib.Path(data_dir).expanduser()
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "noisesched"


def _prepared_once(root: pathlib.Path, name: str, make_builder):
    """The builder of `root/name/version`, which is prepared first if it does not exist.

    Processes that start together wait on a lock while the first one works. The lock is advisory, and has no effect on some
    network disks: only the rename guarantees that nobody ever sees a half-written data set, even after kill -9.
    """
    final = root / name / _VERSION
    if not final.exists():
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            lock = open(final.parent / ".lock", "w")
        except OSError as error:
            raise ValueError(
                f"cannot prepare {name!r} under {root} ({error.strerror}): set data_dir to a writable folder"
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not final.exists():
                for stale in final.parent.glob("incomplete-*"):  # of a process that was killed: it would hold the lock
                    shutil.rmtree(stale, ignore_errors=True)
                _prepare(final, make_builder)
    return tfds.builder_from_directory(final)


def _prepare(final: pathlib.Path, make_builder) -> None:
    work = tempfile.mkdtemp(prefix="incomplete-", dir=final.parent)
    try:
        builder = make_builder(data_dir=work)
        tfds.disable_progress_bar()  # several nested bars, none of which counts images
        with contextlib.redirect_stdout(io.StringIO()):  # tfds always prints "Downloading .. 0 bytes"
            # The default format, tfrecord, needs TensorFlow.
            builder.download_and_prepare(file_format="array_record")
        try:
            os.rename(builder.data_dir, final)
        except OSError:
            if not final.exists():  # otherwise another process has written the same content first
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def find_prepared(name: str, data_dir: str):
    """The builder of a data set that was prepared elsewhere as array_record, in `data_dir/name[/config][/version]`.

    `data_dir` is local or a bucket; '' is TFDS's own default. The newest version is taken unless `name` gives one, as in
    'cifar10:3.0.2'. Raises FileNotFoundError that says where it looked and how to prepare the data.
    """
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*(:\w[\w.]*)?", name):  # which "../elsewhere" is not
        raise ValueError(f"data.name={name!r} is not the name of a data set, such as 'cifar10', 'cifar10:3.0.2' or 'name/config'")
    base = epath.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    root = base / name.replace(":", "/")
    try:
        below = list(root.iterdir()) if root.is_dir() else []
        found = [folder for folder in [root, *below] if (folder / "dataset_info.json").exists()]
    except ImportError as error:  # of the library that reads such paths
        raise ValueError(f"cannot read data_dir={data_dir!r}: {error}") from error
    if not found:
        raise FileNotFoundError(
            f"data set {name!r} is not prepared: no dataset_info.json in {root} or a version folder of it. "
            "Set data_dir; or prepare it once, where TensorFlow is installed, by "
            f"tfds.builder({name!r}, data_dir={str(base)!r}, file_format='array_record')"
            ".download_and_prepare(); or use 'digits' or 'image_folder'"
        )
    folder = max(found, key=_version)
    _check_features(folder)
    builder = tfds.builder_from_directory(folder)
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise ValueError(
            f"data set {name!r} in {builder.data_dir} is stored as {file_format}, which has no random access "
            "without TensorFlow: prepare it again with file_format='array_record'"
        )
    return builder


def _check_features(folder: epath.Path) -> None:
    """ValueError if a prepared data set names feature classes outside tensorflow-datasets.

    tfds would import their modules, and the data set that a config names may come from anybody.
    """
    path = folder / "features.json"
    if not path.exists():
        return  # an old data set, whose features are defined in the package

    def named(value):
        if isinstance(value, dict):
            yield from (each for key, each in value.items() if key in ("pythonClassName", "python_class_name", "type"))
            yield from (name for each in value.values() for name in named(each))
        elif isinstance(value, list):
            yield from (name for each in value for name in named(each))

    try:
        names = [name for name in named(json.loads(path.read_bytes())) if isinstance(name, str)]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid: {' '.join(str(error).split())}") from None
    for name in names:
        if "." in name and not name.startswith("tensorflow_datasets."):
            raise ValueError(f"{path} names the class {shortened(name, 100)!r}: only those of tensorflow_datasets are loaded")


def _version(folder: epath.Path) -> tuple[int, ...]:
    parts = folder.name.split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else ()
