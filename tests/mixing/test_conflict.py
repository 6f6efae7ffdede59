"""The conflict-averse direction against certificates of optimality and hand-worked cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.optimize import minimize

from fedmtl.mixing import conflict_averse_weights


def direction(updates: np.ndarray, c: float, shares: np.ndarray | None = None) -> np.ndarray:
    return conflict_averse_weights(updates @ updates.T, c, shares) @ updates * (1 + c * c)


def dual_value(updates: np.ndarray, c: float, shares: np.ndarray) -> float:
    """The least value that a general solver finds; the worst client can't gain more."""
    mean = shares @ updates
    radius, size = c * np.linalg.norm(mean), np.linalg.norm(updates) ** 2 / len(updates)

    def value(weights: np.ndarray) -> float:
        mixture = weights @ updates
        return float(mixture @ mean + radius * np.linalg.norm(mixture)) / size

    count = len(updates)
    sums_to_one = {"type": "eq", "fun": lambda weights: weights.sum() - 1}
    starts = [np.full(count, 1 / count), *np.eye(count)]
    found = [
        minimize(value, start, bounds=[(0, 1)] * count, constraints=sums_to_one, options={"ftol": 1e-14}).fun
        for start in starts
    ]
    return min(found) * size


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_is_feasible_and_reaches_the_dual_value(c: float, count: int, scale: float) -> None:
    rng = np.random.default_rng(count)
    updates = rng.normal(size=(count, 5)) * scale
    updates[-1] -= 0.5 * updates[0]  # some conflict
    shares = rng.dirichlet(np.ones(count))
    found, mean = direction(updates, c, shares), shares @ updates
    assert np.linalg.norm(found - mean) <= c * np.linalg.norm(mean) * (1 + 1e-7)
    assert (updates @ found).min() >= dual_value(updates, c, shares) - 1e-7 * scale**2


def test_orthogonal_updates_by_hand() -> None:
    # Mean (1, ½), worst client the second: the direction turns towards it until the ball ends.
    updates, c = np.array([[2.0, 0.0], [0.0, 1.0]]), 0.2
    angle = np.arctan2(*(found := direction(updates, c))[::-1])
    radius = c * np.hypot(1, 0.5)
    assert found == pytest.approx([1.0, 0.5 + radius], rel=1e-7)
    assert angle > np.arctan2(0.5, 1)


def test_c_0_is_the_mean() -> None:
    gram = np.diag([1.0, 4.0, 0.0])
    assert conflict_averse_weights(gram, 0.0) == pytest.approx([1 / 3] * 3)
    assert conflict_averse_weights(gram, 0.0, np.array([0.5, 0.25, 0.25])) == pytest.approx([0.5, 0.25, 0.25])


def test_identical_updates_are_lengthened_only() -> None:
    updates = np.tile([3.0, -4.0], (4, 1))
    assert direction(updates, 0.4) == pytest.approx(1.4 * updates[0])


def test_helps_the_client_that_the_mean_harms() -> None:
    updates = np.array([[1.0, 0.2], [0.9, 0.1], [-0.5, 0.6]])
    mean = updates.mean(axis=0)
    assert (updates @ mean).min() < 0
    assert (updates @ direction(updates, 0.9)).min() > 0


def test_worst_mixture_that_vanishes() -> None:
    """0 lies on the border of the hull, so that nothing better than 0 for all is to be had."""
    updates = np.array([[1.0, 0.0], [-1.0, 0.0], [0.5, 1.0]])
    found, mean = direction(updates, 0.6), updates.mean(axis=0)
    assert np.linalg.norm(found - mean) <= 0.6 * np.linalg.norm(mean) + 1e-9
    assert (updates @ found).min() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("updates", [np.zeros((3, 2)), np.array([[1.0, 0], [-1.0, 0]]), np.array([[0.0, 0], [1, 0]])])
def test_degenerate_updates(updates: np.ndarray) -> None:
    found, mean = direction(updates, 0.4), updates.mean(axis=0)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - mean) <= 0.4 * np.linalg.norm(mean) + 1e-12


@pytest.mark.parametrize("c", [-0.1, 1.0, float("nan")])
def test_c_outside_its_range_is_refused(c: float) -> None:
    with pytest.raises(ValueError, match="c must be in"):
        conflict_averse_weights(np.eye(2), c)


grids = npst.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.integers(-3, 3).map(float))


@settings(max_examples=150, deadline=None)
@given(grids, st.sampled_from([0.05, 0.4, 0.99]), st.sampled_from([1e-9, 1.0, 1e9]))
def test_never_leaves_the_ball_nor_falls_behind_the_mean(updates: np.ndarray, c: float, scale: float) -> None:
    """Small integers bring about equal, opposite, zero and dependent updates."""
    found, mean = direction(updates * scale, c) / scale, updates.mean(axis=0)
    size = np.square(updates).sum(axis=1).mean()
    assert np.linalg.norm(found - mean) <= c * np.linalg.norm(mean) + 1e-7 * np.sqrt(size)
    assert (updates @ found).min() >= (updates @ mean).min() - 1e-6 * size
