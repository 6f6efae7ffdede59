"""What an offline W&B run really holds, read back from its file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def records(run: Path) -> list[dict[str, Any]]:
    """The records of a run's only .wandb file."""
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    wandb = Path(sys.executable).parent / "wandb"
    done = subprocess.run([wandb, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_offline_run_holds_history_axis_config_group_and_pictures(
    fedmtl: Callable[..., Any], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    result = fedmtl(
        "fit", "--config", EXPERIMENTS / "scenes_dea.yaml", "--config", tiny, "--name", "dea_s7", "--seed", "7"
    )
    assert result.code == 0, result.error
    assert "wandb sync" in result.out
    run = tmp_path / "runs" / "dea_s7"
    found = records(run)

    (start,) = [record["run"] for record in found if record["type"] == "run"][:1]
    assert start["display_name"] == "dea_s7"
    assert start["run_group"] == "dea"
    assert start["job_type"] == "fit"
    assert start["tags"] == ["scenes"]
    config = start["config"]["update"]
    assert config["seed"] == 7
    assert config["upload"][0]["init_args"]["rho"] == 0.5

    metrics = [record["metric"] for record in found if record["type"] == "metric"]
    assert {"val/*", "train/*", "bytes/*"} <= {m["glob_name"] for m in metrics if m.get("step_metric") == "round"}

    logged = [record["history"]["item"] for record in found if record["type"] == "history"]
    written = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [item for item in logged if "bytes/up" in item]
    assert [row["round"] for row in rows] == [1, 2]
    for row, line in zip(rows, written, strict=True):
        for key, value in line.items():
            assert row[key] == pytest.approx(value)

    panels = [item for item in logged if "pictures/depth.filenames" in item]
    assert [panel["round"] for panel in panels] == [1, 2]
    names = panels[-1]["pictures/depth.filenames"]
    assert len(names) == 2
    (media,) = run.glob("wandb/offline-run-*/files")
    assert Image.open(media / names[0]).size == (3 * 32, 32)

    summary = json.loads((run / "results.json").read_text())["last"]["metrics"]["depth"]["RMSE"]
    last = [record["summary"] for record in found if record["type"] == "summary"]
    assert str(summary)[:8] in json.dumps(last)
    assert found[-1]["type"] in ("exit", "footer", "summary", "final", "telemetry", "stats")
