"""MaT-FL against NumPy and SciPy's own linkage."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from fedmtl.mixing import MaTFL
from fedmtl.mixing.matfl import average_linkage
from fedmtl.vector import Layout

from .federation import LAYOUTS, encoders, exchange, wide


def reference(parameters: np.ndarray, weights: np.ndarray, *, clusters: int = 0, threshold: float = 0.0) -> np.ndarray:
    """Each client's new parameters, by SciPy's linkage if there are clusters, else by soft grouping."""
    centred = parameters - np.average(parameters, axis=0, weights=weights)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosine = unit @ unit.T
    if clusters:
        tree = linkage(squareform(1 - cosine, checks=False), method="average")
        labels = fcluster(tree, clusters, criterion="maxclust")
        affinity = (labels[:, None] == labels) * 1.0
    else:
        affinity = np.maximum(cosine + threshold, 0)
    return np.stack([np.average(parameters, axis=0, weights=row * weights) for row in affinity])


@pytest.mark.parametrize("options", [{"clusters": 2}, {"clusters": 3}, {"threshold": 0.0}, {"threshold": 0.4}])
@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 2.0, 3.0, 0.5, 1.0]])
@pytest.mark.parametrize("seed", range(4))
def test_against_reference(options: dict[str, Any], weights: list[float] | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, updates = (rng.normal(size=(6, 9)).astype(np.float32) for _ in range(2))
    grouping: Any = "clusters" if "clusters" in options else "soft"
    mixed = MaTFL(grouping=grouping, **options).mix(encoders(before, updates, weights))
    expected = reference((before + updates).astype(float), np.array(weights or [1.0] * 6), **options)
    np.testing.assert_allclose([wide(parts["encoder"]) for parts in mixed], expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [2, 5, 9])
def test_linkage_is_scipys(seed: int, count: int) -> None:
    condensed = np.random.default_rng(seed).uniform(size=count * (count - 1) // 2)
    distances = squareform(condensed)
    for clusters in range(1, count + 1):
        labels = average_linkage(distances, clusters)
        theirs = fcluster(linkage(condensed, method="average"), clusters, criterion="maxclust")
        assert len(set(labels)) == clusters
        assert ((labels[:, None] == labels) == (theirs[:, None] == theirs)).all()
        assert all(labels[label] == label and label <= index for index, label in enumerate(labels))


def test_two_groups_are_found() -> None:
    rng = np.random.default_rng(0)
    updates = np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]) + 0.05 * rng.normal(size=(4, 3))
    mixed = MaTFL().mix(encoders(np.full((4, 3), 7.0), updates))
    assert torch.equal(mixed[0]["encoder"], mixed[2]["encoder"])
    assert torch.equal(mixed[1]["encoder"], mixed[3]["encoder"])
    np.testing.assert_allclose(wide(mixed[0]["encoder"]), 7 + updates[[0, 2]].mean(axis=0), rtol=1e-6)


def test_one_cluster_is_the_weighted_mean() -> None:
    rng = np.random.default_rng(1)
    before, updates, weights = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), [1.0, 2.0, 5.0]
    expected = np.average(before + updates, axis=0, weights=weights)
    for parts in MaTFL(clusters=1).mix(encoders(before, updates, weights)):
        np.testing.assert_allclose(wide(parts["encoder"]), expected, atol=1e-6)


@pytest.mark.parametrize("mixing", [MaTFL(clusters=5), MaTFL(grouping="soft", threshold=0.0), MaTFL()])
def test_two_clients_stay_alone(mixing: MaTFL) -> None:
    rng = np.random.default_rng(2)
    before, updates = rng.normal(size=(2, 4)), rng.normal(size=(2, 4))
    mixed = mixing.mix(encoders(before, updates))
    np.testing.assert_allclose([wide(parts["encoder"]) for parts in mixed], before + updates, atol=1e-6)


def test_heads_stay_their_clients_own() -> None:
    clients = [exchange(name, seed) for seed, name in enumerate("abc")]
    for client, parts in zip(clients, MaTFL(clusters=1).mix(clients), strict=True):
        assert torch.equal(parts["heads.semseg"], client.before["heads.semseg"] + client.updates["heads.semseg"])


def test_encoders_of_other_layouts_are_apart() -> None:
    other = {**LAYOUTS, "encoder": Layout(("stem.weight",), (torch.Size((9,)),))}
    clients = [exchange("a", 0), exchange("b", 1), exchange("c", 2, layouts=other)]
    mixed = MaTFL(clusters=1).mix(clients)
    assert torch.equal(mixed[0]["encoder"], mixed[1]["encoder"])
    assert torch.equal(mixed[2]["encoder"], clients[2].before["encoder"] + clients[2].updates["encoder"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grouping": "hard"}, "grouping must be clusters or soft"),
        ({"clusters": 0}, "clusters must be at least 1"),
        ({"threshold": -1.0}, "threshold must be in"),
        ({"threshold": 1.5}, "threshold must be in"),
        ({"threshold": float("nan")}, "threshold must be in"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaTFL(**arguments)
