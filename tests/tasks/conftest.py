"""Every task, and random batches of each whose unknown pixels are known to the test and not asked of the library."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmtl.tasks import Depth, Edge, Normals, Parts, Regression, Saliency, SemSeg, Task


@dataclass
class Batch:
    """Raw outputs and targets of n images, where the targets are known, and outputs that say exactly the target."""

    output: Tensor
    target: Tensor
    known: NDArray[np.bool_]  # (n, H, W)
    perfect: Tensor


@pytest.fixture(
    params=[
        *(SemSeg(num_classes=6), Parts(num_classes=4), Saliency()),
        *(Depth(), Normals(), Edge(max_distance=0.2), Regression()),
    ],
    ids=lambda task: task.name,
)
def task(request: pytest.FixtureRequest) -> Task:
    return request.param


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    def make(task: Task, *, n: int = 3, size: tuple[int, int] = (7, 9), seed: int = 0, unknown: float = 0.3) -> Batch:
        rng = np.random.default_rng(seed)
        known = rng.random((n, *size)) >= unknown
        output = rng.normal(0, 2, (n, task.channels, *size))
        if task.name == "depth":
            target = rng.uniform(0.2, 9.5, (n, 1, *size))
            target[~known[:, None]] = rng.choice([0, 80, 100], np.count_nonzero(~known))
            output = np.abs(target + output)
            perfect = target.copy()
        elif task.name == "regression":
            target = rng.normal(0, 1, (n, 1, *size))
            target[~known[:, None]] = rng.choice([np.inf, -np.inf, np.nan], np.count_nonzero(~known))
            perfect = target.copy()
        elif task.name == "normals":
            target = rng.normal(0, 1, (n, 3, *size))
            target /= np.linalg.norm(target, axis=1, keepdims=True)
            target *= np.where(known, 1, rng.choice([0, 0.01, 0.09], known.shape))[:, None]
            perfect = 3 * target
        elif task.name == "edge":
            truth = rng.random((n, 1, *size)) < 0.3
            target = np.where(known[:, None], truth, 255)
            perfect = np.where(truth, 50.0, -50.0)
        else:
            truth = rng.integers(0, task.channels, known.shape)
            target = np.where(known, truth, 255)
            perfect = 100.0 * (truth[:, None] == np.arange(task.channels)[:, None, None])
        perfect = np.where(known[:, None], perfect, output)  # what it says of the unknown is noise
        is_class = target.ndim == 3
        return Batch(
            torch.tensor(output, dtype=torch.float32),
            torch.tensor(target, dtype=torch.int64 if is_class else torch.float32),
            known,
            torch.tensor(perfect, dtype=torch.float32),
        )

    return make
