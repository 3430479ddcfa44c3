"""Settings made once, before JAX starts: faster training on CPUs, and the compilation cache.

On a CPU two settings decide the speed of training (`launch/versus_pytorch` measures it):

- XLA's CPU compiler hands single convolutions to a library (YNNPACK) that is slower than its own (Eigen) at these sizes.
- glibc returns each large buffer to the kernel when it is freed and takes it back, page by page, in every step: some 50,000
  page faults a step for a small network. With one arena that is never trimmed there are none. Memory once used then stays with
  the process until it ends, and the peak is higher (2.4 GB instead of 1.7 with a network of 4.7 M parameters).

Both are changed only if the CPU is the only possible backend, so nothing that a GPU or TPU runs changes, and both leave the
user's own settings alone. `NOISESCHED_CPU_SETTINGS=off` switches them off. Neither changes results beyond rounding of the last
bit.
"""

import ctypes
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import sys
import threading

THREADS = 96  # of the libraries that read images and write checkpoints: 77 at a training of the digits, on two cores
SWITCH = "NOISESCHED_CPU_SETTINGS"
XLA_SETTING = "xla_cpu_experimental_ynn_fusion_type"
XLA_FLAG = f"--{XLA_SETTING}=-individual_convolution"
# XLA aborts the process on a flag it does not know, and cannot be asked: only versions of jaxlib on which it was tried.
XLA_FLAG_JAXLIBS = ("0.10.2", "0.12.0.1")
# mallopt's parameters (malloc.h) and values: never trim the heap, take it in large pieces, no separate mappings, one arena.
MALLOC = {-1: -1, -2: 64 << 20, -4: 0, -8: 1}


class BackendError(ValueError):
    """JAX cannot compute on the devices that were asked for; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The settings that `prepare` made. Prints as one line."""

    cpu_only: bool  # whether the CPU is the only possible backend
    xla_flag: str | None  # the flag added to XLA_FLAGS
    allocator: bool  # whether glibc was told to keep its memory
    cache_dir: str | None  # of compiled programs; None: not cached

    def __str__(self):
        return (
            f"XLA flag {self.xla_flag or 'none'}; allocator {'keeps its memory' if self.allocator else 'unchanged'}; "
            f"compilation cache {self.cache_dir or 'none'}"
        )


def prepare() -> Chosen:
    """Makes the process's settings. Call it before JAX's first computation, and best before JAX is imported."""
    cpu_only = is_cpu_only()
    tune = cpu_only and os.environ.get(SWITCH, "").lower() not in ("off", "0", "no", "false")
    allocator = tune and _keep_memory()  # first: it has to precede the threads that JAX and numpy start
    xla_flag = _add_xla_flag() if tune else None
    return Chosen(cpu_only, xla_flag, allocator, _cache_compilations())


def start() -> None:
    """Starts JAX's backend. Raises BackendError if there are no devices of the kind asked for."""
    import jax

    try:
        jax.devices()
    except Exception as error:  # RuntimeError for an unknown name; an AssertionError where nothing is installed for it
        asked = jax.config.jax_platforms
        why = " ".join(str(error).split()).partition(" (set JAX_PLATFORMS")[0]
        why = f" ({why})" if why else ""
        if not asked:
            raise BackendError(
                f"JAX cannot start on this machine's devices{why}; JAX_PLATFORMS=cpu uses the CPU alone"
            ) from error
        raise BackendError(
            f"JAX_PLATFORMS={asked!r}: JAX finds no such device here{why}; leave it unset to use what there is, or give cpu"
        ) from error


def check_threads(count=THREADS) -> None:
    """Raises RuntimeError ("can't start new thread") unless so many more threads can run at once.

    Libraries in C++ that cannot start one, as where memory is limited, crash or wait for it forever.
    """
    ended, threads = threading.Event(), [threading.Thread(target=lambda: ended.wait(), daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    finally:
        ended.set()
    for thread in threads:
        thread.join()


def is_cpu_only() -> bool:
    """Whether the CPU is the only possible backend, decided without starting one.

    Either JAX is told so (JAX_PLATFORMS or its config), or it is told nothing and no accelerator's plugin is installed.
    """
    jax = sys.modules.get("jax")
    asked = jax.config.jax_platforms if jax else os.environ.get("JAX_PLATFORMS")
    if asked:
        return asked == "cpu"
    return not (
        importlib.metadata.entry_points(group="jax_plugins")
        or importlib.util.find_spec("jax_plugins")
        or importlib.util.find_spec("libtpu")
        or os.environ.get("PJRT_NAMES_AND_LIBRARY_PATHS")
    )


def _add_xla_flag():
    """Appends XLA_FLAG to XLA_FLAGS and returns it; None if this jaxlib may not know it or the user has set it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if flags.endswith(XLA_FLAG):
        return XLA_FLAG  # prepared before, here or in a parent process
    if XLA_SETTING in flags or importlib.metadata.version("jaxlib") not in XLA_FLAG_JAXLIBS:
        return None
    os.environ["XLA_FLAGS"] = f"{flags} {XLA_FLAG}".strip()
    return XLA_FLAG


def _keep_memory():
    """Tells glibc's malloc to keep and reuse its memory; False without glibc, or if the user has tuned it."""
    tuned = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or tuned:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(parameter, value) for parameter, value in MALLOC.items()])


def cache_dir() -> pathlib.Path:
    """Where compiled programs are kept: JAX_COMPILATION_CACHE_DIR, or noisesched/xla in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or f"{base}/noisesched/xla").expanduser()


def _cache_compilations():
    """Makes JAX keep every compiled program on disk; returns the folder, None if switched off or not writable."""
    import jax  # here, as the settings above have to precede it

    if not jax.config.jax_enable_compilation_cache:
        return None
    folder = jax.config.jax_compilation_cache_dir or str(cache_dir())
    if "://" not in folder:  # JAX opens buckets itself
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError:
            return None
        if not os.access(folder, os.W_OK):
            return None
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
