"""FedProx: its penalty's gradient, and rounds against NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from fedmtl.algorithms import FedAvg, FedProx, LocalRound, Phase
from fedmtl.vector import FlatPart

from .quadratics import D, Federation, data

pytestmark = pytest.mark.usefixtures("one_thread")


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(5))
        self.idle = nn.Parameter(torch.randn(2))


@pytest.mark.parametrize("trains", ["model", "encoder", "heads"])
def test_it_adds_the_gradient_of_its_penalty(trains: str) -> None:
    modules = {"encoder": Two(), "heads.a": Two()}
    parts = {name: FlatPart(module) for name, module in modules.items()}
    start = {name: torch.randn_like(part.vector) for name, part in parts.items()}
    run = LocalRound(parts, start, frozenset(["encoder"]), phase=Phase("train", 1, trains=trains))  # type: ignore[arg-type]
    pulled = {"model": ["encoder", "heads.a"], "encoder": ["encoder"], "heads": ["heads.a"]}[trains]
    for algorithm, strength in ((FedAvg(), 0.0), (FedProx(mu=0.3), 0.3)):
        for name, module in modules.items():
            gradients = {"weight": torch.randn(3, 2), "bias": torch.randn(5)}
            for key, gradient in gradients.items():
                getattr(module, key).grad = gradient.clone()
            anchors = dict(zip(parts[name].layout.names, parts[name].layout.views(start[name]), strict=True))
            penalty = sum((getattr(module, key) - anchors[key]).square().sum() for key in gradients) * strength / 2
            expected = torch.autograd.grad(penalty, [module.weight, module.bias])
            before = parts[name].vector.clone()
            algorithm.correct_gradients(run)
            for key, pull in zip(gradients, expected, strict=True):
                more = pull if name in pulled else torch.zeros_like(pull)
                torch.testing.assert_close(getattr(module, key).grad, gradients[key] + more)
                if not strength or name not in pulled:
                    assert torch.equal(getattr(module, key).grad, gradients[key])
            assert module.idle.grad is None
            assert torch.equal(parts[name].vector, before)
            module.zero_grad(set_to_none=True)


def test_rounds_with_some_of_the_clients_equal_numpy() -> None:
    rate, mu = 0.1, 0.8
    images = [data(k, d=D + 2, batches=3) for k in range(3)]
    federation = Federation(FedProx(mu=mu), images, rate=rate, tasks=[["a"]] * 3)
    theta = np.concatenate([federation.point(), federation.point("heads.a")])
    for chosen in ([0, 2], [1], [0, 1, 2]):
        models = []
        for k in chosen:
            local = theta.copy()
            for batch in range(3):
                local -= rate * (images[k].gradient(batch, local) + mu * (local - theta))
            models.append(local)
        theta = np.mean(models, axis=0)
        federation.round(chosen)
        found = np.concatenate([federation.point(), federation.point("heads.a")])
        np.testing.assert_allclose(found, theta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mu", [0, -0.1, float("nan")])
def test_a_pull_that_is_none_is_refused(mu: float) -> None:
    with pytest.raises(ValueError, match="mu must be positive"):
        FedProx(mu=mu)
