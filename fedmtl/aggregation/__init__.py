"""Between clients and server: upload transforms, aggregators, and the pure functions under them."""

from fedmtl.aggregation.base import Aggregator, Sending, UploadTransform
from fedmtl.aggregation.cagrad import CAGrad
from fedmtl.aggregation.dare import DARE
from fedmtl.aggregation.dea import DEA
from fedmtl.aggregation.functional import decouple, top_rho_mask
from fedmtl.aggregation.krum import Krum
from fedmtl.aggregation.norm_clipping import NormClipping
from fedmtl.aggregation.order_statistics import CoordinateMedian, TrimmedMean
from fedmtl.aggregation.pcgrad import PCGrad
from fedmtl.aggregation.rho import EnergyRho, LayerRho, Rho, ScheduledRho
from fedmtl.aggregation.task_arithmetic import TaskArithmetic
from fedmtl.aggregation.ties import TIES
from fedmtl.aggregation.update import PartUpdate, Update
from fedmtl.aggregation.weighted_mean import WeightedMean

__all__ = [
    "DARE",
    "DEA",
    "TIES",
    "Aggregator",
    "CAGrad",
    "CoordinateMedian",
    "EnergyRho",
    "Krum",
    "LayerRho",
    "NormClipping",
    "PCGrad",
    "PartUpdate",
    "Rho",
    "ScheduledRho",
    "Sending",
    "TaskArithmetic",
    "TrimmedMean",
    "Update",
    "UploadTransform",
    "WeightedMean",
    "decouple",
    "top_rho_mask",
]
