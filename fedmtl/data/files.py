"""Data sets that lie in files: one file an image, one a label, a list of names a split."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from fedmtl.data.cache import cached_file
from fedmtl.data.decode import open_with
from fedmtl.data.source import SPLITS, DataSource, Split
from fedmtl.errors import UserError
from fedmtl.tasks import Task
from fedmtl.tasks.base import Label

Cache = Literal["none", "memory", "disk"]


class Format(NamedTuple):
    """Where the files of a task (or the images) lie and how they are decoded.

    Attributes:
        pattern: path below the root, with ``{id}`` and, if need be, ``{split}``.
        decode: takes the task (None for images) and the file's path, then those of `also`; returns the label in
            the form that the task wants, or the image as uint8 (H, W, 3).
        also: patterns of further files that decoding needs.
        slow: whether decoding costs so much that it is done once, whatever the data set's `cache` says.
        version: to be raised when `decode` gives other values than before; cached ones are then made anew.
    """

    pattern: str
    decode: Callable[..., Label]
    also: tuple[str, ...] = ()
    slow: bool = False
    version: int = 1


class FileSource(DataSource):
    """A data set of files. A subclass finds out what is there and calls this constructor.

    Args:
        root: the data set's folder.
        tasks: the tasks that have labels here, by name.
        formats: format of the images, ``"image"``, and of each task's labels.
        ids: names of the images of each split.
        folders: what ``{split}`` stands for in a pattern, where it is another word, e.g. ``{"val": "test"}``.
        cache: where decoded images and labels are kept. ``none``: nowhere, files are decoded each time; ``memory``:
            in each process that reads them (with worker processes, several times); ``disk``: in the user's cache
            folder, shared by all processes, which takes a few megabytes an image and is read several times faster.
    """

    def __init__(
        self,
        *,
        root: Path,
        tasks: Mapping[str, Task],
        formats: Mapping[str, Format],
        ids: Mapping[Split, Sequence[str]],
        folders: Mapping[Split, str] | None = None,
        cache: Cache = "none",
    ) -> None:
        if cache not in ("none", "memory", "disk"):
            raise ValueError(f"cache must be none, memory or disk, not {cache!r}")
        self.root, self.tasks, self.formats, self.cache = root, dict(tasks), dict(formats), cache
        self._ids = {split: list(ids[split]) for split in SPLITS}
        self._folders = {split: (folders or {}).get(split, split) for split in SPLITS}
        self._memory: dict[tuple[Split, int, str], Label] = {}
        self._complete: set[tuple[Split, str]] = set()  # of what no file of a split is missing

    def ids(self, split: Split) -> Sequence[str]:
        """Names of the images of a split, in the order of its list."""
        return self._ids[split]

    def files(self, split: Split, index: int, what: str) -> list[Path]:
        """The files that the image or label number `index` is decoded from."""
        form = self.formats[what]
        return [self._path(pattern, split, self._ids[split][index]) for pattern in (form.pattern, *form.also)]

    def where(self, split: Split, index: int, what: str) -> str:
        """The file that the image or label lies in."""
        return str(self.files(split, index, what)[0])

    def load(self, split: Split, index: int, what: str) -> Label:
        """See `DataSource.load`; from the cache if it is there."""
        key = (split, index, what)
        if key in self._memory:
            return self._memory[key]
        form, paths = self.formats[what], self.files(split, index, what)

        def decode() -> Label:
            return open_with(form.decode, self.tasks.get(what), *paths)

        if form.slow or self.cache == "disk":
            label = cached_file(paths, {"recipe": self.recipe(what), "version": form.version}, decode)
        else:
            label = decode()
        if self.cache == "memory":
            label.flags.writeable = False
            self._memory[key] = label
        return label

    def forget(self) -> None:
        """Drops what `cache: memory` has kept."""
        self._memory = {}

    def recipe(self, what: str) -> str:
        """What tells apart decoded forms of one file, for the cache."""
        task = self.tasks.get(what)
        return f"{self.name} {what} {self.formats[what].pattern} {task.channels if task else ''}"

    def missing(self, split: Split, what: str) -> list[str]:
        """Files of a split that are not there, by one listing of each folder; a label that an image lacks is none."""
        form = self.formats[what]
        wanted = [i for i in range(len(self._ids[split])) if what == "image" or self.has_label(split, i, what)]
        listed: dict[Path, set[str]] = {}
        found = []
        for pattern in (form.pattern, *form.also):
            for index in wanted:
                path = self._path(pattern, split, self._ids[split][index])
                if path.parent not in listed:
                    listed[path.parent] = _names(path.parent)
                if path.name not in listed[path.parent]:
                    found.append(str(path))
        return found

    def require(self, split: Split, what: str) -> None:
        """Finds missing files before any training; looks once, however many clients have a view.

        Raises:
            UserError: a file of the split is missing.
        """
        if (split, what) in self._complete:
            return
        missing = self.missing(split, what)
        if missing:
            kind = "images" if what == "image" else f"{what} labels"
            count = f"{len(missing)} of the {len(self._ids[split])} {kind} of the {split} split are missing"
            raise UserError(f"{missing[0]}: no such file, {count}; complete the folder or take them out of the split")
        self._complete.add((split, what))

    def prepare(self, split: Split, names: Sequence[str]) -> None:
        """Finds missing files before any training."""
        for name in names:
            self.require(split, name)

    def _path(self, pattern: str, split: Split, identifier: str) -> Path:
        return self.root / pattern.format(id=identifier, split=self._folders[split])


def read_ids(path: Path) -> list[str]:
    """The names of a split file, one a line; blank lines do not matter.

    Raises:
        UserError: it is not there, empty, or a line is no name or a name for the second time.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot read the split file ({error.strerror})") from error
    ids: dict[str, None] = {}  # a set that keeps its order
    for number, line in enumerate(lines, start=1):
        identifier = line.strip()
        if identifier and (not re.fullmatch(r"[\w.()+ -]+", identifier) or identifier.startswith(".")):
            raise UserError(
                f"{path}, line {number}: found {identifier[:40]!r}, expected the name of an image without folder and "
                "suffix, such as 0001"
            )
        if identifier in ids:
            raise UserError(f"{path}, line {number}: {identifier} is listed a second time; leave one of them")
        if identifier:
            ids[identifier] = None
    if not ids:
        raise UserError(f"{path}: the split file is empty, expected the ID of an image a line, such as 0001")
    return list(ids)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
