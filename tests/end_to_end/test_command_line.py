"""What the user meets: help at once, and one clear line for every mistake."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmtl import __version__

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_help_loads_no_heavy_library() -> None:
    heavy = "torch", "lightning", "timm", "wandb", "jsonargparse", "numpy"
    code = f"import sys; from fedmtl.cli import main; main(['--help']); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: fedmtl" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(fedmtl: Callable[..., Any]) -> None:
    assert fedmtl("--version").out == f"fedmtl {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fitt"], "did you mean fit?"),
        (["xyz"], "there are fit, evaluate"),
        (["--config", "a.yaml", "fit"], "the command comes first: fedmtl fit --config a.yaml"),
        (["fit", "--config", "nowhere.yaml"], "--config: there is no file nowhere.yaml"),
        (["evaluate", "nowhere"], "nowhere is not the folder of a run"),
    ],
)
def test_mistakes_before_a_configuration(fedmtl: Callable[..., Any], words: list[str], message: str) -> None:
    result = fedmtl(*words)
    assert result.code == 2
    assert message in result.error
    assert len(result.error.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--baseline", "runs/local", "runs/dea"],
        ["--checkpoint", "best", "--baseline", "best", "runs/dea"],
        ["--data.val=3", "--baseline", "runs/local", "runs/dea"],
        ["--baseline", "runs/local"],
    ],
)
def test_evaluate_takes_no_keys_value_for_the_run(fedmtl: Callable[..., Any], words: list[str]) -> None:
    result = fedmtl("evaluate", *words)
    assert (result.code, result.error.count("\n")) == (2, 1)
    assert "the run comes first: fedmtl evaluate RUN --baseline VALUE" in result.error


@pytest.mark.parametrize(
    "words",
    [
        ["runs/dea", "--baseline", "runs/local"],
        ["--checkpoint", "best", "runs/dea", "--baseline", "runs/local"],
        ["--baseline=runs/local", "--checkpoint=best", "runs/dea"],
    ],
)
def test_evaluate_with_keys(fedmtl: Callable[..., Any], words: list[str]) -> None:
    assert "runs/dea is not the folder of a run" in fedmtl("evaluate", *words).error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nme", "x"], "--nme"),
        (["--round", "3"], "--round"),  # no abbreviations
        (["--rounds", "three"], "three"),
        (["--rounds", "0"], "rounds must be at least 1, not 0"),
        (["--data.trian", "3"], "data: there is no key trian; did you mean data.train?"),
        (["--data", "fedmtl.data.Nothing"], "fedmtl.data.Nothing"),
        (["--data.size", "4"], "size must be 8 to 512"),
        (["--data", "fedmtl.data.NYUDv2", "--data.root", "nowhere"], "root: there is no folder nowhere"),
        (["--clients", "[]"], "clients: the list is empty"),
        (["--clients", "[{tasks: [dept]}]"], "clients[0].tasks: scenes has no 'dept'; it has semseg, depth"),
        (["--clients", "[{tasks: [depth], count: 19}]"], "19 clients can't share 18 training images"),
        (["--clients", "[{tasks: []}]"], "clients[0]: needs at least one task"),
        (["--upload", "[{class_path: fedmtl.aggregation.DEA, init_args: {rho: 0}}]"], "rho must be a number in (0, 1]"),
        (["--upload", "[{class_path: fedmtl.aggregation.DEA, init_args: {rescale: half}}]"], "half"),
        (["--participation", "0"], "participation must be in (0, 1], not 0"),
        (["--local.epochs", "0"], "local.epochs must be positive"),
        (["--server.min_clients", "0"], "server.min_clients must be at least 1"),
        (["--model.backbone", "convnext_tinny"], "timm has no model 'convnext_tinny'"),
        (["--model.weights", "nowhere.pth"], "model.weights: there is no file nowhere.pth"),
        (["--model.channels", "12"], "model.channels must be a positive multiple of 8, not 12"),
        (["--baseline", "nowhere"], "baseline: nowhere is not there"),
        (["--name", "../x"], "name: '../x' can't name a run"),
        (["--fabric.accelerator", "cuda"], "fabric.accelerator: cuda can't be used here"),
        (["--fabric.threads", "0"], "fabric.threads must be at least 1, not 0"),
        (["--fabric.workers", "-1"], "fabric.workers must be at least 0, not -1"),
        (["--local.optimizer.lr", "-1"], "local.optimizer: Invalid learning rate: -1"),
        (["--local.optimizer", "torch.optim.LBFGS"], "local.optimizer: "),
        (["--server.optimizer", "torch.optim.LBFGS"], "server.optimizer: "),
        (["--server.min_clients", "6"], "server.min_clients needs 6 clients, but only 5 train in a round"),
        (["--share", "none"], "upload: nothing is sent with share: none"),
        (["--model.backbone", "vit_tiny_patch16_224"], "model.backbone: it can't take images of 32×32 pixels"),
        (
            ["--data.tasks", "{depth: {class_path: fedmtl.tasks.Edge}}"],
            "tasks can't give 'depth' a task",
        ),
        (["--tracker", "fedmtl.tracking.WandB", "--tracker.mode", "online"], "tracker: W&B does not start"),
        (
            ["--server.aggregator", "mine.Nope"],
            "server.aggregator: there is no class mine.Nope: No module named 'mine'",
        ),
        (["--share", "heads"], "share: Expected one of ['model', 'encoder', 'none']. Got value: heads"),
        (["--tracker", "fedmtl.tracking.WandB", "--tracker.mode", "onlin"], "tracker.mode: fedmtl.tracking.WandB: "),
        (["--upload", "[{class_path: DEAA}]"], "upload: there is no class DEAA; did you mean fedmtl.aggregation.DEA?"),
        (["--upload.rho", "2"], "error: rho must be a number in (0, 1], got 2.0"),
        (["--clients", "[{tasks: [depth], name: a/b}]"], "names must differ and hold no '/'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_run(
    fit: Callable[..., Any], tmp_path: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("NETRC", str(tmp_path / "none"))  # no key for W&B
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = fit("scenes_dea", *words)
    assert result.code == 2
    assert message in result.error
    assert len(result.error.splitlines()) == 1
    assert result.error.startswith("fedmtl fit: error: ")
    assert not list(tmp_path.glob("runs/*"))


def test_debug_shows_the_trace(fit: Callable[..., Any]) -> None:
    from fedmtl.errors import UserError

    with pytest.raises(UserError):
        fit("scenes_dea", "--clients", "[]", "--debug")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("config: [a.yaml, 3]", "config names a base file, or a list of them, not ['a.yaml', 3]"),
        ("config: self.yaml", "its config key leads back to itself"),
        ("rounds: [1", "is not YAML"),
        ("name: 2024-02-30", "is not YAML"),
        ("config: nowhere.yaml", "there is no file"),
        ("[rounds, 3]", "expected keys with values"),
        ("config: 3", "config names a base file, or a list of them, not 3"),
        ("name: \xff", "is not YAML"),
    ],
)
def test_a_file_that_cannot_be_read_as_meant(
    fedmtl: Callable[..., Any], tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "self.yaml").write_text(content, encoding="latin-1")
    result = fedmtl("fit", "--config", tmp_path / "self.yaml")
    assert result.code == 2
    assert message in result.error
    assert len(result.error.splitlines()) == 1


def test_the_command_line_wins_over_files_wherever_they_stand(fedmtl: Callable[..., Any]) -> None:
    file = EXPERIMENTS / "scenes_dea.yaml"
    for words in (
        ["--rounds", "7", "--config", file],
        ["--config", file, "--rounds=7"],
        ["--rounds=7", f"--config={file}"],
    ):
        with pytest.raises(SystemExit) as stop:
            fedmtl("fit", *words, "--print_config")
        assert stop.value.code == 0


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_parses_to_what_it_is_named_after(path: Path) -> None:
    from fedmtl.commands.configuration import experiment_parser, parse, to_dict

    parser = experiment_parser("fit", None)
    settings = to_dict(parser, parse(parser, ["--config", str(path)]))
    data, _, method = path.stem.partition("_")
    assert settings["name"] == path.stem
    classes = {"scenes": "Scenes", "nyud": "NYUDv2", "pascal": "PASCALContext"}
    if data == "mixed":
        assert {name: source["class_path"].split(".")[-1] for name, source in settings["data"].items()} == {
            name: classes[name] for name in ("pascal", "nyud")
        }
    else:
        assert settings["data"]["class_path"] == f"fedmtl.data.{classes[data]}"
    shares = {"local": "none", "central_single": "none"} | dict.fromkeys(("fedper", "fedrep", "matfl"), "encoder")
    assert settings["share"] == shares.get(method, "model")
    assert bool(settings["upload"]) == (method in ("dea", "overlap", "dare"))


def test_every_method_has_a_file_for_each_data_set() -> None:
    combined = {path.stem for path in (EXPERIMENTS / "methods").glob("dea_*.yaml")} | {"diagnosed"}
    for method in {path.stem for path in (EXPERIMENTS / "methods").glob("*.yaml")} - combined | {"central"}:
        for data in ("scenes", "nyud", "pascal"):
            path = EXPERIMENTS / f"{data}_{method}.yaml"
            assert path.is_file(), path.name
            assert len([line for line in path.read_text().splitlines() if line]) < 25


@pytest.mark.parametrize(
    "method", [path.stem for path in sorted((EXPERIMENTS / "methods").glob("*.yaml")) if path.stem != "local"]
)
def test_every_method_goes_with_any_base_and_dea(method: str) -> None:
    from fedmtl.commands.configuration import experiment_parser, parse, to_dict

    parser = experiment_parser("fit", None)
    for base in ("small", "nyud"):
        files = [f"base/{base}", f"methods/{method}", "methods/dea"]
        words = [word for file in files for word in ("--config", str(EXPERIMENTS / f"{file}.yaml"))]
        settings = to_dict(parser, parse(parser, words))
        assert settings["upload"][0]["class_path"] == "fedmtl.aggregation.DEA"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_an_experiment_is_commented(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    for line in lines[1:]:
        key, _, value = line.strip().partition(":")
        container = not value.strip()
        if key and not key.startswith(("#", "- ")) and key not in ("config", "name", "class_path", "init_args"):
            assert "#" in line or container, f"{path.name}: {line}"
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"class_path": "A", "init_args": {"x": 1, "y": 2}}, {"init_args": {"x": 3}},
         {"class_path": "A", "init_args": {"x": 3, "y": 2}}),
        ({"class_path": "A", "init_args": {"x": 1, "y": 2}}, {"class_path": "A", "init_args": {"x": 3}},
         {"class_path": "A", "init_args": {"x": 3, "y": 2}}),
        ({"class_path": "A", "init_args": {"x": 1}}, {"class_path": "B"}, {"class_path": "B"}),
        ({"class_path": "A", "init_args": {"x": 1}}, {"one": {"class_path": "B"}}, {"one": {"class_path": "B"}}),
        ({"one": {"class_path": "B"}}, {"class_path": "A"}, {"class_path": "A"}),
        ({"one": {"class_path": "B", "init_args": {"x": 1}}, "two": {}}, {"one": {"init_args": {"x": 2}}},
         {"one": {"class_path": "B", "init_args": {"x": 2}}, "two": {}}),
    ],
)  # fmt: skip
def test_files_merge_level_by_level_and_class_by_class(base: Any, over: Any, expected: Any) -> None:
    from fedmtl.commands.configuration import merge

    assert merge(base, over) == expected


def test_a_file_changes_part_of_its_bases_classes(tmp_path: Path) -> None:
    from fedmtl.commands.configuration import experiment_parser, parse

    (tmp_path / "own.yaml").write_text(
        f"config: {EXPERIMENTS / 'scenes_dea.yaml'}\nmodel: {{init_args: {{channels: 8}}}}\n"
        "local: {optimizer: {init_args: {lr: 0.5}}}\nfabric: {threads: 2}\n"
    )
    config = parse(experiment_parser("fit", None), ["--data.val", "7", "--config", str(tmp_path / "own.yaml")])
    assert (config.model.init_args.channels, config.model.init_args.backbone) == (8, "convnext_atto")
    optimizer = config.local.init_args.optimizer.init_args
    assert (optimizer.lr, optimizer.weight_decay) == (0.5, 1e-4)
    assert (config.fabric.threads, config.fabric.precision) == (2, "32-true")
    assert (config.data.init_args.val, config.data.init_args.train) == (7, 250)
    assert config.upload[0].init_args.rho == 0.5
