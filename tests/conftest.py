"""Fixtures that several test folders share."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

if "PYTEST_XDIST_WORKER" in os.environ:  # each has a core to itself; torch reads this when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from .data.folder_files import BLOCKS
from .data.pascal_files import make_pascal


@pytest.fixture(scope="session")
def nyud_root(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a small folder in the exact layout of NYUD-v2; what the labels say can be seen in the colours.

    Each picture is a wall of class 0, 1 or 2 with a nearer panel of another class on it. The first row is
    unknown in every label but the edges. Each call makes a new folder, which a test may damage.
    """
    numbers = itertools.count()

    def make(*, train: int = 4, val: int = 2, size: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
        root = tmp_path_factory.mktemp("nyud") / f"NYUDv2_{next(numbers)}"
        for folder in ("images", "segmentation", "depth", "normals", "edge", "gt_sets"):
            (root / folder).mkdir(parents=True)
        ids = [f"{i:04}" for i in range(1, train + val + 1)]
        (root / "gt_sets" / "train.txt").write_text("".join(f"{i}\n" for i in ids[:train]))
        (root / "gt_sets" / "val.txt").write_text("".join(f"{i}\n" for i in ids[train:]))
        rng = np.random.default_rng(seed)
        colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
        directions = np.array([[0, 0, -1], [0.6, 0, -0.8], [0, -0.8, -0.6]])
        height, width = size
        for name in ids:
            back, front = rng.permutation(3)[:2]
            classes = np.full(size, back)
            top, left = rng.integers(1, height // 2), rng.integers(0, width // 2)
            panel = slice(top, top + height // 3), slice(left, left + width // 3)
            classes[panel] = front
            edge = np.zeros(size, bool)
            edge[panel] = True
            edge[top + 1 : top + height // 3 - 1, left + 1 : left + width // 3 - 1] = False
            depth = np.where(classes == front, 1.5, 3.0).astype(np.float32) + rng.random(dtype=np.float32)
            normals = np.rint((directions[classes] + 1) * 127.5).astype(np.uint8)
            segmentation = (classes + 1).astype(np.uint8)
            segmentation[0], depth[0], normals[0] = 0, 0, 127
            picture = np.clip(colours[classes] + rng.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(root / "images" / f"{name}.png")
            Image.fromarray(segmentation).save(root / "segmentation" / f"{name}.png")
            Image.fromarray(normals).save(root / "normals" / f"{name}.png")
            Image.fromarray(edge.astype(np.uint8) * 255).save(root / "edge" / f"{name}.png")
            np.save(root / "depth" / f"{name}.npy", depth)
        return root

    return make


@pytest.fixture(scope="session")
def pascal_root(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a small folder in the exact layout of PASCAL-Context, see `make_pascal`."""
    numbers = itertools.count()

    def make(**options: Any) -> Path:
        return make_pascal(tmp_path_factory.mktemp("pascal") / f"PASCALContext_{next(numbers)}", **options)

    return make


@pytest.fixture(scope="session")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that docs/data.md shows, and the worked example's images, made by the page's own script."""
    folder = tmp_path_factory.mktemp("page")
    for name, text in BLOCKS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    subprocess.run([sys.executable, "make_delta.py"], cwd=folder, check=True, timeout=120)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Fixes the number of threads, which results depend on in the last bit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_source() -> Callable[..., Any]:
    """Makes a data source of random pictures in memory, with depth and three classes.

    A train image whose number is in its attribute `poisoned` comes as NaN.
    """
    import torch

    from fedmtl.data import DataSource, TrainTransform, ValTransform
    from fedmtl.tasks import Depth, SemSeg

    class TinySource(DataSource):
        name = "tiny"

        def __init__(self, train: int, val: int, size: tuple[int, int], seed: int) -> None:
            self.tasks = {"depth": Depth(weight=0.5), "semseg": SemSeg(num_classes=3)}
            self.poisoned: set[int] = set()
            self.augment = TrainTransform(scale=None, photometric=False)
            self.train_transform, self.val_transform = self.transform, ValTransform()
            self.samples = {}
            for split, count in (("train", train), ("val", val)):
                rng = np.random.default_rng([seed, count])
                self.samples[split] = [
                    {
                        "image": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
                        "depth": rng.uniform(1, 4, size).astype(np.float32),
                        "semseg": rng.integers(0, 3, size).astype(np.uint8),
                    }
                    for _ in range(count)
                ]
                for sample in self.samples[split]:
                    sample["depth"][0], sample["semseg"][:, 0] = 0, 255  # unknown

        def ids(self, split: str) -> list[str]:
            return [str(i) for i in range(len(self.samples[split]))]

        def load(self, split: str, index: int, what: str) -> Any:
            return self.samples[split][index][what]

        def transform(self, sample: Any, tasks: Any, rng: np.random.Generator) -> Any:
            example = self.augment(sample, tasks, rng)
            if any(sample["image"] is self.samples["train"][i]["image"] for i in self.poisoned):
                example["image"] = torch.full_like(example["image"], torch.nan)
            return example

    def make(*, train: int = 8, val: int = 5, size: tuple[int, int] = (24, 32), seed: int = 0) -> TinySource:
        return TinySource(train, val, size, seed)

    return make


@pytest.fixture
def make_module(tiny_source: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a small client module for the tiny source's tasks; the same weights at every call."""
    import torch

    from fedmtl.client import ClientModule
    from fedmtl.models import UnifiedModel

    def make(
        *, backbone: str = "test_convnext", norm: Any = "group", drop_path: float = 0.0, tasks: Any = None
    ) -> ClientModule:
        tasks = tasks or tiny_source(train=1, val=1).tasks
        torch.manual_seed(0)
        heads = {name: task.channels for name, task in tasks.items()}
        options = {"drop_path_rate": drop_path}
        return ClientModule(UnifiedModel(heads, backbone=backbone, channels=8, norm=norm, options=options), tasks)

    return make
