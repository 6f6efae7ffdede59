"""Words of list, init and doctor that are not quite right, or not enough."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmtl.cli import main
from fedmtl.commands.catalogue import shipped

Told = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Runs a command: its exit code, and the lines of what it prints or of its error."""

    def call(*words: Any) -> tuple[int, list[str]]:
        code = main(list(map(str, words)))
        output = capsys.readouterr()
        assert not (output.out and output.err)
        return code, (output.out or output.err).splitlines()

    return call


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("list method", "fedmtl list: error: there is no topic 'method'; did you mean methods?"),
        ("list methods scafold", "fedmtl list: error: none of the methods fits 'scafold'; did you mean scaffold?"),
        ("list tasks xyz", "fedmtl list: error: none of the tasks fits 'xyz'; without a word all are listed"),
        ("init lab --method deaa", "fedmtl init: error: there is no method 'deaa'; did you mean dea?"),
        ("init lab --data nyu", "fedmtl init: error: there is no data set 'nyu'; did you mean nyud?"),
        ("data download nyud-mtt", "fedmtl data: error: there is no data set 'nyud-mtt'; did you mean nyud-mt?"),
    ],
)
def test_a_near_word_is_named_in_one_line(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told(*words.split()) == (2, [line])
    assert not [*tmp_path.iterdir()]


def test_without_a_topic_the_topics_are_listed(told: Told) -> None:
    code, lines = told("list")
    topics = [line.split("\t")[0] for line in lines]
    assert code == 0
    assert {"methods", "models", "servers", "schedules", "trackers"} <= {*topics}
    assert all(line.split("\t")[1] for line in lines)


@pytest.mark.parametrize(
    ("topic", "key"),
    [("models", "model"), ("servers", "server"), ("schedules", "local.schedule"), ("trackers", "tracker")],
)
def test_a_topic_has_all_classes_of_its_key(told: Told, topic: str, key: str) -> None:
    from fedmtl.commands.keys import all_keys

    rows = [line.split("\t") for line in told("list", topic)[1]]
    taken = {path for one in all_keys() if one.path == key for path in one.classes}
    taken = {path for path in taken if path.startswith(("fedmtl.", "torch.", "timm."))}  # other tests make some
    assert taken <= {row[0] for row in rows}
    assert {row[1] for row in rows} == {key}
    assert all(row[2] for row in rows)


@pytest.mark.parametrize("data", ["folder", "nyud", "pascal"])
def test_init_says_what_comes_before_the_first_run(told: Told, tmp_path: Path, data: str) -> None:
    _, lines = told("init", tmp_path / "lab", "--data", data)
    assert lines[1].startswith("first: there are no data at data/")
    assert "fedmtl data check" in lines[2]
    assert lines[-1] == f"then: cd {shlex.quote(str(tmp_path / 'lab'))} && fedmtl fit --config config.yaml"


def test_init_in_the_working_directory_goes_nowhere(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told("init", ".")[1][-1] == "next: fedmtl fit --config config.yaml"


def test_the_readme_quotes_the_path_for_a_shell(told: Told, tmp_path: Path) -> None:
    root = tmp_path / "it's here"
    root.mkdir()
    _, lines = told("init", tmp_path / "lab", "--data", "nyud", "--root", root)
    assert lines[-1].startswith("next: ")  # the data are there
    readme = (tmp_path / "lab" / "README.md").read_text()
    command = readme.partition("Before the first run: `")[2].partition("`;")[0]
    assert shlex.split(command) == ["fedmtl", "data", "check", str(root)]
    assert f"The data are at `{root}`" in readme
    assert "--help-all" in readme


def test_the_template_has_a_name_of_its_own(told: Told, tmp_path: Path) -> None:
    told("init", tmp_path / "lab")
    assert "class SignPower(" in (tmp_path / "lab" / "mine.py").read_text()
    assert "mine.SignPower" in (tmp_path / "lab" / "own_method.yaml").read_text()


@pytest.mark.parametrize(("mode", "mark"), [("ofline", "warning"), ("offline", "ok"), ("shared", "ok"), ("", "ok")])
def test_an_unknown_mode_of_wandb_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, mark: str
) -> None:
    from fedmtl.commands.doctor import tracking

    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_MODE", mode)
    (finding,) = tracking()
    assert finding.mark == mark
    assert ("ofline" in finding.found and "offline" in finding.advice) == (mark == "warning")


def test_every_method_can_be_named() -> None:
    from fedmtl.commands.init import parser

    for path, _ in shipped("methods"):
        assert parser().parse_args(["lab", "--method", path.stem]).method == path.stem
