"""Holds a finished run against the best prediction that ignores the picture: does each task beat a constant?

    python benchmarks/constant.py runs/nyud_dea

The constants are chosen with knowledge of the validation labels, so they are the strongest of their kind: the
best single class, the mean depth, the mean normal, the better of "edge everywhere" and "edge nowhere".
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fedmtl.commands.configuration import experiment_parser, parse
from fedmtl.data import View
from fedmtl.federation import make_clients, validation_views
from fedmtl.tasks import Depth, Normals, Task


def candidates(task: Task, targets: list[Tensor]) -> list[Tensor]:
    """Constant outputs worth trying, each (channels,)."""
    if isinstance(task, Depth):
        values = torch.cat([t[(t > 0) & (t < task.max_depth)] for t in targets])
        return [values.double().mean().float()[None]]
    if isinstance(task, Normals):
        return [F.normalize(sum(t.double().sum((1, 2)) for t in targets).float(), dim=0)]
    if task.channels == 1:
        return [torch.tensor([20.0]), torch.tensor([-20.0])]
    return list(20 * torch.eye(task.channels))


def best_constant(head: str, task: Task, view: View) -> float:
    """Primary metric of the best constant output over a view of one task."""
    targets = [view[i, 0][head] for i in range(len(view))]
    scores = []
    for output in candidates(task, targets):
        metric = task.metric()
        for target in targets:
            metric.update(output[None, :, None, None].expand(1, -1, *target.shape[-2:]), target[None])
        scores.append(float(metric.compute()[task.primary]))
    return max(scores) if task.metric().higher_is_better else min(scores)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    run = arguments.parse_args().run
    parser = experiment_parser("fit", None)
    objects = parser.instantiate(parse(parser, ["--config", str(run / "config.yaml")]))
    clients = make_clients(objects.clients, objects.data, objects.partition, seed=objects.seed)
    views = validation_views(clients, objects.data).values()
    results = json.loads((run / "results.json").read_text())
    print(f"{'task':<20}{'metric':<10}{'constant':>10}{'run':>10}  beats it")
    for name, primary in results["primary"].items():
        view = next(view for view in views if name in view.tasks)
        constant = best_constant(name, view.tasks[name], view.only([name]))
        value = results["last"]["metrics"][name][primary["metric"]]
        beats = value > constant if primary["higher_is_better"] else value < constant
        print(f"{name:<20}{primary['metric']:<10}{constant:>10.3f}{value:>10.3f}  {'yes' if beats else 'NO'}")


if __name__ == "__main__":
    main()
