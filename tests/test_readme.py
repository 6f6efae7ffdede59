"""The README tells the truth: its commands run, its table is the measured one, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from fedmtl.commands.configuration import experiment_parser, parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^(fedmtl .*)$", README, flags=re.MULTILINE)


def test_the_table_is_the_one_that_was_measured() -> None:
    shown = README.partition("<!-- docs/results/scenes.md -->\n")[2].partition("<!-- end -->")[0]
    assert shown == (ROOT / "docs" / "results" / "scenes.md").read_text()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE))))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("fedmtl fit")])
def test_fit_commands_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parser = experiment_parser("fit", None)
    words = [word for word in shlex.split(command, comments=True)[2:] if word not in ("--resume", "auto")]
    assert parse(parser, words).rounds > 0
