"""Edge detection: boundaries of objects and surfaces."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from fedmtl.tasks.base import Label, Task, masked_mean
from fedmtl.tasks.metrics import ExactPixelF


class Edge(Task):
    """Binary edge detection; labels are 1 on edges, 0 elsewhere, 255 unknown.

    Args:
        positive_weight: weight of an edge pixel; any other has one minus this.
        weight: loss weight.
    """

    name = "edge"
    primary = "exactF"
    fill = 255

    def __init__(self, *, positive_weight: float = 0.95, weight: float = 50.0) -> None:
        super().__init__(channels=1, weight=weight)
        self.positive_weight = positive_weight

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy of logits, weighted by class."""
        valid = target != self.fill
        truth = torch.where(valid, target, 0)
        weights = torch.where(truth > 0.5, self.positive_weight, 1 - self.positive_weight)
        return masked_mean(weights * F.binary_cross_entropy_with_logits(output.float(), truth, reduction="none"), valid)

    def metric(self) -> Metric:
        """Best-threshold F ×100 on exact pixels: no tolerance, no thinning, hence not the field's odsF."""
        return ExactPixelF()

    def predict(self, output: Tensor) -> Label:
        """Edge probability, float32 (H, W)."""
        return output[0].float().sigmoid().numpy(force=True)

    def draw(self, label: Label) -> NDArray[np.uint8]:
        """White on black, brightness by probability."""
        values = np.where(label.astype(np.float32) > 1, 0, label.astype(np.float32))
        return np.repeat((values * 255).astype(np.uint8)[..., None], 3, axis=-1)
