"""How the updates of a round meet coordinate by coordinate: products, signs, masks and the gain of their mean."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmtl.aggregation.update import PartUpdate
from fedmtl.vector import Layout

_BLOCK = 1 << 17  # entries of all clients worked on at a time: what fits a core's cache
_BLOCK_ELSEWHERE = 1 << 24  # few, large kernels; counts of this many entries are still exact in fp32
SAMPLE = 1 << 16  # coordinates from which quantiles and histograms are read


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
    def kept(self) -> Tensor:
        """The entries that transforms kept, (d,) bool; all where there is no mask."""
        return torch.ones_like(self.raw, dtype=torch.bool) if self.sent.mask is None else self.sent.mask


@dataclass(frozen=True)
class Meeting:
    """How K vectors meet: all arrays are (K, K), float64, on the host.

    Attributes:
        products: inner products.
        both: coordinates at which both are nonzero.
        opposite: those of them with opposite signs.
    """

    products: Tensor
    both: Tensor
    opposite: Tensor

    @property
    def cosine(self) -> Tensor:
        """Cosines of the angles between the vectors; 0 for a zero vector."""
        norms = self.products.diagonal().sqrt()
        return share(self.products, norms.outer(norms))

    @property
    def conflict(self) -> Tensor:
        """Of the coordinates at which both are nonzero, the share with opposite signs; 0 where there are none."""
        return share(self.opposite, self.both)


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Quotient, and 0 where the denominator is 0."""
    return torch.where(whole == 0, 0.0, part / whole)


def meeting(vectors: Sequence[Tensor]) -> Meeting:
    """How vectors of equal length meet.

    Args:
        vectors: K vectors (d,), on one device.
    """
    k = len(vectors)
    products, both, agreement = (torch.zeros(k, k, dtype=torch.float64) for _ in range(3))
    for span in blocks(vectors[0], k):
        rows = torch.stack([vector[span] for vector in vectors])
        signs = rows.sign()
        nonzero = signs.abs()
        products += _products(rows.to(wide(rows)))
        agreement += _products(signs)
        both += _products(nonzero)
    return Meeting(products, both, (both - agreement) / 2)


def masks_meeting(masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """How masks meet.

    Args:
        masks: K masks (d,) bool, on one device.

    Returns:
        Entries that both of two masks keep, and on the diagonal those that one keeps, (K, K) float64; and how many
        coordinates exactly n masks keep, for n = 0 … K, (K + 1,) float64.
    """
    k = len(masks)
    common, holders = torch.zeros(k, k, dtype=torch.float64), torch.zeros(k + 1, dtype=torch.float64)
    for span in blocks(masks[0], k):
        rows = zeros_and_ones(torch.stack([mask[span] for mask in masks]))
        common += _products(rows)
        holders += rows.sum(0).long().bincount(minlength=k + 1).cpu()
    return common, holders


def tensor_counts(mask: Tensor, layout: Layout) -> Tensor:
    """Entries that a mask (d,) keeps in each tensor of a layout: (tensors,), float64."""
    return torch.stack([piece.count_nonzero() for piece in torch.split(mask, layout.sizes)]).cpu().double()


def energy(vector: Tensor, mask: Tensor | None = None) -> float:
    """Σ v_j², over the marked entries only if there is a mask."""
    total = 0.0
    for span in blocks(vector, 1):
        block = vector[span] if mask is None else vector[span] * zeros_and_ones(mask[span])
        block = block.to(wide(block))
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
        if there are none. The quantile is read from about 65,000 equally spaced coordinates, NaN if none of them moved.
    """
    raw = [one.raw for one in observed]
    sent = [one.sent.delta for one in observed]
    counted = [one.sent.counted for one in observed]
    weights = torch.tensor([one.weight for one in observed], dtype=torch.float64)
    shares = (weights / weights.sum()).to(raw[0].device, raw[0].dtype)[:, None]
    partial = any(mask is not None for mask in counted)
    everywhere = torch.ones((), dtype=torch.bool, device=raw[0].device).expand(raw[0].shape)
    total, largest, moved = 0.0, -math.inf, 0
    sample = []
    for span in blocks(raw[0], len(raw)):
        before = torch.stack([vector[span] for vector in raw])
        trained = before.sign().abs()
        after = torch.stack([vector[span] for vector in sent])
        quotients = after.mul_(trained).div_(before + (1 - trained))  # 0 where an update is 0
        if partial:
            weight = shares * zeros_and_ones(torch.stack([everywhere[span] if m is None else m[span] for m in counted]))
            gain = share((weight * quotients).sum(0), weight.sum(0))
        else:
            gain = (shares * quotients).sum(0)
        alive = trained.amax(0) > 0
        total += float(gain.sum(dtype=wide(gain)))
        moved += int(alive.count_nonzero())
        largest = max(largest, float(gain.where(alive, -math.inf).max()))
        chosen = sampled(span, raw[0].numel())
        sample.append(gain[chosen][alive[chosen]])
    if not moved:
        return 0.0, 0.0, 0.0
    seen = torch.cat(sample)
    return total / moved, float(seen.quantile(0.95)) if len(seen) else math.nan, largest


def blocks(vector: Tensor, rows: int) -> Iterator[slice]:
    """Spans that cover a vector (d,), so small that a block of `rows` vectors stays in the cache."""
    size = max((_BLOCK if vector.device.type == "cpu" else _BLOCK_ELSEWHERE) // rows, 1)
    return (slice(start, min(start + size, vector.numel())) for start in range(0, vector.numel(), size))


def sampled(span: slice, d: int) -> slice:
    """Those of at most `SAMPLE` equally spaced coordinates of a vector (d,) that lie in a span, counted from its start.

    Their distance shares no small factor with the widths of layers, or some channels would never be seen.
    """
    stride = -(-d // SAMPLE)
    while math.gcd(stride, 210) > 1:
        stride += 1
    return slice(-span.start % stride, span.stop - span.start, stride)


def zeros_and_ones(mask: Tensor) -> Tensor:
    """A mask as fp32; by way of bytes, since torch converts these many times faster than bools."""
    return mask.view(torch.uint8).float()


def wide(vector: Tensor) -> torch.dtype:
    """What sums are taken in: float64, but for MPS, which does not have it."""
    return torch.float32 if vector.is_mps else torch.float64


def _products(rows: Tensor) -> Tensor:
    return (rows @ rows.T).cpu().double()
