"""The folder of an export: each format in a folder of its own, kept if it agrees with the original; a model card."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from fedmtl import storage
from fedmtl.errors import UserError
from fedmtl.export.card import model_card
from fedmtl.export.encoder import write_encoder
from fedmtl.export.outcome import Outcome
from fedmtl.export.programs import trace, write_onnx, write_torch
from fedmtl.prediction import Predictor

FORMATS = ("timm", "torch", "onnx")


@dataclass(frozen=True)
class _Writer:
    """What writes a format, and the largest difference from the original, relative to its largest output."""

    write: Callable[[Predictor, Path, tuple[int, int]], Outcome]
    tolerance: float


WRITERS = {
    "timm": _Writer(write_encoder, 0.0),
    "torch": _Writer(write_torch, 1e-4),
    "onnx": _Writer(write_onnx, 1e-3),
}


def export(
    model: Predictor, out: str | Path, *, formats: Sequence[str] = FORMATS, size: tuple[int, int] | None = None
) -> list[Outcome]:
    """Writes a run's model into folders ``timm``, ``torch`` and ``onnx``, and a model card ``README.md``.

    A format is written beside its place, checked against the original on a test picture, and only then put there; if
    that fails, nothing of it is left, what was there before stays, and the others go on.

    Args:
        model: the model, on the CPU (``load(run, accelerator="cpu")``).
        out: the folder; it is made.
        formats: some of ``timm`` (the encoder), ``torch`` and ``onnx`` (the whole model).
        size: height and width of the pictures that programs are made for; if not given, those of the run's validation.

    Returns:
        How each format went, in the order of `formats`.

    Raises:
        UserError: there is no such format, or the folder can't be written.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(
            f"formats: there is no {unknown[0]!r}; take some of {', '.join(FORMATS)}"
            if unknown
            else "formats: none given"
        )
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        outcomes = [_export(model, out, name, size or model.groups[0].size) for name in dict.fromkeys(formats)]
        if any(outcome.done for outcome in outcomes):
            text = model_card(model, [one for one in outcomes if one.done])
            storage.replace(out / "README.md", lambda file: file.write(text.encode()))
    except OSError as error:
        raise UserError(
            f"{out} can't be written ({error.strerror or error}); make room there, or name another"
        ) from error
    finally:
        trace.cache_clear()
    return outcomes


def _export(model: Predictor, out: Path, name: str, size: tuple[int, int]) -> Outcome:
    """One format, whole or not at all."""
    partial = Path(mkdtemp(prefix=f".{name}.", dir=out))
    try:
        outcome = WRITERS[name].write(model, partial, size)
        if not outcome.difference <= WRITERS[name].tolerance * outcome.scale:  # NaN, too, is refused
            return Outcome(
                name,
                reason=f"it differs from the original by {outcome.difference:.3g}, where outputs are up to "
                f"{outcome.scale:.3g}; it is not kept",
            )
        partial.chmod(0o755)
        _put(partial, out / name)
        return outcome
    except OSError:
        raise
    except Exception as error:  # exporters raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return Outcome(name, reason=reason)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, place: Path) -> None:
    """Renames a folder to its place; what was there goes when the new one is there."""
    old = None
    if place.exists():
        old = Path(mkdtemp(prefix=f".{place.name}.old.", dir=place.parent)) / "old"
        place.rename(old)
    try:
        partial.rename(place)
    except OSError:
        if old is not None:
            with suppress(OSError):
                old.rename(place)
        raise
    finally:
        if old is not None:
            shutil.rmtree(old.parent, ignore_errors=True)
