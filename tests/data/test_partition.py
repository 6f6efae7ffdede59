"""How training images are shared out: nothing twice, nobody without, and as skewed as was asked for."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl.data import DataSource
from fedmtl.data.partition import IID, Dirichlet, ListFile, Partition, QuantitySkew
from fedmtl.errors import UserError
from fedmtl.tasks import Depth, SemSeg
from fedmtl.tasks.base import Label

UNLABELLED = -1


class Classes(DataSource):
    """Images of one class each, or of given class maps; `UNLABELLED` ones have no label."""

    name = "classes"

    def __init__(self, labels: Sequence[Any]) -> None:
        self.labels = labels
        self.tasks = {"semseg": SemSeg(num_classes=200), "depth": Depth()}

    def ids(self, split: str) -> list[str]:
        return [f"2008_{i:06}" for i in range(len(self.labels))]

    def has_label(self, split: str, index: int, task: str) -> bool:
        return not np.array_equal(self.labels[index], UNLABELLED)

    def load(self, split: str, index: int, what: str) -> Label:
        assert self.has_label(split, index, what)
        return np.atleast_2d(self.labels[index]).astype(np.uint8)


def names(count: int) -> list[str]:
    return [f"client {i}" for i in range(count)]


def split(partition: Partition, data: DataSource, clients: int, seed: int = 0) -> list[list[int]]:
    images = range(len(data.ids("train")))
    return partition.split(data, images, names(clients), np.random.default_rng(seed))


partitions = st.one_of(
    st.builds(IID),
    st.builds(QuantitySkew, shuffled=st.booleans()),
    st.builds(Dirichlet, st.floats(5e-324, 1.7e308)),
    st.builds(Dirichlet, st.floats(0.01, 10)),
)


@settings(deadline=None)
@given(partitions, st.integers(1, 9), st.lists(st.integers(-1, 4), min_size=9, max_size=80), st.data(), st.integers(0))
def test_every_image_goes_to_one_client_and_none_goes_without(partition, clients, labels, data, seed):
    drawn = data.draw(st.sets(st.integers(0, len(labels) - 1), min_size=clients))
    images, source = sorted(drawn), Classes(labels)
    found, again = (partition.split(source, images, names(clients), np.random.default_rng(seed)) for _ in range(2))
    assert found == again
    assert len(found) == clients
    assert all(shard == sorted(shard) and shard and all(type(i) is int for i in shard) for shard in found)
    assert sorted(i for shard in found for i in shard) == images
    assert not partition.fixed


@pytest.mark.parametrize("partition", [IID(), QuantitySkew(), QuantitySkew(shuffled=True), Dirichlet(1.0)])
def test_shards_come_from_the_generator(partition):
    data = Classes([0] * 60)
    assert split(partition, data, 4, seed=0) != split(partition, data, 4, seed=1)
    assert split(partition, data, 4)[0] != list(range(len(split(partition, data, 4)[0])))  # not cut in order


# --- equal and unequal sizes ---------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 200), st.integers(0, 2**32))
def test_iid_is_a_permutation_cut_into_equal_parts(clients, more, seed):
    data = Classes([0] * (clients + more))
    order = np.random.default_rng(seed).permutation(clients + more)
    found = split(IID(), data, clients, seed)
    assert found == [sorted(part.tolist()) for part in np.array_split(order, clients)]
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_iid_of_some_images_is_iid_of_their_positions():
    images, rng = [3, 5, 6, 10, 11, 30], np.random.default_rng(5)
    expected = [sorted(images[i] for i in part) for part in np.array_split(np.random.default_rng(5).permutation(6), 2)]
    assert IID().split(Classes([0] * 31), images, names(2), rng) == expected


@given(st.integers(1, 30), st.integers(0, 3000), st.integers(0, 99))
def test_quantity_skew_gives_each_client_its_share(clients, more, seed):
    total = clients + more
    sizes = np.array(list(map(len, split(QuantitySkew(), Classes([0] * total), clients, seed))))
    shares = total * 2 * np.arange(1, clients + 1) / (clients * (clients + 1))
    assert sizes.sum() == total
    assert sizes.min() >= 1
    if shares[0] >= 1:
        assert np.abs(sizes - shares).max() < 1
    shuffled = list(map(len, split(QuantitySkew(shuffled=True), Classes([0] * total), clients, seed)))
    assert sorted(shuffled) == sorted(sizes)


def test_quantity_skew_of_the_nyud_clients():
    data = Classes([0] * 795)
    assert list(map(len, split(QuantitySkew(), data, 4))) == [79, 159, 239, 318]
    orders = {tuple(map(len, split(QuantitySkew(shuffled=True), data, 4, seed))) for seed in range(200)}
    assert len(orders) == 24


# --- by class ------------------------------------------------------------------------------------------------


def counts(shards: list[list[int]], labels: Sequence[int]) -> np.ndarray:
    """(clients, classes) numbers of images."""
    return np.array([np.bincount([labels[i] for i in shard], minlength=max(labels) + 1) for shard in shards])


@pytest.mark.parametrize("alpha", [1e9, 1e300, 1.7e308])
def test_dirichlet_of_large_alpha_mixes_evenly(alpha):
    labels = [0] * 200 + [1] * 83 + [2] * 17
    table = counts(split(Dirichlet(alpha), Classes(labels), 4), labels)
    assert (np.abs(table - np.array([200, 83, 17]) / 4) < 1.001).all()


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-6])
def test_dirichlet_of_small_alpha_gives_a_class_to_one_client(alpha):
    labels = [i % 5 for i in range(200)]
    owners = set()
    for seed in range(20):
        table = counts(split(Dirichlet(alpha), Classes(labels), 4, seed), labels)
        assert (table.max(0) >= 40 - 3).all()  # but for images that other clients would else be without
        owners |= {tuple(table.argmax(0))}
    assert len(owners) > 10  # not always the same


def test_dirichlet_shares_have_its_mean_and_variance(monkeypatch):
    """Var p = (K − 1) / (K² (K α + 1)); rounding adds at most a quarter of an image squared."""
    labels, clients, alpha = [0] * 300 + [1] * 300, 3, 0.7
    monkeypatch.setattr(Dirichlet, "_dominant", lambda self, data, images: np.array(labels))  # else it takes long
    tables = [counts(split(Dirichlet(alpha), Classes(labels), clients, seed), labels) for seed in range(600)]
    shares = np.stack(tables) / 300
    variance = (clients - 1) / (clients**2 * (clients * alpha + 1))
    np.testing.assert_allclose(shares.mean(0), 1 / clients, atol=5 * np.sqrt(variance / 600))
    np.testing.assert_allclose(shares.var(0), variance, rtol=0.15)
    assert abs(np.corrcoef(shares[:, 0, 0], shares[:, 0, 1])[0, 1]) < 0.2  # each class by a draw of its own


def test_dirichlet_rounds_without_favour():
    """With forty classes of one image each, rounding is all that decides."""
    labels = list(range(40))
    sizes = np.sum([list(map(len, split(Dirichlet(1e6), Classes(labels), 4, seed))) for seed in range(50)], axis=0)
    np.testing.assert_allclose(sizes, 500, atol=5 * np.sqrt(2000 * 3 / 16))


def test_an_image_is_of_its_most_frequent_known_class():
    maps = [[255, 255, 255, 7], [1, 1, 2, 255], [1, 2, 2, 3], [255] * 4, UNLABELLED, [0, 0, 0, 9], [0, 0, 0, 0]]
    found = Dirichlet(1.0)._dominant(Classes(maps), range(7))
    assert found.tolist() == [7, 1, 2, 255, 255, 0, 0]
    assert Dirichlet(1.0, ignore=[0])._dominant(Classes(maps), [5, 6, 2]).tolist() == [9, 255, 2]


def test_images_of_no_known_class_are_shared_out_as_a_class():
    labels = [UNLABELLED] * 50 + [255] * 50
    found = split(Dirichlet(1e-6), Classes(labels), 4)
    assert sorted(map(len, found)) == [1, 1, 1, 97]


@pytest.mark.parametrize("least", [1, 5, 25])
def test_the_poorest_are_given_of_the_richest(least):
    found = split(Dirichlet(1e-6, least=least), Classes([0] * 100), 4)
    assert sorted(map(len, found)) == [least, least, least, 100 - 3 * least]


def test_dirichlet_says_what_cannot_be():
    data = Classes([0] * 10)
    with pytest.raises(UserError, match=r"^partition.least: 4 clients can't have 3 images each, there are 10; lower"):
        split(Dirichlet(1.0, least=3), data, 4)
    with pytest.raises(UserError, match=r"^classes has no 'parts'; it has semseg, depth$"):
        split(Dirichlet(1.0, task="parts"), data, 2)
    with pytest.raises(UserError, match=r"^partition.task: 'depth' has no classes"):
        split(Dirichlet(1.0, task="depth"), data, 2)


@pytest.mark.parametrize(
    ("options", "argument"),
    [({"alpha": alpha}, "alpha") for alpha in (0.0, -1.0, float("inf"), float("nan"))]
    + [({"alpha": 1.0, "least": 0}, "least"), ({"alpha": 1.0, "ignore": [255]}, "ignore")],
)
def test_wrong_options_are_named(options, argument):
    with pytest.raises(ValueError, match=f"^{argument} must be"):
        Dirichlet(**options)


def test_files_are_read_alike_by_any_number_of_threads(
    nyud_root: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmtl.data import NYUDv2

    data = NYUDv2(nyud_root(train=12, val=1))
    found = []
    for cores in (1, 8):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        found.append(split(Dirichlet(0.5), data, 3))
    assert found[0] == found[1]
    labels = [np.bincount(data.load("train", i, "semseg").ravel())[:40].argmax() for i in range(12)]
    assert len(set(labels)) > 1
    assert Dirichlet(0.5)._dominant(data, range(12)).tolist() == labels


# --- from a file ---------------------------------------------------------------------------------------------

GIVEN = {"depth": ["2008_000007", "2008_000002"], "semseg": ["2008_000000"]}


def listed(path: Path, text: str, images: Sequence[int] = range(10)) -> list[list[int]]:
    path.write_text(text)
    partition = ListFile(str(path))
    assert partition.fixed
    return partition.split(Classes([0] * 10), images, ["semseg", "depth"], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        ("yaml", yaml.safe_dump),
        ("yaml", lambda _: "depth: [2008_000007, 2008_000002]  # not the number 2008000007\nsemseg:\n- 2008_000000\n"),
        ("json", json.dumps),
        ("json", lambda lists: json.dumps(lists, indent="\t")),
        ("json", lambda lists: "\ufeff" + json.dumps(lists, indent=2)),
    ],
)
def test_a_file_names_each_clients_images(tmp_path, suffix, write):
    assert listed(tmp_path / f"lists.{suffix}", write(GIVEN)) == [[0], [2, 7]]


def test_image_names_keep_their_zeros(nyud_root: Callable[..., Path], tmp_path: Path) -> None:
    from fedmtl.data import NYUDv2

    (tmp_path / "lists.yaml").write_text("a: [0004, 0001]\n")
    data = NYUDv2(nyud_root(train=4))
    assert ListFile(tmp_path / "lists.yaml").split(data, range(4), ["a"], np.random.default_rng(0)) == [[0, 3]]


def test_a_list_may_name_clients_of_other_data_sets(tmp_path: Path) -> None:
    (tmp_path / "lists.yaml").write_text("a: [2008_000000]\nelsewhere: [x]\n")
    data = Classes([0, 1])
    assert ListFile(tmp_path / "lists.yaml").split(data, range(2), ["a"], np.random.default_rng(0)) == [[0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{depth: [2008_000001]}", "semseg: is not there; each client needs at least one image"),
        ("{depth: [2008_000001], semseg: []}", "semseg: its list is empty; each client needs at least one image"),
        ("{edge: [2008_000001]}", "semseg: is not there; each client needs at least one image"),
        ("{depth: [2009_000001]}", "depth: classes has no training image '2009_000001'"),
        ("{depth: [null]}", "depth: classes has no training image 'null'"),
        ("{depth: [2008_000001, 2008_000001]}", "depth: 2008_000001 is given to depth already; leave one"),
        (
            "{depth: [2008_000001], semseg: [2008_000001]}",
            "semseg: 2008_000001 is given to depth already; leave one",
        ),
        ("depth: [2008_000001]\ndepth: [2008_000002]", "depth: is there twice; join the two lists"),
        ("{depth: [2008_000009]}", "depth: 2008_000009 is given to clients of another group already"),
    ],
)
def test_entries_that_cannot_be_are_named(tmp_path, text, message):
    path = tmp_path / "lists.yaml"
    with pytest.raises(UserError) as caught:
        listed(path, text, images=range(9))
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": expected clients' names with lists of images"),
        ("[2008_000001]", ": expected clients' names with lists of images"),
        ("depth: [2008_000001]\nsemseg: 2008_000002", ", line 2: expected a client's name with a list of image names"),
        ("depth: [2008_000001]\nsemseg: [[2008_000002]]", ", line 2: expected a client's name with a list"),
        ("depth: {2008_000001: 1}", ", line 1: expected a client's name with a list"),
        ("depth: [2008_000001", ": is neither YAML nor JSON (while parsing a flow sequence"),
        ("depth: !!python/object/apply:os.getcwd []\nsemseg: []", ": semseg: its list is empty"),  # nothing is run
    ],
)
def test_files_of_another_form_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "lists.yaml"
    with pytest.raises(UserError) as caught:
        listed(path, text)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read the clients' lists of images .No such file"):
        split(ListFile(tmp_path / "no.yaml"), Classes([0]), 1)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="is neither YAML nor JSON"):
        split(ListFile(tmp_path / "bytes.yaml"), Classes([0]), 1)
