"""`fedmtl compare`: runs side by side, seeds of one configuration together."""

from argparse import ArgumentParser
from pathlib import Path

from fedmtl.commands.words import say, terminal

EPILOG = """RUN is a run's folder or a folder of runs; unfinished ones are shown as far as they are. Runs of one
configuration that differ in their seeds share a row: mean ± sample standard deviation. --baseline takes a run's
folder, the name of a row, or a folder's name without _s<seed>; each run is measured against the baseline's run of its
seed, or where there is none against their mean. Which evaluation of a run is best is by its own score, its Δm against
its own baseline or its first evaluation; with --best the baseline counts with its best one, too. Δm is over all tasks
of the baseline: a run that lacks one, or diverged there, has none."""


def parser() -> ArgumentParser:
    """The command's words."""
    made = ArgumentParser(prog="fedmtl compare", description=__doc__, epilog=EPILOG, allow_abbrev=False)
    made.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a folder of runs")
    made.add_argument("--baseline", metavar="RUN", help="what Δm is measured against; default: what each run recorded")
    made.add_argument("--best", action="store_true", help="take each run's best evaluation, not its last")
    made.add_argument("--html", type=Path, metavar="FILE", help="write one page with tables, charts and pictures")
    form = made.add_mutually_exclusive_group()
    form.add_argument("--latex", action="store_true", help="print the table for a paper (booktabs)")
    form.add_argument("--csv", action="store_true", help="print all numbers with full precision")
    return made


def main(arguments: list[str]) -> None:
    """Parses the command line, compares, prints."""
    own = parser().parse_args(arguments)

    from fedmtl.comparison import compare, table

    comparison = compare(own.runs, own.baseline, best=own.best)
    if own.html:
        from fedmtl.comparison.page import write

        write(own.html, comparison)
    if own.csv:
        print(table.csv_text(comparison), end="")
    elif own.latex:
        print(table.latex([table.metrics(comparison)]), end="")
    else:
        console = terminal()
        table.show(comparison, console)
        if own.html:
            say(console, f"the page with charts and pictures is {own.html}")
