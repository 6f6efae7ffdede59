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
        fast: whether evaluations before the last take the fast setting of `BoundaryF`. They come out lower by up to
            half a point, so Δm and "best" then compare numbers of two settings.

    Raises:
        ValueError: `max_distance` is not positive, `processes` is negative, or `positive_weight` not in 0…1.
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
        fast: bool = False,
    ) -> None:
        super().__init__(channels=1, weight=weight)
        if not 0 <= positive_weight <= 1:
            raise ValueError(f"positive_weight must be in [0, 1], not {positive_weight}")
        self.positive_weight, self.max_distance, self.processes = positive_weight, max_distance, processes
        self.fast = fast
        self.protocol = f"within {max_distance:g} diagonals"
        self.metric()  # refuses wrong arguments at once

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy of logits, weighted by class."""
        valid = target != self.fill
        truth = torch.where(valid, target, 0)
        weights = torch.where(truth > 0.5, self.positive_weight, 1 - self.positive_weight)
        return masked_mean(weights * F.binary_cross_entropy_with_logits(output.float(), truth, reduction="none"), valid)

    def metric(self, *, exact: bool = True) -> Metric:
        """odsF ×100, oisF and AP; odsF alone where the fast setting serves, see `BoundaryF`."""
        return BoundaryF(max_distance=self.max_distance, exact=exact or not self.fast, processes=self.processes)

    def predict(self, output: Tensor) -> Label:
        """Edge probability, float32 (H, W)."""
        return output[0].float().sigmoid().numpy(force=True)

    def draw(self, label: Label) -> NDArray[np.uint8]:
        """White on black, brightness by probability."""
        values = np.where(label.astype(np.float32) > 1, 0, label.astype(np.float32))
        return np.repeat((values * 255).astype(np.uint8)[..., None], 3, axis=-1)
