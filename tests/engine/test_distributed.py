"""Clients spread over the ranks of a job give what one rank gives: to the bit, or as sums of floats do."""

import multiprocessing
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fedmtl.aggregation import DEA
from fedmtl.algorithms import Ditto, FedAvg, FedRep, Scaffold
from fedmtl.checkpoint import Checkpoints
from fedmtl.client import LocalTraining
from fedmtl.data import ValTransform
from fedmtl.diagnostics import Diagnostics
from fedmtl.engine import Distributed, Ranks, placement
from fedmtl.engine.ranks import LostRank
from fedmtl.mixing import FedAMP
from fedmtl.orchestrator import Orchestrator
from fedmtl.server import PersonalServer, Server

from .conftest import adamw
from .test_architectures import federation as two_architectures
from .test_in_process import BATCHNORM, BOTH, DEPTH, DISPLAY, SEMSEG, SHARED, tensors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have torch")

Play = dict[str, Any]


def on_ranks(world: int, folder: Path, job: Callable[[], Any]) -> list[Any]:
    """What a job gives on each of several processes that are connected; they are copies of this one."""
    folder.mkdir(parents=True, exist_ok=True)

    def enter(rank: int) -> None:
        try:
            torch.set_num_threads(1)
            where = f"file://{folder / 'meeting'}"
            dist.init_process_group(
                "gloo", init_method=where, rank=rank, world_size=world, timeout=timedelta(seconds=60)
            )
            answer = pickle.dumps(job())
        except BaseException:
            (folder / f"{rank}.error").write_text(traceback.format_exc())
            raise
        (folder / f"{rank}.answer").write_bytes(answer)

    processes = [multiprocessing.get_context("fork").Process(target=enter, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(90)
        errors = [path.read_text() for path in sorted(folder.glob("*.error"))]
        assert not errors, "\n".join(errors)
        assert [process.exitcode for process in processes] == [0] * world
    finally:
        for process in processes:
            process.kill()
    return [pickle.loads((folder / f"{rank}.answer").read_bytes()) for rank in range(world)]


def build(
    federation: Any, server: Server | None = None, *, reduce: Any = "exact", values: Any = "fp32", **options: Any
):
    """An orchestrator on all ranks, whose validation images have several sizes and fill no whole batches."""
    federation.engine.eval_batch_size = 2
    samples = federation.source.samples["val"]
    for i in (1, 2, 4):
        samples[i] = {name: np.ascontiguousarray(value[: 24 - 2 * i]) for name, value in samples[i].items()}
    federation.source.val_transform = ValTransform(size=(28, 36))
    server = server or Server()
    several = len(federation.engine.residents) > 1
    server.check(
        algorithm=federation.engine.local.algorithm,
        upload=federation.engine.upload,
        several_architectures=several,
    )
    run = federation.orchestrator(server=server, **options)
    run.engine = Distributed(federation.engine, federation.clients, reduce=reduce, values=values)
    return run


def play(run: Orchestrator, rounds: Sequence[int] = (1, 2), *, states: Path | None = None) -> Play:
    """Trains and measures; what came of it, on this rank. Every round each client is on another rank."""
    engine = run.engine
    if states is not None:
        engine.keep_in(states)
    rows, metrics, homes = [], [], []
    for round in rounds:
        with mock.patch.object(placement, "assign", partial(wander, round)):
            rows.append(run.train(round, DISPLAY))
        metrics.append(run.evaluate())
        homes.append(dict(engine.placement.homes))
        run.round = round
    predictions = [
        (name, labels) for name, _, labels in engine.predict(run.server, run.validation, 3, unified=run.unified)
    ]
    if run.unified and not engine.ranks.leads:
        assert not any(labels for _, labels in predictions)  # only the first rank draws
        predictions = []
    own = {
        name: (client.kept.round, client.state.state_dict())
        for name, client in engine.clients.items()
        if engine.placement.homes[name] == engine.ranks.rank or states is not None
    }
    kept = {name: kept.round for name, kept in engine.kept().items()}
    found = {"rows": rows, "metrics": metrics, "server": run.server.state_dict(), "kept": kept}
    return {**found, "predictions": predictions, "states": own, "homes": homes, "details": run.details}


def wander(round: int, costs: dict[str, float], ranks: int, homes: Any = None) -> dict[str, int]:
    """A schedule that leaves nobody at its rank."""
    return {name: (int(name[-1]) + round) % ranks for name in costs}


def equal(a: Any, b: Any) -> bool:
    """Whether two trees are the same to the bit, in values and names."""
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and bool((torch.as_tensor(a) == torch.as_tensor(b)).all())
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def matches(everybody: Sequence[Play], alone: Play) -> None:
    """Every rank has what one alone has."""
    for rank, found in enumerate(everybody):
        for key in ("rows", "metrics", "kept", "server", "details"):
            assert equal(found[key], alone[key]), (rank, key)
        if found["predictions"]:
            assert equal(found["predictions"], alone["predictions"]), rank
        assert found["homes"] == everybody[0]["homes"]
        for name, state in found["states"].items():
            assert equal(state, alone["states"][name]), (rank, name)
    assert everybody[0]["predictions"]
    assert {name for found in everybody for name in found["states"]} == set(alone["states"])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.5)


def moved(found: Play) -> bool:
    """Whether some client changed its rank between rounds."""
    first, *rest = found["homes"]
    return any(homes != first for homes in rest)


def local(algorithm: Any = None, *, optimizer: Any = adamw, **options: Any) -> LocalTraining:
    return LocalTraining(optimizer=optimizer, algorithm=algorithm or FedAvg(), **{"batch_size": 2, **options})


CASES: dict[str, Callable[..., Orchestrator]] = {
    "dea, half of the clients": lambda federate: build(
        federate(DEPTH, SEMSEG, BOTH, DEPTH, size=2, upload=[DEA(rho=0.3, error_feedback=True)], drop_path=0.3),
        values="fp16",
        participation=0.75,
    ),
    "overlap in bf16, diagnosed": lambda federate: build(
        federate(DEPTH, SEMSEG, BOTH, upload=[DEA(rho=0.3, rescale="overlap")]),
        values="bf16",
        diagnostics=Diagnostics(every=1),
    ),
    "scaffold": lambda federate: build(federate(DEPTH, SEMSEG, BOTH, local=local(Scaffold()))),
    "ditto, diagnosed": lambda federate: build(
        federate(DEPTH, SEMSEG, BOTH, local=local(Ditto(pull=0.5)), size=2),
        unified=False,
        diagnostics=Diagnostics(every=1),
    ),
    "fedrep": lambda federate: build(
        federate(DEPTH, SEMSEG, BOTH, local=local(FedRep(head_epochs=1)), size=2, shared=SHARED["encoder"]),
        unified=False,
    ),
    "share none": lambda federate: build(
        federate(DEPTH, SEMSEG, BOTH, shared=SHARED["none"], **BATCHNORM), unified=False
    ),
    "personal": lambda federate: build(
        federate(DEPTH, SEMSEG, BOTH), PersonalServer(mixing=FedAMP()), unified=False, participation=0.67
    ),
    "another architecture, diagnosed": lambda federate: build(
        two_architectures(federate), values="fp16", unified=False, diagnostics=Diagnostics(every=1)
    ),
    "batchnorm": lambda federate: build(federate(DEPTH, SEMSEG, BOTH, **BATCHNORM)),
}


TRIALS = [(case, 2) for case in CASES] + [(case, 3) for case in ("dea, half of the clients", "scaffold", "personal")]


@pytest.mark.parametrize(("case", "world"), TRIALS)
def test_every_rank_ends_where_one_alone_ends(case: str, world: int, federate: Any, tmp_path: Path) -> None:
    alone = play(CASES[case](federate))
    everybody = on_ranks(world, tmp_path, lambda: play(CASES[case](federate)))
    matches(everybody, alone)
    assert moved(everybody[0])
    assert {rank for homes in everybody[0]["homes"] for rank in homes.values()} == set(range(world))


def test_states_in_files_are_read_where_their_clients_go(federate: Any, tmp_path: Path) -> None:
    def start(folder: str, delay: bool = False) -> Play:
        run = build(federate(DEPTH, SEMSEG, BOTH, size=2, local=local(Ditto(pull=0.5))), unified=False)
        if delay and run.engine.ranks.rank == 1:  # its disk is slow
            keep = run.engine._keep
            run.engine._keep = lambda *arguments: (time.sleep(0.3), keep(*arguments))[1]
        run.evaluate = lambda **_: {}  # which the ranks would wait for one another in
        return play(run, states=tmp_path / folder)

    alone = start("alone")
    everybody = on_ranks(2, tmp_path / "two", partial(start, "shared", True))
    matches(everybody, alone)
    assert moved(everybody[0])
    assert set(alone["kept"].values()) == {2}


@pytest.mark.parametrize(
    ("reduce", "share", "values"),
    [("exact", "model", "fp16"), ("exact", "none", "fp32"), ("fast", "model", "fp32"), ("fast", "none", "fp32")],
)
def test_all_refuse_a_client_that_is_not_finite(
    reduce: Any, share: str, values: Any, federate: Any, tmp_path: Path
) -> None:
    def start() -> tuple[Play, list[Any]]:
        federation = federate(DEPTH, SEMSEG, BOTH, local=local(optimizer=sgd), shared=SHARED[share], size=2)
        run = build(federation, reduce=reduce, values=values, unified=share == "model")
        first = play(run, [1])
        refused = []
        federation.source.poisoned = {2}  # an image of the second client
        for round in (2, 3):
            refused.append(run.train(round, DISPLAY)["server/refused"])
            refused.append(run.refused)
        return first, [*refused, play(run, [4])]

    def check(found: tuple[Play, list[Any]]) -> None:
        assert found[1][:-1] == [1, ["client-1"]] * 2

    first, (*_, last) = alone = start()
    check(alone)
    assert last["kept"] == {"client-0": 4, "client-1": 1, "client-2": 4}
    assert equal(last["states"]["client-1"], first["states"]["client-1"])
    everybody = on_ranks(2, tmp_path, start)
    for found in everybody:
        check(found)
        assert found[1][-1]["kept"] == last["kept"]
        assert equal(found[1][-1]["rows"], everybody[0][1][-1]["rows"])
    if reduce == "exact":
        matches([found[1][-1] for found in everybody], last)
    else:
        close([found[1][-1] for found in everybody], last)


def test_more_ranks_than_clients_and_batches(federate: Any, tmp_path: Path) -> None:
    def start() -> Play:
        return play(build(federate(DEPTH, SEMSEG, size=3, upload=[DEA(rho=0.3)])))

    matches(on_ranks(4, tmp_path, start), start())


def close(everybody: Sequence[Play], alone: Play, atol: float = 2e-5) -> None:
    """All ranks have the same, and what one alone has but for the last digits."""
    for found in everybody:
        assert equal(found["server"], everybody[0]["server"])
        assert equal(found["metrics"], everybody[0]["metrics"])
        assert found["kept"] == alone["kept"]
        for one, other in zip(tensors(found["server"]), tensors(alone["server"]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=atol)
        for row, expected in zip(found["rows"], alone["rows"], strict=True):
            assert row.keys() == expected.keys()
            for key in row:
                if key.startswith(("bytes/", "server/")):
                    assert row[key] == expected[key], key
    for found in everybody:
        for name, (round, state) in found["states"].items():
            assert round == alone["states"][name][0]
            for one, other in zip(tensors(state), tensors(alone["states"][name][1]), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=10 * atol)


SUMS: dict[str, Callable[..., Orchestrator]] = {
    "heads of one rank": lambda federate, reduce: build(
        federate(DEPTH, SEMSEG, DEPTH, local=local(optimizer=sgd), size=3), reduce=reduce
    ),
    "overlap": lambda federate, reduce: build(
        federate(DEPTH, SEMSEG, BOTH, local=local(optimizer=sgd), upload=[DEA(rho=0.3, rescale="overlap")]),
        reduce=reduce,
    ),
    "buffers": lambda federate, reduce: build(
        federate(DEPTH, SEMSEG, BOTH, local=local(optimizer=sgd), **BATCHNORM), reduce=reduce, participation=0.67
    ),
    "two architectures": lambda federate, reduce: build(
        two_architectures(federate, local=local(optimizer=sgd), norm="batch", backbone="test_convnext"),
        reduce=reduce,
        unified=False,
    ),
}


@pytest.mark.parametrize("case", SUMS)
def test_fast_sums_are_those_of_one_rank_but_for_the_last_digits(case: str, federate: Any, tmp_path: Path) -> None:
    rounds = (1,) if case == "overlap" else (1, 2)  # a last digit decides who is kept in the second
    alone = play(SUMS[case](federate, "exact"), rounds)
    first = on_ranks(2, tmp_path / "a", lambda: play(SUMS[case](federate, "fast"), rounds))
    close(first, alone)
    if case != "buffers":
        return
    again = on_ranks(2, tmp_path / "b", lambda: play(SUMS[case](federate, "fast")))
    matches(first, again[0] | {"states": again[0]["states"] | again[1]["states"]})


@pytest.mark.parametrize(("clients", "world"), [(2, 3), (1, 2)])
def test_ranks_that_share_a_clients_batches_train_as_one(
    clients: int, world: int, federate: Any, tmp_path: Path
) -> None:
    def start(reduce: Any) -> tuple[Play, list[Any]]:
        tasks = [DEPTH, SEMSEG][:clients]
        federation = federate(*tasks, size=5, local=local(optimizer=sgd, batch_size=5, epochs=2))
        run = build(federation, reduce=reduce)
        found = play(run, [1, 2])
        return found, [client.kept.value and client.state.state_dict() for client in run.clients]

    alone, _ = start("exact")
    everybody = on_ranks(world, tmp_path, partial(start, "fast"))
    close([found for found, _ in everybody], alone)
    members = [state for _, (state, *_) in everybody if state]
    assert len(members) == (world + clients - 1) // clients
    assert all(equal(state, members[0]) for state in members)


def test_a_member_whose_images_are_not_finite_has_all_of_them_refused(federate: Any, tmp_path: Path) -> None:
    def start() -> tuple[list[Any], Any]:
        federation = federate(DEPTH, SEMSEG, size=4, local=local(optimizer=sgd, batch_size=4))
        run = build(federation, reduce="fast")
        federation.source.poisoned = {3}  # one image of the first client's only batch
        row = run.train(1, DISPLAY)
        return [row["server/refused"], run.refused, [client.kept.round for client in run.clients]], row

    for found, _ in on_ranks(4, tmp_path, start):
        assert found == [1, ["client-0"], [0, 1]]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(before: int, after: int, federate: Any, tmp_path: Path) -> None:
    def start() -> Orchestrator:
        federation = federate(
            DEPTH,
            SEMSEG,
            BOTH,
            local=local(Scaffold()),
            upload=[DEA(rho=0.3, error_feedback=True)],
            shared=SHARED["encoder"],
        )
        return build(federation, participation=0.67, unified=False)

    def save() -> None:
        run = start()
        play(run, [1, 2])
        checkpoints = Checkpoints(tmp_path / "run", leads=run.engine.ranks.leads)
        run.save(checkpoints)
        checkpoints.wait()

    def go_on() -> Play:
        run, checkpoints = start(), Checkpoints(tmp_path / "run")
        run.load_state_dict(checkpoints.load(), checkpoints.states)
        return play(run, [3])

    whole = play(start(), [1, 2, 3])
    whole |= {key: whole[key][2:] for key in ("rows", "metrics")}
    on_ranks(before, tmp_path / "before", save)
    everybody = on_ranks(after, tmp_path / "after", go_on)
    matches(everybody, whole)


def test_a_rank_that_leaves_ends_the_others_exchange(tmp_path: Path) -> None:
    def start() -> str:
        ranks = Ranks()
        ranks.wait()
        if ranks.rank == 1:
            ranks.leave()
            return "left"
        try:
            ranks.gather(None)
        except LostRank as error:
            return str(error)
        return "nothing noticed"

    told, left = on_ranks(2, tmp_path, start)
    assert left == "left"
    assert "another process of the job has ended" in told
    assert "\n" not in told
