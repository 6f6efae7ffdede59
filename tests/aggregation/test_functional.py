"""Selection and rescaling against an independent NumPy reference."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from fedmtl.aggregation import functional
from fedmtl.aggregation.functional import decouple, kept_count, rescale_masked, top_rho_mask

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def reference(delta: Tensor, k: int) -> np.ndarray:
    """Mask by a stable sort of the magnitudes; every dtype here widens to float64 exactly."""
    flat = delta.detach().double().numpy().reshape(-1)
    mask = np.zeros(flat.size, dtype=bool)
    mask[np.argsort(-np.abs(flat), kind="stable")[:k]] = True
    return mask.reshape(tuple(delta.shape))


def normal(d: int, seed: int = 0) -> Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("rho", "d", "expected"),
    [
        (0.1, 30, 3),
        (0.2, 5, 1),
        (0.3, 10, 3),
        (0.7, 10, 7),
        (0.1, 31, 4),
        (0.29, 100, 29),
        (1e-9, 7, 1),
        (1, 7, 7),
        (1.0, 1, 1),
        (0.5, 0, 0),
        (0.1, 28_000_000, 2_800_000),
        (np.float32(0.1), 30, 3),
        (Fraction(1, 3), 9, 3),
    ],
)
def test_kept_count_reads_rho_as_a_decimal(rho: Any, d: int, expected: int) -> None:
    assert kept_count(rho, d) == expected


@given(st.integers(1, 1000), st.integers(0, 10**9))
def test_kept_count_is_the_ceiling(thousandths: int, d: int) -> None:
    assert kept_count(thousandths / 1000, d) == -(-thousandths * d // 1000)


@pytest.mark.parametrize("rho", [0, 0.0, -0.1, 1.5, math.nan, math.inf, True, "0.1", None])
def test_bad_rho_is_named(rho: Any) -> None:
    message = f"rho must be a number in (0, 1], got {rho!r}"
    delta = torch.ones(3)
    calls: list[Callable[[], object]] = [
        lambda: kept_count(rho, 3),
        lambda: top_rho_mask(delta, rho),
        lambda: decouple(delta, rho),
        lambda: rescale_masked(delta, delta > 0, rho),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [5, 100_000])
def test_non_finite_entries_are_counted(dtype: torch.dtype, d: int) -> None:
    delta = torch.zeros(d, dtype=dtype)
    delta[1], delta[3], delta[4] = math.nan, -math.inf, math.inf
    for call in (top_rho_mask, decouple):
        with pytest.raises(ValueError, match=f"^update holds 1 NaN and 2 infinite entries out of {d}$"):
            call(delta, 0.5)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^update must be float16, .* or float64, got torch.int64$"):
        top_rho_mask(torch.arange(3), 0.5)


@settings(deadline=None)
@given(
    npst.arrays(
        np.float32,
        npst.array_shapes(min_dims=0, max_dims=3, max_side=7),
        elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 1e-45, -3e38]) | st.floats(-9, 9, width=32),
    ),
    st.sampled_from([1e-6, 0.1, 0.25, 0.3, 0.5, 0.7, 0.999, 1.0]),
)
def test_mask_keeps_the_largest_lowest_index_first(array: np.ndarray, rho: float) -> None:
    delta = torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)
    mask = top_rho_mask(delta, rho)
    kept, size = mask.numpy().reshape(-1), np.abs(array.reshape(-1))
    assert mask.dtype == torch.bool
    assert mask.shape == delta.shape
    assert kept.sum() == kept_count(rho, size.size)
    assert size[kept].min() >= size[~kept].max(initial=0)
    ties = kept[size == size[kept].min()]
    assert not (ties[1:] & ~ties[:-1]).any()
    np.testing.assert_array_equal(mask.numpy(), reference(delta, int(kept.sum())))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 1000, 200_000])
@pytest.mark.parametrize("rho", [0.003, 0.1, 0.5, 1.0])
def test_every_dtype_matches_the_reference(dtype: torch.dtype, d: int, rho: float) -> None:
    delta = normal(d).to(dtype)
    k = kept_count(rho, d)
    np.testing.assert_array_equal(top_rho_mask(delta, rho).numpy(), reference(delta, k))
    infinity = int(torch.tensor(math.inf, dtype=dtype).view(functional._BITS[dtype]))
    at_once = functional._select_at_once(delta.view(functional._BITS[dtype]), k, infinity)
    assert at_once is not None
    np.testing.assert_array_equal(at_once.numpy(), reference(delta, k))


def test_the_device_path_sees_non_finite_entries() -> None:
    assert functional._select_at_once(torch.tensor([0, 0x7F800000]).int(), 1, 0x7F800000) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_equals_cpu(dtype: torch.dtype) -> None:
    delta = normal(200_001).mul(8).round().to(dtype)
    mask = top_rho_mask(delta.cuda(), 0.1)
    assert mask.is_cuda
    assert torch.equal(mask.cpu(), top_rho_mask(delta, 0.1))


def test_non_contiguous_graph_and_empty() -> None:
    base = normal(60).mul(2).round().reshape(6, 10).requires_grad_()
    for view in (base.t(), base[::2, 1::3], base[0].expand(4, 10)):
        mask = top_rho_mask(view, 0.3)
        assert not mask.requires_grad
        np.testing.assert_array_equal(mask.numpy(), reference(view, kept_count(0.3, view.numel())))
        assert not decouple(view, 0.3).requires_grad
    assert top_rho_mask(torch.empty(0, 3), 0.5).shape == (0, 3)
    for rescale in ("inverse", "none", "norm", "overlap"):
        assert decouple(torch.empty(0, 3), 0.5, rescale).shape == (0, 3)


def adversaries() -> dict[str, Callable[[int], Tensor]]:
    def spiked(d: int) -> Tensor:
        delta = normal(d).mul(1e-3)
        delta[d // 3] = -3e38
        return delta

    def periodic(d: int, period: int) -> Tensor:
        return torch.where(torch.arange(d) % period == 0, 100.0, 0.01) * normal(d)

    def missed(d: int) -> Tensor:
        """Every entry that the sample looks at is zero, all others are not: no guess could be worse."""
        delta = normal(d)
        delta[np.random.default_rng(0).integers(d, size=functional._SAMPLE)] = 0
        return delta

    def flattered(d: int) -> Tensor:
        """The sample sees large entries only."""
        delta = normal(d).mul(1e-3)
        delta[np.random.default_rng(0).integers(d, size=functional._SAMPLE)] = 7
        return delta

    return {
        "normal": normal,
        "ties": lambda d: normal(d).mul(2).round(),
        "clamped": lambda d: normal(d).mul(100).round().clamp(min=-60),
        "half zero": lambda d: normal(d).relu(),
        "constant": lambda d: torch.full((d,), -2.0),
        "all zero": torch.zeros,
        "signed zeros": lambda d: torch.zeros(d).mul(normal(d)),
        "ascending": lambda d: torch.arange(d).float(),
        "descending": lambda d: -torch.arange(d).float().flip(0),
        "two steps": lambda d: (torch.arange(d) >= d // 2).float() + 1,
        "one tenth ones": lambda d: (torch.arange(d) % 10 == 3).float(),
        "one outlier": spiked,
        "denormal": lambda d: torch.arange(d).int().remainder(4000).view(torch.float32),
        "period 16": lambda d: periodic(d, 16),
        "period of the sample": lambda d: periodic(d, d // functional._SAMPLE),
        "missed by the sample": missed,
        "flattered by the sample": flattered,
    }


@pytest.mark.parametrize("name", adversaries())
def test_large_vectors_match_the_reference(name: str) -> None:
    delta = adversaries()[name](1_000_003)
    order = np.argsort(-np.abs(delta.numpy()), kind="stable")
    for rho in (1e-6, 0.1, 0.5, 0.999, 1.0):
        expected = np.zeros(len(delta), dtype=bool)
        expected[order[: kept_count(rho, len(delta))]] = True
        assert np.array_equal(top_rho_mask(delta, rho).numpy(), expected), rho


@pytest.mark.parametrize("step", [1.0, 1e9])
def test_shares_of_several_threads_join_in_order(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    delta = normal(3_000_001).mul(step).round()
    assert np.array_equal(top_rho_mask(delta, 0.1).numpy(), reference(delta, 300_001))


def test_selection_leaves_the_global_generators_alone() -> None:
    before, delta = np.random.get_state(), normal(200_000)  # noqa: NPY002
    ours = torch.get_rng_state()
    mask = top_rho_mask(delta, 0.1)
    assert torch.equal(ours, torch.get_rng_state())
    np.testing.assert_equal(np.random.get_state(), before)  # noqa: NPY002
    assert torch.equal(mask, top_rho_mask(delta, 0.1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rescale", ["inverse", "none", "norm", "overlap"])
def test_decouple_follows_its_formula(dtype: torch.dtype, rescale: functional.Rescale) -> None:
    delta = normal(1000).to(dtype).reshape(10, 100)
    rho, wide = 0.3, delta.double()
    kept = wide * torch.from_numpy(reference(delta, 300))
    expected = {
        "inverse": kept / rho,
        "none": kept,
        "norm": kept * (wide.norm() / kept.norm()),
        "overlap": kept,
    }[rescale]
    sent = decouple(delta, rho, rescale)
    assert sent.dtype == dtype
    assert sent.shape == delta.shape
    torch.testing.assert_close(sent.double(), expected, rtol=torch.finfo(dtype).eps, atol=0)
    assert torch.equal(sent, rescale_masked(delta, top_rho_mask(delta, rho), rho, rescale))
    assert not torch.signbit(sent[sent == 0]).any()
    assert torch.equal(delta.double(), wide)


def test_decouple_defaults_to_inverse() -> None:
    assert decouple(torch.tensor([4.0, 1.0, -3.0, 0.0]), 0.5).tolist() == [8.0, 0.0, -6.0, 0.0]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.float16, 200.0), (torch.float16, 6e-8), (torch.float32, 1e30), (torch.float64, 1e300)],
)
def test_norm_is_kept_at_the_ends_of_the_range(dtype: torch.dtype, value: float) -> None:
    delta = torch.full((10_000,), value, dtype=dtype)
    sent = decouple(delta, 0.25, "norm")
    assert sent[0].item() == pytest.approx(2 * delta[0].item(), rel=1e-3)


@pytest.mark.parametrize("rescale", ["inverse", "none", "norm", "overlap"])
def test_a_zero_update_stays_zero(rescale: functional.Rescale) -> None:
    assert torch.equal(decouple(torch.zeros(9), 0.5, rescale), torch.zeros(9))


def test_bad_rescale_and_bad_mask_are_named() -> None:
    delta = torch.ones(4)
    with pytest.raises(ValueError, match=r"^rescale must be one of inverse, none, norm, overlap, got 'mean'$"):
        decouple(delta, 0.5, "mean")  # type: ignore[arg-type]
    for mask, got in (
        (torch.ones(3) > 0, r"torch.bool of shape \(3,\)"),
        (delta, r"torch.float32 of shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=rf"^mask must be torch.bool of shape \(4,\), got {got}$"):
            rescale_masked(delta, mask, 0.5)
