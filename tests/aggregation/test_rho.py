"""Rules for ρ: schedules against closed forms, kept energy against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from fedmtl.aggregation import DEA, PartUpdate, Sending
from fedmtl.aggregation.functional import kept_count
from fedmtl.aggregation.rho import EnergyRho, LayerRho, ScheduledRho
from fedmtl.vector import Layout

SCENES = Path(__file__).parents[2] / "experiments" / "scenes_dea.yaml"
shares = st.sampled_from([0.01, 0.1, 0.3, 0.7, 0.9, 1.0])
# whole numbers, whose squares add up without rounding
updates = npst.arrays(np.float32, st.integers(1, 60), elements=st.integers(-1000, 1000).map(float))


def sending(*shape: int, round: int = 1, rounds: int = 10) -> Sending:
    return Sending(Layout(("a",), (torch.Size(shape),)), round=round, rounds=rounds)


def schedule(rule: ScheduledRho, rounds: int = 10, count: int = 12) -> list[Fraction]:
    return [rule("update", torch.ones(1), sending(1, round=t, rounds=rounds)) for t in range(1, count + 1)]


def energy_count(array: np.ndarray, **options: float) -> int:
    share = EnergyRho(**options)("update", torch.from_numpy(array), sending(array.size))
    return kept_count(share, array.size)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@given(start=shares, end=shares, rounds=st.integers(2, 300))
def test_a_schedule_starts_and_ends_exactly(shape: Any, start: float, end: float, rounds: int) -> None:
    rhos = schedule(ScheduledRho(start=start, end=end, shape=shape), rounds, rounds + 2)
    assert float(rhos[0]) == start
    assert [float(rho) for rho in rhos[-3:]] == [end] * 3
    assert rhos == sorted(rhos, reverse=end < start)
    counts = [kept_count(rhos[0], 1000), kept_count(rhos[-1], 1000)]
    assert counts == [kept_count(start, 1000), kept_count(end, 1000)]


def test_linear_and_cosine_schedules_by_their_equations() -> None:
    progress = np.minimum(np.arange(12) / 9, 1)
    linear = schedule(ScheduledRho(start=0.9, end=0.2))
    np.testing.assert_allclose([float(rho) for rho in linear], 0.9 - 0.7 * progress, rtol=1e-12)
    cosine = schedule(ScheduledRho(start=0.1, end=0.6, shape="cosine"))
    expected = 0.1 + 0.25 * (1 - np.cos(np.pi * progress))
    np.testing.assert_allclose([float(rho) for rho in cosine], expected, rtol=1e-11)
    assert schedule(ScheduledRho(start=0.1, end=0.3), rounds=3, count=2)[1] == Fraction("0.2")
    assert schedule(ScheduledRho(start=0.1, end=0.3, shape="cosine"), rounds=3, count=2)[1] == Fraction("0.2")


def test_a_schedule_may_be_shorter_than_the_run() -> None:
    rule = ScheduledRho(start=1, end=0.5, rounds=3)
    assert [float(rho) for rho in schedule(rule, rounds=100, count=5)] == [1, 0.75, 0.5, 0.5, 0.5]
    assert [float(rho) for rho in schedule(ScheduledRho(start=1, end=0.5, rounds=1), count=3)] == [1, 0.5, 0.5]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_schedule_that_stands_still_is_a_constant_to_the_bit(shape: Any) -> None:
    delta = torch.randn(30, generator=torch.Generator().manual_seed(0))
    for rho in (0.1, 0.3, 0.7):
        constant = DEA(rho=rho)(PartUpdate(delta), sending(30))
        for round in range(1, 11):
            still = DEA(rho=ScheduledRho(start=rho, end=rho, shape=shape))
            sent = still(PartUpdate(delta), sending(30, round=round))
            assert torch.equal(sent.delta, constant.delta)


@pytest.mark.parametrize(
    ("name", "rho"),
    [
        ("body.stages_0.blocks.1.conv_dw.weight", 0.5),
        ("body.stages_0.blocks.1.conv_dw.bias", 0.5),  # the first pattern found, not the best
        ("body.stages_1.blocks.0.conv_dw.bias", 1),
        ("body.stages_1.blocks.0.norm.weight", 0.25),
        ("body.stages_3.blocks.0.norm.weight", 0.1),
        ("body.stem_0.weight", 0.1),
        ("body.Stages_0.weight", 0.1),
    ],
)
def test_layers_go_by_the_first_pattern_found(name: str, rho: float) -> None:
    rule = LayerRho(rho_by_pattern={"stages_0": 0.5, ".bias": 1, "stages_[12].*.norm": 0.25}, default=0.1)
    assert rule(name, torch.ones(3), sending(3)) == rho


@given(updates, shares)
def test_energy_keeps_as_few_entries_as_will_do(array: np.ndarray, energy: float) -> None:
    k = energy_count(array, energy=energy, smallest=1e-9)
    squares = sorted((Fraction(float(value)) ** 2 for value in array), reverse=True)
    wanted = Fraction(str(energy)) * sum(squares)
    assert sum(squares[:k]) >= wanted
    assert k == 1 or sum(squares[: k - 1]) < wanted


@given(updates, shares, shares, shares)
def test_masks_for_more_energy_hold_those_for_less(array: np.ndarray, one: float, two: float, smallest: float) -> None:
    def mask(energy: float) -> Tensor:
        dea = DEA(rho=EnergyRho(energy=energy, smallest=smallest))
        mask = dea(PartUpdate(torch.from_numpy(array.copy())), sending(array.size)).mask
        assert mask is not None
        assert mask.sum() >= kept_count(smallest, array.size)
        return mask

    less, more = mask(min(one, two)), mask(max(one, two))
    assert not (less & ~more).any()


def test_energy_by_hand() -> None:
    array = np.array([1, -2, 0, 3, 1, 1], dtype=np.float32)  # squares 9, 4, 1, 1, 1, 0 of 16
    counts = {energy: energy_count(array, energy=energy) for energy in (0.5, 0.5625, 0.6, 0.8125, 0.9, 1.0)}
    assert counts == {0.5: 1, 0.5625: 1, 0.6: 2, 0.8125: 2, 0.9: 4, 1.0: 5}  # 5/6 as a float would keep 6
    assert energy_count(array, energy=0.5, smallest=0.34) == 3
    assert (
        energy_count(np.array([1, 3], dtype=np.float32), energy=0.9) == 1
    )  # the decimal number, not the nearest float
    assert energy_count(np.zeros(200, dtype=np.float32)) == 2
    assert energy_count(np.zeros(0, dtype=np.float32)) == 0


def test_energy_of_many_small_entries_is_not_lost_beside_a_large_one() -> None:
    array = np.ones(1001, dtype=np.float32)
    array[500] = 2**13
    allowed = (2**26 + 1000) * 1e-5
    assert energy_count(array, energy=0.99999, smallest=1e-9) == 1001 - math.floor(allowed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_energy_of_other_types(dtype: torch.dtype) -> None:
    values = torch.tensor([[300.0, 1.0], [-400.0, 2.0]], dtype=dtype)
    before = values.clone()
    assert EnergyRho(energy=0.9)("update", values, sending(2, 2)) == Fraction(2, 4)
    assert torch.equal(values, before)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (ScheduledRho, {"start": 0, "end": 1}, "start must be a number in (0, 1], got 0"),
        (ScheduledRho, {"start": 1, "end": "x"}, "end must be a number in (0, 1], got 'x'"),
        (ScheduledRho, {"start": 1, "end": 1, "shape": "step"}, "shape must be one of linear, cosine, not 'step'"),
        (ScheduledRho, {"start": 1, "end": 1, "rounds": 0}, "rounds must be at least 1, not 0; leave it out for all"),
        (LayerRho, {"rho_by_pattern": {"stem": 2}}, "rho_by_pattern: stem must be a number in (0, 1], got 2"),
        (LayerRho, {"rho_by_pattern": {}, "default": 0}, "default must be a number in (0, 1], got 0"),
        (EnergyRho, {"energy": 90}, "energy must be a number in (0, 1], got 90"),
        (EnergyRho, {"smallest": 0}, "smallest must be a number in (0, 1], got 0"),
    ],
)
def test_bad_options_are_refused(rule: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        rule(**options)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("rho", "expected"),
    [
        ("0.3", {}),
        ("{class_path: fedmtl.aggregation.rho.EnergyRho, init_args: {energy: 0.8}}", {"energy": 0.8, "smallest": 0.01}),
        (
            "{class_path: fedmtl.aggregation.rho.ScheduledRho, init_args: {start: 1, end: 0.2, shape: cosine}}",
            {"start": 1.0, "end": 0.2, "shape": "cosine", "rounds": None},
        ),
        (
            "{class_path: fedmtl.aggregation.rho.LayerRho, init_args: {rho_by_pattern: {blocks.0.conv: 0.5, .b: 1}}}",
            {"rho_by_pattern": {"blocks.0.conv": 0.5, ".b": 1.0}, "default": 0.2},
        ),
    ],
)
def test_a_rule_is_named_in_yaml(tmp_path: Path, rho: str, expected: dict[str, Any]) -> None:
    from fedmtl.commands.configuration import experiment_parser, parse, to_dict

    path = tmp_path / "rule.yaml"
    path.write_text(
        f"upload:\n  - {{class_path: fedmtl.aggregation.DEA, init_args: {{scope: layer, rho: {rho}}}}}\n",
        encoding="utf-8",
    )
    parser = experiment_parser("fit", None)
    config = parse(parser, ["--config", str(SCENES), "--config", str(path)])
    found = parser.instantiate(config).upload[0].rho
    assert found == 0.3 or vars(found) == expected
    resolved = to_dict(parser, config)["upload"][0]["init_args"]["rho"]
    given = yaml.safe_load(rho)
    assert resolved == (given if not expected else {**given, "init_args": expected})
