from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl.aggregation import DEA, PartUpdate, Sending, WeightedMean
from fedmtl.diagnostics import Diagnostics, interference
from fedmtl.diagnostics.diagnostics import _stages
from fedmtl.vector import Layout

LAYOUT = Layout(
    ("body.stem.weight", "body.layer1.0.weight", "body.layer1.1.bias"), tuple(map(torch.Size, ([2, 2], [3], [5])))
)
D = sum(LAYOUT.sizes)
STAGES = {"stem": slice(0, 4), "layer1": slice(4, 12)}


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def random_round(seed: int, clients: int, *, masked: bool, overlap: bool = False, held: bool = False):
    """Updates of clients with exact zeros in them, what they send, their weights, and the encoder before and after."""
    rng = np.random.default_rng(seed)
    observed = []
    for k in range(clients):
        raw = rng.normal(size=D) * rng.integers(0, 2 if k % 2 else 4, size=D).clip(max=1) * 10.0 ** rng.integers(-4, 2)
        mask = rng.random(D) < rng.random() if masked and k != 2 else None
        memory = (raw == 0) * rng.integers(0, 2, size=D)  # what error feedback may add where training moved nothing
        sent = (raw * rng.uniform(0.5, 3) + memory) * (1 if mask is None else mask)
        raw, sent = (torch.tensor(v, dtype=torch.float32) for v in (raw, sent))
        part = PartUpdate(sent, mask=None if mask is None else torch.tensor(mask), overlap=overlap and k != 0)
        part.held = torch.tensor(rng.random(D) < 0.7) if held else None
        observed.append((f"client{k}", raw, part, float(rng.integers(1, 9))))
    before, after = (torch.tensor(rng.normal(size=D), dtype=torch.float32) for _ in range(2))
    return observed, before, after


def measure(observed, before, after, **options):
    diagnostics = Diagnostics(**options)
    for one in observed:
        diagnostics.observe(*one)
    return diagnostics.measure(LAYOUT, before, after)


def naive_row(observed, before, after) -> dict[str, float]:
    """Every number, coordinate by coordinate."""
    names = [name for name, *_ in observed]
    raw = {name: r.double().numpy() for name, r, _, _ in observed}
    sent = {name: part.delta.double().numpy() for name, _, part, _ in observed}
    held = {name: np.ones(D, bool) if part.held is None else part.held.numpy() for name, _, part, _ in observed}
    masks = {name: held[name] if part.mask is None else part.mask.numpy() for name, _, part, _ in observed}
    before, after = before.double().numpy(), after.double().numpy()
    step = (after.astype(np.float32) - before.astype(np.float32)).astype(float)
    each, pairs, whole = {}, {}, {}
    masked = any(part.mask is not None for _, _, part, _ in observed)

    def cosine(a, b):
        return ratio(sum(a * b), np.sqrt(sum(a * a)) * np.sqrt(sum(b * b)))

    def conflict(a, b):
        met = [(x, y) for x, y in zip(a, b, strict=True) if x != 0 and y != 0]
        return ratio(sum((x > 0) != (y > 0) for x, y in met), len(met))

    for key, measure_pair, of in [
        ("cosine", cosine, raw),
        ("sign_conflict", conflict, raw),
        ("sent_cosine", cosine, sent),
        ("sent_sign_conflict", conflict, sent),
    ]:
        pairs[key] = {(a, b): measure_pair(of[a], of[b]) for a, b in combinations(names, 2)}
    each["norm"] = {n: np.sqrt(sum(raw[n] ** 2)) for n in names}
    each["step_cosine"] = {n: cosine(raw[n], step) for n in names}
    whole["step"] = np.linalg.norm(step) / np.linalg.norm(before)
    whole["drift"] = np.mean([np.linalg.norm(before + raw[n] - after) for n in names]) / np.linalg.norm(after)
    gain = []
    for j in range(D):
        if all(raw[n][j] == 0 for n in names):
            continue
        top = bottom = 0.0
        for name, _, part, weight in observed:
            kept = part.mask if part.overlap and part.mask is not None else part.held
            counts = kept is None or bool(kept[j])
            top += weight * counts * ratio(sent[name][j], raw[name][j])
            bottom += weight * counts
        gain.append(ratio(top, bottom))
    whole["gain/mean"], whole["gain/max"] = (np.mean(gain), max(gain)) if gain else (0, 0)
    whole["gain/p95"] = np.quantile(gain, 0.95) if gain else 0
    if masked:
        pairs["mask_overlap"] = {
            (a, b): ratio(sum(masks[a] & masks[b]), sum(masks[a] | masks[b])) for a, b in combinations(names, 2)
        }
        each["kept"] = {n: ratio(masks[n].sum(), held[n].sum()) for n in names}
        each["kept_energy"] = {n: ratio(sum(raw[n][masks[n]] ** 2), sum(raw[n] ** 2)) for n in names}
        for stage, span in STAGES.items():
            each[f"mask_share/{stage}"] = {n: ratio(masks[n][span].sum(), held[n][span].sum()) for n in names}
        holders = [sum(bool(masks[n][j]) for n in names) for j in range(D)]
        whole |= {f"held_by/{n}": holders.count(n) / D for n in range(len(names) + 1)}
    row = {f"diag/{key}": value for key, value in whole.items()}
    for key, values in each.items():
        row |= {f"diag/{key}": np.mean(list(values.values())), **{f"diag/{key}/{n}": v for n, v in values.items()}}
    for key, values in pairs.items() if len(names) > 1 else ():
        row[f"diag/{key}"] = np.mean(list(values.values()))
        row |= {f"diag/{key}/{a}~{b}": v for (a, b), v in values.items()}
    return row


@settings(deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 4), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([2, 7, 64])
)
def test_every_number_is_what_a_naive_count_gives(
    seed: int, clients: int, masked: bool, overlap: bool, held: bool, block: int
) -> None:
    given_round = random_round(seed, clients, masked=masked, overlap=overlap, held=held)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interference, "_BLOCK", block)
        row, _ = measure(*given_round)
    assert row == pytest.approx(naive_row(*given_round), rel=1e-4, abs=2e-6)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(4)))
def test_another_order_of_clients_only_renames(seed: int, order: list[int]) -> None:
    observed, before, after = random_round(seed, 4, masked=True, overlap=True)
    row, _ = measure(observed, before, after)
    other, _ = measure([observed[k] for k in order], before, after)

    def sorted_pairs(numbers):
        return {"~".join(sorted(key.replace("/", "/~").split("~"))): value for key, value in numbers.items()}

    assert sorted_pairs(other) == pytest.approx(sorted_pairs(row), rel=1e-5, abs=1e-7)


def test_plain_updates_have_neither_gains_nor_masks() -> None:
    observed, before, after = random_round(0, 3, masked=False)
    plain = [(name, raw, PartUpdate(raw), weight) for name, raw, _, weight in observed]
    row, details = measure(plain, before, after)
    shared = {"diag/cosine/client0~client2", "diag/sign_conflict", "diag/norm/client1", "diag/step", "diag/drift"}
    assert shared <= row.keys()
    assert not [key for key in row if "sent" in key or "gain" in key or "mask" in key or "kept" in key or "held" in key]
    assert "mask_share" not in details


def test_one_client_alone_neither_drifts_nor_meets_anyone() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randint(-8, 8, (D,), generator=generator).float()
    raw = torch.randint(-8, 8, (D,), generator=generator).float()
    row, _ = measure([("a", raw, PartUpdate(raw), 3.0)], before, before + raw)
    assert row["diag/drift"] == pytest.approx(0, abs=1e-7)
    assert row["diag/step_cosine/a"] == pytest.approx(1)
    assert not [key for key in row if "cosine/a~" in key or key == "diag/cosine"]


@pytest.mark.parametrize("rescale", ["inverse", "none", "norm", "overlap"])
def test_gain_times_update_is_what_the_server_merges(rescale) -> None:
    """Clients whose updates are equal: the merged update is the gain times that update."""
    raw = torch.arange(1.0, D + 1)
    mean, diagnostics = WeightedMean(), Diagnostics()
    for k, rho in enumerate((0.25, 0.5, 0.75)):
        sent = DEA(rho=rho, rescale=rescale)(PartUpdate(raw.clone()), Sending(LAYOUT))
        mean.add(sent, weight=k + 1.0)
        diagnostics.observe(f"c{k}", raw, sent, weight=k + 1.0)
    gain = mean.merge() / raw
    row, _ = diagnostics.measure(LAYOUT, torch.ones(D), torch.ones(D))
    assert row["diag/gain/mean"] == pytest.approx(float(gain.mean()), rel=1e-5)
    assert row["diag/gain/p95"] == pytest.approx(float(gain.quantile(0.95)), rel=1e-5)
    assert row["diag/gain/max"] == pytest.approx(float(gain.max()), rel=1e-5)


def test_rows_of_many_clients_stay_short() -> None:
    observed, before, after = random_round(1, 6, masked=True)
    row, details = measure(observed, before, after, clients_in_row=5)
    full, same = measure(observed, before, after)
    assert row == {key: full[key] for key in row}
    assert measure(observed, before, after, clients_in_row=6)[0] == full
    assert not [key for key in row if "client" in key or "held_by" in key]
    assert {"diag/cosine", "diag/norm", "diag/mask_share/stem", "diag/mask_overlap"} <= row.keys()
    assert details == same


def test_details_hold_tensors_and_magnitudes() -> None:
    observed, before, after = random_round(2, 2, masked=True)
    observed[1] = ("client1", torch.tensor([0.0, 1e-20, 1e20, 0.3] + [0.0] * 8), *observed[1][2:])
    _, details = measure(observed, before, after)
    assert details["clients"] == ["client0", "client1"]
    assert details["tensors"] == {"names": list(LAYOUT.names), "sizes": [4, 3, 5]}
    mask = observed[0][2].mask.double()
    assert details["mask_share"][0] == pytest.approx([float(m.mean()) for m in mask.split(LAYOUT.sizes)], abs=1e-4)
    edges, counts = details["magnitudes"]["edges"], details["magnitudes"]["counts"]
    raw = observed[0][1].double().abs().numpy()
    with np.errstate(divide="ignore"):
        expected, _ = np.histogram(np.log10(raw).clip(-12, 3), bins=np.linspace(-12, 3, 31))
    assert counts[0] == expected.tolist()
    assert (counts[1][0], counts[1][-1], sum(counts[1])) == (10, 1, D)
    assert len(edges) == len(counts[0]) + 1
    matrix = details["pairs"]["mask_overlap"]
    assert matrix[0][1] == matrix[1][0]
    assert matrix[0][0] == 1


def test_huge_and_tiny_updates_do_not_overflow() -> None:
    observed, before, after = random_round(3, 2, masked=False)
    scaled = [
        (name, raw * scale, PartUpdate(raw * scale), w)
        for (name, raw, _, w), scale in zip(observed, (1e30, 1e-30), strict=True)
    ]
    row, _ = measure(scaled, before, after)
    plain, _ = measure([(name, raw, PartUpdate(raw), w) for name, raw, _, w in observed], before, after)
    assert row["diag/cosine"] == pytest.approx(plain["diag/cosine"], rel=1e-5)
    assert row["diag/norm/client0"] == pytest.approx(1e30 * plain["diag/norm/client0"], rel=1e-5)
    assert row["diag/norm/client1"] == pytest.approx(1e-30 * plain["diag/norm/client1"], rel=1e-5)


def test_long_vectors_are_sampled_at_spread_out_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interference, "SAMPLE", 1000)
    seen = interference.sampled(torch.arange(100_000))
    assert seen.tolist() == list(range(0, 100_000, 101))  # not 100, which many widths are multiples of
    assert interference.sampled(torch.arange(1000)).tolist() == list(range(1000))


def test_numbers_of_long_vectors_are_near_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    layout = Layout(("a", "b"), (torch.Size([1000, 30]), torch.Size([20_000])))
    signal = rng.standard_t(3, size=50_000)
    diagnostics = [Diagnostics(), Diagnostics()]
    for k in range(3):
        raw = torch.tensor(signal + rng.standard_t(3, size=50_000), dtype=torch.float32)
        sent = DEA(rho=0.3, rescale="overlap")(PartUpdate(raw.clone()), Sending(layout))
        for one in diagnostics:
            one.observe(f"c{k}", raw, sent, k + 1.0)
    before, after = torch.zeros(50_000), torch.ones(50_000)
    exact, _ = diagnostics[0].measure(layout, before, after)
    monkeypatch.setattr(interference, "SAMPLE", 10_000)
    near, _ = diagnostics[1].measure(layout, before, after)
    of_sample = ("sent_", "sign_conflict", "gain", "mask_overlap", "held_by")
    assert near.keys() == exact.keys()
    for key, value in near.items():
        if any(word in key for word in of_sample):
            assert value == pytest.approx(exact[key], abs=0.03), key
        else:
            assert value == exact[key], key
    assert near["diag/sign_conflict"] != exact["diag/sign_conflict"]


def test_what_was_observed_is_forgotten() -> None:
    observed, before, after = random_round(4, 2, masked=True)
    diagnostics = Diagnostics()
    for one in observed:
        diagnostics.observe(*one)
    assert diagnostics.measure(LAYOUT, before, after)[0]
    assert diagnostics.measure(LAYOUT, before, after) == ({}, {})


def test_nothing_given_is_changed() -> None:
    observed, before, after = random_round(5, 2, masked=True, overlap=True)
    tensors = [before, after, *(t for _, raw, part, _ in observed for t in (raw, part.delta, part.mask))]
    copies = [tensor.clone() for tensor in tensors]
    measure(observed, before, after)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


def test_due_every_n_rounds() -> None:
    assert [round for round in range(1, 10) if Diagnostics(every=4).due(round)] == [4, 8]


@pytest.mark.parametrize("key", ["every", "clients_in_row"])
def test_wrong_values_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"diagnostics\.{key} must be at least 1, not 0"):
        Diagnostics(**{key: 0})


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        (
            ["body.stem_0.weight", "body.stages_0.blocks.0.gamma", "body.stages_0.blocks.1.gamma"],
            ["stem_0", "stages_0"],
        ),
        (
            ["body.conv_stem.weight", "body.blocks.0.0.bias", "body.blocks.0.1.bias", "body.blocks.12.0.bias"],
            ["conv_stem", "blocks.0", "blocks.12"],
        ),
        (["conv1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight"], ["conv1", "layer1"]),
        (["body.weight"], ["weight"]),
    ],
)
def test_stages_are_named_as_backbones_name_them(names: list[str], stages: list[str]) -> None:
    found = _stages(names)
    assert list(found) == stages
    assert sorted(i for members in found.values() for i in members) == list(range(len(names)))
