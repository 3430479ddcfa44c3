"""Config and metrics on disk: strict JSON, exact round trips, nothing lost or doubled by kill and resume."""

import json
import math
import os
import threading

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from noisesched.runs.metrics_log import Metrics, read_metrics
from noisesched.runs.workdir import Workdir, differences
from noisesched.runtime import files
from noisesched.runtime.pictures import write_png

CONFIG = {
    "seed": 0,
    "schedule": "shifted(cosine, image_size=256)",
    "optimizer": {"learning_rate": 1e-3, "clip": None, "warm_up": np.int64(500)},
    "model": {"multipliers": (1, 2, 2), "attention": np.True_},
    "log_snr_range": (-math.inf, math.inf),
    "empty": {},
}


def events(workdir):
    """Every TensorBoard event, in the order in which a viewer reads them; the format is TFRecord."""
    for path in sorted(workdir.tensorboard.iterdir()):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            yield event_pb2.Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]


def test_paths_are_absolute_and_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir = Workdir("runs/a")
    assert str(workdir.path) == str(tmp_path / "runs" / "a")
    assert os.listdir(tmp_path) == []
    assert str(Workdir("gs://bucket/run").checkpoints) == "gs://bucket/run/checkpoints"


def test_config_round_trip(tmp_path):
    workdir = Workdir(tmp_path / "runs" / "a")
    workdir.write_config({"old": 1})
    workdir.write_config(CONFIG)
    read = workdir.read_config()
    assert read["optimizer"] == {"learning_rate": 1e-3, "clip": None, "warm_up": 500}
    assert read["model"] == {"multipliers": [1, 2, 2], "attention": True}
    assert read["log_snr_range"] == [-math.inf, math.inf]
    assert read["schedule"] == CONFIG["schedule"] and "old" not in read
    assert differences(CONFIG, read) == []
    assert os.listdir(workdir.path) == ["config.json"]
    text = workdir.config.read_text()
    assert "Infinity" not in text and json.loads(text)["log_snr_range"] == ["-inf", "inf"]


def test_config_nan_round_trip(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config({"a": float("nan")})
    assert math.isnan(workdir.read_config()["a"])


@pytest.mark.parametrize(
    "config, named",
    [
        ({"a": {"b": [1, "nan"]}}, r"a\.b\[1\]: .*'nan'"),
        ({"a": {"f": print}}, r"a\.f: a builtin_function_or_method"),
        ({"a": {1: 2}}, "a: the key 1 is not a string"),
    ],
)
def test_config_that_json_cannot_hold_leaves_the_old_one(tmp_path, config, named):
    workdir = Workdir(tmp_path)
    workdir.write_config({"a": 1})
    with pytest.raises(ValueError, match=named):
        workdir.write_config(config)
    assert workdir.read_config() == {"a": 1}


def test_config_survives_a_failure_while_it_is_written(tmp_path, monkeypatch):
    workdir = Workdir(tmp_path)
    workdir.write_config({"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        workdir.write_config({"a": 2})
    assert workdir.read_config() == {"a": 1}


def test_missing_config_says_what_to_give(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match=r"holds no run \(no config.json\)") as caught:
            Workdir(path).read_config()
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b'{"a": 1', b'{"a": NaN}', b'{"a": -Infinity}', b"[1]", b'"x"', b"\xff{}", b"[" * 100_000]
)
def test_damaged_config_is_one_clear_line(tmp_path, content):
    workdir = Workdir(tmp_path)
    workdir.config.write_bytes(content)
    with pytest.raises(ValueError, match="config.json is not valid: ") as caught:
        workdir.read_config()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_differences_name_every_changed_setting():
    new = {
        "seed": 0.0,
        "schedule": "linear",
        "optimizer": {"learning_rate": 2e-3, "clip": 1.0, "warm_up": 500},
        "model": {"multipliers": [1, 2, 4], "attention": True},
        "log_snr_range": [-math.inf, 10],
        "extra": {"a": {"b": math.nan}},
    }
    assert differences(CONFIG, new) == [
        "empty: {} -> absent",
        'extra.a.b: absent -> "nan"',
        'log_snr_range: ["-inf", "inf"] -> ["-inf", 10]',
        "model.multipliers: [1, 2, 2] -> [1, 2, 4]",
        "optimizer.clip: null -> 1.0",
        "optimizer.learning_rate: 0.001 -> 0.002",
        'schedule: "shifted(cosine, image_size=256)" -> "linear"',
    ]
    assert differences({"a": math.nan}, {"a": math.nan}) == []


def test_metrics_are_read_back_exactly(tmp_path):
    workdir = Workdir(tmp_path / "run")
    with Metrics(workdir, resume_step=None) as metrics:
        metrics.write(1, {"loss": 0.1, "images_per_second": np.float32(1 / 3)})
        assert read_metrics(workdir.metrics)[0]["loss"] == 0.1  # a kill from here on does not lose it
        metrics.write(2, {"loss": math.nan, "low": -math.inf})
        metrics.image(2, "samples", np.full((8, 12, 1), 7, np.uint8))
        metrics.image(2, "colour", np.full((8, 12, 3), 7, np.uint8))
    assert not {"NaN", "Infinity"} & set(workdir.metrics.read_text().replace(",", " ").split())
    first, second = read_metrics(workdir.metrics)
    assert first == {"step": 1, "loss": 0.1, "images_per_second": float(np.float32(1 / 3))}
    assert second["step"] == 2 and math.isnan(second["loss"]) and second["low"] == -math.inf
    values = [(event.step, value) for event in events(workdir) for value in event.summary.value]
    assert (1, "loss", np.float32(0.1)) in [(step, value.tag, value.simple_value) for step, value in values]
    pictures = {v.tag: (v.image.height, v.image.width) for _, v in values if v.image.height}
    assert pictures == {"samples": (8, 12), "colour": (8, 12)}


def test_resuming_drops_later_steps_and_a_torn_line(tmp_path):
    workdir = Workdir(tmp_path)
    with Metrics(workdir, resume_step=None) as metrics:
        for step in range(1, 8):
            metrics.write(step, {"loss": 1 / step})
    with open(workdir.metrics, "a") as file:
        file.write('{"step": 8, "lo')
    assert [record["step"] for record in read_metrics(workdir.metrics)] == [1, 2, 3, 4, 5, 6, 7]
    with Metrics(workdir, resume_step=4) as metrics:
        metrics.write(5, {"loss": 5.0})
    assert [record["loss"] for record in read_metrics(workdir.metrics)] == [1, 1 / 2, 1 / 3, 1 / 4, 5.0]

    # TensorBoard's own rule: a session that starts at step s hides earlier events of steps >= s
    kept = []
    for event in events(workdir):
        if event.session_log.status:
            kept = [record for record in kept if record[0] < event.step]
        kept += [(event.step, round(value.simple_value, 6)) for value in event.summary.value]
    assert kept == [(step, round(1 / step, 6)) for step in (1, 2, 3, 4)] + [(5, 5.0)]


def test_a_new_history_drops_the_old(tmp_path):
    workdir = Workdir(tmp_path)
    for _ in range(2):
        with Metrics(workdir, resume_step=None) as metrics:
            metrics.write(0, {"loss": 1.0})
    assert read_metrics(workdir.metrics) == [{"step": 0, "loss": 1.0}]
    assert len(list(workdir.tensorboard.iterdir())) == 2  # within one second, yet neither overwrote the other


def test_a_bad_line_before_the_last_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for bad in ("garbage", '{"loss": 1.0}', '{"step": NaN}', "[]"):
        path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n')
        with pytest.raises(ValueError, match="metrics.jsonl, line 2: ") as caught:
            read_metrics(path)
        assert "\n" not in str(caught.value)


def test_where_files_cannot_be_appended_to_flush_writes_them(tmp_path, monkeypatch):
    monkeypatch.setattr("noisesched.runs.metrics_log.is_local", lambda path: False)  # as for a bucket
    workdir = Workdir(tmp_path)
    with Metrics(workdir, resume_step=None) as metrics:
        metrics.write(1, {"loss": 1.0})
        metrics.flush()
        assert read_metrics(workdir.metrics) == [{"step": 1, "loss": 1.0}]
        metrics.write(2, {"loss": 2.0})
    with Metrics(workdir, resume_step=1) as metrics:
        metrics.write(2, {"loss": 3.0})
    assert [record["loss"] for record in read_metrics(workdir.metrics)] == [1.0, 3.0]


def test_no_thread_stands_between_the_events_and_the_disk(tmp_path):
    """It would end unnoticed when the disk is full, and its queue would fill until training waits for it for ever."""
    before = threading.active_count()
    with Metrics(Workdir(tmp_path), resume_step=None) as metrics:
        metrics.write(1, {"loss": 1.0})
        assert threading.active_count() == before


@pytest.mark.parametrize(("wait", "seen"), [(0.0, 1), (1e9, 0)])
def test_viewers_see_events_before_the_next_checkpoint(tmp_path, monkeypatch, wait, seen):
    monkeypatch.setattr("noisesched.runs.metrics_log.FLUSH", wait)
    workdir = Workdir(tmp_path)
    with Metrics(workdir, resume_step=None) as metrics:
        metrics.write(1, {"loss": 1.0})
        assert sum(len(event.summary.value) for event in events(workdir)) == seen


def test_a_damaged_log_says_what_to_do(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"steps": 1}\n')
    with pytest.raises(ValueError, match="line 1: it has no whole-number step; move that file away"):
        Metrics(Workdir(tmp_path), resume_step=1)


def test_who_sees_the_mark_sees_the_workdir(tmp_path):
    workdir, other = Workdir(tmp_path), Workdir(tmp_path / "other")
    (tmp_path / "other").mkdir()
    words = [workdir.mark(), workdir.mark()]
    assert workdir.has_mark(words[1], seconds=0.1) and not workdir.has_mark(words[0], seconds=0.1)
    assert not other.has_mark(words[1], seconds=0.1)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    files.write_atomically(path, "old")
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "a.txt.tmp").symlink_to(tmp_path / "elsewhere")
    for error in (OSError(28, "No space left on device"), ValueError("no")):
        with pytest.raises(type(error)) as raised, files.replacing(path) as file:
            file.write(b"new")
            raise error
        assert getattr(raised.value, "filename", str(path)) == str(path)
        assert path.read_text() == "old" and sorted(os.listdir(tmp_path)) == ["a.txt", "elsewhere"]
    assert (tmp_path / "elsewhere").read_text() == "mine"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs://bucket, a folder here."""
    import fsspec
    from etils.epath import backend
    from fsspec.implementations.dirfs import DirFileSystem

    class Folder(DirFileSystem):
        protocol = "gcs"

        def __init__(self, **given):
            super().__init__(path=str(tmp_path / "gs"), fs=fsspec.filesystem("file", auto_mkdir=True))

        def _join(self, path):
            return super()._join(path.removeprefix("gs://"))

    fsspec.register_implementation("gcs", Folder, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    (tmp_path / "gs" / "bucket").mkdir(parents=True)
    return tmp_path / "gs" / "bucket"


def test_a_workdir_in_a_bucket(bucket):
    workdir = Workdir("gs://bucket/run")
    workdir.write_config(CONFIG)
    assert differences(workdir.read_config(), CONFIG) == []
    assert workdir.has_mark(workdir.mark(), seconds=1)
    write_png(workdir.samples / "a.png", np.zeros((4, 4, 3), np.uint8))
    assert (bucket / "run" / "samples" / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError), files.replacing(workdir.config) as file:
        file.write(b"half")
        raise ValueError
    assert differences(workdir.read_config(), CONFIG) == []


def test_held_by_one_process_at_a_time(tmp_path):
    run = Workdir(tmp_path / "run")
    with run.held():
        with pytest.raises(ValueError, match="is in use by another process"), run.held():
            pass
    with run.held():
        pass
