"""A run's command line: W&B's macros filled in as its agents do, and what makes a run of fedmtl's own."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedmtl.errors import UserError
from fedmtl.sweeps.definition import Setting, Sweep

_VARIABLE = re.compile(r"\$\{envvar:([A-Za-z0-9_]+)\}")
_PYTHON = re.compile(r"python(\d(\.\d+)?)?(\.exe)?")


def arguments(setting: Setting) -> dict[str, Any]:
    """A setting as W&B hands it to its agents: a value a parameter, nested ones as dictionaries."""
    nested: dict[str, Any] = {}
    for path, value in setting.items():
        level = nested
        for name in path[:-1]:
            level = level.setdefault(name, {})
        level[path[-1]] = value
    return nested


def fill(sweep: Sweep, setting: Setting, json_file: Path) -> list[str]:
    """The words that start a run.

    Values are written as Python writes them, as W&B's agents do; a dictionary is one word.

    Args:
        sweep: its definition.
        setting: the run's values.
        json_file: what ``${args_json_file}`` stands for.

    Raises:
        UserError: a macro that W&B does not have.
    """
    values = arguments(setting)
    plain = [f"{name}={value}" for name, value in values.items()]
    macros: Mapping[str, Sequence[str] | None] = {
        "env": [] if os.name == "nt" else ["/usr/bin/env"],
        "interpreter": ["python"],
        "program": None if sweep.program is None else [sweep.program],
        "args": [f"--{word}" for word in plain],
        "args_no_hyphens": plain,
        "args_no_equals": [word for name, value in values.items() for word in (f"--{name}", str(value))],
        "args_no_boolean_flags": [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in values.items()
            if value is not False
        ],
        "args_json": [json.dumps(values)],
        "args_json_file": [str(json_file)],
        "args_append_hydra": [f"+{word}" for word in plain],
        "args_override_hydra": [f"++{word}" for word in plain],
    }
    words: list[str] = []
    for word in sweep.command:
        word = _VARIABLE.sub(lambda match: os.environ.get(match[1], match[1]), word)
        macro = word[2:-1] if word.startswith("${") and word.endswith("}") else None
        if macro is None and "${" not in word:
            words.append(word)
            continue
        stands = macros.get(macro or "")
        if stands is None:
            reason = (
                "the file has no program" if macro == "program" else f"a word of its own, one of {', '.join(macros)}"
            )
            raise UserError(f"command: W&B can't fill in {word}: {reason}")
        words += stands
    return words


def after_fit(words: Sequence[str]) -> list[str] | None:
    """What follows ``fedmtl fit`` in a command that is nothing else; None for any other command."""
    words = list(words)
    if words[:1] == ["/usr/bin/env"]:
        words = words[1:]
    if words[:1] != ["fedmtl"] and words and _PYTHON.fullmatch(words[0]) and words[1:2] == ["-m"]:
        words = words[2:]
    return words[2:] if words[:2] == ["fedmtl", "fit"] else None


def runs_fit(words: Sequence[str]) -> bool:
    """Whether a command starts ``fedmtl fit``, perhaps by way of another program such as torchrun."""
    return any(pair == ("fedmtl", "fit") for pair in pairwise(words))


def started(words: Sequence[str], trusted: Sequence[str] | None) -> list[str]:
    """The command as it is started: fedmtl's own in this Python, with the same trust.

    Args:
        words: the command.
        trusted: where the classes may come from that files name; None: everywhere.

    Raises:
        UserError: trust is limited, and it is not fedmtl's own.
    """
    rest = after_fit(words)
    if rest is not None:
        limits = [] if trusted is None else ["--trusted-modules", ",".join(trusted)]
        return [sys.executable, "-m", "fedmtl", "fit", *limits, *rest]
    if trusted is not None:
        raise UserError(f"command: with --trusted-modules only fedmtl fit is started, not {' '.join(words[:4])}")
    return list(words)
