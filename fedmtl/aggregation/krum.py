"""Krum and multi-Krum: only the updates that have the closest neighbours."""

import numpy as np

from fedmtl.aggregation.stacked import LinearCombination
from fedmtl.errors import UserError
from fedmtl.gram import squared_distances


class Krum(LinearCombination):
    """Mean of the m updates nearest to their neighbours (Blanchard et al. 2017, arXiv 1703.02757).

    The score of an update is the sum of its squared distances to the K − f − 2 updates nearest to it; the m with the
    lowest scores are averaged with equal weights, since a faulty client could claim any. m = 1 is Krum, more is
    multi-Krum.

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

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The coefficients (K,) of the updates in the merged one.

        Raises:
            UserError: fewer than 2f + 3 updates, or fewer than m of them can be honest.
        """
        clients = len(gram)
        if clients < (needed := max(2 * self.byzantine + 3, self.keep + self.byzantine)):
            raise UserError(
                f"server.aggregator: Krum with byzantine {self.byzantine} and keep {self.keep} needs at least {needed} "
                f"usable updates a round and got {clients}; lower them or have more clients take part"
            )
        distances = squared_distances(gram)
        np.fill_diagonal(distances, np.inf)
        scores = np.sort(distances)[:, : clients - self.byzantine - 2].sum(1)
        coefficients = np.zeros(clients)
        coefficients[np.argsort(scores, kind="stable")[: self.keep]] = 1 / self.keep
        return coefficients
