"""`Folder`: which files belong together, which images train and which validate, and the page that explains it."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fedmtl.data import description, label_files
from fedmtl.data.description import read_description
from fedmtl.data.folder import Folder
from fedmtl.data.loader import Loader, SeededBatches
from fedmtl.errors import UserError
from fedmtl.seeding import numpy_stream
from fedmtl.tasks import Depth, Edge, Parts, SemSeg

from .folder_files import BLOCKS, GREY, PAGE, label, make_folder

u8, f32 = np.uint8, np.float32
MARKED = GREY % 2


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    return lambda description, files=(): make_folder(tmp_path / "my data", description, dict(files))


def test_short_description_of_mixed_files(make: Callable[..., Path]) -> None:
    sizes = {"a": (4, 6), "b": (5, 3), "deep/er/c": (7, 7), "d.1": (5, 9)}
    suffixes = {"a": ".png", "b": ".jpg", "deep/er/c": ".tif", "d.1": ".npy"}
    rng = np.random.default_rng(0)
    classes = {name: rng.integers(0, 5, size, dtype=u8) for name, size in sizes.items()}
    metres = {name: rng.uniform(1, 9, size).astype(f32) for name, size in sizes.items()}
    pictures = {name: rng.integers(0, 256, (*size, 3), dtype=u8) for name, size in sizes.items()}
    files = {f"images/{name}{suffixes[name]}": picture for name, picture in pictures.items()}
    files |= {f"semseg/{name}.png": values for name, values in classes.items()}
    files |= {f"depth/{name}{'.npy' if name < 'c' else '.tif'}": values for name, values in metres.items()}
    files |= {"images/.hidden.png": GREY, "images/notes.txt": "", "semseg/Thumbs.db": b""}
    root = make("tasks:\n  semseg: {num_classes: 5}\n  depth:\n", files)
    source = Folder(root, crop=(8, 8))
    assert Folder.recognises(root)
    assert not Folder.recognises(root / "images")
    assert source.name == "my_data"
    assert list(source.tasks) == ["semseg", "depth"]
    assert isinstance(source.tasks["semseg"], SemSeg)
    assert sorted([*source.ids("train"), *source.ids("val")]) == sorted(sizes)
    assert len(source.ids("val")) == 1
    for split in ("train", "val"):
        view = source.view(split, ["semseg", "depth"])
        for i, name in enumerate(source.ids(split)):
            sample = source.read(split, i, ["semseg", "depth"])
            assert sample["image"].shape == (*sizes[name], 3)
            if name != "b":  # .jpg is lossy
                np.testing.assert_array_equal(sample["image"], pictures[name])
            np.testing.assert_array_equal(sample["semseg"], classes[name])
            np.testing.assert_array_equal(sample["depth"], metres[name])
            assert sample["semseg"].dtype == u8
            assert sample["depth"].dtype == f32
            example = view[i, 0]
            shape = (8, 8) if split == "train" else sizes[name]
            assert {tuple(example[key].shape[-2:]) for key in ("semseg", "depth")} == {shape}


# --- where files lie -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "task", "files"),
    [
        (
            {"folder": "data", "file": "{name}_sat"},
            {"folder": "data", "file": "{name}_mask"},
            ("data/{}_sat.png", "data/{}_mask.npy", "data/a_other.png"),
        ),
        ({"file": "{name}.png"}, {"file": "{name}.npy"}, ("images/{}.png", "t/{}.npy", "t/a.jpg")),
        (
            {"file": "{name}/scan"},
            {"folder": "images", "file": "{name}/truth"},
            ("images/{}/scan.png", "images/{}/truth.npy", "images/a/notes.png"),
        ),
        ({"file": "tile_{name}"}, {}, ("images/tile_{}.png", "t/{}.npy", "images/a.png")),
    ],
)
def test_patterns(make: Callable[..., Path], images: dict, task: dict, files: tuple[str, str, str]) -> None:
    written = {files[0].format(name): GREY for name in "abc"} | {files[1].format(name): MARKED for name in "abc"}
    root = make({"images": images, "tasks": {"t": {"kind": "edge", **task}}}, {**written, files[2]: GREY})
    source = Folder(root)
    assert sorted([*source.ids("train"), *source.ids("val")]) == ["a", "b", "c"]
    np.testing.assert_array_equal(label(root, "t", "b"), MARKED)


def test_folders_in_the_middle(make: Callable[..., Path]) -> None:
    folders = [f"{area}/{kind}" for area in ("train/x", "train/y", "val/x") for kind in ("pictures", "masks")]
    files = {f"{folder}/{i}.png": MARKED for folder in folders for i in (1, 2)} | {"images/1.png": GREY}
    files["train/x/masks/2.png"] = 1 - MARKED
    layout = {"folder": ".", "file": "{folder}/masks/{name}"}
    root = make(
        {
            "images": {"folder": ".", "file": "{folder}/pictures/{name}"},
            "splits": {"train": "train", "val": "val"},
            "tasks": {"t": {"kind": "edge", **layout}, "u": {"kind": "edge", "optional": True, **layout}},
        },
        files,
    )
    source = Folder(root)
    assert source.ids("train") == ["train/x/1", "train/x/2", "train/y/1", "train/y/2"]
    assert source.ids("val") == ["val/x/1", "val/x/2"]
    np.testing.assert_array_equal(label(root, "t", "train/x/2"), 1 - MARKED)
    (root / "val/x/masks/2.png").unlink()
    with pytest.raises(UserError, match=r"my data/val/x/masks/2\.\*: no such file"):
        Folder(root).view("val", ["t"])
    assert not Folder(root).has_label("val", 1, "u")


def test_labels_that_may_be_missing(make: Callable[..., Path]) -> None:
    tasks = {name: {"kind": name, "optional": True} for name in ("depth", "edge", "normals")}
    tasks["semseg"] = {"num_classes": 2}
    files = {f"images/{i}.png": GREY for i in range(4)} | {f"semseg/{i}.png": MARKED for i in range(3)}
    files |= {"depth/0.npy": GREY + 1.0, "edge/1.png": MARKED, "normals/0.npy": np.ones((4, 3, 3)) / 3**0.5}
    root = make({"splits": {"train": "train.txt", "val": "val.txt"}, "tasks": tasks}, files)
    (root / "train.txt").write_text("0\n1\n2\n")
    (root / "val.txt").write_text("3\n")
    source = Folder(root)
    assert [source.has_label("train", i, "depth") for i in range(3)] == [True, False, False]
    assert [source.has_label("train", i, "edge") for i in range(3)] == [False, True, False]
    sample = source.read("train", 2, ["depth", "edge", "normals", "semseg"])
    np.testing.assert_array_equal(sample["depth"], np.zeros((4, 3), f32))
    np.testing.assert_array_equal(sample["edge"], np.full((4, 3), 255, u8))
    np.testing.assert_array_equal(sample["normals"], np.zeros((4, 3, 3), f32))
    np.testing.assert_array_equal(sample["semseg"], MARKED)
    assert source.missing("train", "depth") == []
    source.view("train", ["depth", "semseg"])
    message = (
        r"semseg/3\.\*: no such file, 1 of the 1 semseg labels of the val split .* or say optional: true for semseg"
    )
    with pytest.raises(UserError, match=message):
        source.view("val", ["semseg"])
    with pytest.raises(UserError, match=r"semseg/3\.\*: no such file"):
        source.load("val", 0, "semseg")


def test_other_kinds_of_the_same_task(make: Callable[..., Path]) -> None:
    tasks = {
        "organs": {"kind": "semseg", "num_classes": 3, "weight": 2},
        "tumour": {"kind": "semseg", "class_names": ["none", "some"], "folder": "masks", "values": {0: 0, 255: 1}},
        "bones": {"kind": "parts", "num_classes": 4},
    }
    files = {f"{folder}/{i}.png": MARKED for folder in ("organs", "bones") for i in range(3)}
    root = make({"name": "ct", "tasks": tasks}, files | {f"masks/{i}.png": MARKED * u8(255) for i in range(3)})
    source = Folder(root)
    assert source.name == "ct"
    assert (source.tasks["organs"].weight, source.tasks["organs"].channels) == (2, 3)
    assert source.tasks["tumour"].class_names == ["none", "some"]
    assert isinstance(source.tasks["bones"], Parts)
    np.testing.assert_array_equal(source.read("train", 0, list(tasks))["tumour"], MARKED)
    message = r"dataset\.yaml: there is no task 'tumor', did you mean 'tumour'\?; it has organs, tumour, bones"
    with pytest.raises(UserError, match=message):
        source.view("train", ["tumor"])


# --- splits --------------------------------------------------------------------------------------------------

TWENTY = {f"images/{'ab'[i % 2]}{i // 10}/{i}.png": GREY for i in range(20)} | {"edge/a0/0.png": MARKED}
OPTIONAL_EDGE = {"edge": {"optional": True}}


def names(make: Callable[..., Path], splits: Any, files: dict[str, Any] | None = None) -> tuple[list[str], list[str]]:
    description = {"tasks": OPTIONAL_EDGE} | ({} if splits is None else {"splits": splits})
    source = Folder(make(description, TWENTY | (files or {})))
    return list(source.ids("train")), list(source.ids("val"))


def test_random_splits(make: Callable[..., Path]) -> None:
    every = sorted(name.removeprefix("images/").removesuffix(".png") for name in TWENTY if name.startswith("images"))
    train, val = names(make, None)
    assert (len(train), len(val)) == (16, 4)
    assert sorted(train + val) == every
    assert names(make, None) == names(make, {"val": 0.2}) == names(make, {"val": 0.2, "seed": 0}) == (train, val)
    assert names(make, {"seed": 1})[1] != val
    assert [len(part) for part in names(make, {"val": 0.01})] == [19, 1]
    assert [len(part) for part in names(make, {"val": 0.99})] == [1, 19]
    assert set(val) == {every[i] for i in numpy_stream(0, "splits").permutation(20)[:4]}


def test_folders_stay_together(make: Callable[..., Path]) -> None:
    for seed in range(5):
        train, val = names(make, {"val": 0.25, "by": "folder", "seed": seed})
        assert len({name.partition("/")[0] for name in val}) == 1
        assert not {name.partition("/")[0] for name in val} & {name.partition("/")[0] for name in train}
        assert len(train + val) == 20


def test_given_splits(make: Callable[..., Path]) -> None:
    lists = {"my.txt": "\ufeffb0/1\n\n a0/0.png \r\n", "train.txt": "a0/2\na0/4\n", "val.txt": "a1/12\n"}
    assert names(make, {"val": "my.txt"}, lists)[1] == ["b0/1", "a0/0"]
    assert len(names(make, {"val": "my.txt"}, lists)[0]) == 18
    assert names(make, None, lists) == (["a0/2", "a0/4"], ["a1/12"])
    assert names(make, {"train": "train.txt", "val": "my.txt"}, lists) == (["a0/2", "a0/4"], ["b0/1", "a0/0"])
    assert len(names(make, {"seed": 0}, lists)[0]) == 16
    train, val = names(make, {"train": "a0", "val": "b1"}, lists)
    assert {name[:2] for name in train} == {"a0"}
    assert {name[:2] for name in val} == {"b1"}
    assert len(names(make, {"val": "b1/"}, lists)[0]) == 15


def test_usual_folders(make: Callable[..., Path]) -> None:
    files = {f"images/{split}/{i}.png": GREY for split in ("train", "val", "test") for i in range(2)}
    source = Folder(make({"tasks": OPTIONAL_EDGE}, files | {"edge/train/0.png": MARKED}))
    assert source.ids("train") == ["train/0", "train/1"]
    assert source.ids("val") == ["val/0", "val/1"]


@pytest.mark.parametrize(
    ("splits", "files", "message"),
    [
        ({"val": 0}, {}, "splits: val must be a share between 0 and 1, .* not 0"),
        ({"val": 20}, {}, "splits: val must be a share between 0 and 1, .* not 20"),
        ({"val": [1]}, {}, r"splits: val must be a word or a number, not \[1\]"),
        ({"val": "x.txt"}, {}, r"splits: x\.txt is neither a list .*my data/x\.txt nor a folder of images"),
        ({"vall": 0.2}, {}, r"splits: there is no key 'vall', did you mean 'val'\?"),
        ({"train": "x.txt"}, {}, "splits: train goes with a list or folder of names for val"),
        ({"train": "x.txt", "val": 0.1}, {}, "splits: train goes with a list or folder of names for val"),
        ({"val": "x.txt", "seed": 1}, {}, "splits: seed goes with a share for val"),
        ({"val": "x.txt", "by": "folder"}, {}, "splits: by goes with a share for val"),
        ({"by": "patient"}, {}, "splits: by must be a choice of image or folder, not 'patient'"),
        ({"seed": 0.5}, {}, "splits: seed must be a whole number, not 0.5"),
        ("val.txt", {}, "splits must be a mapping of words, not 'val.txt'"),
        ({"val": "x.txt"}, {"x.txt": "a0/0\na0/02\n"}, r"x\.txt, line 2: there is no image 'a0/02', did you mean"),
        (
            {"val": "x.txt"},
            {"x.txt": "a0/0\n\na0/0.png\n"},
            r"x\.txt, line 3: a0/0 is listed a second time, after line 1",
        ),
        ({"val": "x.txt"}, {"x.txt": "\n"}, "splits: no image is left for val"),
        ({"val": "x.txt", "train": "a0"}, {"x.txt": "a0/2\n"}, "splits: a0/2 is in train and in val"),
        (None, {"train.txt": "a0/2\n"}, r"my data/val\.txt: no such file beside train\.txt; add it, or give splits"),
        (None, {"val.txt": "a0/2\n"}, r"my data/train\.txt: no such file beside val\.txt"),
    ],
)
def test_splits_that_cannot_be(make: Callable[..., Path], splits: Any, files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        names(make, splits, files)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("count", "splits"), [(1, {}), (2, {"by": "folder"})])
def test_too_few_images_to_split(make: Callable[..., Path], count: int, splits: dict[str, Any]) -> None:
    files = {f"images/p/{i}.png": GREY for i in range(count)} | {"edge/p/0.png": MARKED}
    root = make({"tasks": OPTIONAL_EDGE, "splits": splits}, files)
    with pytest.raises(UserError, match="no image is left for val"):
        Folder(root)


# --- mistakes in the folder ------------------------------------------------------------------------------------


def test_folder_is_checked(make: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^root: there is no folder .*nowhere"):
        Folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty/dataset\.yaml: cannot be read \(No such file"):
        Folder(tmp_path / "empty")
    with pytest.raises(UserError, match=r"my data/pictures: found no image, expected"):
        Folder(make({"images": {"folder": "pictures"}, "tasks": {"edge": {}}}))
    with pytest.raises(
        UserError, match=r"dataset\.yaml, task edge: no image has a label, expected e\.g\. .*edge/0\.\*"
    ):
        Folder(make({"tasks": {"edge": {}}}, {"edge/zero.png": GREY}))
    with pytest.raises(UserError, match=r"0\.jpg and .*0\.png are both for the image 0; move one, or say which"):
        Folder(make({"tasks": {"edge": {}}}, {"images/0.jpg": GREY, "images/0.png": GREY}))
    root = make({"tasks": {"edge": {}}, "images": {"file": "{name}.png"}}, {"edge/0.png": MARKED})
    with pytest.raises(ValueError, match="crop"):
        Folder(root, crop=(0, 3))


# --- as part of a run ----------------------------------------------------------------------------------------


def test_cache_knows_the_description(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDMTL_CACHE", str(tmp_path / "cache"))
    files = {f"depth/{i}.png": GREY for i in range(3)}
    for scale in (1, 0.5, 1):
        for cache in ("disk", "memory", "none"):
            source = Folder(make({"tasks": {"depth": {"scale": scale}}}, files), cache=cache)
            for _ in range(2):
                np.testing.assert_array_equal(source.read("train", 0, ["depth"])["depth"], GREY * f32(scale))


def test_batches_do_not_depend_on_processes(make: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    sizes = [(20 + 3 * i, 30 - 2 * i) for i in range(8)]
    files = {f"images/{i}.png": rng.integers(0, 256, (*size, 3), dtype=u8) for i, size in enumerate(sizes)}
    files |= {f"semseg/{i}.png": rng.integers(0, 3, size, dtype=u8) for i, size in enumerate(sizes)}
    source = Folder(make({"tasks": {"semseg": {"num_classes": 3}}}, files), crop=(16, 24), longest=30)
    again = pickle.loads(pickle.dumps(source))
    batches = []
    for one, workers in ((source, 0), (again, 1)):
        view = one.view("train", ["semseg"])
        epoch = SeededBatches(len(view), 2, seed=1, keys=("a",))
        loaded = list(Loader(workers=workers)([(view, keys) for keys in epoch]))
        assert all(len(pieces) == 1 for pieces in loaded)
        batches.append([pieces[0] for pieces in loaded])
    for first, second in zip(*batches, strict=True):
        assert first["image"].shape == (2, 3, 16, 24)
        assert all((first[key] == second[key]).all() for key in ("image", "semseg"))
    example = source.view("val", ["semseg"])[0, 0]
    index = sizes[int(source.ids("val")[0])]
    assert max(example["window"][2:].tolist()) <= 30
    assert tuple(example["semseg"].shape) == index


# --- the page that explains it -------------------------------------------------------------------------------


def test_the_worked_example_reads(delta: Path) -> None:
    config = yaml.safe_load((delta / "delta.yaml").read_text())
    assert config["data"]["class_path"] == "fedmtl.data.Folder"
    options = config["data"]["init_args"]
    source = Folder(delta / options.pop("root"), **options)
    tasks = list(source.tasks)
    assert tasks == ["landcover", "elevation", "roads"]
    assert {task for group in config["clients"] for task in group["tasks"]} == set(tasks)
    assert source.name == "delta"
    assert (len(source.ids("train")), len(source.ids("val"))) == (30, 10)
    assert isinstance(source.tasks["elevation"], Depth)
    assert isinstance(source.tasks["roads"], Edge)
    sizes = set()
    for split in ("train", "val"):
        view = source.view(split, tasks)
        for i, name in enumerate(source.ids(split)):
            sample = source.read(split, i, tasks)
            sizes.add(sample["image"].shape)
            stored = np.array(Image.open(delta / "delta" / "landcover" / f"{name}.png"))
            np.testing.assert_array_equal(sample["landcover"], np.array([255, 0, 1, 2])[stored])
            stored = np.array(Image.open(delta / "delta" / "elevation" / f"{name}.tif")).astype(float)
            np.testing.assert_allclose(sample["elevation"], np.where(stored == 65535, 0, stored / 10), rtol=1e-6)
            assert set(np.unique(sample["roads"])) == {0, 1}
            assert 0.4 < (sample["elevation"] > 0).mean() < 0.9
            if split == "train":
                assert {tuple(value.shape[-2:]) for value in view[i, 0].values()} == {(64, 64)}
    assert len(sizes) > 30


@pytest.mark.parametrize("name", [name for name in BLOCKS if name.endswith("dataset.yaml")])
def test_every_description_of_the_page_is_right(delta: Path, name: str) -> None:
    found = read_description(delta / name)
    assert found.tasks
    assert found.name == Path(name).parent.name


def test_the_page_speaks_of_every_key() -> None:
    kinds = [form for _, form in label_files.READ_AS]
    for form in (description.Splits, label_files.Images, *kinds):
        for key in form.__dataclass_fields__:
            assert re.search(rf"^\| `{key}`", PAGE, flags=re.MULTILINE), key


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", PAGE))
def test_links_of_the_page_lead_to_files(target: str) -> None:
    assert target.startswith("https://") or (Path(__file__).parents[2] / "docs" / target).exists()
