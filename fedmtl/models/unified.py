"""The unified model: one encoder that all clients share and a head per task."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fedmtl.models.backbone import FeaturePyramid
from fedmtl.models.decoder import Decoder, Norm


class UnifiedModel(nn.Module):
    """One encoder, one head per task.

    Args:
        heads: output channels of each head, by its name.
        in_channels: channels of the input; 3 for images.
        backbone: name of a timm backbone.
        pretrained: start the encoder from timm's ImageNet weights.
        weights: a local weights file for the encoder instead.
        channels: width of the heads; a multiple of 8.
        norm: normalisation in the heads, ``"batch"`` or ``"group"``.
        options: further arguments of the timm backbone, e.g. ``{drop_path_rate: 0.1}``.

    Raises:
        UserError: the backbone or its weights can't be had.
    """

    def __init__(
        self,
        heads: Mapping[str, int],
        in_channels: int = 3,
        *,
        backbone: str = "convnext_atto",
        pretrained: bool = False,
        weights: str | Path | None = None,
        channels: int = 96,
        norm: Norm = "group",
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if channels < 8 or channels % 8:
            raise ValueError(f"model.channels must be a positive multiple of 8, not {channels}")
        options = {"in_chans": in_channels, **(options or {})} if in_channels != 3 else options
        self.encoder = FeaturePyramid(backbone, pretrained=pretrained, weights=weights, options=options)
        self.heads = nn.ModuleDict(
            {name: Decoder(self.encoder.channels, out, channels=channels, norm=norm) for name, out in heads.items()}
        )

    def forward(self, image: Tensor, heads: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Images (B, in_channels, H, W) to the outputs (B, channels, H, W) of `heads` (default: all), by name.

        Images whose sides are no multiples of the encoder's coarsest stride are padded with 0 to the right and below.
        """
        height, width = image.shape[-2:]
        stride = getattr(self.encoder, "strides", [1])[-1]
        image = F.pad(image, (0, -width % stride, 0, -height % stride))
        size = (image.shape[-2], image.shape[-1])
        maps = self.encoder(image)  # they cover the padded image: cropped, they would be stretched against one another
        outputs = {name: self.heads[name](maps, size) for name in (self.heads if heads is None else heads)}
        return {name: output[..., :height, :width] for name, output in outputs.items()}

    def parts(self) -> dict[str, nn.Module]:
        """The parts that federated learning treats apart: ``"encoder"`` and ``"heads.<name>"``."""
        return {"encoder": self.encoder, **{f"heads.{name}": head for name, head in self.heads.items()}}
