"""Networks written as safetensors: a folder of PyTorch's diffusers where that library has the same network.

Our UNet is its `UNet2DModel`, parameter for parameter, if all its layers are normalised in one number of groups and all its heads
have one size (`as_unet2d`). Timesteps are counted from 1 here, from 0 there: the first layer of a network told those of a table
of a thousand is turned (`counted_from_zero`), so that the library's own count is right. Others must be told the number of which
the library's sinusoids are ours: noisesched.json says which.

    config.json, diffusion_pytorch_model.safetensors   the network there
    model_index.json, scheduler_config.json            of a network told timesteps: the rest of a pipeline
    model.safetensors                                  instead: a network that the library does not have, by our names
    noisesched.json                                    what the network predicts and is told; the run's settings
"""

import jax
import numpy as np
from etils import epath
from safetensors.numpy import save

from noisesched.interchange import pipelines, scheduler_config
from noisesched.models import build, unet
from noisesched.models.unet2d import Architecture
from noisesched.runs import config as configuration
from noisesched.runs import subject
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.settings import require
from noisesched.runs.workdir import Workdir
from noisesched.runtime.files import replacing, write_json

PIPELINE = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
POSITIONS = {
    "log_snr": "1000 * (2 / pi) * atan(sigma / alpha)",
    "sigma": "1000 * sigma, where alpha^2 + sigma^2 = 1",
    "none": "0, whatever the noise level",
}


def main(request):
    """The command."""
    for line in run(request):
        print(line)


def run(request):
    """Carries out a `requests.Export`; returns lines to say. Raises ValueError or FileNotFoundError, in one line."""
    workdir, out = Workdir(request.workdir), epath.Path(request.out)
    config = subject.of_workdir(workdir.path).config
    require(not out.exists() or not any(out.iterdir()), f"{out} is not empty, and its files would mix: take another --out")
    _, template = build.abstract_denoiser(config)
    with Checkpoints(workdir, max_to_keep=None) as checkpoints:
        step, items = checkpoints.restore({request.parameters: template}, request.checkpoint)
    params, said = items[request.parameters], []
    try:
        architecture, params = as_unet2d(config, params["unet"])
    except ValueError as error:
        architecture = None
        said.append(f"diffusers has no network like it: {error}")
    out.mkdir(parents=True, exist_ok=True)
    if architecture:
        number, from_zero = told(config)
        if from_zero and config.model.kind == "unet":
            params = counted_from_zero(params, config.model.width)
            said.append("time_embedding.linear_1 is turned, so that timesteps count from 0")
        tensors = pipelines.tensors(params)
        write_tensors(out / pipelines.WEIGHTS, {name: leaf.transpose(axes) for name, (leaf, axes) in tensors.items()})
        write_json(out / "config.json", pipelines.network_fields(architecture, config.data.image_size, config.data.channels))
        if from_zero and not config.model.num_classes:
            try:
                fields, _ = scheduler_config.to_fields(config.conditioning.table, config.model.prediction, method="ancestral")
                write_json(out / "scheduler_config.json", fields)
                write_json(out / "model_index.json", PIPELINE)
            except ValueError as error:
                said.append(f"no scheduler is written: {error}")
    else:
        number = told(config)[0]
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        write_tensors(
            out / "model.safetensors", {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
        )
    facts = {"prediction": config.model.prediction, "told": number, "checkpoint": step, "parameters": request.parameters}
    write_json(out / "noisesched.json", facts | {"config": configuration.to_dict(config)})
    kind = "UNet2DModel" if architecture else config.model.kind
    return [
        f"{out}: {kind} of step {step}, which predicts {config.model.prediction} and is told {number}",
        *(f"note: {line}" for line in said),
    ]


def told(config):
    """(the number that tells a network the noise level, in words; whether that is a timestep from 0, as diffusers tells it)."""
    given = config.conditioning
    if given.kind != "timestep":
        return POSITIONS[given.kind], False
    steps = given.table.table.num_steps
    if config.model.kind == "unet" and steps != 1000:
        return f"1000 * timestep / {steps}, timesteps 1 to {steps} of {given.table}", False
    return f"the timestep, 0 to {steps - 1}, of {given.table}", True


def write_tensors(path, tensors):
    with replacing(path) as file:
        file.write(save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, {"format": "pt"}))


# -- our UNet as one of diffusers


def as_unet2d(config, params):
    """(the `unet2d.Architecture` that is the network of a config, its parameters as nested dictionaries of numpy arrays).

    Raises ValueError, which says where they differ, if that library has no such network.
    """
    model = config.model
    if model.kind == "unet2d":
        return model.architecture, params
    if model.kind != "unet":
        raise ValueError(f"model.kind={model.kind!r}")
    levels = len(model.multipliers)
    sizes = [config.data.image_size >> level for level in range(levels)]
    widths = [model.width * multiplier for multiplier in model.multipliers]
    attended = [size in model.attention for size in sizes]
    normed = {
        leaf.size for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0] if "scale" in jax.tree_util.keystr(path)
    }
    groups = {unet.num_groups(channels): channels for channels in sorted(normed)}
    if len(groups) > 1:
        shown = ", ".join(f"{channels} channels in {count} groups" for count, channels in groups.items())
        raise ValueError(f"its norm_num_groups is one number for all layers; here {shown}")
    heads = {width // model.heads for width, attends in zip(widths, attended, strict=True) if attends}
    if len(heads) > 1:
        raise ValueError(
            f"its attention_head_dim is one size for all levels; here model.heads={model.heads} makes heads of "
            f"{' and '.join(map(str, sorted(heads)))} channels"
        )
    types = lambda way: tuple(f"{'Attn' * attends}{way}Block2D" for attends in attended)
    architecture = Architecture(
        block_out_channels=tuple(widths),
        down_block_types=types("Down"),
        up_block_types=types("Up")[::-1],
        layers_per_block=model.blocks,
        time_embedding_dim=4 * model.width,
        dropout=model.dropout,
        attention_head_dim=max(heads, default=8),
        norm_num_groups=max(groups),
        attn_norm_num_groups=max(groups),
        resnet_time_scale_shift="scale_shift",
        add_attention=attended[-1],
        num_class_embeds=model.num_classes + 1 if model.num_classes else None,  # the last: no label
    )
    blocks = model.blocks
    down, up = iter(params["down"].values()), iter(params["up"].values())
    level = lambda parts, count, name, last: _level([next(parts) for _ in range(count)], name, None if last else next(parts))
    named = {
        "conv_in": params["conv_in"],
        "time_embedding": {"linear_1": params["embed_in"], "linear_2": params["embed_out"]},
        "down_blocks": {i: level(down, blocks, "downsamplers", i == levels - 1) for i in range(levels)},
        "mid_block": _level(params["middle"].values()),
        "up_blocks": {i: level(up, blocks + 1, "upsamplers", i == levels - 1) for i in range(levels)},
        "conv_norm_out": params["norm_out"],
        "conv_out": params["conv_out"],
    }
    return architecture, named | ({"class_embedding": params["label"]} if "label" in params else {})


def _level(blocks, name="", sampler=None):
    """The parameters of a level of diffusers from those of our blocks and of what changes the size after them."""
    resnets, attentions = {}, {}
    for index, block in enumerate(blocks):
        resnets[index] = {part: block[part] for part in ("norm1", "conv1", "norm2", "conv2")} | {
            "time_emb_proj": block["condition"]
        }
        if "skip" in block:
            resnets[index]["conv_shortcut"] = block["skip"] | {"kernel": block["skip"]["kernel"][None, None]}
        if "attention" in block:
            attentions[index] = _attention(block["attention"])
    level = {"resnets": resnets} | ({"attentions": attentions} if attentions else {})
    return level | ({name: {0: sampler}} if sampler else {})


def _attention(ours):
    kernels, biases = (np.split(ours["qkv"][name], 3, axis=-1) for name in ("kernel", "bias"))
    parts = {f"to_{name}": {"kernel": kernel, "bias": bias} for name, kernel, bias in zip("qkv", kernels, biases, strict=True)}
    return parts | {"group_norm": ours["norm"], "to_out": {0: ours["out"]}}


def counted_from_zero(params, width):
    """The same function of timesteps one lower: cos and sin of (t + 1) f are those of t f, turned by the angle f."""
    kernel = np.asarray(params["time_embedding"]["linear_1"]["kernel"], np.float64)
    half = width // 2
    angle = 1e4 ** -(np.arange(half) / half)[:, None]
    cos, sin, of_cos, of_sin = np.cos(angle), np.sin(angle), kernel[:half], kernel[half:]
    turned = np.concatenate([cos * of_cos + sin * of_sin, cos * of_sin - sin * of_cos]).astype(np.float32)
    linear = params["time_embedding"]["linear_1"] | {"kernel": turned}
    return params | {"time_embedding": params["time_embedding"] | {"linear_1": linear}}
