"""Tables: the best is marked, texts are escaped wherever they are shown, CSV has full precision."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedmtl.comparison import compare, table
from fedmtl.comparison.groups import Statistic
from fedmtl.comparison.table import Cell, Table, amount, duration, text_of
from fedmtl.errors import UserError
from fedmtl.runs import read


def printed(comparison: Any, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    table.show(comparison, console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "digits", "signed", "expected"),
    [
        (None, 2, False, "–"),
        (Statistic(40.126, None, 1), 2, False, "40.13"),
        (Statistic(-1.5, 0.25, 3), 2, True, "−1.50 ± 0.25"),
        (Statistic(1.5, 0.25, 3), 1, True, "+1.5 ± 0.2"),
        (Statistic(-0.001, None, 1), 2, True, "0.00"),
    ],
)
def test_numbers_as_text(value: Any, digits: int, signed: bool, expected: str) -> None:
    assert text_of(value, digits, signed=signed) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_461_432, "1.46 MB"), (999_600, "1 MB"), (2.5e15, "2500 TB")],
)
def test_bytes_for_people(count: float, expected: str) -> None:
    assert amount(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (59.9, "59.9 s"),
        (59.99, "1 min 00 s"),
        (250.4, "4 min 10 s"),
        (3599, "1 h 00 min"),
        (9000, "2 h 30 min"),
    ],
)
def test_time_for_people(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_the_best_is_marked_with_ties_as_shown(make: Any) -> None:
    make("a", {"semseg": [40.001], "depth": [0.5]}, share="a")
    make("b", {"semseg": [40.002], "depth": [0.6]}, share="b")
    found = table.metrics(compare([make("c", {"semseg": [39.0]}, share="c").parent]))
    assert [head.split("\n")[-1] for head in found.heads[1:]] == ["mIoU ↑", "RMSE ↓"]
    assert found.rows == [
        [Cell("a"), Cell("40.00", True), Cell("0.5000", True)],
        [Cell("b"), Cell("40.00", True), Cell("0.6000")],
        [Cell("c"), Cell("39.00"), Cell("–")],
    ]


def test_one_group_alone_is_not_the_best(make: Any) -> None:
    assert not any(cell.best for row in table.metrics(compare([make("a", {"depth": [1.0]})])).rows for cell in row)


def test_a_run_that_goes_on_says_so(make: Any) -> None:
    make("a_s0", {"depth": [1.0, 0.9]}, finished=False, rounds=8)
    found = table.cost(compare([make("a_s1", {"depth": [1.0, 0.9, 0.8]}, finished=False, rounds=8).parent]))
    assert [cell.text for cell in found.rows[0]] == ["a", "2", "unfinished, 2–3/8", "2.5 MB", "6.2 s"]


def test_the_round_is_that_of_the_numbers(make: Any) -> None:
    make("a", {"depth": [0.5, 0.9]}, finished=False, rounds=8, upload="a")
    make("b", {"depth": [0.9, None]}, finished=False, rounds=8, upload="b")
    path = make("c", {"depth": [0.9, None]}, upload="c")
    told = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps(told | {"best": {"round": 1, "metrics": {}}}))
    make("d", {"depth": []}, finished=False, rounds=8, upload="d")
    for best, expected in (
        (False, ["unfinished, 2/8", "unfinished, 2/8", "2", "– (unfinished, 0/8)"]),
        (True, ["1 (unfinished, 2/8)", "1 (unfinished, 2/8)", "1 (of 2)", "– (unfinished, 0/8)"]),
    ):
        comparison = compare([path.parent], best=best)
        assert [row[2].text for row in table.cost(comparison).rows] == expected
        assert [row[2].text for row in table.every_run(comparison).rows] == expected
    rows = list(csv.DictReader(io.StringIO(table.csv_text(comparison))))
    assert [row["round/max"] for row in rows] == ["1", "1", "1", ""]


def test_a_mean_of_fewer_runs_is_marked_and_never_the_best(make: Any) -> None:
    for seed, value in enumerate((50.0, 51.0, None)):
        make(f"a_s{seed}", {"semseg": [value]})
    path = make("b_s0", {"semseg": [40.0]}, share="b")
    found = table.metrics(compare([path.parent]))
    assert [row[1] for row in found.rows] == [Cell("50.50 ± 0.71 (2/3)"), Cell("40.00")]


def test_best_is_said_to_be_by_each_runs_own_score(three: Path) -> None:
    assert table.metrics(compare([three], best=True)).title == "Validation, best evaluation by each run's own score"


def test_wide_terminals_get_one_table_and_narrow_ones_all_numbers(three: Path) -> None:
    comparison = compare([three], "local")
    wide, narrow = printed(comparison, 200), printed(comparison, 62)
    assert max(map(len, wide.splitlines())) <= 200
    assert "seeds" in next(line for line in wide.splitlines() if "mIoU ↑" in line)
    assert max(map(len, narrow.splitlines())) <= 62
    for cell in (cell for row in table.metrics(comparison).rows for cell in row):
        assert cell.text in wide
        assert all(part.strip() in narrow for part in cell.text.split("±"))


def test_names_are_no_markup_in_a_terminal(make: Any) -> None:
    shown = printed(compare([make("[red]x:dog:\x1b[31m", {"depth": [1.0]})]), 100)
    assert "[red]x:dog:\ufffd[31m" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("told", [True, False])
def test_tasks_and_metrics_of_strangers_do_not_drive_the_terminal(told: bool, make: Any) -> None:
    evil, metric = "a\x1b[31m", "mIoU\x1b]0;X\x07" if told else "mIoU"
    primary = {evil: {"metric": metric, "higher_is_better": True, "protocol": "\x1b[2J"}}
    comparison = compare([make("x", {evil: [40.0]}, primary=primary, finished=told, validation={"\x1b": 5})])
    for text in (printed(comparison, 100), table.csv_text(comparison)):
        assert not any(mark in text for mark in "\x1b\x07")
        assert "40.0" in text, "the task finds its own numbers"
    other = make("y", {evil: [40.0]}, primary=primary, validation={"\x1b": "\x1b"})
    if told:
        with pytest.raises(UserError) as caught:
            compare([comparison.groups[0].runs[0].path, other])
        assert "\x1b" not in str(caught.value)


def test_latex(make: Any) -> None:
    make("a_b&50%", {"semseg": [40.0], "depth": [0.5]}, share="a", recorded=-1.0)
    text = table.latex([table.metrics(compare([make(r"\input{x}~^#$", {"semseg": [30.0]}, share="b").parent]))])
    assert r"a\_b\&50\% & \textbf{40.00} & 0.5000 & $-$1.00 \\" in text
    assert r"\textbackslash{}input\{x\}\textasciitilde{}\textasciicircum{}\#\$ & 30.00 & -- & -- \\" in text
    assert r" & mIoU $\uparrow$ & RMSE $\downarrow$ & \% $\uparrow$ \\" in text
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1


def test_a_latex_comment_cannot_be_left() -> None:
    text = table.latex([Table("one\ntwo \\end", ["a", "b\nc"], [[Cell("x"), Cell("y")]])])
    assert "% one two \\end\n\\begin{tabular}{lr}" in text


def test_csv_has_full_precision(three: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(table.csv_text(compare([three], "local")))))
    assert [row["method"] for row in rows] == ["dea", "fedavg", "local"]
    values = [read(three / f"dea_s{seed}").values(3)["depth"] for seed in range(3)]
    assert float(rows[0]["depth/RMSE/mean"]) == pytest.approx(np.mean(values), rel=1e-14)
    assert float(rows[0]["depth/RMSE/std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert (rows[0]["depth/RMSE/n"], rows[0]["seeds"], rows[0]["finished"]) == ("3", "0 1 2", "3")
    assert float(rows[0]["bytes_up/mean"]) == 3_000_000


def test_csv_without_numbers_has_empty_cells_and_no_formulas(make: Any) -> None:
    (row,) = csv.DictReader(io.StringIO(table.csv_text(compare([make("=1+1", {"depth": [None]})]))))
    assert row["method"] == "'=1+1"
    assert (row["depth/RMSE/mean"], row["depth/RMSE/std"], row["depth/RMSE/n"]) == ("", "", "0")
    primary = {"=2+2": {"metric": "mIoU", "higher_is_better": True, "protocol": ""}}
    (row,) = csv.DictReader(io.StringIO(table.csv_text(compare([make("a", {"=2+2": [1.0]}, primary=primary)]))))
    assert not [name for name in row if name.startswith("=")]
    assert row["'=2+2/mIoU/mean"] == "1.0"
