"""Which entries of a client's flat vector are which of the server's, where their models differ in width or depth."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from fedmtl.vector import Layout

Rule = Literal["shape", "leading"]

# Tensors of several blocks of channels behind one another, by name: the dimension that holds the blocks and their
# number, so that each block is led apart; None where that is not known. The first pattern that fits counts.
FUSED: Mapping[str, tuple[int, int] | None] = {
    "*layers_*.attn.qkv.*": (0, 3),  # timm's Swin: queries, keys, values
    "*layers_*.downsample.reduction.weight": (1, 4),  # timm's Swin: four neighbouring patches
    "*.downsample.reduction.weight": None,
    "*layers_*.downsample.norm.*": None,  # before that reduction in Swin, behind it in Swin V2
    "fuse.0.weight": (1, 4),  # our decoder: four feature maps
    "*qkv*": None,
    "*.kv.*": None,
}


@dataclass(frozen=True)
class Match:
    """Which entries of a client's part are which of the server's; made by `match_layouts`.

    Three kinds of vectors go in and out: the client's (d_local,), the server's (d_server,), and the entries they share
    behind one another (d_shared,). All that is returned is new memory, of the dtype and on the device of what came in.
    A vector of another size is a RuntimeError.

    Attributes:
        local: the client's layout; dimensions of fused channels are split into (blocks, channels).
        server: the server's layout, likewise.
        shared: of each shared tensor, the name and the shape of the leading corner that both have, in the client's
            order. This is the layout of the (d_shared,) vectors.
    """

    local: Layout
    server: Layout
    shared: Layout

    @property
    def identity(self) -> bool:
        """Whether both vectors are alike and wholly shared, so that nothing needs to be moved."""
        return self.local == self.server == self.shared

    @property
    def shared_entries(self) -> int:
        """d_shared."""
        return sum(self.shared.sizes)

    @property
    def local_entries(self) -> int:
        """d_local."""
        return sum(self.local.sizes)

    @property
    def server_entries(self) -> int:
        """d_server."""
        return sum(self.server.sizes)

    def fill(self, local: Tensor, server: Tensor) -> Tensor:
        """The client's vector (d_local,) with the shared entries of the server's (d_server,), else its own."""
        filled = local.clone()
        for ours, theirs in zip(_corners(filled, self.local, self.shared), self._on_server(server), strict=True):
            ours.copy_(theirs)
        return filled

    def select(self, local: Tensor) -> Tensor:
        """The shared entries (d_shared,) of a client's vector, update or bool mask (d_local,)."""
        pieces = (corner.reshape(-1) for corner in _corners(local, self.local, self.shared))
        return torch.cat([local.new_empty(0), *pieces])  # nothing shared is an empty vector, no error

    def place(self, shared: Tensor) -> Tensor:
        """Shared entries (d_shared,) at their places in a vector of the server's (d_server,), else 0 or False."""
        placed = shared.new_zeros(self.server_entries)
        for theirs, piece in zip(self._on_server(placed), self.shared.views(shared), strict=True):
            theirs.copy_(piece)
        return placed

    def expand(self, local: Tensor) -> Tensor:
        """A client's update or bool mask (d_local,) as a vector of the server's (d_server,), else 0 or False.

        It is linear, and adjoint to what `fill` takes from the server:
        ⟨expand(u), s⟩ = ⟨u, fill(0, s)⟩.
        """
        return self.place(self.select(local))

    @cached_property
    def held(self) -> Tensor:
        """The entries of the server's vector that the client shares, (d_server,) bool, on the CPU."""
        return self.place(torch.ones(self.shared_entries, dtype=torch.bool))

    def _on_server(self, vector: Tensor) -> Iterator[Tensor]:
        return _corners(vector, self.server, self.shared)


def match_layouts(local: Layout, server: Layout, *, by: Rule = "shape", private: Sequence[str] = ()) -> Match:
    """What a client's part and the server's share, tensor by tensor of the same name.

    ``shape`` shares tensors of equal shape, whole. ``leading`` shares the leading channels of both, the smaller number
    in each dimension: the sub-models of HeteroFL (Diao et al. 2021, https://arxiv.org/abs/2010.01264), without its
    scaler and its static batch normalisation. Under both, blocks that one model lacks are not shared.

    ``leading`` means something where channel i of one model is to become channel i of the other: plain and depthwise
    convolutions, linear layers, normalisations, sums over branches (ConvNeXt, ResNet, EfficientNet). Tensors of fused
    channels are led block by block where the blocks are known (Swin, our decoder), else shared only if their shapes
    are equal; kernels of another size are not shared. Shapes don't tell what else has an order of its own: grouped
    convolutions (ResNeXt, RegNet), concatenations (DenseNet, CSP), gated MLPs, heads of another size, tables over
    positions (``*relative_position_bias_table`` with other windows, ``*pos_embed``). Name such tensors in `private`.

    Args:
        local: layout of the client's part.
        server: layout of the server's.
        by: the rule.
        private: patterns (`fnmatch`, case counts) of the names of tensors that are never shared.

    Raises:
        ValueError: an unknown rule, or a pattern that fits no tensor of the client.
    """
    if by not in ("shape", "leading"):
        raise ValueError(f'share by "shape" or "leading", not {by!r}')
    for pattern in private:
        if not any(fnmatchcase(name, pattern) for name in local.names):
            names = ", ".join(local.names[:3])
            raise ValueError(f"private: no tensor of the client fits {pattern!r}; its first are {names}")
    if by == "leading":
        local, server = _split_fused(local), _split_fused(server)
    theirs = _shapes(server)
    corners = {
        name: _corner(name, ours, theirs[name], by)
        for name, ours in _shapes(local).items()
        if name in theirs and not _fits(name, private)
    }
    shared = {name: corner for name, corner in corners.items() if corner is not None}
    return Match(local, server, Layout(tuple(shared), tuple(shared.values())))


def shared_buffers(
    local: Mapping[str, Tensor], server: Mapping[str, Tensor], *, private: Sequence[str] = ()
) -> list[str]:
    """Names of the buffers that a client and the server share: those of equal shape, in the client's order.

    Statistics of a BatchNorm of another width stay the client's own under both rules.

    Args:
        local: the client's buffers of a part.
        server: the server's.
        private: patterns (`fnmatch`) of names that are never shared; they need not fit any.
    """
    return [
        name
        for name, buffer in local.items()
        if name in server and buffer.shape == server[name].shape and not _fits(name, private)
    ]


def first_conv(module: nn.Module) -> list[str]:
    """Names of the parameters of the first convolution: what a client that reads another modality keeps to itself.

    Args:
        module: an encoder whose modules stand in the order of its forward pass, as timm's do. The few that read the
            image by several convolutions side by side (FastViT, RepVGG, CrossViT) need the others named in `private`.

    Raises:
        ValueError: it has no 2-D convolution.
    """
    for prefix, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            return [name for name, _ in layer.named_parameters(prefix)]
    raise ValueError("the encoder has no convolution that could be a client's own stem; name it in private")


def _corners(vector: Tensor, layout: Layout, shared: Layout) -> Iterator[Tensor]:
    """The corner that is shared of each shared tensor, as a view into `vector`, which lies as `layout` says."""
    views = dict(zip(layout.names, layout.views(vector), strict=True))
    for name, corner in zip(shared.names, shared.shapes, strict=True):
        yield views[name][tuple(map(slice, corner))]


def _corner(name: str, ours: torch.Size, theirs: torch.Size, by: str) -> torch.Size | None:
    """Shape of what is shared of a tensor, None if nothing is."""
    if ours == theirs:
        return ours
    if by == "shape" or len(ours) != len(theirs) or _blocks(name) is None:
        return None
    if len(ours) >= 4 and ours[-2:] != theirs[-2:]:  # kernels, whose corner is no smaller kernel
        return None
    return torch.Size(map(min, ours, theirs))


def _split_fused(layout: Layout) -> Layout:
    """The same vector with dimensions of fused channels split into (blocks, channels)."""
    shapes = []
    for name, shape in _shapes(layout).items():
        dim, count = _blocks(name) or (0, 1)
        if count > 1 and len(shape) > dim and shape[dim] % count == 0:
            shape = torch.Size((*shape[:dim], count, shape[dim] // count, *shape[dim + 1 :]))
        shapes.append(shape)
    return Layout(layout.names, tuple(shapes))


def _blocks(name: str) -> tuple[int, int] | None:
    """Dimension and number of the blocks of fused channels: one where nothing is fused, None where it is not known."""
    return next((blocks for pattern, blocks in FUSED.items() if fnmatchcase(name, pattern)), (0, 1))


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _shapes(layout: Layout) -> dict[str, torch.Size]:
    return dict(zip(layout.names, layout.shapes, strict=True))
