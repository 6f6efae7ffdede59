"""The shell's completion and the short help."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMPLETE = """source {script}
for line in "$@"; do
    read -ra COMP_WORDS <<< "$line"
    [[ $line == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMP_LINE=$line COMP_POINT=${{#line}} COMPREPLY=()
    "$(complete -p fedmtl | sed 's/.*-F \\([^ ]*\\).*/\\1/')" fedmtl
    echo "${{COMPREPLY[*]}}"
done
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(fedmtl: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    expected = {
        "fedmtl compl": "completion",
        "fedmtl list ba": "backbones",
        "fedmtl data pre": "preview",
        "fedmtl fit --resume ": "never auto",
        "fedmtl fit --upload.resc": "--upload.rescale",
        "fedmtl fit --upload.rescale ": "inverse none norm overlap",
        "fedmtl fit --server.aggregator fedmtl.aggregation.K": "fedmtl.aggregation.Krum",
        "fedmtl fit --local.optimizer.weight_d": "--local.optimizer.weight_decay",
        "fedmtl evaluate --checkpoint ": "last best",
        "fedmtl init --data ": "scenes folder nyud pascal",
        "fedmtl completion ": "bash zsh tcsh",
        "fedmtl data check --work": "--workers",
        "fedmtl data check --rep": "--report",
        "fedmtl data check --data.tr": "--data.train",
        "fedmtl data preview --split ": "train val",
        "fedmtl data federation --sa": "--save",
        "fedmtl data federation --rou": "--rounds",
        "fedmtl data download pascal-m": "pascal-mt",
        "fedmtl compare --trusted": "--trusted-modules",
        "fedmtl data preview --trusted": "--trusted-modules",
        "fedmtl fit --print": "--print_config",
        "fedmtl fit --help": "--help --help-all",
    }
    script = tmp_path / "completion.bash"
    script.write_text(fedmtl("completion", "bash").out)
    done = subprocess.run(
        ["bash", "-c", COMPLETE.format(script=script), "bash", *expected], capture_output=True, text=True, check=True
    )
    assert dict(zip(expected, done.stdout.splitlines(), strict=True)) == expected
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script(fedmtl: Callable[..., Any], shell: str) -> None:
    pytest.importorskip("shtab")
    out = fedmtl("completion", shell).out
    assert "scenes" in out
    assert "--upload.rescale" in out


def test_completion_knows_every_command_and_its_options() -> None:
    pytest.importorskip("shtab")
    from fedmtl.commands import COMMANDS
    from fedmtl.commands.completion import whole

    words = {choice for action in whole()._actions for choice in action.choices or ()}
    assert words == set(COMMANDS)


def test_completion_without_its_package(fedmtl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    result = fedmtl("completion", "bash")
    assert result.code == 2
    assert 'pip install -e ".[completion]"' in result.error


def test_the_short_help_names_every_key_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    import inspect

    from fedmtl.commands import fit_help
    from fedmtl.experiment import Experiment

    fit_help.main([])
    shown = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")}
    assert shown >= {f"--{name}" for name in inspect.signature(Experiment).parameters}
    assert shown >= {"--config", "--resume"}
