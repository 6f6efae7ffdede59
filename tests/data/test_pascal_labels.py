"""Every kind of label against written numbers, and what is said of broken files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
from PIL import Image

from fedmtl.boundaries import thin
from fedmtl.data import pascal_labels
from fedmtl.data.pascal_context import PASCALContext
from fedmtl.errors import UserError
from fedmtl.tasks import Edge

from .pascal_files import make_pascal, write_parts

SIZE = (4, 6)
FIRST = "2008_000001"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMTL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """One training image of 4×6 pixels whose labels a test writes."""
    root = make_pascal(tmp_path / "PASCAL_MT", train=1, val=1)
    Image.new("RGB", SIZE[::-1]).save(root / "JPEGImages" / f"{FIRST}.jpg")
    write_map(root, np.full(SIZE, 440))
    return root


def read(root: Path, task: str) -> np.ndarray:
    return PASCALContext(root).read("train", 0, [task])[task]


def save(path: Path, values: np.ndarray | list, mode: str | None = None) -> None:
    """A picture of 4×6 pixels that repeats `values`."""
    values = np.asarray(values, np.uint8)
    picture = Image.fromarray(np.resize(values, (*SIZE, values.shape[-1]) if values.ndim == 2 else SIZE))
    (picture.convert(mode) if mode else picture).save(path)


def write_map(root: Path, labels: np.ndarray | list, name: str = FIRST, key: str = "LabelMap") -> None:
    scipy.io.savemat(root / "pascal-context" / "trainval" / f"{name}.mat", {key: np.asarray(labels, np.uint16)})


def drawing(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


# --- what labels say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("palette", [False, True])
def test_semseg(small, palette):
    path = small / "semseg" / "VOC12" / f"{FIRST}.png"
    save(path, [0, 20, 255, 1])
    if palette:
        picture = Image.open(path).copy()
        picture.putpalette(list(range(255, -1, -1)) * 3)
        picture.save(path)
    label = read(small, "semseg")
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, np.resize([0, 20, 255, 1], SIZE))


@pytest.mark.parametrize("mode", [None, "P"])
def test_saliency(small, mode):
    save(small / "sal_distill" / f"{FIRST}.png", [0, 127, 128, 255], mode)
    label = read(small, "saliency")
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, np.resize([0, 0, 1, 1], SIZE))


def test_normals_count_on_shared_classes(small):
    save(small / "normals_distill" / f"{FIRST}.png", [[255, 127, 127], [0, 255, 51], [128, 127, 128]])
    write_map(small, np.repeat([[440], [187], [284], [431]], 6, axis=1))  # wall, grass, person, unknown
    label = read(small, "normals")
    assert label.dtype == np.float32
    row = [[1, -1 / 255, -1 / 255], [-1, 1, -0.6], [0, 0, 0]] * 2
    none = np.zeros((6, 3))
    np.testing.assert_allclose(label, [row, none, row, none], atol=1e-6)


def test_normals_with_and_without_lists_of_names(small):
    names = json.loads((small / "json" / "context_classes.json").read_text())
    (small / "json" / "context_classes.json").write_text(json.dumps({**names, "dog": 5, "person": 7}))
    save(small / "normals_distill" / f"{FIRST}.png", [[255, 127, 127]])
    write_map(small, np.repeat([[5], [113], [427], [2]], 6, axis=1))
    np.testing.assert_array_equal(read(small, "normals")[:, 0, 0], [1, 0, 1, 0])
    shutil.rmtree(small / "json")
    np.testing.assert_array_equal(read(small, "normals")[:, 0, 0], [0, 1, 1, 0])


def test_built_in_shared_classes():
    assert len(pascal_labels.SHARED_CLASSES) == len(set(pascal_labels.SHARED_CLASSES)) == 170
    shared = {"air conditioner": 3, "dog": 113, "floor": 158, "person": 284, "tvmonitor": 427, "wall": 440, "wire": 457}
    assert set(shared.values()) <= set(pascal_labels.SHARED_CLASSES)
    others = {"aeroplane": 2, "grass": 187, "horse": 207, "motorbike": 258, "sky": 360, "unknown": 431, "water": 445}
    assert not set(others.values()) & set(pascal_labels.SHARED_CLASSES)


def test_edge_by_hand(small):
    """The result is that of ``skimage.morphology.thin(cv2.Laplacian(map, cv2.CV_64F) != 0)``."""
    labels = ["11122222", "11122222", "11122222", "11144444", "11144444", "33333333", "33353333", "33333333"]
    write_map(small, [[100 * int(k) - 90 for k in row] for row in labels])
    Image.new("RGB", (8, 8)).save(small / "JPEGImages" / f"{FIRST}.jpg")
    label = read(small, "edge")
    assert label.dtype == np.uint8
    expected = drawing(
        "........", "..#.....", "...#....", "...#....", "...###..", "###.....", "........", "........"
    )  # fmt: skip
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (2, 2), (33, 47)])
def test_edge_on_random_maps(tmp_path, shape):
    labels = np.random.default_rng(shape).integers(0, 3, shape).astype(np.uint16)  # so that sums cancel out at times
    scipy.io.savemat(tmp_path / "map.mat", {"LabelMap": labels})
    rough = scipy.ndimage.laplace(labels.astype(np.int32), mode="mirror") != 0  # OpenCV's border, reflect 101
    expected = thin(rough.astype(np.uint64))
    np.testing.assert_array_equal(pascal_labels.edge(Edge(), tmp_path / "map.mat"), expected)


def mask(*pixels: tuple[int, int]) -> np.ndarray:
    found = np.zeros(SIZE, bool)
    found[tuple(np.transpose(pixels))] = True
    return found


PARTS = [
    "hair head lear rear lebrow rebrow leye reye nose mouth",
    "neck torso",
    "luarm ruarm",
    "llarm rlarm lhand rhand",
    "luleg ruleg",
    "llleg rlleg lfoot rfoot",
]


def test_six_parts():
    numbers = {name: number for number, names in enumerate(PARTS, start=1) for name in names.split()}
    assert len(numbers) == 24
    assert numbers == pascal_labels.PART_NUMBERS


def test_human_parts_are_the_union_of_persons(small):
    first = {"hair": mask((0, 0), (0, 1)), "torso": mask((1, 0), (1, 1)), "lfoot": mask((3, 0))}
    second = {"rlarm": mask((1, 1), (1, 2)), "rhand": mask((1, 3)), "luleg": mask((2, 2)), "ruarm": mask((0, 5))}
    whole = np.ones(SIZE, bool)
    things = [
        ("person", whole, {}),
        ("dog", whole, {"head": mask((3, 5)), "muzzle": mask((3, 4))}),  # a dog's head is none of ours
        ("person", whole, first),
        ("person", whole, second),
    ]
    write_parts(small / "human_parts" / f"{FIRST}.mat", things)
    label = read(small, "human_parts")
    assert label.dtype == np.uint8
    expected = [[1, 1, 0, 0, 0, 3], [2, 4, 4, 4, 0, 0], [0, 0, 5, 0, 0, 0], [6, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(label, expected)
    write_parts(small / "human_parts" / f"{FIRST}.mat", [things[3], things[2]])  # the later one lies on top
    expected[1][1] = 2
    np.testing.assert_array_equal(read(small, "human_parts"), expected)


@pytest.mark.parametrize("whole_column", [False, True])
def test_human_parts_in_other_shapes(small, whole_column):
    """MATLAB writes structures as rows or columns, and one without parts as []."""
    part = np.zeros((2, 1), [("part_name", object), ("mask", object)])
    part[0, 0], part[1, 0] = ("head", mask((0, 0))), ("neck", mask((1, 0)).astype(float))
    objects = np.zeros((2, 1), [(key, object) for key in ("class", "class_ind", "mask", "parts")])
    objects[0, 0] = ("person", 15.0, mask((0, 0)), part if whole_column else part.T)
    objects[1, 0] = ("person", 15, mask((2, 2)), [])
    anno = {"imname": FIRST, "objects": objects if whole_column else objects.T}
    scipy.io.savemat(small / "human_parts" / f"{FIRST}.mat", {"anno": anno})
    label = read(small, "human_parts")
    np.testing.assert_array_equal(label, 1 * mask((0, 0)) + 2 * mask((1, 0)))


def test_parts_without_a_pixel_are_none(small):
    things = [("person", np.ones(SIZE, bool), {"head": np.zeros(SIZE, bool)})]
    write_parts(small / "human_parts" / f"{FIRST}.mat", things)
    assert not PASCALContext(small).has_label("train", 0, "human_parts")


# --- what is said of broken files -----------------------------------------------------------------------------

PICTURE, CLASSES = f"JPEGImages/{FIRST}.jpg", f"semseg/VOC12/{FIRST}.png"
SALIENT, VECTORS = f"sal_distill/{FIRST}.png", f"normals_distill/{FIRST}.png"
MAP, ANNO = f"pascal-context/trainval/{FIRST}.mat", f"human_parts/{FIRST}.mat"
OURS, THEIRS = "json/context_classes.json", "json/nyu_classes.json"
ONES = np.ones(SIZE, np.uint16)
STRUCTURE = "); expected PASCAL-Parts: imname and objects of class, class_ind, mask, parts of part_name, mask"

Damage = Callable[[Path], None]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content) and None


def picture(*values: object) -> Damage:
    return lambda path: save(path, list(values))


def labels(values: object, key: str = "LabelMap") -> Damage:
    return lambda path: scipy.io.savemat(path, {key: values})


def things(**first: object) -> Damage:
    return lambda path: scipy.io.savemat(path, {"anno": {"imname": FIRST, "objects": first}})


def person(**found: np.ndarray) -> Damage:
    return lambda path: write_parts(path, [("person", np.ones(SIZE, bool), found)])


@pytest.mark.parametrize(
    ("task", "file", "damage", "message"),
    [
        ("edge", PICTURE, cut, "cannot be read ("),
        ("edge", PICTURE, write(b""), "cannot be read (UnidentifiedImageError: "),
        ("semseg", CLASSES, cut, "cannot be read ("),
        ("semseg", CLASSES, picture(0, 21), "found the value 21, expected 0…20 (classes) or 255 (void)"),
        ("semseg", CLASSES, picture([1, 2, 3]), "found a picture of mode RGB, expected L or P"),
        ("saliency", SALIENT, cut, "cannot be read ("),
        ("saliency", SALIENT, picture([1, 2, 3]), "found a picture of mode RGB, expected L or P or 1"),
        ("normals", VECTORS, cut, "cannot be read ("),
        ("normals", VECTORS, picture(1), "found a picture of mode L, expected RGB"),
        ("normals", MAP, cut, "cannot be read ("),
        ("normals", MAP, labels(ONES[1:]), ".mat has 3×6"),
        ("normals", MAP, labels(ONES * 460), "found the value 460 in LabelMap, expected 0…459"),
        ("normals", THEIRS, write(b"{"), "cannot be read as JSON (Expecting"),
        ("normals", THEIRS, write(b"[]"), "expected a JSON object; mend the file or delete it to do without"),
        ("normals", OURS, write(b'{"wall": 460, "tvmonitor": 1}'), "found 460 for 'wall', expected a number 1…459"),
        ("normals", OURS, write(b'{"wall": 440}'), "found None for 'tvmonitor', expected a number 1…459"),
        ("edge", MAP, labels(ONES, "Labels"), "found no variable 'LabelMap', only Labels"),
        ("edge", MAP, labels(ONES[:, 1:]), "found a label of 4×5 pixels (H×W), expected its image's 4×6"),
        ("edge", MAP, labels(np.ones((4, 6, 2))), "found a LabelMap of float64 and shape (4, 6, 2), expected numbers"),
        ("edge", MAP, labels("words"), "found a LabelMap of <U5 and shape (1,), expected numbers (H, W)"),
        ("edge", MAP, labels(-1.0 * ONES), "found the value -1.0 in LabelMap, expected 0…459"),
        ("edge", MAP, labels(0.5 * ONES), "found the value 0.5 in LabelMap, expected 0…459"),
        ("edge", MAP, labels(np.nan * ONES), "found the value nan in LabelMap, expected 0…459"),
        ("human_parts", ANNO, cut, "cannot be read ("),
        ("human_parts", ANNO, labels(ONES, "annotation"), "found no variable 'anno', only annotation"),
        ("human_parts", ANNO, labels(ONES, "anno"), STRUCTURE),
        ("human_parts", ANNO, labels("words", "anno"), STRUCTURE),
        ("human_parts", ANNO, labels({"imname": FIRST}, "anno"), STRUCTURE),
        ("human_parts", ANNO, things(name="person", class_ind=15), STRUCTURE),
        ("human_parts", ANNO, things(name="person", class_ind="?", mask=ONES, parts=[]), STRUCTURE),
        ("human_parts", ANNO, things(name="person", class_ind=15, mask=ONES, parts=ONES), STRUCTURE),
        ("human_parts", ANNO, person(wing=ONES), "found a person's part 'wing', expected one of hair, head, "),
        ("human_parts", ANNO, person(head=ONES[1:]), "found a label of 3×6 pixels (H×W), expected its image's 4×6"),
        (
            "human_parts",
            ANNO,
            person(head=ONES, neck=ONES[1:]),
            "found a mask of shape (3, 6) for neck, expected (H, W)",
        ),
    ],
)
def test_reading_finds(small, task, file, damage, message):
    source = PASCALContext(small)
    save(small / VECTORS, [[255, 127, 127]])
    damage(small / file)
    with pytest.raises(UserError) as caught:
        source.read("train", 0, [task])
    said = str(caught.value)
    assert message in said
    assert str(small / file) in said
    assert "\n" not in said
    source.read("val", 0, ["semseg"])  # others are not affected
