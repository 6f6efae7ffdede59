"""FedHCA2: a conflict-averse direction for encoders, attention among heads, and how much of both is learnt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmtl.gram import combine, conflict_averse, gram
from fedmtl.mixing.base import Exchange, Mixing, check_range, groups
from fedmtl.vector import Layout


@dataclass
class HyperWeights:
    """What is learnt for one part of one client.

    Attributes:
        values: the hyper-weights by layer, in [0, 1].
        velocities: their momentum.
        directions: by tensor, what the last round's merge added to it times its layer's hyper-weight.
    """

    values: dict[str, float] = field(default_factory=dict)
    velocities: dict[str, float] = field(default_factory=dict)
    directions: dict[str, Tensor] = field(default_factory=dict)


class FedHCA2(Mixing):
    r"""Hetero-client federated multi-task learning (FedHCA²: Lu et al., CVPR 2024, arXiv 2311.13250).

    Encoders, hyper conflict-averse aggregation: with U the conflict-averse direction of all clients' updates
    (`fedmtl.gram.conflict_averse`) over :math:`1 + c^2`, and :math:`\bar\Delta_i` the mean update of the clients
    that have the same heads as i,

    .. math:: \theta_i \leftarrow \theta_i + \bar\Delta_i + \alpha_i U

    Heads, hyper cross-attention aggregation: for a tensor with d entries that n heads have, of any clients and tasks,

    .. math:: A_i = \sum_j \operatorname{softmax}_j(\langle \Delta_i, \Delta_j \rangle / \sqrt d)\, \Delta_j, \qquad
              \theta_i \leftarrow \theta_i + \Delta_i + \beta_{i,l} A_i

    with one :math:`\beta` for each head and layer l (a module: its weight and its bias). The hyper-weights are learnt
    by SGD with the next round's updates in place of gradients,

    .. math:: \partial L_i / \partial \alpha_i = -\langle U, \Delta_i^{next} \rangle, \qquad
              \partial L_i / \partial \beta_{i,l} = -\langle A_{i,l}, \Delta_{i,l}^{next} \rangle

    Defaults are those of the authors' code (innovator-zero/FedHCA2). Where it leaves something open or we differ:

    - A tensor takes part in the attention with those of other heads that have its name and shape. The code's
      decoders are alike, and its last layers (upsampling and prediction) stay the client's own: give `attend` the
      names of the layers that should take part to have it so.
    - A client, or a tensor, without another one to merge with takes its own update; no hyper-weight is learnt then.
    - The code clamps a hyper-weight to [0, 1] where it is used: once outside, its gradient is 0 and it stays there.
      Here the value itself is kept inside, and loses its momentum at an end, so that it can come back.
    - Means are weighted by the clients' weights, which the code has equal; it averages like clients only where they
      follow one another in its list. Clients that sent no head are like no other.
    - Hyper-weights and directions are kept by the client's name: a client that misses rounds learns at its next one.

    Args:
        c: how far U may be from the mean update, relative to it, in [0, 1).
        alpha: first value of each α, in [0, 1].
        beta: first value of each β, in [0, 1].
        lr: learning rate of the hyper-weights, not negative; 0 keeps them constant.
        momentum: their momentum, in [0, 1).
        weight_decay: their weight decay, not negative.
        attend: beginnings of the names of the tensors that take part in the attention of heads; default all.

    Raises:
        ValueError: an argument is outside these bounds.
    """

    def __init__(
        self,
        *,
        c: float = 0.4,
        alpha: float = 0.1,
        beta: float = 0.1,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        attend: Sequence[str] | None = None,
    ) -> None:
        check_range("c", c, 0, 1, ends="[)")
        check_range("alpha", alpha, 0, 1)
        check_range("beta", beta, 0, 1)
        check_range("lr", lr, 0, np.inf, ends="[)")
        check_range("momentum", momentum, 0, 1, ends="[)")
        check_range("weight_decay", weight_decay, 0, np.inf, ends="[)")
        self.c = c
        self.alpha = alpha
        self.beta = beta
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.attend = None if attend is None else tuple(attend)
        self._learnt: dict[str, dict[str, HyperWeights]] = {}

    def hyper_weights(self) -> dict[str, dict[str, dict[str, float]]]:
        """The hyper-weights by client, part and layer; an encoder's only layer is ``"encoder"``."""
        return {
            client: {part: dict(hyper.values) for part, hyper in parts.items()}
            for client, parts in self._learnt.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Hyper-weights, their momentum and the last directions, by client and part."""
        return {
            client: {
                part: {name: dict(entries) for name, entries in vars(hyper).items()} for part, hyper in parts.items()
            }
            for client, parts in self._learnt.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self._learnt = {
            client: {
                part: HyperWeights(**{name: dict(entries) for name, entries in hyper.items()})
                for part, hyper in parts.items()
            }
            for client, parts in state.items()
        }

    def _mix(self, exchanges: list[Exchange]) -> list[dict[str, Tensor]]:
        for exchange in exchanges:
            self._learn(exchange)
        mixed: list[dict[str, Tensor]] = [{} for _ in exchanges]
        for (part, _), members in groups(exchanges).items():
            clients = [exchanges[index] for index in members]
            updates, direction = [client.updates[part] for client in clients], None
            if part == "encoder" and len(clients) > 1:
                updates, direction = _encoder_step(clients, self.c)
            for index, client, update in zip(members, clients, updates, strict=True):
                self._hyper(client.client, part).directions = {} if direction is None else {part: direction}
                mixed[index][part] = client.before[part] + update
        self._attend(exchanges)
        for exchange, parts in zip(exchanges, mixed, strict=True):
            for part, vector in parts.items():
                self._add(self._hyper(exchange.client, part), part, exchange.layouts[part], vector)
        return mixed

    def _hyper(self, client: str, part: str) -> HyperWeights:
        return self._learnt.setdefault(client, {}).setdefault(part, HyperWeights())

    def _learn(self, exchange: Exchange) -> None:
        """One SGD step of a client's hyper-weights, with its update since the directions were added."""
        for part, update in exchange.updates.items():
            hyper = self._hyper(exchange.client, part)
            tensors = _tensors(part, exchange.layouts[part], update)
            gradients: dict[str, float] = {}
            for name, direction in hyper.directions.items():
                product = gram([direction.reshape(-1), tensors[name].reshape(-1)])[0, 1]
                gradients[_layer(name)] = gradients.get(_layer(name), 0.0) - float(product)
            for layer, gradient in gradients.items():
                value = hyper.values[layer]
                velocity = self.momentum * hyper.velocities[layer] + gradient + self.weight_decay * value
                moved = value - self.lr * velocity
                hyper.values[layer] = min(max(moved, 0.0), 1.0)
                hyper.velocities[layer] = velocity if 0 <= moved <= 1 else 0.0

    def _attend(self, exchanges: Sequence[Exchange]) -> None:
        """Sets the directions of all heads' tensors that have others to attend to."""
        alike: dict[tuple[str, torch.Size], list[tuple[HyperWeights, Tensor]]] = {}
        for exchange in exchanges:
            for part in sorted(exchange.updates.keys() - {"encoder"}):
                hyper = self._hyper(exchange.client, part)
                for name, tensor in _tensors(part, exchange.layouts[part], exchange.updates[part]).items():
                    if self.attend is None or name.startswith(self.attend):
                        alike.setdefault((name, tensor.shape), []).append((hyper, tensor))
        for (name, shape), heads in alike.items():
            if len(heads) > 1:
                for (hyper, _), attended in zip(heads, cross_attention([tensor for _, tensor in heads]), strict=True):
                    hyper.directions[name] = attended.view(shape)

    def _add(self, hyper: HyperWeights, part: str, layout: Layout, vector: Tensor) -> None:
        """Adds the directions to a part's vector (d,) in place, each times its hyper-weight."""
        tensors = _tensors(part, layout, vector)
        for name, direction in hyper.directions.items():
            value = hyper.values.setdefault(_layer(name), self.alpha if part == "encoder" else self.beta)
            hyper.velocities.setdefault(_layer(name), 0.0)
            tensors[name].add_(direction, alpha=value)


def cross_attention(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Σ_j softmax_j(⟨x_i, x_j⟩ / √d) x_j for each of n tensors of one shape with d entries, (d,) each."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    scores = gram(flat) / np.sqrt(max(len(flat[0]), 1))
    attention = np.exp(scores - scores.max(axis=1, keepdims=True))
    return combine(attention / attention.sum(axis=1, keepdims=True), flat)


def _encoder_step(clients: Sequence[Exchange], c: float) -> tuple[list[Tensor], Tensor]:
    """The mean updates of like clients (d,), one for each client, and the direction U (d,)."""
    updates = [client.updates["encoder"] for client in clients]
    weights = np.array([client.weight for client in clients])
    heads = [frozenset(client.updates.keys() - {"encoder"}) for client in clients]
    like = np.array(
        [[i == j or (bool(one) and one == other) for j, other in enumerate(heads)] for i, one in enumerate(heads)]
    )
    means = like * weights / (like * weights).sum(axis=1, keepdims=True)
    direction = conflict_averse(gram(updates), weights / weights.sum(), c) / (1 + c**2)
    *own, merged = combine(np.vstack([means, direction]), updates)
    return own, merged


def _tensors(part: str, layout: Layout, vector: Tensor) -> dict[str, Tensor]:
    """Views into a part's vector (d,) by tensor; an encoder is one tensor."""
    return {part: vector} if part == "encoder" else dict(zip(layout.names, layout.views(vector), strict=True))


def _layer(name: str) -> str:
    """The module that a parameter belongs to."""
    return name.rpartition(".")[0] or name
