"""Runs on two ranks through the real command line: what they leave behind, how they end, how they go on."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedmtl.checkpoint import Checkpoints
from fedmtl.cli import main

from .comparing import same
from .conftest import TINY
from .test_tracking_wandb import inspected

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RANKS = ("--fabric.devices", "2")
ROUNDS, INCIDENT = 4, 3  # all, and the one in which it happens

# an upload transform that changes nothing; what happens in it, and on which rank, the environment says
PLUGIN = f"""
import os
import signal
import time
from pathlib import Path
from fedmtl.aggregation import UploadTransform

class Incident(UploadTransform):
    def __call__(self, update, sending):
        import torch.distributed as dist
        what, rank, *run = os.environ.get("INCIDENT", "").split() or ("", "")
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if what and first and sending.round == {INCIDENT} and dist.get_rank() == int(rank):
            for name in run:  # once it has written its part of the last checkpoint
                while not Path("runs", name, "checkpoints", "round_{INCIDENT - 1:06d}.ckpt").exists():
                    time.sleep(0.01)
            who = 0 if what == "stop_all" else os.getpid()
            (os.killpg if who == 0 else os.kill)(who, signal.SIGKILL if what == "kill" else signal.SIGTERM)
        return update
"""

Rows = Callable[[Path], list[dict[str, Any]]]


@dataclass
class Place:
    """A working directory with the plug-in, and what a run there begins with."""

    folder: Path

    def words(self, name: str, *others: str) -> list[str]:
        config = [self.folder / "tiny.yaml"]
        return ["fit", *(word for file in config for word in ("--config", str(file))), "--name", name, *others]

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def command(self, name: str, *others: str, starter: Sequence[str] = ("-m", "fedmtl")) -> list[str]:
        return [sys.executable, *starter, *self.words(name, *others)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Iterator[Place]:
    """The working directory, in which a run of one rank named ``one`` is done."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "incident.py").write_text(PLUGIN)
    dea = {"class_path": "fedmtl.aggregation.DEA", "init_args": {"rho": 0.3, "error_feedback": True}}
    settings = {
        **TINY,
        "config": str(EXPERIMENTS / "scenes_dea.yaml"),
        "out": str(folder / "runs"),
        "rounds": ROUNDS,
        "eval_every": 2,
        "tracker": None,
        "upload": [dea, {"class_path": "incident.Incident"}],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    found = Place(folder)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        assert main(found.words("one")) == 0
        yield found
    sys.modules.pop("incident", None)
    torch.set_num_threads(threads)


def start(command: Sequence[str], place: Place, incident: str = "", **environment: str) -> "subprocess.Popen[str]":
    """Starts a command in a session of its own, which is the way to find what it leaves."""
    hidden = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
    around = {key: value for key, value in os.environ.items() if key not in hidden}
    return subprocess.Popen(
        command,
        cwd=place.folder,
        env={**around, "OMP_NUM_THREADS": "1", "INCIDENT": incident, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code and what was said; nothing of its session is left, though its first process ended by itself."""
    try:
        out, error = process.communicate(timeout=150)
        for _ in range(100):  # one that has closed its output may need a moment
            left = members(process.pid)
            if not left:
                break
            time.sleep(0.1)
    finally:
        for pid in members(process.pid):
            os.kill(pid, signal.SIGKILL)
    assert not left
    return process.returncode, out, error


def members(session: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def finished_as_alone(place: Place, name: str, rows: Rows) -> None:
    """A run has left what that of one rank has left."""
    run, alone = place.run(name), place.run("one")
    assert rows(run) == rows(alone)
    for file in ("unified/model.safetensors", "federation.json", f"figures/round_{ROUNDS:06d}.png"):
        assert (run / file).read_bytes() == (alone / file).read_bytes()
    results = [json.loads((folder / "results.json").read_text()) for folder in (run, alone)]
    assert [one.pop("name") for one in results] == [name, "one"]
    assert results[0] == results[1]
    ends = [Checkpoints(folder / "checkpoints") for folder in (run, alone)]
    states = [checkpoints.load() for checkpoints in ends]
    for key in ("server", "clients", "signs", "first", "best", "last", "round"):
        assert same(states[0][key], states[1][key]), key
    assert states[0]["clients"]
    names = [sorted(path.name for path in checkpoints.states.iterdir()) for checkpoints in ends]
    assert names[0] == names[1]
    for file in names[0]:
        assert (ends[0].states / file).read_bytes() == (ends[1].states / file).read_bytes()


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc, and forks")


@linux
@pytest.mark.slow
def test_two_ranks_leave_what_one_leaves_and_log_once(
    place: Place, fedmtl: Callable[..., Any], rows: Rows, tmp_path: Path
) -> None:
    wandb = {"WANDB_CONFIG_DIR": str(tmp_path), "NETRC": str(tmp_path / "none")}
    tracker = ["--tracker", "fedmtl.tracking.WandB", "--tracker.mode", "offline"]
    code, out, error = finish(start(place.command("two", *RANKS, *tracker), place, **wandb))
    assert code == 0, error
    finished_as_alone(place, "two", rows)
    assert out.count("everything of this run is in") == 1
    assert "and 1 more" in out
    logged = [record["history"]["item"] for record in inspected(place.run("two")) if record["type"] == "history"]
    assert [item["round"] for item in logged if "bytes/up" in item] == list(range(1, ROUNDS + 1))
    assert len(list(place.folder.rglob("offline-run-*"))) == 1
    told = [fedmtl("evaluate", place.run(name), "--trusted-modules", "incident") for name in ("one", "two")]
    assert [one.code for one in told] == [0, 0]
    assert told[0].out.replace("one", "two") == told[1].out


@linux
@pytest.mark.slow
def test_torchrun_goes_on_after_a_rank_was_killed(place: Place, rows: Rows) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    starter = [*torchrun, "-m", "fedmtl"]
    code, out, error = finish(start(place.command("killed", starter=starter), place, "kill 1 killed"))
    assert code == 0, error
    assert "going on with" in out
    assert f"after round {INCIDENT - 1}" in out
    finished_as_alone(place, "killed", rows)


@linux
@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job(place: Place) -> None:
    (code, error), (killed, _) = as_torchrun_starts_them(place, place.words("dead"), "kill 1 dead")
    assert (code, killed) == (2, -signal.SIGKILL), error
    (line,) = [line for line in error.splitlines() if line.startswith("fedmtl fit: error")]
    assert "another process of the job has ended" in line
    assert "--resume auto" in line
    assert "Traceback" not in error
    assert Checkpoints(place.run("dead") / "checkpoints").load()["round"] == INCIDENT - 1


def goes_on(place: Place, name: str, rows: Rows, *, words: Sequence[str] = ()) -> None:
    """A run that was stopped has saved its last whole round, and ends like one that was not."""
    assert Checkpoints(place.run(name) / "checkpoints").load()["round"] == INCIDENT - 1
    assert main(place.words(name, "--checkpoint_every", "10", "--resume", "auto", *words)) == 0
    (place.run(name) / "checkpoints" / f"round_{INCIDENT - 1:06d}.ckpt").unlink()
    Checkpoints(place.run(name) / "checkpoints").load()
    assert rows(place.run(name)) == rows(place.run("one"))
    ends = [(place.run(one) / "unified" / "model.safetensors").read_bytes() for one in (name, "one")]
    assert ends[0] == ends[1]


@linux
@pytest.mark.slow
def test_a_signal_to_all_ranks_stops_the_job_and_loses_no_round(place: Place, rows: Rows) -> None:
    command = place.command("stopped", *RANKS, "--checkpoint_every", "10")
    code, _, error = finish(start(command, place, "stop_all 1"))
    assert code == 75, error
    assert "stopped by SIGTERM; --resume auto goes on" in error
    assert "Traceback" not in error
    goes_on(place, "stopped", rows)


def as_torchrun_starts_them(place: Place, words: Sequence[str], incident: str) -> list[tuple[int, str]]:
    """Exit code and messages of each of two ranks, which are copies of this process: that saves their imports."""

    def enter(rank: int, port: int) -> None:
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        rank_zero_only.rank = rank  # as when it is imported there
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none"}
        os.environ |= {key: str(value) for key, value in (numbers | where).items()} | {"INCIDENT": incident}
        sys.stdout = sys.stderr = open(place.folder / f"{rank}.log", "w")  # noqa: SIM115 - for good
        code = main(list(words))
        sys.stdout.flush()
        os._exit(code)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [multiprocessing.get_context("fork").Process(target=enter, args=(rank, port)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    logs = [(place.folder / f"{rank}.log").read_text() for rank in (0, 1)]
    return [(process.exitcode or 0, log) for process, log in zip(processes, logs, strict=True)]


@linux
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_the_others(place: Place, rows: Rows, rank: int) -> None:
    name = f"signal_{rank}"
    found = as_torchrun_starts_them(place, place.words(name, "--checkpoint_every", "10"), f"stop {rank}")
    codes, logs = zip(*found, strict=True)
    assert codes == ((75, 2) if rank == 0 else (2, 75)), logs
    assert "stopped by SIGTERM" in logs[rank]
    assert "another process of the job has ended" in logs[1 - rank]
    assert "Traceback" not in "".join(logs)
    goes_on(place, name, rows)


@linux
@pytest.mark.slow
def test_the_first_rank_is_missed_too(place: Place) -> None:
    (killed, _), (code, log) = as_torchrun_starts_them(place, place.words("headless"), "kill 0")
    assert killed == -signal.SIGKILL
    assert code == 2
    assert "another process of the job has ended" in log
    assert "Traceback" not in log


# --- refusals ------------------------------------------------------------------------------------------------

FAST = ("--fabric.reduce", "fast", "--upload", "null")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*FAST, "--server.aggregator", "fedmtl.aggregation.TIES"), "server.aggregator TIES needs each client's"),
        ((*FAST, "--local.algorithm", "fedmtl.algorithms.Scaffold"), "local.algorithm Scaffold needs each client's"),
        (
            (
                *FAST,
                "--server",
                "{class_path: fedmtl.server.PersonalServer, init_args: {mixing: fedmtl.mixing.FedAMP}}",
            ),
            "server PersonalServer needs each client's",
        ),
        ((*FAST, "--diagnostics", "fedmtl.diagnostics.Diagnostics"), "fabric.reduce: diagnostics look at each"),
        (("--fabric.devices", "0"), "fabric.devices must be at least 1, not 0"),
        (("--fabric.num_nodes", "0"), "fabric.num_nodes must be at least 1, not 0"),
        (("--fabric.reduce", "slow"), "fabric.reduce"),
        pytest.param(
            (*RANKS, "--fabric.accelerator", "cuda"),
            "2 devices on 1 nodes can't be used here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_refusals(fit: Callable[..., Any], tmp_path: Path, words: Sequence[str], message: str) -> None:
    result = fit("scenes_dea", *words)
    assert result.code == 2
    (line,) = result.error.splitlines()
    assert message in line
    if "fast" in words:
        assert "take reduce: exact" in line
    assert not (tmp_path / "runs").exists()
