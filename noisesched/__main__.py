"""The command line: `noisesched COMMAND --help` explains each."""

import contextlib
import errno
import importlib
import os
import signal
import sys
import threading

from noisesched.flags import parser


def main(arguments=None):
    with ended_at_once():
        given, overrides = parse(arguments)
        from noisesched.runtime import backend

        chosen = backend.prepare()
        importlib.import_module(f"noisesched.{PROGRAMS[given.command]}")
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line at once, and keeps it when the process is killed
    try:
        if hasattr(given, "coordinator"):
            join(given, overrides)
        COMMANDS[given.command](given, overrides, chosen)
        leave(0)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")
        leave(0, "nobody reads what it says")
    except MemoryError:
        fail("out of memory", code=1)
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except (ValueError, OSError, RuntimeError) as error:
        if given.debug or type(error) is RuntimeError:
            raise
        message = lost(error) or " ".join(str(error).split())
        if isinstance(error, OSError) and error.filename and error.strerror:  # Python's own: without its "[Errno 17]"
            wanted = "a file, where a folder is wanted" if isinstance(error, FileExistsError) else error.strerror
            message = f"{error.filename}: {wanted}"
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = 75 if is_preempted(error) else 1 if full or isinstance(error, RuntimeError) else 2
        fail(message, code, at_once=getattr(error, "stuck", False), agreed=getattr(error, "agreed", False))


def parse(arguments):
    """(flags, those among the arguments that change a setting)."""
    given, rest = parser().parse_known_args(arguments)
    overrides = [word for word in rest if word.startswith(("--config.", "--noconfig."))]
    unknown = [word for word in rest if word not in overrides]
    if unknown or (overrides and not getattr(given, "config", None)):
        fail(
            f"unknown argument {unknown[0]!r}; see noisesched {given.command} --help"
            if unknown
            else f"{overrides[0]!r} changes a setting of a --config, but none is given"
        )
    return given, overrides


@contextlib.contextmanager
def ended_at_once():
    """While modules load, signals end the process: an exception out of an import is a page long, or lost in somebody's code."""

    def end(number, frame):
        os.write(2, b"noisesched: error: stopped by a signal before anything was begun\n")
        os._exit(75 if number == signal.SIGTERM else 130)

    # Not what a parent has had ignored; and only the main thread, which a notebook's need not be, can set handlers.
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
    """Ends this process if it is one of several of a job."""
    if "noisesched.runtime.cluster" in sys.modules:
        sys.modules["noisesched.runtime.cluster"].end(code, fault)


def join(given, overrides):
    """Finds the other processes of the job, if any; of these the first alone speaks."""
    from noisesched.runtime import cluster

    cluster.start(given.coordinator, given.num_processes, given.process_id)
    words = {f"--{name}": value for name, value in vars(given).items() if name not in ("coordinator", "process_id")}
    cluster.agree("command line", words | dict(word.partition("=")[::2] for word in overrides))
    if not cluster.is_first():
        sys.stdout = open(os.devnull, "w")
    # A traceback, too, ends this process without waiting for the others.
    sys.excepthook = lambda kind, error, trace: (sys.__excepthook__(kind, error, trace), cluster.end(1, kind.__name__))


def lost(error):
    """What to say of a computation that failed because another process of the job is gone; '' for other errors."""
    import jax

    if jax.process_count() == 1 or not (isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)):
        return ""
    return (
        f"another process of this job is gone, or out of reach ({' '.join(str(error).split())[:100]}); start all again to go "
        "on from the last checkpoint"
    )


def is_preempted(error):
    from noisesched.training import monitor

    return isinstance(error, monitor.Preempted)


PROGRAMS = {
    "train": "training.loop",
    "sample": "evaluation.sample",
    "evaluate": "evaluation.evaluate",
    "diagnose": "diagnosis.diagnose",
    "plot": "diagnosis.plot",
    "compare": "comparison.compare",
    "report": "comparison.report",
    "interchange": "interchange.scheduler_config",
    "benchmark": "training.benchmark",
}


# -- the commands: each hands its flags to its program


def run_train(given, overrides, chosen):
    from noisesched.runs import config
    from noisesched.runs.workdir import Workdir
    from noisesched.training import loop

    if given.config:
        loaded = config.load(given.config, overrides)
    elif not (workdir := Workdir(given.workdir)).config.exists():
        raise config.ConfigError(f"{workdir.path} holds no run to go on with: give --config=FILE to begin one there")
    else:
        loaded = config.from_dict(workdir.read_config())
    loop.train(loaded, given.workdir, profile=given.profile, accept_changes=given.accept_changes)


def run_sample(given, overrides, chosen):
    from noisesched.evaluation import sample
    from noisesched.runtime import cluster

    with cluster.own(given.out) as out:
        sample.run(
            given.workdir,
            sample.Request(
                schedules=tuple(given.schedule),
                steps=tuple(given.steps),
                methods=tuple(given.method),
                spacing=given.spacing,
                num_images=given.num_images,
                seed=given.seed,
                parameters=given.parameters,
                checkpoint=given.checkpoint,
                translation=given.translation,
                labels=tuple(given.labels),
                guidances=tuple(given.guidance),
                out=out,
            ),
        )


def run_evaluate(given, overrides, chosen):
    import dataclasses

    from noisesched.evaluation import evaluate

    names = [field.name for field in dataclasses.fields(evaluate.Request) if hasattr(given, field.name)]
    asked = {name: tuple(v) if isinstance(v := getattr(given, name), list) else v for name in names}
    evaluate.run(given.workdir, evaluate.Request(**asked))


def run_diagnose(given, overrides, chosen):
    from noisesched.diagnosis import diagnose, scheduler_file
    from noisesched.runs import config
    from noisesched.runs.workdir import Workdir

    if given.scheduler and not (given.config or given.workdir):
        raise config.ConfigError(
            "--scheduler needs --config=FILE or --workdir=DIR too, for what that file does not say: the "
            "images, their size, the weighting"
        )
    if bool(given.config) == bool(given.workdir):
        raise config.ConfigError("give either --config=FILE or --workdir=DIR, which is to be diagnosed")
    contrary = [f"--{flag}" for flag in ("schedule", "spacing") if getattr(given, flag)]
    contrary += [
        f"--config.{name}" for name in scheduler_file.SAID for word in overrides if word.partition("=")[0] == f"--config.{name}"
    ]
    if given.scheduler and contrary:
        raise config.ConfigError(
            f"{contrary[0]} and --scheduler contradict each other: that file says schedule, prediction and "
            "levels; leave out one of them"
        )
    loaded = config.load(given.config, overrides) if given.config else config.from_dict(Workdir(given.workdir).read_config())
    found = diagnose.run(
        loaded,
        given.config or given.workdir,
        given.schedule,
        given.steps,
        given.spacing or "trailing",
        given.out or "",
        given.scheduler or "",
    )
    if found[0].severity == "fault":
        sys.exit(1)


def run_plot(given, overrides, chosen):
    from noisesched.diagnosis import plot

    plot.plot(given.schedules, given.out)


def run_compare(given, overrides, chosen):
    import shlex

    from noisesched.comparison import compare, study

    command = shlex.join(["noisesched", "compare", f"--config={given.config}", f"--out={given.out}", *overrides])
    compare.run(study.load(given.config, overrides), given.out, command, share=given.share)


def run_report(given, overrides, chosen):
    from noisesched.comparison import report

    report.run(given.compare, given.out or "")


def run_benchmark(given, overrides, chosen):
    from noisesched.runs import config
    from noisesched.training import benchmark

    benchmark.benchmark(config.load(given.config, overrides), chosen, given.seconds, given.calls, given.json)


def run_interchange(given, overrides, chosen):
    from noisesched.interchange import scheduler_config

    asked = {name: getattr(given, name) for name in ("schedule", "prediction", "spacing", "method") if hasattr(given, name)}
    files = {"n": given.steps, "sigmas": given.sigmas, "betas": given.betas}
    if given.sigmas and not given.steps:
        raise ValueError("--sigmas writes the levels of a number of steps: give --steps=N")
    if given.read:
        if asked or hasattr(given, "workdir"):
            raise ValueError(f"--{next(iter(asked), 'workdir')} is for --write: --read takes all from the file")
        scheduler_config.run_read(given.read, **files)
        return
    if hasattr(given, "workdir"):
        asked = scheduler_config.of_run(given.workdir) | asked
    for name in ("schedule", "prediction"):
        if name not in asked:
            raise ValueError(f"--write needs --{name}, or the --workdir of a run")
    scheduler_config.run_write(given.write, **asked, **files)


COMMANDS = {
    "train": run_train,
    "sample": run_sample,
    "evaluate": run_evaluate,
    "diagnose": run_diagnose,
    "plot": run_plot,
    "compare": run_compare,
    "report": run_report,
    "interchange": run_interchange,
    "benchmark": run_benchmark,
}


if __name__ == "__main__":
    main()
