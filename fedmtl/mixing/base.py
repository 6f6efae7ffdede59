"""What a personalised merge gets of each client, and what it gives back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fedmtl.vector import Layout


@dataclass
class Exchange:
    """One client's part of a round.

    Attributes:
        client: the client's name.
        weight: its weight, positive and not normalised: its number of images, or the same for all.
        before: flat parameters (d,) by part, ``"encoder"`` or ``"heads.<head>"``, that it started the round from.
        updates: what it sent, (d,) by part after upload transforms; only the parts that it shares.
        layouts: names and shapes of the tensors of each part.
    """

    client: str
    weight: float
    before: dict[str, Tensor]
    updates: dict[str, Tensor]
    layouts: Mapping[str, Layout]

    def after(self, part: str) -> Tensor:
        """The part as the server sees it after local training, θ + Δ, (d,)."""
        return self.before[part] + self.updates[part]


class Mixing(ABC):
    """Merges a round's updates into new parameters for each of its clients."""

    @torch.no_grad()
    def mix(self, exchanges: Sequence[Exchange]) -> list[dict[str, Tensor]]:
        """New parameters by part of each client, in the order given; the parts are those that the client sent.

        Clients are merged in the order of their names, so that another order gives the same to the bit.

        Args:
            exchanges: the round's clients, each once; what they hold is finite and stays as it is.

        Raises:
            ValueError: a client is there twice.
        """
        order = sorted(range(len(exchanges)), key=lambda index: exchanges[index].client)
        ordered = [exchanges[index] for index in order]
        for one, other in pairwise(ordered):
            if one.client == other.client:
                raise ValueError(f"client {one.client} is there twice in one round; give each client a name of its own")
        mixed = self._mix(ordered)
        return [mixed[order.index(place)] for place in range(len(exchanges))]

    @abstractmethod
    def _mix(self, exchanges: list[Exchange]) -> list[dict[str, Tensor]]:
        """`mix` of clients in the order of their names."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from round to round, as plain containers and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - nothing to do without a memory
        """Goes on from a `state_dict`."""


def groups(exchanges: Sequence[Exchange]) -> dict[tuple[str, Layout], list[int]]:
    """Who can be merged: the clients that sent a part of the same name and layout, by both, in order."""
    found: dict[tuple[str, Layout], list[int]] = {}
    for index, exchange in enumerate(exchanges):
        for part in exchange.updates:
            found.setdefault((part, exchange.layouts[part]), []).append(index)
    return found


def check_range(name: str, value: float, low: float, high: float, *, ends: str = "[]") -> None:
    """Refuses a number outside an interval.

    Args:
        name: the argument's name, for the message.
        value: what was given.
        low: lower end.
        high: upper end.
        ends: which ends belong to it, as in ``"[)"``.

    Raises:
        ValueError: it lies outside, or is NaN.
    """
    inside = (low <= value if ends[0] == "[" else low < value) and (value <= high if ends[1] == "]" else value < high)
    if not inside:
        raise ValueError(f"{name} must be in {ends[0]}{low:g}, {high:g}{ends[1]}, not {value!r}")
