"""Safetensors files written and read one tensor at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from progc.deferred import defer, is_deferred, values
from progc.errors import InputError
from progc.save import output_folder
from progc.tensor_file import read_deferred, write_tensors
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
    with pytest.raises(InputError, match=r"safetensors knows no torch.complex128 \(c\)"):
        write_tensors(tmp_path / "m.safetensors", {"c": torch.ones(1, dtype=torch.complex128)})


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path, state = tmp_path / "m", {"a": torch.ones(1000)}
    write_tensors(path, state)
    later = read_deferred(path, state)["a"]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="ends too early"):
        values(later)
