"""From a network and levels to images."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from noisesched import guidance, loss, samplers, schedules
from noisesched.runtime import pictures, sharding

BATCH = 256  # images per dispatch and device


@functools.partial(jax.jit, static_argnames="method")
def draw(network, log_snrs, told, guide, seed, index, labels, method):
    """Images [B, ..], finite [B], of the positions `index` [B], with labels [B] or None; `method`: a samplers.Sampler.

    Image i is a function of (network, log_snrs, told, guide, seed, i, its label), not of the batch it is made in. One
    compilation serves all schedules of a length, and all numbers of one kind of guidance. `told`: the levels that the network
    is told, as from `told_raw`; None for the true ones. `guide`: a Guidance, or None.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)
    noise_keys, step_keys = jax.vmap(lambda key: jax.random.split(key), out_axes=1)(keys)
    z = jax.vmap(lambda key: loss.noise(key, network.shape, network.noise_offset))(noise_keys)
    denoise = guidance.guided(network, guide, labels, network.num_classes)
    x = samplers.sample(denoise, step_keys, z, log_snrs, method, told=told)
    return x if network.floats else pictures.unscale(x), jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def told_raw(config, n, spacing="trailing"):
    """A common mistake: the schedule is changed, but the network is still told the timesteps of its own table. Returns the
    levels [n] of those steps, spaced as usual, float32; more levels than steps repeat them."""
    steps = config.conditioning.table
    levels = schedules.levels(steps, n, spacing) if n <= steps.table.num_steps else steps(schedules.positions(n, spacing))
    return np.asarray(levels, np.float32)


def generate(network, log_snrs, num_images, method="ddim", *, seed, told=None, guide=None, labels=None, progress=None):
    """Images [num_images, H, W, C], in equal batches over the devices of all processes, all of which must call this.

    They are uint8, or the float32 x of a network of `floats`. `network`: a `denoiser.Network`, or what `wrap` makes. `method`: a
    sampler, or its spec. `told`, `guide`: see `draw`.

    Raises ValueError, and returns no image, if a value is not finite.
    """
    devices = jax.device_count()
    size = math.ceil(min(num_images, BATCH * devices) / devices) * devices
    method, images = samplers.make(method), []
    samplers.check_levels(network, log_snrs)
    network, log_snrs, told, guide, seed = sharding.on_all((network, log_snrs, told, guide, jnp.uint32(seed)))
    for first in range(0, num_images, size):
        index = np.arange(first, first + size) % num_images  # the last batch repeats the first images
        chosen = None if labels is None else np.asarray(labels, np.int32)[index]
        rows = sharding.rows_over_all((index, chosen))
        made, finite = sharding.collected(draw(network, log_snrs, told, guide, seed, *rows, method=method))
        if not finite.all():
            raise ValueError(
                f"{(~finite).sum()} of {size} images have values that are not finite, at log-SNRs from "
                f"{float(log_snrs[0]):.4g} to {float(log_snrs[-1]):.4g}; none is kept"
            )
        images.append(made)
        if progress:
            progress(min(size, num_images - first))
    return np.concatenate(images)[:num_images]


def cycled_labels(num_classes, num_images, chosen=()):
    """Labels int32 [num_images] that cycle through `chosen`, or all classes; None for a network without classes."""
    return np.resize(np.asarray(chosen or range(num_classes), np.int32), num_images) if num_classes else None
