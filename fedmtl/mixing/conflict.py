"""The conflict-averse direction (CAGrad, arXiv 2110.14048), solved in the space of the clients' inner products."""

import math

import numpy as np
from scipy.optimize import nnls

_FLOOR = 1e-6  # smallest norm of the worst mixture, relative to the updates' norms
_RIDGE = 1e-9  # keeps the least squares problem of full rank where updates are linearly dependent
_HALVINGS = 60


def conflict_averse_weights(gram: np.ndarray, c: float, shares: np.ndarray | None = None) -> np.ndarray:
    r"""Coefficients a (K,) of the conflict-averse direction :math:`U = \sum_i a_i \Delta_i`.

    With the mean :math:`\bar\Delta = \sum_i p_i \Delta_i`, the direction helps the worst-off client most, among
    all that are near the mean (Liu et al., NeurIPS 2021, arXiv 2110.14048, eq. 2):

    .. math:: (1 + c^2)\, U = \arg\max_d \min_i \langle \Delta_i, d \rangle
              \quad \text{s.t.} \quad \|d - \bar\Delta\| \le c \|\bar\Delta\|

    which is :math:`\bar\Delta + c \|\bar\Delta\| \Delta_w / \|\Delta_w\|` for the mixture :math:`\Delta_w` that
    minimises :math:`\langle \Delta_w, \bar\Delta \rangle + c \|\bar\Delta\| \|\Delta_w\|` over the simplex.

    For a given norm t of that mixture it is the point nearest to 0 in the hull of
    :math:`\Delta_i + t \bar\Delta / (c \|\bar\Delta\|)`; t is found by bisection, as the problem is convex in
    (w, t). Where the mixture vanishes, t stops at 1e-6 of the updates' root mean square norm.

    Args:
        gram: inner products of the updates, (K, K) float64.
        c: how far from the mean, in [0, 1); 0 gives the mean.
        shares: p (K,), which sum to 1; default 1/K each.

    Raises:
        ValueError: `c` is outside [0, 1).

    Example:
        >>> conflict_averse_weights(np.eye(2), 0.5)
        array([0.6, 0.6])
    """
    if not 0 <= c < 1:
        raise ValueError(f"c must be in [0, 1), not {c!r}")
    shares = np.full(len(gram), 1 / len(gram)) if shares is None else shares
    scale = np.trace(gram) / len(gram)
    products = gram / scale if scale > 0 else gram
    onto_mean = products @ shares
    norm = math.sqrt(max(float(shares @ onto_mean), 0.0))
    if c * norm == 0:
        return shares / (1 + c**2)
    low, high = _FLOOR, math.sqrt(np.diag(products).max())
    for _ in range(_HALVINGS):
        t = (low + high) / 2
        mixture = _nearest_to_zero(_shifted(products, onto_mean, norm, t / (c * norm)))
        low, high = (t, high) if mixture @ products @ mixture > t * t else (low, t)
    return (shares + c * norm * mixture / t) / (1 + c**2)


def _shifted(products: np.ndarray, onto_mean: np.ndarray, norm: float, step: float) -> np.ndarray:
    """Gram matrix of Δ_i + step · mean."""
    return products + step * (onto_mean[:, None] + onto_mean[None, :]) + (step * norm) ** 2


def _nearest_to_zero(products: np.ndarray) -> np.ndarray:
    """Weights (K,) of the point nearest to 0 in the hull of vectors with this Gram matrix.

    min ‖Bx‖² + (Σx − 1)² over x ≥ 0 has its minimum at a multiple of those weights.
    """
    count = len(products)
    values, vectors = np.linalg.eigh(products / max(np.trace(products) / count, np.finfo(float).tiny))
    factor = np.sqrt(values.clip(0))[:, None] * vectors.T
    system = np.vstack([factor, np.ones((1, count)), _RIDGE * np.eye(count)])
    target = np.zeros(len(system))
    target[count] = 1
    weights, _ = nnls(system, target)
    return weights / weights.sum()
