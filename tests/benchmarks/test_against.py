"""The benchmarks' ways of training are one and the same: equal batches give equal losses and equal weights."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = {"backbone": "test_convnext", "pixels": 32, "images": 4, "batch": 2, "rounds": 2}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Any]:
    """Imports a benchmark by its name."""
    monkeypatch.setenv("FEDMTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def rounds(seen: list[int]) -> Callable[..., None]:
    return lambda round, *more: seen.append(round)


@pytest.mark.usefixtures("one_thread")
def test_plain_loop_and_package_end_with_the_same_weights(load: Callable[[str], Any], tmp_path: Path) -> None:
    against, comparison = load("against"), load("comparison")
    setting = comparison.Setting(tasks=("semseg",) * 2, source="comparison.Prepared", keep_optimizer=False, **TINY)
    seen: list[list[int]] = [[], [], []]
    ours = against.ours(setting, rounds(seen[0]), tmp_path)
    plain = against.plain(setting, rounds(seen[1]), tmp_path)
    lean = against.plain(setting, rounds(seen[2]), tmp_path, copy_again=False)
    assert seen == [[1, 2]] * 3
    experiment, _ = comparison.build(setting)
    start = comparison.new_model(setting, experiment).state_dict()
    assert against.apart(plain, lean, start) == 0
    assert against.apart(ours, plain, start) < 0.01
    assert against.apart(ours, start, start) == pytest.approx(1)
    other = comparison.Setting(
        tasks=("semseg",) * 2, source="comparison.Prepared", keep_optimizer=False, seed=1, **TINY
    )
    assert against.apart(ours, against.plain(other, rounds([]), tmp_path), start) > 0.1


@pytest.mark.usefixtures("one_thread")
def test_the_bare_loop_takes_the_same_steps(load: Callable[[str], Any]) -> None:
    overhead, comparison = load("overhead"), load("comparison")
    setting = comparison.Setting(tasks=("semseg", "depth"), method="dea", checkpoint_every=3, **{**TINY, "rounds": 4})
    found = overhead.measure(setting, 1)  # ends the program where the losses differ
    assert found["ours"].shape == found["bare"].shape == (1, 2)
    assert any("top_rho_mask" in place or "_scan" in place for place in found["where"])
    assert not any(place.startswith(("models/", "tasks/", "data/")) for place in found["where"])


def test_stopwatch_sums_what_it_wraps_and_only_that(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = load("comparison")
    now = np.zeros(2)
    monkeypatch.setattr(comparison, "clock", lambda device: now.copy())

    def work() -> str:
        now[:] += (2, 1)
        return "result"

    stopwatch = comparison.Stopwatch()
    timed = stopwatch._timed(work)
    assert timed() == "result"
    now += 10
    timed()
    assert stopwatch.reset().tolist() == [4, 2]
    assert stopwatch.reset().tolist() == [0, 0]


def test_other_tensors_are_refused(load: Callable[[str], Any]) -> None:
    weights: Mapping[str, Tensor] = {"a": torch.ones(2)}
    with pytest.raises(SystemExit, match="other tensors: \\['b'\\]"):
        load("against").apart(weights, {**weights, "b": torch.ones(1)}, weights)


@pytest.mark.slow
def test_the_whole_comparison_runs(load: Callable[[str], Any], tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "against.py"),
        "--ways",
        "this package",
        "plain loop",
        "--json",
        str(file),
    ]
    command += ["--backbone", "test_convnext", "--pixels", "32", "--images", "8", "--rounds", "1", "--warm-up", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| plain loop |" in done.stdout
    assert file.is_file()
