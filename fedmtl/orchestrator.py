"""The round: sample clients, train them, merge their updates, evaluate, log, checkpoint."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import safetensors.torch

from fedmtl.checkpoint import Checkpoints
from fedmtl.client import SERVERS, Client, ClientState
from fedmtl.data import View
from fedmtl.delta_m import delta_m, load_baseline, mean, primary_metrics
from fedmtl.diagnostics import Diagnostics, WarningSigns
from fedmtl.engine import InProcess
from fedmtl.seeding import numpy_stream
from fedmtl.server import Server
from fedmtl.tracking import RunDirectory, Tracker
from fedmtl.tracking.base import Picture
from fedmtl.tracking.display import Display
from fedmtl.tracking.figures import save_sheet, strips
from fedmtl.vector import State

log = logging.getLogger(__name__)

TaskMetrics = dict[str, dict[str, float]]  # numbers of each metric, by task


class Orchestrator:
    """Moves weights between clients and server, and measures what comes of it.

    Args:
        engine: where clients run.
        server: the server; it has been started.
        clients: all clients.
        validation: the whole val split of each data set, by its name, with the labels of all tasks.
        unified: whether all parts are shared, so that there is one model to evaluate; else each client's own
            model is evaluated on its tasks, and a task's numbers are the mean over the clients that have it.
        rounds: rounds of the run.
        seed: the run's seed.
        participation: share of the clients that train in a round.
        eval_every: rounds between evaluations; the last round always has one.
        checkpoint_every: rounds between checkpoints; the last round always has one.
        pictures: how many validation images are drawn at an evaluation.
        diagnostics: measures how updates interfere, None for not at all.

    Attributes:
        baseline: name and primary metrics (by task) that Δm compares with, None for no Δm.
    """

    def __init__(
        self,
        *,
        engine: InProcess,
        server: Server,
        clients: Sequence[Client],
        validation: Mapping[str, View],
        unified: bool,
        rounds: int,
        seed: int,
        participation: float = 1.0,
        eval_every: int = 1,
        checkpoint_every: int = 1,
        pictures: int = 4,
        diagnostics: Diagnostics | None = None,
    ) -> None:
        self.engine, self.server, self.clients, self.validation = engine, server, list(clients), dict(validation)
        self.unified, self.rounds, self.seed, self.participation = unified, rounds, seed, participation
        self.eval_every, self.checkpoint_every = eval_every, checkpoint_every
        self.pictures, self.diagnostics = pictures, diagnostics
        self.baseline: Mapping[str, Any] | None = None
        self.primary = primary_metrics({head: t for view in validation.values() for head, t in view.tasks.items()})
        self.measured_on = {name: len(view) for name, view in validation.items()}
        self.signs = WarningSigns(self.primary, {client.name: client.tasks for client in clients})
        self.details: dict[str, Any] = {}  # of the last round's diagnostics
        self.refused: list[str] = []  # clients whose updates the last round left out
        self.round = 0  # rounds done
        self.first: dict[str, float] = {}  # each task's first primary metric that can be compared with
        self.best: dict[str, Any] | None = None
        self.last: dict[str, Any] | None = None

    def run(
        self, directory: RunDirectory, tracker: Tracker | None, display: Display, config: Mapping[str, Any]
    ) -> None:
        """All rounds that are still to be done."""
        checkpoints = Checkpoints(directory.checkpoints)
        for round in range(self.round + 1, self.rounds + 1):
            display.start_round(round)
            started = perf_counter()
            row: dict[str, Any] = {"round": round, **self.train(round, display)}
            row["time/train"] = perf_counter() - started
            improved = False
            final = round == self.rounds
            if final or round % self.eval_every == 0:
                started = perf_counter()
                metrics = self.evaluate(exact=final)
                improved = self.note(round, metrics)
                row |= flat(self.last)
                row["time/evaluate"] = perf_counter() - started
                if self.pictures:
                    self._draw(round, directory, tracker)
            self.round = round
            directory.append(row)
            if self.details:
                directory.append_details({"round": round, **self.details})
            for warning in self.signs.look(row, self.refused):
                log.warning("round %d: %s", round, warning)
            if tracker is not None:
                tracker.log(row)
            display.end_round(row)
            if final or improved or round % self.checkpoint_every == 0:
                identity = tracker.identity if tracker else None
                checkpoints.save(
                    {**self.state_dict(), "config": config, "tracker": identity}, round=round, best=improved
                )

    def train(self, round: int, display: Display) -> dict[str, Any]:
        """One round up to the server's step; returns its numbers."""
        row: dict[str, Any] = {}
        sent = 0
        chosen = self.sample(round)
        self.engine.prepare(chosen, round)
        beside = self.server.broadcast()
        diagnosing = self.diagnostics is not None and self.diagnostics.due(round)
        for client in chosen:
            display.start_client(client.name)
            result = self.engine.train(
                client, self.server.model_for(client.name), round, display.step, beside=beside, keep_raw=diagnosing
            )
            for name, value in result.losses.items():
                if name in ("loss", "personal_loss") or len(client.tasks) > 1:
                    row[f"train/{client.name}/{name}"] = value if math.isfinite(value) else None
            display.end_client(result.losses.get("loss", math.nan))
            if self.server.receive(result.update):
                client.state = result.state  # a refused client goes on from its last good state
                sent += result.update.num_bytes()
                if diagnosing and self.diagnostics and result.raw is not None:
                    encoder = result.update.parts["encoder"]
                    self.diagnostics.observe(client.name, result.raw, encoder, self.server.weight(result.update))
        self.refused = self.server.refused
        row["server/refused"] = len(self.refused)
        row["bytes/up"] = sent
        row["bytes/down"] = sum(self.engine.download_bytes(client, self.server.state, beside) for client in chosen)
        before = self.server.state["encoder"].vector.clone() if diagnosing else None
        self.server.step()
        self.details = {}
        if before is not None and self.diagnostics:
            layout, after = self.engine.layouts()["encoder"], self.server.state["encoder"].vector
            numbers, self.details = self.diagnostics.measure(layout, before, after)
            row |= numbers
        return row

    def sample(self, round: int) -> list[Client]:
        """The clients that train in a round, in their fixed order."""
        count = max(1, round_half_up(self.participation * len(self.clients)))
        chosen = numpy_stream(self.seed, "participation", round).permutation(len(self.clients))[:count]
        return [self.clients[i] for i in sorted(chosen)]

    def evaluate(self, *, exact: bool = True) -> TaskMetrics:
        """Every metric of every task on the whole validation splits; `exact` as in `Task.metric`."""
        found: dict[str, list[dict[str, float]]] = {name: [] for name in self.primary}
        for architecture, weights, view in self._models():
            for name, values in self.engine.evaluate(weights, view, exact=exact, architecture=architecture).items():
                found[name].append(values)
        return {
            name: {metric: sum(v[metric] for v in several) / len(several) for metric in several[0]}
            for name, several in found.items()
        }

    def results(self, name: str) -> dict[str, Any]:
        """What results.json says: last and best metrics, and Δm with its baseline."""
        return {
            "name": name,
            "rounds": self.rounds,
            "primary": {task: asdict(primary) for task, primary in self.primary.items()},
            "validation": self.measured_on,
            "baseline": self.baseline,
            "last": self.last,
            "best": self.best,
        }

    def summary(self) -> dict[str, float]:
        """Last and best numbers, flat, for a tracker."""
        return {
            f"{when}/{key.removeprefix('val/')}": value
            for when, entry in (("last", self.last), ("best", self.best))
            for key, value in flat(entry).items()
        }

    def export(self, directory: RunDirectory) -> None:
        """Saves the unified model's weights as ``unified/model.safetensors``."""
        self.engine.load(self.server.state)
        model = self.engine.resident.module.model
        weights = {name: value.detach().clone().cpu() for name, value in model.state_dict().items()}
        directory.unified.mkdir(exist_ok=True)
        safetensors.torch.save_file(weights, directory.unified / "model.safetensors")

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs; random streams need nothing, they come from (seed, purpose, client, round)."""
        clients = {client.name: client.state.state_dict() for client in self.clients}
        progress = {"round": self.round, "first": self.first, "best": self.best, "last": self.last}
        progress["signs"] = self.signs.state_dict()
        return {**progress, "baseline": self.baseline, "server": self.server.state_dict(), "clients": clients}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict` of a run with the same configuration."""
        self.server.load_state_dict(state["server"])
        for client in self.clients:
            client.state = ClientState.from_state_dict(state["clients"][client.name])
        self.round, self.first, self.best, self.last = (state[key] for key in ("round", "first", "best", "last"))
        self.baseline = state["baseline"]
        self.signs.load_state_dict(state["signs"])

    def compare_with(self, baseline: str) -> None:
        """Measures Δm from now on against a finished run, given by its folder or results.json.

        Raises:
            UserError: it is not there, or can't be compared with.
        """
        self.baseline = load_baseline(baseline, self.primary, self.measured_on)

    def note(self, round: int, metrics: TaskMetrics) -> bool:
        """Keeps the evaluation as the last, and as the best if it is; the measure of best is Δm against the
        baseline, or where there is none against the run's own first evaluation."""
        values = {task: metrics[task][p.metric] for task, p in self.primary.items()}
        self.first = {task: value for task, value in values.items() if value and math.isfinite(value)} | self.first
        changes = delta_m(values, self.baseline["metrics"], self.primary) if self.baseline else None
        score = mean(changes or delta_m(values, self.first, self.primary)) or 0.0
        self.last = {
            "round": round,
            "metrics": metrics,
            "delta_m": {"mean": mean(changes), "tasks": changes} if changes else None,
            "score": score if math.isfinite(score) else -math.inf,
        }
        improved = self.best is None or self.last["score"] > self.best["score"]
        if improved:
            self.best = self.last
        return improved

    def _draw(self, round: int, directory: RunDirectory, tracker: Tracker | None) -> None:
        drawn: dict[str, Sequence[Picture]] = {}
        for name, whole in self.validation.items():
            positions = range(min(self.pictures, len(whole)))
            sheet: dict[str, Sequence[Picture]] = {}
            for architecture, weights, view in self._models():
                new = [head for head in view.tasks if head in whole.tasks and head not in sheet]
                if new:  # of several clients with one task, the first is drawn
                    part = view.only(new)
                    sheet |= strips(
                        part, positions, self.engine.predict(weights, part, positions, architecture=architecture)
                    )
            suffix = f"_{name}" if len(self.validation) > 1 else ""
            save_sheet(directory.figures / f"round_{round:06d}{suffix}.png", sheet)
            drawn |= sheet
        if tracker is not None:
            tracker.pictures(round, drawn)

    def _models(self) -> Iterator[tuple[str, State, View]]:
        """What there is to be measured, with its architecture: the unified model on everything, or each client's own
        on its tasks."""
        if self.unified:
            for view in self.validation.values():
                yield SERVERS, self.server.state, view
            return
        for client in self.clients:
            view = self.validation[client.data].only(client.tasks, input=client.images.input)
            yield client.architecture, self.engine.weights_of(client, self.server.model_for(client.name)), view


def flat(evaluation: Mapping[str, Any] | None) -> dict[str, float]:
    """An evaluation as the values of one row: ``val/<task>/<metric>``, ``val/<task>/delta``, ``val/delta_m``."""
    if evaluation is None:
        return {}
    row = {f"val/{task}/{name}": v for task, values in evaluation["metrics"].items() for name, v in values.items()}
    if evaluation["delta_m"]:
        row |= {f"val/{task}/delta": change for task, change in evaluation["delta_m"]["tasks"].items()}
        row["val/delta_m"] = evaluation["delta_m"]["mean"]
    return row


def round_half_up(value: float) -> int:
    """Nearest whole number; Python's `round` would take 2.5 to 2."""
    return math.floor(value + 0.5)
