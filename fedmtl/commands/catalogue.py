"""What comes with the package: its classes and its configuration files, found by reading them, not by importing."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fedmtl

PACKAGE = Path(fedmtl.__file__).parent


@dataclass(frozen=True)
class Class:
    """A public class of a room.

    Attributes:
        path: how a configuration names it, e.g. ``fedmtl.aggregation.DEA``.
        summary: first sentence of its docstring.
        bases: names of all classes that it inherits from, nearest first.
        arguments: what its docstring says of each argument, by name.
    """

    path: str
    summary: str
    bases: tuple[str, ...]
    arguments: dict[str, str]

    @property
    def name(self) -> str:
        """Its name without the module."""
        return self.path.rpartition(".")[2]


def experiments() -> Path:
    """The folder of configuration files: of an installed package within it, of a working copy beside it."""
    inside = PACKAGE / "experiments"
    return inside if inside.is_dir() else PACKAGE.parent / "experiments"


def first_sentence(text: str) -> str:
    """The first sentence of a text, on one line, without marks of reST, and up to the first formula in TeX."""
    line = " ".join(text.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=\.) (?=[A-Z])", line)[0]
    return re.sub(r"[,:;][^,:;]*:math:.*", "", sentence).replace("`", "").rstrip(".:;")


def comment(path: Path) -> str:
    """The first sentence of the comment that a YAML file begins with; empty if it begins with none."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return first_sentence("\n".join(lines))


def shipped(folder: str = ".") -> Iterator[tuple[Path, str]]:
    """The configuration files in a folder of `experiments`, by name, each with the first sentence of its comment."""
    for path in sorted((experiments() / folder).glob("*.yaml")):
        yield path, comment(path)


@cache
def classes(room: str) -> dict[str, Class]:
    """The classes that a room of the package exports, by name.

    Args:
        room: e.g. ``aggregation``; a module or a package of modules.
    """
    folder = PACKAGE / room
    start = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    defined: dict[str, ast.ClassDef] = {}
    for path in sorted(folder.glob("*.py")) if folder.is_dir() else [start]:
        for node in _parse(path).body:
            if isinstance(node, ast.ClassDef):
                defined[node.name] = node
    exported = _exported(_parse(start)) if folder.is_dir() else [*defined]
    found = {}
    for name in sorted(exported, key=str.lower):
        if name in defined:
            text = ast.get_docstring(defined[name]) or ""
            bases = tuple(_ancestors(name, defined))
            found[name] = Class(f"fedmtl.{room}.{name}", first_sentence(text), bases, arguments(text))
    return found


def arguments(docstring: str) -> dict[str, str]:
    """The Args section of a Google docstring: what it says of each, on one line."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n(?=[ ]))+)", docstring, flags=re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in section[1].splitlines() if section else ():
        if begins := re.match(r" {4}(\w+): (.*)", line):
            name, found[begins[1]] = begins[1], begins[2]
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _exported(module: ast.Module) -> list[str]:
    for node in module.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return []


def _ancestors(name: str, defined: dict[str, ast.ClassDef]) -> Iterator[str]:
    for base in defined[name].bases if name in defined else ():
        text = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        yield text
        yield from _ancestors(text, defined)
