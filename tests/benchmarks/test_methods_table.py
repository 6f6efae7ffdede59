"""The table of methods: its small version runs, its statistics are right, and the document says what was measured."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("methods_table")


@pytest.mark.slow
def test_a_small_version_from_runs_to_tables(table: Any, tmp_path: Path) -> None:
    overlay = tmp_path / "tiny.yaml"
    data = {"init_args": {"train": 16, "val": 4}}
    overlay.write_text(yaml.safe_dump({"rounds": 1, "eval_every": 1, "checkpoint_every": 1, "data": data}))
    rows = ["SCAFFOLD", "SCAFFOLD + DEA", "FedDEA, ρ = 0.5"]
    command = [sys.executable, str(ROOT / "benchmarks" / "methods_table.py"), "--rows", *rows, "--jobs", "2"]
    command += ["--overlay", str(overlay), "--out", str(tmp_path / "runs"), "--results", str(tmp_path)]
    command += ["--seeds", "0", "1", "--tuning-seeds", "7", "--rates", "1e-3", "3e-3"]
    for _ in range(2):  # the second time nothing is left to run
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "methods.json").read_text())
    assert list(results["rows"]) == ["Local (no federation)", "SCAFFOLD", "FedDEA", "SCAFFOLD + DEA", "FedDEA, ρ = 0.5"]
    assert results["rows"]["SCAFFOLD + DEA"]["configs"][1:] == ["methods/scaffold.yaml", "methods/dea.yaml"]
    rate = results["rows"]["FedDEA"]["rate"]
    assert results["rows"]["FedDEA, ρ = 0.5"]["rate"] == rate
    assert results["tuned"]["FedDEA"]["delta_m"][str(rate)] == max(results["tuned"]["FedDEA"]["delta_m"].values())
    run = json.loads((tmp_path / "runs" / table.run_name("FedDEA", rate, 1) / "results.json").read_text())
    base_rate = results["rows"]["Local (no federation)"]["rate"]
    local = tmp_path / "runs" / table.run_name("Local (no federation)", base_rate, 1)
    base = json.loads((local / "results.json").read_text())
    changes = []
    for task, primary in run["primary"].items():
        new, old = (r["last"]["metrics"][task][primary["metric"]] for r in (run, base))
        changes.append(100 * (new - old) / abs(old) * (1 if primary["higher_is_better"] else -1) if old else math.nan)
    assert results["rows"]["FedDEA"]["seeds"]["1"]["delta_m"] == pytest.approx(np.nanmean(changes))
    assert results["rows"]["Local (no federation)"]["seeds"]["0"]["delta_m"] == 0
    assert "| SCAFFOLD |" in (tmp_path / "methods.md").read_text()


def test_intervals_are_students(table: Any) -> None:
    mean, half = table.interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(4.302653 * np.std([1, 2, 4], ddof=1) / np.sqrt(3), rel=1e-6)
    assert math.isnan(table.interval([3.0])[1])


def test_every_row_names_files_that_are_there(table: Any) -> None:
    for row in table.ROWS.values():
        assert (table.EXPERIMENTS / "base" / f"{row.base}.yaml").is_file()
        assert all((table.EXPERIMENTS / "methods" / f"{file}.yaml").is_file() for file in row.files)
        assert row.baseline in table.ROWS
        assert row.rate_of is None or table.ROWS[row.rate_of].rate_of is None
    assert len({table.run_name(row, 1e-3, 0) for row in table.ROWS}) == len(table.ROWS)


def test_the_document_is_made_from_the_results(table: Any) -> None:
    report = importlib.import_module("methods_report").report
    results = json.loads((RESULTS / "methods.json").read_text())
    assert (RESULTS / "methods.md").read_text() == report(results)
