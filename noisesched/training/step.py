"""The training step: state, optimizer, loss, and the pure function that takes one step."""

import typing

import jax
import jax.numpy as jnp
import optax

from noisesched.loss import draw, errors
from noisesched.models import build, denoiser
from noisesched.runtime import pictures, sharding


class State(typing.NamedTuple):
    """All that training changes. `ema` is the exponential moving average of `params`, which samples are made with."""

    step: typing.Any  # int32, steps done
    params: typing.Any
    ema: typing.Any
    opt_state: typing.Any


def learning_rate(config):
    """Step -> learning rate: linear warm-up to the peak, then constant, linear or cosine decay to 0 at the last step."""
    peak, warmup, steps = config.optimizer.learning_rate, config.optimizer.warmup_steps, config.training.num_steps
    left = max(steps - warmup, 1)
    decay = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, left),
        "cosine": lambda: optax.cosine_decay_schedule(peak, left),
    }[config.optimizer.decay]()
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), decay], [warmup])


def make_optimizer(config):
    """AdamW after clipping of the gradient's global norm (clip_norm = 0: no clipping)."""
    given = config.optimizer
    clip = optax.clip_by_global_norm(given.clip_norm) if given.clip_norm else optax.identity()
    adam = optax.adamw(learning_rate(config), b1=given.b1, b2=given.b2, weight_decay=given.weight_decay)
    return optax.chain(clip, adam)


def init(config):
    """(definition of the network, initial State), a function of config.seed."""
    definition, _ = build.abstract_denoiser(config)

    def state():
        _, params = denoiser.split(build.make_denoiser(config))
        return State(jnp.zeros((), jnp.int32), params, params, make_optimizer(config).init(params))

    return definition, sharding.made(state, config.training.parallel)


def make_loss(config, definition):
    """(params, batch, key of the step) -> mean loss, (losses [B], log_snr [B]). batch: image, label, index: [B, ..]."""
    model = config.model

    def loss(params, batch, key):
        images = pictures.as_x(batch["image"])
        random = draw(key, batch["index"], config.training.batch_size, images.shape[1:], config.noise_offset)
        labels = None
        if model.num_classes:
            labels = jnp.where(random.label_draw < model.label_dropout, model.num_classes, batch["label"])
        network = denoiser.merge(definition, params)
        losses, log_snr = errors(network, images, labels, random, config.schedule, config.weighting)
        return losses.mean(), (losses, log_snr)

    return loss


def make_step(config, definition):
    """The training step, a pure function (state, batch, axis) -> (state, metrics): see `sharding.data_parallel`.

    With training.skip_nonfinite, a step whose loss or gradient norm is not finite counts as a step and changes nothing else. The
    optimizer has then counted fewer updates than there were steps, so that the state itself says how many were skipped so far.
    """
    gradient = jax.value_and_grad(make_loss(config, definition), has_aux=True)
    optimizer, decay, parts = make_optimizer(config), config.training.ema_decay, config.training.accumulate
    skipping = config.training.skip_nonfinite > 0

    def accumulated(params, batch, key):
        if parts == 1:
            return gradient(params, batch, key)

        def add(total, part):
            (loss, aux), grads = gradient(params, part, key)
            return jax.tree.map(lambda a, b: a + b / parts, total, (loss, grads)), aux

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        # Every parts-th example, so that each part has the same number of them from every device of a sharded batch.
        split = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)
        (loss, grads), aux = sharding.scan(add, zero, split)
        return (loss, aux), grads

    def step(state, batch, axis):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        (loss, (losses, log_snr)), grads = accumulated(state.params, batch, key)
        loss, grads = sharding.mean((loss, grads), axis)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Early averages forget faster, or they would long remember the initial parameters.
        keep = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, state.ema, params)
        bad, norm = ~jnp.isfinite(losses), optax.tree.norm(grads)
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "bad_log_snr_min": sharding.smallest(jnp.where(bad, log_snr, jnp.inf).min(), axis),
            "bad_log_snr_max": -sharding.smallest(-jnp.where(bad, log_snr, -jnp.inf).max(), axis),
        }
        new = State(state.step + 1, params, ema, opt_state)
        if skipping:
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)  # of the means over devices: the same on all
            kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
            new = kept._replace(step=new.step)
            metrics["skipped"] = new.step - updates_done(new.opt_state)
        return new, metrics

    return step


def with_stop(step):
    """`step`, with batches that also hold "stop" [B], whether their process was asked to stop: then all learn it at one step."""

    def stepped(state, batch, axis):
        stop = batch.pop("stop")
        state, metrics = step(state, batch, axis)
        return state, metrics | {"stop": -sharding.smallest(-stop.max(), axis)}

    return stepped


def updates_done(opt_state):
    """How many updates Adam has made: its own count, int32."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState))
    return next(node.count for node in nodes if isinstance(node, optax.ScaleByAdamState))
