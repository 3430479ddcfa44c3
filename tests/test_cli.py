"""The command line as a user meets it: help that teaches, faults in one line and without litter, and a run end to end."""

import errno
import gc
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import BASE, ROOT

from noisesched import __main__ as cli
from noisesched import __version__, diffusion, flags, samplers, schedules, tables
from noisesched.evaluation import likelihood
from noisesched.models import conditioning
from noisesched.runs import requests
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.metrics_log import read_metrics
from noisesched.runs.workdir import Workdir
from noisesched.runtime import backend, signals
from noisesched.training import monitor
from noisesched.training import step as training_step

# -- help


@pytest.mark.parametrize(
    ("command", "taught"),
    [
        ((), ["train", "sample", "plot", "benchmark", "noisesched train --config=configs/digits.py --workdir=runs/digits"]),
        (("train",), ["--workdir", "--config", "--config.optimizer.learning_rate=1e-4", "metrics.jsonl"]),
        (
            ("sample",),
            [
                "settings.json",
                "--spacing",
                "trailing",
                "--translation",
                "noisesched sample --workdir=runs/digits",
                *schedules.DEFINITIONS,
                *samplers.METHODS,
                "ddim(eta=0.0)",
                "churn=",
            ],
        ),
        (("plot",), ["terminal SNR", *schedules.DEFINITIONS, 'noisesched plot linear cosine "zero_terminal(scaled_linear)"']),
        (("benchmark",), ["--config", "persistent cache", "--calls"]),
    ],
)
def test_help_teaches(main, command, taught):
    code, out, err = main(*command, "--help")
    assert code == 0 and err == ""
    for words in taught:
        assert words in out


@pytest.mark.parametrize("command", flags.COMMANDS)
def test_every_example_of_the_help_can_be_read(command):
    assert flags.COMMANDS[command].examples
    for line in flags.COMMANDS[command].examples:
        _, *words = shlex.split(line, comments=True)
        name, request = flags.parse(words)
        assert name == command
        specs = getattr(request, "schedules", None) or getattr(request, "schedule", None) or ()
        for text in (specs,) if isinstance(specs, str) else specs:
            schedules.make(text)


def test_requests_repeat_what_the_mathematics_says():
    """`requests` loads no JAX, so it states some choices again."""
    assert requests.SPACINGS == tables.SPACINGS and requests.PREDICTIONS == diffusion.PREDICTIONS
    assert requests.TRANSLATIONS == conditioning.TRANSLATIONS
    ends = requests.Evaluate(workdir="w")
    assert (ends.log_snr_min, ends.log_snr_max) == (likelihood.LOG_SNR_MIN, likelihood.LOG_SNR_MAX)


def test_a_setting_may_follow_its_name():
    """`--config.name value`, as ml-collections' own flags have it."""
    words = [
        "train",
        "--workdir=w",
        "--config=c.py",
        "--config.model.width",
        "16",
        "--config.data.flip",
        "--config.noise_offset",
        "-1",
    ]
    _, request = flags.parse(words)
    assert request.overrides == ("--config.model.width=16", "--config.data.flip", "--config.noise_offset=-1")


def test_version(main):
    assert main("--version") == (0, f"{__version__}\n", "")


# -- faults


def assert_one_line(result, *parts, code=2):
    got, out, err = result
    assert got == code, err
    assert err.startswith("noisesched: error: ") and err.count("\n") == 1 and "Traceback" not in err
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ["COMMAND", "--help"]),
        (("trian",), ["trian", "train", "sample"]),
        (("sample", "--workdir=w"), ["--out"]),
        (("sample", "--workdir=w", "--out=o", "--steps=0"), ["--steps", "whole number from 1 up", "'0'"]),
        (("sample", "--workdir=w", "--out=o", "--steps", "5", "many"), ["--steps", "'many'"]),
        (("sample", "--workdir=w", "--out=o", "--seed=-1"), ["--seed", "whole number from 0 up"]),
        (("sample", "--workdir=w", "--out=o", "--spacing=even"), ["--spacing", "trailing"]),
        (("sample", "--workdir=w", "--out=o", "--shedule=linear"), ["--shedule", "noisesched sample --help"]),
        (("sample", "--workdir=w", "--out=o", "--config.seed=1"), ["--config.seed=1", "none is given"]),
        (("train", "--workdir=w", "--config.seed=1"), ["--config.seed=1", "none is given"]),
        (("sample", "--workdir=w", "--out=o"), ["holds no run", "train"]),
        (("sample", "--workdir=w", "--out="), ["--out: empty: name a folder"]),
        (("sample", "--workdir=", "--out=o"), ["--workdir: empty: name a folder"]),
        (("evaluate", "--workdir="), ["--workdir: empty: name a folder"]),
        (("train", "--workdir="), ["--workdir: empty: name a folder"]),
        (("evaluate", "--workdir=w", "--discrete", ":5"), ["--discrete", "SPEC:N, such as cosine:100"]),
        (("train", "--workdir=w"), ["holds no run to continue", "--config=FILE"]),
        (("plot",), ["SPEC"]),
        (("plot", "cosin"), ["did you mean 'cosine'"]),
        (("plot", "cosine", "--out=a.doc"), ["ending must be one of"]),
        (("benchmark", "--config=none.py"), ["config file 'none.py' not found"]),
    ],
)
def test_faults_in_one_line(main, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    assert_one_line(main(*arguments), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model.prediction": "eps"}, ["model.prediction='eps'", "'cosine'", "zero SNR", "set model.prediction to 'v'"]),
        ({"model.prediction": "eps", "schedule": "zero_terminal(linear)"}, ["model.prediction='eps'", "zero SNR"]),
        ({"data.image_size": 10, "model.multipliers": "(1,2,2)"}, ["10", "image_size"]),
        ({"training.batch_size": 20}, ["training.batch_size=20", "8 devices", "16 or 24"]),
        ({"training.accumulate": 3}, ["training.accumulate=3"]),
        ({"training.steps_per_dispatch": 4}, ["training.num_steps=6", "training.steps_per_dispatch=4"]),
        ({"optimizer.learningrate": 1}, ["optimizer.learningrate", "did you mean 'learning_rate'"]),
        ({"optimzer.learning_rate": 1}, ["optimzer", "did you mean 'optimizer'"]),
        ({"model.width": "wide"}, ["model.width", "wide"]),
        ({"model.width": "8.5"}, ["model.width", "8.5"]),
        ({"model.dtype": "float16"}, ["model.dtype='float16'", "float32, bfloat16"]),
        ({"optimizer.learning_rate": "nan"}, ["optimizer.learning_rate", "finite"]),
        ({"seed": 2**32}, ["seed=4294967296"]),
        ({"data.channels": 2}, ["data.channels=2"]),
        ({"data.name": "cifar10", "data.data_dir": "nowhere"}, ["'cifar10' is not prepared", "nowhere", "data_dir"]),
        ({"data.name": "image_folder", "data.path": "nowhere"}, ["no such image folder: nowhere"]),
        ({"data.split": "trian"}, ["no split 'trian'", "test, train"]),
        ({"model.num_classes": 7}, ["model.num_classes=7", "10 classes", "0 trains without"]),
        ({"schedule": "cosin"}, ["schedule", "did you mean 'cosine'"]),
        ({"weighting": "minsnr"}, ["weighting", "min_snr"]),
        ({"conditioning.kind": "timestep"}, ["conditioning"]),
        ({"preview.schedule": "discrete(linear,num_steps=10)", "preview.steps": 11}, ["preview", "choose 1 to 10"]),
        ({"preview.method": "unipc"}, ["preview.method", "ddim"]),
    ],
)
def test_refused_at_start_up(main, words, tmp_path, monkeypatch, changes, parts):
    monkeypatch.chdir(tmp_path)
    assert_one_line(main("train", "--workdir=made/run", *words(changes)), *parts)
    assert list(tmp_path.iterdir()) == []


def test_no_config_file(main, tmp_path):
    result = main("train", f"--workdir={tmp_path / 'run'}", "--config=configs/digit.py")
    assert_one_line(result, "config file 'configs/digit.py' not found")
    assert list(tmp_path.iterdir()) == []


def test_workdir_that_is_a_file(main, words, tmp_path):
    (tmp_path / "run").write_text("mine")
    assert_one_line(main("train", f"--workdir={tmp_path / 'run'}", *words()), f"{tmp_path / 'run'}: a file, where a folder is")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.fixture
def disposed():
    """`disposed(number, how)`: how this process takes a signal, as its parent may have settled it; put back afterwards."""
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield signal.signal
    for number, handler in usual.items():
        signal.signal(number, handler)


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 75)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_while_modules_load(disposed, number, code, monkeypatch, capfd):
    """An exception would be a page long, or be lost in somebody's `except`."""
    ended = []
    disposed(number, signal.SIG_DFL)
    monkeypatch.setattr(os, "_exit", ended.append)
    with signals.handled(cli.end_before_all):
        signal.raise_signal(number)
    assert ended == [code] and signal.getsignal(number) == signal.SIG_DFL
    assert capfd.readouterr().err == "noisesched: error: stopped by a signal before anything was begun\n"


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_that_the_parent_ignores_stays_ignored(disposed, number, code, monkeypatch, capfd):
    """As a shell's background jobs ignore SIGINT; the other one of the two still counts."""
    disposed(number, signal.SIG_IGN)
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("stopped"))
    with signals.handled(cli.end_before_all):
        signal.raise_signal(number)
    with monitor.Signals() as stop:
        stop.stepping = True
        signal.raise_signal(number)
        assert not stop.requested and signal.getsignal(number) == signal.SIG_IGN
        (other,) = {signal.SIGINT, signal.SIGTERM} - {number}
        signal.raise_signal(other)
        assert stop.requested
    assert signal.getsignal(number) == signal.SIG_IGN
    assert "saving, then stopping" in capfd.readouterr().err


def test_debug_shows_the_traceback(main):
    with pytest.raises(ValueError, match="unknown schedule"):
        main("plot", "cosin", "--debug")


# -- end to end


@pytest.fixture(scope="module")
def trained(run, words, tmp_path_factory):
    """A run of the small network, trained for six steps by a process that can import nothing but the package."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    code, out, err = run("train", f"--workdir={workdir}", *words({"preview.every": 6, "model.num_classes": 10}))
    assert code == 0, err
    assert "1,500 images" in out and "6 steps" in out and "step 6/6  loss" in out
    return workdir


def test_another_config_on_the_same_workdir(main, words, trained):
    before = trained.joinpath("config.json").read_bytes()
    other = words({"preview.every": 6, "model.num_classes": 10, "optimizer.learning_rate": 0.5})
    assert_one_line(main("train", f"--workdir={trained}", *other), "optimizer.learning_rate: 0.003 -> 0.5", "another --workdir")
    assert trained.joinpath("config.json").read_bytes() == before


def test_sampling_needs_only_the_workdir(run, trained, tmp_path):
    moved = trained.rename(tmp_path / "elsewhere")
    try:
        out = tmp_path / "pictures"
        asked = "--schedule linear 'shifted(cosine, by=-2)' --steps 2 --method heun --num_images=4 --labels 3 7"
        code, said, err = run("sample", f"--workdir={moved}", *shlex.split(asked), f"--out={out}")
        assert code == 0 and "Traceback" not in err, err
        assert f"2 x 4 images of step 6 in {out}: see overview.png" in said
        assert {path.name for path in out.iterdir()} == {"linear-heun-2", "shifted_cosine_by=-2-heun-2", "overview.png"}
        images = np.load(out / "linear-heun-2" / "samples.npy")
        assert images.dtype == np.uint8 and images.shape == (4, 8, 8, 1)
        settings = json.loads((out / "linear-heun-2" / "settings.json").read_text())
        assert settings["network_calls"] == 3 and settings["labels"] == [3, 7, 3, 7] and settings["checkpoint"] == 6
        assert math.isclose(settings["log_snrs"][0], -10.05, rel_tol=1e-3)
    finally:
        moved.rename(trained)


def test_training_again_goes_no_further(main, trained):
    code, out, err = main("train", f"--workdir={trained}")
    assert code == 0 and "this run is complete, all 6 steps are done" in out and "Traceback" not in err


def test_diverging_run(main, words, stand_in, tmp_path):
    """An absurd learning rate: the run stops with the step and its levels; what was saved before can be read."""
    changes = {
        "optimizer.learning_rate": 1e30,
        "optimizer.clip_norm": 0,
        "optimizer.warmup_steps": 0,
        "training.checkpoint_every": 1,
        "training.num_steps": 50,
    }
    code, _, err = main("train", f"--workdir={tmp_path / 'run'}", *words(changes))
    *_, last = err.splitlines()
    assert_one_line((code, "", last + "\n"), "not finite at step", "log-SNR", "checkpoints from before are kept", code=1)
    assert "Traceback" not in err
    with Checkpoints(Workdir(tmp_path / "run"), max_to_keep=None) as checkpoints:
        step, items = checkpoints.restore(training_step.init(stand_in(changes))[1]._asdict())
    stopped_at = int(last.split("at step ")[1].split(":")[0])
    assert 1 <= step < stopped_at and int(items["step"]) == step


def test_configs_of_the_repository_from_anywhere(main, tmp_path, monkeypatch):
    """They import one another, also where the working directory and the path do not lead to them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if Path(folder).resolve() not in (ROOT, tmp_path)])
    config = ROOT / "configs" / "cifar10_discrete.py"
    result = main("train", f"--config={config}", "--workdir=run", f"--config.data.data_dir={tmp_path}")
    assert_one_line(result, "'cifar10' is not prepared", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_from_before_the_package_had_folders_is_still_read(main, tmp_path):
    """It is sampled, evaluated, and trained on."""
    workdir = Path(shutil.copytree(ROOT / "tests" / "data" / "before_the_house" / "run", tmp_path / "run"))
    kept = json.loads((workdir / "config.json").read_text())
    code, out, err = main("sample", f"--workdir={workdir}", "--steps=2", "--num_images=3", f"--out={tmp_path / 'samples'}")
    assert code == 0 and "of step 4" in out, err
    asked = "--num_images=16 --noises=2 --profile_levels=5"
    code, out, err = main("evaluate", f"--workdir={workdir}", *asked.split(), f"--out={tmp_path / 'evaluation'}")
    assert code == 0 and (tmp_path / "evaluation" / "evaluation.json").exists(), err
    settings = [
        f"--config.{group}.{name}={value}" if isinstance(values, dict) else f"--config.{group}={values}"
        for group, values in kept.items()
        for name, value in (values.items() if isinstance(values, dict) else [(None, None)])
    ]
    longer = [f"--config={BASE}", *settings, "--config.training.num_steps=6", "--accept_changes"]
    code, out, err = main("train", f"--workdir={workdir}", *longer)
    assert code == 0 and "resuming at step 4" in out, err
    assert [line["step"] for line in read_metrics(workdir / "metrics.jsonl")] == [2, 4, 6]
    # Its config now states settings that there were not when it began.
    code, out, err = main("sample", f"--workdir={workdir}", "--steps=2", "--num_images=3", f"--out={tmp_path / 'samples'}")
    assert code == 0 and "of step 6" in out, err


# -- the one place where exceptions become words


@pytest.fixture
def plotting(monkeypatch):
    """`plotting(error)`: from now on `plot` raises that."""
    from noisesched.diagnosis import plot

    def raising(error):
        def raise_it(request):
            raise error

        monkeypatch.setattr(plot, "main", raise_it)

    return raising


def wrapped(cause):
    """Another exception for the same fault, as libraries raise it."""
    error = TypeError("while writing a shard")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "parts"),
    [
        (ValueError("no such\nthing"), 2, ["no such thing"]),
        (ValueError(), 2, ["ValueError"]),
        (OSError(errno.ENOENT, "No such file or directory", "/a/b"), 2, ["/a/b: No such file or directory"]),
        (OSError(errno.ENOENT, "No such file", b"/a/\xff"), 2, ["/a/\\udcff: No such file"]),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), 1, ["/a/b: No space left on device"]),
        (OSError(errno.EMFILE, "Too many open files", "/a/b"), 1, ["Too many open files", "ulimit -n"]),
        (RuntimeError("cannot open shard: Too many open files; errno 24"), 1, ["cannot open shard: Too many open files"]),
        (wrapped(OSError(errno.ENOSPC, "No space left on device", "/a/b")), 1, ["/a/b: No space left on device"]),
        (MemoryError(), 1, ["out of memory"]),
        (RuntimeError("can't start new thread"), 1, ["no further thread can be started", "ulimit -a"]),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), 2, ["surrogates not allowed"]),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating"), 1, ["RESOURCE_EXHAUSTED", "allocating"]),
        (monitor.Preempted("stopped by a signal at step 3"), 75, ["stopped by a signal at step 3"]),
        (ValueError("x" * 10**6), 2, ["xxx ... xxx"]),
        (ValueError("\ud800"), 2, ["\\ud800"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exceptions_are_told_in_one_line(main, plotting, error, code, parts):
    plotting(error)
    got, out, err = main("plot", "cosine")
    assert_one_line((got, out, err), *parts, code=code)
    assert len(err) < 1100


def test_an_interruption_that_python_drops_is_not_lost(main, monkeypatch):
    """As one that arrives in a callback of the garbage collector."""
    from noisesched.diagnosis import plot

    def interrupted(request):
        def callback(phase, given):
            if phase == "start":
                gc.callbacks.remove(callback)
                signal.raise_signal(signal.SIGINT)

        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(10)

    monkeypatch.setattr(plot, "main", interrupted)
    begin = time.monotonic()
    assert_one_line(main("plot", "cosine"), "interrupted", code=130)
    assert time.monotonic() - begin < 9


def test_another_interruption_ends_the_process_at_once(main, monkeypatch):
    from noisesched.diagnosis import plot

    def interrupted(request):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)

    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(plot, "main", interrupted)
    assert_one_line((main("plot", "cosine")[0], "", "noisesched: error: interrupted\n"), code=130)
    assert ended == [130]


@pytest.mark.parametrize("kind", [TypeError, KeyError, AttributeError, IndexError, AssertionError, OverflowError, RuntimeError])
def test_a_bug_of_ours_is_told_as_one(plotting, capsys, kind):
    """In one line, with its place; --debug shows the traceback."""
    plotting(kind("of a kind"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["plot", "cosine"])
    err = capsys.readouterr().err
    assert_one_line((ended.value.code, "", err), f"{kind.__name__}: ", "of a kind", "bug in noisesched", "--debug", code=1)
    with pytest.raises(kind, match="of a kind"):
        cli.main(["plot", "cosine", "--debug"])


def test_threads_that_cannot_start_are_found_before_libraries_wait_for_them(monkeypatch):
    started, start = [], threading.Thread.start

    def limited(self):
        if len(started) == 5:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    backend.check_threads(3)
    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError) as error:
        backend.check_threads(6)
    for thread in started:
        thread.join(10)
    assert len(started) == 5 and not any(thread.is_alive() for thread in started)
    assert cli.told(error.value) == (cli.told(RuntimeError("can't start new thread"))[0], 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train", "--workdir=w", "--accept_changes=true"), "--accept_changes takes no value, but is given 'true'"),
        (("train", "--workdir"), "--workdir needs a value"),
        (("sample", "--workdir=w", "--out=o", "--steps"), "--steps needs at least one value"),
        (("sample", "--workdir=w", "--out=o", "--steps=1e3"), "--steps: '1e3' is not a whole number from 1 up"),
        (("sample", "--workdir=w", "--out=o", "--spacing=even"), "--spacing: 'even' is none of "),
        (("evaluate", "--workdir=w", "--log_snr_min=low"), "--log_snr_min: 'low' is not a number"),
        (("sample", "--workdir=w"), "missing: --out"),
        (("trian",), "COMMAND: 'trian' is none of "),
        (("train", "--workdir=~nobody-here/run"), "there is no user 'nobody-here' here"),
        (("train", "--workdir=a\0b"), "has a zero byte, which no path has"),
        (("train", "--workdir=a\udcff"), "'--workdir=a\\udcff' is not text"),
        (("plot", "cosine\ud800"), "'cosine\\ud800' is not text"),
        (("plot", "cosine", "--wide=" + "x" * 10**5), "unknown argument '--wide=xxx"),
    ],
)
def test_words_that_are_none_are_told_in_our_words(main, arguments, told):
    code, out, err = main(*arguments)
    assert_one_line((code, out, err), told)
    assert len(err) < 600 and "invalid" not in err and "argument --" not in err and "choose from" not in err


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("data.flip=maybe", "data.flip='maybe' must be true or false"),
        ("training.num_steps=1.5", "training.num_steps='1.5' must be a whole number"),
        ("training.num_steps=inf", "training.num_steps='inf' must be a whole number"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate='fast' must be a number"),
        ("optimizer.warmup_steps=2147483648", "optimizer.warmup_steps=2147483648 must be below 2147483648"),
        ("data.data_dir=~nobody-here", "data.data_dir='~nobody-here': there is no user 'nobody-here' here"),
        ("data.path=~nobody-here/images", "data.path='~nobody-here/images': there is no user 'nobody-here' here"),
        ("data.data_dir=a\0b", "has a zero byte"),
    ],
)
def test_settings_are_refused_in_our_words(main, words, tmp_path, word, told):
    assert_one_line(main("train", f"--workdir={tmp_path / 'run'}", *words(), f"--config.{word}"), told)
    assert not (tmp_path / "run").exists()


def test_whole_numbers_may_be_written_as_powers_of_ten(small):
    assert small({"training.num_steps": "1e3", "training.log_every": "1e2"}).training.num_steps == 1000


@pytest.mark.parametrize(("command", "config"), [("train", "compare"), ("compare", "digits")])
def test_a_config_that_is_for_another_command(main, tmp_path, command, config):
    where = "--workdir" if command == "train" else "--out"
    other = {"train": "compare", "compare": "train"}[command]
    result = main(command, f"--config={config}", f"{where}={tmp_path / 'x'}")
    assert_one_line(result, f"{config}.py describes a {'comparison' if other == 'compare' else 'run'}", f"noisesched {other}")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_cannot_show_a_sign_ends_nothing(monkeypatch, plotting, stream):
    written = io.BytesIO()
    monkeypatch.setattr(sys, stream, io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(backend, "prepare", lambda: None)
    if stream == "stderr":
        plotting(ValueError("naïve \ud800"))
        with pytest.raises(SystemExit):
            cli.main(["plot", "cosine"])
        assert b"na\\xefve \\ud800" in written.getvalue()
    else:
        from noisesched.diagnosis import plot

        monkeypatch.setattr(plot, "main", lambda request: print("naïve → ∞ \udcff"))
        cli.main(["plot", "cosine"])
        assert written.getvalue() == b"na\\xefve \\u2192 \\u221e \\udcff\n"


@pytest.mark.parametrize(
    ("fault", "why"), [(AssertionError(), ""), (RuntimeError("Unable to\ninitialize"), " (Unable to initialize)")]
)
def test_devices_that_are_not_there(monkeypatch, fault, why):
    def devices():
        raise fault

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(backend.BackendError) as error:
        backend.start()
    assert str(error.value).startswith(f"JAX_PLATFORMS='cpu': JAX finds no such device here{why}; ")


@pytest.mark.parametrize("name", ["schedules", "methods", "guidance"])
def test_what_the_help_lists_is_described_in_whole_sentences(name):
    rows = re.split("\n  (?! )", flags.LISTS[name]())[1:]
    assert len(rows) > 3
    for row in rows:
        assert row.rstrip()[-1] in ".)", row
