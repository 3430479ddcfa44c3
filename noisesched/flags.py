"""The command line: a parser made from the requests that programs take (`runs.requests`), with examples for each command."""

import argparse
import dataclasses
import inspect
import re
import sys
import textwrap
import types

from noisesched import __version__
from noisesched.runs import requests
from noisesched.runs.settings import ConfigError, check_path, check_value, is_text, shown
from noisesched.spec import shortened


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: the module that carries it out, what that takes, and what the help says of it."""

    module: str  # in the package, such as "training.loop"
    request: type  # of `requests`: its docstring is the description, its fields are the flags
    help: str
    examples: tuple[str, ...]
    lists: tuple[str, ...] = ()  # what the help lists, of LISTS


COMMANDS = {
    "train": Command(
        "training.loop",
        requests.Train,
        "train a network, or continue training one",
        (
            "noisesched train --config=configs/digits.py --workdir=runs/digits",
            "noisesched train --config=configs/digits.py --workdir=runs/slow --config.optimizer.learning_rate=1e-4",
            "noisesched train --workdir=runs/digits                  # continue a run, with its own settings",
        ),
    ),
    "sample": Command(
        "evaluation.sample",
        requests.Sample,
        "sample a trained network under any schedules",
        (
            "noisesched sample --workdir=runs/digits --schedule=cosine --steps=20 --out=samples",
            'noisesched sample --workdir=runs/digits --schedule linear "shifted(cosine, by=-2)" --steps 5 50 --out=samples',
            'noisesched sample --workdir=runs/classes --guidance none "cfg(3)" --labels 3 7 --out=samples',
        ),
        ("schedules", "methods", "guidance"),
    ),
    "evaluate": Command(
        "evaluation.evaluate",
        requests.Evaluate,
        "measure a trained network on images it has not seen",
        (
            "noisesched evaluate --workdir=runs/digits",
            'noisesched evaluate --workdir=runs/digits --discrete cosine:100 --metrics "frechet(classifier)"',
        ),
        ("metrics",),
    ),
    "compare": Command(
        "comparison.compare",
        requests.Compare,
        "measure networks under schedules, samplers and numbers of network calls",
        (
            "noisesched compare --config=configs/study_conditioning.py --out=comparisons/conditioning",
            "noisesched compare --config=configs/compare.py --out=comparisons/digits --config.workdirs=\"('runs/digits',)\"",
        ),
    ),
    "report": Command(
        "comparison.report",
        requests.Report,
        "write the report of a comparison",
        ("noisesched report --compare=comparisons/digits",),
    ),
    "diagnose": Command(
        "diagnosis.diagnose",
        requests.Diagnose,
        "find what is wrong with a config before it is trained",
        (
            "noisesched diagnose --config=configs/digits.py --config.schedule=scaled_linear --spacing=leading",
            "noisesched diagnose --workdir=runs/digits --steps 5 20",
            "noisesched diagnose --scheduler=scheduler_config.json --config=configs/image_folder.py --config.data.image_size=64",
        ),
    ),
    "plot": Command(
        "diagnosis.plot",
        requests.Plot,
        "draw schedules side by side",
        ('noisesched plot linear cosine "zero_terminal(scaled_linear)" --out=schedules.png',),
        ("schedules",),
    ),
    "interchange": Command(
        "interchange.pipelines",
        requests.Interchange,
        "read networks, and read and write the scheduler_config.json, of PyTorch's diffusers",
        (
            "noisesched interchange --read=ddpm-cifar10-32 --workdir=runs/ddpm",
            "noisesched interchange --read=scheduler_config.json",
            "noisesched interchange --write=scheduler_config.json --workdir=runs/digits",
            'noisesched interchange --write=scheduler_config.json --schedule="discrete(linear)" --prediction=eps --steps=20 '
            "--sigmas=sigmas.txt",
        ),
    ),
    "export": Command(
        "interchange.export",
        requests.Export,
        "write a network as safetensors, for PyTorch's diffusers where it has the same one",
        ("noisesched export --workdir=runs/digits --out=exported",),
    ),
    "benchmark": Command(
        "training.benchmark",
        requests.Benchmark,
        "measure training, sampling, input and compilation speed",
        ("noisesched benchmark --config=configs/digits.py --seconds=30",),
    ),
}


LONGEST = 500  # characters of an error of argparse: some quote a value whole
WORDS = (  # argparse's words for a fault, as a pattern, and ours
    (r"^argument ([^:]+): ignored explicit argument (['\"].*)$", r"\1 takes no value, but is given \2"),
    (r"^argument ([^:]+): expected one argument$", r"\1 needs a value"),
    (r"^argument ([^:]+): expected at least one argument$", r"\1 needs at least one value"),
    (r"^argument ([^:]+): invalid choice: (.*) \(choose from (.*)\)$", r"\1: \2 is none of \3"),
    (r"^argument ([^:]+): invalid (.+) value: (['\"].*)$", r"\1: \3 is not a \2"),
    (r"^argument ([^:]+): ", r"\1: "),
    (r"^the following arguments are required: (.*)$", r"missing: \1"),
)


class Parser(argparse.ArgumentParser):
    """Argparse with one-line errors, and an epilog that is made only when it is shown."""

    def __init__(self, *args, more=None, **kwargs):
        super().__init__(*args, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.more = more

    def format_help(self):
        if self.more:
            self.epilog = self.more()
        return super().format_help()

    def error(self, message):
        for pattern, words in WORDS:
            message = re.sub(pattern, words, message)
        self.exit(2, f"noisesched: error: {shortened(message, LONGEST)}; see {self.prog} --help\n")


def parse(arguments):
    """(the name of the command, its request) of the words of a command line.

    Ends the process, with one line, for words that are none of them. Settings of a config, --config.NAME=value or --config.NAME
    value, are the request's `overrides`.
    """
    top = parser()
    fail = lambda message: top.exit(2, f"noisesched: error: {shortened(message, LONGEST)}\n")
    for word in arguments:
        if not is_text(word):
            locale = "" if sys.getfilesystemencoding() == "utf-8" else "; this locale has no UTF-8: set PYTHONUTF8=1"
            fail(f"{shown(word)} is not text: a name or value has bytes that are not UTF-8{locale}")
    given, rest = top.parse_known_args(_joined(arguments))
    command, values = COMMANDS[given.command], vars(given)
    overrides = tuple(word for word in rest if word.startswith(("--config.", "--noconfig.")))
    if unknown := [word for word in rest if word not in overrides]:
        fail(f"unknown argument {unknown[0]!r}; see noisesched {given.command} --help")
    if overrides and not values.get("config"):
        fail(f"{overrides[0]!r} changes a setting of a --config, but none is given")
    names = {field.name for field in dataclasses.fields(command.request)}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in names}
    return given.command, command.request(**values, **({"overrides": overrides} if overrides else {}))


def parser():
    """The parser of all commands."""
    top = Parser(
        prog="noisesched",
        description="Train a diffusion network that is told the log-SNR, then sample that one checkpoint under any noise\n"
        "schedule, number of steps and sampler, and see what each schedule does.",
        epilog="\n".join(["examples:", *(f"  {command.examples[0]}" for command in COMMANDS.values())]),
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.help, description=inspect.getdoc(command.request), more=lambda command=command: _epilog(command)
        )
        job = sub
        if issubclass(command.request, requests.Job):
            job = sub.add_argument_group("one job of several processes", inspect.getdoc(requests.Job))
        of_job = {field.name for field in dataclasses.fields(requests.Job)}
        for field in sorted(dataclasses.fields(command.request), key=lambda field: field.name in of_job):
            if field.metadata.get("help"):
                _add(job if field.name in of_job else sub, field)
        sub.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    return top


def _add(group, field):
    """Adds the flag of a field of a request to a parser or a group of it."""
    known, kind = field.metadata, field.type
    if isinstance(kind, types.UnionType):  # X | None
        kind = kind.__args__[0]
    several = not known["read"] and isinstance(kind, types.GenericAlias) or kind == tuple[tuple[str, int], ...]
    required = field.default is dataclasses.MISSING
    options = {"help": known["help"]}
    if required and several:
        group.add_argument(field.name, nargs="+", metavar=known["metavar"], **options)
        return
    if required:
        options["required"] = True
    else:
        options["default"] = argparse.SUPPRESS  # the request knows its defaults
        if field.default is not None and field.default not in ("", (), 0) or field.name == "seed":
            shown = " ".join(map(str, field.default)) if several else field.default
            options["help"] += f" ({shown:g})" if isinstance(shown, float) else f" ({shown})"
    if kind is bool:
        group.add_argument(f"--{field.name}", action="store_true", **options)
        return
    options |= {"metavar": known["metavar"]} if known["metavar"] else {}
    options |= {"choices": known["choices"]} if known["choices"] else {"type": known["read"] or _reader(kind, known)}
    options["help"] = options["help"].replace("%", "%%")
    group.add_argument(f"--{field.name}", **({"nargs": "+"} if several else {}), **options)


def _reader(kind, known):
    """The function that reads one value of a flag from its text; argparse says its name when that fails."""
    kind = kind.__args__[0] if isinstance(kind, types.GenericAlias) else kind
    low, below = known["at_least"], known["below"]

    def number(text):
        value = kind(text)
        check_value("", value, known)
        return value

    def path(text):
        if not text:
            raise argparse.ArgumentTypeError("empty: name a folder or file")
        try:
            check_path("", text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("=")) from None
        return text

    if kind is str:
        return path if known["metavar"] in ("DIR", "FILE") else str
    limits = (f" from {low} up" if low is not None else "") + (f" below {below}" if below is not None else "")
    number.__name__ = ("whole number" if kind is int else "number") + limits
    return number


def _joined(arguments):
    """`arguments` with "--config.name", "value" written as one word, as ml-collections' own flags may be."""
    words = []
    for word in arguments:
        if words and words[-1].startswith("--config.") and "=" not in words[-1] and not word.startswith("--"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


# -- what the help lists

LINE = 130  # characters of a description, before it goes on in another line


def _epilog(command):
    examples = "\n".join(["examples:", *(f"  {line}" for line in command.examples)])
    return "\n\n".join([*(LISTS[name]() for name in command.lists), examples])


def _listed(title, rows):
    width = min(max(len(name) for name, _ in rows), 46) + 2
    below = f"\n  {'':{width}}"
    lines = [
        (f"  {name:{width}}" if len(name) < width else f"  {name}{below}") + below.join(textwrap.wrap(text, LINE))
        for name, text in rows
    ]
    return f"{title}\n" + "\n".join(lines)


def _first_paragraph(function):
    return " ".join(inspect.getdoc(function).partition("\n\n")[0].split())


def _with_parameters(name, function, skip):
    """A name with its parameters and their defaults, such as "cosine(s=0.008)"; one without a default by its name alone."""
    from noisesched import spec

    parameters = list(inspect.signature(function).parameters.values())[skip:]
    parameters = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    show = lambda p: p.name if p.default is p.empty else f"{p.name}={spec.show(p.default)}"
    return f"{name}({', '.join(map(show, parameters))})" if parameters else name


def _schedules():
    from noisesched import schedules

    rows = [(_with_parameters(name, f, skip=1), _first_paragraph(f)) for name, f in schedules.DEFINITIONS.items()]
    return _listed("schedules, with their parameters and defaults (a name alone will do):", rows)


def _methods():
    from noisesched import samplers

    rows = [
        (_with_parameters(name, method.move, skip=5), _first_paragraph(method.move)) for name, method in samplers.METHODS.items()
    ]
    return _listed("methods, with their options:", rows)


def _guidance():
    from noisesched import guidance

    rows = [(f"{name}({f.__defaults__[0]})", _first_paragraph(f)) for name, f in guidance.CORRECTIONS.items()]
    title = (
        "guidance: none, or cfg(scale, correction, log_snr_min=.., log_snr_max=..), scale 1 being the label, 0 none; corrections:"
    )
    return _listed(title, rows)


def _metrics():
    from noisesched.evaluation import features, metrics

    names = f"metrics: {', '.join(metrics.METRICS)}; those of features name an extractor, as in frechet(classifier)"
    return f"{names}\nextractors: {', '.join(features.EXTRACTORS)}"


LISTS = {"schedules": _schedules, "methods": _methods, "guidance": _guidance, "metrics": _metrics}
