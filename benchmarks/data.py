"""How fast images come: each stage alone, batches by number of workers, and how long training waits for them.

    python benchmarks/data.py                 # a synthetic set of 425×560, made on the spot
    python benchmarks/data.py --root NYUDv2

Files are in the operating system's memory after the first pass, so the disk is not measured. Times are the least of
several passes that take turns, in one thread; figures in brackets are speed against the first line of a block.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fedmtl.client import ClientModule
from fedmtl.data import NYUDv2, TrainTransform, View
from fedmtl.data.loader import Loader, SeededBatches
from fedmtl.models import UnifiedModel


def synthetic(root: Path, count: int, size: tuple[int, int] = (425, 560)) -> Path:
    """A set in the layout of NYUDv2: smooth pictures with a camera's noise, and smooth labels."""
    rng = np.random.default_rng(0)

    def smooth(cells: int = 12) -> np.ndarray:
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        return np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC))

    for folder in ("images", "segmentation", "depth", "normals", "edge", "gt_sets"):
        (root / folder).mkdir()
    names = [f"{i:04}" for i in range(1, count + 2)]
    for name in names:
        colours = np.clip(smooth() + rng.normal(0, 3, (*size, 3)), 0, 255).astype(np.uint8)
        classes = smooth()[..., 0] // 7 + 1
        edges = np.where(np.diff(classes, axis=1, append=0) != 0, 255, 0).astype(np.uint8)
        pictures = {"images": colours, "segmentation": classes, "normals": smooth(), "edge": edges}
        for folder, picture in pictures.items():
            Image.fromarray(picture).save(root / folder / f"{name}.png")
        np.save(root / "depth" / f"{name}.npy", smooth()[..., 0].astype(np.float32) / 64 + 0.5)
    (root / "gt_sets" / "train.txt").write_text("\n".join(names[:-1]))
    (root / "gt_sets" / "val.txt").write_text(names[-1])
    return root


def seconds(runs: dict[str, Callable[[], object]], passes: int = 3) -> dict[str, float]:
    """The least time of each run, after one to warm up; they take turns, so that other load hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(passes + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: min(times[1:]) for name, times in taken.items()}


def block(title: str, count: int, times: dict[str, float]) -> None:
    print(f"\n{title}")
    first = next(iter(times.values()))
    for name, time_ in times.items():
        print(f"  {name:<22}{1e3 * time_ / count:>9.2f} ms{count / time_:>10.1f} images/s   ({first / time_:.2f}×)")


def every(count: int, act: Callable[[int], object]) -> None:
    for i in range(count):
        act(i)


def decoding(sources: dict[str, NYUDv2], count: int) -> None:
    """Each kind of file with and without a cache, and whole training examples."""
    tasks = list(sources["none"].tasks)
    for what in ("image", *tasks):
        loads = {f"cache {name}": partial(sources[name].load, "train", what=what) for name in ("none", "disk")}
        runs = {name: partial(every, count, load) for name, load in loads.items()}
        block(f"decode {what}, {sources['none'].formats[what].pattern}", count, seconds(runs))
    views = {f"cache {name}": source.view("train", tasks) for name, source in sources.items()}
    runs = {name: partial(every, count, lambda i, view=view: view[i, i]) for name, view in views.items()}
    block(f"whole example for {', '.join(tasks)}", count, seconds(runs))


def transforms(source: NYUDv2, count: int) -> None:
    """What each step of the transform adds, with all tasks, where samples are decoded already."""
    samples = [source.read("train", i, list(source.tasks)) for i in range(count)]
    plain: Any = {"scale": None, "flip": 0.0, "photometric": False}
    crop: Any = {**plain, "crop": source.val_transform.size, "scale": (0.5, 2.0)}  # type: ignore[attr-defined]

    def apply(transform: TrainTransform, i: int) -> None:
        transform(samples[i], source.tasks, np.random.default_rng(i))

    made = [TrainTransform(**o) for o in (plain, crop, {**crop, "flip": 1.0}, {**crop, "photometric": True})]
    times = seconds({str(i): partial(every, count, partial(apply, transform)) for i, transform in enumerate(made)})
    bare, cropped, flipped, coloured = (1e3 * time_ / count for time_ in times.values())
    print(f"\ntransform of an image and {len(source.tasks)} labels: what each step adds")
    for name, ms in (("tensors", bare), ("scale, crop, pad", cropped - bare)):
        print(f"  {name:<22}{ms:>9.2f} ms")
    print(f"  {'flip':<22}{flipped - cropped:>9.2f} ms\n  {'colours':<22}{coloured - cropped:>9.2f} ms")


def loading(view: View, workers: list[int], size: int, step: float) -> None:
    """Batches as fast as they come, and how long training waits for them; workers have started before."""
    wanted = [(view, keys) for i in range(3) for keys in SeededBatches(len(view), size, seed=0, keys=(i,))]
    loaders = {f"{count} workers": Loader(workers=count) for count in workers}
    runs = {name: partial(lambda loader: list(loader(wanted)), loader) for name, loader in loaders.items()}
    images = sum(len(keys) for _, keys in wanted)
    block(f"batches of {size} for {', '.join(view.tasks)}", images, seconds(runs, passes=2))
    print(f"\nshare of an epoch that waits for data, at {1e3 * step:.0f} ms a training step (idle, as with a GPU)")
    steps = min(len(wanted), max(3, int(20 / step)))
    for name, loader in loaders.items():
        waited, start, batches = 0.0, time.perf_counter(), iter(loader(wanted))
        for _ in range(steps):
            asked = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - asked
            time.sleep(step)
        print(f"  {name:<22}{waited / (time.perf_counter() - start):>9.0%}")


def step_time(view: View, size: int) -> float:
    """Seconds of a training step of a small model on this processor."""
    heads = {name: task.channels for name, task in view.tasks.items()}
    module = ClientModule(UnifiedModel(heads, backbone="test_convnext", channels=8), view.tasks)
    ((batch,),) = Loader()([(view, [(i, i) for i in range(min(size, len(view)))])])
    return seconds({"": lambda: module.training_step(batch, 0)["loss"].backward()}, passes=2)[""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a data set that NYUDv2 reads")
    parser.add_argument("--images", type=int, default=32, help="training images in use")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tasks", nargs="+", default=["semseg"], help="tasks of the client that waits for batches")
    parser.add_argument("--cache", choices=("none", "memory", "disk"), default="none", help="of those batches")
    parser.add_argument("--workers", type=int, nargs="+", default=sorted({0, 1, 2, os.cpu_count() or 1}))
    parser.add_argument("--step-ms", type=float, help="length of a training step (default: a small model's, here)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEDMTL_CACHE"] = f"{folder}/cache"
        root = options.root or synthetic(Path(folder), options.images)
        sources = {cache: NYUDv2(root, cache=cache) for cache in ("none", "memory", "disk")}  # type: ignore[arg-type]
        count = min(options.images, len(sources["none"].ids("train")))
        shape = sources["none"].load("train", 0, "image").shape
        print(f"{count} images of {shape[0]}×{shape[1]}, {os.cpu_count()} cores, torch {torch.__version__}")
        decoding(sources, count)
        transforms(sources["none"], count)
        view = sources[options.cache].view("train", options.tasks, range(count))
        step = options.step_ms / 1e3 if options.step_ms else step_time(view, options.batch)
        loading(view, options.workers, options.batch, step)


if __name__ == "__main__":
    main()
