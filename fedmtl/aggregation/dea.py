"""DEA, the upload transform of FedDEA: send only the entries of largest magnitude, rescaled."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import groupby, takewhile
from operator import itemgetter
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fedmtl.aggregation.base import Sending, UploadTransform
from fedmtl.aggregation.functional import Rescale, kept_count, rescale_masked, top_rho_mask
from fedmtl.aggregation.rho import Rho
from fedmtl.aggregation.update import PartUpdate
from fedmtl.vector import Layout

Scope = Literal["global", "layer", "block"]
Select = Literal["magnitude", "random"]
Part = Literal["encoder", "model"]


class DEA(UploadTransform):
    """Task-decoupled upload: Δ̃ = m ⊙ Δ / ρ with m marking the ⌈ρ·d⌉ largest |Δ| (FedDEA, arXiv 2505.24185).

    The update is cut into segments by `scope`, and each has a ρ, a mask and a rescaling of its own.

    Args:
        rho: fraction of entries kept, in (0, 1]; 1 with `inverse` is plain FedAvg. Or a rule that gives it for each
            segment: `ScheduledRho`, `LayerRho`, `EnergyRho`.
        rescale: what the kept entries are multiplied by. ``inverse``: 1/ρ, the paper's. ``none``: 1.
            ``norm``: what gives each segment its norm back. ``overlap``: 1 here, and the server divides each
            coordinate by the weight of only those clients that kept it.
        scope: ``global`` selects over the whole update, ``layer`` within each tensor, ``block`` within each
            residual block, stem or downsampling (see `segments`).
        select: ``magnitude``, the paper's, or ``random``, the control: as many entries, drawn uniformly from the
            seed, the client and the round.
        error_feedback: what was masked is added to the client's next update: Δ'_t = Δ_t + e_t, and
            e_{t+1} = Δ'_t − m_t ⊙ Δ'_t. What is sent then adds up to all updates (less the last e) with `none` only:
            `inverse` sends 1/ρ times that, since it makes up at once for what comes later all the same.
        part: what is masked: the update of the ``encoder``, or of the whole ``model``, encoder and heads.

    Raises:
        ValueError: `rho` outside (0, 1], a rule by name with `scope: global`, or an unknown word.
    """

    def __init__(
        self,
        *,
        rho: float | Rho = 0.2,
        rescale: Rescale = "inverse",
        scope: Scope = "global",
        select: Select = "magnitude",
        error_feedback: bool = False,
        part: Part = "encoder",
    ) -> None:
        if not isinstance(rho, Rho):
            kept_count(rho, 1)  # refuses a rho outside (0, 1]
        _check_word("rescale", rescale, get_args(Rescale))
        _check_word("scope", scope, get_args(Scope))
        _check_word("select", select, get_args(Select))
        _check_word("part", part, get_args(Part))
        if isinstance(rho, Rho) and rho.by_name and scope == "global":
            raise ValueError(f"{type(rho).__name__} goes by names of tensors or blocks: it needs scope layer or block")
        self.rho = rho
        self.rescale: Rescale = rescale
        self.scope: Scope = scope
        self.select: Select = select
        self.error_feedback = error_feedback
        self.part = part
        self.overlap = rescale == "overlap"

    def __call__(self, update: PartUpdate, sending: Sending) -> PartUpdate:
        """Masks and rescales the update, and notes its mask; what is masked may go to `sending.memory`."""
        delta = update.delta
        if self.error_feedback and "residual" in sending.memory:
            delta = delta + sending.memory["residual"].to(delta)
        rng = sending.stream("dea-mask")
        masks, sent = [], []
        for name, values in segments(delta, sending.layout, self.scope):
            rho = self.rho(name, values, sending) if isinstance(self.rho, Rho) else self.rho
            mask = top_rho_mask(values, rho) if self.select == "magnitude" else _random_mask(values, rho, rng)
            masks.append(mask)
            sent.append(rescale_masked(values, mask, float(rho), self.rescale))
        update.delta, mask = _joined(sent), _joined(masks)
        if self.error_feedback:
            sending.memory["residual"] = delta.masked_fill(mask, 0)
        elif update.mask is not None:  # where an earlier transform dropped it, a kept entry is not sent
            mask = mask & update.mask
        update.mask = mask
        update.overlap = update.overlap or self.overlap
        return update


def segments(delta: Tensor, layout: Layout, scope: Scope) -> Iterator[tuple[str, Tensor]]:
    """The pieces of an update that are masked each on its own, as views (d_i,) with their names, in order.

    ``global`` gives one piece, ``layer`` one a tensor, ``block`` one for each row of tensors of the same block. The
    block of a tensor is the first module on its path that is one of a numbered series and holds further modules
    (``stages_0.blocks.1``, ``layer1.0``); else the module that its layer lies in (``stages_1.downsample``). What
    lies at the top, such as a stem, has the name of the body.
    """
    if scope == "global":
        yield "update", delta
        return
    names: Sequence[str] = layout.names if scope == "layer" else _blocks(layout.names)
    rows = groupby(zip(names, layout.sizes, strict=True), key=itemgetter(0))
    sizes = [(name, sum(size for _, size in row)) for name, row in rows]
    for (name, _), values in zip(sizes, torch.split(delta, [size for _, size in sizes]), strict=True):
        yield name, values


def _blocks(names: Sequence[str]) -> list[str]:
    """The block of each tensor."""
    paths = [name.split(".") for name in names]
    blocks = {_to_number(path[:-2]) for path in paths}  # without the parameter and its layer
    # a parameter may also lie in the block itself, beside its layers
    return [own if (own := _to_number(path[:-1])) in blocks else _to_number(path[:-2]) for path in paths]


def _to_number(modules: Sequence[str]) -> str:
    """The path up to the first number, or the last of the numbers that follow it (``blocks.0.1``)."""
    words = list(takewhile(lambda module: not module.isdigit(), modules))
    numbers = takewhile(str.isdigit, modules[len(words) :])
    return ".".join([*words, *numbers])


def _random_mask(values: Tensor, rho: float | Fraction, rng: np.random.Generator) -> Tensor:
    """⌈ρ·d⌉ entries drawn uniformly without replacement."""
    mask = np.zeros(values.numel(), dtype=np.bool_)
    mask[rng.choice(len(mask), kept_count(rho, len(mask)), replace=False, shuffle=False)] = True
    return torch.from_numpy(mask).to(values.device)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _check_word(key: str, value: str, words: Sequence[str]) -> None:
    if value not in words:
        raise ValueError(f"{key} must be one of {', '.join(words)}, not {value!r}")
