"""The disk cache: atomic, shared by processes, mended when damaged, and not needed."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedmtl.data.cache import Row, cache_root, cached_arrays

LAYOUT = {"a": ((3, 4), np.uint8), "b": ((3, 2, 2), np.float32)}
calls = 0


def rows() -> Iterator[Row]:
    global calls
    calls += 1
    for i in range(3):
        yield {"a": np.full(4, i), "b": np.full((2, 2), i / 2)}


def fetch(key: int = 0) -> dict[str, np.ndarray]:
    return cached_arrays("thing", {"version": key}, LAYOUT, rows)


def check(arrays: dict[str, np.ndarray]) -> None:
    assert list(arrays) == ["a", "b"]
    for name, (shape, dtype) in LAYOUT.items():
        assert arrays[name].shape == shape
        assert arrays[name].dtype == dtype
    assert arrays["a"][:, 0].tolist() == [0, 1, 2]
    assert arrays["b"][:, 1, 1].tolist() == [0, 0.5, 1]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    global calls
    calls = 0
    monkeypatch.setenv("FEDMTL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_made_once_and_memory_mapped(folder: Path) -> None:
    check(fetch())
    again = fetch()
    check(again)
    assert calls == 1
    assert all(isinstance(array, np.memmap) for array in again.values())
    with pytest.raises(ValueError, match="read-only"):
        again["a"][0] = 1
    assert len(entries(folder)) == 1  # nothing half-made is left


def test_other_key_other_entry(folder: Path) -> None:
    fetch(0)
    fetch(1)
    assert calls == 2
    assert len(entries(folder)) == 2


@pytest.mark.parametrize("damage", ["truncate", "empty", "delete", "shape", "pickle"])
def test_damaged_entry_is_rebuilt(folder: Path, damage: str) -> None:
    fetch()
    file = entries(folder)[0] / "b.npy"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "delete":
        file.unlink()
    elif damage == "shape":
        np.save(file, np.zeros((2, 2, 2), np.float32))
    else:
        np.save(file, np.array([None] * 3), allow_pickle=True)
    check(fetch())
    assert calls == 2
    check(fetch())
    assert calls == 2
    assert len(entries(folder)) == 1


def test_unwritable_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file where the folder should be")
    check(fetch())
    assert len(caplog.records) == 1
    assert "kept in memory" in caplog.text
    assert "\n" not in caplog.records[0].getMessage()


def test_full_disk(folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedmtl.data.cache._write", full)
    check(fetch())
    assert "No space left on device" in caplog.text
    assert entries(folder) == []


def test_failure_leaves_nothing(folder: Path) -> None:
    def broken() -> Iterator[Row]:
        yield from list(rows())[:1]
        raise KeyError("broken")

    with pytest.raises(KeyError):
        cached_arrays("thing", {}, LAYOUT, broken)
    assert entries(folder) == []


def test_loser_uses_the_winners(folder: Path) -> None:
    def slow() -> Iterator[Row]:
        winner.update(fetch())
        yield from rows()

    winner: dict[str, np.ndarray] = {}
    arrays = cached_arrays("thing", {"version": 0}, LAYOUT, slow)
    check(arrays)
    assert Path(str(arrays["a"].filename)) == Path(str(winner["a"].filename))
    assert len(entries(folder)) == 1


def work(barrier: "multiprocessing.synchronize.Barrier", results: "multiprocessing.Queue[float]") -> None:
    barrier.wait()
    results.put(float(fetch()["b"].sum()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="workers are forked")
def test_processes_at_once(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=work, args=(barrier, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=30) for _ in workers] == [6.0] * 4
    for worker in workers:
        worker.join()
    assert len(entries(folder)) == 1


def test_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDMTL_CACHE")
    assert cache_root().is_absolute()
    assert "fedmtl" in str(cache_root())
