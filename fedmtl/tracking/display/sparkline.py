"""A series of numbers as one line of blocks, and times as words."""

import math
from collections.abc import Sequence
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """A series as blocks of a height between its least and its largest value.

    Args:
        values: None and values that are not finite leave a gap.
        width: most characters; of a longer series each stands for the mean of several neighbours.

    Returns:
        A character a value, or `width` of them; blocks of half the height where all values are the same.
    """
    finite = [value if value is not None and math.isfinite(value) else None for value in values]
    if len(finite) > width:
        ends = [round(i * len(finite) / width) for i in range(width + 1)]
        finite = [mean(finite[start:end]) for start, end in pairwise(ends)]
    known = [value for value in finite if value is not None]
    if not known:
        return " " * len(finite)
    low, high = min(known), max(known)
    if not high > low:
        return "".join(" " if value is None else BLOCKS[3] for value in finite)
    # each divided before they are subtracted: the range of two doubles need not be one
    levels = [None if v is None else (v / 2 - low / 2) / (high / 2 - low / 2) for v in finite]
    return "".join(" " if level is None else BLOCKS[min(int(level * 8), 7)] for level in levels)


def duration(seconds: float) -> str:
    """Seconds as words: ``45 s``, ``12 min``, ``3 h 05 min``, ``2 d 04 h``."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    return sum(value / len(known) for value in known) if known else None
