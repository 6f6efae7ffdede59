"""`fedmtl predict`: every task of a run's unified model on any pictures, as drawings and as arrays."""

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from fedmtl.commands.words import say, size
from fedmtl.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from fedmtl.prediction import Predictor
    from fedmtl.prediction.pictures import Found
    from fedmtl.tasks.base import Label

    Keyed = tuple[tuple[Path, Path], NDArray[np.uint8]]  # a file with its path below the named folder, and a picture

EPILOG = """Each picture gets a folder in DIR: all-tasks.png shows all tasks with a legend, TASK.png one beside the
input, TASK.npy is its array at the picture's own size (docs/predict.md says in which units). A folder that an earlier
prediction has left is replaced whole. Pictures are prepared as the run prepared its validation pictures; at
--batch-size 1 a result depends on nothing else in the list. What can't be read is named and left out, and the exit
code is then 1. Neither the run's data nor the network is needed."""


def parser() -> ArgumentParser:
    """What the command takes."""
    parser = ArgumentParser(prog="fedmtl predict", description=__doc__, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture, folder of pictures, or quoted pattern")
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="DIR", help="default: predictions")
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="which checkpoint")
    parser.add_argument("--tasks", type=lambda text: text.split(","), metavar="A,B", help="only these tasks")
    parser.add_argument("--batch-size", type=_count, default=1, metavar="N", help="neighbours of equal size at once")
    parser.add_argument("--size", type=_size, metavar="keep|H,W", help="resize pictures first (default: keep)")
    parser.add_argument("--raw", choices=["npy", "png", "none"], default="npy", help="arrays as .npy, or as PNG if fit")
    parser.add_argument("--alpha", type=_share, default=0.6, metavar="0…1", help="opacity of classes over the input")
    parser.add_argument("--client", metavar="NAME", help="the model of this client instead of the unified one")
    parser.add_argument("--accelerator", choices=["auto", "cpu", "cuda", "mps"], help="default: as the run's")
    return parser


def main(arguments: list[str]) -> None:
    """Parses the command line and predicts.

    Raises:
        SystemExit: with 1, if some picture was left out.
    """
    own = parser().parse_args(arguments)
    from rich.console import Console

    from fedmtl.commands.restored import restore_model
    from fedmtl.prediction.pictures import find

    console, errors = Console(), Console(stderr=True)
    if own.out.exists() and not own.out.is_dir():
        raise UserError(f"--out: {own.out} is a file; name a folder")
    found = find(own.images, leave_out=own.out)
    _complain(errors, *found.problems)
    if not found.files:
        raise UserError("there is no picture to predict; name files, folders or quoted patterns")
    model = restore_model("predict", own.run, own.checkpoint, own.client, own.accelerator)
    model.chosen(own.tasks)  # refuses what is not there
    started = perf_counter()
    done = predict(model, found, own, lambda problem: _complain(errors, problem))
    failed = len(found.files) - done
    number = f"{done} picture{'s' * (done != 1)}"
    say(console, f"{number} in {perf_counter() - started:.1f} s: {own.out}, a folder each")
    if found.others:
        say(console, f"{found.others} files of these folders have no picture's suffix and were passed over")
    if failed or found.problems:
        if failed:
            say(errors, f"{failed} of {len(found.files)} pictures could not be predicted")
        raise SystemExit(1)


def predict(model: "Predictor", found: "Found", own: Namespace, complain: Callable[[str], None]) -> int:
    """Predicts and writes picture by picture; what fails is named and left out.

    Args:
        model: the model.
        found: the pictures.
        own: the command line.
        complain: takes a line for each picture that fails.

    Returns:
        How many were done.
    """
    from fedmtl.prediction.drawing import save
    from fedmtl.prediction.pictures import Names

    names, done = Names(_inputs_in(own.out, found)), 0
    for batch in _batches(found, own.batch_size, complain):
        for (path, below), picture, labels in _labels(model, batch, own, complain):
            folder = own.out / names(below)
            try:
                save(folder, picture, labels, model.tasks, raw=own.raw, alpha=own.alpha)
            except UserError as error:
                complain(f"{path}: {error}")
                continue
            except OSError as error:
                raise UserError(f"{folder} can't be written ({error.strerror or error}); {path} is not done") from error
            done += 1
    return done


def _batches(found: "Found", most: int, complain: Callable[[str], None]) -> Iterator[list["Keyed"]]:
    """Neighbours of equal size that can be read."""
    from fedmtl.prediction.pictures import read
    from fedmtl.prediction.predictor import batches

    def readable() -> Iterator["Keyed"]:
        for key in found.files:
            try:
                yield key, read(key[0])
            except UserError as error:
                complain(str(error))

    return batches(readable(), most)


def _labels(
    model: "Predictor", batch: list["Keyed"], own: Namespace, complain: Callable[[str], None]
) -> Iterator[tuple[tuple[Path, Path], "NDArray[np.uint8]", dict[str, "Label"]]]:
    """Predictions for a batch; where it fails as a whole, for its pictures one by one."""
    try:
        results = list(model.stream(batch, tasks=own.tasks, size=own.size, batch_size=len(batch)))
    except UserError as error:
        if len(batch) == 1:
            complain(f"{batch[0][0][0]}: {error}; --size H,W takes it in another size")
        else:
            for single in batch:
                yield from _labels(model, [single], own, complain)
    else:
        yield from results


def _inputs_in(out: Path, found: "Found") -> list[str]:
    """Folders in DIR that hold some of the pictures; nothing may be written over these."""
    root = Path(os.path.realpath(out))
    folders = {Path(os.path.realpath(file.parent)) for file, _ in found.files}
    return sorted({folder.relative_to(root).parts[0] for folder in folders if root in folder.parents})


def _complain(console: "Console", *texts: str) -> None:
    for text in texts:
        say(console, f"fedmtl predict: warning: {text}")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"must be a number in 0…1, not {text}")
    return value


def _size(text: str) -> tuple[int, int] | None:
    return None if text == "keep" else size(text)
