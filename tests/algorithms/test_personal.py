"""Ditto's own models and FedRep's own heads, against NumPy."""

from typing import Any

import numpy as np
import pytest
import torch

from fedmtl.algorithms import Ditto, FedAvg, FedRep, LocalRound, Phase
from fedmtl.errors import UserError
from fedmtl.vector import FlatPart

from .quadratics import D, Federation, Vector, data, interrupted, sgd

pytestmark = pytest.mark.usefixtures("one_thread")
RATE, PULL = 0.1, 0.7
ROUNDS = [[0, 2], [1, 2], [0, 1, 2], [2]]


def of_encoder(part: str) -> bool:
    return part == "encoder"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("epochs", [None, 3])
def test_dittos_own_models_equal_numpy_and_the_global_one_is_fedavgs(epochs: int | None, momentum: float) -> None:
    images = [data(k, batches=3) for k in range(3)]
    make = sgd(RATE, momentum=momentum)
    options: dict[str, Any] = {"optimizer": make, "keep_optimizer": True, "epochs": [2] * 3}
    federation, plain = (Federation(one, images, **options) for one in (Ditto(pull=PULL, epochs=epochs), FedAvg()))
    own: dict[int, Any] = {}
    velocities = [np.zeros(D) for _ in images]
    for chosen in ROUNDS:
        theta = federation.point()
        for k in chosen:
            own.setdefault(k, theta)
            for batch in list(range(3)) * (epochs or 2):
                gradient = images[k].gradient(batch, own[k]) + PULL * (own[k] - theta)
                velocities[k] = momentum * velocities[k] + gradient
                own[k] = own[k] - RATE * velocities[k]
        results = federation.round(chosen)
        plain.round(chosen)
        assert (federation.point() == plain.point()).all()
        assert all(set(result.losses) == {"loss", "personal_loss"} for result in results)
        for k, client in enumerate(federation.clients):
            measured = federation.engine.weights_of(client, federation.server.state)["encoder"].vector
            expected = own.get(k, federation.point())
            np.testing.assert_allclose(measured.numpy(), expected, rtol=1e-4, atol=1e-5)
            assert bool(client.state.own) == (k in own)


def test_dittos_penalty_pulls_the_own_model_only() -> None:
    part = FlatPart(Vector(3, 0))
    start = part.vector + torch.tensor([1.0, -2.0, 0.5])
    for personal in (False, True):
        run = LocalRound({"encoder": part}, {"encoder": start}, frozenset(["encoder"]))
        run.phase = Phase("personal" if personal else "train", 1, personal=personal)
        for parameter in part.parameters:
            parameter.grad = torch.full_like(parameter, 0.25)
        Ditto(pull=0.4).correct_gradients(run)
        gradient = torch.cat([parameter.grad for parameter in part.parameters])  # type: ignore[misc]
        expected = 0.25 + 0.4 * (part.vector - start) if personal else torch.full((3,), 0.25)
        torch.testing.assert_close(gradient, expected)


def test_dittos_own_model_has_own_heads_too() -> None:
    images = [data(k, d=D + 2, batches=2) for k in range(2)]
    federation = Federation(Ditto(pull=PULL), images, tasks=[["a"], ["b"]], shared=of_encoder)
    federation.round()
    for client, head in zip(federation.clients, ("heads.a", "heads.b"), strict=True):
        assert set(client.state.own) == {"encoder", head}
        assert set(client.state.personal) == {head}
        assert not torch.equal(client.state.own[head].vector, client.state.personal[head].vector)


def test_a_client_whose_own_model_diverges_is_left_out() -> None:
    images = [data(k, batches=3) for k in range(2)]
    federation = Federation(Ditto(pull=1e30, epochs=2), images)
    with pytest.raises(UserError, match="only 0 usable client updates"):
        federation.round()
    assert not any(client.state.own for client in federation.clients)


class Seen(FedRep):
    """Notes which parts have gradients, and their values, at every step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps: list[tuple[str, set[str], dict[str, Any]]] = []

    def correct_gradients(self, run: LocalRound) -> None:
        graded = {name for name, part in run.parts.items() if any(p.grad is not None for p in part.parameters)}
        values = {name: part.vector.double().numpy().copy() for name, part in run.parts.items()}
        self.steps.append((run.phase.name, graded, values))


def test_fedrep_trains_the_head_on_a_frozen_encoder_and_then_the_encoder() -> None:
    images, algorithm = [data(0, d=D + 2, batches=3)], Seen(head_epochs=2)
    federation = Federation(algorithm, images, tasks=[["a"]], shared=of_encoder)
    first = federation.engine.state()
    federation.round()
    assert [name for name, _, _ in algorithm.steps] == ["heads"] * 6 + ["encoder"] * 3
    head = federation.clients[0].state.personal["heads.a"].vector.double().numpy()
    for name, graded, values in algorithm.steps:
        assert graded == ({"heads.a"} if name == "heads" else {"encoder"})
        if name == "heads":
            assert (values["encoder"] == first["encoder"].vector.double().numpy()).all()
        else:
            assert (values["heads.a"] == head).all()
    module = federation.engine.resident.module
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


def test_fedrep_equals_numpy() -> None:
    images = [data(k, d=D + 2, batches=3) for k in range(3)]
    federation = Federation(FedRep(head_epochs=2), images, tasks=[["a"]] * 3, shared=of_encoder)
    theta, heads = federation.point(), [federation.point("heads.a") for _ in images]
    for chosen in ROUNDS:
        models = []
        for k in chosen:
            x = np.concatenate([theta, heads[k]])
            for part, batches in ((slice(D, None), [0, 1, 2] * 2), (slice(0, D), [0, 1, 2])):
                for batch in batches:
                    x[part] -= RATE * images[k].gradient(batch, x)[part]
            models.append(x[:D])
            heads[k] = x[D:]
        theta = np.mean(models, axis=0)
        federation.round(chosen)
        np.testing.assert_allclose(federation.point(), theta, rtol=1e-4, atol=1e-5)
        for head, client in zip(heads, federation.clients, strict=True):
            weights = federation.engine.weights_of(client, federation.server.state)["heads.a"].vector
            np.testing.assert_allclose(weights.numpy(), head, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", [Ditto(pull=PULL), FedRep()])
def test_a_loaded_run_goes_on_to_the_bit(algorithm: Any) -> None:
    images = [data(k, d=D + 2, batches=3) for k in range(3)]
    options: dict[str, Any] = {"optimizer": sgd(RATE, momentum=0.9), "keep_optimizer": True}
    options |= {"tasks": [["a"]] * 3, "shared": of_encoder}
    one, other = interrupted(lambda: Federation(algorithm, images, **options), ROUNDS)
    assert (one.point() == other.point()).all()
    for a, b in zip(one.clients, other.clients, strict=True):
        models = [f.engine.weights_of(c, f.server.state) for f, c in ((one, a), (other, b))]
        assert all(torch.equal(models[0][name].vector, models[1][name].vector) for name in models[0])


def test_refusals() -> None:
    for pull in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="pull must be positive"):
            Ditto(pull=pull)
    with pytest.raises(ValueError, match="epochs must be at least 1, not 0"):
        Ditto(epochs=0)
    with pytest.raises(ValueError, match="head_epochs must be at least 1, not 0"):
        FedRep(head_epochs=0)
    with pytest.raises(ValueError, match=r"^local.algorithm: .*there is none$"):
        Ditto().check("none")
    for share in ("model", "none"):
        with pytest.raises(ValueError, match=f"^local.algorithm: .* set share: encoder, not {share}$"):
            FedRep().check(share)
    Ditto().check("model")
    FedRep().check("encoder")
