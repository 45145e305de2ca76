"""Capture: graphs, names, dynamic batch, structure of inputs and outputs, bit-identical training, untouched models."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import progc
from progc.capturing.capture import capture_shapes
from progc.errors import CaptureError, InputError
from progc.ir.program import MODES, TensorMeta
from tests import nets
from tests.zoo import captured, image, perturb

QUICK = ("transformers:gpt2", "transformers:llama", "timm:mobilenetv3_small_100@64", "diffusers:dit", "own:einsum",
         "own:flat", "own:conv", "own:tied")  # fmt: skip


def outputs(module: nn.Module, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return pytree.tree_leaves(module(*args, **kwargs))


def assert_identical(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    leaves, spec = pytree.tree_flatten(found)
    wanted, wanted_spec = pytree.tree_flatten(expected)
    assert spec == wanted_spec
    for a, b in zip(leaves, wanted, strict=True):
        assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b


def train_step(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Output, gradients and buffers after one seeded forward and backward in train mode; buffers are put back."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.train().zero_grad(set_to_none=True)
    torch.manual_seed(7)
    found = pytree.tree_leaves(module(*args, **kwargs))[0]
    found.square().mean().backward()
    result = {"output": found.detach()}
    result |= {f"grad {n}": p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    result |= {f"buffer {n}": buffer.clone() for n, buffer in module.named_buffers()}
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    return result


def vit_with_dropout() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=10, drop_rate=0.1,
        pos_drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.3,
    )  # fmt: skip
    return model, (image(32, batch=4),), {}


def resnet() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    import timm

    return timm.create_model("resnet18", num_classes=10), (image(64, batch=4),), {}


def dit() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, num_layers=2, sample_size=8, dropout=0.1,
        num_embeds_ada_norm=20,
    )  # fmt: skip
    return model, (image(8, 4, 4),), {"timestep": torch.arange(4), "class_labels": torch.arange(4)}


@pytest.mark.parametrize("build", [vit_with_dropout, resnet, dit])
def test_training_is_bit_identical(build: Any) -> None:
    model, args, kwargs = build()
    perturb(model)
    module = progc.capture(model, args, kwargs).module()
    expected, found = train_step(model, args, kwargs), train_step(module, args, kwargs)
    assert found.keys() == expected.keys()
    assert len([name for name in found if name.startswith("grad")]) == len(
        [p for p in model.parameters() if p.requires_grad]
    )
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert different == []
    if build is resnet:  # and the statistics did move
        assert not torch.equal(expected["buffer bn1.running_mean"], model.get_buffer("bn1.running_mean"))


@pytest.mark.parametrize("name", QUICK)
def test_program_computes_what_the_module_does(name: str) -> None:
    model, program = captured(name)
    args, kwargs = program.example
    module = program.module().eval()
    with torch.no_grad():
        assert_identical(module(*args, **kwargs), model(*args, **kwargs))
    assert list(module.state_dict()) == list(model.state_dict())
    assert program.num_parameters() == sum(p.numel() for p in model.parameters())
    for mode in MODES:
        for node in program.graphs[mode].nodes:
            assert "tensor" in node.meta
            if node.op == "get_attr":
                assert node.target in program.tensors and node.target not in program.tied
                assert isinstance(node.meta["tensor"], TensorMeta)


@pytest.mark.parametrize("name", QUICK)
def test_batch_is_dynamic(name: str) -> None:
    model, program = captured(name)
    assert all(program.signature.batch_dims)
    args, kwargs = program.example
    module = program.module().eval()
    for batch in (1, 3):
        resized = pytree.tree_map(lambda leaf, b=batch: leaf[:1].expand(b, *leaf.shape[1:]).clone(), (args, kwargs))
        torch.testing.assert_close(
            outputs(module, *resized[0], **resized[1]), outputs(model, *resized[0], **resized[1]), rtol=0, atol=0
        )


def test_example_batch_of_one_stays_dynamic() -> None:
    model = nets.EinsumTransformer()
    program = progc.capture(model, (torch.randn(1, 6, 10),))
    assert program.signature.batch_dims == (True,)
    assert program.example[0][0].shape == (2, 6, 10)
    x = torch.randn(5, 6, 10)
    assert_identical(program.module()(x), model(x))


def test_batch_range_follows_the_models_own_branches() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) if x.shape[0] > 4 else x

    small = progc.capture(Wide(), (torch.randn(2, 4),)).module()
    assert small(torch.randn(4, 4)).shape == (4, 4)
    with pytest.raises(InputError, match=r"batch size 5; expected 1 to 4"):
        small(torch.randn(5, 4))
    large = progc.capture(Wide(), (torch.randn(6, 4),)).module()
    with pytest.raises(InputError, match=r"batch size 3; expected at least 5"):
        large(torch.randn(3, 4))


def test_batch_that_must_be_what_it_was_is_static() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (2 if x.shape[0] % 3 == 0 else 1)

    program = progc.capture(Fixed(), (torch.randn(3, 4),))
    assert program.signature.batch_dims == (False,)
    with pytest.raises(InputError, match=r"has shape \[2, 4\]; expected \[3, 4\]"):
        program.module()(torch.randn(2, 4))


def test_output_structures_and_types_are_kept() -> None:
    x = torch.randn(2, 6)
    for model in (nets.DataclassOutput(), nets.StructuredOutput()):
        program = progc.capture(model, (x,))
        assert_identical(program.module()(x), model(x))
        assert_identical(progc.capture(model, (x,)).module()(x), model(x))  # the class is registered by now
    assert program.signature.out_specs["train"] == program.signature.out_specs["eval"]


def test_library_outputs_are_kept() -> None:
    for name, kind in (("transformers:gpt2", "CausalLMOutputWithCrossAttentions"), ("diffusers:dit", "Transformer2D")):
        _, program = captured(name)
        found = program.module().eval()(*program.example[0], **program.example[1])
        assert type(found).__name__.startswith(kind)


def test_outputs_that_are_inputs_parameters_or_plain_values() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))

        def forward(self, x: torch.Tensor) -> Any:
            return x, self.weight, [x * 2, 3, "text", None]

    model, x = Odd(), torch.randn(2, 3)
    module = progc.capture(model, (x,)).module()
    assert_identical(module(x), model(x))
    assert module(x)[1] is model.weight


def test_keyword_inputs_of_every_kind() -> None:
    model = nets.KeywordInputs()
    batch = {"tokens": {"ids": torch.tensor([[1, 2], [3, 4]]), "extra": torch.randn(2, 2, 6)}}
    for mask in (None, torch.ones(2, 2)):
        kwargs = {"double": True, "scale": 0.5, "mask": mask, "batch": batch}
        module = progc.capture(model, (), kwargs).module()
        assert_identical(module(**kwargs), model(**kwargs))
        shuffled = {"batch": {"tokens": dict(reversed(batch["tokens"].items()))}, "mask": mask}
        assert_identical(module(**shuffled, scale=0.5, double=True), model(**kwargs))


class Restless(nn.Module):
    """Counts calls, fills a cache, keeps a tensor, draws random numbers of three kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.calls, self.cache = 0, {}
        self.linear.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor, fail: bool = False) -> torch.Tensor:
        self.calls += 1
        if "table" not in self.cache:
            self.cache["table"] = torch.arange(4.0)
        self.last = self.norm(self.linear(x)) + self.cache["table"] + random.random() + float(np.random.rand())
        if fail and self.last.sum() > 0:
            return x
        return torch.nn.functional.dropout(self.last, 0.5, self.training)


@pytest.mark.parametrize("fail", [False, True])
def test_model_and_random_states_are_left_as_they_were(fail: bool) -> None:
    model = Restless().train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    attributes = {module: dict(module.__dict__) for module in model.modules()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    if fail:
        with pytest.raises(CaptureError):
            progc.capture(model, (torch.randn(3, 4), True))
        torch.set_rng_state(states[0])
    else:
        x = torch.randn(3, 4)
        states = torch.get_rng_state(), *states[1:]
        progc.capture(model, (x,))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert model.training and not model.norm.training and model.linear.training
    assert not model.linear.bias.requires_grad and model.linear.weight.requires_grad
    assert model.cache == {} and model.calls == 0 and not hasattr(model, "last")
    assert {module: dict(module.__dict__) for module in model.modules()} == attributes
    assert_identical(dict(model.state_dict()), dict(before))


def test_gradient_regions_keep_their_meaning() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("table", torch.randn(4), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                y, shift = self.a(x), self.table * 2
                with torch.enable_grad():
                    z = self.a(y)
            return self.b(y) + self.a(x) * shift + z

    model, x = Frozen(), torch.randn(2, 4)
    program = progc.capture(model, (x,))
    found, expected = train_step(program.module(), (x,), {}), train_step(model, (x,), {})
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    targets = [node.target for node in program.graphs["train"].nodes]
    assert targets.count(torch.ops.aten.detach.default) == 1  # none for the buffer: no gradient flows there


def test_unused_values_go_and_random_draws_stay() -> None:
    class Wasteful(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            (x * 3).sum()
            torch.nn.functional.dropout(x, 0.5, self.training)
            torch.rand(3)
            return torch.nn.functional.dropout(x, 0.5, self.training)

    model, x = Wasteful(), torch.randn(4, 8)
    program = progc.capture(model, (x,))
    names = [str(node.target) for node in program.graphs["train"].nodes if node.op == "call_function"]
    assert names == ["aten.dropout.default", "aten.rand.default", "aten.dropout.default"]
    torch.manual_seed(3)
    found = program.module()(x)
    torch.manual_seed(3)
    assert torch.equal(found, model(x))


def test_lifted_constants_are_shared_by_both_graphs() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = torch.randn(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.plain + torch.tensor([1.0, 2.0, 3.0, 4.0])

    model, x = Constant(), torch.randn(2, 4)
    program = progc.capture(model, (x,))
    assert len(program.tensors) == 2 and {spec.kind for spec in program.specs.values()} == {"constant"}
    assert program.state_dict() == {}
    assert_identical(program.module()(x), model(x))


def test_capture_on_the_meta_device() -> None:
    import timm

    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
    program = capture_shapes(model, (torch.zeros(2, 3, 224, 224),))
    assert program.graphs["train"] is program.graphs["eval"]
    assert len(program.chains) == 1 and len(program.axes.axes) > 0
    assert all(tensor.is_meta for tensor in program.tensors.values())
    assert program.num_parameters() == sum(p.numel() for p in model.parameters()) > 85_000_000
    with pytest.raises(InputError, match=r"captured for its shapes only; use progc\.capture"):
        program.module()
    with torch.device("meta"):
        small = nets.FlatMixer()
    assert set(progc.capture(small, (torch.zeros(2, 3, 16, 16),)).graphs) == set(MODES)


def test_program_does_not_keep_the_exported_program() -> None:
    made: list[Any] = []
    original = torch.export.export

    def spy(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        made.append(weakref.ref(result))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", spy)
        program = progc.capture(nets.ConvNet(), (image(16),))
    gc.collect()
    assert len(made) == 2 and [reference() for reference in made] == [None, None]
    assert program.class_name == "tests.nets.ConvNet"


def test_parameters_are_shared_and_ties_are_known() -> None:
    model = nets.TiedWeights()
    program = progc.capture(model, (torch.tensor([[1, 2], [3, 4]]),))
    assert program.tied == {"head.weight": "embed.weight"}
    assert program.tensors["head.weight"] is model.embed.weight
    module = program.module()
    assert module.get_parameter("head.weight") is module.get_parameter("embed.weight")
    assert set(module.state_dict()) == set(model.state_dict())
