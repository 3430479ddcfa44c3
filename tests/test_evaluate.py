"""Evaluating a run: what is written, what it depends on, what is done once only, what is refused."""

import dataclasses
import functools
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import noisesched.evaluation
from noisesched import __main__ as cli
from noisesched import flags, schedules
from noisesched.data import pipeline
from noisesched.evaluation import evaluate, likelihood
from noisesched.models import build, denoiser
from noisesched.runs import config as configuration
from noisesched.runs import requests, subject
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.workdir import Workdir
from noisesched.runtime import pictures
from noisesched.runtime.files import read_json
from noisesched.training import step as training_step

ASKED = requests.Evaluate(workdir="", num_images=6, noises=4, profile_levels=9)
TABLE = "discrete(linear,num_steps=50)"
PROFILE_FIGURE = evaluate.profile_figure
KINDS = {
    "plain": {},
    "eps": {"model.prediction": "eps", "schedule": "linear"},
    "table": {"schedule": TABLE, "conditioning.kind": "timestep", "conditioning.table": TABLE, "model.num_classes": 10},
}


class OneLayer(nnx.Module):
    """Stands for the UNet, and takes a tenth of the time to compile: an output that depends on all that it is given."""

    def __init__(self, *, image_size, channels, features, num_classes, rngs, **others):
        size = image_size * image_size * channels
        self.mix, self.tell = nnx.Linear(size, size, rngs=rngs), nnx.Linear(features, size, rngs=rngs)
        self.label = nnx.Embed(num_classes + 1, size, rngs=rngs) if num_classes else None

    def __call__(self, z, features, labels=None, dropout_keys=None):
        h = self.mix(z.reshape(len(z), -1)) + self.tell(features)
        return jnp.tanh(h if labels is None else h + self.label(labels)).reshape(z.shape)


@pytest.fixture(scope="module", autouse=True)
def one_layer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.NETWORKS, "unet", dataclasses.replace(build.NETWORKS["unet"], make=OneLayer))
        build._abstract_denoiser.cache_clear()  # which may hold a UNet of the same configuration
        yield
    build._abstract_denoiser.cache_clear()


def parameters(config, seed):
    """Random ones, with no layer at zero: an untrained network's output is."""
    random, shapes = np.random.default_rng(seed), shapes_of(config)[1]
    return jax.tree.map(lambda leaf: random.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)


def shapes_of(config):
    return build.abstract_denoiser(config)


@pytest.fixture(scope="module")
def runs(small, one_layer, tmp_path_factory):
    """{kind: the path of a run with a checkpoint of step 20, the plain one also of step 10, eps none}, made without training."""
    made = {}
    for kind, changes in KINDS.items():
        workdir, config = Workdir(tmp_path_factory.mktemp(kind) / "run"), small(changes)
        workdir.write_config(configuration.to_dict(config))
        with Checkpoints(workdir, max_to_keep=None) as checkpoints:
            for step in {"plain": (10, 20), "eps": ()}.get(kind, (20,)):
                params, ema = parameters(config, step), parameters(config, step + 1)
                checkpoints.save(step, training_step.State(np.int32(step), params, ema, ())._asdict())
        made[kind] = str(workdir.path)
    return made


@pytest.fixture(autouse=True)
def small_batches_and_no_picture(monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH", 8)
    monkeypatch.setattr(evaluate, "profile_figure", lambda result, config: pictures.new_figure(1, 1))


@pytest.fixture
def evaluated(runs, tmp_path):
    """`evaluated("plain", noises=2, ..)` -> (what evaluation.json holds, lines said)."""

    def run(kind="plain", **changes):
        lines = []
        request = dataclasses.replace(ASKED, workdir=runs[kind], **({"out": str(tmp_path / "out")} | changes))
        return evaluate.run(request, lines.append), lines

    return run


def bits(result):
    return result["bits_per_dim"]["value"]


def stored(folder):
    json.loads((folder / "evaluation.json").read_text(), parse_constant=lambda token: pytest.fail(token))
    return read_json(folder / "evaluation.json")


# -- what is written


def test_what_is_written(evaluated, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "profile_figure", PROFILE_FIGURE)
    result, lines = evaluated(discrete=(("cosine", 20), ("karras", 20)))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"evaluation.json", "profile.png"}
    assert (tmp_path / "out" / "profile.png").stat().st_size > 10_000
    assert stored(tmp_path / "out") == result
    assert (result["checkpoint"], result["parameters"], result["split"]) == (20, "ema", "test")
    assert (result["num_images"], result["noises"], result["request"]["seed"]) == (6, 4, 0)
    found = result["bits_per_dim"]
    assert found["value"] == pytest.approx(found["diffusion"] + found["prior"] + found["reconstruction"])
    assert (found["log_snr_min"], found["log_snr_max"]) == (-12.0, 13.3) and found["std_error"] > 0
    cosine, karras = result["discrete"]
    assert (cosine["schedule"], cosine["num_levels"], cosine["log_snr_min"], cosine["prior"]) == ("cosine", 20, -np.inf, 0)
    assert (karras["num_levels"], karras["log_snr_min"]) == (20, pytest.approx(-8.76, abs=0.01))
    last = np.log(np.tan(np.pi / 40) ** -2)  # cosine's at u = 1/20, but for its s; the SNR then doubles
    assert cosine["log_snr_max"] == pytest.approx(last + np.log(2), abs=0.3)
    profile = result["profile"]
    assert profile["log_snr"] == pytest.approx(np.linspace(-12, 13.3, 9)) and profile["noises"] == 2
    for kind in ("eps", "x", "v"):
        assert len(profile[kind]) == len(profile[f"{kind}_std_error"]) == 9 and min(profile[kind]) > 0
    np.testing.assert_allclose(profile["v"], np.add(profile["x"], profile["eps"]), rtol=1e-12)  # |v|^2 = |eps|^2 + |x|^2
    assert "quality" not in result
    assert lines[0] == "step 20 (ema), 6 images of 'test', bits per dimension:"
    assert f"{found['value']:.4f} +- {found['std_error']:.4f}" in lines[1] and "cosine, 20 levels" in lines[2]


def test_the_workdir_holds_it_unless_told_otherwise(evaluated, runs, tmp_path):
    result, _ = evaluated(out="")
    assert stored(Workdir(runs["plain"]).path / "evaluation") == result


def test_the_numbers_are_those_of_the_network(evaluated, runs, small):
    """The bound once more, from the denoiser itself and the definitions, image by image."""
    result, _ = evaluated()
    config = small()
    definition, _ = shapes_of(config)
    network = jax.jit(denoiser.merge(definition, parameters(config, 21)))
    images = pipeline.examples(pipeline.open_split("digits", split="test", image_size=8, channels=1), 6)["image"]
    low, high = -12.0, 13.3
    total = []
    for i, x in enumerate(np.asarray(pictures.scale(images))):
        # Each image's draws: two in each half of the range.
        positions = (np.array([0, 0, 1, 1]) + np.random.default_rng((0, i)).random(4)) / 2
        levels = high + positions * (low - high)
        for k, level in enumerate(levels):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), i), k)
            eps = np.asarray(jax.random.normal(key, x.shape))
            z = x / np.sqrt(1 + np.exp(-level)) + eps / np.sqrt(1 + np.exp(level))
            x_hat = network(z[None].astype(np.float32), np.float32([level]))[0]
            total.append(0.5 * (high - low) * np.exp(level) * np.square(x - np.asarray(x_hat)).sum())
    assert result["bits_per_dim"]["diffusion"] == pytest.approx(np.mean(total) / 64 / np.log(2), rel=1e-3)


def test_the_profile_agrees_with_the_bound(evaluated):
    result, _ = evaluated(num_images=16, noises=32, profile_levels=33)
    found, profile = result["bits_per_dim"], result["profile"]
    margin = np.hypot(found["std_error"], profile["bits_per_dim_std_error"])
    assert margin < 0.05 * found["diffusion"]
    assert abs(found["diffusion"] - profile["bits_per_dim"]) < 4 * margin


def test_what_the_network_knows_at_its_noisiest_levels(evaluated, small):
    """Once more, from the denoiser itself: classes are told, and the mean is that of the class in the images trained on."""
    result, lines = evaluated("table", num_images=5)
    last, zero = result["last_level"], result["zero_snr"]
    config = small(KINDS["table"])
    network = jax.jit(denoiser.merge(shapes_of(config)[0], parameters(config, 21)))
    split = pipeline.open_split("digits", split="train", image_size=8, channels=1)
    train_images, test_images = pipeline.examples(split), pipeline.examples(pipeline.open_config(config.data, "test"), 5)
    scaled = lambda given: given["image"].astype(np.float64) / 127.5 - 1
    means = np.stack([scaled(train_images)[train_images["label"] == k].mean(axis=0) for k in range(10)])
    label, x, level = test_images["label"], np.float32(scaled(test_images)), float(schedules.make(TABLE)(1.0))

    def answers(log_snr, draw):
        keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), i), 2**21 + draw) for i in range(5)]
        eps = np.stack([jax.random.normal(key, x.shape[1:]) for key in keys])
        alpha, sigma = np.float32((1 + np.exp(-log_snr)) ** -0.5), np.float32((1 + np.exp(log_snr)) ** -0.5)
        return np.float64(network(alpha * x + sigma * eps, np.full(5, log_snr, np.float32), label))

    with np.errstate(over="ignore"):
        error = np.square(answers(level, 2) - x).mean(axis=(1, 2, 3))
        pairs = np.stack([answers(-np.inf, draw) for draw in (0, 1)])
    assert last["log_snr"] == level == result["bits_per_dim"]["untrained"]["log_snr_min"]
    assert last["x"] == pytest.approx(error.mean(), rel=1e-4)
    assert last["x_std_error"] == pytest.approx(error.std(ddof=1) / np.sqrt(5), rel=1e-3)
    constant = np.square(x - means[label]).mean(axis=(1, 2, 3))
    assert last["constant_x"] == pytest.approx(constant.mean(), rel=1e-5)
    assert last["gain"] == pytest.approx((constant - error).mean(), rel=1e-3)
    assert len(set(label)) == 5  # so the answers for a class are the pair for its image
    spread = np.square(pairs[0] - pairs[1]).mean() / 2
    off = np.square(pairs.mean(axis=0) - means[label]).mean() - spread / 2
    assert (zero["noises"], zero["reason"], zero["data_images"]) == (10, None, len(split))
    assert (zero["spread"], zero["off_mean"]) == pytest.approx((np.sqrt(spread), np.sqrt(off)), rel=1e-3)
    brightness = np.square(np.diff(pairs.mean(axis=(2, 3, 4)), axis=0)).mean() / 2
    assert zero["brightness_spread"] == pytest.approx(np.sqrt(brightness), rel=1e-3)
    away = scaled(train_images) - means[train_images["label"]]
    assert zero["data_std"] == pytest.approx(np.sqrt(np.square(away).mean()), rel=1e-5)
    assert zero["data_brightness_std"] == pytest.approx(away.mean(axis=(1, 2, 3)).std(), rel=1e-5)
    assert f"log-SNR {level:.4g}: error of eps {last['eps']:.4g}" in lines[-2]
    assert f"vary by {zero['spread']:.3g} with the noise" in lines[-1] and f"(the data: {zero['data_std']:.3g})" in lines[-1]


def test_zero_snr_of_a_network_that_predicts_eps_is_told_apart(small):
    config = small(KINDS["eps"])
    examples = pipeline.examples(pipeline.open_config(config.data, "test"), 4)
    given = subject.of_config(config, params=parameters(config, 0))
    made = evaluate.zero_snr_of(given, examples["image"], None, 0, evaluate.trained_average(given))
    zero, last = made["zero_snr"], made["last_level"]
    assert zero["spread"] is zero["off_mean"] is zero["brightness_spread"] is None and "predicts eps" in zero["reason"]
    assert last["log_snr"] == pytest.approx(-10.05, abs=0.01) and 0 < last["eps"] < 10
    assert [zero["reason"] in line for line in evaluate.zero_snr.lines(last, zero)] == [False, True]


def test_the_mean_of_many_images_is_taken_of_some_evenly_spaced(small, monkeypatch):
    average = lambda changes=(): evaluate.trained_average(subject.of_config(small(changes)))
    whole = average()
    monkeypatch.setattr(evaluate, "MEAN_VALUES", 64 * 300 + 1)
    some = average()
    assert some.num_images == 300 < whole.num_images == 1500
    assert 0 < np.square(some.mean - whole.mean).mean() < 3 * whole.std**2 / 300 and whole.mean.shape == (1, 8, 8, 1)
    assert average({"model.num_classes": 10}).mean.shape == (10, 8, 8, 1)
    mirrored = average({"data.flip": "True"}).mean
    np.testing.assert_array_equal(mirrored, mirrored[:, :, ::-1])


def test_levels_never_drawn_in_training(evaluated):
    """DDPM's betas begin with 1e-4, so a table of them at log-SNR 9.2; cosine draws from -inf up to where 320 images reached."""
    table, lines = evaluated("table")
    untrained = table["bits_per_dim"]["untrained"]
    assert 9 < untrained["log_snr_max"] < 9.5 and untrained["log_snr_min"] > -12
    assert untrained["share"] == pytest.approx((untrained["noisier"] + untrained["cleaner"]) / bits(table))
    assert 0 < untrained["noisier"] < untrained["cleaner"] < table["bits_per_dim"]["diffusion"]
    assert f"{untrained['share']:.1%} of the bound" in lines[-3]
    cosine, _ = evaluated("plain")
    assert cosine["bits_per_dim"]["untrained"]["log_snr_min"] == -np.inf and cosine["bits_per_dim"]["untrained"]["noisier"] == 0


# -- what it depends on


def test_neither_batch_nor_devices_matter(evaluated, monkeypatch):
    result, _ = evaluated()
    monkeypatch.setattr(evaluate, "BATCH", 7)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    again, _ = evaluated(discrete=(("cosine", 20),))
    np.testing.assert_allclose(again["profile"]["x"], result["profile"]["x"], rtol=1e-4)
    assert bits(again) == pytest.approx(bits(result), rel=1e-4)


def test_an_image_s_part_does_not_depend_on_the_others(small, runs):
    config = small()
    network = build.network(config, parameters(config, 0))
    images = pipeline.examples(pipeline.open_split("digits", split="test", image_size=8, channels=1), 12)["image"]
    levels = np.linspace(-5, 5, 36).reshape(12, 3)
    all_of_them, some = (evaluate.squared_errors(network, images[:n], None, 0, lambda count: None)(levels[:n]) for n in (12, 5))
    np.testing.assert_allclose(all_of_them[:5], some, rtol=1e-4)


def test_which_parameters_checkpoint_seed_and_translation(evaluated):
    made = [
        bits(evaluated(**changes)[0])
        for changes in (
            {},
            {"parameters": "params"},
            {"checkpoint": 10},
            {"seed": 1},
            {"split": "train"},
            {"split": "test[1:]"},
            {"num_images": 4, "noises": 2},
        )
    ]
    assert len(set(made)) == len(made)
    table = [bits(evaluated("table", translation=kind)[0]) for kind in (None, "nearest", "interpolated")]
    assert table[0] == table[1] != table[2]


def test_a_network_of_classes_is_told_the_true_ones(evaluated, small):
    result, _ = evaluated("table")
    config = small(KINDS["table"])
    given = subject.of_config(config, params=parameters(config, 21))
    examples = pipeline.examples(pipeline.open_split("digits", split="test", image_size=8, channels=1), 6)
    true, false = (
        evaluate.likelihood_of(given, examples["image"], labels, ASKED)
        for labels in (examples["label"], (examples["label"] + 1) % 10)
    )
    assert bits(true) == pytest.approx(bits(result), rel=1e-5) and bits(false) != pytest.approx(bits(result), rel=1e-4)


def test_one_compilation_for_all_parts_and_data(evaluated):
    before = evaluate.estimates._cache_size()
    evaluated("table", discrete=(("cosine", 20), ("linear", 20)))
    evaluated("table", parameters="params", seed=3, num_images=4, noises=2)
    assert evaluate.estimates._cache_size() <= before + 1


# -- what is done once only


def test_nothing_is_done_twice(evaluated, monkeypatch):
    first, _ = evaluated(discrete=(("cosine", 20),))
    with monkeypatch.context() as patch:
        for module, name in ((subject, "Checkpoints"), (pipeline, "examples")):
            patch.setattr(module, name, lambda *args, **kwargs: pytest.fail("opened again"))
        again, lines = evaluated(discrete=((" cosine ", 20),), checkpoint=20)  # which is the latest
    assert again == first and "is evaluated already" in lines[0] and len(lines) == 1
    assert evaluated(discrete=(("cosine", 20),), checkpoint=10)[0]["checkpoint"] == 10
    assert bits(evaluated()[0]) == bits(first)


def test_a_damaged_evaluation_is_made_again(evaluated, tmp_path):
    first, _ = evaluated()
    for damage in ("{", "[]", "{}"):
        (tmp_path / "out" / "evaluation.json").write_text(damage)
        assert evaluate.existing(tmp_path / "out", 0) is None
    assert evaluated()[0] == first == stored(tmp_path / "out")


def test_an_evaluation_of_an_earlier_version_is_made_again(evaluated, tmp_path):
    """One that lacks a part, although the request is the same."""
    first, _ = evaluated()
    path = tmp_path / "out" / "evaluation.json"
    whole = json.loads(path.read_text())
    for part in evaluate.HOLDS:
        path.write_text(json.dumps({name: value for name, value in whole.items() if name != part}))
        assert evaluate.existing(tmp_path / "out", 0) is None
    again, lines = evaluated()
    assert again == first == stored(tmp_path / "out") and len(lines) > 1


def test_a_schedule_s_file_that_changed_is_evaluated_anew(evaluated, tmp_path):
    file = tmp_path / "levels.txt"
    found = []
    for content in ("9 1 -7", "9 3 -7", "9, 3, -7"):
        file.write_text(content)
        result, lines = evaluated(discrete=((f"piecewise('{file}')", 2),))
        found.append((result["discrete"][0]["value"], "already" in lines[0]))
    assert found[0][0] != found[1][0] and found[1:] == [(found[1][0], False), (found[1][0], True)]


@pytest.fixture
def identity(small, tmp_path):
    """`identity(noises=2, ..)`: what decides an evaluation, of samples too, on data and with files that lie in `tmp_path`."""
    config = small()
    (tmp_path / "dataset_info.json").write_text("as it was")
    (tmp_path / "weights.npz").write_text("as they were")
    (tmp_path / "levels.txt").write_text("9 1 -7")
    split = pipeline.Split(None, 10, "digits", str(tmp_path))
    full = {
        "metrics": ("frechet(inception)",),
        "inception_weights": str(tmp_path / "weights.npz"),
        "schedule": (levels := f"piecewise('{tmp_path}/levels.txt')"),
        "discrete": ((levels, 2),),
    }

    def made(config=config, **changes):
        request = dataclasses.replace(ASKED, **(full | changes))
        return evaluate.identity(subject.of_config(config, stored=configuration.to_dict(config)), request, split)

    return made


@pytest.mark.parametrize(
    ("file", "kept"), [("dataset_info.json", False), ("weights.npz", False), ("levels.txt", False), ("another.txt", True)]
)
def test_files_that_decide(identity, tmp_path, file, kept):
    before = identity()
    (tmp_path / file).write_text("9 2 -7")
    assert (identity() == before) == kept
    json.dumps(before, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"out": "elsewhere", "checkpoint": 10}, True),
        ({"discrete": (("piecewise( [9.0, 1.0, -7.0])", 2),)}, True),
        ({"metrics": ("frechet( inception )",)}, True),
        ({"schedule": "piecewise([9.0, 1.0, -7.0])"}, True),
        ({"schedule": ""}, False),
        ({"discrete": (("piecewise([9.0, 1.0, -7.0])", 3),)}, False),
        ({"num_samples": 255}, False),
        ({"steps": 24}, False),
        ({"method": "heun"}, False),
        ({"seed": 1}, False),
    ],
)
def test_settings_that_decide(identity, changes, kept):
    assert (identity(**changes) == identity()) == kept


def test_without_metrics_nothing_of_samples_decides(identity, small):
    plain = identity(metrics=(), schedule="", inception_weights="")
    assert plain == identity(metrics=(), schedule="linear", steps=3, method="heun", num_samples=7)
    assert not set(evaluate.OF_SAMPLES) & set(plain["request"])
    assert identity(small({"schedule": "linear"})) != identity()


# -- the best levels


def test_the_best_levels_lie_where_the_profile_was_measured(evaluated, tmp_path):
    asked = dict(log_snr_min=-6.0, log_snr_max=0.0, best_levels=5)
    result, lines = evaluated(**asked)
    path = tmp_path / "out" / "best_5_levels.txt"
    end, *levels = map(float, path.read_text().split())
    assert -6 <= levels[-1] < levels[0] <= 0 and end == pytest.approx(likelihood.end_of(levels[0]), abs=1e-5)
    assert lines[-1].endswith(f"lowest bound in discrete time: \"piecewise('{path}')\"")
    schedule = f"piecewise('{path}')"
    np.testing.assert_allclose(schedules.levels(schedule, 5), levels[::-1], atol=1e-5)
    assert "already" in evaluated(**asked)[1][0]
    path.unlink()
    assert evaluated(**asked)[0] == result and path.exists()
    # Better than other five of the same range.
    best, even = evaluated(num_images=16, noises=32, discrete=((schedule, 5), ("uniform_log_snr(0, -6)", 5)))[0]["discrete"]
    assert best["value"] < even["value"]


def test_what_was_measured_is_kept_when_the_best_levels_fail(evaluated, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(evaluate, "write_atomically", fail)
    path = tmp_path / "out" / "best_5_levels.txt"
    path.parent.mkdir()
    path.write_text("of another evaluation")
    with pytest.raises(OSError, match="the disk is full"):
        evaluated(best_levels=5, log_snr_max=0.0)
    assert bits(stored(tmp_path / "out")) > 0 and not path.exists()


# -- samples


@pytest.fixture
def features(monkeypatch):
    """Stands for the module that knows distances: records what it is asked, and measures the mean."""
    asked = {}

    def reference(given, n, measures, **options):
        asked.update(n=n, measures=[str(measure) for measure in measures], **options)
        name, about = f"brightness(n={n})", {"split": options["split"], "n": n}
        return types.SimpleNamespace(measure=lambda images: {name: float(images.mean())}, floor={name: 1.5}, about=about)

    stand_in = types.SimpleNamespace(reference=reference)
    monkeypatch.setitem(sys.modules, "noisesched.evaluation.features", stand_in)
    monkeypatch.setattr(noisesched.evaluation, "features", stand_in, raising=False)
    return asked


@pytest.fixture
def sampler(monkeypatch):
    """Stands for the sampler: records what it is asked, and makes grey images."""
    asked = {}

    def generate(network, log_snrs, num_images, method, **options):
        asked.update(method=method, log_snrs=log_snrs, num_images=num_images, **options)
        return np.full((num_images, 8, 8, 1), 100, np.uint8)

    monkeypatch.setattr(evaluate.generate, "generate", generate)
    return asked


def test_quality_of_samples(evaluated, features, sampler):
    result, lines = evaluated(metrics=("brightness",), num_samples=5, steps=20, schedule="linear", method="heun")
    assert features["n"] == 5 and features["measures"] == ["brightness"] and features["split"] == "train"
    assert sampler["method"] == "heun" and sampler["num_images"] == 5 and sampler["seed"] == 0 and sampler["labels"] is None
    np.testing.assert_array_equal(sampler["log_snrs"], schedules.levels("linear", 20))
    assert result["quality"] == {"brightness(n=5)": 100.0} and result["floor"] == {"brightness(n=5)": 1.5}
    assert result["reference"] == {"split": "train", "n": 5}
    assert lines[-1].startswith("brightness(n=5)") and "(between real images: 1.5)" in lines[-1]
    assert evaluated(metrics=("brightness",), num_samples=5, steps=20, schedule="linear", method="heun")[0] == result


def test_samples_against_all_real_images(evaluated, sampler, tmp_path):
    asked = dict(metrics=("frechet(raw)",), num_samples=1600, real="all")
    result, lines = evaluated(**asked)
    (name,) = result["quality"]
    assert name == "frechet(raw, n=1600, real=1500)" and result["floor"] == {} and result["reference"]["real"] == 1500
    assert lines[-1].startswith(name) and "between" not in lines[-1]
    assert evaluated(**asked)[1] == [f"{tmp_path / 'out'}: step 20 is evaluated already"]
    with pytest.raises(ValueError, match="n=1600: .* two sets of n are needed"):  # another number, and so made anew
        evaluated(**asked | {"real": "paired"})


def test_the_likelihood_is_kept_when_sampling_fails(evaluated, features, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("not finite")

    monkeypatch.setattr(evaluate.generate, "generate", fail)
    with pytest.raises(ValueError, match="not finite"):
        evaluated(metrics=("brightness",), num_samples=5)
    _, lines = evaluated()  # the same without metrics is there already
    assert "is evaluated already" in lines[0]


# -- what is refused


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("plain", {"split": "validation"}, "no split 'validation' in data set 'digits': it has test, train"),
        ("plain", {"num_images": 298}, "num_images=298: data set 'digits', test has 297 images"),
        ("plain", {"num_images": 1}, "2 or more, or 0 for all"),
        ("plain", {"split": ""}, "split='': name the images to measure"),
        (
            "plain",
            {"split": "test[abc]"},
            "split 'test[abc]' of data set 'digits': no such notation; write 'train', 'train[:90%]'",
        ),
        ("plain", {"split": "test[:1]", "num_images": 0}, "data set 'digits', test[:1] has one image"),
        ("plain", {"noises": 3}, "noises=3: draws come in pairs"),
        (
            "plain",
            {"noises": 10**6, "num_images": 0},
            "noises=1000000 for 297 images: memory is limited to 16777216 draws, so give up to 56488,",
        ),
        (
            "plain",
            {"best_levels": 42, "log_snr_max": -10.0},
            "best_levels=42: the measured range of log-SNR, -12 to -10, has only 41 levels",
        ),
        ("plain", {"profile_levels": 2}, "profile_levels=2"),
        ("plain", {"log_snr_min": 14.0}, "log-SNR 14 to 13.3, must rise"),
        ("plain", {"log_snr_max": float("inf")}, "log-SNR -12 to inf"),
        ("plain", {"discrete": (("kosine", 5),)}, "did you mean 'cosine'"),
        ("plain", {"discrete": (("discrete(linear)", 2000),)}, "choose 1 to 1000"),
        ("plain", {"discrete": (("uniform_log_snr(log_snr_max=20, log_snr_min=14)", 3),)}, "3 levels"),
        ("eps", {"discrete": (("cosine", 5),)}, "starts at zero SNR"),
        ("plain", {"checkpoint": 11}, "holds no checkpoint of step 11 (complete: 10, 20)"),
        ("plain", {"translation": "nearest"}, "is for networks told a timestep; this one is told log_snr"),
        ("table", {"translation": "raw"}, "choose one of nearest, interpolated"),
        ("plain", {"metrics": ("brightness",), "method": "dim"}, "did you mean 'ddim'"),
        ("plain", {"metrics": ("brightness",), "schedule": "kosine"}, "did you mean 'cosine'"),
        ("plain", {"schedule": "linear", "steps": 3}, "schedule='linear', steps=3: samples are only made for metrics; give some"),
        ("plain", {"inception_weights": "nowhere"}, "inception_weights='nowhere': samples are only made for metrics"),
        ("plain", {"metrics": ("brightness",), "inception_weights": "nowhere"}, "none of the metrics uses them"),
        ("plain", {"metrics": ("frechet(classifier, n=5)",)}, "n is given separately, by --num_samples of evaluate"),
    ],
)
def test_refused_in_one_line(evaluated, features, tmp_path, kind, changes, message):
    with pytest.raises(ValueError) as refused:
        evaluated(kind, **changes)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        evaluate.run(dataclasses.replace(ASKED, workdir=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint_yet(small, tmp_path):
    Workdir(tmp_path / "run").write_config(configuration.to_dict(small()))
    with pytest.raises(ValueError, match="no checkpoint"):
        evaluate.run(dataclasses.replace(ASKED, workdir=str(tmp_path / "run")))
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "config.json"]


def test_an_estimate_that_is_not_finite_names_its_level(small):
    config = small()
    broken = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, np.float32), shapes_of(config)[1])
    errors = evaluate.squared_errors(build.network(config, broken), np.zeros((3, 8, 8, 1), np.uint8), None, 0, lambda count: None)
    with pytest.raises(ValueError, match=r"not finite at log-SNR 2.5 \(3 of 3 estimates, from 2.5 to 2.5\)"):
        errors(np.full((3, 1), 2.5))


# -- from the command line


@pytest.fixture
def main(main, runs):
    """`main("--out=o", ..)` -> (exit code, stdout, stderr) of `noisesched evaluate` of the plain run, in this process."""
    return functools.partial(main, "evaluate", f"--workdir={runs['plain']}", "--num_images=4", "--noises=2", "--profile_levels=5")


def test_an_evaluation_from_the_command_line(main, tmp_path):
    out = tmp_path / "out"
    code, said, err = main(
        f"--out={out}",
        "--discrete",
        "cosine:20",
        "shifted(cosine, by=-1):20",
        "--metrics",
        "brightness",
        "--num_samples=4",
        "--steps=1",
    )
    assert code == 0 and "Traceback" not in err, err
    result = stored(out)
    assert result["checkpoint"] == 20 and result["request"]["discrete"] == [["cosine", 20], ["shifted(cosine, by=-1)", 20]]
    assert bits(result) > 0 and 0 <= result["quality"]["brightness(n=4)"] < 2 and (out / "profile.png").exists()


def test_faults_from_the_command_line(main, tmp_path):
    (file := tmp_path / "file").write_text("mine")
    for words, message in (
        (f"--out={file}", f"{file}: a file, where a folder is wanted"),
        ("--split=", "split='': name the images"),
    ):
        code, _, err = main(words)
        assert code == 2 and err.count("\n") == 1 and message in err
    assert file.read_text() == "mine"


def test_the_command_line_asks_for_what_a_request_has(capsys):
    """Every field of the request is a flag, with the default of the request, which the help says."""
    assert flags.parse(["evaluate", "--workdir=w"])[1] == requests.Evaluate(workdir="w")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(requests.Evaluate):
        assert f"--{field.name} " in text
        if type(field.default) in (int, float) and field.default:
            said = text.partition("options:")[2].partition(f"--{field.name} ")[2].partition(" --")[0]
            assert f"({field.default:g})" in said
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--workdir=w", "--discrete", "cosine"])
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "SPEC:N, such as cosine:100" in err
