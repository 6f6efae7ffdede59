"""FedProx: a pull of the local model towards the global one."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedmtl.algorithms.base import LocalAlgorithm, LocalRound


class FedProx(LocalAlgorithm):
    """Adds μ/2 ‖θ − θ_global‖² to the local objective, i.e. μ(θ − θ_global) to its gradient.

    Li et al. 2020, arXiv 1812.06127. Heads are pulled as well; a part that a client does not share is pulled to what
    it was at the start of the round.

    Args:
        mu: strength μ of the pull, > 0.

    Raises:
        ValueError: `mu` is not positive.
    """

    def __init__(self, *, mu: float = 0.01) -> None:
        if not mu > 0:
            raise ValueError(f"mu must be positive, not {mu}")
        self.mu = mu

    def correct_gradients(self, run: LocalRound) -> None:
        """Adds the pull to every gradient."""
        pull(run.pairs(run.start), self.mu)


@torch.no_grad()
def pull(pairs: Iterable[tuple[nn.Parameter, Tensor]], strength: float) -> None:
    """Adds strength · (parameter − anchor) to the gradient of each parameter that has one."""
    for parameter, anchor in pairs:
        if parameter.grad is not None:
            parameter.grad.add_(parameter - anchor, alpha=strength)
