"""The notebooks: each runs from start to end on tiny settings, and what is committed is fit to be read."""

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
TINY: dict[str, dict[str, Any]] = {
    "01_first_federation": {"ROUNDS": 2, "IMAGES": 10, "SIZE": 16},
    "02_why_updates_interfere": {"ROUNDS": 2, "IMAGES": 16, "SIZE": 16},
    "03_choosing_rho": {
        "ROUNDS": 2, "IMAGES": 16, "SIZE": 16, "SEEDS": [0], "RHOS": [0.5], "RESCALES": ["norm"], "STEPS": [2],
    },
    "04_your_own_data": {"PICTURES": 12, "ROUNDS": 1, "EPOCHS": 1},
    "05_your_own_method": {"ROUNDS": 1, "IMAGES": 16, "SIZE": 16, "SEEDS": [0]},
}  # fmt: skip


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """notebooks/run.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("notebooks_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_are_tested(runner: ModuleType) -> None:
    assert [path.stem for path in runner.notebooks()] == sorted(TINY)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_runs_from_start_to_end(
    name: str, runner: ModuleType, tmp_path: Path, tmp_path_factory: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("FEDMTL_CACHE", str(tmp_path_factory.getbasetemp() / "notebooks_cache"))
    profile = tmp_path_factory.mktemp("ipython")
    (profile / "profile_default" / "startup").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("notebook_startup.py"), profile / "profile_default" / "startup")
    monkeypatch.setenv("IPYTHONDIR", str(profile))
    path = FOLDER / f"{name}.ipynb"
    before = path.read_bytes()
    notebook = runner.execute(path, tmp_path, TINY[name], timeout=200)
    assert all(cell.execution_count for cell in _code(notebook))
    assert _pictures(notebook) == _pictures(nbformat.read(path, 4)) >= 2
    assert path.read_bytes() == before
    runner.clean(notebook)  # refuses standard error and paths


@pytest.mark.parametrize("name", TINY)
def test_what_is_committed(name: str, runner: ModuleType) -> None:
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 400_000
    assert [cell.execution_count for cell in _code(notebook)] == list(range(1, len(_code(notebook)) + 1))
    assert _pictures(notebook) >= 2
    assert [noise for cell in notebook.cells if (noise := runner.noise(cell))] == []
    assert not runner.PRIVATE.search("\n".join(cell.source for cell in notebook.cells))
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    text = path.read_text(encoding="utf-8")
    assert "TODO" not in text
    assert "\\u001b" not in text


@pytest.mark.parametrize("name", TINY)
def test_links(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    links = re.findall(r"\]\(([^)#:]+)\)", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"))
    assert links
    assert [link for link in links if not (FOLDER / link).exists()] == []


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ({"output_type": "stream", "name": "stdout", "text": "runs/a and 1/2, and/or, https://a.b/tmp/c\n"}, False),
        ({"output_type": "stream", "name": "stderr", "text": "a warning"}, True),
        ({"output_type": "stream", "name": "stdout", "text": "in /home/someone/runs"}, True),
        ({"output_type": "stream", "name": "stdout", "text": "in C:\\runs"}, True),
        ({"output_type": "display_data", "metadata": {}, "data": {"text/plain": "Path('/tmp/a')"}}, True),
        ({"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}, True),
    ],
)
def test_what_is_noise(runner: ModuleType, output: dict[str, Any], found: bool) -> None:
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.from_dict(output)])
    assert bool(runner.noise(cell)) == found


def test_unknown_setting(runner: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no setting EPOCS"):
        runner.execute(FOLDER / "04_your_own_data.ipynb", tmp_path, {"EPOCS": 1})
