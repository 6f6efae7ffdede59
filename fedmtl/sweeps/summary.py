"""What a sweep's runs have come to: a row a run, a row a setting over its seeds, as table and CSV."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from fedmtl import runs
from fedmtl.delta_m import Primary, complete_mean, delta_m
from fedmtl.errors import UserError
from fedmtl.sweeps.definition import Metric, Setting, Sweep, identity
from fedmtl.sweeps.names import Labels, keys
from fedmtl.sweeps.parameters import Path as Name

SEED: Name = ("seed",)
CHANGES = ("val/delta_m", "last/delta_m", "best/delta_m")


@dataclass
class Row:
    """A run of a sweep.

    Attributes:
        name: of the run.
        setting: its values of all parameters.
        state: ``done``, ``running``, ``failed``, ``stopped`` or ``to do``.
        metrics: all its numbers, by their names in metrics.jsonl and in W&B's summary.
        primary: the metric of each task, as ``val/<task>/<metric>``, and its direction.
    """

    name: str
    setting: Setting
    state: str
    metrics: dict[str, float] = field(default_factory=dict)
    primary: dict[str, Primary] = field(default_factory=dict)


@dataclass
class Group:
    """The finished runs of one setting, which differ in their seed alone."""

    setting: Setting
    rows: list[Row]

    def values(self, metric: str) -> list[float]:
        """A metric of those of its runs that have it."""
        return [row.metrics[metric] for row in self.rows if metric in row.metrics]


@dataclass
class Summary:
    """A sweep's runs and the metric that orders them.

    Attributes:
        sweep: its definition.
        rows: all runs, in the order of the sweep.
        groups: settings with a finished run, best first; without a metric as they come.
        metric: what orders them, None if no run has it.
        title: what the metric is, in words.
    """

    sweep: Sweep
    rows: list[Row]
    groups: list[Group]
    metric: Metric | None
    title: str


def row(name: str, setting: Setting, folder: Path, state: str) -> Row:
    """A run's row from its folder, if there is one that can be read; its numbers only when it is done."""
    if state != "done" or not runs.is_run(folder):
        return Row(name, setting, state)
    try:
        run = runs.read(folder)
    except UserError:
        return Row(name, setting, "damaged")
    return Row(name, setting, state, measured(run), run.primary)


def measured(run: runs.Run) -> dict[str, float]:
    """A finished run's last numbers, and with ``last/`` and ``best/`` in place of ``val/`` those of its summary."""
    found = {key: value for line in run.rows for key, value in line.items()}
    for when in ("best", "last"):
        entry = (run.results or {}).get(when) or {}
        flat = {
            f"{task}/{metric}": value
            for task, values in (entry.get("metrics") or {}).items()
            for metric, value in values.items()
        }
        changes = entry.get("delta_m") or {}
        flat |= {f"{task}/delta": value for task, value in (changes.get("tasks") or {}).items()}
        flat |= {"delta_m": changes["mean"]} if "mean" in changes else {}
        found |= {f"{prefix}/{key}": v for prefix in (when, "val") for key, v in flat.items()}
    found["seconds"] = run.total("time/train", "time/evaluate")
    return {key: value for key, each in found.items() if (value := runs.number(each)) is not None}


def summarise(sweep: Sweep, rows: Sequence[Row]) -> Summary:
    """Groups the finished runs by setting and orders them by the sweep's metric.

    Without a baseline no run has Δm. A sweep that asks for it then gets Δm against the first of its settings, seed by
    seed; none where no run of that has finished.

    Args:
        sweep: its definition.
        rows: all its runs, in its order.
    """
    groups: dict[str, Group] = {}
    for each in rows:
        if each.metrics:
            without = _without_seed(each)
            groups.setdefault(identity(without), Group(without, [])).rows.append(each)
    found = list(groups.values())
    metric = sweep.metric or Metric(CHANGES[0], maximize=True)
    title = metric.name
    if found and metric.name in CHANGES and not any(group.values(metric.name) for group in found):
        first = _without_seed(rows[0])
        base, said = groups.get(identity(first)), setting_label(sweep, first)
        if base is None:
            return Summary(sweep, list(rows), found, None, f"no Δm: no run of the first setting, {said}, has finished")
        _compare(found, base, metric.name)
        title = f"Δm against {said}"
    if not any(group.values(metric.name) for group in found):
        return Summary(sweep, list(rows), found, None, f"no run has {metric.name}")
    sign = -1 if metric.maximize else 1
    found.sort(key=lambda g: sign * mean_and_deviation(v)[0] if (v := g.values(metric.name)) else float("inf"))
    return Summary(sweep, list(rows), found, metric, title)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation, with n − 1, of at least one value; of a single one no deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _without_seed(row: Row) -> Setting:
    return {path: value for path, value in row.setting.items() if path != SEED}


def _compare(groups: Sequence[Group], first: Group, name: str) -> None:
    """Gives each run Δm against the first group's run of the same seed, which started from the same weights."""
    when = "best" if name.startswith("best") else "val"
    primary = first.rows[0].primary

    def values(row: Row) -> dict[str, float]:
        return {t: row.metrics[key] for t, p in primary.items() if (key := f"{when}/{t}/{p.metric}") in row.metrics}

    bases = {identity({SEED: row.setting.get(SEED)}): values(row) for row in first.rows}
    for each in (row for group in groups for row in group.rows):
        base = bases.get(identity({SEED: each.setting.get(SEED)}), {})
        change = complete_mean(delta_m(values(each), base, primary), primary)
        each.metrics |= {} if change is None else {name: change}


def setting_label(sweep: Sweep, setting: Setting) -> str:
    """A setting in words: what it has of the varied parameters."""
    short, said = keys(sweep), Labels(sweep)
    return ", ".join(
        f"{short[p.path]} {said(p, setting[p.path])}" if p.path != ("config",) else said(p, setting[p.path])
        for p in sweep.varied
        if p.path in setting
    )


def table(summary: Summary) -> Table:
    """A row a setting: its parameters, the metric as mean ± standard deviation over seeds, every task's as mean."""
    sweep, metric = summary.sweep, summary.metric
    title, caption = Text(f"{sweep.name}: {summary.title}", "table.title"), Text(_caption(summary), "table.caption")
    result = Table(title=title, caption=caption)
    short, said = keys(sweep), Labels(sweep)
    varied = [p for p in sweep.varied if p.path != SEED]
    tasks = _columns(summary)
    for parameter in varied:
        result.add_column(Text(short[parameter.path]), overflow="fold")
    result.add_column("runs", justify="right")
    names = [*([metric.name] if metric else []), *(name for name in tasks if not metric or name != metric.name)]
    for name in names:
        arrow = "" if name not in tasks else " ↑" if tasks[name] else " ↓"
        if metric and name == metric.name:
            arrow = " ↑" if metric.maximize else " ↓"
        text = "Δm %" if name in CHANGES else name.removeprefix("val/").replace("/", " ")
        result.add_column(Text(text + arrow), justify="right", overflow="fold")
    for group in summary.groups:
        cells = [Text(said(p, group.setting[p.path])) for p in varied]
        numbers = (_cell(group.values(name), spread=bool(metric and name == metric.name)) for name in names)
        result.add_row(*cells, _counted(summary, group), *numbers)
    return result


def _columns(summary: Summary) -> dict[str, bool]:
    """Each task's metric in the order of the runs, and whether higher is better."""
    return {f"val/{task}/{p.metric}": p.higher_is_better for row in summary.rows for task, p in row.primary.items()}


def _caption(summary: Summary) -> str:
    said = []
    if summary.metric:
        said.append(f"{'highest' if summary.metric.maximize else 'lowest'} first")
        if summary.title != summary.metric.name:
            said.append("no baseline was given, so Δm is against the first setting, seed by seed")
    counted = [_counted(summary, group) for group in summary.groups]
    if any(text != "1" for text in counted):
        said.append("mean ± standard deviation over seeds")
    if summary.metric and any(" of " in text for text in counted):
        said.append(f"1 of 2 runs: one has {'Δm' if summary.metric.name in CHANGES else summary.metric.name}")
    return "; ".join(said)


def _counted(summary: Summary, group: Group) -> str:
    """How many finished runs there are, and of these how many have the metric."""
    runs = len(group.rows)
    values = len(group.values(summary.metric.name)) if summary.metric else runs
    return f"{runs}" if values == runs else f"{values} of {runs}"


def _cell(values: Sequence[float], *, spread: bool) -> str:
    if not values:
        return "–"
    middle, deviation = mean_and_deviation(values)
    text = f"{0.0 if abs(middle) < 1e-9 else middle:.4g}"
    return text if deviation is None or not spread else f"{text} ± {deviation:.2g}"


def as_csv(summary: Summary) -> str:
    """A line a run, best setting first: its parameters, the metric and every task's, seconds."""
    named = {parameter.path: parameter.name for parameter in summary.sweep.parameters}
    names = [summary.metric.name] if summary.metric else []
    names += [name for name in (*_columns(summary), "bytes/up", "seconds") if name not in names]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "state", *map(_text, named.values()), *map(_text, names)])
    ordered = [row for group in summary.groups for row in group.rows]
    for row in [*ordered, *(row for row in summary.rows if not row.metrics)]:
        settings = [_text(row.setting[path]) for path in named]
        writer.writerow([_text(row.name), row.state, *settings, *(row.metrics.get(name, "") for name in names)])
    return file.getvalue()


def _text(value: Any) -> str:
    """A value as no spreadsheet takes it for a formula; a negative number is none."""
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(("=", "+", "-", "@")) else text
