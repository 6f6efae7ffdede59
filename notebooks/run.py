"""Executes the notebooks again, so that their outputs are what the code gives: `python notebooks/run.py [01 03 …]`."""

import base64
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

HERE = Path(__file__).parent
ERASED = re.compile(r"[^\n]*\n\x1b\[1A\x1b\[2K")  # lines of progress bars
VOLATILE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", re.MULTILINE)  # colours, times of day
PRIVATE = re.compile(
    r" at 0x[0-9a-f]+|(?<![\w.:/-])/(?:tmp|home|root|work|Users|private|var|usr|opt|mnt|venv)/|[A-Z]:\\"
)


def notebooks() -> list[Path]:
    """All notebooks, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.ipynb"))


def execute(
    path: Path, folder: Path, values: Mapping[str, Any] | None = None, timeout: int | None = None
) -> NotebookNode:
    """A notebook, run from start to end.

    Args:
        path: the notebook; its file stays as it is.
        folder: an empty one to run in; it gets the experiments, and beside them a folder that the notebook works in.
        values: what variables of the cell tagged `parameters` are set to instead.
        timeout: seconds that a cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell has failed.
    """
    notebook = nbformat.read(path, as_version=4)
    [settings] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    unknown = [name for name in values or {} if not re.search(rf"^{name} = ", settings.source, re.MULTILINE)]
    if unknown:
        raise ValueError(f"{path.name} has no setting {', '.join(unknown)}")
    settings.source += "".join(f"\n{name} = {value!r}" for name, value in (values or {}).items())
    shutil.copytree(HERE.parent / "experiments", folder / "experiments")
    (folder / "notebooks").mkdir()
    where = {"metadata": {"path": str(folder / "notebooks")}}
    # %%bash cells find the fedmtl of this interpreter
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    options = {"timeout": timeout, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    options["extra_arguments"] = ["--log-level=ERROR"]  # kernels warn that they talk to us by TCP
    client = NotebookClient(notebook, resources=where, **options)
    client.execute(env={**os.environ, "PATH": search, "COLUMNS": "110"})
    return notebook


def clean(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what differs from machine to machine, and with small pictures.

    Raises:
        ValueError: an output holds something from standard error, or a path of this machine.
    """
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {"tags": tags} if (tags := cell.metadata.get("tags")) else {}
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if output.output_type == "stream":
                output.text = VOLATILE.sub("", ERASED.sub("", output.text))
            else:
                output.metadata = {}
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = small(output.data["image/png"])
        found = noise(cell)
        if found:
            raise ValueError(f"in the outputs of\n{cell.source}\nstands\n{found}")
    return notebook


def small(png: str) -> str:
    """A PNG in base64 with 256 colours, a third of the size."""
    drawn = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    written = io.BytesIO()
    drawn.save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def noise(cell: NotebookNode) -> str | None:
    """The first thing in a cell's outputs that does not belong into a repository; None if there is nothing."""
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            return f"{output.ename}: {output.evalue}"
        data = output.get("data", {})
        text = output.get("text", "") + "\n".join(str(data[kind]) for kind in data if kind.startswith("text/"))
        if output.get("name") == "stderr" or PRIVATE.search(text):
            return text
    return None


def main(names: list[str]) -> None:
    """Executes the notebooks whose names begin so, all if there are none, and writes them."""
    for path in notebooks():
        if names and not path.name.startswith(tuple(names)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            notebook = clean(execute(path, Path(folder)))
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
