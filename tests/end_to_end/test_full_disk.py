"""Disks that are full, and trackers that fail: a run goes on, loses nothing, and leaves nothing half-written."""

import builtins
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmtl.checkpoint import Checkpoints
from fedmtl.orchestrator import Orchestrator
from fedmtl.tracking import Tracker

from .comparing import same

ON_DISK = ["--states", "disk", "--share", "encoder", "--local.algorithm", "Ditto"]


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``full(3, 4)`` leaves no room in these rounds for files of the run "full" (or those with some endings): a half of
    each is written, then the disk is full."""

    def call(*rounds: int, endings: tuple[str, ...] = ("",)) -> None:
        ours = str(tmp_path / "runs" / "full"), str(tmp_path / "runs" / ".full")
        real_open, real_train, now = builtins.open, Orchestrator.train, [0]

        def train(self: Orchestrator, round: int, display: Any) -> Any:
            for thread in threading.enumerate():  # what is saved of the round before
                if thread.name == "checkpoint":
                    thread.join()
            now[0] = round
            return real_train(self, round, display)

        def limited(file: Any, mode: str = "r", *others: Any, **options: Any) -> Any:
            opened = real_open(file, mode, *others, **options)
            limits = str(file).startswith(ours) and str(file).removesuffix(".partial").endswith(endings)
            return Full(opened) if limits and now[0] in rounds and set(mode) & set("wxa") else opened

        monkeypatch.setattr(Orchestrator, "train", train)
        monkeypatch.setattr(builtins, "open", limited)

    return call


class Full:
    """A file that the disk has no room for."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def test_a_run_goes_on_while_the_disk_is_full(go: Any, end: Any, undisturbed: Any, runs: Path, full: Any) -> None:
    full(2, 3)
    result = go("full", "--pictures", "1")
    assert result.code == 0, result.error
    text = " ".join(result.out.split())
    for round in (2, 3):
        assert f"round {round}: its checkpoint can't be written (No space left on device)" in text
    assert "metrics.jsonl can't be written (No space left on device); its lines wait for the next round" in text
    assert "training goes on, the last one is of round 1" in text
    assert "round_000002.png can't be written" in text
    assert not list((runs / "full").rglob("*.partial"))
    assert sorted(path.name for path in (runs / "full" / "figures").glob("*.png")) == ["round_000004.png"]
    assert same(end(runs / "full"), undisturbed())


def test_a_disk_that_stays_full_keeps_the_last_checkpoint(
    go: Any, end: Any, undisturbed: Any, runs: Path, full: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context():
        full(3, 4)
        result = go("full")
        monkeypatch.undo()
    assert result.code == 2
    assert len(result.error.splitlines()) == 1
    assert "results.json can't be written (No space left on device); make room there" in result.error
    checkpoints = Checkpoints(runs / "full" / "checkpoints")
    assert [path.name for path in checkpoints.all()] == ["round_000001.ckpt", "round_000002.ckpt"]
    assert checkpoints.load()["round"] == 2
    assert not list((runs / "full").rglob("*.partial"))
    assert go("full", "--resume", "auto").code == 0
    assert same(end(runs / "full"), undisturbed())


@pytest.mark.parametrize("what", ["model.safetensors", "federation.json", "config.yaml"])
def test_what_has_no_room_is_named_in_one_line(go: Any, runs: Path, full: Any, what: str) -> None:
    full(0, 1, endings=(what,))
    result = go("full", "--rounds", "1")
    assert result.code == 2
    assert len(result.error.splitlines()) == 1
    assert "No space left on device" in result.error
    assert (runs / "full").exists() == (what == "model.safetensors")
    assert not list(runs.rglob("*.partial"))


def test_a_full_disk_does_not_lose_what_waits_in_files(
    go: Any, end: Any, undisturbed: Any, runs: Path, full: Any
) -> None:
    full(2, 3)
    result = go("full", *ON_DISK)
    assert result.code == 0, result.error
    assert same(end(runs / "full"), undisturbed(*ON_DISK))


class Gone(Tracker):
    """A tracker whose server is gone, or whose disk is full."""

    def start(self, run: Any) -> None:
        pass

    def log(self, metrics: Any) -> None:
        raise ConnectionError("gone")

    def pictures(self, round: int, strips: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def finish(self, summary: Any, *, failed: bool) -> None:
        pass


def test_a_tracker_that_fails_does_not_end_a_run(go: Any, end: Any, undisturbed: Any, runs: Path) -> None:
    result = go("gone", "--tracker", f"{__name__}.Gone", "--pictures", "1")
    assert result.code == 0, result.error
    assert "round 1: the tracker can't take it (gone); training goes on" in result.out
    assert "round 2: the tracker can't take it (No space left on device)" in result.out
    assert same(end(runs / "gone"), undisturbed())
