"""What a client uploads, as one block of bytes: kept entries, a bit mask or their indices, buffers, messages.

All is little-endian, nothing is pickled, and every field below begins at a multiple of 8 bytes, with zeros between.

- preamble, 32 bytes: magic ``FMTL``; version (u16); 1 if `healthy` (u8); values (u8): 0 fp32, 1 bf16, 2 fp16; length of
  the payload (u64); examples (u64); number of parts and of messages (u16 each); CRC-32 of all else (u32)
- of each part
    - record, 24 bytes: bytes of the name (u16); mask (u8): 0 none, 1 all ones, 2 bits, 3 indices; 1 if `overlap` (u8);
      fingerprint (u32); entries d (u64); kept entries k (u64)
    - name (UTF-8)
    - mask: ⌈d/8⌉ bytes, the first entry in the lowest bit, or, where that is shorter, k rising indices (u32)
    - scales, in fp16 only: of each tensor the power of two (f32) that its values are to be multiplied by
    - values: the kept entries in order, in fp32, bf16 or fp16
    - buffers: each raw in its own dtype, in the order of the fingerprint
- of each message: bytes of its name, number of vectors (u32 each); name; and of each vector
    - bytes of its part's name, dimensions (u32 each)
    - name, shape (u64 each), entries (f32)

The fingerprint is the CRC-32 of a line ``name dtype 2x3`` for each tensor of the layout (``float32``), then for each
buffer: both sides know names, shapes and dtypes, and only make sure that they agree.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fedmtl.aggregation import PartUpdate, Update
from fedmtl.algorithms import Message
from fedmtl.vector import Layout, PartState

Values = Literal["fp32", "bf16", "fp16"]

MAGIC, VERSION = b"FMTL", 1
MAX_NAME, MAX_MESSAGES, MAX_DIMENSIONS = 255, 16, 8
MORE_THAN_PART = 1024  # entries that a message's vector may have beyond those of its part

_PREAMBLE, _CHECKSUM = struct.Struct("<4sHBBQQHH"), struct.Struct("<I")
_PART, _NAMED = struct.Struct("<HBBIQQ"), struct.Struct("<II")
_START = _PREAMBLE.size + _CHECKSUM.size
_NO_MASK, _ONES, _BITS, _INDICES = range(4)
_DTYPES: dict[Values, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LARGEST = {torch.bfloat16: 2.0**128 - 2.0**120, torch.float16: 2.0**128 - 2.0**117}  # does not round up to infinity
_BLOCK = 1 << 16  # entries worked on at a time, so that they stay in the cache


class PayloadError(ValueError):
    """A payload that is damaged, or not what the server expects: what is wrong, in one line."""


@dataclass(frozen=True)
class Schema:
    """What the server expects of a client. Only shapes and dtypes are read, so ``meta`` tensors will do.

    Attributes:
        parts: layout, in the client's coordinates, and buffers of each part that it sends. Beside them it may send up
            to 16 messages, with a vector for each part, of up to 8 dimensions and 1,024 entries more than the part.
        examples: the largest count of training images that is believed.
    """

    parts: Mapping[str, tuple[Layout, Mapping[str, Tensor]]]
    examples: int = 2**53


@torch.no_grad()
def encode(update: Update, layouts: Mapping[str, Layout], values: Values = "fp32") -> np.ndarray:
    """An update, in the client's coordinates and on any device, as a payload: uint8 (n,), with n = `encoded_size`.

    Of masked parts the kept entries are sent, rounded to nearest: in fp32 not at all, in bf16 to 8 bits, in fp16 to 11
    bits, or to max |x| / 2³⁸ where that is coarser, x being the tensor's kept entries. What is finite stays finite
    (it goes to the largest number where rounding would go beyond), and NaN and infinity stay what they are.

    Raises:
        ValueError: `values` is another word; a part has been placed in the server's coordinates, does not fit its
            layout or its mask, or it or a message is not float32.
    """
    if values not in get_args(Values):
        raise ValueError(f"values must be one of {', '.join(get_args(Values))}, not {values!r}")
    block = _Block(np.zeros(encoded_size(update, layouts, values), dtype=np.uint8))
    counts = len(update.parts), len(update.message)
    code = get_args(Values).index(values)
    head = MAGIC, VERSION, update.healthy, code, len(block.data), update.examples, *counts
    _PREAMBLE.pack_into(block.array("u1", _START).data, 0, *head)
    for name, part in update.parts.items():
        _write_part(block, name, part, layouts[name], values)
    for key, vectors in update.message.items():
        block.write(_NAMED, key, len(vectors))
        for name, vector in vectors.items():
            if vector.dtype != torch.float32:
                raise ValueError(f"message {key} of {name} must be float32, not {vector.dtype}")
            block.write(_NAMED, name, vector.ndim)
            block.array("<u8", vector.ndim)[:] = vector.shape
            block.array("<f4", vector.numel())[:] = vector.cpu().reshape(-1).numpy()
    _CHECKSUM.pack_into(block.data.data, _PREAMBLE.size, _checksum(block.data))
    return block.data


def decode(data: bytes | memoryview | np.ndarray, schema: Schema, *, client: str) -> Update:
    """The update that a payload holds, in new CPU tensors; masked entries are +0.

    What is allocated is bounded by the schema before anything is: 12 bytes for each entry of its parts, beside
    copies of the buffers and messages, which `data` has itself.

    Raises:
        PayloadError: it is damaged, of another version, or not what the schema says.
    """
    try:
        return _decode(np.frombuffer(data, dtype=np.uint8) if len(data) else np.empty(0, np.uint8), schema, client)
    except PayloadError as error:
        raise PayloadError(f"payload of {client}: {error}") from None


def encoded_size(update: Update, layouts: Mapping[str, Layout], values: Values = "fp32") -> int:
    """Bytes of the payload that `encode` makes, without making it."""
    fields = [len(name.encode()) for name in (*update.parts, *update.message)]
    records = _PART.size * len(update.parts) + _NAMED.size * len(update.message)
    for name, part in update.parts.items():
        size, kept = part.delta.numel(), _kept(part)
        form = _form(size, kept, part.mask is not None)
        scales = len(layouts[name].names) if values == "fp16" else 0
        fields += [{_BITS: -(-size // 8), _INDICES: 4 * kept}.get(form, 0), 4 * scales, _DTYPES[values].itemsize * kept]
        fields += [buffer.nbytes for buffer in part.buffers.values()]
    for vectors in update.message.values():
        records += _NAMED.size * len(vectors)
        for name, vector in vectors.items():
            fields += [len(name.encode()), 8 * vector.ndim, 4 * vector.numel()]
    return _START + records + sum(map(_padded, fields))


def dense_size(parts: Mapping[str, PartState], message: Message) -> int:
    """Bytes of parts of a model in fp32 and what goes beside them, in the same format; ``meta`` tensors will do."""
    whole = {name: PartUpdate(part.vector, part.buffers) for name, part in parts.items()}
    return encoded_size(Update("", 0, whole, message), {})


@torch.no_grad()
def through(update: Update, layouts: Mapping[str, Layout], values: Values = "fp32") -> Update:
    """What `decode` makes of what `encode` makes of an update, without the detour, on the update's own devices.

    In fp32 that is the update itself; else one with rounded entries that shares everything else. Once is as good as
    twice: what it gives goes through `encode` and `decode` unchanged.
    """
    if values == "fp32":
        return update
    parts = {}
    for name, part in update.parts.items():
        entries, counts = _compact(part.delta, part.mask), _counts(part.mask, layouts[name].sizes)
        narrow = torch.empty_like(entries, dtype=_DTYPES[values])
        scales = _narrow(entries, narrow, counts)
        parts[name] = replace(part, delta=_spread(_widen(narrow, counts, scales), part.mask))
    return replace(update, parts=parts)


class _Block:
    """A payload's bytes, and how far they are written or read."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.at = data, 0

    def array(self, dtype: str, count: int) -> np.ndarray:
        """The next field, as a view."""
        end = self.at + np.dtype(dtype).itemsize * count
        if end > len(self.data):
            raise PayloadError(f"{len(self.data)} bytes end in a field that would end at byte {end}")
        view = self.data[self.at : end].view(dtype)
        self.at = _padded(end)
        return view

    def write(self, record: struct.Struct, name: str, *fields: int) -> None:
        """A record, and the name whose length it begins with."""
        record.pack_into(self.array("u1", record.size).data, 0, len(name.encode()), *fields)
        self.array("u1", len(name.encode()))[:] = np.frombuffer(name.encode(), dtype=np.uint8)

    def read(self, record: struct.Struct) -> tuple[str, list[int]]:
        size, *fields = record.unpack(self.array("u1", record.size).data)
        if size > MAX_NAME:
            raise PayloadError(f"a name of {size} bytes, more than {MAX_NAME}")
        return self.array("u1", size).tobytes().decode(errors="backslashreplace"), fields


def _decode(data: np.ndarray, schema: Schema, client: str) -> Update:
    block = _Block(data)
    head = block.array("u1", _START).data
    magic, version, healthy, code, size, examples, parts, messages = _PREAMBLE.unpack_from(head)
    if magic != MAGIC or version != VERSION:
        raise PayloadError(f"it begins with {magic!r} version {version}, not {MAGIC!r} version {VERSION}")
    if size != len(data):
        raise PayloadError(f"{len(data)} bytes long, and should be {size}")
    if _CHECKSUM.unpack_from(head, _PREAMBLE.size) != (_checksum(data),):
        raise PayloadError("damaged on the way, its checksum does not fit")
    if healthy > 1 or code >= len(_DTYPES) or examples > schema.examples:
        raise PayloadError(f"healthy is {healthy}, values {code}, examples {examples}, over 1, 2 or {schema.examples}")
    if parts != len(schema.parts) or messages > MAX_MESSAGES:
        raise PayloadError(f"{parts} parts and {messages} messages, not {len(schema.parts)} and {MAX_MESSAGES} at most")
    update = Update(client, examples, {}, healthy=bool(healthy))
    values = get_args(Values)[code]
    for _ in range(parts):
        name, fields = block.read(_PART)
        if name not in schema.parts or name in update.parts:
            raise PayloadError(f"part {name!r} is not expected, or comes twice")
        update.parts[name] = _read_part(block, name, fields, schema, values)
    update.message = _read_message(block, messages, schema)
    if block.at != len(data):
        raise PayloadError(f"{len(data)} bytes, its fields take {block.at}")
    return update


def _write_part(block: _Block, name: str, part: PartUpdate, layout: Layout, values: Values) -> None:
    delta, mask, size = part.delta, part.mask, sum(layout.sizes)
    if part.held is not None:
        raise ValueError(f"{name} lies in the server's coordinates, and is encoded in the client's")
    for tensor, dtype in ((delta, torch.float32), (mask, torch.bool)):
        if tensor is not None and (tensor.dtype != dtype or tensor.shape != (size,)):
            raise ValueError(f"{name} must be {dtype} ({size},), not {tensor.dtype} {tuple(tensor.shape)}")
    counts = _counts(mask, layout.sizes)
    kept = sum(counts)
    form = _form(size, kept, mask is not None)
    block.write(_PART, name, form, part.overlap, _fingerprint(layout, part.buffers), size, kept)
    if mask is not None and form == _BITS:
        block.array("u1", -(-size // 8))[:] = np.packbits(mask.cpu().numpy(), bitorder="little")
    elif mask is not None and form == _INDICES:
        block.array("<u4", kept)[:] = np.flatnonzero(mask.cpu().numpy())
    scales = block.array("<f4", len(counts) if values == "fp16" else 0)
    target = torch.from_numpy(block.array(f"<i{_DTYPES[values].itemsize}", kept)).view(_DTYPES[values])
    scales[:] = _narrow(_compact(delta, mask).cpu(), target, counts)[: len(scales)]
    for buffer in part.buffers.values():
        block.array("u1", buffer.nbytes)[:] = _bytes(buffer.cpu().contiguous())


def _read_part(block: _Block, name: str, fields: list[int], schema: Schema, values: Values) -> PartUpdate:
    form, overlap, fingerprint, size, kept = fields
    layout, buffers = schema.parts[name]
    sizes = layout.sizes
    if size != sum(sizes) or fingerprint != _fingerprint(layout, buffers):
        raise PayloadError(f"{name} has other tensors or buffers than expected ({size} entries, not {sum(sizes)})")
    if kept > size or form != _form(size, kept, form != _NO_MASK) or overlap > 1 or (not form and kept != size):
        raise PayloadError(f"{name} can't keep {kept} of {size} entries with mask {form} and overlap {overlap}")
    mask = _read_mask(block, name, form, size, kept)
    scales = block.array("<f4", len(sizes) if values == "fp16" else 0)
    if not np.isfinite(scales).all() or not (np.frexp(scales)[0] == 0.5).all():
        raise PayloadError(f"a scale of {name} is not a power of two")
    # a copy, since torch warns of memory that it may not write to
    entries = torch.from_numpy(block.array(f"<i{_DTYPES[values].itemsize}", kept).copy()).view(_DTYPES[values])
    if values != "fp32":
        entries = _widen(entries, _counts(mask, sizes), scales.tolist() or [1.0] * len(sizes))
    found = {key: _read_buffer(block, key, buffer) for key, buffer in buffers.items()}
    return PartUpdate(_spread(entries, mask), found, mask, bool(overlap))


def _read_mask(block: _Block, name: str, form: int, size: int, kept: int) -> Tensor | None:
    if form == _NO_MASK:
        return None
    if form == _BITS:
        bits = block.array("u1", -(-size // 8))
        mask = np.unpackbits(bits, count=size, bitorder="little").view(np.bool_)
        if np.count_nonzero(mask) != kept or (size % 8 and bits[-1] >> size % 8):
            raise PayloadError(f"the mask of {name} does not mark {kept} of {size} entries")
        return torch.from_numpy(mask)
    mask = np.full(size, form == _ONES)
    if form == _INDICES:
        indices = block.array("<u4", kept)
        if kept and (indices[-1] >= size or (indices[1:] <= indices[:-1]).any()):
            raise PayloadError(f"the indices of {name} do not rise within {size} entries")
        mask[indices] = True
    return torch.from_numpy(mask)


def _read_buffer(block: _Block, name: str, like: Tensor) -> Tensor:
    raw = block.array("u1", like.nbytes)
    if like.dtype == torch.bool and (raw > 1).any():
        raise PayloadError(f"the bool buffer {name} holds more than 0 and 1")
    buffer = torch.empty(like.shape, dtype=like.dtype, device="cpu")
    _bytes(buffer)[:] = raw
    return buffer


def _bytes(tensor: Tensor) -> np.ndarray:
    """A contiguous CPU tensor's memory; torch can't view that of an empty one."""
    return tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, dtype=np.uint8)


def _read_message(block: _Block, messages: int, schema: Schema) -> Message:
    message: Message = {}
    for _ in range(messages):
        key, (count,) = block.read(_NAMED)
        if key in message or count > len(schema.parts):
            raise PayloadError(f"message {key!r} comes twice, or for {count} parts")
        message[key] = {}
        for _ in range(count):
            name, (dimensions,) = block.read(_NAMED)
            if name not in schema.parts or name in message[key] or dimensions > MAX_DIMENSIONS:
                raise PayloadError(f"message {key!r} for part {name!r} comes twice, or in {dimensions} dimensions")
            shape = block.array("<u8", dimensions).tolist()
            most = sum(schema.parts[name][0].sizes) + MORE_THAN_PART
            if max(shape, default=0) > most or math.prod(shape) > most:
                raise PayloadError(f"message {key!r} for part {name!r} is of shape {shape}, over {most} entries")
            message[key][name] = torch.from_numpy(block.array("<f4", math.prod(shape)).copy()).reshape(shape)
    return message


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def _checksum(data: np.ndarray) -> int:
    return zlib.crc32(data[_START:].data, zlib.crc32(data[: _PREAMBLE.size].data))


def _fingerprint(layout: Layout, buffers: Mapping[str, Tensor]) -> int:
    """CRC-32 of the names, dtypes and shapes of tensors and buffers."""
    tensors = [(name, "float32", shape) for name, shape in zip(layout.names, layout.shapes, strict=True)]
    others = [(name, str(buffer.dtype).removeprefix("torch."), buffer.shape) for name, buffer in buffers.items()]
    lines = (f"{name} {dtype} {'x'.join(map(str, shape))}\n" for name, dtype, shape in [*tensors, *others])
    return zlib.crc32("".join(lines).encode())


def _kept(part: PartUpdate) -> int:
    if part.mask is None:
        return part.delta.numel()
    return int(np.count_nonzero(part.mask.numpy()) if part.mask.device.type == "cpu" else part.mask.sum())


def _form(size: int, kept: int, masked: bool) -> int:
    """How the mask is sent."""
    if not masked or kept == size:
        return _ONES if masked else _NO_MASK
    return _INDICES if 4 * kept < -(-size // 8) and size <= 2**32 else _BITS


def _counts(mask: Tensor | None, sizes: list[int]) -> list[int]:
    """Kept entries of each tensor."""
    if mask is None:
        return sizes
    return [int(np.count_nonzero(piece.numpy())) for piece in torch.split(mask.cpu(), sizes)]


def _marked(mask: np.ndarray) -> Iterator[tuple[slice, np.ndarray, slice]]:
    """Block by block of a mask: its place, where the mask marks it, and the places among all marked entries."""
    at = 0
    for start in range(0, len(mask), _BLOCK):
        where = np.flatnonzero(mask[start : start + _BLOCK])
        yield slice(start, start + _BLOCK), where, slice(at, at + len(where))
        at += len(where)


def _compact(entries: Tensor, mask: Tensor | None) -> Tensor:
    """The marked entries, (k,)."""
    if mask is None or entries.device.type != "cpu":
        return entries if mask is None else entries[mask]
    source, marks = entries.numpy(), mask.numpy()
    compact = np.empty(np.count_nonzero(marks), dtype=np.float32)
    for block, where, kept in _marked(marks):
        source[block].take(where, out=compact[kept], mode="clip")  # other modes write by way of a buffer
    return torch.from_numpy(compact)


def _spread(entries: Tensor, mask: Tensor | None) -> Tensor:
    """The way back, (d,): +0 where nothing is marked."""
    if mask is None:
        return entries
    if entries.device.type != "cpu":
        return torch.zeros(mask.shape, device=mask.device).masked_scatter_(mask, entries)
    source, spread = entries.numpy(), np.zeros(len(mask), dtype=np.float32)
    for block, where, kept in _marked(mask.numpy()):
        spread[block][where] = source[kept]
    return torch.from_numpy(spread)


def _narrow(entries: Tensor, out: Tensor, counts: list[int]) -> list[float]:
    """Writes fp32 entries (k,) to `out` (k,), in its dtype; of each tensor what they are to be multiplied by then."""
    if out.dtype == torch.float32:
        out.copy_(entries)
        return []
    scales = []
    for piece, target in zip(torch.split(entries, counts), torch.split(out, counts), strict=True):
        peak = float(piece.nan_to_num(0, 0, 0).abs_().max()) if len(piece) else 0.0
        if peak > (largest := _LARGEST[out.dtype]):
            piece, peak = torch.where(piece.isfinite(), piece.clamp(-largest, largest), piece), largest
        fraction, exponent = math.frexp(peak)
        exponent += int(np.float16(fraction))  # that takes the peak into [2¹⁴, 2¹⁵), once it is rounded to 11 bits
        scales.append(2.0 ** max(exponent - 15, -126) if out.dtype == torch.float16 else 1.0)
        torch.mul(piece, 1 / scales[-1], out=target)  # exact until it is rounded to `out`
    return scales


def _widen(entries: Tensor, counts: list[int], scales: list[float]) -> Tensor:
    """The way back, (k,) in fp32."""
    cpu = entries.device.type == "cpu"  # memory from NumPy comes in large pages, which makes its first use cheap
    out = torch.from_numpy(np.empty(len(entries), np.float32)) if cpu else entries.float()
    for piece, target, scale in zip(torch.split(entries, counts), torch.split(out, counts), scales, strict=True):
        target.copy_(piece).mul_(scale)
    return out
