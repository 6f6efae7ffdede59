"""Shards of the training images, and the order and augmentation seeds of batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmtl.data import IID
from fedmtl.data.loader import SeededBatches, StoredOrder, batches

KEYS = ("depth", 1, 0)


def positions(sampler: Any) -> list[int]:
    return [position for batch in sampler for position, _ in batch]


@given(st.integers(1, 12), st.integers(0, 200), st.integers(0, 2**32))
def test_shards_are_disjoint_cover_all_and_differ_by_one_at_most(shards: int, more: int, seed: int) -> None:
    size = shards + more
    split = IID().split(size, shards, np.random.default_rng(seed))
    assert len(split) == shards
    assert sorted(index for shard in split for index in shard) == list(range(size))
    lengths = [len(shard) for shard in split]
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1
    assert all(shard == sorted(shard) and all(type(i) is int for i in shard) for shard in split)


def test_shards_come_from_the_generator_alone() -> None:
    first, again, other = (IID().split(30, 4, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert first[0] != list(range(8))  # mixed, not cut in order


@given(st.integers(1, 40), st.integers(1, 50))
def test_an_epoch_shows_images_once_in_full_batches(size: int, batch_size: int) -> None:
    sampler = SeededBatches(size, batch_size, seed=0, keys=KEYS)
    found = list(sampler)
    full = min(batch_size, size)
    assert len(found) == len(sampler) == size // full
    assert {len(batch) for batch in found} == {full}
    shown = positions(sampler)
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
    sampler = SeededBatches(16, 4, seed=0, keys=KEYS)
    first = list(sampler)
    np.random.default_rng().random(7)
    torch.rand(3)
    assert list(sampler) == list(SeededBatches(16, 4, seed=0, keys=KEYS)) == first


def test_an_images_augmentation_does_not_depend_on_the_batch_size() -> None:
    small, large = ({i: s for batch in SeededBatches(16, n, seed=0, keys=KEYS) for i, s in batch} for n in (2, 8))
    assert small == large
    assert len(set(small.values())) == 16


@given(st.integers(0, 40), st.integers(1, 50))
def test_stored_order_is_every_image_once(size: int, batch_size: int) -> None:
    sampler = StoredOrder(size, batch_size)
    assert positions(sampler) == list(range(size))
    assert len(list(sampler)) == len(sampler)
    assert all(len(batch) <= batch_size for batch in sampler)


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


def test_batches_are_what_the_sampler_asked_for(tiny_source: Callable[..., Any]) -> None:
    view = tiny_source().view("train", ["depth", "semseg"], [6, 1, 4, 3])
    sampler = SeededBatches(4, 2, seed=0, keys=KEYS)
    for keys, batch in zip(sampler, batches(view, sampler), strict=True):
        for name in ("image", "depth", "semseg"):
            assert torch.equal(batch[name], torch.stack([view[key][name] for key in keys]))


@pytest.mark.slow
def test_worker_processes_change_nothing(nyud_root: Callable[..., Any]) -> None:
    from fedmtl.data import NYUDv2

    view = NYUDv2(root=str(nyud_root(train=4))).view("train", ["depth"])
    sampler = SeededBatches(4, 2, seed=0, keys=KEYS)
    for ours, theirs in zip(batches(view, sampler), batches(view, sampler, workers=1), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ("image", "depth"))
