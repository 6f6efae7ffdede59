import numpy as np

from fedmtl.data import Scenes
from fedmtl.tracking.base import Segmented
from fedmtl.tracking.segmented import segmentations
from fedmtl.tracking.wandb_tracker import _masks


def test_only_tasks_that_predict_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMTL_CACHE", str(tmp_path))
    view = Scenes(train=2, val=2, size=32).view("val", ["semseg", "depth", "saliency"])
    labels = {
        "semseg": [np.full((32, 32), 3, np.uint8)] * 2,
        "depth": [np.ones((32, 32), np.float32)] * 2,
        "saliency": [np.full((32, 32), 0.5, np.float32)] * 2,
    }
    found = segmentations(view, [0, 1], labels)
    assert list(found) == ["semseg"]
    for position, one in enumerate(found["semseg"]):
        sample = view.sample(position)
        np.testing.assert_array_equal(one.image, sample["image"])
        np.testing.assert_array_equal(one.truth, sample["semseg"])
        assert (one.prediction == 3).all()
        assert list(one.names)[:2] == ["wall", "floor"]
    assert segmentations(view, [0], {"depth": labels["depth"]}) == {}


def test_unknown_is_a_class_of_its_own_that_a_signed_byte_holds():
    """W&B's masks are signed bytes: 255 would come out as class 0."""
    truth = np.array([[0, 1], [2, 255]], np.uint8)
    masks = _masks(Segmented(np.zeros((2, 2, 3), np.uint8), truth, truth[::-1], ["a", "b", "c"]))
    assert masks["truth"]["mask_data"].tolist() == [[0, 1], [2, 3]]
    assert masks["prediction"]["mask_data"].tolist() == [[2, 3], [0, 1]]
    assert masks["truth"]["class_labels"] == {0: "a", 1: "b", 2: "c", 3: "unknown"}
