"""Safetensors files written and read one tensor at a time."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from progc.errors import InputError
from progc.files.writing import output_folder
from progc.ir.deferred import defer, is_deferred, values
from progc.ir.tensor_file import open_tensors, read_deferred, write_tensors
from tests.command import files_below

STATE = {
    "b.weight": torch.randn(3, 5),
    "a": torch.randn(2, dtype=torch.float64),
    'ü"\n': torch.randn(4).to(torch.bfloat16),
    "half": torch.randn(2, 2).half(),
    "flags": torch.tensor([True, False, True]),
    "count": torch.tensor(7),
    "small": torch.tensor([1, -2], dtype=torch.int8),
    "bytes": torch.tensor([1, 255], dtype=torch.uint8),
    "complex": torch.randn(2, dtype=torch.complex64),
    "eight": torch.randn(3).to(torch.float8_e4m3fn),
    "none": torch.zeros(0, 3),
}


def test_the_file_is_the_one_the_library_writes(tmp_path: Path) -> None:
    write_tensors(tmp_path / "ours", STATE)
    save_file(STATE, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    loaded = load_file(tmp_path / "ours")
    for name, tensor in read_deferred(tmp_path / "ours", STATE).items():
        assert is_deferred(tensor) and values(tensor).dtype == STATE[name].dtype
        assert torch.equal(values(tensor).view(torch.uint8) if tensor.dim() else values(tensor),
                           STATE[name].view(torch.uint8) if tensor.dim() else STATE[name])  # fmt: skip
    assert loaded.keys() == STATE.keys()


def test_a_tied_tensor_is_made_once_and_written_under_both_names(tmp_path: Path) -> None:
    made = []

    def make() -> torch.Tensor:
        made.append(torch.arange(6.0).reshape(2, 3))
        return made[-1]

    later = defer(make, torch.zeros(2, 3))
    write_tensors(tmp_path / "m", {"embed": later, "middle": torch.ones(1), "head": later})
    loaded = load_file(tmp_path / "m")
    assert len(made) == 1 and torch.equal(loaded["embed"], made[0]) and torch.equal(loaded["head"], made[0])
    back = read_deferred(tmp_path / "m", {"embed": later, "head": later})
    assert back["embed"] is back["head"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupt() -> torch.Tensor:
        raise KeyboardInterrupt

    tensors = {"a": torch.ones(1000), "b": defer(interrupt, torch.zeros(3))}
    with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / "deep" / "out") as folder:
        write_tensors(folder / "m.safetensors", tensors)
    assert files_below(tmp_path) == set()


def test_a_disk_that_refuses_is_an_error_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file or directory; choose another place"):
        write_tensors(tmp_path / "missing" / "m.safetensors", {"a": torch.ones(1)})
    with pytest.raises(InputError, match=r"safetensors does not support torch.complex128 \(tensor c\)"):
        write_tensors(tmp_path / "m.safetensors", {"c": torch.ones(1, dtype=torch.complex128)})


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path, state = tmp_path / "m", {"a": torch.ones(1000)}
    write_tensors(path, state)
    later = read_deferred(path, state)["a"]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="ends too early"):
        values(later)


def test_any_file_opens_as_deferred_tensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "theirs", metadata={"made": "elsewhere"})
    opened = open_tensors(tmp_path / "theirs")
    assert opened.keys() == STATE.keys()
    for name, tensor in opened.items():
        wanted = STATE[name]
        assert is_deferred(tensor) and (tensor.shape, tensor.dtype) == (wanted.shape, wanted.dtype)
        assert torch.equal(values(tensor).reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8))


def test_reading_one_tensor_does_not_read_the_others(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write_tensors(path, {"a": torch.ones(3), "b": torch.zeros(3)})
    opened = open_tensors(path)
    data = bytearray(path.read_bytes())
    data[-1] = 64  # the last byte of b
    path.write_bytes(data)
    assert torch.equal(values(opened["a"]), torch.ones(3)) and float(values(opened["b"])[2]) == 2.0


def _file(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**62),
        _file(_entry(), bytes(8))[:30],
        _file(_entry(), bytes(7)),
        _file(_entry(data_offsets=[0, 4]), bytes(8)),
        _file(_entry(data_offsets=[8, 0]), bytes(8)),
        _file(_entry(data_offsets=[0]), bytes(8)),
        _file(_entry(shape=[3]), bytes(8)),
        _file(_entry(shape=[-1]), bytes(8)),
        _file(_entry(shape="x"), bytes(8)),
        _file(_entry(dtype="F7"), bytes(8)),
        _file({"a": 1}, b""),
        _file([1], b""),
        struct.pack("<Q", 4) + b"\xff{}}",
    ],
)
def test_a_damaged_file_is_an_error_for_the_user(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a readable safetensors file .*; write the folder again") as raised:
        open_tensors(path)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="missing is missing"):
        open_tensors(tmp_path / "missing")
