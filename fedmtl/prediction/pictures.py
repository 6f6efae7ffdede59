"""Pictures that a user names: found in folders and by patterns, read as 8-bit RGB, each with a name for its output."""

import glob
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedmtl.data.decode import FORMATS
from fedmtl.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
LONGEST_NAME = 140  # bytes; file systems take 255, those that encrypt names 143


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        files: each picture's file with its path below the folder that was named, or its name alone; every file once.
        problems: what can't be found, a line each.
        others: how many files of folders have no picture's suffix and were passed over.
    """

    files: list[tuple[Path, Path]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    others: int = 0


def find(named: Sequence[str], *, leave_out: Path) -> Found:
    """The pictures that words of a command line name, in their order, those of a folder sorted.

    A file is taken whatever its suffix. A folder stands for all pictures in it and below, hidden ones and those behind
    links to folders left out. A pattern (``*``, ``?``, ``[…]``, ``**``) stands for the files and folders that match.

    Args:
        named: files, folders, patterns.
        leave_out: a folder below which nothing is taken where it lies in a named one: it gets the output.
    """
    found: dict[Path, Path] = {}
    problems, others = [], 0
    for word in named:
        matches = [word] if os.path.lexists(word) else sorted(glob.glob(word, recursive=True))
        if not matches:
            problems.append(f"{word}: there is no such file or folder")
        for path in map(Path, matches):
            if not path.is_dir():
                found.setdefault(path, Path(path.name))
                continue
            files = list(_below(path, leave_out.resolve()))
            pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
            others += len(files) - len(pictures)
            if not pictures:
                problems.append(f"{path}: holds no picture ({', '.join(SUFFIXES)})")
            for file in pictures:
                found.setdefault(file, file.relative_to(path))
    once: dict[str, tuple[Path, Path]] = {}
    for file, below in found.items():
        once.setdefault(os.path.realpath(file), (file, below))
    return Found(list(once.values()), problems, others)


def _below(folder: Path, leave_out: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and Path(place, name).resolve() != leave_out
        )
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def read(path: Path) -> NDArray[np.uint8]:
    """A picture file as the data sets read theirs: RGB (H, W, 3), turned upright, without transparency.

    Grey becomes colour; 16 bits become 8 (v/257, rounded). Of several frames it is the first.

    Raises:
        UserError: it is no picture, damaged, cut off, or of numbers without a known range.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF data, and pictures that are large, not too large
            with Image.open(path, formats=FORMATS) as opened:
                ImageOps.exif_transpose(opened, in_place=True)
                if opened.mode == "I" or opened.mode.startswith("I;16"):
                    return _from_16_bits(path, np.asarray(opened))
                if opened.mode == "F":
                    raise UserError(f"{path}: found floating-point numbers, expected a picture of 8 or 16 bits")
                return np.array(opened.convert("RGB"))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except Exception as error:  # a broken file makes a decoder raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = "no picture of a known format" if "cannot identify image file" in reason else reason
        raise UserError(f"{path}: cannot be read ({reason})") from error


def _from_16_bits(path: Path, values: NDArray[np.generic]) -> NDArray[np.uint8]:
    whole = values.astype(np.int64)
    if whole.min(initial=0) < 0 or whole.max(initial=0) > 65535:
        raise UserError(f"{path}: found numbers from {whole.min()} to {whole.max()}, expected 16 bits")
    grey = ((whole + 128) // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


class Names:
    """Names of folders, one for each picture, that differ in more than case and lead nowhere else.

    Args:
        taken: names that must not be given.
    """

    def __init__(self, taken: Sequence[str] = ()) -> None:
        self._taken = {name.casefold() for name in taken}

    def __call__(self, below: Path) -> str:
        """A name made of a picture's path below the folder that was named: ``a/b.png`` becomes ``a__b``."""
        plain = "__".join([*below.parent.parts, below.stem])
        encoded = re.sub(r"[^\w.+ -]", "_", plain).encode()[-LONGEST_NAME:]
        base = encoded.decode(errors="ignore").strip(" .") or "picture"  # the first letter may have been cut in two
        name, number = base, 1
        while name.casefold() in self._taken:
            number += 1
            name = f"{base}-{number}"
        self._taken.add(name.casefold())
        return name
