"""The Python face: a run is opened, sampled and evaluated as the commands do it, and nothing starts before it is needed."""

import dataclasses
import inspect
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from matplotlib.figure import Figure
from test_readme import blocks

import noisesched
from noisesched import api, diffusion, samplers, schedules
from noisesched.evaluation import sample
from noisesched.models import build, denoiser
from noisesched.runs import config as configuration
from noisesched.runs import requests
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.workdir import Workdir
from noisesched.runtime import backend
from noisesched.training import step as training_step


@pytest.fixture
def saved(stand_in, tmp_path, monkeypatch):
    """`saved({"schedule": "linear"})` -> the workdir of such a run with checkpoints of steps 10 and 20."""
    monkeypatch.setattr(backend, "prepare", lambda: None)  # this process has its settings

    def save(changes=()):
        config, workdir = stand_in(changes), Workdir(tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        workdir.write_config(configuration.to_dict(config))
        _, state = training_step.init(config)
        with Checkpoints(workdir, max_to_keep=2) as checkpoints:
            for step in (10, 20):
                params, ema = (
                    jax.tree.map(lambda leaf, size=size: leaf + size, state.params) for size in (step / 100, step / 50)
                )
                checkpoints.save(step, training_step.State(np.int32(step), params, ema, ())._asdict())
        return str(workdir.path)

    return save


Z = np.random.default_rng(0).standard_normal((3, 8, 8, 1), np.float32)


def test_nothing_starts_at_import():
    code = (
        "import noisesched, sys; assert not {'jax', 'numpy', 'flax', 'matplotlib'} & {*sys.modules}; "
        "assert {'load', 'wrap', 'schedules', 'samplers', 'diffusion'} <= {*dir(noisesched)}; "
        "assert str(noisesched.schedules.make('cosine')) == 'cosine'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_of_the_face_is_there_and_no_other():
    for name in noisesched.__all__:
        assert getattr(noisesched, name) is not None and name in dir(noisesched)
    with pytest.raises(AttributeError, match="no attribute 'optimise'; it has Run, "):
        _ = noisesched.optimise


def test_a_run_is_what_its_workdir_says(saved):
    path = saved({"schedule": "linear"})
    run, old = noisesched.load(path), noisesched.load(path, checkpoint=10, parameters="params")
    assert (run.step, old.step, str(run.schedule), run.config.training.batch_size) == (20, 10, "linear", 16)
    assert [float(jax.tree.leaves(each.params)[0]) for each in (run, old)] == pytest.approx([0.4, 0.1])
    low, high = run.trained_range
    assert low == pytest.approx(float(run.schedule(1.0))) and high == pytest.approx(float(run.schedule(1 / (20 * 16))), rel=1e-5)


def test_denoise_is_a_jax_function_of_everything(saved):
    run = noisesched.load(saved())
    levels = jnp.array([-jnp.inf, 0.5, 4.0])
    alpha, sigma = (f(levels)[:, None, None, None] for f in (diffusion.alpha, diffusion.sigma))
    expected = alpha * Z - sigma * 0.4 * Z  # the stand-in answers v = 0.4 z
    np.testing.assert_allclose(run.denoise(Z, levels), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda network, z: network(z, levels))(run.denoise, Z), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run.denoise(Z, 0.5)[1], expected[1], rtol=1e-5, atol=1e-6)
    twice = jax.vmap(run.denoise, (0, None))(np.stack([Z, 2 * Z]), levels)
    np.testing.assert_allclose(twice[1], 2 * expected, rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda network: network(Z, 0.0).sum())(run.denoise)
    (made,) = jax.tree.leaves(slope.params)
    assert made == pytest.approx(-np.sqrt(0.5) * Z.sum(), rel=1e-4)
    assert np.isfinite(jax.grad(lambda level: run.denoise(Z, level).sum())(1.0))
    x = samplers.sample(run.denoise, jax.random.key(0), Z, schedules.levels("cosine", 3))
    assert x.shape == Z.shape
    with pytest.raises(ValueError, match=r"z has shape \(3, 4, 4, 1\); this network takes \[B, 8, 8, 1\]"):
        run.denoise(Z[:, :4, :4], 0.0)


def test_a_network_of_classes_needs_no_label(saved):
    run = noisesched.load(saved({"model.num_classes": 3}))
    np.testing.assert_array_equal(run.denoise(Z, 0.0), run.denoise(Z, 0.0, np.array([3, 3, 3])))


def test_eps_at_zero_snr_is_refused_by_name(saved):
    run = noisesched.load(saved({"model.prediction": "eps", "schedule": "linear", "preview.schedule": "linear"}))
    for ask in (
        lambda: run.sample("cosine", steps=2, num_images=2),
        lambda: samplers.sample(run.denoise, jax.random.key(0), Z, schedules.levels("cosine", 3)),
    ):
        with pytest.raises(ValueError, match="cannot be called at log-SNR -inf: it predicts eps"):
            ask()


def test_samples_are_those_of_the_command(saved, tmp_path):
    path = saved({"model.num_classes": 3})
    asked = dict(method="ddim(eta=1)", guidance="cfg(2)", labels=(1, 2), seed=7, num_images=5, spacing="leading")
    made = noisesched.load(path).sample("sigmoid", steps=3, **asked)
    several = {name: (asked[name],) for name in ("method", "guidance")}
    request = requests.Sample(workdir=path, out=str(tmp_path / "out"), schedule=("sigmoid",), steps=(3,), **(asked | several))
    (of_command,) = sample.run(request, lambda line: None).values()
    np.testing.assert_array_equal(made, of_command)


def test_levels_may_be_given_themselves(saved):
    run = noisesched.load(saved())
    levels = schedules.levels("flow", 4)
    made = run.sample(levels, num_images=4)
    np.testing.assert_array_equal(made, run.sample("flow", steps=4, num_images=4))
    assert (made != run.sample(steps=4, num_images=4)).any()  # the schedule trained with: cosine


def test_defaults_are_the_command_s():
    command = {field.name: field.default for field in dataclasses.fields(requests.Sample)}
    for name, parameter in inspect.signature(api.Run.sample).parameters.items():
        if name not in ("self", "schedule"):
            default = command[name]
            assert parameter.default == (default[0] if name in ("steps", "method", "guidance") else default)


def test_what_the_command_notes_is_a_warning(saved):
    run = noisesched.load(saved({"schedule": "scaled_linear", "preview.schedule": "scaled_linear"}))
    with pytest.warns(UserWarning, match="cosine, 3 steps: 1 of 3 levels are noisier than training with scaled_linear went"):
        run.sample("cosine", steps=3, num_images=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.sample("scaled_linear", steps=3, num_images=2)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda run: run.sample("cosin"), "did you mean 'cosine'"),
        (lambda run: run.sample(steps=0), "steps=0 must be at least 1"),
        (lambda run: run.sample(method="unipc"), "unknown sampling method 'unipc'"),
        (lambda run: run.sample(labels=(1,)), "this network was trained without classes"),
        (lambda run: run.sample(np.array([3.0, 1.0])), "log_snrs increase"),
        (lambda run: run.evaluate(noises=3), "draws come in pairs"),
        (lambda run: noisesched.load(run.workdir, checkpoint=15), r"holds no checkpoint of step 15 \(complete: 10, 20\)"),
        (lambda run: noisesched.load(run.workdir, parameters="best"), "parameters='best': choose one of ema, params"),
        (lambda run: noisesched.plot("cosin"), "did you mean 'cosine'"),
    ],
)
def test_faults_are_one_line(saved, ask, says):
    with pytest.raises(ValueError, match=says) as error:
        ask(noisesched.load(saved()))
    assert "\n" not in str(error.value)


def test_a_folder_without_a_run_or_comparison(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        noisesched.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="is missing"):
        noisesched.results(tmp_path)


def test_an_evaluation_and_its_figure(saved, tmp_path):
    run = noisesched.load(saved())
    lines = []
    made = run.evaluate(lines.append, num_images=4, noises=2, profile_levels=5, out=str(tmp_path / "out"))
    assert made["checkpoint"] == 20 and made["bits_per_dim"]["value"] > 0 and lines
    figure = run.figure(made)
    assert isinstance(figure, Figure) and [axis.get_title() for axis in figure.axes[:3]] == ["eps error", "x error", "v error"]


def test_figures_of_schedules_and_images():
    figure = noisesched.plot("cosine", schedules.make("linear"))
    assert isinstance(figure, Figure) and len(figure.axes) == 4 and len(figure.axes[0].lines) == 4  # two curves, two ends
    shown = noisesched.show(np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), np.uint8), columns=3)
    (picture,) = shown.axes[0].images
    assert picture.get_array().shape[2] == 3 and picture.get_array().shape[1] > picture.get_array().shape[0]


def test_the_example_of_the_readme_runs(saved):
    (example,) = [body for body in blocks("README.md", "python") if "noisesched.load" in body]
    example = example.replace("runs/digits", saved()).replace(
        "comparisons/first", str(ROOT / "tests" / "data" / "before_the_house" / "compare")
    )
    names = {"z": Z, "log_snr": np.zeros(3)}
    exec(example, names)
    assert names["images"].shape == (16, 8, 8, 1) and names["x_hat"].shape == Z.shape
    assert {"schedule", "calls", "train_seed"} <= {*names["frame"].columns} and len(names["frame"]) > 1


def test_a_network_is_a_pytree_of_its_parameters(saved):
    run = noisesched.load(saved())
    leaves, structure = jax.tree.flatten(run.denoise)
    assert [leaf.shape for leaf in leaves] == [leaf.shape for leaf in jax.tree.leaves(run.params)]
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, denoiser.Network) and again.shape == (8, 8, 1)
    _, template = build.abstract_denoiser(run.config)
    assert jax.tree.structure(template) == jax.tree.structure(run.params)
