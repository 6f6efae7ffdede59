"""Commands as processes of their own, which can be killed."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Process:
    """A command that runs by itself, in a process group of its own.

    Attributes:
        starter: what has forked it.
        id: its process, and its group.
        log: where it writes.
    """

    starter: "Starter"
    id: int
    log: Path

    def wait(self) -> int:
        """How it ends: its exit code, or minus the signal."""
        return int(self.starter.ask(wait=self.id))

    def kill(self) -> None:
        """Ends it and all that it has started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.id, signal.SIGKILL)


class Starter:
    """A process that has imported everything and forks one for each command, see starter.py."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("starter.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )

    def ask(self, **order: Any) -> str:
        """What it answers to an order."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        print(json.dumps(order), file=self.popen.stdin, flush=True)
        return self.popen.stdout.readline()

    def start(self, words: list[str], log: Path, first: str) -> Process:
        """Starts a command of fedmtl, after some lines of Python."""
        return Process(self, int(self.ask(words=words, log=str(log), first=first)), log)

    def close(self) -> None:
        """Ends it."""
        with self.popen:
            assert self.popen.stdin is not None
            self.popen.stdin.close()
            self.popen.wait(60)
