"""What a client sends to the server: per part of the model, its update and what goes with it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class PartUpdate:
    """A client's update of one part of the model.

    Attributes:
        delta: local minus global parameters after the upload transforms, (d,).
        buffers: the client's buffers of this part, by name; never masked or rescaled.
        mask: the entries that a transform kept, (d,) bool; None where all were. A kept entry may be exactly
            zero, so the mask can't be read off the update.
        overlap: average each coordinate over the clients that kept it, not over all (`rescale: overlap`).
    """

    delta: Tensor
    buffers: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    overlap: bool = False

    def is_finite(self) -> bool:
        """Whether parameters and buffers hold neither NaN nor infinity."""
        return all(bool(torch.isfinite(values).all()) for values in (self.delta, *self.buffers.values()))

    def num_bytes(self) -> int:
        """Size on the wire: kept entries in fp32, one bit an entry for a mask, and the buffers."""
        kept = self.delta.numel() if self.mask is None else int(self.mask.sum())
        mask_bytes = 0 if self.mask is None else -(-self.mask.numel() // 8)
        return 4 * kept + mask_bytes + sum(buffer.nbytes for buffer in self.buffers.values())


@dataclass
class Update:
    """Everything that one client sends after a round.

    Attributes:
        client: the client's name.
        examples: training images it has, the weight of its update.
        parts: by part name, ``"encoder"`` or ``"heads.<task>"``; only parts that the client shares.
        healthy: False where the weights that the client keeps to itself hold NaN or infinity.
    """

    client: str
    examples: int
    parts: dict[str, PartUpdate]
    healthy: bool = True

    def is_finite(self) -> bool:
        """Whether nothing that training gave holds NaN or infinity."""
        return self.healthy and all(part.is_finite() for part in self.parts.values())

    def num_bytes(self) -> int:
        """Size on the wire."""
        return sum(part.num_bytes() for part in self.parts.values())
