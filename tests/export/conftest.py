"""A model as a run leaves it, without the run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedmtl.data import ValTransform
from fedmtl.models import UnifiedModel
from fedmtl.prediction import Heads, Predictor
from fedmtl.runs import Run
from fedmtl.tasks import Depth, SemSeg, Task


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    config: dict[str, Any] = {"model": {"init_args": {"backbone": "test_convnext", "channels": 8}}}
    torch.manual_seed(0)
    tasks: dict[str, Task] = {"semseg": SemSeg(num_classes=3), "depth": Depth()}
    model = UnifiedModel(
        {name: task.channels for name, task in tasks.items()}, **{**config["model"]["init_args"], "pretrained": False}
    )
    run = Run(tmp_path / "run", "run", config, [], None, [], {}, None)
    return Predictor(model, [Heads("scenes", tasks, ValTransform(size=(32, 48)), (32, 48))], run=run)
