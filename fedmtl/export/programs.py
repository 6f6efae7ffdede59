"""The whole model as a program that needs none of this package: torch.export's .pt2, and ONNX."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedmtl.errors import UserError
from fedmtl.export.outcome import Outcome
from fedmtl.models import UnifiedModel
from fedmtl.prediction import Predictor
from fedmtl.seeding import numpy_stream

# which dimensions of the pictures are left open: the first of these that the model can be traced with
FREE = (("batch", "height", "width"), ("batch",), ())
TORCH, ONNX = "model.pt2", "model.onnx"

Program = Callable[[Tensor], Mapping[str, Tensor]]


class Outputs(nn.Module):
    """A model without options: normalised pictures (B, 3, H, W) to outputs (B, C, H, W) by head."""

    def __init__(self, model: UnifiedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """All heads' raw outputs."""
        outputs: dict[str, Tensor] = self.model(image)
        return outputs


def write_torch(model: Predictor, folder: Path, size: tuple[int, int]) -> Outcome:
    """Writes ``model.pt2`` into a folder; for what pictures, see `trace`.

    Raises:
        Exception: the model can't be traced.
    """
    program, free = trace(model.model, size)
    torch.export.save(program, folder / TORCH)
    loaded = torch.export.load(folder / TORCH).module()
    return compare("torch", model.model, lambda image: loaded(image), size, free)


def write_onnx(model: Predictor, folder: Path, size: tuple[int, int]) -> Outcome:
    """Writes ``model.onnx`` into a folder, through torch.export, and runs it in onnxruntime.

    Raises:
        UserError: onnx, onnxscript or onnxruntime is not installed.
        Exception: the model can't be traced or translated.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401
    except ImportError as error:
        advice = 'pip install -e ".[onnx]" in the folder of the repository'
        raise UserError(f"{error.name} is not installed; {advice}") from error
    program, free = trace(model.model, size)
    heads = list(model.model.heads)
    with quiet():
        exported = torch.onnx.export(program, dynamo=True, input_names=["image"], output_names=heads, verbose=False)
    assert exported is not None
    large = sum(value.numel() * value.element_size() for value in program.state_dict.values()) > 2**30
    exported.save(folder / ONNX, external_data=large)  # ONNX files hold 2 GiB at most
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(str(folder / ONNX), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> dict[str, Tensor]:
        return dict(zip(heads, map(torch.from_numpy, session.run(heads, {"image": image.numpy()})), strict=True))

    return compare("onnx", model.model, run, size, free)


@lru_cache(maxsize=1)
def trace(model: UnifiedModel, size: tuple[int, int]) -> tuple[torch.export.ExportedProgram, tuple[str, ...]]:
    """The model as a program, and which of batch, height and width are open in it.

    Open heights and widths are multiples of the encoder's largest stride, from twice that on; without them
    pictures have the size given.

    Raises:
        Exception: it can't be traced, with whatever reason torch gives.
    """
    wrapped, stride = Outputs(model).eval(), model.encoder.strides[-1]
    failure: Exception | None = None
    for free in FREE[has_attention(model) :]:
        dims: dict[int, torch.export.Dim] = {0: torch.export.Dim("batch", min=1)} if free else {}
        example = sample_pictures(2 if free else 1, size)
        if "height" in free:
            sides = (stride * torch.export.Dim(f"{name}_by_{stride}", min=2) for name in ("height", "width"))
            dims |= dict(zip((2, 3), sides, strict=True))
            example = sample_pictures(2, (2 * stride, 3 * stride))  # sides that differ, or they would be tied
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(wrapped, (example,), dynamic_shapes={"image": dims or None}), free
        except Exception as error:
            failure = failure or error
    assert failure is not None
    raise failure


def has_attention(model: nn.Module) -> bool:
    """Whether it attends: then torch's reasoning about open heights and widths may take hours."""
    return any("attention" in name or "attn" in name for m in model.modules() for name in [type(m).__name__.lower()])


def compare(name: str, model: UnifiedModel, other: Program, size: tuple[int, int], free: tuple[str, ...]) -> Outcome:
    """How far a program is from the model on test pictures of all kinds that it takes."""
    stride = model.encoder.strides[-1]
    kinds = [(1, size), (3, size)] if "batch" in free else [(1, size)]
    if "height" in free:
        height, width = (stride * max(2, -(-side // stride)) for side in size)
        kinds = [(1, (height, width)), (3, (height + stride, width))]
    differences, outputs = [], [1.0]
    for count, sides in kinds:
        image = sample_pictures(count, sides)
        with torch.inference_mode():
            wanted = model(image)
        with torch.no_grad():
            found = other(image)
        differences += [float((wanted[head] - found[head]).abs().max()) for head in wanted]
        outputs += [float(value.abs().max()) for value in wanted.values()]
    worst = float(np.max(differences))  # NaN stays NaN
    return Outcome(name, difference=worst, scale=max(outputs), size=kinds[0][1], free=free, stride=stride)


def sample_pictures(count: int, size: tuple[int, int]) -> Tensor:
    """Made-up pictures as the model sees them, always the same: coarse patches and fine noise, (count, 3, H, W)."""
    rng = numpy_stream(0, "export", count, *size)
    coarse = torch.from_numpy(rng.standard_normal((count, 3, 4, 4), dtype=np.float32))
    fine = torch.from_numpy(rng.standard_normal((count, 3, *size), dtype=np.float32))
    return nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False) + 0.3 * fine


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters say of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
