"""Clients that fail, drop out or are too slow, simulated: who of a round's clients answers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedmtl.seeding import numpy_stream

Fault = Literal["dropped", "failed", "late"]


@dataclass
class Faults:
    """What goes wrong with clients; each draws its own luck in every round, from the run's seed.

    A client that does not answer keeps what it had before the round. Weights of the others are those of a round with
    them alone. A round in which fewer answer than `server.min_clients` changes nothing.

    Args:
        dropout: probability that a client does not begin: it is switched off, or not reached. In [0, 1).
        failure: probability that one that begins does not come to the end. In [0, 1).
        slowness: spread of the clients' speeds: a client's time a step is exp(slowness · z) with z from a normal
            distribution, drawn once. 0 makes all alike.
        time_limit: how long a round waits, in steps of a usual client (time 1 each); who needs longer is late. None
            waits for all.

    Raises:
        ValueError: a value is out of its range.
    """

    dropout: float = 0.0
    failure: float = 0.0
    slowness: float = 0.0
    time_limit: float | None = None

    def __post_init__(self) -> None:
        for key in ("dropout", "failure"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"faults.{key} must be in [0, 1), not {getattr(self, key)}")
        if not 0 <= self.slowness < math.inf:
            raise ValueError(f"faults.slowness must be at least 0, not {self.slowness}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"faults.time_limit must be positive, not {self.time_limit}")

    def strike(self, steps: Mapping[str, int], *, seed: int, round: int) -> dict[str, Fault]:
        """The clients that do not answer, with the reason.

        Args:
            steps: local steps of each of the round's clients, by name.
            seed: the run's seed.
            round: number of the round, from 1.
        """
        found: dict[str, Fault] = {}
        for client, count in steps.items():
            luck = numpy_stream(seed, "faults", client, round).random(2)
            if luck[0] < self.dropout:
                found[client] = "dropped"
            elif luck[1] < self.failure:
                found[client] = "failed"
            elif self.time_limit is not None and count * self.pace(client, seed=seed) > self.time_limit:
                found[client] = "late"
        return found

    def pace(self, client: str, *, seed: int) -> float:
        """A client's time a step; the usual one's is 1."""
        return math.exp(self.slowness * numpy_stream(seed, "slowness", client).standard_normal())
