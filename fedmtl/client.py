"""A client: its task heads on the shared encoder, its images, its own state, and how it trains locally."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning import Fabric, LightningModule
from lightning.fabric.wrappers import _FabricModule, _FabricOptimizer
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from fedmtl.algorithms import FedAvg, LocalAlgorithm
from fedmtl.data import Partition, View
from fedmtl.data.loader import SeededBatches
from fedmtl.models import UnifiedModel
from fedmtl.tasks import Task
from fedmtl.vector import PartState

ClientOptimizer = Callable[[Iterable[Tensor]], Optimizer]
ClientSchedule = Callable[[Optimizer, int], Scheduler]


@dataclass
class ClientGroup:
    """Clients that are alike.

    Args:
        tasks: the tasks that each of them learns.
        data: name of their data set, where the experiment has several.
        count: how many clients.
        name: their name in tables and metrics (default: the tasks, joined by "+").
        partition: how their images are shared out among them (default: as among all others of the data set).
        epochs: their local epochs a round (default: those of `local`).
    """

    tasks: list[str]
    data: str | None = None
    count: int = 1
    name: str | None = None
    partition: Partition | None = None
    epochs: int | None = None


@dataclass
class ClientState:
    """What a client keeps for itself between rounds.

    Attributes:
        optimizer: state of its local optimizer.
        personal: weights of the parts that it does not share, by part name.
    """

    optimizer: dict[str, Any] | None = None
    personal: dict[str, PartState] = field(default_factory=dict)


@dataclass
class Client:
    """One client of the federation.

    Attributes:
        name: unique name.
        tasks: names of the tasks it learns, which are the names of their heads.
        images: its shard of the training images, with labels for its tasks.
        data: name of its data set in the experiment.
        epochs: local epochs a round, None for what all do.
        state: what it keeps between rounds.
    """

    name: str
    tasks: tuple[str, ...]
    images: View
    data: str
    epochs: int | None = None
    state: ClientState = field(default_factory=ClientState)

    @property
    def parts(self) -> list[str]:
        """The parts of the unified model that it trains."""
        return ["encoder", *(f"heads.{task}" for task in self.tasks)]


class ClientModule(LightningModule):
    """The unified model as one client sees it: the encoder and the heads of the client's own tasks.

    One module serves all clients in turn: `active` names the tasks of the client that trains now.

    Args:
        model: the resident model.
        tasks: all tasks of the federation, by name.
    """

    def __init__(self, model: UnifiedModel, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.model = model
        self.tasks = dict(tasks)
        self.active: tuple[str, ...] = tuple(tasks)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) to the active tasks' raw outputs (B, C, H, W), by task."""
        return self.model(image, self.active)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Weighted losses of the active tasks, by task, and their sum under ``"loss"``."""
        outputs = self(batch["image"])
        losses = {name: self.tasks[name].weight * self.tasks[name].loss(outputs[name], batch[name]) for name in outputs}
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def trained(self) -> list[nn.Parameter]:
        """Parameters of the encoder and of the active heads."""
        parts = [self.model.encoder, *(self.model.heads[name] for name in self.active)]
        return [parameter for part in parts for parameter in part.parameters()]


class LocalTraining:
    """A client's training between receiving the global model and sending its update.

    Args:
        epochs: local epochs a round.
        batch_size: images a step; an epoch's last, smaller batch is left out if there is a full one.
        optimizer: any torch optimizer by its class.
        schedule: any timm scheduler by its class; it runs over rounds × epochs and steps once a local epoch.
            Keys like `warmup_t` count local epochs.
        clip_norm: largest norm of a step's gradient, None for no limit.
        keep_optimizer: whether a client's optimizer state lives on to its next round.
        algorithm: what changes the local steps.
    """

    def __init__(
        self,
        *,
        optimizer: ClientOptimizer,
        epochs: int = 1,
        batch_size: int = 8,
        schedule: ClientSchedule | None = None,
        clip_norm: float | None = None,
        keep_optimizer: bool = True,
        algorithm: LocalAlgorithm | None = None,
    ) -> None:
        for key, value in {"epochs": epochs, "batch_size": batch_size, "clip_norm": clip_norm}.items():
            if value is not None and not value > 0:
                raise ValueError(f"local.{key} must be positive, not {value}")
        self.optimizer, self.schedule = optimizer, schedule
        self.epochs, self.batch_size, self.clip_norm = epochs, batch_size, clip_norm
        self.keep_optimizer = keep_optimizer
        self.algorithm = algorithm or FedAvg()

    def epochs_of(self, client: Client) -> int:
        """Local epochs of a client in a round."""
        return client.epochs or self.epochs

    def order(self, client: Client, *, seed: int, round: int) -> list[SeededBatches]:
        """What a client's batches are in each local epoch of a round."""
        return [
            SeededBatches(len(client.images), self.batch_size, seed=seed, keys=(client.name, round, epoch))
            for epoch in range(self.epochs_of(client))
        ]

    def steps(self, client: Client) -> int:
        """Local steps of a client in a round."""
        return sum(map(len, self.order(client, seed=0, round=1)))

    def fit(
        self,
        fabric: Fabric,
        module: _FabricModule,
        epochs: Sequence[Iterable[Mapping[str, Tensor]]],
        *,
        anchors: Sequence[Tensor],
        round: int,
        rounds: int,
        optimizer_state: dict[str, Any] | None,
        on_step: Callable[[], None],
    ) -> tuple[dict[str, float], dict[str, Any] | None]:
        """Trains the module's active tasks in place.

        Args:
            fabric: where to train.
            module: the resident module, as set up by `fabric`, with the global weights in it.
            epochs: the batches of each local epoch.
            anchors: values of `module.trained()` at the start of the round.
            round: number of the round, from 1.
            rounds: rounds of the whole run, for the schedule.
            optimizer_state: state from the client's last round, if kept.
            on_step: called after every step.

        Returns:
            Mean losses (``"loss"`` and each task's), and the optimizer state to keep.
        """
        parameters = module.trained()
        optimizer = self.optimizer(parameters)
        if optimizer_state is not None:
            optimizer.load_state_dict(deepcopy(optimizer_state))  # it would train on the kept tensors themselves
        schedule = self.schedule(optimizer, rounds * len(epochs)) if self.schedule else None
        wrapped = cast(_FabricOptimizer, fabric.setup_optimizers(optimizer))
        module.train()
        totals: dict[str, Tensor] = {}
        steps = 0
        for epoch, batches in enumerate(epochs, start=(round - 1) * len(epochs)):
            if schedule is not None:
                schedule.step(epoch)
            for batch in batches:
                with fabric.autocast():  # Fabric does not wrap training_step itself on one device
                    losses = module.training_step(fabric.to_device(batch), steps)
                fabric.backward(losses["loss"])
                self.algorithm.correct_gradients(parameters, anchors)
                if self.clip_norm is not None:
                    fabric.clip_gradients(module, wrapped, max_norm=self.clip_norm, error_if_nonfinite=False)
                wrapped.step()
                wrapped.zero_grad(set_to_none=True)
                for name, value in losses.items():
                    totals[name] = totals.get(name, 0) + value.detach()  # a tensor: reading it would stall a GPU
                steps += 1
                on_step()
        losses_mean = {name: float(total) / max(steps, 1) for name, total in totals.items()}
        return losses_mean, optimizer.state_dict() if self.keep_optimizer else None
