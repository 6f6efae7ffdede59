"""Diagnostics as pictures: how alike the clients' updates are, pair by pair, and where their masks lie."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from fedmtl.tracking.base import Picture

SIGNED, UNSIGNED = "RdBu", "viridis"  # colours; where updates pull against one another, below 0, it is red
# what is drawn of pairs of clients: title, range, colours
PAIRS: dict[str, tuple[str, tuple[float, float], str]] = {
    "cosine": ("cosine of updates", (-1, 1), SIGNED),
    "sent_cosine": ("cosine of what is sent", (-1, 1), SIGNED),
    "mask_overlap": ("overlap of masks (Jaccard)", (0, 1), UNSIGNED),
}
LABELLED, WRITTEN = 40, 12  # most rows or columns with a name each, and with numbers in the cells


def heat_maps(round: int, details: Mapping[str, Any]) -> dict[str, Picture]:
    """Pictures of a round's diagnostics, by name.

    Args:
        round: of the federation.
        details: what `Diagnostics.measure` gives beside the numbers of the row.

    Returns:
        ``cosine``, ``sent_cosine`` and ``mask_overlap`` of each pair of clients, and ``mask_share`` of each client and
        stage of the backbone; those that were measured.
    """
    clients = list(details["clients"])
    drawn = {
        key: heat_map(
            details["pairs"][key], clients, clients, title=f"{title}, round {round}", limits=limits, colours=colours
        )
        for key, (title, limits, colours) in PAIRS.items()
        if key in details["pairs"] and len(clients) > 1
    }
    stages = {key.removeprefix("mask_share/"): v for key, v in details["each"].items() if key.startswith("mask_share/")}
    if stages:
        shares = np.array(list(stages.values())).T
        title = f"share of entries kept by stage, round {round}"
        drawn["mask_share"] = heat_map(shares, clients, list(stages), title=title, limits=(0, 1), colours=UNSIGNED)
    return drawn


def heat_map(
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    limits: tuple[float, float],
    colours: str,
) -> Picture:
    """A matrix in colours, with its numbers where there is room.

    Args:
        values: (rows, columns).
        rows: their names.
        columns: their names.
        title: above it.
        limits: values at the ends of the colours.
        colours: matplotlib's name of the colours.
    """
    matrix = np.asarray(values, dtype=np.float64)
    figure = Figure(figsize=(6.4, 5.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(matrix, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    figure.colorbar(image, shrink=0.9)
    axes.set_title(title)
    axes.set_xticks(*_ticks(columns), rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(*_ticks(rows))
    if max(matrix.shape) <= WRITTEN:
        for (row, column), value in np.ndenumerate(matrix):
            light = np.mean(image.cmap(image.norm(value))[:3]) > 0.5
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="black" if light else "white")
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def _ticks(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Places and names, thinned out where there are too many."""
    places = list(range(0, len(names), -(-len(names) // LABELLED) or 1))
    return places, [name if len(name) <= 24 else f"{name[:23]}…" for name in (names[i] for i in places)]
