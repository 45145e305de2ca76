"""The program of a stage: the same without values, in training and in a resumed run, however it was reached."""

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
from progc.schedule.stage_programs import StagePrograms
from progc.transforms.dropping import find_drops
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


def outlines(program: Program, made: Schedule) -> list[Program]:
    programs = StagePrograms(program, made.stages)
    return [programs.outline(stage.index) for stage in made.stages]


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
    found = outlines(program, made)
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


@pytest.mark.parametrize("case", CASES)
def test_a_stage_does_not_depend_on_the_stages_before_it(case: str) -> None:
    """Names and order of nodes and tensors, identifier and rates, in a schedule without the stage in the middle."""
    points, options = CASES[case]
    rest = {key: [values[0], values[2]] for key, values in options.items()}
    through, past = plan(case), schedule(captured(), [points[0], points[2]], **rest)
    *_, long = progc.stages(captured(), through)
    *_, short = progc.stages(captured(), past)
    assert fingerprint(long.program) == fingerprint(short.program)


def test_the_last_stage_drops_branches_as_the_full_network_does() -> None:
    """The first block has no drop-path, as the first of a linear ramp; what grows from it has that of its place."""
    program = captured(depth=2)
    made = schedule(program, [Point({"blocks": 1}), Point({"blocks": 2})])
    *_, last = progc.stages(program, made)
    rates = [[d.rate for d in find_drops(one.graphs["train"])] for one in (program, last.program)]
    assert rates[0] == rates[1] and len({rate for rate in rates[0] if rate}) == 2


def test_constants_of_a_stage_have_the_values_of_what_was_grown() -> None:
    """Their names are numbers given in the order of growth; the stage's own names stand for them."""
    program = captured()
    first, last = progc.stages(program, schedule(program, [POINTS[0], POINTS[2]]))
    for running in (first, last):
        assert all(not is_deferred(tensor) for tensor in running.program.tensors.values())
        assert list(running.program.specs) == list(running.program.tensors)
