"""Aggregators that need all updates of a round at once: they keep them, and work on some columns at a time."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cmp_to_key

import numpy as np
import torch
from torch import Tensor

from fedmtl.aggregation.base import Aggregator
from fedmtl.aggregation.update import PartUpdate
from fedmtl.gram import columns, combine, gram


class StackedAggregator(Aggregator):
    """Keeps a round's updates until they are merged: K·d numbers in fp32.

    They are merged in an order that their weights and entries give. So the order in which clients come changes
    nothing, not even where a method has to break a tie.
    """

    def __init__(self) -> None:
        self._received: list[tuple[float, PartUpdate]] = []

    def add(self, update: PartUpdate, weight: float) -> None:
        """Takes a copy of one client's update; raises ValueError as `check` does."""
        self.check(update)
        counted = update.counted
        delta = update.delta.detach().to(torch.float32, copy=True)
        self._received.append((weight, PartUpdate(delta, held=None if counted is None else counted.clone())))

    def merge(self) -> Tensor | None:
        """The merged update (d,) in fp32."""
        received, self._received = sorted(self._received, key=cmp_to_key(_compare)), []
        if not received:
            return None
        return self._combine([update for _, update in received], np.array([weight for weight, _ in received]))

    @abstractmethod
    def _combine(self, updates: list[PartUpdate], weights: np.ndarray) -> Tensor:
        """The merged update (d,) in fp32 of K ≥ 1 updates, which it may change, and their weights (K,)."""


class LinearCombination(StackedAggregator):
    """Σ a_k Δ_k, with coefficients that depend on the updates by their inner products alone."""

    def _combine(self, updates: list[PartUpdate], weights: np.ndarray) -> Tensor:
        deltas = [update.delta for update in updates]
        return combine(self.coefficients(gram(deltas), weights)[None], deltas)[0]

    @abstractmethod
    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The coefficients (K,) of the updates in the merged one.

        Args:
            gram: inner products ⟨Δ_i, Δ_j⟩, (K, K) in float64.
            weights: the clients' weights, unnormalised, (K,).
        """


def by_columns(updates: Sequence[PartUpdate], merge: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """The merged update (d,) in fp32, from a function that merges values (K, n) at some coordinates to (n,)."""
    merged = torch.empty_like(updates[0].delta)
    for span, block in columns([update.delta for update in updates]):
        merged[span].copy_(merge(block, span))
    return merged


def _compare(one: tuple[float, PartUpdate], other: tuple[float, PartUpdate]) -> int:
    """-1, 0 or 1: the lighter client first, among equals the one whose first differing entry is smaller."""
    if one[0] != other[0]:
        return -1 if one[0] < other[0] else 1
    for _, (a, b) in columns([one[1].delta, other[1].delta]):
        if not torch.equal(a, b):
            first = (a != b).nonzero()[0]
            return -1 if a[first] < b[first] else 1
    return 0
