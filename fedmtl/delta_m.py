"""Δm: how much better than a baseline a multi-task model is, averaged over tasks."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmtl.errors import UserError

if TYPE_CHECKING:  # tasks load torch, and who reads results needs none
    from fedmtl.tasks import Task


@dataclass(frozen=True)
class Primary:
    """The metric that stands for a task: its name, its direction, and how it is taken."""

    metric: str
    higher_is_better: bool
    protocol: str = ""


def primary_metrics(tasks: "Mapping[str, Task]") -> dict[str, Primary]:
    """Metric, direction and protocol of each task."""
    return {
        name: Primary(task.primary, bool(task.metric().higher_is_better), task.protocol) for name, task in tasks.items()
    }


def delta_m(
    values: Mapping[str, float], baseline: Mapping[str, float], primary: Mapping[str, Primary]
) -> dict[str, float]:
    """Relative change against a baseline in percent, per task; Δm is the mean over tasks. Positive is better.

    Δ_t = 100 · s_t · (M_t − B_t) / |B_t| with s_t = −1 where lower is better (Maninis et al. 2019).

    Args:
        values: primary metric M_t by task.
        baseline: B_t by task; usually single-task training without federation.
        primary: metric and direction by task.

    Returns:
        Δ_t by task, for tasks in both whose baseline is finite and not zero.
    """
    changes = {}
    for task, value in values.items():
        base = baseline.get(task, 0.0)
        if base and math.isfinite(base):
            sign = 1 if primary[task].higher_is_better else -1
            changes[task] = 100 * sign * (value - base) / abs(base)
    return changes


def mean(changes: Mapping[str, float]) -> float | None:
    """Δm, the mean over tasks; None where there are none."""
    return sum(changes.values()) / len(changes) if changes else None


def complete_mean(changes: Mapping[str, float], tasks: Iterable[str]) -> float | None:
    """Δm over all of `tasks`; None where one has no finite change, for over fewer tasks it is another figure.

    Without it a model that diverged on a task, or has none for it, would be spared its worst number.

    Args:
        changes: Δ_t in percent by task.
        tasks: those of the baseline.
    """
    found = {task: changes.get(task, math.nan) for task in tasks}
    return mean(found) if all(map(math.isfinite, found.values())) else None


def load_baseline(path: str, primary: Mapping[str, Primary], validation: Mapping[str, Any]) -> dict[str, Any]:
    """Name and last primary metrics of a finished run.

    Args:
        path: a run's folder or its results.json.
        primary: metric and direction of the tasks that it must have.
        validation: data set and number of the images that it must have been measured on.

    Raises:
        UserError: no such file, not a results file, or not comparable.
    """
    file = Path(path).expanduser()
    file = file / "results.json" if file.is_dir() else file
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        found = {task: Primary(**entry) for task, entry in results["primary"].items()}
        metrics = {task: results["last"]["metrics"][task][p.metric] for task, p in found.items()}
        name, measured = results["name"], results["validation"]
        if not all(isinstance(value, int | float) for value in metrics.values()):
            raise ValueError("a metric is not a number")
    except FileNotFoundError:
        raise UserError(f"baseline: {file} is not there; name a finished run's folder or its results.json") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"baseline: {file} is not the results.json of a finished run ({error})") from None
    missing = [task for task in primary if task not in found]
    if missing:
        raise UserError(f"baseline: {file} has no result for {', '.join(missing)}; it has {', '.join(found)}")
    other = next((task for task, p in primary.items() if found[task] != p), None)
    if other is not None:
        theirs, ours = (
            f"{p.metric} ({p.protocol})" if p.protocol else p.metric for p in (found[other], primary[other])
        )
        ours = ours if ours != theirs else "another metric"
        raise UserError(f"baseline: {file} measures {other} by {theirs}, this run by {ours}")
    if measured != dict(validation):
        raise UserError(f"baseline: {file} was measured on {measured}, this run is on {dict(validation)}")
    return {"name": name, "metrics": {task: metrics[task] for task in primary}}
