"""The W&B workspace: its definition, and what is sent when it is pushed; W&B itself is played by a stand-in."""

import json
from types import SimpleNamespace

import pytest

from fedmtl import dashboards, tasks
from fedmtl.commands.dashboard import main
from fedmtl.errors import UserError
from fedmtl.tasks import Task

pytest.importorskip("wandb_workspaces")


@pytest.fixture
def server(monkeypatch):
    """Takes mutations as W&B does."""
    import wandb
    from wandb_workspaces.workspaces import interface, internal

    seen = []

    def execute(api, query, variables):
        seen.append(variables)
        return {"upsertView": {"view": {"name": "nw-abc-v", "id": "1"}, "inserted": True}}

    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(default_entity="me"))
    monkeypatch.setattr(internal, "execute_graphql", execute)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://wandb.example")
    return seen


def test_known_tasks_are_those_of_the_suite():
    def primary(kind):
        return kind(num_classes=3).primary if kind.name in ("semseg", "parts") else kind().primary

    kinds = [kind for kind in vars(tasks).values() if isinstance(kind, type) and issubclass(kind, Task)]
    named = {kind.name: primary(kind) for kind in kinds if getattr(kind, "name", "") in dashboards.TASKS}
    assert named == dashboards.TASKS


def test_definition_is_the_same_each_time_and_holds_the_sections():
    one, two = (dashboards.definition(dashboards.workspace("", "p")) for _ in range(2))
    assert one == two
    section = json.loads(one)["spec"]["section"]
    names = [part["name"] for part in section["panelBankConfig"]["sections"]]
    assert names == ["Overview", "Tasks", "Losses", "Federation", "Diagnostics", "Pictures"]
    (runset,) = section["runSets"]
    assert [(key["section"], key["name"]) for key in runset["grouping"]] == [("run", "group")]
    assert section["settings"]["xAxis"] == "round"
    ids = [panel["__id__"] for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    assert len(set(ids)) == len(ids)


def test_tasks_with_names_of_their_own():
    text = dashboards.definition(dashboards.workspace("me", "p", {"pascal_semseg": "mIoU", "nyud_depth": "RMSE"}))
    for key in ("val/pascal_semseg/mIoU", "pictures/nyud_depth", "masks/pascal_semseg"):
        assert json.dumps(key) in text
    assert "masks/nyud_depth" not in text


def test_push_saves_the_definition_and_gives_its_address(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedmtl.tracking.wandb_tracker.has_key", lambda: True)
    main(["--project", "p", "--out", str(tmp_path / "d.json"), "--push"])
    (sent,) = server
    assert (sent["entityName"], sent["projectName"], sent["type"]) == ("me", "p", "project-view")
    assert json.loads(sent["spec"]) == json.loads((tmp_path / "d.json").read_text())["spec"]
    assert capsys.readouterr().out.splitlines()[-1] == "saved on W&B: https://wandb.example/me/p?nw=abc"


def test_push_without_a_key_keeps_the_file_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("fedmtl.tracking.wandb_tracker.has_key", lambda: False)
    with pytest.raises(UserError, match="wandb login"):
        main(["--project", "p", "--out", str(tmp_path / "d.json"), "--push"])
    assert (tmp_path / "d.json").is_file()


def test_an_earlier_file_stays_if_the_new_one_can_not_be_written(tmp_path, monkeypatch):
    (tmp_path / "d.json").write_text("old")

    def full(*_):
        raise OSError("no room")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="no room"):
        main(["--project", "p", "--out", str(tmp_path / "d.json")])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_the_command_to_copy_is_quoted(tmp_path, capsys):
    main(["--project", "my project", "--entity", "$me", "--out", str(tmp_path / "d.json")])
    assert capsys.readouterr().out.endswith("fedmtl dashboard --project 'my project' --entity '$me' --push\n")


def test_what_w_and_b_refuses_is_one_line(server, monkeypatch):
    from wandb_workspaces.workspaces import internal

    def refuse(api, query, variables):
        raise ValueError("project not\nfound")

    monkeypatch.setattr(internal, "execute_graphql", refuse)
    with pytest.raises(UserError, match=r"for me/p \(project not found\); check --entity"):
        dashboards.push(dashboards.workspace("", "p"))


def test_a_folder_that_is_not_there_or_not_a_run(tmp_path):
    with pytest.raises(UserError, match="--out: can't write"):
        main(["--project", "p", "--out", str(tmp_path / "none" / "d.json")])
    with pytest.raises(UserError, match="run"):
        main([str(tmp_path), "--project", "p", "--out", str(tmp_path / "d.json")])


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[dashboard\]"'):
        dashboards.workspace("", "p")
