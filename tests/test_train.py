"""The training program: its step's arithmetic, and runs that are killed, stopped, resumed, or go wrong."""

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from noisesched.data import datasets, pipeline
from noisesched.runs import config as configuration
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.metrics_log import read_metrics
from noisesched.runs.workdir import Workdir
from noisesched.training import benchmark, loop, monitor, resume
from noisesched.training import step as training_step

# -- arithmetic


@pytest.mark.parametrize(("decay", "middle", "end"), [("constant", 2e-3, 2e-3), ("linear", 1e-3, 0.0), ("cosine", 1e-3, 0.0)])
def test_learning_rate(small, decay, middle, end):
    changes = {"optimizer.learning_rate": 2e-3, "optimizer.warmup_steps": 10, "optimizer.decay": decay, "training.num_steps": 110}
    rate = training_step.learning_rate(small(changes))
    np.testing.assert_allclose([rate(step) for step in range(10)], 2e-3 * np.arange(1, 11) / 10, rtol=1e-5)
    np.testing.assert_allclose([rate(10), rate(60), rate(110)], [2e-3, middle, end], rtol=1e-5, atol=1e-9)
    falling = np.array([rate(step) for step in range(10, 111)])
    assert (np.diff(falling) <= 0).all()
    if decay == "cosine":
        np.testing.assert_allclose(falling, 1e-3 * (1 + np.cos(np.pi * np.arange(101) / 100)), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("warmup", [0, 1, 6, 50])
def test_learning_rate_at_the_edges(small, warmup):
    rate = training_step.learning_rate(small({"optimizer.learning_rate": 1.0, "optimizer.warmup_steps": warmup}))  # 6 steps
    assert float(rate(0)) == pytest.approx(1 / max(warmup, 1)) and float(rate(5)) > 0


@pytest.mark.parametrize(("clip_norm", "kept"), [(0.0, 1.0), (1.0, 0.2), (100.0, 1.0)])
def test_clipping_is_of_the_global_norm(small, clip_norm, kept):
    optimizer = training_step.make_optimizer(small({"optimizer.clip_norm": clip_norm, "optimizer.b1": 0.9}))
    params = {"a": jnp.zeros(1), "b": jnp.zeros(2)}
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([0.0, -4.0])}  # of norm 5
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    states = jax.tree.leaves(state, is_leaf=lambda node: hasattr(node, "mu"))
    first_moment = next(node.mu for node in states if hasattr(node, "mu"))
    np.testing.assert_allclose(first_moment["a"], 0.1 * 3 * kept, rtol=1e-6)
    np.testing.assert_allclose(first_moment["b"], [0.0, -0.1 * 4 * kept], rtol=1e-6)


def test_weight_decay_is_apart_from_the_gradient(small):
    """AdamW: with no gradient a parameter shrinks by learning rate x decay, which the adaptive scaling does not touch."""
    optimizer = training_step.make_optimizer(
        small({"optimizer.learning_rate": 0.1, "optimizer.warmup_steps": 0, "optimizer.weight_decay": 0.5})
    )
    params = {"a": jnp.array([2.0])}
    updates, _ = optimizer.update({"a": jnp.zeros(1)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.1 * 0.5 * 2.0, rtol=1e-6)


@pytest.fixture(scope="module")
def steps(small):
    """The states before and after each of four steps of the small network, and their metrics."""
    config = small({"training.ema_decay": 0.25})
    definition, state = training_step.init(config)
    step = jax.jit(lambda state, batch: training_step.make_step(config, definition)(state, batch, None))
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8),
        "label": np.zeros(16, np.int32),
        "index": np.arange(16, dtype=np.int32),
    }
    states, metrics = [state], []
    for _ in range(4):
        state, results = step(state, batch)
        states.append(state)
        metrics.append(results)
    return states, metrics


def test_average_of_the_parameters(steps):
    """ema_s = keep ema + (1 - keep) params with keep = min(decay, (1 + s) / (10 + s)): in closed form, weights that sum to 1."""
    states, _ = steps
    keep = [min(0.25, (1 + s) / (10 + s)) for s in range(4)]  # 0.1, 0.18, 0.25, 0.25
    weights = [np.prod(keep), *((1 - keep[s]) * np.prod(keep[s + 1 :]) for s in range(4))]
    assert sum(weights) == pytest.approx(1.0)
    average = lambda *values: sum(w * v for w, v in zip(weights, values, strict=True))
    expected = jax.tree.map(average, *(state.params for state in states))
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7), states[-1].ema, expected)


def test_the_same_batch_is_seen_under_new_noise_every_step(steps):
    """The network hardly changes in a step of warm-up: losses differ by the noise that a step draws, and the steps count."""
    states, metrics = steps
    assert [int(state.step) for state in states] == [0, 1, 2, 3, 4]
    assert len({float(m["loss"]) for m in metrics}) == 4
    assert all(np.isinf(m["bad_log_snr_min"]) and np.isinf(m["bad_log_snr_max"]) for m in metrics)


# -- runs, in this process


def saved(workdir, config, step=None):
    """A checkpoint as {name: array}, read back."""
    state = training_step.init(config)[1]
    with Checkpoints(Workdir(workdir), max_to_keep=None) as checkpoints:
        step, items = checkpoints.restore(state._asdict(), step)
    return step, {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(items)}


def assert_bit_identical(got, want):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_stop_asked_for_in_the_middle_of_a_preview(small, tmp_path, monkeypatch):
    """What is said to be saved is saved; the same call goes on, and again when complete does nothing."""
    config = small({"preview.every": 2, "training.checkpoint_every": 6})
    write_png, lines = loop.write_png, []

    def interrupted(path, picture):
        write_png(path, picture)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_png", interrupted)
        with pytest.raises(loop.TrainingStopped, match="stopped by a signal at step 3, which is saved; the same"):
            loop.train(config, tmp_path / "run", lines.append)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert saved(tmp_path / "run", config)[0] == 3
    state = loop.train(config, tmp_path / "run", lines.append)
    assert any("resuming at step 3" in line for line in lines) and int(state.step) == 6
    assert sorted(os.listdir(tmp_path / "run" / "samples")) == [f"step_000000{n}.png" for n in (2, 4, 6)]
    assert [record["step"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    lines.clear()
    again = loop.train(config, tmp_path / "run", lines.append)
    assert lines == [f"{tmp_path / 'run'}: this run is complete, all 6 steps are done; there is nothing left to train"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    jax.tree.map(np.testing.assert_array_equal, again._asdict(), state._asdict())


def test_stop_asked_for_in_the_last_step_is_told_to_the_caller(small, tmp_path, monkeypatch):
    """Who trains several runs does not begin another."""
    config = small({"preview.every": 6})
    write_png = loop.write_png
    monkeypatch.setattr(loop, "write_png", lambda *given: (write_png(*given), os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(loop.TrainingStopped, match="at step 6, which is saved: the run's last"):
        loop.train(config, tmp_path / "run", lambda line: None)
    assert saved(tmp_path / "run", config)[0] == 6


def test_not_finite_loss_stops_the_run(small, tmp_path, monkeypatch):
    """At step 5, in examples of log-SNR above 1 alone: both are named, and the checkpoint of step 4 is intact."""
    config, make_loss = small(), training_step.make_loss

    def breaking(config, definition):
        def loss(params, batch, key):
            good, (losses, log_snr) = make_loss(config, definition)(params, batch, key)
            fifth = (key == jax.random.fold_in(jax.random.key(config.seed), 4)).all()
            losses = losses * jnp.where(fifth & (log_snr > 1), jnp.nan, 1.0)
            return losses.mean(), (losses, log_snr)

        return loss

    monkeypatch.setattr(training_step, "make_loss", breaking)
    with pytest.raises(loop.TrainingStopped) as stopped:
        loop.train(config, tmp_path / "run", lambda line: None)
    message = str(stopped.value)
    assert message.startswith("not finite at step 5: loss nan, gradient norm nan, in examples of log-SNR ")
    assert "\n" not in message
    low, high = map(float, message.split("log-SNR ")[1].split(";")[0].split(" to "))
    assert 1 < low < high
    step, leaves = saved(tmp_path / "run", config)
    assert step == 4 and all(np.isfinite(leaf).all() for leaf in leaves.values())
    assert [record["step"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.fixture
def spoiled(monkeypatch):
    """Losses above log-SNR 1 are NaN in steps 3, 5 and 8."""
    make_loss = training_step.make_loss

    def spoiling(config, definition):
        def loss(params, batch, key):
            _, (losses, log_snr) = make_loss(config, definition)(params, batch, key)
            now = jnp.stack([(key == jax.random.fold_in(jax.random.key(config.seed), step - 1)).all() for step in (3, 5, 8)])
            losses = losses * jnp.where(now.any() & (log_snr > 1), jnp.nan, 1.0)
            return losses.mean(), (losses, log_snr)

        return loss

    monkeypatch.setattr(training_step, "make_loss", spoiling)


def test_updates_that_are_not_finite_are_skipped_and_counted(spoiled, small, tmp_path):
    """Two are allowed. The run is stopped after the first; resumed, it knows of it, and stops at the third of the whole run."""
    config = small({"training.skip_nonfinite": 2, "training.num_steps": 10, "training.checkpoint_every": 7})
    lines = []

    def say(line):
        lines.append(line)
        if "1 of at most 2" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(loop.TrainingStopped, match="stopped by a signal at step [4-7], which is saved"):
        loop.train(config, tmp_path / "run", say)
    with pytest.raises(loop.TrainingStopped, match="not finite at step 8: .*; 2 such updates were skipped before") as stopped:
        loop.train(config, tmp_path / "run", say)
    assert "\n" not in str(stopped.value)
    skipped = [line for line in lines if "update skipped" in line]
    assert [line.split(":")[0] for line in skipped] == ["not finite at step 3", "not finite at step 5"]
    assert [line.partition("skipped, ")[2] for line in skipped] == ["1 of at most 2", "2 of at most 2"]
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["skipped"] for record in records] == [0, 0, 1, 1, 2, 2, 2]
    assert [record["step"] for record in records if np.isnan(record["loss"])] == [3, 5]
    # The learning rate is of the optimizer's own count, which a skipped update does not advance.
    assert [record["learning_rate"] for record in records][3] == pytest.approx(float(training_step.learning_rate(config)(2)))
    step, leaves = saved(tmp_path / "run", config)
    assert step == 7 and all(np.isfinite(leaf).all() for leaf in leaves.values())


def test_the_benchmark_takes_the_steps_of_train(small, tmp_path):
    """It times the same loop: bit-identical parameters, and nothing of its own between the steps."""
    config = small()
    trained = loop.train(config, tmp_path / "run", lambda line: None)
    definition, state = training_step.init(config)
    with pipeline.batches(loop.open_data(config), batch_size=16, seed=config.seed, flip=config.data.flip) as stream:
        timed = benchmark.Loop(config, training_step.make_step(config, definition), state, stream)
        for dispatches in (4, 2):
            timed.run(dispatches)
        timed.record.drain()
    assert timed.done == timed.record.progress.step == 6
    jax.tree.map(np.testing.assert_array_equal, timed.state._asdict(), trained._asdict())


# -- signs of life


class Kept:
    """Metrics in a list."""

    def __init__(self):
        self.records = []

    def write(self, step, scalars):
        self.records.append({"step": step} | scalars)


def test_signs_of_life(small, monkeypatch):
    """A log line tells step time, input wait and memory; where log lines are far apart, others tell what the program is doing,
    even while it stands still."""
    config, kept, lines = small({"training.log_every": 2, "training.num_steps": 4}), Kept(), []
    monkeypatch.setattr(monitor, "SILENCE", 0.1)
    monkeypatch.setattr(monitor, "RUN_AHEAD", 0)
    results = {name: jnp.ones(1) for name in ("loss", "grad_norm", "bad_log_snr_min", "bad_log_snr_max")}

    def said(pause):
        before = len(lines)
        time.sleep(pause)
        return lines[before:]

    with monitor.Progress(lines.append, 4) as progress:
        with progress.doing("preparing the data"):
            assert all(re.match(r"preparing the data, \d+ s so far  ", line) for line in said(0.5)) and lines
        record = monitor.Recorder(config, training_step.learning_rate(config), kept, 0, progress)
        with progress.doing("compiling the training step"):
            compiling = said(0.5)
        for step in range(2):
            record.waiting(lambda: time.sleep(0.03))
            time.sleep(0.01)
            record.dispatched(step, results)
        training = said(0.5)
        with progress.doing("saving a checkpoint"), progress.doing("waiting for the disk"):
            record.dispatched(2, results)
        training += said(0.5)
        record.dispatched(3, results)
    progress._thread.join(1)
    assert not progress._thread.is_alive()
    assert compiling and all(re.match(r"step 0/4  compiling the training step, \d+ s so far  ", line) for line in compiling)
    assert len(training) >= 2
    assert all(re.match(r"step [23]/4  training, last step done \d+ s ago  .* MiB of the process", line) for line in training)
    logged = [line for line in lines if "loss" in line]
    assert [line.split("  ")[0] for line in logged] == ["step 2/4", "step 4/4"]
    assert "ms/step" in logged[0] and "input wait" in logged[0] and "MiB of the process (peak" in logged[0]
    for line in logged:
        step, each, rate, minutes, seconds = re.match(
            r"step (\d+)/4  .*  ([\d.,]+) ms/step, ([\d.]+)/s  .*  (\d+)m(\d+)s left$", line
        ).groups()
        assert float(each) * float(rate) == pytest.approx(1000, rel=0.05)
        assert 60 * int(minutes) + int(seconds) == pytest.approx((4 - int(step)) * float(each) / 1000, abs=0.51)
    first = kept.records[0]
    assert 0.04 <= first["step_seconds"] and 0.01 < first["input_wait"] < 0.9
    assert 2**20 < first["process_bytes"] <= 1.01 * first["process_bytes_peak"]


def test_pace_is_of_steps_alone(monkeypatch):
    """Steps of 2 s, the first compiled for 60 s, a checkpoint of 30 s; losses looked at four steps late, the last at once."""
    now, found = [0.0], []
    progress = monitor.Progress(lambda line: None, 10, show=False)
    monkeypatch.setattr(monitor.time, "monotonic", lambda: now[0])
    pace = monitor.Pace(progress)
    for step in range(1, 11):
        with progress.doing("compiling") if step == 1 else contextlib.nullcontext():
            now[0] += 60 * (step == 1)
        pace.begin(0)
        now[0] += 2
        if step > 4:
            found.append(pace.at(step))
        if step == 7:
            with progress.doing("saving"):
                now[0] += 30
    assert [*found, *(pace.at(10) for _ in range(4))] == pytest.approx([2.0] * 10)


def test_pace_of_a_single_step_is_its_whole_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(monitor.time, "monotonic", lambda: now[0])
    pace = monitor.Pace(monitor.Progress(lambda line: None, 1, show=False))
    now[0] += 3
    pace.begin(1)
    assert pace.at(1) == 3


def test_memory_is_the_devices_where_they_tell(monkeypatch):
    class Device:
        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return {"bytes_in_use": self.used, "peak_bytes_in_use": 2 * self.used, "bytes_limit": 100}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(3 * 2**20), Device(5 * 2**20)])
    assert monitor.memory_in_use() == {"device_bytes": 5 * 2**20, "device_bytes_peak": 10 * 2**20}
    assert monitor.in_words(monitor.memory_in_use()) == "5 MiB of the device (peak 10)"


@pytest.mark.parametrize(
    ("start", "end", "steps", "first", "last"), [(0, 100, 4, 10, 14), (30, 100, 4, 40, 44), (0, 12, 4, 8, 12), (8, 12, 9, 8, 12)]
)
def test_profiled_steps(monkeypatch, start, end, steps, first, last):
    calls, now = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *given, **options: calls.append(now[-1]))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(now[-1]))
    lines = []
    with monitor.Profile("folder", steps, start, end, lines.append) as profile:
        for step in range(start, end):
            now.append(step)
            with profile.step(step, 1):
                now.append(step + 1)
            profile.dispatched(step + 1, np.zeros(1))
    assert calls == [first, last] and len(lines) == 1 and f"steps {first + 1} to {last} in folder" in lines[0]


def test_no_profile_into_a_bucket():
    with pytest.raises(ValueError, match="local folder"):
        monitor.Profile("gs://bucket/profile", 3, 0, 10, print)


def test_another_config_is_refused(small, tmp_path):
    workdir = Workdir(tmp_path / "run")
    resume.adopt(workdir, small())
    resume.adopt(workdir, small())  # the same is not
    workdir.metrics.write_text('{"step": 1}\n')
    text = workdir.config.read_text()
    other = small({"optimizer.learning_rate": 0.5, "model.multipliers": "(1,2)"})
    with pytest.raises(configuration.ConfigError) as refused:
        resume.adopt(workdir, other)
    message = str(refused.value)
    assert "optimizer.learning_rate: 0.003 -> 0.5" in message and "model.multipliers: [1] -> [1, 2]" in message
    assert "\n" not in message and message.count("->") == 2 and "leave out --config" in message
    assert workdir.config.read_text() == text


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints/2/leaves", "checkpoints/4.corrupt/leaves"])
def test_another_config_replaces_that_of_a_run_without_a_step(small, tmp_path, left):
    """As when it did not fit into memory. What a step has left, damaged or not, is a run, whose config stays."""
    workdir, other = Workdir(tmp_path / "run"), small({"training.batch_size": 8, "model.multipliers": "(1,2)"})
    resume.adopt(workdir, small())
    workdir.metrics.touch()
    workdir.checkpoints.mkdir()
    assert resume.adopt(workdir, other) == [] and configuration.from_dict(workdir.read_config()) == other
    path = tmp_path / "run" / left
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    with pytest.raises(configuration.ConfigError, match="another configuration"):
        resume.adopt(workdir, small())
    assert configuration.from_dict(workdir.read_config()) == other


# -- runs, killed: the real command line

LONG = {
    "training.num_steps": 96,
    "training.checkpoint_every": 4,
    "preview.every": 48,
    "model.num_classes": 10,
    "data.flip": "true",
}


def until(condition, process, timeout=100):
    """Waits for a condition on the disk of a running process."""
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(run, words, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, out, err = run("train", f"--workdir={workdir}", "--profile=3", *words(LONG))
    assert code == 0, err
    assert f"profile of steps 11 to 13 in {workdir}/profile: tensorboard --logdir={workdir}/profile" in out
    assert "96 steps" in out and "step 96/96" in out and "Traceback" not in err
    return workdir


def test_killed_again_and_again_a_run_ends_the_same(uninterrupted, start, run, words, small, tmp_path):
    workdir = tmp_path / "run"
    command = ("train", f"--workdir={workdir}", *words(LONG))

    def lines():
        return (workdir / "metrics.jsonl").read_bytes().count(b"\n") if (workdir / "metrics.jsonl").exists() else 0

    # kill -9, before the first checkpoint and in the thick of it: 24 checkpoints are written, so most likely during one.
    for count, pause in ((1, 0.0), (40, 0.013)):
        process = start(*command)
        until(lambda count=count: lines() >= count, process)
        time.sleep(pause)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL and 0 < lines() < 96

    # SIGTERM: saves, says so, and ends with the exit code that asks for the same command again.
    process = start("train", f"--workdir={workdir}")  # the workdir knows its config
    before = lines()
    until(lambda: lines() > before + 3, process)  # it is back in its loop
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert "resuming at step" in out
    assert process.returncode == 75 and "Traceback" not in err
    stopped = int(err.split("stopped by a signal at step ")[1].split(",")[0])
    assert err.splitlines()[0] == "saving, then stopping (once more to stop at once)" and "the same command continues" in err

    # The same command to the end.
    code, out, err = run(*command)
    assert code == 0, err
    assert f"resuming at step {stopped}\n" in out
    config = small(LONG)
    (step, got), (_, want) = saved(workdir, config), saved(uninterrupted, config)
    assert step == 96
    assert_bit_identical(got, want)
    mine, theirs = (read_metrics(path / "metrics.jsonl") for path in (workdir, uninterrupted))
    assert [record["step"] for record in mine] == list(range(1, 97))
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [record[name] for record in mine] == [record[name] for record in theirs]
    assert json.loads((workdir / "config.json").read_text()) == json.loads((uninterrupted / "config.json").read_text())


def children(process):
    """The input workers of a running process."""
    found = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "spawn_main" in line]


def test_faults_of_the_input(start, words, small, tmp_path):
    """Read by a worker process, nothing kept in memory: the data file is truncated in mid-run; the worker is killed: each time a
    line, exit code 1, and what was done is saved. The file vanishes: the worker has it open. In the end no step is missing."""
    datasets.digits(str(tmp_path))
    (file,) = (tmp_path / "digits" / "1.0.0").glob("digits-train*")
    content, workdir = file.read_bytes(), tmp_path / "run"
    # No end in sight, or the worker, which reads up to some seventy batches ahead, would be done and gone before the fault.
    config = LONG | {
        "training.num_steps": 100_000,
        "training.checkpoint_every": 40,
        "preview.every": 0,
        "data.num_workers": "1",
        "data.data_dir": str(tmp_path),
    }

    def lines():
        return (workdir / "metrics.jsonl").read_bytes().count(b"\n") if (workdir / "metrics.jsonl").exists() else 0

    def running():
        process, before = start("train", f"--workdir={workdir}", *words(config)), lines()
        until(lambda: lines() > before, process)
        return process

    def stopped(process, says):
        out, err = process.communicate(timeout=100)  # no hang: the input's own timeout is longer
        assert process.returncode == 1 and len(err.splitlines()) == 1, err
        found = re.fullmatch(
            f"noisesched: error: data set 'digits', train: {says}; step ([0-9]+) is saved: the same command continues from it",
            err.strip(),
        )
        assert found, err
        assert saved(workdir, small(config))[0] == int(found[1]) > 0
        return int(found[1])

    process = running()
    os.truncate(file, len(content) // 2)
    first = stopped(process, "cannot read example [0-9]+: (?:its file is cut short|.*orrupt.*)")

    file.write_bytes(content)
    process = running()
    (worker,) = children(process)
    os.kill(worker, signal.SIGKILL)
    second = stopped(
        process, f"an input worker process died .process {worker}, by signal 9, SIGKILL, as the system does when memory runs out."
    )
    assert second > first

    process = running()
    file.unlink()
    so_far = lines()
    until(lambda: lines() >= so_far + 100, process)  # more than was read ahead
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75 and f"resuming at step {second}\n" in out, err
    last = Workdir(workdir).latest_step()
    assert last > second + 100
    assert [line["step"] for line in read_metrics(Workdir(workdir).metrics)] == list(range(1, last + 1))


def test_a_signal_before_the_first_step_is_no_fault_of_what_it_interrupts():
    """Whoever catches exceptions, as the restoring of a checkpoint does, does not take it for damage."""
    with pytest.raises(monitor.Preempted, match="before the first step"), monitor.Signals() as stop:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pytest.fail("caught")
    assert stop.requested and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_batch_that_never_comes_keeps_nobody_who_was_signalled(small, tmp_path, monkeypatch):
    """What is done is saved."""

    def stuck(self):
        taken.append(usual(self))
        if len(taken) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
            pytest.fail("it waited")
        return taken[-1]

    usual, taken = pipeline.Batches.__next__, []
    monkeypatch.setattr(pipeline.Batches, "__next__", stuck)
    with pytest.raises(monitor.Preempted, match="stopped by a signal at step 3, which is saved"):
        loop.train(small(), tmp_path / "run", lambda line: None)
    assert saved(tmp_path / "run", small())[0] == 3


@pytest.mark.parametrize("stepping", [False, True])
def test_a_signal_whose_exception_python_drops_is_not_lost(stepping):
    """As in a callback of the garbage collector, or in a destructor."""

    class Dropped:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0)

    with contextlib.suppress(monitor.Preempted), monitor.Signals() as stop:
        stop.stepping = stepping
        Dropped()
        if stepping:
            assert stop.requested
            return
        time.sleep(10)
        pytest.fail("the signal was lost")
    assert stop.requested


def test_the_same_signal_again_ends_the_process_at_once(monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with monitor.Signals() as stop:
        stop.stepping = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # another: of one event, as a launcher may make both of
        assert ended == []
        signal.raise_signal(signal.SIGTERM)
        assert ended == [143]
        signal.raise_signal(signal.SIGINT)
    assert ended == [143, 130] and capfd.readouterr().err.endswith("\n")


STUCK = """
import threading
from noisesched import __main__
from noisesched.training import loop

def stopped(*given, **named):
    error = loop.TrainingStopped("nothing was read for 300 s")
    error.stuck = True
    raise error

loop.train = stopped
threading.Thread(target=threading.Event().wait).start()  # a read that never ends, as of Grain's threads
__main__.main(["train", "--config={config}", "--workdir=unused"])
"""


def test_reading_that_never_ends_does_not_keep_the_process(words, tmp_path):
    program = STUCK.format(config=words()[0].partition("=")[2])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (1, "noisesched: error: nothing was read for 300 s\n")


def test_a_data_file_that_is_gone_before_it_is_read(small, tmp_path, monkeypatch):
    """Images in no memory, and a file not yet opened. Nothing is trained, so that nothing is saved."""
    datasets.digits(str(tmp_path / "data"))
    open_split = pipeline.open_split

    def without_file(*given, **named):
        split = open_split(*given, **named)
        for file in (tmp_path / "data").rglob("digits-train*"):
            file.unlink()
        return split

    monkeypatch.setattr(pipeline, "open_split", without_file)
    with pytest.raises(loop.TrainingStopped) as stopped:
        loop.train(small({"data.data_dir": str(tmp_path / "data")}), tmp_path / "run", lambda line: None)
    message = str(stopped.value)
    assert message.startswith("data set 'digits', train: cannot read example ") and "No such file or directory" in message
    assert "digits-train.array_record" in message and message.endswith("; the last checkpoint is as it was")
    assert "\n" not in message and not stopped.value.stuck


def test_the_profile_holds_its_steps(uninterrupted):
    (folder,) = (uninterrupted / "profile" / "plugins" / "profile").iterdir()
    (trace,) = folder.glob("*.trace.json.gz")
    (_,) = folder.glob("*.xplane.pb")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert sorted(set(map(int, steps))) == [10, 11, 12]  # counted from 0


def test_a_run_leaves_its_files(uninterrupted):
    names = lambda folder: sorted(path.name for path in folder.iterdir())
    assert names(uninterrupted) == [".lock", "checkpoints", "config.json", "metrics.jsonl", "profile", "samples", "tensorboard"]
    assert names(uninterrupted / "samples") == [f"step_0000{step}.png" for step in ("048", "096")]
    assert names(uninterrupted / "checkpoints") == ["92", "96"]
    first, *_, last = read_metrics(uninterrupted / "metrics.jsonl")
    assert last["loss"] < 0.9 * first["loss"]
    assert {
        "loss",
        "grad_norm",
        "learning_rate",
        "images_per_second",
        "input_wait",
        "step",
        "step_seconds",
        "process_bytes",
        "process_bytes_peak",
    } == set(last)
