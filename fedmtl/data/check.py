"""Walks a data set: decodes every image and label, counts what is missing or wrong, and measures what is there."""

import copy
import multiprocessing
import os
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmtl.data.files import FileSource
from fedmtl.data.source import SPLITS, DataSource, Split, check_size
from fedmtl.errors import UserError
from fedmtl.tasks import Depth, Edge, Normals, Task
from fedmtl.tasks.base import ClassTask, Label

Kind = Literal["missing", "unreadable", "wrong content", "wrong size"]

CHUNK = 8  # images a piece of work; sums are taken in this order whatever the number of processes
FEW = 300  # images below which processes take longer to start than they save
BINS = 1 << 15  # a depth's histogram: by the first 16 bits of a positive float32, which are steps of less than 1 %


class Problem(NamedTuple):
    """A file that is not as it should be.

    Attributes:
        split: its split.
        what: ``"image"`` or the label's task.
        id: the image's name.
        kind: what is wrong with it.
        file: where it is, or should be.
        reason: one line with the file and what was found.
    """

    split: Split
    what: str
    id: str
    kind: Kind
    file: str
    reason: str


@dataclass
class Values:
    """Sums over the pixels of a task's labels.

    Attributes:
        pixels: all pixels.
        unknown: pixels without a label.
        empty: labels without a single known pixel.
        low, high, total: least, greatest and sum of the known numbers: metres, or lengths of normals.
        beyond: pixels too far away to count, of the known ones.
        counts: pixels of each class, 0 and 1 for masks, (256,); or of each step of depth, see `BINS`.
    """

    pixels: int = 0
    unknown: int = 0
    empty: int = 0
    low: float = inf
    high: float = -inf
    total: float = 0.0
    beyond: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def known(self) -> int:
        """Pixels with a label."""
        return self.pixels - self.unknown

    @property
    def mean(self) -> float:
        """Mean of the known numbers; NaN if there are none."""
        return self.total / self.known if self.known else np.nan

    @property
    def median(self) -> float:
        """Median of the depths in metres, to 1 %; NaN if there are none."""
        step = np.searchsorted(self.counts.cumsum(), (self.known + 1) // 2)
        middle = np.array([(int(step) << 16) + (1 << 15)], np.uint32).view(np.float32)
        return float(middle[0]) if self.known else np.nan

    def add(self, other: "Values") -> None:
        """Adds the sums of other labels."""
        self.pixels += other.pixels
        self.unknown += other.unknown
        self.empty += other.empty
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.total += other.total
        self.beyond += other.beyond
        if other.counts.size:
            self.counts = self.counts + other.counts if self.counts.size else other.counts


@dataclass
class Finding:
    """What was found of a split's images, or of its labels for one task.

    Attributes:
        good: files that are as they should be.
        without: images that have no label for the task, and need none.
        sizes: how many of the good ones have each height and width.
        values: what they say, for tasks.
        problems: the others, in the order of the split.
    """

    good: int = 0
    without: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    values: Values = field(default_factory=Values)
    problems: list[Problem] = field(default_factory=list)

    def add(self, other: "Finding") -> None:
        """Adds what was found of later images."""
        self.good += other.good
        self.without += other.without
        self.sizes += other.sizes
        self.values.add(other.values)
        self.problems += other.problems


Findings = dict[str, Finding]  # by "image" and the tasks' names


def in_both(source: DataSource) -> list[str]:
    """Names of the training images that are validation images too, the same files."""
    train, val = (
        {source.where(split, i, "image"): name for i, name in enumerate(source.ids(split))} for split in SPLITS
    )
    return [name for file, name in train.items() if file in val]


def check(
    source: DataSource,
    tasks: Sequence[str],
    *,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[Split, Findings]:
    """Decodes every image of a data set and its labels for `tasks`.

    Args:
        source: the data set.
        tasks: names of its tasks.
        workers: processes that decode, 0 for none but this one; None for one a CPU core, if there is enough to do.
            What is found does not depend on it.
        progress: told after each piece of work how many more images are done.

    Raises:
        UserError: the data set can't be sent to worker processes, or one of them died.
    """
    source = copy.copy(source)
    if isinstance(source, FileSource):
        source.cache = "none"  # the files themselves are looked at, and nothing is kept of them
        source.formats = {what: form._replace(slow=False) for what, form in source.formats.items()}
        source.forget()
    jobs = []
    for split in SPLITS:
        with suppress(UserError):  # prepares what processes share; missing files are counted below
            source.view(split, list(tasks))
        indices = range(len(source.ids(split)))
        jobs += [_Job(split, indices[i : i + CHUNK], list(tasks)) for i in range(0, len(indices), CHUNK)]
    if workers is None:
        workers = _cores() if sum(len(job.indices) for job in jobs) >= FEW else 0
    found: dict[Split, Findings] = {split: {what: Finding() for what in ("image", *tasks)} for split in SPLITS}
    for job, part in zip(jobs, _results(source, jobs, workers), strict=True):
        for what, finding in part.items():
            found[job.split][what].add(finding)
        progress(len(job.indices))
    return found


def measure(task: Task, label: Label, where: str) -> Values:
    """What one label of a task says.

    Args:
        task: the task.
        label: the label.
        where: where it comes from, for messages.

    Raises:
        UserError: it holds what the task can't have.
    """
    pixels, beyond = int(np.prod(label.shape[:2])), 0
    _expect_form(task, label, where)
    if isinstance(task, (ClassTask, Edge)):
        counts = np.bincount(label.ravel(), minlength=256)
        classes = task.channels if isinstance(task, ClassTask) else 2
        wrong = np.flatnonzero(counts[classes:255])
        if wrong.size:
            value = classes + wrong[0]
            raise UserError(f"{where}: found the class {value}, expected 0…{classes - 1} or 255 (unknown)")
        unknown = int(counts[255])
        return Values(pixels, unknown, int(unknown == pixels), counts=counts)
    if isinstance(task, Depth):
        metres = label.astype(np.float32, copy=False)
        numbers = metres[metres > 0]
        beyond = int((numbers >= task.max_depth).sum())
        counts = np.bincount(numbers.view(np.uint32) >> 16, minlength=BINS)
    elif isinstance(task, Normals):
        x, y, z = label.astype(np.float32, copy=False).reshape(-1, 3).T
        numbers = np.sqrt(x * x + y * y + z * z)
        numbers, counts = numbers[numbers > 0], np.zeros(0, np.int64)
    else:  # a kind of the user's own: nothing is known of its values
        return Values(pixels)
    if not numbers.size:
        return Values(pixels, pixels, 1, counts=counts)
    low, high, total = float(numbers.min()), float(numbers.max()), float(numbers.sum(dtype=np.float64))
    return Values(pixels, pixels - numbers.size, 0, low, high, total, beyond, counts)


def _expect_form(task: Task, label: Label, where: str) -> None:
    """Refuses a label of another type or shape than its task's."""
    if isinstance(task, (ClassTask, Edge)):
        good, form = label.dtype == np.uint8 and label.ndim == 2, "uint8 of shape (H, W)"
    elif isinstance(task, Normals):
        good, form = label.dtype.kind == "f" and label.shape[2:] == (3,), "floating-point numbers of shape (H, W, 3)"
    else:
        good, form = label.dtype.kind == "f" and label.ndim == 2, "floating-point numbers of shape (H, W)"
    if not good and isinstance(task, (ClassTask, Edge, Normals, Depth)):
        raise UserError(f"{where}: found {label.dtype} of shape {label.shape}, expected {form}")


class _Job(NamedTuple):
    split: Split
    indices: Sequence[int]
    tasks: list[str]


def _work(source: DataSource, job: _Job) -> Findings:
    """What is found of some images."""
    found: Findings = {what: Finding() for what in ("image", *job.tasks)}
    for index in job.indices:
        size: tuple[int, ...] | None = None
        for what, finding in found.items():
            if what != "image" and not source.has_label(job.split, index, what):
                finding.without += 1
                continue
            label = _look(source, job.split, index, what, size, finding)
            if what == "image" and label is not None:
                size = label.shape[:2]
    return found


def _look(
    source: DataSource, split: Split, index: int, what: str, size: tuple[int, ...] | None, finding: Finding
) -> Label | None:
    """Decodes one file and notes what it is like; None if it can't be used.

    Args:
        source: the data set.
        split: the split.
        index: number of the image.
        what: ``"image"`` or a task.
        size: height and width of the image, if it is known.
        finding: where it is noted.
    """
    where = source.where(split, index, what)
    kind: Kind = "wrong content"
    try:
        label = source.load(split, index, what)
        if size is not None and label.shape[:2] != size:
            kind = "wrong size"
            check_size(where, label, size)
        if what != "image":
            finding.values.add(measure(source.tasks[what], label, where))
    except UserError as error:
        if error.__cause__ is not None:  # a message of the decoder's own has none
            kind = "missing" if isinstance(error.__cause__, FileNotFoundError) else "unreadable"
        reason = " ".join(str(error).split())
        finding.problems.append(Problem(split, what, source.ids(split)[index], kind, where, reason))
        return None
    finding.good += 1
    finding.sizes[label.shape[0], label.shape[1]] += 1
    return label


def _results(source: DataSource, jobs: Sequence[_Job], workers: int) -> Iterator[Findings]:
    """What the jobs find, in their order."""
    if workers == 0:
        yield from (_work(source, job) for job in jobs)
        return
    try:
        pickle.dumps(source)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{source.name} can't be sent to worker processes ({reason}); --workers 0 does without"
        ) from error
    pool = ProcessPoolExecutor(workers, mp_context=_context(), initializer=_start, initargs=(source,))
    try:
        yield from pool.map(_work_here, jobs)
    except BrokenProcessPool as error:
        raise UserError("a worker process died, perhaps for lack of memory; --workers 0 does without") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    """How processes start: as copies of a small one that has imported this and has no threads, where there is that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


_source: DataSource  # of a worker process


def _start(source: DataSource) -> None:
    global _source
    _source = source
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt ends it at once, without a trace


def _work_here(job: _Job) -> Findings:
    return _work(_source, job)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
