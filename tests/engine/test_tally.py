"""Metrics that ranks measure together are those of one alone, to the bit."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import CatMetric, MaxMetric, MeanMetric, Metric, SumMetric

from fedmtl.engine.tally import Tally
from fedmtl.tasks import Depth, Edge, Normals, Parts, Saliency, SemSeg

Piece = dict[str, tuple[Tensor, Tensor]]  # outputs and targets, by task
TASKS = {
    "depth": Depth(),
    "edge": Edge(),
    "normals": Normals(),
    "parts": Parts(num_classes=7),
    "saliency": Saliency(),
    "semseg": SemSeg(num_classes=3),
}


class Threads:
    """The ranks of a job as threads of this process."""

    def __init__(self, rank: int, world: int, barrier: Barrier, table: dict[int, Any]) -> None:
        self.rank, self.world, self._barrier, self._table = rank, world, barrier, table

    def gather(self, value: Any) -> list[Any]:
        self._table[self.rank] = value
        self._barrier.wait(30)
        return [self._table[rank] for rank in range(self.world)]


def on_threads(world: int, work: Callable[[Any], Any]) -> list[Any]:
    """What each rank's work gives."""
    barrier, table = Barrier(world), {}
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(work, [Threads(rank, world, barrier, table) for rank in range(world)]))


def piece(images: int, size: tuple[int, int], seed: int) -> Piece:
    """Random outputs for some images of one size, with numbers whose sums are rounded."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(images, *shape, *size, generator=rng)

    def classes(count: int, *shape: int) -> Tensor:
        return torch.randint(count, (images, *shape, *size), generator=rng)

    return {
        "depth": (draw(1) + 2, draw(1).abs() + 1),
        "edge": (draw(1), classes(2, 1)),
        "normals": (draw(3), torch.nn.functional.normalize(draw(3), dim=1)),
        "parts": (draw(7), classes(7)),
        "saliency": (draw(2), classes(2)),
        "semseg": (draw(3), classes(3)),
    }


@pytest.fixture(scope="module")
def batches() -> list[list[Piece]]:
    """Fifteen batches, of which some have images of several sizes."""
    sizes = [[(2, (9, 12))], [(1, (7, 30)), (2, (9, 12))], [(3, (9, 12))], [(1, (16, 8)), (1, (7, 30))], [(1, (9, 9))]]
    return [[piece(*one, seed=10 * i + j) for j, one in enumerate(batch)] for i, batch in enumerate(3 * sizes)]


def measure(batches: Sequence[list[Piece]], ranks: Any, metrics: dict[str, Metric]) -> tuple[dict[str, Any], int]:
    """The numbers, and how many batches it took here."""
    tally = Tally(metrics, ranks)
    mine = tally.share(batches)
    for batch in mine:
        tally.start_batch()
        for one in batch:
            for name, metric in metrics.items():
                metric.update(*one[name])
            tally.end_piece()
    tally.join()
    found = {name: metric.compute() for name, metric in metrics.items()}
    flat = {f"{task}/{key}": float(v) for task, numbers in found.items() for key, v in numbers.items()}
    return flat, len(mine)


def fresh() -> dict[str, Metric]:
    return {name: task.metric() for name, task in TASKS.items()}


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")  # of ranks without a batch
@pytest.mark.parametrize("world", [2, 3, 17])
def test_every_task_is_measured_as_by_one(world: int, batches: list[list[Piece]]) -> None:
    alone, all_batches = measure(batches, None, fresh())
    assert all_batches == len(batches)
    assert {key.split("/")[0] for key in alone} == set(TASKS)
    everybody = on_threads(world, lambda ranks: measure(batches, ranks, fresh()))
    for numbers, _ in everybody:
        assert numbers == alone
    assert [count for _, count in everybody] == [len(range(rank, len(batches), world)) for rank in range(world)]


def test_fractions_are_added_in_the_order_of_batches() -> None:
    def work(ranks: Any) -> float:
        metric = SumMetric()
        tally = Tally({"values": metric}, ranks)
        for value in tally.share([1e8, 1.0, -1e8, 1.0]):  # in fp32 1; rank by rank it would be 2
            tally.start_batch()
            metric.update(value)
            tally.end_piece()
        tally.join()
        return float(metric.compute())

    assert on_threads(2, work) == [1.0, 1.0]


class Offset(SumMetric):
    """A sum that does not start from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sum_value", torch.tensor(5.0), dist_reduce_fx="sum")


@pytest.mark.parametrize(("kind", "expected"), [(CatMetric, [1, 3, 2]), (MaxMetric, 3), (MeanMetric, 2), (Offset, 11)])
@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_metrics_of_all_kinds_measure_everything_once(kind: Any, expected: Any) -> None:
    def work(ranks: Any) -> Any:
        metric = kind()
        tally = Tally({"values": metric}, ranks)
        for value in tally.share([1.0, 3.0, 2.0]):
            tally.start_batch()
            metric.update(value)
            tally.end_piece()
        tally.join()
        return metric.compute().tolist()

    assert on_threads(2, work) == [expected, expected]


def test_edges_that_worker_processes_measure_arrive(batches: list[list[Piece]]) -> None:
    only = [[{"edge": one["edge"]} for one in batch] for batch in batches]
    alone, _ = measure(only, None, {"edge": Edge(processes=0).metric()})
    everybody = on_threads(2, lambda ranks: measure(only, ranks, {"edge": Edge(processes=1).metric()}))
    assert [numbers for numbers, _ in everybody] == [alone, alone]
