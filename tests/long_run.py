"""A long run in small: 20,000 steps with logs, pictures and checkpoints at short intervals; memory, threads, open files and files
on disk must not grow. By itself, as it takes a minute or more of a core, and not by pytest:

    python tests/long_run.py [FOLDER]

The command line is run as a process of its own and looked at from outside. Exit status 1 beyond a bound, which it names.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from noisesched.runs.metrics_log import read_metrics

ROOT = Path(__file__).resolve().parent.parent
STEPS, SETTLED = 20_000, 10_000  # in all; after which nothing should grow: by then what compiling left was collected
EVERY = {"training.log_every": 50, "training.checkpoint_every": 200, "preview.every": 500}
SETTINGS = EVERY | {
    "model.width": 8,
    "model.multipliers": "(1,)",
    "model.attention": "()",
    "model.blocks": 1,
    "training.num_steps": STEPS,
    "training.batch_size": 2,
    "training.steps_per_dispatch": 2,
    "preview.num_images": 4,
    "preview.steps": 3,
}
BOUNDS = {"own MiB": 16, "threads": 4, "open files": 4, "folders and files": 4}  # growth from step SETTLED to the end


def seen(pid, workdir):
    """What a process holds now."""
    with open(f"/proc/{pid}/status") as file:  # pages of files (libraries) the system drops and brings back as it likes
        own = next(int(line.split()[1]) for line in file if line.startswith("RssAnon:")) / 2**10
    pictures = list(workdir.glob("samples/*.png"))  # one for each preview, by design
    files = [path for path in workdir.rglob("*") if path not in pictures and ".orbax-checkpoint-tmp" not in str(path)]
    return {
        "own MiB": own,
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "open files": len(os.listdir(f"/proc/{pid}/fd")),
        "folders and files": len(files),
    }


def main(folder):
    workdir = Path(folder) / "run"
    command = [
        sys.executable,
        "-m",
        "noisesched",
        "train",
        f"--workdir={workdir}",
        f"--config={ROOT / 'configs' / 'digits.py'}",
        *(f"--config.{name}={value}" for name, value in SETTINGS.items()),
    ]
    begin, found, last = time.monotonic(), [], 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:  # a log line ends with the file list of no moment in particular: steps go on meanwhile
            if line.startswith("step ") and "  loss " in line and (step := int(line.split()[1].split("/")[0])) >= last + 1000:
                last = step
                try:
                    found.append((step, seen(process.pid, workdir)))
                except FileNotFoundError:  # a checkpoint went away while the folder was read, or the process at its end
                    continue
                print(f"step {step:6d}  " + "  ".join(f"{name} {value:.0f}" for name, value in found[-1][1].items()), flush=True)
    if process.returncode:
        return f"exit code {process.returncode}"
    records = read_metrics(workdir / "metrics.jsonl")
    settled = [held for step, held in found if step >= SETTLED]
    # Files come and go as checkpoints are made and dropped, and so do threads: the most of the first and the last quarter.
    quarter = max(len(settled) // 4, 1)
    most = lambda part, name: max(held[name] for held in part)
    growth = {name: most(settled[-quarter:], name) - most(settled[:quarter], name) for name in BOUNDS}
    by_itself = [record["process_bytes"] / 2**20 for record in records if record["step"] >= SETTLED]
    saves, pictures = STEPS // EVERY["training.checkpoint_every"], len(list(workdir.glob("samples/*.png")))
    print(f"{STEPS} steps, {time.monotonic() - begin:.0f} s: {len(records)} log lines, {saves} checkpoints, {pictures} pictures")
    print(f"resident, as metrics.jsonl has it: {by_itself[0]:.0f} MiB at step {SETTLED}, {by_itself[-1]:.0f} at the end")
    print("growth: " + ", ".join(f"{name} {value:+.1f} (bound {BOUNDS[name]})" for name, value in growth.items()))
    return "; ".join(f"{name} grew by {value:.1f}" for name, value in growth.items() if value > BOUNDS[name])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else temporary) or 0)
