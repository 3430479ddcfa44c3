"""Networks of PyTorch's diffusers: a folder of that library, read into a run here. Neither it nor PyTorch is needed.

A pipeline's folder holds model_index.json, unet/config.json, unet/diffusion_pytorch_model.safetensors and
scheduler/scheduler_config.json; older ones, and folders of a network alone, have these files side by side. Of the networks
`UNet2DModel` is read, wholly (`models.unet2d`). Whatever cannot be read is refused before the weights are. Pickles are refused.
"""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from noisesched import schedules, spec
from noisesched.interchange import scheduler_config
from noisesched.models import build, denoiser
from noisesched.models.unet2d import Architecture
from noisesched.runs import config as configuration
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.settings import require, typed
from noisesched.runs.workdir import Workdir

WEIGHTS = "diffusion_pytorch_model.safetensors"
IMAGES = ("sample_size", "in_channels", "out_channels")  # fields of config.json that are settings of the images here
# Settings that a network decides, as a pattern.
DECIDED = r"schedule|weighting|noise_offset|conditioning|model\.(?!dtype)\w+|data\.(image_size|channels)"
DDPM = ("discrete(linear, num_steps=1000)", "eps")  # of a network without a scheduler's file
# Attention's tensors under their names before version 0.15, which published weights still have.
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
SHOWN = 3  # faulty tensors that a message names


# -- the architecture


@dataclasses.dataclass(frozen=True)
class Network:
    """The content of a UNet2DModel's config.json."""

    architecture: Architecture
    image_size: int | None
    channels: int


def read_network(path):
    """The `Network` of a config.json. Raises ValueError, in one line, for other networks and for fields not known here."""
    fields = _read_json(path)
    name = fields.get("_class_name")
    require(name == "UNet2DModel", f"{path}: _class_name={_shown(name)}: of diffusers' networks UNet2DModel is read")
    known = {field.name: field.default for field in dataclasses.fields(Architecture)}
    given = {key: value for key, value in fields.items() if not key.startswith("_") and key not in IMAGES}
    if unknown := [f"{key}={_shown(value)}" for key, value in given.items() if key not in known]:
        raise ValueError(
            f"{path}: unknown fields: {spec.shortened(', '.join(unknown), 300)}; their effect is not known here: "
            "remove those that you know to have none"
        )
    size, inputs, outputs = fields.get("sample_size"), fields.get("in_channels", 3), fields.get("out_channels", 3)
    if isinstance(size, list) and len(size) == 2:
        require(size[0] == size[1], f"{path}: sample_size={size}: images are square here")
        size = size[0]
    for key, value in (("sample_size", size), ("in_channels", inputs)):
        whole = type(value) is int and 0 < value < 2**14
        require(whole or value is None, f"{path}: {key}={_shown(value)} must be a whole number above 0")
    require(inputs == outputs, f"{path}: in_channels={_shown(inputs)}, out_channels={_shown(outputs)}: they are equal here")
    try:
        architecture = typed(Architecture, known | given)
        architecture.check()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Network(architecture, size, inputs)


def network_fields(architecture, image_size, channels):
    """The content of config.json: the inverse of `read_network`."""
    images = {"sample_size": image_size, "in_channels": channels, "out_channels": channels}
    return {"_class_name": "UNet2DModel"} | images | dataclasses.asdict(architecture)


# -- the weights


def tensors(params):
    """{the library's name of a tensor: (the parameter, the order of its axes there)} of a UNet2D's parameters, in tree order.

    Kernels of convolutions are [H, W, in, out] here, [out, in, H, W] there.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        *parents, last = (str(key.key) for key in path)
        axes = {2: (1, 0), 4: (3, 2, 0, 1)}[leaf.ndim] if last == "kernel" else tuple(range(leaf.ndim))
        found[".".join([*parents, "bias" if last == "bias" else "weight"])] = leaf, axes
    return found


def read_weights(path, template):
    """The parameters of a UNet2D, as numpy arrays in the nested dictionaries of `template`, from a .safetensors file.

    Names, shapes and types are compared before any tensor is read. Raises ValueError, in one line, for another network's file and
    a damaged one.
    """
    wanted = {name: (axes, tuple(leaf.shape[axis] for axis in axes)) for name, (leaf, axes) in tensors(template).items()}
    arrays = []
    try:
        with safe_open(path, framework="numpy") as file:
            held = {_new_name(name): name for name in file.keys()}
            parts = {name: file.get_slice(old) for name, old in held.items()}
            _check(
                path,
                {name: tuple(part.get_shape()) for name, part in parts.items()},
                {n: shape for n, (_, shape) in wanted.items()},
            )
            kinds = {part.get_dtype() for part in parts.values()}
            require(kinds <= {"F64", "F32", "F16", "BF16"}, f"{path}: tensors of type {', '.join(sorted(kinds))} are no weights")
            for name, (axes, _) in wanted.items():
                array = file.get_tensor(held[name]).astype(np.float32)
                require(np.isfinite(array).all(), f"{path}: tensor {name} has values that are not finite")
                arrays.append(np.ascontiguousarray(array.transpose(np.argsort(axes))))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a .safetensors file, or damaged, or cut short: {' '.join(str(error).split())}") from None
    return jax.tree.unflatten(jax.tree.structure(template), arrays)


def _new_name(name):
    return re.sub(rf"(attentions\.\d+\.)({'|'.join(OLD)})\.", lambda found: f"{found[1]}{OLD[found[2]]}.", name)


def _check(path, held, wanted):
    """Raises ValueError unless the tensors in a file, {name: shape}, are those wanted."""
    lacking = [f"{name} {list(shape)}" for name, shape in wanted.items() if name not in held]
    unknown = [name for name in held if name not in wanted]
    wrong = [f"{name} {list(held[name])}, not {list(shape)}" for name, shape in wanted.items() if held.get(name, shape) != shape]
    faults = (
        (f"lacks {len(lacking)} of {len(wanted)} tensors", lacking),
        (f"has {len(unknown)} that are not the network's", unknown),
        (f"has {len(wrong)} of another shape", wrong),
    )
    said = [f"{what}: {', '.join(names[:SHOWN])}{', ..' * (len(names) > SHOWN)}" for what, names in faults if names]
    require(not said, f"{path}: {'; '.join(said)}")


# -- the folder


def find(folder):
    """(config.json, the weights, scheduler_config.json or None) in a folder. Raises ValueError if it holds no network."""
    folder = Path(folder)
    where = folder / "unet" if (folder / "unet").is_dir() else folder
    config, weights = where / "config.json", where / WEIGHTS
    require(config.is_file(), f"{folder} holds no network of diffusers: no unet/config.json, and no config.json")
    schedulers = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    return config, weights, next((path for path in schedulers if path.is_file()), None)


def check_weights(path):
    """Raises ValueError, in one line, unless there is a file of safetensors."""
    others = sorted(each.name for each in path.parent.iterdir() if each.suffix in (".bin", ".safetensors", ".msgpack", ".ckpt"))
    pickles = [name for name in others if name.endswith((".bin", ".ckpt"))]
    if pickles and not path.is_file():
        raise ValueError(
            f"{path.parent / pickles[0]} is a pickle, which can run any program: only {path.name} is read; where PyTorch is, "
            "UNet2DModel.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
        )
    require(path.is_file(), f"{path.parent} holds no {path.name} ({', '.join(others) or 'no weights at all'})")


def components(folder):
    """The parts of a pipeline, by the names in its model_index.json, that are neither its network nor its scheduler."""
    path = Path(folder) / "model_index.json"
    index = _read_json(path) if path.is_file() else {}
    return [name for name, part in index.items() if isinstance(part, list) and any(part) and name not in ("unet", "scheduler")]


def _read_json(path):
    try:
        fields = json.loads(spec.read_file(path, spec.FILE_BYTES))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    require(isinstance(fields, dict), f"{path} is not a JSON object")
    return fields


def _shown(value):
    return spec.shortened(json.dumps(value))


# -- the run


def run_config(network, schedule, prediction, page, overrides=(), num_classes=None):
    """The checked Config of a run with this network.

    schedule     a table of timesteps, which training drew and the network is told
    page         a config file, from which, with `overrides`, all is taken that the network does not decide: its images, above all
    num_classes  of a network whose last class stands for "no label"
    """
    decided = [word for word in overrides if re.match(rf"--(no)?config\.({DECIDED})\b", word)]
    require(not decided, f"{next(iter(decided), '')} cannot be chosen: the network that is read decides it")
    values = configuration.read(page, configuration.Config, overrides)
    computed = any(word.startswith("--config.model.dtype=") for word in overrides)  # else as the library computes
    rows = network.architecture.num_class_embeds or 0
    values |= {"schedule": schedule, "weighting": prediction, "noise_offset": 0.0}
    values["data"] |= {"image_size": network.image_size, "channels": network.channels}
    values["conditioning"] = {"kind": "timestep", "table": schedule, "translation": "nearest"}
    values["model"] = {
        "kind": "unet2d",
        "prediction": prediction,
        "architecture": dataclasses.asdict(network.architecture),
        "num_classes": rows if num_classes is None else num_classes,
        "label_dropout": 0.1 if num_classes == rows - 1 else 0.0,
        "dtype": values["model"]["dtype"] if computed else "float32",
    }
    return configuration.from_dict(values)


def read(folder, directory, page="image_folder", overrides=(), schedule=None, prediction=None, image_size=None, num_classes=None):
    """Makes a run, in the workdir `directory`, of the network in a folder of diffusers; returns (its Config, lines to say).

    `schedule`, `prediction` and `image_size` are of a network whose folder does not state them. Its checkpoint is of step 0.
    Raises ValueError, in one line and before the weights are read, for whatever cannot be read.
    """
    config_path, weights, scheduler_path = find(folder)
    network, said = read_network(config_path), []
    check_weights(weights)
    stated = scheduler_config.read(scheduler_path) if scheduler_path else None
    if stated:
        require(not schedule and not prediction, f"--schedule and --prediction are stated by {scheduler_path}: leave them out")
        told = not stated.told_sigma and stated.schedule.table
        require(
            stated.prediction and told,
            f"{scheduler_path}: a network of {stated.class_name} with these fields is not read: {'; '.join(stated.notes)}",
        )
        schedule, prediction = str(stated.schedule), stated.prediction
        said += stated.notes
    elif not schedule or not prediction:
        schedule, prediction = schedule or DDPM[0], prediction or DDPM[1]
        said.append(f"{folder} holds no scheduler_config.json: taken as DDPM's, unless --schedule and --prediction say otherwise")
    require(image_size in (None, network.image_size) or not network.image_size, f"--image_size: {config_path} states sample_size")
    network = dataclasses.replace(network, image_size=network.image_size or image_size)
    require(network.image_size, f"{config_path} states no sample_size: give --image_size=PIXELS, of a side")
    made = schedules.make(schedule)
    require(made.table, f"schedule={schedule!r} has no timesteps: use one such as {DDPM[0]!r}")
    if network.architecture.time_embedding_type == "fourier":
        said.append("told timestep 0, the table's first, this network answers nothing, there and here: it takes its logarithm")
    said += [f"{part} of this pipeline is not read: a run's images are what its network sees" for part in components(folder)]
    config = run_config(network, schedule, prediction, page, overrides, num_classes)

    workdir = Workdir(directory)
    with workdir.held():
        require(not workdir.config.exists(), f"{workdir.path} holds a run already: take another --workdir")
        _, template = build.abstract_denoiser(config)
        params = {"unet": read_weights(weights, template["unet"])}
        workdir.write_config(configuration.to_dict(config))
        with Checkpoints(workdir, max_to_keep=1) as checkpoints:
            checkpoints.save(0, {"params": params, "ema": params})
    how = {"method": stated and stated.method, "spacing": stated and stated.spacing}
    flags = "".join(f" --{name}={shlex.quote(value)}" for name, value in how.items() if value)
    said = [
        f"{workdir.path}: UNet2DModel, {denoiser.num_parameters(params):,} parameters, {network.image_size}x{network.image_size}"
        f"x{network.channels}; it predicts {prediction} and is told the timestep of {spec.shortened(schedule)}",
        *(f"note: {line}" for line in said),
        f"sampling:\n  noisesched sample --workdir={shlex.quote(str(directory))} --steps=50{flags} --out=DIR",
    ]
    return config, said


# -- the command


def main(request):
    """The command: a folder to read becomes a run; files are `scheduler_config`'s."""
    if request.read and request.workdir and not Path(request.read).exists():
        raise FileNotFoundError(f"{request.read}: no such folder")
    if not (request.read and Path(request.read).is_dir()):
        require(not request.config, "--config is of the images of a run: give --read=FOLDER and --workdir=DIR")
        require(request.num_classes is None, "--num_classes is of a network: give --read=FOLDER and --workdir=DIR")
        scheduler_config.main(request)
        return
    require(request.workdir, f"--read={request.read} is a folder, whose network becomes a run: give --workdir=DIR")
    for name in ("write", "spacing", "method", "steps", "sigmas", "betas"):
        require(not getattr(request, name), f"--{name} is for a scheduler's file, not for a folder to read")
    _, said = read(
        request.read,
        request.workdir,
        request.config or "image_folder",
        request.overrides,
        request.schedule,
        request.prediction,
        request.image_size,
        request.num_classes,
    )
    for line in said:
        print(line)
