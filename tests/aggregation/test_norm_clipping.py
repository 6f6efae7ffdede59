from __future__ import annotations

import math

import numpy as np
import pytest

from fedmtl.aggregation.norm_clipping import NormClipping

from .merging import counting_at, merge, normal


@pytest.mark.parametrize("clients", [1, 4, 5])
@pytest.mark.parametrize("max_norm", [None, 0.5, 2.0, 1e3])
def test_it_is_the_weighted_mean_of_clipped_updates(clients: int, max_norm: float | None) -> None:
    updates = normal(clients, 7).astype(np.float64) * np.array([0.1, 1, 3, 0.5, 10])[:clients, None]
    updates = updates.astype(np.float32).astype(np.float64)
    norms = np.linalg.norm(updates, axis=1)
    ordered = sorted(norms)
    limit = (ordered[(clients - 1) // 2] + ordered[clients // 2]) / 2 if max_norm is None else max_norm
    clipped = [update / max(norm / limit, 1) for update, norm in zip(updates, norms, strict=True)]
    weights = [1.0, 5.0, 2.0, 7.0, 3.0][:clients]
    expected = np.average(clipped, 0, weights)
    merged = merge(NormClipping(max_norm=max_norm), updates, weights)
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_by_hand() -> None:
    assert merge(NormClipping(max_norm=5.0), [[6, 8], [1, 0]]).tolist() == [2, 2]
    assert merge(NormClipping(), [[6, 8], [1, 0], [0, 2]], [1, 1, 2]).tolist() == pytest.approx([0.55, 1.4])


def test_no_update_of_one_client_moves_the_mean_beyond_the_limit() -> None:
    updates = normal(5, 7)
    updates[2] *= 1e15
    assert np.linalg.norm(merge(NormClipping(max_norm=1.0), updates)) <= 1 + 1e-6
    assert np.linalg.norm(merge(NormClipping(), updates)) <= np.median(np.linalg.norm(updates, axis=1)) * (1 + 1e-6)


def test_with_overlap_a_coordinate_is_averaged_over_those_that_count() -> None:
    updates = [counting_at([6, 8, 0], [1, 1, 0]), counting_at([1, 0, 2], [1, 0, 0])]
    assert merge(NormClipping(max_norm=5.0), updates, [1, 3]).tolist() == pytest.approx([1.5, 4, 0])


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.inf, math.nan])
def test_bad_norms_are_refused(max_norm: float) -> None:
    with pytest.raises(ValueError, match=r"^max_norm must be a finite number above 0, or null"):
        NormClipping(max_norm=max_norm)
