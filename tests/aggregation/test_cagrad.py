from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fedmtl.aggregation.cagrad import CAGrad

from .merging import merge, normal


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Conflicting updates of unlike norms, weights, and their mean."""
    rng = np.random.default_rng(seed)
    clients = 2 + seed % 7
    updates = normal(clients, 3 + seed % 9, seed) * rng.uniform(0.2, 5, (clients, 1)).astype(np.float32)
    weights = rng.uniform(1, 9, clients)
    return updates.astype(np.float64), weights, np.average(updates.astype(np.float64), 0, weights)


def direction(updates: Any, weights: Any, c: float) -> np.ndarray:
    return merge(CAGrad(c=c, rescale="none"), updates, list(weights))


def dual(share: np.ndarray, updates: np.ndarray, mean: np.ndarray, c: float) -> Any:
    pulled = share @ updates
    return pulled @ mean + c * np.linalg.norm(mean) * np.linalg.norm(pulled)


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("seed", range(20))
def test_the_worst_client_gains_what_the_dual_allows(seed: int, c: float) -> None:
    updates, weights, mean = problem(seed)
    d = direction(updates, weights, c)
    assert np.linalg.norm(d - mean) <= c * np.linalg.norm(mean) * (1 + 1e-6)
    start = np.full(len(updates), 1 / len(updates))
    solution = minimize(
        dual,
        start,
        (updates, mean, c),
        method="SLSQP",
        bounds=[(0, 1)] * len(updates),
        constraints={"type": "eq", "fun": lambda share: share.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    # Any point of the simplex bounds the best worst case from above: solved, both sides are equal.
    gain = (updates @ d).min()
    size = np.linalg.norm(mean) * np.linalg.norm(updates, axis=1).max()
    assert gain <= solution.fun + 1e-6 * size
    assert gain == pytest.approx(solution.fun, abs=1e-5 * size)


@pytest.mark.parametrize("c", [0.2, 0.7])
@pytest.mark.parametrize("seed", range(8))
def test_three_clients_against_a_grid_of_the_simplex(seed: int, c: float) -> None:
    updates, weights = normal(3, 5, seed).astype(np.float64), np.array([1.0, 2.0, 3.0])
    mean = np.average(updates, 0, weights)
    steps = np.linspace(0, 1, 401)
    grid = np.array([(a, b, 1 - a - b) for a in steps for b in steps if a + b <= 1 + 1e-12])
    pulled = grid @ updates
    values = pulled @ mean + c * np.linalg.norm(mean) * np.linalg.norm(pulled, axis=1)
    best = pulled[values.argmin()]
    expected = mean + c * np.linalg.norm(mean) * best / np.linalg.norm(best)
    np.testing.assert_allclose(direction(updates, weights, c), expected, atol=0.02 * np.linalg.norm(mean))


@pytest.mark.parametrize("seed", range(20))
def test_it_meets_the_optimality_conditions(seed: int) -> None:
    updates, weights, mean = problem(seed)
    c = 0.5
    solver = CAGrad(c=c, rescale="none")
    shares = weights / weights.sum()
    pull = solver.coefficients(updates @ updates.T, weights) - shares
    d = (shares + pull) @ updates
    gains = updates @ d
    size = np.linalg.norm(mean) * np.linalg.norm(updates, axis=1).max()
    assert pull.min() >= 0
    assert np.linalg.norm(d - mean) == pytest.approx(c * np.linalg.norm(mean), rel=1e-9)
    np.testing.assert_allclose(gains[pull > 1e-9], gains.min(), atol=1e-9 * size)


def test_two_clients_by_hand() -> None:
    # The mean is (0, 1), and both gain the same by going up: no other point of the ball is better for the worse one.
    np.testing.assert_allclose(direction([[1, 1], [-1, 1]], [1, 1], 0.5), [0, 1.5], atol=1e-7)
    # The mean is (1, 0.5), and (-1, 1) gains less anywhere in the ball: all of the radius goes its way.
    mean = np.array([1.0, 0.5])
    toward = np.array([-1, 1]) / 2**0.5
    np.testing.assert_allclose(
        direction([[3, 0], [-1, 1]], [1, 1], 0.2), mean + 0.2 * np.linalg.norm(mean) * toward, rtol=1e-6
    )


@pytest.mark.parametrize(("rescale", "factor"), [("none", 1.0), ("1/(1+c)", 1 / 1.3), ("1/(1+c^2)", 1 / 1.09)])
def test_rescale_divides_the_direction(rescale: Any, factor: float) -> None:
    updates, weights, _ = problem(3)
    expected = factor * direction(updates, weights, 0.3)
    np.testing.assert_allclose(merge(CAGrad(c=0.3, rescale=rescale), updates, list(weights)), expected, rtol=1e-5)


def test_c_0_is_the_weighted_mean() -> None:
    updates, weights, mean = problem(5)
    np.testing.assert_allclose(merge(CAGrad(c=0), updates, list(weights)), mean, rtol=1e-5, atol=1e-6)


def test_where_updates_cancel_it_goes_to_the_nearest_point_that_harms_none() -> None:
    # (1, 0) and (-1, 0) can't both gain; only (0, y) harms neither, and the mean's own y is the nearest.
    updates = [[1, 0], [-1, 0], [0.5, 1]]
    np.testing.assert_allclose(direction(updates, [1, 1, 1], 0.8), [0, 1 / 3], atol=1e-6)
    # Without a conflict that is the mean itself.
    np.testing.assert_allclose(direction([[1, 0], [-1, 0], [0, 1]], [1, 1, 1], 0.8), [0, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(direction([[2, 1], [1, 2], [0, 0]], [1, 1, 1], 0.8), [1, 1], rtol=1e-6)


def test_opposite_updates_stay_at_the_mean_less_what_the_ball_allows() -> None:
    # On a line the client that goes against the mean is always the worse one.
    np.testing.assert_allclose(direction([[3, 0], [-1, 0]], [1, 1], 0.4), [0.6, 0], rtol=1e-6)
    assert not direction([[1, 2], [-1, -2]], [1, 1], 0.4).any()


@pytest.mark.parametrize("small", [1e-3, 1e-5])
def test_a_far_smaller_update_keeps_its_direction(small: float) -> None:
    # The small client always gains least, so that the whole radius goes its way.
    updates = np.array([[2, 0, 0], [0, 2, 0], [0, 0, small]])
    mean = updates.mean(0)
    radius = 0.4 * np.linalg.norm(mean)
    d = direction(updates, [1, 1, 1], 0.4)
    np.testing.assert_allclose(d, mean + radius * np.array([0, 0, 1]), rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from([0.1, 0.5, 0.99]),
)
def test_degenerate_updates_gain_at_least_what_the_dual_says(rows: list[list[int]], c: float) -> None:
    updates = np.array(rows, dtype=np.float64)  # equal, opposite, zero and dependent ones
    mean = updates.mean(0)
    d = direction(updates, np.ones(len(updates)), c)
    assert np.linalg.norm(d - mean) <= c * np.linalg.norm(mean) + 1e-6
    gain = (updates @ d).min()
    rng = np.random.default_rng(0)
    shares = np.concatenate([np.eye(len(updates)), rng.dirichlet(np.full(len(updates), 0.5), 500)])
    assert gain <= min(dual(share, updates, mean, c) for share in shares) + 1e-5
    others = mean + c * np.linalg.norm(mean) * _ball(1000)
    assert gain >= (others @ updates.T).min(1).max() - 1e-5


def _ball(count: int) -> np.ndarray:
    points = np.random.default_rng(1).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True) * np.linspace(0, 1, count)[:, None]


@pytest.mark.parametrize("c", [-0.1, 1.0, float("nan")])
def test_bad_c_is_refused(c: float) -> None:
    with pytest.raises(ValueError, match=r"^c must be in \[0, 1\), not"):
        CAGrad(c=c)


def test_unknown_rescale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rescale must be one of none, 1/\(1\+c\), 1/\(1\+c\^2\), not 'mean'$"):
        CAGrad(rescale="mean")  # type: ignore[arg-type]
