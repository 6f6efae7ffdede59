"""Clients in one process: updates, determinism, personal parts, refusals, evaluation, sampling."""

import gc
import io
from collections.abc import Callable, Sequence
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from fedmtl.aggregation import DEA, PartUpdate, Sending, UploadTransform
from fedmtl.client import ClientGroup
from fedmtl.client_state import Kept
from fedmtl.data import ValTransform
from fedmtl.federation import make_clients, validation_views
from fedmtl.payload import encode
from fedmtl.tracking.display import Display
from fedmtl.vector import PartState

DEPTH, SEMSEG, BOTH = ["depth"], ["semseg"], ["depth", "semseg"]
DISPLAY = Display(rounds=3, steps=1, primary={}, console=Console(file=io.StringIO()))
BATCHNORM = {"backbone": "test_efficientnet", "norm": "batch"}
SHARED: dict[str, Callable[[str], bool]] = {
    "model": lambda part: True,
    "encoder": lambda part: part == "encoder",
    "none": lambda part: False,
}


def train(federation: Any, client: int, state: Any, round: int = 1) -> Any:
    return federation.engine.train(federation.clients[client], state, round, lambda: None)


def tensors(value: Any) -> list[Tensor]:
    """All tensors in states, updates, dictionaries and lists, in a fixed order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict | list | tuple):
        return [t for item in (value.values() if isinstance(value, dict) else value) for t in tensors(item)]
    return tensors(vars(value)) if hasattr(value, "__dict__") else []


def same(a: Any, b: Any) -> bool:
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    return bool(pairs) and all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("options", [{}, BATCHNORM])
def test_an_update_is_local_minus_global(options: Any, federate: Any) -> None:
    federation = federate(DEPTH, **options)
    state = federation.engine.state()
    before = deepcopy(state)
    result = train(federation, 0, state)
    local = federation.engine.state()
    assert same(state, before)
    assert not same(local["encoder"], before["encoder"])
    assert (result.update.client, result.update.examples) == ("client-0", 4)
    assert set(result.update.parts) == {"encoder", "heads.depth"}
    for name, part in result.update.parts.items():
        assert torch.equal(part.delta, local[name].vector - state[name].vector)
        assert same(part.buffers, local[name].buffers) if options else not part.buffers
    assert set(result.losses) == {"loss", "depth"}
    assert same(local["heads.semseg"], state["heads.semseg"])


@pytest.mark.parametrize("options", [{"drop_path": 0.5, "upload": [DEA(rho=0.3)]}, BATCHNORM])
def test_training_repeats_whoever_trained_before(options: Any, federate: Any) -> None:
    federation = federate(DEPTH, SEMSEG, BOTH, **options)
    state = federation.engine.state()
    first = [train(federation, i, state) for i in (0, 1, 2)]
    torch.rand(5)
    federation.engine.evaluate(state, federation.source.view("val", DEPTH))
    again = [train(federation, i, state) for i in (2, 1, 0)]
    assert all(same(a.update, b.update) and same(a.state, b.state) for a, b in zip(first, again[::-1], strict=True))
    alone = train(federate(DEPTH, SEMSEG, BOTH, **options), 2, state)
    assert same(alone.update, first[2].update)
    assert alone.losses == first[2].losses
    assert not same(train(federation, 2, state, round=2).update, first[2].update)
    assert not same(train(federate(DEPTH, SEMSEG, BOTH, **options, seed=1), 2, state).update, first[2].update)


def test_a_round_repeats_from_a_kept_optimizer_state(federate: Any) -> None:
    federation = federate(DEPTH)
    state, client = federation.engine.state(), federation.clients[0]
    client.kept = Kept(1, train(federation, 0, state).state)
    kept = deepcopy(client.state)
    first = train(federation, 0, state, round=2)
    assert same(client.state, kept)
    assert same(train(federation, 0, state, round=2).update, first.update)


@pytest.mark.slow
def test_worker_processes_change_no_result(federate: Any, nyud_root: Any) -> None:
    from fedmtl.data import NYUDv2

    source = NYUDv2(root=nyud_root(train=4), crop=(32, 32))
    updates, metrics = [], []
    for workers in (0, 1):
        federation = federate(DEPTH, source=source, workers=workers)
        state = federation.engine.state()
        updates.append(train(federation, 0, state).update)
        metrics.append(federation.engine.evaluate(state, source.view("val", DEPTH)))
    assert same(updates[0], updates[1])
    assert metrics[0] == metrics[1]


def test_transforms_change_the_encoder_one_after_the_other(federate: Any) -> None:
    class Double(UploadTransform):
        def __call__(self, update: PartUpdate, sending: Sending) -> PartUpdate:
            return PartUpdate(update.delta * 2)

    class Increase(UploadTransform):
        def __call__(self, update: PartUpdate, sending: Sending) -> PartUpdate:
            return PartUpdate(update.delta + 1)

    plain, changed = federate(DEPTH), federate(DEPTH, upload=[Double(), Increase()])
    sent, other = (train(f, 0, f.engine.state()).update.parts for f in (plain, changed))
    assert torch.equal(other["encoder"].delta, sent["encoder"].delta * 2 + 1)
    assert same(other["heads.depth"], sent["heads.depth"])


@pytest.mark.parametrize("share", SHARED)
def test_parts_that_are_not_shared_stay_with_their_client(share: str, federate: Any) -> None:
    federation = federate(DEPTH, shared=SHARED[share], upload=[DEA(rho=0.3)])
    engine, client = federation.engine, federation.clients[0]
    state = engine.state()
    result = train(federation, 0, state)
    sent, own = set(result.update.parts), set(result.state.personal)
    assert sent == {part for part in client.parts if SHARED[share](part)}
    assert own == set(client.parts) - sent
    local = engine.state()
    assert all(same(result.state.personal[part], local[part]) for part in own)
    client.kept = Kept(1, result.state)
    weights = engine.weights_of(client, state)
    assert list(weights) == client.parts
    assert all(same(weights[part], local[part] if part in own else state[part]) for part in weights)
    personal = deepcopy(result.state.personal)
    second = train(federation, 0, state, round=2)
    assert not own or same(result.state.personal, personal)
    assert all(not same(second.state.personal[part], personal[part]) for part in own)


@pytest.mark.parametrize("share", SHARED)
def test_a_client_that_diverges_goes_on_from_its_last_good_state(share: str, federate: Any) -> None:
    federation = federate(DEPTH, SEMSEG, shared=SHARED[share], upload=[DEA(rho=0.3)])
    orchestrator, client = federation.orchestrator(unified=share == "model"), federation.clients[0]
    assert orchestrator.train(1, DISPLAY)["server/refused"] == 0
    kept, before = deepcopy(client.state), deepcopy(orchestrator.server.state)
    federation.source.poisoned = {0, 1, 2, 3}
    row = orchestrator.train(2, DISPLAY)
    assert row["server/refused"] == 1
    assert row["train/client-0/loss"] is None
    assert same(client.state, kept)
    assert all(tensor.isfinite().all() for tensor in tensors(orchestrator.server.state))
    assert same(orchestrator.server.state["encoder"], before["encoder"]) == (share == "none")
    assert same(orchestrator.server.state["heads.depth"], before["heads.depth"])
    federation.source.poisoned = set()
    assert orchestrator.train(3, DISPLAY)["server/refused"] == 0
    assert not same(client.state, kept)


def test_thirty_clients_leave_one_resident_model(federate: Any) -> None:
    federation = federate(*[DEPTH, SEMSEG, BOTH] * 10, size=1)
    engine = federation.engine
    state = engine.state()

    def resident() -> Any:
        gc.collect()
        alive = sum(type(thing) is nn.Parameter for thing in gc.get_objects())
        where = [part.vector.data_ptr() for part in engine.resident.parts.values()]
        return alive, len(engine.fabric._callbacks), where, [p.data_ptr() for p in engine.resident.module.parameters()]

    train(federation, 0, state)
    before = resident()
    assert before[1] == 1
    for i in range(30):
        train(federation, i, state)
    assert resident() == before
    for part in engine.resident.parts.values():
        first, size = part.vector.data_ptr(), part.vector.nbytes
        assert all(first <= parameter.data_ptr() < first + size for parameter in part.parameters)


def test_evaluation_is_over_the_whole_set_whatever_the_batch_size(federate: Any) -> None:
    federation = federate(DEPTH, **BATCHNORM)
    engine, view = federation.engine, federation.source.view("val", BOTH)
    state = engine.state()
    state["encoder"].buffers["body.bn1.running_mean"] += 0.5
    before = deepcopy(state)
    found = []
    for size in (1, 2, 5, 16):
        engine.eval_batch_size = size
        found.append(engine.evaluate(state, view))
    assert same([state, engine.state()], [before, before])
    with torch.no_grad():
        outputs = engine.resident.module.model.eval()(torch.stack([view[i, 0]["image"] for i in range(5)]))
    metres, classes = outputs["depth"][:, 0].double().numpy(), outputs["semseg"].argmax(1).numpy()
    depth, semseg = (np.stack([sample[name] for sample in federation.source.samples["val"]]) for name in BOTH)
    rmse = np.sqrt(np.square(metres - depth)[depth > 0].mean())
    pairs = [(classes == c, semseg == c) for c in range(3)]
    iou = [(said & true).sum() / ((said | true) & (semseg != 255)).sum() for said, true in pairs]
    expected = {
        "depth": pytest.approx({"RMSE": rmse}, rel=1e-5),
        "semseg": pytest.approx({"mIoU": 100 * np.mean(iou)}, rel=1e-5),
    }
    assert all(metrics == expected for metrics in found)
    assert engine.evaluate(state, federation.source.view("val", DEPTH)) == {"depth": expected["depth"]}


@pytest.mark.parametrize("longest", [None, 20])
def test_images_of_several_sizes_are_measured_at_their_own(
    longest: int | None, federate: Any, tiny_source: Any
) -> None:
    source = tiny_source(val=4)
    for sample, size in zip(source.samples["val"], [(24, 32), (24, 32), (40, 16), (9, 50)], strict=True):
        image = np.resize(sample["image"], (*size, 3))
        sample |= {
            "image": image,
            "depth": np.resize(sample["depth"], size),
            "semseg": np.resize(sample["semseg"], size),
        }
    source.val_transform = ValTransform(size=(28, 36), longest=longest)
    federation = federate(DEPTH, source=source)
    engine, view = federation.engine, source.view("val", DEPTH)
    state = engine.state()
    found = []
    for size in (1, 3, 4):
        engine.eval_batch_size = size
        found.append(engine.evaluate(state, view)["depth"]["RMSE"])
    squares, predictions = [], engine.predict(state, view, range(4))["depth"]
    for i, sample in enumerate(source.samples["val"]):
        height, width = sample["depth"].shape
        picture = sample["image"]
        if longest:
            factor = longest / max(height, width)
            small = Image.fromarray(picture).resize((round(width * factor), round(height * factor)), Image.BILINEAR)
            picture = np.asarray(small)
        h, w = picture.shape[:2]
        padded = torch.zeros(1, 3, max(h, 28), max(w, 36))
        top, left = (padded.shape[2] - h) // 2, (padded.shape[3] - w) // 2
        mean, std = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
        normal = (picture - mean) / std
        padded[0, :, top : top + h, left : left + w] = torch.from_numpy(normal.transpose(2, 0, 1))
        with torch.no_grad():
            output = engine.resident.module.model.eval()(padded)["depth"][:, :, top : top + h, left : left + w]
        output = torch.nn.functional.interpolate(output, size=(height, width), mode="bilinear")[0, 0].double().numpy()
        np.testing.assert_allclose(predictions[i], output, rtol=1e-4, atol=1e-5)
        squares.append(np.square(output - sample["depth"])[sample["depth"] > 0])
    expected = pytest.approx(np.sqrt(np.concatenate(squares).mean()), rel=1e-5)
    assert found == [expected] * 3


def test_clients_prepared_together_train_as_alone(federate: Any) -> None:
    def updates(prepared: Sequence[int], trained: Sequence[int], workers: int = 0) -> list[Any]:
        federation = federate(DEPTH, SEMSEG, BOTH, workers=workers)
        state = federation.engine.state()
        federation.engine.prepare([federation.clients[i] for i in prepared], 1)
        return [train(federation, i, state).update.parts for i in trained]

    alone = updates([], [0, 1, 2])
    assert same(updates([0, 1, 2], [0, 1, 2]), alone)
    assert same(updates([0, 1, 2], [0, 1, 2], workers=2), alone)
    assert same(updates([0, 1], [0, 2, 1]), [alone[0], alone[2], alone[1]])


def test_several_data_sets_are_measured_each_on_its_own_images(federate: Any, tiny_source: Any) -> None:
    near, far = tiny_source(train=4), tiny_source(train=4, val=3, seed=1)
    tasks = {f"{key}_{name}": task for key, s in (("near", near), ("far", far)) for name, task in s.tasks.items()}
    groups = [ClientGroup(["depth"], data="near"), ClientGroup(["depth", "semseg"], data="far")]
    clients = make_clients(groups, {"near": near, "far": far})
    federation = federate(DEPTH, source=SimpleNamespace(tasks=tasks, view=near.view))
    views = validation_views(clients, {"near": near, "far": far})
    federation.clients = clients
    for unified in (True, False):
        orchestrator = federation.orchestrator(validation=views, unified=unified)
        orchestrator.train(1, DISPLAY)
        metrics = orchestrator.evaluate()
        assert list(metrics) == ["near_depth", "far_depth", "far_semseg"]
        assert orchestrator.measured_on == {"near": 5, "far": 3}
        state = orchestrator.server.state
        alone = federation.engine.evaluate(state, far.view("val", ["depth"], prefix="far_"))
        assert metrics["far_depth"] == alone["far_depth"]


def test_dea_keeps_batchnorm_usable_over_rounds(federate: Any) -> None:
    orchestrator = federate(DEPTH, SEMSEG, BOTH, **BATCHNORM, upload=[DEA(rho=0.1)]).orchestrator()
    state = orchestrator.server.state
    first = deepcopy(state)
    for round in (1, 2, 3):
        assert orchestrator.train(round, DISPLAY)["server/refused"] == 0
        for name, buffer in [item for part in state.values() for item in part.buffers.items()]:
            assert buffer.isfinite().all()
            assert "running_var" not in name or (buffer > 0).all()
    assert state["encoder"].buffers["body.bn1.num_batches_tracked"] == 0
    assert not same(state["encoder"], first["encoder"])
    assert all(np.isfinite(value) for metrics in orchestrator.evaluate().values() for value in metrics.values())


def test_a_round_counts_its_bytes(federate: Any) -> None:
    federation = federate(DEPTH, SEMSEG, BOTH, shared=SHARED["encoder"], upload=[DEA(rho=0.1)])
    d, row = federation.engine.resident.parts["encoder"].vector.numel(), federation.orchestrator().train(1, DISPLAY)
    engine, state = federation.engine, federation.engine.state()
    clients = [(client, train(federation, i, state).update) for i, client in enumerate(federation.clients)]
    assert row["bytes/up"] == sum(encode(update, engine.sent_layouts(client)).nbytes for client, update in clients)
    assert 0 <= row["bytes/up"] - 3 * (4 * -(-d // 10) + -(-d // 8)) < 3 * 200  # the rest is headers
    assert 0 <= row["bytes/down"] - 3 * 4 * d < 3 * 200


@pytest.mark.parametrize(
    ("participation", "count"), [(0.01, 1), (0.1, 1), (0.25, 3), (0.35, 4), (0.5, 5), (0.94, 9), (1.0, 10)]
)
def test_sampling_is_seeded_sorted_and_of_the_right_size(participation: float, count: int, federate: Any) -> None:
    federation = federate(*[DEPTH] * 10, size=1)

    def rounds(seed: int) -> list[list[int]]:
        orchestrator = federation.orchestrator(participation=participation, seed=seed)
        return [[federation.clients.index(client) for client in orchestrator.sample(round)] for round in range(60)]

    chosen = rounds(0)
    assert all(len(set(some)) == count and some == sorted(some) for some in chosen)
    assert set().union(*chosen) == set(range(10))
    assert chosen == rounds(0)
    assert (chosen == rounds(1)) == (count == 10)


def test_only_sampled_clients_train(federate: Any) -> None:
    federation = federate(*[DEPTH] * 4, size=1)
    orchestrator = federation.orchestrator(participation=0.5)
    row = orchestrator.train(1, DISPLAY)
    chosen = [client.name for client in orchestrator.sample(1)]
    assert [key.split("/")[1] for key in row if key.startswith("train/")] == chosen
    assert [client.name for client in federation.clients if client.state.optimizer] == chosen


def test_an_evaluation_knows_only_its_own_weights(federate: Callable[..., Any]) -> None:
    class Lazy(nn.Module):
        """Keeps, in eval, what follows from its weights until it trains, as attention of some versions of timm does."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.kept = inner, None

        def train(self, mode: bool = True) -> "Lazy":
            self.kept = None if mode else self.kept
            return super().train(mode)

        def forward(self, maps: Any, size: Any) -> Tensor:
            weight = self.inner.predict.weight
            self.kept = weight.mean() if self.kept is None or self.training else self.kept
            return self.inner(maps, size) + self.kept

    def make() -> Any:
        found = federate(DEPTH)
        heads = found.engine.resident.module.model.heads
        heads["depth"] = Lazy(heads["depth"])
        return found

    found, fresh = make(), make()
    view = found.source.view("val", DEPTH)
    first = found.engine.state()
    other = {name: PartState(part.vector + 0.1, part.buffers) for name, part in first.items()}
    before = found.engine.evaluate(first, view)
    after = found.engine.evaluate(other, view)
    assert after == fresh.engine.evaluate(other, view)
    assert after != before
