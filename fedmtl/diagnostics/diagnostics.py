"""The diagnostics of a round: updates are observed client by client, and measured after the server's step."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, takewhile
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fedmtl.aggregation.update import PartUpdate
from fedmtl.diagnostics.interference import (
    Observed,
    conflicts,
    cosines,
    energy,
    gains,
    kept_counts,
    overlaps,
    products,
    share,
)
from fedmtl.vector import Layout

_DECADES = (-12, 3)  # range of log10 |Δ| in the histogram of magnitudes
_BINS = 30


class Diagnostics:
    """Measures every n rounds how the clients' updates of the encoder interfere: numbers under ``diag/``.

    Numbers of each client k (``<key>/<client>``) and of each pair (``<key>/<a>~<b>``) come with their mean (``<key>``).
    Of the updates Δ before the upload transforms, with θ the server's encoder before and θ' after the round:

    - ``cosine`` of two updates; ``sign_conflict``: of the coordinates that both move, the share with opposite signs.
    - ``norm``: ‖Δ_k‖; ``step_cosine``: cosine of Δ_k and the server's step, that is, whom the step serves.
    - ``step``: ‖θ' − θ‖ / ‖θ‖; ``drift``: mean over clients of ‖(θ + Δ_k) − θ'‖ / ‖θ'‖.

    Where upload transforms change updates:

    - ``sent_cosine``, ``sent_sign_conflict``: the same of what is sent.
    - ``gain/mean``, ``gain/p95``, ``gain/max``: effective gain of a coordinate, see `gains`.

    Where they keep only the entries of a mask m (a client without one keeps all):

    - ``kept``: share of the entries that it has; ``kept_energy``: ‖m_k ⊙ Δ_k‖² / ‖Δ_k‖².
    - ``mask_share/<stage>``: share of the entries of that stage of the backbone.
    - ``mask_overlap`` of two masks: entries that both keep, of those that at least one does (Jaccard).
    - ``held_by/<n>``: share of the coordinates that exactly n masks keep.

    Sign conflicts, overlaps, ``held_by``, gains and what is sent are read from at most 262,144 equally spaced
    coordinates, all others from the whole vectors. Quotients whose denominator is 0 count as 0. With one client there
    are no pairs and none of their keys.

    Args:
        every: rounds between measurements.
        clients_in_row: with more clients than this a row has only means and no ``held_by``, so that it stays short.

    Raises:
        ValueError: an argument is not positive.
    """

    def __init__(self, *, every: int = 10, clients_in_row: int = 8) -> None:
        for key, value in {"every": every, "clients_in_row": clients_in_row}.items():
            if value < 1:
                raise ValueError(f"diagnostics.{key} must be at least 1, not {value}")
        self.every, self.clients_in_row = every, clients_in_row
        self._observed: list[Observed] = []

    def due(self, round: int) -> bool:
        """Whether a round (from 1) is measured."""
        return round % self.every == 0

    def observe(self, client: str, raw: Tensor, sent: PartUpdate, weight: float) -> None:
        """Takes one client's update of the encoder, which the server accepted.

        The tensors are kept until `measure`, not copied, and must not be changed until then.

        Args:
            client: its name.
            raw: the update before the upload transforms, (d,), finite; `sent.delta` itself where there are none.
            sent: what was sent, finite.
            weight: its weight at the server, positive.
        """
        self._observed.append(Observed(client, raw, sent, weight))

    @torch.no_grad()
    def measure(self, layout: Layout, before: Tensor, after: Tensor) -> tuple[dict[str, float], dict[str, Any]]:
        """Measures what was observed, and forgets it.

        Args:
            layout: where each tensor lies in the encoder's vector.
            before: the server's encoder at the start of the round, (d,).
            after: the same after the server's step, (d,).

        Returns:
            Numbers for the round's row, and all of them without regard to `clients_in_row` as plain containers for a
            line of JSON: ``whole`` (numbers), ``clients`` (names), ``each`` (a list over clients by key), ``pairs``
            (a matrix over clients by key), ``held_by``, ``tensors`` (names and sizes), ``mask_share`` (a list over
            tensors for each client), ``magnitudes`` (for each client how many of the sampled coordinates have log10 |Δ|
            between ``edges``; the ends count what lies outside, zeros too).
            Both are empty if nothing was observed.
        """
        observed, self._observed = self._observed, []
        if not observed:
            return {}, {}
        sample = [one.sampled() for one in observed]
        numbers = _Numbers()
        _movement(numbers, observed, sample, before, after)
        if any(one.sent.delta is not one.raw for one in observed):
            _sending(numbers, sample)
        if any(one.sent.mask is not None for one in observed):
            _masks(numbers, observed, sample, layout)
        names = [one.client for one in observed]
        return numbers.row(names, few=len(names) <= self.clients_in_row), numbers.details(names, layout)


@dataclass
class _Numbers:
    """Numbers by key: of the whole round, of each client (K,), of each pair (K, K); and what goes to details only."""

    whole: dict[str, float] = field(default_factory=dict)
    each: dict[str, Tensor] = field(default_factory=dict)
    pairs: dict[str, Tensor] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def row(self, names: Sequence[str], *, few: bool) -> dict[str, float]:
        """One flat row."""
        row = {key: value for key, value in self.whole.items() if few or not key.startswith("held_by/")}
        for key, values in self.each.items():
            row[key] = float(values.mean())
            if few:
                row |= {f"{key}/{name}": float(value) for name, value in zip(names, values, strict=True)}
        couples = list(combinations(range(len(names)), 2))
        for key, matrix in self.pairs.items() if couples else ():
            cells = {f"{key}/{names[a]}~{names[b]}": float(matrix[a, b]) for a, b in couples}
            row[key] = fmean(cells.values())
            row |= cells if few else {}
        return {f"diag/{key}": value for key, value in row.items()}

    def details(self, names: Sequence[str], layout: Layout) -> dict[str, Any]:
        """Everything, in plain containers."""
        tensors = {"names": list(layout.names), "sizes": layout.sizes}
        found = {"whole": self.whole, "each": self.each, "pairs": self.pairs, **self.more}
        return {"clients": list(names), "tensors": tensors, **_plain(found)}


def _movement(
    numbers: _Numbers, observed: Sequence[Observed], sample: Sequence[Observed], before: Tensor, after: Tensor
) -> None:
    """What training and the server's step moved."""
    inner = products([*(one.raw for one in observed), after - before])
    squares = inner.diagonal()
    size_before, size_after = (torch.tensor(energy(vector)).sqrt() for vector in (before, after))
    # ‖Δ − s‖² = ‖Δ‖² − 2⟨Δ, s⟩ + ‖s‖² with s the server's step
    distance = (squares - 2 * inner[-1] + squares[-1]).clamp(min=0).sqrt()[:-1]
    numbers.whole["step"] = float(share(squares[-1].sqrt(), size_before))
    numbers.whole["drift"] = float(share(distance.mean(), size_after))
    numbers.each["norm"] = squares[:-1].sqrt()
    numbers.each["step_cosine"] = cosines(inner)[-1, :-1]
    numbers.pairs["cosine"] = cosines(inner)[:-1, :-1]
    numbers.pairs["sign_conflict"] = conflicts([one.raw for one in sample])
    logs = [one.raw.float().cpu().abs().log10().clamp(*_DECADES) for one in sample]
    counts = torch.stack([log.histc(_BINS, *_DECADES).long() for log in logs])
    numbers.more["magnitudes"] = {"edges": torch.linspace(*_DECADES, _BINS + 1), "counts": counts}


def _sending(numbers: _Numbers, sample: Sequence[Observed]) -> None:
    """What upload transforms made of it."""
    sent = [one.sent.delta for one in sample]
    numbers.pairs |= {"sent_cosine": cosines(products(sent)), "sent_sign_conflict": conflicts(sent)}
    for key, value in zip(("mean", "p95", "max"), gains(sample), strict=True):
        numbers.whole[f"gain/{key}"] = float(value)


def _masks(numbers: _Numbers, observed: Sequence[Observed], sample: Sequence[Observed], layout: Layout) -> None:
    """Which entries they kept."""
    overlap, holders = overlaps([one.kept for one in sample])
    counts = torch.stack([kept_counts(one.kept, layout) for one in observed])
    energies = torch.tensor([energy(one.raw, one.kept) for one in observed], dtype=torch.float64)
    held = torch.stack([kept_counts(one.held, layout) for one in observed])
    numbers.pairs["mask_overlap"] = overlap
    numbers.whole |= {f"held_by/{n}": float(value) for n, value in enumerate(holders)}
    numbers.each["kept"] = share(counts.sum(1), held.sum(1))
    numbers.each["kept_energy"] = share(energies, numbers.each["norm"].square())
    for stage, members in _stages(layout.names).items():
        numbers.each[f"mask_share/{stage}"] = share(counts[:, members].sum(1), held[:, members].sum(1))
    numbers.more |= {"held_by": holders, "mask_share": share(counts, held)}


def _stages(names: Sequence[str]) -> dict[str, list[int]]:
    """Which tensors make up each top-level stage, e.g. ``stages_0``, ``layer1`` or ``blocks.2``, by its name."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    above = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))  # common to all, as "body"
    stages: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        stage = re.match(r"[^.\d]*(\.?\d+)?", ".".join(name.split(".")[above:]))
        stages.setdefault(stage.group() if stage else name, []).append(index)
    return stages


def _plain(tree: Any) -> Any:
    """Tensors as lists, and numbers at five digits."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, Tensor):
        return _plain(tree.tolist())
    if isinstance(tree, list):
        return [_plain(value) for value in tree]
    return float(f"{tree:.5g}") if isinstance(tree, float) else tree
