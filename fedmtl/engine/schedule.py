"""Which rank trains which client: longest first, where they were if that costs little."""

from collections.abc import Mapping
from heapq import heapify, heapreplace

SLACK = 0.02  # of the round's time that a client's stay at its rank may cost


def assign(costs: Mapping[str, float], ranks: int, homes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Spreads clients over ranks so that the last one is done early (longest processing time first).

    Graham 1969: the plan takes at most 4/3 − 1/(3·ranks) of the best one's time. A client stays at its rank, where
    what it keeps lies, as long as the round gets at most 2 % longer than by a plan without regard to that.

    Args:
        costs: time of each client, in any unit, ≥ 0. Of equal ones the first goes first.
        ranks: how many there are.
        homes: the rank that each client was at.

    Returns:
        The rank of each client, in the order of `costs`.
    """
    free = _longest_first(costs, ranks)
    if not homes:
        return free
    limit = (1 + SLACK) * makespan(costs, free, ranks)
    loads = [0.0] * ranks
    found = {}
    for client in sorted(costs, key=lambda name: -costs[name]):
        home = homes.get(client)
        if home is None or loads[home] + costs[client] > limit:
            home = loads.index(min(loads))
        loads[home] += costs[client]
        found[client] = home
    if max(loads) > limit:  # staying led to a bad end
        return free
    return {client: found[client] for client in costs}


def makespan(costs: Mapping[str, float], plan: Mapping[str, int], ranks: int) -> float:
    """When the last rank is done."""
    loads = [0.0] * ranks
    for client, rank in plan.items():
        loads[rank] += costs[client]
    return max(loads)


def _longest_first(costs: Mapping[str, float], ranks: int) -> dict[str, int]:
    loads = [(0.0, rank) for rank in range(ranks)]
    heapify(loads)
    found = {}
    for client in sorted(costs, key=lambda name: -costs[name]):
        load, found[client] = loads[0]
        heapreplace(loads, (load + costs[client], found[client]))
    return {client: found[client] for client in costs}
