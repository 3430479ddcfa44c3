"""One training step over all devices of all processes, by `pmap`, by `jit` with sharded arrays, or by `fsdp`, with equal results.

A step is a pure function `step(state, batch, axis) -> (state, metrics)` of one device's share of the batch. Under pmap `axis`
names the devices over which the step has to average; under jit the step sees the whole batch and axis is None. fsdp is jit with
the state's arrays split over the devices, each of which holds its share (Rajbhandari et al. 2020, stage 3): XLA gathers a
layer's parameters when they are used. The state is never stacked: tests, checkpoints and sampling see one and the same pytree.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"
KINDS = ("pmap", "jit", "fsdp")
SPLIT_FROM = 2**10  # elements below which an array is not worth splitting


def mean(tree, axis):
    """The mean over devices of per-device means."""
    return tree if axis is None else jax.lax.pmean(tree, axis)


def smallest(value, axis):
    """The minimum over devices of per-device values."""
    return value if axis is None else jax.lax.pmin(value, axis)


def scan(body, carry, inputs):
    """`jax.lax.scan` for training computations, but unrolled on CPU and for a single turn.

    On CPU XLA runs the gradients of convolutions inside a loop on one thread, 10 times slower (measured on jaxlib 0.10.2).
    """
    turns = len(jax.tree.leaves(inputs)[0])
    if jax.default_backend() != "cpu" and turns > 1:
        return jax.lax.scan(body, carry, inputs)
    outputs = []
    for turn in range(turns):
        carry, output = body(carry, jax.tree.map(lambda a, turn=turn: a[turn], inputs))
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def data_parallel(step, kind, devices=None):
    """The compiled `run(state, batch) -> (state, metrics)`; the state passed in is donated (it must not be used again).

    batch    arrays [steps, B, ...] on the host: B examples of this process for each of `steps` consecutive steps, which run in
             one dispatch; B is a multiple of the number of local devices
    metrics  arrays [steps, ...]
    devices  of all processes; default: all
    """
    devices = devices or jax.devices()
    compiled, shard = compilable(step, kind, devices)

    def run(state, batch):
        # A state placed elsewhere has another type for JAX than the one the step returns, and would compile it again. All its
        # arrays are where the first one is.
        first = jax.tree.leaves(state)[0]
        if getattr(first, "sharding", None) != _sharding(first.shape, kind, devices):
            state = placed(state, kind, devices)
        return compiled(state, jax.tree.map(shard, batch))

    return run


def compilable(step, kind, devices):
    """(the jitted function of a placed state and a sharded batch, the function that shards an array of a batch)."""

    def run_steps(state, batch, axis):
        return scan(functools.partial(step, axis=axis), state, batch)

    if kind == "pmap":
        count = len(_local(devices))
        shard = lambda array: array.reshape(len(array), count, -1, *array.shape[2:])  # contiguous, in the order of the batch
        return jax.pmap(
            functools.partial(run_steps, axis=AXIS), AXIS, in_axes=(None, 1), out_axes=None, devices=devices, donate_argnums=0
        ), shard

    def sharded(state, batch):
        state, metrics = run_steps(state, batch, None)
        where = jax.tree.map(lambda leaf: _sharding(leaf.shape, kind, devices), state)
        return jax.lax.with_sharding_constraint((state, metrics), (where, jax.tree.map(lambda _: _whole(devices), metrics)))

    rows = NamedSharding(_mesh(devices), PartitionSpec(None, AXIS))
    return jax.jit(sharded, donate_argnums=0), functools.partial(jax.make_array_from_process_local_data, rows)


def placed(tree, kind, devices=None):
    """A state or parameters (numpy or JAX arrays) moved to where a step of that kind needs them; arrays already there stay.

    pmap  whole on each device of this process
    jit   whole on each device of all processes
    fsdp  split along the longest axis that the number of devices divides, if there is one
    """
    devices = devices or jax.devices()

    def place(leaf):
        sharding = _sharding(np.shape(leaf), kind, devices)
        return leaf if getattr(leaf, "sharding", None) == sharding else _put(leaf, sharding)

    return jax.tree.map(place, tree)


def made(make, kind):
    """make() compiled as one program. Under fsdp its arrays are split from the start and need not fit on one device."""
    if kind != "fsdp":
        return jax.jit(make)()
    where = jax.tree.map(lambda leaf: _sharding(leaf.shape, kind, jax.devices()), jax.eval_shape(make))
    return jax.jit(make, out_shardings=where)()


def at_rest(params, kind):
    """Parameters (numpy or JAX arrays) placed for sampling and evaluating a run of that kind: on all devices."""
    return placed(params, "fsdp" if kind == "fsdp" else "jit")


def _sharding(shape, kind, devices):
    if kind == "pmap":
        return _whole(_local(devices))
    if kind == "jit" or np.prod(shape) < SPLIT_FROM:
        return _whole(devices)
    fitting = [axis for axis in range(len(shape)) if shape[axis] % len(devices) == 0]
    if not fitting:
        return _whole(devices)
    longest = max(fitting, key=lambda axis: shape[axis])
    return NamedSharding(_mesh(devices), PartitionSpec(*[AXIS if axis == longest else None for axis in range(len(shape))]))


# -- computations on batches of rows, outside training: sampling, evaluation


def on_all(tree):
    """The arrays, whole on each device of all processes; those already split over them (fsdp) unchanged."""
    devices = jax.devices()
    over_all = lambda leaf: getattr(getattr(leaf, "sharding", None), "device_set", None) == set(devices)
    return jax.tree.map(lambda leaf: leaf if over_all(leaf) else _put(leaf, _whole(devices)), tree)


def rows_over_all(tree):
    """Arrays [B, ...] on the host, the same in every process, with their rows split over the devices of all processes.

    B is a multiple of the number of devices.
    """
    shares = NamedSharding(_mesh(jax.devices()), PartitionSpec(AXIS))
    return jax.tree.map(lambda leaf: _put(leaf, shares), tree)


def collected(tree):
    """Arrays split over devices as whole numpy arrays, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def whole(leaf):
    """An array of a state, wherever it is, as a numpy array. All processes must call it together, as `collected`."""
    return np.asarray(leaf) if getattr(leaf, "is_fully_replicated", True) else np.asarray(collected(leaf))


def as_global(tree):
    """Arrays whole on each device of this process, viewed (not copied) as arrays on all processes' devices; others unchanged."""
    everywhere = _whole(jax.devices())

    def view(leaf):
        if not isinstance(leaf, jax.Array) or not leaf.is_fully_addressable:
            return leaf
        parts = [shard.data for shard in placed(leaf, "pmap").addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, everywhere, parts)

    return jax.tree.map(view, tree)


def _put(leaf, sharding):
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    # Not device_put, which would first compare the values of all processes.
    host = whole(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _mesh(devices):
    return _cached_mesh(tuple(devices))


@functools.cache
def _cached_mesh(devices):
    return Mesh(np.array(devices), (AXIS,))


def _whole(devices):
    return NamedSharding(_mesh(devices), PartitionSpec())


def _local(devices):
    return [device for device in devices if device.process_index == jax.process_index()]
