"""Pictures of predictions: per task a strip of input, truth and prediction, and one sheet of all tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fedmtl import atomic
from fedmtl.data import View
from fedmtl.tasks.base import Label
from fedmtl.tracking.base import Picture

MIN_SIDE, MAX_SIDE = 200, 400  # small pictures are enlarged to about so many pixels, large ones shrunk to so many
GAP = 4  # white pixels between pictures
LINE, TEXT = 20, 13  # pixels of a line, and of the letters in it

Colour = tuple[int, ...]


def strips(
    view: View, positions: Sequence[int], predictions: Mapping[str, Sequence[Label]]
) -> dict[str, list[Picture]]:
    """Per task and image: input, truth and prediction side by side, (H, 3W, 3).

    Args:
        view: the validation images.
        positions: which of them.
        predictions: label arrays by task, one an image, at its own size.
    """
    result: dict[str, list[Picture]] = {name: [] for name in predictions}
    for i, position in enumerate(positions):
        sample = view.sample(position)
        image = np.asarray(sample["image"], dtype=np.uint8)
        for name, labels in predictions.items():
            draw = view.tasks[name].draw
            result[name].append(np.concatenate([image, draw(sample[name]), draw(labels[i])], axis=1))
    return result


def save_sheet(path: Path, strips: Mapping[str, Sequence[Picture]]) -> None:
    """One PNG of all tasks: a row an image; its input, then truth and prediction of each task.

    Args:
        path: where it is written.
        strips: see `strips`; all tasks show the same images.
    """
    titles = ["input", *(f"{name} {what}" for name in strips for what in ("truth", "prediction"))]
    rows = []
    for row in zip(*strips.values(), strict=True):
        width = row[0].shape[1] // 3
        labels = [strip[:, start : start + width] for strip in row for start in (width, 2 * width)]
        rows.append([row[0][:, :width], *labels])
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(titles, rows).save(path)


def save_strips(path: Path, round: int, strips: Mapping[str, Sequence[Picture]]) -> None:
    """The strips themselves as one npz, so that runs can be put side by side: ``<image>/<task>``, and ``round``.

    Args:
        path: where it is written.
        round: the round that they show.
        strips: see `strips`; large ones are shrunk as on a sheet.

    Raises:
        OSError: it can't be written; the one before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shrunk = {f"{i}/{task}": _shrunk(strip) for task, several in strips.items() for i, strip in enumerate(several)}
    atomic.replace(path, lambda file: np.savez_compressed(file, round=np.asarray(round), **shrunk))  # type: ignore[arg-type]


def sheet(
    titles: Sequence[str],
    rows: Sequence[Sequence[Picture]],
    names: Sequence[str] = (),
    legend: Mapping[str, Mapping[str, Colour]] | None = None,
) -> Image.Image:
    """Pictures in rows and columns on white, each enlarged or shrunk to a size that can be looked at.

    Args:
        titles: of the columns.
        rows: pictures (H, W, 3), those of a row of the same size.
        names: of the rows, written above them.
        legend: under the pictures, by its heading, names and their colours.
    """
    small = [[_resized(picture) for picture in row] for row in rows]
    width = max(MIN_SIDE // 2, *(picture.width for row in small for picture in row)) + GAP
    band = LINE if names else GAP
    key = _legend(legend or {}, width * len(titles))
    height = LINE + sum(band + row[0].height for row in small) + key.height
    result = Image.new("RGB", (width * len(titles) - GAP, height), "white")
    pen, font = ImageDraw.Draw(result), ImageFont.load_default(TEXT)
    for column, title in enumerate(titles):
        pen.text((column * width + 4, 3), _short(title, width - 8), fill="black", font=font)
    top = LINE
    for number, row in enumerate(small):
        if names:
            pen.text((4, top + 3), names[number], fill="black", font=font)
        for column, picture in enumerate(row):
            result.paste(picture, (column * width + (width - GAP - picture.width) // 2, top + band))
        top += band + row[0].height
    result.paste(key, (0, top))
    return result


def _shrunk(strip: Picture) -> Picture:
    """Three pictures side by side, each no larger than on a sheet."""
    height, width = strip.shape[0], strip.shape[1] // 3
    if max(height, width) <= MAX_SIDE:
        return strip
    thirds = [np.asarray(_resized(strip[:, start : start + width])) for start in (0, width, 2 * width)]
    return np.concatenate(thirds, axis=1)


def _resized(picture: Picture) -> Image.Image:
    """Small ones by a whole factor, so that pixels stay what they are; large ones by averages."""
    height, width = picture.shape[:2]
    drawn = Image.fromarray(picture)
    if max(height, width) > MAX_SIDE:
        factor = MAX_SIDE / max(height, width)
        return drawn.resize((max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.BOX)
    zoom = max(1, round(MIN_SIDE / max(height, width)))
    return drawn.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)


def _legend(legend: Mapping[str, Mapping[str, Colour]], width: int) -> Image.Image:
    """A line or more a heading: its names, each behind a swatch of its colour."""
    font, swatch, indent = ImageFont.load_default(TEXT), 12, 100
    places: list[tuple[int, int, str, Colour | None]] = []
    line = 0
    for heading, colours in legend.items():
        places.append((4, line, _short(heading, indent - 8), None))
        left = indent
        for name, colour in colours.items():
            needed = swatch + 4 + round(font.getlength(name)) + 12
            if left > indent and left + needed > width:
                left, line = indent, line + 1
            places.append((left, line, name, colour))
            left += needed
        line += 1
    result = Image.new("RGB", (width, line * LINE + (GAP if line else 0)), "white")
    pen = ImageDraw.Draw(result)
    for left, number, text, fill in places:
        top = GAP + number * LINE
        if fill is not None:
            pen.rectangle((left, top, left + swatch, top + swatch), fill=fill, outline="black")
        pen.text((left + (swatch + 4 if fill else 0), top), text, fill="black", font=font)
    return result


def _short(text: str, width: int) -> str:
    """A text cut off where it would be wider than so many pixels."""
    font = ImageFont.load_default(TEXT)
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text
