"""A user's own code: `--plugin=my.py`, and how it, a config and a `--denoiser` are run.

A plug-in enrols a schedule (`@definition`), a sampler, a weighting, a metric, .. of one's own by the same decorators as ours. It
is run because the user named it. A workdir records its name and checksum, and nothing in a workdir is ever run: whoever uses
such a run names the plug-in again.
"""

import contextlib
import logging
import sys
import traceback
import zlib
from pathlib import Path

from noisesched.runs.settings import ConfigError, require
from noisesched.runtime.files import read_json, write_json

LOADED = {}  # {name of a plug-in's file: crc32 of its content}
RECORD = "plugins.json"
_log = logging.getLogger("noisesched")


def run(path, folders, then=lambda names: None, what=""):
    """Runs a Python file with `folders` on the path of imports; returns then({name: value} of what it defines).

    Raises ConfigError, which names the line, for whatever it raises. `what`: the word for such a file.
    """
    before, names = list(sys.path), {"__name__": Path(path).stem, "__file__": str(path)}
    sys.path[:] = folders
    try:
        exec(compile(Path(path).read_bytes(), str(path), "exec"), names)
        return then(names)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        raise ConfigError(f"{what}{path}{where}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        sys.path[:] = before


def load(paths):
    """Runs plug-ins, each once. ConfigError, in one line, for one that is missing or fails."""
    for path in paths:
        require(Path(path).is_file(), f"plugin={path!r}: there is no such file")
        name, crc32 = Path(path).name, zlib.crc32(Path(path).read_bytes())
        if LOADED.get(name) != crc32:
            run(path, [str(Path(path).resolve().parent), *sys.path], what="plugin ")
            LOADED[name] = crc32


def record(workdir):
    """Notes in a workdir which plug-ins its training has loaded."""
    if LOADED:
        write_json(workdir.path / RECORD, _recorded(workdir) | LOADED)


@contextlib.contextmanager
def of(workdir):
    """Around reading a run's config: a fault of it names the plug-ins it was trained with; warns of one that has changed."""
    recorded = _recorded(workdir)
    for name, crc32 in recorded.items():
        if LOADED.get(name, crc32) != crc32:
            _log.warning("warning: the plug-in %s has changed since %s was trained with it", name, workdir.path)
    try:
        yield
    except ConfigError as error:
        if missing := [name for name in recorded if name not in LOADED]:
            raise ConfigError(f"{error}; it was trained with --plugin={' '.join(missing)}: give that again") from error
        raise


def _recorded(workdir):
    try:
        return read_json(workdir.path / RECORD)
    except (FileNotFoundError, NotADirectoryError):
        return {}
