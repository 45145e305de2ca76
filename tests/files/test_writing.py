"""Output folders: whole or not at all, readable by strict loading, inspectable without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from progc.errors import InputError
from progc.files.reading import read_folder
from progc.files.writing import check_output, json_text, output_file, output_folder, replace_json, replacing, write_json
from progc.ir.tensor_file import write_tensors
from tests.command import files_below


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with output_folder(target) as folder:
        write_json(folder / "report.json", {"seed": 0})
        write_tensors(folder / "model.safetensors", {"w": torch.zeros(2)})
        assert folder.parent == target.parent and not target.exists()
    assert files_below(tmp_path) == {"a", "a/b", "a/b/model.safetensors", "a/b/report.json"}
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~mask
    assert (target / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / "out") as folder:
        write_json(folder / "report.json", {})
        raise KeyboardInterrupt
    assert files_below(tmp_path) == set()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with output_folder(tmp_path / "out") as folder:
        write_json(folder / "report.json", {})
    assert files_below(tmp_path) == {"out", "out/report.json"}


def test_checking_leaves_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "out")
    assert files_below(tmp_path) == set()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a folder"):
        check_output(tmp_path / "dangling")


def test_tied_and_viewed_tensors_load_strictly(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(6, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

    model, big = Net(), torch.randn(100)
    state = {**model.state_dict(), "view": big[10:14], "turned": torch.randn(2, 3).T, "empty": torch.zeros(0)}
    write_tensors(tmp_path / "m.safetensors", state)
    loaded = load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in state.items()) and set(loaded) == set(state)
    Net().load_state_dict({name: loaded[name] for name in model.state_dict()}, strict=True)
    assert (tmp_path / "m.safetensors").stat().st_size < 2000


def test_json_has_no_nan() -> None:
    text = json_text({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": -float("inf")}})
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_a_folder_reads_back_without_tensors(tmp_path: Path) -> None:
    with output_folder(tmp_path / "out") as folder:
        write_tensors(folder / "model.safetensors", {"w": torch.zeros(2, 3, dtype=torch.bfloat16)})
        write_json(folder / "report.json", {"seed": 3})
    content = read_folder(tmp_path / "out")
    assert content["report"] == {"seed": 3} and content["plan"] is None
    assert content["tensors"] == {"model.safetensors": {"w": {"dtype": "BF16", "shape": [2, 3]}}}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="a cannot be written: No such file or directory; free space"):
        with output_file(tmp_path / "none" / "a", "free space") as temporary:
            temporary.write_text("x")


def test_json_replaces_a_file_but_not_a_folder(tmp_path: Path) -> None:
    replace_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None}
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        replace_json(tmp_path, {})
