"""The disk cache: atomic, shared by processes, mended when damaged, and not needed."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedmtl.data import cache
from fedmtl.data.cache import Row, cache_root, cached_arrays, cached_file

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


# --- arrays made from files ----------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.txt"
    path.write_text("2 3")
    cache._warn_once.cache_clear()
    return path


def table(*paths: Path, version: int = 0) -> np.ndarray:
    """The numbers of text files, a row a file."""

    def make() -> np.ndarray:
        global calls
        calls += 1
        return np.array([[float(word) for word in path.read_text().split()] for path in paths])

    return cached_file(paths, {"version": version}, make)


def decoded(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def change(path: Path, text: str) -> None:
    """Writes a file a second later."""
    time = path.stat().st_mtime_ns + 10**9
    path.write_text(text)
    os.utime(path, ns=(time, time))


def test_file_is_decoded_once(source: Path, folder: Path) -> None:
    first = table(source)
    again = table(source)
    assert calls == 1
    assert first.tolist() == again.tolist() == [[2, 3]]
    assert again.dtype == np.float64
    again[0] = 7  # it is the caller's own
    assert table(source).tolist() == [[2, 3]]
    assert len(decoded(folder)) == 1  # nothing half-made is left


def test_decoded_anew_where_a_file_changed(source: Path, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("4 5")
    assert table(source, other).tolist() == [[2, 3], [4, 5]]
    change(other, "6 7")  # as long as before
    assert table(source, other).tolist() == [[2, 3], [6, 7]]
    assert len(decoded(folder)) == 1  # the outdated one is gone
    assert table(source, other).tolist() == [[2, 3], [6, 7]]
    assert calls == 2


@pytest.mark.skipif(os.name == "nt", reason="st_ctime is the time of creation there")
def test_decoded_anew_where_a_file_was_replaced_by_one_of_its_age(source: Path, tmp_path: Path) -> None:
    table(source)
    stat = source.stat()
    other = tmp_path / "other.txt"
    other.write_text("4 5")
    other.replace(source)
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as cp -p, rsync and tar do
    assert table(source).tolist() == [[4, 5]]


def test_what_is_made_of_which_files_counts(source: Path, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / source.name
    other.parent.mkdir()
    other.write_text("4 5")
    os.utime(other, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    results = [table(source), table(other), table(source, other), table(other, source), table(source, version=1)]
    assert [result[0, 0] for result in results] == [2, 4, 2, 4, 2]
    assert calls == len(decoded(folder)) == 5


def test_same_file_by_another_name(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(source)
    monkeypatch.chdir(source.parent)
    table(Path(source.name))
    assert calls == 1


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"PK\x03\x04", b"\0" * 200, "cut", "pickle"])
def test_damaged_file_is_made_anew(source: Path, folder: Path, damage: bytes | str) -> None:
    table(source)
    (entry,) = decoded(folder)
    if damage == "pickle":
        np.save(entry, np.array([None]), allow_pickle=True)
    else:
        entry.write_bytes(entry.read_bytes()[:-1] if damage == "cut" else damage)
    for _ in range(2):
        assert table(source).tolist() == [[2, 3]]
    assert calls == 2
    assert decoded(folder) == [entry]


@pytest.mark.parametrize("obstacle", ["file", "full", "unlisted"])
def test_decoding_does_without_the_cache(
    source: Path, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    if obstacle == "file":
        folder.write_text("a file where the folder should be")
    elif obstacle == "full":

        def full(file: object, *_: object, **__: object) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            raise OSError("24 requested and 4 written")  # as NumPy says it, without a number

        monkeypatch.setattr(cache.np, "save", full)
    else:

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)
    for _ in range(2):
        assert table(source).tolist() == [[2, 3]]
    assert calls == 2
    (record,) = caplog.records  # said once
    assert "files are decoded each time" in record.getMessage()
    assert "None" not in record.getMessage()
    assert obstacle == "file" or decoded(folder) == []


def test_failure_to_decode_leaves_nothing(source: Path, folder: Path) -> None:
    source.write_text("words")
    with pytest.raises(ValueError, match="words"):
        table(source)
    assert decoded(folder) == []


def test_missing_file_is_left_to_the_decoder(source: Path, folder: Path) -> None:
    source.unlink()
    with pytest.raises(FileNotFoundError, match=r"source\.txt"):
        table(source)
    assert not folder.exists()


def test_interrupted_writing_leaves_nothing(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: object, *_: object, **__: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table(source)
    assert decoded(folder) == []


def decode_at_once(barrier: "multiprocessing.synchronize.Barrier", results: "multiprocessing.Queue[int]") -> None:
    path = Path(os.environ["FEDMTL_CACHE"]).parent / "source.txt"

    def make() -> np.ndarray:
        barrier.wait()  # none has found an entry
        return np.full((200, 300), 5)

    results.put(int(cached_file([path], {}, make).sum()))
    results.put(int(cached_file([path], {}, lambda: np.zeros(1)).sum()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="workers are forked")
def test_processes_decode_at_once(source: Path, folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=decode_at_once, args=(barrier, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=30) for _ in range(8)] == [300_000] * 8
    for worker in workers:
        worker.join()
    assert len(decoded(folder)) == 1
