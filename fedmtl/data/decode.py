"""Decodes the files that data sets are made of; every message names the file and what was expected of it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from fedmtl.errors import UserError
from fedmtl.tasks import Task
from fedmtl.tasks.base import Label

UNKNOWN = 255  # class value of a pixel without label
SUBFILE, REDUCED, MASK = 254, 1, 4  # TIFF's tag NewSubfileType and two of its bits
T = TypeVar("T")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")  # not PostScript, which Pillow has run by Ghostscript


def open_with(decode: Callable[..., T], task: Task | None, *paths: Path) -> T:
    """Decodes files; whatever a decoder may raise on a broken one becomes a message that names the first.

    Raises:
        UserError: a file is missing or broken, or the system can't read it.
    """
    try:
        return decode(task, *paths)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or paths[0]}: no such file; complete the data set") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        said = f"{paths[0]}: cannot be read ({type(error).__name__}: {reason}); replace the file"
        if isinstance(error, MemoryError):
            said = f"{paths[0]}: not enough memory to decode it{reason and f' ({reason})'}; "
            said += "set fewer fabric.workers, or make the pictures smaller"
        elif isinstance(error, OSError) and is_passing(error):
            said = f"{error.filename or paths[0]}: can't be opened or read ({error.strerror}); mend that, not the file"
        raise UserError(said) from error


def is_passing(error: BaseException | None) -> bool:
    """Whether a failure is the system's, which may pass, and not a file's: Pillow's own OSErrors have no number."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


def picture(path: Path, modes: Collection[str], convert: str | None = None) -> NDArray[Any]:
    """A picture file of one of Pillow's `modes`, as (H, W) or (H, W, C); of a palette picture, the indices."""
    with Image.open(path, formats=FORMATS) as opened:
        if opened.mode not in modes:
            raise UserError(f"{path}: found a picture of mode {opened.mode}, expected {' or '.join(modes)}")
        _expect_one_page(path, opened)
        ImageOps.exif_transpose(opened, in_place=True)  # upright, as the tools show it that labels are drawn with
        return np.array(opened.convert(convert) if convert else opened)


def array(path: Path) -> NDArray[Any]:
    """A .npy file that holds no pickled objects."""
    with path.open("rb") as file:
        values: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return values


def matlab(path: Path, key: str) -> NDArray[Any]:
    """One variable of a MATLAB file (up to version 7.2)."""
    import scipy.io  # loaded for MATLAB files alone

    with path.open("rb") as file:
        try:
            content = scipy.io.loadmat(file, variable_names=[key])
        except NotImplementedError as error:
            raise UserError(f"{path}: is a MATLAB 7.3 file; save it with -v7 in MATLAB") from error
        if key not in content:
            known = ", ".join(name for name, *_ in scipy.io.whosmat(file)) or "none"
            raise UserError(f"{path}: found no variable {key!r}, only {known}")
    values: NDArray[Any] = content[key]
    return values


def image(task: Task | None, path: Path) -> Label:
    """An 8-bit picture as RGB (H, W, 3)."""
    return picture(path, ("RGB", "RGBA", "L", "P"), convert="RGB")


def depth(path: Path, values: NDArray[Any], scale: float = 1.0) -> Label:
    """Metres, float32 (H, W): values × scale; whatever is not a positive number is unknown, 0."""
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise UserError(f"{path}: found {values.dtype} of shape {values.shape}, expected depths of shape (H, W)")
    with np.errstate(over="ignore"):  # too large for 32 bits is infinite, hence unknown
        metres: NDArray[np.float32] = (values.astype(np.float64) * scale).astype(np.float32)
    metres[~((metres > 0) & (metres < np.inf))] = 0
    return metres


def normals(path: Path, values: NDArray[Any]) -> Label:
    """Normals, float32 (H, W, 3), from 8 bits (n = 2v/255 − 1) or floating-point numbers in −1…1.

    Vectors shorter than 0.1 or not finite become zero, unknown: 8 bits store "none" as 127 or 128, never exactly 0.
    """
    if values.ndim != 3 or values.shape[2] != 3:
        raise UserError(f"{path}: found an array of shape {values.shape}, expected normals of shape (H, W, 3)")
    if values.dtype != np.uint8 and not np.issubdtype(values.dtype, np.floating):
        raise UserError(f"{path}: found {values.dtype}, expected normals as 8-bit or floating-point numbers")
    vectors: NDArray[np.float32] = values.astype(np.float32)
    if values.dtype == np.uint8:
        vectors *= np.float32(2 / 255)
        vectors -= 1
    x, y, z = np.moveaxis(vectors, -1, 0)
    length2 = x * x
    length2 += y * y
    length2 += z * z
    longest = np.sqrt(np.nanmax(length2, initial=0))
    if values.dtype != np.uint8 and longest > 1.2:
        raise UserError(f"{path}: found a vector of length {longest:.3g}, expected unit normals")
    unknown = ~(length2 >= 0.1**2)
    for axis in (x, y, z):  # several times faster than all three at once
        axis[unknown] = 0
    return vectors


def binary(path: Path, values: NDArray[Any], *, high: int = 255) -> Label:
    """A mask, uint8 (H, W) of 0 and 1, from 0 and `high`.

    Raises:
        UserError: another value or shape.
    """
    if values.ndim != 2:
        raise UserError(f"{path}: found an array of shape {values.shape}, expected a mask of shape (H, W)")
    bad = values[(values != 0) & (values != high)]
    if bad.size:
        raise UserError(f"{path}: found the value {bad.flat[0]}, expected 0 or {high}")
    mask: NDArray[np.uint8] = (values == high).astype(np.uint8)
    return mask


def numbered(
    path: Path, values: NDArray[Any], count: int, *, first: int = 0, void: Collection[int] = (UNKNOWN,)
) -> Label:
    """Classes that are counted up from some number, uint8 (H, W), where class k is stored as `first` + k.

    Args:
        path: the file, for messages.
        values: whole numbers (H, W); floating-point ones must be whole.
        count: number of classes.
        first: what the first class is stored as.
        void: what pixels without a class are stored as.

    Raises:
        UserError: another type, shape or value.
    """
    if values.ndim != 2 or values.dtype.kind not in "iuf":
        raise UserError(f"{path}: found {values.dtype} of shape {values.shape}, expected classes of shape (H, W)")
    known = (values >= first) & (values < first + count) & (values == np.floor(values))
    bad = values[~known & ~np.isin(values, list(void))]
    if bad.size:
        unknown = " or ".join(map(str, void))
        raise UserError(
            f"{path}: found the value {bad[0]}, expected {first}…{first + count - 1} (classes) or {unknown} (void)"
        )
    label: NDArray[np.uint8] = np.full(values.shape, UNKNOWN, np.uint8)
    label[known] = values[known].astype(np.intp) - first
    return label


def unit_image(path: Path, values: NDArray[Any]) -> Label:
    """An image as uint8 (H, W, 3) from floating-point numbers in 0…1; those of 8-bit origin come back exactly.

    Raises:
        UserError: another type, shape or range.
    """
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype.kind != "f":
        raise UserError(
            f"{path}: found {values.dtype} of shape {values.shape}, expected floating-point numbers of shape (H, W, 3)"
        )
    low, high = values.min(), values.max()
    if not (low > -1e-3 and high < 1 + 1e-3):  # NaN fails too
        raise UserError(f"{path}: found values from {low:.4g} to {high:.4g}, expected an image in 0…1")
    pixels: NDArray[np.uint8] = np.rint(values.clip(0, 1).astype(np.float32) * 255).astype(np.uint8)
    return pixels


def numbers(path: Path, key: str = "", *, colours: bool = False, alpha: bool = False) -> NDArray[Any]:
    """What a picture, a .npy file or a variable of a .mat file stores: numbers or booleans of any shape.

    Args:
        path: the file; its suffix says what it is.
        key: the variable, of a .mat file.
        colours: whether a palette picture gives its colours; else its indices.
        alpha: whether a picture keeps its last channel if that is opacity.

    Raises:
        UserError: no such numbers, or a picture whose values Pillow would cut down to 8 bits.
    """
    kind = path.suffix.lower()
    values = array(path) if kind == ".npy" else matlab(path, key) if kind == ".mat" else _stored(path, colours, alpha)
    if values.dtype != np.bool_ and (not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values)):
        raise UserError(f"{path}: found an array of {values.dtype}, expected numbers")
    return values


def _stored(path: Path, colours: bool, alpha: bool) -> NDArray[Any]:
    try:
        opened = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path}: cannot be read; if it is whole, it holds what Pillow does not know, such as a TIFF of many bands "
            "or of 64-bit numbers: save it as .npy"
        ) from error
    with opened:
        mode = opened.mode
        if mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "F") and not mode.startswith("I;16"):
            raise UserError(f"{path}: found a picture of mode {mode}, expected grey, RGB or palette colours")
        if mode in ("L", "LA", "RGB", "RGBA") and ";16" in str(getattr(opened, "tile", "")):
            raise UserError(f"{path}: found several channels of 16 bits, which Pillow cuts to 8; save it as .npy")
        _expect_one_page(path, opened)
        convert = {"LA": "L", "RGBA": "RGB"}.get(mode) if not alpha else None
        convert = "RGB" if mode == "P" and colours else convert
        ImageOps.exif_transpose(opened, in_place=True)
        return np.array(opened.convert(convert) if convert else opened)


def _expect_one_page(path: Path, opened: Image.Image) -> None:
    """Refuses a TIFF of which only the first page would be read; overviews and masks, as GeoTIFFs have, may follow."""
    if not isinstance(opened, TiffImageFile) or opened.n_frames == 1:
        return
    size, pages = opened.size, 1
    for page in range(1, opened.n_frames):
        opened.seek(page)
        pages += opened.size == size and not opened.tag_v2.get(SUBFILE, 0) & (REDUCED | MASK)
    opened.seek(0)
    if pages > 1:
        raise UserError(
            f"{path}: found {pages} pages of one size, expected one; keep the one that counts, or save all as .npy and "
            "choose bands"
        )


def plane(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    """One number a pixel, (H, W), also from one band (H, W, 1) or (1, H, W) and from grey stored as colours.

    Raises:
        UserError: several numbers a pixel.
    """
    if values.ndim == 3 and values.shape[2] == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    elif values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[..., 0] if values.shape[2] == 1 else values[0]
    if values.ndim != 2:
        raise UserError(f"{path}: found an array of shape {values.shape}, expected one number a pixel, (H, W)")
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def rgb(
    path: Path, values: NDArray[Any], *, bands: Sequence[int] | None = None, limits: Sequence[float] | None = None
) -> Label:
    """An image, uint8 (H, W, 3), from stored numbers.

    Args:
        path: the file, for messages; in .npy and .mat files the shorter of the first and last axis is the bands'.
        values: (H, W), (H, W, bands) or (bands, H, W).
        bands: numbers, from 1, of those that become red, green and blue; or of one that becomes grey.
        limits: v becomes 255 (v − low) / (high − low), rounded and cut off to 0…255; NaN becomes 0. Needed unless
            the numbers have 8 bits.

    Raises:
        UserError: it takes `bands` or `limits`, or there is no such band.
    """
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3:
        raise UserError(f"{path}: found an array of shape {values.shape}, expected an image (H, W) or (H, W, bands)")
    if path.suffix.lower() in (".npy", ".mat") and values.shape[0] < values.shape[2]:
        values = np.moveaxis(values, 0, -1)
    count = values.shape[2]
    chosen = list(bands or {1: [1], 3: [1, 2, 3]}.get(count, []))
    if not chosen or max(chosen) > count:
        raise UserError(f"{path}: found {count} bands; say which become red, green and blue, e.g. bands: [3, 2, 1]")
    if chosen != list(range(1, count + 1)):
        values = values[..., [band - 1 for band in chosen]]
    if values.dtype == np.bool_:
        values = values * np.uint8(255)
    if limits is not None:
        scaled = values.astype(np.float64)
        scaled -= limits[0]
        scaled *= 255
        scaled /= limits[1] - limits[0]
        np.rint(scaled.clip(0, 255, out=scaled), out=scaled)
        scaled[np.isnan(scaled)] = 0
        values = scaled.astype(np.uint8)
    elif values.dtype != np.uint8:
        found = f"{values.dtype} from {values.min():g} to {values.max():g}" if values.size else "no pixels"
        raise UserError(f"{path}: found {found}; say which values become black and white, e.g. range: [0, 4095]")
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def mapped(path: Path, values: NDArray[Any], classes: Mapping[int, int], expected: str) -> Label:
    """Class values through a mapping, uint8 (H, W).

    Args:
        path: the file, for messages.
        values: whole numbers (H, W); floating-point ones must be whole.
        classes: class by file value, `UNKNOWN` for none.
        expected: what values there should be, for messages.

    Raises:
        UserError: a value that the mapping lacks.
    """
    low, high = min(classes), max(classes)
    table = np.full(high - low + 1, -1, np.int16)
    table[np.array(list(classes)) - low] = list(classes.values())
    inside = (values >= low) & (values <= high) & (values == np.floor(values))
    found = table[np.where(inside, values, 0).astype(np.int64).clip(low, high) - low]  # 8 bits hold no negative low
    bad = values[~inside | (found < 0)]
    if bad.size:
        raise UserError(f"{path}: found the value {bad[0]}, expected {expected}")
    return found.astype(np.uint8)


def coloured(path: Path, values: NDArray[Any], classes: Mapping[tuple[int, ...], int]) -> Label:
    """Classes that are stored as colours, uint8 (H, W).

    Args:
        path: the file, for messages.
        values: 8-bit grey (H, W) or RGB (H, W, 3).
        classes: class by colour (r, g, b), `UNKNOWN` for none.

    Raises:
        UserError: no 8-bit colours, or one that is not known.
    """
    values = np.repeat(values[..., None], 3, axis=2) if values.ndim == 2 else values
    if values.dtype != np.uint8 or values.shape[2:] != (3,):
        raise UserError(f"{path}: found {values.dtype} of shape {values.shape}, expected 8-bit colours (H, W, 3)")
    known = sorted(classes)
    codes = np.array([red << 16 | green << 8 | blue for red, green, blue in known], np.int32)
    red, green, blue = np.moveaxis(values.astype(np.int32), -1, 0)
    wanted = red << 16 | green << 8 | blue
    index = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    bad = values[codes[index] != wanted]
    if bad.size:
        raise UserError(f"{path}: found the colour {bad[0].tolist()}, expected one of colours or ignore")
    return np.array([classes[colour] for colour in known], np.uint8)[index]
