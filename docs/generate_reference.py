"""Writes docs/reference.md from the code: every key of a configuration file, every word of the command line.

    python docs/generate_reference.py

Types and defaults come from signatures, texts from docstrings. A public class with an argument that its docstring says
nothing of is an error.
"""

import argparse
import collections.abc
import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import torch

from fedmtl import aggregation, algorithms, data, mixing, models, server, tasks, tracking
from fedmtl.aggregation.rho import Rho
from fedmtl.client import ClientGroup, LocalTraining
from fedmtl.commands import COMMANDS
from fedmtl.commands import data as data_command
from fedmtl.commands.catalogue import arguments
from fedmtl.data.dial import Dial
from fedmtl.diagnostics import Diagnostics
from fedmtl.engine import FabricConfig
from fedmtl.experiment import Experiment
from fedmtl.faults import Faults

PAGE = Path(__file__).with_name("reference.md")

HEAD = """# Reference

Every key of a configuration file, and every word of the command line. This page is made from the code by
`python docs/generate_reference.py`; change docstrings, not this page.

A key without a default must be given. Where a class may stand, write its import path and its arguments:

```yaml
upload:
  - class_path: fedmtl.aggregation.DEA
    init_args: {rho: 0.2}
```

or, on the command line, `--server.aggregator fedmtl.aggregation.TIES --server.aggregator.density 0.1`. Any importable
subclass of the named base class will do, your own too: see [extending.md](extending.md). `fedmtl list` prints what
there is; [algorithms.md](algorithms.md) says what each method does, how files stack, and what the keys under `diag/`
are. The keys of a `dataset.yaml` are in [data.md](data.md#datasetyaml-key-by-key).
"""

COMMON = """`fedmtl COMMAND --help` tells the same. Every command takes `--debug`, which shows the full trace of an
error, and `--trusted-modules A,B`, which limits the classes that files name: [safety.md](safety.md).
"""


class Role(typing.NamedTuple):
    """A place in a configuration where one of several classes may stand."""

    title: str
    key: str
    base: type
    room: types.ModuleType | None = None  # whose exported subclasses are listed; without one the base class alone
    text: str = ""


ROLES = [
    Role("Clients", "clients", ClientGroup, text="A list; each entry is a group of clients that are alike."),
    Role("Data sets", "data", data.DataSource, data),
    Role("Dials", "data.init_args.dials.NAME", Dial),
    Role("Partitions", "partition", data.Partition, data),
    Role("Tasks", "data.init_args.tasks.NAME", tasks.Task, tasks, "Also in a `dataset.yaml`, by their kind."),
    Role("Models", "model", models.UnifiedModel, models, "`heads` and `in_channels` are filled in by the run."),
    Role("Local training", "local", LocalTraining),
    Role("Local algorithms", "local.algorithm", algorithms.LocalAlgorithm, algorithms),
    Role("Upload transforms", "upload", aggregation.UploadTransform, aggregation, "A list, applied in order."),
    Role("Rules for ρ", "upload.rho", Rho, aggregation, "In place of the number."),
    Role("Servers", "server", server.Server, server, "`Server` unless a `class_path` names another."),
    Role("Aggregators", "server.aggregator", aggregation.Aggregator, aggregation),
    Role("Mixings", "server.mixing", mixing.Mixing, mixing, "Of a `PersonalServer`."),
    Role("Server optimizers", "server.optimizer", torch.optim.Optimizer, server, "And any of `torch.optim`."),
    Role("Diagnostics", "diagnostics", Diagnostics),
    Role("Faults", "faults", Faults),
    Role("Trackers", "tracker", tracking.Tracker, tracking),
    Role("Fabric", "fabric", FabricConfig),
]
ANCHORS = {role.base: role.title.lower().replace(" ", "-") for role in ROLES}
OTHERS_TEXT = {"print_config": "print the configuration as it would be used, and exit"}  # jsonargparse's own varies
FILLED_IN = {"heads", "in_channels", "params"}  # what the suite gives, not a configuration


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page.

    Raises:
        ValueError: a public class has an argument that its docstring does not describe.
    """
    parts = [HEAD, "## Top level\n", table(Experiment)]
    for role in ROLES:
        parts.append(f"## {role.title}\n\nKey: `{role.key}`. {role.text}".rstrip() + "\n")
        for found in classes(role):
            if role.room:
                parts.append(f"### {found.__name__}\n\n`{role.room.__name__}.{found.__name__}`\n")
            parts += [prose(found), table(found)]
    parts.append("## Command line\n")
    parts.append(COMMON)
    parts += commands(COMMANDS, "fedmtl.commands", "fedmtl")
    return "\n".join(parts)


def classes(role: Role) -> Iterator[type]:
    """The classes that may stand in a place, in the order of their room's list of names."""
    if role.room is None:
        yield role.base
        return
    for name in role.room.__all__:
        with contextlib.suppress(ImportError):
            found = getattr(role.room, name)
            abstract = inspect.isabstract(found) or found is algorithms.LocalAlgorithm
            if isinstance(found, type) and issubclass(found, role.base) and not abstract:
                yield found


def table(found: type) -> str:
    """The constructor's arguments, a row each."""
    told = arguments(inspect.getdoc(found) or "")
    rows = []
    hints = typing.get_type_hints(found.__init__, include_extras=True)
    for name, parameter in inspect.signature(found).parameters.items():
        if name in FILLED_IN:
            continue
        if not told.get(name):
            raise ValueError(f"{found.__module__}.{found.__name__}: the docstring says nothing of {name}")
        given = "–" if parameter.default is parameter.empty else code(literal(parameter.default))
        text = told[name]
        if elsewhere := re.match(r"see `(TrainTransform|ValTransform)`", text):
            text = arguments(inspect.getdoc(getattr(data, elsewhere[1])) or "")[name]
        rows.append(f"| `{name}` | {kind(hints[name])} | {given} | {cell(text)} |")
    if not rows:
        return "No arguments.\n"
    return "\n".join(["| key | type | default | |", "|---|---|---|---|", *rows]) + "\n"


def prose(found: type) -> str:
    """The docstring up to its first section."""
    text = re.split(r"\n\n?(?:Args|Attributes|Raises|Returns):\n", inspect.getdoc(found) or "")[0]
    return marked(text).strip() + "\n"


def kind(annotation: Any) -> str:
    """A type in words; classes that have a section link to it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (None, type(None)):
        return "null"
    if annotation is Any:
        return "anything"
    if origin is typing.Literal:
        return ", ".join(code(str(value)) for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind(one) for one in inner)
    if origin in (list, collections.abc.Sequence):
        return f"list of {kind(inner[0])}"
    if origin in (dict, collections.abc.Mapping):
        return f"{kind(inner[1])} by name"
    if origin is tuple:
        return f"[{', '.join(kind(one) for one in inner)}]"
    if origin is collections.abc.Callable:
        return f"class: {kind(inner[1])}"
    if isinstance(annotation, typing.TypeVar):
        return kind(annotation.__bound__)
    if annotation in ANCHORS:
        return f"[{annotation.__name__}](#{ANCHORS[annotation]})"
    return annotation.__name__


def literal(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, str | int | float):
        return str(value)
    return "null" if value is None else f"{type(value).__name__}()"


def code(text: str) -> str:
    """As code, in a cell of a table."""
    return f"`{text}`" if text else '`""`'


def marked(text: str) -> str:
    """A docstring's marks as Markdown's."""
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
    return re.sub(r"``([^`]*)``", r"`\1`", text)


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return marked(text).replace("|", "\\|")


def commands(names: dict[str, str], package: str, words: str) -> Iterator[str]:
    """A section a subcommand, of those that are there."""
    for name, what in names.items():
        if importlib.util.find_spec(f"{package}.{name}") is None:
            continue
        module = importlib.import_module(f"{package}.{name}")
        yield f"### {words} {name}\n"
        yield f"{what[0].upper()}{what[1:]}.\n"
        if module is data_command:
            yield from commands(data_command.COMMANDS, data_command.__name__, "fedmtl data")
        else:
            yield options(module.parser())


def options(parser: argparse.ArgumentParser) -> str:
    """A parser's words, a row each; where keys of a configuration are words, they are on the page already."""
    keys = inspect.signature(Experiment).parameters if isinstance(parser, jsonargparse.ArgumentParser) else {}
    rows = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or action.dest == "help" or action.dest.split(".")[0] in keys:
            continue
        names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        value = "" if action.nargs == 0 or not action.option_strings else f" {shown(action)}"
        text = cell(OTHERS_TEXT.get(action.dest) or str(action.help or "")).replace("%(default)s", str(action.default))
        rows.append(f"| {code(cell(names + value))} | {default(action)} | {text} |")
    lines = ["| word | default | |", "|---|---|---|", *rows] if rows else ["No words of its own."]
    more = "Any key of the configuration is a word too: `--KEY VALUE`, with dots between levels." if keys else ""
    told = parser.epilog or more
    if parser.formatter_class is argparse.RawDescriptionHelpFormatter:
        told = told and f"```text\n{told.strip()}\n```"
    else:
        told = " ".join(told.split())
    return "\n".join([*lines, "", told] if told else lines) + "\n"


def default(action: argparse.Action) -> str:
    """What counts where an option is not given."""
    if not action.option_strings or action.nargs == 0 or action.default in (None, argparse.SUPPRESS, []):
        return "required" if action.required and action.option_strings else ""
    return code(",".join(action.default) if isinstance(action.default, list) else str(action.default))


def shown(action: argparse.Action) -> str:
    """What stands for an option's value."""
    if action.metavar:
        return str(action.metavar)
    hint = getattr(action, "_typehint", None)
    choices = action.choices or (typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None)
    return "{" + ",".join(map(str, choices)) + "}" if choices else action.dest.upper()


if __name__ == "__main__":
    sys.exit(main())
