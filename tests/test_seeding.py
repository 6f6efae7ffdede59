"""Random streams: distinct, stable, independent of anything but their keys."""

import itertools

import numpy as np
import pytest
import torch

from fedmtl.seeding import derive_seed, numpy_stream, torch_stream


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((0, "weights"), 5_421_806_286_578_840_949), ((7, "train", "depth-1", 12), 5_042_753_851_668_343_445)],
)
def test_seeds_are_the_same_in_every_version(arguments: tuple, expected: int) -> None:
    assert derive_seed(*arguments) == expected


def test_seeds_differ_by_seed_purpose_and_every_key() -> None:
    keys = itertools.product((0, 1, 10, -1), ("train", "augment"), ("a", "b", "a-1"), (1, 11), (0, 1))
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(seeds)


def test_keys_do_not_run_into_each_other() -> None:
    several = [
        derive_seed(0, "p"),
        derive_seed(0, "p", ""),
        derive_seed(0, "p", 1, 11),
        derive_seed(0, "p", 11, 1),
        derive_seed(0, "p", 111),
        derive_seed(0, "p1", 11),
    ]
    assert len(set(several)) == len(several)


def test_seeds_fit_torch_and_numpy() -> None:
    seeds = [derive_seed(0, "fit", i) for i in range(2000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    for seed in seeds[:3]:
        torch.manual_seed(seed)
        np.random.default_rng(seed)


def test_streams_repeat_and_leave_the_global_generators_alone() -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    first = numpy_stream(0, "a", 1).random(4), torch.rand(4, generator=torch_stream(0, "a", 1))
    again = numpy_stream(0, "a", 1).random(4), torch.rand(4, generator=torch_stream(0, "a", 1))
    other = numpy_stream(0, "a", 2).random(4), torch.rand(4, generator=torch_stream(0, "a", 2))
    np.testing.assert_array_equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(torch_before, torch.get_rng_state())
    np.testing.assert_equal(np.random.get_state(), numpy_before)  # noqa: NPY002
