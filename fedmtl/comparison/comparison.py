"""Several groups of runs measured against one another: primary metrics, Δm, cost, and what to beware of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from fedmtl.comparison.configs import differences, method
from fedmtl.comparison.groups import Group, Statistic, grouped, statistic, stem
from fedmtl.delta_m import Primary, complete_mean, delta_m
from fedmtl.errors import UserError
from fedmtl.runs import Run, Values, find, is_run, printable


@dataclass(frozen=True)
class Comparison:
    """Groups of runs that can be compared.

    Attributes:
        groups: in the order given; the baseline's first if it was not among them.
        primary: metric and direction of every task that some group has.
        baseline: what Δm is measured against; None for what each run recorded itself.
        best: whether each run's best evaluation counts, the baseline's too, else its last.
    """

    groups: list[Group]
    primary: dict[str, Primary]
    baseline: Group | None = None
    best: bool = False
    _against: dict[Path, Values] = field(default_factory=dict, repr=False, compare=False)

    def values(self, run: Run) -> Values:
        """Primary metrics of the evaluation that counts; empty before the first."""
        round = run.at(best=self.best)
        return {} if round is None else run.values(round)

    def changes(self, run: Run, round: int | None = None) -> Values:
        """Δ in percent by task, at a round or at the evaluation that counts.

        There is none in a group whose runs recorded it against different baselines: it has no mean.
        """
        round = run.at(best=self.best) if round is None else round
        if round is None or any(run in group.runs for group in self._at_odds):
            return {}
        if self.baseline is None:
            return run.changes(round)
        if run.path not in self._against:
            self._against[run.path] = _baseline_values(self.baseline, run.seed, best=self.best)
        return delta_m(run.values(round), self._against[run.path], self.primary)

    def overall(self, run: Run, round: int | None = None) -> float | None:
        """Δm in percent, at a round or at the evaluation that counts; None unless every task of the baseline has a Δ.

        Of a baseline that the runs recorded, the tasks are those of all runs that are measured against it.
        """
        return complete_mean(
            self.changes(run, round), self._tasks.get(_against(run) if self.baseline is None else "", ())
        )

    def metric(self, group: Group, task: str) -> Statistic | None:
        """A task's primary metric over a group's seeds."""
        return statistic(self.values(run).get(task) for run in group.runs)

    def change(self, group: Group, task: str) -> Statistic | None:
        """A task's Δ over a group's seeds, in percent."""
        return statistic(self.changes(run).get(task) for run in group.runs)

    def delta_m(self, group: Group) -> Statistic | None:
        """Δm over a group's seeds, in percent."""
        return statistic(self.overall(run) for run in group.runs)

    @cached_property
    def has_delta_m(self) -> bool:
        """Whether any run can be measured against a baseline."""
        return any(self.changes(run) for run in self._runs)

    def curve(self, group: Group, value: Callable[[Run, int], float | None]) -> dict[int, Statistic]:
        """A number over the evaluated rounds, each over the seeds that got there."""
        found: dict[int, list[float | None]] = {}
        for run in group.runs:
            for round in run.evaluated:
                found.setdefault(round, []).append(value(run, round))
        return {round: one for round, values in sorted(found.items()) if (one := statistic(values)) is not None}

    @cached_property
    def differing(self) -> dict[str, list[str]]:
        """In what the groups' configurations differ, see `differences`."""
        return differences([method(group.runs[0]) for group in self.groups])

    @property
    def measure(self) -> str:
        """What Δm compares with, in words."""
        if self.baseline is not None:
            names = [run.name for run in self.baseline.runs]
            if len(names) == 1:
                return f"Δ against {names[0]}"
            return f"Δ against {self.baseline.name} (same seed, or the mean of {len(names)})"
        return f"Δ as the runs recorded it, against {', '.join(self._recorded)}" if self._recorded else ""

    @cached_property
    def _runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    @cached_property
    def _tasks(self) -> dict[str, list[str]]:
        """The tasks that Δm is over, by what it is against: the one baseline has no name here."""
        if self.baseline is not None:
            return {"": list(dict.fromkeys(task for run in self.baseline.runs for task in run.primary))}
        found: dict[str, dict[str, None]] = {}
        for run in filter(_has_recorded, self._runs):
            found.setdefault(_against(run), {}).update(dict.fromkeys(run.primary))
        return {name: list(tasks) for name, tasks in found.items()}

    @cached_property
    def _recorded(self) -> list[str]:
        return list(dict.fromkeys(name for run in filter(_has_recorded, self._runs) if (name := _against(run))))

    @cached_property
    def _at_odds(self) -> list[Group]:
        """Groups whose runs recorded Δ against different baselines."""
        if self.baseline is not None:
            return []
        return [group for group in self.groups if len({_against(run) for run in filter(_has_recorded, group.runs)}) > 1]

    @property
    def notes(self) -> list[str]:
        """What to beware of, a sentence each."""
        rounds = {run.at() for run in self._runs}
        waiting = [run.name for run in self._runs if run.at() is None]
        found = []
        if waiting:
            found.append(f"not evaluated yet: {', '.join(waiting)}")
        partial = [group.name for group in self.groups if self._is_partial(group)]
        if partial:
            names = ", ".join(partial)
            found.append(f"marked (n/N): only n of the row's N runs have a finite number there ({names})")
        if len({frozenset(run.seed for run in group.runs) for group in self.groups}) > 1:
            seeds = (f"{group.name} {' '.join(str(run.seed) for run in group.runs)}" for group in self.groups)
            found.append(f"unequal seeds: the means are not over the same ones ({', '.join(seeds)})")
        if len(rounds - {None}) > 1:
            found.append("unequal progress: the numbers are of different rounds, see the column")
        data = [key for key in self.differing if key.split(".")[0].split("[")[0] == "data"]
        if data:
            found.append(f"the data differ ({', '.join(data)}): compare with care")
        if self.baseline is None and len(self._recorded) > 1:
            found.append("Δm is against different baselines; --baseline RUN measures all against one")
        if self._at_odds:
            names = ", ".join(group.name for group in self._at_odds)
            found.append(f"no Δm for {names}: its runs recorded it against different baselines")
        if self.baseline is not None and not all(run.finished for run in self.baseline.runs):
            found.append("the baseline is unfinished")
        told = [run for group in self.groups if group not in self._at_odds for run in group.runs]
        measured = [run for run in told if run.at() is not None and (self.baseline or _has_recorded(run))]
        without = [run.name for run in measured if self.overall(run) is None]
        if without:
            found.append(f"no Δm for {', '.join(without)}: not every task of the baseline has a finite Δ there")
        if self.baseline is None and not any(map(_has_recorded, self._runs)):
            found.append("there is no Δm without a baseline; --baseline RUN names one")
        return found

    def _is_partial(self, group: Group) -> bool:
        means = [*(self.metric(group, task) for task in self.primary), self.delta_m(group)]
        return any(one.n < len(group.runs) for one in means if one is not None)


def compare(paths: Sequence[str | Path], baseline: str | None = None, *, best: bool = False) -> Comparison:
    """Reads runs and groups them.

    Args:
        paths: runs' folders, or folders of runs.
        baseline: what Δm is measured against: the folder of a run, of runs of one configuration, such a folder's
            name without ``_s<seed>``, or the name of one of the groups or runs.
        best: whether each run's best evaluation counts, the baseline's too, else its last.

    Raises:
        UserError: there is no such run, or the runs can't be compared.
    """
    runs = find(paths)
    reference = None if baseline is None else _reference(baseline, runs)
    everything = _informed([*runs, *(reference.runs if reference else [])])
    primary = _agreed(everything)
    compared = {run.path: run for run in everything}
    groups = grouped([compared[run.path] for run in runs])
    if reference is None:
        return Comparison(groups, primary, best=best)
    reference = replace(reference, runs=[compared[run.path] for run in reference.runs])
    if not any(run.evaluated for run in reference.runs):
        raise UserError(f"--baseline: {reference.name} has no evaluation yet")
    among = {run.path.resolve() for run in runs}
    outside = [run for run in reference.runs if run.path.resolve() not in among]
    if outside:
        names = {group.name for group in groups}
        name = reference.name if reference.name not in names else f"{reference.name} (baseline)"
        groups = [Group(name, outside), *groups]
    return Comparison(groups, primary, reference, best)


def _reference(name: str, runs: Sequence[Run]) -> Group:
    """The group that `--baseline` names.

    Raises:
        UserError: there is none, or there are several.
    """
    groups = grouped(runs)
    path = Path(name)
    path = path.parent if path.name == "results.json" else path
    named = [group for group in groups if group.name == name]
    named += [Group(run.name, [run]) for run in runs if run.name == name and [run] not in [g.runs for g in named]]
    if len(named) > 1 and not is_run(path):
        there = ", ".join(printable(str(run.path)) for group in named for run in group.runs)
        raise UserError(f"--baseline: {name} may be any of {there}; give the folder of one")
    if named and not is_run(path):
        return named[0]
    if path.is_dir():
        found = grouped(find([path]))
    else:
        seeds = sorted(p for p in path.parent.glob("*") if is_run(p) and stem(p.name) == path.name)
        if not seeds:
            there = ", ".join(group.name for group in groups)
            raise UserError(f"--baseline: {name} is neither a run's folder nor one of these runs ({there})")
        found = grouped(find(seeds))
    if len(found) > 1:
        raise UserError(f"--baseline: {name} holds runs of {len(found)} configurations; name one of them")
    return found[0]


def _against(run: Run) -> str:
    """What a run recorded its Δ against, without its seed."""
    return stem(run.baseline or "")


def _has_recorded(run: Run) -> bool:
    return any(run.changes(round) for round in run.evaluated)


def _baseline_values(baseline: Group, seed: int | None, *, best: bool) -> Values:
    """Primary metrics of the baseline's run with that seed, or else their means over its runs."""
    counted = {run.path: run.values(round) for run in baseline.runs if (round := run.at(best=best)) is not None}
    same = [counted[run.path] for run in baseline.runs if run.seed == seed and run.path in counted]
    chosen = same[:1] or list(counted.values())
    tasks = dict.fromkeys(task for values in chosen for task in values)
    means = {task: statistic(values.get(task) for values in chosen) for task in tasks}
    return {task: one.mean for task, one in means.items() if one is not None}


def _informed(runs: Sequence[Run]) -> list[Run]:
    """Runs that do not say yet how they are measured take it from the first that does and has the same tasks."""
    told = {task: p for run in reversed(runs) if run.validation is not None for task, p in run.primary.items()}
    return [
        run if run.validation is not None else replace(run, primary={t: told.get(t, p) for t, p in run.primary.items()})
        for run in runs
    ]


def _agreed(runs: Sequence[Run]) -> dict[str, Primary]:
    """The metric of every task.

    Raises:
        UserError: two runs measure a task by different metrics, or on other images.
    """
    first: dict[str, Run] = {}
    for run in runs:
        for task, primary in run.primary.items():
            other = first.setdefault(task, run)
            if other.primary[task] != primary:
                theirs, ours = _measure(other.primary[task]), _measure(primary)
                ours = ours if ours != theirs else "another of that name"
                raise UserError(
                    f"{run.name} can't be compared with {other.name}: {task} by {ours} and by {theirs}; leave one out"
                )
            if None not in (run.validation, other.validation) and run.validation != other.validation:
                raise UserError(
                    f"{run.name} can't be compared with {other.name}: {task} was measured on {_images(run)} and on "
                    f"{_images(other)}; leave one out"
                )
    return {task: run.primary[task] for task, run in first.items()}


def _measure(primary: Primary) -> str:
    return f"{primary.metric} ({primary.protocol})" if primary.protocol else primary.metric


def _images(run: Run) -> str:
    return ", ".join(f"{printable(str(count))} images of {data}" for data, count in (run.validation or {}).items())
