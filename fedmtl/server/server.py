"""The server: the global model, and how a round's updates change it."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from fedmtl.aggregation import Aggregator, Update, UploadTransform, WeightedMean
from fedmtl.algorithms import LocalAlgorithm, Message, ServerRule
from fedmtl.errors import UserError
from fedmtl.vector import Layout, PartState, State, is_finite

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

    Attributes:
        personal: whether each client has a model of its own here, so that there is no global one.
        rule: the server's end of the local algorithm.
        given: which of aggregator and optimizer are not the default.
        received: clients whose updates this round has.
        refused: clients whose updates were not finite.
    """

    personal = False
    received: list[str]
    refused: list[str]

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
        self.given = [key for key, value in {"aggregator": aggregator, "optimizer": optimizer}.items() if value]
        self.aggregator = aggregator or WeightedMean()
        self.weighting = weighting
        self.min_clients = min_clients
        self.make_optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=1.0))
        self._partial = False  # whether some updates may count at some coordinates only
        self._begin_round()

    def check(
        self, *, algorithm: LocalAlgorithm, upload: Sequence[UploadTransform], several_architectures: bool
    ) -> None:
        """Refuses what does not go with this server.

        Args:
            algorithm: the local algorithm.
            upload: the clients' upload transforms.
            several_architectures: whether some clients have a model of another architecture.

        Raises:
            ValueError: a combination that makes no sense, with the reason.
        """
        name = type(self.aggregator).__name__
        self._partial = several_architectures or any(transform.overlap for transform in upload)
        overlap = any(transform.overlap for transform in upload)
        if not algorithm.server().partial and (overlap or several_architectures):
            raise ValueError(
                f"local.algorithm: {type(algorithm).__name__} scales whole updates; it goes neither with "
                "rescale: overlap nor with clients of another architecture"
            )
        if not self.aggregator.partial and overlap:
            raise ValueError(
                f"server.aggregator: rescale: overlap averages each coordinate over the clients that kept it, which "
                f"{name} can't; take another rescale or aggregator"
            )
        if not self.aggregator.partial and several_architectures:
            raise ValueError(
                f"server.aggregator: clients of another architecture lack some coordinates, and {name} can't average "
                "over those who have them; take WeightedMean"
            )

    def start(
        self,
        state: State,
        *,
        rule: ServerRule | None = None,
        parts: Mapping[str, Sequence[str]] | None = None,
        examples: Mapping[str, int] | None = None,
        layouts: Mapping[str, Layout] | None = None,
    ) -> None:
        """Takes over the first global state.

        Args:
            state: the state; it changes in place from now on.
            rule: the server's end of the local algorithm.
            parts: names of the parts that each client shares, by client.
            examples: number of training images, by client; needed with `parts`.
            layouts: where each tensor lies in each part.
        """
        self.state = state
        self.layouts = dict(layouts or {})
        self.rule = rule or ServerRule()
        holders: dict[str, float] = {}
        for client, names in (parts or {}).items():
            for part in names:
                holders[part] = holders.get(part, 0.0) + self._weigh((examples or {})[client])
        self.rule.start(holders)
        self._encoder = nn.Parameter(state["encoder"].vector)  # shares its memory
        self.optimizer = self.make_optimizer([self._encoder])
        self._start_clients(parts or {})

    def _start_clients(self, parts: Mapping[str, Sequence[str]]) -> None:
        """Makes ready for clients that share these parts."""

    def broadcast(self) -> Message:
        """What goes to the clients beside the model."""
        return self.rule.broadcast()

    def model_for(self, client: str) -> State:
        """The state that a client starts a round from."""
        return self.state

    def weight(self, update: Update) -> float:
        """The weight of a client's update."""
        return self._weigh(update.examples)

    def _weigh(self, examples: int) -> float:
        return float(examples) if self.weighting == "examples" else 1.0

    def receive(self, update: Update) -> bool:
        """Takes an update; one that is not finite is refused: logged, counted, left out."""
        if not update.is_finite():
            self.refused.append(update.client)
            log.warning("client %s: its update or own model is not finite: left out of this round", update.client)
            return False
        self._add(update, self.weight(update))
        self.received.append(update.client)
        return True

    def _add(self, update: Update, weight: float) -> None:
        """Adds an update to the running sums."""
        for name, part in update.parts.items():
            if name == "encoder":
                self.aggregator.add(part, weight)
            else:
                self._heads.setdefault(name, WeightedMean()).add(part, weight)
            self._buffers.setdefault(name, BufferMean()).add(part.buffers, weight)
        self.rule.receive({name: part.delta for name, part in update.parts.items()}, update.message, weight)

    @property
    def fewest(self) -> int:
        """Clients that a round needs."""
        return max(self.min_clients, self.aggregator.fewest)

    def check_sums(self, algorithm: LocalAlgorithm) -> None:
        """Refuses what needs each client's update by itself, and so can't be summed rank by rank.

        Raises:
            ValueError: with what to change.
        """
        needs = {
            "server": self if self.personal else None,
            "server.aggregator": None if type(self.aggregator) is WeightedMean else self.aggregator,
            "local.algorithm": None if type(algorithm.server()) is ServerRule else algorithm,
        }
        for key, value in needs.items():
            if value is not None:
                raise ValueError(
                    f"fabric.reduce: fast adds up sums of updates, but {key} {type(value).__name__} needs each "
                    "client's; take reduce: exact"
                )

    def add_up(self, add: Callable[[Tensor], Tensor], accepted: Mapping[str, bool]) -> None:
        """Makes this rank's running sums those of all ranks.

        Args:
            add: sums a vector over all ranks, in place.
            accepted: of every client of the round, by name, whether its rank's server took its update.
        """
        self.received = [client for client, taken in accepted.items() if taken]
        self.refused = [client for client, taken in accepted.items() if not taken]
        pieces: list[Tensor] = []
        for name, part in self.state.items():
            mean = self.aggregator if name == "encoder" else self._heads.setdefault(name, WeightedMean())
            assert isinstance(mean, WeightedMean)
            pieces += mean.sums(part.vector, partial=self._partial)
            pieces += self._buffers.setdefault(name, BufferMean()).sums(part.buffers)
        flat = add(torch.cat([piece.reshape(-1) for piece in pieces]))
        for piece, total in zip(pieces, torch.split(flat, [piece.numel() for piece in pieces]), strict=True):
            piece.copy_(total.view_as(piece))

    @torch.no_grad()
    def check_round(self) -> None:
        """Refuses to end a round before anything has moved.

        Raises:
            UserError: fewer than `min_clients` updates were usable.
        """
        if len(self.received) < self.min_clients:
            refused = f" (not finite: {', '.join(self.refused)})" if self.refused else ""
            raise UserError(
                f"only {len(self.received)} usable client updates, server.min_clients asks for "
                f"{self.min_clients}{refused}; {REMEDY}"
            )

    def step(self) -> None:
        """Ends the round: merges what was received and moves the global state.

        Raises:
            UserError: see `check_round`; or the merged update is not finite.
        """
        self.check_round()
        self._move()
        self._begin_round()

    def _move(self) -> None:
        """Moves the global state by what was merged."""
        found = {"encoder": self.aggregator.merge(), **{name: mean.merge() for name, mean in self._heads.items()}}
        merged = {name: update for name, update in found.items() if update is not None}
        self.rule.apply(merged)
        for name, update in merged.items():
            if not is_finite(update):
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

    def _begin_round(self) -> None:
        self.received = []
        self.refused = []
        self._heads: dict[str, WeightedMean] = {}
        self._buffers: dict[str, BufferMean] = {}

    def state_dict(self) -> dict[str, Any]:
        """Global state, and states of optimizer and algorithm, as plain containers and tensors."""
        parts = {name: part.state_dict() for name, part in self.state.items()}
        return {"parts": parts, "optimizer": self.optimizer.state_dict(), "rule": self.rule.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`; `start` must have been called with a state of the same shapes."""
        for name, part in self.state.items():
            part.copy_(PartState(**state["parts"][name]))
        self.optimizer.load_state_dict(state["optimizer"])
        self.rule.load_state_dict(move_data_to_device(state["rule"], self._encoder.device))


class BufferMean:
    """Weighted mean of floating-point buffers as a running sum; integer buffers are not averaged."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}  # () by name: smaller models may lack some

    def add(self, buffers: Mapping[str, Tensor], weight: float) -> None:
        """Takes one client's buffers."""
        self.sums(buffers)
        for name, buffer in buffers.items():
            if buffer.is_floating_point():
                self._sums[name].add_(buffer, alpha=weight)
                self._weights[name].add_(weight)

    def sums(self, like: Mapping[str, Tensor]) -> list[Tensor]:
        """The running sums and weights for buffers of these names and shapes; to be changed in place."""
        for name, buffer in like.items():
            if buffer.is_floating_point() and name not in self._sums:
                self._sums[name] = torch.zeros_like(buffer, dtype=torch.float32)
                self._weights[name] = torch.zeros((), device=buffer.device)
        names = [name for name, buffer in like.items() if buffer.is_floating_point()]
        return [*(self._sums[name] for name in names), *(self._weights[name] for name in names)]

    def write(self, buffers: Mapping[str, Tensor]) -> None:
        """Copies the means into the server's buffers; what no client sent stays as it is."""
        for name, total in self._sums.items():
            weight = self._weights[name]
            buffers[name].copy_(torch.where(weight > 0, total / weight, buffers[name]))
