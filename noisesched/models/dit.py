"""The diffusion transformer, DiT (Peebles & Xie 2023): (noisy image, noise-level features) -> raw output.

The image is cut into patches, each a token; blocks of self-attention and a perceptron are conditioned by adaLN-zero: noise level
and label give each block the shift, scale and gate of its two parts. All gates start at zero, so every block starts as the
identity, and the output at zero. Positions are told by fixed sines and cosines. It knows no schedule and no noise level.

Beside the UNet it tells whether a finding about schedules is one about UNets. Its parameters are float32 `nnx.Param`s alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

_uniform, _zeros, _small = nnx.initializers.xavier_uniform(), nnx.initializers.zeros_init(), nnx.initializers.normal(0.02)
EPSILON = 1e-6  # of LayerNorm, as in the paper's code
PATCHES = (1, 2, 4)


def to_patches(x, patch):
    """[B, H, W, C] -> [B, tokens, patch * patch * C], row by row."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    return x.reshape(b, -1, patch * patch * c)


def from_patches(tokens, patch, size):
    """The inverse of `to_patches` for images of size x size."""
    b, n, c = tokens.shape
    x = tokens.reshape(b, size // patch, size // patch, patch, patch, c // patch**2).swapaxes(2, 3)
    return x.reshape(b, size, size, -1)


@functools.cache
def positions(side, width):
    """Features of the places in a grid of side x side, float32 [side * side, width]: a half for the column, a half for the row,
    each width / 4 sines and as many cosines, at frequencies from 1 down to nearly 1e-4 (as in the paper's code)."""
    frequencies = 1e-4 ** (np.arange(width // 4) / (width // 4))
    row, column = np.indices((side, side)).reshape(2, -1, 1) * frequencies
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=-1).astype(np.float32)


def normalised(x):
    """x [B, tokens, width] with mean 0 and variance 1 over the width: LayerNorm without parameters. Statistics are float32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)


class Conditioned(nnx.Module):
    """SiLU and a linear map of the embedding [B, width] to `parts` vectors [B, 1, width] each, all zero at initialisation."""

    def __init__(self, width, parts, *, dtype, rngs):
        self.parts = parts
        self.linear = nnx.Linear(width, parts * width, dtype=dtype, kernel_init=_zeros, rngs=rngs)

    def __call__(self, embedding):
        return jnp.split(self.linear(embedding)[:, None].astype(jnp.float32), self.parts, axis=-1)


class Block(nnx.Module):
    """Self-attention, then a perceptron of four times the width, each between an adaptive LayerNorm and a gate."""

    def __init__(self, width, heads, *, dtype, rngs):
        self.heads = heads
        linear = functools.partial(nnx.Linear, dtype=dtype, kernel_init=_uniform, rngs=rngs)
        self.condition = Conditioned(width, 6, dtype=dtype, rngs=rngs)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.wide, self.narrow = linear(width, 4 * width), linear(4 * width, width)

    def __call__(self, x, embedding):
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.condition(embedding)
        b, n, c = x.shape
        h = (normalised(x) * (1 + scale) + shift).astype(x.dtype)
        query, key, value = jnp.moveaxis(self.qkv(h).reshape(b, n, 3, self.heads, c // self.heads), 2, 0)
        h = self.out(jax.nn.dot_product_attention(query, key, value).reshape(b, n, c))
        x = x + (gate * h).astype(x.dtype)
        h = (normalised(x) * (1 + scale_mlp) + shift_mlp).astype(x.dtype)
        h = self.narrow(jax.nn.gelu(self.wide(h), approximate=True))
        return x + (gate_mlp * h).astype(x.dtype)


class DiT(nnx.Module):
    """The transformer for square images. Its output is zero at initialisation.

    Args:
      image_size, channels: H = W and C of the images.
      patch: pixels per side of a token; a divisor of image_size.
      width: of the tokens; a multiple of 4 and of heads.
      blocks: how many.
      heads: attention heads.
      features: width of the feature vector that tells the noise level.
      num_classes: 0 for no labels; K for labels 0..K-1, and K for the null class ("no label").
      dtype: of the computation, float32 or bfloat16; parameters, statistics and the output stay float32.

    Raises:
      ValueError: on sizes that do not fit, naming those that would.
    """

    def __init__(self, *, image_size, channels, patch, width, blocks, heads, features, num_classes, dtype, rngs):
        if image_size % patch:
            raise ValueError(f"image_size={image_size} is not a multiple of patch={patch}; choose one of {_divisors(image_size)}")
        if width % 4 or width % heads:
            step = int(np.lcm(4, heads))
            nearest = ", ".join(str(n * step) for n in (width // step, width // step + 1) if n)
            raise ValueError(f"width={width} is not a multiple of 4 and of heads={heads}; nearest valid: {nearest}")
        self.image_size, self.patch, self.num_classes, self.dtype = image_size, patch, num_classes, dtype
        self.patch_in = nnx.Linear(patch * patch * channels, width, dtype=dtype, kernel_init=_uniform, rngs=rngs)
        self.embed_in = nnx.Linear(features, width, dtype=dtype, kernel_init=_small, rngs=rngs)
        self.embed_out = nnx.Linear(width, width, dtype=dtype, kernel_init=_small, rngs=rngs)
        label = functools.partial(nnx.Embed, dtype=dtype, embedding_init=_small, rngs=rngs)
        self.label = label(num_classes + 1, width) if num_classes else None
        self.blocks = nnx.List([Block(width, heads, dtype=dtype, rngs=rngs) for _ in range(blocks)])
        self.condition = Conditioned(width, 2, dtype=dtype, rngs=rngs)
        self.patch_out = nnx.Linear(width, patch * patch * channels, dtype=jnp.float32, kernel_init=_zeros, rngs=rngs)

    def __call__(self, z, features, labels=None, dropout_keys=None):
        """z [B, H, W, C], features [B, features], labels int [B] iff num_classes -> float32 [B, H, W, C]; it drops nothing."""
        if z.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(f"image size {z.shape[1]}x{z.shape[2]}, but this DiT is for {self.image_size}x{self.image_size}")
        if (labels is None) == bool(self.num_classes):
            known = f"needs labels: 0..{self.num_classes - 1}, or {self.num_classes} for the null class"
            raise ValueError("this DiT " + ("takes no labels (num_classes=0)" if labels is not None else known))
        embedding = self.embed_out(jax.nn.silu(self.embed_in(features)))
        if labels is not None:
            embedding += self.label(labels)
        embedding = jax.nn.silu(embedding)  # [B, width]; every block starts from it

        x = self.patch_in(to_patches(z, self.patch).astype(self.dtype))
        x = x + positions(self.image_size // self.patch, x.shape[-1])[None].astype(x.dtype)
        for block in self.blocks:
            x = block(x, embedding)
        shift, scale = self.condition(embedding)
        return from_patches(self.patch_out(normalised(x) * (1 + scale) + shift), self.patch, self.image_size)


def _divisors(size):
    return ", ".join(str(patch) for patch in PATCHES if size % patch == 0)
