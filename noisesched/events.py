"""TensorBoard's event files."""

import time

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
