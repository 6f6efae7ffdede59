"""Local algorithms: what changes a client's training, and what the server does about it."""

from fedmtl.algorithms.base import FedAvg, LocalAlgorithm, LocalRound, Message, Phase, ServerRule, Vectors
from fedmtl.algorithms.feddyn import FedDyn
from fedmtl.algorithms.fednova import FedNova
from fedmtl.algorithms.fedprox import FedProx
from fedmtl.algorithms.personal import Ditto, FedRep
from fedmtl.algorithms.scaffold import Scaffold

__all__ = [
    "Ditto",
    "FedAvg",
    "FedDyn",
    "FedNova",
    "FedProx",
    "FedRep",
    "LocalAlgorithm",
    "LocalRound",
    "Message",
    "Phase",
    "Scaffold",
    "ServerRule",
    "Vectors",
]
