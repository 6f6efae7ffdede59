"""The two families of plug-ins between clients and server: upload transforms and aggregators."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from fedmtl.aggregation.update import PartUpdate
from fedmtl.vector import Layout


@dataclass
class Sending:
    """What an upload transform knows of the client whose update it changes.

    Attributes:
        layout: where each tensor lies in the flat update.
        client: the client's name.
        round: number of the round, from 1.
        rounds: rounds of the whole run.
        seed: the run's seed.
        memory: what the transform keeps for this client from round to round, by name. It puts new tensors in and
            never changes old ones, which count again if the server refuses the update.
    """

    layout: Layout
    client: str = ""
    round: int = 1
    rounds: int = 1
    seed: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)


class UploadTransform(ABC):
    """Changes a client's update before it is sent; a list of them applies in order.

    Attributes:
        part: what it sees: the update of the ``encoder``, or of the whole ``model``, encoder and heads as one vector.
        overlap: whether it asks the aggregator to count a client only at the coordinates that the client sent.
    """

    part: Literal["encoder", "model"] = "encoder"
    overlap: bool = False

    @abstractmethod
    def __call__(self, update: PartUpdate, sending: Sending) -> PartUpdate:
        """The update to send instead.

        Args:
            update: a finite update; it may be changed in place.
            sending: whose update it is, and what is known from earlier rounds.
        """


class Aggregator(ABC):
    """Merges the clients' updates of one part; one after the other, so that a running sum needs no more memory.

    Attributes:
        partial: whether it takes updates that count at some coordinates only (`PartUpdate.counted`).
    """

    partial: bool = False

    @abstractmethod
    def add(self, update: PartUpdate, weight: float) -> None:
        """Takes one client's update with its (unnormalised, positive) weight, in order of clients."""

    @abstractmethod
    def merge(self) -> Tensor | None:
        """The merged update (d,), None if none was added; the aggregator is empty afterwards."""
