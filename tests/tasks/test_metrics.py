"""Each metric against its definition in NumPy, however the images are split over batches and processes."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import JaccardIndex, Metric
from torchmetrics.utilities import dim_zero_sum

from fedmtl.boundaries import boundary_counts
from fedmtl.tasks import Depth, Edge, Normals, Parts, Regression, Saliency, SemSeg, Task

TASKS = [
    SemSeg(num_classes=6),
    Parts(num_classes=4, absent="skip"),
    Saliency(),
    Depth(),
    Depth(pooling="image"),
    Normals(),
    Regression(),
    Edge(max_distance=0.2),
]
Array = NDArray[np.float64]


def measure(metric: Metric, output: Tensor, target: Tensor, sizes: list[int]) -> dict[str, float]:
    """The metric's numbers after one update for each batch size in `sizes`."""
    for outputs, targets in zip(output.split(sizes), target.split(sizes), strict=True):
        metric.update(outputs, targets)
    return {key: float(value) for key, value in metric.compute().items()}


def best_f(chosen: list[NDArray[np.bool_]], truth: NDArray[np.bool_], beta2: float) -> float:
    """Largest Fβ ×100 from pooled precision and recall, over one set of chosen pixels for each threshold."""
    scores = [0.0]
    for pixels in chosen:
        hits = np.count_nonzero(pixels & truth)
        if hits:
            precision, recall = hits / np.count_nonzero(pixels), hits / np.count_nonzero(truth)
            scores.append((1 + beta2) * precision * recall / (beta2 * precision + recall))
    return 100 * max(scores)


def reference(task: Task, output: Array, target: Array, known: NDArray[np.bool_]) -> dict[str, float]:
    if task.name in ("semseg", "parts"):
        predicted, truth, ious = output.argmax(1)[known], target[known], []
        for c in range(task.channels):
            union = np.count_nonzero((predicted == c) | (truth == c))
            if union or task.absent == "zero":
                ious.append(np.count_nonzero((predicted == c) & (truth == c)) / union if union else 0)
        return {"mIoU": 100 * np.mean(ious)}
    if task.name == "regression":
        return {"RMSE": np.sqrt(np.mean(np.square(output - target)[:, 0][known]))}
    if task.name == "depth":
        images = zip(np.square(output - target)[:, 0], known, strict=True)
        squares = [values[mask] for values, mask in images if mask.any()]
        if task.pooling == "image":
            return {"RMSE": np.mean([np.sqrt(values.mean()) for values in squares])}
        return {"RMSE": np.sqrt(np.mean(np.concatenate(squares)))}
    if task.name == "normals":
        p, g = np.moveaxis(output, 1, -1)[known], np.moveaxis(target, 1, -1)[known]
        cosine = (p * g).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(g, axis=1)
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        shares = {f"under_{limit:g}": 100 * np.mean(angle < limit) for limit in (11.25, 22.5, 30)}
        return {"mErr": angle.mean(), "median": np.sort(angle)[(len(angle) - 1) // 2], **shares}
    if task.name == "edge":
        p = torch.tensor(output[:, 0]).float().sigmoid().numpy()
        images = [
            boundary_counts(values, truth == 1, mask, max_distance=task.max_distance)
            for values, truth, mask in zip(p, target[:, 0], known, strict=True)
        ]
        return boundary_numbers(images)
    p = 1 / (1 + np.exp(output[:, 0] - output[:, 1]))
    truth = target == 1
    chosen = [(p >= t) & known for t in np.linspace(0.05, 0.95, 19)]
    ious = [[iou(c, t) for c, t in zip(pixels, truth, strict=True)] for pixels in chosen]
    return {"maxF": best_f(chosen, truth, beta2=0.3), "mIoU": 100 * np.mean(ious, axis=1).max()}


def boundary_numbers(images: list[NDArray[np.int64]]) -> dict[str, float]:
    """odsF, oisF and AP of each image's matched, predicted and true pixels at 99 thresholds."""

    def f(matched: int, predicted: int, true: int) -> float:
        if matched == 0:
            return 0.0
        precision, recall = matched / predicted, matched / true
        return 2 * precision * recall / (precision + recall)

    pooled = [[sum(int(image[i, k]) for image in images) for i in range(3)] for k in range(99)]
    best = [max((image[:, k].tolist() for k in range(99)), key=lambda counts: f(*counts)) for image in images]
    curve = {}  # precision by recall; the lowest threshold of equal recall
    for matched, predicted, true in reversed(pooled):
        curve[matched / max(true, 1)] = matched / max(predicted, 1)
    recalls, heights = sorted(curve), []
    for i in range(100):
        above = next((r for r in recalls if r >= i / 100), None)
        below = next((r for r in reversed(recalls) if r <= i / 100), None)
        if above is None or below is None or len(recalls) == 1:
            heights.append(0.0)
        else:
            part = 0 if above == below else (i / 100 - below) / (above - below)
            heights.append(curve[below] * (1 - part) + curve[above] * part)
    return {
        "odsF": 100 * max(f(*counts) for counts in pooled),
        "oisF": 100 * f(*(sum(column) for column in zip(*best, strict=True))),
        "AP": sum(heights),
    }


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b) if np.any(a | b) else 1.0


def state(metric: Metric) -> dict[str, Tensor]:
    return {name: getattr(metric, name).clone() for name in metric._defaults}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_metric_is_its_definition_over_several_batches(task: Task, make_batch, seed: int) -> None:
    batch = make_batch(task, n=7, seed=seed)
    output = batch.output + (0.5 * batch.perfect if seed else 0)
    numbers = measure(task.metric(), output, batch.target, [3, 1, 3])
    expected = reference(task, output.double().numpy(), batch.target.double().numpy(), batch.known)
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        # the median comes from a histogram of 0.01°
        assert numbers[name] == pytest.approx(value, rel=1e-6, abs=0.00501 if name == "median" else 1e-6)


def test_primary_metric_is_among_the_numbers(task: Task, make_batch) -> None:
    batch = make_batch(task)
    assert task.primary in measure(task.metric(), batch.output, batch.target, [3])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@settings(max_examples=8, deadline=None)
@given(cuts=st.sets(st.integers(1, 7)), seed=st.integers(0, 1000))
def test_the_split_into_batches_changes_nothing(task: Task, make_batch, cuts: set[int], seed: int) -> None:
    batch = make_batch(task, n=8, seed=seed)
    sizes = np.diff([0, *sorted(cuts), 8]).tolist()
    whole = measure(task.metric(), batch.output, batch.target, [8])
    assert measure(task.metric(), batch.output, batch.target, sizes) == pytest.approx(whole, rel=1e-9)
    assert measure(task.metric(), batch.output, batch.target, [1] * 8) == pytest.approx(whole, rel=1e-9)


def test_states_of_two_halves_add_up_to_the_whole(task: Task, make_batch) -> None:
    batch = make_batch(task, n=6)
    metrics = [task.metric() for _ in range(3)]
    for metric, rows in zip(metrics, (slice(0, 2), slice(2, 6), slice(0, 6)), strict=True):
        metric.update(batch.output[rows], batch.target[rows])
    first, second, whole = map(state, metrics)
    assert all(reduction is dim_zero_sum for reduction in metrics[0]._reductions.values())
    for name, value in whole.items():
        assert value.dtype in (torch.int64, torch.float64)
        torch.testing.assert_close(first[name] + second[name], value)


def test_reset_forgets_everything(task: Task, make_batch) -> None:
    batch = make_batch(task)
    metric = task.metric()
    metric.update(batch.perfect, batch.target)
    metric.reset()
    assert measure(metric, batch.output, batch.target, [3]) == measure(task.metric(), batch.output, batch.target, [3])


@pytest.mark.parametrize("task", TASKS[:-1], ids=lambda task: task.name)  # distances are in diagonals of the image
def test_padding_never_counts(task: Task, make_batch) -> None:
    batch = make_batch(task)
    output = torch.nn.functional.pad(batch.output, (2, 3, 1, 4), value=5.0)
    target = torch.nn.functional.pad(batch.target, (2, 3, 1, 4), value=task.fill)
    expected = measure(task.metric(), batch.output, batch.target, [3])
    assert measure(task.metric(), output, target, [3]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("task", TASKS[:-1], ids=lambda task: task.name)  # an edge is thinned: test_boundary_metric
def test_a_perfect_prediction_is_perfect(task: Task, make_batch) -> None:
    batch = make_batch(task)
    numbers = measure(task.metric(), batch.perfect, batch.target, [3])
    for name, value in numbers.items():
        ideal = 0 if name in ("RMSE", "mErr", "median") else 100
        assert value == pytest.approx(ideal, abs=0.00501 if name == "median" else 1e-5)


@pytest.mark.parametrize("task", TASKS[:-1], ids=lambda task: task.name)
def test_direction_says_whether_the_perfect_number_is_high(task: Task, make_batch) -> None:
    batch = make_batch(task)
    perfect, other = (measure(task.metric(), o, batch.target, [3])[task.primary] for o in (batch.perfect, batch.output))
    assert task.metric().higher_is_better is (perfect > other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_outputs_give_the_numbers_of_their_values(task: Task, make_batch, dtype: torch.dtype) -> None:
    output = make_batch(task).output.to(dtype)
    target = make_batch(task).target
    expected = measure(task.metric(), output.float(), target, [3])
    assert measure(task.metric(), output, target, [3]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("absent", [0, 3])
def test_miou_counts_an_absent_class_as_zero_as_torchmetrics_does(make_batch, absent: int) -> None:
    task = SemSeg(num_classes=6 + absent)
    batch = make_batch(SemSeg(num_classes=6))
    output = torch.nn.functional.pad(batch.output, (0, 0, 0, 0, 0, absent), value=-1e9)  # never predicted
    jaccard = JaccardIndex(task="multiclass", num_classes=task.channels, ignore_index=255, average="none")
    jaccard.update(output, batch.target)
    number = measure(task.metric(), output, batch.target, [1, 2])["mIoU"]
    assert number == pytest.approx(100 * jaccard.compute().mean().item(), rel=1e-5)
    all_present = measure(SemSeg(num_classes=6).metric(), batch.output, batch.target, [3])["mIoU"]
    assert number == pytest.approx(all_present * 6 / task.channels)
    skipped = measure(SemSeg(num_classes=6 + absent, absent="skip").metric(), output, batch.target, [3])["mIoU"]
    assert skipped == pytest.approx(all_present)


def test_a_class_that_is_only_predicted_counts_as_zero_even_where_absent_ones_are_skipped() -> None:
    output = torch.eye(3)[torch.tensor([[0, 0, 2, 2]])].movedim(-1, 1)[:, :, None]
    number = measure(SemSeg(num_classes=3, absent="skip").metric(), output, torch.tensor([[[0, 0, 0, 255]]]), [1])
    assert number["mIoU"] == pytest.approx(100 * (2 / 3 + 0) / 2)


@pytest.mark.parametrize(("pooling", "expected"), [("pixel", np.sqrt((4 * 1 + 16) / 5)), ("image", (1 + 4) / 2)])
def test_rmse_over_pixels_is_not_the_mean_over_images(pooling: str, expected: float) -> None:
    target = torch.full((3, 1, 2, 2), 5.0)
    target[1].view(-1)[1:] = 0  # 4 known pixels in the first image, 1 in the second, none in the third
    target[2] = 0
    output = target + torch.tensor([1.0, 4.0, 9.0])[:, None, None, None]
    assert measure(Depth(pooling=pooling).metric(), output, target, [1, 2])["RMSE"] == pytest.approx(expected)


@pytest.mark.parametrize("angle", [0.0, 1e-3, 11.2, 11.3, 90.0, 179.99, 180.0])
def test_angles_are_exact_from_0_to_180_degrees(angle: float) -> None:
    radians = np.radians(angle)
    output = torch.tensor([np.cos(radians), np.sin(radians), 0.0], dtype=torch.float64).view(1, 3, 1, 1)
    numbers = measure(Normals().metric(), 7 * output, torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1), [1])
    assert numbers["mErr"] == pytest.approx(angle, abs=1e-9)
    assert numbers["under_11.25"] == (100 if angle < 11.25 else 0)


@pytest.mark.parametrize(("logit", "iou"), [(-9.0, 100.0), (9.0, 50.0)])
def test_saliency_iou_is_1_where_neither_has_foreground(logit: float, iou: float) -> None:
    output = torch.tensor([[0.0, 9.0], [0.0, logit]])[:, :, None, None].expand(2, 2, 3, 3)
    target = torch.tensor([1, 0])[:, None, None].expand(2, 3, 3)
    assert measure(Saliency().metric(), output, target, [2])["mIoU"] == pytest.approx(iou)


@pytest.mark.parametrize("shift", [0.0, 1e-6, -1e-6])
def test_a_saliency_threshold_is_passed_by_what_is_at_least_as_large(shift: float) -> None:
    probability = torch.arange(1, 20) / 20 + shift
    output = torch.stack([1 - probability, probability]).log()[None, :, None]
    metric = Saliency().metric()
    metric.update(output, torch.ones(1, 1, 19, dtype=torch.int64))
    passed = output.softmax(1)[0, 1, 0] >= metric.thresholds[:, None]
    assert metric.hits.tolist() == passed.sum(1).tolist()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_outputs_of_nan_give_numbers_and_no_error(task: Task, make_batch) -> None:
    batch = make_batch(task)
    output = batch.output.masked_fill(torch.rand(batch.output.shape) < 0.5, torch.nan)
    assert task.primary in measure(task.metric(), output, batch.target, [1, 2])
    assert task.primary in measure(task.metric(), torch.full_like(output, torch.nan), batch.target, [3])


@pytest.mark.parametrize("task", [*TASKS, Edge(fast=True)], ids=lambda task: task.name)
def test_the_faster_setting_has_the_primary_metric_and_is_no_better(task: Task, make_batch) -> None:
    batch = make_batch(task)
    exact = measure(task.metric(exact=True), batch.output, batch.target, [3])
    fast = measure(task.metric(exact=False), batch.output, batch.target, [3])
    if task.name == "edge" and task.fast:
        assert fast.keys() == {"odsF"}
        assert fast["odsF"] <= exact["odsF"]
    else:
        assert fast == exact


@pytest.mark.parametrize("primary", ["maxF", "mIoU"])
def test_either_number_may_stand_for_saliency(primary: str) -> None:
    task = Saliency(primary=primary)
    assert task.primary == primary
    assert Saliency().primary == "maxF"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Saliency(primary="F"), "primary must be maxF or mIoU, not 'F'"),
        (lambda: Depth(pooling="batch"), "pooling must be pixel or image, not 'batch'"),
        (lambda: SemSeg(num_classes=3, absent="nan"), "absent must be zero or skip, not 'nan'"),
        (lambda: Parts(num_classes=3, absent="one"), "absent must be zero or skip, not 'one'"),
        (lambda: Edge(max_distance=0), "max_distance must be positive, not 0"),
        (lambda: Edge(max_distance=float("nan")), "max_distance must be positive, not nan"),
        (lambda: Edge(processes=-1), "processes must be at least 0, not -1"),
    ],
)
def test_an_argument_that_is_not_one_is_refused_at_once(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def measure_half(rank: int, folder: Path, cases: dict[int, Any]) -> None:
    """One of two ranks: measures every second image and writes the numbers of both."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    numbers = {}
    for name, (metric, output, target) in cases.items():
        for i in range(rank, len(output), 2):
            metric.update(output[i : i + 1], target[i : i + 1])
        numbers[name] = {key: float(value) for key, value in metric.compute().items()}
    (folder / f"numbers{rank}").write_text(json.dumps(numbers))
    os._exit(0)  # gloo's threads may abort a process that ends slowly


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(make_batch, tmp_path: Path) -> None:
    cases, expected = {}, {}
    for i, task in enumerate([*TASKS, Edge(max_distance=0.2, processes=1)]):
        batch = make_batch(task, n=5)  # three for one rank, two for the other
        cases[i] = (task.metric(), batch.output, batch.target)
        expected[str(i)] = measure(task.metric(), batch.output, batch.target, [5])
    fork = multiprocessing.get_context("fork")  # copies of this process, which has imported everything
    workers = [fork.Process(target=measure_half, args=(rank, tmp_path, cases)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    for rank in range(2):
        numbers = json.loads((tmp_path / f"numbers{rank}").read_text())
        for name, values in expected.items():
            assert numbers[name] == pytest.approx(values, rel=1e-9)
