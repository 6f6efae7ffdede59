"""How pairs of clients' updates interfered over the rounds, read from runs' diagnostics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmtl.comparison.groups import Group
from fedmtl.runs import Run, number

MANY_CLIENTS = 7  # with more, clients with the same tasks of a data set count as one
MOST_PAIRS, MOST_ROUNDS = 28, 60  # what a chart has room for


@dataclass(frozen=True)
class PairHistory:
    """A number of pairs of clients over the rounds.

    Attributes:
        pairs: their names.
        rounds: those measured.
        values: (pairs, rounds), NaN for none.
    """

    pairs: list[str]
    rounds: list[int]
    values: NDArray[np.float64]


def pair_history(group: Group, key: str) -> PairHistory | None:
    """A number of each pair of clients by round, the mean over a group's seeds; None where there are none.

    With many clients a pair is one of tasks: the mean over the clients that have them. Tasks are named after their
    data set where there are several, as their heads are.

    Args:
        group: runs with diagnostics.
        key: of the pairs in diagnostics.jsonl, such as ``cosine`` or ``mask_overlap``.
    """
    found: dict[tuple[str, int], list[float]] = {}
    for run in group.runs:
        for row in run.details:
            for pair, value in _pairs(run, row, key):
                found.setdefault((pair, row["round"]), []).append(value)
    if not found:
        return None
    pairs = list(dict.fromkeys(pair for pair, _ in found))[:MOST_PAIRS]
    rounds = sorted({round for _, round in found})
    rounds = [rounds[i] for i in np.unique(np.linspace(0, len(rounds) - 1, min(MOST_ROUNDS, len(rounds))).astype(int))]
    values = [[np.mean(found.get((pair, round), [np.nan])) for round in rounds] for pair in pairs]
    return PairHistory(pairs, rounds, np.array(values))


def _pairs(run: Run, row: Mapping[str, Any], key: str) -> list[tuple[str, float]]:
    clients, pairs = row.get("clients"), row.get("pairs")
    matrix = pairs.get(key) if isinstance(pairs, dict) else None
    if not isinstance(clients, list) or not isinstance(matrix, list) or len(matrix) != len(clients):
        return []
    labels = _labels(run, [str(client) for client in clients])
    result = []
    for a, b in combinations(range(len(clients)), 2):
        value = number(matrix[a][b]) if isinstance(matrix[a], list) and b < len(matrix[a]) else None
        if value is not None:
            pair = sorted((labels[a], labels[b])) if len(clients) > MANY_CLIENTS else (labels[a], labels[b])
            result.append((" ~ ".join(pair), value))
    return result


def _labels(run: Run, clients: Sequence[str]) -> list[str]:
    if len(clients) <= MANY_CLIENTS:
        return list(clients)
    several = len({str(row.get("data")) for row in run.federation}) > 1
    labels = {}
    for row in run.federation:
        prefix = f"{row.get('data')}_" if several else ""
        labels[str(row.get("client"))] = "+".join(f"{prefix}{task}" for task in row.get("tasks") or [])
    return [labels.get(client) or client for client in clients]
