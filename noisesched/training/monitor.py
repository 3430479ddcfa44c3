"""What is known of a training run's steps: losses checked, logged and shown, a sign of life, and why it stopped."""

import collections
import contextlib
import os
import resource
import signal
import sys
import threading
import time

import jax
import numpy as np
from tqdm import tqdm

RUN_AHEAD = 4  # dispatches in flight: enough to keep a device busy, few enough that a fault is seen at once


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message is one line. `stuck`: nor does the process end in the usual way, see data.InputFault."""

    stuck = False


class Recorder(contextlib.AbstractContextManager):
    """What is known of the steps, a few steps later: checks every loss, logs, shows progress. It never waits for the device."""

    def __init__(self, config, rate, metrics, start, say, show=True):
        self.training, self.metrics, self.say = config.training, metrics, say
        self.rate = rate
        self.pending, self.window, self.intervals, self.waited = collections.deque(), [], [], 0.0
        self.step, self.count, self.skipped = start, 0, 0  # the last step seen; steps since the last log line; skipped updates
        self.stop = False  # whether a process had been asked to stop, at the last dispatch looked at
        self.since = self.looked = time.perf_counter()
        self.bar = tqdm(total=self.training.num_steps, initial=start, unit="step", disable=None if show else True, smoothing=0.05)
        self.heartbeat = Heartbeat(say, self._alive) if show and self.bar.disable else None
        if self.heartbeat:
            self.say = self.heartbeat.say

    def waiting(self, produce):
        """The input, and how long the loop stood still for it."""
        begin = time.perf_counter()
        produced = produce()
        self.waited += time.perf_counter() - begin
        return produced

    def dispatched(self, step, results):
        self.pending.append((step, results))
        if len(self.pending) > RUN_AHEAD:
            self._look(*self.pending.popleft())

    def drain(self):
        while self.pending:
            self._look(*self.pending.popleft())

    def close(self):
        self.drain()
        self.__exit__()

    def __exit__(self, *exception):
        self.bar.close()
        if self.heartbeat:
            self.heartbeat.close()

    def _look(self, first, results):
        results = jax.device_get(results)  # of a dispatch that has had time to finish
        self.stop = self.stop or bool(np.any(results.get("stop", False)))
        now, count = time.perf_counter(), len(results["loss"])
        self.intervals.append((now - self.looked) / count)
        self.looked = now
        for offset, (loss, norm) in enumerate(zip(results["loss"], results["grad_norm"], strict=True)):
            self.step = step = first + offset + 1
            self.count += 1
            if np.isfinite(loss) and np.isfinite(norm):
                self.window.append((loss, norm))
            else:
                self._not_finite(step, {name: values[offset] for name, values in results.items()})
            if step % self.training.log_every == 0 or step == self.training.num_steps:
                self._log(step)
        self.bar.update(count)

    def _not_finite(self, step, result):
        """Tells of a skipped update, or raises TrainingStopped."""
        low, high = result["bad_log_snr_min"], result["bad_log_snr_max"]
        where = f"in examples of log-SNR {low:.4g} to {high:.4g}" if low <= high else "in the gradient alone"
        what = f"not finite at step {step}: loss {result['loss']}, gradient norm {result['grad_norm']}, {where}"
        allowed = self.training.skip_nonfinite
        if not allowed or result["skipped"] > allowed:
            before = f" {allowed} such updates were skipped before (training.skip_nonfinite);" if allowed else ""
            self.bar.close()
            raise TrainingStopped(
                f"{what};{before} checkpoints from before are kept (a lower learning rate or clip_norm may help)"
            )
        self.skipped = int(result["skipped"])
        self.say(f"{what}; update skipped, {self.skipped} of at most {allowed}")

    def _log(self, step):
        now = time.perf_counter()
        seconds, steps = now - self.since, self.count
        loss, norm = np.mean(self.window, axis=0) if self.window else (np.nan, np.nan)
        each, waited, memory = np.median(self.intervals), self.waited / seconds, memory_in_use()
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
        self.bar.set_postfix(
            loss=f"{loss:.4f}",
            ms=f"{1e3 * each:,.1f}",
            input=f"{waited:.1%}",
            memory=in_words(memory),
            **({"skipped": self.skipped} if self.skipped else {}),
            refresh=False,
        )
        if self.bar.disable:
            left = (self.training.num_steps - step) * seconds / steps
            self.say(
                f"step {step}/{self.training.num_steps}  loss {loss:.4f}  {1e3 * each:,.1f} ms/step, {steps / seconds:.1f}/s"
                f"  input wait {waited:.1%}  {in_words(memory)}  {left // 60:.0f}m{left % 60:02.0f}s left"
            )
        self.window, self.intervals, self.count, self.waited, self.since = [], [], 0, 0.0, now

    def _alive(self):
        """The line of a heartbeat, from what has been looked at."""
        ago = time.perf_counter() - self.looked
        return (
            f"step {self.step}/{self.training.num_steps}  alive, last seen at work {ago:.0f} s ago  {in_words(memory_in_use())}"
        )


PAGE = os.sysconf("SC_PAGE_SIZE")


SILENCE = 60.0  # seconds after which a program without a terminal says that it is alive


WARM_UP = 10  # steps before a profile: compilation and the first wait for input are not what is looked for


def memory_in_use():
    """{"device_bytes": in use, "device_bytes_peak": ..} of the fullest local device; where a backend does not tell, as the CPU,
    {"process_bytes": resident, "process_bytes_peak": ..} of this process."""
    if all(stats := [device.memory_stats() for device in jax.local_devices()]):
        return {
            "device_bytes": max(each["bytes_in_use"] for each in stats),
            "device_bytes_peak": max(each.get("peak_bytes_in_use", 0) for each in stats),
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
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


class Heartbeat:
    """Says a line whenever nothing was said for SILENCE seconds: a thread, so that it speaks while a device or a disk is waited
    for, too. `status()` -> the line, from what is known already."""

    def __init__(self, say, status):
        self._say, self._status, self._ended, self.spoken = say, status, threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._run, name="noisesched-heartbeat", daemon=True)
        self._thread.start()

    def _run(self):
        while not self._ended.wait(max(self.spoken + SILENCE - time.monotonic(), 0.01)):
            if time.monotonic() - self.spoken >= SILENCE:
                self.say(self._status())

    def say(self, line):
        self.spoken = time.monotonic()
        self._say(line)

    def close(self):
        self._ended.set()
        self._thread.join()


class Profile(contextlib.AbstractContextManager):
    """A trace of `steps` steps, after WARM_UP others if the run is that long, for TensorBoard or Perfetto. 0: none."""

    def __init__(self, folder, steps, start, end, say):
        if steps and "://" in str(folder):
            raise ValueError(f"a profile is written to a local folder, not to {folder}: profile a short run in a local --workdir")
        self._folder, self._say, self._running = folder, say, False
        self._first = max(start, min(start + WARM_UP, end - steps)) if steps else end
        self._last = min(self._first + steps, end)

    def step(self, step, length):
        """A context for the dispatch of steps step .. step + length - 1, by the name of "train" in the trace."""
        if not self._running and self._first < step + length and step < self._last:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call would be many, and slow what is measured
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
            self._running, self._begun = True, step
        return jax.profiler.StepTraceAnnotation("train", step_num=step) if self._running else contextlib.nullcontext()

    def dispatched(self, done, results):
        """To be told of every dispatch: `done` steps are on their way, with these results."""
        if self._running and done >= self._last:
            jax.block_until_ready(results)  # of the profiled steps the last is to be in the trace
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
            with contextlib.suppress(Exception):  # what stopped the run in the middle is what there is to tell
                jax.profiler.stop_trace()


class Preempted(TrainingStopped):
    """A signal stopped training, with nothing lost: the same command goes on. `agreed`: all processes of the job know."""

    def __init__(self, message, agreed=True):
        super().__init__(message)
        self.agreed = agreed


class Signals(contextlib.AbstractContextManager):
    """Turns SIGINT and SIGTERM into a request to save and stop after the running step; a second one acts as usual.

    Until `stepping` is set there is nothing to save: then Preempted is raised where the program stands. A signal that the parent
    has had ignored stays ignored, as the background jobs of a shell expect.
    """

    requested = stepping = False

    def __enter__(self):
        heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
        self.usual = {number: signal.signal(number, self._request) for number in heard}
        return self

    def _request(self, number, frame):
        signal.signal(number, self.usual[number])
        self.requested = True  # if the exception is lost, as in a callback of the garbage collector, the first step is the last
        if not self.stepping:
            raise Preempted("stopped by a signal before the first step; the same command begins again", agreed=False)
        # Not print, which may be what the signal interrupted.
        os.write(sys.__stderr__.fileno(), b"saving, then stopping (once more to stop at once)\n")

    def __exit__(self, *exception):
        for number, handler in self.usual.items():
            signal.signal(number, handler)
