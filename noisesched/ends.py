"""How a schedule ends: at which noise, and how it ends at zero SNR if it does not yet."""

import math

from noisesched import schedules, spec

EXPLODING = ("karras", "sigmas")  # the schedules that are given in sigma_ve, as those of variance-exploding processes are


def with_zero_terminal(schedule):
    """The schedule made to end at SNR 0: itself, if it does; wrapped in `zero_terminal`; or, of a table, with that option."""
    schedule = schedules.make(schedule)
    if schedule(1.0) == -math.inf:
        return schedule
    if schedule.table is None:
        return schedules.make(f"zero_terminal({schedule})")
    args = tuple(a for a in schedule.call.args if not isinstance(a, bool))  # the option, given without its name
    kwargs = dict(schedule.call.kwargs) | {"zero_terminal": True}
    return schedules.make(str(spec.Call(schedule.call.name, args, tuple(kwargs.items()))))


def terminal_sigma_ve(schedule):
    """sigma_ve = exp(-log_snr / 2) at u = 1 of a schedule given in sigma_ve (`karras`, `sigmas`, wrapped or not).

    The noise with which a variance-exploding process x + sigma_ve eps begins to sample. None for other schedules, and for those
    that end at SNR 0, which that process cannot have.
    """
    schedule = schedules.make(schedule)
    call = schedule.call
    while inner := [value for value in (*call.args, *dict(call.kwargs).values()) if isinstance(value, spec.Call)]:
        call = inner[0]
    last = float(schedule(1.0))
    return math.exp(-last / 2) if call.name in EXPLODING and last > -math.inf else None
