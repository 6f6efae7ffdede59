"""The live view of a run: what happened, drawn into so many columns and rows of a terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from fedmtl.tracking.display.progress import MANY_CLIENTS, Line, Progress, State
from fedmtl.tracking.display.sparkline import duration, sparkline

SIDE_BY_SIDE = 120  # columns from which the two tables stand beside each other
FEW = 8  # losses in one line of a log; where there are more clients, those of a task share one
MARKS: dict[State, tuple[str, str]] = {
    "waiting": ("·", "dim"),
    "training": ("▶", "bold cyan"),
    "trained": ("✓", "green"),
    "absent": ("–", "dim"),
}


def render(progress: Progress, *, width: int, height: int) -> RenderableType:
    """A run as a bar, a table of its clients and one of its metrics.

    Args:
        progress: the run.
        width: columns; no line is longer.
        height: rows; there are at most so many, or one.
    """
    head = [_bar(progress, width), *([_status(progress)] if height > 1 else [])]
    metrics = [] if progress.phase == "finished" else _metric_rows(progress)  # a table of results comes after it
    room = height - len(head)
    if width >= SIDE_BY_SIDE and metrics and progress.clients and room > 1:
        half = (width - 4) // 2
        room -= room > 8
        lines, more = _fitting(progress, room)
        grid = Table.grid(Column(width=width - half - 4), Column(width=half), padding=(0, 4, 0, 0))
        grid.add_row(_clients(lines, more, width - half - 4), _metrics(metrics, room, progress, half))
        body: list[RenderableType] = [grid]
        gaps = room > 8
    else:
        least = len(progress.clients)
        least = least if least < min(room - len(metrics), MANY_CLIENTS + 1) else len(progress.kinds())
        gaps = room >= least + len(metrics) + 4
        room -= 2 * gaps
        for_metrics = min(len(metrics) + 1 if metrics else 0, max(room - least - 1, room // 2))
        lines, more = _fitting(progress, room - for_metrics)
        body = [_clients(lines, more, width)] if lines else []
        if gaps and body and for_metrics > 1:
            body.append("")
        body += [_metrics(metrics, for_metrics, progress, width)] if for_metrics > 1 else []
    return Group(*head, *([""] if gaps and body else []), *body)


def round_line(progress: Progress, row: Mapping[str, Any]) -> str:
    """The last round for a log: its number, losses, metrics if it had an evaluation, and the time left."""
    losses = [f"{who} {loss:.3f}" for who, loss in progress.latest(FEW).items() if loss is not None]
    line = f"round {progress.round}/{progress.rounds}  loss: {', '.join(losses)}"
    found = {(task, p.metric): row.get(f"val/{task}/{p.metric}") for task, p in progress.primary.items()}
    metrics = [f"{task} {metric} {value:.4g}" for (task, metric), value in found.items() if value is not None]
    if metrics:
        line += f"  val: {', '.join(metrics)}"
    if row.get("val/delta_m") is not None:
        line += f", Δm {row['val/delta_m']:+.2f} %"
    left = progress.left
    return line if left is None or progress.ended == progress.rounds else f"{line}  ({duration(left)} left)"


def _bar(progress: Progress, width: int) -> RenderableType:
    place = f"round {progress.round}/{progress.rounds}"
    percent = f"{100 * progress.share:3.0f} %"
    name = progress.name if len(progress.name) + len(place) + 20 <= width else ""
    grid = Table.grid(
        *([Column(no_wrap=True, style="bold")] if name else []),
        Column(no_wrap=True),
        Column(ratio=1),
        Column(no_wrap=True),
        padding=(0, 2, 0, 0),
        expand=True,
        pad_edge=False,
    )
    bar = ProgressBar(total=1, completed=progress.share, complete_style="cyan", finished_style="green")
    grid.add_row(*([Text(name)] if name else []), place, bar, percent)
    return grid


def _status(progress: Progress) -> Text:
    since = progress.now - progress.began if progress.began is not None else 0.0
    left = progress.left
    doing = f"{progress.phase} {progress.client}" if progress.phase == "training" else progress.phase
    if progress.phase in ("finished", "stopped"):
        words = [f"{doing} after {duration(since)}"]
    else:
        words = [
            f"{duration(left)} left" if left is not None else "time left: after a round",
            f"{duration(since)} so far",
        ]
    words.append(f"{decimal(progress.up)} up, {decimal(progress.down)} down")
    words += [doing] if doing and progress.phase not in ("finished", "stopped") else []
    return Text(" · ".join(words), style="dim", no_wrap=True, overflow="ellipsis")


def _fitting(progress: Progress, rows: int) -> tuple[list[Line], int]:
    """The lines that there is room for beside a heading, and how many clients these leave out."""
    if not progress.clients or rows < 2:
        return [], 0
    lines = progress.lines(rows - 1)
    cut = 0 if len(lines) >= len(progress.clients) else len(progress.kinds()) - len(lines)
    return (lines, 0) if cut <= 0 or rows < 4 else (progress.lines(rows - 2), cut + 1)


def _clients(lines: Sequence[Line], more: int, width: int) -> Table:
    said = f"… {more} more" if more else ""
    names = max(len("client"), len(said), min(max(len(line.name) for line in lines), 24 if width >= 76 else 14))
    digits = max(len(f"{line.done}/{line.total}") for line in lines)
    tasks = max(len("tasks"), *(len(", ".join(line.tasks)) for line in lines)) if width >= 76 else 0
    told = all(line.name.endswith("+".join(line.tasks)) for line in lines if line.total)
    tasks = 0 if told else min(tasks, width // 4)
    bar = max(6, min(20, (width - names - tasks) // 4))
    spark = max(4, min(40, width - names - tasks - digits - bar - 1 - 9 - 5 - bool(tasks)))
    table = _table(
        Column("", width=1),
        Column("client", width=names),
        *([Column("tasks", width=tasks)] if tasks else []),
        Column(_heading(bar, "this round", "round"), width=bar),
        Column("", width=digits, justify="right"),
        Column("loss", width=9, justify="right"),
        Column(_heading(spark, "by round", "trend"), width=spark),
    )
    for line in lines:
        mark, style = MARKS[line.state]
        bars = ProgressBar(total=line.total, completed=line.done, width=bar, complete_style=style)
        table.add_row(
            Text(mark, style) if line.total else "",
            Text(line.name, style if line.state == "training" else "" if line.total else "dim"),
            *([Text(", ".join(line.tasks), "dim")] if tasks else []),
            bars if line.total else "",
            f"{line.done}/{line.total}" if line.total else "",
            _number(next(iter(line.losses[-1:]), None)),
            Text(sparkline(line.losses, spark), "yellow"),
        )
    if said:
        table.add_row("", Text(said, "dim"))
    return table


Row = tuple[str, str, Sequence[float], float | None, float | None, float | None, bool]


def _metric_rows(progress: Progress) -> list[Row]:
    """Task, metric, its values, best, baseline, Δ, and whether higher is better, of each task; Δm in the end."""
    if not progress.metrics:
        return []
    base = progress.baseline["metrics"] if progress.baseline else {}
    rows: list[Row] = []
    for task, p in progress.primary.items():
        change = next(iter(progress.changes.get(task, [])[-1:]), None)
        name, values = f"{p.metric} {'↑' if p.higher_is_better else '↓'}", progress.metrics.get(task, [])
        rows.append((task, name, values, progress.best(task), base.get(task), change, p.higher_is_better))
    if progress.changes.get(""):
        means = progress.changes[""]
        best = max(filter(math.isfinite, means), default=None)
        rows.append(("all", "Δm ↑ %", means, best, None, None, True))
    return rows


def _metrics(rows: Sequence[Row], room: int, progress: Progress, width: int) -> Table:
    """At most `room` lines, of which one is the heading; the last row, of all tasks, stays, and what is cut is said."""
    against = progress.baseline is not None
    shown = rows[:-1] if len(rows) < room else rows[: max(room - 3, 0)]
    more = f"… {len(rows) - 1 - len(shown)} more" if len(shown) < len(rows) - 1 and room > 2 else ""
    task = max(len("task"), len(more), min(max(len(row[0]) for row in rows), 16))
    metric = max(len("metric"), *(len(row[1]) for row in rows))
    spare = width - (task + metric + 11 + 9 + 3) - 10 * against
    base = against and spare >= 10
    spark = min(spare - 10 * base - 1, 40)
    table = _table(
        Column("task", width=task),
        Column("metric", width=metric),
        *([Column(_heading(spark, "by evaluation", "trend"), width=spark)] if spark >= 6 else []),
        Column("last", width=11, justify="right"),
        Column("best", width=9, justify="right"),
        *([Column("baseline", width=9, justify="right")] if base else []),
        *([Column("Δ %", width=9, justify="right")] if against else []),
    )
    for row in [*shown, rows[-1]]:
        if more and row is rows[-1]:
            table.add_row(Text(more, "dim"))
        name, kind, values, best, reference, change, higher = row
        mean = name == "all" and reference is None and kind.startswith("Δm")
        last = values[-1] if values else None
        table.add_row(
            Text(name, "bold" if mean else ""),
            Text(kind),
            *([Text(sparkline(values, spark), "cyan")] if spark >= 6 else []),
            Text.assemble(_number(last, mean), " ", _moved(values, higher)),
            _number(best, mean),
            *([_number(reference)] if base else []),
            *([_change(change)] if against else []),
        )
    return table


def _table(*columns: Column) -> Table:
    for column in columns:
        column.no_wrap = True
    return Table(*columns, box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")


def _heading(width: int, *choices: str) -> str:
    """The first of some headings that a column has room for."""
    return next((choice for choice in choices if len(choice) <= width), "")


def _number(value: float | None, signed: bool = False) -> str:
    return "–" if value is None else format(value, "+.2f" if signed else "#.4g")


def _moved(values: Sequence[float], higher_is_better: bool) -> Text:
    """Whither a metric went since the evaluation before, and by its colour whether that is good."""
    if len(values) < 2 or not math.isfinite(values[-1] - values[-2]) or values[-1] == values[-2]:
        return Text(" ")
    up = values[-1] > values[-2]
    return Text("↗" if up else "↘", "green" if up == higher_is_better else "red")


def _change(change: float | None) -> Text:
    if change is None:
        return Text("–")
    return Text(f"{change:+.2f} {'▲' if change > 0 else '▼' if change < 0 else ' '}",
                "green" if change > 0 else "red" if change < 0 else "")  # fmt: skip
