"""shrink: options, what is refused, names, ties, initialisation, and what else follows the lift."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from torch import Tensor, nn

from progc.errors import InputError, TargetError
from progc.ir.printer import print_graph
from progc.ir.program import MODES
from progc.lift.entry import TensorLift
from progc.lift.lift import Lift, composed
from progc.lift.moments import load_state_by_name, optimizer_state_by_name
from progc.lift.rates import learning_rate_factors
from progc.lift.revert import revert
from progc.passes.shrink import Shrink
from progc.pipeline.manager import run
from progc.transforms.shrinking import kept, written_back
from tests import nets, zoo
from tests.transforms.shrinking.small import captured, check_class, shrunk

REFUSED = {
    "depth=0": "depth=0: expected a number of blocks (6), a factor up to 1 (0.5), or either for one chain",
    "depth=*2": "depth=*2: expected a number of blocks",
    "depth=9": "chain g_# has depth 4; depth 9 is larger, use grow-depth{to=g_#:9}",
    "depth=g_#:*0.6": "chain g_# cannot have depth 2.4 (g_#:*0.6): a depth is an integer; the nearest are 2 and 3",
    "depth=h_#:2": "shrink: the program has no chain `h_#`; did you mean g_#?",
    "chains=h depth=2": "shrink: the program has no chain `h`; chains are g_#",
    "width=0": "width=0: expected a size (192) or a factor up to 1 (*0.5)",
    "width=*1.5": "width=*1.5: expected a size (192)",
    "mlp=wide": "mlp=wide: expected a size (192)",
    "width=13": "shrink: width=13: the residual width is 12, and 13 is larger; shrink only removes",
    "heads=2": "shrink: heads=2: this network has no head axis that can shrink",
    "mlp=21": "axis w1_0 (hidden width) has 20 units and would get 21; shrink only removes units, use grow-width",
    "mlp=*0.33": "axis w1_0 (hidden width) has 20 units and would get 6.6; sizes are integers of at least 1",
    "axes=w1_0": "axes=w1_0: expected name:size with an integer size of at least 1",
    "axes=w1_0:0": "axes=w1_0:0: expected name:size with an integer size of at least 1",
    "axes=w9_0:3": "no axis is called `w9_0`; did you mean w1_0",
    "axes=w1_0:21": "axis w1_0 has 20 units; 21 is larger, use grow-width{axes=w1_0:21}",
    "axes=head_w:3": "axis head_w (size 7) cannot shrink to 3: ",
    "rule=middle": "option rule: expected one of spread, first, last, got 'middle'",
    "storage=view": "option storage: expected one of share, copy, got 'view'",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text: str) -> None:
    program = zoo.captured("own:flat")[1]
    with pytest.raises(InputError) as caught:
        run(program, f"shrink{{{text}}}")
    message = str(caught.value)
    assert REFUSED[text] in message and "\n" not in message.partition("\n\n")[0]
    assert caught.value.exit_code == 2


def test_widths_that_are_no_whole_parts_name_the_nearest() -> None:
    program = zoo.captured("own:einsum")[1]
    with pytest.raises(TargetError, match=r"shrink: width=11,heads=2: axis .* nearest widths: 10, 12"):
        run(program, "shrink{width=11 heads=2}")


def test_depth_of_a_network_without_chains_and_width_without_axes() -> None:
    program = zoo.captured("own:conv")[1]
    with pytest.raises(TargetError, match="depth=0.5: this network has no chain of blocks; progc inspect --chains"):
        run(program, "shrink{depth=0.5}")
    with pytest.raises(TargetError, match="this network has no axis that can shrink"):
        run(captured(nn.Linear(3, 2), torch.randn(2, 3)), "shrink{width=*0.5}")


def test_periods_stay_whole() -> None:
    program = zoo.captured("timm:swin@56")[1]
    with pytest.raises(TargetError, match=r"depth 3 .*: its blocks repeat with period 2; the nearest are 2 and 4"):
        run(program, "shrink{depth=layers.1.blocks:3}")
    half = shrunk(program, "depth=0.5 rule=last")
    assert "layers.0.blocks: depth 1 of 2 becomes 2: at least 2 blocks must stay" in half.notes
    assert half.lift is not None
    assert kept(half.lift, "layers.1.blocks.0.norm1.weight")[0] == "layers.1.blocks.2.norm1.weight"


def test_nothing_asked_and_nothing_to_do() -> None:
    program = zoo.captured("own:flat")[1]
    result = Shrink().run(program)
    assert result.program is program and result.notes == (
        "nothing to shrink: set depth, width, heads, mlp, axes or resolution",
    )
    for text in ("depth=4", "depth=*1", "width=12", "depth=1.0 storage=copy", "axes=w1_0:20 mlp=*1"):
        assert run(program, f"shrink{{{text}}}")[1][0].program.tensors == program.tensors


def test_options_take_numbers() -> None:
    assert Shrink(depth=6) == Shrink(depth=("6",))  # type: ignore[arg-type]
    assert Shrink(depth=0.5, width=96, mlp=0.5) == Shrink(depth=("0.5",), width="96", mlp="0.5")  # type: ignore[arg-type]
    assert str(Shrink(depth=("blocks:0.5",), width="*0.5")) == "shrink{depth=blocks:0.5 width=*0.5}"


@pytest.mark.parametrize(("rule", "blocks"), [("spread", [0, 2]), ("first", [0, 1]), ("last", [2, 3])])
def test_which_blocks_stay(rule: str, blocks: list[int]) -> None:
    model, program = zoo.captured("own:flat")
    result = shrunk(program, f"depth=2 rule={rule}")
    assert result.counts == {"blocks left out": 2, "axes narrowed": 0, "tensors narrowed": 0}
    for new, old in enumerate(blocks):
        for kind in ("g", "s", "k", "w1", "b1", "w2", "b2"):
            assert result.program.tensors[f"{kind}_{new}"] is program.tensors[f"{kind}_{old}"]
    check_class(result.program, nets.FlatMixer(depth=2))


def test_nodes_of_dropped_blocks_are_gone_and_the_rest_is_as_it_was() -> None:
    program = zoo.captured("own:einsum")[1]
    small = shrunk(program, "depth=2 rule=first").program.replace(history=())
    built = captured(nets.EinsumTransformer(depth=2), *program.example[0])
    for mode in MODES:
        texts = [re.sub(r"%\w+", "%", print_graph(one, mode, full=True)) for one in (small, built)]
        assert texts[0] == texts[1]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Towers(nn.Module):
    """Two chains; all blocks of the first have one weight between them."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 6), nn.Linear(6, 6, bias=False)
        self.left = nn.ModuleList(Layer() for _ in range(depth))
        self.right = nn.ModuleList(Layer() for _ in range(depth))
        for layer in self.left:
            layer.down.weight = self.left[0].down.weight  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in (*self.left, *self.right):
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("storage", ["share", "copy"])
def test_a_tie_outlives_the_block_that_named_it(storage: str) -> None:
    program = captured(Towers(), torch.randn(2, 3))
    assert set(program.tied.values()) == {"left.0.down.weight"}
    small = shrunk(program, f"depth=2 rule=last storage={storage}").program
    assert small.tied == {"left.1.down.weight": "left.0.down.weight"}
    assert small.tensors["left.0.down.weight"] is small.tensors["left.1.down.weight"]
    check_class(small, Towers(2))
    one = shrunk(program, "depth=left:1 rule=last").program
    assert one.tied == {} and one.tensors["left.0.down.weight"] is program.tensors["left.0.down.weight"]


def test_chains_by_name() -> None:
    program = captured(Towers(), torch.randn(2, 3))
    by_name = shrunk(program, "depth=right:1,left:0.5").program
    assert sum(name.startswith("right") for name in by_name.tensors) == 4
    assert sum(name.startswith("left") for name in by_name.tensors) == 8
    chosen = shrunk(program, "depth=3 chains=ri*").program
    assert sum(name.startswith("right") for name in chosen.tensors) == 12
    assert sum(name.startswith("left") for name in chosen.tensors) == 16


# --- copies ---------------------------------------------------------------------------------------------------------


def test_copies_keep_the_variance_of_what_they_compute() -> None:
    """Weights that sum over fewer inputs are larger by the root of the ratio; everything else is as it was."""
    program = zoo.captured("own:flat")[1]
    result = shrunk(program, "width=*0.5 mlp=5 storage=copy")
    small, full = result.program.tensors, program.tensors
    assert torch.equal(small["w1_1"], full["w1_1"][::4, ::2] * math.sqrt(2))
    assert torch.equal(small["w2_1"], full["w2_1"][::2, ::4] * 2)
    assert torch.equal(small["head_w"], full["head_w"][:, ::2] * math.sqrt(2))
    for name in ("stem_w", "stem_b", "g_0", "s_0", "k_0", "b1_0", "b2_0"):  # depthwise kernels have a fan-in of one
        step = 4 if name == "b1_0" else 2
        assert torch.equal(small[name], full[name][::step])
    wide = nn.Linear(256, 64)
    network = captured(nn.Sequential(nn.Linear(3, 256), nn.Tanh(), wide), torch.randn(2, 3))
    cut = shrunk(network, "axes=0:64 storage=copy")
    spread = float(cut.program.tensors["2.weight"].detach().std() / wide.weight.detach().std())
    assert abs(spread / 2 - 1) < 0.03


def test_a_tied_table_and_statistics_are_as_they_were() -> None:
    program = zoo.captured("own:tied")[1]
    result = shrunk(program, "width=*0.5 storage=copy")
    assert torch.equal(result.program.tensors["embed.weight"], program.tensors["embed.weight"][:, ::2])
    assert torch.equal(result.program.tensors["mix.weight"], program.tensors["mix.weight"][::2, ::2] * math.sqrt(2))
    program = zoo.captured("own:conv")[1]
    result = shrunk(program, "width=*0.5 storage=copy")
    for name in ("running_mean", "running_var", "weight", "bias"):
        full = program.tensors[f"grouped_norm.{name}"]
        assert torch.equal(result.program.tensors[f"grouped_norm.{name}"], full[::2])


# --- groups and heads -----------------------------------------------------------------------------------------------


class Grouped(nn.Module):
    def __init__(self, width: int = 16, groups: int = 4, parts: int = 2) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(3, width, 3), nn.GroupNorm(groups, width)
        self.mix, self.head = nn.Conv1d(width, width, 1, groups=parts), nn.Conv1d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(torch.tanh(self.norm(self.stem(x))))))


@pytest.mark.parametrize(("full", "small"), [((16, 4, 2), (8, 4, 2)), ((16, 4, 2), (4, 4, 2)), ((12, 4, 1), (6, 2, 1))])
def test_groups_stay_while_they_hold_whole_channels(full: tuple[int, ...], small: tuple[int, ...]) -> None:
    program = captured(Grouped(*full), torch.randn(2, 3, 5))
    check_class(shrunk(program, f"width=*{small[0] / full[0]}").program, Grouped(*small))


def test_heads_go_whole_or_get_narrower() -> None:
    program = zoo.captured("own:einsum")[1]  # width 24, 3 heads of 8
    names = {axis.meaning: axis.name for axis in program.axes.axes}
    few = shrunk(program, "heads=1").program.axes
    assert {axis.meaning: axis.size for axis in few.axes}["residual width"] == 24
    assert {axis.size for axis in few.axes if axis.meaning == "head dim"} == {8}
    narrow = {axis.meaning: axis.size for axis in shrunk(program, "width=12").program.axes.axes}
    assert (narrow["heads"], narrow["head dim"]) == (2, 6)  # 1.5 heads are none: the least that comes out whole
    kept_heads = {axis.meaning: axis.size for axis in shrunk(program, "width=12 heads=3").program.axes.axes}
    assert (kept_heads["heads"], kept_heads["head dim"]) == (3, 4)
    assert "heads" in names


# --- what follows the lift ------------------------------------------------------------------------------------------


def test_moments_of_what_stays_follow() -> None:
    program = zoo.captured("own:flat")[1]
    module = program.module().train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0)
    module(*program.example[0]).square().mean().backward()
    optimizer.step()
    state = optimizer_state_by_name(optimizer, module.named_parameters())
    for storage in ("share", "copy"):
        result = shrunk(program, f"depth=2 width=*0.5 storage={storage}")
        assert result.lift is not None
        moved = Lift.from_json(json.loads(json.dumps(result.lift.to_json()))).moments(state)
        assert moved.keys() == {name for name, spec in result.program.specs.items() if spec.kind == "parameter"}
        assert torch.equal(moved["w2_1"]["exp_avg"], state["w2_2"]["exp_avg"][::2, kept(result.lift, "w2_1")[1][1]])  # type: ignore[index]
        assert torch.equal(moved["g_0"]["exp_avg_sq"], state["g_0"]["exp_avg_sq"][::2])
        assert moved["g_0"]["exp_avg_sq"].data_ptr() != state["g_0"]["exp_avg_sq"].data_ptr()
        small = result.program.module()
        load_state_by_name(torch.optim.AdamW(small.parameters()), small.named_parameters(), moved)
        rates = learning_rate_factors(result.lift)["w2_0"]
        assert (rates.lr, rates.lr_sgd, rates.exact) == (1.0, 1.0, False)


@pytest.mark.parametrize("text", ["depth=2", "width=*0.5", "width=*0.5 storage=copy"])
def test_a_shrink_is_not_reverted_but_written_back(text: str) -> None:
    program = zoo.captured("own:flat")[1]
    result = shrunk(program, text)
    assert result.lift is not None
    with pytest.raises(InputError, match=r"revert: `shrink` removed or cut .*shrinking\.written_back"):
        revert(result.lift, result.program.tensors)
    full = {name: torch.zeros_like(tensor) for name, tensor in program.tensors.items()}
    back = written_back(result.lift, result.program.tensors, full)
    assert all(not tensor.any() for tensor in full.values())
    again = result.lift.apply(back)
    assert all(torch.allclose(again[name], tensor) for name, tensor in result.program.tensors.items())
    for name, tensor in back.items():
        own = program.tensors[name].detach()
        assert torch.allclose(torch.where(tensor == 0, own, tensor.detach()), own)
    assert any(not tensor.any() for tensor in back.values()) == ("depth" in text)


def test_written_back_names_what_is_missing_or_misshapen() -> None:
    program = zoo.captured("own:flat")[1]
    result = shrunk(program, "depth=2 width=*0.5")
    assert result.lift is not None
    small = dict(result.program.tensors)
    with pytest.raises(InputError, match="tensor w1_1 is missing; give every tensor of the sub-network"):
        written_back(result.lift, {name: tensor for name, tensor in small.items() if name != "w1_1"}, program.tensors)
    with pytest.raises(InputError, match=r"w1_1 has shape \[2\]; expected \[10, 6\], as the lift made"):
        written_back(result.lift, small | {"w1_1": torch.zeros(2)}, program.tensors)


# --- resolution -----------------------------------------------------------------------------------------------------


def test_two_lifts_are_one() -> None:
    program = zoo.captured("own:flat")[1]
    first = shrunk(program, "depth=2 width=*0.5 units=leading")
    second = shrunk(first.program, "depth=1 rule=last mlp=5")
    assert first.lift is not None and second.lift is not None
    with pytest.raises(TargetError, match="both the units and the resolution .*apply two passes, one after the other"):
        composed(first.lift, shrunk(first.program, "width=3").lift)  # type: ignore[arg-type]
    renames = Lift((TensorLift("stem_w", "stem_w", scales=()), TensorLift("w1_0", "w1_1")), removed=frozenset(["w1_1"]))
    both = composed(first.lift, renames)
    assert next(entry for entry in both.tensors if entry.name == "w1_0").source == "w1_2"
    assert "w1_1" not in {entry.name for entry in both.tensors}


@pytest.mark.parametrize("storage", ["share", "copy"])
def test_depth_width_and_resolution(storage: str) -> None:
    from timm.models.vision_transformer import VisionTransformer

    def build(depth: int, width: int, size: int) -> nn.Module:
        return VisionTransformer(
            img_size=size, patch_size=8, depth=depth, embed_dim=width, num_heads=width // 12, num_classes=5
        )

    program = captured(build(4, 48, 64), zoo.image(64))
    result = shrunk(program, f"depth=0.5 width=*0.5 resolution=32 storage={storage}")
    check_class(result.program, build(2, 24, 32))
    alone = shrunk(program, f"resolution=32 storage={storage}").program
    check_class(alone, build(4, 48, 32))
    assert (alone.tensors["norm.weight"] is program.tensors["norm.weight"]) == (storage == "share")
    assert result.lift is not None
    state = {name: {"exp_avg": torch.randn(tensor.shape)} for name, tensor in program.parameters()}
    moved = result.lift.moments(state)
    assert all(moved[name]["exp_avg"].shape == tensor.shape for name, tensor in result.program.parameters())
    back = written_back(result.lift, result.program.tensors, program.tensors)
    assert back["pos_embed"] is program.tensors["pos_embed"] and back.keys() == program.tensors.keys()
    assert not run(program, f"shrink{{resolution=64 storage={storage}}}")[1][0].changed
    with pytest.raises(TargetError, match=r"resolution=96: the image is \[2, 3, 64, 64\] .*; use grow-resolution"):
        run(program, f"shrink{{depth=2 resolution=96 storage={storage}}}")
