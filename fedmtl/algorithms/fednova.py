"""FedNova: updates are divided by how far a client's steps reach before they are averaged."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedmtl.algorithms.base import LocalAlgorithm, LocalRound, Message, ServerRule, Vectors
from fedmtl.algorithms.fedprox import pull


class FedNova(LocalAlgorithm):
    """Normalised averaging: the clients send Δ_k/a_k, and the server moves by Σ p_k a_k times their mean.

    Wang et al. 2020, arXiv 2007.07481. a_k = ‖**a**_k‖₁ sums the weights with which the client's gradients enter its
    update: its number of steps τ for plain SGD, [τ − m(1 − m^τ)/(1 − m)]/(1 − m) with momentum m, and
    [1 − (1 − ημ)^τ]/(ημ) with a pull μ towards the global model. It is followed step by step, as the way that a
    constant gradient of one would go, over the first learning rate of the schedule; so schedules, Nesterov's momentum,
    and momentum and pull together are exact too. Momentum is read from the local optimizer, which must not keep its
    state across rounds for that to be exact (`local.keep_optimizer: false`). For an adaptive optimizer (Adam), whose
    steps are normalised already, each step counts as plain SGD's.

    Args:
        mu: strength of FedProx's pull, ≥ 0; 0 for none.

    Raises:
        ValueError: `mu` is negative.
    """

    def __init__(self, *, mu: float = 0.0) -> None:
        if not mu >= 0:
            raise ValueError(f"mu must be at least 0, not {mu}")
        self.mu = mu

    def check(self, share: str) -> None:
        """Needs something shared."""
        if share == "none":
            raise ValueError("local.algorithm: FedNova changes how updates are averaged, and share: none sends nothing")

    def correct_gradients(self, run: LocalRound) -> None:
        """Counts the step to come, and adds the pull."""
        assert run.optimizer is not None
        group, scratch = run.optimizer.param_groups[0], run.scratch
        first, momentum = group.get("initial_lr", group["lr"]), group.get("momentum", 0.0)
        reach = scratch.get("reach", 0.0)
        gradient = direction = 1 - self.mu * first * reach
        if momentum:
            damped = (1 - group.get("dampening", 0.0)) * gradient if "velocity" in scratch else gradient
            scratch["velocity"] = momentum * scratch.get("velocity", 0.0) + damped
            nesterov = group.get("nesterov", False)
            direction = gradient + momentum * scratch["velocity"] if nesterov else scratch["velocity"]
        scratch["reach"] = reach + (group["lr"] / first * direction if first else 0.0)
        if self.mu:
            pull(run.pairs(run.start), self.mu)

    def finish(self, run: LocalRound, updates: Vectors) -> Message:
        """Divides the updates by a_k, and sends a_k."""
        reach = run.scratch["reach"]
        for update in updates.values() if reach else ():  # a warm-up may begin with a learning rate of 0
            update.div_(reach)
        return {"reach": {name: torch.tensor([reach]) for name in updates}}

    def server(self) -> ServerRule:
        """The server's end, which scales the mean back."""
        return FedNovaServer()


class FedNovaServer(ServerRule):
    """Multiplies each part's merged update by the weighted mean of a_k, which is one number for all coordinates."""

    partial = False

    def __init__(self) -> None:
        self._reach: dict[str, tuple[float, float]] = {}  # by part: Σ w a, Σ w

    def receive(self, parts: Mapping[str, Tensor], message: Message, weight: float) -> None:
        """Sums the clients' a_k."""
        for name, reach in message["reach"].items():
            total, weights = self._reach.get(name, (0.0, 0.0))
            self._reach[name] = total + weight * float(reach), weights + weight

    def apply(self, merged: Vectors) -> None:
        """Scales by Σ p_k a_k."""
        for name, (total, weights) in self._reach.items():
            merged[name].mul_(total / weights)
        self._reach = {}
