"""Inner products and combinations across block borders, against NumPy; the conflict-averse one against its dual."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fedmtl.gram import combine, conflict_averse, cosines, gram, squared_distances

VECTORS = [torch.randn(150_001, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
WIDE = np.stack([vector.double().numpy() for vector in VECTORS])


def test_gram_in_double_precision_over_several_blocks() -> None:
    assert gram(VECTORS) == pytest.approx(WIDE @ WIDE.T, rel=1e-12, abs=1e-8)


def test_centred_gram() -> None:
    weights = np.array([0.5, 0.2, 0.3])
    centred = WIDE - weights @ WIDE
    assert gram(VECTORS, centre=weights) == pytest.approx(centred @ centred.T, rel=1e-12, abs=1e-8)


def test_centring_loses_nothing_to_cancellation() -> None:
    far = [torch.full((4,), 1e4), torch.full((4,), 1e4) + torch.tensor([2.0**-9, 0, 0, 0])]
    assert gram(far, centre=np.array([0.5, 0.5]))[0, 0] == 2.0**-20


def test_combinations() -> None:
    coefficients = np.array([[0.2, 0.3, 0.5], [1.0, -2.0, 0.0]])
    for got, expected in zip(combine(coefficients, VECTORS), coefficients @ WIDE, strict=True):
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), expected, rtol=2e-7, atol=1e-7)


def test_empty_vectors() -> None:
    empty = [torch.empty(0), torch.empty(0)]
    assert (gram(empty) == np.zeros((2, 2))).all()
    assert [vector.shape for vector in combine(np.eye(2), empty)] == [(0,), (0,)]


def test_squared_distances() -> None:
    expected = np.square(WIDE[:, None] - WIDE[None]).sum(axis=2)
    assert squared_distances(gram(VECTORS)) == pytest.approx(expected, rel=1e-10, abs=1e-6)


def test_cosines_with_zero_vectors() -> None:
    vectors = torch.tensor([[3.0, 0], [0, 0], [1, 1], [0, 0]])
    root = np.sqrt(0.5)
    expected = [[1, 0, root, 0], [0, 1, 0, 1], [root, 0, 1, 0], [0, 1, 0, 1]]
    assert cosines(gram(list(vectors))) == pytest.approx(np.array(expected))


def test_rounding_leads_out_of_no_range() -> None:
    products = np.array([[1.0, np.nextafter(1, 2)], [np.nextafter(1, 2), 1.0]])
    assert squared_distances(products).min() == 0
    assert cosines(products).max() == 1


def direction(updates: Any, c: float, shares: Any = None) -> np.ndarray:
    updates = np.array(updates, dtype=np.float64)
    shares = np.full(len(updates), 1 / len(updates)) if shares is None else np.array(shares)
    return conflict_averse(updates @ updates.T, shares, c) @ updates


def dual(mixture: np.ndarray, updates: np.ndarray, mean: np.ndarray, c: float) -> Any:
    """Any point of the simplex bounds the best worst gain from above: solved, both are equal."""
    mixed = mixture @ updates
    return mixed @ mean + c * np.linalg.norm(mean) * np.linalg.norm(mixed)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("seed", range(16))
def test_the_worst_client_gains_what_the_dual_allows(seed: int, c: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    count = 1 + seed % 8
    updates = rng.normal(size=(count, 3 + seed % 9)) * rng.uniform(0.2, 5, (count, 1))
    shares = rng.dirichlet(np.full(count, 3.0))
    mean = shares @ updates
    size = np.linalg.norm(mean) * np.linalg.norm(updates, axis=1).max()
    bound = minimize(
        lambda mixture: dual(mixture, updates, mean, c) / size,
        np.full(count, 1 / count),
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda mixture: mixture.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    pull = conflict_averse(updates @ updates.T * scale**2, shares, c) - shares
    d = (shares + pull) @ updates
    gains = updates @ d / size
    assert gains.min() == pytest.approx(bound.fun, abs=1e-6)
    # The conditions of optimality, which are sharper than what a general solver finds.
    assert pull.min() >= -1e-15
    assert np.linalg.norm(d - mean) == pytest.approx(c * np.linalg.norm(mean), rel=1e-9)
    np.testing.assert_allclose(gains[pull > 1e-9], gains.min(), atol=1e-9)


def test_two_clients_by_hand() -> None:
    # The mean is (0, 1), and both gain the same by going up: no other point of the ball is better for the worse one.
    np.testing.assert_allclose(direction([[1, 1], [-1, 1]], 0.5), [0, 1.5], atol=1e-9)
    # The mean is (1, 0.5), and (-1, 1) gains less anywhere in the ball: all of the radius goes its way.
    mean, toward = np.array([1.0, 0.5]), np.array([-1, 1]) / 2**0.5
    np.testing.assert_allclose(direction([[3, 0], [-1, 1]], 0.2), mean + 0.2 * np.linalg.norm(mean) * toward, rtol=1e-9)


def test_where_updates_cancel_it_goes_to_the_nearest_point_that_harms_none() -> None:
    # (1, 0) and (-1, 0) can't both gain; only (0, y) harms neither, and the mean's own y is the nearest.
    np.testing.assert_allclose(direction([[1, 0], [-1, 0], [0.5, 1]], 0.8), [0, 1 / 3], atol=1e-6)
    # Without a conflict that is the mean itself.
    np.testing.assert_allclose(direction([[1, 0], [-1, 0], [0, 1]], 0.8), [0, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(direction([[2, 1], [1, 2], [0, 0]], 0.8), [1, 1], rtol=1e-6)


def test_opposite_updates_stay_at_the_mean_less_what_the_ball_allows() -> None:
    # On a line the client that goes against the mean is always the worse one.
    np.testing.assert_allclose(direction([[3, 0], [-1, 0]], 0.4), [0.6, 0], rtol=1e-6, atol=1e-12)
    assert not direction([[1, 2], [-1, -2]], 0.4).any()


def test_identical_updates_are_lengthened_only() -> None:
    np.testing.assert_allclose(direction([[3, -4]] * 4, 0.4), [4.2, -5.6])


def test_radius_0_gives_the_mean() -> None:
    shares = np.array([0.5, 0.25, 0.25])
    assert (conflict_averse(np.diag([1.0, 4.0, 0.0]), shares, 0.0) == shares).all()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from([0.1, 0.5, 0.99]),
    st.sampled_from([1e-30, 1.0, 1e15]),
)
def test_degenerate_updates_gain_at_least_what_the_dual_says(rows: list[list[int]], c: float, scale: float) -> None:
    updates = np.array(rows, dtype=np.float64)  # equal, opposite, zero and dependent ones
    mean = updates.mean(0)
    d = direction(updates * scale, c) / scale
    assert np.linalg.norm(d - mean) <= c * np.linalg.norm(mean) + 1e-9
    gain = (updates @ d).min()
    rng = np.random.default_rng(0)
    mixtures = np.concatenate([np.eye(len(updates)), rng.dirichlet(np.full(len(updates), 0.5), 500)])
    assert gain <= min(dual(mixture, updates, mean, c) for mixture in mixtures) + 1e-5
    others = mean + c * np.linalg.norm(mean) * _ball(1000)
    assert gain >= (others @ updates.T).min(1).max() - 1e-5


def _ball(count: int) -> np.ndarray:
    points = np.random.default_rng(1).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True) * np.linspace(0, 1, count)[:, None]
