"""The task head: the decoder that the field's NYUD and PASCAL code uses."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "group"]


class Decoder(nn.Module):
    """Four feature maps to one output map.

    Each map is projected to `channels`, upsampled to the finest, concatenated and fused by a 1×1 convolution
    with normalisation; two 2× transposed convolutions and a 1×1 convolution follow.

    Args:
        in_channels: channels of the feature maps, finest first.
        out_channels: output channels of the task.
        channels: width of the decoder.
        norm: ``"batch"``, or ``"group"`` which has no running statistics to merge.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, *, channels: int = 96, norm: Norm = "group"):
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.fuse = nn.Sequential(nn.Conv2d(len(in_channels) * channels, channels, 1), *_norm_act(norm, channels))
        self.upsample = nn.Sequential(
            *(
                layer
                for _ in range(2)
                for layer in (nn.ConvTranspose2d(channels, channels, 2, stride=2), *_norm_act(norm, channels))
            )
        )
        self.predict = nn.Conv2d(channels, out_channels, 1)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Feature maps, finest first, to (B, out_channels, *size), bilinear to `size` at the end."""
        finest = maps[0].shape[-2:]
        projected = [
            F.interpolate(project(features), size=finest, mode="bilinear", align_corners=False)
            for project, features in zip(self.project, maps, strict=True)
        ]
        output: Tensor = self.predict(self.upsample(self.fuse(torch.cat(projected, dim=1))))
        return F.interpolate(output, size=size, mode="bilinear", align_corners=False)


def _norm_act(norm: Norm, channels: int) -> tuple[nn.Module, nn.Module]:
    layer = nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(8, channels)
    return layer, nn.GELU()
