import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedmtl.data.nyud import CLASS_NAMES, NYUDv2
from fedmtl.errors import UserError
from fedmtl.tasks import Depth, Edge, Normals, SemSeg

TASKS = ["semseg", "depth", "normals", "edge"]
REAL = Path(__file__).parents[3] / "shared" / "data" / "NYUDv2"


@pytest.fixture
def root(nyud_root: Callable[..., Path]) -> Path:
    return nyud_root(train=3, val=2, size=(16, 24))


def save(path: Path, values: np.ndarray | list, shape: tuple[int, ...] = (16, 24), dtype: type = np.uint8) -> None:
    """An image that repeats `values`."""
    values = np.asarray(values, dtype)
    Image.fromarray(np.resize(values, (*shape, values.shape[-1]) if values.ndim == 2 else shape)).save(path)


def test_splits_and_views(root):
    source = NYUDv2(root, crop=(32, 32))
    assert source.name == "nyud"
    assert source.ids("train") == ["0001", "0002", "0003"]
    assert source.ids("val") == ["0004", "0005"]
    view = source.view("train", ["depth", "semseg"], [2, 0])
    assert len(view) == 2
    example = view[1, 7]
    assert {name: tuple(value.shape) for name, value in example.items()} == {
        "image": (3, 32, 32),
        "depth": (1, 32, 32),
        "semseg": (32, 32),
    }
    torch.testing.assert_close(view[1, 7], example)
    whole = source.view("val", TASKS)[0, 0]
    torch.testing.assert_close(whole, source.view("val", TASKS)[0, 99])  # no chance in validation
    assert whole["image"].shape == (3, 32, 32)
    assert whole["semseg"].shape == (16, 24)
    assert (whole["semseg"] == 255).sum() == 24  # the void row alone


def test_default_tasks():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 40
    assert [CLASS_NAMES[i] for i in (0, 1, 19, 39)] == ["wall", "floor", "floor mat", "otherprop"]


def test_image_is_rgb_whatever_the_file(root):
    source, path = NYUDv2(root), root / "images" / "0001.png"
    plain = source.read("train", 0, [])["image"]
    np.testing.assert_array_equal(plain, np.asarray(Image.open(path)))
    Image.fromarray(plain).convert("RGBA").save(path)
    np.testing.assert_array_equal(source.read("train", 0, [])["image"], plain)
    Image.fromarray(plain[..., 0]).save(path)
    np.testing.assert_array_equal(source.read("train", 0, [])["image"], plain[..., :1].repeat(3, -1))


@pytest.mark.parametrize("palette", [False, True])
def test_segmentation_values(root, palette):
    path = root / "segmentation" / "0001.png"
    save(path, [0, 1, 2, 40, 255])
    if palette:
        picture = Image.open(path).copy()
        picture.putpalette(list(range(256)) * 3)
        assert picture.mode == "P"
        picture.save(path)
    label = NYUDv2(root).read("train", 0, ["semseg"])["semseg"]
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, np.resize(np.array([255, 0, 1, 39, 255]), (16, 24)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_depth_values(root, dtype):
    raw = np.resize(np.array([0, 1.5, np.nan, -1, np.inf, 7.25], dtype), (16, 24))
    np.save(root / "depth" / "0001.npy", raw)
    label = NYUDv2(root).read("train", 0, ["depth"])["depth"]
    assert label.dtype == np.float32
    np.testing.assert_array_equal(label, np.resize(np.array([0, 1.5, 0, 0, 0, 7.25]), (16, 24)))


def test_normals_values(root):
    save(
        root / "normals" / "0001.png",
        [[255, 127, 127], [127, 128, 127], [128, 128, 128], [120, 127, 127], [0, 255, 51]],
    )
    label = NYUDv2(root).read("train", 0, ["normals"])["normals"]
    assert label.dtype == np.float32
    none = [0, 0, 0]
    expected = [[1, -1 / 255, -1 / 255], none, none, none, [-1, 1, -0.6]]
    np.testing.assert_allclose(label[0, :5], expected, atol=1e-6)
    assert (label[0, 1:4] == 0).all()  # exactly, so that padding and unknown look the same


def test_edge_values(root):
    save(root / "edge" / "0001.png", [0, 255, 255])
    label = NYUDv2(root).read("train", 0, ["edge"])["edge"]
    np.testing.assert_array_equal(label, np.resize(np.array([0, 1, 1], np.uint8), (16, 24)))


def test_only_what_is_asked_for_is_needed(root):
    shutil.rmtree(root / "depth")
    shutil.rmtree(root / "edge")
    source = NYUDv2(root)
    assert list(source.tasks) == ["semseg", "normals"]
    assert source.view("train", ["semseg", "normals"])[0, 0].keys() == {"image", "semseg", "normals"}


def test_workers_get_a_copy(root):
    source = pickle.loads(pickle.dumps(NYUDv2(root)))
    assert source.read("val", 1, TASKS).keys() == {"image", *TASKS}


def test_split_file_may_come_from_any_editor(root):
    (root / "gt_sets" / "val.txt").write_bytes(b"\xef\xbb\xbf0005\r\n\r\n  0004  ")
    assert NYUDv2(root).ids("val") == ["0005", "0004"]


def test_tasks_can_be_replaced(root):
    depth = Depth(weight=3.0)
    source = NYUDv2(root, tasks={"depth": depth, "semseg": SemSeg(num_classes=2)})
    assert source.tasks["depth"] is depth
    assert list(source.tasks) == TASKS
    assert isinstance(source.tasks["normals"], Normals)
    assert source.tasks["edge"].max_distance == 0.011  # the field's tolerance on NYUD
    with pytest.raises(UserError, match=r"found the value 3, expected 1…2 \(classes\) or 0 or 255 \(void\)"):
        [source.read("train", i, ["semseg"]) for i in range(3)]


# --- mistakes that are found at once -------------------------------------------------------------------------


def delete(*parts: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root.joinpath(*parts)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def write(content: bytes, *parts: str) -> Callable[[Path], None]:
    return lambda root: root.joinpath(*parts).write_bytes(content) and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (delete(), r"^root: there is no folder .*; it must hold images/ID\.png or images/ID\.jpg"),
        (delete("images"), r"is no layout of NYUD-v2 that is known; expected images/ID\.png or images/ID\.jpg as in"),
        (delete("gt_sets", "val.txt"), r"val\.txt: cannot read the split file \(No such file.*\)"),
        (write(b"\n \n", "gt_sets", "train.txt"), r"train\.txt: the split file is empty, expected the ID"),
        (write(b"0001\n0002/x", "gt_sets", "val.txt"), r"val\.txt, line 2: found '0002/x', expected the name"),
        (write(b"../0001", "gt_sets", "val.txt"), r"line 1: found '\.\./0001', expected"),
        (write(b"\x89PNG\xff\x00", "gt_sets", "val.txt"), r"val\.txt, line 1: found .*, expected"),
        (write(b"0001\n0002\n0001", "gt_sets", "val.txt"), r"val\.txt, line 3: 0001 is listed a second time"),
    ],
)
def test_construction_finds(root, damage, message):
    damage(root)
    with pytest.raises(UserError, match=message) as caught:
        NYUDv2(root)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (delete("depth"), r"NYUDv2_\d+ has no labels for 'depth': there is no depth/ID\.npy or depth/ID\.mat$"),
        (
            delete("depth", "0002.npy"),
            r"0002\.npy: no such file, 1 of the 3 depth labels of the train split are missing",
        ),
    ],
)
def test_view_finds_missing_labels(root, damage, message):
    damage(root)
    source = NYUDv2(root)
    source.view("train", ["semseg"])
    with pytest.raises(UserError, match=message):
        source.view("train", ["semseg", "depth"], [0])


def test_view_finds_missing_images(root):
    (root / "gt_sets" / "val.txt").write_text("0001\n7777\n0002\n8888")
    with pytest.raises(UserError, match=r"7777\.png: no such file, 2 of the 4 images of the val split are missing"):
        NYUDv2(root).view("val", ["depth"])


def test_view_names_unknown_tasks(root):
    with pytest.raises(UserError, match="has no 'parts', as the layout .*; there are semseg, depth, normals, edge"):
        NYUDv2(root).view("val", ["parts"])


def test_replacement_of_unknown_tasks(root):
    with pytest.raises(ValueError, match="tasks can't give 'foo' a task of the kind 'edge'; there are semseg"):
        NYUDv2(root, tasks={"foo": Edge()})
    with pytest.raises(ValueError, match="tasks can't give 'depth' a task of the kind 'edge'"):
        NYUDv2(root, tasks={"depth": Edge()})


def test_replacement_of_a_task_without_files_does_no_harm(root):
    shutil.rmtree(root / "edge")
    assert "edge" not in NYUDv2(root, tasks={"edge": Edge()}).tasks


def test_wrong_crop_is_a_value_error(root):
    with pytest.raises(ValueError, match="crop"):
        NYUDv2(root, crop=(0, 3))


# --- mistakes inside of files --------------------------------------------------------------------------------


def truncate(folder: str, name: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def image(
    folder: str, values: list, shape: tuple[int, int] = (16, 24), dtype: type = np.uint8
) -> Callable[[Path], None]:
    return lambda root: save(root / folder / "0001.png", values, shape, dtype)


def array(values: np.ndarray) -> Callable[[Path], None]:
    return lambda root: np.save(root / "depth" / "0001.npy", values)


@pytest.mark.parametrize(
    ("task", "damage", "message"),
    [
        ("edge", truncate("images", "0001.png"), r"images.0001\.png: cannot be read \(\w+: .*\); replace the file"),
        ("edge", image("images", [0, 9], dtype=np.uint16), r"images.0001\.png: found .* mode I(;16)?, expected RGB or"),
        ("semseg", truncate("segmentation", "0001.png"), r"segmentation.0001\.png: cannot be read"),
        ("semseg", write(b"", "segmentation", "0001.png"), r"segmentation.0001\.png: cannot be read"),
        ("semseg", delete("segmentation", "0001.png"), r"segmentation.0001\.png: no such file"),
        ("semseg", image("segmentation", [0, 41]), r"0001\.png: found the value 41, expected 1…40 \(cl"),
        ("semseg", image("segmentation", [0, 254]), r"0001\.png: found the value 254, expected"),
        ("semseg", image("segmentation", [[1, 2, 3]]), r"0001\.png: found a picture of mode RGB, expected L or P"),
        ("semseg", image("segmentation", [0, 1], (16, 23)), r"found a label of 16×23 pixels .*, expected its .* 16×24"),
        ("normals", image("normals", [0, 1]), r"normals.0001\.png: found a picture of mode L, expected RGB"),
        ("normals", truncate("normals", "0001.png"), r"normals.0001\.png: cannot be read"),
        ("normals", image("normals", [[0, 0, 0]], (15, 24)), r"normals.0001\.png: found a label of 15×24"),
        ("edge", image("edge", [0, 1]), r"edge.0001\.png: found the value 1, expected 0 or 255"),
        ("depth", truncate("depth", "0001.npy"), r"depth.0001\.npy: cannot be read"),
        ("depth", write(b"", "depth", "0001.npy"), r"depth.0001\.npy: cannot be read"),
        ("depth", write(pickle.dumps([1]), "depth", "0001.npy"), r"0001\.npy: cannot be read .*magic string"),
        ("depth", array(np.array([{}])), r"0001\.npy: cannot be read .*allow_pickle=False"),
        ("depth", array(np.ones((16, 24), np.uint16)), r"found uint16, expected depths in metres as float"),
        ("depth", array(np.ones((16, 24, 2))), r"found float64 of shape \(16, 24, 2\), expected .* shape \(H, W\)"),
        ("depth", array(np.ones((24, 16))), r"depth.0001\.npy: found a label of 24×16 pixels .* 16×24"),
    ],
)
def test_reading_finds(root, task, damage, message):
    source = NYUDv2(root)
    damage(root)
    with pytest.raises(UserError, match=message) as caught:
        source.read("train", 0, [task])
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)
    source.read("train", 1, [task])  # others are not affected


def test_archives_are_no_depth(root):
    source = NYUDv2(root)
    with (root / "depth" / "0001.npy").open("wb") as file:
        np.savez(file, np.ones((16, 24)))
    with pytest.raises(UserError, match=r"0001\.npy: cannot be read .*magic string"):
        source.read("train", 0, ["depth"])


@pytest.mark.filterwarnings("error")
def test_depth_beyond_32_bits_is_unknown(root):
    np.save(root / "depth" / "0001.npy", np.full((16, 24), 1e300))
    assert (NYUDv2(root).read("train", 0, ["depth"])["depth"] == 0).all()


# --- real pictures -------------------------------------------------------------------------------------------

real = pytest.mark.skipif(not REAL.is_dir(), reason="the real pictures are not here")


@real
def test_real_pictures_decode():
    source = NYUDv2(REAL)
    assert (len(source.ids("train")), len(source.ids("val"))) == (80, 20)
    assert list(source.tasks) == TASKS
    classes, towards = set(), []
    for split in ("train", "val"):
        for index in range(len(source.ids(split))):
            sample = source.read(split, index, TASKS)
            assert sample["image"].shape == (240, 320, 3)
            classes |= set(np.unique(sample["semseg"]).tolist())
            known = sample["depth"][sample["depth"] > 0]
            assert 0.3 < known.min() < known.max() < 10
            lengths = np.linalg.norm(sample["normals"], axis=-1)
            assert (lengths > 0).mean() > 0.5
            assert (abs(lengths[lengths > 0] - 1) < 0.02).all()
            assert 0.002 < sample["edge"].mean() < 0.2
            towards.append(sample["normals"][lengths > 0].mean(0))
    assert classes == {0, 1, 6, 39, 255}
    assert (np.array(towards)[:, 2] < 0).all()  # surfaces face the camera, which looks along +z
    assert np.mean(towards, axis=0)[1] < 0  # and what lies below it shows its upper side; +y is down


@real
def test_real_pictures_transform():
    source = NYUDv2(REAL, crop=(96, 128))
    view = source.view("train", TASKS)
    for position in range(0, 80, 8):
        example = view[position, position]
        assert {value.shape[-2:] for value in example.values()} == {(96, 128)}
        assert all(value.isfinite().all() for value in example.values())
        lengths = example["normals"].norm(dim=0)
        assert (abs(lengths[lengths > 0] - 1) < 0.02).all()
        assert set(example["edge"].unique().tolist()) <= {0, 1, 255}
