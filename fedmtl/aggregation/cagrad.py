"""CAGrad: the direction near the mean that helps the client which it helps least."""

from typing import Literal, get_args

import numpy as np

from fedmtl.aggregation.stacked import LinearCombination
from fedmtl.gram import conflict_averse

Shrinkage = Literal["none", "1/(1+c)", "1/(1+c^2)"]


class CAGrad(LinearCombination):
    """Conflict-averse direction (Liu et al. 2021, arXiv 2110.14048).

    d maximises min_k ⟨Δ_k, d⟩ over the ball ‖d − g_0‖ ≤ c‖g_0‖ around the weighted mean g_0 of the updates
    (`fedmtl.gram.conflict_averse`). The clients' weights enter by g_0 alone.

    Args:
        c: radius of the ball over ‖g_0‖, in [0, 1); 0 is the weighted mean.
        rescale: factor on d, which else is up to 1 + c times as long as the mean: ``none`` (the paper's text),
            ``1/(1+c^2)`` (the default of its authors' code), or ``1/(1+c)``, with which identical updates return
            themselves.

    Raises:
        ValueError: `c` outside [0, 1), or an unknown `rescale`.
    """

    def __init__(self, *, c: float = 0.4, rescale: Shrinkage = "1/(1+c^2)") -> None:
        super().__init__()
        if not 0 <= c < 1:
            raise ValueError(f"c must be in [0, 1), not {c}")
        if rescale not in get_args(Shrinkage):
            raise ValueError(f"rescale must be one of {', '.join(get_args(Shrinkage))}, not {rescale!r}")
        self.c = c
        self.rescale = rescale

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The coefficients (K,) of the updates in the merged one."""
        factor = {"none": 1.0, "1/(1+c)": 1 / (1 + self.c), "1/(1+c^2)": 1 / (1 + self.c**2)}[self.rescale]
        return factor * conflict_averse(gram, weights / weights.sum(), self.c)
