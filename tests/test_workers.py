"""Work in the background, with real processes and real signals: whatever happens to it, its reader is told, and in time."""

import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from noisesched.data import workers

ROOT = (
    Path(__file__).resolve().parent.parent
)  # not conftest's: every process started here imports this file, and need not import JAX

# -- what the processes run


def counting(first, step):
    return itertools.count(first, step)


def large(first, step):
    """Messages far larger than a pipe, which the writer is therefore always in the middle of."""
    return (np.full(1 << 20, number) for number in itertools.count(first, step))


def failing(error):
    yield 0
    raise error


@pytest.fixture
def processes():
    made = []

    def make(*makers):
        made.append(workers.Processes(makers))
        return made[-1]

    yield make
    for each in made:
        each.close()
        assert not any(process.is_alive() for process in each._processes)


def after(process, number):
    """Sends a process a signal, and waits until it has acted."""
    os.kill(process.pid, number)
    state = lambda: open(f"/proc/{process.pid}/stat").read().rsplit(")")[1].split()[0]
    wanted = {signal.SIGKILL: "Z", signal.SIGSTOP: "T"}.get(number)
    while wanted and state() != wanted:
        time.sleep(0.01)


# -- processes


def test_processes_take_turns_and_leave_signals_to_their_reader(processes):
    """Ctrl-C and `scancel` signal all processes of a job: the main one, which is to save and stop, still needs its input."""
    iterator = processes(*[functools.partial(counting, first, 2) for first in range(2)])
    assert [next(iterator) for _ in range(3)] == [0, 1, 2]
    for process in iterator._processes:
        after(process, signal.SIGINT)
        after(process, signal.SIGTERM)
    assert [next(iterator) for _ in range(9)] == list(range(3, 12))


def test_killed_in_the_middle_of_a_message(processes):
    iterator = processes(functools.partial(large, 0, 1))
    assert next(iterator)[-1] == 0
    time.sleep(0.2)  # by then it has filled the pipe
    (process,) = iterator._processes
    after(process, signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(workers.Fault) as fault:
        next(iterator)
    assert time.monotonic() - begin < 1
    assert str(fault.value) == (
        f"an input worker process died (process {process.pid}, by signal 9, SIGKILL, as the system does when memory runs out)"
    )


def test_errors_are_told_in_one_line(processes):
    errors = {
        ValueError("cannot read example 7\nand much more"): "cannot read example 7",
        MemoryError(): "out of memory",
        SystemExit(3): "an input worker process died .process [0-9]+, exit code 0.",
    }
    iterator = processes(*[functools.partial(failing, error) for error in errors])
    assert [next(iterator) for _ in errors] == [0, 0, 0]
    for says in errors.values():
        with pytest.raises(workers.Fault, match=f"^{says}$"):
            next(iterator)


def test_processes_end_with_their_reader():
    """Killed, it leaves none behind."""
    program = (
        "import functools, itertools, sys\nfrom noisesched.data import workers\nif __name__ == '__main__':\n"
        "    it = workers.Processes([itertools.count, itertools.count])\n    next(it)\n"
        "    print(*(p.pid for p in it._processes), flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        pids = [int(word) for word in reader.stdout.readline().split()]
        assert len(pids) == 2
        reader.kill()
    end = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.02)


# -- the thread


def test_a_process_that_stands_still_is_not_waited_for(processes):
    iterator = processes(functools.partial(large, 0, 1))
    assert next(iterator)[-1] == 0  # which takes long: it starts
    ahead = workers.Ahead(iterator, patience=1)
    assert next(ahead)[-1] == 1
    after(iterator._processes[0], signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(workers.Fault, match="nothing was read for 1 s"):
        for _ in range(3):  # what was read before is still given
            next(ahead)
    assert time.monotonic() - begin < 3
    assert ahead.close()  # SIGKILL ends a stopped process, too


class Standing:
    """Reading from files that do not answer."""

    def __init__(self):
        self.answer, self.closed = threading.Event(), False

    def __next__(self):
        self.answer.wait()

    def close(self):
        self.closed = True


def test_reading_that_cannot_be_ended_is_not_waited_for():
    iterator = Standing()
    ahead = workers.Ahead(iterator, patience=0.2)
    with pytest.raises(workers.Fault, match="nothing was read for 0.2 s"):
        next(ahead)
    assert not ahead.close() and not iterator.closed
    iterator.answer.set()
    ahead._thread.join(10)
    assert iterator.closed


def test_close_while_the_thread_waits_for_its_reader():
    class Numbers(Standing):
        def __next__(self):
            return 1

    iterator = Numbers()
    ahead = workers.Ahead(iterator, patience=5)
    assert [next(ahead) for _ in range(5)] == [1] * 5
    assert ahead.close() and ahead.close() and iterator.closed
