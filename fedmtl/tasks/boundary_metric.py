"""The edge metric: odsF, oisF and AP by the BSDS protocol, its images evaluated in worker processes."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from fedmtl.boundaries import (
    COARSE_THRESHOLDS,
    THRESHOLDS,
    Counts,
    ImageQueue,
    average_precision,
    boundary_counts,
    f_measure,
)


class BoundaryF(Metric):
    """odsF, oisF and AP ×100 of predicted edges, by the protocol of BSDS and of Dollár's edgesEval.

    Each image at its own size: sigmoid, non-maximum suppression, and at each of the thresholds 0.01 … 0.99 thinning
    and a one-to-one match of predicted with true pixels at most `max_distance` image diagonals apart. Precision and
    recall come from counts pooled over the set, F = 2PR / (P + R). odsF: F at the best threshold of the whole set.
    oisF: F of the counts at each image's own best threshold (the lowest of equals). AP: see `average_precision`. A
    target of 255 does not count.

    Numbers of others differ:

    * The tolerance is 0.0075 for BSDS and PASCAL, 0.011 for NYUD; a number means little without it.
    * The original match solves an assignment of least distance with random extra edges, here it is one of most
      pairs, without chance; pooled precision, recall and F differ by about 0.1 (``benchmarks/edges.py``).
    * edgesEval reads predictions rounded to 8 bits, and interpolates between thresholds for odsF, which adds next to
      nothing to 99 of them.
    * The truth is one drawing and is not thinned. BSDS itself has several of an image.
    * Tolerance without a one-to-one match, no suppression, or a sigmoid of a sigmoid give quite other numbers.

    Args:
        max_distance: in image diagonals.
        exact: all 99 thresholds and all three numbers, or odsF alone over the thresholds 0.05, 0.10 … 0.95, which
            can only be lower, by some tenths of a point, and takes four fifths of the time.
        processes: worker processes that evaluate images; 0 for none, None for up to 8 where images have 100,000
            pixels or more. They change no number. A script that is not `fedmtl` itself must then have its code
            under ``if __name__ == "__main__":``.

    Raises:
        ValueError: `max_distance` is not positive or `processes` is negative.
    """

    higher_is_better = True
    full_state_update = False
    counts: Tensor
    best: Tensor

    def __init__(self, *, max_distance: float = 0.0075, exact: bool = True, processes: int | None = None) -> None:
        super().__init__()
        if not max_distance > 0:
            raise ValueError(f"max_distance must be positive, not {max_distance}")
        if processes is not None and processes < 0:
            raise ValueError(f"processes must be at least 0, not {processes}")
        self.exact = exact
        thresholds = THRESHOLDS if exact else COARSE_THRESHOLDS
        self._queue = ImageQueue(partial(boundary_counts, thresholds=thresholds, max_distance=max_distance), processes)
        self.add_state("counts", torch.zeros(3, len(thresholds), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("best", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Logits (B, 1, H, W) against 0/1 (B, 1, H, W); with worker processes it returns before they are done."""
        probability = output[:, 0].float().sigmoid().numpy(force=True)
        labels = target[:, 0].numpy(force=True)
        for image, label in zip(probability, labels, strict=True):
            self._add(self._queue.put((image, label == 1, label != 255)))

    def compute(self) -> dict[str, Tensor]:
        """``{"odsF"}``, with ``"oisF"`` and ``"AP"`` if exact."""
        counts = self.counts.numpy(force=True)
        numbers = {"odsF": f_measure(counts).max()}
        if self.exact:
            numbers |= {"oisF": f_measure(self.best.numpy(force=True)), "AP": average_precision(counts)}
        return {name: torch.tensor(100 * number, dtype=torch.float64) for name, number in numbers.items()}

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Waits for the worker processes, ends them, and sums over ranks; `compute` begins with it."""
        self._add(self._queue.drain())
        super().sync(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in any metric: updates, and computes the batch's own numbers."""
        self._add(self._queue.drain())
        return super().forward(*args, **kwargs)

    def reset(self) -> None:
        """Forgets every image, also those that are not evaluated yet."""
        self._queue.drain()
        super().reset()

    def __getstate__(self) -> dict[str, Any]:
        self._add(self._queue.drain())
        return super().__getstate__()

    def _add(self, images: Iterable[Counts]) -> None:
        for counts in images:
            best = counts[:, np.argmax(f_measure(counts))]
            self.counts += torch.from_numpy(counts).to(self.counts.device)
            self.best += torch.from_numpy(best).to(self.best.device)
