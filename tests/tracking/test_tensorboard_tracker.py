import builtins
import json
from pathlib import Path

import numpy as np
import pytest

from fedmtl.errors import UserError
from fedmtl.tracking import RunInfo, TensorBoard

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIG = {"name": "a", "seed": 0, "clients": [{"tasks": ["depth"]}], "data": {"class_path": "fedmtl.data.Scenes"}}
CLIENTS = [{"client": "depth", "data": "scenes", "tasks": ["depth"], "images": 4, "ids": ["secret"]}]


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    (tmp_path / "federation.json").write_text(json.dumps(CLIENTS))
    return RunInfo("a", tmp_path, CONFIG)


def read(info: RunInfo) -> EventAccumulator:
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(info.directory / "tensorboard"), size_guidance=everything).Reload()


def run(info: RunInfo, rounds: range, offset: float = 0, *, failed: bool = False) -> None:
    tracker = TensorBoard()
    tracker.start(info)
    for round in rounds:
        tracker.pictures(round, {"depth": [np.full((8, 24, 3), round, np.uint8)] * 2})
        tracker.log({"round": round, "val/depth/RMSE": round + offset, "train/depth/loss": None})
    tracker.finish({"best/depth/RMSE": 1.0, "best/delta_m": None}, failed=failed)


def steps(events: EventAccumulator, tag: str) -> list[int]:
    return [event.step for event in events.Scalars(tag)]


def test_scalars_pictures_and_texts_are_read_back(info: RunInfo) -> None:
    run(info, range(1, 4))
    events = read(info)
    assert [(e.step, e.value) for e in events.Scalars("val/depth/RMSE")] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert events.Tags()["scalars"] == ["val/depth/RMSE", "best/depth/RMSE"]
    assert events.Tags()["images"] == ["pictures/depth/0", "pictures/depth/1"]
    assert [(e.step, e.width, e.height) for e in events.Images("pictures/depth/1")] == [(n, 24, 8) for n in (1, 2, 3)]
    (config,) = (e.tensor_proto.string_val[0].decode() for e in events.Tensors("config/text_summary"))
    assert "    seed: 0\n" in config
    (federation,) = (e.tensor_proto.string_val[0].decode() for e in events.Tensors("federation/text_summary"))
    assert federation.splitlines()[-1] == "| depth | scenes | depth | 4 |"
    assert "secret" not in federation
    assert "_hparams_/experiment" in events.summary_metadata


def test_a_run_that_goes_on_replaces_what_it_does_again(info: RunInfo) -> None:
    run(info, range(1, 5), failed=True)
    run(info, range(3, 6), offset=0.5)  # goes on from a checkpoint after round 2
    events = read(info)
    assert [(e.step, e.value) for e in events.Scalars("val/depth/RMSE")] == [
        (1, 1),
        (2, 2),
        (3, 3.5),
        (4, 4.5),
        (5, 5.5),
    ]
    assert [e.step for e in events.Images("pictures/depth/0")] == [1, 2, 3, 4, 5]
    assert len(events.Tensors("config/text_summary")) == 1
    run(info, range(1, 3))  # or starts anew, where there was no checkpoint
    events = read(info)
    assert steps(events, "val/depth/RMSE") == [1, 2]
    assert len(events.Tensors("config/text_summary")) == 1


def test_a_run_that_changes_its_tracker_on_the_way(info: RunInfo) -> None:
    run(info, range(3, 5))
    assert steps(read(info), "val/depth/RMSE") == [3, 4]
    assert len(read(info).Tensors("config/text_summary")) == 1


def test_a_run_without_a_round_leaves_nothing(info: RunInfo) -> None:
    run(info, range(0))
    assert not (info.directory / "tensorboard").exists()


def test_without_the_package_one_line_says_what_to_install(info: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: object, **more: object) -> object:
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r'pip install -e ".\[tensorboard\]"') as caught:
        TensorBoard().start(info)
    assert "\n" not in str(caught.value)
