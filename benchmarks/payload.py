"""Size of payloads, and time of encoding and decoding them, against a copy of the fp32 vector to a ready target."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import get_args

import numpy as np
import timm
import torch
from torch import Tensor

from fedmtl.aggregation import PartUpdate, Update
from fedmtl.payload import Schema, Values, decode, encode, encoded_size, through
from fedmtl.vector import Layout


def made(backbone: str, size: int, rho: float) -> tuple[Layout, PartUpdate]:
    """The backbone's layout, filled up to `size` entries by one more tensor, and an update masked at random places."""
    with torch.device("meta"):
        model = timm.create_model(backbone, features_only=True)
    named = [(name, parameter.shape) for name, parameter in model.named_parameters()]
    rest = size - sum(shape.numel() for _, shape in named)
    names, shapes = zip(*named, *([("rest", torch.Size((rest,)))] if rest > 0 else []), strict=True)
    layout = Layout(names, shapes)
    entries = sum(layout.sizes)
    rng = np.random.default_rng(0)
    mask = torch.from_numpy(rng.random(entries, dtype=np.float32) < rho) if rho < 1 else None
    delta = torch.from_numpy(rng.standard_normal(entries, dtype=np.float32) * np.float32(1e-3))
    return layout, PartUpdate(delta if mask is None else delta.mul_(mask), mask=mask)


def medians(steps: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each step after one warm-up round; the rounds take turns, so drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            begin = clock()
            step()
            seconds[name].append(clock() - begin)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}


def steps(
    update: Update, layouts: dict[str, Layout], values: Values, target: Tensor
) -> dict[str, Callable[[], object]]:
    """What is timed."""
    part = update.parts["encoder"]
    payload, schema = encode(update, layouts, values).tobytes(), Schema({"encoder": (layouts["encoder"], {})})
    return {
        "copy": lambda: target.copy_(part.delta),
        "encode": lambda: encode(update, layouts, values),
        "decode": lambda: decode(payload, schema, client=update.client),
        "through": lambda: through(update, layouts, values),
        "size": lambda: encoded_size(update, layouts, values),
    }


def main() -> None:
    """Print a row for each kind of values."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="swin_tiny_patch4_window7_224", help="whose tensors make the layout")
    parser.add_argument("--size", type=int, default=28_000_000, help="entries, if the backbone has fewer")
    parser.add_argument("--rho", type=float, default=0.2, help="share of the entries kept; 1 for no mask")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: this thread's own time, on a busy machine"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.perf_counter if options.clock == "wall" else time.thread_time

    layout, part = made(options.backbone, options.size, options.rho)
    update, target = Update("client", 1, {"encoder": part}), torch.empty_like(part.delta)
    print(
        f"{len(part.delta):,} entries in {len(layout.names)} tensors, rho {options.rho}, 1 thread, {options.clock} time"
    )
    print(f"copy = the fp32 vector to a ready target; medians of {options.rounds} interleaved rounds")
    print(f"{'values':8s}{'MB':>8s}{'copy ms':>9s}{'encode':>9s}{'decode':>9s}{'through':>9s}{'size':>9s}   in copies")
    for values in get_args(Values):
        taken = medians(steps(update, {"encoder": layout}, values, target), options.rounds, clock)
        copy = taken.pop("copy")
        size = encoded_size(update, {"encoder": layout}, values) / 1e6
        print(
            f"{values:8s}{size:8.2f}{copy * 1e3:9.1f}" + "".join(f"{seconds / copy:9.2f}" for seconds in taken.values())
        )


if __name__ == "__main__":
    main()
