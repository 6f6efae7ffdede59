"""What a client sends to the server: per part of the model, its update and what goes with it."""

from dataclasses import dataclass, field

from torch import Tensor

from fedmtl.vector import is_finite


@dataclass
class PartUpdate:
    """A client's update of one part of the model.

    Attributes:
        delta: local minus global parameters after the upload transforms, (d,).
        buffers: the client's buffers of this part, by name; never masked or rescaled.
        mask: the entries that a transform kept, (d,) bool; None where all were. A kept entry may be exactly
            zero, so the mask can't be read off the update.
        overlap: average each coordinate over the clients that kept it, not over all (`rescale: overlap`).
        held: the entries that the client's model has, (d,) bool; None where it has all. Smaller models have some.
    """

    delta: Tensor
    buffers: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    overlap: bool = False
    held: Tensor | None = None

    @property
    def counted(self) -> Tensor | None:
        """The entries at which this client counts in an average, (d,) bool; None for all."""
        return self.mask if self.overlap and self.mask is not None else self.held

    def is_finite(self) -> bool:
        """Whether parameters and buffers hold neither NaN nor infinity."""
        return all(is_finite(values) for values in (self.delta, *self.buffers.values()))


@dataclass
class Update:
    """Everything that one client sends after a round.

    Attributes:
        client: the client's name.
        examples: training images it has, the weight of its update.
        parts: by part name, ``"encoder"`` or ``"heads.<task>"``; only parts that the client shares.
        message: what the algorithm sends beside them, by name and part.
        healthy: False where the weights that the client keeps to itself hold NaN or infinity.
    """

    client: str
    examples: int
    parts: dict[str, PartUpdate]
    message: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    healthy: bool = True

    def is_finite(self) -> bool:
        """Whether nothing that training gave holds NaN or infinity."""
        beside = (vector for vectors in self.message.values() for vector in vectors.values())
        return (
            self.healthy
            and all(part.is_finite() for part in self.parts.values())
            and all(is_finite(vector) for vector in beside)
        )
