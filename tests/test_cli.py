"""Output that can't be written is one line, whether Python buffers it or not."""

import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")
COMMAND = [sys.executable, "-m", "fedmtl"]


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["list", "tasks"]])
def test_a_full_disk(words: list[str], buffered: str) -> None:
    environment = {"PYTHONUNBUFFERED": buffered}
    with FULL.open("w") as full:
        ended = subprocess.run(
            [*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert ended.returncode == 2
    assert ended.stderr == ("fedmtl: error: the output can't be written (No space left on device); make room there\n")


@pytest.mark.parametrize("buffered", ["", "1"])
def test_who_reads_has_gone(buffered: str) -> None:
    started = subprocess.Popen(
        ["sh", "-c", 'read line; exec "$@"', "sh", *COMMAND, "--help"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONUNBUFFERED": buffered},
    )
    assert started.stdout
    started.stdout.close()
    _, error = started.communicate(b"go\n")
    assert (started.returncode, error) == (141, b"")


def test_a_pipe_that_lacks_letters() -> None:
    words = ["list", "methods", "rho"]
    told = [
        subprocess.run([*COMMAND, *words], env={"PYTHONIOENCODING": coding}, capture_output=True, check=True).stdout
        for coding in ("utf-8", "ascii")
    ]
    assert "ρ".encode() in told[0]
    assert told[1].decode("ascii") == told[0].decode().encode("ascii", "replace").decode()
