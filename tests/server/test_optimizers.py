"""The server optimizers of FedOpt against the paper's algorithm in NumPy, and torch's where they are the same."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import SGD, Adagrad

from fedmtl.aggregation import PartUpdate, Update
from fedmtl.server import FedAdam, FedYogi, Server
from fedmtl.vector import PartState

ROUNDS = np.random.default_rng(0).normal(scale=0.05, size=(6, 7))


def served(make: object) -> np.ndarray:
    """The encoder after each of the rounds."""
    server = Server(optimizer=make)
    server.start({"encoder": PartState(torch.ones(7))})
    ways = []
    for update in ROUNDS:
        server.receive(Update("a", 1, {"encoder": PartUpdate(torch.tensor(update, dtype=torch.float32))}))
        server.step()
        ways.append(server.state["encoder"].vector.clone().numpy())
    return np.stack(ways)


def reference(second: str, lr: float, beta1: float, beta2: float, tau: float) -> np.ndarray:
    theta, m, v, ways = np.ones(7), np.zeros(7), np.full(7, tau**2), []
    for update in ROUNDS:
        m = beta1 * m + (1 - beta1) * update
        if second == "adam":
            v = beta2 * v + (1 - beta2) * m**2
        elif second == "yogi":
            v = v - (1 - beta2) * m**2 * np.sign(v - m**2)
        else:
            v = v + m**2
        theta = theta + lr * m / (np.sqrt(v) + tau)
        ways.append(theta)
    return np.stack(ways)


@pytest.mark.parametrize(("kind", "make"), [("adam", FedAdam), ("yogi", FedYogi)])
@pytest.mark.parametrize("tau", [1e-3, 0.1])
def test_they_follow_the_papers_algorithm(kind: str, make: type, tau: float) -> None:
    found = served(partial(make, lr=0.03, betas=(0.8, 0.95), tau=tau))
    np.testing.assert_allclose(found, reference(kind, 0.03, 0.8, 0.95, tau), rtol=2e-5)


def test_adagrad_is_torchs() -> None:
    found = served(partial(Adagrad, lr=0.03, eps=1e-3, initial_accumulator_value=1e-6))
    np.testing.assert_allclose(found, reference("adagrad", 0.03, 0.0, 0.0, 1e-3), rtol=2e-5)


def test_sgd_with_a_step_and_momentum_is_fedavgm() -> None:
    theta, m, ways = np.ones(7), np.zeros(7), []
    for update in ROUNDS:
        m = 0.9 * m + update
        theta = theta + 0.5 * m
        ways.append(theta)
    np.testing.assert_allclose(served(partial(SGD, lr=0.5, momentum=0.9)), np.stack(ways), rtol=2e-5)


@pytest.mark.parametrize("make", [FedAdam, FedYogi])
def test_it_goes_on_from_its_state(make: type) -> None:
    servers = []
    for _ in range(2):
        server = Server(optimizer=partial(make, lr=0.03))
        server.start({"encoder": PartState(torch.ones(7))})
        servers.append(server)
    whole, resumed = servers
    for i, update in enumerate(ROUNDS):
        if i == 3:
            resumed.load_state_dict(deepcopy(whole.state_dict()))
        for server in servers if i >= 3 else [whole]:
            server.receive(Update("a", 1, {"encoder": PartUpdate(torch.tensor(update, dtype=torch.float32))}))
            server.step()
    assert torch.equal(whole.state["encoder"].vector, resumed.state["encoder"].vector)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"tau": 0.0}, {"betas": (1.0, 0.9)}, {"lr": float("nan")}])
def test_wrong_values_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FedAdam([torch.zeros(1, requires_grad=True)], **wrong)
