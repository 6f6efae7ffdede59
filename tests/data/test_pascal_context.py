import errno
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from fedmtl.data import decode, pascal_labels
from fedmtl.data.pascal_context import PASCALContext
from fedmtl.errors import UserError
from fedmtl.tasks import Edge, Normals, Parts, Saliency, SemSeg

from .pascal_files import make_pascal, write_parts

TASKS = ["semseg", "human_parts", "saliency", "normals", "edge"]
FIRST = "2008_000001"  # one person; the second image shows a dog, the third two people, the fourth one without parts


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDMTL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_pascal(tmp_path / "PASCALContext")


def read(root: Path, task: str, index: int = 0) -> np.ndarray:
    return PASCALContext(root).read("train", index, [task])[task]


def listing(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*")}


def only_from_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, key: str) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(decode, "matlab", refuse)


# --- what there is -------------------------------------------------------------------------------------------


def test_default_tasks(root):
    tasks = PASCALContext(root).tasks
    assert {name: type(task) for name, task in tasks.items()} == dict(
        zip(TASKS, [SemSeg, Parts, Saliency, Normals, Edge], strict=True)
    )
    assert [tasks[name].channels for name in TASKS] == [21, 7, 2, 3, 1]
    names = ["background", "aeroplane", "person", "tvmonitor"]
    assert [tasks["semseg"].class_names[i] for i in (0, 1, 15, 20)] == names
    assert (tasks["saliency"].primary, tasks["edge"].max_distance) == ("mIoU", 0.0075)
    parts = "background, head, torso, upper arm, lower arm, upper leg, lower leg"
    assert tasks["human_parts"].class_names == parts.split(", ")


def test_splits_and_views(root):
    source = PASCALContext(root)
    assert source.name == "pascal"
    assert source.ids("train") == [f"2008_{i:06}" for i in (1, 2, 3, 4)]
    assert source.ids("val") == ["2008_000005", "2008_000006"]
    view = source.view("train", TASKS, [2, 0])
    shapes = {name: tuple(value.shape) for name, value in view[1, 7].items()}
    assert shapes == {
        "image": (3, 512, 512),
        **dict.fromkeys(["semseg", "human_parts", "saliency"], (512, 512)),
        "normals": (3, 512, 512),
        "edge": (1, 512, 512),
    }
    for position, size in enumerate([(64, 48), (40, 56)]):  # validation keeps each image's own size
        example = source.view("val", TASKS)[position, 0]
        assert {tuple(example[name].shape[-2:]) for name in TASKS} == {size}


def test_labels_agree_with_each_other(root):
    source = PASCALContext(root)
    for split in ("train", "val"):
        for index in range(len(source.ids(split))):
            sample = source.read(split, index, TASKS)
            salient = (sample["semseg"] != 0) & (sample["semseg"] != 255)
            np.testing.assert_array_equal(sample["saliency"], salient)
            if source.has_label(split, index, "human_parts"):
                np.testing.assert_array_equal(sample["human_parts"][1:] > 0, sample["semseg"][1:] == 15)
            lengths = np.linalg.norm(sample["normals"], axis=-1)
            np.testing.assert_allclose(lengths[salient], 1, atol=0.01)
            assert (lengths[-1, 0], sample["normals"][1, 0, 2] < -0.9) == (0, True)  # grass and wall
            assert 0 < sample["edge"].mean() < 0.1


def test_semseg_falls_back_image_by_image(root):
    second = root / "semseg" / "pascal-context" / "2008_000002.png"
    source = PASCALContext(root)
    assert [Path(source.where("train", i, "semseg")).parent.name for i in range(4)] == ["VOC12", "pascal-context"] * 2
    np.testing.assert_array_equal(source.read("train", 1, ["semseg"])["semseg"], np.asarray(Image.open(second)))
    shutil.copy(second, root / "semseg" / "VOC12")  # where both are there, VOC12 counts
    assert PASCALContext(root).where("train", 1, "semseg") == str(root / "semseg" / "VOC12" / second.name)


def test_only_what_is_asked_for_is_needed(root):
    for folder in ("human_parts", "pascal-context", "sal_distill", "json", "ImageSets/Parts"):
        shutil.rmtree(root / folder)
    source = PASCALContext(root)
    assert list(source.tasks) == ["semseg"]
    assert source.view("train", ["semseg"])[0, 0].keys() == {"image", "semseg"}
    with pytest.raises(
        UserError, match=r"pascal has no 'edge', for there is no .*pascal-context.trainval; it has semse"
    ):
        source.view("train", ["edge"])
    with pytest.raises(UserError, match=r"'normals', for there is no .*pascal-context.trainval; it has semseg$"):
        source.view("train", ["normals"])
    with pytest.raises(UserError, match=r"pascal has no 'depth'; it has semseg$"):
        source.view("train", ["depth"])
    shutil.rmtree(root / "normals_distill")
    assert "normals_distill and " in source.lacks("normals")
    shutil.rmtree(root / "semseg")
    said = f"there is no {root / 'semseg' / 'VOC12'} or {root / 'semseg' / 'pascal-context'}; it has no task"
    assert PASCALContext(root).lacks("semseg").endswith(said)


def test_tasks_can_be_replaced(root):
    edge = Edge(weight=3.0)
    source = PASCALContext(root, tasks={"edge": edge, "human_parts": Parts(num_classes=7, weight=0.5)})
    assert source.tasks["edge"] is edge
    assert source.tasks["human_parts"].weight == 0.5
    assert list(source.tasks) == TASKS
    with pytest.raises(ValueError, match="tasks: human_parts has 7 classes here, not 5"):
        PASCALContext(root, tasks={"human_parts": Parts(num_classes=5)})
    with pytest.raises(ValueError, match="tasks can't give 'parts'"):
        PASCALContext(root, tasks={"parts": Parts(num_classes=7)})


def test_recognises(root, tmp_path):
    assert PASCALContext.recognises(root)
    assert not PASCALContext.recognises(tmp_path)
    shutil.rmtree(root / "ImageSets" / "Context")  # as in PASCAL VOC
    assert not PASCALContext.recognises(root)


# --- which images have parts ---------------------------------------------------------------------------------


def with_parts(root: Path, split: str = "train") -> list[bool]:
    source = PASCALContext(root)
    return [source.has_label(split, i, "human_parts") for i in range(len(source.ids(split)))]


def test_images_without_parts(root):
    assert with_parts(root) == [True, False, True, False]
    assert with_parts(root, "val") == [True, False]
    source = PASCALContext(root)
    assert all(source.has_label("train", i, task) for i in range(4) for task in TASKS if task != "human_parts")
    for index in (1, 3):
        label = source.read("train", index, ["human_parts"])["human_parts"]
        assert label.shape == source.load("train", index, "image").shape[:2]
        assert (label == 255).all()


def test_a_client_has_its_own_images(root):
    """An index is one of the split, whichever of its images a client has."""
    shard = PASCALContext(root).view("train", ["human_parts", "edge"], [3, 2, 1])
    known = [bool((shard.sample(position)["human_parts"] != 255).any()) for position in range(len(shard))]
    assert known == [False, True, False]


@pytest.mark.parametrize("keep", ["", "train.txt", "val.txt"])
def test_index_may_be_missing(root, keep):
    for split in ("train.txt", "val.txt"):
        if split != keep:
            (root / "ImageSets" / "Parts" / split).unlink()
    before = listing(root)
    assert with_parts(root) == [True, False, True, False]
    assert with_parts(root, "val") == [True, False]
    assert listing(root) == before  # nothing is written into the user's folder


def test_index_may_list_others_than_the_split(root):
    index = root / "ImageSets" / "Parts" / "train.txt"
    index.write_text(json.dumps({FIRST: [15, 9], "2008_000002": [12], "2007_000001": [15]}))
    assert with_parts(root) == [True, False, True, False]
    index.write_text(json.dumps({FIRST: [-1, 9], "2008_000002": [12], "2007_000001": [15]}))
    assert with_parts(root) == [False, False, True, False]


def test_what_the_index_says_to_lack_people_is_not_read(root):
    (root / "human_parts" / "2008_000002.mat").unlink()
    assert with_parts(root) == [True, False, True, False]
    PASCALContext(root).view("train", ["human_parts"])


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()], ids=repr)
def test_a_passing_failure_to_read_is_no_answer(root, monkeypatch, error):
    write_parts(root / "human_parts" / f"{FIRST}.mat", [])
    matlab = decode.matlab

    def fail(path, key):
        if path.stem == FIRST:
            raise error
        return matlab(path, key)

    with monkeypatch.context() as patch:
        patch.setattr(decode, "matlab", fail)
        with pytest.raises(UserError, match=f"{FIRST}.mat: (can't be opened or read|not enough memory)"):
            with_parts(root)
    assert with_parts(root) == [False, False, True, False]


def test_missing_annotation_of_an_image_with_people(root):
    (root / "human_parts" / "2008_000003.mat").unlink()
    with pytest.raises(UserError, match=r"2008_000003\.mat: no such file, 1 of the 4 human_parts labels of the train"):
        PASCALContext(root).view("train", ["human_parts"], [0])


def test_missing_annotation_without_index(root, caplog):
    shutil.rmtree(root / "ImageSets" / "Parts")
    (root / "human_parts" / "2008_000003.mat").unlink()
    with caplog.at_level(logging.WARNING):
        assert with_parts(root) == [True, False, False, False]
    assert "human_parts: 1 of 4 images have no annotation, such as 2008_000003; they count" in caplog.text


def test_no_annotation_at_all(root):
    shutil.rmtree(root / "human_parts")
    (root / "human_parts").mkdir()
    with pytest.raises(UserError, match=r"human_parts: found none of the 4 annotations, such as 2008_000001\.mat$"):
        with_parts(root)


def test_unreadable_annotation_is_found_where_it_is_read(root):
    (root / "human_parts" / "2008_000004.mat").write_bytes(b"nothing")
    assert with_parts(root) == [True, False, True, True]
    with pytest.raises(UserError, match=r"2008_000004\.mat: cannot be read"):
        read(root, "human_parts", 3)
    things = [("person", np.ones((48, 64), bool), {"head": np.eye(48, 64, dtype=bool)})]
    write_parts(root / "human_parts" / "2008_000004.mat", things)
    np.testing.assert_array_equal(read(root, "human_parts", 3), np.eye(48, 64))


def test_annotations_are_looked_through_once(root, monkeypatch):
    shutil.rmtree(root / "ImageSets" / "Parts")
    assert with_parts(root) == [True, False, True, False]
    monkeypatch.setattr(pascal_labels, "person_parts", None)
    assert with_parts(root) == [True, False, True, False]


# --- the cache -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["edge", "human_parts"])
def test_slow_labels_are_decoded_once(root, monkeypatch, task):
    PASCALContext(root).view("train", [task])
    first = read(root, task)
    only_from_cache(monkeypatch)
    np.testing.assert_array_equal(read(root, task), first)
    with pytest.raises(UserError, match="2008_000003.mat was read"):
        read(root, task, 2)


def test_quick_labels_are_not_kept(root, cache_folder):
    for task in ("semseg", "saliency", "normals"):
        read(root, task)
    assert not cache_folder.exists()


def test_changed_annotation_is_decoded_anew(root):
    before = read(root, "human_parts"), read(root, "edge")
    path = root / "pascal-context" / "trainval" / f"{FIRST}.mat"
    other = np.full(before[1].shape, 7, np.uint16)
    other[:, :9] = 8
    scipy.io.savemat(path, {"LabelMap": other})
    parts, edge = read(root, "human_parts"), read(root, "edge")
    np.testing.assert_array_equal(parts, before[0])
    assert (edge != before[1]).any()
    np.testing.assert_array_equal(np.flatnonzero(edge.any(axis=0)), [8])


def test_all_labels_can_be_kept(root, monkeypatch):
    first = PASCALContext(root, cache="disk").read("train", 0, TASKS)
    only_from_cache(monkeypatch)
    monkeypatch.setattr(decode, "picture", None)
    again = PASCALContext(root, cache="disk").read("train", 0, TASKS)
    for name, label in first.items():
        np.testing.assert_array_equal(again[name], label)


def test_processes_get_what_is_known(root, monkeypatch):
    source = PASCALContext(root)
    source.view("train", ["human_parts"])
    copy = pickle.loads(pickle.dumps(source))
    monkeypatch.setattr(pascal_labels, "have_parts", None)
    assert [copy.has_label("train", i, "human_parts") for i in range(4)] == [True, False, True, False]


# --- mistakes ------------------------------------------------------------------------------------------------


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
        (delete(), r"^root: there is no folder .*PASCALContext; it must hold JPEGImages/ID\.jpg"),
        (delete("JPEGImages"), r"^root: .*PASCALContext is no folder of PASCAL-Context; it must hold"),
        (delete("ImageSets", "Context"), r"PASCALContext is no folder of PASCAL-Context; it must hold"),
        (delete("ImageSets", "Context", "val.txt"), r"val\.txt: cannot read the split file"),
        (write(b"a\nb.jpg/", "ImageSets", "Context", "train.txt"), r"train\.txt, line 2: found 'b\.jpg/', expected"),
    ],
)
def test_construction_finds(root, damage, message):
    damage(root)
    with pytest.raises(UserError, match=message) as caught:
        PASCALContext(root)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


INDEX = ("ImageSets", "Parts", "train.txt")


@pytest.mark.parametrize(
    ("task", "damage", "message"),
    [
        (
            "edge",
            write(b"2008_000009", "ImageSets", "Context", "val.txt"),
            r"2008_000009\.jpg: no such file, 1 of the 1 im",
        ),
        ("semseg", delete("semseg", "VOC12", f"{FIRST}.png"), r"pascal-context.2008_000001\.png: no such file, 1 of"),
        (
            "normals",
            delete("pascal-context", "trainval", f"{FIRST}.mat"),
            r"trainval.2008_000001\.mat: no such file, 1 of",
        ),
        (
            "human_parts",
            write(b"{", *INDEX),
            r"Parts.train\.txt: cannot be read as JSON \(Expecting .*\); mend the file",
        ),
        ("human_parts", write(b"\xff\x00", *INDEX), r"Parts.train\.txt: cannot be read as JSON \(.* codec "),
        (
            "human_parts",
            write(b"[15]", *INDEX),
            r"Parts.train\.txt: expected a JSON object; mend the file or delete it",
        ),
        (
            "human_parts",
            write(b'{"2008_000001": 15}', *INDEX),
            r"Parts.train\.txt: expected a list of class numbers by im",
        ),
    ],
)
def test_view_finds(root, task, damage, message):
    damage(root)
    source = PASCALContext(root)
    with pytest.raises(UserError, match=message) as caught:
        [source.view(split, [task]) for split in ("train", "val")]
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)
