"""The tables before and after a run: names in them are text, whatever they hold."""

import io
from typing import Any

from rich.console import Console, RenderableType

from fedmtl.tracking.display import federation_table, results_table

NAME = r"a[b]c [/] :x: \\"  # a tag, one that closes nothing, an emoji, and what would escape


def text(shown: RenderableType) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def test_results() -> None:
    end = {"round": 1, "metrics": {"[red]": {"[m]": 1.5}}}
    results: dict[str, Any] = {
        "name": NAME,
        "last": {**end, "delta_m": {"tasks": {"[red]": 3.25}, "mean": 3.25}},
        "best": end,
        "baseline": {"name": NAME, "metrics": {"[red]": 1.0}},
        "primary": {"[red]": {"metric": "[m]", "higher_is_better": True}},
    }
    shown = text(results_table(results))
    assert f"{NAME} after round 1" in shown
    assert f"Δ against {NAME}" in shown
    assert "[red] │ [m] ↑" in shown
    assert "+3.25" in shown


def test_ranges_of_many_clients_are_of_numbers() -> None:
    alike = {"data": "Scenes", "tasks": ["depth"], "ids": [], "input": "image"}
    different = [("10.20 M", "26%", 9), ("3.40 M", "100%", 10), ("3.50 M", "30%", 11)]
    rows = [
        {"client": f"c{i}", **alike, "weights": weights, "shares": shares, "images": images}
        for i, (weights, shares, images) in enumerate(different * 11)
    ]
    shown = text(federation_table(rows))
    for expected in ("3.40 M–10.20 M", "26%–100%", "9–11", " image "):
        assert expected in shown


def test_federation() -> None:
    rows = [{"client": NAME, "data": "Scenes", "tasks": ["[red]", "depth"], "images": 3, "ids": []}]
    shown = text(federation_table(rows))
    assert NAME in shown
    assert "[red], depth" in shown
