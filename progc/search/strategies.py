"""Strategies of other packages: classes that choose the stages of a plan, by name.

A package adds one with the entry point group `progc.strategies` (`name = "module:Class"`); `--strategy name` then uses
it, in `progc plan`, `progc train` and `progc.plan`. docs/schedules.md has an example.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from progc.errors import InputError, ProgcError, did_you_mean, one_line
from progc.pipeline.registry import NamedClasses
from progc.schedule.schedule import STRATEGIES, Decision
from progc.schedule.space import Index, Space

if TYPE_CHECKING:
    from progc.data.task import Task
    from progc.ir.program import Program

ENTRY_POINTS = "progc.strategies"
_OWN = {name: f"progc.search.plan:{name}" for name in STRATEGIES}
_CLASSES = NamedClasses("strategy", "strategies", _OWN, ENTRY_POINTS)


class StageOptions(Protocol):
    """The options of a plan that a strategy reads; `progc.search.options.PlanOptions` has them.

    Attributes:
        strategy: name of the strategy.
        search_settings: its settings.
        num_stages: number of stages.
        stage_shares: the part of the run that each stage takes.
        mode: `default` or `reference`.
        batch: samples per step; None if it is not given.
        seed: seed of everything that is drawn at random.
    """

    @property
    def strategy(self) -> str: ...
    @property
    def search_settings(self) -> dict[str, Any]: ...
    @property
    def num_stages(self) -> int | None: ...
    @property
    def stage_shares(self) -> tuple[float, ...]: ...
    @property
    def mode(self) -> str: ...
    @property
    def batch(self) -> int | None: ...
    @property
    def seed(self) -> int: ...


class Strategy(abc.ABC):
    """Chooses the network of each stage before training. Derive from it, and register the class as an entry point.

    The class is made with the settings of the plan as keywords (`--set key=value`, `plan.settings`), so a dataclass
    gets a field with a default for each.

    Attributes:
        name: the name of the entry point.
        needs_task: whether `stages` needs samples and a loss, and the weights of the program.
    """

    name: ClassVar[str] = ""
    needs_task: ClassVar[bool] = False

    @abc.abstractmethod
    def stages(
        self, program: Program, space: Space, options: StageOptions, task: Task | None
    ) -> tuple[Sequence[Index], Sequence[Decision]]:
        """Chooses the positions of all stages in the space.

        Args:
            program: the full network. Leave it as it is. Without `needs_task` its weights may be deferred.
            space: the levels of each dimension, ascending. `space.point(index)` is the network at a position, and
                `progc.schedule.building.stage_program(program, point)` its program.
            options: options of the plan.
            task: samples and loss; None if there are none.

        Returns:
            One position per stage, and what was decided at stages (may be empty). No dimension but the trainable set
            shrinks from stage to stage, and the last position is `space.last`, the full network. Rank 0 of a run
            decides for all.
        """


def check_strategy(name: Any) -> None:
    """Checks that there is a strategy of this name.

    Raises:
        InputError: there is none, or two packages have one of the same name.
    """
    if name in STRATEGIES:
        return
    if not isinstance(name, str) or name not in _CLASSES.table:
        known = list(_CLASSES.table)
        hint = did_you_mean(str(name), known) or f"; expected {', '.join(known[:-1])} or {known[-1]}"
        raise InputError(f"unknown strategy `{name}`{hint}")


def load_strategy(name: str) -> type[Strategy]:
    """Returns the class of a strategy of another package; imports its module.

    Raises:
        InputError: there is no such strategy, it cannot be imported, or it is not a subclass of `progc.Strategy`.
    """
    check_strategy(name)
    found = _CLASSES.load(name)
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise InputError(
            f"strategy `{name}`: expected a subclass of progc.Strategy, got {_CLASSES.table[name]}; derive it from "
            "progc.Strategy"
        )
    _CLASSES.check_name(name, found.name)
    return found


def made_strategy(name: str, settings: Mapping[str, Any]) -> Strategy:
    """Returns the strategy with its settings.

    Raises:
        InputError: as for `load_strategy`, or it does not take the settings.
    """
    kind = load_strategy(name)
    try:
        return kind(**settings)
    except ProgcError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items()) or "no settings"
        raise InputError(f"strategy `{name}` does not take {given}: {one_line(error)}") from error


def strategy_places(
    program: Program, space: Space, options: StageOptions, task: Task | None
) -> tuple[list[Index], list[Decision]]:
    """Returns the positions and decisions of a strategy of another package, checked.

    Raises:
        InputError: the strategy fails, or returns something else than `Strategy.stages` says.
    """
    name = options.strategy
    strategy = made_strategy(name, options.search_settings)
    try:
        found = strategy.stages(program, space, options, task)
    except ProgcError:
        raise
    except Exception as error:
        raise InputError(f"strategy `{name}` failed with {type(error).__name__}: {one_line(error)}") from error
    try:
        given, decided = found
        places, decisions = [Index(*place) for place in given], list(decided)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"strategy `{name}`: expected positions and decisions, got {type(found).__name__}; see "
            "progc.Strategy.stages for what to return"
        ) from error
    _check_places(f"strategy `{name}`", places, space, len(options.stage_shares))
    for decision in decisions:
        if not isinstance(decision, Decision) or not 0 <= decision.stage < len(places):
            raise InputError(f"strategy `{name}`: expected decisions of its stages, got {decision!r:.80}")
    return places, decisions


def _check_places(who: str, places: Sequence[Index], space: Space, stages: int) -> None:
    if len(places) != stages:
        raise InputError(f"{who}: expected one position for each of the {stages} stages, got {len(places)}")
    for stage, place in enumerate(places):
        if any(
            isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < size
            for level, size in zip(place, space.shape, strict=True)
        ):
            raise InputError(
                f"{who}: stage {stage}: expected levels from 0 and below {tuple(space.shape)}, got {tuple(place)}"
            )
        if stage and any(now < before for now, before in zip(place[:3], places[stage - 1][:3], strict=True)):
            raise InputError(
                f"{who}: stage {stage} is smaller than the one before, {tuple(place)} and {tuple(places[stage - 1])}; "
                "return levels that ascend in every dimension but the trainable set"
            )
    if places[-1] != space.last:
        raise InputError(
            f"{who}: expected the full network {tuple(space.last)} as the last stage, got {tuple(places[-1])}"
        )
