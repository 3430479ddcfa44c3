"""The transformer, against the paper's formulas written out in NumPy, and the laws of adaLN-zero."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import softmax
from test_unet import HASTE, awake

from noisesched.models.dit import DiT, from_patches, positions, to_patches

SMALL = dict(image_size=4, channels=2, patch=2, width=8, blocks=2, heads=2, features=6, num_classes=3, dtype=jnp.float32)


def make(**changes):
    return DiT(**{**SMALL, **changes}, rngs=nnx.Rngs(0))


@partial(jax.jit, compiler_options=HASTE)
def run(net, *args):
    return net(*args)


Z = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype(np.float32)
TOLD = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
LABELS = np.array([0, 2, 3])


def reference(net, z, told, label):
    """One image [H, W, C], in float64, token by token."""
    params = nnx.to_pure_dict(nnx.state(net))
    value = lambda part: np.asarray(part, np.float64)
    linear = lambda part, x: x @ value(part["kernel"]) + value(part["bias"])
    silu = lambda x: x / (1 + np.exp(-x))
    norm = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    gelu = lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    p, side, width = net.patch, z.shape[0] // net.patch, params["patch_in"]["bias"].size
    heads = net.blocks[0].heads
    tokens, places = [], []
    for i in range(side):
        for j in range(side):
            tokens.append(z[i * p : (i + 1) * p, j * p : (j + 1) * p].reshape(-1))
            angles = [[place / 10000 ** (4 * k / width) for k in range(width // 4)] for place in (j, i)]
            places.append(np.concatenate([np.concatenate([np.sin(a), np.cos(a)]) for a in angles]))
    x = linear(params["patch_in"], np.array(tokens, np.float64)) + np.array(places)
    c = linear(params["embed_out"], silu(linear(params["embed_in"], told.astype(np.float64))))
    c = silu(c + value(params["label"]["embedding"])[label])
    for block in params["blocks"].values():
        shift, scale, gate, shift2, scale2, gate2 = np.split(linear(block["condition"]["linear"], c), 6)
        qkv = linear(block["qkv"], norm(x) * (1 + scale) + shift).reshape(len(x), 3, heads, width // heads)
        answers = [
            softmax(qkv[:, 0, h] @ qkv[:, 1, h].T / math.sqrt(width // heads), axis=-1) @ qkv[:, 2, h] for h in range(heads)
        ]
        x = x + gate * linear(block["out"], np.concatenate(answers, -1))
        x = x + gate2 * linear(block["narrow"], gelu(linear(block["wide"], norm(x) * (1 + scale2) + shift2)))
    shift, scale = np.split(linear(params["condition"]["linear"], c), 2)
    out = linear(params["patch_out"], norm(x) * (1 + scale) + shift)
    made = np.zeros_like(z, np.float64)
    for number, token in enumerate(out):
        i, j = divmod(number, side)
        made[i * p : (i + 1) * p, j * p : (j + 1) * p] = token.reshape(p, p, -1)
    return made


@pytest.mark.parametrize("changes", [{}, {"patch": 1, "heads": 1}, {"patch": 4, "heads": 4, "blocks": 1}])
def test_it_is_the_papers(changes):
    net = awake(lambda: make(**changes))
    made = run(net, Z, TOLD, LABELS)
    for number in range(3):
        np.testing.assert_allclose(made[number], reference(net, Z[number], TOLD[number], LABELS[number]), rtol=1e-4, atol=1e-5)


def test_it_starts_as_zero_with_every_block_the_identity():
    net = make()
    assert (run(net, Z, TOLD, LABELS) == 0).all()
    tokens = jax.random.normal(jax.random.key(0), (3, 4, 8))
    for block in net.blocks:
        np.testing.assert_array_equal(block(tokens, jnp.ones((3, 8))), tokens)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_are_put_back(patch):
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    tokens = to_patches(x, patch)
    assert tokens.shape == (2, (8 // patch) ** 2, 3 * patch**2)
    np.testing.assert_array_equal(from_patches(tokens, patch, 8), x)


def test_places_are_told_apart():
    told = positions(16, 32)
    distances = np.linalg.norm(told[:, None] - told[None], axis=-1) + 9 * np.eye(256)
    assert told.shape == (256, 32) and distances.min() > 0.5


def test_every_input_counts_and_no_example_sees_another():
    net = awake(make)
    plain = np.asarray(run(net, Z, TOLD, LABELS))
    for others in ((Z.copy(), TOLD, LABELS), (Z, TOLD.copy(), LABELS), (Z, TOLD, LABELS.copy())):
        changed = next(new for new, old in zip(others, (Z, TOLD, LABELS), strict=True) if new is not old)
        changed[1] = changed[1] * 0 + 1
        made = np.asarray(run(net, *others))
        np.testing.assert_array_equal(made[[0, 2]], plain[[0, 2]])
        assert np.abs(made[1] - plain[1]).max() > 1e-3


def test_bfloat16_is_near_float32_and_its_gradient_finite():
    net, half = awake(make), awake(lambda: make(dtype=jnp.bfloat16))
    plain, made = run(net, Z, TOLD, LABELS), run(half, Z, TOLD, LABELS)
    assert made.dtype == jnp.float32 and np.abs(made - plain).max() < 0.1 * np.abs(plain).max()
    gradient = jax.jit(jax.grad(lambda net: jnp.square(net(Z, TOLD, LABELS)).mean()), compiler_options=HASTE)(net)
    leaves = jax.tree.leaves(gradient)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in leaves)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_size": 6, "patch": 4}, "image_size=6 is not a multiple of patch=4; choose one of 1, 2"),
        ({"width": 10}, "width=10 is not a multiple of 4 and of heads=2; nearest valid: 8, 12"),
        ({"width": 8, "heads": 3}, "width=8 is not a multiple of 4 and of heads=3; nearest valid: 12"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, says):
    with pytest.raises(ValueError, match=says):
        make(**changes)


def test_wrong_input_is_named():
    net = make()
    for args, says in (
        ((Z[:, :2, :2], TOLD, LABELS), "image size 2x2, but this DiT is for 4x4"),
        ((Z, TOLD), "needs labels: 0..2, or 3 for the null class"),
    ):
        with pytest.raises(ValueError, match=says):
            net(*args)
    with pytest.raises(ValueError, match="takes no labels"):
        make(num_classes=0)(Z, TOLD, LABELS)
