"""Tables of a comparison, once made, shown in a terminal, as LaTeX, as CSV, and on the page."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from fedmtl.comparison.comparison import Comparison
from fedmtl.comparison.groups import Group, Statistic, statistic

NONE = "–"
_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "−": r"$-$",
    "–": "--",
}


@dataclass(frozen=True)
class Cell:
    """A cell's text, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table as text: the heads of its columns, each of one or two lines, and its rows; the first column names."""

    title: str
    heads: list[str]
    rows: list[list[Cell]]


def metrics(comparison: Comparison) -> Table:
    """Primary metrics of every task and Δm, a row a group."""
    heads, columns = ["method"], [[Cell(group.name) for group in comparison.groups]]
    sizes = [len(group.runs) for group in comparison.groups]
    for task, primary in comparison.primary.items():
        heads.append(f"{task}\n{primary.metric} {'↑' if primary.higher_is_better else '↓'}")
        found = [comparison.metric(group, task) for group in comparison.groups]
        columns.append(_column(found, sizes, higher_is_better=primary.higher_is_better))
    if comparison.has_delta_m:
        heads.append("Δm\n% ↑")
        found = [comparison.delta_m(group) for group in comparison.groups]
        columns.append(_column(found, sizes, higher_is_better=True, signed=True))
    when = "best evaluation by each run's own score" if comparison.best else "last evaluation"
    return Table(f"Validation, {when}", heads, _rows(columns))


def changes(comparison: Comparison) -> Table | None:
    """Δ of every task, a row a group; None where no run has any."""
    if not comparison.has_delta_m:
        return None
    heads, columns = ["method"], [[Cell(group.name) for group in comparison.groups]]
    for task in comparison.primary:
        heads.append(f"{task}\n% ↑")
        found = [comparison.change(group, task) for group in comparison.groups]
        sizes = [len(group.runs) for group in comparison.groups]
        columns.append(_column(found, sizes, higher_is_better=True, signed=True))
    return Table(comparison.measure, heads, _rows(columns))


def cost(comparison: Comparison) -> Table:
    """Seeds, round of the numbers, bytes that clients sent and seconds, a row a group; means over its seeds."""
    rows = []
    for group in comparison.groups:
        up = statistic(run.total("bytes/up") for run in group.runs)
        time = statistic(run.total("time/train", "time/evaluate") for run in group.runs)
        cells = [group.name, str(len(group.runs)), progress(group, best=comparison.best)]
        cells += [amount(up.mean) if up else NONE, duration(time.mean) if time else NONE]
        rows.append([Cell(text) for text in cells])
    return Table("Cost, mean of the seeds", ["method", "seeds", "round", "sent", "time"], rows)


def every_run(comparison: Comparison) -> Table:
    """A row a run: its seed, round, primary metrics and Δm."""
    tasks = list(comparison.primary)
    heads = ["run", "seed", "round", *(f"{task}\n{p.metric}" for task, p in comparison.primary.items()), "Δm\n%"]
    rows = []
    for group in comparison.groups:
        for run in group.runs:
            values, change = comparison.values(run), comparison.overall(run)
            numbers = [statistic([values.get(task)]) for task in tasks]
            when = progress(Group(run.name, [run]), best=comparison.best)
            cells = [run.name, NONE if run.seed is None else str(run.seed), when]
            cells += [text_of(one, decimals([one])) for one in numbers] + [text_of(statistic([change]), 2, signed=True)]
            rows.append([Cell(text) for text in cells])
    return Table("Every run", heads, rows)


def configurations(comparison: Comparison) -> Table | None:
    """In what the groups' configurations differ, a row a key; None where in nothing."""
    rows = [[Cell(key), *(Cell(value or NONE) for value in values)] for key, values in comparison.differing.items()]
    names = [group.name for group in comparison.groups]
    return Table("What differs between the configurations", ["key", *names], rows) if rows else None


def text_of(value: Statistic | None, digits: int, *, signed: bool = False, runs: int = 1) -> str:
    """Mean ± standard deviation with so many decimals, marked where it is of fewer runs; a minus sign, not a hyphen."""
    if value is None:
        return NONE
    number = f"{value.mean:{'+' if signed else ''}.{digits}f}"
    number = number.replace("-", "−") if float(number) else number.lstrip("+-")
    number = number if value.std is None else f"{number} ± {value.std:.{digits}f}"
    return number if value.n >= runs else f"{number} ({value.n}/{runs})"


def decimals(values: Sequence[Statistic | None]) -> int:
    """Decimals with which the values of a column show about four digits."""
    largest = max((abs(value.mean) for value in values if value is not None), default=0.0)
    return 2 if largest >= 10 else 3 if largest >= 1 else 4


def progress(group: Group, *, best: bool = False) -> str:
    """The round of the numbers, and beside it the rounds done where those are others, or not all."""
    counted, done = [run.at(best=best) for run in group.runs], [run.round for run in group.runs]
    if all(run.finished for run in group.runs):
        return _span(done) if counted == done else f"{_span(counted)} (of {_span(done)})"
    state = f"unfinished, {_span(done)}/{max(run.rounds for run in group.runs)}"
    return state if counted == done else f"{_span(counted)} ({state})"


def _span(rounds: Sequence[int | None]) -> str:
    there = [round for round in rounds if round is not None]
    if not there:
        return NONE
    return str(there[0]) if len(set(there)) == 1 else f"{min(there)}–{max(there)}"


def amount(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return (
        f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
        if seconds < 3570
        else (f"{minutes // 60} h {minutes % 60:02d} min")
    )


def show(comparison: Comparison, console: Console) -> None:
    """Prints everything that a terminal can show, and what to beware of.

    Where the terminal is narrow, cost gets a table of its own, and then deviations stand under their means.
    """
    main, about_cost = metrics(comparison), cost(comparison)
    rows = [a + b[1:] for a, b in zip(main.rows, about_cost.rows, strict=True)]
    both = Table(main.title, main.heads + about_cost.heads[1:], rows)
    tables = [both] if _width(both, console) <= console.width else [main, about_cost]
    tables += [table for table in (changes(comparison), configurations(comparison)) if table is not None]
    for table in tables:
        console.print(_rich(table, stacked=_width(table, console) > console.width))
    for note in comparison.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def _width(table: Table, console: Console) -> int:
    """Characters that a table needs if nothing in it is wrapped."""
    return Measurement.get(console, console.options.update(max_width=10_000), _rich(table)).maximum


def latex(tables: Sequence[Table]) -> str:
    """Tables for a paper that loads booktabs, the best in bold."""
    return "\n".join(["% needs \\usepackage{booktabs}", *map(_latex, tables)])


def csv_text(comparison: Comparison) -> str:
    """A line a group with full precision: mean, standard deviation and number of values of everything measured."""
    rows = [{_inert(key): v for key, v in _csv_row(comparison, group).items()} for group in comparison.groups]
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _inert(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


def _csv_row(comparison: Comparison, group: Group) -> dict[str, object]:
    seeds = " ".join(str(run.seed) for run in group.runs)
    row: dict[str, object] = {"method": _inert(group.name), "seeds": seeds}
    row["finished"] = sum(run.finished for run in group.runs)
    rounds = [round for run in group.runs if (round := run.at(best=comparison.best)) is not None]
    row |= {"round/min": min(rounds, default=""), "round/max": max(rounds, default="")}
    found: dict[str, Statistic | None] = {}
    for task, primary in comparison.primary.items():
        found[f"{task}/{primary.metric}"] = comparison.metric(group, task)
        found[f"{task}/delta"] = comparison.change(group, task)
    found["delta_m"] = comparison.delta_m(group)
    found["bytes_up"] = statistic(run.total("bytes/up") for run in group.runs)
    found["seconds"] = statistic(run.total("time/train", "time/evaluate") for run in group.runs)
    for key, value in found.items():
        row |= {
            f"{key}/mean": value.mean if value else "",
            f"{key}/std": "" if not value or value.std is None else value.std,
        }
        row[f"{key}/n"] = value.n if value else 0
    return row


def _column(
    values: Sequence[Statistic | None], sizes: Sequence[int], *, higher_is_better: bool, signed: bool = False
) -> list[Cell]:
    """The cells of a column; those best as shown are marked, if there is something to be better than.

    A mean that leaves out runs of its group (of `sizes`) is never the best: what it leaves out may have diverged.
    """
    digits = 2 if signed else decimals(values)
    shown = [
        None if value is None or value.n < size else round(value.mean, digits)
        for value, size in zip(values, sizes, strict=True)
    ]
    there = [value for value in shown if value is not None]
    best = (max if higher_is_better else min)(there) if len(there) > 1 else None
    return [
        Cell(text_of(value, digits, signed=signed, runs=size), best is not None and number == best)
        for value, size, number in zip(values, sizes, shown, strict=True)
    ]


def _rows(columns: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    return [list(row) for row in zip(*columns, strict=True)]


def _rich(table: Table, *, stacked: bool = False) -> RichTable:
    made = RichTable(title=Text(table.title, "bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for i, head in enumerate(table.heads):
        made.add_column(Text(head), justify="right" if i else "left", overflow="fold")
    for row in table.rows:
        texts = [cell.text.replace(" ± ", "\n± ") if stacked else cell.text for cell in row]
        made.add_row(*(Text(text, "bold" if cell.best else "") for cell, text in zip(row, texts, strict=True)))
    return made


def _latex(table: Table) -> str:
    lines = [head.split("\n") for head in table.heads]
    heads = [
        " & ".join(_tex(parts[i]) if i < len(parts) else "" for parts in lines) for i in range(max(map(len, lines)))
    ]
    rows = [
        " & ".join(rf"\textbf{{{_tex(cell.text)}}}" if cell.best else _tex(cell.text) for cell in row)
        for row in table.rows
    ]
    begin = [f"% {_comment(table.title)}", rf"\begin{{tabular}}{{l{'r' * (len(lines) - 1)}}}", r"\toprule"]
    end = [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(
        [*begin, *(f"{line} \\\\" for line in heads), r"\midrule", *(f"{line} \\\\" for line in rows), *end]
    )


def _tex(text: str) -> str:
    """A text as LaTeX shows it, whatever is in it."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _comment(text: str) -> str:
    return re.sub(r"\s+", " ", text)
