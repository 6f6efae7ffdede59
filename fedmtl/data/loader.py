"""Batches of a view: in a seeded order for training, in the stored order for evaluation."""

from collections.abc import Iterable, Iterator

from torch.utils.data import DataLoader, Sampler

from fedmtl.data.source import Example, View
from fedmtl.seeding import derive_seed, numpy_stream

Key = tuple[int, int]  # position in a view, seed of its augmentation


class SeededBatches(Sampler[list[Key]]):
    """One epoch: a shuffled order and a seed for each image's augmentation, both from `keys` alone.

    Args:
        size: number of images.
        batch_size: images a batch; a last, smaller batch is left out if there is a full one.
        seed: the run's seed.
        keys: what the epoch is, e.g. (client, round, epoch).
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, keys: tuple[int | str, ...]) -> None:
        self.size, self.batch_size = size, min(batch_size, size)
        self.seed, self.keys = seed, keys

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        order = numpy_stream(self.seed, "shuffle", *self.keys).permutation(self.size)
        first = derive_seed(self.seed, "augment", *self.keys)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield [(int(i), first + int(i)) for i in order[start : start + self.batch_size]]


class StoredOrder(Sampler[list[Key]]):
    """All images in their stored order."""

    def __init__(self, size: int, batch_size: int) -> None:
        self.size, self.batch_size = size, batch_size

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, self.size, self.batch_size):
            yield [(i, 0) for i in range(start, min(start + self.batch_size, self.size))]


def batches(view: View, order: Iterable[list[Key]], *, workers: int = 0, pin: bool = False) -> DataLoader[Example]:
    """A loader whose batches do not depend on the number of worker processes."""
    return DataLoader(view, batch_sampler=order, num_workers=workers, pin_memory=pin)
