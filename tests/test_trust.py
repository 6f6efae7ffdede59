"""Which modules' classes may be named, and that nothing else is imported."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmtl.commands.configuration import experiment_parser, limit_classes, parse
from fedmtl.data.description import read_description
from fedmtl.errors import UserError
from fedmtl.trust import BUILT_IN, Trust, limited, of_others_files, of_own_files

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.mark.parametrize("path", ["mine", "mine.A", "mine.tasks.A", "lab.nets.UNet"])
def test_what_lies_at_or_below_a_name_is_trusted(path: str) -> None:
    trust = Trust(("mine", "lab.nets.UNet"))
    assert trust.covers(path)
    trust.check(path, "here")


@pytest.mark.parametrize(
    "path", ["", "min", "mine2", "mine2.A", "not.mine", "lab", "lab.nets", "lab.nets.UNet2", "Mine.A"]
)
def test_what_only_looks_like_a_name_is_not(path: str) -> None:
    trust = Trust(("mine", "lab.nets.UNet"))
    assert not trust.covers(path)
    with pytest.raises(UserError, match=r"^a\.yaml, model: .*--trusted-modules") as error:
        trust.check(path, "a.yaml, model")
    assert len(str(error.value).splitlines()) == 1


def test_without_names_everything_is_trusted() -> None:
    assert Trust().covers("os.system")
    assert not Trust(()).covers("fedmtl.data.Scenes")


NOT_BUILT_IN = """
    torch torch.hub.load torch.load torch.utils.cpp_extension.load torch.nn.Linear torch.optimum.A
    timm timm.create_model timm.optim.create_optimizer_v2 timm.schedulers os.system builtins.eval fedmtl2.A
"""


@pytest.mark.parametrize("path", NOT_BUILT_IN.split())
def test_no_more_of_torch_and_timm_is_built_in_than_is_needed(path: str) -> None:
    assert not Trust(BUILT_IN).covers(path)


def class_paths(tree: Any) -> list[str]:
    if isinstance(tree, dict):
        inner = [path for value in tree.values() for path in class_paths(value)]
        return [*inner, tree["class_path"]] if "class_path" in tree else inner
    return [path for value in tree for path in class_paths(value)] if isinstance(tree, list) else []


def test_every_experiment_does_with_what_is_built_in() -> None:
    files = sorted(EXPERIMENTS.rglob("*.yaml"))
    named = {path for file in files for path in class_paths(yaml.safe_load(file.read_text()))}
    assert len(named) > 20
    assert [path for path in named if not Trust(BUILT_IN).covers(path)] == []


def test_a_command_limits_other_peoples_files_always_and_ones_own_if_modules_are_named() -> None:
    assert (of_own_files(), of_others_files()) == (Trust(), Trust())
    with limited(None):
        assert (of_own_files(), of_others_files()) == (Trust(), Trust(BUILT_IN))
        with limited(["mine"]):
            assert of_own_files() == of_others_files() == Trust((*BUILT_IN, "mine"))
        assert of_own_files() == Trust()
    with pytest.raises(RuntimeError), limited(["mine"]):
        raise RuntimeError
    assert (of_own_files(), of_others_files()) == (Trust(), Trust())


@pytest.mark.parametrize("name", ["", "a b", "a-b", "a.", ".a", "a..b", "1a", "*", "mine.*", "a/b"])
def test_names_must_be_dotted_paths(name: str) -> None:
    with pytest.raises(UserError, match="--trusted-modules takes modules"), limited(["fine", name]):
        pass


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a mark when it runs; its mark."""
    (tmp_path / "evil_of_test_trust.py").write_text(
        "from pathlib import Path\n\nfrom fedmtl.tasks import Depth\n\n"
        "Path(__file__).with_name('ran').touch()\n\n\nclass Evil(Depth):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil_of_test_trust", raising=False)
    return tmp_path / "ran"


def test_a_task_of_a_strangers_module_is_refused_before_it_is_imported(evil: Path) -> None:
    path = evil.with_name("dataset.yaml")
    path.write_text("tasks: {t: {class_path: evil_of_test_trust.Evil}}")
    with limited(None), pytest.raises(UserError, match="task t: class_path: evil_of_test_trust.Evil is of no trusted"):
        read_description(path)
    assert not evil.exists()
    with limited(["evil_of_test_trust"]):
        read_description(path)
    assert evil.exists()


def test_a_limit_on_parsers_holds_until_the_next_parser(evil: Path) -> None:
    words = ["--config", str(EXPERIMENTS / "scenes_dea.yaml"), "--model", "evil_of_test_trust.Evil"]
    with pytest.raises(UserError, match="model: evil_of_test_trust.Evil is of no trusted module"):
        parse(experiment_parser("fit", None, trusted=Trust(BUILT_IN)), words)
    assert not evil.exists()
    with pytest.raises(UserError, match="evil_of_test_trust.Evil"):  # no model, but its module runs
        parse(experiment_parser("fit", None), words)
    assert evil.exists()


def test_the_parsers_own_settings_cannot_be_trusted() -> None:
    try:
        with pytest.raises(UserError, match="--trusted-modules: .*jsonargparse"):
            limit_classes(Trust(("jsonargparse",)))
    finally:
        limit_classes(Trust())
