"""Runs clients one after the other in this process, on one resident model whose weights are swapped in place."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from lightning import Fabric
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from fedmtl.aggregation import PartUpdate, Update, UploadTransform
from fedmtl.client import Client, ClientModule, ClientState, LocalTraining
from fedmtl.data import View
from fedmtl.data.loader import Loader, StoredOrder
from fedmtl.data.source import Example
from fedmtl.data.transforms import own_size
from fedmtl.errors import UserError
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
        self.seed, self.rounds, self.eval_batch_size = seed, rounds, eval_batch_size
        self.module = module
        self.resident = fabric.setup_module(module)
        self._loader = Loader(workers=workers, pin=fabric.device.type == "cuda")
        self._upcoming: list[tuple[str, int]] = []  # client and round of the batches that are being made
        self._batches: Iterator[list[Example]] = iter(())
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

    def prepare(self, clients: Sequence[Client], round: int) -> None:
        """Has the batches of these clients made in this order, so that none waits for its first."""
        self._upcoming = [(client.name, round) for client in clients]
        self._batches = self._loader(
            (client.images, keys)
            for client in clients
            for epoch in self.local.order(client, seed=self.seed, round=round)
            for keys in epoch
        )

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

    def _epochs(self, client: Client, round: int) -> list[Iterator[Example]]:
        """The batches of each local epoch; made for this client alone if it is not the next of those prepared."""
        if self._upcoming[:1] != [(client.name, round)]:
            self.prepare([client], round)
        del self._upcoming[0]
        batches = (_whole(batch, client) for batch in self._batches)
        return [islice(batches, len(epoch)) for epoch in self.local.order(client, seed=self.seed, round=round)]

    @torch.inference_mode()
    def evaluate(
        self, weights: Mapping[str, PartState], view: View, *, exact: bool = True
    ) -> dict[str, dict[str, float]]:
        """Every metric of the view's tasks, by task, of the model with these weights, at the images' own sizes.

        Args:
            weights: parts of the model.
            view: the images.
            exact: whether tasks whose metric has a faster setting are to measure exactly.
        """
        self._ready(weights, view)
        device = self.fabric.device if self.fabric.device.type != "mps" else torch.device("cpu")  # MPS lacks float64
        metrics = {name: task.metric(exact=exact).to(device) for name, task in view.tasks.items()}
        for batch in self._loader((view, keys) for keys in StoredOrder(len(view), self.eval_batch_size)):
            for piece in batch:
                outputs = self._outputs(piece)
                for name, metric in metrics.items():
                    metric.update(outputs[name].to(device), piece[name].to(device))
        return {name: {k: float(v) for k, v in metric.compute().items()} for name, metric in metrics.items()}

    @torch.inference_mode()
    def predict(self, weights: Mapping[str, PartState], view: View, positions: Sequence[int]) -> dict[str, list[Label]]:
        """Predicted label arrays of some images of a view, by task, at the images' own sizes."""
        self._ready(weights, view)
        predictions: dict[str, list[Label]] = {name: [] for name in view.tasks}
        for batch in self._loader((view, [(position, 0)]) for position in positions):
            for name, output in self._outputs(batch[0]).items():
                predictions[name].append(view.tasks[name].predict(output[0].cpu()))
        return predictions

    def _outputs(self, piece: Example) -> dict[str, Tensor]:
        """Outputs of the active tasks in fp32, each at the size of its target."""
        window = piece["window"][0].tolist()
        outputs: dict[str, Tensor] = self.resident(self.fabric.to_device(piece["image"]))
        return {name: own_size(output.float(), window, piece[name].shape[-2:]) for name, output in outputs.items()}

    def _ready(self, weights: Mapping[str, PartState], view: View) -> None:
        self.load(weights)
        self.module.active = tuple(view.tasks)
        self.module.eval()


def _whole(batch: list[Example], client: Client) -> Example:
    """The one piece of a training batch."""
    if len(batch) > 1:
        raise UserError(f"data: {client.name} has images of different sizes, which can't be stacked; set crop")
    return batch[0]
