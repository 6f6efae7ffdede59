"""Where what clients keep waits between rounds changes nothing, and an unfinished round neither."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fedmtl.aggregation import DEA
from fedmtl.algorithms import Ditto, FedDyn, Scaffold
from fedmtl.client import LocalTraining
from fedmtl.client_state import Kept, file_name
from fedmtl.tracking.display import Display

from ..end_to_end.comparing import same
from .conftest import adamw

DISPLAY = Display(rounds=3, steps=1, primary={}, console=Console(quiet=True))
ALGORITHMS = {"scaffold": Scaffold(), "feddyn": FedDyn(alpha=0.1), "ditto": Ditto()}


def a_run(federate: Any, algorithm: str = "scaffold", *, clients: int = 2) -> Any:
    """A run whose clients keep optimizer, residual, personal head, and what the algorithm keeps."""
    local = LocalTraining(optimizer=adamw, batch_size=3, algorithm=ALGORITHMS[algorithm])
    shared = {"shared": lambda part: part == "encoder", "upload": [DEA(rho=0.3, error_feedback=True)]}
    return federate(*[["depth"], ["semseg"]] * (clients // 2), local=local, **shared).orchestrator(unified=False)


def everything(run: Any) -> list[Any]:
    """All that a run carries from round to round."""
    return [run.server.state_dict(), [client.state.state_dict() for client in run.clients]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_states_in_files_and_in_memory_give_the_same(federate: Any, tmp_path: Path, algorithm: str) -> None:
    runs = [a_run(federate, algorithm) for _ in range(2)]
    runs[1].engine.keep_in(tmp_path)
    for round in (1, 2, 3):
        rows = [run.train(round, DISPLAY) for run in runs]
        assert rows[0] == rows[1]
    assert same(*(everything(run) for run in runs))
    assert all(client.kept.value is None and client.kept.path is not None for client in runs[1].clients)
    assert all(client.kept.value is not None and client.kept.path is None for client in runs[0].clients)
    assert {path.name for path in tmp_path.iterdir()} == {
        file_name(client.name, round) for client in runs[1].clients for round in (1, 2, 3)
    }
    assert runs[0].engine.unsaved().keys() == {client.name for client in runs[0].clients}
    assert runs[1].engine.unsaved() == {}


class Enough(Exception):
    """The round ends here."""


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_unfinished_round_leaves_everything_as_it_was(
    federate: Any, tmp_path: Path, algorithm: str, on_disk: bool
) -> None:
    run, other, reference = (a_run(federate, algorithm) for _ in range(3))
    if on_disk:
        run.engine.keep_in(tmp_path)
    for trained in (run, other, reference):
        trained.train(1, DISPLAY)
    for batches in (1, 2):  # each of the two clients has one, or two with Ditto
        count = [0]

        def stop(count: list[int] = count, after: int = batches) -> None:
            count[0] += 1
            if count[0] == after:
                raise Enough

        run.engine.on_batch(stop)
        with pytest.raises(Enough):
            run.train(2, DISPLAY)
        run.engine.on_batch(None)
        assert [client.kept.round for client in run.clients] == [1, 1]
        assert same(everything(run), everything(other))
        fresh = a_run(federate, algorithm)  # another process, that goes on from what was saved
        fresh.server.load_state_dict(run.server.state_dict())
        for client, before in zip(fresh.clients, run.clients, strict=True):
            client.kept = before.kept
        fresh.train(2, DISPLAY)
        if batches == 1:
            reference.train(2, DISPLAY)
        assert same(everything(fresh), everything(reference))


def test_what_is_kept_never_changes(federate: Any) -> None:
    run = a_run(federate)
    run.train(1, DISPLAY)
    before = [client.kept for client in run.clients]
    copies = [torch.utils._pytree.tree_map(torch.clone, kept.state.algorithm) for kept in before]
    run.train(2, DISPLAY)
    assert [client.kept for client in run.clients] != before
    assert all(same(kept.state.algorithm, copy) for kept, copy in zip(before, copies, strict=True))
    assert [kept.round for kept in before] == [1, 1]


def test_a_restored_client_reads_its_file_when_it_trains(federate: Any, tmp_path: Path) -> None:
    run, other = a_run(federate), a_run(federate)
    run.train(1, DISPLAY)
    for name, kept in run.engine.unsaved().items():
        kept.write(tmp_path / file_name(name, kept.round))
    rounds = {name: kept.round for name, kept in run.engine.kept().items()}
    other.server.load_state_dict(run.server.state_dict())
    other.engine.restore(rounds, tmp_path)
    assert all(client.kept == Kept(1, None, tmp_path / file_name(client.name, 1)) for client in other.clients)
    assert other.engine.unsaved() == {}
    run.train(2, DISPLAY)
    other.train(2, DISPLAY)
    assert same(everything(run)[1], everything(other)[1])


def test_states_in_files_take_no_memory(federate: Any, tmp_path: Path) -> None:
    import gc

    def held(clients: int) -> int:
        run = a_run(federate, clients=clients)
        run.engine.keep_in(tmp_path)
        run.train(1, DISPLAY)
        gc.collect()
        return sum(x.untyped_storage().nbytes() for x in gc.get_objects() if type(x) is torch.Tensor)

    one = sum(path.stat().st_size for path in tmp_path.glob("*.000001.*")) if held(2) else 0
    few, many = held(2), held(8)
    assert one > 1e6
    assert many - few < one / 10
