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

from fedmtl.aggregation import DEA, Aggregator, PartUpdate, Sending, WeightedMean
from fedmtl.aggregation.dea import segments
from fedmtl.aggregation.rho import EnergyRho, LayerRho, Rho, ScheduledRho
from fedmtl.models import FeaturePyramid
from fedmtl.vector import FlatPart, Layout

SHAPES = ((4, 5), (7,), (), (3, 2, 2))
LAYOUT = Layout(tuple("abcd"), tuple(torch.Size(shape) for shape in SHAPES))
D = 40
RESCALES = ["inverse", "none", "norm", "overlap"]

vectors = npst.arrays(np.float32, 12, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))
weights = st.sampled_from([0.5, 1.0, 3.0, 265.0, 795.0])
federations = st.lists(st.tuples(vectors, weights), min_size=1, max_size=5)


def normal(seed: int, d: int = D) -> Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(seed))


def send(dea: DEA, delta: Tensor, buffers: dict[str, Tensor] | None = None) -> PartUpdate:
    layout = LAYOUT if delta.numel() == D else Layout(("a",), (delta.shape,))
    return dea(PartUpdate(delta.clone(), buffers or {}), Sending(layout))


def pieces_of(scope: str) -> list[slice]:
    ends = np.cumsum([math.prod(shape) for shape in SHAPES]).tolist() if scope == "layer" else [D]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def reference_mask(delta: np.ndarray, rho: float, scope: str) -> np.ndarray:
    mask = np.zeros(D, dtype=bool)
    for piece in pieces_of(scope):
        count = math.ceil(Fraction(str(rho)) * delta[piece].size)
        mask[piece.start + np.argsort(-np.abs(delta[piece]), kind="stable")[:count]] = True
    return mask


def reference_step(deltas: Sequence[Tensor], shares: Sequence[float], rho: float, rescale: str, scope: str) -> Any:
    """What is added to θ: Σ p_k m_k Δ_k, rescaled, in float64."""
    step, kept_share = np.zeros(D), np.zeros(D)
    for delta, share in zip(deltas, np.array(shares) / sum(shares), strict=True):
        wide = delta.double().numpy()
        mask = reference_mask(wide, rho, scope)
        for piece in pieces_of(scope):
            kept = wide[piece] * mask[piece]
            norms = np.linalg.norm(wide[piece]), np.linalg.norm(kept)
            gain = {"inverse": 1 / rho, "norm": norms[0] / norms[1] if norms[1] else 1.0}.get(rescale, 1.0)
            step[piece] += share * kept * gain
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
    merged = merge([send(dea, delta) for delta in deltas], shares)
    expected = reference_step(deltas, shares, rho, rescale, scope)
    assert merged.dtype == torch.float32
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("rescale", RESCALES)
def test_transform_notes_its_mask_and_leaves_buffers(rescale: Any, scope: Any) -> None:
    buffers = {"running_var": torch.rand(3), "num_batches_tracked": torch.tensor(7)}
    before = {name: value.clone() for name, value in buffers.items()}
    delta = normal(0)
    sent = send(DEA(rho=0.3, rescale=rescale, scope=scope), delta, buffers)
    assert sent.mask is not None
    np.testing.assert_array_equal(sent.mask.numpy(), reference_mask(delta.double().numpy(), 0.3, scope))
    assert not sent.delta[~sent.mask].any()
    assert sent.overlap == (rescale == "overlap")
    assert all(torch.equal(sent.buffers[name], value) for name, value in before.items())


def test_layer_scope_keeps_the_ceiling_of_every_tensor() -> None:
    sent = send(DEA(rho=0.1, scope="layer"), normal(0))
    assert sent.mask is not None
    assert [int(view.sum()) for view in LAYOUT.views(sent.mask)] == [2, 1, 1, 2]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_rho_1_with_inverse_is_fedavg_to_the_bit(scope: Any) -> None:
    deltas, shares = [normal(seed) for seed in range(4)], [3.0, 265.0, 795.0, 1.0]
    dea = DEA(rho=1.0, scope=scope)
    ours = merge([send(dea, delta) for delta in deltas], shares)
    assert torch.equal(ours, merge([PartUpdate(delta) for delta in deltas], shares))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0}, "rho must be a number in (0, 1]"),
        ({"rho": 1.1}, "rho must be a number in (0, 1]"),
        ({"rescale": "mean"}, "rescale must be one of"),
        ({"scope": "tensor"}, "scope must be one of global, layer, block, not 'tensor'"),
        ({"select": "top"}, "select must be one of magnitude, random, not 'top'"),
        ({"rho": LayerRho(rho_by_pattern={"a": 0.1})}, "LayerRho goes by names of tensors or blocks: it needs scope"),
        ({"part": "head"}, "part must be one of encoder, model, not 'head'"),
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
    sent = [send(dea, delta) for _ in shares]
    torch.testing.assert_close(merge(sent, shares), sent[0].delta, rtol=1e-6, atol=0)


@settings(deadline=None)
@given(federations, st.sampled_from(RESCALES), st.randoms(use_true_random=False))
def test_merging_is_finite_and_blind_to_order_and_scale(clients: Any, rescale: Any, random: Any) -> None:
    dea = DEA(rho=0.4, rescale=rescale)

    def server_step(members: Any, factor: float = 1) -> Tensor:
        sent = [send(dea, torch.from_numpy(array) * factor) for array, _ in members]
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


NET = Layout(
    (
        "body.stem.weight",
        "body.stem.bias",
        "body.stages_0.blocks.0.gamma",
        "body.stages_0.blocks.0.conv.weight",
        "body.stages_0.blocks.1.mlp.fc1.weight",
        "body.stages_1.downsample.0.weight",
        "body.stages_1.downsample.1.bias",
        "body.norm.weight",
    ),
    tuple(torch.Size(shape) for shape in [(4, 3), (4,), (6,), (6, 2, 1), (9,), (3, 5), (8,), ()]),
)
SEGMENTS = {
    "global": {"update": (0, 67)},
    "layer": {
        "body.stem.weight": (0, 12),
        "body.stem.bias": (12, 16),
        "body.stages_0.blocks.0.gamma": (16, 22),
        "body.stages_0.blocks.0.conv.weight": (22, 34),
        "body.stages_0.blocks.1.mlp.fc1.weight": (34, 43),
        "body.stages_1.downsample.0.weight": (43, 58),
        "body.stages_1.downsample.1.bias": (58, 66),
        "body.norm.weight": (66, 67),
    },
    "block": {
        "body": (0, 16),
        "body.stages_0.blocks.0": (16, 34),
        "body.stages_0.blocks.1": (34, 43),
        "body.stages_1.downsample": (43, 66),
        "body ": (66, 67),  # once more
    },
}


def reference_count(rule: str, name: str, values: np.ndarray) -> tuple[int, float]:
    """How many entries of a segment are kept in round 2 of 5, and the ρ to divide by."""
    if rule == "energy":
        squares = sorted((Fraction(float(value)) ** 2 for value in values), reverse=True)
        least = math.ceil(Fraction(1, 10) * len(values))
        k = next(k for k in range(least, len(values) + 1) if sum(squares[:k]) >= Fraction(7, 10) * sum(squares))
        return k, k / len(values)
    layer = "1/2" if "blocks" in name else "1/4" if name == "body.stem.bias" else "1/10"
    rho = Fraction({"constant": "3/10", "schedule": "8/10", "layer": layer}[rule])
    return math.ceil(rho * len(values)), float(rho)


RULES: dict[str, float | Rho] = {
    "constant": 0.3,
    "schedule": ScheduledRho(start=1, end=0.2),
    "layer": LayerRho(rho_by_pattern={"blocks": 0.5, "stem.b": 0.25, "gamma": 1}, default=0.1),
    "energy": EnergyRho(energy=0.7, smallest=0.1),
}


@pytest.mark.parametrize("select", ["magnitude", "random"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rescale", RESCALES)
@pytest.mark.parametrize("scope", SEGMENTS)
def test_every_member_of_the_family(scope: Any, rescale: Any, rule: str, select: Any) -> None:
    if (rule, scope) == ("layer", "global"):
        return  # refused
    delta = normal(3, 67).mul(8).round() / 8  # with ties
    delta[16:34] = 0
    dea = DEA(rho=RULES[rule], rescale=rescale, scope=scope, select=select)
    sent = dea(PartUpdate(delta.clone()), Sending(NET, "ann", round=2, rounds=5))
    assert sent.mask is not None
    assert sent.overlap == dea.overlap == (rescale == "overlap")
    for name, (start, stop) in SEGMENTS[scope].items():
        values, mask = delta[start:stop].double().numpy(), sent.mask[start:stop].numpy()
        count, rho = reference_count(rule, name.strip(), values)
        assert mask.sum() == count, name
        if select == "magnitude":
            assert set(np.flatnonzero(mask)) == set(np.argsort(-np.abs(values), kind="stable")[:count])
        kept = values * mask
        norms = np.linalg.norm(values), np.linalg.norm(kept)
        gain = {"inverse": 1 / rho, "norm": norms[0] / norms[1] if norms[1] else 1}.get(rescale, 1)
        np.testing.assert_allclose(sent.delta[start:stop].numpy(), kept * gain, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("scope", SEGMENTS)
def test_segments_are_views_in_order(scope: Any) -> None:
    delta = normal(0, 67)
    pieces = list(segments(delta, NET, scope))
    assert [name for name, _ in pieces] == [name.strip() for name in SEGMENTS[scope]]
    assert torch.equal(torch.cat([values for _, values in pieces]), delta)
    assert [values.data_ptr() for _, values in pieces] == [delta[i:].data_ptr() for i, _ in SEGMENTS[scope].values()]


@pytest.mark.parametrize(
    ("backbone", "blocks"),
    [
        ("test_convnext", {"stages_0.blocks.0": 9, "stages_1.downsample": 4, "stages_3.blocks.0": 9}),
        ("test_efficientnet", {"blocks.0.0": 3, "blocks.4.0": 13}),
        ("resnet18", {"layer1.0": 6, "layer2.0": 9, "layer4.1": 6}),
        ("swin_tiny_patch4_window7_224", {"patch_embed": 4, "layers_1.downsample": 3, "layers_2.blocks.5": 13}),
    ],
)
def test_blocks_are_those_of_the_backbone(backbone: str, blocks: dict[str, int]) -> None:
    options = {"embed_dim": 24} if "swin" in backbone else {}  # built in less time
    layout = FlatPart(FeaturePyramid(backbone, options=options)).layout
    marks = torch.cat([torch.full((size,), i) for i, size in enumerate(layout.sizes)])
    found = {name: len(values.unique()) for name, values in segments(marks, layout, "block")}
    assert found.items() >= {f"body.{name}": count for name, count in blocks.items()}.items()
    assert sum(found.values()) == len(layout.names)
    assert max(found.values()) <= 13


def drawn(**changes: Any) -> Tensor:
    mask = DEA(rho=0.3, select="random")(PartUpdate(normal(0)), Sending(LAYOUT, **{"client": "ann", **changes})).mask
    assert mask is not None
    return mask


def test_random_selection_follows_seed_client_and_round() -> None:
    assert torch.equal(drawn(), drawn(rounds=7))
    for changes in ({"seed": 1}, {"client": "bob"}, {"round": 2}):
        assert not torch.equal(drawn(), drawn(**changes)), changes


def test_random_selection_is_uniform_and_unbiased() -> None:
    dea, delta, draws = DEA(rho=0.3, select="random"), normal(0), 4000
    sent = torch.stack([dea(PartUpdate(delta), Sending(LAYOUT, seed=seed)).delta for seed in range(draws)]).double()
    error = delta.double().abs() * math.sqrt(0.7 / 0.3 / draws)  # standard error of a mean
    assert ((sent.mean(dim=0) - delta).abs() <= 5 * error).all()


whole_numbers = npst.arrays(np.float32, (5, 67), elements=st.integers(-1000, 1000).map(float))


@settings(deadline=None, max_examples=40)
@given(whole_numbers, st.sampled_from(["layer", "block"]), st.sampled_from(list(RULES)), st.booleans())
def test_error_feedback_loses_nothing(updates: np.ndarray, scope: Any, rule: str, random: bool) -> None:
    select: Any = "random" if random else "magnitude"
    memory: dict[str, Tensor] = {}
    total = torch.zeros(67)
    for round, array in enumerate(updates, start=1):
        before = {name: (tensor, tensor.clone()) for name, tensor in memory.items()}
        dea = DEA(rho=RULES[rule], rescale="none", scope=scope, select=select, error_feedback=True)
        sent = dea(PartUpdate(torch.from_numpy(array.copy())), Sending(NET, "ann", round, 5, memory=memory))
        assert sent.mask is not None
        assert not sent.delta[~sent.mask].any()
        assert not memory["residual"][sent.mask].any()
        assert all(torch.equal(*pair) for pair in before.values())  # as the server may refuse the update
        total += sent.delta
        assert torch.equal(total + memory["residual"], torch.from_numpy(updates[:round].sum(axis=0)))


def test_error_feedback_sends_later_what_it_held_back() -> None:
    dea, memory = DEA(rho=0.5, error_feedback=True), {}
    layout = Layout(("a",), (torch.Size([2]),))
    sent = [dea(PartUpdate(torch.tensor([3.0, 2.0])), Sending(layout, memory=memory)).delta for _ in range(3)]
    assert [delta.tolist() for delta in sent] == [[6, 0], [0, 8], [12, 0]]  # 3; 2 + 2; 3 + 3, twice each


def test_without_error_feedback_nothing_is_kept() -> None:
    sending = Sending(LAYOUT, memory={"residual": torch.ones(D)})
    assert torch.equal(DEA()(PartUpdate(normal(0)), sending).delta, send(DEA(), normal(0)).delta)
    assert torch.equal(sending.memory["residual"], torch.ones(D))


def test_what_an_earlier_transform_dropped_does_not_count_as_sent() -> None:
    earlier = masked([5.0, 4.0, 0.0, 0.0, 0.0], [1, 0, 1, 0, 0])
    layout = Layout(("a",), (torch.Size([5]),))
    sent = DEA(rho=0.6)(earlier, Sending(layout))
    assert sent.mask is not None
    assert sent.mask.tolist() == [True, False, True, False, False]
