"""Rules that end stages: when they do, that the budget is kept, and that a resumed run repeats what was decided."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progc.errors import InputError
from progc.schedule import ModelRef, Point, Schedule, Space, Stage, StageCost
from progc.schedule.controlling import Controller, Ended
from progc.schedule.rules import Gain, Plateau, rule_from_json, rules_of

RULES = [
    Plateau(window=3, threshold=0.05, smoothing=0.5),
    Gain(window=2, fraction=0.3, against="next", higher=False, least=0.25, most=3.0),
]


def drive(controller: Controller, losses: list[float], until: int | None = None) -> list[Ended]:
    """One loss, one validation and one second and a half per step."""
    for step in range(controller.step + 1, (until or controller.total) + 1):
        loss = losses[step - 1]
        controller.observe(step, loss=loss, validation=loss, seconds=1.5 * step + loss)
    return controller.log


def test_rules_as_users_write_them() -> None:
    assert rules_of("plateau") == (Plateau(),) and rules_of(()) == ()
    assert rules_of("gain{window=2 fraction=0.2, against=next higher=false}") == (
        Gain(window=2, fraction=0.2, against="next", higher=False),
    )
    assert rules_of(["plateau{}", {"kind": "gain"}, Gain(window=3)]) == (Plateau(), Gain(), Gain(window=3))
    assert rules_of({"kind": "plateau", "window": 7}) == (Plateau(window=7),)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("plato", "rule `plato`: unknown kind `plato`; did you mean plateau?"),
        ("plateau{window}", "expected options key=value in the braces, such as plateau{window=2}"),
        ("plateau{window=2", "expected a kind and its options: plateau or"),
        ("plateau{window=2 window=3}", "`window` is given twice"),
        ("gain{kind=plateau}", "`kind` is given twice"),
        ("plateau{size=2}", "rule plateau: unknown key `size`; keys are least, most, window"),
        ("plateau{window=2.5}", "window: expected an integer of at least 1, got 2.5"),
        ("gain{higher=no}", "rule gain: higher: expected true or false, got 'no'"),
        ("", "expected a kind and its options"),
        ([3], "expected an object with the kind plateau or gain, got 3"),
    ],
)
def test_wrong_rules_are_refused_in_one_line(said: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        rules_of(said)
    assert message in str(error.value) and "\n" not in str(error.value)


def flat(steps: int) -> list[float]:
    return [1.0] * steps


def falling(steps: int) -> list[float]:
    return [0.8**step for step in range(steps)]


def test_without_rules_every_stage_has_its_share() -> None:
    assert [end.step for end in drive(Controller([10, 20, 30]), flat(60))] == [10, 30, 60]


def test_a_loss_that_stands_still_ends_a_stage_at_half_of_its_share() -> None:
    """What is saved goes to the last stage, which no rule ends."""
    ends = drive(Controller([20, 20, 20], [Plateau(window=4)]), flat(60))
    assert [end.step for end in ends] == [10, 20, 60] and [end.rule for end in ends] == ["plateau", "plateau", None]
    assert ends[0].planned == 20 and ends[1].planned == 10 + 25
    assert ends[0].value == pytest.approx(0) and "of its value in 4 observations, less than 0.01" in ends[0].reason


def test_a_loss_that_falls_keeps_a_stage_going_until_others_need_their_time() -> None:
    ends = drive(Controller([20, 20, 20, 20], [Plateau(window=4)]), falling(80))
    # The first may take twice its share; the second and third have their least then, and the last one its share.
    assert [end.step for end in ends] == [40, 50, 60, 80]
    assert ends[0].reason == "the stage cannot be longer" and ends[0].planned == 20


def test_a_stage_that_nothing_is_known_of_ends_in_time() -> None:
    controller = Controller([10, 10, 10], [Plateau(window=50)])
    assert [end.step for end in drive(controller, falling(30))] == [10, 20, 30]
    silent = Controller([10, 10, 10], [Plateau(window=2), Gain()])
    for step in range(1, 31):
        silent.observe(step, loss=float("nan"))
    assert [end.step for end in silent.log] == [10, 20, 30]


def test_limits_of_a_rule_are_kept() -> None:
    controller = Controller([20, 20], [Plateau(window=1, threshold=2.0, least=0.75, most=1.0)])
    assert drive(controller, flat(40))[0].step == 15
    assert drive(Controller([20, 20], [Plateau(window=1, most=1.0)]), falling(40))[0].step == 20


def test_gain_per_second() -> None:
    """Accuracy rises by 1, then by less and less per second; steps take one second."""
    controller = Controller([20, 20], [Gain(fraction=0.3)])
    value = 0.0
    for step in range(1, 41):
        value += 0.8 ** (step - 1)
        controller.observe(step, validation=value, seconds=float(step))
        if controller.ended():
            break
    (end,) = controller.log
    # The best gain seen is that of the second step (0.8); 0.8 ** 6 is above and 0.8 ** 7 below 0.3 of it, and the
    # stage may end from step 10 on.
    assert end.step == 10 and end.rule == "gain" and end.value == pytest.approx(0.8**9)


def test_gain_against_what_the_next_stage_is_predicted_to_give() -> None:
    """A step of the next stage takes twice as long: the bar is half as high."""
    for ratio, expected in ((1.0, 11), (2.0, 16)):
        controller = Controller([20, 20], [Gain(fraction=0.3, against="next", least=0.4)], costs=[1.0, ratio])
        value = 0.0
        for step in range(1, 41):
            value += 0.87 ** (step - 1)
            controller.observe(step, validation=value, seconds=float(step))
            if controller.log:
                break
        assert controller.log[0].step == expected, ratio


def test_lower_can_be_better() -> None:
    controller = Controller([10, 10, 10], [Gain(higher=False, fraction=0.5)])
    for step in range(1, 11):
        controller.observe(step, validation=-float(step), seconds=float(step))
    assert controller.log == []  # still gaining: the stage continues beyond its share where it can
    worse = Controller([10, 10], [Gain(fraction=0.5)])
    for step in range(1, 6):
        worse.observe(step, validation=-float(step), seconds=float(step))
    assert [end.step for end in worse.log] == [5]


def test_ended_speaks_of_the_last_observation_alone() -> None:
    controller = Controller([2, 2])
    controller.observe(1)
    assert controller.ended() is None
    controller.observe(2)
    end = controller.ended()
    assert end is not None and end.stage == 0 and controller.ended() == end and controller.stage == 1
    controller.observe(3)
    assert controller.ended() is None
    with pytest.raises(InputError, match="step 1 is observed after step 3"):
        controller.observe(1)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Controller, list[float]]:
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    rules: list[Any] = draw(st.lists(st.sampled_from(RULES), max_size=2, unique=True))
    costs = draw(st.lists(st.floats(0.1, 4.0), min_size=len(lengths), max_size=len(lengths)))
    count = sum(lengths)
    losses = draw(st.lists(st.floats(0.1, 3.0) | st.just(math.nan), min_size=count, max_size=count))
    return Controller(lengths, rules, costs=costs), losses


@given(runs())
def test_the_budget_is_kept(run: tuple[Controller, list[float]]) -> None:
    controller, losses = run
    ends = drive(controller, losses)
    lengths, steps = controller.lengths, [0, *(end.step for end in ends)]
    assert [end.stage for end in ends] == list(range(len(lengths))) and steps[-1] == sum(lengths)
    taken = [b - a for a, b in zip(steps, steps[1:], strict=False)]
    assert taken[-1] >= lengths[-1] and min(taken) >= 1
    least = max((rule.least for rule in controller.rules), default=1.0)
    most = min((rule.most for rule in controller.rules), default=1.0)
    for length, own in zip(lengths[:-1], taken[:-1], strict=True):
        assert math.ceil(least * length) <= own <= max(math.floor(most * length), 1)


@given(runs(), st.data())
def test_a_run_that_is_interrupted_anywhere_ends_its_stages_alike(
    run: tuple[Controller, list[float]], data: st.DataObject
) -> None:
    controller, losses = run
    fresh = json.loads(json.dumps(controller.state()))
    whole = list(drive(controller, losses))
    stop = data.draw(st.integers(0, controller.total))
    first = Controller.from_state(fresh)
    drive(first, losses, stop) if stop else None
    state = json.loads(json.dumps(first.state()))
    assert drive(Controller.from_state(state), losses) == whole
    # From an old checkpoint with the log of the whole run, ends are repeated whatever is observed now.
    other = [3.1 - loss for loss in losses]
    assert drive(Controller.from_state(state, recorded=whole), other) == whole


@pytest.mark.parametrize("rule", [*RULES, Plateau(), Gain()])
def test_rules_are_data(rule: Any) -> None:
    assert rule_from_json(json.loads(json.dumps(rule.to_json()))) == rule


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "patience"}, "with the kind plateau or gain"),
        ([], "with the kind plateau or gain"),
        ({"kind": "gain", "windw": 2}, "unknown key `windw`"),
        ({"kind": "plateau", "window": 0}, "window: expected an integer of at least 1, got 0"),
        ({"kind": "plateau", "smoothing": 1}, "smoothing of at least 0 and below 1"),
        ({"kind": "gain", "against": "last"}, "best or next for against"),
        ({"kind": "gain", "least": 1.5}, "least above 0 and at most 1"),
        ({"kind": "plateau", "most": "2"}, "most at least 1"),
    ],
)
def test_bad_rules_are_refused_in_a_line(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        rule_from_json(data)
    assert "\n" not in str(caught.value)


def test_a_schedule_carries_its_rules() -> None:
    stages = tuple(Stage(k, Point(), 0.5) for k in range(2))
    plan = Schedule(ModelRef("Net", "0", 1), "linear", stages, Space(), total=10, unit="steps", rules=tuple(RULES))
    again = Schedule.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    controller = Controller.of(again)
    assert controller.lengths == (5, 5) and controller.rules == tuple(RULES) and controller.costs == (1.0, 1.0)
    assert Schedule.from_json({k: v for k, v in plan.to_json().items() if k != "rules"}).rules == ()


@pytest.mark.parametrize(("seconds", "ratio"), [((1.0, 3.0), 3.0), ((1.0, None), 2.0)])
def test_steps_of_the_next_stage_cost_what_was_counted_or_measured(
    seconds: tuple[float | None, ...], ratio: float
) -> None:
    """Seconds where all stages have them, else operations; per sample."""
    costs = [
        StageCost(batch, 1, 1, batch * flops, batch * flops, 0, 0, 0, 0, time and time * batch)
        for batch, flops, time in zip((4, 8), (10, 20), seconds, strict=True)
    ]
    stages = tuple(Stage(k, Point(), 0.5, cost=cost) for k, cost in enumerate(costs))
    controller = Controller.of(Schedule(ModelRef("Net", "0", 1), "linear", stages, Space(), total=8))
    assert controller.costs[1] / controller.costs[0] == ratio


def test_bad_controllers() -> None:
    with pytest.raises(InputError, match="expected at least 1 step for every stage"):
        Controller([3, 0])
    with pytest.raises(InputError, match="not the state of a controller"):
        Controller.from_state({"format": "other"})
    with pytest.raises(InputError, match="of version 1 or lower, got .*, version 2"):
        Controller.from_state({**Controller([1]).state(), "version": 2})
