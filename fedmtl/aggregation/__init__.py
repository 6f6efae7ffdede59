"""Between clients and server: upload transforms, aggregators, and the pure functions under them."""

from fedmtl.aggregation.base import Aggregator, UploadTransform
from fedmtl.aggregation.dea import DEA
from fedmtl.aggregation.functional import decouple, top_rho_mask
from fedmtl.aggregation.update import PartUpdate, Update
from fedmtl.aggregation.weighted_mean import WeightedMean

__all__ = [
    "DEA",
    "Aggregator",
    "PartUpdate",
    "Update",
    "UploadTransform",
    "WeightedMean",
    "decouple",
    "top_rho_mask",
]
