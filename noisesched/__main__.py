"""The command line: `noisesched COMMAND --help` explains each.

Whatever ends a command early is told in one line: the faults of what a user gave, signals, and mistakes of our own.
"""

import contextlib
import errno
import importlib
import os
import signal
import sys
from pathlib import Path

from noisesched.runtime import signals

LONGEST = 1000  # characters of a message: a longer one, such as a list of all its levels, loses its middle
BUG = "this is a bug in noisesched, or a setting that it should have refused; --debug shows the whole traceback"


def main(arguments=None):
    own = arguments is None  # this process is the command's alone, not a notebook's or a test's
    words, asked = sys.argv[1:] if own else arguments, []
    if own:
        signals.end_from_now_on()
        # Pictures look the same everywhere: a notebook gives its child processes a backend that they lack.
        os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a notebook
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # a log file shows, and a kill keeps, every line

    def interrupt(number):
        if asked:
            signals.end(number)
        asked.append(number)
        raise signals.Interrupted

    try:
        with signals.handled(end_before_all):
            command, request, program = prepare(words)
        with signals.handled(interrupt, (signal.SIGINT,)):
            try:
                carry_out(command, request, program)
            finally:
                asked.append(None)  # from here on, a signal ends the process
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")
        leave(0, "nobody reads what it says")
    except KeyboardInterrupt:
        fail("interrupted", code=130, at_once=own)
    except Exception as error:
        if "--debug" in words:
            raise
        message, code = told(error)
        # Threads that never end would keep a process of our own.
        fail(message, code, at_once=own or getattr(error, "stuck", False), agreed=getattr(error, "agreed", False))


def prepare(words):
    """(the command's name, its request, its module) of the words of a command line."""
    from noisesched import flags

    command, request = flags.parse(words)
    from noisesched.runtime import backend

    backend.prepare()
    if request.plugin:
        from noisesched.runs import plugins

        plugins.load(request.plugin)
    return command, request, importlib.import_module(f"noisesched.{flags.COMMANDS[command].module}")


def carry_out(command, request, program):
    from noisesched.runs.requests import Job
    from noisesched.runtime import backend

    if isinstance(request, Job):
        join(command, request)
        backend.check_threads()
    else:
        backend.start()
    program.main(request)
    leave(0)


def end_before_all(number):
    """While modules load, a signal ends the process: an exception raised inside an import would print a page, or be swallowed."""
    os.write(2, b"noisesched: error: stopped by a signal before anything was begun\n")
    os._exit(75 if number == signal.SIGTERM else 130)


def told(error):
    """(the line that tells of an exception, the exit status): the one place where exceptions become words."""
    kind, text = type(error), " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "out of memory", 1
    if isinstance(error, OSError):
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return f"{os.strerror(errno.EMFILE)}: this process may open {open_files()} (see ulimit -n)", 1
        if error.filename and error.strerror:  # Python's own: without its "[Errno 17]"
            wanted = "a file, where a folder is wanted" if isinstance(error, FileExistsError) else error.strerror
            text = f"{os.fsdecode(error.filename)}: {wanted}"
        return text or kind.__name__, 1 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 2
    if "callback" in text:
        from noisesched.runtime.files import reason

        return f"a function of NumPy arrays failed: {reason(error)}", 2
    if isinstance(error, ValueError) or isinstance(error, RuntimeError) and kind is not RuntimeError:
        if text.startswith("RESOURCE_EXHAUSTED"):
            return f"out of memory: a smaller batch, or a smaller network, needs less ({text})", 1
        return lost(error) or text or kind.__name__, getattr(error, "exit_code", 1 if isinstance(error, RuntimeError) else 2)
    # Not raised by us, and not by Python for what a user gave. Libraries wrap what the system says, or repeat it.
    if "start new thread" in text:
        return "no further thread can be started: memory, or the number of processes, is limited here (see ulimit -a)", 1
    if (cause := error.__cause__ or error.__context__) and isinstance(cause, OSError | MemoryError):
        return told(cause)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        if os.strerror(number) in text:
            return text, 1
    return f"{kind.__name__}: {text} ({place(error)}): {BUG}", 1


def place(error):
    """Where in our files an exception came from: "diffusion.py, line 12"."""
    import traceback

    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "noisesched" in Path(frame.filename).parts]
    return f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}" if ours else "outside noisesched"


def open_files():
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def fail(message, code=2, at_once=False, agreed=False):
    from noisesched.spec import shortened

    print(f"noisesched: error: {shortened(message, LONGEST)}", file=sys.stderr)
    leave(code, "" if agreed else message)
    if at_once:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError):  # a full disk, which is told already
                stream.flush()
        os._exit(code)
    sys.exit(code)


def leave(code, fault=""):
    """Ends this process if it is one of several in a job."""
    if "noisesched.runtime.cluster" in sys.modules:
        sys.modules["noisesched.runtime.cluster"].end(code, fault)


def join(command, request):
    """Finds the other processes of the job, if any; only the first one prints."""
    from noisesched.runtime import cluster

    cluster.start(request.coordinator, request.num_processes, request.process_id, request.wait)
    words = {
        f"--{name}": value
        for name, value in vars(request).items()
        if name not in ("coordinator", "process_id", "wait", "overrides")
    }
    overrides = dict(word.partition("=")[::2] for word in getattr(request, "overrides", ()))
    cluster.agree("command line", {"command": command} | words | overrides)
    if not cluster.is_first():
        sys.stdout = open(os.devnull, "w")
    # A traceback ends this process, too, without waiting for the others.
    sys.excepthook = lambda kind, error, trace: (sys.__excepthook__(kind, error, trace), cluster.end(1, kind.__name__))


def lost(error):
    """The message for a computation that failed because another process of the job is gone; '' for other errors."""
    if "noisesched.runtime.cluster" not in sys.modules:
        return ""
    import jax

    told = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
    if not told or jax.process_count() == 1:
        return ""
    return (
        f"another process of this job is gone or out of reach ({' '.join(str(error).split())[:100]}); start all of them "
        "again to continue from the last checkpoint"
    )


if __name__ == "__main__":
    main()
