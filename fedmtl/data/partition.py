"""How a data set's training images are shared out among clients."""

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import ClassVar

import numpy as np
import yaml
from numpy.typing import NDArray

from fedmtl.data.source import DataSource
from fedmtl.errors import UserError
from fedmtl.tasks.base import ClassTask

logger = logging.getLogger(__name__)

NONE_KNOWN = 255  # the class of an image without any known pixel
EVEN = 1e12  # proportions from a larger alpha differ by less than an image; sums of larger ones may overflow


class Partition(ABC):
    """Gives each client its images of a train split.

    Attributes:
        fixed: whether it names images itself instead of dividing those that it is given.
        exclusive: whether clients of other groups don't get its images.
    """

    fixed: ClassVar[bool] = False
    exclusive: ClassVar[bool] = True

    @abstractmethod
    def split(
        self, data: DataSource, images: Sequence[int], clients: Sequence[str], rng: np.random.Generator
    ) -> list[list[int]]:
        """One sorted list of images a client, in the clients' order; disjoint, none empty.

        Args:
            data: the data set.
            images: indices into ``data.ids("train")`` of the images to share out, at least one a client.
            clients: names of the clients, each another.
            rng: source of all random choices.

        Raises:
            UserError: the images can't be shared out in this way.
        """


class IID(Partition):
    """A random permutation of the images, cut into equal parts; sizes differ by one at most."""

    def split(
        self, data: DataSource, images: Sequence[int], clients: Sequence[str], rng: np.random.Generator
    ) -> list[list[int]]:
        """See `Partition.split`; all images are shared out."""
        return _pick(images, np.array_split(rng.permutation(len(images)), len(clients)))


class Whole(Partition):
    """Every client gets all images: what central training would see, a bound for what a federation can reach."""

    fixed = True
    exclusive = False

    def split(
        self, data: DataSource, images: Sequence[int], clients: Sequence[str], rng: np.random.Generator
    ) -> list[list[int]]:
        """See `Partition.split`; the lists are not disjoint."""
        return [sorted(images) for _ in clients]


class QuantitySkew(Partition):
    """A random permutation of the images, cut so that client i of n has the share i / (1 + 2 + … + n).

    This is the skew of FMTL-Bench (ICMR 2024), whose code leaves out what is left of the images after whole shares;
    here all are shared out: each client's number is its share rounded up or down, and at least 1.

    Args:
        shuffled: whether clients get their shares in a random order, not growing along their list.
    """

    def __init__(self, *, shuffled: bool = False) -> None:
        self.shuffled = shuffled

    def split(
        self, data: DataSource, images: Sequence[int], clients: Sequence[str], rng: np.random.Generator
    ) -> list[list[int]]:
        """See `Partition.split`; all images are shared out."""
        number = np.arange(len(clients) + 1)
        triangle = number * (number + 1) // 2
        ends = np.maximum(triangle * len(images) // triangle[-1], number)  # not below its number: none is empty
        parts = np.split(rng.permutation(len(images)), ends[1:-1])
        if self.shuffled:
            parts = [parts[i] for i in rng.permutation(len(parts))]
        return _pick(images, parts)


class Dirichlet(Partition):
    """Clients differ in what their images show: each class is shared out in proportions p ~ Dir(α, …, α) of its own.

    The way of Yurochkin et al. (2019, https://arxiv.org/abs/1905.12022); Hsu et al. (2019) instead draw each client's
    mix of classes. An image counts as the class that most of its known pixels have; images without a known pixel
    form one more class. Shares are rounded at random, without bias. Clients differ in size as well.

    Args:
        alpha: large for equal mixtures, 0.1 for a strong skew, nearly 0 for each class at one client.
        task: name of a task with class labels, which are all read once.
        least: images that each client has at least; the poorest are given some of the richest's.
        ignore: classes that don't count, e.g. [0] where the background fills most of most images.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, alpha: float, *, task: str = "semseg", least: int = 1, ignore: Sequence[int] = ()) -> None:
        if not 0 < alpha < inf:
            raise ValueError(f"alpha must be a finite number above 0, not {alpha}")
        if least < 1:
            raise ValueError(f"least must be 1 or more, not {least}")
        if not all(0 <= value < NONE_KNOWN for value in ignore):
            raise ValueError(f"ignore must be classes from 0 to 254, not {ignore}")
        self.alpha, self.task, self.least, self.ignore = alpha, task, least, list(ignore)

    def split(
        self, data: DataSource, images: Sequence[int], clients: Sequence[str], rng: np.random.Generator
    ) -> list[list[int]]:
        """See `Partition.split`; all images are shared out."""
        if len(images) < self.least * len(clients):
            raise UserError(
                f"partition.least: {len(clients)} clients can't have {self.least} images each, there are "
                f"{len(images)}; lower it, or have fewer clients"
            )
        classes = self._dominant(data, images)
        owned: list[list[int]] = [[] for _ in clients]
        for value in np.unique(classes):
            own = rng.permutation(np.flatnonzero(classes == value))
            ends = np.cumsum(rng.dirichlet([min(self.alpha, EVEN)] * len(clients)))[:-1]
            owners = np.searchsorted(ends, (np.arange(len(own)) + rng.random()) / len(own), side="right")
            for image, owner in zip(own.tolist(), owners.tolist(), strict=True):
                owned[owner].append(image)
        while len(poorest := min(owned, key=len)) < self.least:
            poorest.append(max(owned, key=len).pop())
        return _pick(images, owned)

    def _dominant(self, data: DataSource, images: Sequence[int]) -> NDArray[np.int64]:
        """The most frequent class of each image, `NONE_KNOWN` if there is none."""
        data.view("train", [self.task], images)  # finds what is missing before anything is read
        if not isinstance(data.tasks[self.task], ClassTask):
            raise UserError(f"partition.task: {self.task!r} has no classes to share out by; give another, e.g. semseg")

        def dominant(index: int) -> int:
            if not data.has_label("train", index, self.task):
                return NONE_KNOWN
            pixels = np.bincount(data.load("train", index, self.task).ravel(), minlength=256)
            pixels[[NONE_KNOWN, *self.ignore]] = 0
            return int(pixels.argmax()) if pixels.any() else NONE_KNOWN

        start = time.perf_counter()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            classes = np.fromiter(pool.map(dominant, images), np.int64, len(images))
        seconds = time.perf_counter() - start
        if seconds > 1:
            logger.info("read %d %s labels of %s in %.1f s", len(images), self.task, data.name, seconds)
        return classes


class ListFile(Partition):
    """The images that a file lists for each client; those that it does not list stay unused.

    Args:
        path: a YAML or JSON file of client names, each with a list of image names: ``{depth: [0001, 0007]}``. Names
            of clients that are not there do not matter.
    """

    fixed = True

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def split(
        self, data: DataSource, images: Sequence[int], clients: Sequence[str], rng: np.random.Generator
    ) -> list[list[int]]:
        """See `Partition.split`; an image that is listed must be one of `images`.

        Raises:
            UserError: the file can't be read; a client is missing, or an image unknown or there twice.
        """
        number = {name: index for index, name in enumerate(data.ids("train"))}
        free, owner = set(images), dict[int, str]()
        owned: dict[str, list[int]] = {}
        for client, names in _lists(self.path):
            if client not in clients:  # it may be one of another data set
                continue
            if client in owned:
                raise UserError(f"{self.path}: {client}: is there twice; join the two lists")
            for name in names:
                index = number.get(name)
                if index is None:
                    raise UserError(f"{self.path}: {client}: {data.name} has no training image {name!r}")
                if index in owner:
                    raise UserError(f"{self.path}: {client}: {name} is given to {owner[index]} already; leave one")
                if index not in free:
                    raise UserError(f"{self.path}: {client}: {name} is given to clients of another group already")
                owner[index] = client
            owned[client] = sorted(number[name] for name in names)
        for client in clients:
            if not owned.get(client):
                reason = "its list is empty" if client in owned else "is not there"
                raise UserError(f"{self.path}: {client}: {reason}; each client needs at least one image")
        return [owned[client] for client in clients]


def _pick(images: Sequence[int], parts: Sequence[Sequence[int] | NDArray[np.integer]]) -> list[list[int]]:
    """The images at the positions of each part, sorted."""
    return [sorted(int(images[i]) for i in part) for part in parts]


def _lists(path: Path) -> list[tuple[str, list[str]]]:
    """Pairs of a client's name and its images' names, as they are written: 0001 is no number."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        # JSON is YAML, but for tabs between its words
        root = yaml.compose(text.replace("\t", " ") if path.suffix == ".json" else text, Loader=yaml.BaseLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot read the clients' lists of images ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise UserError(f"{path}: is neither YAML nor JSON ({' '.join(str(error).split())})") from error
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: expected clients' names with lists of images, such as {{depth: [0001, 0007]}}")
    for key, value in root.value:
        nodes = [key, *value.value] if isinstance(value, yaml.SequenceNode) else [value.value]
        if not all(isinstance(node, yaml.ScalarNode) for node in nodes):
            line = key.start_mark.line + 1
            raise UserError(f"{path}, line {line}: expected a client's name with a list of image names, in brackets")
    return [(key.value, [node.value for node in value.value]) for key, value in root.value]
