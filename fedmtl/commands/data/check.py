"""`fedmtl data check`: decodes every image and label of a data set; exit code 1 if one of them is broken or missing."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedmtl.commands.data.parser import Parser
from fedmtl.commands.data.sources import Chosen, choose, with_choice
from fedmtl.commands.words import say
from fedmtl.data.check import Finding, Findings, Values, check, in_both
from fedmtl.data.source import SPLITS, Split
from fedmtl.errors import UserError
from fedmtl.tasks import Depth, Edge, Normals, Task
from fedmtl.tasks.base import ClassTask

SHOWN = 20  # problems in the terminal
NAMED = 8  # classes in the table


def parser(*, by_file: bool = False) -> Parser:
    """The command's words; with `by_file`, those beside ``--config``."""
    made = Parser("check", __doc__)
    made.add_argument("--workers", type=int, metavar="N", help="processes that decode (default: one a CPU core)")
    made.add_argument("--report", type=Path, metavar="FILE", help="write all that was found into a JSON file")
    return with_choice(made, by_file=by_file)


def main(arguments: list[str]) -> None:
    """Parses the command line, checks and reports.

    Raises:
        SystemExit: with 1, if something is wrong.
    """
    own, chosen = choose(parser, arguments)
    if own.workers is not None and own.workers < 0:
        raise UserError(f"--workers must be 0 or more, not {own.workers}")
    if own.report:
        write(own.report, "", mode="a")  # now rather than after minutes of work
    console = Console()
    reports = []
    for name, data in chosen.items():
        found = walk(data, own.workers, console)
        both = in_both(data.source)
        console.print(table(name, data, found))
        for split in SPLITS:
            for task in data.tasks:
                if found[split][task].good and not found[split][task].values.known:
                    say(console, f"note: not one pixel of {split} has a label for {task}")
        if both:
            say(console, f"note: {len(both)} images are in train and in val, e.g. {both[0]}")
        reports.append(report(name, data, found, both))
    problems = [problem for one in reports for problem in one["problems"]]
    checked = len(problems) + sum(one["good"] for one in reports)
    if own.report:
        write(own.report, json.dumps({"sound": not problems, "data": reports}, indent=2) + "\n")
    conclude(problems, checked, own.report, console)
    if problems:
        raise SystemExit(1)


def walk(data: Chosen, workers: int | None, console: Console) -> dict[Split, Findings]:
    """Checks a data set, with a progress bar in a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    total = sum(len(data.source.ids(split)) for split in SPLITS)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"checking {data.source.name}", total=total)
        return check(data.source, data.tasks, workers=workers, progress=lambda images: progress.advance(bar, images))


def table(name: str, data: Chosen, found: Mapping[Split, Findings]) -> Table:
    """A row for the images of each split and for the labels of each task."""
    root = getattr(data.source, "root", None)
    result = Table(title=escape(f"{name}: {root}" if root else name), title_justify="left")
    for column in ("split", "", "good", "no label", "wrong", "unknown", "what they hold"):
        right = column in ("good", "no label", "unknown")
        result.add_column(column, justify="right" if right else "left", overflow="fold")
    for split in SPLITS:
        result.add_section()
        for what, finding in found[split].items():
            task = data.source.tasks.get(what)
            wrong = Counter(problem.kind for problem in finding.problems)
            result.add_row(
                split if task is None else "",
                escape(what),
                str(finding.good),
                str(finding.without) if finding.without else "",
                "\n".join(f"[red]{count} {kind}[/]" for kind, count in wrong.items()) or "0",
                percent(finding.values.unknown, finding.values.pixels) if task else "",
                escape(text(task, finding.values) if task else sizes(finding)),
            )
    return result


def sizes(finding: Finding) -> str:
    """The range of the images' sizes."""
    if not finding.sizes:
        return ""
    sides = [(min(side), max(side)) for side in zip(*finding.sizes, strict=True)]
    span = " × ".join(str(low) if low == high else f"{low}–{high}" for low, high in sides)
    return f"{span} pixels" + (f", {len(finding.sizes)} sizes" if len(finding.sizes) > 1 else "")


def holds(task: Task, values: Values) -> dict[str, Any]:
    """What the labels of a task hold, in numbers: classes, shares, metres or lengths."""
    if not values.known:
        return {}
    if isinstance(task, ClassTask):
        counts = values.counts[: task.channels].tolist()
        return {"classes": [{"name": n, "pixels": c} for n, c in zip(task.class_names, counts, strict=True)]}
    if isinstance(task, Edge):
        return {"edges": float(values.counts[1] / values.known)}
    if isinstance(task, Depth):
        numbers = {"min": values.low, "median": values.median, "mean": values.mean, "max": values.high}
        return {"metres": numbers, "beyond": values.beyond / values.known}
    if isinstance(task, Normals):
        return {"lengths": {"min": values.low, "mean": values.mean, "max": values.high}}
    return {}


def text(task: Task, values: Values) -> str:
    """The same in words."""
    found = holds(task, values)
    if "classes" in found:
        return classes(found["classes"])
    if "edges" in found:
        return f"edges {100 * found['edges']:.1f} %"
    if "metres" in found:
        metres = found["metres"]
        far = f"; {100 * found['beyond']:.1f} % too far to count" if found["beyond"] else ""
        middle = f"median {metres['median']:.2f}, mean {metres['mean']:.2f}"
        return f"{metres['min']:.2f}–{metres['max']:.2f} m, {middle}{far}"
    if "lengths" in found:
        lengths = found["lengths"]
        return f"lengths {lengths['min']:.3f}–{lengths['max']:.3f}, mean {lengths['mean']:.3f}"
    return ""


def classes(counted: list[dict[str, Any]]) -> str:
    """The most frequent classes with their shares, and those that do not occur."""
    total = sum(one["pixels"] for one in counted)
    present = sorted((one for one in counted if one["pixels"]), key=lambda one: -one["pixels"])
    parts = [f"{one['name']} {percent(one['pixels'], total)}" for one in present[:NAMED]]
    if len(present) > NAMED:
        parts.append(f"{len(present) - NAMED} more")
    absent = [one["name"] for one in counted if not one["pixels"]]
    if not absent:
        return ", ".join(parts)
    named = ", ".join(absent[:NAMED]) + (", …" if len(absent) > NAMED else "")
    return f"{', '.join(parts)}; absent {len(absent)} of {len(counted)}: {named}"


def percent(part: int, whole: int) -> str:
    """A share; never 0 for what is there."""
    share = 100 * part / whole if whole else 0.0
    return "<0.1 %" if 0 < share < 0.05 else f"{share:.1f} %"


def report(name: str, data: Chosen, found: Mapping[Split, Findings], both: list[str]) -> dict[str, Any]:
    """All that was found of a data set, for a JSON file."""
    findings = [finding for split in SPLITS for finding in found[split].values()]
    return {
        "name": name,
        "root": str(getattr(data.source, "root", "")),
        "good": sum(finding.good for finding in findings),
        "in_train_and_val": both,
        "splits": {split: {what: _entry(data, what, one) for what, one in found[split].items()} for split in SPLITS},
        "problems": [problem._asdict() for finding in findings for problem in finding.problems],
    }


def _entry(data: Chosen, what: str, finding: Finding) -> dict[str, Any]:
    entry: dict[str, Any] = {"good": finding.good, "without": finding.without}
    entry |= {"wrong": dict(Counter(problem.kind for problem in finding.problems))}
    entry |= {"sizes": {f"{h}×{w}": count for (h, w), count in sorted(finding.sizes.items())}}
    if what in data.source.tasks:
        values = finding.values
        entry |= {"pixels": values.pixels, "unknown": values.unknown, "nothing_known": values.empty}
        entry |= holds(data.source.tasks[what], values)
    return entry


def write(path: Path, content: str, mode: str = "w") -> None:
    """Writes the JSON file, or with mode ``"a"`` adds to it.

    Raises:
        UserError: it can't be written.
    """
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"--report: can't write {path} ({error.strerror})") from error


def conclude(problems: list[dict[str, Any]], checked: int, written: Path | None, console: Console) -> None:
    """The last lines: that all is well, or what is not."""
    if not problems:
        say(console, f"all {checked:,} files are sound")
        return
    for problem in problems[:SHOWN]:
        say(console, problem["reason"])
    if len(problems) > SHOWN:
        where = f"all are in {written}" if written else "--report FILE writes all"
        say(console, f"… and {len(problems) - SHOWN:,} more; {where}")
    kinds = Counter(problem["kind"] for problem in problems)
    counted = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    say(console, f"{len(problems):,} of {checked:,} files are not as they should be: {counted}")
