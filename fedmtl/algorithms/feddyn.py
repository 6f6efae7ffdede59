"""FedDyn: a regulariser that follows the clients' gradients, so that local optima agree with the global one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedmtl.algorithms.base import LocalAlgorithm, LocalRound, Message, ServerRule, Vectors
from fedmtl.algorithms.fedprox import pull


class FedDyn(LocalAlgorithm):
    """The local objective gets − ⟨λ_k, θ⟩ + α/2 ‖θ − θ_global‖²; afterwards λ_k ← λ_k − α Δ_k.

    Acar et al. 2021, arXiv 2111.04263. The server keeps h ← h − α s Δ̄, s being the share of all clients that took part,
    by weight (n of N where all count alike), and moves by Δ̄ − h/α. Δ̄ is whatever the aggregator made of the updates.
    Only shared parts are changed.

    Args:
        alpha: strength α, > 0.

    Raises:
        ValueError: `alpha` is not positive.
    """

    sends_vectors = True

    def __init__(self, *, alpha: float = 0.01) -> None:
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, not {alpha}")
        self.alpha = alpha

    def check(self, share: str) -> None:
        """Needs something shared."""
        if share == "none":
            raise ValueError("local.algorithm: FedDyn corrects shared parts, and share: none shares nothing")

    @torch.no_grad()
    def correct_gradients(self, run: LocalRound) -> None:
        """Adds the gradient of the regulariser."""
        pull(run.pairs(run.of_shared(run.start)), self.alpha)
        for parameter, slope in run.pairs(run.kept.get("slope", {})):
            if parameter.grad is not None:
                parameter.grad.sub_(slope)

    def finish(self, run: LocalRound, updates: Vectors) -> Message:
        """Keeps the new λ_k; nothing more than the updates is sent."""
        old = run.kept.get("slope", {})
        run.kept["slope"] = {
            name: torch.add(old.get(name, torch.zeros_like(update)), update, alpha=-self.alpha)
            for name, update in updates.items()
        }
        return {}

    def server(self) -> ServerRule:
        """The server's h."""
        return FedDynServer(self.alpha)


class FedDynServer(ServerRule):
    """The server's state h and its correction."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.state: Vectors = {}
        self._received: dict[str, float] = {}

    def start(self, holders: Mapping[str, float]) -> None:
        """Notes the weight of all clients that share each part."""
        self._holders = dict(holders)

    def receive(self, parts: Mapping[str, Tensor], message: Message, weight: float) -> None:
        """Sums the clients' weights."""
        for name in parts:
            self._received[name] = self._received.get(name, 0.0) + weight

    def apply(self, merged: Vectors) -> None:
        """h ← h − α s Δ̄ and Δ̄ ← Δ̄ − h/α."""
        for name, weight in self._received.items():
            update = merged[name]
            old = self.state.get(name, torch.zeros_like(update))
            self.state[name] = torch.add(old, update, alpha=-self.alpha * weight / self._holders[name])
            update.sub_(self.state[name], alpha=1 / self.alpha)
        self._received = {}

    def state_dict(self) -> dict[str, Any]:
        """The vectors h."""
        return {"state": dict(self.state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from vectors h."""
        self.state = dict(state["state"])
