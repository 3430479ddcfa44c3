"""Starts a run, kills it, and starts it again, many times, in processes forked from one that has imported everything; and once
undisturbed.

    python tests/killer.py FILE       JSON: {"words", "whole", "killed", "kills"}: as after `noisesched train`, and two workdirs

A process of its own: JAX's backend may not start before the last fork. Prints a line of JSON for each kill. Leave its CPU cores
as they are while it works: on another number of cores XLA rounds the last bit differently, killed or not.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from noisesched.runtime import backend

backend.prepare()

import grain  # noqa: E402, F401  (imported late by the programs, as those below)
import orbax.checkpoint  # noqa: E402, F401
import tensorboardX  # noqa: E402, F401

from noisesched.data import datasets  # noqa: E402, F401
from noisesched.runs import config  # noqa: E402, F401
from noisesched.training import loop  # noqa: E402, F401


def run(words, workdir):
    """The run to its end, in a child; returns the child's id."""
    child = os.fork()
    if child:
        return child
    try:
        path, *overrides = words
        loop.train(config.load(path.partition("=")[2], overrides), workdir, lambda line: None)
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def wait_for(condition, child, seconds):
    """True once the condition holds; False if the child ends, or that time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.0005)
    return False


def writing(workdir):
    folder = Path(workdir, "checkpoints")
    return {path.name for path in folder.iterdir() if "-tmp" in path.name} if folder.exists() else set()


def to_its_end(words, workdir):
    _, status = os.waitpid(run(words, workdir), 0)
    if status:
        sys.exit(f"{workdir}: exit code {os.waitstatus_to_exitcode(status)}")


def main(words, whole, killed, kills):
    to_its_end(words, whole)
    workdir, moments = killed, random.Random(0)
    for number in range(kills):
        left, child, begin = writing(workdir), run(words, workdir), time.monotonic()
        kind = ("anywhere", "in a write", "in a write")[number % 3]
        if kind == "anywhere":  # from the start of the process on, through the restoring of the state and the first compilation
            wait_for(lambda: False, child, moments.uniform(0.0, 4.0))
        else:
            for _ in range(moments.randint(1, 2)):
                before = writing(workdir) | left
                wait_for(lambda before=before: writing(workdir) - before, child, 300.0)
            time.sleep(moments.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        steps = [int(path.name) for path in Path(workdir, "checkpoints").glob("*") if path.name.isdigit()]
        print(
            json.dumps(
                {
                    "kind": kind,
                    "killed": os.WIFSIGNALED(status),
                    "half_written": sorted(writing(workdir)),
                    "step": max(steps, default=0),
                    "seconds": round(time.monotonic() - begin, 2),
                }
            ),
            flush=True,
        )
    to_its_end(words, workdir)


if __name__ == "__main__":
    main(**json.loads(Path(sys.argv[1]).read_text()))
