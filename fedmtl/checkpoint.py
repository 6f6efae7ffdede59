"""Checkpoints of a run: atomic, versioned, loadable without running code; the last two and the best are kept."""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from fedmtl.errors import UserError

FORMAT = 2


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: where they lie, as ``round_000012.ckpt`` and ``best.ckpt``.
        keep: how many of the newest are kept.
    """

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self.directory, self.keep = directory, keep

    def all(self) -> list[Path]:
        """The numbered checkpoints, oldest first."""
        return sorted(self.directory.glob("round_*.ckpt"))

    def save(self, state: dict[str, Any], *, round: int, best: bool) -> None:
        """Writes a checkpoint whole or not at all, then drops those that are too old.

        Args:
            state: plain containers, numbers, strings and tensors.
            round: rounds done.
            best: whether it is the best so far.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"round_{round:06d}.ckpt"
        partial = path.with_suffix(".partial")
        with open(partial, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        if best:
            partial = self.directory / "best.partial"
            partial.unlink(missing_ok=True)
            try:
                os.link(path, partial)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, partial)
            partial.replace(self.directory / "best.ckpt")
        for old in self.all()[: -self.keep]:
            old.unlink()

    def load(self, which: str = "last") -> dict[str, Any]:
        """The state of the ``last`` or the ``best`` checkpoint, tensors on the CPU.

        Raises:
            UserError: there is none, it is damaged, or another version wrote it.
        """
        numbered = self.all()
        path = self.directory / "best.ckpt" if which == "best" else (numbered[-1] if numbered else None)
        if path is None or not path.is_file():
            raise UserError(f"{self.directory} holds no {which} checkpoint")
        try:
            with zipfile.ZipFile(path) as archive:  # torch itself checks no checksums
                if broken := archive.testzip():
                    raise ValueError(f"wrong checksum of {broken}")
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            version = state.get("format")
        except Exception as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}); remove it to go on from an older one"
            ) from error
        if version != FORMAT:
            raise UserError(f"{path} has format {version}, this version reads {FORMAT}")
        return state
