"""The checkpoints of one run: orbax, made quiet, with checksums, safe to kill at any moment.

A checkpoint is a set of named items ("params", "ema", ...), each a pytree of numeric arrays, which can be restored one without
the others. On disk, under checkpoints/<step>/, each item is a flat set of arrays named by their path in the tree
("down/0/kernel"). Beside them a record holds the step, the settings of the network, and each array's shape, dtype and checksum:
orbax itself silently restores array data with changed bits, and silently casts to another dtype.
"""

import contextlib
import json
import logging
import math
import os
import re
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noisesched.runs import untrusted
from noisesched.runs.config import Config
from noisesched.runs.settings import brief, stated
from noisesched.runs.workdir import Workdir, differences
from noisesched.runtime import cluster, sharding
from noisesched.runtime.files import WriteError, is_local
from noisesched.spec import shortened

# The item that holds {"content": {"step", "network", "loss", "items": {item: {leaf: shape, dtype, crc32}}}, "crc32": its own}.
RECORD = "leaves"
RELISTED = 50  # how often a reader looks again for checkpoints, where the run deletes those that it is reading
_log = logging.getLogger("noisesched")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, found or trusted, or does not fit its target; the message is one line."""


class NotWritten(CheckpointError, WriteError):
    """A checkpoint could not be written: the state is not finite, or the disk is full."""


class Checkpoints:
    """The checkpoints in a workdir; a context manager around one orbax CheckpointManager.

    max_to_keep  keep the newest N; saving needs room for one more. None opens them read-only: nothing is created, moved or
                 deleted, so a run can be sampled while it trains
    keep_every   also keep those at multiples of N steps; 0: none
    keep_best    also keep the N with the lowest loss
    say          is called with a line about each damaged checkpoint; default: a warning in the log
    """

    def __init__(self, workdir: Workdir, max_to_keep: int | None, *, keep_every=0, keep_best=0, say=None):
        workdir.check_links()
        self.path = workdir.checkpoints
        self._network = _network(workdir)
        self._max_to_keep, self._keep_every = max_to_keep, keep_every
        self._best = _Best(keep_best, self._loss)
        self._losses: dict[int, float] = {}  # of steps, as far as they are known
        self._say = say or _log.warning
        self._writing: int | None = None  # the step that is being written in the background
        self._read_back = False  # whether one of this process's saves was
        self._ocp = _quiet_orbax()
        self._stack = contextlib.ExitStack()
        try:
            self._orbax_path = _literal(self.path, self._stack, create=max_to_keep is not None)
            for last in [False] * RELISTED + [True]:
                try:
                    self._manager = self._open()
                    break
                except FileNotFoundError:  # a checkpoint that orbax has just listed is deleted by the run that writes them
                    if last or max_to_keep is not None:
                        raise
        except (OSError, RuntimeError, ValueError) as error:
            self._stack.close()
            raise CheckpointError(f"{self.path} cannot be opened: {_reason(error)}") from None

    def _open(self):
        if self._max_to_keep is None:
            options = self._ocp.CheckpointManagerOptions(read_only=True)
        else:  # without the clean-up, files half written by a killed process would stay forever
            of = self._ocp.checkpoint_managers
            kept = [of.LatestN(self._max_to_keep), self._best]
            kept += [of.EveryNSteps(self._keep_every)] if self._keep_every else []
            barrier = _unless_failed(self._ocp.multihost.get_barrier_sync_fn()) if jax.process_count() > 1 else None
            options = self._ocp.CheckpointManagerOptions(
                preservation_policy=of.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
                async_options=self._ocp.AsyncOptions(barrier_sync_fn=barrier),
            )
        return self._ocp.CheckpointManager(self._orbax_path, options=options)

    def _loss(self, step: int) -> float:
        """The loss saved with a checkpoint; inf if there is none, or the checkpoint is damaged."""
        if step not in self._losses:
            try:
                self._losses[step] = float(self._record(step)["loss"])
            except Exception:  # damaged, which `restore` reports
                self._losses[step] = math.inf
        return self._losses[step]

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: dict[str, Any], loss: float | None = None) -> None:
        """Starts writing {item: pytree} in the background. On return the values are copied: donate or change them freely.

        `loss`: for `keep_best`. A step that is already complete is not written again: the state is a function of config and step.
        If the previous save failed in the background, that is raised here (or by `wait`), and nothing is saved.

        Raises NotWritten for a value that is not finite, a PRNG key, a leaf that is not numeric and a failed write;
        CheckpointError for a step older than the newest on disk.
        """
        self.wait()
        known = cluster.by_first(self.steps)
        if step in known:
            return
        if known and step < known[-1]:
            raise CheckpointError(f"{self.path} holds step {known[-1]}, newer than step {step}")
        try:
            arrays = {item: _to_host(item, tree) for item, tree in items.items()}
        except CheckpointError as error:
            raise NotWritten(f"no checkpoint of step {step} written: {error}") from None
        content = {
            "step": step,
            "network": self._network,
            "loss": None if loss is None else float(loss),
            "items": {
                item: {
                    name: {"shape": list(array.shape), "dtype": str(array.dtype), "crc32": _crc32(array)}
                    for name, array in leaves.items()
                }
                for item, leaves in arrays.items()
            },
        }
        args = {RECORD: self._ocp.args.JsonSave({"content": content, "crc32": _crc32_of_json(content)})}
        for item, leaves in arrays.items():
            if jax.process_count() > 1:  # each process writes its part of JAX arrays, the first one also all numpy arrays
                leaves = sharding.as_global(_flatten(item, items[item])[0])
            # Orbax accepts neither empty arrays nor empty items: these are in the record alone. It copies numpy arrays before
            # it returns, so they are not copied here.
            if stored := {name: array for name, array in leaves.items() if array.size}:
                args[item] = self._ocp.args.StandardSave(stored)
        self._losses[step] = math.inf if loss is None else float(loss)
        try:
            self._manager.save(step, args=self._ocp.args.Composite(**args), force=True)
        except Exception as error:
            raise self._failed(step, error) from None
        self._writing = step

    def wait(self, look=True) -> None:
        """Waits until the running save, if any, is complete on disk, and looks whether it is; CheckpointError if it is not."""
        step, self._writing = self._writing, None
        if step is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(step, error) from None
        if look and not cluster.by_first(self.path.exists):
            raise NotWritten(
                f"{self.path} is gone: the workdir was moved, deleted or replaced while step {step} was written; start "
                "the run again where it is now"
            )
        if look and (fault := cluster.by_first(lambda: self._missing(step))):
            self._set_aside(step)
            raise NotWritten(
                f"the checkpoint of step {step} was written to {self.path}, and is not there when it is read: {fault}; "
                f"it is kept as {step}.corrupt; complete checkpoints there: {_listed(self.steps())}"
            )
        self._read_back = True

    def _missing(self, step: int) -> str:
        """What a finished save lacks on disk, "" for nothing. The first one of a process is read back whole, unless others, who
        would have to take part, share the job."""
        folder = self._orbax_path / str(step)
        if not folder.exists():
            self._say(f"warning: checkpoint {self.path / str(step)} was deleted after it was written")
            return ""
        try:
            record = json.loads((folder / RECORD / "metadata").read_bytes())["content"]["items"]
            arrays = {
                item: {name: _empty(leaf["shape"], leaf["dtype"]) for name, leaf in leaves.items()}
                for item, leaves in record.items()
            }
            for item, leaves in arrays.items():
                if stored := {name: array for name, array in leaves.items() if array.size}:
                    untrusted.check_arrays(folder / item, stored)
                    untrusted.check_lengths(folder / item)
            if not self._read_back and jax.process_count() == 1:
                self._read(step, arrays)
        except Exception as error:  # as in `restore`
            return _reason(error)
        return ""

    def _failed(self, step: int, error: Exception) -> NotWritten:
        """Cleans up after a failed save, so that training can continue; returns the exception to raise."""
        steps = [each for each in self.steps() if each != step]
        # With several processes, opening would wait for the others, where nothing may have failed; and a workdir that was moved
        # away must not be begun anew.
        if jax.process_count() == 1 and self.path.exists():
            try:
                self._manager.close()
            except Exception:
                pass  # the same failure again
            try:
                self._remove_half_written()
                self._manager = self._open()
                steps = self.steps()
            except Exception:
                pass  # a bucket may refuse this too; the next start removes the rest
        return NotWritten(
            f"the checkpoint of step {step} could not be written to {self.path}: {_reason(error)}; "
            f"complete checkpoints there: {_listed(steps)}"
        )

    def _remove_half_written(self) -> None:
        """Removes the files of a failed save, which would keep a full disk full.

        Orbax's own clean-up fails, and makes the next save fail, while others of its threads still write there, and it does not
        wait for them once one has failed. So this tries until they have ended.
        """
        for _ in range(50):
            left = [path for path in self.path.iterdir() if ".orbax-checkpoint-tmp" in path.name]
            if not left:
                break
            for path in left:
                try:
                    path.rmtree()
                except OSError:
                    pass  # a new file has appeared meanwhile
            time.sleep(0.1)

    def restore(self, items: dict[str, Any], step: int | None = None) -> tuple[int, dict[str, Any]]:
        """Reads {item: target pytree} of a step, or the latest -> (step, {item: pytree of numpy arrays}).

        Target leaves (arrays or ShapeDtypeStructs) give shape and dtype. If the latest checkpoint is damaged, `say` is told, and
        the one before it is used; if open for writing, the damaged one is also renamed to <step>.corrupt, so that it does not
        count as the latest or block a new save of its step. The files' metadata are compared with the target before memory is
        allocated.

        Raises CheckpointError if the step does not exist, names, shapes or dtypes differ from the target's, memory is too small,
        config.json now describes another network than the one that was trained, or no checkpoint is usable.
        """
        self.wait()
        for _ in range(RELISTED):
            if found := self._restore(items, step):
                return found
            self._manager.reload()
        raise CheckpointError(
            f"{self.path}: the run deletes its checkpoints before they can be read: try again, or train with more of "
            "training.keep_checkpoints"
        )

    def _restore(self, items, step):
        """(step, {item: pytree}) for `restore`; None if checkpoints were deleted meanwhile, as a run that trains does."""
        steps = cluster.by_first(self.steps)  # a run may be training, or a disk lag: all processes read the same step
        if not steps and self._max_to_keep is None:  # the folder was listed between one checkpoint's end and the next's beginning
            time.sleep(0.2)
            self._manager.reload()
            steps = cluster.by_first(self.steps)
        if not steps or step not in (None, *steps):
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise CheckpointError(f"{self.path} holds no {wanted} (complete: {_listed(steps)})")
        damaged: dict[int, str] = {}
        for candidate in [step] if step is not None else reversed(steps):
            fault = ""
            try:
                restored = self._read(candidate, items)
            except CheckpointError as error:
                raise CheckpointError(f"checkpoint {self.path / str(candidate)}: {error}") from None
            except MemoryError:
                raise
            except Exception as error:  # damage comes as almost any exception of orbax, tensorstore or json
                fault = _reason(error)
            if first := cluster.by_first(lambda fault=fault: fault):  # all processes take the first one's verdict
                if cluster.by_first(lambda candidate=candidate: self._disappears(candidate)):
                    return None
                damaged[candidate] = first
                continue
            if fault:
                raise CheckpointError(f"this process cannot read checkpoint {self.path / str(candidate)}: {fault}")
            for bad, reason in damaged.items():
                where = self.path / str(bad)
                aside = "" if self._max_to_keep is None else f"; it is kept as {bad}.corrupt"
                self._say(f"warning: checkpoint {where} is damaged ({reason}); using step {candidate} instead{aside}")
                self._set_aside(bad)
            return candidate, restored
        faults = "; ".join(f"step {bad}: {reason}" for bad, reason in damaged.items())
        raise CheckpointError(f"no usable checkpoint in {self.path}: {faults}")

    def _disappears(self, step: int) -> bool:
        """Whether a checkpoint that could not be read is deleted, or is being deleted, by the run that writes them: what is
        damaged stays as it is."""
        folder = self.path / str(step)
        if self._max_to_keep is not None or not folder.exists():
            return self._max_to_keep is None
        content = lambda: sorted(os.path.join(where, name) for where, _, names in os.walk(folder) for name in names)
        before = content()  # of a bucket, nothing
        time.sleep(0.2)
        return not folder.exists() or content() != before

    def _read(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """Reads one step. Raises CheckpointError if it is sound but does not fit, any other exception if it is damaged."""
        args = self._ocp.args
        content = self._record(step)
        if edits := differences(brief(Config, content["network"]), self._network):
            raise CheckpointError(
                f"config.json was edited since ({'; '.join(edits)}), and now describes another network: "
                "put that back, or train in another workdir"
            )
        targets, templates, wanted = {}, {}, {}
        try:
            size = untrusted.num_bytes(_shape_dtype(leaf) for leaf in jax.tree.leaves(items))
            untrusted.check_memory(size, f"{', '.join(items)} of this network")
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        for item, tree in items.items():
            leaves, _ = targets[item] = _flatten(item, tree)
            _check_fit(item, content["items"], leaves)
            # Numpy templates make orbax return numpy arrays, whatever devices the run used. These take no memory.
            templates[item] = {
                name: _empty(shape, dtype)
                for name, (shape, dtype) in ((name, _shape_dtype(leaf)) for name, leaf in leaves.items())
            }
            if stored := {name: template for name, template in templates[item].items() if template.size}:
                wanted[item] = args.StandardRestore(stored)
                untrusted.check_arrays(self._orbax_path / str(step) / item, stored)
        read = self._manager.restore(step, args=args.Composite(**wanted)) if wanted else {}
        restored = {}
        for item, (_, structure) in targets.items():
            arrays = [read[item][k] if a.size else np.array(a) for k, a in templates[item].items()]
            for name, array in zip(templates[item], arrays, strict=True):
                if _crc32(array) != content["items"][item][name]["crc32"]:
                    raise ValueError(f"the checksum of {item}/{name} differs")
            restored[item] = jax.tree_util.tree_unflatten(structure, arrays)
        return restored

    def _record(self, step: int) -> dict[str, Any]:
        """The content of a step's record; raises any exception if it is damaged."""
        untrusted.check_files(self.path / str(step))
        args = self._ocp.args
        record = self._manager.restore(step, args=args.Composite(**{RECORD: args.JsonRestore()}))[RECORD]
        content = record["content"]
        if record["crc32"] != _crc32_of_json(content) or content["step"] != step:
            raise ValueError("its record of leaves has changed")
        return content

    def _set_aside(self, step: int) -> None:
        if self._max_to_keep is None:
            return

        def move():
            aside = self.path / f"{step}.corrupt"
            if aside.exists():  # the same step was damaged before
                aside.rmtree()
            (self.path / str(step)).rename(aside)

        cluster.by_first(move)
        self._manager.reload()

    def close(self, look=True) -> None:
        """Waits for the running save and closes; CheckpointError if that save failed."""
        try:
            self.wait(look)
        finally:
            self._manager.close()
            self._stack.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            self.close(look=error is None)  # else others of the job may be gone
        except Exception as failure:  # a CheckpointError, or orbax's own for the same fault
            if error is None:
                raise
            _log.error("%s", failure)  # the exception that ended the context is the one to show


def _unless_failed(barrier):
    """An orbax barrier that raises if this process's save has failed: the others wait at another barrier, for 20 minutes."""

    def wait(**given):
        if (error := sys.exception()) is not None:
            raise error
        barrier(**given)

    return wait


class _Best:
    """An orbax preservation policy: the n checkpoints with the lowest loss, of equal ones the later; those without are ignored.

    Not orbax's BestN: that reads the losses from a file without a checksum, and if it is damaged opens no checkpoint at all.
    """

    def __init__(self, n: int, loss):
        self.n, self.loss = n, loss

    def should_preserve(self, checkpoints, *, context):
        steps = [info.step for info in checkpoints] if self.n else []
        ranked = sorted((loss, -step) for step in steps if math.isfinite(loss := self.loss(step)))
        best = {-step for _, step in ranked[: self.n]}
        return [info.step in best for info in checkpoints]


def _network(workdir: Workdir) -> dict[str, Any]:
    """The settings in a workdir's config.json that describe its network; {} if it has no config."""
    config = workdir.read_config() if workdir.config.exists() else {}
    return brief(Config, {name: config[name] for name in stated("network", Config) if name in config})


def _flatten(item: str, tree: Any) -> tuple[dict[str, Any], Any]:
    """({"down/0/kernel": leaf} in tree order, the structure) of a pytree."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
    if len(leaves) < len(paths):
        raise CheckpointError(f"{item}: two of its leaves have the same path (as with the keys 1 and '1')")
    return leaves, structure


def _to_host(item: str, tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree as numpy arrays; CheckpointError for one that cannot or must not be stored."""
    leaves, _ = _flatten(item, tree)
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise CheckpointError(f"{item}/{name} is a PRNG key: derive keys from (seed, step), store none")
    if jax.process_count() > 1:
        host = [sharding.whole(leaf) for leaf in leaves.values()]
    else:
        host = [np.asarray(leaf) for leaf in jax.device_get(list(leaves.values()))]  # all transfers at once
    for name, array in zip(leaves, host, strict=True):
        if array.dtype != bool and not jnp.issubdtype(array.dtype, np.number):
            raise CheckpointError(f"{item}/{name} is not a numeric array (its dtype is {array.dtype})")
        if jnp.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            bad = int(np.sum(~np.isfinite(array)))
            raise CheckpointError(f"{item}/{name} is not finite ({bad} of {array.size} values)")
    return dict(zip(leaves, host, strict=True))


def _check_fit(item: str, record: dict, leaves: dict[str, Any]) -> None:
    """CheckpointError unless the stored arrays have the names, shapes and dtypes of the target's leaves."""
    if item not in record:
        raise CheckpointError(f"it holds no {item!r}, only {', '.join(sorted(record))}")
    stored = {name: (tuple(leaf["shape"]), leaf["dtype"]) for name, leaf in record[item].items()}
    target = {name: _shape_dtype(leaf) for name, leaf in leaves.items()}
    faults = []
    for name in sorted({*stored, *target}):
        have, want = (f"{of[name][1]} {of[name][0]}" if name in of else "nothing" for of in (stored, target))
        if have != want:
            faults.append(f"{item}/{name} holds {have} where {want} is wanted")
    if faults:
        more = f" (and {len(faults) - 1} more leaves differ)" if len(faults) > 1 else ""
        raise CheckpointError(faults[0] + more)


def _shape_dtype(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return tuple(leaf.shape), leaf.dtype


def _empty(shape, dtype) -> np.ndarray:
    """An array of that shape and dtype that takes no memory."""
    return np.broadcast_to(np.zeros((), jnp.dtype(dtype)), tuple(shape))


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _crc32_of_json(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _reason(error: Exception) -> str:
    """An exception in one short line: those of orbax and tensorstore can be pages."""
    text = " ".join(str(error).split()) or type(error).__name__
    if code := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(code[1]))  # such as "No space left on device"
    return shortened(text, 200)


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


# -- orbax, quiet


def _literal(path, stack, create):
    """`path` under a name that orbax takes as it stands: it reads names as patterns, finds nothing in a folder called "b[1]", and
    reports no fault. Any other than a plain name is reached through a link in a temporary folder, which goes with `stack`."""
    plain = re.compile(r"[\w/.,=+@ -]*", re.ASCII)
    if not is_local(path) or plain.fullmatch(str(path)):
        return path
    if not plain.fullmatch(tempfile.gettempdir()):
        raise ValueError(
            f"a folder of this name needs a temporary one with a plain name, not {tempfile.gettempdir()}: set TMPDIR"
        )
    if create:
        path.mkdir(parents=True, exist_ok=True)
    link = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="noisesched-"))) / "checkpoints"
    link.symlink_to(path)
    return type(path)(link)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Drops what orbax logs, errors included: those reach us as exceptions."""
    return record.levelno >= logging.CRITICAL or f"{os.sep}orbax{os.sep}" not in record.pathname


def _not_about_lost_reads(record: logging.LogRecord) -> bool:
    """Drops what asyncio logs when one array cannot be read: the failures of orbax's other reads, which nobody awaits."""
    return "exception was never retrieved" not in str(record.msg)


def _quiet_orbax():
    """orbax.checkpoint, silenced; imported here, as it takes long and not every program needs it."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").addFilter(_not_from_orbax)  # has no effect the second time
    logging.getLogger("asyncio").addFilter(_not_about_lost_reads)
    if getattr(sys.unraisablehook, "__name__", "") != "_without_closed_loops":
        usual = sys.unraisablehook

        def _without_closed_loops(event):
            # When one array cannot be read, orbax closes the event loop under its other reads, and tensorstore prints a
            # traceback for each of them: thousands of lines around the one that matters.
            if event.exc_type is not RuntimeError or str(event.exc_value) != "Event loop is closed":
                usual(event)

        sys.unraisablehook = _without_closed_loops
    return ocp
