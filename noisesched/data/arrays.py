"""Images, or latents, in a file of NumPy's: a .npy of one array, or a .npz with an array for each split.

Values are uint8, which are scaled as everywhere, or floats, which are x itself, on whatever scale. A .npy is memory-mapped, so it
may be larger than memory; the arrays of a .npz are read whole. Nothing is unpickled. A file that is opened is read through once,
for its checksum and to find floats that are not finite.
"""

import contextlib
import functools
import os
import stat
import zipfile
import zlib

import numpy as np
import tensorflow_datasets as tfds

from noisesched.data.datasets import readable
from noisesched.runtime.files import is_local, reason

_CHUNK = 2**24  # values that are checked at once
_CLASSES = 2**24  # as model.num_classes


class ArrayFile:
    """An opened file of arrays. Raises ValueError or FileNotFoundError, in one line that names the file, the array and the fault.

    splits  {name of the split: (its array of images, its array of labels or None)}
    """

    def __init__(self, path: str):
        if not path:
            raise ValueError(
                "'arrays' needs a path: a .npy file of images [N, H, W, C], or a .npz file with an array for each split"
            )
        if not is_local(path):
            raise ValueError(f"{readable(path)}: arrays are read from local files only")
        self.path, self.title = os.path.expanduser(path), f"array file {readable(path)}"
        if not os.path.exists(self.path):
            raise FileNotFoundError(f"no such array file: {readable(path)}")
        self.stamp = _stamp(self.path)
        self.splits = {"train": (None, None)} if self.path.endswith(".npy") else self._named()

    def _named(self):
        names = _names(self.path, self.stamp)
        if "images" in names and {"images", "labels"}.issuperset(names):
            return {"train": ("images", "labels" if "labels" in names else None)}
        splits = [name for name in names if not name.endswith("_labels")]
        for name in names:
            if name.endswith("_labels") and name.removesuffix("_labels") not in splits:
                raise ValueError(f"{self.title}: {name!r} are labels of {name.removesuffix('_labels')!r}, which is not there")
        return {name: (name, f"{name}_labels" if f"{name}_labels" in names else None) for name in splits}

    def lengths(self, split: str) -> dict[str, int]:
        """{name: how many images it has} of the splits that are named in `split`."""
        bases = {part.split("[")[0].strip() for part in split.split("+")}
        return {name: len(self._images(array)) for name, (array, _) in self.splits.items() if bases & {name, "all"}}

    def parts(self, split: str) -> list[tuple[str, int, int]]:
        """[(name of a split, first, last + 1)] of the images that `split` names, in tensorflow-datasets' notation."""
        lengths = self.lengths(split)
        known = {name: tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0) for name, n in lengths.items()}
        found = tfds.core.ReadInstruction.from_spec(split).to_absolute(known)
        return [(each.splitname, each.from_ or 0, lengths[each.splitname] if each.to is None else each.to) for each in found]

    def _images(self, name):
        """An array [N, H, W, C]."""
        array = _loaded(self.path, self.stamp, name)
        where = f"{self.title}{f': {name!r}' if name else ''}"
        if array.dtype != np.uint8 and array.dtype.kind != "f":
            raise ValueError(f"{where} holds {array.dtype}: images are uint8, from 0 to 255, or floats")
        if array.ndim not in (3, 4) or 0 in array.shape[1:]:
            raise ValueError(f"{where} has the shape {list(array.shape)}: images are [N, H, W, C] or [N, H, W]")
        return array.reshape(*array.shape, 1) if array.ndim == 3 else array

    def images(self, split: str, shape: tuple[int, int, int], dtype: str) -> np.ndarray:
        """The array [N, H, W, C] of a split; ValueError unless its images have that shape and type, and are finite."""
        name = self.splits[split][0]
        array, where = self._images(name), f"{self.title}{f': {name!r}' if name else ''}"
        if array.shape[1] != array.shape[2]:
            raise ValueError(f"{where} has images {list(array.shape[1:])}, which are not square")
        if array.shape[1:] != shape:
            size, _, channels = array.shape[1:]
            raise ValueError(
                f"{where} has images {list(array.shape[1:])}, not {list(shape)}: set image_size={size} and channels={channels}"
            )
        stored = "uint8" if array.dtype == np.uint8 else "float32"
        if stored != dtype:
            raise ValueError(f"{where} holds {array.dtype}, not {dtype}: set data.dtype={stored}")
        if stored == "float32" and (bad := _not_finite(self.path, self.stamp, name)) is not None:
            raise ValueError(f"{where} has values that are not finite as float32, the first in image {bad}")
        return array

    def labels(self, split: str) -> np.ndarray | None:
        """The labels [N] of a split, or None."""
        images, name = self.splits[split]
        if name is None:
            return None
        labels, n = self._classes(name), len(self._images(images))
        if len(labels) != n:
            raise ValueError(f"{self.title}: {name!r} has {len(labels)} labels, and {images!r} has {n} images")
        return labels

    def _classes(self, name):
        labels, where = _loaded(self.path, self.stamp, name), f"{self.title}: {name!r}"
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise ValueError(f"{where} is {labels.dtype} {list(labels.shape)}: labels are whole numbers [N]")
        if len(labels) and not 0 <= labels.min() <= labels.max() < _CLASSES:
            raise ValueError(f"{where} goes from {labels.min()} to {labels.max()}: classes are counted from 0")
        return labels

    def num_classes(self, split: str) -> int:
        """One more than the highest label of all splits; 0 if the images of `split` have no labels."""
        if any(self.splits[name][1] is None for name, *_ in self.parts(split)):
            return 0
        return 1 + max(int(self._classes(name).max(initial=0)) for _, name in self.splits.values() if name)

    @property
    def identity(self) -> str:
        """Changes with the content of the file: "latents.npy, crc32 0123abcd"."""
        return f"{readable(os.path.basename(self.path))}, crc32 {_crc32(self.path, self.stamp):08x}"


class Arrays:
    """Random access to the images and labels of a split, as `pipeline._Images` gives it. A copy sent to another process opens the
    file again, and refuses one that has changed."""

    def __init__(self, file: ArrayFile, split: str, shape: tuple[int, int, int], dtype: str):
        self.file, self.split, self.shape, self.dtype = file, split, shape, dtype
        self.name, self.num_classes = f"{file.title}, {split}", file.num_classes(split)
        self._parts = [
            (file.images(name, shape, dtype)[first:end], file.labels(name)[first:end] if self.num_classes else None)
            for name, first, end in file.parts(split)
        ]
        self._ends = np.cumsum([len(images) for images, _ in self._parts])

    def __reduce__(self):
        return _reopened, (self.file.path, self.file.stamp, self.split, self.shape, self.dtype)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples with these numbers, as new arrays: images uint8 or float32 [n, H, W, C] and labels int32 [n]."""
        images, labels = np.empty((len(numbers), *self.shape), self.dtype), np.zeros(len(numbers), np.int32)
        which = np.searchsorted(self._ends, numbers, side="right")
        for part in np.unique(which):
            rows, (stored, known) = which == part, self._parts[part]
            places = numbers[rows] - (self._ends[part] - len(stored))
            images[rows] = stored[places]
            if known is not None:
                labels[rows] = known[places]
        return images, labels


def _reopened(path, stamp, split, shape, dtype):
    file = ArrayFile(path)
    if file.stamp != stamp:
        raise ValueError(f"{file.title} has changed since it was opened")
    return Arrays(file, split, shape, dtype)


# -- the file, of which everything is read once: `stamp` tells its versions apart


def _stamp(path):
    """(bytes, time of the last change in ns) of a regular file; ValueError for a folder, a pipe or a device."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{readable(path)} is not a regular file")
    if not path.endswith((".npy", ".npz")):
        raise ValueError(f"{readable(path)}: arrays are read from a .npy or a .npz file")
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _npz(path, name=None):
    """An open .npz file; whatever is raised while its array `name` is read becomes a ValueError in one line."""
    where = f"array file {readable(path)}{f': {name!r}' if name else ''}"
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is damaged, or no .npz file")
        with np.load(path, allow_pickle=False) as file:
            yield file
    except MemoryError as error:
        raise ValueError(f"{where} does not fit into memory; a .npy file need not") from error
    except Exception as error:  # of NumPy, zipfile and zlib
        raise ValueError(f"{where} cannot be read: {reason(error)}") from error


@functools.lru_cache(maxsize=64)
def _names(path, stamp):
    """The names of the arrays in a .npz file."""
    with _npz(path) as file:
        return tuple(file.files)


@functools.lru_cache(maxsize=8)
def _loaded(path, stamp, name):
    """An array of a .npz file, or, memory-mapped, that of a .npy file (name None)."""
    if name is None:
        try:
            return np.lib.format.open_memmap(path, mode="r")
        except Exception as error:
            raise ValueError(f"array file {readable(path)} cannot be read: {reason(error)}") from error
    with _npz(path, name) as file:
        array = file[name]
        if not isinstance(array, np.ndarray):
            raise ValueError("it is no array")
        return array


@functools.lru_cache(maxsize=64)
def _not_finite(path, stamp, name):
    """The number of the first image with a value that is not finite as float32, or None."""
    array = _loaded(path, stamp, name)
    size = max(_CHUNK // max(array[:1].size, 1), 1)
    for first in range(0, len(array), size):
        with np.errstate(over="ignore"):
            finite = np.isfinite(array[first : first + size].astype(np.float32)).all(axis=tuple(range(1, array.ndim)))
        if not finite.all():
            return first + int(np.argmin(finite))
    return None


@functools.lru_cache(maxsize=64)
def _crc32(path, stamp):
    crc32 = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            crc32 = zlib.crc32(chunk, crc32)
    return crc32
