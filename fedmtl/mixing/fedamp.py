"""FedAMP: each client gets a cloud model, to which similar clients contribute more."""

from typing import Literal

import numpy as np
from torch import Tensor

from fedmtl.gram import combine, cosines, gram, squared_distances
from fedmtl.mixing.base import Exchange, Mixing, check_range, groups


class FedAMP(Mixing):
    r"""Attentive message passing (FedAMP: Huang et al., AAAI 2021, arXiv 2007.03797).

    From the clients' models :math:`w_j` the server makes :math:`u_i = \sum_j \xi_{ij} w_j`,
    :math:`\xi_{ii} = 1 - \sum_{j \ne i} \xi_{ij}`, with

    - ``distance``: :math:`\xi_{ij} = \alpha A'(\|w_i - w_j\|^2)`, a gradient step on the sum of
      :math:`A(x) = 1 - e^{-x / \sigma}` over pairs, hence :math:`A'(x) = e^{-x/\sigma} / \sigma`.
    - ``relative``: the same, with squared distances divided by their mean over all pairs, so that σ need not know
      the size of the model. Ours.
    - ``cosine``: :math:`\xi_{ij} \propto e^{\sigma \cos(w_i, w_j)}` for :math:`j \ne i`, which sum to
      :math:`1 - \xi_{ii}` with a given :math:`\xi_{ii}`: the paper's HeurFedAMP, for deep networks.

    A client then minimises :math:`F_i(w) + \frac{\lambda}{2 \alpha} \|w - u_i\|^2`. It starts at :math:`u_i`, so that
    is FedProx with :math:`\mu = \lambda / \alpha`: without it nothing pulls to :math:`u_i`.

    With ``distance``, σ has the unit of a squared distance between models: where all are much farther apart, no one
    contributes to another and the method is training alone. The public codes' σ = α = 1 (PFLlib, FMTL-Bench) is often
    of that kind.

    The paper asks for an α so small that no :math:`\xi` is negative. Ours: where α is too large, contributions are
    scaled down until :math:`\xi_{ii} = 1/K`; public codes extrapolate. Each part is merged by itself, a head among the
    clients that have it, as in FMTL-Bench. Clients' numbers of images play no role, as in the paper.

    Args:
        attention: one of the above.
        sigma: σ, positive. Small values let only close clients contribute; for ``cosine`` large ones do.
        alpha: α, positive; ``cosine`` does not use it.
        own: :math:`\xi_{ii}` for ``cosine``, in [0, 1]; default 1/K.

    Raises:
        ValueError: an argument is outside these bounds.
    """

    def __init__(
        self,
        *,
        attention: Literal["distance", "relative", "cosine"] = "distance",
        sigma: float = 1.0,
        alpha: float = 1.0,
        own: float | None = None,
    ) -> None:
        if attention not in ("distance", "relative", "cosine"):
            raise ValueError(f"attention must be distance, relative or cosine, not {attention!r}")
        check_range("sigma", sigma, 0, np.inf, ends="()")
        check_range("alpha", alpha, 0, np.inf, ends="()")
        if own is not None:
            check_range("own", own, 0, 1)
        self.attention = attention
        self.sigma = sigma
        self.alpha = alpha
        self.own = own

    def _mix(self, exchanges: list[Exchange]) -> list[dict[str, Tensor]]:
        mixed: list[dict[str, Tensor]] = [{} for _ in exchanges]
        for (part, _), members in groups(exchanges).items():
            models = [exchanges[index].after(part) for index in members]
            clouds = combine(self._attention(models), models)
            for index, cloud in zip(members, clouds, strict=True):
                mixed[index][part] = cloud
        return mixed

    def _attention(self, models: list[Tensor]) -> np.ndarray:
        """ξ (K, K), rows sum to 1."""
        count = len(models)
        if count == 1:
            return np.ones((1, 1))
        if self.attention == "cosine":
            scores = self.sigma * cosines(gram(models))
            np.fill_diagonal(scores, -np.inf)
            others = np.exp(scores - scores.max(axis=1, keepdims=True))
            others *= (1 - (1 / count if self.own is None else self.own)) / others.sum(axis=1, keepdims=True)
        else:
            distances = squared_distances(gram(models, centre=np.full(count, 1 / count)))
            if self.attention == "relative" and distances.any():
                distances *= (count * (count - 1)) / distances.sum()
            others = self.alpha * np.exp(-distances / self.sigma) / self.sigma
            np.fill_diagonal(others, 0)
            others *= np.minimum(1, (1 - 1 / count) / np.maximum(others.sum(axis=1, keepdims=True), 1 - 1 / count))
        np.fill_diagonal(others, 1 - others.sum(axis=1))
        return others
