"""Weights & Biases: offline unless there is a key or the configuration says otherwise."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import wandb

from fedmtl.errors import UserError
from fedmtl.tracking.base import ClassMap, Metrics, Picture, RunInfo, Segmented, Tracker
from fedmtl.tracking.federation import federation_table
from fedmtl.tracking.method import columns, tags

log = logging.getLogger(__name__)

# first parts of the names of what is logged
GROUPS = ("train", "val", "diag", "time", "bytes", "server", "pictures", "masks", "heat_maps")
MOST_CLASSES = 126  # a mask's pixels are signed bytes, and one value means unknown


class WandB(Tracker):
    """Logs to Weights & Biases with ``round`` as the axis of every chart.

    Beside the whole configuration a run has columns of short names (``method``, ``method/upload``, …); its tags are
    what its method and data are made of, and those given.

    Args:
        mode: ``auto`` is what the variable WANDB_MODE says, else online where a key is set up, else offline.
        project: project of the run.
        entity: team or user.
        group: what the run is grouped under (default: its name without a trailing ``_s<seed>``).
        tags: more tags of the run.
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
        mode: Any = self.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        self._directory: Path | None = run.directory
        try:
            self._run = wandb.init(
                mode=mode,
                project=self.project,
                entity=self.entity,
                group=self.group or _group(run.name),
                tags=list(dict.fromkeys([*tags(run.config), *(self.tags or [])])),
                job_type=self.job_type,
                name=run.name,
                id=run.identity,
                resume="allow" if mode == "online" and run.identity else None,
                dir=str(run.directory),
                config={**run.config, **columns(run.config)},
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise UserError(
                f"tracker: W&B does not start ({str(error).splitlines()[0]}); set up a key with `wandb login`, or "
                "set tracker.mode: offline"
            ) from error
        self._run.define_metric("round")
        for group in GROUPS:
            self._run.define_metric(f"{group}/*", step_metric="round")
        if mode == "offline":
            log.info("W&B is offline; to upload later: wandb sync %s", self._run.settings.sync_dir)

    def log(self, metrics: Metrics) -> None:
        """One row of history; who has what goes with the first."""
        row: dict[str, Any] = {name: value for name, value in metrics.items() if value is not None}
        if self._directory is not None:
            names, clients = federation_table(self._directory)
            row["federation"] = wandb.Table(columns=[*names], data=clients)
            self._directory = None
        self._run.log(row)

    def pictures(self, round: int, strips: Mapping[str, Sequence[Picture]]) -> None:
        """A panel a task."""
        panels = {
            f"pictures/{task}": [wandb.Image(strip, caption="input · truth · prediction") for strip in images]
            for task, images in strips.items()
        }
        self._run.log({"round": round, **panels})

    def segmentations(self, round: int, images: Mapping[str, Sequence[Segmented]]) -> None:
        """A panel a task, whose classes can be switched on and off by name."""
        panels = {
            f"masks/{task}": [wandb.Image(one.image, masks=_masks(one)) for one in several]
            for task, several in images.items()
            if several and len(several[0].names) <= MOST_CLASSES
        }
        if panels:
            self._run.log({"round": round, **panels})

    def diagnostics(self, round: int, details: Mapping[str, Any]) -> None:
        """Heat maps."""
        from fedmtl.tracking.heat_maps import heat_maps  # matplotlib takes a while, and few runs need it

        drawn = {f"heat_maps/{name}": wandb.Image(picture) for name, picture in heat_maps(round, details).items()}
        self._run.log({"round": round, **drawn})

    def finish(self, summary: Metrics, *, failed: bool) -> None:
        """Writes the summary and closes the run."""
        self._run.summary.update({name: value for name, value in summary.items() if value is not None})
        self._run.finish(exit_code=int(failed))

    @property
    def identity(self) -> str | None:
        """W&B's run id."""
        return str(self._run.id)


def _group(name: str) -> str:
    """A run's name without its seed, and without what `fit` adds to it under an agent of a sweep."""
    identity = os.environ.get("WANDB_RUN_ID")
    return re.sub(r"_s\d+$", "", name.removesuffix(f"_{identity}") if identity else name)


def has_key() -> bool:
    """Whether a key is set up and the server takes it."""
    try:
        return bool(wandb.login(prompt=False))
    except wandb.Error as error:
        log.warning("W&B can't be reached with the key that is set up (%s)", str(error).splitlines()[0])
        return False


def _masks(one: Segmented) -> dict[str, Any]:
    """Truth and prediction as W&B takes them; it has signed bytes, so unknown (255) is the number after the last."""
    labels = {**dict(enumerate(one.names)), len(one.names): "unknown"}

    def mask(classes: ClassMap) -> dict[str, Any]:
        return {"mask_data": np.minimum(classes, len(one.names)), "class_labels": labels}

    return {"truth": mask(one.truth), "prediction": mask(one.prediction)}
