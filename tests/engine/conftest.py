"""A tiny federation on one CPU thread."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmtl.checkpoint import Checkpoints
from fedmtl.client import Client, LocalTraining
from fedmtl.engine import Distributed, FabricConfig, InProcess
from fedmtl.orchestrator import Orchestrator
from fedmtl.server import Server


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


@dataclass
class Federation:
    source: Any
    engine: InProcess
    clients: list[Client]

    def orchestrator(self, *, server: Server | None = None, **options: Any) -> Orchestrator:
        """An orchestrator with a server that has the engine's weights."""
        server = server or Server()
        parts = {c.name: [part for part in c.parts if self.engine.shared(part)] for c in self.clients}
        rule = self.engine.local.algorithm.server()
        examples = {client.name: len(client.images) for client in self.clients}
        layouts = self.engine.layouts()
        server.start(self.engine.state(), rule=rule, parts=parts, examples=examples, layouts=layouts)
        options = {"unified": True, "rounds": 3, "seed": 0, "pictures": 0, **options}
        if "validation" not in options:
            options["validation"] = {"tiny": self.source.view("val", list(self.source.tasks))}
        return Orchestrator(engine=Distributed(self.engine, self.clients), server=server, **options)


def carry_over(run: Orchestrator, other: Orchestrator, directory: Path) -> None:
    """Has another run go on where one is, from a checkpoint."""
    checkpoints = Checkpoints(directory)
    run.save(checkpoints)
    checkpoints.wait()
    other.load_state_dict(checkpoints.load(), checkpoints.states)


def everything(run: Orchestrator) -> list[Any]:
    """All that a run carries from round to round."""
    return [run.state_dict(), [client.state for client in run.clients]]


@pytest.fixture
def federate(make_module: Any, tiny_source: Any, one_thread: None) -> Callable[..., Federation]:
    """Makes a client for each of `tasks`, with `size` train images of its own, and an engine.

    First weights are the same at every call; other options are those of `InProcess`.
    """

    def make(
        *tasks: Sequence[str],
        size: int = 4,
        source: Any = None,
        backbone: str = "test_convnext",
        norm: str = "group",
        drop_path: float = 0.0,
        **options: Any,
    ) -> Federation:
        source = source or tiny_source(train=size * len(tasks))
        clients = [
            Client(f"client-{i}", tuple(own), source.view("train", own, range(i * size, (i + 1) * size)), "tiny")
            for i, own in enumerate(tasks)
        ]
        module = make_module(backbone=backbone, norm=norm, drop_path=drop_path, tasks=source.tasks)
        options = {"local": LocalTraining(optimizer=adamw, batch_size=3), "seed": 0, "rounds": 3, **options}
        engine = InProcess(fabric=FabricConfig(accelerator="cpu").build(), module=module, **options)
        return Federation(source, engine, clients)

    return make
