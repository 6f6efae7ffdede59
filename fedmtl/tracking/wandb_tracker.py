"""Weights & Biases: offline unless there is a key or the configuration says otherwise."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import wandb

from fedmtl.errors import UserError
from fedmtl.tracking.base import Metrics, Picture, RunInfo, Tracker

log = logging.getLogger(__name__)


class WandB(Tracker):
    """Logs to Weights & Biases with ``round`` as the axis of every chart.

    Args:
        mode: ``auto`` is online where a key is set up, else offline.
        project: project of the run.
        entity: team or user.
        group: what the run is grouped under (default: its name without a trailing ``_s<seed>``).
        tags: tags of the run.
        job_type: kind of job.
    """

    def __init__(
        self,
        *,
        mode: Literal["auto", "online", "offline"] = "auto",
        project: str = "fedmtl",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        job_type: str = "fit",
    ) -> None:
        self.mode, self.project, self.entity = mode, project, entity
        self.group, self.tags, self.job_type = group, tags, job_type

    def start(self, run: RunInfo) -> None:
        """Opens the W&B run, or goes on with it."""
        mode = self.mode if self.mode != "auto" else _mode()
        try:
            self._run = wandb.init(
                mode=mode,
                project=self.project,
                entity=self.entity,
                group=self.group or re.sub(r"_s\d+$", "", run.name),
                tags=self.tags,
                job_type=self.job_type,
                name=run.name,
                id=run.identity,
                resume="allow" if mode == "online" and run.identity else None,
                dir=str(run.directory),
                config=dict(run.config),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise UserError(
                f"tracker: W&B does not start ({str(error).splitlines()[0]}); set up a key with `wandb login`, or "
                "set tracker.mode: offline"
            ) from error
        self._run.define_metric("round")
        for group in ("train", "val", "diag", "time", "bytes", "server", "pictures"):
            self._run.define_metric(f"{group}/*", step_metric="round")
        if mode == "offline":
            log.info("W&B is offline; to upload later: wandb sync %s", self._run.settings.sync_dir)

    def log(self, metrics: Metrics) -> None:
        """One row of history."""
        self._run.log({name: value for name, value in metrics.items() if value is not None})

    def pictures(self, round: int, strips: Mapping[str, Sequence[Picture]]) -> None:
        """A panel a task."""
        panels = {
            f"pictures/{task}": [wandb.Image(strip, caption="input · truth · prediction") for strip in images]
            for task, images in strips.items()
        }
        self._run.log({"round": round, **panels})

    def finish(self, summary: Metrics, *, failed: bool) -> None:
        """Writes the summary and closes the run."""
        self._run.summary.update({name: value for name, value in summary.items() if value is not None})
        self._run.finish(exit_code=int(failed))

    @property
    def identity(self) -> str | None:
        """W&B's run id."""
        return str(self._run.id)


def _mode() -> Literal["online", "offline"]:
    """Online where a key is set up and the server takes it."""
    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.Error as error:
        log.warning("W&B can't be reached with the key that is set up (%s)", str(error).splitlines()[0])
        return "offline"
