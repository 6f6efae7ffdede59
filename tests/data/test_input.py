"""Another modality than the colour image as a model's input: where its pixels come from, and what stays as it was."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedmtl.data import DataSource, Folder, NYUDv2, PASCALContext, Scenes, TrainTransform, ValTransform
from fedmtl.data.dial import Dial
from fedmtl.data.loader import Loader, SeededBatches, StoredOrder
from fedmtl.data.transforms import own_size
from fedmtl.errors import UserError
from fedmtl.tasks import Depth, Edge, Normals, SemSeg
from fedmtl.tasks.base import Label

INPUTS = ["depth", "normals", "semseg", "edge"]


class Modal(DataSource):
    """Random images in memory; part of each label is unknown, and image 3 has no normals."""

    name = "modal"

    def __init__(self, size: tuple[int, int] = (30, 41), *, train: Any = None, val: Any = None) -> None:
        self.tasks = {"semseg": SemSeg(num_classes=4), "depth": Depth(), "normals": Normals(), "edge": Edge()}
        self.train_transform = train or TrainTransform(crop=(24, 32))
        self.val_transform = val or ValTransform()
        self.samples = [self.draw(np.random.default_rng(i), size) for i in range(4)]

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> dict[str, Label]:
        normals = rng.normal(size=(*size, 3)).astype(np.float32)
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        sample: dict[str, Label] = {
            "image": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
            "semseg": rng.integers(0, 4, size, dtype=np.uint8),
            "depth": rng.uniform(0.5, 6, size).astype(np.float32),
            "normals": normals,
            "edge": rng.integers(0, 2, size, dtype=np.uint8),
        }
        for name, task in self.tasks.items():
            sample[name][rng.random(size) < 0.2] = task.fill
        return sample

    def ids(self, split: str) -> Sequence[str]:
        return [f"picture{i}" for i in range(len(self.samples))]

    def load(self, split: str, index: int, what: str) -> Label:
        return self.samples[index][what]

    def has_label(self, split: str, index: int, task: str) -> bool:
        assert task in self.tasks
        return (index, task) != (3, "normals")


def seen(name: str, label: NDArray[Any], factor: float = 1.0) -> NDArray[np.float64]:
    """What a model should see of a label (H, W) or (H, W, 3), by the definition: (C, H, W)."""
    values = label.astype(np.float64)
    if name == "depth":
        return np.where(values > 0, (values / factor - 3.0) / 1.5, 0)[None]
    if name == "normals":
        return values.transpose(2, 0, 1)
    if name == "edge":
        return np.where(values == 255, 0, values)[None]
    return np.stack([values == c for c in range(4)]).astype(np.float64)


def nearest(label: NDArray[Any], scaled: tuple[int, int]) -> NDArray[Any]:
    """The pixel that each centre of a resized picture falls into."""
    rows, columns = (
        np.floor((np.arange(n) + 0.5) * size / n).astype(int) for n, size in zip(scaled, label.shape[:2], strict=True)
    )
    return label[rows][:, columns]


# --- training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("seed", range(8))
def test_training_input_by_its_definition(name: str, seed: int) -> None:
    """Scale, crop, flip and pad, from the random numbers that a transform draws."""
    source = Modal(train=TrainTransform(crop=(24, 32), max_class_share=1))
    found = source.view("train", ["depth"], [1], input=name)[0, seed]["image"].numpy()
    rng = np.random.default_rng(seed)
    factor = rng.uniform(0.5, 2.0)
    scaled = round(30 * factor), round(41 * factor)
    size = min(24, scaled[0]), min(32, scaled[1])
    top, left = (int(rng.integers(scaled[i] - size[i] + 1)) for i in (0, 1))
    whole = seen(name, nearest(source.samples[1][name], scaled), factor)
    expected = whole[:, top : top + size[0], left : left + size[1]]
    if rng.random() < 0.5:
        expected = expected[:, :, ::-1] * (np.array([-1, 1, 1])[:, None, None] if name == "normals" else 1)
    rows, columns = 24 - size[0], 32 - size[1]
    sides = (0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)
    np.testing.assert_allclose(found, np.pad(expected, sides), rtol=1e-5, atol=1e-6)


def test_seeds_reach_both_flips_and_both_ways_of_scaling() -> None:
    """Or the test above would show less than it says."""
    draws = [np.random.default_rng(seed) for seed in range(8)]
    factors = [rng.uniform(0.5, 2.0) for rng in draws]
    flips = []
    for rng, factor in zip(draws, factors, strict=True):
        for side, crop in ((30, 24), (41, 32)):
            rng.integers(max(0, round(side * factor) - crop) + 1)
        flips.append(rng.random() < 0.5)
    assert min(factors) < 0.78 < 1.2 < max(factors)
    assert 0 < sum(flips) < 8


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", INPUTS)
def test_targets_do_not_depend_on_the_input(name: str, split: Any) -> None:
    source = Modal()
    for seed in range(5):
        plain = source.view(split, INPUTS, [0, 1])[1, seed]
        other = source.view(split, INPUTS, [0, 1], input=name)[1, seed]
        assert list(other) == list(plain)
        assert other["image"].dtype == torch.float32
        assert other["image"].shape == (source.tasks[name].channels, *plain["image"].shape[1:])
        assert all(torch.equal(other[key], value) for key, value in plain.items() if key != "image")


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_colour_image_is_what_the_transform_alone_makes_of_it(split: Any) -> None:
    """To the bit: the default path knows nothing of other inputs."""
    source = Modal()
    transform = source.train_transform if split == "train" else source.val_transform
    for seed in range(5):
        expected = transform(source.read(split, 2, INPUTS), source.tasks, np.random.default_rng(seed))
        for view in (source.view(split, INPUTS), source.view(split, INPUTS, input="image")):
            found = view[2, seed]
            assert {key: value.numpy().tobytes() for key, value in found.items()} == {
                key: value.numpy().tobytes() for key, value in expected.items()
            }


def test_an_input_shares_no_memory_with_the_data_set() -> None:
    source = Modal(train=TrainTransform(scale=None, flip=0, photometric=False))
    for split in ("train", "val"):
        for name in INPUTS:
            before = source.samples[0][name].copy()
            source.view(split, [], [0], input=name)[0, 0]["image"].fill_(7)
            np.testing.assert_array_equal(source.samples[0][name], before)


# --- validation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(("size", "longest"), [(None, None), ((40, 48), None), (None, 20), ((32, 33), 20)])
def test_validation_input_is_framed_as_the_image(name: str, size: Any, longest: int | None) -> None:
    source = Modal(val=ValTransform(size=size, longest=longest))
    plain = source.view("val", INPUTS, [0])[0, 0]
    found = source.view("val", INPUTS, [0], input=name)[0, 0]
    assert found["image"].shape[1:] == plain["image"].shape[1:]
    top, left, height, width = found["window"].tolist()
    assert (height, width) == ((15, 20) if longest else (30, 41))
    picture = found["image"][:, top : top + height, left : left + width].numpy()
    factor = 20 / 41 if longest else 1.0  # as in training: a smaller picture is a scene farther off
    expected = seen(name, nearest(source.samples[0][name], (height, width)), factor)
    np.testing.assert_allclose(picture, expected, rtol=1e-5, atol=1e-6)
    found["image"][:, top : top + height, left : left + width] = 0
    assert (found["image"] == 0).all()
    for key in INPUTS:
        assert torch.equal(found[key], source.tasks[key].to_target(source.samples[0][key]))


def test_an_output_on_another_input_is_put_back_in_its_place() -> None:
    view = Modal(val=ValTransform(size=(40, 48))).view("val", ["normals"], [0], input="normals")
    example = view[0, 0]
    found = own_size(example["image"][None], example["window"].tolist(), (30, 41))
    assert torch.equal(found[0], example["normals"])


# --- views and the loader ------------------------------------------------------------------------------------


def test_a_view_tells_its_input() -> None:
    source = Modal()
    channels = {name: source.view("val", ["depth"], [0], input=name).channels for name in ("image", *INPUTS)}
    assert channels == {"image": 3, "depth": 1, "normals": 3, "semseg": 4, "edge": 1}
    view = source.view("val", ["depth", "edge"], [0, 1], prefix="modal_", input="normals")
    part = view.only(["modal_edge"])
    assert (view.input, part.input, source.view("val", []).input) == ("normals", "normals", "image")
    assert torch.equal(part[1, 0]["image"], view[1, 0]["image"])
    assert set(part[1, 0]) == {"image", "window", "modal_edge"}


def test_pictures_show_the_colour_image() -> None:
    source = Modal()
    sample = source.view("val", ["depth"], [1], input="normals").sample(0)
    assert list(sample) == ["image", "depth"]
    assert sample["image"] is source.samples[1]["image"]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_views_that_differ_in_their_input(workers: int) -> None:
    source, asked = Modal(), []
    for name in ("depth", "image", "normals"):
        train, val = (source.view(split, ["edge"], [2, 0, 1], input=name) for split in ("train", "val"))
        asked += [(train, keys) for keys in SeededBatches(3, 2, seed=0, keys=("a", 1, 0))]
        asked += [(val, keys) for keys in StoredOrder(3, 2)]
    found = list(Loader(workers=workers)(asked))
    assert [batch["image"].shape[1] for (batch,) in found] == [1, 1, 1, 3, 3, 3, 3, 3, 3]
    for (view, keys), (batch,) in zip(asked, found, strict=True):
        assert set(batch) == set(view[keys[0]])
        for key, value in batch.items():
            assert torch.equal(value, torch.stack([view[position][key] for position in keys]))


def test_a_modality_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"^modal has no 'thermal'; it has semseg, depth, normals, edge$"):
        Modal().view("train", ["depth"], input="thermal")


def test_an_image_without_the_modality_is_refused() -> None:
    source = Modal()
    with pytest.raises(UserError) as caught:
        source.view("train", ["depth"], [1, 3], input="normals")
    assert str(caught.value) == (
        "input: 1 of 2 images of modal have no normals that a model could read, the first is picture3 of train; "
        "read another input, or leave these images out"
    )
    source.view("train", ["normals"], [1, 3])
    source.view("train", ["depth"], [1, 2], input="normals")


# --- all data sets -------------------------------------------------------------------------------------------


@pytest.fixture
def make_source(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], DataSource]:
    monkeypatch.setenv("FEDMTL_CACHE", str(tmp_path))

    def make(name: str) -> DataSource:
        if name == "scenes":
            return Scenes(train=3, val=2, size=(24, 40), dials={"mix": Dial("depth", 0.5)})
        if name == "nyud":
            return NYUDv2(request.getfixturevalue("nyud_root")(), crop=(32, 48))
        if name == "pascal":
            return PASCALContext(request.getfixturevalue("pascal_root")(), crop=(32, 48))
        return Folder(request.getfixturevalue("delta") / "delta", crop=(48, 48), longest=40)

    return make


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("scenes", ["depth", "normals", "edge", "mix"]),
        ("nyud", ["depth", "normals", "edge"]),
        ("pascal", ["normals", "edge"]),
        ("folder", None),
    ],
)
def test_every_data_set_gives_its_modalities(make_source: Callable[..., Any], name: str, inputs: Any) -> None:
    """In training, an input is what the target of the same seed says."""
    source = make_source(name)
    for modality in inputs or list(source.tasks):
        task = source.tasks[modality]
        usable = {split: [i for i in (0, 1) if source.has_label(split, i, modality)] for split in ("train", "val")}
        train, val = (source.view(split, [modality], usable[split], input=modality) for split in usable)
        example = train[0, 5]
        assert torch.equal(example["image"], task.to_input(example[modality]))
        example, plain = val[0, 0], source.view("val", [modality], usable["val"])[0, 0]
        assert example["image"].shape == (val.channels, *plain["image"].shape[1:])
        assert torch.equal(example["window"], plain["window"])
        assert (example["image"] != 0).any()


def test_missing_files_of_an_input_are_found_before_training(nyud_root: Callable[..., Path]) -> None:
    root = nyud_root()
    (root / "depth" / "0002.npy").unlink()
    source = NYUDv2(root)
    source.view("train", ["normals"])
    with pytest.raises(UserError, match=r"0002.npy: no such file, 1 of the 4 depth labels"):
        source.view("train", ["normals"], input="depth")
