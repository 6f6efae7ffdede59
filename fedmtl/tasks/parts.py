"""Part segmentation: the parts of people or of composite objects."""

from fedmtl.tasks.metrics import Absent
from fedmtl.tasks.semseg import SemSeg


class Parts(SemSeg):
    """Part segmentation: background and C-1 parts, measured by the pooled mIoU. Same arguments as `SemSeg`."""

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
