"""The server: the global model, and how a round's updates change it."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedmtl.aggregation import Aggregator, Update, WeightedMean
from fedmtl.errors import UserError
from fedmtl.vector import PartState

log = logging.getLogger(__name__)

REMEDY = "lower local.optimizer's lr, set local.clip_norm, or raise rho"

ServerOptimizer = Callable[[Iterable[Tensor]], Optimizer]


class Server:
    """Holds the global state, takes updates one by one, and moves the state once a round.

    The encoder's merged update goes through the server optimizer as a negative gradient, so that SGD with
    lr 1 is FedAvg. A head takes the weighted mean of the updates of the clients that have its task.
    Floating-point buffers become the weighted mean of the clients' buffers; integer ones stay the server's.

    Args:
        aggregator: merges the clients' updates of the encoder.
        optimizer: any torch optimizer by its class (default: SGD with lr 1).
        weighting: a client's weight is its number of training images, or the same for all.
        min_clients: fewest usable updates for a round to go on.
    """

    def __init__(
        self,
        *,
        aggregator: Aggregator | None = None,
        optimizer: ServerOptimizer | None = None,
        weighting: Literal["examples", "uniform"] = "examples",
        min_clients: int = 1,
    ) -> None:
        if min_clients < 1:
            raise ValueError(f"server.min_clients must be at least 1, not {min_clients}")
        self.aggregator = aggregator or WeightedMean()
        self.weighting = weighting
        self.min_clients = min_clients
        self.make_optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=1.0))
        self._begin_round()

    def start(self, state: dict[str, PartState]) -> None:
        """Takes over the first global state."""
        self.state = state
        self._encoder = nn.Parameter(state["encoder"].vector)  # shares its memory
        self.optimizer = self.make_optimizer([self._encoder])

    def receive(self, update: Update) -> bool:
        """Adds an update to the running sums; one that is not finite is refused: logged, counted, left out."""
        if not update.is_finite():
            self.refused.append(update.client)
            log.warning("client %s sent an update that is not finite: left out of this round", update.client)
            return False
        weight = float(update.examples) if self.weighting == "examples" else 1.0
        for name, part in update.parts.items():
            if name == "encoder":
                self.aggregator.add(part, weight)
            else:
                self._heads.setdefault(name, WeightedMean()).add(part, weight)
            self._buffers.setdefault(name, BufferMean()).add(part.buffers, weight)
        self.received.append(update.client)
        return True

    @torch.no_grad()
    def step(self) -> None:
        """Ends the round: merges what was received and moves the global state.

        Raises:
            UserError: fewer than `min_clients` updates were usable.
        """
        if len(self.received) < self.min_clients:
            refused = f" (not finite: {', '.join(self.refused)})" if self.refused else ""
            raise UserError(
                f"only {len(self.received)} usable client updates, server.min_clients asks for "
                f"{self.min_clients}{refused}; {REMEDY}"
            )
        merged = {"encoder": self.aggregator.merge(), **{name: mean.merge() for name, mean in self._heads.items()}}
        for name, update in merged.items():
            if update is None:
                continue
            if not torch.isfinite(update).all():
                raise UserError(
                    f"the merged update of {name} is not finite: the clients' updates are too large; {REMEDY}"
                )
            if name == "encoder":
                self._encoder.grad = update.neg_()
                self.optimizer.step()
                self._encoder.grad = None
            else:
                self.state[name].vector.add_(update)
        for name, buffers in self._buffers.items():
            buffers.write(self.state[name].buffers)
        self._begin_round()

    def _begin_round(self) -> None:
        self.received: list[str] = []
        self.refused: list[str] = []
        self._heads: dict[str, WeightedMean] = {}
        self._buffers: dict[str, BufferMean] = {}

    def state_dict(self) -> dict[str, Any]:
        """Global state and optimizer state, as plain containers and tensors."""
        parts = {name: part.state_dict() for name, part in self.state.items()}
        return {"parts": parts, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`; `start` must have been called with a state of the same shapes."""
        for name, part in self.state.items():
            part.vector.copy_(state["parts"][name]["vector"])
            for buffer, values in state["parts"][name]["buffers"].items():
                part.buffers[buffer].copy_(values)
        self.optimizer.load_state_dict(state["optimizer"])


class BufferMean:
    """Weighted mean of floating-point buffers as a running sum; integer buffers are not averaged."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weight = 0.0

    def add(self, buffers: Mapping[str, Tensor], weight: float) -> None:
        """Takes one client's buffers."""
        for name, buffer in buffers.items():
            if buffer.is_floating_point():
                total = self._sums.setdefault(name, torch.zeros_like(buffer, dtype=torch.float32))
                total.add_(buffer, alpha=weight)
        self._weight += weight

    def write(self, buffers: Mapping[str, Tensor]) -> None:
        """Copies the means into the server's buffers."""
        for name, total in self._sums.items():
            buffers[name].copy_(total / self._weight)
