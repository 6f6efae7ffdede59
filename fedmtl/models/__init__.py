"""The unified model: a timm backbone as a feature pyramid and a decoder per task."""

from fedmtl.models.backbone import FeaturePyramid
from fedmtl.models.decoder import Decoder
from fedmtl.models.unified import UnifiedModel

__all__ = ["Decoder", "FeaturePyramid", "UnifiedModel"]
