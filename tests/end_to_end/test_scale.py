"""Many clients and encoded uploads through the real command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from fedmtl.tracking.display import MANY_CLIENTS

Fit = Callable[..., Any]
MANY = ["--data.init_args.train=80", "--rounds=3", "--eval_every=3", "--participation=0.3", "--server.min_clients=1"]


def groups(count: int) -> str:
    return f"[{{tasks: [semseg], count: {count}}}, {{tasks: [depth, normals], count: {count}}}]"


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_many_clients_are_logged_and_shown_by_their_tasks(fit: Fit, tmp_path: Path) -> None:
    result = fit("scenes_thousands", "--clients", groups(40), *MANY)
    assert result.code == 0, result.error
    assert "80 clients" in result.out
    assert result.out.count("40 clients") == 2  # a row for those that are alike
    assert "semseg-17" not in result.out
    run = tmp_path / "runs" / "scenes_thousands"
    assert len(json.loads((run / "federation.json").read_text())) == 80 > MANY_CLIENTS
    answers = []
    for row in rows(run):
        losses = [key for key in row if key.startswith("train/")]
        assert set(losses) <= {f"train/{who}" for who in ("semseg/loss",)} | {
            f"train/depth+normals/{name}" for name in ("loss", "depth", "normals")
        }
        answers.append(24 - sum(row[f"server/{fault}"] for fault in ("dropped", "failed", "late")))
    assert min(answers) < 24  # the experiment has faults
    assert not list((run / "checkpoints" / "states").glob("*"))  # and clients that keep nothing


def test_states_on_disk_are_files_of_the_clients_that_trained(fit: Fit, tmp_path: Path) -> None:
    words = ["--clients", groups(10), *MANY, "--local.keep_optimizer=true", "--faults=null", "--checkpoint_every=1"]
    for states in ("memory", "disk"):
        assert fit("scenes_thousands", *words, "--name", states, "--states", states).code == 0
    runs = [tmp_path / "runs" / states for states in ("memory", "disk")]
    files = [sorted(path.name for path in (run / "checkpoints" / "states").iterdir()) for run in runs]
    assert files[0] == files[1]
    assert 6 <= len(files[0]) < 3 * 6 + 1  # six clients a round, the last checkpoints' alone
    for name in files[0]:
        one, other = ((run / "checkpoints" / "states" / name).read_bytes() for run in runs)
        assert one == other
    models = [(run / "unified" / "model.safetensors").read_bytes() for run in runs]
    assert models[0] == models[1]


def test_half_the_bytes_give_nearly_the_same_model(fit: Fit, tmp_path: Path) -> None:
    models, sizes = {}, {}
    for values in ("fp32", "bf16", "fp16"):
        assert fit("scenes_fedavg", "--name", values, "--payload", values, "--rounds=1").code == 0
        run = tmp_path / "runs" / values
        models[values] = safetensors.torch.load_file(run / "unified" / "model.safetensors")
        sizes[values] = rows(run)[0]["bytes/up"]
    for values, exact in (("bf16", 2**-8), ("fp16", 2**-11)):
        assert sizes[values] == pytest.approx(sizes["fp32"] / 2, rel=0.01)
        differences = [(models[values][name] - value).abs().max() for name, value in models["fp32"].items()]
        assert 0 < max(differences) < 0.05 * exact  # of updates of a few hundredths
    # a resumed run has to send as the first did
    result = fit("scenes_fedavg", "--name", "fp16", "--payload", "fp32", "--rounds=1", "--resume=auto")
    assert result.code == 2
    assert "payload (was fp16, now fp32)" in result.error
