"""Clients of another architecture: what they start from, what they send, how it is averaged, what it weighs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmtl.aggregation import DEA
from fedmtl.client import ClientModule
from fedmtl.engine import InProcess
from fedmtl.models import UnifiedModel

from .conftest import carry_over, everything
from .test_in_process import DEPTH, DISPLAY, SEMSEG, SHARED, same, train

Arrays = dict[str, np.ndarray]


def named(engine: InProcess, architecture: str, part: str, vector: Any) -> Arrays:
    """The tensors of a part's vector, by name."""
    layout = engine.residents[architecture].parts[part].layout
    pieces = np.split(vector.double().cpu().numpy().copy(), np.cumsum(layout.sizes)[:-1])
    return {n: piece.reshape(shape) for n, piece, shape in zip(layout.names, pieces, layout.shapes, strict=True)}


def corners(ours: Arrays, theirs: Arrays, by: str, private: Any = ()) -> dict[str, tuple[slice, ...]]:
    """Where each tensor is shared, by a rule of its own; fused tensors are left out of these tests' models."""
    found = {}
    for name, one in ours.items():
        other = theirs.get(name)
        if other is None or name in private:
            continue
        kernels = one.ndim == 4 and one.shape[2:] != other.shape[2:]
        if one.shape == other.shape or (by == "leading" and one.ndim == other.ndim and not kernels):
            found[name] = tuple(slice(min(a, b)) for a, b in zip(one.shape, other.shape, strict=True))
    return found


def placed(found: Any, client: int, state: Any) -> Any:
    """A client's update in the server's coordinates."""
    return found.engine.place(found.clients[client], train(found, client, state).update)


def federation(federate: Any, *, by: Any = "leading", private: Any = (), **options: Any) -> Any:
    """Two clients of the server's architecture, and one of another; heads stay with them.

    The other has stages that are deeper and shallower, wider and narrower than the server's.
    """
    options = {"shared": SHARED["encoder"], **options}
    found = federate(DEPTH, SEMSEG, DEPTH, **options)
    torch.manual_seed(1)
    heads = {name: task.channels for name, task in found.source.tasks.items()}
    shape = {"depths": (2, 1, 4, 1), "dims": (24, 32, 64, 40)}  # the server's: (1, 2, 4, 2), (24, 32, 48, 64)
    norm = options.get("norm", "group")
    model = UnifiedModel(heads, backbone="test_convnext", channels=8, norm=norm, options=shape)
    module = ClientModule(model, found.source.tasks)
    found.engine.add_architecture("other", module, match=by, private=private)
    found.clients[2].architecture = "other"
    return found


@pytest.mark.parametrize("private", [(), ("body.stem_0.weight",)])
@pytest.mark.parametrize("by", ["leading", "shape"])
def test_a_round_of_two_architectures(by: Any, private: Any, federate: Any) -> None:
    run = federation(federate, by=by, private=private)
    engine, odd = run.engine, run.clients[2]
    orchestrator = run.orchestrator(unified=False)
    state = orchestrator.server.state
    first = engine.residents["other"].state()
    server = named(engine, "server", "encoder", state["encoder"].vector)
    own = named(engine, "other", "encoder", first["encoder"].vector)
    shared = corners(own, server, by, private)
    assert any(name not in own for name in server)
    assert any(name not in server for name in own)
    assert 10 < len(shared) < len(own)
    partly = [name for name, corner in shared.items() if own[name][corner].size < own[name].size]
    assert bool(partly) == (by == "leading")

    started = engine.start_of(odd, state)
    assert same(started["heads.depth"], first["heads.depth"])
    for name, values in named(engine, "other", "encoder", started["encoder"].vector).items():
        expected = own[name].copy()
        if name in shared:
            expected[shared[name]] = server[name][shared[name]]
        np.testing.assert_array_equal(values, expected, err_msg=name)

    results = [train(run, i, state) for i in range(3)]
    ended = results[2].state.personal
    assert set(ended) == {"encoder", "heads.depth"}
    after, before = (
        named(engine, "other", "encoder", vector) for vector in (ended["encoder"].vector, started["encoder"].vector)
    )
    sums = {name: np.zeros_like(values) for name, values in server.items()}
    counts = {name: np.zeros_like(values) for name, values in server.items()}
    for result in results[:2]:
        for name, delta in named(engine, "server", "encoder", result.update.parts["encoder"].delta).items():
            sums[name] += 4 * delta
            counts[name] += 4
    for name, corner in shared.items():
        sums[name][corner] += 4 * (after[name] - before[name])[corner]
        counts[name][corner] += 4
    row = orchestrator.train(1, DISPLAY)
    moved = named(engine, "server", "encoder", orchestrator.server.state["encoder"].vector)
    for name, values in moved.items():
        np.testing.assert_allclose(values, server[name] + sums[name] / counts[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert {int(n) for values in counts.values() for n in np.unique(values)} == {8, 12}

    entries = sum(own[name][corner].size for name, corner in shared.items())
    whole = 4 * sum(values.size for values in server.values())
    assert all(0 < row[f"bytes/{way}"] - (2 * whole + 4 * entries) < 1000 for way in ("up", "down"))
    assert engine.residents["other"].sharing(["encoder"]) == (entries, whole // 4)

    again = named(engine, "other", "encoder", engine.start_of(odd, orchestrator.server.state)["encoder"].vector)
    for name, values in again.items():
        expected = after[name].copy()
        if name in shared:
            expected[shared[name]] = moved[name][shared[name]]
        np.testing.assert_array_equal(values, expected, err_msg=name)


def test_each_client_is_measured_with_its_own_model(federate: Any) -> None:
    run = federation(federate)
    orchestrator = run.orchestrator(unified=False)
    orchestrator.train(1, DISPLAY)
    values = []
    for client in (run.clients[0], run.clients[2]):
        weights = run.engine.weights_of(client, orchestrator.server.state)
        view = run.source.view("val", DEPTH)
        model = run.engine.residents[client.architecture].module.model.eval()
        found = run.engine.evaluate(weights, view, architecture=client.architecture)["depth"]["RMSE"]
        with torch.no_grad():
            metres = model(torch.stack([view[i, 0]["image"] for i in range(5)]), ["depth"])["depth"][:, 0].double()
        depth = np.stack([sample["depth"] for sample in run.source.samples["val"]])
        assert found == pytest.approx(np.sqrt(np.square(metres.numpy() - depth)[depth > 0].mean()), rel=1e-5)
        values.append(found)
    assert values[0] != values[1]
    assert orchestrator.evaluate()["depth"]["RMSE"] == pytest.approx(sum(values) / 2)


@pytest.mark.parametrize("rescale", ["inverse", "overlap"])
def test_dea_masks_what_another_architecture_shares(rescale: Any, federate: Any) -> None:
    run = federation(federate, upload=[DEA(rho=0.1, rescale=rescale)])
    plain = federation(federate)
    state = run.engine.state()
    sent, whole = (placed(f, 2, state).parts["encoder"] for f in (run, plain))
    entries, server = run.engine.residents["other"].sharing(["encoder"])
    assert sent.delta.numel() == sent.mask.numel() == sent.held.numel() == server
    assert int(sent.held.sum()) == entries
    assert int(sent.mask.sum()) == -(-entries // 10)
    assert not (sent.mask & ~sent.held).any()
    kept = whole.delta.masked_fill(~sent.mask, 0)
    torch.testing.assert_close(sent.delta, kept / 0.1 if rescale == "inverse" else kept)
    assert whole.delta[sent.mask].abs().min() >= whole.delta[~sent.mask].abs().max()
    assert torch.equal(sent.counted, sent.mask if rescale == "overlap" else sent.held)


def test_buffers_of_equal_shape_are_shared_whatever_the_width(federate: Any) -> None:
    run = federation(federate, norm="batch", shared=SHARED["model"])
    state, wide = run.engine.state(), run.engine.residents["other"]
    for part in state.values():
        for buffer in part.buffers.values():
            buffer += 1
    started = run.engine.start_of(run.clients[2], state)["heads.depth"]
    common = {
        name
        for name, buffer in state["heads.depth"].buffers.items()
        if wide.parts["heads.depth"].buffers[name].shape == buffer.shape
    }
    assert common
    for name, buffer in started.buffers.items():
        expected = state["heads.depth"].buffers[name] if name in common else wide.parts["heads.depth"].buffers[name]
        assert torch.equal(buffer, expected)
    assert set(train(run, 2, state).update.parts["heads.depth"].buffers) == common


def test_an_equal_model_of_its_own_shares_everything(federate: Any, make_module: Any) -> None:
    run, plain = federate(DEPTH, SEMSEG), federate(DEPTH, SEMSEG)
    engine = run.engine
    engine.add_architecture("twin", make_module(tasks=run.source.tasks), match="shape", private=[])
    run.clients[1].architecture = "twin"
    assert not engine.residents["twin"].matches
    rows = []
    for federation in (run, plain):
        orchestrator = federation.orchestrator()
        rows.append([orchestrator.train(round, DISPLAY) for round in (1, 2)])
    assert rows[0] == rows[1]


def test_a_resumed_run_has_the_clients_own_entries(federate: Any, tmp_path: Path) -> None:
    runs = [federation(federate) for _ in range(2)]
    whole, resumed = (run.orchestrator(unified=False) for run in runs)
    whole.train(1, DISPLAY)
    carry_over(whole, resumed, tmp_path)
    assert whole.train(2, DISPLAY) == resumed.train(2, DISPLAY)
    assert same(everything(whole), everything(resumed))
