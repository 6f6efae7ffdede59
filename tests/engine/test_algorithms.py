"""Local algorithms with two ends in the engine: what clients keep, what is sent and measured, resuming, refusals."""

import io
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fedmtl.aggregation import DEA
from fedmtl.algorithms import Ditto, FedAvg, FedDyn, FedNova, FedRep, LocalAlgorithm, Phase, Scaffold
from fedmtl.client import LocalTraining
from fedmtl.client_state import Kept
from fedmtl.tracking.display import Display

from .conftest import adamw, carry_over, everything
from .test_in_process import BATCHNORM, BOTH, DEPTH, SEMSEG, SHARED, same, tensors, train

DISPLAY = Display(rounds=4, steps=1, primary={}, console=Console(file=io.StringIO()))
ALGORITHMS: dict[str, Callable[[], LocalAlgorithm]] = {
    "ditto": lambda: Ditto(pull=0.5),
    "fedrep": lambda: FedRep(head_epochs=2),
    "scaffold I": lambda: Scaffold(option="I"),
    "scaffold II": lambda: Scaffold(option="II"),
    "feddyn": lambda: FedDyn(alpha=0.1),
    "fednova": lambda: FedNova(mu=0.1),
}


def local(algorithm: LocalAlgorithm, **options: Any) -> LocalTraining:
    return LocalTraining(optimizer=adamw, batch_size=2, algorithm=algorithm, **options)


def differ(a: Any, b: Any) -> bool:
    """Whether every tensor differs from its counterpart."""
    return all(not torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("upload", [[], [DEA(rho=0.3, error_feedback=True)]], ids=["plain", "dea"])
def test_a_killed_run_goes_on_to_the_bit(name: str, upload: Any, federate: Any, tmp_path: Path) -> None:
    def start() -> tuple[Any, Any]:
        options = {"upload": upload, "shared": SHARED["encoder"], "drop_path": 0.3, "rounds": 4}
        federation = federate(DEPTH, SEMSEG, BOTH, local=local(ALGORITHMS[name]()), **options)
        return federation, federation.orchestrator(unified=False, participation=0.67, rounds=4)

    (first, whole), (second, resumed) = start(), start()
    for round in (1, 2):
        whole.train(round, DISPLAY)
    carry_over(whole, resumed, tmp_path)
    for round in (3, 4):
        assert whole.train(round, DISPLAY) == resumed.train(round, DISPLAY)
    assert same(everything(whole), everything(resumed))
    assert whole.evaluate() == resumed.evaluate()
    kept = [bool(client.state.upload) for client in first.clients]
    assert any(kept) == bool(upload)
    with_memory = [bool(client.state.algorithm) for client in second.clients]
    assert any(with_memory) == name.startswith(("scaffold", "feddyn"))


@pytest.mark.parametrize("options", [{"drop_path": 0.5}, BATCHNORM])
def test_dittos_updates_are_fedavgs_and_its_own_models_are_measured(options: Any, federate: Any) -> None:
    ditto, plain = (federate(DEPTH, BOTH, local=local(one), **options) for one in (Ditto(pull=0.5), FedAvg()))
    runs = [f.orchestrator(unified=False) for f in (ditto, plain)]
    assert runs[0].evaluate() == runs[1].evaluate()
    rows = [[run.train(round, DISPLAY) for round in (1, 2)] for run in runs]
    assert same(runs[0].server.state, runs[1].server.state)
    assert [row["bytes/up"] for row in rows[0]] == [row["bytes/up"] for row in rows[1]]
    expected: dict[str, list[Any]] = {"depth": [], "semseg": []}
    for client, other in zip(ditto.clients, plain.clients, strict=True):
        assert set(client.state.own) == set(client.parts)
        assert not client.state.personal
        assert set(client.state.optimizer) == {"train", "personal"}
        assert not other.state.own
        weights = ditto.engine.weights_of(client, runs[0].server.state)
        assert same(weights, client.state.own)
        assert not same(weights["encoder"], runs[0].server.state["encoder"])
        view = ditto.source.view("val", client.tasks)
        for task, values in ditto.engine.evaluate(client.state.own, view).items():
            expected[task].append(values)
    metrics = runs[0].evaluate()
    assert metrics["semseg"] == expected["semseg"][0]
    assert metrics["depth"]["RMSE"] == pytest.approx(sum(v["RMSE"] for v in expected["depth"]) / 2)
    assert metrics != runs[1].evaluate()


def test_dittos_own_model_starts_at_the_received_one_and_goes_on(federate: Any) -> None:
    """With the pull of an infinitely weak spring, it is local training from the first weights."""
    federation = federate(DEPTH, local=local(Ditto(pull=1e-30)))
    alone = federate(DEPTH, local=local(FedAvg()), shared=SHARED["none"])
    state = federation.engine.state()
    for round in (1, 2):
        torch.manual_seed(0)
        federation.clients[0].kept = Kept(round, train(federation, 0, state, round=round).state)
    first = alone.engine.state()
    alone.engine.local.order = (
        lambda client, *, seed, round: federation.engine.local.order(  # the second epoch's images
            federation.clients[0], seed=seed, round=round
        )[1:]
    )
    for round in (1, 2):
        alone.clients[0].kept = Kept(round, train(alone, 0, first, round=round).state)
    assert same(federation.clients[0].state.own, alone.clients[0].state.personal)


def test_fedreps_heads_stay_at_their_clients(federate: Any) -> None:
    federation = federate(DEPTH, BOTH, local=local(FedRep()), shared=SHARED["encoder"])
    run = federation.orchestrator(unified=False)
    first = deepcopy(run.server.state)
    run.train(1, DISPLAY)
    assert not same(run.server.state["encoder"], first["encoder"])
    assert all(same(run.server.state[head], first[head]) for head in ("heads.depth", "heads.semseg"))
    for client in federation.clients:
        assert set(client.state.personal) == set(client.parts) - {"encoder"}
        assert set(client.state.optimizer) == {"heads", "encoder"}
        weights = run.engine.worker.weights_of(client, run.server.state)
        assert same(weights["encoder"], run.server.state["encoder"])
        assert all(differ(weights[head], first[head]) for head in client.state.personal)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_all_steps_of_all_phases_are_counted(name: str, federate: Any) -> None:
    algorithm = ALGORITHMS[name]()
    federation = federate(DEPTH, size=5, local=local(algorithm, epochs=2), shared=SHARED["encoder"])
    steps: list[None] = []
    federation.engine.train(federation.clients[0], federation.engine.state(), 1, lambda: steps.append(None))
    epochs = {"ditto": 4, "fedrep": 4, "scaffold I": 3}.get(name, 2)
    assert len(steps) == federation.engine.local.steps(federation.clients[0]) == 2 * epochs


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_sends_its_control_variates(option: Any, federate: Any) -> None:
    federation = federate(DEPTH, SEMSEG, local=local(Scaffold(option=option)))
    run = federation.orchestrator()
    sizes = {name: part.vector.numel() for name, part in federation.engine.resident.parts.items()}
    total = 4 * (2 * sizes["encoder"] + sizes["heads.depth"] + sizes["heads.semseg"])
    rows, largest = [], 0.0
    for round in (1, 2):
        rows.append(run.train(round, DISPLAY))
        own = [client.state.algorithm["control"] for client in federation.clients]
        largest = max(largest, *(float(vector.abs().max()) for vectors in own for vector in vectors.values()))
    headers = [row["bytes/up"] - 2 * total for row in rows]
    headers += [rows[0]["bytes/down"] - total, rows[1]["bytes/down"] - 2 * total]  # no control variate before round 1
    assert all(0 < header < 1000 for header in headers)
    control = run.server.broadcast()["control"]
    assert {name: vector.numel() for name, vector in control.items()} == sizes
    mean = (own[0]["encoder"] + own[1]["encoder"]) / 2
    torch.testing.assert_close(control["encoder"], mean, rtol=0, atol=1e-6 * largest)
    torch.testing.assert_close(control["heads.depth"], own[0]["heads.depth"], rtol=0, atol=1e-6 * largest)


class Look(LocalAlgorithm):
    """Gradients are only looked at."""

    def phases(self, epochs: int) -> list[Phase]:
        return [Phase("look", epochs, moves=False)]


def test_a_phase_that_only_looks_moves_neither_weights_nor_buffers(federate: Any) -> None:
    federation = federate(DEPTH, **BATCHNORM, local=local(Look()))
    state = federation.engine.state()
    result = train(federation, 0, state)
    assert not any(part.delta.any() for part in result.update.parts.values())
    assert all(same(part.buffers, state[name].buffers) for name, part in result.update.parts.items())
    assert result.losses == {}
    assert not result.state.optimizer


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_refused_client_keeps_what_it_had(name: str, federate: Any) -> None:
    options = {"upload": [DEA(rho=0.3, error_feedback=True)], "shared": SHARED["encoder"]}
    federation = federate(DEPTH, SEMSEG, local=local(ALGORITHMS[name]()), **options)
    run, client = federation.orchestrator(unified=False), federation.clients[0]
    run.train(1, DISPLAY)
    before, kept = client.state, deepcopy(client.state)
    federation.source.poisoned = {0, 1, 2, 3}
    row = run.train(2, DISPLAY)
    assert row["server/refused"] == 1
    assert client.state is before
    assert same(before, kept)
    assert all(t.isfinite().all() for t in tensors(run.server.state_dict()) if t.is_floating_point())
    federation.source.poisoned = set()
    assert run.train(3, DISPLAY)["server/refused"] == 0
    assert all(t.isfinite().all() for t in tensors(client.state) if t.is_floating_point())


def test_what_dea_held_back_is_added_to_the_next_update(federate: Any) -> None:
    dea = DEA(rho=0.3, rescale="none", error_feedback=True)
    masked, plain = federate(DEPTH, upload=[dea]), federate(DEPTH)
    state = plain.engine.state()
    first, raw = (train(f, 0, state) for f in (masked, plain))
    sent, whole = (result.update.parts["encoder"].delta for result in (first, raw))
    held = first.state.upload["0"]["residual"]
    assert torch.equal(sent + held, whole)
    masked.clients[0].kept, plain.clients[0].kept = Kept(1, first.state), Kept(1, raw.state)
    kept = deepcopy(first.state)
    second, again = (train(f, 0, state, round=2) for f in (masked, plain))
    assert same(first.state, kept)
    update = second.update.parts["encoder"]
    everything = again.update.parts["encoder"].delta + held
    torch.testing.assert_close(update.delta, everything.masked_fill(~update.mask, 0))
    torch.testing.assert_close(second.state.upload["0"]["residual"], everything.masked_fill(update.mask, 0))


def test_dea_of_the_whole_model_masks_encoder_and_heads_as_one(federate: Any) -> None:
    masked, plain = federate(BOTH, upload=[DEA(rho=0.2, part="model")]), federate(BOTH)
    state = plain.engine.state()
    sent, whole = (train(f, 0, state).update for f in (masked, plain))
    names = ["encoder", "heads.depth", "heads.semseg"]
    assert list(sent.parts) == list(whole.parts) == names
    before = torch.cat([whole.parts[name].delta for name in names])
    after, mask = (torch.cat([getattr(sent.parts[name], key) for name in names]) for key in ("delta", "mask"))
    assert int(mask.sum()) == -(-before.numel() // 5)
    assert before[mask].abs().min() >= before[~mask].abs().max()
    torch.testing.assert_close(after, before.masked_fill(~mask, 0) / 0.2)
    shares = [float(sent.parts[name].mask.float().mean()) for name in names]
    assert max(shares) > 1.2 * min(shares)  # one threshold for all, not one a part
