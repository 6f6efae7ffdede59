"""Checkpoints: whole or not at all, the newest and the best kept, no code run on loading."""

import errno
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmtl.checkpoint import FORMAT, Checkpoints
from fedmtl.client_state import ClientState, Kept, file_name
from fedmtl.errors import UserError


def state(round: int) -> dict[str, Any]:
    optimizer = {"state": {0: {"exp_avg": torch.full((300,), float(round))}}, "param_groups": [{"betas": (0.9, 0.999)}]}
    return {"round": round, "best": None, "score": 0.5, "name": "run", "server": {"optimizer": optimizer}}


def kept(round: int) -> Kept:
    """What a client keeps."""
    return Kept(round, ClientState(upload={"0": {"residual": torch.full((300,), float(round))}}))


def save(checkpoints: Checkpoints, round: int, *, best: bool = False, clients: dict[str, Kept] | None = None) -> None:
    """Saves a state of this round, and waits for it."""
    clients = {"depth": kept(round)} if clients is None else clients
    rounds = {name: one.round for name, one in clients.items()}
    unsaved = {name: one for name, one in clients.items() if one.path is None}
    checkpoints.save(state(round), round=round, best=best, kept=rounds, unsaved=unsaved)
    checkpoints.wait()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints")


class Malicious:
    """Unpickling it would make a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_a_state_comes_back_as_it_was(checkpoints: Checkpoints) -> None:
    save(checkpoints, 4)
    loaded = checkpoints.load()
    moment = loaded["server"]["optimizer"]["state"][0].pop("exp_avg")
    expected = state(4)
    assert torch.equal(moment, expected["server"]["optimizer"]["state"][0].pop("exp_avg"))
    assert loaded == {"format": FORMAT, **expected, "clients": {"depth": 4}}
    client = Kept(4, path=checkpoints.states / file_name("depth", 4)).state
    assert torch.equal(client.upload["0"]["residual"], torch.full((300,), 4.0))


def test_what_changes_after_save_has_begun_is_not_saved(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next round trains while the file is being written."""
    may_write, real = threading.Event(), torch.save

    def slow(value: Any, file: Any) -> None:
        assert may_write.wait(20)
        real(value, file)

    monkeypatch.setattr(torch, "save", slow)
    tree = state(1)
    checkpoints.save(tree, round=1, best=False)  # returns although nothing can be written yet
    assert checkpoints.all() == []
    tree["server"]["optimizer"]["state"][0]["exp_avg"] += 1
    tree["server"]["optimizer"]["param_groups"].append({})
    tree["name"] = "changed"
    may_write.set()
    checkpoints.wait()
    found = checkpoints.load()
    assert found["name"] == "run"
    assert found["server"]["optimizer"]["param_groups"] == [{"betas": (0.9, 0.999)}]
    assert torch.equal(found["server"]["optimizer"]["state"][0]["exp_avg"], torch.ones(300))


def test_a_second_save_waits_for_the_first(checkpoints: Checkpoints) -> None:
    for round in range(1, 6):
        checkpoints.save(state(round), round=round, best=round == 3)
    checkpoints.wait()
    assert names(checkpoints.directory) == ["best.ckpt", "round_000004.ckpt", "round_000005.ckpt", "states"]
    assert checkpoints.load("best")["round"] == 3


def test_a_state_that_cannot_be_stored_is_an_error(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save({"server": threading.Lock().acquire}, round=1, best=False)
    with pytest.raises(Exception, match="pickle"):
        checkpoints.wait()
    checkpoints.wait()  # it is raised once


def test_the_newest_two_and_the_best_are_kept_with_their_clients_states(checkpoints: Checkpoints) -> None:
    rare = kept(1)  # of a client that trains in the first round alone
    for round in (1, 2, 5, 9, 10):
        save(checkpoints, round, best=round in (1, 2), clients={"depth": kept(round), "rare": rare})
    assert names(checkpoints.directory) == ["best.ckpt", "round_000009.ckpt", "round_000010.ckpt", "states"]
    assert names(checkpoints.states) == [
        *(file_name("depth", round) for round in (2, 9, 10)),
        file_name("rare", 1),
    ]
    assert checkpoints.load()["round"] == 10
    assert checkpoints.load("best")["round"] == 2
    assert checkpoints.load(9)["round"] == 9


def test_files_of_a_later_round_are_left_alone(checkpoints: Checkpoints) -> None:
    """The next round writes them while this one's checkpoint is written."""
    save(checkpoints, 1)
    later = checkpoints.states / file_name("depth", 2)
    for path in (later, later.with_name(later.name + ".partial"), checkpoints.states / "notes.txt"):
        path.write_bytes(b"")
    save(checkpoints, 1)
    assert len(names(checkpoints.states)) == 4


def test_a_client_that_keeps_nothing_has_no_file(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1, clients={})
    assert names(checkpoints.states) == []
    assert checkpoints.load()["clients"] == {}


def test_a_new_best_replaces_the_old_one(checkpoints: Checkpoints) -> None:
    for round in (1, 2, 3):
        save(checkpoints, round, best=round != 2)
    assert checkpoints.load("best")["round"] == 3


@pytest.mark.parametrize("links", [True, False])
def test_saving_a_round_again_replaces_it_and_not_the_best(
    checkpoints: Checkpoints, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def link(*_: Any) -> None:
            raise PermissionError("no hard links here")

        monkeypatch.setattr(os, "link", link)
    checkpoints.save(state(1), round=1, best=True)
    checkpoints.save({**state(1), "name": "again"}, round=1, best=False)
    checkpoints.wait()
    assert checkpoints.load()["name"] == "again"
    assert checkpoints.load("best")["name"] == "run"
    assert names(checkpoints.directory) == ["best.ckpt", "round_000001.ckpt", "states"]


def test_checkpoints_of_a_course_that_was_given_up_go(checkpoints: Checkpoints) -> None:
    """The newest was damaged and passed over: it must not count as one of the two."""
    for round in (1, 2, 9):
        save(checkpoints, round)
    flip(checkpoints.all()[-1])
    assert checkpoints.load()["round"] == 2
    save(checkpoints, 3)
    assert names(checkpoints.directory) == ["round_000002.ckpt", "round_000003.ckpt", "states"]


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("call", ["fsync", "write", "link"])
def test_a_full_disk_is_a_warning_and_leaves_the_old_checkpoints(
    best: bool,
    call: str,
    checkpoints: Checkpoints,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save(checkpoints, 1, best=True)
    save(checkpoints, 2)
    before = names(checkpoints.directory), names(checkpoints.states)
    with monkeypatch.context() as patched:
        if call == "write":  # torch makes a RuntimeError of what the file says
            real = open
            patched.setattr("builtins.open", lambda *words: Full(real(*words)) if "wb" in words else real(*words))
        else:
            patched.setattr(os, call, full)
            patched.setattr(shutil, "copyfileobj", full)
        save(checkpoints, 3, best=best)
    if call == "link":  # there was room for all but the best one's second name
        assert ("can't be written" in caplog.text) == best
        assert checkpoints.load()["round"] == 3
        assert checkpoints.load("best")["round"] == 1
        assert not list(checkpoints.directory.rglob("*.partial"))
        return
    assert "round 3: its checkpoint can't be written (No space left on device)" in caplog.text
    assert "training goes on, the last one is of round 2" in caplog.text
    assert (names(checkpoints.directory), names(checkpoints.states)) == before
    assert (checkpoints.load()["round"], checkpoints.load("best")["round"]) == (2, 1)
    save(checkpoints, 3, best=True)
    assert (checkpoints.load()["round"], checkpoints.load("best")["round"]) == (3, 3)
    assert names(checkpoints.directory) == ["best.ckpt", "round_000002.ckpt", "round_000003.ckpt", "states"]


class Full:
    """A file without room."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> None:
        full()


def test_what_could_not_be_written_is_written_with_the_next(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = kept(3)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        save(checkpoints, 3, clients={"depth": client})
    assert client.path is None
    save(checkpoints, 4, clients={"depth": client})
    assert checkpoints.load()["clients"] == {"depth": 3}


def test_what_a_killed_process_left_is_passed_over_and_goes(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1, best=True)
    left = ["round_000002.ckpt.partial", "round_000003.ckpt.partial", "best.partial"]
    left += [f"states/{file_name('depth', round)}.partial" for round in (1, 2)]
    for name in left:
        (checkpoints.directory / name).write_bytes(b"PK half a file")
    assert checkpoints.load()["round"] == 1
    save(checkpoints, 2, best=True)
    assert checkpoints.load("best")["round"] == 2
    assert not list(checkpoints.directory.rglob("*.partial"))


@pytest.mark.parametrize("which", ["last", "best"])
def test_no_checkpoint_is_a_users_error(which: str, checkpoints: Checkpoints) -> None:
    with pytest.raises(UserError, match=f"holds no {which} checkpoint$"):
        checkpoints.load(which)
    if which == "best":
        save(checkpoints, 1)
        with pytest.raises(UserError, match="holds no best checkpoint$"):
            checkpoints.load(which)


def cut(length: int) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def flip(path: Path) -> None:
    """Changes a bit in the middle of the numbers."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("what", ["round_000002.ckpt", "states/depth.000002.safetensors"])
@pytest.mark.parametrize("damage", [*map(cut, (0, 1, 30, 500, -300, -1)), flip, Path.unlink])
def test_a_damaged_newest_is_passed_over_with_a_warning(
    damage: Any, what: str, checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    for round in (1, 2):
        save(checkpoints, round)
    path = checkpoints.directory / what
    damage(path)
    assert checkpoints.load()["round"] == 1
    if path.exists() or what.startswith("states"):
        assert len(caplog.messages) == 1
        assert f"{checkpoints.directory / 'round_000002.ckpt'} is damaged" in caplog.text
        assert path.name in caplog.text
        assert "; going on from round_000001.ckpt" in caplog.text
    if path.exists() and not what.startswith("states"):
        with pytest.raises(UserError, match="round_000002.ckpt is damaged"):
            checkpoints.load(2)
    flip(checkpoints.all()[0])
    with pytest.raises(UserError, match=r"is damaged .*, and there is no other; train again under another --name$"):
        checkpoints.load()


def test_a_damaged_best_does_not_stand_in_for_another(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1, best=True)
    save(checkpoints, 2)
    flip(checkpoints.directory / "best.ckpt")
    assert checkpoints.load()["round"] == 2
    with pytest.raises(UserError, match=r"best.ckpt is damaged"):
        checkpoints.load("best")


def test_nothing_is_dropped_that_a_damaged_checkpoint_might_need(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1, best=True)
    cut(30)(checkpoints.directory / "best.ckpt")
    for round in (2, 3, 4):
        save(checkpoints, round)
    assert file_name("depth", 1) in names(checkpoints.states)


@pytest.mark.parametrize("content", [b"hello world\n", b"<html>", b"\x80\x02}q\x00.", b"\x80\x02.", b"\x00" * 99])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, checkpoints: Checkpoints) -> None:
    checkpoints.directory.mkdir(parents=True)
    (checkpoints.directory / "round_000001.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="round_000001.ckpt"):
        checkpoints.load()


@pytest.mark.parametrize("value", [torch.ones(2), [1, 2]])
def test_a_torch_file_of_something_else_is_refused(value: Any, checkpoints: Checkpoints) -> None:
    checkpoints.directory.mkdir(parents=True)
    torch.save(value, checkpoints.directory / "round_000001.ckpt")
    with pytest.raises(UserError, match="round_000001.ckpt"):
        checkpoints.load()


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_checkpoint_is_refused_and_not_run(write: Any, checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.directory.mkdir(parents=True)
    trace = tmp_path / "was_here"
    write({"format": FORMAT, "evil": Malicious(trace)}, checkpoints.directory / "round_000001.ckpt")
    with pytest.raises(UserError, match="round_000001.ckpt"):
        checkpoints.load()
    assert not trace.exists()


@pytest.mark.parametrize("format", [None, FORMAT + 1])
def test_another_version_is_refused(format: int | None, checkpoints: Checkpoints) -> None:
    checkpoints.directory.mkdir(parents=True)
    torch.save({"format": format}, checkpoints.directory / "round_000001.ckpt")
    with pytest.raises(UserError, match=f"has format {format}, this version reads {FORMAT}$"):
        checkpoints.load()


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_clients_state_is_refused_and_not_run(write: Any, checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1)
    trace = tmp_path / "was_here"
    write({"upload": Malicious(trace)}, checkpoints.states / file_name("depth", 1))
    with pytest.raises(UserError, match=r"round_000001.ckpt is damaged \(.*depth.000001.safetensors"):
        checkpoints.load()
    assert not trace.exists()
