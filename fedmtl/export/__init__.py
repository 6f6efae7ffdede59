"""A run's model in formats that others load: timm's, torch.export's and ONNX, each checked, with a model card."""

from fedmtl.export.bundle import FORMATS, available, export
from fedmtl.export.outcome import Outcome

__all__ = ["FORMATS", "Outcome", "available", "export"]
