"""Time of a federated round against a bare PyTorch loop that takes the same steps on the same batches.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --backbone swin_tiny_patch4_window7_224 --pixels 224 --device cuda --workers 8

Four clients on the built-in scenes, one task each. The bare loop has one model, an optimizer a client and the same
loader, whose cost is in both; no weights are swapped, there are no updates and no server. The two take turns in one
process, round by round. A round is without evaluation; a checkpoint is part of the profiled round alone. The first
client's first round must give the same loss in both.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import ADAMW, Setting, build, clock, markdown, new_model, run, surroundings, tasks_of, train
from torch import Tensor

import fedmtl
from fedmtl.data.loader import Loader, SeededBatches
from fedmtl.experiment import Experiment

PACKAGE = str(Path(fedmtl.__file__).parent)
# the steps themselves: what both do
TRAINING = ("training_step", "backward", "step", "__next__", "forward", "__call__", "_wrapped_call_impl", "_call_impl")
NAME = re.compile(r"<built-in method |<method '|' of '.*|>$")  # around the name of a function in C


class Bare:
    """The same steps without federation."""

    def __init__(self, experiment: Experiment, setting: Setting) -> None:
        self.setting, self.clients, self.tasks = setting, experiment.orchestrator.clients, tasks_of(experiment)
        self.model = new_model(setting, experiment)
        parts = self.model.parts()
        self.optimizers = [
            torch.optim.AdamW([p for name in client.parts for p in parts[name].parameters()], **ADAMW)
            for client in self.clients
        ]
        self.loader = Loader(workers=setting.workers, pin=setting.device == "cuda")

    def round(self, round: int) -> list[float]:
        """One round's steps; mean losses of the clients."""
        setting = self.setting
        batches = self.loader(
            (client.images, keys)
            for client in self.clients
            for epoch in range(setting.epochs)
            for keys in SeededBatches(
                len(client.images), setting.batch, seed=setting.seed, keys=(client.name, round, epoch)
            )
        )
        losses = []
        for client, optimizer in zip(self.clients, self.optimizers, strict=True):
            own = (next(batches)[0] for _ in range(setting.steps))
            tasks = {name: self.tasks[name] for name in client.tasks}
            losses.append(train(self.model, tasks, own, optimizer, device=setting.device, read=Tensor.detach))
        return losses


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    """Seconds (wall, CPU) of our rounds and the bare ones, of one round with a checkpoint, and where that one goes."""
    experiment, config = build(setting)
    bare = Bare(experiment, setting)
    ours, bares, losses = [], [], []
    profile = cProfile.Profile()
    began = np.zeros(2)

    def before(round: int) -> None:
        nonlocal began
        profile.disable()
        if round > 1:
            ours.append(clock(setting.device) - began)
        if round <= rounds + 1:
            begin = clock(setting.device)
            losses.append(bare.round(round))
            bares.append(clock(setting.device) - begin)
        if round == setting.checkpoint_every:
            profile.enable()
        began = clock(setting.device)

    with tempfile.TemporaryDirectory() as folder:
        row = next(iter(run(experiment, setting, config, Path(folder), before).rows()))
    first = row[f"train/{bare.clients[0].name}/loss"]
    if not np.isclose(first, losses[0][0], rtol=1e-4):
        raise SystemExit(f"not the same steps: the first client's loss is {first}, the bare loop's {losses[0][0]}")
    counted = slice(1, rounds + 1)  # without the warm-up
    return {"ours": np.array(ours[counted]), "bare": np.array(bares[counted]), "where": where(profile)}


def where(profile: cProfile.Profile) -> dict[str, float]:
    """Milliseconds in each function of the package, and in what it calls outside, without training and data."""
    left_out = tuple(f"{PACKAGE}/{room}" for room in ("models", "tasks", "data"))
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    back: dict[Any, float] = defaultdict(float)  # seconds that a function outside spends in the package
    for (file, *_), (_, _, _, _, callers) in stats.items():
        for caller, (_, _, _, seconds) in callers.items():
            if file.startswith(PACKAGE) and not caller[0].startswith(PACKAGE):
                back[caller] += seconds
    found: dict[str, float] = defaultdict(float)
    for function, (_, _, own, whole, callers) in stats.items():
        file, _, name = function
        if file.startswith(PACKAGE) and not file.startswith(left_out):
            found[f"{file.removeprefix(PACKAGE + '/')} {name}"] += 1e3 * own
        elif not file.startswith(PACKAGE) and name not in TRAINING:
            for caller, (_, _, _, seconds) in callers.items():
                if caller[0].startswith(PACKAGE) and not caller[0].startswith(left_out):
                    place = f"{caller[0].removeprefix(PACKAGE + '/')} {caller[2]}: {NAME.sub('', name)}"
                    found[place] += 1e3 * seconds * (1 - min(1.0, back[function] / whole) if whole else 0)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["fedavg", "dea"], help="files of experiments/methods")
    parser.add_argument("--tasks", nargs="+", default=["semseg", "depth", "normals", "edge"], help="a client each")
    parser.add_argument("--source", default="fedmtl.data.Scenes", help="comparison.Prepared: data in memory")
    parser.add_argument("--backbone", default="convnext_atto")
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--images", type=int, default=80, help="of each client; two epochs a round")
    parser.add_argument("--rounds", type=int, default=7, help="counted ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--top", type=int, default=16, help="rows of the profile")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = vars(parser.parse_args())
    methods, rounds, top, file = (given.pop(key) for key in ("methods", "rounds", "top", "json"))
    given["tasks"] = tuple(given["tasks"])
    torch.set_num_threads(given["threads"])

    rows, profiles, kept = [], [], {}
    for method in methods:
        # warm-up, the counted rounds, one with profile and checkpoint, and the last, which ends with an evaluation
        setting = Setting(**given, method=method, rounds=rounds + 3, checkpoint_every=rounds + 2)
        found = measure(setting, rounds)
        (wall, cpu), (bare_wall, bare_cpu) = np.median(found["ours"], axis=0), np.median(found["bare"], axis=0)
        pairs = np.median(found["ours"] / found["bare"], axis=0)
        rows.append(
            [method, f"{wall:.3f}", f"{bare_wall:.3f}", f"{wall / bare_wall:.3f}", f"{cpu / bare_cpu:.3f}",
             f"{pairs[0]:.3f}, {pairs[1]:.3f}", f"{1e3 * (cpu - bare_cpu):.0f}"]
        )  # fmt: skip
        profiles.append(f"\n{method}, ms a round, one round with a checkpoint under the profiler:")
        profiles += [f"  {ms:8.1f}  {name}" for name, ms in list(found["where"].items())[:top]]
        kept[method] = {key: getattr(value, "tolist", lambda v=value: v)() for key, value in found.items()}
    machine = surroundings(setting.threads, setting.device)
    print(machine)
    print(
        f"{len(setting.tasks)} clients ({', '.join(setting.tasks)}), {setting.steps} steps of {setting.batch} at "
        f"{setting.pixels} px each, {setting.backbone}, {setting.source}; medians of {rounds} rounds\n"
    )
    heads = ["method", "round s", "bare s", "wall", "CPU", "median of pairs (wall, CPU)", "CPU ms more a round"]
    print(markdown(heads, rows), *profiles, sep="\n")
    if file:
        file.write_text(json.dumps({"machine": machine, "setting": given, "found": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
