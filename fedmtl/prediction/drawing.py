"""What is written of a prediction: drawings beside the input, a sheet of all tasks, arrays, and arrays as PNG."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedmtl.errors import UserError
from fedmtl.prediction.folders import files_of, replacing
from fedmtl.tasks import Depth, Edge, Normals, Saliency, Task
from fedmtl.tasks.base import ClassTask, Label, class_palette
from fedmtl.tracking.figures import Colour, sheet

Raw = Literal["npy", "png", "none"]
Picture = NDArray[np.uint8]

SHEET = "all-tasks.png"  # no head has a name with a hyphen
WRITTEN = re.compile(rf"{re.escape(SHEET)}|\w+(\.raw)?\.png|\w+\.npy")  # names of all files of a prediction
LEGEND = 24  # most classes that a legend names, the largest in the picture
NAME = 28  # letters of a class's name in it


def save(
    folder: Path,
    picture: Picture,
    labels: Mapping[str, Label],
    tasks: Mapping[str, Task],
    *,
    raw: Raw = "npy",
    alpha: float = 0.6,
) -> None:
    """Writes all that there is of one picture into a folder of its own, whole, in place of an earlier prediction.

    ``<task>.png`` is the input and, beside it, the drawing; ``all-tasks.png`` the input and all drawings with a legend;
    ``<task>.npy`` the array as `Task.predict` gives it, or ``<task>.raw.png`` the same as in `as_png`.

    Args:
        folder: the folder; it is made, and so are those above it.
        picture: the input, (H, W, 3).
        labels: predictions by head.
        tasks: the tasks by head.
        raw: how arrays are written; ``png`` leaves those as .npy that do not fit.
        alpha: opacity of drawings over the input, of tasks whose drawing is laid over it: classes and saliency.

    Raises:
        UserError: the folder is there and holds something else than a prediction.
        OSError: something can't be written.
    """
    _refuse_others(folder)
    with replacing(folder) as partial:
        _write(partial, picture, labels, tasks, raw, alpha)


def _refuse_others(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    files = {} if folder.is_symlink() or not folder.is_dir() else {file.name: file for file in files_of(folder)}
    known = SHEET in files and all(WRITTEN.fullmatch(name) and file.is_file() for name, file in files.items())
    if not known:
        raise UserError(
            f"{folder} holds something else than an earlier prediction; move that away, or name another --out"
        )


def _write(
    folder: Path, picture: Picture, labels: Mapping[str, Label], tasks: Mapping[str, Task], raw: Raw, alpha: float
) -> None:
    drawn = {name: overlay(tasks[name], picture, label, alpha) for name, label in labels.items()}
    for name, label in labels.items():
        Image.fromarray(np.concatenate([picture, drawn[name]], axis=1)).save(folder / f"{name}.png")
        values = as_png(tasks[name], label) if raw == "png" else None
        if values is not None:
            Image.fromarray(values).save(folder / f"{name}.raw.png")
        elif raw != "none":
            np.save(folder / f"{name}.npy", label, allow_pickle=False)
    legend = {name: classes(tasks[name], label) for name, label in labels.items()}
    page = sheet(
        ["input", *labels], [[picture, *drawn.values()]], legend={name: key for name, key in legend.items() if key}
    )
    page.save(folder / SHEET)


def overlay(task: Task, picture: Picture, label: Label, alpha: float) -> Picture:
    """The drawing of a prediction, of classes and saliency laid over the input with this opacity in 0…1."""
    drawn = task.draw(label)
    if not isinstance(task, ClassTask) or alpha == 1:
        return drawn
    mixed: Picture = np.rint(alpha * drawn.astype(np.float32) + (1 - alpha) * picture.astype(np.float32)).astype(
        np.uint8
    )
    return mixed


def classes(task: Task, label: Label) -> dict[str, Colour]:
    """Names and colours of the classes in a prediction, the most frequent first; none for other tasks."""
    if not isinstance(task, ClassTask) or not np.issubdtype(label.dtype, np.integer):
        return {}
    counts = np.bincount(label.astype(np.int64).ravel(), minlength=1)
    frequent = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] and i < len(task.class_names)]
    palette = class_palette()
    named = {" ".join(str(task.class_names[i]).split())[:NAME]: tuple(palette[i].tolist()) for i in frequent[:LEGEND]}
    left = len(frequent) - LEGEND
    return named | ({f"and {left} more": (255, 255, 255)} if left > 0 else {})


def as_png(task: Task, label: Label) -> NDArray[np.uint8] | NDArray[np.uint16] | None:
    """A prediction as numbers of a PNG, None where they do not fit.

    - whole numbers, such as class ids: themselves, in 8 bits or, above 255, in 16;
    - depth: millimetres in 16 bits, rounded, from 0 to 65535;
    - normals: 8 bits a component, v = 127.5 (n + 1), rounded, hence n = 2v/255 − 1;
    - probabilities of edges and saliency: 8 bits, 255 p, rounded.
    """
    if isinstance(task, Depth):
        return np.rint(np.clip(np.nan_to_num(label.astype(np.float64)) * 1000, 0, 65535)).astype(np.uint16)
    if isinstance(task, Normals):
        return np.rint(np.clip(127.5 * (label.astype(np.float64) + 1), 0, 255)).astype(np.uint8)
    if isinstance(task, Edge | Saliency):
        return np.rint(np.clip(255 * label.astype(np.float64), 0, 255)).astype(np.uint8)
    if label.ndim == 2 and np.issubdtype(label.dtype, np.integer) and label.min() >= 0 and label.max() <= 65535:
        return label.astype(np.uint8 if label.max() <= 255 else np.uint16)
    return None
