"""The real command line on settings small enough for a test."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedmtl import storage
from fedmtl.checkpoint import Checkpoints
from fedmtl.cli import main
from fedmtl.client_state import file_name

from .processes import Process, Starter

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

TINY: dict[str, Any] = {
    "data": {"init_args": {"train": 18, "val": 5, "size": 32}},
    "model": {"init_args": {"backbone": "test_convnext", "channels": 8}},
    "local": {"batch_size": 2, "epochs": 1},
    "rounds": 2,
    "eval_every": 1,
    "checkpoint_every": 1,
    "pictures": 2,
    "fabric": {"accelerator": "cpu", "threads": 1},
}

# an experiment whose clients keep all kinds of things; with --share encoder and Ditto, personal parts and models, too
DEA = [{"class_path": "fedmtl.aggregation.DEA", "init_args": {"rho": 0.3, "error_feedback": True}}]
STATEFUL: dict[str, Any] = {
    "clients": [{"tasks": ["semseg"]}, {"tasks": ["depth"]}, {"tasks": ["normals", "saliency"]}],
    "upload": DEA,
    "data": {"init_args": {"train": 18, "val": 10, "size": 32}},
    "local": {"algorithm": "Scaffold"},
    "server": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}},
    "rounds": 4,
    "eval_every": 2,
    "eval_batch_size": 2,
    "pictures": 0,
}


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    error: str


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache of scenes for the whole session, away from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMTL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("WANDB_API_KEY", raising=False)
        yield


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A configuration file that makes any Scenes experiment tiny; give it after the experiment's own."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "out": str(tmp_path / "runs")}))
    return path


@pytest.fixture
def fedmtl(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Result]]:
    """Runs a command in this process."""
    threads = torch.get_num_threads()

    def call(*words: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def fit(fedmtl: Callable[..., Result], tiny: Path) -> Callable[..., Result]:
    """``fit("scenes_dea", "--name", "a")`` runs that experiment, tiny and without W&B."""

    def call(experiment: str, *words: str) -> Result:
        return fedmtl(
            "fit", "--config", EXPERIMENTS / f"{experiment}.yaml", "--config", tiny, "--tracker", "null", *words
        )

    return call


@pytest.fixture(scope="session")
def starter(cache: None) -> Iterator[Starter]:
    """What starts processes without seconds of imports."""
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture
def spawn(starter: Starter) -> Iterator[Callable[..., Process]]:
    """``spawn("fit", *words, log=path)`` runs a command in a process of its own; none outlives its test."""
    begun: list[Process] = []

    def call(*words: str | Path, log: Path, first: str = "") -> Process:
        begun.append(starter.start([str(word) for word in words], log, first))
        return begun[-1]

    yield call
    for process in begun:
        process.kill()


def _rows(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in lines]


@pytest.fixture
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    """A run's metrics.jsonl without its times."""
    return _rows


@pytest.fixture
def go(fit: Callable[..., Any], tiny: Path) -> Callable[..., Any]:
    """``go("a", *words)`` runs a small experiment whose clients keep all kinds of things."""
    settings = yaml.safe_load(tiny.read_text())
    for key, value in STATEFUL.items():
        merged = isinstance(value, dict) and isinstance(settings.get(key), dict)
        settings[key] = {**settings[key], **value} if merged else value
    tiny.write_text(yaml.safe_dump(settings))

    def call(name: str, *words: str) -> Any:
        return fit("scenes_fedavg", "--name", name, *words)

    return call


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def end(rows: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Everything that a run leaves behind, but for its name and times."""

    def read(run: Path) -> dict[str, Any]:
        checkpoints = Checkpoints(run / "checkpoints")
        saved = checkpoints.load()
        kept = {
            client: storage.read(checkpoints.states / file_name(client, r)) for client, r in saved["clients"].items()
        }
        unified = run / "unified" / "model.safetensors"
        return {
            "saved": {key: value for key, value in saved.items() if key not in ("config", "tracker", "signs")},
            "signs": str(saved["signs"]),  # it may hold NaN, which equals nothing
            "kept": kept,
            "unified": unified.read_bytes() if unified.exists() else None,
            "rows": rows(run),
            "results": {**json.loads((run / "results.json").read_text()), "name": ""},
        }

    return read


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    """How undisturbed runs end, by their words."""
    return {}


@pytest.fixture
def undisturbed(go: Any, end: Any, runs: Path, references: dict[str, Any]) -> Callable[..., Any]:
    """``undisturbed(*words)`` is the end of that run when nothing happens to it."""

    def call(*words: str) -> Any:
        if str(words) not in references:
            assert go("undisturbed", *words).code == 0
            references[str(words)] = end(runs / "undisturbed")
        return references[str(words)]

    return call
