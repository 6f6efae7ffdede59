"""How the files of a data set of one's own are found and read; the fields of each class are keys of dataset.yaml."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmtl.data import decode
from fedmtl.errors import UserError
from fedmtl.tasks import Depth, Edge, Normals, Saliency, Task
from fedmtl.tasks.base import ClassTask, Label

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".npy", ".mat")
Colour = list[int]


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where the images or the labels of a task lie.

    Attributes:
        folder: the folder, below the data set's.
        file: a file's path in there; ``{name}`` stands for the image's name, ``{folder}`` for folders before it.
        key: variable in .mat files.
    """

    folder: str
    file: str = "{name}"
    key: str

    def __post_init__(self) -> None:
        """Raises ValueError where the keys do not go together; so do all subclasses."""
        if re.sub(r"^([^{}]*\{folder\}/)?[^{}]*\{name\}[^{}]*$", "", self.file):
            raise ValueError(f"file must hold {{name}} once, e.g. {{name}}_label, not {self.file!r}")

    def decode(self, task: Task | None, path: Path) -> Label:
        """The image, uint8 (H, W, 3), or the label in the form that its task wants."""
        raise NotImplementedError

    def find(self, root: Path) -> dict[str, str]:
        """Paths below the root by image's name."""
        whole = self.file.lower().endswith(SUFFIXES)
        name = "(?P<name>[^/]+)" if "{folder}" in self.file else "(?P<name>.+)"
        pattern = re.escape(self.file).replace(r"\{folder\}", "(?P<folder>.+)").replace(r"\{name\}", name)
        found: dict[str, str] = {}
        for path in files_in(root / self.folder):
            match = re.fullmatch(pattern, path if whole else os.path.splitext(path)[0])
            if match:
                name = "/".join(match.groupdict().values())
                if name in found:
                    both = f"{root / found[name]} and {root / self.folder / path} are both for the image {name}"
                    raise UserError(f"{both}; move one, or say which, e.g. file: '{{name}}.png'")
                found[name] = f"{self.folder}/{path}"
        return found

    def path(self, name: str) -> str:
        """Where the file of an image should lie."""
        folder, _, last = name.rpartition("/") if "{folder}" in self.file else ("", "", name)
        suffix = "" if self.file.lower().endswith(SUFFIXES) else ".*"
        return f"{self.folder}/{self.file.replace('{folder}', folder).replace('{name}', last)}{suffix}"


@dataclass(frozen=True, kw_only=True)
class Images(Files):
    """Images: 8 bits as they are, other numbers by a range.

    Attributes:
        range: the stored values that become black and white.
        bands: the bands, from 1, that become red, green and blue, or the one that becomes grey.
    """

    folder: str = "images"
    key: str = "image"
    range: list[float] | None = None
    bands: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.range is not None and (len(self.range) != 2 or self.range[0] == self.range[1]):
            raise ValueError(f"range must be the values of black and of white, e.g. [0, 4095], not {self.range}")
        if self.bands is not None and (len(self.bands) not in (1, 3) or min(self.bands) < 1):
            raise ValueError(f"bands must be one or three numbers from 1, e.g. [3, 2, 1], not {self.bands}")

    def decode(self, task: Task | None, path: Path) -> Label:
        """The image, uint8 (H, W, 3)."""
        values = decode.numbers(path, self.key, colours=True, alpha=self.bands is not None)
        return decode.rgb(path, values, bands=self.bands, limits=self.range)


@dataclass(frozen=True, kw_only=True)
class Labels(Files):
    """Labels of any kind.

    Attributes:
        optional: whether images may lack the file; then all of the label is unknown.
    """

    optional: bool = False

    def check(self, task: Task) -> None:
        """Raises ValueError where the keys do not suit the task."""


@dataclass(frozen=True, kw_only=True)
class ClassLabels(Labels):
    """A class a pixel, as a number or a colour.

    Attributes:
        num_classes: number of classes; as many as there are names, colours or mapped values if not given.
        class_names: names of the classes.
        values: class by file value; the same number if not given.
        colours: colour of each class, if classes are stored as colours.
        ignore: file value or values, or colours, without a class; 255 if not given and no class's own.
    """

    num_classes: int | None = None
    class_names: list[str] | None = None
    values: dict[int, int] | None = None
    colours: list[Colour] | None = None
    ignore: int | list[int] | list[Colour] | None = None

    @property
    def count(self) -> int | None:
        """Number of classes as far as the keys tell it."""
        known = [len(given) for given in (self.class_names, self.colours) if given is not None]
        known += [max(self.values.values()) + 1] if self.values else []
        return self.num_classes or (known[0] if known else None)

    def check(self, task: Task) -> None:
        """Raises ValueError where the keys do not suit the task or one another."""
        count = task.channels
        if not 2 <= count <= decode.UNKNOWN:
            raise ValueError(f"num_classes must be 2 to {decode.UNKNOWN}, not {count}")
        if self.colours is not None:
            if len(self.colours) != count:
                raise ValueError(
                    f"colours must have one entry for each of the {count} classes, not {len(self.colours)}"
                )
            self._check_colours(self.colours)
            return
        bad = [k for k in (self.values or {}).values() if not 0 <= k < count]
        if bad:
            raise ValueError(f"values must lead to classes from 0 to {count - 1}, not {bad[0]}")
        own = set(self.values if self.values is not None else range(count))
        ignored = self._ignored()
        if not all(isinstance(value, int) and -(2**15) <= value < 2**16 for value in [*own, *ignored]):
            raise ValueError("values and ignore must be whole numbers from -32768 to 65535 (colours go with colours)")
        if own & set(ignored):
            raise ValueError(f"ignore has the value {min(own & set(ignored))}, which is a class's")

    def _check_colours(self, colours: list[Colour]) -> None:
        if self.values is not None:
            raise ValueError("values and colours exclude each other; leave one of them out")
        listed = [*colours, *self._ignored()]
        for colour in listed:
            if not (isinstance(colour, list) and len(colour) == 3 and all(0 <= part <= 255 for part in colour)):
                raise ValueError(f"colours and ignore must be colours [r, g, b] from 0 to 255, not {colour}")
            if listed.count(colour) > 1:
                raise ValueError(f"colours and ignore have the colour {colour} twice")

    def _ignored(self) -> list[Any]:
        if self.ignore is None:
            own = self.values if self.values is not None else ()
            return [] if self.colours is not None or decode.UNKNOWN in own else [decode.UNKNOWN]
        if isinstance(self.ignore, int):
            return [self.ignore]
        one_colour = self.colours is not None and len(self.ignore) == 3 and isinstance(self.ignore[0], int)
        return [self.ignore] if one_colour else list(self.ignore)

    def decode(self, task: Task | None, path: Path) -> Label:
        """Classes, uint8 (H, W), 255 unknown."""
        assert task is not None
        if self.colours is not None:
            known = {tuple(colour): i for i, colour in enumerate(self.colours)}
            unknown = {tuple(colour): decode.UNKNOWN for colour in self._ignored()}
            return decode.coloured(path, decode.numbers(path, self.key, colours=True), known | unknown)
        classes = self.values if self.values is not None else {i: i for i in range(task.channels)}
        classes = classes | dict.fromkeys(self._ignored(), decode.UNKNOWN)
        expected = f"one of {', '.join(map(str, classes))}" if len(classes) <= 8 else f"{len(classes)} known values"
        if self.values is None:
            ignored = " or ".join(map(str, self._ignored())) or "nothing else"
            expected = f"0…{task.channels - 1} (classes) or {ignored} (ignore)"
        return decode.mapped(path, decode.plane(path, decode.numbers(path, self.key)), classes, expected)


@dataclass(frozen=True, kw_only=True)
class ValueLabels(Labels):
    """Numbers a pixel: stored value × scale + offset.

    Attributes:
        scale: factor, e.g. metres per stored unit.
        offset: summand, e.g. metres.
        invalid: stored value or values of unknown pixels; NaN always is.
    """

    scale: float = 1.0
    offset: float = 0.0
    invalid: float | list[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale == 0:
            raise ValueError("scale must not be 0")

    def stored(self, task: Task, path: Path) -> Any:
        """The numbers with NaN where unknown, float64 (H, W), or (H, W, C) where the task has C > 1 channels."""
        stored = decode.numbers(path, self.key)
        if task.channels == 1:
            stored = decode.plane(path, stored)
        elif stored.ndim != 3 or stored.shape[2] != task.channels:
            raise UserError(f"{path}: found an array of shape {stored.shape}, expected (H, W, {task.channels})")
        values = stored.astype(np.float64)
        values[_among(stored, self.invalid)] = np.nan
        return values * self.scale + self.offset

    def decode(self, task: Task | None, path: Path) -> Label:
        """Numbers, float32 (H, W) or (H, W, C); the task's `fill` where unknown."""
        assert task is not None
        values = self.stored(task, path)
        return np.where(np.isfinite(values), values, task.fill).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class DepthLabels(ValueLabels):
    """Depth or another length in metres; what is not above 0 is unknown."""

    def decode(self, task: Task | None, path: Path) -> Label:
        """Metres, float32 (H, W), 0 unknown."""
        assert task is not None
        return decode.depth(path, self.stored(task, path))


@dataclass(frozen=True, kw_only=True)
class NormalLabels(Labels):
    """Surface normals, as 8-bit colours or floating-point numbers."""

    def decode(self, task: Task | None, path: Path) -> Label:
        """Unit vectors, float32 (H, W, 3), zero unknown."""
        return decode.normals(path, decode.numbers(path, self.key, colours=True))


@dataclass(frozen=True, kw_only=True)
class MaskLabels(Labels):
    """A mask: 0 and 1, or 0 and 255, or a threshold.

    Attributes:
        above: pixels above this value are in the mask, the others are not.
        ignore: file value or values of unknown pixels; NaN always is.
    """

    above: float | None = None
    ignore: float | list[float] | None = None

    def decode(self, task: Task | None, path: Path) -> Label:
        """0 and 1, uint8 (H, W), 255 unknown."""
        values = decode.plane(path, decode.numbers(path, self.key))
        unknown = _among(values, self.ignore) | np.isnan(values)
        known = values[~unknown]
        high = 255 if (known == 255).any() else 1
        bad = known[(known != 0) & (known != high)]
        if self.above is None and bad.size:
            raise UserError(f"{path}: found the value {bad[0]}, expected 0 and 1, or 0 and 255; or say above: 127")
        mask = (values > (0 if self.above is None else self.above)).astype(np.uint8)
        mask[unknown] = decode.UNKNOWN
        return mask


READ_AS: tuple[tuple[type[Task], type[Labels]], ...] = (
    (Edge, MaskLabels),
    (Saliency, MaskLabels),
    (Depth, DepthLabels),
    (Normals, NormalLabels),
    (ClassTask, ClassLabels),
    (Task, ValueLabels),
)


def files_in(folder: Path) -> Iterator[str]:
    """Paths, below a folder, of all files of a kind that can be read, hidden ones left out; sorted in each folder."""
    for base, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(base, name).relative_to(folder).as_posix()


def _several(value: float | list[float] | None) -> list[float]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _among(stored: NDArray[Any], value: float | list[float] | None) -> NDArray[np.bool_]:
    """Where one of the values is stored; 0.1 is found in any floating-point type."""
    wanted = _several(value)
    return np.isin(stored, np.array(wanted, stored.dtype) if stored.dtype.kind == "f" else wanted)
