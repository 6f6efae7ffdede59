"""Charts of a comparison as SVG that takes its colours from the page around it."""

import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedmtl.comparison.comparison import Comparison
from fedmtl.comparison.groups import Statistic
from fedmtl.comparison.interference import PairHistory
from fedmtl.runs import Run
from fedmtl.tracking.heat_maps import SIGNED, UNSIGNED

INK, LINE = "#010203", "#040506"  # stand for the page's colours of text and of rules, whatever these are
GROUPS = ["#0072b2", "#d55e00", "#009e73", "#b5559b", "#b98300", "#3f9fd6", "#7b5fc0", "#6b7280"]  # and of the groups
DASHES = ["-", "--", ":", "-."]  # the next groups take the same colours with other lines
FEW = 12  # so many points are marked, so many columns of a heat map have their numbers written into them
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "text.parse_math": False,  # a name with dollars is a name
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: sizes are the same on every machine
}


@dataclass(frozen=True)
class Chart:
    """A chart, its title, and what it shows in a sentence."""

    title: str
    svg: str
    note: str = ""


def curves(comparison: Comparison) -> list[Chart]:
    """Each task's metric and Δm over the rounds: mean over the seeds, and a band of a standard deviation."""
    charts = []
    for i, (task, primary) in enumerate(comparison.primary.items()):
        title = f"{task} · {primary.metric} {'↑' if primary.higher_is_better else '↓'}"
        figure = _curve(comparison, partial(_value, task))
        charts.append(Chart(title, _svg(figure, f"curve-{i}", f"{title} over rounds")))
    if comparison.has_delta_m:
        figure = _curve(comparison, comparison.overall, zero=True)
        charts.append(Chart("Δm · % ↑", _svg(figure, "curve-delta", "Δm over rounds")))
    return charts


def bars(comparison: Comparison) -> Chart | None:
    """Δ of every task and Δm, a bar a group with its standard deviation; None where there is no Δ."""
    if not comparison.has_delta_m:
        return None
    tasks = list(comparison.primary)
    with rc_context(_STYLE):
        figure = Figure(figsize=(max(6.0, 1.25 * (len(tasks) + 1)), 4.2), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / len(comparison.groups)
        for i, group in enumerate(comparison.groups):
            found = [*(comparison.change(group, task) for task in tasks), comparison.delta_m(group)]
            there = {j - 0.4 + (i + 0.5) * width: one for j, one in enumerate(found) if one is not None}
            look: Any = {"color": _colour(i), "hatch": _hatch(i), "edgecolor": INK, "linewidth": 0}
            axes.bar(list(there), [one.mean for one in there.values()], 0.9 * width, **look)
            spread = [(place, one.mean, one.std) for place, one in there.items() if one.std]
            if spread:
                bar: Any = {"ecolor": INK, "elinewidth": 1, "capsize": min(3.0, 12 * width)}
                x, y, error = zip(*spread, strict=True)
                axes.errorbar(x, y, error, fmt="none", **bar)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.axvline(len(tasks) - 0.5, color=LINE, linewidth=1, linestyle="--")
        axes.set_xticks(range(len(tasks) + 1), [*map(_short, tasks), "Δm"])
        axes.tick_params(axis="x", length=0)
        axes.grid(False, axis="x")
        axes.set_ylabel("Δ in %, up is better")
        return Chart("Δ per task", _svg(figure, "bars", "Δ of each task and method in percent"), comparison.measure)


def radar(comparison: Comparison) -> Chart | None:
    """The tasks around a circle, a polygon a group; None for fewer than three tasks that several groups have.

    The radius is a metric's share of the best group's, or the other way round where lower is better.
    """
    shares = radii(comparison)
    if shares is None:
        return None
    tasks = list(next(iter(shares.values())))
    ticks = _ticks(min(value for row in shares.values() for value in row.values()))
    angles = np.linspace(0, 2 * np.pi, len(tasks), endpoint=False)
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 4.0), layout="constrained")
        axes: Any = figure.subplots(subplot_kw={"projection": "polar"})
        axes.set_theta_offset(np.pi / 2)
        axes.set_theta_direction(-1)
        for i, group in enumerate(comparison.groups):
            if group.name in shares:
                values = [shares[group.name][task] for task in tasks]
                look: Any = {"color": _colour(i), "marker": "o", "markersize": 3, "linewidth": 1.6}
                axes.plot([*angles, 0], [*values, values[0]], _dashes(i), **look)
        axes.set_ylim(ticks[0], 1)
        axes.set_yticks(ticks[1:], [f"{tick:.3g}" for tick in ticks[1:]], fontsize=7)
        axes.set_rlabel_position(180 / len(tasks))
        axes.set_xticks(angles, list(map(_short, tasks)))
        axes.tick_params(axis="x", pad=11)
        axes.spines["polar"].set_color(LINE)
        note = (
            "Outside is better: the radius is the metric divided by the best method's, or where lower is better the "
            f"best method's divided by it. The rim is 1, the centre {ticks[0]:.3g}."
        )
        return Chart("All tasks at once", _svg(figure, "radar", "Each method's metrics relative to the best"), note)


def radii(comparison: Comparison) -> dict[str, dict[str, float]] | None:
    """Radii of the radar by group and task; groups that lack a task or whose metric is negative are left out."""
    tasks = [t for t in comparison.primary if sum(comparison.metric(g, t) is not None for g in comparison.groups) > 1]
    found: dict[str, dict[str, float]] = {}
    for group in comparison.groups:
        values = {task: one.mean for task in tasks if (one := comparison.metric(group, task)) is not None}
        if len(values) == len(tasks) and all(value >= 0 for value in values.values()):
            found[group.name] = values
    if len(tasks) < 3 or len(found) < 2:
        return None
    for task in tasks:
        higher = comparison.primary[task].higher_is_better
        best = (max if higher else min)(values[task] for values in found.values())
        for values in found.values():
            over, under = (values[task], best) if higher else (best, values[task])
            values[task] = over / under if under else 1.0
    return found


def heat_map(history: PairHistory, title: str, name: str, largest: float, *, signed: bool) -> Chart:
    """Pairs of clients by rounds, each cell a number.

    Args:
        history: the numbers.
        title: of the chart.
        name: an identifier that no other chart of the page has.
        largest: magnitude at the end of the colours.
        signed: whether the colours go from −largest to largest, else from 0.
    """
    cells = history.values
    with rc_context(_STYLE | {"axes.grid": False}):
        size = (1.6 + max(2.6, 0.42 * cells.shape[1]), 0.7 + 0.26 * cells.shape[0])
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        norm = Normalize(-largest if signed else 0, largest)
        drawn = axes.pcolormesh(np.ma.masked_invalid(cells), cmap=SIGNED if signed else UNSIGNED, norm=norm)
        axes.invert_yaxis()
        axes.set_yticks(np.arange(cells.shape[0]) + 0.5, list(history.pairs), fontsize=8)
        shown = np.unique(np.linspace(0, cells.shape[1] - 1, min(FEW, cells.shape[1])).round().astype(int))
        axes.set_xticks(shown + 0.5, [str(history.rounds[i]) for i in shown], fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("round", fontsize=8)
        if cells.shape[1] <= FEW:
            _write_numbers(axes, cells, drawn)
        return Chart(title, _svg(figure, name, title))


def colour_of(i: int) -> str:
    """The colour of a group, as a CSS value."""
    return f"var(--group-{i % len(GROUPS)})"


def _curve(comparison: Comparison, value: Callable[[Run, int], float | None], *, zero: bool = False) -> Figure:
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.0, 2.7), layout="constrained")
        axes = figure.subplots()
        for i, group in enumerate(comparison.groups):
            points = comparison.curve(group, value)
            if points:
                _line(axes, points, _colour(i), _dashes(i))
        if zero:
            axes.axhline(0, color=INK, linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("round")
        return figure


def _value(task: str, run: Run, round: int) -> float | None:
    return run.values(round).get(task)


def _line(axes: Axes, points: Mapping[int, Statistic], colour: str, dashes: str) -> None:
    rounds = list(points)
    means = np.array([one.mean for one in points.values()])
    stds = np.array([one.std or 0.0 for one in points.values()])
    axes.plot(
        rounds, means, dashes, color=colour, linewidth=1.6, marker="o" if len(rounds) <= FEW else "", markersize=3
    )
    if stds.any():
        axes.fill_between(rounds, means - stds, means + stds, color=colour, alpha=0.15, linewidth=0)


def _write_numbers(axes: Axes, cells: np.ndarray[Any, Any], drawn: Any) -> None:
    """Each cell's number, dark on light colours and light on dark ones."""
    for (row, column), value in np.ndenumerate(cells):
        if np.isfinite(value):
            red, green, blue, _ = drawn.cmap(drawn.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = f"{round(float(value), 2) + 0.0:.2f}".replace("-", "−")  # + 0.0 makes zero of a negative zero
            axes.text(
                column + 0.5,
                row + 0.5,
                text,
                ha="center",
                va="center",
                fontsize=7,
                color="#ffffff" if dark else "#111111",
            )


def _colour(i: int) -> str:
    return GROUPS[i % len(GROUPS)]


def _dashes(i: int) -> str:
    return DASHES[i // len(GROUPS) % len(DASHES)]


def _hatch(i: int) -> str | None:
    return [None, "///", "...", "xxx"][i // len(GROUPS) % 4]


def _ticks(lowest: float) -> list[float]:
    """Ticks up to 1, the first below the lowest value, a few plain steps apart."""
    wide = max(1 - lowest, 1e-3) * 1.1
    step = next(s * 10.0**e for e in range(-5, 1) for s in (1, 2, 2.5, 5) if 4 * s * 10.0**e >= wide)
    return [max(0.0, 1 - i * step) for i in range(min(4, math.ceil(1 / step)), -1, -1)]


def _short(name: str, most: int = 14) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _svg(figure: Figure, name: str, label: str) -> str:
    """A figure as one element whose identifiers begin with `name`; the same figure gives the same text."""
    file = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=empty)
    text = file.getvalue()
    text = re.sub("<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    for stand_in, colour in {INK: "currentColor", LINE: "var(--line)"}.items():
        text = text.replace(stand_in, colour)
    for i, stand_in in enumerate(GROUPS):
        text = text.replace(stand_in, colour_of(i))
    return text.replace("<svg ", f'<svg role="img" aria-label="{_attribute(label)}" ', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
