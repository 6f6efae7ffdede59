"""From YAML files and command line to objects, and the resolved configuration back to YAML."""

import inspect
import re
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings  # type: ignore[attr-defined]
from jsonargparse._common import parsing_settings

from fedmtl import yaml_file
from fedmtl.commands.advice import advice, beside_classes, holds, slip, wrong_key
from fedmtl.commands.catalogue import experiments
from fedmtl.errors import UserError
from fedmtl.experiment import Experiment
from fedmtl.trust import Trust, of_own_files, refusal

# keys that may change when a run is resumed: where it lies and how it is watched, not what it computes
FREE_KEYS = re.compile(
    r"(name|out|tracker|states|fabric\.(workers|devices|num_nodes)|checkpoint_every|pictures|data(\.\w+)?\.init_args\.(root|cache))(\..*)?"
)

# a class in a value that may be anything, such as an option of timm's models, stays the keys that it was written as
set_parsing_settings(instantiate_subclass_spec_in_any=False)
UNLIMITED = {key: parsing_settings[key] for key in ("import_path_verdicts", "import_paths_enforced")}
DENIED = re.compile(
    r"Importing '([^']+)' is not allowed, denied by the '[^']+' entry .+? to allow it\.(\. Got value: .*)?"
)

# a parser's message in plainer words, and its lines that tell of types of its own, not of the user's mistake
PLAIN = {
    r"<class '(.+?)'>": r"\1",
    r"a typing\.Literal": "one of ",
    r"Type .+? expects a function or a callable class: ": "",
    r"unrecognized arguments: (?!--)(\S+).*": r"what is \1? Keys begin with --",
    r"Import path does not correspond to a subclass of": "expected a subclass of",
    r"Expected an? int\b": "Expected a whole number",
    r"Expected an? float\b": "Expected a number",
    r"Expected an? bool\b": "Expected true or false",
}
OTHER_TYPE = (
    "unrecognized arguments: --",
    "Expected a dot import path string",
    "Expected an instantiatable class",
    "Expected a <class 'dict'>",
    "Expected a <class 'float'>",
    "Expected a float",
    "Expected a int",
    "Expected a dict",
)
NOISE = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>")


def experiment_parser(command: str, description: str | None, *, trusted: Trust | None = None) -> ArgumentParser:
    """A parser whose keys are the arguments of `Experiment`.

    Args:
        command: the subcommand.
        description: what it does.
        trusted: where the classes may come from that are named in files and words; as in one's own if not given.
            It holds for parsing and instantiation, until the next parser is made.
    """
    limit_classes(trusted or of_own_files())
    parser = ArgumentParser(prog=f"fedmtl {command}", description=description, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file; several merge from left to right")
    parser.add_class_arguments(Experiment, as_group=False)
    return parser


def limit_classes(trusted: Trust) -> None:
    """Has parsers refuse classes that are not trusted before they import anything.

    The parser resolves every dotted path that a value holds, in whatever key, form or file, by one function, which
    asks the policy that is set here: before the import for the path, after it for where the object was defined.

    Raises:
        UserError: the parser does not let a module be trusted.
    """
    parsing_settings.update(UNLIMITED)  # the parser has no way of its own to lift a policy
    if trusted.modules is not None:
        try:
            set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(trusted.modules))
        except ValueError as error:
            raise UserError(f"--trusted-modules: {error}") from error


def parse(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    """Parses; files first, then the other words, so that the command line wins wherever ``--config`` stands.

    Raises:
        UserError: a mistake in a file or on the command line.
    """
    files, others, words = [], [], iter(arguments)
    for word in words:
        if word == "--config" or word.startswith("--config="):
            files.append(word.partition("=")[2] or next(words, ""))
        else:
            others.append(word)
    merged: dict[str, Any] = {}
    contents: dict[Path, dict[str, Any]] = {}
    for file in files:
        merged = merge(merged, _read(Path(file), contents))
    content = [f"--config={yaml.safe_dump(merged, sort_keys=False)}"] if merged else []
    try:
        return parser.parse_args([*content, *others])
    except ArgumentError as error:
        _refuse_stray(_parts(str(error))[0], contents)
        options = [name.removeprefix("--") for action in parser._actions for name in action.option_strings]
        raise UserError(_origin(str(error), contents, others) + clear(str(error), options)) from error


def _origin(message: str, contents: Mapping[Path, dict[str, Any]], words: list[str]) -> str:
    """The file that a mistake is in, with ``: `` behind; empty where it is on the command line.

    Args:
        message: what the parser says.
        contents: what each file holds itself, in the order in which they merge.
        words: the command line without its files.
    """
    key, _, reason = _parts(message)
    path = ".".join(part for part in (key, wrong_key(reason)) if part)
    given = [word[2:].partition("=")[0] for word in words if word.startswith("--")]
    if any(f"{path}.".startswith(f"{word}.") or (word.startswith(f"{path}.")) for word in given):
        return ""
    files = [file for file, content in contents.items() if path and holds(content, path.split("."))]
    return f"{files[-1]}: " if files else ""


def _refuse_stray(key: str, contents: Mapping[Path, dict[str, Any]]) -> None:
    """Raises UserError where a file has a misspelt ``class_path`` or ``init_args`` below a key; the parser would speak
    of something else."""
    for path, content in contents.items():
        for above, wrong, meant in beside_classes(content):
            if f"{above}.".startswith(f"{key}."):
                raise UserError(f"{path}: {above}: there is no key {wrong!r} beside a class; did you mean {meant}?")


def _read(path: Path, contents: dict[Path, dict[str, Any]], below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's keys over those of the files that its ``config`` key names, a later one over an earlier.

    Args:
        path: the file.
        contents: what each file holds itself is added here, in the order in which they merge.
        below: the files whose ``config`` keys led here.
    """
    if not path.is_file():
        raise UserError(f"--config: there is no file {path}{_near_file(path)}")
    if path.resolve() in below:
        raise UserError(f"{path}: its config key leads back to itself")
    content = yaml_file.read(path) or {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys with values, such as rounds: 10")
    bases = content.pop("config", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: config names a base file, or a list of them, not {bases}")
    files = [_read(path.parent / base, contents, (*below, path.resolve())) for base in bases]
    contents[path] = content
    return reduce(merge, [*files, content])


def _near_file(path: Path) -> str:
    """The file that may have been meant: one of a similar name beside it, or one that comes with the package."""
    there = [one.name for one in path.parent.glob("*.yaml")]
    if near := get_close_matches(path.name, there, n=1, cutoff=0.75):
        return f"; did you mean {path.parent / near[0]}?"
    parts = path.parts[path.parts.index("experiments") + 1 :] if "experiments" in path.parts else path.parts
    ours = experiments().joinpath(*parts)
    return f"; did you mean {ours}?" if not path.is_absolute() and ours.is_file() else ""


def merge(base: Any, over: Any) -> Any:
    """Keys of `over` on top of those of `base`, level by level; a list, a value or another class replaces."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    names_class = "class_path" in over or ("class_path" in base and "init_args" not in over)
    if names_class and over.get("class_path") != base.get("class_path"):
        return over
    return base | {key: merge(base[key], value) if key in base else value for key, value in over.items()}


def instantiate(parser: ArgumentParser, config: Namespace, *, restored: bool = False) -> Experiment:
    """Builds the experiment, its data set and everything else that the configuration names.

    Args:
        parser: what parsed the configuration.
        config: the configuration.
        restored: whether a checkpoint follows, which holds what pretrained weights and a baseline would only give
            to the first round; they need not be there any more.

    Raises:
        UserError: a value that a constructor refuses.
    """
    if restored:
        config = config.clone()
        config.baseline = None
        for model in (config.model, *(group.model for group in config.clients if group.model)):
            for key, value in {"pretrained": False, "weights": None}.items():
                if key in model.get("init_args", {}):
                    model.init_args[key] = value
    with plain_errors():
        objects = parser.instantiate(config)
        return Experiment(**{key: objects[key] for key in inspect.signature(Experiment).parameters})


@contextmanager
def plain_errors() -> Iterator[None]:
    """What a constructor says of a wrong value becomes a `UserError` of one line."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(clear(str(error))) from error


def clear(message: str, options: Iterable[str] = ()) -> str:
    """The parser's indented account of a mistake as one line: the key in full, the class, the innermost reason, and
    what may have been meant.

    Args:
        message: what the parser says.
        options: names of all options of the command, which are near to wrong ones.
    """
    key, classes, reason = _parts(message)
    said = slip(key, classes, reason)
    owner = [] if said or "a subclass of" in reason else classes[-1:]  # the slip is not the owner's
    parts = [*([key] if key else []), *owner, said or reason or " ".join(message.split())]
    return ": ".join(parts) + advice(key, classes, reason, options)


def _parts(message: str) -> tuple[str, list[str], str]:
    """Of the parser's account: the key, the classes from the outermost to the innermost, the innermost reason."""
    keys: list[str] = []
    classes: list[str] = []
    reasons: list[str] = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if key := re.fullmatch(r'Parser key "(.+)":', text):
            keys.append(key[1])
        elif path := re.fullmatch(r"Problem with given class_path '(.+)':", text):
            classes.append(path[1])
        elif text and not text.startswith(NOISE):
            reasons.append(text)
    # a key may be one of several types, and then each says what it can't make of the value
    denied = [text for text in reasons if DENIED.search(text)]
    telling = [text for text in dict.fromkeys(reasons) if not text.startswith(OTHER_TYPE)]
    named = [text for text in reasons if re.match(r"Expected a dot import path string: ([A-Z]|\w+\.)", text)]
    reason = "; ".join(denied[:1] or telling or named or reasons)
    if of := re.search(r" is not accepted\. Got value: Namespace\(class_path='([\w.]+)'.*", reason):
        classes, reason = [of[1]], reason.replace(of[0], " is not accepted")
    reason = re.sub(r"\. Got value: Namespace\(.*", "", reason)  # the parser's own words for what the file has
    if denied:  # it names the class
        classes = []
    for pattern, plain in PLAIN.items():
        reason = re.sub(pattern, plain, reason)
    return ".".join(keys), classes, DENIED.sub(lambda match: refusal(match[1]), reason)


def to_dict(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """The resolved configuration, the keys of `Experiment` only, as plain containers."""
    resolved = yaml.safe_load(parser.dump(config, skip_unset=False))
    return {key: resolved[key] for key in inspect.signature(Experiment).parameters if key in resolved}


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys that differ and matter, each with both values."""
    old, new = _flat(saved), _flat(now)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key) and not FREE_KEYS.fullmatch(key)]
    return [f"{key} (was {old.get(key)}, now {new.get(key)})" for key in changed]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, (dict, list)):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
