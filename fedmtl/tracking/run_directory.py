"""A run's own folder: configuration, metrics a line a round, results, checkpoints, figures, the unified model."""

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmtl.errors import UserError
from fedmtl.tracking.base import Metrics


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
        self.federation = self.path / "federation.json"
        self.checkpoints = self.path / "checkpoints"
        self.figures = self.path / "figures"
        self.unified = self.path / "unified"

    def create(self, config: str) -> None:
        """Makes the folder with its resolved configuration."""
        self._new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"out: can't make the folder {self.path}: {error.strerror}") from error
        write_text(self.config, config)

    def remove(self) -> None:
        """Takes the folder away again, if `create` made it."""
        if self._new:
            shutil.rmtree(self.path, ignore_errors=True)

    def append(self, metrics: Metrics) -> None:
        """Adds one round to metrics.jsonl."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps(_finite(metrics)) + "\n")

    def append_details(self, details: Mapping[str, Any]) -> None:
        """Adds a round's diagnostics to diagnostics.jsonl."""
        with open(self.diagnostics, "a") as file:
            file.write(json.dumps(_finite(details)) + "\n")

    def rewind(self, round: int) -> None:
        """Drops the lines of rounds after `round`, which a resumed run does again."""
        for path in (self.metrics, self.diagnostics):
            lines = [json.dumps(row) + "\n" for row in _rows(path) if row["round"] <= round]
            if path.exists():
                write_text(path, "".join(lines))

    def rows(self) -> Iterable[dict[str, Any]]:
        """The rounds of metrics.jsonl; a line cut off by a crash is passed over."""
        return _rows(self.metrics)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes results.json."""
        write_text(self.results, json.dumps(_finite(results), indent=2) + "\n")

    def write_federation(self, rows: Sequence[Mapping[str, Any]], *, again: bool) -> None:
        """Writes federation.json, a row a client; a run that is gone on with (`again`) must have the same.

        Raises:
            UserError: the run began with other clients or other images.
        """
        text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
        if again and self.federation.is_file() and self.federation.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{self.federation}: the run began with other clients or images than it would go on with; "
                "give it the data and lists that it had, or another --name"
            )
        write_text(self.federation, text)


def _finite(tree: Any) -> Any:
    """The same with null for NaN and infinity, which JSON does not have."""
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
