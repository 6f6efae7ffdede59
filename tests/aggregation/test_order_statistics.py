from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from fedmtl.aggregation.order_statistics import CoordinateMedian, TrimmedMean, _sort
from fedmtl.aggregation.update import PartUpdate

from .merging import counting_at, merge, normal


@pytest.mark.parametrize("clients", range(1, 12))
def test_both_match_numpy_and_scipy_whatever_the_weights(clients: int) -> None:
    updates = np.round(normal(clients, 200) * 2) / 2  # with ties
    weights = [float(1 + k * k) for k in range(clients)]
    wide = updates.astype(np.float64)
    np.testing.assert_allclose(merge(CoordinateMedian(), updates, weights), np.median(wide, axis=0), rtol=1e-6)
    for trim in (0, 0.1, 0.25, 0.4, 0.49):
        expected = trim_mean(wide, trim, axis=0)
        np.testing.assert_allclose(merge(TrimmedMean(trim=trim), updates, weights), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [CoordinateMedian, TrimmedMean, lambda: TrimmedMean(trim=0.4)])
@pytest.mark.parametrize("clients", [1, 2, 5, 8])
def test_only_clients_that_count_enter(make: Any, clients: int) -> None:
    rng = np.random.default_rng(clients)
    updates, counted = normal(clients, 60), rng.random((clients, 60)) < 0.6
    counted[0, :5] = True
    counted[:, 5:9] = False
    updates[0, 10], counted[0, 10] = 0, True  # a zero that counts
    sent = [counting_at(update.tolist(), mask) for update, mask in zip(updates, counted, strict=True)]
    sent.append(PartUpdate(torch.zeros(60), held=torch.zeros(60, dtype=torch.bool)))
    merged = merge(make(), sent)
    for j in range(60):
        values = updates[counted[:, j], j].astype(np.float64)
        expected = merge(make(), values[:, None])[0] if len(values) else 0.0
        assert merged[j] == pytest.approx(expected, abs=1e-7)


def test_updates_that_count_everywhere_may_join_others() -> None:
    updates = [counting_at([9, 9], [1, 0]), PartUpdate(torch.tensor([1.0, 5.0])), PartUpdate(torch.tensor([2.0, 7.0]))]
    assert merge(CoordinateMedian(), updates).tolist() == [2, 6]


def test_outliers_move_neither() -> None:
    updates = normal(5, 20)
    expected = np.sort(updates.astype(np.float64), axis=0)
    updates[2] = 1e15 * np.sign(updates[2])
    median = merge(CoordinateMedian(), updates)
    assert (median >= expected[1] - 1e-6).all()
    assert (median <= expected[3] + 1e-6).all()
    assert np.abs(merge(TrimmedMean(trim=0.2), updates)).max() < 10


@pytest.mark.parametrize(("trim", "clients", "dropped"), [(0.29, 100, 29), (0.1, 30, 3), (0.2, 4, 0), (0.2, 5, 1)])
def test_trim_reads_as_a_decimal(trim: float, clients: int, dropped: int) -> None:
    assert TrimmedMean(trim=trim).dropped(clients) == dropped


@pytest.mark.parametrize("trim", [-0.1, 0.5, math.nan])
def test_bad_trims_are_refused(trim: float) -> None:
    with pytest.raises(ValueError, match=r"^trim must be in \[0, 0.5\), not"):
        TrimmedMean(trim=trim)


@settings(deadline=None)
@given(st.integers(0, 12), st.integers(0, 2**31))
def test_columns_are_sorted(rows: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-3, 3, (rows, 30)).astype(np.float64)
    values[values == 2] = np.inf
    np.testing.assert_array_equal(_sort(torch.from_numpy(values.copy())).numpy(), np.sort(values, axis=0))
