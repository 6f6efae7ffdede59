"""Each metric against its definition in NumPy, however the images are split over batches and processes."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import JaccardIndex, Metric
from torchmetrics.utilities import dim_zero_sum

from fedmtl.tasks import Depth, Edge, Normals, Parts, Saliency, SemSeg, Task

TASKS = [SemSeg(num_classes=6), Parts(num_classes=4), Saliency(), Depth(), Normals(), Edge()]
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
            ious.append(np.count_nonzero((predicted == c) & (truth == c)) / union if union else 0)
        return {"mIoU": 100 * np.mean(ious)}
    if task.name == "depth":
        return {"RMSE": np.sqrt(np.mean(np.square(output - target)[:, 0][known]))}
    if task.name == "normals":
        p, g = np.moveaxis(output, 1, -1)[known], np.moveaxis(target, 1, -1)[known]
        cosine = (p * g).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(g, axis=1)
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        shares = {f"under_{limit:g}": 100 * np.mean(angle < limit) for limit in (11.25, 22.5, 30)}
        return {"mErr": angle.mean(), "median": np.sort(angle)[(len(angle) - 1) // 2], **shares}
    if task.name == "edge":
        p = 1 / (1 + np.exp(-output[:, 0][known]))
        chosen = [p >= t for t in np.linspace(0.01, 0.99, 99)]
        return {"exactF": best_f(chosen, target[:, 0][known] == 1, beta2=1)}
    p = 1 / (1 + np.exp(output[:, 0] - output[:, 1]))
    truth = target == 1
    chosen = [(p >= t) & known for t in np.linspace(0.05, 0.95, 19)]
    ious = [[iou(c, t) for c, t in zip(pixels, truth, strict=True)] for pixels in chosen]
    return {"maxF": best_f(chosen, truth, beta2=0.3), "mIoU": 100 * np.mean(ious, axis=1).max()}


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b) if np.any(a | b) else 1.0


def state(metric: Metric) -> dict[str, Tensor]:
    return {name: getattr(metric, name).clone() for name in metric._defaults}


@pytest.mark.parametrize("seed", [0, 1, 2])
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


def test_padding_never_counts(task: Task, make_batch) -> None:
    batch = make_batch(task)
    output = torch.nn.functional.pad(batch.output, (2, 3, 1, 4), value=5.0)
    target = torch.nn.functional.pad(batch.target, (2, 3, 1, 4), value=task.fill)
    expected = measure(task.metric(), batch.output, batch.target, [3])
    assert measure(task.metric(), output, target, [3]) == pytest.approx(expected, rel=1e-12)


def test_a_perfect_prediction_is_perfect(task: Task, make_batch) -> None:
    batch = make_batch(task)
    numbers = measure(task.metric(), batch.perfect, batch.target, [3])
    for name, value in numbers.items():
        ideal = 0 if name in ("RMSE", "mErr", "median") else 100
        assert value == pytest.approx(ideal, abs=0.00501 if name == "median" else 1e-5)


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
    output = torch.nn.functional.pad(batch.output, (0, 0, 0, 0, 0, absent), value=-1e9)
    jaccard = JaccardIndex(task="multiclass", num_classes=task.channels, ignore_index=255, average="none")
    jaccard.update(output, batch.target)
    number = measure(task.metric(), output, batch.target, [1, 2])["mIoU"]
    assert number == pytest.approx(100 * jaccard.compute().mean().item(), rel=1e-5)
    all_present = measure(SemSeg(num_classes=6).metric(), batch.output, batch.target, [3])["mIoU"]
    assert number == pytest.approx(all_present * 6 / task.channels)


def test_rmse_pools_pixels_and_is_not_the_mean_over_images() -> None:
    target = torch.full((2, 1, 2, 2), 5.0)
    target[1].view(-1)[1:] = 0  # 4 known pixels in the first image, 1 in the second
    output = target + torch.tensor([1.0, 4.0])[:, None, None, None]
    number = measure(Depth().metric(), output, target, [1, 1])["RMSE"]
    assert number == pytest.approx(np.sqrt((4 * 1 + 16) / 5))
    assert number != pytest.approx((1 + 4) / 2)


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


def test_edge_scores_are_logits_and_get_one_sigmoid() -> None:
    probability = torch.tensor([0.012, 0.025])  # a second sigmoid puts both between 0.50 and 0.51
    numbers = measure(Edge().metric(), probability.logit().view(1, 1, 1, 2), torch.tensor([[[[0.0, 1.0]]]]), [1])
    assert numbers["exactF"] == 100


WORKER = """
import json, pickle, sys
import torch
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
numbers = {}
for name, (metric, output, target) in pickle.load(open(f"{folder}/cases", "rb")).items():
    for i in range(rank, len(output), 2):
        metric.update(output[i : i + 1], target[i : i + 1])
    numbers[name] = {key: float(value) for key, value in metric.compute().items()}
torch.distributed.destroy_process_group()
json.dump(numbers, open(f"{folder}/numbers{rank}", "w"))
"""


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(make_batch, tmp_path: Path) -> None:
    cases, expected = {}, {}
    for task in TASKS:
        batch = make_batch(task, n=5)
        cases[task.name] = (task.metric(), batch.output, batch.target)
        expected[task.name] = measure(task.metric(), batch.output, batch.target, [5])
    (tmp_path / "cases").write_bytes(pickle.dumps(cases))
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path)]) for rank in range(2)]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    for rank in range(2):
        numbers = json.loads((tmp_path / f"numbers{rank}").read_text())
        for name, values in expected.items():
            assert numbers[name] == pytest.approx(values, rel=1e-9)
