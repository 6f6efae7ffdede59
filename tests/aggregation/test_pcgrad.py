from __future__ import annotations

import numpy as np
import pytest

from fedmtl.aggregation.pcgrad import PCGrad

from .merging import merge, normal


def reference(updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The projections, on the vectors themselves."""
    updates = updates.astype(np.float64)
    results = []
    for i, start in enumerate(updates):
        vector = start.copy()
        others = [j for j in range(len(updates)) if j != i]
        cosine = {j: start @ updates[j] / np.linalg.norm(start) / np.linalg.norm(updates[j]) for j in others}
        for j in sorted(others, key=cosine.__getitem__):
            unit = updates[j] / np.linalg.norm(updates[j])
            vector = vector - min(vector @ unit, 0) * unit
        results.append(vector)
    return np.average(results, axis=0, weights=weights)


@pytest.mark.parametrize("seed", range(20))
def test_it_follows_the_projections_of_the_vectors(seed: int) -> None:
    clients, d = 2 + seed % 6, 3 + seed % 4  # few dimensions, so that many conflict
    rng = np.random.default_rng(seed)
    updates = normal(clients, d, seed) * rng.uniform(0.01, 100, (clients, 1)).astype(np.float32)
    weights = rng.uniform(1, 9, clients)
    merged = merge(PCGrad(), updates, weights.tolist())
    expected = reference(updates, weights)
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_two_clients_by_hand() -> None:
    # (1, 0) loses its part along (-1, 1): (0.5, 0.5); (-1, 1) loses its part along (1, 0): (0, 1).
    np.testing.assert_allclose(merge(PCGrad(), [[1, 0], [-1, 1]]), [0.25, 0.75])
    np.testing.assert_allclose(merge(PCGrad(), [[1, 0], [-1, 1]], [3, 1]), [0.375, 0.625])


def test_a_later_projection_sees_what_an_earlier_one_left() -> None:
    # (1, 0, 0) does not conflict with (0, 1, 0), but does once (-2, -1, 0) has been taken off it.
    updates = [[1, 0, 0], [0, 1, 0], [-2, -1, 0]]
    first = np.array([1, 0, 0]) + 2 / 5 * np.array([-2, -1, 0])
    assert first[1] < 0
    first[1] = 0
    second = np.array([0, 1, 0]) + 1 / 5 * np.array([-2, -1, 0])
    second[0] = 0
    third = np.zeros(3)
    np.testing.assert_allclose(merge(PCGrad(), updates), (first + second + third) / 3, atol=1e-7)


def test_without_conflicts_it_is_the_weighted_mean() -> None:
    updates = np.abs(normal(4, 8))
    np.testing.assert_allclose(merge(PCGrad(), updates, [1, 2, 3, 4]), np.average(updates, 0, [1, 2, 3, 4]), rtol=1e-5)


def test_opposite_and_zero_updates() -> None:
    np.testing.assert_allclose(merge(PCGrad(), [[1, 2], [-3, -6], [0, 0]]), [0, 0], atol=1e-7)
    np.testing.assert_allclose(merge(PCGrad(), [[1, 0], [-1, 1], [0, 0]]), [0.5 / 3, 1.5 / 3], rtol=1e-6)


def test_equally_conflicting_clients_come_in_an_order_that_their_content_gives() -> None:
    updates = np.array([[1, 0, 0], [-1, 1, 1], [-1, 1, -1]])
    merged = merge(PCGrad(), updates)
    for order in ([0, 2, 1], [2, 1, 0], [1, 0, 2]):
        np.testing.assert_array_equal(merge(PCGrad(), updates[order]), merged)
