"""More classes in the target: old outputs keep their values, new ones come behind them, and the report says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import progc
from progc.errors import NotLosslessError, TargetError
from progc.growth.grow import grow_with_report
from progc.growth.plan import GrowthPlan
from tests import zoo
from tests.command import in_process
from tests.grown import gap, outputs


class Classifier(nn.Module):
    """Two heads whose mean is the answer, or an answer that mixes the classes."""

    def __init__(self, dim: int, classes: int, end: str = "mean") -> None:
        super().__init__()
        self.end = end
        self.stem, self.norm = nn.Conv2d(3, dim, 3, padding=1), nn.BatchNorm2d(dim)
        self.head, self.second = nn.Linear(dim, classes), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x))).mean((2, 3))
        y = (self.head(x) + self.second(x)) / 2
        if self.end == "softmax":
            return y.softmax(-1)
        if self.end == "centred":
            return y - y.mean(-1, keepdim=True)
        return y[:, :, None].expand(-1, -1, 4).flatten(1) if self.end == "inside" else y


def captured(dim: int, classes: int, end: str = "mean") -> tuple[nn.Module, progc.Program]:
    torch.manual_seed(dim)
    model = zoo.perturb(Classifier(dim, classes, end)).eval()
    return model, progc.capture(model, (torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize("dim", [6, 9])
@pytest.mark.parametrize("init", ["copy", "zero"])
def test_old_classes_keep_their_outputs(dim: int, init: str) -> None:
    model, program = captured(6, 5)
    reference, target = captured(dim, 12)
    growth = grow_with_report(program, target, inits={"width": init})
    report = growth.report
    assert report["lossless"] is True and report["compared"] == "old classes" and report["max_rel_diff"] < 1e-9
    assert any(
        note == "head: 7 new classes appended; lossless on the old classes (the first 5 of 12)"
        for note in growth.plan.notes
    )
    reference.load_state_dict(growth.program.state_dict(), strict=True)
    image = (torch.randn(3, 3, 8, 8),)
    before, (after,) = outputs(model, image, {}), outputs(reference, image, {})
    assert after.shape == (3, 12) and gap(before, [after[:, :5]]) < 1e-9
    new = growth.program.tensors["head.weight"][5:]
    assert bool((new == 0).all()) is (init == "zero") and torch.isfinite(new).all()


def test_the_plan_alone_grows_another_copy() -> None:
    _, program = captured(6, 5)
    growth = grow_with_report(program, captured(9, 12)[1])
    plan = GrowthPlan.from_json(json.loads(json.dumps(growth.plan.to_json())))
    grown = plan.apply(program.tensors)
    assert all(torch.equal(grown[name], tensor) for name, tensor in growth.program.state_dict().items())


def test_without_more_classes_all_outputs_are_compared() -> None:
    report = grow_with_report(captured(6, 5)[1], captured(9, 5)[1]).report
    assert report["compared"] == "all outputs" and report["lossless"] is True


def test_a_wrong_old_output_is_found() -> None:
    """The comparison looks at the old classes, not away."""
    from progc.growth.target.outputs import old_outputs
    from progc.ir.check import compare

    _, program = captured(6, 5)
    grown = grow_with_report(program, captured(6, 12)[1]).program
    bias = grown.tensors["head.bias"].detach().clone()
    bias[4] += 1
    for position, apart in ((4, True), (5, False)):
        bias = grown.tensors["head.bias"].detach().clone()
        bias[position] += 1
        other = grown.replace(tensors={**grown.tensors, "head.bias": nn.Parameter(bias)})
        assert (compare(program, old_outputs(other, program), seed=0).max_rel > 1e-3) is apart


def test_operations_that_mix_classes_are_refused() -> None:
    with pytest.raises(
        TargetError,
        match=r"head\.weight \[5, 6\] -> \[12, 9\] \(softmax runs over it; it is an output",
    ):
        progc.grow(captured(6, 5, "softmax")[1], captured(9, 12, "softmax")[1])
    with pytest.raises(NotLosslessError, match=r"aten\.mean at mean_1 does not ignore new outputs"):
        progc.grow(captured(6, 5, "centred")[1], captured(9, 12, "centred")[1])


def test_outputs_that_would_move_apart_are_refused() -> None:
    """Classes outside, four copies inside: the first rows stay first."""
    model, program = captured(6, 5, "inside")
    growth = grow_with_report(program, captured(9, 12, "inside")[1])
    assert growth.report["compared"] == "old classes" and growth.report["max_rel_diff"] < 1e-9


def test_fewer_classes_are_a_smaller_target() -> None:
    with pytest.raises(TargetError, match=r"smaller than the source: head\.weight \[5, 6\] -> \[3, 9\]"):
        progc.grow(captured(6, 5)[1], captured(9, 3)[1])


def test_the_command_says_that_it_speaks_of_the_old_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, dim, classes in (("small", 4, 3), ("large", 8, 6)):
        (tmp_path / f"{name}.py").write_text(
            "import torch\n"
            f"def build():\n    return torch.nn.Sequential(torch.nn.Linear(5, {dim}), torch.nn.ReLU(), "
            f"torch.nn.Linear({dim}, {classes}))\n"
            "def example_inputs():\n    return (torch.randn(2, 5),)\n"
        )
    outcome = in_process(capsys)("grow", tmp_path / "small.py", "--to", tmp_path / "large.py")
    assert outcome.code == 0, outcome.err
    assert "yes, lossless on the old classes, by analysis" in outcome.out
    assert "3 new classes appended; lossless on the old classes (the first 3 of 6)" in outcome.out
