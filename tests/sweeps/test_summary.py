"""The table and the plot of a sweep, from runs' folders with numbers that are known."""

import csv
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from fedmtl.sweeps import definition, names, plot, summary
from fedmtl.sweeps.summary import Summary

PRIMARY = {"semseg": ("mIoU", True), "depth": ("RMSE", False)}
Values = Callable[[dict[str, Any]], dict[str, float]]


@pytest.fixture
def summed(tmp_path: Path) -> Callable[..., Summary]:
    """Writes a sweep and the folders of its runs, and sums them up."""

    def make(
        values: Values, *, change: Values | None = None, states: dict[str, str] | None = None, **content: Any
    ) -> Summary:
        file = tmp_path / "s.yaml"
        usual = {"program": "fedmtl", "command": ["fedmtl", "fit"], "method": "grid"}
        file.write_text(yaml.safe_dump({**usual, **content}, sort_keys=False))
        sweep = definition.read(file)
        settings = sweep.settings()
        rows = []
        for name, setting in zip(names.run_names(sweep, settings), settings, strict=True):
            given = {path[-1]: value for path, value in setting.items()}
            write(tmp_path / name, values(given), change(given)["mean"] if change else None)
            rows.append(summary.row(name, setting, tmp_path / name, (states or {}).get(name, "done")))
        return summary.summarise(sweep, rows)

    return make


def write(folder: Path, values: dict[str, float], change: float | None) -> None:
    folder.mkdir()
    (folder / "config.yaml").write_text("name: x\nrounds: 3\n")
    entry = {
        "round": 3,
        "metrics": {task: {metric: values[task]} for task, (metric, _) in PRIMARY.items()},
        "delta_m": None if change is None else {"mean": change, "tasks": {}},
        "score": 0.0,
    }
    primary = {
        task: {"metric": metric, "higher_is_better": up, "protocol": ""} for task, (metric, up) in PRIMARY.items()
    }
    results = {"name": "x", "rounds": 3, "primary": primary, "validation": {}, "last": entry, "best": entry}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.jsonl").write_text(json.dumps({"round": 3, "bytes/up": 7, "time/train": 2.0}) + "\n")


def score(given: dict[str, Any]) -> dict[str, float]:
    return {"semseg": 10 * given["rho"] + given["seed"] ** 2, "depth": 2 + given["rho"] / (1 + given["seed"])}


GRID = {"rho": {"values": [1.0, 0.2, 0.5]}, "seed": {"values": [0, 1, 2]}}


def shown(result: Summary, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(summary.table(result))
    return console.export_text()


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_settings_are_ordered_by_the_metric_over_seeds(summed: Any, goal: str) -> None:
    result = summed(score, parameters=GRID, metric={"name": "val/semseg/mIoU", "goal": goal})
    order = [group.setting[("rho",)] for group in result.groups]
    assert order == sorted(order, reverse=goal == "maximize")
    best = [score({"rho": order[0], "seed": seed})["semseg"] for seed in (0, 1, 2)]
    (line,) = [line for line in shown(result).splitlines() if line.startswith(f"│ {order[0]:g} ")]
    assert f"{np.mean(best):.4g} ± {np.std(best, ddof=1):.2g}" in line
    assert ("↑" if goal == "maximize" else "↓") in shown(result)


def test_csv_has_a_line_a_run(summed: Any) -> None:
    states = {"rho_0.5_s1": "failed", "rho_0.5_s2": "to do"}
    result = summed(score, parameters=GRID, metric={"name": "best/depth/RMSE"}, states=states)
    rows = list(csv.DictReader(io.StringIO(summary.as_csv(result))))
    assert len(rows) == 9
    assert {row["run"]: row["state"] for row in rows if row["state"] != "done"} == states
    for row in rows:
        numbers = score({"rho": float(row["rho"]), "seed": int(row["seed"])})
        if row["state"] == "done":
            assert float(row["best/depth/RMSE"]) == numbers["depth"]
            assert float(row["val/semseg/mIoU"]) == numbers["semseg"]
            assert (row["bytes/up"], row["seconds"]) == ("7.0", "2.0")
        else:
            assert row["best/depth/RMSE"] == row["seconds"] == ""
    assert rows[0]["rho"] == "0.2"  # lowest depth error


def test_delta_m_of_the_runs_themselves(summed: Any) -> None:
    change = {0.2: 3.0, 0.5: 5.0, 1.0: -1.0}
    metric = {"name": "val/delta_m", "goal": "maximize"}
    result = summed(score, change=lambda given: {"mean": change[given["rho"]]}, parameters=GRID, metric=metric)
    assert result.title == "val/delta_m"
    assert [group.values("val/delta_m") for group in result.groups] == [[5.0] * 3, [3.0] * 3, [-1.0] * 3]


def test_without_a_baseline_delta_m_is_against_the_first_setting_seed_by_seed(summed: Any) -> None:
    result = summed(score, parameters=GRID, metric={"name": "val/delta_m", "goal": "maximize"})
    assert result.title == "Δm against rho 1"
    for group in result.groups:
        for row in group.rows:
            rho, seed = row.setting[("rho",)], row.setting[("seed",)]
            base, value = score({"rho": 1.0, "seed": seed}), score({"rho": rho, "seed": seed})
            changes = [
                (value["semseg"] - base["semseg"]) / base["semseg"],
                (base["depth"] - value["depth"]) / base["depth"],
            ]
            assert math.isclose(row.metrics["val/delta_m"], 100 * np.mean(changes), abs_tol=1e-9)
    assert "no baseline was given, so Δm is against the first setting" in " ".join(shown(result).split())


def test_a_seed_that_the_first_setting_lacks_is_left_out(summed: Any) -> None:
    metric = {"name": "val/delta_m", "goal": "maximize"}
    result = summed(score, parameters=GRID, metric=metric, states={"rho_1_s1": "failed"})
    assert {g.setting[("rho",)]: len(g.values("val/delta_m")) for g in result.groups} == {1.0: 2, 0.2: 2, 0.5: 2}
    cells = {
        cells[1]: cells[2] for line in shown(result).splitlines() if len(cells := re.split(r"\s*[│┃]\s*", line)) > 4
    }
    assert cells == {"rho": "runs", "1": "2", "0.2": "2 of 3", "0.5": "2 of 3"}
    assert "1 of 2 runs: one has Δm" in " ".join(shown(result).split())


def test_no_delta_m_without_the_first_setting(summed: Any, tmp_path: Path) -> None:
    metric = {"name": "val/delta_m", "goal": "maximize"}
    result = summed(score, parameters=GRID, metric=metric, states={f"rho_1_s{seed}": "failed" for seed in range(3)})
    assert result.title == "no Δm: no run of the first setting, rho 1, has finished"
    assert result.metric is None
    assert not any(group.values("val/delta_m") for group in result.groups)
    assert result.title in " ".join(shown(result).split())
    assert plot.draw(result, tmp_path / "p") == []


def test_a_run_without_a_finite_change_of_each_task_has_no_delta_m(summed: Any) -> None:
    def zero(given: dict[str, Any]) -> dict[str, float]:
        return score(given) | ({"depth": 0.0} if given["rho"] == 1.0 and given["seed"] == 0 else {})

    result = summed(zero, parameters=GRID, metric={"name": "val/delta_m", "goal": "maximize"})
    assert {g.setting[("rho",)]: len(g.values("val/delta_m")) for g in result.groups} == {1.0: 2, 0.2: 2, 0.5: 2}


def test_a_metric_that_no_run_has(summed: Any, tmp_path: Path) -> None:
    result = summed(score, parameters=GRID, metric={"name": "val/semseg/miou"})
    assert result.metric is None
    assert result.title == "no run has val/semseg/miou"
    assert len(result.groups) == 3
    assert plot.draw(result, tmp_path / "p") == []


def test_cells_are_no_formulas(summed: Any) -> None:
    values = ["=1+1", "-1+1", "b", -3]
    result = summed(lambda given: {"semseg": 1.0, "depth": 1.0}, parameters={"-a": {"values": values}})
    result.rows[0].name = "-x"  # as the first parameter's name may make it
    rows = list(csv.DictReader(io.StringIO(summary.as_csv(result))))
    assert [row["'-a"] for row in rows] == ["'=1+1", "'-1+1", "b", "-3"]
    assert rows[0]["run"] == "'-x"


TEXTS = ["[semseg,depth]", "[/data/x]", "[red]a$x^2$b", "a:warning:b"]


def test_values_are_no_markup(summed: Any, tmp_path: Path) -> None:
    result = summed(
        lambda given: {"semseg": 1.0, "depth": 1.0},
        parameters={"[b]x": {"values": TEXTS}},
        metric={"name": "val/semseg/mIoU"},
    )
    text = shown(result)
    assert [value for value in [*TEXTS, "[b]x"] if value not in text] == []
    svg = plot.draw(result, tmp_path / "sweep")[1].read_text()
    assert all(f">{value}<" in svg for value in TEXTS)


def test_a_narrow_table_cuts_nothing_off(summed: Any) -> None:
    values = [f"a-long-name-that-ends-in-{letter}" for letter in "abc"]
    metric = {"name": "val/semseg/mIoU"}
    result = summed(score, parameters={"config": {"values": values}, **GRID}, metric=metric)
    text = shown(result, 50)
    assert "…" not in text
    rows = [[cell.strip() for cell in line.split("│")] for line in text.splitlines() if line.startswith("│")]
    column = "".join(row[1] for row in rows)
    assert [column.count(value) for value in values] == [3, 3, 3]
    assert max(map(len, text.splitlines())) <= 50


def test_a_plot_that_cannot_be_written_leaves_the_one_before(summed: Any, tmp_path: Path) -> None:
    result = summed(score, parameters=GRID, metric={"name": "val/semseg/mIoU", "goal": "maximize"})
    (png, _) = plot.draw(result, tmp_path / "sweep")
    before = png.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot.Figure, "savefig", lambda self, file, **_: (file.write(b"half"), tmp_path.read_text()))
        with pytest.raises(OSError, match="Is a directory"):
            plot.draw(result, tmp_path / "sweep")
    assert png.read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


CLASSES = [[], [{"class_path": "m.DEA"}]]


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ({"parameters": GRID}, ["rho", "0.2", "0.5"]),
        ({"parameters": {**GRID, "upload": {"values": CLASSES}}}, ["upload none", "upload DEA"]),
        (
            {"parameters": {"upload": {"values": CLASSES}, "seed": {"values": [0, 1]}, "rho": {"value": 1}}},
            ["none", "DEA"],
        ),
        (
            {
                "method": "random",
                "run_cap": 6,
                "parameters": {
                    "rho": {"distribution": "log_uniform_values", "min": 1e-3, "max": 1},
                    "seed": {"min": 0, "max": 9},
                    "word": {"values": ["a", "b"]},
                },
            },
            ["rho", "word", "the ring is the best"],
        ),
        (
            {"method": "random", "run_cap": 2, "parameters": {"rho": {"min": 0, "max": 2**32}, "seed": {"value": 0}}},
            ["rho", "the ring is the best"],
        ),
    ],
    ids=["lines", "several lines", "bars", "random", "random in a large range"],
)
def test_plots(summed: Any, tmp_path: Path, content: dict[str, Any], labels: list[str]) -> None:
    result = summed(score, metric={"name": "val/semseg/mIoU", "goal": "maximize"}, **content)
    png, svg = plot.draw(result, tmp_path / "sweep")
    picture = np.asarray(Image.open(png).convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    text = svg.read_text()
    for label in [*labels, "val/semseg/mIoU", "higher is better"]:
        assert label in text
    again = plot.draw(result, tmp_path / "again")
    assert again[1].read_bytes() == svg.read_bytes()


def test_a_plot_shows_means_and_deviations(summed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = summed(score, parameters=GRID, metric={"name": "val/semseg/mIoU", "goal": "maximize"})
    drawn: list[Any] = []
    monkeypatch.setattr(plot.Axes, "errorbar", lambda self, x, y, yerr, **look: drawn.append((x, y, yerr)))
    plot._grid(result, [p for p in result.sweep.varied if p.path != ("seed",)])
    ((x, y, yerr),) = drawn
    values = np.array([[score({"rho": rho, "seed": seed})["semseg"] for seed in (0, 1, 2)] for rho in (0.2, 0.5, 1.0)])
    assert list(x) == [0.2, 0.5, 1.0]
    np.testing.assert_allclose(y, values.mean(axis=1))
    np.testing.assert_allclose(yerr, values.std(axis=1, ddof=1))
