"""A server without a global model: it keeps one for each client, and mixes them."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from lightning.fabric.utilities import move_data_to_device

from fedmtl.aggregation import Update, UploadTransform
from fedmtl.algorithms import LocalAlgorithm, ServerRule
from fedmtl.errors import UserError
from fedmtl.mixing import Exchange, Mixing
from fedmtl.server.server import REMEDY, Server
from fedmtl.vector import PartState, State, is_finite


class PersonalServer(Server):
    """Keeps each client's shared parts apart; once a round, what clients sent is mixed into each one's model.

    Clients that do not train in a round keep theirs. Buffers are the client's own. `state` is the mean of the clients'
    models, which nobody trains: diagnostics measure by it.

    Args:
        mixing: the method.
        weighting: a client's weight is its number of training images, or the same for all.
        min_clients: fewest usable updates for a round to go on.
    """

    personal = True

    def __init__(
        self, *, mixing: Mixing, weighting: Literal["examples", "uniform"] = "examples", min_clients: int = 1
    ) -> None:
        super().__init__(weighting=weighting, min_clients=min_clients)
        self.mixing = mixing

    def check(
        self, *, algorithm: LocalAlgorithm, upload: Sequence[UploadTransform], several_architectures: bool
    ) -> None:
        """Refuses what needs one global model."""
        method = type(self.mixing).__name__
        if algorithm.personal or type(algorithm.server()) is not ServerRule:
            name = type(algorithm).__name__
            raise ValueError(f"local.algorithm: {name} is for one global model, and {method} has none")
        if any(transform.overlap for transform in upload):
            raise ValueError(f"upload: rescale: overlap is for a mean over clients, and {method} makes each its own")
        if several_architectures:
            raise ValueError(
                f"clients: {method} mixes models of one architecture only; leave out the groups' model, input and "
                "private"
            )

    def _start_clients(self, parts: Mapping[str, Sequence[str]]) -> None:
        """Gives every client its copy of the first state."""
        self.models = {
            client: {name: PartState(**deepcopy(self.state[name].state_dict())) for name in names}
            for client, names in parts.items()
        }

    def model_for(self, client: str) -> State:
        """The client's own state."""
        return self.state | self.models[client]

    def _add(self, update: Update, weight: float) -> None:
        """Keeps an update until the round's end."""
        self._updates.append((update, weight))

    @torch.no_grad()
    def _move(self) -> None:
        """Mixes."""
        exchanges = [
            Exchange(
                client=update.client,
                weight=weight,
                before={name: self.models[update.client][name].vector for name in update.parts},
                updates={name: part.delta for name, part in update.parts.items()},
                layouts=self.layouts,
            )
            for update, weight in self._updates
        ]
        mixed = self.mixing.mix(exchanges)
        for (update, _), vectors in zip(self._updates, mixed, strict=True):
            model = self.models[update.client]
            for name, vector in vectors.items():
                if not is_finite(vector):
                    raise UserError(f"the mixed model of {update.client} is not finite in {name}; {REMEDY}")
                model[name].vector.copy_(vector)
                for buffer, values in update.parts[name].buffers.items():
                    model[name].buffers[buffer].copy_(values)
        for name, part in self.state.items():
            holders = [model[name].vector for model in self.models.values() if name in model]
            if holders:
                part.vector.copy_(torch.stack(holders).mean(0))

    def _begin_round(self) -> None:
        super()._begin_round()
        self._updates: list[tuple[Update, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """The clients' states, and the method's own."""
        models = {c: {name: part.state_dict() for name, part in model.items()} for c, model in self.models.items()}
        return {**super().state_dict(), "models": models, "mixing": self.mixing.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        super().load_state_dict(state)
        for client, model in self.models.items():
            for name, part in model.items():
                part.copy_(PartState(**state["models"][client][name]))
        self.mixing.load_state_dict(move_data_to_device(state["mixing"], self._encoder.device))
