"""A folder of output, written beside its place and put there whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

SYSTEM = (".DS_Store", "Thumbs.db", "desktop.ini")  # what systems leave in folders that are looked at


def files_of(folder: Path) -> list[Path]:
    """What is in a folder, but for files that only the system has put there."""
    return [file for file in folder.iterdir() if file.name not in SYSTEM]


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """A new folder to write to; at the end it takes this place, and what was there goes.

    If the block raises, nothing of it is left and what was there stays.

    Raises:
        OSError: it can't be made, or not be put there.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=place.parent, ignore_cleanup_errors=True) as beside:
        new, old = Path(beside, "new"), Path(beside, "old")
        new.mkdir()
        yield new
        try:
            if place.exists():
                place.rename(old)
            new.rename(place)
        except BaseException:
            if old.exists():
                old.rename(place)
            raise
