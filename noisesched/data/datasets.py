"""The data sets: prepared and read by tensorflow-datasets, without TensorFlow.

`digits` is scikit-learn's handwritten digits, `brightness` the same digits at brightnesses from black to white, `image_folder`
and `huggingface` convert folders of images: each is written once, to a cache folder, as array_record files of uint8 images.
`find_prepared` opens a data set that was prepared elsewhere. All return the tfds builder that reads the data.
"""

import collections
import concurrent.futures
import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
import platform
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import time
import warnings
import zlib

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging
from etils import epath
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from noisesched.runtime.files import WriteError, is_local, read_file, reason
from noisesched.spec import as_utf8, shortened

_VERSION = "1.0.0"  # part of every prepared path: raise it when the output of a builder changes
# Part of the name of a converted folder: raise it when `read_image`, the choice of files or what is noted of them changes.
_CONVERSION = 3
# Pillow only recognises or writes these, or (EPS) has another program run them.
_NOT_DECODED = {"BUFR", "EMF", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}
# What `_prepare` works in, below the folder of prepared data, and the machine's name in it, which older ones lack.
_OURS = r"digits|brightness|cifar10_binary|(?:image_folder|huggingface)_\d+x[13]_[0-9a-f]{16}"
_UNFINISHED = re.compile(rf"(?:{_OURS})/incomplete-(?:(.*)@)?[a-z0-9_]{{8}}")
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}  # folders of images that are no classes
CIFAR10 = (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin")  # the files of its binary version
CIFAR10_IMAGES, CIFAR10_RECORD = 10_000, 3073  # images of each file, bytes of each
_KINDS = 20  # of files passed over, which are told one by one
_COUNTED = 100_000  # files passed over that are counted, where a folder holds far more than images
_TOLD = 0.01  # the fraction of repeated or enlarged images from which a folder is said to have them


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


class _Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """CIFAR-10 from its binary archive (Krizhevsky 2009): records of a label and 32x32 pixels, red first."""

    VERSION = tfds.core.Version(_VERSION)
    name = "cifar10_binary"

    def __init__(self, files, **kwargs):
        self.files = files  # {name: bytes}
        super().__init__(**kwargs)

    def _info(self):
        classes = "airplane automobile bird cat deer dog frog horse ship truck".split()
        features = _features(32, 3, tfds.features.ClassLabel(names=classes))
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        train, test = list(CIFAR10[:-1]), list(CIFAR10[-1:])
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, names):
        content = np.frombuffer(b"".join(self.files[name] for name in names), np.uint8).reshape(-1, CIFAR10_RECORD)
        for i, record in enumerate(content):
            yield i, {"image": record[1:].reshape(3, 32, 32).transpose(1, 2, 0), "label": int(record[0])}


class _Converted(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Converts images to square uint8 images of one size.

    `images`: {split: the (name, path or content of a file, label) of each image, of known length}; `convert`: `read_image` with
    its settings. Notes in the data set's metadata how many of them repeat another or are enlarged.
    """

    VERSION = tfds.core.Version(_VERSION)

    def __init__(self, images, features, convert, name, **kwargs):
        self.images, self.features, self.convert, self.name = images, features, convert, name
        super().__init__(**kwargs)

    def _info(self):
        # tfds orders examples by a hash of their name: in a folder's own order, sorted by class, 'train[:90%]' would lack the
        # last classes.
        return tfds.core.DatasetInfo(builder=self, features=self.features, metadata=tfds.core.MetadataDict())

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.images}

    def _generate_examples(self, split):
        total, images = len(self.images[split]), iter(self.images[split])
        counts, firsts, enlarged = collections.Counter(), {}, []
        bar = tqdm.tqdm(total=total, desc=f"preparing {split}", unit=" images", disable=None)
        # Pillow releases the GIL while it decodes and resizes. Chunks bound the memory.
        with bar, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            while chunk := list(itertools.islice(images, 256)):
                converted = pool.map(lambda each: self.convert(each[1], name=each[0]), chunk)
                for (name, _, label), (image, smaller) in zip(chunk, converted, strict=True):
                    digest = hashlib.blake2b(image.tobytes(), digest_size=8).digest()
                    counts[digest] += 1
                    firsts.setdefault(digest, name)
                    enlarged += [name] * smaller
                    yield os.fsencode(name), {"image": image, "label": label}
                    bar.update()
        digest, most = counts.most_common(1)[0]
        self.info.metadata[split] = {
            "images": total,
            "repeats": total - len(counts),
            "most": [most, readable(firsts[digest])],
            "enlarged": [len(enlarged), readable(min(enlarged, default=""))],
        }


def _class_name(folder: str) -> str:
    """A folder's name as tfds can keep it: a line of text without blanks at its ends."""
    return folder if folder.isprintable() and folder == folder.strip() else repr(os.fsencode(folder))[1:]


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


def read_image(
    file: pathlib.Path | bytes, size: int, channels: int, background: tuple = (255, 255, 255), name: str = ""
) -> tuple[np.ndarray, bool]:
    """Decodes an image file, or the content of one called `name`, to uint8 [size, size, channels].

    It is the first picture in it, upright, grey or RGB, the centre square. What is transparent shows `background`, an RGB colour.
    Returns also whether the square was smaller, and is enlarged. Raises ValueError, naming the file, if it cannot be decoded, or
    what is white in it is not known.
    """
    try:
        held = isinstance(file, bytes)
        opened = io.BytesIO(file) if held else open(file, "rb", opener=_open_regular)
        with opened as content, Image.open(content, formats=_formats()[0]) as image:
            # A JPEG far larger than needed is decoded at 1/2, 1/4 or 1/8 of its size, still at least twice the final one.
            image.draft(None, (2 * size, 2 * size))
            kind, raw = image.format, _stored_as(image)  # which Pillow forgets once the pixels are read
            image = _eight_bits(ImageOps.exif_transpose(image), kind, raw)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image.convert("RGBA"))
            pixels = np.asarray(square(image.convert("L" if channels == 1 else "RGB"), size))
            return pixels.reshape(size, size, channels), min(image.size) < size
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and more
        raise ValueError(f"cannot read the image {readable(name if held else file)}: {_why(file, error)}") from error


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)  # without waiting for the other end of a pipe
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def _why(file: pathlib.Path | bytes, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        pixels = int(re.search(r"\d+", str(error)).group())
        most = 2 * Image.MAX_IMAGE_PIXELS
        return f"it has {pixels:,} pixels, and no more than {most:,} are decoded; save it smaller, or take it out of the folder"
    if isinstance(error, UnidentifiedImageError):
        size = len(file) if isinstance(file, bytes) else os.path.getsize(file)
        return "it is damaged, or no image in a format that is known" if size else "it is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return reason(error)


def _stored_as(image: Image.Image) -> str:
    """How Pillow calls the pixels of an image in its file: "L;2", "RGB;16B", ..; for TIFF with "white is 0" if it is."""
    raw = str(image.tile[0].args) if getattr(image, "tile", None) else ""
    return raw + " white is 0" * (image.format == "TIFF" and image.tag_v2.get(262) == 0)


def _eight_bits(image: Image.Image, kind: str, raw: str) -> Image.Image:
    """An image with its grey values and its transparent colour in 8 bits, which `convert` would clip, or not scale."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16") or image.mode == "I" and kind in ("PNG", "PPM"):
        values = np.asarray(image)
        grey = (values >> (4 if "I;12" in raw else 8)).astype(np.uint8)
        image = Image.fromarray(255 - grey if "white is 0" in raw else grey)
        if key is not None:
            image.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    elif image.mode in ("I", "F"):
        values = np.asarray(image)
        low, high = values.min(), values.max()
        if image.mode == "I" or not 0 <= low <= high <= 1:
            raise ValueError(
                f"its pixels are {values.dtype} from {low:g} to {high:g}, of which white is not known; save it with 8 or 16 bits"
                " (floats: from 0 to 1)"
            )
        image = Image.fromarray(np.round(values * 255).astype(np.uint8))
    elif kind == "PNG" and isinstance(key, int) and image.mode == "L":
        image.info["transparency"] = key * {"L;2": 85, "L;4": 17}.get(raw, 1)
    elif raw == "RGB;16B" and key is not None:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


@functools.cache
def _formats() -> tuple[tuple[str, ...], frozenset[str]]:
    """The formats that are decoded, and their suffixes."""
    Image.init()
    known = Image.registered_extensions()
    formats = tuple(name for name in Image.ID if name not in _NOT_DECODED)
    return formats, frozenset(suffix for suffix, name in known.items() if name not in _NOT_DECODED)


def list_folder(path: str) -> dict[str, list[tuple[str, int, int]]]:
    """`{split: [(file, bytes, mtime in ns), ..]}` of a folder of images, sorted by name; `file` is its path in the folder.

    The images are those in <split>/<class>/. Where there are none, those in <class>/, as one split "train"; if all these folders
    have names of splits, they are splits, of one class. Where there are none either, those in the folder itself. Says, once,
    which files are passed over. Raises FileNotFoundError if the folder does not exist, ValueError if it holds no image.
    """
    if not path:
        raise ValueError(
            "'image_folder' needs a path: a folder of images, as image.jpg, class/image.jpg or split/class/image.jpg"
        )
    if not os.path.isdir(path):
        raise FileNotFoundError(f"no such image folder: {readable(path)}")
    images, passed = collections.defaultdict(list), collections.defaultdict(collections.Counter)
    count = 0
    for folders, entry in _files(path):
        if why := _passed_over(folders, entry) if entry else "folder(s) that cannot be read":
            passed[why]["/".join(folders) or "the folder itself"] += 1
            count += 1
            if count >= _COUNTED and len(folders) > 2:
                break
        else:
            status = entry.stat()
            images[len(folders)].append(((*folders, entry.name), status.st_size, status.st_mtime_ns))
    depth = max(images, default=2)
    where = ("the folder itself", "<class>/", "<split>/<class>/")[depth]
    for names, *_ in (image for other, found in images.items() if other != depth for image in found):
        passed[f"{_suffix(names[-1])} (not in {where})"]["/".join(names[:-1]) or "the folder itself"] += 1
        count += 1
    of_splits = depth == 1 and {names[0] for names, *_ in images[1]} <= SPLITS
    listing = {}
    for names, *known in images[depth]:
        listing.setdefault(names[0] if depth == 2 or of_splits else "train", []).append(("/".join(names), *known))
    kinds = sorted(passed.items(), key=lambda each: (-each[1].total(), each[0]))
    told = [
        f"{places.total():,} {why} in {readable(max(places, key=places.get))}"
        + f" and {len(places) - 1:,} more" * (len(places) > 1)
        for why, places in kinds[:_KINDS]
    ]
    rest = sum(places.total() for _, places in kinds[_KINDS:])
    passed = "; ".join(told + [f"{rest:,} of other kinds"] * (rest > 0))
    if not listing:
        raise ValueError(
            f"no images in {readable(path)}: expected some in it, in <class>/ or in <split>/<class>/, such as train/cat/001.jpg"
            f"{passed and f'; passed over: {passed}'}"
        )
    if passed:
        number = f"{'at least ' * (count >= _COUNTED)}{count:,} file{'s' * (count > 1)}"
        _say(f"image folder {readable(path)}: passed over {number}: {passed}")
    return {split: sorted(listing[split]) for split in sorted(listing)}


def _files(path: str):
    """(the names of the folders, the entry) of all files below a folder, those of its classes first, and all else behind them.

    A folder that cannot be read has the entry None where it can hold no image of a class; OSError elsewhere.
    """
    waiting = collections.deque([()])
    while waiting:
        folders = waiting.popleft()
        try:
            entries = sorted(os.scandir(os.path.join(path, *folders)), key=lambda entry: entry.name)
        except OSError:
            if len(folders) <= 2 and not _hidden(folders):
                raise
            yield folders[:-1], None
            continue
        for entry in entries:
            # Links lead to splits and classes, but no deeper, where they may go in circles.
            if entry.is_dir(follow_symlinks=False) or len(folders) < 2 and os.path.isdir(entry.path):
                waiting.append((*folders, entry.name))
            else:
                yield folders, entry


def _hidden(names: tuple[str, ...]) -> bool:
    return any(name.startswith(".") for name in names)


def _passed_over(folders: tuple[str, ...], entry: os.DirEntry) -> str:
    """Why a file is not read as an image, with its suffix, such as "hidden .jpg"; "" if it is read."""
    named = _suffix(entry.name)
    try:
        mode = entry.stat().st_mode
    except OSError:
        return f"{named} (a broken link)"
    for kind, check in {"pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK, "linked folder": stat.S_ISDIR}.items():
        if check(mode):
            return f"{named} (a {kind})"
    if not stat.S_ISREG(mode):
        return f"{named} (a device)"
    if _hidden((*folders, entry.name)):
        return f"hidden {named}"
    if os.path.splitext(entry.name)[1].lower() not in _formats()[1]:
        return named
    if len(folders) > 2:
        return f"{named} (not in <split>/<class>/)"
    usable = len(folders) < 2 or re.fullmatch(r"\w[\w-]*", folders[0]) and folders[0] != "all"
    return "" if usable else f"{named} (the folder's name cannot be that of a split)"


def _suffix(name: str) -> str:
    return readable(shortened(os.path.splitext(name)[1].lower(), 20)) or "without suffix"


def _classes(listing: dict) -> dict[str, str]:
    """{file: its class} of a `list_folder`: the folder it is in, or "images" where that is a split, or there is none."""
    placed = [(split, file.split("/")) for split, files in listing.items() for file, *_ in files]
    unsorted = all(names[:-1] in ([], [split]) for split, names in placed)
    return {"/".join(names): "images" if unsorted else names[-2] for _, names in placed}


def readable(path: str | os.PathLike) -> str:
    """A path as one line of text: bytes that are not UTF-8, and characters that do not print, as in `caf\\xe9.png`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in as_utf8(os.fspath(path)))


@functools.cache
def _say(line: str) -> None:
    """Prints a line to stderr, once in the life of a process."""
    tqdm.tqdm.write(f"warning: {line}", file=sys.stderr)


def digits(data_dir: str = ""):
    """The builder of the digits, prepared under `data_dir` (default: the user's cache) on first use."""
    return _prepared_once(_local(data_dir), "digits", _Digits)


def brightness(data_dir: str = ""):
    """The builder of the digits from black to white, prepared under `data_dir` (default: the user's cache) on first use."""
    return _prepared_once(_local(data_dir), "brightness", _Brightness)


def cifar10_binary(path: str, data_dir: str = ""):
    """The builder of CIFAR-10, prepared under `data_dir` (default: the user's cache) from its binary version at `path`:
    cifar-10-binary.tar.gz, or the folder that it unpacks to. No TensorFlow is needed. ValueError if that is not what it holds.
    """
    return _prepared_once(_local(data_dir), _Cifar10.name, lambda data_dir: _Cifar10(_cifar10_files(path), data_dir=data_dir))


def _cifar10_files(path: str) -> dict[str, bytes]:
    """{name: content} of the files of CIFAR-10's binary version; ValueError that names the fault."""
    get = "get cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
    if not path:
        raise ValueError(f"'cifar10_binary' needs a path: {get}, and give its path, or that of the folder that it unpacks to")
    size = CIFAR10_RECORD * CIFAR10_IMAGES
    try:
        if os.path.isdir(path):
            found = {name: read_file(os.path.join(path, name), size) for name in CIFAR10}
        else:
            with tarfile.open(fileobj=io.BytesIO(read_file(path, 2**28))) as archive:
                members = {os.path.basename(member.name): member for member in archive if member.isfile()}
                found = {name: archive.extractfile(members[name]).read(size + 1) for name in CIFAR10}
    except (OSError, KeyError, ValueError, tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{readable(path)} is not the binary version of CIFAR-10 ({reason(error)}): {get}") from error
    for name, content in found.items():
        if len(content) != size or np.frombuffer(content, np.uint8)[::CIFAR10_RECORD].max() > 9:
            raise ValueError(f"{readable(path)}: {name} is not {CIFAR10_IMAGES:,} images of CIFAR-10 with their labels: {get}")
    return found


def image_folder(listing: dict, path: str, image_size: int, channels: int, data_dir: str = "", background: str = "white"):
    """The builder of a folder of images, `converted`. The copy is keyed by the names, sizes and modification times in `listing`:
    a folder that has changed is converted again.
    """
    class_of = _classes(listing)
    classes = sorted(set(class_of.values()))
    labels, root = {name: label for label, name in enumerate(classes)}, pathlib.Path(path)
    images = lambda: {
        split: [(file, root / file, labels[class_of[file]]) for file, *_ in files] for split, files in listing.items()
    }
    known = ("image_folder", f"image folder {readable(path)}", sorted(listing.items()))
    return converted(*known, images, classes, image_size, channels, data_dir, background)


def huggingface(folder, image_size: int, channels: int, data_dir: str = "", background: str = "white"):
    """The builder of a `huggingface.Folder`, `converted`. It is converted again if it has changed."""
    known = ("huggingface", folder.title, folder.listing)
    return converted(*known, folder.images, folder.classes, image_size, channels, data_dir, background)


def converted(kind, title, key, images, classes, image_size, channels, data_dir="", background="white"):
    """The builder of images converted under `data_dir` (default: the user's cache) on first use.

    `images()` are those of `_Converted`; `classes` the names of their labels. The copy is keyed by `key`, by `image_size`,
    `channels` and `background`, a colour such as "white" or "#ff8000". If more than one image in a hundred repeats another, or is
    smaller than `image_size`, that is said.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} for {title}: choose 1 (gray) or 3 (RGB)")
    colour = ImageColor.getrgb(background)[:3]
    fingerprint = hashlib.sha256(repr((_CONVERSION, colour, key)).encode()).hexdigest()[:16]
    name = f"{kind}_{image_size}x{channels}_{fingerprint}"
    convert = functools.partial(read_image, size=image_size, channels=channels, background=colour)

    def make_builder(data_dir):
        features = _features(image_size, channels, tfds.features.ClassLabel(names=list(map(_class_name, classes))))
        found = images()
        logging.info("converting the images of %s, once, to %s", title, data_dir)
        return _Converted(found, features, convert, name, data_dir=data_dir)

    builder = _prepared_once(_local(data_dir), name, make_builder)
    for split, noted in (builder.info.metadata or {}).items():
        of_all = f"of the {noted['images']:,} images of {split}"
        repeats, (most, file) = noted["repeats"], noted["most"]
        if repeats >= max(_TOLD * noted["images"], 2):
            _say(
                f"{title}: {repeats:,} {of_all} repeat another one, pixel for pixel, at "
                f"{image_size}x{image_size}x{channels} on {background}; {most:,} are {file}"
            )
        enlarged, file = noted["enlarged"]
        if enlarged > _TOLD * noted["images"]:
            _say(f"{title}: {enlarged:,} {of_all} are smaller than {image_size}x{image_size} and are enlarged, such as {file}")
    return builder


def _local(data_dir: str) -> pathlib.Path:
    if not is_local(data_dir):
        raise ValueError(f"data_dir={data_dir!r}: this data set can only be prepared in a local folder")
    if data_dir:
        try:
            return pathlib.Path(_encodable(data_dir)).expanduser()
        except RuntimeError as error:  # "~nobody"
            raise ValueError(f"data_dir={data_dir!r}: {reason(error)}") from None
    cache = _encodable(os.environ.get("XDG_CACHE_HOME") or "")
    return pathlib.Path(cache or pathlib.Path.home() / ".cache") / "noisesched"


def _encodable(data_dir: str) -> str:
    """A path as it is; ValueError if array_record, which takes UTF-8 only, cannot open files there."""
    try:
        data_dir.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"no data can be prepared in {readable(data_dir)}, which is not UTF-8: choose another data_dir"
        ) from None
    return data_dir


def _prepared_once(root: pathlib.Path, name: str, make_builder):
    """The builder of `root/name/version`, which is prepared first if it does not exist.

    Processes that start together wait on a lock while the first one works. The lock is advisory, and has no effect on some
    network disks: only the rename guarantees that nobody ever sees a half-written data set, even after kill -9.
    """
    final = root / name / _VERSION
    _remove_dead(root)
    if not final.exists():
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            lock = open(final.parent / ".lock", "w", opener=_open_regular)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise ValueError(
                f"cannot prepare {name!r} under {root} ({error.strerror}): set data_dir to a writable folder"
            ) from error
        with lock:
            if not final.exists():
                _prepare(final, make_builder)
    return _open(final)


def _remove_dead(root: pathlib.Path) -> None:
    """Removes what killed processes left of this package's data sets under `root`, and nothing else that is there.

    Such a folder is dead if nobody holds the lock beside it, and, since locks may not reach other machines, it was begun on this
    one, or nothing was written for a day.
    """
    with contextlib.suppress(OSError):  # another process removes it, or may write here
        for work in root.glob("*/incomplete-*"):
            # `root` may be anybody's folder: only names that `_prepare` gives, beside a lock that exists.
            if not (ours := _UNFINISHED.fullmatch("/".join(work.parts[-2:]))):
                continue
            with contextlib.suppress(OSError), open(work.parent / ".lock", "r+", opener=_open_regular) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if ours[1] in (None, platform.node()) or time.time() - _last_written(work) > 86400:
                    shutil.rmtree(work, ignore_errors=True)


def _last_written(folder: pathlib.Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


def _prepare(final: pathlib.Path, make_builder) -> None:
    """Prepares a data set beside `final` and renames it. ValueError for faulty data; WriteError for a full disk and the like."""
    work = None
    try:
        work = tempfile.mkdtemp(prefix=f"incomplete-{platform.node()}@", dir=final.parent)
        builder = make_builder(data_dir=work)
        tfds.disable_progress_bar()  # several nested bars, none of which counts images
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # tfds always prints "Downloading .. 0 bytes"
            warnings.filterwarnings("ignore", module=r"PIL\.")  # what Pillow cannot decode, it raises
            # The default format, tfrecord, needs TensorFlow.
            builder.download_and_prepare(file_format="array_record")
        try:
            os.rename(builder.data_dir, final)
        except OSError:
            if not final.exists():  # otherwise another process has written the same content first
                raise
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # array_record raises RuntimeError for a full disk, tfds an OSError that has lost its number
        said = str(error)
        why = next((text for text in map(os.strerror, errno.errorcode) if text in said), reason(error))
        raise WriteError(f"cannot prepare data in {final.parent}: {why}; make room, or set data_dir to another folder") from error
    finally:
        if work:
            shutil.rmtree(work, ignore_errors=True)


def find_prepared(name: str, data_dir: str):
    """The builder of a data set that was prepared elsewhere as array_record, in `data_dir/name[/config][/version]`.

    `data_dir` is local or a bucket; '' is TFDS's own default. The newest version is taken unless `name` gives one, as in
    'cifar10:3.0.2'. Raises FileNotFoundError that says where it looked and how to prepare the data.
    """
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*(:\w[\w.]*)?", name):  # which "../elsewhere" is not
        raise ValueError(f"data.name={name!r} is not the name of a data set, such as 'cifar10', 'cifar10:3.0.2' or 'name/config'")
    base = epath.Path(_encodable(data_dir) or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
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
            ".download_and_prepare(); or use 'digits', 'image_folder', 'cifar10_binary', 'arrays' or 'huggingface'"
        )
    folder = max(found, key=_version)
    builder = _open(folder)
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise ValueError(
            f"data set {name!r} in {builder.data_dir} is stored as {file_format}, which has no random access "
            "without TensorFlow: prepare it again with file_format='array_record'"
        )
    return builder


def _open(folder: pathlib.Path | epath.Path):
    """The builder that reads a prepared data set; ValueError if it is damaged, or holds a pipe, a socket or a device."""
    if is_local(folder):
        for entry in os.scandir(folder):
            if not (entry.is_file() or entry.is_dir()):
                raise ValueError(f"{readable(entry.path)} is neither a file nor a folder")
    _check_features(epath.Path(folder))
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # of json, protobuf, and tfds itself
        raise ValueError(
            f"{readable(folder)} holds no data set that can be read: {reason(error).rstrip('.')}; prepare it again"
        ) from error


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
        names = [name for name in named(json.loads(read_file(path, 2**24))) if isinstance(name, str)]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid: {' '.join(str(error).split())}") from None
    for name in names:
        if "." in name and not name.startswith("tensorflow_datasets."):
            raise ValueError(f"{path} names the class {shortened(name, 100)!r}: only those of tensorflow_datasets are loaded")


def _version(folder: epath.Path) -> tuple[int, ...]:
    parts = folder.name.split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else ()
