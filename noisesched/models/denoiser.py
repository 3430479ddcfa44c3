"""A denoiser: (z, log_snr) -> x_hat. What its network outputs, and how it is told the noise level, are its private business."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from noisesched import diffusion
from noisesched.models.conditioning import Conditioning, angle

NO_IMAGE = "it predicts eps, from which no image follows where z is all noise"


class Uncertainty(nnx.Module):
    """The logarithm of the loss that is expected at a level, log_snr [B] -> [B], for the weighting "uncertain" (`loss`).

    A cosine series in the level's angle: smooth, and finite at both ends. It begins as 0, which changes nothing.
    """

    TERMS = 16

    def __init__(self):
        self.coefficients = nnx.Param(jnp.zeros(self.TERMS, jnp.float32))

    def __call__(self, log_snr):
        order = jnp.arange(self.TERMS, dtype=jnp.float32)
        return jnp.cos(jnp.pi * order[None] * angle(log_snr)[:, None]) @ self.coefficients[...]


class Denoiser(nnx.Module):
    """A network, what it is told of the noise level, and what it predicts ("eps", "x" or "v"). It holds no schedule.

    `unet`: a network of any kind. `uncertainty`: of its loss, for training with the weighting "uncertain"; None with others.
    Sampling does without.
    """

    def __init__(self, unet: nnx.Module, conditioning: Conditioning, prediction: str, uncertainty: Uncertainty | None = None):
        if prediction not in diffusion.PREDICTIONS:
            raise ValueError(f"unknown prediction {prediction!r}; known: {', '.join(diffusion.PREDICTIONS)}")
        self.unet, self.conditioning, self.prediction, self.uncertainty = unet, conditioning, prediction, uncertainty

    def output(self, z, log_snr, labels=None, dropout_keys=None):
        """The network's raw output, an estimate of `diffusion.target(prediction, ..)`: [B, H, W, C] float32."""
        return self.unet(z, self.conditioning(log_snr), labels, dropout_keys)

    def __call__(self, z, log_snr, labels=None, told=None):
        """z [B, H, W, C] at levels log_snr [B] -> x_hat [B, H, W, C]; finite at -inf unless it predicts eps.

        `told` [B]: the levels that the network is told, if they are not those of z (a mistake that one may want to measure).
        """
        output = self.output(z, log_snr if told is None else told, labels)
        return diffusion.x_from(self.prediction, output, z, log_snr)


@dataclasses.dataclass(frozen=True, eq=False)  # so that it may be jitted itself
class Network:
    """A denoiser with its parameters: a pytree of them, which may be an argument of jit, grad and `samplers.sample`."""

    params: Any
    definition: Any  # of the Denoiser: see `split`
    prediction: str
    shape: tuple[int, int, int]  # of an image, [H, W, C]
    num_classes: int
    noise_offset: float  # of the noise that sampling starts from
    floats: bool = False  # whether its images are floats, latents for example, and not of 8 bits

    def check(self, log_snrs):
        """Raises ValueError, in one line, for levels at which there is no estimate; `samplers.sample` asks first."""
        check_numbers(log_snrs)
        if self.prediction == "eps" and np.isneginf(log_snrs).any():
            raise ValueError(
                f"this network cannot be called at log-SNR -inf: {NO_IMAGE}; begin at a finite level, for example under "
                "'truncated(cosine, log_snr_min=-12, log_snr_max=20)'"
            )

    def __call__(self, z, log_snr, labels=None, told=None):
        """z [B, H, W, C], log_snr [B] or one number -> x_hat like z. labels int [B]; None for no label.

        `told`: see `Denoiser`. Raises ValueError for other shapes, and levels for which `check` does, if they are known.
        """
        z, log_snr = jnp.asarray(z), jnp.asarray(log_snr, jnp.float32)
        if not isinstance(log_snr, jax.core.Tracer):
            self.check(log_snr)
        if z.shape[-3:] != self.shape or z.ndim != 4:
            raise ValueError(f"z has shape {z.shape}; this network takes [B, {', '.join(map(str, self.shape))}]")
        if log_snr.shape not in ((), z.shape[:1]):
            raise ValueError(f"log_snr has shape {log_snr.shape}; give one number, or one for each of the {len(z)} images")
        if labels is None and self.num_classes:
            labels = jnp.full(len(z), self.num_classes)
        return _estimate(self, z, jnp.broadcast_to(log_snr, len(z)), labels, told)


jax.tree_util.register_dataclass(
    Network, ["params"], [field.name for field in dataclasses.fields(Network) if field.name != "params"]
)


def check_numbers(log_snrs):
    """Raises ValueError for a level that is not a number."""
    if np.isnan(log_snrs).any():
        raise ValueError("log_snr is nan: give the level of the noise in the image, from -inf (all noise) up")


@jax.jit
def _estimate(network, z, log_snr, labels, told):
    return merge(network.definition, network.params)(z, log_snr, labels, told)


def split(denoiser):
    """(definition, params): a static description, and the parameters as nested dictionaries of arrays with stable names.

    Plain dictionaries are what is trained, averaged and stored: they cost no time to pass through jit, and a checkpoint
    of them can be read by anything.
    """
    definition, state = nnx.split(denoiser, nnx.Param)
    return definition, nnx.to_pure_dict(state)


def merge(definition, params):
    """The denoiser of a definition and parameters: the inverse of `split`, also inside jit."""
    return nnx.merge(definition, params)


def num_parameters(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))
