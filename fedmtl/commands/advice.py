"""What a user may have meant by a key or a class that there is not."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from fedmtl.errors import UserError
from fedmtl.trust import BUILT_IN, Trust

FEW = 8  # names that are listed where none is near

OPTION = re.compile(r"Option '(.+?)' is not accepted")
WORD = re.compile(r"unrecognized arguments: --([\w.]+)")
NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
NO_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'(?:\. Got value: (\S+))?")


def among(what: str, names: Iterable[str]) -> Callable[[str], str]:
    """Reads a word of the command line that must be one of some; for argparse's ``type``, beside its ``choices``.

    Args:
        what: what the word names, e.g. ``method``.
        names: the words.

    Returns:
        A function that gives the word back, or raises `UserError` with what may have been meant.
    """
    known = list(names)

    def read(word: str) -> str:
        if word in known:
            return word
        near = get_close_matches(word, known, n=1)
        raise UserError(
            f"there is no {what} {word!r}; {f'did you mean {near[0]}?' if near else f'there are {_some(known)}'}"
        )

    return read


def wrong_key(reason: str) -> str:
    """The key that a parser's message does not know, below the one that it names; empty if it speaks of a value."""
    found = OPTION.search(reason) or WORD.search(reason)
    return found[1].replace("init_args.", "") if found else ""


def wrong_class(classes: Sequence[str], reason: str) -> str:
    """The class that a parser's message does not find; empty if it speaks of something else.

    Args:
        classes: paths of the classes that the message names.
        reason: what it says.
    """
    if found := NO_CLASS.search(reason):
        return found[1]
    if found := NO_ATTRIBUTE.search(reason):
        module, attribute, value = found.groups()
        path = f"{module}.{attribute}"
        for named in (value, *reversed(classes)):
            if f"{named}.".startswith(f"{path}."):
                return str(named)
        return path if Trust(BUILT_IN).covers(module) else ""  # else a module of the user's own breaks
    return classes[-1] if classes and "No module named" in reason else ""


def slip(key: str, classes: Sequence[str], reason: str) -> str:
    """A key or class that there is not, in one sentence; empty if the message speaks of something else.

    Args:
        key: the key that the parser names, dotted; empty at the top.
        classes: paths of the classes that it names.
        reason: what it says.
    """
    if wrong := wrong_key(reason):
        return f"there is no key {'--' if WORD.search(reason) and not key else ''}{wrong}"
    if wrong := wrong_class(classes, reason):
        return f"there is no class {wrong}" + (f": {reason}" if "No module named" in reason else "")
    return ""


def advice(key: str, classes: Sequence[str], reason: str, extra: Iterable[str] = ()) -> str:
    """What may have been meant.

    Args:
        key: the key that the parser names, dotted; empty at the top.
        classes: paths of the classes that it names.
        reason: what it says.
        extra: options of the command that are no keys.

    Returns:
        A clause that begins with ``; ``, or nothing.
    """
    last = classes[-1] if classes else ""
    if wrong := wrong_key(reason):
        meant = _key(key, wrong, last, extra)
        return meant.replace("mean ", "mean --", 1) if WORD.search(reason) and not key else meant
    if wrong := wrong_class(classes, reason):
        return _class(key, wrong) or "; give its import path"
    return _class(key, "") if "expected a subclass of" in reason else ""


def _key(parent: str, wrong: str, owner: str, extra: Iterable[str]) -> str:
    from fedmtl.commands.keys import all_keys

    first, _, rest = wrong.partition(".")
    level = [one for one in all_keys() if one.parent == parent]
    level = [one for one in level if one.owner == owner] or level
    names = [one.name for one in level] + (list(extra) if not parent else [])
    dot = f"{parent}." if parent else ""
    if first in names and rest:  # as far as that it is right
        return _key(f"{dot}{first}", rest, "", ())
    if near := get_close_matches(first, names, n=1, cutoff=0.7):
        return f"; did you mean {dot}{near[0]}{'.' + rest if rest else ''}?"
    if takers := [one.owner for one in all_keys() if one.path == f"{dot}{wrong}"]:
        return f"; it is a key of {_some(takers)}"
    paths = list(dict.fromkeys(one.path for one in all_keys() if "." in one.path))
    last = wrong.rpartition(".")[2]
    for cutoff in (0.99, 0.8):  # the same name elsewhere, then a similar one
        close = [one for one in sorted(paths, key=_usual) if _alike(last, one.rpartition(".")[2], cutoff)]
        if close:
            return f"; did you mean {close[0]}?"
    if near := get_close_matches(first, names, n=1, cutoff=0.5):
        return f"; did you mean {dot}{near[0]}?"
    return f"; there are {_some(names)}" if parent and names else ""


def _class(key: str, wrong: str) -> str:
    from fedmtl.commands.keys import all_keys

    paths = list(dict.fromkeys(path for one in all_keys() if one.path == key for path in one.classes))
    names = {path.rpartition(".")[2].lower(): path for path in reversed(paths)}
    near = get_close_matches(wrong.rpartition(".")[2].lower(), names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {names[near[0]]}?"
    return f"; there are {_some(paths)}" if paths else ""


def beside_classes(content: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Keys that look like a misspelt ``class_path`` or ``init_args``: the key above, what is there, what was meant."""
    if isinstance(content, list):
        for item in content:
            yield from beside_classes(item, path)
    elif isinstance(content, dict):
        for key, value in content.items():
            near = get_close_matches(str(key), ("class_path", "init_args"), n=1, cutoff=0.75)
            if near and key not in near and near[0] not in content:
                yield path, str(key), near[0]
            deeper = path if key == "init_args" else f"{path}.{key}" if path else str(key)
            yield from beside_classes(value, deeper)


def holds(content: Any, path: Sequence[str]) -> bool:
    """Whether a file's content has a key; ``init_args`` and places in lists count as nothing."""
    if not path:
        return True
    if isinstance(content, list):
        return any(holds(item, path) for item in content)
    if not isinstance(content, dict):
        return False
    here = path[0] in content and holds(content[path[0]], path[1:])
    return here or holds(content.get("init_args"), path)


def _alike(one: str, other: str, cutoff: float) -> bool:
    return bool(get_close_matches(one, [other], cutoff=cutoff))


def _usual(path: str) -> tuple[int, bool]:
    """Shallow keys come first, and those of all clients before those of one group."""
    return path.count("."), path.startswith("clients.")


def _some(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:FEW]) + (", …" if len(names) > FEW else "")
