"""FedAMP's cloud models against NumPy."""

from typing import Any

import numpy as np
import pytest
import torch

from fedmtl.mixing import FedAMP

from .federation import LAYOUTS, encoders, exchange, wide


def reference(models: np.ndarray, *, attention: str, sigma: float, alpha: float, own: float | None) -> np.ndarray:
    """ξ by loops over pairs."""
    count = len(models)
    squares = [[float(np.square(one - other).sum()) for other in models] for one in models]
    mean = sum(map(sum, squares)) / (count * (count - 1))
    shares = np.zeros((count, count))
    for i in range(count):
        others = [j for j in range(count) if j != i]
        for j in others:
            if attention == "cosine":
                cosine = models[i] @ models[j] / (np.linalg.norm(models[i]) * np.linalg.norm(models[j]))
                shares[i, j] = np.exp(sigma * cosine)
            else:
                square = squares[i][j] / (mean if attention == "relative" else 1)
                shares[i, j] = alpha * np.exp(-square / sigma) / sigma
        if attention == "cosine":
            shares[i] *= (1 - (1 / count if own is None else own)) / shares[i].sum()
        elif shares[i].sum() > (limit := (count - 1) / count):
            shares[i] *= limit / shares[i].sum()
        shares[i, i] = 1 - shares[i].sum()
    return shares


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "distance", "sigma": 10.0, "alpha": 1.0},
        {"attention": "distance", "sigma": 30.0, "alpha": 5.0},
        {"attention": "distance", "sigma": 10.0, "alpha": 1000.0},
        {"attention": "relative", "sigma": 0.5, "alpha": 0.2},
        {"attention": "relative", "sigma": 2.0, "alpha": 50.0},
        {"attention": "cosine", "sigma": 3.0, "alpha": 1.0},
        {"attention": "cosine", "sigma": 0.5, "alpha": 1.0, "own": 0.7},
        {"attention": "cosine", "sigma": 0.5, "alpha": 1.0, "own": 0.0},
    ],
)
@pytest.mark.parametrize("count", [2, 5])
def test_against_reference(options: dict[str, Any], count: int) -> None:
    rng = np.random.default_rng(count)
    before, updates = (rng.normal(size=(count, 6)).astype(np.float32) for _ in range(2))
    models = (before + updates).astype(float)
    expected = reference(models, **{"own": None, **options}) @ models
    mixed = FedAMP(**options).mix(encoders(before, updates))
    np.testing.assert_allclose([wide(parts["encoder"]) for parts in mixed], expected, atol=2e-6)


def test_is_a_gradient_step_on_the_attention_inducing_sum() -> None:
    """u_i = w_i − α/2 ∂/∂w_i Σ_{i<j} A(‖w_i − w_j‖²), with the derivative taken by autograd."""
    models, sigma, alpha = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), 5.0, 0.3
    pairs = torch.combinations(torch.arange(4))
    squares = (models[pairs[:, 0]] - models[pairs[:, 1]]).square().sum(dim=1)
    (gradient,) = torch.autograd.grad((1 - torch.exp(-squares / sigma)).sum(), models)
    expected = (models - alpha / 2 * gradient).detach().numpy()
    clients = encoders(models.detach().numpy(), np.zeros((4, 3)))
    mixed = FedAMP(sigma=sigma, alpha=alpha).mix(clients)
    np.testing.assert_allclose([wide(parts["encoder"]) for parts in mixed], expected, atol=1e-6)


def test_near_clients_contribute_more() -> None:
    start = np.array([[0.0, 0.0], [0.0, 0.1], [0.0, 3.0]])
    cloud = wide(
        FedAMP(attention="relative", sigma=0.5, alpha=0.2).mix(encoders(start, np.zeros((3, 2))))[0]["encoder"]
    )
    assert 0 < cloud[1] < 0.1


@pytest.mark.parametrize("attention", ["distance", "relative", "cosine"])
def test_identical_clients_stay_where_they_are(attention: Any) -> None:
    start = np.tile([1.0, -2.0, 0.5], (4, 1))
    for parts in FedAMP(attention=attention, alpha=100.0).mix(encoders(start, start)):
        np.testing.assert_allclose(wide(parts["encoder"]), 2 * start[0], rtol=1e-6)


def test_far_clients_train_alone() -> None:
    start = np.diag([1e3, 1e3, 1e3])
    for row, parts in zip(start, FedAMP().mix(encoders(start, np.zeros((3, 3)))), strict=True):
        assert wide(parts["encoder"]).tolist() == row.tolist()


def test_too_large_an_alpha_ends_in_the_mean() -> None:
    triangle = np.array([[np.cos(a), np.sin(a)] for a in (0, 2 * np.pi / 3, 4 * np.pi / 3)])
    for parts in FedAMP(alpha=1e6, sigma=1.0).mix(encoders(triangle + 5, np.zeros((3, 2)))):
        np.testing.assert_allclose(wide(parts["encoder"]), [5, 5], atol=1e-6)


def test_distances_of_near_models_far_from_the_origin_are_exact() -> None:
    models = np.full((2, 3), 8191.7)
    models[1, 0] += 1e-3
    sigma = float(np.square(models[0] - models[1]).sum())
    shares = FedAMP(sigma=sigma, alpha=sigma)._attention([torch.tensor(row) for row in models])
    assert shares[0, 1] == pytest.approx(np.exp(-1), rel=1e-8)


def test_a_large_sigma_does_not_overflow() -> None:
    start = np.array([[1.0, 0], [2.0, 0.1], [0, 1.0]])
    cloud = FedAMP(attention="cosine", sigma=1e5, own=0.25).mix(encoders(start, np.zeros((3, 2))))[0]["encoder"]
    np.testing.assert_allclose(wide(cloud), 0.25 * start[0] + 0.75 * start[1], rtol=1e-6)


def test_heads_of_other_layouts_are_apart() -> None:
    other = {**LAYOUTS, "heads.depth": LAYOUTS["heads.semseg"]}
    clients = [exchange("a", 0, ("depth",)), exchange("b", 1, ("depth",)), exchange("c", 2, ("depth",), layouts=other)]
    mixed = FedAMP(attention="cosine").mix(clients)
    assert not torch.equal(mixed[0]["heads.depth"], clients[0].after("heads.depth"))
    assert torch.equal(mixed[2]["heads.depth"], clients[2].after("heads.depth"))


def test_heads_are_merged_among_the_clients_that_have_them() -> None:
    clients = [exchange("a", 0, ("semseg",)), exchange("b", 1, ("semseg", "depth")), exchange("c", 2, ("edge",))]
    mixed = FedAMP(attention="cosine").mix(clients)
    semseg = [clients[index].after("heads.semseg") for index in (0, 1)]
    mean = wide(semseg[0] + semseg[1]) / 2
    for index in (0, 1):
        np.testing.assert_allclose(wide(mixed[index]["heads.semseg"]), mean, atol=1e-6)
    assert torch.equal(mixed[1]["heads.depth"], clients[1].after("heads.depth"))
    assert torch.equal(mixed[2]["heads.edge"], clients[2].after("heads.edge"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "softmax"}, "attention must be distance, relative or cosine"),
        ({"sigma": 0.0}, "sigma must be in"),
        ({"sigma": float("inf")}, "sigma must be in"),
        ({"alpha": 0.0}, "alpha must be in"),
        ({"alpha": float("nan")}, "alpha must be in"),
        ({"own": 1.1}, "own must be in"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedAMP(**arguments)
