"""The folders in which NYUD-v2 is passed around: where their files lie and how these are decoded."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

from fedmtl.data import decode
from fedmtl.data.files import Format, read_ids
from fedmtl.data.source import SPLITS, Split
from fedmtl.errors import UserError
from fedmtl.tasks import Task
from fedmtl.tasks.base import Label


class Layout(NamedTuple):
    """One way to arrange the folder.

    Attributes:
        name: projects that use it.
        formats: what the files of the images, ``"image"``, and of each task may be, the usual first.
        split_files: whether ``gt_sets/{train,val}.txt`` name the images of the splits; otherwise these are the files
            that are there.
        val: what ``{split}`` stands for in patterns when the split is val.
        crop: height and width of training crops that suit the images.
    """

    name: str
    formats: Mapping[str, Sequence[Format]]
    split_files: bool = False
    val: str = "val"
    crop: tuple[int, int] = (448, 576)

    @property
    def folders(self) -> dict[Split, str]:
        """What ``{split}`` stands for."""
        return {"train": "train", "val": self.val}

    def shown(self, what: str) -> str:
        """Where files of the images or of a task are looked for."""
        split = f"{{train,{self.val}}}"
        return " or ".join(form.pattern.format(id="ID", split=split) for form in self.formats[what])


def detect(root: Path) -> Layout | None:
    """The layout that has images in a folder, None if no one has."""
    return next((layout for layout in LAYOUTS if _has_images(root, layout)), None)


def split_ids(root: Path, layout: Layout) -> dict[Split, list[str]]:
    """Names of the images of each split; where no file lists them, those that are there, in numeric order.

    Raises:
        UserError: a split file is missing or malformed, or a split has no images.
    """
    if layout.split_files:
        return {split: read_ids(root / "gt_sets" / f"{split}.txt") for split in SPLITS}
    pattern, ids = layout.formats["image"][0].pattern, {}
    for split, folder in layout.folders.items():
        # shorter names first: the order of numbers, whether they have leading zeros or not
        ids[split] = sorted(_names(root, pattern, folder), key=lambda name: (len(name), name))
        if not ids[split]:
            missing = root / pattern.format(id="ID", split=folder)
            raise UserError(f"{missing}: found no such file, expected the images of the {split} split")
    return ids


def present(root: Path, layout: Layout, ids: Mapping[Split, Sequence[str]], *, num_classes: int) -> dict[str, Format]:
    """Formats of the images and of the tasks that there are files for: of several, the one that has most of them.

    Args:
        root: the data set's folder.
        layout: its layout.
        ids: names of the images of each split.
        num_classes: which segmentation is taken where images have several.
    """
    found = {}
    for what, formats in layout.formats.items():
        if what == "semseg":
            formats = sorted(formats, key=lambda form: len(class_names(form)) != num_classes)
        counts = [_count(root, form, layout, ids) for form in formats]
        if what == "image" or any(counts):
            found[what] = formats[counts.index(max(counts))]
    return found


def class_names(form: Format) -> list[str]:
    """Names of the classes in segmentation files of this format."""
    return THIRTEEN if form.pattern in THIRTEEN_CLASSES else FORTY


def _has_images(root: Path, layout: Layout) -> bool:
    return any(_names(root, form.pattern, name) for form in layout.formats["image"] for name in layout.folders.values())


def _count(root: Path, form: Format, layout: Layout, ids: Mapping[Split, Sequence[str]]) -> int:
    """How many images have a file of this format."""
    return sum(len(_names(root, form.pattern, layout.folders[split]).intersection(ids[split])) for split in SPLITS)


def _names(root: Path, pattern: str, folder: str) -> set[str]:
    """What ``{id}`` may stand for in a pattern, given the files that there are."""
    files = root.glob(pattern.format(id="*", split=folder))
    return {path.stem for path in files if not path.name.startswith(".")}


# --- one reader a kind of label: the suffix says how a file is opened, the format what its values mean ---------------


def _open(path: Path, modes: Sequence[str], key: str = "") -> NDArray[Any]:
    if path.suffix == ".npy":
        return decode.array(path)
    return decode.matlab(path, key) if path.suffix == ".mat" else decode.picture(path, modes)


def _unit_image(task: None, path: Path) -> Label:
    return decode.unit_image(path, decode.array(path))


def _semseg(task: Task, path: Path, *, first: int, void: Sequence[int]) -> Label:
    values = _open(path, ("L", "P"), "segmentation")
    return decode.numbered(path, values, task.channels, first=first, void=void)


def _depth(task: Task, path: Path, *, unit: Literal["m", "mm"]) -> Label:
    values = _open(path, ("I;16", "I"), "depth")
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if path.suffix == ".npy" and values.dtype.kind != "f":
        raise UserError(f"{path}: found {values.dtype}, expected depths in metres as floating-point numbers")
    return decode.depth(path, values, 1e-3 if unit == "mm" else 1.0)


def _normals(task: Task, path: Path) -> Label:
    return decode.normals(path, _open(path, ("RGB",)))


def _edge(task: Task, path: Path, *, high: int) -> Label:
    return decode.binary(path, _open(path, ("L",)), high=high)


_FROM_1 = partial(_semseg, first=1, void=(0, 255))
_FROM_0 = partial(_semseg, first=0, void=(255,))
_METRES, _MILLIMETRES = partial(_depth, unit="m"), partial(_depth, unit="mm")

LAYOUTS = (
    Layout(
        name="NYUDv2 or NYUD_MT (FedHCA2, InvPT, ATRC, MTI-Net, ASTMT)",
        formats={
            "image": (Format("images/{id}.png", decode.image), Format("images/{id}.jpg", decode.image)),
            "semseg": (Format("segmentation/{id}.png", _FROM_1), Format("segmentation/{id}.mat", _FROM_1)),
            "depth": (Format("depth/{id}.npy", _METRES), Format("depth/{id}.mat", _METRES)),
            "normals": (
                Format("normals/{id}.png", _normals),
                Format("normals/{id}.npy", _normals),
                Format("normals/{id}.jpg", _normals),
            ),
            "edge": (
                Format("edge/{id}.png", partial(_edge, high=255)),
                Format("edge/{id}.npy", partial(_edge, high=1)),
            ),
        },
        split_files=True,
    ),
    Layout(
        name="nyuv2 (MTAN, LibMTL)",
        formats={
            "image": (Format("{split}/image/{id}.npy", _unit_image),),
            "semseg": (Format("{split}/label/{id}.npy", partial(_semseg, first=0, void=(-1, 255))),),
            "depth": (Format("{split}/depth/{id}.npy", _METRES),),
            "normals": (Format("{split}/normal/{id}.npy", _normals),),
        },
        crop=(288, 384),
    ),
    Layout(
        name="nyuv2-python-toolkit",
        formats={
            "image": (Format("image/{split}/{id}.png", decode.image),),
            "semseg": (Format("seg40/{split}/{id}.png", _FROM_0), Format("seg13/{split}/{id}.png", _FROM_0)),
            "depth": (Format("depth/{split}/{id}.png", _MILLIMETRES),),
            "normals": (Format("normal/{split}/{id}.npy", _normals), Format("normal/{split}/{id}.png", _normals)),
        },
        val="test",
    ),
)

FORTY = (  # noqa: SIM905 - a list would be formatted as forty lines
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk, shelves, "
    "curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refrigerator, television, paper, towel, "
    "shower curtain, box, whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag, otherstructure, "
    "otherfurniture, otherprop"
).split(", ")
THIRTEEN = (  # noqa: SIM905
    "bed, books, ceiling, chair, floor, furniture, objects, picture, sofa, table, tv, wall, window"
).split(", ")
THIRTEEN_CLASSES = ("{split}/label/{id}.npy", "seg13/{split}/{id}.png")  # patterns of files with these classes
