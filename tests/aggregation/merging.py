"""A round's merge in one call, and updates to merge."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fedmtl.aggregation.base import Aggregator
from fedmtl.aggregation.update import PartUpdate


def merge(aggregator: Aggregator, updates: Any, weights: Sequence[float] | None = None) -> np.ndarray:
    """Merges arrays (K, d), or `PartUpdate`s, and returns the result in float64."""
    for k, update in enumerate(updates):
        if not isinstance(update, PartUpdate):
            update = PartUpdate(torch.from_numpy(np.array(update, dtype=np.float32)))
        aggregator.add(update, 1.0 if weights is None else weights[k])
    merged = aggregator.merge()
    assert merged is not None
    assert merged.dtype == torch.float32
    return merged.double().numpy()


def counting_at(values: Sequence[float], counted: Sequence[int]) -> PartUpdate:
    """An update that counts at some coordinates only, as DEA sends it with `rescale: overlap`."""
    mask = torch.tensor(counted, dtype=torch.bool)
    return PartUpdate(torch.tensor(values) * mask, mask=mask, overlap=True)


def normal(clients: int, d: int, seed: int = 0) -> np.ndarray:
    """Updates (K, d) that fp32 holds exactly, some conflicting."""
    return np.random.default_rng(seed).normal(size=(clients, d)).astype(np.float32)
