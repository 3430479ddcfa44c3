"""Faults that a run survives: killed in real processes, damaged in every file, out of disk; and what it may change on its way."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import QUICK, ROOT

from noisesched.data import pipeline
from noisesched.models import build
from noisesched.runs import config as configuration
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.metrics_log import Metrics, read_metrics
from noisesched.runs.workdir import Workdir
from noisesched.runtime.files import WriteError
from noisesched.training import loop
from noisesched.training import step as training_step

KILLS = int(os.environ.get("NOISESCHED_KILLS", 3))  # 30 where there is time


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """The workdir of a run of six steps, with checkpoints at 4 and 6."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    loop.train(small(), workdir, lambda line: None)
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def leaves(workdir, config):
    """(step, {name: array}) of the latest checkpoint, read back."""
    with Checkpoints(Workdir(workdir), max_to_keep=None) as checkpoints:
        step, items = checkpoints.restore(training_step.init(config)[1]._asdict())
    return step, {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(items)}


def steps(workdir):
    return sorted(int(path.name) for path in (Path(workdir) / "checkpoints").iterdir())


# -- kill -9


def test_killed_anywhere_a_run_ends_bit_identical(words, small, user_cache, tmp_path):
    """From the start of the process to the inside of a checkpoint's write; NOISESCHED_KILLS says how often."""
    changes = {"training.num_steps": max(30, 5 * KILLS), "training.keep_best": 1, "training.keep_every": 10}
    environment = os.environ | {"XLA_FLAGS": QUICK}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(user_cache)}
    asked = {"words": words(changes), "whole": str(tmp_path / "whole"), "killed": str(tmp_path / "killed"), "kills": KILLS}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, ROOT / "tests" / "killer.py", tmp_path / "asked.json"]
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == KILLS and all(each["killed"] for each in found)
    reached = [each["step"] for each in found]
    assert reached == sorted(reached)  # what was complete once stays so
    assert sum(bool(each["half_written"]) for each in found) >= 1  # killed inside a write
    config = small(changes)
    (step, got), (_, want) = (leaves(tmp_path / name, config) for name in ("killed", "whole"))
    assert step == changes["training.num_steps"] and got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    mine, theirs = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("killed", "whole"))
    assert [(each["step"], each["loss"]) for each in mine] == [(each["step"], each["loss"]) for each in theirs]
    assert steps(tmp_path / "killed") == steps(tmp_path / "whole")  # nothing half written is left


# -- damage


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [os.unlink, lambda path: os.truncate(path, path.stat().st_size // 2), flip],
    ids=["deleted", "truncated", "bit flipped"],
)
def test_every_file_of_a_checkpoint_damaged(finished, small, damage, tmp_path):
    """The numbers of this checkpoint or, told in one line that names it, those of the one before; never others."""
    workdir = Workdir(shutil.copytree(finished, tmp_path / "run"))
    newest, sound = Path(workdir.checkpoints / "6"), Path(finished) / "checkpoints" / "6"
    _, template = build.abstract_denoiser(small())
    want = {}
    for step in (4, 6):
        with Checkpoints(workdir, None) as checkpoints:
            want[step] = checkpoints.restore({"params": template, "ema": template}, step)[1]
    used = {4: [], 6: []}
    # What is not asked for is not read: the other items' files are as those of these.
    for path in [path for path in sorted(sound.rglob("*")) if path.is_file() and path.relative_to(sound).parts[0] != "opt_state"]:
        said, here = [], newest / path.relative_to(sound)
        damage(here)
        with Checkpoints(workdir, None, say=said.append) as checkpoints:
            step, got = checkpoints.restore({"params": template, "ema": template})
        jax.tree.map(np.testing.assert_array_equal, got, want[step])
        if step == 4:
            assert len(said) == 1 and said[0].startswith(f"warning: checkpoint {newest} is damaged (") and "\n" not in said[0]
            assert said[0].endswith("; using step 4 instead")
        used[step].append(str(path.relative_to(sound)))
        shutil.copy(path, here)
    largest = [max((sound / item).rglob("d/*"), key=lambda path: path.stat().st_size) for item in ("params", "ema")]
    needed = {"leaves/metadata", "params/manifest.ocdbt", "ema/manifest.ocdbt", *(str(p.relative_to(sound)) for p in largest)}
    assert needed <= set(used[4])  # not so commit_success.txt, for one, which matters to nobody


def test_damage_is_told_on_the_command_line_and_mended_by_training_on(main, copied, small, finished):
    flip(max((copied / "checkpoints" / "6").glob("opt_state/**/d/*"), key=lambda path: path.stat().st_size))
    code, out, err = main("train", f"--workdir={copied}")
    assert code == 0, err
    line = next(line for line in out.splitlines() if "damaged" in line)
    assert str(copied / "checkpoints" / "6") in line and "using step 4 instead; it is kept as 6.corrupt" in line
    assert "resuming at step 4" in out
    (step, got), (_, want) = leaves(copied, small()), leaves(finished, small())
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, got, want)


# -- a full disk, a bucket that refuses


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(megabytes)`: a file system of that size."""
    mounted = []

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a file system takes root's rights")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def test_disk_full(small_disk, run, main, words, small):
    """Room for about two checkpoints: one line, code 1, what was complete stays; with room again the same command goes on."""
    disk = small_disk(1024)
    command = ("train", f"--workdir={disk / 'run'}", *words({"training.keep_checkpoints": 50, "training.num_steps": 16}))
    code, out, err = run(*command)
    assert code == 1 and "Traceback" not in err and "Traceback" not in out, err
    assert err.count("noisesched: error: ") == 1 and "No space left on device" in err.splitlines()[-1]
    before = steps(disk / "run")  # whole numbers all: nothing half written is left
    assert before and not list((disk / "run").rglob("*.tmp"))
    assert leaves(disk / "run", small({"training.keep_checkpoints": 50, "training.num_steps": 16}))[0] == before[-1]
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
    code, out, err = main(*command)
    assert code == 0 and f"resuming at step {before[-1]}" in out, err
    assert steps(disk / "run")[-1] == 16


def test_bucket_refuses(stand_in, main, words, tmp_path, monkeypatch):
    """From its second checkpoint on, all writes are refused, and the clearing up, too."""
    import orbax.checkpoint as ocp
    from etils import epath

    save, refused = ocp.CheckpointManager.save, "PERMISSION_DENIED: HTTP 403\nAccess denied.\n\nservice-account is missing rights"

    def refusing(self, step, **given):
        if step > 2:
            raise ValueError(refused)
        return save(self, step, **given)

    def refuse(*given, **more):
        raise OSError(refused)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", refusing)
        patch.setattr(epath.Path, "rmtree", refuse)
        code, out, err = main("train", f"--workdir={tmp_path / 'run'}", *words())
    assert code == 1 and err.count("\n") == 1 + err.count("steps/s"), err
    assert "the checkpoint of step 4 could not be written" in err and "403 Access denied" in err
    assert err.rstrip().endswith("complete checkpoints there: 2")
    lines = []
    loop.train(stand_in(), tmp_path / "run", lines.append)
    assert any("resuming at step 2" in line for line in lines) and steps(tmp_path / "run") == [4, 6]


def test_metrics_that_cannot_be_written(tmp_path, monkeypatch):
    with Metrics(Workdir(tmp_path), None) as metrics:
        monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(WriteError, match=r"^cannot write .*metrics.jsonl: No space left on device$"):
            metrics.flush()
        monkeypatch.undo()


# -- what is kept


def test_what_is_kept_is_bounded(tmp_path):
    """The last two, every 50th, and the three of the least loss, through restarts; without a loss none is a best."""
    loss = lambda step: abs(step - 33)  # least at 35, 30 and 40
    state, workdir = {"params": {"a": np.arange(3.0)}}, Workdir(tmp_path)
    for first in range(0, 200, 20):  # a restart every fourth
        with Checkpoints(workdir, 2, keep_every=50, keep_best=3) as checkpoints:
            for step in range(first + 5, first + 25, 5):
                checkpoints.save(step, state, loss(step))
            checkpoints.wait()
            assert len(checkpoints.steps()) <= 2 + step // 50 + 3
    assert steps(tmp_path) == [30, 35, 40, 50, 100, 150, 195, 200]
    with Checkpoints(workdir, 1) as checkpoints:
        checkpoints.save(205, state)
    assert steps(tmp_path) == [205]


def test_best_by_the_held_out_loss(stand_in, tmp_path):
    """Its own formula, from the parameters on disk; the best are kept beside the last, and better than an untrained network."""
    changes = {
        "training.keep_best": 2,
        "training.num_steps": 24,
        "training.checkpoint_every": 4,
        "training.keep_checkpoints": 1,
        "optimizer.learning_rate": 1e-2,
    }
    config = stand_in(changes)
    loop.train(config, tmp_path / "run", lambda line: None)
    assert len(steps(tmp_path / "run")) in (2, 3)
    definition, template = build.abstract_denoiser(config)
    judge = loop.make_judge(config, definition, pipeline.open_config(config.data, "test"))
    stored = {}
    with Checkpoints(Workdir(tmp_path / "run"), None) as checkpoints:
        for step in checkpoints.steps():
            record = json.loads((tmp_path / "run" / "checkpoints" / str(step) / "leaves" / "metadata").read_text())
            stored[step] = record["content"]["loss"]
            _, items = checkpoints.restore({"ema": template}, step)
            assert judge(items["ema"]) == pytest.approx(stored[step], rel=1e-5)
    assert 24 in stored and max(stored.values()) < judge(training_step.init(config)[1].ema)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"training.keep_every": 3}, "training.keep_every=3 is not a multiple of training.checkpoint_every=2"),
        ({"training.keep_best": -1}, "training.keep_best=-1 must be at least 0"),
        ({"data.num_workers": 10**6}, "data.num_workers=1000000 must be below 1024"),
    ],
)
def test_settings_that_cannot_be(small, changes, says):
    with pytest.raises(configuration.ConfigError, match=says):
        small(changes)


def test_best_of_a_split_that_is_not_there(main, words, tmp_path):
    code, _, err = main(
        "train", f"--workdir={tmp_path / 'run'}", *words({"training.keep_best": 1, "training.best_split": "valid"})
    )
    assert code == 2 and "no split 'valid'" in err and not (tmp_path / "run").exists()


# -- changed settings


def test_changed_settings_are_refused_unless_accepted(main, copied, words):
    longer = words({"training.num_steps": 8, "optimizer.learning_rate": 1e-3})
    before = (copied / "config.json").read_bytes()
    code, _, err = main("train", f"--workdir={copied}", *longer)
    assert code == 2 and "optimizer.learning_rate: 0.003 -> 0.001; training.num_steps: 6 -> 8" in err
    assert "or give --accept_changes" in err
    assert (copied / "config.json").read_bytes() == before
    code, out, err = main("train", f"--workdir={copied}", *longer, "--accept_changes")
    assert code == 0, err
    assert "other settings from step 6 on, config.before_step_6.json has those before:" in out
    assert "  optimizer.learning_rate: 0.003 -> 0.001\n  training.num_steps: 6 -> 8\n" in out
    assert "learning rate at step 6 is" in out and "resuming at step 6" in out and steps(copied)[-1] == 8
    assert (copied / "config.before_step_6.json").read_bytes() == before
    assert json.loads((copied / "config.json").read_text())["training"]["num_steps"] == 8
    assert [record["step"] for record in read_metrics(copied / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7, 8]
    code, out, _ = main("train", f"--workdir={copied}", *longer)  # its own by now
    assert code == 0 and "this run is complete" in out


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"model.width": 16}, "model.width: 8 -> 16 (the parameters are those of another network)"),
        ({"schedule": "sigmoid"}, "(the parameters are those of another network)"),
        ({"data.split": "train[:50%]"}, "(it was trained on other images)"),
        ({"noise_offset": 0.1}, "(samples start from the noise that was trained with)"),
        ({"seed": 1}, "seed: 0 -> 1 (it tells a run from others"),
        ({"training.num_steps": 4}, "training.num_steps=4, but 6 steps are done"),
    ],
)
def test_changes_that_no_word_makes_acceptable(main, copied, words, changes, says):
    before = sorted((path.name, path.read_bytes()) for path in copied.iterdir() if path.is_file())
    code, _, err = main("train", f"--workdir={copied}", *words(changes), "--accept_changes")
    assert code == 2 and says in err and err.count("\n") == 1, err
    assert "or give --accept_changes" not in err
    assert sorted((path.name, path.read_bytes()) for path in copied.iterdir() if path.is_file()) == before


def test_several_changes_at_one_step_keep_the_first_config(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config({"a": 1})
    for value in (2, 3):
        workdir.replace_config({"a": value}, 5)
    assert workdir.read_config() == {"a": 3}
    assert json.loads((tmp_path / "config.before_step_5.json").read_text()) == {"a": 1}


def test_two_processes_on_one_workdir(start, main, words, tmp_path):
    command = ("train", f"--workdir={tmp_path / 'run'}", *words({"training.num_steps": 100_000}))
    first = start(*command)
    try:
        while not (tmp_path / "run" / "config.json").exists():  # written by who holds the workdir
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        assert main(*command) == (2, "", f"noisesched: error: {tmp_path / 'run'} is in use by another process\n")
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


@pytest.mark.parametrize("then", ["moved", "deleted", "replaced"])
def test_a_run_whose_workdir_is_no_longer_there_stops(main, words, stand_in, tmp_path, monkeypatch, then):
    """It does not go on in a new folder of the old name, which would lack all that was done before."""
    folder, write = tmp_path / "run", Metrics.write

    def written(self, step, scalars):
        if step == 4:
            while not (folder / "checkpoints" / "2").exists():  # it is written in the background
                time.sleep(0.01)
            folder.rename(tmp_path / "elsewhere")
            if then == "deleted":
                shutil.rmtree(tmp_path / "elsewhere")
            elif then == "replaced":
                shutil.copytree(tmp_path / "elsewhere", folder)
        write(self, step, scalars)

    monkeypatch.setattr(Metrics, "write", written)
    code, _, err = main("train", f"--workdir={folder}", *words())
    assert code == 1 and err.count("\n") == 1 and "it was moved, deleted or replaced" in err, err
    assert folder.exists() == (then == "replaced")
    if then == "moved":
        monkeypatch.setattr(Metrics, "write", write)
        code, out, err = main("train", f"--workdir={tmp_path / 'elsewhere'}")
        assert code == 0 and "resuming at step 2" in out, err
