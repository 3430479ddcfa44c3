"""A denoiser: (z, log_snr) -> x_hat. What its network outputs, and how it is told the noise level, are its private business."""

import jax
import jax.numpy as jnp
from flax import nnx

from noisesched import diffusion
from noisesched.models.conditioning import Conditioning, angle


class Uncertainty(nnx.Module):
    """The logarithm of the loss that is expected at a level, log_snr [B] -> [B], for the weighting "uncertain" (`loss`).

    A cosine series in the level's angle: smooth, and finite at both ends. It begins as 0, which changes nothing.
    """

    TERMS = 16

    def __init__(self):
        self.coefficients = nnx.Param(jnp.zeros(self.TERMS))

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
