"""`fedmtl init`: lays down a small experiment of one's own."""

import re
import shlex
from argparse import ArgumentParser
from pathlib import Path

from fedmtl.commands.advice import among
from fedmtl.commands.catalogue import experiments, shipped
from fedmtl.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"
DATA = ("scenes", "folder", "nyud", "pascal")
RUN = "name of the run and of its folder; config.yaml sets its own"
NEEDS_DATA = """The data are at `{root}` (`data.root` in base.yaml). Before the first run: `fedmtl data check {word}`;
where to get public data sets, and how to describe your own: `fedmtl data download`.

"""


def parser() -> ArgumentParser:
    """The command's words."""
    made = ArgumentParser(
        prog="fedmtl init",
        description=__doc__,
        epilog="example: fedmtl init mine --data folder --root ~/pictures --method dea",
        allow_abbrev=False,
    )
    made.add_argument("folder", type=Path, metavar="DIR", help="folder to make; nothing in it is overwritten")
    made.add_argument(
        "--data",
        choices=DATA,
        type=among("data set", DATA),
        default="scenes",
        help="the data set (default: scenes, needs no files)",
    )
    made.add_argument("--root", type=Path, metavar="PATH", help="where the files of the data set are")
    methods = [path.stem for path, _ in shipped("methods")]
    made.add_argument(
        "--method",
        choices=methods,
        type=among("method", methods),
        default="dea",
        metavar="NAME",
        help="see fedmtl list methods (default: dea)",
    )
    return made


def main(arguments: list[str]) -> None:
    """Parses the command line and writes the files.

    Raises:
        UserError: a file is there already, or the folder can't be written, or `--root` is no data set.
    """
    own = parser().parse_args(arguments)
    if own.root and own.data == "scenes":
        raise UserError("--root: scenes are made, not read; leave it out, or give --data folder, nyud or pascal")
    files = contents(re.sub(r"[^\w.-]+", "_", own.folder.resolve().name), own.data, own.method, own.root)
    if there := [name for name in files if (own.folder / name).exists()]:
        raise UserError(f"{own.folder / there[0]} is there already, and nothing is overwritten; give another folder")
    try:
        own.folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (own.folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"can't write {own.folder}: {error.strerror}") from error
    print(f"made {', '.join(files)} in {own.folder}")
    root = _root(files["base.yaml"])
    missing = bool(root) and not (own.folder / root).is_dir()
    if missing:
        print(f"first: there are no data at {root}; put them there, or their path into base.yaml (data.init_args.root)")
        print("       fedmtl data download says where to get them, fedmtl data check PATH whether they are sound")
    goes = "" if own.folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(own.folder))} && "
    print(f"{'then' if missing else 'next'}: {goes}fedmtl fit --config config.yaml")


def contents(name: str, data: str, method: str, root: Path | None) -> dict[str, str]:
    """The files of an experiment, by name.

    Args:
        name: what its runs' names begin with.
        data: which data set, of `DATA`.
        method: name of a file in ``experiments/methods``.
        root: where the files of the data set are; where the base file has them if not given.

    Raises:
        UserError: `root` is no data set of one's own.
    """
    base = _read(TEMPLATES / "folder.yaml" if data == "folder" else experiments() / "base" / f"{data}.yaml")
    if root is not None:
        quoted = "'" + str(root.expanduser().resolve()).replace("'", "''") + "'"
        base = re.sub(r"(?m)^( +root: )\S+", lambda key: key[1] + quoted, base)
        if data == "folder":
            base = re.sub(r"(?m)^  - \{tasks: .*\n(?:  - .*\n)*", _clients(root), base)
    about, _, method_keys = _read(experiments() / "methods" / f"{method}.yaml").partition("\n")
    method_keys = _for_few_clients(data, method) or method_keys
    lies = _root(base)
    values = {"name": name, "method": method}
    values["data"] = NEEDS_DATA.format(root=lies, word=shlex.quote(lies)) if lies else ""
    while method_keys.startswith("#"):
        line, _, method_keys = method_keys.partition("\n")
        about += f"\n{line}"
    return {
        "base.yaml": re.sub(r"(?m)^name: .*", f"name: {name}  # {RUN}", base),
        "config.yaml": f"{about}\n{_filled('config.yaml', values)}{method_keys}",
        "own_method.yaml": _filled("own_method.yaml", values),
        "mine.py": _read(TEMPLATES / "mine.py"),
        "README.md": _filled("README.md", values),
    }


def _for_few_clients(data: str, method: str) -> str:
    """What a method's file says anew for a data set; of pictures of one's own, as for NYUD-v2 with its four clients."""
    path = experiments() / f"{'nyud' if data == 'folder' else data}_{method}.yaml"
    head, _, keys = (_read(path) if path.is_file() else "").partition(f"\nname: {path.stem}\n")
    return keys if f"methods/{method}.yaml" in head else ""


def _root(base: str) -> str:
    """Where a base file has its data; empty where they are made."""
    found = re.search(r"(?m)^ +root: (?:'((?:[^']|'')+)'|(\S+))", base)
    return (found[1] or found[2]).replace("''", "'") if found else ""


def _clients(root: Path) -> str:
    """A client for each task that the data set describes."""
    from fedmtl.data.folder import Folder

    return "".join(f"  - {{tasks: [{task}]}}\n" for task in Folder(root).tasks)


def _filled(template: str, values: dict[str, str]) -> str:
    text = _read(TEMPLATES / template)
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", value)
    return text


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
