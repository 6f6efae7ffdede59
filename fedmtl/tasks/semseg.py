"""Semantic segmentation: one of C classes a pixel."""

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from fedmtl.tasks.base import ClassTask
from fedmtl.tasks.metrics import Absent, MeanIoU


def cross_entropy(output: Tensor, target: Tensor, ignore: int = 255) -> Tensor:
    """Cross-entropy per valid pixel, (B, C, H, W) against (B, H, W); 0 where no pixel is valid."""
    valid = (target != ignore).sum().clamp(min=1)
    return F.cross_entropy(output.float(), target, ignore_index=ignore, reduction="sum") / valid


class SemSeg(ClassTask):
    """Semantic segmentation, measured by the pooled mIoU.

    Args:
        num_classes: number of classes; labels run from 0, 255 is unknown.
        weight: loss weight.
        class_names: names of the classes.
        absent: what a class counts that is neither in the labels nor predicted: ``"zero"``, or ``"skip"`` for not
            at all.

    Raises:
        ValueError: `absent` is neither.
    """

    name = "semseg"
    primary = "mIoU"

    def __init__(
        self,
        *,
        num_classes: int,
        weight: float = 1.0,
        class_names: list[str] | None = None,
        absent: Absent = "zero",
    ) -> None:
        super().__init__(channels=num_classes, weight=weight, class_names=class_names)
        self.absent = absent
        self.protocol = f"{num_classes} classes, absent ones {'0' if absent == 'zero' else 'skipped'}"
        self.metric()  # refuses a wrong argument at once

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy per valid pixel."""
        return cross_entropy(output, target)

    def metric(self, *, exact: bool = True) -> Metric:
        """Pooled mIoU ×100."""
        return MeanIoU(self.channels, absent=self.absent)
