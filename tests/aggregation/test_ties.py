from __future__ import annotations

import math

import numpy as np
import pytest

from fedmtl.aggregation.ties import TIES

from .merging import counting_at, merge, normal


def reference(updates: np.ndarray, weights: list[float], density: float) -> list[float]:
    """Coordinate by coordinate, on lists."""
    trimmed = []
    for update in updates.astype(np.float64):
        order = sorted(range(len(update)), key=lambda j: (-abs(update[j]), j))
        kept = set(order[: math.ceil(density * len(update) - 1e-9)])
        trimmed.append([value if j in kept else 0.0 for j, value in enumerate(update)])
    merged = []
    for values in zip(*trimmed, strict=True):
        mass = sum(w * v for w, v in zip(weights, values, strict=True))
        agreeing = [(w, v) for w, v in zip(weights, values, strict=True) if v * mass > 0]
        merged.append(sum(w * v for w, v in agreeing) / sum(w for w, _ in agreeing) if agreeing else 0.0)
    return merged


@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("clients", [1, 2, 5])
def test_it_follows_the_three_steps(clients: int, density: float) -> None:
    updates, weights = normal(clients, 40), [3.0, 1.0, 2.0, 10.0, 1.0][:clients]
    merged = merge(TIES(density=density), updates, weights)
    np.testing.assert_allclose(merged, reference(updates, weights, density), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(merge(TIES(density=density, scale=0.3), updates, weights), 0.3 * merged, rtol=1e-6)


def test_by_hand() -> None:
    updates = [
        [5.0, -4.0, 0.5, 0.0, 3.0],
        [-1.0, -2.0, 0.5, 4.0, 3.0],
        [6.0, 7.0, 0.5, -3.0, 0.0],
    ]
    # Three of five stay: (5, -4, ., ., 3), (., -2, ., 4, 3), (6, 7, ., -3, .).
    assert merge(TIES(density=0.6), updates).tolist() == [5.5, 7, 0, 4, 3]
    # With weights 1, 3, 1 the second coordinate has a mass of -4 - 6 + 7 < 0.
    assert merge(TIES(density=0.6), updates, [1, 3, 1]).tolist() == [5.5, -2.5, 0, 4, 3]


def test_equal_masses_elect_no_sign() -> None:
    assert merge(TIES(density=1.0), [[2, 1], [-1, 1]], [1, 2]).tolist() == [0, 1]


def test_zeros_do_not_count_whether_sent_or_not() -> None:
    updates = [[4.0, 0.0, 0.0], [2.0, 6.0, 0.0]]
    masked = [counting_at(update, [value != 0 for value in update]) for update in updates]
    assert merge(TIES(density=1.0), updates).tolist() == [3, 6, 0]
    assert merge(TIES(density=1.0), masked).tolist() == [3, 6, 0]


@pytest.mark.parametrize("density", [0, 1.1, -0.2, math.nan])
def test_bad_densities_are_refused(density: float) -> None:
    with pytest.raises(ValueError, match=r"^density must be in \(0, 1\], not"):
        TIES(density=density)


@pytest.mark.parametrize("scale", [0, math.inf, math.nan])
def test_bad_scales_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"^scale must be a finite number above 0, not"):
        TIES(scale=scale)
