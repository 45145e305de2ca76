"""`progc.plan`: whole schedules, and that every stage builds and grows into the next without changing the function."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import progc
from progc.data.task import Task
from progc.errors import InputError
from progc.ir.program import Program
from progc.pipeline.manager import run
from progc.schedule import Regularisation, Schedule, Space
from progc.schedule.building import network, stage_program
from tests import nets, zoo
from tests.schedule.spaces import SHAPES


def _program(name: str) -> Program:
    return zoo.captured(name)[1]


def _shapes(program: Program) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in program.tensors.items()}


# -- end to end ----------------------------------------------------------------------------------------------------


def _double(name: str) -> Program:
    """Captured in float64, where lossless growth shows to the last digits."""
    model, args, kwargs = zoo.build(name)
    args, kwargs = torch.utils._pytree.tree_map(
        lambda x: x.double() if torch.is_tensor(x) and x.is_floating_point() else x, (args, kwargs)
    )
    return progc.capture(model.double(), args, kwargs)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("own:image", {"depths": "1,2,3,4", "widths": "8,16", "resolutions": "16,24,32"}),
        pytest.param("torchvision:vit", {"resolutions": "16,32", "widths": "0.5,1"}, marks=pytest.mark.slow),
        ("timm:resnet18@64", {"resolutions": "32,64", "widths": "0.5,1"}),
        pytest.param("timm:swin@56", {"stages": 2}, marks=pytest.mark.slow),
        pytest.param("diffusers:dit", {"widths": "0.5,1"}, marks=pytest.mark.slow),
        pytest.param("diffusers:unet", {"resolutions": "8,16", "stages": 2}, marks=pytest.mark.slow),
    ],
)
def test_every_stage_builds_and_grows_into_the_next_one(name: str, options: dict[str, Any]) -> None:
    full = _double(name)
    schedule = progc.plan(full, **{"stages": 3, "count": False, "regularise": False, **options})
    points = [stage.point for stage in schedule.stages]
    assert points[-1] == schedule.space.point(schedule.space.last)
    assert len({str(point) for point in points}) > 1
    built = [stage_program(full, point, storage="copy") for point in points]
    assert _shapes(built[-1]) == _shapes(full)
    for small, large, before, after in zip(built, built[1:], points, points[1:], strict=False):
        grown = small
        for item in after.growing(before):
            step, (result,) = run(grown, [item])
            if item.name != "grow-resolution":
                assert result.lossless, item
                _check_same_function(grown, step)
            grown = step
        assert _shapes(grown) == _shapes(network(full, after)[0]) == _shapes(large)


def _check_same_function(before: Program, after: Program) -> None:
    args, kwargs = before.example
    with torch.no_grad():
        outputs = [torch.utils._pytree.tree_leaves(p.module().eval()(*args, **kwargs)) for p in (before, after)]
    for old, new in zip(*outputs, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-9, atol=1e-9)


def test_unfreezing_goes_level_by_level() -> None:
    full = _program("own:image")
    schedule = progc.plan(full, unfreeze="prefix:4", resolutions="none", count=False, regularise=False)
    assert [str(stage.point) for stage in schedule.stages] == [f"prefix:{level}/4" for level in (1, 2, 3, 4)]
    trains = []
    for stage in schedule.stages:
        program = stage_program(full, stage.point)
        trains.append({name for name, tensor in program.parameters() if tensor.requires_grad})
    assert all(small < large for small, large in itertools.pairwise(trains))
    assert trains[-1] == {name for name, _ in full.parameters()}


# -- what a schedule holds -----------------------------------------------------------------------------------------


def test_a_plan_is_complete(tmp_path: Path) -> None:
    schedule = progc.plan(
        _program("own:image"), total=100, seed=3, batch=4, source="nets.py:ImageTransformer", target="depth*2"
    )
    assert schedule.starts() == [0, 25, 50, 75]
    assert [str(stage.point) for stage in schedule.stages] == [
        "blocks:2 16", "blocks:3 24", "blocks:3 24", "blocks:4 32"
    ]  # fmt: skip
    assert schedule.speedup is not None
    assert schedule.speedup > 1
    costs = [stage.cost for stage in schedule.stages]
    assert all(cost is not None and cost.batch == 4 for cost in costs)
    assert costs[0] is not None
    assert costs[-1] is not None
    assert costs[0].parameters < costs[-1].parameters == _program("own:image").num_parameters()
    assert (schedule.model.source, schedule.model.target) == ("nets.py:ImageTransformer", "depth*2")
    schedule.check(_program("own:image"))
    schedule.write(tmp_path / "plan.json")
    assert Schedule.read(tmp_path / "plan.json") == schedule


def test_regularisation_ends_with_what_is_given() -> None:
    options: dict[str, Any] = {"depths": "1,2,3,4", "resolutions": "none", "count": False}
    program, final = _program("own:image"), Regularisation(drop_path=0.1, rand_augment=9, random_erasing=0.25)
    schedule = progc.plan(program, regularise=final, mode="reference", **options)
    assert [stage.regularisation.rand_augment for stage in schedule.stages] == [4, 6, 7, 9]
    assert schedule.stages[-1].regularisation == final
    assert progc.plan(program, mode="reference", **options).stages == schedule.stages  # the published values
    schedule = progc.plan(program, regularise=final, **options)
    rates = [stage.regularisation.drop_path for stage in schedule.stages]
    assert rates == sorted(rates)
    assert rates[0] is not None
    assert 0 < rates[0] < 0.1
    plain = progc.plan(program, regularise=False, **options)
    assert {stage.regularisation for stage in plain.stages} == {Regularisation()}


def test_one_stage_needs_no_space() -> None:
    schedule = progc.plan(_program("own:conv"), stages=1, count=False, regularise=False)
    assert len(schedule.stages) == 1
    assert schedule.stages[0].share == 1
    assert _shapes(stage_program(_program("own:conv"), schedule.stages[0].point)) == _shapes(_program("own:conv"))


def test_stage_identifiers_are_numbered() -> None:
    options: dict[str, Any] = {"resolutions": "none", "count": False, "regularise": False}
    schedule = progc.plan(_program("own:image"), **options)
    assert [stage.sid for stage in schedule.stages] == [None] * 4
    schedule = progc.plan(_program("own:image"), settings={"sid": True}, **options)
    assert [stage.sid for stage in schedule.stages] == [0, 1, 2, 3]
    program = progc.apply(_program("own:conditional"), "inject-sid{stages=2}")
    schedule = progc.plan(program, stages=2, **options)
    assert [stage.sid for stage in schedule.stages] == [0, 1]
    with pytest.raises(InputError, match="rows for 2 stages, not for 3; plan at most 2 stages, or inject"):
        progc.plan(program, stages=3, **options)


def test_what_was_asked_is_kept() -> None:
    schedule = progc.plan(
        _program("own:image"), depths=[1, 4], resolutions="16,32", stages=2, count=False, regularise=False
    )
    assert schedule.settings == {"depths": "1,4", "resolutions": "16,32"}
    again = progc.plan(_program("own:image"), stages=2, count=False, regularise=False, **schedule.settings)
    assert again == schedule
    assert json.loads(json.dumps(schedule.to_json())) == again.to_json()


def test_a_space_of_ones_own() -> None:
    space = Space(depths=({"blocks": 1}, {"blocks": 4}))
    schedule = progc.plan(_program("own:image"), space=space, stages=2, count=False, regularise=False)
    assert [str(stage.point) for stage in schedule.stages] == ["blocks:1", "blocks:4"]


def test_shares_give_lengths_and_number_of_stages() -> None:
    program, plain = _program("own:image"), {"count": False, "regularise": False}
    schedule = progc.plan(program, shares=[50, 20, 30], total=100, **plain)
    assert [stage.share for stage in schedule.stages] == [0.5, 0.2, 0.3] and schedule.starts() == [0, 50, 70]
    assert Schedule.from_json(schedule.to_json()) == schedule
    ruled = progc.plan(program, rules=["plateau", {"kind": "gain", "window": 2}], **plain)
    assert [rule.kind for rule in ruled.rules] == ["plateau", "gain"]
    late = progc.plan(program, shares="late", stages=3, decide="training", strategy="zero-shot", **plain)
    assert [stage.share for stage in late.stages] == [0.5, 0.25, 0.25] and late.open == (0, 1)
    assert late.settings["shares"] == "late" and schedule.settings["shares"] == "0.5,0.2,0.3"


def test_the_number_of_stages_follows_from_the_levels() -> None:
    program, plain = _program("own:image"), {"count": False, "regularise": False}
    schedule = progc.plan(program, stages="auto", depths="1,2,4", resolutions="none", **plain)
    assert [stage.point.depths["blocks"] for stage in schedule.stages] == [1, 2, 4]
    space = Space(unfreeze=SHAPES)  # several shapes: the linear schedule goes through the first
    assert len(progc.plan(program, space=space, stages="auto", **plain).stages) == 4
    with pytest.raises(InputError, match="2 shares are given, and stages auto makes 3 stages, one per level"):
        progc.plan(program, stages="auto", shares=[1, 1], depths="1,2,4", resolutions="none", **plain)


def test_the_function_and_growth_plans_have_names_of_their_own() -> None:
    import progc.growth.plan
    import progc.search.plan

    assert progc.plan is progc.search.plan.plan
    assert callable(progc.plan)
    assert progc.growth.plan.GrowthPlan


# -- refused -------------------------------------------------------------------------------------------------------

_TASK = Task([(torch.zeros(3, 32, 32), 0)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "greedy"}, "unknown strategy `greedy`; expected linear, one-shot or zero-shot"),
        ({"mode": "best"}, "unknown mode `best`; expected default or reference"),
        ({"stages": 0}, "stages: expected an integer of at least 1, got 0"),
        ({"stages": 2.0}, "stages: expected an integer of at least 1, got 2.0"),
        ({"unit": "hours"}, "unknown unit `hours`; expected epochs or steps"),
        ({"total": 0}, "epochs: expected an integer of at least 1, got 0"),
        ({"total": 3}, "3 epochs are too few for 4 stages; give at least one for each stage"),
        ({"batch": 0}, "batch: expected an integer of at least 1, got 0"),
        ({"strategy": "zero-shot"}, "the zero-shot search needs samples and a loss; give a task"),
        ({"strategy": "one-shot"}, "the one-shot search needs samples and a loss"),
        ({"measure": True}, "measure needs samples to time steps on; give a task"),
        (
            {"strategy": "one-shot", "task": _TASK, "unfreeze": "prefix:2"},
            "one-shot search trains a whole supernet",
        ),
        ({"settings": {"batches": 3}}, "the linear strategy has no setting `batches`"),
        ({"depths": "none", "resolutions": "none"}, "the growth space is empty"),
        ({"space": Space()}, "the space has a single point"),
        ({"space": Space(unfreeze=SHAPES), "depths": "1,4"}, "give either the space or these"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        progc.plan(_program("own:image"), **{"count": False, "regularise": False, **options})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_start_begins_the_schedule() -> None:
    start = progc.capture(nets.ImageTransformer(depth=2), (zoo.image(32),))
    full = progc.grow(start, to="depth*2")
    schedule = progc.plan(full, start=start, resolutions="none", stages=3, count=False, regularise=False)
    assert [stage.point.depths for stage in schedule.stages] == [{"blocks": 2}, {"blocks": 3}, {"blocks": 4}]
    assert _shapes(stage_program(full, schedule.stages[0].point)) == _shapes(start)
