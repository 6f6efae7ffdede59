"""The encoder as a folder that timm loads: ``timm.create_model("local-dir:FOLDER", pretrained=True, …)``."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from fedmtl.data.transforms import MEAN, STD
from fedmtl.errors import UserError
from fedmtl.export.outcome import Outcome
from fedmtl.export.programs import sample_pictures
from fedmtl.prediction import Predictor

# of timm's own description of the architecture: what does not tell where weights or labels come from
KEPT = ("input_size", "fixed_input_size", "first_conv", "interpolation", "pool_size")


@torch.inference_mode()
def write_encoder(model: Predictor, folder: Path, size: tuple[int, int]) -> Outcome:
    """Writes ``model.safetensors`` and ``config.json`` into a folder, and compares features with the original's.

    Timm's feature pyramids name weights otherwise than its plain models (``stages_0…`` for ``stages.0…``), and load
    files with the plain names. So the file has these; which is which is found by having timm load a file whose tensors
    hold their own numbers. Tensors of the plain model that the pyramid lacks, such as a last norm, have timm's initial
    values: nothing trained them.

    Raises:
        UserError: the model is of a class of the user's own that is not made of a timm backbone.
    """
    chosen = (model.run.config.get("model") or {}).get("init_args") or {}
    name, options = chosen.get("backbone", "convnext_atto"), dict(chosen.get("options") or {})
    body: nn.Module = model.model.encoder.body
    if not isinstance(name, str) or not timm.is_model(name):
        raise UserError(f"model.backbone: timm has no model {name!r}")
    if name.startswith("swin"):  # as FeaturePyramid has it
        options = {"strict_img_size": False, "always_partition": True, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = timm.create_model(name, num_classes=0, **options)
        weights = {key: value.detach().clone().contiguous() for key, value in plain.state_dict().items()}
        _write_config(folder, name, options, plain)
        own = body.state_dict()
        used = _plain_names(folder, weights, set(own))
        safetensors.torch.save_file(
            {**weights, **{used[key]: value.detach().clone().contiguous() for key, value in own.items()}},
            folder / "model.safetensors",
            {"format": "pt"},
        )
        (folder / "model.safetensors").chmod(0o644)
        loaded = _load(folder, features_only=True).eval()
        timm.create_model(f"local-dir:{folder}", pretrained=True)  # the plain model takes the file, too
    test = sample_pictures(1, size)
    stride = model.model.encoder.strides[-1]
    test = nn.functional.pad(test, (0, -size[1] % stride, 0, -size[0] % stride))
    pairs = list(zip(body(test), loaded(test), strict=True))
    left = sorted(set(weights) - set(used.values()))
    note = f"{', '.join(left)} have timm's initial values, since the feature pyramid has no such layer." if left else ""
    return Outcome(
        "timm",
        difference=max(_difference(one, other) for one, other in pairs),
        scale=max(1.0, *(float(one.abs().max()) for one, _ in pairs)),
        size=size,
        note=note,
    )


def _plain_names(folder: Path, weights: dict[str, Tensor], wanted: set[str]) -> dict[str, str]:
    """The plain model's name of each of the pyramid's tensors, found by loading tensors that hold their numbers."""
    names = list(weights)
    marked = {name: torch.full_like(weights[name], number + 1) for number, name in enumerate(names)}
    safetensors.torch.save_file(marked, folder / "model.safetensors", {"format": "pt"})
    found: dict[str, str] = {}
    for key, value in _load(folder, features_only=True).state_dict().items():
        first = float(value.flatten()[0])
        if not bool((value == first).all()) or not 1 <= first <= len(names):
            raise UserError(f"timm changes {key} as it loads it, so its weights can't be handed on")
        found[key] = names[int(first) - 1]
    if found.keys() != wanted or len(set(found.values())) < len(found):
        raise UserError("timm makes another model of this configuration than the run had")
    return found


def _load(folder: Path, **options: Any) -> nn.Module:
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True, **options)
    return model


def _write_config(folder: Path, name: str, options: dict[str, Any], plain: nn.Module) -> None:
    theirs: dict[str, Any] = dict(getattr(plain, "pretrained_cfg", {}))
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": getattr(plain, "num_features", None),
        "pretrained_cfg": {
            **{key: theirs[key] for key in KEPT if theirs.get(key) is not None},
            "num_classes": 0,
            "mean": [round(float(value) / 255, 6) for value in MEAN.flatten()],
            "std": [round(float(value) / 255, 6) for value in STD.flatten()],
        },
        "model_args": {"num_classes": 0, **options},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
