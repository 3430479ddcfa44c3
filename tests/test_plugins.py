"""A user's own code, enrolled by `--plugin`, and services that are told what a run does: with stand-ins."""

import json
import logging
import sys
import types

import numpy as np
import pytest

from noisesched import curves, loss, samplers, schedules
from noisesched.evaluation import metrics
from noisesched.runs import plugins, trackers
from noisesched.runs.settings import ConfigError
from noisesched.runs.workdir import Workdir

PLUGIN = """
from jax import numpy as jnp

from noisesched.curves import definition
from noisesched.evaluation.metrics import metric
from noisesched.loss import weighting
from noisesched.runs.trackers import tracker
from noisesched.samplers import METHODS, sampler


@definition("own_power(power=3)")
def own_power(u, power=2.0):
    log_alpha_bar = 2 * power * jnp.log1p(-u)
    return log_alpha_bar - jnp.log(-jnp.expm1(log_alpha_bar))


@weighting
def own_weight(log_snr, rate):
    return log_snr / 3


@sampler(calls=1)
def own_sampler(interval, z, denoise, memory, keys):
    return METHODS["ddim"].move(interval, z, denoise, memory, keys)


@metric(takes="images")
def own_metric(real, fake):
    return abs(real.mean() - fake.mean())


@tracker
class Notes:
    told = []

    def __init__(self, workdir, config, id):
        self.told.append(("start", config["schedule"], id))

    def write(self, step, scalars):
        self.told.append(("write", step, sorted(scalars)))

    def image(self, step, name, picture):
        self.told.append(("image", step, name, picture.dtype.name))

    def close(self):
        self.told.append(("close",))
"""
ENROLLED = (curves.DEFINITIONS, curves.EXAMPLES, loss.WEIGHTINGS, samplers.METHODS, metrics.METRICS, trackers.TRACKERS)


@pytest.fixture
def plugin(tmp_path):
    """The path of a plug-in; what it enrols is gone after the test."""
    before = [dict(known) for known in (*ENROLLED, plugins.LOADED)]
    (tmp_path / "my.py").write_text(PLUGIN)
    yield str(tmp_path / "my.py")
    for known, content in zip((*ENROLLED, plugins.LOADED), before, strict=True):
        known.clear()
        known.update(content)


def forgotten():
    """As in a new process, which has not loaded the plug-in."""
    for known in ENROLLED:
        for name in [name for name in known if name.startswith("own_") or name == "notes"]:
            del known[name]
    plugins.LOADED.clear()
    schedules._checked.cache_clear()


def test_what_a_plugin_adds_is_used_from_end_to_end(main, stand_in, words, plugin, tmp_path, caplog):
    base = words({"training.num_steps": 4, "training.log_every": 2, "training.checkpoint_every": 2, "preview.every": 2})
    own = ("--config.schedule=own_power(power=3)", "--config.weighting=own_weight", "--config.preview.method=own_sampler")
    run = tmp_path / "run"
    code, out, err = main("train", *base, *own, f"--workdir={run}", f"--plugin={plugin}", "--tracker=notes")
    assert code == 0, err
    assert list(json.loads((run / "plugins.json").read_text())) == ["my.py"]
    told = trackers.TRACKERS["notes"].told
    assert told[0][:2] == ("start", "own_power(power=3)") and told[-1] == ("close",)
    assert [each[1] for each in told if each[0] == "write"] == [2, 4]
    assert [each[1:] for each in told if each[0] == "image"] == [(2, "samples", "uint8"), (4, "samples", "uint8")]

    forgotten()  # the run does not bring its plug-in along ..
    sampled = ("sample", f"--workdir={run}", "--steps=3", "--num_images=8", f"--out={tmp_path / 'out'}")
    code, out, err = main(*sampled)
    assert code == 2 and "unknown schedule 'own_power'" in err and err.endswith("trained with --plugin=my.py: give that again\n")
    code, out, err = main(*sampled, f"--plugin={plugin}", "--method=own_sampler")  # .. and is used with it
    assert code == 0, err
    assert np.load(tmp_path / "out" / "samples.npy").shape == (8, 8, 8, 1)
    measured = ("evaluate", f"--workdir={run}", "--num_images=4", "--noises=2", "--profile_levels=5", "--num_samples=8")
    code, out, err = main(*measured, "--metrics=own_metric", f"--plugin={plugin}", f"--out={tmp_path / 'evaluation'}")
    assert code == 0, err
    assert "own_metric(n=8)" in json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["quality"]

    forgotten()
    (tmp_path / "my.py").write_text(PLUGIN + "\n# changed\n")
    with caplog.at_level(logging.WARNING, "noisesched"):
        assert main(*sampled, f"--plugin={plugin}")[0] == 0
    assert f"the plug-in my.py has changed since {run} was trained with it" in caplog.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "plugin='my.py': there is no such file"),
        ("x = 1\nx.y\n", "plugin my.py, line 2: AttributeError"),
        ("(", "SyntaxError"),
        (
            "from noisesched.curves import definition\n@definition('linear')\ndef linear(u):\n    return -u\n",
            "plugin my.py, line 2: ValueError: 'linear' is already defined, in noisesched.curves: choose another name",
        ),
    ],
)
def test_a_plugin_that_fails_is_one_line(main, tmp_path, monkeypatch, content, says):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / "my.py").write_text(content)
    code, out, err = main("plot", "cosine", "--plugin=my.py")
    assert code == 2 and says in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda log_snr: log_snr, "weighting 'own_weight' fails: TypeError"),
        (lambda log_snr, rate: log_snr * np.nan, "must give the logarithm of a finite weight"),
        (lambda log_snr, rate: log_snr[:2], "must give the logarithm of a finite weight"),
    ],
)
def test_a_weighting_that_fails_is_named(monkeypatch, function, says):
    monkeypatch.setitem(loss.WEIGHTINGS, "own_weight", function)
    with pytest.raises(ValueError, match=says):
        loss.make_weighting("own_weight")


def test_the_tracker_of_a_service(tmp_path, monkeypatch):
    told = []
    run = types.SimpleNamespace(log=lambda given, step: told.append((step, given)), finish=lambda: told.append("finished"))
    service = types.ModuleType("wandb")
    service.init = lambda **given: told.append(given) or run
    service.Image = lambda picture: ("image", picture.shape)
    monkeypatch.setitem(sys.modules, "wandb", service)
    monkeypatch.setenv("WANDB_PROJECT", "schedules")
    workdir = Workdir(tmp_path)
    first = trackers.start("wandb", workdir, {"seed": 3})
    first.write(10, {"loss": 0.5})
    first.image(10, "samples", np.zeros((4, 5, 3), np.uint8))
    first.close()
    assert told[0] == {
        "project": "schedules",
        "name": tmp_path.name,
        "id": told[0]["id"],
        "resume": "allow",
        "config": {"seed": 3},
    }
    assert told[1:] == [(10, {"loss": 0.5}), (10, {"samples": ("image", (4, 5, 3))}), "finished"]
    trackers.start("wandb", workdir, {"seed": 3})
    assert told[-1]["id"] == told[0]["id"]  # a run that is resumed stays one


def test_a_service_that_fails_does_not_stop_training(stand_in):
    class Broken:
        def write(self, step, scalars):
            raise OSError("no network")

    class Kept:
        lines = []

        def write(self, step, scalars):
            self.lines.append(step)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

    said = []
    with trackers.Tracked(Kept(), Broken(), said.append) as log:
        log.write(1, {})
        log.write(2, {})
    assert Kept.lines == [1, 2] and said == ["warning: the tracker has failed, and is told nothing more: no network"]


def test_trackers_that_cannot_be_started_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for name, says in (("wandb", "pip install wandb"), ("weights", "tracker='weights': choose one of wandb")):
        with pytest.raises(ConfigError, match=says):
            trackers.start(name, Workdir(tmp_path), {})
