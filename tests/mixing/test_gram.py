"""Inner products and combinations across block borders, against NumPy."""

import numpy as np
import pytest
import torch

from fedmtl.mixing.gram import combine, cosines, gram, squared_distances

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
