"""`fedmtl completion`: prints a script that completes fedmtl's words in a shell."""

import argparse
import importlib
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedmtl.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")
EPILOG = """bash: fedmtl completion bash > ~/.local/share/bash-completion/completions/fedmtl
zsh:  fedmtl completion zsh > a file _fedmtl in a folder of $fpath
tcsh: fedmtl completion tcsh > ~/.fedmtl.tcsh, and in ~/.tcshrc: source ~/.fedmtl.tcsh
Then open a new shell. The script is made once; make it again after an update."""

FOLDERS = ("run", "runs", "folder", "root", "out", "baseline")  # arguments that are folders, not files
WITH_KEYS = ("fit", "evaluate", "check", "preview", "federation")  # commands that take keys of a configuration


def parser() -> ArgumentParser:
    """The command's words."""
    made = ArgumentParser(
        prog="fedmtl completion",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("shell", choices=SHELLS, help="the shell that reads the script")
    return made


def main(arguments: list[str]) -> None:
    """Parses the command line and prints the script.

    Raises:
        UserError: the package that writes such scripts is not installed.
    """
    own = parser().parse_args(arguments)
    try:
        import shtab
    except ImportError as error:
        raise UserError(
            'completion needs shtab: pip install -e ".[completion]" in the folder of the repository'
        ) from error
    print(shtab.complete(whole(), own.shell))


def whole() -> ArgumentParser:
    """A parser of all commands, as far as a shell needs it."""
    from fedmtl.commands import COMMANDS, data
    from fedmtl.commands.data import parser as data_words

    root = ArgumentParser(prog="fedmtl")
    root.add_argument("--version", action="store_true", help="print the version")
    root.add_argument("--debug", action="store_true", help="show the full trace of an error")
    commands = root.add_subparsers()
    for name, summary in COMMANDS.items():
        sub = _add(commands, name, summary, _words(name))
        if name == "data":
            below = sub.add_subparsers()
            for word, text in data.COMMANDS.items():
                made = importlib.import_module(f"fedmtl.commands.data.{word}").parser()
                _add(below, word, text, made if isinstance(made, data_words.Parser) else _own(made))
    return root


def _words(command: str) -> ArgumentParser:
    """The parser of a command; of those that have none of argparse's, what a shell needs of it."""
    from fedmtl.commands import fit_help

    if command not in ("fit", "data"):
        made: ArgumentParser = importlib.import_module(f"fedmtl.commands.{command}").parser()
        return made
    made = ArgumentParser()
    if command == "fit":
        made.add_argument("--config", type=Path)
        made.add_argument("--help-all", action="store_true", help="every option, with types and defaults")
        made.add_argument("--print_config", action="store_true", help="the configuration as it would be used")
        for option, text in fit_help.options():
            word, _, choices = option.partition(" ")
            made.add_argument(word, choices=choices.strip("{}").split(",") if choices else None, help=text)
    return made


def _own(made: ArgumentParser) -> ArgumentParser:
    """The words of a parser that takes a configuration, without its keys; its types are no argparse's."""
    import inspect

    from fedmtl.experiment import Experiment

    keys = inspect.signature(Experiment).parameters
    own = ArgumentParser()
    for action in made._actions:
        if action.dest.partition(".")[0] not in (*keys, "help"):
            own.add_argument(*action.option_strings, help=str(action.help or "").replace("%", "%%"))
    return own


def _add(commands: Any, name: str, summary: str, made: ArgumentParser) -> ArgumentParser:
    """Adds a command with the words of its parser, and those that every command takes."""
    helps = any("--help" in action.option_strings for action in made._actions)
    # argparse reads % in a help text as a place to fill
    sub: ArgumentParser = commands.add_parser(name, help=summary.replace("%", "%%"), parents=[made], add_help=not helps)
    sub.add_argument("--debug", action="store_true", help="show the full trace of an error")
    sub.add_argument("--trusted-modules", help="modules that classes of files may come from")
    if name in WITH_KEYS:
        add_keys(sub)
    for action in sub._actions:
        _complete_files(action)
    return sub


def add_keys(made: ArgumentParser) -> None:
    """Adds every key of a configuration as an option, with the words or classes that it takes."""
    from fedmtl.commands.keys import all_keys

    values: dict[str, dict[str, None]] = {}
    for key in all_keys():
        values.setdefault(key.path, {}).update(dict.fromkeys((*key.words, *key.classes)))
    for path, words in values.items():
        with suppress(argparse.ArgumentError):  # it is an option of the command already
            made.add_argument(f"--{path}", choices=list(words) or None)


def _complete_files(action: Any) -> None:
    import shtab

    if action.choices is None and (action.type is Path or action.dest in ("config", *FOLDERS)):
        action.complete = shtab.DIRECTORY if action.dest in FOLDERS else shtab.FILE
