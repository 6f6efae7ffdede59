"""A module's parameters as ONE flat vector, and what goes with them: layout, buffers, states of parts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors that stand one behind the other in a flat vector.

    Attributes:
        names: parameter names, in the module's order.
        shapes: their shapes.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def sizes(self) -> list[int]:
        """Entries of each tensor."""
        return [prod(shape) for shape in self.shapes]

    def views(self, vector: Tensor) -> Iterator[Tensor]:
        """Each tensor as a view into `vector` (d,)."""
        for piece, shape in zip(torch.split(vector, self.sizes), self.shapes, strict=True):
            yield piece.view(shape)


@dataclass
class PartState:
    """The weights of one part of a model: parameters as a flat vector, persistent buffers by name."""

    vector: Tensor
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "PartState":
        """The same weights on a device."""
        return PartState(self.vector.to(device), {name: buffer.to(device) for name, buffer in self.buffers.items()})

    @torch.no_grad()
    def copy_(self, other: "PartState") -> None:
        """Takes over another's values, in place."""
        self.vector.copy_(other.vector)
        for name, buffer in self.buffers.items():
            buffer.copy_(other.buffers[name])

    def is_finite(self) -> bool:
        """Whether it holds neither NaN nor infinity."""
        return all(is_finite(values) for values in (self.vector, *self.buffers.values()))

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors; ``PartState(**state)`` is the way back."""
        return {"vector": self.vector, "buffers": self.buffers}


def is_finite(values: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not values.numel() or not values.is_floating_point():
        return True
    # NaN goes through to both; a pass without a tensor in between, which `isfinite` would need
    return bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


State = dict[str, PartState]  # weights by part name


class FlatPart:
    """Backs a module's parameters by one flat tensor: writing the tensor writes the model, without copies.

    The module must stay on its device afterwards, since moving it would give it parameters of its own again.

    Args:
        module: the part; each of its parameters becomes a view into `vector`.

    Attributes:
        vector: all parameters, (d,).
        layout: where each is.
    """

    def __init__(self, module: nn.Module) -> None:
        named = list(module.named_parameters())
        self.layout = Layout(tuple(name for name, _ in named), tuple(p.shape for _, p in named))
        self.parameters: Sequence[nn.Parameter] = [parameter for _, parameter in named]
        self.vector = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        for parameter, view in zip(self.parameters, self.layout.views(self.vector), strict=True):
            parameter.data = view
        tensors = module.state_dict(keep_vars=True)
        self.buffers = {name: value for name, value in tensors.items() if not isinstance(value, nn.Parameter)}

    @torch.no_grad()
    def load(self, state: PartState) -> None:
        """Copies a state into the module, in place."""
        self.vector.copy_(state.vector)
        for name, buffer in self.buffers.items():
            buffer.copy_(state.buffers[name])

    @torch.no_grad()
    def read(self) -> PartState:
        """A copy of the module's weights, the vector in fp32."""
        vector = self.vector.to(torch.float32, copy=True)
        return PartState(vector, {name: buffer.clone() for name, buffer in self.buffers.items()})
