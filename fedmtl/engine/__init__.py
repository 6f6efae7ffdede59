"""Where clients run."""

from fedmtl.engine.distributed import Distributed, Report
from fedmtl.engine.fabric import FabricConfig
from fedmtl.engine.in_process import InProcess, TrainingResult
from fedmtl.engine.ranks import LostRank, Ranks

__all__ = ["Distributed", "FabricConfig", "InProcess", "LostRank", "Ranks", "Report", "TrainingResult"]
