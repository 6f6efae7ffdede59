"""How a data set's training images are shared out among clients."""

from abc import ABC, abstractmethod

import numpy as np


class Partition(ABC):
    """Cuts the images of a train split into shards, one a client."""

    @abstractmethod
    def split(self, size: int, shards: int, rng: np.random.Generator) -> list[list[int]]:
        """`shards` lists of image indices out of range(size), disjoint, none empty (`size` >= `shards`)."""


class IID(Partition):
    """A random permutation of the images, cut into equal parts; sizes differ by one at most."""

    def split(self, size: int, shards: int, rng: np.random.Generator) -> list[list[int]]:
        """Disjoint shards that cover all images."""
        return [sorted(part.tolist()) for part in np.array_split(rng.permutation(size), shards)]
