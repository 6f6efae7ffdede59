"""The FedDEA server step, client transform and merge together, against an independent NumPy implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from fedmtl.aggregation import DEA, Aggregator, PartUpdate, Update, WeightedMean
from fedmtl.vector import Layout

SHAPES = ((4, 5), (7,), (), (3, 2, 2))
LAYOUT = Layout(tuple("abcd"), tuple(torch.Size(shape) for shape in SHAPES))
D = 40
RESCALES = ["inverse", "none", "norm", "overlap"]

vectors = npst.arrays(np.float32, 12, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))
weights = st.sampled_from([0.5, 1.0, 3.0, 265.0, 795.0])
federations = st.lists(st.tuples(vectors, weights), min_size=1, max_size=5)


def normal(seed: int, d: int = D) -> Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(seed))


def reference_mask(delta: np.ndarray, rho: float, scope: str) -> np.ndarray:
    pieces = [delta] if scope == "global" else np.split(delta, np.cumsum([math.prod(s) for s in SHAPES])[:-1])
    masks = []
    for piece in pieces:
        mask = np.zeros(piece.size, dtype=bool)
        mask[np.argsort(-np.abs(piece), kind="stable")[: math.ceil(Fraction(str(rho)) * piece.size)]] = True
        masks.append(mask)
    return np.concatenate(masks)


def reference_step(deltas: Sequence[Tensor], shares: Sequence[float], rho: float, rescale: str, scope: str) -> Any:
    """What is added to θ: Σ p_k m_k Δ_k, rescaled, in float64."""
    step, kept_share = np.zeros(D), np.zeros(D)
    for delta, share in zip(deltas, np.array(shares) / sum(shares), strict=True):
        wide = delta.double().numpy()
        mask = reference_mask(wide, rho, scope)
        gain = {"inverse": 1 / rho, "norm": np.linalg.norm(wide) / np.linalg.norm(wide[mask])}.get(rescale, 1.0)
        step[mask] += share * wide[mask] * gain
        kept_share[mask] += share
    return np.divide(step, kept_share, out=np.zeros(D), where=kept_share > 0) if rescale == "overlap" else step


def merge(updates: Sequence[PartUpdate], shares: Sequence[float], aggregator: Aggregator | None = None) -> Tensor:
    aggregator = aggregator or WeightedMean()
    for update, share in zip(updates, shares, strict=True):
        aggregator.add(update, share)
    merged = aggregator.merge()
    assert merged is not None
    return merged


def masked(values: Sequence[float], kept: Sequence[int], *, overlap: bool = True) -> PartUpdate:
    mask = torch.tensor(kept).bool()
    return PartUpdate(torch.tensor(values) * mask, mask=mask, overlap=overlap)


@pytest.mark.parametrize("shares", [[265, 265, 265], [795, 10, 1], [1.0, 1.0, 1.0]])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("rescale", RESCALES)
@pytest.mark.parametrize("rho", [0.05, 0.2, 0.5, 1.0])
def test_server_step_is_the_papers(rho: float, rescale: Any, scope: Any, shares: list[float]) -> None:
    deltas = [normal(seed).mul(4).round() / 4 for seed in range(3)]  # with ties and exact zeros
    dea = DEA(rho=rho, rescale=rescale, scope=scope)
    merged = merge([dea(PartUpdate(delta.clone()), LAYOUT) for delta in deltas], shares)
    expected = reference_step(deltas, shares, rho, rescale, scope)
    assert merged.dtype == torch.float32
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("rescale", RESCALES)
def test_transform_notes_its_mask_and_leaves_buffers(rescale: Any, scope: Any) -> None:
    buffers = {"running_var": torch.rand(3), "num_batches_tracked": torch.tensor(7)}
    before = {name: value.clone() for name, value in buffers.items()}
    delta = normal(0)
    sent = DEA(rho=0.3, rescale=rescale, scope=scope)(PartUpdate(delta.clone(), buffers), LAYOUT)
    assert sent.mask is not None
    np.testing.assert_array_equal(sent.mask.numpy(), reference_mask(delta.double().numpy(), 0.3, scope))
    assert not sent.delta[~sent.mask].any()
    assert sent.overlap == (rescale == "overlap")
    assert all(torch.equal(sent.buffers[name], value) for name, value in before.items())


def test_layer_scope_keeps_the_ceiling_of_every_tensor() -> None:
    sent = DEA(rho=0.1, scope="layer")(PartUpdate(normal(0)), LAYOUT)
    assert sent.mask is not None
    assert [int(view.sum()) for view in LAYOUT.views(sent.mask)] == [2, 1, 1, 2]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_rho_1_with_inverse_is_fedavg_to_the_bit(scope: Any) -> None:
    deltas, shares = [normal(seed) for seed in range(4)], [3.0, 265.0, 795.0, 1.0]
    dea = DEA(rho=1.0, scope=scope)
    ours = merge([dea(PartUpdate(delta.clone()), LAYOUT) for delta in deltas], shares)
    assert torch.equal(ours, merge([PartUpdate(delta) for delta in deltas], shares))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0}, "rho must be a number in (0, 1]"),
        ({"rho": 1.1}, "rho must be a number in (0, 1]"),
        ({"rescale": "mean"}, "rescale must be one of"),
        ({"scope": "tensor"}, "scope must be global or layer"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        DEA(**options)
    assert str(error.value).startswith(message)


def test_overlap_divides_by_the_weight_of_those_who_kept() -> None:
    updates = [masked([4, 2, 1, 9], [1, 1, 0, 0]), masked([8, 5, 1, 9], [1, 0, 0, 1])]
    assert merge(updates, [3, 1]).tolist() == [(3 * 4 + 8) / 4, 2, 0, 9]


def test_a_kept_zero_counts_in_overlap() -> None:
    updates = [masked([0, 1], [1, 0]), masked([6, 1], [1, 0])]
    assert merge(updates, [1, 1]).tolist() == [3, 0]


def test_updates_without_overlap_count_at_every_coordinate() -> None:
    updates = [
        masked([4, 4, 4], [1, 0, 0]),
        masked([6, 6, 6], [0, 1, 0], overlap=False),
        PartUpdate(torch.tensor([2.0, 2.0, 2.0])),
    ]
    expected = [(1 * 4 + 3 * 2) / (1 + 2 + 3), (2 * 6 + 3 * 2) / (2 + 3), (3 * 2) / (2 + 3)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        merged = merge([updates[i] for i in order], [[1, 2, 3][i] for i in order])
        torch.testing.assert_close(merged, torch.tensor(expected))


@settings(deadline=None)
@given(vectors, st.lists(weights, min_size=1, max_size=5))
def test_identical_updates_return_themselves(array: np.ndarray, shares: list[float]) -> None:
    delta = torch.from_numpy(array)
    torch.testing.assert_close(merge([PartUpdate(delta)] * len(shares), shares), delta, rtol=1e-6, atol=0)
    dea = DEA(rho=0.3, rescale="overlap")
    layout = Layout(("a",), (delta.shape,))
    sent = [dea(PartUpdate(delta.clone()), layout) for _ in shares]
    torch.testing.assert_close(merge(sent, shares), sent[0].delta, rtol=1e-6, atol=0)


@settings(deadline=None)
@given(federations, st.sampled_from(RESCALES), st.randoms(use_true_random=False))
def test_merging_is_finite_and_blind_to_order_and_scale(clients: Any, rescale: Any, random: Any) -> None:
    dea, layout = DEA(rho=0.4, rescale=rescale), Layout(("a",), (torch.Size([12]),))

    def server_step(members: Any, factor: float = 1) -> Tensor:
        sent = [dea(PartUpdate(torch.from_numpy(array) * factor), layout) for array, _ in members]
        return merge(sent, [weight for _, weight in members])

    merged = server_step(clients)
    assert merged.isfinite().all()
    rounding = 1e-5 * max(float(np.abs(array).max()) for array, _ in clients) / 0.4
    shuffled = random.sample(clients, len(clients))
    torch.testing.assert_close(server_step(shuffled), merged, rtol=0, atol=rounding)
    torch.testing.assert_close(server_step(clients, 8.0), merged * 8, rtol=1e-5, atol=rounding)
    heavier = [(array, 2 * weight) for array, weight in clients]
    assert torch.equal(server_step(heavier), merged)


def test_the_inputs_of_a_merge_stay_as_they_are() -> None:
    updates = [masked([4, 2], [1, 0]), PartUpdate(torch.tensor([1.0, 2.0]))]
    merge(updates, [2, 3])
    assert [update.delta.tolist() for update in updates] == [[4, 0], [1, 2]]


def test_the_aggregator_is_empty_after_a_merge() -> None:
    mean = WeightedMean()
    assert mean.merge() is None
    first = merge([masked([4, 2], [1, 0]), PartUpdate(torch.ones(2))], [7, 1], mean)
    kept = first.clone()
    assert mean.merge() is None
    assert merge([PartUpdate(torch.tensor([1.0, 3.0]))], [5], mean).tolist() == [1, 3]
    assert torch.equal(first, kept)


def test_half_precision_updates_are_summed_in_fp32() -> None:
    updates = [PartUpdate(torch.full((2,), value, dtype=torch.float16)) for value in (60000.0, 60000.0, 1.0)]
    merged = merge(updates, [1, 1, 1])
    assert merged.dtype == torch.float32
    assert merged.tolist() == pytest.approx([120001 / 3] * 2)


def test_bytes_count_kept_entries_a_bit_mask_and_buffers() -> None:
    buffers = {"running_mean": torch.zeros(5), "num_batches_tracked": torch.tensor(0)}
    whole = PartUpdate(normal(0), buffers)
    assert whole.num_bytes() == 4 * 40 + 4 * 5 + 8
    sparse = DEA(rho=0.2)(PartUpdate(normal(0), buffers), LAYOUT)
    assert sparse.num_bytes() == 4 * 8 + 5 + 4 * 5 + 8
    assert masked([1, 2, 3], [1, 0, 0]).num_bytes() == 4 + 1
    assert Update("c", 1, {"encoder": sparse, "heads.a": whole}).num_bytes() == 65 + 188
