"""Precision and recall of predicted boundaries by the BSDS protocol, in NumPy alone: importing it loads no torch."""

from fedmtl.boundaries.evaluation import (
    COARSE_THRESHOLDS,
    THRESHOLDS,
    Counts,
    average_precision,
    boundary_counts,
    f_measure,
)
from fedmtl.boundaries.thinning import thin
from fedmtl.boundaries.workers import ImageQueue

__all__ = [
    "COARSE_THRESHOLDS",
    "THRESHOLDS",
    "Counts",
    "ImageQueue",
    "average_precision",
    "boundary_counts",
    "f_measure",
    "thin",
]
