"""What a dataset.yaml says, checked key by key: the name, the splits, the images and the tasks of a data set."""

import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from torch import nn

from fedmtl.data.label_files import READ_AS, ClassLabels, Images, Labels
from fedmtl.errors import UserError
from fedmtl.tasks import Depth, Edge, Normals, Parts, Saliency, SemSeg, Task
from fedmtl.trust import of_others_files

KINDS: dict[str, type[Task]] = {kind.name: kind for kind in (SemSeg, Depth, Normals, Edge, Saliency, Parts)}
TAKEN = ("image", "window")  # what examples hold besides targets
NOUNS: dict[object, str] = {int: "whole number", float: "number", str: "word", bool: "truth value", NoneType: "null"}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Which images train and which validate.

    Attributes:
        train: list of names (a file below the root), or a folder below images; all that are not in `val` if not given.
        val: the same, or the share of the images (0…1) that a seed picks.
        seed: the seed, 0 if not given.
        by: whether the seed picks single images, as if not given, or whole folders of images.
    """

    train: str | None = None
    val: str | float | None = None
    seed: int | None = None
    by: Literal["image", "folder"] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError where the keys do not go together."""
        if isinstance(self.val, str) and (self.seed is not None or self.by is not None):
            raise ValueError(f"{'by' if self.seed is None else 'seed'} goes with a share for val, e.g. 0.2, not a list")
        if isinstance(self.val, float | int) and not 0 < self.val < 1:
            raise ValueError(f"val must be a share between 0 and 1, or a list or folder of names, not {self.val}")
        if self.train is not None and not isinstance(self.val, str):
            raise ValueError("train goes with a list or folder of names for val; give that too")


@dataclass(frozen=True, kw_only=True)
class Description:
    """All that a dataset.yaml says.

    Attributes:
        name: name of the data set.
        splits: which images train and which validate.
        images: how images are found and read.
        tasks: the tasks by name.
        labels: how the labels of each task are found and read.
    """

    name: str
    splits: Splits
    images: Images
    tasks: dict[str, Task]
    labels: dict[str, Labels]


def read_description(path: Path) -> Description:
    """Reads a dataset.yaml.

    Raises:
        UserError: it is not there, no YAML, or has a mistake; names the task and the key.
    """
    content = _load(path)
    hints = {"name": str | None, "splits": dict[str, Any] | None, "images": dict[str, Any] | None}
    _check(f"{path}", content, {**hints, "tasks": dict[str, Any]})
    if not content.get("tasks"):
        raise UserError(f"{path}: needs the key tasks, e.g. tasks: {{depth: {{scale: 0.001}}}}")
    name = content.get("name") or re.sub(r"\W+", "_", path.parent.resolve().name, flags=re.ASCII).strip("_") or "data"
    if not re.fullmatch(r"\w+", name, flags=re.ASCII):
        raise UserError(f"{path}: name must be letters, digits and '_', not {name!r}")
    built = {task: _task(path, task, entry) for task, entry in content["tasks"].items()}
    return Description(
        name=name,
        splits=_make(f"{path}, splits", Splits, content.get("splits")),
        images=_make(f"{path}, images", Images, content.get("images")),
        tasks={name: task for name, (task, _) in built.items()},
        labels={name: labels for name, (_, labels) in built.items()},
    )


def _task(path: Path, name: object, entry: object) -> tuple[Task, Labels]:
    """A task and how its labels are read; a key goes to whichever has an argument of this name, or to both."""
    where = f"{path}, task {name}"
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name, flags=re.ASCII):
        raise UserError(f"{path}: a task's name must be letters, digits and '_' and begin with a letter, not {name!r}")
    if name in TAKEN or hasattr(nn.ModuleDict(), name):
        raise UserError(f"{where}: the name is taken by something else; rename the task and give its folder: {name}")
    if not isinstance(entry, dict | None):
        raise UserError(f"{where}: must be keys and values such as {{kind: depth, scale: 0.001}}, not {entry!r}")
    given = dict(entry or {})
    kind = _class(where, name, given)
    form = next(form for base, form in READ_AS if issubclass(kind, base))
    accepted, read = _parameters(kind), typing.get_type_hints(form)
    _check(where, given, {**accepted, **read, "kind": str, "class_path": str})
    arguments = {key: given[key] for key in given if key in accepted}
    with _named(where):
        labels = form(**{"folder": name, "key": name, **{key: given[key] for key in given if key in read}})
        own = inspect.signature(kind).parameters
        if isinstance(labels, ClassLabels) and labels.count and "num_classes" in own:
            arguments.setdefault("num_classes", labels.count)
        for key, parameter in own.items():
            if parameter.default is parameter.empty and key in accepted and key not in arguments:
                also = " (or class_names, which tell it)" if key == "num_classes" else ""
                raise ValueError(f"needs the key {key}{also}")
        task = kind(**arguments)
        labels.check(task)
    return task, labels


def _class(where: str, name: str, given: Mapping[str, Any]) -> type[Task]:
    """The class of a task, from `class_path`, `kind` or the task's name."""
    if "class_path" not in given:
        word = given.get("kind", name)
        if not isinstance(word, str) or word not in KINDS:
            known = f"{', '.join(KINDS)} (or give a class_path)"
            raise UserError(f"{where}: kind must be one of {known}, not {word!r}{meant(word, KINDS)}")
        return KINDS[word]
    if "kind" in given:
        raise UserError(f"{where}: kind and class_path exclude each other; leave one of them out")
    path = str(given["class_path"])
    of_others_files().check(path, f"{where}: class_path")
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module may run into anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{where}: class_path {path!r} cannot be imported ({reason})") from error
    if not (isinstance(found, type) and issubclass(found, Task)) or inspect.isabstract(found):
        raise UserError(f"{where}: class_path {path!r} is no complete subclass of fedmtl.tasks.Task")
    return found


def _parameters(kind: type) -> dict[str, Any]:
    """Types of a class's keyword arguments by name, and of its base classes' as far as it passes on ``**options``."""
    found: dict[str, Any] = {}
    for base in inspect.getmro(kind):
        if "__init__" not in vars(base):
            continue
        own = inspect.signature(vars(base)["__init__"]).parameters.values()
        for parameter in list(own)[1:]:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                found.setdefault(parameter.name, parameter.annotation)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
            break
    return found


# --- keys and their types ------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML that takes 1e-3 for a number, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {name} is there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _load(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); it says which tasks the data set has, see docs/data.md"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error


def _make(where: str, kind: Callable[..., T], given: Mapping[str, Any] | None) -> T:
    _check(where, given or {}, typing.get_type_hints(kind))
    with _named(where):
        return kind(**(given or {}))


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Says where a value is that a constructor refuses."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error


def _check(where: str, given: object, types: Mapping[str, Any]) -> None:
    """Refuses unknown keys and values of a wrong type."""
    if not isinstance(given, dict):
        raise UserError(f"{where}: must be keys and values, not {given!r}")
    for key, value in given.items():
        if key not in types:
            hint = meant(key, types) or f"; the keys are {', '.join(types)}"
            raise UserError(f"{where}: there is no key {key!r}{hint}")
        if not _fits(value, types[key]):
            raise UserError(f"{where}: {key} must be a {_noun(types[key])}, not {value!r}")


def meant(word: object, known: Iterable[str]) -> str:
    """``", did you mean 'depth'?"`` if some known word is like this one, else nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _fits(value: object, kind: Any) -> bool:
    """Whether a value from YAML is of a type; of types that YAML does not know any value is."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin in (list, tuple, Sequence):
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if kind in (int, float):
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < inf
        return number and (kind is float or isinstance(value, int))
    return kind not in NOUNS or isinstance(value, kind)


def _noun(kind: Any) -> str:
    """What a type is called in a message."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or a ".join(_noun(one) for one in inner if one is not NoneType)
    if origin is Literal:
        return f"choice of {' or '.join(map(str, inner))}"
    if origin in (list, tuple, Sequence):
        return f"list of {_nouns(inner[0])}"
    if origin in (dict, Mapping):
        return f"mapping of {_nouns(inner[0])}" + ("" if Any in inner else f" to {_nouns(inner[1])}")
    return NOUNS.get(kind, str(kind))


def _nouns(kind: Any) -> str:
    head, of, rest = _noun(kind).partition(" of ")
    return f"{head}s{of}{rest}"
