"""`fedmtl sweep`: many runs from one file in W&B's sweep format, here and without an account."""

import json
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from operator import methodcaller
from pathlib import Path

from rich.console import Console

from fedmtl import atomic
from fedmtl.commands.words import say, terminal
from fedmtl.errors import UserError
from fedmtl.sweeps import command, definition, jobs, names
from fedmtl.sweeps.definition import Setting, Sweep
from fedmtl.sweeps.jobs import Job
from fedmtl.trust import of_own_files


def parser() -> ArgumentParser:
    """The words of the command."""
    result = ArgumentParser(
        prog="fedmtl sweep",
        usage="fedmtl sweep --config FILE [options] [-- words for every run]",
        description="Runs a sweep in W&B's format here, without an account. What is done is skipped; what was begun "
        "goes on. A sweep's file names the command that is run: take a stranger's for a script (docs/safety.md).",
        epilog="example: fedmtl sweep --config experiments/sweeps/rho.yaml --jobs 2 -- --rounds 4 --tracker null",
        allow_abbrev=False,
    )
    result.add_argument("--config", type=Path, required=True, metavar="FILE", help="the sweep, as for wandb sweep")
    result.add_argument("--name", help="name of the sweep and of its folder (default: the file's)")
    result.add_argument("--out", type=Path, default=Path("runs"), help="folder of all sweeps and runs (default: runs)")
    slots = result.add_mutually_exclusive_group()
    slots.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    slots.add_argument("--gpus", metavar="0,1", help="a run at a time on each of these GPUs; 0,0,1,1 for two on each")
    result.add_argument("--count", type=int, metavar="N", help="no more than N runs; how many of a random search")
    result.add_argument("--seed", type=int, default=0, help="what a random search is drawn from (default: 0)")
    result.add_argument("--dry-run", action="store_true", help="print the commands and start nothing")
    return result


def main(arguments: list[str]) -> None:
    """Runs a sweep and sums it up.

    Raises:
        SystemExit: with 1 if a run has failed or what they came to can't be written, 75 if one was stopped that can be
            resumed.
    """
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    own, extra = _parse(arguments[:cut]), arguments[cut + 1 :]
    sweep = definition.read(own.config, own.name)
    settings = sweep.settings(own.count, own.seed)
    folder = own.out / sweep.name
    planned = plan(sweep, settings, folder, extra)
    console = terminal()
    for line in sweep.ignored:
        say(console, f"note: {line}")
    if own.dry_run:
        for job in planned:
            say(console, shlex.join(["fedmtl", *job.words[3:]] if job.words[0] == sys.executable else job.words))
        return
    prepare(folder, planned, settings)
    slots = own.gpus.split(",") if own.gpus else [None] * own.jobs
    done = sum(job.done for job in planned)
    say(console, f"{sweep.name}: {len(planned)} runs in {folder}, {done} of them done before")
    ends: dict[str, str] = {job.name: "done" for job in planned if job.done}
    written = False
    try:
        ends = jobs.run(planned, slots, Progress(console, len(planned), ends))
    finally:
        written = sum_up(sweep, settings, planned, ends, folder, console)
    if "failed" in ends.values() or not written:
        raise SystemExit(1)
    if "stopped" in ends.values():
        raise SystemExit(jobs.STOPPED)


def arguments_file(log: Path) -> Path:
    """The file of a run's parameters, for a command that asks for one by ``${args_json_file}``."""
    return log.with_suffix(".args")


def plan(sweep: Sweep, settings: Sequence[Setting], folder: Path, extra: Sequence[str]) -> list[Job]:
    """The sweep's runs as jobs.

    Args:
        sweep: its definition.
        settings: of its runs.
        folder: of the sweep; each run has one in it.
        extra: words for every run; they win over the sweep's.
    """
    trusted = of_own_files().modules
    planned = []
    for name, setting in zip(names.run_names(sweep, settings), settings, strict=True):
        log = folder / "logs" / f"{name}.log"
        given = [*command.fill(sweep, setting, arguments_file(log)), *extra]
        fits = command.runs_fit(given)
        place = [f"--out={folder}", f"--name={name}", "--resume=auto"] if fits else []
        planned.append(Job(name, command.started([*given, *place], trusted), given, fits, folder / name, log))
    return planned


class Progress:
    """Tells what becomes of each run, and where to look when one fails."""

    def __init__(self, console: Console, count: int, ends: dict[str, str]) -> None:
        self.console, self.count, self.ends = console, count, ends

    def __call__(self, job: Job, what: str, seconds: float, why: str) -> None:
        """Hears of a job."""
        if what in ("started", "elsewhere"):
            text = "is at work elsewhere" if what == "elsewhere" else "goes on" if job.folder.exists() else "starts"
            say(self.console, f"{job.name} {text}")
            return
        self.ends[job.name] = what
        say(self.console, f"{job.name} {what} after {_time(seconds)}  ({len(self.ends)}/{self.count})")
        if what == "failed":
            say(self.console, f"  {why}")
            say(self.console, f"  all of it: {job.log}")


def sum_up(
    sweep: Sweep,
    settings: Sequence[Setting],
    planned: Sequence[Job],
    ends: dict[str, str],
    folder: Path,
    console: Console,
) -> bool:
    """Prints the table, writes sweep.csv and the plot; whether they could be written."""
    from fedmtl.sweeps import summary

    rows = [
        summary.row(job.name, setting, job.folder, ends.get(job.name, "to do"))
        for job, setting in zip(planned, settings, strict=True)
    ]
    if not any(row.metrics for row in rows):
        return True
    result = summary.summarise(sweep, rows)
    console.print(summary.table(result))
    if result.metric is None:
        some = sorted({key for row in rows for key in row.metrics if key.startswith(("val/", "best/"))})
        say(console, f"{result.title}; there is {', '.join(some)}")
    from fedmtl.sweeps import plot

    files = [folder / "sweep.csv"]
    try:
        atomic.replace(files[0], lambda file: file.write(summary.as_csv(result).encode()))
        files += plot.draw(result, folder / "sweep")
    except OSError as error:  # the runs are done, and the same command sums them up again
        say(console, f"warning: {error.filename2 or error.filename or folder}: {error.strerror or error}")
        return False
    say(console, f"in {', '.join(map(str, files))}")
    return True


def prepare(folder: Path, planned: Sequence[Job], settings: Sequence[Setting]) -> None:
    """Makes the sweep's folder, with that of its logs and the files that its commands ask for.

    Raises:
        UserError: it can't be made, is a run's, or holds what another sweep began.
    """
    try:
        if (folder / "config.yaml").exists():
            raise UserError(f"{folder} is the folder of a run; give the sweep another --name")
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        for job, setting in zip(planned, settings, strict=True):
            job.check()
            asked = arguments_file(job.log)
            if str(asked) in job.words:
                atomic.replace(asked, methodcaller("write", json.dumps(command.arguments(setting)).encode()))
    except OSError as error:
        raise UserError(
            f"--out: {folder} can't be made ({error.strerror or error}); name a folder that you can write to"
        ) from None


def _parse(words: list[str]) -> Namespace:
    own = parser().parse_args(words)
    if own.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {own.jobs}")
    if own.count is not None and own.count < 1:
        raise UserError(f"--count must be at least 1, not {own.count}")
    if own.gpus is not None and not all(part.strip() for part in own.gpus.split(",")):
        raise UserError(f"--gpus takes numbers such as 0,1, not {own.gpus!r}")
    return own


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
