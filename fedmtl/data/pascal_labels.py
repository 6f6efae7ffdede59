"""Labels of PASCAL-Context as its multi-task version stores them: MATLAB annotations, masks and distilled maps."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmtl.boundaries import thin
from fedmtl.data import decode
from fedmtl.data.cache import cached_file
from fedmtl.errors import UserError
from fedmtl.tasks import Task
from fedmtl.tasks.base import Label

logger = logging.getLogger(__name__)

CLASS_NAMES = (  # noqa: SIM905 - a list would be formatted as twenty lines
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, "
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
).split(", ")
PERSON = CLASS_NAMES.index("person")

PARTS = {  # what PASCAL-Parts calls the parts of a person, by the six parts of this line of work
    "head": "hair head lear lebrow leye mouth nose rear rebrow reye",
    "torso": "neck torso",
    "upper arm": "luarm ruarm",
    "lower arm": "lhand llarm rhand rlarm",
    "upper leg": "luleg ruleg",
    "lower leg": "lfoot llleg rfoot rlleg",
}
PART_NAMES = ["background", *PARTS]
PART_NUMBERS = {name: PART_NAMES.index(part) for part, names in PARTS.items() for name in names.split()}

LABEL_MAP_MAX = 459  # classes of the full annotation run from 1
# Those of them that NYU-v2 has by the same name, without "unknown" and with "tvmonitor": the network that made the
# normals was trained on NYU-v2 and knows nothing of the others.
# fmt: off
SHARED_CLASSES = [
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56,
    59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124,
    135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202,
    213, 215, 216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261,
    263, 269, 272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314,
    315, 319, 323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383,
    384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442,
    443, 444, 446, 454, 457,
]
# fmt: on


def semseg(task: Task, path: Path) -> Label:
    """The 21 classes of VOC from a picture of 0…20, 255 where unknown."""
    return decode.numbered(path, decode.picture(path, ("L", "P")), task.channels)


def saliency(task: Task, path: Path) -> Label:
    """1 where an 8-bit picture is above 127, else 0."""
    mask: NDArray[np.uint8] = (decode.picture(path, ("L", "P", "1"), convert="L") > 127).astype(np.uint8)
    return mask


def label_map(task: Task | None, path: Path) -> NDArray[np.int32]:
    """The variable `LabelMap`, classes 1…459 of every pixel (0: none), (H, W)."""
    values = decode.matlab(path, "LabelMap")
    if values.ndim != 2 or values.dtype.kind not in "iuf":
        raise UserError(f"{path}: found a LabelMap of {values.dtype} and shape {values.shape}, expected numbers (H, W)")
    bad = values[~((values >= 0) & (values <= LABEL_MAP_MAX) & (values == np.floor(values)))]
    if bad.size:
        raise UserError(f"{path}: found the value {bad[0]} in LabelMap, expected 0…{LABEL_MAP_MAX}")
    return np.ascontiguousarray(values, dtype=np.int32)


def edge(task: Task, path: Path) -> Label:
    """Where the Laplacian of the `LabelMap` is not zero, thinned: 1 on edges, 0 elsewhere.

    The kernel is [0 1 0; 1 −4 1; 0 1 0]; beyond the border the map is mirrored about its outermost pixels.
    """
    labels = label_map(task, path)
    wide = np.pad(labels, 1, mode="reflect")
    laplacian = wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:] - 4 * labels
    return thin((laplacian != 0).astype(np.uint64)).astype(np.uint8)


def normals(task: Task, path: Path, labels: Path, nyu: Path | None = None, context: Path | None = None) -> Label:
    """Normals from 8 bits, unknown where the `LabelMap` has no class that NYU-v2 has too.

    Args:
        task: unused.
        path: the picture of the normals, n = 2v/255 − 1.
        labels: the file of the `LabelMap`.
        nyu: names of NYU-v2's classes; the built-in `SHARED_CLASSES` if not given.
        context: names and numbers of the `LabelMap`'s classes.
    """
    vectors = decode.normals(path, decode.picture(path, ("RGB",)))
    classes = decode.open_with(label_map, None, labels)
    if classes.shape != vectors.shape[:2]:
        found, other = ("×".join(map(str, shape[:2])) for shape in (vectors.shape, classes.shape))
        raise UserError(f"{path}: has {found} pixels (H×W), but the LabelMap in {labels} has {other}")
    counts = np.zeros(LABEL_MAP_MAX + 1, bool)
    counts[list(SHARED_CLASSES if nyu is None or context is None else shared_classes(nyu, context))] = True
    vectors[~counts[classes]] = 0
    return vectors


def shared_classes(nyu: Path, context: Path) -> list[int]:
    """Numbers of the classes that both files name, see `SHARED_CLASSES`.

    Raises:
        UserError: a file is no JSON object, or a number is none of a `LabelMap`.
    """
    ours, theirs = _json_object(context), _json_object(nyu)
    names = {name for name in ours if name in theirs and name != "unknown"} | {"tvmonitor"}
    for name in names:
        if ours.get(name) not in range(1, LABEL_MAP_MAX + 1):
            raise UserError(f"{context}: found {ours.get(name)!r} for {name!r}, expected a number 1…{LABEL_MAP_MAX}")
    return [ours[name] for name in names]


def person_parts(task: Task | None, path: Path) -> list[tuple[str, NDArray[np.bool_]]]:
    """Names and masks (H, W) of the parts of all persons of a PASCAL-Parts annotation, as ordered in the file.

    `anno` holds the image's name and `objects`; an object its class's name, its number, mask and parts; a part its
    name and mask.

    Raises:
        UserError: the annotation is made in another way.
    """
    anno = decode.matlab(path, "anno")
    found = []
    try:
        for thing in np.ravel(np.ravel(anno)[0][1]):
            if int(np.ravel(thing[1])[0]) == PERSON:
                found += [(str(np.ravel(part[0])[0]), np.asarray(part[1]) != 0) for part in np.ravel(thing[3])]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        expected = "expected PASCAL-Parts: imname and objects of class, class_ind, mask, parts of part_name, mask"
        raise UserError(f"{path}: cannot read the structure of `anno` ({error}); {expected}") from error
    for name, mask in found:
        if name not in PART_NUMBERS:
            raise UserError(f"{path}: found a person's part {name!r}, expected one of {', '.join(PART_NUMBERS)}")
        if mask.ndim != 2 or mask.shape != found[0][1].shape:
            raise UserError(
                f"{path}: found a mask of shape {mask.shape} for {name}, expected (H, W), the same for all parts"
            )
    return [(name, mask) for name, mask in found if mask.any()]


def human_parts(task: Task, path: Path) -> Label:
    """Parts of all persons, `PART_NAMES` by number; where they overlap, the later in the file."""
    parts = person_parts(task, path)
    if not parts:
        raise UserError(f"{path}: found no person with parts")
    label = np.zeros(parts[0][1].shape, np.uint8)
    for name, mask in parts:
        label[mask] = PART_NUMBERS[name]
    return label


def have_parts(index: Path, folder: Path, ids: Sequence[str]) -> NDArray[np.bool_]:
    """Which images have a person with parts, (N,).

    The index says which have a person at all, and the annotations of these are read, once: the answer is kept in
    the user's cache folder. Images that the index leaves out, or all of them if there is none, are looked up in
    their annotations; one without annotation has no parts. One whose annotation cannot be read counts as having
    some, so that reading it says what is wrong.

    Args:
        index: JSON object of the numbers of the classes of each image's objects, by the image's name.
        folder: annotations, ``ID.mat``.
        ids: names of the images.

    Raises:
        UserError: the index is malformed, there is no annotation at all, or the system can't read one.
    """
    listed = _json_object(index) if index.exists() else {}
    if not all(isinstance(numbers, list) for numbers in listed.values()):
        raise UserError(f"{index}: expected a list of class numbers by image; mend it, or delete it to do without")
    there = {name.removesuffix(".mat") for name in os.listdir(folder)}.intersection(ids)
    if not there:
        raise UserError(f"{folder}: found none of the {len(ids)} annotations, such as {ids[0]}.mat")
    lost = [name for name in ids if name not in listed and name not in there]
    if lost:
        count = f"{len(lost)} of {len(ids)} images have no annotation, such as {lost[0]}"
        logger.warning("%s: %s; they count as images without people", folder, count)
    people = {name for name in ids if (PERSON in listed[name] if name in listed else name in there)}
    files = {name: folder / f"{name}.mat" for name in ids if name in people and name in there}

    def look() -> NDArray[np.bool_]:
        logger.info("%s: looking for parts of people in %d files, once", folder, len(files))
        return np.array([_may_have_parts(path) for path in files.values()], bool)

    found = cached_file(list(files.values()), {"recipe": "pascal person parts"}, look)
    having = {name for name, has in zip(files, found, strict=True) if has} | (people - there)
    return np.array([name in having for name in ids])


def _may_have_parts(path: Path) -> bool:
    try:
        return bool(decode.open_with(person_parts, None, path))
    except UserError as error:
        if decode.is_passing(error.__cause__):
            raise  # or the answer would be kept for good
        return True  # whatever is wrong with the file, reading its label says it


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read as JSON ({error}); mend the file or delete it to do without"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; mend the file or delete it to do without")
    return content
