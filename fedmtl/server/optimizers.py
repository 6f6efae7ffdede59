"""Adaptive server optimizers of FedOpt that torch does not have: FedAdam and FedYogi."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class FedAdam(Optimizer):
    """Reddi et al. 2021 (arXiv 2003.00295), algorithm 2; the gradient is the clients' merged update, negative.

    m ← β₁ m + (1 − β₁) Δ̄, v ← β₂ v + (1 − β₂) m², θ ← θ + η m / (√v + τ), with v starting from τ². It is not
    torch's `Adam`: nothing is corrected for the start, and v follows m. FedAdagrad (β₁ = 0) is torch's `Adagrad` with
    `eps` τ and `initial_accumulator_value` τ², FedAvgM is its `SGD` with momentum.

    Args:
        params: what to move.
        lr: server learning rate η, > 0.
        betas: β₁ and β₂, in [0, 1); the paper's are the default.
        tau: degree of adaptivity τ, > 0: the smaller, the more adaptive.

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.01, betas: tuple[float, float] = (0.9, 0.99), tau: float = 1e-3
    ) -> None:
        for name, value in {"lr": lr, "tau": tau}.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), not {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "tau": tau})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            (beta, beta2), tau = group["betas"], group["tau"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state: dict[str, Any] = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                    state["second"] = torch.full_like(parameter, tau**2)
                momentum = state["momentum"].mul_(beta).add_(parameter.grad, alpha=1 - beta)
                self._follow(state["second"], momentum.square(), 1 - beta2)
                parameter.addcdiv_(momentum, state["second"].sqrt().add_(tau), value=-group["lr"])

    def _follow(self, second: Tensor, square: Tensor, rate: float) -> None:
        """Moves the second moment towards the square, in place."""
        second.lerp_(square, rate)


class FedYogi(FedAdam):
    """FedAdam with Yogi's second moment: v ← v − (1 − β₂) m² sign(v − m²), which moves by the square itself.

    Reddi et al. 2021 (arXiv 2003.00295), algorithm 2.

    Args:
        params: what to move.
        lr: server learning rate η, > 0.
        betas: β₁ and β₂, in [0, 1); the paper's are the default.
        tau: degree of adaptivity τ, > 0: the smaller, the more adaptive.

    Raises:
        ValueError: a value is out of its range.
    """

    def _follow(self, second: Tensor, square: Tensor, rate: float) -> None:
        second.sub_(square * torch.sign(second - square), alpha=rate)
