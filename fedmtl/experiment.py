"""An experiment: every key of a configuration file, checked and built into an orchestrator."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from fedmtl.aggregation import UploadTransform
from fedmtl.client import Client, ClientGroup, ClientModule, LocalTraining
from fedmtl.data import IID, DataSource, Partition
from fedmtl.engine import FabricConfig, InProcess
from fedmtl.errors import UserError
from fedmtl.models import UnifiedModel
from fedmtl.orchestrator import Orchestrator
from fedmtl.seeding import derive_seed, numpy_stream
from fedmtl.server import Server
from fedmtl.tracking import Tracker

ModelFactory = Callable[[Mapping[str, int]], UnifiedModel]


class Experiment:
    """One federated experiment.

    Args:
        name: name of the run, and of its folder under `out`.
        out: folder of all runs.
        seed: decides everything random in the run: weights, shards, order, augmentation, sampling.
        rounds: rounds of the federation.
        data: the data set.
        clients: groups of clients, each with its tasks.
        partition: how the training images are shared out among the clients.
        model: the unified model.
        local: how a client trains.
        upload: transforms of a client's update before it is sent, in order.
        server: how updates are merged.
        share: what clients share. ``model``: encoder and heads; ``encoder``: heads stay with their clients;
            ``none``: no federation, each client trains alone.
        participation: share of the clients that train in a round, in (0, 1].
        eval_every: rounds between evaluations on the whole validation split.
        eval_batch_size: images a batch in evaluation.
        checkpoint_every: rounds between checkpoints.
        pictures: validation images that are drawn at an evaluation; 0 for none.
        baseline: folder or results.json of a finished run that Δm compares with.
        tracker: where metrics go besides the run's own folder; null for nowhere.
        fabric: device, precision, threads.

    Raises:
        ValueError: a value is out of its range.
        UserError: data, weights or baseline can't be used.
    """

    def __init__(
        self,
        *,
        name: str,
        data: DataSource,
        clients: list[ClientGroup],
        model: ModelFactory,
        local: LocalTraining,
        rounds: int,
        out: str = "runs",
        seed: int = 0,
        partition: Partition | None = None,
        upload: list[UploadTransform] | None = None,
        server: Server | None = None,
        share: Literal["model", "encoder", "none"] = "model",
        participation: float = 1.0,
        eval_every: int = 1,
        eval_batch_size: int = 16,
        checkpoint_every: int = 1,
        pictures: int = 4,
        baseline: str | None = None,
        tracker: Tracker | None = None,
        fabric: FabricConfig | None = None,
    ) -> None:
        counts = {
            "rounds": rounds,
            "eval_every": eval_every,
            "eval_batch_size": eval_batch_size,
            "checkpoint_every": checkpoint_every,
        }
        for key, value in counts.items():
            if value < 1:
                raise ValueError(f"{key} must be at least 1, not {value}")
        if not 0 < participation <= 1:
            raise ValueError(f"participation must be in (0, 1], not {participation}")
        if pictures < 0:
            raise ValueError(f"pictures must be at least 0, not {pictures}")
        self.name, self.out, self.rounds, self.tracker = name, out, rounds, tracker

        members = make_clients(clients, data, partition or IID(), seed)
        tasks = [task for task in data.tasks if any(task in client.tasks for client in members)]
        validation = data.view("val", tasks)

        server = server or Server()
        check_optimizer("local.optimizer", local.optimizer)
        check_optimizer("server.optimizer", server.make_optimizer)
        if upload and share == "none":
            raise ValueError("upload: nothing is sent with share: none; leave upload out")
        settings = fabric or FabricConfig()
        device = settings.build()
        torch.manual_seed(derive_seed(seed, "weights"))
        module = ClientModule(model({task: data.tasks[task].channels for task in tasks}), validation.tasks)
        shared = {"model": lambda part: True, "encoder": lambda part: part == "encoder", "none": lambda part: False}
        self.engine = InProcess(
            fabric=device,
            module=module,
            local=local,
            upload=upload or [],
            shared=shared[share],
            seed=seed,
            rounds=rounds,
            workers=settings.workers,
            eval_batch_size=eval_batch_size,
        )
        self._check_image_size(members[0])
        server.start(self.engine.state())
        self.orchestrator = Orchestrator(
            engine=self.engine,
            server=server,
            clients=members,
            validation=validation,
            unified=share == "model",
            rounds=rounds,
            seed=seed,
            participation=participation,
            eval_every=eval_every,
            checkpoint_every=checkpoint_every,
            pictures=pictures,
        )
        if baseline:
            self.orchestrator.compare_with(baseline)
        sampled = len(self.orchestrator.sample(1))
        if server.min_clients > sampled:
            raise ValueError(f"server.min_clients is {server.min_clients}, but only {sampled} clients train in a round")

    def _check_image_size(self, client: Client) -> None:
        """Tries the model on a training image: some backbones take only certain sizes."""
        image = client.images[0, 0]["image"]
        try:
            with torch.inference_mode():
                self.engine.module.eval()(image[None].to(self.engine.fabric.device))
        except Exception as error:
            size = "×".join(map(str, image.shape[-2:]))
            raise UserError(f"model.backbone: it can't take images of {size} pixels: {error}") from error


def check_optimizer(key: str, make: Callable[[Iterable[Tensor]], Optimizer]) -> None:
    """Makes an optimizer and takes a step with it, to meet a wrong value before training does."""
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.zeros(1)
    try:
        make([parameter]).step()
    except Exception as error:
        raise UserError(f"{key}: {error}") from error


def make_clients(groups: Sequence[ClientGroup], data: DataSource, partition: Partition, seed: int) -> list[Client]:
    """The clients of all groups, each with its shard of the train split.

    Raises:
        UserError: no clients, a group without tasks, a task that the data set lacks, or too few images.
    """
    if not groups:
        raise UserError("clients: the list is empty; give at least one group, e.g. [{tasks: [depth]}]")
    names: list[str] = []
    tasks: list[tuple[str, ...]] = []
    for i, group in enumerate(groups):
        if not group.tasks or group.count < 1:
            raise UserError(f"clients[{i}]: needs at least one task and a count of at least 1")
        unknown = [task for task in group.tasks if task not in data.tasks]
        if unknown:
            raise UserError(f"clients[{i}].tasks: {data.name} has no {unknown[0]!r}; it has {', '.join(data.tasks)}")
        if len(set(group.tasks)) < len(group.tasks):
            raise UserError(f"clients[{i}].tasks: {group.tasks} names a task twice")
        names += [group.name or "+".join(group.tasks)] * group.count
        tasks += [tuple(group.tasks)] * group.count
    names = _numbered(names)
    if len(set(names)) < len(names) or any("/" in name for name in names):
        raise UserError(f"clients: names must differ and hold no '/', not {', '.join(names)}")
    size = len(data.ids("train"))
    if size < len(names):
        raise UserError(f"clients: {len(names)} clients can't share {size} training images; each needs at least one")
    shards = partition.split(size, len(names), numpy_stream(seed, "partition"))
    return [
        Client(name, own, data.view("train", own, shard)) for name, own, shard in zip(names, tasks, shards, strict=True)
    ]


def _numbered(names: list[str]) -> list[str]:
    """Names that occur more than once get -1, -2, …"""
    total, seen = Counter(names), Counter[str]()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if total[name] == 1 else f"{name}-{seen[name]}")
    return result
