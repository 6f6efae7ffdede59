"""Evaluates images in worker processes; neither they nor this module load torch."""

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from numpy.typing import NDArray

from fedmtl.boundaries.evaluation import Counts

logger = logging.getLogger(__name__)
Image = tuple[NDArray[np.floating], NDArray[np.bool_], NDArray[np.bool_]]  # probability, truth, known; each (H, W)


class ImageQueue:
    """Evaluates images in worker processes, of which it waits for none before many are waiting.

    Args:
        evaluate: what to do with an image.
        processes: number of worker processes, None for as many as pay.
    """

    def __init__(self, evaluate: Callable[..., Counts], processes: int | None) -> None:
        self.evaluate, self.processes = evaluate, processes
        self.pool: ProcessPoolExecutor | None = None
        self.waiting: deque[tuple[Future[Counts], Image]] = deque()

    def put(self, image: Image) -> list[Counts]:
        """Takes an image; gives the counts of any that are done."""
        processes = worthwhile_processes(image[0].size) if self.processes is None else self.processes
        if not processes:
            return [self.evaluate(*image)]
        if self.pool is None:
            context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
            self.pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_follow_parent)
        try:
            self.waiting.append((self.pool.submit(self.evaluate, *image), image))
        except BrokenProcessPool:
            return [self._alone(image)]
        return [self._next() for _ in range(len(self.waiting) - 4 * processes)]

    def drain(self) -> list[Counts]:
        """Waits for all images and ends the processes; gives the counts of all that were not given yet."""
        counts = [self._next() for _ in range(len(self.waiting))]
        if self.pool is not None:
            self.pool.shutdown()
            self.pool = None
        return counts

    def _next(self) -> Counts:
        future, image = self.waiting.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            return self._alone(image)

    def _alone(self, image: Image) -> Counts:
        if self.processes != 0:
            logger.warning("the processes that measure edges have died; the main process measures instead")
        self.processes = 0
        return self.evaluate(*image)


def worthwhile_processes(pixels: int) -> int:
    """Worker processes that pay for images of so many pixels: none for small ones, else up to 8."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if pixels < 100_000 or available < 2 or multiprocessing.current_process().daemon:
        return 0
    return min(8, available)


def _follow_parent() -> None:
    """Lets a worker end with its parent alone: not by Ctrl-C, which a terminal sends to both, but also after a kill."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]  # a worker has one
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
