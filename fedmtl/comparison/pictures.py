"""Predictions of several runs at the same inputs, read from their folders without trust."""

import base64
import io
import re
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedmtl.comparison.comparison import Comparison
from fedmtl.runs import Run

MOST_BYTES, MOST_SIDE = 1 << 28, 4096  # of a file when unpacked, and of a picture in pixels
SHOWN = 256  # larger pictures are shrunk to so many pixels, so that the page can be sent by mail

Key = tuple[str, int, str]  # data set, number of the image, task
Strip = NDArray[np.uint8]  # input, truth and prediction side by side, (H, 3W, 3)


@dataclass(frozen=True)
class Row:
    """A task on an image: truth, and the prediction of each group, None where it has none, as data URIs."""

    task: str
    truth: str
    predictions: list[str | None]


@dataclass(frozen=True)
class Scene:
    """An image with all its tasks."""

    name: str
    image: str
    rows: list[Row]
    small: bool


def scenes(comparison: Comparison) -> tuple[list[Scene], list[str]]:
    """The images that were drawn, and of each group the run (and its round) that drew; empty without any.

    Of every group one seed is shown, the same where they have one in common. A run that drew another input or truth
    at a place has none there.
    """
    drawn = {run.path: strips(run) for group in comparison.groups for run in group.runs}
    seeds = Counter(run.seed for group in comparison.groups for run in group.runs if drawn[run.path][1])
    order = {seed: place for place, (seed, _) in enumerate(seeds.most_common())}
    chosen: list[Run | None] = []
    for group in comparison.groups:
        able = [run for run in group.runs if drawn[run.path][1]]
        chosen.append(min(able, key=lambda run: order[run.seed]) if able else None)
    several = [drawn[run.path][1] if run else {} for run in chosen]
    says = [f"{run.name}, round {drawn[run.path][0]}" if run else "no pictures" for run in chosen]
    tasks = {task: place for place, task in enumerate(comparison.primary)}
    every = {key for one in several for key in one}
    keys = sorted(every, key=lambda key: (key[:2], tasks.get(key[2], len(tasks)), key[2]))
    made = [
        _scene(place, [key for key in keys if key[:2] == place], several)
        for place in dict.fromkeys(k[:2] for k in keys)
    ]
    return made, says


def strips(run: Run) -> tuple[int, dict[Key, Strip]]:
    """The round and the strips that a run drew last; none where its files are missing, half written or strange."""
    round = 0
    found: dict[Key, Strip] = {}
    home = run.path.resolve()
    for path in sorted(run.path.glob("figures/latest*.npz")):
        data = path.stem.removeprefix("latest").removeprefix("_")
        try:
            if not path.resolve().is_relative_to(home):
                continue
            round, new = _read(path, data)
        except Exception:  # what a damaged archive may raise has no end
            continue
        found |= new
    return round, found


def _read(path: Path, data: str) -> tuple[int, dict[Key, Strip]]:
    with zipfile.ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > MOST_BYTES:
            raise ValueError("too large")
    found: dict[Key, Strip] = {}
    with np.load(path, allow_pickle=False) as content:
        round = int(content["round"])
        for name in content.files:
            place = re.fullmatch(r"(\d{1,6})/(.+)", name)
            if place and _is_strip(strip := content[name]):
                found[data, int(place[1]), place[2]] = strip
    return round, found


def _is_strip(array: Any) -> bool:
    plain = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
    return bool(plain and array.shape[1] % 3 == 0 and min(array.shape) > 0 and max(array.shape) <= 3 * MOST_SIDE)


def _scene(place: tuple[str, int], keys: list[Key], several: list[dict[Key, Strip]]) -> Scene:
    rows = []
    first = next(one[keys[0]] for one in several if keys[0] in one)
    image = first[:, : first.shape[1] // 3]
    for key in keys:
        model = next(one[key] for one in several if key in one)
        width = model.shape[1] // 3
        predictions = [
            _uri(one[key][:, 2 * width :])
            if key in one and np.array_equal(one[key][:, : 2 * width], model[:, : 2 * width])
            else None
            for one in several
        ]
        rows.append(Row(key[2], _uri(model[:, width : 2 * width]), predictions))
    data, number = place
    return Scene(f"{data} image {number + 1}".strip(), _uri(image), rows, max(image.shape) <= SHOWN // 2)


def _uri(picture: Strip) -> str:
    """A picture as PNG in a data URI."""
    drawn = Image.fromarray(np.ascontiguousarray(picture))
    if max(drawn.size) > SHOWN:
        factor = SHOWN / max(drawn.size)
        drawn = drawn.resize(
            (max(1, round(drawn.width * factor)), max(1, round(drawn.height * factor))), Image.Resampling.BOX
        )
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
