"""Written numbers come back from files of every kind as dataset.yaml says, and wrong ones are named with their file."""

import errno
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fedmtl.data import decode
from fedmtl.data.folder import Folder
from fedmtl.errors import UserError

from .folder_files import BLACK, GREY, find, label, make_folder, png16, write

u8, u16, i32, f32 = np.uint8, np.uint16, np.int32, np.float32
CLASSES = np.array([[0, 1, 2], [255, 1, 0]], u8)
AS_IS = CLASSES.tolist()
NONE = [255, 255, 255]
MASK = np.array([[0, 255, 0], [255, 0, 0]], u8)
MARKED = [[0, 1, 0], [1, 0, 0]]
DEEP = np.array([[0, 100, 200], [65535, 7, 0]], u16)
COLOURS = np.array([[[255, 0, 0], [0, 0, 255]], [[0, 0, 0], [9, 9, 9]]], u8)
PALETTE = (CLASSES % 255, [9, 9, 9, 1, 2, 3, 4, 4, 4])
NUMBERS = np.array([[-1.5, np.nan, 2], [np.inf, 0, 3]])
NUMBERS_READ = [[-1.5, np.inf, 2], [np.inf, 0, 3]]
UNIT = np.array([[[0, 0, -1], [0.6, 0, -0.8]], [[0, 0, 0], [np.nan, 0, 0]]], f32)
UNIT_READ = [[[0, 0, -1], [0.6, 0, -0.8]], [[0, 0, 0], [0, 0, 0]]]
UNIT_8 = np.array([[[0, 0, 255], [127, 128, 127]]] * 2, u8)

three = {"kind": "semseg", "num_classes": 3}
two = {"kind": "semseg", "num_classes": 2}
red_blue = {"kind": "semseg", "colours": [[255, 0, 0], [0, 0, 255]]}
red_blue_black = {"kind": "semseg", "colours": [[255, 0, 0], [0, 0, 255], [0, 0, 0]]}
greys = {"kind": "semseg", "colours": [[0, 0, 0], [1, 1, 1]]}
pale = {"kind": "semseg", "colours": [[1, 2, 3], [9, 9, 9]]}
number = {"class_path": "fedmtl.tasks.Regression"}
depth, normals, edge, saliency = ({"kind": kind} for kind in ("depth", "normals", "edge", "saliency"))


@pytest.mark.parametrize(
    ("task", "suffix", "stored", "expected"),
    [
        # classes
        (three, "png", CLASSES, AS_IS),
        (three, "tif", CLASSES.astype(u16), AS_IS),
        ({"kind": "parts", "class_names": ["x", "y", "z"]}, "npy", CLASSES.astype(float), AS_IS),
        (three, "mat", CLASSES, AS_IS),
        (three, "npy", CLASSES[None], AS_IS),
        (three, "npy", CLASSES[..., None], AS_IS),
        (three, "png", np.stack([CLASSES] * 3, -1), AS_IS),  # grey stored as colours
        (three, "png", np.stack([CLASSES] * 3 + [MASK], -1), AS_IS),  # with opacity
        (three, "png", np.stack([CLASSES, MASK], -1), AS_IS),
        (two, "png", MASK > 0, MARKED),
        (two, "npy", MASK > 0, MARKED),
        ({**two, "ignore": 2}, "png", PALETTE, [[0, 1, 255], [0, 1, 0]]),
        ({"kind": "semseg", "values": {0: 0, 1: 1, 2: 0, 255: 2}}, "png", CLASSES, [[0, 1, 0], [2, 1, 0]]),
        ({"kind": "semseg", "values": {100: 0, 200: 1}, "ignore": [0, 7, 65535]}, "png", DEEP, [[255, 0, 1], NONE]),
        ({**two, "ignore": -1}, "npy", np.array([[0, -1, 1]] * 2, i32), [[0, 255, 1]] * 2),
        ({**red_blue, "ignore": [[0, 0, 0], [9, 9, 9]]}, "png", COLOURS, [[0, 1], [255, 255]]),
        ({**red_blue, "ignore": [[0, 0, 0], [9, 9, 9]]}, "npy", COLOURS, [[0, 1], [255, 255]]),
        ({**red_blue_black, "ignore": [9, 9, 9]}, "tif", COLOURS, [[0, 1], [2, 255]]),
        ({**pale, "ignore": [4, 4, 4]}, "png", PALETTE, [[1, 0, 255], [1, 0, 1]]),
        ({**greys, "ignore": [[2, 2, 2], [255, 255, 255]]}, "png", CLASSES, [[0, 1, 255], [255, 1, 0]]),
        # lengths
        (depth, "npy", np.array([[1.5, np.nan, -2, np.inf]] * 2), [[1.5, 0, 0, 0]] * 2),
        ({**depth, "scale": 0.1, "invalid": 65535}, "png", DEEP, [[0, 10, 20], [0, 0.7, 0]]),
        ({**depth, "scale": 0.5, "offset": 1, "invalid": [7, 65535]}, "tif", DEEP, [[1, 51, 101], [0, 0, 1]]),
        ({**depth, "scale": 2}, "mat", np.array([[0.5, 1, 2]] * 2), [[1, 2, 4]] * 2),
        (depth, "tif", np.array([[0.5, -9999, 2]] * 2, f32), [[0.5, 0, 2]] * 2),
        (depth, "tif", np.array([[5, -9999, 2]] * 2, i32), [[5, 0, 2]] * 2),
        ({**depth, "scale": 0.1, "invalid": 65535}, "npy", np.stack([DEEP] * 3, -1), [[0, 10, 20], [0, 0.7, 0]]),
        # numbers of any kind
        (number, "npy", NUMBERS, NUMBERS_READ),
        (number, "npy", NUMBERS[None], NUMBERS_READ),
        (number, "npy", NUMBERS[..., None], NUMBERS_READ),
        ({**number, "scale": 2, "invalid": 255}, "png", np.stack([CLASSES] * 3, -1), [[0, 2, 4], [np.inf, 2, 0]]),
        # normals
        (normals, "npy", UNIT, UNIT_READ),
        (normals, "mat", UNIT.astype(float), UNIT_READ),
        (normals, "png", UNIT_8, [[[-1, -1, 1], [0, 0, 0]]] * 2),
        # masks
        (edge, "png", MASK, MARKED),
        (saliency, "png", MASK // 255, MARKED),
        (edge, "png", MASK > 0, MARKED),
        (edge, "png", MASK * 0, [[0] * 3] * 2),
        ({**edge, "ignore": 255}, "png", MASK // 255 + MASK[::-1] % 254 * 255, [[255, 1, 0], [1, 255, 0]]),
        ({**edge, "above": 127}, "png", np.array([[0, 127, 128], [3, 255, 200]], u8), [[0, 0, 1], [0, 1, 1]]),
        ({**saliency, "above": 0.5}, "npy", np.array([[0.2, np.nan, 0.6]] * 2), [[0, 255, 1]] * 2),
        ({**saliency, "above": 1, "ignore": [2, 9]}, "png", CLASSES, [[0, 0, 255], [1, 0, 0]]),
    ],
)  # fmt: skip
def test_labels(tmp_path: Path, task: dict[str, Any], suffix: str, stored: Any, expected: list[Any]) -> None:
    picture = np.zeros(np.shape(expected)[:2], u8)
    files = {"images/0.png": picture, "images/1.png": picture, f"t/0.{suffix}": stored, "t/1.png": picture}
    found = label(make_folder(tmp_path, {"tasks": {"t": task}}, files), "t")
    assert found.dtype == (f32 if task.get("kind") in ("depth", "normals", None) else u8)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


RGB = np.arange(60, dtype=u8).reshape(5, 4, 3) * 4
RGBA = np.concatenate([RGB, RGB[..., :1] + 1], axis=-1)
WIDE = np.arange(210).reshape(6, 7, 5) * 10  # five bands up to 2090
HOUNSFIELD = np.array([[-1000, -160, 40, 240, np.nan, np.inf]] * 2)


def grey(values: Any) -> Any:
    return np.stack([values] * 3, axis=-1)


@pytest.mark.parametrize(
    ("options", "file", "stored", "expected"),
    [
        ({}, "0.png", RGB, RGB),
        ({}, "0.tif", RGB, RGB),
        ({}, "0.npy", RGB, RGB),
        ({}, "0.npy", np.moveaxis(RGB, -1, 0), RGB),
        ({"key": "images"}, "0.mat", RGB, RGB),
        ({}, "0.PNG", GREY, grey(GREY)),
        ({}, "0.npy", GREY, grey(GREY)),
        ({}, "0.png", GREY > 2, grey((GREY > 2) * 255)),
        ({}, "0.png", RGBA, RGB),
        ({}, "0.png", np.stack([GREY, GREY + 9], -1), grey(GREY)),
        ({}, "0.png", (GREY % 2, [9, 8, 7, 1, 2, 3]), np.array([[9, 8, 7], [1, 2, 3]])[GREY % 2]),
        ({"bands": [3, 2, 1]}, "0.png", RGB, RGB[..., ::-1]),
        ({"bands": [4, 1, 2]}, "0.png", RGBA, RGBA[..., [3, 0, 1]]),
        ({"bands": [2]}, "0.png", RGB, grey(RGB[..., 1])),
        ({"bands": [5, 1, 2], "range": [0, 2550]}, "0.npy", WIDE, WIDE[..., [4, 0, 1]] // 10),
        ({"range": [0, 2550]}, "0.png", WIDE[..., 0].astype(u16), grey(WIDE[..., 0] // 10)),
        ({"range": [0, 255]}, "0.tif", WIDE[..., 0].astype(f32), grey(np.minimum(WIDE[..., 0], 255))),
        ({"range": [-160, 240]}, "0.npy", HOUNSFIELD, grey([[0, 0, 128, 255, 0, 255]] * 2)),
        ({"range": [255, 0]}, "0.png", RGB, 255 - RGB),
    ],
)
def test_images(tmp_path: Path, options: dict[str, Any], file: str, stored: Any, expected: Any) -> None:
    description = {"images": options, "tasks": {"edge": {}}}
    source = Folder(
        make_folder(tmp_path, description, {f"images/{file}": stored, "images/1.png": RGB, "edge/1.png": RGB})
    )
    found = source.load(*find(source, "0"), "image")
    assert found.dtype == u8
    np.testing.assert_array_equal(found, expected)


def test_lossy_images_are_near(tmp_path: Path) -> None:
    smooth = np.linspace(0, 200, 32 * 32).reshape(32, 32).astype(u8)
    files = {"images/0.jpg": smooth, "images/1.jpg": smooth, "edge/0.jpg": np.uint8(255) * (smooth > 100)}
    source = Folder(make_folder(tmp_path, {"tasks": {"edge": {"above": 127, "optional": True}}}, files))
    assert abs(source.load(*find(source, "0"), "image").astype(int) - grey(smooth)).max() < 10
    assert (label(tmp_path, "edge") == (smooth > 100)).mean() > 0.95


@given(
    hnp.arrays(i32, (4, 5), elements=st.integers(-3, 6)),
    st.dictionaries(st.integers(-3, 6), st.integers(0, 255), min_size=1),
)
@settings(max_examples=200)
def test_values_are_looked_up_pixel_by_pixel(values: Any, classes: dict[int, int]) -> None:
    unknown = [value for value in values.ravel().tolist() if value not in classes]
    if unknown:
        with pytest.raises(UserError, match=f"x.png: found the value {unknown[0]}, expected this"):
            decode.mapped(Path("x.png"), values, classes, "this")
    else:
        wanted = [[classes[value] for value in row] for row in values.tolist()]
        assert decode.mapped(Path("x.png"), values, classes, "this").tolist() == wanted


@given(
    hnp.arrays(u8, (3, 4, 3), elements=st.sampled_from([0, 1, 255])),
    st.dictionaries(st.tuples(*[st.sampled_from([0, 1, 254, 255])] * 3), st.integers(0, 255), min_size=1),
)
def test_colours_are_looked_up_pixel_by_pixel(values: Any, classes: dict[tuple[int, ...], int]) -> None:
    unknown = [pixel for row in values.tolist() for pixel in row if tuple(pixel) not in classes]
    if unknown:
        with pytest.raises(UserError, match=re.escape(f"x.png: found the colour {unknown[0]}")):
            decode.coloured(Path("x.png"), values, classes)
    else:
        wanted = [[classes[tuple(pixel)] for pixel in row] for row in values.tolist()]
        assert decode.coloured(Path("x.png"), values, classes).tolist() == wanted


# --- mistakes inside of files --------------------------------------------------------------------------------

STORED = GREY % 3


@pytest.mark.parametrize(
    ("description", "file", "stored", "message"),
    [
        ("semseg: {num_classes: 3}", "semseg/0.png", STORED + u8(1), r"the value 3, expected 0…2 \(classes\) or 255"),
        ("semseg: {num_classes: 2, ignore: []}", "semseg/0.png", STORED, r"value 2, expected 0…1 .* or nothing else"),
        ("semseg: {values: {0: 0, 1: 1}}", "semseg/0.png", STORED, r"found the value 2, expected one of 0, 1, 255"),
        ("semseg: {num_classes: 3}", "semseg/0.npy", STORED / 2, r"found the value 0\.5, expected"),
        ("semseg: {num_classes: 3}", "semseg/0.npy", STORED + np.nan, r"found the value nan, expected"),
        ("semseg: {num_classes: 3}", "semseg/0.png", RGB, r"an array of shape \(5, 4, 3\), expected one number a"),
        ("semseg: {num_classes: 3}", "semseg/0.npy", STORED[:, :2], r"label of 4×2 pixels \(H×W\), expected .* 4×3"),
        ("semseg: {num_classes: 3}", "semseg/0.npy", STORED.astype(str), r"found an array of <U3, expected numbers"),
        ("semseg: {num_classes: 3}", "semseg/0.npy", STORED * 1j, r"found an array of complex128, expected numbers"),
        ("semseg: {num_classes: 3}", "semseg/0.npy", np.array([{}]), r"cannot be read .*allow_pickle=False"),
        ("semseg: {num_classes: 3, key: x}", "semseg/0.mat", STORED, r"found no variable 'x', only semseg"),
        ("semseg: {num_classes: 3}", "semseg/0.mat", b"MATLAB", r"semseg/0\.mat: cannot be read"),
        ("semseg: {num_classes: 3}", "semseg/0.png", b"\x89PNG", r"semseg/0\.png: cannot be read; if it is whole"),
        ("semseg: {num_classes: 3}", "semseg/0.tif", b"no TIFF at all", r"semseg/0\.tif: cannot be read"),
        ("semseg: {num_classes: 3}", "semseg/0.png", "cut", r"semseg/0\.png: cannot be read \(\w+: .*truncated"),
        ("semseg: {colours: [[0, 0, 0], [1, 1, 1]]}", "semseg/0.png", RGB, r"the colour \[0, 4, 8\], expected one of"),
        ("semseg: {colours: [[0, 0, 0], [1, 1, 1]]}", "semseg/0.png", DEEP, r"found uint16 of shape .* 8-bit colours"),
        ("depth: {}", "depth/0.npy", b"", r"depth/0\.npy: cannot be read"),
        ("depth: {}", "depth/0.png", png16(RGB), r"0\.png: found several channels of 16 bits, which Pillow cuts to 8"),
        ("depth: {}", "depth/0.npy", RGB, r"found an array of shape \(5, 4, 3\), expected one number a pixel"),
        ("t: {class_path: fedmtl.tasks.Regression}", "t/0.png", RGB, r"shape \(5, 4, 3\), expected one number a"),
        ("normals: {}", "normals/0.png", GREY, r"normals/0\.png: found an array of shape \(4, 3\), expected normals"),
        ("normals: {}", "normals/0.npy", np.full((4, 3, 3), 9.0), r"found a vector of length 15\.6, expected unit"),
        ("edge: {}", "edge/0.png", GREY, r"found the value 2, expected 0 and 1, or 0 and 255; or say above: 127"),
        ("edge: {}", "edge/0.png", np.array([[0, 1, 255]] * 4, u8), r"found the value 1, expected 0 and 1, or 0"),
        ("edge: {}", "images/0.npy", DEEP, r"images/0\.npy: found uint16 from 0 to 65535; say which values .* range:"),
        ("edge: {}", "images/0.npy", np.ones((9, 9, 4), u8), r"images/0\.npy: found 4 bands; say which become red"),
        ("edge: {}\nimages: {bands: [3]}", "images/0.png", GREY, r"0\.png: found 1 bands; say which"),
        ("edge: {}", "images/0.npy", np.ones(5, u8), r"found an array of shape \(5,\), expected an image \(H, W\) or"),
        ("edge: {}", "images/0.png", png16(RGB), r"images/0\.png: found several channels of 16 bits"),
        ("edge: {}", "images/0.jpg", b"\xff\xd8\xff", r"images/0\.jpg: cannot be read"),
        ("edge: {}", "images/0.jpg", "cmyk", r"images/0\.jpg: found a picture of mode CMYK, expected grey"),
    ],
)  # fmt: skip
def test_reading_finds(tmp_path: Path, description: str, file: str, stored: Any, message: str) -> None:
    task = description.partition(":")[0]
    good = np.full((4, 3, 3), 127, u8) if task == "normals" else BLACK
    picture = RGB[:4, :3] if "bands" in description else GREY
    files = {
        "images/1.png": picture,
        "images/2.png": picture,
        f"{task}/1.png": good,
        "val.txt": "2",
        "train.txt": "0\n1",
    }
    files |= {"images/0.png": GREY} if file.startswith(task) else {f"{task}/0.png": good}
    path = make_folder(tmp_path, f"tasks:\n  {description}", files) / file
    if isinstance(stored, str) and stored == "cmyk":
        Image.new("CMYK", (3, 4)).save(path)
    elif isinstance(stored, str) and stored == "cut":
        write(path, np.random.default_rng(0).integers(0, 256, (50, 50), dtype=u8))
        path.write_bytes(path.read_bytes()[:-900])
    else:
        write(path, stored)
    source = Folder(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        source.read("train", 0, [task])
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    source.read("train", 1, [task])  # others are not affected


PAGES = r"found 2 pages of one size, expected one; keep the one that counts, or save all as \.npy and choose bands"


@pytest.mark.parametrize(
    ("size", "kind", "refused"),
    [((3, 4), 0, True), ((3, 4), 2, True), ((2, 2), 0, False), ((2, 2), 1, False), ((3, 4), 4, False)],
)
def test_further_pages_of_a_tiff(tmp_path: Path, size: tuple[int, int], kind: int, refused: bool) -> None:
    """Overviews are smaller and masks are marked as such; what else follows would be lost in silence."""
    path, page = tmp_path / "a.tif", Image.new("L", size)
    page.encoderinfo = {"tiffinfo": {254: kind}}
    Image.fromarray(GREY).save(path, save_all=True, append_images=[page])
    for read in (decode.numbers, lambda path: decode.picture(path, ("L",))):
        if refused:
            with pytest.raises(UserError, match=f"a.tif: {PAGES}"):
                read(path)
        else:
            np.testing.assert_array_equal(read(path), GREY)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "a.png: can't be opened or read (Permission denied); "),
        (OSError(errno.EIO, "Input/output error", "b.png"), "b.png: can't be opened or read (Input/output error); "),
        (MemoryError(), "a.png: not enough memory to decode it; set fewer fabric.workers, or make the pictures"),
        (MemoryError("4 GiB"), "a.png: not enough memory to decode it (4 GiB); set fewer fabric.workers, or make"),
        (OSError("truncated"), "a.png: cannot be read (OSError: truncated); replace the file"),
        (ValueError("x"), "a.png: cannot be read (ValueError: x); replace the file"),
    ],
    ids=repr,
)
def test_only_a_broken_file_is_to_be_replaced(error: Exception, message: str) -> None:
    def fail(task: None, path: Path) -> Any:
        raise error

    with pytest.raises(UserError, match="^" + re.escape(message)) as caught:
        decode.open_with(fail, None, Path("a.png"))
    assert ("replace" in str(caught.value)) == message.endswith("replace the file")


def test_unsigned_files_may_be_mapped_from_negative_values_too(tmp_path: Path) -> None:
    values = np.array([[0, 1], [2, 0]], np.uint16)
    np.testing.assert_array_equal(decode.mapped(tmp_path, values, {-1: 255, 0: 0, 1: 1, 2: 0}, ""), [[0, 1], [0, 0]])
    with pytest.raises(UserError, match="found the value 9, expected"):
        decode.mapped(tmp_path, values + 9, {-1: 255, 0: 0, 1: 1, 2: 0}, "nothing else")


def test_numbers_are_found_in_the_files_own_type(tmp_path: Path) -> None:
    stored = np.array([[0.1, 1e20, 2.0]], np.float32)
    images = {f"images/{name}.png": BLACK[:1, :3] for name in "ab"}
    labels = {f"depth/{name}.npy": stored for name in "ab"}
    root = make_folder(tmp_path, {"tasks": {"depth": {"invalid": [0.1, 1e20]}}}, {**images, **labels})
    assert label(root, "depth", "a").tolist() == [[0, 0, 2]]


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_pictures_are_turned_as_they_say(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    turns = {3: 2, 6: 1, 8: 3}[orientation]  # how far the stored picture is turned to the left
    picture = Image.fromarray(np.rot90(upright, turns))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode.image(None, tmp_path / "a.png"), upright)
    np.testing.assert_array_equal(decode.numbers(tmp_path / "a.png"), upright)
