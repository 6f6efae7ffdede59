"""Every key that a configuration can have, with the classes and words that it takes, read off the signatures."""

import collections.abc
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from fedmtl import tracking
from fedmtl.experiment import Experiment

PUBLIC = ("torch.optim", "timm.scheduler")
GIVEN = ("params", "optimizer")  # what their classes get from training, not from a file


@dataclass(frozen=True)
class Key:
    """A key.

    Attributes:
        path: as on the command line, e.g. ``local.optimizer.lr``.
        owner: path of the class whose argument it is.
        classes: paths of the classes that it takes.
        words: the words that it takes, where there are only some.
    """

    path: str
    owner: str
    classes: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def parent(self) -> str:
        """The key above; empty at the top."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """Its last part."""
        return self.path.rpartition(".")[2]


@cache
def all_keys() -> tuple[Key, ...]:
    """The keys of `Experiment`, of all public classes that these take, and so on; those of subclasses together."""
    for name in tracking.__all__:
        with suppress(ImportError):  # a tracker of an extra that is not installed
            getattr(tracking, name)
    return tuple(_below(Experiment, "", ()))


def _below(owner: type, prefix: str, above: tuple[type, ...]) -> Iterator[Key]:
    for name, annotation in parameters(owner).items():
        kinds: list[type] = [kind for base in bases(annotation) for kind in concrete(base)]
        path = f"{prefix}{name}"
        yield Key(path, public_path(owner), tuple(dict.fromkeys(map(public_path, kinds))), tuple(words(annotation)))
        for kind in kinds:
            if kind not in above:
                yield from _below(kind, f"{path}.", (*above, kind))


def parameters(owner: type) -> dict[str, Any]:
    """The arguments that a file gives to a class, with their annotations."""
    try:
        signature = inspect.signature(owner, eval_str=True)
    except (NameError, TypeError, ValueError):  # of other libraries: names that exist for type checkers only
        signature = inspect.signature(owner)
    others = GIVEN if owner.__module__.startswith(PUBLIC) else ()
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return {
        name: one.annotation
        for name, one in signature.parameters.items()
        if name not in others and one.kind not in kinds
    }


def bases(annotation: Any) -> Iterator[type]:
    """The classes that an annotation speaks of; of a callable, what it returns."""
    if get_origin(annotation) is collections.abc.Callable:
        for returned in get_args(annotation)[-1:]:  # a bare one says nothing
            yield from bases(returned)
    elif isinstance(annotation, type) and not get_args(annotation):
        if annotation.__module__.startswith(("fedmtl", *PUBLIC)):
            yield annotation
    elif get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from bases(part)


def concrete(base: type) -> Iterator[type]:
    """A class and all its subclasses that are loaded, without abstract ones and those that no room exports."""
    path = public_path(base)
    private = path.startswith("fedmtl.") and path.count(".") > 2
    if not (inspect.isabstract(base) or base.__name__.startswith("_") or private):
        yield base
    below: type
    for below in type.__subclasses__(base):
        yield from concrete(below)


def words(annotation: Any) -> Iterator[str]:
    """The words of its Literals; true and false of a truth value."""
    if annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif get_origin(annotation) in (typing.Union, types.UnionType):
        for part in get_args(annotation):
            yield from words(part)


def public_path(kind: type) -> str:
    """The shortest path by which a class can be imported, e.g. ``fedmtl.aggregation.DEA``."""
    parts = kind.__module__.split(".")
    for length in range(1, len(parts)):
        module = ".".join(parts[:length])
        if getattr(sys.modules.get(module), kind.__name__, None) is kind:
            return f"{module}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__name__}"
