"""Federated multi-task learning on dense vision tasks."""

import os

__version__ = "0.1.0"

# Vectors of a model come and go every round: in pages of 2 MB, where Linux has them, fresh memory costs a third.
# torch reads this when it first allocates.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
