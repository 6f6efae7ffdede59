"""The W&B workspace of a project: which panels, columns and groups show what runs log."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedmtl.errors import UserError
from fedmtl.runs import Run

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

# the primary metrics of the tasks that data sets have, under their usual names
TASKS = {"semseg": "mIoU", "parts": "mIoU", "depth": "RMSE", "normals": "mErr", "edge": "odsF", "saliency": "maxF"}
SEGMENTED = ("mIoU",)  # tasks with these metrics have masks with names of classes

COLUMNS = (
    "summary:best/delta_m",
    "summary:last/delta_m",
    "config:method.value",
    "config:method/rho.value",
    "config:method/data.value",
    "config:method/backbone.value",
    "config:rounds.value",
    "config:seed.value",
    "run:state",
    "tags:__ALL__",
)
INTERFERENCE = ("cosine", "sent_cosine", "sign_conflict", "mask_overlap", "step_cosine", "gain/max", "kept_energy")
HEAT_MAPS = ("mask_overlap", "cosine", "sent_cosine", "mask_share")


def tasks_of(runs: Sequence[Run]) -> dict[str, str]:
    """The primary metric of each task of some runs."""
    return {task: primary.metric for run in runs for task, primary in run.primary.items()}


def workspace(entity: str, project: str, tasks: Mapping[str, str] = TASKS) -> "Workspace":
    """A workspace with sections for Δm, tasks, losses, the federation, diagnostics and pictures.

    Runs are grouped as they were logged, seeds of one configuration together; curves are means with standard
    deviations. Its parts have the same ids each time, so that two definitions can be compared.

    Args:
        entity: user or team; may be empty until it is pushed.
        project: of the runs.
        tasks: primary metric by task.

    Raises:
        UserError: the package wandb-workspaces is missing.
    """
    try:
        from wandb_workspaces import expr
        from wandb_workspaces import workspaces as ws
    except ImportError as error:
        raise UserError('this needs the package wandb-workspaces: pip install -e ".[dashboard]"') from error
    made = {name: list(panels) for name, panels in _sections(tasks)}
    for number, panel in enumerate(panel for panels in made.values() for panel in panels):
        panel._id = f"fedmtl{number:03d}"
    return ws.Workspace(
        entity=entity,
        project=project,
        name="fedmtl",
        sections=[
            ws.Section(
                name=name,
                panels=panels,
                is_open=place < 2,
                layout_settings=ws.SectionLayoutSettings(columns=3, rows=2),
                panel_settings=ws.SectionPanelSettings(x_axis="round"),
            )
            for place, (name, panels) in enumerate(made.items())
        ],
        settings=ws.WorkspaceSettings(x_axis="round", max_runs=50),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Metric("Group")],
            order=[expr.Ordering(expr.Summary("best/delta_m"), ascending=False)],
            pinned_columns=list(COLUMNS),
        ),
    )


def _sections(tasks: Mapping[str, str]) -> Iterator[tuple[str, Iterable[Any]]]:
    """Names of sections with their panels."""
    from wandb_workspaces.reports.v2 import interface as p

    spread: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}

    def curve(title: str, *keys: str, regex: str | None = None) -> Any:
        return p.LinePlot(title=title, x="round", y=list(keys), metric_regex=regex, title_x="round", **spread)

    def bars(title: str, key: str) -> Any:
        return p.BarPlot(title=title, metrics=[p.SummaryMetric(key)], **spread)

    yield (
        "Overview",
        [
            curve("Δm, %", "val/delta_m"),
            bars("best Δm, %", "best/delta_m"),
            curve("Δ of each task, %", regex="^val/.+/delta$"),
        ],
    )
    yield "Tasks", [curve(f"{task}: {metric}", f"val/{task}/{metric}") for task, metric in tasks.items()]
    yield "Losses", [curve("training loss of each client", regex="^train/.+/loss$")]
    yield (
        "Federation",
        [
            p.WeavePanelSummaryTable(table_name="federation"),
            curve("bytes from clients, a round", "bytes/up"),
            curve("bytes to clients, a round", "bytes/down"),
            curve("updates left out, clients that did not answer", regex="^server/.+$"),
            curve("seconds of training, a round", "time/train"),
            curve("seconds of an evaluation", "time/evaluate"),
        ],
    )
    maps = [p.MediaBrowser(title=name, media_keys=[f"heat_maps/{name}"], num_columns=1) for name in HEAT_MAPS]
    yield "Diagnostics", [*(curve(name, f"diag/{name}") for name in INTERFERENCE), *maps]
    masks = [f"masks/{task}" for task, metric in tasks.items() if metric in SEGMENTED]
    keys = [*(f"pictures/{task}" for task in tasks), *masks]
    yield "Pictures", [p.MediaBrowser(title=key, media_keys=[key], num_columns=1) for key in keys]


def definition(workspace: "Workspace") -> str:
    """A workspace as W&B's own JSON, checked by reading it back.

    Raises:
        UserError: the installed wandb-workspaces does not read what it writes.
    """
    from wandb_workspaces.workspaces import Workspace, internal

    def dump(one: "Workspace") -> str:
        return json.dumps(one._model.model_dump(mode="json", by_alias=True, exclude_none=True), indent=2)

    text = dump(workspace)
    if dump(Workspace._from_model(internal.View.model_validate_json(text))) != text:
        raise UserError("the installed wandb-workspaces loses parts of the definition; install 0.4.13")
    return text + "\n"


def push(workspace: "Workspace") -> str:
    """Saves a workspace on W&B as a new view of its project.

    Returns:
        Its address.

    Raises:
        UserError: W&B can't be reached, or does not take it.
    """
    import wandb

    try:
        workspace.entity = workspace.entity or wandb.Api().default_entity or ""
        workspace.save()  # type: ignore[no-untyped-call]
        return str(workspace.url)
    except Exception as error:
        reason = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
        raise UserError(
            f"--push: W&B does not take it for {workspace.entity}/{workspace.project} ({reason}); check --entity and "
            "--project, and that the project has runs (wandb sync)"
        ) from error
