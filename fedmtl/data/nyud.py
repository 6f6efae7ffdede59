"""NYUD-v2: indoor pictures with semantic segmentation, depth, surface normals and edges."""

import os
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedmtl.data.source import DataSource, Sample, Split, View, replace_tasks
from fedmtl.data.transforms import TrainTransform, ValTransform
from fedmtl.errors import UserError
from fedmtl.tasks import Depth, Edge, Normals, SemSeg, Task
from fedmtl.tasks.base import Label

CLASS_NAMES = (  # noqa: SIM905 - a list would be formatted as forty lines
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk, shelves, "
    "curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refrigerator, television, paper, towel, "
    "shower curtain, box, whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag, otherstructure, "
    "otherfurniture, otherprop"
).split(", ")

LAYOUT = (
    "data.root must hold images/ID.png, gt_sets/{train,val}.txt and, for the tasks in use, "
    "segmentation/ID.png, depth/ID.npy, normals/ID.png, edge/ID.png"
)


class NYUDv2(DataSource):
    """NYUD-v2 in the folder layout of the multi-task line of work.

    ``images/ID.png`` (RGB), ``segmentation/ID.png`` (0 void, then classes from 1, 255 void), ``depth/ID.npy``
    (metres, 0 unknown), ``normals/ID.png`` (n = 2v/255 − 1), ``edge/ID.png`` (0 or 255) and
    ``gt_sets/{train,val}.txt`` (an ID a line). Labels need to exist only for the tasks that are viewed.

    Args:
        root: the folder with all this.
        crop: height and width of training crops, and the least size of padded validation images.
        scale: see `TrainTransform`, like the next three.
        max_class_share: see `TrainTransform`.
        flip: see `TrainTransform`.
        photometric: see `TrainTransform`.
        tasks: replacements, by name, of the default tasks "semseg", "depth", "normals" and "edge".

    Raises:
        UserError: a folder, a split file or an image is missing, or a split file is malformed.
        ValueError: an option of the transforms is out of its range.
    """

    name = "nyud"

    def __init__(
        self,
        root: str | Path,
        *,
        crop: tuple[int, int] = (448, 576),
        scale: tuple[float, float] | None = (0.5, 2.0),
        max_class_share: float = 0.75,
        flip: float = 0.5,
        photometric: bool = True,
        tasks: dict[str, Task] | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        semseg = SemSeg(num_classes=len(CLASS_NAMES), class_names=CLASS_NAMES)
        self.tasks = replace_tasks({task.name: task for task in (semseg, Depth(), Normals(), Edge())}, tasks)
        self.train_transform = TrainTransform(
            crop=crop, scale=scale, max_class_share=max_class_share, flip=flip, photometric=photometric
        )
        self.val_transform = ValTransform(size=crop)
        if not self.root.is_dir():
            raise UserError(f"data.root: there is no folder {self.root}; {LAYOUT}")
        splits: tuple[Split, ...] = ("train", "val")
        self._ids = {split: _read_ids(self.root / "gt_sets" / f"{split}.txt") for split in splits}
        for split in splits:
            self._require(split, "images", ".png", "images")

    def ids(self, split: Split) -> Sequence[str]:
        """Names of the images of a split, in the order of its file."""
        return self._ids[split]

    def read(self, split: Split, index: int, tasks: Sequence[str]) -> Sample:
        """Decodes image number `index` of a split and its labels for `tasks`.

        Unknown pixels are 255 in "semseg" (uint8) and zero in "depth" (float32, metres) and "normals" (float32,
        (H, W, 3)); "edge" is uint8, 0 or 1.

        Raises:
            UserError: a file is missing, broken, of another size than its image or holds impossible values.
        """
        identifier = self._ids[split][index]
        sample: Sample = {"image": _open(self.root / "images" / f"{identifier}.png", _decode_image)}
        height, width = sample["image"].shape[:2]
        for name in tasks:
            form, task = FORMATS[name], self.tasks[name]
            path = self.root / form.folder / f"{identifier}{form.suffix}"
            label = _open(path, form.decode, task)
            if label.shape[:2] != (height, width):
                found = "×".join(map(str, label.shape[:2]))
                raise UserError(f"{path}: found a label of {found} pixels (H×W), expected its image's {height}×{width}")
            sample[name] = label
        return sample

    def view(self, split: Split, tasks: Sequence[str], indices: Sequence[int] | None = None) -> View:
        """See `DataSource.view`; finds missing label files before any training.

        Raises:
            UserError: there is no such task, or a label file of the split is missing.
        """
        for name in tasks:
            if name not in self.tasks:
                raise UserError(f"NYUDv2 has no labels for the task {name!r}; it has {', '.join(self.tasks)}")
            self._require(split, FORMATS[name].folder, FORMATS[name].suffix, f"{name} labels")
        return super().view(split, tasks, indices)

    def _require(self, split: Split, folder: str, suffix: str, what: str) -> None:
        """Checks by one listing of the folder that every image of a split has its file there."""
        try:
            present = set(os.listdir(self.root / folder))
        except OSError as error:
            problem = f"{self.root / folder}: cannot list the folder of the {what} ({error.strerror})"
            raise UserError(f"{problem}; {LAYOUT}") from error
        missing = [f"{i}{suffix}" for i in self._ids[split] if f"{i}{suffix}" not in present]
        if missing:
            count = f"{len(missing)} of the {len(self._ids[split])} {what} of the {split} split are missing"
            ids_file = f"{self.root / 'gt_sets' / split}.txt"
            way_out = f"complete the folder or take their IDs out of {ids_file}"
            raise UserError(f"{self.root / folder / missing[0]}: no such file, {count}; {way_out}")


def _read_ids(path: Path) -> list[str]:
    """The IDs of a split file; blank lines do not matter."""
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot read the split file ({error.strerror}); {LAYOUT}") from error
    ids: dict[str, None] = {}  # a set that keeps its order
    for number, line in enumerate(lines, start=1):
        identifier = line.strip()
        if identifier and not re.fullmatch(r"[\w-]+", identifier, re.ASCII):
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


def _open(path: Path, decode: Callable[..., Label], *options: Task) -> Label:
    """Decodes a file; whatever a decoder may raise on a broken one becomes a message that names it."""
    try:
        return decode(path, *options)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {reason}); replace the file") from error


def _picture(path: Path, modes: Collection[str], convert: str | None = None) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        if picture.mode not in modes:
            raise UserError(f"{path}: found a picture of mode {picture.mode}, expected {' or '.join(modes)}")
        return np.array(picture.convert(convert) if convert else picture, dtype=np.uint8)


def _decode_image(path: Path) -> Label:
    return _picture(path, ("RGB", "RGBA", "L", "P"), convert="RGB")


def _decode_segmentation(path: Path, task: Task) -> Label:
    """0 and 255 are void, k is class k − 1."""
    raw = _picture(path, ("L", "P"))  # of a palette picture, the indices
    bad = raw[(raw > task.channels) & (raw != 255)]
    if bad.size:
        raise UserError(
            f"{path}: found the value {bad[0]}, expected 0 (void), 1…{task.channels} (classes) or 255 (void)"
        )
    classes = np.arange(-1, 255)  # by a table: in 8 bits, 255 − 1 would be class 254
    classes[[0, 255]] = 255
    return classes.astype(np.uint8)[raw]


def _decode_depth(path: Path, task: Task) -> Label:
    """Metres; whatever is not a positive number is unknown."""
    with path.open("rb") as file:
        raw = np.lib.format.read_array(file, allow_pickle=False)
    if raw.ndim != 2 or not np.issubdtype(raw.dtype, np.floating):
        raise UserError(
            f"{path}: found {raw.dtype} of shape {raw.shape}, expected floating-point metres of shape (H, W)"
        )
    with np.errstate(over="ignore"):  # too large for 32 bits is infinite, hence unknown
        metres: NDArray[np.float32] = raw.astype(np.float32)
    metres[~((metres > 0) & (metres < np.inf))] = 0
    return metres


def _decode_normals(path: Path, task: Task) -> Label:
    """n = 2v/255 − 1; "none" is stored as 127 or 128, which is not exactly zero: it becomes so."""
    normals: NDArray[np.float32] = _picture(path, ("RGB",)) * np.float32(2 / 255) - 1
    x, y, z = np.moveaxis(normals, -1, 0)
    normals[x * x + y * y + z * z < 0.1**2] = 0
    return normals


def _decode_edge(path: Path, task: Task) -> Label:
    raw = _picture(path, ("L",))
    bad = raw[(raw != 0) & (raw != 255)]
    if bad.size:
        raise UserError(f"{path}: found the value {bad[0]}, expected 0 (no edge) or 255 (edge)")
    edges: Label = (raw == 255).astype(np.uint8)
    return edges


class Format(NamedTuple):
    """Where the labels of a task lie and how they are decoded."""

    folder: str
    suffix: str
    decode: Callable[[Path, Task], Label]


FORMATS = {
    "semseg": Format("segmentation", ".png", _decode_segmentation),
    "depth": Format("depth", ".npy", _decode_depth),
    "normals": Format("normals", ".png", _decode_normals),
    "edge": Format("edge", ".png", _decode_edge),
}
