from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noisesched.models.unet import Attention, Block, Conv, GroupNorm, UNet, num_groups

SMALL = dict(
    image_size=8,
    channels=2,
    width=8,
    multipliers=(1, 2),
    blocks=1,
    attention=(4,),
    heads=2,
    dropout=0.0,
    features=6,
    num_classes=0,
    dtype=jnp.float32,
)


def make(**changes):
    return UNet(**{**SMALL, **changes}, rngs=nnx.Rngs(0))


def awake(make_module, seed=0):
    """The module that `make_module` makes, with random parameters: none that starts at zero hides anything."""
    draw = np.random.default_rng(seed).normal

    def fill(path, leaf):
        spread = 0.1 if len(leaf.shape) == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        centre = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(centre + spread * draw(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(make_module))


def inputs(net, batch=3, features=6, seed=1):
    a, b = jax.random.split(jax.random.key(seed))
    size = net.image_size
    return jax.random.normal(a, (batch, size, size, 2)), jax.random.normal(b, (batch, features))


# Compiled in haste: these networks run once or twice.
HASTE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@partial(jax.jit, compiler_options=HASTE)
def run(net, *args):
    return net(*args)


@pytest.fixture(scope="module")
def net():
    return awake(lambda: make())


@pytest.fixture(scope="module")
def labelled():
    return awake(lambda: make(num_classes=3, dropout=0.3))


def test_output_is_zero_at_initialisation_and_float32():
    fresh = make(multipliers=(1,), attention=(8,))
    z, features = inputs(fresh)
    out = run(fresh, z, features)
    assert out.shape == z.shape and out.dtype == jnp.float32
    assert not out.any()


@pytest.mark.parametrize(
    "changes, expected",
    [
        # Measured on diffusers 0.42.1's UNet2DModel(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=width, ...).
        (dict(image_size=8, channels=1, width=24, multipliers=(1, 2, 2), attention=(), features=24), 633_649),
        (dict(image_size=16, channels=1, width=32, multipliers=(1, 2), attention=(8,), features=32), 755_009),
        (dict(image_size=32, channels=3, width=64, multipliers=(1, 2, 2), attention=(16,), features=64), 4_683_907),
    ],
)
def test_parameter_count_is_that_of_diffusers(changes, expected):
    abstract = jax.eval_shape(lambda: make(**changes))
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == expected


def test_holds_nothing_but_float32_params():
    net = jax.eval_shape(lambda: make(num_classes=3, dtype=jnp.bfloat16))
    variables = jax.tree.leaves(nnx.state(net), is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert variables and all(type(v) is nnx.Param and v.dtype == jnp.float32 for v in variables)
    assert len(jax.tree.leaves(net)) == len(variables)


@pytest.mark.parametrize("image_size, nearest", [(10, "8 or 12"), (3, "4"), (0, "4")])
def test_size_that_the_levels_do_not_divide_is_refused(image_size, nearest):
    with pytest.raises(ValueError, match=f"image_size={image_size} is not a multiple of 4.* {nearest}$"):
        make(image_size=image_size, multipliers=(1, 1, 1), attention=())


@pytest.mark.parametrize("image_size, multipliers", [(12, (1, 1, 1)), (7, (1,))])
def test_any_size_that_the_levels_divide_works(image_size, multipliers):
    net = awake(lambda: make(image_size=image_size, multipliers=multipliers, attention=()))
    z, features = inputs(net)
    out = run(net, z, features)
    assert out.shape == z.shape and np.isfinite(out).all() and out.std() > 0


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(attention=(16,)), "attention at size 16, but the levels have sizes 8, 4"),
        (dict(heads=3), "width 16 .* heads=3"),
        (dict(dropout=1.0), r"dropout=1.0 is not in \[0, 1\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_calls_that_do_not_fit_are_refused(net, labelled):
    z, features = inputs(net)
    with pytest.raises(ValueError, match="takes no labels"):
        net(z, features, jnp.zeros(3, int))
    with pytest.raises(ValueError, match="needs labels: 0..2, or 3 for the null class"):
        labelled(z, features)
    with pytest.raises(ValueError, match="image size 8x4, but this UNet is for 8x8"):
        net(z[:, :, :4], features)


@pytest.mark.parametrize("height, width", [(1, 1), (2, 2), (1, 2), (3, 3)])
def test_convolution_of_tiny_images_is_the_convolution(height, width):
    conv = awake(lambda: Conv(5, 4, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, height, width, 5))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel, bias = np.asarray(conv.kernel), np.asarray(conv.bias)
    expected = [
        [np.einsum("brsc,rscd->bd", padded[:, i : i + 3, j : j + 3], kernel) + bias for j in range(width)] for i in range(height)
    ]
    np.testing.assert_allclose(conv(x), np.transpose(expected, (2, 0, 1, 3)), atol=1e-5)


def test_group_norm_against_float64():
    norm = awake(lambda: GroupNorm(96, rngs=nnx.Rngs(0)))
    # Groups of three channels, some far from zero: E[x^2] - E[x]^2 in float32 would lose the variance there.
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 96)) + np.repeat([0.0, 1000.0, -1.0, 0.5], 24)
    x = x.astype(np.float32).astype(np.float64)
    scale, shift = np.random.default_rng(1).normal(size=(2, 2, 96))
    grouped = x.reshape(2, 64, num_groups(96), 3)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    y = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * np.asarray(norm.scale) + np.asarray(norm.bias)
    expected = y * (1 + scale[:, None, None]) + shift[:, None, None]
    out = norm(jnp.float32(x), jnp.float32(scale), jnp.float32(shift))
    np.testing.assert_allclose(out, expected, atol=3e-3)


@pytest.mark.parametrize("channels, groups", [(24, 24), (32, 32), (48, 24), (64, 32), (72, 24), (96, 32), (80, 20), (37, 1)])
def test_num_groups(channels, groups):
    assert num_groups(channels) == groups


def test_attention_against_softmax_and_permutation():
    attention = awake(lambda: Attention(8, 2, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8)) * 3
    out = attention(x)
    q, k, v = (a.reshape(2, 16, 2, 4) for a in jnp.split(attention.qkv(attention.norm(x)), 3, axis=-1))
    weight = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2.0)
    y = jnp.einsum("bhqk,bkhd->bqhd", weight, v).reshape(x.shape)
    np.testing.assert_allclose(out, x + attention.out(y), atol=1e-5)
    order = np.random.default_rng(0).permutation(16)
    shuffle = lambda a: a.reshape(2, 16, 8)[:, order].reshape(a.shape)
    np.testing.assert_allclose(attention(shuffle(x)), shuffle(out), atol=1e-5)


def test_examples_do_not_see_each_other(labelled):
    """A batch is its examples one by one, dropout too: so no result depends on how a batch is split over devices."""
    z, features = inputs(labelled)
    labels, keys = jnp.array([0, 3, 2]), jax.random.split(jax.random.key(5), 3)
    together = run(labelled, z, features, labels, keys)
    for i in range(3):
        alone = run(labelled, *(a[i : i + 1] for a in (z, features, labels, keys)))
        np.testing.assert_allclose(alone[0], together[i], atol=2e-5)


def test_dropout_keys(labelled):
    z, features = inputs(labelled)
    labels, keys = jnp.zeros(3, int), jax.random.split(jax.random.key(5), 3)
    out = run(labelled, z, features, labels, keys)
    np.testing.assert_array_equal(out, run(labelled, z, features, labels, keys))
    for other in (run(labelled, z, features, labels, keys[::-1]), run(labelled, z, features, labels)):
        assert jnp.abs(out[0] - other[0]).max() > 1e-3
    # The blocks draw different masks from one key.
    blocks = [block for block in [*labelled.down, *labelled.middle, *labelled.up] if isinstance(block, Block)]
    assert sorted(block.index for block in blocks) == list(range(8))


def test_no_dropout_ignores_keys(net):
    z, features = inputs(net)
    keys = jax.random.split(jax.random.key(5), 3)
    np.testing.assert_array_equal(run(net, z, features), run(net, z, features, None, keys))


def test_labels_matter_and_the_null_class_is_one_of_them(labelled):
    z, features = inputs(labelled, batch=1)
    outs = [run(labelled, z, features, jnp.array([label])) for label in range(4)]
    for i in range(4):
        for j in range(i):
            assert jnp.abs(outs[i] - outs[j]).max() > 1e-3


def test_features_matter(net):
    z, features = inputs(net)
    assert jnp.abs(run(net, z, features) - run(net, z, features + 1)).max() > 1e-3


def test_bfloat16_is_close_to_float32(net):
    half = awake(lambda: make(dtype=jnp.bfloat16))
    z, features = inputs(net)
    exact, rounded = run(net, z, features), run(half, z, features)
    assert rounded.dtype == jnp.float32
    error = jnp.sqrt(jnp.mean((rounded - exact) ** 2) / jnp.mean(exact**2))
    assert 1e-5 < error < 0.02  # 0 would mean that nothing was computed in bfloat16


def test_gradient_reaches_every_parameter():
    net = awake(lambda: make(num_classes=3))
    z, features = inputs(net)
    loss = lambda net: jnp.mean((net(z, features, jnp.arange(3)) - z) ** 2)
    grads = jax.jit(jax.grad(loss), compiler_options=HASTE)(net)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), jax.tree_util.keystr(path)
        assert grad.any(), jax.tree_util.keystr(path)
