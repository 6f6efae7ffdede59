"""Dense prediction tasks: one file each."""

from fedmtl.tasks.base import Task
from fedmtl.tasks.depth import Depth
from fedmtl.tasks.edge import Edge
from fedmtl.tasks.normals import Normals
from fedmtl.tasks.parts import Parts
from fedmtl.tasks.regression import Regression
from fedmtl.tasks.saliency import Saliency
from fedmtl.tasks.semseg import SemSeg

__all__ = ["Depth", "Edge", "Normals", "Parts", "Regression", "Saliency", "SemSeg", "Task"]
