"""Every file in configs/: it loads, checks, builds, and states no more than what differs from the base page."""

import ast
import dataclasses
import re
from pathlib import Path

import jax
import pytest
from conftest import BASE, ROOT

from noisesched import loss
from noisesched.comparison import study
from noisesched.models import build
from noisesched.runs import config, settings

EVERY = sorted(ROOT.glob("configs/*.py"))
COMPARISONS = [path for path in EVERY if path.stem == "compare" or path.stem.startswith("study_")]
PATHS = [path for path in EVERY if path not in COMPARISONS]
DERIVED = [path for path in PATHS if path.stem != "digits"]


def flat(values, prefix=""):
    leaves = {}
    for name, value in values.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def stated(path):
    """The settings that a config file assigns to, as in `config.a.b = ..`."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            names.append(ast.unparse(node.targets[0]).removeprefix("config."))
    return names


def parent(path):
    (name,) = re.findall(r"^from configs import (\w+)$", path.read_text(), re.MULTILINE)
    return path.with_stem(name)


def fields(kind):
    known = dataclasses.fields(kind)
    group = lambda field: dataclasses.is_dataclass(field.type) and settings.is_group(field)
    return {field.name: fields(field.type) if group(field) else None for field in known}


def test_the_promised_configs_are_there():
    assert {path.stem for path in PATHS} >= {"digits", "digits_discrete", "cifar10", "cifar10_discrete", "image_folder"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_loads_checks_and_builds(path):
    given = config.load(str(path))  # checks, too
    config.check_devices(given, 8)
    assert list(config.warnings(given)) == []
    size, channels = given.data.image_size, given.data.channels
    images = jax.ShapeDtypeStruct((2, size, size, channels), "float32")
    levels = jax.ShapeDtypeStruct((2,), "float32")
    labels = jax.ShapeDtypeStruct((2,), "int32") if given.model.num_classes else None
    x_hat = jax.eval_shape(lambda *inputs: build.make_denoiser(given)(*inputs), images, levels, labels)
    assert x_hat.shape == images.shape and x_hat.dtype == "float32"


def test_the_base_page_has_every_setting_once_and_no_more():
    named = [name for name in stated(ROOT / "configs/digits.py") if name in flat(fields(config.Config))]
    assert named == list(flat(fields(config.Config)))  # in the same order, too
    groups = [name for name in stated(ROOT / "configs/digits.py") if name not in named]
    assert groups == [field.name for field in dataclasses.fields(config.Config) if settings.is_group(field)]


@pytest.mark.parametrize("path", DERIVED, ids=lambda path: path.stem)
def test_a_derived_config_states_only_what_differs(path):
    before, after = (flat(config.read(str(p), config.Config)) for p in (parent(path), path))
    differing = [name for name in after if after[name] != before[name]]
    assert sorted(differing) == sorted(stated(path))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_its_docstring_shows_the_command_that_trains_it(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert f"noisesched train --config=configs/{path.name} --workdir=" in text


def test_the_base_page_names_every_choice():
    page = Path(BASE).read_text()
    choices = [choice for names in settings.stated("choices", config.Config).values() for choice in names]
    for name in (*choices, *loss.WEIGHTINGS):
        assert re.search(rf"\b{name}\b", page), name


# -- comparisons


def test_the_page_of_comparisons_has_every_setting():
    assert {"workdirs", "runs"} < set(stated(ROOT / "configs" / "compare.py")) == set(fields(study.Study))


@pytest.mark.parametrize("path", [path for path in COMPARISONS if path.stem != "compare"], ids=lambda path: path.stem)
def test_a_study_can_be_carried_out(path, tmp_path):
    asked = study.load(str(path))
    runs = study.find_runs(asked, tmp_path)
    assert len(runs) == len(asked.runs) * len(asked.train_seeds) and all(run.trainable for run in runs)
    rows = study.rows_of(asked, runs, {"data": "as it is today"})
    assert len({row.key for row in rows}) == len(rows) >= len(runs) * len(asked.schedules) * len(asked.calls)


def test_the_study_of_brightness_has_every_repair_and_refuses_the_noise_at_zero_snr(tmp_path):
    asked = study.load(str(ROOT / "configs" / "study_brightness.py"))
    settings = [flat(config.to_dict(run.config)) for run in study.find_runs(asked, tmp_path) if run.seed == 0]
    differing = {name for name in settings[0] if len({str(each[name]) for each in settings}) > 1}
    assert differing == {"schedule", "weighting", "noise_offset", "model.prediction", "preview.schedule"} and len(settings) == 7
    label, run = next((label, run) for label, run in asked.runs.items() if "zero_terminal" in run["schedule"])
    refused = dataclasses.replace(asked, runs={label: run | {"model": run["model"] | {"prediction": "eps"}}})
    with pytest.raises(config.ConfigError, match=f"runs.{label}: .*eps"):
        study.find_runs(refused, tmp_path)


def test_the_runs_of_the_study_of_conditioning_differ_in_what_is_drawn_and_told_alone(tmp_path):
    asked = study.load(str(ROOT / "configs" / "study_conditioning.py"))
    settings = [flat(config.to_dict(run.config)) for run in study.find_runs(asked, tmp_path) if run.seed == 0]
    differing = {name for name in settings[0] if len({str(each[name]) for each in settings}) > 1}
    assert differing == {"schedule", "conditioning.kind", "conditioning.table"} and len(settings) == 9
