"""A small convolutional classifier, trained on a data set's own labels; metrics compare features from its last hidden layer."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from noisesched.data import pipeline
from noisesched.runtime import pictures

SEED = 0  # of its parameters, its batches and the choice of training images
WIDTHS = (16, 32, 64)  # channels of its convolutions; the last also of all further ones
FEATURES = 64  # size of its last hidden layer
STEPS, BATCH, RATE = 1000, 128, 4e-3
TRAINED_ON, HELD_OUT = 50_000, 10_000  # images at most
VERSION = 2  # raise it when anything about the classifier changes


def training_split(config_data):
    """The split 'train' of a Config's `data`; ValueError unless it has two classes or more."""
    train = pipeline.open_config(config_data, "train")
    if train.num_classes < 2:
        raise ValueError(
            f"{train.name}: a classifier needs images of two or more labelled classes, not {train.num_classes}; "
            "measure by raw instead, e.g. frechet(raw)"
        )
    return train


def labelled(config_data, train):
    """((images, labels) to train on, (images, labels) held out, a name for the latter); random choices if there are many.

    Images of the split 'test' or 'validation' are held out, or else a tenth of 'train', which is then not trained on.
    """
    rng = np.random.default_rng(SEED)
    numbers = rng.permutation(len(train))
    for split in ("test", "validation"):
        try:
            other = pipeline.open_config(config_data, split)
        except ValueError:  # there is none
            continue
        held = other.source.read(rng.permutation(len(other))[:HELD_OUT])
        if held[1].min() >= 0:  # some data sets keep the labels of their test split secret: -1
            break
    else:
        split, count = "train, not trained on", max(1, min(len(train) // 10, HELD_OUT))
        held, numbers = train.source.read(numbers[:count]), numbers[count:]
    if not len(numbers):
        raise ValueError(f"{train.name} has one image: too few for a classifier; measure by raw instead")
    return train.source.read(numbers[:TRAINED_ON]), held, f"{len(held[1])} images of {split}"


@jax.jit
def network(params, images):
    """(features [B, FEATURES], logits [B, classes]) of images uint8 [B, H, W, C]: convolutions down to 4x4, two dense layers."""
    x = pictures.scale(images)
    for i in range(_convolutions(images.shape[1])):
        x = jax.lax.conv_general_dilated(
            x, params[f"kernel_{i}"], (min(i, 1) + 1,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + params[f"bias_{i}"][None, None, None])
    features = jax.nn.silu(x.reshape(len(x), -1) @ params["dense"] + params["dense_bias"][None])
    return features, features @ params["head"] + params["head_bias"][None]


def _convolutions(size):
    return 1 + max(0, math.ceil(math.log2(size / 4)))  # the first keeps the size, the others halve it


def _initial(size, channels, num_classes):
    """Random parameters {name: float32}: normal with variance 2 / inputs, biases 0."""
    rng, params = np.random.default_rng(SEED), {}
    weights = lambda *shape: (rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[:-1]))).astype(np.float32)
    for i in range(_convolutions(size)):
        width = WIDTHS[min(i, len(WIDTHS) - 1)]
        params |= {f"kernel_{i}": weights(3, 3, channels, width), f"bias_{i}": np.zeros(width, np.float32)}
        size, channels = -(-size // 2) if i else size, width
    params |= {"dense": weights(size * size * channels, FEATURES), "dense_bias": np.zeros(FEATURES, np.float32)}
    return params | {"head": weights(FEATURES, num_classes), "head_bias": np.zeros(num_classes, np.float32)}


def fit(images, labels, num_classes):
    """The parameters after STEPS of AdamW on images uint8 [n, H, W, C] and labels int [n]; deterministic."""
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0, RATE, STEPS // 20, STEPS), weight_decay=0.1)
    params, reach = jax.device_put(_initial(*images.shape[2:], num_classes)), max(1, images.shape[1] // 8)

    def shifted(image, corner):
        return jax.lax.dynamic_slice(jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), "edge"), corner, image.shape)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, images, labels, i):
        corners = jax.random.randint(jax.random.fold_in(jax.random.key(SEED), i), (len(images), 2), 0, 2 * reach + 1)
        moved = jax.vmap(shifted)(images, jnp.pad(corners, ((0, 0), (0, 1))))  # by up to an eighth of the size, in any direction
        targets = optax.smooth_labels(jax.nn.one_hot(labels, num_classes), 0.1)
        loss = lambda p: optax.softmax_cross_entropy(network(p, moved)[1], targets).mean()
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    rng, state = np.random.default_rng(SEED), optimizer.init(params)
    epochs = -(-STEPS * BATCH // len(images))
    order = np.concatenate([rng.permutation(len(images)) for _ in range(epochs)])[: STEPS * BATCH].reshape(STEPS, BATCH)
    for i, rows in enumerate(tqdm(order, desc="training the classifier", unit="step", disable=None)):
        params, state = step(params, state, images[rows], labels[rows], i)
    return {name: np.asarray(values) for name, values in params.items()}
