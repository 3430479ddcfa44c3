"""Several processes of one job: how they find each other, agree, and learn that one of them is gone.

Every process runs the same command. What only one may do (write a file, prepare a data set) is done by the first, through
`by_first`, and the others take its result. A process that dies or fails stops all of them: collectives would wait for it
forever. With a single process every function here does the plain thing.
"""

import contextlib
import ctypes
import glob
import importlib.util
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time

import jax

from noisesched.runtime import backend, meeting
from noisesched.runtime.files import WriteError, reason
from noisesched.runtime.meeting import ClusterError
from noisesched.spec import shortened

BEAT = 2.0  # seconds between signs of life
PATIENCE = 1800  # seconds for hosts of a cloud, which come minutes apart, and for one that prepares a data set meanwhile
SILENCE = 40.0  # seconds without one after which a process counts as gone
_joined = []  # not empty: this process is one of several, and has this number
_turns = itertools.count()  # numbers the calls of `by_first` and `together`, equally in all processes: they run the same program


def start(coordinator=None, num_processes=None, process_id=None, wait=None):
    """Joins the other processes of the job, if there are any. Call it before JAX is first used.

    On Cloud TPU, SLURM and Open MPI they are found automatically (`jax.distributed`); elsewhere give all three of coordinator
    ("HOST:PORT" of process 0), num_processes and process_id (from 0). Raises ValueError for contradictory arguments, ClusterError
    if the others do not appear within `wait` seconds (300; PATIENCE where they are found automatically).
    """
    told = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in told.items() if value is None]
    if len(missing) not in (0, 3):
        raise ValueError(
            f"{' and '.join(missing)} missing: give all of --coordinator, --num_processes and --process_id, or none "
            "on a cluster where they are found automatically"
        )
    if not missing and process_id >= num_processes:
        raise ValueError(f"--process_id={process_id}: the {num_processes} processes are numbered from 0 to {num_processes - 1}")
    if not missing and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"--coordinator={coordinator!r} is not a HOST:PORT such as node1:9876")
    if num_processes == 1 or (missing and not _in_cluster()):
        backend.start()
        return
    # Our own signal handlers agree on the step to stop at, and our own watch says who is gone. JAX's would take SIGTERM for
    # themselves and abort the process with a page of C++ log.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_enable_recoverability", True)
    wait = wait or (PATIENCE if missing else 300)
    if not missing:
        meeting.meet(coordinator, num_processes, process_id, wait)
    # Even with all arguments given, JAX would look for a cluster, and if it found one take a single device for this process.
    initialize = lambda: jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=wait,
        cluster_detection_method=None if missing else "deactivate",
    )
    try:
        _aside(initialize, f"waiting for the other processes of this job, for {wait} s at most (--wait)")
    except Exception as error:
        raise ClusterError(f"the processes of this job did not find each other: {shortened(reason(error), 300)}") from None
    me, count = _state().process_id, _state().num_processes
    if count > 1:
        _joined.extend((me, _report_aborts()))
        reached = [time.monotonic()]  # when the coordinator last answered
        threading.Thread(target=_watch, args=(_client(), me, count, reached), daemon=True).start()
        threading.Thread(target=_watch_coordinator, args=(count, reached), daemon=True).start()
    backend.start()  # watched already: it waits for the other processes' devices


def _aside(function, late):
    """Calls a function that Ctrl-C cannot interrupt in a thread, so that it can; says `late` when it takes long."""
    failed = []

    def run():
        try:
            function()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(meeting.LATE)
    if thread.is_alive():
        print(f"noisesched: {late}", file=sys.stderr)
    while thread.is_alive():
        thread.join(1)
    if failed:
        raise failed[0]


def _in_cluster():
    """Whether `jax.distributed` should look for other processes: it fails where there is no cluster."""
    several = lambda name: os.environ.get(name, "1") not in ("", "1")
    slurm = "SLURM_STEP_NODELIST" in os.environ and several("SLURM_NTASKS")
    ompi = "OMPI_MCA_orte_hnp_uri" in os.environ and several("OMPI_COMM_WORLD_SIZE")
    # A Cloud TPU VM learns of its neighbours from its metadata server, which is asked only where there is a TPU.
    tpu = importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    return bool(slurm or ompi or tpu)


def is_first():
    """Whether this process is the one that logs and writes."""
    return jax.process_index() == 0


def by_first(make):
    """What make() returns in the first process (of JSON's types), in all processes; if it fails there, its error in all."""
    if jax.process_count() == 1:
        return make()
    key = f"noisesched/turn/{next(_turns)}"
    if is_first():
        try:
            made = make()
        except (ValueError, OSError, WriteError) as error:
            _client().key_value_set(key, json.dumps({"error": " ".join(str(error).split())}))
            raise
        _client().key_value_set(key, json.dumps({"made": made}))
        return json.loads(json.dumps(made))
    answer = json.loads(_wait_for(key))
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["made"]


def in_turn(make):
    """make() in every process, in the first before the others: for what is prepared once on a shared disk."""
    made = []
    by_first(lambda: made.append(make()))
    return made[0] if made else make()


def agree(what, value):
    """Raises ValueError in each process whose value (of JSON's types) differs from the first one's."""
    value = json.loads(json.dumps(value))
    if differing := list(_differing(value, by_first(lambda: value))):
        name, mine, first = differing[0]
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise ValueError(
            f"process {jax.process_index()} has another {what} than process 0: {name and name + ' '}"
            f"{shortened(json.dumps(mine), 100)} against {shortened(json.dumps(first), 100)}{more}; give all processes the same "
            "command and files"
        )


def together():
    """Returns when all processes have called it."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"noisesched/together/{next(_turns)}", 1000 * PATIENCE)


@contextlib.contextmanager
def own(folder):
    """The folder to write to: `folder` itself in the first process, a temporary one in the others."""
    if is_first():
        yield folder
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield scratch


def end(code, fault=""):
    """Ends this process if it is one of several: after a `fault` at once, telling the others; else when all get here."""
    if not _joined:
        return
    me = _joined[0]
    with contextlib.suppress(Exception):
        if fault:
            _client().key_value_set(f"noisesched/gone/{me}", f"failed: {fault}")
        else:
            _client().wait_at_barrier("noisesched/end", int(10_000 * SILENCE))
        if me == 0:
            time.sleep(2 * BEAT if fault else BEAT / 4)  # the others learn of it through this process
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _differing(mine, first, name=""):
    """The (name, value here, value of the first process) of all entries that differ."""
    if isinstance(mine, dict) and isinstance(first, dict):
        for key in dict.fromkeys((*mine, *first)):
            yield from _differing(mine.get(key, "absent"), first.get(key, "absent"), f"{name}.{key}" if name else key)
    elif mine != first:
        yield name, mine, first


def _state():
    """What JAX knows of the processes. It has no public name for it; orbax uses this one too."""
    from jax._src import distributed

    return distributed.global_state


def _client():
    """The key-value store that all processes share."""
    return _state().client


def _wait_for(key):
    while True:  # the first process may take any time; `_watch` notices if it is gone
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # but not what a signal handler raises
            return _client().blocking_key_value_get(key, int(1000 * SILENCE))
        time.sleep(BEAT)


def _watch(client, me, count, reached):
    """The thread that stops this process when another is gone. The first process watches all, the others read its findings."""
    seen = {}  # process: (its last sign of life, when it was first seen)
    for beat in itertools.count():
        gone = None
        try:
            client.key_value_set(f"noisesched/beat/{me}", str(beat), allow_overwrite=True)
            reports = client.key_value_dir_get("noisesched/gone/")
            reached[0] = now = time.monotonic()
            if me == 0:
                for key, sign in client.key_value_dir_get("noisesched/beat/"):
                    number = int(key.rpartition("/")[2])
                    if seen.get(number, ("", 0))[0] != sign:
                        seen[number] = sign, now
                silent = [k for k in range(count) if now - seen.setdefault(k, ("", now))[1] > SILENCE]
                if silent and not reports:
                    reports = [(f"/{silent[0]}", f"gone: no sign of life for {SILENCE:.0f} s")]
                    client.key_value_set(f"noisesched/gone/{silent[0]}", reports[0][1], allow_overwrite=True)
                    time.sleep(2 * BEAT)  # so that the others can read it
            others = [(key.rpartition("/")[2], why) for key, why in reports if key.rpartition("/")[2] != str(me)]
            gone = f"process {others[0][0]} of {count} {others[0][1]}" if others else None
        except Exception:  # of many types: the coordinator, which is process 0, does not answer
            if time.monotonic() - reached[0] > SILENCE / 2:
                gone = f"process 0 of {count} gone: it does not answer"
        if gone:
            if me == 0:
                time.sleep(2 * BEAT)
            _stop(gone)
        time.sleep(BEAT)


def _watch_coordinator(count, reached):
    """The thread that stops this process when the first one hangs or its machine is off: a call to it then never returns."""
    beats, last = 0, None  # counted, not timed: this process may itself have been suspended
    while beats * BEAT < SILENCE:
        time.sleep(BEAT)
        beats, last = (beats + 1 if reached[0] == last else 0), reached[0]
    _stop(f"process 0 of {count} gone: it does not answer")


def _report_aborts():
    """Adds a line of ours when JAX or Gloo notice a lost process before `_watch` does, and abort this one in C++.

    Returns the handler, which must be kept alive. Python's own handlers would run too late: abort() does not return.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(
        lambda _: _stop("this process was aborted, as the lines above say: most likely another process of this job is gone")
    )
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
    return handler


def _stop(gone):
    os.write(
        sys.__stderr__.fileno(),
        f"noisesched: error: {gone}; this process stops too. Start all again to continue from the last checkpoint\n".encode(),
    )
    os._exit(1)
