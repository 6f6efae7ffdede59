"""The built-in scenes: reproducible to the byte, and labels that agree with the geometry and with one another."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmtl.data import raycast
from fedmtl.data.rooms import CLASSES, PARTS
from fedmtl.data.scenes import Scenes
from fedmtl.data.source import DataSource
from fedmtl.tasks import SemSeg

SIZE = 128
DOMAINS = ["day", "night"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDMTL_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module", params=DOMAINS)
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    source = Scenes(train=24, val=1, size=SIZE, domain=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMTL_CACHE", str(tmp_path_factory.mktemp("scenes")))
        source.arrays("train")
    return source


@pytest.fixture(scope="module", params=DOMAINS)
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMTL_CACHE", str(tmp_path_factory.mktemp("scenes")))
        return Scenes(train=200, val=1, domain=request.param).arrays("train")


def digest(source: Scenes, count: int | None = None, split: str = "train") -> str:
    arrays = source.arrays(split)
    return hashlib.sha256(b"".join(arrays[name][:count].tobytes() for name in sorted(arrays))).hexdigest()


def grow(mask: NDArray[np.bool_], steps: int = 1) -> NDArray[np.bool_]:
    """The mask and its neighbours."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        height, width = mask.shape
        mask = np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    return mask


# --- reproducibility ---------------------------------------------------------------------------------------


def test_same_seed_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digest(Scenes(train=4, val=1, size=32))
    monkeypatch.setenv("FEDMTL_CACHE", str(folder / "other"))
    assert digest(Scenes(train=4, val=1, size=32)) == first


def test_smaller_set_is_the_start_of_a_larger_one() -> None:
    assert digest(Scenes(train=3, val=1, size=32)) == digest(Scenes(train=70, val=1, size=32), count=3)


def test_chunks_play_no_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digest(Scenes(train=5, val=1, size=(40, 56)))
    monkeypatch.setenv("FEDMTL_CACHE", str(folder / "other"))
    monkeypatch.setattr(raycast, "RAYS", 600)
    assert digest(Scenes(train=5, val=1, size=(40, 56))) == first


def test_seed_split_and_domain_matter() -> None:
    base = Scenes(train=2, val=2, size=32)
    others = [Scenes(train=2, val=2, size=32, seed=1), Scenes(train=2, val=2, size=32, domain="night")]
    assert len({digest(base), digest(base, split="val"), *map(digest, others)}) == 4


def test_sizes_show_the_same_world() -> None:
    small, large = Scenes(train=3, val=1, size=32), Scenes(train=3, val=1, size=96)
    coarse, fine = small.arrays("train")["depth"], large.arrays("train")["depth"][:, 1::3, 1::3]
    assert np.allclose(coarse, fine, rtol=1e-4) or np.mean(np.abs(coarse - fine) < 1e-3) > 0.99


# --- geometry ----------------------------------------------------------------------------------------------


def test_normals_are_those_of_the_depth(large: Scenes) -> None:
    arrays, errors = large.arrays("train"), []
    v, u = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    for i, depth in enumerate(arrays["depth"].astype(np.float64)):
        focal = large.scene("train", i).focal
        points = np.stack([u / focal * depth, v / focal * depth, depth], axis=-1)
        right, down = np.zeros_like(points), np.zeros_like(points)
        right[:, 1:-1] = points[:, 2:] - points[:, :-2]
        down[1:-1] = points[2:] - points[:-2]
        normal = np.cross(down, right)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True).clip(1e-12)
        interior = ~grow(arrays["edge"][i] == 1)
        interior[[0, -1]] = interior[:, [0, -1]] = False
        cosine = np.sum(normal * arrays["normals"][i], axis=-1)[interior]
        errors.append(np.degrees(np.arccos(cosine.clip(-1, 1))))
    pooled = np.concatenate(errors)
    assert np.median(pooled) < 0.5
    assert np.quantile(pooled, 0.95) < 3


def test_normals_are_unit_and_face_the_camera(large: Scenes) -> None:
    arrays = large.arrays("train")
    normals = arrays["normals"].astype(np.float32)
    assert np.abs(np.linalg.norm(normals, axis=-1) - 1).max() < 2e-3
    v, u = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    for i, normal in enumerate(normals):
        focal = large.scene("train", i).focal
        assert (normal[..., 0] * u / focal + normal[..., 1] * v / focal + normal[..., 2] < 2e-3).all()


def test_points_lie_in_the_room(large: Scenes) -> None:
    v, u = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    for i, depth in enumerate(large.arrays("train")["depth"]):
        scene = large.scene("train", i)
        rays = np.stack([u / scene.focal, v / scene.focal, np.ones_like(u)], axis=-1) @ scene.axes
        points = scene.camera + depth[..., None] * rays
        assert depth.min() > 0.1
        assert (points > -1e-3).all()
        assert (points < 2 * scene.half[0] + 1e-3).all()


def test_classes_follow_from_the_place(large: Scenes) -> None:
    """Floor points are at height 0 and face up, ceiling points are at the top and face down."""
    arrays = large.arrays("train")
    v, u = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    for i in range(len(arrays["depth"])):
        scene = large.scene("train", i)
        rays = np.stack([u / scene.focal, v / scene.focal, np.ones_like(u)], axis=-1) @ scene.axes
        height = scene.camera[2] + arrays["depth"][i] * rays[..., 2]
        up = arrays["normals"][i].astype(np.float32) @ scene.axes[:, 2]
        for name, level, facing in [("floor", 0, 1), ("ceiling", 2 * scene.half[0, 2], -1)]:
            chosen = arrays["semseg"][i] == CLASSES.index(name)
            assert np.allclose(height[chosen], level, atol=1e-3)
            assert np.allclose(up[chosen], facing, atol=2e-3)
        assert np.allclose(up[arrays["semseg"][i] == CLASSES.index("wall")], 0, atol=2e-3)


def test_camera_frame_is_right_handed() -> None:
    for i in range(20):
        right, down, forward = Scenes().scene("train", i).axes
        assert np.allclose(np.cross(right, down), forward, atol=1e-5)
        assert right[2] == 0
        assert down[2] < 0


# --- labels ------------------------------------------------------------------------------------------------


def test_all_classes_and_parts_appear(many: dict[str, NDArray]) -> None:
    pictures = np.stack([[(image == c).any() for c in range(len(CLASSES))] for image in many["semseg"]])
    assert (pictures.mean(axis=0) > 0.1).all()
    assert set(np.unique(many["semseg"])) == set(range(len(CLASSES)))
    assert set(np.unique(many["parts"])) == set(range(len(PARTS)))


def test_parts_belong_to_their_objects(many: dict[str, NDArray]) -> None:
    for number, name in enumerate(CLASSES):
        parts = set(np.unique(many["parts"][many["semseg"] == number]))
        own = {i for i, part in enumerate(PARTS) if part.split()[0] == name}
        assert parts == (own or {0})


def test_every_picture_has_a_salient_object(many: dict[str, NDArray]) -> None:
    pixels = many["saliency"].reshape(len(many["saliency"]), -1).sum(axis=1)
    assert pixels.min() >= 8
    for classes, salient in zip(many["semseg"], many["saliency"] == 1, strict=True):
        (category,) = np.unique(classes[salient])  # a single object
        assert CLASSES[category] not in ("wall", "floor", "ceiling", "picture")


def test_the_salient_object_is_saturated(many: dict[str, NDArray]) -> None:
    """A pixel's chroma alone tells it apart in most pictures."""
    image = many["image"].astype(np.float32)
    chroma = (image.max(axis=-1) - image.min(axis=-1)) / image.max(axis=-1).clip(1)
    wins = [np.median(c[s]) > np.quantile(c[~s], 0.9) for c, s in zip(chroma, many["saliency"] == 1, strict=True)]
    assert np.mean(wins) > 0.8


def test_edges_are_where_geometry_breaks(large: Scenes) -> None:
    arrays = large.arrays("train")
    for i in range(len(arrays["edge"])):
        edge, depth = arrays["edge"][i] == 1, arrays["depth"][i]
        normal, label = arrays["normals"][i].astype(np.float32), arrays["semseg"][i]
        near = grow(edge)
        assert 0.01 < edge.mean() < 0.2
        for axis in (0, 1):
            ahead = np.s_[1:] if axis == 0 else np.s_[:, 1:]
            back = np.s_[:-1] if axis == 0 else np.s_[:, :-1]
            inverse = 1 / depth  # varies linearly over a plane's picture, so its curvature marks a break
            jump = np.abs(inverse[ahead] - inverse[back]) > 0.25 * np.maximum(inverse[ahead], inverse[back])
            turn = (normal[ahead] * normal[back]).sum(axis=-1) < 0.5
            other = label[ahead] != label[back]
            for found in (jump & other, turn & other, other):
                assert (edge[ahead] | edge[back])[found].all()
            assert near[ahead][turn].mean() > 0.9  # a ball's rim may turn fast without a border


def test_edges_are_thin_and_mirror(large: Scenes) -> None:
    scene = large.scene("train", 0)
    seen = raycast.render(scene, (SIZE, SIZE), np.random.default_rng(0))
    edge = raycast.boundaries(seen.surface, seen.depth)
    mirrored = raycast.boundaries(seen.surface[:, ::-1], seen.depth[:, ::-1])
    assert (edge == mirrored[:, ::-1]).all()
    blocks = edge[:-2, :-2] & edge[1:-1, 1:-1] & edge[2:, 2:] & edge[:-2, 2:] & edge[2:, :-2]
    assert blocks.mean() < 0.005


def test_domains_differ() -> None:
    day, night = (Scenes(train=30, val=1, size=32, domain=domain) for domain in DOMAINS)
    assert day.arrays("train")["image"].mean() > night.arrays("train")["image"].mean() + 30
    assert day.scene("train", 0).camera[2] > 1.2 > 1 > night.scene("train", 0).camera[2]


# --- the source --------------------------------------------------------------------------------------------


def test_read_gives_what_was_asked_for() -> None:
    source = Scenes(train=2, val=1, size=(24, 40))
    assert source.ids("train") == ["000000", "000001"]
    assert not source._arrays  # neither construction nor names render
    sample = source.read("val", 0, ["normals", "depth"])
    assert {name: (a.shape, a.dtype) for name, a in sample.items()} == {
        "image": ((24, 40, 3), np.uint8),
        "normals": ((24, 40, 3), np.float16),
        "depth": ((24, 40), np.float32),
    }
    assert set(source.read("train", 1, list(source.tasks))) == {"image", *source.tasks}
    assert source.where("val", 0, "depth") == DataSource.where(source, "val", 0, "depth")
    example = source.view("train", ["semseg", "edge"])[(0, 0)]
    assert example["image"].shape == (3, 24, 40)
    assert example["semseg"].shape == (24, 40)


def test_a_view_is_rendered_before_worker_processes_start() -> None:
    source = Scenes(train=2, val=1, size=16)
    source.view("train", ["depth"])
    assert list(source._arrays) == ["train"]


def test_cache_is_shared_and_mended(folder: Path) -> None:
    first = Scenes(train=3, val=1, size=32)
    expected = digest(first)
    (entry,) = folder.iterdir()
    stamp = (entry / "depth.npy").stat().st_mtime_ns
    assert digest(Scenes(train=3, val=1, size=32)) == expected
    assert (entry / "depth.npy").stat().st_mtime_ns == stamp
    (entry / "depth.npy").write_bytes((entry / "depth.npy").read_bytes()[:1000])
    assert digest(Scenes(train=3, val=1, size=32)) == expected


def test_without_a_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    expected = digest(Scenes(train=3, val=1, size=32))
    (folder / "file").touch()
    monkeypatch.setenv("FEDMTL_CACHE", str(folder / "file"))
    source = Scenes(train=3, val=1, size=32)
    assert digest(source) == expected
    assert "kept in memory" in caplog.text
    assert pickle.loads(pickle.dumps(source))._arrays


def test_pickle_leaves_the_files_alone() -> None:
    source = Scenes(train=3, val=1, size=32)
    expected, data = digest(source), pickle.dumps(source)
    assert len(data) < 20_000
    assert digest(pickle.loads(data)) == expected


def test_tasks() -> None:
    tasks = Scenes(tasks={"semseg": SemSeg(num_classes=10, weight=3)}).tasks
    assert list(tasks) == ["semseg", "depth", "normals", "edge", "saliency", "parts"]
    assert tasks["semseg"].weight == 3
    assert tasks["semseg"].channels == len(CLASSES)
    assert tasks["parts"].channels == len(PARTS)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Scenes(train=0), "train"),
        (lambda: Scenes(val=-1), "val"),
        (lambda: Scenes(size=4), "size"),
        (lambda: Scenes(size=(64, 1024)), "size"),
        (lambda: Scenes(size=(64, 64, 3)), "size"),  # type: ignore[arg-type]
        (lambda: Scenes(seed=-1), "seed"),
        (lambda: Scenes(domain="dusk"), "domain"),  # type: ignore[arg-type]
        (lambda: Scenes(tasks={"flow": SemSeg(num_classes=2)}), "tasks"),
        (lambda: Scenes(flip=2), "flip"),
    ],
)
def test_bad_arguments(make: Callable[[], Scenes], argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^{argument} [^\n]*$"):
        make()
