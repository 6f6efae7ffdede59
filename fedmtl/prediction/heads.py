"""heads.json of a run: each head's task and how pictures are prepared for it, so that its data need not be there."""

import importlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedmtl import atomic
from fedmtl.data import ValTransform, View
from fedmtl.errors import UserError
from fedmtl.tasks import Task
from fedmtl.trust import of_others_files

FILE = "heads.json"
FORMAT = 1
RENAMED = {"num_classes": "channels"}  # arguments of tasks that they keep under another name

T = TypeVar("T")


@dataclass(frozen=True)
class Heads:
    """The heads of one data set, which see pictures prepared in one way.

    Attributes:
        data: name of the data set in the run.
        tasks: their tasks, by the heads' names.
        transform: how a validation picture is prepared.
        size: height and width of the first validation picture after that, as the model saw it.
    """

    data: str
    tasks: dict[str, Task]
    transform: ValTransform
    size: tuple[int, int]


@dataclass(frozen=True)
class AllHeads:
    """What heads.json holds.

    Attributes:
        unified: whether the run has one model for all of them.
        groups: the heads by data set, in the order of the run.
    """

    unified: bool
    groups: tuple[Heads, ...]


def heads_of(validation: Mapping[str, View], *, unified: bool) -> AllHeads:
    """The heads of an experiment.

    Args:
        validation: its validation views by data set.
        unified: whether it has one model for all of them.

    Raises:
        UserError: a data set prepares its pictures by a class of its own.
    """
    groups = []
    for data, view in validation.items():
        transform = view.source.val_transform
        if type(transform) is not ValTransform:
            raise UserError(f"data: {data} prepares pictures by its own {type(transform).__name__}, not ValTransform")
        height, width = view[0, 0]["image"].shape[-2:]
        groups.append(Heads(data, dict(view.tasks), transform, (height, width)))
    return AllHeads(unified, tuple(groups))


def write_heads(run: Path, validation: Mapping[str, View], *, unified: bool) -> None:
    """Writes a run's heads.json, whole or not at all.

    It is left out where a class of the user's own does not keep its arguments as attributes of the same names, or a
    data set prepares pictures by a class of its own; then the run can be used only where its data is.

    Args:
        run: the run's folder.
        validation: see `heads_of`.
        unified: see `heads_of`.

    Raises:
        UserError: it can't be written.
    """
    try:
        heads = heads_of(validation, unified=unified)
        groups = {
            group.data: {
                "longest": group.transform.longest,
                "pad": group.transform.size,
                "size": group.size,
                "tasks": {name: _recipe(task) for name, task in group.tasks.items()},
            }
            for group in heads.groups
        }
        text = json.dumps({"format": FORMAT, "unified": unified, "data": groups}, indent=1, ensure_ascii=False)
    except (AttributeError, TypeError, UserError):
        return
    try:
        atomic.replace(run / FILE, lambda file: file.write(text.encode()))
    except OSError as error:
        raise UserError(f"{run / FILE} can't be written ({error.strerror or error}); make room there") from error


def read_heads(run: Path) -> AllHeads | None:
    """A run's heads; None if it has no heads.json.

    Raises:
        UserError: it is damaged, or names a class that is not trusted.
    """
    path = run / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UserError(f"{path} has format {content['format']}, this version reads {FORMAT}")
        groups = tuple(_group(str(path), data, found) for data, found in content["data"].items())
        return AllHeads(bool(content["unified"]), groups)
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} is not the heads.json of a run ({reason})") from None


def _group(where: str, data: str, found: Mapping[str, Any]) -> Heads:
    tasks = {}
    for name, recipe in found["tasks"].items():
        if not re.fullmatch(r"\w+", name):  # it becomes part of file names
            raise UserError(f"{where}: {name!r} can't name a head; there are letters, digits and '_' alone in such")
        kind = named_class(recipe["class_path"], Task, f"{where}, {name}")  # type: ignore[type-abstract]
        tasks[name] = kind(**recipe["init_args"])
    pad, size = found["pad"], found["size"]
    height, width = int(size[0]), int(size[1])
    if not (0 < height < 2**15 and 0 < width < 2**15):
        raise UserError(f"{where}: {size} is no size of a picture")
    transform = ValTransform(size=tuple(pad) if pad else None, longest=found["longest"])
    return Heads(str(data), tasks, transform, (height, width))


def _recipe(task: Task) -> dict[str, Any]:
    """What makes the same task again: its class and the constructor's arguments, read from its attributes.

    Raises:
        AttributeError: it does not keep an argument.
    """
    kind = type(task)
    names = inspect.signature(kind).parameters
    arguments = {name: getattr(task, RENAMED.get(name, name)) for name in names}
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def named_class(path: str, base: type[T], where: str) -> type[T]:
    """The class that a run's file names, if it is trusted.

    Args:
        path: its dotted path.
        base: what it must be a subclass of.
        where: file and key, for messages.

    Raises:
        UserError: it is not trusted, not there, or no such subclass.
    """
    of_others_files().check(path, where)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module may run into anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{where}: {path!r} can't be imported ({reason})") from error
    if not (isinstance(found, type) and issubclass(found, base)) or inspect.isabstract(found):
        raise UserError(f"{where}: {path!r} is no complete subclass of {base.__name__}")
    of_others_files().check(f"{found.__module__}.{found.__qualname__}", where)  # where it was defined
    return found
