"""Augmentation of training samples and preparation of validation samples."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fedmtl.data.source import INPUT, Example, Sample
from fedmtl.tasks import Task
from fedmtl.tasks.base import Label

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None] * 255  # ImageNet's, of 8-bit RGB
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None] * 255
CROP_TRIES = 10
UNKNOWN_CLASS = 255


class TrainTransform:
    """Random scale, crop, flip and colours; then ImageNet normalisation and a centred pad to `crop`.

    The image is resized bilinearly, with antialiasing where it shrinks; labels take the nearest pixel, so
    that depth is never mixed across its gaps and normals stay unit vectors. Both put pixel centres at half
    integers, which keeps them aligned at any factor.

    Args:
        crop: height and width of the output in pixels; None keeps the size of the (scaled) image. An image
            smaller than this is cropped along the sides that reach over, and padded along the others.
        scale: range of the factor of enlargement, drawn uniformly; None keeps 1.
        max_class_share: a crop is drawn anew, up to 10 times in all, while one class fills more than this
            share of its known pixels, or none is known. Looks at the first task of the kind "semseg", else at
            the first of "parts", else at nothing.
        flip: probability of mirroring left and right.
        photometric: whether to distort colours, see `distort_colours`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        crop: tuple[int, int] | None = None,
        scale: tuple[float, float] | None = (0.5, 2.0),
        max_class_share: float = 0.75,
        flip: float = 0.5,
        photometric: bool = True,
    ) -> None:
        _check_size("crop", crop)
        if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1] < inf):
            raise ValueError(f"scale must be two factors 0 < low <= high, not {scale}")
        if not 0 < max_class_share <= 1:
            raise ValueError(f"max_class_share must be in (0, 1], not {max_class_share}")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a probability in [0, 1], not {flip}")
        self.crop, self.scale, self.flip = crop, scale, flip
        self.max_class_share, self.photometric = max_class_share, photometric

    def __call__(self, sample: Sample, tasks: Mapping[str, Task], rng: np.random.Generator) -> Example:
        """Image (3, H, W) float32 and one target a task; every random choice comes from `rng`."""
        image = sample["image"]
        labels = {name: sample[name] for name in tasks}
        if self.scale is not None:
            factor = rng.uniform(*self.scale)
            labels = {name: tasks[name].rescale(label, factor) for name, label in labels.items()}
            window = Window(image, (round(image.shape[0] * factor), round(image.shape[1] * factor)))
        else:
            window = Window(image, image.shape[:2])
        if self.crop is not None:
            self._place(window, self.crop, _varied_by(labels, tasks), rng)
        image = window.bilinear(image)
        labels = {name: window.nearest(label) for name, label in labels.items()}
        mirrored = rng.random() < self.flip
        if self.photometric:
            image = distort_colours(image, rng)
        if mirrored:  # after the colours, which are each pixel's own and want whole rows
            image = image[:, ::-1]
            labels = {name: tasks[name].flip(label) for name, label in labels.items()}
        targets = {
            name: _pad(_target(tasks[name], label, sample[name]), self.crop, tasks[name].fill)
            for name, label in labels.items()
        }
        return {"image": _pad(_normalise(image), self.crop, 0), **targets}

    def _place(self, window: "Window", crop: tuple[int, int], classes: Label | None, rng: np.random.Generator) -> None:
        """Narrows the window to a random crop, see `max_class_share`."""
        full = window.size
        window.size = min(crop[0], full[0]), min(crop[1], full[1])
        for _ in range(CROP_TRIES):
            top, left = (int(rng.integers(full[i] - window.size[i] + 1)) for i in (0, 1))
            window.start = top, left
            if classes is None or window.size == full or self._is_varied(window.nearest(classes)):
                break

    def _is_varied(self, classes: Label) -> bool:
        counts = np.bincount(classes.astype(np.int64).ravel(), minlength=UNKNOWN_CLASS + 1)[:UNKNOWN_CLASS]
        return 0 < int(counts.max()) <= self.max_class_share * int(counts.sum())


class ValTransform:
    """ImageNet normalisation and a centred pad of the image to at least `size`; nothing is random, nothing is cut.

    Targets keep the image's own size, at which predictions are measured; ``"window"`` (top, left, height, width)
    says which pixels of the padded image are the picture. A label that the model reads in place of the image
    (`INPUT`) is framed as the image is; like any label it takes the nearest pixel where it shrinks.

    Args:
        size: height and width in pixels; a larger image stays as large as it is. None does not pad.
        longest: an image with a longer side than this is shrunk to it, with antialiasing. None shrinks nothing. A
            predicted depth is taken as it is, though things look farther in a shrunk image: better shrink the files.

    Raises:
        ValueError: an argument is not a positive number.
    """

    def __init__(self, *, size: tuple[int, int] | None = None, longest: int | None = None) -> None:
        _check_size("size", size)
        if longest is not None and longest < 1:
            raise ValueError(f"longest must be 1 pixel or more, not {longest}")
        self.size, self.longest = size, longest

    def __call__(self, sample: Sample, tasks: Mapping[str, Task], rng: np.random.Generator) -> Example:
        """Image (3, h, w) float32, its ``"window"`` int64 (4,), and one target a task at the image's own size."""
        image = sample["image"]
        sides = image.shape[:2]
        if self.longest is not None and max(sides) > self.longest:
            height, width = (round(side * self.longest / max(sides)) for side in sides)
            image = Window(image, (height, width)).bilinear(image)
        height, width = image.shape[:2]
        padded = _pad(_normalise(image), self.size, 0)
        window = ((padded.shape[-2] - height) // 2, (padded.shape[-1] - width) // 2, height, width)
        targets = {name: _target(task, sample[name], sample[name]) for name, task in tasks.items()}
        if INPUT in tasks:
            targets[INPUT] = self._framed(tasks[INPUT], sample[INPUT], (height, width))
        return {"image": padded, "window": torch.tensor(window), **targets}

    def _framed(self, task: Task, stored: Label, size: tuple[int, int]) -> Tensor:
        """The target of a label that is shrunk to `size` and padded, as the image is."""
        label = stored
        if size != stored.shape[:2]:
            label = task.rescale(stored, max(size) / max(stored.shape[:2]))
            label = Window(label, size).nearest(label)
        return _pad(_target(task, label, stored), self.size, task.fill)


def own_size(output: Tensor, window: Sequence[int], size: Sequence[int]) -> Tensor:
    """A model's output without its padding and, if the image was shrunk, bilinearly at the image's own size.

    Args:
        output: (B, C, H, W) of padded images.
        window: top, left, height and width of the pictures in them.
        size: the pictures' own height and width.
    """
    top, left, height, width = window
    output = output[..., top : top + height, left : left + width]
    if (height, width) == tuple(size):
        return output
    return F.interpolate(output, size=tuple(size), mode="bilinear", align_corners=False)


class Window:
    """A rectangle of an image that was resized to `scaled`; only the pixels inside are ever computed.

    Attributes:
        start: top and left of the rectangle in pixels of the resized image.
        size: height and width of the rectangle.
    """

    def __init__(self, image: Label, scaled: tuple[int, ...]) -> None:
        self.source = image.shape[:2]
        self.scaled = max(1, scaled[0]), max(1, scaled[1])
        self.start, self.size = (0, 0), self.scaled

    def nearest(self, label: Label) -> Label:
        """The source pixel that holds the centre of each pixel, (h, w) or (h, w, C)."""
        if self.scaled == self.source:
            (top, left), (height, width) = self.start, self.size
            return label[top : top + height, left : left + width]
        rows, columns = self._nearest_index(0), self._nearest_index(1)
        if self.scaled[0] < self.source[0]:
            return label.take(rows, axis=0).take(columns, axis=1)
        part = label[rows[0] : rows[-1] + 1]  # single pixels are slow to copy, so of as few rows as there are
        return part.take(columns, axis=1).take(rows - rows[0], axis=0)

    def bilinear(self, image: Label) -> Label:
        """Bilinear interpolation of uint8 (H, W, 3), antialiased where it shrinks: (h, w, 3)."""
        if self.scaled == self.source:
            return self.nearest(image)
        (top, left), (height, width) = self.start, self.size
        y, x = self.source[0] / self.scaled[0], self.source[1] / self.scaled[1]
        bottom, right = min((top + height) * y, self.source[0]), min((left + width) * x, self.source[1])
        picture = Image.fromarray(image).resize(
            (width, height), Image.Resampling.BILINEAR, box=(left * x, top * y, right, bottom)
        )
        return np.asarray(picture)

    def _nearest_index(self, axis: int) -> NDArray[np.intp]:
        centres = 2 * np.arange(self.start[axis], self.start[axis] + self.size[axis]) + 1  # in half pixels
        index: NDArray[np.intp] = centres * self.source[axis] // (2 * self.scaled[axis])  # exact, unlike floats
        return index


def distort_colours(image: Label, rng: np.random.Generator) -> Label:
    """Changes the colours of an 8-bit RGB image as the field's public code does.

    Brightness (±32 of 255 added), contrast (values × 0.5…1.5), saturation (× 0.5…1.5) and hue (±18 on OpenCV's
    8-bit scale of 0…180, that is ±36°), each with probability 0.5 and cut off to 0…255 after each step.
    Contrast comes right after brightness or at the very end, with equal probability.

    Args:
        image: uint8 (H, W, 3).
        rng: source of the random numbers; always as many are drawn.
    """
    use = rng.random(5) < 0.5
    brightness, contrast, saturation, hue = rng.uniform((-32, 0.5, 0.5, -18), (32, 1.5, 1.5, 18))
    early, late = use[1] & use[4], use[1] & ~use[4]
    levels = np.arange(256.0)
    picture = Image.fromarray(np.ascontiguousarray(image))
    if use[0] | early:
        table = np.clip(levels + brightness, 0, 255) if use[0] else levels
        picture = picture.point(_table(*[table * contrast if early else table] * 3))
    if use[2] | use[3]:
        turn = round(hue * 256 / 180) if use[3] else 0  # Pillow's hue runs 0…256
        table = levels * saturation if use[2] else levels
        picture = picture.convert("HSV").point(_table((levels + turn) % 256, table, levels)).convert("RGB")
    if late:
        picture = picture.point(_table(*[levels * contrast] * 3))
    return np.asarray(picture)


def _table(*channels: NDArray[np.floating[Any]]) -> list[int]:
    """Pillow's look-up table of three channels from 256 values each."""
    table: list[int] = np.clip(np.rint(np.concatenate(channels)), 0, 255).astype(int).tolist()
    return table


def _varied_by(labels: Mapping[str, Label], tasks: Mapping[str, Task]) -> Label | None:
    """The label that a crop should show several classes of."""
    return next((labels[name] for kind in ("semseg", "parts") for name in labels if tasks[name].name == kind), None)


def _normalise(image: Label) -> Tensor:
    """ImageNet normalisation of an 8-bit image: (H, W, 3) to (3, H, W) float32."""
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32, order="C")).sub_(MEAN).div_(STD)


def _target(task: Task, label: Label, stored: Label) -> Tensor:
    """The target of a transformed label; never shares memory with the label that the source may keep."""
    backwards = min(label.strides) < 0  # torch takes no such array
    return task.to_target(label.copy() if backwards or np.may_share_memory(label, stored) else label)


def _pad(values: Tensor, size: tuple[int, int] | None, fill: float) -> Tensor:
    """Centred padding of the last two dimensions to at least `size`; an odd pixel goes below or to the right."""
    rows, columns = (0, 0) if size is None else (max(0, size[i] - values.shape[i - 2]) for i in (0, 1))
    if rows == columns == 0:
        return values
    sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return F.pad(values, sides, value=fill)


def _check_size(argument: str, size: tuple[int, int] | None) -> None:
    if size is not None and not (len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
        raise ValueError(f"{argument} must be a height and a width in whole pixels above 0, not {size}")
