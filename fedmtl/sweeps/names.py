"""Names of a sweep's runs, made of what differs between them."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from fedmtl.sweeps.definition import Setting, Sweep, identity
from fedmtl.sweeps.parameters import Parameter

_LONGEST = 80  # characters; file systems take 255 bytes, tables less
RESERVED = ("logs",)  # what else lies in a sweep's folder


def run_names(sweep: Sweep, settings: Sequence[Setting]) -> list[str]:
    """A name a setting, such as ``rho_0.2_s1``: one path component, no two alike on any file system.

    The name depends on the setting alone, unless one before it has that name: then a hash tells it apart. So more
    settings at the end rename no run. The seed comes last, so that runs which differ in it alone share the rest.
    """
    short, said = keys(sweep), Labels(sweep)
    order = sorted(sweep.varied, key=lambda parameter: parameter.path == ("seed",))
    found: list[str] = []
    taken = set(RESERVED)
    for setting in settings:
        pieces = [_piece(p, short[p.path], said(p, setting[p.path])) for p in order]
        name = "_".join(pieces) or "run"
        name = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}_{_hash(setting)}"
        while name.lower() in taken:
            name = f"{name}_{_hash(setting)}"
        found.append(name)
        taken.add(name.lower())
    return found


def keys(sweep: Sweep) -> dict[tuple[str, ...], str]:
    """A short name for each varied parameter: its last part, more where that is not its own."""
    parts = {p.path: [part for part in p.name.split(".") if part != "init_args"] for p in sweep.varied}
    short = {}
    for path, own in parts.items():
        others = [other for there, other in parts.items() if there != path]
        length = next((n for n in range(1, len(own)) if not any(o[-n:] == own[-n:] for o in others)), len(own))
        short[path] = ".".join(own[-length:])
    return short


class Labels:
    """What a parameter's values are called: a class by its name alone, unless another value has the same."""

    def __init__(self, sweep: Sweep) -> None:
        brief = {p.path: [_brief(value) for value in p.listed or []] for p in sweep.varied}
        self._ambiguous = {path for path, texts in brief.items() if len(set(texts)) < len(texts)}

    def __call__(self, parameter: Parameter, value: Any) -> str:
        """What this value is called."""
        return _full(value) if parameter.path in self._ambiguous else _brief(value)


def _piece(parameter: Parameter, key: str, label: str) -> str:
    text = _slug(label)
    if parameter.path == ("seed",):
        return f"s{text}"
    return text if parameter.path == ("config",) else f"{_slug(key)}_{text}"


def _brief(value: Any) -> str:
    """Numbers with four digits, files by their stem, classes by their name."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    if isinstance(value, list):
        return "+".join(map(_brief, value)) or "none"
    if isinstance(value, str) and value.endswith((".yaml", ".yml", ".json")):
        return PurePath(value).stem
    return _full(value)


def _full(value: Any) -> str:
    """Everything that a value says."""
    if isinstance(value, dict) and "class_path" in value:
        return "-".join([str(value["class_path"]).rpartition(".")[2], *_pairs(value.get("init_args") or {})])
    if isinstance(value, dict):
        return "-".join(_pairs(value)) or "none"
    if isinstance(value, list):
        return "+".join(map(_full, value)) or "none"
    return str(value)


def _pairs(tree: dict[str, Any]) -> list[str]:
    return [f"{key}{_full(value)}" for key, value in tree.items()]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).lstrip(".") or "none"


def _hash(setting: Setting) -> str:
    return hashlib.blake2b(identity(setting).encode(), digest_size=3).hexdigest()
