"""Independent random streams: every random choice comes from (seed, purpose, keys) and from nothing else."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # who draws from NumPy alone does not wait for torch
    import torch


def derive_seed(seed: int, purpose: str, *keys: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive_seed(0, "train", client, round)``.

    Streams of different purposes or keys are independent, so nothing random has to be stored in a
    checkpoint and no choice depends on the order in which others were made.
    """
    text = "\x1f".join([str(seed), purpose, *map(str, keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_stream(seed: int, purpose: str, *keys: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, purpose, *keys))


def torch_stream(seed: int, purpose: str, *keys: int | str) -> "torch.Generator":
    """A CPU torch generator for one purpose."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, purpose, *keys))
