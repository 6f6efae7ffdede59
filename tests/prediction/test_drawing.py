"""Arrays as PNG come back within their precision; overlays and legends show what is there."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmtl.data import decode
from fedmtl.errors import UserError
from fedmtl.prediction.drawing import as_png, classes, overlay, save
from fedmtl.prediction.folders import SYSTEM
from fedmtl.tasks import Depth, Edge, Normals, Regression, Saliency, SemSeg
from fedmtl.tasks.base import class_palette

RNG = np.random.default_rng(0)


def test_depth_as_millimetres() -> None:
    png = as_png(Depth(), np.array([[1.2344, 0.0006, -1, 70, np.nan]], np.float32))
    assert png is not None
    assert png.dtype == np.uint16
    assert png.tolist() == [[1234, 1, 0, 65535, 0]]


def test_normals_come_back_as_data_sets_read_them() -> None:
    unit = RNG.normal(size=(8, 8, 3)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    png = as_png(Normals(), unit)
    assert png is not None
    assert png.dtype == np.uint8
    assert np.abs(decode.normals(Path("n.png"), png) - unit).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("task", [Edge(), Saliency()])
def test_probabilities(task: Edge | Saliency) -> None:
    values = RNG.random((5, 5), dtype=np.float32)
    png = as_png(task, values)
    assert png is not None
    assert png.dtype == np.uint8
    assert np.abs(png / 255 - values).max() <= 0.5 / 255 + 1e-6


def test_class_ids_and_what_does_not_fit() -> None:
    ids = np.array([[0, 39]], np.uint8)
    assert np.array_equal(as_png(SemSeg(num_classes=40), ids), ids)  # type: ignore[arg-type]
    large = as_png(SemSeg(num_classes=40), np.array([[0, 300]]))
    assert large is not None
    assert large.dtype == np.uint16
    assert large.tolist() == [[0, 300]]
    assert as_png(Regression(), np.zeros((2, 2), np.float32)) is None


def test_overlay_mixes_classes_alone() -> None:
    picture = np.full((1, 2, 3), 100, np.uint8)
    label = np.array([[0, 3]], np.uint8)
    mixed = overlay(SemSeg(num_classes=4), picture, label, 0.25)
    np.testing.assert_allclose(mixed, 0.25 * class_palette()[label] + 75, atol=0.5)
    depth = np.full((1, 2), 2, np.float32)
    np.testing.assert_array_equal(overlay(Depth(), picture, depth, 0.25), Depth().draw(depth))


def test_legend_names_the_largest_classes_first() -> None:
    task = SemSeg(num_classes=3, class_names=["wall", "a\nb" + "x" * 100, "cup"])
    legend = classes(task, np.array([[1, 1, 2]], np.uint8))
    assert list(legend) == ["a b" + "x" * 25, "cup"]
    assert legend["cup"] == tuple(class_palette()[2].tolist())
    assert not classes(Depth(), np.ones((1, 1), np.float32))
    assert not classes(Saliency(), np.ones((1, 1), np.float32))
    many = classes(SemSeg(num_classes=40), np.arange(40, dtype=np.uint8)[None])
    assert len(many) == 25
    assert list(many)[-1] == "and 16 more"


def test_files(tmp_path: Path) -> None:
    picture = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    label = RNG.integers(0, 4, (40, 60)).astype(np.uint8)
    value = RNG.random((40, 60), dtype=np.float32)
    tasks = {"semseg": SemSeg(num_classes=4), "free": Regression()}
    save(tmp_path / "p", picture, {"semseg": label, "free": value}, tasks, raw="png", alpha=0.5)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "all-tasks.png",
        "free.npy",
        "free.png",
        "semseg.png",
        "semseg.raw.png",
    ]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "p/semseg.raw.png")), label)
    np.testing.assert_array_equal(np.load(tmp_path / "p/free.npy", allow_pickle=False), value)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "p/semseg.png"))[:, :60], picture)


def test_an_earlier_prediction_is_replaced_whole_and_nothing_else(tmp_path: Path) -> None:
    picture, value = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8), RNG.random((4, 6), dtype=np.float32)
    tasks = {"edge": Edge(), "depth": Depth()}
    save(tmp_path / "p", picture, {"edge": value, "depth": value}, tasks)
    save(tmp_path / "p", picture, {"depth": value}, tasks, raw="png")
    left = ["all-tasks.png", "depth.png", "depth.raw.png"]
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == left
    for name in SYSTEM:
        (tmp_path / "p" / name).touch()
    save(tmp_path / "p", picture, {"depth": value}, tasks, raw="png")
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == left
    (tmp_path / "p" / "mine.txt").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    for name in ("p", "photos"):
        with pytest.raises(UserError, match="holds something else than an earlier prediction"):
            save(tmp_path / name, picture, {"edge": value}, tasks)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [*left, "mine.txt"]
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]
