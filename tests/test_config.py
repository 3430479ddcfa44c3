"""Configurations: what is refused, in which words; overrides; and the round trip through a workdir's JSON."""

import copy
import dataclasses
import json
import sys
from pathlib import Path

import pytest
from conftest import BASE

from noisesched import schedules
from noisesched.runs import config
from noisesched.runs.config import ConfigError
from noisesched.training.step import learning_rate

HUGE = 10**400  # JSON may hold it
GROUPS = "seed, data, schedule, weighting, noise_offset, conditioning, model, optimizer, training, preview"
IN_MODEL = (
    "kind, prediction, width, multipliers, blocks, attention, heads, patch, dropout, architecture, num_classes, "
    "label_dropout, dtype"
)
NO_IMAGE = (
    "which ends at zero SNR: there z holds nothing of the image, and no image follows from the noise; set "
    "model.prediction to 'v' (or 'x'), or truncate the schedule"
)
ZERO = "discrete(scaled_linear, zero_terminal=True)"


@pytest.fixture(scope="module")
def base(small):
    return config.to_dict(small())


def changed(base, **changes):
    """The base's nested dictionaries with changes such as model__width=3."""
    values = copy.deepcopy(base)
    for name, value in changes.items():
        *groups, last = name.split("__")
        inner = values
        for group in groups:
            inner = inner[group]
        inner[last] = value
    return values


def refusal(function, *arguments):
    with pytest.raises(ConfigError) as error:
        function(*arguments)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


# -- what start-up refuses, with the fix in the message


@pytest.mark.parametrize(
    "changes, says",
    [
        # eps prediction with zero terminal SNR, trained or sampled
        ({"model__prediction": "eps"}, f"model.prediction='eps' with schedule 'cosine', {NO_IMAGE}"),
        ({"model__prediction": "eps", "schedule": ZERO}, f"model.prediction='eps' with schedule '{ZERO}', {NO_IMAGE}"),
        (
            {"model__prediction": "eps", "schedule": "linear", "preview__every": 2},
            "sampling under 'cosine' starts at zero SNR, where no image follows from the noise that this network predicts "
            "(model.prediction='eps'); truncate it: 'truncated(cosine, log_snr_min=-12, log_snr_max=20)'",
        ),
        # a size the levels do not divide, and other networks that cannot be
        (
            {"model__multipliers": [1, 1, 1], "data__image_size": 10},
            "model: image_size=10 is not a multiple of 4, as 3 levels need; nearest valid: 8 or 12",
        ),
        ({"model__attention": [3]}, "model: attention at size 3, but the levels have sizes 8"),
        ({"model__attention": [8], "model__heads": 3}, "model: attention width 8 is not divisible by heads=3"),
        ({"model__width": 7}, "conditioning: the noise level is told by an even number of features, 2 or more; got 7"),
        ({"model__multipliers": []}, "model.multipliers=() must be one whole number for each level"),
        ({"model__multipliers": [1, 0]}, "model.multipliers=0 must be at least 1"),
        ({"model__width": 2**16}, "model.width=65536 must be below 65536"),
        ({"data__channels": 2}, "data.channels=2: choose one of 1, 3; other numbers are for data.name='arrays'"),
        # batches and steps
        ({"training__accumulate": 3}, "training.batch_size=16 is not a multiple of training.accumulate=3"),
        (
            {"training__steps_per_dispatch": 4, "training__num_steps": 8, "training__checkpoint_every": 4},
            "training.log_every=1 is not a multiple of training.steps_per_dispatch=4",
        ),
        ({"training__steps_per_dispatch": 4}, "training.num_steps=6 is not a multiple of training.steps_per_dispatch=4"),
        ({"training__num_steps": 2**31}, "training.num_steps=2147483648 must be below 2147483648"),
        # choices and ranges
        ({"model__prediction": "noise"}, "model.prediction='noise': choose one of eps, x, v"),
        ({"model__dtype": "float16"}, "model.dtype='float16': choose one of float32, bfloat16"),
        ({"optimizer__decay": "step"}, "optimizer.decay='step': choose one of constant, linear, cosine"),
        ({"training__parallel": "pjit"}, "training.parallel='pjit': choose one of pmap, jit, fsdp"),
        ({"conditioning__translation": "near"}, "conditioning.translation='near': choose one of nearest, interpolated"),
        ({"conditioning__kind": "time"}, "conditioning.kind='time': choose one of log_snr, sigma, timestep, none"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"noise_offset": -0.1}, "noise_offset=-0.1 must be at least 0"),
        ({"training__batch_size": 0}, "training.batch_size=0 must be at least 1"),
        ({"model__dropout": 1.0}, "model.dropout=1.0 must be below 1"),
        ({"optimizer__learning_rate": -1e-3}, "optimizer.learning_rate=-0.001 must be at least 0"),
        # specs
        (
            {"schedule": "cosin"},
            f"schedule: unknown schedule 'cosin' (did you mean 'cosine'?); known: {', '.join(sorted(schedules.EXAMPLES))}",
        ),
        (
            {"schedule": "discrete(linear, num_steps=1000000000000)"},
            "schedule: schedule 'discrete(linear, num_steps=1000000000000)': num_steps is a whole number "
            "from 2 up to 100000; got 1000000000000",
        ),
        (
            {"weighting": "snr"},
            "weighting: unknown weighting 'snr' (did you mean 'min_snr'?); known: debiased, edm, eps, "
            "min_snr, p2, sigmoid, soft_min_snr, uncertain, v, vlb, x",
        ),
        (
            {"weighting": "min_snr(gamma=0)"},
            "weighting: weighting 'min_snr(gamma=0)': gamma is a number from 1e-09 to 1e+09; got 0",
        ),
        ({"preview__schedule": "cosine("}, "preview.schedule: cannot read the spec 'cosine(': '(' was never closed"),
        ({"preview__steps": 10**9}, "preview.steps: the number of levels is a whole number from 1 up to 100000; got 1000000000"),
        (
            {"preview__schedule": "discrete(linear, num_steps=5)", "preview__steps": 6},
            "preview.steps: cannot select 6 of 5 steps: choose 1 to 5",
        ),
        ({"preview__method": "unipc"}, "preview.method: unknown sampling method 'unipc'; known: ancestral, ddim, dpmpp_2m, heun"),
        ({"preview__method": "ddim(eta=nan)"}, "preview.method: sampling method 'ddim': eta is a number from 0 to 1; got nan"),
        # what the network is told
        (
            {"conditioning__kind": "timestep"},
            "conditioning: conditioning.table='' must be a table, such as 'discrete(linear, num_steps=1000)'",
        ),
        (
            {"conditioning__kind": "timestep", "conditioning__table": "linear"},
            "conditioning: conditioning.table='linear' must be a table, such as 'discrete(linear, num_steps=1000)'",
        ),
        (
            {"conditioning__table": "discrete(linear)"},
            "conditioning: conditioning.table='discrete(linear)' is only for conditioning.kind='timestep', not 'log_snr': "
            "leave it empty, ''",
        ),
    ],
)
def test_refused_at_start_up(base, changes, says):
    assert refusal(config.from_dict, changed(base, **changes)) == says


@pytest.mark.parametrize(
    "changes",
    [
        {"model__prediction": "eps", "schedule": "linear", "preview__schedule": "linear", "preview__every": 2},
        {"model__prediction": "eps", "schedule": "truncated(cosine, log_snr_min=-12, log_snr_max=20)"},  # the fix that is advised
        {"model__prediction": "x", "schedule": ZERO},
        {"conditioning__kind": "timestep", "conditioning__table": "discrete(linear, num_steps=10)"},  # levels: any schedule's
        {"conditioning__kind": "none", "model__num_classes": 10, "model__dtype": "bfloat16"},
        {"optimizer__learning_rate": 1, "seed": 2**32 - 1, "model__attention": (8,)},  # a whole number where a float is meant
    ],
)
def test_accepted(base, changes):
    made = config.from_dict(changed(base, **changes))
    assert type(made.optimizer.learning_rate) is float and type(made.model.attention) is tuple


def test_levels_that_an_eps_network_cannot_start_from(small):
    eps, v = small({"model.prediction": "eps", "schedule": "linear", "preview.schedule": "linear"}), small()
    for text in ("cosine", "flow", ZERO):
        levels = schedules.levels(schedules.make(text), 3)
        assert repr(text)[1:-1] in refusal(config.check_levels, eps, text, levels)
        config.check_levels(v, text, levels)
        config.check_levels(eps, text, schedules.levels(schedules.make(text), 3, "leading"))  # never visits u = 1
    config.check_levels(eps, "linear", schedules.levels(schedules.make("linear"), 3))


# -- hostile JSON


@pytest.mark.parametrize("value", [None, True, "1", 1.0, float("nan"), [], [1], {}, {"a": 1}])
def test_a_whole_number_is_nothing_else(base, value):
    message = refusal(config.from_dict, changed(base, training__num_steps=value))
    assert message == f"training.num_steps={value!r} must be of type int"


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("optimizer__learning_rate", True, "optimizer.learning_rate=True must be of type float"),
        ("optimizer__learning_rate", "1e-3", "optimizer.learning_rate='1e-3' must be of type float"),
        ("optimizer__learning_rate", None, "optimizer.learning_rate=None must be of type float"),
        ("optimizer__learning_rate", float("nan"), "optimizer.learning_rate=nan must be finite"),
        ("optimizer__learning_rate", float("inf"), "optimizer.learning_rate=inf must be finite"),
        ("optimizer__learning_rate", HUGE, "optimizer.learning_rate=inf must be finite"),
        ("noise_offset", float("nan"), "noise_offset=nan must be finite"),
        ("noise_offset", "0.1", "noise_offset='0.1' must be of type float"),
        ("data__flip", 1, "data.flip=1 must be of type bool"),
        ("data__flip", "True", "data.flip='True' must be of type bool"),
        ("data__name", 5, "data.name=5 must be of type str"),
        ("schedule", ["cosine"], "schedule=['cosine'] must be of type str"),
        ("model__prediction", ["v"], "model.prediction=['v'] must be of type str"),
        ("model__multipliers", 1, "model.multipliers=1 must be a list"),
        ("model__multipliers", "12", "model.multipliers='12' must be a list"),
        ("model__multipliers", {"0": 1}, "model.multipliers={'0': 1} must be a list"),
        ("model__multipliers", [[1]], "model.multipliers=[1] must be of type int"),
        ("model__multipliers", [True], "model.multipliers=True must be of type int"),
        ("model__multipliers", [1.0], "model.multipliers=1.0 must be of type int"),
        ("model", None, "model must be a group of settings; got None"),
        ("model", [], "model must be a group of settings; got []"),
        ("model", "small", "model must be a group of settings; got 'small'"),
        ("model", {}, "missing setting model.prediction"),
        ("colour", 1, f"unknown setting colour; known: {GROUPS}"),
        ("model__wdith", 1, f"unknown setting model.wdith; known: {IN_MODEL}"),
    ],
)
def test_mistyped_values_and_names(base, name, value, says):
    assert refusal(config.from_dict, changed(base, **{name: value})) == says


@pytest.mark.parametrize("values", [None, [], "config", 5, True])
def test_not_a_configuration_at_all(values):
    assert refusal(config.from_dict, values) == f"a configuration must be a group of settings; got {values!r}"


def test_missing_settings_and_groups(base):
    assert refusal(config.from_dict, {}) == "missing setting seed"
    for group in ("data", "preview"):
        assert refusal(config.from_dict, {k: v for k, v in base.items() if k != group}) == f"missing setting {group}"
    before_it = {k: v for k, v in base.items() if k != "noise_offset"}  # a workdir's, from before there was one
    assert refusal(config.from_dict, before_it) == "missing setting noise_offset"
    refusal(config.from_dict, {1: 2})
    refusal(config.from_dict, {None: {}})


def test_every_setting_withstands_every_value(base):
    """Anything JSON can hold, anywhere, is refused in one line or makes a Config: never another exception."""
    hostile = [
        None,
        True,
        -1,
        0,
        HUGE,
        -HUGE,
        0.5,
        1e308,
        float("nan"),
        float("-inf"),
        "",
        "x",
        "\n",
        "(" * 50,
        [],
        [[]],
        [HUGE],
        [-1],
        ["a"],
        {},
        {"x": {}},
    ]
    refused = 0
    for group, values in base.items():
        for name in values if isinstance(values, dict) else [None]:
            for value in hostile:
                try:
                    config.from_dict(changed(base, **{f"{group}__{name}" if name else group: value}))
                except ConfigError as error:
                    refused += 1
                    assert "\n" not in str(error) and len(str(error)) < 400
    assert refused > 700


# -- files and overrides


@pytest.mark.parametrize(
    "override, says",
    [
        ("--config.model.wdith=8", f"unknown setting 'model.wdith' (did you mean 'width'?); known in model: {IN_MODEL}"),
        ("--config.modle.width=8", f"unknown setting 'modle.width' (did you mean 'model'?); known: {GROUPS}"),
        ("--config.model=8", "'model' is a group of settings: give one of them, --config.model.NAME=value"),
        ("--config.model.width.x=8", "unknown setting 'model.width.x'; known in model.width: none"),
        ("--config.=8", f"unknown setting ''; known: {GROUPS}"),
        ("--config.model.width=abc", "model.width='abc' must be a whole number"),
        ("--config.model.width=3.5", "model.width='3.5' must be a whole number"),
        ("--config.model.width", f"config {BASE}: Missing value for flag --config.model.width"),
        ("--config.data.flip=maybe", "data.flip='maybe' must be true or false"),
        ("--config.model.multipliers=(1,", "model.multipliers='(1,' cannot be read: write a list such as (1, 2)"),
        ("--config.model.multipliers=(1,'a')", "model.multipliers='a' must be of type int"),
        ("--config.optimizer.learning_rate=nan", "optimizer.learning_rate=nan must be finite"),
        ("--config.seed=-1", "seed=-1 must be at least 0"),
        ("config.seed=1", "'config.seed=1' is no setting: write --config.NAME=value"),
        ("--confg.seed=1", "'--confg.seed=1' is no setting: write --config.NAME=value"),
        ("--config=other.py", "'--config=other.py' is no setting: write --config.NAME=value"),
    ],
)
def test_bad_overrides(override, says):
    assert refusal(config.load, BASE, [override]) == says


def test_overrides():
    made = config.load(
        BASE,
        [
            "--config.model.multipliers=(1,2)",
            "--config.optimizer.learning_rate=1e-4",
            "--config.data.flip",
            "--config.schedule=shifted(linear, by=-2)",
            "--config.data.path=a=b",
            "--config.seed=1",
            "--config.seed=2",
        ],
    )
    assert made.model.multipliers == (1, 2) and made.optimizer.learning_rate == 1e-4 and made.data.flip is True
    assert str(made.schedule) == "shifted(linear, by=-2)" and made.data.path == "a=b" and made.seed == 2  # the last one counts
    assert config.load(BASE, ["--config.data.flip", "--noconfig.data.flip"]) == config.load(BASE)
    assert config.load(BASE, ["--config.optimizer.weight_decay=1"]).optimizer.weight_decay == 1.0


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "must have a function get_config() that returns a ConfigDict"),
        ("def get_config(): pass", "must have a function get_config() that returns a ConfigDict"),
        ("def get_config(): return {'seed': 1}", "must have a function get_config() that returns a ConfigDict"),
        ("def get_config(:", ": SyntaxError: invalid syntax (page.py, line 1)"),
        ("from configs import digts", ", line 1: ImportError: cannot import name 'digts' from 'configs' (unknown location)"),
        ("def get_config():\n    return 1 / 0", ", line 2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    raise ValueError('a\\nb')", ", line 2: ValueError: a b"),
        (
            "def get_config(size): raise ValueError(size)",
            ": TypeError: get_config() missing 1 required positional argument: 'size'",
        ),
    ],
)
def test_bad_files(tmp_path, text, says):
    config.load(BASE)  # whatever was loaded before
    path = tmp_path / "page.py"
    path.write_text(text)
    message = refusal(config.load, str(path))
    assert message.startswith(f"config {path}") and message.endswith(says)


@pytest.mark.parametrize("name", ["page.py", "a:b.py"])
def test_a_page_may_take_an_argument(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(
        "from configs import digits\ndef get_config(width='8'):\n    config = digits.get_config()\n"
        "    config.model.width = int(width.partition(':')[0])\n    return config\n"
    )
    widths = {argument: config.load(name + argument).model.width for argument in ("", ":24", ":32:more")}
    assert widths == {"": 8, ":24": 24, ":32:more": 32}
    assert config.load(f"{name}:24", ["--config.model.width=16"]).model.width == 16
    with pytest.raises(ConfigError, match="line 4: ValueError: invalid literal"):
        config.load(f"{name}:wide")
    with pytest.raises(ConfigError, match="TypeError: get_config.. takes 0 positional arguments but 1 was given"):
        config.load("digits:24")
    (tmp_path / "compare").write_text("a file of another kind")
    assert config.find("compare").endswith("compare.py")  # the name alone: the shipped one
    with pytest.raises(ConfigError, match="config file 'nowhere.py' not found"):
        config.load("nowhere.py:24")


def test_a_file_that_misspells_a_setting(tmp_path):
    path = tmp_path / "page.py"
    begin = "from configs import digits\ndef get_config():\n    config = digits.get_config()\n"
    for line, says in (
        ("config.model.wdith = 8", "unknown setting model.wdith; known: kind, prediction, width"),
        ("config.model.width = 'wide'", f"config {path}, line 4: TypeError: "),
        ("del config.model.width", "missing setting model.width"),
    ):
        path.write_text(f"{begin}    {line}\n    return config\n")
        assert refusal(config.load, str(path)).startswith(says)


@pytest.mark.parametrize("path", ["configs/nope.py", "", ".", "configs"])
def test_missing_files(path):
    assert refusal(config.load, path).startswith(f"config file {path!r} not found; shipped with noisesched: brightness, cifar10")


def test_a_file_is_found_from_anywhere_and_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert config.load(BASE.replace("digits", "cifar10")).data.name == "cifar10"  # which imports configs.digits
    assert sys.path == before


def test_a_shipped_config_is_found_by_its_name_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits_classes", "digits_classes.py", "configs/digits_classes.py", "configs/digits_classes"):
        assert config.load(name) == config.load(BASE.replace("digits", "digits_classes"))
    Path("configs").mkdir()
    Path("configs/mine.py").write_text(Path(BASE).with_stem("digits_classes").read_text().replace("10", "9"))
    assert config.load("configs/mine.py").model.num_classes == 9  # which imports the shipped configs.digits
    Path("configs/mine.py").rename("configs/digits_classes.py")
    assert config.load("configs/digits_classes.py").model.num_classes == 9


# -- round trip


def test_round_trip_through_json(base, small):
    made = small({"optimizer.learning_rate": "0.1", "data.path": "a'\\\n\u00e9"})
    stored = json.loads(json.dumps(config.to_dict(made), allow_nan=False))
    assert config.from_dict(stored) == made and hash(config.from_dict(stored)) == hash(made)
    assert config.to_dict(config.from_dict(base)) == base
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.seed = 1


# -- devices and warnings


@pytest.mark.parametrize(
    "batch, accumulate, devices, says",
    [
        (16, 1, 8, None),
        (16, 2, 8, None),
        (16, 1, 1, None),
        (16, 4, 8, "training.batch_size=16 cannot be divided among 8 devices x accumulate=4; nearest: 32"),
        (16, 1, 3, "training.batch_size=16 cannot be divided among 3 devices x accumulate=1; nearest: 15 or 18"),
        (36, 3, 8, "training.batch_size=36 cannot be divided among 8 devices x accumulate=3; nearest: 24 or 48"),
    ],
)
def test_batch_that_the_devices_do_not_divide(base, batch, accumulate, devices, says):
    made = config.from_dict(changed(base, training__batch_size=batch, training__accumulate=accumulate))
    if says:
        assert refusal(config.check_devices, made, devices) == says
    else:
        config.check_devices(made, devices)


@pytest.mark.parametrize(
    "schedule, weighting, warned",
    [
        ("cosine", "min_snr(gamma=5)", True),
        (ZERO, "vlb", True),
        ("zero_terminal(linear)", "p2", True),
        ("flow", "eps", True),
        ("cosine", "v", False),
        (ZERO, "edm", False),
        ("cosine", "x", False),
        ("linear", "min_snr", False),
        ("karras", "vlb", False),
    ],
)
def test_warned_of_a_weighting_that_vanishes_at_zero_snr(base, schedule, weighting, warned):
    lines = list(config.warnings(config.from_dict(changed(base, schedule=schedule, weighting=weighting))))
    says = (
        f"weighting {weighting!r} vanishes at log-SNR -inf, where schedule {schedule!r} ends: nothing is learned at the "
        "level that sampling starts from; 'v' does not vanish there"
    )
    assert lines == [says] * warned


@pytest.mark.parametrize(("warmup", "reached"), [(6, None), (7, "0.000857"), (600, "1e-05")])
def test_warned_of_a_warm_up_that_the_run_does_not_outlast(base, warmup, reached):
    values = changed(base, schedule="linear", weighting="v")
    values["optimizer"] |= {"warmup_steps": warmup, "learning_rate": 1e-3}
    values["training"] |= {"num_steps": 6, "steps_per_dispatch": 1}
    given = config.from_dict(values)
    lines = list(config.warnings(given))
    assert len(lines) == (reached is not None)
    if lines:
        assert f"optimizer.warmup_steps={warmup} is longer than the run of training.num_steps=6" in lines[0]
        assert f"rises to {reached} at the last step" in lines[0]
        assert float(learning_rate(given)(5)) == pytest.approx(float(reached), rel=1e-2)
