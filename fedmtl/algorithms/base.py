"""What changes a client's round, at the client's end and at the server's; the plain case, FedAvg, changes nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from fedmtl.vector import FlatPart

Vectors = dict[str, Tensor]  # flat, by part name
Message = dict[str, Vectors]  # what is sent beside the model, by name


@dataclass(frozen=True)
class Phase:
    """One stretch of a client's local training.

    Attributes:
        name: unique in a round; the optimizer state of each phase is kept apart.
        epochs: passes over the client's images.
        trains: the parts that move.
        moves: False where gradients are only looked at.
        personal: whether it trains the client's own model, which is not sent, in place of the received one.
    """

    name: str
    epochs: int
    trains: Literal["model", "encoder", "heads"] = "model"
    moves: bool = True
    personal: bool = False

    def has(self, part: str) -> bool:
        """Whether a part moves."""
        return self.trains == "model" or (part == "encoder") == (self.trains == "encoder")


@dataclass
class LocalRound:
    """A client's round as its algorithm sees it.

    Attributes:
        parts: the client's parts of the resident model.
        start: their values at the start of the round.
        shared: names of the parts that are sent.
        received: what the server sent beside the model.
        kept: what the algorithm keeps for this client from round to round; it puts new vectors in and never changes
            old ones, which count again if the server refuses the update.
        scratch: what it notes for the rest of this round.
        phase: the phase that is going on.
        optimizer: the optimizer of this phase.
    """

    parts: Mapping[str, FlatPart]
    start: Vectors
    shared: frozenset[str]
    received: Message = field(default_factory=dict)
    kept: Message = field(default_factory=dict)
    scratch: dict[str, Any] = field(default_factory=dict)
    phase: Phase = Phase("train", 1)
    optimizer: Optimizer | None = None

    def pairs(self, vectors: Mapping[str, Tensor]) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter that this phase trains, with its piece of `vectors`; parts that are not there are left out."""
        for name, vector in vectors.items():
            if self.phase.has(name):
                part = self.parts[name]
                yield from zip(part.parameters, part.layout.views(vector), strict=True)

    def of_shared(self, vectors: Mapping[str, Tensor]) -> Vectors:
        """The vectors of the parts that are sent."""
        return {name: vector for name, vector in vectors.items() if name in self.shared}


class ServerRule:
    """The server's end of an algorithm. The base class changes nothing.

    Attributes:
        partial: whether it can do with updates that count at some coordinates only.
    """

    partial: bool = True

    def start(self, holders: Mapping[str, float]) -> None:
        """Called once, with the summed weights of all clients that share each part."""

    def broadcast(self) -> Message:
        """What goes to the clients beside the model."""
        return {}

    def receive(self, parts: Mapping[str, Tensor], message: Message, weight: float) -> None:
        """Takes a client's updates by part and what it sent beside them; nothing that is broadcast changes yet."""

    def apply(self, merged: Vectors) -> None:
        """Changes the merged updates, by part, in place before the server moves, and ends the round."""

    def state_dict(self) -> dict[str, Any]:
        """What it keeps between rounds."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`."""


class LocalAlgorithm:
    """A rule for a client's round. The base class is FedAvg: plain local training.

    Attributes:
        personal: whether each client ends with a model of its own, which is then what is measured.
        sends_vectors: whether it exchanges more than updates, for which all clients need one architecture.
    """

    personal: bool = False
    sends_vectors: bool = False

    def check(self, share: str) -> None:
        """Raises ValueError where the algorithm makes no sense with what clients share (`share` of the experiment)."""

    def phases(self, epochs: int) -> list[Phase]:
        """The stretches of a client's round that has this many local epochs."""
        return [Phase("train", epochs)]

    def correct_gradients(self, run: LocalRound) -> None:
        """Called between backward pass and optimizer step; changes the parameters' gradients in place."""

    def finish(self, run: LocalRound, updates: Vectors) -> Message:
        """Called after the last step on the received model.

        Args:
            run: the round.
            updates: local minus global values of the shared parts; may be changed in place.

        Returns:
            What is sent beside them.
        """
        return {}

    def server(self) -> ServerRule:
        """A fresh server's end."""
        return ServerRule()


class FedAvg(LocalAlgorithm):
    """Plain local training (McMahan et al. 2017, arXiv 1602.05629)."""
