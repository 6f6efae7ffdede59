"""The model card says what the run's folder says, and no name in it acts as Markdown, HTML or YAML."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedmtl.data import ValTransform
from fedmtl.delta_m import Primary
from fedmtl.export import Outcome
from fedmtl.export.card import _results, escape, fenced, model_card
from fedmtl.models import UnifiedModel
from fedmtl.prediction import Heads, Predictor
from fedmtl.runs import Run
from fedmtl.tasks import Depth, SemSeg

EVIL = "<script>|`x`|](javascript:1)\n---\n# own"


def card_of(client: str | None = None, share: str = "model", tasks: Sequence[str] = ("semseg", "depth")) -> str:
    config: dict[str, Any] = {
        "name": EVIL,
        "share": share,
        "data": {"init_args": {"root": "/home/me/secret/nyud", "cache": "/home/me"}},
        "out": "/home/me/runs",
        "note": "```\n</details>",
    }
    rows = [
        {"round": 1, "val/semseg/mIoU": 10.0, "val/semseg/delta": -5.0, "val/depth/RMSE": 1.5, "val/depth/delta": 2.0},
        {"round": 2, "val/semseg/mIoU": 20.0, "val/semseg/delta": 3.0, "val/depth/RMSE": 1.25, "val/depth/delta": 4.0},
    ]
    primary = {"semseg": Primary("mIoU", True, "2 classes"), "depth": Primary("RMSE", False)}
    federation = [
        {"client": "a", "data": EVIL, "tasks": ["semseg", "depth"], "images": 12},
        {"client": EVIL, "data": "scenes", "tasks": ["semseg"], "images": 5},
    ]
    run = Run(Path("a"), EVIL, config, rows, None, federation, primary, {"scenes": 7})
    torch.manual_seed(0)
    every = {"semseg": SemSeg(num_classes=2, class_names=["wall", EVIL]), "depth": Depth()}
    own = {name: every[name] for name in tasks}
    model = UnifiedModel({name: t.channels for name, t in own.items()}, backbone="test_convnext", channels=8)
    heads = Heads("scenes", own, ValTransform(size=(32, 48)), (32, 48))
    outcome = Outcome("torch", difference=2e-6, size=(32, 48), free=("batch",))
    return model_card(Predictor(model, [heads], run=run, round=2, client=client), [outcome])


@pytest.fixture
def card() -> str:
    return card_of()


def test_numbers(card: str) -> None:
    assert "| semseg | mIoU ↑ (2 classes) | 20 | +3.00 % | 20 | +3.00 % |" in card
    assert "| depth | RMSE ↓ | 1.25 | +4.00 % | 1.25 | +4.00 % |" in card
    assert "last +3.50 %, best +3.50 %" in card
    assert "scenes (7 pictures)" in card
    assert "pad with zeros on all sides to at least 32×48" in card
    assert "any batch of 32×48 pixels" in card
    assert "not finished: 2 of 2" in card


def test_names_are_only_names(card: str) -> None:
    front, body = card.split("---\n", 2)[1:]
    assert yaml.safe_load(front)["tags"][-2:] == ["semseg", "depth"]
    prose = body.split("````yaml")[0]
    assert "<script>" not in prose
    assert "](javascript" not in prose
    assert "\n# own" not in prose
    assert [line for line in prose.splitlines() if line.startswith("# ")] == [f"# {escape(EVIL)}"]
    assert "/home/me" not in card
    assert "root: nyud" in card
    assert card.count("\n````") == 2  # the configuration holds a fence of three


@pytest.mark.parametrize("share", ["encoder", "none"])
def test_a_clients_own_model(share: str) -> None:
    card = card_of(EVIL, share, ["semseg"])
    assert (
        f"# {escape(EVIL)}, client {escape(EVIL)}\n\nThe model of client {escape(EVIL)} for 1 dense vision task, "
        in card
    )
    assert "| semseg | mIoU" in card
    assert "| depth |" not in card
    assert "mean over the clients that have the task, not that of this model alone." in card
    assert "Δm" not in card
    alone = share == "none"
    assert ("trained on its own pictures and labels alone" in card) == alone
    assert ("- federated-learning" in card) != alone
    assert ("1 client, " in card) == alone
    assert ("Of these 5 are this client's own." in card) != alone


def test_the_unified_model_with_some_of_its_heads() -> None:
    card = card_of(tasks=["semseg"])
    assert "One model for 1 dense vision task, trained across clients" in card
    assert "| depth |" not in card
    assert "Δm" not in card
    assert "mean over the clients" not in card


@given(st.text())
def test_escape(text: str) -> None:
    found = escape(text)
    assert "\n" not in found
    assert len(found) <= 400
    for mark in "|<`*[":
        assert f"\\{mark}" in found or mark not in found


@given(st.text(alphabet="`a\n", max_size=40))
def test_fences_hold(text: str) -> None:
    block = fenced(text)
    fence = block.split("\n")[0]
    assert block.endswith(fence)
    assert fence not in text


def test_delta_m_is_over_all_tasks_or_left_out() -> None:
    row = {"round": 1, "val/semseg/mIoU": 20.0, "val/semseg/delta": 3.0, "val/depth/RMSE": None}
    primary = {"semseg": Primary("mIoU", True), "depth": Primary("RMSE", False)}
    text = _results(Run(Path("a"), "a", {"baseline": "b"}, [row], None, [], primary, None), primary)
    assert "| depth | RMSE ↓ | – | – | – | – |" in text
    assert text.endswith("Δm is left out: not every task has a finite Δ.")
