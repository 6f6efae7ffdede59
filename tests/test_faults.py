"""Simulated faults: their frequencies, their reasons, and that they come from the seed alone."""

import math

import numpy as np
import pytest

from fedmtl.faults import Faults

STEPS = {f"c{i}": 10 for i in range(200)}


def count(faults: Faults, rounds: int = 20) -> dict[str, float]:
    """Share of each fault over many rounds."""
    found = [fault for r in range(1, rounds + 1) for fault in faults.strike(STEPS, seed=3, round=r).values()]
    return {fault: found.count(fault) / (rounds * len(STEPS)) for fault in ("dropped", "failed", "late")}


def test_nothing_goes_wrong_by_default() -> None:
    assert Faults().strike(STEPS, seed=0, round=1) == {}


def test_frequencies_are_those_that_were_asked_for() -> None:
    shares = count(Faults(dropout=0.2, failure=0.25))
    assert shares["dropped"] == pytest.approx(0.2, abs=0.02)
    assert shares["failed"] == pytest.approx(0.8 * 0.25, abs=0.02)  # of those that begin
    assert shares["late"] == 0


def test_slow_clients_are_late_in_every_round_and_long_rounds_more_often() -> None:
    faults = Faults(slowness=0.5, time_limit=20)
    first, second = (faults.strike(STEPS, seed=0, round=r) for r in (1, 2))
    assert first == second
    assert set(first.values()) == {"late"}
    # exp(0.5 z) > 2, that is z > ln 2 / 0.5
    assert len(first) / len(STEPS) == pytest.approx(0.5 * math.erfc(math.log(2) / 0.5 / math.sqrt(2)), abs=0.04)
    assert len(faults.strike({name: 20 for name in STEPS}, seed=0, round=1)) > len(first)


def test_without_a_limit_nobody_is_late() -> None:
    assert Faults(slowness=3).strike(STEPS, seed=0, round=1) == {}


def test_a_limit_counts_steps_of_a_usual_client() -> None:
    assert Faults(time_limit=10).strike({"a": 10, "b": 11}, seed=0, round=1) == {"b": "late"}


def test_luck_comes_from_seed_client_and_round_alone() -> None:
    faults = Faults(dropout=0.5)
    whole = faults.strike(STEPS, seed=0, round=4)
    some = faults.strike({"c7": 10, "c3": 10}, seed=0, round=4)
    assert some == {name: whole[name] for name in ("c7", "c3") if name in whole}
    assert whole != faults.strike(STEPS, seed=0, round=5)
    assert whole != faults.strike(STEPS, seed=1, round=4)


def test_paces_are_spread_around_one() -> None:
    paces = np.log([Faults(slowness=0.7).pace(name, seed=0) for name in STEPS])
    assert paces.mean() == pytest.approx(0, abs=0.15)
    assert paces.std() == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"dropout": 1.0}, {"dropout": -0.1}, {"failure": 2}, {"slowness": -1}, {"slowness": math.inf}, {"time_limit": 0}],
)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"faults.{next(iter(wrong))} must be"):
        Faults(**wrong)  # type: ignore[arg-type]
