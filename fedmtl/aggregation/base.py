"""The two families of plug-ins between clients and server: upload transforms and aggregators."""

from abc import ABC, abstractmethod

from torch import Tensor

from fedmtl.aggregation.update import PartUpdate
from fedmtl.vector import Layout


class UploadTransform(ABC):
    """Changes a client's update of the encoder before it is sent; a list of them applies in order."""

    @abstractmethod
    def __call__(self, update: PartUpdate, layout: Layout) -> PartUpdate:
        """The update to send instead.

        Args:
            update: a finite update; it may be changed in place.
            layout: where each tensor lies in the flat update.
        """


class Aggregator(ABC):
    """Merges the clients' updates of one part; one after the other, so that a running sum needs no more memory."""

    @abstractmethod
    def add(self, update: PartUpdate, weight: float) -> None:
        """Takes one client's update with its (unnormalised, positive) weight, in order of clients."""

    @abstractmethod
    def merge(self) -> Tensor | None:
        """The merged update (d,), None if none was added; the aggregator is empty afterwards."""
