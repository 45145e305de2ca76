"""grow-resolution against what the libraries themselves do at another size."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
from torch import nn

import progc
from progc.ir.program import Program
from progc.pipeline.manager import run
from tests import zoo
from tests.sweeps import some

Size = tuple[int, int]


def captured(model: nn.Module, size: int, channels: int = 3) -> Program:
    return progc.capture(model, (zoo.image(size, channels=channels),))


def resized(program: Program, size: Size, options: str = "") -> Program:
    grown, (result,) = run(program, f"grow-resolution{{to={size[0]}x{size[1]} {options}}}")
    assert result.changed and result.lossless is False
    assert grown.signature.shapes[0] is not None and grown.signature.shapes[0][-2:] == size
    return grown


def difference(program: Program, model: nn.Module, size: Size, mode: str = "eval") -> float:
    """Largest difference in float64, relative to the model's largest output."""
    image = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    ours, theirs = (copy.deepcopy(module).double().train(mode == "train") for module in (program.module(), model))
    with torch.no_grad():
        found, expected = ours(image), theirs(image)
    return float((found - expected).abs().max() / expected.abs().max())


def position_tables(model: nn.Module) -> None:
    """Position tables that matter: a fresh one is nearly zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


def timm_model(name: str, **options: object) -> nn.Module:
    import timm

    model = zoo.perturb(timm.create_model(name, **options))
    position_tables(model)
    return model.eval()


@pytest.mark.parametrize(
    "name", some(["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"], ["vit_tiny_patch16_224"])
)
def test_tokens_with_a_position_table(name: str) -> None:
    model = timm_model(name, img_size=64, depth=2, embed_dim=48)
    program = captured(model, 64)
    for size in ((96, 96), (48, 80), (32, 32)):
        other = copy.deepcopy(model)
        other.set_input_size(img_size=size)  # type: ignore[operator]
        assert difference(resized(program, size), other, size) < 1e-9, size


def test_a_position_table_over_rows_and_columns() -> None:
    from timm.layers.pos_embed import resample_abs_pos_embed_nhwc
    from timm.models.volo import VOLO

    def build(size: Size) -> nn.Module:
        return VOLO(
            layers=(1, 1, 1, 1), embed_dims=(16, 32, 32, 32), num_heads=(2, 4, 4, 4), num_classes=5, img_size=size
        )  # fmt: skip

    model = zoo.perturb(build((64, 64))).eval()
    position_tables(model)
    program = captured(model, 64)
    for size in ((96, 96), (64, 128)):
        state = dict(model.state_dict())
        state["pos_embed"] = resample_abs_pos_embed_nhwc(state["pos_embed"], [side // 16 for side in size])
        other = build(size)
        other.load_state_dict(state)
        assert difference(resized(program, size), other, size) < 1e-9, size


@pytest.mark.parametrize(
    ("name", "options"), [("resnet18", {"channels": zoo.RESNET18}), ("convnext_atto", {"dims": zoo.CONVNEXT})]
)
def test_convolutions_take_any_size(name: str, options: dict[str, object]) -> None:
    model = timm_model(name, **options)
    program = captured(model, 64)
    for size in ((96, 96), (64, 160), (32, 32)):
        grown = resized(program, size)
        for mode in ("eval", "train"):
            assert difference(grown, model, size, mode) < 1e-9, (size, mode)


def windowed(size: int = 56) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=size, patch_size=2, window_size=7, embed_dim=8, depths=(2, 2), num_heads=(2, 4), num_classes=5
    )


@functools.cache
def windows() -> tuple[nn.Module, Program]:
    model = zoo.perturb(windowed()).eval()
    return model, captured(model, 56)


@pytest.mark.parametrize(
    ("size", "options", "library"),
    [
        pytest.param((84, 84), "", {"window_size": 7}, marks=pytest.mark.slow),
        ((112, 56), "", {"window_size": 7}),
        pytest.param((112, 112), "windows=scale", {}, marks=pytest.mark.slow),
        ((64, 96), "windows=scale", {}),
    ],
)
def test_windows(size: Size, options: str, library: dict[str, int]) -> None:
    model, program = windows()
    other = windowed()
    other.load_state_dict(model.state_dict(), strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own interpolation
        other.set_input_size(img_size=size, **library)  # type: ignore[operator]
    assert difference(resized(program, size, options), other, size) < 1e-9


def test_a_window_that_covered_the_image_is_noted_when_there_are_several() -> None:
    """The library's class shifts them then, and the captured graph has nothing to shift them with."""
    program = captured(windowed(28).eval(), 28)
    told = "cut the image into 1 along a side before and into 2 now; a model class that shifts windows"
    for options, noted in (("", True), ("windows=scale", False)):
        _, (result,) = run(program, f"grow-resolution{{to=56 {options}}}")
        assert any(told in note for note in result.notes) is noted


def test_a_size_that_windows_forbid() -> None:
    _, program = windows()
    with pytest.raises(progc.errors.TargetError, match=r"cannot take 80x80: .*nearest sizes that work are 56 and 84"):
        progc.apply(program, "grow-resolution{to=80}")


def in_float32(program: Program, model: nn.Module, size: Size) -> float:
    image = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        found = program.module().eval()(image, **program.example[1])
        expected = model.eval()(image, **program.example[1])
    return float((found.sample - expected.sample).abs().max() / expected.sample.abs().max())


@pytest.mark.parametrize("size", some([(16, 16), (4, 4), (12, 12)], [(4, 4)]))
def test_a_diffusion_transformer(size: Size) -> None:
    model, program = zoo.captured("diffusers:dit")
    assert in_float32(resized(program, size), model, size) < 1e-5


@pytest.mark.parametrize("size", some([(32, 32), (8, 8), (16, 24)], [(16, 24)]))
def test_a_diffusion_network_of_convolutions(size: Size) -> None:
    model, program = zoo.captured("diffusers:unet")
    assert in_float32(resized(program, size), model, size) < 1e-5


def test_relative_tables_over_the_whole_image() -> None:
    from timm.models.beit import Beit

    def build(size: int) -> nn.Module:
        return Beit(
            img_size=size, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5, use_abs_pos_emb=False,
            use_rel_pos_bias=True,
        )  # fmt: skip

    model = zoo.perturb(build(32)).eval()
    position_tables(model)
    program = captured(model, 32)
    for size in ((48, 48), (40, 64)):
        other = copy.deepcopy(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other.set_input_size(img_size=size)  # type: ignore[operator]
        assert difference(resized(program, size), other, size) < 1e-5, size


@pytest.mark.parametrize("sizes", [(4, 8), (16, 8), (12, 16, 8), (32, 4, 8)])
def test_a_table_of_sines_comes_back_bit_by_bit(sizes: tuple[int, ...]) -> None:
    """At a small size positions lie several turns of the highest frequency apart."""
    _, program = zoo.captured("diffusers:dit")
    there = program
    for size in sizes:
        there = resized(there, (size, size))
    before, after = program.tensors["pos_embed.pos_embed"], there.tensors["pos_embed.pos_embed"]
    assert torch.equal(before, after)
