"""An experiment: every key of a configuration file, checked and built into an orchestrator."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from fedmtl.aggregation import UploadTransform
from fedmtl.client import SERVERS, ClientGroup, ClientModule, LocalTraining, ModelFactory
from fedmtl.data import DataSource, Partition, View
from fedmtl.diagnostics import Diagnostics
from fedmtl.engine import Distributed, FabricConfig, InProcess
from fedmtl.errors import UserError
from fedmtl.faults import Faults
from fedmtl.federation import make_clients, validation_views
from fedmtl.matching import first_conv
from fedmtl.orchestrator import Orchestrator
from fedmtl.payload import Values
from fedmtl.seeding import derive_seed
from fedmtl.server import Server
from fedmtl.tracking import Tracker


class Experiment:
    """One federated experiment.

    Args:
        name: name of the run, and of its folder under `out`.
        out: folder of all runs.
        seed: decides everything random in the run: weights, shards, order, augmentation, sampling.
        rounds: rounds of the federation.
        data: the data set; or several by name, and then heads are named ``<data set>_<task>``.
        clients: groups of clients, each with its tasks, and its data set if there are several.
        partition: how the training images of a data set are shared out among its clients.
        model: the unified model; groups of clients may have one of another architecture.
        local: how a client trains.
        upload: transforms of a client's update before it is sent, in order.
        server: how updates are merged.
        share: what clients share. ``model``: encoder and heads; ``encoder``: heads stay with their clients;
            ``none``: no federation, each client trains alone.
        participation: share of the clients that train in a round, in (0, 1].
        faults: clients that fail, drop out or are too slow, simulated; null for none.
        payload: number format of the values that clients send: ``fp32``, or ``bf16`` or ``fp16`` with a scale a tensor.
        states: where what clients keep waits between their rounds: ``memory``, or ``disk``, which is for thousands.
        eval_every: rounds between evaluations on the whole validation split.
        eval_batch_size: images a batch in evaluation.
        checkpoint_every: rounds between checkpoints.
        pictures: validation images that are drawn at an evaluation; 0 for none.
        diagnostics: how often, and how, the interference of the clients' updates is measured; null for never.
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
        data: DataSource | dict[str, DataSource],
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
        faults: Faults | None = None,
        payload: Values = "fp32",
        states: Literal["memory", "disk"] = "memory",
        eval_every: int = 1,
        eval_batch_size: int = 16,
        checkpoint_every: int = 1,
        pictures: int = 4,
        diagnostics: Diagnostics | None = None,
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
        self.local = local

        members = make_clients(clients, data, partition, seed=seed)
        validation = validation_views(members, data)
        tasks = {name: task for view in validation.values() for name, task in view.tasks.items()}

        server = server or Server()
        check_optimizer("local.optimizer", local.optimizer)
        check_optimizer("server.optimizer", server.make_optimizer)
        if share == "none":
            unused = {"upload": bool(upload), "server": server.personal, "diagnostics": diagnostics is not None}
            unused |= {f"server.{key}": True for key in server.given}
            for key in (key for key, given in unused.items() if given):
                raise ValueError(f"{key}: nothing is sent with share: none; leave {key} out")
        algorithm = local.algorithm
        algorithm.check(share)
        several = any(client.architecture != SERVERS for client in members)
        if several and algorithm.sends_vectors:
            raise ValueError(
                f"local.algorithm: {type(algorithm).__name__} exchanges vectors of one architecture; "
                "leave out the groups' model, input and private"
            )
        server.check(algorithm=algorithm, upload=upload or [], several_architectures=several and share != "none")
        settings = fabric or FabricConfig()
        if settings.reduce == "fast":
            server.check_sums(algorithm)
            if diagnostics is not None:
                raise ValueError("fabric.reduce: diagnostics look at each client's update; take reduce: exact")
        device = settings.build()
        torch.manual_seed(derive_seed(seed, "weights"))
        channels = {name: task.channels for name, task in tasks.items()}
        module = ClientModule(model(channels, 3), tasks)
        rules: dict[str, Callable[[str], bool]] = {
            "model": lambda part: True,
            "encoder": lambda part: part == "encoder",
            "none": lambda part: False,
        }
        shared = rules[share]
        self.worker = InProcess(
            fabric=device,
            module=module,
            local=local,
            upload=upload or [],
            shared=shared,
            seed=seed,
            rounds=rounds,
            workers=settings.workers,
            eval_batch_size=eval_batch_size,
            channels_last=settings.channels_last,
            compile=settings.compile,
        )
        for i, group in enumerate(clients):
            of_group = [client for client in members if client.architecture == f"clients[{i}]"]
            if of_group:
                torch.manual_seed(derive_seed(seed, "weights"))  # equal models start from equal weights
                own = ClientModule((group.model or model)(channels, of_group[0].images.channels), tasks)
                private = group.private
                if private is None:
                    private = first_conv(own.model.encoder) if group.input != "image" else []
                resident = self.worker.add_architecture(f"clients[{i}]", own, match=group.match, private=private)
                if share != "none" and resident.sharing(["encoder"])[0] == 0:
                    raise UserError(
                        f"clients[{i}].model: its encoder has no tensor in common with the server's by {group.match}; "
                        "take a related backbone, match: leading, or share: none"
                    )
        for client in {(id(c.images.source), c.architecture): c for c in members}.values():
            images = client.images
            for view in (images, images.source.view("val", list(images.names.values()), input=images.input)):
                self._check_image_size(view, client.architecture)
        parts = {client.name: [name for name in client.parts if shared(name)] for client in members}
        server.start(
            self.worker.state(),
            rule=algorithm.server(),
            parts=parts,
            examples={client.name: len(client.images) for client in members},
            layouts=self.worker.layouts(),
        )
        engine = Distributed(self.worker, members, reduce=settings.reduce, values=payload)
        self.orchestrator = Orchestrator(
            engine=engine,
            server=server,
            validation=validation,
            unified=share == "model" and not (server.personal or algorithm.personal or several),
            rounds=rounds,
            seed=seed,
            participation=participation,
            eval_every=eval_every,
            checkpoint_every=checkpoint_every,
            pictures=pictures,
            diagnostics=diagnostics,
            faults=faults,
            states_on_disk=states == "disk",
        )
        if baseline:
            self.orchestrator.compare_with(baseline)
        sampled = len(self.orchestrator.sample(1))
        for key, fewest in {"min_clients": server.min_clients, "aggregator": server.aggregator.fewest}.items():
            if fewest > sampled:
                raise ValueError(f"server.{key} needs {fewest} clients, but only {sampled} train in a round")

    def sharing(self) -> dict[str, dict[str, str]]:
        """Where clients differ in architecture: by client, what it reads, how large its model is, and how much of that
        and of the server's it shares."""
        rows = {}
        for client in self.orchestrator.clients if len(self.worker.residents) > 1 else ():
            names = [name for name in client.parts if self.worker.shared(name)]
            resident = self.worker.residents[client.architecture]
            shared, server = resident.sharing(names) if names else (0, 0)
            whole = sum(resident.parts[name].vector.numel() for name in client.parts)
            rows[client.name] = {
                "input": client.images.input,
                "weights": f"{whole / 1e6:.2f} M",
                "shares": f"{shared / whole:.0%}",
                "of the server's": f"{shared / server:.0%}" if server else "0%",
            }
        return rows

    def _check_image_size(self, images: View, architecture: str) -> None:
        """Tries the model on the first image: some backbones take only certain sizes."""
        image = images[0, 0]["image"]
        try:
            with torch.inference_mode():
                self.worker.residents[architecture].module.eval()(image[None].to(self.worker.fabric.device))
        except Exception as error:
            size = "×".join(map(str, image.shape[-2:]))
            key = "model" if architecture == SERVERS else f"{architecture}.model"
            raise UserError(f"{key}.backbone: it can't take images of {size} pixels: {error}") from error


def check_optimizer(key: str, make: Callable[[Iterable[Tensor]], Optimizer]) -> None:
    """Makes an optimizer and takes a step with it, to meet a wrong value before training does."""
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.zeros(1)
    try:
        make([parameter]).step()
    except Exception as error:
        raise UserError(f"{key}: {error}") from error
