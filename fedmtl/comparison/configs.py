"""What of a run's configuration makes its method, and in what the methods of several runs differ."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedmtl.errors import UserError
from fedmtl.runs import Run, printable

# keys that say who runs it, where, and what is written down, not what the method is
BESIDE = frozenset(
    (
        *("name", "out", "seed", "baseline", "tracker", "pictures", "diagnostics", "states"),
        *("checkpoint_every", "eval_every", "eval_batch_size"),
    )
)
MACHINE = frozenset(f"fabric.{key}" for key in ("accelerator", "devices", "num_nodes", "threads", "workers"))
MOST_KEYS = 100_000  # a configuration has some hundreds; one of nested references could have any number

Method = dict[str, str]  # values by flattened key


def method(run: Run) -> Method:
    """The part of a run's configuration that makes its method, flattened: ``upload[0].rho`` is ``0.3``.

    What is null or empty is left out, as if it were not there. A data set's folder stays: of one's own files it says
    which data set it is.

    Raises:
        UserError: it is no configuration but a knot of references.
    """
    flat: Method = {}
    try:
        for count, (key, value) in enumerate(_leaves(run.config, "")):
            if count > MOST_KEYS:
                raise RecursionError
            if key.split(".")[0] not in BESIDE and key.split(".")[-1] != "cache" and key not in MACHINE:
                flat[printable(key.replace(".init_args", "").removesuffix(".class_path"))] = value
    except RecursionError:
        raise UserError(f"{run.path / 'config.yaml'} is no run's configuration: it is too large") from None
    return flat


def differences(methods: Sequence[Method]) -> dict[str, list[str]]:
    """In what methods differ: the keys, and the value of each method, short; empty where it has no such key.

    What a class is given stands beside its name where only one of them has that class; where several do and are given
    the same, it is left out.
    """
    keys = dict.fromkeys(key for flat in methods for key in flat)
    rows = {key: [flat.get(key, "null") for flat in methods] for key in keys}
    there = {key: [flat[key] for flat in methods if key in flat] for key in keys}
    differing = {key: values for key, values in rows.items() if len(set(values)) > 1}
    folded: list[str] = []
    for key in differing:
        owner = key.rpartition(".")[0]
        if len(there[key]) < len(methods) and len(set(there[key])) == 1 and owner in differing and owner not in folded:
            folded.append(key)
    result: dict[str, list[str]] = {}
    for key, values in differing.items():
        if key not in folded:
            inner = [name for name in folded if name.rpartition(".")[0] == key and len(there[name]) == 1]
            result[key] = [_cell(value, inner, flat) for value, flat in zip(values, methods, strict=True)]
    return result


def _cell(value: str, inner: Sequence[str], flat: Method) -> str:
    given = [
        f"{name.rpartition('.')[2]} {_last(flat[name])}"
        for name in inner
        if flat.get(name, "null") not in ("null", "false")
    ]
    return "" if value == "null" else ", ".join([_last(value), *given])


def _last(value: str) -> str:
    """A class without its modules."""
    parts = value.split(".")
    return parts[-1] if len(parts) > 1 and all(part.isidentifier() for part in parts) else value


def _leaves(tree: Any, key: str) -> Iterator[tuple[str, str]]:
    """A tree's plain values but null by their path; a list of plain values is one of them, an empty one is nothing."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list) and any(isinstance(value, Mapping | list) for value in tree):
        for i, value in enumerate(tree):
            yield from _leaves(value, f"{key}[{i}]")
    elif tree is not None and tree != []:
        yield key, printable(f"[{', '.join(map(_plain, tree))}]" if isinstance(tree, list) else _plain(tree))


def _plain(value: Any) -> str:
    """A value as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
