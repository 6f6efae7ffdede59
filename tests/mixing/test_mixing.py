"""What every personalised merge keeps to: order, alone, zero, finite, inputs, state, equal clients."""

import copy
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedmtl.mixing import Exchange, FedAMP, FedHCA2, MaTFL, Mixing

from .federation import encoders, exchange

METHODS: dict[str, Callable[[], Mixing]] = {
    "matfl": MaTFL,
    "matfl-soft": lambda: MaTFL(grouping="soft", threshold=0.3),
    "fedhca2": FedHCA2,
    "fedamp": lambda: FedAMP(sigma=20.0, alpha=3.0),
    "fedamp-relative": lambda: FedAMP(attention="relative"),
    "fedamp-cosine": lambda: FedAMP(attention="cosine", sigma=5.0),
}
every = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS.keys())

TASKS = [("semseg",), ("depth", "edge"), (), ("semseg", "depth"), ("edge",)]


def a_round(seed: int) -> list[Exchange]:
    """Five clients; one has no head, one shares no encoder."""
    return [
        exchange(f"client_{index}", 100 * seed + index, heads, weight=1.0 + index, encoder=index != 4)
        for index, heads in enumerate(TASKS)
    ]


@every
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(len(TASKS))))
def test_order_of_clients_changes_nothing(make: Callable[[], Mixing], order: list[int]) -> None:
    """To the bit, over rounds."""
    one, other = make(), make()
    for seed in range(2):
        clients = a_round(seed)
        plain, permuted = one.mix(clients), other.mix([clients[index] for index in order])
        for place, index in enumerate(order):
            assert permuted[place].keys() == plain[index].keys() == clients[index].updates.keys()
            for part, values in plain[index].items():
                assert torch.equal(values, permuted[place][part])


entries = st.one_of(
    st.floats(-1e6, 1e6, width=32, allow_subnormal=False), st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e12, -1e12])
)
matrices = st.integers(1, 5).flatmap(lambda count: npst.arrays(np.float32, (count, 3), elements=entries))


@every
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_finite_in_finite_out(make: Callable[[], Mixing], data: st.DataObject) -> None:
    mixing = make()
    updates = data.draw(matrices)
    before = data.draw(npst.arrays(np.float32, updates.shape, elements=entries))
    for _ in range(3):
        for parts in mixing.mix(encoders(before, updates)):
            assert torch.isfinite(parts["encoder"]).all()
        updates = -updates


@every
def test_a_lone_client_takes_its_own_update(make: Callable[[], Mixing]) -> None:
    client = exchange("a", 0, ("semseg",))
    (parts,) = make().mix([client])
    assert parts.keys() == client.updates.keys()
    for part, values in parts.items():
        assert torch.equal(values, client.after(part))


@every
def test_no_clients(make: Callable[[], Mixing]) -> None:
    assert make().mix([]) == []


@every
def test_equal_clients_that_did_not_move_stay(make: Callable[[], Mixing]) -> None:
    start = np.tile([1.5, -2.0, 0.25], (4, 1))
    for parts in make().mix(encoders(start, np.zeros((4, 3)))):
        assert parts["encoder"].tolist() == start[0].tolist()


@every
def test_equal_clients_get_equal_models(make: Callable[[], Mixing]) -> None:
    clients = [exchange("a", 0), exchange("b", 1), exchange("c", 0)]
    mixing = make()
    for _ in range(2):
        a, b, c = mixing.mix(clients)
        for part in a:
            np.testing.assert_allclose(a[part].numpy(), c[part].numpy(), rtol=1e-6, atol=1e-6)
        assert not torch.allclose(a["encoder"], b["encoder"])


@every
def test_inputs_stay_as_they_are(make: Callable[[], Mixing]) -> None:
    clients, mixing = a_round(0), make()
    before = copy.deepcopy(clients)
    mixed = mixing.mix(clients)
    for parts in mixed:
        for values in parts.values():
            values.add_(1)  # nor is a result a view of an input
    for client, was in zip(clients, before, strict=True):
        for part in was.updates:
            assert torch.equal(client.updates[part], was.updates[part])
            assert torch.equal(client.before[part], was.before[part])


@every
def test_results_carry_no_graph(make: Callable[[], Mixing]) -> None:
    clients = [exchange("a", 0), exchange("b", 1)]
    for client in clients:
        client.before["encoder"].requires_grad_()  # as the server's own parameters do
    assert not any(values.requires_grad for parts in make().mix(clients) for values in parts.values())


@every
def test_state_through_a_file(make: Callable[[], Mixing]) -> None:
    one, other = make(), make()
    one.mix(a_round(0))
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for mixed, again in zip(one.mix(a_round(1)), other.mix(a_round(1)), strict=True):
        assert all(torch.equal(mixed[part], again[part]) for part in mixed)


@every
def test_a_client_twice_is_refused(make: Callable[[], Mixing]) -> None:
    with pytest.raises(ValueError, match="client a is there twice"):
        make().mix([exchange("a", 0), exchange("b", 1), exchange("a", 2)])
