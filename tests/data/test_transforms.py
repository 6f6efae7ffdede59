import colorsys
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from fedmtl.data.source import Example, Sample
from fedmtl.data.transforms import MEAN, STD, TrainTransform, ValTransform, Window, distort_colours, own_size
from fedmtl.tasks import Depth, Edge, Normals, Parts, Saliency, SemSeg, Task

TASKS: dict[str, Task] = {
    "semseg": SemSeg(num_classes=5),
    "parts": Parts(num_classes=3),
    "saliency": Saliency(),
    "depth": Depth(),
    "normals": Normals(),
    "edge": Edge(),
}


def random_sample(height: int, width: int, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(height, width, 3)).astype(np.float32)
    return {
        "image": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "semseg": rng.integers(0, 5, (height, width), dtype=np.uint8),
        "parts": rng.integers(0, 3, (height, width), dtype=np.uint8),
        "saliency": rng.integers(0, 2, (height, width), dtype=np.uint8),
        "depth": rng.uniform(0.5, 5, (height, width)).astype(np.float32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
        "edge": rng.integers(0, 2, (height, width), dtype=np.uint8),
    }


def plain(**changes: object) -> TrainTransform:
    """A transform that does nothing but what `changes` ask for."""
    options: dict[str, object] = {"scale": None, "flip": 0.0, "photometric": False}
    return TrainTransform(**{**options, **changes})  # type: ignore[arg-type]


def apply(transform: TrainTransform, sample: Sample, tasks: Mapping[str, Task] = TASKS, seed: int = 0) -> Example:
    return transform(sample, tasks, np.random.default_rng(seed))


def pixels(example: Example) -> torch.Tensor:
    """The image in 0…255 again."""
    return example["image"] * STD + MEAN


def assert_same(first: Example, second: Example) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


# --- geometry ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    factor=st.floats(0.5, 2.0),
    crop=st.none() | st.tuples(st.integers(8, 100), st.integers(8, 100)),
    flip=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_image_and_labels_show_the_same_place(size, factor, crop, flip, seed):
    """Each pixel holds its own coordinates; a ramp survives bilinear interpolation unchanged."""
    rows, columns = np.meshgrid(*map(np.arange, size), indexing="ij")
    image = np.stack([columns * 2, rows * 2, rows * 0], axis=-1).astype(np.uint8)
    sample: Sample = {"image": image, "x": columns.astype(np.float32), "y": rows.astype(np.float32)}
    example = apply(plain(crop=crop, scale=(factor, factor), flip=flip), sample, {"x": Edge(), "y": Edge()}, seed)
    assert crop is None or example["image"].shape[1:] == crop
    found = pixels(example)[:2] / 2
    truth = torch.cat([example["x"], example["y"]])
    inside = (truth != Edge.fill).all(0)
    assert inside.any()
    for axis, length in enumerate((size[1], size[0])):
        clear = inside & (truth[axis] >= 2) & (truth[axis] < length - 2)  # the ramp ends at the border
        # half a pixel by rounding to the nearest pixel, a quarter by rounding to 8 bits
        assert ((found - truth)[axis][clear].abs() <= 0.5 + 0.25 + 1e-3).all()


@pytest.mark.parametrize("factor", [0.513, 0.737, 1.37, 1.913])
def test_image_and_labels_have_no_offset_on_average(factor):
    """A wrong pixel-centre convention would show as a constant shift."""
    columns = np.tile(np.arange(120, dtype=np.float32), (40, 1))
    sample: Sample = {"image": np.repeat(columns[..., None] * 2, 3, -1).astype(np.uint8), "x": columns}
    for flip in (0.0, 1.0):
        example = apply(plain(scale=(factor, factor), flip=flip), sample, {"x": Edge()})
        clear = (example["x"][0] > 2) & (example["x"][0] < 117)
        assert abs((pixels(example)[0] / 2 - example["x"][0])[clear].mean()) < 0.03


@pytest.mark.parametrize("scaled", [(30, 41), (73, 95), (37, 53), (128, 77), (11, 9)])
def test_window_is_the_crop_of_the_resized_whole(scaled):
    sample = random_sample(37, 53)
    image, normals = sample["image"], sample["normals"]
    window = Window(image, scaled)
    whole = np.asarray(Image.fromarray(image).resize(scaled[::-1], Image.Resampling.BILINEAR))
    nearest = F.interpolate(torch.from_numpy(normals).permute(2, 0, 1)[None], scaled, mode="nearest-exact")
    for start, size in [((0, 0), scaled), ((3, 2), (5, 6)), ((scaled[0] - 5, scaled[1] - 7), (5, 7))]:
        window.start, window.size = start, size
        part = slice(start[0], start[0] + size[0]), slice(start[1], start[1] + size[1])
        np.testing.assert_allclose(window.bilinear(image).astype(int), whole[part].astype(int), atol=1)
        np.testing.assert_array_equal(window.nearest(normals), nearest[0].permute(1, 2, 0).numpy()[part])


def test_nothing_asked_for_changes_nothing():
    sample = random_sample(13, 17)
    example = apply(plain(), sample)
    expected = tv.normalize(
        tv.to_dtype(tv.to_image(sample["image"]), torch.float32, scale=True),
        [0.485, 0.456, 0.406],
        [0.229, 0.224, 0.225],
    )
    torch.testing.assert_close(example["image"], expected.as_subclass(torch.Tensor))
    for name, task in TASKS.items():
        torch.testing.assert_close(example[name], task.to_target(sample[name]), rtol=0, atol=0)


def test_depth_is_divided_by_the_factor_and_flip_negates_x():
    sample = random_sample(12, 16)
    example = apply(plain(scale=(3.0, 3.0), flip=1.0), sample)
    np.testing.assert_array_equal(example["depth"][0, 1::3, 1::3], sample["depth"][:, ::-1] / np.float32(3))
    expected = sample["normals"][:, ::-1] * np.array([-1, 1, 1], np.float32)
    np.testing.assert_array_equal(example["normals"][:, 1::3, 1::3], expected.transpose(2, 0, 1))
    assert example["normals"].norm(dim=0).sub(1).abs().max() < 1e-5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(20, 30), (9, 1)])
def test_sample_is_left_as_it_was(size):
    """It may be part of a read-only cache."""
    sample = random_sample(*size)
    before = {name: value.copy() for name, value in sample.items()}
    for value in sample.values():
        value.flags.writeable = False
    for seed in range(5):
        apply(TrainTransform(crop=(16, 16)), sample, seed=seed)
    for value in (*apply(plain(), sample).values(), *apply(plain(flip=1.0), sample).values()):
        value.zero_()
    assert all(np.array_equal(sample[name], before[name]) for name in sample)


def test_random_numbers_come_from_the_generator_alone():
    sample, transform = random_sample(40, 50), TrainTransform(crop=(32, 32))
    first = apply(transform, sample, seed=7)
    torch.manual_seed(1)
    assert_same(first, apply(transform, sample, seed=7))
    assert not torch.equal(first["image"], apply(transform, sample, seed=8)["image"])


def test_factors_and_flips_are_drawn_as_asked():
    columns = np.tile(np.arange(100, dtype=np.float32), (4, 1))
    sample: Sample = {"image": np.zeros((4, 100, 3), np.uint8), "x": columns}
    examples = [apply(plain(scale=(0.5, 2.0), flip=0.3), sample, {"x": Edge()}, seed) for seed in range(300)]
    sizes = [example["x"].shape[-1] for example in examples]
    assert 50 <= min(sizes) < 55
    assert 195 < max(sizes) <= 200
    assert abs(np.mean(sizes) - 125) < 8
    assert 0.2 < np.mean([bool(example["x"][0, 0, 0] > 50) for example in examples]) < 0.4


def test_crop_reaches_every_place():
    columns = np.tile(np.arange(12, dtype=np.float32), (9, 1))
    sample: Sample = {"image": np.zeros((9, 12, 3), np.uint8), "x": columns}
    corners = {float(apply(plain(crop=(9, 8)), sample, {"x": Edge()}, seed)["x"][0, 0, 0]) for seed in range(100)}
    assert corners == {0, 1, 2, 3, 4}


# --- the share of a class in a crop --------------------------------------------------------------------------


def largest_share(classes: torch.Tensor) -> float:
    counts = torch.bincount(classes[classes != 255], minlength=1)
    return float(counts.max() / counts.sum().clamp(min=1))


@pytest.mark.parametrize(("kind", "head"), [("semseg", "semseg"), ("parts", "parts"), ("semseg", "nyud_semseg")])
def test_crop_avoids_one_class_filling_it(kind, head):
    sample = {**random_sample(64, 64), head: np.zeros((64, 64), np.uint8)}
    sample[head][:, 32:] = np.arange(64)[:, None] % 3
    sample[head][:8] = 255

    def shares(limit: float) -> list[float]:
        transform = plain(crop=(16, 16), max_class_share=limit)
        return [largest_share(apply(transform, sample, {head: TASKS[kind]}, seed)[head]) for seed in range(200)]

    assert max(shares(0.75)) <= 0.75
    assert np.mean(np.array(shares(1)) > 0.75) > 0.2


def test_crop_share_is_of_known_pixels():
    """On the left, one class fills half of the pixels, but all of the known ones."""
    sample = random_sample(8, 40)
    sample["semseg"] = np.where(np.arange(40) % 2 == 0, 0, np.where(np.arange(40) < 20, 255, 2))[None].repeat(8, 0)
    for share, worst in [(0.75, 0.75), (1, 1)]:
        crops = [apply(plain(crop=(8, 10), max_class_share=share), sample, seed=seed)["semseg"] for seed in range(50)]
        assert worst - 0.1 < max(map(largest_share, crops)) <= worst


def test_crop_of_unknown_pixels_only_is_drawn_anew():
    sample = random_sample(8, 40)
    sample["semseg"][:, :20] = 255
    crops = [apply(plain(crop=(8, 10)), sample, seed=seed)["semseg"] for seed in range(50)]
    assert all((crop != 255).any() for crop in crops)


def test_crop_gives_up_after_ten_tries():
    sample = random_sample(32, 32)
    sample["semseg"] = np.zeros((32, 32), np.uint8)
    rng = np.random.default_rng(0)
    example = plain(crop=(16, 16))(sample, TASKS, rng)
    assert (example["semseg"] == 0).all()
    expected = np.random.default_rng(0)
    for _ in range(10):
        expected.integers(17), expected.integers(17)
    expected.random()
    assert rng.bit_generator.state == expected.bit_generator.state


# --- colours -------------------------------------------------------------------------------------------------


def test_colours_leave_labels_alone():
    sample = random_sample(24, 24)
    with_colours, without = (apply(plain(crop=(16, 16), photometric=flag), sample, seed=3) for flag in (True, False))
    assert not torch.equal(with_colours.pop("image"), without.pop("image"))
    assert_same(with_colours, without)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_colours_stay_8_bit(seed):
    image = random_sample(16, 16, seed)["image"]
    changed = distort_colours(image, np.random.default_rng(seed))
    assert changed.dtype == np.uint8
    assert changed.shape == image.shape
    restored = pixels(apply(plain(photometric=True), random_sample(16, 16), seed=seed))
    torch.testing.assert_close(restored, restored.round().clamp(0, 255), rtol=0, atol=1e-3)


def test_brightness_and_contrast_ranges():
    grey = np.full((1, 1, 3), 100, np.uint8)
    values = np.stack([distort_colours(grey, np.random.default_rng(seed))[0, 0] for seed in range(2000)]).astype(int)
    assert (np.ptp(values, axis=1) == 0).all()  # neither hue nor saturation can colour a grey
    assert 34 <= values.min() < 46
    assert 184 < values.max() <= 198
    assert 0.2 < (values[:, 0] == 100).mean() < 0.3  # neither brightness nor contrast: a quarter


def test_hue_range():
    colour = np.array([[[130, 80, 40]]], np.uint8)  # never cut off at 0 or 255
    hue = colorsys.rgb_to_hsv(130, 80, 40)[0] * 360
    turns = []
    for seed in range(1000):
        red, green, blue = distort_colours(colour, np.random.default_rng(seed))[0, 0].astype(float)
        turns.append((colorsys.rgb_to_hsv(red, green, blue)[0] * 360 - hue + 180) % 360 - 180)
    rounding = 4  # degrees, of 8-bit values at low brightness
    assert -36 - rounding <= min(turns) < -32
    assert 32 < max(turns) <= 36 + rounding
    assert 0.4 < (np.abs(turns) < rounding).mean() < 0.7


def test_saturation_range():
    colour = np.array([[[200, 150, 150]]], np.uint8)
    ratios = []
    for seed in range(1000):
        changed = distort_colours(colour, np.random.default_rng(seed))[0, 0].astype(float)
        if 200 > changed.max() > 60:  # not cut off by brightness or contrast
            ratios.append((1 - changed.min() / changed.max()) / 0.25)
    assert min(ratios) > 0.3
    assert np.quantile(ratios, 0.02) < 0.65
    assert np.quantile(ratios, 0.98) > 1.35


# --- padding -------------------------------------------------------------------------------------------------


def prepare(transform: ValTransform, sample: Sample) -> Example:
    return transform(sample, TASKS, np.random.default_rng(0))


def test_validation_pads_the_image_alone():
    sample = random_sample(5, 8)
    example, bare = prepare(ValTransform(size=(8, 11)), sample), prepare(ValTransform(), sample)
    assert example["image"].shape == (3, 8, 11)
    assert example["window"].tolist() == [1, 1, 5, 8]
    assert torch.equal(example["image"][:, 1:6, 1:9], bare.pop("image"))
    outside = example.pop("image")
    outside[:, 1:6, 1:9] = 0
    assert (outside == 0).all()
    assert bare.pop("window").tolist() == [0, 0, 5, 8]
    del example["window"]
    assert_same(example, bare)
    assert_same(example, {name: task.to_target(sample[name]) for name, task in TASKS.items()})


def test_validation_never_cuts():
    example = prepare(ValTransform(size=(8, 8)), random_sample(12, 6))
    assert example["image"].shape == (3, 12, 8)
    assert example["window"].tolist() == [0, 1, 12, 6]
    assert example["semseg"].shape == (12, 6)


@pytest.mark.parametrize("size", [None, (64, 64)])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (30, 30), (7, 200)])
def test_large_images_are_shrunk_and_their_labels_kept(shape, size):
    sample = random_sample(*shape)
    example = prepare(ValTransform(size=size, longest=30), sample)
    expected = tuple(max(1, round(side * 30 / max(shape))) for side in shape)
    top, left, height, width = example["window"].tolist()
    assert (height, width) == expected
    assert max(expected) == 30
    assert example["image"].shape[1:] == (size or expected)
    small = Image.fromarray(sample["image"]).resize(expected[::-1], Image.Resampling.BILINEAR)
    inner = pixels(example)[:, top : top + height, left : left + width]
    torch.testing.assert_close(inner, tv.pil_to_tensor(small).float(), rtol=0, atol=1e-3)
    for name, task in TASKS.items():
        torch.testing.assert_close(example[name], task.to_target(sample[name]), rtol=0, atol=0)


def test_small_images_are_not_enlarged():
    sample = random_sample(20, 30)
    assert_same(prepare(ValTransform(longest=30), sample), prepare(ValTransform(), sample))


@pytest.mark.parametrize("size", [None, (48, 80)])
def test_own_size_takes_the_padding_off(size):
    sample = random_sample(37, 53)
    example = prepare(ValTransform(size=size), sample)
    found = own_size(example["image"][None], example["window"].tolist(), (37, 53))
    assert torch.equal(found[0], prepare(ValTransform(), sample)["image"])


@pytest.mark.parametrize("shape", [(80, 120), (121, 77)])
def test_own_size_puts_everything_back_in_its_place(shape):
    """A ramp survives both shrinking and enlarging unchanged, but for its ends."""
    rows, columns = np.meshgrid(*map(np.arange, shape), indexing="ij")
    sample = {**random_sample(*shape), "image": np.stack([columns * 2, rows * 2, rows * 0], axis=-1).astype(np.uint8)}
    example = prepare(ValTransform(size=(64, 64), longest=48), sample)
    found = own_size(pixels(example)[None], example["window"].tolist(), shape)[0]
    assert found.shape == (3, *shape)
    for axis, ramp in enumerate((columns, rows)):
        difference = (found[axis] / 2 - torch.from_numpy(ramp))[4:-4, 4:-4]
        assert difference.abs().max() < 0.3  # of a pixel, by rounding to 8 bits
        assert abs(difference.mean()) < 0.03


def test_train_pads_what_is_too_small():
    sample = random_sample(10, 40)
    example = apply(plain(crop=(17, 20)), sample)
    assert {value.shape[-2:] for value in example.values()} == {(17, 20)}
    for name, value in example.items():
        outside = torch.cat([value[..., :3, :], value[..., 13:, :]], dim=-2)
        assert (outside == (0 if name == "image" else TASKS[name].fill)).all()
    assert (example["semseg"][3:13] != 255).all()


@pytest.mark.parametrize("name", TASKS)
def test_padding_never_counts(name):
    sample, task = random_sample(9, 14), TASKS[name]
    bare, padded = (apply(plain(crop=crop), sample, {name: task})[name][None] for crop in (None, (16, 20)))
    output = torch.randn(1, task.channels, 16, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(task.loss(output, padded), task.loss(output[..., 3:12, 3:17], bare))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("crop", (0, 5)),
        ("crop", (5,)),
        ("crop", (5.5, 5)),
        ("scale", (0.0, 1.0)),
        ("scale", (2.0, 1.0)),
        ("scale", (1.0, float("inf"))),
        ("scale", (float("nan"), 1.0)),
        ("max_class_share", 0.0),
        ("max_class_share", 1.1),
        ("flip", -0.1),
        ("flip", float("nan")),
    ],
)
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=f"^{argument} must be"):
        TrainTransform(**{argument: value})


def test_wrong_sizes_of_validation_are_named():
    for argument, value in (("size", (-1, 4)), ("longest", 0)):
        with pytest.raises(ValueError, match=f"^{argument} must be"):
            ValTransform(**{argument: value})
