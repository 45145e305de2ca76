"""Weights that are trained already, and parts that never train: what a default plan leaves whole, and what is told."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import progc
from progc.errors import InputError
from progc.runs.config import checked
from progc.runs.opening import opened
from progc.schedule.building import network
from progc.schedule.cutting import cut_notes
from progc.schedule.point import Point
from progc.transforms.width.frozen import held_axes


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Tower(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Linear(5, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Distilled(nn.Module):
    """A student, and its teacher, which does not train; both are outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = Tower(8, 4), Tower(16, 4)
        self.teacher.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.student(x), self.teacher(x)


class Adapted(nn.Module):
    """Frozen features, through blocks of their own, feed a part that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Tower(16, 4).requires_grad_(False)
        self.adapter = nn.Linear(3, 8)
        self.blocks = nn.Sequential(*(ResidualBlock(8) for _ in range(4)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.adapter(self.features(x))))


JOBS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "distillation": (Distilled, "teacher.", "student.blocks"),
    "frozen features": (Adapted, "features.", "blocks"),
}


@functools.cache
def program(name: str) -> progc.Program:
    torch.manual_seed(0)
    return progc.capture(JOBS[name][0](), (torch.rand(4, 5),))


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("more", [{}, {"depths": "0.5:1:2", "widths": "4,8"}], ids=["default", "depth and width"])
def test_a_part_that_does_not_train_stays_as_it_is(name: str, more: dict[str, Any]) -> None:
    """In every stage, to the bit, while the rest grows from a smaller network."""
    _, frozen, chain = JOBS[name]
    full = program(name)
    before = {key: value.detach().clone() for key, value in full.tensors.items() if key.startswith(frozen)}
    schedule = progc.plan(full, stages=2, total=2, unit="steps", **more)
    assert [stage.point.depths for stage in schedule.stages] == [{chain: 2}, {chain: 4}]
    seen = 0
    for stage in progc.stages(full, schedule, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1)):
        outputs = stage.module(torch.rand(4, 5))
        sum(o.sum() for o in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
        stage.optimizer.step()
        state = stage.module.state_dict()
        assert [key for key, value in before.items() if not torch.equal(state[key], value)] == []
        assert {key for key in state if key.startswith(frozen)} == before.keys()
        seen += 1
    assert seen == 2


def test_a_chain_that_is_frozen_cannot_be_asked_for() -> None:
    with pytest.raises(InputError, match=r"depths: teacher\.blocks is frozen \(requires_grad=False\).*leave it out"):
        progc.plan(program("distillation"), stages=2, depths="teacher.blocks:2,teacher.blocks:4")


def test_frozen_blocks_of_a_chain_that_trains_are_not_cut_by_default() -> None:
    """They are cut where the plan says so, and that is told."""
    net = Tower(8, 4)
    net.blocks[:2].requires_grad_(False)
    full = progc.capture(net, (torch.rand(4, 5),))
    with pytest.raises(InputError, match=r"blocks does not vary: it has blocks that are frozen"):
        progc.plan(full, stages=2)
    schedule = progc.plan(full, stages=2, depths="2,4")
    (note,) = cut_notes(full, [stage.point for stage in schedule.stages], trained=False)
    assert "warning: stage 1 of the plan cuts depth or width: up to 296 of 592 frozen parameters (50%)" in note
    assert cut_notes(progc.capture(Tower(8, 4), (torch.rand(4, 5),)), [Point({"blocks": 2})], trained=False) == ()


def test_sizes_of_the_whole_network_leave_frozen_axes_alone() -> None:
    full = program("distillation")
    small, _ = network(full, Point({}, {"width": 4}))
    shapes = {name: (tuple(full.tensors[name].shape), tuple(small.tensors[name].shape)) for name in full.tensors}
    assert all(
        (a == b) is name.startswith("teacher.") for name, (a, b) in shapes.items() if name != "student.head.bias"
    )
    grown = progc.apply(small, "grow-width{width=8}")
    assert {name: tensor.shape for name, tensor in grown.tensors.items()} == {
        n: t.shape for n, t in full.tensors.items()
    }
    named = progc.apply(full, "shrink{axes=teacher.stem:8}")  # where it is named, it is asked for
    assert named.tensors["teacher.stem.weight"].shape == (8, 5)


def test_a_linear_probe_and_a_network_that_is_frozen_whole_hold_nothing() -> None:
    """Neither says which part of the network is to stay: they grow as they did."""
    for trains in ((), ("head",)):
        net = Tower(8, 2).requires_grad_(False)
        for name in trains:
            net.get_submodule(name).requires_grad_(True)
        full = progc.capture(net, (torch.rand(4, 5),))
        assert held_axes(full) == frozenset()
        assert progc.apply(full, "grow-width{width=16}").tensors["stem.weight"].shape == (16, 5)


# --- trained weights ------------------------------------------------------------------------------------------------


class Pictures(nn.Module):
    """Blocks over the patches of an image of 8 x 8, with a position for each patch or without."""

    def __init__(self, positions: bool = True) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, 2)
        self.positions = nn.Parameter(torch.randn(1, 8, 4, 4)) if positions else None
        self.blocks = nn.Sequential(*(ResidualBlock(8) for _ in range(4)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        if self.positions is not None:
            x = x + self.positions
        return self.head(self.blocks(x.flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("positions", [True, False])
def test_with_trained_weights_the_default_plan_keeps_all_of_them(positions: bool) -> None:
    full = progc.capture(Pictures(positions), (torch.rand(4, 1, 8, 8),))
    fresh = progc.plan(full, stages=2)
    assert fresh.stages[0].point.depths == {"blocks": 2} and fresh.stages[0].point.unfreeze is None
    schedule = progc.plan(full, stages=2, trained=True)
    assert [str(stage.point.unfreeze) for stage in schedule.stages] == ["prefix:1/4", "prefix:4/4"]
    for stage in schedule.stages:
        small = network(full, stage.point)[0]
        assert {n: t.shape for n, t in small.parameters()} == {n: t.shape for n, t in full.parameters()}
    assert (schedule.stages[0].point.resolution is None) is positions
    assert any("positions would be resampled; give resolutions" in note for note in schedule.notes) is positions
    assert any("blocks that are cut would lose theirs; give depths" in note for note in schedule.notes)
    published = progc.plan(full, stages=2, trained=True, mode="reference")
    assert str(published.stages[0].point.unfreeze) == "interleave:1/4"


NET = """
import torch
from torch import nn
from tests.schedule.test_keeping_weights import Pictures, Tower

def example_inputs():
    return (torch.zeros(4, {shape}),)

def build():
    return {build}

def datasets():
    return torch.rand(32, {shape}), torch.arange(32) % 3
"""


@pytest.mark.parametrize("job", ["rows", "pictures"])
def test_a_run_with_weights_begins_with_all_of_them(tmp_path: Path, job: str) -> None:
    """The default plan; and a plan that cuts says how much of the weights it drops."""
    shape, build = ("5", "Tower(8, 4)") if job == "rows" else ("1, 8, 8", "Pictures()")
    (tmp_path / "net.py").write_text(NET.format(shape=shape, build=build))
    torch.manual_seed(3)
    weights = (Tower(8, 4) if job == "rows" else Pictures()).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    config = {"source": f"{tmp_path}/net.py", "weights": f"{tmp_path}/w.safetensors", "steps": 4, "out": "run"}
    made = opened(checked({**config, "plan": {"stages": 2}, "train": {"batch": 8}}))
    first = next(progc.stages(made.program, made.schedule))
    state = first.module.state_dict()
    assert [name for name, value in weights.items() if not torch.equal(state[name], value)] == []
    assert not any("warning" in note for note in made.notes)
    assert any("depth does not vary: the weights are trained" in note for note in made.notes)

    cut = opened(checked({**config, "plan": {"stages": 2, "depths": "2,4"}, "train": {"batch": 8}}))
    (warning,) = [note for note in cut.notes if "warning: stage 1 of the plan cuts depth or width" in note]
    assert "trained parameters" in warning and cut.schedule.stages[0].point.depths == {"blocks": 2}
    told = opened(checked({**config, "plan": {"stages": 2, "trained": False}, "train": {"batch": 8}}))
    assert told.schedule.stages[0].point.depths == {"blocks": 2}


def test_images_that_resample_weights_are_told() -> None:
    full = progc.capture(Pictures(), (torch.rand(4, 1, 8, 8),))
    schedule = progc.plan(full, stages=2, trained=True, resolutions="4,8")
    (note,) = cut_notes(full, [stage.point for stage in schedule.stages], trained=True)
    assert "smaller images resample trained parameters" in note and "positions" in note
