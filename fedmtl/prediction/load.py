"""From a run's folder to its model: the unified one, or that of one client."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from lightning import Fabric
from torch import Tensor, nn

from fedmtl import runs
from fedmtl.checkpoint import Checkpoints
from fedmtl.client_state import ClientState, Kept, file_name
from fedmtl.data.description import meant
from fedmtl.engine import FabricConfig
from fedmtl.errors import UserError
from fedmtl.models import UnifiedModel
from fedmtl.prediction.heads import FILE, AllHeads, Heads, named_class, read_heads
from fedmtl.prediction.predictor import Predictor
from fedmtl.vector import Layout, PartState, State

Accelerator = Literal["auto", "cpu", "cuda", "mps"]


def load(
    run: str | Path,
    *,
    checkpoint: Literal["last", "best"] = "last",
    client: str | None = None,
    accelerator: Accelerator | None = None,
    heads: AllHeads | None = None,
) -> Predictor:
    """The model of a run, ready for any pictures, in the precision that the run evaluated it in.

    Args:
        run: folder of the run, finished or not.
        checkpoint: the ``last`` or the ``best``; without any, the weights that a finished run left in ``unified/``.
        client: whose model; the unified one if not given.
        accelerator: where it computes; if not given, where the run did, or on whatever GPU there is if that did on one.
        heads: the heads, for a run whose folder does not tell them.

    Raises:
        UserError: it is no run, has no such model or checkpoint, a file is damaged, or names a class that is not
            trusted (see docs/safety.md).
    """
    read = runs.read(run)
    told = heads or read_heads(read.path)
    if told is None:
        raise UserError(f"{run} has no {FILE}, which tells its tasks; fedmtl predict takes them from its data")
    if client is None and not told.unified:
        names = runs.printable(", ".join(str(row.get("client")) for row in read.federation[:12]))
        raise UserError(f"{run} has no unified model ({_why_not(read.config)}); --client takes one of {names}")
    saved = _saved(read, checkpoint, unified=client is None)
    try:
        groups = told.groups if client is None else _groups_of(read, client, told.groups)
        model = _model(read, {name: task.channels for group in groups for name, task in group.tasks.items()})
        if isinstance(saved, Path):
            weights = safetensors.torch.load_file(saved)
        elif client is None:
            weights = _weights(model, _state(saved["server"]["parts"]))
        else:
            weights = _weights(model, _clients_state(read, client, saved, model))
        model.load_state_dict(weights)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{run}: its checkpoint, config.yaml and {FILE} do not fit together ({reason})") from error
    fabric, channels_last = _fabric(read, accelerator)
    return Predictor(
        model,
        groups,
        run=read,
        round=None if isinstance(saved, Path) else saved["round"],
        fabric=fabric,
        channels_last=channels_last,
        client=None if told.unified else client,
    )


def _saved(run: runs.Run, which: Literal["last", "best"], *, unified: bool) -> dict[str, Any] | Path:
    """A checkpoint's state, or the file of the finished run's weights."""
    checkpoints, finished = Checkpoints(run.path / "checkpoints"), run.path / "unified" / "model.safetensors"
    if unified and which == "last" and not checkpoints.all() and finished.is_file():
        return finished
    return checkpoints.load(which)


def _model(run: runs.Run, channels: Mapping[str, int]) -> UnifiedModel:
    """The model of a run's configuration, with weights that mean nothing; no file or network is asked for any."""
    where, chosen = f"{run.path / 'config.yaml'}: model", run.config.get("model")
    if not isinstance(chosen, dict) or not isinstance(chosen.get("class_path"), str):
        raise UserError(f"{where} names no class")
    kind = named_class(chosen["class_path"], UnifiedModel, where)
    arguments = dict(chosen.get("init_args") or {})
    arguments |= {key: value for key, value in {"pretrained": False, "weights": None}.items() if key in arguments}
    before = torch.get_rng_state()
    try:
        return kind(channels, 3, **arguments)
    finally:
        torch.set_rng_state(before)


def _fabric(run: runs.Run, accelerator: Accelerator | None) -> tuple[Fabric, bool]:
    """The run's settings for one process, and `channels_last`; `compile` would only make it start later."""
    chosen = run.config.get("fabric") or {}
    if not isinstance(chosen, dict):
        raise UserError(f"{run.path / 'config.yaml'}: fabric: expected keys and values, found {str(chosen)[:80]!r}")
    kept = {key: chosen[key] for key in ("precision", "threads", "channels_last") if key in chosen}
    theirs: Accelerator = "cpu" if chosen.get("accelerator") == "cpu" else "auto"
    try:
        settings = FabricConfig(accelerator=accelerator or theirs, **kept)
        return settings.build(), bool(settings.channels_last)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{run.path / 'config.yaml'}: fabric: {error}") from error


def _weights(model: UnifiedModel, state: State) -> dict[str, Tensor]:
    """The state dict of a model whose parts have these weights."""
    weights: dict[str, Tensor] = {}
    for name, part in model.parts().items():
        views = _layout(part).views(state[name].vector)
        own = dict(zip(_layout(part).names, views, strict=True)) | state[name].buffers
        weights |= {f"{name}.{key}": value for key, value in own.items()}
    return weights


def _layout(part: nn.Module) -> Layout:
    named = list(part.named_parameters())
    return Layout(tuple(name for name, _ in named), tuple(parameter.shape for _, parameter in named))


def _state(parts: Mapping[str, Mapping[str, Any]]) -> State:
    return {name: PartState(**part) for name, part in parts.items()}


def _clients_state(run: runs.Run, client: str, saved: Mapping[str, Any], model: UnifiedModel) -> State:
    """What a client is measured by: its own model where it has one, else the parts it shares with those it keeps."""
    server = _state(saved["server"]["parts"] | saved["server"].get("models", {}).get(client, {}))
    round = saved["clients"].get(client, 0)
    path = run.path / "checkpoints" / "states" / file_name(client, round)
    kept = Kept(round, path=path).state if round else ClientState()
    share = run.config.get("share", "model")
    shared = {name for name in model.parts() if share == "model" or (share == "encoder" and name == "encoder")}
    return kept.own or {
        name: server[name] if name in shared else kept.personal.get(name, server[name]) for name in model.parts()
    }


def _groups_of(run: runs.Run, client: str, groups: tuple[Heads, ...]) -> tuple[Heads, ...]:
    """The heads of one client.

    Raises:
        UserError: there is no such client, or its architecture is its own.
    """
    rows = {str(row.get("client")): row for row in run.federation}
    if client not in rows:
        there = runs.printable(", ".join(rows))
        raise UserError(f"--client: {run.path} has no client {client!r}{meant(client, rows)}; it has {there}")
    places = [group for group in run.config["clients"] for _ in range(group.get("count", 1))]
    group, row = places[list(rows).index(client)], rows[client]
    if _differs(group):
        raise UserError(
            f"--client: {client} has an architecture or input of its own; its model can't be used alone yet"
        )
    names = {*row["tasks"], *(f"{row['data']}_{task}" for task in row["tasks"])}
    own = [
        (g, {name: task for name, task in g.tasks.items() if name in names}) for g in groups if g.data == row["data"]
    ]
    return tuple(Heads(g.data, tasks, g.transform, g.size) for g, tasks in own)


def _differs(group: Any) -> bool:
    """Whether a group of clients has an architecture of its own."""
    if not isinstance(group, Mapping):
        return False
    return bool(group.get("model") or group.get("private") or group.get("input", "image") != "image")


def _why_not(config: Mapping[str, Any]) -> str:
    """Why a run has no unified model."""
    share = config.get("share")
    if share != "model":
        heads = "each client keeps its own heads" if share == "encoder" else "each client trains alone"
        return runs.printable(f"share: {share}, {heads}")
    clients = config.get("clients")
    if isinstance(clients, list) and any(map(_differs, clients)):
        return "some clients have an architecture or input of their own"
    return "its method gives each client a model of its own"
