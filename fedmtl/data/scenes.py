"""`Scenes`, the built-in data set: ray-cast furnished rooms, made on the spot from a seed, for six tasks and more."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import get_args

import numpy as np

from fedmtl.data.cache import Arrays, Layout, cached_arrays
from fedmtl.data.dial import Dial, dialled_tasks
from fedmtl.data.raycast import Scene, boundaries, render
from fedmtl.data.rooms import CLASSES, PARTS, Domain, random_scene
from fedmtl.data.source import DataSource, Sample, Split, replace_tasks
from fedmtl.data.transforms import TrainTransform, ValTransform
from fedmtl.seeding import numpy_stream
from fedmtl.tasks import Depth, Edge, Normals, Parts, Saliency, SemSeg, Task
from fedmtl.tasks.base import Label

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it when the pictures or labels of a seed change
LARGEST = 512  # pixels
CHUNK = 64  # images rendered ahead of the one being written
THREADED = 128 * 128  # pixels from which threads pay; smaller pictures' short operations hold the interpreter's lock


class Scenes(DataSource):
    """Furnished rooms with exact labels for six tasks: nothing to download, any number of images.

    A picture shows a room with boxes, balls, cylinders, tables, chairs, lamps and framed pictures. Its labels
    agree with one another to the pixel. One object a picture, the *accent*, has a saturated colour and is at
    most partly hidden: its pixels are the salient ones. Edges are borders between surfaces, on the nearer
    side. A split is rendered when first used and kept in the user's cache folder (or in ``$FEDMTL_CACHE``).

    Image number i depends on (seed, split, domain, size, i) alone: a smaller set is the start of a larger one.

    Args:
        train: number of training images, 1 or more.
        val: number of validation images, 1 or more; they show other rooms.
        size: height and width in pixels, 8…512, or one number for both.
        seed: which world is drawn, 0 or more; unrelated to the seed of training.
        domain: "day" is bright, with light colours and a standing viewer; "night" is dark and warm, with low
            light, long shadows and a camera close to the floor.
        tasks: tasks by name that replace the default ones, e.g. for other loss weights.
        flip: probability in 0…1 that a training image is mirrored.
        photometric: whether to distort the colours of training images.
        dials: further tasks by name, whose relation to depth or semseg is set by a correlation, see `Dial`. Their
            labels follow from the others: nothing is rendered anew.

    Raises:
        ValueError: an argument is out of its range.
    """

    name = "scenes"

    def __init__(
        self,
        *,
        train: int = 1000,
        val: int = 200,
        size: int | tuple[int, int] = 64,
        seed: int = 0,
        domain: Domain = "day",
        tasks: dict[str, Task] | None = None,
        flip: float = 0.5,
        photometric: bool = False,
        dials: dict[str, Dial] | None = None,
    ) -> None:
        if train < 1 or val < 1:
            raise ValueError(f"{'train' if train < 1 else 'val'} must be 1 or more, not {min(train, val)}")
        sides = (size, size) if isinstance(size, int) else size
        if len(sides) != 2 or not all(8 <= side <= LARGEST for side in sides):
            raise ValueError(f"size must be 8 to {LARGEST} pixels a side, not {size}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, not {seed}")
        if domain not in get_args(Domain):
            raise ValueError(f"domain must be one of {', '.join(get_args(Domain))}, not {domain!r}")
        self.size, self.seed, self.domain = sides, seed, domain
        self.dials = dials or {}
        self.tasks = replace_tasks(default_tasks(), tasks)
        self.tasks |= dialled_tasks(self.dials, self.tasks, domain, seed)
        self.train_transform = TrainTransform(crop=None, scale=None, flip=flip, photometric=photometric)
        self.val_transform = ValTransform(size=None)
        self._counts: dict[Split, int] = {"train": train, "val": val}
        self._arrays: dict[Split, Arrays] = {}

    def ids(self, split: Split) -> Sequence[str]:
        """``"000000"`` and so on."""
        return [f"{i:06d}" for i in range(self._counts[split])]

    def where(self, split: Split, index: int, what: str) -> str:
        """Which image or label; without `ids`, which would take longer than all the rest of reading it."""
        return f"{self.name}, {what} {index:06d} of {split}"

    def load(self, split: Split, index: int, what: str) -> Label:
        """Image number `index` of a split or its label for a task; renders the whole split if need be."""
        arrays = self.arrays(split)
        if what in self.dials:
            return self.dials[what].label(arrays, index, self.seed)
        return np.array(arrays[what][index])

    def prepare(self, split: Split, names: Sequence[str]) -> None:
        """Renders the split now, so that loaders' worker processes share its files."""
        self.arrays(split)

    def scene(self, split: Split, index: int) -> Scene:
        """The world behind an image, with its camera and focal length."""
        return random_scene(self._stream(split, index), self.size, self.domain)

    def arrays(self, split: Split) -> Arrays:
        """Images and labels of a whole split by name, from the cache if they are there."""
        if split not in self._arrays:
            count = self._counts[split]
            key: dict[str, object] = {"format": FORMAT, "split": split, "count": count, "size": self.size}
            key |= {"seed": self.seed, "domain": self.domain}
            self._arrays[split] = cached_arrays(self.name, key, layout(count, self.size), partial(self._rows, split))
        return self._arrays[split]

    def _rows(self, split: Split) -> Iterator[Sample]:
        """All samples of a split in order."""
        start, count = time.perf_counter(), self._counts[split]
        threads = min(os.cpu_count() or 1, 4) if self.size[0] * self.size[1] >= THREADED else 1
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, count, CHUNK):
                yield from pool.map(partial(self._render, split), range(first, min(first + CHUNK, count)))
        seconds = time.perf_counter() - start
        logger.info("rendered %d %s %s scenes of %d×%d in %.1f s", count, self.domain, split, *self.size, seconds)

    def _render(self, split: Split, index: int) -> Sample:
        rng = self._stream(split, index)
        seen = render(random_scene(rng, self.size, self.domain), self.size, rng)
        return {
            "image": seen.image,
            "semseg": seen.category,
            "depth": seen.depth,
            "normals": seen.normals,
            "edge": boundaries(seen.surface, seen.depth),
            "saliency": seen.instance == 1,
            "parts": seen.part,
        }

    def _stream(self, split: Split, index: int) -> np.random.Generator:
        return numpy_stream(self.seed, "scenes", self.domain, split, index)

    def __getstate__(self) -> dict[str, object]:
        """Without memory-mapped files, which would be copied; a worker process opens them again."""
        kept = {split: arrays for split, arrays in self._arrays.items() if not isinstance(arrays["image"], np.memmap)}
        return {**self.__dict__, "_arrays": kept}


def default_tasks() -> dict[str, Task]:
    """The six tasks with the classes of these scenes."""
    return {
        "semseg": SemSeg(num_classes=len(CLASSES), class_names=CLASSES),
        "depth": Depth(),
        "normals": Normals(),
        "edge": Edge(max_distance=0.016),  # one pixel at size 64, also diagonally
        "saliency": Saliency(),
        "parts": Parts(num_classes=len(PARTS), class_names=PARTS),
    }


def layout(count: int, size: tuple[int, int]) -> Layout:
    """Shapes and types of a split's arrays."""
    channels: dict[str, tuple[int, ...]] = {"image": (3,), "normals": (3,)}
    types = {"depth": np.float32, "normals": np.float16}
    return {
        name: ((count, *size, *channels.get(name, ())), types.get(name, np.uint8))
        for name in ("image", *default_tasks())
    }
