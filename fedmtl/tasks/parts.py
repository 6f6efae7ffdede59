"""Part segmentation: the parts of people or of composite objects."""

from fedmtl.tasks.metrics import Absent
from fedmtl.tasks.semseg import SemSeg


class Parts(SemSeg):
    """Part segmentation: background and C-1 parts, measured by the pooled mIoU.

    Args:
        num_classes: number of classes, the background included; labels run from 0, 255 is unknown.
        weight: loss weight.
        class_names: names of the classes.
        absent: what a class counts that is neither in the labels nor predicted: ``"zero"``, or ``"skip"`` for not
            at all.

    Raises:
        ValueError: `absent` is neither.
    """

    name = "parts"

    def __init__(
        self,
        *,
        num_classes: int,
        weight: float = 2.0,
        class_names: list[str] | None = None,
        absent: Absent = "zero",
    ) -> None:
        super().__init__(num_classes=num_classes, weight=weight, class_names=class_names, absent=absent)
