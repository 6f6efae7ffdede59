"""What a person sees while a run goes on: a live view in a terminal, plain lines elsewhere, or nothing."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from time import perf_counter
from typing import Any, Literal

from rich.console import Console, ConsoleRenderable, RenderableType
from rich.control import Control
from rich.live import Live
from rich.logging import RichHandler
from rich.segment import ControlType

from fedmtl.delta_m import Primary
from fedmtl.tracking.display.progress import Member, Progress
from fedmtl.tracking.display.view import render, round_line

log = logging.getLogger(__name__)

Shows = Literal["live", "plain", "quiet"]

INTERVAL = 0.25  # least seconds between two pictures of the live view
COST = 0.01  # most of the time that drawing it takes


class _View(Live):
    """Leaves the cursor where its last line begins: there the ``^C`` that a terminal echoes breaks no line."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [*super().process_renderables(renderables), Control(ControlType.CARRIAGE_RETURN)]


class Display:
    """Shows a run.

    The live view is drawn within `tick`, by the thread that trains: no other thread holds a lock when data workers are
    forked, and no loss waits for a device. What is logged or printed meanwhile appears above it.

    Args:
        rounds: rounds of the run.
        steps: local steps of a round.
        primary: the metric of each task.
        console: where to write.
        shows: ``live`` needs a terminal; ``plain`` is one line per round.
        name: the run's name.
        clients: who takes part.
        baseline: name and primary metrics that Δ compares with, None for none.
        eval_every: rounds between evaluations.
        earlier: the rows of rounds done before, where the run is resumed.
    """

    def __init__(
        self,
        *,
        rounds: int,
        steps: int,
        primary: Mapping[str, Primary],
        console: Console,
        shows: Shows = "plain",
        name: str = "",
        clients: Mapping[str, Member] | None = None,
        baseline: Mapping[str, Any] | None = None,
        eval_every: int = 1,
        earlier: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self.progress = Progress(rounds, steps, primary, name, clients or {}, baseline, eval_every)
        for row in earlier:
            self.progress.note(row)
        self.console, self.shows = console, shows
        self._live = _View(get_renderable=self._view, console=console, auto_refresh=False) if shows == "live" else None
        self._due = 0.0
        self._size = console.size

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.progress.end("finished" if kind is None else "stopped", perf_counter())
        if self._live is not None:
            self._draw(self._live.stop)  # draws it once more

    def start_round(self, round: int) -> None:
        """A round begins."""
        self.progress.start_round(round, perf_counter())
        self.tick()

    def start_client(self, name: str) -> None:
        """A client begins to train."""
        self.progress.start_client(name)

    def step(self) -> None:
        """A local step is done."""
        self.progress.step()

    def end_client(self, loss: float) -> None:
        """A client has trained, with this mean loss."""
        self.progress.end_client(loss)
        self.tick()

    def start_evaluation(self) -> None:
        """The evaluation of the round begins."""
        self.progress.phase = "evaluating"
        self.tick()

    def end_round(self, row: Mapping[str, Any]) -> None:
        """A round is done, with these numbers."""
        self.progress.end_round(row, perf_counter())
        if self.shows == "plain":
            line = round_line(self.progress, row)
            self.console.print(stamped(line, self.console), highlight=False, markup=False, soft_wrap=True)
        self.tick()

    def tick(self) -> None:
        """Draws the live view again when that is due; to be called often, costs next to nothing when it is not."""
        started = perf_counter()
        if self._live is None or started < self._due:
            return
        if self.console.size != self._size:
            self.console.clear()  # lines that the terminal has broken anew could not be taken back one by one
            self._size = self.console.size
        self.progress.now = started
        self._draw(self._live.refresh)
        ended = perf_counter()
        self._due = ended + max(INTERVAL, (ended - started) / COST)

    def _draw(self, draws: Callable[[], None]) -> None:
        """Draws; where that fails, the run goes on with one line per round."""
        try:
            draws()
        except Exception as error:  # no picture is worth a run
            live, self._live, self.shows = self._live, None, "plain"
            if live is not None:
                with suppress(Exception):
                    live.stop()  # it tries once more to draw
            log.warning("the live view ends, for drawing it failed (%s: %s)", type(error).__name__, error)

    def _view(self) -> RenderableType:
        width, height = self.console.size
        return render(self.progress, width=width, height=height - 1)


def choose(wanted: Literal["auto", "live", "plain", "quiet"], console: Console) -> Shows:
    """How a run is shown: by itself live in a terminal that can move its cursor and has the characters, else plain.

    In CI a terminal is somebody's log; so it is there, and with ``TERM=dumb``, plain as well. ``live`` asks for it in
    CI, too.
    """
    if wanted in ("plain", "quiet"):
        return wanted
    able = console.file.isatty() and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return "live" if able and (wanted == "live" or not os.environ.get("CI")) else "plain"


def stamped(text: str, console: Console) -> str:
    """A line with the time at which it was written, unless somebody sees it appear."""
    return text if console.file.isatty() else f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}"


@contextmanager
def messages(console: Console, shows: Shows, *, leads: bool = True) -> Iterator[None]:
    """Within it, what the package logs is shown on the console, and libraries keep their notes to themselves.

    Of this, ``quiet`` shows errors only, and a process that does not lead nothing. Warnings of libraries stay as they
    are.
    """
    handler: logging.Handler = logging.StreamHandler(console.file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    if not leads:
        handler = logging.NullHandler()
    elif shows == "live":
        handler = RichHandler(console=console, show_time=False, show_path=False)
    if shows == "quiet":
        handler.setLevel(logging.ERROR)
    levels = {"fedmtl": logging.INFO, "lightning.fabric": logging.WARNING, "lightning.pytorch": logging.WARNING}
    before = {name: logging.getLogger(name).level for name in levels}
    logging.getLogger("fedmtl").addHandler(handler)
    try:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        logging.getLogger("fedmtl").removeHandler(handler)
