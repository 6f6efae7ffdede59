"""What a person sees while a run goes on: a live display in a terminal, plain lines elsewhere."""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedmtl.delta_m import Primary

MANY_CLIENTS = 32  # with more than these, clients that are alike share a row of the table, and a loss
TOGETHER = ("client", "data", "tasks", "ids")  # columns of a client that have no range


class Display:
    """Rounds, clients, losses, time left.

    Args:
        rounds: rounds of the run.
        steps: local steps of a round.
        primary: the metric of each task.
        console: where to write.
    """

    def __init__(self, *, rounds: int, steps: int, primary: Mapping[str, Primary], console: Console) -> None:
        self.rounds, self.primary, self.console = rounds, primary, console
        self._started = perf_counter()
        self._first: int | None = None
        self._round = 0
        self._progress = Progress(
            TextColumn("round {task.fields[round]}/" + str(rounds)),
            BarColumn(),
            TextColumn("{task.fields[client]}  {task.fields[loss]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("", total=rounds * steps, round=0, client="", loss="")
        self._steps = steps

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def start_round(self, round: int) -> None:
        """A round begins."""
        if self._first is None:
            self._first = round
        self._round = round
        self._progress.update(self._bar, completed=(round - 1) * self._steps, round=round)

    def start_client(self, name: str) -> None:
        """A client begins to train."""
        self._progress.update(self._bar, client=name)

    def step(self) -> None:
        """A local step is done."""
        self._progress.advance(self._bar)

    def end_client(self, loss: float) -> None:
        """A client has trained, with this mean loss."""
        self._progress.update(self._bar, loss=f"loss {loss:.3f}")

    def end_round(self, row: Mapping[str, Any]) -> None:
        """A round is done: one line with its losses, metrics and time left."""
        losses = [
            f"{key.split('/')[1]} {value:.3f}"
            for key, value in row.items()
            if key.startswith("train/") and key.endswith("/loss") and value is not None
        ]
        line = f"round {self._round}/{self.rounds}  loss: {', '.join(losses)}"
        metrics = [
            f"{task} {p.metric} {row[f'val/{task}/{p.metric}']:.4g}"
            for task, p in self.primary.items()
            if f"val/{task}/{p.metric}" in row
        ]
        if metrics:
            line += f"  val: {', '.join(metrics)}"
        if row.get("val/delta_m") is not None:
            line += f", Δm {row['val/delta_m']:+.2f} %"
        done = self._round - (self._first or 1) + 1
        left = (perf_counter() - self._started) / done * (self.rounds - self._round)
        self.console.print(f"{line}  ({left / 60:.0f} min left)" if left >= 60 else f"{line}  ({left:.0f} s left)",
                           highlight=False, soft_wrap=True)  # fmt: skip


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
        table.add_row(*(escape(", ".join(row[c]) if isinstance(row[c], list) else str(row[c])) for c in columns))
    return table


def _by_tasks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for all clients with the same data set and tasks: their number, and the range of what they differ in."""
    alike: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        alike.setdefault((row["data"], *row["tasks"]), []).append(row)

    def together(values: set[Any]) -> str:
        ends = [str(end) for end in (min(values), max(values))] if len(values) > 1 else [str(*values)]
        return "–".join(ends)

    return [
        {"client": f"{len(own)} clients", "data": own[0]["data"], "tasks": own[0]["tasks"]}
        | {column: together({row[column] for row in own}) for column in own[0] if column not in TOGETHER}
        for own in alike.values()
    ]


def results_table(results: Mapping[str, Any]) -> Table:
    """The end of a run as a table: a row a task, last and best, and the change against the baseline."""
    last, best, baseline = results["last"], results["best"], results["baseline"]
    changes = last["delta_m"] or {"tasks": {}, "mean": None}
    table = Table(
        title=f"{results['name']} after round {last['round']}",
        caption=f"Δ against {baseline['name']}" if baseline else None,
    )
    for column in ("task", "metric"):
        table.add_column(column)
    for column in ("last", f"round {best['round']} (best)", *(("baseline", "Δ %") if baseline else ())):
        table.add_column(column, justify="right")
    for task, primary in results["primary"].items():
        name = primary["metric"]
        row = [task, name + (" ↑" if primary["higher_is_better"] else " ↓")]
        row += [_number(entry["metrics"][task][name]) for entry in (last, best)]
        if baseline:
            row += [_number(baseline["metrics"][task]), _number(changes["tasks"].get(task), "+.2f")]
        table.add_row(*row)
    if baseline:
        table.add_section()
        table.add_row("all", "Δm ↑", "", "", "", _number(changes["mean"], "+.2f"))
    return table


def _number(value: float | None, form: str = ".4g") -> str:
    return "–" if value is None else format(value, form)
