"""CAGrad: the direction near the mean that helps the client which it helps least."""

import math
from typing import Literal, get_args

import numpy as np
from scipy.optimize import brentq, nnls

from fedmtl.aggregation.stacked import LinearCombination

Shrinkage = Literal["none", "1/(1+c)", "1/(1+c^2)"]

_LARGEST_MASS = 1e6  # beyond, the updates that pull cancel but for the rounding of fp32


class CAGrad(LinearCombination):
    """Conflict-averse direction (Liu et al. 2021, arXiv 2110.14048).

    d maximises min_k ⟨Δ_k, d⟩ over the ball ‖d − g_0‖ ≤ c‖g_0‖ around the weighted mean g_0 of the updates:

    d = g_0 + c‖g_0‖ g_w / ‖g_w‖, where g_w = Σ w_k Δ_k minimises ⟨g_w, g_0⟩ + c‖g_0‖ ‖g_w‖ over the simplex.

    Where g_w is 0 (some updates cancel, or one is 0), no d helps all clients: then d is the point nearest to g_0
    that works against none. The clients' weights enter by g_0 alone.

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
        shares = weights / weights.sum()
        points = _coordinates(gram)
        mean = points @ shares
        length = float(np.linalg.norm(mean))
        pull = _pull(points, mean / length, self.c) * length if self.c and length else 0.0
        factor = {"none": 1.0, "1/(1+c)": 1 / (1 + self.c), "1/(1+c^2)": 1 / (1 + self.c**2)}[self.rescale]
        return factor * (shares + pull)


def _coordinates(gram: np.ndarray) -> np.ndarray:
    """The updates as columns (K, K) of the space that they span, the longest of length 1."""
    norms = np.sqrt(gram.diagonal())
    divisors = np.where(norms > 0, norms, 1)  # with cosines, an update that is far smaller keeps its direction
    values, vectors = np.linalg.eigh(gram / np.outer(divisors, divisors))
    return np.sqrt(values.clip(min=0))[:, None] * vectors.T * (norms / max(norms.max(), math.ulp(0)))


def _pull(points: np.ndarray, mean: np.ndarray, c: float) -> np.ndarray:
    """Clients' coefficients (K,) of d − g_0, all at least 0.

    With sum s, those that make ‖d‖ smallest satisfy the optimality conditions of the problem for a ball of radius
    ‖d − g_0‖, which grows with s: one number is to be found.

    Args:
        points: the updates, as columns (K, K), none longer than 1.
        mean: direction of g_0, of length 1, (K,).
        c: radius of the ball.
    """
    target = np.append(np.zeros(len(mean)), 1.0)

    def nearest(mass: float) -> np.ndarray:
        # ‖Xy‖² + (Σy − 1)² over y ≥ 0 is smallest where y is parallel to the weights of the hull's shortest point.
        system = np.vstack([mass * points + mean[:, None], np.ones(points.shape[1])])
        y = nnls(system, target, maxiter=100 * len(points))[0]
        return mass * y / y.sum()

    def excess(mass: float) -> float:
        return float(np.linalg.norm(points @ nearest(mass))) - c

    if excess(c * _LARGEST_MASS) <= 0:
        return nearest(c * _LARGEST_MASS)
    return nearest(brentq(excess, c * (1 - 1e-9), c * _LARGEST_MASS, xtol=1e-15, rtol=1e-14))
