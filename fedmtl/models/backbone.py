"""A timm backbone as a feature pyramid: four maps, channels first, at strides up to 32."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import timm
import torch
from huggingface_hub import constants
from torch import Tensor, nn

from fedmtl.errors import UserError

# arguments of timm by which it would load files and, from a URL, write them into any folder
SOURCES = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


class FeaturePyramid(nn.Module):
    """The encoder: any timm backbone that offers `features_only`.

    Args:
        name: timm model name.
        pretrained: start from timm's ImageNet weights for that name.
        weights: a local weights file (.safetensors, .pth) instead; `pretrained` does not matter then.
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
        self.channels_last = "NHWC" in str(getattr(self.body, "output_fmt", ""))  # Swin and its kin

    def forward(self, image: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), H and W multiples of the coarsest stride, to the last four feature maps (B, C_i, H/s_i,
        W/s_i), finest first."""
        maps = self.body(image)[-4:]
        return [features.permute(0, 3, 1, 2) for features in maps] if self.channels_last else list(maps)


def _create(name: str, *, pretrained: bool, weights: str | Path | None, options: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3) or ["convnext_atto"]
        raise UserError(f"model.backbone: timm has no model {name!r}; it has e.g. {', '.join(near)}")
    if taken := SOURCES & options.keys():
        raise UserError(
            f"model.options: {min(taken)} can't be given there; model.pretrained and model.weights tell the weights"
        )
    if name.startswith("swin"):  # window attention must be told that images differ from its training size
        options = {"strict_img_size": False, "always_partition": True, **options}
    create = partial(timm.create_model, name, features_only=True)
    try:
        body = create(**options)
    except TypeError as error:
        raise UserError(f"model.options: {name} does not take them: {error}") from error
    except Exception as error:
        raise UserError(f"model.backbone: {name} can't be used as a feature pyramid: {_reason(error)}") from error
    if weights is not None:
        weights = Path(weights).expanduser()
        if not weights.is_file():
            raise UserError(f"model.weights: there is no file {weights}")
        options = {**options, "pretrained_cfg_overlay": {"file": str(weights)}}
        try:
            body, other = create(pretrained=True, **options), create(pretrained=True, **options)
        except Exception as error:
            raise UserError(f"model.weights: {weights} does not fit {name} ({_reason(error)})") from error
        left = _left_random(body, other)
        if left:
            raise UserError(
                f"model.weights: {weights} does not fit {name}: it lacks {len(left)} tensors, e.g. {left[0]}"
            )
    elif pretrained:
        try:
            with _offline_if_unreachable():
                body = create(pretrained=True, **options)
        except Exception as error:
            raise UserError(
                f"model: can't get weights for {name} from the model hub ({_reason(error)}); give a local file with "
                "model.weights, or start from random ones with model.pretrained: false"
            ) from error
    return body


@contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Has the hub's client look into its cache alone if the hub can't be reached, or it would retry for 40 s."""
    before = constants.HF_HUB_OFFLINE
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
    except HTTPError:
        pass  # an answer, if not a kind one
    except OSError as error:
        if not isinstance(getattr(error, "reason", None), ssl.SSLError):  # the hub's client has certificates of its own
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _left_random(body: nn.Module, other: nn.Module) -> list[str]:
    """Tensors that a weights file did not fill: timm passes over missing ones, but they differ between two loads."""
    filled = other.state_dict()
    return [name for name, value in body.state_dict().items() if not torch.equal(value, filled[name])]


def _reason(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {error}", 160)
