"""Counts of matched, predicted and true boundary pixels, and the numbers that follow from them."""

import numpy as np
from numpy.typing import NDArray

from fedmtl.boundaries.matching import match_sizes, near_any, neighbours
from fedmtl.boundaries.suppression import suppress_non_maxima
from fedmtl.boundaries.thinning import thinned_maps

Counts = NDArray[np.int64]  # (3, ...): matched, predicted and true pixels

THRESHOLDS = np.arange(1, 100) / 100
COARSE_THRESHOLDS = THRESHOLDS[4::5]  # 0.05, 0.10 … 0.95


def boundary_counts(
    probability: NDArray[np.floating],
    truth: NDArray[np.bool_],
    known: NDArray[np.bool_],
    *,
    thresholds: NDArray[np.float64] = THRESHOLDS,
    max_distance: float = 0.0075,
) -> Counts:
    """Matched, predicted and true boundary pixels of one image at each threshold.

    Non-maximum suppression, then at each threshold: binary map, thinning, and a one-to-one match of as many
    predicted and true pixels as possible, at most `max_distance` image diagonals apart. The truth is taken as
    it is: the protocol thins predictions only.

    Args:
        probability: of a boundary, (H, W); NaN counts as 0.
        truth: whether a pixel is a boundary, (H, W).
        known: whether a pixel's truth is known, (H, W); others are neither predicted nor true.
        thresholds: K thresholds, ascending and above 0.
        max_distance: in image diagonals √(H² + W²).

    Returns:
        int64 (3, K): matched, predicted, true pixels.
    """
    strength = np.where(known, suppress_non_maxima(np.nan_to_num(probability, nan=0.0)), 0)
    where, present = thinned_maps(np.searchsorted(thresholds, strength, side="right"), len(thresholds))
    predicted = present.sum(axis=1)
    truth = truth & known
    radius = max_distance * np.hypot(*truth.shape)
    close = near_any(truth, int(radius))[where]
    true = np.flatnonzero(truth)
    matched = match_sizes(present[:, close], *neighbours(where[close], true, truth.shape, radius))
    return np.stack([matched, predicted, np.full_like(predicted, len(true))])


def f_measure(counts: Counts) -> NDArray[np.float64]:
    """F = 2PR / (P + R) = 2 · matched / (predicted + true) of counts (3, ...); 0 where there is no pixel."""
    matched, predicted, true = counts
    return 2 * matched / np.maximum(predicted + true, 1)


def average_precision(counts: Counts) -> float:
    """Mean of the precision at recalls 0, 0.01 … 0.99, interpolated between thresholds; counts are (3, K).

    It is 0 beyond the recalls that were reached. As in edgesEvalDir, the lowest threshold stands for those of
    equal recall, and a curve of a single recall has none; the original's additional value at recall 1, which
    lets it pass 1, is left out.
    """
    matched, predicted, true = counts
    recall, first = np.unique(matched / np.maximum(true, 1), return_index=True)
    precision = (matched / np.maximum(predicted, 1))[first]
    if len(recall) == 1:
        return 0.0
    return float(np.interp(np.arange(100) / 100, recall, precision, left=0, right=0).mean())
