"""Stages without values: the same graphs as in training, and the same as in a run that is resumed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import progc
from progc.ir.deferred import is_deferred
from progc.ir.graphs import fingerprint
from progc.ir.program import Program
from progc.schedule import Point, Schedule, Unfreeze
from progc.schedule.outlines import outlines
from tests.schedule.test_running import POINTS, RISING, adamw, captured, digits, schedule, train

DEEPER = [
    Point({"blocks": 1}, unfreeze=Unfreeze("prefix", 2, 2)),
    Point({"blocks": 2}, unfreeze=Unfreeze("prefix", 1, 2)),
    Point({"blocks": 4}),
]
CASES: dict[str, tuple[list[Point], dict[str, Any]]] = {
    "width": (POINTS, {"regularisation": RISING}),
    "depth with identifiers": (DEEPER, {"regularisation": RISING, "sids": [0, 1, 2]}),
}


def plan(case: str) -> Schedule:
    points, options = CASES[case]
    return schedule(captured(), points, **options)


def order(program: Program) -> list[tuple[str, tuple[int, ...], bool]]:
    return [(name, tuple(tensor.shape), tensor.requires_grad) for name, tensor in program.tensors.items()]


@pytest.mark.parametrize("case", CASES)
def test_outlines_are_what_trains_and_what_is_resumed(case: str) -> None:
    """One fingerprint, which holds names and order of nodes and tensors; parameters in one order in the module."""
    found = outlines(captured(), plan(case))
    reached = list(progc.stages(captured(), plan(case)))
    assert [fingerprint(program) for program in found] == [fingerprint(running.program) for running in reached]
    for index, running in enumerate(reached):
        resumed = next(progc.stages(captured(), plan(case), start=index))
        assert fingerprint(resumed.program) == fingerprint(running.program)
        assert order(resumed.program) == order(running.program)
        assert [name for name, _ in resumed.module.named_parameters()] == [
            name for name, _ in running.module.named_parameters()
        ]
        assert resumed.lossless is None and resumed.start == running.start


def test_outlines_make_no_values() -> None:
    for program in outlines(captured(), plan("width")):
        assert all(is_deferred(tensor) and tensor.is_meta for _, tensor in program.parameters())


def test_outlines_begin_with_a_smaller_program() -> None:
    program, source = captured(depth=2), captured(depth=1, width=16)
    made = schedule(program, [Point({"blocks": 1}, {"width": 16}), Point({"blocks": 2}, {"width": 32})])
    reached = list(progc.stages(program, made, source=source))
    found = outlines(program, made, source=source, inits={"depth": "mogrow"})
    assert [fingerprint(program) for program in found] == [fingerprint(running.program) for running in reached]


def test_a_resumed_stage_goes_on_bit_for_bit() -> None:
    """The graph draws the same random numbers, and gradients are summed up in the same order."""
    images, labels = digits()
    made = plan("width")
    running = None
    for running in progc.stages(captured(), made, optimizer=adamw, ema=lambda m: progc.EMA(m, decays=(0.5,))):
        if running.stage.index == 1:
            break
        train(running, images, labels)
    assert running is not None
    weights = {name: tensor.clone() for name, tensor in running.module.state_dict().items()}
    state, averages = running.optimizer.state_dict(), {n: t.clone() for n, t in running.ema.state_dict().items()}
    resumed = next(progc.stages(captured(), made, optimizer=adamw, ema=lambda m: progc.EMA(m, decays=(0.5,)), start=1))
    resumed.module.load_state_dict(weights)
    held = [len(group["params"]) for group in resumed.optimizer.param_groups]
    assert held == [len(group["params"]) for group in running.optimizer.param_groups]
    resumed.optimizer.load_state_dict(copy.deepcopy(state))
    resumed.ema.load_state_dict(averages)
    losses = []
    for stage in (running, resumed):
        torch.manual_seed(3)
        losses.append(train(stage, images, labels))
    assert losses[0] == losses[1]
    for name, tensor in running.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[name]), name


def test_what_was_given_follows_into_a_later_stage() -> None:
    """Optimizer and averages of the full network, at a stage that is not the first."""
    program = captured(depth=2)
    module = program.module()
    optimizer = torch.optim.SGD([{"params": list(module.parameters()), "lr": 0.1}], momentum=0.9)
    ema = progc.EMA(module, decays=(0.9,))
    made = schedule(program, [Point({"blocks": 1}), Point({"blocks": 2})])
    later = next(progc.stages(program, made, optimizer=optimizer, ema=ema, start=1))
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in later.module.parameters()}
    ema.update(later.module)
