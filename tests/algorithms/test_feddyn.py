"""FedDyn against NumPy, and against the closed-form optimum of heterogeneous quadratics."""

import numpy as np
import pytest

from fedmtl.algorithms import FedDyn

from .quadratics import D, Federation, data, double, interrupted, optimum, resting_point

pytestmark = pytest.mark.usefixtures("one_thread")
RATE, ALPHA = 0.1, 0.5
ROUNDS = [[0, 2], [1, 2], [0, 1, 2], [1]]


def test_rounds_with_some_of_the_clients_equal_the_papers_algorithm() -> None:
    images = [data(k, batches=3) for k in range(3)]
    federation = Federation(FedDyn(alpha=ALPHA), images, rate=RATE)
    theta, h, slopes = federation.point(), np.zeros(D), [np.zeros(D) for _ in images]
    for chosen in ROUNDS:
        models = []
        for k in chosen:
            local = theta.copy()
            for batch in range(3):
                local -= RATE * (images[k].gradient(batch, local) - slopes[k] + ALPHA * (local - theta))
            slopes[k] = slopes[k] - ALPHA * (local - theta)
            models.append(local)
        h = h - ALPHA * sum(local - theta for local in models) / len(images)
        theta = np.mean(models, axis=0) - h / ALPHA
        federation.round(chosen)
        np.testing.assert_allclose(federation.point(), theta, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(double(federation.server.rule.state_dict()["state"]), h, rtol=1e-4, atol=1e-5)
        for client, slope in zip(federation.clients, slopes, strict=True):
            if client.state.algorithm:
                np.testing.assert_allclose(double(client.state.algorithm["slope"]), slope, rtol=1e-4, atol=1e-5)
            else:
                assert not slope.any()


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [4.0, 2.0, 1.0]])
@pytest.mark.parametrize("sampled", [False, True])
def test_it_reaches_the_weighted_optimum_and_fedavg_does_not(weights: list[float], sampled: bool) -> None:
    images = [data(k, repeat=4, examples=int(weight)) for k, weight in enumerate(weights)]
    best = optimum(images, weights)
    assert np.linalg.norm(resting_point(images, 0.25, [4] * 3, weights) - best) > 0.2
    federation = Federation(FedDyn(alpha=ALPHA), images, rate=0.25, weighting="examples")
    for round in range(150 if sampled else 60):
        federation.round([k for k in range(3) if not sampled or k != round % 3])
    np.testing.assert_allclose(federation.point(), best, atol=3e-3)
    for client, one in zip(federation.clients, images, strict=True):  # local gradients at the optimum
        np.testing.assert_allclose(double(client.state.algorithm["slope"]), one.gradient(0, best), atol=1e-3)


def test_a_loaded_run_goes_on_to_the_bit() -> None:
    images = [data(k, batches=3) for k in range(3)]
    one, other = interrupted(lambda: Federation(FedDyn(alpha=ALPHA), images), ROUNDS)
    assert (one.point() == other.point()).all()


def test_a_refused_client_keeps_its_slope() -> None:
    images = [data(k, batches=3) for k in range(3)]
    federation = Federation(FedDyn(alpha=ALPHA), images)
    federation.round()
    before = federation.clients[1].state
    kept = double(before.algorithm["slope"]).copy()
    images[1].centres[1][0] = np.nan
    federation.round()
    assert federation.clients[1].state is before
    assert (double(before.algorithm["slope"]) == kept).all()


def test_parts_that_are_not_shared_are_left_alone() -> None:
    images = [data(k, d=D + 2, batches=3) for k in range(2)]
    federation = Federation(FedDyn(alpha=ALPHA), images, tasks=[["a"], ["b"]], shared=lambda part: part == "encoder")
    federation.round()
    assert all(set(client.state.algorithm["slope"]) == {"encoder"} for client in federation.clients)
    assert set(federation.server.rule.state_dict()["state"]) == {"encoder"}


def test_refusals() -> None:
    for alpha in (0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="alpha must be positive"):
            FedDyn(alpha=alpha)
    with pytest.raises(ValueError, match=r"^local.algorithm: .*share: none shares nothing$"):
        FedDyn().check("none")
