"""What `CAGrad` adds to the conflict-averse direction (tests/test_gram.py): weights, fp32 updates, rescaling."""

from typing import Any

import numpy as np
import pytest

from fedmtl.aggregation.cagrad import CAGrad

from .merging import merge


@pytest.mark.parametrize(("rescale", "factor"), [("none", 1.0), ("1/(1+c)", 1 / 1.2), ("1/(1+c^2)", 1 / 1.04)])
def test_weights_make_the_mean_and_rescale_divides_the_direction(rescale: Any, factor: float) -> None:
    # The weighted mean is (1, 0.5), and (-1, 1) gains less anywhere in the ball: all of the radius goes its way.
    mean, toward = np.array([1.0, 0.5]), np.array([-1, 1]) / 2**0.5
    expected = factor * (mean + 0.2 * np.linalg.norm(mean) * toward)
    merged = merge(CAGrad(c=0.2, rescale=rescale), [[5 / 3, 1 / 3], [-1, 1]], [3, 1])
    np.testing.assert_allclose(merged, expected, rtol=1e-6)


def test_c_0_is_the_weighted_mean() -> None:
    merged = merge(CAGrad(c=0), [[1, -2, 0], [3, 4, 8]], [3, 1])
    np.testing.assert_allclose(merged, [1.5, -0.5, 2], rtol=1e-6)


@pytest.mark.parametrize("small", [1e-3, 1e-5])
def test_a_far_smaller_update_keeps_its_direction(small: float) -> None:
    # The small client always gains least, so that the whole radius goes its way.
    updates = np.array([[2, 0, 0], [0, 2, 0], [0, 0, small]])
    mean = updates.mean(0)
    radius = 0.4 * np.linalg.norm(mean)
    d = merge(CAGrad(rescale="none"), updates)
    np.testing.assert_allclose(d, mean + radius * np.array([0, 0, 1]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("c", [-0.1, 1.0, float("nan")])
def test_bad_c_is_refused(c: float) -> None:
    with pytest.raises(ValueError, match=r"^c must be in \[0, 1\), not"):
        CAGrad(c=c)


def test_unknown_rescale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rescale must be one of none, 1/\(1\+c\), 1/\(1\+c\^2\), not 'mean'$"):
        CAGrad(rescale="mean")  # type: ignore[arg-type]
