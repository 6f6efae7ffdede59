"""Physical truth: transformed samples of rendered scenes, held against their geometry and what their camera sees."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from fedmtl.data import Scenes
from fedmtl.data.raycast import Seen, render
from fedmtl.data.source import Example
from fedmtl.data.transforms import MEAN, STD, TrainTransform, Window
from fedmtl.tasks import Depth, Normals, Task
from fedmtl.tasks.base import Label

COUNT, SIZE, CROP = 24, (160, 200), (80, 96)
REACH = 6  # pixels around one whose depths tell its normal
LIMITS = {
    "middle angle": 1.0,  # degrees between normals and those of the depth's surface, on slanted walls
    "wide angles": 2.0,  # 5 % of them are above this
    "image": 4.0,  # mean difference in grey levels from what the camera would see
    "depth": 0.004,  # median of the relative difference
    "semseg": 0.02,  # share of other pixels
}


class Camera(NamedTuple):
    """What a transform makes of a scene's camera; pairs are given by axis of the image."""

    factor: float
    scaled: tuple[int, int]  # size of the whole picture
    start: tuple[int, int]  # of the crop
    flipped: bool

    def focal(self, before: float) -> tuple[float, float]:
        """Focal lengths in pixels; they differ a little, since sizes are rounded."""
        return before * self.scaled[0] / SIZE[0], before * self.scaled[1] / SIZE[1]

    def centre(self) -> tuple[float, float]:
        """The principal point in pixels of the crop."""
        y, x = (self.scaled[i] / 2 - self.start[i] for i in (0, 1))
        return y, CROP[1] - x if self.flipped else x

    def part(self, whole: NDArray) -> NDArray:
        """The crop of a picture or label map."""
        (top, left), (height, width) = self.start, CROP
        crop = whole[top : top + height, left : left + width]
        return crop[:, ::-1] if self.flipped else crop


def camera(seed: int) -> Camera:
    """By the random numbers that a transform draws: factor, crop, flip."""
    rng = np.random.default_rng(seed)
    factor = rng.uniform(0.5, 2.0)
    scaled = round(SIZE[0] * factor), round(SIZE[1] * factor)
    start = int(rng.integers(scaled[0] - CROP[0] + 1)), int(rng.integers(scaled[1] - CROP[1] + 1))
    return Camera(factor, scaled, start, rng.random() < 0.5)


def surface_normals(depth: NDArray, focal: tuple[float, float], centre: tuple[float, float]) -> NDArray:
    """Normals (H, W, 3) of the planes that fit a square around each pixel: n·X = c is 1/z = n·(x, y, 1) / c."""
    steps = np.arange(-REACH, REACH + 1)
    slope, mean = steps / (steps**2).sum(), np.ones(len(steps)) / len(steps)
    down, right, level = (
        ndimage.correlate1d(ndimage.correlate1d(1 / depth.astype(np.float64), over_y, axis=0), over_x, axis=1)
        for over_y, over_x in ((slope, mean), (mean, slope), (mean, mean))
    )
    y, x = np.indices(depth.shape) + 0.5
    ahead = level - down * (y - centre[0]) - right * (x - centre[1])
    normals = -np.stack([right * focal[1], down * focal[0], ahead], axis=-1)  # towards the camera
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def slanted(normals: NDArray, classes: NDArray) -> NDArray:
    """Where the square around a pixel shows one plane that a mirrored picture shows slanted the other way."""
    side = 2 * REACH + 1
    spread = ndimage.maximum_filter(normals, (side, side, 1)) - ndimage.minimum_filter(normals, (side, side, 1))
    one = ndimage.maximum_filter(classes, side) == ndimage.minimum_filter(classes, side)
    mask = one & (spread.max(-1) < 0.01) & (np.abs(normals[..., 0]) > 0.2)
    return np.pad(mask[REACH:-REACH, REACH:-REACH], REACH)


def angles(example: Example, now: Camera, focal: float) -> NDArray:
    """Degrees between the normals and those that the depth's surface has, on slanted walls."""
    normals = F.normalize(example["normals"].permute(1, 2, 0).double(), dim=-1).numpy()
    found = surface_normals(example["depth"][0].numpy(), now.focal(focal), now.centre())
    chord = np.linalg.norm(found - normals, axis=-1)[slanted(normals, example["semseg"].numpy())]
    return np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1)))


def differences(example: Example, now: Camera, seen: Seen) -> tuple[float, float, float]:
    """Of image, depth and classes from what the camera sees, in the units of `LIMITS`."""
    image = (example["image"] * STD + MEAN).permute(1, 2, 0).numpy()
    depth = example["depth"][0].numpy() * now.factor  # the world is smaller by that
    return (
        np.abs(image - now.part(seen.image)).mean(),
        np.median(np.abs(depth / now.part(seen.depth) - 1)),
        np.mean(example["semseg"].numpy() != now.part(seen.category)),
    )


def measured(scenes: Scenes, tasks: Mapping[str, Task]) -> dict[str, float]:
    """The quantities of `LIMITS` over all scenes."""
    transform = TrainTransform(crop=CROP, scale=(0.5, 2.0), max_class_share=1, photometric=False)
    turns, others = [], []
    for index in range(COUNT):
        example = transform(scenes.read("train", index, list(tasks)), tasks, np.random.default_rng(index))
        now, world = camera(index), scenes.scene("train", index)
        turns += angles(example, now, world.focal).tolist()
        closer = replace(world, focal=world.focal * now.factor, noise=0.0)
        others += [differences(example, now, render(closer, now.scaled, np.random.default_rng(0)))]
    assert len(turns) > 5000
    return dict(zip(LIMITS, (np.median(turns), np.quantile(turns, 0.95), *np.mean(others, axis=0)), strict=True))


class Unturned(Normals):
    def flip(self, label: Label) -> Label:
        return label[:, ::-1]


class Undivided(Depth):
    def rescale(self, label: Label, factor: float) -> Label:
        return label


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    source = Scenes(train=COUNT, val=1, size=SIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMTL_CACHE", str(tmp_path_factory.mktemp("scenes")))
        source.arrays("train")
    return source


@pytest.fixture
def tasks(scenes: Scenes) -> dict[str, Task]:
    return {name: scenes.tasks[name] for name in ("semseg", "depth", "normals")}


def too_large(found: Mapping[str, float]) -> set[str]:
    return {name for name, value in found.items() if value > LIMITS[name]}


def test_a_transformed_scene_is_what_its_camera_sees(scenes, tasks):
    """Enlarging by s and dividing depth by s is a world shrunk by s before a camera of s times the focal length."""
    found = measured(scenes, tasks)
    assert too_large(found) == set(), found


@pytest.mark.parametrize(
    ("mistaken", "seen_in"),
    [
        ({"normals": Unturned()}, {"wide angles"}),
        ({"depth": Undivided()}, {"depth"}),
    ],
)
def test_a_forgotten_rule_would_be_seen(scenes, tasks, mistaken, seen_in):
    found = measured(scenes, {**tasks, **mistaken})
    assert too_large(found) == seen_in, found


@pytest.mark.parametrize(
    ("shifted", "seen_in"),
    [("bilinear", {"image"}), ("nearest", {"wide angles", "depth", "semseg"})],
)
def test_crops_beside_one_another_would_be_seen(scenes, tasks, monkeypatch, shifted, seen_in):
    right = getattr(Window, shifted)
    monkeypatch.setattr(Window, shifted, lambda self, values: np.roll(right(self, values), 6, axis=1))
    found = measured(scenes, tasks)
    assert too_large(found) == seen_in, found
