"""noisesched: diffusion networks told the log-SNR, sampled under any noise schedule.

    import noisesched

    run = noisesched.load("runs/digits")
    images = run.sample("karras", steps=10, method="dpmpp_2m")
    log_snrs = noisesched.schedules.levels("cosine", 10)

Everything is loaded when it is first asked for: this import starts nothing.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from noisesched import diffusion, guidance, loss, samplers, schedules, tables
    from noisesched.api import Run, load, plot, results, show
    from noisesched.models.wrap import wrap

__version__ = "0.1.0"
__all__ = ["Run", "diffusion", "guidance", "load", "loss", "plot", "results", "samplers", "schedules", "show", "tables", "wrap"]

_HOMES = dict.fromkeys(("Run", "load", "plot", "results", "show"), "noisesched.api") | {"wrap": "noisesched.models.wrap"}


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module 'noisesched' has no attribute {name!r}; it has {', '.join(__all__)}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    return importlib.import_module(f"noisesched.{name}")


def __dir__():
    return [*globals(), *__all__]
