"""The data sets that a command is to work on: the one in a folder, or those of an experiment."""

import argparse
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fedmtl.commands.data.parser import Parser
from fedmtl.data import DataSource
from fedmtl.data.detect import open_root
from fedmtl.errors import UserError


class Chosen(NamedTuple):
    """A data set, and which of its tasks matter."""

    source: DataSource
    tasks: list[str]


def with_choice(made: Parser, *, by_file: bool) -> Parser:
    """Adds the words that choose data sets; beside ``--config`` a folder would take the value of a key."""
    made.add_argument(
        "--config", action="append", metavar="FILE", help="an experiment: its data sets and its clients' tasks"
    )
    made.add_argument("--tasks", metavar="A,B", help="these tasks of the folder only")
    if not by_file:
        made.add_argument("root", metavar="ROOT", nargs="?", help="folder of a data set")
    made.epilog = "With --config, keys of the experiment can be given too, e.g. --data.root."
    return made


def choose(make: Callable[..., Parser], arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Chosen]]:
    """Parses a command's own words and opens the data sets that they name.

    Args:
        make: makes the command's parser; its ``by_file`` says whether data sets are those of an experiment's file.
        arguments: the command line behind the command.

    Returns:
        Values of the options, and data sets by name.

    Raises:
        UserError: a mistake on the command line or in the experiment's file, or a data set can't be opened.
    """
    by_file = any(word == "--config" or word.startswith("--config=") for word in arguments)
    parser = make(by_file=by_file)
    own, others = parser.parse_known_args(arguments)
    if by_file and others and not others[0].startswith("-"):
        raise UserError(f"give a folder or --config FILE, not both: {others[0]}, {own.config[0]}")
    if by_file and own.tasks is not None:
        raise UserError("--tasks goes with a folder; with --config, the clients' tasks are taken")
    if by_file:
        return own, of_experiment([*(f"--config={file}" for file in own.config), *others])
    if others:
        parser.error(f"unknown argument {others[0]}")
    if own.root is None:
        raise UserError("give the folder of a data set, or --config FILE for those of an experiment")
    source = open_root(own.root)
    tasks = own.tasks.split(",") if own.tasks is not None else list(source.tasks)
    return own, {source.name: Chosen(source, _known(source, tasks))}


def of_experiment(words: list[str]) -> dict[str, Chosen]:
    """The data sets of an experiment by name, with the tasks that its clients learn or read; no model is built.

    Args:
        words: as for ``fedmtl fit``.

    Raises:
        UserError: a mistake in a file or on the command line, or a data set can't be opened.
    """
    # folders do without these, and without the seconds that loading them takes
    from jsonargparse import ArgumentParser, Namespace

    from fedmtl.commands.configuration import experiment_parser, parse, plain_errors
    from fedmtl.experiment import Experiment

    config = parse(experiment_parser("data", None), words)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=inspect.signature(Experiment).parameters["data"].annotation)
    with plain_errors():
        data = parser.instantiate(Namespace(data=config.data)).data  # type: ignore[no-untyped-call]
    sources = {data.name: data} if isinstance(data, DataSource) else data
    return {key: Chosen(source, _used(config.clients, key, source)) for key, source in sources.items()}


def _used(groups: Sequence[Any], key: str, source: DataSource) -> list[str]:
    """Tasks of the groups of clients that have a data set, and what else these read, in its order."""
    own = [group for group in groups if group.data in (None, key)]
    names = [task for group in own for task in (*group.tasks, group.input) if task != "image"]
    return [task for task in source.tasks if task in _known(source, names)]


def _known(source: DataSource, tasks: list[str]) -> list[str]:
    for task in tasks:
        if task not in source.tasks:
            raise UserError(source.lacks(task))
    return tasks
