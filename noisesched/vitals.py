"""What a running process tells of itself: its memory, that it is alive, and a profile of its steps."""

import contextlib
import os
import resource
import sys
import threading
import time

import jax

PAGE = os.sysconf("SC_PAGE_SIZE")
SILENCE = 60.0  # seconds after which a program without a terminal says that it is alive
WARM_UP = 10  # steps before a profile: compilation and the first wait for input are not what is looked for


def memory():
    """{"device_bytes": in use, "device_bytes_peak": ..} of the fullest local device; where a backend does not tell, as the CPU,
    {"process_bytes": resident, "process_bytes_peak": ..} of this process."""
    if all(stats := [device.memory_stats() for device in jax.local_devices()]):
        return {"device_bytes": max(each["bytes_in_use"] for each in stats),
                "device_bytes_peak": max(each.get("peak_bytes_in_use", 0) for each in stats)}  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        with open("/proc/self/statm") as file:
            return {"process_bytes": int(file.read().split()[1]) * PAGE, "process_bytes_peak": peak}
    except OSError:  # not Linux
        return {"process_bytes_peak": peak}


def told(memory):
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
        self._say(f"profile of steps {self._begun + 1} to {done} in {self._folder}: tensorboard --logdir={self._folder} (with "
                  "pip install tensorboard xprof), or its trace.json.gz in https://ui.perfetto.dev")  # fmt: skip

    def __exit__(self, *exception):
        if self._running:
            self._running = False
            with contextlib.suppress(Exception):  # what stopped the run in the middle is what there is to tell
                jax.profiler.stop_trace()
