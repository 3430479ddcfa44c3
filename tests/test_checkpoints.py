"""Checkpoints come back bit for bit or not at all, whatever was killed, cut, flipped or full."""

import inspect
import itertools
import logging
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx

from noisesched.runs.checkpoints import CheckpointError, Checkpoints, NotWritten
from noisesched.runs.metrics_log import read_metrics
from noisesched.runs.workdir import Workdir


def state(step):
    """Items whose every value is a function of the step."""
    kernel = np.random.default_rng(step).standard_normal((16, 24), np.float32)
    return {
        "params": {"block": [{"kernel": kernel}, {"kernel": kernel[:3] * 2}], "scale": np.float32(step)},
        "ema": {"kernel": kernel / 2},
    }


def assert_same(restored, expected):
    """The same structure, dtypes, shapes and bits."""
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        b = np.asarray(b)
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def assert_is(restored, step):
    assert restored[0] == step
    assert_same(restored[1], state(step))


def write(workdir, *steps, max_to_keep=5):
    with Checkpoints(workdir, max_to_keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))


def read(workdir, *, max_to_keep=None):
    with Checkpoints(workdir, max_to_keep) as checkpoints:
        return checkpoints.restore(state(0))


def files(folder):
    return sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())


def largest_file(folder):
    return max(files(folder), key=os.path.getsize)


def flip(path, position=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 8
    path.write_bytes(content)


def halve(path):
    os.truncate(path, os.path.getsize(path) // 2)


def eventually(condition):
    """Orbax removes temporary directories in the background."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path / "run")


def test_round_trip_is_bit_exact(workdir):
    bits = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    params = {
        "bfloat16": bits[np.arange(2**16) >> 7 & 255 < 255],  # every finite one, both zeros among them
        "int32": np.array([-(2**31), 2**31 - 1], np.int32),
        "float64": np.array([5e-324, -1 / 3]),
        "bool": np.array([True, False]),
        "device": jnp.linspace(0, 1, 7)[:, None],
        "scalar": jnp.float32(1) / 3,
        "python": 7,
        "../../escape": np.ones(3, np.float32),
        "a.b/c": np.ones((1, 2), np.float16),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "no elements": np.zeros((0, 3), np.float32),
        "none": None,
    }
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init({"kernel": jnp.ones((3, 4))})
    network = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
    items = {"params": params, "optimizer": adam, "nothing": optax.EmptyState(), "network": network}
    with Checkpoints(workdir, 1) as checkpoints:
        checkpoints.save(3, items)
    with Checkpoints(workdir, None) as checkpoints:
        step, restored = checkpoints.restore(items)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), network)
        _, again = checkpoints.restore({"network": shapes})
    assert step == 3 and restored.keys() == items.keys()
    assert_same(restored, items)
    assert_same(again["network"], network)
    assert [path.name for path in workdir.path.iterdir()] == ["checkpoints"]  # no name led out of it


def test_one_item_is_restored_alone(workdir):
    write(workdir, 4)
    for path in files(workdir.checkpoints / "4" / "params"):
        path.unlink()
    with Checkpoints(workdir, None) as checkpoints:
        step, restored = checkpoints.restore({"ema": state(4)["ema"]})
    assert step == 4
    assert_same(restored, {"ema": state(4)["ema"]})


def test_values_are_those_at_the_call(workdir):
    """Saving goes on in the background while the next step overwrites or donates the arrays."""
    array, device = np.full((512, 512), 1.0, np.float32), jnp.full((512, 512), 1.0)
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    with Checkpoints(workdir, 5) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, {"params": [array, device]})
            array += 1
            device = advance(device)
        for step in range(1, 5):
            _, restored = checkpoints.restore({"params": [array, device]}, step)
            assert_same(restored["params"], [np.full((512, 512), step, np.float32)] * 2)


def test_the_newest_are_kept(workdir):
    with Checkpoints(workdir, None) as checkpoints:
        assert checkpoints.steps() == []
        with pytest.raises(CheckpointError, match=r"holds no checkpoint \(complete: none\)"):
            checkpoints.restore(state(0))
    assert not workdir.path.exists()  # opened for reading only
    write(workdir, 1, 2, 10, 9 + 11, max_to_keep=2)
    with Checkpoints(workdir, 2) as checkpoints:
        assert checkpoints.steps() == [10, 20] and workdir.latest_step() == 20
        assert_is(checkpoints.restore(state(0), 10), 10)
        with pytest.raises(CheckpointError, match=r"holds no checkpoint of step 2 \(complete: 10, 20\)"):
            checkpoints.restore(state(0), 2)
        checkpoints.save(20, state(21))  # complete already: left as it is
        with pytest.raises(CheckpointError, match="holds step 20, newer than step 15"):
            checkpoints.save(15, state(15))
    assert_is(read(workdir), 20)


def test_no_damaged_file_gives_wrong_numbers(workdir, caplog):
    """Every file of the newest checkpoint in turn: right numbers from it, or a warning and the one before.

    With one of three kinds of damage each; tests/test_faults.py has every kind for every file of a trained checkpoint.
    """
    write(workdir, 1, 2)
    newest, sound = workdir.checkpoints / "2", workdir.path / "sound"
    shutil.copytree(newest, sound)
    used = {1: 0, 2: 0}
    for path, damage in zip(files(sound), itertools.cycle([flip, halve, os.unlink])):
        caplog.clear()
        damage(newest / path.relative_to(sound))
        step, restored = read(workdir)
        assert_same(restored, state(step))
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        if step == 1:
            assert len(said) == 1 and "2 is damaged (" in said[0] and "using step 1 instead" in said[0]
            assert "\n" not in said[0]
        used[step] += 1
        shutil.rmtree(newest)
        shutil.copytree(sound, newest)
    assert used[1] > 5


def test_flipped_bits_in_array_data_are_found(workdir):
    """The fault that orbax itself does not see."""
    write(workdir, 1, 2)
    data = largest_file(workdir.checkpoints / "2" / "params")
    sound = data.read_bytes()
    for position in random.Random(0).sample(range(len(sound)), 10):
        flip(data, position)
        step, restored = read(workdir)
        assert_same(restored, state(step))
        data.write_bytes(sound)
    flip(data)
    with Checkpoints(workdir, None) as checkpoints:
        assert checkpoints.restore(state(0))[0] == 1
        with pytest.raises(CheckpointError, match="no usable checkpoint in .*: step 2: "):
            checkpoints.restore(state(0), 2)  # asked for by name: no other will do
        assert checkpoints.restore({"ema": state(0)["ema"]})[0] == 2


def test_a_damaged_checkpoint_is_moved_aside_and_written_anew(workdir):
    write(workdir, 1, 2)
    flip(largest_file(workdir.checkpoints / "2" / "params"))
    with Checkpoints(workdir, 2) as checkpoints:
        assert checkpoints.restore(state(0))[0] == 1
        assert checkpoints.steps() == [1]
        checkpoints.save(2, state(2))
    assert_is(read(workdir), 2)
    assert sorted(path.name for path in workdir.checkpoints.iterdir()) == ["1", "2", "2.corrupt"]


def test_none_usable_is_one_line_and_moves_nothing(workdir):
    write(workdir, 1, 2)
    for step in "12":
        halve(largest_file(workdir.checkpoints / step / "params"))
    with pytest.raises(CheckpointError, match="no usable checkpoint in .*: step 2: .*; step 1: ") as caught:
        read(workdir, max_to_keep=2)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in workdir.checkpoints.iterdir()) == ["1", "2"]


def test_damage_is_told_in_one_line_only(workdir):
    """When a read fails, orbax alone prints up to thousands of lines about closed event loops."""
    items = {"params": {str(i): np.random.default_rng(i).random((50, 50)) for i in range(40)}}
    with Checkpoints(workdir, 2) as checkpoints:
        checkpoints.save(1, items)
        checkpoints.save(2, items)
    halve(largest_file(workdir.checkpoints / "2" / "params"))
    program = (
        "import sys, numpy as np\n"
        "from noisesched.runs.checkpoints import Checkpoints\n"
        "from noisesched.runs.workdir import Workdir\n"
        "with Checkpoints(Workdir(sys.argv[1]), 2) as checkpoints:\n"
        "    checkpoints.restore({'params': {str(i): np.zeros((50, 50)) for i in range(40)}})\n"
    )
    done = subprocess.run([sys.executable, "-c", program, workdir.path], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "using step 1 instead" in done.stderr


def test_what_a_killed_save_left_is_ignored_and_cleaned(workdir):
    write(workdir, 1)
    torn = workdir.checkpoints / "2.orbax-checkpoint-tmp"
    shutil.copytree(workdir.checkpoints / "1", torn)
    assert read(workdir)[0] == 1 and torn.exists()  # a reader must not touch what may be a save in progress
    with Checkpoints(workdir, 2) as checkpoints:
        assert checkpoints.steps() == [1] and workdir.latest_step() == 1
        eventually(lambda: not torn.exists())
        checkpoints.save(2, state(2))
    assert read(workdir)[0] == 2


@pytest.mark.parametrize(
    "leaf, fault",
    [
        (np.array([1, np.nan, np.inf], np.float32), r"params/bad is not finite \(2 of 3 values\)"),
        (jnp.array([1, -jnp.inf], jnp.bfloat16), r"params/bad is not finite \(1 of 2 values\)"),
        (jax.random.key(0), "params/bad is a PRNG key"),
        ("text", "params/bad is not a numeric array"),
    ],
)
def test_what_must_not_be_stored_is_refused(workdir, leaf, fault):
    write(workdir, 1)
    with Checkpoints(workdir, 1) as checkpoints:
        with pytest.raises(CheckpointError, match=f"no checkpoint of step 2 written: {fault}"):
            checkpoints.save(2, {**state(2), "params": {"bad": leaf}})
        assert_is(checkpoints.restore(state(0)), 1)  # the last good one is kept


@pytest.mark.parametrize(
    "change, fault",
    [
        (
            {"ema": {"kernel": np.zeros((16, 25), np.float32)}},
            r"ema/kernel holds float32 \(16, 24\) where float32 \(16, 25\) is wanted",
        ),
        (
            {"ema": {"kernel": np.zeros((16, 24), ml_dtypes.bfloat16)}},
            r"ema/kernel holds float32 \(16, 24\) where bfloat16 \(16, 24\) is wanted",
        ),
        ({"ema": {"bias": np.float32(0)}}, r"ema/bias holds nothing where float32 \(\) is wanted \(and 1 more leaves differ\)"),
        ({"ema": {}}, r"ema/kernel holds float32 \(16, 24\) where nothing is wanted"),
        ({"optimizer": {}}, "it holds no 'optimizer', only ema, params"),
    ],
)
def test_a_target_that_does_not_fit_is_one_clear_line(workdir, change, fault):
    write(workdir, 1, 2)
    with Checkpoints(workdir, 2) as checkpoints:
        with pytest.raises(CheckpointError, match=f"checkpoint .*/2: {fault}$") as caught:
            checkpoints.restore({**state(0), **change})
        assert "\n" not in str(caught.value)
        assert checkpoints.steps() == [1, 2]  # nothing is wrong with it


def test_a_failed_write_is_one_line_and_harms_nothing(workdir):
    """As when a disk is full; here the system refuses files of more than 50 kB."""
    write(workdir, 1, 2)
    large = {**state(3), "ema": {"kernel": np.random.default_rng(0).random(50_000)}}
    fault = "step 3 could not be written to .*/checkpoints: File too large; complete checkpoints there: 1, 2$"
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(workdir, 5) as checkpoints:
        for surface in (checkpoints.wait, lambda: checkpoints.save(4, state(4))):
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, usual[1]))
            try:
                checkpoints.save(3, large)
                with pytest.raises(CheckpointError, match=fault) as caught:
                    surface()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, usual)
            assert "\n" not in str(caught.value)
            assert checkpoints.steps() == [1, 2]
            # What was half written is removed: it would keep a full disk full
            assert sorted(path.name for path in workdir.checkpoints.iterdir()) == ["1", "2"]
        checkpoints.save(3, state(3))  # there is room again
    assert_is(read(workdir), 3)


def environment():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}


SAVER = """
import sys
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.metrics_log import Metrics
from noisesched.runs.workdir import Workdir
import numpy as np
workdir = Workdir(sys.argv[1])
with Checkpoints(workdir, 2) as checkpoints:
    start = workdir.latest_step()
    with Metrics(workdir, start) as metrics:
        print(start, flush=True)
        for step in range((start or 0) + 1, 100_000):
            metrics.write(step, {"loss": step / 3})
            checkpoints.save(step, killed_state(step))
"""


def killed_state(step):
    leaves = {str(i): np.full(20_000, step + i, np.int32) for i in range(8)}
    return {"params": leaves, "ema": leaves}


def test_killed_at_any_moment_the_last_complete_checkpoint_is_found(workdir):
    moments, last = random.Random(0), 0
    command = [sys.executable, "-c", inspect.getsource(killed_state) + SAVER, workdir.path]
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as child:
            assert child.stdout.readline().strip() == (str(last) if last else "None")
            complete = lambda: [int(path.name) for path in workdir.checkpoints.iterdir() if path.name.isdigit()]  # noqa: E731
            eventually(lambda before=last, complete=complete: max(complete(), default=0) > before)  # it has gone on
            time.sleep(moments.uniform(0.0, 0.5))
            child.send_signal(signal.SIGKILL)
        with Checkpoints(workdir, None) as checkpoints:
            step, restored = checkpoints.restore(killed_state(0))
            assert step == workdir.latest_step() == checkpoints.steps()[-1] >= max(last, 1)
        assert_same(restored, killed_state(step))
        last = step
        lines = [record["step"] for record in read_metrics(workdir.metrics)]
        assert lines == list(range(1, len(lines) + 1)) and len(lines) >= last
    with Checkpoints(workdir, 2):
        eventually(lambda: all(path.name.isdigit() for path in workdir.checkpoints.iterdir()))
    assert last >= 3


# -- what is on disk


NAMES = [
    b"b[1]",
    b"a*?",
    b"{a,b}%20#",
    b"~",
    b"new\nline \t",
    "ü✓".encode(),
    b"not utf-8 \xe9",
    b"gs://b",
    b"back\\slash'\"$HOME",
]


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name(tmp_path, name):
    workdir = Workdir(os.path.join(tmp_path, os.fsdecode(name)))
    write(workdir, 1)
    assert_is(read(workdir), 1)
    assert os.listdir(workdir.path) == ["checkpoints"]


@pytest.mark.parametrize("lost", ["arrays", "everything"])
def test_a_save_of_which_part_is_not_on_disk_is_not_done(tmp_path, lost):
    lines = []
    checkpoints = Checkpoints(Workdir(tmp_path), 2, say=lines.append)
    checkpoints.save(1, state(1))
    checkpoints.wait()
    checkpoints.save(2, state(2))
    checkpoints._manager.wait_until_finished()
    if lost == "everything":  # deleted by somebody: that is no fault of the save
        shutil.rmtree(tmp_path / "checkpoints" / "2")
        checkpoints.close()
        assert "deleted" in lines[0]
        return
    for path in (tmp_path / "checkpoints" / "2" / "params").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(NotWritten, match="step 2 was written.*complete checkpoints there: 1"):
        checkpoints.close()


@pytest.mark.parametrize("length", [0, 1000])
def test_a_later_save_whose_arrays_are_cut_off_is_not_done(tmp_path, length):
    checkpoints = Checkpoints(Workdir(tmp_path), 2)
    checkpoints.save(1, state(1))
    checkpoints.wait()
    checkpoints.save(2, state(2))
    checkpoints._manager.wait_until_finished()
    cut = largest_file(tmp_path / "checkpoints" / "2" / "params")
    assert "process_0" in str(cut)  # the arrays themselves, of which metadata alone say nothing
    os.truncate(cut, length)
    with pytest.raises(
        NotWritten, match=f"step 2 was written.*{cut.name} should have [0-9,]+ bytes, and has {length:,};.*there: 1"
    ):
        checkpoints.close()


def test_the_first_checkpoint_of_a_process_is_read_back(tmp_path):
    checkpoints = Checkpoints(Workdir(tmp_path), 2)
    checkpoints.save(1, state(1))
    checkpoints._manager.wait_until_finished()
    for path in (tmp_path / "checkpoints" / "1" / "params").rglob("d/*"):
        path.write_bytes(bytes(len(path.read_bytes())))  # as long as before
    with pytest.raises(NotWritten, match="step 1 was written"):
        checkpoints.close()


# -- readers beside a run that goes on saving


@pytest.mark.parametrize("when", ["before it is read", "between its record and its arrays"])
def test_a_reader_whose_checkpoint_is_deleted_takes_the_next(tmp_path, when, monkeypatch):
    lines, writer = [], Checkpoints(Workdir(tmp_path), 1)
    writer.save(1, state(1))
    writer.wait()
    reader = Checkpoints(Workdir(tmp_path), None, say=lines.append)
    usual = Checkpoints._record

    def record(self, step):
        monkeypatch.undo()
        content = usual(self, step) if when.startswith("between") else None
        writer.save(2, state(2))  # of which orbax keeps one
        writer.wait()
        return content or usual(self, step)

    monkeypatch.setattr(Checkpoints, "_record", record)
    assert_is(reader.restore(state(0)), 2)
    assert not lines
    writer.close()
    reader.close()


def test_a_reader_opens_while_checkpoints_come_and_go(tmp_path, monkeypatch):
    write(Workdir(tmp_path), 1)
    usual, gone = Checkpoints._open, [FileNotFoundError(2, "No such file or directory")] * 3

    def opened(self):
        if gone:
            raise gone.pop()
        return usual(self)

    monkeypatch.setattr(Checkpoints, "_open", opened)
    assert_is(read(Workdir(tmp_path)), 1)


def test_damage_that_stays_is_damage_for_a_reader_too(tmp_path):
    write(Workdir(tmp_path), 1)
    for path in (tmp_path / "checkpoints" / "1" / "params").rglob("d/*"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        read(Workdir(tmp_path))
