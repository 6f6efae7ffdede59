"""What a task is: output channels, loss, metric, and how its labels flip, scale and are drawn."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

Label = NDArray[np.generic]  # one image's label as its data set stores it: (H, W) or (H, W, C)


class Task(ABC):
    """One dense prediction task of one data set.

    A *label* is a NumPy array (H, W) or (H, W, C) of a single image; a *target* is the tensor that
    the loss and the metric see, batched: (B, H, W) of class indices or (B, C, H, W) of values.
    Pixels whose label says "unknown" never count in a loss or a metric.

    Attributes:
        name: kind of task, and the name under which a data set has it by default; a data set may have several
            of one kind, under names of its own.
        channels: output channels of its head.
        weight: factor of its loss in a client's total loss.
        primary: the metric that stands for the task in Δm.
        protocol: how that metric is taken, where there is a choice; numbers compare only if it is the same.
        fill: label value that means "unknown"; padding has it.
    """

    name: ClassVar[str]
    primary: str
    protocol: str = ""
    fill: ClassVar[float]

    def __init__(self, *, channels: int, weight: float) -> None:
        if not weight >= 0:
            raise ValueError(f"weight must be at least 0, not {weight}")
        self.channels = channels
        self.weight = weight

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Unweighted loss per valid pixel, a scalar; 0 (with zero gradient) where no pixel is valid.

        Args:
            output: raw output of the head, (B, channels, H, W).
            target: batched targets at the same size.
        """

    @abstractmethod
    def metric(self, *, exact: bool = True) -> Metric:
        """A fresh metric: ``update(output, target)`` takes raw outputs, ``compute()`` gives a dictionary of
        named numbers in the field's units with `primary` among them, ``higher_is_better`` is its direction.

        Args:
            exact: False for a faster setting, for evaluations between, where the task has one; all others ignore it.
        """

    def to_target(self, label: Label) -> Tensor:
        """Label array to target tensor: (H, W) → (1, H, W) and (H, W, C) → (C, H, W), float."""
        values = label[None] if label.ndim == 2 else label.transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

    def to_input(self, target: Tensor) -> Tensor:
        """What a model sees that reads this modality in place of the colour image, float32; 0 where unknown.

        Args:
            target: of one image, as `to_target` gives it.

        Returns:
            (channels, H, W), the values themselves.
        """
        return torch.where(target == self.fill, 0, target)

    def unknown(self, size: tuple[int, ...]) -> Label:
        """The label of an image of this height and width of which nothing is known."""
        shape = size if self.channels == 1 else (*size, self.channels)
        return np.full(shape, self.fill, np.uint8 if self.fill == 255 else np.float32)

    def flip(self, label: Label) -> Label:
        """The label of the mirrored image (left and right swapped)."""
        return label[:, ::-1]

    def rescale(self, label: Label, factor: float) -> Label:
        """Adjusts the *values* after the image was enlarged by `factor`; the resizing is done elsewhere."""
        return label

    @abstractmethod
    def predict(self, output: Tensor) -> Label:
        """Raw output of one image (channels, H, W) to a label array, in the form its data set stores."""

    @abstractmethod
    def draw(self, label: Label) -> NDArray[np.uint8]:
        """A picture (H, W, 3) of a label or a prediction; unknown pixels are black."""


class ClassTask(Task):
    """A task whose label is one class index a pixel, 255 where unknown."""

    fill = 255

    def __init__(self, *, channels: int, weight: float, class_names: list[str] | None = None) -> None:
        super().__init__(channels=channels, weight=weight)
        if class_names is not None and len(class_names) != channels:
            raise ValueError(
                f"class_names must have one entry for each of the {channels} classes, not {len(class_names)}"
            )
        self.class_names = class_names or [f"class {i}" for i in range(channels)]

    def unknown(self, size: tuple[int, ...]) -> Label:
        """255 everywhere."""
        return np.full(size, self.fill, np.uint8)

    def to_target(self, label: Label) -> Tensor:
        """Class map (H, W) to int64 (H, W)."""
        return torch.from_numpy(np.ascontiguousarray(label, dtype=np.int64))

    def to_input(self, target: Tensor) -> Tensor:
        """One plane a class, 1 where it is: (channels, H, W)."""
        return (target == torch.arange(self.channels)[:, None, None]).float()

    def predict(self, output: Tensor) -> Label:
        """The class of highest score, uint8 (H, W)."""
        return output.argmax(0).to(torch.uint8).numpy(force=True)

    def draw(self, label: Label) -> NDArray[np.uint8]:
        """Classes in well separated colours."""
        return class_palette()[label.astype(np.int64)]


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Sum of `values` where `valid`, over the number of valid entries; 0 where there are none."""
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)


def class_palette() -> NDArray[np.uint8]:
    """256 colours, (256, 3): golden-ratio hues at five brightnesses; 255 (unknown) is black."""
    index = np.arange(256)
    hue = (index * 0.618034 + 0.58) % 1.0
    ramp = np.abs((hue[:, None] * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    value = np.array([1, 0.6, 0.85, 0.45, 0.72])[index % 5]
    colours = np.clip(0.25 + 0.75 * np.clip(ramp, 0, 1), 0, 1) * value[:, None] * 255
    colours[255] = 0
    return colours.astype(np.uint8)


def heat(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values in 0…1 as a perceptual blue-green-yellow ramp, (..., 3)."""
    stops = np.linspace(0, 1, 6)
    ramp = np.array([[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]])
    clipped = np.clip(values, 0, 1)
    return np.stack([np.interp(clipped, stops, ramp[:, c]) for c in range(3)], axis=-1).astype(np.uint8)
