"""The processes of a job, as one of them sees them: who it is, and what it can exchange with the others."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fedmtl.errors import UserError

# how long a rank waits for another, which may train for hours while this one has no client; one that has ended is
# noticed by its connection
TIMEOUT = timedelta(days=7)


class LostRank(UserError):
    """Another process of the job has ended."""


@contextmanager
def together() -> Iterator[None]:
    """An exchange that fails does so because another process has ended.

    Raises:
        LostRank: it failed.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].rpartition("] ")[2]
        raise LostRank(
            f"another process of the job has ended, see its own message ({reason}); --resume auto goes on from the "
            "last checkpoint"
        ) from error


class Ranks:
    """All processes of the job; one that runs alone exchanges with itself, at no cost.

    Every method that exchanges must be called by all of them, in the same order.

    Attributes:
        rank: number of this process, from 0.
        world: how many there are.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    @property
    def leads(self) -> bool:
        """Whether this is the one that logs and saves."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all have come here."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with together():
            dist.all_gather_object(values, value)
        return values

    def share(self, value: Any, source: int = 0) -> Any:
        """The value that `source` has."""
        if self.world == 1:
            return value
        values = [value]
        with together():
            dist.broadcast_object_list(values, src=source)
        return values[0]

    def share_bytes(self, data: np.ndarray | bytes | None, size: int, source: int) -> np.ndarray:
        """A block of bytes that `source` has, and of which all know the size."""
        if source != self.rank:
            block = torch.empty(size, dtype=torch.uint8)
        else:
            block = torch.from_numpy(np.frombuffer(data, np.uint8).copy() if isinstance(data, bytes) else data)
        if self.world > 1:
            with together():
                dist.broadcast(block, src=source)
        return block.numpy()

    def add(self, vector: Tensor) -> Tensor:
        """The sum of everybody's vector, in place, on its device."""
        if self.world > 1:
            with together():
                dist.all_reduce(vector)
        return vector

    def leave(self) -> None:
        """Ends the connection, so that none waits for this process any more."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


class Team:
    """Ranks that share one client's batches: each takes every n-th image, gradients are averaged over all images.

    Args:
        ranks: numbers of its members, in order; every rank of the job makes every team, also those it is not in.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = list(ranks)
        self._group: Any = None
        if self.size > 1:
            with together():
                self._group = dist.new_group(self.ranks, timeout=TIMEOUT)

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.ranks)

    def combine(self, parameters: Iterable[nn.Parameter], images: int) -> None:
        """Makes the gradients those of the mean over the images of all members, of which this one had `images`."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        one = gradients[0].new_ones(1)
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), one]).mul_(images)
        with together():
            dist.all_reduce(flat, group=self._group)
        *means, _ = torch.split(flat.div_(flat[-1].clone()), [*(g.numel() for g in gradients), 1])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def mean(self, values: Iterable[Tensor]) -> None:
        """Puts the mean over the members in the place of each value."""
        for value in values:
            if value.is_floating_point():
                with together():
                    dist.all_reduce(value.div_(self.size), group=self._group)
