"""Nested containers with tensors as a safetensors file or a block of bytes: atomic, checked, no code on reading."""

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fedmtl import atomic

# nodes of the tree's outline that are no plain values: {tag: content}
_DICT, _LIST, _TUPLE, _TENSOR = "dict", "list", "tuple", "tensor"

DTYPES = {  # by their names in a safetensors file
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class StorageError(ValueError):
    """A file or block of bytes is damaged, or holds something else."""


def pack(tree: Any) -> bytes:
    """A tree of dictionaries, lists, tuples, tensors and plain values as one block of bytes.

    Raises:
        TypeError: it holds something else.
    """
    tensors, outline = _take_apart(tree)
    return safetensors.torch.save(tensors, {"tree": json.dumps(outline)})


def unpack(data: bytes) -> Any:
    """The way back.

    Raises:
        StorageError: the bytes are damaged, or something else.
    """
    with _reading("these bytes"):
        length = int.from_bytes(data[:8], "little")
        outline = json.loads(data[8 : 8 + length])["__metadata__"]["tree"]
        return _put_together(json.loads(outline), safetensors.torch.load(data))


def write(path: Path, tree: Any) -> None:
    """Writes a tree whole or not at all.

    Raises:
        OSError: it can't be written; nothing is left behind.
    """
    data = pack(tree)
    atomic.replace(path, lambda file: file.write(data))


def read(path: Path) -> Any:
    """The tree in a file; its tensors are mapped, so that they take memory only where they are changed.

    Raises:
        StorageError: the file is not there, damaged, or something else.
    """
    with _reading(str(path)), safetensors.safe_open(path, framework="pt") as file:
        return _put_together(json.loads(file.metadata()["tree"]), _mapped(path, file))


def _mapped(path: Path, file: Any) -> dict[str, Tensor]:
    """The tensors of a file that has been checked; `get_tensor` (of 0.8) loses the memory of two numbers each time."""
    whole: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    start = 8 + int.from_bytes(bytes(whole[:8].tolist()), "little")  # behind the header tensors lie without a gap
    tensors = {}
    for name in file.offset_keys():
        outline = file.get_slice(name)
        shape, dtype = outline.get_shape(), DTYPES[outline.get_dtype()]
        end = start + math.prod(shape) * dtype.itemsize
        empty = torch.empty(0, dtype=dtype)  # each gets a storage of its own, or pickle would take the whole file
        tensors[name], start = (empty.set_(whole[start:end]) if end > start else empty).reshape(shape), end
    return tensors


def _take_apart(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """All tensors by number, and the rest with their numbers and checksums in their places."""
    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()  # safetensors takes no two tensors that share it

    def outline(node: Any) -> Any:
        if isinstance(node, Tensor):
            value = node.detach().cpu().contiguous()
            if value.untyped_storage().data_ptr() in memory:
                value = value.clone()
            memory.add(value.untyped_storage().data_ptr())
            name = str(len(tensors))
            tensors[name] = value
            return {_TENSOR: [name, _checksum(value)]}
        if isinstance(node, Mapping):
            return {_DICT: [[outline(key), outline(value)] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            return {_LIST if isinstance(node, list) else _TUPLE: [outline(value) for value in node]}
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise TypeError(f"a {type(node).__name__} can't be stored; take tensors and plain values")

    found = outline(tree)
    return tensors, found


def _put_together(outline: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(outline, dict):
        return outline
    ((tag, content),) = outline.items()
    if tag == _TENSOR:
        name, checksum = content
        if _checksum(tensors[name]) != checksum:
            raise StorageError("a wrong checksum")
        return tensors[name]
    if tag == _DICT:
        return {_put_together(key, tensors): _put_together(value, tensors) for key, value in content}
    values = [_put_together(value, tensors) for value in content]
    return {_LIST: values, _TUPLE: tuple(values)}[tag]


def _checksum(tensor: Tensor) -> int:
    content: Any = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
    return zlib.crc32(content)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise StorageError(f"{what}: damaged, or no state ({str(error) or type(error).__name__})") from error
