"""Training: one network, told the noise level, on levels drawn by a schedule.

Everything random in step s is a function of (seed, s, position in the global batch), and the batch of step s is a function of
(seed, s). So a run may be killed at any moment and resumed from its last checkpoint, to bit-identical parameters, and its
losses do not depend on the number of devices.
"""

import contextlib
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from noisesched import claims, cluster, data, denoiser, objective, parallel, sample, schedules, vitals
from noisesched import config as configuration
from noisesched.checkpoints import NETWORK, Checkpoints
from noisesched.files import writing
from noisesched.pictures import grid, write_png
from noisesched.recorder import Recorder, TrainingStopped
from noisesched.signals import Preempted, Signals
from noisesched.workdir import Metrics, Unwritten, Workdir, differences

JUDGED = 1024  # held-out images by which checkpoints are told the best
# What a run cannot change on its way, and why.
FIXED = {
    **dict.fromkeys(NETWORK, "the parameters are those of another network"),
    **dict.fromkeys(("data.name", "data.split", "data.image_size", "data.channels"), "it was trained on other images"),
    "weighting": "it was trained for another loss",
    "noise_offset": "samples start from the noise that was trained with",
    "training.best_split": "the best of its checkpoints were found with other images",
    "seed": "it tells a run from others, and its noise was drawn by it",
}


class State(typing.NamedTuple):
    """All that training changes. `ema` is the exponential moving average of `params`, which samples are made with."""

    step: typing.Any  # int32, steps done
    params: typing.Any
    ema: typing.Any
    opt_state: typing.Any


# -- the step

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
    definition, _ = configuration.abstract_denoiser(config)

    def state():
        _, params = denoiser.split(configuration.make_denoiser(config))
        return State(jnp.zeros((), jnp.int32), params, params, make_optimizer(config).init(params))

    return definition, parallel.made(state, config.training.parallel)


def make_loss(config, definition):
    """(params, batch, key of the step) -> mean loss, (losses [B], log_snr [B]). batch: image uint8, label, index: [B, ..]."""
    schedule, log_weight = schedules.make(config.schedule), objective.make_weighting(config.weighting)
    model = config.model

    def loss(params, batch, key):
        images = data.scale(batch["image"])
        random = objective.draw(key, batch["index"], config.training.batch_size, images.shape[1:], config.noise_offset)
        labels = None
        if model.num_classes:
            labels = jnp.where(random.label_draw < model.label_dropout, model.num_classes, batch["label"])
        network = denoiser.merge(definition, params)
        losses, log_snr = objective.errors(network, images, labels, random, schedule, log_weight)
        return losses.mean(), (losses, log_snr)

    return loss


def make_step(config, definition):
    """The training step, a pure function (state, batch, axis) -> (state, metrics): see `parallel.data_parallel`.

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
        (loss, grads), aux = parallel.scan(add, zero, split)
        return (loss, aux), grads

    def step(state, batch, axis):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        (loss, (losses, log_snr)), grads = accumulated(state.params, batch, key)
        loss, grads = parallel.mean((loss, grads), axis)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Early averages forget faster, or they would long remember the initial parameters.
        keep = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, state.ema, params)
        bad, norm = ~jnp.isfinite(losses), optax.tree.norm(grads)
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "bad_log_snr_min": parallel.smallest(jnp.where(bad, log_snr, jnp.inf).min(), axis),
            "bad_log_snr_max": -parallel.smallest(-jnp.where(bad, log_snr, -jnp.inf).max(), axis),
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
        return state, metrics | {"stop": -parallel.smallest(-stop.max(), axis)}

    return stepped


def updates_done(opt_state):
    """How many updates Adam has made: its own count, int32."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState))
    return next(node.count for node in nodes if isinstance(node, optax.ScaleByAdamState))


# -- the program

def train(config, directory, say=tqdm.write, profile=0, accept_changes=False):
    """Trains the run in `directory` to config.training.num_steps, from its last checkpoint if it has one.

    All processes of a job call it alike; the first one logs and writes, but for the checkpoints, which all write.
    `profile`: how many steps the first traces, into `directory`/profile. `accept_changes`: go on with a run of another
    configuration, if it may differ in that (see `FIXED`).
    Raises ValueError or OSError (one line each) before any long work; TrainingStopped for a non-finite loss, a fault of the
    input, or a signal; files.WriteError for a full disk.
    """
    training, preview = config.training, config.preview
    chunk, several, first = training.steps_per_dispatch, jax.process_count() > 1, cluster.is_first()

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Signals())

        # ---- What could go wrong at once, does so here.
        configuration.check_devices(config, jax.device_count())
        cluster.agree("configuration", configuration.to_dict(config))
        split = cluster.in_turn(lambda: open_data(config))
        cluster.agree("data set", split.identity)
        judged = data.open_config(config.data, training.best_split) if training.keep_best else None
        workdir = Workdir(directory)
        for warning in configuration.warnings(config):
            say(f"warning: {warning}")
        changes = cluster.by_first(lambda: begin(stack, workdir, config, accept_changes))
        if several:
            check_shared(workdir)

        # ---- State: fresh, or the last complete checkpoint.
        definition, state = init(config)
        checkpoints = stack.enter_context(Checkpoints(
            workdir, training.keep_checkpoints, keep_every=training.keep_every, keep_best=training.keep_best, say=say
        ))  # fmt: skip
        start = 0
        if cluster.by_first(checkpoints.latest_step) is not None:
            start, items = checkpoints.restore(state._asdict())
            state = State(**items)
        cluster.agree("checkpoint to go on from", start)
        if changes:
            cluster.by_first(lambda: change(workdir, config, start, changes, say))
        if start >= training.num_steps:
            say(f"{workdir.path}: this run is complete, all {training.num_steps} steps are done; there is nothing left to train")
            return state
        say(f"{workdir.path}: {denoiser.num_parameters(state.params):,} parameters, {len(split):,} images, "
            f"{jax.device_count()} x {jax.devices()[0].device_kind}"
            + (f" of {jax.process_count()} processes" if several else "")
            + (f"; resuming at step {start}" if start else f"; {training.num_steps} steps"))  # fmt: skip
        train_step = make_step(config, definition)
        run = parallel.data_parallel(with_stop(train_step) if several else train_step, training.parallel)
        stream = stack.enter_context(data.batches(
            split, batch_size=training.batch_size, seed=config.seed, flip=config.data.flip, start_step=start,
            num_workers=config.data.num_workers, process_index=jax.process_index(),
            process_count=jax.process_count()))  # fmt: skip
        draw_preview, judge = make_preview(config, definition), make_judge(config, definition, judged)
        tracer = stack.enter_context(vitals.Profile(workdir.path / "profile", profile if first else 0, start,
                                                    training.num_steps, say))  # fmt: skip
        metrics = stack.enter_context(Metrics(workdir, start or None) if first else Unwritten())
        record = stack.enter_context(Recorder(config, learning_rate(config), metrics, start, say))
        stop.stepping = True

        def save(done):
            # Last of all: what belongs to a checkpoint's steps is then on disk, or done again after a kill.
            record.drain()
            metrics.flush()
            checkpoints.save(done, state._asdict(), judge(state.ema))

        def save_now(done):
            save(done)
            checkpoints.wait()

        # ---- The loop.
        for step in range(start, training.num_steps, chunk):
            try:
                batch = record.waiting(lambda: stacked([next(stream) for _ in range(chunk)]))
            except data.InputFault as fault:
                raise without_input(fault, step, save_now if step > start else None) from fault
            if several:
                batch["stop"] = np.full_like(batch["index"], stop.requested)
            with tracer.step(step, chunk):
                state, results = run(state, batch)
            record.dispatched(step, results)
            done = step + chunk
            tracer.dispatched(done, results)
            # Asked once: a later signal stops the next step. Several processes stop where all know that one was asked.
            stopping = (record.stop if several else stop.requested) and done < training.num_steps
            last = stopping or done >= training.num_steps
            if preview.every and (done % preview.every == 0 or done >= training.num_steps):
                record.drain()  # nothing is drawn or saved before its losses are known to be finite
                picture = draw_preview(state.ema)
                metrics.image(done, "samples", picture)
                if first:
                    with writing(workdir.samples):
                        workdir.samples.mkdir(parents=True, exist_ok=True)
                        write_png(workdir.samples / f"step_{done:07d}.png", picture)
            if last or done % training.checkpoint_every == 0:
                save(done)
            if stopping:
                checkpoints.wait()
                raise Preempted(f"stopped by a signal at step {done}, which is saved; the same command goes on from it")
        record.close()
        # Whoever asked is not to wait for what would come after this run. After the last batch one process alone may know.
        if record.stop or np.any(parallel.collected(np.asarray([stop.requested]))):
            checkpoints.wait()
            raise Preempted(f"stopped by a signal at step {done}, which is saved: the run's last, it is complete")
    return state


def begin(stack, workdir, config, accept_changes):
    """Holds the workdir for this job, and puts the config of a new run there; returns what `adopt` does."""
    stack.enter_context(workdir.held())
    return adopt(workdir, config, accept_changes)


def check_shared(workdir):
    """Raises ValueError in a process that does not see the first one's workdir, where all write their parts of checkpoints."""
    word = cluster.by_first(workdir.mark)
    if not workdir.has_mark(word):
        raise ValueError(f"process {jax.process_index()} does not see the workdir of process 0 at {workdir.path}: give a folder "
                         "that all machines share, or a bucket such as gs://bucket/run")  # fmt: skip
    cluster.together()  # what comes next waits less long than this may take


def without_input(fault, step, save):
    """The TrainingStopped for an InputFault at a step; what is done so far, which the fault has no part in, is saved first."""
    # One process alone: of several, the others do not know, and a checkpoint is the work of all.
    saved = "the last checkpoint is as it was"
    if save and jax.process_count() == 1:
        try:
            save(step)
            saved = f"step {step} is saved: the same command goes on from it"
        except (TrainingStopped, ValueError) as error:
            saved = str(error)
    stopped = TrainingStopped(f"{fault}; {saved}")
    stopped.stuck = fault.stuck
    return stopped


def open_data(config):
    """The training split a config names, found to agree with it."""
    split = data.open_config(config.data)
    if config.model.num_classes not in (0, split.num_classes):
        raise configuration.ConfigError(f"model.num_classes={config.model.num_classes}, but {config.data.name} has "
                                        f"{split.num_classes} classes; 0 trains without labels")  # fmt: skip
    return split


def adopt(workdir, config, accept_changes=False):
    """Writes the config of a new run. Of a workdir that holds a run of another one, returns what differs, as lines, if that
    is accepted, and may be; and refuses it otherwise."""
    size = claims.num_bytes((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(configuration.abstract_denoiser(config)[1]))
    claims.check_memory(size, "the parameters of this network")
    mine = configuration.to_dict(config)
    if not workdir.config.exists():
        workdir.write_config(mine)
        return []
    changed = differences(configuration.to_dict(configuration.from_dict(workdir.read_config())), mine)
    fixed = {line: why for line in changed for name, why in FIXED.items() if f"{line.split(':')[0]}.".startswith(f"{name}.")}
    if not changed or accept_changes and not fixed:
        return changed
    shown = "; ".join(f"{line} ({fixed[line]})" if line in fixed else line for line in changed)
    accept = ", or give --accept_changes to go on with these settings" if not fixed else ""
    raise configuration.ConfigError(f"{workdir.path} holds a run of another configuration ({shown}): take another --workdir, or "
                                    f"leave out --config to go on with that run{accept}")  # fmt: skip


def change(workdir, config, start, changes, say):
    """Goes on from step `start` with another config, whose `changes` were found acceptable; the old one is kept."""
    before = configuration.from_dict(workdir.read_config())
    if config.training.num_steps < start:
        raise configuration.ConfigError(f"training.num_steps={config.training.num_steps}, but {start} steps are done")
    if start % config.training.steps_per_dispatch:
        raise configuration.ConfigError(f"training.steps_per_dispatch={config.training.steps_per_dispatch} does not divide the "
                                        f"{start} steps that are done")  # fmt: skip
    workdir.replace_config(configuration.to_dict(config), start)
    say(f"{workdir.path}: other settings from step {start} on, config.before_step_{start}.json has those before:")
    for line in changes:
        say(f"  {line}")
    rates = [float(learning_rate(each)(max(start - 1, 0))) for each in (before, config)]
    if start and rates[0] != rates[1]:
        say(f"  so the learning rate at step {start} is {rates[1]:.4g}, not {rates[0]:.4g}")


def make_judge(config, definition, split):
    """EMA parameters -> their mean loss on held-out images, the same noise every time; None if there is no `split`."""
    if split is None:
        return lambda params: None
    loss = jax.jit(make_loss(config, definition))
    examples = data.examples(split, min(JUDGED, len(split)))
    size = min(config.training.batch_size, len(examples["image"]))
    index = np.arange(size, dtype=np.int32)
    batches = [{name: array[first : first + size] for name, array in examples.items()} | {"index": index}
               for first in range(0, len(examples["image"]) - size + 1, size)]  # fmt: skip

    def judge(params):
        keys = (jax.random.fold_in(jax.random.key(config.seed), number) for number in range(len(batches)))
        return float(np.mean([loss(params, batch, key)[0] for batch, key in zip(batches, keys, strict=True)]))

    return judge


def stacked(batches):
    """Batches of consecutive steps as one: arrays [steps, B, ...]."""
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def make_preview(config, definition):
    """EMA parameters -> a grid of samples, the same noise every time."""
    preview = config.preview
    levels = schedules.levels(schedules.make(preview.schedule), preview.steps)
    draw = sample.make_sampler(config, definition, preview.method)

    def picture(params):
        labels = sample.cycled_labels(config, preview.num_images)
        images = sample.generate(draw, params, levels, preview.num_images, seed=config.seed, labels=labels)
        return grid(images, columns=int(np.ceil(np.sqrt(preview.num_images))))

    return picture
