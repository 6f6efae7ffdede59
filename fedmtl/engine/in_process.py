"""Runs clients one after the other in this process, on one resident model an architecture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import torch
from lightning import Fabric
from torch import Tensor

from fedmtl.aggregation import PartUpdate, Update, UploadTransform
from fedmtl.aggregation.upload import transform_upload
from fedmtl.algorithms import LocalRound, Message
from fedmtl.client import SERVERS, Client, ClientModule, LocalTraining, Plan
from fedmtl.client_state import ClientState
from fedmtl.data import View
from fedmtl.data.loader import Loader, StoredOrder
from fedmtl.data.source import Example
from fedmtl.data.transforms import own_size
from fedmtl.engine.ranks import Ranks, Team
from fedmtl.engine.resident import Resident
from fedmtl.engine.tally import Tally
from fedmtl.errors import UserError
from fedmtl.payload import Schema, dense_size
from fedmtl.seeding import derive_seed
from fedmtl.tasks.base import Label
from fedmtl.vector import Layout, PartState, State


@dataclass(frozen=True)
class Share:
    """Every `step`-th image of a batch, from the one of number `first`."""

    first: int = 0
    step: int = 1


WHOLE = Share()


@dataclass
class TrainingResult:
    """What a client's local training gave.

    Attributes:
        update: what it sends, in the coordinates of its own architecture.
        state: what it keeps, if the server accepts the update.
        losses: mean training losses, ``"loss"`` and each task's.
        raw: the encoder's update before the upload transforms, if it was asked for.
    """

    update: Update
    state: ClientState
    losses: dict[str, float]
    raw: Tensor | None = None


class InProcess:
    """The engine of one process and one device.

    Args:
        fabric: a single-device Fabric.
        module: the model of the server's architecture.
        local: how clients train.
        upload: transforms of a client's update, in order.
        shared: the parts that clients send; others stay with them.
        seed: the run's seed.
        rounds: rounds of the whole run.
        workers: worker processes that decode images.
        eval_batch_size: images a batch in evaluation.
        channels_last: whether images lie in memory with their channels last.
        compile: whether models go through `torch.compile`.

    Attributes:
        resident: the model of the server's architecture.
        residents: the model of each architecture, by name.
        on_batch: called after every batch, in training and in evaluation.
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
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        self.fabric, self.local, self.upload, self.shared = fabric, local, list(upload), shared
        self.seed, self.rounds, self.eval_batch_size = seed, rounds, eval_batch_size
        self.channels_last, self.compile = channels_last, compile
        self.on_batch: Callable[[], None] = lambda: None
        self.resident = self._settle(module)
        self.residents = {SERVERS: self.resident}
        self._loader = Loader(workers=workers, pin=fabric.device.type == "cuda")
        self._share = WHOLE
        self._upcoming: list[tuple[str, int]] = []  # client and round of the batches that are being made
        self._batches: Iterator[list[Example]] = iter(())

    def add_architecture(
        self, name: str, module: ClientModule, *, match: Literal["shape", "leading"], private: Sequence[str]
    ) -> Resident:
        """Adds a model of another architecture that some clients have; arguments as in `ClientGroup`."""
        resident = self.residents[name] = self._settle(module)
        resident.match(self.resident, by=match, private=private)
        return resident

    def _settle(self, module: ClientModule) -> Resident:
        """Makes a model resident."""
        if self.channels_last:
            module.memory_format = torch.channels_last
        resident = Resident(self.fabric, module)
        if self.compile:  # each part on its own: clients have different heads
            for part in module.model.parts().values():
                part.compile()
        return resident

    def layouts(self) -> dict[str, Layout]:
        """Where each tensor lies in the parts of the server's model."""
        return {name: part.layout for name, part in self.resident.parts.items()}

    def state(self) -> State:
        """A copy of the weights of the server's architecture."""
        return self.resident.state()

    def load(self, state: Mapping[str, PartState]) -> None:
        """Puts weights into the model of the server's architecture."""
        self.resident.load(state)

    def weights_of(self, client: Client, state: State) -> State:
        """The model that a client is measured by: its own where it has one, else what it would start a round from."""
        kept = self._here(client.state)
        return kept.own or self._start(client, kept, state)

    def start_of(self, client: Client, state: State) -> State:
        """What a client starts a round from: the global parts that it shares, its own weights for the others."""
        return self._start(client, self._here(client.state), state)

    def _start(self, client: Client, kept: ClientState, state: State) -> State:
        resident = self.residents[client.architecture]
        return {
            name: resident.start(name, state[name], kept.personal.get(name), shared=self.shared(name))
            for name in client.parts
        }

    def download_bytes(self, client: Client, state: State, beside: Message) -> int:
        """Encoded size of what a client gets: the global parts that it shares, and what the algorithm sends beside
        them."""
        resident = self.residents[client.architecture]
        shared = [name for name in client.parts if self.shared(name)]
        own = {key: {name: v for name, v in vectors.items() if name in shared} for key, vectors in beside.items()}
        received = {name: resident.received(name, state[name]) for name in shared}
        return dense_size(received, {key: vectors for key, vectors in own.items() if vectors}) if shared else 0

    def prepare(self, clients: Sequence[Client], round: int, *, share: Share = WHOLE) -> None:
        """Has the batches of these clients made in this order, so that none waits for its first.

        Args:
            clients: who trains next.
            round: number of the round, from 1.
            share: which images of each batch are wanted.
        """
        self._share = share
        self._upcoming = [(client.name, round) for client in clients]
        self._batches = self._loader(
            (client.images, keys[share.first :: share.step])
            for client in clients
            for epoch in self.local.order(client, seed=self.seed, round=round)
            for keys in epoch
        )

    def close(self) -> None:
        """Ends the processes that make batches."""
        self._upcoming, self._batches = [], iter(())
        self._loader.close()

    def train(
        self,
        client: Client,
        state: State,
        round: int,
        on_step: Callable[[], None],
        *,
        beside: Message | None = None,
        keep_raw: bool = False,
        team: Team | None = None,
    ) -> TrainingResult:
        """Trains a client on its images, from the global state (and its own parts).

        Args:
            client: the client.
            state: the global state.
            round: number of the round, from 1.
            on_step: called after every step.
            beside: what the server sends beside the model.
            keep_raw: whether to give the encoder's update as it was before the upload transforms, too.
            team: the ranks that have the rest of each batch; of these, too, `prepare` must have been told.
        """
        resident = self.residents[client.architecture]
        resident.module.active = client.tasks
        before = self._here(client.state)
        start = self._start(client, before, state)
        run = LocalRound(
            parts={name: resident.parts[name] for name in client.parts},
            start={name: part.vector for name, part in start.items()},
            shared=frozenset(name for name in client.parts if self.shared(name)),
            received=beside or {},
            kept=dict(before.algorithm),
        )

        def step() -> None:
            on_step()
            self.on_batch()

        plan = self._plan(client, round)
        part = (self._share.first,) if self._share.first else ()
        # for dropout and drop path; torch's own function prepares all kinds of devices, which takes a while
        generator = torch.default_generator if self.fabric.device.type == "cpu" else torch
        generator.manual_seed(derive_seed(self.seed, "train", client.name, round, *part))

        def fit(*, personal: bool) -> tuple[dict[str, float], dict[str, Any]]:
            found = self.local.fit(
                self.fabric,
                resident.wrapped,
                run,
                [(phase, epochs) for phase, epochs in plan if phase.personal == personal],
                round=round,
                rounds=self.rounds,
                optimizer_states=before.optimizer,
                on_step=step,
                combine=team.combine if team else None,
            )
            if team:
                team.mean(buffer for name in client.parts for buffer in run.parts[name].buffers.values())
            return found

        resident.load(start)
        losses, optimizers = fit(personal=False)
        deltas = {name: resident.update(name, start[name]) for name in client.parts if name in run.shared}
        buffers = {
            name: {key: buffer.clone() for key, buffer in resident.sent_buffers(name).items()} for name in deltas
        }
        own = [name for name in client.parts if name not in deltas or name in resident.matches]
        personal = {name: run.parts[name].read() for name in own}
        raw = deltas["encoder"].clone() if keep_raw and deltas else None
        message = self.local.algorithm.finish(run, deltas)
        if raw is not None and not self.upload and torch.equal(raw, deltas["encoder"]):
            raw = deltas["encoder"]  # nothing changes it
        kept = ClientState(
            optimizers,
            personal=personal,
            algorithm=run.kept,
            upload=before.upload,
        )
        if any(phase.personal for phase, _ in plan):
            resident.load(before.own or start)
            found, more = fit(personal=True)
            losses |= {f"personal_{name}": value for name, value in found.items()}
            optimizers |= more
            kept.own = {name: run.parts[name].read() for name in client.parts}
        if team:
            means = torch.tensor(list(losses.values()), device=self.fabric.device)
            team.mean([means])
            losses = dict(zip(losses, means.tolist(), strict=True))
        sent = {name: PartUpdate(delta, buffers[name]) for name, delta in deltas.items()}
        update = Update(client.name, len(client.images), sent, message, kept.is_finite())
        if sent and self.upload and update.is_finite():  # the server refuses it otherwise
            layouts = {name: resident.layout(name) for name in sent}
            update.parts, kept.upload = transform_upload(
                self.upload,
                sent,
                layouts,
                before.upload,
                client=client.name,
                round=round,
                rounds=self.rounds,
                seed=self.seed,
            )
        if self.fabric.device.type != "cpu":
            kept = kept.to(torch.device("cpu"))  # where what a client keeps waits for its next turn
        return TrainingResult(update, kept, losses, raw)

    def _here(self, kept: ClientState) -> ClientState:
        """What a client keeps, on the device."""
        return kept if self.fabric.device.type == "cpu" else kept.to(self.fabric.device)

    def sent_layouts(self, client: Client) -> dict[str, Layout]:
        """Where each tensor lies in the updates that a client sends, by part."""
        resident = self.residents[client.architecture]
        return {name: resident.layout(name) for name in client.parts if self.shared(name)}

    def schema(self, client: Client) -> Schema:
        """What a client's encoded updates must hold."""
        resident = self.residents[client.architecture]
        layouts = self.sent_layouts(client)
        return Schema(
            {name: (layout, resident.sent_buffers(name)) for name, layout in layouts.items()}, len(client.images)
        )

    def place(self, client: Client, update: Update) -> Update:
        """A client's update in the coordinates of the server's state."""
        resident = self.residents[client.architecture]
        parts = {name: resident.place(name, part) for name, part in update.parts.items()}
        return replace(update, parts=parts)

    def _plan(self, client: Client, round: int) -> Plan:
        """The phases with their batches; made for this client alone if it is not the next of those prepared."""
        if self._upcoming[:1] != [(client.name, round)]:
            self.prepare([client], round)
        del self._upcoming[0]
        batches = (_whole(batch, client) for batch in self._batches)
        order = self.local.order(client, seed=self.seed, round=round)
        epochs = iter([islice(batches, len(epoch)) for epoch in order])
        return [(phase, list(islice(epochs, phase.epochs))) for phase in self.local.phases(client)]

    @torch.inference_mode()
    def evaluate(
        self,
        weights: Mapping[str, PartState],
        view: View,
        *,
        exact: bool = True,
        architecture: str = SERVERS,
        ranks: Ranks | None = None,
    ) -> dict[str, dict[str, float]]:
        """Every metric of the view's tasks, by task, of the model with these weights, at the images' own sizes.

        Args:
            weights: parts of the model.
            view: the images.
            exact: whether tasks whose metric has a faster setting are to measure exactly.
            architecture: which model the weights are of.
            ranks: who shares in the work, each taking some batches; all get the numbers. None does it alone.
        """
        resident = self._ready(weights, view, architecture)
        device = self.fabric.device if self.fabric.device.type != "mps" else torch.device("cpu")  # MPS lacks float64
        metrics = {name: task.metric(exact=exact).to(device) for name, task in view.tasks.items()}
        tally = Tally(metrics, ranks)
        batches = list(StoredOrder(len(view), self.eval_batch_size))
        for batch in self._loader((view, keys) for keys in tally.share(batches)):
            tally.start_batch()
            for piece in batch:
                outputs = self._outputs(resident, piece)
                for name, metric in metrics.items():
                    metric.update(outputs[name].to(device), piece[name].to(device))
                tally.end_piece()
            self.on_batch()
        tally.join()
        return {name: {k: float(v) for k, v in metric.compute().items()} for name, metric in metrics.items()}

    @torch.inference_mode()
    def predict(
        self, weights: Mapping[str, PartState], view: View, positions: Sequence[int], *, architecture: str = SERVERS
    ) -> dict[str, list[Label]]:
        """Predicted label arrays of some images of a view, by task, at the images' own sizes."""
        resident = self._ready(weights, view, architecture)
        predictions: dict[str, list[Label]] = {name: [] for name in view.tasks}
        for batch in self._loader((view, [(position, 0)]) for position in positions):
            for name, output in self._outputs(resident, batch[0]).items():
                predictions[name].append(view.tasks[name].predict(output[0].cpu()))
        return predictions

    def _outputs(self, resident: Resident, piece: Example) -> dict[str, Tensor]:
        """Outputs of the active tasks in fp32, each at the size of its target."""
        window = piece["window"][0].tolist()
        outputs: dict[str, Tensor] = resident.wrapped(self.fabric.to_device(piece["image"]))
        return {name: own_size(output.float(), window, piece[name].shape[-2:]) for name, output in outputs.items()}

    def _ready(self, weights: Mapping[str, PartState], view: View, architecture: str) -> Resident:
        resident = self.residents[architecture]
        resident.load(weights)
        resident.module.active = tuple(view.tasks)
        resident.module.train()  # some backbones keep, in eval, what follows from weights, until they train
        resident.module.eval()
        return resident


def _whole(batch: list[Example], client: Client) -> Example:
    """The one piece of a training batch."""
    if len(batch) > 1:
        raise UserError(f"data: {client.name} has images of different sizes, which can't be stacked; set crop")
    return batch[0]
