"""The edge metric: the same numbers with worker processes as without, whatever happens to them."""

import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmtl.boundaries.workers import _follow_parent, worthwhile_processes
from fedmtl.tasks.boundary_metric import BoundaryF

SIZE = (26, 34)


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    """Logits of 12 images and edges, some of them unknown, of which some lie by the logits' ridges."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (12, 1, *SIZE)).cumsum(-1).cumsum(-2) / 8
    target = (rng.random((12, 1, *SIZE)) < 0.1).astype(float)
    target[rng.random(target.shape) < 0.1] = 255
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(target, dtype=torch.float32)


@pytest.fixture
def metric() -> Iterator[BoundaryF]:
    metric = BoundaryF(max_distance=0.05, processes=2)
    yield metric
    metric.reset()  # ends the processes


def measure(metric: BoundaryF, output: Tensor, target: Tensor) -> dict[str, float]:
    for one, truth in zip(output.split(1), target.split(1), strict=True):
        metric.update(one, truth)
    return {name: float(value) for name, value in metric.compute().items()}


def alone(images: tuple[Tensor, Tensor]) -> dict[str, float]:
    return measure(BoundaryF(max_distance=0.05, processes=0), *images)


def test_worker_processes_change_no_number(images, metric: BoundaryF) -> None:
    expected = alone(images)
    assert measure(metric, *images) == expected
    metric.reset()
    assert measure(metric, *images) == expected
    assert 0 < expected["AP"] < expected["odsF"] <= expected["oisF"] < 100


def test_update_waits_for_no_image_until_many_are_waiting_and_compute_ends_the_processes(images) -> None:
    before = set(multiprocessing.active_children())
    metric = BoundaryF(max_distance=0.05, processes=1)
    assert set(multiprocessing.active_children()) == before
    for i in range(12):
        metric.update(images[0][i : i + 1], images[1][i : i + 1])
        assert len(metric._queue.waiting) == min(i + 1, 4)
    assert set(multiprocessing.active_children()) > before
    metric.compute()
    assert not metric._queue.waiting
    assert set(multiprocessing.active_children()) == before


def test_copies_and_pickles_have_what_was_still_waiting(images, metric: BoundaryF) -> None:
    metric.update(*images)
    copies = [pickle.loads(pickle.dumps(metric)), deepcopy(metric)]
    assert [measure(copy, images[0][:0], images[1][:0]) for copy in copies] == [alone(images)] * 2


def test_forward_gives_the_batch_s_number_and_keeps_the_whole(images, metric: BoundaryF) -> None:
    metric.update(images[0][:2], images[1][:2])
    for part in (slice(2, 5), slice(5, 12)):
        batch = images[0][part], images[1][part]
        assert {name: float(value) for name, value in metric(*batch).items()} == alone(batch)
    assert {name: float(value) for name, value in metric.compute().items()} == alone(images)


def test_reset_forgets_images_that_were_waiting(images, metric: BoundaryF) -> None:
    metric.update(*images)
    metric.reset()
    assert measure(metric, images[0][:3], images[1][:3]) == alone((images[0][:3], images[1][:3]))


def test_where_workers_are_killed_the_main_process_measures(
    images, metric: BoundaryF, caplog: pytest.LogCaptureFixture
) -> None:
    before = set(multiprocessing.active_children())
    metric.update(images[0][:2], images[1][:2])
    for worker in set(multiprocessing.active_children()) - before:
        os.kill(worker.pid, signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        assert measure(metric, images[0][2:], images[1][2:]) == alone(images)
    assert len([record for record in caplog.records if "have died" in record.message]) == 1


def test_a_worker_outlives_ctrl_c_but_not_its_parent() -> None:
    script = """if True:
        import multiprocessing, os, signal, sys, time
        import numpy as np
        from fedmtl.boundaries import ImageQueue, boundary_counts
        image = np.zeros((9, 9)), np.zeros((9, 9), bool), np.ones((9, 9), bool)
        queue = ImageQueue(boundary_counts, 1)
        queue.put(image)
        queue.waiting[0][0].result()
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGINT)
        queue.put(image)
        queue.waiting[1][0].result()
        print(worker.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    worker = int(result.stdout)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and is_alive(worker):
        time.sleep(0.05)
    assert not is_alive(worker)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # a zombie that nobody waits for is no longer alive
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_do_not_load_torch() -> None:
    code = "import pickle, sys; pickle.load(sys.stdin.buffer); sys.exit('torch' in sys.modules)"
    work = pickle.dumps((BoundaryF()._queue.evaluate, _follow_parent))
    assert subprocess.run([sys.executable, "-c", code], input=work, check=False).returncode == 0


def test_small_images_and_single_processors_have_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_processors(count: int, pixels: int) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)), raising=False)
        return worthwhile_processes(pixels)

    assert with_processors(64, 48 * 64) == 0
    assert with_processors(64, 425 * 560) == 8
    assert with_processors(3, 425 * 560) == 3
    assert with_processors(1, 425 * 560) == 0
