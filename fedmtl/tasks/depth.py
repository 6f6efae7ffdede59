"""Depth: distance along the optical axis, in metres."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from fedmtl.tasks.base import Label, Task, heat, masked_mean
from fedmtl.tasks.metrics import RMSE, Pooling

INPUT_MEAN, INPUT_STD = 3.0, 1.5  # metres; rooms of `Scenes` have 3.1 ± 1.3 by day, 2.7 ± 1.5 by night


class Depth(Task):
    """Depth regression, measured by the RMSE in metres; a label of 0 is unknown.

    Args:
        max_depth: labels at or beyond this many metres do not count either.
        weight: loss weight.
        pooling: ``"pixel"`` for the RMSE over all pixels of the set, ``"image"`` for the mean of the images' own.

    Raises:
        ValueError: `pooling` is neither.
    """

    name = "depth"
    primary = "RMSE"
    fill = 0

    def __init__(self, *, max_depth: float = 80.0, weight: float = 1.0, pooling: Pooling = "pixel") -> None:
        super().__init__(channels=1, weight=weight)
        if not max_depth > 0:
            raise ValueError(f"max_depth must be above 0 m, not {max_depth}")
        self.max_depth, self.pooling = max_depth, pooling
        self.protocol = f"by {pooling}, below {max_depth:g} m"
        self.metric()  # refuses a wrong argument at once

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean absolute error in metres."""
        return masked_mean((output.float() - target).abs(), (target > 0) & (target < self.max_depth))

    def metric(self, *, exact: bool = True) -> Metric:
        """RMSE in metres."""
        return RMSE(max_depth=self.max_depth, pooling=self.pooling)

    def to_input(self, target: Tensor) -> Tensor:
        """(metres − 3) / 1.5, the same for every data set: (1, H, W)."""
        valid = (target > 0) & (target < self.max_depth)
        return torch.where(valid, (target - INPUT_MEAN) / INPUT_STD, 0)

    def rescale(self, label: Label, factor: float) -> Label:
        """Enlarging an image by s is coming closer by s.

        What `max_depth` rules out becomes 0, so that no zoom brings it back; what shrinking carries there goes too.
        """
        return np.where(np.less(label, self.max_depth), label, np.float32(0)) / np.float32(factor)

    def predict(self, output: Tensor) -> Label:
        """Metres, float32 (H, W)."""
        return output[0].float().numpy(force=True)

    def draw(self, label: Label) -> NDArray[np.uint8]:
        """Near is bright, far is dark, on a scale of inverse depth from 1 m."""
        metres = label.astype(np.float64)
        picture = heat(1 / np.maximum(metres, 1))
        picture[(metres <= 0) | (metres >= self.max_depth)] = 0
        return picture
