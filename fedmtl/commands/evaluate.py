"""`fedmtl evaluate`: measures a run's model again, on every task, from its checkpoint."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from fedmtl.checkpoint import Checkpoints
from fedmtl.commands.configuration import experiment_parser, instantiate, parse
from fedmtl.errors import UserError
from fedmtl.orchestrator import flat
from fedmtl.tracking import RunDirectory
from fedmtl.trust import of_others_files


def main(arguments: list[str]) -> None:
    """Parses the command line and evaluates."""
    parser = ArgumentParser(
        prog="fedmtl evaluate",
        description=__doc__,
        epilog="Any key of the run's configuration can be changed, e.g. --data.root; --baseline RUN adds Δm. "
        "A run with classes of your own needs --trusted-modules, e.g. mine (see docs/safety.md).",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="which checkpoint")
    own, others = parser.parse_known_args(arguments)
    evaluate(own.run, own.checkpoint, others, Console())


def evaluate(run: Path, checkpoint: Literal["last", "best"], overrides: list[str], console: Console) -> None:
    """Evaluates a run's checkpoint and prints a table of every metric.

    Args:
        run: folder of the run.
        checkpoint: ``last`` or ``best``.
        overrides: command-line keys that change its configuration.
        console: where to write.
    """
    directory = RunDirectory(run.resolve().parent, run.resolve().name)
    if not directory.config.is_file():
        raise UserError(f"{run} is not the folder of a run: it has no config.yaml")
    checkpoints = Checkpoints(directory.checkpoints)
    saved = checkpoints.load(checkpoint)
    parser = experiment_parser("evaluate", __doc__, trusted=of_others_files())
    alone = ["--fabric.devices=1", "--fabric.num_nodes=1"]
    words = ["--config", str(directory.config), "--baseline=null", "--tracker=null", *alone, *overrides]
    config = parse(parser, words)
    baseline = config.baseline
    experiment = instantiate(parser, config, restored=True)
    orchestrator = experiment.orchestrator
    try:
        orchestrator.load_state_dict(saved, checkpoints.states)
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"the checkpoint of {run} does not fit {' '.join(overrides)}: {error}") from error
    if baseline:
        orchestrator.compare_with(baseline)
    orchestrator.note(orchestrator.round, orchestrator.evaluate())
    table = Table(title=f"{experiment.name} after round {orchestrator.round} ({checkpoint} checkpoint)")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in flat(orchestrator.last).items():
        table.add_row(name.removeprefix("val/"), f"{value:.4f}")
    console.print(table)
