"""What has happened in a run so far, as a display needs it: plain values, nothing of terminals."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from fedmtl.delta_m import Primary
from fedmtl.tracking.display.sparkline import mean

MANY_CLIENTS = 32  # with more than these, clients that are alike share a row of the table, and a loss
RECENT = 9  # rounds from which the time left is estimated

Phase = Literal["starting", "training", "merging", "evaluating", "saving", "finished", "stopped"]
State = Literal["waiting", "training", "trained", "absent"]


@dataclass(frozen=True)
class Member:
    """A client as it is shown: its tasks, and its steps of a round."""

    tasks: tuple[str, ...]
    steps: int


@dataclass(frozen=True)
class Line:
    """What is shown in one row: a client, a task of one, or all clients with the same tasks.

    Attributes:
        name: whose row it is.
        tasks: its tasks, where the name does not say them.
        done: steps done in this round; of several clients, how many have trained in it.
        total: of how many; 0 for a row without a bar.
        losses: mean training loss of each round it trained in, None where that is not finite.
        state: what it does now.
    """

    name: str
    tasks: tuple[str, ...]
    done: int
    total: int
    losses: Sequence[float | None]
    state: State


@dataclass
class Progress:
    """A run up to now.

    Args:
        rounds: rounds of the run.
        steps: local steps of a round that are done in this process.
        primary: the metric of each task.
        name: the run's name.
        clients: who takes part.
        baseline: name and primary metrics (by task) that Δ compares with.
        eval_every: rounds between evaluations.

    Attributes:
        round: the round that goes on, or was the last; from 1.
        ended: the last round that is done.
        done: steps of this round, by client.
        state: what the clients do that are heard of in this round.
        losses: mean losses by who they are of and by round, as the rows name them: clients, or ``a+b`` for all with
            these tasks; and by ``client/task``.
        metrics: primary metric by task, an entry an evaluation.
        changes: Δ in percent by task, an entry an evaluation; Δm under ``""``.
        up: bytes sent by clients.
        down: bytes sent to clients.
        times: seconds of each round without its evaluation.
        evaluations: seconds of each evaluation, with all that follows it.
    """

    rounds: int
    steps: int
    primary: Mapping[str, Primary]
    name: str = ""
    clients: Mapping[str, Member] = field(default_factory=dict)
    baseline: Mapping[str, Any] | None = None
    eval_every: int = 1

    round: int = 0
    ended: int = 0
    phase: Phase = "starting"
    client: str = ""
    began: float | None = None
    started: float = 0.0
    now: float = 0.0
    done: dict[str, int] = field(default_factory=dict)
    state: dict[str, State] = field(default_factory=dict)
    losses: dict[str, dict[int, float | None]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    changes: dict[str, list[float]] = field(default_factory=dict)
    up: int = 0
    down: int = 0
    times: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)

    def start_round(self, round: int, now: float) -> None:
        """A round begins, at that reading of a clock in seconds."""
        self.began = now if self.began is None else self.began
        self.round, self.started, self.now, self.phase = round, now, now, "training"
        self.done, self.state, self.client = {}, {}, ""

    def start_client(self, name: str) -> None:
        """A client begins to train."""
        self.client, self.phase = name, "training"
        self.done[name], self.state[name] = 0, "training"

    def step(self) -> None:
        """The client that trains has done a step."""
        self.done[self.client] += 1

    def end_client(self, loss: float) -> None:
        """The client that trains is done, with this mean loss; until the next begins, the server may be at work."""
        self.state[self.client], self.phase = "trained", "merging"
        if len(self.clients) <= MANY_CLIENTS:
            self.losses.setdefault(self.client, {})[self.round] = loss if math.isfinite(loss) else None

    def end_round(self, row: Mapping[str, Any], now: float) -> None:
        """A round is done, with these numbers."""
        self.note(row)
        self.now, self.phase = now, "saving"
        took, training = now - self.started, row.get("time/train", 0.0)
        if "time/evaluate" in row:
            self.times.append(training)
            self.evaluations.append(max(took - training, 0.0))
        else:
            self.times.append(took)
        for name, member in self.clients.items():
            if self.state.get(name) != "trained":  # by another process, or by none
                trained = name in self.losses and self.round in self.losses[name]
                self.state[name] = "trained" if trained else "absent"
                self.done[name] = member.steps if trained else 0

    def end(self, phase: Literal["finished", "stopped"], now: float) -> None:
        """The run is over."""
        self.now, self.phase = now, phase

    def note(self, row: Mapping[str, Any]) -> None:
        """Takes over the numbers of a round: its losses, metrics and bytes."""
        for key, value in row.items():
            who, _, what = key.removeprefix("train/").rpartition("/")
            if key.startswith("train/") and what != "personal_loss":
                self.losses.setdefault(who if what == "loss" else f"{who}/{what}", {})[row["round"]] = value
        found = {task: row.get(f"val/{task}/{p.metric}") for task, p in self.primary.items()}
        for task, value in found.items():
            if value is not None:
                self.metrics.setdefault(task, []).append(value)
        changes = {"": row.get("val/delta_m"), **{task: row.get(f"val/{task}/delta") for task in self.primary}}
        for task, value in changes.items():
            if value is not None:
                self.changes.setdefault(task, []).append(value)
        self.ended = row["round"]
        self.up += row.get("bytes/up", 0)
        self.down += row.get("bytes/down", 0)

    def best(self, task: str) -> float | None:
        """The best value of a task's metric so far."""
        finite = [value for value in self.metrics.get(task, []) if math.isfinite(value)]
        return (max if self.primary[task].higher_is_better else min)(finite, default=None)

    @property
    def share(self) -> float:
        """How much of all rounds is done, from 0 to 1."""
        within = 0.0 if self.round == self.ended else sum(self.done.values()) / max(self.steps, 1)
        return min((self.ended + min(within, 1.0)) / self.rounds, 1.0)

    @property
    def left(self) -> float | None:
        """Seconds until the run's end, None where nothing is known of that yet."""
        ahead = [r == self.rounds or r % self.eval_every == 0 for r in range(self.ended + 1, self.rounds + 1)]
        spent = 0.0 if self.round == self.ended else self.now - self.started
        return time_left(self.times, self.evaluations, ahead=ahead, spent=spent)

    def latest(self, most: int) -> dict[str, float | None]:
        """The losses of this round by client, or by tasks where there are more than `most` clients."""
        known = [who for who in dict.fromkeys([*self.clients, *self.losses]) if "/" not in who and who in self.losses]
        now = {who: self.losses[who][self.round] for who in known if self.round in self.losses[who]}
        if len(now) <= most:
            return now
        kinds: dict[str, list[float | None]] = {}
        for who, loss in now.items():
            kinds.setdefault("+".join(self.clients[who].tasks) if who in self.clients else who, []).append(loss)
        return {kind: mean(losses) for kind, losses in kinds.items()}

    def lines(self, room: int) -> list[Line]:
        """What is shown of clients in at most so many rows.

        All clients, with the losses of each task where there is room for all of them; else all clients with the same
        tasks together; where these are too many, those around the one that trains.
        """
        alone = [self._line(name, member) for name, member in self.clients.items()]
        if len(alone) <= min(room, MANY_CLIENTS):
            full = [entry for line in alone for entry in (line, *self._tasks(line))]
            return full if len(full) <= room else alone
        by_name = {line.name: line for line in alone}
        together = [self._together(tasks, [by_name[n] for n in names]) for tasks, names in self.kinds().items()]
        active = next((i for i, line in enumerate(together) if line.state == "training"), 0)
        start = max(0, min(active - room // 2, len(together) - room))
        return together[start : start + room]

    def kinds(self) -> dict[tuple[str, ...], list[str]]:
        """The clients with the same tasks, by these."""
        kinds: dict[tuple[str, ...], list[str]] = {}
        for name, member in self.clients.items():
            kinds.setdefault(member.tasks, []).append(name)
        return kinds

    def _line(self, name: str, member: Member) -> Line:
        losses = list(self.losses.get(name, {}).values())
        state = self.state.get(name, "waiting")
        done = member.steps if state == "trained" else min(self.done.get(name, 0), member.steps)
        return Line(name, member.tasks, done, member.steps, losses, state)

    def _tasks(self, line: Line) -> list[Line]:
        if len(line.tasks) == 1:
            return []
        of = {task: self.losses[key] for task in line.tasks if (key := f"{line.name}/{task}") in self.losses}
        rounds = self.losses.get(line.name, {})  # a round's task losses are known later than the client's
        return [Line(f"  {task}", (), 0, 0, [by.get(r) for r in rounds], "waiting") for task, by in of.items()]

    def _together(self, tasks: tuple[str, ...], members: Sequence[Line]) -> Line:
        name = "+".join(tasks)
        by_round: dict[int, list[float | None]] = {}
        for who in {name: None, **dict.fromkeys(line.name for line in members)}:
            for round, loss in self.losses.get(who, {}).items():
                by_round.setdefault(round, []).append(loss)
        losses = [mean(values) for _, values in sorted(by_round.items())]
        states = {line.state for line in members}
        state: State = next(s for s in ("training", "trained", "absent", "waiting") if s in states)
        if state == "trained" and "waiting" in states:
            state = "waiting"
        trained = sum(line.state == "trained" for line in members)
        shown = f"{len(members)} × {name}" if len(members) > 1 else members[0].name
        return Line(shown, tasks, trained, len(members), losses, state)


def time_left(
    rounds: Sequence[float], evaluations: Sequence[float], *, ahead: Iterable[bool], spent: float = 0.0
) -> float | None:
    """Seconds until a run's end, from what its rounds have usually taken.

    Args:
        rounds: seconds of each round that is done, without its evaluation.
        evaluations: seconds of each evaluation that is done.
        ahead: for each round that is still to end, whether it has an evaluation.
        spent: seconds since the first of these rounds began; more than it usually takes count no further.

    Returns:
        The estimate; None where no round is done.
    """
    if not rounds:
        return None
    round, evaluation = _usual(rounds), _usual(evaluations)
    first, *others = [round + evaluation * evaluated for evaluated in ahead] or [0.0]
    return max(first - spent, 0.0) + sum(others)


def _usual(seconds: Sequence[float]) -> float:
    """The median of the last few; the first of all is left out, in which caches fill and kernels are chosen."""
    return median((seconds[1:] or seconds)[-RECENT:]) if seconds else 0.0
