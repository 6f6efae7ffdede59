"""The display as a run drives it: what stands on the screen, what is said above it, what a log gets."""

import io
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console

from fedmtl.delta_m import Primary
from fedmtl.tracking.display import Display, Member, choose, display, messages

from .screen import Screen

CLIENTS = {"semseg": Member(("semseg",), 3), "depth": Member(("depth",), 3)}
PRIMARY = {"semseg": Primary("mIoU", True), "depth": Primary("RMSE", False)}


class Pipe(io.StringIO):
    """Where a program writes, terminal or not."""

    def __init__(self, terminal: bool = False, encoding: str = "utf-8") -> None:
        super().__init__()
        self.terminal, self._encoding = terminal, encoding

    def isatty(self) -> bool:
        return self.terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that goes on by a second whenever it is read."""
    time = [100.0]

    def read() -> float:
        time[0] += 1.0
        return time[0]

    monkeypatch.setattr(display, "perf_counter", read)
    return time


def train(shown: Display, rounds: int, *, log: logging.Logger | None = None) -> None:
    for round in range(1, rounds + 1):
        shown.start_round(round)
        losses = {}
        for name in CLIENTS:
            shown.start_client(name)
            for _ in range(3):
                shown.step()
                shown.tick()
            shown.end_client(loss := 1.0 / round)
            losses[f"train/{name}/loss"] = loss
        if log is not None:
            log.warning("round %d: the disk is full", round)
        shown.start_evaluation()
        metrics = {"val/semseg/mIoU": 30.0 + round, "val/depth/RMSE": 0.5, "time/train": 6.0, "time/evaluate": 1.0}
        shown.end_round({"round": round, **losses, **metrics, "bytes/up": 1000, "bytes/down": 0})


def display_of(console: Console, shows: Any, rounds: int = 4) -> Display:
    return Display(rounds=rounds, steps=6, primary=PRIMARY, console=console, shows=shows, name="run", clients=CLIENTS)


@pytest.mark.parametrize(("width", "height"), [(60, 15), (80, 24), (160, 50)])
@pytest.mark.usefixtures("clock")
def test_live_leaves_the_log_above_and_one_view_below(width: int, height: int) -> None:
    file = Pipe(terminal=True)
    console = Console(file=file, force_terminal=True, width=width, height=height)
    console.print("before")
    log = logging.getLogger("fedmtl.test")
    with messages(console, "live"), display_of(console, "live") as shown:
        train(shown, 4, log=log)
    console.print("after")
    screen = Screen(width, height).feed(file.getvalue())
    assert screen.broken == 0
    lines = screen.text.splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert [line for line in lines if "disk" in line] == [
        f"WARNING  round {round}: the disk is full" for round in range(1, 5)
    ]
    assert len([line for line in lines if line.startswith("run  round")]) == 1
    assert lines[5].startswith("run  round 4/4")
    assert lines[6].startswith("finished after")
    assert sum("semseg" in line for line in lines) == 1
    assert file.getvalue().rstrip().count("\x1b[?25h") == 1  # the cursor is back


@pytest.mark.usefixtures("clock")
def test_a_run_that_fails_leaves_its_last_state() -> None:
    file = Pipe(terminal=True)
    console = Console(file=file, force_terminal=True, width=80, height=24)

    def fail() -> None:
        with display_of(console, "live") as shown:
            train(shown, 2)
            shown.start_round(3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    shown = Screen(80, 24).feed(file.getvalue()).text
    assert "round 3/4" in shown
    assert "stopped after" in shown
    assert "mIoU" in shown


@pytest.mark.parametrize(("width", "height"), [(60, 15), (80, 40), (140, 30)])
@pytest.mark.usefixtures("clock")
def test_keys_that_the_terminal_echoes_leave_one_view(width: int, height: int) -> None:
    file = Pipe(terminal=True)
    console = Console(file=file, force_terminal=True, width=width, height=height)
    with suppress(KeyboardInterrupt), messages(console, "live"), display_of(console, "live") as shown:
        train(shown, 2)
        shown.start_round(3)
        file.write("^C")
        logging.getLogger("fedmtl.test").info("stopping")
        file.write("^C^C")
        raise KeyboardInterrupt
    screen = Screen(width, height).feed(file.getvalue())
    assert screen.broken == 0
    lines = screen.text.splitlines()
    assert lines[0].rstrip() == "INFO     stopping"
    assert [line for line in lines if line.startswith("run  round")] == [lines[1]]
    assert "^C" not in screen.text


def test_another_size_of_the_terminal(clock: list[float]) -> None:
    file = Pipe(terminal=True)
    console = Console(file=file, force_terminal=True, width=80, height=24)
    with display_of(console, "live") as shown:
        train(shown, 1)
        before = len(file.getvalue())
        console.width, console.height = 60, 15
        clock[0] += 1000
        shown.tick()
        assert "\x1b[2J" in file.getvalue()[before:]
        screen = Screen(60, 15).feed(file.getvalue()[before:])
        assert screen.broken == 0
        assert screen.text.startswith("run  round 1/4")


@pytest.mark.usefixtures("clock")
def test_a_view_that_can_not_be_drawn_ends_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = Pipe(terminal=True)
    console = Console(file=file, force_terminal=True, width=100, height=24)

    def render(progress: Any, **_: Any) -> str:
        return "a view" if progress.round < 2 else [][0]

    monkeypatch.setattr(display, "render", render)
    monkeypatch.setattr(display, "COST", 1.0)
    with messages(console, "live"), display_of(console, "live") as shown:
        train(shown, 4)
    assert [record.getMessage() for record in caplog.records] == [
        "the live view ends, for drawing it failed (IndexError: list index out of range)"
    ]
    assert "round 4/4" in file.getvalue()
    assert file.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_the_live_view_is_drawn_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(display, "perf_counter", lambda: now[0])
    console = Console(file=Pipe(terminal=True), force_terminal=True, width=80, height=24)
    drawn: list[float] = []
    slow = 0.05

    def render(*_: Any, **__: Any) -> str:
        drawn.append(now[0])
        now[0] += slow
        return ""

    monkeypatch.setattr(display, "render", render)
    with display_of(console, "live") as shown:
        drawn.clear()
        for _ in range(1000):
            now[0] += 0.01
            shown.tick()
    pauses = [after - before for before, after in pairwise(drawn[:-1])]  # the last is drawn in the end
    assert pauses
    assert min(pauses) >= slow / display.COST
    monkeypatch.setattr(display, "COST", 1.0)
    slow = 0.0
    with display_of(console, "live") as shown:
        shown.tick()
        drawn.clear()
        for _ in range(100):
            now[0] += 0.01
            shown.tick()
        assert len(drawn) <= 1.0 / display.INTERVAL


def test_a_log_gets_a_line_a_round_with_the_time() -> None:
    file = Pipe()
    console = Console(file=file)
    log = logging.getLogger("fedmtl.test")
    with messages(console, "plain"), display_of(console, "plain") as shown:
        train(shown, 2, log=log)
        log.info("a line that is longer than the eighty characters at which a log would be broken by a terminal's rule")
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    first, second, *others = file.getvalue().splitlines()
    assert re.fullmatch(f"{stamp} WARNING round 1: the disk is full", first)
    assert re.fullmatch(
        rf"{stamp} round 1/4  loss: semseg 1\.000, depth 1\.000  val: semseg mIoU 31, depth RMSE 0\.5  "
        r"\(\d+ s left\)",
        second,
    )
    assert len(others) == 3
    assert others[-1].endswith("a terminal's rule")
    assert "\x1b" not in file.getvalue()


def test_in_a_terminal_plain_lines_have_no_time() -> None:
    file = Pipe(terminal=True)
    with display_of(Console(file=file, width=80), "plain") as shown:
        train(shown, 1)
    assert file.getvalue().startswith("round 1/4")


def test_quiet_says_errors_only() -> None:
    file = Pipe()
    console = Console(file=file, quiet=True)
    log = logging.getLogger("fedmtl.test")
    with messages(console, "quiet"), display_of(console, "quiet") as shown:
        train(shown, 2, log=log)
        log.error("this went wrong")
    assert re.fullmatch(r"[-\d]+ [:\d]+ ERROR this went wrong\n", file.getvalue())


def test_who_does_not_lead_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    file = Pipe()
    with messages(Console(file=file, quiet=True), "quiet", leads=False):
        logging.getLogger("fedmtl.test").error("this went wrong")
    assert file.getvalue() == ""
    assert capsys.readouterr().err == ""


@pytest.fixture
def levels() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("fedmtl", "lightning.fabric", "lightning.pytorch")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    assert [(logger.level, list(logger.handlers)) for logger in loggers] == before


@pytest.mark.usefixtures("levels")
def test_handlers_do_not_pile_up() -> None:
    console = Console(file=Pipe())
    for _ in range(2):
        with suppress(ZeroDivisionError), messages(console, "plain"):
            raise ZeroDivisionError
    with messages(console, "plain"):
        logging.getLogger("fedmtl.test").warning("once")
        assert not logging.getLogger("lightning.fabric.utilities.distributed").isEnabledFor(logging.INFO)
        assert logging.getLogger("lightning.fabric.utilities.distributed").isEnabledFor(logging.WARNING)
    assert isinstance(console.file, Pipe)
    assert console.file.getvalue().count("once") == 1


@pytest.mark.parametrize(
    ("wanted", "terminal", "encoding", "variables", "shows"),
    [
        ("auto", True, "utf-8", {}, "live"),
        ("auto", False, "utf-8", {}, "plain"),
        ("auto", False, "utf-8", {"FORCE_COLOR": "1"}, "plain"),  # colours in a log are no terminal
        ("auto", True, "utf-8", {"TERM": "dumb"}, "plain"),
        ("auto", True, "utf-8", {"CI": "true"}, "plain"),
        ("auto", True, "ascii", {}, "plain"),
        ("live", True, "utf-8", {"CI": "true"}, "live"),
        ("live", False, "utf-8", {}, "plain"),
        ("plain", True, "utf-8", {}, "plain"),
        ("quiet", True, "utf-8", {}, "quiet"),
    ],
)
def test_how_a_run_is_shown(
    wanted: Any,
    terminal: bool,
    encoding: str,
    variables: dict[str, str],
    shows: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert choose(wanted, Console(file=Pipe(terminal, encoding))) == shows


def test_goes_on_from_earlier_rounds() -> None:
    earlier = [{"round": round, "train/semseg/loss": 1.0 / round, "bytes/up": 500} for round in (1, 2, 3)]
    shown = Display(rounds=4, steps=6, primary=PRIMARY, console=Console(file=Pipe()), clients=CLIENTS, earlier=earlier)
    assert shown.progress.share == 0.75
    assert shown.progress.up == 1500
    assert len(shown.progress.lines(9)[0].losses) == 3
