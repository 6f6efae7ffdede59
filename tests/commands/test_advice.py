"""A slip in a configuration is met with what was meant, and with the file that it is in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmtl.commands.configuration import experiment_parser, parse
from fedmtl.errors import UserError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def told() -> Callable[..., str]:
    parser = experiment_parser("fit", None)
    parser.add_argument("--resume", default="never")

    def call(*words: Any) -> str:
        with pytest.raises(UserError) as error:
            parse(parser, ["--config", str(EXPERIMENTS / "scenes_dea.yaml"), *map(str, words)])
        text = str(error.value)
        assert len(text.splitlines()) == 1
        assert "Namespace" not in text
        return text

    return call


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("--nme x", "--name"),
        ("--rouds=3", "--rounds"),
        ("--resum auto", "--resume"),
        ("--fabri.threads 1", "--fabric.threads"),
        ("--data.trian 3", "data.train"),
        ("--local.epoch 3", "local.epochs"),
        ("--local.optimzer.lr 3", "local.optimizer.lr"),
        ("--local.optimizer.lrr 3", "local.optimizer.lr"),
        ("--model.backbon x", "model.backbone"),
        ("--fabric.thread 1", "fabric.threads"),
        ("--server.aggregtor x", "server.aggregator"),
        ("--upload.rh 0.1", "upload.rho"),
        ("--tracker.projct x", "tracker.project"),
        ("--rho 0.3", "--upload.rho"),
        ("--backbone x", "--model.backbone"),
        ("--lr 0.1", "--local.optimizer.lr"),
        ("--epochs 3", "--local.epochs"),
        ("--optimizer SGD", "--local.optimizer"),
        ("--local.lr 3", "local.optimizer.lr"),
        ("--tracker WandBB", "fedmtl.tracking.WandB"),
        ("--server.aggregator Kru", "fedmtl.aggregation.Krum"),
        ("--server.aggregator krum", "fedmtl.aggregation.Krum"),
        ("--local.algorithm Scafold", "fedmtl.algorithms.Scaffold"),
        ("--data Scene", "fedmtl.data.Scenes"),
        ("--model UnifedModel", "fedmtl.models.UnifiedModel"),
        ("--partition Dirichlt", "fedmtl.data.Dirichlet"),
        ("--local.optimizer torch.optim.Adamm", "torch.optim.Adam"),
        ("--local.schedule timm.scheduler.CosineLRSchedule", "timm.scheduler.CosineLRScheduler"),
        ("--server.optimizer Addam", "torch.optim.Adam"),
    ],
)
def test_a_word_on_the_command_line(told: Callable[..., str], words: str, meant: str) -> None:
    assert told(*words.split()).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("content", "meant"),
    [
        ("roundss: 3", "rounds"),
        ("backbone: convnext_atto", "model.backbone"),
        ("epochs: 3", "local.epochs"),
        ("local: {lr: 1}", "local.optimizer.lr"),
        ("local: {epoch: 3}", "local.epochs"),
        ("local: {optimizer: {init_args: {lrr: 3}}}", "local.optimizer.lr"),
        ("data: {init_args: {trian: 3}}", "data.train"),
        ("server: {agregator: 3}", "server.aggregator"),
        ("clients: [{task: [depth]}]", "clients.tasks"),
        ("clients: [{tasks: [depth], cuont: 1}]", "clients.count"),
        ("clients: [{tasks: [depth], model: {class_path: UnifiedModel, init_args: {bakbone: x}}}]",
         "clients.model.backbone"),
        ("upload: [{class_path: fedmtl.aggregation.DEA, init_args: {rhoo: 0.1}}]", "upload.rho"),
        ("upload: [{class_path: fedmtl.aggregation.DEA, init_args: {rho: {class_path: ScheduledRho,"
         " init_args: {strt: 1}}}}]", "upload.rho.start"),
        ("local: {algorithm: {class_path: fedmtl.algorithms.FedProx, init_args: {muu: 1}}}", "local.algorithm.mu"),
        ("faults: {dropot: 1}", "faults.dropout"),
        ("server: {class_path: fedmtl.server.PersonalServer, init_args: {mixin: 3}}", "server.mixing"),
        ("upload: [{class_path: DEAA}]", "fedmtl.aggregation.DEA"),
        ("upload: [{class_path: fedmtl.aggregation.DEAA}]", "fedmtl.aggregation.DEA"),
        ("upload: [{class_path: fedmtl.aggregaton.DEA}]", "fedmtl.aggregation.DEA"),
        ("upload: [{class_path: fedmtl.aggregation.DEA, init_args: {rho: {class_path: LayerRh}}}]",
         "fedmtl.aggregation.LayerRho"),
        ("server: {aggregator: {class_path: fedmtl.aggregation.Kru}}", "fedmtl.aggregation.Krum"),
        ("server: {class_path: fedmtl.server.Sever}", "fedmtl.server.Server"),
        ("model: {class_path: fedmtl.models.UnifiedMdel}", "fedmtl.models.UnifiedModel"),
        ("data: {a: {class_path: fedmtl.data.Scens}}", "fedmtl.data.Scenes"),
        ("tracker: {class_path: fedmtl.tracking.WanB}", "fedmtl.tracking.WandB"),
        ("upload: [{class_path: fedmtl.aggregation.DEA, int_args: {rho: 0.1}}]", "init_args"),
        ("server: {aggregator: {clas_path: Krum}}", "class_path"),
    ],
)  # fmt: skip
def test_a_key_or_class_in_a_file(told: Callable[..., str], tmp_path: Path, content: str, meant: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content)
    text = told("--config", path)
    assert text.startswith(f"{path}: ")
    assert text.endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--optmizer.lr=3", "there is no key --optmizer.lr; did you mean --local.optimizer.lr?"),
        ("--optmizer.lr 3", "there is no key --optmizer.lr; did you mean --local.optimizer.lr?"),
        ("--local.optimizer.lrr 3", "local.optimizer: there is no key lrr; did you mean local.optimizer.lr?"),
        ("--local.optimzer.lr 3", "local: there is no key optimzer.lr; did you mean local.optimizer.lr?"),
        ("--server.aggregator krum",
         "server.aggregator: there is no class krum; did you mean fedmtl.aggregation.Krum?"),
        ("--server.aggregator fedmtl.aggregation.Kru",
         "server.aggregator: there is no class fedmtl.aggregation.Kru; did you mean fedmtl.aggregation.Krum?"),
        ("--local.optimizer torch.optim.Adamm",
         "local.optimizer: there is no class torch.optim.Adamm; did you mean torch.optim.Adam?"),
        ("stray", "what is stray? Keys begin with --"),
    ],
)  # fmt: skip
def test_one_slip_is_one_sentence_and_accuses_no_other_class(
    told: Callable[..., str], words: str, sentence: str
) -> None:
    assert told(*words.split()) == sentence


def test_a_module_of_ones_own_that_breaks_says_why(
    told: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaking.py").write_text("import json\n\njson.no_such\n\n\nclass Mean: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = told("--server.aggregator", "breaking.Mean")
    assert "module 'json' has no attribute 'no_such'" in text
    assert "there is no class" not in text
    assert "there is no class absent.Mean: No module named 'absent'" in told("--server.aggregator", "absent.Mean")


def test_the_file_is_the_one_that_holds_the_slip_even_below_others(told: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("server: {weightin: uniform}")
    (tmp_path / "own.yaml").write_text("config: base.yaml\nserver: {min_clients: 1}")
    (tmp_path / "last.yaml").write_text("rounds: 3")
    text = told("--config", tmp_path / "own.yaml", "--config", tmp_path / "last.yaml", "--rounds", 4)
    assert text.startswith(f"{tmp_path / 'base.yaml'}: server: ")
    assert text.endswith("did you mean server.weighting?")


def test_what_the_command_line_says_is_no_fault_of_a_file(told: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("share: encoder")
    for words in (["--share", "modle"], ["--share=modle"]):
        assert told("--config", tmp_path / "own.yaml", *words).startswith("share: Expected one of ['model', ")
    (tmp_path / "own.yaml").write_text("share: modle")
    assert told("--config", tmp_path / "own.yaml", "--seed", 3).startswith(f"{tmp_path / 'own.yaml'}: share: ")


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("--share modle", "Expected one of ['model', 'encoder', 'none']"),
        ("--upload.rescale invers", "Expected one of ['inverse', 'none', 'norm', 'overlap']"),
        ("--rounds three", "Expected a whole number. Got value: three"),
        ("--participation all", "Expected a number. Got value: all"),
        ("--local.keep_optimizer maybe", "Expected true or false. Got value: maybe"),
        ("--server.aggregator fedmtl.aggregation.DEA", "there are fedmtl.aggregation.CAGrad, fedmtl.aggregation.Krum"),
        ("--partition zzz", "there are fedmtl.data.IID"),
        ("--local.optimizer.momentum 1", "; it is a key of torch.optim."),
        ("--data.zzz 1", "there are train, val"),
    ],
)
def test_what_is_allowed_where_nothing_is_near(told: Callable[..., str], words: str, allowed: str) -> None:
    assert allowed in told(*words.split())


def test_a_file_that_is_not_there(told: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("rounds: 3")
    assert told("--config", tmp_path / "mne.yaml").endswith(f"; did you mean {tmp_path / 'mine.yaml'}?")
    monkeypatch.chdir(tmp_path)
    ours = EXPERIMENTS / "nyud_dea.yaml"
    assert told("--config", "experiments/nyud_dea.yaml").endswith(f"experiments/nyud_dea.yaml; did you mean {ours}?")
    assert told("--config", "zzz.yaml").endswith("there is no file zzz.yaml")


def test_a_key_of_a_class_of_ones_own_is_known(
    told: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "advised.py").write_text(
        "from fedmtl.aggregation import WeightedMean\n\n\nclass Mean(WeightedMean):\n"
        "    def __init__(self, *, sharpness: float = 1.0) -> None:\n        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from fedmtl.commands.keys import all_keys

    all_keys.cache_clear()
    text = told("--server.aggregator", "advised.Mean", "--server.aggregator.sharpnes", "2")
    assert text.endswith("; did you mean server.aggregator.sharpness?")


def test_every_key_of_every_experiment_is_among_all_keys() -> None:
    import yaml

    from fedmtl.commands.keys import all_keys

    paths = {key.path for key in all_keys()}
    free = ("data.dials", "data.tasks", "model.options", "upload.rho.rho_by_pattern")  # names that the user gives

    def check(content: Any, path: str, where: str) -> None:
        for item in content if isinstance(content, list) else ():
            check(item, path, where)
        for key, value in content.items() if isinstance(content, dict) else ():
            below = path if key in ("init_args",) else f"{path}.{key}".strip(".")
            if key in ("config", "class_path") or below.startswith(free) or (path == "data" and "_" not in below):
                continue
            assert key == "init_args" or below in paths, f"{where}: {below}"
            check(value, below, where)

    for file in sorted([*EXPERIMENTS.glob("*.yaml"), *EXPERIMENTS.glob("methods/*.yaml"), *EXPERIMENTS.glob("base/*")]):
        content = yaml.safe_load(file.read_text())
        if file.stem.startswith("mixed"):
            content.pop("data", None)  # data sets by name
        check(content, "", file.name)
