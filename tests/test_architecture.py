"""The house stands: a room imports only from floors below its own, as docs/architecture.md says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def floors() -> dict[str, int]:
    """Floor by room, from the table in the document."""
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", (ROOT / "docs" / "architecture.md").read_text(), flags=re.MULTILINE)
    return {
        room.removesuffix(".py").strip("/"): int(floor) for floor, cell in rows for room in re.findall(r"`(.+?)`", cell)
    }


def room(path: Path) -> str:
    return path.relative_to(ROOT / "fedmtl").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted((ROOT / "fedmtl").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    floor, here = floors(), room(path)
    if here in ("__init__", "__main__"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedmtl."):
            there = str(node.module).split(".")[1]
            assert there == here or floor[there] < floor[here], f"{here} imports {there}"
