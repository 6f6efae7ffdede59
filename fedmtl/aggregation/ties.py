"""TIES: trim, elect the sign, and average those that agree with it."""

import math

import numpy as np
import torch
from torch import Tensor

from fedmtl.aggregation.functional import top_rho_mask
from fedmtl.aggregation.stacked import StackedAggregator, by_columns
from fedmtl.aggregation.update import PartUpdate


class TIES(StackedAggregator):
    """Trim, elect sign, disjoint mean (Yadav et al. 2023, arXiv 2306.01708).

    Of each update only the entries of largest magnitude stay: τ_k. Coordinate by coordinate the sign of Σ w_k τ_k is
    elected, and the result is λ Σ w_k τ_k / Σ w_k over the clients with an entry of that sign. Zeros never count, so
    that it makes no difference whether a client sent a zero or nothing (`rescale: overlap`, smaller models). Where
    both signs have the same mass the result is 0.

    Args:
        density: share of all coordinates that each client keeps, in (0, 1].
        scale: λ, above 0.

    Raises:
        ValueError: `density` outside (0, 1], or `scale` is not a finite number above 0.
    """

    partial = True

    def __init__(self, *, density: float = 0.2, scale: float = 1.0) -> None:
        super().__init__()
        if not 0 < density <= 1:
            raise ValueError(f"density must be in (0, 1], not {density}")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be a finite number above 0, not {scale}")
        self.density = density
        self.scale = scale

    def _combine(self, updates: list[PartUpdate], weights: np.ndarray) -> Tensor:
        for update in updates:
            update.delta.masked_fill_(~top_rho_mask(update.delta, self.density), 0)

        def elect(block: Tensor, _: slice) -> Tensor:
            shares = torch.from_numpy(weights).to(block)
            signs = (shares @ block).sign()
            agreeing = block.mul_(signs).clamp_(min=0)  # magnitudes, 0 for the others
            weight = shares @ (agreeing > 0).double()
            return self.scale * signs * (shares @ agreeing) / weight.masked_fill_(weight == 0, 1)

        return by_columns(updates, elect)
