"""A depth for all chains: those that can grow exactly do, the others keep their depth with a note."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc.errors import NotLosslessError, TargetError
from progc.growth.grow import grow_with_report
from progc.ir.program import Program
from progc.models.sizes import parse_sizes
from progc.passes.grow_depth import GrowDepth
from progc.transforms.depth import attempt
from tests import zoo
from tests.passes.deepened import check_alive, check_lossless, grown

WIDTH = 4


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Layer(nn.Module):
    """Convolution, norm and activation: without a skip path."""

    def __init__(self, activation: str = "gelu") -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x) if self.activation == "relu" else F.gelu(x)


class Residual(nn.Module):
    """x + f(x), divided or not."""

    def __init__(self, divisor: float = 1.0) -> None:
        super().__init__()
        self.conv, self.norm, self.divisor = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), divisor

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.conv(F.relu(self.norm(x)))) / self.divisor


class Net(nn.Module):
    """A stem of layers, two stages."""

    def __init__(self, stem: str = "gelu", first: float = 1.0, second: float = 1.0, depth: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 1)
        self.stem = nn.Sequential(*(Layer(stem) for _ in range(2)))
        self.first = nn.Sequential(*(Residual(first) for _ in range(depth if first == 1 else 2)))
        self.second = nn.Sequential(*(Residual(second) for _ in range(depth if second == 1 else 2)))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.max_pool2d(self.first(self.stem(F.relu(self.patch(x)))), 2))
        return self.head(x.mean((2, 3)))


def captured(**options: Any) -> Program:
    return progc.capture(zoo.perturb(Net(**options)).eval(), (torch.randn(4, 3, 6, 6),))


def test_what_can_grow_grows_and_the_rest_is_told() -> None:
    program = captured(second=2.0)
    assert [chain.name for chain in program.chains] == ["stem", "first", "second"]
    result = grown(program, to="*2")
    check_lossless(program, result)
    check_alive(result)
    assert result.counts == {"blocks inserted": 2, "chains grown": 1}
    stem, second = result.notes
    assert stem.startswith("stem keeps its depth: a copy of stem.0 cannot be the identity: ")
    assert "aten.gelu.default" in stem
    assert second.startswith("second keeps its depth: a copy of second.0 cannot be the identity: the skip path")
    Net(second=2.0, depth=4).load_state_dict(result.program.state_dict(), strict=True)
    # The same through the way from end to end, which also measures.
    whole = grow_with_report(program, parse_sizes("depth*2"))
    assert whole.plan.lossless and [growth.chain for growth in whole.plan.chains] == ["first"]
    assert any(note.startswith("stem keeps its depth") for note in whole.plan.notes)


@pytest.mark.parametrize(
    "options", [{"to": ("stem:4",)}, {"to": ("*2", "stem:*2")}, {"to": ("*2",), "chains": ("s*", "first")}]
)
def test_a_chain_that_is_named_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(NotLosslessError, match=r"a copy of stem\.0 cannot be the identity: .*; use init=interpolate"):
        GrowDepth(**options).run(captured())


def test_no_chain_that_can_is_the_refusal_of_the_first() -> None:
    with pytest.raises(NotLosslessError, match=r"^a copy of stem\.0 cannot be the identity: .* init=interpolate, or"):
        GrowDepth(to="*2").run(captured(first=2.0, second=2.0))
    result = grown(captured(first=2.0, second=2.0), to="*2", lossy=True)
    assert result.lossless is False and result.counts["chains grown"] == 3


def test_layers_without_a_skip_path_stay_beside_blocks_that_have_one() -> None:
    program = captured(stem="relu")
    result = grown(program, to="*2")
    check_lossless(program, result)
    assert result.counts["chains grown"] == 2
    assert "stem keeps its depth" in result.notes[0] and "name it" in result.notes[0]
    named = grown(program, to=("*2", "stem:*2"))
    check_lossless(program, named)
    assert named.counts["chains grown"] == 3
    alone = captured(stem="relu", first=2.0, second=2.0)
    result = grown(alone, to="*2")
    check_lossless(alone, result)
    assert result.counts == {"blocks inserted": 2, "chains grown": 1}


def test_identities_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    found = attempt.identity

    def counted(program: Any, block: Any, lifts: Any) -> Any:
        calls.append(block.chain.name)
        return found(program, block, lifts)

    monkeypatch.setattr(attempt, "identity", counted)
    grown(captured(), to="*3")
    assert [calls.count(name) for name in ("stem", "first", "second")] == [1, 4, 4]


def test_a_chain_that_takes_no_more_blocks_is_left_alone() -> None:
    class Mixed(nn.Module):
        """Dense layers whose concatenation is read by a group norm, behind residual blocks."""

        def __init__(self) -> None:
            super().__init__()
            self.patch, self.blocks = nn.Conv2d(3, WIDTH, 1), nn.Sequential(Residual(), Residual())
            self.dense = nn.ModuleList(nn.Conv2d(WIDTH * (i + 1), WIDTH, 3, padding=1) for i in range(3))
            self.norm = nn.GroupNorm(4, 4 * WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks(self.patch(x))
            for layer in self.dense:
                x = torch.cat([x, layer(x)], 1)
            return self.norm(x)

    program = progc.capture(zoo.perturb(Mixed()).eval(), (torch.randn(4, 3, 6, 6),))
    assert [chain.kind for chain in program.chains] == ["residual", "dense"]
    result = grown(program, to="*2")
    check_lossless(program, result)
    assert result.notes[0].startswith("dense keeps its depth: aten.group_norm.default")
    with pytest.raises(TargetError, match="does not accept more channels"):
        GrowDepth(to="dense:6").run(program)


class Cheap(nn.Module):
    """x + cat(a, b) where b is made of a: both ends have a norm, and one norm reads what the other silences."""

    def __init__(self) -> None:
        super().__init__()
        half = WIDTH // 2
        self.a, self.norm_a = nn.Conv2d(WIDTH, half, 1), nn.BatchNorm2d(half)
        self.b, self.norm_b = nn.Conv2d(half, half, 3, padding=1, groups=half), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        a = self.norm_a(self.a(x))
        return x + torch.cat([a, self.norm_b(self.b(a))], 1)


class Normed(nn.Module):
    """norm(x + conv(x)) + f(...): a BatchNorm on the skip path."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.mlp = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.mix(x))
        return x + self.mlp(F.gelu(x))


class Stack(nn.Module):
    def __init__(self, block: type[nn.Module], depth: int = 2) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, WIDTH, 1), nn.Sequential(*(block() for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.patch(x)).mean((2, 3))


@pytest.mark.parametrize("block", [Cheap, Normed])
def test_norms_that_read_silent_values_or_stand_on_the_skip_path(block: type[nn.Module]) -> None:
    program = progc.capture(zoo.perturb(Stack(block)).eval(), (torch.randn(4, 3, 6, 6),))
    result = grown(program, to="5")
    check_lossless(program, result)
    check_alive(result, steps=3)
    Stack(block, 5).load_state_dict(result.program.state_dict(), strict=True)
    assert any("in train mode" in note for note in result.notes) == (block is Normed)


def test_a_size_that_blocks_hand_on_is_worked_out_once() -> None:
    """Windows: each block asks the one before for its batch of windows; the inserted block asks in its place."""
    from timm.models.tiny_vit import TinyVit

    module = TinyVit(
        embed_dims=(16, 32, 48, 64), depths=(1, 2, 1, 1), num_heads=(2, 2, 3, 4), window_sizes=(4, 4, 4, 2),
        num_classes=10,
    )  # fmt: skip
    program = progc.capture(zoo.perturb(module).eval(), (torch.randn(2, 3, 64, 64),))
    growth = grow_with_report(program, parse_sizes("depth*2"))
    assert growth.plan.lossless and growth.report["max_rel_diff"] < 1e-9
