"""What a data set offers: named images, decoded on demand, with labels for some tasks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from fedmtl.tasks import Task
from fedmtl.tasks.base import Label

Split = Literal["train", "val"]
Sample = dict[str, Label]  # "image" (H, W, 3) uint8 and one label array a task
Example = dict[str, Tensor]  # the same after the transform: "image" (3, H, W) float and targets
Transform = Callable[[Sample, Mapping[str, Task], np.random.Generator], Example]


class DataSource(ABC):
    """A labelled image collection with a train and a val split.

    Attributes:
        name: short name of the data set, e.g. ``"nyud"``.
        tasks: the tasks that it has labels for, by name.
        train_transform: augmentation of training samples.
        val_transform: preparation of validation samples; random numbers play no part in it.
    """

    name: str
    tasks: Mapping[str, Task]
    train_transform: Transform
    val_transform: Transform

    @abstractmethod
    def ids(self, split: Split) -> Sequence[str]:
        """Names of the images of a split, in a fixed order."""

    @abstractmethod
    def read(self, split: Split, index: int, tasks: Sequence[str]) -> Sample:
        """Decodes image number `index` of a split and its labels for `tasks`.

        Raises:
            UserError: a file is missing, broken or of another size than its image, named in the message.
        """

    def view(self, split: Split, tasks: Sequence[str], indices: Sequence[int] | None = None) -> "View":
        """Images of a split (all, or those at `indices`) with labels for `tasks`, ready for a loader."""
        return View(self, split, tasks, range(len(self.ids(split))) if indices is None else indices)


def replace_tasks(defaults: Mapping[str, Task], given: Mapping[str, Task] | None) -> dict[str, Task]:
    """The default tasks of a data set, some of them replaced by name.

    Raises:
        ValueError: a name is not among the defaults, or its task is of another kind.
    """
    for name, task in (given or {}).items():
        if name not in defaults or task.name != name:
            known = ", ".join(defaults)
            raise ValueError(f"tasks must give {name!r} a task of that name, not {task.name!r}; the names are {known}")
    return {**defaults, **(given or {})}


class View(Dataset[Example]):
    """Part of a split as a map-style torch data set.

    An item is asked for by ``(position, seed)``: the seed alone decides its augmentation, so that results
    do not depend on how many worker processes decode.
    """

    def __init__(self, source: DataSource, split: Split, tasks: Sequence[str], indices: Sequence[int]) -> None:
        self.source, self.split, self.indices = source, split, indices
        self.tasks = {name: source.tasks[name] for name in tasks}
        self.transform = source.train_transform if split == "train" else source.val_transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        position, seed = key
        sample = self.source.read(self.split, self.indices[position], list(self.tasks))
        return self.transform(sample, self.tasks, np.random.default_rng(seed))
