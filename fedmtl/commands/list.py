"""`fedmtl list`: the methods, backbones, tasks, data sets and experiments there are; without a topic, the topics."""

import ast
import inspect
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from fedmtl.commands.advice import among
from fedmtl.commands.catalogue import Class, classes, first_sentence, shipped
from fedmtl.errors import UserError

Row = tuple[str, ...]

# what a configuration names these classes in: their room, their base class, the key
METHODS = (
    ("algorithms", "LocalAlgorithm", "local.algorithm"),
    ("aggregation", "UploadTransform", "upload"),
    ("aggregation", "Rho", "upload.rho"),
    ("aggregation", "Aggregator", "server.aggregator"),
    ("mixing", "Mixing", "server.mixing"),
    ("server", "Optimizer", "server.optimizer"),
)


def parser() -> ArgumentParser:
    """The command's words."""
    made = ArgumentParser(
        prog="fedmtl list",
        description=__doc__,
        epilog="In a pipe each is one line, its columns separated by tabs. example: fedmtl list backbones 'convnext*'",
        allow_abbrev=False,
    )
    topics = sorted(TOPICS)
    made.add_argument("topic", nargs="?", choices=topics, type=among("topic", topics), help="what to list")
    made.add_argument("word", nargs="?", default="", help="only what holds this word, or fits a pattern with *")
    return made


def main(arguments: list[str]) -> None:
    """Parses the command line and lists.

    Raises:
        UserError: nothing fits the word.
    """
    own = parser().parse_args(arguments)
    if own.topic is None:
        show(("topic", "what it lists"), [(name, TOPICS[name].about) for name in sorted(TOPICS)])
        return
    topic = TOPICS[own.topic]
    rows = [*topic.rows()]
    found = [row for row in rows if fits(row, own.word)]
    if not found:
        raise UserError(f"none of the {own.topic} fits {own.word!r}; {near(own.word, rows)}")
    show(topic.columns, found)


def near(word: str, rows: list[Row]) -> str:
    """The row that may have been meant, whatever the case."""
    names = [row[0].rpartition("/")[2].removesuffix(".yaml").rpartition(".")[2] for row in rows]
    close = get_close_matches(word.lower(), [name.lower() for name in names], n=1)
    hits = [name for name in names if name.lower() in close]
    return f"did you mean {hits[0]}?" if hits else "without a word all are listed"


def fits(row: Row, word: str) -> bool:
    """Whether one of a row's cells holds the word, whatever its case; a word with ``*`` must fit the name."""
    if "*" in word or "?" in word:
        return fnmatch(Path(row[0]).name.lower(), word.lower()) or fnmatch(row[0].lower(), word.lower())
    return any(word.lower() in cell.lower() for cell in row)


def show(columns: Row, rows: list[Row]) -> None:
    """Prints a table; a line a row, separated by tabs, where no terminal reads."""
    from rich import box
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        sys.stdout.write("".join("\t".join(row) + "\n" for row in rows))
        return
    before_text = sum(max(map(len, column)) + 2 for column in list(zip(*rows, strict=True))[:-1])
    if before_text > console.width / 2:
        for name, *rest in rows:
            console.print(Text(name, style="bold"), soft_wrap=True)
            console.print(Padding(Text("  ".join(filter(None, rest))), (0, 0, 0, 4)))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(Text(row[0], style="bold"), *map(Text, row[1:]))
    console.print(table)


def methods() -> Iterator[Row]:
    """The files that a method needs, and the classes that methods are made of."""
    for path, text in shipped("methods"):
        yield here(path), "--config", text
    for room, base, key in METHODS:
        for one in of_base(room, base):
            yield one.path, key, one.summary


def of_base(room: str, base: str) -> Iterator[Class]:
    """The classes of a room that inherit from another."""
    for one in classes(room).values():
        if base in one.bases:
            yield one


def tasks() -> Iterator[Row]:
    """The classes of tasks."""
    for one in of_base("tasks", "Task"):
        yield one.path, one.summary


def datasets() -> Iterator[Row]:
    """The classes of data sets, and of ways to share them out."""
    for base, key in {"DataSource": "data", "Partition": "partition"}.items():
        for one in of_base("data", base):
            yield one.path, key, one.summary


def models() -> Iterator[Row]:
    """The class of the unified model."""
    yield from of_key("models", ("UnifiedModel",), "model")


def servers() -> Iterator[Row]:
    """The classes of servers."""
    yield from of_key("server", ("Server", "PersonalServer"), "server")


def trackers() -> Iterator[Row]:
    """The classes of trackers; an extra need not be installed."""
    yield from of_key("tracking", [one.name for one in of_base("tracking", "Tracker")], "tracker")


def of_key(room: str, names: Sequence[str], key: str) -> Iterator[Row]:
    """The classes of these names in a room."""
    for name in names:
        one = classes(room)[name]
        yield one.path, key, one.summary


def schedules() -> Iterator[Row]:
    """timm's schedules of the learning rate."""
    from timm import scheduler

    for name, kind in vars(scheduler).items():
        if name.endswith("LRScheduler"):
            yield f"timm.scheduler.{name}", "local.schedule", first_sentence(inspect.getdoc(kind) or "") or "a schedule"


def experiments() -> Iterator[Row]:
    """The configuration files to start from, and the sweeps."""
    for command, folder in {"fit": ".", "sweep": "sweeps"}.items():
        for path, text in shipped(folder):
            yield here(path), command, text


def here(path: Path) -> str:
    """A path as one would write it in the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def backbones() -> Iterator[Row]:
    """timm's models, but for those whose source says that they give no feature maps; none is built."""
    import timm

    folder = Path(timm.__file__).parent / "models"
    for module in sorted(timm.list_modules()):
        path = folder / f"{module}.py"
        source = (path if path.is_file() else folder / module / "__init__.py").read_text(encoding="utf-8")
        if "features_only not" in source:
            continue
        about = family(source) or module
        for name in timm.list_models(module=module):
            size = timm.models.get_pretrained_cfg_value(name, "input_size")
            trained = "pretrained" if timm.is_model_pretrained(name) else "no weights"
            yield name, "×".join(map(str, size[1:])) if size else "", trained, about


def family(source: str) -> str:
    """The first line of a module's docstring."""
    return next(iter((ast.get_docstring(ast.parse(source)) or "").strip().splitlines()), "")


class Topic(NamedTuple):
    """What can be listed.

    Attributes:
        about: what it is, in a few words.
        columns: their titles.
        rows: finds them.
    """

    about: str
    columns: Row
    rows: Callable[[], Iterator[Row]]


INTO = ("name", "goes into", "what it is")
TOPICS = {
    "methods": Topic("files of methods, and the classes that they name", (*INTO[:2], "what it does"), methods),
    "backbones": Topic("timm's models that give feature maps", ("name", "trained at", "weights", "family"), backbones),
    "models": Topic("the unified model", INTO, models),
    "tasks": Topic("classes of tasks", ("name", "what it is"), tasks),
    "datasets": Topic("classes of data sets, and of ways to share them out", INTO, datasets),
    "servers": Topic("classes of servers", INTO, servers),
    "schedules": Topic("timm's schedules of the learning rate", INTO, schedules),
    "trackers": Topic("where numbers and pictures go beside the run's folder", INTO, trackers),
    "experiments": Topic("files to start from, and sweeps", ("name", "command", "what it is"), experiments),
}
