"""Pictures of predictions: per task a strip of input, truth and prediction, and one sheet of all tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fedmtl.data import View
from fedmtl.tasks.base import Label
from fedmtl.tracking.base import Picture

MIN_WIDTH = 160  # small images are enlarged to about this many pixels to be seen
HEADER = 18


def strips(
    view: View, positions: Sequence[int], predictions: Mapping[str, Sequence[Label]]
) -> dict[str, list[Picture]]:
    """Per task and image: input, truth and prediction side by side, (H, 3W, 3).

    Args:
        view: the validation images.
        positions: which of them.
        predictions: label arrays by task, one an image; centred padding is cropped away.
    """
    result: dict[str, list[Picture]] = {name: [] for name in predictions}
    for i, position in enumerate(positions):
        sample = view.source.read(view.split, view.indices[position], list(predictions))
        image = np.asarray(sample["image"], dtype=np.uint8)
        for name, labels in predictions.items():
            draw = view.source.tasks[name].draw
            predicted = _crop_centre(labels[i], image.shape[:2])
            result[name].append(np.concatenate([image, draw(sample[name]), draw(predicted)], axis=1))
    return result


def save_sheet(path: Path, strips: Mapping[str, Sequence[Picture]]) -> None:
    """One PNG of all tasks: a row an image; its input, then truth and prediction of each task."""
    first = next(iter(strips.values()))
    width = first[0].shape[1] // 3
    zoom = max(1, round(MIN_WIDTH / width))
    rows = []
    for i in range(len(first)):
        pairs = [strip[i][:, width:] for strip in strips.values()]
        rows.append(np.concatenate([first[i][:, :width], *pairs], axis=1))
    body = np.concatenate(rows).repeat(zoom, axis=0).repeat(zoom, axis=1)
    sheet = Image.new("RGB", (body.shape[1], body.shape[0] + HEADER), "white")
    sheet.paste(Image.fromarray(body), (0, HEADER))
    pen = ImageDraw.Draw(sheet)
    titles = ["input", *(f"{name} {what}" for name in strips for what in ("truth", "prediction"))]
    for column, title in enumerate(titles):
        pen.text((column * width * zoom + 4, 3), title, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _crop_centre(label: Label, size: tuple[int, ...]) -> Label:
    top, left = (label.shape[0] - size[0]) // 2, (label.shape[1] - size[1]) // 2
    return label[top : top + size[0], left : left + size[1]]
