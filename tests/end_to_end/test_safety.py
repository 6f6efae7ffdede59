"""Nothing that comes from a stranger runs code: not what a run, a data set, or a configuration holds or names."""

import os
import pathlib
import pickle
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fedmtl.commands.configuration import limit_classes
from fedmtl.trust import Trust

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
LIMIT = ("--trusted-modules", "fedmtl")  # nothing beside what is built in
TAG = "!!python/object/apply:pathlib.Path.touch [{mark}]"


@pytest.fixture(autouse=True)
def unlimited() -> Iterator[None]:
    """What a command trusts, its parser remembers; not beyond a test."""
    yield
    limit_classes(Trust())


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What appears when foreign code has run."""
    return tmp_path / "ran"


@pytest.fixture
def bomb(mark: Path) -> "Bomb":
    """An object whose unpickling leaves the mark."""
    made = Bomb(mark)
    pickle.loads(pickle.dumps(made))
    assert mark.exists()
    mark.unlink()
    return made


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return pathlib.Path.touch, (self.mark,)


@pytest.fixture
def evil(mark: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module in the working directory that leaves the mark when it runs."""
    folder = mark.parent / "work"
    folder.mkdir()
    (folder / "evil.py").write_text(
        "from pathlib import Path\n\nfrom fedmtl.data import Scenes\nfrom fedmtl.tasks import Depth\n\n"
        f"Path({str(mark)!r}).touch()\n\n\nclass Pictures(Scenes):\n    pass\n\n\n"
        "class Elevation(Depth):\n    pass\n\n\ndef make(*args):\n    pass\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    yield
    sys.modules.pop("evil", None)


def refused(result: Any, *parts: str) -> None:
    assert result.code == 2, result
    assert len(result.error.splitlines()) == 1, result.error
    for part in parts:
        assert part in result.error


# --- classes that a configuration names ----------------------------------------------------------------------

ATTACKS = [
    ["--data=evil.Pictures"],
    ["--data.class_path", "evil.Pictures"],
    ["--data", '{"class_path": "evil.Pictures"}'],
    ["--data", "{a: {class_path: evil.Pictures}}"],
    ["--data", "{a: evil.Pictures}"],
    ["--data.help", "evil.Pictures"],
    ["--data.tasks", "{depth: {class_path: evil.Elevation}}"],
    ["--model", "evil.make"],
    ["--model.help=evil.Pictures"],
    ["--model", "{class_path: evil.make, init_args: {a: 1}}"],
    ["--local.optimizer", "evil.make"],
    ["--local.optimizer.class_path=evil.make"],
    ["--local.init_args.optimizer", "evil.make"],
    ["--local", "{init_args: {schedule: {class_path: evil.make}}}"],
    ["--local.algorithm", "evil.make"],
    ["--upload+", "evil.make"],
    ["--upload+={class_path: evil.make}"],
    ["--upload", "[evil.make]"],
    ["--upload", "[{class_path: fedmtl.aggregation.DEA, init_args: {rho: {class_path: evil.make}}}]"],
    ["--clients+", "{tasks: [depth], model: evil.make}"],
    ["--clients", "[{tasks: [depth], partition: {class_path: evil.make}}]"],
    ["--server", "{class_path: fedmtl.server.Server, init_args: {optimizer: evil.make}}"],
    ["--server.aggregator", "evil.make"],
    ["--tracker", "evil.make"],
    ["--fabric", "{class_path: evil.make}"],
    ["--diagnostics", "evil.make"],
    ["--partition", "evil.make"],
    ["--model", "os.system"],
    ["--tracker", "{class_path: subprocess.Popen, init_args: {args: [touch, MARK]}}"],
    ["--model", "torch.hub.load"],
    ["--model", "builtins.eval"],
    ["--local.optimizer", "builtins.exec"],
    ["--local.schedule", "timm.optim.create_optimizer_v2"],
    # on the way through a trusted module, and what that module itself can do
    ["--model", "fedmtl.tracking.run_directory.os.system"],
    ["--model", "torch.optim.optimizer.functools.partial"],
    ["--data", "fedmtl.data.decode.np.load"],
    ["--model", "fedmtl.cli.main"],
    ["--model", "fedmtl.__main__.main"],
    ["--data", "{class_path: fedmtl.tracking.run_directory.write_text, init_args: {path: MARK, text: a}}"],
]


@pytest.mark.usefixtures("evil")
@pytest.mark.parametrize("words", ATTACKS, ids=" ".join)
def test_what_a_configuration_names_is_refused_before_it_is_imported(
    fit: Callable[..., Any], mark: Path, words: list[str]
) -> None:
    result = fit("scenes_dea", *(word.replace("MARK", str(mark)) for word in words), *LIMIT)
    refused(result)
    assert "evil" not in sys.modules
    assert not mark.exists()
    if "evil." in words[-1] and not words[0].startswith("--data.tasks"):  # that key takes names alone
        assert "is of no trusted module" in result.error or "rho" in result.error
        assert "--trusted-modules evil" in result.error or "rho" in result.error


@pytest.mark.usefixtures("evil")
@pytest.mark.parametrize("key", ["--model.options", "--model.dict_kwargs.a", "--data.dials"])
@pytest.mark.parametrize(
    "path", ["evil.Pictures", "subprocess.Popen", "fedmtl.tracking.run_directory.write_text", "fedmtl.data.Scenes"]
)
def test_a_class_in_a_value_that_may_be_anything_is_not_made(
    fit: Callable[..., Any], mark: Path, key: str, path: str
) -> None:
    arguments = f"{{path: {mark}, text: a, args: [touch, {mark}]}}"
    result = fit("scenes_dea", f"{key}={{a: {{class_path: {path}, init_args: {arguments}}}}}", *LIMIT)
    assert not mark.exists()
    refused(result)


@pytest.mark.usefixtures("evil")
def test_ones_own_configuration_may_name_anything_and_limits_can_be_widened(
    fit: Callable[..., Any], mark: Path
) -> None:
    for words in ([], ["--trusted-modules", "evil"], ["--trusted-modules=fedmtl, evil.Pictures"]):
        result = fit("scenes_dea", "--data", "evil.Pictures", "--rounds", "0", *words)
        refused(result, "rounds must be at least 1")
        assert mark.exists()
        mark.unlink()
        sys.modules.pop("evil")


@pytest.mark.usefixtures("evil")
def test_a_base_file_is_limited_too(fedmtl: Callable[..., Any], mark: Path) -> None:
    Path("base.yaml").write_text(f"config: {EXPERIMENTS / 'scenes_dea.yaml'}\ndata: {{class_path: evil.Pictures}}\n")
    Path("top.yaml").write_text("config: base.yaml\nrounds: 1\n")
    refused(fedmtl("fit", *LIMIT, "--config", "top.yaml"), "data: evil.Pictures is of no trusted module")
    for command in ("check", "preview", "federation"):
        refused(fedmtl("data", command, "--config", "top.yaml", *LIMIT), "evil.Pictures is of no trusted module")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "--trusted-modules"], "--trusted-modules takes modules such as mine,lab.tasks, not ''"),
        (["fit", "--trusted-modules="], "--trusted-modules takes modules"),
        (["fit", "--trusted-modules", "a,,b"], "--trusted-modules takes modules"),
        (["fit", "--trusted-modules", "mine.py/x"], "not 'mine.py/x'"),
        (["fit", "--trusted-modules", "jsonargparse"], "--trusted-modules: "),
        (["--trusted-modules", "mine"], "unknown command ''; there are fit"),
        (["--trusted-modules", "mine", "fitt"], "did you mean fit?"),
    ],
)
def test_mistakes_in_the_option(fedmtl: Callable[..., Any], words: list[str], message: str) -> None:
    refused(fedmtl(*words), message)


# --- YAML ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [(), LIMIT], ids=["fit", "limited"])
def test_yaml_tags_run_nothing(fit: Callable[..., Any], fedmtl: Callable[..., Any], mark: Path, limit: Any) -> None:
    tag = TAG.format(mark=mark)
    file = mark.with_name("tag.yaml")
    for text in (f"name: {tag}", f"config: {tag}", f"data: {{init_args: {{size: {tag}}}}}", f"? {tag}\n: 1"):
        file.write_text(text)
        refused(fedmtl("fit", "--config", file, *limit), f"{file} is not YAML", "could not determine a constructor")
    for key in ("--name", "--data", "--data.size", "--model.options", "--upload", "--clients", "--rounds"):
        refused(fit("scenes_dea", key, tag, *limit))
        refused(fit("scenes_dea", key, f"[{tag}]", *limit))
        refused(fit("scenes_dea", f"{key}={{a: {tag}}}", *limit))
    folder = data_set(mark.parent / "set")
    (folder / "dataset.yaml").write_text(f"tasks: {{depth: {tag}}}")
    refused(fedmtl("data", "check", folder), "dataset.yaml: is not YAML")
    assert not mark.exists()


# --- data sets -----------------------------------------------------------------------------------------------


def data_set(root: Path, text: str = "tasks: {elevation: {kind: depth}}\n") -> Path:
    """A data set of eight images with labels in .npy files."""
    for folder in ("images", "elevation"):
        (root / folder).mkdir(parents=True)
    (root / "dataset.yaml").write_text(text)
    for i in range(8):
        Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(root / "images" / f"{i}.png")
        np.save(root / "elevation" / f"{i}.npy", np.ones((32, 32), np.float32))
    return root


def on(root: Path, **options: Any) -> list[str]:
    """Words that make an experiment one on that data set."""
    options = {"root": str(root), "crop": [32, 32], "scale": None, **options}
    data = yaml.safe_dump({"class_path": "fedmtl.data.Folder", "init_args": options}, default_flow_style=True)
    return ["--data", data, "--clients", "[{tasks: [elevation], count: 2}]", "--rounds", "1"]


@pytest.mark.usefixtures("evil")
def test_a_task_that_a_data_set_names_is_trusted_by_its_name_alone(
    fit: Callable[..., Any], fedmtl: Callable[..., Any], mark: Path
) -> None:
    root = data_set(mark.parent / "set", "tasks: {elevation: {class_path: evil.Elevation}}\n")
    told = f"{root / 'dataset.yaml'}, task elevation: class_path: evil.Elevation is of no trusted module"
    refused(fedmtl("data", "check", root), told, "--trusted-modules evil")
    refused(fedmtl("data", "preview", root), told)
    assert "" not in sys.path  # nor does anything that a library looks for come from a stranger's folder
    refused(fit("scenes_dea", *on(root)), told)
    refused(fit("scenes_dea", *on(root), *LIMIT), told)
    assert not mark.exists()
    assert fedmtl("data", "check", root, "--workers", "0", "--trusted-modules", "evil").code == 0
    assert mark.exists()
    assert fit("scenes_dea", *on(root), "--trusted-modules=evil").code == 0


def pickled(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def object_array(value: Any, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([value], dtype=object), allow_pickle=True)


def zipped(value: Any, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.array([value], dtype=object))


@pytest.mark.parametrize("write", [pickled, object_array, zipped])
def test_arrays_of_a_data_set_are_not_unpickled(
    fit: Callable[..., Any],
    fedmtl: Callable[..., Any],
    mark: Path,
    bomb: Bomb,
    write: Callable[[Any, Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = data_set(mark.parent / "set")
    for path in (root / "elevation").iterdir():
        write(bomb, path)
    refused(fit("scenes_dea", *on(root)), ".npy: cannot be read")
    refused(fedmtl("data", "preview", root), ".npy: cannot be read")
    for path in (root / "images").iterdir():
        write(bomb, path)
    with pytest.raises(SystemExit):
        fedmtl("data", "check", root, "--workers", "0")
    assert "cannot be read" in capsys.readouterr().out
    for path in list((root / "images").iterdir()):
        path.rename(path.with_suffix(".npy"))
    refused(fedmtl("data", "preview", root), ".npy: cannot be read")
    for path in list((root / "images").iterdir()):
        path.rename(path.with_suffix(".mat"))
    refused(fedmtl("data", "preview", root), ".mat: cannot be read")
    assert not mark.exists()


def test_pictures_are_not_programs(fedmtl: Callable[..., Any], mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = mark.parent / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {mark}\n")  # what Pillow runs PostScript with
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    root = data_set(mark.parent / "set")
    for path in (root / "images").iterdir():
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n")
    refused(fedmtl("data", "preview", root), ".png: cannot be read")
    assert not mark.exists()


def test_a_picture_of_a_billion_pixels_is_not_unpacked(fedmtl: Callable[..., Any], tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0))
    root = data_set(tmp_path / "set")
    for path in (root / "images").iterdir():
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    refused(fedmtl("data", "preview", root), "DecompressionBombError")


@pytest.mark.parametrize("write", [pickled, object_array, zipped])
def test_what_lies_in_the_cache_is_not_unpickled(
    fit: Callable[..., Any],
    mark: Path,
    bomb: Bomb,
    write: Callable[[Any, Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDMTL_CACHE", str(mark.parent / "cache"))
    root = data_set(mark.parent / "set")
    for number, words in enumerate((on(root, cache="disk"), ["--rounds", "1"])):
        assert fit("scenes_dea", *words, "--name", f"a{number}").code == 0
        files = sorted((mark.parent / "cache").rglob("*.npy"))
        assert len(files) >= 5
        for path in files:
            write(bomb, path)
        assert fit("scenes_dea", *words, "--name", f"b{number}").code == 0
        shutil.rmtree(mark.parent / "cache")
    assert not mark.exists()


# --- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(fit: Callable[..., Any], tmp_path: Path) -> Path:
    """A finished run."""
    assert fit("scenes_dea", "--rounds", "1", "--name", "a").code == 0
    return tmp_path / "runs" / "a"


@pytest.mark.usefixtures("evil")
def test_a_run_that_names_a_strangers_class_is_not_evaluated_unless_it_is_trusted(
    fedmtl: Callable[..., Any], run: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # its training added the working directory
    assert fedmtl("evaluate", run).code == 0
    saved = yaml.safe_load((run / "config.yaml").read_text())
    for key in ("data", "model", "partition", "tracker", "server"):
        (run / "config.yaml").write_text(yaml.safe_dump({**saved, key: {"class_path": "evil.Pictures"}}))
        refused(fedmtl("evaluate", run), f"{key}: ", "evil.Pictures is of no trusted module", "--trusted-modules evil")
    assert "" not in sys.path
    assert not mark.exists()
    saved["data"]["class_path"] = "evil.Pictures"
    (run / "config.yaml").write_text(yaml.safe_dump(saved))
    refused(fedmtl("evaluate", run, *LIMIT), "data: evil.Pictures is of no trusted module")
    assert not mark.exists()
    result = fedmtl("evaluate", run, "--trusted-modules", "evil")
    assert result.code == 0, result.error
    assert mark.exists()


def test_checkpoints_are_not_unpickled(
    fit: Callable[..., Any], fedmtl: Callable[..., Any], run: Path, mark: Path, bomb: Bomb
) -> None:
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    for path in (run / "checkpoints").glob("*.ckpt"):
        torch.save({**state, "more": bomb}, path)
    refused(fedmtl("evaluate", run), "round_000001.ckpt is damaged")
    refused(fedmtl("evaluate", run, "--checkpoint", "best"), "best.ckpt is damaged")
    refused(fit("scenes_dea", "--rounds", "1", "--name", "a", "--resume", "auto"), "round_000001.ckpt is damaged")
    for path in (run / "checkpoints").glob("*.ckpt"):
        pickled(bomb, path)
    refused(fedmtl("evaluate", run), "round_000001.ckpt is damaged")
    assert not mark.exists()


def test_a_baseline_is_not_unpickled(fit: Callable[..., Any], run: Path, mark: Path, bomb: Bomb) -> None:
    pickled(bomb, run / "results.json")
    refused(fit("scenes_dea", "--baseline", str(run)), "results.json is not the results.json of a finished run")
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".ckpt", ".safetensors", ".npz"])
def test_weights_are_not_unpickled(fit: Callable[..., Any], mark: Path, bomb: Bomb, suffix: str) -> None:
    for number, write in enumerate((lambda path: torch.save({"a": bomb}, path), lambda path: pickled(bomb, path))):
        file = mark.parent / f"weights{number}{suffix}"
        write(file)
        refused(fit("scenes_dea", "--model.weights", str(file)), f"model.weights: {file} does not fit")
        assert not mark.exists()


@pytest.mark.parametrize(
    "options",
    [
        "{checkpoint_path: FILE}",
        "{pretrained: true, cache_dir: VICTIM, pretrained_cfg: {url: 'file://FILE'}}",
        "{pretrained: true, cache_dir: VICTIM, pretrained_cfg_overlay: {hf_hub_id: null, url: 'file://FILE'}}",
    ],
)
def test_options_of_the_backbone_neither_load_nor_write_files(
    fit: Callable[..., Any], mark: Path, bomb: Bomb, options: str
) -> None:
    file, victim = mark.parent / "start.pth", mark.parent / "victim"
    torch.save({"a": bomb}, file)
    victim.mkdir()
    result = fit("scenes_dea", "--model.options", options.replace("FILE", str(file)).replace("VICTIM", str(victim)))
    refused(result, "model.options: ")
    assert not list(victim.iterdir())
    assert not mark.exists()


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "hf_hub:a/b", "local-dir:.", "./test_convnext", "a:b"])
def test_a_backbone_is_one_of_timms_own(fit: Callable[..., Any], name: str) -> None:
    refused(fit("scenes_dea", "--model.backbone", name), "model.backbone: ")


# --- names of runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "a/../../x", "/abs", "a\\b", "a/"])
def test_a_run_stays_in_its_folder(
    fit: Callable[..., Any], fedmtl: Callable[..., Any], tiny: Path, tmp_path: Path, name: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    for words in (["--name", name], [f"--name={name}"], ["--name", name, "--resume", "auto"]):
        refused(fit("scenes_dea", *words), f"name: {name!r} can't name a run")
    assert sorted(tmp_path.rglob("*")) == before
    file = tmp_path / "name.yaml"
    file.write_text(yaml.safe_dump({"name": name}))
    words = ["--config", EXPERIMENTS / "scenes_dea.yaml", "--config", tiny, "--config", file]
    refused(fedmtl("fit", *words), "can't name a run")


def test_a_run_has_a_name(fit: Callable[..., Any]) -> None:
    refused(fit("scenes_dea", "--name="), "name: '' can't name a run")


@pytest.mark.parametrize("exists", [True, False])
def test_a_new_run_does_not_follow_a_link(fit: Callable[..., Any], tmp_path: Path, exists: bool) -> None:
    (tmp_path / "runs").mkdir()
    target = tmp_path / "elsewhere"
    if exists:
        target.mkdir()
    (tmp_path / "runs" / "a").symlink_to(target)
    refused(fit("scenes_dea", "--name", "a"))
    refused(fit("scenes_dea", "--name", "a", "--resume", "auto"))
    assert not target.exists() or not list(target.iterdir())
    assert (tmp_path / "runs" / "a").is_symlink()
