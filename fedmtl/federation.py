"""The federation: which clients there are, which heads they train, and which images each of them has."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmtl.client import SERVERS, Client, ClientGroup, LocalTraining
from fedmtl.data import IID, DataSource, Partition, View
from fedmtl.errors import UserError
from fedmtl.seeding import numpy_stream

Sources = Mapping[str, DataSource]


@dataclass
class Member:
    """A client to be: its group, its data set, and where its images will come from."""

    name: str
    group: ClientGroup
    data: str
    source: DataSource
    prefix: str
    architecture: str
    partition: Partition
    shard: Sequence[int] = ()


def make_clients(
    groups: Sequence[ClientGroup], data: DataSource | Sources, partition: Partition | None = None, *, seed: int = 0
) -> list[Client]:
    """The clients of all groups, each with its shard of its data set's train split.

    The clients of a data set share out its images: those of all groups without a partition of their own by
    `partition`; a group with its own gets a random share in proportion to its clients, and cuts that. An image
    without a label for any of a client's tasks is exchanged for one that has some, as far as there are such; the
    rest are left out.

    Args:
        groups: groups of clients.
        data: the data set; or several by name, and then heads are named ``<data set>_<task>``.
        partition: how images are shared out, `IID` if not given.
        seed: the run's seed.

    Raises:
        UserError: no clients, a group without tasks, a task or data set that is not there, too few images, or a
            client without labels.
    """
    members = _members(groups, data, partition or IID())
    for key, source in _named(data).items():
        own = [member for member in members if member.data == key]
        keys = () if isinstance(data, DataSource) else (key,)
        if own:
            _deal(source, own, seed, keys)
    return [_client(member) for member in members]


def validation_views(clients: Sequence[Client], data: DataSource | Sources) -> dict[str, View]:
    """The whole val split of each data set that clients have, by its name, with labels for all of their heads."""
    heads = {head for client in clients for head in client.tasks}
    views: dict[str, View] = {}
    for key, source in _named(data).items():
        prefix = _prefix(data, key)
        tasks = [task for task in source.tasks if prefix + task in heads]
        if tasks:
            views[key] = source.view("val", tasks, prefix=prefix)
    return views


def table(
    clients: Sequence[Client], local: LocalTraining, more: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """A row a client: its name, data set, tasks, number of images, local epochs and steps of a round, `more` by name of
    the client, and the names of its images under ``"ids"``."""
    return [
        {
            "client": client.name,
            "data": client.data,
            "tasks": list(client.images.names.values()),
            "images": len(client.images),
            "epochs": local.epochs_of(client),
            "steps": local.steps(client),
            **(more or {}).get(client.name, {}),
            "ids": [client.images.source.ids("train")[i] for i in client.images.indices],
        }
        for client in clients
    ]


def _named(data: DataSource | Sources) -> Sources:
    return {data.name: data} if isinstance(data, DataSource) else data


def _prefix(data: DataSource | Sources, key: str) -> str:
    return "" if isinstance(data, DataSource) else f"{key}_"


def _members(groups: Sequence[ClientGroup], data: DataSource | Sources, partition: Partition) -> list[Member]:
    """All clients in order, checked, without images yet."""
    if not groups:
        raise UserError("clients: the list is empty; give at least one group, e.g. [{tasks: [depth]}]")
    sources = _named(data)
    bad = [key for key in sources if not re.fullmatch(r"\w+", key)]
    if bad or not sources:
        raise UserError(f"data: name data sets by letters, digits and '_', not {bad[0] if bad else 'nothing at all'!r}")
    members = []
    heads: dict[str, str] = {}  # data set of each
    for i, group in enumerate(groups):
        if not group.tasks or group.count < 1:
            raise UserError(f"clients[{i}]: needs at least one task and a count of at least 1")
        if group.epochs is not None and group.epochs < 1:
            raise UserError(f"clients[{i}].epochs must be at least 1, not {group.epochs}")
        key = group.data or (next(iter(sources)) if len(sources) == 1 else "")
        if key not in sources:
            raise UserError(f"clients[{i}].data: give one of {', '.join(sources)}, not {group.data}")
        source, prefix = sources[key], _prefix(data, key)
        unknown = [task for task in group.tasks if task not in source.tasks]
        if unknown:
            raise UserError(f"clients[{i}].tasks: {source.lacks(unknown[0])}")
        if len(set(group.tasks)) < len(group.tasks):
            raise UserError(f"clients[{i}].tasks: {group.tasks} names a task twice")
        for task in group.tasks:
            if heads.setdefault(prefix + task, key) != key:
                raise UserError(f"data: {key} and {heads[prefix + task]} both get a head {prefix + task}; rename one")
        name = group.name or prefix + "+".join(group.tasks)
        if group.input != "image" and group.input not in source.tasks:
            raise UserError(f"clients[{i}].input: {source.lacks(group.input)}")
        if group.input in group.tasks:
            raise UserError(f"clients[{i}].input: {group.input} is also what they learn; leave one of the two out")
        # a group with a model, an input or weights has its own architecture, named after the group's place
        plain = group.model is None and group.input == "image" and not group.private
        architecture = SERVERS if plain else f"clients[{i}]"
        own = group.partition or partition
        members += [Member(name, group, key, source, prefix, architecture, own) for _ in range(group.count)]
    for member, name in zip(members, _numbered([member.name for member in members]), strict=True):
        member.name = name
    names = [member.name for member in members]
    if len(set(names)) < len(names) or any("/" in name for name in names):
        raise UserError(f"clients: names must differ and hold no '/', not {', '.join(names)}")
    return members


def _numbered(names: list[str]) -> list[str]:
    """Names that occur more than once get -1, -2, …"""
    total, seen = Counter(names), Counter[str]()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if total[name] == 1 else f"{name}-{seen[name]}")
    return result


def _deal(source: DataSource, members: Sequence[Member], seed: int, keys: tuple[str, ...]) -> None:
    """Gives the members of one data set their shards."""
    pools: list[list[Member]] = []
    for member in members:
        known = next((pool for pool in pools if pool[0].partition is member.partition), None)
        if known is None:
            pools.append([member])
        else:
            known.append(member)
    free: list[int] = list(range(len(source.ids("train"))))
    for pool in (pool for pool in pools if pool[0].partition.fixed):
        _split(source, pool, free, numpy_stream(seed, "partition", *keys))
        if pool[0].partition.exclusive:
            taken = {i for member in pool for i in member.shard}
            free = [i for i in free if i not in taken]
    dividing = [pool for pool in pools if not pool[0].partition.fixed]
    portions = [free] * len(dividing)
    if len(dividing) > 1:
        order = numpy_stream(seed, "pools", *keys).permutation(free)
        ends = np.cumsum([len(pool) for pool in dividing]) * len(free) // sum(map(len, dividing))
        portions = [sorted(part.tolist()) for part in np.split(order, ends[:-1])]
    for number, (pool, portion) in enumerate(zip(dividing, portions, strict=True)):
        _split(source, pool, portion, numpy_stream(seed, "partition", *keys, *([number] if number else [])))
    _exchange(source, [m for pool in dividing for m in pool], numpy_stream(seed, "exchange", *keys))


def _split(source: DataSource, pool: list[Member], images: list[int], rng: np.random.Generator) -> None:
    if len(images) < len(pool):
        raise UserError(
            f"clients: {len(pool)} clients can't share {len(images)} training images of {source.name}; "
            "each needs at least one"
        )
    found = pool[0].partition.split(source, images, [member.name for member in pool], rng)
    for member, shard in zip(pool, found, strict=True):
        member.shard = shard


def _exchange(source: DataSource, members: Sequence[Member], rng: np.random.Generator) -> None:
    """Swaps images that a client has no label for with ones of other clients that have, so that it does not shrink.

    The other client must be able to use what it gets; both keep their number of images.
    """
    count = len(source.ids("train"))
    tasks = {task for member in members for task in member.group.tasks}
    labelled = {task: np.array([source.has_label("train", i, task) for i in range(count)]) for task in tasks}
    if all(known.all() for known in labelled.values()):
        return
    usable = np.array([np.any([labelled[task] for task in member.group.tasks], axis=0) for member in members])
    owner = {i: k for k, member in enumerate(members) for i in member.shard}

    def swaps(k: int, useless: list[int], offers: list[int]) -> Iterator[tuple[int, int]]:
        """What client k may give and get, each looked for only when the one before is done."""
        left: dict[bytes, Iterator[int]] = {}  # what an owner can't take may go for an image that it can use
        for i in useless:
            if owner[i] == k:
                good = left.setdefault(usable[:, i].tobytes(), iter(offers))
                j = next((j for j in good if owner[j] != k and usable[owner[j], i]), None)
                if j is not None:
                    yield i, j

    wanting = {}
    for k, member in enumerate(members):
        useless = [i for i in member.shard if not usable[k, i]]
        offers = rng.permutation([i for i, m in owner.items() if m != k and usable[k, i]]).tolist() if useless else []
        wanting[k] = swaps(k, useless, offers)
    while wanting:  # one image each in turn, so that none goes without where there are few
        for k, own in list(wanting.items()):
            pair = next(own, None)
            if pair is None:
                del wanting[k]
            else:
                owner[pair[0]], owner[pair[1]] = owner[pair[1]], k
    found: list[list[int]] = [[] for _ in members]
    for i in sorted(owner):
        found[owner[i]].append(i)
    for member, shard in zip(members, found, strict=True):
        member.shard = shard


def _client(member: Member) -> Client:
    tasks = member.group.tasks
    has_label = member.source.has_label
    images = [i for i in member.shard if any(has_label("train", i, task) for task in tasks)]
    for task in tasks:
        if not any(has_label("train", i, task) for i in images):
            raise UserError(
                f"clients: {member.name} has {len(member.shard)} images of {member.source.name} and no label for {task}"
            )
    view = member.source.view("train", tasks, images, prefix=member.prefix, input=member.group.input)
    return Client(member.name, tuple(view.tasks), view, member.data, member.group.epochs, member.architecture)
