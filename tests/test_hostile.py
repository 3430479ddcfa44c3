"""Workdirs from anybody: a hostile one is refused in one line, with little memory; nothing in it is run, followed or deleted."""

import json
import os
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from noisesched.training import loop

TOUCHED = "__import__('os').system('touch {0}')"
LEAF = "unet/conv_in/kernel"
HUGE = {"shape": [10**6, 10**6, 1, 8], "chunks": [10**6, 10**6, 1, 8]}


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """The workdir of a run of two steps."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    loop.train(small({"training.num_steps": 2}), workdir, lambda line: None)
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def peak_bytes():
    """The most memory this process has had since the call before."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def programs(workdir, tmp_path):
    """Every program that takes a workdir, as words of the command line."""
    out = tmp_path / "out"
    return [
        ("train", f"--workdir={workdir}"),
        ("sample", f"--workdir={workdir}", f"--out={out}", "--steps=2", "--num_images=1"),
        ("evaluate", f"--workdir={workdir}", f"--out={out}", "--noises=2", "--profile_levels=5"),
        ("diagnose", f"--workdir={workdir}"),
        ("interchange", f"--workdir={workdir}", f"--write={out}.json"),
    ]


def assert_refused(main, commands, *parts):
    """One line, no traceback, little memory, whatever the program; returns the lines."""
    lines = []
    for command in commands:
        before = peak_bytes() and peak_bytes()
        code, _, err = main(*command)
        assert code in (1, 2) and err.startswith("noisesched: error: "), (command, code, err)
        assert err.count("\n") == 1 and len(err) < 1200 and "Traceback" not in err, (command, err)
        assert any(part in err for part in parts), (command, err)
        assert peak_bytes() - before < 2**29, command
        lines.append(err)
    return lines


def spoilt(copied, **changes):
    """The workdir with other settings in config.json, such as model__width=3; a text is put in the file's place."""
    config = json.loads((copied / "config.json").read_text())
    for name, value in changes.items():
        *groups, last = name.split("__")
        inner = config
        for group in groups:
            inner = inner[group]
        inner[last] = value
    (copied / "config.json").write_text(json.dumps(config))
    return copied


@pytest.mark.parametrize(
    "content, says",
    [
        ("[" * 10**5 + "]" * 10**5, "nested too deeply"),
        ('{"a":' * 10**5 + "1" + "}" * 10**5, "nested too deeply"),
        ('{"seed": NaN}', "NaN is not JSON"),
        ('{"seed": -Infinity}', "-Infinity is not JSON"),
        ("\x80\x04K\x01.", "is not valid"),
        ('{"__reduce__": ["os.system", "touch x"]}', "unknown setting __reduce__"),
        ('{"seed": 1e999}', "missing setting"),
        ('{"seed": ' + "9" * 10_000 + "}", "is not valid"),
        ("{}" + " " * 2**24, "bytes, more than"),
    ],
)
def test_a_config_that_is_none(main, tmp_path, content, says):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(content)
    assert_refused(main, programs(tmp_path / "run", tmp_path), says)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "run"]


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a link, to /dev/zero"),
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: path.symlink_to("/etc/passwd"), "is a link, to /etc/passwd"),
    ],
    ids=["pipe", "device", "folder", "link"],
)
def test_a_config_that_is_no_file(main, tmp_path, make, says):
    (tmp_path / "run").mkdir()
    make(tmp_path / "run" / "config.json")
    assert_refused(main, programs(tmp_path / "run", tmp_path), says)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"model__width": 65_535, "model__multipliers": [1024] * 4, "model__heads": 1}, ""),
        ({"model__width": 60_000}, "machine's memory"),
        ({"model__num_classes": 10**9}, "model.num_classes=1000000000 must be below"),
        ({"data__image_size": 10**9}, "data.image_size=1000000000 must be below"),
        ({"data__num_workers": 10**6}, "data.num_workers=1000000 must be below"),
        ({"schedule": "discrete(linear, num_steps=1000000000000)"}, "up to 100000"),
        ({"schedule": "discrete(linear, num_steps=1000000000000)", "preview__num_images": 10**12}, "up to 100000"),
        ({"schedule": "(" * 5_000 + ")" * 5_000}, "cannot read the spec"),
        ({"schedule": "-" * 10**6 + "1"}, "cannot read the spec"),
        ({"schedule": TOUCHED}, "cannot read the spec"),
        ({"weighting": TOUCHED}, "cannot read the spec"),
        ({"preview__method": TOUCHED}, "cannot read the spec"),
        ({"conditioning__kind": "timestep", "conditioning__table": TOUCHED}, "cannot read the spec"),
        ({"schedule": "piecewise('/dev/zero')"}, "not a regular file"),
        ({"schedule": "piecewise('{0}.fifo')"}, "not a regular file"),
        ({"schedule": "sigmas('{0}.pickle.npy')"}, "cannot read numbers"),
        ({"schedule": "betas('{0}.huge.npy')"}, "cannot read"),
        ({"schedule": "betas('{0}.sparse')"}, "bytes, more than"),
        ({"schedule": "piecewise('$(touch {0})')"}, "cannot read numbers"),
    ],
)
def test_hostile_settings(main, copied, tmp_path, changes, says):
    """Settings of absurd sizes, and such as would like to be run; files of numbers that are none, or never end."""
    touched = tmp_path / "touched"
    os.mkfifo(f"{touched}.fifo")
    np.save(f"{touched}.pickle.npy", np.array([{"a": 1}], object), allow_pickle=True)
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }".ljust(117) + "\n"
    Path(f"{touched}.huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"1234")
    with open(f"{touched}.sparse", "w") as file:
        file.truncate(2**40)
    changes = {key: value.replace("{0}", str(touched)) if isinstance(value, str) else value for key, value in changes.items()}
    commands = programs(spoilt(copied, **changes), tmp_path)
    # All read a config in the same way, so that one of them tells for all but for the files.
    assert_refused(main, commands if "/dev/zero" in str(changes) else commands[:1], says)
    assert not touched.exists() and not (tmp_path / "out").exists()


def test_hostile_data(main, copied, tmp_path):
    """Words of the shell are names; a data set may not have modules imported."""
    touched = tmp_path / "touched"
    for changes in (
        {"data__name": "image_folder", "data__path": f"$(touch {touched}); touch {touched}"},
        {"data__name": f"../`touch {touched}`"},
        {"data__data_dir": "/dev/null/x"},
    ):
        words = programs(spoilt(copied, **changes), tmp_path)[:1]
        assert_refused(main, words, "no such image folder", "not the name of a data set", "writable")
    folder = tmp_path / "data" / "evil" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"name": "evil", "version": "1.0.0", "fileFormat": "array_record"}')
    (folder / "features.json").write_text('{"pythonClassName": "antigravity.Feature"}')
    changes = {"data__name": "evil", "data__data_dir": str(tmp_path / "data")}
    assert_refused(main, programs(spoilt(copied, **changes), tmp_path)[:1], "names the class 'antigravity.Feature'")
    assert not touched.exists() and "antigravity" not in sys.modules


def tampered(item, name, **changes):
    """Changes an array's own metadata in the store that holds it; its record stays as it was."""
    import tensorstore

    base = {"driver": "file", "path": f"{item}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    metadata = json.loads(store.read(f"{name}/.zarray").result().value)
    store.write(f"{name}/.zarray", json.dumps(metadata | changes).encode()).result()


def record(step, change):
    """Changes a checkpoint's record, with the checksum that then is right."""
    path = step / "leaves" / "metadata"
    content = json.loads(path.read_text())["content"]
    change(content)
    path.write_text(json.dumps({"content": content, "crc32": zlib.crc32(json.dumps(content, sort_keys=True).encode())}))


def bomb(step):
    """A piece of an array, of a few kilobytes, that unpacks to a gigabyte."""
    import tensorstore

    store = tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": "memory://",
            "create": True,
            "metadata": {"shape": [2**28], "chunks": [2**28], "dtype": "<f4", "compressor": {"id": "zstd", "level": 1}},
        }
    ).result()
    store[2**28 - 1].write(1.0).result()
    packed = store.kvstore.read("0").result().value
    base = {"driver": "file", "path": f"{step / 'ema'}/"}
    tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result().write(f"{LEAF}/0.0.0.0", packed).result()


def replaced(path, make):
    path.unlink()
    make(path)


@pytest.mark.parametrize(
    "attack, says",
    [
        (lambda step: tampered(step / "ema", LEAF, **HUGE), "claims to be <f4 [1000000, 1000000, 1, 8]"),
        (lambda step: tampered(step / "ema", LEAF, chunks=[2**40, 3, 1, 8]), "claims to have chunks of [1099511627776,"),
        (lambda step: tampered(step / "ema", LEAF, dtype="|O"), "claims to be |O"),
        (lambda step: tampered(step / "ema", LEAF, dtype="<U9"), "claims to be <U9"),
        (lambda step: tampered(step / "ema", LEAF, dtype=[["a", "<f4"]]), "claims to be"),
        (lambda step: record(step, lambda content: content["items"]["ema"][LEAF].update(shape=[10**9, 10**9])), "is wanted"),
        (lambda step: record(step, lambda content: content["items"]["ema"][LEAF].update(dtype="object")), "is wanted"),
        (
            lambda step: record(
                step, lambda content: content["items"]["ema"].update({"../../../../x": {"shape": [], "dtype": "int8"}})
            ),
            "is wanted",
        ),
        (lambda step: record(step, lambda content: content.update(items=7)), "no usable checkpoint"),
        (lambda step: record(step, lambda content: content.update(network={"model": "x"})), "another network"),
        (lambda step: record(step, lambda content: content.update(step=float("nan"))), "its record of leaves has changed"),
        (lambda step: (step / "leaves" / "metadata").write_text("[" * 10**6), "no usable checkpoint"),
        (lambda step: (step / "leaves" / "metadata").write_bytes(b"\x80\x04cos\nsystem\n"), "no usable checkpoint"),
        (lambda step: os.truncate(step / "ema" / "_METADATA", 2**40), "bytes"),
        (lambda step: os.truncate(max((step / "ema" / "d").iterdir()), 2**40), "its files have"),
        (lambda step: replaced(step / "ema" / "_METADATA", os.mkfifo), "neither a file nor a folder"),
        (lambda step: replaced(step / "ema" / "manifest.ocdbt", lambda path: path.symlink_to("/dev/zero")), "neither a file nor"),
        (lambda step: replaced(max((step / "ema" / "d").iterdir()), lambda path: path.symlink_to("/etc/passwd")), "neither a"),
        (bomb, "no usable checkpoint"),
    ],
)
def test_hostile_checkpoints(main, copied, tmp_path, attack, says):
    """Sizes and types that an array's own metadata or the record claim; what is no file; a piece that is larger than it says."""
    attack(copied / "checkpoints" / "2")
    assert_refused(main, programs(copied, tmp_path)[: 3 if attack is bomb else 1], says)
    assert not (tmp_path / "x").exists() and not (tmp_path / "out").exists()


def test_hostile_names(main, copied, tmp_path):
    """Folders whose names are nearly steps are none; a link is not followed, neither to be read nor to be deleted."""
    for name in ("00012", "1_000", "-9", "\u0661\u0662", "9" * 200, "8.corrupt", "../x".replace("/", "\u2215"), "12 "):
        (copied / "checkpoints" / name).mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("mine")
    (copied / "checkpoints" / "9.orbax-checkpoint-tmp").symlink_to(tmp_path / "mine")
    code, out, err = main("sample", f"--workdir={copied}", f"--out={tmp_path / 'out'}", "--steps=2", "--num_images=1")
    assert code == 0 and "of step 2" in out, err
    main("train", f"--workdir={copied}")
    (copied / "checkpoints" / "9.orbax-checkpoint-tmp").unlink(missing_ok=True)
    assert (tmp_path / "mine" / "precious").read_text() == "mine"
    (copied / "checkpoints" / "20").symlink_to(tmp_path / "mine")
    main("sample", f"--workdir={copied}", f"--out={tmp_path / 'out'}", "--steps=2", "--num_images=1")
    for name in ("checkpoints", "samples", "tensorboard", "metrics.jsonl", "evaluation"):
        other = shutil.copytree(copied, tmp_path / f"with_{name}", symlinks=True)
        shutil.rmtree(other / name, ignore_errors=True)
        (other / name).unlink(missing_ok=True)
        (other / name).symlink_to(tmp_path / "mine")
        assert_refused(main, programs(other, tmp_path)[:2], f"{name} is a link, to")
    assert (tmp_path / "mine" / "precious").read_text() == "mine" and len(list((tmp_path / "mine").iterdir())) == 1


def test_no_temporary_file_is_written_through_a_link(copied, small, tmp_path, main, words):
    """A stranger's metrics would end in a file of one's own, that a shell reads."""
    mine = tmp_path / ".profile"
    mine.write_text("mine")
    for name in ("metrics.jsonl.tmp", "config.json.tmp", "config.before_step_2.json.tmp", "samples/step_0000004.png.tmp"):
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).symlink_to(mine)
    changes = words({"training.num_steps": 4, "preview.every": 4})
    code, _, err = main("train", f"--workdir={copied}", *changes, "--accept_changes")
    assert code == 0 and mine.read_text() == "mine", err
    (copied / ".lock").unlink()
    (copied / ".lock").symlink_to(mine)
    code, _, err = main("train", f"--workdir={copied}")
    assert code == 2 and err.count("\n") == 1 and mine.read_text() == "mine"
