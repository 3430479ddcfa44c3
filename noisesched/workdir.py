"""All that is on disk of one run: config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/.

Every later command needs only this directory. Nothing in it is ever executed: it holds JSON, raw arrays, events and pictures, no
pickle. A process killed at any moment (kill -9 too) leaves a workdir that the next start can use. What is in checkpoints/ and
tensorboard/ is the business of `noisesched.checkpoints` and `noisesched.events`.

A workdir may come from anybody. So no link in it is followed: it could lead what is written, or deleted, into another folder.
Nor is anything read that is not a file of a plausible size: a pipe would never end, and a device never stop.
A workdir is a local path, or a bucket such as gs://bucket/run where the packages for that are installed.

JSON is strict here. Floats that JSON cannot say are written as the strings "inf", "-inf" and "nan", and read back as floats; so
those three are refused as string settings.
"""

import contextlib
import dataclasses
import json
import math
import numbers
import os
import re
import time
from typing import Any

import numpy as np
from etils import epath

from noisesched.events import Events
from noisesched.files import is_local, read_file, write_atomically, writing

_NON_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_MOST = {".json": 2**24, ".jsonl": 2**30}  # bytes of a file that is read whole


@dataclasses.dataclass(frozen=True)
class Workdir:
    """One run's directory. Making this object touches no disk."""

    path: epath.Path  # from a str or any path; made absolute, since orbax fails late on relative ones

    def __post_init__(self):
        path = epath.Path(self.path)
        if is_local(path):
            path = epath.Path(os.path.abspath(path.expanduser()))
        object.__setattr__(self, "path", path)

    @property
    def config(self) -> epath.Path:
        return self.path / "config.json"

    @property
    def checkpoints(self) -> epath.Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> epath.Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> epath.Path:
        return self.path / "tensorboard"

    @property
    def samples(self) -> epath.Path:
        return self.path / "samples"

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None: seen from folders' names alone, in a moment."""
        folders = self.checkpoints.iterdir() if self.checkpoints.exists() else ()
        return max((int(path.name) for path in folders if re.fullmatch("0|[1-9][0-9]{0,9}", path.name)), default=None)

    def check_links(self) -> None:
        """ValueError if something in the workdir is a link; the workdir itself may be one."""
        if not is_local(self.path):
            return
        for path in (self.config, self.checkpoints, self.metrics, self.tensorboard, self.samples, self.path / "evaluation"):
            if os.path.islink(path):
                raise ValueError(f"{path} is a link, to {os.readlink(path)}: no link in a workdir is followed, as it could lead "
                                 "into another run's files; make the whole workdir the link")  # fmt: skip

    @contextlib.contextmanager
    def held(self):
        """Holds the workdir for this process alone, until it leaves the context or ends, by kill -9 too.

        ValueError if another process holds it. A bucket has no such locks: there it is the user's to start one run only.
        """
        if not is_local(self.path):
            yield
            return
        import fcntl

        self.path.mkdir(parents=True, exist_ok=True)
        self.check_links()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # of a link or a pipe an error, rather than to hang
        with open(os.open(self.path / ".lock", flags, 0o666), "rb", closefd=True) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.path} is in use by another process") from None
            yield

    def mark(self) -> str:
        """Writes a word of its own into the workdir, and returns it: who reads the same there sees the same workdir."""
        word = os.urandom(8).hex()
        write_atomically(self.path / ".job", word)
        return word

    def has_mark(self, word: str, seconds: float = 60) -> bool:
        """Whether that word is there, waited for: a network disk may show it late."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(OSError, ValueError):  # not there, or not yet
                if read_file(self.path / ".job", 100) == word.encode():
                    return True
            time.sleep(0.2)
        return False

    def write_config(self, config: dict) -> None:
        """Writes config.json atomically, in a workdir made if need be; ValueError for what is not JSON."""
        json_line(config)  # before anything is made
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config, config)

    def replace_config(self, config: dict, step: int) -> None:
        """Writes another config.json, for the steps from `step` on; the one before it is kept as config.before_step_N.json.

        Of several changes at the same step, between which nothing was trained, the config from before all of them is kept.
        """
        before = self.path / f"config.before_step_{step}.json"
        if not before.exists():
            write_atomically(before, self.config.read_text())
        self.write_config(config)

    def read_config(self) -> dict:
        """The config as written, tuples as lists. FileNotFoundError if missing, ValueError if damaged."""
        self.check_links()
        try:
            return read_json(self.config)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(
                f"{self.path} holds no run (no config.json); give the --workdir of a run made by `train`"
            ) from None


def differences(old: dict, new: dict) -> list[str]:
    """Settings that differ between two configs, as lines such as "optimizer.learning_rate: 0.001 -> 0.002".

    Lists and tuples are the same thing here, as they are in config.json; so are 1 and 1.0.
    """

    def settings(value: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {name: value}
        prefix = f"{name}." if name else ""
        return {k: v for key, entry in value.items() for k, v in settings(entry, prefix + key).items()}

    def show(of: dict, name: str) -> str:
        return json.dumps(of[name]) if name in of else "absent"

    before, after = settings(_to_json(old)), settings(_to_json(new))  # as JSON, where nan equals nan
    return [
        f"{name}: {show(before, name)} -> {show(after, name)}"
        for name in sorted({*before, *after})
        if name not in before or name not in after or before[name] != after[name]
    ]


class Metrics:
    """Scalars to metrics.jsonl and TensorBoard, pictures to TensorBoard; a context manager.

    `resume_step`: the step from which the run goes on; what was written of later steps is dropped, since
    those steps are done again. None starts a new history. Of several processes each has a workdir of its own: `cluster.own`.
    """

    def __init__(self, workdir: Workdir, resume_step: int | None):
        self._path = workdir.metrics
        try:
            old = read_metrics(self._path) if resume_step is not None and self._path.exists() else []
        except ValueError as error:
            raise ValueError(f"{error}; move that file away to go on without what it says") from None
        self._lines = [json_line(record) for record in old if record["step"] <= resume_step]
        workdir.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, "".join(self._lines))
        self._file = open(self._path, "a", encoding="utf-8") if is_local(self._path) else None
        self._events = Events(str(workdir.tensorboard), resume_step)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Adds a line to metrics.jsonl, which no kill of this process undoes, and a point to each scalar."""
        scalars = {name: float(value) for name, value in scalars.items()}
        line = json_line({"step": int(step)} | scalars)
        if self._file is None:
            self._lines.append(line)  # buckets cannot append: `flush` writes the whole file
        else:
            with writing(self._path):
                self._file.write(line)
                self._file.flush()
        with writing(self._events.folder):
            for name, value in scalars.items():
                self._events.scalar(step, name, value)

    def image(self, step: int, name: str, grid: np.ndarray) -> None:
        """A picture, uint8 [H, W, C] with C 1 or 3."""
        with writing(self._events.folder):
            self._events.image(step, name, grid)

    def flush(self) -> None:
        """Puts everything on disk; to be called at every checkpoint. WriteError if it cannot."""
        with writing(self._path):
            if self._file is None:
                write_atomically(self._path, "".join(self._lines))
            else:
                os.fsync(self._file.fileno())
        with writing(self._events.folder):
            self._events.flush()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            with writing(self._path):
                if self._file is not None:
                    self._file.close()
            with writing(self._events.folder):
                self._events.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


class Unwritten(contextlib.AbstractContextManager):
    """What stands for `Metrics` where nothing is to be written."""

    def write(self, step, scalars):
        pass

    def image(self, step, name, grid):
        pass

    def flush(self):
        pass

    def __exit__(self, *exception):
        pass


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The lines of a metrics.jsonl, [{"step": 100, "loss": 0.31, ...}, ...]; a torn last line is left out.

    Raises FileNotFoundError, and ValueError that names the line for anything else that is no line of metrics.
    """
    records = read_lines(path)
    for number, record in enumerate(records, 1):
        if type(record.get("step")) is not int:
            raise ValueError(f"{path}, line {number}: it has no whole-number step")
    return records


def read_lines(path: str | os.PathLike) -> list[dict]:
    """The JSON objects of a file with one on each line; a torn last line, which a killed process had begun, is left out.

    Raises FileNotFoundError, and ValueError that names the line for anything else that is no JSON object.
    """
    *lines, _ = read_file(path, _MOST[".jsonl"]).split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(_from_json(_parse(line)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return records


def read_json(path: str | os.PathLike) -> dict:
    """What `write_json` wrote. Raises FileNotFoundError, and ValueError if it is damaged."""
    try:
        return _from_json(_parse(read_file(path, _MOST[".json"])))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid: {error}") from None


def json_line(record: dict) -> str:
    return json.dumps(_to_json(record), allow_nan=False) + "\n"


def write_json(path: epath.Path, content: dict) -> None:
    """Writes a JSON file atomically; ValueError for what is not JSON."""
    write_atomically(path, json.dumps(_to_json(content), indent=2, allow_nan=False) + "\n")


def _to_json(value: Any, name: str = "") -> Any:
    """Nested dicts, sequences and scalars as JSON can hold them; ValueError names the setting it cannot."""
    match value:
        case None | bool():
            return value
        case str():
            if value in _NON_FINITE:
                raise ValueError(f"{name}: the string {value!r} stands for a float; give float({value!r})")
            return value
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value) if math.isfinite(value) else str(float(value))
        case np.bool_():
            return bool(value)
        case list() | tuple():
            return [_to_json(entry, f"{name}[{index}]") for index, entry in enumerate(value)]
        case dict():
            for key in value:
                if not isinstance(key, str):
                    raise ValueError(f"{name or 'config'}: the key {key!r} is not a string")
            return {key: _to_json(entry, f"{name}.{key}" if name else key) for key, entry in value.items()}
    raise ValueError(f"{name or 'config'}: a {type(value).__name__} cannot be written as JSON")


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_json(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_from_json(entry) for entry in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _parse(text: bytes) -> dict:
    """A JSON object, read strictly; ValueError (one line) for anything else."""

    def refuse(token: str) -> float:
        raise ValueError(f"{token} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was expected, not {type(value).__name__}")
    return value
