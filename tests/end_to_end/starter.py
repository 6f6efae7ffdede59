"""Starts `fedmtl` commands as processes of their own that need no seconds for imports: it imports once, then forks.

Reads an order a line from standard input, and answers with one: ``{"words", "log", "first"}`` starts a command, after
running the lines of Python in ``first``, and is answered by its process id; ``{"wait": id}`` by how that ended.
"""

import json
import os
import sys
from contextlib import suppress

import fedmtl.commands.evaluate
import fedmtl.commands.fit
import fedmtl.data  # noqa: F401
from fedmtl.cli import main

if __name__ == "__main__":
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        elif child := os.fork():
            with suppress(OSError):
                os.setpgid(child, child)
            print(child, flush=True)
        else:
            os.setpgid(0, 0)
            log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            # what Python knows of the streams is of those that they were
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
            exec(order["first"])
            sys.exit(main(order["words"]))
