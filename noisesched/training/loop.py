"""Training: one network, told the noise level, on levels drawn by a schedule.

Everything random in step s is a function of (seed, s, position in the global batch), and the batch of step s is a function of
(seed, s). So a run may be killed at any moment and resumed from its last checkpoint to bit-identical parameters, and its
losses do not depend on the number of devices.
"""

import contextlib
import functools

import jax
import numpy as np
from tqdm import tqdm

from noisesched import schedules
from noisesched.data import pipeline
from noisesched.models import build, denoiser, generate
from noisesched.runs import config as configuration
from noisesched.runs import plugins, trackers
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.metrics_log import Metrics, Unwritten
from noisesched.runs.workdir import Workdir
from noisesched.runtime import cluster, sharding, signals
from noisesched.runtime.files import writing
from noisesched.runtime.pictures import grid, visible, write_png
from noisesched.training import resume
from noisesched.training.monitor import BEFORE, Preempted, Profile, Progress, Recorder, Signals, TrainingStopped
from noisesched.training.step import init, learning_rate, make_loss, make_step, with_stop

STOPPED = "stopped by a signal at step {}, which is saved; the same command continues from it"
JUDGED = 1024  # held-out images on which checkpoints are compared


# -- the program


def main(request):
    """The command."""
    if request.config:
        config = configuration.load(request.config, request.overrides)
    elif not (workdir := Workdir(request.workdir)).config.exists():
        raise configuration.ConfigError(f"{workdir.path} holds no run to continue: give --config=FILE to begin one there")
    else:
        with plugins.of(workdir):
            config = configuration.from_dict(workdir.read_config())
    train(config, request.workdir, profile=request.profile, accept_changes=request.accept_changes, tracker=request.tracker)


def train(config, directory, say=tqdm.write, profile=0, accept_changes=False, tracker=""):
    """Trains the run in `directory` to config.training.num_steps, from its last checkpoint if it has one.

    All processes of a job call it alike; the first one logs and writes, except for the checkpoints, which all write.
    `profile`: how many steps the first traces, into `directory`/profile. `accept_changes`: continue a run whose configuration
    differs, where it may (`settings.setting`, "fixed"). `tracker`: the name of one of `trackers`, or "".
    Raises ValueError or OSError (one line each) before any long work; TrainingStopped for a non-finite loss, a fault of the
    input, or a signal; files.WriteError for a full disk.
    """
    training, preview = config.training, config.preview
    several, first = jax.process_count() > 1, cluster.is_first()

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Signals())
        progress = stack.enter_context(Progress(say, training.num_steps))
        say = progress.say

        # ---- Whatever can fail at once fails here.
        configuration.check_devices(config, jax.device_count())
        cluster.agree("configuration", configuration.to_dict(config))
        with progress.doing("preparing the data"):
            split = cluster.in_turn(lambda: open_data(config))
            cluster.agree("data set", split.identity)
            judged = pipeline.open_config(config.data, training.best_split) if training.keep_best else None
        workdir = Workdir(directory)
        for warning in configuration.warnings(config):
            say(f"warning: {warning}")
        changes = cluster.by_first(lambda: begin(stack, workdir, config, accept_changes))
        if first:
            plugins.record(workdir)
        service = trackers.start(tracker, workdir, configuration.to_dict(config)) if tracker and first else None
        if several:
            check_shared(workdir)

        # ---- State: fresh, or from the last complete checkpoint.
        with progress.doing("initializing the network"):
            definition, state = init(config)
        checkpoints = stack.enter_context(
            Checkpoints(workdir, training.keep_checkpoints, keep_every=training.keep_every, keep_best=training.keep_best, say=say)
        )
        start = 0
        if steps := cluster.by_first(checkpoints.steps):
            # Of step 0 there are the parameters alone, which were trained elsewhere.
            wanted = state._asdict() if steps[-1] else {"params": state.params, "ema": state.ema}
            with progress.doing("restoring the last checkpoint"):
                start, items = checkpoints.restore(wanted)
            state = state._replace(**items)
        cluster.agree("checkpoint to continue from", start)
        if changes:
            cluster.by_first(lambda: resume.change(workdir, config, start, changes, say))
        if start >= training.num_steps:
            say(f"{workdir.path}: this run is complete, all {training.num_steps} steps are done; there is nothing left to train")
            return state
        say(
            f"{workdir.path}: {denoiser.num_parameters(state.params):,} parameters, {len(split):,} images, "
            f"{jax.device_count()} x {jax.devices()[0].device_kind}"
            + (f" of {jax.process_count()} processes" if several else "")
            + (f"; resuming at step {start}" if start else f"; {training.num_steps} steps")
        )

        # ---- What the loop needs.
        train_step = make_step(config, definition)
        run = sharding.data_parallel(with_stop(train_step) if several else train_step, training.parallel)
        stream = stack.enter_context(
            pipeline.batches(
                split,
                batch_size=training.batch_size,
                seed=config.seed,
                flip=config.data.flip,
                start_step=start,
                num_workers=config.data.num_workers,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
        )
        draw_preview, judge = make_preview(config), make_judge(config, definition, judged)
        tracer = stack.enter_context(Profile(workdir.path / "profile", profile if first else 0, start, training.num_steps, say))
        metrics = Metrics(workdir, start or None) if first else Unwritten()
        metrics = stack.enter_context(trackers.Tracked(metrics, service, say) if service else metrics)
        record = Recorder(config, learning_rate(config), metrics, start, progress)
        stop.stepping = True

        def next_batch():
            stop.waiting = not several  # of several processes none may stop alone
            try:
                batch = stacked([next(stream) for _ in range(training.steps_per_dispatch)])
            finally:
                stop.waiting = False
            return batch | {"stop": np.full_like(batch["index"], stop.requested)} if several else batch

        def show_preview(done, state):
            record.drain()  # nothing is drawn or saved before its losses are known to be finite
            with progress.doing("drawing a preview"):
                picture = draw_preview(state.ema)
                metrics.image(done, "samples", picture)
                if first:
                    with writing(workdir.samples):
                        workdir.samples.mkdir(parents=True, exist_ok=True)
                        write_png(workdir.samples / f"step_{done:07d}.png", picture)

        def save(done, state, wait=False):
            # Last of all: whatever belongs to these steps is then on disk already, or is done again after a kill.
            record.drain()
            with progress.doing("saving a checkpoint"):
                metrics.flush()
                checkpoints.save(done, state._asdict(), judge(state.ema))
                if wait:
                    checkpoints.wait()

        # ---- The loop.
        done, numbers = start, range(start, training.num_steps, training.steps_per_dispatch)
        taken = dispatches(numbers, run, state, next_batch, record, tracer)
        try:
            for done, state in taken:
                # Read once: a later signal stops the next step. Several processes stop at the step at which all know.
                stopping = (record.stop if several else stop.requested) and done < training.num_steps
                last = stopping or done >= training.num_steps
                if preview.every and (done % preview.every == 0 or done >= training.num_steps):
                    show_preview(done, state)
                if last or done % training.checkpoint_every == 0:
                    save(done, state, wait=stopping)
                if stopping:
                    raise Preempted(STOPPED.format(done))
        except signals.Interrupted:  # while it waited for input
            if done == start:
                raise Preempted(BEFORE) from None
            save(done, state, wait=True)
            raise Preempted(STOPPED.format(done)) from None
        except pipeline.InputFault as fault:
            save_now = functools.partial(save, done, state, wait=True) if done > start else None
            raise without_input(fault, done, save_now) from fault
        record.drain()
        # A signal during the last step: what would follow this run must not begin. Only one process may know of it.
        if record.stop or np.any(sharding.collected(np.asarray([stop.requested]))):
            checkpoints.wait()
            raise Preempted(f"stopped by a signal at step {done}, which is saved: the run's last, it is complete")
    return state


def dispatches(numbers, run, state, next_batch, record, tracer):
    """The training loop: yields (steps done, state) after every dispatch. The state before is donated, and so gone.

    numbers     range(first step, end, steps per dispatch), counted from 0
    run         the compiled (state, batch) -> (state, results), as from `sharding.data_parallel`
    next_batch  () -> arrays [steps per dispatch, B, ...]
    """
    note = record.progress.doing("compiling the training step")
    for step in numbers:
        batch = record.waiting(next_batch)
        with note, tracer.step(step, numbers.step):
            state, results = run(state, batch)
        note = contextlib.nullcontext()
        record.dispatched(step, results)
        tracer.dispatched(step + numbers.step, results)
        yield step + numbers.step, state


def begin(stack, workdir, config, accept_changes):
    """Locks the workdir for this job and writes a new run's config there; returns what `resume.adopt` returns."""
    stack.enter_context(workdir.held())
    return resume.adopt(workdir, config, accept_changes)


def check_shared(workdir):
    """Raises ValueError in a process that does not see the first one's workdir, to which all write their parts of checkpoints."""
    word = cluster.by_first(workdir.mark)
    if not workdir.has_mark(word):
        raise ValueError(
            f"process {jax.process_index()} does not see the workdir of process 0 at {workdir.path}: give a folder "
            "that all machines share, or a bucket such as gs://bucket/run"
        )
    cluster.together()  # here, as the next thing waits for a shorter time than this may take


def without_input(fault, step, save):
    """The TrainingStopped for an InputFault after `step` steps, which are saved first: the fault has not touched them."""
    # In one process only: others do not know of the fault, and all must take part in a checkpoint.
    saved = "the last checkpoint is as it was"
    if save and jax.process_count() == 1:
        try:
            save()
            saved = f"step {step} is saved: the same command continues from it"
        except (TrainingStopped, ValueError) as error:
            saved = str(error)
    stopped = TrainingStopped(f"{fault}; {saved}")
    stopped.stuck = fault.stuck
    return stopped


def open_data(config):
    """The training split that a config names; ConfigError if it has another number of classes."""
    split = pipeline.open_config(config.data)
    if config.model.num_classes not in (0, split.num_classes):
        raise configuration.ConfigError(
            f"model.num_classes={config.model.num_classes}, but {config.data.name} has "
            f"{split.num_classes} classes; 0 trains without labels"
        )
    return split


def make_judge(config, definition, split):
    """A function: EMA parameters -> their mean loss on held-out images, the same noise every time; None without a `split`."""
    if split is None:
        return lambda params: None
    loss = jax.jit(make_loss(config, definition))
    examples = pipeline.examples(split, min(JUDGED, len(split)))
    size = min(config.training.batch_size, len(examples["image"]))
    index = np.arange(size, dtype=np.int32)
    batches = [
        {name: array[first : first + size] for name, array in examples.items()} | {"index": index}
        for first in range(0, len(examples["image"]) - size + 1, size)
    ]

    def judge(params):
        keys = (jax.random.fold_in(jax.random.key(config.seed), number) for number in range(len(batches)))
        return float(np.mean([loss(params, batch, key)[0] for batch, key in zip(batches, keys, strict=True)]))

    return judge


def stacked(batches):
    """Batches of consecutive steps as one: arrays [steps, B, ...]."""
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def make_preview(config):
    """A function: EMA parameters -> a grid of samples, from the same noise every time."""
    preview = config.preview
    levels = schedules.levels(preview.schedule, preview.steps)
    labels = generate.cycled_labels(config.model.num_classes, preview.num_images)

    def picture(params):
        network = build.network(config, params)
        images = generate.generate(network, levels, preview.num_images, preview.method, seed=config.seed, labels=labels)
        return grid(visible(images), columns=int(np.ceil(np.sqrt(preview.num_images))))

    return picture
