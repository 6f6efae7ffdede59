"""`fedmtl sweep` with real runs: killed and gone on with, failing, printed only; and a W&B agent that starts runs."""

import csv
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmtl.checkpoint import Checkpoints
from fedmtl.sweeps import command
from fedmtl.sweeps.definition import read

ROOT = Path(__file__).parents[2]
RHO = {"values": [1.0, 0.3]}


@pytest.fixture
def sweep(tmp_path: Path, tiny: Path) -> Callable[..., list[str]]:
    """The words of a small sweep over ρ, and of what is given."""

    def make(*words: str, **content: Any) -> list[str]:
        file = tmp_path / "small.yaml"
        parameters = {"config": {"value": str(ROOT / "experiments/scenes_dea.yaml")}, "upload.rho": RHO}
        fit = {"program": "fedmtl", "command": ["${program}", "fit", "${args}"], "method": "grid"}
        metric = {"name": "val/semseg/mIoU", "goal": "maximize"}
        file.write_text(yaml.safe_dump({**fit, "metric": metric, "parameters": parameters, **content}, sort_keys=False))
        cut = words.index("--") if "--" in words else len(words)
        extra = ["--config", str(tiny), "--tracker", "null", "--pictures", "0", *words[cut + 1 :]]
        return ["sweep", "--config", str(file), "--out", str(tmp_path / "runs"), *words[:cut], "--", *extra]

    return make


def start(words: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "fedmtl", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    return process.wait(timeout=200), process.stdout.read() if process.stdout else ""


def await_round(number: int, run: Path, process: "subprocess.Popen[str]") -> None:
    checkpoints = Checkpoints(run / "checkpoints")
    for _ in range(2000):
        if checkpoints.all() and checkpoints.load()["round"] >= number:
            return
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)
    raise TimeoutError(run)


@pytest.mark.slow
def test_a_sweep_that_is_stopped_and_killed_goes_on(fedmtl: Any, sweep: Any, runs: Path, rows: Any) -> None:
    words = sweep("--", "--rounds", "12", "--eval_every", "12", "--clients", "[{tasks: [semseg]}]")
    folder = runs / "small"
    begun = folder / "rho_0.3"
    before = shlex.split(fedmtl(*words[:5], "--dry-run", *words[5:]).out.splitlines()[0])
    assert fedmtl(*before[1:]).code == 0  # the first of the two, which is not to be done again
    ended = (folder / "rho_1" / "results.json").stat().st_mtime_ns

    process = start(words)
    await_round(1, begun, process)
    process.send_signal(signal.SIGTERM)
    code, told = finish(process)
    assert code == 75, told
    assert "rho_0.3 stopped" in told
    assert "│ 1 " in told  # what there is, is summed up
    stopped = Checkpoints(begun / "checkpoints").load()["round"]
    assert stopped < 12

    process = start(words)
    await_round(stopped + 1, begun, process)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()  # which its run survives
    process.wait()
    assert Path(f"/proc/{child}").exists()

    result = fedmtl(*words)
    assert result.code == 0, result.out
    assert "2 runs" in result.out
    assert "1 of them done before" in result.out
    assert (folder / "rho_1" / "results.json").stat().st_mtime_ns == ended
    for name in ("rho_1", "rho_0.3"):
        assert [row["round"] for row in rows(folder / name)] == list(range(1, 13))
    assert (folder / "logs" / "rho_0.3.log").read_text().count("$ ") == 2  # waited for, not started once more
    with open(folder / "sweep.csv") as file:
        table = {row["run"]: row for row in csv.DictReader(file)}
    for name, row in table.items():
        results = json.loads((folder / name / "results.json").read_text())
        assert float(row["val/semseg/mIoU"]) == results["last"]["metrics"]["semseg"]["mIoU"]
    assert (folder / "sweep.png").stat().st_size > 5000
    assert (folder / "sweep.svg").exists()


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other_and_two_go_side_by_side(sweep: Any, runs: Path) -> None:
    wrong = {"config": {"value": str(ROOT / "experiments/scenes_dea.yaml")}, "upload.rho": {"values": [7, 0.3]}}
    code, told = finish(start(sweep("--jobs", "2", parameters=wrong)))
    assert code == 1, told
    assert told.index("rho_0.3 starts") < told.index("rho_7 failed")
    assert "rho must be a number in (0, 1]" in told
    assert f"all of it: {runs / 'small' / 'logs' / 'rho_7.log'}" in told
    assert "rho_0.3 done" in told
    with open(runs / "small" / "sweep.csv") as file:
        assert {row["run"]: row["state"] for row in csv.DictReader(file)} == {"rho_7": "failed", "rho_0.3": "done"}


def test_a_dry_run_prints_and_starts_nothing(fedmtl: Any, sweep: Any, runs: Path) -> None:
    result = fedmtl(*sweep("--dry-run", "--", "--rounds", "3"))
    assert result.code == 0
    lines = result.out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("fedmtl fit --config=")
    assert "--upload.rho=1.0 " in lines[0]
    assert lines[1].endswith(f"--rounds 3 --out={runs / 'small'} --name=rho_0.3 --resume=auto")
    assert not runs.exists()


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        ([], {"method": "bayes"}, "method must be grid or random here, not bayes"),
        ([], {"command": ["rm", "${args}"], "trusted": True}, "only fedmtl fit is started, not rm --config="),
        (["--jobs", "0"], {}, "--jobs must be at least 1, not 0"),
        (["--count", "0"], {}, "--count must be at least 1, not 0"),
        (["--gpus", "0,"], {}, "--gpus takes numbers such as 0,1"),
    ],
)
def test_mistakes(fedmtl: Any, sweep: Any, runs: Path, words: list[str], content: dict[str, Any], message: str) -> None:
    limited = ["--trusted-modules", "fedmtl"] if content.pop("trusted", False) else []
    result = fedmtl(*limited, *sweep(*words, **content))
    assert result.code == 2
    assert message in result.error
    assert len(result.error.splitlines()) == 1
    assert not runs.exists()


def test_a_command_may_read_its_parameters_from_a_file(fedmtl: Any, sweep: Any, runs: Path) -> None:
    code = "import json, sys; print('got', json.load(open(sys.argv[1]))['upload.rho'])"
    result = fedmtl(*sweep(command=[sys.executable, "-c", code, "${args_json_file}"]))
    assert result.code == 0, result.out
    logs = [(runs / "small" / "logs" / f"rho_{rho}.log").read_text() for rho in (1, 0.3)]
    assert ["got 1.0" in logs[0], "got 0.3" in logs[1]] == [True, True]


def test_trust_is_handed_on(fedmtl: Any, sweep: Any) -> None:
    out = fedmtl("--trusted-modules", "mine", *sweep("--dry-run")).out
    assert "fedmtl fit --trusted-modules fedmtl,torch.optim,timm.scheduler,mine --config=" in out


def test_a_sweep_is_no_run_and_a_run_no_sweep(fedmtl: Any, sweep: Any, runs: Path) -> None:
    (runs / "small").mkdir(parents=True)
    (runs / "small" / "config.yaml").touch()
    assert "is the folder of a run; give the sweep another --name" in fedmtl(*sweep()).error


@pytest.mark.parametrize("out", ["file", "/proc/nowhere", "x" * 300])
def test_a_folder_that_cannot_be_made(fedmtl: Any, sweep: Any, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    words = [str(tmp_path / out) if word == str(tmp_path / "runs") else word for word in sweep()]
    result = fedmtl(*words)
    assert result.code == 2
    assert re.fullmatch(r"fedmtl sweep: error: --out: \S+ can't be made \(.+\); name a folder .*\n", result.error)


def lay_down(folder: Path, tasks: Sequence[str]) -> None:
    """A finished run of one round."""
    primary = {task: {"metric": "mIoU", "higher_is_better": True, "protocol": ""} for task in tasks}
    entry = {"round": 1, "metrics": {task: {"mIoU": 12.5} for task in tasks}, "delta_m": None}
    results = {"name": "x", "rounds": 1, "primary": primary, "validation": {}, "last": entry, "best": entry}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: x\nrounds: 1\n")
    (folder / "results.json").write_text(json.dumps(results))


def test_a_pipe_gets_whole_lines(fedmtl: Any, sweep: Any, runs: Path) -> None:
    files = [f"/a/method-with-a-long-name-{letter}.yaml" for letter in "ab"]
    tasks = ["semseg", *(f"another_long_task_{i}" for i in range(9))]
    for file in files:
        lay_down(runs / "small" / Path(file).stem, tasks)
    result = fedmtl(*sweep(parameters={"config": {"values": files}}))
    assert result.code == 0
    (head,) = [line for line in result.out.splitlines() if "runs ┃" in line]
    assert all(f"{task} mIoU ↑" in head for task in tasks)
    assert all(f"│ {Path(file).stem} │ 1 " in re.sub(" +", " ", result.out) for file in files)


def test_a_table_that_cannot_be_written(fedmtl: Any, sweep: Any, runs: Path, capsys: Any) -> None:
    for name in ("rho_1", "rho_0.3"):
        lay_down(runs / "small" / name, ["semseg"])
    (runs / "small" / "sweep.csv").mkdir()
    with pytest.raises(SystemExit, match="1"):
        fedmtl(*sweep())
    out = capsys.readouterr().out
    assert "12.5" in out
    assert f"warning: {runs / 'small' / 'sweep.csv'}: Is a directory" in out
    assert not list((runs / "small").glob("*.partial"))


def test_the_parent_stays_light(sweep: Any, tmp_path: Path) -> None:
    heavy = "torch", "lightning", "timm", "wandb", "jsonargparse", "matplotlib"
    words = [word for word in sweep("--dry-run")]
    code = f"import sys; from fedmtl.cli import main; main({words}); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_runs_of_an_agent_do_not_collide(fedmtl: Any, tiny: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent calls the command of the file with words of its own making, from the root of the repository."""
    monkeypatch.chdir(ROOT)
    rho = read(ROOT / "experiments" / "sweeps" / "rho.yaml")
    monkeypatch.setenv("WANDB_SWEEP_ID", "a1b2c3d4")
    setting = rho.settings()[3] | {("model",): {"init_args": {"channels": 16}}}  # a dictionary, as of nested parameters
    words = command.fill(rho, setting, Path("unused.json"))
    assert "--model={'init_args': {'channels': 16}}" in words
    for identity in ("x1y2z3", "u4v5w6", "x1y2z3"):
        monkeypatch.setenv("WANDB_RUN_ID", identity)
        again = (runs / f"scenes_dea_{identity}").exists()
        result = fedmtl(*words[1:], f"--config={tiny}", "--tracker=null", "--rounds=1", "--pictures=0")
        assert result.code == (2 if again else 0), result.error
    assert sorted(path.name for path in runs.iterdir()) == ["scenes_dea_u4v5w6", "scenes_dea_x1y2z3"]
    config = yaml.safe_load((runs / "scenes_dea_x1y2z3" / "config.yaml").read_text())
    assert config["name"] == "scenes_dea_x1y2z3"
    assert config["upload"][0]["init_args"]["rho"] == 0.1
    assert config["model"]["init_args"]["channels"] == 16
    assert config["model"]["init_args"]["backbone"] == "test_convnext"
    monkeypatch.delenv("WANDB_SWEEP_ID")  # a run id alone is of no sweep
    assert fedmtl(*words[1:], f"--config={tiny}", "--tracker=null", "--rounds=1").code == 0
    assert (runs / "scenes_dea").is_dir()
