"""MaT-FL: clients whose encoders lie in similar directions are averaged with one another only."""

from typing import Literal

import numpy as np
from torch import Tensor

from fedmtl.gram import combine, cosines, gram
from fedmtl.mixing.base import Exchange, Mixing, check_range, groups


class MaTFL(Mixing):
    r"""Dynamic grouping of clients, anew in each round (MaT-FL: Cai et al., CVPR Workshops 2023).

    Clients are compared by the cosine of how far their encoders are from the mean,
    :math:`s_{ij} = \cos(\theta_i - \bar\theta, \theta_j - \bar\theta)`, and encoder i becomes

    .. math:: \theta_i \leftarrow \sum_j \frac{w_j a_{ij}}{\sum_h w_h a_{ih}} \theta_j

    - ``clusters``: :math:`a_{ij} = 1` within a cluster, else 0; clusters by average linkage on the distance
      :math:`1 - s_{ij}`, cut where `clusters` are left. FMTL-Bench (arXiv 2402.12876) uses this form, with 2.
    - ``soft``: :math:`a_{ij} = \max(s_{ij} + \text{threshold}, 0)`.

    Both are in the authors' public code (VITA-Group/MaT-FL). It merges encoders only: so do we, and a head stays its
    client's own. It compares whole encoders, where the paper's summary speaks of layers; we do as the code does.
    Ours: the clients' weights w (equal ones give the code's averages), also in the mean; fewer clients than
    clusters stay alone; an encoder exactly at the mean has the cosine 1 with itself, where the code divides by 0;
    encoders of different layouts are grouped apart. Two clients always lie opposite to each other, hence stay alone.

    Args:
        grouping: ``clusters`` or ``soft``.
        clusters: number of clusters, at least 1, which is FedAvg.
        threshold: added to the cosine for ``soft``, in (−1, 1]; 1 lets all but opposite clients in.

    Raises:
        ValueError: an argument is outside these bounds.
    """

    def __init__(
        self, *, grouping: Literal["clusters", "soft"] = "clusters", clusters: int = 2, threshold: float = 0.0
    ) -> None:
        if grouping not in ("clusters", "soft"):
            raise ValueError(f"grouping must be clusters or soft, not {grouping!r}")
        if clusters < 1:
            raise ValueError(f"clusters must be at least 1, not {clusters!r}")
        check_range("threshold", threshold, -1, 1, ends="(]")
        self.grouping = grouping
        self.clusters = clusters
        self.threshold = threshold

    def _mix(self, exchanges: list[Exchange]) -> list[dict[str, Tensor]]:
        mixed: list[dict[str, Tensor]] = [{} for _ in exchanges]
        for (part, _), members in groups(exchanges).items():
            parameters = [exchanges[index].after(part) for index in members]
            if part == "encoder":
                weights = np.array([exchanges[index].weight for index in members])
                parameters = combine(self._shares(parameters, weights), parameters)
            for index, values in zip(members, parameters, strict=True):
                mixed[index][part] = values
        return mixed

    def _shares(self, parameters: list[Tensor], weights: np.ndarray) -> np.ndarray:
        """What each encoder counts in each, (K, K), rows sum to 1."""
        similarity = cosines(gram(parameters, centre=weights / weights.sum()))
        if self.grouping == "clusters":
            labels = average_linkage(1 - similarity, self.clusters)
            affinity = (labels[:, None] == labels[None, :]) * weights
        else:
            affinity = np.maximum(similarity + self.threshold, 0) * weights
        shares: np.ndarray = affinity / affinity.sum(axis=1, keepdims=True)
        return shares


def average_linkage(distances: np.ndarray, clusters: int) -> np.ndarray:
    """Labels (K,) of the clusters that are left when the nearest two are merged until `clusters` remain.

    Two clusters are as far apart as their members are on average (UPGMA). Of equally near pairs the first in
    row-major order is merged; a label is the index of the cluster's first member.

    Args:
        distances: symmetric, (K, K).
        clusters: number of clusters to stop at; K clusters or more leave each alone.
    """
    labels = np.arange(len(distances))
    between = distances.astype(float)
    np.fill_diagonal(between, np.inf)
    for _ in range(len(distances) - clusters):
        kept, gone = np.unravel_index(np.argmin(between), between.shape)
        sizes = np.count_nonzero(labels == kept), np.count_nonzero(labels == gone)
        merged = (sizes[0] * between[kept] + sizes[1] * between[gone]) / sum(sizes)
        between[kept], between[:, kept] = merged, merged
        between[gone], between[:, gone] = np.inf, np.inf
        between[kept, kept] = np.inf
        labels[labels == gone] = kept
    return labels
