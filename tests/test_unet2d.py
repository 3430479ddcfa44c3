"""UNet2DModel against numbers that PyTorch's diffusers computed (tests/data/unet2d.npz), and the reading of its folders."""

import dataclasses
import json
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from flax import nnx
from safetensors.numpy import load_file, save_file

from noisesched import samplers, schedules
from noisesched.interchange import export, pipelines
from noisesched.models import build, denoiser
from noisesched.models.conditioning import KINDS
from noisesched.models.unet2d import Architecture, UNet2D
from noisesched.runs import config as configuration
from noisesched.runs import subject
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.workdir import Workdir

PINNED = ROOT / "tests" / "data" / "unet2d.npz"  # written by: python tests/test_unet2d_library.py
TIMESTEPS = (999, 37)


def blocks(*names):
    return [f"{name}Block2D" for name in names]


# The published configurations, with fewer channels, layers and pixels (and, of NCSN++, levels).
DDPM = {
    "_class_name": "UNet2DModel",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [32, 64],
    "center_input_sample": False,
    "down_block_types": blocks("AttnDown", "Down"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 8,
    "time_embedding_type": "positional",
    "up_block_types": blocks("Up", "AttnUp"),
}
TINY = DDPM | {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [32],
    "down_block_types": blocks("Down"),
    "mid_block_type": None,
    "up_block_types": blocks("Up"),
}
CASES = {
    "ddpm": DDPM,
    "adm": {
        "_class_name": "UNet2DModel",
        "sample_size": 8,
        "block_out_channels": [32, 64, 96],
        "down_block_types": blocks("ResnetDownsample", "AttnDown", "AttnDown"),
        "up_block_types": blocks("AttnUp", "AttnUp", "ResnetUpsample"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "layers_per_block": 1,
        "attention_head_dim": 16,
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": 10,
    },
    "ncsnpp": DDPM
    | {
        "sample_size": 16,
        "block_out_channels": [32, 64, 64],
        "down_block_types": blocks("SkipDown", "AttnSkipDown", "SkipDown"),
        "up_block_types": blocks("SkipUp", "AttnSkipUp", "SkipUp"),
        "time_embedding_type": "fourier",
        "mid_block_scale_factor": 2**0.5,
        "norm_num_groups": None,
        "downsample_padding": 1,
    },
    "seldom": DDPM
    | {
        "in_channels": 2,
        "out_channels": 2,
        "block_out_channels": [24, 40],
        "down_block_types": ["DownBlock2D", "UNetResAttnDownBlock2D"],
        "up_block_types": blocks("AttnUp", "Up"),
        "center_input_sample": True,
        "act_fn": "mish",
        "attention_head_dim": 12,
        "norm_num_groups": 8,
        "time_embedding_type": "learned",
        "time_embedding_dim": 50,
        "num_train_timesteps": 1000,
        "class_embed_type": "timestep",
        "add_attention": False,
        "dropout": 0.5,
    },
}


def weights(name, shape):
    """The tensor of that name and shape, as the library's: random, and none is neutral."""
    values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)
    if name == "time_proj.weight" and len(shape) == 1:
        return 16 * values
    if len(shape) == 1:
        return 0.1 * values + np.float32("norm" in name and name.endswith("weight"))
    return values / np.sqrt(np.prod(shape[1:]), dtype=np.float32)


def inputs(fields):
    """z [2, H, W, C], timesteps [2], labels [2] or None."""
    size, channels = fields["sample_size"], fields.get("in_channels", 3)
    z = np.random.default_rng(0).normal(size=(2, size, size, channels)).astype(np.float32)
    classes = fields.get("num_class_embeds") or fields.get("class_embed_type")
    return z, np.array(TIMESTEPS), np.array([3, 8]) if classes else None


def write_folder(folder, fields, scheduler=None):
    """A folder as the library's `save_pretrained` writes it, with `weights`."""
    where = folder / "unet" if scheduler else folder
    where.mkdir(parents=True)
    (where / "config.json").write_text(json.dumps(fields))
    network = pipelines.read_network(where / "config.json")
    make = lambda: UNet2D(network.architecture, network.channels, network.channels, dtype="float32", rngs=build.Keys(0))
    template = denoiser.split(nnx.eval_shape(make))[1]
    shapes = {name: tuple(leaf.shape[axis] for axis in axes) for name, (leaf, axes) in pipelines.tensors(template).items()}
    save_file({name: weights(name, shape) for name, shape in shapes.items()}, where / pipelines.WEIGHTS)
    if scheduler:
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def read_folder(folder):
    """The UNet2D in a folder of a network alone."""
    network = pipelines.read_network(folder / "config.json")
    make = lambda: UNet2D(network.architecture, network.channels, network.channels, dtype="float32", rngs=build.Keys(0))
    definition, template = denoiser.split(nnx.eval_shape(make))
    return denoiser.merge(definition, pipelines.read_weights(folder / pipelines.WEIGHTS, template))


@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
def run(net, *arguments):
    return net(*arguments)


def check(made, expected):
    """Every example is that of the library, to 1e-5 of its largest number."""
    assert expected.std() > 1e-3
    for ours, theirs in zip(np.asarray(made), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_librarys(name, tmp_path):
    z, timesteps, labels = inputs(CASES[name])
    net = read_folder(write_folder(tmp_path / "net", CASES[name]))
    check(run(net, z, np.float32(timesteps), labels), np.load(PINNED)[name])


# -- a folder becomes a run

SCHEDULER = {"_class_name": "DDPMScheduler", "clip_sample": True, "timestep_spacing": "leading"}
LINEAR = "discrete(linear, num_steps=1000, beta_min=0.0001, beta_max=0.02)"


def denoiser_of(workdir):
    """(the Config of a run, its denoiser)."""
    config = configuration.from_dict(Workdir(workdir).read_config())
    definition, template = build.abstract_denoiser(config)
    with Checkpoints(Workdir(workdir), max_to_keep=None) as checkpoints:
        step, items = checkpoints.restore({"ema": template})
    assert step == 0
    return config, denoiser.merge(definition, items["ema"])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("pipeline") / "ddpm", DDPM, SCHEDULER)


def test_a_pipeline_becomes_a_run_that_makes_the_librarys_images(main, pipeline, tmp_path):
    code, out, err = main("interchange", f"--read={pipeline}", f"--workdir={tmp_path / 'run'}", "--config.data.path=photos")
    assert (code, err) == (
        2,
        "noisesched: error: '--config.data.path=photos' changes a setting of a --config, but none is given\n",
    )
    given = (f"--read={pipeline}", f"--workdir={tmp_path / 'run'}")
    code, out, err = main("interchange", *given, "--config=digits", "--config.seed=3")
    assert (code, err) == (0, "")
    assert "665,059 parameters, 8x8x3; it predicts eps and is told the timestep of discrete(linear" in out
    assert "note: clip_sample" in out and "--method=ancestral --spacing=leading" in out
    config, denoise = denoiser_of(tmp_path / "run")
    assert (config.seed, config.data.name, config.model.prediction) == (3, "digits", "eps")
    assert str(config.schedule) == str(config.conditioning.table) == LINEAR
    assert configuration.from_dict(configuration.to_dict(config)) == config
    levels = schedules.levels(config.schedule, 5)
    made = samplers.sample(denoise, jax.random.key(0), jnp.asarray(inputs(DDPM)[0]), levels, "ddim")
    expected = np.load(PINNED)["images"]
    np.testing.assert_allclose(made, expected, atol=2e-5 * np.abs(expected).max())  # five calls
    code, out, err = main("interchange", *given)
    assert (code, err) == (2, f"noisesched: error: {tmp_path / 'run'} holds a run already: take another --workdir\n")


def test_a_network_alone_is_taken_as_ddpms(tmp_path):
    """Its weights under the names and in the precision that old files have, with all files in one folder."""
    folder = write_folder(tmp_path / "old", DDPM)
    new = load_file(folder / pipelines.WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    rename = lambda name: next((name.replace(new, old) for new, old in old.items() if new in name), name)
    save_file({rename(name): array.astype(np.float16) for name, array in new.items()}, folder / pipelines.WEIGHTS)
    config, said = pipelines.read(folder, tmp_path / "run")
    assert config.model.prediction == "eps" and str(config.schedule) == "discrete(linear, num_steps=1000)"
    assert any("holds no scheduler_config.json: taken as DDPM's" in line for line in said)
    _, denoise = denoiser_of(tmp_path / "run")
    kernel = new["mid_block.attentions.0.to_q.weight"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(denoise.unet.mid_block.attentions[0].to_q.kernel[...], kernel.T)


def test_classes_and_no_label(tmp_path):
    folder = write_folder(tmp_path / "net", TINY | {"num_class_embeds": 10}, SCHEDULER | {"prediction_type": "v_prediction"})
    model = pipelines.read(folder, tmp_path / "run")[0].model
    assert (model.prediction, model.num_classes, model.label_dropout) == ("v", 10, 0.0)
    config, _ = pipelines.read(folder, tmp_path / "other", num_classes=9)
    assert (config.model.num_classes, config.model.label_dropout) == (9, 0.1)
    subject.of_config(config).check_guidance("cfg(2)")
    with pytest.raises(ValueError, match="^model: num_classes=8, but architecture.num_class_embeds=10: choose 10$"):
        pipelines.read(folder, tmp_path / "third", num_classes=8)


def test_a_run_that_was_read_is_sampled_and_trained_further(main, tmp_path):
    folder = write_folder(tmp_path / "net", TINY)
    short = [f"--config.{name}" for name in ("training.num_steps=2", "training.batch_size=16", "preview.every=0")]
    words = (f"--read={folder}", f"--workdir={tmp_path / 'run'}", "--config=digits", *short)
    for setting in ("model.width=8", "data.channels=3", "schedule=cosine"):
        refused = f"noisesched: error: --config.{setting} cannot be chosen: the network that is read decides it\n"
        assert main("interchange", *words, f"--config.{setting}")[2] == refused
    code, out, err = main("interchange", *words, "--config.optimizer.warmup_steps=0")
    assert (code, err) == (0, "")
    before = denoiser.split(denoiser_of(tmp_path / "run")[1])[1]
    code, out, err = main("sample", f"--workdir={tmp_path / 'run'}", "--steps=5", "--num_images=8", f"--out={tmp_path / 'out'}")
    assert (code, err) == (0, "") and "cleaner than training" not in out
    assert np.load(tmp_path / "out" / "samples.npy").shape == (8, 8, 8, 1)
    code, out, err = main("train", f"--workdir={tmp_path / 'run'}")
    assert code == 0 and "resuming" not in out
    with Checkpoints(Workdir(tmp_path / "run"), max_to_keep=None) as checkpoints:
        step, items = checkpoints.restore({"params": before})
    change = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), items["params"], before)
    assert step == 2 and 0 < max(jax.tree.leaves(change)) < 0.02  # two steps of Adam


# -- what is refused, before any weights are read


@pytest.mark.parametrize(
    "changes, says",
    [
        (
            {"_class_name": "UNet2DConditionModel"},
            '_class_name="UNet2DConditionModel": of diffusers\' networks UNet2DModel is read',
        ),
        (
            {"new_field": 3},
            "unknown fields: new_field=3; their effect is not known here: remove those that you know to have none",
        ),
        ({"out_channels": 6}, "in_channels=3, out_channels=6: they are equal here"),
        ({"sample_size": [8, 16]}, "sample_size=[8, 16]: images are square here"),
        ({"sample_size": 0}, "sample_size=0 must be a whole number above 0"),
        ({"layers_per_block": "two"}, "layers_per_block='two' must be of type int"),
        ({"layers_per_block": 0}, "layers_per_block=0 must be from 1 to 255"),
        ({"norm_eps": 0}, "norm_eps=0 must be above 0"),
        ({"freq_shift": 16}, "freq_shift=16 must be from 0 to 15"),
        ({"act_fn": "elu"}, "act_fn='elu' is not known here; known: silu, swish, mish, gelu, relu"),
        (
            {"resnet_time_scale_shift": "spatial"},
            "resnet_time_scale_shift='spatial' is not known here; known: default, scale_shift",
        ),
        ({"down_block_types": blocks("Down", "K")}, "down_block_types: 'KBlock2D' is not known here; known: DownBlock2D, "),
        ({"up_block_types": blocks("Up")}, "up_block_types has 1 levels, block_out_channels has 2"),
        ({"time_embedding_type": "learned"}, "time_embedding_type='learned' needs num_train_timesteps"),
        (
            {
                "down_block_types": blocks("Down", "SkipDown", "Down"),
                "up_block_types": blocks("Up", "Up", "Up"),
                "block_out_channels": [32] * 3,
            },
            "down_block_types: a level of Skip blocks follows one of others",
        ),
        ({"up_block_types": blocks("SkipUp", "Up")}, "up_block_types: a level of other blocks follows one of Skip blocks"),
    ],
)
def test_architectures_that_cannot_be_read_are_named(changes, says, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DDPM | changes))
    with pytest.raises(ValueError) as error:
        pipelines.read_network(path)
    assert str(error.value).startswith(f"{path}: {says}")


def test_every_field_withstands_every_value(small):
    """A workdir's config.json may come from anybody."""
    least = Architecture((32,), ("DownBlock2D",), up_block_types=("UpBlock2D",), layers_per_block=1)
    values = configuration.to_dict(small())
    values["model"] |= {"kind": "unet2d", "architecture": dataclasses.asdict(least)}
    assert configuration.from_dict(values).model.architecture == least
    refused = 0
    for name in values["model"]["architecture"]:
        for value in (None, True, -1, 0, 10**400, 0.5, 1e308, float("nan"), "", "x\n" * 500, [], [-1], [[]], ["a"], {"x": {}}):
            architecture = values["model"]["architecture"] | {name: value}
            try:
                configuration.from_dict(values | {"model": values["model"] | {"architecture": architecture}})
            except configuration.ConfigError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 400
    assert refused > 300


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"norm_num_groups": 24}, "model: 32 channels cannot be normalised in 24 groups"),
        ({"attention_head_dim": 96}, "model: attention_head_dim=96 at a level of 32 channels leaves no head"),
        ({"sample_size": 9}, "model: image_size=9 is not a multiple of 2, as 2 levels need; nearest valid: 8 or 10"),
        ({"in_channels": 4, "out_channels": 4}, "data.channels=4: choose one of 1, 3"),
        ({"class_embed_type": "identity"}, "model: architecture.class_embed_type='identity' with num_classes=0"),
        ({"sample_size": None}, "states no sample_size: give --image_size=PIXELS, of a side"),
    ],
)
def test_networks_that_no_run_can_hold_are_named(changes, says, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DDPM | changes))
    (tmp_path / pipelines.WEIGHTS).touch()  # it is not read
    with pytest.raises(ValueError) as error:
        pipelines.read(tmp_path, tmp_path / "run")
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    "scheduler, says",
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "a network of FlowMatchEulerDiscreteScheduler with these fields is not",
        ),
        ({"_class_name": "ScoreSdeVeScheduler"}, "this scheduler is not known here"),
        (SCHEDULER | {"rescale_betas_zero_snr": True}, "model.prediction='eps' with schedule 'discrete(linear"),
    ],
)
def test_schedulers_that_no_run_can_hold_are_named(scheduler, says, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DDPM))
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    (tmp_path / pipelines.WEIGHTS).touch()
    with pytest.raises(ValueError) as error:
        pipelines.read(tmp_path, tmp_path / "run")
    assert says in str(error.value)


def test_pickles_and_missing_files_are_refused(main, tmp_path):
    assert (
        f"--read={tmp_path} is a folder, whose network becomes a run: give --workdir=DIR"
        in main("interchange", f"--read={tmp_path}")[2]
    )
    words = ("interchange", f"--read={tmp_path}", f"--workdir={tmp_path / 'run'}")
    assert f"{tmp_path} holds no network of diffusers: no unet/config.json, and no config.json" in main(*words)[2]
    (tmp_path / "config.json").write_text(json.dumps(DDPM))
    assert f"{tmp_path} holds no diffusion_pytorch_model.safetensors (no weights at all)" in main(*words)[2]
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    assert "diffusion_pytorch_model.bin is a pickle, which can run any program: only" in main(*words)[2]
    assert "--spacing is for a scheduler's file, not for a folder to read" in main(*words, "--spacing=leading")[2]


def test_tensors_of_another_network_are_named(pipeline, tmp_path):
    tensors = load_file(pipeline / "unet" / pipelines.WEIGHTS)
    (tmp_path / "config.json").write_text(json.dumps(DDPM))

    def refusal(changed):
        save_file(changed, tmp_path / pipelines.WEIGHTS)
        with pytest.raises(ValueError) as error:
            read_folder(tmp_path)
        return str(error.value).removeprefix(f"{tmp_path / pipelines.WEIGHTS}: ")

    bias = tensors["conv_in.bias"]
    without = {name: array for name, array in tensors.items() if not name.startswith("conv_")}
    lacks = "lacks 6 of 144 tensors: conv_in.bias [32], conv_in.weight [32, 3, 3, 3], conv_norm_out.bias [32], .."
    assert refusal(without | {"more": bias}) == f"{lacks}; has 1 that are not the network's: more"
    assert refusal(tensors | {"conv_in.bias": bias[1:]}) == "has 1 of another shape: conv_in.bias [31], not [32]"
    assert refusal(tensors | {"conv_in.bias": bias.astype(np.int32)}) == "tensors of type F32, I32 are no weights"
    assert refusal(tensors | {"conv_in.bias": np.full_like(bias, np.nan)}) == "tensor conv_in.bias has values that are not finite"
    (tmp_path / pipelines.WEIGHTS).write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="not a .safetensors file, or damaged, or cut short"):
        read_folder(tmp_path)


# -- a run becomes a folder


def test_every_kind_of_conditioning_is_told_in_words():
    assert {*export.POSITIONS, "timestep"} == set(KINDS)


OURS = {
    "model.width": 32,
    "model.multipliers": "(1, 2)",
    "model.attention": "(4,)",
    "model.num_classes": 3,
    "data.image_size": 8,
    "data.channels": 1,
}
TOLD_STEPS = {
    "conditioning.kind": "timestep",
    "conditioning.table": "discrete(linear, num_steps=1000)",
    "schedule": "discrete(linear, num_steps=1000)",
    "model.prediction": "eps",
    "model.num_classes": 0,
}


def random_run(config, workdir):
    """Writes a run with random parameters, of which none is neutral; returns its denoiser."""
    definition, template = build.abstract_denoiser(config)

    def values(path, leaf):
        draw = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode())).normal(size=leaf.shape)
        centre = float("scale" in jax.tree_util.keystr(path))
        return np.float32(centre + draw * (0.1 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5))

    params = jax.tree_util.tree_map_with_path(values, template)
    Workdir(workdir).write_config(configuration.to_dict(config))
    with Checkpoints(Workdir(workdir), max_to_keep=1) as checkpoints:
        checkpoints.save(7, {"ema": params})
    return denoiser.merge(definition, params)


def test_our_unet_is_the_librarys(main, small, tmp_path):
    denoise = random_run(small(OURS), tmp_path / "run")
    code, out, err = main("export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    assert (code, err) == (0, "")
    assert "UNet2DModel of step 7, which predicts v and is told 1000 * (2 / pi) * atan(sigma / alpha)" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", pipelines.WEIGHTS, "noisesched.json"]
    code, _, err = main("export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    assert code == 2 and err.endswith("out is not empty, and its files would mix: take another --out\n")
    z, log_snr, labels = np.float32(np.random.default_rng(0).normal(size=(2, 8, 8, 1))), jnp.array([-2.0, 3.0]), np.array([1, 3])
    expected = jax.jit(lambda z: denoise.output(z, log_snr, labels))(z)
    angle = 1000 * 2 / np.pi * np.arctan(np.exp(-np.float64(log_snr) / 2))
    check(run(read_folder(tmp_path / "out"), z, np.float32(angle), labels), expected)


def test_a_network_told_timesteps_becomes_a_pipeline_and_comes_back(main, small, tmp_path):
    denoise = random_run(small(OURS | TOLD_STEPS), tmp_path / "run")
    code, out, err = main("export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    assert (code, err) == (0, "") and "linear_1 is turned, so that timesteps count from 0" in out
    code, out, err = main("interchange", f"--read={tmp_path / 'out'}", f"--workdir={tmp_path / 'back'}")
    assert (code, err) == (0, "")
    config, again = denoiser_of(tmp_path / "back")
    assert str(config.schedule.table) == str(config.conditioning.table.table)
    z = np.float32(np.random.default_rng(0).normal(size=(3, 8, 8, 1)))
    log_snr = jnp.asarray(config.conditioning.table.table.log_snr[[0, 400, 999]], jnp.float32)
    both = [np.asarray(jax.jit(lambda z, net=net: net.output(z, log_snr))(z)) for net in (denoise, again)]
    np.testing.assert_allclose(both[0], both[1], atol=5e-5 * np.abs(both[0]).max())
    # A network of the library goes back as it came.
    code, out, err = main("export", f"--workdir={tmp_path / 'back'}", "--parameters=params", f"--out={tmp_path / 'again'}")
    first, second = (load_file(tmp_path / name / pipelines.WEIGHTS) for name in ("out", "again"))
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"model.width": 24, "model.multipliers": "(1, 2, 2)"}, "here 72 channels in 24 groups, 96 channels in 32 groups"),
        ({"model.attention": "(4, 8)"}, "here model.heads=4 makes heads of 8 and 16 channels"),
    ],
)
def test_a_unet_that_the_library_lacks_keeps_our_names(main, small, changes, says, tmp_path):
    random_run(small(OURS | changes), tmp_path / "run")
    code, out, err = main("export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    assert (code, err) == (0, "") and says in out
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    _, template = build.abstract_denoiser(small(OURS | changes))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(template)[0]
    }
    assert json.loads((tmp_path / "out" / "noisesched.json").read_text())["config"]["model"]["kind"] == "unet"
