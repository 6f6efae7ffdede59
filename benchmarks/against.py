"""What federated learning costs beside training: this package, Flower's simulation, and a plain loop of research code.

    uv pip install -e . -r benchmarks/against_requirements.txt   # in an environment of its own
    python benchmarks/against.py

FedAvg of four clients, each on its own pictures, all in every round: same model, batches, local steps and optimizer,
one thread, one process that trains. Data lie in memory as tensors. Each way runs in a process of its own and they take
turns, round by round. Counted is the wall time of a round less batches, forward pass, loss, backward pass, optimizer
step and zeroing, which are timed inside, in all by the same clock: copies, messages, averaging and waiting are left.
Start-up is apart; the first rounds, which warm up, and the last, which ends a run of ours with an evaluation, are left
out. All must end with the same weights. Nothing is saved, except in the row that says so. A client has two steps a
round: the clocks, torch's hooks and freed memory cost some time at each, which counts in all ways alike and would hide
the rest.

The plain loop copies the model for each client and its trained weights afterwards, averages tensor by tensor in
dictionaries, makes loader and optimizer anew, and reads the loss at every step. Flower is told to keep one actor of one
CPU; its clients keep data and model in that actor's memory and are without state, as its guide has it.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from comparison import ADAMW, Setting, Stopwatch, build, clock, markdown, new_model, run, surroundings, train
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fedmtl.client import Client
from fedmtl.data.loader import SeededBatches

Turn = Callable[..., None]  # called at the start of every round: (round, seconds that others trained in the last one)
Weights = Mapping[str, Tensor]
OURS = "this package"


def ours(setting: Setting, turn: Turn, folder: Path) -> Weights:
    """Through the experiment, as `fedmtl fit` runs it."""
    experiment, config = build(setting)
    directory = run(experiment, setting, config, folder, turn)
    experiment.orchestrator.export(directory)
    return safetensors.torch.load_file(directory.unified / "model.safetensors")


def train_client(setting: Setting, client: Client, model: nn.Module, round: int) -> None:
    """A client's round as a user writes it: a new loader and optimizer, the loss read at every step."""
    batches = [
        keys
        for epoch in range(setting.epochs)
        for keys in SeededBatches(
            len(client.images), setting.batch, seed=setting.seed, keys=(client.name, round, epoch)
        )
    ]
    loader = DataLoader(client.images, batch_sampler=batches)  # type: ignore[arg-type]
    train(model, client.images.tasks, loader, torch.optim.AdamW(model.parameters(), **ADAMW))


def plain(setting: Setting, turn: Turn, folder: Path, *, copy_again: bool = True) -> Weights:
    """The loop of most research codes."""
    experiment, _ = build(setting)
    model = new_model(setting, experiment)
    for round in range(1, setting.rounds + 1):
        turn(round)
        found = []
        for client in experiment.orchestrator.clients:
            local = copy.deepcopy(model)
            train_client(setting, client, local, round)
            found.append(copy.deepcopy(local.state_dict()) if copy_again else local.state_dict())
        mean = copy.deepcopy(found[0])
        for name in mean:
            for other in found[1:]:
                mean[name] += other[name]
            mean[name] = torch.div(mean[name], len(found))
        model.load_state_dict(mean)
    return model.state_dict()


@cache
def flower_client(text: str) -> tuple[Setting, list[Client], nn.Module, Stopwatch]:
    """What an actor keeps: the setting, all clients' data, one model, its clock."""
    setting = Setting(**{key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(text).items()})
    torch.set_num_threads(setting.threads)
    stopwatch = Stopwatch()
    stopwatch.install()
    experiment, _ = build(setting)
    return setting, experiment.orchestrator.clients, new_model(setting, experiment), stopwatch


def flower_train(message: Any, context: Any) -> Any:
    """What a Flower client does with the model that it receives."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    config = message.content["config"]
    setting, clients, model, stopwatch = flower_client(config["setting"])
    client = clients[context.node_config["partition-id"]]
    stopwatch.reset()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train_client(setting, client, model, config["server-round"])
    metrics = MetricRecord({"num-examples": len(client.images), "training": float(stopwatch.reset()[0])})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


def flower(setting: Setting, turn: Turn, folder: Path) -> Weights:
    """Flower's simulation, with messages passed in memory."""
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    class TakingTurns(FedAvg):
        """Notes how long clients trained, and waits for its turn between rounds."""

        training = 0.0

        def configure_train(self, server_round: int, *arguments: Any, **options: Any) -> Any:
            turn(server_round, self.training)
            return super().configure_train(server_round, *arguments, **options)

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            errors = [reply.error.reason for reply in replies if reply.has_error()]
            if errors:
                raise RuntimeError(errors[0])
            self.training = sum(reply.content["metrics"]["training"] for reply in replies)
            return super().aggregate_train(server_round, replies)

    end: dict[str, Tensor] = {}
    server, client = ServerApp(), ClientApp()
    client.train()(flower_train)

    @server.main()
    def main(grid: Any, context: Any) -> None:
        experiment, _ = build(setting)
        start = ArrayRecord(new_model(setting, experiment).state_dict())
        config = ConfigRecord({"setting": json.dumps(asdict(setting))})
        number = len(setting.tasks)
        nodes = {"min_train_nodes": number, "min_available_nodes": number, "fraction_evaluate": 0.0}
        result = TakingTurns(**nodes).start(grid, start, num_rounds=setting.rounds, train_config=config)
        end.update(result.arrays.to_torch_state_dict())

    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": 1, "_temp_dir": str(folder / "ray")},
    }
    run_simulation(server, client, num_supernodes=len(setting.tasks), backend_config=backend)
    return end


WAYS: dict[str, Callable[..., Weights]] = {
    OURS: ours,
    f"{OURS}, saving every round": ours,
    "plain loop": plain,
    "plain loop, one copy a client": partial(plain, copy_again=False),
    "Flower": flower,
}


def work(way: str, setting: Setting, folder: Path, pipe: Any) -> None:
    """A process's life: at the start of each round it reports the one before, and waits to be told to go on."""
    folder.mkdir()
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1), os.dup2(log, 2)
    torch.set_num_threads(setting.threads)
    stopwatch, began = Stopwatch(), clock("cpu")
    stopwatch.install()

    def turn(round: int, elsewhere: float = 0.0) -> None:
        nonlocal began
        pipe.send([clock("cpu") - began, stopwatch.reset() + elsewhere])
        pipe.recv()
        began = clock("cpu")

    weights = WAYS[way](setting, turn, folder)
    safetensors.torch.save_file({k: v.contiguous().clone() for k, v in weights.items()}, folder / "end.safetensors")


def measure(settings: Mapping[str, Setting], warm_up: int, folder: Path) -> dict[str, dict[str, Any]]:
    """For each way: seconds (all, training; wall and CPU) of the counted rounds, of start-up, and the final weights."""
    context = multiprocessing.get_context("spawn")
    found, pipes, processes = {}, {}, {}
    for i, (way, setting) in enumerate(settings.items()):
        pipes[way], theirs = context.Pipe()
        begin = time.perf_counter()
        processes[way] = context.Process(target=work, args=(way, setting, folder / str(i), theirs), daemon=True)
        processes[way].start()
        theirs.close()
        received(pipes[way], way, folder / str(i))
        found[way] = {"start": time.perf_counter() - begin, "rounds": []}
    rounds = next(iter(settings.values())).rounds
    for round in range(1, rounds + 1):
        for i, (way, pipe) in enumerate(pipes.items()):
            pipe.send("go")
            if round < rounds:
                seconds = received(pipe, way, folder / str(i))
                found[way]["rounds"] += [seconds] * (round > warm_up)
            else:
                processes[way].join()
                found[way]["weights"] = safetensors.torch.load_file(folder / str(i) / "end.safetensors")
    return found


def received(pipe: Any, way: str, folder: Path) -> list[list[float]]:
    try:
        return np.array(pipe.recv()).tolist()
    except EOFError:
        log = (folder / "log.txt").read_text(errors="replace") if folder.exists() else ""
        raise SystemExit(f"{way} has died:\n{log[-4000:]}") from None


def apart(weights: Weights, others: Weights, start: Weights) -> float:
    """The distance of two ends, as a share of the way from the start."""
    if set(weights) != set(others):
        raise SystemExit(f"other tensors: {sorted(set(weights) ^ set(others))}")
    flat = [torch.cat([state[name].double().flatten() for name in sorted(start)]) for state in (weights, others, start)]
    return float((flat[0] - flat[1]).norm() / (flat[0] - flat[2]).norm())


def rows_of(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The table's rows; medians."""
    rows = []
    for way, one in found.items():
        whole, training = np.array(one["rounds"]).transpose(1, 0, 2)
        one["other"] = (other := np.median(whole - training, axis=0)).tolist()
        ratio = other / next(iter(found.values()))["other"]
        cpu = "–" if way == "Flower" else f"{1e3 * other[1]:.0f} ({ratio[1]:.1f})"  # it has several processes
        seconds = (np.median(whole[:, 0]), np.median(training[:, 0]), one["start"])
        cells = [f"{1e3 * other[0]:.0f} ({ratio[0]:.1f})", cpu, *(f"{value:.2f}" for value in seconds)]
        rows.append([way, *cells, f"{one['apart']:.1e}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--backbone", default="convnext_atto")
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--images", type=int, default=16, help="of each client")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--task", default="semseg", help="of all clients, as Flower averages whole models")
    parser.add_argument("--epochs", type=int, default=1, help="local epochs a round")
    parser.add_argument("--rounds", type=int, default=7, help="counted ones")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--tolerance", type=float, default=1e-2, help="of `apart`")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    ways = options.ways
    if importlib.util.find_spec("flwr") is None and "Flower" in ways:
        print("Flower is not installed (benchmarks/against_requirements.txt) and is left out", file=sys.stderr)
        ways = [way for way in ways if way != "Flower"]
    shape = {key: getattr(options, key) for key in ("backbone", "pixels", "images", "epochs")}
    rounds = options.warm_up + options.rounds + 1
    given = {"tasks": (options.task,) * options.clients, "source": "comparison.Prepared", "rounds": rounds}
    setting = Setting(**given, **shape, keep_optimizer=False)
    saving = Setting(**given, **shape, keep_optimizer=False, checkpoint_every=1)
    with tempfile.TemporaryDirectory(prefix="against") as folder:
        found = measure({way: saving if "saving" in way else setting for way in ways}, options.warm_up, Path(folder))

    experiment, _ = build(setting)
    start = new_model(setting, experiment).state_dict()
    ends = {way: one.pop("weights") for way, one in found.items()}
    for way, one in found.items():
        one["apart"] = apart(ends[ways[0]], ends[way], start)
    machine = surroundings(setting.threads, setting.device, ("flwr", "ray"))
    size = sum(value.numel() for value in start.values())
    print(machine)
    print(
        f"{setting.backbone}, {size / 1e6:.1f} M weights; {options.clients} clients, {setting.steps} steps of "
        f"{setting.batch} at {setting.pixels} px each; medians of {options.rounds} rounds\n"
    )
    heads = ["way", "ms a round beside training", "CPU ms", "round s", "training s", "start-up s", "end differs by"]
    print(markdown(heads, rows_of(found)))
    if options.json:
        content = {"machine": machine, "setting": asdict(setting), "weights": size, "found": found}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if any(one["apart"] > options.tolerance for one in found.values()):
        raise SystemExit(f"the ways do not end with the same weights (tolerance {options.tolerance:g})")


if __name__ == "__main__":
    from against import main as by_name  # actors and processes must find its functions by the module's name

    by_name()
