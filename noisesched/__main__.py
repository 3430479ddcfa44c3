"""The command line: `noisesched COMMAND --help` explains each."""

import contextlib
import errno
import importlib
import os
import signal
import sys
import threading

from noisesched import flags
from noisesched.runs.requests import Job


def main(arguments=None):
    with ended_at_once():
        command, request, debug = flags.parse(sys.argv[1:] if arguments is None else arguments)
        from noisesched.runtime import backend

        backend.prepare()
        program = importlib.import_module(f"noisesched.{flags.COMMANDS[command].module}")
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(line_buffering=True)  # so that a log file shows, and a kill keeps, every line
    try:
        if isinstance(request, Job):
            join(command, request)
        program.main(request)
        leave(0)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")
        leave(0, "nobody reads what it says")
    except MemoryError:
        fail("out of memory", code=1)
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except (ValueError, OSError, RuntimeError) as error:
        if debug or type(error) is RuntimeError:
            raise
        message = lost(error) or " ".join(str(error).split())
        if isinstance(error, OSError) and error.filename and error.strerror:  # Python's own: without its "[Errno 17]"
            wanted = "a file, where a folder is wanted" if isinstance(error, FileExistsError) else error.strerror
            message = f"{error.filename}: {wanted}"
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = getattr(error, "exit_code", 1 if full or isinstance(error, RuntimeError) else 2)
        fail(message, code, at_once=getattr(error, "stuck", False), agreed=getattr(error, "agreed", False))


@contextlib.contextmanager
def ended_at_once():
    """While modules load, a signal ends the process: an exception raised inside an import would print a page, or be swallowed."""

    def end(number, frame):
        os.write(2, b"noisesched: error: stopped by a signal before anything was begun\n")
        os._exit(75 if number == signal.SIGTERM else 130)

    # A signal that the parent ignores stays ignored. Only the main thread can set handlers, and a notebook may run in another.
    taken = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    taken = taken if threading.current_thread() is threading.main_thread() else []
    usual = {number: signal.signal(number, end) for number in taken}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def fail(message, code=2, at_once=False, agreed=False):
    print(f"noisesched: error: {message}", file=sys.stderr)
    leave(code, "" if agreed else message)
    if at_once:  # without waiting for threads that may never end
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def leave(code, fault=""):
    """Ends this process if it is one of several in a job."""
    if "noisesched.runtime.cluster" in sys.modules:
        sys.modules["noisesched.runtime.cluster"].end(code, fault)


def join(command, request):
    """Finds the other processes of the job, if any; only the first one prints."""
    from noisesched.runtime import cluster

    cluster.start(request.coordinator, request.num_processes, request.process_id)
    words = {
        f"--{name}": value for name, value in vars(request).items() if name not in ("coordinator", "process_id", "overrides")
    }
    overrides = dict(word.partition("=")[::2] for word in getattr(request, "overrides", ()))
    cluster.agree("command line", {"command": command} | words | overrides)
    if not cluster.is_first():
        sys.stdout = open(os.devnull, "w")
    # A traceback ends this process, too, without waiting for the others.
    sys.excepthook = lambda kind, error, trace: (sys.__excepthook__(kind, error, trace), cluster.end(1, kind.__name__))


def lost(error):
    """The message for a computation that failed because another process of the job is gone; '' for other errors."""
    import jax

    if jax.process_count() == 1 or not (isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)):
        return ""
    return (
        f"another process of this job is gone or out of reach ({' '.join(str(error).split())[:100]}); start all of them "
        "again to continue from the last checkpoint"
    )


if __name__ == "__main__":
    main()
