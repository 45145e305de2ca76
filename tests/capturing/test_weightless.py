"""Capture without memory for weights: the same program but for values, which nobody gets by accident."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import progc
from progc.analysis.costs.counting import count
from progc.capturing.capture import capture, capture_deferred
from progc.errors import CaptureError, InputError
from progc.ir.deferred import is_deferred
from progc.ir.graphs import fingerprint
from progc.ir.program import Program
from progc.models.opening import open_source
from progc.models.skeleton import build_skeleton
from tests.nets import ConvNet, ImageTransformer, TiedWeights
from tests.zoo import construct, image

ROOT = Path(__file__).resolve().parents[2]
STAGE = "shrink{depth=*0.5 resolution=16}, freeze{prefix=1 stem=true measure=false}"


def both(name: str) -> tuple[Program, Program]:
    """The program with weights, and without."""
    model, args, kwargs = construct(name)
    bare = build_skeleton(lambda: construct(name)[0], allocate=False)
    assert all(parameter.is_meta for parameter in bare.parameters() if parameter.requires_grad)
    return capture(model, args, kwargs), capture_deferred(bare, args, kwargs)


@pytest.mark.parametrize("name", ["own:image", "timm:resnet18@64", "own:tied"])
def test_the_program_is_the_one_with_weights_but_for_values(name: str) -> None:
    real, bare = both(name)
    assert fingerprint(real) == fingerprint(bare) and real.tied == bare.tied
    assert count(real) == count(bare)
    assert [chain.name for chain in real.chains] == [chain.name for chain in bare.chains]
    assert real.num_parameters() == bare.num_parameters()
    for tensor in bare.tensors.values():
        assert is_deferred(tensor) if tensor.requires_grad else type(tensor) in (torch.Tensor, nn.Parameter)
        assert is_deferred(tensor) or not tensor.is_meta


def test_a_stage_is_made_of_it_as_of_the_real_one() -> None:
    real, bare = both("own:image")
    assert fingerprint(progc.apply(real, STAGE)) == fingerprint(progc.apply(bare, STAGE))
    assert count(progc.apply(real, STAGE)).to_json() == count(progc.apply(bare, STAGE)).to_json()


def test_values_are_refused_in_one_line() -> None:
    bare = capture_deferred(build_skeleton(ConvNet, allocate=False), (image(16),))
    for ask in (bare.module, bare.state_dict, bare.complete):
        with pytest.raises(InputError, match=r"^ConvNet was captured without its weights, to plan only; use progc.cap"):
            ask()


def test_the_model_stays_as_it_was_and_ties_stay() -> None:
    model = build_skeleton(TiedWeights, allocate=False)
    before = dict(model.named_parameters(remove_duplicate=False))
    program = capture_deferred(model, (torch.tensor([[1, 2], [3, 4]]),))
    after = dict(model.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
    assert program.tensors["head.weight"] is program.tensors["embed.weight"] and program.tied
    with pytest.raises(CaptureError):
        capture_deferred(model, (torch.tensor([1.5]),))
    assert all(before[name] is tensor for name, tensor in model.named_parameters(remove_duplicate=False))
    with torch.device("meta"):
        nowhere = ConvNet()
    with pytest.raises(CaptureError, match=r"stem_norm\.running_mean of ConvNet is on the meta device"):
        capture_deferred(nowhere, (image(16),))
    with pytest.raises(CaptureError, match="cannot capture a int"):
        capture_deferred(3, ())  # type: ignore[arg-type]


def test_real_weights_are_let_go() -> None:
    program = capture_deferred(ImageTransformer(), (image(32),))
    assert all(is_deferred(tensor) for _, tensor in program.parameters())


class Computed(nn.Module):
    """Positions that were computed, in a parameter that does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.zeros(3, 4), requires_grad=False)
        with torch.no_grad():
            self.table.copy_(torch.arange(12.0).reshape(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x + self.table)


def test_parameters_that_do_not_train_keep_their_values() -> None:
    program = capture_deferred(build_skeleton(Computed, allocate=False), (torch.randn(2, 3, 4),))
    assert torch.equal(program.tensors["table"], torch.arange(12.0).reshape(3, 4))
    assert is_deferred(program.tensors["body.weight"]) and program.specs["table"].fixed


def test_a_source_gives_its_program_with_and_without_weights(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "def build(): return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))\n"
        "def example_inputs(): return (torch.randn(2, 4),)\n",
        encoding="utf-8",
    )
    source = open_source(str(path))
    real, bare = source.program(), source.program(weights=False)
    assert fingerprint(real) == fingerprint(bare)
    assert not any(map(is_deferred, real.tensors.values())) and any(map(is_deferred, bare.tensors.values()))


PLANNED = """
import resource, sys
import torch
from progc.capturing.capture import capture_deferred
from progc.schedule.costing import counted_stages
from progc.schedule import Point, Stage, Unfreeze
from progc.models.skeleton import build_skeleton
from tests.nets import ImageTransformer

def plan(width):
    model = build_skeleton(lambda: ImageTransformer(width, 8, 3), allocate=False)
    program = capture_deferred(model, (torch.randn(2, 3, 32, 32),))
    points = [Point({"blocks": 2}, {}, (16, 16), Unfreeze("interleave", 1, 4)), Point()]
    stages = counted_stages(program, [Stage(i, point, 0.5) for i, point in enumerate(points)])
    return stages[-1].cost

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

plan(16)  # what imports and caches take
before = peak()
cost = plan(4096)
print(cost.parameter_bytes, cost.memory, peak() - before)
"""


def test_planning_takes_no_memory_for_weights() -> None:
    """1.6 GB of parameters, 6.5 GB for a step: what is taken is a few hundredths of the weights."""
    done = subprocess.run([sys.executable, "-c", PLANNED], capture_output=True, text=True, timeout=1800, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    weights, step, taken = map(int, done.stdout.split())
    assert weights > 1.5e9 and step > 4 * weights
    assert taken < 0.05 * weights
