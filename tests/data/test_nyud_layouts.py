import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from fedmtl.data import decode
from fedmtl.data.nyud import NYUDv2
from fedmtl.data.nyud_layouts import FORTY, THIRTEEN
from fedmtl.errors import UserError
from fedmtl.tasks import SemSeg

SIZE = (16, 24)
TASKS = ["semseg", "depth", "normals", "edge"]
COUNTS = {"train": 3, "val": 2}
Truth = dict[str, np.ndarray]


def truth(classes: int, seed: int) -> Truth:
    """What is written, in plain form: classes from 0, −1 void; metres; unit vectors; booleans."""
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(*SIZE, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    sample = {
        "image": rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        "semseg": rng.integers(-1, classes, SIZE),
        "depth": rng.integers(1, 9000, SIZE) / 1000,
        "normals": normals,
        "edge": rng.random(SIZE) < 0.2,
    }
    sample["depth"][3, :5] = 0
    sample["normals"][:4] = 0
    sample["normals"][-4:] = [0.6, 0, -0.8]
    return sample


def eight_bits(normals: np.ndarray) -> np.ndarray:
    return np.rint((normals + 1) * 127.5).astype(np.uint8)


def picture(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}))


def array(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def mat(path: Path, **values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, values)


WRITE: dict[str, Callable[[Path, Truth], None]] = {  # by pattern of the file
    "images/*.png": lambda path, true: picture(path, true["image"]),
    "images/*.jpg": lambda path, true: picture(path, true["image"]),
    "segmentation/*.png": lambda path, true: picture(path, (true["semseg"] + 1).astype(np.uint8)),
    "segmentation/*.mat": lambda path, true: mat(path, segmentation=(true["semseg"] + 1).astype(np.uint8)),
    "depth/*.npy": lambda path, true: array(path, true["depth"].astype(np.float32)),
    "depth/*.mat": lambda path, true: mat(path, depth=true["depth"]),
    "normals/*.png": lambda path, true: picture(path, eight_bits(true["normals"])),
    "normals/*.npy": lambda path, true: array(path, true["normals"].astype(np.float32)),
    "normals/*.jpg": lambda path, true: picture(path, eight_bits(true["normals"])),
    "edge/*.png": lambda path, true: picture(path, true["edge"] * np.uint8(255)),
    "edge/*.npy": lambda path, true: array(path, true["edge"].astype(np.float32)),
    "$/image/*.npy": lambda path, true: array(path, true["image"] / 255),
    "$/label/*.npy": lambda path, true: array(path, true["semseg"].astype(np.float32)),
    "$/depth/*.npy": lambda path, true: array(path, true["depth"][..., None].astype(np.float32)),
    "$/normal/*.npy": lambda path, true: array(path, true["normals"].astype(np.float32)),
    "image/$/*.png": lambda path, true: picture(path, true["image"]),
    "seg40/$/*.png": lambda path, true: picture(path, (true["semseg"] % 256).astype(np.uint8)),
    "seg13/$/*.png": lambda path, true: picture(path, (true["semseg"] % 256).astype(np.uint8)),
    "depth/$/*.png": lambda path, true: picture(path, np.rint(true["depth"] * 1000).astype(np.uint16)),
    "normal/$/*.npy": lambda path, true: array(path, true["normals"].astype(np.float32)),
    "normal/$/*.png": lambda path, true: picture(path, eight_bits(true["normals"])),
}

LAYOUTS = {
    "FedHCA2": ["images/*.png", "segmentation/*.png", "depth/*.npy", "normals/*.png", "edge/*.png"],
    "MTI-Net": ["images/*.jpg", "segmentation/*.png", "depth/*.npy", "normals/*.npy", "edge/*.npy"],
    "ASTMT": ["images/*.jpg", "segmentation/*.mat", "depth/*.mat", "normals/*.jpg", "edge/*.png"],
    "MTAN": ["$/image/*.npy", "$/label/*.npy", "$/depth/*.npy", "$/normal/*.npy"],
    "toolkit": ["image/$/*.png", "seg40/$/*.png", "depth/$/*.png", "normal/$/*.png"],
    "toolkit, new": ["image/$/*.png", "seg40/$/*.png", "depth/$/*.png", "normal/$/*.npy"],
    "toolkit, 13": ["image/$/*.png", "seg13/$/*.png", "depth/$/*.png", "normal/$/*.png"],
}


def names(patterns: list[str]) -> dict[str, list[str]]:
    """The images' names in the style of their layout."""
    if patterns[0].startswith("images"):
        return {"train": ["0003", "0001", "0007"], "val": ["0002", "1449"]}
    if patterns[0].startswith("$"):
        return {split: [str(i) for i in range(count)] for split, count in COUNTS.items()}
    return {"train": ["00003", "00004", "00011"], "val": ["00001", "00002"]}


def make(root: Path, patterns: list[str]) -> dict[tuple[str, int], Truth]:
    """Writes a data set and returns what was written."""
    flat = patterns[0].startswith("images")
    thirteen = any(pattern.startswith(("$", "seg13")) for pattern in patterns)
    written = {}
    for split, ids in names(patterns).items():
        folder = "test" if split == "val" and patterns[0].startswith("image/") else split
        for index, name in enumerate(ids):
            true = truth(13 if thirteen else 40, seed=len(written))
            for pattern in patterns:
                WRITE[pattern](root / pattern.replace("$", folder).replace("*", name), true)
            written[split, index] = true
        if flat:
            (root / "gt_sets").mkdir(exist_ok=True)
            (root / "gt_sets" / f"{split}.txt").write_text("\n".join(ids))
    return written


def check(source: NYUDv2, patterns: list[str], written: dict[tuple[str, int], Truth]) -> None:
    """Compares all that is read with what was written, exactly but for normals in 8 bits and JPEG."""
    normals = next((pattern for pattern in patterns if pattern.startswith(("normal", "$/normal"))), "")
    precision = {"y": 1e-6, "g": 1.1 / 255}[normals[-1]] if not normals.endswith("jpg") else None
    for (split, index), true in written.items():
        sample = source.read(split, index, list(source.tasks))
        for name, values in sample.items():
            assert values.dtype == (np.float32 if name in ("depth", "normals") else np.uint8)
        if not patterns[0].endswith("jpg"):
            np.testing.assert_array_equal(sample["image"], true["image"])
        assert sample["image"].shape == (*SIZE, 3)
        np.testing.assert_array_equal(sample["semseg"], np.where(true["semseg"] < 0, 255, true["semseg"]))
        np.testing.assert_array_equal(sample["depth"], true["depth"].astype(np.float32))
        if precision is None:  # constant parts are little disturbed
            np.testing.assert_array_equal(sample["normals"][:2], 0)
            np.testing.assert_allclose(sample["normals"][-2:], true["normals"][-2:], atol=0.05)
        else:
            np.testing.assert_allclose(sample["normals"], true["normals"], atol=precision)
            np.testing.assert_array_equal(sample["normals"][:4], 0)
        if "edge" in source.tasks:
            np.testing.assert_array_equal(sample["edge"], true["edge"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_written_is_read(tmp_path, layout):
    patterns = LAYOUTS[layout]
    written = make(tmp_path, patterns)
    source = NYUDv2(tmp_path)
    assert {split: source.ids(split) for split in COUNTS} == names(patterns)
    assert list(source.tasks) == (TASKS if patterns[0].startswith("images") else TASKS[:3])
    check(source, patterns, written)
    assert NYUDv2.recognises(tmp_path)


def test_each_task_is_detected_by_itself(tmp_path):
    kinds = ["images", "segmentation", "depth", "normals", "edge"]
    choices = [[pattern for pattern in WRITE if pattern.startswith(f"{kind}/*")] for kind in kinds]
    assert [len(choice) for choice in choices] == [2, 2, 2, 3, 2]
    for number, patterns in enumerate(itertools.product(*choices)):
        root = tmp_path / str(number)
        written = make(root, list(patterns))
        check(NYUDv2(root), list(patterns), written)


def test_only_tasks_with_files_are_offered(tmp_path):
    make(tmp_path, ["images/*.jpg", "depth/*.mat"])
    source = NYUDv2(tmp_path)
    assert list(source.tasks) == ["depth"]
    expected = r"has no labels for 'normals': there is no normals/ID\.png or normals/ID\.npy or normals/ID\.jpg$"
    with pytest.raises(UserError, match=expected):
        source.view("train", ["depth", "normals"])
    make(tmp_path / "nyuv2", LAYOUTS["MTAN"])
    with pytest.raises(UserError, match=r"has no 'edge', as the layout nyuv2 \(MTAN, LibMTL\); there are semseg, de"):
        NYUDv2(tmp_path / "nyuv2").view("val", ["edge"])


def test_the_kind_that_most_images_have_is_taken(tmp_path):
    patterns = LAYOUTS["MTI-Net"]
    written = make(tmp_path, patterns)
    strays = [f"normals/{i}.png" for i in range(2000, 2009)]  # of no image in the lists
    for stray in ("normals/0001.png", "edge/0001.png", "images/0001.png", "depth/readme.mat", *strays):
        (tmp_path / stray).write_bytes(b"")
    check(NYUDv2(tmp_path), patterns, written)


def test_labels_that_are_incomplete_are_found(tmp_path):
    make(tmp_path, LAYOUTS["ASTMT"])
    (tmp_path / "segmentation" / "0001.mat").unlink()
    source = NYUDv2(tmp_path)
    with pytest.raises(UserError, match=r"segmentation.0001\.mat: no such file, 1 of the 3 semseg labels of the train"):
        source.view("train", ["semseg"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_default_crop_suits_the_layout(tmp_path, layout):
    make(tmp_path, LAYOUTS[layout])
    crop = (288, 384) if layout == "MTAN" else (448, 576)
    assert NYUDv2(tmp_path).view("train", ["depth"])[0, 0]["depth"].shape == (1, *crop)
    assert NYUDv2(tmp_path).view("val", ["depth"])[0, 0]["image"].shape == (3, *crop)
    assert NYUDv2(tmp_path, crop=(32, 64)).view("train", ["depth"])[0, 0]["depth"].shape == (1, 32, 64)


def test_classes_follow_the_layout(tmp_path):
    expected = {"FedHCA2": FORTY, "MTAN": THIRTEEN, "toolkit": FORTY, "toolkit, 13": THIRTEEN}
    for layout, classes in expected.items():
        make(tmp_path / layout, LAYOUTS[layout])
        task = NYUDv2(tmp_path / layout).tasks["semseg"]
        assert (task.channels, task.class_names) == (len(classes), classes)
    assert [THIRTEEN[i] for i in (0, 4, 11, 12)] == ["bed", "floor", "wall", "window"]


def test_thirteen_classes_can_be_asked_for(tmp_path):
    make(tmp_path, LAYOUTS["toolkit"])
    written = make(tmp_path, LAYOUTS["toolkit, 13"])  # seg40 stays beside it
    assert NYUDv2(tmp_path).tasks["semseg"].channels == 40
    source = NYUDv2(tmp_path, tasks={"semseg": SemSeg(num_classes=13, class_names=THIRTEEN)})
    check(source, LAYOUTS["toolkit, 13"], written)


def test_images_without_a_list_come_in_numeric_order(tmp_path):
    for index in range(12):
        for split in ("train", "val"):
            array(tmp_path / split / "image" / f"{index}.npy", np.zeros((2, 2, 3)))
            (tmp_path / split / "image" / f"._{index}.npy").touch()  # as some systems leave them behind
    assert NYUDv2(tmp_path).ids("train") == [str(index) for index in range(12)]


@pytest.mark.parametrize("layout", ["FedHCA2", "MTI-Net", "MTAN", "toolkit"])
def test_flip_negates_x(tmp_path, layout):
    written = make(tmp_path, LAYOUTS[layout])
    view = NYUDv2(tmp_path, crop=SIZE, scale=None, flip=1.0, photometric=False).view("train", ["normals"])
    for index in range(len(view)):
        expected = written["train", index]["normals"][:, ::-1] * [-1, 1, 1]
        expected[:4] = 0
        torch.testing.assert_close(
            view[index, 0]["normals"], torch.tensor(expected.copy()).permute(2, 0, 1).float(), atol=1.1 / 255, rtol=0
        )


# --- folders that are something else ---------------------------------------------------------------------------------


def test_other_folders_are_not_recognised(tmp_path):
    assert not NYUDv2.recognises(tmp_path / "nowhere")
    for other in ("JPEGImages/2008_000001.jpg", "images/readme.txt", "train/image/0.png"):
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).touch()
    assert not NYUDv2.recognises(tmp_path)
    (tmp_path / "images" / "0001.png").touch()
    assert not NYUDv2.recognises(tmp_path)  # any folder may have images, but not gt_sets
    (tmp_path / "gt_sets").mkdir()
    assert NYUDv2.recognises(tmp_path)


def test_unknown_layouts_are_told_the_known_ones(tmp_path):
    with pytest.raises(UserError) as caught:
        NYUDv2(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: is no layout of NYUD-v2 that is known; expected images/ID.png or images/ID")
    assert "{train,val}/image/ID.npy" in message
    assert "image/{train,test}/ID.png" in message
    assert "\n" not in message


def test_a_split_needs_images(tmp_path):
    make(tmp_path, LAYOUTS["toolkit"])
    (tmp_path / "image" / "test").rename(tmp_path / "image" / "val")
    with pytest.raises(
        UserError, match=r"image.test.ID\.png: found no such file, expected the images of the val split"
    ):
        NYUDv2(tmp_path)


# --- files that are wrong --------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def saved(values: Any, dtype: Any = None) -> Callable[[Path], None]:
    return lambda path: np.save(path, np.asarray(values, dtype))


def shown(*values: int, dtype: Any = np.uint8) -> Callable[[Path], None]:
    return lambda path: picture(path, np.resize(np.array(values, dtype), SIZE))


def variables(**values: np.ndarray) -> Callable[[Path], None]:
    return lambda path: mat(path, **values)


ONES, VECTORS = np.ones(SIZE), np.tile([0.6, 0, -0.8], (*SIZE, 1))


@pytest.mark.parametrize(
    ("layout", "task", "file", "damage", "message"),
    [
        ("ASTMT", "semseg", "segmentation/0003.mat", cut, r"cannot be read \(\w+: .*\); replace the file"),
        ("ASTMT", "semseg", "segmentation/0003.mat", variables(seg=ONES), r"no variable 'segmentation', only seg$"),
        (
            "ASTMT",
            "semseg",
            "segmentation/0003.mat",
            variables(segmentation=41 * ONES),
            r"value 41(\.0)?, expected 1…40",
        ),
        ("ASTMT", "semseg", "segmentation/0003.mat", variables(segmentation=0.5 * ONES), r"value 0\.5, expected 1…40"),
        ("ASTMT", "semseg", "segmentation/0003.mat", variables(segmentation="wall"), r"found <U4 of shape"),
        ("ASTMT", "depth", "depth/0003.mat", variables(depths=ONES), r"found no variable 'depth', only depths"),
        ("ASTMT", "depth", "depth/0003.mat", variables(depth=VECTORS), r"expected depths of shape \(H, W\)"),
        ("ASTMT", "depth", "depth/0003.mat", variables(depth=ONES.T), r"found a label of 24×16 pixels .* 16×24"),
        ("ASTMT", "depth", "depth/0003.mat", lambda path: path.write_bytes(b"hello"), r"cannot be read"),
        ("ASTMT", "normals", "normals/0003.jpg", cut, r"cannot be read"),
        ("ASTMT", "normals", "normals/0003.jpg", shown(1, 2), r"picture of mode L, expected RGB"),
        ("ASTMT", "image", "images/0003.jpg", cut, r"cannot be read"),
        ("MTI-Net", "normals", "normals/0003.npy", cut, r"cannot be read"),
        ("MTI-Net", "normals", "normals/0003.npy", saved(2 * VECTORS), r"found a vector of length 2, expected unit"),
        ("MTI-Net", "normals", "normals/0003.npy", saved(VECTORS.transpose(2, 0, 1)), r"of shape \(H, W, 3\)"),
        ("MTI-Net", "normals", "normals/0003.npy", saved(VECTORS, np.int16), r"found int16, expected normals as"),
        ("MTI-Net", "normals", "normals/0003.npy", saved(VECTORS[:5]), r"found a label of 5×24 pixels"),
        ("MTI-Net", "normals", "normals/0003.npy", saved([{}, None]), r"cannot be read .*allow_pickle=False"),
        ("MTI-Net", "edge", "edge/0003.npy", saved(255 * ONES), r"found the value 255\.0, expected 0 or 1"),
        ("MTI-Net", "edge", "edge/0003.npy", saved(0.3 * ONES), r"found the value 0\.3, expected 0 or 1"),
        ("MTI-Net", "edge", "edge/0003.npy", saved(VECTORS), r"expected a mask of shape \(H, W\)"),
        ("MTAN", "image", "train/image/0.npy", saved(255 * VECTORS), r"found values from -204 to 153, expected .* 0…1"),
        ("MTAN", "image", "train/image/0.npy", saved(np.nan * VECTORS), r"values from nan to nan"),
        ("MTAN", "image", "train/image/0.npy", saved(VECTORS, np.uint8), r"found uint8 of shape .*, expected floating"),
        ("MTAN", "image", "train/image/0.npy", saved(ONES), r"expected floating-point numbers of shape \(H, W, 3\)"),
        ("MTAN", "image", "train/image/0.npy", cut, r"cannot be read"),
        (
            "MTAN",
            "semseg",
            "train/label/0.npy",
            saved(13 * ONES),
            r"value 13\.0, expected 0…12 \(classes\) or -1 or 255",
        ),
        ("MTAN", "semseg", "train/label/0.npy", saved(-2 * ONES, np.int64), r"found the value -2, expected 0…12"),
        ("MTAN", "semseg", "train/label/0.npy", saved(np.nan * ONES), r"found the value nan, expected 0…12"),
        ("MTAN", "semseg", "train/label/0.npy", saved(ONES[..., None]), r"expected classes of shape \(H, W\)"),
        ("MTAN", "semseg", "train/label/0.npy", saved([[1, {}]]), r"cannot be read .*allow_pickle=False"),
        ("MTAN", "depth", "train/depth/0.npy", saved(ONES, np.uint16), r"found uint16, expected depths in metres"),
        ("MTAN", "depth", "train/depth/0.npy", saved(ONES[None]), r"expected depths of shape \(H, W\)"),
        ("MTAN", "depth", "train/depth/0.npy", Path.unlink, r"no such file"),
        (
            "toolkit",
            "semseg",
            "seg40/train/00003.png",
            shown(40),
            r"found the value 40, expected 0…39 \(classes\) or 255",
        ),
        ("toolkit", "semseg", "seg40/train/00003.png", cut, r"cannot be read"),
        ("toolkit", "depth", "depth/train/00003.png", shown(9), r"picture of mode L, expected I;16 or I"),
        ("toolkit", "normals", "normal/train/00003.png", shown(9), r"picture of mode L, expected RGB"),
    ],
)
def test_reading_finds(tmp_path, layout, task, file, damage, message):
    make(tmp_path, LAYOUTS[layout])
    source = NYUDv2(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(UserError, match=message) as caught:
        source.read("train", 0, [task] if task != "image" else [])
    assert str(caught.value).startswith(str(tmp_path / file))
    assert "\n" not in str(caught.value)
    source.read("train", 1, list(source.tasks))  # others are not affected


def test_depth_of_whole_metres_in_matlab(tmp_path):
    make(tmp_path, LAYOUTS["ASTMT"])
    mat(tmp_path / "depth" / "0003.mat", depth=np.full(SIZE, 3, np.uint8))  # MATLAB stores whole numbers as integers
    assert (NYUDv2(tmp_path).read("train", 0, ["depth"])["depth"] == 3).all()


# --- decoders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int64, np.float16, np.float32, np.float64]
)
@pytest.mark.parametrize("first", [0, 1])
def test_classes_of_any_type(dtype, first):
    values = np.arange(first, first + 13)
    void = [v for v in (first - 1, 255) if np.array(v).astype(dtype) == v]
    stored = np.concatenate([values, void]).astype(dtype)[None]
    label = decode.numbered(Path("file"), stored, 13, first=first, void=(first - 1, 255))
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label[0], [*range(13), *[255] * len(void)])
    with pytest.raises(UserError, match=f"file: found the value {first + 13}"):
        decode.numbered(Path("file"), stored + dtype(1), 13, first=first, void=(first - 1, 255))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_images_of_8_bits_survive_floating_point(dtype):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    np.testing.assert_array_equal(decode.unit_image(Path("file"), (levels / 255).astype(dtype)), levels)
    noisy = (levels / 255 + 4e-4).astype(dtype)
    np.testing.assert_array_equal(decode.unit_image(Path("file"), noisy), levels)
