"""A run's method in short names, read from its configuration: for columns and tags of a tracker."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

LONGEST = 64  # letters of a tag that W&B takes


def columns(config: Mapping[str, Any]) -> dict[str, str | int | float]:
    """What tells methods apart, one short value a column.

    Args:
        config: a resolved configuration.

    Returns:
        ``method`` in one line, its pieces ``method/algorithm``, ``upload``, ``rho`` (if it is one number),
        ``aggregator``, ``optimizer`` and ``share``, and what it is tried on: ``method/data``, ``tasks``, ``clients``
        and ``backbone``.
    """
    clients = [group for group in config.get("clients") or [] if isinstance(group, Mapping)]
    tasks = dict.fromkeys(task for group in clients for task in group.get("tasks") or [])
    algorithm, upload, aggregator, optimizer = _pieces(config)
    share = str(config.get("share", "model"))
    given = [short(piece) for piece in (*upload, aggregator, optimizer) if piece]
    method = " + ".join([short(algorithm) if algorithm else "FedAvg", *given])
    rhos = [_arguments(piece).get("rho") for piece in upload]
    rho = {"method/rho": rhos[0]} if len(rhos) == 1 and isinstance(rhos[0], (int, float)) else {}
    return {
        "method": "alone" if share == "none" else method + (", own heads" if share == "encoder" else ""),
        "method/algorithm": short(algorithm) if algorithm else "FedAvg",
        "method/upload": " + ".join(short(piece) for piece in upload) or "everything",
        **rho,
        "method/aggregator": short(aggregator) if aggregator else "WeightedMean",
        "method/optimizer": short(optimizer) if optimizer else "SGD(lr=1)",
        "method/share": share,
        "method/data": ", ".join(_data(config)),
        "method/tasks": ", ".join(tasks),
        "method/clients": sum(int(group.get("count", 1)) for group in clients),
        "method/backbone": str(_arguments(config.get("model")).get("backbone", "")),
    }


def tags(config: Mapping[str, Any]) -> list[str]:
    """Names of a method's classes and of its data sets, each once."""
    algorithm, upload, aggregator, optimizer = _pieces(config)
    given = [_name(piece) for piece in (*upload, aggregator, optimizer) if piece]
    method = ["alone"] if config.get("share") == "none" else [_name(algorithm) if algorithm else "FedAvg", *given]
    return [name[:LONGEST] for name in dict.fromkeys([*method, *_data(config)])]


def short(value: Any) -> str:
    """A class with its first argument, and with those that are not as by default: ``DEA(rho=0.2, scope=layer)``."""
    if not isinstance(value, Mapping):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if "class_path" not in value:
        return "{" + ", ".join(f"{key}: {short(item)}" for key, item in value.items()) + "}"
    defaults = _defaults(value["class_path"])
    shown = [
        f"{key}={short(item)}"
        for place, (key, item) in enumerate(_arguments(value).items())
        if item is not None and (place == 0 or (key in defaults and item != defaults[key]))
    ]
    return f"{_name(value)}({', '.join(shown)})" if shown else _name(value)


def _pieces(config: Mapping[str, Any]) -> tuple[Any, list[Any], Any, Any]:
    """Local algorithm, upload transforms, aggregator or mixing, server optimizer; None where it is the default."""
    server = _arguments(config.get("server"))
    merges = server.get("mixing") or server.get("aggregator")
    algorithm = _arguments(config.get("local")).get("algorithm")
    return algorithm, list(config.get("upload") or []), merges, server.get("optimizer")


def _data(config: Mapping[str, Any]) -> Iterator[str]:
    """Names of the data sets' classes."""
    data = config.get("data") or {}
    for source in [data] if "class_path" in data else data.values():
        yield _name(source)


def _name(value: Any) -> str:
    return str(value["class_path"]).rpartition(".")[2] if isinstance(value, Mapping) else str(value)


def _arguments(value: Any) -> Mapping[str, Any]:
    """Of a class, or the keys themselves where a file leaves the class out."""
    if not isinstance(value, Mapping):
        return {}
    return value.get("init_args") or {} if "class_path" in value else value


def _defaults(path: str) -> dict[str, Any]:
    """Default arguments of a class; nothing is imported for it: what a run is made of has been."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    try:
        parameters = inspect.signature(found).parameters if callable(found) else {}
    except ValueError:
        return {}
    given = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
