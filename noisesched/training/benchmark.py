"""Measures speed. Ratios are between things measured in turn, in one run; figures are medians with their quartiles.

Each part of the product is compared with the bare computation that it cannot do without, and has a bar to meet:

    training    the loop of `train` against the bare jitted step of the same network, loss, optimizer and EMA
    sampling    the sampler against as many bare network calls
    input       the time that the training loop waits for its next batch
    checkpoints the training loop with a save in the middle against the same steps without, over the interval between saves
    compiling   a new schedule compiles nothing; a second start of the same config compiles nothing at all
"""

import contextlib
import json
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from noisesched import schedules
from noisesched.data import pipeline
from noisesched.models import build, denoiser, generate
from noisesched.runs import config as configuration
from noisesched.runs.checkpoints import Checkpoints
from noisesched.runs.metrics_log import Unwritten
from noisesched.runs.workdir import Workdir
from noisesched.runtime import backend, sharding
from noisesched.training import loop as training_loop
from noisesched.training import monitor
from noisesched.training.step import init, learning_rate, make_step

BARS = {
    "training_overhead": 0.03,
    "sampling_overhead": 0.02,
    "input_wait": 0.01,
    "checkpoint_overhead": 0.01,
    "compiled_for_new_schedules": 0,
    "compiled_at_second_start": 0,
}


def main(request):
    """The command."""
    config = configuration.load(request.config, request.overrides)
    benchmark(config, backend.prepare(), request.seconds, request.calls, request.json)


def benchmark(config, chosen, seconds=60, calls=50, json_path=None, say=print):
    """Measures a config on this machine's devices; prints and returns the figures. `chosen`: what `backend.prepare` returned."""
    configuration.check_devices(config, jax.local_device_count())
    split = training_loop.open_data(config)
    devices = jax.local_devices()
    say(f"{len(devices)} x {devices[0].device_kind}; jax {jax.__version__}; {chosen}")
    with tempfile.TemporaryDirectory() as cache, Compilations(cache) as compilations:
        definition, state = init(config)
        say(
            f"network of {denoiser.num_parameters(state.params):,} parameters, batch {config.training.batch_size}, "
            f"{config.data.image_size}x{config.data.image_size}x{config.data.channels}, {config.model.dtype}"
        )
        figures = {}
        with pipeline.batches(
            split,
            batch_size=config.training.batch_size,
            seed=config.seed,
            flip=config.data.flip,
            num_workers=config.data.num_workers,
        ) as stream:
            figures |= compiling(config, definition, state, stream, compilations)
            figures |= training(config, definition, state, stream, seconds * 0.45)
            figures |= checkpointing(config, definition, state, stream, seconds * 0.25, figures["step_seconds"]["median"])
        figures |= sampling(config, definition, state.params, calls, seconds * 0.3, compilations)
        peak = matmul_peak(config.model.dtype)
    figures |= {
        "flops_per_second": figures["flops_per_step"] / figures["step_seconds"]["median"],
        "matmul_flops_per_second": peak,
        "peak_process_bytes": monitor.peak_process_bytes(),
    }
    if stats := devices[0].memory_stats():
        figures["peak_device_bytes"] = stats["peak_bytes_in_use"]
    for line in report(figures, config):
        say(line)
    if json_path:
        with open(json_path, "w") as file:
            json.dump({"config": configuration.to_dict(config), "settings": str(chosen), "figures": figures}, file, indent=2)
    return figures


class Compilations(contextlib.AbstractContextManager):
    """Counts programs compiled and programs read from a persistent cache of its own, in the empty folder `cache`."""

    def __init__(self, cache):
        self.cache, self.count, self.hits, self.seconds = cache, 0, 0, 0.0

    def __enter__(self):
        self.usual = jax.config.jax_compilation_cache_dir
        self._use(self.cache)
        jax.clear_caches()  # so that what reading the config compiled also goes into the new cache
        jax.monitoring.register_event_duration_secs_listener(self._compiled)
        jax.monitoring.register_event_listener(self._hit)
        return self

    def _compiled(self, name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":  # also of a program read from the cache
            self.count, self.seconds = self.count + 1, self.seconds + seconds

    def _hit(self, name, **_):
        self.hits += name == "/jax/compilation_cache/cache_hits"

    def _use(self, folder):
        from jax.experimental.compilation_cache import compilation_cache

        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", folder)

    def __exit__(self, *exception):
        self._use(self.usual)
        self.count = self.hits = None  # so that a listener that JAX kept would fail loudly
        jax.monitoring.unregister_event_duration_listener(self._compiled)
        jax.monitoring.unregister_event_listener(self._hit)


def compiling(config, definition, state, stream, compilations):
    """Seconds until the first step is done: at a first start, and at a second, with JAX's cache on disk filled."""
    copy = jax.tree.map(jnp.copy, state)

    def first_step():
        begin, compiled, hits = time.perf_counter(), compilations.count, compilations.hits
        run = sharding.data_parallel(make_step(config, definition), config.training.parallel)
        jax.block_until_ready(run(jax.tree.map(jnp.copy, copy), chunk(config, stream)))
        return time.perf_counter() - begin, compilations.count - compiled - (compilations.hits - hits)

    cold, _ = first_step()
    jax.clear_caches()
    warm, compiled = first_step()
    lowered = jax.jit(make_step(config, definition), static_argnums=2).lower(state, next(stream), None)
    compiled_step = lowered.compile()
    cost, memory = compiled_step.cost_analysis(), compiled_step.memory_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return {
        "first_step_seconds": cold,
        "first_step_seconds_cached": warm,
        "compiled_at_second_start": compiled,
        "flops_per_step": float(cost["flops"]),
        "step_temporary_bytes": int(memory.temp_size_in_bytes),
    }


def training(config, definition, state, stream, seconds):
    """The training loop and the bare step, in turn."""
    steps = config.training.steps_per_dispatch
    devices = jax.local_devices()
    step = make_step(config, definition)
    mesh = Mesh(np.array(devices), ("devices",))
    whole, shares = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("devices"))
    bare = jax.jit(
        lambda state, batch: step(state, batch, None), in_shardings=(whole, shares), out_shardings=whole, donate_argnums=0
    )
    batch = jax.device_put(next(stream), shares)
    loop = Loop(config, step, state, stream)
    states = {"bare": jax.tree.map(jnp.copy, state)}
    waited = 0.0

    def run_bare(dispatches):
        for _ in range(dispatches * steps):
            states["bare"], metrics = bare(states["bare"], batch)
        jax.block_until_ready(metrics)

    def run_product(dispatches):
        nonlocal waited
        before = loop.record.waited
        loop.run(dispatches)
        loop.record.drain()
        waited += loop.record.waited - before

    times = in_turn({"bare": run_bare, "product": run_product}, seconds, "training")
    per_step = {name: [t / n / steps for t, n in pairs] for name, pairs in times.items()}
    ratios = [p / b for p, b in zip(per_step["product"], per_step["bare"], strict=True)]
    return {
        "step_seconds": quartiles(per_step["product"]),
        "bare_step_seconds": quartiles(per_step["bare"]),
        "images_per_second": config.training.batch_size / statistics.median(per_step["product"]),
        "training_ratio": quartiles(ratios),
        "training_overhead": statistics.median(ratios) - 1,
        "input_wait": waited / sum(t for t, _ in times["product"]),
    }


def checkpointing(config, definition, state, stream, seconds, step_seconds):
    """The training loop with a save in the middle and without one, in turn, each long enough for the save to end meanwhile."""
    loop, saved = Loop(config, make_step(config, definition), state, stream), 0
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Workdir(folder), config.training.keep_checkpoints) as checkpoints:

        def save():
            nonlocal saved
            saved += 1
            loop.record.drain()
            begin = time.perf_counter()
            checkpoints.save(saved, loop.state._asdict())
            return time.perf_counter() - begin

        def timed(after, blocked=None):
            begin = time.perf_counter()
            loop.run(monitor.RUN_AHEAD + 1)
            if blocked is not None:
                blocked.append(save())
            loop.run(after)
            loop.record.drain()
            return time.perf_counter() - begin

        timed(1, [])  # compiles; and the first save sets things up
        checkpoints.wait()
        begin = time.perf_counter()
        save()
        checkpoints.wait()
        written = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in pathlib.Path(folder, "checkpoints", str(saved)).rglob("*"))
        after = max(10, round(2 * written / step_seconds / config.training.steps_per_dispatch))
        blocked, extra, begin = [], [], time.perf_counter()
        while len(extra) < 7 or time.perf_counter() - begin < seconds:
            first = len(extra) % 2 and timed(after)  # neither is always the second
            with_save = timed(after, blocked)
            checkpoints.wait()
            extra.append(with_save - (first or timed(after)))
    interval = config.training.checkpoint_every * step_seconds
    extra, blocked = quartiles(extra), quartiles(blocked)
    return {
        "save_extra_seconds": extra,
        "save_blocking_seconds": blocked,
        "save_written_seconds": written,
        "save_bytes": size,
        "steps_while_saving": after * config.training.steps_per_dispatch,
        "save_interval_seconds": interval,
        "checkpoint_overhead": extra["median"] / interval,
    }


def sampling(config, definition, params, calls, seconds, compilations):
    """A sampling run of `calls` network calls and as many bare calls, in turn; then schedules that were not sampled before."""
    devices = len(jax.local_devices())
    count = -(-config.preview.num_images // devices) * devices
    network, labels = build.network(config, params), generate.cycled_labels(config.model.num_classes, count)
    make = lambda spec: generate.generate(network, schedules.levels(spec, calls), count, seed=0, labels=labels)
    shape = (count, config.data.image_size, config.data.image_size, config.data.channels)
    mesh = Mesh(np.array(jax.local_devices()), ("devices",))
    shares = NamedSharding(mesh, PartitionSpec("devices"))
    z, level = jax.device_put((jnp.zeros(shape), jnp.zeros(count)), shares)
    placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    known = None if labels is None else jax.device_put(labels, shares)
    call = jax.jit(lambda params, z, level: denoiser.merge(definition, params)(z, level, known))

    def run_bare(n):
        for _ in range(n * calls):
            image = call(placed, z, level)
        jax.block_until_ready(image)

    def run_product(n):
        for _ in range(n):
            make(config.preview.schedule)

    times = in_turn({"bare": run_bare, "product": run_product}, seconds, "sampling")
    per_call = {name: [t / n / calls for t, n in pairs] for name, pairs in times.items()}
    ratios = [p / b for p, b in zip(per_call["product"], per_call["bare"], strict=True)]
    made = [schedules.make(text) for text in schedules.EXAMPLES.values()]
    specs = [str(schedule) for schedule in made if not schedule.table or schedule.table.num_steps >= calls]
    for spec in specs:  # making a schedule and its levels is small arithmetic, which JAX compiles too
        schedules.levels(schedules.make(spec), calls)
    before = compilations.count
    for spec in specs:
        make(spec)
    return {
        "call_seconds": quartiles(per_call["product"]),
        "bare_call_seconds": quartiles(per_call["bare"]),
        "images_per_call": count,
        "network_calls": calls,
        "sampling_ratio": quartiles(ratios),
        "sampling_overhead": statistics.median(ratios) - 1,
        "new_schedules": len(specs),
        "compiled_for_new_schedules": compilations.count - before,
    }


def matmul_peak(dtype):
    """FLOP/s of a large matrix product on all local devices: the most that a network could reach."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    times = []
    for _ in range(8):
        begin = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times) * len(jax.local_devices())


def report(figures, config):
    """The figures as lines to read."""

    def ms(name):
        return f"{1e3 * figures[name]['median']:.2f} ms ({1e3 * figures[name]['low']:.2f} to {1e3 * figures[name]['high']:.2f})"

    def bar(name, shown):
        verdict = "ok" if figures[name] <= BARS[name] else "MISSED"
        limit = f"{BARS[name]:.0%}" if isinstance(BARS[name], float) else BARS[name]
        return f"{shown}  [bar: at most {limit}: {verdict}]"

    ratio = lambda name: f"{figures[name]['low'] - 1:+.1%} to {figures[name]['high'] - 1:+.1%}"
    yield f"training     {figures['images_per_second']:,.0f} images/s; a step {ms('step_seconds')}"
    yield f"  bare step  {ms('bare_step_seconds')}"
    yield bar("training_overhead", f"  overhead   {figures['training_overhead']:+.2%} (pairs {ratio('training_ratio')})")
    yield bar("input_wait", f"  input wait {figures['input_wait']:.2%}")
    speed, peak = figures["flops_per_second"], figures["matmul_flops_per_second"]
    yield (
        f"  arithmetic {speed / 1e9:,.1f} GFLOP/s, {speed / peak:.0%} of a {config.model.dtype} matrix product's "
        f"{peak / 1e9:,.1f}"
    )
    extra, blocking, written = (figures[f"save_{name}_seconds"] for name in ("extra", "blocking", "written"))
    slower = max(extra["median"] - blocking["median"], 0) / max(written - blocking["median"], 1e-9)
    yield (
        f"checkpoints  {figures['save_bytes'] / 2**20:,.1f} MiB, on disk after {1e3 * written:.0f} ms; a save costs "
        f"{ms('save_extra_seconds')}"
    )
    yield (
        f"  standstill {ms('save_blocking_seconds')}; then, while it is written in the background, steps are {slower:.0%} slower"
    )
    yield bar(
        "checkpoint_overhead",
        f"  overhead   {figures['checkpoint_overhead']:.2%} of the "
        f"{figures['save_interval_seconds']:,.0f} s of {config.training.checkpoint_every} steps",
    )
    yield f"sampling     a network call on {figures['images_per_call']} images {ms('call_seconds')}"
    yield f"  bare call  {ms('bare_call_seconds')}"
    yield bar(
        "sampling_overhead",
        f"  overhead   {figures['sampling_overhead']:+.2%} over {figures['network_calls']} bare calls "
        f"(pairs {ratio('sampling_ratio')})",
    )
    yield bar(
        "compiled_for_new_schedules",
        f"  compiled   {figures['compiled_for_new_schedules']} programs for {figures['new_schedules']} new schedules",
    )
    cold, warm = figures["first_step_seconds"], figures["first_step_seconds_cached"]
    yield bar(
        "compiled_at_second_start",
        f"compiling    first step done in {cold:.1f} s; at a second start in {warm:.1f} s, "
        f"{figures['compiled_at_second_start']} programs compiled",
    )
    device = f", device {figures['peak_device_bytes'] / 2**20:,.0f} MiB" if "peak_device_bytes" in figures else ""
    yield (
        f"memory       peak: process {figures['peak_process_bytes'] / 2**20:,.0f} MiB{device}; "
        f"temporaries of a step {figures['step_temporary_bytes'] / 2**20:,.0f} MiB"
    )


# -- the parts


class Loop:
    """The training loop of `train`, some dispatches at a time. It logs as in a run without a terminal, but to nowhere."""

    def __init__(self, config, step, state, stream):
        training, nowhere = config.training, lambda line: None
        progress = monitor.Progress(nowhere, training.num_steps, show=False)
        self.record = monitor.Recorder(config, learning_rate(config), Unwritten(), 0, progress)
        self.state, self.done, self.chunk = jax.tree.map(jnp.copy, state), 0, training.steps_per_dispatch
        self.parts = {
            "run": sharding.data_parallel(step, training.parallel),
            "next_batch": lambda: chunk(config, stream),
            "record": self.record,
            "tracer": monitor.Profile("", 0, 0, 0, nowhere),
        }

    def run(self, dispatches):
        numbers = range(self.done, self.done + dispatches * self.chunk, self.chunk)
        taken = training_loop.dispatches(numbers, state=self.state, **self.parts)
        for self.done, self.state in taken:
            pass


def chunk(config, stream):
    """The batches of one dispatch."""
    return training_loop.stacked([next(stream) for _ in range(config.training.steps_per_dispatch)])


def in_turn(runs, seconds, what, least=7):
    """{name: [(seconds, repetitions)]} of functions run in turn, each at least `least` times, for about `seconds` in all."""
    repetitions = {}
    for name, run in runs.items():
        run(1)  # compiles
        begin = time.perf_counter()
        run(1)
        once = time.perf_counter() - begin
        repetitions[name] = max(1, round(seconds / len(runs) / 12 / once))
    times, begin = {name: [] for name in runs}, time.perf_counter()
    bar = tqdm(total=round(seconds), desc=what, unit="s", disable=None, leave=False)
    order = list(runs)
    while len(times[order[0]]) < least or time.perf_counter() - begin < seconds:
        order.reverse()  # neither is always the second
        for name in order:
            start = time.perf_counter()
            runs[name](repetitions[name])
            times[name].append((time.perf_counter() - start, repetitions[name]))
        bar.update(min(round(time.perf_counter() - begin), bar.total) - bar.n)
    bar.close()
    return times


def quartiles(values):
    """The median and the quartiles."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}
