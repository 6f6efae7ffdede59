"""An experiment, or its model alone, with the state of a run's checkpoint."""

from pathlib import Path
from typing import Literal

from fedmtl import runs
from fedmtl.checkpoint import Checkpoints
from fedmtl.commands.configuration import experiment_parser, instantiate, parse
from fedmtl.errors import UserError
from fedmtl.experiment import Experiment
from fedmtl.prediction import Predictor, load
from fedmtl.prediction.heads import AllHeads, heads_of, read_heads
from fedmtl.prediction.load import Accelerator
from fedmtl.tracking import RunDirectory
from fedmtl.trust import of_others_files

Which = Literal["last", "best"]
ALONE = ["--baseline=null", "--tracker=null", "--fabric.devices=1", "--fabric.num_nodes=1"]


def restore(command: str, description: str | None, run: Path, which: Which, overrides: list[str]) -> Experiment:
    """Builds the experiment of a run again, with its data, and gives it the state of a checkpoint.

    Args:
        command: the subcommand, for messages.
        description: what it does.
        run: folder of the run.
        which: which checkpoint.
        overrides: command-line keys that change its configuration; ``--baseline RUN`` adds Δm.

    Raises:
        UserError: it is no run, its data is not there, or the checkpoint does not fit.
    """
    directory = RunDirectory(run.resolve().parent, run.resolve().name)
    if not directory.config.is_file():
        raise UserError(f"{run} is not the folder of a run: it has no config.yaml")
    checkpoints = Checkpoints(directory.checkpoints)
    saved = checkpoints.load(which)
    parser = experiment_parser(command, description, trusted=of_others_files())
    config = parse(parser, ["--config", str(directory.config), *ALONE, *overrides])
    baseline = config.baseline
    experiment = instantiate(parser, config, restored=True)
    try:
        experiment.orchestrator.load_state_dict(saved, checkpoints.states)
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"the checkpoint of {run} does not fit {' '.join(overrides)}: {error}") from error
    if baseline:
        experiment.orchestrator.compare_with(baseline)
    return experiment


def restore_model(
    command: str, run: Path, which: Which, client: str | None, accelerator: Accelerator | None
) -> Predictor:
    """A run's model; its data is asked for what heads.json says in runs that have none, or else not touched.

    Args:
        command: the subcommand, for messages.
        run: folder of the run.
        which: which checkpoint.
        client: see `load`.
        accelerator: see `load`.

    Raises:
        UserError: see `load`.
    """
    path = runs.read(run).path
    heads = read_heads(path) or _heads_by_data(command, path, which)
    return load(path, checkpoint=which, client=client, accelerator=accelerator, heads=heads)


def _heads_by_data(command: str, run: Path, which: Which) -> AllHeads:
    try:
        orchestrator = restore(command, None, run, which, []).orchestrator
    except UserError as error:
        raise UserError(f"{run} has no heads.json, so its data is needed, and that fails: {error}") from error
    return heads_of(orchestrator.validation, unified=orchestrator.unified)
