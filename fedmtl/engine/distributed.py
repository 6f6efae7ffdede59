"""A round's clients spread over the ranks of a job: who trains whom, and how updates come to every rank's server."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Literal, TypeVar

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from fedmtl.aggregation import PartUpdate, Update
from fedmtl.algorithms import Message
from fedmtl.client import Client
from fedmtl.client_state import ClientState, Kept, file_name
from fedmtl.data import View
from fedmtl.engine.in_process import WHOLE, InProcess, Share, TrainingResult
from fedmtl.engine.placement import Placement
from fedmtl.engine.ranks import Ranks, Team
from fedmtl.payload import Values, decode, encode, encoded_size, through
from fedmtl.server import Server
from fedmtl.tasks.base import Label
from fedmtl.tracking.display import Display
from fedmtl.vector import Layout, State

log = logging.getLogger(__name__)

T = TypeVar("T")
Observe = Callable[[str, Tensor, PartUpdate, float], None]  # as `Diagnostics.observe`
Trained = tuple[TrainingResult, "Report"]
Metrics = dict[str, dict[str, float]]  # numbers of each metric, by task


@dataclass
class Report:
    """What all ranks know of a client's round.

    Attributes:
        client: its name.
        losses: mean training losses, ``"loss"`` and each task's.
        seconds: how long it trained.
        bytes_up: size of its encoded update.
        stateful: whether it keeps something.
        healthy: whether the weights that it keeps to itself are finite.
        accepted: whether the server took its update; None before it was offered.
    """

    client: str
    losses: dict[str, float]
    seconds: float
    bytes_up: int
    stateful: bool
    healthy: bool
    accepted: bool | None = None


class Distributed:
    """Trains and evaluates on all ranks. Every rank has a server of its own; all do the same with the same updates.

    Every method must be called by all ranks, in the same order.

    Args:
        worker: trains one client at a time in this process.
        clients: all clients of the federation.
        ranks: the processes of the job.
        reduce: as in `FabricConfig`.
        values: number format of the values that clients send.

    Attributes:
        placement: where clients are.
    """

    def __init__(
        self,
        worker: InProcess,
        clients: Sequence[Client],
        *,
        ranks: Ranks | None = None,
        reduce: Literal["exact", "fast"] = "exact",
        values: Values = "fp32",
    ) -> None:
        self.worker, self.clients = worker, {client.name: client for client in clients}
        self.ranks, self.reduce, self.values = ranks or Ranks(), reduce, values
        self.states: Path | None = None  # where what clients keep waits in files, if not in memory
        self.placement = Placement(self.clients, worker.local, self.ranks)
        self._pending: dict[str, Kept] = {}
        self._unwritten: dict[str, str] = {}  # of these, those for which the disk has no room, and why

    def train(
        self,
        chosen: Sequence[Client],
        server: Server,
        round: int,
        display: Display,
        *,
        observe: Observe | None = None,
    ) -> list[Report]:
        """Trains clients and gives their updates to the server, which has not made its step afterwards.

        What clients keep is theirs only after `commit`.

        Args:
            chosen: who trains, in the order in which updates are summed.
            server: this rank's server.
            round: number of the round, from 1.
            display: whom to tell.
            observe: gets the update of every accepted client before the upload transforms, and what was sent.

        Returns:
            A report of each client, in their order.
        """
        self._pending = {}
        if self.ranks.world > 1 and self.reduce == "fast":
            return self._train_fast(chosen, server, round, display)
        if self.ranks.world > 1:
            return self._train_exact(chosen, server, round, display, observe)
        return [
            self._deliver(
                self._train(client, server, round, display, raw=observe is not None), client, server, round, observe
            )
            for client in self._prepare(chosen, round)
        ]

    def keep_in(self, directory: Path) -> None:
        """Has what clients keep wait in files there, instead of in memory."""
        directory.mkdir(parents=True, exist_ok=True)
        self.states = directory

    def on_batch(self, call: Callable[[], None] | None) -> None:
        """What is to be called after every batch, in training and in evaluation; None for nothing."""
        self.worker.on_batch = call or (lambda: None)

    def steps(self, client: Client) -> int:
        """Local steps of a client in a round."""
        return self.placement.steps[client.name]

    def download_bytes(self, client: Client, server: Server, beside: Message) -> int:
        """Encoded size of what a client gets for a round; `beside` is what the server broadcasts."""
        return self.worker.download_bytes(client, server.state, beside)

    def layouts(self) -> dict[str, Layout]:
        """Where each tensor lies in the parts of the server's model."""
        return self.worker.layouts()

    def weights(self, state: State) -> dict[str, Tensor]:
        """The state dict of the server's model with these weights."""
        self.worker.load(state)
        return {name: value.clone().cpu() for name, value in self.worker.resident.module.model.state_dict().items()}

    def commit(self) -> None:
        """Ends a round: what its clients keep is theirs from now on."""
        unwritten = {name: why for found in self.ranks.gather(self._unwritten) for name, why in found.items()}
        for name, why in unwritten.items():
            log.warning("what %s keeps can't be written (%s); it waits in memory for the next checkpoint", name, why)
        in_memory = [n for n, kept in self._pending.items() if kept.round and (self.states is None or n in unwritten)]
        for name, kept in self._pending.items():
            if name in unwritten:
                kept.path = None
            elif kept.path is not None:
                kept.value = None
            self.clients[name].kept = kept
        self.placement.note(self._pending, in_memory)
        self._pending, self._unwritten = {}, {}

    def evaluate(
        self, server: Server, views: Mapping[str, View], *, unified: bool, exact: bool = True
    ) -> dict[str, list[dict[str, float]]]:
        """Every metric of every task on these views, by the data set's name: one entry a task of the unified model, or
        one for each client that has it, of that client's model, in the order of clients."""
        found: dict[str, list[dict[str, float]]] = {}
        measured: list[Metrics] = []
        if unified:
            for view in views.values():
                measured.append(self.worker.evaluate(server.state, view, exact=exact, ranks=self.ranks))
        else:
            here = {
                client.name: self._evaluate_own(client, server, views, exact)
                for client in self.clients.values()
                if self.placement.homes[client.name] == self.ranks.rank
            }
            everywhere = {name: own for rank in self.ranks.gather(here) for name, own in rank.items()}
            measured = [everywhere[name] for name in self.clients]
        for metrics in measured:
            for task, values in metrics.items():
                found.setdefault(task, []).append(values)
        return found

    def predict(
        self, server: Server, views: Mapping[str, View], count: int, *, unified: bool
    ) -> Iterator[tuple[str, View, dict[str, list[Label]]]]:
        """Predictions for the first images of each view, by the data set's name: of the unified model, or for each
        task of the first client that has it."""
        for name, whole in views.items():
            positions = range(min(count, len(whole)))
            if unified:
                here = self.worker.predict(server.state, whole, positions) if self.ranks.leads else {}
                yield name, whole, here
                continue
            seen: set[str] = set()
            for client in self.clients.values():
                new = [task for task in client.tasks if task in whole.tasks and task not in seen]
                if not new or client.data != name:
                    continue
                seen.update(new)
                view = whole.only(new, input=client.images.input)
                home = self.placement.homes[client.name]
                labels: dict[str, list[Label]] = {}
                if home == self.ranks.rank:
                    weights = self.worker.weights_of(client, server.model_for(client.name))
                    labels = self.worker.predict(weights, view, positions, architecture=client.architecture)
                yield name, view, self.ranks.share(labels, home)

    def kept(self) -> dict[str, Kept]:
        """What every client keeps, of those that keep something, by name."""
        return {name: client.kept for name, client in self.clients.items() if client.kept.round}

    def restore(self, rounds: Mapping[str, int], directory: Path) -> None:
        """Gives clients what they kept after the rounds given by name, from files in `directory`."""
        self.placement.forget()
        for name, client in self.clients.items():
            round = rounds.get(name, 0)
            client.kept = Kept(round, path=directory / file_name(name, round)) if round else Kept()

    def unsaved(self) -> dict[str, Kept]:
        """What this rank is to write to files for a checkpoint, by client."""
        return {
            name: kept
            for name, kept in self.kept().items()
            if kept.value is not None and kept.path is None and self.placement.homes[name] == self.ranks.rank
        }

    def _prepare(self, clients: Sequence[Client], round: int, share: Share = WHOLE) -> Sequence[Client]:
        self.worker.prepare(clients, round, share=share)
        return clients

    def _train(
        self,
        client: Client,
        server: Server,
        round: int,
        display: Display,
        *,
        raw: bool = False,
        team: Team | None = None,
    ) -> Trained:
        """Trains a client here."""
        display.start_client(client.name)
        started = perf_counter()
        result = self.worker.train(
            client,
            server.model_for(client.name),
            round,
            display.step,
            beside=server.broadcast(),
            keep_raw=raw,
            team=team,
        )
        seconds = perf_counter() - started
        display.end_client(result.losses.get("loss", math.nan))
        layouts = self.worker.sent_layouts(client)
        size = encoded_size(result.update, layouts, self.values) if layouts else 0
        result.update = through(result.update, layouts, self.values)
        stateful, healthy = not result.state.is_empty(), result.update.healthy
        return result, Report(client.name, result.losses, seconds, size, stateful, healthy)

    def _deliver(
        self, trained: Trained, client: Client, server: Server, round: int, observe: Observe | None = None
    ) -> Report:
        """Gives a client's update, as it arrived, to this rank's server."""
        result, report = trained
        update = self.worker.place(client, result.update)
        report.accepted = server.receive(update)
        if report.accepted:  # one that is refused goes on from its last good state
            self._pending[client.name] = self._keep(client, result.state, round)
            if observe is not None and result.raw is not None:
                sent, raw, before = update.parts["encoder"], result.raw, result.update.parts["encoder"].delta
                # what came from another rank is another tensor
                if raw is before or (not self.worker.upload and torch.equal(raw, before)):
                    raw = sent.delta
                else:
                    beside = Update(client.name, update.examples, {"encoder": PartUpdate(raw)})
                    raw = self.worker.place(client, beside).parts["encoder"].delta
                observe(client.name, raw, sent, server.weight(update))
        return report

    def _keep(self, client: Client, state: ClientState, round: int) -> Kept:
        if state.is_empty():
            return Kept()
        kept = Kept(round, state)
        if self.states is not None:
            try:
                kept.write(self.states / file_name(client.name, round))
                kept.value = None
            except OSError as error:  # a full disk
                self._unwritten[client.name] = error.strerror or str(error)
        return kept

    def _train_exact(
        self, chosen: Sequence[Client], server: Server, round: int, display: Display, observe: Observe | None
    ) -> list[Report]:
        """Trains this rank's clients, then sends all updates to all, in the order of clients."""
        owners = self.placement.by_time([client.name for client in chosen])
        self.placement.move({name: [rank] for name, rank in owners.items()})
        mine = self._prepare([client for client in chosen if owners[client.name] == self.ranks.rank], round)
        host = torch.device("cpu")  # where updates wait for their turn
        trained = {
            c.name: self._to(host, self._train(c, server, round, display, raw=observe is not None)) for c in mine
        }
        reports = self._gather([report for _, report in trained.values()])
        for client in chosen:
            report, owner = reports[client.name], owners[client.name]
            result = trained.pop(client.name)[0] if owner == self.ranks.rank else None
            arrived = self._exchange(client, result, report, owner, raw=observe is not None)
            self._deliver((arrived, report), client, server, round, observe)
            if report.accepted and owner != self.ranks.rank:
                self._pending[client.name] = self._elsewhere(report, round)
            self.placement.measured(client.name, report.seconds)
        return [reports[client.name] for client in chosen]

    def _exchange(
        self, client: Client, result: TrainingResult | None, report: Report, owner: int, *, raw: bool
    ) -> TrainingResult:
        """A client's result on every rank; without what it keeps where that is not at home."""
        layouts = self.worker.sent_layouts(client)
        if not layouts:
            nothing = Update(client.name, len(client.images), {}, healthy=report.healthy)
            return result or TrainingResult(nothing, ClientState(), report.losses)
        own = None if result is None else encode(result.update, layouts, self.values)
        data = self.ranks.share_bytes(own, report.bytes_up, owner)
        before: Tensor | None = None
        if raw:
            own = None if result is None or result.raw is None else result.raw.cpu().numpy().view("u1")
            size = 4 * sum(layouts["encoder"].sizes)
            before = torch.from_numpy(self.ranks.share_bytes(own, size, owner).view("f4"))
        arrived = result
        if arrived is None:
            update = decode(data, self.worker.schema(client), client=client.name)
            arrived = TrainingResult(update, ClientState(), report.losses, before)
        moved = self._to(self.worker.fabric.device, replace(arrived, state=ClientState()))
        return replace(moved, state=arrived.state)  # what a client keeps waits where it is

    def _to(self, device: torch.device, value: T) -> T:
        """The same on a device."""
        return value if self.worker.fabric.device.type == "cpu" else move_data_to_device(value, device)

    def _train_fast(self, chosen: Sequence[Client], server: Server, round: int, display: Display) -> list[Report]:
        """Trains this rank's clients, or its share of one, sums their updates, and then those of all ranks at once.

        Who trains whom does not depend on what was measured, so that the same ranks sum in the same order again.
        """
        world, names = self.ranks.world, [client.name for client in chosen]
        teams = self.placement.teams(len(chosen)) if world > len(chosen) else []
        members = {name: [rank] for name, rank in self.placement.by_steps(names).items()}
        if teams:
            members = {name: team.ranks for name, team in zip(names, teams, strict=True)}
        self.placement.move(members)
        mine = [client for client in chosen if self.ranks.rank in members[client.name]]
        own = teams[names.index(mine[0].name)] if teams and mine else None
        team = own if own and own.size > 1 else None
        share = Share(team.ranks.index(self.ranks.rank), team.size) if team else WHOLE
        reports = []
        for client in self._prepare(mine, round, share):
            result, report = self._train(client, server, round, display, team=team)
            if share.first == 0:
                reports.append(self._deliver((result, report), client, server, round))
            else:
                self._pending[client.name] = Kept(round, result.state)  # the same as its first member's
        everybody = self._gather(reports)
        server.add_up(self.ranks.add, {name: bool(everybody[name].accepted) for name in names})
        for name in names:
            report = everybody[name]
            if not report.accepted:
                self._pending.pop(name, None)
            elif self.ranks.rank != members[name][0]:
                kept = self._elsewhere(report, round)
                if kept.round and name in self._pending:
                    kept.value = self._pending[name].value
                self._pending[name] = kept
        return [everybody[name] for name in names]

    def _elsewhere(self, report: Report, round: int) -> Kept:
        """What a client of another rank keeps, as this one knows it."""
        if not report.stateful:
            return Kept()
        path = self.states / file_name(report.client, round) if self.states is not None else None
        return Kept(round, path=path)

    def _gather(self, reports: Sequence[Report]) -> dict[str, Report]:
        """The reports of all ranks, by client."""
        return {report.client: report for several in self.ranks.gather(list(reports)) for report in several}

    def _evaluate_own(self, client: Client, server: Server, views: Mapping[str, View], exact: bool) -> Metrics:
        """The metrics of a client's own model on its tasks."""
        view = views[client.data].only(client.tasks, input=client.images.input)
        weights = self.worker.weights_of(client, server.model_for(client.name))
        return self.worker.evaluate(weights, view, exact=exact, architecture=client.architecture)
