"""SCAFFOLD: control variates against the drift of local training."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fedmtl.algorithms.base import LocalAlgorithm, LocalRound, Message, Phase, ServerRule, Vectors


class Scaffold(LocalAlgorithm):
    """Every local gradient gets c − c_k added: the server's control variate minus the client's.

    Karimireddy et al. 2020, arXiv 1910.06378. After local training the client's control variate becomes

    - option I: its mean gradient at the global model, which costs one more pass over its images;
    - option II: c_k − c + (θ − θ_k)/(K η), which for K steps of plain SGD *is* the mean of the gradients along its way,
      before correction. That mean is what is taken here, so that the option is defined for any local optimizer.

    The server's is the mean of those of all clients that share the part, weighted as their updates are (the paper has
    equal weights), so that rounds come to rest where Σ_k p_k ∇f_k = 0. Only shared parts are corrected; a part that a
    single client has stays as in FedAvg. The theory is that of SGD without momentum; adaptive optimizers normalise the
    correction away in part.

    Args:
        option: ``I`` or ``II``.

    Raises:
        ValueError: another option.
    """

    sends_vectors = True

    def __init__(self, *, option: Literal["I", "II"] = "II") -> None:
        if option not in ("I", "II"):
            raise ValueError(f"option must be I or II, not {option!r}")
        self.option = option

    def check(self, share: str) -> None:
        """Needs something shared."""
        if share == "none":
            raise ValueError("local.algorithm: Scaffold corrects shared parts, and share: none shares nothing")

    def phases(self, epochs: int) -> list[Phase]:
        """Option I first looks at the gradients at the global model."""
        look = [Phase("control", 1, moves=False)] if self.option == "I" else []
        return [*look, Phase("train", epochs)]

    @torch.no_grad()
    def correct_gradients(self, run: LocalRound) -> None:
        """Sums the gradients that make the next control variate, and corrects those that are stepped with."""
        if "correction" not in run.scratch:
            own, server = run.kept.get("control", {}), run.received.get("control", {})
            sums = {name: torch.zeros_like(vector) for name, vector in run.of_shared(run.start).items()}
            run.scratch["sum"] = sums
            run.scratch["correction"] = {n: server.get(n, zero) - own.get(n, zero) for n, zero in sums.items()}
            run.scratch["steps"] = 0
        if run.phase.name == ("control" if self.option == "I" else "train"):
            run.scratch["steps"] += 1
            for parameter, total in run.pairs(run.scratch["sum"]):
                if parameter.grad is not None:
                    total.add_(parameter.grad)
        if run.phase.moves:
            for parameter, correction in run.pairs(run.scratch["correction"]):
                if parameter.grad is not None:
                    parameter.grad.add_(correction)

    def finish(self, run: LocalRound, updates: Vectors) -> Message:
        """Keeps the new control variate and sends its change."""
        new = {name: total / run.scratch["steps"] for name, total in run.scratch["sum"].items()}
        old = run.kept.get("control", {})
        run.kept["control"] = new
        return {"control": {name: vector - old[name] if name in old else vector for name, vector in new.items()}}

    def server(self) -> ServerRule:
        """The server's control variate."""
        return ScaffoldServer()


class ScaffoldServer(ServerRule):
    """The server's control variate c, the mean of those of all clients that share a part."""

    def __init__(self) -> None:
        self.control: Vectors = {}
        self._changes: Vectors = {}

    def start(self, holders: Mapping[str, float]) -> None:
        """Notes the weight of all clients that share each part."""
        self._holders = dict(holders)

    def broadcast(self) -> Message:
        """The control variate."""
        return {"control": self.control}

    def receive(self, parts: Mapping[str, Tensor], message: Message, weight: float) -> None:
        """Sums the changes of the clients' control variates."""
        for name, change in message["control"].items():
            if name not in self._changes:
                self._changes[name] = torch.zeros_like(change)
            self._changes[name].add_(change, alpha=weight)

    def apply(self, merged: Vectors) -> None:
        """c ← c + Σ_k w_k Δc_k / Σ w, the latter over all clients."""
        for name, change in self._changes.items():
            change.div_(self._holders[name])
            self.control[name] = self.control[name] + change if name in self.control else change
        self._changes = {}

    def state_dict(self) -> dict[str, Any]:
        """The control variate."""
        return {"control": dict(self.control)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a control variate."""
        self.control = dict(state["control"])
