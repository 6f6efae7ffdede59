"""A timm backbone as a feature pyramid: four maps, channels first, at strides up to 32, for any image size."""

from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn
from torch.nn import functional as F

from fedmtl.errors import UserError


class FeaturePyramid(nn.Module):
    """The encoder: any timm backbone that offers `features_only`.

    Args:
        name: timm model name.
        pretrained: start from timm's ImageNet weights for that name.
        weights: a local weights file (.safetensors, .pth) instead; implies nothing about `pretrained`.
        options: further arguments of the timm model, e.g. ``{"drop_path_rate": 0.1}``.

    Attributes:
        channels: channels of the last four feature maps, finest first.
        strides: their strides, e.g. [4, 8, 16, 32].

    Raises:
        UserError: unknown name, or weights that can't be had or don't fit.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        weights: str | Path | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.body = _create(name, pretrained=pretrained, weights=weights, options=dict(options or {}))
        info: Any = self.body.feature_info
        self.channels: list[int] = info.channels()[-4:]
        self.strides: list[int] = info.reduction()[-4:]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to the last four feature maps (B, C_i, ⌈H/s_i⌉, ⌈W/s_i⌉), finest first."""
        height, width = image.shape[-2:]
        coarsest = self.strides[-1]
        padded = F.pad(image, (0, -width % coarsest, 0, -height % coarsest))
        maps = []
        for features, channels, stride in zip(self.body(padded)[-4:], self.channels, self.strides, strict=True):
            if features.shape[1] != channels:  # Swin and its kin are channels-last
                features = features.permute(0, 3, 1, 2)
            maps.append(features[..., : -(-height // stride), : -(-width // stride)])
        return maps


def _create(name: str, *, pretrained: bool, weights: str | Path | None, options: dict[str, Any]) -> nn.Module:
    if name not in timm.list_models():
        near = timm.list_models(f"*{name.split('_')[0]}*")[:4]
        raise UserError(f"model.backbone: timm has no model {name!r}; it has e.g. {', '.join(near) or 'convnext_atto'}")
    if weights is not None:
        if not Path(weights).is_file():
            raise UserError(f"model.weights: there is no file {weights}")
        pretrained = True
        options["pretrained_cfg_overlay"] = {"file": str(weights)}
    if name.startswith("swin"):  # window attention must be told that images differ from its training size
        options = {"strict_img_size": False, "always_partition": True, **options}
    try:
        return timm.create_model(name, features_only=True, pretrained=pretrained, **options)
    except TypeError as error:
        raise UserError(f"model.options: {name} does not take them: {error}") from error
    except Exception as error:
        if not pretrained:
            raise UserError(f"model.backbone: {name} can't be used as a feature pyramid: {error}") from error
        source = f"file {weights}" if weights else "model hub"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model: no weights for {name} from the {source} ({reason[:160]}); give a local file with model.weights, "
            "or model.pretrained: false to start from random ones"
        ) from error
