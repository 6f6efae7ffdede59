"""Checkpoints: whole or not at all, the newest and the best kept, no code run on loading."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmtl.checkpoint import FORMAT, Checkpoints
from fedmtl.errors import UserError


def state(round: int) -> dict[str, Any]:
    optimizer = {"state": {0: {"exp_avg": torch.full((300,), float(round))}}, "param_groups": [{"betas": (0.9, 0.999)}]}
    return {"round": round, "best": None, "score": 0.5, "name": "run", "clients": {"depth": {"optimizer": optimizer}}}


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
    checkpoints.save(state(4), round=4, best=False)
    loaded = checkpoints.load()
    moment = loaded["clients"]["depth"]["optimizer"]["state"][0].pop("exp_avg")
    expected = state(4)
    assert torch.equal(moment, expected["clients"]["depth"]["optimizer"]["state"][0].pop("exp_avg"))
    assert loaded == {"format": FORMAT, **expected}


def test_the_newest_two_and_the_best_are_kept(checkpoints: Checkpoints) -> None:
    for round in (1, 2, 5, 9, 10):
        checkpoints.save(state(round), round=round, best=round in (1, 2))
    assert names(checkpoints.directory) == ["best.ckpt", "round_000009.ckpt", "round_000010.ckpt"]
    assert checkpoints.load()["round"] == 10
    assert checkpoints.load("best")["round"] == 2


def test_a_new_best_replaces_the_old_one(checkpoints: Checkpoints) -> None:
    for round in (1, 2, 3):
        checkpoints.save(state(round), round=round, best=round != 2)
    assert checkpoints.load("best")["round"] == 3


def test_saving_a_round_again_replaces_it_and_not_the_best(checkpoints: Checkpoints) -> None:
    checkpoints.save(state(1), round=1, best=True)
    checkpoints.save({**state(1), "name": "again"}, round=1, best=False)
    assert checkpoints.load()["name"] == "again"
    assert checkpoints.load("best")["name"] == "run"


@pytest.mark.parametrize("best", [False, True])
def test_a_crash_while_saving_leaves_the_old_checkpoints(
    best: bool, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(state(1), round=1, best=True)
    checkpoints.save(state(2), round=2, best=False)

    def crash(value: Any, file: Any) -> None:
        file.write(b"PK half a file")
        raise OSError("disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", crash)
        with pytest.raises(OSError, match="disk is full"):
            checkpoints.save(state(3), round=3, best=best)
    assert [name for name in names(checkpoints.directory) if name.endswith(".ckpt")] == [
        "best.ckpt",
        "round_000001.ckpt",
        "round_000002.ckpt",
    ]
    assert (checkpoints.load()["round"], checkpoints.load("best")["round"]) == (2, 1)
    checkpoints.save(state(3), round=3, best=True)
    assert (checkpoints.load()["round"], checkpoints.load("best")["round"]) == (3, 3)
    assert names(checkpoints.directory) == ["best.ckpt", "round_000002.ckpt", "round_000003.ckpt"]


def test_what_a_killed_process_left_is_passed_over(checkpoints: Checkpoints) -> None:
    checkpoints.save(state(1), round=1, best=True)
    for name in ("round_000002.partial", "best.partial"):
        (checkpoints.directory / name).write_bytes(b"PK half a file")
    assert checkpoints.load()["round"] == 1
    checkpoints.save(state(2), round=2, best=True)
    assert checkpoints.load("best")["round"] == 2
    assert names(checkpoints.directory) == ["best.ckpt", "round_000001.ckpt", "round_000002.ckpt"]


@pytest.mark.parametrize("which", ["last", "best"])
def test_no_checkpoint_is_a_users_error(which: str, checkpoints: Checkpoints) -> None:
    with pytest.raises(UserError, match=f"holds no {which} checkpoint$"):
        checkpoints.load(which)
    if which == "best":
        checkpoints.save(state(1), round=1, best=False)
        with pytest.raises(UserError, match="holds no best checkpoint$"):
            checkpoints.load(which)


@pytest.mark.parametrize("length", [0, 1, 30, 500, -300, -1])
def test_a_cut_off_checkpoint_is_named_and_the_older_one_still_loads(length: int, checkpoints: Checkpoints) -> None:
    for round in (1, 2):
        checkpoints.save(state(round), round=round, best=False)
    newest = checkpoints.all()[-1]
    newest.write_bytes(newest.read_bytes()[:length])
    with pytest.raises(UserError, match=r"round_000002.ckpt is damaged .*; remove it to go on from an older one"):
        checkpoints.load()
    newest.unlink()
    assert checkpoints.load()["round"] == 1


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


def test_a_flipped_bit_in_the_weights_is_noticed(checkpoints: Checkpoints) -> None:
    checkpoints.save(state(1), round=1, best=False)
    path = checkpoints.all()[0]
    damaged = bytearray(path.read_bytes())
    at = damaged.index(torch.ones(300).numpy().tobytes()) + 600
    damaged[at] ^= 64
    path.write_bytes(bytes(damaged))
    with pytest.raises(UserError, match="is damaged"):
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
