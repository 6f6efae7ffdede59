"""Files of a damaged run, or of a stranger's, are refused in a line that does nothing to the terminal."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmtl.cli import main
from fedmtl.errors import UserError
from fedmtl.prediction import heads
from fedmtl.prediction.load import _fabric, load
from fedmtl.runs import Run


@pytest.mark.parametrize("fabric", ["x", ["precision"], 3, {"threads": "x"}, {"threads": 1.5}])
def test_fabric(fabric: Any) -> None:
    run = Run(Path("a"), "a", {"fabric": fabric}, [], None, [], {}, None)
    with pytest.raises(UserError, match="^a/config.yaml: fabric: "):
        _fabric(run, None)


def write(run: Path, config: dict[str, Any], clients: list[dict[str, Any]]) -> None:
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "federation.json").write_text(json.dumps(clients))
    (run / heads.FILE).write_text(json.dumps({"format": heads.FORMAT, "unified": False, "data": {}}))


@pytest.mark.parametrize(("share", "why"), [("none", "share: none, each client trains alone"), ("model", "its method")])
def test_why_there_is_no_unified_model(share: str, why: str, tmp_path: Path) -> None:
    write(tmp_path / "run", {"share": share, "clients": [{"tasks": ["depth"]}]}, [{"client": "a"}, {"client": "b"}])
    with pytest.raises(UserError, match=f"has no unified model \\({why}.*; --client takes one of a, b$"):
        load(tmp_path / "run")


@pytest.mark.parametrize("clients", ["x", 5, ["x"], {"a": 1}, None])
def test_groups_of_clients_that_are_none(clients: Any, tmp_path: Path) -> None:
    write(tmp_path / "run", {"share": "model", "clients": clients}, [{"client": "a"}])
    with pytest.raises(UserError, match="has no unified model"):
        load(tmp_path / "run")


@pytest.mark.parametrize("command", ["predict", "export"])
def test_names_do_nothing_to_the_terminal(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, picture = tmp_path / "run", tmp_path / "a.png"
    write(run, {"share": "\x1b[2J"}, [{"client": "a\x1b]0;b\x07\nc"}])
    words = [str(picture)] if command == "predict" else []
    picture.touch()
    assert main([command, str(run), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"fedmtl {command}: error: {run} has no unified model" in error
    assert error.strip().isprintable()
