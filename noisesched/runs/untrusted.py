"""Checks of a checkpoint's files before they are read: they may come from anybody.

Orbax and tensorstore believe a file's own metadata: an array of 10^12 elements in a few bytes, or a pipe that never ends. Here
the metadata, and nothing else, is first read and compared with the arrays that are wanted.
"""

import json
import math
import os
import re
import stat

import numpy as np
from etils import epath

from noisesched.runtime.files import is_local
from noisesched.spec import shortened

METADATA = 2**26  # bytes of the largest file read whole: far more than any network's names and shapes take
SLACK = 2**24  # bytes by which a file may be larger than its arrays


def check_memory(num_bytes: int, what: str) -> None:
    """ValueError if arrays of so many bytes do not fit into this machine's memory; `what` names them."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > memory:
        raise ValueError(f"{what}: {_gigabytes(num_bytes)}, but this machine's memory is {_gigabytes(memory)}")


def num_bytes(arrays) -> int:
    """The bytes of arrays given as (shape, dtype), in exact integers of any size."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays)


def check_files(folder: epath.Path) -> None:
    """ValueError if a checkpoint's folder holds a link, a pipe or a device, or metadata of an absurd size."""
    if not is_local(folder):
        return  # buckets have only files
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(where, name)
            status = os.lstat(path)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise ValueError(f"{os.path.relpath(path, folder)} is neither a file nor a folder")
            if os.path.basename(where) != "d" and status.st_size > METADATA:  # arrays are in folders named d
                raise ValueError(f"{os.path.relpath(path, folder)} has {status.st_size:,} bytes")


def check_arrays(folder: epath.Path, wanted: dict[str, np.ndarray]) -> None:
    """ValueError unless the metadata in `folder` give each array the wanted shape and dtype, in chunks no larger than it.

    Raises tensorstore's own exceptions for files that it cannot read.
    """
    import tensorstore

    total = num_bytes((array.shape, array.dtype) for array in wanted.values())
    if is_local(folder):
        sizes = [os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names]
        if max(sizes, default=0) > 2 * total + SLACK or total > 20 * sum(sizes) + 16 * SLACK:
            raise ValueError(f"{folder.name} should hold {total:,} bytes of arrays; its files have {sum(sizes):,}")
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": _location(folder)}).result()
    for name, read in [(name, store.read(f"{name}/.zarray" if name else ".zarray")) for name in wanted]:
        array, found = wanted[name], json.loads(read.result().value or b"null")
        if found is None:
            raise ValueError(f"{folder.name} holds no array {name}")
        shape, chunks = found["shape"], found["chunks"]
        if tuple(shape) != array.shape or len(chunks) != len(shape) or not _same(found["dtype"], array.dtype):
            claimed = f"{shortened(str(found['dtype']), 40)} {shortened(str(shape), 80)}"
            raise ValueError(f"{folder.name}/{name} claims to be {claimed}")
        if any(not 1 <= chunk <= max(length, 1) for chunk, length in zip(chunks, shape, strict=True)):
            raise ValueError(f"{folder.name}/{name} claims to have chunks of {shortened(str(chunks), 80)}")


def check_lengths(folder: epath.Path) -> None:
    """ValueError if a file of the arrays in `folder` is absent, or ends before what tensorstore's index says it holds.

    The index is a tree of nodes in files, which refer to others, and to arrays' values, as "kind:file:offset:length".
    """
    import tensorstore

    base = tensorstore.KvStore.open(_location(folder)).result()
    nodes, ends = [None], {}  # None: the root
    while nodes:
        for entry in _entries(tensorstore.ocdbt.dump(base, nodes.pop()).result()):
            kind, name, offset, length = re.fullmatch(r"(\w+):(.*):(\d+):(\d+)", entry).groups()
            name = name.replace(":", "")  # between the folder of a process and its file
            ends[name] = max(ends.get(name, 0), int(offset) + int(length))
            nodes += [entry] if kind != "value" else []
    for name, end in ends.items():
        path = folder / name
        length = path.stat().length if path.exists() else 0
        if length < end:
            raise ValueError(f"{folder.name}/{name} should have {end:,} bytes, and has {length:,}")


def _entries(node) -> list[str]:
    """The references in a node of tensorstore's index."""
    if isinstance(node, dict):
        own = [node[key] for key in ("location", "indirect_value") if key in node]
        return own + [entry for value in node.values() for entry in _entries(value)]
    return [entry for value in node for entry in _entries(value)] if isinstance(node, list) else []


def _location(folder: epath.Path) -> str | dict[str, str]:
    """A folder as tensorstore takes it."""
    return {"driver": "file", "path": f"{folder}/"} if is_local(folder) else f"{folder}/"


def _same(name: str, dtype: np.dtype) -> bool:
    return name in (dtype.str, dtype.name)  # the zarr format knows "bfloat16" only by its name


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes < 2**60 else "over a thousand million GiB"
