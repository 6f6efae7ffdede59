"""Runs clients one after the other in this process, on one resident model whose weights are swapped in place."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
from lightning import Fabric
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import default_collate

from fedmtl.aggregation import PartUpdate, Update, UploadTransform
from fedmtl.client import Client, ClientModule, ClientState, LocalTraining
from fedmtl.data import View
from fedmtl.data.loader import SeededBatches, StoredOrder, batches
from fedmtl.seeding import derive_seed
from fedmtl.tasks.base import Label
from fedmtl.vector import FlatPart, PartState

State = dict[str, PartState]  # weights by part name


@dataclass
class TrainingResult:
    """What a client's local training gave.

    Attributes:
        update: what it sends.
        state: what it keeps, if the server accepts the update.
        losses: mean training losses, ``"loss"`` and each task's.
    """

    update: Update
    state: ClientState
    losses: dict[str, float]


class InProcess:
    """The engine of one process and one device.

    Args:
        fabric: a single-device Fabric.
        module: the resident module; it is moved to the device and backed by flat vectors.
        local: how clients train.
        upload: transforms of the encoder's update, in order.
        shared: the parts that clients send; others stay with them.
        seed: the run's seed.
        rounds: rounds of the whole run.
        workers: worker processes that decode images.
        eval_batch_size: images a batch in evaluation.
    """

    def __init__(
        self,
        *,
        fabric: Fabric,
        module: ClientModule,
        local: LocalTraining,
        upload: Sequence[UploadTransform] = (),
        shared: Callable[[str], bool] = lambda part: True,
        seed: int,
        rounds: int,
        workers: int = 0,
        eval_batch_size: int = 16,
    ) -> None:
        self.fabric, self.local, self.upload, self.shared = fabric, local, list(upload), shared
        self.seed, self.rounds, self.workers, self.eval_batch_size = seed, rounds, workers, eval_batch_size
        self.module = module
        self.resident = fabric.setup_module(module)
        self._pin = fabric.device.type == "cuda"
        self.parts = {name: FlatPart(part) for name, part in module.model.parts().items()}

    def state(self) -> State:
        """A copy of the resident model's weights."""
        return {name: part.read() for name, part in self.parts.items()}

    def load(self, state: Mapping[str, PartState]) -> None:
        """Puts weights into the resident model."""
        for name, part in state.items():
            self.parts[name].load(part)

    def weights_of(self, client: Client, state: State) -> State:
        """The client's model: the global parts that it shares, its own weights for the others."""
        own = client.state.personal
        return {part: own[part].to(self.fabric.device) if part in own else state[part] for part in client.parts}

    def steps(self, client: Client) -> int:
        """Local steps of a client in a round."""
        return self.local.epochs * len(self._order(client, round=1, epoch=0))

    def train(self, client: Client, state: State, round: int, on_step: Callable[[], None]) -> TrainingResult:
        """Trains a client on its images, from the global state (and its own parts)."""
        start = self.weights_of(client, state)
        self.load(start)
        self.module.active = client.tasks
        torch.manual_seed(derive_seed(self.seed, "train", client.name, round))  # dropout and drop path
        losses, optimizer_state = self.local.fit(
            self.fabric,
            self.resident,
            self._epochs(client, round),
            anchors=[view for name, part in start.items() for view in self.parts[name].layout.views(part.vector)],
            round=round,
            rounds=self.rounds,
            optimizer_state=client.state.optimizer,
            on_step=on_step,
        )
        personal: State = {}
        sent: dict[str, PartUpdate] = {}
        for name in client.parts:
            end = self.parts[name].read()
            if self.shared(name):
                sent[name] = PartUpdate(end.vector.sub_(start[name].vector), end.buffers)
            else:
                personal[name] = end
        healthy = all(part.is_finite() for part in personal.values())
        update = Update(client.name, len(client.images), sent, healthy)
        if self.upload and "encoder" in sent and update.is_finite():  # the server refuses it otherwise
            for transform in self.upload:
                sent["encoder"] = transform(sent["encoder"], self.parts["encoder"].layout)
        host = torch.device("cpu")  # where what a client keeps waits for its next turn
        kept = ClientState(
            move_data_to_device(optimizer_state, host), {name: part.to(host) for name, part in personal.items()}
        )
        return TrainingResult(update, kept, losses)

    def _epochs(self, client: Client, round: int) -> Iterable[Iterable[dict[str, Tensor]]]:
        """The batches of each local epoch, all from one loader: worker processes start once a round."""
        epochs = [list(self._order(client, round, epoch)) for epoch in range(self.local.epochs)]
        loader = iter(batches(client.images, list(chain(*epochs)), workers=self.workers, pin=self._pin))
        for epoch in epochs:
            yield islice(loader, len(epoch))

    def _order(self, client: Client, round: int, epoch: int) -> SeededBatches:
        keys = (client.name, round, epoch)
        return SeededBatches(len(client.images), self.local.batch_size, seed=self.seed, keys=keys)

    @torch.inference_mode()
    def evaluate(self, weights: Mapping[str, PartState], view: View) -> dict[str, dict[str, float]]:
        """Every metric of the view's tasks, by task, of the model with these weights."""
        self._prepare(weights, view)
        device = self.fabric.device if self.fabric.device.type != "mps" else torch.device("cpu")  # MPS lacks float64
        metrics = {name: task.metric().to(device) for name, task in view.tasks.items()}
        order = StoredOrder(len(view), self.eval_batch_size)
        for batch in batches(view, order, workers=self.workers, pin=self._pin):
            outputs = self.resident(self.fabric.to_device(batch["image"]))
            for name, metric in metrics.items():
                metric.update(outputs[name].float().to(device), batch[name].to(device))
        return {name: {k: float(v) for k, v in metric.compute().items()} for name, metric in metrics.items()}

    @torch.inference_mode()
    def predict(self, weights: Mapping[str, PartState], view: View, positions: Sequence[int]) -> dict[str, list[Label]]:
        """Predicted label arrays of some images of a view, by task, at the size of the transformed image."""
        self._prepare(weights, view)
        images = default_collate([view[position, 0]["image"] for position in positions])
        outputs = self.resident(self.fabric.to_device(images))
        return {name: [task.predict(output.cpu()) for output in outputs[name]] for name, task in view.tasks.items()}

    def _prepare(self, weights: Mapping[str, PartState], view: View) -> None:
        self.load(weights)
        self.module.active = tuple(view.tasks)
        self.module.eval()
