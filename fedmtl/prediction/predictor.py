"""A model with its tasks, applied to pictures as the run applied it to its validation pictures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TypeVar

import numpy as np
import torch
from lightning import Fabric
from numpy.typing import NDArray
from torch import Tensor

from fedmtl.client import ClientModule
from fedmtl.data.description import meant
from fedmtl.data.transforms import Window, own_size
from fedmtl.errors import UserError
from fedmtl.models import UnifiedModel
from fedmtl.prediction.heads import Heads
from fedmtl.runs import Run
from fedmtl.tasks import Task
from fedmtl.tasks.base import Label

T = TypeVar("T")
Picture = NDArray[np.uint8]  # (H, W, 3), RGB


@dataclass(frozen=True)
class Prepared:
    """A picture as the model sees it.

    Attributes:
        image: (3, h, w), normalised, padded.
        window: top, left, height and width of the picture in it.
        size: the picture's own height and width.
    """

    image: Tensor
    window: tuple[int, ...]
    size: tuple[int, int]


class Predictor:
    """A run's model and what it takes to use it; call it with pictures.

    Args:
        model: the model; it has a head for each task.
        groups: the heads by data set: tasks, and how pictures are prepared.
        run: where it comes from.
        round: rounds done when its weights were saved, None if that is not known.
        fabric: device and precision; the CPU in fp32 if not given.
        channels_last: whether pictures lie in memory with their channels last.
        client: whose own model it is, None for the unified one.

    Attributes:
        tasks: all tasks by the heads' names.

    Example:
        >>> predictor = fedmtl.prediction.load("runs/scenes_dea")  # doctest: +SKIP
        >>> labels = predictor([np.asarray(Image.open("room.jpg").convert("RGB"))])[0]  # doctest: +SKIP
        >>> labels["depth"]  # metres, (H, W) # doctest: +SKIP
    """

    def __init__(
        self,
        model: UnifiedModel,
        groups: Sequence[Heads],
        *,
        run: Run,
        round: int | None = None,
        fabric: Fabric | None = None,
        channels_last: bool = False,
        client: str | None = None,
    ) -> None:
        self.model, self.groups, self.run, self.round = model.eval().requires_grad_(False), list(groups), run, round
        self.tasks: dict[str, Task] = {name: task for group in groups for name, task in group.tasks.items()}
        self.client = client
        self.fabric = fabric or Fabric(accelerator="cpu", devices=1)
        self._module = ClientModule(model, self.tasks)
        if channels_last:
            self._module.memory_format = torch.channels_last
        self._wrapped = self.fabric.setup_module(self._module)
        self._module.eval()

    def __call__(
        self, pictures: Sequence[Picture], *, tasks: Sequence[str] | None = None, size: tuple[int, int] | None = None
    ) -> list[dict[str, Label]]:
        """Every task's prediction for each picture, in the form its data set stores labels, at the picture's own size.

        Args:
            pictures: RGB, uint8 (H, W, 3), of any sizes.
            tasks: which heads; all if not given.
            size: height and width to which pictures are resized first; None leaves them as they are.

        Returns:
            A dictionary a picture, e.g. ``{"semseg": uint8 (H, W), "depth": float32 (H, W), …}``, see `Task.predict`.

        Raises:
            UserError: there is no such head.
            ValueError: something is no picture of this form.
        """
        return [labels for _, _, labels in self.stream(((None, p) for p in pictures), tasks=tasks, size=size)]

    def stream(
        self,
        pictures: Iterable[tuple[T, Picture]],
        *,
        tasks: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> Iterator[tuple[T, Picture, dict[str, Label]]]:
        """The same for any number of pictures, of which no more than a batch is in memory.

        Args:
            pictures: each with a key of its own.
            tasks: see `__call__`.
            size: see `__call__`.
            batch_size: most pictures a batch; neighbours of equal size share one. The last digits of a prediction may
                depend on it, and at 1 on nothing else in the list.

        Yields:
            Key, picture and predictions, in order.

        Raises:
            UserError: there is no such head, or the model can't take a picture of this size.
            ValueError: something is no picture of this form.
        """
        groups = self.chosen(tasks)
        for batch in batches(pictures, batch_size):
            labels = self._predict([picture for _, picture in batch], groups, size)
            yield from ((key, picture, one) for (key, picture), one in zip(batch, labels, strict=True))

    def chosen(self, tasks: Sequence[str] | None) -> list[Heads]:
        """The heads of some tasks.

        Raises:
            UserError: there is no such head.
        """
        for name in tasks or ():
            if name not in self.tasks:
                raise UserError(
                    f"tasks: there is no {name!r}{meant(name, self.tasks)}; there are {', '.join(self.tasks)}"
                )
        wanted = self.tasks if tasks is None else tasks
        kept = [(group, [name for name in group.tasks if name in wanted]) for group in self.groups]
        return [Heads(g.data, {n: g.tasks[n] for n in names}, g.transform, g.size) for g, names in kept if names]

    @torch.inference_mode()
    def _predict(
        self, pictures: Sequence[Picture], groups: Sequence[Heads], size: tuple[int, int] | None
    ) -> list[dict[str, Label]]:
        found: list[dict[str, Label]] = [{} for _ in pictures]
        for group in groups:
            prepared = [prepare(picture, group, size) for picture in pictures]
            self._module.active = tuple(group.tasks)
            images = self.fabric.to_device(torch.stack([one.image for one in prepared]))
            try:
                outputs: Mapping[str, Tensor] = self._wrapped(images)
                for name, output in outputs.items():
                    own = own_size(output.float(), prepared[0].window, prepared[0].size).cpu()
                    for labels, single in zip(found, own, strict=True):
                        labels[name] = group.tasks[name].predict(single)
            except (AssertionError, RuntimeError, ValueError, MemoryError) as error:  # a size that does not go
                shape = "×".join(map(str, images.shape[-2:]))
                reason = " ".join(str(error).split())[:160] or type(error).__name__
                raise UserError(f"the model can't take {len(images)} pictures of {shape} pixels ({reason})") from error
        return found


def prepare(picture: Picture, group: Heads, size: tuple[int, int] | None = None) -> Prepared:
    """A picture as validation pictures are prepared, after a resize to `size` if that is given.

    Raises:
        ValueError: it is no uint8 (H, W, 3).
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(f"a picture must be uint8 (H, W, 3), not {picture.dtype} {picture.shape}")
    resized = picture if size is None else Window(picture, size).bilinear(picture)
    example = group.transform({"image": resized}, {}, np.random.default_rng(0))
    height, width = picture.shape[:2]
    return Prepared(example["image"], tuple(example["window"].tolist()), (height, width))


def batches(pictures: Iterable[tuple[T, Picture]], most: int) -> Iterator[list[tuple[T, Picture]]]:
    """Neighbours of equal size, at most so many at a time."""
    for _, alike in groupby(pictures, key=lambda pair: pair[1].shape):
        while batch := list(islice(alike, most)):
            yield batch
