"""Personalised merging: a round's updates become one model for each client, not one for all."""

from fedmtl.mixing.base import Exchange, Mixing
from fedmtl.mixing.fedamp import FedAMP
from fedmtl.mixing.fedhca2 import FedHCA2
from fedmtl.mixing.matfl import MaTFL

__all__ = ["Exchange", "FedAMP", "FedHCA2", "MaTFL", "Mixing"]
