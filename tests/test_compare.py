"""Comparisons: what a row depends on, that none is made twice or lost, what is refused and what only skipped."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from noisesched import schedules
from noisesched.comparison import compare, report, study
from noisesched.data import pipeline
from noisesched.evaluation import classifier, features
from noisesched.models import build, generate
from noisesched.runs import config as configuration
from noisesched.runs import subject
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.workdir import Workdir
from noisesched.runtime.files import read_lines
from noisesched.training import loop
from noisesched.training import step as training_step

TABLE = "discrete(linear,num_steps=20)"
ASKED = study.Study(
    workdirs=(),
    runs={},
    train_seeds=(0,),
    parameters="ema",
    schedules=("linear", "cosine"),
    methods=("ddim",),
    guidances=("none",),
    calls=(2, 3),
    spacings=("trailing",),
    seeds=(0,),
    translations=("nearest",),
    outside="clamp",
    metrics=("frechet(raw)", "brightness"),
    num_images=16,
    reference="test",
    inception_weights="",
    likelihood="",
    likelihood_images=0,
)


def save(workdir, config, step=6, size=0.2):
    """A run as training would leave it, but with random parameters: an untrained network's output is zero."""
    random = np.random.default_rng(0)
    _, state = training_step.init(config)
    params = jax.tree.map(lambda leaf: random.normal(0, size, leaf.shape).astype(np.float32), state.params)
    workdir.write_config(configuration.to_dict(config))
    with Checkpoints(workdir, max_to_keep=1) as checkpoints:
        checkpoints.save(step, training_step.State(np.int32(step), params, params, ())._asdict())


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """What takes time here is compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def tiny(small):
    """`tiny(changes)`: the Config of a network that is as small as they come."""
    return lambda changes=(): small({"model.width": "4"} | dict(changes))


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Workdirs of a run told log-SNR and of one told timesteps."""
    folder = tmp_path_factory.mktemp("runs")
    told = {
        "log_snr": {"schedule": "linear"},
        "timestep": {"schedule": TABLE, "conditioning.kind": "timestep", "conditioning.table": TABLE},
    }
    for name, changes in told.items():
        save(Workdir(folder / name / "seed0"), tiny(changes))
    return {name: str(folder / name / "seed0") for name in told}


@pytest.fixture
def compared(runs, tmp_path):
    """`compared(workdirs=[..], ..)` -> (rows, lines said), in one directory for all calls of a test."""

    def run(**changes):
        changes = {"workdirs": tuple(runs.values())} | changes
        lines = []
        return compare.run(dataclasses.replace(ASKED, **changes), tmp_path / "out", say=lines.append), lines

    return run


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# -- rows


def test_own_networks_stand_beside_runs(compared, tmp_path, monkeypatch):
    (tmp_path / "my.py").write_text(
        "from noisesched import wrap\n"
        "half, whole = (wrap(lambda z, t, c=c: c * z, 'x', 'log_snr', shape=(8, 8, 1), drawn='cosine') for c in (0.5, 1.0))\n"
        "eps = wrap(lambda z, t: z, table='discrete(linear, num_steps=20)', shape=(8, 8, 1))\n"
    )
    denoisers = tuple(f"{tmp_path}/my.py:{name}" for name in ("half", "whole", "eps"))
    asked = dict(denoisers=denoisers, data="digits", schedules=("cosine", "linear"), calls=(2,))
    rows, _ = compared(**asked)
    own = [row for row in rows if row["run"].startswith("my.")]
    assert len(rows) == 2 * 5 and {row["run"] for row in own} == {"my.half", "my.whole", "my.eps"}
    refused = {(row["run"], row["schedule"]): row["refused"] for row in own if row["refused"]}
    assert list(refused) == [("my.eps", "cosine"), ("my.eps", "linear")]
    assert "predicts eps" in refused["my.eps", "cosine"] and "outside the table" in refused["my.eps", "linear"]
    assert all(row["checkpoint"] == 0 and row["workdir"] in denoisers for row in own)
    report.run(tmp_path / "out", say=lambda line: None)
    text = (tmp_path / "out" / "report" / "report.md").read_text()
    assert "my.half" in text and "absent" not in text
    monkeypatch.setattr(features, "reference", lambda *_, **__: pytest.fail("the real images were opened"))
    assert compared(**asked)[0] == rows  # nothing is made twice ..
    monkeypatch.undo()
    (tmp_path / "my.py").write_text((tmp_path / "my.py").read_text().replace("(0.5, 1.0)", "(0.4, 1.0)"))
    again, _ = compared(**asked)
    changed = {row["run"] for row in again if row not in rows}
    assert changed == {"my.half"}  # .. but of a network that answers something else


def test_every_combination_is_one_line_with_all_that_made_it(compared, tmp_path):
    rows, _ = compared(seeds=(0, 1), translations=("nearest", "raw"))
    assert len(rows) == (1 + 2) * 2 * 2 * 2  # (log-SNR + two translations) x schedules x calls x seeds
    assert read_lines(tmp_path / "out" / "compare.jsonl") == rows
    assert len({row["key"] for row in rows}) == len(rows)
    assert all(set(row["metrics"]) == {"frechet(raw, n=16)", "brightness(n=16)"} for row in rows)
    assert all((tmp_path / "out" / row["preview"]).is_file() for row in rows)
    assert all(sum(row["appearance"]["histogram"]) == 16 for row in rows)
    asked = json.loads((tmp_path / "out" / "config.json").read_text())
    assert asked["keys"] == [row["key"] for row in rows] and asked["comparison"]["calls"] == [2, 3]
    reference = json.loads((tmp_path / "out" / "reference.json").read_text())
    assert set(reference["floor"]) == set(rows[0]["metrics"])
    assert set(reference["appearance"]) == {"real", "floor"}


def test_a_second_call_makes_nothing_and_opens_nothing(compared, monkeypatch):
    rows, _ = compared()
    monkeypatch.setattr(features, "reference", lambda *_, **__: pytest.fail("the real images were opened"))
    monkeypatch.setattr(subject, "Checkpoints", lambda *_, **__: pytest.fail("a checkpoint was opened"))
    again, lines = compared()
    assert again == rows and "0 of them new" in lines[-1]


def test_what_is_asked_in_addition_is_all_that_is_made(compared, tmp_path):
    compared(schedules=("linear",))
    first = read_lines(tmp_path / "out" / "compare.jsonl")
    compared(schedules=("karras",))
    assert len(json.loads((tmp_path / "out" / "config.json").read_text())["keys"]) == 2 * len(first)  # a report shows all
    both = read_lines(tmp_path / "out" / "compare.jsonl")
    assert both[: len(first)] == first and len(both) == 2 * len(first)


def test_numbers_of_another_classifier_neither_stand_for_nor_beside_todays(compared, monkeypatch, tmp_path):
    first, _ = compared(schedules=("linear",))
    monkeypatch.setattr(classifier, "VERSION", classifier.VERSION + 1)
    second, lines = compared(schedules=("linear",))
    assert f"{len(first)} of them new" in lines[-1] and not {row["key"] for row in first} & {row["key"] for row in second}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["keys"] == [row["key"] for row in second]


@pytest.mark.parametrize(
    "changes",
    [{"parameters": "params"}, {"num_images": 12}, {"metrics": ("brightness",)}, {"reference": "train"}, {"outside": "refuse"}],
)
def test_what_was_asked_differently_does_not_stand_in_one_report(compared, runs, tmp_path, changes):
    only = {"workdirs": (runs["timestep"],), "schedules": (TABLE,), "calls": (2,)}
    keys = lambda: json.loads((tmp_path / "out" / "config.json").read_text())["keys"]
    first, _ = compared(**only)
    second, _ = compared(**only | changes)
    assert keys() == [row["key"] for row in second] != [row["key"] for row in first]
    again, lines = compared(**only)
    assert again == first and keys() == [row["key"] for row in first] and "0 of them new" in lines[-1]
    about = json.loads((tmp_path / "out" / "reference.json").read_text())["about"]
    assert (about["split"], about["n"]) == ("test", 16)  # the floor is of what is asked now


def test_a_schedules_file_may_change(compared, runs, tmp_path):
    """The numbers follow; what was sampled is in the rows."""
    file = tmp_path / "levels.txt"
    only = {"workdirs": (runs["log_snr"],), "schedules": (f"piecewise('{file}')",), "calls": (2,)}
    made = []
    for levels in ("5\n0\n-5\n", "5\n3\n-5\n"):
        file.write_text(levels)
        rows, lines = compared(**only)
        assert "1 of them new" in lines[-1]
        made.append(rows[0])
        assert json.loads((tmp_path / "out" / "config.json").read_text())["keys"] == [rows[0]["key"]]
    assert made[0]["log_snrs"] == [-5, 0] and made[1]["log_snrs"] == [-5, 3] and made[0]["metrics"] != made[1]["metrics"]


def test_the_data_may_change(compared, runs, monkeypatch):
    only = {"workdirs": (runs["log_snr"],), "calls": (2,)}
    first, _ = compared(**only)
    monkeypatch.setattr(pipeline.Split, "identity", property(lambda split: "digits/1.0.0, info crc32 00000000"))
    second, _ = compared(**only)
    assert not {row["key"] for row in first} & {row["key"] for row in second}


def test_a_new_checkpoint_makes_its_rows_anew(runs, compared, tiny):
    first, _ = compared(workdirs=(runs["log_snr"],))
    with Checkpoints(Workdir(runs["log_snr"]), max_to_keep=2) as checkpoints:
        _, state = training_step.init(tiny({"schedule": "linear"}))
        params = jax.tree.map(np.asarray, state.params)
        checkpoints.save(8, training_step.State(np.int32(8), params, params, ())._asdict())
    second, lines = compared(workdirs=(runs["log_snr"],))
    assert {row["checkpoint"] for row in second} == {8} and "4 of them new" in lines[-1]


def test_a_killed_comparison_ends_with_the_same_rows(compared, monkeypatch, tmp_path):
    path, usual, made = tmp_path / "out" / "compare.jsonl", compare.generate, []

    def killed_at_the_fourth(*args, **kwargs):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(1)
        return usual(*args, **kwargs)

    monkeypatch.setattr(compare, "generate", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        compared()
    monkeypatch.setattr(compare, "generate", usual)
    before = path.read_text()
    assert before.count("\n") == 3
    path.write_text(before + '{"key": "1234')  # and one more was being written
    resumed, lines = compared()
    assert path.read_text().startswith(before) and "5 of them new" in lines[-1]
    path.unlink()
    whole, _ = compared()
    assert without_times(whole) == without_times(resumed)


def test_trained_stands_for_each_runs_own_schedule(compared, runs):
    rows, _ = compared(schedules=("trained", "discrete( linear, num_steps=20 )"), calls=(2,))
    assert [(row["run"], row["schedule"]) for row in rows] == [
        ("log_snr", "linear"),
        ("log_snr", "discrete( linear, num_steps=20 )"),
        ("timestep", "discrete( linear, num_steps=20 )"),  # which is its own, and is not made twice
    ]
    with pytest.raises(configuration.ConfigError, match="21 of 20 steps"):
        compared(schedules=("trained",), calls=(21,))


def test_spacings_stand_beside_each_other(compared, runs):
    one, _ = compared(workdirs=(runs["log_snr"],))
    both, lines = compared(workdirs=(runs["log_snr"],), spacings=("trailing", "leading"))
    assert f"{len(one)} of them new" in lines[-1] and len(both) == 2 * len(one)
    leading = [row for row in both if row["spacing"] == "leading"]
    assert all(row["log_snrs"] == schedules.levels(row["schedule"], row["levels"], "leading").tolist() for row in leading)
    assert without_times([row for row in both if row["spacing"] == "trailing"]) == without_times(one)


def test_classes_are_those_of_the_real_images(compared, tiny, monkeypatch, tmp_path):
    save(Workdir(tmp_path / "classes" / "seed0"), tiny({"model.num_classes": 10}))
    seen = []
    monkeypatch.setattr(
        compare,
        "generate",
        lambda *args, labels, **options: seen.append(labels) or generate.generate(*args, labels=labels, **options),
    )
    rows, _ = compared(workdirs=(str(tmp_path / "classes" / "seed0"),), schedules=("cosine",), calls=(2,))
    test = pipeline.examples(pipeline.open_config(tiny().data, "test"))["label"]
    assert (seen[0] == test[np.random.default_rng(0).permutation(297)[:16]]).all()  # and not each class in turn
    assert rows[0]["asked"]["labels"] == "of the real images"
    save(Workdir(tmp_path / "few" / "seed0"), tiny({"model.num_classes": 9}))
    with pytest.raises(configuration.ConfigError, match="labels 0 to 9 .* has 0 to 8"):
        compared(workdirs=(str(tmp_path / "few" / "seed0"),))


def test_shares_of_several_processes_make_the_whole(compared, runs, tmp_path):
    alone, _ = compared()
    asked, shared_out = dataclasses.replace(ASKED, workdirs=tuple(runs.values())), tmp_path / "shared"
    for k in (1, 2):
        rows = compare.run(asked, shared_out, share=(k, 2), say=lambda line: None)
        assert {row["run"] for row in rows} == {list(runs)[k - 1]}
    assert not (shared_out / "config.json").exists()  # the whole is still to come
    lines = []
    together = compare.run(asked, shared_out, say=lines.append)
    assert "0 of them new" in lines[-1]
    assert without_times(together) == without_times(alone)
    assert all((shared_out / row["preview"]).is_file() for row in together)
    compare.run(asked, shared_out, say=lines.append)
    assert len(read_lines(shared_out / "compare.jsonl")) == len(alone)  # taken over once

    more = compare.run(dataclasses.replace(asked, calls=(3, 4)), shared_out, share=(1, 2), say=lines.append)
    assert "2 of them new" in lines[-1] and len(more) == 4  # what stands in the whole is not made again
    assert compare.run(asked, shared_out, share=(3, 3), say=lines.append) == []  # of two runs
    with Workdir(shared_out / "shares" / "2of2").held():  # it goes on beside the other half, and beside nothing else
        compare.run(asked, shared_out, share=(1, 2), say=lines.append)
        for other in (None, (2, 2), (1, 3)):
            with pytest.raises(ValueError, match="2of2 is in use"):
                compare.run(asked, shared_out, share=other, say=lines.append)


@pytest.mark.parametrize("share", [(0, 2), (3, 2)])
def test_a_share_that_is_none_is_refused(runs, tmp_path, share):
    with pytest.raises(configuration.ConfigError, match=f"share {share[0]}/{share[1]}: give K/N"):
        compare.run(dataclasses.replace(ASKED, workdirs=tuple(runs.values())), tmp_path / "out", share=share)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_costs_the_row_that_was_being_written(compared, monkeypatch, tmp_path):
    usual, written = os.fsync, []

    def full(file):
        if os.readlink(f"/proc/self/fd/{file}").endswith("compare.jsonl"):
            written.append(1)
            if len(written) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return usual(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*compare\.jsonl"):
        compared()
    monkeypatch.setattr(os, "fsync", usual)
    rows, lines = compared()
    assert len(rows) == 8 and int(lines[-1].split(" rows are there, ")[1].split()[0]) <= 6


def test_one_program_serves_all_runs_and_schedules_of_a_network_and_a_length(compared, tiny, tmp_path, monkeypatch):
    generate.draw.clear_cache()
    others = {"linear": {"schedule": "linear", "seed": 1}, "cosine": {}}
    for name, changes in others.items():
        save(Workdir(tmp_path / name), tiny(changes))
    compared(workdirs=tuple(str(tmp_path / name) for name in others), schedules=("linear", "karras"))
    assert generate.draw._cache_size() == 2  # lengths 2 and 3


def test_the_same_noise_in_every_row(compared, monkeypatch):
    seen = []
    monkeypatch.setattr(compare, "generate", lambda *args, seed, **kwargs: seen.append(seed) or np.zeros((16, 8, 8, 1), np.uint8))
    compared(seeds=(7,))
    assert set(seen) == {7}


# -- timesteps


def test_raw_steps_are_right_under_the_training_schedule_and_wrong_under_another(compared, runs):
    rows, _ = compared(workdirs=(runs["timestep"],), schedules=(TABLE, "cosine"), calls=(5,), translations=("nearest", "raw"))
    by = {(row["schedule"], row["translation"]): row["metrics"] for row in rows}
    assert by[TABLE, "nearest"] == by[TABLE, "raw"]
    assert by["cosine", "nearest"] != by["cosine", "raw"]


def test_raw_tells_the_steps_of_the_table(tiny):
    config = tiny({"schedule": TABLE, "conditioning.kind": "timestep", "conditioning.table": TABLE})
    table = build.make_conditioning(config).table
    np.testing.assert_allclose(generate.told_raw(config, 5), [table[step - 1] for step in (20, 16, 12, 8, 4)], rtol=1e-6)
    for n in (3, 7, 19):  # which do not divide the table: the training schedule's own levels all the same
        np.testing.assert_allclose(generate.told_raw(config, n), schedules.levels(TABLE, n), rtol=1e-6)
    np.testing.assert_allclose(generate.told_raw(config, 40)[:4], [table[19], table[19], table[18], table[18]], rtol=1e-6)


@pytest.mark.parametrize("handling", ["refuse", "clamp"])
def test_levels_beyond_the_table_are_counted_and_refused_or_clamped(compared, handling):
    rows, lines = compared(outside=handling, calls=(3,), translations=("nearest", "raw"))
    by = {(row["told"], row["schedule"], row["translation"]): row for row in rows}
    beyond = by["timestep", "cosine", "nearest"]  # from log-SNR -inf; 20 steps of DDPM's betas end at 3
    assert beyond["outside"] == {"levels": 3, "by": np.inf, "handled": {"refuse": "refused", "clamp": "clamped"}[handling]}
    assert bool(beyond["refused"]) == (handling == "refuse") and bool(beyond["metrics"]) == (handling == "clamp")
    for others in (by["log_snr", "cosine", None], by["timestep", "cosine", "raw"]):
        assert others["outside"]["levels"] == 0 and others["metrics"]
    assert any("lie outside the table" in line for line in lines) == (handling == "refuse")


# -- faults


def test_images_that_are_not_finite_cost_their_row_alone(compared, tiny, runs, tmp_path):
    save(Workdir(tmp_path / "wild"), tiny({"schedule": "linear"}), size=1e30)
    rows, lines = compared(workdirs=(str(tmp_path / "wild"), runs["log_snr"]))
    assert [bool(row["refused"]) for row in rows] == [True] * 4 + [False] * 4
    assert "not finite" in rows[0]["refused"] and rows[0]["metrics"] == {}


def test_a_diverged_network_costs_its_own_likelihood_alone(compared, tiny, runs, tmp_path):
    save(Workdir(tmp_path / "wild"), tiny({"schedule": "linear"}), size=1e30)
    rows, lines = compared(workdirs=(str(tmp_path / "wild"), runs["log_snr"]), likelihood="test", likelihood_images=4, calls=(2,))
    assert [bool(row["refused"]) for row in rows] == [True] * 2 + [False] * 2
    assert any("no bits per dimension for wild, seed 0: the network's estimate" in line for line in lines)
    described = json.loads((tmp_path / "out" / "runs.json").read_text())
    assert "not finite" in described["wild"]["evaluations"][str(tmp_path / "wild")]
    assert list(described["log_snr"]["evaluations"].values()) == [None]
    assert (tmp_path / "out" / "evaluations" / "log_snr" / "seed0" / "evaluation.json").is_file()
    assert not (Workdir(runs["log_snr"]).path / "evaluation").exists()  # what `evaluate` writes is left alone


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(compared, tiny, tmp_path):
    workdir, config = Workdir(tmp_path / "run"), tiny({"schedule": "linear"})
    save(workdir, config, step=6)
    with Checkpoints(workdir, max_to_keep=2) as checkpoints:
        _, state = training_step.init(config)
        params = jax.tree.map(np.asarray, state.params)
        checkpoints.save(8, training_step.State(np.int32(8), params, params, ())._asdict())
    for file in Path(workdir.checkpoints / "8" / "ema").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    rows, _ = compared(workdirs=(str(workdir.path),), calls=(2,))
    assert {row["checkpoint"] for row in rows} == {6} and all(row["metrics"] for row in rows)


def test_guidance_that_no_network_can_be_given_is_refused_before_training(compared, tiny):
    described = {"small": configuration.to_dict(tiny({}))}
    with pytest.raises(configuration.ConfigError, match="trained without classes"):
        compared(workdirs=(), runs=described, guidances=("none", "cfg(3)"))


def test_noise_predictors_at_zero_snr_cost_their_row_alone(compared, tiny, tmp_path):
    save(Workdir(tmp_path / "eps"), tiny({"schedule": "linear", "model.prediction": "eps"}))
    rows, _ = compared(workdirs=(str(tmp_path / "eps"),), calls=(3,))
    assert [bool(row["refused"]) for row in rows] == [False, True] and "zero SNR" in rows[1]["refused"]


FAULTS = {
    "nothing": ({"workdirs": ()}, "nothing to compare"),
    "no schedules": ({"schedules": ()}, "schedules is empty"),
    "twice": ({"calls": (5, 5)}, "calls: 5 is given twice"),
    "schedule": ({"schedules": ("cosin",)}, "schedules: .*cosin.*known"),
    "method": ({"methods": ("dim",)}, "methods: .*dim.*known"),
    "metric": ({"metrics": ("fid",)}, "metrics: .*fid"),
    "calls": ({"calls": (0,)}, "calls=0 must be at least 1"),
    "translation": ({"translations": ("none",)}, "translations='none': choose one of nearest, interpolated, raw"),
    "outside": ({"outside": "ignore"}, "outside='ignore': choose one of refuse, clamp"),
    "guidance": ({"guidances": ("cfg(3)", "none", "cfg(3.0)")}, r"guidances: 'cfg\(3\)' and 'cfg\(3.0\)' are the same"),
    "spacing": ({"spacings": ("even",)}, "spacings='even': choose one of trailing, leading, linspace"),
    "parameters": ({"parameters": "raw"}, "parameters='raw'"),
    "seed": ({"seeds": (-1,)}, "seeds=-1"),
    "num_images": ({"num_images": 0}, "num_images=0"),
    "twice in other words": ({"schedules": ("cosine", "cosine()")}, "schedules: 'cosine' and 'cosine\\(\\)' are the same"),
    "euler": ({"methods": ("ddim", "euler")}, "methods: 'ddim' and 'euler' are the same"),
    "eta": ({"methods": ("ddim(eta=0)", "heun", "ddim")}, r"methods: 'ddim\(eta=0\)' and 'ddim' are the same"),
    "churn": ({"methods": ("heun(churn=1)", "heun(churn=1.0, churn_noise=1)")}, "are the same"),
    "a table's steps": ({"schedules": ("discrete(linear, num_steps=2)",)}, "num_steps=2.*, 3 calls of ddim: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_asked_is_said_in_one_line(runs, fault):
    changes, message = FAULTS[fault]
    with pytest.raises(configuration.ConfigError, match=message) as raised:
        study.from_dict(dataclasses.asdict(ASKED) | {"workdirs": tuple(runs.values())} | changes)
    assert "\n" not in str(raised.value)


def test_samplers_that_differ_in_an_option_are_two(runs):
    asked = {"workdirs": list(runs.values()), "methods": ["ddim", "ddim(eta=1)", "ancestral", "heun", "heun(churn=1)"]}
    assert study.from_dict(dataclasses.asdict(ASKED) | asked).methods == tuple(asked["methods"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 5000}, "num_images=5000: .*choose 1 to 148"),
        ({"num_images": 1}, "num_images=1: frechet needs sets of at least 2"),
        ({"reference": "nope"}, "reference='nope'.*no split 'nope'"),
        ({"likelihood": "nope"}, "likelihood='nope'.*no split 'nope'"),
        ({"likelihood": "test", "likelihood_images": 5000}, "likelihood_images=5000: 'test' has 297 images"),
        ({"metrics": ("frechet(inception)",)}, "needs a file, inception_weights"),
        ({"metrics": ("frechet(inception)",), "inception_weights": "/none.npz"}, "/none.npz: no such file"),
    ],
)
def test_what_the_data_cannot_give_is_said_before_anything_is_trained(compared, tiny, monkeypatch, tmp_path, changes, message):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(configuration.ConfigError, match=message) as raised:
        compared(workdirs=(), runs={"new": configuration.to_dict(tiny())}, **changes)
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_a_run_is_not_overwritten(compared, runs):
    workdir = Workdir(runs["log_snr"])
    before = workdir.config.read_text()
    study_of_it = dataclasses.replace(ASKED, workdirs=(runs["log_snr"],))
    with pytest.raises(configuration.ConfigError, match="is the workdir of a run: give a comparison a folder of its own"):
        compare.run(study_of_it, runs["log_snr"], say=print)
    assert workdir.config.read_text() == before and not (workdir.path / "runs.json").exists()


def test_a_name_that_json_would_read_as_a_number_is_refused(compared, tiny):
    with pytest.raises(configuration.ConfigError, match="'nan' stands for a number"):
        compared(workdirs=(), runs={"nan": configuration.to_dict(tiny())})


def test_a_device_without_space_is_named():
    with pytest.raises(OSError, match=r"No space left.*/dev/full"):
        compare.append("/dev/full", {"key": "a"})


def test_an_empty_workdir_is_named(compared, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no run"):
        compared(workdirs=(str(tmp_path / "empty"),))


def test_a_run_without_checkpoints_is_named(compared, tiny, tmp_path):
    Workdir(tmp_path / "begun").write_config(configuration.to_dict(tiny()))
    with pytest.raises(configuration.ConfigError, match="begun holds no checkpoint yet"):
        compared(workdirs=(str(tmp_path / "begun"),))


def test_an_edited_config_is_refused_even_where_the_shapes_fit(compared, tiny, tmp_path):
    workdir = Workdir(tmp_path / "edited")
    save(workdir, tiny())
    workdir.write_config(configuration.to_dict(tiny({"model.prediction": "x"})))
    with pytest.raises(ValueError, match='edited.*model.prediction: "v" -> "x".*put that back') as raised:
        compared(workdirs=(str(workdir.path),))
    assert "\n" not in str(raised.value)


def test_unequal_images_are_refused(compared, tiny, runs, tmp_path):
    save(Workdir(tmp_path / "large"), tiny({"data.image_size": 16}))
    with pytest.raises(configuration.ConfigError, match="other images.*'image_size': 16"):
        compared(workdirs=(runs["log_snr"], str(tmp_path / "large")))


def test_one_name_for_two_configurations_is_refused(compared, tiny, tmp_path):
    for name, changes in (("seed0", {}), ("seed1", {"weighting": "eps"})):
        save(Workdir(tmp_path / "run" / name), tiny(changes))
    with pytest.raises(configuration.ConfigError, match="differ in more than the seed: weighting"):
        compared(workdirs=(str(tmp_path / "run" / "seed0"), str(tmp_path / "run" / "seed1")))


def test_a_damaged_line_is_named(compared, tmp_path):
    compared(schedules=("linear",))
    path = tmp_path / "out" / "compare.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(ValueError, match="compare.jsonl, line 1"):
        compared(schedules=("linear",))


def test_more_images_than_there_are_is_said_before_sampling(compared, monkeypatch):
    monkeypatch.setattr(compare, "generate", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(ValueError, match="148"):  # half of the 297
        compared(num_images=200)


# -- training, through the command line


def test_runs_are_trained_first_and_only_once(main, words, tmp_path):
    config = tmp_path / "comparison.py"
    changes = dict(
        word.removeprefix("--config.").split("=", 1) for word in words({"model.width": "4", "training.num_steps": "2"})[1:]
    )
    settings = "\n".join(
        f"    override(small, {name!r}, {value!r})" for name, value in changes.items() if name != "optimizer.decay"
    )
    config.write_text(f"""
import ast
from configs import compare, digits

def override(config, name, value):
    *groups, last = name.split(".")
    for group in groups:
        config = config[group]
    config[last] = ast.literal_eval(value)

def get_config():
    config = compare.get_config()
    small = digits.get_config()
{settings}
    config.runs.small = small
    config.train_seeds = (0, 1)
    config.metrics = ("frechet(raw)",)
    config.num_images = 16
    config.reference = "test"
    config.likelihood_images = 4
    config.schedules = ("cosine",)
    config.calls = (2,)
    return config
""")
    root = compare.__file__.rsplit("/noisesched/", 1)[0]
    (tmp_path / "configs").symlink_to(os.path.join(root, "configs"))
    (tmp_path / "mine").mkdir()
    config = config.rename(tmp_path / "mine" / "comparison.py")
    out = tmp_path / "out"
    code, text, error = main("compare", f"--config={config}", f"--out={out}", "--share=2/2")
    assert code == 0 and "training run 1 of 1: small, seed 1" in text, error
    code, text, error = main("compare", f"--config={config}", f"--out={out}")
    assert code == 0, error
    assert "training run 1 of 2: small, seed 0" in text and "training run 2 of 2" not in text and "1 of them new" in text
    code, _, error = main("compare", f"--config={config}", f"--out={out}", "--share=2of2")
    assert code == 2 and "share K/N, such as 1/2" in error
    assert (out / "evaluations" / "small" / "seed1" / "evaluation.json").is_file()
    described = json.loads((out / "runs.json").read_text())["small"]
    assert len(described["workdirs"]) == 2 and min(described["seconds"]) > 0
    code, text, error = main("compare", f"--config={config}", f"--out={out}")
    assert code == 0 and "training run" not in text and "0 of them new" in text
    code, text, _ = main("compare", f"--config={config}", f"--out={out}", "--config.calls=(5, 6)", "--config.calls=(2,)")
    assert code == 0 and "all 2 rows are there, 0 of them new" in text  # of a setting given twice, the last counts
    code, _, error = main("compare", f"--config={config}", f"--out={out}", "--config.num_images=17", "--config.outside=never")
    assert code == 2 and error.count("\n") == 1 and "choose one of refuse, clamp" in error
