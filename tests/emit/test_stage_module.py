"""Stage modules compute what the program computes, bit for bit where nothing is compiled, and share regions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils import _pytree as pytree

import progc
from progc.emit import emit, regions, unit_paths
from progc.errors import InputError
from progc.ir.program import Program
from tests import zoo
from tests.sweeps import some

# Dynamo looks at .grad of what comes in, and what comes out of the block before is no leaf.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

NETWORKS = (
    "timm:vit_tiny_patch16_224@64", "timm:resnet18@64", "timm:swin@56", "timm:densenet121@64",
    "timm:convnext_atto@64", "diffusers:dit", "diffusers:unet", "transformers:bert_mlm", "transformers:llama",
    "transformers:gpt2", "own:einsum", "own:flat", "own:tied",
)  # fmt: skip


def run(module: nn.Module, program: Program, seed: int = 0) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Outputs, and gradients and buffers by name after one backward."""
    module.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    args, kwargs = program.example
    leaves = [leaf for leaf in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
    torch.stack([leaf.double().square().mean() for leaf in leaves if leaf.is_floating_point()]).sum().backward()
    state = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    return leaves, state | {name: buffer.clone() for name, buffer in module.named_buffers()}


def fresh(name: str) -> Program:
    """A program of its own: BatchNorm statistics move in train mode."""
    model, args, kwargs = zoo.build(name)
    return progc.capture(model, args, kwargs)


def dropping(depth: int = 4, rate: float = 0.2) -> Program:
    """A ViT with dropout and a ramp of drop-path rates."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", depth=depth, img_size=32, embed_dim=32, num_heads=2, num_classes=5,
        drop_path_rate=rate, proj_drop_rate=rate / 2,
    )  # fmt: skip
    return progc.capture(model, (torch.randn(4, 3, 32, 32),))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", some(NETWORKS, (*zoo.CORE, "own:flat", "own:tied", "diffusers:dit")))
def test_eager_is_bit_identical(name: str, train: bool) -> None:
    program = fresh(name)
    whole, pieces = copy.deepcopy(program.module()), emit(program, "eager")
    assert list(whole.state_dict()) == list(pieces.state_dict())
    assert [n for n, _ in whole.named_parameters()] == [n for n, _ in pieces.named_parameters()]
    (expected, wanted), (found, got) = (run(module.train(train), program) for module in (whole, pieces))
    assert len(expected) == len(found)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert wanted.keys() == got.keys()
    for key, value in wanted.items():
        assert (value is None) == (got[key] is None), key
        assert value is None or torch.equal(value, got[key]), key


def test_dropout_draws_what_the_program_draws() -> None:
    program = dropping()
    (expected, wanted), (found, got) = (run(m.train(), program) for m in (program.module(), emit(program, "eager")))
    assert torch.equal(expected[0], found[0])
    assert all(torch.equal(value, got[key]) for key, value in wanted.items())


def test_number_of_compilations_is_known_and_does_not_grow_with_depth() -> None:
    torch._dynamo.reset()
    counts = []
    for depth in (4, 8):
        program = dropping(depth)
        counter = CompileCounterWithBackend("aot_eager")
        module = emit(program, backend=counter).train()
        run(module, program)
        assert counter.frame_count == len(regions(module, "train")) == 4  # stem, block without drop-path, block, head
        run(module, program)
        assert counter.frame_count == 4
        counts.append(len(unit_paths(module)))
    assert counts == [4, 8]


def test_rates_are_arguments_with_the_right_distribution() -> None:
    """Lifted dropout and drop-path keep the share that they should keep, and the mean of what goes through."""
    program = dropping(3, 0.5)
    module = emit(program, backend="eager").train()
    plain = program.module().train()
    args, _ = program.example
    means = []
    for net in (module, plain):
        torch.manual_seed(1)
        with torch.no_grad():
            means.append(torch.stack([net(*args) for _ in range(400)]).double())
    error = (means[0].mean(0) - means[1].mean(0)).abs()
    spread = (means[0].var(0) + means[1].var(0)).div(400).sqrt()
    assert (error / spread).max() < 5
    assert (means[0].std(0) / means[1].std(0) - 1).abs().max() < 0.4


@pytest.mark.parametrize("spelling", ["floor", "less"])
def test_rates_are_lifted_however_they_are_spelled(spelling: str) -> None:
    """Blocks that differ in their rate alone share one region; rate and mean stay what they were."""

    class Dropped(nn.Module):
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.linear, self.keep = nn.Linear(6, 6), 1 - rate

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            branch = self.linear(x)
            if not self.training:
                return x + branch
            drawn = torch.rand(x.shape[0], 1)
            if spelling == "floor":
                return x + branch.div(self.keep) * (drawn + self.keep).floor()
            return x + branch * (drawn < self.keep) / self.keep

    torch.manual_seed(0)
    program = progc.capture(nn.Sequential(*(Dropped(0.1 * (i + 1)) for i in range(3))), (torch.randn(4, 6),))
    module, plain = emit(program, backend="eager").train(), program.module().train()
    found = regions(module, "train").values()
    assert len(found) == 2  # the first block, whose input needs no gradient, and the others
    assert all("r1" in region.source and "0.9" not in region.source for region in found)
    x = torch.randn(4, 6).repeat_interleave(5000, 0)
    with torch.no_grad():
        means = [net(x).double().reshape(4, -1, 6).mean(1) for net in (module, plain)]
        spread = plain(x).double().reshape(4, -1, 6).std(1) / 5000**0.5
    assert ((means[0] - means[1]).abs() < 7 * spread + 1e-6).all()


def test_frozen_blocks_are_regions_of_their_own() -> None:
    program = progc.apply(dropping(6, 0.0), "freeze{prefix=3 stem=true}")
    module = emit(program, backend="aot_eager").train()
    # Stem, frozen block, the first block that trains (nothing before it needs a gradient), the others, head.
    assert len(regions(module, "train")) == 5
    expected, wanted = run(program.module().train(), program)
    found, got = run(module, program)
    assert torch.equal(expected[0], found[0])
    for name, value in wanted.items():
        assert (value is None) == (got[name] is None), name
        assert value is None or torch.equal(value, got[name]), name


def test_a_layer_that_is_unfrozen_afterwards_gets_its_gradient() -> None:
    program = progc.apply(dropping(4, 0.0), "freeze{prefix=2 stem=true}")
    module = emit(program, backend="aot_eager").train()
    run(module, program)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    _, got = run(module, program)
    assert all(value is not None and value.abs().sum() > 0 for name, value in got.items() if "qkv.weight" in name)


def test_a_copy_runs_on_its_own_tensors() -> None:
    program = dropping(3, 0.0)
    module = emit(program, "eager").eval()
    args, _ = program.example
    twin = copy.deepcopy(module)
    before = module(*args)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(module(*args), before)
    assert twin(*args).abs().max() == 0


def test_activations_are_computed_again() -> None:
    program = dropping()
    kept: list[int] = []

    def saved(module: nn.Module) -> tuple[Any, Any]:
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = run(module.train(), program)
        kept.append(total)
        return result

    (expected, wanted), (found, got) = saved(emit(program, "eager")), saved(emit(program, "eager", recompute=True))
    assert torch.equal(expected[0], found[0])
    assert all(torch.equal(value, got[key]) for key, value in wanted.items())
    assert kept[1] < 0.7 * kept[0]


def test_recomputing_behind_a_frozen_stem_gives_gradients() -> None:
    program = progc.apply(dropping(3, 0.0), "freeze{prefix=1 stem=true}")
    _, wanted = run(program.module().train(), program)
    _, got = run(emit(program, "eager", recompute=True).train(), program)
    assert all((value is None) == (got[key] is None) for key, value in wanted.items())


def test_hooks_see_blocks() -> None:
    program = dropping(3, 0.0)
    module = emit(program, "eager")
    seen: list[str] = []
    for path in unit_paths(module):
        module.get_submodule(path).register_forward_hook(lambda *_, path=path: seen.append(path))
    run(module, program)
    assert seen == ["blocks.0", "blocks.1", "blocks.2"]


def test_bad_input() -> None:
    with pytest.raises(InputError, match="how='fast': expected one of regions, whole, eager"):
        emit(dropping(), "fast")  # type: ignore[arg-type]
