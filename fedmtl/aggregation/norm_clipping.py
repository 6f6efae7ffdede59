"""Norm clipping: no update counts for more than a given length."""

import math
from dataclasses import replace

import numpy as np
from torch import Tensor

from fedmtl.aggregation.stacked import StackedAggregator
from fedmtl.aggregation.update import PartUpdate
from fedmtl.aggregation.weighted_mean import WeightedMean
from fedmtl.gram import columns


class NormClipping(StackedAggregator):
    """`WeightedMean` of Δ_k · min(1, C / ‖Δ_k‖) (Sun et al. 2019, arXiv 1911.07963).

    Args:
        max_norm: C, above 0; None for the median of the round's norms, so that it follows training.

    Raises:
        ValueError: `max_norm` is not a finite number above 0.
    """

    partial = True

    def __init__(self, *, max_norm: float | None = None) -> None:
        super().__init__()
        if max_norm is not None and not 0 < max_norm < math.inf:
            raise ValueError(f"max_norm must be a finite number above 0, or null for the median, not {max_norm}")
        self.max_norm = max_norm

    def _combine(self, updates: list[PartUpdate], weights: np.ndarray) -> Tensor:
        blocks = columns([update.delta for update in updates])
        norms = np.sqrt(sum(block.square().sum(1).cpu().numpy() for _, block in blocks))
        limit = float(np.median(norms)) if self.max_norm is None else self.max_norm
        mean = WeightedMean()
        for update, norm, weight in zip(updates, norms, weights, strict=True):
            clipped = update.delta * (limit / norm) if norm > limit else update.delta
            mean.add(replace(update, delta=clipped), float(weight))
        merged = mean.merge()
        assert merged is not None
        return merged
