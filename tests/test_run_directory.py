"""The run's folder: names, metrics a line a round, whole files."""

import builtins
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fedmtl.errors import UserError
from fedmtl.tracking import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "runs", "first")
    made.create("rounds: 3\n")
    return made


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/abs", "a\\b", "..\\x", "a\0b", "a/"])
def test_names_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^name: "):
        RunDirectory(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "nyud_dea-0.2", "...", "mit Leerzeichen", "größe"])
def test_other_names_are_one_folder_inside(name: str, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, name)
    directory.create("name: größe\n")
    assert directory.path.parent == tmp_path
    assert directory.config.read_text(encoding="utf-8") == "name: größe\n"
    directory.create("name: again\n")
    assert directory.config.read_text(encoding="utf-8") == "name: again\n"


def test_a_folder_that_cannot_be_made_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="^out: can't make the folder"):
        RunDirectory(tmp_path / "runs", "first").create("")


def test_rows_come_back_in_order(directory: RunDirectory) -> None:
    assert list(directory.rows()) == []
    rows: list[Any] = [{"round": 1, "train/a/loss": 0.5}, {"round": 2, "train/a/loss": None, "bytes/up": 10**10}]
    for row in rows:
        directory.append(row)
    assert list(directory.rows()) == rows
    assert directory.metrics.read_text().count("\n") == 2


def test_rewind_drops_the_rounds_after(directory: RunDirectory) -> None:
    for round in range(1, 6):
        directory.append({"round": round})
    directory.rewind(3)
    assert [row["round"] for row in directory.rows()] == [1, 2, 3]
    directory.append({"round": 4})
    directory.rewind(0)
    assert list(directory.rows()) == []


@pytest.mark.parametrize("cut", [2, 5, 12])
def test_a_cut_off_last_line_is_passed_over_and_gone_after_rewind(cut: int, directory: RunDirectory) -> None:
    for round in (1, 2, 3):
        directory.append({"round": round, "x": 0.25})
    whole = directory.metrics.read_text()
    directory.metrics.write_text(whole[:-cut])
    assert [row["round"] for row in directory.rows()] == [1, 2]
    directory.rewind(2)
    directory.append({"round": 3, "x": 0.5})
    assert list(directory.rows())[1:] == [{"round": 2, "x": 0.25}, {"round": 3, "x": 0.5}]


def test_rewinding_a_run_without_metrics_leaves_it_empty(directory: RunDirectory) -> None:
    directory.rewind(0)
    assert list(directory.rows()) == []


def test_results_are_json(directory: RunDirectory) -> None:
    results = {"name": "first", "last": {"metrics": {"depth": {"RMSE": 0.5}}}, "baseline": None}
    directory.write_results(results)
    assert json.loads(directory.results.read_text()) == results


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", write)


def test_a_full_disk_leaves_the_old_files_and_nothing_else(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.append({"round": 1})
    directory.write_results({"last": 1})
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    full(monkeypatch)
    for write in (
        lambda: directory.rewind(0),
        lambda: directory.write_results({"last": 2}),
        lambda: directory.write_federation([{"client": "a"}], again=False),
        lambda: directory.write_unified(b"weights"),
        lambda: directory.create("other: 1"),
    ):
        with pytest.raises(UserError, match="No space left on device"):
            write()
    assert {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()} == before


def test_a_folder_is_made_with_its_configuration_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory(tmp_path / "runs", "first")
    with monkeypatch.context() as patched:
        full(patched)
        with pytest.raises(UserError, match="^out: can't make the folder .*: No space left on device"):
            directory.create("")
    assert list((tmp_path / "runs").iterdir()) == []
    (tmp_path / "runs" / ".first.partial").mkdir()  # what a killed process has left
    directory.create("rounds: 3")
    assert list((tmp_path / "runs").iterdir()) == [directory.path]
    directory.remove()
    assert list((tmp_path / "runs").iterdir()) == []


def test_lines_without_room_wait_for_the_next(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.append({"round": 1})
    opened = open

    class Half:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Half":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[:5])
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", lambda *words, **options: Half(opened(*words, **options)))
        directory.append({"round": 2})
        directory.append({"round": 3})
    assert directory.metrics.read_text() == '{"round": 1}\n'
    directory.append({"round": 4})
    assert [row["round"] for row in directory.rows()] == [1, 2, 3, 4]


def test_a_picture_without_room_is_left_out(directory: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    def write(path: Path) -> None:
        path.parent.mkdir()
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    directory.draw("a.png", write)
    assert list(directory.figures.iterdir()) == []
    assert "a.png can't be written (No space left on device); training goes on without it" in caplog.text
