"""`fedmtl fit`: trains one unified model across clients, from a configuration file."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console

from fedmtl.checkpoint import Checkpoints
from fedmtl.commands.configuration import differences, experiment_parser, instantiate, parse, plain_errors, to_dict
from fedmtl.commands.words import say
from fedmtl.engine import FabricConfig, Ranks
from fedmtl.errors import UserError
from fedmtl.experiment import Experiment
from fedmtl.federation import table
from fedmtl.orchestrator import Orchestrator, tracking
from fedmtl.prediction import write_heads
from fedmtl.tracking import RunDirectory, RunInfo, Tracker
from fedmtl.tracking.display import Display, Member, Shows, choose, federation_table, messages, results_table


def parser() -> ArgumentParser:
    """The command's words: the keys of an experiment, and how to run it."""
    made = experiment_parser("fit", __doc__)
    made.add_argument(
        "--resume",
        type=Literal["never", "auto"],
        default="never",
        help="auto goes on from the run's last checkpoint, or starts it if there is none",
    )
    made.add_argument(
        "--display",
        type=Literal["auto", "live", "plain", "quiet"],
        default="auto",
        help="live in a terminal, plain lines of a log, or quiet: errors and the last line only",
    )
    made.add_argument(
        "--quiet", dest="display", action="store_const", const="quiet", default="auto", help="as --display quiet"
    )
    return made


def main(arguments: list[str]) -> None:
    """Parses the command line and runs the experiment."""
    own = parser()
    words = ["--help" if word == "--help-all" else word for word in arguments]
    try:
        config = parse(own, words)
    except UserError as error:
        if "arguments are required" in str(error) and not any(word.startswith("--config") for word in words):
            advice = "give --config FILE; `fedmtl list experiments` has some, `fedmtl init` makes one"
            raise UserError(f"{error}; {advice}") from error
        raise
    config.name += agents_run()
    settings = to_dict(own, config)
    directory = RunDirectory(config.out, config.name)
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # by torchrun, after a process died
    resume = config.resume == "auto" or (restarted and directory.job == os.environ["TORCHELASTIC_RUN_ID"])
    leads = getattr(rank_zero_only, "rank", 0) == 0  # known before the processes are connected
    console = Console(quiet=not leads or config.display == "quiet")
    shows = choose(config.display, console) if leads else "quiet"
    with messages(console, shows, leads=leads):
        saved = earlier_state(directory, settings, resume=resume) if leads else None
        with plain_errors():
            FabricConfig(**vars(config.fabric) if config.fabric else {}).launch()
        ranks = Ranks()
        round = ranks.share(saved["round"] if saved else None)
        if round is not None and not leads:
            saved = Checkpoints(directory.checkpoints).load(round)
        experiment = instantiate(own, config, restored=saved is not None)
        fit(experiment, directory, settings, saved, console, shows)


def agents_run() -> str:
    """What an agent of a W&B sweep adds to a run's name: it starts runs that differ in their parameters alone."""
    return f"_{os.environ['WANDB_RUN_ID']}" if {"WANDB_SWEEP_ID", "WANDB_RUN_ID"} <= os.environ.keys() else ""


def earlier_state(directory: RunDirectory, settings: Mapping[str, Any], *, resume: bool) -> dict[str, Any] | None:
    """The last checkpoint of a run that is to be resumed; None for a new run.

    Raises:
        UserError: the folder holds a run and `resume` is not set, or its configuration is another.
    """
    checkpoints = Checkpoints(directory.checkpoints)
    if directory.path.exists() and not directory.config.is_file():
        raise UserError(f"{directory.path} is there already and is not the folder of a run; give another --name")
    if not resume and directory.path.exists():
        raise UserError(f"{directory.path} is there already: --resume auto goes on with it, --name starts another run")
    if not resume or not checkpoints.all():
        return None
    saved = checkpoints.load()
    changed = differences(saved["config"], settings)
    if changed:
        raise UserError(
            f"{directory.path} was made with another configuration: {'; '.join(changed)}; "
            "set these back, or give another --name"
        )
    return saved


def fit(
    experiment: Experiment,
    directory: RunDirectory,
    settings: Mapping[str, Any],
    saved: Mapping[str, Any] | None,
    console: Console,
    shows: Shows = "plain",
) -> None:
    """Trains the experiment to its last round and prints its results.

    Args:
        experiment: what to run.
        directory: where its files go.
        settings: its resolved configuration as plain containers.
        saved: state of the checkpoint to go on from.
        console: where to write.
        shows: how the run is shown meanwhile.
    """
    orchestrator, ranks = experiment.orchestrator, experiment.orchestrator.engine.ranks

    rows = table(orchestrator.clients, experiment.local, experiment.sharing())
    if ranks.leads:
        directory.create(yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
        directory.note_job(os.environ.get("TORCHELASTIC_RUN_ID"))
    ranks.wait()
    if not directory.config.is_file():
        raise UserError(f"out: process {ranks.rank} does not see {directory.path}; give a folder that all nodes share")
    finished = saved is not None and saved["round"] == orchestrator.rounds
    tracker = experiment.tracker if ranks.leads and not finished else None
    run = RunInfo(experiment.name, directory.path, settings, saved["tracker"] if saved else None)
    with tracked(tracker, run, directory, orchestrator):
        if saved is not None:
            checkpoints = Checkpoints(directory.checkpoints)
            orchestrator.load_state_dict(saved, checkpoints.states)
            if ranks.leads:
                checkpoints.rewind(saved)
            say(console, f"going on with {directory.path} after round {orchestrator.round}")
        if ranks.leads:
            directory.rewind(orchestrator.round)
            directory.write_federation(rows, again=saved is not None)
            directory.write_measured(orchestrator.measures())
            write_heads(directory.path, orchestrator.validation, unified=orchestrator.unified)
        if not finished:
            console.print(federation_table(rows))
            say(console, model_line(experiment))
            with make_display(experiment, directory, console, shows) as display:
                orchestrator.run(directory, tracker, display, settings)
        results = orchestrator.results(experiment.name)
        if ranks.leads:
            directory.write_results(results)
            if orchestrator.unified:
                orchestrator.export(directory)
    ranks.leave()
    console.print(results_table(results))
    if orchestrator.baseline is None:
        say(
            console,
            f"here each client trained alone: with --baseline {directory.path} other runs give their Δm"
            if settings["share"] == "none"
            else "Δm is left out, it needs a baseline: train the clients alone (share: none, as in scenes_local.yaml), "
            "then give --baseline that run's folder",
        )
    console.quiet = not ranks.leads  # this line is said in any case
    say(console, f"everything of this run is in {directory.path}")


def make_display(experiment: Experiment, directory: RunDirectory, console: Console, shows: Shows) -> Display:
    """The display of an experiment, that knows the rounds which are done."""
    orchestrator, steps = experiment.orchestrator, experiment.local.steps
    return Display(
        rounds=orchestrator.rounds,
        steps=sum(steps(client) for client in orchestrator.sample(1)) // orchestrator.engine.ranks.world,
        primary=orchestrator.primary,
        console=console,
        shows=shows,
        name=experiment.name,
        clients={client.name: Member(client.tasks, steps(client)) for client in orchestrator.clients},
        baseline=orchestrator.baseline,
        eval_every=orchestrator.eval_every,
        earlier=directory.rows(),
    )


@contextmanager
def tracked(
    tracker: Tracker | None, run: RunInfo, directory: RunDirectory, orchestrator: Orchestrator
) -> Iterator[None]:
    """Starts the tracker and closes it however the run ends; one that fails in its first round is removed."""
    leads = orchestrator.engine.ranks.leads
    with ExitStack() as stack:
        failed = True

        def clean() -> None:
            if failed and leads and not directory.metrics.exists() and not Checkpoints(directory.checkpoints).all():
                directory.remove()

        stack.callback(clean)
        if tracker is not None:
            tracker.start(run)

            def finish() -> None:
                with tracking(orchestrator.round):
                    tracker.finish(orchestrator.summary(), failed=failed)

            stack.callback(finish)
        yield
        failed = False


def model_line(experiment: Experiment) -> str:
    """How large the model is, and where it is trained."""
    model = experiment.worker.resident.module.model
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.parts().items()}
    heads = sum(millions.values()) - millions["encoder"]
    return (
        f"{experiment.name}: {experiment.rounds} rounds, encoder {millions['encoder']:.2f} M parameters, "
        f"{len(millions) - 1} heads {heads:.2f} M, on {experiment.worker.fabric.device}"
        + (f" and {world - 1} more" if (world := experiment.orchestrator.engine.ranks.world) > 1 else "")
    )
