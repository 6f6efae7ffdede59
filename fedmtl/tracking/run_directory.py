"""A run's own folder: configuration, metrics by round, results, checkpoints, figures, the unified model."""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedmtl import atomic
from fedmtl.errors import UserError
from fedmtl.tracking.base import Metrics

log = logging.getLogger(__name__)


class RunDirectory:
    """The folder ``<out>/<name>``.

    Args:
        out: folder of all runs.
        name: name of the run; one path component.

    Raises:
        UserError: the name would leave `out`.
    """

    def __init__(self, out: str | Path, name: str) -> None:
        if not name or name in (".", "..") or any(mark in name for mark in "/\\\0"):
            raise UserError(f"name: {name!r} can't name a run; take letters, digits, '-', '_' and '.'")
        self.path = Path(out) / name
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.diagnostics = self.path / "diagnostics.jsonl"
        self.results = self.path / "results.json"
        self.measured = self.path / "measured.json"
        self.federation = self.path / "federation.json"
        self.checkpoints = self.path / "checkpoints"
        self.figures = self.path / "figures"
        self.unified = self.path / "unified"
        self._unwritten: dict[Path, str] = {}  # lines that the disk had no room for

    def create(self, config: str) -> None:
        """Makes the folder with its resolved configuration, both or none."""
        self._new = not self.path.exists()
        path = self.path.with_name(f".{self.path.name}.partial") if self._new else self.path
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_text(path / self.config.name, config)
            path.rename(self.path)
        except OSError as error:
            if self._new:
                shutil.rmtree(path, ignore_errors=True)
            raise UserError(f"out: can't make the folder {self.path}: {error.strerror}") from error

    @property
    def job(self) -> str | None:
        """The torchrun job that started the run, which it goes on with by itself."""
        path = self.path / "job.txt"
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def note_job(self, job: str | None) -> None:
        """Notes the job that runs it now."""
        if job is not None:
            write_text(self.path / "job.txt", job)

    def remove(self) -> None:
        """Takes the folder away again, if `create` made it."""
        if self._new:
            shutil.rmtree(self.path, ignore_errors=True)

    def append(self, metrics: Metrics) -> None:
        """Adds one round to metrics.jsonl."""
        self._append(self.metrics, metrics)

    def append_details(self, details: Mapping[str, Any]) -> None:
        """Adds a round's diagnostics to diagnostics.jsonl."""
        self._append(self.diagnostics, details)

    def draw(self, name: str, write: Callable[[Path], None]) -> None:
        """Has a picture written to figures; one that the disk has no room for is left out, with a warning."""
        path = self.figures / name
        try:
            write(path)
        except OSError as error:
            path.unlink(missing_ok=True)
            log.warning("%s can't be written (%s); training goes on without it", path, error.strerror or error)

    def _append(self, path: Path, row: Mapping[str, Any]) -> None:
        """Adds a line; one that the disk has no room for is added with the next."""
        text = self._unwritten.pop(path, "") + json.dumps(_finite(row)) + "\n"
        size = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            with suppress(OSError):
                os.truncate(path, size)
            self._unwritten[path] = text
            log.warning("%s can't be written (%s); its lines wait for the next round", path, error.strerror or error)

    def rewind(self, round: int) -> None:
        """Drops the lines of rounds after `round`, which a resumed run does again."""
        for path in (self.metrics, self.diagnostics):
            text = "".join(json.dumps(row) + "\n" for row in _rows(path) if row["round"] <= round)
            if path.exists() and path.read_text(encoding="utf-8") != text:
                _write(path, text)

    def rows(self) -> Iterable[dict[str, Any]]:
        """The rounds of metrics.jsonl; a line cut off by a crash is passed over."""
        return _rows(self.metrics)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes results.json."""
        _write(self.results, json.dumps(_finite(results), indent=2) + "\n")

    def write_measured(self, measured: Mapping[str, Any]) -> None:
        """Writes measured.json: what results.json will say of the metrics, for who looks at the run before its end."""
        _write(self.measured, json.dumps(measured) + "\n")

    def write_unified(self, weights: bytes) -> None:
        """Writes the unified model's weights, a safetensors file, as ``unified/model.safetensors``."""
        _write(self.unified / "model.safetensors", weights)

    def write_federation(self, rows: Sequence[Mapping[str, Any]], *, again: bool) -> None:
        """Writes federation.json, one row per client; a run that is resumed (`again`) must have the same.

        Raises:
            UserError: the run began with other clients or other images.
        """
        text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
        if again and self.federation.is_file() and self.federation.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{self.federation}: the run began with other clients or images than it would go on with; "
                "give it the data and lists that it had, or another --name"
            )
        _write(self.federation, text)


def _finite(tree: Any) -> Any:
    """The same with null for NaN and infinity, which JSON does not have."""
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    atomic.replace(path, lambda file: file.write(text.encode()))


def _write(path: Path, content: str | bytes) -> None:
    """The same for a run's files, with a message of one line."""
    try:
        path.parent.mkdir(exist_ok=True)
        atomic.replace(path, lambda file: file.write(content.encode() if isinstance(content, str) else content))
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror or error}); make room there, or take another folder"
        ) from error


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
