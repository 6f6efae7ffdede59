import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedmtl.data import NYUDv2, PASCALContext, Scenes, decode
from fedmtl.data.check import Problem, Values, check, in_both, measure
from fedmtl.data.detect import open_root
from fedmtl.errors import UserError
from fedmtl.tasks import Depth, Edge, Normals, Saliency, SemSeg

TASKS = ["semseg", "depth", "normals", "edge"]
SIZE = (16, 24)


@pytest.fixture
def root(nyud_root: Callable[..., Path]) -> Path:
    return nyud_root(train=3, val=2, size=SIZE)


def picture(root: Path, folder: str, names: list[str]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(root / folder / f"{name}.png")) for name in names])


def plain(found: Any) -> Any:
    """Findings as something that can be compared."""
    return {
        (split, what): (f.good, f.without, f.sizes, f.problems, *vars(f.values).values())
        for split, findings in found.items()
        for what, f in findings.items()
    }


def same(one: Any, other: Any) -> None:
    one, other = plain(one), plain(other)
    assert one.keys() == other.keys()
    for key in one:
        for a, b in zip(one[key], other[key], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_sound_set_is_measured_as_numpy_measures_its_files(root):
    done: list[int] = []
    found = check(NYUDv2(root), TASKS, workers=0, progress=done.append)
    assert sum(done) == 5
    for split, names in (("train", ["0001", "0002", "0003"]), ("val", ["0004", "0005"])):
        ours = found[split]
        assert list(ours) == ["image", *TASKS]
        for finding in ours.values():
            assert (finding.good, finding.without, finding.problems) == (len(names), 0, [])
            assert finding.sizes == {SIZE: len(names)}
        pixels = len(names) * 16 * 24

        classes = picture(root, "segmentation", names)
        values = ours["semseg"].values
        assert (values.pixels, values.unknown, values.empty) == (pixels, (classes == 0).sum(), 0)
        assert values.counts[:40].tolist() == [(classes == k + 1).sum() for k in range(40)]

        metres = np.stack([np.load(root / "depth" / f"{name}.npy") for name in names])
        known, values = metres[metres > 0], ours["depth"].values
        assert values.known == known.size
        assert (values.low, values.high, values.beyond) == (known.min(), known.max(), 0)
        assert values.mean == pytest.approx(known.mean(dtype=np.float64), rel=1e-6)
        assert values.median == pytest.approx(np.median(known), rel=0.01)

        vectors = picture(root, "normals", names).astype(np.float64) * 2 / 255 - 1
        lengths = np.linalg.norm(vectors, axis=-1)
        known, values = lengths[lengths > 0.1], ours["normals"].values
        assert values.known == known.size == pixels - len(names) * 24
        np.testing.assert_allclose(
            [values.low, values.high, values.mean], [known.min(), known.max(), known.mean()], rtol=1e-5
        )

        edges, values = picture(root, "edge", names), ours["edge"].values
        assert (values.unknown, *values.counts[:2]) == (0, (edges == 0).sum(), (edges == 255).sum())


def test_tasks_that_are_not_asked_for_are_not_looked_at(root):
    shutil.rmtree(root / "edge")
    found = check(NYUDv2(root), ["depth"], workers=0)
    assert list(found["val"]) == ["image", "depth"]
    assert not any(f.problems for findings in found.values() for f in findings.values())


class Bomb:
    def __reduce__(self):
        return Path("exploded").touch, ()


def damage_pickle(path: Path) -> None:
    np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)


def damage_class(path: Path) -> None:
    values = np.array(Image.open(path))
    values[3, 4] = 41
    Image.fromarray(values).save(path)


DAMAGES = {
    "no image": ("image", "images/0002.png", Path.unlink, "missing", "no such file; complete the data set"),
    "no label": ("depth", "depth/0002.npy", Path.unlink, "missing", "no such file; complete the data set"),
    "cut off": (
        "image",
        "images/0002.png",
        lambda p: p.write_bytes(p.read_bytes()[:200]),
        "unreadable",
        r"cannot be read \(OSError: .*truncated.*\); replace the file",
    ),
    "garbage": (
        "edge",
        "edge/0002.png",
        lambda p: p.write_bytes(b"x"),
        "unreadable",
        r"cannot be read \(UnidentifiedImageError: .*\); replace the file",
    ),
    "empty": (
        "depth",
        "depth/0002.npy",
        lambda p: p.write_bytes(b""),
        "unreadable",
        r"cannot be read \(.*\); replace the file",
    ),
    "pickle": (
        "depth",
        "depth/0002.npy",
        damage_pickle,
        "unreadable",
        r"cannot be read \(ValueError: Object arrays cannot be loaded .*\); replace the file",
    ),
    "class": ("semseg", "segmentation/0002.png", damage_class, "wrong content", r"found the value 41, expected .*"),
    "mode": (
        "normals",
        "normals/0002.png",
        lambda p: Image.new("L", (24, 16)).save(p),
        "wrong content",
        "found a picture of mode L, expected RGB",
    ),
    "size": (
        "depth",
        "depth/0002.npy",
        lambda p: np.save(p, np.ones((16, 23), np.float32)),
        "wrong size",
        r"found a label of 16×23 pixels \(H×W\), expected its image's 16×24",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_one_entry(root, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    what, file, damage, kind, reason = DAMAGES[name]
    damage(root / file)
    found = check(NYUDv2(root), TASKS, workers=0)
    problems = [p for findings in found.values() for f in findings.values() for p in f.problems]
    path = str(root / file)
    assert problems == [Problem("train", what, "0002", kind, path, problems[0].reason)]
    assert re.fullmatch(re.escape(f"{path}: ") + reason, problems[0].reason)
    for split, findings in found.items():
        for each, finding in findings.items():
            assert finding.good == {"train": 3, "val": 2}[split] - (split == "train" and each == what)
    assert not Path("exploded").exists()


def test_labels_of_a_lost_image_are_still_looked_at(root):
    (root / "images" / "0004.png").unlink()
    np.save(root / "depth" / "0004.npy", np.full((2, 2), -1.0))
    found = check(NYUDv2(root), TASKS, workers=0)["val"]
    assert [p.kind for p in found["image"].problems] == ["missing"]
    assert found["depth"].sizes == {SIZE: 1, (2, 2): 1}
    assert found["depth"].values.empty == 1


def test_view_still_refuses_missing_images(root):
    (root / "images" / "0004.png").unlink()
    with pytest.raises(UserError, match="0004.png: no such file, 1 of the 2 images of the val split are missing"):
        NYUDv2(root).view("val", ["depth"])


def test_the_files_themselves_are_looked_at_whatever_the_cache(root, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMTL_CACHE", str(tmp_path))
    source = NYUDv2(root, cache="memory")
    source.view("train", TASKS).sample(0)
    kept = source.load("train", 0, "depth")
    (root / "depth" / f"{source.ids('train')[0]}.npy").write_bytes(b"x")
    found = check(source, TASKS, workers=0)["train"]["depth"]
    assert [problem.kind for problem in found.problems] == ["unreadable"]
    assert source.load("train", 0, "depth") is kept
    disk = NYUDv2(root, cache="disk")
    check(disk, TASKS, workers=0)
    assert disk.cache == "disk"
    assert not any(tmp_path.iterdir())


def test_files_that_are_decoded_once_are_decoded_again(pascal_root, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMTL_CACHE", str(tmp_path))
    source = PASCALContext(pascal_root())
    source.view("train", ["edge"]).sample(0)
    cached = sorted(tmp_path.rglob("*.npy"))
    read = []
    matlab = decode.matlab
    monkeypatch.setattr(decode, "matlab", lambda path, key: read.append(path.stem) or matlab(path, key))
    for _ in range(2):
        found = check(source, ["edge"], workers=0)
        assert found["train"]["edge"].good + found["val"]["edge"].good == 6
    assert len(read) == 12
    assert sorted(tmp_path.rglob("*.npy")) == cached


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(nyud_root):
    root = nyud_root(train=21, val=11, size=SIZE)
    (root / "depth" / "0003.npy").unlink()
    damage_class(root / "segmentation" / "0030.png")
    source = NYUDv2(root)
    alone = check(source, TASKS, workers=0)
    assert [p.id for f in alone.values() for finding in f.values() for p in finding.problems] == ["0003", "0030"]
    for workers in (1, 2):
        same(check(source, TASKS, workers=workers), alone)


def test_a_source_that_can_not_be_sent_says_so(root):
    source = NYUDv2(root)
    source.val_transform = lambda *_: {}
    with pytest.raises(UserError, match="nyud can't be sent to worker processes .*--workers 0 does without"):
        check(source, TASKS, workers=1)


def test_scenes(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMTL_CACHE", str(tmp_path))
    source = Scenes(train=3, val=2, size=16)
    found = check(source, ["saliency", "normals"], workers=0)
    truth = np.stack([source.load("train", i, "saliency") for i in range(3)])
    assert found["train"]["saliency"].values.counts[:2].tolist() == [(truth == 0).sum(), (truth == 1).sum()]
    assert found["val"]["normals"].good == 2
    assert in_both(source) == []


def test_images_without_label_are_counted_and_not_asked_for(tiny_source):
    source = tiny_source(train=9, val=2)

    def has_label(split: str, index: int, task: str) -> bool:
        return task != "semseg" or index % 3 == 0

    source.has_label = has_label
    source.samples["train"][1]["semseg"] = None
    found = check(source, ["semseg", "depth"], workers=0)["train"]
    assert (found["semseg"].good, found["semseg"].without) == (3, 6)
    assert (found["depth"].good, found["depth"].without) == (9, 0)


def test_images_in_both_splits_are_named(root):
    assert in_both(NYUDv2(root)) == []
    (root / "gt_sets" / "val.txt").write_text("0004\n0002\n")
    assert in_both(NYUDv2(root)) == ["0002"]


def test_depth_against_numpy_at_any_scale():
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 3e4):
        metres = (scale * rng.lognormal(0, 1, (40, 31))).astype(np.float32)
        metres[rng.random(metres.shape) < 0.3] = 0
        values = Values()
        for half in (metres[:20], metres[20:]):
            values.add(measure(Depth(max_depth=2 * scale), half, "here"))
        known = metres[metres > 0]
        assert (values.pixels, values.unknown, values.empty) == (metres.size, (metres == 0).sum(), 0)
        assert (values.low, values.high) == (known.min(), known.max())
        assert values.beyond == (known >= np.float32(2 * scale)).sum() > 0
        assert values.mean == pytest.approx(known.mean(dtype=np.float64), rel=1e-6)
        assert values.median == pytest.approx(np.median(known), rel=0.01)


@pytest.mark.parametrize(
    ("task", "label", "unknown"),
    [
        (SemSeg(num_classes=3), np.full((4, 5), 255, np.uint8), 20),
        (Depth(), np.zeros((4, 5), np.float32), 20),
        (Normals(), np.zeros((4, 5, 3), np.float32), 20),
    ],
)
def test_labels_of_which_nothing_is_known(task, label, unknown):
    values = measure(task, label, "here")
    assert (values.pixels, values.unknown, values.empty, values.known) == (20, unknown, 1, 0)
    assert np.isnan(values.mean)
    assert np.isnan(values.median)


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        (SemSeg(num_classes=3), np.full((2, 2), 3, np.uint8), "here: found the class 3, expected 0…2 or 255"),
        (Edge(), np.full((2, 2), 254, np.uint8), "here: found the class 254, expected 0…1 or 255"),
        (Saliency(), np.full((2, 2), 2, np.uint8), "here: found the class 2, expected 0…1 or 255"),
        (Edge(), np.zeros((2, 2)), r"here: found float64 of shape \(2, 2\), expected uint8 of shape \(H, W\)"),
        (Depth(), np.zeros((2, 2), int), r"here: found int64 of shape \(2, 2\), expected floating-point"),
        (Normals(), np.zeros((2, 2)), r"here: found float64 of shape \(2, 2\), expected .* \(H, W, 3\)"),
    ],
)
def test_what_a_task_can_not_have(task, label, message):
    with pytest.raises(UserError, match=message):
        measure(task, label, "here")


def test_the_kind_of_a_folder_is_found_out(root, tmp_path):
    assert isinstance(open_root(root), NYUDv2)
    with pytest.raises(UserError, match="no data set that is known; looked for dataset.yaml.*JPEGImages"):
        open_root(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"no data set that is known; did you mean {root}?")):
        open_root(root.parent)
    with pytest.raises(UserError, match=r"nowhere: there is no such folder"):
        open_root(tmp_path / "nowhere")
