"""A model on pictures of any size: prepared as for validation, in batches that change nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmtl.data import ValTransform
from fedmtl.errors import UserError
from fedmtl.models import UnifiedModel
from fedmtl.prediction import Heads, Predictor
from fedmtl.prediction.predictor import batches
from fedmtl.runs import Run
from fedmtl.tasks import Depth, Normals, SemSeg, Task

RNG = np.random.default_rng(0)
TASKS: dict[str, Task] = {"semseg": SemSeg(num_classes=5), "depth": Depth(), "normals": Normals()}


def picture(*size: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (*size, 3), dtype=np.uint8)


def run(config: dict[str, Any] | None = None) -> Run:
    return Run(Path("a"), "a", config or {}, [], None, [], {}, None)


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    model = UnifiedModel({name: task.channels for name, task in TASKS.items()}, backbone="test_convnext", channels=8)
    near, far = {"semseg": TASKS["semseg"], "normals": TASKS["normals"]}, {"depth": TASKS["depth"]}
    groups = [
        Heads("a", near, ValTransform(size=(48, 64)), (48, 64)),
        Heads("b", far, ValTransform(longest=32), (32, 32)),
    ]
    return Predictor(model, groups, run=run())


def test_sizes_and_types(predictor: Predictor) -> None:
    pictures = [picture(40, 50), picture(1, 5), picture(70, 30)]
    for image, labels in zip(pictures, predictor(pictures), strict=True):
        assert {name: (label.shape, label.dtype) for name, label in labels.items()} == {
            "semseg": (image.shape[:2], np.uint8),
            "normals": (image.shape, np.float32),
            "depth": (image.shape[:2], np.float32),
        }


def test_it_is_what_the_model_says_of_the_padded_and_of_the_shrunk_picture(predictor: Predictor) -> None:
    image = picture(40, 50)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    normal = torch.from_numpy(((image - mean) / std).astype(np.float32)).permute(2, 0, 1)[None]
    padded = torch.nn.functional.pad(normal, (7, 7, 4, 4))
    with torch.no_grad():
        wanted = predictor.model(padded)["semseg"][0, :, 4:44, 7:57]
    found = predictor([image], tasks=["semseg"])[0]
    assert list(found) == ["semseg"]
    near = wanted.topk(2, dim=0).values.diff(dim=0)[0].abs().numpy() < 1e-4  # where rounding may choose
    assert ((found["semseg"] == wanted.argmax(0).numpy()) | near).all()
    assert near.mean() < 0.1


def test_batches_change_no_more_than_last_digits(predictor: Predictor) -> None:
    pictures = [picture(40, 50) for _ in range(3)] + [picture(30, 50)]
    single = predictor(pictures)
    several = list(predictor.stream(enumerate(pictures), batch_size=2))
    assert [key for key, _, _ in several] == [0, 1, 2, 3]
    for one, (_, _, other) in zip(single, several, strict=True):
        np.testing.assert_allclose(one["depth"], other["depth"], atol=1e-5)


def test_streams_hold_one_batch() -> None:
    taken = []

    def pictures() -> Any:
        for number, size in enumerate([4, 4, 4, 5, 4]):
            taken.append(number)
            yield number, np.zeros((size, 4, 3), np.uint8)

    groups = batches(pictures(), 2)
    assert [key for key, _ in next(groups)] == [0, 1]
    assert len(taken) <= 3
    assert [[key for key, _ in group] for group in groups] == [[2], [3], [4]]


def test_another_size_first(predictor: Predictor) -> None:
    image = np.full((60, 80, 3), 77, np.uint8)
    labels = predictor([image], size=(30, 40))[0]
    assert labels["semseg"].shape == (60, 80)
    small = predictor([image[:30, :40]])[0]  # of one colour: a resized picture is the smaller one
    np.testing.assert_allclose(labels["depth"].mean(), small["depth"].mean(), rtol=0.05)


def test_refusals(predictor: Predictor) -> None:
    with pytest.raises(UserError, match=r"no 'dept', did you mean 'depth'\?"):
        predictor([picture(8, 8)], tasks=["dept"])
    for wrong in (picture(8, 8).astype(np.float32), picture(8, 8)[..., 0], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            predictor([wrong])
    assert predictor([picture(1, 1)], tasks=["depth"])[0]["depth"].shape == (1, 1)


def test_what_the_model_cannot_take_is_one_line(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(images: Tensor) -> None:
        raise AssertionError("Input height (64)\n doesn't match model (224).")  # as attention of a fixed size does

    monkeypatch.setattr(predictor, "_wrapped", refuse)
    with pytest.raises(UserError, match=r"can't take 1 pictures of 8×9 pixels \(Input height \(64\) doesn't match"):
        predictor([picture(8, 9)], tasks=["depth"])
