"""Δm and its baseline."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fedmtl.delta_m import Primary, complete_mean, delta_m, load_baseline, mean
from fedmtl.errors import UserError

PRIMARY = {"semseg": Primary("mIoU", True), "depth": Primary("RMSE", False)}
VALIDATION = {"data": "scenes", "images": 5}


def only(*tasks: str) -> dict[str, Primary]:
    return {task: PRIMARY[task] for task in tasks}


def results(**changes: Any) -> dict[str, Any]:
    metrics = {"semseg": {"mIoU": 40.0}, "depth": {"RMSE": 0.6, "other": 1.0}}
    primary = {name: {"metric": p.metric, "higher_is_better": p.higher_is_better} for name, p in PRIMARY.items()}
    last = {"round": 3, "metrics": metrics}
    return {"name": "alone", "primary": primary, "validation": VALIDATION, "last": last} | changes


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"semseg": 44.0, "depth": 0.5}, {"semseg": 10.0, "depth": 0.0}),
        ({"semseg": 36.0, "depth": 0.4}, {"semseg": -10.0, "depth": 20.0}),
        ({"semseg": 40.0, "depth": 0.75}, {"semseg": 0.0, "depth": -50.0}),
    ],
)
def test_better_is_positive_whatever_the_metrics_direction(values: Any, expected: Any) -> None:
    assert delta_m(values, {"semseg": 40.0, "depth": 0.5}, PRIMARY) == pytest.approx(expected)


def test_a_negative_baseline_keeps_the_sign_of_better() -> None:
    assert delta_m({"depth": -1.0}, {"depth": -2.0}, PRIMARY) == pytest.approx({"depth": -50.0})


@pytest.mark.parametrize("baseline", [{"semseg": 0.0, "depth": 0.5}, {"depth": 0.5}])
def test_tasks_without_a_usable_baseline_are_left_out(baseline: dict[str, float]) -> None:
    changes = delta_m({"semseg": 40.0, "depth": 0.25}, baseline, PRIMARY)
    assert changes == pytest.approx({"depth": 50.0})
    assert mean(changes) == pytest.approx(50.0)


def test_the_mean_weighs_tasks_alike_and_is_none_without_tasks() -> None:
    assert mean({"a": 10.0, "b": -4.0, "c": 0.0}) == pytest.approx(2.0)
    assert mean({}) is None


@pytest.mark.parametrize("worse", [{}, {"b": math.nan}, {"b": math.inf}])
def test_the_complete_mean_is_of_all_tasks_or_none(worse: dict[str, float]) -> None:
    assert complete_mean({"a": 10.0, "b": -4.0, "more": 90.0}, ["a", "b"]) == pytest.approx(3.0)
    assert complete_mean({"a": 10.0} | worse, ["a", "b"]) is None
    assert complete_mean({"a": 10.0}, []) is None


@pytest.mark.parametrize("name", ["", "results.json"])
def test_a_baseline_is_a_runs_folder_or_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results()))
    found = load_baseline(str(tmp_path / name), only("depth", "semseg"), VALIDATION)
    assert found == {"name": "alone", "metrics": {"depth": 0.6, "semseg": 40.0}}
    assert load_baseline(str(tmp_path / name), only("depth"), VALIDATION)["metrics"] == {"depth": 0.6}


@pytest.mark.parametrize("name", ["", "results.json", "no/such/folder"])
def test_a_missing_baseline_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^baseline: .* is not there"):
        load_baseline(str(tmp_path / name), only("depth"), VALIDATION)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "3",
        "null",
        "[]",
        "{}",
        json.dumps(results(last=None)),
        json.dumps(results(primary=[])),
        json.dumps(results(last={"metrics": {}})),
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_results_file_is_refused(text: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="^baseline: .* is not the results.json of a finished run"):
        load_baseline(str(tmp_path), only("depth"), VALIDATION)


def test_a_task_that_the_baseline_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results()))
    with pytest.raises(UserError, match="has no result for normals, edge; it has semseg, depth$"):
        load_baseline(
            str(tmp_path), {**PRIMARY, "normals": Primary("mErr", False), "edge": Primary("odsF", True)}, VALIDATION
        )


@pytest.mark.parametrize(
    ("primary", "validation", "message"),
    [
        ({"depth": Primary("absRel", False)}, VALIDATION, "measures depth by RMSE, this run by absRel"),
        ({"depth": Primary("RMSE", False, "by image")}, VALIDATION, "by RMSE, this run by RMSE .by image."),
        ({"depth": Primary("RMSE", True)}, VALIDATION, "measures depth by RMSE, this run by another metric"),
        (only("depth"), {"data": "nyud", "images": 5}, "was measured on"),
        (only("depth"), {"data": "scenes", "images": 6}, "was measured on"),
    ],
)
def test_a_baseline_that_cannot_be_compared_with_is_refused(
    primary: dict[str, Primary], validation: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results()))
    with pytest.raises(UserError, match=message):
        load_baseline(str(tmp_path), primary, validation)
