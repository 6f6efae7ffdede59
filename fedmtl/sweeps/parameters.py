"""A swept parameter: its values for a grid, its distribution for random search, as W&B defines them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmtl.errors import UserError

Path = tuple[str, ...]  # names from the outermost parameter to a nested one
MOST = 10_000  # values of a parameter, and runs, in a grid
_HIGHEST = 700  # of a logarithm; exp(710) is no number

_DISCRETE = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
}
_BOUNDED = ("uniform", "log_uniform", "log_uniform_values")
_INVERSE = ("inv_log_uniform", "inv_log_uniform_values")
_SHAPED: dict[str, dict[str, float]] = {  # with W&B's defaults
    "normal": {"mu": 0, "sigma": 1},
    "log_normal": {"mu": 0, "sigma": 1},
    "beta": {"a": 1, "b": 1},
}
_KEYS: dict[str, tuple[str, ...]] = {
    **_DISCRETE,
    "int_uniform": ("min", "max"),
    **dict.fromkeys((*_BOUNDED, *_INVERSE), ("min", "max")),
    **dict.fromkeys((f"q_{name}" for name in _BOUNDED), ("min", "max", "q")),
    **{name: tuple(defaults) for name, defaults in _SHAPED.items()},
    **{f"q_{name}": (*defaults, "q") for name, defaults in _SHAPED.items()},
}


@dataclass(frozen=True)
class Parameter:
    """A swept parameter.

    Attributes:
        path: its name; several for one that is nested.
        distribution: one of W&B's names.
        options: what the distribution takes, such as ``values``, ``min``, ``max``, ``mu``, ``sigma`` and ``q``.
    """

    path: Path
    distribution: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its path with dots."""
        return ".".join(self.path)

    @property
    def constant(self) -> bool:
        """Whether all runs have the same value."""
        return self.distribution == "constant"

    @property
    def listed(self) -> list[Any] | None:
        """The values that the file lists; None where it gives a range or a distribution of numbers."""
        return [self.options["value"]] if self.constant else self.options.get("values")

    @property
    def choices(self) -> Sequence[Any] | None:
        """The values that it may take, in the order of a grid; None where there are more than `MOST`."""
        o = self.options
        if self.distribution == "int_uniform" and o["max"] - o["min"] < MOST:
            return range(o["min"], o["max"] + 1)
        if self.distribution == "q_uniform" and (steps := (o["max"] - o["min"]) / o["q"]) <= MOST:
            # W&B's grid leaves the upper end out, too
            return [_plain(o["min"] + i * o["q"], o["q"]) for i in range(math.ceil(round(steps, 9)))]
        return self.listed

    def sample(self, rng: np.random.Generator) -> Any:
        """Draws a value.

        Quantised distributions give round(X / q) · q, which may lie half a q outside of min and max.
        """
        o, name = self.options, self.distribution.removeprefix("q_")
        if self.constant:
            return o["value"]
        if name.startswith("categorical"):
            shares = o.get("probabilities")  # NumPy takes no sum as near 1 as 0.9999999
            p = None if shares is None else np.asarray(shares) / sum(shares)
            return o["values"][int(rng.choice(len(o["values"]), p=p))]
        if name == "int_uniform":
            return int(rng.integers(o["min"], o["max"], endpoint=True))
        if name == "normal":
            value = rng.normal(o["mu"], o["sigma"])
        elif name == "log_normal":
            value = rng.lognormal(o["mu"], o["sigma"])
        elif name == "beta":
            value = rng.beta(o["a"], o["b"])
        else:
            values = name.endswith("_values")  # min and max are those of the value, not of its logarithm
            low, high = (math.log(o[key]) if values else o[key] for key in ("min", "max"))
            value = rng.uniform(low, high)
            if name != "uniform":  # log(1/X) between log(1/max) and log(1/min) is log(X) between log(min) and log(max)
                value = math.exp(-value if name == "inv_log_uniform" else value)
        return _plain(np.rint(value / o["q"]) * o["q"], o["q"]) if "q" in o else float(value)


def parse(parameters: Any, file: str, above: Path = ()) -> Iterator[Parameter]:
    """Reads the ``parameters`` of a sweep, nested ones too.

    Args:
        parameters: what stands in the file.
        file: its name, for messages.
        above: names of the parameters that these are nested in.

    Raises:
        UserError: W&B would not take it, or its agents would pass it on wrongly.
    """
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(
            f"{file}: {'.'.join((*above, 'parameters'))} must be names with values, such as seed: {{values: [0, 1]}}"
        )
    for name, options in parameters.items():
        path = (*above, str(name))
        where = f"{file}: parameters.{'.'.join(path)}"
        if not isinstance(options, dict):
            raise UserError(f"{where}: expected value, values, min and max, or parameters; e.g. {{value: {options}}}")
        if "parameters" in options:
            if len(options) > 1:
                others = ", ".join(str(key) for key in options if key != "parameters")
                raise UserError(f"{where}: nested parameters stand alone, without {others}")
            yield from parse(options["parameters"], file, path)
        else:
            yield _parameter(path, options, where)


def _parameter(path: Path, given: dict[str, Any], where: str) -> Parameter:
    options = dict(given)
    distribution = options.pop("distribution", None) or _usual(options, where)
    if not isinstance(distribution, str) or distribution not in _KEYS:
        raise UserError(f"{where}: there is no distribution {distribution!r}; there are {', '.join(_KEYS)}")
    known = _KEYS[distribution]
    options = {**_SHAPED.get(distribution.removeprefix("q_"), {}), **({"q": 1} if "q" in known else {}), **options}
    wrong = [f"takes no {key}" for key in options if key not in known]
    wrong += [f"needs {key}" for key in known if key not in options]
    if wrong:
        raise UserError(f"{where}: {distribution} {wrong[0]}; it has {', '.join(known)}")
    if problem := _problem(distribution, options):
        raise UserError(f"{where}: {problem}")
    return Parameter(path, distribution, options)


def _usual(options: Mapping[str, Any], where: str) -> str:
    """The distribution of a parameter that names none."""
    if "value" in options:
        return "constant"
    if "values" in options:
        return "categorical_w_probabilities" if "probabilities" in options else "categorical"
    if "min" in options and "max" in options:
        return "int_uniform" if all(isinstance(options[key], int) for key in ("min", "max")) else "uniform"
    raise UserError(f"{where}: give it a value, values, min and max, or a distribution")


def _problem(distribution: str, options: Mapping[str, Any]) -> str | None:
    """What is wrong with the options of a distribution."""
    if "value" in options or "values" in options:
        return _values_problem(options)
    for key, value in options.items():
        if isinstance(value, int) and abs(value) >= 2**63:
            return f"{key} has more than 64 bits"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{key} must be a number, not {value!r}" + (
                "; YAML reads 1e-4 as text, 1.0e-4 as a number" * isinstance(value, str)
            )
    if "min" in options and options["min"] > options["max"]:
        return f"min ({options['min']}) is above max ({options['max']})"
    if distribution == "int_uniform" and not all(isinstance(value, int) for value in options.values()):
        return "int_uniform needs whole numbers"
    if distribution.endswith("_values") and options["min"] <= 0:
        return f"min must be above 0 for {distribution}, not {options['min']}"
    if distribution.endswith("log_uniform"):
        far = next((key for key in ("min", "max") if abs(options[key]) > _HIGHEST), None)
        if far is not None:
            return (
                f"{far} is a logarithm for {distribution}, {options[far]} is beyond {_HIGHEST}; "
                f"for bounds of the value itself use {distribution}_values"
            )
    for key in ("q", "a", "b"):
        if options.get(key, 1) <= 0:
            return f"{key} must be above 0, not {options[key]}"
    return "sigma must not be negative" if options.get("sigma", 0) < 0 else None


def _values_problem(options: Mapping[str, Any]) -> str | None:
    values = options.get("values", [options.get("value")])
    if not isinstance(values, list) or not values:
        return f"values must be a list, not {values!r}"
    leaves = list(_leaves(values))
    if None in leaves:
        return "W&B's agents pass a null on as the word None; write 'null' in quotes"
    odd = next((leaf for leaf in leaves if not isinstance(leaf, str | int | float)), None)
    if odd is not None:
        return f"{odd} is a {type(odd).__name__}, not a word or a number; write '{odd}' in quotes"
    if "probabilities" not in options:
        return None
    shares = options["probabilities"]
    if not isinstance(shares, list) or len(shares) != len(values):
        return "probabilities must be a list, one for each of the values"
    if not all(isinstance(share, int | float) and share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        return "probabilities must be at least 0 and add up to 1"
    return None


def _leaves(value: Any) -> Iterator[Any]:
    """What lists and dictionaries hold in the end, keys too."""
    for part in [*value, *value.values()] if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            yield from _leaves(part)
        else:
            yield part


def _plain(value: float, step: float) -> int | float:
    """A multiple of a step without the dust of binary fractions; whole where the step is."""
    return round(value) if isinstance(step, int) and float(value).is_integer() else float(f"{value:.12g}")
