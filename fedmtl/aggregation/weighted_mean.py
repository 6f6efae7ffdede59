"""The weighted mean of updates, FedAvg's aggregator, as a running sum."""

import torch
from torch import Tensor

from fedmtl.aggregation.base import Aggregator
from fedmtl.aggregation.update import PartUpdate


class WeightedMean(Aggregator):
    """Σ w_k Δ_k / Σ w_k, coordinate by coordinate.

    For updates that ask for it (`rescale: overlap`), or that come from a smaller model, a coordinate's denominator
    counts only the clients that kept it, or have it: Σ w_k m_k Δ_k / Σ w_k m_k, and 0 where no client did. All kinds
    may meet in one round.
    """

    partial = True

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._weight = torch.zeros(())  # of updates that count everywhere
        self._kept: Tensor | None = None  # (d,) weight of the clients that kept each coordinate

    def add(self, update: PartUpdate, weight: float) -> None:
        """Takes one client's update."""
        if self._sum is None:
            self._sum = update.delta.to(torch.float32) * weight
        else:
            self._sum.add_(update.delta, alpha=weight)
        self._weight = self._weight.to(self._sum.device)
        counted = update.counted
        if counted is not None:
            if self._kept is None:
                self._kept = torch.zeros_like(self._sum)
            self._kept.add_(counted, alpha=weight)
        else:
            self._weight.add_(weight)

    def sums(self, like: Tensor, *, partial: bool) -> list[Tensor]:
        """The running sums and weights, which add up over ranks; to be changed in place.

        Args:
            like: any vector (d,) on the device of the updates.
            partial: whether some updates, here or elsewhere, count at some coordinates only.
        """
        if self._sum is None:
            self._sum = torch.zeros_like(like, dtype=torch.float32)
        self._weight = self._weight.to(self._sum.device)
        if partial and self._kept is None:
            self._kept = torch.zeros_like(self._sum)
        return [self._sum, self._weight, *([self._kept] if self._kept is not None else [])]

    def merge(self) -> Tensor | None:
        """The mean (d,) in fp32."""
        merged = self._sum
        if merged is not None and self._kept is not None:
            weight = self._kept.add_(self._weight)
            merged.div_(weight.masked_fill_(weight == 0, 1))  # where nobody kept a coordinate the sum is 0
        elif merged is not None:
            merged = merged.div_(self._weight) if self._weight else None  # other ranks had nothing, either
        self._sum, self._weight, self._kept = None, torch.zeros(()), None
        return merged
