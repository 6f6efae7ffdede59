"""Inner products of the clients' vectors, and linear combinations of them, block by block in double precision."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1 << 16  # columns worked on at a time, so that scratch memory stays in the cache


def gram(vectors: Sequence[Tensor], *, centre: np.ndarray | None = None) -> np.ndarray:
    """Inner products ⟨x_i, x_j⟩ of K vectors (d,), as (K, K) float64.

    Args:
        vectors: finite, of one length.
        centre: weights (K,) that sum to 1; then of x_i − Σ_k centre_k x_k instead, without the cancellation
            that centring the products afterwards would bring.
    """
    total: Tensor | None = None
    for _, block in _blocks(vectors):
        if centre is not None:
            block = block - torch.from_numpy(centre).to(block) @ block
        products = block @ block.T
        total = products if total is None else total.add_(products)
    return np.zeros((len(vectors),) * 2) if total is None else total.cpu().double().numpy()


def combine(coefficients: np.ndarray, vectors: Sequence[Tensor]) -> list[Tensor]:
    """The combinations Σ_j coefficients_ij x_j, for each row i, (d,) each in the vectors' dtype.

    Args:
        coefficients: (N, K).
        vectors: K vectors (d,).
    """
    combined = [torch.empty_like(vectors[0]) for _ in coefficients]
    for span, block in _blocks(vectors):
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


def _blocks(vectors: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Columns of the stacked vectors, (K, block) each."""
    wide = torch.float32 if vectors[0].is_mps else torch.float64  # which MPS does not have
    for start in range(0, vectors[0].numel(), _BLOCK):
        span = slice(start, start + _BLOCK)
        yield span, torch.stack([vector[span] for vector in vectors]).to(wide)
