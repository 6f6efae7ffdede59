"""The model of a run on any pictures, from the run's folder alone: neither its data nor the network is needed."""

from fedmtl.prediction.heads import Heads, write_heads
from fedmtl.prediction.load import load
from fedmtl.prediction.predictor import Predictor

__all__ = ["Heads", "Predictor", "load", "write_heads"]
