"""Jobs of a sweep: side by side, failing, done before, at work elsewhere, stopped; with commands that take no time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmtl.errors import UserError
from fedmtl.stopping import Stopped
from fedmtl.sweeps import jobs
from fedmtl.sweeps.jobs import Job

MEET = """
import pathlib, sys, time
here, mine, other = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
(here / mine).touch()
for _ in range(2000):
    if (here / other).exists(): sys.exit(0)
    time.sleep(0.01)
sys.exit('alone')
"""


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    def make(name: str, code: str, *words: str) -> Job:
        command = [sys.executable, "-c", code, *words]
        (tmp_path / "logs").mkdir(exist_ok=True)
        return Job(name, command, command, False, tmp_path / name, tmp_path / "logs" / f"{name}.log")

    return make


def run(*planned: Job, slots: Any = (None,)) -> tuple[dict[str, str], list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    return jobs.run(planned, list(slots), lambda job, what, *_: told.append((job.name, what))), told


def test_two_at_a_time(job: Any, tmp_path: Path) -> None:
    pair = job("a", MEET, str(tmp_path), "a", "b"), job("b", MEET, str(tmp_path), "b", "a")  # each waits for the other
    assert run(*pair, slots=[None, None])[0] == {"a": "done", "b": "done"}


def test_one_at_a_time_in_order(job: Any, tmp_path: Path) -> None:
    note = "import sys; open(sys.argv[1], 'a').write(sys.argv[2])"
    ends, told = run(*(job(name, note, str(tmp_path / "order"), name) for name in "abc"))
    assert (tmp_path / "order").read_text() == "abc"
    assert told == [(name, what) for name in "abc" for what in ("started", "done")]
    assert set(ends.values()) == {"done"}


def test_a_gpu_for_each(job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "x")
    meet = MEET.replace(
        "sys.exit(0)",
        "import os; sys.exit(print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ.get('WANDB_SWEEP_ID')))",
    )
    pair = job("a", meet, str(tmp_path), "a", "b"), job("b", meet, str(tmp_path), "b", "a")
    assert run(*pair, slots=["2", "5"])[0] == {"a": "done", "b": "done"}
    assert [(tmp_path / "logs" / f"{name}.log").read_text().splitlines()[-1] for name in "ab"] == ["2 None", "5 None"]


def test_a_failed_job_stops_no_other(job: Any) -> None:
    bad = job("bad", "print('first'); raise KeyError('what')")
    missing = Job("missing", ["no-such-command"], [], False, bad.folder, bad.log.with_name("missing.log"))
    ends, told = run(bad, missing, job("good", ""))
    assert ends == {"bad": "failed", "missing": "failed", "good": "done"}
    assert told[1] == ("bad", "failed")
    assert jobs.last_error(bad.log) == "KeyError: 'what'"
    assert "no-such-command can't be started" in jobs.last_error(missing.log)
    assert "first" in bad.log.read_text()


def test_what_is_done_is_not_done_again(job: Any, tmp_path: Path) -> None:
    count = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(len(open(sys.argv[1]).read()) == 1)"
    again = job("again", count, str(tmp_path / "count"))
    assert [run(again)[0]["again"] for _ in range(3)] == ["failed", "done", "done"]
    assert (tmp_path / "count").read_text() == "xx"


def test_a_fit_is_done_when_it_has_results(job: Any, tmp_path: Path) -> None:
    code = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(exist_ok=True); {}"
    for end, text in (("failed", ""), ("done", "(p / 'results.json').touch()")):
        plain = job("fit", code.format(text), str(tmp_path / "fit"))
        plain.log.with_suffix(".json").unlink(missing_ok=True)
        fit = Job(plain.name, plain.words, plain.given, True, plain.folder, plain.log)
        assert run(fit)[0] == {"fit": end}


def test_another_command_for_the_same_name(job: Any) -> None:
    first = job("a", "", "--rounds 2", "--x")
    first.check()
    run(first)
    first.check()
    with pytest.raises(UserError, match=r"was begun with --rounds 2 and without --rounds 3; give the sweep the words"):
        job("a", "", "--rounds 3", "--x").check()
    with pytest.raises(UserError, match=r"was begun by words in another order"):
        job("a", "", "--x", "--rounds 2").check()


@pytest.mark.skipif(jobs.fcntl is None, reason="no locks here")
def test_a_job_at_work_elsewhere_is_waited_for(job: Any, tmp_path: Path) -> None:
    slow = job(
        "slow",
        "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)",
        str(tmp_path / "go"),
    )
    with open(slow.log, "ab") as log:
        assert jobs._lock(log)
        orphan = subprocess.Popen(slow.words, stdout=log)  # of a sweep that was killed
    told: list[tuple[str, str]] = []

    def tell(job: Job, what: str, *_: Any) -> None:
        told.append((job.name, what))
        if (job.name, what) == ("other", "done"):
            slow.log.with_suffix(".done").touch()
            (tmp_path / "go").touch()

    assert jobs.run([slow, job("other", "")], [None], tell) == {"slow": "done", "other": "done"}
    assert told == [("slow", "elsewhere"), ("other", "started"), ("other", "done")]
    assert orphan.wait() == 0


STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]).touch(), sys.exit(75)))
print('ready', flush=True)
time.sleep(60)
"""


def test_a_signal_stops_all_gently(job: Any, tmp_path: Path) -> None:
    planned = [job(name, STUBBORN, str(tmp_path / f"{name}.saved")) for name in "abc"]
    told: list[tuple[str, str]] = []

    def start(*args: Any) -> Any:
        process = real(*args)
        if process.job.name == "b":
            while not all("\nready" in each.log.read_text() for each in planned[:2]):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
        return process

    real = jobs._start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_start", start)
        with pytest.raises(Stopped, match="SIGTERM"):
            jobs.run(planned, [None, None], lambda job, what, *_: told.append((job.name, what)))
    assert told == [("a", "started"), ("b", "started"), ("a", "stopped"), ("b", "stopped")]
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == ["a.saved", "b.saved"]


def test_a_log_that_cannot_be_written_fails_that_job_alone(job: Any, tmp_path: Path) -> None:
    go = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"
    first, second, third = job("a", go, str(tmp_path / "go")), job("b", ""), job("c", "")
    second.log.mkdir()
    third.log.with_suffix(".partial").mkdir()  # where its command is noted
    why = {}

    def tell(job: Job, what: str, seconds: float, reason: str) -> None:
        if what == "failed":
            why[job.name] = reason
        if job.name == "c" and what == "failed":
            (tmp_path / "go").touch()

    assert jobs.run([first, second, third], [None, None], tell) == {"a": "done", "b": "failed", "c": "failed"}
    assert why["b"] == f"{second.log} can't be written: Is a directory"
    assert why["c"] == f"{third.log.with_suffix('.partial')} can't be written: Is a directory"


def test_an_error_here_lets_runs_save(job: Any, tmp_path: Path) -> None:
    first = job("a", STUBBORN, str(tmp_path / "saved"))

    def tell(job: Job, what: str, *_: Any) -> None:
        if job.name == "b":
            while "\nready" not in first.log.read_text():
                time.sleep(0.01)
            raise BrokenPipeError  # nobody reads what is told

    with pytest.raises(BrokenPipeError):
        jobs.run([first, job("b", "")], [None, None], tell)
    assert (tmp_path / "saved").exists()


DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready', flush=True)
time.sleep(60)
"""


def test_a_second_interrupt_ends_all_at_once(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = job("a", DEAF)
    begun: list[Any] = []

    def start(*args: Any) -> Any:
        begun.append(real(*args))
        while "\nready" not in deaf.log.read_text():
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)
        return begun[0]

    def wait(process: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    real = jobs._start
    monkeypatch.setattr(jobs, "_start", start)
    monkeypatch.setattr(jobs._Process, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        run(deaf)
    assert begun[0].popen.wait(timeout=10) == -signal.SIGKILL


@pytest.mark.parametrize("text", ["5", "[1", '{"a": 1}', "[3]", ""])
def test_a_damaged_note_is_refused(job: Any, text: str) -> None:
    damaged = job("a", "")
    damaged.log.with_suffix(".json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is damaged, it should say by what command .* was begun"):
        damaged.check()


def test_a_job_that_was_stopped_itself(job: Any) -> None:
    assert run(job("a", "raise SystemExit(75)"), job("b", ""))[0] == {"a": "stopped", "b": "done"}


def test_the_last_line_that_tells(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert jobs.last_error(log) == "its log can't be read"
    log.write_text("")
    assert jobs.last_error(log) == "it printed nothing"
    log.write_text("fine\n\x1b[31mfedmtl fit: error: no\x1b[0m\nbye\n")
    assert jobs.last_error(log) == "fedmtl fit: error: no"
    log.write_text("fine\nbye\n\n")
    assert jobs.last_error(log) == "bye"
