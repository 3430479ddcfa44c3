"""Noise schedules: decreasing functions from u in [0, 1] (0 clean, 1 noise) to log-SNR.

    schedule = make("shifted(cosine, image_size=256)")       # prints as the spec that makes it
    schedule(u)                                              # log-SNR, for an array u of any shape
    levels(schedule, 25)                                     # the 25 log-SNRs of an inference run, noisiest first

The curves are in `curves`; this file makes them from specs, answers questions about them (levels, rate, inverse, ends), and adds
the wrappers. A wrapper is enrolled like a curve; its first parameter, named `schedule`, is the schedule it wraps.
"""

import dataclasses
import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np

from noisesched import diffusion, spec, tables
from noisesched.curves import DEFINITIONS, EXAMPLES, ORDERED, RANGES, definition  # noqa: F401  (EXAMPLES: part of this module's interface)
from noisesched.tables import SPACINGS, select_steps  # noqa: F401  (part of this module's interface)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A callable u -> log-SNR. Hashable (so it may be a static argument of jit), and prints as its spec."""

    call: spec.Call

    def __call__(self, u):
        """`u`: any array (or number) in [0, 1] -> log-SNR of the same shape, float32 (float64 if u is)."""
        u = jnp.asarray(u)
        u = u.astype(jnp.promote_types(u.dtype, jnp.float32))
        return DEFINITIONS[self.call.name](u, *map(_nested, self.call.args), **self.options)

    @property
    def options(self):
        return {key: _nested(value) for key, value in self.call.kwargs}

    @property
    def table(self):
        """The `Table` of which this schedule is the staircase, or None: `discrete`, `betas` and `sigmas` have one."""
        make_table = STAIRCASES.get(self.call.name)
        return make_table(*map(_nested, self.call.args), **self.options) if make_table else None

    def __str__(self):
        return str(self.call)

    __repr__ = __str__


def make(text):
    """The schedule of a spec, e.g. "cosine", "linear(beta_max=15)", "zero_terminal(scaled_linear)".

    Raises ValueError, in one line, if the spec cannot be parsed, names an unknown schedule (the known ones are listed) or
    parameter, or describes something that does not decrease in log-SNR. A `Schedule` is returned as it is.
    """
    if isinstance(text, Schedule):
        return text
    call = _loaded(spec.parse(text))
    return _checked(call, str(call))


def recommended(image_size):
    """The schedule to train on for images of `image_size` pixels a side: cosine up to 64, above that shifted by the resolution.

    A larger image of the same scene has more pixels to average noise over, so it needs more noise (Hoogeboom et al. 2023,
    sec. 2.1; Chen 2023). configs/README.md, "Resolution", has our measurements.
    """
    return make("cosine" if image_size <= 64 else f"shifted(cosine, image_size={image_size})")


def invert(schedule, log_snr):
    """The position u in [0, 1] at which the schedule reaches `log_snr` (any array); 0 or 1 for levels beyond its ends.

    By bisection, to the resolution of u's dtype; 64 halvings reach levels extremely close to u = 0.
    """
    schedule, log_snr = make(schedule), jnp.asarray(log_snr)
    log_snr = log_snr.astype(jnp.promote_types(log_snr.dtype, jnp.float32))

    def halve(_, interval):
        low, high = interval
        middle = 0.5 * (low + high)
        cleaner = schedule(middle) > log_snr
        return jnp.where(cleaner, middle, low), jnp.where(cleaner, high, middle)

    low, high = jax.lax.fori_loop(0, 64, halve, (jnp.zeros_like(log_snr), jnp.ones_like(log_snr)))
    u = jnp.where(schedule(jnp.ones_like(log_snr)) >= log_snr, 1.0, high)
    u = jnp.where(schedule(jnp.zeros_like(log_snr)) <= log_snr, 0.0, u)
    return jnp.where(jnp.isnan(log_snr), jnp.nan, u)


def levels(schedule, n, spacing="trailing"):
    """An inference schedule: the log-SNRs of n levels, [n], increasing (noisiest first). n levels are n network calls.

    trailing  u = 1, (n-1)/n, .., 1/n: starts at the schedule's end, and wastes no call on an image that is already clean
    leading   u = k/n + 1/T for k = n-1 .. 0: never visits u = 1, the flaw of Lin et al. 2023
    linspace  n positions from u = 1 to 1/T, both visited

    where T = 1000 (or n, if larger) stands for DDPM's table. A table's staircase takes exactly the steps of `select_steps`.
    """
    schedule = make(schedule)
    _check_count("the number of levels", n)
    if schedule.table:
        return schedule(select_steps(schedule.table.num_steps, n, spacing) / schedule.table.num_steps)
    return schedule(positions(n, spacing))


def positions(n, spacing="trailing"):
    """Where `levels` places n levels on a continuous schedule: u [n], decreasing."""
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}; known: {', '.join(SPACINGS)}")
    steps = np.arange(n, 0, -1)
    if spacing == "trailing":
        return steps / n
    if spacing == "leading":
        return (steps - 1) / n + 1 / max(n, 1000)
    return np.linspace(1.0, 1 / max(n, 1000), n)


def unevenness(schedule, log_snr_min=-10.0, log_snr_max=10.0):
    """How far the levels that uniform u draws are from uniform in log-SNR, in [0, 1]; 0 for `uniform_log_snr`.

    The Kolmogorov distance: the largest gap between their cumulative distribution and the uniform one, between the two log-SNRs
    or as far as the schedule reaches.
    """
    fine = np.geomspace(1e-9, 1e-2, 4000)  # schedules are steep at their ends
    u = np.unique(np.concatenate([[0.0], fine, np.linspace(0.01, 0.99, 8000), 1 - fine, [1.0]]))
    log_snr = np.asarray(make(schedule)(u), np.float64)
    reached = np.isfinite(log_snr)
    u, log_snr = u[reached], log_snr[reached]
    low, high = max(log_snr[-1], log_snr_min), min(log_snr[0], log_snr_max)
    if not low < high:
        raise ValueError(f"schedule {str(schedule)!r} has no levels between log-SNR {log_snr_min:g} and {log_snr_max:g}")
    even = np.linspace(0.0, 1.0, 1001)
    at = np.interp(-(high + even * (low - high)), -log_snr, u)
    return float(np.abs((at - at[0]) / (at[-1] - at[0]) - even).max())


def rate(schedule, u):
    """-d log_snr / du, of u's shape: one over the density of the levels that uniform u draws. By forward differentiation.

    For the staircase of a table, T times the drop in log-SNR from the step before (at the first step: to the second).
    """
    schedule, u = make(schedule), jnp.asarray(u)
    if table := schedule.table:
        drops = -np.diff(table.log_snr) * table.num_steps
        drops = np.concatenate([drops[:1], drops]) if len(drops) else np.ones(1)
        return jnp.asarray(drops, u.dtype)[_step_index(u, table.num_steps)]
    return -jax.jvp(schedule, (u,), (jnp.ones_like(u),))[1]


def table(name, num_steps=1000, zero_terminal=False, zero_terminal_snr=False, **parameters):
    """The discrete schedule of `num_steps` steps, exactly DDPM's: see `tables.Table` for its arrays.

    `name`: a published one ("linear", "scaled_linear", "quadratic", "constant", "cosine"), with its published parameters
    (beta_min, beta_max; beta; s): betas as published, alpha_bar their cumulative product. Any other spec (also a published
    name with arguments inside the spec) samples that continuous schedule at u = t / T. `zero_terminal` rescales the table
    so that its last SNR is exactly 0 (Lin et al. 2023); `zero_terminal_snr` does so too and keeps more of the table's shape.
    """
    if zero_terminal and zero_terminal_snr:
        raise ValueError("zero_terminal and zero_terminal_snr both make the schedule end at SNR 0: choose one")
    _check_count("num_steps", num_steps)
    call = make(name).call
    if call.name in tables.PUBLISHED and not call.args and not call.kwargs:
        given = spec.Call(call.name, (), tuple(parameters.items()))
        result = tables.from_betas(spec.bind(given, tables.PUBLISHED, "table")(num_steps, **parameters))
    elif parameters:
        raise ValueError(f"table {str(call)!r}: parameters belong inside the spec; got {', '.join(parameters)}")
    else:
        result = sampled(make(name), num_steps)
    if zero_terminal_snr:
        return tables.snr_rescaled_to_zero_terminal(result)
    return tables.rescaled_to_zero_terminal(result) if zero_terminal else result


def sampled(schedule, num_steps=1000):
    """The discrete schedule of `num_steps` steps whose step t is the continuous `schedule` at u = t / T."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        log_snr = np.asarray(schedule(np.arange(1, num_steps + 1) / num_steps), np.float64)
    return tables.from_alpha_bar(1.0 / (1.0 + np.exp(-log_snr)))


EXPLODING = ("karras", "sigmas")  # schedules given in sigma_ve, the noise of a variance-exploding process


def with_zero_terminal(schedule):
    """`schedule` made to end at SNR 0: as it is, if it does; wrapped in `zero_terminal`; a table with that option."""
    schedule = make(schedule)
    if schedule(1.0) == -math.inf:
        return schedule
    if schedule.table is None:
        return make(f"zero_terminal({schedule})")
    args = tuple(a for a in schedule.call.args if not isinstance(a, bool))  # without the option, if it was given by position
    kwargs = dict(schedule.call.kwargs) | {"zero_terminal": True}
    return make(str(spec.Call(schedule.call.name, args, tuple(kwargs.items()))))


def terminal_sigma_ve(schedule):
    """sigma_ve = exp(-log_snr / 2) at u = 1 of a schedule given in sigma_ve (`karras`, `sigmas`, wrapped or not).

    A variance-exploding process x + sigma_ve eps starts sampling from that much noise. None for other schedules, and for those
    that end at SNR 0, which such a process cannot reach.
    """
    schedule = make(schedule)
    call = schedule.call
    while inner := [value for value in (*call.args, *dict(call.kwargs).values()) if isinstance(value, spec.Call)]:
        call = inner[0]
    last = float(schedule(1.0))
    return math.exp(-last / 2) if call.name in EXPLODING and last > -math.inf else None


# -- wrappers


@definition("zero_terminal(scaled_linear)")
def zero_terminal(u, schedule):
    """sqrt(alpha_bar) mapped linearly so that it is exactly 0 at u = 1 and unchanged at u = 0 (Lin et al. 2023, alg. 1).

    log-SNR at u = 1 is then exactly -inf.
    """
    log_snr, first, last = _with_ends(schedule, u)
    alpha, alpha_first, alpha_last = map(diffusion.alpha, (log_snr, first, last))
    # 1 - alpha without cancellation, so that log-SNR keeps its digits at the clean end too
    rest, rest_first = (diffusion.sigma(level) ** 2 / (1 + diffusion.alpha(level)) for level in (log_snr, first))
    span = alpha_first - alpha_last
    new_alpha = alpha_first * jnp.maximum(alpha - alpha_last, 0) / span
    new_rest = jnp.maximum(alpha_first * rest - alpha_last * rest_first, 0) / span
    rescaled = 2 * jnp.log(new_alpha) - jnp.log(new_rest) - jnp.log(2 - new_rest)
    return jnp.where(u >= 1, -jnp.inf, rescaled)


@definition("zero_terminal_snr(scaled_linear)")
def zero_terminal_snr(u, schedule):
    """The SNR, rather than sqrt(alpha_bar), mapped linearly: exactly 0 at u = 1, unchanged at u = 0. It keeps more of the shape.

    SNR' = SNR(0) (SNR - SNR(1)) / (SNR(0) - SNR(1)), which is nearly SNR - SNR(1): what a level shows beyond what the end
    leaked, since the SNRs of independent looks at an image add up. It keeps dSNR/du, the weight of each u in the bound on the
    likelihood (Kingma et al. 2021). A level h above the end moves by log(1 - e^-h), never more than under `zero_terminal`. The
    largest change of log-SNR among levels at or above

                                             -3       -2       0
        scaled_linear  zero_terminal       0.64     0.34    0.12
                       zero_terminal_snr   0.10     0.036   0.0048

    The price: half as much of u (0.060 instead of 0.120) lies below the old end, where the levels between it and pure noise are
    learned. Mapping SNR^p with a larger p would change the levels less and leave still less there. A schedule that ends at 0 is
    left as it is.
    """
    log_snr, first, last = _with_ends(schedule, u)
    # -inf - -inf is not a number; at SNR 0 nothing is left to subtract
    below = jnp.where(jnp.isneginf(log_snr), -jnp.inf, jnp.minimum(last - log_snr, 0))
    rescaled = log_snr + (jnp.log(-jnp.expm1(below)) - jnp.log(-jnp.expm1(last - first)))
    return jnp.where(u >= 1, -jnp.inf, rescaled)


@definition("shifted(cosine, image_size=256)")
def shifted(u, schedule, by=None, image_size=None, base=64):
    """log-SNR moved by a constant: `by`, or 2 log(base / image_size) (Hoogeboom et al. 2023, eq. 5). Give exactly one.

    With `image_size`, an image of that many pixels a side, averaged down to base x base, is as noisy as one of that size.
    """
    if (by is None) == (image_size is None):
        given = "both are given" if by is not None else "neither is given"
        raise ValueError(f"shifted takes by= (added to log-SNR) or image_size= (pixels a side); {given}")
    return schedule(u) + (by if by is not None else 2 * math.log(base / image_size))


@definition("truncated(cosine, log_snr_min=-10, log_snr_max=10)")
def truncated(u, schedule, log_snr_min, log_snr_max):
    """The part of a schedule between two log-SNRs, stretched over u in [0, 1]; as a training density, the truncated one.

    Strictly decreasing: nothing is clipped flat. A bound beyond the schedule's own end leaves that end as it is.
    """
    start, stop = _position(schedule, float(log_snr_max)), _position(schedule, float(log_snr_min))
    inside = schedule(start + u * (stop - start))
    ends = jnp.where(u <= 0, log_snr_max, jnp.where(u >= 1, log_snr_min, inside))
    beyond = jnp.where(u <= 0, start == 0.0, (u >= 1) & (stop == 1.0))
    return jnp.clip(jnp.where(beyond, inside, ends), log_snr_min, log_snr_max)


@definition("discrete(linear, num_steps=1000)")
def discrete(u, schedule, num_steps=1000, **table_options):
    """The staircase over a T-step table: u in ((t-1)/T, t/T] is timestep t. See `table`, which takes the same options:
    `discrete(linear)` has DDPM's published betas, `discrete(linear(beta_max=15))` that continuous curve at u = t/T.

    So uniform u draws every timestep equally often: training on a table, as DDPM does, is training on this schedule.
    """
    _check_count("num_steps", num_steps, least=2)  # a single step cannot decrease
    return _staircase(u, _table(schedule, num_steps, **table_options))


@definition("betas([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])")
def betas(u, values, zero_terminal=False):
    """The staircase over the table of given betas, cleanest first: a list, or the path of a file (.npy, or text)."""
    return _staircase(u, _table_of_betas(values, zero_terminal))


@definition("sigmas([80, 20, 5, 1, 0.2, 0.05, 0.01])")
def sigmas(u, values, zero_terminal=False, kind=None):
    """The staircase over given sigma_ve = exp(-log_snr / 2), noisiest first: a list, or the path of a file (.npy, or text).

    kind="flow": times t of a rectified flow, (1 - t) x + t eps, from at most 1 down: sigma_ve = t / (1 - t). "ve" is the default,
    except that a list that begins at 1 or below is most likely a flow's, and must say what it is.

    At a finite sigma_ve the SNR, 1 / sigma_ve^2, is above 0, so no variance-exploding process reaches 0 (see `karras`). In unit
    variance it can: the first may be inf (SNR = 0), or `zero_terminal` rescales the table. A final 0, with which samplers' lists
    of sigmas end, is not a level and is left out.
    """
    return _staircase(u, _table_of_sigmas(values, zero_terminal, kind))


# -- the parts


def _check_count(name, n, least=1):
    """Above 100,000, float32 could not tell neighbouring u = t/T apart."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not least <= n <= 10**5:
        raise ValueError(f"{name} is a whole number from {least} up to 100000; got {n!r}")


def _with_ends(schedule, u):
    """(schedule(u), schedule(0), schedule(1)) by one evaluation: three in every one of nested wrappers would be 3^n."""
    log_snr = schedule(jnp.concatenate([u.ravel(), jnp.array([0, 1], u.dtype)]))
    first, last = jax.lax.stop_gradient(log_snr[-2:])  # constants, whose slopes in u may be infinite
    return log_snr[:-2].reshape(u.shape), first, last


def _nested(value):
    return Schedule(value) if isinstance(value, spec.Call) else value


def _loaded(call):
    """The call with the file names of lists replaced by what the files hold."""
    args = tuple(_loaded(a) if isinstance(a, spec.Call) else a for a in call.args)
    kwargs = tuple((k, _loaded(v) if isinstance(v, spec.Call) else v) for k, v in call.kwargs)
    if call.name in LISTS:
        args = tuple(spec.read_numbers(a) if isinstance(a, str) and not i else a for i, a in enumerate(args))
        kwargs = tuple((k, spec.read_numbers(v) if isinstance(v, str) and k in ("values", "log_snrs") else v) for k, v in kwargs)
    return spec.Call(call.name, args, kwargs)


@functools.lru_cache(maxsize=256)
def _checked(call, text):  # the text too, because 1, 1.0 and True are equal but print differently
    text = spec.shortened(text, 80)
    function = spec.bind(call, DEFINITIONS, "schedule")
    parameters = list(inspect.signature(function).parameters.values())[1:]
    given = dict(zip((p.name for p in parameters), call.args, strict=False)) | dict(call.kwargs)
    for name, value in given.items():
        if name in ENDS and not isinstance(value, bool):
            raise ValueError(f"schedule {text!r}: {name} must be True or False; got {spec.show(value)}")
        if isinstance(value, spec.Call) and _checked(value, str(value)).table:  # wrapping would lose its steps and its rate
            raise ValueError(
                f"schedule {text!r}: a table cannot be wrapped; make a table of what is wrapped, as in "
                "'discrete(shifted(linear, by=-1))' or 'discrete(linear, zero_terminal=True)'"
            )
        if (name == "schedule") != isinstance(value, spec.Call):
            fault = "must be a schedule" if name == "schedule" else "cannot be a schedule"
            raise ValueError(f"schedule {text!r}: {name} {fault}; got {spec.show(value)}")
        if name not in OTHERS and not (value is None and name in ("by", "image_size")):
            spec.check_number(f"schedule {text!r}", name, value, *RANGES.get(name, ()))
    spec.check_order(f"schedule {text!r}", {p.name: p.default for p in parameters} | given, ORDERED)
    schedule = Schedule(call)
    u = np.linspace(0.0, 1.0, 257)
    try:
        with jax.ensure_compile_time_eval():
            log_snr = np.asarray(jax.jit(schedule)(u), np.float64)
    except ValueError as error:
        raise ValueError(f"schedule {text!r}: {error}") from None
    with np.errstate(invalid="ignore"):  # inf - inf where a level repeats is no rise
        rise = np.diff(log_snr) > 1e-5 * np.abs(log_snr[1:]) + 1e-5
    bad = np.isnan(log_snr) | np.concatenate([[False], rise])
    if bad.any() or not log_snr[0] > log_snr[-1]:
        at = u[np.argmax(bad)] if bad.any() else 1.0
        for name, value in given.items():
            if isinstance(value, float) and not math.isfinite(value):  # which an end of `truncated` may be
                raise ValueError(f"schedule {text!r}: {name} must be a finite number; got {value}")
        raise ValueError(f"schedule {text!r} does not decrease in log-SNR over u in [0, 1]: see u = {at:g}")
    return schedule


@functools.lru_cache(maxsize=256)
def _position(schedule, log_snr):
    with jax.ensure_compile_time_eval():
        return float(jax.jit(invert, static_argnums=0)(schedule, log_snr))


@functools.lru_cache(maxsize=64)
def _table(schedule, num_steps=1000, **options):
    return table(str(schedule), num_steps, **options)


@functools.lru_cache(maxsize=64)
def _table_of_betas(values, zero_terminal=False):
    result = tables.from_betas(_numbers("betas", values))
    return tables.rescaled_to_zero_terminal(result) if zero_terminal else result


@functools.lru_cache(maxsize=64)
def _table_of_sigmas(values, zero_terminal=False, kind=None):
    values = _numbers("sigmas", values)
    values = values[:-1] if values[-1] == 0 else values
    if not (values > 0).all() or not (values[1:] < values[:-1]).all():
        raise ValueError("sigmas fall, the noisiest first, and are above 0 (a last 0 is left out)")
    if kind not in (None, "ve", "flow"):
        raise ValueError(f"kind={kind!r} of sigmas: choose 've' (sigma / alpha) or 'flow' (times from 0 to 1)")
    if kind is None and values[0] <= 1:
        raise ValueError(
            f"sigmas that begin at {values[0]:g}: say kind='flow' if they are times of a flow, from 1 (noise) to 0, or kind='ve' "
            "if they are sigma / alpha and sampling is to begin at so little noise"
        )
    if kind == "flow":
        if not (values <= 1).all():
            raise ValueError(f"sigmas of a flow are times from 1 (noise) down to 0; got {values.max():g}")
        with np.errstate(divide="ignore"):
            values = values / (1 - values)
    result = tables.from_alpha_bar(1.0 / (1.0 + values[::-1] ** 2))
    return tables.rescaled_to_zero_terminal(result) if zero_terminal else result


ENDS = ("zero_terminal", "zero_terminal_snr")
OTHERS = ("schedule", "num_steps", "values", "log_snrs", "kind", *ENDS)  # parameters that are no number, or a whole one
LISTS = ("piecewise", "betas", "sigmas")  # schedules that take a list, or the path of a file that holds one
STAIRCASES = {
    "discrete": _table,
    "betas": _table_of_betas,
    "sigmas": _table_of_sigmas,
}  # each with the function that makes its table


def _numbers(name, values):
    """A list of a spec as float64 [n]."""
    if not isinstance(values, tuple) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{name} takes a list of numbers, or the path of a file that holds one")
    if not 2 <= len(values) <= 10**5:
        raise ValueError(f"{name} takes a list of 2 to 100000 numbers; got {len(values)}")
    return np.array(values, np.float64)


def _staircase(u, table):
    """The log-SNR of the step in which u lies: u in ((t-1)/T, t/T] is timestep t."""
    return jnp.asarray(table.log_snr, u.dtype)[_step_index(u, table.num_steps)]


def _step_index(u, num_steps):
    # slightly below u, because t/T rounded to float32 may lie just above its own step
    return jnp.clip(jnp.ceil(u * num_steps * (1 - 1e-6)).astype(jnp.int32) - 1, 0, num_steps - 1)
