"""Federations from YAML through the real command line: several data sets, partitions, what is printed and saved."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def domains(tmp_path: Path, tiny: Path) -> Callable[..., Path]:
    """Writes an experiment with the two domains of Scenes; `changes` replace its keys."""

    def write(name: str = "domains", **changes: Any) -> Path:
        def scenes(domain: str, size: int) -> dict[str, Any]:
            return {
                "class_path": "fedmtl.data.Scenes",
                "init_args": {"domain": domain, "size": size, "train": 12, "val": 3},
            }

        small = {key: value for key, value in yaml.safe_load(tiny.read_text()).items() if key != "data"}
        experiment = {
            "config": str(EXPERIMENTS / "base" / "scenes.yaml"),
            "name": name,
            **small,
            "data": {"day": scenes("day", 32), "night": scenes("night", 40)},
            "clients": [
                {"tasks": ["semseg"], "data": "day"},
                {"tasks": ["depth", "normals"], "data": "day", "epochs": 2},
                {"tasks": ["semseg"], "data": "night", "count": 2, "name": "dark",
                 "partition": {"class_path": "fedmtl.data.QuantitySkew"}},
            ],
            "tracker": None,
            **changes,
        }  # fmt: skip
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(experiment))
        return path

    return write


def run(tmp_path: Path, name: str = "domains") -> Path:
    return tmp_path / "runs" / name


def test_two_data_sets_in_one_federation(
    domains: Callable[..., Path], fedmtl: Callable[..., Any], rows: Callable[[Path], Any], tmp_path: Path
) -> None:
    local = domains("alone", share="none")
    assert fedmtl("fit", "--config", local).code == 0
    result = fedmtl("fit", "--config", domains(), "--baseline", run(tmp_path, "alone"))
    assert result.code == 0, result.error
    for word in ("4 clients", "day_depth+normals", "dark-1", "night", "epochs and steps: of a round"):
        assert word in result.out
    saved = json.loads((run(tmp_path) / "federation.json").read_text())
    kept = ("client", "data", "tasks", "images", "epochs", "steps")
    assert [tuple(row[key] for key in kept) for row in saved] == [
        ("day_semseg", "day", ["semseg"], 6, 1, 3),
        ("day_depth+normals", "day", ["depth", "normals"], 6, 2, 6),
        ("dark-1", "night", ["semseg"], 4, 1, 2),
        ("dark-2", "night", ["semseg"], 8, 1, 4),
    ]
    assert len({image for row in saved[2:] for image in row["ids"]}) == 12
    last = rows(run(tmp_path))[-1]
    heads = {"day_semseg/mIoU", "day_depth/RMSE", "day_normals/mErr", "night_semseg/mIoU"}
    assert heads <= {key.removeprefix("val/") for key in last}
    assert {f"val/{head.split('/')[0]}/delta" for head in heads} <= set(last)
    results = json.loads((run(tmp_path) / "results.json").read_text())
    assert results["validation"] == {"day": 3, "night": 3}
    figures = sorted(path.name for path in (run(tmp_path) / "figures").glob("*.png"))
    assert figures == [f"round_00000{i}_{name}.png" for i in (1, 2) for name in ("day", "night")]
    again = fedmtl("evaluate", run(tmp_path))
    assert again.code == 0
    assert f"{last['val/night_semseg/mIoU']:.4f}" in again.out


def test_a_data_set_of_several_is_changed_by_its_name(domains: Callable[..., Path], fedmtl: Callable[..., Any]) -> None:
    result = fedmtl("fit", "--config", domains(), "--data.night.train", "2", "--rounds", "1")
    assert result.code == 0, result.error
    assert [line.split("│")[4].strip() for line in result.out.splitlines() if "dark-" in line and "│" in line] == [
        "1",
        "1",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.night.trian", "2"], "trian"),
        (["--data.night.train", "0"], "train must be 1 or more, not 0"),
        (["--data.night.train", "1"], "2 clients can't share 1 training images of scenes"),
        (["--data", "null"], "data"),
    ],
)
def test_mistakes_in_data_sets_are_one_line(
    words: list[str], message: str, domains: Callable[..., Path], fedmtl: Callable[..., Any], tmp_path: Path
) -> None:
    result = fedmtl("fit", "--config", domains(), *words)
    assert result.code == 2
    assert message in result.error
    assert len(result.error.strip().splitlines()) == 1
    assert not run(tmp_path).exists()


def test_a_run_is_not_gone_on_with_on_other_images(
    domains: Callable[..., Path], fedmtl: Callable[..., Any], tmp_path: Path
) -> None:
    lists = tmp_path / "lists.yaml"
    lists.write_text("dark-1: [000001]\ndark-2: [000002, 000003]\n")
    path = domains()
    experiment = yaml.safe_load(path.read_text())
    experiment["clients"][2]["partition"] = {"class_path": "fedmtl.data.ListFile", "init_args": {"path": str(lists)}}
    path.write_text(yaml.safe_dump(experiment))
    words = ["fit", "--config", path, "--resume", "auto"]
    assert fedmtl(*words).code == 0
    assert fedmtl(*words).code == 0
    lists.write_text("dark-1: [000004]\ndark-2: [000002, 000003]\n")
    result = fedmtl(*words)
    assert result.code == 2
    assert "the run began with other clients or images" in result.error
    assert run(tmp_path).exists()


def test_a_run_without_a_checkpoint_may_begin_again_with_other_settings(
    domains: Callable[..., Path], fedmtl: Callable[..., Any], tmp_path: Path
) -> None:
    words = ["fit", "--config", domains(), "--resume", "auto"]
    assert fedmtl(*words).code == 0
    shutil.rmtree(run(tmp_path) / "checkpoints")
    before = (run(tmp_path) / "federation.json").read_text()
    result = fedmtl(*words, "--seed", "5")
    assert result.code == 0, result.error
    assert (run(tmp_path) / "federation.json").read_text() != before


SMALL = {
    "model": {"init_args": {"backbone": "test_convnext", "channels": 8, "pretrained": False, "options": None}},
    "local": {"batch_size": 2, "epochs": 1},
    "rounds": 2,
    "eval_every": 1,
    "checkpoint_every": 1,
    "pictures": 2,
    "tracker": None,
}


def small(tmp_path: Path, data: dict[str, Any]) -> Path:
    """A configuration that makes an experiment on real layouts tiny; give it after the experiment's own."""
    fabric = {"accelerator": "cpu", "threads": 1, "workers": 1}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "out": str(tmp_path / "runs"), "fabric": fabric, "data": data}))
    return path


def folder(root: Path, crop: tuple[int, int] = (32, 32)) -> dict[str, Any]:
    return {"init_args": {"root": str(root), "crop": list(crop)}}


def test_pascal_runs_from_a_folder(
    fedmtl: Callable[..., Any], tmp_path: Path, pascal_root: Callable[..., Path], rows: Callable[[Path], Any]
) -> None:
    config = small(tmp_path, folder(pascal_root(train=12, val=4)))
    for name in ("pascal_local", "pascal_dea"):
        words = ["--baseline", run(tmp_path, "pascal_local")] if name == "pascal_dea" else []
        result = fedmtl("fit", "--config", EXPERIMENTS / f"{name}.yaml", "--config", config, *words)
        assert result.code == 0, result.error
        metrics = {"semseg/mIoU", "human_parts/mIoU", "saliency/maxF", "normals/mErr", "edge/odsF", "edge/oisF"}
        assert {f"val/{metric}" for metric in metrics} <= set(rows(run(tmp_path, name))[-1])
    results = json.loads((run(tmp_path, "pascal_dea") / "results.json").read_text())
    assert results["primary"]["saliency"]["metric"] == "mIoU"
    assert set(results["last"]["delta_m"]["tasks"]) <= {"semseg", "human_parts", "saliency", "normals", "edge"}
    saved = json.loads((run(tmp_path, "pascal_dea") / "federation.json").read_text())
    parts = next(row for row in saved if row["tasks"] == ["human_parts"])
    assert all((int(image.split("_")[1]) - 1) % 4 in (0, 2) for image in parts["ids"])  # those with a person's parts


def test_pascal_and_nyud_in_one_federation(
    fedmtl: Callable[..., Any],
    tmp_path: Path,
    pascal_root: Callable[..., Path],
    nyud_root: Callable[..., Path],
    rows: Callable[[Path], Any],
) -> None:
    roots = {"pascal": folder(pascal_root(train=10, val=3)), "nyud": folder(nyud_root(train=5, val=3))}
    config = small(tmp_path, roots)
    for name in ("mixed_local", "mixed_fedavg", "mixed_dea"):
        words = [] if name == "mixed_local" else ["--baseline", run(tmp_path, "mixed_local")]
        result = fedmtl("fit", "--config", EXPERIMENTS / f"{name}.yaml", "--config", config, *words)
        assert result.code == 0, result.error
    last = rows(run(tmp_path, "mixed_dea"))[-1]
    heads = {"pascal_semseg", "pascal_human_parts", "pascal_saliency", "pascal_normals", "pascal_edge"}
    heads |= {"nyud_semseg", "nyud_depth", "nyud_normals", "nyud_edge"}
    assert {key.split("/")[1] for key in last if key.startswith("val/")} == heads | {"delta_m"}
    saved = json.loads((run(tmp_path, "mixed_dea") / "federation.json").read_text())
    assert [(row["client"], row["images"], row["epochs"], row["steps"]) for row in saved][-1] == ("nyud", 5, 4, 8)
    assert [row["images"] for row in saved][:5] == [2] * 5
    import safetensors.torch

    weights = safetensors.torch.load_file(run(tmp_path, "mixed_dea") / "unified" / "model.safetensors")
    outputs = {head: len(weights[f"heads.{head}.predict.bias"]) for head in ("pascal_semseg", "nyud_semseg")}
    assert outputs == {"pascal_semseg": 21, "nyud_semseg": 40}


def test_the_federation_without_training(
    fedmtl: Callable[..., Any], domains: Callable[..., Path], tmp_path: Path
) -> None:
    path, lists = domains(), tmp_path / "lists.json"
    result = fedmtl("data", "federation", "--config", path, "--save", lists)
    assert result.code == 0, result.error
    assert not run(tmp_path).exists()
    assert fedmtl("fit", "--config", path).code == 0
    table = [line for line in result.out.splitlines() if "│" in line]
    assert len(table) == 4
    saved = json.loads((run(tmp_path) / "federation.json").read_text())
    assert json.loads(lists.read_text()) == {row["client"]: row["ids"] for row in saved}
    experiment = yaml.safe_load(path.read_text())
    listed = {"class_path": "fedmtl.data.ListFile", "init_args": {"path": str(lists)}}
    experiment |= {"partition": listed, "name": "again", "seed": 5}
    del experiment["clients"][2]["partition"]
    path.write_text(yaml.safe_dump(experiment))
    assert fedmtl("fit", "--config", path).code == 0
    assert (run(tmp_path, "again") / "federation.json").read_text() == (run(tmp_path) / "federation.json").read_text()
    unwritable = fedmtl("data", "federation", "--config", path, "--save", tmp_path / "none" / "x.json")
    assert (unwritable.code, "--save: can't write" in unwritable.error) == (2, True)


def test_the_page_on_data_runs_as_it_says(
    delta: Path, fedmtl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(delta)
    assert fedmtl("data", "check", "delta").code == 0
    assert fedmtl("data", "preview", "delta", "--out", tmp_path / "preview.png").code == 0
    changes = {key: value for key, value in SMALL.items() if key in ("rounds", "eval_every", "pictures", "tracker")}
    (tmp_path / "changes.yaml").write_text(yaml.safe_dump({**changes, "out": str(tmp_path / "runs")}))
    words = ["--config", "delta.yaml", "--config", tmp_path / "changes.yaml", "--fabric.threads", "1"]
    result = fedmtl("fit", *words, "--model.backbone", "test_convnext")
    assert result.code == 0, result.error
    for word in ("landcover-2", "elevation", "roads", "mIoU", "RMSE", "odsF"):
        assert word in result.out
