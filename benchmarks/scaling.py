"""Two ranks against one, measured; 4 to 64 ranks, by the schedule alone.

Measured: FedDEA on Scenes, four clients with as many images each, one thread a rank, the unified model evaluated every
third round. The ratio is that of the time of whole rounds, the first left out; both must end with the same weights.
What the machine itself gives is measured beside it: two processes with a bare training loop each, against one.

By the schedule: K clients of a Swin-T (28 M parameters), the time of each drawn from a log-normal distribution, as
shards and devices differ. A round on R ranks takes

    T(R) = makespan(R) + K · (S / B + a) + E / R + c

with the clients' makespan by `assign`, S bytes an update over a link of B bytes a second (every rank gets every
update), a for decoding and summing it, E the evaluation on one rank, and c for the server's step. Efficiency is
T(1) / (R · T(R)), where one rank sends nothing.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from fedmtl.engine.schedule import assign, makespan
from fedmtl.models import UnifiedModel

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "data.init_args.train": "{images}",
    "clients": "[{{tasks: [semseg]}}, {{tasks: [depth]}}, {{tasks: [normals]}}, {{tasks: [saliency]}}]",
    "rounds": "{rounds}",
    "local.epochs": "1",
    "local.schedule": "null",
    "eval_every": "3",
    "pictures": "0",
    "checkpoint_every": "1000",
    "tracker": "null",
    "fabric.accelerator": "cpu",
    "fabric.threads": "1",
    "fabric.devices": "{ranks}",
    "out": "{out}",
    "name": "{name}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of each run")
    parser.add_argument("--repeats", type=int, default=2, help="runs with each number of ranks, in turn")
    parser.add_argument("--images", type=int, default=400, help="training images, shared out among four clients")
    parser.add_argument("--clients", type=int, default=64, help="of the simulation")
    parser.add_argument("--simulate-only", action="store_true")
    parser.add_argument("--loop", type=float, help=argparse.SUPPRESS)  # a bare loop from this time on
    options = parser.parse_args()
    if options.loop:
        print(loop(options.loop))
        return
    if not options.simulate_only:
        measure(options.rounds, options.repeats, options.images)
        print(f"two bare loops against one: {ceiling(options.repeats):.2f} times as many steps")
    for spread in (0.0, 0.3):
        for size, name in ((112e6, "all entries in fp32"), (14.7e6, "ρ = 0.2 in fp16")):
            print(f"spread {spread}, {name}: {simulate(options.clients, spread, size)}")


def measure(rounds: int, repeats: int, images: int) -> None:
    times: dict[int, list[float]] = {1: [], 2: []}
    weights = set()
    with tempfile.TemporaryDirectory() as out:
        for repeat in range(repeats):
            for ranks in times:
                run = Path(out) / f"r{repeat}_{ranks}"
                values = {"images": images, "rounds": rounds, "ranks": ranks, "out": out, "name": run.name}
                words = [f"--{key}={value.format(**values)}" for key, value in SETTINGS.items()]
                command = [sys.executable, "-m", "fedmtl", "fit", "--config", str(ROOT / "experiments/scenes_dea.yaml")]
                subprocess.run([*command, *words], check=True, capture_output=True)
                rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
                trained = median(row["time/train"] for row in rows)
                evaluated = median(row["time/evaluate"] for row in rows if "time/evaluate" in row)
                times[ranks].append(trained + evaluated / 3)
                weights.add((run / "unified" / "model.safetensors").read_bytes())
                print(f"{ranks} rank(s): training {trained:.2f} s a round, evaluation {evaluated:.2f} s")
    print(f"2 ranks against 1: {median(times[1]) / median(times[2]):.2f} times as fast")
    print(f"weights: {'the same bits' if len(weights) == 1 else 'DIFFERENT'}")


def ceiling(repeats: int) -> float:
    """Steps of two processes side by side, against those of one."""

    def rate(processes: int) -> float:
        command = [sys.executable, __file__, "--loop", str(time.time() + 20)]  # all begin when all are ready
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        return sum(float(process.communicate()[0]) for process in started)

    return median(rate(2) / rate(1) for _ in range(repeats))


def loop(begin: float) -> float:
    """Steps a second of bare training on one thread."""
    torch.set_num_threads(1)
    model = UnifiedModel({"task": 10}, backbone="convnext_atto", channels=32, norm="group")
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.randn(8, 3, 64, 64)
    time.sleep(max(0.0, begin - time.time()))
    began = time.perf_counter()
    for _ in range(60):
        model(images, ("task",))["task"].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return 60 / (time.perf_counter() - began)


def simulate(clients: int, spread: float, size: float) -> str:
    """Efficiency for 4 to 64 ranks."""
    rng = np.random.default_rng(0)
    costs = {str(k): 10 * math.exp(spread * z) for k, z in enumerate(rng.standard_normal(clients))}  # seconds
    link, summing, evaluation, step = 1.25e9, 0.06, 20.0, 0.2  # 10 Gbit/s; seconds
    alone = sum(costs.values()) + clients * summing + evaluation + step
    found = []
    for ranks in (4, 8, 16, 32, 64):
        time = makespan(costs, assign(costs, ranks), ranks) + clients * (size / link + summing)
        time += evaluation / ranks + step
        found.append(f"{ranks} ranks {alone / (ranks * time):.2f}")
    return ", ".join(found)


if __name__ == "__main__":
    main()
