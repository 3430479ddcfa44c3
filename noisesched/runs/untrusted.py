"""What a checkpoint on disk claims of itself, checked before it is believed: it may come from anybody.

Orbax and tensorstore read what a file's own metadata say is there: an array of 10^12 elements from a few bytes, or a pipe that
never ends. Here that is compared with what is wanted first, at the price of the metadata alone.
"""

import json
import math
import os
import stat

import numpy as np
from etils import epath

METADATA = 2**26  # bytes of a file that is read whole: far above what any network's names and shapes take
SLACK = 2**24  # bytes that a file may be larger than the arrays it holds are


def check_memory(num_bytes: int, what: str) -> None:
    """ValueError for arrays that the machine's memory cannot hold."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > memory:
        raise ValueError(f"{what}: {_gigabytes(num_bytes)}, but this machine's memory is {_gigabytes(memory)}")


def num_bytes(arrays) -> int:
    """Of arrays given as (shape, dtype): a whole number of any size."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays)


def check_files(folder: epath.Path) -> None:
    """ValueError if a checkpoint's folder holds a link, a pipe or a device, or metadata of an absurd size."""
    if "://" in str(folder):
        return  # a bucket has none of those
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(where, name)
            status = os.lstat(path)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise ValueError(f"{os.path.relpath(path, folder)} is neither a file nor a folder")
            if os.path.basename(where) != "d" and status.st_size > METADATA:  # arrays lie in folders of that name
                raise ValueError(f"{os.path.relpath(path, folder)} has {status.st_size:,} bytes")


def check_arrays(folder: epath.Path, wanted: dict[str, np.ndarray]) -> None:
    """ValueError unless the item in `folder` says of each array the shape and dtype that is wanted, in chunks no larger.

    Exceptions of tensorstore's for what it cannot read.
    """
    import tensorstore

    total = num_bytes((array.shape, array.dtype) for array in wanted.values())
    if "://" not in str(folder):
        sizes = [os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names]
        if max(sizes, default=0) > 2 * total + SLACK or total > 20 * sum(sizes) + 16 * SLACK:
            raise ValueError(f"{folder.name} is to hold {total:,} bytes of arrays; its files have {sum(sizes):,}")
    base = f"{folder}/" if "://" in str(folder) else {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    for name, read in [(name, store.read(f"{name}/.zarray" if name else ".zarray")) for name in wanted]:
        array, found = wanted[name], json.loads(read.result().value or b"null")
        if found is None:
            raise ValueError(f"{folder.name} holds no array {name}")
        shape, chunks = found["shape"], found["chunks"]
        if tuple(shape) != array.shape or len(chunks) != len(shape) or not _same(found["dtype"], array.dtype):
            raise ValueError(f"{folder.name}/{name} says that it is {str(found['dtype'])[:40]} {str(shape)[:80]}")
        if any(not 1 <= chunk <= max(length, 1) for chunk, length in zip(chunks, shape, strict=True)):
            raise ValueError(f"{folder.name}/{name} says that it lies in pieces of {str(chunks)[:80]}")


def _same(name: str, dtype: np.dtype) -> bool:
    return name in (dtype.str, dtype.name)  # "bfloat16" has no other name in the zarr format


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes < 2**60 else "over a thousand million GiB"
