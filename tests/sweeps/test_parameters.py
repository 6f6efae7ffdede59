"""Parameters: what a grid enumerates, what random search draws, and what is refused."""

import math
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedmtl.errors import UserError
from fedmtl.sweeps.parameters import Parameter, parse


def one(**options: Any) -> Parameter:
    (parameter,) = parse({"x": options}, "s.yaml")
    return parameter


def draws(parameter: Parameter, count: int = 2000) -> list[Any]:
    rng = np.random.default_rng(0)
    return [parameter.sample(rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("options", "distribution", "choices"),
    [
        ({"value": 3}, "constant", [3]),
        ({"values": ["a", True, 2.5]}, "categorical", ["a", True, 2.5]),
        ({"values": [1, 2], "probabilities": [0.1, 0.9]}, "categorical_w_probabilities", [1, 2]),
        ({"min": 2, "max": 5}, "int_uniform", range(2, 6)),
        ({"min": 0, "max": 2**32 - 1}, "int_uniform", None),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 1e-12}, "q_uniform", None),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 5e-324}, "q_uniform", None),
        ({"min": 2, "max": 5.0}, "uniform", None),
        ({"distribution": "q_uniform", "min": 0.1, "max": 0.4, "q": 0.1}, "q_uniform", [0.1, 0.2, 0.3]),
        ({"distribution": "q_uniform", "min": 1, "max": 9, "q": 4}, "q_uniform", [1, 5]),
    ],
)
def test_distribution_and_grid(options: dict[str, Any], distribution: str, choices: Any) -> None:
    parameter = one(**options)
    assert parameter.distribution == distribution
    assert parameter.choices == choices
    assert [type(value) for value in parameter.choices or []] == [type(value) for value in choices or []]


# the distribution function that the logarithm of a draw, or the draw itself, should have
@pytest.mark.parametrize(
    ("options", "transform", "reference"),
    [
        ({"min": 2.0, "max": 5.0}, float, stats.uniform(2, 3)),
        ({"distribution": "log_uniform", "min": -5, "max": -1}, math.log, stats.uniform(-5, 4)),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1}, math.log10, stats.uniform(-4, 4)),
        ({"distribution": "inv_log_uniform", "min": 1, "max": 3}, lambda x: math.log(1 / x), stats.uniform(1, 2)),
        ({"distribution": "inv_log_uniform_values", "min": 0.1, "max": 10}, math.log10, stats.uniform(-1, 2)),
        ({"distribution": "normal"}, float, stats.norm()),
        ({"distribution": "normal", "mu": 3, "sigma": 2}, float, stats.norm(3, 2)),
        ({"distribution": "log_normal", "mu": 1, "sigma": 0.5}, math.log, stats.norm(1, 0.5)),
        ({"distribution": "beta", "a": 2, "b": 5}, float, stats.beta(2, 5)),
    ],
)
def test_draws_have_the_distribution(options: dict[str, Any], transform: Any, reference: Any) -> None:
    values = draws(one(**options))
    assert all(type(value) is float for value in values)
    assert stats.kstest([transform(value) for value in values], reference.cdf).pvalue > 1e-3


def test_whole_numbers_and_choices() -> None:
    whole = draws(one(min=1, max=3))
    assert {type(value) for value in whole} == {int}
    assert stats.chisquare([whole.count(i) for i in (1, 2, 3)]).pvalue > 1e-3
    chosen = draws(one(values=["a", "b", "c"], probabilities=[0.2, 0.0, 0.8]))
    assert stats.binomtest(chosen.count("a"), len(chosen), 0.2).pvalue > 1e-3
    assert "b" not in chosen
    assert set(draws(one(values=["a", "b"], probabilities=[0.5, 0.4999999]))) == {"a", "b"}  # NumPy's sum is stricter


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["q_uniform", "q_log_uniform_values", "q_normal", "q_log_normal", "q_beta"]),
    q=st.sampled_from([0.01, 0.05, 0.3, 1, 2, 2.5]),
    seed=st.integers(0, 99),
)
def test_quantised_draws_are_multiples(name: str, q: float, seed: int) -> None:
    bounds = {"min": 0.5, "max": 20} if "uniform" in name else {}
    value = one(distribution=name, q=q, **bounds).sample(np.random.default_rng(seed))
    assert abs(value / q - round(value / q)) < 1e-9
    assert isinstance(value, int) == isinstance(q, int)
    assert len(f"{value}") < 14  # no dust such as 0.30000000000000004
    if bounds:
        assert bounds["min"] - q / 2 <= value <= bounds["max"] + q / 2


def test_nested_parameters() -> None:
    tree = {
        "model": {"parameters": {"a": {"value": 1}, "b": {"parameters": {"c": {"values": [1, 2]}}}}},
        "d": {"value": 0},
    }
    assert [parameter.name for parameter in parse(tree, "s.yaml")] == ["model.a", "model.b.c", "d"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (3, "expected value, values, min and max, or parameters"),
        ({}, "give it a value, values, min and max, or a distribution"),
        ({"min": 3}, "give it a value"),
        ({"distribution": "gauss"}, "there is no distribution 'gauss'; there are constant, categorical"),
        ({"distribution": ["x"]}, "there is no distribution ['x']"),
        ({"distribution": "normal", "min": 1}, "normal takes no min; it has mu, sigma"),
        ({"distribution": "categorical", "values": [1], "probabilities": [1]}, "categorical takes no probabilities"),
        ({"distribution": "uniform", "min": 1}, "uniform needs max"),
        ({"min": 3, "max": 1}, "min (3) is above max (1)"),
        ({"min": "1e-4", "max": 1, "distribution": "uniform"}, "1.0e-4 as a number"),
        ({"min": 0, "max": 1, "distribution": "log_uniform_values"}, "min must be above 0"),
        (
            {"min": 0, "max": 5000, "distribution": "log_uniform"},
            "of the value itself use log_uniform_values",
        ),
        ({"min": -701, "max": 1, "distribution": "inv_log_uniform"}, "use inv_log_uniform_values"),
        ({"min": 0, "max": 10**400}, "max has more than 64 bits"),
        ({"min": 0.5, "max": 1, "distribution": "int_uniform"}, "needs whole numbers"),
        ({"min": 0, "max": 1, "distribution": "q_uniform", "q": 0}, "q must be above 0"),
        ({"distribution": "normal", "sigma": -1}, "sigma must not be negative"),
        ({"values": []}, "values must be a list"),
        ({"values": 3}, "values must be a list"),
        ({"values": [1, {"a": [None]}]}, "write 'null' in quotes"),
        ({"value": date(2020, 1, 1)}, "2020-01-01 is a date, not a word or a number; write '2020-01-01' in quotes"),
        ({"values": [1, {"a": [b"x"]}]}, "is a bytes, not a word"),
        ({"value": {date(2020, 1, 1): 3}}, "2020-01-01 is a date"),
        ({"values": [1, 2], "probabilities": [1]}, "one for each"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "add up to 1"),
        ({"parameters": {"b": {"value": 1}}, "value": 2}, "nested parameters stand alone, without value"),
        ({"parameters": {"b": {"value": 1}}, 3: 2}, "nested parameters stand alone, without 3"),
        ({"parameters": {}}, "x.parameters must be names with values"),
    ],
)
def test_what_is_refused(options: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        list(parse({"x": options}, "s.yaml"))
    assert message in str(error.value)
    assert str(error.value).startswith("s.yaml: ")
    assert "\n" not in str(error.value)
