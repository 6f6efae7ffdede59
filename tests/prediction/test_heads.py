"""heads.json tells a run's tasks and preparation again, and names nothing that is not trusted."""

import json
from pathlib import Path

import pytest

from fedmtl import trust
from fedmtl.data import Scenes, ValTransform
from fedmtl.errors import UserError
from fedmtl.prediction.heads import FILE, read_heads, write_heads
from fedmtl.tasks import Edge, SemSeg


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scenes:
    monkeypatch.setenv("FEDMTL_CACHE", str(tmp_path / "cache"))
    return Scenes(train=2, val=1, size=(16, 24))


def test_it_comes_back_as_it_was(source: Scenes, tmp_path: Path) -> None:
    source.val_transform = ValTransform(size=(32, 40), longest=20)
    write_heads(tmp_path, {"rooms": source.view("val", ["semseg", "edge"], prefix="rooms_")}, unified=True)
    heads = read_heads(tmp_path)
    assert heads is not None
    assert heads.unified
    group = heads.groups[0]
    assert (group.data, list(group.tasks), group.size) == ("rooms", ["rooms_semseg", "rooms_edge"], (32, 40))
    assert (group.transform.size, group.transform.longest) == ((32, 40), 20)
    semseg, edge = group.tasks.values()
    assert isinstance(semseg, SemSeg)
    assert isinstance(edge, Edge)
    assert semseg.class_names == source.tasks["semseg"].class_names  # type: ignore[attr-defined]
    assert (edge.max_distance, edge.channels, semseg.channels) == (0.016, 1, 10)


class Forgetful(SemSeg):
    """Keeps not what it was made with."""

    def __init__(self, many: int) -> None:
        super().__init__(num_classes=many)


def test_what_can_not_be_told_is_left_out(source: Scenes, tmp_path: Path) -> None:
    source.tasks = {**source.tasks, "semseg": Forgetful(10)}
    write_heads(tmp_path, {"scenes": source.view("val", ["semseg"])}, unified=True)
    assert not (tmp_path / FILE).exists()
    assert read_heads(tmp_path) is None
    source.tasks = {"depth": source.tasks["depth"]}
    source.val_transform = lambda sample, tasks, rng: {"image": ValTransform()(sample, tasks, rng)["image"]}
    write_heads(tmp_path, {"scenes": source.view("val", ["depth"])}, unified=True)
    assert not (tmp_path / FILE).exists()


def change(path: Path, **changes: object) -> None:
    content = json.loads((path / FILE).read_text())
    tasks = content["data"]["scenes"]["tasks"]
    if "class_path" in changes:
        tasks["depth"]["class_path"] = changes["class_path"]
    elif "name" in changes:
        tasks[changes["name"]] = tasks.pop("depth")
    else:
        content["data"]["scenes"].update(changes)
    (path / FILE).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_path": "os.system"}, "os.system is of no trusted module"),
        ({"class_path": "fedmtl.atomic.os"}, "no complete subclass"),
        ({"class_path": "fedmtl.prediction.heads.importlib.import_module"}, "can't be imported"),
        ({"class_path": "fedmtl.tasks.Task"}, "no complete subclass"),
        ({"class_path": 3}, "not the heads.json"),
        ({"name": "../../depth"}, "can't name a head"),
        ({"size": [10**6, 4]}, "no size of a picture"),
        ({"pad": [0, 4]}, "not the heads.json"),
        ({"tasks": None}, "not the heads.json"),
    ],
)
def test_strangers_files(source: Scenes, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_heads(tmp_path, {"scenes": source.view("val", ["depth"])}, unified=True)
    change(tmp_path, **changes)
    with trust.limited([]), pytest.raises(UserError, match=message):
        read_heads(tmp_path)


def test_own_classes_need_trust(source: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "lab" / "mine_tasks.py"
    module.parent.mkdir()
    module.write_text("from fedmtl.tasks import Depth\nclass Mine(Depth):\n    pass\n")
    monkeypatch.syspath_prepend(str(module.parent))
    write_heads(tmp_path, {"scenes": source.view("val", ["depth"])}, unified=True)
    change(tmp_path, class_path="mine_tasks.Mine")
    with trust.limited(None), pytest.raises(UserError, match="--trusted-modules mine_tasks"):
        read_heads(tmp_path)
    with trust.limited(["mine_tasks"]):
        heads = read_heads(tmp_path)
    assert heads is not None
    assert type(heads.groups[0].tasks["depth"]).__name__ == "Mine"
