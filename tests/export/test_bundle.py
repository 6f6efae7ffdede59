"""What others load gives what the model gives; formats come whole or not at all; only exports are ever replaced."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from fedmtl.errors import UserError
from fedmtl.export import Outcome, bundle, export, programs
from fedmtl.export.bundle import WRITERS
from fedmtl.prediction import Predictor
from fedmtl.prediction.folders import SYSTEM


def writes(text: str, name: str = "torch", difference: float = 0.0) -> Any:
    """A writer of a format that takes no time."""

    def write(model: Predictor, folder: Path, size: tuple[int, int]) -> Outcome:
        (folder / WRITERS[name].files[0]).write_text(text)
        return Outcome(name, difference=difference, size=size)

    return replace(WRITERS[name], write=write)


def files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file()}


def test_timm_gives_the_same_features(predictor: Predictor, tmp_path: Path) -> None:
    assert export(predictor, tmp_path / "out", formats=["timm"])[0].done
    assert sorted(p.name for p in (tmp_path / "out" / "timm").iterdir()) == ["config.json", "model.safetensors"]
    image = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    encoder = timm.create_model(f"local-dir:{tmp_path / 'out/timm'}", pretrained=True, features_only=True).eval()
    with torch.no_grad():
        for one, other in zip(predictor.model.encoder(image), encoder(image)[-4:], strict=True):
            assert torch.equal(one, other)


@pytest.mark.slow
def test_programs_give_the_same_outputs(predictor: Predictor, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    assert all(one.done for one in export(predictor, out, formats=["torch", "onnx"]))
    image = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = predictor.model(image)
        found = torch.export.load(out / "torch" / "model.pt2").module()(image)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)
    check_onnx(out / "onnx" / "model.onnx", image, wanted)


def check_onnx(path: Path, image: Tensor, wanted: Mapping[str, Tensor]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for name, value in zip(wanted, session.run(list(wanted), {"image": image.numpy()}), strict=True):
        torch.testing.assert_close(torch.from_numpy(value), wanted[name], atol=1e-4, rtol=1e-4)


def test_a_format_that_fails_leaves_nothing(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untraceable(*_: object) -> None:
        raise RuntimeError("can't be\ntraced")

    pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    monkeypatch.setitem(WRITERS, "timm", writes("", "timm"))
    monkeypatch.setitem(WRITERS, "onnx", writes("x", "onnx", float("nan")))
    monkeypatch.setattr(programs, "trace", untraceable)
    timm_, torch_, onnx_ = export(predictor, out)
    assert timm_.done
    assert torch_.reason == "can't be traced"
    assert "differs from the original by nan" in str(onnx_.reason)
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "timm"]
    assert "torch.export" not in (out / "README.md").read_text()


def test_what_is_not_installed_is_left_out_unless_asked_for(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "FOR_ONNX", ("onnx_of_another_world",))
    for name in ("timm", "torch"):
        monkeypatch.setitem(WRITERS, name, writes("", name))
    assert [one.format for one in export(predictor, tmp_path)] == ["timm", "torch"]
    monkeypatch.setitem(sys.modules, "onnx", None)
    (asked,) = export(predictor, tmp_path, formats=["onnx"])
    assert "onnx is not installed" in str(asked.reason)


def test_an_earlier_export_is_replaced_or_named(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = "`torch/` is of an earlier export"
    monkeypatch.setitem(WRITERS, "torch", writes("one"))
    export(predictor, tmp_path, formats=["torch"])
    monkeypatch.setitem(WRITERS, "torch", writes("two"))
    assert export(predictor, tmp_path, formats=["torch"])[0].done
    assert files(tmp_path)["torch/model.pt2"] == "two"
    assert earlier not in files(tmp_path)["README.md"]
    monkeypatch.setitem(WRITERS, "torch", writes("three", difference=1.0))
    timm_, torch_ = export(predictor, tmp_path, formats=["timm", "torch"])
    assert (timm_.done, torch_.done) == (True, False)
    assert files(tmp_path)["torch/model.pt2"] == "two"
    assert earlier in files(tmp_path)["README.md"]


@pytest.mark.parametrize("theirs", ["torch/mine.py", "README.md", "torch", "torch/model.pt2"])
def test_files_of_others_stay(
    theirs: str, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WRITERS, "torch", writes("", difference=1.0))  # not even begun
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).write_text("mine")
    with pytest.raises(UserError, match=f"holds {theirs.split('/')[0]} that no earlier export"):
        export(predictor, tmp_path, formats=["torch"])
    assert files(tmp_path) == {theirs: "mine"}


def test_what_was_added_to_an_earlier_export_stays(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WRITERS, "torch", writes("one"))
    export(predictor, tmp_path, formats=["torch"])
    for name in SYSTEM:
        (tmp_path / "torch" / name).touch()
    assert export(predictor, tmp_path, formats=["torch"])[0].done
    assert [path.name for path in (tmp_path / "torch").iterdir()] == ["model.pt2"]
    (tmp_path / "torch" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds torch that"):
        export(predictor, tmp_path, formats=["torch"])
    assert export(predictor, tmp_path, formats=["timm"])[0].done
    assert files(tmp_path)["torch/notes.txt"] == "mine"


def test_a_damaged_run_is_refused_before_anything_is_written(predictor: Predictor, tmp_path: Path) -> None:
    loop: dict[str, object] = {}
    loop["loop"] = loop
    predictor.run.config.update(loop)
    with pytest.raises(UserError, match="make no model card"):
        export(predictor, tmp_path / "out", formats=["timm"])
    assert not (tmp_path / "out").exists()


def test_odd_rows_of_a_federation(predictor: Predictor, tmp_path: Path) -> None:
    rows = [{"data": "a", "tasks": 5, "images": "x"}, {"data": "b", "tasks": ["depth"], "images": 3}, {"images": None}]
    predictor.run.federation.extend(rows)
    assert export(predictor, tmp_path, formats=["timm"])[0].done
    assert "- b, depth: 3\n" in (tmp_path / "README.md").read_text()
