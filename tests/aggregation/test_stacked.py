"""What all aggregators have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedmtl import gram
from fedmtl.aggregation.base import Aggregator
from fedmtl.aggregation.cagrad import CAGrad
from fedmtl.aggregation.krum import Krum
from fedmtl.aggregation.norm_clipping import NormClipping
from fedmtl.aggregation.order_statistics import CoordinateMedian, TrimmedMean
from fedmtl.aggregation.pcgrad import PCGrad
from fedmtl.aggregation.stacked import StackedAggregator
from fedmtl.aggregation.task_arithmetic import TaskArithmetic
from fedmtl.aggregation.ties import TIES
from fedmtl.aggregation.update import PartUpdate
from fedmtl.aggregation.weighted_mean import WeightedMean

from .merging import counting_at, merge, normal

AGGREGATORS: dict[str, Callable[[], Any]] = {
    "WeightedMean": WeightedMean,
    "TaskArithmetic": TaskArithmetic,
    "PCGrad": PCGrad,
    "CAGrad": CAGrad,
    "CAGrad 1/(1+c)": lambda: CAGrad(c=0.9, rescale="1/(1+c)"),
    "Krum": lambda: Krum(byzantine=0),
    "multi-Krum": lambda: Krum(byzantine=0, keep=2),
    "NormClipping": NormClipping,
    "NormClipping 1": lambda: NormClipping(max_norm=1.0),
    "TIES": TIES,
    "TIES, dense": lambda: TIES(density=1.0),
    "CoordinateMedian": CoordinateMedian,
    "TrimmedMean": TrimmedMean,
}
RETURN_IDENTICAL_UPDATES = sorted(
    AGGREGATORS.keys() - {"TaskArithmetic", "CAGrad", "NormClipping 1", "TIES"}  # scaled, lengthened, clipped, trimmed
)
EQUIVARIANT = sorted(AGGREGATORS.keys() - {"NormClipping 1"})
PARTIAL = {"WeightedMean", "NormClipping", "NormClipping 1", "TIES", "TIES, dense"}
PARTIAL |= {"CoordinateMedian", "TrimmedMean"}

D = 6
entries = st.sampled_from([0.0, 1.0, -1.0, 2.0]) | st.integers(-(2**20), 2**20).map(lambda n: n / 1024)
vectors = npst.arrays(np.float32, D, elements=entries)
weights = st.sampled_from([0.5, 1.0, 3.0, 265.0, 795.0])
federations = st.lists(st.tuples(vectors, weights), min_size=3, max_size=6)


def split(clients: Any) -> tuple[list[np.ndarray], list[float]]:
    return [array for array, _ in clients], [weight for _, weight in clients]


@pytest.mark.parametrize("name", AGGREGATORS)
@settings(deadline=None, max_examples=20)
@given(clients=federations, random=st.randoms(use_true_random=False))
def test_another_order_of_clients_changes_nothing(name: str, clients: Any, random: Any) -> None:
    merged = merge(AGGREGATORS[name](), *split(clients))
    shuffled = merge(AGGREGATORS[name](), *split(random.sample(clients, len(clients))))
    if isinstance(AGGREGATORS[name](), StackedAggregator):
        np.testing.assert_array_equal(shuffled, merged)
    else:
        np.testing.assert_allclose(shuffled, merged, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", RETURN_IDENTICAL_UPDATES)
@settings(deadline=None, max_examples=20)
@given(array=vectors, shares=st.lists(weights, min_size=3, max_size=6))
def test_identical_updates_return_themselves(name: str, array: np.ndarray, shares: list[float]) -> None:
    merged = merge(AGGREGATORS[name](), [array] * len(shares), shares)
    np.testing.assert_allclose(merged, array, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", EQUIVARIANT)
@settings(deadline=None, max_examples=20)
@given(clients=federations, power=st.integers(-30, 30))
def test_scaled_updates_give_the_scaled_result(name: str, clients: Any, power: int) -> None:
    arrays, shares = split(clients)
    scaled = merge(AGGREGATORS[name](), [np.ldexp(array, power) for array in arrays], shares)
    merged = merge(AGGREGATORS[name](), arrays, shares)
    largest = max(float(np.abs(array).max()) for array in arrays)
    np.testing.assert_allclose(scaled, np.ldexp(merged, power), rtol=1e-6, atol=1e-7 * math.ldexp(largest, power))


@pytest.mark.parametrize("name", [n for n in AGGREGATORS if "TIES" not in n])  # it sees what rounding leaves of a tie
@settings(deadline=None, max_examples=20)
@given(clients=federations, factor=st.sampled_from([0.1, 3.0, 1e4]))
def test_only_the_ratios_of_weights_count(name: str, clients: Any, factor: float) -> None:
    arrays, shares = split(clients)
    merged = merge(AGGREGATORS[name](), arrays, shares)
    scaled = merge(AGGREGATORS[name](), arrays, [factor * share for share in shares])
    np.testing.assert_allclose(scaled, merged, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", AGGREGATORS)
@settings(deadline=None, max_examples=40)
@given(
    clients=federations,
    sizes=st.lists(st.sampled_from([0.0, 1e-42, 1e-20, 1.0, 1e8, 1e15]), min_size=6, max_size=6),
)
def test_finite_updates_give_a_finite_result_no_larger_than_their_sum(name: str, clients: Any, sizes: Any) -> None:
    arrays, shares = split(clients)
    arrays = [(array.astype(np.float64) * size).astype(np.float32) for array, size in zip(arrays, sizes, strict=False)]
    merged = merge(AGGREGATORS[name](), arrays, shares)
    assert np.isfinite(merged).all()
    assert np.linalg.norm(merged) <= 1.001 * sum(np.linalg.norm(array.astype(np.float64)) for array in arrays)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_zero_updates_give_zero(name: str) -> None:
    assert not merge(AGGREGATORS[name](), np.zeros((3, D))).any()


@pytest.mark.parametrize("name", sorted(AGGREGATORS.keys() - {"Krum", "multi-Krum"}))
def test_one_client_gives_a_multiple_of_its_update(name: str) -> None:
    update = np.array([3.0, -4.0, 1.0])
    factor = {"TaskArithmetic": 0.4, "CAGrad": 1.4 / 1.16, "NormClipping 1": 26**-0.5}.get(name, 1.0)
    expected = [0.0, -4.0, 0.0] if name == "TIES" else factor * update
    np.testing.assert_allclose(merge(AGGREGATORS[name](), [update], [7.0]), expected, rtol=1e-6)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_it_is_empty_after_a_merge_and_at_first(name: str) -> None:
    aggregator = AGGREGATORS[name]()
    assert aggregator.merge() is None
    first = merge(aggregator, normal(4, D))
    assert aggregator.merge() is None
    other = normal(5, D, seed=1)
    np.testing.assert_array_equal(merge(aggregator, other), merge(AGGREGATORS[name](), other))
    assert not np.array_equal(first, merge(AGGREGATORS[name](), other))


@pytest.mark.parametrize(("name", "counted"), [(n, False) for n in AGGREGATORS] + [(n, True) for n in sorted(PARTIAL)])
def test_what_was_added_is_its_own(name: str, counted: bool) -> None:
    arrays = normal(4, D)
    expected, aggregator = merge(AGGREGATORS[name](), arrays), AGGREGATORS[name]()
    held = torch.ones(D, dtype=torch.bool)
    updates = [PartUpdate(torch.from_numpy(array.copy()), held=held.clone() if counted else None) for array in arrays]
    for update in updates:
        aggregator.add(update, 1.0)
        update.delta.fill_(1e9)
        if update.held is not None:
            update.held.fill_(False)
    np.testing.assert_allclose(aggregator.merge().numpy(), expected, rtol=1e-6)
    kept = [torch.from_numpy(array.copy()) for array in arrays]
    merge(aggregator, [PartUpdate(delta) for delta in kept])
    assert all(np.array_equal(delta.numpy(), array) for delta, array in zip(kept, arrays, strict=True))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_updates_that_count_at_some_coordinates_are_refused_where_they_mean_nothing(name: str) -> None:
    aggregator: Aggregator = AGGREGATORS[name]()
    assert aggregator.partial == (name in PARTIAL)
    update = counting_at([1.0, 2.0], [1, 0])
    if aggregator.partial:
        aggregator.add(update, 1.0)
        return
    with pytest.raises(ValueError, match=r"takes only updates that count at every coordinate") as error:
        aggregator.add(update, 1.0)
    assert str(error.value).startswith(type(aggregator).__name__)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(PARTIAL))
def test_where_all_count_or_none_does(name: str) -> None:
    arrays = normal(4, D)
    everywhere = [counting_at(array.tolist(), [1] * D) for array in arrays]
    np.testing.assert_allclose(merge(AGGREGATORS[name](), everywhere), merge(AGGREGATORS[name](), arrays), rtol=1e-6)
    nobody = [counting_at(array.tolist(), [1] * (D - 1) + [0]) for array in arrays]
    assert merge(AGGREGATORS[name](), nobody)[-1] == 0


@pytest.mark.parametrize("name", AGGREGATORS)
def test_blocks_of_columns_join(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = normal(5, 50)
    whole = merge(AGGREGATORS[name](), arrays, [1, 2, 3, 1, 2])
    monkeypatch.setattr(gram, "_COLUMNS", 7)
    np.testing.assert_allclose(merge(AGGREGATORS[name](), arrays, [1, 2, 3, 1, 2]), whole, rtol=1e-6)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_half_precision_is_merged_in_fp32(name: str) -> None:
    halves = [PartUpdate(torch.tensor([60000.0, -60000.0], dtype=torch.float16)) for _ in range(4)]
    expected = merge(AGGREGATORS[name](), [[60000.0, -60000.0]] * 4)
    np.testing.assert_allclose(merge(AGGREGATORS[name](), halves), expected, rtol=1e-6)
