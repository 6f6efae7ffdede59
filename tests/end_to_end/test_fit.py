"""Whole runs through the command line: what they leave behind, and that they repeat."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from fedmtl import storage
from fedmtl.checkpoint import Checkpoints
from fedmtl.client_state import file_name

from .comparing import same

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TASKS = "semseg", "depth", "normals", "edge", "saliency"

Rows = Callable[[Path], list[dict[str, Any]]]


def weights(run: Path) -> dict[str, Any]:
    """Everything that training changes, from the run's last checkpoint."""
    checkpoints = Checkpoints(run / "checkpoints")
    saved = checkpoints.load()
    kept = {name: storage.read(checkpoints.states / file_name(name, round)) for name, round in saved["clients"].items()}
    return {"server": saved["server"], "clients": kept, "last": saved["last"], "best": saved["best"]}


@pytest.mark.parametrize("experiment", ["scenes_local", "scenes_fedavg", "scenes_dea", "scenes_central_single"])
def test_the_plain_experiments_run(fit: Callable[..., Any], tmp_path: Path, rows: Rows, experiment: str) -> None:
    assert fit(experiment).code == 0
    run = tmp_path / "runs" / experiment
    done = rows(run)
    assert [row["round"] for row in done] == [1, 2]
    shared = experiment in ("scenes_fedavg", "scenes_dea")
    for row in done:
        assert all(np.isfinite(row[f"train/{task}/loss"]) for task in TASKS)
        assert (row["bytes/up"] > 0) == (row["bytes/down"] > 0) == shared
        assert row["server/refused"] == 0
    results = json.loads((run / "results.json").read_text())
    assert results["last"]["metrics"].keys() == set(TASKS)
    assert results["baseline"] is None
    sheet = np.asarray(Image.open(run / "figures" / "round_000002.png"))
    assert sheet.std() > 10
    assert (run / "unified" / "model.safetensors").exists() == shared
    assert not list(run.rglob("*.partial"))


def test_dea_uploads_less_than_fedavg(fit: Callable[..., Any], tmp_path: Path, rows: Rows) -> None:
    for experiment in ("scenes_fedavg", "scenes_dea"):
        fit(experiment, "--rounds", "1", "--model.channels", "8")
    up = {name: rows(tmp_path / "runs" / name)[0]["bytes/up"] for name in ("scenes_fedavg", "scenes_dea")}
    encoder = 5 * 4 * 207_000  # five clients' encoders in fp32; half of it is sent, with one bit an entry
    assert up["scenes_fedavg"] - up["scenes_dea"] == pytest.approx(encoder * (0.5 - 1 / 32), rel=0.01)


def test_the_same_seed_repeats_to_the_byte_and_another_does_not(
    fit: Callable[..., Any], tmp_path: Path, rows: Rows
) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert fit("scenes_dea", "--name", name, "--seed", seed).code == 0
    a, b, c = (tmp_path / "runs" / name for name in "abc")
    assert rows(a) == rows(b) != rows(c)
    assert (a / "figures" / "round_000002.png").read_bytes() == (b / "figures" / "round_000002.png").read_bytes()
    first, second = (load_file(run / "unified" / "model.safetensors") for run in (a, b))
    assert same(first, second)


def test_delta_m_compares_with_the_named_run(fit: Callable[..., Any], tmp_path: Path, rows: Rows) -> None:
    fit("scenes_local")
    baseline = tmp_path / "runs" / "scenes_local"
    result = fit("scenes_fedavg", "--baseline", str(baseline))
    assert "Δm" in result.out
    mine = json.loads((tmp_path / "runs" / "scenes_fedavg" / "results.json").read_text())
    theirs = json.loads((baseline / "results.json").read_text())
    expected = []
    for task, primary in theirs["primary"].items():
        b, m = (r["last"]["metrics"][task][primary["metric"]] for r in (theirs, mine))
        expected.append(100 * (m - b) / b * (1 if primary["higher_is_better"] else -1))
    assert mine["last"]["delta_m"]["mean"] == pytest.approx(np.mean(expected))
    assert rows(tmp_path / "runs" / "scenes_fedavg")[-1]["val/delta_m"] == pytest.approx(np.mean(expected))
    assert mine["baseline"]["name"] == "scenes_local"

    theirs["last"]["metrics"]["edge"]["odsF"] = 0.0  # no change against 0, and over fewer tasks it were another figure
    (tmp_path / "zero.json").write_text(json.dumps(theirs))
    assert fit("scenes_fedavg", "--baseline", str(tmp_path / "zero.json"), "--name", "b").code == 0
    found = json.loads((tmp_path / "runs" / "b" / "results.json").read_text())["last"]["delta_m"]
    assert set(found["tasks"]) == {"semseg", "depth", "normals", "saliency"}
    assert found["mean"] is None
    assert "val/delta_m" not in rows(tmp_path / "runs" / "b")[-1]


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_evaluate_gives_the_numbers_of_the_run(
    fit: Callable[..., Any], fedmtl: Callable[..., Any], tmp_path: Path, checkpoint: str
) -> None:
    fit("scenes_dea")
    run = tmp_path / "runs" / "scenes_dea"
    result = fedmtl("evaluate", run, "--checkpoint", checkpoint)
    assert result.code == 0
    results = json.loads((run / "results.json").read_text())
    for values in results[checkpoint]["metrics"].values():
        for value in values.values():
            assert f"{value:.4f}" in result.out


def test_a_run_is_not_overwritten_and_a_finished_one_is_shown_again(fit: Callable[..., Any], tmp_path: Path) -> None:
    assert fit("scenes_dea").code == 0
    metrics = (tmp_path / "runs" / "scenes_dea" / "metrics.jsonl").read_bytes()
    again = fit("scenes_dea")
    assert again.code == 2
    assert "--resume auto goes on with it" in again.error
    shown = fit("scenes_dea", "--resume", "auto")
    assert shown.code == 0
    assert "scenes_dea after round 2" in shown.out
    assert (tmp_path / "runs" / "scenes_dea" / "metrics.jsonl").read_bytes() == metrics


def test_a_folder_that_is_no_run_is_left_alone(fit: Callable[..., Any], tmp_path: Path) -> None:
    mine = tmp_path / "runs" / "scenes_dea" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    for words in ([], ["--resume", "auto"], ["--resume", "auto", "--server.min_clients", "9"]):
        result = fit("scenes_dea", *words)
        assert result.code == 2
        assert "is not the folder of a run" in result.error
    assert [path.name for path in mine.parent.iterdir()] == ["thesis.txt"]


def test_a_checkpoint_needs_neither_the_first_weights_nor_the_baseline(
    fit: Callable[..., Any], fedmtl: Callable[..., Any], tmp_path: Path
) -> None:
    import timm

    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_convnext").state_dict(), weights)
    assert fit("scenes_local").code == 0
    baseline = tmp_path / "runs" / "scenes_local"
    words = ["--model.weights", str(weights), "--baseline", str(baseline)]
    assert fit("scenes_dea", *words).code == 0
    weights.unlink()
    (baseline / "results.json").unlink()
    assert fit("scenes_dea", *words, "--resume", "auto").code == 0
    measured = fedmtl("evaluate", tmp_path / "runs" / "scenes_dea")
    assert measured.code == 0
    assert "delta_m" in measured.out
    wrong = fedmtl("evaluate", tmp_path / "runs" / "scenes_dea", "--model.channels", "16")
    assert wrong.code == 2
    assert "does not fit --model.channels 16" in wrong.error


def test_evaluate_takes_a_baseline(fit: Callable[..., Any], fedmtl: Callable[..., Any], tmp_path: Path) -> None:
    for experiment in ("scenes_local", "scenes_dea"):
        assert fit(experiment).code == 0
    runs = tmp_path / "runs"
    assert "delta_m" not in fedmtl("evaluate", runs / "scenes_dea").out
    assert "delta_m" in fedmtl("evaluate", runs / "scenes_dea", "--baseline", runs / "scenes_local").out


@pytest.mark.parametrize(
    "words",
    [
        ["--clients", "[{tasks: [depth], count: 2}, {tasks: [semseg, parts]}]", "--participation", "0.5"],
        ["--share", "encoder", "--local.keep_optimizer", "false"],
        ["--server.optimizer", "Adam", "--server.optimizer.lr", "0.01", "--upload.scope", "layer"],
        ["--local.algorithm", "FedProx", "--local.algorithm.mu", "0.1", "--local.clip_norm", "1"],
        ["--model.backbone", "test_efficientnet", "--model.norm", "batch", "--upload.rho", "0.1"],
        ["--fabric.precision", "bf16-mixed", "--pictures", "0", "--eval_every", "9"],
    ],
    ids=lambda words: words[0].strip("-"),
)
def test_unusual_configurations_run_and_resume(
    fit: Callable[..., Any], tmp_path: Path, rows: Rows, words: list[str]
) -> None:
    assert fit("scenes_dea", *words).code == 0
    run = tmp_path / "runs" / "scenes_dea"
    whole, end = rows(run), weights(run)
    assert all(np.isfinite(value) for value in whole[-1].values())
    (run / "checkpoints" / "round_000002.ckpt").unlink()
    assert fit("scenes_dea", *words, "--resume", "auto").code == 0
    assert rows(run) == whole
    assert same(weights(run), end)


def test_a_checkpoint_of_another_configuration_is_refused(fit: Callable[..., Any]) -> None:
    fit("scenes_dea")
    result = fit("scenes_dea", "--resume", "auto", "--seed", "5", "--local.optimizer.lr", "0.5")
    assert result.code == 2
    assert "seed (was 0, now 5)" in result.error
    assert "local.init_args.optimizer.init_args.lr (was 0.001, now 0.5)" in result.error


def test_the_saved_configuration_repeats_the_run(
    fit: Callable[..., Any], fedmtl: Callable[..., Any], tmp_path: Path, rows: Rows
) -> None:
    fit("scenes_dea")
    runs = tmp_path / "runs"
    assert fedmtl("fit", "--config", runs / "scenes_dea" / "config.yaml", "--name", "again").code == 0
    assert rows(runs / "scenes_dea") == rows(runs / "again")


def test_a_client_that_diverges_is_left_out_and_named(
    fit: Callable[..., Any], tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmtl.tasks import Depth

    monkeypatch.setattr(Depth, "loss", lambda self, output, target: output.sum() * float("nan"))
    result = fit("scenes_dea")
    assert result.code == 0
    assert "client depth" in result.out
    for row in rows(tmp_path / "runs" / "scenes_dea"):
        assert row["server/refused"] == 1
        assert row["train/depth/loss"] is None
        assert np.isfinite(row["val/depth/RMSE"])
    assert fit("scenes_dea", "--name", "strict", "--server.min_clients", "5").code == 2


@pytest.mark.parametrize("moment", ["in the first round", "in mid-round", "between rounds"])
@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(
    fit: Callable[..., Any], spawn: Callable[..., Any], tiny: Path, tmp_path: Path, rows: Rows, moment: str
) -> None:
    words = ["--local.optimizer.lr", "0.01", "--rounds", "6"]
    experiment = "scenes_local" if moment == "between rounds" else "scenes_dea"
    assert fit(experiment, *words, "--name", "whole").code == 0

    files = ["--config", EXPERIMENTS / f"{experiment}.yaml", "--config", tiny, "--tracker", "null"]
    run, log = tmp_path / "runs" / "killed", tmp_path / "log"
    process = spawn("fit", *files, *words, "--name", "killed", "--resume", "auto", log=log)
    awaited = {
        "in the first round": "epochs and steps: of a round",
        "in mid-round": "round 2/6",
        "between rounds": "round 3/6",
    }[moment]
    deadline = time.monotonic() + 60
    while not log.exists() or awaited not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)
    if moment != "between rounds":
        time.sleep(0.1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = len((run / "metrics.jsonl").read_text().splitlines()) if (run / "metrics.jsonl").exists() else 0
    assert before < 6

    assert fit(experiment, *words, "--name", "killed", "--resume", "auto").code == 0
    assert same(weights(run), weights(tmp_path / "runs" / "whole"))
    assert rows(run) == rows(tmp_path / "runs" / "whole")


def test_nyud_runs_from_a_folder(
    fedmtl: Callable[..., Any], tiny: Path, tmp_path: Path, nyud_root: Callable[..., Path], rows: Rows
) -> None:
    root = nyud_root(train=8, val=3, size=(48, 64))
    small = tmp_path / "small.yaml"
    small.write_text(
        tiny.read_text()
        .replace("train: 18", f"root: {root}")
        .replace("    val: 5\n", "")
        .replace("size: 32", "crop: [32, 48]")
    )
    for experiment in ("nyud_local", "nyud_dea"):
        words = ["--model.pretrained", "false", "--model.options", "null", "--tracker", "null", "--fabric.workers", "0"]
        result = fedmtl("fit", "--config", EXPERIMENTS / f"{experiment}.yaml", "--config", small, *words)
        assert result.code == 0, result.error
        assert {"val/semseg/mIoU", "val/depth/RMSE", "val/normals/mErr", "val/edge/odsF"} <= rows(
            tmp_path / "runs" / experiment
        )[-1].keys()
    for workers in ("0", "1"):
        whole = (root / "images" / "0003.png").read_bytes()
        (root / "images" / "0003.png").write_bytes(whole[:60])
        words[-1] = workers
        broken = fedmtl("fit", "--config", EXPERIMENTS / "nyud_dea.yaml", "--config", small, *words, "--name", "broken")
        (root / "images" / "0003.png").write_bytes(whole)
        assert broken.code == 2
        assert "0003.png: cannot be read" in broken.error
        assert len(broken.error.splitlines()) == 1
        assert not (tmp_path / "runs" / "broken").exists()
    (root / "depth" / "0001.npy").unlink()
    broken = fedmtl("fit", "--config", EXPERIMENTS / "nyud_dea.yaml", "--config", small, *words, "--name", "broken")
    assert broken.code == 2
    assert "0001.npy: no such file" in broken.error
    assert not (tmp_path / "runs" / "broken").exists()
    shutil.rmtree(root)
