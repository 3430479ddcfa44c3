"""orbax.checkpoint without its chatter: its faults reach us as exceptions, to be told in one line."""

import logging
import os
import sys


def _quiet(record: logging.LogRecord) -> bool:
    """Stops the commentary of orbax, errors too: those reach us as exceptions, to be told in one line."""
    return record.levelno >= logging.CRITICAL or f"{os.sep}orbax{os.sep}" not in record.pathname


def _not_about_lost_reads(record: logging.LogRecord) -> bool:
    """When one array cannot be read, the failures of orbax's other reads, which nobody waits for, are told at their end."""
    return "exception was never retrieved" not in str(record.msg)


def orbax():
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
