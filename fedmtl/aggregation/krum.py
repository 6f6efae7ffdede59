"""Krum and multi-Krum: only the updates that have the closest neighbours."""

import numpy as np

from fedmtl.aggregation.stacked import LinearCombination
from fedmtl.gram import squared_distances


class Krum(LinearCombination):
    """Mean of the m updates nearest to their neighbours (Blanchard et al. 2017, arXiv 1703.02757).

    The score of an update is the sum of its squared distances to the K − f − 2 updates nearest to it; the m with the
    lowest scores are averaged with equal weights, since a faulty client could claim any. m = 1 is Krum, more is
    multi-Krum. A round must have 2f + 3 clients, and m + f. Updates that the server refused, as not finite, were faulty
    ones: f and m are then as large as what is left allows.

    Args:
        byzantine: f, number of clients that may send anything, at least 0.
        keep: m, number of updates to average, at least 1.

    Raises:
        ValueError: `byzantine` or `keep` is below that.
    """

    def __init__(self, *, byzantine: int = 1, keep: int = 1) -> None:
        super().__init__()
        if byzantine < 0:
            raise ValueError(f"byzantine must be at least 0, not {byzantine}")
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.byzantine = byzantine
        self.keep = keep
        self.fewest = max(2 * byzantine + 3, keep + byzantine)

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The coefficients (K,) of the updates in the merged one."""
        clients = len(gram)
        byzantine = min(self.byzantine, max(0, (clients - 3) // 2))
        keep = min(self.keep, clients - byzantine)
        distances = squared_distances(gram)
        np.fill_diagonal(distances, np.inf)
        scores = np.sort(distances)[:, : max(1, clients - byzantine - 2)].sum(1)
        coefficients = np.zeros(clients)
        coefficients[np.argsort(scores, kind="stable")[:keep]] = 1 / keep
        return coefficients
