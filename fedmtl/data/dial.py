"""Tasks of `Scenes` made to order: their relation to depth, or to semantic segmentation, is set by a dial."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmtl.data.rooms import CLASSES, Domain
from fedmtl.seeding import numpy_stream
from fedmtl.tasks import Regression, SemSeg, Task
from fedmtl.tasks.base import Label

Origin = Literal["depth", "semseg"]

# mean and deviation of depth in metres, root mean square of the normals' x: of 4,000 square pictures of 64 pixels a
# side (seeds 0 and 1), in which the two correlate by −0.003 to 0.000
STATISTICS: dict[Domain, tuple[float, float, float]] = {"day": (3.10, 1.26, 0.416), "night": (2.74, 1.466, 0.431)}


@dataclass(frozen=True)
class Dial:
    """A task that is like, unlike, or the opposite of another one.

    ``of: depth`` is a regression of y = λa + √(1−λ²)·b, where a is the standardised depth and b the standardised x
    component of the surface normal. A scene and its mirror image are equally likely, a is the same in both and b
    changes its sign: so a and b are uncorrelated (not independent: far walls face the camera), and the correlation
    of y with depth is λ. λ = 1 is depth, 0 is the direction in which surfaces face, −1 is inverted depth. Two dials
    λ and μ correlate by λμ + √(1−λ²)·√(1−μ²). The constants that standardise are those of square pictures: in wider
    ones the correlation is another (0.4 for a λ of 0.5 where they are twice as wide as high).

    ``of: semseg`` is a segmentation in which some classes have changed places: the share of the classes that keep
    their number, minus the share of those that don't, is λ. λ = 1 is semseg, at −1 no class keeps its number, and the
    classes that change at one λ also do so at every lower one.

    A head of its own can undo a changed sign or number in its last layer, so that what an encoder has to know is the
    same at −1 and 1: there the two tasks differ in what they ask of a shared head, not in what they need.

    Args:
        of: the task that it is compared with, ``"depth"`` or ``"semseg"``.
        correlation: λ, from 1 (identical) through 0 to −1 (opposite).
        weight: loss weight.

    Raises:
        ValueError: an argument is out of its range.
    """

    of: Origin
    correlation: float
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.of not in get_args(Origin):
            raise ValueError(f"a dial's of must be {' or '.join(get_args(Origin))}, not {self.of!r}")
        if not -1 <= self.correlation <= 1:
            raise ValueError(f"a dial's correlation must be in [-1, 1], not {self.correlation}")

    def task(self, domain: Domain, seed: int) -> Task:
        """The task, for scenes of a domain and seed."""
        if self.of == "depth":
            return TiltedDepth(self.correlation, domain=domain, weight=self.weight)
        names = [CLASSES[old] for old in np.argsort(self.numbers(seed))]
        return SemSeg(num_classes=len(CLASSES), class_names=names, weight=self.weight)

    def label(self, arrays: Mapping[str, NDArray[np.generic]], index: int, seed: int) -> Label:
        """The label of an image, from those of the scenes.

        Args:
            arrays: ``"depth"``, ``"normals"`` and ``"semseg"`` of a split.
            index: number of the image.
            seed: of the scenes.

        Returns:
            Depth and the normals' x, float32 (H, W, 2), see `TiltedDepth`; or classes, uint8 (H, W).
        """
        if self.of == "depth":
            return np.stack([arrays["depth"][index], arrays["normals"][index][..., 0]], axis=-1, dtype=np.float32)
        return self.numbers(seed)[arrays["semseg"][index].astype(np.intp)]

    def numbers(self, seed: int) -> NDArray[np.uint8]:
        """The new number of each class: round((1−λ)/2 · C) of the C classes, in an order that the seed alone decides,
        take the next one's. A single class has nowhere to go, then two change."""
        order = numpy_stream(seed, "dial", "semseg").permutation(len(CLASSES))
        count = round((1 - self.correlation) / 2 * len(CLASSES))
        moved = order[: 2 if count == 1 else count]
        numbers = np.arange(len(CLASSES), dtype=np.uint8)
        numbers[moved] = np.roll(moved, -1)
        return numbers


class TiltedDepth(Regression):
    """Depth mixed with the direction of surfaces, y = λ(z − mean)/deviation + √(1−λ²)·x/deviation.

    A label is (H, W, 2): metres z (0 is unknown) and the x component of the normal, which have to be told apart when
    the image is mirrored or scaled. A target or prediction is y alone.

    Args:
        correlation: λ.
        domain: of the scenes, which have means and deviations of their own.
        weight: loss weight.
    """

    def __init__(self, correlation: float, *, domain: Domain = "day", weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.correlation, self.domain = correlation, domain

    def values(self, label: Label) -> NDArray[np.float32]:
        """y (H, W) of a label, infinite where it is unknown."""
        metres, tilt = np.moveaxis(label, -1, 0)
        mean, deviation, spread = STATISTICS[self.domain]
        mixed = self.correlation * (metres - mean) / deviation + sqrt(1 - self.correlation**2) * tilt / spread
        return np.where(metres > 0, mixed, self.fill).astype(np.float32)

    def to_target(self, label: Label) -> Tensor:
        """Label (H, W, 2) to y, (1, H, W)."""
        return torch.from_numpy(self.values(label)[None])

    def unknown(self, size: tuple[int, ...]) -> Label:
        """Zeros, (H, W, 2)."""
        return np.zeros((*size, 2), np.float32)

    def flip(self, label: Label) -> Label:
        """A mirrored image has x negated."""
        return label[:, ::-1] * np.array([1, -1], np.float32)

    def rescale(self, label: Label, factor: float) -> Label:
        """As for `Depth`, metres are divided by the factor."""
        return label / np.array([factor, 1], np.float32)

    def draw(self, label: Label) -> NDArray[np.uint8]:
        """y of a label, or a prediction, from −2, dark, to 2, bright."""
        return super().draw(self.values(label) if label.ndim == 3 else label)


def dialled_tasks(dials: Mapping[str, Dial], taken: Mapping[str, Task], domain: Domain, seed: int) -> dict[str, Task]:
    """The tasks of all dials.

    Args:
        dials: by the tasks' names.
        taken: tasks that are there already.
        domain: of the scenes.
        seed: of the scenes.

    Raises:
        ValueError: a name is taken, or can't be one.
    """
    for name in dials:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, flags=re.ASCII):
            raise ValueError(f"dials: a name must be letters, digits and '_' and begin with a letter, not {name!r}")
        if name in ("image", "window", *taken) or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"dials: the name {name!r} is taken; give this task another, e.g. my_{name}")
    return {name: dial.task(domain, seed) for name, dial in dials.items()}
