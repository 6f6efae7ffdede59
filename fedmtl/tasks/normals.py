"""Surface normals: unit vectors in the camera's frame (x right, y down, z forward)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from fedmtl.tasks.base import Label, Task, masked_mean
from fedmtl.tasks.metrics import AngularError


class Normals(Task):
    """Surface normal regression, measured by the mean angle in degrees.

    Labels are (H, W, 3); a vector shorter than 0.1 is unknown (an 8-bit file stores "none" as 127 or 128,
    which does not decode to exactly zero).

    Args:
        weight: loss weight.
    """

    name = "normals"
    primary = "mErr"
    fill = 0

    def __init__(self, *, weight: float = 10.0) -> None:
        super().__init__(channels=3, weight=weight)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """L1 distance of unit vectors, summed over the three channels."""
        distance = (F.normalize(output.float(), dim=1) - F.normalize(target, dim=1)).abs().sum(1)
        return masked_mean(distance, target.norm(dim=1) > 0.1)

    def metric(self, *, exact: bool = True) -> Metric:
        """Mean angle in degrees, with the median and the shares under 11.25°, 22.5° and 30°."""
        return AngularError()

    def to_input(self, target: Tensor) -> Tensor:
        """x, y and z as they are: (3, H, W)."""
        return torch.where(target.square().sum(0) > 0.1**2, target, 0)  # norm over the first axis is slow

    def flip(self, label: Label) -> Label:
        """A mirrored image has the x component negated."""
        planes = label[:, ::-1].transpose(2, 0, 1).copy()  # by planes: several times faster than by pixels
        np.negative(planes[0], out=planes[0])
        return planes.transpose(1, 2, 0)

    def predict(self, output: Tensor) -> Label:
        """Unit vectors, float32 (H, W, 3)."""
        return F.normalize(output.float(), dim=0).permute(1, 2, 0).numpy(force=True)

    def draw(self, label: Label) -> NDArray[np.uint8]:
        """x, y, z as red, green, blue, in the usual look: right is red, up is green, facing is blue."""
        unit = F.normalize(torch.from_numpy(np.array(label, dtype=np.float32)), dim=-1).numpy()
        picture = (127.5 + 127.5 * unit * np.array([1, -1, -1])).astype(np.uint8)
        picture[np.linalg.norm(label.astype(np.float32), axis=-1) <= 0.1] = 0
        return picture
