"""DEA, the upload transform of FedDEA: send only the entries of largest magnitude, rescaled."""

from typing import Literal, get_args

import torch
from torch import Tensor

from fedmtl.aggregation.base import UploadTransform
from fedmtl.aggregation.functional import Rescale, kept_count, rescale_masked, top_rho_mask
from fedmtl.aggregation.update import PartUpdate
from fedmtl.vector import Layout


class DEA(UploadTransform):
    """Task-decoupled upload: Δ̃ = m ⊙ Δ / ρ with m marking the ⌈ρ·d⌉ largest |Δ| (FedDEA, arXiv 2505.24185).

    Args:
        rho: fraction of entries kept, in (0, 1]; 1 with `inverse` is plain FedAvg.
        rescale: what the kept entries are multiplied by. ``inverse``: 1/ρ, the paper's. ``none``: 1.
            ``norm``: what gives the update its norm back. ``overlap``: 1 here, and the server divides each
            coordinate by the weight of only those clients that kept it.
        scope: ``global`` selects over the whole encoder, ``layer`` within each tensor.

    Raises:
        ValueError: `rho` outside (0, 1], or an unknown `rescale`.
    """

    def __init__(
        self, *, rho: float = 0.2, rescale: Rescale = "inverse", scope: Literal["global", "layer"] = "global"
    ) -> None:
        kept_count(rho, 1)  # refuses a rho outside (0, 1]
        if rescale not in get_args(Rescale):
            raise ValueError(f"rescale must be one of {', '.join(get_args(Rescale))}, not {rescale!r}")
        if scope not in ("global", "layer"):
            raise ValueError(f"scope must be global or layer, not {scope!r}")
        self.rho = rho
        self.rescale: Rescale = rescale
        self.scope = scope

    def __call__(self, update: PartUpdate, layout: Layout) -> PartUpdate:
        """Masks and rescales the update, and notes its mask."""
        delta = update.delta
        if self.scope == "global":
            mask: Tensor = top_rho_mask(delta, self.rho)
        else:
            mask = torch.cat([top_rho_mask(view, self.rho).reshape(-1) for view in layout.views(delta)])
        update.delta = rescale_masked(delta, mask, self.rho, self.rescale)
        update.mask = mask
        update.overlap = self.rescale == "overlap"
        return update
