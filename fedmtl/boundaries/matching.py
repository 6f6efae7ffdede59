"""One-to-one matching of predicted with true pixels, the largest there is, at threshold after threshold."""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def match_sizes(
    present: NDArray[np.bool_], true_near: list[list[int]], predicted_near: list[list[int]]
) -> NDArray[np.int64]:
    """Size of a maximum matching of predicted with true pixels, at each threshold.

    From one threshold to the next lower most pixels stay, so the matching is kept and mended.

    Args:
        present: which predicted pixels there are at each threshold, (K, n).
        true_near: see `Matching`.
        predicted_near: see `Matching`.

    Returns:
        int64 (K,).
    """
    matching = Matching(true_near, predicted_near)
    sizes = np.zeros(len(present), dtype=np.int64)
    before = np.zeros(present.shape[1], dtype=bool)
    for k in reversed(range(len(present))):
        for pixel in np.flatnonzero(before & ~present[k]).tolist():
            matching.remove(pixel)
        for pixel in np.flatnonzero(present[k] & ~before).tolist():
            matching.add(pixel)
        before, sizes[k] = present[k], matching.size
    return sizes


class Matching:
    """A maximum one-to-one matching of predicted with true pixels, while predicted pixels come and go.

    A search that finds no augmenting path *closes* what it saw: true pixels that are all matched, and predicted
    pixels that are near no other true ones. Until one of those predicted pixels goes, no later search need look
    there, so all searches together cost little more than one.

    Args:
        true_near: for each predicted pixel the true pixels that it may match, best first.
        predicted_near: for each true pixel the predicted pixels that it may match.
    """

    def __init__(self, true_near: list[list[int]], predicted_near: list[list[int]]) -> None:
        self.true_near, self.predicted_near = true_near, predicted_near
        self.true_of, self.predicted_of = [-1] * len(true_near), [-1] * len(predicted_near)
        self.open_predicted, self.closed_true = [True] * len(true_near), [False] * len(predicted_near)
        self.size = 0

    def add(self, pixel: int) -> None:
        """Lets a predicted pixel in."""
        seen = augment(pixel, self.true_near, self.true_of, self.predicted_of, self.closed_true)
        if seen is None:
            self.size += 1
            return
        self.open_predicted[pixel] = False
        for true in seen:
            self.closed_true[true] = True
            self.open_predicted[self.predicted_of[true]] = False

    def remove(self, pixel: int) -> None:
        """Takes a predicted pixel out; one that found no partner may take its place."""
        self.open_predicted[pixel] = True
        true, self.true_of[pixel] = self.true_of[pixel], -1
        if true < 0:
            return
        self.predicted_of[true] = -1
        self.size -= 1
        if not self.closed_true[true]:
            return
        seen = augment(true, self.predicted_near, self.predicted_of, self.true_of, self.open_predicted)
        if seen is None:
            self.size += 1
            return
        self.closed_true[true] = False
        for other in seen:
            self.open_predicted[other] = True
            self.closed_true[self.true_of[other]] = False


def augment(
    start: int, near: list[list[int]], mine: list[int], theirs: list[int], barred: list[bool]
) -> Iterable[int] | None:
    """Matches `start` along a shortest augmenting path, found breadth first.

    Args:
        start: an unmatched pixel of one side.
        near: for each pixel of its side those of the other that it may match.
        mine: partner of each pixel of its side, -1 for none.
        theirs: partner of each pixel of the other side, -1 for none.
        barred: pixels of the other side that the path must not pass.

    Returns:
        None if there was a path, else the pixels of the other side that were reached, all of them matched.
    """
    reached: dict[int, int] = {}
    queue = [start]
    for a in queue:
        for b in near[a]:
            if barred[b] or b in reached:
                continue
            reached[b] = a
            if theirs[b] < 0:
                while b >= 0:
                    a = reached[b]
                    theirs[b], mine[a], b = a, b, mine[a]
                return None
            queue.append(theirs[b])
    return reached


def neighbours(
    a: NDArray[np.int64], b: NDArray[np.int64], shape: tuple[int, ...], radius: float
) -> tuple[list[list[int]], list[list[int]]]:
    """For each of the pixels `a` the positions in `b` of those within `radius`, nearest first; and the reverse.

    Args:
        a: flat indices of pixels.
        b: flat indices of pixels.
        shape: H, W.
        radius: in pixels.
    """
    reach = int(radius)
    width = shape[1] + 2 * reach
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    order = np.argsort(dy * dy + dx * dx, kind="stable")
    order = order[(dy * dy + dx * dx)[order] <= radius * radius]
    steps = (dy * width + dx)[order]
    position = np.full((shape[0] + 2 * reach) * width, -1, dtype=np.int32)
    padded_a, padded_b = ((p // shape[1] + reach) * width + p % shape[1] + reach for p in (a, b))
    position[padded_b] = np.arange(len(b))
    pairs = []
    for start in range(0, len(a), 4096):  # blocks that stay in a processor's cache
        table = position[padded_a[start : start + 4096, None] + steps]
        rows, columns = np.nonzero(table >= 0)
        pairs.append((rows + start, table[rows, columns]))
    in_a, in_b = (np.concatenate(side) for side in zip(*pairs, strict=True)) if pairs else (a[:0], b[:0])
    order = np.argsort(in_b, kind="stable")
    return split(in_b, in_a, len(a)), split(in_a[order], in_b[order], len(b))


def split(values: NDArray[np.integer], keys: NDArray[np.integer], count: int) -> list[list[int]]:
    """The values of each key 0 … count − 1; `keys` ascend."""
    flat = values.tolist()
    ends = np.searchsorted(keys, np.arange(count + 1)).tolist()
    return [flat[start:end] for start, end in pairwise(ends)]


def near_any(truth: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Whether any pixel of `truth` lies at most `reach` rows and columns away; flat."""
    for axis in (0, 1):
        sums = np.pad(np.cumsum(np.moveaxis(truth, axis, 0), axis=0), ((reach + 1, reach), (0, 0)), mode="edge")
        sums[: reach + 1] = 0
        truth = np.moveaxis(sums[2 * reach + 1 :] > sums[: -2 * reach - 1], 0, axis)
    return truth.ravel()
