"""Which images and seeds make up an epoch, and batches that are the same whoever makes them."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmtl.data import NYUDv2, View
from fedmtl.data.loader import Key, Loader, SeededBatches, StoredOrder, pieces
from fedmtl.data.source import Example
from fedmtl.errors import UserError

KEYS = ("depth", 1, 0)


def positions(order: Any) -> list[int]:
    return [position for batch in order for position, _ in batch]


# --- order and seeds -----------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 50))
def test_an_epoch_shows_images_once_in_full_batches(size: int, batch_size: int) -> None:
    order = SeededBatches(size, batch_size, seed=0, keys=KEYS)
    found = list(order)
    full = min(batch_size, size)
    assert len(found) == len(order) == size // full
    assert {len(batch) for batch in found} == {full}
    shown = positions(order)
    assert len(set(shown)) == len(shown)
    assert set(shown) <= set(range(size))


def test_the_images_left_out_differ_between_epochs() -> None:
    shown = [set(positions(SeededBatches(9, 8, seed=0, keys=("depth", round, 0)))) for round in range(20)]
    assert set().union(*shown) == set(range(9))
    assert len({frozenset(epoch) for epoch in shown}) > 3


@pytest.mark.parametrize(
    ("seed", "keys"), [(1, KEYS), (0, ("semseg", 1, 0)), (0, ("depth", 2, 0)), (0, ("depth", 1, 1))]
)
def test_order_and_augmentation_change_with_every_key(seed: int, keys: Any) -> None:
    first = [key for batch in SeededBatches(16, 4, seed=0, keys=KEYS) for key in batch]
    other = [key for batch in SeededBatches(16, 4, seed=seed, keys=keys) for key in batch]
    assert [position for position, _ in first] != [position for position, _ in other]
    assert not {augmentation for _, augmentation in first} & {augmentation for _, augmentation in other}


def test_an_epoch_repeats_whatever_else_was_drawn() -> None:
    order = SeededBatches(16, 4, seed=0, keys=KEYS)
    first = list(order)
    np.random.default_rng().random(7)
    torch.rand(3)
    assert list(order) == list(SeededBatches(16, 4, seed=0, keys=KEYS)) == first


def test_an_images_augmentation_does_not_depend_on_the_batch_size() -> None:
    small, large = ({i: s for batch in SeededBatches(16, n, seed=0, keys=KEYS) for i, s in batch} for n in (2, 8))
    assert small == large
    assert len(set(small.values())) == 16


@given(st.integers(0, 40), st.integers(1, 50))
def test_stored_order_is_every_image_once(size: int, batch_size: int) -> None:
    order = StoredOrder(size, batch_size)
    assert positions(order) == list(range(size))
    assert len(list(order)) == len(order)
    assert all(len(batch) <= batch_size for batch in order)


def test_a_views_augmentation_depends_on_its_key_alone(tiny_source: Callable[..., Any]) -> None:
    view = tiny_source().view("train", ["depth"], [5, 2, 7])
    first = view[1, 99]
    view[0, 3]
    assert all(torch.equal(first[name], value) for name, value in view[1, 99].items())
    assert set(first) == {"image", "depth"}
    assert len({view[1, seed]["image"].numpy().tobytes() for seed in range(16)}) == 2  # mirrored or not
    assert torch.equal(tiny_source().view("train", ["depth", "semseg"])[2, 99]["image"], first["image"])


def test_validation_images_are_not_augmented(tiny_source: Callable[..., Any]) -> None:
    view = tiny_source(val=3).view("val", ["depth", "semseg"])
    assert len(view) == 3
    assert all(torch.equal(view[1, 0]["image"], view[1, seed]["image"]) for seed in range(16))


# --- stacking ------------------------------------------------------------------------------------------------


def example_of(value: int, size: tuple[int, int], window: tuple[int, int, int, int] | None = None) -> Example:
    made = {"image": torch.full((3, *size), float(value)), "depth": torch.full((1, *size), float(value))}
    return made if window is None else {**made, "window": torch.tensor(window)}


def test_neighbours_of_one_size_are_stacked() -> None:
    sizes = [(4, 6), (4, 6), (6, 4), (4, 6), (4, 6), (4, 6)]
    found = pieces([example_of(i, size) for i, size in enumerate(sizes)])
    assert [tuple(piece["image"].shape) for piece in found] == [(2, 3, 4, 6), (1, 3, 6, 4), (3, 3, 4, 6)]
    for name in ("image", "depth"):
        assert torch.cat([piece[name][:, 0, 0, 0] for piece in found]).tolist() == [0, 1, 2, 3, 4, 5]  # the order stays


def test_pictures_in_other_windows_are_not_stacked() -> None:
    windows = [(0, 0, 4, 6), (0, 0, 4, 6), (1, 0, 2, 6), (0, 0, 4, 6)]
    found = pieces([example_of(i, (4, 6), window) for i, window in enumerate(windows)])
    assert [len(piece["image"]) for piece in found] == [2, 1, 1]
    assert [piece["window"][0].tolist() for piece in found] == [[0, 0, 4, 6], [1, 0, 2, 6], [0, 0, 4, 6]]


def test_labels_of_another_size_are_not_stacked() -> None:
    """Shrunk images may be alike where their labels, at the images' own sizes, are not."""
    one, other = example_of(0, (4, 6)), {**example_of(1, (4, 6)), "depth": torch.zeros(1, 8, 12)}
    assert [len(piece["image"]) for piece in pieces([one, one, other])] == [2, 1]


# --- batches -------------------------------------------------------------------------------------------------

Batches = list[tuple[View, list[Key]]]


def seeded(view: View, batch_size: int = 2) -> Batches:
    return [(view, keys) for keys in SeededBatches(len(view), batch_size, seed=0, keys=KEYS)]


def stored(view: View, batch_size: int = 2) -> Batches:
    return [(view, keys) for keys in StoredOrder(len(view), batch_size)]


def assert_same(found: list[list[Example]], expected: list[list[Example]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [list(piece) for piece in ours] == [list(piece) for piece in theirs]
        for piece, other in zip(ours, theirs, strict=True):
            for name, value in piece.items():
                assert value.dtype == other[name].dtype
                assert value.numpy().tobytes() == other[name].numpy().tobytes()


@pytest.fixture
def sources(nyud_root: Callable[..., Path]) -> list[NYUDv2]:
    """Two data sets whose images differ in size."""
    return [
        NYUDv2(nyud_root(train=4, val=3, size=size, seed=seed), crop=(32, 48))
        for seed, size in enumerate([(48, 64), (40, 56)])
    ]


@pytest.fixture
def workers() -> Callable[[], set[int]]:
    """Numbers of the worker processes that were started within the test and are running."""
    before = {process.pid for process in multiprocessing.active_children()}
    return lambda: {process.pid for process in multiprocessing.active_children()} - before


def test_batches_are_what_was_asked_for(tiny_source: Callable[..., Any]) -> None:
    view, other = tiny_source().view("train", ["depth", "semseg"], [6, 1, 4, 3]), tiny_source(seed=1).view("val", [])
    asked = [*seeded(view), *stored(other, 3), *seeded(view)]
    found = list(Loader()(asked))
    assert len(found) == 2 + 2 + 2
    for (source, keys), (batch,) in zip(asked, found, strict=True):
        for name in batch:
            assert torch.equal(batch[name], torch.stack([source[key][name] for key in keys]))
    assert [set(batch) for (batch,) in found[1:3]] == [{"image", "depth", "semseg"}, {"image", "window"}]


def test_heads_may_be_named_otherwise_than_tasks(tiny_source: Callable[..., Any]) -> None:
    source = tiny_source()
    ((named,), *_), ((plain,), *_) = (
        list(Loader()(seeded(source.view("train", ["depth"], prefix=prefix)))) for prefix in ("tiny_", "")
    )
    assert set(named) == {"image", "tiny_depth"}
    assert torch.equal(named["tiny_depth"], plain["depth"])


def test_nothing_asked_for_is_no_batch() -> None:
    assert list(Loader()([])) == []


@pytest.mark.parametrize("count", [1, 2])
def test_worker_processes_change_nothing(sources: list[NYUDv2], count: int) -> None:
    asked = [
        batch
        for source in sources
        for batch in (*seeded(source.view("train", ["depth", "normals"])), *stored(source.view("val", ["semseg"])))
    ]
    assert_same(list(Loader(workers=count)(asked)), list(Loader()(asked)))


def test_workers_stay_for_other_views_and_data_sets(sources: list[NYUDv2], workers: Callable[[], set[int]]) -> None:
    loader, first, second = Loader(workers=2), *(source.view("train", ["depth"]) for source in sources)
    list(loader([*seeded(first), *seeded(second)]))
    started = workers()
    assert len(started) == 2
    for asked in (seeded(second), stored(sources[0].view("val", ["semseg", "edge"])), [], seeded(first.only([]))):
        assert_same(list(loader(asked)), list(Loader()(asked)))
        assert workers() == started


def test_a_new_data_set_is_told_to_the_workers(sources: list[NYUDv2], workers: Callable[[], set[int]]) -> None:
    loader = Loader(workers=1)
    for source in sources:
        asked = seeded(source.view("train", ["depth"]))
        assert_same(list(loader(asked)), list(Loader()(asked)))
        assert len(workers()) == 1  # those of before are gone


@pytest.mark.parametrize("count", [0, 2])
def test_a_call_forgets_what_the_last_one_left(sources: list[NYUDv2], count: int) -> None:
    loader, view = Loader(workers=count), sources[0].view("train", ["depth"])
    next(loader(seeded(view, 1)))
    asked = stored(sources[0].view("val", ["depth"]), 1)
    assert_same(list(loader(asked)), list(Loader()(asked)))


@pytest.mark.parametrize("count", [0, 1])
def test_global_random_numbers_are_left_alone(sources: list[NYUDv2], count: int) -> None:
    """Dropout draws from the global generator; it must not matter when, and by how many processes, batches are made."""
    loader, view = Loader(workers=count), sources[0].view("train", ["depth"])
    before = torch.get_rng_state()
    for _ in range(2):
        list(loader(seeded(view)))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("count", [0, 2])
def test_a_broken_file_is_named_and_the_next_call_works(sources: list[NYUDv2], count: int) -> None:
    source, loader = sources[0], Loader(workers=count)
    broken = source.files("train", 2, "depth")[0]
    broken.write_bytes(b"no array")
    with pytest.raises(UserError) as caught:
        list(loader(stored(source.view("train", ["depth"]))))
    assert f"{broken}: cannot be read" in str(caught.value).splitlines()[-1]
    asked = stored(source.view("train", ["semseg"]))
    assert_same(list(loader(asked)), list(Loader()(asked)))
