"""How each task's labels become targets, are mirrored, scaled, predicted and drawn."""

from typing import Any

import numpy as np
import pytest
import torch

from fedmtl.tasks import Depth, Edge, Normals, Parts, Regression, Saliency, SemSeg, Task
from fedmtl.tasks.base import Label, class_palette, heat

FORMS = {  # of a prediction: dtype and what follows height and width
    "semseg": (np.uint8, ()),
    "parts": (np.uint8, ()),
    "saliency": (np.float32, ()),
    "depth": (np.float32, ()),
    "normals": (np.float32, (3,)),
    "edge": (np.float32, ()),
    "regression": (np.float32, ()),
}


@pytest.fixture
def example(task: Task, make_batch):
    return make_batch(task, n=1, size=(5, 8), seed=3)


@pytest.fixture
def label(task: Task, example) -> Label:
    """The label as a data set stores it; every unknown pixel has the fill value."""
    target, known = example.target[0].numpy(), example.known[0]
    if task.name == "normals":
        return np.where(known[..., None], target.transpose(1, 2, 0), task.fill).astype(np.float32)
    values = np.where(known, target.reshape(known.shape), task.fill)
    return values.astype(np.float32 if task.name in ("depth", "regression") else np.uint8)


def test_target_of_a_label_is_what_loss_and_metric_take(task: Task, label: Label, example) -> None:
    target = task.to_target(label)
    assert target.shape == example.target.shape[1:]
    assert target.dtype == example.target.dtype
    known = torch.from_numpy(example.known[0])
    assert torch.equal(target[..., known], example.target[0][..., known])
    assert torch.all(target[..., ~known] == task.fill)


def test_a_whole_label_of_the_fill_value_has_no_loss(task: Task, label: Label, example) -> None:
    target = task.to_target(np.full_like(label, task.fill))
    assert task.loss(example.output, target[None]).item() == 0


def test_a_target_keeps_no_hold_of_a_read_only_or_mirrored_label(task: Task, label: Label) -> None:
    expected = task.to_target(label.copy())
    assert torch.equal(task.to_target(label[:, ::-1]), expected.flip(-1))
    assert torch.equal(task.to_target(np.asfortranarray(label)), expected)


def test_flip_mirrors_columns_and_negates_x_of_normals(task: Task, label: Label) -> None:
    flipped = task.flip(label)
    assert flipped.shape == label.shape
    assert flipped.dtype == label.dtype
    sign = np.array([-1, 1, 1] if task.name == "normals" else 1, dtype=np.int8)
    for column in range(label.shape[1]):
        np.testing.assert_array_equal(flipped[:, column] * 1.0, label[:, -1 - column] * 1.0 * sign)


def test_flip_twice_is_the_label(task: Task, label: Label) -> None:
    np.testing.assert_array_equal(task.flip(task.flip(label)), label)


def test_flip_and_rescale_leave_their_argument(task: Task, label: Label) -> None:
    before = label.copy()
    task.flip(label)
    task.rescale(label, 2.0)
    task.draw(label)
    np.testing.assert_array_equal(label, before)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_rescale_divides_depth_and_nothing_else(task: Task, label: Label, factor: float) -> None:
    scaled = task.rescale(label, factor)
    assert scaled.dtype == label.dtype
    np.testing.assert_allclose(scaled, label / factor if task.name == "depth" else label, rtol=1e-6)


@pytest.mark.parametrize(
    ("factor", "expected"), [(2.0, [2, 4.95, 0, 0, 0, 0]), (1.0, [4, 9.9, 0, 0, 0, 0]), (0.5, [8, 0, 0, 0, 0, 0])]
)
def test_no_zoom_brings_depths_back_that_do_not_count(factor: float, expected: list[float]) -> None:
    task = Depth(max_depth=10)
    scaled = task.rescale(np.array([[4, 9.9, 10, 15, np.inf, np.nan]], np.float32), factor)
    target = task.to_target(scaled)[None]
    counted = (target > 0) & (target < task.max_depth)
    assert torch.where(counted, target, 0)[0, 0, 0].tolist() == pytest.approx(expected, rel=1e-6)
    loss = task.loss(torch.zeros_like(target), target).item()
    assert loss == pytest.approx(np.mean([metres for metres in expected if metres]), rel=1e-6)


def test_depths_that_count_are_rescaled_to_the_bit() -> None:
    metres = np.random.default_rng(0).uniform(0, 79.9, (50, 60)).astype(np.float32)
    np.testing.assert_array_equal(Depth().rescale(metres, 1.37), metres / np.float32(1.37))


def test_an_input_holds_the_known_values_and_zero_elsewhere(task: Task, label: Label, example) -> None:
    seen, known = task.to_input(task.to_target(label)), example.known[0]
    assert seen.dtype == torch.float32
    assert seen.shape == (task.channels, 5, 8)
    values = label.astype(np.float64)[..., None]
    if task.name in ("semseg", "parts", "saliency"):
        expected = values == np.arange(task.channels)
    elif task.name == "depth":
        expected = (values - 3.0) / 1.5
    else:
        expected = values if values.ndim == 3 else values[..., 0]
    expected = np.where(known[..., None], expected, 0).transpose(2, 0, 1)
    np.testing.assert_allclose(seen.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("task", "values"),
    [
        (Depth(max_depth=10), [0, -1, 10, np.inf, np.nan]),
        (Normals(), [2 * 127 / 255 - 1, 0]),
        (Regression(), [np.inf, -np.inf, np.nan]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_an_input_is_zero_for_every_kind_of_unknown(task: Task, values: list[float]) -> None:
    target = torch.tensor(values, dtype=torch.float32).expand(task.channels, 1, -1)
    assert torch.equal(task.to_input(target), torch.zeros_like(target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_prediction_has_the_form_of_a_label(task: Task, example, dtype: torch.dtype) -> None:
    output = example.output[0].to(dtype).requires_grad_()
    predicted = task.predict(output)
    expected, channels = FORMS[task.name]
    assert predicted.dtype == expected
    assert predicted.shape == (5, 8, *channels)


def test_prediction_of_an_output_that_says_the_label_is_the_label(task: Task, label: Label, example) -> None:
    predicted, known = task.predict(example.perfect[0]), example.known[0]
    np.testing.assert_allclose(predicted[known], label[known], atol=1e-6)


@pytest.mark.parametrize("task", [Saliency(), Edge()], ids=lambda task: task.name)
def test_predictions_of_two_classes_are_probabilities(task: Task, example) -> None:
    output = example.output[0]
    logit = output[0] if task.name == "edge" else output[1] - output[0]
    np.testing.assert_allclose(task.predict(output), torch.sigmoid(logit).numpy(), rtol=1e-5)


def test_predicted_normals_are_unit_vectors(make_batch) -> None:
    predicted = Normals().predict(make_batch(Normals()).output[0])
    np.testing.assert_allclose(np.linalg.norm(predicted, axis=-1), 1, rtol=1e-6)


def test_a_picture_is_rgb_and_black_where_unknown(task: Task, label: Label, example) -> None:
    picture, known = task.draw(label), example.known[0]
    assert picture.dtype == np.uint8
    assert picture.shape == (5, 8, 3)
    assert np.all(picture[~known] == 0)
    if task.name != "edge":  # where black also says "no edge"
        assert np.all(picture[known].max(axis=-1) > 0)


def test_a_prediction_that_says_the_label_looks_like_it(task: Task, label: Label, example) -> None:
    known = example.known[0]
    pictures = task.draw(label), task.draw(task.predict(example.perfect[0]))
    np.testing.assert_allclose(pictures[0][known].astype(int), pictures[1][known].astype(int), atol=1)


def test_a_mirrored_label_is_drawn_mirrored(task: Task, label: Label) -> None:
    np.testing.assert_array_equal(task.draw(label[:, ::-1]), task.draw(label)[:, ::-1])


def test_class_pictures_show_the_palette() -> None:
    label = np.array([[0, 1, 39, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(SemSeg(num_classes=40).draw(label)[0], class_palette()[[0, 1, 39, 255]])


def test_palette_is_black_at_255_alone_and_the_first_40_colours_differ() -> None:
    palette = class_palette().astype(int)
    assert palette.shape == (256, 3)
    assert np.all(palette[255] == 0)
    assert np.all(palette[:255].max(axis=1) > 0)
    distance = np.abs(palette[:40, None] - palette[None, :40]).max(axis=-1)
    assert distance[~np.eye(40, dtype=bool)].min() > 0


def test_the_first_40_colours_are_well_separated() -> None:
    palette = class_palette().astype(int)
    distance = np.linalg.norm(palette[:40, None] - palette[None, :40], axis=-1)
    assert distance[~np.eye(40, dtype=bool)].min() > 20


def test_heat_goes_from_dark_to_bright_and_clips() -> None:
    ramp = heat(np.linspace(0, 1, 50)).astype(int) @ [299, 587, 114]
    assert np.all(np.diff(ramp) >= 0)
    assert ramp[-1] > 4 * ramp[0] > 0
    np.testing.assert_array_equal(heat(np.array([-1.0, 2.0])), heat(np.array([0.0, 1.0])))


def test_near_is_brighter_than_far() -> None:
    picture = Depth().draw(np.array([[1.0, 1.5, 3.0, 8.0]], dtype=np.float32))
    assert np.all(np.diff(picture[0].sum(-1, dtype=int)) < 0)


def test_regression_is_drawn_from_minus_two_to_two() -> None:
    picture = Regression().draw(np.array([[-9.0, -2.0, -1.0, 0.0, 1.0, 2.0, 9.0]]))[0].astype(int)
    np.testing.assert_array_equal(picture[[0, 1, 5]], picture[[1, 0, 6]])
    np.testing.assert_array_equal(picture[1:6], heat(np.linspace(0, 1, 5)))


def test_edges_are_white_and_fade_with_probability() -> None:
    picture = Edge().draw(np.array([[1.0, 0.5, 0.0]], dtype=np.float32))
    np.testing.assert_array_equal(picture[0, :, 0], [255, 127, 0])
    np.testing.assert_array_equal(picture[..., 0], picture[..., 2])


@pytest.mark.parametrize(
    ("normal", "colour"), [((1, 0, 0), (255, 127, 127)), ((0, -1, 0), (127, 255, 127)), ((0, 0, -1), (127, 127, 255))]
)
def test_normals_show_right_red_up_green_and_facing_blue(normal: tuple[int, ...], colour: tuple[int, ...]) -> None:
    assert tuple(Normals().draw(np.array([[normal]], dtype=np.float32))[0, 0]) == colour


def test_class_names_default_to_numbers() -> None:
    assert Parts(num_classes=2).class_names == ["class 0", "class 1"]
    assert SemSeg(num_classes=2, class_names=["wall", "floor"]).class_names == ["wall", "floor"]
    assert Saliency().class_names == ["background", "salient"]


class Flow(Depth):
    """A task of one's own with two values a pixel."""

    fill = -1.0

    def __init__(self) -> None:
        super().__init__()
        self.channels = 2


@pytest.mark.parametrize(
    ("task", "shape", "value"),
    [
        (SemSeg(num_classes=5), (4, 6), 255),
        (Saliency(), (4, 6), 255),
        (Edge(), (4, 6), 255),
        (Depth(), (4, 6), 0),
        (Normals(), (4, 6, 3), 0),
        (Regression(), (4, 6), np.inf),
        (Flow(), (4, 6, 2), -1),
    ],
)
def test_an_unknown_label_has_the_form_of_a_known_one(task: Task, shape: tuple[int, ...], value: float) -> None:
    label = task.unknown((4, 6))
    assert label.shape == shape
    assert (label == value).all()
    assert label.dtype == (np.uint8 if value == 255 else np.float32)
    output = torch.zeros(1, task.channels, 4, 6, requires_grad=True)
    if not isinstance(task, Flow):
        assert task.loss(output, task.to_target(label)[None]).item() == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Edge(positive_weight=9), r"positive_weight must be in \[0, 1\], not 9"),
        (lambda: Depth(max_depth=-1), "max_depth must be above 0 m, not -1"),
        (lambda: Normals(weight=-1), "weight must be at least 0, not -1"),
        (
            lambda: SemSeg(num_classes=3, class_names=["a"]),
            "class_names must have one entry for each of the 3 classes, not 1",
        ),
    ],
)
def test_an_argument_that_means_nothing_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
