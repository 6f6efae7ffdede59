"""The `fedmtl` command. Importing this loads neither torch nor anything else that takes a while."""

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches

from fedmtl import __version__
from fedmtl.commands import COMMANDS
from fedmtl.errors import MISMATCH, UserError
from fedmtl.stopping import Stopped
from fedmtl.trust import BUILT_IN, Trust, limited

STOPPED = 75  # exit code: what sysexits.h calls a temporary failure; try again
INTERRUPTED = 130  # exit code: as a shell tells of SIGINT
GONE = 141  # exit code: as a shell tells of SIGPIPE
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# what a RuntimeError of a library means, by what its text holds
HINTS = {
    "torchvision::": MISMATCH,
    "CUDA out of memory": "the GPU's memory is full; lower local.batch_size or eval_batch_size, or take "
    "fabric.precision: bf16-mixed",
    "DataLoader worker": "a data worker died: interrupted, or out of memory; fabric.workers: 0 does without",
}

HELP = """usage: fedmtl [--version] [--debug] COMMAND ...

Federated multi-task learning on dense vision tasks.

commands:
{commands}

options:
  --debug                 show the full trace of an error
  --trusted-modules A,B   classes that files name may come from these modules and fedmtl's own, no others
  --version               print the version

Start with: fedmtl fit --config experiments/scenes_dea.yaml
More on a command: fedmtl COMMAND --help
""".format(commands="\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Returns:
        Exit code: 0; 1 where `data check` or `doctor` has found something, a run of a sweep failed, or `predict` or
        `export` could not do all; 2 for a mistake that the user can mend; 75 when a signal has stopped a run that can
        be resumed; 130 when interrupted; 141 when who reads the output has gone, as in `| head`.
    """
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:  # as it is under `>&-`
                sys.stdout.flush()
    except BrokenPipeError:
        code = GONE
    except OSError as error:
        if error.filename is not None or error.errno not in FULL:
            raise
        code = _fail("fedmtl", f"the output can't be written ({error.strerror}); make room there")
    with suppress(OSError):  # what is left would fail again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def entry() -> None:
    """What the shell calls: `main`, and an end with its exit code."""
    code = main()
    if code == INTERRUPTED:  # at once: a thread that still writes would be torn out of C++, which aborts
        os._exit(code)
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every pipe takes a Δ
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(f"fedmtl {__version__}")
        return 0
    words, trusted = _split_trusted(words)
    command = words[0] if words else ""
    if command not in COMMANDS:
        return _fail("fedmtl", _unknown(command, words))
    if _takes_own_classes(words, trusted) and "" not in sys.path:
        sys.path.append("")  # classes of the user's own, named in YAML, are found in the working directory
    try:
        with limited(trusted):
            module = "fit_help" if command == "fit" and not {"-h", "--help"}.isdisjoint(words) else command
            importlib.import_module(f"fedmtl.commands.{module}").main(words[1:])
    except UserError as error:
        if debug:
            raise
        # from a data worker it arrives with the worker's trace before it
        return _fail(f"fedmtl {command}", str(error).splitlines()[-1].removeprefix("fedmtl.errors.UserError: "))
    except Stopped as stopped:
        advice = "the same command again goes on" if command == "sweep" else "--resume auto goes on"
        return _fail(f"fedmtl {command}", f"stopped by {stopped}; {advice}", code=STOPPED)
    except KeyboardInterrupt:
        if debug:
            raise
        advice = "; --resume auto goes on from the last checkpoint, if there is one" if command == "fit" else ""
        return _fail(f"fedmtl {command}", f"interrupted{advice}", code=INTERRUPTED)
    except RuntimeError as error:
        hint = next((hint for sign, hint in HINTS.items() if sign in str(error)), None)
        if debug or hint is None:
            raise
        return _fail(f"fedmtl {command}", hint)
    return 0


def _split_trusted(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """The other words, and what ``--trusted-modules`` names wherever it stands; None if it does not."""
    others: list[str] = []
    named: list[str] | None = None
    rest = iter(words)
    for word in rest:
        if word == "--trusted-modules" or word.startswith("--trusted-modules="):
            value = word.partition("=")[2] or next(rest, "")
            named = [*(named or []), *(name.strip() for name in value.split(","))]
        else:
            others.append(word)
    return others, named


def _takes_own_classes(words: Sequence[str], trusted: Sequence[str] | None) -> bool:
    """Whether a command may need modules of the working directory, which might be a stranger's folder."""
    if trusted is not None:
        return not all(Trust(BUILT_IN).covers(name) for name in trusted)
    return words[0] == "fit" or any(word.partition("=")[0] == "--config" for word in words)


def _unknown(command: str, words: Sequence[str]) -> str:
    later = next((word for word in words if word in COMMANDS), None)
    if command.startswith("-") and later:
        rest = [word for word in words if word != later]
        return f"the command comes first: fedmtl {later} {' '.join(rest)}"
    near = get_close_matches(command, COMMANDS, n=1)
    return f"unknown command {command!r}; {f'did you mean {near[0]}?' if near else 'there are ' + ', '.join(COMMANDS)}"


def _fail(who: str, message: str, code: int = 2) -> int:
    from fedmtl.runs import printable  # names of a stranger's files may hold anything

    print(f"{who}: error: {printable(message)}", file=sys.stderr)
    return code
