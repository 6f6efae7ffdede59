"""Time of the diagnostics of one round, against training that round and against copying the clients' updates."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor

from fedmtl.aggregation import DEA, PartUpdate, Sending
from fedmtl.diagnostics import Diagnostics
from fedmtl.vector import FlatPart, Layout

CLIENTS, STEPS, BATCH = 5, 14, 8


def updates(layout: Layout, size: int, device: torch.device) -> list[tuple[Tensor, PartUpdate]]:
    """Every client's update before and after FedDEA at rho 0.2."""
    made = []
    for client in range(CLIENTS):
        raw = torch.randn(size, generator=torch.Generator(device).manual_seed(client), device=device)
        made.append((raw, DEA(rho=0.2)(PartUpdate(raw.clone()), Sending(layout))))
    return made


def main() -> None:
    """Print the medians and their ratios; the two take turns, so that drift of the machine hits both alike."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="convnext_atto")
    parser.add_argument("--pixels", type=int, default=64, help="height and width of the training images")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, whose times add up")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-round", action="store_true", help="leave training out, which is slow for large models")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)

    torch.manual_seed(0)
    model = timm.create_model(options.backbone, features_only=True).to(device)
    encoder = FlatPart(model)
    optimizer = torch.optim.AdamW(encoder.parameters, lr=1e-4)
    images = torch.randn(BATCH, 3, options.pixels, options.pixels, device=device)
    size = encoder.vector.numel()
    seen = updates(encoder.layout, size, device)
    target = torch.empty(size, device=device)
    before, after = torch.randn(2, size, device=device).unbind()
    diagnostics = Diagnostics(every=1)

    def copy() -> None:
        for raw, _ in seen:
            target.copy_(raw)

    def train() -> None:
        for _ in range(CLIENTS * STEPS):
            sum(features.square().mean() for features in model(images)).backward()
            optimizer.step()
            optimizer.zero_grad()

    def measure() -> None:
        for client, (raw, sent) in enumerate(seen):
            diagnostics.observe(f"client {client}", raw, sent, 1.0)
        diagnostics.measure(encoder.layout, before, after)

    steps = [copy, measure] if options.no_round else [copy, measure, train]
    copied, measured, *trained = medians(steps, options.repeats, device)
    print(
        f"torch {torch.__version__}, {options.device}, {options.threads} threads, {options.backbone}, {size:,} entries"
    )
    print(f"{CLIENTS} clients; diagnostics {1e3 * measured:.0f} ms, {measured / copied:.0f} copies of the updates")
    for seconds in trained:
        print(
            f"round of {CLIENTS} × {STEPS} steps of {BATCH} at {options.pixels} px: {seconds:.2f} s; "
            f"diagnostics take {100 * measured / seconds:.2f} % of it, {10 * measured / seconds:.2f} % every 10 rounds"
        )


def medians(steps: list[Callable[[], None]], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each step after one warm-up; on the CPU its own time, whatever else the machine does."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats + 1):
        for step, taken in zip(steps, seconds, strict=True):
            begin = clock()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(clock() - begin)
    return [statistics.median(taken[1:]) for taken in seconds]


if __name__ == "__main__":
    main()
