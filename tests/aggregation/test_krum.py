from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedmtl.aggregation.krum import Krum

from .merging import merge, normal


def reference(updates: np.ndarray, byzantine: int, keep: int) -> np.ndarray:
    """Scores as the smallest sum over all choices of neighbours."""
    scores = []
    for i in range(len(updates)):
        squares = [float(((updates[i] - other) ** 2).sum()) for j, other in enumerate(updates) if j != i]
        scores.append(min(map(sum, itertools.combinations(squares, len(updates) - byzantine - 2))))
    return updates[sorted(range(len(updates)), key=scores.__getitem__)[:keep]].mean(0)


@pytest.mark.parametrize(("clients", "byzantine"), [(3, 0), (5, 0), (5, 1), (7, 1), (7, 2), (9, 3)])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_it_averages_those_of_lowest_score(clients: int, byzantine: int, keep: int) -> None:
    for seed in range(5):
        updates = normal(clients, 6, seed) + 1000  # far from 0, where squares of norms nearly cancel
        if keep == 1 and clients - byzantine == 3:  # the nearest two have the same score
            continue
        merged = merge(Krum(byzantine=byzantine, keep=keep), updates, [99, *range(1, clients)])
        np.testing.assert_allclose(merged, reference(updates.astype(np.float64), byzantine, keep), rtol=1e-6)


def test_outliers_are_left_out() -> None:
    updates = normal(7, 6)
    updates[1], updates[4] = 1e15, -1e3
    merged = merge(Krum(byzantine=2, keep=5), updates, [1, 1e6, 1, 1, 1e6, 1, 1])
    np.testing.assert_allclose(merged, updates[[0, 2, 3, 5, 6]].mean(0), rtol=1e-5, atol=1e-6)


def test_a_tie_is_broken_by_content() -> None:
    updates = np.array([[0.0, 5], [0, 1], [0, 2]])  # the last two are each other's nearest
    for order in itertools.permutations(range(3)):
        assert merge(Krum(byzantine=0), updates[list(order)]).tolist() == [0, 1]


@pytest.mark.parametrize(("byzantine", "keep", "clients"), [(1, 1, 4), (0, 1, 2), (2, 1, 6), (0, 4, 3), (1, 5, 5)])
def test_with_too_few_updates_it_suspects_as_many_as_it_can(byzantine: int, keep: int, clients: int) -> None:
    krum = Krum(byzantine=byzantine, keep=keep)
    assert krum.fewest == max(2 * byzantine + 3, keep + byzantine) > clients
    updates = normal(clients, 3)
    left = max(0, (clients - 3) // 2)
    expected = reference(updates.astype(np.float64), left, min(keep, clients - left)) if clients > 2 else None
    merged = merge(krum, updates)
    if expected is None:  # each is the other's only neighbour: any of the two
        assert min(np.abs(merged - update).max() for update in updates) < 1e-6
    else:
        np.testing.assert_allclose(merged, expected, rtol=1e-6)
    assert merge(Krum(byzantine=byzantine, keep=keep), updates[:1]).tolist() == updates[0].tolist()


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^byzantine must be at least 0, not -1$"):
        Krum(byzantine=-1)
    with pytest.raises(ValueError, match=r"^keep must be at least 1, not 0$"):
        Krum(keep=0)
