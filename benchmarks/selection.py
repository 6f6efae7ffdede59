"""Time of exact top-rho selection, against a plain copy and against torch.kthvalue."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fedmtl.aggregation.functional import kept_count, top_rho_mask


def updates(size: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Generators of the vectors timed; each draws from a seed of its own."""

    def normal() -> Tensor:
        return torch.randn(size, generator=torch.Generator(device).manual_seed(0), device=device)

    def student() -> Tensor:
        """Student-t with 2 degrees of freedom, by its closed-form quantile function."""
        uniform = torch.rand(size, generator=torch.Generator(device).manual_seed(0), device=device)
        centred = 2 * uniform.clamp_(1e-6, 1 - 1e-6) - 1
        return centred * (2 / (1 - centred * centred)).sqrt_()

    return {
        "normal": normal,
        "student-t": student,
        "half zero": lambda: normal().relu_(),
        "few values": lambda: normal().mul_(2).round_(),
        "sorted": lambda: normal().sort().values,
        "constant": lambda: torch.ones(size, device=device),
        "all zero": lambda: torch.zeros(size, device=device),
    }


def interleaved_medians(steps: list[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each step after one warm-up round; the rounds take turns, so drift hits all alike."""
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats + 1):
        for step, taken in zip(steps, seconds, strict=True):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            begin = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - begin)
    return [statistics.median(taken[1:]) for taken in seconds]


def main() -> None:
    """Print one row per distribution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=28_000_000, help="entries in the update")
    parser.add_argument("--rho", type=float, default=0.1, help="share of the entries kept")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-kthvalue", action="store_true", help="leave out the slow comparison")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    rank = options.size - kept_count(options.rho, options.size) + 1

    name = torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {device.type} ({name}), {options.threads} threads")
    print(f"{options.size:,} float32 entries, rho {options.rho}, median of {options.repeats} rounds")
    print(f"{'update':<12}{'copy ms':>10}{'mask ms':>10}{'mask/copy':>11}{'kthvalue/mask':>15}")
    for label, make in updates(options.size, device).items():
        source = make()
        target = torch.zeros_like(source)
        steps: list[Callable[[], object]] = [
            lambda source=source, target=target: target.copy_(source),  # type: ignore[misc]
            lambda source=source: top_rho_mask(source, options.rho),  # type: ignore[misc]
        ]
        if not options.no_kthvalue:
            steps.append(lambda source=source: source.abs().kthvalue(rank))  # type: ignore[misc]
        copy, mask, *kth = interleaved_medians(steps, options.repeats, device)
        against = f"{kth[0] / mask:>15.1f}" if kth else f"{'-':>15}"
        print(f"{label:<12}{1e3 * copy:>10.2f}{1e3 * mask:>10.2f}{mask / copy:>11.2f}{against}", flush=True)


if __name__ == "__main__":
    main()
