"""TensorBoard: event files in the run's own folder."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedmtl.errors import UserError
from fedmtl.tracking.base import Metrics, Picture, RunInfo, Tracker
from fedmtl.tracking.federation import federation_table
from fedmtl.tracking.method import columns

FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """Logs to ``<run>/tensorboard`` with the round as step; ``tensorboard --logdir runs`` shows all runs.

    Scalars have the names of metrics.jsonl, pictures are ``pictures/<task>/<n>`` and ``heat_maps/…``, configuration and
    federation are texts, and the table of hyperparameters has the method's short names and the last and best numbers. A
    resumed run goes on in the same folder; rounds that it does again replace what was there.
    """

    def start(self, run: RunInfo) -> None:
        """Notes the run; its file is opened with the first round.

        Raises:
            UserError: the package tensorboard is missing.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                'tracker: TensorBoard needs the package tensorboard: pip install -e ".[tensorboard]", or take '
                "fedmtl.tracking.WandB"
            ) from error
        self._make, self._run = SummaryWriter, run
        self._writer: Any = None
        self._round = 0

    def log(self, metrics: Metrics) -> None:
        """A point a metric."""
        self._round = int(metrics["round"] or 0)
        writer = self._open(self._round)
        for name, value in metrics.items():
            if name != "round" and value is not None:
                writer.add_scalar(name, value, self._round)
        writer.flush()

    def pictures(self, round: int, strips: Mapping[str, Sequence[Picture]]) -> None:
        """A series a task and image."""
        for task, images in strips.items():
            for number, strip in enumerate(images):
                self._open(round).add_image(f"pictures/{task}/{number}", strip, round, dataformats="HWC")

    def diagnostics(self, round: int, details: Mapping[str, Any]) -> None:
        """Heat maps."""
        from fedmtl.tracking.heat_maps import heat_maps  # matplotlib takes a while, and few runs need it

        for name, picture in heat_maps(round, details).items():
            self._open(round).add_image(f"heat_maps/{name}", picture, round, dataformats="HWC")

    def finish(self, summary: Metrics, *, failed: bool) -> None:
        """Writes last and best numbers beside the hyperparameters, and closes the file."""
        if self._writer is None:  # no round was done
            return
        from torch.utils.tensorboard.summary import hparams

        numbers = {name: value for name, value in summary.items() if value is not None}
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, self._round)
        for record in hparams(columns(self._run.config), numbers):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(record, self._round)
        self._writer.close()

    def _open(self, round: int) -> Any:
        """The writer; opened with the first round that is logged, so that what an earlier one said of it is dropped."""
        if self._writer is None:
            folder = self._run.directory / FOLDER
            if round == 1:  # what is there is of a run that starts anew
                shutil.rmtree(folder, ignore_errors=True)
            new = not folder.is_dir()
            self._writer = self._make(str(folder), purge_step=None if new else round, flush_secs=30)
            if new:
                self._writer.add_text("config", _code(yaml.safe_dump(dict(self._run.config), sort_keys=False)))
                self._writer.add_text("federation", _markdown(self._run.directory))
        return self._writer


def _code(text: str) -> str:
    """Markdown of a text as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def _markdown(run: Path) -> str:
    """The federation as a table."""
    names, rows = federation_table(run)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
