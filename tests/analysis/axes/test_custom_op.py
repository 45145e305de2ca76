"""Rules of users for operations of their own: those of the guide and of the example suffice for exact growth."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc import rules
from progc.analysis.axes import registry
from progc.errors import NotLosslessError
from progc.ir.check import compare
from tests.analysis.axes.growth import program_of
from tests.command import Command
from tests.kernels import define, set_rules_apart
from tests.test_docs import ROOT, blocks, execute

GUIDE = ROOT / "docs/custom-ops.md"
EXAMPLE = ROOT / "examples" / "custom_op.py"


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    set_rules_apart(monkeypatch)


# -- the recipes of the guide ------------------------------------------------------------------------------


def snake(x: Tensor, slope: Tensor) -> Tensor:
    return x + (x * slope[:, None]).sin().square() / slope[:, None]


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gain


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.gelu(x @ weight + (0 if bias is None else bias))


def packed_attention(qkv: Tensor, num_heads: int) -> Tensor:
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    state, out = x.new_zeros(x.shape[0], *a.shape), []
    for t in range(x.shape[1]):
        state = (dt[:, t, :, None] * a).exp() * state + (dt * x)[:, t, :, None] * b[:, t, None]
        out.append((state * c[:, t, None]).sum(-1))
    return torch.stack(out, 1)


class Snake(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.slope = nn.Conv1d(3, 6, 1), nn.Conv1d(6, 2, 1), nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.ops.mylib.snake(self.into(x), self.slope))


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.gain = nn.Linear(4, 6), nn.Linear(6, 2), nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.ops.mylib.rms_norm(self.into(x), self.gain))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 6), nn.Linear(5, 2)
        self.weight, self.bias = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.ops.mylib.linear_gelu(self.into(x), self.weight, self.bias))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 3 * 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.ops.mylib.packed_attention(self.qkv(x), 2))


class Scan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.dt, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 3), nn.Linear(4, 3)
        self.a, self.out = nn.Parameter(-torch.rand(6, 3)), nn.Linear(6, 2)

    def forward(self, u: Tensor) -> Tensor:
        dt = F.softplus(self.dt(u))
        return self.out(torch.ops.mylib.scan(self.x(u), dt, self.a, self.b(u), self.c(u)))


KERNELS = (snake, rms_norm, linear_gelu, packed_attention, scan)
TOKENS = (2, 5, 4)
# Network, its input, sizes that are exact, sizes that are refused, pinned axes.
RECIPES: dict[str, tuple[type[nn.Module], tuple[int, ...], dict[str, int], dict[str, int], set[str]]] = {
    "snake": (Snake, (2, 3, 5), {"into": 9}, {}, set()),
    "rms_norm": (Norm, TOKENS, {"into": 12}, {"into": 9}, set()),
    "linear_gelu": (Fused, TOKENS, {"into": 7, "weight": 9}, {}, set()),
    "packed_attention": (Attention, TOKENS, {"qkv.heads": 3}, {}, {"qkv"}),
    "scan": (Scan, TOKENS, {"dt": 8, "b": 4}, {}, set()),
}


@pytest.fixture
def recipes() -> None:
    """The guide's rules, on kernels of the same names."""
    for kernel in KERNELS:
        define(f"mylib::{kernel.__name__}", kernel)
    execute(GUIDE, blocks(GUIDE, "python")[1])


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_the_guide_are_exact(recipes: None, name: str) -> None:
    kind, shape, exact, refused, pinned = RECIPES[name]
    program = program_of(kind(), torch.randn(shape))
    table = program.axes
    assert exact.keys() <= {axis.name for axis in table.growable}, str(table)
    assert pinned <= {axis.name for axis in table.axes if not axis.growable}, str(table)
    for axis, size in exact.items():
        wider = progc.apply(program, f"grow-width{{axes={axis}:{size}}}")
        assert compare(program, wider, seed=0).max_rel < 1e-9, axis
    for axis, size in refused.items():
        with pytest.raises(NotLosslessError, match="not an integer factor"):
            progc.apply(program, f"grow-width{{axes={axis}:{size}}}")


@pytest.mark.parametrize("name", RECIPES)
def test_without_its_rule_an_op_pins(recipes: None, name: str) -> None:
    del registry._RULES[f"mylib.{name}"]
    kind, shape, exact, _, _ = RECIPES[name]
    program = program_of(kind(), torch.randn(shape))
    reasons = "; ".join(axis.reason for axis in program.axes.axes)
    assert f"no rule for op mylib.{name}" in reasons
    assert not exact.keys() & {axis.name for axis in program.axes.growable}
    assert program.axes.unknown.keys() == {f"mylib.{name}"}


def test_the_recipes_cover_the_guide_and_are_short() -> None:
    text = blocks(GUIDE, "python")[1]
    assert set(re.findall(r'rule\("mylib\.(\w+)"\)', text)) == set(RECIPES)
    assert all(len(part.strip().splitlines()) <= 12 for part in text.split("@progc.rule")[1:])


def test_first_block_of_the_guide_runs() -> None:
    execute(GUIDE, blocks(GUIDE, "python")[0])


def test_every_helper_is_in_the_guide() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    plain = {"Args", "Context", "Dim", "Value", "rule"}
    assert set(re.findall(r"rules\.(\w+)\(", text)) == set(rules.__all__) - plain


# -- the example -------------------------------------------------------------------------------------------


def test_the_example_grows_from_the_command_line(run: Command) -> None:
    outcome = run("grow", EXAMPLE, "--to", "depth*2,width*2", "--json")
    assert outcome.code == 0, outcome.err
    assert '"lossless": true' in outcome.out
    refused = run("grow", EXAMPLE, "--to", "embed=18")
    assert refused.code == 1 and "example.rms_norm at rms_norm takes statistics over it" in refused.err


def test_the_example_without_its_rules_is_pinned(run: Command) -> None:
    assert run("inspect", EXAMPLE).code == 0  # imported, and with it the rules
    for name in ("example.rms_norm", "example.swiglu"):
        del registry._RULES[name]
    outcome = run("grow", EXAMPLE, "--to", "width=24")
    assert outcome.code == 2 and "no rule for op example." in outcome.err
    reasons = run("inspect", EXAMPLE, "--explain", "embed").out
    assert "pinned by example.rms_norm at rms_norm in blocks.0 (examples/custom_op.py:" in reasons.replace(
        f"{ROOT}/", ""
    )
