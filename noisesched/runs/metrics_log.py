"""TensorBoard's event files."""

import contextlib
import os
import time

import numpy as np

from noisesched.runs.workdir import Workdir
from noisesched.runtime.files import is_local, json_line, read_lines, write_atomically, writing

FLUSH = 120.0  # seconds after which a viewer sees what was written


class Events:
    """One event file in a folder, local or a bucket, for the steps after `resume_step`, or all for None. Raises OSError.

    Written by who calls, at once: tensorboardX's SummaryWriter has a thread for that, which a full disk ends unnoticed, and a
    queue, which then fills, so that training would wait for ever.
    """

    def __init__(self, folder, resume_step):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import directory_check

        self.folder, self._flushed = folder, time.monotonic()
        directory_check(folder)
        # Of two starts within a second, the second would write over the file of the first.
        self._writer = EventsWriter(f"{folder}/events", f".{time.time_ns()}")
        # Viewers hide what earlier files have of that step and later ones.
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
