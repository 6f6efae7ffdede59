"""The display's state: what is known of a run, how long it will take, who is shown where not all fit."""

import math
from typing import Any

import pytest

from fedmtl.delta_m import Primary
from fedmtl.tracking.display.progress import MANY_CLIENTS, Member, Progress, time_left

PRIMARY = {"semseg": Primary("mIoU", True), "depth": Primary("RMSE", False)}


def federation(count: int, **more: Any) -> Progress:
    """So many clients of each task and one with both, of 4 steps each."""
    tasks = [("semseg",), ("depth",)] * count + [("semseg", "depth")]
    clients = {f"{'+'.join(own)}_{i}": Member(own, 4) for i, own in enumerate(tasks)}
    return Progress(rounds=10, steps=4 * len(clients), primary=PRIMARY, clients=clients, **more)


def train(progress: Progress, name: str, loss: float = 1.0, steps: int = 4) -> None:
    progress.start_client(name)
    for _ in range(steps):
        progress.step()
    if steps == 4:
        progress.end_client(loss)


def test_time_left_is_the_usual_time_of_what_is_ahead() -> None:
    assert time_left([], [], ahead=[True]) is None
    # median 3, the first left out; evaluations usually take 2
    assert time_left([50, 3, 2, 90, 3], [9, 2, 2], ahead=[False, True, False]) == 3 + 5 + 3
    assert time_left([7], [], ahead=[True, True]) == 14
    assert time_left([9, 3], [1], ahead=[False, True], spent=2) == 1 + 4
    assert time_left([9, 3], [1], ahead=[False, True], spent=100) == 4  # a round that hangs is not made up for
    assert time_left([9, 3], [1], ahead=[]) == 0
    assert time_left([1.0] * 50 + [5.0] * 9, [], ahead=[False]) == 5  # only the last few count


def test_rounds_and_evaluations_are_timed_apart() -> None:
    progress = federation(1, eval_every=2)
    for round, (start, row) in enumerate(
        [(0, {"time/train": 8}), (10, {"time/train": 8, "time/evaluate": 3}), (30, {"time/train": 9})], start=1
    ):
        progress.start_round(round, start)
        progress.end_round({"round": round, **row}, start + (20 if "time/evaluate" in row else 10))
    assert progress.times == [10, 8, 10]
    assert progress.evaluations == [12]  # with pictures and all else that follows an evaluation
    assert progress.left == 7 * 9 + 4 * 12  # evaluations after rounds 4, 6, 8, 10
    progress.start_round(4, 40)
    progress.now = 45
    assert progress.left == 7 * 9 + 4 * 12 - 5


def test_share_counts_steps() -> None:
    progress = federation(1)
    assert progress.share == 0
    progress.start_round(1, 0.0)
    train(progress, "semseg_0")
    train(progress, "depth_1", steps=2)
    assert progress.share == pytest.approx(6 / 12 / 10)
    progress.end_round({"round": 1}, 1.0)
    assert progress.share == pytest.approx(1 / 10)
    progress.start_round(2, 1.0)
    assert progress.share == pytest.approx(1 / 10)


def test_one_that_goes_on_knows_what_was() -> None:
    progress = federation(1)
    progress.note({"round": 3, "train/semseg_0/loss": 2.0, "val/semseg/mIoU": 30.0, "bytes/up": 7, "bytes/down": 9})
    progress.start_round(4, 0.0)
    assert (progress.share, progress.left) == (pytest.approx(0.3), None)
    progress.end_round({"round": 4, "train/semseg_0/loss": None, "val/semseg/mIoU": 20.0, "bytes/up": 1}, 1.0)
    assert (progress.up, progress.down, progress.metrics["semseg"], progress.best("semseg")) == (8, 9, [30, 20], 30)
    assert progress.lines(9)[0].losses == [2.0, None]


def test_best_follows_the_metric() -> None:
    progress = federation(1)
    for value in (2.0, math.nan, 1.0, 3.0):
        progress.note({"round": 1, "val/semseg/mIoU": value, "val/depth/RMSE": value})
    assert (progress.best("semseg"), progress.best("depth")) == (3.0, 1.0)


def test_who_trained_elsewhere_or_not_at_all() -> None:
    progress = federation(1)
    progress.start_round(1, 0.0)
    train(progress, "semseg_0", 1.5)
    assert [line.state for line in progress.lines(3)] == ["trained", "waiting", "waiting"]
    progress.end_round({"round": 1, "train/semseg_0/loss": 1.5, "train/depth_1/loss": 2.5}, 1.0)
    assert [(line.state, line.done) for line in progress.lines(3)] == [("trained", 4), ("trained", 4), ("absent", 0)]


def test_tasks_of_a_client_are_shown_where_there_is_room() -> None:
    progress = federation(1)
    both = "train/semseg+depth_2"
    progress.note({"round": 1, f"{both}/loss": 3.0, f"{both}/semseg": 1.0, f"{both}/depth": 2.0})
    progress.note({"round": 1, f"{both}/personal_loss": 9.0})
    assert [(line.name, line.losses) for line in progress.lines(5)[2:]] == [
        ("semseg+depth_2", [3.0]),
        ("  semseg", [1.0]),
        ("  depth", [2.0]),
    ]
    assert len(progress.lines(4)) == 3


def test_losses_of_tasks_are_of_the_rounds_of_their_client() -> None:
    progress = federation(1)
    both = "train/semseg+depth_2"
    progress.note({"round": 1, f"{both}/loss": 3.0, f"{both}/semseg": 1.0, f"{both}/depth": 2.0})
    progress.start_round(2, 0.0)
    train(progress, "semseg+depth_2", 2.5)
    progress.end("stopped", 1.0)
    assert [line.losses for line in progress.lines(5)[2:]] == [[3.0, 2.5], [1.0, None], [2.0, None]]
    progress.note({"round": 2, f"{both}/loss": 2.5, f"{both}/semseg": 0.5, f"{both}/depth": 2.0})
    assert [line.losses for line in progress.lines(5)[2:]] == [[3.0, 2.5], [1.0, 0.5], [2.0, 2.0]]


@pytest.mark.parametrize("count", [4, MANY_CLIENTS])
def test_many_clients_share_rows_by_their_tasks(count: int) -> None:
    progress = federation(count)
    progress.start_round(1, 0.0)
    train(progress, "semseg_0", 2.0)
    train(progress, "semseg_2", 4.0)
    train(progress, "depth_1", steps=1)
    semseg, depth, both = progress.lines(5)
    assert (semseg.name, semseg.done, semseg.total, semseg.state) == (f"{count} × semseg", 2, count, "waiting")
    assert (depth.name, depth.done, depth.total, depth.state) == (f"{count} × depth", 0, count, "training")
    assert both.name == f"semseg+depth_{2 * count}"
    if count <= MANY_CLIENTS // 3:
        assert semseg.losses == [3.0]
    progress.end_round({"round": 1, "train/semseg/loss": 3.5} if count == MANY_CLIENTS else {"round": 1}, 1.0)
    assert progress.lines(5)[0].losses == ([3.5] if count == MANY_CLIENTS else [3.0])
    assert progress.lines(2)[-1].name == depth.name
    assert len(progress.lines(1)) == 1


def test_the_window_of_kinds_holds_the_one_that_trains() -> None:
    clients = {f"c{i}{j}": Member((f"t{i}",), 1) for i in range(9) for j in range(2)}
    progress = Progress(rounds=1, steps=18, primary={}, clients=clients)
    progress.start_round(1, 0.0)
    for name in ("c00", "c41", "c80"):
        progress.start_client(name)
        lines = progress.lines(3)
        assert len(lines) == 3
        assert f"t{name[1]}" in [line.tasks[0] for line in lines if line.state == "training"]
        progress.end_client(1.0)


def test_latest_losses_in_the_order_of_clients() -> None:
    progress = federation(2)
    progress.start_round(1, 0.0)
    train(progress, "depth_1", 5.0)
    row = {"round": 1, "train/semseg_0/loss": 1.0, "train/depth_1/loss": 5.0, "train/depth_3/loss": 7.0}
    progress.end_round(row, 1.0)
    assert list(progress.latest(8).items()) == [("semseg_0", 1.0), ("depth_1", 5.0), ("depth_3", 7.0)]
    assert progress.latest(2) == {"semseg": 1.0, "depth": 6.0}
