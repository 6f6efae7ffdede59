"""Coordinate-wise median and trimmed mean: robust to clients that send anything."""

import math
from abc import abstractmethod
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from fedmtl.aggregation.stacked import StackedAggregator, by_columns
from fedmtl.aggregation.update import PartUpdate


class OrderStatistic(StackedAggregator):
    """Mean of what is left at each coordinate without some of the largest and as many of the smallest values.

    Clients count alike whatever their weights, since a faulty one could claim any. With `rescale: overlap`, or
    smaller models, only the clients that count at a coordinate enter there; where none does the result is 0.
    """

    partial = True

    @abstractmethod
    def dropped(self, clients: int) -> int:
        """How many of so many values (at least 1) are left out at each end; under half of them."""

    def _combine(self, updates: list[PartUpdate], weights: np.ndarray) -> Tensor:
        clients = len(updates)
        dropped = torch.tensor([0, *(self.dropped(n) for n in range(1, clients + 1))])
        partial = [(k, counted) for k, update in enumerate(updates) if (counted := update.counted) is not None]

        def middle_of_all(block: Tensor, _: slice) -> Tensor:
            return _sort(block)[dropped[-1] : clients - dropped[-1]].mean(0)

        def middle(block: Tensor, span: slice) -> Tensor:
            absent = torch.zeros_like(block, dtype=torch.bool)
            for k, counted in partial:
                absent[k] = ~counted[span]
            values = _sort(block.masked_fill_(absent, math.inf))  # those that count come first
            counts = clients - absent.sum(0)
            drop = dropped.to(block.device)[counts]
            rank = torch.arange(clients, device=block.device)[:, None]
            outside = (rank < drop) | (rank >= counts - drop)
            return values.masked_fill_(outside, 0).sum(0) / (counts - 2 * drop).clamp_(min=1)

        return by_columns(updates, middle if partial else middle_of_all)


class CoordinateMedian(OrderStatistic):
    """Median of each coordinate, of an even number of clients the mean of the middle two (Yin et al. 2018).

    Source: arXiv 1803.01498. DEA with another rescale than ``overlap`` sends zeros that count as values here: the
    median is 0 wherever fewer than half of the clients kept a coordinate.
    """

    def dropped(self, clients: int) -> int:
        """All but the middle one or two."""
        return (clients - 1) // 2


class TrimmedMean(OrderStatistic):
    """Mean of each coordinate without its ⌊trim·K⌋ largest and smallest values (Yin et al. 2018, arXiv 1803.01498).

    Args:
        trim: share of the clients to leave out at each end, in [0, 0.5). Of fewer than 1/trim clients none is.

    Raises:
        ValueError: `trim` outside [0, 0.5).
    """

    def __init__(self, *, trim: float = 0.2) -> None:
        super().__init__()
        if not 0 <= trim < 0.5:
            raise ValueError(f"trim must be in [0, 0.5), not {trim}")
        self.trim = trim

    def dropped(self, clients: int) -> int:
        """⌊trim·K⌋, with trim as the decimal number that was written."""
        return math.floor(Fraction(str(self.trim)) * clients)


def _sort(values: Tensor) -> Tensor:
    """Sorts every column of (K, n) in place, and returns them.

    By exchanges of neighbours (odd-even transposition), each one vector operation: for the few rows of a round
    that is many times faster than `torch.sort` on columns.
    """
    for turn in range(len(values)):
        upper = values[turn % 2 + 1 :: 2]
        lower = values[turn % 2 : -1 : 2][: len(upper)]
        smaller = torch.minimum(lower, upper)
        torch.maximum(lower, upper, out=upper)
        lower.copy_(smaller)
    return values
