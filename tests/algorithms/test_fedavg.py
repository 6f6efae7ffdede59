"""FedAvg against a loop in NumPy; that the other algorithms' hooks leave it alone."""

from typing import Any

import numpy as np
import pytest
import torch

from fedmtl.algorithms import FedAvg, LocalAlgorithm, ServerRule

from .quadratics import D, Federation, data, sgd

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 0.1


def test_rounds_with_some_of_the_clients_equal_numpy() -> None:
    images = [data(k, batches=3, examples=k + 1) for k in range(3)]
    federation = Federation(FedAvg(), images, rate=RATE, weighting="examples")
    theta = federation.point()
    for chosen in ([0, 2], [1], [0, 1, 2]):
        models = []
        for k in chosen:
            local = theta.copy()
            for batch in range(3):
                local -= RATE * images[k].gradient(batch, local)
            models.append(local)
        theta = np.average(models, axis=0, weights=[k + 1 for k in chosen])
        federation.round(chosen)
        np.testing.assert_allclose(federation.point(), theta, rtol=1e-4, atol=1e-5)
    assert all(not client.state.algorithm and not client.state.own for client in federation.clients)
    assert federation.server.broadcast() == {}
    assert federation.server.rule.state_dict() == {}


@pytest.mark.parametrize("algorithm", [None, FedAvg(), LocalAlgorithm()])
def test_a_clients_round_is_a_plain_torch_loop_to_the_bit(algorithm: Any) -> None:
    images = data(0, d=D + 2, batches=4)
    federation = Federation(algorithm, [images], tasks=[["a"]], epochs=[2], optimizer=sgd(RATE, momentum=0.9))
    state = federation.engine.state()
    x = torch.cat([state["encoder"].vector, state["heads.a"].vector]).requires_grad_()
    start = x.detach().clone()
    optimizer = torch.optim.SGD([x], lr=RATE, momentum=0.9)
    for _ in range(2):
        for batch in images:
            optimizer.zero_grad()
            ((x - batch["centre"]) @ batch["curvature"] @ (x - batch["centre"]) / 2).backward()
            optimizer.step()
    [result] = federation.round()
    update = torch.cat([result.update.parts[name].delta for name in ("encoder", "heads.a")])
    assert torch.equal(update, x.detach() - start)
    assert result.update.message == {}


def test_the_plain_server_rule_changes_nothing() -> None:
    rule, merged = ServerRule(), {"encoder": torch.ones(3)}
    rule.start({"encoder": 2})
    rule.receive(merged, {}, 1.0)
    rule.apply(merged)
    assert torch.equal(merged["encoder"], torch.ones(3))
