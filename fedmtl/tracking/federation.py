"""Who has what in a run, as a table for trackers."""

import json
from pathlib import Path
from typing import Any


def federation_table(run: Path) -> tuple[list[str], list[list[Any]]]:
    """Names of columns, and a row a client, from a run's federation.json; the names of images are left out.

    Args:
        run: folder of the run.

    Raises:
        OSError: the file can't be read.
    """
    rows = json.loads((run / "federation.json").read_text(encoding="utf-8"))
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "ids"]
    return columns, [[_cell(row.get(name)) for name in columns] for row in rows]


def _cell(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value
