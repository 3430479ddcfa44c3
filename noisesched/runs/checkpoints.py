"""The checkpoints of one run, on orbax: asynchronous, checked against damage, safe to kill.

A checkpoint is a set of named items ("params", "ema", ...), each a pytree of numeric arrays, so that one can
be restored without the others. On disk, under checkpoints/<step>/, each item is a flat set of arrays, named
by their path in the tree ("down/0/kernel"). Beside them is a record of step, shapes, dtypes and checksums,
because orbax itself restores changed bits in array data without a word, and casts to another dtype without a
word.
"""

import json
import logging
import math
import os
import re
import sys
import time
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noisesched.runs import untrusted
from noisesched.runs import config as configuration
from noisesched.runs.workdir import Workdir, differences
from noisesched.runtime import cluster, sharding
from noisesched.runtime.files import WriteError

# The item that holds {"content": {"step", "network", "loss", "items": {item: {leaf: shape, dtype, crc32}}}, "crc32": its own}
RECORD = "leaves"
_log = logging.getLogger("noisesched")


class CheckpointError(ValueError):
    """A checkpoint cannot be written, found, trusted or fitted to its target; the message is one line."""


class NotWritten(CheckpointError, WriteError):
    """A checkpoint could not be written: the state is not finite, or the disk full."""


class Checkpoints:
    """The checkpoints in a workdir; a context manager around one orbax CheckpointManager.

    `max_to_keep`: how many of the newest are kept; saving needs room for one more. None opens them for
    reading only: nothing is made, moved or deleted, so that a run can be sampled while it trains. Beside the
    newest are kept those at multiples of `keep_every` steps (0: none), and the `keep_best` of the least loss.
    `say`: told, in a line, of a damaged checkpoint; by default a warning in the log.
    """

    def __init__(self, workdir: Workdir, max_to_keep: int | None, *, keep_every=0, keep_best=0, say=None):
        workdir.check_links()
        self.path = workdir.checkpoints
        self._network = _network(workdir)
        self._max_to_keep, self._keep_every = max_to_keep, keep_every
        self._best = _Best(keep_best, self._loss)
        self._losses: dict[int, float] = {}  # of the steps it was asked of
        self._say = say or _log.warning
        self._writing: int | None = None  # the step whose files are being written in the background
        self._ocp = _orbax()
        try:
            self._manager = self._open()
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.path} cannot be opened: {_reason(error)}") from None

    def _open(self):
        if self._max_to_keep is None:
            options = self._ocp.CheckpointManagerOptions(read_only=True)
        else:  # without the clean-up, what a killed process had half written would stay for ever
            of = self._ocp.checkpoint_managers
            kept = [of.LatestN(self._max_to_keep), self._best]
            kept += [of.EveryNSteps(self._keep_every)] if self._keep_every else []
            barrier = _unless_failed(self._ocp.multihost.get_barrier_sync_fn()) if jax.process_count() > 1 else None
            options = self._ocp.CheckpointManagerOptions(
                preservation_policy=of.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
                async_options=self._ocp.AsyncOptions(barrier_sync_fn=barrier),
            )
        return self._ocp.CheckpointManager(self.path, options=options)

    def _loss(self, step: int) -> float:
        """The loss that a checkpoint was saved with; inf if there is none, or it is damaged."""
        if step not in self._losses:
            try:
                self._losses[step] = float(self._record(step)["loss"])
            except Exception:  # see `restore`; what to make of damage is not to be settled here
                self._losses[step] = math.inf
        return self._losses[step]

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def save(self, step: int, items: dict[str, Any], loss: float | None = None) -> None:
        """Starts writing {item: pytree}. On return the values are copied: donate or change them freely.
        `loss`: what `keep_best` goes by.

        A step that is already complete is left as it is: the state is a function of config and step. If the
        save before this one failed in the background, that is raised here (or by `wait`), and nothing is
        saved.
        Raises NotWritten: a non-finite value, a PRNG key, a leaf that is not numeric, a failed write; CheckpointError: a step
        older than one on disk.
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
            if jax.process_count() > 1:  # each writes its part of arrays on the devices of all, the first one what is numpy's
                leaves = sharding.as_global(_flatten(item, items[item])[0])
            # Orbax takes neither arrays without elements nor items without arrays: the record alone keeps
            # those. It deep-copies numpy arrays before it returns, so they are not copied here as well.
            if stored := {name: array for name, array in leaves.items() if array.size}:
                args[item] = self._ocp.args.StandardSave(stored)
        self._losses[step] = math.inf if loss is None else float(loss)
        try:
            self._manager.save(step, args=self._ocp.args.Composite(**args), force=True)
        except Exception as error:
            raise self._failed(step, error) from None
        self._writing = step

    def wait(self) -> None:
        """Returns when the running save, if any, is complete on disk; CheckpointError if it failed."""
        step, self._writing = self._writing, None
        if step is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(step, error) from None

    def _failed(self, step: int, error: Exception) -> NotWritten:
        """Clears up after a failed save, so that training may go on; returns what there is to raise."""
        steps = [each for each in self.steps() if each != step]
        if jax.process_count() == 1:  # with more, opening waits for the others, where nothing may have failed
            try:
                self._manager.close()
            except Exception:
                pass  # the same failure once more
            try:
                self._remove_half_written()
                self._manager = self._open()
                steps = self.steps()
            except Exception:
                pass  # a bucket that refuses this, too: what is left there, the next start removes
        return NotWritten(
            f"the checkpoint of step {step} could not be written to {self.path}: {_reason(error)}; "
            f"complete checkpoints there: {_listed(steps)}"
        )

    def _remove_half_written(self) -> None:
        """Removes what a failed save has written: it would keep a full disk full.

        Orbax's own clean-up fails, and then fails the next save, if others of its threads still write there;
        and it does not wait for them once one has failed. So this tries again until they have ended.
        """
        for _ in range(50):
            left = [path for path in self.path.iterdir() if ".orbax-checkpoint-tmp" in path.name]
            if not left:
                break
            for path in left:
                try:
                    path.rmtree()
                except OSError:
                    pass  # a new file has come up meanwhile
            time.sleep(0.1)

    def restore(self, items: dict[str, Any], step: int | None = None) -> tuple[int, dict[str, Any]]:
        """Reads {item: target pytree} of a step, or the latest -> (step, {item: pytree of numpy arrays}).

        Target leaves (arrays or ShapeDtypeStructs) give shape and dtype. If the latest checkpoint is damaged,
        a line names it, and the one before it is used; when open for writing, the damaged one is also
        moved to <step>.corrupt, where it neither counts as the latest nor blocks a new save of its step.
        What the files claim is compared with the target before memory is taken for it.
        Raises CheckpointError: no such step; other names, shapes or dtypes than the target's, or larger than memory; a
        config.json that now describes another network than the one that was trained; none usable.
        """
        self.wait()
        steps = cluster.by_first(self.steps)  # a run may be training meanwhile, or a disk be late: all read the same one
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
            if first := cluster.by_first(lambda fault=fault: fault):  # one verdict for all processes
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

    def _read(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """One step, checked. CheckpointError: sound, but it does not fit. Any other exception: damaged."""
        args = self._ocp.args
        content = self._record(step)
        known = content.get("network", {})  # none in a checkpoint of an earlier version
        if edits := differences(known, self._network) if known else []:
            raise CheckpointError(
                f"config.json was edited since it was written ({'; '.join(edits)}), and now describes another "
                "network: put that back, or train anew in another workdir"
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
            # Numpy templates give numpy arrays, whatever devices the run was on. These take no memory.
            templates[item] = {
                name: np.broadcast_to(np.zeros((), dtype), shape)
                for name, (shape, dtype) in ((name, _shape_dtype(leaf)) for name, leaf in leaves.items())
            }
            if stored := {name: template for name, template in templates[item].items() if template.size}:
                wanted[item] = args.StandardRestore(stored)
                untrusted.check_arrays(self.path / str(step) / item, stored)
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
        """The content of a step's record; any exception: damaged."""
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
            if aside.exists():  # damaged before, at the same step
                aside.rmtree()
            (self.path / str(step)).rename(aside)

        cluster.by_first(move)
        self._manager.reload()

    def close(self) -> None:
        """Waits for the running save and ends; CheckpointError if that save failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            self.close()
        except Exception as failure:  # a CheckpointError, or what orbax makes of the same once more
            if error is None:
                raise
            _log.error("%s", failure)  # the exception on its way out is the one to show


def _unless_failed(barrier):
    """An orbax barrier at which a process whose save has failed does not wait: the others stand at another, for 20 minutes."""

    def wait(**given):
        if (error := sys.exception()) is not None:
            raise error
        barrier(**given)

    return wait


class _Best:
    """An orbax preservation policy: the n checkpoints of the least loss, the later of equal ones. Those without one do not count.

    Not orbax's BestN, which has the numbers from a file without a checksum, whose damage keeps all checkpoints from being opened.
    """

    def __init__(self, n: int, loss):
        self.n, self.loss = n, loss

    def should_preserve(self, checkpoints, *, context):
        steps = [info.step for info in checkpoints] if self.n else []
        ranked = sorted((loss, -step) for step in steps if math.isfinite(loss := self.loss(step)))
        best = {-step for _, step in ranked[: self.n]}
        return [info.step in best for info in checkpoints]


def _network(workdir: Workdir) -> dict[str, Any]:
    """The settings in a workdir's config.json that describe its network; none if it has no config."""
    config = workdir.read_config() if workdir.config.exists() else {}
    return {name: config[name] for name in configuration.stated("network", configuration.Config) if name in config}


def _flatten(item: str, tree: Any) -> tuple[dict[str, Any], Any]:
    """A pytree as {"down/0/kernel": leaf}, in tree order, and its structure."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
    if len(leaves) < len(paths):
        raise CheckpointError(f"{item}: two of its leaves have the same path (as with the keys 1 and '1')")
    return leaves, structure


def _to_host(item: str, tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree as numpy arrays; CheckpointError for one that must not, or cannot, be stored."""
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
    """CheckpointError unless what was stored has the names, shapes and dtypes of the target's leaves."""
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


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _crc32_of_json(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _reason(error: Exception) -> str:
    """An exception in one line; those of orbax and tensorstore can be pages."""
    text = " ".join(str(error).split()) or type(error).__name__
    if code := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(code[1]))  # such as "No space left on device"
    return text[:200]


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


def _quiet(record: logging.LogRecord) -> bool:
    """Stops the commentary of orbax, errors too: those reach us as exceptions, to be told in one line."""
    return record.levelno >= logging.CRITICAL or f"{os.sep}orbax{os.sep}" not in record.pathname


def _not_about_lost_reads(record: logging.LogRecord) -> bool:
    """When one array cannot be read, the failures of orbax's other reads, which nobody waits for, are told at their end."""
    return "exception was never retrieved" not in str(record.msg)


def _orbax():
    """orbax.checkpoint, its chatter silenced; imported here, as not every program needs to wait for it."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").addFilter(_quiet)  # has no effect the second time
    logging.getLogger("asyncio").addFilter(_not_about_lost_reads)
    if getattr(sys.unraisablehook, "__name__", "") != "_without_closed_loops":
        usual = sys.unraisablehook

        def _without_closed_loops(event):
            # When one array cannot be read, orbax closes the event loop under its other reads, and for each
            # of those tensorstore prints a traceback: thousands of lines around the one that matters.
            if event.exc_type is not RuntimeError or str(event.exc_value) != "Event loop is closed":
                usual(event)

        sys.unraisablehook = _without_closed_loops
    return ocp
