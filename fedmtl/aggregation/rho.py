"""Rules for ρ, the share of an update that DEA keeps: over rounds, by name, by kept energy."""

import math
from abc import ABC, abstractmethod
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fedmtl.aggregation.base import Sending
from fedmtl.aggregation.functional import kept_count

Shape = Literal["linear", "cosine"]


class Rho(ABC):
    """Says for each segment of an update (see `DEA`'s `scope`) what share of its entries is kept.

    Attributes:
        by_name: whether it goes by the segments' names, which tell nothing where the whole update is one segment.
    """

    by_name: bool = False

    @abstractmethod
    def __call__(self, name: str, values: Tensor, sending: Sending) -> float | Fraction:
        """ρ in (0, 1]; as `Fraction(k, d)` it keeps exactly k of d entries.

        Args:
            name: the segment's name, that of the tensor or block.
            values: the segment's update, (d,), finite; not to be changed.
            sending: whose update it is, and in which round.
        """


class ScheduledRho(Rho):
    """ρ goes from `start` in the first round to `end` in the last: ρ_t = start + (end − start)·w(x).

    x = (t − 1)/(T − 1) is the progress, w(x) = x (``linear``) or (1 − cos πx)/2 (``cosine``). Shares count as the
    decimal numbers that were written, so that both ends are exact, and so is a schedule that stands still.

    Args:
        start: ρ of round 1, in (0, 1].
        end: ρ of round T and all that follow, in (0, 1].
        shape: ``linear``, or ``cosine``, which is slow at both ends.
        rounds: T, at least 1; the rounds of the whole run by default.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, *, start: float, end: float, shape: Shape = "linear", rounds: int | None = None) -> None:
        _check_share("start", start)
        _check_share("end", end)
        if shape not in get_args(Shape):
            raise ValueError(f"shape must be one of {', '.join(get_args(Shape))}, not {shape!r}")
        if rounds is not None and rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {rounds}; leave it out for all rounds of the run")
        self.start = start
        self.end = end
        self.shape = shape
        self.rounds = rounds

    def __call__(self, name: str, values: Tensor, sending: Sending) -> Fraction:
        """ρ of the round, the same for all segments."""
        steps = max((self.rounds or sending.rounds) - 1, 1)
        progress = min(Fraction(sending.round - 1, steps), Fraction(1))
        if self.shape == "cosine":  # rounded, as the last digits depend on the machine
            progress = Fraction(str(round((1 - math.cos(math.pi * progress)) / 2, 12)))
        start, end = Fraction(str(self.start)), Fraction(str(self.end))
        return start + (end - start) * progress


class LayerRho(Rho):
    """ρ by the name of the tensor or block: that of the first pattern found in it.

    Args:
        rho_by_pattern: ρ in (0, 1] by pattern, tried in order. A pattern may lie anywhere in the name, and ``*``,
            ``?`` and ``[…]`` stand for what they do in file names: ``stages_0``, ``.bias``, ``stages_[01].*norm``.
        default: ρ where none is found, in (0, 1].

    Raises:
        ValueError: a ρ outside (0, 1].
    """

    by_name = True

    def __init__(self, *, rho_by_pattern: dict[str, float], default: float = 0.2) -> None:
        for pattern, rho in rho_by_pattern.items():
            _check_share(f"rho_by_pattern: {pattern}", rho)
        _check_share("default", default)
        self.rho_by_pattern = rho_by_pattern
        self.default = default

    def __call__(self, name: str, values: Tensor, sending: Sending) -> float:
        """ρ of the first pattern found in the name."""
        found = (rho for pattern, rho in self.rho_by_pattern.items() if fnmatchcase(name, f"*{pattern}*"))
        return next(found, self.default)


class EnergyRho(Rho):
    r"""Keeps as few entries as hold a share e of the energy: min k with :math:`\sum_{top\,k} Δ_j^2 ≥ e \|Δ\|^2`.

    So ρ = k/d, where 1/ρ says how concentrated the update is: flat updates keep much, sparse ones little.

    Args:
        energy: e, in (0, 1]; at 1 all entries that are not zero are kept.
        smallest: least ρ, in (0, 1], also that of an update of zeros. With `rescale: inverse` nothing is multiplied
            by more than 1/smallest.

    Raises:
        ValueError: an argument outside (0, 1].
    """

    def __init__(self, *, energy: float = 0.9, smallest: float = 0.01) -> None:
        _check_share("energy", energy)
        _check_share("smallest", smallest)
        self.energy = energy
        self.smallest = smallest

    def __call__(self, name: str, values: Tensor, sending: Sending) -> Fraction:
        """k/d for one segment; squares and their sums in float64, smallest first."""
        d = values.numel()
        if d == 0:
            return Fraction(1)
        least = kept_count(self.smallest, d)
        wide = values.detach().reshape(-1).to("cpu", torch.promote_types(values.dtype, torch.float32))
        dropped = np.square(np.sort(wide.abs().numpy()), dtype=np.float64)
        np.cumsum(dropped, out=dropped)  # energy of the 1, 2, … smallest
        allowed = float((1 - Fraction(str(self.energy))) * Fraction(dropped[-1]))
        return Fraction(max(d - int(np.searchsorted(dropped, allowed, side="right")), least), d)


def _check_share(key: str, value: float) -> None:
    try:
        kept_count(value, 0)
    except ValueError:
        raise ValueError(f"{key} must be a number in (0, 1], got {value!r}") from None
