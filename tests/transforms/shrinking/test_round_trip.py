"""Shrink, then grow by the same plan: names, shapes and places are those of the full program again."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import progc
from progc.growth.grow import grow_with_report
from progc.growth.plan import GrowthPlan
from progc.ir.program import Program
from progc.lift.lift import Lift
from progc.transforms.shrinking import kept
from tests.nets import EinsumTransformer, FlatMixer
from tests.passes.test_shrink_models import convolutional, dense, diffusion, language, residual, vision_transformer
from tests.sweeps import some
from tests.transforms.shrinking.small import captured, shrunk
from tests.zoo import image

Place = tuple[str, tuple[Tensor | None, ...]]


def grown_back(small: Program, full: Program, inits: dict[str, str]) -> tuple[Program, GrowthPlan]:
    growth = grow_with_report(small, full, inits=inits, lossy=True)
    return growth.program, growth.plan


def through(lifts: tuple[Lift, ...], name: str, shape: torch.Size) -> tuple[str, list[Tensor], bool]:
    """The tensor that a grown one is made from, the place per dim of each entry, and whether it is an inserted one."""
    indices = [torch.arange(size) for size in shape]
    fresh = False
    for lift in reversed(lifts):
        entry = next((entry for entry in lift.tensors if entry.name == name), None)
        fresh = fresh or (entry is not None and entry.fresh)
        name, dims = kept(lift, name)
        steps = dims or (None,) * len(indices)
        indices = [own if dim is None else dim[own] for own, dim in zip(indices, steps, strict=True)]
    return name, indices, fresh


def check_identity(full: Program, text: str, inits: dict[str, str]) -> Program:
    """Every kept entry of every tensor is made from itself; names and shapes are those of the full program."""
    result = shrunk(full, text)
    back, plan = grown_back(result.program, full, inits)
    assert list(back.tensors) == list(full.tensors) and back.tied == full.tied
    assert {name: t.shape for name, t in back.tensors.items()} == {name: t.shape for name, t in full.tensors.items()}
    assert result.lift is not None
    seen = set()
    for name, tensor in full.tensors.items():
        source, indices, fresh = through(plan.lifts, name, tensor.shape)
        origin, dims = kept(result.lift, source)
        if fresh:
            assert origin != name
            continue
        assert origin == name and source not in seen
        seen.add(source)
        for position, own in enumerate(indices):
            places = dims[position] if dims and dims[position] is not None else torch.arange(tensor.shape[position])
            assert places is not None
            assert torch.equal(own[places], torch.arange(len(places))), (name, position)  # kept unit j is made from j
    assert seen == set(result.program.tensors)
    return back


GROWN = {"depth": "interpolate", "width": "copy"}
ROUND_TRIPS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Program], str, dict[str, str]]] = {
    "tokens": (
        lambda: vision_transformer(4, 48, 4),
        lambda: captured(vision_transformer(4, 48, 4), image(32)),
        "depth=0.5 width=*0.5",
        GROWN,
    ),
    "tokens, identity": (
        lambda: vision_transformer(5, 48, 4),
        lambda: captured(vision_transformer(5, 48, 4), image(32)),
        "depth=3 width=24 storage=copy",
        {"depth": "identity", "width": "copy"},
    ),
    "residual": (lambda: residual(2, 4, 3, 2), lambda: captured(residual(2, 4, 3, 2), image(32)), "depth=0.5", GROWN),
    "convolutional": (
        lambda: convolutional(1, 1, 3, 1),
        lambda: captured(convolutional(1, 1, 3, 1), image(32)),
        "depth=stages.2.blocks:1 width=*0.5",
        GROWN,
    ),
    "dense": (
        lambda: dense(3, 4, 3),
        lambda: captured(dense(3, 4, 3), image(64)),
        "depth=features.denseblock3*:2",
        {"depth": "random", "width": "copy"},
    ),
    "diffusion": (
        lambda: diffusion(3, 2),
        lambda: captured(
            diffusion(3, 2), image(8, channels=4), timestep=torch.tensor([3, 11]), class_labels=torch.tensor([1, 7])
        ),
        "depth=2",
        GROWN,
    ),
    "tied": (
        lambda: language(3),
        lambda: captured(language(3), input_ids=torch.tensor([[1, 2, 3], [4, 0, 10]])),
        "depth=2 width=*0.5",
        GROWN,
    ),
}


@pytest.mark.parametrize("name", some(ROUND_TRIPS, ["tokens", "convolutional", "dense"]))
def test_growing_back_into_the_full_program(name: str) -> None:
    build, capture, text, inits = ROUND_TRIPS[name]
    full = capture()
    back = check_identity(full, text, inits)
    build().load_state_dict(back.state_dict(), strict=True)


@functools.cache
def _full(depth: int) -> Program:
    return captured(EinsumTransformer(dim=24, heads=4, hidden=24, depth=depth), torch.randn(2, 6, 10))


@given(
    depth=st.integers(2, 4),
    keep=st.integers(1, 4),
    width=st.sampled_from([8, 12, 16, 24]),
    hidden=st.integers(2, 23),
    storage=st.sampled_from(["share", "copy"]),
)
@settings(max_examples=8)
def test_identity_on_indices(depth: int, keep: int, width: int, hidden: int, storage: str) -> None:
    """Whatever is kept; axes of size 1 apart, which growth does not find again."""
    text = f"depth={min(keep, depth)} width={width} mlp={hidden} storage={storage}"
    full = _full(depth)
    back = check_identity(full, text, GROWN)
    EinsumTransformer(dim=24, heads=4, hidden=24, depth=depth).load_state_dict(back.state_dict(), strict=True)


def test_passes_grow_back_too() -> None:
    full = captured(FlatMixer(12, 20, 4), image(16))
    back = progc.apply(full, "shrink{depth=0.5 width=*0.5},grow-depth{to=4},grow-width{width=12}")
    assert list(back.tensors) == list(full.tensors)
    assert {name: t.shape for name, t in back.tensors.items()} == {name: t.shape for name, t in full.tensors.items()}
    FlatMixer(12, 20, 4).load_state_dict(back.state_dict(), strict=True)
    assert [record.changed for record in back.history] == [True, True, True]


def test_units_that_growth_appends_to_stay_in_front() -> None:
    """Growth by zero appends to axes without norms: the leading units are its inverse."""
    full = captured(FlatMixer(12, 20, 4), image(16))
    result = shrunk(full, "mlp=8 units=leading")
    back, plan = grown_back(result.program, full, {"width": "zero"})
    assert plan.lossless
    for name in ("w1_0", "b1_3", "w2_2"):
        index = kept(plan.lifts[-1], name)[1][1 if name.startswith("w2") else 0]
        assert index is not None and index[:8].tolist() == list(range(8))
        assert kept(result.lift, name)[0] == name  # type: ignore[arg-type]
    assert all(torch.equal(back.tensors[f"w1_{i}"][:8], full.tensors[f"w1_{i}"][:8]) for i in range(4))
