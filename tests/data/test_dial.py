"""Tasks by a dial: their correlation with depth, or with classes, on real scenes; and what a mirror makes of them."""

import pickle
from collections.abc import Iterator
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from numpy.typing import NDArray

from fedmtl.data.check import check
from fedmtl.data.dial import STATISTICS, Dial, TiltedDepth
from fedmtl.data.rooms import CLASSES
from fedmtl.data.scenes import Scenes
from fedmtl.data.transforms import TrainTransform
from fedmtl.tasks import Normals, SemSeg

TRAIN = 200  # scenes
GRID = [-1.0, -0.5, 0.0, 0.5, 0.8, 1.0]
DIALS = {f"depth_{i}": Dial("depth", value) for i, value in enumerate(GRID)}
DIALS |= {f"class_{i}": Dial("semseg", value) for i, value in enumerate(GRID)}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMTL_CACHE", str(path))
        yield path


@pytest.fixture(scope="module", params=["day", "night"])
def scenes(request: pytest.FixtureRequest, folder: Path) -> Scenes:
    return Scenes(train=TRAIN, val=1, size=32, domain=request.param, dials=DIALS)


def targets(source: Scenes, name: str) -> NDArray[np.float64]:
    view = source.view("train", [name])
    return np.stack([source.tasks[name].to_target(view.sample(i)[name]).numpy() for i in range(len(view))]).astype(
        np.float64
    )


def correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


# --- depth ---------------------------------------------------------------------------------------------------


def test_the_dial_is_the_correlation_with_depth(scenes: Scenes) -> None:
    depth = targets(scenes, "depth")
    for i, value in enumerate(GRID):
        found = targets(scenes, f"depth_{i}")
        assert correlation(found, depth) == pytest.approx(value, abs=0.03)
        assert found.mean() == pytest.approx(0, abs=0.1)
        assert found.std() == pytest.approx(1, abs=0.1)


def test_two_dials_correlate_as_documented(scenes: Scenes) -> None:
    found = [targets(scenes, f"depth_{i}") for i in range(len(GRID))]
    for i, a in enumerate(GRID):
        for j, b in enumerate(GRID):
            expected = a * b + sqrt(1 - a**2) * sqrt(1 - b**2)
            assert correlation(found[i], found[j]) == pytest.approx(expected, abs=0.03)


def test_the_ends_are_depth_and_its_opposite_to_the_bit(scenes: Scenes) -> None:
    mean, deviation, _ = STATISTICS[scenes.domain]
    depth = scenes.arrays("train")["depth"]
    expected = ((depth.astype(np.float64) - mean) / deviation)[:, None]
    same, opposite = targets(scenes, f"depth_{GRID.index(1)}"), targets(scenes, f"depth_{GRID.index(-1)}")
    np.testing.assert_allclose(same, expected, atol=1e-6)
    np.testing.assert_array_equal(opposite, -same)


def test_at_zero_it_is_the_direction_of_surfaces(scenes: Scenes) -> None:
    found = targets(scenes, f"depth_{GRID.index(0)}")
    x = scenes.arrays("train")["normals"][:, None, ..., 0].astype(np.float64)
    np.testing.assert_allclose(found, x / STATISTICS[scenes.domain][2], atol=1e-6)
    assert correlation(found, targets(scenes, "depth")) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("value", GRID)
def test_the_label_of_the_mirrored_scene_is_the_mirrored_label(scenes: Scenes, value: float) -> None:
    arrays, dial = scenes.arrays("train"), Dial("depth", value)
    task = dial.task(scenes.domain, 0)
    for i in range(5):
        mirrored = {
            "depth": arrays["depth"][i : i + 1, :, ::-1],
            "normals": Normals().flip(np.array(arrays["normals"][i]))[None],
        }
        expected = task.to_target(dial.label(mirrored, 0, 0))
        label = dial.label(arrays, i, 0)
        assert torch.equal(task.to_target(task.flip(label)), expected)
        if abs(value) < 1:
            assert not torch.equal(task.to_target(label).flip(-1), expected)


def test_a_world_and_its_mirror_image_have_no_correlation_at_zero(scenes: Scenes) -> None:
    """By symmetry, not by the choice of constants: depth stays, the target changes its sign."""
    straight, mirrored = (
        Scenes(train=TRAIN, val=1, size=32, domain=scenes.domain, flip=flip, dials={"t": Dial("depth", 0)}).view(
            "train", ["depth", "t"], range(40)
        )
        for flip in (0.0, 1.0)
    )
    examples = [view[i, 0] for i in range(40) for view in (straight, mirrored)]
    depth, found = (torch.stack([example[name] for example in examples]).double() for name in ("depth", "t"))
    assert abs(((depth - depth.mean()) * found).mean()) < 1e-7


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_scaling_brings_the_depth_part_nearer_and_leaves_the_rest(flip: float) -> None:
    rng = np.random.default_rng(0)
    metres, x = rng.uniform(1, 5, (6, 8)), rng.uniform(-1, 1, (6, 8))
    metres[2, 3] = 0
    task = TiltedDepth(0.6, domain="night")
    sample = {"image": np.zeros((6, 8, 3), np.uint8), "t": np.stack([metres, x], axis=-1).astype(np.float32)}
    transform = TrainTransform(crop=(16, 18), scale=(2.0, 2.0), flip=flip, photometric=False)
    found = transform(sample, {"t": task}, np.random.default_rng(0))["t"][0].numpy()
    mean, deviation, spread = STATISTICS["night"]
    expected = 0.6 * (metres / 2 - mean) / deviation + 0.8 * (-x if flip else x) / spread
    expected[2, 3] = np.inf
    expected = np.pad(expected.repeat(2, 0).repeat(2, 1), ((2, 2), (1, 1)), constant_values=np.inf)
    np.testing.assert_allclose(found, expected[:, ::-1] if flip else expected, rtol=1e-5)


def test_what_is_unknown_counts_nowhere_and_is_black() -> None:
    task = TiltedDepth(0.3)
    label = task.unknown((4, 5))
    assert (label.shape, label.dtype) == ((4, 5, 2), np.float32)
    target = task.to_target(label)
    assert task.loss(torch.zeros(1, 1, 4, 5), target[None]) == 0
    assert (task.to_input(target) == 0).all()
    assert (task.draw(label) == 0).all()


def test_a_label_and_its_prediction_look_alike(scenes: Scenes) -> None:
    task, label = scenes.tasks["depth_1"], scenes.load("train", 3, "depth_1")
    target = task.to_target(label)
    assert task.loss(target[None], target[None]) == 0
    np.testing.assert_array_equal(task.draw(task.predict(target)), task.draw(label))
    assert np.ptp(task.draw(label)[..., 1]) > 100


# --- classes -------------------------------------------------------------------------------------------------


@given(st.floats(-1, 1), st.integers(0, 1000))
def test_classes_change_places_by_the_share_that_is_asked_for(value: float, seed: int) -> None:
    numbers = Dial("semseg", value).numbers(seed)
    assert sorted(numbers) == list(range(len(CLASSES)))
    moved = np.count_nonzero(numbers != np.arange(len(CLASSES)))
    assert moved != 1
    assert abs(moved - (1 - value) / 2 * len(CLASSES)) <= (1.5 if moved == 2 else 0.5)


def test_the_ends_are_the_same_classes_and_all_others() -> None:
    same, other = (Dial("semseg", value).numbers(0) for value in (1, -1))
    np.testing.assert_array_equal(same, np.arange(len(CLASSES)))
    assert (other != np.arange(len(CLASSES))).all()


def test_classes_that_change_go_on_to_do_so() -> None:
    moved = [set(np.flatnonzero(Dial("semseg", v).numbers(3) != np.arange(10))) for v in (1, 0.6, 0.4, 0, -0.4, -1)]
    assert [len(classes) for classes in moved] == [0, 2, 3, 5, 7, 10]
    assert all(less < more for less, more in pairwise(moved))


def test_the_seed_of_the_scenes_says_which_classes_change() -> None:
    assert len({tuple(Dial("semseg", -0.2).numbers(seed)) for seed in range(20)}) > 15


def test_labels_are_the_classes_by_their_new_numbers(scenes: Scenes) -> None:
    plain = targets(scenes, "semseg").astype(int)
    for i, value in enumerate(GRID):
        task, found = scenes.tasks[f"class_{i}"], targets(scenes, f"class_{i}").astype(int)
        assert isinstance(task, SemSeg)
        assert scenes.load("train", 0, f"class_{i}").dtype == np.uint8
        for number, name in enumerate(task.class_names):  # a wall is a wall, whatever its number
            np.testing.assert_array_equal(found == number, plain == CLASSES.index(name))
        assert np.array_equal(found, plain) == (value == 1)


# --- in the data set -----------------------------------------------------------------------------------------


def test_nothing_is_rendered_for_a_dial(scenes: Scenes, folder: Path) -> None:
    scenes.arrays("train")
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    other = Scenes(train=TRAIN, val=1, size=32, domain=scenes.domain, dials={"mine": Dial("depth", 0.1)})
    other.view("train", ["mine"])[0, 0]
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_another_process_reads_the_same_labels(scenes: Scenes) -> None:
    other = pickle.loads(pickle.dumps(scenes))
    for name in DIALS:
        np.testing.assert_array_equal(other.load("train", 7, name), scenes.load("train", 7, name))


def test_the_check_of_a_data_set_finds_no_fault(scenes: Scenes) -> None:
    found = check(scenes, list(DIALS), workers=0)
    assert [finding.problems for findings in found.values() for finding in findings.values()] == [[]] * 26


def test_dials_are_named_in_yaml_and_on_the_command_line() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(Scenes, "data")
    text = "{near: {of: depth, correlation: 1, weight: 3}, other: {of: semseg, correlation: -0.5, weight: 2}}"
    words = ["--data.dials", text, "--data.dials.near.correlation", "-0.25"]
    source = parser.instantiate(parser.parse_args(words)).data
    assert source.dials == {"near": Dial("depth", -0.25, weight=3), "other": Dial("semseg", -0.5, weight=2)}
    assert [source.tasks[name].weight for name in ("near", "other")] == [3, 2]


@pytest.mark.parametrize(("of", "value"), [("edge", 0.5), ("depth", 1.1), ("semseg", -1.01), ("depth", float("nan"))])
def test_a_dial_out_of_range_is_refused(of: Any, value: float) -> None:
    with pytest.raises(ValueError, match=r"^a dial's (of|correlation) must be [^\n]*$"):
        Dial(of, value)


@pytest.mark.parametrize("name", ["depth", "image", "window", "(input)", "a b", "2d", "", "keys"])
def test_a_name_that_can_not_be_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^dials: [^\n]*$"):
        Scenes(dials={name: Dial("depth", 1)})
