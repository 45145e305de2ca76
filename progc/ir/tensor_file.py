"""Writes and reads safetensors files one tensor at a time, without a second copy of their contents in memory.

The safetensors library writes a dict that is complete in memory, and its memory-mapped tensors count as resident memory
until the file is closed. Here the header is written first, from names, shapes and dtypes; each tensor is written when
its values are computed. The file is byte for byte what the library would write.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from progc.errors import InputError
from progc.files.reading import Entry, read_header
from progc.ir.deferred import defer, values

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES)}
_METADATA = {"format": "pt"}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes tensors to a safetensors file, each with its own contiguous data; values of deferred ones one by one.

    The format does not allow names that share storage, so tied tensors are written once per name: a strict
    `load_state_dict` finds every name, and the module ties them.

    Args:
        path: the file; an existing one is overwritten.
        tensors: the tensors by name.

    Raises:
        InputError: the disk refuses, or the format does not support a dtype.
    """
    order, text = header_of(tensors, path.name)
    places: dict[int, list[int]] = {}
    end = 0
    for name in order:
        places.setdefault(id(tensors[name]), []).append(end)
        end += tensors[name].numel() * tensors[name].element_size()
    try:
        with path.open("wb", buffering=0) as file:
            _write(file, text)
            for name in order:
                starts = places.pop(id(tensors[name]), [])  # a tied tensor is made once and written to all its places
                data = data_of(values(tensors[name])) if starts else None
                for start in starts:
                    file.seek(len(text) + start)
                    _write(file, data)
    except OSError as error:
        raise InputError(f"{path.name} cannot be written: {error.strerror or error}; choose another place") from error


def header_of(
    tensors: Mapping[str, torch.Tensor], file: str, metadata: Mapping[str, str] | None = None
) -> tuple[list[str], bytes]:
    """Returns the names in the order of their data, and the bytes of the header with its length.

    Args:
        tensors: the tensors by name; their values are not read.
        file: the name of the file, for the message.
        metadata: additional metadata of the header.

    Raises:
        InputError: the format does not support a dtype.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise InputError(f"{file} cannot be written: safetensors does not support {tensor.dtype} (tensor {name})")
    order = sorted(tensors, key=lambda name: (-_RANK[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {**_METADATA, **(metadata or {})}}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return order, len(text).to_bytes(8, "little") + text


def _write(file: BinaryIO | Any, data: Any) -> None:
    view = memoryview(data)
    while view:  # one call writes at most 2 GiB
        view = view[file.write(view) :]


def data_of(tensor: torch.Tensor) -> Any:
    """Returns the bytes of a tensor in a safetensors file: a flat buffer, shared with the tensor where possible."""
    flat = tensor.detach().cpu().resolve_conj().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def read_deferred(path: Path, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors of a file written by `write_tensors`, deferred: each is read when its values are requested.

    Args:
        path: the file.
        like: the tensors that the file was written from; they determine parameters and ties.
    """
    entries = read_header(path, links=True)
    made: dict[int, torch.Tensor] = {}
    for name, tensor in like.items():
        if id(tensor) not in made:
            made[id(tensor)] = defer(_reader(path, entries[name]), tensor)
    return {name: made[id(tensor)] for name, tensor in like.items()}


def open_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a safetensors file, deferred: each is read when its values are requested.

    Raises:
        InputError: the file cannot be read, is damaged, or has an unknown dtype.
    """
    try:
        entries = read_header(path, links=True)
        empty = {
            name: torch.empty(entry.shape, dtype=DTYPES_BY_NAME[entry.dtype], device="meta")
            for name, entry in entries.items()
        }
    except InputError as error:
        raise InputError(f"{error}; write the folder again") from error
    except RuntimeError as error:  # torch multiplies the sizes of a shape in 64 bits, also where one of them is 0
        raise InputError(f"{path} is not a readable safetensors file ({error}); write the folder again") from error
    return {name: defer(_reader(path, entry), empty[name]) for name, entry in entries.items()}


def _reader(path: Path, entry: Entry) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        data = torch.empty(entry.end - entry.start, dtype=torch.uint8)
        array: Any = data.numpy()
        view = memoryview(array)
        with path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            while view:
                count = file.readinto(view)
                if not count:
                    raise InputError(f"{path.name} ends too early: it was changed while it was being read")
                view = view[count:]
        return data.view(DTYPES_BY_NAME[entry.dtype]).reshape(entry.shape)

    return read
