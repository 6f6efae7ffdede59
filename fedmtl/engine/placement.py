"""Where clients are: which ranks train each, how long that takes, and who has what it keeps in memory."""

from collections.abc import Iterable, Mapping, Sequence

from fedmtl import storage
from fedmtl.client import Client, LocalTraining
from fedmtl.client_state import ClientState, Kept
from fedmtl.engine.ranks import Ranks, Team
from fedmtl.engine.schedule import assign


class Placement:
    """Says who trains whom, the same on all ranks, and brings there what clients keep.

    Args:
        clients: all clients, by name.
        local: how they train.
        ranks: the processes of the job.

    Attributes:
        homes: the rank at which what each client keeps is.
        steps: local steps of a round of each client.
    """

    def __init__(self, clients: Mapping[str, Client], local: LocalTraining, ranks: Ranks) -> None:
        self.clients, self.ranks = clients, ranks
        self.steps = {name: local.steps(client) for name, client in clients.items()}
        self.homes = assign(self.steps, ranks.world)
        self._holders = {name: {rank} for name, rank in self.homes.items()}
        self._in_memory: set[str] = set()  # whose state there may be no file of
        self._seconds: dict[str, float] = {}  # of each client's last round
        self._smallest = min([local.batch_size, *(len(client.images) for client in clients.values())])
        self._teams: dict[int, list[Team]] = {}

    def by_time(self, names: Sequence[str]) -> dict[str, int]:
        """A rank for each client, by the times that were measured."""
        costs = {name: self._cost(name) for name in names}
        return assign(costs, self.ranks.world, {name: self.homes[name] for name in names})

    def by_steps(self, names: Sequence[str]) -> dict[str, int]:
        """A rank for each client, which depends on nothing but their steps."""
        return assign({name: self.steps[name] for name in names}, self.ranks.world)

    def teams(self, clients: int) -> list[Team]:
        """For each of so many clients the ranks that share its batches: every one has an image of each."""
        if clients not in self._teams:
            ranks = range(self.ranks.world)
            self._teams[clients] = [Team(ranks[i::clients][: self._smallest]) for i in range(clients)]
        return self._teams[clients]

    def move(self, members: Mapping[str, Sequence[int]]) -> None:
        """Brings what clients keep to the ranks that train them; what is in files is everywhere."""
        for name, ranks in members.items():
            client, home = self.clients[name], self.homes[name]
            self.homes[name] = ranks[0]
            if name in self._in_memory and not set(ranks) <= self._holders[name]:
                packed = storage.pack(client.state.state_dict()) if home == self.ranks.rank else b""
                data = self.ranks.share_bytes(packed, self.ranks.share(len(packed), home), home)
                here = self.ranks.rank in ranks
                value = ClientState.from_state_dict(storage.unpack(data.tobytes())) if here else None
                client.kept = Kept(client.kept.round, value)
            self._holders[name] = set(ranks)

    def note(self, kept: Mapping[str, Kept], in_memory: Iterable[str]) -> None:
        """Notes which of these clients keep what there is no file of."""
        self._in_memory -= set(kept)
        self._in_memory |= set(in_memory)

    def forget(self) -> None:
        """What clients keep is in files now."""
        self._in_memory.clear()

    def measured(self, name: str, seconds: float) -> None:
        """Notes how long a client's round took."""
        self._seconds[name] = seconds

    def _cost(self, name: str) -> float:
        """Expected time of a client's round: as measured, else by its steps at the others' speed."""
        if name in self._seconds:
            return self._seconds[name]
        measured = sum(self.steps[known] for known in self._seconds)
        return self.steps[name] * (sum(self._seconds.values()) / measured if measured else 1.0)
