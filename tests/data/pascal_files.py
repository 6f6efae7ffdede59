"""A small folder in the exact layout of PASCAL-Context, for tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

LABEL_MAP = {"wall": 440, "grass": 187, "dog": 113, "person": 284}  # wall, dog and person are in NYU-v2 too, grass not
VOC = {"wall": 0, "grass": 0, "dog": 12, "person": 15}
COLOURS = {"wall": (200, 180, 120), "grass": (60, 160, 60), "dog": (120, 80, 40), "person": (60, 80, 220)}
NORMALS = {"wall": (0.0, 0.0, -1.0), "grass": (0.0, -1.0, 0.0), "dog": (-0.6, 0.0, -0.8), "person": (0.6, 0.0, -0.8)}
BODY = {  # rows and columns of a figure of 8×4 cells
    "head": (slice(0, 2), slice(1, 3)),
    "torso": (slice(2, 4), slice(1, 3)),
    "luarm": (slice(2, 3), slice(0, 1)),
    "llarm": (slice(3, 4), slice(0, 1)),
    "lhand": (slice(4, 5), slice(0, 1)),
    "ruarm": (slice(2, 3), slice(3, 4)),
    "rlarm": (slice(3, 4), slice(3, 4)),
    "rhand": (slice(4, 5), slice(3, 4)),
    "luleg": (slice(4, 6), slice(1, 2)),
    "llleg": (slice(6, 7), slice(1, 2)),
    "lfoot": (slice(7, 8), slice(1, 2)),
    "ruleg": (slice(4, 6), slice(2, 3)),
    "rlleg": (slice(6, 7), slice(2, 3)),
    "rfoot": (slice(7, 8), slice(2, 3)),
}
Parts = Mapping[str, np.ndarray]  # masks by name, in the order of the file
Thing = tuple[str, np.ndarray, Parts]  # class, mask, parts


def make_pascal(
    root: Path,
    *,
    train: int = 4,
    val: int = 2,
    sizes: Sequence[tuple[int, int]] = ((48, 64), (64, 48), (40, 56)),
    seed: int = 0,
) -> Path:
    """Makes the folder; what the labels say can be seen in the colours.

    Every image is a wall above grass with figures before it: of the first four a person, a dog and no person, two
    persons, of whom the second hides part of the first, and a person without parts; then again. The classes of the
    second and fourth lie in ``semseg/pascal-context``. The sizes (H, W) take turns.
    """
    ids = [f"2008_{i:06}" for i in range(1, train + val + 1)]
    folders = ("JPEGImages", "semseg/VOC12", "semseg/pascal-context", "human_parts", "pascal-context/trainval")
    for folder in (*folders, "normals_distill", "sal_distill", "ImageSets/Context", "ImageSets/Parts", "json"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(seed)
    categories = {}
    for number, name in enumerate(ids):
        size = sizes[number % len(sizes)]
        things = _things(number % 4, size, rng)
        write_parts(root / "human_parts" / f"{name}.mat", things)
        _write_maps(root, name, number, size, things, rng)
        categories[name] = [VOC[kind] for kind, _, _ in things]
    for split, names in (("train", ids[:train]), ("val", ids[train:])):
        (root / "ImageSets" / "Context" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        (root / "ImageSets" / "Parts" / f"{split}.txt").write_text(json.dumps({i: categories[i] for i in names}))
    nyu = {"dog": 701, "person": 331, "unknown": 20, "wall": 21, "television": 172}
    (root / "json" / "nyu_classes.json").write_text(json.dumps(nyu))
    (root / "json" / "context_classes.json").write_text(json.dumps({**LABEL_MAP, "tvmonitor": 427, "unknown": 431}))
    return root


def write_parts(path: Path, things: Sequence[Thing]) -> None:
    """Writes an annotation of PASCAL-Parts."""
    objects = np.zeros((1, len(things)), [(key, object) for key in ("class", "class_ind", "mask", "parts")])
    for i, (kind, mask, masks) in enumerate(things):
        parts = np.zeros((1, len(masks)) if masks else (0, 0), [("part_name", object), ("mask", object)])
        for k, (name, part) in enumerate(masks.items()):
            parts[0, k] = (name, part.astype(np.uint8))
        objects[0, i] = (kind, VOC[kind], mask.astype(np.uint8), parts)
    scipy.io.savemat(path, {"anno": {"imname": path.stem, "objects": objects}}, do_compression=True)


def figure(size: tuple[int, int], top: int, left: int, cell: int) -> dict[str, np.ndarray]:
    """Masks of a person's parts."""
    masks = {}
    for name, (rows, columns) in BODY.items():
        masks[name] = np.zeros(size, bool)
        masks[name][
            top + rows.start * cell : top + rows.stop * cell, left + columns.start * cell : left + columns.stop * cell
        ] = True
    return masks


def _things(kind: int, size: tuple[int, int], rng: np.random.Generator) -> list[Thing]:
    cell = min(size) // 12
    top, left = int(rng.integers(1, size[0] - 9 * cell)), int(rng.integers(1, size[1] - 6 * cell))
    person = figure(size, top, left, cell)
    whole = np.any(list(person.values()), axis=0)
    if kind == 1:
        return [("dog", person["torso"] | person["head"], {})]
    if kind == 2:
        other = figure(size, top + cell, left + 2 * cell, cell)
        return [("person", whole, person), ("person", np.any(list(other.values()), axis=0), other)]
    return [("person", whole, person if kind == 0 else {})]


def _write_maps(
    root: Path, name: str, number: int, size: tuple[int, int], things: Sequence[Thing], rng: np.random.Generator
) -> None:
    """Picture, classes, normals and saliency."""
    kinds = np.where(np.arange(size[0])[:, None] < size[0] * 2 // 3, "wall", "grass") + np.zeros(size, "U6")
    for kind, mask, _ in things:
        kinds[mask] = kind
    known, place = np.unique(kinds, return_inverse=True)
    place = place.reshape(size)
    classes = np.array([VOC[kind] for kind in known], np.uint8)[place]
    classes[0] = 255
    noise = rng.normal(0, 8, (*size, 3))
    picture = np.clip(np.array([COLOURS[kind] for kind in known])[place] + noise, 0, 255).astype(np.uint8)
    vectors = np.rint((np.array([NORMALS[kind] for kind in known])[place] + 1) * 127.5).astype(np.uint8)
    labels = np.array([LABEL_MAP[kind] for kind in known], np.uint16)[place]
    Image.fromarray(picture).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
    folder = "VOC12" if number % 2 == 0 else "pascal-context"
    Image.fromarray(classes).save(root / "semseg" / folder / f"{name}.png")
    Image.fromarray(vectors).save(root / "normals_distill" / f"{name}.png")
    salient = np.where(classes > 0, 128, 127).astype(np.uint8)
    salient[0] = 0
    Image.fromarray(salient).save(root / "sal_distill" / f"{name}.png")
    path = root / "pascal-context" / "trainval" / f"{name}.mat"
    scipy.io.savemat(path, {"LabelMap": labels}, do_compression=True)
