"""Each task's loss against its formula in NumPy, and what it must ignore."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmtl.tasks import Depth, Edge, Normals, Parts, Regression, Saliency, SemSeg, Task

DTYPES = [torch.float16, torch.bfloat16]


def log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def surprise(output: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """-log p of the true class, per pixel (any number where the class is unknown)."""
    truth = np.where(target < output.shape[1], target, 0).astype(int)
    return -np.take_along_axis(log_softmax(output), truth[:, None], 1)[:, 0]


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


def reference(task: Task, batch) -> float:
    """Mean over the known pixels, in float64."""
    output, target, known = batch.output.double().numpy(), batch.target.double().numpy(), batch.known
    if task.name in ("semseg", "parts"):
        values = surprise(output, target)
    elif task.name == "saliency":
        share = np.mean(target[known] == 1)
        values = surprise(output, target) * np.where(target == 1, 1 - share, share)
    elif task.name in ("depth", "regression"):
        values = np.abs(output - target)[:, 0]
    elif task.name == "normals":
        values = np.abs(unit(output) - unit(target)).sum(1)
    else:
        p = 1 / (1 + np.exp(-output))
        values = np.where(target == 1, -0.95 * np.log(p), -0.05 * np.log(1 - p))[:, 0]
    return float(values[known].mean())


def gradient(task: Task, output: Tensor, target: Tensor) -> tuple[float, Tensor]:
    output = output.clone().requires_grad_()
    loss = task.loss(output, target)
    assert loss.shape == ()
    loss.backward()
    assert output.grad is not None
    return loss.item(), output.grad


@pytest.mark.parametrize("unknown", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_is_the_mean_of_its_formula_over_the_known_pixels(
    task: Task, make_batch, seed: int, unknown: float
) -> None:
    batch = make_batch(task, seed=seed, unknown=unknown)
    assert task.loss(batch.output, batch.target).item() == pytest.approx(reference(task, batch), rel=1e-5)


def test_where_nothing_is_known_the_loss_and_its_gradient_are_exactly_zero(task: Task, make_batch) -> None:
    batch = make_batch(task, unknown=1.0)
    for output in (batch.output, torch.zeros_like(batch.output)):
        loss, grad = gradient(task, output, batch.target)
        assert loss == 0
        assert torch.equal(grad, torch.zeros_like(grad))


def test_what_the_output_says_of_an_unknown_pixel_changes_nothing(task: Task, make_batch) -> None:
    batch = make_batch(task)
    unknown = torch.from_numpy(~batch.known)[:, None].expand_as(batch.output)
    loss, grad = gradient(task, batch.output, batch.target)
    assert torch.all(grad[unknown] == 0)
    assert torch.any(grad[~unknown] != 0)
    for other in (-1e3, 0.0, 1e3):
        other_loss, other_grad = gradient(task, batch.output.masked_fill(unknown, other), batch.target)
        assert other_loss == loss
        assert torch.equal(other_grad, grad)


def test_padding_with_unknown_pixels_leaves_the_loss(task: Task, make_batch) -> None:
    batch = make_batch(task)
    output = torch.nn.functional.pad(batch.output, (2, 3, 1, 0), value=5.0)
    target = torch.nn.functional.pad(batch.target, (2, 3, 1, 0), value=task.fill)
    torch.testing.assert_close(task.loss(output, target), task.loss(batch.output, batch.target))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_precision_outputs_are_computed_in_fp32(task: Task, make_batch, dtype: torch.dtype) -> None:
    batch = make_batch(task)
    output = batch.output.to(dtype)
    loss = task.loss(output, batch.target)
    assert loss.dtype == torch.float32
    assert loss.item() == task.loss(output.float(), batch.target).item()
    _, grad = gradient(task, output, batch.target)
    assert grad.dtype == dtype
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_gradient_is_finite_for_small_and_large_outputs(task: Task, make_batch, scale: float) -> None:
    batch = make_batch(task)
    loss, grad = gradient(task, batch.output * scale, batch.target)
    assert math.isfinite(loss)
    assert torch.isfinite(grad).all()


def test_an_output_that_says_the_target_has_no_loss(task: Task, make_batch) -> None:
    batch = make_batch(task)
    assert task.loss(batch.perfect, batch.target).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("task", "weight"),
    [
        (SemSeg(num_classes=2), 1),
        (Parts(num_classes=2), 2),
        (Saliency(), 5),
        (Normals(), 10),
        (Edge(), 50),
        (Depth(), 1),
        (Regression(), 1),
        (Edge(weight=7), 7),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_task_weights_are_the_protocol_s_and_stay_out_of_the_loss(task: Task, make_batch, weight: float) -> None:
    assert task.weight == weight
    batch = make_batch(task)
    loss = task.loss(batch.output, batch.target).item()
    task_twice = type(task)(weight=2 * weight, **({"num_classes": 2} if isinstance(task, SemSeg) else {}))
    assert task_twice.loss(batch.output, batch.target).item() == loss


@pytest.mark.parametrize("positive", [0.95, 0.8])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_an_edge_pixel_weighs_the_positive_share_and_others_the_rest(positive: float, label: float) -> None:
    loss = Edge(positive_weight=positive).loss(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), label))
    assert loss.item() == pytest.approx((positive if label else 1 - positive) * math.log(2))


def test_edges_weigh_95_to_5_by_default() -> None:
    assert Edge().positive_weight == 0.95


@pytest.mark.parametrize("salient", [1, 3, 8])
def test_each_saliency_class_weighs_the_batch_s_share_of_the_other(salient: int) -> None:
    target = torch.full((2, 4, 2), 255)
    target[0] = 0
    target.view(-1)[:salient] = 1  # of 8 known pixels
    share = salient / 8
    _, grad = gradient(Saliency(), torch.zeros(2, 2, 4, 2), target)
    assert grad[0, 1].view(-1)[0].item() == pytest.approx(-0.5 * (1 - share) / 8)
    assert grad[0, 1].view(-1)[-1].item() == pytest.approx((0.5 * share if salient < 8 else 0) / 8)


def test_the_length_of_a_predicted_normal_does_not_matter(make_batch) -> None:
    batch = make_batch(Normals())
    lengths = torch.rand(3, 1, 7, 9) * 20 + 0.1
    torch.testing.assert_close(
        Normals().loss(batch.output * lengths, batch.target), Normals().loss(batch.output, batch.target)
    )


def test_a_predicted_normal_of_length_zero_has_a_finite_gradient(make_batch) -> None:
    batch = make_batch(Normals())
    loss, grad = gradient(Normals(), torch.zeros_like(batch.output), batch.target)
    assert math.isfinite(loss)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("stored", [127, 128])
def test_the_8_bit_grey_of_a_missing_normal_is_unknown(stored: int) -> None:
    target = torch.full((1, 3, 2, 2), 2 * stored / 255 - 1)
    assert Normals().loss(torch.randn(1, 3, 2, 2), target).item() == 0


def test_the_largest_depth_that_counts_is_an_argument() -> None:
    target = torch.tensor([[[[1.0, 5.0, 20.0]]]])
    output = target + torch.tensor([1.0, 2.0, 4.0])
    assert Depth().loss(output, target).item() == pytest.approx(7 / 3)
    assert Depth(max_depth=20.0).loss(output, target).item() == pytest.approx(1.5)


@pytest.mark.parametrize("missing", [math.nan, math.inf, -1.0])
def test_depth_that_is_no_distance_is_unknown(missing: float) -> None:
    loss, grad = gradient(Depth(), torch.ones(1, 1, 1, 2), torch.tensor([[[[missing, 3.0]]]]))
    assert loss == 2
    assert grad.tolist() == [[[[0.0, -1.0]]]]
