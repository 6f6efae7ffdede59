"""The tasks' metrics: states that sum over batches and processes, numbers in the field's units.

Each takes raw outputs of a head and batched targets; `compute` returns a dictionary of named numbers. Errors and
means over no pixel at all are NaN.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

Absent = Literal["zero", "skip"]
Pooling = Literal["pixel", "image"]


class MeanIoU(Metric):
    """Pooled mIoU ×100: the mean over classes of IoU = TP / (TP + FP + FN), from one confusion matrix over the set.

    It is not the mean over images or batches of their mIoU. Of torchmetrics it equals the mean of
    ``JaccardIndex(average="none")`` with the same `ignore`; ``average="macro"`` leaves absent classes out, and
    ``segmentation.MeanIoU`` takes the mean over images.

    Args:
        num_classes: C.
        ignore: target value that does not count.
        absent: what a class has that is neither in the targets nor predicted: an IoU of 0 (``"zero"``, as the field
            has it), or no part in the mean (``"skip"``).

    Raises:
        ValueError: `absent` is neither.
    """

    higher_is_better = True
    confusion: Tensor

    def __init__(self, num_classes: int, ignore: int = 255, absent: Absent = "zero") -> None:
        super().__init__()
        if absent not in get_args(Absent):
            raise ValueError(f"absent must be {' or '.join(get_args(Absent))}, not {absent!r}")
        self.num_classes, self.ignore, self.absent = num_classes, ignore, absent
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Scores (B, C, H, W) against classes (B, H, W)."""
        valid = target != self.ignore
        pairs = target[valid] * self.num_classes + output.argmax(1)[valid]
        self.confusion += torch.bincount(pairs, minlength=self.confusion.numel()).view_as(self.confusion)

    def compute(self) -> dict[str, Tensor]:
        """``{"mIoU"}``."""
        hits = self.confusion.diag().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        iou = hits / union.clamp(min=1)
        return {"mIoU": 100 * (iou[union > 0] if self.absent == "skip" else iou).mean()}


class RMSE(Metric):
    """Root of the mean squared error in the targets' unit, over the pixels where `above` < target < `max_depth`.

    ``"pixel"`` pools: √(Σ squared error / valid pixels of the whole set), the field's definition. ``"image"`` is the
    mean of each image's own RMSE, which some report; it is another, mostly smaller number. Neither is a mean over
    batches. There is no crop of the border, no scaling to the target's median and no limit on predictions.

    Args:
        max_depth: in metres for depth; infinity counts every number.
        pooling: ``"pixel"`` or ``"image"``; an image without valid pixels does not count.
        above: 0 for depth; −infinity counts every number.

    Raises:
        ValueError: `pooling` is neither.
    """

    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self, max_depth: float = 80.0, pooling: Pooling = "pixel", above: float = 0.0) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be {' or '.join(get_args(Pooling))}, not {pooling!r}")
        self.max_depth, self.pooling, self.above = max_depth, pooling, above
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Values (B, 1, H, W) against values (B, 1, H, W)."""
        valid = (target > self.above) & (target < self.max_depth)
        squares = torch.where(valid, output.double() - target.double(), 0).square().flatten(1).sum(1)
        pixels = valid.flatten(1).sum(1)
        if self.pooling == "image":
            squares, pixels = (squares / pixels.clamp(min=1)).sqrt(), (pixels > 0).long()
        self.total += squares.sum()
        self.count += pixels.sum()

    def compute(self) -> dict[str, Tensor]:
        """``{"RMSE"}``."""
        mean = self.total / self.count
        return {"RMSE": mean if self.pooling == "image" else mean.sqrt()}


class AngularError(Metric):
    """Mean angle between unit normals in degrees, 2·atan2(‖p−g‖, ‖p+g‖), pooled over all valid pixels of the set.

    Also the median (to 0.01°, from a histogram whose counts sum over processes; the lower of two middle values)
    and the shares in percent of pixels under 11.25°, 22.5° and 30°. A target shorter than 0.1 does not count. A
    mean or median over images is another number; the usual arccos of the inner product loses small angles in
    single precision.
    """

    higher_is_better = False
    bins_per_degree = 100
    total: Tensor
    histogram: Tensor
    under: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        bins = 180 * self.bins_per_degree + 1
        self.add_state("histogram", torch.zeros(bins, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("under", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Vectors (B, 3, H, W) of any length against unit vectors (B, 3, H, W)."""
        valid = target.norm(dim=1) > 0.1
        p = F.normalize(output.movedim(1, -1)[valid].double(), dim=-1)
        g = F.normalize(target.movedim(1, -1)[valid].double(), dim=-1)
        angle = torch.rad2deg(2 * torch.atan2((p - g).norm(dim=-1), (p + g).norm(dim=-1))).nan_to_num(nan=180.0)
        self.total += angle.sum()
        bins = (angle * self.bins_per_degree).long()
        self.histogram += torch.bincount(bins, minlength=len(self.histogram))
        self.under += torch.stack([(angle < limit).sum() for limit in (11.25, 22.5, 30.0)])

    def compute(self) -> dict[str, Tensor]:
        """``{"mErr", "median", "under_11.25", "under_22.5", "under_30"}``."""
        pixels = self.histogram.sum()
        middle = torch.searchsorted(self.histogram.cumsum(0), (pixels + 1) // 2)
        shares = 100 * self.under.double() / pixels
        return {
            "mErr": self.total / pixels,
            "median": torch.where(pixels > 0, (middle + 0.5) / self.bins_per_degree, torch.nan),
            **dict(zip(("under_11.25", "under_22.5", "under_30"), shares, strict=True)),
        }


class SaliencyF(Metric):
    """maxF ×100 and mIoU ×100 over the 19 thresholds 0.05 … 0.95 on the softmax's probability of foreground.

    maxF: best F with β² = 0.3, from precision and recall pooled over the set. mIoU: best threshold of the mean over
    images of the foreground's IoU (1 where neither has foreground). A target of 255 does not count.

    Others average F or its best threshold over images, use 255 thresholds, let the background's IoU into mIoU, or
    apply a sigmoid to what is a probability already: all these are other numbers.
    """

    higher_is_better = True
    hits: Tensor
    predicted: Tensor
    positives: Tensor
    ious: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.thresholds = torch.arange(1, 20) / 20
        for state, shape in {"hits": (19,), "predicted": (19,), "positives": (), "images": ()}.items():
            self.add_state(state, torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("ious", torch.zeros(19, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Scores (B, 2, H, W) against 0/1 (B, H, W)."""
        probability = output.float().softmax(1)[:, 1].nan_to_num(nan=0.0)
        passed = torch.bucketize(probability, self.thresholds.to(output.device), right=True)  # thresholds not above it
        valid = target != 255
        image = torch.arange(len(target), device=target.device).view(-1, 1, 1)
        cells = ((2 * image + target) * 20 + passed)[valid]
        histogram = torch.bincount(cells, minlength=40 * len(target)).view(-1, 2, 20)
        chosen = histogram.flip(2).cumsum(2).flip(2)[:, :, 1:]  # pixels of each class at each threshold
        truth = histogram[:, 1].sum(1)
        hits, union = chosen[:, 1], chosen[:, 0] + truth[:, None]
        iou = torch.where(union > 0, hits.double() / union.clamp(min=1), 1)
        known = valid.flatten(1).any(1)
        self.hits += hits.sum(0)
        self.predicted += chosen.sum((0, 1))
        self.ious += iou[known].sum(0)
        self.positives += truth.sum()
        self.images += known.sum()

    def compute(self) -> dict[str, Tensor]:
        """``{"maxF", "mIoU"}``."""
        best_iou = (self.ious / self.images).max()
        f = best_f(self.hits.double(), self.predicted.double(), self.positives, beta2=0.3)
        return {"maxF": 100 * f, "mIoU": 100 * best_iou}


def best_f(hits: Tensor, predicted: Tensor, positives: Tensor, beta2: float) -> Tensor:
    """Largest Fβ over thresholds: (1+β²)PR / (β²P+R) = (1+β²)·hits / (β²·positives + predicted)."""
    return ((1 + beta2) * hits / (beta2 * positives + predicted).clamp(min=1e-12)).max()
