"""Inner products of the clients' vectors, and combinations of the vectors, the conflict-averse one among them."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.optimize import brentq, nnls
from torch import Tensor

_COLUMNS = 1 << 15  # coordinates worked on at a time: a few MB of scratch memory, which fit the cache
_LARGEST_MASS = 1e6  # beyond, the updates that pull cancel but for the rounding of fp32


def columns(vectors: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Some coordinates of K vectors (d,) after the other: where they lie, and their values (K, n) in float64."""
    for begin in range(0, vectors[0].numel(), _COLUMNS):
        span = slice(begin, begin + _COLUMNS)
        block = torch.stack([vector[span] for vector in vectors])
        yield span, (block.cpu() if block.is_mps else block).double()  # MPS has no float64


def gram(vectors: Sequence[Tensor], *, centre: np.ndarray | None = None) -> np.ndarray:
    """Inner products ⟨x_i, x_j⟩ of K vectors (d,), as (K, K) float64.

    Args:
        vectors: finite, of one length.
        centre: weights (K,) that sum to 1; then of x_i − Σ_k centre_k x_k instead, without the cancellation
            that centring the products afterwards would bring.
    """
    total = np.zeros((len(vectors), len(vectors)))
    for _, block in columns(vectors):
        if centre is not None:
            block = block - torch.from_numpy(centre).to(block) @ block
        total += (block @ block.T).cpu().numpy()
    return total


def combine(coefficients: np.ndarray, vectors: Sequence[Tensor]) -> list[Tensor]:
    """The combinations Σ_j coefficients_ij x_j, for each row i, (d,) each in the vectors' dtype.

    Args:
        coefficients: (N, K).
        vectors: K vectors (d,).
    """
    combined = [torch.empty_like(vectors[0]) for _ in coefficients]
    for span, block in columns(vectors):
        for target, values in zip(combined, torch.from_numpy(coefficients).to(block) @ block, strict=True):
            target[span] = values
    return combined


def squared_distances(products: np.ndarray) -> np.ndarray:
    """‖x_i − x_j‖² from the Gram matrix, (K, K) float64, never negative, 0 on the diagonal."""
    norms = np.diag(products)
    return np.maximum(norms[:, None] + norms[None, :] - 2 * products, 0)


def cosines(products: np.ndarray) -> np.ndarray:
    """Cosines of the angles from the Gram matrix, (K, K) float64 in [−1, 1].

    A zero vector has the cosine 0 with others, and 1 with itself and other zero vectors.
    """
    norms = np.sqrt(np.diag(products))
    scale = np.outer(norms, norms)
    cosine = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    cosine[np.ix_(norms == 0, norms == 0)] = 1
    np.fill_diagonal(cosine, 1)
    return cosine.clip(-1, 1)


def conflict_averse(products: np.ndarray, shares: np.ndarray, c: float) -> np.ndarray:
    r"""Coefficients (K,) of the updates in the conflict-averse direction (Liu et al. 2021, arXiv 2110.14048).

    With the mean :math:`\bar\Delta = \sum_k p_k \Delta_k`, the direction is

    .. math:: d = \arg\max_d \min_k \langle \Delta_k, d \rangle
              \quad \text{s.t.} \quad \|d - \bar\Delta\| \le c \|\bar\Delta\|

    which is :math:`\bar\Delta + c \|\bar\Delta\| \Delta_w / \|\Delta_w\|` for the mixture
    :math:`\Delta_w = \sum_k w_k \Delta_k` that minimises
    :math:`\langle \Delta_w, \bar\Delta \rangle + c \|\bar\Delta\| \|\Delta_w\|` over the simplex. Where it is 0 (some
    updates cancel, or one is 0), no d helps all clients: then d is the point nearest to the mean that works against
    none.

    Args:
        products: inner products ⟨Δ_i, Δ_j⟩, (K, K) float64.
        shares: p (K,), which sum to 1.
        c: radius of the ball over ‖Δ̄‖, in [0, 1); 0 gives the mean.

    Example:
        >>> conflict_averse(np.eye(2), np.array([0.5, 0.5]), 0.5)
        array([0.75, 0.75])
    """
    # Updates as columns of the space that they span: with cosines, one that is far smaller keeps its direction.
    values, vectors = np.linalg.eigh(cosines(products))
    norms = np.sqrt(np.diag(products))
    points = np.sqrt(values.clip(min=0))[:, None] * vectors.T * (norms / max(norms.max(), math.ulp(0)))
    mean = points @ shares
    length = float(np.linalg.norm(mean))
    return shares + _pull(points, mean / length, c) * length if c and length else shares


def _pull(points: np.ndarray, mean: np.ndarray, c: float) -> np.ndarray:
    """Clients' coefficients (K,) of d − Δ̄, all at least 0.

    With sum s, those that make ‖d‖ smallest satisfy the optimality conditions of the problem for a ball of radius
    ‖d − Δ̄‖, which grows with s: one number is to be found.

    Args:
        points: the updates, as columns (K, K), none longer than 1.
        mean: direction of Δ̄, of length 1, (K,).
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
