"""The round: sample clients, train them, merge their updates, evaluate, log, checkpoint."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import safetensors.torch

from fedmtl.checkpoint import PATIENCE, Checkpoints
from fedmtl.client import Client
from fedmtl.data import View
from fedmtl.delta_m import complete_mean, delta_m, load_baseline, mean, primary_metrics
from fedmtl.diagnostics import Diagnostics, WarningSigns
from fedmtl.engine import Distributed, Report
from fedmtl.faults import Fault, Faults
from fedmtl.seeding import numpy_stream
from fedmtl.server import Server
from fedmtl.stopping import StopSignals
from fedmtl.tracking import RunDirectory, Tracker
from fedmtl.tracking.base import Picture, Segmented
from fedmtl.tracking.display import MANY_CLIENTS, Display
from fedmtl.tracking.figures import save_sheet, save_strips, strips
from fedmtl.tracking.segmented import segmentations

log = logging.getLogger(__name__)

TaskMetrics = dict[str, dict[str, float]]  # numbers of each metric, by task


class Orchestrator:
    """Moves weights between clients and server, and measures what comes of it.

    Args:
        engine: where clients run, with the same clients.
        server: the server; it has been started.
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
        faults: what goes wrong with clients, None for nothing.
        states_on_disk: whether what clients keep waits in files of the run's folder, not in memory.

    Attributes:
        trained: the numbers of a round whose evaluation is still to be done, None between rounds.
        baseline: name and primary metrics (by task) that Δm compares with, None for no Δm.
    """

    def __init__(
        self,
        *,
        engine: Distributed,
        server: Server,
        validation: Mapping[str, View],
        unified: bool,
        rounds: int,
        seed: int,
        participation: float = 1.0,
        eval_every: int = 1,
        checkpoint_every: int = 1,
        pictures: int = 4,
        diagnostics: Diagnostics | None = None,
        faults: Faults | None = None,
        states_on_disk: bool = False,
    ) -> None:
        self.engine, self.server, self.validation = engine, server, dict(validation)
        self.clients = list(engine.clients.values())
        self.unified, self.rounds, self.seed, self.participation = unified, rounds, seed, participation
        self.eval_every, self.checkpoint_every = eval_every, checkpoint_every
        self.pictures, self.diagnostics = pictures, diagnostics
        self.faults, self.states_on_disk = faults, states_on_disk
        self.baseline: Mapping[str, Any] | None = None
        self.primary = primary_metrics({head: t for view in validation.values() for head, t in view.tasks.items()})
        self.measured_on = {name: len(view) for name, view in validation.items()}
        tasks = {client.name: client.tasks for client in self.clients}
        self.signs = WarningSigns(self.primary, tasks, engine.worker.upload)
        self.details: dict[str, Any] = {}  # of the last round's diagnostics
        self.refused: list[str] = []  # clients whose updates the last round left out
        self.round = 0  # rounds done
        self.trained: dict[str, Any] | None = None
        self._moving = False  # whether the server is in the middle of its step
        self.first: dict[str, float] = {}  # each task's first primary metric that can be compared with
        self.best: dict[str, Any] | None = None
        self.last: dict[str, Any] | None = None

    def run(
        self, directory: RunDirectory, tracker: Tracker | None, display: Display, config: Mapping[str, Any]
    ) -> None:
        """All rounds that are still to be done.

        Every rank of a job runs this; the first one alone writes to the run's folder and to the tracker.

        Raises:
            Stopped: a signal asked for it; what was done is saved.
        """
        leads = self.engine.ranks.leads
        checkpoints = Checkpoints(directory.checkpoints, leads=leads)
        if self.states_on_disk:
            self.engine.keep_in(checkpoints.states)
        beside: dict[str, Any] = {"config": config, "tracker": tracker.identity if tracker else None}
        checkpoints.written = self.round
        with StopSignals() as stop:
            self.engine.on_batch(partial(_between_batches, stop, display))
            try:
                for round in range(self.round + 1, self.rounds + 1):
                    stop.check()
                    display.start_round(round)
                    if self.trained is None:
                        started = perf_counter()
                        self.trained = {"round": round, **self.train(round, display)}
                        self.trained["time/train"] = perf_counter() - started
                        self._moving = False
                    row = dict(self.trained)
                    final, improved = round == self.rounds, False
                    if final or round % self.eval_every == 0:
                        display.start_evaluation()
                        started = perf_counter()
                        improved = self.note(round, self.evaluate(exact=final))
                        row |= flat(self.last)
                        row["time/evaluate"] = perf_counter() - started
                        if self.pictures:
                            self._draw(round, directory, tracker)
                    self.round, self.trained = round, None
                    if leads:
                        self._log(row, directory, tracker)
                    display.end_round(row)
                    if final or improved or round % self.checkpoint_every == 0:
                        self._settle(checkpoints)
                        self.save(checkpoints, best=improved, **beside)
                self._settle(checkpoints)
            except BaseException as error:
                self.engine.ranks.leave()  # others may wait for this one
                checkpoints.give_up(PATIENCE)
                checkpoints.wait()
                if not isinstance(error, Exception):  # a second Ctrl-C
                    raise
                if not self._moving and (self.trained is not None or checkpoints.written < self.round):
                    self.save(checkpoints, **beside)
                stop.check(patience=0.5)  # a signal ends other ranks, too; their loss may be first
                raise
            finally:
                self.engine.on_batch(None)
                self.engine.worker.close()
                checkpoints.wait()

    def save(self, checkpoints: Checkpoints, *, best: bool = False, **beside: Any) -> None:
        """Begins to write a checkpoint with the run's state, what clients keep, and what stands `beside`."""
        kept = {name: kept.round for name, kept in self.engine.kept().items()}
        state = {**self.state_dict(), **beside}
        checkpoints.save(state, round=self.round, best=best, kept=kept, unsaved=self.engine.unsaved())

    def _settle(self, checkpoints: Checkpoints) -> None:
        """Returns when the last checkpoint is written by all ranks, or given up since one can't write its part."""
        if not checkpoints.leads:
            checkpoints.wait()
        if any(self.engine.ranks.gather(checkpoints.failed)):
            checkpoints.give_up(0)
        checkpoints.wait()
        checkpoints.give_up(math.inf)

    def _log(self, row: dict[str, Any], directory: RunDirectory, tracker: Tracker | None) -> None:
        """Notes a round's numbers, and warns of what they show."""
        directory.append(row)
        if self.details:
            directory.append_details({"round": row["round"], **self.details})
        for warning in self.signs.look(row, self.refused):
            log.warning("round %d: %s", row["round"], warning)
        if tracker is not None:
            with tracking(row["round"]):
                tracker.log(row)
                if self.details:
                    tracker.diagnostics(row["round"], self.details)

    def train(self, round: int, display: Display) -> dict[str, Any]:
        """One round up to the server's step; returns its numbers."""
        chosen, reached, row = self._answering(round)
        self.details, self.refused = {}, []
        beside = self.server.broadcast()
        row |= {"server/refused": 0, "bytes/up": 0}
        row["bytes/down"] = sum(self.engine.download_bytes(client, self.server, beside) for client in reached)
        if row.get("server/skipped"):
            return row
        diagnosing = self.diagnostics if self.diagnostics is not None and self.diagnostics.due(round) else None
        observe = diagnosing.observe if diagnosing is not None else None
        reports = self.engine.train(chosen, self.server, round, display, observe=observe)
        row |= self._losses(reports)
        self.refused = [report.client for report in reports if not report.accepted]
        row["server/refused"] = len(self.refused)
        row["bytes/up"] = sum(report.bytes_up for report in reports if report.accepted)
        before = self.server.state["encoder"].vector.clone() if diagnosing else None
        self.server.check_round()
        self._moving = True
        self.server.step()
        self.engine.commit()
        if before is not None and diagnosing is not None:
            layout, after = self.engine.layouts()["encoder"], self.server.state["encoder"].vector
            numbers, self.details = diagnosing.measure(layout, before, after)
            row |= numbers
        return row

    def _answering(self, round: int) -> tuple[list[Client], list[Client], dict[str, Any]]:
        """The clients that train, those that got the model, and the numbers of those that don't answer."""
        chosen = self.sample(round)
        if self.faults is None:
            return chosen, chosen, {}
        steps = {client.name: self.engine.steps(client) for client in chosen}
        struck = self.faults.strike(steps, seed=self.seed, round=round)
        row: dict[str, Any] = {f"server/{fault}": list(struck.values()).count(fault) for fault in get_args(Fault)}
        answering = [client for client in chosen if client.name not in struck]
        reached = [client for client in chosen if struck.get(client.name) != "dropped"]
        row["server/skipped"] = int(len(answering) < self.server.fewest)
        if row["server/skipped"]:
            log.warning(
                "round %d: %d of %d clients answer and the server needs %d: nothing changes",
                round,
                len(answering),
                len(chosen),
                self.server.fewest,
            )
        return answering, reached, row

    def _losses(self, reports: Sequence[Report]) -> dict[str, float | None]:
        """Mean training losses of each client, or of all clients with the same tasks where there are many."""
        several = len(self.clients) > MANY_CLIENTS
        tasks = {client.name: client.tasks for client in self.clients}
        found: dict[str, list[float]] = {}
        for report in reports:
            own = tasks[report.client]
            who = "+".join(own) if several else report.client
            for name, value in report.losses.items():
                if name in ("loss", "personal_loss") or len(own) > 1:
                    found.setdefault(f"train/{who}/{name}", []).append(value)
        means = {key: sum(values) / len(values) for key, values in found.items()}
        return {key: value if math.isfinite(value) else None for key, value in means.items()}

    def sample(self, round: int) -> list[Client]:
        """The clients that train in a round, in their fixed order."""
        count = max(1, round_half_up(self.participation * len(self.clients)))
        chosen = numpy_stream(self.seed, "participation", round).permutation(len(self.clients))[:count]
        return [self.clients[i] for i in sorted(chosen)]

    def evaluate(self, *, exact: bool = True) -> TaskMetrics:
        """Every metric of every task on the whole validation splits; `exact` as in `Task.metric`."""
        found = self.engine.evaluate(self.server, self.validation, unified=self.unified, exact=exact)
        return {
            name: {metric: sum(v[metric] for v in several) / len(several) for metric in several[0]}
            for name, several in found.items()
        }

    def measures(self) -> dict[str, Any]:
        """By which metric each task is measured, and on how many images of which data set."""
        primary = {task: asdict(primary) for task, primary in self.primary.items()}
        return {"primary": primary, "validation": self.measured_on}

    def results(self, name: str) -> dict[str, Any]:
        """What results.json says: last and best metrics, and Δm with its baseline."""
        return {
            "name": name,
            "rounds": self.rounds,
            **self.measures(),
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
        """Saves the unified model's weights as ``unified/model.safetensors``.

        Raises:
            UserError: it can't be written.
        """
        directory.write_unified(safetensors.torch.save(self.engine.weights(self.server.state)))

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside what clients keep; random streams need nothing, they come from (seed,
        purpose, client, round)."""
        progress = {"round": self.round, "first": self.first, "best": self.best, "last": self.last}
        progress |= {"trained": self.trained, "refused": self.refused, "details": self.details}
        beside = {"signs": self.signs.state_dict(), "baseline": self.baseline}
        return {**progress, **beside, "server": self.server.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], states: Path) -> None:
        """Goes on from a `state_dict` of a run with the same configuration.

        Args:
            state: what a checkpoint holds.
            states: the folder with what clients kept.
        """
        self.server.load_state_dict(state["server"])
        self.engine.restore(state["clients"], states)
        self.round, self.first, self.best, self.last = (state[key] for key in ("round", "first", "best", "last"))
        self.trained, self.refused, self.details = (state[key] for key in ("trained", "refused", "details"))
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
            "delta_m": {"mean": complete_mean(changes, self.primary), "tasks": changes} if changes else None,
            "score": score if math.isfinite(score) else -math.inf,
        }
        improved = self.best is None or self.last["score"] > self.best["score"] or self.best["round"] == round
        if improved:
            self.best = self.last
        return improved

    def _draw(self, round: int, directory: RunDirectory, tracker: Tracker | None) -> None:
        sheets: dict[str, dict[str, Sequence[Picture]]] = {}
        segmented: dict[str, Sequence[Segmented]] = {}
        for name, view, labels in self.engine.predict(
            self.server, self.validation, self.pictures, unified=self.unified
        ):
            if self.engine.ranks.leads:
                positions = range(min(self.pictures, len(view)))
                sheets.setdefault(name, {}).update(strips(view, positions, labels))
                if tracker is not None:
                    segmented |= segmentations(view, positions, labels)
        for name, sheet in sheets.items():
            suffix = f"_{name}" if len(self.validation) > 1 else ""
            directory.draw(f"round_{round:06d}{suffix}.png", partial(save_sheet, strips=sheet))
            directory.draw(f"latest{suffix}.npz", partial(save_strips, round=round, strips=sheet))
        if tracker is not None and sheets:
            with tracking(round):
                tracker.pictures(round, {task: strip for sheet in sheets.values() for task, strip in sheet.items()})
                tracker.segmentations(round, segmented)


@contextmanager
def tracking(round: int) -> Iterator[None]:
    """A disk that is full, or a network that is gone, is no reason to stop."""
    try:
        yield
    except Exception as error:
        log.warning(
            "round %d: the tracker can't take it (%s); training goes on",
            round,
            getattr(error, "strerror", None) or error,
        )


def _between_batches(stop: StopSignals, display: Display) -> None:
    stop.check()
    display.tick()


def flat(evaluation: Mapping[str, Any] | None) -> dict[str, float]:
    """An evaluation as the values of one row: ``val/<task>/<metric>``, ``val/<task>/delta``, ``val/delta_m``."""
    if evaluation is None:
        return {}
    row = {f"val/{task}/{name}": v for task, values in evaluation["metrics"].items() for name, v in values.items()}
    if evaluation["delta_m"]:
        row |= {f"val/{task}/delta": change for task, change in evaluation["delta_m"]["tasks"].items()}
        if evaluation["delta_m"]["mean"] is not None:
            row["val/delta_m"] = evaluation["delta_m"]["mean"]
    return row


def round_half_up(value: float) -> int:
    """Nearest whole number; Python's `round` would take 2.5 to 2."""
    return math.floor(value + 0.5)
