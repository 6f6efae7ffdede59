"""`fedmtl export` writes a run's encoder and a card that says what the run's folder says (programs: tests/export)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import yaml

from fedmtl import prediction


def test_encoder_and_card(fit: Callable[..., Any], fedmtl: Callable[..., Any], runs: Path, tmp_path: Path) -> None:
    assert fit("scenes_dea", "--name", "a").code == 0
    run, out = runs / "a", tmp_path / "out"
    result = fedmtl("export", run, "--out", out, "--formats", "timm")
    assert result.code == 0, result.out + result.error
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
        "README.md",
        "timm/config.json",
        "timm/model.safetensors",
    }
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    encoder = timm.create_model(f"local-dir:{out / 'timm'}", pretrained=True, features_only=True).eval()
    with torch.no_grad():
        wanted = prediction.load(run, accelerator="cpu").model.encoder(image)
        assert all(torch.equal(*pair) for pair in zip(wanted, encoder(image)[-4:], strict=True))
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert {"federated-learning", "semseg"} <= set(front["tags"])
    assert "license" not in front
    results = yaml.safe_load((run / "results.json").read_text())
    assert f"{results['last']['metrics']['depth']['RMSE']:.4g}" in card
    assert "backbone: test_convnext" in card
    assert str(tmp_path) not in card
    (out / "timm" / "mine.py").touch()
    refused = fedmtl("export", run, "--out", out, "--formats", "timm")
    assert (refused.code, refused.error.count("\n")) == (2, 1)
    assert (out / "timm" / "mine.py").is_file()
