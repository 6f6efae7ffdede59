"""FedNova: how far steps reach in closed form, rounds against NumPy, and which objective it settles on."""

from typing import Any

import numpy as np
import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from fedmtl.algorithms import FedAvg, FedNova, LocalRound
from fedmtl.vector import FlatPart

from .quadratics import D, Federation, data, optimum, resting_point, sgd

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 0.1


def reach(mu: float, steps: int, *, rate: float = 0.05, rates: Any = None, adam: bool = False, **options: Any) -> Any:
    """a_k as the algorithm counts it, and how far constant gradients of one really take a parameter."""
    part = FlatPart(nn.Linear(1, 1, bias=False))
    part.vector.zero_()
    make: Any = torch.optim.Adam if adam else torch.optim.SGD
    optimizer = make(part.parameters, lr=rate, **options)
    if rates is not None:
        optimizer.param_groups[0]["initial_lr"] = rate
    run = LocalRound({"encoder": part}, {"encoder": torch.zeros(1)}, frozenset(["encoder"]), optimizer=optimizer)
    algorithm = FedNova(mu=mu)
    for step in range(steps):
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[step]
        part.parameters[0].grad = torch.ones(1, 1)
        algorithm.correct_gradients(run)
        optimizer.step()
    update = part.vector.clone()
    message = algorithm.finish(run, {"encoder": update})
    found = float(message["reach"]["encoder"])
    np.testing.assert_allclose(float(update) * found, float(part.vector), rtol=1e-5)
    return found, -float(part.vector) / rate


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_a_k_in_closed_form(steps: int) -> None:
    eta, m, mu = 0.05, 0.9, 0.7
    assert reach(0, steps)[0] == steps
    assert reach(0, steps, adam=True)[0] == steps
    expected = (steps - m * (1 - m**steps) / (1 - m)) / (1 - m)
    assert reach(0, steps, momentum=m)[0] == pytest.approx(expected, rel=1e-5)
    assert reach(mu, steps)[0] == pytest.approx((1 - (1 - eta * mu) ** steps) / (eta * mu), rel=1e-5)


@pytest.mark.parametrize("mu", [0.0, 0.7])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.3}],
)
@pytest.mark.parametrize("rates", [None, [0.01, 0.03, 0.05, 0.04, 0.02, 0.01]])
def test_a_k_is_how_far_torchs_steps_reach(mu: float, options: Any, rates: Any) -> None:
    found, true = reach(mu, 6, rates=rates, **options)
    assert found == pytest.approx(true, rel=1e-5)


def test_a_k_follows_a_schedule_of_timm() -> None:
    def cosine(optimizer: Any, t_initial: int) -> Any:
        return CosineLRScheduler(optimizer, t_initial=t_initial, warmup_t=3, warmup_lr_init=0)

    federation = Federation(FedNova(), [data(0)], epochs=[5], schedule=cosine)
    [result] = federation.round()  # learning rates 0, η/3, 2η/3, η, …
    found = float(result.update.message["reach"]["encoder"])
    assert found == pytest.approx(0 + 1 / 3 + 2 / 3 + 1 + 1, rel=1e-3)


def test_a_round_whose_learning_rate_is_zero_moves_nothing() -> None:
    def warmup(optimizer: Any, t_initial: int) -> Any:
        return CosineLRScheduler(optimizer, t_initial=t_initial, warmup_t=3, warmup_lr_init=0)

    federation = Federation(FedNova(), [data(0), data(1)], schedule=warmup)
    first = federation.point()
    federation.round()
    assert not federation.server.refused
    assert (federation.point() == first).all()
    federation.round()
    assert (federation.point() != first).any()


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_rounds_with_some_of_the_clients_equal_numpy(momentum: float, mu: float) -> None:
    images = [data(k, batches=2, examples=k + 1) for k in range(3)]
    epochs, weights = [1, 3, 6], np.array([1.0, 2, 3])
    make = sgd(RATE, momentum=momentum)
    federation = Federation(FedNova(mu=mu), images, epochs=epochs, weighting="examples", optimizer=make)
    theta = federation.point()
    for chosen in ([0, 2], [1, 2], [0, 1, 2]):
        share = weights[chosen] / weights[chosen].sum()
        updates, reaches = [], []
        for k in chosen:
            local, velocity = theta.copy(), np.zeros(D)
            impulses = np.zeros((0,))  # weight of each gradient so far in the update, in learning rates
            moving = np.zeros((0,))  # its weight in the velocity
            for batch in list(range(2)) * epochs[k]:
                velocity = momentum * velocity + images[k].gradient(batch, local) + mu * (local - theta)
                local = local - RATE * velocity
                moving = np.append(momentum * moving - RATE * mu * impulses, 1.0)
                impulses = np.append(impulses, 0.0) + moving
            updates.append(local - theta)
            reaches.append(np.abs(impulses).sum() if (impulses >= 0).all() else impulses.sum())
        effective = share @ reaches
        theta = theta + effective * sum(p * u / a for p, u, a in zip(share, updates, reaches, strict=True))
        federation.round(chosen)
        np.testing.assert_allclose(federation.point(), theta, rtol=1e-4, atol=1e-5)


def test_unequal_steps_do_not_pull_it_from_the_weighted_optimum() -> None:
    rate, steps = 0.004, [1, 5, 25]
    images = [data(k, examples=n) for k, n in enumerate([3, 2, 1])]
    weights = [3.0, 2.0, 1.0]
    best = optimum(images, weights)
    biased = optimum(images, [w * t for w, t in zip(weights, steps, strict=True)])  # FedAvg's, to first order
    options: dict[str, Any] = {"rate": rate, "epochs": steps, "weighting": "examples"}
    averaged = Federation(FedAvg(), images, **options).attractor()
    np.testing.assert_allclose(averaged, resting_point(images, rate, steps, weights), atol=1e-3)
    assert np.linalg.norm(averaged - biased) < 0.1 * np.linalg.norm(averaged - best)
    exact = resting_point(images, rate, steps, [w / t for w, t in zip(weights, steps, strict=True)])
    np.testing.assert_allclose(Federation(FedNova(), images, **options).attractor(), exact, atol=1e-3)
    for mu, momentum in ((0.0, 0.0), (0.3, 0.0), (0.0, 0.8), (0.3, 0.8)):
        make = sgd(rate * (1 - momentum), momentum=momentum)
        found = Federation(FedNova(mu=mu), images, optimizer=make, **options).attractor()
        assert np.linalg.norm(found - best) < 0.05 * np.linalg.norm(averaged - best)


def test_equal_steps_make_it_fedavg() -> None:
    images = [data(k, batches=3, examples=k + 1) for k in range(3)]
    points = [Federation(one, images, weighting="examples").converge(4) for one in (FedNova(), FedAvg())]
    np.testing.assert_allclose(*points, rtol=1e-5, atol=1e-6)


def test_heads_are_scaled_by_the_clients_that_have_them() -> None:
    images = [data(k, d=D + 2, batches=2) for k in range(3)]
    tasks, epochs = [["a"], ["a"], ["b"]], [1, 3, 5]
    first, plain = (Federation(one, images, tasks=tasks, epochs=epochs) for one in (FedNova(), FedAvg()))
    start = first.point("heads.a")
    results = plain.round()
    first.round()
    steps, updates = [2, 6], [result.update.parts["heads.a"].delta.double().numpy() for result in results[:2]]
    expected = start + 4 * (updates[0] / steps[0] + updates[1] / steps[1]) / 2
    np.testing.assert_allclose(first.point("heads.a"), expected, rtol=1e-5)
    np.testing.assert_allclose(first.point("heads.b"), plain.point("heads.b"), rtol=1e-5)


def test_refusals() -> None:
    for mu in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="mu must be at least 0"):
            FedNova(mu=mu)
    with pytest.raises(ValueError, match=r"^local.algorithm: .*share: none sends nothing$"):
        FedNova().check("none")
