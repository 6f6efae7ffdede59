"""`fedmtl data`: what it finds, what it draws, and one clear line for every mistake."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fedmtl.commands.data.check import SHOWN, classes, percent
from fedmtl.commands.data.download import COPIES

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
REAL = Path(__file__).parents[3] / "shared" / "data" / "NYUDv2"
SIZE = (48, 64)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def root(nyud_root: Callable[..., Path]) -> Path:
    return nyud_root(train=3, val=2, size=SIZE)


@pytest.fixture
def wrong(fedmtl: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs a check that finds something and gives the lines that it prints."""

    def call(*words: str | Path) -> list[str]:
        with pytest.raises(SystemExit) as end:
            fedmtl("data", "check", *words)
        assert end.value.code == 1
        return capsys.readouterr().out.splitlines()

    return call


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Path]:
    """Writes an experiment with some of its keys replaced."""

    def write(**keys: Any) -> Path:
        content = yaml.safe_load((EXPERIMENTS / "base" / "scenes.yaml").read_text()) | keys
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


SCENES = {"class_path": "fedmtl.data.Scenes", "init_args": {"train": 4, "val": 2, "size": 32, "flip": 1.0}}


def cells(path: Path, titles: int, heights: list[int], width: int) -> list[list[np.ndarray]]:
    """The pictures of a sheet by row and column: a line of titles, and one above each row."""
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == titles * (width + 4) - 4
    rows, top = [], 20
    for height in heights:
        top += 20
        rows.append([sheet[top : top + height, c * (width + 4) :][:, :width] for c in range(titles)])
        top += height
    assert sheet.shape[0] > top  # the legend
    return rows


# check


def test_check_of_a_sound_folder(fedmtl, root, tmp_path):
    result = fedmtl("data", "check", root, "--report", tmp_path / "report.json")
    assert (result.code, result.error) == (0, "")
    assert result.out.splitlines()[-1] == "all 25 files are sound"
    assert max(map(len, result.out.splitlines()[1:])) <= 100
    assert "48 × 64 pixels" in result.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sound"]
    (nyud,) = report["data"]
    assert (nyud["name"], nyud["root"], nyud["good"], nyud["problems"]) == ("nyud", str(root), 25, [])
    semseg = nyud["splits"]["val"]["semseg"]
    truth = np.stack([np.asarray(Image.open(root / "segmentation" / f"{i}.png")) for i in ("0004", "0005")])
    assert [one["pixels"] for one in semseg["classes"]] == [(truth == k + 1).sum() for k in range(40)]
    assert [one["name"] for one in semseg["classes"]][:3] == ["wall", "floor", "cabinet"]
    assert (semseg["unknown"], semseg["sizes"]) == (2 * 64, {"48×64": 2})
    assert nyud["splits"]["train"]["depth"]["metres"]["min"] >= 1.5


def test_check_lists_what_is_wrong_and_ends_with_1(wrong, root, tmp_path):
    (root / "images" / "0002.png").unlink()
    (root / "edge" / "0001.png").write_bytes(b"no picture")
    np.save(root / "depth" / "0005.npy", np.ones((10, 10), np.float32))
    lines = wrong(root, "--report", tmp_path / "report.json")
    assert lines[-4:-1] == [
        f"{root}/images/0002.png: no such file; complete the data set",
        f"{root}/edge/0001.png: cannot be read (UnidentifiedImageError: cannot identify image file "
        f"'{root}/edge/0001.png'); replace the file",
        f"{root}/depth/0005.npy: found a label of 10×10 pixels (H×W), expected its image's 48×64",
    ]
    assert lines[-1] == "3 of 25 files are not as they should be: 1 missing, 1 unreadable, 1 wrong size"
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["sound"]
    assert [(p["split"], p["what"], p["id"], p["kind"]) for p in report["data"][0]["problems"]] == [
        ("train", "image", "0002", "missing"),
        ("train", "edge", "0001", "unreadable"),
        ("val", "depth", "0005", "wrong size"),
    ]
    assert report["data"][0]["problems"][0]["file"] == f"{root}/images/0002.png"


def test_check_shows_the_first_and_counts_the_rest(wrong, nyud_root, tmp_path):
    root = nyud_root(train=25, val=2, size=(8, 8))
    for path in list((root / "edge").iterdir()):
        path.write_bytes(b"no picture")
    lines = wrong(root)
    assert sum("cannot be read" in line for line in lines) == SHOWN == 20
    assert lines[-2] == "… and 7 more; --report FILE writes all"
    assert lines[-1] == "27 of 135 files are not as they should be: 27 unreadable"
    assert wrong(root, "--report", tmp_path / "r.json")[-2] == f"… and 7 more; all are in {tmp_path / 'r.json'}"
    assert len(json.loads((tmp_path / "r.json").read_text())["data"][0]["problems"]) == 27


def test_check_of_some_tasks(fedmtl, root):
    (root / "edge" / "0001.png").unlink()
    result = fedmtl("data", "check", root, "--tasks", "depth,normals")
    assert result.out.splitlines()[-1] == "all 15 files are sound"


def test_check_notes_images_in_both_splits(fedmtl, root):
    (root / "gt_sets" / "val.txt").write_text("0004\n0002\n")
    result = fedmtl("data", "check", root)
    assert result.code == 0
    assert "note: 1 images are in train and in val, e.g. 0002" in result.out.splitlines()


def test_check_of_an_experiment_looks_at_its_clients_tasks(fedmtl, experiment):
    path = experiment(data=SCENES, clients=[{"tasks": ["depth"]}, {"tasks": ["edge", "depth"]}])
    result = fedmtl("data", "check", "--config", path)
    assert result.out.splitlines()[-1] == "all 18 files are sound"
    words = ["depth", "edge", "scenes"], ["semseg", "normals", "saliency"]
    assert [all((word in result.out) == there for word in words[1 - there]) for there in (True, False)] == [True, True]
    result = fedmtl("data", "check", "--config", path, "--data.train", "6", "--data.val=3")
    assert result.out.splitlines()[-1] == "all 27 files are sound"


def test_an_experiment_has_what_its_clients_read_too(fedmtl, experiment, tmp_path):
    clients = [{"tasks": ["edge"], "input": "depth"}, {"tasks": ["edge"]}]
    path = experiment(data=SCENES, clients=clients)
    result = fedmtl("data", "check", "--config", path)
    assert result.out.splitlines()[-1] == "all 18 files are sound"
    assert "depth" in result.out
    fedmtl("data", "preview", "--config", path, "--out", tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").width == 3 * (192 + 4) - 4  # image, depth, edge


def test_check_of_an_experiment_with_two_data_sets(wrong, experiment, root):
    (root / "depth" / "0001.npy").unlink()
    (root / "edge" / "0001.png").unlink()
    data = {"rooms": SCENES, "real": {"class_path": "fedmtl.data.NYUDv2", "init_args": {"root": str(root)}}}
    clients = [{"data": "rooms", "tasks": ["edge"]}, {"data": "real", "tasks": ["depth", "semseg"]}]
    lines = wrong("--config", experiment(data=data, clients=clients))
    assert lines[-2:] == [
        f"{root}/depth/0001.npy: no such file; complete the data set",
        "1 of 27 files are not as they should be: 1 missing",
    ]
    assert any(line.startswith("rooms") for line in lines)
    assert any(line.startswith("real") for line in lines)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs real pictures")
def test_check_of_real_pictures(fedmtl):
    result = fedmtl("data", "check", REAL)
    assert (result.code, result.out.splitlines()[-1]) == (0, "all 500 files are sound")


def test_words_for_classes():
    counted = [{"name": f"c{i}", "pixels": pixels} for i, pixels in enumerate([0, 1, 2000, 3000] + 8 * [10] + 12 * [0])]
    assert classes(counted) == (
        "c3 59.0 %, c2 39.4 %, c4 0.2 %, c5 0.2 %, c6 0.2 %, c7 0.2 %, c8 0.2 %, c9 0.2 %, 3 more; "
        "absent 13 of 24: c0, c12, c13, c14, c15, c16, c17, c18, …"
    )
    assert [percent(0, 9), percent(1, 9000), percent(9, 9), percent(0, 0)] == ["0.0 %", "<0.1 %", "100.0 %", "0.0 %"]


# preview


def test_preview_shows_images_and_labels(fedmtl, root, tmp_path):
    out = tmp_path / "new" / "sheet.png"
    result = fedmtl("data", "preview", root, "--out", out, "--images", "2")
    assert (result.code, result.out) == (0, f"{out}: 2 of the 3 train images of nyud\n")
    rows = cells(out, titles=5, heights=[144, 144], width=192)  # three times as large
    for name, row in zip(("0001", "0002"), rows, strict=True):
        for folder, cell in (("images", row[0]), ("edge", row[4])):
            picture = np.asarray(Image.open(root / folder / f"{name}.png").convert("RGB"))
            np.testing.assert_array_equal(cell, picture.repeat(3, axis=0).repeat(3, axis=1))
        walls = np.asarray(Image.open(root / "segmentation" / f"{name}.png")).repeat(3, axis=0).repeat(3, axis=1)
        for k in np.unique(walls):
            colours = np.unique(row[1][walls == k], axis=0)
            assert len(colours) == 1
            legend = np.asarray(Image.open(out))[-24:]
            assert (legend == colours[0]).all(-1).sum() > 50
            assert (colours == 0).all() == (k == 0)


def test_preview_draws_at_random_by_a_seed(fedmtl, nyud_root, tmp_path):
    root = nyud_root(train=12, val=4, size=SIZE)

    def call(*words: str) -> bytes:
        assert fedmtl("data", "preview", root, "--out", tmp_path / "p.png", "--images", "3", *words).code == 0
        return (tmp_path / "p.png").read_bytes()

    first = call()
    assert call("--seed", "1") == call("--seed", "1") != first
    assert call("--seed", "2") not in (first, call("--seed", "1"))
    assert call("--split", "val") != first


def test_preview_of_training_examples(fedmtl, experiment, tmp_path):
    path = experiment(data=SCENES, clients=[{"tasks": ["semseg", "normals"]}])
    fedmtl("data", "preview", "--config", path, "--out", tmp_path / "plain.png")
    fedmtl("data", "preview", "--config", path, "--out", tmp_path / "augmented.png", "--augmented")
    size = {"titles": 3, "heights": 4 * [192], "width": 192}
    plain, augmented = (cells(tmp_path / f"{name}.png", **size) for name in ("plain", "augmented"))
    for before, after in zip(plain, augmented, strict=True):  # all are mirrored
        for k in (0, 1):
            np.testing.assert_array_equal(after[k], before[k][:, ::-1])
        mirrored = before[2][:, ::-1].astype(int) * [-1, 1, 1] + [255, 0, 0]  # and x with them
        assert abs(after[2].astype(int) - mirrored).max() <= 1


def test_preview_of_two_data_sets_makes_two_pictures(fedmtl, experiment, root, tmp_path):
    data = {"rooms": SCENES, "real": {"class_path": "fedmtl.data.NYUDv2", "init_args": {"root": str(root)}}}
    clients = [{"data": "rooms", "tasks": ["semseg"]}, {"data": "real", "tasks": ["semseg"]}]
    path = experiment(data=data, clients=clients)
    result = fedmtl("data", "preview", "--config", path, "--out", tmp_path / "p.png", "--images", "1")
    assert result.code == 0
    cells(tmp_path / "p_rooms.png", titles=2, heights=[192], width=192)
    cells(tmp_path / "p_real.png", titles=2, heights=[144], width=192)
    assert not (tmp_path / "p.png").exists()


# download, help, mistakes


def test_download_says_where_and_what_then(fedmtl):
    result = fedmtl("data", "download")
    assert result.out.startswith("Nothing is downloaded.")
    for name, copy in COPIES.items():
        assert f"\n{name}: {copy.what}\n" in result.out
        assert f"fedmtl data check {copy.root}\n" in result.out
        assert all(link in result.out for link in copy.links)
    alone = fedmtl("data", "download", "pascal-mt").out
    assert "PASCAL_MT.tgz" in alone
    assert "NYUD" not in alone


def test_help_and_download_load_no_heavy_library():
    heavy = "torch", "lightning", "timm", "wandb", "jsonargparse", "numpy", "rich"
    for words in (["data"], ["data", "--help"], ["data", "download"]):
        code = (
            f"import sys; from fedmtl.cli import main; main({words}); print([m for m in {heavy} if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_help(fedmtl):
    assert "data " in fedmtl("--help").out
    assert fedmtl("data").out == fedmtl("data", "-h").out
    for command in ("check", "preview", "download"):
        assert f"\n  {command} " in fedmtl("data").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chek"], "unknown command 'chek'; did you mean check?"),
        (["x"], "unknown command 'x'; there are check, preview, "),
        (["check"], "give the folder of a data set, or --config FILE for those of an experiment"),
        (["check", "nowhere"], "nowhere: there is no such folder"),
        (["check", "ROOT/.."], "no data set that is known; did you mean ROOT/../NYUDv2_"),
        (["check", "ROOT/edge"], "ROOT/edge: no data set that is known; looked for dataset.yaml"),
        (["check", "ROOT", "--config", "x.yaml"], "give a folder or --config FILE, not both: ROOT, x.yaml"),
        (["check", "--config", "nowhere.yaml"], "--config: there is no file nowhere.yaml"),
        (["check", "ROOT", "--tasks", "depht"], "has no 'depht'"),
        (["check", "--tasks", "depth", "--config", "x.yaml"], "--tasks goes with a folder"),
        (["check", "ROOT", "--wrkers", "1"], "unknown argument --wrkers; see fedmtl data check --help"),
        (["check", "ROOT", "--workers", "two"], "--workers: invalid int value: 'two'"),
        (["check", "ROOT", "--workers", "-1"], "--workers must be 0 or more, not -1"),
        (["check", "ROOT", "--report", "ROOT/none/x.json"], "--report: can't write ROOT/none/x.json (No such file"),
        (["preview", "ROOT", "--images", "0"], "--images must be 1 or more, not 0"),
        (["preview", "ROOT", "--out", "x.jpg"], "--out: the picture is a PNG, so its name ends in .png, not as x.jpg"),
        (["preview", "ROOT", "--out", "ROOT/gt_sets/val.txt/x.png"], "--out: can't write ROOT/gt_sets/val.txt/x.png"),
        (["preview", "ROOT", "--split", "test"], "invalid choice: 'test'"),
        (["download", "nyd"], "there is no data set 'nyd'; did you mean nyud?"),
    ],
)
def test_mistakes_are_one_line(fedmtl, root, words, message):
    result = fedmtl("data", *(word.replace("ROOT", str(root)) for word in words))
    assert result.code == 2
    assert result.error.startswith("fedmtl data: error: ")
    assert message.replace("ROOT", str(root)) in result.error
    assert len(result.error.splitlines()) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data": {**SCENES, "init_args": {"train": 0}}}, "train must be 1 or more, not 0"),
        ({"data": {"class_path": "fedmtl.data.NYUDv2", "init_args": {"root": "nowhere"}}}, "no folder nowhere"),
        ({"clients": [{"tasks": ["dept"]}]}, "scenes has no 'dept'; it has semseg, depth"),
        ({"rounds": "three"}, "three"),
    ],
)
def test_mistakes_in_an_experiment(fedmtl, experiment, keys, message):
    result = fedmtl("data", "check", "--config", experiment(**keys))
    assert result.code == 2
    assert message in result.error
    assert len(result.error.splitlines()) == 1


def test_a_broken_file_ends_a_preview_with_its_name(fedmtl, root, tmp_path):
    (root / "depth" / "0001.npy").write_bytes(b"")
    result = fedmtl("data", "preview", root, "--out", tmp_path / "p.png")
    assert result.code == 2
    assert f"{root}/depth/0001.npy: cannot be read" in result.error
    assert not (tmp_path / "p.png").exists()
