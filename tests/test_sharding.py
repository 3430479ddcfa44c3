"""The training step gives the same numbers however it is spread over devices, parts and dispatches; it is compiled once."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from noisesched.models import denoiser
from noisesched.runtime import sharding
from noisesched.training import loop
from noisesched.training import step as training_step

STEPS, BATCH, SIZE, CLASSES = 4, 32, 4, 3
# Everything that could depend on the position of an example in the batch: dropout, labels and their dropout.
CHANGES = {
    "data.image_size": SIZE,
    "model.dropout": 0.2,
    "model.num_classes": CLASSES,
    "model.label_dropout": 0.3,
    "training.batch_size": BATCH,
    "training.num_steps": STEPS,
    "training.checkpoint_every": STEPS,
    "training.log_every": STEPS,
    "training.ema_decay": 0.9,
}


MERGE, MAKE_OPTIMIZER, MAKE_LOSS = denoiser.merge, training_step.make_optimizer, training_step.make_loss


class TinyNetwork:
    """Stands for a UNet: it compiles at once, and uses all that a UNet is given."""

    prediction = "v"

    def __init__(self, params):
        self.params = params

    @staticmethod
    def initial():
        random = np.random.default_rng(1)
        shapes = {"weights": (SIZE * SIZE, SIZE * SIZE), "level": (SIZE * SIZE,), "classes": (CLASSES + 1, SIZE * SIZE)}
        return {name: jnp.asarray(random.normal(0, 0.3, shape), jnp.float32) for name, shape in shapes.items()}

    def output(self, z, log_snr, labels, dropout_keys):
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.8, (SIZE * SIZE,)))(dropout_keys)
        level = jnp.tanh(log_snr)[:, None] * self.params["level"][None]
        hidden = jnp.tanh(z.reshape(-1, SIZE * SIZE) @ self.params["weights"] + level) * keep
        return (hidden + self.params["classes"][labels]).reshape(z.shape)


def plain(config):
    """An optimizer in which a gradient of N times its size shows (Adam divides it out)."""
    return optax.sgd(0.1, momentum=0.9)


def initial(params):
    return training_step.State(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), plain(None).init(params))


def batches():
    random = np.random.default_rng(0)
    return [
        {
            "image": random.integers(0, 256, (BATCH, SIZE, SIZE, 1), np.uint8),
            "label": random.integers(0, CLASSES, BATCH, np.int32),
            "index": np.arange(BATCH, dtype=np.int32),
        }
        for _ in range(STEPS)
    ]


def dispatched(step, state, kind, num_devices, chunk):
    """All steps through `data_parallel`: (metrics [STEPS], state, traces of the step, compilations after the first dispatch)."""
    traces, metrics, made, later = [], [], batches(), CompilationCount()

    def counted(state, batch, axis):
        traces.append(1)
        return step(state, batch, axis)

    run = sharding.data_parallel(counted, kind, jax.devices()[:num_devices])
    for first in range(0, STEPS, chunk):
        with later if first else CompilationCount():
            state, results = run(state, loop.stacked(made[first : first + chunk]))
            metrics.append(jax.block_until_ready(results))
    return {name: np.concatenate([m[name] for m in metrics]) for name in metrics[0]}, state, len(traces), later.count


class CompilationCount(logging.Handler):
    """Counts XLA's compilations inside `with`."""

    count = 0

    def emit(self, record):
        self.count += record.getMessage().startswith("Finished XLA compilation")

    def __enter__(self):
        self.was = jax.config.jax_log_compiles, logging.getLogger("jax").propagate
        jax.config.update("jax_log_compiles", True)
        logging.getLogger("jax").propagate = False
        logging.getLogger("jax").addHandler(self)

    def __exit__(self, *exception):
        logging.getLogger("jax").removeHandler(self)
        logging.getLogger("jax").propagate = self.was[1]
        jax.config.update("jax_log_compiles", self.was[0])


def simple(step, state):
    """The same steps with nothing of `sharding`: one jitted step after the other, on one device."""
    jitted, metrics = jax.jit(lambda state, batch: step(state, batch, None)), []
    for batch in batches():
        state, results = jitted(state, batch)
        metrics.append(results)
    return {name: np.stack([m[name] for m in metrics]) for name in metrics[0]}, state


def assert_same(got, want):
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-6, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def tiny_step(small):
    """`tiny_step(accumulate)`: the training step of the tiny network under plain gradient descent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step, "make_optimizer", plain)
        patch.setattr(denoiser, "merge", lambda definition, params: TinyNetwork(params))
        yield lambda accumulate=1: training_step.make_step(small(CHANGES | {"training.accumulate": accumulate}), None)


@pytest.fixture(scope="module")
def wanted(tiny_step):
    """(metrics, state) of the simple loop."""
    return simple(tiny_step(), initial(TinyNetwork.initial()))


@pytest.mark.parametrize(
    ("kind", "devices", "accumulate", "chunk"),
    [
        ("pmap", 1, 1, 1),
        ("pmap", 8, 1, 1),
        ("jit", 1, 1, 1),
        ("jit", 8, 1, 1),
        ("jit", 8, 4, 1),
        ("pmap", 8, 2, 2),
        ("jit", 8, 1, 4),
        ("pmap", 1, 4, 1),
        ("fsdp", 8, 2, 2),
    ],
)
def test_same_numbers_and_one_compilation(tiny_step, wanted, kind, devices, accumulate, chunk):
    metrics, state, traces, compilations = dispatched(tiny_step(accumulate), initial(TinyNetwork.initial()), kind, devices, chunk)
    assert_same((metrics, state), wanted)
    # The first state comes from a single device and later ones from the step, donated: no reason to compile it again.
    assert traces == chunk and compilations == 0


def poisoned(config, definition):
    """The loss, each example's multiplied by a number of the batch: NaN spoils it and its gradient."""

    def loss(params, batch, key):
        _, (losses, log_snr) = MAKE_LOSS(config, definition)(params, batch, key)
        return (losses * batch["poison"]).mean(), (losses * batch["poison"], log_snr)

    return loss


@pytest.mark.parametrize(
    ("kind", "devices", "accumulate", "chunk", "bad"),
    [("pmap", 8, 2, 1, (0, 2)), ("jit", 8, 1, 2, (2, 3)), ("pmap", 1, 1, 2, (1,))],
)
def test_a_skipped_update_changes_nothing(small, monkeypatch, kind, devices, accumulate, chunk, bad):
    """One example of one device spoils a step: all that is left of it is that it counts. Bit for bit what the same compiled step
    makes of the other batches alone; where a dispatch mixes good and bad steps, the same to float tolerance."""
    monkeypatch.setattr(training_step, "make_optimizer", MAKE_OPTIMIZER)
    monkeypatch.setattr(training_step, "make_loss", poisoned)
    monkeypatch.setattr(denoiser, "merge", lambda definition, params: TinyNetwork(params))
    config = small(CHANGES | {"training.accumulate": accumulate, "training.skip_nonfinite": 2, "optimizer.decay": "linear"})
    step, params = training_step.make_step(config, None), jax.device_get(TinyNetwork.initial())
    poison = np.ones((STEPS, BATCH), np.float32)
    poison[bad, 5] = np.nan
    made = [batch | {"poison": row} for batch, row in zip(batches(), poison, strict=True)]

    def fresh():
        return training_step.State(np.int32(0), params, params, jax.device_get(MAKE_OPTIMIZER(config).init(params)))

    with monkeypatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:devices])
        run = sharding.data_parallel(step, kind)
    state, metrics = fresh(), []
    for first in range(0, STEPS, chunk):
        state, results = run(state, loop.stacked(made[first : first + chunk]))
        metrics.append(results)
    metrics = {name: np.concatenate([m[name] for m in metrics]) for name in metrics[0]}
    np.testing.assert_array_equal(np.isnan(metrics["loss"]), np.isin(np.arange(STEPS), bad))
    np.testing.assert_array_equal(np.isnan(metrics["grad_norm"]), np.isin(np.arange(STEPS), bad))
    np.testing.assert_array_equal(metrics["skipped"], np.cumsum(np.isin(np.arange(STEPS), bad)))

    whole = len(bad) % chunk == 0  # dispatches that are all bad
    wanted, length = fresh(), chunk if whole else 1
    for first in range(0, STEPS, length):
        if first in bad:
            wanted = wanted._replace(step=wanted.step + length)
        else:
            wanted, _ = run(wanted, loop.stacked(made[first : first + length]))
    assert int(state.step) == STEPS and int(training_step.updates_done(state.opt_state)) == STEPS - len(bad)
    if whole:
        jax.tree.map(np.testing.assert_array_equal, state, wanted)
    else:
        assert_same(state, wanted)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, params)
    assert min(jax.tree.leaves(moved)) > 1e-5  # the other updates were made


def test_the_comparison_above_would_show_a_fault(tiny_step, wanted):
    """Parameters that differ by a thousandth, or other noise and dropout, are outside its tolerance; gradients are not tiny."""
    first = initial(TinyNetwork.initial())
    jitted = jax.jit(tiny_step(), static_argnums=2)
    for other in (first._replace(params=jax.tree.map(lambda a: 1.001 * a, first.params)), first._replace(step=jnp.int32(1))):
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(jitted(other, batches()[0], None)[1]["loss"], wanted[0]["loss"][0], rtol=1e-4)
    assert (wanted[0]["grad_norm"] > 0.1).all() and len(set(wanted[0]["loss"].tolist())) == STEPS


@pytest.fixture(autouse=True)
def quickly_compiled():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_same_numbers_for_the_unet(small, monkeypatch, quickly_compiled):
    monkeypatch.setattr(training_step, "make_optimizer", plain)
    monkeypatch.setattr(denoiser, "merge", MERGE)
    config = small(CHANGES | {"model.dropout": 0.0})  # which the tiny network has, and which would take long to compile
    definition, state = training_step.init(config)
    leaves, structure = jax.tree.flatten(state.params)  # with its zeros, little of the network would have a gradient
    keys = jax.random.split(jax.random.key(7), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(structure, moved)
    step = training_step.make_step(config, definition)
    wanted = simple(step, initial(params))
    metrics, state, traces, compilations = dispatched(step, initial(params), "pmap", 8, 1)
    assert_same((metrics, state), wanted)
    assert traces == 1 and compilations == 0


def test_accumulation_shares_every_part_among_all_devices(tiny_step):
    """Under sharded jit a part must not lie on a few devices: the only communication is that of sums."""
    jax.config.update("jax_disable_most_optimizations", False)  # the program as it is compiled for training
    compiled, shard = sharding.compilable(tiny_step(4), "jit", jax.devices())
    state = sharding.placed(initial(TinyNetwork.initial()), "jit")
    program = compiled.lower(state, jax.tree.map(shard, loop.stacked(batches()[:1]))).compile().as_text()
    assert "all-reduce" in program
    assert not re.search(r"collective-permute|all-gather|all-to-all", program)
    assert {int(n) for n in re.findall(rf"f32\[(\d+),{SIZE},{SIZE},1\]", program)} == {BATCH // 8 // 4}


@pytest.mark.parametrize("kind", sharding.KINDS)
def test_mean_and_smallest_are_over_all_devices(kind):
    def step(state, batch, axis):
        return state + 1, {"mean": sharding.mean(batch["a"].mean(), axis), "least": sharding.smallest(batch["a"].min(), axis)}

    values = np.arange(48, dtype=np.float32).reshape(3, 16)[:, ::-1].copy()  # 3 steps of a batch of 16
    state, metrics = sharding.data_parallel(step, kind)(jnp.zeros((), jnp.int32), {"a": values})
    assert state == 3 and state.shape == ()
    np.testing.assert_allclose(metrics["mean"], values.mean(1))
    np.testing.assert_allclose(metrics["least"], values.min(1))


@pytest.mark.parametrize("kind", sharding.KINDS)
def test_the_state_is_donated(kind):
    run = sharding.data_parallel(lambda state, batch, axis: (state + sharding.mean(batch["a"].mean(), axis), {}), kind)
    batch = {"a": np.ones((1, 8), np.float32)}
    first, _ = run(jnp.zeros(4), batch)
    second, _ = run(first, batch)
    assert first.is_deleted() and not second.is_deleted()
    np.testing.assert_array_equal(second, 2 * np.ones(4))


def test_scan_is_jaxs_scan():
    body = lambda carry, x: (carry * 0.9 + x["a"], {"twice": 2 * carry})
    inputs = {"a": jnp.arange(5.0)}
    ours, theirs = sharding.scan(body, jnp.ones(()), inputs), jax.lax.scan(body, jnp.ones(()), inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


@pytest.mark.parametrize("kind", sharding.KINDS)
def test_a_state_is_made_the_same_and_lies_where_the_step_has_it(kind, monkeypatch):
    def make():
        key = jax.random.key(0)
        return {"a": jax.random.normal(key, (64, 96)), "b": jnp.zeros(3), "c": jax.random.normal(key, (3, 3, 64, 64)) * 0.1}

    state = sharding.made(make, kind)
    jax.tree.map(np.testing.assert_array_equal, state, jax.jit(make)())
    if kind == "fsdp":  # at no time whole on a device, which may be too small for it
        monkeypatch.setattr(sharding, "_put", None)
        sharding.placed(state, kind)
        assert state["a"].addressable_shards[0].data.size == state["a"].size // len(jax.devices())
