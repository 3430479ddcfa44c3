"""Images in, batches out: tensorflow-datasets stores them, Grain reads ahead.

Images stay uint8 on the host and are scaled to [-1, 1] on the device (`runtime.pictures.as_x`); floats, which only arrays may
hold, are x as they are. The batch of a step is a function of (seed, step) alone, whatever the number of processes, worker
processes and restarts: resuming needs no state.
"""

import collections.abc
import contextlib
import dataclasses
import functools
import logging
import os
import sys
import typing
import zlib

import numpy as np
from etils import epath

from noisesched.data import workers
from noisesched.runtime.files import read_file, reason

_CACHE_BYTES = 512 * 2**20  # a split whose decoded images fit into so many is kept in memory once read
PATIENCE = 300  # seconds without a batch after which reading counts as stuck: it may be slow, but must not block forever


class _Images:
    """Random access to the images and labels of a tfds data source: decoded, checked, resized.

    Images read once stay in memory if the whole split fits into `_CACHE_BYTES`: decoding a record costs 30 us or more, copying
    a row of an array next to nothing. Safe to read from several threads; a copy sent to another process starts empty.
    """

    def __init__(self, records, name: str, shape: tuple[int, int, int], labelled: bool):
        self.records, self.name, self.shape, self.labelled = records, name, shape, labelled
        self._cache = None
        if len(records) * int(np.prod(shape)) <= _CACHE_BYTES:
            self._cache = self._empty(len(records))  # takes memory only as it is filled
            self._known = np.zeros(len(records), bool)
        logging.getLogger("absl").addFilter(_not_about_opencv)

    def __reduce__(self):
        return _Images, (self.records, self.name, self.shape, self.labelled)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples with these numbers, as new arrays: images uint8 [n, H, W, C] and labels int32 [n]."""
        if self._cache is None:
            return self._decode(numbers)
        images, labels = self._cache
        new = np.unique(numbers[~self._known[numbers]])
        if new.size:
            images[new], labels[new] = self._decode(new)
            self._known[new] = True  # last, since other threads rely on it
        return images[numbers], labels[numbers]

    def _empty(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        return np.empty((n, *self.shape), np.uint8), np.zeros(n, np.int32)

    def _decode(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self._empty(len(numbers))
        try:
            examples = self.records.__getitems__(numbers.tolist())  # one call for all is a third cheaper
        except Exception:  # RuntimeError from array_record, OSError from Pillow, and more: find the example at fault
            examples = [self._decode_one(number) for number in numbers.tolist()]
        for row, example in enumerate(examples):
            images[row] = self._fit(example["image"], numbers[row])
            if self.labelled:
                labels[row] = example["label"]
        return images, labels

    def _decode_one(self, number: int) -> dict:
        try:
            return self.records[number]
        except MemoryError:
            raise
        except Exception as error:
            why = "its file is cut short" if self._is_missing(number) else reason(error)
            raise ValueError(f"{self.name}: cannot read example {number}: {why}") from error

    def _is_missing(self, number: int) -> bool:
        # If a file is truncated after it was opened, array_record returns the lost records as empty ones.
        try:
            return not self.records.data_source[number]
        except Exception:
            return False

    def _fit(self, image: np.ndarray, number: int) -> np.ndarray:
        if image.shape == self.shape:
            return image
        if image.shape[-1] != self.shape[-1]:  # tfds does not enforce what a data set declares
            raise ValueError(f"{self.name}: example {number} has shape {image.shape}, expected {self.shape}")
        from PIL import Image

        from noisesched.data import datasets

        size = self.shape[0]  # channel by channel, so that any number of channels works
        planes = [datasets.square(Image.fromarray(plane), size) for plane in np.moveaxis(image, -1, 0)]
        return np.stack(planes, axis=-1)


def _not_about_opencv(record: logging.LogRecord) -> bool:
    # tfds recommends OpenCV when it decodes its first image. We chose Pillow, a tenth of the size.
    return not str(record.msg).startswith("OpenCV is not installed")


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a data set; `split[i]` is {"image": uint8 [H, W, C], "label": int32 scalar}; of floats the images are float32.

    If the data set has no class labels, `num_classes` and all labels are 0. `folder` is the folder of the prepared data set,
    `.../name/version`, local or in a bucket, or that of a file of arrays; '' if it is not on disk.
    """

    source: typing.Any  # _Images, or arrays.Arrays
    num_classes: int
    name: str
    folder: str = ""
    content: str = ""  # what identifies the data, where no data set was prepared

    def __len__(self) -> int:
        return len(self.source)

    @property
    def identity(self) -> str:
        """Identifies a prepared data set, and changes if it is prepared again: "digits/1.0.0, info crc32 0123abcd"."""
        if self.content or not self.folder:
            return self.content
        # This file lists the shards, their lengths and sizes.
        info = zlib.crc32(read_file(epath.Path(self.folder) / "dataset_info.json", 2**26))
        return f"{'/'.join(epath.Path(self.folder).parts[-2:])}, info crc32 {info:08x}"

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        images, labels = self.source.read(np.array([range(len(self))[i]]))
        return {"image": images[0], "label": labels[0]}


def open_split(
    name: str,
    *,
    split: str,
    image_size: int,
    channels: int,
    dtype: str = "uint8",
    path: str = "",
    data_dir: str = "",
    background: str = "white",
) -> Split:
    """Opens one split of a data set, which is prepared first if it is one of this package's own.

    name        'digits' or 'brightness' (built in), 'image_folder', 'cifar10_binary', 'huggingface' or 'arrays' (at `path`), or
                any TFDS image data set in `data_dir`
    split       TFDS syntax: 'train', 'test', 'train[:90%]', 'train[100:200]', 'train+test'
    image_size  images of another size are cropped to their centre square and resized, with antialiasing; not those of arrays
    channels    1 or 3: an image folder is converted, any other data set must have this number; of arrays any number
    dtype       'uint8', or 'float32' for arrays of floats, which are x as they are
    path        the image folder (see `datasets.list_folder`), in any format that Pillow decodes; CIFAR-10's archive; a folder of
                Hugging Face's (see `huggingface`); or a file of arrays (see `arrays`)
    data_dir    the folder of prepared data; '' is the user's cache for those of this package, TFDS's default for others
    background  the colour that shows where an image in a folder is transparent

    Raises ValueError or FileNotFoundError, in one line that says what to change.
    """
    from noisesched.data import datasets  # here, as it loads tensorflow-datasets

    if image_size < 1:
        raise ValueError(f"{image_size=} must be at least 1")
    if name == "arrays":
        return _open_arrays(path, split, (image_size, image_size, channels), dtype)
    title = f"data set {name!r}"
    if dtype != "uint8":
        raise ValueError(f"data.dtype={dtype!r} is for 'arrays': {title} is uint8")
    if name in ("digits", "brightness"):
        builder = getattr(datasets, name)(data_dir)
    elif name == "cifar10_binary":
        builder = datasets.cifar10_binary(path, data_dir)
    elif name == "image_folder":
        title = f"image folder {datasets.readable(path)}"
        listing = datasets.list_folder(path)
        _check_split(split, listing, title)  # before a conversion that may take long
        builder = datasets.image_folder(listing, path, image_size, channels, data_dir, background)
    elif name == "huggingface":
        from noisesched.data import huggingface

        folder = huggingface.Folder(path)
        title = folder.title
        _check_split(split, folder.splits, title)
        builder = datasets.huggingface(folder, image_size, channels, data_dir, background)
    else:
        builder = datasets.find_prepared(name, data_dir)
    _check_split(split, builder.info.splits, title)
    return _open(builder, title, split, image_size, channels)


def open_config(given, split: str = "") -> Split:
    """The split that a Config's `data` names, or another `split` of the same data set; raises as `open_split` does."""
    return open_split(
        given.name,
        split=split or given.split,
        image_size=given.image_size,
        channels=given.channels,
        dtype=given.dtype,
        path=given.path,
        data_dir=given.data_dir,
        background=given.background,
    )


def _check_split(split: str, known: collections.abc.Iterable[str], title: str) -> None:
    for part in split.split("+"):
        base = part.split("[")[0].strip()
        if base not in known and base != "all":
            raise ValueError(
                f"no split {base!r} in {title}: it has {', '.join(sorted(known))}, or a part of one, such as 'train[90%:]'"
            )


@contextlib.contextmanager
def _notation(split: str, title: str):
    """Around reading a split's notation: what tfds raises becomes a ValueError in one line."""
    try:
        yield
    except Exception as error:  # tfds raises ValueError, AssertionError and more, some over several lines
        # For a bad notation tfds only gives the address of its documentation.
        why = "no such notation" if "://" in reason(error) else reason(error).rstrip(".")
        raise ValueError(f"split {split!r} of {title}: {why}; write 'train', 'train[:90%]' or 'train[100:200]'") from error


def _open_arrays(path: str, split: str, shape: tuple[int, int, int], dtype: str) -> Split:
    from noisesched.data import arrays

    file = arrays.ArrayFile(path)
    _check_split(split, file.splits, file.title)
    file.lengths(split)  # whatever is wrong with the arrays is no fault of the notation
    with _notation(split, file.title):
        parts = file.parts(split)
    if not any(first < end for _, first, end in parts):
        raise ValueError(f"split {split!r} of {file.title} is empty")
    source = arrays.Arrays(file, split, shape, dtype)
    return Split(source, source.num_classes, source.name, os.path.dirname(os.path.abspath(file.path)), file.identity)


def _open(builder, title: str, split: str, image_size: int, channels: int) -> Split:
    import tensorflow_datasets as tfds

    with _notation(split, title):
        num_examples = builder.info.splits[split].num_examples
    if num_examples < 1:
        raise ValueError(f"split {split!r} of {title} is empty")
    features = builder.info.features
    image = features["image"] if "image" in features else None
    if image is None or image.np_dtype != np.uint8 or len(image.shape) != 3:
        raise ValueError(f"{title} has no uint8 'image' [height, width, channels]; its features are {', '.join(features)}")
    if image.shape[-1] not in (channels, None):
        raise ValueError(f"{title} has channels={image.shape[-1]}, not {channels}: set channels to match")
    labelled = "label" in features and isinstance(features["label"], tfds.features.ClassLabel)
    # Other features are not decoded: that would cost time, and video or audio would need further libraries.
    unused = {key: tfds.decode.SkipDecoding() for key in features if key not in ("image", "label")}
    records = builder.as_data_source(split, decoders=unused)
    source = _Images(records, f"{title}, {split}", (image_size, image_size, channels), labelled)
    return Split(source, features["label"].num_classes if labelled else 0, source.name, str(builder.data_dir))


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)


def _numbers(n: int, seed: int, start: int, stop: int) -> np.ndarray:
    """The example numbers at positions start..stop-1 of an endless sequence of epochs, each a permutation of n."""
    # Not Grain's shuffle: it hashes one index at a time, which takes 1 ms for a batch of 64, against 0.1 ms for everything
    # else. Without spare cores the training step would lose that time.
    epochs = range(start // n, (stop - 1) // n + 1)
    return np.concatenate([_permutation(n, seed, e)[max(start - e * n, 0) : stop - e * n] for e in epochs])


@dataclasses.dataclass(frozen=True)
class _Assemble:
    """Makes this process's rows of the global batch of a step; `rng` is Grain's, a function of (seed, step)."""

    source: _Images
    batch_size: int
    seed: int
    rows: slice
    flip: bool

    def __call__(self, step: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        first, rows = step * self.batch_size, self.rows
        numbers = _numbers(len(self.source), self.seed, first + rows.start, first + rows.stop)
        images, labels = self.source.read(numbers)
        if self.flip:
            mirrored = (rng.random(self.batch_size) < 0.5)[rows]  # every process tosses for the global batch
            images[mirrored] = images[mirrored, :, ::-1]
        return {"image": images, "label": labels, "index": np.arange(rows.start, rows.stop, dtype=np.int32)}


class InputFault(RuntimeError):
    """Reading failed; the message is one line. `stuck`: the reading thread cannot be ended except with the process."""

    stuck = False


class Batches:
    """An endless iterator of batches that are made ahead in the background. Close it, or use it in a `with`.

    Raises InputFault, at the latest after PATIENCE seconds: for an example that cannot be read, a worker process that died, a
    lack of memory, or a file system that does not answer.
    """

    def __init__(self, iterator, name: str):
        self._ahead, self._name = workers.Ahead(iterator, PATIENCE), name

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            return next(self._ahead)
        except workers.Fault as fault:
            text = str(fault) if str(fault).startswith(self._name) else f"{self._name}: {fault}"
            failed = InputFault(text)
            failed.stuck = not self._ahead.close()
            raise failed from fault

    def close(self) -> None:
        """Stops the background threads and worker processes."""
        self._ahead.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    flip: bool,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 2,
    prefetch: int = 8,
) -> Batches:
    """Endless shuffled batches of a split, from step `start_step` on (steps count from 0).

    `batch_size` is that of the global batch. With b = batch_size / process_count, process p gets rows p b to (p + 1) b - 1 of it:
    {"image": uint8 or float32 [b, H, W, C], "label": int32 [b], "index": int32 [b]}, where `index` is the position in the global
    batch. The global batch is a function of (seed, step) alone. Every epoch is a new permutation of the split; a batch may span
    epochs.
    `flip` mirrors an image left to right with probability 1/2.

    `num_threads` threads keep `prefetch` batches ready. With `num_workers` > 0 that many processes do this work, for images that
    are slow to decode: they are spawned, so the main script needs `if __name__ == "__main__":`.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ValueError(f"{batch_size=} is not a positive multiple of {process_count=}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"{process_index=} is not in 0..{process_count - 1}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"{seed=} is not in 0..2**32-1")
    if min(start_step, num_workers) < 0:
        raise ValueError(f"{start_step=}, {num_workers=} must be at least 0")
    if min(num_threads, prefetch) < 1:
        raise ValueError(f"{num_threads=}, {prefetch=} must be at least 1")
    b = batch_size // process_count
    rows = slice(process_index * b, (process_index + 1) * b)
    assemble = _Assemble(split.source, batch_size, seed, rows, flip)
    share = lambda worker, count: functools.partial(_read_ahead, assemble, start_step, worker, count, num_threads, prefetch)
    if not num_workers:
        return Batches(share(0, 1)(), split.name)
    return Batches(workers.Processes([share(worker, num_workers) for worker in range(num_workers)]), split.name)


def _read_ahead(assemble: _Assemble, start_step: int, worker: int, count: int, num_threads: int, prefetch: int):
    """An iterator over the batches of every count-th step, made ahead by threads."""
    import grain  # here, as it takes a third of a second

    steps = grain.MapDataset.range(sys.maxsize).random_map(assemble, seed=assemble.seed)[start_step:][worker::count]
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)))


def examples(split: Split, n: int | None = None) -> dict[str, np.ndarray]:
    """The first n examples (default: all), in order: {"image": uint8 or float32 [n, H, W, C], "label": int32 [n]}."""
    n = len(split) if n is None else n
    if not 0 < n <= len(split):
        raise ValueError(f"n={n}: {split.name} has {len(split)} examples")
    images, labels = split.source.read(np.arange(n))
    return {"image": images, "label": labels}
