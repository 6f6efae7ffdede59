"""Metrics that several ranks measure together, to the same bits as one alone."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_sum

from fedmtl.engine.ranks import Ranks

T = TypeVar("T")
Sums = dict[tuple[str, str], Tensor]  # states by names of metric and state


class Tally:
    """Deals batches out to ranks, and puts what they measured together.

    Whole numbers add up to the same in any order. Sums of fractions don't: each batch's are kept apart, and
    added in the order of batches. A metric with states that are no sums is measured by every rank on everything.

    Args:
        metrics: the metrics; they are empty.
        ranks: who measures; None is this process alone.
    """

    def __init__(self, metrics: Mapping[str, Metric], ranks: Ranks | None) -> None:
        self.metrics = dict(metrics)
        self.ranks = ranks
        self._shared = ranks is not None and ranks.world > 1 and all(map(_is_sums, self.metrics.values()))
        for metric in self.metrics.values():
            metric.distributed_available_fn = None  # torchmetrics itself would add up what other ranks measured
        self._batches: list[list[Sums]] = []  # this rank's sums of fractions, of each batch's pieces

    def share(self, batches: Sequence[T]) -> Sequence[T]:
        """This rank's batches."""
        return batches[self.ranks.rank :: self.ranks.world] if self._shared and self.ranks else batches

    def start_batch(self) -> None:
        """The next pieces are of a new batch."""
        self._batches.append([])

    def end_piece(self) -> None:
        """Notes a piece's sums of fractions."""
        if self._shared:
            self._batches[-1].append(self._take(fractions=True))

    def join(self) -> None:
        """Gives every rank's metrics the sums of all; with one rank there is nothing to do."""
        if not self._shared or self.ranks is None:
            return
        for metric in self.metrics.values():
            metric.sync(should_sync=False)  # waits for what worker processes still measure
        everybody = self.ranks.gather((self._take(fractions=False), self._batches))
        counts = [whole for whole, _ in everybody]
        # rank r has batches r, r + world, r + 2 world, …
        rounds = range(max(len(batches) for _, batches in everybody))
        fractions = [sums for i in rounds for _, batches in everybody if i < len(batches) for sums in batches[i]]
        for sums in (*counts, *fractions):
            for (name, state), value in sums.items():
                total = getattr(self.metrics[name], state)
                total.add_(value.to(total.device))

    def _take(self, *, fractions: bool) -> Sums:
        """States of one kind; they start from zero again."""
        found: Sums = {}
        for name, metric in self.metrics.items():
            for state, value in metric.metric_state.items():
                if isinstance(value, Tensor) and value.is_floating_point() == fractions:
                    found[name, state] = value.to("cpu", copy=True)  # others may have it on other devices
                    value.zero_()
        return found


def _is_sums(metric: Metric) -> bool:
    """Whether all states of an empty metric are sums that start from zero."""
    reductions = metric._reductions
    states = metric.metric_state.items()
    return all(
        isinstance(value, Tensor) and reductions[name] is dim_zero_sum and not value.any() for name, value in states
    )
