"""FID's Inception-V3: from 8-bit images to the 2048 features of FID and KID and the 1008 logits of the Inception Score.

Published numbers come from one particular frozen network, the TensorFlow graph "inception-2015-12-05", with all its oddities;
another Inception-V3 gives other numbers. This is that graph, from the image to the features:

- **resize** to 299x299 inside the graph, by TensorFlow 1's bilinear rule: output pixel i is read at i * length / 299, so corners
  and not pixel centres are aligned, and nothing is smoothed when an image shrinks. FID (Heusel et al. 2017) and IS (Salimans et
  al. 2016) are defined so, by feeding 0..255 images to the graph, and torch-fidelity and ADM's evaluator reproduce it.
  pytorch-fid resizes from pixel centres instead, which changes FIDs, most for small images.
- **scale** to (x - 128) / 128, in [-1, 0.992]. pytorch-fid: x / 127.5 - 1.
- **average pools** exclude the padding from the mean, and the last block's pool takes the maximum where the paper has a mean.
- **logits** omit the last layer's bias: the Inception Score's original code multiplies by the weights alone. 1008 classes.

The user provides the weights as a .npz or .safetensors file, with the tensors of pytorch-fid's
pt_inception-2015-12-05-6726825d.pth under their own names. Architecture: Szegedy et al. 2016, "Rethinking the Inception
Architecture".
"""

import dataclasses
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

SIZE = 299  # of the images inside the network
CLASSES, FEATURES = 1008, 2048
EPSILON = 1e-3  # of the batch normalisations
EXACT = jax.lax.Precision.HIGHEST  # float32 throughout: by default accelerators round the inputs of products to 10 or 7 bits


# -- the network, as data: a chain is a list of steps, each a Conv, a Fork or a pooling function


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution without bias, batch normalisation, ReLU."""

    name: str
    channels: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


@dataclasses.dataclass(frozen=True)
class Fork:
    """Chains with the same input; their outputs are concatenated along the channels."""

    prefix: str  # of the names inside
    chains: list[list]


def max_pool(x, stride=1, padding="SAME"):
    """The largest of each 3x3 neighbourhood. x [B, H, W, C]."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def mean_pool(x):
    """The mean of each 3x3 neighbourhood, over its pixels inside the image. x [B, H, W, C]."""
    count = [np.convolve(np.ones(length, np.float32), np.ones(3, np.float32))[1:-1] for length in x.shape[1:3]]  # 2, 3, .., 3, 2
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    return total / np.outer(*count)[None, :, :, None]


def halve(x):
    """Every second 3x3 maximum, within the image."""
    return max_pool(x, stride=2, padding="VALID")


def _block_a(prefix, pooled):  # 35x35
    return Fork(
        prefix,
        [
            [Conv("branch1x1", 64)],
            [Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))],
            [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))],
            [mean_pool, Conv("branch_pool", pooled)],
        ],
    )


def _block_b(prefix):  # 35x35 to 17x17
    return Fork(
        prefix,
        [
            [Conv("branch3x3", 384, (3, 3), 2, "VALID")],
            [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID")],
            [halve],
        ],
    )


def _block_c(prefix, width):  # 17x17
    return Fork(
        prefix,
        [
            [Conv("branch1x1", 192)],
            [Conv("branch7x7_1", width), Conv("branch7x7_2", width, (1, 7)), Conv("branch7x7_3", 192, (7, 1))],
            [
                Conv("branch7x7dbl_1", width),
                Conv("branch7x7dbl_2", width, (7, 1)),
                Conv("branch7x7dbl_3", width, (1, 7)),
                Conv("branch7x7dbl_4", width, (7, 1)),
                Conv("branch7x7dbl_5", 192, (1, 7)),
            ],
            [mean_pool, Conv("branch_pool", 192)],
        ],
    )


def _block_d(prefix):  # 17x17 to 8x8
    return Fork(
        prefix,
        [
            [Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")],
            [
                Conv("branch7x7x3_1", 192),
                Conv("branch7x7x3_2", 192, (1, 7)),
                Conv("branch7x7x3_3", 192, (7, 1)),
                Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
            ],
            [halve],
        ],
    )


def _block_e(prefix, pool):  # 8x8
    cross = lambda name: Fork(name, [[Conv("a", 384, (1, 3))], [Conv("b", 384, (3, 1))]])
    return Fork(
        prefix,
        [
            [Conv("branch1x1", 320)],
            [Conv("branch3x3_1", 384), cross("branch3x3_2")],
            [Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)), cross("branch3x3dbl_3")],
            [pool, Conv("branch_pool", 192)],
        ],
    )


NETWORK = [
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    halve,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    halve,
    _block_a("Mixed_5b.", 32),
    _block_a("Mixed_5c.", 64),
    _block_a("Mixed_5d.", 64),
    _block_b("Mixed_6a."),
    _block_c("Mixed_6b.", 128),
    _block_c("Mixed_6c.", 160),
    _block_c("Mixed_6d.", 160),
    _block_c("Mixed_6e.", 192),
    _block_d("Mixed_7a."),
    _block_e("Mixed_7b.", mean_pool),
    _block_e("Mixed_7c.", max_pool),
]


# -- from images to features


def apply(params, images):
    """(features [B, 2048], logits [B, 1008]), float32, of images uint8 [B, H, W, 3] in 0..255, of any height and width.

    `params`: from `load`. The features are pool_3's, which FID and KID compare; softmax(logits) are the class probabilities of
    the Inception Score. Compiled once for each shape of `images`. ValueError for images of another type.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise ValueError(f"images must be uint8 [B, H, W, 3], and not empty; got {images.dtype} {list(images.shape)}")
    return _apply(params, images)


@jax.jit
def _apply(params, images):
    x = (resize(images.astype(jnp.float32)) - 128) / 128
    features = _run(NETWORK, x, params).mean((1, 2))
    return features, jnp.matmul(features, params["fc"], precision=EXACT)


def _run(chain, x, params, prefix=""):
    for step in chain:
        if isinstance(step, Conv):
            kernel, bias = params[prefix + step.name]
            x = jax.lax.conv_general_dilated(
                x, kernel, (step.stride, step.stride), step.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=EXACT
            )
            x = jax.nn.relu(x + bias[None, None, None])
        elif isinstance(step, Fork):
            x = jnp.concatenate([_run(branch, x, params, prefix + step.prefix) for branch in step.chains], axis=3)
        else:
            x = step(x)
    return x


def resize(x, size=SIZE):
    """x [B, H, W, C] -> [B, size, size, C] by TensorFlow 1's `tf.image.resize_bilinear` (align_corners=False).

    Output pixel i is the linear interpolation at i * H / size between input pixels floor and floor + 1, the last one repeated.
    Positions are rounded to float32, as in TensorFlow.
    """
    for axis in (2, 1):
        position = np.arange(size, dtype=np.float32) * (np.float32(x.shape[axis]) / np.float32(size))
        low = position.astype(np.int32)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        share = np.expand_dims(position - low, [other for other in range(4) if other != axis])
        start = jnp.take(x, low, axis)
        x = start + (jnp.take(x, high, axis) - start) * share
    return x


# -- the weights


def tensors():
    """{name: shape} of every tensor in a weights file, in the network's order: 472 tensors, 23,885,392 numbers."""
    convolutions = {}
    _trace(NETWORK, 3, convolutions)
    shapes = {}
    for name, shape in convolutions.items():
        shapes[f"{name}.conv.weight"] = shape
        shapes |= {f"{name}.bn.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {"fc.weight": (CLASSES, FEATURES), "fc.bias": (CLASSES,)}


def _trace(chain, channels, shapes, prefix=""):
    """Adds the kernel shape [outputs, inputs, height, width] of every Conv to `shapes`; returns the output channels."""
    for step in chain:
        if isinstance(step, Conv):
            shapes[prefix + step.name] = (step.channels, channels, *step.size)
            channels = step.channels
        elif isinstance(step, Fork):
            channels = sum(_trace(branch, channels, shapes, prefix + step.prefix) for branch in step.chains)
    return channels


def load(path):
    """The parameters for `apply`, from a .npz or .safetensors file with the float32 arrays of `tensors()`.

    Returns {convolution: (kernel [height, width, inputs, outputs], bias [outputs]), "fc": [2048, 1008]}, float32, with batch
    normalisation folded in (computed in float64). The file's `num_batches_tracked` and fc.bias are not used. Names, types and
    shapes are checked before any data is read. Raises FileNotFoundError, and ValueError that names the first faulty tensor.
    """
    path, wanted = find(path), tensors()
    try:
        arrays = READERS[path.suffix](path, wanted)
        _check_values(arrays)
    except _Unfit as fault:
        raise ValueError(f"{path}: {fault}; wanted: the tensors of pytorch-fid's pt_inception-2015-12-05-6726825d.pth") from None
    except Exception as error:  # damaged files raise almost anything
        said = " ".join([f"{type(error).__name__}:", *str(error).split()])
        raise ValueError(f"{path}: not a {path.suffix} file, or damaged, or cut short: {said}") from None
    convolutions = [name.removesuffix(".conv.weight") for name in wanted if name.endswith(".conv.weight")]
    return jax.device_put({name: _fold(name, arrays) for name in convolutions} | {"fc": arrays["fc.weight"].T.astype(np.float32)})


def find(path):
    """The Path of a file of weights, unread. Raises FileNotFoundError, and ValueError if its name shows another format."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; Inception's weights are a file {' or '.join(READERS)}")
    if path.suffix in PICKLES:
        convert = f"import numpy, torch; numpy.savez('{path.with_suffix('.npz')}', **torch.load('{path}', weights_only=True))"
        raise ValueError(f'{path}: pickles are not read, as they can run any program; where PyTorch is: python -c "{convert}"')
    if path.suffix not in READERS:
        raise ValueError(f"{path}: Inception's weights are a file {' or '.join(READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of Inception's weights")
    return path


def _fold(name, arrays):
    """(kernel, bias) of one convolution such that bn(conv(x)) = x * kernel + bias."""
    parts = ("weight", "bias", "running_mean", "running_var")
    scale, shift, mean, variance = (arrays[f"{name}.bn.{part}"].astype(np.float64) for part in parts)
    scale = scale / np.sqrt(variance + EPSILON)
    kernel = arrays[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * scale
    return kernel.astype(np.float32), (shift - mean * scale).astype(np.float32)


class _Unfit(ValueError):
    """A readable file without this network's weights: names the first faulty tensor, and its fault."""


def _check(held, wanted):
    """Raises _Unfit unless the tensors `held`, {name: (dtype, shape)}, are exactly the wanted ones."""
    unknown = [name for name in held if name not in wanted and not name.endswith(".num_batches_tracked")]
    for name, shape in wanted.items():
        if name not in held:
            instead = f", but {unknown[0]}, which is not one of the network's" if unknown else ""
            raise _Unfit(f"no tensor {name} {list(shape)}{instead}")
        if held[name] != ("float32", shape):
            raise _Unfit(f"tensor {name} is {held[name][0]} {list(held[name][1])}, not float32 {list(shape)}")
    if unknown:
        raise _Unfit(f"tensor {unknown[0]} is not one of the network's")


def _check_values(arrays):
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise _Unfit(f"tensor {name} has values that are not finite")
        if name.endswith("running_var") and array.min() < 0:
            raise _Unfit(f"tensor {name} is a variance, but has values down to {array.min():g}")


def _read_npz(path, wanted):
    form = np.lib.format

    def header(file):
        read = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}[form.read_magic(file)]
        shape, _, dtype = read(file)
        return dtype.name, shape

    with zipfile.ZipFile(path) as archive:
        members = {member.removesuffix(".npy"): member for member in archive.namelist()}

        def each(names, read):
            for name in names:
                with archive.open(members[name]) as file:
                    yield name, read(file)

        _check(dict(each(members, header)), wanted)
        return dict(each(wanted, form.read_array))  # which reads no pickles by default


def _read_safetensors(path, wanted):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}
        kinds = {name: part.get_dtype().replace("F32", "float32") for name, part in parts.items()}
        _check({name: (kinds[name], tuple(part.get_shape())) for name, part in parts.items()}, wanted)
        return {name: file.get_tensor(name) for name in wanted}


READERS = {".npz": _read_npz, ".safetensors": _read_safetensors}
PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".bin", ".ckpt")
