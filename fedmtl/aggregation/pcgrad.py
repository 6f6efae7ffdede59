"""PCGrad: every update loses what works against another one."""

import numpy as np

from fedmtl.aggregation.stacked import LinearCombination
from fedmtl.gram import cosines


class PCGrad(LinearCombination):
    """Weighted mean of updates that are projected off those they conflict with (Yu et al. 2020, arXiv 2001.06782).

    From v = Δ_i on, for every other client j: where ⟨v, Δ_j⟩ < 0, v ← v − ⟨v, Δ_j⟩ / ‖Δ_j‖² · Δ_j, with Δ_j as it
    came. The paper takes the others in random order and sums the results. Here they come from the most to the least
    conflicting (by the cosine of Δ_i and Δ_j), which makes results repeatable, and the results are averaged with the
    clients' weights, so that updates without a conflict give the weighted mean.
    """

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The coefficients (K,) of the updates in the merged one."""
        order = np.argsort(cosines(gram), kind="stable")
        projected = np.eye(len(gram))
        for i, row in enumerate(projected):
            for j in order[i]:
                if j != i and (inner := row @ gram[:, j]) < 0:
                    row[j] -= inner / gram[j, j]
        return weights / weights.sum() @ projected
