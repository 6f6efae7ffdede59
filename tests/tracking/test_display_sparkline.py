"""Series as blocks, times as words."""

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmtl.tracking.display.sparkline import BLOCKS, duration, mean, sparkline


def test_least_and_largest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7, 8], 9) == "▁▂▃▄▅▆▇██"
    assert sparkline([3, 1, 2], 20) == "█▁▅"
    assert sparkline([2, 2], 9) == "▄▄"
    assert sparkline([], 9) == ""


def test_gaps() -> None:
    assert sparkline([1, None, 2, math.nan, math.inf], 9) == "▁ █  "
    assert sparkline([None, math.nan], 9) == "  "


def test_longer_series_are_means_of_neighbours() -> None:
    assert sparkline([0, 2, 4, 6, 7, 9], 3) == sparkline([1, 5, 8], 3)
    assert sparkline([1, None, None, None, 5, 5], 3) == "▁ █"


@given(st.lists(st.none() | st.floats()), st.integers(1, 50))
def test_any_series(values: list[float | None], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    assert set(line) <= {" ", *BLOCKS}


def test_mean_of_what_is_known() -> None:
    assert mean([1.0, None, 4.0]) == 2.5
    assert mean([None]) is None
    assert mean([sys.float_info.max] * 2) == sys.float_info.max


def test_the_largest_range() -> None:
    assert sparkline([-sys.float_info.max, 0, sys.float_info.max], 3) == "▁▅█"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (90, "2 min"), (3569, "59 min"), (3571, "1 h 00 min"),
     (3900, "1 h 05 min"), (86_000, "23 h 53 min"), (100_000, "1 d 04 h")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
