"""The model card: a README.md as the Hugging Face hub reads it, written from what a run's folder says."""

import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import PurePath
from typing import Any

import yaml

from fedmtl import __version__
from fedmtl.delta_m import complete_mean
from fedmtl.errors import UserError
from fedmtl.export.outcome import Outcome
from fedmtl.prediction import Predictor
from fedmtl.runs import Run, Values, number
from fedmtl.tasks import Depth, Edge, Normals, Saliency, Task
from fedmtl.tasks.base import ClassTask

PIPELINES = {"semseg": "image-segmentation", "parts": "image-segmentation", "depth": "depth-estimation"}
MANY = 60  # most classes that are named


MARK = "<!-- written by fedmtl export, which replaces this file as long as this line is in it -->"


def model_card(model: Predictor, outcomes: Sequence[Outcome], earlier: Sequence[str] = ()) -> str:
    """The card of a model; names from the run are escaped.

    Args:
        model: the model.
        outcomes: the formats that were written.
        earlier: formats that lie beside them from an earlier export.

    Raises:
        UserError: the run's files say something impossible.
    """
    try:
        return _card(model, outcomes, earlier)
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{model.run.path}: its files make no model card ({reason})") from error


def _card(model: Predictor, outcomes: Sequence[Outcome], earlier: Sequence[str]) -> str:
    run = model.run
    sections = [
        _front(model, [*(one.format for one in outcomes), *earlier]),
        f"# {_title(model)}\n\n{_what(model)}",
        "## Tasks\n\n" + _tasks(model),
        "## Results\n\n" + _results(run, tuple(model.tasks), model.client),
        "## Pictures\n\n" + _pictures(model),
        "## How to load\n\n" + "\n\n".join([*(_loading(outcome) for outcome in outcomes), *map(_left, earlier)]),
        "## Training\n\n" + _training(model),
        "## Limits\n\n" + _limits(run),
        "## Licence\n\nNot chosen yet: it is for whoever publishes this model, within what the licences of the "
        "training pictures and of any pretrained weights allow. Put it into the first lines of this file, too.",
        MARK,
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def escape(text: object) -> str:
    """A name in one line of Markdown, with nothing in it that Markdown or HTML would act on."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&$@:-])", r"\\\1", plain[:200])


def fenced(text: str, language: str = "") -> str:
    """A block of code whose fence is longer than any in it."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _title(model: Predictor) -> str:
    return escape(model.run.name) + ("" if model.client is None else f", client {escape(model.client)}")


def _alone(model: Predictor) -> bool:
    """Whether nothing of it has come from other clients."""
    return model.client is not None and model.run.config.get("share") == "none"


def _front(model: Predictor, formats: Sequence[str]) -> str:
    kinds = [task.name for task in model.tasks.values()]
    front: dict[str, Any] = {"library_name": "timm"} if formats == ["timm"] else {}
    pipelines = {PIPELINES[kind] for kind in kinds if kind in PIPELINES}
    if len(pipelines) == 1:
        front["pipeline_tag"] = pipelines.pop()
    front["tags"] = [] if _alone(model) else ["federated-learning"]
    front["tags"] += ["multi-task-learning", "dense-prediction", *dict.fromkeys(kinds)]
    return f"---\n# license: yours to choose\n{yaml.safe_dump(front, sort_keys=False)}---"


def _what(model: Predictor) -> str:
    backbone = _setting(model.run, "model", "init_args", "backbone") or "its own encoder"
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.model.parts().items()}
    heads = sum(millions.values()) - millions["encoder"]
    after = "" if model.round is None else f" after round {model.round} of {model.run.rounds}"
    what = f"for {len(model.tasks)} dense vision task{'s' * (len(model.tasks) != 1)}"
    if model.client is None:
        what = f"One model {what}, trained across clients that keep their pictures and labels to themselves"
    elif _alone(model):
        what = f"The model of client {escape(model.client)} {what}, trained on its own pictures and labels alone"
    else:
        what = (
            f"The model of client {escape(model.client)} {what}, its own in a federation of clients that keep their "
            "pictures and labels to themselves and share part of what they learn"
        )
    return (
        f"{what}: an encoder ({escape(backbone)}, {millions['encoder']:.2f} M parameters) and one head "
        f"per task ({heads:.2f} M). These are its weights{after}, exported by fedmtl {__version__}."
    )


def _tasks(model: Predictor) -> str:
    rows = [
        f"| {escape(name)} | {escape(task.name)} | {task.channels} | {_meaning(task)} |"
        for name, task in model.tasks.items()
    ]
    lists = [
        f"Classes of {escape(name)}: "
        + ", ".join(f"{i} {escape(label)}" for i, label in enumerate(task.class_names[:MANY]))
        + (f", and {len(task.class_names) - MANY} more" if len(task.class_names) > MANY else "")
        for name, task in model.tasks.items()
        if isinstance(task, ClassTask)
    ]
    return "\n\n".join(["| head | kind | channels | output |\n|---|---|--:|---|\n" + "\n".join(rows), *lists])


def _meaning(task: Task) -> str:
    """What raw outputs of a head are."""
    if isinstance(task, Saliency):
        return "scores; softmax gives the probability of foreground (class 1)"
    if isinstance(task, ClassTask):
        return "a score a class; the largest wins"
    if isinstance(task, Depth):
        return "metres"
    if isinstance(task, Normals):
        return "x, y, z; to be normalised to length 1"
    if isinstance(task, Edge):
        return "a score; sigmoid gives the probability of an edge"
    return "values"


def _results(run: Run, tasks: Collection[str], client: str | None = None) -> str:
    """A table of the primary metrics at the last and the best evaluation, of the tasks that the model has.

    Args:
        run: the run.
        tasks: the model's.
        client: whose own model it is; a run measures no client's by itself.
    """
    last, best = run.at(), run.at(best=True)
    if last is None or best is None:
        return "The run has not been evaluated yet."
    rounds = {"last": last, "best": best}
    changes = {when: run.changes(round) for when, round in rounds.items()}
    heads = [f"{when} (round {round})" + (" | Δ" if changes[when] else "") for when, round in rounds.items()]
    columns = sum(1 + bool(changes[when]) for when in rounds)
    lines = [f"| task | metric | {' | '.join(heads)} |", "|---|---|" + "--:|" * columns]
    for task, primary in run.primary.items():
        if task not in tasks:
            continue
        cells = []
        for when, round in rounds.items():
            value = run.values(round).get(task)
            cells.append("–" if value is None else f"{value:.4g}")
            if changes[when]:
                change = changes[when].get(task)
                cells.append("–" if change is None else f"{change:+.2f} %")
        metric = f"{escape(primary.metric)} {'↑' if primary.higher_is_better else '↓'}"
        how = f" ({escape(primary.protocol)})" if primary.protocol else ""
        lines.append(f"| {escape(task)} | {metric}{how} | {' | '.join(cells)} |")
    measured = ", ".join(f"{escape(name)} ({escape(count)} pictures)" for name, count in (run.validation or {}).items())
    notes = [f"Measured on the validation split of {measured}."] if measured else []
    if client is not None:
        notes.append("Each number is the mean over the clients that have the task, not that of this model alone.")
    elif run.primary.keys() <= set(tasks):
        notes.append(_mean_change(run, changes))
    return "\n".join(lines) + "\n\n" + " ".join(notes)


def _mean_change(run: Run, changes: Mapping[str, Values]) -> str:
    """Δm at each evaluation, over all tasks of the run, or why there is none."""
    overall = {when: complete_mean(found, run.primary) for when, found in changes.items()}
    means = [f"{when} {value:+.2f} %" for when, value in overall.items() if value is not None]
    if means:
        return f"Δm against {escape(run.baseline)}: {', '.join(means)}."
    why = "not every task has a finite Δ" if run.baseline else "the run had no baseline"
    return f"Δm is left out: {why}."


def _pictures(model: Predictor) -> str:
    lines = [
        "Input: RGB, (B, 3, H, W), float32; 8-bit values minus (123.675, 116.28, 103.53), over "
        "(58.395, 57.12, 57.375). Outputs have the input's height and width. As in the run's validation:"
    ]
    for group in model.groups:
        steps = []
        if group.transform.longest:
            steps.append(f"shrink to at most {group.transform.longest} pixels a side")
        if group.transform.size:
            steps.append(
                "after normalisation, pad with zeros on all sides to at least {}×{}".format(*group.transform.size)
            )
        heads = ", ".join(escape(name) for name in group.tasks)
        lines.append(
            f"- {heads}: {'; '.join(steps) or 'nothing else'}; the model saw {group.size[0]}×{group.size[1]} pixels."
        )
    return "\n".join(lines)


def _loading(outcome: Outcome) -> str:
    if outcome.format == "timm":
        code = 'import timm\n\nencoder = timm.create_model("local-dir:timm", pretrained=True, features_only=True)'
        said = f"The encoder alone, for timm. {escape(outcome.note)}"
    elif outcome.format == "torch":
        said = "The whole model as a torch.export program."
        code = (
            'import torch\n\nmodel = torch.export.load("torch/model.pt2").module()\noutputs = model(image)  # by head'
        )
    else:
        said = "The whole model as ONNX; outputs are named by head."
        code = (
            'import onnxruntime\n\nsession = onnxruntime.InferenceSession("onnx/model.onnx")\n'
            'outputs = session.run(None, {"image": image})'
        )
    takes = "" if outcome.format == "timm" else f"It takes {outcome.takes}. "
    return (
        f"{said.strip()} {takes}Largest difference from the original on test pictures: "
        f"{outcome.difference:.2g}, where outputs are up to {outcome.scale:.3g}.\n\n{fenced(code, 'python')}"
    )


def _left(name: str) -> str:
    return f"`{name}/` is of an earlier export; what this card says need not hold for it."


def _training(model: Predictor) -> str:
    run, shares = model.run, dict[str, int]()
    own = [row for row in run.federation if str(row.get("client")) == model.client]
    federation = own if _alone(model) else run.federation
    for row in federation:
        tasks = row.get("tasks")
        key = f"{row.get('data')}, {'+'.join(map(str, tasks)) if isinstance(tasks, list) else '?'}"
        shares[key] = shares.get(key, 0) + int(number(row.get("images")) or 0)
    clients = f"{len(federation)} client{'s' * (len(federation) != 1)}, {run.rounds} rounds"
    lines = [f"{clients}. Training pictures by data set and tasks:", ""] if federation else []
    lines += [f"- {escape(key)}: {images}" for key, images in list(shares.items())[:MANY]]
    if own and not _alone(model):
        lines += ["", f"Of these {int(number(own[0].get('images')) or 0)} are this client's own."]
    config = _without_paths(run.config)
    return (
        "\n".join(lines)
        + "\n\nThe configuration that made it, without local paths:\n\n"
        + fenced(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "yaml")
    )


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what says more of a machine than of the model."""
    kept = {key: deepcopy(value) for key, value in config.items() if key not in ("out", "tracker", "fabric", "states")}

    def clean(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: clean(value) for key, value in node.items() if key != "cache"}
        if isinstance(node, list):
            return [clean(value) for value in node]
        return PurePath(node).name if isinstance(node, str) and PurePath(node).is_absolute() else node

    cleaned: dict[str, Any] = clean(kept)
    return cleaned


def _limits(run: Run) -> str:
    finished = "" if run.finished else f" The run was not finished: {run.round} of {run.rounds} rounds."
    return (
        "The model has learnt from the pictures above and their labels alone; on other cameras, places or subjects it "
        "may be wrong without showing it. Its outputs are no measurements, and it must not be what safety rests on. "
        "That the clients kept their pictures does not show that none can be inferred from the weights." + finished
    )


def _setting(run: Run, *keys: str) -> Any:
    tree: Any = run.config
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
