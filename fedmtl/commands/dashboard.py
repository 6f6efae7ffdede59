"""`fedmtl dashboard`: a W&B workspace for the runs of a project."""

import shlex
from argparse import ArgumentParser
from pathlib import Path

from fedmtl.errors import UserError


def parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(
        prog="fedmtl dashboard",
        description="Builds a W&B workspace that shows what runs log: Δm, tasks, losses, the federation, diagnostics "
        "and pictures, with seeds grouped. Its definition is checked and written to a file; --push saves it on W&B.",
        epilog="Run folders are needed only where tasks have names of their own, as with several data sets.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", type=Path, nargs="*", help="folders of runs whose tasks have panels (default: all known)"
    )
    parser.add_argument("--project", required=True, help="W&B project, as in tracker.project")
    parser.add_argument("--entity", help="W&B team or user (default: yours)")
    parser.add_argument("--out", type=Path, default=Path("dashboard.json"), help="the definition (%(default)s)")
    parser.add_argument("--push", action="store_true", help="save it on W&B; needs a key (wandb login)")
    return parser


def main(arguments: list[str]) -> None:
    """Writes the definition and pushes it if asked."""
    own = parser().parse_args(arguments)
    from fedmtl import dashboards, runs
    from fedmtl.tracking.run_directory import write_text

    tasks = dashboards.tasks_of(runs.find(own.run)) if own.run else dashboards.TASKS
    if not tasks:
        raise UserError(f"{own.run[0]}: nothing is measured yet; wait for an evaluation, or leave the run out")
    workspace = dashboards.workspace(own.entity or "", own.project, tasks)
    text = dashboards.definition(workspace)
    try:
        write_text(own.out, text)
    except OSError as error:
        raise UserError(f"--out: can't write {own.out}: {error.strerror or error}") from error
    panels = sum(len(section.panels) for section in workspace.sections)
    print(f"{own.out}: a workspace of {len(workspace.sections)} sections and {panels} panels, checked")
    if not own.push:
        entity = ["--entity", own.entity] if own.entity else []
        again = ["fedmtl", "dashboard", *map(str, own.run), "--project", own.project, *entity, "--push"]
        print(f"to save it on W&B: wandb login, wandb sync your runs, then {shlex.join(again)}")
        return
    from fedmtl.tracking.wandb_tracker import has_key

    if not has_key():
        raise UserError(f"--push: there is no W&B key here; wandb login sets one up ({own.out} is written)")
    print(f"saved on W&B: {dashboards.push(workspace)}")
