"""One training step over all local devices: `pmap`, or `jit` with sharded arrays. Both give the same numbers.

A step is a pure function `step(state, batch, axis) -> (state, metrics)` of one device's share of the batch. Under pmap,
`axis` names the devices, over which the step averages what it must; under jit the step sees the whole batch, and axis is None.
The state is never stacked: it is one and the same pytree for tests, checkpoints and sampling.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"


def mean(tree, axis):
    """The mean over devices of per-device means."""
    return tree if axis is None else jax.lax.pmean(tree, axis)


def smallest(value, axis):
    """The least over devices of per-device values."""
    return value if axis is None else jax.lax.pmin(value, axis)


def scan(body, carry, inputs):
    """`jax.lax.scan` of training computations; a single turn, and any number on CPU, written out instead: there XLA runs
    the gradients of convolutions inside a loop on one thread, 10 times slower, measured on jaxlib 0.10.2."""
    turns = len(jax.tree.leaves(inputs)[0])
    if jax.default_backend() != "cpu" and turns > 1:
        return jax.lax.scan(body, carry, inputs)
    outputs = []
    for turn in range(turns):
        carry, output = body(carry, jax.tree.map(lambda a, turn=turn: a[turn], inputs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def data_parallel(step, kind):
    """The compiled `run(state, batch) -> (state, metrics)`; the state passed in is donated (it must not be used again).

    batch: arrays [steps, B, ...] on the host, B examples of this process for each of `steps` consecutive steps, which
    run in one dispatch; B must be a multiple of the number of local devices. metrics: arrays [steps, ...].
    """
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), (AXIS,))
    whole, shares = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, AXIS))

    def run_steps(state, batch, axis):
        return scan(functools.partial(step, axis=axis), state, batch)

    if kind == "pmap":
        compiled = jax.pmap(functools.partial(run_steps, axis=AXIS), AXIS, in_axes=(None, 1), out_axes=None,
                            devices=devices, donate_argnums=0)  # fmt: skip
        split = functools.partial(_split, count=len(devices))
    else:
        compiled = jax.jit(functools.partial(run_steps, axis=None), in_shardings=(whole, shares),
                           out_shardings=whole, donate_argnums=0)  # fmt: skip
        split = lambda array: array  # noqa: E731

    def run(state, batch):
        # JAX takes a state from the host or from a single device for another type than what the step returns, and would
        # trace and compile the step again in the second call.
        if getattr(jax.tree.leaves(state)[0], "sharding", None) != whole:
            state = jax.device_put(state, whole)
        return compiled(state, jax.tree.map(split, batch))

    return run


def _split(array, count):
    """[steps, B, ...] -> [steps, devices, B / devices, ...]: contiguous shares, in the order of the batch."""
    return array.reshape(array.shape[0], count, array.shape[1] // count, *array.shape[2:])
