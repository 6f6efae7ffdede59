"""`fedmtl evaluate`: measures a run's model again, on every task, from its checkpoint."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedmtl.commands.words import terminal
from fedmtl.errors import UserError


def parser() -> ArgumentParser:
    """What the command takes, but for keys of the configuration."""
    parser = ArgumentParser(
        prog="fedmtl evaluate",
        description=__doc__,
        epilog="Behind the run any key of its configuration can be changed, e.g. --data.root; --baseline RUN adds Δm. "
        "A run with classes of your own needs --trusted-modules, e.g. mine (see docs/safety.md).",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="which checkpoint")
    return parser


def main(arguments: list[str]) -> None:
    """Parses the command line and evaluates.

    Raises:
        UserError: see `evaluate`; or a key comes before the run, where its value would be taken for the run.
    """
    own, others = parser().parse_known_args(arguments)
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            break
        if word == "--checkpoint":
            next(words)
        elif "=" not in word and word != "--":
            raise UserError(f"the run comes first: fedmtl evaluate RUN {word} VALUE")
    evaluate(own.run, own.checkpoint, others, terminal())


def evaluate(run: Path, checkpoint: Literal["last", "best"], overrides: list[str], console: Console) -> None:
    """Evaluates a run's checkpoint and prints a table of every metric.

    Args:
        run: folder of the run.
        checkpoint: ``last`` or ``best``.
        overrides: command-line keys that change its configuration.
        console: where to write.
    """
    from fedmtl.commands.restored import restore
    from fedmtl.orchestrator import flat

    experiment = restore("evaluate", __doc__, run, checkpoint, overrides)
    orchestrator = experiment.orchestrator
    orchestrator.note(orchestrator.round, orchestrator.evaluate())
    title = f"{experiment.name} after round {orchestrator.round} ({checkpoint} checkpoint)"
    table = Table(title=Text(title, "table.title"))
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in flat(orchestrator.last).items():
        table.add_row(Text(name.removeprefix("val/")), f"{value:.4f}")
    console.print(table)
