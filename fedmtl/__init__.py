"""Federated multi-task learning on dense vision tasks."""

__version__ = "0.1.0"
