"""What an offline W&B run really holds, read back from its file, and whether the dashboard shows just that."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fedmtl.cli import main

from .conftest import EXPERIMENTS, TINY

pytestmark = pytest.mark.slow
Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Iterator[Path]:
    """A baseline, and ``dea_s7`` measured against it with diagnostics, by the command line and without a key."""
    folder = tmp_path_factory.mktemp("tracked")
    tiny = folder / "tiny.yaml"
    tiny.write_text(yaml.safe_dump({**TINY, "out": str(folder)}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_CONFIG_DIR", str(folder))
        patch.setenv("NETRC", str(folder / "none"))
        local = ["--config", str(EXPERIMENTS / "scenes_local.yaml"), "--config", str(tiny)]
        assert main(["fit", *local, "--name", "local", "--tracker", "null", "--pictures", "0"]) == 0
        words = ["--config", str(EXPERIMENTS / "scenes_dea.yaml"), "--config", str(tiny), "--name", "dea_s7"]
        words += ["--config", str(EXPERIMENTS / "methods" / "diagnosed.yaml"), "--diagnostics.every", "1"]
        assert main(["fit", *words, "--seed", "7", "--baseline", str(folder / "local")]) == 0
        yield folder


def inspected(run: Path) -> Records:
    """The records of a run's only .wandb file."""
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    wandb = Path(sys.executable).parent / "wandb"
    done = subprocess.run([wandb, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def records(runs: Path) -> Records:
    return inspected(runs / "dea_s7")


@pytest.fixture(scope="module")
def history(records: Records) -> Records:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


@pytest.fixture(scope="module")
def media(runs: Path) -> Path:
    (files,) = runs.glob("dea_s7/wandb/offline-run-*/files")
    return files


def test_switched_off_by_its_variable(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    words = ["--config", str(EXPERIMENTS / "scenes_dea.yaml"), "--config", str(runs / "tiny.yaml"), "--name", "off"]
    assert main(["fit", *words, "--rounds", "1", "--pictures", "0"]) == 0
    assert not list((runs / "off").glob("wandb/*run-*"))


def test_group_tags_and_columns(records: Records) -> None:
    (start,) = [record["run"] for record in records if record["type"] == "run"][:1]
    assert start["display_name"] == "dea_s7"
    assert start["run_group"] == "dea"
    assert start["job_type"] == "fit"
    assert start["tags"] == ["FedAvg", "DEA", "Scenes", "scenes"]
    config = start["config"]["update"]
    assert config["seed"] == 7
    rho = config["upload"][0]["init_args"]["rho"]
    assert config["method"] == f"FedAvg + DEA(rho={rho})"
    assert config["method/rho"] == rho
    assert config["method/backbone"] == "test_convnext"


def test_history_is_metrics_jsonl_over_rounds(runs: Path, records: Records, history: Records) -> None:
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    over_rounds = {metric["glob_name"] for metric in metrics if metric.get("step_metric") == "round"}
    assert over_rounds == {
        f"{group}/*" for group in ("train", "val", "diag", "time", "bytes", "server", "pictures", "masks", "heat_maps")
    }
    written = [json.loads(line) for line in (runs / "dea_s7" / "metrics.jsonl").read_text().splitlines()]
    rows = [item for item in history if "bytes/up" in item]
    assert [row["round"] for row in rows] == [1, 2]
    for row, line in zip(rows, written, strict=True):
        for key, value in line.items():
            assert row[key] == pytest.approx(value)
    known = ("round", "federation", "_")
    for key in (key for item in history for key in item if not key.startswith(known)):
        assert any(key.startswith(name.removesuffix("*")) for name in over_rounds), key
    assert all("round" in item for item in history)


def test_summary_has_last_and_best(runs: Path, records: Records) -> None:
    results = json.loads((runs / "dea_s7" / "results.json").read_text())
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record["summary"]["update"] if record["type"] == "summary" else {}
    for when in ("last", "best"):
        assert summary[f"{when}/depth/RMSE"] == pytest.approx(results[when]["metrics"]["depth"]["RMSE"])
        assert summary[f"{when}/delta_m"] == pytest.approx(results[when]["delta_m"]["mean"])


def test_federation_table(runs: Path, history: Records, media: Path) -> None:
    rows = json.loads((runs / "dea_s7" / "federation.json").read_text())
    (item,) = [item for item in history if "federation.path" in item]
    assert item["round"] == 1
    table = json.loads((media / item["federation.path"]).read_text())
    assert table["columns"] == ["client", "data", "tasks", "images", "epochs", "steps"]
    wanted = [[*(row[key] for key in ("client", "data")), ", ".join(row["tasks"]), row["images"]] for row in rows]
    assert [line[:4] for line in table["data"]] == wanted


def test_pictures_are_strips(history: Records, media: Path) -> None:
    panels = [item for item in history if "pictures/depth.filenames" in item]
    assert [panel["round"] for panel in panels] == [1, 2]
    for task in ("semseg", "depth", "normals", "edge", "saliency"):
        names = panels[-1][f"pictures/{task}.filenames"]
        assert len(names) == 2
        assert Image.open(media / names[0]).size == (3 * 32, 32)


def test_masks_have_names_of_classes(records: Records, history: Records, media: Path) -> None:
    panels = [item for item in history if "masks/semseg.all_masks" in item]
    assert [panel["round"] for panel in panels] == [1, 2]
    assert not any(key.startswith("masks/saliency") for panel in panels for key in panel)  # a probability, no class
    labels: dict[str, Any] = {}
    for record in records:
        labels |= record.get("config", {}).get("update", {}).get("_wandb", {}).get("mask/class_labels", {})
    names = labels["masks/semseg_wandb_delimeter_truth"]["value"]
    assert (names["0"], names["9"], names["10"]) == ("wall", "picture", "unknown")
    for kind in ("truth", "prediction"):
        for mask in panels[-1]["masks/semseg.all_masks"]:
            drawn = np.asarray(Image.open(media / mask[kind]["path"]))
            assert drawn.shape == (32, 32)
            assert drawn.max() <= 10
    truths = [np.asarray(Image.open(media / mask["truth"]["path"])) for mask in panels[-1]["masks/semseg.all_masks"]]
    assert all(len(np.unique(truth)) > 2 for truth in truths)


def test_heat_maps(history: Records, media: Path) -> None:
    panels = [item for item in history if "heat_maps/mask_overlap.path" in item]
    assert [panel["round"] for panel in panels] == [1, 2]
    for name in ("cosine", "sent_cosine", "mask_overlap", "mask_share"):
        assert Image.open(media / panels[-1][f"heat_maps/{name}.path"]).size == (640, 560)


@pytest.mark.parametrize("named", [True, False], ids=["of the run", "of all tasks"])
def test_dashboard_shows_keys_that_runs_log(
    fedmtl: Callable[..., Any], runs: Path, records: Records, history: Records, tmp_path: Path, named: bool
) -> None:
    out = tmp_path / "dashboard.json"
    result = fedmtl("dashboard", *([runs / "dea_s7"] if named else []), "--project", "p", "--out", out)
    assert result.code == 0, result.error
    assert result.out.splitlines()[-1].endswith("--project p --push")
    logged = {key for item in history for key in item}
    summary = {key for r in records if r["type"] == "summary" for key in r["summary"]["update"]}
    section = json.loads(out.read_text())["spec"]["section"]
    panels = [panel for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    shown = 0
    for panel in panels:
        config = panel["config"]
        if panel["viewType"] == "Run History Line Plot":
            assert config["xAxis"] == "round"
            assert config["metrics"] or any(re.search(config["metricRegex"], key) for key in logged)
            keys = set(config["metrics"])
        elif panel["viewType"] == "Bar Chart":
            keys = set()
            assert {
                key.removeprefix("summary_metrics.").removeprefix("summary:") for key in config["metrics"]
            } <= summary
        elif panel["viewType"] == "Media Browser":
            keys = set(config["mediaKeys"])
        else:
            assert "federation" in json.dumps(config)
            keys = {"federation"}
        if not named:  # no data set of the run has people
            keys = {key for key in keys if "parts" not in key}
        assert all(any(key == have or have.startswith(f"{key}.") for have in logged) for key in keys), panel
        shown += 1
    assert shown > 25
    columns = section["runSets"][0]["runFeed"]["columnOrder"]
    config = next(r["run"]["config"]["update"] for r in records if r["type"] == "run")
    for column in columns:
        kind, _, name = column.partition(":")
        assert kind in ("run", "tags") or name in summary or name.removesuffix(".value") in config, column
