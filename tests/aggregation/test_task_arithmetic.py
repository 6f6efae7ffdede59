from __future__ import annotations

import math

import numpy as np
import pytest

from fedmtl.aggregation.task_arithmetic import TaskArithmetic

from .merging import merge, normal


def test_it_is_the_scaled_sum_whatever_the_weights() -> None:
    arrays = normal(4, 9)
    expected = 0.3 * arrays.sum(0, dtype=np.float64)
    np.testing.assert_allclose(
        merge(TaskArithmetic(scale=0.3), arrays, [1, 20, 300, 4]), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan])
def test_bad_scales_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"^scale must be a finite number above 0, not"):
        TaskArithmetic(scale=scale)
