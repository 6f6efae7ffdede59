"""Storage: any tree comes back as it was, damage is noticed, writing is whole or not at all."""

import gc
import json
import os
import pickle
import resource
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmtl import storage

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
TENSORS = st.builds(
    lambda shape, kind: (torch.rand(shape) * 9).to(kind),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(TYPES),
)
TREES = st.recursive(
    SCALARS | TENSORS,
    lambda child: (
        st.lists(child, max_size=3)
        | st.lists(child, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(), child, max_size=3)
    ),
    max_leaves=8,
)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_any_tree_comes_back_as_it_was(tree: Any) -> None:
    assert equal(storage.unpack(storage.pack(tree)), tree)


@given(TREES)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_comes_back_from_a_file(tmp_path: Path, tree: Any) -> None:
    storage.write(tmp_path / "tree.safetensors", tree)
    assert equal(storage.read(tmp_path / "tree.safetensors"), tree)


def test_a_tensor_that_was_read_is_pickled_without_the_rest_of_its_file(tmp_path: Path) -> None:
    storage.write(tmp_path / "tree.safetensors", [torch.ones(3), torch.ones(100_000)])
    assert len(pickle.dumps(storage.read(tmp_path / "tree.safetensors")[0])) < 10_000


def test_reading_again_and_again_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "tree.safetensors"
    storage.write(path, [torch.randn(300, 4) for _ in range(20)])
    for times in (1, 50):
        before = sys.getallocatedblocks()
        for _ in range(times):
            storage.read(path)
        gc.collect()
    assert sys.getallocatedblocks() - before < 200  # get_tensor of safetensors 0.8 would leave 2,000


def test_an_optimizer_state_loads_again_from_a_file(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], betas=(0.8, 0.99))
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    storage.write(tmp_path / "state", {"optimizer": optimizer.state_dict()})
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    other.load_state_dict(storage.read(tmp_path / "state")["optimizer"])
    assert equal(other.state_dict(), optimizer.state_dict())


def test_tensors_that_share_memory_or_are_not_contiguous_are_stored_each() -> None:
    base = torch.arange(6.0).view(2, 3)
    tree = OrderedDict(a=base, b=base[0], c=base.t(), d=base)
    found = storage.unpack(storage.pack(tree))
    assert all(torch.equal(found[key], tree[key]) for key in tree)


def test_changing_a_tensor_that_was_read_changes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    storage.write(path, torch.zeros(1000))
    before = path.read_bytes()
    storage.read(path).add_(1)
    assert path.read_bytes() == before
    assert storage.read(path).sum() == 0


def test_tensors_are_mapped_and_outlive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    storage.write(path, torch.full((1000,), 2.0))
    value = storage.read(path)
    path.unlink()
    assert value.sum() == 2000


def test_what_is_no_tree_is_refused() -> None:
    with pytest.raises(TypeError, match="a set can't be stored"):
        storage.pack({"a": {1, 2}})


def damaged(data: bytes) -> list[bytes]:
    value = data.index(torch.full((50,), 3.0).numpy().tobytes()) + 17
    flipped = data[:value] + bytes([data[value] ^ 4]) + data[value + 1 :]
    return [b"", data[:5], data[:-1], data[:-150], data + b"x", flipped, b"\xff" * 300, b"{}", os.urandom(200)]


@pytest.mark.parametrize("number", range(9))
def test_damage_is_noticed(number: int, tmp_path: Path) -> None:
    bad = damaged(storage.pack({"a": torch.full((50,), 3.0), "b": [1, (2.5, "x")]}))[number]
    with pytest.raises(storage.StorageError):
        storage.unpack(bad)
    (tmp_path / "state").write_bytes(bad)
    with pytest.raises(storage.StorageError, match="state: damaged"):
        storage.read(tmp_path / "state")


@pytest.mark.parametrize("tree", ['{"what": []}', '{"tensor": ["7", 0]}', '{"dict": [[{"list": []}, 1]]}', "[", "{}"])
def test_an_outline_that_says_something_else_is_refused(tree: str) -> None:
    header = json.dumps({"__metadata__": {"tree": tree}}).encode()
    header += b" " * (-len(header) % 8)
    with pytest.raises(storage.StorageError):
        storage.unpack(len(header).to_bytes(8, "little") + header)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(storage.StorageError, match="nowhere"):
        storage.read(tmp_path / "nowhere")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state"
    storage.write(path, torch.ones(10))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # as a full disk: Python ignores its signal
    try:
        with pytest.raises(OSError, match="too large"):
            storage.write(path, torch.ones(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    assert storage.read(path).sum() == 10
