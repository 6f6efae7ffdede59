"""Who has which images: names, heads, shards, and what is refused."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl.client import SERVERS, Client, ClientGroup, LocalTraining
from fedmtl.data import IID, DataSource, Dirichlet, ListFile, QuantitySkew, ValTransform, Whole
from fedmtl.errors import UserError
from fedmtl.federation import make_clients, table, validation_views
from fedmtl.tasks import Depth, Parts, SemSeg
from fedmtl.vector import PartState


class People(DataSource):
    """Pictures of which only those in `people` have a label for "parts"."""

    name = "people"

    def __init__(self, train: int, people: set[int], val: int = 2) -> None:
        self.tasks = {"semseg": SemSeg(num_classes=3), "depth": Depth(), "parts": Parts(num_classes=2)}
        self.counts = {"train": train, "val": val}
        self.people = people
        self.train_transform = self.val_transform = ValTransform()

    def ids(self, split: str) -> list[str]:
        return [f"{split}{i}" for i in range(self.counts[split])]

    def load(self, split: str, index: int, what: str) -> Any:
        if what == "image":
            return np.zeros((4, 4, 3), np.uint8)
        return np.full((4, 4), 1 + index % 2, np.uint8 if what != "depth" else np.float32)

    def has_label(self, split: str, index: int, task: str) -> bool:
        return task != "parts" or index in self.people


def images(clients: list[Client]) -> list[list[int]]:
    return [list(client.images.indices) for client in clients]


def joined(shards: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(shards))


def test_one_data_set_is_shared_out_iid_as_a_permutation_cut_into_parts() -> None:
    data = People(23, set(range(23)))
    clients = make_clients([ClientGroup(["depth"]), ClientGroup(["semseg", "parts"], count=2)], data, seed=3)
    assert [client.name for client in clients] == ["depth", "semseg+parts-1", "semseg+parts-2"]
    assert [client.tasks for client in clients] == [("depth",), ("semseg", "parts"), ("semseg", "parts")]
    assert [client.parts for client in clients][1] == ["encoder", "heads.semseg", "heads.parts"]
    assert [len(shard) for shard in images(clients)] == [8, 8, 7]
    assert sorted(joined(images(clients))) == list(range(23))
    assert images(clients) == images(make_clients([ClientGroup(["depth"], count=3)], data, seed=3))
    assert images(clients) != images(make_clients([ClientGroup(["depth"], count=3)], data, seed=4))


def test_several_data_sets_have_heads_and_shards_of_their_own() -> None:
    data = {"day": People(10, set(range(10))), "night": People(6, set(range(6)), val=5)}
    groups = [
        ClientGroup(["semseg"], data="day", count=2),
        ClientGroup(["semseg", "depth"], data="night"),
        ClientGroup(["depth"], data="night", name="far"),
    ]
    clients = make_clients(groups, data)
    assert [client.name for client in clients] == ["day_semseg-1", "day_semseg-2", "night_semseg+depth", "far"]
    assert [client.tasks for client in clients][1:3] == [("day_semseg",), ("night_semseg", "night_depth")]
    assert [client.data for client in clients] == ["day", "day", "night", "night"]
    assert [client.images.source for client in clients] == [data[client.data] for client in clients]
    assert sorted(joined(images(clients[:2]))) == list(range(10))
    assert sorted(joined(images(clients[2:]))) == list(range(6))
    views = validation_views(clients, data)
    assert {name: list(view.tasks) for name, view in views.items()} == {
        "day": ["day_semseg"],
        "night": ["night_semseg", "night_depth"],
    }
    assert [len(view) for view in views.values()] == [2, 5]
    example = views["night"][4, 0]
    assert set(example) == {"image", "window", "night_semseg", "night_depth"}
    assert (example["night_semseg"] == 1).all()


def test_a_data_set_that_no_client_has_is_not_measured() -> None:
    data = {"a": People(4, set()), "b": People(4, set())}
    assert list(validation_views(make_clients([ClientGroup(["depth"], data="b")], data), data)) == ["b"]


def test_groups_may_have_partitions_of_their_own(tmp_path: Path) -> None:
    data = People(60, set(range(60)))
    path = tmp_path / "shards.json"
    path.write_text(json.dumps({"listed": ["train7", "train3"]}))
    groups = [
        ClientGroup(["depth"], count=3, name="skewed", partition=QuantitySkew()),
        ClientGroup(["depth"], count=2, name="even"),
        ClientGroup(["depth"], name="listed", partition=ListFile(str(path))),
        ClientGroup(["semseg"], count=4, name="classes", partition=Dirichlet(alpha=0.1)),
    ]
    clients = make_clients(groups, data, IID(), seed=1)
    shards = images(clients)
    assert sorted(joined(shards)) == list(range(60))
    assert shards[5] == [3, 7]
    sizes = [len(shard) for shard in shards]
    assert abs(sum(sizes[:3]) - 58 * 3 / 9) < 2
    assert sizes[0] < sizes[1] < sizes[2]
    assert abs(sizes[3] - sizes[4]) <= 1
    assert shards == images(make_clients(groups, data, IID(), seed=1))


def test_a_list_file_alone_leaves_the_rest_unused(tmp_path: Path) -> None:
    path = tmp_path / "shards.yaml"
    path.write_text("a: [train7]\nb: [train0, train1]\n")
    groups = [ClientGroup(["depth"], name="a"), ClientGroup(["semseg"], name="b")]
    assert images(make_clients(groups, People(9, set()), ListFile(path))) == [[7], [0, 1]]


@settings(max_examples=60, deadline=None)
@given(
    train=st.integers(6, 60),
    share=st.floats(0.05, 1),
    others=st.integers(1, 3),
    parts=st.integers(1, 2),
    seed=st.integers(0, 5),
)
def test_a_client_trains_on_labelled_images_alone_and_does_not_shrink(
    train: int, share: float, others: int, parts: int, seed: int
) -> None:
    people = set(np.random.default_rng(seed).permutation(train)[: max(parts, round(share * train))].tolist())
    data = People(train, people)
    groups = [ClientGroup(["semseg"], count=others), ClientGroup(["parts"], count=parts, name="parts")]
    try:
        clients = make_clients(groups, data, seed=seed)
    except UserError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "no label for parts" in refused
        assert len(people) < train * parts / (others + parts)  # the other client of the kind had them all
        return
    shards = images(clients)
    everything = joined(shards)
    assert len(everything) == len(set(everything))
    fair = [len(part) for part in np.array_split(np.arange(train), others + parts)]
    assert [len(shard) for shard in shards[:others]] == fair[:others]
    for shard in shards[others:]:
        assert set(shard) <= people
    if len(people) >= sum(fair[others:]):
        assert [len(shard) for shard in shards[others:]] == fair[others:]
    else:
        assert sum(len(shard) for shard in shards[others:]) == len(people)


class Partly(People):
    """Pictures of which some have a label for "parts", and some for "depth"."""

    def __init__(self, train: int, people: set[int], deep: set[int]) -> None:
        super().__init__(train, people)
        self.deep = deep

    def has_label(self, split: str, index: int, task: str) -> bool:
        return index in self.deep if task == "depth" else super().has_label(split, index, task)


@settings(max_examples=100, deadline=None)
@given(train=st.integers(6, 40), share=st.floats(0.3, 0.9), seed=st.integers(0, 1000))
def test_exchange_keeps_sizes_where_two_tasks_are_partly_labelled(train: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    people, deep = ({i for i in range(train) if rng.random() < share} | {k} for k in range(2))
    groups = [ClientGroup(["depth"], count=2), ClientGroup(["parts"]), ClientGroup(["semseg"])]
    try:
        shards = images(make_clients(groups, Partly(train, people, deep), seed=seed))
    except UserError:
        return  # too few labelled images to go round
    everything = joined(shards)
    assert len(everything) == len(set(everything))
    fair = [len(part) for part in np.array_split(np.arange(train), 4)]
    assert all(len(shard) <= size for shard, size in zip(shards, fair, strict=True))
    assert len(shards[3]) == fair[3]
    assert set(shards[0] + shards[1]) <= deep
    assert set(shards[2]) <= people


def test_an_image_is_exchanged_once() -> None:
    groups = [ClientGroup(["depth"], count=2), ClientGroup(["parts"])]
    data = Partly(6, {0, 3, 5}, {0, 1, 2, 4, 5})
    for seed in range(40):
        try:
            clients = make_clients(groups, data, seed=seed)
        except UserError:
            continue
        assert max(len(shard) for shard in images(clients)) <= 2


@pytest.mark.parametrize("seed", range(8))
def test_an_image_that_nobody_can_use_does_not_end_the_exchange(seed: int) -> None:
    people, deep = set(range(0, 24, 3)), set(range(1, 24, 3))
    data = Partly(24, people, deep)
    first, second = map(set, images(make_clients([ClientGroup(["semseg"], count=2)], data, seed=seed)))
    swapped = min(len(first & people), len(second & deep))
    shards = images(make_clients([ClientGroup(["depth"]), ClientGroup(["parts"])], data, seed=seed))
    assert [len(shard) for shard in shards] == [len(first & deep) + swapped, len(second & people) + swapped]


def test_heads_of_two_data_sets_may_not_collide() -> None:
    near, far = People(4, set()), People(4, set())
    near.tasks = {"b_depth": Depth()}
    groups = [ClientGroup(["b_depth"], data="a"), ClientGroup(["depth"], data="a_b")]
    with pytest.raises(UserError, match="data: a_b and a both get a head a_b_depth; rename one"):
        make_clients(groups, {"a": near, "a_b": far})


def test_a_client_with_another_task_keeps_unlabelled_images() -> None:
    data = People(8, {2})
    client = make_clients([ClientGroup(["semseg", "parts"])], data)[0]
    assert list(client.images.indices) == list(range(8))
    assert (client.images.sample(3)["parts"] == 255).all()
    assert (client.images.sample(2)["parts"] == 1).all()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "clients: the list is empty"),
        ([ClientGroup([])], "clients[0]: needs at least one task"),
        ([ClientGroup(["depth"], count=0)], "clients[0]: needs at least one task and a count of at least 1"),
        ([ClientGroup(["depth"]), ClientGroup(["edge"])], "clients[1].tasks: people has no 'edge'; it has semseg, d"),
        ([ClientGroup(["depth", "depth"])], "names a task twice"),
        ([ClientGroup(["depth"], count=5)], "5 clients can't share 4 training images of people"),
        ([ClientGroup(["depth"], name="a/b")], "names must differ and hold no '/'"),
        ([ClientGroup(["depth"], name="a"), ClientGroup(["semseg"], name="a-1"), ClientGroup(["parts"], name="a")],
         "names must differ"),
        ([ClientGroup(["depth"], data="other")], "clients[0].data: give one of people, not other"),
        ([ClientGroup(["depth"], epochs=0)], "clients[0].epochs must be at least 1, not 0"),
        ([ClientGroup(["parts"])], "parts has 4 images of people and no label for parts"),
        ([ClientGroup(["semseg", "parts"])], "semseg+parts has 4 images of people and no label for parts"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused(groups: list[ClientGroup], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_clients(groups, People(4, set()))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_several_data_sets_a_group_names_one() -> None:
    data = {"a": People(4, set()), "b": People(4, set())}
    with pytest.raises(UserError, match=r"clients\[0\]\.data: give one of a, b, not None"):
        make_clients([ClientGroup(["depth"])], data)
    with pytest.raises(UserError, match=r"data: name data sets by letters, digits and '_', not 'a\.b'"):
        make_clients([ClientGroup(["depth"])], {"a.b": People(4, set())})


def test_the_table_says_images_epochs_and_steps(tiny_source: Callable[..., Any]) -> None:
    import torch

    groups = [ClientGroup(["depth"]), ClientGroup(["semseg", "depth"], epochs=4, name="both")]
    clients = make_clients(groups, tiny_source(train=13))
    local = LocalTraining(optimizer=torch.optim.SGD, epochs=2, batch_size=3)
    rows = table(clients, local)
    assert [{key: value for key, value in row.items() if key != "ids"} for row in rows] == [
        {"client": "depth", "data": "tiny", "tasks": ["depth"], "images": 7, "epochs": 2, "steps": 4},
        {"client": "both", "data": "tiny", "tasks": ["semseg", "depth"], "images": 6, "epochs": 4, "steps": 8},
    ]
    assert sorted(rows[0]["ids"] + rows[1]["ids"], key=int) == [str(i) for i in range(13)]


def test_groups_epochs_reach_training_and_schedule(federate_like: Any) -> None:
    steps, rates = federate_like(epochs=3)
    assert steps == 3 * 2
    assert rates == [0, 1, 2]


@pytest.fixture
def federate_like(make_module: Any, tiny_source: Any, one_thread: None) -> Callable[..., Any]:
    """Trains one client of 4 images with batches of 2; its steps, and the epochs that the schedule saw."""
    import torch

    from fedmtl.engine import FabricConfig, InProcess

    def train(epochs: int) -> tuple[int, list[int]]:
        source = tiny_source(train=4)
        seen: list[int] = []

        class Schedule:
            def __init__(self, optimizer: Any, t_initial: int) -> None:
                assert t_initial == 5 * epochs

            def step(self, epoch: int) -> None:
                seen.append(epoch)

        local = LocalTraining(
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            epochs=1,
            batch_size=2,
            schedule=Schedule,  # type: ignore[arg-type]
        )
        module = make_module(tasks=source.tasks)
        fabric = FabricConfig(accelerator="cpu").build()
        engine = InProcess(fabric=fabric, module=module, local=local, seed=0, rounds=5)
        client = make_clients([ClientGroup(["depth"], epochs=epochs)], source)[0]
        steps: list[None] = []
        state: dict[str, PartState] = engine.state()
        engine.train(client, state, 1, lambda: steps.append(None))
        return len(steps), seen

    return train


def test_whole_gives_every_client_all_images_and_takes_them_from_nobody() -> None:
    data = People(9, people=set())
    groups = [ClientGroup(["depth"], count=2, partition=Whole()), ClientGroup(["semseg"], partition=Whole())]
    assert [len(client.images) for client in make_clients(groups, data)] == [9, 9, 9]
    beside = make_clients([groups[0], ClientGroup(["semseg"], count=3)], data)
    assert [len(client.images) for client in beside] == [9, 9, 3, 3, 3]


def test_what_is_a_groups_own_gives_it_an_architecture() -> None:
    plain = ClientGroup(["depth"])
    clients = make_clients([plain, ClientGroup(["semseg"], private=["*stem*"]), ClientGroup(["parts"], input="depth")],
                           People(9, people={0, 1, 2, 3, 4, 5, 6, 7, 8}))  # fmt: skip
    assert [client.architecture for client in clients] == [SERVERS, "clients[1]", "clients[2]"]
    assert [client.images.channels for client in clients] == [3, 3, 1]
