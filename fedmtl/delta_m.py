"""Δm: how much better than a baseline a multi-task model is, averaged over tasks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmtl.errors import UserError


@dataclass(frozen=True)
class Primary:
    """The metric that stands for a task: its name and its direction."""

    metric: str
    higher_is_better: bool


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
        Δ_t by task, for tasks in both whose baseline is not zero.
    """
    changes = {}
    for task, value in values.items():
        if baseline.get(task):
            sign = 1 if primary[task].higher_is_better else -1
            changes[task] = 100 * sign * (value - baseline[task]) / abs(baseline[task])
    return changes


def mean(changes: Mapping[str, float]) -> float | None:
    """Δm, the mean over tasks; None where there are none."""
    return sum(changes.values()) / len(changes) if changes else None


def load_baseline(path: str, tasks: Sequence[str]) -> dict[str, Any]:
    """Name and last primary metrics of a finished run.

    Args:
        path: a run's folder or its results.json.
        tasks: the tasks that must be in it.

    Raises:
        UserError: no such file, not a results file, or a task is missing.
    """
    file = Path(path)
    file = file / "results.json" if file.is_dir() else file
    try:
        results = json.loads(file.read_text())
        metrics = {task: results["last"]["metrics"][task][p["metric"]] for task, p in results["primary"].items()}
        name = results["name"]
        if not all(isinstance(value, int | float) for value in metrics.values()):
            raise ValueError("a metric is not a number")
    except FileNotFoundError:
        raise UserError(f"baseline: {file} is not there; name a finished run's folder or its results.json") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"baseline: {file} is not the results.json of a finished run ({error})") from None
    missing = [task for task in tasks if task not in metrics]
    if missing:
        raise UserError(f"baseline: {file} has no result for {', '.join(missing)}; it has {', '.join(metrics)}")
    return {"name": name, "metrics": {task: metrics[task] for task in tasks}}
