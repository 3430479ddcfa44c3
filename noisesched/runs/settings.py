"""Typed settings: fields of dataclasses that know their ranges, their choices and their help.

A `Config` (`config`), the requests that programs take (`requests`) and a study are made of these. What comes from a config file
or from JSON is checked by `typed`; the values of a request only by `check_value`.
"""

import dataclasses
import math
import os
import types

from noisesched.spec import as_utf8, shortened


class ConfigError(ValueError):
    """A fault in a configuration, in one line."""


def setting(
    default=dataclasses.MISSING,
    *,
    help="",
    metavar=None,
    read=None,
    at_least=None,
    below=None,
    choices=None,
    parse=None,
    absent=dataclasses.MISSING,
    fixed="",
    network=False,
    idle=False,
):
    """A field of a dataclass of settings, with its range, choices and help.

    default           of a request; the settings of a config have none
    help, metavar     what the command line says of it: without a help, it is no flag
    read              a flag's text -> its value, where that is no plain number or text; its name says what is expected
    at_least, below   bounds of a number: at_least <= value < below
    choices           the values it may have
    parse             text -> what the setting stands for, which prints as that text; raises ValueError
    absent            what it is where it is not stated, in configs that are older than it
    fixed             why it cannot change when a run is continued; "" if it can
    network           it says which function the parameters are parameters of, so it cannot change either
    idle              it leaves the trained network as it is: runs that differ in it may be compared
    """
    fixed = "the parameters are those of another network" if network else fixed
    known = dict(help=help, metavar=metavar, read=read, at_least=at_least, below=below, choices=choices, parse=parse)
    default = default if absent is dataclasses.MISSING else absent
    return dataclasses.field(default=default, metadata=known | dict(absent=absent, fixed=fixed, network=network, idle=idle))


def is_group(field):
    """Whether a field holds further settings."""
    kind = stated_type(field.type)
    return kind is dict or dataclasses.is_dataclass(kind) and not field.metadata.get("parse")


def stated_type(kind):
    """The type of a setting where it is stated: X of X | None."""
    return next(each for each in kind.__args__ if each is not types.NoneType) if isinstance(kind, types.UnionType) else kind


def absent(kind):
    """{name: value} of the settings of a group that need not be stated."""
    known = {field.name: field.metadata.get("absent", dataclasses.MISSING) for field in dataclasses.fields(kind)}
    return {name: value for name, value in known.items() if value is not dataclasses.MISSING}


def brief(kind, values):
    """Settings of a group, as nested dictionaries, without those that have the value that they have where they are not stated."""
    unstated = absent(kind)
    groups = {field.name: stated_type(field.type) for field in dataclasses.fields(kind) if is_group(field)}
    inner = lambda name, value: (
        brief(groups[name], value) if isinstance(value, dict) and groups.get(name, dict) is not dict else value
    )
    return {name: inner(name, value) for name, value in values.items() if name not in unstated or value != unstated[name]}


def stated(key, kind, prefix=""):
    """{dotted name: value} of the settings and groups at which `setting` states `key`, such as "network" or "fixed"."""
    found = {}
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        if field.metadata.get(key):
            found[name] = field.metadata[key]
        elif is_group(field) and field.type is not dict:
            found |= stated(key, stated_type(field.type), f"{name}.")
    return found


def typed(kind, value, where="", known=types.MappingProxyType({})):
    """`value` as an instance of the annotation `kind`, within what `setting` states of it (`known`).

    Raises ConfigError, naming the field `where`, if it is not one.
    """
    if known.get("parse"):
        return named(where, known["parse"], typed(str, value, where))
    if isinstance(kind, types.UnionType):  # X | None
        return None if value is None else typed(stated_type(kind), value, where, known)
    if dataclasses.is_dataclass(kind):
        require(isinstance(value, dict), f"{where or 'a configuration'} must be a group of settings; got {shown(value)}")
        fields = {field.name: field for field in dataclasses.fields(kind)}
        value = absent(kind) | value
        unknown, missing = [k for k in value if k not in fields], [k for k in fields if k not in value]
        group = f"{where}." if where else ""
        require(not unknown, f"unknown setting {group}{next(iter(unknown), '')}; known: {shortened(', '.join(fields), 250)}")
        require(not missing, f"missing setting {group}{next(iter(missing), '')}")
        return kind(**{name: typed(field.type, value[name], group + name, field.metadata) for name, field in fields.items()})
    if isinstance(kind, types.GenericAlias):  # tuple[int, ...]
        require(isinstance(value, list | tuple), f"{where}={shown(value)} must be a list")
        return tuple(typed(kind.__args__[0], element, where, known) for element in value)
    if kind is dict:
        require(isinstance(value, dict), f"{where}={shown(value)} must be a group")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else math.inf
    require(type(value) is kind, f"{where}={shown(value)} must be of type {kind.__name__}")
    require(kind is not str or is_text(value), f"{where}={shown(value)} is not text: it has bytes that are not UTF-8")
    require(kind is not float or math.isfinite(value), f"{where}={value!r} must be finite")
    require(kind is not int or abs(value) < 2**32, f"{where}={shown(value)} must be below 2**32")
    check_value(where, value, known)
    return value


def check_value(where, value, known):
    """Raises ConfigError, naming the setting `where`, unless a number or text is within what `setting` states of it (`known`)."""
    choices, at_least, below = (known.get(key) for key in ("choices", "at_least", "below"))
    require(choices is None or value in choices, f"{where}={shown(value)}: choose one of {', '.join(map(str, choices or ()))}")
    require(at_least is None or value >= at_least, f"{where}={shown(value)} must be at least {at_least}")
    require(below is None or value < below, f"{where}={shown(value)} must be below {below}")


def named(name, function, *arguments):
    """What a function returns; its ValueError becomes a ConfigError that names the setting."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def check_path(where, text):
    """Raises ConfigError, naming the setting `where`, for a text that can be no path here; "" may stand for none."""
    require("\0" not in text, f"{where}={shown(text)} has a zero byte, which no path has")
    user = text.partition("/")[0]
    known = not user.startswith("~") or os.path.expanduser(user) != user
    require(known, f"{where}={shown(text)}: there is no user {user[1:]!r} here; write ./{user} for a folder of that name")


def is_text(value):
    """Whether a string can be written as UTF-8: what a terminal or JSON gives may hold half a character (a lone surrogate)."""
    return value.encode(errors="replace") == value.encode(errors="surrogatepass")


def shown(value):
    """A value as it appears in an error message."""
    return shortened(f"'{as_utf8(value)}'" if isinstance(value, str) and not is_text(value) else repr(value), 80)


def require(condition, message):
    """Raises ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(message)
