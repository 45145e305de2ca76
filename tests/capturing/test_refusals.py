"""A model that cannot be captured gets one line: file, line, construct and the way out."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import progc
from progc.capturing.refusals import place_of_trace
from progc.errors import CaptureError


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)


class Branch(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.linear(x).sum() > 0:  # here
            return x
        return -x


class BranchOnItem(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum().item() > 1 else -x  # here


class ItemAsSlice(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = int(x.abs().sum().item())  # here
        return self.linear(x)[:, :count]


class ItemAsSize(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.abs().sum().long().item()  # here
        return torch.zeros(count) + self.linear(x).sum()


class ListOfValues(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for value in x.sum(0).tolist():  # here
            x = x + value
        return self.linear(x)


class LoopOverValue(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(x.abs().long()[0, 0]):  # here
            x = self.linear(x)
        return x


class WhileLoop(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while x.norm() < 100:  # here
            x = self.linear(x) * 2
        return x


class Assertion(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.min() >= -100  # here
        return self.linear(x)


class Selection(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x[x.sum(1) > 0])  # here


class Numpy(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.tanh(self.linear(x).detach().numpy()))  # here


class Holder:
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


class UnknownOutput(Base):
    def forward(self, x: torch.Tensor) -> Holder:  # here
        return Holder(self.linear(x))


class Conditional(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y * 3, (x,))  # here


class Autocast(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.linear(x)


class WrongShape(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) @ torch.zeros(3, 3)  # here


class MissingAttribute(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nothing(x)  # here


class Helper(Base):
    """The failing line is in a function that forward calls."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return clipped(self.linear(x))


def clipped(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(max=1) if x.max() > 1 else x  # here


CASES: list[tuple[type[nn.Module], str, str]] = [
    (Branch, "branches on the value of a tensor", r"use torch\.where"),
    (BranchOnItem, "branches on the value of a tensor", r"use torch\.where"),
    (ItemAsSlice, r"reads a number from a tensor \(\.item\(\)\)", "keep the value in a tensor"),
    (ItemAsSize, r"reads a number from a tensor \(\.item\(\)\)", "keep the value in a tensor"),
    (ListOfValues, r"reads a number from a tensor \(\.item\(\)\)", "keep the value in a tensor"),
    (LoopOverValue, "runs a loop whose length depends on the value of a tensor", "fixed number of steps"),
    (WhileLoop, "runs a loop whose length depends on the value of a tensor", "fixed number of steps"),
    (Assertion, "asserts something about the value of a tensor", "remove the assertion"),
    (Selection, "creates a tensor whose size depends on the data", r"torch\.where, masks"),
    (Numpy, "calls numpy", "use the corresponding torch function"),
    (UnknownOutput, "returns an object of class Holder", "return tensors in tuples, lists, dicts"),
    (Conditional, r"uses control flow on tensors \(cond\)", r"use torch\.where"),
    (Autocast, r"enables torch\.autocast inside forward", "around the model"),
    (WrongShape, "fails: RuntimeError: .*3, 3", "runs on the example inputs"),
    (MissingAttribute, "fails: AttributeError: .*nothing", "runs on the example inputs"),
    (Helper, "branches on the value of a tensor", r"use torch\.where"),
]


def marked_line(kind: type) -> int | None:
    """The line of this file marked `# here` in the class (or, for Helper, in its function)."""
    with open(__file__, encoding="utf-8") as file:
        lines = file.read().splitlines()
    name = "def clipped(" if kind is Helper else f"class {kind.__name__}("
    start = next(number for number, line in enumerate(lines, 1) if line.startswith(name))
    for number, line in enumerate(lines[start:], start + 1):
        if line.endswith("# here"):
            return number
        if line.startswith(("class ", "def ")):
            return None
    return None


@pytest.mark.parametrize(("kind", "construct", "way_out"), CASES, ids=[case[0].__name__ for case in CASES])
def test_message_names_place_construct_and_way_out(
    kind: type[nn.Module], construct: str, way_out: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptureError) as caught:
        progc.capture(kind(), (torch.randn(2, 4),))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    line = marked_line(kind)
    place = rf"test_refusals\.py:{line} " if line else r"test_refusals\.py:\d+ "
    pattern = rf"^cannot capture {kind.__name__}: (\S*/)?{place}{construct}.*; .*{way_out}"
    assert re.search(pattern, message), message
    assert capfd.readouterr() == ("", "")  # none of torch's own noise


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, r"test_refusals\.py:\d+ does not take the example inputs: missing a required argument: 'x'"),
        ((torch.zeros(2, 4), 1), {}, "too many positional arguments"),
        ((torch.zeros(2, 4),), {"q": 1}, "unexpected keyword argument 'q'"),
        (torch.zeros(2, 4), {}, r"expected a tuple of arguments such as \(x,\), got a Tensor"),
        ((Holder(torch.zeros(2)),), {}, "gets an input of class Holder.*; pass tensors"),
    ],
)
def test_example_inputs_that_do_not_fit(args: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        progc.capture(Branch(), args, kwargs)
    assert "\n" not in str(caught.value)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"cannot capture a type: expected an instance of torch\.nn\.Module"):
        progc.capture(Branch, (torch.zeros(2, 4),))  # type: ignore[arg-type]


def test_lazy_and_scripted_modules_are_named() -> None:
    with pytest.raises(CaptureError, match="lazy parameters that were never materialised; call the model once"):
        progc.capture(nn.Sequential(nn.LazyLinear(3)), (torch.zeros(2, 4),))
    with pytest.warns((DeprecationWarning, FutureWarning)):  # which one depends on torch's version
        scripted = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(CaptureError, match="it is a TorchScript module; capture the Python module"):
        progc.capture(scripted, (torch.zeros(2, 4),))


def test_place_of_a_graph_node_skips_library_frames() -> None:
    text = f'File "/home/me/net.py", line 3, in forward\n    y = f(x)\n  File "{torch.__file__}", line 9, in f\n    g()'
    place = place_of_trace(text)
    assert place is not None and (place.file, place.line, place.source) == ("/home/me/net.py", 3, "y = f(x)")
    assert place_of_trace(None) is None
