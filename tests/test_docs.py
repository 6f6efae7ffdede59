"""The documentation agrees with the code and with itself: links, quoted messages, the reference, results."""

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "notebooks").rglob("*.md")])
FENCE = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", text_of(page), flags=re.MULTILINE):
        plain = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower().strip()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = sum(one == anchor or re.fullmatch(re.escape(anchor) + r"-\d+", one) is not None for one in found)
        found.add(f"{anchor}-{count}" if count else anchor)
    return found


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
            if not re.match(r"[a-z]+:", target):
                yield page, target


@pytest.mark.parametrize(("page", "target"), list(links()), ids=lambda value: str(getattr(value, "name", value)))
def test_links_lead_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    there = (page.parent / path).resolve() if path else page
    assert there.exists(), f"{page.name}: {target}"
    if anchor:
        assert anchor in anchors(there), f"{page.name}: {target}; there are {sorted(anchors(there))}"


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target).resolve() for page, target in links() if page == index}
    assert set((ROOT / "docs").glob("*.md")) - {index} <= linked


@cache
def messages() -> list[str]:
    """Every string in the package; what an f-string fills in is a NUL."""
    found = []
    for path in (ROOT / "fedmtl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sd]", "\0", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                found.append("".join(map(str, parts)))
    return [message.replace("`", "") for message in found]


QUOTED = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("message", QUOTED)
def test_messages_of_the_faq_are_those_of_the_code(message: str) -> None:
    pattern = ".*".join(map(re.escape, message.split("…")))
    assert any(re.search(pattern, text, flags=re.DOTALL) for text in messages())


def test_the_faq_quotes_messages() -> None:
    assert len(QUOTED) > 15


def load(script: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The script that writes the reference."""
    return load(ROOT / "docs" / "generate_reference.py")


def test_the_reference_is_what_the_code_says(reference: ModuleType) -> None:
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == reference.page(), "run python docs/generate_reference.py"


def test_an_argument_without_a_text_is_refused(reference: ModuleType) -> None:
    class Silent:
        """Says nothing of its argument.

        Args:
            told: something.
        """

        def __init__(self, told: int, untold: int = 1) -> None: ...

    with pytest.raises(ValueError, match="says nothing of untold"):
        reference.table(Silent)


def test_every_result_names_its_command() -> None:
    table = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")
    rows = {name: row for row in table.splitlines() for name in re.findall(r"^\| \[(.+?)\]", row)}
    for path in sorted((ROOT / "docs" / "results").iterdir()):
        if path.name != "README.md":
            script = re.search(r"`python (\S+)", rows[path.name])
            assert script is not None
            assert (ROOT / script[1]).is_file()


def test_the_scenes_table_is_made_of_its_numbers() -> None:
    numbers = json.loads((ROOT / "docs" / "results" / "scenes.json").read_text(encoding="utf-8"))
    written = (ROOT / "docs" / "results" / "scenes.md").read_text(encoding="utf-8")
    assert written == load(ROOT / "benchmarks" / "scenes_table.py").table(numbers)
