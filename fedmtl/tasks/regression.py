"""Regression of one number a pixel, whatever it stands for."""

from math import inf

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, where
from torchmetrics import Metric

from fedmtl.tasks.base import Label, Task, heat, masked_mean
from fedmtl.tasks.metrics import RMSE


class Regression(Task):
    """Regression of one number a pixel, measured by the RMSE; a label that is no finite number is unknown.

    Labels should be standardised (mean about 0, deviation about 1): pictures show −2…2.

    Args:
        weight: loss weight.
    """

    name = "regression"
    primary = "RMSE"
    fill = inf

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__(channels=1, weight=weight)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean absolute error."""
        return masked_mean((output.float() - target).abs(), target.isfinite())

    def metric(self, *, exact: bool = True) -> Metric:
        """RMSE in the labels' unit, over all pixels of the set."""
        return RMSE(max_depth=inf, above=-inf)

    def to_input(self, target: Tensor) -> Tensor:
        """The numbers themselves: (1, H, W)."""
        return where(target.isfinite(), target, 0)

    def predict(self, output: Tensor) -> Label:
        """Numbers, float32 (H, W)."""
        return output[0].float().numpy(force=True)

    def draw(self, label: Label) -> NDArray[np.uint8]:
        """From −2, dark, to 2, bright."""
        values = label.astype(np.float64)
        known = np.isfinite(values)
        picture = heat((np.where(known, values, 0) + 2) / 4)
        picture[~known] = 0
        return picture
