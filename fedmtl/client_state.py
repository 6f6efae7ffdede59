"""What a client keeps for itself between its rounds, and where that waits: in memory, or in a file of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from fedmtl import storage
from fedmtl.algorithms import Message
from fedmtl.errors import UserError
from fedmtl.vector import PartState


@dataclass
class ClientState:
    """What a client keeps for itself between rounds.

    Attributes:
        optimizer: states of its local optimizer, by phase.
        personal: weights of the parts that it does not share, or shares in part only, by part name.
        own: weights of a model of its own beside the shared one, by part name; where the algorithm has one.
        algorithm: vectors that its local algorithm keeps, by name and part.
        upload: tensors that its upload transforms keep, by place of the transform and name.
    """

    optimizer: dict[str, dict[str, Any]] = field(default_factory=dict)
    personal: dict[str, PartState] = field(default_factory=dict)
    own: dict[str, PartState] = field(default_factory=dict)
    algorithm: Message = field(default_factory=dict)
    upload: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def is_empty(self) -> bool:
        """Whether there is nothing to keep."""
        return not (self.optimizer or self.personal or self.own or self.algorithm or self.upload)

    def is_finite(self) -> bool:
        """Whether the weights that it keeps hold neither NaN nor infinity."""
        return all(part.is_finite() for parts in (self.personal, self.own) for part in parts.values())

    def to(self, device: torch.device) -> "ClientState":
        """The same on a device; states of optimizers go there when they are loaded."""
        return ClientState(
            move_data_to_device(self.optimizer, device) if device.type == "cpu" else self.optimizer,
            {name: part.to(device) for name, part in self.personal.items()},
            {name: part.to(device) for name, part in self.own.items()},
            move_data_to_device(self.algorithm, device),
            move_data_to_device(self.upload, device),
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors."""
        weights = {
            kind: {name: part.state_dict() for name, part in parts.items()}
            for kind, parts in (("personal", self.personal), ("own", self.own))
        }
        return {"optimizer": self.optimizer, "algorithm": self.algorithm, "upload": self.upload, **weights}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "ClientState":
        """The way back."""
        weights = {
            kind: {name: PartState(**part) for name, part in state[kind].items()} for kind in ("personal", "own")
        }
        return cls(**{**state, **weights})


@dataclass
class Kept:
    """Where a client's state waits. What is kept never changes: a next state is a next `Kept`.

    Attributes:
        round: the round that it is of; 0 for none, which is an empty state.
        value: the state, where this process holds it in memory.
        path: the file that holds it, where there is one.
    """

    round: int = 0
    value: ClientState | None = None
    path: Path | None = None

    @property
    def state(self) -> ClientState:
        """The state; one that is in a file is mapped from there, which takes no memory.

        Raises:
            UserError: the file is damaged.
            LookupError: it is in the memory of another process.
        """
        if self.value is not None or not self.round:
            return self.value or ClientState()
        if self.path is None:
            raise LookupError("the state is kept by another process")
        try:
            return ClientState.from_state_dict(storage.read(self.path))
        except storage.StorageError as error:
            raise UserError(f"{error}; --resume auto goes on from a checkpoint that is whole") from error

    def write(self, path: Path) -> None:
        """Writes the state to a file, from where it can be read from now on.

        Raises:
            OSError: it can't be written.
        """
        assert self.value is not None
        storage.write(path, self.value.state_dict())
        self.path = path


def file_name(client: str, round: int) -> str:
    """The name of the file with a client's state of a round."""
    return f"{quote(client, safe='+')}.{round:06d}.safetensors"
