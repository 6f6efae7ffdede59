"""Signs that a run is failing, read from its rows of metrics: a warning in words, with the cause and the key to change.

Thresholds are so wide that short, noisy, healthy runs raise none of them.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from fedmtl.aggregation import DEA, UploadTransform
from fedmtl.delta_m import Primary

MEMORY = 20  # values of a number that are remembered
CALM = 3  # looks without a sign after which it counts as gone, and may be raised again

EXPLODED = 10.0  # times the median of earlier norms, of which there must be 3
GROWTH, GROWTHS = 1.5, 4  # a norm that grows by this factor so many times in a row; a warm-up does not
FLAT = 0.2  # kept energy beyond the kept share, relative to the smaller of kept and dropped share
STILL, STILLS = 1e-6, 2  # the server's step relative to the encoder, so many times in a row
REFUSED, ATTEMPTS = 2, 5  # updates left out, of so many that the client sent last
WORSE, WORSENINGS, NOISES = 0.02, 4, 5.0  # total loss in a metric, over how many evaluations, in units of its noise
COLLAPSED, COLLAPSES = 2.0, 2  # times worse than the best, so many evaluations in a row

REMEDY = "lower local.optimizer's lr or set local.clip_norm"


class WarningSigns:
    """Looks at each round's row and says what is going wrong, once for each sign and client or task.

    A sign is said again only after it had been absent from `CALM` looks. Read are ``train/<client>/…``,
    ``val/<task>/<metric>``, and if they are there ``diag/norm``, ``diag/kept``, ``diag/kept_energy`` (of each client,
    or else their means) and ``diag/step``.

    Args:
        primary: metric and direction of each task.
        tasks: tasks of each client, by its name.
        upload: the clients' upload transforms; only a mask that goes by magnitude can show that magnitudes are flat.
    """

    def __init__(
        self,
        primary: Mapping[str, Primary],
        tasks: Mapping[str, Collection[str]],
        upload: Sequence[UploadTransform],
    ) -> None:
        self.primary, self.tasks = dict(primary), {client: list(names) for client, names in tasks.items()}
        self.by_magnitude = any(isinstance(transform, DEA) and transform.select == "magnitude" for transform in upload)
        self._series: dict[str, list[float]] = {}  # the last values of a number
        self._best: dict[str, float] = {}  # best metric by task, higher is better
        self._raised: dict[str, int] = {}  # looks since a raised sign was last there

    def look(self, row: Mapping[str, Any], refused: Collection[str] = ()) -> list[str]:
        """Takes the next round's row, and returns the warnings that are new, one line each.

        Args:
            row: the numbers of the round as they are logged; None or NaN where one is not finite.
            refused: names of the clients whose updates the server left out.
        """
        new = []
        for sign, warning in self._signs(row, refused):
            if warning is None:
                if sign in self._raised:
                    self._raised[sign] += 1
                    if self._raised[sign] >= CALM:
                        del self._raised[sign]
            else:
                if sign not in self._raised:
                    new.append(warning)
                self._raised[sign] = 0
        return new

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as plain containers."""
        return deepcopy({"series": self._series, "best": self._best, "raised": self._raised})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self._series, self._best, self._raised = (deepcopy(state[key]) for key in ("series", "best", "raised"))

    def _signs(self, row: Mapping[str, Any], refused: Collection[str]) -> Iterator[tuple[str, str | None]]:
        """Each sign that this row lets one judge, and its warning if it is there."""
        for client in self.tasks:
            if f"train/{client}/loss" in row:
                answers = self._note(f"refused/{client}", float(client in refused))
                yield f"refused {client}", refusals(f"client {client}", answers)
        for who, key in self._measured(row, "norm"):
            yield f"exploding {who}", explosion(who, self._note(key, row[key]))
        for who, key in self._measured(row, "kept_energy") if self.by_magnitude else ():
            kept = row[key.replace("kept_energy", "kept", 1)]
            yield f"flat {who}", flatness(who, number(row[key]), number(kept))
        if "diag/step" in row:
            yield "still", standstill(self._note("diag/step", row["diag/step"]))
        for task, primary in self.primary.items():
            losses = [number(loss) for loss in self._losses(row, task)]
            key = f"val/{task}/{primary.metric}"
            if finite := [loss for loss in losses if math.isfinite(loss)]:
                self._note(f"since/{task}", fmean(finite))
            if key in row and math.isfinite(number(row[key])):
                yield from self._judge(task, primary, row[key])

    def _judge(self, task: str, primary: Primary, value: float) -> Iterator[tuple[str, str | None]]:
        """What one more evaluation of a task tells."""
        sign = 1.0 if primary.higher_is_better else -1.0
        values = self._note(f"val/{task}", sign * value)
        since = self._series.pop(f"since/{task}", [math.nan])
        losses = self._note(f"loss/{task}", fmean(since))
        self._best[task] = max(self._best.get(task, -math.inf), sign * value)
        name = f"{task}: val {primary.metric}"
        yield f"collapse {task}", collapse(name, values, self._best[task])
        yield f"against {task}", contradiction(name, values, losses)

    def _losses(self, row: Mapping[str, Any], task: str) -> Iterator[Any]:
        """This round's training loss of a task at each client that has it."""
        for client, names in self.tasks.items():
            key = f"train/{client}/{task if len(names) > 1 else 'loss'}"
            if task in names and key in row:
                yield row[key]

    def _measured(self, row: Mapping[str, Any], key: str) -> list[tuple[str, str]]:
        """Whom a diagnostic of clients is there for, each with its key; the mean where there are too many clients."""
        own = [(f"client {client}", f"diag/{key}/{client}") for client in self.tasks if f"diag/{key}/{client}" in row]
        return own or [("the clients on average", f"diag/{key}")] * (f"diag/{key}" in row)

    def _note(self, key: str, value: Any) -> list[float]:
        """Remembers one more value, and returns the last ones, newest last."""
        self._series[key] = [*self._series.get(key, []), number(value)][-MEMORY:]
        return self._series[key]


def number(value: Any) -> float:
    """A logged value; NaN for None."""
    return math.nan if value is None else float(value)


def refusals(who: str, answers: Sequence[float]) -> str | None:
    """Warns if the server left out updates of a client again and again; `answers` are 1 where it did."""
    last = answers[-ATTEMPTS:]
    if sum(last) < REFUSED:
        return None
    return (
        f"{who}: {sum(last):.0f} of its last {len(last)} updates were not finite and were left out: its training "
        f"overflows; {REMEDY}, or take fabric.precision 32-true"
    )


def explosion(who: str, norms: Sequence[float]) -> str | None:
    """Warns if the norm of an update leaves its usual range, or grows without end."""
    now, earlier = norms[-1], [norm for norm in norms[:-1] if math.isfinite(norm)]
    cause = f"local training is blowing up; {REMEDY}"
    if len(earlier) >= 3 and now > EXPLODED * (usual := median(earlier)) > 0:
        return f"{who}: an update of norm {now:.3g}, {now / usual:.0f} times the usual {usual:.3g}: {cause}"
    last = norms[-GROWTHS - 1 :]
    if len(last) > GROWTHS and all(0 < GROWTH * a <= b for a, b in pairwise(last)):
        return f"{who}: the norm of updates grew from {last[0]:.3g} to {now:.3g} in {GROWTHS} measurements: {cause}"
    return None


def flatness(who: str, energy: float, kept: float) -> str | None:
    """Warns if a mask holds hardly more energy than a random one of its size would."""
    if kept == 1 or not 0 < energy <= kept + FLAT * min(kept, 1 - kept):
        return None
    return (
        f"{who}: magnitudes are flat, the {100 * kept:.3g} % of entries that are kept hold only {100 * energy:.3g} % "
        "of the update's energy, so the mask is hardly better than a random one; train longer locally (local.epochs), "
        "or raise rho"
    )


def standstill(steps: Sequence[float]) -> str | None:
    """Warns if the server hardly moves the encoder any more."""
    last = steps[-STILLS:]
    if len(last) < STILLS or not all(step < STILL for step in last):
        return None
    return (
        f"the server moves the encoder by only {last[-1]:.2g} of its norm: training stands still; raise the lr of "
        "local.optimizer or server.optimizer, or see whether local.schedule ends too early"
    )


def collapse(name: str, values: Sequence[float], best: float) -> str | None:
    """Warns if a metric (higher is better: negative for an error) falls far behind its best and stays there."""
    last = values[-COLLAPSES:]
    if len(values) <= COLLAPSES or not all(far_behind(value, best) for value in last):
        return None
    return (
        f"{name} is {abs(last[-1]):.4g} after a best of {abs(best):.4g}: the model falls apart, merged steps are too "
        "large; lower the lr of server.optimizer or local.optimizer, raise rho, or take rescale: overlap"
    )


def far_behind(value: float, best: float) -> bool:
    """Whether a metric is `COLLAPSED` times worse than the best; negative ones are errors."""
    return value * COLLAPSED < best if best > 0 else value < best * COLLAPSED


def contradiction(name: str, values: Sequence[float], losses: Sequence[float]) -> str | None:
    """Warns if a metric (higher is better) worsens evaluation after evaluation while the training loss falls."""
    last, fell = values[-WORSENINGS - 1 :], losses[-WORSENINGS - 1 :]
    if len(last) <= WORSENINGS or not all(a > b for a, b in pairwise(last)):
        return None
    lost = last[0] - last[-1]
    if lost < max(WORSE * abs(last[0]), NOISES * noise(values)) or not fell[0] - fell[-1] > 0.01 * abs(fell[0]):
        return None
    return (
        f"{name} went from {abs(last[0]):.4g} to {abs(last[-1]):.4g}, worse at each of {WORSENINGS} evaluations, while "
        "the training loss fell: clients overfit (lower local.epochs), or undo each other's work (look at "
        "diag/sign_conflict, lower rho)"
    )


def noise(values: Sequence[float]) -> float:
    """Standard deviation of a noisy series about a straight course, from its second differences; bends add to it."""
    bends = [a - 2 * b + c for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return math.sqrt(fmean(bend * bend for bend in bends) / 6) if bends else 0.0
