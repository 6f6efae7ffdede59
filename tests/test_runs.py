"""A run's folder, read while it goes on and after, whatever is in it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmtl.delta_m import Primary
from fedmtl.errors import UserError
from fedmtl.runs import find, number, read

PRIMARY = {
    "semseg": {"metric": "mIoU", "higher_is_better": True, "protocol": "exact"},
    "depth": {"metric": "RMSE", "higher_is_better": False, "protocol": ""},
}


def row(round: int, semseg: float | None = None, depth: float | None = None, **more: Any) -> dict[str, Any]:
    measured = {"val/semseg/mIoU": semseg, "val/depth/RMSE": depth, "val/depth/absRel": 0.1}
    return {"round": round, "bytes/up": 10 * round, **(measured if semseg is not None else {}), **more}


ROWS = [row(1), row(2, 30.0, 0.8), row(3, 40.0, 0.5), row(4, 38.0, 0.6)]


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """``folder("a", rows)`` lays down a run; its files can be replaced by others."""

    def make(name: str, rows: Any = ROWS, *, results: Any = None, config: Any = None) -> Path:
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(yaml.safe_dump({"seed": 7, "rounds": 4} | (config or {})))
        text = rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows)
        (path / "metrics.jsonl").write_text(text)
        if results is not None:
            (path / "results.json").write_text(json.dumps(results))
        return path

    return make


def results(**changes: Any) -> dict[str, Any]:
    def entry(round: int, semseg: float, depth: float) -> dict[str, Any]:
        return {"round": round, "metrics": {"semseg": {"mIoU": semseg}, "depth": {"RMSE": depth}}, "delta_m": None}

    told = {"name": "a", "primary": PRIMARY, "validation": {"scenes": 5}, "baseline": None}
    return told | {"last": entry(4, 38.0, 0.6), "best": entry(2, 30.0, 0.8)} | changes


def test_a_finished_run(folder: Any) -> None:
    run = read(folder("a", results=results()))
    assert (run.name, run.seed, run.rounds, run.round, run.finished) == ("a", 7, 4, 4, True)
    assert run.primary == {"semseg": Primary("mIoU", True, "exact"), "depth": Primary("RMSE", False)}
    assert run.validation == {"scenes": 5}
    assert run.evaluated == [2, 3, 4]
    assert run.values(3) == {"semseg": 40.0, "depth": 0.5}
    assert run.at() == 4
    assert run.at(best=True) == 2, "what results.json calls the best, not what could be computed"
    assert run.total("bytes/up") == 100.0
    assert run.total("time/train") is None


def test_a_run_that_goes_on_has_the_usual_metrics_and_half_a_line(folder: Any) -> None:
    text = "".join(json.dumps(r) + "\n" for r in ROWS[:3]) + json.dumps(ROWS[3])[:30]
    run = read(folder("a", text))
    assert not run.finished
    assert (run.round, run.rounds) == (3, 4)
    assert run.primary == {"semseg": Primary("mIoU", True), "depth": Primary("RMSE", False)}
    assert run.at() == 3


def test_a_run_that_goes_on_may_say_what_it_is_measured_by(folder: Any) -> None:
    path = folder("a")
    (path / "measured.json").write_text(json.dumps({"primary": PRIMARY, "validation": {"scenes": 5}}))
    run = read(path)
    assert run.primary["semseg"] == Primary("mIoU", True, "exact")
    assert run.validation == {"scenes": 5}
    assert not run.finished


def test_the_best_of_a_run_that_goes_on_is_of_highest_delta_m(folder: Any) -> None:
    assert read(folder("against_its_first")).at(best=True) == 3
    told = [r | {"val/semseg/delta": d, "val/delta_m": d} for r, d in zip(ROWS[1:], [5.0, -1.0, 2.0], strict=True)]
    assert read(folder("against_a_baseline", told)).at(best=True) == 2


def test_a_round_that_diverged_on_a_task_is_not_the_best(folder: Any) -> None:
    assert read(folder("a", [*ROWS[1:], row(5, 90.0)])).at(best=True) == 3


def test_an_evaluation_of_nothing_finite_is_one(folder: Any) -> None:
    diverged = row(5) | {"val/semseg/mIoU": None, "val/depth/RMSE": None}
    run = read(folder("a", [*ROWS, diverged]))
    assert run.evaluated == [2, 3, 4, 5]
    assert (run.at(), run.values(5), run.changes(5)) == (5, {}, {})
    assert run.at(best=True) == 3
    told = results(last={"round": 5, "metrics": {"semseg": {"mIoU": None}}, "delta_m": None})
    assert read(folder("b", ROWS, results=told)).at() == 5


def test_names_that_cannot_be_shown_are_marked_and_still_found(folder: Any) -> None:
    evil = "a\x1b[31m"
    rows = [{"round": 1, f"val/{evil}/mIoU": 30.0, f"val/{evil}/delta": 2.0}]
    told = {"primary": {evil: {"metric": "mIoU", "higher_is_better": True, "protocol": "\x07"}}}
    entry = {"round": 2, "metrics": {evil: {"mIoU": 40.0}}, "delta_m": {"tasks": {evil: 3.0}}}
    shown = "a\ufffd[31m"
    for run in (read(folder("a", rows)), read(folder("b", rows, results=told | {"last": entry}))):
        assert list(run.primary) == [shown]
        assert run.values(1) == {shown: 30.0}
        assert run.changes(1) == {shown: 2.0}
    assert (run.values(2), run.changes(2)) == ({shown: 40.0}, {shown: 3.0})
    assert run.primary[shown].protocol == "\ufffd"


def test_before_the_first_evaluation_there_is_none(folder: Any) -> None:
    run = read(folder("a", ROWS[:1]))
    assert run.at() is None
    assert run.at(best=True) is None
    assert run.round == 1
    assert read(folder("b", "")).round == 0


def test_results_alone_are_enough(folder: Any) -> None:
    told = results()
    told["last"]["delta_m"] = {"mean": 3.0, "tasks": {"semseg": 3.0}}
    run = read(folder("a", "", results=told))
    assert run.evaluated == [2, 4]
    assert run.values(4) == {"semseg": 38.0, "depth": 0.6}
    assert run.changes(4) == {"semseg": 3.0}
    assert run.changes(2) == {}


@pytest.mark.parametrize("value", [None, "1", True, [1], float("nan"), float("inf"), 10**400])
def test_what_is_no_finite_number_is_left_out(value: Any, folder: Any) -> None:
    assert number(value) is None
    run = read(folder("a", [row(1, 30.0, 0.8) | {"val/depth/RMSE": value}]))
    assert run.values(1) == {"semseg": 30.0}


@pytest.mark.parametrize("line", ["3", "[]", "null", "{", "\x00", '{"round": "1"}', '{"round": -1}', "[" * 100_000])
def test_lines_that_are_no_rounds_are_passed_over(line: str, folder: Any) -> None:
    assert read(folder("a", f"{line}\n{json.dumps(ROWS[1])}\n{line}")).evaluated == [2]


def test_the_baseline_is_named(folder: Any) -> None:
    assert read(folder("a", results=results(baseline={"name": "alone\x1b[31m"}))).baseline == "alone\ufffd[31m"
    assert read(folder("b", config={"baseline": "runs/alone_s0"})).baseline == "alone_s0"
    assert read(folder("c")).baseline is None
    assert read(folder("d", config={"baseline": "runs/alone_s0/results.json"})).baseline == "alone_s0"


def test_details_are_lines_too(folder: Any) -> None:
    path = folder("a")
    assert read(path).details == []
    (path / "diagnostics.jsonl").write_text('{"round": 2, "clients": ["x"]}\n{"rou')
    assert read(path).details == [{"round": 2, "clients": ["x"]}]


def test_folders_of_runs_are_looked_into_once_and_in_natural_order(folder: Any, tmp_path: Path) -> None:
    a = folder("a_s2")
    folder("a_s10")
    folder(".b.partial")
    (tmp_path / "runs" / "notes").mkdir()
    found = find([a, tmp_path / "runs", a.parent / "." / "a_s10"])
    assert [run.name for run in found] == ["a_s2", "a_s10"]
    assert [run.name for run in find([tmp_path / "runs"])] == ["a_s2", "a_s10"]


def test_what_is_no_run_is_refused(folder: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="empty is not the folder of a run .it has no config.yaml., nor"):
        find([tmp_path / "empty"])
    with pytest.raises(UserError, match="gone is not there"):
        find([tmp_path / "gone"])
    with pytest.raises(UserError, match="file is not the folder of a run"):
        find([tmp_path / "file"])
    with pytest.raises(UserError, match="has no config.yaml"):
        read(tmp_path / "empty")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.yaml", "a: [", "config.yaml is damaged"),
        ("config.yaml", "- 1", "is not a run's configuration"),
        ("config.yaml", "a: !!python/object/apply:os.getcwd []", "config.yaml is damaged: could not determine"),
        ("config.yaml", "[" * 100_000, "config.yaml is damaged"),
        ("results.json", "{", "results.json is damaged"),
        ("results.json", "[]", "results.json is damaged"),
        ("results.json", '{"primary": []}', "do not say by which metrics"),
        ("results.json", '{"primary": {"depth": {}}}', "do not say by which metrics"),
        ("federation.json", "{}", "federation.json is damaged"),
    ],
)
def test_damaged_files_are_named_in_one_line(file: str, text: str, message: str, folder: Any) -> None:
    path = folder("a")
    (path / file).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_reading_loads_no_torch() -> None:
    code = "import sys, fedmtl.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
