"""A federation of quadratics f_k(x) = ½(x − b_k)ᵀA_k(x − b_k), run by the real engine and the real server."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn

from fedmtl.algorithms import FedAvg, LocalAlgorithm
from fedmtl.client import Client, LocalTraining
from fedmtl.client_state import ClientState, Kept
from fedmtl.engine import FabricConfig, InProcess
from fedmtl.server import Server

D = 4  # entries of the encoder; a head has 2
Array = np.ndarray


@dataclass
class Data:
    """A client's batches, and how many images it says to have."""

    curvatures: list[Array]
    centres: list[Array]
    examples: int = 1

    def __len__(self) -> int:
        return self.examples

    def __iter__(self) -> Any:
        for curvature, centre in zip(self.curvatures, self.centres, strict=True):
            yield {"curvature": torch.from_numpy(curvature).float(), "centre": torch.from_numpy(centre).float()}

    def gradient(self, batch: int, x: Array) -> Array:
        return self.curvatures[batch] @ (x - self.centres[batch])


def data(seed: int, *, d: int = D, batches: int = 1, repeat: int = 1, examples: int = 1) -> Data:
    """Random positive definite curvatures with eigenvalues in [0.2, 2], and centres; `repeat` repeats them all."""
    rng = np.random.default_rng([seed, d])
    curvatures, centres = [], []
    for _ in range(batches):
        basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
        curvatures.append(basis @ np.diag(rng.uniform(0.2, 2, d)) @ basis.T)
        centres.append(3 * rng.normal(size=d))
    return Data(curvatures * repeat, centres * repeat, examples)


def optimum(clients: Sequence[Data], weights: Sequence[float] | None = None) -> Array:
    """The minimiser of the weighted mean of the clients' objectives, each with one curvature."""
    weights = weights or [1.0] * len(clients)
    total = sum(w * c.curvatures[0] for w, c in zip(weights, clients, strict=True))
    return np.linalg.solve(
        total, sum(w * c.curvatures[0] @ c.centres[0] for w, c in zip(weights, clients, strict=True))
    )


def resting_point(clients: Sequence[Data], rate: float, steps: Sequence[int], scales: Sequence[float]) -> Array:
    """Where Σ_k s_k Δ_k = 0: each client's Δ_k = −(I − (I − ηA_k)^K_k)(θ − b_k) after K_k steps of gradient descent."""
    eye = np.eye(len(clients[0].centres[0]))
    pulls = [
        scale * (eye - np.linalg.matrix_power(eye - rate * client.curvatures[0], count))
        for client, count, scale in zip(clients, steps, scales, strict=True)
    ]
    return np.linalg.solve(sum(pulls), sum(m @ c.centres[0] for m, c in zip(pulls, clients, strict=True)))


class Vector(nn.Module):
    def __init__(self, d: int, seed: int) -> None:
        super().__init__()
        values = torch.from_numpy(np.random.default_rng([seed, d]).normal(size=d)).float()
        self.low, self.high = nn.Parameter(values[:1].clone()), nn.Parameter(values[1:].clone())

    def forward(self) -> Tensor:
        return torch.cat([self.low, self.high])


class Quadratic(LightningModule):
    """A client's x is the encoder's vector and that of its heads, one behind the other."""

    def __init__(self, heads: Sequence[str]) -> None:
        super().__init__()
        self.encoder = Vector(D, 0)
        self.heads = nn.ModuleDict({name: Vector(2, 1) for name in heads})
        parts = {"encoder": self.encoder, **{f"heads.{name}": head for name, head in self.heads.items()}}
        self.active: tuple[str, ...] = ()
        self.__dict__["model"] = SimpleNamespace(parts=lambda: parts)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        away = torch.cat([self.encoder(), *(self.heads[name]() for name in self.active)]) - batch["centre"]
        return {"loss": away @ batch["curvature"] @ away / 2}


class Engine(InProcess):
    """Its clients' batches come as they are, in every epoch."""

    def prepare(self, clients: Sequence[Client], round: int, **options: Any) -> None:
        pass

    def _plan(self, client: Client, round: int) -> Any:
        return [(phase, [client.images] * phase.epochs) for phase in self.local.phases(client)]


def sgd(rate: float, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, **options)


class Federation:
    """Clients with `images`, and with `tasks` (none: the encoder alone) and local `epochs` of their own."""

    def __init__(
        self,
        algorithm: LocalAlgorithm | None,
        images: Sequence[Data],
        *,
        rate: float = 0.1,
        tasks: Sequence[Sequence[str]] | None = None,
        epochs: Sequence[int] | None = None,
        weighting: Any = "uniform",
        shared: Callable[[str], bool] = lambda part: True,
        upload: Sequence[Any] = (),
        aggregator: Any = None,
        **local: Any,
    ) -> None:
        tasks, epochs = tasks or [()] * len(images), epochs or [1] * len(images)
        named = zip(images, tasks, epochs, strict=True)
        self.clients = [Client(f"{i}", tuple(own), one, "", count) for i, (one, own, count) in enumerate(named)]
        heads = sorted({task for own in tasks for task in own})
        local = {"optimizer": sgd(rate), "keep_optimizer": False, **local}
        self.algorithm = algorithm or FedAvg()
        self.engine = Engine(
            fabric=FabricConfig(accelerator="cpu").build(),
            module=Quadratic(heads),
            local=LocalTraining(algorithm=self.algorithm, **local),
            upload=upload,
            shared=shared,
            seed=0,
            rounds=1000,
        )
        self.server = Server(weighting=weighting, aggregator=aggregator)
        parts = {client.name: [part for part in client.parts if shared(part)] for client in self.clients}
        examples = {client.name: len(client.images) for client in self.clients}
        rule, layouts = self.algorithm.server(), self.engine.layouts()
        self.server.start(self.engine.state(), rule=rule, parts=parts, examples=examples, layouts=layouts)
        self.rounds = 0

    def round(self, chosen: Sequence[int] | None = None) -> list[Any]:
        """One round of the chosen clients (default: all); what their training gave."""
        self.rounds += 1
        results = []
        beside = self.server.broadcast()
        for i in range(len(self.clients)) if chosen is None else chosen:
            client = self.clients[i]
            state = self.server.model_for(client.name)
            result = self.engine.train(client, state, self.rounds, lambda: None, beside=beside)
            if self.server.receive(result.update):
                client.kept = Kept(self.rounds, result.state)
            results.append(result)
        self.server.step()
        return results

    def point(self, part: str = "encoder") -> Array:
        return self.server.state[part].vector.double().numpy().copy()

    def converge(self, rounds: int) -> Array:
        for _ in range(rounds):
            self.round()
        return self.point()

    def attractor(self) -> Array:
        """Where rounds lead to, for an algorithm without memory: one of full participation is then an affine map."""
        vector, images = self.server.state["encoder"].vector, []
        for start in (np.zeros(D), *np.eye(D)):
            vector.copy_(torch.from_numpy(start))
            self.round()
            images.append(self.point())
        matrix = np.stack(images[1:], axis=1) - images[0][:, None]
        assert np.abs(np.linalg.eigvals(matrix)).max() < 1
        return np.linalg.solve(np.eye(D) - matrix, images[0])

    def saved(self) -> Any:
        """All that a checkpoint holds, written to a file and read from it."""
        states = {client.name: client.state.state_dict() for client in self.clients}
        file = io.BytesIO()
        torch.save({"server": self.server.state_dict(), "clients": states, "rounds": self.rounds}, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def load(self, saved: Any) -> None:
        self.server.load_state_dict(saved["server"])
        for client in self.clients:
            client.kept = Kept(saved["rounds"], ClientState.from_state_dict(saved["clients"][client.name]))
        self.rounds = saved["rounds"]


def double(vectors: Mapping[str, Tensor], part: str = "encoder") -> Array:
    return vectors[part].double().numpy()


def interrupted(make: Callable[[], Federation], rounds: Sequence[Sequence[int]]) -> tuple[Federation, Federation]:
    """Two that go on alike for all of these rounds, after two of them: one without a break, one from what was saved."""
    one, other = make(), make()
    for chosen in rounds[:2]:
        one.round(chosen)
    other.load(one.saved())
    for chosen in rounds:
        one.round(chosen)
        other.round(chosen)
    return one, other
