"""The network that a config describes. To add a kind of network, write its file and put it into NETWORKS."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from flax import nnx

from noisesched.models import conditioning, denoiser
from noisesched.models.dit import DiT
from noisesched.models.unet import UNet, check_size
from noisesched.models.unet2d import UNet2D


def make_conditioning(config, translation=None):
    """How the network is told the noise level; `translation` overrides the config's (levels to timesteps)."""
    given, table = config.conditioning, ()
    if given.kind == "timestep":
        if not (given.table and given.table.table):
            raise ValueError(
                f"conditioning.table='{given.table or ''}' must be a table, such as 'discrete(linear, num_steps=1000)'"
            )
        table = tuple(given.table.table.log_snr.tolist())
    elif given.table:
        raise ValueError(
            f"conditioning.table='{given.table}' is only for conditioning.kind='timestep', not {given.kind!r}: leave it empty, ''"
        )
    width = config.model.width if NETWORKS[config.model.kind].features else None
    return conditioning.Conditioning(given.kind, width, table, translation or given.translation)


def make_denoiser(config, translation=None):
    """A fresh, untrained denoiser; its parameters are a function of config.seed."""
    return _denoiser(*_network(config, translation), config.seed)


def abstract_denoiser(config, translation=None):
    """(definition, shapes of the parameters): `denoiser.split` of a denoiser whose parameters are never computed. Cached: configs
    that differ only in other settings share one."""
    return _abstract_denoiser(*_network(config, translation))


def network(config, params, translation=None):
    """The `denoiser.Network` of a config and its parameters."""
    definition, _ = abstract_denoiser(config, translation)
    shape = (config.data.image_size, config.data.image_size, config.data.channels)
    given, floats = config.model, config.data.dtype != "uint8"
    return denoiser.Network(params, definition, given.prediction, shape, given.num_classes, config.noise_offset, floats)


def _network(config, translation):
    """Everything that a denoiser depends on, except the seed of its parameters."""
    told = make_conditioning(config, translation)
    return config.data.image_size, config.data.channels, config.model, told, config.weighting.learned


@functools.lru_cache(maxsize=64)
def _abstract_denoiser(*network):
    return denoiser.split(nnx.eval_shape(lambda: _denoiser(*network, seed=0)))


class Keys:
    """The keys of nnx.Rngs(seed), counted by a plain number. The count of nnx.Rngs is a variable: where a network is traced,
    every layer's key then costs time in proportion to what was traced before it."""

    def __init__(self, seed):
        self.key, self.count = jax.random.key(seed), 0

    def params(self):
        self.count += 1
        return jax.random.fold_in(self.key, self.count - 1)


def _denoiser(image_size, channels, model, told, uncertain, seed):
    kind = NETWORKS[model.kind]
    given = {name: getattr(model, name) for name in ("num_classes", "dtype", *kind.takes)}
    given |= {"features": model.width} if kind.features else {}
    network = kind.make(image_size=image_size, channels=channels, rngs=Keys(seed), **given)
    return denoiser.Denoiser(network, told, model.prediction, denoiser.Uncertainty() if uncertain else None)


# -- the kinds of network


@dataclasses.dataclass(frozen=True)
class Network:
    """A kind of network, model.kind.

    make      makes a network, (z [B, H, W, C], told, labels, dropout_keys) -> [B, H, W, C], of the keywords image_size, channels,
              num_classes, dtype, rngs, what it `takes`, and `features`, how many it is told, if it is told any
    takes     the settings of `model` that it must have, beside those that all kinds have
    features  whether it is told model.width features of the noise level [B, width], or one number [B] (see `Conditioning`)
    """

    make: Callable
    takes: tuple[str, ...]
    features: bool


def _unet2d(image_size, channels, num_classes, dtype, rngs, architecture):
    architecture.check()
    check_size(image_size, len(architecture.block_out_channels))
    if architecture.class_embed_type is None:  # the last embedding may stand for "no label"
        rows = architecture.num_class_embeds or 0
        known = (rows, rows - 1) if rows > 1 else (rows,)
        if num_classes not in known:
            raise ValueError(f"num_classes={num_classes}, but architecture.num_class_embeds={rows}: choose {known[0]}")
    elif architecture.class_embed_type != "timestep" or not num_classes:
        raise ValueError(
            f"architecture.class_embed_type={architecture.class_embed_type!r} with num_classes={num_classes}: classes are told "
            "as whole numbers here, by an embedding of each or, with 'timestep', by the features of a timestep"
        )
    return UNet2D(architecture, channels, channels, dtype=dtype, rngs=rngs)


NETWORKS = {
    "unet": Network(UNet, ("width", "multipliers", "blocks", "attention", "heads", "dropout"), features=True),
    "dit": Network(DiT, ("width", "blocks", "heads", "patch"), features=True),
    "unet2d": Network(_unet2d, ("architecture",), features=False),
}
