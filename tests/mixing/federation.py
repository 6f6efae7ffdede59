"""Small made-up rounds for the tests of personalised merging."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fedmtl.mixing import Exchange
from fedmtl.vector import Layout

ENCODER = Layout(("stem.weight", "stem.bias"), (torch.Size((3, 2)), torch.Size((3,))))


def head(out: int) -> Layout:
    """A decoder whose first layer all tasks have alike and whose last one depends on the task."""
    shapes = ((2, 3), (2,), (2, 2), (out, 2))
    names = ("fuse.0.weight", "fuse.0.bias", "fuse.1.weight", "predict.weight")
    return Layout(names, tuple(torch.Size(shape) for shape in shapes))


LAYOUTS = {"encoder": ENCODER, "heads.semseg": head(4), "heads.depth": head(1), "heads.edge": head(1)}


def exchange(
    client: str,
    seed: int,
    heads: Sequence[str] = ("semseg",),
    *,
    weight: float = 1.0,
    scale: float = 1.0,
    encoder: bool = True,
    layouts: Mapping[str, Layout] = LAYOUTS,
) -> Exchange:
    rng = np.random.default_rng(seed)
    parts = [*(["encoder"] if encoder else []), *(f"heads.{name}" for name in heads)]
    before, updates = (
        {part: torch.tensor(rng.normal(size=sum(layouts[part].sizes)), dtype=torch.float32) * scale for part in parts}
        for _ in range(2)
    )
    return Exchange(client, weight, before, updates, layouts)


def encoders(before: np.ndarray, updates: np.ndarray, weights: Sequence[float] | None = None) -> list[Exchange]:
    """Clients a, b, … that share an encoder only, of one tensor."""
    layouts = {"encoder": Layout(("w",), (torch.Size((before.shape[1],)),))}
    return [
        Exchange(
            chr(ord("a") + index),
            1.0 if weights is None else weights[index],
            {"encoder": torch.tensor(start, dtype=torch.float32)},
            {"encoder": torch.tensor(update, dtype=torch.float32)},
            layouts,
        )
        for index, (start, update) in enumerate(zip(before, updates, strict=True))
    ]


def wide(values: torch.Tensor) -> np.ndarray:
    return values.double().numpy()
