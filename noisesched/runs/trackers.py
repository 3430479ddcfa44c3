"""Services that show a run's numbers and pictures, beside TensorBoard: `noisesched train --tracker=wandb`.

A tracker is a class made of (workdir, config as nested dictionaries, id), with write(step, scalars), image(step, name, picture
uint8 [H, W, C]) and close(). `id` stays the same when the run is resumed. To add one, write it below, or in a plug-in, with
`@tracker` over it. What a service fails at is a warning: training does not depend on it.
"""

import os

from noisesched.runs.settings import ConfigError, require
from noisesched.runtime.files import read_file, reason, write_atomically

TRACKERS = {}  # name -> class


def tracker(made):
    """Enrols a tracker under its class's name in small letters."""
    TRACKERS[made.__name__.lower()] = made
    return made


@tracker
class Wandb:
    """Weights & Biases, in the project that WANDB_PROJECT names (noisesched)."""

    def __init__(self, workdir, config, id):
        import wandb

        self.wandb, project = wandb, os.environ.get("WANDB_PROJECT", "noisesched")
        self.run = wandb.init(project=project, name=workdir.path.name, id=id, resume="allow", config=config)

    def write(self, step, scalars):
        self.run.log(scalars, step=step)

    def image(self, step, name, picture):
        self.run.log({name: self.wandb.Image(picture)}, step=step)

    def close(self):
        self.run.finish()


def start(name, workdir, config):
    """The tracker of that name. Raises ConfigError, in one line, if there is none, or it cannot be started."""
    require(name in TRACKERS, f"tracker={name!r}: choose one of {', '.join(TRACKERS)}")
    path = workdir.path / ".tracker"
    if not path.exists():
        write_atomically(path, os.urandom(8).hex())
    try:
        return TRACKERS[name](workdir, config, read_file(path, 100).decode())
    except ImportError as error:
        raise ConfigError(f"tracker={name!r} needs a package that is not installed: pip install {error.name or name}") from None
    except Exception as error:
        raise ConfigError(f"tracker={name!r} cannot be started: {reason(error)}") from error


class Tracked:
    """`metrics_log.Metrics` that also go to a tracker; a context manager. `say` is told when the tracker fails, once."""

    def __init__(self, metrics, tracker, say):
        self._metrics, self._tracker, self._say = metrics, tracker, say

    def write(self, step, scalars):
        self._metrics.write(step, scalars)
        self._send("write", step, scalars)

    def image(self, step, name, picture):
        self._metrics.image(step, name, picture)
        self._send("image", step, name, picture)

    def flush(self):
        self._metrics.flush()

    def _send(self, what, *given):
        try:
            if self._tracker:
                getattr(self._tracker, what)(*given)
        except Exception as error:
            self._say(f"warning: the tracker has failed, and is told nothing more: {reason(error)}")
            self._tracker = None

    def __enter__(self):
        self._metrics.__enter__()
        return self

    def __exit__(self, *exception):
        self._metrics.__exit__(*exception)
        self._send("close")
