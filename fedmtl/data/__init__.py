"""Data sets, transforms, loaders and partitions among clients."""

from fedmtl.data.dial import Dial
from fedmtl.data.folder import Folder
from fedmtl.data.nyud import NYUDv2
from fedmtl.data.partition import IID, Dirichlet, ListFile, Partition, QuantitySkew, Whole
from fedmtl.data.pascal_context import PASCALContext
from fedmtl.data.scenes import Scenes
from fedmtl.data.source import DataSource, View
from fedmtl.data.transforms import TrainTransform, ValTransform

__all__ = [
    "IID",
    "DataSource",
    "Dial",
    "Dirichlet",
    "Folder",
    "ListFile",
    "NYUDv2",
    "PASCALContext",
    "Partition",
    "QuantitySkew",
    "Scenes",
    "TrainTransform",
    "ValTransform",
    "View",
    "Whole",
]
