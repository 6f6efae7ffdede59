"""Local training against a bare PyTorch loop, and what an algorithm and the precision change in it."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from fedmtl.algorithms import FedProx, LocalRound, Phase
from fedmtl.client import ClientModule, LocalTraining
from fedmtl.data.loader import Loader, SeededBatches
from fedmtl.engine import FabricConfig
from fedmtl.vector import FlatPart

pytestmark = pytest.mark.usefixtures("one_thread")
ROUNDS, EPOCHS = 3, 2
Epochs = list[list[dict[str, Tensor]]]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.05)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.25)


def cosine(optimizer: torch.optim.Optimizer, t_initial: int) -> CosineLRScheduler:
    return CosineLRScheduler(optimizer, t_initial=t_initial, warmup_t=2, warmup_lr_init=1e-4, lr_min=1e-5)


@pytest.fixture
def epochs(tiny_source: Callable[..., Any]) -> list[Epochs]:
    """The batches of every epoch of every round."""
    view = tiny_source(train=7).view("train", ["depth", "semseg"])

    def epoch(*keys: int) -> list[dict[str, Tensor]]:
        return [one[0] for one in Loader()((view, some) for some in SeededBatches(len(view), 3, seed=0, keys=keys))]

    return [[epoch(round, i) for i in range(EPOCHS)] for round in range(1, ROUNDS + 1)]


def fit(
    local: LocalTraining,
    module: ClientModule,
    rounds: Sequence[Epochs],
    *,
    precision: Any = "32-true",
    offset: float = 0.0,
    active: Sequence[str] = ("depth", "semseg"),
    states: dict[str, Any] | None = None,
) -> list[tuple[dict[str, float], Any]]:
    """Some rounds, one after the other, in place; `offset` is what the global weights differ from the local by."""
    fabric = FabricConfig(accelerator="cpu", precision=precision).build()
    resident: Any = fabric.setup_module(module)
    module.active = tuple(active)
    names = ["encoder", *(f"heads.{task}" for task in active)]
    parts = {name: FlatPart(module.model.parts()[name]) for name in names}
    results = []
    for round, one in enumerate(rounds, start=1):
        start = {name: part.vector + offset for name, part in parts.items()}
        result = local.fit(
            fabric,
            resident,
            LocalRound(parts, start, frozenset(parts)),
            [(Phase("train", len(one)), one)],
            round=round,
            rounds=ROUNDS,
            optimizer_states=states or {},
            on_step=lambda: None,
        )
        states = result[1]
        results.append(result)
    return results


def bare_loop(
    module: ClientModule, rounds: Sequence[Epochs], *, clip: float | None, fresh: bool
) -> list[dict[str, list[float]]]:
    """The same training in plain PyTorch; `fresh` begins every round with a new optimizer."""
    model, parameters = module.model, list(module.model.parameters())
    optimizer = adamw(parameters)
    schedule = cosine(optimizer, ROUNDS * EPOCHS)
    model.train()
    losses: list[dict[str, list[float]]] = []
    for round, one in enumerate(rounds):
        losses.append({"loss": [], "depth": [], "semseg": []})
        if fresh:
            optimizer = adamw(parameters)
            schedule = cosine(optimizer, ROUNDS * EPOCHS)
        for i, epoch in enumerate(one):
            schedule.step(round * EPOCHS + i)
            for batch in epoch:
                outputs = model(batch["image"])
                depth = 0.5 * module.tasks["depth"].loss(outputs["depth"], batch["depth"])
                semseg = module.tasks["semseg"].loss(outputs["semseg"], batch["semseg"])
                optimizer.zero_grad()
                (depth + semseg).backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(parameters, clip)
                optimizer.step()
                for name, value in {"loss": depth + semseg, "depth": depth, "semseg": semseg}.items():
                    losses[-1][name].append(value.item())
    return losses


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_training_is_the_bare_loop_to_the_bit(keep: bool, clip: float | None, make_module: Any, epochs: Any) -> None:
    ours, theirs = make_module(), make_module()
    assert same_weights(ours, theirs)
    local = LocalTraining(
        epochs=EPOCHS, optimizer=adamw, schedule=cosine, batch_size=3, clip_norm=clip, keep_optimizer=keep
    )
    results = fit(local, ours, epochs)
    losses = bare_loop(theirs, epochs, clip=clip, fresh=not keep)
    assert same_weights(ours, theirs)
    assert not same_weights(ours, make_module())
    for (means, states), values in zip(results, losses, strict=True):
        assert list(states) == ["train"] * keep
        assert means == pytest.approx({name: sum(v) / len(v) for name, v in values.items()}, rel=1e-6)


def test_clipping_and_kept_optimizer_matter(make_module: Any, epochs: Any) -> None:
    """Otherwise the comparison above would say little."""
    results = []
    for options in ({}, {"clip_norm": 0.5}, {"keep_optimizer": False}, {"schedule": None}):
        module = make_module()
        fit(LocalTraining(**{"epochs": EPOCHS, "optimizer": adamw, "schedule": cosine, **options}), module, epochs[:2])
        results.append(module)
    assert not any(same_weights(results[0], other) for other in results[1:])


def test_a_kept_optimizer_state_is_not_changed_by_the_next_round(make_module: Any, epochs: Any) -> None:
    """A client that is refused goes on from its last good state: the state must still be that one."""
    local, module = LocalTraining(epochs=EPOCHS, optimizer=adamw), make_module()
    [(_, states)] = fit(local, module, epochs[:1])
    before = deepcopy(states)
    fit(local, module, epochs[1:2], states=states)
    for index, entry in before["train"]["state"].items():
        for name, value in entry.items():
            assert torch.equal(torch.as_tensor(states["train"]["state"][index][name]), torch.as_tensor(value)), name


def test_only_the_encoder_and_active_heads_train(make_module: Any, epochs: Any) -> None:
    module = make_module(backbone="test_efficientnet", norm="batch")
    before = deepcopy(module.model)
    [(losses, states)] = fit(LocalTraining(optimizer=adamw), module, epochs[:1], active=["depth"])
    assert set(losses) == {"loss", "depth"}
    trained = [*module.model.encoder.parameters(), *module.model.heads["depth"].parameters()]
    assert len(states["train"]["state"]) == len(trained)
    assert same_weights(module.model.heads["semseg"], before.heads["semseg"])
    assert all(parameter.grad is None for parameter in module.parameters())
    for part in ("encoder", "heads.depth"):
        pairs = list(zip(module.model.parts()[part].parameters(), before.parts()[part].parameters(), strict=True))
        assert sum(torch.equal(a, b) for a, b in pairs) < len(pairs) / 10


def test_fedprox_pulls_every_trained_parameter_towards_its_anchor(make_module: Any, epochs: Any) -> None:
    plain, pulled = make_module(), make_module()
    one_step = [[epochs[0][0][:1]]]
    fit(LocalTraining(optimizer=sgd), plain, one_step, offset=1.0)
    fit(LocalTraining(optimizer=sgd, algorithm=FedProx(mu=0.5)), pulled, one_step, offset=1.0)
    for a, b in zip(pulled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a - b, torch.full_like(a, 0.25 * 0.5 * 1.0), rtol=1e-3, atol=1e-6)


def test_fedprox_starts_at_its_anchor_and_then_differs(make_module: Any, epochs: Any) -> None:
    for steps, same in ((1, True), (2, False)):
        plain, pulled = make_module(), make_module()
        some = [[epochs[0][0][:steps]]]
        fit(LocalTraining(optimizer=sgd), plain, some)
        fit(LocalTraining(optimizer=sgd, algorithm=FedProx(mu=0.5)), pulled, some)
        assert same_weights(plain, pulled) == same


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_precision_is_applied_inside_the_training_step(
    precision: Any, dtype: torch.dtype, make_module: Any, epochs: Any
) -> None:
    module, seen = make_module(), set()
    module.model.heads["depth"].predict.register_forward_hook(lambda *call: seen.add(call[2].dtype))
    [(losses, states)] = fit(LocalTraining(optimizer=adamw), module, epochs[:1], precision=precision)
    assert seen == {dtype}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert {entry["exp_avg"].dtype for entry in states["train"]["state"].values()} == {torch.float32}
    assert 0 < losses["loss"] < 100


@pytest.mark.parametrize("key", ["epochs", "batch_size", "clip_norm"])
@pytest.mark.parametrize("value", [0, -1])
def test_options_out_of_range_are_named(key: str, value: int) -> None:
    options: dict[str, Any] = {"optimizer": adamw, key: value}
    with pytest.raises(ValueError, match=f"^local.{key} must be positive, not {value}$"):
        LocalTraining(**options)
