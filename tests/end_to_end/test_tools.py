"""list, init and doctor, as a user meets them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..data.folder_files import make_folder

ROOT = Path(__file__).parents[2]
TINY = ["--data.train", "18", "--data.val", "5", "--data.size", "32", "--model.backbone", "test_convnext"]
SHORT = ["--model.channels", "8", "--rounds", "1", "--eval_every", "1", "--pictures", "0", "--tracker", "null"]


# list


@pytest.mark.parametrize(
    ("topic", "row"),
    [
        ("methods", "fedmtl.aggregation.Krum\tserver.aggregator\tMean of the m updates nearest to their neighbours"),
        (
            "methods",
            "experiments/methods/dea.yaml\t--config\tFedDEA: clients send only the largest entries of their up",
        ),
        ("tasks", "fedmtl.tasks.Depth\tDepth regression, measured by the RMSE in metres"),
        ("datasets", "fedmtl.data.Scenes\tdata\tFurnished rooms with exact labels"),
        ("experiments", "experiments/nyud_krum.yaml\tfit\tMulti-Krum on NYUD-v2"),
        ("experiments", "experiments/sweeps/rho.yaml\tsweep\tFedDEA's ρ: which share of an update's entries a client"),
    ],
)
def test_a_list_in_a_pipe_is_a_line_a_row(
    fedmtl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, topic: str, row: str
) -> None:
    monkeypatch.chdir(ROOT)
    result = fedmtl("list", topic)
    assert result.code == 0
    lines = result.out.splitlines()
    assert any(line.startswith(row) for line in lines)
    assert len({line.count("\t") for line in lines}) == 1
    assert all(all(cell.strip() for cell in line.split("\t")) for line in lines)


def test_every_file_and_public_class_of_a_method_is_listed(fedmtl: Callable[..., Any]) -> None:
    from fedmtl import aggregation, algorithms, mixing, server
    from fedmtl.commands.keys import all_keys

    listed = {line.split("\t")[0]: line.split("\t")[1] for line in fedmtl("list", "methods").out.splitlines()}
    for room in (aggregation, algorithms, mixing, server):
        for name in room.__all__:
            taken = {key.path for key in all_keys() if f"fedmtl.{room.__name__.split('.')[1]}.{name}" in key.classes}
            if taken - {"server"} and name != "LocalAlgorithm":
                assert listed[f"{room.__name__}.{name}"] in taken
    assert {Path(name).stem for name in listed if name.endswith(".yaml")} == {
        path.stem for path in (ROOT / "experiments" / "methods").glob("*.yaml")
    }


def test_backbones(fedmtl: Callable[..., Any]) -> None:
    import timm

    lines = fedmtl("list", "backbones", "convnext_*").out.splitlines()
    assert {line.split("\t")[0] for line in lines} == set(timm.list_models("convnext_*"))
    assert "convnext_atto\t224×224\tpretrained\tConvNeXt" in lines


def test_a_word_narrows_a_list(fedmtl: Callable[..., Any]) -> None:
    assert [line.split("\t")[0] for line in fedmtl("list", "tasks", "DEPTH").out.splitlines()] == ["fedmtl.tasks.Depth"]
    result = fedmtl("list", "tasks", "xyz")
    assert result.code == 2
    assert "none of the tasks fits 'xyz'" in result.error


def test_a_list_loads_no_heavy_library() -> None:
    code = (
        "import sys; from fedmtl.cli import main; main(['list', 'methods']);"
        "from fedmtl.commands import fit_help; fit_help.main([]);"
        "print([name for name in ('torch', 'timm', 'lightning', 'jsonargparse', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_list_that_is_cut_off_says_nothing_of_it() -> None:
    line = f"{sys.executable} -m fedmtl list methods | head -1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


# init


@pytest.mark.slow
def test_what_init_lays_down_runs(fedmtl: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fedmtl("init", "own lab").code == 0
    folder = tmp_path / "own lab"
    commands = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("fedmtl ")]
    assert len(commands) == 3
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")
    for command in commands[:2]:
        result = fedmtl(*command.split()[1:], *TINY, *SHORT)
        assert result.code == 0, result.error
    runs = [Path(word) for word in commands[2].split() if word.startswith("runs/")]
    assert runs == [Path("runs/own_lab_dea"), Path("runs/own_lab_own")]
    kept = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
    assert kept[0]["upload"][0]["class_path"] == "fedmtl.aggregation.DEA"
    server = kept[1]["server"].get("init_args", kept[1]["server"])
    assert server["aggregator"]["class_path"] == "mine.SignPower"
    assert fedmtl(*commands[2].split()[1:]).code == 0


@pytest.mark.parametrize(("method", "key"), [("krum", "byzantine: 0, keep: 3"), ("trimmed_mean", "trim: 0.25")])
@pytest.mark.parametrize("data", ["nyud", "folder"])
def test_a_method_suits_few_clients(
    fedmtl: Callable[..., Any], tmp_path: Path, data: str, method: str, key: str
) -> None:
    assert fedmtl("init", tmp_path / "lab", "--data", data, "--method", method).code == 0
    assert key in (tmp_path / "lab" / "config.yaml").read_text()


@pytest.mark.parametrize("data", ["scenes", "folder", "nyud", "pascal"])
@pytest.mark.parametrize("method", ["dea", "fednova", "fedhca2", "central_single"])
def test_each_data_set_and_method_parses(
    fedmtl: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, method: str
) -> None:
    from fedmtl.commands.configuration import experiment_parser, parse, to_dict

    assert fedmtl("init", tmp_path / "lab", "--data", data, "--method", method).code == 0
    monkeypatch.chdir(tmp_path / "lab")
    monkeypatch.syspath_prepend(str(tmp_path / "lab"))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    parser = experiment_parser("fit", None)
    for file, name in {"config.yaml": f"lab_{method}", "own_method.yaml": "lab_own"}.items():
        settings = to_dict(parser, parse(parser, ["--config", file]))
        assert settings["name"] == name
        assert settings["data"]["class_path"].lower().startswith(f"fedmtl.data.{data}")
    ours = yaml.safe_load((ROOT / "experiments" / "methods" / f"{method}.yaml").read_text())
    written = yaml.safe_load(Path("config.yaml").read_text())
    assert {key: written[key] for key in ours} == ours
    assert ("fedmtl data check data/" in Path("README.md").read_text()) == (data != "scenes")


def test_clients_are_those_of_ones_own_data(fedmtl: Callable[..., Any], tmp_path: Path) -> None:
    from PIL import Image

    pictures = tmp_path / "my pictures"
    tasks = {"land": {"kind": "semseg", "num_classes": 3}, "height": {"kind": "depth"}}
    make_folder(pictures, {"tasks": tasks}, {})
    for i in range(6):
        for what, mode in {"images": "RGB", "land": "L", "height": "L"}.items():
            (pictures / what).mkdir(exist_ok=True)
            Image.new(mode, (40, 32), 1 if mode == "L" else (i, i, i)).save(pictures / what / f"{i}.png")
    result = fedmtl("init", tmp_path / "lab", "--data", "folder", "--root", pictures)
    assert result.code == 0, result.error
    base = yaml.safe_load((tmp_path / "lab" / "base.yaml").read_text())
    assert base["clients"] == [{"tasks": ["land"]}, {"tasks": ["height"]}]
    assert base["data"]["init_args"]["root"] == str(pictures)


def test_init_overwrites_nothing(fedmtl: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("precious")
    result = fedmtl("init", tmp_path)
    assert result.code == 2
    assert f"{tmp_path / 'mine.py'} is there already" in result.error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
    result = fedmtl("init", tmp_path / "mine.py" / "below")
    assert result.code == 2
    assert len(result.error.splitlines()) == 1
    assert "scenes are made" in fedmtl("init", tmp_path / "lab", "--root", tmp_path).error


def test_own_aggregator_does_as_it_says() -> None:
    import numpy as np
    import torch

    from fedmtl.aggregation import PartUpdate
    from fedmtl.commands.templates.mine import SignPower

    rng = np.random.default_rng(0)
    updates, weights = rng.normal(size=(4, 50)), rng.random(4) + 0.1
    share = weights[:, None] / weights.sum()
    for power in (0.0, 1.0, 2.0):
        expected = (share * updates).sum(0) * np.abs((share * np.sign(updates)).sum(0)) ** power
        aggregator = SignPower(power=power)
        for _ in range(2):  # the second round starts empty
            for update, weight in zip(updates, weights, strict=True):
                aggregator.add(PartUpdate(torch.tensor(update)), float(weight))
            merged = aggregator.merge()
            assert merged is not None
            np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-12)
        assert aggregator.merge() is None
    with pytest.raises(ValueError, match="power must not be negative"):
        SignPower(power=-1)


def test_an_installed_package_finds_its_own_experiments(
    fedmtl: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmtl.commands import catalogue

    inside = tmp_path / "site" / "fedmtl"
    shutil.copytree(ROOT / "fedmtl", inside, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "experiments", inside / "experiments")
    monkeypatch.setattr(catalogue, "PACKAGE", inside)
    monkeypatch.chdir(tmp_path)
    rows = fedmtl("list", "experiments", "nyud_dea*").out.splitlines()
    assert [row.split("\t")[0] for row in rows] == ["site/fedmtl/experiments/nyud_dea.yaml"]
    assert fedmtl("init", "lab", "--data", "nyud").code == 0
    assert (tmp_path / "lab" / "base.yaml").is_file()


# doctor


def doctor(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[Any, dict[str, dict[str, str]]]:
    from fedmtl.cli import main

    code: Any = 0
    try:
        main(["doctor", "--json", *map(str, words)])
    except SystemExit as stop:
        code = stop.code
    return code, {one["about"]: one for one in json.loads(capsys.readouterr().out)}


def test_a_sound_installation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, nyud_root: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    root = nyud_root()
    code, found = doctor(capsys, "--data", root, "--out", tmp_path / "runs")
    assert code == 0, [one for one in found.values() if one["mark"] == "wrong"]
    assert {one["mark"] for one in found.values()} <= {"ok", "warning"}
    assert found["torch"]["found"].startswith(__import__("torch").__version__.partition("+")[0])
    assert found["data"]["found"].startswith(f"nyud in {root}: 4 train, 2 val; tasks semseg, depth")
    assert "kept offline" in found["W&B"]["found"]
    assert found["threads"]["found"].endswith("runs take fabric.threads; torch's choice if null")
    assert "GiB free" in found["runs"]["found"]
    assert not (tmp_path / "runs").exists()


def test_what_is_wrong_comes_with_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib
    import importlib.metadata

    load, version = importlib.import_module, importlib.metadata.version

    def broken(name: str, *rest: Any) -> Any:
        if name in ("torchvision", "timm"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return load(name, *rest)

    versions = {"lightning": "2.6.2", "numpy": "1.0", "torchmetrics": None}

    def stated(name: str) -> str:
        if name in versions and versions[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or version(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(importlib.metadata, "version", stated)
    needs = {"fedmtl": ["numpy>=1.26", 'pytest>=8.4; extra == "dev"'], "torchvision": ["torch (==1.0)"]}
    monkeypatch.setattr(importlib.metadata, "requires", needs.get)
    (tmp_path / "file").write_text("")
    code, found = doctor(capsys, "--data", tmp_path, "--out", tmp_path / "file" / "runs")
    assert code == 1
    wrong = {about: one["advice"] for about, one in found.items() if one["mark"] == "wrong"}
    assert wrong.keys() >= {"torchvision", "timm", "lightning", "numpy", "torchmetrics", "data", "runs"}
    assert wrong["torchvision"].startswith("torch and torchvision do not match")
    assert wrong["timm"] == "mend torchvision first"
    assert "malware" in found["lightning"]["found"]
    assert wrong["numpy"] == 'pip install "numpy>=1.26"'
    assert found["torch"]["found"].endswith("but this torchvision is made for ==1.0")
    assert wrong["torchmetrics"] == "pip install torchmetrics"
    assert all(wrong.values())


def test_the_doctor_stands_without_torch(tmp_path: Path) -> None:
    for name in ("torch", "torchvision", "timm"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    done = subprocess.run(
        [sys.executable, "-m", "fedmtl", "doctor", "--data", str(tmp_path)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert any("torch" in line and "libcudart.so.12" in line and line.startswith("✗") for line in lines)
    assert "please report" not in done.stdout
    assert any(line.split()[:2] == ["✓", "numpy"] for line in lines)


def test_no_secret_and_no_home_is_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FEDMTL_CACHE")
    monkeypatch.setenv("HF_ENDPOINT", "https://anna:geheim@mirror.example")
    monkeypatch.setenv("WANDB_API_KEY", key)
    _, found = doctor(capsys, "--out", tmp_path / "runs")
    text = json.dumps(found, ensure_ascii=False)
    assert key not in text
    assert "geheim" not in text
    assert str(tmp_path) not in text
    assert found["runs"]["found"].startswith("~/runs")
    assert "runs go online" in found["W&B"]["found"]
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.delenv("NETRC", raising=False)
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {key}\n")
    (tmp_path / ".netrc").chmod(0o600)
    _, found = doctor(capsys)
    assert "a key is set up (~/.netrc)" in found["W&B"]["found"]


def test_the_mismatch_is_told_as_everywhere() -> None:
    from fedmtl.cli import HINTS
    from fedmtl.commands.doctor import MISMATCH

    assert HINTS["torchvision::"] is MISMATCH
    assert "pip install -e ." in MISMATCH
