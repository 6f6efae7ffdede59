"""A client: its task heads on the shared encoder, its images, its own state, and how it trains locally."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from lightning import Fabric, LightningModule
from lightning.fabric.wrappers import _FabricModule, _FabricOptimizer
from lightning_utilities.core.apply_func import apply_to_collection
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from fedmtl.algorithms import FedAvg, LocalAlgorithm, LocalRound, Phase
from fedmtl.client_state import ClientState, Kept
from fedmtl.data import Partition, View
from fedmtl.data.loader import SeededBatches
from fedmtl.models import UnifiedModel
from fedmtl.tasks import Task

ClientOptimizer = Callable[[Iterable[Tensor]], Optimizer]
ClientSchedule = Callable[[Optimizer, int], Scheduler]
ModelFactory = Callable[[Mapping[str, int], int], UnifiedModel]  # from output channels by head, and input channels
Plan = Sequence[tuple[Phase, Sequence[Iterable[Mapping[str, Tensor]]]]]  # each phase with the batches of its epochs
Combine = Callable[[Iterable[nn.Parameter], int], None]  # from parameters with gradients of so many images

SERVERS = "server"  # the architecture of the server's model


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
        input: what they read: ``image``, or another modality by its task's name, e.g. ``depth``.
        model: a model of another architecture (default: the experiment's).
        match: which weights such a model shares with the server's: tensors of equal name and ``shape``, or the
            ``leading`` channels of tensors of equal name.
        private: name patterns of encoder tensors that they never share (default: none; for another input, the
            first convolution).
    """

    tasks: list[str]
    data: str | None = None
    count: int = 1
    name: str | None = None
    partition: Partition | None = None
    epochs: int | None = None
    input: str = "image"
    model: ModelFactory | None = None
    match: Literal["shape", "leading"] = "shape"
    private: list[str] | None = None


@dataclass
class Client:
    """One client of the federation.

    Attributes:
        name: unique name.
        tasks: names of the tasks it learns, which are the names of their heads.
        images: its shard of the training images, with labels for its tasks.
        data: name of its data set in the experiment.
        epochs: local epochs a round, None for what all do.
        architecture: which of the engine's models it trains.
        kept: where what it keeps between rounds waits.
    """

    name: str
    tasks: tuple[str, ...]
    images: View
    data: str
    epochs: int | None = None
    architecture: str = SERVERS
    kept: Kept = field(default_factory=Kept)

    @property
    def state(self) -> ClientState:
        """What it keeps between rounds."""
        return self.kept.state

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
        self.memory_format = torch.contiguous_format

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Inputs (B, C, H, W) to the active tasks' raw outputs (B, C, H, W), by task."""
        return self.model(image.contiguous(memory_format=self.memory_format), self.active)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Weighted losses of the active tasks, by task, and their sum under ``"loss"``."""
        outputs = self(batch["image"])
        losses = {name: self.tasks[name].weight * self.tasks[name].loss(outputs[name], batch[name]) for name in outputs}
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


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
        """What a client's batches are in each local epoch of a round, all phases one after the other."""
        return [
            SeededBatches(len(client.images), self.batch_size, seed=seed, keys=(client.name, round, epoch))
            for epoch in range(sum(phase.epochs for phase in self.phases(client)))
        ]

    def phases(self, client: Client) -> list[Phase]:
        """The stretches of a client's round."""
        return self.algorithm.phases(self.epochs_of(client))

    def steps(self, client: Client) -> int:
        """Local steps of a client in a round."""
        return sum(map(len, self.order(client, seed=0, round=1)))

    def fit(
        self,
        fabric: Fabric,
        module: _FabricModule,
        run: LocalRound,
        plan: Plan,
        *,
        round: int,
        rounds: int,
        optimizer_states: Mapping[str, dict[str, Any]],
        on_step: Callable[[], None],
        combine: Combine | None = None,
    ) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
        """Trains the module's active tasks in place.

        Args:
            fabric: where to train.
            module: the resident module, as set up by `fabric`, with the weights to start from in it.
            run: the round as the algorithm sees it.
            plan: the phases, each with the batches of its epochs.
            round: number of the round, from 1.
            rounds: rounds of the whole run, for the schedule.
            optimizer_states: states from the client's last round, by phase; those that were kept.
            on_step: called after every step.
            combine: called after every backward pass, where others have the rest of each batch.

        Returns:
            Mean losses over the steps (``"loss"`` and each task's), and the optimizer states to keep.
        """
        if not module.module.training:  # it walks through every submodule
            module.train()
        totals: dict[str, Tensor] = {}
        steps = 0
        states: dict[str, dict[str, Any]] = {}
        for phase, epochs in plan:
            optimizer = self.optimizer([p for n, part in run.parts.items() if phase.has(n) for p in part.parameters])
            if phase.name in optimizer_states:  # copied, or it would train on the kept tensors themselves
                optimizer.load_state_dict(apply_to_collection(optimizer_states[phase.name], Tensor, torch.clone))
            schedule = self.schedule(optimizer, rounds * len(epochs)) if self.schedule else None
            wrapped = cast(_FabricOptimizer, fabric.setup_optimizers(optimizer))
            run.phase, run.optimizer = phase, optimizer
            with _frozen(run):
                for epoch, batches in enumerate(epochs, start=(round - 1) * len(epochs)):
                    if schedule is not None:
                        schedule.step(epoch)
                    for batch in batches:
                        with fabric.autocast():  # Fabric does not wrap training_step itself on one device
                            losses = module.training_step(fabric.to_device(batch), steps)
                        fabric.backward(losses["loss"])
                        if combine is not None:
                            combine(module.parameters(), len(batch["image"]))
                        self.algorithm.correct_gradients(run)
                        if phase.moves:
                            if self.clip_norm is not None:
                                fabric.clip_gradients(
                                    module, wrapped, max_norm=self.clip_norm, error_if_nonfinite=False
                                )
                            wrapped.step()
                            for name, value in losses.items():  # tensors: reading them would stall a GPU
                                totals[name] = totals.get(name, 0) + value.detach()
                            steps += 1
                        wrapped.zero_grad(set_to_none=True)
                        on_step()
            if self.keep_optimizer and phase.moves:
                states[phase.name] = optimizer.state_dict()
        return {name: float(total) / max(steps, 1) for name, total in totals.items()}, states


@contextmanager
def _frozen(run: LocalRound) -> Iterator[None]:
    """Parts that the phase does not train gather no gradients; where nothing moves, buffers don't either."""
    others = [p for name, part in run.parts.items() if not run.phase.has(name) for p in part.parameters]
    before = {} if run.phase.moves else {name: part.read() for name, part in run.parts.items()}
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
        for name, state in before.items():
            run.parts[name].load(state)
