"""The log of a run's numbers and pictures: metrics.jsonl for programs, TensorBoard's event files for people.

`Metrics` writes both at once. A run that resumes drops what was logged of later steps, which it does again.
"""

import contextlib
import os
import time

import numpy as np

from noisesched.runs.workdir import Workdir
from noisesched.runtime.files import WriteError, is_local, json_line, read_lines, write_atomically, writing

FLUSH = 120.0  # seconds after which a viewer sees new events


def _identity(folder):
    """What tells a local folder from another one of the same name; None if there is none, or in a bucket."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Metrics:
    """Writes scalars to metrics.jsonl and TensorBoard, pictures to TensorBoard; a context manager.

    `resume_step`: the step from which the run continues; entries of later steps are dropped. None starts a new log. Of several
    processes only the first may write to the workdir: see `cluster.own`.

    Everything it writes raises WriteError once the workdir is no longer the folder that it was: a run that is moved would go on
    in a new folder of the old name, without what it has done so far.
    """

    def __init__(self, workdir: Workdir, resume_step: int | None):
        self._path = workdir.metrics
        try:
            old = read_metrics(self._path) if resume_step is not None and self._path.exists() else []
        except ValueError as error:
            raise ValueError(f"{error}; move that file away to continue without it") from None
        self._lines = [json_line(record) for record in old if record["step"] <= resume_step]
        workdir.path.mkdir(parents=True, exist_ok=True)
        self._folder, self._opened = workdir.path, _identity(workdir.path)
        write_atomically(self._path, "".join(self._lines))
        self._file = open(self._path, "a", encoding="utf-8") if is_local(self._path) else None
        self._events = _Events(str(workdir.tensorboard), resume_step)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Adds a line to metrics.jsonl, which survives a kill of this process, and a point to each scalar in TensorBoard."""
        self._check()
        scalars = {name: float(value) for name, value in scalars.items()}
        line = json_line({"step": int(step)} | scalars)
        if self._file is None:
            self._lines.append(line)  # buckets cannot append, so `flush` writes the whole file
        else:
            with writing(self._path):
                self._file.write(line)
                self._file.flush()
        with writing(self._events.folder):
            for name, value in scalars.items():
                self._events.scalar(step, name, value)

    def image(self, step: int, name: str, grid: np.ndarray) -> None:
        """A picture, uint8 [H, W, C] with C 1 or 3."""
        self._check()
        with writing(self._events.folder):
            self._events.image(step, name, grid)

    def _check(self) -> None:
        if _identity(self._folder) != self._opened:
            raise WriteError(
                f"{self._folder} is no longer the folder that this run opened: it was moved, deleted or replaced; start the run "
                "again where it is now"
            )

    def flush(self) -> None:
        """Forces everything to disk; call it before every checkpoint. WriteError if that fails."""
        self._check()
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
    """Takes the place of `Metrics` where nothing is written."""

    def write(self, step, scalars):
        pass

    def image(self, step, name, grid):
        pass

    def flush(self):
        pass

    def __exit__(self, *exception):
        pass


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The records of a metrics.jsonl, [{"step": 100, "loss": 0.31, ...}, ...]; an unfinished last line is skipped.

    Raises FileNotFoundError, and ValueError that names the first other line that is not a record of metrics.
    """
    records = read_lines(path)
    for number, record in enumerate(records, 1):
        if type(record.get("step")) is not int:
            raise ValueError(f"{path}, line {number}: it has no whole-number step")
    return records


class _Events:
    """TensorBoard's event file in a folder, local or in a bucket, for the steps after `resume_step` (None: all). Raises OSError.

    Written at once, by the calling thread. tensorboardX's SummaryWriter has a thread for that, which ends unnoticed when the disk
    is full, and a queue, which then fills up, so that training would wait forever.
    """

    def __init__(self, folder, resume_step):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import directory_check

        self.folder, self._flushed = folder, time.monotonic()
        directory_check(folder)
        # By default a second start within the same second would overwrite the file of the first.
        self._writer = EventsWriter(f"{folder}/events", f".{time.time_ns()}")
        # Viewers hide the entries of earlier files from this step on.
        self._add(0 if resume_step is None else resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, step, name, value):
        from tensorboardX import summary

        self._add(step, summary=summary.scalar(name, value))

    def image(self, step, name, grid):
        """A picture, uint8 [H, W, C] with C 1 or 3."""
        from tensorboardX import summary

        self._add(step, summary=summary.image(name, grid, dataformats="HWC"))

    def flush(self):
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self):
        self._writer.close()

    def _add(self, step, **content):
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(step=step, wall_time=time.time(), **content))
        if time.monotonic() - self._flushed > FLUSH:
            self.flush()
