"""The folder of an export: each format in a folder of its own, kept if it agrees with the original; a model card."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmtl import atomic
from fedmtl.errors import UserError
from fedmtl.export.card import MARK, model_card
from fedmtl.export.encoder import write_encoder
from fedmtl.export.outcome import Outcome
from fedmtl.export.programs import ONNX, TORCH, trace, write_onnx, write_torch
from fedmtl.prediction import Predictor
from fedmtl.prediction.folders import files_of, replacing

FORMATS = ("timm", "torch", "onnx")
FOR_ONNX = ("onnx", "onnxruntime", "onnxscript")  # packages, an extra of this one


@dataclass(frozen=True)
class _Writer:
    """What writes a format, the files, and the largest difference from the original, relative to its largest output."""

    write: Callable[[Predictor, Path, tuple[int, int]], Outcome]
    files: tuple[str, ...]
    tolerance: float


WRITERS = {
    "timm": _Writer(write_encoder, ("config.json", "model.safetensors"), 0.0),
    "torch": _Writer(write_torch, (TORCH,), 1e-4),
    "onnx": _Writer(write_onnx, (ONNX, f"{ONNX}.data"), 1e-3),
}


def available() -> list[str]:
    """The formats whose packages are installed."""
    return [name for name in FORMATS if name != "onnx" or all(map(importlib.util.find_spec, FOR_ONNX))]


def export(
    model: Predictor, out: str | Path, *, formats: Sequence[str] | None = None, size: tuple[int, int] | None = None
) -> list[Outcome]:
    """Writes a run's model into folders ``timm``, ``torch`` and ``onnx``, and a model card ``README.md``.

    A format is written beside its place, checked against the original on a test picture, and only then put there; if
    that fails, nothing of it is left, what was there before stays, and the others go on. Only what an earlier export
    has left is ever replaced.

    Args:
        model: the model, on the CPU (``load(run, accelerator="cpu")``).
        out: the folder; it is made.
        formats: some of ``timm`` (the encoder), ``torch`` and ``onnx`` (the whole model); if not given, those whose
            packages are installed.
        size: height and width of the pictures that programs are made for; if not given, those of the run's validation.

    Returns:
        How each format went, in the order of `formats`.

    Raises:
        UserError: there is no such format, the folder can't be written or holds files of other kinds in these places,
            or the run's files are damaged.
    """
    formats = available() if formats is None else formats
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(
            f"formats: there is no {unknown[0]!r}; take some of {', '.join(FORMATS)}"
            if unknown
            else "formats: none given"
        )
    out = Path(out)
    try:
        known = _earlier(out, formats)
        model_card(model, [])  # a damaged run is refused before anything is written
        out.mkdir(parents=True, exist_ok=True)
        outcomes = [_export(model, out, name, size or model.groups[0].size) for name in dict.fromkeys(formats)]
        done = [outcome for outcome in outcomes if outcome.done]
        if done:
            text = model_card(model, done, [name for name in known if name not in {one.format for one in done}])
            atomic.replace(out / "README.md", lambda file: file.write(text.encode()))
    except OSError as error:
        raise UserError(
            f"{out} can't be written ({error.strerror or error}); make room there, or name another"
        ) from error
    finally:
        trace.cache_clear()
    return outcomes


def _earlier(out: Path, wanted: Sequence[str]) -> list[str]:
    """The formats that an earlier export has left.

    Raises:
        UserError: something else is where the wanted ones or the card would be.
    """
    card = out / "README.md"
    exported = card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
    here = [name for name in FORMATS if os.path.lexists(out / name)]
    known = [name for name in here if exported and _holds_only(out / name, WRITERS[name].files)]
    others = [name for name in here if name in wanted and name not in known]
    if os.path.lexists(card) and not exported:
        others.append(card.name)
    if others:
        raise UserError(
            f"{out} holds {' and '.join(others)} that no earlier export is known to have left; move that away, or name "
            "another folder"
        )
    return known


def _holds_only(folder: Path, files: Sequence[str]) -> bool:
    return (
        not folder.is_symlink()
        and folder.is_dir()
        and all(file.name in files and file.is_file() for file in files_of(folder))
    )


def _export(model: Predictor, out: Path, name: str, size: tuple[int, int]) -> Outcome:
    """One format, whole or not at all."""
    try:
        with replacing(out / name) as partial:
            outcome = WRITERS[name].write(model, partial, size)
            if not outcome.difference <= WRITERS[name].tolerance * outcome.scale:  # NaN, too, is refused
                raise UserError(
                    f"it differs from the original by {outcome.difference:.3g}, where outputs are up to "
                    f"{outcome.scale:.3g}; it is not kept"
                )
            return outcome
    except OSError:
        raise
    except Exception as error:  # exporters raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return Outcome(name, reason=reason)
