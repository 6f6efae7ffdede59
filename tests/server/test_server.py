"""The server against NumPy: merging, server optimizers, heads, buffers, refusals, resuming."""

import io
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmtl.aggregation import DEA, PartUpdate, Sending, Update
from fedmtl.errors import UserError
from fedmtl.server import Server
from fedmtl.vector import Layout, PartState

D = 12
LAYOUT = Layout(("a", "b"), (torch.Size([5]), torch.Size([7])))
HEADS = {"heads.depth": 3, "heads.semseg": 2}


def normal(d: int, *seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=d).astype(np.float32))


def first_state() -> dict[str, PartState]:
    buffers = {
        "running_mean": torch.zeros(4),
        "running_var": torch.ones(4),
        "num_batches_tracked": torch.tensor(10),
    }
    encoder = PartState(normal(D, 0), buffers)
    return {"encoder": encoder, **{name: PartState(normal(d, 1, d)) for name, d in HEADS.items()}}


def started(**options: Any) -> Server:
    server = Server(**options)
    server.start(first_state())
    return server


def update(client: str, seed: int, *, examples: int = 1, heads: Sequence[str] = (), variance: float = 1.0) -> Update:
    buffers = {
        "running_mean": normal(4, seed, 2),
        "running_var": torch.full((4,), variance),
        "num_batches_tracked": torch.tensor(10 + seed),
    }
    parts = {"encoder": PartUpdate(normal(D, seed, 3), buffers)}
    parts |= {name: PartUpdate(normal(HEADS[name], seed, 4)) for name in heads}
    return Update(client, examples, parts)


def federation(round: int) -> list[Update]:
    return [
        update("a", 10 * round, examples=265, heads=["heads.depth"], variance=0.5),
        update("b", 10 * round + 1, examples=100, heads=["heads.semseg"], variance=2.0),
        update("c", 10 * round + 2, examples=7, heads=["heads.depth", "heads.semseg"], variance=3.0),
    ]


def do_round(server: Server, updates: Sequence[Update]) -> None:
    for one in updates:
        assert server.receive(one)
    server.step()


def mean(updates: Sequence[Update], part: str, value: Callable[[PartUpdate], Tensor], uniform: bool = False) -> Any:
    """Weighted mean in float64 over the clients that have the part."""
    owners = [one for one in updates if part in one.parts]
    weights = [1 if uniform else one.examples for one in owners]
    return np.average([value(one.parts[part]).double().numpy() for one in owners], axis=0, weights=weights)


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("rounds", [1, 4])
def test_rounds_of_fedavg(weighting: Any, rounds: int) -> None:
    server, expected = started(weighting=weighting), first_state()
    numbers = {name: part.vector.double().numpy() for name, part in expected.items()}
    uniform = weighting == "uniform"
    for round in range(1, rounds + 1):
        updates = federation(round)
        do_round(server, updates)
        for name in numbers:
            numbers[name] = numbers[name] + mean(updates, name, lambda part: part.delta, uniform)
        buffers = server.state["encoder"].buffers
        for name in ("running_mean", "running_var"):
            expected_buffer = mean(updates, "encoder", lambda part, name=name: part.buffers[name], uniform)
            np.testing.assert_allclose(buffers[name].numpy(), expected_buffer, rtol=1e-6, atol=1e-7)
        assert buffers["num_batches_tracked"].item() == 10
    for name, vector in numbers.items():
        np.testing.assert_allclose(server.state[name].vector.numpy(), vector, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", [None, lambda parameters: torch.optim.SGD(parameters, lr=1.0)])
def test_fedavg_adds_the_mean_to_the_bit(optimizer: Any) -> None:
    server = started(optimizer=optimizer)
    one = update("a", 1)
    do_round(server, [one])
    assert torch.equal(server.state["encoder"].vector, first_state()["encoder"].vector + one.parts["encoder"].delta)


def sgd_momentum(vector: Any, means: list[Any]) -> Any:
    velocity = 0.0
    for m in means:
        velocity = 0.9 * velocity + m
        vector = vector + 0.5 * velocity
    return vector


def adam(vector: Any, means: list[Any]) -> Any:
    first = second = 0.0
    for t, m in enumerate(means, start=1):
        first, second = 0.9 * first + 0.1 * m, 0.99 * second + 0.01 * m**2
        vector = vector + 0.1 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.99**t)) + 1e-3)
    return vector


OPTIMIZERS: dict[str, tuple[Any, Any]] = {
    "momentum": (lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9), sgd_momentum),
    "adam": (lambda parameters: torch.optim.Adam(parameters, lr=0.1, betas=(0.9, 0.99), eps=1e-3), adam),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_server_optimizers_move_the_encoder_and_leave_heads_to_the_mean(name: str) -> None:
    make, formula = OPTIMIZERS[name]
    server = started(optimizer=make)
    rounds = [federation(round) for round in range(1, 5)]
    for updates in rounds:
        do_round(server, updates)
    start = {name: part.vector.double().numpy() for name, part in first_state().items()}
    means = {part: [mean(updates, part, lambda p: p.delta) for updates in rounds] for part in start}
    expected = formula(start["encoder"], means["encoder"])
    np.testing.assert_allclose(server.state["encoder"].vector.numpy(), expected, rtol=1e-4, atol=1e-5)
    for head in HEADS:
        expected = start[head] + np.sum(means[head], axis=0)
        np.testing.assert_allclose(server.state[head].vector.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_head_without_clients_in_a_round_stays() -> None:
    server = started()
    do_round(server, [update("a", 1, heads=["heads.depth"])])
    assert torch.equal(server.state["heads.semseg"].vector, first_state()["heads.semseg"].vector)
    assert not torch.equal(server.state["heads.depth"].vector, first_state()["heads.depth"].vector)


def test_clients_that_share_nothing_change_nothing() -> None:
    server = started()
    do_round(server, [Update("a", 3, {}), Update("b", 4, {})])
    assert all(torch.equal(part.vector, first_state()[name].vector) for name, part in server.state.items())


def test_dea_never_touches_buffers() -> None:
    server, dea = started(), DEA(rho=0.1)
    for round in range(1, 6):
        updates = federation(round)
        for one in updates:
            one.parts["encoder"] = dea(one.parts["encoder"], Sending(LAYOUT))
        do_round(server, updates)
        expected = mean(updates, "encoder", lambda part: part.buffers["running_var"])
        np.testing.assert_allclose(server.state["encoder"].buffers["running_var"].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["encoder", "head", "buffer", "own weights"])
def test_an_update_that_is_not_finite_leaves_no_trace(
    value: float, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = federation(1), update("broken", 9, examples=10**6, heads=["heads.depth"])
    if place == "own weights":
        bad.healthy = False
    else:
        encoder, head = bad.parts["encoder"], bad.parts["heads.depth"]
        {"encoder": encoder.delta, "head": head.delta, "buffer": encoder.buffers["running_var"]}[place][1] = value
    server, clean = started(optimizer=OPTIMIZERS["adam"][0]), started(optimizer=OPTIMIZERS["adam"][0])
    with caplog.at_level(logging.WARNING, logger="fedmtl"):
        assert [server.receive(one) for one in (good[0], bad, *good[1:])] == [True, False, True, True]
    assert [record.getMessage() for record in caplog.records if "broken" in record.getMessage()]
    assert (server.refused, server.received) == (["broken"], ["a", "b", "c"])
    server.step()
    do_round(clean, good)
    for name, part in clean.state.items():
        assert torch.equal(server.state[name].vector, part.vector)
        assert all(torch.equal(server.state[name].buffers[key], value) for key, value in part.buffers.items())
    assert (server.refused, server.received) == ([], [])


def test_too_few_updates_end_the_run_and_say_why() -> None:
    server = started(min_clients=2)
    bad = update("broken", 2)
    bad.parts["encoder"].delta[0] = math.nan
    server.receive(update("a", 1))
    server.receive(bad)
    with pytest.raises(UserError, match=r"^only 1 usable .* server.min_clients asks for 2 \(not finite: broken\)"):
        server.step()
    assert torch.equal(server.state["encoder"].vector, first_state()["encoder"].vector)
    with pytest.raises(UserError, match="^only 0 usable client updates, server.min_clients asks for 1;"):
        started().step()
    with pytest.raises(ValueError, match="min_clients must be at least 1, not 0"):
        Server(min_clients=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_server_goes_on_to_the_bit(name: str) -> None:
    make = OPTIMIZERS[name][0]
    server, other = started(optimizer=make), started(optimizer=make)
    for round in (1, 2):
        do_round(server, federation(round))
    file = io.BytesIO()
    torch.save(server.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for round in (3, 4):
        do_round(server, federation(round))
        do_round(other, federation(round))
    for name, part in server.state.items():
        assert torch.equal(other.state[name].vector, part.vector)
        assert all(torch.equal(other.state[name].buffers[key], value) for key, value in part.buffers.items())
