"""Several real processes of one job, of two fake devices each, over loopback: the numbers of one, and no hang."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import QUICK, ROOT

from noisesched.evaluation import evaluate
from noisesched.runs import requests
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.metrics_log import read_metrics
from noisesched.runs.workdir import Workdir
from noisesched.runtime import cluster, meeting

CHANGES = {
    "training.num_steps": 6,
    "training.checkpoint_every": 2,
    "training.batch_size": 16,
    "preview.every": 6,
    "preview.num_images": 5,
}


@pytest.fixture(scope="module")
def job(user_cache, tmp_path_factory):
    """`job("train", ..)`: the processes, started, of a job of two with two devices each. `last`: words for the last alone."""
    site = tmp_path_factory.mktemp("site")
    (site / "noisesched").symlink_to(ROOT / "noisesched")

    def start(*arguments, processes=2, devices=2, last=(), platforms=("cpu", "cpu")):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {
            "PYTHONPATH": str(site),
            "XDG_CACHE_HOME": str(user_cache),
            "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
        }
        begun = []
        for k in range(processes):
            command = [sys.executable, "-m", "noisesched", *map(str, arguments)]
            if processes > 1:
                command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", f"--process_id={k}"]
            begun.append(
                subprocess.Popen(
                    [*command, *(last if k == processes - 1 else ())],
                    env=environment | {"JAX_PLATFORMS": platforms[k]},
                    text=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
        return begun

    return start


def ended(processes, seconds=600):
    """[(exit code, stdout, stderr)] of processes, all of which end by themselves within so many seconds."""
    until, found = time.monotonic() + seconds, []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(until - time.monotonic(), 0.1))
            told = [line for line in err.splitlines() if "recoverable task" not in line]  # JAX's word on our choice
            found.append((process.returncode, out, "\n".join(told)))
    finally:
        for process in processes:
            process.kill()
    return found


def finished(processes):
    done = ended(processes)
    assert [code for code, _, _ in done] == [0] * len(processes), done
    return done


def losses(folder):
    return [line["loss"] for line in read_metrics(Workdir(folder).metrics)]


def state(folder, step=6):
    """All arrays of a checkpoint, by name."""
    with Checkpoints(Workdir(folder), None) as checkpoints:
        record = json.loads((Workdir(folder).checkpoints / str(step) / "leaves" / "metadata").read_text())["content"]
        template = {
            item: {name: np.zeros(leaf["shape"], leaf["dtype"]) for name, leaf in leaves.items()}
            for item, leaves in record["items"].items()
        }
        return checkpoints.restore(template, step)[1]


def assert_same_run(folder, other):
    np.testing.assert_allclose(losses(folder), losses(other), rtol=1e-5)
    ours, theirs = state(folder), state(other)
    for item, leaves in theirs.items():
        for name, leaf in leaves.items():
            # Where a gradient is zero, Adam makes updates of its rounding: in all less than half of one of the six updates.
            np.testing.assert_allclose(ours[item][name], leaf, rtol=1e-3, atol=1e-3, err_msg=f"{item}/{name}")


@pytest.fixture(scope="module")
def alone(job, words, tmp_path_factory):
    """The workdir of a run of one process with one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finished(job("train", f"--workdir={folder}", *words(CHANGES), processes=1, devices=1))
    return folder


@pytest.fixture(scope="module", params=["pmap", "fsdp"])
def together(request, job, words, tmp_path_factory):
    """The same run by two processes of two devices each."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    (_, out, err), (_, other, _) = finished(
        job("train", f"--workdir={folder}", *words(CHANGES | {"training.parallel": request.param}))
    )
    assert "4 x cpu of 2 processes; 6 steps" in out and "step 6/6" in out
    assert "step" not in other and "parameters" not in other  # one of them logs; Gloo's lines may be torn
    return folder


def test_two_processes_train_as_one(alone, together):
    assert_same_run(together, alone)
    assert [path.name for path in sorted((together / "samples").iterdir())] == ["step_0000006.png"]
    assert len(list((together / "tensorboard").iterdir())) == 1


def test_all_write_the_checkpoint(together):
    written = [path.name for path in (together / "checkpoints" / "6").rglob("ocdbt.process_*")]
    assert {"ocdbt.process_0", "ocdbt.process_1"} <= set(written)


@pytest.mark.parametrize("together", ["fsdp"], indirect=True)
def test_a_checkpoint_of_many_devices_goes_on_with_one(alone, together, job, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(together, folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    [(_, out, _)] = finished(job("train", f"--workdir={folder}", processes=1, devices=1))
    assert "resuming at step 4" in out
    assert_same_run(folder, alone)


def test_a_checkpoint_of_one_device_goes_on_with_many(alone, job, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    assert "resuming at step 4" in finished(job("train", f"--workdir={folder}"))[0][1]
    assert_same_run(folder, alone)


def test_samples_and_evaluations_do_not_depend_on_the_number_of_processes(alone, job, tmp_path):
    """Two processes against this one, of eight devices."""
    asked = ("--num_images=20", "--noises=2", "--profile_levels=5", "--metrics", "frechet(raw)", "--steps=3", "--num_samples=40")
    finished(job("evaluate", f"--workdir={alone}", *asked, f"--out={tmp_path / 'two'}"))
    evaluate.run(
        requests.Evaluate(
            workdir=str(alone),
            num_images=20,
            noises=2,
            profile_levels=5,
            metrics=("frechet(raw)",),
            steps=3,
            num_samples=40,
            out=str(tmp_path / "one"),
        )
    )
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert two["bits_per_dim"]["value"] == pytest.approx(one["bits_per_dim"]["value"], rel=1e-5)
    assert two["zero_snr"]["spread"] == pytest.approx(one["zero_snr"]["spread"], rel=1e-4)
    assert two["quality"] == pytest.approx(one["quality"], rel=1e-3)


def test_death_and_signal(job, words, tmp_path):
    """kill -9 of one: the other says so and stops, whichever it is. Started again, they go on; SIGTERM to one stops both at one
    step, which is saved."""
    folder, changes, before = tmp_path / "run", CHANGES | {"training.num_steps": 100_000, "preview.every": 0}, -1
    for killed in (1, 0):
        processes = job("train", f"--workdir={folder}", *words(changes), devices=1)
        wait_for(lambda: (Workdir(folder).latest_step() or -1) > before, processes)  # noqa: B023
        processes[killed].kill()
        code, _, err = ended(processes)[1 - killed]
        told = f"noisesched: error: (.*another process of this job is gone|process {killed} of 2 gone)"
        assert code == 1 and any(re.match(told, line) for line in err.splitlines()), err  # beside it may stand what JAX says
        assert "Traceback" not in err
        before = Workdir(folder).latest_step()

    processes = job("train", f"--workdir={folder}", devices=1)
    wait_for(lambda: Workdir(folder).latest_step() > before, processes)
    processes[1].send_signal(signal.SIGTERM)
    done = ended(processes)
    assert [code for code, _, _ in done] == [75, 75], done
    assert f"resuming at step {before}" in done[0][1]
    stopped = [re.search(r"stopped by a signal at step (\d+), which is saved", err)[1] for _, _, err in done]
    assert stopped[0] == stopped[1] == str(Workdir(folder).latest_step())


def wait_for(condition, processes, seconds=600):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until and all(process.poll() is None for process in processes), ended(processes, 1)
        time.sleep(0.05)


def test_one_that_differs_stops_all(job, words, tmp_path):
    done = ended(job("train", f"--workdir={tmp_path / 'run'}", *words(CHANGES), last=["--config.seed=1"]))
    assert [code for code, _, _ in done] == [1, 2]
    told = 'process 1 has another command line than process 0: --config.seed "1" against "absent"; give all processes the same'
    assert f"error: {told}" in done[1][2] and f"error: process 1 of 2 failed: {told}" in done[0][2]


def test_one_whose_devices_do_not_start_stops_all(job, tmp_path):
    """The others wait for them inside JAX."""
    done = ended(job("sample", f"--workdir={tmp_path}", f"--out={tmp_path}", platforms=("cpu", "nonsense")), 100)
    assert [code for code, _, _ in done] == [1, 2], done
    told = "JAX_PLATFORMS='nonsense': JAX finds no such device here"
    assert f"error: {told}" in done[1][2] and f"error: process 1 of 2 failed: {told}" in done[0][2]


def test_what_differs_is_named(monkeypatch):
    first = {"seed": 0, "model": {"width": 64, "heads": 4}}
    monkeypatch.setattr(cluster, "by_first", lambda make: first)
    cluster.agree("configuration", first)
    with pytest.raises(ValueError, match="another configuration than process 0: model.width 32 against 64, and 1 more"):
        cluster.agree("configuration", {"seed": 0, "model": {"width": 32, "heads": 2}})


def test_waiting_for_the_others_can_be_interrupted(start, tmp_path):
    """Also by the first process, of which the others would hear nothing more."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = (f"--workdir={tmp_path}", f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--process_id=0")
    process, until = start("train", *asked), time.monotonic() + 100
    while True:
        assert process.poll() is None and time.monotonic() < until, ended([process], 1)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as guest:
            assert guest.recv(100) == f"{meeting.GREETING}\n".encode()
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert ended([process], 20) == [(130, "", "noisesched: error: interrupted")]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--num_processes=2"], "--coordinator and --process_id missing: give all of"),
        (
            ["--coordinator=here:1", "--num_processes=2", "--process_id=2"],
            "--process_id=2: the 2 processes are numbered from 0 to 1",
        ),
        (
            ["--coordinator=here", "--num_processes=2", "--process_id=0"],
            "--coordinator='here' is not a HOST:PORT such as node1:9876",
        ),
    ],
    ids=["missing", "number", "port"],
)
def test_wrong_flags(main, arguments, line, tmp_path):
    code, _, err = main("sample", f"--workdir={tmp_path}", f"--out={tmp_path}", *arguments)
    assert code == 2 and err.startswith(f"noisesched: error: {line}") and err.count("\n") == 1
