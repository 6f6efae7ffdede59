"""How a real run is shown: in a terminal, in a log, and to those who want to see nothing of it."""

import fcntl
import logging
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmtl.cli import main

from ..tracking.screen import Screen
from .conftest import EXPERIMENTS

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


def test_a_log_has_a_line_a_round(fit: Callable[..., Any]) -> None:
    before = list(logging.getLogger("fedmtl").handlers)
    done = fit("scenes_dea", "--name", "a")
    lines = [STAMP.sub("", line) for line in done.out.splitlines() if STAMP.match(line)]
    assert [line[:9] for line in lines if line.startswith("round ")] == ["round 1/2", "round 2/2"]
    assert all(line.startswith(("round ", "INFO ")) for line in lines)
    assert "\x1b" not in done.out
    assert done.error == ""
    assert logging.getLogger("fedmtl").handlers == before


@pytest.mark.parametrize("words", [["--quiet"], ["--display", "quiet"]])
def test_quiet_leaves_the_last_line(fit: Callable[..., Any], tmp_path: Path, words: list[str]) -> None:
    done = fit("scenes_dea", "--rounds", "1", "--name", "a", *words)
    assert (done.code, done.error) == (0, "")
    assert done.out == f"everything of this run is in {tmp_path / 'runs' / 'a'}\n"
    config = (tmp_path / "runs" / "a" / "config.yaml").read_text()
    assert "display" not in config
    again = fit("scenes_dea", "--rounds", "1", "--name", "a", *words)
    assert again.code == 2
    assert "is there already" in again.error
    assert again.out == ""


def test_names_are_no_markup(fit: Callable[..., Any], fedmtl: Callable[..., Any], tmp_path: Path) -> None:
    assert "a[b]c after round 1" in fit("scenes_dea", "--rounds", "1", "--name", "a[b]c").out
    assert "a[b]c after round 1 (last" in fedmtl("evaluate", tmp_path / "runs" / "a[b]c").out


@pytest.mark.parametrize(("words", "display"), [([], "auto"), (["--quiet"], "quiet"), (["--display", "live"], "live")])
def test_the_display_in_the_printed_configuration(
    capsys: pytest.CaptureFixture[str], words: list[str], display: str
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(EXPERIMENTS / "scenes_dea.yaml"), *words, "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["display"] == display


@pytest.mark.parametrize("words", [[], ["--rounds", "3"]])
def test_without_a_file_the_ways_to_one_are_said(fedmtl: Callable[..., Any], words: list[str]) -> None:
    done = fedmtl("fit", *words)
    assert done.code == 2
    assert done.error.count("\n") == 1
    assert done.error.endswith("; give --config FILE; `fedmtl list experiments` has some, `fedmtl init` makes one\n")


def test_a_file_that_lacks_keys_is_asked_for_these(fedmtl: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("rounds: 3")
    error = fedmtl("fit", "--config", tmp_path / "a.yaml").error
    assert "are required" in error
    assert "give --config" not in error


def test_only_known_displays(fit: Callable[..., Any]) -> None:
    done = fit("scenes_dea", "--display", "loud")
    assert done.code == 2
    assert done.error.count("\n") == 1
    assert "auto" in done.error


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="opens a terminal of its own")
def test_a_terminal_shows_the_run_live(spawn: Callable[..., Any], tiny: Path, tmp_path: Path) -> None:
    width, height = 60, 15
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    # before the command, in its process: what would have it take the terminal for another
    first = """
for name in ("CI", "NO_COLOR", "COLUMNS", "LINES"):
    os.environ.pop(name, None)
os.environ["TERM"] = "xterm-256color"
"""
    words = ["--config", EXPERIMENTS / "scenes_dea.yaml", "--config", tiny, "--tracker", "null", "--name", "a"]
    process = spawn("fit", *words, log=Path(os.ttyname(inner)), first=first)
    said = os.read(outer, 1)  # so it has opened its end
    os.close(inner)
    while block := _read(outer):
        said += block
    assert process.wait() == 0, said.decode()
    os.close(outer)
    text = said.decode()
    views = re.findall(r"round \d/2", text)
    assert len(views) > 1  # drawn again and again
    shown = Screen(width, height).feed(text).text
    bars = [line for line in shown.splitlines() if re.match(r"a  round", line)]
    assert len(bars) == 1  # and but once on the screen
    assert bars[0].endswith("100 %")
    assert len(bars[0]) <= width
    assert "finished after" in shown
    assert shown.replace("\n", "").endswith(f"everything of this run is in {tmp_path / 'runs' / 'a'}")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # its other end is closed
        return b""
