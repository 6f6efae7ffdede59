"""SCAFFOLD against NumPy, and against the closed-form optimum of heterogeneous quadratics."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from fedmtl.algorithms import FedAvg, Scaffold

from .quadratics import D, Data, Federation, data, double, interrupted, optimum, resting_point

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 0.1
ROUNDS = [[0, 2], [1, 2], [0, 1, 2], [1]]


def reference(images: list[Data], start: Any, option: str, epochs: list[int], weights: list[float]) -> list[Any]:
    """The paper's algorithm 1, with the update averaged by `weights`; θ, c and all c_k after each round."""
    theta, server, own = start, np.zeros(D), [np.zeros(D) for _ in images]
    history = []
    for chosen in ROUNDS:
        updates, changes = [], []
        for k in chosen:
            batches = list(range(len(images[k].centres)))
            local = theta.copy()
            for batch in batches * epochs[k]:
                local -= RATE * (images[k].gradient(batch, local) - own[k] + server)
            if option == "I":
                new = np.mean([images[k].gradient(batch, theta) for batch in batches], axis=0)
            else:
                new = own[k] - server + (theta - local) / (len(batches) * epochs[k] * RATE)
            updates.append(local - theta)
            changes.append(new - own[k])
            own[k] = new
        theta = theta + np.average(updates, axis=0, weights=[weights[k] for k in chosen])
        share = sum(weights[k] for k in chosen) / sum(weights)
        server = server + share * np.average(changes, axis=0, weights=[weights[k] for k in chosen])
        history.append((theta, server, list(own)))
    return history


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("option", ["I", "II"])
def test_rounds_with_some_of_the_clients_equal_the_papers_algorithm(option: Any, weighting: Any) -> None:
    images = [data(k, batches=3, examples=k + 1) for k in range(3)]
    epochs = [1, 2, 4]
    federation = Federation(Scaffold(option=option), images, rate=RATE, epochs=epochs, weighting=weighting)
    weights = [1.0, 2.0, 3.0] if weighting == "examples" else [1.0] * 3
    for chosen, (theta, server, own) in zip(
        ROUNDS, reference(images, federation.point(), option, epochs, weights), strict=True
    ):
        federation.round(chosen)
        np.testing.assert_allclose(federation.point(), theta, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(double(federation.server.broadcast()["control"]), server, rtol=1e-4, atol=1e-5)
        for client, expected in zip(federation.clients, own, strict=True):
            if expected.any():
                found = double(client.state.algorithm["control"])
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            else:
                assert not client.state.algorithm


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [4.0, 2.0, 1.0]])
@pytest.mark.parametrize("option", ["I", "II"])
def test_it_reaches_the_weighted_optimum_and_fedavg_does_not(option: Any, weights: list[float]) -> None:
    images = [data(k, repeat=4, examples=int(weight)) for k, weight in enumerate(weights)]
    best, rest = optimum(images, weights), resting_point(images, 0.25, [4] * 3, weights)
    assert np.linalg.norm(rest - best) > 0.2
    plain, found = (
        Federation(one, images, rate=0.25, weighting="examples") for one in (FedAvg(), Scaffold(option=option))
    )
    np.testing.assert_allclose(plain.attractor(), rest, atol=1e-4)
    np.testing.assert_allclose(found.converge(60), best, atol=1e-3)


def test_heads_are_corrected_and_one_that_a_single_client_has_is_not() -> None:
    images = [data(k, d=D + 2, batches=3) for k in range(3)]
    tasks = [["a"], ["a"], ["b"]]
    first, plain = (Federation(one, images, tasks=tasks) for one in (Scaffold(), FedAvg()))
    for federation in (first, plain):
        federation.round()
        federation.round()
    control, own = first.server.broadcast()["control"], [client.state.algorithm["control"] for client in first.clients]
    assert set(control) == {"encoder", "heads.a", "heads.b"}
    assert set(own[2]) == {"encoder", "heads.b"}
    np.testing.assert_allclose(double(control, "heads.a"), (double(own[0], "heads.a") + double(own[1], "heads.a")) / 2)
    np.testing.assert_allclose(double(control, "heads.b"), double(own[2], "heads.b"), rtol=1e-6)
    mean = sum(double(one) for one in own) / 3
    np.testing.assert_allclose(double(control), mean, rtol=1e-5, atol=1e-6)
    assert np.abs(first.point("heads.a") - plain.point("heads.a")).max() > 1e-3


def test_a_client_alone_trains_as_in_fedavg() -> None:
    images = [data(0, batches=4)]
    options: tuple[Any, ...] = ("I", "II")
    for option in options:
        points = [Federation(one, images).converge(5) for one in (Scaffold(option=option), FedAvg())]
        np.testing.assert_allclose(*points, rtol=1e-5)


@pytest.mark.parametrize("option", ["I", "II"])
def test_a_loaded_run_goes_on_to_the_bit(option: Any) -> None:
    images = [data(k, batches=3) for k in range(3)]
    one, other = interrupted(lambda: Federation(Scaffold(option=option), images), ROUNDS)
    assert (one.point() == other.point()).all()
    control = [double(f.server.broadcast()["control"]) for f in (one, other)]
    assert (control[0] == control[1]).all()


def test_a_refused_client_changes_no_control_variate() -> None:
    images = [data(k, batches=3) for k in range(3)]
    federation, without = (Federation(Scaffold(), deepcopy(images)) for _ in range(2))
    for f in (federation, without):
        f.round()
    before = federation.clients[1].state
    kept = double(before.algorithm["control"]).copy()
    federation.clients[1].images.centres[1][0] = np.nan  # type: ignore[attr-defined]
    federation.round()
    without.round([0, 2])
    assert federation.clients[1].state is before
    assert (double(before.algorithm["control"]) == kept).all()
    assert (federation.point() == without.point()).all()
    controls = [double(f.server.broadcast()["control"]) for f in (federation, without)]
    assert (controls[0] == controls[1]).all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="option must be I or II, not 'III'"):
        Scaffold(option="III")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^local.algorithm: .*share: none shares nothing$"):
        Scaffold().check("none")
    for share in ("model", "encoder"):
        Scaffold().check(share)
