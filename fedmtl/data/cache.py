"""Arrays that are costly to make, kept on disk: written once, atomically, and read back memory-mapped."""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import DTypeLike, NDArray

logger = logging.getLogger(__name__)

Arrays = dict[str, NDArray[np.generic]]
Row = Mapping[str, NDArray[np.generic]]
Layout = Mapping[str, tuple[tuple[int, ...], DTypeLike]]  # shape and type of each array, by name


def cache_root() -> Path:
    """The folder of all cached data: ``$FEDMTL_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("FEDMTL_CACHE") or platformdirs.user_cache_dir("fedmtl"))


def cached_arrays(name: str, key: Mapping[str, object], layout: Layout, rows: Callable[[], Iterable[Row]]) -> Arrays:
    """Arrays from the cache, made first if they are not there or damaged.

    Entries appear whole or not at all; of several processes that make the same entry at once, the first to
    finish wins and all use its files. Where the folder cannot be written, the arrays are kept in memory.

    Args:
        name: readable start of the entry's folder name.
        key: everything that the contents depend on, including a version of their format; JSON values.
        layout: shape and type of each array; the first axis counts rows.
        rows: makes the rows, one mapping from array name to row at a time.
    """
    text = json.dumps(dict(key), sort_keys=True)
    entry = cache_root() / f"{name}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
    arrays = _load(entry, layout)
    if arrays is not None:
        return arrays
    draft = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}")
    try:
        draft.mkdir(parents=True)
        (draft / "key.json").write_text(text)
        _write(draft, layout, rows())
        arrays = _load(entry, layout)
        if arrays is None:
            shutil.rmtree(entry, ignore_errors=True)
            try:
                draft.rename(entry)
            except OSError:  # another process was faster
                if not entry.is_dir():
                    raise
            arrays = _load(entry, layout)
    except OSError as error:
        logger.warning("cannot write the cache folder %s (%s); data is kept in memory", entry.parent, error.strerror)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return _in_memory(layout, rows()) if arrays is None else arrays


def cached_file(
    paths: Sequence[Path], recipe: Mapping[str, object], make: Callable[[], NDArray[np.generic]]
) -> NDArray[np.generic]:
    """An array that is made from files, from the cache unless one of them has changed since.

    Entries appear whole or not at all; one made from other versions of the same files is replaced.

    Args:
        paths: the files; they count by name, size and times of change.
        recipe: what is made of them; JSON values.
        make: makes it.
    """
    try:
        stats = [path.stat() for path in paths]
    except OSError:
        return make()  # its message is better
    made_from = _digest({**recipe, "files": [str(path.resolve()) for path in paths]})
    folder = cache_root() / "decoded" / made_from[:2]
    entry = folder / f"{made_from}-{_digest([[s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in stats])}.npy"
    try:
        with open(entry, "rb") as file:  # unlike numpy.load, this takes one kind of file alone
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        array = make()
    draft = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(draft, "wb") as file:
                np.save(file, array, allow_pickle=False)
            draft.replace(entry)
        finally:
            draft.unlink(missing_ok=True)
        for old in folder.glob(f"{made_from}-*.npy"):
            if old != entry:
                old.unlink(missing_ok=True)
    except OSError as error:
        _warn_once(str(cache_root()), str(error.strerror or error))
    return array


@cache
def _warn_once(folder: str, reason: str) -> None:
    logger.warning("cannot write the cache folder %s (%s); files are decoded each time", folder, reason)


def _digest(key: object) -> str:
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12).hexdigest()


def _load(entry: Path, layout: Layout) -> Arrays | None:
    """The entry's arrays if all are there and whole."""
    arrays: Arrays = {}
    for name, (shape, dtype) in layout.items():
        try:
            array = np.lib.format.open_memmap(entry / f"{name}.npy", mode="r")
        except (OSError, ValueError, EOFError):
            return None
        if array.shape != shape or array.dtype != np.dtype(dtype):
            return None
        arrays[name] = array
    return arrays


def _write(folder: Path, layout: Layout, rows: Iterable[Row]) -> None:
    """Row by row, so that memory stays small and a full disk is an ordinary error."""
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.npy", "wb")) for name in layout}
        for name, (shape, dtype) in layout.items():
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[name], header)
        for row in rows:
            for name, (_, dtype) in layout.items():
                files[name].write(np.ascontiguousarray(row[name], dtype=dtype).data)


def _in_memory(layout: Layout, rows: Iterable[Row]) -> Arrays:
    arrays: Arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in layout.items()}
    for i, row in enumerate(rows):
        for name, array in arrays.items():
            array[i] = row[name]
    return arrays
