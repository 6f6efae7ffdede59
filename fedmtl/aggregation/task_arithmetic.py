"""Task arithmetic: the scaled sum of updates."""

import math

import torch
from torch import Tensor

from fedmtl.aggregation.base import Aggregator
from fedmtl.aggregation.update import PartUpdate


class TaskArithmetic(Aggregator):
    """λ Σ_k Δ_k, every update by the same factor (Ilharco et al. 2023, arXiv 2212.04089).

    The clients' weights do not enter; λ = 1/K is their uniform mean.

    Args:
        scale: λ, above 0. Tune it: with λ above 1/K the step is longer than the mean, with λ = 1 K times as long.

    Raises:
        ValueError: `scale` is not a finite number above 0.
    """

    def __init__(self, *, scale: float = 0.4) -> None:
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be a finite number above 0, not {scale}")
        self.scale = scale
        self._sum: Tensor | None = None

    def add(self, update: PartUpdate, weight: float) -> None:
        """Takes one client's update; raises ValueError as `check` does."""
        self.check(update)
        if self._sum is None:
            self._sum = torch.zeros_like(update.delta, dtype=torch.float32)
        self._sum.add_(update.delta, alpha=self.scale)

    def merge(self) -> Tensor | None:
        """The scaled sum (d,) in fp32."""
        merged, self._sum = self._sum, None
        return merged
