"""Small data sets of one's own, for tests."""

import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import yaml
from PIL import Image

from fedmtl.data.folder import Folder

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```(?:yaml|python)\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL))  # files that it shows

GREY = np.arange(12, dtype=np.uint8).reshape(4, 3)
BLACK = GREY * 0


def write(path: Path, values: Any, key: str = "") -> None:
    """Writes text, bytes, an array, or (as a palette picture) indices and palette, in the way that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(values, str | bytes):
        path.write_bytes(values.encode() if isinstance(values, str) else values)
    elif path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, {key or path.parent.name: values})
    elif isinstance(values, tuple):
        picture = Image.fromarray(values[0])
        picture.putpalette(values[1])
        picture.save(path)
    else:
        Image.fromarray(values).save(path)


def make_folder(root: Path, description: Any, files: Mapping[str, Any]) -> Path:
    """A data set of a description and of files by path; if no path is below ``images/``, 0.png to 2.png are there."""
    images = {} if any(name.startswith("images/") for name in files) else {f"images/{i}.png": GREY for i in range(3)}
    text = description if isinstance(description, str) else yaml.safe_dump(description, sort_keys=False)
    for name, values in {"dataset.yaml": text, **images, **files}.items():
        write(root / name, values)
    return root


def find(source: Folder, name: str) -> tuple[Any, int]:
    """Split and number of an image."""
    return next((split, source.ids(split).index(name)) for split in ("train", "val") if name in source.ids(split))


def label(root: Path, task: str, name: str = "0") -> Any:
    source = Folder(root)
    return source.read(*find(source, name), [task])[task]


def png16(values: Any) -> bytes:
    """A .png with 16 bits in each of three channels, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
