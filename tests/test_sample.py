"""Sampling a run: what is written, what it depends on, what is said, what is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from noisesched import samplers, schedules
from noisesched.evaluation import sample
from noisesched.models import build, denoiser
from noisesched.models import generate as generation
from noisesched.runs import config as configuration
from noisesched.runs import requests, subject
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.workdir import Workdir
from noisesched.training import step as training_step

ASKED = requests.Sample(
    workdir="",
    schedule=("cosine",),
    steps=(3,),
    method=("ddim",),
    spacing="trailing",
    num_images=5,
    seed=0,
    parameters="ema",
    checkpoint=None,
    translation=None,
    labels=(),
    guidance=("none",),
    out="",
)
KINDS = {
    "plain": {},
    "classes": {"model.num_classes": 3},
    "never": {"model.num_classes": 3, "model.label_dropout": 0.0},
    "linear": {"schedule": "linear"},
    "table": {
        "schedule": "discrete(linear,num_steps=100)",
        "conditioning.kind": "timestep",
        "conditioning.table": "discrete(linear,num_steps=100)",
    },
}


def shapes(config):
    return denoiser.split(nnx.eval_shape(lambda: build.make_denoiser(config)))[1]


def parameters(config, seed):
    """Random ones, with no layer at zero: an untrained network's output is."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.normal(0, 0.2, leaf.shape).astype(np.float32), shapes(config))


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """{kind: the path of a run with checkpoints of steps 10 and 20}, made without training."""
    made = {}
    for kind, changes in KINDS.items():
        workdir, config = Workdir(tmp_path_factory.mktemp(kind) / "run"), small(changes)
        workdir.write_config(configuration.to_dict(config))
        with Checkpoints(workdir, max_to_keep=2) as checkpoints:
            for step in (10, 20):
                params, ema = parameters(config, step), parameters(config, step + 1)
                checkpoints.save(step, training_step.State(np.int32(step), params, ema, ())._asdict())
        made[kind] = str(workdir.path)
    return made


@pytest.fixture
def sampled(runs, tmp_path):
    """`sampled("plain", steps=(2,), ..)` -> (images of the only combination or of all, lines said)."""

    def run(kind="plain", **changes):
        lines = []
        images = sample.run(
            dataclasses.replace(ASKED, workdir=runs[kind], **({"out": str(tmp_path / "out")} | changes)), lines.append
        )
        return (next(iter(images.values())) if len(images) == 1 else images), lines

    return run


def assert_same(images, others):
    """Equal but for rounding: a program for another batch size may differ in the last bit before images become uint8."""
    difference = np.abs(images.astype(int) - others)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


# -- files


def test_files_of_one_combination(runs, sampled, tmp_path):
    before = snapshot(Path(runs["plain"]))
    images, lines = sampled("plain", schedule=("zero_terminal(scaled_linear)",), method=("heun",))
    assert snapshot(Path(runs["plain"])) == before  # the run itself is only read
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"samples.npy", "grid.png", "settings.json"}
    stored = np.load(out / "samples.npy", allow_pickle=False)
    assert stored.dtype == np.uint8 and stored.shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(stored, images)
    assert stored.std() > 10  # pictures, not a constant
    with Image.open(out / "grid.png") as grid:
        assert grid.mode == "L" and grid.width > grid.height > 2 * 8  # 5 images as 3 + 2
    settings = json.loads((out / "settings.json").read_text(), parse_constant=lambda token: pytest.fail(token))
    levels = settings.pop("log_snrs")
    assert levels[0] == "-inf"
    np.testing.assert_allclose(levels[1:], np.asarray(schedules.levels(schedules.make("zero_terminal(scaled_linear)"), 3))[1:])
    assert settings.pop("seconds") > 0
    assert settings == {
        "workdir": runs["plain"],
        "checkpoint": 20,
        "parameters": "ema",
        "schedule": "zero_terminal(scaled_linear)",
        "steps": 3,
        "spacing": "trailing",
        "method": "heun",
        "guidance": "none",
        "network_calls": 5,
        "num_images": 5,
        "seed": 0,
        "translation": None,
        "labels": None,
    }
    assert lines[-1] == f"1 x 5 images of step 20 in {out}"


def test_images_for_other_tools(sampled, tmp_path):
    images, _ = sampled(formats=("npz", "png"))
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"samples.npz", "images", "grid.png", "settings.json"}
    with np.load(out / "samples.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["arr_0"], images)
    assert [path.name for path in sorted((out / "images").iterdir())] == [f"0000{number}.png" for number in range(5)]
    for number, image in enumerate(images):
        with Image.open(out / "images" / f"0000{number}.png") as read:
            np.testing.assert_array_equal(np.asarray(read), image[..., 0])


def test_a_picture_that_cannot_be_made_costs_no_sample(sampled, tmp_path, monkeypatch):
    def fails(*given):
        raise RuntimeError("latex could not be found\nand more")

    monkeypatch.setattr(sample, "write_png", fails)
    monkeypatch.setattr(sample, "save_figure", fails)
    _, lines = sampled("plain", steps=(2, 3))
    assert (
        lines.count("warning: the results are complete, but a picture of them could not be made: latex could not be found") == 3
    )
    for folder in (tmp_path / "out").iterdir():
        assert np.load(folder / "samples.npy").shape == (5, 8, 8, 1) and (folder / "settings.json").exists()


def test_samples_of_other_settings_are_not_replaced_in_silence(sampled):
    for changes, word in (({}, ""), ({}, ""), ({"seed": 1}, "another seed"), ({"seed": 1, "schedule": ("linear",)}, "schedule")):
        _, lines = sampled("plain", **changes)
        notes = [line for line in lines if "replaced" in line]
        assert len(notes) == bool(word) and all(word in note for note in notes), lines


def test_several_combinations(sampled, tmp_path):
    long = f"piecewise([{', '.join(str(9 - n / 10) for n in range(120))}])"
    images, lines = sampled(schedule=("cosine", "shifted(cosine, by=-2)", long), method=("ddim", "dpmpp_2m"), steps=(2,))
    out = tmp_path / "out"
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert len(images) == len(folders) == 6 and (out / "overview.png").stat().st_size > 1000
    assert {"cosine-ddim-2", "cosine-dpmpp_2m-2", "shifted_cosine_by=-2-ddim-2"} < folders
    for (schedule, method, n), made in images.items():
        folder = out / sample.slug(schedule, method, n)
        np.testing.assert_array_equal(np.load(folder / "samples.npy"), made)
        settings = json.loads((folder / "settings.json").read_text())
        assert (settings["schedule"], settings["method"], settings["steps"]) == (schedule, method, n)
    # Two levels of one schedule: dpmpp_2m's first step is ddim's, so they agree, and another schedule does not.
    assert_same(images["cosine", "ddim", 2], images["cosine", "dpmpp_2m", 2])
    assert (images["cosine", "ddim", 2] != images["shifted(cosine, by=-2)", "ddim", 2]).mean() > 0.1
    assert lines[-1].endswith("see overview.png")


def test_folder_names_differ_where_specs_do():
    texts = [
        "shifted(cosine, by=-2)",
        "shifted(cosine, by=2)",
        "shifted(cosine, by=0.2)",
        "cosine",
        "a" * 300,
        "a" * 301,
        "shifted(cosine, -2)",
        "shifted(cosine, 2)",
        "piecewise([4, 2, -4])",
        "piecewise([4, -2, -4])",
        "f(g(1), 2)",
        "f(g(1, 2))",
    ]
    names = [sample.slug(text, "ddim", 2) for text in texts]
    assert len(set(names)) == len(names) and max(map(len, names)) < 100 and not any(set(name) & set("/\\ ()") for name in names)


# -- what an image depends on


def test_the_seed_decides_and_the_batch_does_not(sampled, monkeypatch):
    """Image i is the same among 5 and among 21, in batches of 64 x 8 devices and of 2 on one."""
    images, _ = sampled("classes", num_images=21)
    again, _ = sampled("classes", num_images=21)
    np.testing.assert_array_equal(images, again)
    assert_same(images[:5], sampled("classes")[0])
    assert (images != sampled("classes", num_images=21, seed=1)[0]).mean() > 0.5
    assert len(np.unique(images, axis=0)) == 21
    monkeypatch.setattr(generation, "BATCH", 2)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    assert_same(images, sampled("classes", num_images=21)[0])


def test_random_samplers_do_not_depend_on_the_batch_either(sampled, monkeypatch):
    images, _ = sampled(method=("ddim(eta=1)",), num_images=9)
    assert (images != sampled(num_images=9)[0]).mean() > 0.5
    monkeypatch.setattr(generation, "BATCH", 3)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    assert_same(images, sampled(method=("ddim(eta=1)",), num_images=9)[0])


def test_sampling_starts_from_the_noise_of_training(small, monkeypatch):
    """With offset noise, an image's mean varies as much more as it did in training."""
    monkeypatch.setattr(samplers, "sample", lambda denoise, key, z, *rest, **options: z / 10)  # within what is not clipped
    spread = {}
    for offset in (0.0, 0.5):
        config = small({"noise_offset": offset})
        made = generation.generate(build.network(config, parameters(config, 0)), np.array([-np.inf], np.float32), 256, seed=0)
        spread[offset] = made.mean((1, 2, 3)).std() / 12.75
    pixels = config.data.image_size**2
    assert spread[0.0] ** 2 == pytest.approx(1 / pixels, rel=0.25)
    assert spread[0.5] ** 2 == pytest.approx(1 / pixels + 0.25, rel=0.25)


def test_which_parameters(sampled):
    made = [sampled(parameters=p, checkpoint=c)[0] for p, c in (("ema", None), ("ema", 20), ("params", 20), ("ema", 10))]
    np.testing.assert_array_equal(made[0], made[1])
    assert all((made[0] != other).mean() > 0.5 for other in made[2:])


def test_labels_go_round_and_decide(sampled, tmp_path):
    first, _ = sampled("classes", num_images=6)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["labels"] == [0, 1, 2, 0, 1, 2]
    second, _ = sampled("classes", num_images=6, labels=(0, 3))  # 3 is no label
    same = [(a == b).mean() > 0.9 for a, b in zip(first, second, strict=True)]
    assert same == [True, False, False, False, False, False]


def test_guidance_is_a_way_of_its_own(sampled, tmp_path):
    """Scale 1 is no guidance; scale 0 is the network without a label, whatever the labels are."""
    images, _ = sampled("classes", guidance=("none", "cfg(1)", "cfg(0)", "cfg(3, rescaled(0.7))"))
    ways = [way for _, way, _ in images]
    assert ways == ["ddim", "ddim, cfg(1)", "ddim, cfg(0)", "ddim, cfg(3, rescaled(0.7))"]
    plain, same, without, guided = images.values()
    np.testing.assert_array_equal(plain, same)
    assert_same(without, sampled("classes", labels=(3,), out=str(tmp_path / "unlabelled"))[0])  # 3 is no label
    assert (guided != plain).mean() > 0.1 and (tmp_path / "out" / "overview.png").stat().st_size > 1000
    settings = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("*/settings.json"))]
    assert sorted(each["guidance"] for each in settings) == ["cfg(0)", "cfg(1)", "cfg(3, rescaled(0.7))", "none"]


def test_translation_of_levels_to_timesteps(sampled):
    nearest, between = (sampled("table", translation=kind)[0] for kind in ("nearest", "interpolated"))
    assert (nearest != between).mean() > 0.05
    np.testing.assert_array_equal(nearest, sampled("table")[0])  # as the config says
    # On the table's own levels there is nothing to translate.
    table = dict(schedule=("discrete(linear, num_steps=100)",), steps=(4,))
    assert_same(*(sampled("table", translation=kind, **table)[0] for kind in ("nearest", "interpolated")))


def test_one_compilation_for_all_schedules_of_a_length(small):
    config = small()
    network = build.network(config, parameters(config, 0))
    generation.draw.clear_cache()

    def generate(spec, n, num_images=3, seed=0):
        levels = schedules.levels(schedules.make(spec), n)
        return generation.generate(network, levels, num_images, seed=seed)

    made = [generate(spec, 3) for spec in ("cosine", "linear", "karras", "discrete(linear)", "zero_terminal(linear)")]
    generate("cosine", 3, num_images=8, seed=5)  # both fill 8 devices with one image each
    assert generation.draw._cache_size() == 1
    assert all((made[0] != other).any() for other in made[1:])
    generate("cosine", 4)
    assert generation.draw._cache_size() == 2


# -- what is said


def test_notes_on_levels_outside_training(small):
    def notes(changes, step=20, n=4, spec="cosine"):
        levels = np.asarray(schedules.levels(schedules.make(spec), n))
        return list(sample.outside(subject.of_config(small(changes), step=step), {(spec, n): levels}))

    assert notes({}) == []
    noisier = notes(KINDS["linear"])
    assert len(noisier) == 1 and "cosine, 4 steps: 1 of 4 levels are noisier than training with linear went" in noisier[0]
    assert "(log-SNR -10.05), by up to inf" in noisier[0]
    # 20 steps of 16: one u in 320 was as clean as u = 1/320, where cosine's log-SNR is 9.1; karras starts its last at 10.2.
    cleaner = notes({}, n=50, spec="karras")
    assert len(cleaner) == 1 and "levels are cleaner than training with cosine" in cleaner[0]
    assert notes({}, step=200_000, n=50, spec="karras") == []
    beyond = notes(KINDS["table"], n=40, spec="shifted(linear, by=5)")
    assert any("12 of 40 levels lie outside the table of timesteps" in note for note in beyond)
    (leaking,) = notes(KINDS["table"], n=50, spec="discrete(linear, num_steps=100)", step=1000)
    assert "starts from pure noise, but at log-SNR -0.56, where z would hold 60% of the image" in leaking


def test_notes_are_printed(sampled):
    _, lines = sampled("linear")
    assert lines[0].startswith("note: cosine, 3 steps: 1 of 3 levels are noisier")


# -- what is refused, before anything is made


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("plain", {"schedule": ("cosine", "kosine")}, "did you mean 'cosine'"),
        ("plain", {"schedule": ("discrete(linear)",), "steps": (2000,)}, "choose 1 to 1000"),
        ("plain", {"method": ("dim",)}, "did you mean 'ddim'"),
        ("plain", {"method": ("ddim(etta=1)",)}, "ddim takes (eta=0.0)"),
        ("plain", {"checkpoint": 11}, "holds no checkpoint of step 11 (complete: 10, 20)"),
        ("plain", {"labels": (1,)}, "this network was trained without classes"),
        ("classes", {"labels": (1, 4)}, "label 4: choose 0 to 2, or 3 for no label"),
        (
            "plain",
            {"guidance": ("cfg(3)",)},
            "guidance 'cfg(3)' needs a network's answer with and without a label; this one was trained without classes",
        ),
        ("never", {"guidance": ("cfg(3)",)}, "this one never went without its label (label_dropout=0)"),
        ("classes", {"guidance": ("cgf(3)",)}, "did you mean 'cfg'"),
        ("plain", {"translation": "nearest"}, "is for networks told a timestep; this one is told log_snr"),
    ],
)
def test_refused_in_one_line(sampled, tmp_path, kind, changes, message):
    with pytest.raises(ValueError) as refused:
        sampled(kind, **changes)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        sample.run(dataclasses.replace(ASKED, workdir=str(tmp_path), out=str(tmp_path / "out")))
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint_yet(small, tmp_path):
    Workdir(tmp_path / "run").write_config(configuration.to_dict(small()))
    with pytest.raises(ValueError, match="no checkpoint"):
        sample.run(dataclasses.replace(ASKED, workdir=str(tmp_path / "run"), out=str(tmp_path / "out")))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
