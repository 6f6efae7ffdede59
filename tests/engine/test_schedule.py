"""The schedule: near the best there is, stable, the same for all ranks."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmtl.engine.schedule import SLACK, assign, makespan

COSTS = st.lists(st.floats(0, 100), min_size=1, max_size=7).map(
    lambda values: {f"c{i}": v for i, v in enumerate(values)}
)


def best(costs: dict[str, float], ranks: int) -> float:
    """The shortest plan of all there are."""
    plans = product(range(ranks), repeat=len(costs))
    return min(makespan(costs, dict(zip(costs, plan, strict=True)), ranks) for plan in plans)


@given(COSTS, st.integers(1, 3))
def test_it_is_as_good_as_grahams_bound(costs: dict[str, float], ranks: int) -> None:
    plan = assign(costs, ranks)
    assert list(plan) == list(costs)
    assert set(plan.values()) <= set(range(ranks))
    assert makespan(costs, plan, ranks) <= (4 / 3 - 1 / (3 * ranks)) * best(costs, ranks) + 1e-9


@given(COSTS, st.integers(1, 3), st.data())
def test_staying_costs_little(costs: dict[str, float], ranks: int, data: st.DataObject) -> None:
    homes = {name: data.draw(st.integers(0, ranks - 1)) for name in costs}
    plan = assign(costs, ranks, homes)
    assert makespan(costs, plan, ranks) <= (1 + SLACK) * makespan(costs, assign(costs, ranks), ranks) + 1e-9


def test_clients_stay_where_that_costs_nothing() -> None:
    costs = {name: 1.0 for name in "abcdef"}
    homes = {name: i % 2 for i, name in enumerate(costs)}
    swapped = {name: 1 - rank for name, rank in homes.items()}
    assert assign(costs, 2, homes) == homes
    assert assign(costs, 2, swapped) == swapped
    measured = {name: 1 + 0.001 * i for i, name in enumerate(costs)}  # noise moves nobody
    assert assign(measured, 2, swapped) == swapped


def test_clients_move_where_their_rank_has_too_much() -> None:
    costs = {name: 1.0 for name in "abcd"}
    plan = assign(costs, 2, {name: 0 for name in costs})
    assert sorted(plan.values()) == [0, 0, 1, 1]


@pytest.mark.parametrize("ranks", [5, 9])
def test_more_ranks_than_clients_leave_some_without(ranks: int) -> None:
    assert sorted(assign({"a": 1, "b": 3, "c": 2}, ranks).values()) == [0, 1, 2]


def test_the_longest_goes_first() -> None:
    assert assign({"a": 1, "b": 1, "c": 2}, 2) == {"a": 1, "b": 1, "c": 0}
