"""Batches of views, decoded by worker processes that live as long as the run."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from fedmtl.data.source import DataSource, Example, Split, View, example
from fedmtl.seeding import derive_seed, numpy_stream
from fedmtl.stopping import stand_by

Key = tuple[int, int]  # position in a view, seed of its augmentation


class SeededBatches:
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


class StoredOrder:
    """All images in their stored order."""

    def __init__(self, size: int, batch_size: int) -> None:
        self.size, self.batch_size = size, batch_size

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, self.size, self.batch_size):
            yield [(i, 0) for i in range(start, min(start + self.batch_size, self.size))]


class Loader:
    """Makes batches of any views of some data sets.

    Worker processes start at the first call and then serve all others, whichever client or split these are for: a
    request says all that a worker needs to know. Batches do not depend on the number of workers.

    Args:
        workers: number of worker processes; 0 decodes in this one.
        pin: whether batches are put into pinned memory, from where a GPU takes them faster.
    """

    def __init__(self, *, workers: int = 0, pin: bool = False) -> None:
        self.workers, self.pin = workers, pin
        self._sources: list[DataSource] = []
        self._loader: DataLoader[Example] | None = None
        self._requests = _Requests()

    def __call__(self, batches: Iterable[tuple[View, list[Key]]]) -> Iterator[list[Example]]:
        """Batches in the order asked for, each as stacked examples of equal shapes: one piece if all images are alike.

        The iterator of an earlier call is of no use any more.
        """
        wanted = list(batches)
        new = [view.source for view, _ in wanted if not any(view.source is known for known in self._sources)]
        if new or self._loader is None:
            self._sources += [source for i, source in enumerate(new) if not any(source is s for s in new[:i])]
            self._loader = DataLoader(
                _Examples(list(self._sources)),
                batch_sampler=self._requests,
                num_workers=self.workers,
                pin_memory=self.pin,
                persistent_workers=self.workers > 0,
                worker_init_fn=stand_by,
                collate_fn=pieces,
                generator=torch.Generator(),  # else its seed is drawn from the generator that dropout uses
            )
        number = {id(source): i for i, source in enumerate(self._sources)}
        self._requests.batches = [
            [
                Request(number[id(view.source)], view.split, view.indices[i], view.names, seed, view.input)
                for i, seed in keys
            ]
            for view, keys in wanted
        ]
        return iter(self._loader)

    def close(self) -> None:
        """Ends the worker processes; the next call starts new ones."""
        self._loader = None


class Request(NamedTuple):
    """One example that is wanted, see `example`."""

    source: int
    split: Split
    image: int
    names: Mapping[str, str]
    seed: int
    input: str


class _Requests(Sampler[list[Request]]):
    """What the loader is to make next; read anew at each start of its iteration."""

    def __init__(self) -> None:
        self.batches: list[list[Request]] = []

    def __iter__(self) -> Iterator[list[Request]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Examples(Dataset[Example]):
    def __init__(self, sources: list[DataSource]) -> None:
        self.sources = sources

    def __getitem__(self, request: Request) -> Example:
        return example(self.sources[request.source], *request[1:])


def pieces(examples: list[Example]) -> list[Example]:
    """Stacks neighbours of the same shapes (and window), so that images of different sizes need no padding."""

    def form(one: Example) -> tuple[object, ...]:
        window = one.get("window", torch.empty(0))
        return (*(value.shape for value in one.values()), *window.tolist())

    return [default_collate(list(alike)) for _, alike in groupby(examples, key=form)]
