"""Exact magnitude selection and rescaling of one client's update (FedDEA, arXiv 2505.24185)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from numbers import Real
from typing import Literal, get_args

import numpy as np
import torch
from torch import BoolTensor, Tensor

Rescale = Literal["inverse", "none", "norm", "overlap"]

_BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16}
_BITS |= {torch.float32: torch.int32, torch.float64: torch.int64}
_Pass = tuple[int, int, int, np.ndarray, np.ndarray]

_BLOCK = 1 << 20  # entries worked on at a time, so that scratch memory stays in the cache
_SAMPLE = 1 << 17  # entries that tell roughly where the threshold lies


def kept_count(rho: float | Fraction, d: int) -> int:
    r"""Number of entries kept out of ``d``: :math:`\lceil \rho d \rceil`.

    ``rho`` stands for the decimal number it prints as: 0.1 of 30 entries is 3, whatever the binary product.

    Args:
        rho: Share of the entries to keep, in (0, 1]; ``Fraction(k, d)`` is a share of exactly ``k``.
        d: Number of entries, at least 0.

    Returns:
        The count: at least 1 for ``d >= 1``, and 0 for ``d == 0``.

    Raises:
        ValueError: ``rho`` is no number in (0, 1].

    Example:
        >>> kept_count(0.1, 30), kept_count(0.1, 31), kept_count(0.001, 5)
        (3, 4, 1)
    """
    given: object = rho  # callers without a type checker pass anything
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 < rho <= 1:
        raise ValueError(f"rho must be a number in (0, 1], got {rho!r}")
    return math.ceil(Fraction(str(rho)) * d)


def top_rho_mask(delta: Tensor, rho: float | Fraction) -> BoolTensor:
    r"""Mark the :math:`\lceil \rho d \rceil` entries of largest magnitude (FedDEA, arXiv 2505.24185).

    .. math:: m_j = 1 \iff j \text{ is among the first } \lceil \rho d \rceil \text{ by } (-|\Delta_j|, j)

    Entries of equal magnitude are taken in row-major order, lowest index first.

    Args:
        delta: Update of any shape and layout with ``d`` entries: float16, bfloat16, float32 or float64.
        rho: Share of the entries to keep, in (0, 1].

    Returns:
        Boolean mask of ``delta``'s shape, on its device, with ``kept_count(rho, d)`` entries True.

    Raises:
        ValueError: ``rho`` is no number in (0, 1], ``delta`` has another dtype, or holds NaN or infinity.

    Example:
        >>> top_rho_mask(torch.tensor([0.5, -3.0, 0.5, 0.1]), rho=0.5)
        tensor([ True,  True, False, False])
    """
    k = kept_count(rho, delta.numel())
    if delta.dtype not in _BITS:
        raise ValueError(f"update must be float16, bfloat16, float32 or float64, got {delta.dtype}")
    # Without their sign bit, floats order as integers do: -0.0 ties with 0.0, infinity and NaN come last.
    bits = delta.detach().contiguous().view(-1).view(_BITS[delta.dtype])
    infinity = int(torch.tensor(math.inf, dtype=delta.dtype).view(bits.dtype))
    select = _select_in_blocks if bits.device.type == "cpu" else _select_at_once
    mask = select(bits, k, infinity) if k else bits.bool()
    if mask is None:
        nan, infinite = int(delta.isnan().sum()), int(delta.isinf().sum())
        raise ValueError(f"update holds {nan} NaN and {infinite} infinite entries out of {delta.numel()}")
    return mask.view(delta.shape)  # type: ignore[return-value]


def rescale_masked(delta: Tensor, mask: Tensor, rho: float, rescale: Rescale = "inverse") -> Tensor:
    """Keep the marked entries and rescale them: :func:`decouple` for a caller who has the mask already.

    Args:
        delta: Finite update of any shape, floating point.
        mask: Boolean mask of ``delta``'s shape, as from :func:`top_rho_mask`.
        rho: Share of the entries that the mask keeps, in (0, 1].
        rescale: As for :func:`decouple`.

    Returns:
        New tensor of ``delta``'s shape, dtype and device, without a graph; dropped entries are +0.

    Raises:
        ValueError: ``rho`` or ``rescale`` is not an allowed one, or ``mask`` does not fit ``delta``.

    Example:
        >>> delta = torch.tensor([4.0, 1.0, -3.0, 0.0])
        >>> rescale_masked(delta, top_rho_mask(delta, 0.5), 0.5, "none")
        tensor([ 4.,  0., -3.,  0.])
    """
    kept_count(rho, 0)  # refuses a bad rho
    if rescale not in get_args(Rescale):
        raise ValueError(f"rescale must be one of {', '.join(get_args(Rescale))}, got {rescale!r}")
    if mask.dtype != torch.bool or mask.shape != delta.shape:
        got = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise ValueError(f"mask must be torch.bool of shape {tuple(delta.shape)}, got {got}")
    kept = delta.detach().masked_fill(~mask, 0)
    if rescale == "inverse":
        # Rounded to half precision, rho itself would be off by up to 0.4 %.
        return kept.div_(rho) if kept.element_size() > 2 else (kept.float() / rho).to(kept.dtype)
    if rescale == "norm" and kept.any():
        # Divided by the largest magnitude, squares neither overflow nor vanish.
        wide = torch.float32 if delta.is_mps else torch.float64  # which MPS does not have
        peak = delta.detach().abs().amax().to(wide)
        before, after = (torch.linalg.vector_norm(v.to(wide) / peak) for v in (delta.detach(), kept))
        return torch.mul(kept.to(wide), before / after).to(kept.dtype)
    return kept


def decouple(delta: Tensor, rho: float, rescale: Rescale = "inverse") -> Tensor:
    r"""Keep the top share of one client's update by magnitude, and rescale what is kept.

    With the mask :math:`m` of :func:`top_rho_mask`, the client sends (FedDEA, arXiv 2505.24185)

    .. math:: \tilde\Delta = m \odot \Delta / \rho

    - ``"inverse"``: the equation above.
    - ``"none"``: :math:`m \odot \Delta`.
    - ``"norm"``: :math:`m \odot \Delta \cdot \|\Delta\| / \|m \odot \Delta\|`; a zero update stays zero.
    - ``"overlap"``: :math:`m \odot \Delta` here; the server, where updates meet, divides each coordinate by
      the total weight of the clients that kept it. The mask has to travel along with the update, as a
      kept entry can be exactly zero: use :func:`top_rho_mask` and :func:`rescale_masked`.

    Args:
        delta: Update of any shape: float16, bfloat16, float32 or float64.
        rho: Share of the entries to keep, in (0, 1].
        rescale: One of the above.

    Returns:
        New tensor of ``delta``'s shape, dtype and device, without a graph. A scaled entry that this dtype
        cannot hold (beyond 65504 in float16) becomes infinite.

    Raises:
        ValueError: As :func:`top_rho_mask`, or ``rescale`` is not an allowed one.

    Example:
        >>> decouple(torch.tensor([4.0, 1.0, -3.0, 0.0]), rho=0.5)
        tensor([ 8.,  0., -6.,  0.])
    """
    return rescale_masked(delta, top_rho_mask(delta, rho), rho, rescale)


def _select_at_once(bits: Tensor, k: int, infinity: int) -> Tensor | None:
    """Mask of the ``k`` largest, on the tensor's own device; None if an entry is not finite."""
    bits = bits & torch.iinfo(bits.dtype).max
    if bits.max() >= infinity:
        return None
    threshold = bits.topk(k, sorted=False).values.min()
    mask, ties = bits > threshold, bits == threshold
    return mask | ties & (ties.cumsum(0) <= k - mask.sum())


def _select_in_blocks(bits: Tensor, k: int, infinity: int) -> Tensor | None:
    """Mask of the ``k`` largest, mostly in one pass over host memory; None if an entry is not finite.

    Cuts around the expected threshold divide the magnitudes into ranges. A pass tells whether the threshold
    lies in a range, above or below: a bad guess costs further passes but never changes the mask.
    """
    array = bits.numpy()
    mask = np.empty(len(array), dtype=np.bool_)  # from NumPy for its huge pages: first touch is cheap
    cuts, at = _cuts(array, k, infinity)
    while True:
        floor, ceiling = cuts[at], cuts[at + 1]
        peak, above, inside, where, magnitudes = _scan(array, mask, floor, ceiling)
        if peak >= infinity:
            return None
        if 0 <= (need := k - above) <= inside:
            break
        at += 1 if need < 0 else -1
    if ceiling - floor == 1:
        _fill_ties(array, mask, floor, need)
    elif need:
        threshold = np.partition(magnitudes, -need)[-need]
        larger = np.flatnonzero(magnitudes > threshold)
        ties = np.flatnonzero(magnitudes == threshold)[: need - len(larger)]
        mask[where[larger]] = mask[where[ties]] = True
    return torch.from_numpy(mask)


def _cuts(bits: np.ndarray, k: int, infinity: int) -> tuple[list[int], int]:
    """Cuts from 0 to infinity, dense around the ``k``-th largest magnitude, and which range to try first.

    They come from a sample at positions fixed by ``d``, 3 and 12 standard errors off the expected rank. Each
    one forms a range of its own, so that a value shared by many entries never crowds a wider range.
    """
    d = len(bits)
    if d <= _SAMPLE:
        return [0, 1, infinity], 1
    sample = bits.take(np.random.default_rng(0).integers(d, size=_SAMPLE)) & np.iinfo(bits.dtype).max
    rank, error = _SAMPLE * (1 - k / d), 1 + math.sqrt(_SAMPLE * k / d * (1 - k / d))
    ranks = [min(max(int(rank + z * error), 0), _SAMPLE - 1) for z in (-12, -3, 3, 12, 0)]
    *ends, middle = np.partition(sample, ranks)[ranks].tolist()
    cuts = sorted({0, infinity} | {cut for end in ends for cut in (end, end + 1) if cut < infinity})
    return cuts, min(bisect_right(cuts, middle), len(cuts) - 1) - 1


def _scan(bits: np.ndarray, mask: np.ndarray, floor: int, ceiling: int) -> _Pass:
    """Write ``magnitude >= ceiling`` to ``mask``; return the peak and the counts above and inside.

    The entries inside come by index and magnitude too, unless the range is one value, which may be crowded.
    """
    workers = min(torch.get_num_threads(), 1 + len(bits) // _BLOCK)
    ends = [len(bits) * i // workers for i in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:  # NumPy releases the interpreter lock in its loops
        parts = pool.map(lambda *ends: _scan_part(bits, mask, floor, ceiling, *ends), ends[:-1], ends[1:])
    peak, above, inside, where, magnitudes = zip(*parts, strict=True)
    return max(peak), sum(above), sum(inside), np.concatenate(where), np.concatenate(magnitudes)


def _scan_part(bits: np.ndarray, mask: np.ndarray, floor: int, ceiling: int, start: int, stop: int) -> _Pass:
    """Do the share of a pass from ``start`` to ``stop``."""
    peak = above = inside = 0
    where, magnitudes = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=bits.dtype)]
    within = np.empty(min(_BLOCK, -(-(stop - start) // 8) * 8), dtype=np.bool_)
    for span, block in _blocks(bits, start, stop):
        np.greater_equal(block, ceiling, out=mask[span])
        np.greater_equal(block, floor, out=within[: len(block)])
        within[: len(block)] ^= mask[span]
        within[len(block) :] = False
        peak = max(peak, int(block.max()))
        above += np.count_nonzero(mask[span])
        if ceiling - floor == 1:
            inside += np.count_nonzero(within)
            continue
        words = np.flatnonzero(within.view(np.uint64) != 0)  # True is rare: rule out eight entries at a time
        places = np.flatnonzero(within.view(np.uint64).take(words).view(np.bool_))
        index = words.take(places >> 3) * 8 + (places & 7)
        inside += len(index)
        where.append(index + span.start)
        magnitudes.append(block.take(index))
    return peak, above, inside, np.concatenate(where), np.concatenate(magnitudes)


def _fill_ties(bits: np.ndarray, mask: np.ndarray, value: int, need: int) -> None:
    """Mark the first ``need`` entries of magnitude ``value``."""
    for span, block in _blocks(bits, 0, len(bits)):
        if need <= 0:
            return
        ties = block == value
        if (count := np.count_nonzero(ties)) > need:
            ties[np.flatnonzero(ties)[need:]] = False
        mask[span] |= ties
        need -= count


def _blocks(bits: np.ndarray, start: int, stop: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Sign-free bits block by block, each overwritten by the next."""
    scratch = np.empty(_BLOCK, dtype=bits.dtype)
    for begin in range(start, stop, _BLOCK):
        span = slice(begin, min(begin + _BLOCK, stop))
        out = scratch[: span.stop - begin]
        yield span, np.bitwise_and(bits[span], np.iinfo(bits.dtype).max, out=out)
