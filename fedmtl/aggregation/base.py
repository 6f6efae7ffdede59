"""The two families of plug-ins between clients and server: upload transforms and aggregators."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from fedmtl.aggregation.update import PartUpdate
from fedmtl.seeding import numpy_stream
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
        place: which of the run's transforms this is, from 0, so that each draws random numbers of its own.
        memory: what the transform keeps for this client from round to round, by name. It puts new tensors in and
            never changes old ones, which count again if the server refuses the update.
    """

    layout: Layout
    client: str = ""
    round: int = 1
    rounds: int = 1
    seed: int = 0
    place: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)

    def stream(self, purpose: str) -> np.random.Generator:
        """Random numbers for this client, round and transform."""
        return numpy_stream(self.seed, purpose, self.client, self.round, *([self.place] if self.place else []))


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
        fewest: clients that a round must have for it to make sense.
    """

    partial: bool = False
    fewest: int = 1

    def check(self, update: PartUpdate) -> None:
        """Refuses what this aggregator can't merge.

        Raises:
            ValueError: the update counts at some coordinates only, which this aggregator can't tell apart.
        """
        if update.counted is not None and not self.partial:
            raise ValueError(
                f"{type(self).__name__} takes only updates that count at every coordinate, "
                "not those of rescale: overlap or of smaller models"
            )

    @abstractmethod
    def add(self, update: PartUpdate, weight: float) -> None:
        """Takes one client's update with its (unnormalised, positive) weight, in order of clients."""

    @abstractmethod
    def merge(self) -> Tensor | None:
        """The merged update (d,), None if none was added; the aggregator is empty afterwards."""
