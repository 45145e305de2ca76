"""Strategies of other packages, through an entry point."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
import types
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from torch import nn, ones

import progc
import progc.search.strategies
from progc.errors import InputError
from progc.pipeline.registry import NamedClasses
from progc.schedule import Index, Schedule, Space
from progc.search.options import PlanOptions
from progc.search.strategies import StageOptions, Strategy, load_strategy

SPACE = Space(depths=({"1": 2}, {"1": 3}, {"1": 4}))


@dataclasses.dataclass(frozen=True)
class Jump(Strategy):
    """Stays with the network of a level, and jumps to the full one."""

    name: ClassVar[str] = "jump"
    level: int = 0

    def stages(self, program: Any, space: Space, options: StageOptions, task: Any) -> Any:
        return [Index(depth=self.level)] * (len(options.stage_shares) - 1) + [space.last], []


class Asking(Jump):
    """Needs samples."""

    name: ClassVar[str] = "asking"
    needs_task: ClassVar[bool] = True


class Answers(Strategy):
    """Returns what a test sets."""

    name: ClassVar[str] = "answers"
    answer: ClassVar[Any] = None

    def stages(self, program: Any, space: Space, options: StageOptions, task: Any) -> Any:
        return self.answer()


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Entry points as importlib.metadata finds them for an installed package."""
    module = types.ModuleType("other_package")
    module.__dict__.update(Jump=Jump, Asking=Asking, Answers=Answers, Misnamed=Jump, number=3)
    monkeypatch.setitem(sys.modules, "other_package", module)
    names = {"jump": "Jump", "asking": "Asking", "answers": "Answers", "other": "Misnamed", "number": "number"}
    real = importlib.metadata.entry_points

    def found(**params: Any) -> Any:
        if params.get("group") != "progc.strategies":
            return real(**params)
        return [importlib.metadata.EntryPoint(k, f"other_package:{v}", "progc.strategies") for k, v in names.items()]

    monkeypatch.setattr(importlib.metadata, "entry_points", found)
    own = progc.search.strategies._CLASSES
    fresh = NamedClasses(own.kind, own.kinds, own.own, own.group)
    monkeypatch.setattr(progc.search.strategies, "_CLASSES", fresh)
    yield


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return x + self.layer(self.norm(x)).relu()


@pytest.fixture(scope="module")
def program() -> Any:
    return progc.capture(nn.Sequential(nn.Linear(3, 4), nn.Sequential(*(_Block() for _ in range(4)))), (ones(2, 3),))


def plan(program: Any, strategy: str, **options: Any) -> Schedule:
    return progc.plan(program, strategy=strategy, space=SPACE, count=False, **{"stages": 3, **options})


def test_a_strategy_chooses_the_stages(program: Any) -> None:
    schedule = plan(program, "jump", settings={"level": 1}, shares=[5, 3, 2], decide="training")
    assert [stage.point.depths["1"] for stage in schedule.stages] == [3, 3, 4] and not schedule.open
    assert [stage.share for stage in schedule.stages] == [0.5, 0.3, 0.2]
    assert (schedule.strategy, schedule.settings["level"]) == ("jump", 1)
    assert Schedule.from_json(schedule.to_json()) == schedule
    assert plan(program, "jump", stages="auto").stages[0].point.depths["1"] == 2
    assert not PlanOptions("jump").needs_task and PlanOptions("asking").needs_task


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "jmup"}, "plan: unknown strategy `jmup`; did you mean jump?"),
        ({"strategy": "jump", "settings": {"height": 2}}, "strategy `jump` does not take height=2: "),
        ({"strategy": "other"}, "strategy `other` is other_package:Misnamed, whose own name is `jump`"),
        ({"strategy": "number"}, "strategy `number`: expected a subclass of progc.Strategy, got other_package:number"),
        ({"strategy": "asking"}, "the asking search needs samples and a loss; give a task"),
    ],
)
def test_wrong_strategies_are_refused(program: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        plan(program, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


LAST = SPACE.last


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: 1 / 0, "strategy `answers` failed with ZeroDivisionError: division by zero"),
        (lambda: None, "expected positions and decisions, got NoneType; see progc.Strategy.stages"),
        (lambda: ([LAST], []), "expected one position for each of the 3 stages, got 1"),
        (lambda: ([LAST, Index(), LAST], []), "stage 1 is smaller than the one before"),
        (lambda: ([Index()] * 3, []), "expected the full network (0, 2, 0, 0) as the last stage, got (0, 0, 0, 0)"),
        (lambda: ([Index(0, 3), LAST, LAST], []), "stage 0: expected levels from 0 and below (1, 3, 1, 1)"),
        (lambda: ([Index(0, 0.5), LAST, LAST], []), "stage 0: expected levels from 0"),  # type: ignore[arg-type]
        (lambda: ([LAST] * 3, ["best"]), "expected decisions of its stages, got 'best'"),
    ],
)
def test_wrong_answers_are_refused(program: Any, monkeypatch: pytest.MonkeyPatch, answer: Any, message: str) -> None:
    monkeypatch.setattr(Answers, "answer", staticmethod(answer))
    with pytest.raises(InputError) as error:
        plan(program, "answers")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_classes_are_found_by_name() -> None:
    assert load_strategy("jump") is Jump and progc.Strategy is Strategy
