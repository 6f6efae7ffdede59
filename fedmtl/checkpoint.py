"""Checkpoints of a run: atomic, versioned, written beside the training; the last two and the best are kept."""

import logging
import math
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from fedmtl import atomic, storage
from fedmtl.client_state import Kept, file_name
from fedmtl.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 3
PATIENCE = 20.0  # seconds for which a run that ends waits for files of other processes


class Checkpoints:
    """The checkpoints of one run.

    ``round_000012.ckpt`` holds the server and names the files in ``states/`` with what each client kept, which are
    written once for each client and round.

    Args:
        directory: where they lie.
        keep: how many of the newest are kept.
        leads: whether this process writes the checkpoint itself, not only files of its own clients.

    Attributes:
        written: the round that was written last.
        failed: whether the last one could not be written here.
    """

    def __init__(self, directory: Path, *, keep: int = 2, leads: bool = True) -> None:
        self.directory, self.keep, self.leads = directory, keep, leads
        self.states = directory / "states"
        self.written = 0
        self.failed = False
        self._writing: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._deadline = math.inf

    def all(self) -> list[Path]:
        """The numbered checkpoints, oldest first."""
        return sorted(self.directory.glob("round_*.ckpt"))

    def save(
        self,
        state: Mapping[str, Any],
        *,
        round: int,
        best: bool,
        kept: Mapping[str, int] | None = None,
        unsaved: Mapping[str, Kept] | None = None,
    ) -> None:
        """Writes a checkpoint whole or not at all, in the background, then drops those that are too old.

        Returns as soon as `state` is copied; an earlier save that is still going on is waited for. A disk that is full
        is a warning: the older checkpoints stay.

        Args:
            state: plain containers, numbers, strings and tensors.
            round: rounds done.
            best: whether it is the best so far.
            kept: of each client that keeps something, by name, the round after which it was kept.
            unsaved: what of this has no file yet, and is to be written here.
        """
        self.wait()
        state = {"format": FORMAT, **state, "clients": dict(kept or {})} if self.leads else {}
        copies: dict[int, Tensor] = {}  # of a tensor that several clients keep there is one

        def copied(tensor: Tensor) -> Tensor:
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.detach().to("cpu", copy=True)
            return copies[id(tensor)]

        copy = apply_to_collection(state, Tensor, copied)
        self.failed = False

        def write() -> None:
            try:
                self._write(copy, round, best, dict(unsaved or {}))
                self.written = round
            except OSError as error:
                self.failed = True
                log.warning(
                    "round %d: its checkpoint can't be written (%s); training goes on, the last one is of round %s",
                    round,
                    error.strerror or error,
                    int(self.all()[-1].stem[6:]) if self.all() else "none",
                )
            except BaseException as error:  # raised by the next `wait`
                self._failure = error

        self._writing = threading.Thread(target=write, name="checkpoint")
        self._writing.start()

    def give_up(self, seconds: float) -> None:
        """Waits no longer than this, from now on, for what other processes write."""
        self._deadline = time.monotonic() + seconds

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Removes what clients kept after the rounds that a run goes on from, of a course that is given up."""
        newest = max([state["round"], *state["clients"].values()])
        for path in self.states.glob("*.safetensors*"):
            if (number := round_of(path)) is not None and number > newest:
                path.unlink(missing_ok=True)

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def load(self, which: Literal["last", "best"] | int = "last") -> dict[str, Any]:
        """The state of the ``last`` or the ``best`` checkpoint, or of that of a round, tensors on the CPU.

        That of a round is one that another process has checked.

        A newest one that is damaged is passed over with a warning, if an older one is whole.

        Raises:
            UserError: there is none, all are damaged, or another version wrote it.
        """
        paths = self.all()[::-1] if which == "last" else [self.directory / f"{which}.ckpt"]
        if isinstance(which, int):
            paths = [self._path(which)]
        if not paths or not paths[0].is_file():
            raise UserError(f"{self.directory} holds no {which} checkpoint")
        damage: list[str] = []
        for path in paths:
            try:
                state = self._read(path, whole=not isinstance(which, int))
            except PermissionError as error:
                raise UserError(f"{path} can't be read: {error.strerror}") from error
            except Exception as error:
                damage.append(f"{path} is damaged ({' '.join(str(error).split()) or type(error).__name__})")
                continue
            if state["format"] != FORMAT:
                raise UserError(f"{path} has format {state['format']}, this version reads {FORMAT}")
            for text in damage:
                log.warning("%s; going on from %s", text, path.name)
            return state
        other = "take the last one" if which == "best" else "train again under another --name"
        raise UserError(f"{damage[0]}, and there is no other; {other}")

    def _path(self, round: int) -> Path:
        return self.directory / f"round_{round:06d}.ckpt"

    def _read(self, path: Path, *, whole: bool) -> dict[str, Any]:
        """A checkpoint; checked, with all files that it names, if it is to be `whole`."""
        with zipfile.ZipFile(path) as archive:  # torch itself checks no checksums
            if broken := archive.testzip():
                raise ValueError(f"wrong checksum of {broken}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError("it holds no state")
        if whole and state["format"] == FORMAT:
            for client, round in state["clients"].items():
                storage.read(self.states / file_name(client, round))
        return state

    def _write(self, state: dict[str, Any], round: int, best: bool, unsaved: Mapping[str, Kept]) -> None:
        self.states.mkdir(parents=True, exist_ok=True)
        for client, kept in unsaved.items():
            kept.write(self.states / file_name(client, kept.round))
        if not self.leads:
            return
        self._wait_for([self.states / file_name(client, kept) for client, kept in state["clients"].items()])
        path = self._path(round)
        atomic.replace(path, lambda file: torch.save(state, file))
        if best:
            link(path, self.directory / "best.ckpt")
        course = [other for other in self.all() if other <= path]  # the run went on from before later ones
        for other in (*self.all(), *self.directory.glob("*.partial")):
            if other not in course[-self.keep :]:
                other.unlink(missing_ok=True)
        self._drop_states(round)

    def _wait_for(self, paths: list[Path]) -> None:
        """Waits for what other processes write."""
        while missing := [path for path in paths if not path.is_file()]:
            if time.monotonic() > self._deadline:
                raise FileNotFoundError(f"another process has not written {missing[0]}")
            time.sleep(0.02)

    def _drop_states(self, round: int) -> None:
        """Removes files with what clients kept after earlier rounds, if no checkpoint needs them."""
        needed: set[str] = set()
        for path in (*self.all(), self.directory / "best.ckpt"):
            if path.is_file():
                try:
                    clients = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["clients"]
                except Exception:  # a damaged one; what it needs can't be known
                    return
                needed |= {file_name(client, kept) for client, kept in clients.items()}
        for path in self.states.glob("*.safetensors*"):
            if path.name not in needed and (number := round_of(path)) is not None and number <= round:
                path.unlink(missing_ok=True)


def round_of(path: Path) -> int | None:
    """The round of a file with a client's state; None for another file."""
    number = path.name.split(".safetensors")[0].rpartition(".")[2]
    return int(number) if number.isdigit() else None


def link(path: Path, name: Path) -> None:
    """Gives a file a second name, whole or not at all."""
    partial = name.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:  # a file system without hard links
        with open(path, "rb") as file:
            atomic.replace(name, lambda copy: shutil.copyfileobj(file, copy))
    else:
        partial.replace(name)
