"""Growth spaces of real networks: by default, narrowed, and refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import progc
from progc.errors import InputError
from progc.ir.program import Program
from progc.schedule import Point, Space
from progc.schedule.building import network
from progc.schedule.finding import find, find_space
from progc.schedule.resolution_levels import grid_step
from tests import nets, zoo


def _program(name: str) -> Program:
    return zoo.captured(name)[1]


def _sides(space: Space) -> list[int]:
    assert all(height == width for height, width in space.resolutions)
    return [height for height, _ in space.resolutions]


def _depths(space: Space) -> list[list[int]]:
    return [list(level.values()) for level in space.depths]


# -- by analysis ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chains", "depths", "sides"),
    [
        ("own:image", ["blocks"], [[2], [3], [4]], [16, 24, 32]),
        ("own:flat", ["g_#"], [[2], [3], [4]], [8, 12, 16]),
        ("timm:resnet18@64", ["layer1"], [[1], [2]], [32, 40, 56, 64]),
        # windows of 7 over patches of 2: no other size fits; blocks of the second chain come in pairs
        pytest.param(
            "timm:swin@56", ["layers.1.blocks", "layers.2.blocks"], [[2, 1], [4, 2]], [], marks=pytest.mark.slow
        ),
        ("diffusers:dit", ["transformer_blocks"], [[1], [2]], [4, 6, 8]),
        ("transformers:bert", ["encoder.layer"], [[2], [3]], []),
    ],
)
def test_spaces_by_analysis(name: str, chains: list[str], depths: list[list[int]], sides: list[int]) -> None:
    found = find(_program(name))
    assert [list(level) for level in found.space.depths] == [chains] * len(depths)
    assert _depths(found.space) == depths
    assert _sides(found.space) == sides
    assert found.space.widths == ()
    assert found.space.unfreeze == ()
    assert any("resolution does not vary" in note for note in found.notes) == (not sides)


def test_reference_rounds_sizes_as_published() -> None:
    """5/6 of 288 is 240, halfway between two multiples of 32, or a rounding error below it."""
    net = nn.Sequential(nn.Conv2d(3, 4, 32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    program = progc.capture(net, (torch.zeros(2, 3, 288, 288),))
    for mode, expected in (("reference", [160, 192, 224, 288]), ("default", [160, 192, 256, 288])):
        for text in (None, "0.5:1:4"):
            assert _sides(find(program, depths="none", widths="none", resolutions=text, mode=mode).space) == expected


@pytest.mark.slow  # twelve blocks; smaller networks have the same grids below
def test_levels_are_those_of_the_published_grid() -> None:
    """Patches of 16, an image of 224, 12 blocks: on the grid of 32 pixels, as published."""
    import timm

    module = timm.create_model("vit_tiny_patch16_224", embed_dim=24, num_heads=3)
    program = progc.capture(module, (zoo.image(224),))
    space = find_space(program)
    assert _sides(space) == [128, 160, 192, 224]
    assert _depths(space) == [[6], [8], [10], [12]]
    assert _sides(find_space(program, depths="none", resolutions="0.4:1:4")) == [96, 128, 192, 224]


class _Refusing:
    device = torch.device("cpu")

    def __init__(self, name: str) -> None:
        self.name = name

    def make(self) -> torch.Tensor:
        raise AssertionError(f"{self.name} is read")


def test_no_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    program = _program("own:image").deferred
    for name, tensor in program.parameters():
        monkeypatch.setattr(tensor, "_progc_recipe", _Refusing(name))
    found = find(program, widths="0.5:1:2", unfreeze="prefix:4", depths="0.5,1")
    assert found.space.shape == (3, 2, 2, 4)


def test_the_step_of_the_grid_is_what_the_network_takes() -> None:
    assert grid_step(_program("own:image")) == (8, 8)  # patches
    assert grid_step(_program("own:flat")) == (4, 4)
    assert grid_step(_program("timm:resnet18@64")) == (8, 8)  # any size would do: an eighth
    wide = progc.capture(nets.ConvNet(), (torch.randn(2, 3, 16, 32),))
    assert grid_step(wide) == (2, 4)
    space = find_space(wide, depths="none", resolutions="0.5:1:3")
    assert space.resolutions == ((8, 16), (12, 24), (16, 32))
    assert find_space(wide, depths="none", resolutions="8x16,16x32").resolutions == ((8, 16), (16, 32))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


@functools.cache
def _chains(*depths: int) -> Program:
    """A network of chains of residual blocks of different form."""
    chains = [nn.Sequential(*(_Residual(5 + place) for _ in range(depth))) for place, depth in enumerate(depths)]
    return progc.capture(nn.Sequential(*chains), (torch.randn(2, 4),))


@pytest.mark.parametrize(
    ("depths", "text", "expected"),
    [
        ((4, 14), None, [[2, 7], [4, 8], [4, 11], [4, 14]]),  # as published
        ((4, 14), "0.5:1:4", [[2, 7], [4, 8], [4, 11], [4, 14]]),
        ((4, 14), "9,12,15,18", [[2, 7], [4, 8], [4, 11], [4, 14]]),
        ((4, 14, 2), None, [[2, 7], [4, 8], [4, 11], [4, 14]]),  # two blocks at the end stay, and are not counted
        ((4, 4, 8), None, [[2, 2, 4], [4, 4, 4], [4, 4, 5], [4, 4, 8]]),  # depths never fall
    ],
)
def test_reference_divides_a_depth_as_published(
    depths: tuple[int, ...], text: str | None, expected: list[list[int]]
) -> None:
    program = _chains(*depths)
    found = find(program, depths=text, mode="reference")
    assert _depths(found.space) == expected
    if text == "0.5:1:4":
        assert _depths(find(program, depths=text).space) == [[2, 7], [3, 9], [3, 12], [4, 14]]
    with pytest.raises(InputError, match="expected the full network, .*, as the last level"):
        find(program, depths="0.25,0.5", mode="reference")


# -- narrowed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("own:image", "0.5:1:3", [[2], [3], [4]]),
        ("own:image", "0.25,0.5,1.0", [[1], [2], [4]]),
        ("own:image", "2,3,4", [[2], [3], [4]]),
        ("own:image", "1:4:4", [[1], [2], [3], [4]]),
        ("own:image", [1, 4], [[1], [4]]),
        ("own:image", {"blocks": [2, 4]}, [[2], [4]]),
        ("own:image", "bl*:0.5:1:2", [[2], [4]]),
        ("timm:swin@56", "layers.1.blocks:2,layers.1.blocks:4", [[2], [4]]),
        ("timm:swin@56", "layers.1.blocks:2,layers.1.blocks:4,0.5,1", [[2, 1], [4, 2]]),
        ("timm:swin@56", "3,6", [[2, 1], [4, 2]]),  # all blocks that can go, in proportion
        ("timm:swin@56", "none", []),
    ],
)
def test_depths(name: str, text: Any, expected: list[list[int]]) -> None:
    found = find(_program(name), depths=text, resolutions="none")
    assert _depths(found.space) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("0.5:1:3", [32, 48, 64]), ("32,64", [32, 64]), ("0.5,0.5,1.0", [32, 64])]
)
def test_widths(text: str, expected: list[int]) -> None:
    space = find_space(_program("timm:resnet18@64"), depths="none", resolutions="none", widths=text)
    assert [dict(level) for level in space.widths] == [{"width": width} for width in expected]


def test_widths_are_whole_heads_and_lead_to_one_another() -> None:
    space = find_space(_program("timm:vit_tiny_patch16_224@64"), depths="none", resolutions="none", widths="0.6:1:3")
    assert [dict(level) for level in space.widths] == [{"width": 32}, {"width": 48}]
    found = find(_program("timm:swin@56"), depths="none", resolutions="none", widths="0.5,1")
    assert found.space.widths == ()  # one head of the first stage: growth does not find the heads again
    assert "8 is changed to 16: growth gives" in found.notes[0]


def test_unfreezing() -> None:
    found = find(_program("own:image"), unfreeze="interleave:4,prefix:2", resolutions="none")
    assert [str(level) for level in found.space.unfreeze] == [
        "interleave:1/4", "interleave:2/4", "interleave:3/4", "interleave:4/4", "prefix:1/2", "prefix:2/2"
    ]  # fmt: skip
    assert found.space.depths == ()  # what unfreezes is trained already
    assert find_space(_program("own:image"), unfreeze="suffix:3", depths="0.5,1").shape == (3, 2, 1, 3)


# -- a network to begin with ---------------------------------------------------------------------------------------


def test_a_start_is_the_smallest_level() -> None:
    module = nets.ImageTransformer(width=8, heads=1, depth=1)
    start = progc.capture(module, (zoo.image(32),))
    full = progc.grow(progc.capture(nets.ImageTransformer(width=8, heads=1, depth=1), (zoo.image(32),)), to="depth*4")
    space = find_space(full, start=start, resolutions="none")
    assert _depths(space) == [[1], [2], [3], [4]]
    made = network(full, space.point(next(space.places())))[0]
    assert {n: t.shape for n, t in made.tensors.items()} == {n: t.shape for n, t in start.tensors.items()}
    assert _depths(find_space(full, start=start, resolutions="none", depths="2,4")) == [[1], [2], [4]]
    with pytest.raises(InputError, match=r"start: condition.weight of shape \[16, 5\] is missing in the smallest"):
        find_space(_program("own:image"), start=_program("own:conditional"))
    with pytest.raises(InputError, match="start: its width 24 is larger than the full network's"):
        find_space(_program("own:image"), start=progc.capture(nets.ImageTransformer(width=24), (zoo.image(32),)))


def test_a_start_that_is_narrower() -> None:
    start = progc.capture(nets.ImageTransformer(width=16, heads=2, depth=2), (zoo.image(32),))
    full = progc.grow(start, to="width=32,heads=4,depth=4")
    space = find_space(full, start=start, resolutions="none", levels=3)
    assert _depths(space) == [[2], [3], [4]]
    assert [level["width"] for level in space.widths] == [16, 24, 32]
    made = network(full, space.point(next(space.places())))[0]
    assert {n: t.shape for n, t in made.tensors.items()} == {n: t.shape for n, t in start.tensors.items()}
    space = find_space(full, start=Point({"blocks": 3}), resolutions="none", levels=2)
    assert _depths(space) == [[3], [4]]


# -- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("own:image", {"depths": "2,5"}, "expected 1 to 4 blocks in blocks together, got 5"),
        ("own:image", {"depths": "2,3"}, "expected the full network, 4 blocks, as the last level; write 2,3,4"),
        (
            "own:image",
            {"depths": "blocks:2,blocks:3"},
            "as the last level, got 3; add blocks:4",
        ),
        ("own:image", {"depths": "block:2,block:4"}, "the program has no chain `block`; did you mean blocks?"),
        ("own:image", {"depths": "half"}, "depths `half`: expected factors (0.5:1:4 or 0.25,0.5,1), sizes (6,9,12)"),
        ("own:image", {"depths": "4,2"}, "expected ascending levels; write the smallest one first"),
        ("timm:swin@56", {"depths": "layers.1.blocks:3,layers.1.blocks:4"}, "the nearest that it can have are 2 and 4"),
        (
            "timm:swin@56",
            {"depths": "layers.1.blocks:4,layers.2.blocks:1,layers.2.blocks:2"},
            "expected the same number of levels for every chain; layers.1.blocks has 1, layers.2.blocks has 2",
        ),
        ("own:image", {"resolutions": "20,32"}, "the network cannot take 20x20: 20 positions are not a multiple of"),
        ("own:image", {"resolutions": "20,32"}, "the nearest sizes that work are 16 and 24"),
        ("own:image", {"resolutions": "16,24"}, "the full image size, 32, as the last level; write 16,24,32"),
        ("own:image", {"resolutions": "16,64"}, "64 is larger than the image size of the full network, 32"),
        ("own:image", {"resolutions": "24,16,32"}, "expected sizes that ascend in height and width, got 24, 16, 32"),
        ("own:image", {"resolutions": "big"}, "resolutions `big`: expected factors"),
        ("transformers:bert", {"resolutions": "16,32"}, "no input is an image"),
        ("timm:swin@56", {"resolutions": "0.5,1.0"}, "the network takes no image smaller than 56 pixels"),
        ("own:image", {"widths": "8,12"}, "expected the full width, 16, as the last level, got 12; add 16"),
        pytest.param("timm:swin@56", {"widths": "8,16"}, "8 does not grow to 16 exactly", marks=pytest.mark.slow),
        ("transformers:bert", {"widths": "0.5,1"}, "no axis of this network can change"),
        ("own:image", {"unfreeze": "interleave"}, "expected shape:levels such as interleave:4"),
        ("own:image", {"unfreeze": "prefixes:4"}, "there is no shape `prefixes`; did you mean prefix?"),
        ("own:image", {"unfreeze": "prefix:8"}, "the network has 4 blocks; give at most 4 levels"),
        ("own:image", {"unfreeze": "prefix:2,prefix:4"}, "prefix is given twice"),
        ("own:conv", {"unfreeze": "prefix:2"}, "the network has no chain of blocks"),
        (
            "own:image",
            {"depths": "none", "resolutions": "none"},
            "the growth space is empty: nothing varies; give depths",
        ),
        ("own:image", {"depths": "1.0", "resolutions": "32"}, "the growth space is empty"),
        ("transformers:bert", {"depths": "none"}, "nothing varies (resolution does not vary: no input is an image"),
    ],
)
def test_refusals_say_what_would_work(name: str, options: dict[str, Any], message: str) -> None:
    options = {"depths": "none", "resolutions": "none", **options} if "depths" not in options else options
    with pytest.raises(InputError) as error:
        find_space(_program(name), **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_depths_from_which_growth_does_not_lead_back() -> None:
    """One block of a chain that is found by its repetition is no repetition."""
    found = find(_program("own:flat"), depths="1,2,4", resolutions="none")
    assert _depths(found.space) == [[2], [4]]
    assert found.notes[0].startswith("depth: g_# keeps at least 2 blocks, because it does not grow from 1: ")
    with pytest.raises(InputError, match="does not grow from 1 blocks: .*; the smallest depth from which .* is 2"):
        find(_program("own:flat"), depths="g_#:1,g_#:4", resolutions="none")


def test_a_network_without_chains() -> None:
    with pytest.raises(InputError, match="this network has no chain of blocks"):
        find_space(_program("own:conv"), depths="0.5,1")
    assert find_space(_program("own:conv")).depths == ()
