"""Runs that are killed, stopped or damaged: they go on to the same end, to the bit."""

import json
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmtl.checkpoint import Checkpoints
from fedmtl.client_state import file_name
from fedmtl.engine import InProcess
from fedmtl.tasks import Depth

from .comparing import same
from .processes import Process

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
ON_DISK = ["--states", "disk", "--share", "encoder", "--local.algorithm", "Ditto"]  # personal heads, and models
STEPS = 3  # of a client in a round


def at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, do: Callable[[], Any]) -> list[int]:
    """Has something done before the `call`-th call of a method; returns a count of its calls."""
    real, count = getattr(owner, name), [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] == call:
            do()
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)
    return count


def signalled(name: str) -> Callable[[], None]:
    return lambda: signal.raise_signal(getattr(signal, name))  # handled before it returns


# --- killed --------------------------------------------------------------------------------------------------


@pytest.fixture
def start(spawn: Any, go: Any, tiny: Path, tmp_path: Path) -> Callable[..., Process]:
    """``start("a", *words)`` begins a run as `go` does, in a process and process group of its own."""

    def call(name: str, *words: str, first: str = "") -> Process:
        files = ["--config", EXPERIMENTS / "scenes_fedavg.yaml", "--config", tiny, "--tracker", "null"]
        process: Process = spawn("fit", *files, "--name", name, *words, log=tmp_path / f"{name}.log", first=first)
        return process

    return call


def partial_files(run: Path) -> set[tuple[str, int]]:
    """What is being written at this moment, or was when the run ended: names and times."""
    found = set()
    for folder in (run, run / "checkpoints", run / "checkpoints" / "states"):
        for path in folder.glob("*.partial"):
            with suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_mtime_ns))
    return found


def newest(run: Path) -> int:
    """The round of the newest checkpoint, 0 for none."""
    checkpoints = Checkpoints(run / "checkpoints").all()
    return int(checkpoints[-1].stem[6:]) if checkpoints else 0


def await_moment(run: Path, process: Process, *, files: int = 0, lines: int = 0, round: int = 0) -> None:
    """Returns when so many files have been begun, metrics.jsonl has so many lines, or a round has its checkpoint."""
    left, seen = partial_files(run), set()
    metrics = run / "metrics.jsonl"
    for _ in range(60_000):
        seen |= {name for name, _ in partial_files(run) - left}
        if len(seen) >= files > 0 or 0 < round <= newest(run):
            return
        if lines and metrics.exists() and metrics.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.001)
    raise TimeoutError(process.log.read_text())


SLOW_DISK = "import os, time; real = os.fsync; os.fsync = lambda file: (time.sleep(0.02), real(file))[1]"


@pytest.mark.slow
@pytest.mark.parametrize(("words", "kills", "rounds"), [([], 20, 26), (ON_DISK, 5, 14)], ids=["memory", "disk"])
def test_a_run_that_is_killed_many_times_ends_like_one_that_is_not(
    start: Any, end: Any, runs: Path, words: list[str], kills: int, rounds: int
) -> None:
    words = [*words, "--rounds", str(rounds), "--eval_every", "13"]  # more rounds than the kills leave time for
    undisturbed = start("whole", *words)
    rng = np.random.default_rng(5)
    killed, saving, reached = runs / "killed", 0, [0]
    for number in range(kills):
        process = start("killed", *words, "--resume", "auto", first=SLOW_DISK)
        if number % 4 == 0:
            time.sleep(rng.uniform(0.1, 1.2))
        elif number % 4 < 3:
            await_moment(killed, process, round=reached[-1] + 1)
            time.sleep(rng.uniform(0, 0.4))
        else:
            await_moment(killed, process, files=int(rng.integers(1, 7)))
            time.sleep(rng.uniform(0, 0.02))
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.log.read_text()
        saving += any(".ckpt" in name or ".safetensors" in name for name, _ in partial_files(killed))
        reached.append(newest(killed))
    assert reached == sorted(reached)
    assert len(set(reached)) > kills // 3
    assert saving >= kills // 20  # of a few, perhaps none hits a save
    assert undisturbed.wait() == 0, undisturbed.log.read_text()
    last = start("killed", *words, "--resume", "auto")
    assert last.wait() == 0, last.log.read_text()
    assert same(end(killed), end(runs / "whole"))
    assert not list(killed.rglob("*.partial"))


# --- stopped -------------------------------------------------------------------------------------------------


RARELY = ["--checkpoint_every", "10"]


@pytest.mark.parametrize(
    ("name", "moment"), [("SIGINT", "training"), ("SIGTERM", "evaluation"), ("SIGUSR1", "training")]
)
def test_a_signal_ends_a_run_that_goes_on_to_the_same_end(
    go: Any, end: Any, undisturbed: Any, runs: Path, monkeypatch: pytest.MonkeyPatch, name: str, moment: str
) -> None:
    whole = undisturbed()
    with monkeypatch.context() as patched:
        if moment == "training":  # the depth client's second step of the third round
            steps = at(patched, Depth, "loss", 2 * STEPS + 2, signalled(name))
        else:  # the second of the five batches of the evaluation after the fourth
            steps = at(patched, InProcess, "_outputs", 7, signalled(name))
        result = go("stopped", *RARELY)
    assert result.code == 75
    assert result.error == f"fedmtl fit: error: stopped by {name}; --resume auto goes on\n"
    assert steps[0] == (2 * STEPS + 2 if moment == "training" else 7)  # that batch was the last
    run = runs / "stopped"
    saved = Checkpoints(run / "checkpoints").load()
    assert saved["round"] == (2 if moment == "training" else 3)
    assert (saved["trained"] is not None) == (moment == "evaluation")
    trained = at(monkeypatch, InProcess, "train", 0, lambda: None)
    assert go("stopped", *RARELY, "--resume", "auto").code == 0
    assert trained[0] == (6 if moment == "training" else 0)  # what was trained is not trained again
    assert same(end(run), whole)


def test_a_signal_with_states_on_disk(
    go: Any, end: Any, undisturbed: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = undisturbed(*ON_DISK)
    with monkeypatch.context() as patched:
        at(patched, Depth, "loss", 2 * 2 * STEPS + 2, signalled("SIGTERM"))  # Ditto trains two models
        assert go("stopped", *ON_DISK, *RARELY).code == 75
    assert Checkpoints(runs / "stopped" / "checkpoints").load()["round"] == 2
    assert go("stopped", *ON_DISK, *RARELY, "--resume", "auto").code == 0
    assert same(end(runs / "stopped"), whole)


def test_a_run_that_is_stopped_before_its_first_round_ends_starts_again(
    go: Any, end: Any, undisturbed: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        at(patched, Depth, "loss", 2, signalled("SIGTERM"))
        assert go("stopped").code == 75
    assert go("stopped", "--resume", "auto").code == 0
    assert same(end(runs / "stopped"), undisturbed())


def test_a_second_ctrl_c_ends_at_once(go: Any, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        signalled("SIGINT")()
        signalled("SIGINT")()

    steps = at(monkeypatch, Depth, "loss", 2 * STEPS + 2, twice)
    result = go("stopped")
    assert result.code == 130
    assert result.error.startswith("fedmtl fit: error: interrupted; --resume auto goes on")
    assert steps[0] == 2 * STEPS + 2
    assert Checkpoints(runs / "stopped" / "checkpoints").load()["round"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_the_data_workers_too(start: Any, end: Any, undisturbed: Any, runs: Path, name: str) -> None:
    words = [*RARELY, "--fabric.workers", "1"]
    process = start("stopped", *words)
    run = runs / "stopped"
    await_moment(run, process, lines=1)
    os.killpg(process.id, getattr(signal, name))
    assert process.wait() == 75, process.log.read_text()
    assert process.log.read_text().splitlines()[-1].endswith(f"stopped by {name}; --resume auto goes on")
    assert Checkpoints(run / "checkpoints").load()["round"] >= 1
    again = start("stopped", *words, "--resume", "auto")
    assert again.wait() == 0, again.log.read_text()
    assert same(end(run), undisturbed())


# --- damaged files -------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 16
    path.write_bytes(bytes(content))


DAMAGES = {"cut": cut, "flip": flip, "remove": Path.unlink}
NEWEST = {"checkpoint": "round_000003.ckpt", "client": "states/depth.000003.safetensors"}


def damaged(run: Path, damage: str, what: str, round: int = 3) -> None:
    DAMAGES[damage](run / "checkpoints" / NEWEST[what].replace("3", str(round)))


def test_a_damaged_newest_checkpoint_is_passed_over(
    go: Any, fedmtl: Any, end: Any, undisturbed: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = undisturbed()
    with monkeypatch.context() as patched:
        at(patched, Depth, "loss", 3 * STEPS + 1, signalled("SIGTERM"))
        assert go("stopped").code == 75
    run = runs / "damaged"
    for damage, what in [("cut", "checkpoint"), ("flip", "checkpoint"), ("remove", "client"), ("flip", "client")]:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(runs / "stopped", run)
        damaged(run, damage, what)
        result = go("damaged", "--resume", "auto")
        assert result.code == 0, result.error
        text = "".join(result.out.split())
        assert (
            f"round_000003.ckptisdamaged({'' if what == 'checkpoint' else run / 'checkpoints' / NEWEST[what]}" in text
        )
        assert "goingonfromround_000002.ckpt" in text
        assert same(end(run), whole)
    shutil.rmtree(run)
    shutil.copytree(runs / "stopped", run)
    for round in (2, 3):
        damaged(run, "cut", "checkpoint", round)
    for result in (go("damaged", "--resume", "auto"), fedmtl("evaluate", run)):
        assert result.code == 2
        assert len(result.error.splitlines()) == 1
        assert "round_000003.ckpt is damaged" in result.error


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_code_in_states_and_checkpoints_is_not_run(go: Any, fedmtl: Any, runs: Path, tmp_path: Path) -> None:
    assert go("a", *ON_DISK, "--rounds", "1").code == 0
    folder, trace = runs / "a" / "checkpoints", tmp_path / "trace"
    names = ["round_000001.ckpt", "states/depth.000001.safetensors"]
    for write in (
        lambda path: torch.save({"a": Bomb(trace)}, path),
        lambda path: path.write_bytes(pickle.dumps(Bomb(trace))),
    ):
        for name in names:
            whole = (folder / name).read_bytes()
            (folder / name).unlink()
            write(folder / name)
            for result in (go("a", *ON_DISK, "--rounds", "1", "--resume", "auto"), fedmtl("evaluate", runs / "a")):
                assert result.code == 2
                assert f"{folder / names[0]} is damaged" in result.error
            (folder / name).write_bytes(whole)
    assert not trace.exists()
    assert fedmtl("evaluate", runs / "a").code == 0


# --- files of states -----------------------------------------------------------------------------------------


def test_states_may_move_between_memory_and_disk(
    go: Any, end: Any, undisturbed: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = undisturbed(*ON_DISK)
    words = ON_DISK[2:]
    for number, where in enumerate(("memory", "disk", "memory")):
        with monkeypatch.context() as patched:
            at(patched, Depth, "loss", 2 * STEPS + 1, signalled("SIGTERM"))  # in the next round
            assert go("moved", *words, "--states", where, "--resume", "auto").code == 75
        assert Checkpoints(runs / "moved" / "checkpoints").load()["round"] == number + 1
    assert go("moved", *words, "--states", "disk", "--resume", "auto").code == 0
    assert same(end(runs / "moved"), whole)


def test_files_are_kept_as_long_as_a_checkpoint_needs_them(
    go: Any, fedmtl: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([1.0, 3.0, 2.0, 2.0, 2.0, 2.0])  # the second evaluation is the best
    monkeypatch.setattr("fedmtl.orchestrator.mean", lambda values: next(scores) if values else None)
    words = [*ON_DISK, "--rounds", "6", "--eval_every", "1", "--participation", "0.67"]
    assert go("a", *words).code == 0
    monkeypatch.undo()
    folder = runs / "a" / "checkpoints"
    assert [path.name for path in sorted(folder.glob("*.ckpt"))] == [
        "best.ckpt",
        "round_000005.ckpt",
        "round_000006.ckpt",
    ]
    needed = set()
    for path in folder.glob("*.ckpt"):
        clients = torch.load(path, weights_only=True)["clients"]
        needed |= {file_name(client, round) for client, round in clients.items()}
    assert {path.name for path in (folder / "states").iterdir()} == needed
    best = json.loads((runs / "a" / "results.json").read_text())["best"]
    assert best["round"] == 2
    result = fedmtl("evaluate", runs / "a", "--checkpoint", "best")
    assert result.code == 0, result.error
    for values in best["metrics"].values():
        assert all(f"{value:.4f}" in result.out for value in values.values())


def test_clients_that_keep_nothing_leave_no_files(go: Any, runs: Path) -> None:
    words = ["--upload", "null", "--local.algorithm", "FedAvg", "--local.keep_optimizer", "false", "--rounds", "1"]
    assert go("a", *words, "--states", "disk").code == 0
    assert list((runs / "a" / "checkpoints" / "states").iterdir()) == []
