"""Data sets, transforms, loaders and partitions among clients."""

from fedmtl.data.nyud import NYUDv2
from fedmtl.data.partition import IID, Partition
from fedmtl.data.scenes import Scenes
from fedmtl.data.source import DataSource, View
from fedmtl.data.transforms import TrainTransform, ValTransform

__all__ = ["IID", "DataSource", "NYUDv2", "Partition", "Scenes", "TrainTransform", "ValTransform", "View"]
