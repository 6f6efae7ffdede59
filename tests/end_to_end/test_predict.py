"""`fedmtl predict` gives what the run drew of its validation, from the run's folder alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fedmtl import prediction
from fedmtl.commands.restored import restore
from fedmtl.errors import UserError
from fedmtl.export.card import escape
from fedmtl.models import backbone


@pytest.fixture
def run(fit: Callable[..., Any], runs: Path) -> Path:
    assert fit("scenes_dea", "--name", "a").code == 0
    return runs / "a"


@pytest.fixture
def inputs(run: Path, tmp_path: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    """Validation pictures as files, and what the orchestrator's own engine predicts for them."""
    orchestrator = restore("evaluate", None, run, "last", []).orchestrator
    ((_, view, labels),) = orchestrator.engine.predict(orchestrator.server, orchestrator.validation, 3, unified=True)
    paths = [tmp_path / "pictures" / f"{i}.png" for i in range(3)]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths):
        Image.fromarray(np.asarray(view.sample(i)["image"])).save(path)
    return paths, [{name: found[i] for name, found in labels.items()} for i in range(3)]


def test_the_same_as_the_run_itself_without_its_data_and_the_network(
    run: Path, inputs: Any, fedmtl: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, wanted = inputs
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] = {"class_path": "fedmtl.data.NYUDv2", "init_args": {"root": str(tmp_path / "gone")}}
    config["model"]["init_args"]["pretrained"] = True
    (run / "config.yaml").write_text(yaml.safe_dump(config))

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(backbone, "urlopen", no_network)
    result = fedmtl("predict", run, paths[0].parent, "--out", tmp_path / "out")
    assert result.code == 0, result.error
    assert "3 pictures" in result.out
    for path, labels in zip(paths, wanted, strict=True):
        folder = tmp_path / "out" / path.stem
        assert {file.stem for file in folder.glob("*.npy")} == set(labels)
        for name, label in labels.items():
            found = np.load(folder / f"{name}.npy", allow_pickle=False)
            assert found.dtype == label.dtype
            np.testing.assert_array_equal(found, label)
        sheet = np.asarray(Image.open(folder / "all-tasks.png"))
        assert sheet.shape[1] > 200 * len(labels)
        assert np.asarray(Image.open(folder / "depth.png")).shape == (32, 64, 3)


def test_bad_pictures_are_named_and_the_others_done(
    run: Path, inputs: Any, fedmtl: Callable[..., Any], tmp_path: Path
) -> None:
    folder = inputs[0][0].parent
    (folder / "0.jpg").write_bytes(b"nothing")
    Image.fromarray(np.zeros((50, 70), np.uint8)).save(folder / "grey.png")
    with pytest.raises(SystemExit) as end:
        fedmtl("predict", run, folder, tmp_path / "no.png", "--out", folder / "out", "--batch-size", 2, "--raw", "png")
    assert end.value.code == 1
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["0", "1", "2", "grey"]
    assert (folder / "out" / "grey" / "depth.raw.png").is_file()
    (folder / "out" / "1" / "mine.txt").touch()
    with pytest.raises(SystemExit):
        fedmtl("predict", run, *inputs[0], "--out", folder / "out", "--tasks", "depth")
    assert (folder / "out" / "1" / "mine.txt").is_file()
    assert [len(list((folder / "out" / name).iterdir())) for name in ("0", "1", "2")] == [3, 12, 3]


def test_from_the_weights_of_a_finished_run_alone(run: Path, inputs: Any) -> None:
    paths, wanted = inputs
    shutil.rmtree(run / "checkpoints")
    model = prediction.load(run)
    assert model.round is None
    labels = model([np.asarray(Image.open(paths[0]))])[0]
    np.testing.assert_array_equal(labels["semseg"], wanted[0]["semseg"])
    with pytest.raises(UserError, match="holds no best checkpoint"):
        prediction.load(run, checkpoint="best")


def test_an_older_run_asks_its_data(run: Path, inputs: Any, fedmtl: Callable[..., Any], tmp_path: Path) -> None:
    paths, wanted = inputs
    (run / "heads.json").unlink()
    assert fedmtl("predict", run, paths[0], "--out", tmp_path / "out", "--tasks", "depth").code == 0
    assert {p.name for p in (tmp_path / "out" / "0").iterdir()} == {"all-tasks.png", "depth.png", "depth.npy"}
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "0" / "depth.npy"), wanted[0]["depth"])


@pytest.mark.parametrize(
    ("experiment", "why"),
    [
        ("scenes_fedper", "share: encoder"),
        ("scenes_ditto", "its method gives each client a model of its own"),
        ("scenes_fedamp", "its method gives each client a model of its own"),
    ],
)
def test_runs_without_a_unified_model(
    experiment: str, why: str, fit: Callable[..., Any], fedmtl: Callable[..., Any], runs: Path, tmp_path: Path
) -> None:
    assert fit(experiment, "--name", "b").code == 0
    run, picture = runs / "b", tmp_path / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(picture)
    result = fedmtl("predict", run, picture, "--out", tmp_path / "out")
    assert result.code == 2
    assert result.error.count("\n") == 1
    assert why in result.error
    assert "--client" in result.error
    rows = json.loads((run / "federation.json").read_text())
    assert fedmtl("predict", run, picture, "--out", tmp_path / "out", "--client", rows[0]["client"]).code == 0
    client = rows[-1]["client"]
    assert fedmtl("export", run, "--formats", "timm", "--client", client).code == 0
    assert f"The model of client {escape(client)} " in (run / "export" / client / "README.md").read_text()
    orchestrator = restore("evaluate", None, run, "last", []).orchestrator
    engine, server = orchestrator.engine, orchestrator.server
    for row in rows:
        engine.worker.load(engine.worker.weights_of(engine.clients[row["client"]], server.model_for(row["client"])))
        wanted = engine.worker.resident.module.model.state_dict()
        found = prediction.load(run, client=row["client"]).model.state_dict()
        assert {name.split(".")[1] for name in found if name.startswith("heads.")} == set(row["tasks"])
        assert all(torch.equal(wanted[name], value) for name, value in found.items())


def test_clients_of_other_architectures(fit: Callable[..., Any], fedmtl: Callable[..., Any], runs: Path) -> None:
    assert fit("scenes_modalities", "--name", "b").code == 0
    row = json.loads((runs / "b" / "federation.json").read_text())[1]
    assert row["input"] == "depth"
    for words, why in (([], "architecture or input of their own"), (["--client", row["client"]], "of its own")):
        result = fedmtl("predict", runs / "b", __file__, "--out", runs / "out", *words)
        assert result.code == 2
        assert why in result.error
    assert "did you mean" in fedmtl("predict", runs / "b", __file__, "--client", row["client"] + "x").error


def test_strangers_runs_run_no_code(run: Path, inputs: Any, fedmtl: Callable[..., Any], tmp_path: Path) -> None:
    evil = tmp_path / "evil_models.py"
    evil.write_text(f"open({str(tmp_path / 'pwned')!r}, 'w').close()\nclass Model: ...\n")
    config = yaml.safe_load((run / "config.yaml").read_text())
    for path in ("evil_models.Model", "os.system", "fedmtl.storage.os"):
        config["model"]["class_path"] = path
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        result = fedmtl("predict", run, inputs[0][0], "--out", tmp_path / "out")
        assert result.code == 2
        assert result.error.count("\n") == 1
        assert path in result.error
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "out").exists()
