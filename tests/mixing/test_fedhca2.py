"""FedHCA2 against a plain implementation whose hyper-weights are learnt by autograd, and on a quadratic loss."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from fedmtl.mixing import Exchange, FedHCA2
from fedmtl.mixing.fedhca2 import cross_attention
from fedmtl.vector import Layout

from .federation import LAYOUTS, encoders, exchange, wide


def conflict_averse(updates: np.ndarray, shares: np.ndarray, c: float) -> np.ndarray:
    """U by a general solver on the dual."""
    mean = shares @ updates
    radius = c * np.linalg.norm(mean)
    found = minimize(
        lambda w: (w @ updates) @ mean + radius * np.linalg.norm(w @ updates),
        shares,
        bounds=[(0, 1)] * len(updates),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    mixture = found.x @ updates
    return (mean + radius * mixture / np.linalg.norm(mixture)) / (1 + c * c)


def named(client: Exchange, part: str, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    layout = client.layouts[part]
    return {name: view.double() for name, view in zip(layout.names, layout.views(vectors[part]), strict=True)}


class Plain:
    """All clients in all rounds, all share an encoder; hyper-weights as torch parameters, learnt through the merge."""

    def __init__(self, clients: list[Exchange], c: float, first: float, lr: float) -> None:
        self.c = c
        self.parameters: dict[tuple[str, ...], Tensor] = {}
        for client in clients:
            for part in client.updates:
                layers = {name.rpartition(".")[0] for name in client.layouts[part].names}
                for layer in ["encoder"] if part == "encoder" else layers:
                    key = (client.client, part, layer)
                    self.parameters[key] = torch.tensor(first, dtype=torch.float64, requires_grad=True)
        self.optimizer = torch.optim.SGD(self.parameters.values(), lr=lr, momentum=0.9, weight_decay=0.2)
        self.outputs: dict[tuple[str, str, str], Tensor] = {}

    def round(self, clients: list[Exchange]) -> dict[tuple[str, str, str], Tensor]:
        if self.outputs:
            self.optimizer.zero_grad()
            for client in clients:
                for part in client.updates:
                    for name, update in named(client, part, client.updates).items():
                        output = self.outputs[client.client, part, name]
                        if output.requires_grad:
                            output.backward(-update, retain_graph=True)
            self.optimizer.step()
        self.outputs = {}
        self.encoders(clients)
        self.heads(clients)
        return self.outputs

    def encoders(self, clients: list[Exchange]) -> None:
        updates = np.stack([wide(client.updates["encoder"]) for client in clients])
        weights = np.array([client.weight for client in clients])
        direction = torch.tensor(conflict_averse(updates, weights / weights.sum(), self.c))
        for client in clients:
            like = [other for other in clients if other.updates.keys() == client.updates.keys()]
            total = sum(other.weight for other in like)
            own = torch.stack([other.updates["encoder"].double() * other.weight / total for other in like]).sum(dim=0)
            step = own + self.parameters[client.client, "encoder", "encoder"] * direction
            new = client.before["encoder"].double() + step
            for name, view in zip(client.layouts["encoder"].names, client.layouts["encoder"].views(new), strict=True):
                self.outputs[client.client, "encoder", name] = view

    def heads(self, clients: list[Exchange]) -> None:
        keys = [(client, part) for client in clients for part in client.updates if part != "encoder"]
        tensors = {(c.client, p): named(c, p, c.updates) for c, p in keys}
        for client, part in keys:
            before = named(client, part, client.before)
            for name, update in tensors[client.client, part].items():
                rows = [t[name] for t in tensors.values() if name in t and t[name].shape == update.shape]
                new = before[name] + update
                if len(rows) > 1:
                    stacked = torch.stack(rows).flatten(1)
                    attention = torch.softmax(stacked @ update.flatten() / update.numel() ** 0.5, dim=0)
                    attended = (attention[:, None] * stacked).sum(dim=0).view(update.shape)
                    new = new + self.parameters[client.client, part, name.rpartition(".")[0]] * attended
                self.outputs[client.client, part, name] = new


TASKS = {"a": ("semseg",), "b": ("depth",), "c": ("depth", "edge"), "d": ("semseg",)}


def make_round(seed: int, weights: dict[str, float]) -> list[Exchange]:
    return [
        exchange(name, 10 * seed + index, heads, weight=weights[name], scale=0.5)
        for index, (name, heads) in enumerate(TASKS.items())
    ]


@pytest.mark.parametrize("weights", [dict.fromkeys("abcd", 1.0), {"a": 3.0, "b": 1.0, "c": 2.0, "d": 0.5}])
@pytest.mark.parametrize(("first", "lr"), [(0.1, 0.0), (0.5, 0.002)])
def test_rounds_against_reference(weights: dict[str, float], first: float, lr: float) -> None:
    mixing = FedHCA2(alpha=first, beta=first, lr=lr, weight_decay=0.2)
    plain = Plain(make_round(0, weights), 0.4, first, lr)
    for seed in range(4):
        clients = make_round(seed, weights)
        expected = plain.round(clients)
        for client, parts in zip(clients, mixing.mix(clients), strict=True):
            assert parts.keys() == client.updates.keys()
            for part in parts:
                for name, values in named(client, part, parts).items():
                    theirs = expected[client.client, part, name].detach()
                    np.testing.assert_allclose(values, theirs, atol=2e-6, err_msg=f"round {seed} {part} {name}")
    for (name, part, layer), value in plain.parameters.items():
        ours = mixing.hyper_weights()[name][part].get(layer)
        if ours is not None:
            assert ours == pytest.approx(value.item(), abs=1e-6)
            assert (ours != first) == (lr > 0)
        else:
            raise AssertionError(f"no hyper-weight for {name} {part} {layer}")


def test_hyper_weight_follows_the_gradient_of_a_quadratic_loss() -> None:
    """F_i(θ) = ½‖θ − θ*_i‖², one exact local step: the change of α is −lr ∂F_i/∂α, and lowers F_i."""
    optima = np.array([[4.0, 0.0], [0.0, 1.0], [3.0, 2.0]])
    start, first, lr, c = np.zeros((3, 2)), 0.5, 1e-3, 0.4
    mixing = FedHCA2(c=c, alpha=first, lr=lr, momentum=0.0, weight_decay=0.0)
    updates = 0.3 * (optima - start)
    theta = np.stack([wide(parts["encoder"]) for parts in mixing.mix(encoders(start, updates))])
    direction = conflict_averse(updates, np.full(3, 1 / 3), c)
    np.testing.assert_allclose(theta, start + updates + first * direction, atol=1e-6)

    mixing.mix(encoders(theta, optima - theta))
    for index, name in enumerate("abc"):
        learnt = mixing.hyper_weights()[name]["encoder"]["encoder"]

        def loss(alpha: float, index: int = index) -> float:
            at = start[index] + updates[index] + alpha * direction
            return float(0.5 * np.square(at - optima[index]).sum())

        slope = (loss(first + 1e-4) - loss(first - 1e-4)) / 2e-4
        assert learnt == pytest.approx(first - lr * slope, abs=1e-7)
        assert loss(learnt) < loss(first)


def test_hyper_weights_stay_in_bounds_and_come_back() -> None:
    """Two clients with the update (x, 0): then U points the same way."""
    mixing = FedHCA2(lr=0.1)

    def alpha_after(x: float) -> float:
        mixing.mix(encoders(np.zeros((2, 2)), np.tile([x, 0.0], (2, 1))))
        return mixing.hyper_weights()["a"]["encoder"]["encoder"]

    assert alpha_after(5.0) == 0.1
    assert alpha_after(5.0) == 1.0
    assert 0 < alpha_after(-0.1) < 1  # no momentum holds it at the end
    alpha_after(5.0)
    assert alpha_after(-5.0) == 0.0
    assert alpha_after(-0.1) > 0


def test_a_client_that_missed_rounds_learns_from_its_own_last_merge() -> None:
    def updates(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=(3, 4))

    mixing, start = FedHCA2(alpha=0.5, lr=0.01, momentum=0.0, weight_decay=0.0), np.zeros((3, 4))
    mixing.mix(encoders(start, updates(0)))
    mixing.mix(encoders(start, updates(1))[:2])
    assert mixing.hyper_weights()["c"]["encoder"]["encoder"] == 0.5
    mixing.mix(encoders(start, updates(2)))
    direction = conflict_averse(updates(0).astype(np.float32).astype(float), np.full(3, 1 / 3), 0.4)
    expected = 0.5 + 0.01 * direction @ updates(2)[2]
    assert mixing.hyper_weights()["c"]["encoder"]["encoder"] == pytest.approx(expected, abs=1e-7)


def test_identical_clients_are_lengthened_alike() -> None:
    """Equal updates: U = (1 + c)/(1 + c²) Δ, and attention among equals gives Δ itself."""
    clients = [exchange(name, 0) for name in "abc"]
    factor = 1 + 0.1 * 1.4 / 1.16
    for client, parts in zip(clients, FedHCA2().mix(clients), strict=True):
        for part, gain in (("encoder", factor), ("heads.semseg", 1.1)):
            expected = client.before[part] + gain * client.updates[part]
            np.testing.assert_allclose(parts[part].numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_without_hyper_weights_every_client_keeps_its_own_update() -> None:
    clients = [exchange("a", 0, ("semseg",)), exchange("b", 1, ("depth",))]
    for client, parts in zip(clients, FedHCA2(alpha=0.0, beta=0.0, lr=0.0).mix(clients), strict=True):
        for part, values in parts.items():
            assert torch.equal(values, client.after(part))


def test_a_lone_client_takes_its_own_update() -> None:
    client = exchange("a", 0, ("semseg",))
    mixing = FedHCA2(alpha=1.0, beta=1.0)
    for part, values in mixing.mix([client])[0].items():
        assert torch.equal(values, client.after(part))
    assert mixing.hyper_weights() == {"a": {"encoder": {}, "heads.semseg": {}}}


def test_a_client_that_is_left_alone_forgets_the_last_direction() -> None:
    mixing, client = FedHCA2(), exchange("a", 0, ("semseg",))
    mixing.mix([client, exchange("b", 1, ("semseg",))])
    for part, values in mixing.mix([client])[0].items():
        assert torch.equal(values, client.after(part))


def test_heads_of_one_client_attend_to_each_other() -> None:
    client = exchange("a", 0, ("depth", "edge"))
    mixed = FedHCA2().mix([client])[0]
    assert torch.equal(mixed["encoder"], client.after("encoder"))
    assert not torch.equal(mixed["heads.depth"], client.after("heads.depth"))


def test_tensors_without_a_counterpart_take_their_own_update() -> None:
    clients = [exchange("a", 0, ("semseg",)), exchange("b", 1, ("depth",))]
    mixing = FedHCA2()
    mixed = mixing.mix(clients)
    for client, parts in zip(clients, mixed, strict=True):
        (part,) = client.updates.keys() - {"encoder"}
        new, own = (named(client, part, {part: values}) for values in (parts[part], client.after(part)))
        assert torch.equal(new["predict.weight"], own["predict.weight"])
        assert not torch.equal(new["fuse.0.weight"], own["fuse.0.weight"])
        assert mixing.hyper_weights()[client.client][part].keys() == {"fuse.0", "fuse.1"}


def test_attend_names_the_layers_that_take_part() -> None:
    clients = [exchange("a", 0, ("depth",)), exchange("b", 1, ("edge",))]
    mixing = FedHCA2(attend=["fuse.1", "predict"])
    (a, _) = mixing.mix(clients)
    new, own = (named(clients[0], "heads.depth", v) for v in (a, {"heads.depth": clients[0].after("heads.depth")}))
    assert {name for name in new if not torch.equal(new[name], own[name])} == {"fuse.1.weight", "predict.weight"}


def test_layers_are_modules_not_beginnings_of_names() -> None:
    """fuse.1 and fuse.10 have hyper-weights of their own."""
    layout = Layout(("fuse.1.weight", "fuse.10.weight"), (torch.Size((2,)), torch.Size((3,))))
    layouts = {**LAYOUTS, "heads.depth": layout, "heads.edge": layout}
    mixing = FedHCA2()
    clients = [exchange("a", 0, ("depth",), layouts=layouts), exchange("b", 1, ("edge",), layouts=layouts)]
    mixing.mix(clients)
    assert mixing.hyper_weights()["a"]["heads.depth"].keys() == {"fuse.1", "fuse.10"}


def test_cross_attention_by_hand() -> None:
    # Scores of the first: 4/√4 with itself, 0 with the other.
    tensors = [torch.tensor([[2.0, 0], [0, 0]]), torch.tensor([[0, 0], [0, 1.0]])]
    share = np.exp(2) / (np.exp(2) + 1)
    assert cross_attention(tensors)[0].tolist() == pytest.approx([2 * share, 0, 0, 1 - share])
    share = np.exp(0.5) / (np.exp(0.5) + 1)
    assert cross_attention(tensors)[1].tolist() == pytest.approx([2 * (1 - share), 0, 0, share])


def test_clients_without_heads_are_not_taken_for_alike() -> None:
    """With equal heads their updates would be averaged first; who sends no head might have any."""
    before, updates = np.zeros((2, 3)), np.array([[1.0, 0, 0], [0, 1, 0]])
    (a, b) = FedHCA2(alpha=0.0).mix(encoders(before, updates))
    assert a["encoder"].tolist() == [1, 0, 0]
    assert b["encoder"].tolist() == [0, 1, 0]


def test_state_goes_on_to_the_bit() -> None:
    weights = dict.fromkeys("abcd", 1.0)
    through, stopped = FedHCA2(), FedHCA2()
    for seed in range(3):
        through.mix(make_round(seed, weights))
        stopped.mix(make_round(seed, weights))
    resumed = FedHCA2()
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    for mixed, again in zip(*(m.mix(make_round(3, weights)) for m in (through, resumed)), strict=True):
        assert all(torch.equal(mixed[part], again[part]) for part in mixed)
    assert through.hyper_weights() == resumed.hyper_weights()


def test_a_state_is_not_changed_by_later_rounds() -> None:
    weights, mixing = dict.fromkeys("abcd", 1.0), FedHCA2()
    mixing.mix(make_round(0, weights))
    state = mixing.state_dict()
    frozen = copy.deepcopy(state)
    mixing.mix(make_round(1, weights))
    assert state["a"]["encoder"]["values"] == frozen["a"]["encoder"]["values"]
    assert torch.equal(state["a"]["encoder"]["directions"]["encoder"], frozen["a"]["encoder"]["directions"]["encoder"])
    assert mixing.state_dict()["a"]["encoder"]["values"] != frozen["a"]["encoder"]["values"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"c": 1.0}, "c must be in"),
        ({"c": -0.1}, "c must be in"),
        ({"alpha": 1.1}, "alpha must be in"),
        ({"beta": -0.1}, "beta must be in"),
        ({"lr": -1.0}, "lr must be in"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"weight_decay": float("nan")}, "weight_decay must be in"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedHCA2(**arguments)
