"""SIGINT and SIGTERM, by which a person, a cluster or a preemption stops a run: what they ask for, and what comes of it."""

import contextlib
import os
import signal
import sys

from noisesched.recorder import TrainingStopped


class Preempted(TrainingStopped):
    """A signal stopped training, with nothing lost: the same command goes on. `agreed`: all processes of the job know."""

    def __init__(self, message, agreed=True):
        super().__init__(message)
        self.agreed = agreed


class Signals(contextlib.AbstractContextManager):
    """Turns SIGINT and SIGTERM into a request to save and stop after the running step; a second one acts as usual.

    Until `stepping` is set there is nothing to save: then Preempted is raised where the program stands.
    """

    requested = stepping = False

    def __enter__(self):
        self.usual = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _request(self, number, frame):
        signal.signal(number, self.usual[number])
        self.requested = True  # if the exception is lost, as in a callback of the garbage collector, the first step is the last
        if not self.stepping:
            raise Preempted("stopped by a signal before the first step; the same command begins again", agreed=False)
        # Not print, which may be what the signal interrupted.
        os.write(sys.__stderr__.fileno(), b"saving, then stopping (once more to stop at once)\n")

    def __exit__(self, *exception):
        for number, handler in self.usual.items():
            signal.signal(number, handler)
