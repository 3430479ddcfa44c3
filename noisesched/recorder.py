"""What is known of a training run's steps: losses checked, logged and shown, a sign of life, and why it stopped."""

import collections
import contextlib
import time

import jax
import numpy as np
from tqdm import tqdm

from noisesched import vitals

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
        self.bar = tqdm(total=self.training.num_steps, initial=start, unit="step", disable=None if show else True,
                        smoothing=0.05)  # fmt: skip
        self.heartbeat = vitals.Heartbeat(say, self._alive) if show and self.bar.disable else None
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
            raise TrainingStopped(f"{what};{before} checkpoints from before are kept (a lower learning rate or clip_norm may "
                                  "help)")  # fmt: skip
        self.skipped = int(result["skipped"])
        self.say(f"{what}; update skipped, {self.skipped} of at most {allowed}")

    def _log(self, step):
        now = time.perf_counter()
        seconds, steps = now - self.since, self.count
        loss, norm = np.mean(self.window, axis=0) if self.window else (np.nan, np.nan)
        each, waited, memory = np.median(self.intervals), self.waited / seconds, vitals.memory()
        self.metrics.write(step, {
            "loss": loss, "grad_norm": norm, "learning_rate": float(self.rate(step - 1 - self.skipped)),
            "images_per_second": steps * self.training.batch_size / seconds,
            "step_seconds": each, "input_wait": waited, **memory,
            **({"skipped": self.skipped} if self.training.skip_nonfinite else {}),
        })  # fmt: skip
        self.bar.set_postfix(loss=f"{loss:.4f}", ms=f"{1e3 * each:,.1f}", input=f"{waited:.1%}", memory=vitals.told(memory),
                             **({"skipped": self.skipped} if self.skipped else {}), refresh=False)  # fmt: skip
        if self.bar.disable:
            left = (self.training.num_steps - step) * seconds / steps
            self.say(f"step {step}/{self.training.num_steps}  loss {loss:.4f}  {1e3 * each:,.1f} ms/step, {steps / seconds:.1f}/s"
                     f"  input wait {waited:.1%}  {vitals.told(memory)}  {left // 60:.0f}m{left % 60:02.0f}s left")  # fmt: skip
        self.window, self.intervals, self.count, self.waited, self.since = [], [], 0, 0.0, now

    def _alive(self):
        """The line of a heartbeat, from what has been looked at."""
        ago = time.perf_counter() - self.looked
        return (f"step {self.step}/{self.training.num_steps}  alive, last seen at work {ago:.0f} s ago  "
                f"{vitals.told(vitals.memory())}")  # fmt: skip
