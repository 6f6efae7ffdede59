"""What a data set offers: named images, decoded on demand, with labels for some tasks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from fedmtl.errors import UserError
from fedmtl.tasks import Task
from fedmtl.tasks.base import Label

Split = Literal["train", "val"]
Sample = dict[str, Label]  # "image" (H, W, 3) uint8 and one label array a task
Example = dict[str, Tensor]  # the same after the transform: "image" (3, H, W) float and targets
Transform = Callable[[Sample, Mapping[str, Task], np.random.Generator], Example]

SPLITS: tuple[Split, ...] = ("train", "val")
INPUT = "(input)"  # key of a label that a model reads in place of the image; no head has such a name


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
    def load(self, split: Split, index: int, what: str) -> Label:
        """Decodes image number `index` of a split (`what` is ``"image"``: uint8 (H, W, 3)) or its label for a task.

        Raises:
            UserError: a file is missing or broken, named in the message.
        """

    def has_label(self, split: Split, index: int, task: str) -> bool:
        """Whether an image is labelled for a task; `load` is not asked for the label where it is not."""
        return True

    def prepare(self, split: Split, names: Sequence[str]) -> None:
        """Called for each view before any training, with ``"image"`` and its tasks: for what can be done at once.

        Raises:
            UserError: labels of the split are not there.
        """
        return

    def where(self, split: Split, index: int, what: str) -> str:
        """Where the image or label comes from, for messages."""
        return f"{self.name}, {what} {self.ids(split)[index]} of {split}"

    def lacks(self, task: str) -> str:
        """Why there is no such task here, for messages."""
        return f"{self.name} has no {task!r}; it has {', '.join(self.tasks)}"

    def read(self, split: Split, index: int, tasks: Sequence[str]) -> Sample:
        """Image number `index` of a split and its labels for `tasks`; where it has none, all is unknown.

        Raises:
            UserError: a file is missing, broken or of another size than its image, named in the message.
        """
        sample: Sample = {"image": self.load(split, index, "image")}
        size = sample["image"].shape[:2]
        for name in tasks:
            if not self.has_label(split, index, name):
                sample[name] = self.tasks[name].unknown(size)
                continue
            sample[name] = self.load(split, index, name)
            check_size(self.where(split, index, name), sample[name], size)
        return sample

    def view(
        self,
        split: Split,
        tasks: Sequence[str],
        indices: Sequence[int] | None = None,
        *,
        prefix: str = "",
        input: str = "image",
    ) -> "View":
        """Images of a split (all, or those at `indices`) with labels for `tasks`, ready for a loader.

        Args:
            split: ``"train"`` or ``"val"``.
            tasks: names of this data set's tasks.
            indices: which images.
            prefix: put before the tasks' names in the view, to tell data sets apart.
            input: what the model reads: ``"image"``, or one of this data set's tasks, whose labels it then sees in
                place of the colours (see `Task.to_input`).

        Raises:
            UserError: there is no such task, labels of the split are not there, or one of the images has no label
                that could be read as input.
        """
        chosen = range(len(self.ids(split))) if indices is None else indices
        names = list(dict.fromkeys(("image", *tasks, input)))
        for name in names[1:]:
            if name not in self.tasks:
                raise UserError(self.lacks(name))
        self.prepare(split, names)
        blind = [i for i in chosen if input != "image" and not self.has_label(split, i, input)]
        if blind:
            raise UserError(
                f"input: {len(blind)} of {len(chosen)} images of {self.name} have no {input} that a model could read, "
                f"the first is {self.ids(split)[blind[0]]} of {split}; read another input, or leave these images out"
            )
        return View(self, split, {prefix + name: name for name in tasks}, chosen, input)


def check_size(where: str, label: Label, size: tuple[int, ...]) -> None:
    """Refuses a label that is not as large as its image.

    Raises:
        UserError: it has another height or width.
    """
    if label.shape[:2] != size:
        found, expected = ("×".join(map(str, shape)) for shape in (label.shape[:2], size))
        raise UserError(f"{where}: found a label of {found} pixels (H×W), expected its image's {expected}")


def replace_tasks(defaults: Mapping[str, Task], given: Mapping[str, Task] | None) -> dict[str, Task]:
    """The default tasks of a data set, some of them replaced by name.

    Raises:
        ValueError: a name is not among the defaults, or its task is of another kind.
    """
    for name, task in (given or {}).items():
        if name not in defaults or task.name != defaults[name].name:
            known = ", ".join(f"{key} ({default.name})" for key, default in defaults.items())
            raise ValueError(f"tasks can't give {name!r} a task of the kind {task.name!r}; there are {known}")
    return {**defaults, **(given or {})}


class View:
    """Part of a split, as one client or the evaluation sees it.

    Attributes:
        tasks: the tasks by their names in the view, which are the names of their heads.
        names: the same names to those that the data set uses; they differ where a run has several data sets.
        input: what the model reads: ``"image"``, or the task of the data set whose labels it sees instead.
        channels: of that input.
    """

    def __init__(
        self, source: DataSource, split: Split, names: Mapping[str, str], indices: Sequence[int], input: str = "image"
    ) -> None:
        self.source, self.split, self.names, self.indices, self.input = source, split, dict(names), indices, input
        self.tasks = {head: source.tasks[name] for head, name in self.names.items()}
        self.channels = 3 if input == "image" else source.tasks[input].channels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        """The example at a position, augmented by a seed."""
        position, seed = key
        return example(self.source, self.split, self.indices[position], self.names, seed, self.input)

    def sample(self, position: int) -> Sample:
        """The colour image at a position as it is, whatever the model reads, and its labels by head."""
        return _sample(self.source, self.split, self.indices[position], self.names)

    def only(self, heads: Sequence[str], *, input: str | None = None) -> "View":
        """The same images for some of the heads, read through another `input` if that is given."""
        names = {head: self.names[head] for head in heads}
        return View(self.source, self.split, names, self.indices, input or self.input)


def example(
    source: DataSource, split: Split, index: int, names: Mapping[str, str], seed: int, input: str = "image"
) -> Example:
    """Reads and transforms one image; `seed` alone decides its augmentation, which is the same for every input.

    Args:
        source: the data set.
        split: ``"train"`` or ``"val"``.
        index: number of the image in the split.
        names: heads to tasks of the data set.
        seed: seed of the augmentation.
        input: see `View`; the key ``"image"`` of the example holds it, (channels, H, W) float32.
    """
    transform = source.train_transform if split == "train" else source.val_transform
    if input != "image":
        names = {**names, INPUT: input}
    tasks = {head: source.tasks[name] for head, name in names.items()}
    made = transform(_sample(source, split, index, names), tasks, np.random.default_rng(seed))
    if input != "image":
        made["image"] = tasks[INPUT].to_input(made.pop(INPUT))
    return made


def _sample(source: DataSource, split: Split, index: int, names: Mapping[str, str]) -> Sample:
    read = source.read(split, index, list(names.values()))
    return {"image": read["image"], **{head: read[name] for head, name in names.items()}}
