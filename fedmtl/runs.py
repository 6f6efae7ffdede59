"""A run's folder, read: configuration, metrics, diagnostics and results, also while the run goes on; without torch."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fedmtl.delta_m import Primary, delta_m, mean
from fedmtl.errors import UserError

# what stands for a task whose run does not say so yet: the first of these that it measures, and its direction
_USUAL = {"mIoU": True, "odsF": True, "maxF": True, "mErr": False, "RMSE": False}

Values = dict[str, float]  # numbers by task


@dataclass(frozen=True)
class Run:
    """What a run's folder says, at the moment when it was read.

    Attributes:
        path: the folder.
        name: its name, with marks in place of characters that can't be shown.
        config: the resolved configuration.
        rows: a dictionary a round, as in metrics.jsonl: ``train/<client>/loss``, ``val/<task>/<metric>``, …; a line
            that is only half written is passed over.
        results: results.json, None while the run goes on.
        federation: a dictionary a client, as in federation.json.
        primary: metric and direction by task; while the run goes on as measured.json says, or else the usual ones.
        validation: data set and number of the images that it is measured on; None where it does not say so.
    """

    path: Path
    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    results: dict[str, Any] | None
    federation: list[dict[str, Any]]
    primary: dict[str, Primary]
    validation: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether all its rounds are done and its results written."""
        return self.results is not None

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def rounds(self) -> int:
        """Rounds that the run is to have."""
        rounds = self.config.get("rounds")
        return rounds if isinstance(rounds, int) else self.round

    @property
    def round(self) -> int:
        """Rounds done."""
        recorded = [row["round"] for row in self.rows]
        return max(recorded + [entry["round"] for entry in self._entries().values()], default=0)

    @cached_property
    def evaluated(self) -> list[int]:
        """Rounds with an evaluation, ascending; also those where nothing finite came of it."""
        measured = (round for round, row in self._by_round.items() if any(key.startswith("val/") for key in row))
        return sorted({*measured, *self._noted})

    @property
    def baseline(self) -> str | None:
        """Name of the run that its Δm was measured against."""
        told = (self.results or {}).get("baseline")
        if isinstance(told, dict) and isinstance(told.get("name"), str):
            return printable(told["name"])
        path = self.config.get("baseline")
        if not isinstance(path, str) or not path:
            return None
        return printable((Path(path).parent if Path(path).name == "results.json" else Path(path)).name)

    @cached_property
    def details(self) -> list[dict[str, Any]]:
        """Diagnostics, a dictionary a measured round, as in diagnostics.jsonl (see `fedmtl.diagnostics`)."""
        return list(read_rows(self.path / "diagnostics.jsonl"))

    def values(self, round: int) -> Values:
        """Primary metrics of an evaluation, by task; without those that are no finite number."""
        row, noted = self._by_round.get(round, {}), self._noted.get(round, {})
        found = {
            task: number(row.get(f"val/{task}/{p.metric}", _at(noted, "metrics", task, p.metric)))
            for task, p in self.primary.items()
        }
        return {task: value for task, value in found.items() if value is not None}

    def changes(self, round: int) -> Values:
        """Δ by task in percent as the run recorded it at an evaluation; empty without a baseline."""
        row, noted = self._by_round.get(round, {}), self._noted.get(round, {})
        found = {
            task: number(row.get(f"val/{task}/delta", _at(noted, "delta_m", "tasks", task))) for task in self.primary
        }
        return {task: value for task, value in found.items() if value is not None}

    def at(self, *, best: bool = False) -> int | None:
        """The round of its last evaluation, or of its best; None before the first.

        The best is the one that `results.json` names. While the run goes on it is that of highest Δm, without a
        baseline of highest Δm against its own first evaluation, among those with most tasks.
        """
        rounds = self.evaluated
        if not rounds or not best:
            return rounds[-1] if rounds else None
        told = self._entries().get("best")
        if told is not None and told["round"] in rounds:
            return int(told["round"])
        first: Values = {}
        for round in rounds:
            first = {task: value for task, value in self.values(round).items() if value} | first

        def score(round: int) -> tuple[int, float]:
            found = self.changes(round) or delta_m(self.values(round), first, self.primary)
            return len(found), mean(found) or 0.0

        return max(rounds, key=score)

    def total(self, *keys: str) -> float | None:
        """Sum of some numbers over all rounds, such as ``bytes/up``; None where there are none."""
        found = [value for row in self.rows for key in keys if (value := number(row.get(key))) is not None]
        return sum(found) if found else None

    def _entries(self) -> dict[str, dict[str, Any]]:
        """The evaluations in results.json: ``last`` and ``best``."""
        told = {when: (self.results or {}).get(when) for when in ("last", "best")}
        return {when: e for when, e in told.items() if isinstance(e, dict) and _is_round(e.get("round"))}

    @cached_property
    def _noted(self) -> dict[int, dict[str, Any]]:
        return {entry["round"]: entry for entry in self._entries().values()}

    @cached_property
    def _by_round(self) -> dict[int, dict[str, Any]]:
        return {row["round"]: row for row in self.rows}


def read(path: str | Path) -> Run:
    """Reads a run's folder.

    Raises:
        UserError: it is no run's folder, or a file of it is damaged.
    """
    path = Path(path)
    config = _config(path)
    rows = list(read_rows(path / "metrics.jsonl"))
    results = _json(path / "results.json", dict)
    told = results if results is not None else _json(path / "measured.json", dict) or {}
    federation = _json(path / "federation.json", list) or []
    validation = told.get("validation")
    return Run(
        path=path,
        name=printable(path.resolve().name),
        config=config,
        rows=rows,
        results=results,
        federation=[row for row in federation if isinstance(row, dict)],
        primary=_primary(path, told) if "primary" in told else _guessed(rows),
        validation=validation if isinstance(validation, dict) else None,
    )


def find(paths: Sequence[str | Path]) -> list[Run]:
    """Runs by their folders, or by folders of runs; each once, in the order given and then by name.

    Raises:
        UserError: a path is neither, or a run can't be read.
    """
    folders: dict[Path, Path] = {}
    for path in map(Path, paths):
        inside = [path] if is_run(path) else sorted((p for p in _folders(path) if is_run(p)), key=natural)
        if not inside:
            raise UserError(f"{path} is not the folder of a run (it has no config.yaml), nor does it hold any")
        for folder in inside:
            folders.setdefault(folder.resolve(), folder)
    return [read(folder) for folder in folders.values()]


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return (path / "config.yaml").is_file()


def natural(path: Path) -> list[tuple[int, str]]:
    """A key that sorts ``a_2`` before ``a_10``."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    plain = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if plain and math.isfinite(value) else None


def printable(text: str) -> str:
    """A text without control characters."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON that have a round; one that is cut off is passed over.

    Raises:
        UserError: it is there and can't be read.
    """
    for line in (_text(path) or "").splitlines():
        try:
            row = json.loads(line, object_pairs_hook=_named)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_round(row.get("round")):
            yield row


def _config(path: Path) -> dict[str, Any]:
    text = _text(path / "config.yaml")
    if text is None:
        raise UserError(f"{path} is not the folder of a run: it has no config.yaml")
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path / 'config.yaml'} is damaged: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.yaml'} is not a run's configuration")
    return {str(key): value for key, value in config.items()}


def _json(path: Path, kind: type) -> Any:
    text = _text(path)
    if text is None:
        return None
    try:
        content = json.loads(text, object_pairs_hook=_named)
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: it is no JSON") from None
    if not isinstance(content, kind):
        raise UserError(f"{path} is damaged: it holds something else than a run's")
    return content


def _named(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a file of JSON with names that can be shown, wherever they stand: they still find one another."""
    return {printable(name): value for name, value in pairs}


def _text(path: Path) -> str | None:
    """A file's text, None if it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None


def _folders(path: Path) -> list[Path]:
    try:
        return [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    except FileNotFoundError:
        raise UserError(f"{path} is not there; name a run's folder, or a folder of runs") from None
    except OSError as error:
        raise UserError(f"{path} is not the folder of a run: {error.strerror or error}") from None


def _primary(path: Path, told: Mapping[str, Any]) -> dict[str, Primary]:
    try:
        return {
            task: Primary(
                printable(str(p["metric"])), bool(p["higher_is_better"]), printable(str(p.get("protocol", "")))
            )
            for task, p in told["primary"].items()
        }
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: its results do not say by which metrics its tasks are measured") from None


def _guessed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Primary]:
    """By the metrics that stand in the rows; a task with none of the usual ones is left out."""
    measured: dict[str, set[str]] = {}
    for row in rows:
        for key in row:
            if key.startswith("val/") and key.count("/") == 2:
                _, task, metric = key.split("/")
                measured.setdefault(task, set()).add(metric)
    usual = {task: next((m for m in _USUAL if m in metrics), None) for task, metrics in measured.items()}
    return {task: Primary(metric, _USUAL[metric]) for task, metric in usual.items() if metric is not None}


def _is_round(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 10**9


def _at(tree: Any, *keys: str) -> Any:
    """What lies at a path of a tree, None where there is no such path."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
