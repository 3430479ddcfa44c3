"""Watching a training run: losses checked and logged, what it is doing, profiles, and the signals that stop it."""

import collections
import contextlib
import itertools
import os
import resource
import sys
import threading
import time

import jax
import numpy as np
from tqdm import tqdm

from noisesched.runtime import signals
from noisesched.runtime.files import is_local

RUN_AHEAD = 4  # dispatches in flight: enough to keep a device busy, few enough that a fault is seen at once
SILENCE = 60.0  # seconds after which a program without a terminal says what it is doing
WARM_UP = 10  # steps before a profile, which should show neither compilation nor the first wait for input
BEFORE = "stopped by a signal before the first step; the same command begins again"
PAGE = os.sysconf("SC_PAGE_SIZE")


class TrainingStopped(RuntimeError):
    """Training cannot continue; the message is one line. `stuck`: a thread hangs, see `pipeline.InputFault`, so the process must
    be ended by force."""

    stuck = False


class Preempted(TrainingStopped):
    """A signal stopped training, and nothing is lost: the same command continues. `agreed`: all processes of the job know."""

    exit_code = 75  # EX_TEMPFAIL: try again later

    def __init__(self, message, agreed=True):
        super().__init__(message)
        self.agreed = agreed


class Progress(contextlib.AbstractContextManager):
    """What a run shows of itself: a bar on a terminal, lines elsewhere; both say what it is doing.

    After SILENCE seconds without a line a thread says one, even while the program waits for a compiler, a device or a disk.
    """

    def __init__(self, say, num_steps, show=True):
        self._say, self._num_steps, self._show = say, num_steps, show
        self.bar = self.step = self._stepped = None  # from `begin` on; when a step was last seen done
        self._activity, self._begun, self._spoken = None, time.monotonic(), time.monotonic()
        self.beside = 0.0  # seconds spent on other things than steps: compiling, previews, checkpoints
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._speak, name="noisesched-progress", daemon=True)
        if show:
            self._thread.start()

    def begin(self, step):
        """Training begins, with `step` steps done already."""
        self.bar = tqdm(total=self._num_steps, initial=step, unit="step", disable=None if self._show else True, smoothing=0.05)
        self.step, self._begun = step, time.monotonic()

    def advance(self, count):
        """`count` more steps are seen to be done."""
        self.step, self._stepped = self.step + count, time.monotonic()
        self.bar.update(count)

    @contextlib.contextmanager
    def doing(self, activity, on_bar=True):
        """Names what the program does meanwhile instead of training; `on_bar` false: as a part of it, not shown on a terminal."""
        outer, self._activity = self._activity, (activity, time.monotonic())
        beside, on_bar = on_bar and outer is None, on_bar and self.bar is not None
        if on_bar:
            self.bar.set_description_str(f"{activity}: ")
        try:
            yield
        finally:
            if beside:
                self.beside += time.monotonic() - self._activity[1]
            self._activity = outer
            if on_bar:
                self.bar.set_description_str(f"{outer[0]}: " if outer else "")

    def say(self, line):
        self._spoken = time.monotonic()
        self._say(line)

    def _speak(self):
        while not self._ended.wait(max(self._spoken + SILENCE - time.monotonic(), 0.01)):
            if time.monotonic() - self._spoken >= SILENCE:
                if self.bar is None or self.bar.disable:
                    self.say(self._status())
                self._spoken = time.monotonic()

    def _status(self):
        activity, since = self._activity or ("starting" if self.bar is None else "running the first step", self._begun)
        if self._activity or self._stepped is None:
            doing = f"{activity}, {time.monotonic() - since:.0f} s so far"
        else:
            doing = f"training, last step done {time.monotonic() - self._stepped:.0f} s ago"
        step = "" if self.step is None else f"step {self.step}/{self._num_steps}  "
        return f"{step}{doing}  {in_words(memory_in_use())}"

    def __exit__(self, *exception):
        self._ended.set()
        if self._show:
            self._thread.join()
        if self.bar is not None:
            self.bar.close()


class Pace:
    """Seconds that a step takes, without the compilation, previews and checkpoints between steps.

    Counted are steps that have ended on the device, whether their losses were looked at or not: looking lags behind.
    """

    def __init__(self, progress):
        self._progress, self._seconds = progress, None
        self._first = self._since = self._clock()
        self._done = None  # the steps that had ended at the time `_since`; None before the first dispatch

    def begin(self, done):
        """The first dispatch, which waited for input and compiled the step, is made, and so many steps have ended."""
        if self._done is None:
            self._done, self._since = done, self._clock()

    def at(self, done):
        """Seconds per step up to now, when `done` steps have ended, since the last time when there were fewer."""
        now = self._clock()
        if done > self._done:
            self._seconds = (now - self._since) / (done - self._done)
            self._done, self._since = done, now
        return (now - self._first) / done if self._seconds is None else self._seconds

    def _clock(self):
        return time.monotonic() - self._progress.beside


class Recorder:
    """Checks every loss, logs and shows them, a few steps after they are dispatched, so that it never waits for the device."""

    def __init__(self, config, rate, metrics, start, progress):
        self.training, self.rate, self.metrics, self.progress = config.training, rate, metrics, progress
        self.pending, self.window, self.pace = collections.deque(), [], Pace(progress)
        self.looked = 0  # steps whose losses were looked at
        self.waited = self.waited_before = 0.0  # seconds that the loop waited for input: in all, and until the last log line
        self.count, self.skipped = 0, 0  # steps since the last log line; skipped updates
        self.stop = False  # whether a process had been asked to stop, at the last dispatch looked at
        self.since = time.perf_counter()
        progress.begin(start)

    def waiting(self, produce):
        """The input, and how long the loop waited for it."""
        begin = time.perf_counter()
        with self.progress.doing("waiting for input", on_bar=False):
            produced = produce()
        self.waited += time.perf_counter() - begin
        return produced

    def dispatched(self, step, results):
        self.pending.append((step, results))
        if not self.looked:
            self.pace.begin(self._done())
        if len(self.pending) > RUN_AHEAD:
            self._look(*self.pending.popleft())

    def drain(self):
        while self.pending:
            self._look(*self.pending.popleft())

    def _done(self):
        """How many steps have ended on the device."""
        ended = itertools.takewhile(lambda losses: losses.is_ready(), (results["loss"] for _, results in self.pending))
        return self.looked + sum(map(len, ended))

    def _look(self, first, results):
        results = jax.device_get(results)  # of a dispatch that has had time to finish
        self.stop = self.stop or bool(np.any(results.get("stop", False)))
        count = len(results["loss"])
        self.looked += count
        for offset, (loss, norm) in enumerate(zip(results["loss"], results["grad_norm"], strict=True)):
            step = first + offset + 1
            self.count += 1
            if np.isfinite(loss) and np.isfinite(norm):
                self.window.append((loss, norm))
            else:
                self._not_finite(step, {name: values[offset] for name, values in results.items()})
            if step % self.training.log_every == 0 or step == self.training.num_steps:
                self._log(step)
        self.progress.advance(count)

    def _not_finite(self, step, result):
        """Reports a skipped update, or raises TrainingStopped."""
        low, high = result["bad_log_snr_min"], result["bad_log_snr_max"]
        where = f"in examples of log-SNR {low:.4g} to {high:.4g}" if low <= high else "in the gradient alone"
        what = f"not finite at step {step}: loss {result['loss']}, gradient norm {result['grad_norm']}, {where}"
        allowed = self.training.skip_nonfinite
        if not allowed or result["skipped"] > allowed:
            before = f" {allowed} such updates were skipped before (training.skip_nonfinite);" if allowed else ""
            raise TrainingStopped(
                f"{what};{before} checkpoints from before are kept (a lower learning rate or clip_norm may help)"
            )
        self.skipped = int(result["skipped"])
        self.progress.say(f"{what}; update skipped, {self.skipped} of at most {allowed}")

    def _log(self, step):
        now = time.perf_counter()
        seconds, steps = now - self.since, self.count
        loss, norm = np.mean(self.window, axis=0) if self.window else (np.nan, np.nan)
        each, waited, memory = self.pace.at(self._done()), (self.waited - self.waited_before) / seconds, memory_in_use()
        self.metrics.write(
            step,
            {
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": float(self.rate(step - 1 - self.skipped)),
                "images_per_second": steps * self.training.batch_size / seconds,
                "step_seconds": each,
                "input_wait": waited,
                **memory,
                **({"skipped": self.skipped} if self.training.skip_nonfinite else {}),
            },
        )
        self.progress.bar.set_postfix(
            loss=f"{loss:.4f}",
            ms=f"{1e3 * each:,.1f}",
            input=f"{waited:.1%}",
            memory=in_words(memory),
            **({"skipped": self.skipped} if self.skipped else {}),
            refresh=False,
        )
        if self.progress.bar.disable:
            left = (self.training.num_steps - step) * each
            self.progress.say(
                f"step {step}/{self.training.num_steps}  loss {loss:.4f}  {1e3 * each:,.1f} ms/step, {1 / each:.1f}/s"
                f"  input wait {waited:.1%}  {in_words(memory)}  {left // 60:.0f}m{left % 60:02.0f}s left"
            )
        self.window, self.count, self.waited_before, self.since = [], 0, self.waited, now


def peak_process_bytes():
    """The most memory that this process has had resident."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_in_use():
    """{"device_bytes": in use, "device_bytes_peak": ..} of the fullest local device; on backends that do not tell, such as the
    CPU, {"process_bytes": resident, "process_bytes_peak": ..} of this process."""
    if all(stats := [device.memory_stats() for device in jax.local_devices()]):
        return {
            "device_bytes": max(each["bytes_in_use"] for each in stats),
            "device_bytes_peak": max(each.get("peak_bytes_in_use", 0) for each in stats),
        }
    peak = peak_process_bytes()
    try:
        with open("/proc/self/statm") as file:
            return {"process_bytes": int(file.read().split()[1]) * PAGE, "process_bytes_peak": peak}
    except OSError:  # not Linux
        return {"process_bytes_peak": peak}


def in_words(memory):
    """The same in words: "612 MiB of the process (peak 640)"."""
    kind = "device" if "device_bytes_peak" in memory else "process"
    peak = memory[f"{kind}_bytes_peak"] / 2**20
    now = memory.get(f"{kind}_bytes", memory[f"{kind}_bytes_peak"]) / 2**20
    return f"{now:,.0f} MiB of the {kind} (peak {peak:,.0f})"


class Profile(contextlib.AbstractContextManager):
    """A trace of `steps` steps, after WARM_UP others if the run is long enough, for TensorBoard or Perfetto; 0: none."""

    def __init__(self, folder, steps, start, end, say):
        if steps and not is_local(folder):
            raise ValueError(f"a profile is written to a local folder, not to {folder}: profile a short run in a local --workdir")
        self._folder, self._say, self._running = folder, say, False
        self._first = max(start, min(start + WARM_UP, end - steps)) if steps else end
        self._last = min(self._first + steps, end)

    def step(self, step, length):
        """A context for the dispatch of steps step .. step + length - 1, named "train" in the trace."""
        if not self._running and self._first < step + length and step < self._last:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # recording every Python call would slow down what is measured
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
            self._running, self._begun = True, step
        return jax.profiler.StepTraceAnnotation("train", step_num=step) if self._running else contextlib.nullcontext()

    def dispatched(self, done, results):
        """Call after every dispatch: `done` steps are dispatched, the last with these results."""
        if self._running and done >= self._last:
            jax.block_until_ready(results)  # so that the trace holds the last profiled step, too
            self._stop(done)

    def _stop(self, done):
        self._running = False
        jax.profiler.stop_trace()
        self._first = self._last = -1
        self._say(
            f"profile of steps {self._begun + 1} to {done} in {self._folder}: tensorboard --logdir={self._folder} (with "
            "pip install tensorboard xprof), or its trace.json.gz in https://ui.perfetto.dev"
        )

    def __exit__(self, *exception):
        if self._running:
            self._running = False
            with contextlib.suppress(Exception):  # the error that stopped the run matters more
                jax.profiler.stop_trace()


class Signals(contextlib.AbstractContextManager):
    """Turns SIGINT and SIGTERM into a request to save and stop after the running step; the same once more ends the process.

    Until `stepping` is set there is nothing to save, and the context is left at once, with Preempted. While `waiting`, for input
    that may never come, Interrupted is raised.
    """

    requested = stepping = waiting = False

    def __enter__(self):
        self._seen = set()
        self._handled = signals.handled(self._request, wanted=lambda: self._at_once)
        self._handled.__enter__()
        return self

    @property
    def _at_once(self):
        return not self.stepping or self.waiting

    def _request(self, number):
        if number in self._seen:
            signals.end(number)
        self._seen.add(number)
        self.requested = True
        if self.stepping:
            with contextlib.suppress(OSError):  # not print: the signal may have interrupted one
                os.write(2, b"saving, then stopping (once more to stop at once)\n")
        if self._at_once:
            raise signals.Interrupted

    def __exit__(self, kind, error, trace):
        self._handled.__exit__(None, None, None)
        if isinstance(error, signals.Interrupted) and self.requested:
            raise Preempted(BEFORE, agreed=False) from None
