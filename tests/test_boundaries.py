"""Boundary evaluation against slow and literal versions of each step, and against the original matcher."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fedmtl.boundaries import COARSE_THRESHOLDS, THRESHOLDS, average_precision, boundary_counts, f_measure, thin
from fedmtl.boundaries.matching import match_sizes, neighbours
from fedmtl.boundaries.suppression import suppress_non_maxima
from fedmtl.boundaries.thinning import thinned_maps

KITCHEN = Path(__file__).parents[1] / "../shared/data/NYUDv2"
Bool = NDArray[np.bool_]
Float = NDArray[np.float64]


def blurred(noise: Float, steps: int) -> Float:
    for _ in range(steps):
        for axis in (0, 1):
            noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    return noise


def random_map(rng: np.random.Generator, size: tuple[int, int]) -> Float:
    """Probabilities of all sizes, some of them smooth, with ridges."""
    values = blurred(rng.normal(size=size), int(rng.integers(0, 3)))
    return 1 / (1 + np.exp(-(values / values.std() * rng.uniform(0.5, 2) - rng.uniform(0, 2))))


def everything(image: NDArray) -> Bool:
    return np.ones(image.shape, dtype=bool)


def packed(maps: Bool) -> NDArray[np.uint64]:
    """(H, W, up to 64) to one bit each."""
    return (maps.astype(np.uint64) << np.arange(maps.shape[2], dtype=np.uint64)).sum(2, dtype=np.uint64)


# Suppression


def slow_suppression(probability: Float) -> Float:
    """edgesNms step by step: angles by trigonometry, one pixel and one side at a time."""

    def mirrored(line: Float, radius: int) -> Float:
        weights = np.concatenate([np.arange(1, radius + 2), np.arange(radius, 0, -1)]) / (radius + 1) ** 2
        long = np.concatenate([line[::-1], line, line[::-1]])
        return np.convolve(long, weights, mode="same")[len(line) : 2 * len(line)]

    def triangle(image: Float, radius: int) -> Float:
        return np.apply_along_axis(mirrored, 1, np.apply_along_axis(mirrored, 0, image, radius), radius)

    edge = triangle(probability, 1)
    oy, ox = np.gradient(triangle(edge, 4))
    oxx, (oyy, oxy) = np.gradient(ox, axis=1), np.gradient(oy)
    angle = np.mod(np.arctan(oyy * np.sign(-oxy) / (oxx + 1e-5)), np.pi)
    height, width = edge.shape
    out = edge.copy()
    for y in range(height):
        for x in range(width):
            for side in (-1, 1):
                px = np.clip(x + side * np.cos(angle[y, x]), 0, width - 1.001)
                py = np.clip(y + side * np.sin(angle[y, x]), 0, height - 1.001)
                x0, y0 = int(px), int(py)
                dx, dy = px - x0, py - y0
                top = edge[y0, x0] * (1 - dx) + edge[y0, x0 + 1] * dx
                bottom = edge[y0 + 1, x0] * (1 - dx) + edge[y0 + 1, x0 + 1] * dx
                if edge[y, x] * 1.01 < top * (1 - dy) + bottom * dy:
                    out[y, x] = 0
    margin = min(5, height // 2, width // 2)
    for i in range(margin):
        for line in (out[i], out[height - 1 - i], out[:, i], out[:, width - 1 - i]):
            line *= i / margin
    return out


@pytest.mark.parametrize(("seed", "size"), [(0, (30, 41)), (1, (23, 17)), (2, (9, 40)), (3, (7, 6)), (4, (3, 3))])
def test_suppression_is_edges_nms(seed: int, size: tuple[int, int]) -> None:
    probability = random_map(np.random.default_rng(seed), size)
    found, expected = suppress_non_maxima(probability), slow_suppression(probability)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    if min(size) > 6:
        assert 0 < np.count_nonzero(found) < 0.7 * found.size


def test_a_blurred_line_is_suppressed_to_its_middle() -> None:
    probability = np.tile(np.exp(-((np.arange(30) - 12.0) ** 2) / 8), (40, 1))
    found = suppress_non_maxima(probability)[5:-5]
    assert np.all(np.argmax(found, axis=1) == 12)
    assert np.all(np.count_nonzero(found > 0.01, axis=1) == 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 9), (9, 2)])
def test_an_image_of_nothing_but_border_has_no_boundary(size: tuple[int, int]) -> None:
    counts = boundary_counts(np.ones(size), np.ones(size, bool), np.ones(size, bool))
    assert counts[:2].max() == 0
    assert np.all(counts[2] == size[0] * size[1])


# Thinning


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    density=st.floats(0.05, 1),
    steps=st.integers(0, 2),
    seed=st.integers(0, 10**6),
)
def test_thinning_is_skimage_s_pixel_for_pixel(size: tuple[int, int], density: float, steps: int, seed: int) -> None:
    morphology = pytest.importorskip("skimage.morphology")
    noise = blurred(np.random.default_rng(seed).random((*size, 64)), steps)
    maps = noise <= np.quantile(noise, density)  # also of whole areas, up to the border
    words = packed(maps)
    found = thin(words)
    for k in range(64):
        expected = morphology.thin(maps[..., k])
        np.testing.assert_array_equal((found >> np.uint64(k)) & np.uint64(1), expected)
    np.testing.assert_array_equal(words, packed(maps))  # the argument is left alone


def test_thinning_of_a_bar_leaves_a_line() -> None:
    bar = np.zeros((9, 20), np.uint64)
    bar[2:7, 3:17] = 1
    found = thin(bar)
    assert found.sum() >= 8
    assert np.all(found[:, 6:14].sum(axis=0) == 1)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 99, 130])
def test_maps_of_any_number_are_thinned_each_by_itself(count: int) -> None:
    level = np.random.default_rng(count).integers(0, count + 1, (12, 15))
    where, present = thinned_maps(level, count)
    assert present.shape == (count, len(where))
    for k in range(count):
        expected = np.flatnonzero(thin((level > k).astype(np.uint64)))
        np.testing.assert_array_equal(where[present[k]], expected)


# Matching


def slow_match_size(near: list[list[int]], present: Bool) -> int:
    """Kuhn's algorithm from nothing."""
    owner: dict[int, int] = {}

    def place(pixel: int, seen: set[int]) -> bool:
        for true in near[pixel]:
            if true not in seen:
                seen.add(true)
                if true not in owner or place(owner[true], seen):
                    owner[true] = pixel
                    return True
        return False

    return sum(place(pixel, set()) for pixel in np.flatnonzero(present).tolist())


def reverse(near: list[list[int]], count: int) -> list[list[int]]:
    return [[a for a, others in enumerate(near) if b in others] for b in range(count)]


@settings(max_examples=200, deadline=None)
@given(
    predicted=st.integers(0, 16),
    true=st.integers(0, 14),
    degree=st.floats(0.3, 5),
    steps=st.integers(1, 25),
    stay=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_the_matching_is_maximum_while_pixels_come_and_go(
    predicted: int, true: int, degree: float, steps: int, stay: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    edges = rng.random((predicted, true)) < degree / max(predicted, true, 1)
    near = [rng.permutation(np.flatnonzero(row)).tolist() for row in edges]
    present = np.zeros((steps, predicted), bool)
    for k in reversed(range(steps)):
        before = present[k + 1] if k + 1 < steps else present[k]
        present[k] = np.where(rng.random(predicted) < stay, before, rng.random(predicted) < 0.6)
    found = match_sizes(present, near, reverse(near, true))
    assert found.tolist() == [slow_match_size(near, row) for row in present]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.floats(0.01, 0.6), radius=st.floats(0, 4))
def test_matching_is_symmetric_and_the_assignment_s_size(seed: int, density: float, radius: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = (np.flatnonzero(rng.random((9, 12)) < density) for _ in range(2))
    sizes = []
    for one, other in ((a, b), (b, a)):
        near = neighbours(one, other, (9, 12), radius)
        sizes.append(int(match_sizes(np.ones((1, len(one)), bool), *near)[0]))
    assert sizes[0] == sizes[1]
    assert np.intersect1d(a, b).size <= sizes[0] <= min(len(a), len(b))
    optimize = pytest.importorskip("scipy.optimize")
    distance = np.hypot(a[:, None] // 12 - b // 12, a[:, None] % 12 - b % 12)
    rows, columns = optimize.linear_sum_assignment(np.where(distance <= radius, distance, 1e3))
    assert sizes[0] == np.count_nonzero(distance[rows, columns] <= radius)


@pytest.mark.parametrize("radius", [0.0, 0.9, 1.0, 1.5, 3.2, 50.0])
def test_neighbours_are_those_within_the_radius_nearest_first(radius: float) -> None:
    rng = np.random.default_rng(0)
    shape = (11, 14)
    a, b = (np.flatnonzero(rng.random(shape) < 0.3) for _ in range(2))
    forward, backward = neighbours(a, b, shape, radius)
    distance = np.hypot(a[:, None] // 14 - b // 14, a[:, None] % 14 - b % 14)
    for row, others in zip(distance, forward, strict=True):
        assert sorted(others) == np.flatnonzero(row <= radius).tolist()
        assert np.all(np.diff(row[others]) >= 0)
    assert [sorted(others) for others in backward] == [np.flatnonzero(c <= radius).tolist() for c in distance.T]


def test_more_pixels_than_one_block_have_their_own_neighbours() -> None:
    a = np.arange(100 * 100)
    forward, backward = neighbours(a, a[::7], (100, 100), 0.5)
    assert [len(others) for others in forward] == [int(i % 7 == 0) for i in a]
    assert backward == [[int(i)] for i in a[::7]]


# The whole


def slow_counts(probability: Float, truth: Bool, known: Bool, thresholds: Float, max_distance: float) -> NDArray:
    morphology = pytest.importorskip("skimage.morphology")
    strength = slow_suppression(probability) * known
    points = np.argwhere(truth & known)
    counts = []
    for threshold in thresholds:
        predicted = np.argwhere(morphology.thin(strength >= threshold))
        distance = np.linalg.norm(predicted[:, None] - points[None], axis=2)
        near = [np.flatnonzero(row <= max_distance * np.hypot(*truth.shape)).tolist() for row in distance]
        counts.append((slow_match_size(near, np.ones(len(predicted), bool)), len(predicted), len(points)))
    return np.array(counts).T


@pytest.mark.parametrize(("seed", "distance"), [(0, 0.0075), (1, 0.03), (2, 0.06), (3, 0.11)])
def test_counts_are_those_of_the_protocol_step_by_step(seed: int, distance: float) -> None:
    rng = np.random.default_rng(seed)
    size = (26, 33)
    probability = random_map(rng, size)
    truth, known = rng.random(size) < 0.08, rng.random(size) > 0.1 * seed
    found = boundary_counts(probability, truth, known, max_distance=distance)
    np.testing.assert_array_equal(found, slow_counts(probability, truth, known, THRESHOLDS, distance))
    assert found.dtype == np.int64
    assert 0 < found[0].max() <= found[2, 0]


def test_fewer_thresholds_give_the_counts_of_those() -> None:
    rng = np.random.default_rng(0)
    probability, truth = random_map(rng, (40, 50)), rng.random((40, 50)) < 0.1
    every = boundary_counts(probability, truth, everything(truth), max_distance=0.03)
    coarse = boundary_counts(probability, truth, everything(truth), thresholds=COARSE_THRESHOLDS, max_distance=0.03)
    np.testing.assert_array_equal(coarse, every[:, np.isin(THRESHOLDS, COARSE_THRESHOLDS)])
    np.testing.assert_allclose(THRESHOLDS, np.linspace(0.01, 0.99, 99))
    assert len(COARSE_THRESHOLDS) == 19


def test_a_threshold_is_passed_by_what_is_equal_to_it() -> None:
    half = np.full((30, 40), 0.5)
    predicted = boundary_counts(half, half > 1, half > 0)[1]
    assert predicted[49] > 0 == predicted[50]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    density=st.floats(0, 1),
    distance=st.floats(0.001, 0.5),
)
def test_invariants(seed: int, size: tuple[int, int], density: float, distance: float) -> None:
    rng = np.random.default_rng(seed)
    probability, truth, known = random_map(rng, size) if min(size) > 1 else rng.random(size), *rng.random((2, *size))
    truth, known = truth < density, known < 0.9
    matched, predicted, true = counts = boundary_counts(probability, truth, known, max_distance=distance)
    assert np.all(matched >= 0)
    assert np.all(matched <= np.minimum(predicted, true))
    f = f_measure(counts)
    assert np.all((f >= 0) & (f <= 1))
    assert 0 <= average_precision(counts) <= 1
    wider = boundary_counts(probability, truth, known, max_distance=2 * distance)
    assert np.all(wider[0] >= matched)
    np.testing.assert_array_equal(boundary_counts(probability, truth, known, max_distance=distance), counts)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_the_truth_is_the_prediction_f_is_1(seed: int) -> None:
    probability = random_map(np.random.default_rng(seed), (40, 50))
    truth = thin((suppress_non_maxima(probability) >= THRESHOLDS[19]).astype(np.uint64)).astype(bool)
    counts = boundary_counts(probability, truth, everything(truth))
    assert truth.any()
    assert f_measure(counts)[19] == 1


def test_what_is_unknown_is_neither_predicted_nor_true() -> None:
    rng = np.random.default_rng(0)
    probability, truth, known = random_map(rng, (30, 40)), rng.random((30, 40)) < 0.1, rng.random((30, 40)) < 0.7
    counts = boundary_counts(probability, truth, known, max_distance=0.03)
    np.testing.assert_array_equal(boundary_counts(probability, truth | ~known, known, max_distance=0.03), counts)
    assert counts[2, 0] == np.count_nonzero(truth & known)
    assert boundary_counts(probability, truth, ~everything(truth)).max() == 0
    everywhere = boundary_counts(probability, truth, everything(truth), max_distance=0.03)
    assert np.all(counts[1:, 0] < everywhere[1:, 0])


def test_without_truth_predictions_still_count_and_without_predictions_the_truth() -> None:
    probability = random_map(np.random.default_rng(0), (30, 40))
    truth = np.zeros((30, 40), bool)
    matched, predicted, true = boundary_counts(probability, truth, everything(truth))
    assert matched.max() == true.max() == 0 < predicted[0]
    truth[10] = True
    matched, predicted, true = boundary_counts(np.zeros((30, 40)), truth, everything(truth))
    assert matched.max() == predicted.max() == 0 < true.min()


def test_nan_counts_as_no_boundary() -> None:
    probability = random_map(np.random.default_rng(0), (30, 40))
    probability[5:9] = 0
    truth = everything(probability)
    expected = boundary_counts(probability, truth, truth)
    probability[5:9] = np.nan
    np.testing.assert_array_equal(boundary_counts(probability, truth, truth), expected)


def test_single_precision_and_strided_maps_are_taken() -> None:
    probability = random_map(np.random.default_rng(0), (30, 40)).astype(np.float32)
    truth = np.random.default_rng(1).random((30, 40)) < 0.1
    expected = boundary_counts(probability.astype(np.float64), truth, everything(truth))
    turned = [np.asfortranarray(x) for x in (probability, truth, everything(truth))]
    np.testing.assert_array_equal(boundary_counts(*turned), expected)


# Summaries


def test_f_is_the_harmonic_mean_of_precision_and_recall() -> None:
    counts = np.array([[6, 3, 0, 0], [8, 3, 5, 0], [12, 12, 12, 0]])
    p, r = 6 / 8, 6 / 12
    np.testing.assert_allclose(f_measure(counts), [2 * p * r / (p + r), 2 * 0.25 / 1.25, 0, 0])


def test_of_equal_recalls_the_lowest_threshold_counts() -> None:
    counts = np.array([[5, 5, 0], [10, 5, 0], [10, 10, 10]])
    expected = np.interp(np.arange(100) / 100, [0, 0.5], [0, 0.5], right=0).mean()
    assert average_precision(counts) == pytest.approx(expected)
    assert average_precision(counts[:, :2]) == 0


# Others


def gradient_map(image: Float) -> Float:
    smooth = blurred(image, 2)
    strength = np.hypot(*np.gradient(smooth))
    return 1 - np.exp(-strength / np.percentile(strength, 90))


@pytest.mark.parametrize("distance", [0.0075, 0.011])
def test_pooled_precision_and_recall_are_the_original_matcher_s(distance: float) -> None:
    evaluation = pytest.importorskip("pyEdgeEval.common.binary_label.evaluate_boundaries")
    if not KITCHEN.is_dir():
        pytest.skip("needs the kitchen's pictures")
    thresholds = THRESHOLDS[4::10]
    ours, theirs = np.zeros((3, 10)), np.zeros((4, 10))
    for name in ("0000", "0050"):
        truth = np.asarray(Image.open(KITCHEN / "edge" / f"{name}.png")) > 0
        probability = gradient_map(np.asarray(Image.open(KITCHEN / "images" / f"{name}.png").convert("L"), float))
        ours += boundary_counts(probability, truth, everything(truth), thresholds=thresholds, max_distance=distance)
        theirs += evaluation.evaluate_boundaries_threshold(thresholds, probability, truth, distance, True, True)
    recall, precision = theirs[0] / theirs[1], theirs[2] / np.maximum(theirs[3], 1)
    np.testing.assert_allclose(ours[0] / ours[2], recall, atol=0.005)
    np.testing.assert_allclose(ours[0] / np.maximum(ours[1], 1), precision, atol=0.005)
    f = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    np.testing.assert_allclose(f_measure(ours), f, atol=0.005)


def test_it_is_imported_without_torch() -> None:
    code = "import sys, fedmtl.boundaries; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
