"""A sweep's plot: the metric over a numeric parameter, or bars for one of words; seeds as mean ± deviation."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedmtl import atomic
from fedmtl.sweeps.names import Labels, keys
from fedmtl.sweeps.parameters import Parameter
from fedmtl.sweeps.summary import CHANGES, SEED, Group, Summary, mean_and_deviation, setting_label

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#B2A100"]  # Okabe and Ito's
MARKS = "osD^vPX*"
_STYLE: Any = {
    "svg.hashsalt": "fedmtl",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a value with dollars is a value
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_LARGEST = 6  # parameters of a random search that get a panel


def draw(summary: Summary, path: Path) -> list[Path]:
    """Draws PNG and SVG.

    Args:
        summary: of a sweep with a metric and a varied parameter beside the seed.
        path: the file without its ending.

    Returns:
        The files; none where there is nothing to draw.

    Raises:
        OSError: one can't be written; nothing is left of it.
    """
    varied = [p for p in summary.sweep.varied if p.path != SEED]
    if summary.metric is None or not summary.groups or not varied:
        return []
    with rc_context(_STYLE):
        figure = _panels(summary, varied) if summary.sweep.method == "random" else _grid(summary, varied)
        files = [path.with_suffix(".png"), path.with_suffix(".svg")]
        for file in files:
            atomic.replace(file, functools.partial(_save, figure, file.suffix[1:]))
    return files


def _save(figure: Figure, kind: str, file: BinaryIO) -> None:
    figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def _grid(summary: Summary, varied: Sequence[Parameter]) -> Figure:
    """One chart: the first numeric parameter, or else the first, along x; a line or colour for each of the rest."""
    along = next((p for p in varied if _numeric(p)), varied[0])
    others = [p for p in varied if p is not along]
    series: dict[str, list[Group]] = {}
    for group in sorted(summary.groups, key=lambda g: _order(others, g)):
        rest = {path: value for path, value in group.setting.items() if path != along.path}
        series.setdefault(setting_label(summary.sweep, rest), []).append(group)
    width = 6.4 if _numeric(along) else min(14.0, max(5.0, 1.2 + 0.45 * len(along.listed or []) * (len(series) + 1)))
    figure, axes = _figure(summary, width)
    for number, (label, groups) in enumerate(series.items()):
        look = {"color": COLOURS[number % len(COLOURS)], "label": label or None}
        if _numeric(along):
            _line(axes, summary, along, groups, marker=MARKS[number // len(COLOURS) % len(MARKS)], **look)
        else:
            _bars(axes, summary, along, groups, place=(number, len(series)), **look)
    _name_axes(axes, summary, along)
    if len(series) > 1:
        figure.legend(loc="outside lower center", frameon=False, ncols=min(len(series), 4), fontsize=8)
    return figure


def _line(axes: Axes, summary: Summary, along: Parameter, groups: Sequence[Group], **look: Any) -> None:
    groups = sorted(groups, key=lambda g: float(g.setting[along.path]))
    points = [(float(g.setting[along.path]), values) for g in groups if (values := _values(summary, g))]
    if not points:
        return
    means, spreads = zip(*(mean_and_deviation(values) for _, values in points), strict=True)
    yerr = [spread or 0.0 for spread in spreads] if any(spreads) else None
    axes.errorbar([x for x, _ in points], means, yerr=yerr, capsize=3, markersize=5, **look)
    for x, values in points:
        if len(values) > 1:
            axes.plot([x] * len(values), values, ".", color=look["color"], alpha=0.35, markersize=5)


def _bars(
    axes: Axes, summary: Summary, along: Parameter, groups: Sequence[Group], place: tuple[int, int], **look: Any
) -> None:
    choices = [str(value) for value in along.listed or []]
    number, count = place
    width = 0.8 / count
    for group in groups:
        values = _values(summary, group)
        if not values:
            continue
        x = choices.index(str(group.setting[along.path])) + (number - (count - 1) / 2) * width
        middle, spread = mean_and_deviation(values)
        axes.bar(x, middle, width * 0.92, yerr=spread, capsize=3, alpha=0.85, **look)
        axes.plot([x] * len(values), values, ".", color="black", alpha=0.5, markersize=4)
        look.pop("label", None)


def _panels(summary: Summary, varied: Sequence[Parameter]) -> Figure:
    """A random search: a panel a parameter, a point a setting, the best one ringed."""
    shown = varied[:_LARGEST]
    figure = Figure(figsize=(3.6 * len(shown) + 0.8, 4.0), layout="constrained")
    all_axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for parameter, axes in zip(shown, all_axes, strict=True):
        places = [_place(parameter, group) for group in summary.groups]
        means = [mean_and_deviation(v)[0] if (v := _values(summary, g)) else float("nan") for g in summary.groups]
        axes.plot(places, means, "o", color=COLOURS[0], alpha=0.7)
        axes.plot(places[:1], means[:1], "o", markersize=12, markerfacecolor="none", markeredgecolor=COLOURS[1])
        _name_axes(axes, summary, parameter)
        if parameter.distribution.removeprefix("q_").removeprefix("inv_").startswith("log"):
            axes.set_xscale("log")
        if axes is not all_axes[0]:
            axes.set_ylabel("")
    figure.suptitle(f"{summary.sweep.name}: the ring is the best", fontsize=10)
    return figure


def _figure(summary: Summary, width: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4.4), layout="constrained")
    axes = figure.subplots()
    runs = [len(_values(summary, group)) for group in summary.groups]
    seeds = f", mean ± deviation over up to {max(runs)} seeds" if max(runs) > 1 else ""
    axes.set_title(f"{summary.sweep.name}{seeds}", fontsize=10)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _name_axes(axes: Axes, summary: Summary, along: Parameter) -> None:
    assert summary.metric is not None
    arrow = "higher is better" if summary.metric.maximize else "lower is better"
    name = "Δm" if summary.title in CHANGES else summary.title
    unit = " in %" if summary.metric.name in CHANGES else ""
    axes.set_ylabel(f"{name}{unit}\n({arrow})", fontsize=9)
    axes.set_xlabel(keys(summary.sweep)[along.path])
    if _numeric(along) and along.choices:
        _number_ticks(axes, sorted({float(value) for value in along.choices}))
    elif not _numeric(along):
        said = Labels(summary.sweep)
        texts = [said(along, value) for value in along.listed or []]
        axes.set_xlim(-0.6, len(texts) - 0.4)
        long = sum(map(len, texts)) > 60
        axes.set_xticks(
            range(len(texts)), texts, rotation=30 if long else 0, ha="right" if long else "center", fontsize=8
        )
    values = [v for group in summary.groups for v in _values(summary, group)]
    if min(values) < 0 < max(values):
        axes.axhline(0, color="black", linewidth=0.6)


def _number_ticks(axes: Axes, values: Sequence[float]) -> None:
    if values[0] > 0 and values[-1] / values[0] > 50:
        axes.set_xscale("log")
    if len(values) <= 12:
        axes.set_xticks(values, [f"{value:.3g}" for value in values])
        axes.minorticks_off()


def _values(summary: Summary, group: Group) -> list[float]:
    assert summary.metric is not None
    return group.values(summary.metric.name)


def _numeric(parameter: Parameter) -> bool:
    values = parameter.listed
    return values is None or all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _place(parameter: Parameter, group: Group) -> float:
    value = group.setting[parameter.path]
    return float(value) if _numeric(parameter) else float([str(v) for v in parameter.listed or []].index(str(value)))


def _order(parameters: Sequence[Parameter], group: Group) -> list[int]:
    """Where a group stands in the file's order of values."""
    return [[str(v) for v in p.choices or []].index(str(group.setting[p.path])) for p in parameters if p.choices]
