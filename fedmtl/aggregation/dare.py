"""DARE, an upload transform: drop entries at random and rescale the rest (arXiv 2311.03099)."""

from numbers import Real

import torch

from fedmtl.aggregation.base import Sending, UploadTransform
from fedmtl.aggregation.functional import rescale_masked
from fedmtl.aggregation.update import PartUpdate


class DARE(UploadTransform):
    """Δ̃ = m ⊙ Δ / (1 − p) with m_j ~ Bernoulli(1 − p), independently: E[Δ̃] = Δ (Yu et al. 2024, arXiv 2311.03099).

    Which entries go depends on the seed, the client and the round alone.

    Args:
        drop: p, the probability that an entry is dropped, in [0, 1); 0 is plain FedAvg.

    Raises:
        ValueError: `drop` is no number in [0, 1).
    """

    def __init__(self, *, drop: float = 0.9) -> None:
        given: object = drop  # callers without a type checker pass anything
        if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= drop < 1:
            raise ValueError(f"drop must be a number in [0, 1), got {drop!r}")
        self.drop = drop

    def __call__(self, update: PartUpdate, sending: Sending) -> PartUpdate:
        """Drops and rescales, and notes in the mask what is left of what was sent so far."""
        delta = update.delta
        uniform = sending.stream("dare").random(delta.shape)
        mask = torch.from_numpy(uniform >= self.drop).to(delta.device)
        update.delta = rescale_masked(delta, mask, 1 - self.drop)
        update.mask = mask if update.mask is None else mask & update.mask
        return update
