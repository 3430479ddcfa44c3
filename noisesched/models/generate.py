"""From a denoiser and levels to images."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from noisesched import guidance, loss, samplers, schedules
from noisesched.models import denoiser
from noisesched.runtime import pictures, sharding

BATCH = 256  # images per dispatch and device


def make_sampler(config, definition, method):
    """The compiled `draw(params, log_snrs [N], told [N] or None, guide, seed, index [B], labels [B] or None)` -> images uint8
    [B, H, W, C], finite [B].

    Image i is a function of (params, log_snrs, told, guide, seed, i, its label), not of the batch it is made in. One
    compilation serves all schedules of a length, and all numbers of one kind of guidance. `told`: the levels that the network
    is told, as from `told_raw`; None for the true ones. `guide`: a Guidance, or None.
    """
    sampler = samplers.make(method)
    shape = (config.data.image_size, config.data.image_size, config.data.channels)

    @jax.jit
    def draw(params, log_snrs, told, guide, seed, index, labels):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)
        noise_keys, step_keys = jax.vmap(lambda key: jax.random.split(key), out_axes=1)(keys)
        z = jax.vmap(lambda key: loss.noise(key, shape, config.noise_offset))(noise_keys)
        denoise = guidance.guided(denoiser.merge(definition, params), guide, labels, config.model.num_classes)
        x = samplers.sample(denoise, step_keys, z, log_snrs, sampler, told=told)
        return pictures.unscale(x), jnp.isfinite(x).all(axis=(1, 2, 3))

    return draw


def told_raw(config, n, spacing="trailing"):
    """A common mistake: the schedule is changed, but the network is still told the timesteps of its own table. Returns the
    levels [n] of those steps, spaced as usual, float32; more levels than steps repeat them."""
    steps = config.conditioning.table
    levels = schedules.levels(steps, n, spacing) if n <= steps.table.num_steps else steps(schedules.positions(n, spacing))
    return np.asarray(levels, np.float32)


def generate(draw, params, log_snrs, num_images, *, seed, told=None, guide=None, labels=None, progress=None):
    """Images uint8 [num_images, H, W, C], in equal batches over the devices of all processes, all of which must call this.

    Raises ValueError, and returns no image, if a value is not finite.
    """
    devices = jax.device_count()
    size = math.ceil(min(num_images, BATCH * devices) / devices) * devices
    params, log_snrs, told, guide, seed = sharding.on_all((params, log_snrs, told, guide, jnp.uint32(seed)))
    images = []
    for first in range(0, num_images, size):
        index = np.arange(first, first + size) % num_images  # the last batch repeats the first images
        chosen = None if labels is None else np.asarray(labels, np.int32)[index]
        rows = sharding.rows_over_all((index, chosen))
        made, finite = sharding.collected(draw(params, log_snrs, told, guide, seed, *rows))
        if not finite.all():
            raise ValueError(
                f"{(~finite).sum()} of {size} images have values that are not finite, at log-SNRs from "
                f"{float(log_snrs[0]):.4g} to {float(log_snrs[-1]):.4g}; none is kept"
            )
        images.append(made)
        if progress:
            progress(min(size, num_images - first))
    return np.concatenate(images)[:num_images]


def cycled_labels(config, num_images, chosen=()):
    """Labels int32 [num_images] that cycle through `chosen`, or all classes; None for a network without classes."""
    if not config.model.num_classes:
        return None
    return np.resize(np.asarray(chosen or range(config.model.num_classes), np.int32), num_images)
