"""`set-drop`: masks are those of the user's own module, whatever library spelled them, and rates are what was asked."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import progc
from progc.errors import InputError, PassOptionError
from progc.ir.program import Program
from progc.ir.verify import verify
from progc.pipeline.manager import run
from progc.transforms.dropping import find_drops, is_linear
from tests import nets, zoo
from tests.sweeps import some
from tests.zoo import perturb

SEED = 3


def rates(program: Program, kind: str = "path") -> list[float]:
    return [drop.rate for drop in find_drops(program.graphs["train"]) if drop.kind == kind]


def timm_vit(rate: float, depth: int = 4, dropout: float = 0.0, attention: float = 0.0) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=16, embed_dim=16, depth=depth, num_heads=2, num_classes=5,
        drop_path_rate=rate, proj_drop_rate=dropout, attn_drop_rate=attention,
    )  # fmt: skip


def timm_convnext(rate: float) -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(2, 1, 3, 1), dims=(8, 8, 8, 8), drop_path_rate=rate, num_classes=3)


class Stochastic(nn.Module):
    """Residual blocks with torchvision's operation, `row` or `batch`."""

    def __init__(self, rate: float, mode: str = "row", depth: int = 3) -> None:
        from torchvision.ops import StochasticDepth

        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(depth))
        self.drops = nn.ModuleList(StochasticDepth(rate * (k + 1) / depth, mode) for k in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block, drop in zip(self.blocks, self.drops, strict=True):
            x = x + drop(torch.tanh(block(x)))
        return x


def torchvision_row(rate: float) -> nn.Module:
    return Stochastic(rate)


def torchvision_batch(rate: float) -> nn.Module:
    return Stochastic(rate, "batch")


def transformers_swin(rate: float) -> nn.Module:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4, drop_path_rate=rate
    )
    return SwinModel(config)


class Compared(nn.Module):
    """A mask by comparison, and the division behind the product."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.body = rate, nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.training:
            y = y * (torch.rand(y.shape[0], 1, 1, 1) < 1 - self.rate) / (1 - self.rate)
        return y + x


MODELS = [timm_vit, timm_convnext, torchvision_row, torchvision_batch, transformers_swin, Compared]


@functools.cache
def images() -> Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def built(make: Callable[[float], nn.Module], rate: float) -> nn.Module:
    torch.manual_seed(0)
    return perturb(make(rate))


@functools.cache
def captured(make: Callable[[float], nn.Module], rate: float = 0.2) -> Program:
    return progc.capture(built(make, rate), (images(),))


def output(module: nn.Module, seed: int = SEED) -> Tensor:
    """What a network computes in train mode from this seed on."""
    torch.manual_seed(seed)
    found = module.train()(images())
    return found if isinstance(found, Tensor) else found[0]


@pytest.mark.parametrize("make", some(MODELS, [timm_vit, torchvision_row, Compared]))
def test_a_rate_that_is_set_is_that_of_the_users_module_built_with_it(make: Callable[[float], nn.Module]) -> None:
    """Bit by bit, under one seed: captured at 0.2 and set to 0.1 against built with 0.1."""
    program = captured(make)
    assert torch.equal(output(program.module()), output(built(make, 0.2)))
    wanted = output(built(make, 0.1))
    assert not torch.equal(output(program.module()), wanted)
    after, (result,) = run(program, "set-drop{path=0.1}")
    assert torch.equal(output(after.module()), wanted)
    assert result.lossless and result.eval_only and after.graphs["eval"] is not program.graphs["eval"]
    assert torch.equal(after.module().eval()(images())[0], program.module().eval()(images())[0])


@pytest.mark.parametrize(
    "make", some([timm_vit, torchvision_row, transformers_swin, Compared], [torchvision_row, Compared])
)
def test_rate_zero_is_exact_and_can_be_undone(make: Callable[[float], nn.Module]) -> None:
    program = captured(make)
    zero = progc.apply(program, "set-drop{path=0.0}")
    assert set(rates(zero)) == {0.0} and len(rates(zero)) == len(rates(program)) > 0
    if make is not Compared:  # that class has no rate of 0 without a mask
        torch.manual_seed(0)
        quiet = output(zero.module())
        assert torch.equal(quiet, output(zero.module(), SEED + 1)) and torch.equal(quiet, output(built(make, 0.0)))
        torch.manual_seed(SEED)
        first = torch.rand(3)
        output(zero.module())
        assert torch.equal(torch.rand(3), first), "nothing was drawn"
    again = progc.apply(zero, "set-drop{path=0.1}")
    assert torch.equal(output(again.module()), output(built(make, 0.1)))
    assert torch.equal(output(progc.apply(again, "set-drop{path=0.2}").module()), output(program.module()))


def test_a_mask_of_a_sum_that_rounds_up_is_one_at_rate_zero() -> None:
    """1 + (1 - 2**-24) rounds to 2 in single precision: a mask of floor(rand + 1) would not be exact."""
    program = captured(transformers_swin)
    calls = [str(node.target) for node in progc.apply(program, "set-drop{path=0}").graphs["train"].nodes]
    assert "aten.rand.default" not in calls and "aten.full_like.default" in calls


@pytest.mark.parametrize(("path", "dropout"), [(0.4, None), (0.0, 0.3)])
def test_empirical_rates(path: float, dropout: float | None) -> None:
    """Of many samples, as many are dropped as the rate says, and what is kept is scaled up."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.drop = nn.Linear(4, 4, bias=False), nn.Dropout(0.1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.drop(self.body(x))
            return x + (y * y.new_empty(y.shape[0], 1).bernoulli_(0.8).div_(0.8) if self.training else y)

    net = Net()
    with torch.no_grad():
        net.body.weight.copy_(torch.eye(4))
    program = progc.capture(net, (torch.ones(4, 4),))
    text = f"set-drop{{path={path} dropout={dropout or 0.0}}}"
    torch.manual_seed(0)
    branch = progc.apply(program, text).module().train()(torch.ones(20000, 4)) - 1
    kept = (1 - path) * (1 - (dropout or 0.0))
    assert torch.allclose(branch[branch != 0], torch.tensor(1 / kept))
    assert (branch != 0).float().mean().item() == pytest.approx(kept, abs=0.01)
    assert path == 0 or bool(((branch != 0).all(1) | (branch == 0).all(1)).all()), "samples, not values"


def test_dropout_and_attention() -> None:
    """Rates keep their proportions; attention has one of its own."""
    make = functools.partial(timm_vit, dropout=0.2, attention=0.1, depth=2)
    torch.manual_seed(0)
    program = progc.capture(perturb(make(0.0)), (images(),))
    after = progc.apply(program, "set-drop{dropout=0.1}")
    torch.manual_seed(0)
    twin = perturb(timm_vit(0.0, dropout=0.1, attention=0.05, depth=2))
    assert torch.equal(output(after.module()), output(twin))
    assert set(rates(after, "dropout")) == {0.0, 0.05, 0.1}  # positions and head had none
    assert set(rates(progc.apply(after, "set-drop{dropout=0.3 ramp=uniform}"), "dropout")) == {0.3}
    quiet = progc.apply(after, "set-drop{dropout=0.0}").module()
    assert torch.equal(output(quiet), output(quiet, SEED + 1))


@pytest.mark.parametrize("pipeline", ["grow-depth{to=5}", "shrink{depth=2}", "shrink{depth=1},grow-depth{to=4}"])
def test_a_network_of_another_depth_has_the_ramp_of_its_own_class(pipeline: str) -> None:
    """Blocks that had no drop-path get it; the class that is built with that rate agrees bit by bit."""
    program = progc.apply(captured(timm_vit), f"set-drop{{path=0.2 ramp=uniform}},{pipeline}")
    after = progc.apply(program, "set-drop{path=0.1 ramp=linear}")
    depth = after.chains["blocks"].siblings
    twin = timm_vit(0.1, depth)
    twin.load_state_dict(after.state_dict(), strict=True)
    assert torch.equal(output(after.module()), output(twin))


def test_a_block_without_drop_path_gets_it_where_the_ramp_asks() -> None:
    grown = progc.apply(captured(timm_vit), "grow-depth{to=8}")
    after, (result,) = run(grown, "set-drop{path=0.1 ramp=linear}")
    assert result.counts["blocks given drop-path"] == 1
    assert "drop-path inserted into blocks.1, which had none" in result.notes
    verify(after, before=grown)
    twin = timm_vit(0.1, 8)
    twin.load_state_dict(after.state_dict(), strict=True)
    assert torch.equal(output(after.module()), output(twin))
    uniform, (result,) = run(grown, "set-drop{path=0.1 ramp=uniform}")
    assert rates(uniform) == pytest.approx([0.1] * 16) and result.counts["blocks given drop-path"] == 2


def test_it_goes_with_all_other_passes() -> None:
    """Off and on again between growth in depth and width, an identifier and frozen blocks."""
    program = captured(timm_vit)
    after = progc.apply(
        program,
        "shrink{depth=2 width=8 heads=1},set-drop{path=0.0},grow-depth{to=3},inject-sid{stages=2 stage=0},"
        "freeze{level=1 of=2},set-drop{path=0.1 ramp=linear},set-drop{path=0.0},freeze,grow-width{width=*2},"
        "set-drop{path=0.3 ramp=linear}",
    )
    assert rates(after) == pytest.approx([0.15, 0.15, 0.3, 0.3])
    zero = progc.apply(program, "set-drop{path=0.0}")
    assert zero.chains.to_json()["chains"][0]["blocks"] == program.chains.to_json()["chains"][0]["blocks"]
    assert zero.axes.to_json() == program.axes.to_json()


def test_a_ramp_counts_blocks_over_all_chains_and_modules_between_them() -> None:
    program = captured(timm_convnext)
    assert rates(progc.apply(program, "set-drop{path=0.6 ramp=linear}")) == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    )
    assert is_linear(program) and not is_linear(progc.apply(program, "set-drop{path=0.5 ramp=uniform}"))


def test_stages_that_are_a_chain_themselves_do_not_hide_their_blocks() -> None:
    """Three stages of two blocks each, isomorphic: the blocks count, not the stages."""

    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            blocks = [nets.DroppingBlock(8, 12, k / 10, 0.0) for k in range(6)]
            self.stages = nn.ModuleList(nn.Sequential(*blocks[k : k + 2]) for k in (0, 2, 4))

        def forward(self, x: Tensor) -> Tensor:
            for stage in self.stages:
                x = torch.tanh(stage(x))
            return x

    program = progc.capture(Stages(), (torch.randn(3, 5, 8),))
    assert rates(program) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5]) and is_linear(program)
    after = progc.apply(program, "set-drop{path=0.25 ramp=linear}")
    assert rates(after) == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25])
    assert not is_linear(captured(torchvision_row)), "it begins above 0"


def test_a_rate_that_is_the_operations_default_is_found() -> None:
    """`bernoulli_` has 0.5 as a default, and a graph leaves defaults out; this goes through 0 and back."""
    torch.manual_seed(0)
    program = progc.capture(perturb(Stochastic(0.5)), (images(),))
    assert rates(program)[-1] == 0.5 and len(rates(program)) == 3
    zero = progc.apply(program, "set-drop{path=0.0}")
    again = progc.apply(zero, "set-drop{path=0.5}")
    assert rates(zero) == [0.0] * 3 and torch.equal(output(again.module()), output(program.module()))
    assert progc.apply(program, "set-drop{path=0.5}").history[-1].changed is False


def test_a_network_in_one_function_has_one_step_per_branch() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for weight in self.weights:
                y = torch.tanh(x @ weight)
                x = x + (y * torch.floor(0.9 + torch.rand(y.shape[0], 1)) / 0.9 if self.training else y)
            return x

    program = progc.capture(Flat(), (torch.randn(3, 4),))
    assert rates(progc.apply(program, "set-drop{path=0.2 ramp=linear}")) == pytest.approx([0.0, 0.1, 0.2])


def test_another_division_on_the_branch_is_not_the_masks() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x) / 1.5
            return x + y * y.new_empty(y.shape[0], 1).bernoulli_(0.8).div_(0.8) / 2.0 if self.training else x + y

    program = progc.capture(Scaled(), (torch.randn(3, 4),))
    assert rates(program) == pytest.approx([0.2])
    graph = progc.apply(program, "set-drop{path=0.0}").graphs["train"]
    divisors = [node.args[1] for node in graph.nodes if str(node.target).startswith("aten.div")]
    assert sorted(divisors) == [1.0, 1.5, 2.0]  # type: ignore[type-var]


def test_masks_that_are_no_drop_path_are_left_alone() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            unscaled = y * y.new_empty(y.shape[0], 1).bernoulli_(0.5)  # no division: labels are dropped so
            noise = torch.rand(y.shape[0], 1) * 0.5  # no mask
            return x + unscaled + y * noise

    program = progc.capture(Other(), (torch.randn(3, 4),))
    assert rates(program) == []
    identified = progc.apply(zoo.captured("own:flat")[1], "inject-sid{dropout=0.3}")
    assert find_drops(identified.graphs["train"]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("set-drop{path=0.1}", "the train graph has no drop-path (its rate was 0 when the model was captured)"),
        ("set-drop{dropout=0.1}", "the train graph has no dropout"),
        ("set-drop{path=1.0}", "path=1"),
        ("set-drop{dropout=-0.5}", "dropout=-0.5: expected a probability"),
        ("set-drop{ramp=cosine}", "keep, linear, uniform"),
    ],
)
def test_what_cannot_be_set_is_refused_in_a_line(text: str, message: str) -> None:
    _, program = zoo.captured("own:flat")
    with pytest.raises(InputError) as caught:
        progc.apply(program, text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_proportions_that_nobody_knows_are_refused() -> None:
    program = progc.capture(nets.DroppingNet(path=0.0, dropout=0.0), (torch.randn(4, 5, 6),))
    with pytest.raises(PassOptionError, match="all 3 rates were 0 at capture, .* set ramp=uniform"):
        progc.apply(program, "set-drop{dropout=0.1}")
    assert rates(progc.apply(program, "set-drop{dropout=0.1 ramp=uniform}"), "dropout") == [0.1] * 3
