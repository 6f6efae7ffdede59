"""`fedmtl export`: what others load gives what the run's model gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

import fedmtl.prediction
from fedmtl.export import export, programs
from fedmtl.export.bundle import WRITERS
from fedmtl.models import UnifiedModel

pytestmark = pytest.mark.slow


@pytest.fixture
def run(fit: Callable[..., Any], runs: Path) -> Path:
    assert fit("scenes_dea", "--name", "a").code == 0
    return runs / "a"


def test_every_format(run: Path, fedmtl: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = fedmtl("export", run, "--out", tmp_path / "out")
    assert result.code == 0, result.out + result.error
    out = tmp_path / "out"
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
        "README.md",
        "timm/config.json",
        "timm/model.safetensors",
        "torch/model.pt2",
        "onnx/model.onnx",
    }
    model = original(run)
    image = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    encoder = timm.create_model(f"local-dir:{out / 'timm'}", pretrained=True, features_only=True).eval()
    with torch.no_grad():
        for one, other in zip(model.encoder(image), encoder(image)[-4:], strict=True):
            assert torch.equal(one, other)
        wanted = model(image)
        found = torch.export.load(out / "torch" / "model.pt2").module()(image)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)
    check_onnx(out / "onnx" / "model.onnx", image, wanted)
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert {"federated-learning", "semseg"} <= set(front["tags"])
    assert "license" not in front
    results = yaml.safe_load((run / "results.json").read_text())
    assert f"{results['last']['metrics']['depth']['RMSE']:.4g}" in card
    assert "backbone: test_convnext" in card
    assert str(tmp_path) not in card


def check_onnx(path: Path, image: torch.Tensor, wanted: dict[str, torch.Tensor]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for name, value in zip(wanted, session.run(list(wanted), {"image": image.numpy()}), strict=True):
        torch.testing.assert_close(torch.from_numpy(value), wanted[name], atol=1e-4, rtol=1e-4)


def original(run: Path) -> UnifiedModel:
    return fedmtl.prediction.load(run, accelerator="cpu").model


def test_a_format_that_fails_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def untraceable(*_: object) -> None:
        raise RuntimeError("can't be\ntraced")

    def off(*_: object) -> programs.Outcome:
        return programs.Outcome("onnx", difference=float("nan"))

    model, out = fedmtl.prediction.load(run), tmp_path / "out"
    (out / "torch").mkdir(parents=True)
    (out / "torch" / "earlier").touch()
    monkeypatch.setattr(programs, "trace", untraceable)
    monkeypatch.setitem(WRITERS, "onnx", type(WRITERS["onnx"])(off, 1.0))
    timm_, torch_, onnx_ = export(model, out)
    assert timm_.done
    assert not torch_.done
    assert not onnx_.done
    assert torch_.reason == "can't be traced"
    assert "differs from the original by nan" in str(onnx_.reason)
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "timm", "torch"]
    assert [p.name for p in (out / "torch").iterdir()] == ["earlier"]
    assert "torch.export" not in (out / "README.md").read_text()
