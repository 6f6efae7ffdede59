"""What benchmarks against bare loops and other frameworks share: the setting, bare training steps, clocks, tables."""

from __future__ import annotations

import datetime
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data.dataloader import _BaseDataLoaderIter

from fedmtl.commands.configuration import experiment_parser, instantiate, parse, to_dict
from fedmtl.data import Scenes
from fedmtl.data.scenes import default_tasks
from fedmtl.experiment import Experiment
from fedmtl.models import UnifiedModel
from fedmtl.seeding import derive_seed
from fedmtl.tasks import Task
from fedmtl.tracking import RunDirectory
from fedmtl.tracking.display import Display

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
ADAMW = {"lr": 1e-3, "weight_decay": 1e-4}  # as in experiments/base/scenes.yaml


@dataclass(frozen=True)
class Setting:
    """One federation; every way of training it is told the same."""

    tasks: tuple[str, ...]  # one client each
    method: str = "fedavg"  # a file of experiments/methods
    source: str = "fedmtl.data.Scenes"
    backbone: str = "convnext_atto"
    pixels: int = 64
    images: int = 80  # of each client
    batch: int = 8
    epochs: int = 2
    rounds: int = 8
    keep_optimizer: bool = True
    checkpoint_every: int = 10**6
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    workers: int = 0

    @property
    def steps(self) -> int:
        """Local steps of a client in a round."""
        return self.epochs * max(1, self.images // self.batch)


class Prepared(Scenes):
    """Scenes whose training examples are made once and then kept as tensors: data that costs next to nothing."""

    def __init__(self, *, train: int, val: int, size: int) -> None:
        super().__init__(train=train, val=val, size=size)
        self._make, self._made = self.train_transform, {}
        self.train_transform = lambda example, tasks, rng: example

    def read(self, split: Any, index: int, tasks: Sequence[str]) -> Any:
        if split == "val":
            return super().read(split, index, tasks)
        key = (index, *tasks)
        if key not in self._made:
            own = {name: self.tasks[name] for name in tasks}
            self._made[key] = self._make(super().read(split, index, tasks), own, np.random.default_rng(index))
        return self._made[key]


def build(setting: Setting) -> tuple[Experiment, dict[str, Any]]:
    """The experiment of a setting, with its resolved configuration."""
    never = 10**6
    content = {
        "name": "benchmark",
        "seed": setting.seed,
        "data": {
            "class_path": setting.source,
            "init_args": {"train": setting.images * len(setting.tasks), "val": 2, "size": setting.pixels},
        },
        "clients": [{"tasks": [task], "name": f"client {i}"} for i, task in enumerate(setting.tasks)],
        "model": {"init_args": {"backbone": setting.backbone}},
        "local": {
            "epochs": setting.epochs,
            "batch_size": setting.batch,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": ADAMW},
            "schedule": None,
            "keep_optimizer": setting.keep_optimizer,
        },
        "rounds": setting.rounds,
        "eval_every": never,
        "checkpoint_every": setting.checkpoint_every,
        "pictures": 0,
        "tracker": None,
        "fabric": {"accelerator": setting.device, "threads": setting.threads, "workers": setting.workers},
    }
    parser = experiment_parser("fit", None)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file)
        file.flush()
        files = [EXPERIMENTS / "base/scenes.yaml", EXPERIMENTS / f"methods/{setting.method}.yaml", file.name]
        config = parse(parser, [f"--config={path}" for path in files])
    return instantiate(parser, config), to_dict(parser, config)


def tasks_of(experiment: Experiment) -> dict[str, Task]:
    """All tasks of the federation, by head."""
    return {head: task for view in experiment.orchestrator.validation.values() for head, task in view.tasks.items()}


def new_model(setting: Setting, experiment: Experiment) -> UnifiedModel:
    """The model that the experiment starts from, in plain tensors of its own."""
    torch.manual_seed(derive_seed(setting.seed, "weights"))
    heads = {name: task.channels for name, task in tasks_of(experiment).items()}
    return UnifiedModel(heads, backbone=setting.backbone, channels=32, norm="group").to(setting.device)


def train(
    model: nn.Module,
    tasks: Mapping[str, Task],
    batches: Iterable[Mapping[str, Tensor]],
    optimizer: Optimizer,
    *,
    device: str = "cpu",
    read: Callable[[Tensor], Any] = Tensor.item,
) -> float:
    """Bare PyTorch steps on some heads; the mean loss, which `read` takes from the device at each step."""
    model.train()
    total, steps = 0.0, 0
    for batch in batches:
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        outputs = model(batch["image"], tuple(tasks))
        loss = torch.stack([task.weight * task.loss(outputs[n], batch[n]) for n, task in tasks.items()]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total, steps = total + read(loss), steps + 1
    return float(total) / steps


class Paced(Display):
    """The display of a run, that has `before` called at the start of every round."""

    def __init__(self, experiment: Experiment, steps: int, before: Callable[[int], None], console: Console) -> None:
        orchestrator = experiment.orchestrator
        super().__init__(rounds=orchestrator.rounds, steps=steps, primary=orchestrator.primary, console=console)
        self._before = before

    def start_round(self, round: int) -> None:
        self._before(round)
        super().start_round(round)


def run(
    experiment: Experiment, setting: Setting, config: Mapping[str, Any], folder: Path, before: Callable[[int], None]
) -> RunDirectory:
    """Runs an experiment into a folder, as `fedmtl fit` does."""
    directory = RunDirectory(folder, "run")
    directory.create(yaml.safe_dump(dict(config)))
    steps = setting.steps * len(setting.tasks)
    with open(os.devnull, "w") as nowhere, Paced(experiment, steps, before, Console(file=nowhere)) as display:
        experiment.orchestrator.run(directory, None, display, config)
    return directory


class Stopwatch:
    """Seconds (wall, CPU) in training itself: batches, forward pass, loss, backward pass, optimizer step, zeroing."""

    def __init__(self) -> None:
        self.seconds = np.zeros(2)

    def install(self) -> None:
        """Times these functions wherever in this process they are called."""
        places: list[tuple[Any, str]] = [
            (_BaseDataLoaderIter, "__next__"),
            (UnifiedModel, "forward"),
            *((type(task), "loss") for task in default_tasks().values()),
            (Tensor, "backward"),
            (torch.optim.AdamW, "step"),
            (torch.optim.AdamW, "zero_grad"),
        ]
        for owner, name in places:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            begin = clock("cpu")
            try:
                return function(*args, **options)
            finally:
                self.seconds += clock("cpu") - begin

        return timed

    def reset(self) -> np.ndarray:
        """The seconds since the last reset."""
        seconds, self.seconds = self.seconds, np.zeros(2)
        return seconds


def clock(device: str) -> np.ndarray:
    """Wall and CPU time in seconds, when the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def surroundings(threads: int, device: str, packages: Sequence[str] = ()) -> str:
    """One line: versions, processor, threads, date."""
    versions = [f"Python {platform.python_version()}"]
    for name in ("torch", "lightning", *packages):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} not installed")
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    chip = torch.cuda.get_device_name() if device == "cuda" else (models or [platform.processor()])[0]
    where = f"{chip}, {os.cpu_count()} CPUs, {threads} thread{'s' * (threads > 1)}"
    return f"{', '.join(versions)}; {where}; {datetime.date.today():%d %B %Y}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
