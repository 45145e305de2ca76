"""Depth growth: exact where it says so, names of the user's class, refusals with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import progc
from progc.errors import NotLosslessError, PassOptionError, TargetError
from progc.ir.check import compare, compare_train
from progc.lift.lift import Lift
from progc.passes.grow_depth import GrowDepth
from progc.transforms.depth.naming import arranged, interpolated
from tests import zoo
from tests.passes.deepened import captured, check_alive, check_lossless, grown

WIDTH = 6


class Block(nn.Module):
    """A residual block of one of several styles over f32[batch, WIDTH]."""

    def __init__(self, style: str, eps: float = 1e-5) -> None:
        super().__init__()
        self.style = style
        self.up, self.down = nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH)
        self.before = nn.LayerNorm(WIDTH, eps=eps)
        if style in ("sandwich", "post norm"):
            self.after = nn.LayerNorm(WIDTH, eps=eps)
        if style in ("parallel", "post norm"):
            self.other = nn.Linear(WIDTH, WIDTH)
        if style == "rezero":
            self.gate = nn.Parameter(torch.tensor(0.7))
        if style == "normed branch":
            self.norm = nn.BatchNorm1d(WIDTH)
        if style == "scaled by the branch":
            self.scale = nn.Linear(WIDTH, WIDTH)

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.mlp(self.before(x)) if self.style != "post norm" else x
        if self.style == "pre norm":
            return x + h
        if self.style == "parallel":
            return x + h + self.other(self.before(x))
        if self.style == "sandwich":
            return self.after(h) + x
        if self.style == "rezero":
            return torch.add(x, self.gate * h)
        if self.style == "post activation":
            return F.relu(x + h)
        if self.style == "reshaped":
            return (x.view(-1, 2, 3).transpose(1, 2) + h.view(-1, 2, 3).transpose(1, 2)).transpose(1, 2).flatten(1)
        if self.style == "class token":
            return torch.cat([x[:, :2] + h[:, :2], x[:, 2:]], 1)
        if self.style == "divided by one":
            return (x + h) / 1.0
        if self.style == "normed branch":
            return x + F.silu(self.norm(h))
        if self.style == "drop path":
            return x + (h * h.new_empty(len(h), 1).bernoulli_(0.8).div_(0.8) if self.training else h)
        if self.style == "post norm":
            y = self.before(x + self.other(x))
            return self.after(y + self.mlp(y))
        if self.style == "divided":
            return (x + h) / 2**0.5
        if self.style == "relu branch":
            return x + F.relu(h)
        if self.style == "rolled":
            return x.roll(1, 1) + h
        if self.style == "activated":
            return F.gelu(x + h)
        if self.style == "written to":
            h[:, 0] = 1.0
            return x + h
        assert self.style == "no skip"
        return F.relu(h)


class Stack(nn.Module):
    """Stem, `depth` blocks of one style, a last block of another shape, head."""

    def __init__(self, style: str, depth: int = 3, eps: float = 1e-5, tail: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(4, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=eps)
        self.blocks = nn.ModuleList(Block(style, eps) for _ in range(depth))
        if tail:
            self.blocks.append(nn.Linear(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@given(st.integers(1, 39), st.integers(0, 120))
def test_interpolation_is_the_published_map(old: int, more: int) -> None:
    """The reference expression of AutoProg (Li et al., CVPR 2022)."""
    new = old + more
    q, rest = divmod(new, old)
    cut = old - rest
    published = [i * old // (q * old) for i in range(new)]
    published = [j if j < cut else (i + cut) * old // (q * old + old) for i, j in enumerate(published)]
    assert interpolated(old, new) == published


def test_published_examples() -> None:
    assert interpolated(9, 12) == [0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8]
    assert interpolated(4, 10) == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [place.source for place in arranged(3, 7, 1, "stack")] == [0, 1, 2, 0, 1, 2, 0]
    assert [place.source for place in arranged(4, 8, 2, "identity")] == [0, 1, 0, 1, 2, 3, 2, 3]
    assert [place.copy for place in arranged(4, 8, 2, "identity")] == [False, False, True, True] * 2


EXACT = [
    "pre norm", "parallel", "sandwich", "rezero", "post activation", "reshaped", "class token", "divided by one",
    "normed branch",
]  # fmt: skip


@pytest.mark.parametrize("style", [*EXACT, "drop path"])
def test_styles_of_residual_blocks(style: str) -> None:
    program = captured(Stack(style))
    result = grown(program, to="5")
    check_lossless(program, result)
    if style != "drop path":
        assert compare_train(program, result.program, seed=0, buffers={}).max_rel < 1e-9
    reference = Stack(style, depth=5).eval()
    reference.load_state_dict(result.program.state_dict(), strict=True)
    assert list(progc.capture(reference, program.example[0]).tensors) == list(result.program.tensors)
    x = program.example[0][0]
    assert torch.equal(reference(x), result.program.module().eval()(x))


@pytest.mark.parametrize("style", [*EXACT, "drop path"])
def test_every_new_parameter_trains_by_the_second_step(style: str) -> None:
    check_alive(grown(captured(Stack(style)), to="6"))


@pytest.mark.parametrize("eps", [0.0, 1e-12])
def test_post_norm_blocks_move_their_affine(eps: float) -> None:
    program = captured(Stack("post norm", eps=eps))
    result = grown(program, to="8")
    check_lossless(program, result)
    check_alive(result)
    reference = Stack("post norm", depth=8, eps=eps)
    reference.load_state_dict(result.program.state_dict(), strict=True)
    # Block 1 is a copy of block 0: block 0 ends neutral, block 1 has block 0's old gain.
    gains = [result.program.tensors[f"blocks.{i}.after.weight"] for i in range(2)]
    assert torch.equal(gains[0], torch.ones(WIDTH))
    assert torch.equal(gains[1], program.tensors["blocks.0.after.weight"])


def test_post_norm_with_a_large_eps_is_not_exact() -> None:
    program = captured(Stack("post norm"))
    with pytest.raises(NotLosslessError, match="vanishing eps; here eps 1e-05 of aten.layer_norm"):
        GrowDepth(to="5").run(program)
    result = grown(program, to="5", lossy=True)
    assert result.lossless is False
    assert 1e-9 < compare(program, result.program, seed=0).max_rel < 1e-3


REFUSED = {
    "divided": r"a copy of blocks\.0 cannot be the identity: the skip path of the block is multiplied by 0\.707",
    "relu branch": "aten.relu.default .* never train",
    "rolled": "rearranges its value",
    "activated": "is not its entry plus branches",
    "written to": r"fill_.* changes select_int in place, and add_tensor reads its memory later",
    "no skip": "is not its entry plus branches",
}


@pytest.mark.parametrize("style", REFUSED)
def test_blocks_that_cannot_be_the_identity(style: str) -> None:
    program = captured(Stack(style))
    with pytest.raises(NotLosslessError, match=REFUSED[style]):
        GrowDepth(to="6").run(program)
    lossy = grown(program, to="6", lossy=True)
    assert lossy.lossless is False
    assert "cannot be the identity" in lossy.notes[0]
    assert grown(program, to="6", init="interpolate").lossless is False


def test_first_relu_of_a_block_needs_a_value_that_is_not_negative() -> None:
    """relu(x) = x only behind another relu: with identity, copies stand behind a block, never behind the stem."""
    program = captured(Stack("post activation", depth=2))
    check_lossless(program, grown(program, to="6"))


def test_tied_blocks_cannot_be_silenced_apart() -> None:
    model = Stack("pre norm")
    for block in model.blocks[1:]:
        for layer in ("up", "down"):
            setattr(block, layer, getattr(model.blocks[0], layer))
    program = captured(model)
    with pytest.raises(NotLosslessError, match="cannot be the identity"):
        GrowDepth(to="4").run(program)
    result = grown(program, to="4", init="stack")
    shared = result.program.tensors["blocks.0.down.weight"]
    assert all(result.program.tensors[f"blocks.{i}.down.weight"] is shared for i in range(4))
    assert result.program.tied["blocks.3.down.weight"] == "blocks.0.down.weight"


def test_a_tied_last_layer_is_silenced_by_the_layer_before_it() -> None:
    model = Stack("pre norm")
    for block in model.blocks[1:]:
        block.get_submodule("down").weight = model.blocks[0].get_submodule("down").weight
    program = captured(model)
    result = grown(program, to="5")
    check_lossless(program, result)
    check_alive(result)
    assert not result.program.tensors["blocks.4.up.weight"].any()


def test_ties_within_a_block_stay() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return x + self.second(torch.tanh(self.first(x)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(Twice() for _ in range(2)))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(F.pad(x, (1, 1))).sum(1)

    program = captured(Net())
    result = grown(program, to="4", init="interpolate")
    tensors = result.program.tensors
    assert tensors["layers.1.first.weight"] is tensors["layers.1.second.weight"]
    assert tensors["layers.1.first.weight"] is not tensors["layers.0.first.weight"]


def test_interpolate_stack_and_random_take_their_sources() -> None:
    program = captured(Stack("pre norm", depth=2))
    old = [program.tensors[f"blocks.{i}.up.weight"] for i in range(2)]

    def weights(init: str) -> list[Tensor]:
        result = grown(program, to="5", init=init, seed=3)
        assert result.lossless is False
        return [result.program.tensors[f"blocks.{i}.up.weight"] for i in range(5)]

    assert all(torch.equal(w, old[i]) for w, i in zip(weights("interpolate"), [0, 0, 1, 1, 1], strict=True))
    assert all(torch.equal(w, old[i]) for w, i in zip(weights("stack"), [0, 1, 0, 1, 0], strict=True))
    random = weights("random")
    assert torch.equal(random[0], old[0]) and torch.equal(random[1], old[1])
    assert not any(torch.equal(random[i], other) for i in (2, 3, 4) for other in [*old, *random[:i]])
    assert torch.equal(random[4], weights("random")[4])


def test_blocks_behind_the_chain_move_up() -> None:
    program = captured(Stack("pre norm", tail=True))
    result = grown(program, to="6")
    check_lossless(program, result)
    Stack("pre norm", depth=5, tail=True).load_state_dict(result.program.state_dict(), strict=True)
    assert torch.equal(result.program.tensors["blocks.5.weight"], program.tensors["blocks.3.weight"])
    paths = {
        path
        for node in result.program.graphs["train"].nodes
        for path, _ in node.meta.get("nn_module_stack", {}).values()
    }
    assert {f"blocks.{i}" for i in range(6)} <= paths and "blocks.6" not in paths


def test_two_chains_in_one_container() -> None:
    class Mixed(Stack):
        def __init__(self, first: int, second: int) -> None:
            super().__init__("pre norm", depth=first)
            self.blocks.extend(Block("sandwich") for _ in range(second))

    program = captured(Mixed(3, 2))
    long, short = (chain.name for chain in program.chains)
    result = grown(program, to="7")
    check_lossless(program, result)
    assert result.notes[0].startswith(f"{short} shares its container with {long}")
    Mixed(5, 2).load_state_dict(result.program.state_dict(), strict=True)
    result = grown(program, to=f"{short}:7")
    check_lossless(program, result)
    Mixed(3, 4).load_state_dict(result.program.state_dict(), strict=True)
    with pytest.raises(PassOptionError, match="overlap; grow them one after the other"):
        GrowDepth(to=(f"{short}:7", f"{long}:7")).run(program)


def test_the_lift_is_all_there_is_to_know() -> None:
    program = captured(Stack("pre norm"))
    result = grown(program, to="5")
    assert result.lift is not None
    again = Lift.from_json(result.lift.to_json()).apply(program.tensors)
    assert again.keys() == result.program.tensors.keys()
    assert all(torch.equal(tensor, result.program.tensors[name]) for name, tensor in again.items())
    stem = "stem.weight"
    assert result.program.tensors[stem] is program.tensors[stem]


def test_chains_grow_one_by_one() -> None:
    _, program = zoo.captured("timm:resnet18@64")
    result = grown(program, to=("layer1:3", "layer3:*2"))
    assert result.counts == {"blocks inserted": 3, "chains grown": 2}
    check_lossless(program, result)
    assert compare_train(program, result.program, seed=0).max_rel < 1e-9


def test_a_depth_that_is_there_already_changes_nothing() -> None:
    program = captured(Stack("pre norm"))
    result = GrowDepth(to="3").run(program)
    assert result.program is program and not result.changed


def test_no_chains_is_said() -> None:
    _, program = zoo.captured("own:conv")
    result = GrowDepth().run(program)
    assert not result.changed and "has no chain of blocks" in result.notes[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"to": "2"}, TargetError, "has depth 3; depth 2 is smaller, use shrink"),
        ({"to": "*1.5"}, TargetError, r"cannot have depth 4\.5 \(\*1\.5\): .* nearest are 4 and 5"),
        ({"to": "block:6"}, PassOptionError, "no chain `block`; did you mean blocks"),
        ({"to": "6", "chains": "stages.*"}, PassOptionError, r"no chain `stages\.\*`; chains are blocks"),
        ({"to": "deep"}, PassOptionError, "to=deep: expected a number of blocks"),
        ({"to": "1.5"}, PassOptionError, "expected a number of blocks"),
        ({"to": "6", "init": "zeros"}, PassOptionError, "one of identity, interpolate, stack, mogrow, random"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    program = captured(Stack("pre norm"))
    with pytest.raises(error, match=message) as caught:
        GrowDepth(**options).run(program)
    assert "\n" not in str(caught.value)


def test_period_of_two_is_kept() -> None:
    _, program = zoo.captured("timm:swin@56")
    with pytest.raises(TargetError, match="period 2; the nearest are 4 and 6"):
        GrowDepth(to="layers.1.blocks:5").run(program)
