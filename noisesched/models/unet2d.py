"""PyTorch diffusers' `UNet2DModel`, exactly: (noisy image, one number that tells the noise level) -> raw output.

The networks of DDPM, of ADM (scale and shift, residual blocks that resample) and of NCSN++ (Fourier features, skip connections of
images) as that library builds them, version 0.42. Modules and their lists have its names, so a parameter here is the tensor there
whose name is the same path, transposed. What is odd there is odd here, and marked.

Modules hold nothing but float32 `nnx.Param`s. Images are [B, H, W, C] here, [B, C, H, W] there.
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from noisesched import spec
from noisesched.models import unet

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}
# What a level of a type is: (whether it has attention, how it resamples; None as downsample_type or upsample_type says).
DOWN = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "SkipDownBlock2D": (False, "skip"),
    "AttnSkipDownBlock2D": (True, "skip"),
}
UP = {name.replace("Down", "Up"): kind for name, kind in DOWN.items()}
EMBEDDINGS = ("positional", "fourier", "learned")
BELOW = {"layers_per_block": 2**8, "num_class_embeds": 2**24, "num_train_timesteps": 2**24}  # limits other than 2^16
SKIP_SCALE = math.sqrt(2.0)  # of the residual blocks in levels of kind "skip"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Which function it is: the fields of the library's config.json, with its defaults, but for images' size and channels."""

    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    layers_per_block: int = 2
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int | None = 0
    flip_sin_to_cos: bool = True
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    downsample_type: str | None = "conv"
    upsample_type: str | None = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    def down(self, index):
        """(whether it has attention, how it resamples) of a level on the way down."""
        attention, resampling = DOWN[self.down_block_types[index].removeprefix("UNetRes")]
        return attention, resampling or self.downsample_type or "conv"

    def up(self, index):
        attention, resampling = UP[self.up_block_types[index].removeprefix("UNetRes")]
        return attention, resampling or self.upsample_type or "conv"

    def check(self):
        """Raises ValueError, in one line, for an architecture that the library does not build, or builds and cannot run."""
        levels, shown = len(self.block_out_channels), lambda value: spec.shortened(repr(value), 80)
        for name, known in (("down_block_types", DOWN), ("up_block_types", UP)):
            types = getattr(self, name)
            for each in types:
                _require(
                    each.removeprefix("UNetRes") in known, f"{name}: {shown(each)} is not known here; known: {', '.join(known)}"
                )
            _require(len(types) == levels, f"{name} has {len(types)} levels, block_out_channels has {levels}")
        _require(levels, "block_out_channels is empty")
        for name, known in (
            ("mid_block_type", (None, "UNetMidBlock2D")),
            ("time_embedding_type", EMBEDDINGS),
            ("downsample_padding", (0, 1)),
            ("downsample_type", (None, "conv", "resnet")),
            ("upsample_type", (None, "conv", "resnet")),
            ("resnet_time_scale_shift", ("default", "scale_shift")),
            ("class_embed_type", (None, "timestep", "identity")),
        ):
            value = getattr(self, name)
            _require(value in known, f"{name}={shown(value)} is not known here; known: {', '.join(map(str, known))}")
        _require(
            self.act_fn.lower() in ACTIVATIONS, f"act_fn={shown(self.act_fn)} is not known here; known: {', '.join(ACTIVATIONS)}"
        )
        for name, value in dataclasses.asdict(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            whole = [number for number in numbers if type(number) is int and name not in ("freq_shift", "downsample_padding")]
            below = BELOW.get(name, 2**16)
            _require(all(0 < number < below for number in whole), f"{name}={shown(value)} must be from 1 to {below - 1}")
        _require(self.norm_eps > 0, f"norm_eps={self.norm_eps:g} must be above 0")
        _require(self.mid_block_scale_factor > 0, f"mid_block_scale_factor={self.mid_block_scale_factor:g} must be above 0")
        _require(0 <= self.dropout < 1, f"dropout={self.dropout:g} is not in [0, 1)")
        shift, half = self.freq_shift, self.block_out_channels[0] // 2
        if self.time_embedding_type == "positional":
            _require(shift is not None and 0 <= shift < half, f"freq_shift={shift} must be from 0 to {half - 1}")
        if self.time_embedding_type == "learned":
            _require(self.num_train_timesteps, "time_embedding_type='learned' needs num_train_timesteps")
        down = [self.down(i)[1] == "skip" for i in range(levels - 1)]
        up = [self.up(i)[1] == "skip" for i in range(levels)]
        _require(down == sorted(down, reverse=True), "down_block_types: a level of Skip blocks follows one of others")
        _require(up == sorted(up), "up_block_types: a level of other blocks follows one of Skip blocks")


class Given(typing.NamedTuple):
    """What all parts of one network are made with."""

    architecture: Architecture
    embedding: int  # width of the embedding of the noise level
    indices: typing.Any  # an iterator of numbers, one for each residual block: they tell its dropout from the others'
    dtype: typing.Any
    rngs: typing.Any

    def norm(self, channels, groups):
        fits = groups and 0 < groups <= channels and channels % groups == 0
        _require(fits, f"{channels} channels cannot be normalised in {groups} groups (norm_num_groups, or a Skip block's own)")
        return unet.GroupNorm(channels, groups, self.architecture.norm_eps, rngs=self.rngs)

    def conv(self, inputs, outputs, size=3, dtype=None, **options):
        dtype = dtype or self.dtype
        if size == 1:
            return nnx.Conv(inputs, outputs, (1, 1), dtype=dtype, rngs=self.rngs)
        return unet.Conv(inputs, outputs, dtype=dtype, rngs=self.rngs, **options)

    def linear(self, inputs, outputs):
        return nnx.Linear(inputs, outputs, dtype=self.dtype, rngs=self.rngs)


# -- resampling: [B, H, W, C] -> [B, H / 2, W / 2, C] or [B, 2 H, 2 W, C]


def average(x):
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def fir_down(x):
    """Smoothed by (1, 3, 3, 1) / 8 along both axes, zeros beyond the border; every second pixel (StyleGAN2's filter)."""
    for axis in (1, 2):
        x = jnp.moveaxis(jnp.pad(x, [(1, 1) if each == axis else (0, 0) for each in range(4)]), axis, 0)
        x = jnp.moveaxis((x[:-3:2] + x[3::2] + 3 * (x[1:-2:2] + x[2:-1:2])) / 8, 0, axis)
    return x


def fir_up(x):
    """Zeros put between pixels, then smoothed by (1, 3, 3, 1) / 4 along both axes."""
    for axis in (1, 2):
        x = jnp.moveaxis(jnp.pad(x, [(1, 1) if each == axis else (0, 0) for each in range(4)]), axis, 0)
        before, at, after = x[:-2], x[1:-1], x[2:]
        x = jnp.stack([before + 3 * at, 3 * at + after], axis=1) / 4  # [H, 2, ..]
        x = jnp.moveaxis(x.reshape(-1, *x.shape[2:]), 0, axis)
    return x


# -- parts


class Resnet(nnx.Module):
    """Residual block, resampling where asked, whose sum is divided by `scale` (`ResnetBlock2D`)."""

    def __init__(self, given: Given, inputs, outputs, groups, groups_out=None, *, resample=None, shortcut=False, scale=1.0):
        architecture = given.architecture
        self.index, self.act, self.dropout = next(given.indices), architecture.act_fn.lower(), architecture.dropout
        self.scale_shift, self.resample, self.scale = architecture.resnet_time_scale_shift == "scale_shift", resample, scale
        self.norm1 = given.norm(inputs, groups)
        self.conv1 = given.conv(inputs, outputs)
        self.time_emb_proj = given.linear(given.embedding, outputs * (2 if self.scale_shift else 1))
        self.norm2 = given.norm(outputs, groups_out or groups)
        self.conv2 = given.conv(outputs, outputs)
        self.conv_shortcut = given.conv(inputs, outputs, size=1) if shortcut or inputs != outputs else None

    def __call__(self, x, embedding, dropout_keys):
        """x [B, H, W, C], embedding [B, ..] after its activation -> [B, H', W', outputs]."""
        act, resample = ACTIVATIONS[self.act], self.resample or (lambda x: x)
        h = self.conv1(resample(act(self.norm1(x))))
        told = self.time_emb_proj(embedding)
        if self.scale_shift:
            h = self.norm2(h, *jnp.split(told.astype(jnp.float32), 2, axis=-1))
        else:
            h = self.norm2(h + told[:, None, None])
        h = unet.drop(act(h), self.dropout, dropout_keys, self.index)
        x = resample(x)
        return ((x if self.conv_shortcut is None else self.conv_shortcut(x)) + self.conv2(h)) / self.scale


class Attention(nnx.Module):
    """Residual self-attention over pixels; channels that no whole head takes are left out (`Attention`)."""

    def __init__(self, given: Given, channels, groups, *, scale=1.0):
        size = given.architecture.attention_head_dim or channels
        self.heads, self.scale = channels // size, scale
        _require(self.heads, f"attention_head_dim={size} at a level of {channels} channels leaves no head")
        self.group_norm = given.norm(channels, groups) if groups else None
        self.to_q, self.to_k, self.to_v = (given.linear(channels, self.heads * size) for _ in range(3))
        self.to_out = nnx.List([given.linear(self.heads * size, channels)])

    def __call__(self, x):
        b, h, w, c = x.shape
        y = x if self.group_norm is None else self.group_norm(x)
        y = y.reshape(b, h * w, c)
        query, key, value = (to(y).reshape(b, h * w, self.heads, -1) for to in (self.to_q, self.to_k, self.to_v))
        y = jax.nn.dot_product_attention(query, key, value).reshape(b, h, w, -1)
        return (x + self.to_out[0](y)) / self.scale


class Downsample(nnx.Module):
    """Stride-2 convolution. Without padding it has one row and column of zeros, below and to the right."""

    def __init__(self, given: Given, channels):
        padding = 1 if given.architecture.downsample_padding else ((0, 1), (0, 1))
        self.conv = given.conv(channels, channels, strides=2, padding=padding)

    def __call__(self, x, embedding, dropout_keys):
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest x2, then a convolution."""

    def __init__(self, given: Given, channels):
        self.conv = given.conv(channels, channels)

    def __call__(self, x, embedding, dropout_keys):
        return self.conv(unet.nearest(x))


def skip_groups(channels):
    return min(channels // 4, 32)


class Down(nnx.Module):
    """One level down. `image`: channels of the images that a level of Skip blocks passes down beside the features."""

    def __init__(self, given: Given, index, inputs, outputs, image):
        architecture = given.architecture
        attention, kind = architecture.down(index)
        skip = kind == "skip"
        scale = SKIP_SCALE if skip else 1.0
        groups = skip_groups if skip else lambda channels: architecture.norm_num_groups
        self.resnets, self.attentions, self.downsamplers = nnx.List([]), nnx.List([]), nnx.List([])
        last = index == len(architecture.block_out_channels) - 1
        for layer in range(architecture.layers_per_block):
            now = inputs if layer == 0 else outputs
            self.resnets.append(Resnet(given, now, outputs, groups(now), groups(outputs), scale=scale))
            if attention:
                self.attentions.append(Attention(given, outputs, 32 if skip else groups(outputs), scale=scale))
        resnet = functools.partial(Resnet, given, outputs, outputs, groups(outputs))
        self.resnet_down = resnet(resample=fir_down, shortcut=True, scale=scale) if skip and not last else None
        self.skip_conv = given.conv(image, outputs, size=1) if skip and not last else None
        if not skip and not last:
            self.downsamplers.append(resnet(resample=average) if kind == "resnet" else Downsample(given, outputs))

    def __call__(self, h, image, embedding, dropout_keys):
        """-> (features, those of every layer, the image of this level)."""
        states = []
        for layer, resnet in enumerate(self.resnets):
            h = resnet(h, embedding, dropout_keys)
            h = self.attentions[layer](h) if self.attentions else h
            states.append(h)
        if self.resnet_down is not None:
            image = fir_down(image)
            h = self.skip_conv(image) + self.resnet_down(h, embedding, dropout_keys)
            states.append(h)
        for downsampler in self.downsamplers:
            h = downsampler(h, embedding, dropout_keys)
            states.append(h)
        return h, states, image


class Middle(nnx.Module):
    """Residual block, attention, residual block (`UNetMidBlock2D`)."""

    def __init__(self, given: Given, channels):
        architecture = given.architecture
        scale = architecture.mid_block_scale_factor
        groups = architecture.norm_num_groups or skip_groups(channels)
        default = groups if architecture.resnet_time_scale_shift == "default" else None
        self.resnets, self.attentions = nnx.List([Resnet(given, channels, channels, groups, scale=scale)]), nnx.List([])
        if architecture.add_attention:
            self.attentions.append(Attention(given, channels, architecture.attn_norm_num_groups or default, scale=scale))
        self.resnets.append(Resnet(given, channels, channels, groups, scale=scale))

    def __call__(self, h, embedding, dropout_keys):
        h = self.resnets[0](h, embedding, dropout_keys)
        for attention in self.attentions:
            h = attention(h)
        return self.resnets[1](h, embedding, dropout_keys)


class Up(nnx.Module):
    """One level up. `inputs`: channels of the level below; `skipped`: of the level whose last layer its last layer takes."""

    def __init__(self, given: Given, index, inputs, skipped, outputs, image):
        architecture = given.architecture
        attention, kind = architecture.up(index)
        self.skip = skip = kind == "skip"
        scale = SKIP_SCALE if skip else 1.0
        groups = skip_groups if skip else lambda channels: architecture.norm_num_groups
        self.resnets, self.attentions, self.upsamplers = nnx.List([]), nnx.List([]), nnx.List([])
        last = index == len(architecture.block_out_channels) - 1
        layers = architecture.layers_per_block + 1
        for layer in range(layers):
            now, from_down = inputs if layer == 0 else outputs, skipped if layer == layers - 1 else outputs
            # The library divides only one of the two by 4 here: a slip of its own.
            first = min(now + from_down // 4, 32) if skip and attention else groups(now + from_down)
            self.resnets.append(Resnet(given, now + from_down, outputs, first, groups(outputs), scale=scale))
            if attention and (not skip or layer == layers - 1):
                self.attentions.append(Attention(given, outputs, 32 if skip else groups(outputs), scale=scale))
        resnet = functools.partial(Resnet, given, outputs, outputs, groups(outputs))
        self.resnet_up = resnet(resample=fir_up, shortcut=True, scale=scale) if skip and not last else None
        self.skip_norm = given.norm(outputs, groups(outputs)) if skip and not last else None
        self.skip_conv = given.conv(outputs, image) if skip and not last else None
        if not skip and not last:
            self.upsamplers.append(resnet(resample=unet.nearest) if kind == "resnet" else Upsample(given, outputs))

    def __call__(self, h, states, image, embedding, dropout_keys):
        """`states`: of the way down, from which it takes as many as it has layers. `image`: of the level below, or None."""
        for layer, resnet in enumerate(self.resnets):
            h = resnet(jnp.concatenate([h, states.pop()], axis=-1), embedding, dropout_keys)
            h = self.attentions[layer](h) if self.attentions and not self.skip else h
        if self.skip:
            h = self.attentions[0](h) if self.attentions else h
            image = None if image is None else fir_up(image)
            if self.resnet_up is not None:
                own = self.skip_conv(jax.nn.silu(self.skip_norm(h)))
                image = own if image is None else image + own
                h = self.resnet_up(h, embedding, dropout_keys)
        for upsampler in self.upsamplers:
            h = upsampler(h, embedding, dropout_keys)
        return h, image


# -- the noise level


def sinusoids(number, width, shift, flip):
    """[B] -> [B, width]: DDPM's sines, then cosines (the other way round with `flip`), at frequencies 1 to 1e-4^(1 - 1/half).

    `shift` is taken from the count of frequencies: with 1 the last is 1e-4. Frequencies in the library's own float32 arithmetic:
    at timestep 999 the last bit of one is 6e-5 of an angle.
    """
    half = width // 2
    exponent = np.float32(-math.log(10_000)) * np.arange(half, dtype=np.float32) / np.float32(half - shift)
    angles = number[:, None] * np.exp(exponent.astype(np.float64)).astype(np.float32)[None]
    pair = (jnp.sin(angles), jnp.cos(angles))
    return jnp.pad(jnp.concatenate(pair[::-1] if flip else pair, axis=-1), [(0, 0), (0, width % 2)])


class Fourier(nnx.Module):
    """Sines and cosines of the number's logarithm at random frequencies, which are not trained (`GaussianFourierProjection`)."""

    def __init__(self, width, rngs):
        self.weight = nnx.Param(16.0 * jax.random.normal(rngs.params(), (width,)))

    def __call__(self, number):
        angles = jnp.log(number)[:, None] * jax.lax.stop_gradient(self.weight[...])[None] * 2 * math.pi
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Embedding(nnx.Module):
    """Two layers (`TimestepEmbedding`), whose activation is silu whatever the architecture's."""

    def __init__(self, given: Given, inputs):
        self.linear_1, self.linear_2 = given.linear(inputs, given.embedding), given.linear(given.embedding, given.embedding)

    def __call__(self, x):
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


# -- the network


class UNet2D(nnx.Module):
    """`UNet2DModel`. The sides of images must be multiples of 2^(levels - 1).

    Raises ValueError, in one line, for an architecture that does not fit together.
    """

    def __init__(self, architecture: Architecture, inputs: int, outputs: int, *, dtype, rngs):
        architecture.check()
        self.architecture = architecture
        channels = architecture.block_out_channels
        levels, first = len(channels), channels[0]
        given = Given(architecture, architecture.time_embedding_dim or 4 * first, iter(range(10**6)), dtype, rngs)
        skips = [name for name in (*architecture.down_block_types[:-1], *architecture.up_block_types) if "Skip" in name]
        _require(not skips or inputs == outputs == 3, f"{(skips or [''])[0]} is for images of 3 channels, not {inputs}")
        kind, embed = architecture.time_embedding_type, functools.partial(nnx.Embed, dtype=dtype, rngs=rngs)
        learned = {"fourier": lambda: Fourier(first, rngs), "learned": lambda: embed(architecture.num_train_timesteps, first)}
        self.time_proj = learned[kind]() if kind in learned else None
        told = 2 * first if kind == "fourier" else first
        self.time_embedding = Embedding(given, told)
        classes = architecture.num_class_embeds if architecture.class_embed_type is None else None
        of_class = Embedding(given, told) if architecture.class_embed_type == "timestep" else None
        self.class_embedding = embed(classes, given.embedding) if classes else of_class

        self.conv_in = given.conv(inputs, first)
        wider, back = (first, *channels), channels[::-1]
        self.down_blocks = nnx.List([Down(given, i, wider[i], channels[i], inputs) for i in range(levels)])
        self.mid_block = Middle(given, channels[-1]) if architecture.mid_block_type else None
        self.up_blocks = nnx.List(
            [Up(given, i, back[max(i - 1, 0)], back[min(i + 1, levels - 1)], back[i], outputs) for i in range(levels)]
        )
        self.conv_norm_out = given.norm(first, architecture.norm_num_groups or skip_groups(first))
        self.conv_out = given.conv(first, outputs, dtype=jnp.float32)

    def __call__(self, z, told, labels=None, dropout_keys=None):
        """z [B, H, W, C] -> float32 [B, H, W, C].

        told [B]: the number that tells the noise level, for DDPM's networks the timestep from 0. labels, iff it has classes: int
        [B]; vectors [B, embedding] with class_embed_type="identity". dropout_keys: [B] PRNG keys, or None for no dropout.
        """
        unet.check_size(min(z.shape[1:3]), len(self.down_blocks))
        given, kind = self.architecture, self.architecture.class_embed_type
        if (labels is None) == bool(kind or self.class_embedding is not None):
            raise ValueError("this UNet needs labels" if labels is None else "this UNet takes no labels")
        embedding = self.time_embedding(self._features(told))
        if labels is not None:
            told_label = self._features(labels.astype(jnp.float32)) if kind == "timestep" else labels
            embedding += told_label if kind == "identity" else self.class_embedding(told_label)
        embedding = ACTIVATIONS[given.act_fn.lower()](embedding)

        image = 2 * z - 1 if given.center_input_sample else z
        h = self.conv_in(image)
        states = [h]
        for block in self.down_blocks:
            h, more, image = block(h, image, embedding, dropout_keys)
            states += more
        if self.mid_block is not None:
            h = self.mid_block(h, embedding, dropout_keys)
        image = None
        for block in self.up_blocks:
            h, image = block(h, states, image, embedding, dropout_keys)
        h = self.conv_out(jax.nn.silu(self.conv_norm_out(h.astype(jnp.float32))))
        h = h if image is None else h + image
        return h / told[:, None, None, None] if given.time_embedding_type == "fourier" else h

    def _features(self, number):
        given = self.architecture
        if given.time_embedding_type == "learned":
            return self.time_proj(jnp.round(number).astype(jnp.int32))
        if given.time_embedding_type == "fourier":
            return self.time_proj(number)
        return sinusoids(number, given.block_out_channels[0], given.freq_shift, given.flip_sin_to_cos)


def _require(condition, message):
    if not condition:
        raise ValueError(message)
