"""Every method through the real command line: it runs, resumes, and refuses what makes no sense."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from .comparing import same

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
METHODS = EXPERIMENTS / "methods"
# in test_fit and test_scale, or share nothing
OTHERS = {"scenes_local", "scenes_fedavg", "scenes_dea", "scenes_central_single", "scenes_thousands"}
NAMES = sorted(path.stem for path in EXPERIMENTS.glob("scenes_*.yaml") if path.stem not in OTHERS)
VARIANTS = sorted(path.stem for path in METHODS.glob("dea_*.yaml"))


def config(*names: str) -> list[str]:
    return [word for name in names for word in ("--config", str(METHODS / f"{name}.yaml"))]


def state(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints" / "round_000002.ckpt", weights_only=True)
    return {key: found[key] for key in ("server", "clients", "signs")}


def runs_and_resumes(fit: Callable[..., Any], rows: Any, run: Path, experiment: str, *words: str) -> list[Any]:
    """Two rounds at once, and the second again from the first's checkpoint."""
    result = fit(experiment, *words)
    assert result.code == 0, result.error
    whole, end = rows(run), state(run)
    assert all(np.isfinite(value) for row in whole for value in row.values())
    lines = (run / "diagnostics.jsonl").read_text()
    (run / "checkpoints" / "round_000002.ckpt").unlink()
    assert fit(experiment, *words, "--resume", "auto").code == 0
    assert rows(run) == whole
    assert same(state(run), end)
    assert (run / "diagnostics.jsonl").read_text() == lines
    return list(whole)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", NAMES)
def test_every_method_runs_is_diagnosed_and_resumes(
    fit: Callable[..., Any], rows: Any, tmp_path: Path, experiment: str
) -> None:
    words = [*config("diagnosed"), "--diagnostics.every", "1", "--pictures", "0"]
    whole = runs_and_resumes(fit, rows, tmp_path / "runs" / experiment, experiment, *words)
    for row in whole:
        assert row["bytes/up"] > 0
        assert row["bytes/down"] > 0
        assert row["server/refused"] == 0
        assert row["diag/step"] > 0
        assert row["diag/norm"] > 0
    if experiment == "scenes_ditto":
        assert all(np.isfinite(row["train/depth/personal_loss"]) for row in whole)
    personal = {f"scenes_{name}" for name in ("fedper", "fedrep", "ditto", "fedamp", "matfl", "fedhca2")}
    own = experiment in personal | {"scenes_widths", "scenes_modalities"}
    assert (tmp_path / "runs" / experiment / "unified").exists() != own


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_member_of_deas_family_runs_and_resumes(
    fit: Callable[..., Any], rows: Any, tmp_path: Path, variant: str
) -> None:
    words = [*config(variant, "diagnosed"), "--diagnostics.every", "1", "--pictures", "0", "--name", variant]
    whole = runs_and_resumes(fit, rows, tmp_path / "runs" / variant, "scenes_fedavg", *words)
    assert 0 < whole[0]["diag/kept_energy"] < 1
    assert 0 < whole[0]["diag/kept"] < 1
    detail = json.loads((tmp_path / "runs" / variant / "diagnostics.jsonl").read_text().splitlines()[0])
    assert detail["round"] == 1
    assert len(detail["mask_share"]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["scaffold", "fednova", "feddyn", "fedadam", "ties", "ditto", "fedhca2", "fedrep"])
def test_dea_goes_on_top_of_any_method(fit: Callable[..., Any], rows: Any, tmp_path: Path, method: str) -> None:
    up = []
    for name, more in (("alone", []), ("masked", ["dea"])):
        words = [*config(*more), "--name", name, "--rounds", "1", "--pictures", "0"]
        assert fit(f"scenes_{method}", *words).code == 0
        up.append(rows(tmp_path / "runs" / name)[0]["bytes/up"])
    assert up[1] < up[0]


@pytest.mark.parametrize(
    ("experiment", "words", "message"),
    [
        ("scenes_pcgrad", config("overlap"), "server.aggregator: rescale: overlap averages each coordinate"),
        ("scenes_matfl", config("scaffold"), "local.algorithm: Scaffold is for one global model, and MaTFL has none"),
        ("scenes_fedamp", config("ditto"), "local.algorithm: Ditto is for one global model, and FedAMP has none"),
        ("scenes_fednova", config("overlap"), "local.algorithm: FedNova scales whole updates"),
        ("scenes_widths", config("fednova"), "local.algorithm: FedNova scales whole updates"),
        ("scenes_task_arithmetic", config("overlap"), "server.aggregator: rescale: overlap averages each coordinate"),
        ("scenes_krum", ["--participation", "0.6"], "server.aggregator needs 5 clients, but only 3 train in a round"),
        ("scenes_local", config("krum"), "server.aggregator: nothing is sent with share: none"),
        ("scenes_local", config("fedadam"), "server.optimizer: nothing is sent with share: none"),
        ("scenes_fedavg", ["--clients", "[{tasks: [depth], input: depth}]"], "depth is also what they learn"),
        ("scenes_fedhca2", config("overlap"), "upload: rescale: overlap is for a mean over clients"),
        ("scenes_widths", config("scaffold"), "local.algorithm: Scaffold exchanges vectors of one architecture"),
        ("scenes_widths", config("cagrad"), "server.aggregator: clients of another architecture lack some coordinates"),
        ("scenes_modalities", config("fedamp"), "clients: FedAMP mixes models of one architecture only"),
        ("scenes_fedrep", ["--share", "model"], "local.algorithm: FedRep keeps heads at their clients; set share"),
        ("scenes_local", config("scaffold"), "local.algorithm: Scaffold corrects shared parts"),
        ("scenes_local", config("fednova"), "local.algorithm: FedNova changes how updates are averaged"),
        ("scenes_local", config("feddyn"), "local.algorithm: FedDyn corrects shared parts"),
        ("scenes_local", config("ditto"), "local.algorithm: Ditto pulls towards a global model"),
        ("scenes_local", config("fedhca2"), "server: nothing is sent with share: none"),
        ("scenes_local", config("diagnosed"), "diagnostics: nothing is sent with share: none"),
        ("scenes_dea", ["--upload.rho", "LayerRho", "--upload.rho.rho_by_pattern", "{stem: 1}"], "needs scope"),
        ("scenes_dea", ["--upload.select", "any"], "select"),
        ("scenes_fedavg", ["--clients", "[{tasks: [depth]}, {tasks: [edge], input: sound}]"], "clients[1].input"),
        (
            "scenes_fedavg",
            ["--clients", "[{tasks: [depth]}, {tasks: [edge], private: ['*nothing*'], input: depth}]"],
            "no tensor of the client fits '*nothing*'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    fit: Callable[..., Any], tmp_path: Path, experiment: str, words: list[str], message: str
) -> None:
    result = fit(experiment, *words)
    assert result.code == 2
    assert message in result.error
    assert len(result.error.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_the_table_says_how_much_each_client_shares(
    fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    clients = (
        "[{tasks: [depth]}, {tasks: [edge], input: normals}, {tasks: [semseg], match: leading, model: "
        "{class_path: fedmtl.models.UnifiedModel, init_args: {backbone: test_convnext2, channels: 8}}}]"
    )
    result = fit("scenes_fedavg", "--clients", clients, "--rounds", "1", "--name", "mixed")
    assert result.code == 0, result.error
    assert "shares" in result.out
    saved = {row["client"]: row for row in json.loads((tmp_path / "runs" / "mixed" / "federation.json").read_text())}
    assert saved["depth"]["shares"] == "100%"
    assert saved["edge"]["input"] == "normals"
    assert 90 < int(saved["edge"]["shares"].strip("%")) < 100
    assert int(saved["semseg"]["shares"].strip("%")) < 90


def test_a_backbone_of_another_family_is_refused(fit: Callable[..., Any]) -> None:
    other = "{class_path: fedmtl.models.UnifiedModel, init_args: {backbone: resnet18, channels: 8}}"
    result = fit("scenes_fedavg", "--clients", f"[{{tasks: [depth]}}, {{tasks: [edge], model: {other}}}]")
    assert result.code == 2
    assert "clients[1].model: its encoder has no tensor in common with the server's" in result.error
