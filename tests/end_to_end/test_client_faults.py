"""Clients that drop out, fail, are late or diverge: the others' round is one of them alone, to the bit."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedmtl.checkpoint import Checkpoints
from fedmtl.faults import Faults
from fedmtl.orchestrator import Orchestrator
from fedmtl.tasks import Depth

from .comparing import same

STEPS = {"semseg": 3, "depth": 3, "normals+saliency": 3}
FAULTS = {"dropout": 0.2, "failure": 0.3, "slowness": 1.0, "time_limit": 5.0}
NUMBERS = ("server/dropped", "server/failed", "server/late", "server/skipped", "bytes/down")


def words(**faults: float) -> list[str]:
    return [word for key, value in faults.items() for word in (f"--faults.{key}", str(value))]


def only(monkeypatch: pytest.MonkeyPatch, absent: Callable[[int], Any]) -> None:
    """Has clients not sampled in some rounds."""
    real = Orchestrator.sample

    def sample(self: Orchestrator, round: int) -> Any:
        return [client for client in real(self, round) if client.name not in absent(round)]

    monkeypatch.setattr(Orchestrator, "sample", sample)


def without(end: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """An end without some numbers of its rounds."""
    rows = [{key: value for key, value in row.items() if key not in keys} for row in end["rows"]]
    return {**end, "rows": rows}


def test_who_does_not_answer_is_as_if_not_sampled(
    go: Any, end: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = 7  # with which all three kinds are among the four rounds, and no round is without clients
    struck = {round: Faults(**FAULTS).strike(STEPS, seed=seed, round=round) for round in range(1, 5)}
    kinds = [kind for found in struck.values() for kind in found.values()]
    assert set(kinds) == {"dropped", "failed", "late"}
    assert all(len(found) < 3 for found in struck.values())
    assert go("faulty", "--seed", str(seed), *words(**FAULTS)).code == 0
    only(monkeypatch, lambda round: struck[round])
    assert go("fewer", "--seed", str(seed)).code == 0
    faulty, fewer = end(runs / "faulty"), end(runs / "fewer")
    assert same(without(faulty, NUMBERS), without(fewer, NUMBERS))
    for row, other in zip(faulty["rows"], fewer["rows"], strict=True):
        found = list(struck[row["round"]].values())
        for kind in ("dropped", "failed", "late"):
            assert row[f"server/{kind}"] == found.count(kind)
        assert row["server/skipped"] == 0
        assert row["bytes/up"] == other["bytes/up"] > 0
        reached, answering = 3 - found.count("dropped"), 3 - len(found)
        assert (row["bytes/down"] > other["bytes/down"]) == (reached > answering)


@pytest.mark.parametrize(
    "needs", [["--server.min_clients", "3"], ["--server.aggregator", "Krum", "--server.aggregator.byzantine", "0"]]
)
def test_a_round_with_too_few_changes_nothing(
    go: Any, end: Any, runs: Path, monkeypatch: pytest.MonkeyPatch, needs: list[str]
) -> None:
    seed, faults = 0, Faults(dropout=0.15)
    skipped = [round for round in range(1, 7) if faults.strike(STEPS, seed=seed, round=round)]
    assert skipped and len(skipped) < 5 and 1 not in skipped  # noqa: PT018
    settings = [*needs, *words(dropout=0.15), "--rounds", "6", "--eval_every", "1", "--local.algorithm", "FedAvg"]
    result = go("faulty", *settings)
    assert result.code == 0, result.error
    rows = end(runs / "faulty")["rows"]
    for before, row in pairwise(rows):
        assert row["server/skipped"] == (row["round"] in skipped)
        values = [{key: value for key, value in r.items() if key.startswith("val/")} for r in (before, row)]
        assert (values[0] == values[1]) == (row["round"] in skipped)
    assert f"round {skipped[0]}: 2 of 3 clients answer and the server needs 3: nothing changes" in " ".join(
        result.out.split()
    )
    folder = runs / "faulty" / "checkpoints"
    whole = end(runs / "faulty")
    (folder / "round_000006.ckpt").unlink()
    assert go("faulty", *settings, "--resume", "auto").code == 0
    assert same(end(runs / "faulty"), whole)
    assert Checkpoints(folder).load()["clients"]["depth"] == max(set(range(1, 7)) - set(skipped))


def test_a_client_that_diverges_once_goes_on_from_its_last_state(
    go: Any, end: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        real, calls = Depth.loss, [0]

        def loss(self: Depth, output: Any, target: Any) -> Any:
            calls[0] += 1
            return real(self, output, target) * (float("nan") if 3 < calls[0] <= 6 else 1)  # in the second round

        patched.setattr(Depth, "loss", loss)
        result = go("diverging")
    assert result.code == 0
    assert "client depth: its update or own model is not finite" in " ".join(result.out.split())
    only(monkeypatch, lambda round: ["depth"] if round == 2 else [])
    assert go("fewer").code == 0
    diverging, fewer = end(runs / "diverging"), end(runs / "fewer")
    assert [row["server/refused"] for row in diverging["rows"]] == [0, 1, 0, 0]
    assert diverging["rows"][1].pop("train/depth/loss") is None
    left_out = ("server/refused", "bytes/down")
    for ended in (diverging, fewer):
        del ended["signs"], ended["saved"]["refused"]
    assert same(without(diverging, left_out), without(fewer, left_out))
