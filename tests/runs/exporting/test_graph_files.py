"""Graphs with weights as files: names of inputs, free batch sizes, plain outputs, checks before they are written."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import progc
from progc.errors import CheckError, InputError
from progc.ir.program import Program
from progc.runs.exporting import graph_files
from progc.runs.exporting.export import Request, export
from progc.runs.exporting.graph_files import check_onnx, plain, signature_of, write_pt2
from progc.runs.trained import TrainedNetwork
from tests.runs.exporting.test_export import X, at_row


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    yield


def exported(run: Path, **options: Any) -> Path:
    request = Request.make(TrainedNetwork.open(run, stage=options.pop("stage", None)), **options)
    return Path(export(request, phase=phase, note=lambda text: None)["path"])


def test_a_pt2_file_loads_without_the_model_and_takes_any_batch(trained_run: Path) -> None:
    path = exported(trained_run, form="pt2")
    loaded = torch.export.load(path)
    assert loaded.graph_signature.user_inputs == ("x",) and "blocks.3.fc1.weight" in loaded.state_dict
    expected = at_row(trained_run, 1, 1)
    for count in (1, 2, 9):
        assert (loaded.module()(X[:count].float()) - expected(X[:count])).abs().max() < 1e-5
    code = "import sys, torch; m = torch.export.load(sys.argv[1]).module(); print(m(torch.zeros(3, 5)).shape[0])"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent, timeout=600, env={**os.environ})
    assert done.stdout == "3\n", done.stderr


def test_a_kept_identifier_is_an_input(trained_run: Path) -> None:
    loaded = torch.export.load(exported(trained_run, to=trained_run.parent / "kept.pt2", sid="keep", stage=0)).module()
    for row in range(3):
        outputs = loaded(X.float(), stage=torch.full((9,), row))
        assert (outputs - at_row(trained_run, 0, row)(X)).abs().max() < 1e-5


@dataclasses.dataclass
class Heads:
    first: torch.Tensor
    second: torch.Tensor | None = None


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Two(nn.Module):
    """Nested inputs, a number, and outputs of a class."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, scale: float, *, masks: dict[str, torch.Tensor]) -> Heads:
        return Heads(self.one(x) * scale + masks["a"])


def two() -> Program:
    return progc.capture(Two(), (torch.randn(2, 3), 2.0), {"masks": {"a": torch.ones(2, 2)}})


def test_outputs_of_a_class_become_a_dict(tmp_path: Path) -> None:
    program = two()
    assert list(signature_of(program).parameters) == ["x", "scale", "masks"]
    write_pt2(program, tmp_path / "w.pt2")
    loaded = torch.export.load(tmp_path / "w.pt2").module()
    x, masks = torch.randn(5, 3), {"a": torch.zeros(5, 2)}
    found = loaded(x, 2.0, masks=masks)
    assert type(found) is dict and torch.equal(found["first"], program.module().eval()(x, 2.0, masks=masks).first)


def test_plain_outputs() -> None:
    value = torch.ones(1)
    assert plain(Heads(value)) == {"first": value, "second": None}
    assert plain(Pair(value, value)) == (value, value) and type(plain(Pair(value, value))) is tuple
    assert plain([OrderedDict(a=(value,))]) == [{"a": (value,)}] and type(plain(OrderedDict())) is dict


def test_a_graph_that_computes_something_else_is_not_written(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = graph_files._exported

    def wrong(program: Program) -> Any:
        changed = {name: nn.Parameter(tensor.detach() + 1) for name, tensor in program.tensors.items()}
        return real(program.replace(tensors=changed))

    monkeypatch.setattr(graph_files, "_exported", wrong)
    with pytest.raises(CheckError, match=r"the exported graph differs from the network by .*nothing was written"):
        exported(trained_run, to=trained_run.parent / "w.pt2")
    assert not list(trained_run.parent.glob("*.pt2")) and not list(trained_run.parent.glob(".progc*"))


def test_onnx_needs_its_packages(monkeypatch: pytest.MonkeyPatch, trained_run: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if "onnx" in name else real(name, *more))
    monkeypatch.setattr(TrainedNetwork, "program", lambda *args, **more: pytest.fail("built"))
    with pytest.raises(InputError, match=r"needs onnx, onnxscript, onnxruntime; pip install 'progc\[onnx\]', or use"):
        exported(trained_run, form="onnx")


def test_an_onnx_file_runs_and_agrees(trained_run: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = exported(trained_run, to=trained_run.parent / "w.onnx", sid="keep")
    session = onnxruntime.InferenceSession(str(path))
    assert [item.name for item in session.get_inputs()] == ["x", "stage"]
    for count in (1, 9):
        rows = torch.full((count,), 1)
        (found,) = session.run(None, {"x": X[:count].float().numpy(), "stage": rows.numpy()})
        assert (torch.from_numpy(found) - at_row(trained_run, 1, 1)(X[:count])).abs().max() < 1e-5
    assert list(path.parent.glob("*.data")) == []


def test_a_network_that_is_too_large_for_onnx_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name)
    monkeypatch.setattr(graph_files, "_ONNX_LIMIT", 10)
    check_onnx()
    with pytest.raises(InputError, match=r"the weights take .* GiB, and an ONNX file holds 2 GiB; use --format pt2"):
        check_onnx(two())
