"""TensorBoard by configuration: a run that is killed and gone on with, read back from its event files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmtl.tracking.tensorboard_tracker import TensorBoard

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TRACKED = ("--tracker", "fedmtl.tracking.TensorBoard", "--pictures", "1", "--checkpoint_every", "2")


@pytest.mark.slow
def test_every_round_once(go: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TensorBoard.log

    def interrupted(self: TensorBoard, metrics: Any) -> None:
        log(self, metrics)
        if metrics["round"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TensorBoard, "log", interrupted)
        assert go("a", *TRACKED).code == 130
    result = go("a", *TRACKED, "--resume", "auto")
    assert result.code == 0, result.error
    assert "after round 2" in result.out

    everything = {"scalars": 0, "images": 0, "tensors": 0}
    events = EventAccumulator(str(runs / "a" / "tensorboard"), size_guidance=everything).Reload()
    rows = [json.loads(line) for line in (runs / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    for key in ("train/depth/loss", "bytes/up", "val/depth/RMSE"):
        wanted = [(row["round"], pytest.approx(row[key])) for row in rows if key in row]
        assert [(event.step, event.value) for event in events.Scalars(key)] == wanted
    assert [event.step for event in events.Images("pictures/depth/0")] == [2, 4]
    assert len(events.Tensors("federation/text_summary")) == 1
    results = json.loads((runs / "a" / "results.json").read_text())
    assert events.Scalars("best/depth/RMSE")[-1].value == pytest.approx(results["best"]["metrics"]["depth"]["RMSE"])
