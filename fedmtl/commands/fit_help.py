"""`fedmtl fit --help`: the options and the top keys of a configuration, read off the code without loading it."""

import ast
import textwrap
from collections.abc import Iterator

from fedmtl.commands.catalogue import PACKAGE, classes

USAGE = """usage: fedmtl fit --config FILE [--config FILE ...] [--KEY VALUE ...]

Trains one unified model across clients. Files merge from left to right; what the command line says wins.
"""
MORE = """Keys go on below these, with dots, as in the files:
  fedmtl fit --config experiments/scenes_dea.yaml --rounds 4 --upload.rho 0.3 --local.optimizer.lr 3e-4

  fedmtl fit --help-all                       every option, with types and defaults
  fedmtl fit --model.help                     the keys of a class; --server.aggregator.help fedmtl.aggregation.Krum
  fedmtl fit --config FILE --print_config     the whole configuration as it would be used
  fedmtl list methods                         classes that a file can name; fedmtl list says what else is listed
"""


def main(arguments: list[str]) -> None:
    """Prints it."""
    print(USAGE)
    print("options:")
    _rows({"--config FILE": "YAML file; several merge from left to right", **dict(options())})
    print("keys of a configuration:")
    _rows({f"--{key}": text for key, text in classes("experiment")["Experiment"].arguments.items()})
    print(MORE, end="")


def options() -> Iterator[tuple[str, str]]:
    """The options of the command that are no keys, each with its help, from the source of `fit`."""
    for node in ast.walk(ast.parse((PACKAGE / "commands" / "fit.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            words = [part.value for part in ast.walk(given.get("type", node)) if isinstance(part, ast.Constant)]
            name = ast.literal_eval(node.args[0])
            choices = f" {{{','.join(map(str, words))}}}" if "type" in given and words else ""
            yield f"{name}{choices}", ast.literal_eval(given["help"]) if "help" in given else ""


def _rows(rows: dict[str, str]) -> None:
    for name, text in rows.items():
        lines = textwrap.wrap(text.replace("`", ""), 88) or [""]
        if len(name) > 19:
            print(f"  {name}")
            name = ""
        print(f"  {name:<20}{lines[0]}", *(f"{'':<22}{line}" for line in lines[1:]), sep="\n")
    print()
