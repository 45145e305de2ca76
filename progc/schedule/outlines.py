"""What a stage's program is made of: the passes that lead to it, and the programs of all stages without values.

Training, the table of a dry run, compiling ahead and a run that is resumed all take stages from here, so that they mean
the same graphs: the names of nodes in a graph tell by which passes it came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from progc.errors import InputError
from progc.ir.program import Program
from progc.pipeline.base import Pass, PassResult
from progc.pipeline.manager import run
from progc.schedule.growth import SpaceGrowth, written_out
from progc.schedule.point import Point
from progc.schedule.regularising import dropping_everywhere, setting_for
from progc.schedule.schedule import Schedule
from progc.schedule.stage import Stage
from progc.transforms.dropping import is_linear

if TYPE_CHECKING:
    from progc.lift.lift import Lift


def outlines(
    program: Program,
    schedule: Schedule,
    *,
    source: Program | None = None,
    inits: Mapping[str, str] | None = None,
) -> list[Program]:
    """The programs of all stages as `progc.stages` makes them, with deferred tensors: costs analysis and no memory.

    Args:
        program, source, inits: as for `progc.stages`.

    Raises:
        InputError: a schedule for another network.
        TargetError, NotLosslessError: what a pass refuses.
    """
    schedule.check(program)
    points = written_out([stage.point for stage in schedule.stages], program)
    growth = SpaceGrowth(points, (), source is not None, inits, is_linear(program))
    return [way.program for way in outlined(program if source is None else source, schedule, growth)]


def outlined(first: Program, schedule: Schedule, growth: SpaceGrowth, stop: int | None = None) -> list[Way]:
    """The ways from stage to stage, from the beginning to before stage `stop`, on deferred tensors."""
    shapes = growth.on_shapes
    now, at = first.deferred, None
    found: list[Way] = []
    for stage in schedule.stages[:stop]:
        way = Way(now, verify=False)
        way.lead(schedule, shapes, stage, at)
        way.program = way.program.deferred
        now, at = way.program, growth.points[stage.index]
        found.append(way)
    return found


class Way:
    """The passes that lead from one stage to the next, as several pipelines.

    Attributes:
        before, program: where it begins, and how far it led.
        results: of the passes.
        notes: what could not be set, for people, behind what the passes say.
    """

    def __init__(self, program: Program, *, verify: bool = True) -> None:
        self.before = self.program = program
        self.verify = verify
        self.results: list[PassResult] = []
        self._told: tuple[str, ...] = ()

    def lead(self, schedule: Schedule, growth: SpaceGrowth, stage: Stage, at: Point | None) -> None:
        """Leads to a stage from the point of the stage before, None at the beginning."""
        if at is None:
            self._apply(dropping_everywhere(self.program) if _drops(schedule) else ())
        self._apply(growth.passes(stage.index, at))
        if at is None:
            self._apply(_identifier(self.program, schedule))
        self._apply(_trainable(growth.points[stage.index], at, self.program))
        setting = setting_for(stage.regularisation, self.program, linear=growth.linear)
        self._apply(setting.passes)
        self._told = setting.notes

    def _apply(self, passes: Sequence[Pass]) -> None:
        self.program, more = run(self.program, passes, verify=self.verify and bool(passes))
        self.results += more

    @property
    def lifts(self) -> list[Lift]:
        """How tensors before become tensors behind, in order."""
        return [result.lift for result in self.results if result.lift is not None]

    @property
    def lossless(self) -> bool:
        """Whether it keeps the function in eval mode, by analysis."""
        return all(result.lossless is True for result in self.results if result.changed)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the passes say, and what could not be set."""
        return (*(note for result in self.results for note in result.notes), *self._told)


def _trainable(point: Point, before: Point | None, program: Program) -> list[Pass]:
    """The pass that sets a stage's trainable set; one that frees everything where the stage before froze some."""
    if point.unfreeze is None and before is not None and before.unfreeze is not None:
        from progc.passes.freeze import Freeze

        return [Freeze(measure=False)]
    return point.freezing(program)


def _identifier(program: Program, schedule: Schedule) -> list[Pass]:
    """The pass that makes the stage an input of the network, where the stages have identifiers."""
    from progc.passes.inject_sid import InjectSid

    rows = [stage.sid for stage in schedule.stages if stage.sid is not None]
    if not rows:
        return []
    if program.sid is None:
        return [InjectSid(stages=max(len(schedule.stages), *(row + 1 for row in rows)))]
    if max(rows) >= program.sid.stages:
        raise InputError(
            f"the schedule uses stage {max(rows)} of an identifier, and the network's has {program.sid.stages} stages; "
            "take it out with remove-sid, or plan fewer stages"
        )
    return [InjectSid(stage="input")] if program.sid.input is None else []


def _drops(schedule: Schedule) -> bool:
    return any(stage.regularisation.drop_path is not None for stage in schedule.stages)
