"""The directory of one run: config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/.

Every later command needs only this directory. Nothing in it is ever executed: it holds JSON, raw arrays, events and pictures, no
pickle. A process killed at any moment, even by kill -9, leaves a workdir that the next start can use. checkpoints/ is written
and read by `noisesched.runs.checkpoints`, metrics.jsonl and tensorboard/ by `noisesched.runs.metrics_log`.

A workdir may come from anybody. So no link in it is followed, since it could redirect writing or deleting to another folder, and
nothing is read but files of a plausible size, since a pipe or a device may never end. A workdir is a local path, or a bucket such
as gs://bucket/run if the packages for that are installed.
"""

import contextlib
import dataclasses
import json
import os
import re
import time
from typing import Any

from etils import epath

from noisesched.runtime.files import is_local, json_line, read_file, read_json, to_json, write_atomically, write_json


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The directory of one run. Making this object does not touch the disk."""

    path: epath.Path  # made from a str or any path, and absolute, since orbax fails late on relative ones

    def __post_init__(self):
        path = os.fspath(self.path)
        if is_local(path):
            path = os.path.abspath(os.path.expanduser(path))
        object.__setattr__(self, "path", epath.Path(path))

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
        """The step of the newest checkpoint, or None. Quick: it looks at the names of folders only."""
        folders = self.checkpoints.iterdir() if self.checkpoints.exists() else ()
        return max((int(path.name) for path in folders if re.fullmatch("0|[1-9][0-9]{0,9}", path.name)), default=None)

    def check_links(self) -> None:
        """ValueError if an entry of the workdir is a link; the workdir itself may be one."""
        if not is_local(self.path):
            return
        for path in (self.config, self.checkpoints, self.metrics, self.tensorboard, self.samples, self.path / "evaluation"):
            if os.path.islink(path):
                raise ValueError(
                    f"{path} is a link, to {os.readlink(path)}: links in a workdir are not followed, as they could lead "
                    "into another run's files; make the whole workdir the link"
                )

    @contextlib.contextmanager
    def held(self):
        """Locks the workdir for this process, until the context or the process ends, even by kill -9.

        ValueError if another process holds it. Buckets have no locks: there the user must start one run only.
        """
        if not is_local(self.path):
            yield
            return
        import fcntl

        self.path.mkdir(parents=True, exist_ok=True)
        self.check_links()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # a link or a pipe is an error, and does not block
        with open(os.open(self.path / ".lock", flags, 0o666), "rb", closefd=True) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.path} is in use by another process") from None
            yield

    def mark(self) -> str:
        """Writes a random word into the workdir and returns it: a process that reads it there sees the same workdir."""
        word = os.urandom(8).hex()
        write_atomically(self.path / ".job", word)
        return word

    def has_mark(self, word: str, seconds: float = 60) -> bool:
        """Whether the workdir holds that word, within some seconds: a network disk may show it late."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(OSError, ValueError):  # not there, or not yet
                if read_file(self.path / ".job", 100) == word.encode():
                    return True
            time.sleep(0.2)
        return False

    def write_config(self, config: dict) -> None:
        """Writes config.json atomically, and creates the workdir; ValueError if JSON cannot hold the config."""
        json_line(config)  # fails before anything is created
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config, config)

    def replace_config(self, config: dict, step: int) -> None:
        """Writes a new config.json for the steps from `step` on; the previous one is kept as config.before_step_N.json.

        Of several changes at the same step, with no training in between, the config before all of them is kept.
        """
        before = self.path / f"config.before_step_{step}.json"
        if not before.exists():
            write_atomically(before, self.config.read_text())
        self.write_config(config)

    def read_config(self) -> dict:
        """The config as it was written, tuples as lists. FileNotFoundError if it is missing, ValueError if damaged."""
        self.check_links()
        try:
            return read_json(self.config)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(
                f"{self.path} holds no run (no config.json); give the --workdir of a run made by `train`"
            ) from None


def differences(old: dict, new: dict) -> list[str]:
    """The settings that differ between two configs, as lines such as "optimizer.learning_rate: 0.001 -> 0.002".

    Compared as JSON: lists equal tuples, 1 equals 1.0, and nan equals nan.
    """

    def settings(value: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {name: value}
        prefix = f"{name}." if name else ""
        return {k: v for key, entry in value.items() for k, v in settings(entry, prefix + key).items()}

    def show(of: dict, name: str) -> str:
        return json.dumps(of[name]) if name in of else "absent"

    before, after = settings(to_json(old)), settings(to_json(new))
    return [
        f"{name}: {show(before, name)} -> {show(after, name)}"
        for name in sorted({*before, *after})
        if name not in before or name not in after or before[name] != after[name]
    ]
