"""The live view, drawn at many sizes and read as text; and the lines of a log."""

import io
import math
import re
from typing import Any

import pytest
from rich.console import Console

from fedmtl.delta_m import Primary
from fedmtl.tracking.display.progress import Member, Progress
from fedmtl.tracking.display.view import render, round_line

PRIMARY = {
    "semseg": Primary("mIoU", True),
    "depth": Primary("RMSE", False),
    "normals": Primary("mErr", False),
    "edge": Primary("odsF", True),
    "saliency": Primary("maxF", True),
}
KINDS = [("semseg",), ("depth",), ("normals",), ("edge", "saliency")]
SIZES = [(60, 15), (80, 24), (160, 50)]


def row(round: int, clients: dict[str, Member], baseline: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"round": round, "time/train": 5.0, "bytes/up": 1_000_000, "bytes/down": 2_000_000}
    for name, member in clients.items():
        found[f"train/{name}/loss"] = 4.0 / round
        found |= {f"train/{name}/{task}": 2.0 / round for task in member.tasks if len(member.tasks) > 1}
    if round % 2 == 0:
        found["time/evaluate"] = 2.0
        for task, p in PRIMARY.items():
            found[f"val/{task}/{p.metric}"] = 20.0 + round
            if baseline:
                found[f"val/{task}/delta"] = 10.0 * round - 30 if p.higher_is_better else -10.0 * round
        if baseline:
            found["val/delta_m"] = 1.25 * round
    return found


def run(each: int = 1, *, baseline: bool = True, rounds: int = 4) -> Progress:
    """A run in the middle of the round after `rounds`, with so many clients of each kind."""
    clients = {"+".join(kind) + f"_{i}" * (each > 1): Member(kind, 12) for kind in KINDS for i in range(each)}
    metrics = dict.fromkeys(PRIMARY, 22.0)
    against = {"name": "alone", "metrics": metrics} if baseline else None
    progress = Progress(10, 12 * len(clients), PRIMARY, "scenes_dea", clients, against, eval_every=2)
    for round in range(1, rounds + 1):
        progress.start_round(round, 10.0 * round)
        progress.end_round(row(round, clients, baseline), 10.0 * round + (10.0 if round % 2 == 0 else 5.0))
    progress.start_round(rounds + 1, 10.0 * rounds + 10)
    first, second, *_ = clients
    for name, steps in ((first, 12), (second, 6)):
        progress.start_client(name)
        for _ in range(steps):
            progress.step()
        if steps == 12:
            progress.end_client(0.5)
    progress.now = progress.started + 2
    return progress


def text(progress: Progress, width: int, height: int, **console: Any) -> str:
    screen = Console(width=width, height=height, force_terminal=True, record=True, file=io.StringIO(), **console)
    screen.print(render(progress, width=width, height=height))
    return screen.export_text()


@pytest.mark.parametrize(
    ("width", "height"), [*SIZES, (40, 10), (30, 5), (20, 1), (100, 8), (130, 4), (130, 3), (130, 2), (300, 9)]
)
@pytest.mark.parametrize("each", [1, 2, 7, 50])
@pytest.mark.parametrize("baseline", [True, False])
def test_it_fits(width: int, height: int, each: int, baseline: bool) -> None:
    for rounds in (0, 4):
        progress = run(each, baseline=baseline, rounds=rounds)
        for phase in ("training", "finished", "stopped"):
            progress.phase = phase  # type: ignore[assignment]
            lines = text(progress, width, height).splitlines()
            assert 1 <= len(lines) <= height
            assert max(map(len, lines)) <= width


def test_a_wide_terminal_without_clients() -> None:
    progress = Progress(2, 2, {"t": Primary("F", True)}, "run")
    progress.note({"round": 1, "val/t/F": 1.0})
    assert "F ↑" in text(progress, 160, 20)


def test_the_best_of_means_is_a_number() -> None:
    progress = Progress(3, 2, {"t": Primary("F", True)}, "run", baseline={"name": "b", "metrics": {"t": 1.0}})
    for round, change in enumerate((math.nan, 2.0, 1.0), 1):
        progress.note({"round": round, "val/t/F": 1.0, "val/delta_m": change})
    last, best = next(line for line in text(progress, 80, 20).splitlines() if "Δm" in line).split()[-5:-2:2]
    assert (last, best) == ("+1.00", "+2.00")


def test_small_terminal() -> None:
    assert [line.rstrip() for line in text(run(), 60, 14, no_color=True).splitlines()] == [
        "scenes_dea  round 5/10  ━━━━━━━━━━━━╸                   44 %",
        "43 s left · 42 s so far · 4.0 MB up, 8.0 MB down · training…",
        "  client        this round             loss by round",
        "✓ semseg        ━━━━━━━━━━━ 12/12    0.5000 █▄▂▂▁",
        "▶ depth         ━━━━━╸       6/12     1.000 █▃▁▁",
        "· normals                    0/12     1.000 █▃▁▁",
        "· edge+saliency              0/12     1.000 █▃▁▁",
        "task     metric        last      best  baseline       Δ %",
        "semseg   mIoU ↑     24.00 ↗     24.00     22.00  +10.00 ▲",
        "depth    RMSE ↓     24.00 ↗     22.00     22.00  -40.00 ▼",
        "normals  mErr ↓     24.00 ↗     22.00     22.00  -40.00 ▼",
        "edge     odsF ↑     24.00 ↗     24.00     22.00  +10.00 ▲",
        "saliency maxF ↑     24.00 ↗     24.00     22.00  +10.00 ▲",
        "all      Δm ↑ %     +5.00 ↗     +5.00         –         –",
    ]


def test_usual_terminal_shows_tasks_and_evaluations() -> None:
    shown = text(run(), 80, 23)
    assert "    saliency " in shown
    assert "by evaluation" in shown
    assert shown.splitlines()[2] == " " * 0  # room to breathe


def test_wide_terminal_has_the_tables_beside_each_other() -> None:
    line = next(line for line in text(run(), 160, 49).splitlines() if "✓ semseg" in line)
    assert "12/12" in line
    assert "mIoU ↑" in line
    assert "+10.00 ▲" in line


def test_many_clients_by_tasks() -> None:
    shown = text(run(50), 80, 23)
    assert "50 × edge+saliency" in shown
    assert "1/50" in shown
    assert "semseg_3" not in shown


def test_what_is_cut_is_said() -> None:
    shown = text(run(50), 60, 9)
    assert "… 2 more" in shown
    assert "▶ 50 × semseg" in shown
    assert "Δm ↑" in shown


@pytest.mark.parametrize("baseline", [True, False])
def test_tasks_that_are_cut_are_said(baseline: bool) -> None:
    lines = text(run(baseline=baseline), 50, 12).splitlines()
    tasks = [line.split()[0] for line in lines[lines.index(next(line for line in lines if "metric" in line)) + 1 :]]
    assert tasks == ["semseg", "depth", "…", "all" if baseline else "saliency"]
    assert f"… {3 if baseline else 2} more" in lines[-2]
    assert "more" not in text(run(baseline=baseline), 50, 14)


@pytest.mark.parametrize("width", [50, 56, 60, 70, 80, 100, 120, 130, 140, 160])
@pytest.mark.parametrize("each", [1, 7])
def test_headings_are_whole(width: int, each: int) -> None:
    headings = [line for line in text(run(each), width, 40).splitlines() if "client" in line or "metric" in line]
    assert headings
    assert not any("…" in line for line in headings)


def test_headings_of_short_names_are_whole() -> None:
    clients = {name: Member(("t",), 1) for name in "ab"}
    progress = Progress(2, 2, {"t": Primary("F", True)}, "run", clients)
    progress.note({"round": 1, "val/t/F": 1.0})
    assert "…" not in text(progress, 80, 20)


def test_better_is_green_and_worse_is_red() -> None:
    screen = Console(width=80, force_terminal=True, record=True, file=io.StringIO(), color_system="standard")
    screen.print(render(run(), width=80, height=23))
    shown = screen.export_text(styles=True)
    assert "\x1b[32m↗" in next(line for line in shown.splitlines() if "mIoU" in line)
    assert "\x1b[31m↗" in next(line for line in shown.splitlines() if "RMSE" in line)
    assert re.search(r"\x1b\[31m *-40\.00 ▼", shown)
    assert re.search(r"\x1b\[32m *\+10\.00 ▲", shown)


def test_colours_are_left_out_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Console(width=80, force_terminal=True, file=io.StringIO())
    screen.print(render(run(), width=80, height=23))
    assert isinstance(screen.file, io.StringIO)
    assert "\x1b[3" not in screen.file.getvalue()


def test_last_state() -> None:
    progress = run()
    progress.end("finished", progress.now)
    shown = text(progress, 80, 23)
    assert "finished after 42 s" in shown
    assert "mIoU" not in shown  # the table of results comes next
    progress.end("stopped", progress.now)
    shown = text(progress, 80, 23)
    assert "stopped after 42 s" in shown
    assert "mIoU" in shown


def test_before_anything_is_known() -> None:
    assert "time left: after a round" in text(run(rounds=0), 80, 23)
    assert "round 0/3" in text(Progress(rounds=3, steps=1, primary={}), 40, 9)


def test_round_lines() -> None:
    progress = run(baseline=True, rounds=2)
    progress.end_round(found := row(3, dict(progress.clients), True), 35.0)
    line = round_line(progress, found)
    assert line == "round 3/10  loss: semseg 1.333, depth 1.333, normals 1.333, edge+saliency 1.333  (55 s left)"
    progress.start_round(4, 35.0)
    progress.end_round(found := row(4, dict(progress.clients), True), 45.0)
    line = round_line(progress, found)
    assert "val: semseg mIoU 24, depth RMSE 24, " in line
    assert "saliency maxF 24, Δm +5.00 %  (" in line
    progress.ended = progress.rounds
    assert round_line(progress, found).endswith("Δm +5.00 %")


def test_a_line_for_many_clients_is_short() -> None:
    progress = run(7)
    progress.end_round(found := row(5, dict(progress.clients), True), 60.0)
    assert "loss: semseg 0.800, depth 0.800, normals 0.800, edge+saliency 0.800  (" in round_line(progress, found)
