"""The one notation for schedules, weightings and samplers: `name` or `name(1.5, key=value, other_name(...))`.

A spec is data: a name, numbers, strings, lists and nested specs, read with Python's own parser and never evaluated. The object
made from it prints as the spec again, so whatever appears in a config, a file or a plot can be pasted back.
"""

import ast
import dataclasses
import difflib
import inspect
import io
import math
import numbers
import os
import re
import stat

DEEPEST = 6  # specs within specs
CONSTANTS = {"inf": math.inf, "nan": math.nan}


@dataclasses.dataclass(frozen=True)
class Call:
    """A parsed spec: `name(*args, **dict(kwargs))`; arguments are numbers, strings, tuples, None or further Calls."""

    name: str
    args: tuple = ()
    kwargs: tuple = ()  # of (keyword, value) pairs, so that a Call is hashable

    def __str__(self):
        arguments = [show(a) for a in self.args] + [f"{key}={show(value)}" for key, value in self.kwargs]
        return f"{self.name}({', '.join(arguments)})" if arguments else self.name


def show(value):
    """A value as it is written in a spec."""
    if isinstance(value, tuple):
        return f"[{', '.join(show(v) for v in value)}]"
    return repr(value) if isinstance(value, str | float | int | None) else str(value)


def shortened(text, limit=60):
    """A text cut to `limit` characters for people to read: a longer one, such as a spec of 200 log-SNRs, loses its middle."""
    half = (limit - 5) // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


def as_utf8(text: str) -> str:
    """A text as UTF-8 can hold it: bytes of a file's name that are not UTF-8 become \\xe9 and the like."""
    try:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def parse(text):
    """Parses a spec into a `Call`. Raises ValueError, in one line, for anything else."""
    if not isinstance(text, str):
        raise ValueError(f"a spec is a string such as 'cosine(s=0.008)'; got {text!r}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        call = _call(tree)
        if _depth(call) > DEEPEST:
            raise ValueError(f"it nests specs more than {DEEPEST} deep")
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"cannot read the spec {shortened(text, 80)!r}: {reason}") from None
    return call


def bind(call, definitions, kind, skip=1):
    """Checks a Call against the signature of the function it names and returns that function.

    `definitions` maps names to functions whose first `skip` parameters a spec does not give. Raises ValueError, which lists the
    known names or the parameters that the function takes.
    """
    if call.name not in definitions:
        close = difflib.get_close_matches(call.name, definitions, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown {kind} {call.name!r}{hint}; known: {', '.join(sorted(definitions))}")
    function = definitions[call.name]
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[skip:]
    try:
        signature.replace(parameters=parameters).bind(*call.args, **dict(call.kwargs))
    except TypeError as error:
        takes = ", ".join(str(p) for p in parameters) or "no parameters"
        raise ValueError(f"{kind} {shortened(str(call), 80)!r}: {error}; {call.name} takes ({takes})") from None
    return function


def check_new(known, function):
    """Raises ValueError if a definition from elsewhere has the name of one of this package's, which it would replace."""
    there = known.get(function.__name__)
    there = getattr(there, "move", getattr(there, "distance", there))  # of a sampler, of a metric
    ours = lambda made: getattr(made, "__module__", "").startswith("noisesched.")
    if there is not None and ours(there) and not ours(function):
        raise ValueError(f"{function.__name__!r} is already defined, in {there.__module__}: choose another name")


def check_number(what, name, value, low=-1e9, high=1e9):
    """Raises ValueError, in one line, unless `value`, the parameter `name` of a spec, is a number from `low` to `high`.

    None is beyond 1e9 in size, except infinities where the range has them: float32 holds their differences and products.
    """
    known = isinstance(value, numbers.Real) and not isinstance(value, bool) and low <= value <= high
    if not known or 1e9 < abs(value) < math.inf:
        raise ValueError(f"{what}: {name} is a number from {low:g} to {high:g}; got {shortened(show(value))}")


def check_order(what, values, ordered):
    """Raises ValueError, in one line, unless each parameter in `ordered` is below the one it names, where `values` has them."""
    for low, high in ordered.items():
        if low in values and not values[low] < values[high]:
            raise ValueError(f"{what}: {low}={show(values[low])} must be below {high}={show(values[high])}")


def _depth(call):
    return 1 + max((_depth(value) for value in (*call.args, *dict(call.kwargs).values()) if isinstance(value, Call)), default=0)


def _call(node):
    if isinstance(node, ast.Name):
        return Call(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("** is not part of the notation")
        kwargs = tuple((keyword.arg, _value(keyword.value)) for keyword in node.keywords)
        if len(dict(kwargs)) < len(kwargs):
            raise ValueError("a keyword is given twice")
        return Call(node.func.id, tuple(_value(a) for a in node.args), kwargs)
    raise ValueError("expected name or name(value, key=value, ...)")


def _value(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, str | float | int | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        if isinstance(value, float | int) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_value(element) for element in node.elts)
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.Name | ast.Call):
        return _call(node)
    raise ValueError(f"{ast.unparse(node)!r} is not a number, string, list or spec")


# -- files that a spec names

FILE_BYTES = 2**24  # the largest list of numbers that is read: ten times what the longest one takes


def read_numbers(path):
    """The numbers in a file (.npy, or text), as a tuple of floats. Raises ValueError, in one line, if it holds none."""
    import numpy as np  # not needed to show help

    try:
        content = read_file(path, FILE_BYTES)
        if path.endswith(".npy"):
            values = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False).astype(np.float64, casting="same_kind")
        else:
            values = np.array([float(word) for word in re.sub(r"[][(),;]", " ", content.decode()).split()])
    except (OSError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else shortened(" ".join(str(error).split()), 120)
        raise ValueError(f"cannot read numbers from {shortened(path, 200)!r}: {reason}") from None
    return tuple(values.ravel().tolist())


def read_file(path, most):
    """The content of a local file of at most `most` bytes. Raises OSError, and ValueError for a larger file, and for a folder, a
    pipe or a device: somebody else's config may name the file, and a pipe never ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without waiting for the other end of a pipe
    try:
        status = os.fstat(descriptor)  # of what was opened, which no other process can exchange
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size > most:
            raise ValueError(f"it has {status.st_size:,} bytes, more than {most:,}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)
