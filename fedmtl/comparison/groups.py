"""Groups: runs of one configuration that differ in their seeds; statistics over them."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from fedmtl.comparison.configs import method
from fedmtl.runs import Run, printable


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, by ascending seeds."""

    name: str
    runs: list[Run]


@dataclass(frozen=True)
class Statistic:
    """Mean, sample standard deviation (None of a single value) and number of some values."""

    mean: float
    std: float | None
    n: int


def statistic(values: Iterable[float | None]) -> Statistic | None:
    """Mean and sample standard deviation, with n − 1, of the values that are there; None if none is."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    if not found:
        return None
    return Statistic(fmean(found), stdev(found) if len(found) > 1 else None, len(found))


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs by configuration, in the order of their first.

    Where a seed comes twice the runs go by their names, too: whoever ran it again had a reason.

    Raises:
        UserError: a configuration can't be read.
    """
    found: list[list[Run]] = []
    for alike in _by(runs, lambda run: tuple(sorted(method(run).items()))):
        for named in _by(alike, lambda run: stem(run.name)) if _seed_twice(alike) else [alike]:
            found += [[run] for run in named] if _seed_twice(named) else [named]
    found = [sorted(one, key=lambda run: -1 if run.seed is None else run.seed) for one in found]
    return [Group(name, one) for name, one in zip(_names(found), found, strict=True)]


def stem(name: str) -> str:
    """A run's name without ``_s<seed>`` at its end."""
    return re.sub(r"_s\d+$", "", name) or name


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Of each group the shortest name that no other has: its runs' without seed, the run's, with its folder."""
    names = [" + ".join(dict.fromkeys(stem(run.name) for run in group)) for group in groups]
    for longer in (_of_run, _with_folder):
        count = Counter(names)
        names = [longer(group, name) if count[name] > 1 else name for group, name in zip(groups, names, strict=True)]
    count = Counter(names)
    return [f"{name} ({i})" if count[name] > 1 else name for i, name in enumerate(names, 1)]


def _of_run(group: Sequence[Run], name: str) -> str:
    return group[0].name if len(group) == 1 else name


def _with_folder(group: Sequence[Run], name: str) -> str:
    return f"{printable(group[0].path.resolve().parent.name)}/{name}"


def _by(runs: Sequence[Run], key: Callable[[Run], Any]) -> list[list[Run]]:
    found: dict[Any, list[Run]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return list(found.values())


def _seed_twice(runs: Sequence[Run]) -> bool:
    return len({run.seed for run in runs}) < len(runs)
