"""The UNet: (noisy image, noise-level features) -> raw output. It knows no schedule and no noise level.

The standard network of DDPM (Ho et al. 2020) as improved by ADM (Dhariwal & Nichol 2021): residual blocks whose second
GroupNorm is scaled and shifted by the conditioning, self-attention at chosen image sizes, stride-2 convolutions down,
nearest x2 and a convolution up. Parameter for parameter it is diffusers' `UNet2DModel` with `resnet_time_scale_shift=
"scale_shift"` and `attn_norm_num_groups` set, where two rules agree: layers are normalised in `num_groups(channels)` groups
here, in one number there (32 for widths that are multiples of 32); levels with attention have the same number of heads here,
heads of the same size there. `interchange.export` writes it so.

Modules hold nothing but float32 `nnx.Param`s, so a `UNet` is a pytree of its weights: pass it to `jax.jit`, `jax.grad`, optax.
Dropout takes one PRNG key per example at call time, so a result does not depend on how a batch is split over devices.
"""

import jax
import jax.numpy as jnp
from flax import nnx

_default, _zeros = nnx.initializers.lecun_normal(), nnx.initializers.zeros_init()


def num_groups(channels: int) -> int:
    """The largest divisor of `channels` not above 32: 32 for the usual widths, 24 for width 24, 1 for a prime above 32."""
    return max(g for g in range(1, min(32, channels) + 1) if channels % g == 0)


class Conv(nnx.Conv):
    """3x3 convolution with a border of zeros. On images of 2x2 and 1x1 the same numbers by one matrix product.

    There most of the kernel falls on the border, and XLA turns such a convolution around (image as kernel), which is slow.
    """

    def __init__(self, inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs, strides: int = 1, padding=1, kernel_init=_default):
        super().__init__(inputs, outputs, (3, 3), strides, padding=padding, dtype=dtype, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, x):
        b, h, w, c = x.shape
        if max(h, w) > 2 or self.strides != 1:
            return super().__call__(x)
        # Output pixel (i, j) sees input pixel (r, s) through kernel[r - i + 1, s - j + 1].
        seen = [self.kernel[1 - i : 1 - i + h, 1 - j : 1 - j + w] for i in range(h) for j in range(w)]
        matrix = jnp.stack(seen, axis=3).reshape(h * w * c, -1).astype(self.dtype)  # [h w C, H W outputs]
        y = (x.reshape(b, -1).astype(self.dtype) @ matrix).reshape(b, h, w, -1)
        return y + self.bias[None, None, None].astype(self.dtype)


class GroupNorm(nnx.Module):
    """GroupNorm over `groups` (`num_groups(channels)`) groups, optionally scaled and shifted by a conditioning, in one pass.

    Statistics are float32 whatever the compute dtype. Normalisation, its own scale and bias and the conditioning are folded
    into one multiplication and one addition for each example and channel.
    """

    def __init__(self, channels: int, groups: int | None = None, eps: float = 1e-5, *, rngs: nnx.Rngs):
        self.groups, self.eps = groups or num_groups(channels), eps
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))

    def __call__(self, x, scale=None, shift=None):
        """x [B, H, W, C]; scale, shift [B, C] -> normalised x * (1 + scale) + shift, in x's dtype."""
        b, h, w, c = x.shape
        groups, size = self.groups, c // self.groups
        pixels = x.reshape(b, h * w, c).astype(jnp.float32)
        # Both moments in one pass over x, per channel, then averaged over each group. They are taken about one value of the
        # group itself, so they do not cancel however far its mean is from zero; that value drops out of the result, hence of
        # its gradient.
        pivot = jax.lax.stop_gradient(jnp.repeat(pixels[:, 0, ::size], size, axis=1))  # [B, C]
        centred = pixels - pivot[:, None]
        over_group = lambda moment: jnp.repeat(moment.reshape(b, groups, size).mean(2), size, axis=1)  # [B, C]
        mean = over_group(centred.mean(1))
        variance = over_group((centred * centred).mean(1)) - mean * mean
        gain = self.scale[None] * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + self.eps)
        offset = self.bias[None] - (mean + pivot) * gain
        if scale is not None:
            gain, offset = gain * (1 + scale), offset * (1 + scale) + shift
        return (x.astype(jnp.float32) * gain[:, None, None] + offset[:, None, None]).astype(x.dtype)


def drop(h, rate: float, keys, index: int):
    """h [B, ...] with activations dropped at `rate`; keys [B], or None for no dropout; `index` tells a block from the others."""
    if not rate or keys is None:
        return h
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, index), 1 - rate, h.shape[1:]))(keys)
    return jnp.where(keep, h / (1 - rate), 0)


class Attention(nnx.Module):
    """Residual multi-head self-attention over the pixels of one image. The output projection starts at zero."""

    def __init__(self, channels: int, heads: int, *, dtype, rngs: nnx.Rngs):
        if channels % heads:
            raise ValueError(f"attention width {channels} is not divisible by heads={heads}")
        self.heads = heads
        self.norm = GroupNorm(channels, rngs=rngs)
        self.qkv = nnx.Linear(channels, 3 * channels, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(channels, channels, dtype=dtype, kernel_init=_zeros, rngs=rngs)

    def __call__(self, x):
        b, h, w, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, h * w, 3, self.heads, c // self.heads)
        query, key, value = qkv.transpose(2, 0, 3, 1, 4)  # [B, heads, H W, C / heads] each
        score = jnp.matmul(query * (c // self.heads) ** -0.5, key.swapaxes(2, 3), preferred_element_type=jnp.float32)
        y = jax.nn.softmax(score).astype(x.dtype) @ value
        return x + self.out(y.swapaxes(1, 2).reshape(b, h, w, c))


class Block(nnx.Module):
    """Residual block (GroupNorm-SiLU-conv, scale and shift from the embedding, GroupNorm-SiLU-dropout-conv), then attention.

    `index` is the block's own number: it tells its dropout from the other blocks'.
    """

    def __init__(
        self, index: int, inputs: int, outputs: int, embedding: int, *, heads: int, dropout: float, dtype, rngs: nnx.Rngs
    ):  # heads: 0 for no attention
        self.index = index
        self.dropout = dropout
        self.norm1 = GroupNorm(inputs, rngs=rngs)
        self.conv1 = Conv(inputs, outputs, dtype=dtype, rngs=rngs)
        self.condition = nnx.Linear(embedding, 2 * outputs, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(outputs, rngs=rngs)
        self.conv2 = Conv(outputs, outputs, dtype=dtype, kernel_init=_zeros, rngs=rngs)
        self.skip = nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs) if inputs != outputs else None
        self.attention = Attention(outputs, heads, dtype=dtype, rngs=rngs) if heads else None

    def __call__(self, x, embedding, dropout_keys):
        scale, shift = jnp.split(self.condition(embedding).astype(jnp.float32), 2, axis=-1)
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = jax.nn.silu(self.norm2(h, scale, shift))
        h = drop(h, self.dropout, dropout_keys, self.index)
        h = (x if self.skip is None else self.skip(x)) + self.conv2(h)
        return h if self.attention is None else self.attention(h)


class Downsample(nnx.Module):
    """Stride-2 convolution: [B, H, W, C] -> [B, H/2, W/2, C]."""

    def __init__(self, channels: int, *, dtype, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, strides=2, dtype=dtype, rngs=rngs)

    def __call__(self, x, embedding, dropout_keys):
        return self.conv(x)


def nearest(x):
    """[B, H, W, C] -> [B, 2H, 2W, C]: every pixel four times."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class Upsample(nnx.Module):
    """Nearest x2, then a convolution: [B, H, W, C] -> [B, 2H, 2W, C]."""

    def __init__(self, channels: int, *, dtype, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.conv(nearest(x))


def check_size(image_size: int, levels: int) -> None:
    """Raise ValueError unless `levels` levels, each half the size of the one before, divide `image_size`."""
    factor = 2 ** (levels - 1)
    if image_size < 1 or image_size % factor:
        below, above = image_size // factor * factor, (image_size // factor + 1) * factor
        nearest = f"{below} or {above}" if below > 0 else f"{above}"
        raise ValueError(
            f"image_size={image_size} is not a multiple of {factor}, as {levels} levels need; nearest valid: {nearest}"
        )


class UNet(nnx.Module):
    """UNet for square images of a size divisible by 2**(len(multipliers) - 1). Its output is zero at initialisation.

    Args:
      image_size, channels: H = W and C of the images.
      width, multipliers: level i works at size image_size / 2**i with width * multipliers[i] channels.
      blocks: residual blocks per level on the way down (one more on the way up).
      attention: image sizes at which every block, the middle one too, is followed by self-attention; each must be a level's.
      heads: attention heads; must divide the widths of the levels that have attention.
      dropout: probability in [0, 1) of dropping an activation, applied when dropout keys are given.
      features: width of the feature vector that tells the noise level.
      num_classes: 0 for no labels; K for labels 0..K-1, and K for the null class ("no label").
      dtype: of the computation, float32 or bfloat16; parameters, statistics and the output stay float32.

    Raises:
      ValueError: on sizes, widths or attention sizes that do not fit, naming those that would.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        heads: int,
        dropout: float,
        features: int,
        num_classes: int,
        dtype,
        rngs: nnx.Rngs,
    ):
        check_size(image_size, len(multipliers))
        sizes = [image_size >> level for level in range(len(multipliers))]
        if unknown := set(attention) - set(sizes):
            raise ValueError(f"attention at size {min(unknown)}, but the levels have sizes {', '.join(map(str, sizes))}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is not in [0, 1)")
        widths = [width * m for m in multipliers]
        self.image_size, self.num_classes, self.dtype = image_size, num_classes, dtype
        indices = iter(range(10**6))

        def block(inputs, outputs, size):
            return Block(
                next(indices),
                inputs,
                outputs,
                4 * width,
                heads=heads if size in attention else 0,
                dropout=dropout,
                dtype=dtype,
                rngs=rngs,
            )

        self.embed_in = nnx.Linear(features, 4 * width, dtype=dtype, rngs=rngs)
        self.embed_out = nnx.Linear(4 * width, 4 * width, dtype=dtype, rngs=rngs)
        self.label = nnx.Embed(num_classes + 1, 4 * width, dtype=dtype, rngs=rngs) if num_classes else None

        self.conv_in = Conv(channels, widths[0], dtype=dtype, rngs=rngs)
        self.down, self.middle, self.up = nnx.List(), nnx.List(), nnx.List()
        now, skips = widths[0], [widths[0]]
        for size, out in zip(sizes, widths, strict=True):
            for _ in range(blocks):
                self.down.append(block(now, out, size))
                now = out
                skips.append(now)
            if size != sizes[-1]:
                self.down.append(Downsample(now, dtype=dtype, rngs=rngs))
                skips.append(now)
        self.middle.append(block(now, now, sizes[-1]))
        self.middle.append(block(now, now, None))
        for size, out in zip(reversed(sizes), reversed(widths), strict=True):
            for _ in range(blocks + 1):
                self.up.append(block(now + skips.pop(), out, size))
                now = out
            if size != image_size:
                self.up.append(Upsample(now, dtype=dtype, rngs=rngs))
        self.norm_out = GroupNorm(now, rngs=rngs)
        self.conv_out = Conv(now, channels, dtype=jnp.float32, kernel_init=_zeros, rngs=rngs)

    def __call__(self, z, features, labels=None, dropout_keys=None):
        """z [B, H, W, C], features [B, features], labels int [B] iff num_classes, dropout_keys [B] PRNG keys or None (no
        dropout) -> float32 [B, H, W, C]."""
        if z.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(f"image size {z.shape[1]}x{z.shape[2]}, but this UNet is for {self.image_size}x{self.image_size}")
        if (labels is None) == bool(self.num_classes):
            raise ValueError(
                "this UNet takes no labels (num_classes=0)"
                if labels is not None
                else f"this UNet needs labels: 0..{self.num_classes - 1}, or {self.num_classes} for the null class"
            )
        embedding = self.embed_out(jax.nn.silu(self.embed_in(features)))
        if labels is not None:
            embedding += self.label(labels)
        embedding = jax.nn.silu(embedding)  # [B, 4 width]; every block starts from it

        h = self.conv_in(z)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding, dropout_keys)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embedding, dropout_keys)
        for layer in self.up:
            if isinstance(layer, Upsample):
                h = layer(h)
            else:
                h = layer(jnp.concatenate([h, skips.pop()], axis=-1), embedding, dropout_keys)
        return self.conv_out(jax.nn.silu(self.norm_out(h.astype(jnp.float32))))
