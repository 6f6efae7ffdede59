"""A tracker: where a run's numbers and pictures go besides its own folder."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (H, W, 3)
Metrics = Mapping[str, float | int | None]
ClassMap = NDArray[np.uint8]  # (H, W) of class indices, 255 where unknown


@dataclass
class RunInfo:
    """What a tracker is told of a run.

    Attributes:
        name: name of the run.
        directory: its folder.
        config: its resolved configuration.
        identity: the tracker's own id of the run, from the checkpoint that it goes on from.
    """

    name: str
    directory: Path
    config: Mapping[str, Any]
    identity: str | None = None


@dataclass(frozen=True)
class Segmented:
    """One image of a task whose labels are classes.

    Attributes:
        image: the input.
        truth: its label.
        prediction: what the model says.
        names: of the classes, by index.
    """

    image: Picture
    truth: ClassMap
    prediction: ClassMap
    names: Sequence[str]


class Tracker(ABC):
    """Takes a run's metrics once a round and its pictures at evaluations.

    What it raises after its start is a warning in the log, and training goes on.
    """

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """The run begins, or goes on."""

    @abstractmethod
    def log(self, metrics: Metrics) -> None:
        """The metrics of one round, ``"round"`` among them."""

    @abstractmethod
    def pictures(self, round: int, strips: Mapping[str, Sequence[Picture]]) -> None:
        """Per task, one picture an image: input, truth and prediction side by side."""

    def segmentations(self, round: int, images: Mapping[str, Sequence[Segmented]]) -> None:  # noqa: B027, a choice
        """The same images for each task whose labels are classes, as label maps; left out by default."""

    def diagnostics(self, round: int, details: Mapping[str, Any]) -> None:  # noqa: B027
        """All that the diagnostics of a round measured, see `Diagnostics.measure`; left out by default."""

    @abstractmethod
    def finish(self, summary: Metrics, *, failed: bool) -> None:
        """The run ends, before its time if `failed`; `summary` holds its last and best numbers."""

    @property
    def identity(self) -> str | None:
        """The tracker's id of the run, to be kept in checkpoints."""
        return None
