"""Who takes part in a run, and what came of it, as tables for a terminal."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fedmtl.tracking.display.progress import MANY_CLIENTS

TOGETHER = ("client", "data", "tasks", "ids")  # columns of a client that have no range


def federation_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Who takes part: a row a client, with its data set, tasks, images, local epochs and steps of a round; where there
    are many clients, a row for those with the same data set and tasks."""
    table = Table(title=f"{len(rows)} client{'s' * (len(rows) > 1)}", caption="epochs and steps: of a round")
    if len(rows) > MANY_CLIENTS:
        rows = _by_tasks(rows)
    columns = [column for column in rows[0] if column != "ids"]
    for column in columns:
        table.add_column(column, justify="left" if column in ("client", "data", "tasks", "input") else "right")
    for row in rows:
        table.add_row(*(Text(", ".join(row[c]) if isinstance(row[c], list) else str(row[c])) for c in columns))
    return table


def _by_tasks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for all clients with the same data set and tasks: their number, and the range of what they differ in."""
    alike: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        alike.setdefault((row["data"], *row["tasks"]), []).append(row)

    def together(values: set[Any]) -> str:
        ordered = sorted(map(str, values), key=_amount)
        return "–".join(dict.fromkeys([ordered[0], ordered[-1]]))

    return [
        {"client": f"{len(own)} clients", "data": own[0]["data"], "tasks": own[0]["tasks"]}
        | {column: together({row[column] for row in own}) for column in own[0] if column not in TOGETHER}
        for own in alike.values()
    ]


def _amount(text: str) -> tuple[float, str]:
    """What sorts ``3.40 M`` before ``10.20 M``, and words after numbers."""
    found = re.match(r"\d+(\.\d+)?", text)
    return float(found[0]) if found else math.inf, text


def results_table(results: Mapping[str, Any]) -> Table:
    """The end of a run as a table: a row a task, last and best, and the change against the baseline."""
    last, best, baseline = results["last"], results["best"], results["baseline"]
    changes = last["delta_m"] or {"tasks": {}, "mean": None}
    table = Table(
        title=Text(f"{results['name']} after round {last['round']}", "table.title"),
        caption=Text(f"Δ against {baseline['name']}", "table.caption") if baseline else None,
    )
    for column in ("task", "metric"):
        table.add_column(column)
    for column in ("last", f"round {best['round']} (best)", *(("baseline", "Δ %") if baseline else ())):
        table.add_column(column, justify="right")
    for task, primary in results["primary"].items():
        name = primary["metric"]
        row = [Text(task), Text(name + (" ↑" if primary["higher_is_better"] else " ↓"))]
        row += [Text(_number(entry["metrics"][task][name])) for entry in (last, best)]
        if baseline:
            row += [Text(_number(baseline["metrics"][task])), Text(_number(changes["tasks"].get(task), "+.2f"))]
        table.add_row(*row)
    if baseline:
        table.add_section()
        table.add_row("all", "Δm ↑", "", "", "", _number(changes["mean"], "+.2f"))
    return table


def _number(value: float | None, form: str = ".4g") -> str:
    return "–" if value is None else format(value, form)
