"""Ctrl-C and SIGTERM: the first asks the program to stop, another ends the process at once.

A handler stops a program by an exception, and Python drops what is raised in a callback of its garbage collector or in
a destructor: JAX has such a callback, so a Ctrl-C in it would have no effect. Here a dropped one is raised again a moment later.
"""

import contextlib
import os
import signal
import sys
import threading

AGAIN = 0.01  # seconds until an exception that was dropped is raised again


class Interrupted(KeyboardInterrupt):
    """A signal asks the program to stop. Like KeyboardInterrupt, it is no Exception: nobody takes it for a fault of their own."""


@contextlib.contextmanager
def handled(handle, numbers=(signal.SIGINT, signal.SIGTERM), wanted=lambda: True):
    """Within the context, these signals call handle(number), which may raise Interrupted.

    One that is dropped is raised again if it is still wanted(). A signal that the parent ignores stays ignored, as the background
    jobs of a shell expect. Only the main thread can handle signals; in another, as a notebook may use, this does nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    heard = [number for number in numbers if main and signal.getsignal(number) not in (signal.SIG_IGN, None)]
    usual = {number: signal.signal(number, lambda number, frame: handle(number)) for number in heard}
    hook = sys.unraisablehook

    def again(*_):
        if wanted():
            raise Interrupted

    def dropped(unraisable):
        if not isinstance(unraisable.exc_value, Interrupted):
            return hook(unraisable)
        usual.setdefault(signal.SIGALRM, signal.getsignal(signal.SIGALRM))
        signal.signal(signal.SIGALRM, again)  # not from here, where it would be dropped as well
        signal.setitimer(signal.ITIMER_REAL, AGAIN)

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if signal.SIGALRM in usual:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in usual.items():
            signal.signal(number, handler)


def end(number):
    """Ends the process at once, as the shell expects of one that a signal has ended."""
    with contextlib.suppress(OSError):
        os.write(2, b"\n")
    os._exit(128 + number)


def end_from_now_on():
    """Lets Ctrl-C end this process at once, unless its parent ignores it, also while Python itself ends."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: end(number))
