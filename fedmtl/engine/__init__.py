"""Where clients run."""

from fedmtl.engine.fabric import FabricConfig
from fedmtl.engine.in_process import InProcess, TrainingResult

__all__ = ["FabricConfig", "InProcess", "TrainingResult"]
