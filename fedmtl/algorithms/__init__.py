"""Local algorithms: what changes a client's training."""

from fedmtl.algorithms.base import FedAvg, LocalAlgorithm
from fedmtl.algorithms.fedprox import FedProx

__all__ = ["FedAvg", "FedProx", "LocalAlgorithm"]
