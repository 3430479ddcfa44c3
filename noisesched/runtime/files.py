"""Files of a run: written whole or not at all, read only if they are what they should be.

JSON is strict here. Floats that JSON has no word for are written as the strings "inf", "-inf" and "nan" and read back as floats,
so these three are refused as string values.
"""

import contextlib
import io
import json
import math
import numbers
import os
import pathlib
import re
from typing import Any

import numpy as np
from etils import epath

from noisesched import spec

_MOST = {".json": 2**24, ".jsonl": 2**30}  # bytes of a file that is read whole
_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class WriteError(RuntimeError):
    """A file of a run could not be written: a full disk, a bucket that refuses. The message is one line."""


def reason(error: Exception) -> str:
    """What an exception says, as one line."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if "callback" in str(error) and (raised := re.findall(r"\w+(?:Error|Exception): .*", str(error))):
        return raised[-1]  # what a function that JAX called back has raised: JAX tells it with a traceback
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_local(path: str | os.PathLike) -> bool:
    """Whether a path is on this machine's file system, and not in a bucket."""
    return not re.match(r"[A-Za-z][\w+.-]*://", str(path))


# -- whole files


@contextlib.contextmanager
def writing(path: os.PathLike):
    """Turns an OSError into a WriteError that names the path."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def replacing(path: str | os.PathLike):
    """An open binary file that replaces `path`, local or in a bucket, when the context ends.

    A kill or a power cut leaves the old content or the new, never part of it; an exception leaves the old. An OSError names the
    path.
    """
    if not is_local(path):
        yield (content := io.BytesIO())
        epath.Path(path).write_bytes(content.getvalue())  # a bucket shows an object only once it is complete
        return
    path = pathlib.Path(os.fspath(path))
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # a killed process's, or a link, which opening would follow
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)  # a full disk does not say which file
        raise
    with contextlib.suppress(OSError):  # some network disks cannot sync a folder
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # makes the rename itself durable
        finally:
            os.close(directory)


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes a text file atomically; see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def read_file(path: str | os.PathLike, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; ValueError if it is larger, a pipe, a device or a folder."""
    path = epath.Path(path)
    if not is_local(path):
        if path.stat().length > most:
            raise ValueError(f"it has {path.stat().length:,} bytes, more than {most:,}")
        return path.read_bytes()
    return spec.read_file(path, most)


# -- JSON


def read_lines(path: str | os.PathLike) -> list[dict]:
    """The JSON objects of a file with one per line. An unfinished last line, left by a killed process, is skipped.

    Raises FileNotFoundError, and ValueError that names the first other line that is not a JSON object.
    """
    *lines, _ = read_file(path, _MOST[".jsonl"]).split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(_from_json(_strict_object(line)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return records


def read_json(path: str | os.PathLike) -> dict:
    """The object that `write_json` wrote. Raises FileNotFoundError, and ValueError if the file is damaged."""
    try:
        return _from_json(_strict_object(read_file(path, _MOST[".json"])))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid: {error}") from None


def json_line(record: dict) -> str:
    """A record as one line of a file for `read_lines`; ValueError if JSON cannot hold it."""
    return json.dumps(to_json(record), allow_nan=False) + "\n"


def write_json(path: epath.Path, content: dict) -> None:
    """Writes a JSON file atomically; ValueError if JSON cannot hold the content."""
    write_atomically(path, json.dumps(to_json(content), indent=2, allow_nan=False) + "\n")


def to_json(value: Any, name: str = "") -> Any:
    """Nested dicts, sequences and scalars in the types of JSON; ValueError names the first setting that has none."""
    match value:
        case None | bool():
            return value
        case str():
            if value in _NON_FINITE:
                raise ValueError(f"{name}: the string {value!r} stands for a float; give float({value!r})")
            return spec.as_utf8(value)
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value) if math.isfinite(value) else str(float(value))
        case np.bool_():
            return bool(value)
        case list() | tuple():
            return [to_json(entry, f"{name}[{index}]") for index, entry in enumerate(value)]
        case dict():
            for key in value:
                if not isinstance(key, str):
                    raise ValueError(f"{name or 'config'}: the key {key!r} is not a string")
            return {key: to_json(entry, f"{name}.{key}" if name else key) for key, entry in value.items()}
    raise ValueError(f"{name or 'config'}: a {type(value).__name__} cannot be written as JSON")


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_json(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_from_json(entry) for entry in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _strict_object(text: bytes) -> dict:
    """The JSON object that a text is; ValueError, in one line, for anything else, the tokens NaN and Infinity included."""

    def refuse(token: str) -> float:
        raise ValueError(f"{token} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was expected, not {type(value).__name__}")
    if rb"\ud" in text.lower() and (half := re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False))):
        raise ValueError(f"{ascii(half[0])} is half a character (a lone surrogate)")
    return value
