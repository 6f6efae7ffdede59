"""The tasks' metrics: states that sum over batches and processes, numbers in the field's units.

Each takes raw outputs of a head and batched targets; `compute` returns a dictionary of named numbers. Errors and
means over no pixel at all are NaN.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix


class MeanIoU(Metric):
    """Pooled mIoU ×100: one confusion matrix over the whole set, mean over ALL classes (absent ones are 0).

    Args:
        num_classes: C.
        ignore: target value that does not count.
    """

    higher_is_better = True
    confusion: Tensor

    def __init__(self, num_classes: int, ignore: int = 255) -> None:
        super().__init__()
        self.num_classes, self.ignore = num_classes, ignore
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Scores (B, C, H, W) against classes (B, H, W)."""
        self.confusion += multiclass_confusion_matrix(
            output.argmax(1), target, self.num_classes, ignore_index=self.ignore, validate_args=False
        )

    def compute(self) -> dict[str, Tensor]:
        """``{"mIoU"}``."""
        hits = self.confusion.diag().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return {"mIoU": 100 * (hits / union.clamp(min=1)).mean()}


class RMSE(Metric):
    """√(Σ squared error / valid pixels of the whole set) in metres; valid where 0 < target < `max_depth`."""

    higher_is_better = False
    squares: Tensor
    pixels: Tensor

    def __init__(self, max_depth: float = 80.0) -> None:
        super().__init__()
        self.max_depth = max_depth
        self.add_state("squares", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pixels", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Metres (B, 1, H, W) against metres (B, 1, H, W)."""
        valid = (target > 0) & (target < self.max_depth)
        self.squares += torch.where(valid, output.double() - target.double(), 0).square().sum()
        self.pixels += valid.sum()

    def compute(self) -> dict[str, Tensor]:
        """``{"RMSE"}``."""
        return {"RMSE": (self.squares / self.pixels).sqrt()}


class AngularError(Metric):
    """Mean angle between unit normals in degrees, 2·atan2(‖p−g‖, ‖p+g‖), pooled over all valid pixels.

    Also the median (to 0.01°, from a histogram whose counts sum over processes) and the shares in percent
    of pixels under 11.25°, 22.5° and 30°. A target shorter than 0.1 does not count.
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


class ExactPixelF(Metric):
    """Best F ×100 over 99 thresholds, precision and recall pooled over the set, on EXACT pixels.

    A predicted edge pixel counts only on a true one: no distance tolerance, no non-maximum suppression, no
    thinning. It is lower than the field's odsF and not comparable with it. A target of 255 does not count.
    """

    higher_is_better = True
    edges: Tensor
    others: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("edges", torch.zeros(101, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("others", torch.zeros(101, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Logits (B, 1, H, W) against 0/1 (B, 1, H, W)."""
        probability = output.double().sigmoid().nan_to_num(nan=0.0)
        bins = (probability * 100).long()  # a pixel is predicted at threshold t/100 if its bin >= t
        self.edges += torch.bincount(bins[target == 1], minlength=101)
        self.others += torch.bincount(bins[target == 0], minlength=101)

    def compute(self) -> dict[str, Tensor]:
        """``{"exactF"}``."""
        hits = self.edges.flip(0).cumsum(0).flip(0)[1:100].double()
        predicted = hits + self.others.flip(0).cumsum(0).flip(0)[1:100]
        return {"exactF": 100 * best_f(hits, predicted, self.edges.sum(), beta2=1.0)}


class SaliencyF(Metric):
    """maxF ×100 and mIoU ×100 over 19 thresholds 0.05…0.95.

    maxF: best F with β² = 0.3 from precision and recall pooled over the set. mIoU: best threshold of the mean
    over images of the foreground's IoU (1 where neither has foreground). A target of 255 does not count.
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
        probability = output.float().softmax(1)[:, 1].flatten(1)
        valid, truth = target.flatten(1) != 255, target.flatten(1) == 1
        known = valid.any(1)
        for i, threshold in enumerate(self.thresholds.tolist()):
            chosen = (probability >= threshold) & valid
            hits, union = (chosen & truth).sum(1), (chosen | truth).sum(1)
            self.hits[i] += hits.sum()
            self.predicted[i] += chosen.sum()
            iou = torch.where(union > 0, hits.double() / union.clamp(min=1), 1)
            self.ious[i] += iou[known].sum()
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
