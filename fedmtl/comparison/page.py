"""A comparison as one HTML page that needs nothing beside itself: no scripts, no fonts, no other file."""

from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedmtl.comparison import charts, pictures, table
from fedmtl.comparison.charts import Chart
from fedmtl.comparison.comparison import Comparison
from fedmtl.comparison.interference import pair_history
from fedmtl.errors import UserError
from fedmtl.tracking.run_directory import write_text

HEATS = {
    "cosine": ("Cosine of two clients' updates", "Below 0, red, they pull against one another.", True),
    "mask_overlap": (
        "Overlap of two clients' masks",
        "Entries that both keep, of those that one does (Jaccard).",
        False,
    ),
}


def write(path: Path, comparison: Comparison) -> None:
    """Writes the page, whole or not at all.

    Raises:
        UserError: it can't be written.
    """
    text = page(comparison)
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--html: {path} can't be written: {error.strerror or error}") from None


def page(comparison: Comparison) -> str:
    """The page; the same runs give the same text."""
    environment = Environment(
        loader=PackageLoader("fedmtl.comparison", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["svg"] = lambda chart: Markup(chart.svg)
    scenes, drawn_by = pictures.scenes(comparison)
    groups = [(group.name, charts.colour_of(i)) for i, group in enumerate(comparison.groups)]
    return environment.get_template("page.html.j2").render(
        groups=groups,
        number_of_runs=sum(len(group.runs) for group in comparison.groups),
        tasks=list(comparison.primary),
        notes=comparison.notes,
        metrics=table.metrics(comparison),
        changes=table.changes(comparison),
        cost=table.cost(comparison),
        configurations=table.configurations(comparison),
        every_run=table.every_run(comparison),
        curves=charts.curves(comparison),
        radar=charts.radar(comparison),
        bars=charts.bars(comparison),
        heats=heats(comparison),
        scenes=scenes,
        drawn_by=drawn_by,
    )


def heats(comparison: Comparison) -> list[tuple[str, str, list[Chart]]]:
    """Heat maps by what they show: its name, a sentence on it, and a chart a group; on one scale of colours."""
    result = []
    for key, (title, note, signed) in HEATS.items():
        found = {i: h for i, group in enumerate(comparison.groups) if (h := pair_history(group, key)) is not None}
        if found:
            largest = max(float(np.nanmax(np.abs(history.values), initial=0.0)) for history in found.values()) or 1.0
            made = [
                charts.heat_map(h, comparison.groups[i].name, f"heat-{key}-{i}", largest, signed=signed)
                for i, h in found.items()
            ]
            result.append((title, note, made))
    return result
