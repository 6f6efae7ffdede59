"""Runs' folders made up for a test, with numbers that are known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

PRIMARY = {
    "semseg": {"metric": "mIoU", "higher_is_better": True, "protocol": ""},
    "depth": {"metric": "RMSE", "higher_is_better": False, "protocol": ""},
    "normals": {"metric": "mErr", "higher_is_better": False, "protocol": ""},
}
VALIDATION = {"scenes": 5}
CLIENTS = ["semseg", "depth", "normals"]


def config(**changes: Any) -> dict[str, Any]:
    data = {"class_path": "fedmtl.data.Scenes", "init_args": {"size": 32}}
    return {"name": "x", "seed": 0, "rounds": 3, "data": data, "upload": None} | changes


DEA = [{"class_path": "fedmtl.aggregation.DEA", "init_args": {"rho": 0.5, "scope": "global", "part": False}}]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """``make("a_s0", values)`` lays down a run whose evaluations at rounds 1, 2, … are ``values`` by task."""

    def call(
        name: str,
        values: dict[str, list[float | None]],
        *,
        finished: bool = True,
        recorded: float | None = None,
        baseline: str | None = None,
        primary: Any = PRIMARY,
        validation: Any = VALIDATION,
        **settings: Any,
    ) -> Path:
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        seed = int(name.rpartition("_s")[2]) if "_s" in name else 0
        (path / "config.yaml").write_text(yaml.safe_dump(config(**{"name": name, "seed": seed} | settings)))
        primary = {task: primary[task] for task in values}
        rounds = max(map(len, values.values()))
        rows = []
        for i in range(rounds):
            row: dict[str, Any] = {"round": i + 1, "bytes/up": 1_000_000, "time/train": 2.0, "time/evaluate": 0.5}
            row |= {f"val/{task}/{primary[task]['metric']}": each[i] for task, each in values.items()}
            if recorded is not None:
                row |= {f"val/{task}/delta": recorded for task in values} | {"val/delta_m": recorded}
            rows.append(row)
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if finished:
            last = {"round": rounds, "metrics": {t: {primary[t]["metric"]: each[-1]} for t, each in values.items()}}
            told = {"name": name, "primary": primary, "validation": validation, "last": last, "best": last}
            told["baseline"] = {"name": baseline, "metrics": {}} if baseline else None
            (path / "results.json").write_text(json.dumps(told))
        return path

    return call


def draw(path: Path, shade: int, *, image: int = 100) -> None:
    """Pictures of two tasks on two images, the predictions of one shade."""
    strips = {}
    for i in range(2):
        for task in ("semseg", "depth"):
            strip = np.full((8, 24, 3), shade, np.uint8)
            strip[:, :8], strip[:, 8:16] = image + i, 200
            strips[f"{i}/{task}"] = strip
    (path / "figures").mkdir(exist_ok=True)
    np.savez_compressed(path / "figures" / "latest.npz", round=np.asarray(3), **strips)


def diagnose(path: Path, cosine: float, clients: list[str] = CLIENTS) -> None:
    """Two measured rounds; every pair of clients has the same cosine, in the second twice as large."""
    rows = []
    for round in (1, 3):
        matrix = [[1.0 if a == b else cosine * (1 + (round == 3)) for b in clients] for a in clients]
        rows.append({"round": round, "clients": clients, "pairs": {"cosine": matrix, "mask_overlap": matrix}})
    (path / "diagnostics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def three(make: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder of three methods with three seeds each."""
    random = np.random.default_rng(0)
    for method, settings in {"local": {"share": "none"}, "dea": {"upload": DEA}, "fedavg": {}}.items():
        for seed in range(3):
            values = {"semseg": (30, 45), "depth": (0.9, 0.5), "normals": (40, 25)}
            noisy = {t: list(np.linspace(*ends, 3) * random.uniform(0.9, 1.1)) for t, ends in values.items()}
            path = make(f"{method}_s{seed}", noisy, **settings)
            draw(path, 10 * seed)
            if method != "local":
                diagnose(path, 0.1 * (seed + 1))
    return tmp_path / "runs"
