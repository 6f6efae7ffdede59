"""The server: the global model, or a model for each client, and how a round's updates change it."""

from fedmtl.server.optimizers import FedAdam, FedYogi
from fedmtl.server.personal import PersonalServer
from fedmtl.server.server import Server, ServerOptimizer

__all__ = ["FedAdam", "FedYogi", "PersonalServer", "Server", "ServerOptimizer"]
