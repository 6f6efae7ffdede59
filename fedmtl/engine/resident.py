"""A model that stays in memory: its weights are swapped in place, client after client."""

from collections.abc import Mapping, Sequence
from typing import Literal

from lightning import Fabric
from torch import Tensor

from fedmtl.aggregation import PartUpdate
from fedmtl.client import ClientModule
from fedmtl.matching import Match, match_layouts, shared_buffers
from fedmtl.vector import FlatPart, Layout, PartState, State


class Resident:
    """The model of one architecture.

    Args:
        fabric: a single-device Fabric.
        module: the model; it is moved to the device and backed by flat vectors.

    Attributes:
        parts: its parts, by name.
        matches: for parts that differ from the server's, which entries they share; none for the server's model.
    """

    def __init__(self, fabric: Fabric, module: ClientModule) -> None:
        self.module = module
        self.wrapped = fabric.setup_module(module)
        self.parts = {name: FlatPart(part) for name, part in module.model.parts().items()}
        self.matches: dict[str, Match] = {}
        self._first: State = {}

    def match(self, server: "Resident", *, by: Literal["shape", "leading"], private: Sequence[str]) -> None:
        """Finds what it shares with the server's architecture, and keeps its first weights for the rest.

        Raises:
            ValueError: a pattern of `private` fits no tensor of the encoder.
        """
        self._first, self._servers = self.state(), server
        self._private = tuple(private)
        for name, part in self.parts.items():
            hidden = private if name == "encoder" else ()
            match = match_layouts(part.layout, server.parts[name].layout, by=by, private=hidden)
            if not match.identity:
                self.matches[name] = match

    def state(self) -> State:
        """A copy of its weights."""
        return {name: part.read() for name, part in self.parts.items()}

    def load(self, state: Mapping[str, PartState]) -> None:
        """Puts weights into the model."""
        for name, part in state.items():
            self.parts[name].load(part)

    def start(self, name: str, server: PartState, own: PartState | None, *, shared: bool) -> PartState:
        """A part at the start of a client's round.

        Args:
            name: the part.
            server: the server's weights of it.
            own: what the client kept of it, None if it has not trained yet.
            shared: whether the client shares it.
        """
        own = own or self._first.get(name, server)
        if not shared:
            return own
        if name not in self.matches:
            return server
        buffers = {key: server.buffers[key] for key in self.sent_buffers(name)}
        return PartState(self.matches[name].fill(own.vector, server.vector), own.buffers | buffers)

    def layout(self, name: str) -> Layout:
        """Where each tensor lies in a part's update."""
        return self.matches[name].shared if name in self.matches else self.parts[name].layout

    def update(self, name: str, start: PartState) -> Tensor:
        """A part's flat update since `start`: the entries that are shared."""
        delta = self.parts[name].vector - start.vector
        return self.matches[name].select(delta) if name in self.matches else delta

    def place(self, name: str, update: PartUpdate) -> PartUpdate:
        """A part's update in the server's coordinates."""
        if name not in self.matches:
            return update
        match = self.matches[name]
        return PartUpdate(
            match.place(update.delta),
            update.buffers,
            None if update.mask is None else match.place(update.mask),
            update.overlap,
            match.held.to(update.delta.device),
        )

    def sharing(self, names: Sequence[str]) -> tuple[int, int]:
        """Of these parts: how many entries are shared, and how many the server has."""
        shared = server = 0
        for name in names:
            match, whole = self.matches.get(name), self.parts[name].vector.numel()
            shared += match.shared_entries if match else whole
            server += match.server_entries if match else whole
        return shared, server

    def received(self, name: str, server: PartState) -> PartState:
        """What it takes of a part of the server's model; of as many entries, if not in their order."""
        if name not in self.matches:
            return server
        common = {key: server.buffers[key] for key in self.sent_buffers(name)}
        return PartState(server.vector[: self.matches[name].shared_entries], common)

    def sent_buffers(self, name: str) -> dict[str, Tensor]:
        """The buffers of a part that it shares with the server's, by name."""
        own = self.parts[name].buffers
        if name not in self.matches:
            return own
        servers = self._servers.parts[name].buffers
        return {key: own[key] for key in shared_buffers(own, servers, private=self._private)}
