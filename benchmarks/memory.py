"""Peak memory against the number of clients, and its growth over rounds.

Each federation runs in a process of its own: 5,000 tiny pictures of which every client has one, ten clients a round,
whatever their number. Memory is the process's resident set, in MB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmtl.commands import fit
from fedmtl.data import Partition
from fedmtl.tracking import Tracker, WandB  # noqa: F401 - as in any run, W&B is loaded

SCENES = Path(__file__).parents[1] / "experiments" / "base" / "scenes.yaml"
IMAGES = 5000
ROUNDS = 200
KINDS = {
    "stateless": ["--local.keep_optimizer=false"],
    "states on disk": ["--states=disk", "--local.algorithm=fedmtl.algorithms.Scaffold"],
}


class OneEach(Partition):
    """One image a client, so that their number changes nothing else."""

    def split(self, data: Any, images: Sequence[int], clients: Sequence[str], rng: Any) -> list[list[int]]:
        return [[image] for image in images[: len(clients)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000, 5000])
    parser.add_argument("--rounds", type=int, default=20, help=f"of each; one more run has {ROUNDS}")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    for kind, words in KINDS.items():
        peaks = {count: measure(count, options.rounds, words)[0] for count in options.clients}
        fewest = min(peaks.values())
        for count, peak in peaks.items():
            print(f"{kind}: {count} clients: peak {peak:.0f} MB, {peak / fewest:.3f} of the least")
        _, sizes = measure(100, ROUNDS, words)
        early, late = sizes[ROUNDS // 10 - 1], sizes[-1]
        ends = f"after round {ROUNDS // 10} {early:.0f} MB, after round {ROUNDS} {late:.0f} MB"
        print(f"{kind}: {ends}: {late / early:.3f}")


def measure(clients: int, rounds: int, words: list[str]) -> tuple[float, list[float]]:
    """Peak of a run, and its size after each round, in MB."""
    command = [sys.executable, __file__, "--child", str(clients), str(rounds), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["peak"], found["sizes"]


def child(words: list[str]) -> None:
    """Runs one federation and prints its memory."""
    sizes: list[float] = []

    class Sizes(Tracker):
        def start(self, run: Any) -> None:
            pass

        def log(self, metrics: Mapping[str, Any]) -> None:
            sizes.append(resident())

        def pictures(self, round: int, strips: Any) -> None:
            pass

        def finish(self, summary: Any, *, failed: bool) -> None:
            pass

    clients, rounds, *others = words
    half = int(clients) // 2
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "out": folder,
            "rounds": int(rounds),
            "participation": 10 / int(clients),
            "data.init_args.train": IMAGES,
            "data.init_args.val": 20,
            "data.init_args.size": 32,
            "partition": "__main__.OneEach",
            "clients": f"[{{tasks: [semseg], count: {half}}}, {{tasks: [depth], count: {half}}}]",
            "model.init_args.backbone": "test_convnext",
            "local.batch_size": 1,
            "local.epochs": 1,
            "local.schedule": "null",
            "eval_every": 10,
            "pictures": 0,
            "tracker": "null",
        }
        arguments = [f"--config={SCENES}", *(f"--{key}={value}" for key, value in settings.items()), *others]
        parser = fit.experiment_parser("fit", None)
        config = fit.parse(parser, arguments)
        experiment = fit.instantiate(parser, config)
        experiment.tracker = Sizes()
        directory = fit.RunDirectory(config.out, config.name)
        fit.fit(experiment, directory, fit.to_dict(parser, config), None, fit.Console(quiet=True))
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "sizes": sizes}))


def resident() -> float:
    """Resident set of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
