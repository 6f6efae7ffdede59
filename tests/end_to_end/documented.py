"""Follows a page of documentation: writes the files that it shows and runs the commands that it gives, in order."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

RUN_AS_THEY_STAND = {"ls", "tail", "head"}
NOT_RUN = {"make", "pip", "python3", "wandb", "tensorboard", "source", ".", "cd", "git"}  # no network, no other setup


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [Block(*block) for block in found]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def file_name(block: Block) -> str | None:
    """The name of the file that a block shows, which its first line is a comment of."""
    name = re.match(r"# (\S+\.(?:py|yaml))\n", block.text)
    return name[1] if name and block.language in ("python", "yaml") else None


def follow(page: Path, fedmtl: Callable[..., Any], smaller: Callable[[list[str]], list[str]]) -> int:
    """Does what a page says in the working directory, and tells how many commands of fedmtl that were.

    Args:
        page: what to follow.
        fedmtl: runs a command in this process.
        smaller: words to add to a command, so that it takes seconds.
    """
    done = 0
    for block in blocks(page):
        if name := file_name(block):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(block.text, encoding="utf-8")
        for words in commands(block.text) if block.language == "bash" else ():
            if words[0] == "fedmtl":
                result = fedmtl(*words[1:], *smaller(words[1:]))
                assert result.code == 0, f"{' '.join(words)}: {result.error}"
                done += 1
            elif words[0] == "python":
                subprocess.run([sys.executable, *words[1:]], check=True, timeout=120)
            elif words[0] in RUN_AS_THEY_STAND:
                subprocess.run(words, check=True, timeout=60, stdout=subprocess.DEVNULL)
            else:
                assert words[0] in NOT_RUN, f"{page.name}: {' '.join(words)} is neither run nor known to be left out"
    return done
