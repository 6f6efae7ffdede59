"""The real command line on settings small enough for a test."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedmtl.cli import main

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


def _rows(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in lines]


@pytest.fixture
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    """A run's metrics.jsonl without its times."""
    return _rows
