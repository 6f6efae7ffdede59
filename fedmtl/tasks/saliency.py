"""Saliency: what in a picture draws the eye, as foreground and background."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from fedmtl.tasks.base import ClassTask, Label, heat, masked_mean
from fedmtl.tasks.metrics import SaliencyF


class Saliency(ClassTask):
    """Salient foreground (1) against background (0), 255 unknown, measured by maxF and mIoU.

    Args:
        weight: loss weight.
        primary: which of the two stands for the task in Δm: ``"maxF"`` or ``"mIoU"``.

    Raises:
        ValueError: `primary` is neither.
    """

    name = "saliency"

    def __init__(self, *, weight: float = 5.0, primary: Literal["maxF", "mIoU"] = "maxF") -> None:
        super().__init__(channels=2, weight=weight, class_names=["background", "salient"])
        if primary not in ("maxF", "mIoU"):
            raise ValueError(f"primary must be maxF or mIoU, not {primary!r}")
        self.primary = primary

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Two-channel cross-entropy; a class weighs as much as the *other* class's share of the batch."""
        valid = target != self.fill
        salient = (valid & (target == 1)).sum() / valid.sum().clamp(min=1)
        weights = torch.where(target == 1, 1 - salient, salient)
        values = F.cross_entropy(output.float(), torch.where(valid, target, 0), reduction="none")
        return masked_mean(weights * values, valid)

    def metric(self, *, exact: bool = True) -> Metric:
        """maxF ×100 (β² = 0.3) and mIoU ×100."""
        return SaliencyF()

    def predict(self, output: Tensor) -> Label:
        """Probability of foreground, float32 (H, W)."""
        return output.float().softmax(0)[1].numpy(force=True)

    def draw(self, label: Label) -> NDArray[np.uint8]:
        """Probability as heat."""
        values = label.astype(np.float32)
        picture = heat(np.where(values > 1, 0, values))
        picture[values > 1] = 0
        return picture
