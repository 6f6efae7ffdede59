"""Edge detection: boundaries of objects and surfaces."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from fedmtl.tasks.base import Label, Task, masked_mean
from fedmtl.tasks.boundary_metric import BoundaryF


class Edge(Task):
    """Binary edge detection, measured by odsF; labels are 1 on edges, 0 elsewhere, 255 unknown.

    Args:
        positive_weight: weight of an edge pixel; any other has one minus this.
        weight: loss weight.
        max_distance: how far from a true edge pixel a predicted one may match it, in image diagonals: 0.0075 for
            BSDS and PASCAL, 0.011 for NYUD.
        processes: worker processes that measure, see `BoundaryF`; None chooses.

    Raises:
        ValueError: `max_distance` is not positive or `processes` is negative.
    """

    name = "edge"
    primary = "odsF"
    fill = 255

    def __init__(
        self,
        *,
        positive_weight: float = 0.95,
        weight: float = 50.0,
        max_distance: float = 0.0075,
        processes: int | None = None,
    ) -> None:
        super().__init__(channels=1, weight=weight)
        self.positive_weight, self.max_distance, self.processes = positive_weight, max_distance, processes
        self.protocol = f"within {max_distance:g} diagonals"
        self.metric()  # refuses wrong arguments at once

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy of logits, weighted by class."""
        valid = target != self.fill
        truth = torch.where(valid, target, 0)
        weights = torch.where(truth > 0.5, self.positive_weight, 1 - self.positive_weight)
        return masked_mean(weights * F.binary_cross_entropy_with_logits(output.float(), truth, reduction="none"), valid)

    def metric(self, *, exact: bool = True) -> Metric:
        """odsF ×100; oisF and AP too if exact, see `BoundaryF`."""
        return BoundaryF(max_distance=self.max_distance, exact=exact, processes=self.processes)

    def predict(self, output: Tensor) -> Label:
        """Edge probability, float32 (H, W)."""
        return output[0].float().sigmoid().numpy(force=True)

    def draw(self, label: Label) -> NDArray[np.uint8]:
        """White on black, brightness by probability."""
        values = np.where(label.astype(np.float32) > 1, 0, label.astype(np.float32))
        return np.repeat((values * 255).astype(np.uint8)[..., None], 3, axis=-1)
