"""A sweep's file in W&B's format, read and checked, and the list of settings that it stands for."""

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fedmtl import yaml_file
from fedmtl.errors import UserError
from fedmtl.sweeps import parameters
from fedmtl.sweeps.parameters import Parameter

Setting = dict[parameters.Path, Any]  # a run's value of every parameter

# what W&B's schema knows; the first are used here, the others say where W&B keeps the sweep
_KEYS = ("program", "command", "method", "parameters", "metric", "name", "run_cap", "early_terminate")
_ONLY_WANDB = ("project", "entity", "description", "apiVersion", "kind", "controller")
_REFUSED = {
    "job": "jobs of W&B Launch",
    "image_uri": "images of W&B Launch",
    "metrics": "several metrics at once",
    "scheduler": "schedulers such as Optuna's",
}
_EXAMPLE = "program: fedmtl and command: ['${program}', fit, '${args}']"


@dataclass(frozen=True)
class Metric:
    """What a sweep looks for.

    Attributes:
        name: as in metrics.jsonl or W&B, e.g. ``val/delta_m`` or ``best/depth/RMSE``.
        maximize: whether higher is better.
    """

    name: str
    maximize: bool


@dataclass(frozen=True)
class Sweep:
    """A sweep's definition.

    Attributes:
        name: name of its folder: one path component.
        method: ``grid`` or ``random``.
        parameters: what is varied, and what all runs have.
        metric: what the table is sorted by, if the file says.
        command: words that start a run, with W&B's macros.
        program: what ``${program}`` stands for.
        run_cap: most runs.
        ignored: what the file asks of W&B that is not done here, in words.
    """

    name: str
    method: str
    parameters: list[Parameter]
    metric: Metric | None
    command: list[str]
    program: str | None
    run_cap: int | None
    ignored: list[str]

    @property
    def varied(self) -> list[Parameter]:
        """The parameters that differ between runs."""
        return [parameter for parameter in self.parameters if not parameter.constant]

    def settings(self, count: int | None = None, seed: int = 0) -> list[Setting]:
        """The settings of all runs, the same list every time; each once.

        A grid runs through the last parameter first. A random search draws each value from a stream of its own, so
        that a higher count only adds runs.

        Args:
            count: most runs; `run_cap` if that is less.
            seed: of random search.

        Raises:
            UserError: a grid without end or of more than `parameters.MOST` runs, or a random search without a count.
        """
        limits = [limit for limit in (self.run_cap, count) if limit is not None]
        if self.method == "random":
            if not limits:
                raise UserError("method: random never ends by itself; give the file a run_cap, or --count 20")
            return self._draw(min(limits), seed)
        choices = {p.path: p.choices or [] for p in self.parameters}
        endless = next((p for p in self.parameters if not choices[p.path]), None)
        if endless is not None:
            raise UserError(
                f"parameters.{endless.name}: {endless.distribution} has no end, or more than {parameters.MOST} values; "
                "a grid needs few; or method: random"
            )
        size, most = math.prod(map(len, choices.values())), min(limits, default=parameters.MOST)
        if size > parameters.MOST and not limits:
            raise UserError(f"parameters: a grid of {size} runs; give the file a run_cap, or --count 20")
        unique: dict[str, Setting] = {}
        for values in itertools.product(*choices.values()):
            setting = dict(zip(choices, values, strict=True))
            unique.setdefault(identity(setting), setting)
            if len(unique) == most:
                break
        return list(unique.values())

    def _draw(self, count: int, seed: int) -> list[Setting]:
        from fedmtl.seeding import numpy_stream

        unique: dict[str, Setting] = {}
        for number in range(count * 20):  # few values may give the same setting again and again
            setting = {p.path: p.sample(numpy_stream(seed, "sweep", p.name, number)) for p in self.parameters}
            unique.setdefault(identity(setting), setting)
            if len(unique) == count:
                break
        return list(unique.values())


def identity(setting: Mapping[parameters.Path, Any]) -> str:
    """A setting as text, equal for equal ones: 1 and 1.0 are, true and 1 are not."""
    return json.dumps([[path, _number(value)] for path, value in setting.items()], sort_keys=True, default=str)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read(path: Path, name: str | None = None) -> Sweep:
    """Reads a sweep's file.

    Args:
        path: the file.
        name: name of the sweep, instead of the one in the file or the file's own.

    Raises:
        UserError: it is not in W&B's format, or asks for what only W&B can do.
    """
    content = _load(path)
    unknown = next((key for key in content if key not in (*_KEYS, *_ONLY_WANDB, *_REFUSED)), None)
    if unknown is not None:
        near = get_close_matches(str(unknown), _KEYS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join((*_KEYS, *_ONLY_WANDB))}"
        raise UserError(f"{path}: {unknown} is no key of a W&B sweep; {advice}")
    for key, what in _REFUSED.items():
        if key in content:
            raise UserError(f"{path}: {key}: {what} need W&B itself: wandb sweep {path}")
    method = content.get("method")
    if method not in ("grid", "random"):
        advice = f"; for bayes: wandb sweep {path}, then wandb agent" if method in ("bayes", "custom") else ""
        raise UserError(f"{path}: method must be grid or random here, not {method}{advice}")
    program, command = content.get("program"), content.get("command")
    if command is None:
        if not program:
            raise UserError(f"{path}: it says nowhere what to run; give it {_EXAMPLE}")
        command = ["${env}", "${interpreter}", "${program}", "${args}"]
    if not isinstance(command, list) or not command or not all(isinstance(word, str | int | float) for word in command):
        raise UserError(f"{path}: command must be a list of words, such as {_EXAMPLE}")
    cap = content.get("run_cap")
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        raise UserError(f"{path}: run_cap must be a whole number above 0, not {cap}")
    metric, ignored = _metric(content.get("metric"), path)
    if "early_terminate" in content:
        ignored.insert(0, "early_terminate: only W&B's agents stop runs early; here every run goes to its end")
    return Sweep(
        name=folder_name(name or str(content.get("name") or path.stem)),
        method=method,
        parameters=list(parameters.parse(content.get("parameters"), str(path))),
        metric=metric,
        command=[str(word) for word in command],
        program=None if program is None else str(program),
        run_cap=cap,
        ignored=ignored,
    )


def folder_name(text: str) -> str:
    """A text as the name of a folder: letters, digits and a few marks.

    Raises:
        UserError: nothing is left of it.
    """
    name = re.sub(r"[^\w.+-]+", "_", text).strip("._")
    if not name:
        raise UserError(f"name: {text!r} can't name a sweep; take letters, digits, '-', '_' and '.'")
    return name


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"--config: there is no file {path}")
    content = yaml_file.read(path)
    if not isinstance(content, dict) or "method" not in content:
        raise UserError(f"{path} is no sweep: it needs method and parameters (see experiments/sweeps/rho.yaml)")
    return content


def _metric(given: Any, path: Path) -> tuple[Metric | None, list[str]]:
    if given is None:
        return None, []
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise UserError(f"{path}: metric needs a name, such as {{name: val/delta_m, goal: maximize}}")
    goal = given.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise UserError(f"{path}: metric.goal must be minimize or maximize, not {goal}")
    ignored = ["metric.target: only W&B's agents stop at it; here all runs are made"] if "target" in given else []
    return Metric(given["name"], goal == "maximize"), ignored
