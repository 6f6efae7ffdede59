"""Runs of a sweep as processes: some at a time, each with its log and its lock, stopped together."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fedmtl.errors import UserError
from fedmtl.stopping import Stopped, StopSignals

try:
    import fcntl
except ImportError:  # Windows, where two sweeps in one folder are not told apart
    fcntl = None  # type: ignore[assignment]

NOT_STARTED = 127  # as a shell says it
STOPPED = 75  # how a run ends that a signal has stopped and that can be resumed
AGENTS = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")  # a run here is none of an agent's


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: of the run, one path component.
        words: the command.
        given: the part of the command that says what is computed; a run is not resumed by another.
        fits: whether it is a run of `fedmtl fit`, which says itself when it is done.
        folder: the run's folder.
        log: what it prints is added to this file.
    """

    name: str
    words: Sequence[str]
    given: Sequence[str]
    fits: bool
    folder: Path
    log: Path

    @property
    def done(self) -> bool:
        """Whether it has come to its end before."""
        return (self.folder / "results.json").is_file() if self.fits else self.log.with_suffix(".done").is_file()

    def check(self) -> None:
        """Refuses to take another run's folder for this one's.

        Raises:
            UserError: a run of this name was begun by another command, or what says so is damaged.
        """
        note = self.log.with_suffix(".json")
        if not note.is_file():
            return
        try:
            before = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if not isinstance(before, list) or not all(isinstance(word, str) for word in before):
            raise UserError(
                f"{note} is damaged, it should say by what command {self.folder} was begun; if that was the same as "
                "now delete the file, else give the sweep another --name"
            )
        if before != list(self.given):
            gone = " ".join(word for word in before if word not in self.given)
            new = " ".join(word for word in self.given if word not in before)
            change = " and ".join(f"{how} {words}" for how, words in (("with", gone), ("without", new)) if words)
            raise UserError(
                f"{self.folder} was begun {change or 'by words in another order'}; give the sweep the words "
                "that it had, or another --name"
            )

    def note(self) -> None:
        """Writes down by what command it was begun."""
        path = self.log.with_suffix(".json")
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(list(self.given)) + "\n", encoding="utf-8")
        partial.replace(path)


@dataclass
class _Process:
    job: Job
    slot: str | None
    popen: "subprocess.Popen[bytes] | None"  # None for a command that can't be started
    since: float

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return NOT_STARTED if self.popen is None else self.popen.poll()

    def wait(self) -> None:
        """Returns when it has ended."""
        if self.popen is not None:
            self.popen.wait()


Tell = Callable[[Job, str, float, str], None]


def run(jobs: Sequence[Job], slots: Sequence[str | None], tell: Tell) -> dict[str, str]:
    """Runs what is not done yet, one process a slot, until all have ended.

    A run that another sweep has at work in the same folder is waited for. At a signal, or an error here, the runs are
    asked to stop: they save and end; a second Ctrl-C ends them at once. A run whose log can't be written has failed.

    Args:
        jobs: in the order in which they start; the folders of their logs are there.
        slots: a slot is the GPUs of its runs (CUDA_VISIBLE_DEVICES), or None for whatever there is.
        tell: hears of each job when it is ``started``, ``done``, ``failed``, ``stopped``, ``elsewhere``, with seconds
            and, where it has failed, why.

    Returns:
        How each run has ended: ``done``, ``failed`` or ``stopped``.

    Raises:
        Stopped: by a signal, after all runs have ended.
    """
    free, waiting = list(slots), deque(job for job in jobs if not job.done)
    ends = {job.name: "done" for job in jobs if job.done}
    elsewhere: set[str] = set()
    active: list[_Process] = []
    with StopSignals() as stop:
        try:
            while waiting or active:
                for _ in range(len(waiting) if free else 0):
                    job = waiting.popleft()
                    begun = _begin(job, free[0], tell)
                    if isinstance(begun, _Process):
                        active.append(begun)
                        del free[0]
                    elif begun == "elsewhere":
                        waiting.append(job)
                        if job.name not in elsewhere:
                            tell(job, begun, 0.0, "")
                        elsewhere.add(job.name)
                    else:
                        ends[job.name] = begun
                    if not free:
                        break
                stop.check(patience=0.1)
                for process in [p for p in active if p.code is not None]:
                    active.remove(process)
                    free.append(process.slot)
                    ends[process.job.name] = _tell_end(process, tell)
        except Exception as error:
            _stop(active)
            for process in active:
                process.wait()
            for process in active if isinstance(error, Stopped) else ():  # or else there may be nobody to tell
                _tell_end(process, tell)
            raise
        finally:  # after a second Ctrl-C
            _stop([process for process in active if process.code is None], at_once=True)
    return ends


def last_error(log: Path) -> str:
    """The last line of a log that tells of an error, or else its last line."""
    with suppress(OSError):
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", log.read_text(encoding="utf-8", errors="replace"))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        telling = [line for line in lines[-20:] if re.search(r"error|exception|killed", line, re.IGNORECASE)]
        return (telling or lines or ["it printed nothing"])[-1]
    return "its log can't be read"


def environment(gpu: str | None, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of a run."""
    own = {name: value for name, value in base.items() if name not in AGENTS}
    return own | {"PYTHONUNBUFFERED": "1"} | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})


def _begin(job: Job, slot: str | None, tell: Tell) -> _Process | str:
    """Starts a job, or says why it needs no start: it is at work ``elsewhere``, ``done`` meanwhile, or ``failed``."""
    try:
        with open(job.log, "ab") as log:
            if not _lock(log):
                return "elsewhere"
            if job.done:
                return "done"
            tell(job, "started", 0.0, "")
            return _start(job, slot, log)
    except OSError as error:
        tell(job, "failed", 0.0, f"{error.filename or job.log} can't be written: {error.strerror or error}")
        return "failed"


def _start(job: Job, slot: str | None, log: BinaryIO) -> _Process:
    """Starts a job, which keeps the log open, and the lock with it, for as long as it lives."""
    job.note()
    variables = environment(slot)
    if job.fits:
        variables["PYTHONSAFEPATH"] = "1"  # a fedmtl in the working directory is not ours
    log.write(f"$ {shlex.join(job.words)}\n".encode())
    log.flush()
    popen = None
    try:
        popen = subprocess.Popen(
            job.words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables, start_new_session=True
        )
    except OSError as error:
        log.write(f"error: {job.words[0]} can't be started: {error.strerror or error}\n".encode())
    return _Process(job, slot, popen, time.monotonic())


def _lock(log: BinaryIO) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
    return True


def _end(process: _Process) -> str:
    job, code = process.job, process.code
    if code in (STOPPED, -signal.SIGTERM, -signal.SIGINT):  # or before it had anything to save
        return "stopped"
    if code == 0 and not job.fits:
        with suppress(OSError):  # then it is not done
            job.log.with_suffix(".done").touch()
    return "done" if code == 0 and job.done else "failed"


def _tell_end(process: _Process, tell: Tell) -> str:
    end = _end(process)
    why = last_error(process.job.log) if end == "failed" else ""
    tell(process.job, end, time.monotonic() - process.since, why)
    return end


def _stop(active: Sequence[_Process], *, at_once: bool = False) -> None:
    """Asks runs, with all that they have started, to save and end; or ends them."""
    for popen in (process.popen for process in active if process.popen is not None):
        with suppress(ProcessLookupError):
            if os.name == "posix":
                os.killpg(popen.pid, signal.SIGKILL if at_once else signal.SIGTERM)
            else:  # there are no groups, and no asking
                popen.kill()
