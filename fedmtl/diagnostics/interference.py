"""How the updates of a round meet: inner products of whole vectors; signs, masks and gains on sampled coordinates."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmtl.aggregation.update import PartUpdate
from fedmtl.vector import Layout

SAMPLE = 1 << 18  # coordinates that are looked at one by one; shares are then right within about 0.002
_BLOCK = 1 << 17  # entries of all vectors multiplied at a time: what fits a core's cache
_BLOCK_ELSEWHERE = 1 << 24  # few, large kernels


@dataclass(frozen=True)
class Observed:
    """One client's update of the encoder.

    Attributes:
        client: its name.
        raw: the update before the upload transforms, (d,).
        sent: what was sent.
        weight: its weight at the server, positive.
    """

    client: str
    raw: Tensor
    sent: PartUpdate
    weight: float

    @property
    def held(self) -> Tensor:
        """The entries that the client's model has, (d,) bool."""
        return torch.ones_like(self.raw, dtype=torch.bool) if self.sent.held is None else self.sent.held

    @property
    def kept(self) -> Tensor:
        """The entries that transforms kept, (d,) bool; all that it has where there is no mask."""
        return self.held if self.sent.mask is None else self.sent.mask

    def sampled(self) -> "Observed":
        """The same on at most `SAMPLE` equally spaced coordinates."""
        mask, held = (None if m is None else sampled(m) for m in (self.sent.mask, self.sent.held))
        sent = PartUpdate(sampled(self.sent.delta), mask=mask, overlap=self.sent.overlap, held=held)
        return Observed(self.client, sampled(self.raw), sent, self.weight)


def sampled(vector: Tensor) -> Tensor:
    """At most `SAMPLE` equally spaced entries of a vector (d,); all of a shorter one.

    Their distance shares no small factor with the widths of layers, or some channels would never be seen.
    """
    stride = -(-len(vector) // SAMPLE)
    while math.gcd(stride, 210) > 1:
        stride += 1
    return vector[::stride].contiguous()


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Quotient, and 0 where the denominator is 0."""
    return torch.where(whole == 0, 0.0, part / whole)


def products(vectors: Sequence[Tensor]) -> Tensor:
    """Inner products of K vectors (d,) on one device: (K, K), float64, on the host."""
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for span in _blocks(vectors[0], len(vectors)):
        rows = torch.stack([vector[span] for vector in vectors])
        total += _gram(rows.to(_wide(rows)))
    return total


def cosines(inner: Tensor) -> Tensor:
    """Cosines of the angles between vectors, from their inner products (K, K); 0 for a zero vector."""
    norms = inner.diagonal().sqrt()
    return share(inner, norms.outer(norms))


def conflicts(vectors: Sequence[Tensor]) -> Tensor:
    """Of the coordinates at which two of K vectors (n,) are nonzero, the share with opposite signs: (K, K), float64.

    0 where there are none.
    """
    signs = torch.stack(list(vectors)).sign()
    agreement, both = _gram(signs), _gram(signs.abs())
    return share((both - agreement) / 2, both)


def overlaps(masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """How masks meet.

    Args:
        masks: K masks (n,) bool, on one device.

    Returns:
        Entries that both of two masks keep, of those that at least one does, (K, K) float64, 0 for two empty ones;
        and the share of the coordinates that exactly n masks keep, for n = 0 … K, (K + 1,) float64.
    """
    rows = _zeros_and_ones(torch.stack(list(masks)))
    both = _gram(rows)
    sizes = both.diagonal()
    holders = rows.sum(0).long().bincount(minlength=len(masks) + 1).cpu().double()
    return share(both, sizes[:, None] + sizes - both), holders / rows.shape[1]


def kept_counts(mask: Tensor, layout: Layout) -> Tensor:
    """Entries that a mask (d,) keeps in each tensor of a layout: (tensors,), float64."""
    return torch.stack([piece.count_nonzero() for piece in torch.split(mask, layout.sizes)]).cpu().double()


def energy(vector: Tensor, mask: Tensor | None = None) -> float:
    """Σ v_j², over the marked entries only if there is a mask."""
    total = 0.0
    for span in _blocks(vector, 1):
        block = vector[span] if mask is None else vector[span] * _zeros_and_ones(mask[span])
        block = block.to(_wide(block))
        total += float(block.dot(block))
    return total


def gains(observed: Sequence[Observed]) -> tuple[float, float, float]:
    r"""What the weighted mean of what was sent makes of the updates, coordinate by coordinate.

    .. math:: G_j = \sum_k p_{kj} \frac{\tilde\Delta_{kj}}{\Delta_{kj}}, \qquad
              p_{kj} = \frac{w_k c_{kj}}{\sum_l w_l c_{lj}}

    with Δ the update before the upload transforms and Δ̃ what was sent, w the weight and c whether the client counts
    at this coordinate (`PartUpdate.counted`). A quotient is 0 where Δ is 0, and a gain is 0 where no client counts.
    FedAvg has gain 1 everywhere; FedDEA with 1/ρ has p_k/ρ where one client kept the coordinate, at most 1/ρ, and 0
    where none did. The server optimizer's learning rate is no part of it, and other aggregators may do otherwise.

    Returns:
        Mean, 95 % quantile and largest gain over the coordinates that at least one client's training moved; zeros
        if there are none.
    """
    raw = torch.stack([one.raw for one in observed])
    quotients = torch.stack([one.sent.delta for one in observed]).div_(raw).nan_to_num_(0, 0, 0)
    full = torch.ones_like(observed[0].raw, dtype=torch.bool)
    counted = torch.stack([full if one.sent.counted is None else one.sent.counted for one in observed])
    weights = torch.tensor([[one.weight] for one in observed], device=raw.device) * _zeros_and_ones(counted)
    gain = share((weights * quotients).sum(0), weights.sum(0))
    moved = gain[raw.abs_().amax(0) > 0].cpu().double().numpy()
    return (moved.mean(), np.quantile(moved, 0.95), moved.max()) if len(moved) else (0.0, 0.0, 0.0)


def _blocks(vector: Tensor, rows: int) -> Iterator[slice]:
    """Spans that cover a vector (d,), so small that a block of `rows` vectors stays in the cache."""
    size = max((_BLOCK if vector.device.type == "cpu" else _BLOCK_ELSEWHERE) // rows, 1)
    return (slice(start, min(start + size, len(vector))) for start in range(0, len(vector), size))


def _zeros_and_ones(mask: Tensor) -> Tensor:
    """A mask as fp32; by way of bytes, since torch converts these many times faster than bools."""
    return mask.view(torch.uint8).float()


def _wide(vector: Tensor) -> torch.dtype:
    """What sums are taken in: float64, but for MPS, which does not have it."""
    return torch.float32 if vector.is_mps else torch.float64


def _gram(rows: Tensor) -> Tensor:
    """Inner products of rows, on the host; counts below 2^24 are exact in fp32."""
    return (rows @ rows.T).cpu().double()
