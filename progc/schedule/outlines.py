"""What a stage's program is made of: the passes that lead to it, and the programs of all stages without values.

Training, the table of a dry run, compiling ahead and a run that is resumed all take stages from here, so that they mean
the same graphs: the names of nodes in a graph tell by which passes it came about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from progc.analysis.chains import chains_of
from progc.errors import InputError, TargetError
from progc.ir.differences import differences
from progc.ir.program import Program
from progc.pipeline.base import Pass, PassResult
from progc.pipeline.manager import run
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


@dataclasses.dataclass(frozen=True)
class SpaceGrowth:
    """The passes between the stages.

    Attributes:
        points: of the stages, written out.
        bounds: where each stage begins, and the end of the last one.
        up: whether the first network is grown from a smaller one; otherwise it is cut out of the full one.
        inits: `depth` and `width` to how new weights are made.
        linear: whether drop-path is a linear ramp over the blocks of the full program.
    """

    points: Sequence[Point]
    bounds: Sequence[int]
    up: bool
    inits: Mapping[str, str] | None
    linear: bool = False

    def passes(self, index: int, at: Point | None) -> list[Pass]:
        """Those that lead to stage `index` from the point before, None at the beginning."""
        point = self.points[index]
        if at is None and not self.up:
            return point.shrinking("copy")
        return point.growing(at or Point(), self.inits)

    @property
    def on_shapes(self) -> SpaceGrowth:
        """The same passes on deferred tensors: an init that would look at values gives way to one that does not."""
        inits = {key: "interpolate" if init == "mogrow" else init for key, init in (self.inits or {}).items()}
        return dataclasses.replace(self, inits=inits)


def rehearse(program: Program, growth: SpaceGrowth, full: Program) -> None:
    """Runs all growth of a schedule on deferred tensors, which costs analysis and no memory.

    Args:
        program: what the first stage is made from.
        full: the full program.

    Raises:
        TargetError, NotLosslessError: what a pass refuses, or that the last network is not the full one.
    """
    shapes = growth.on_shapes
    now, at = program.deferred, None
    for index, point in enumerate(growth.points):
        now, _ = run(now, shapes.passes(index, at), verify=False)
        at = point
    found = next(differences(now, full), None)
    if found is not None:
        raise TargetError(
            f"the last stage would not be {full.class_name}: {found}; begin with a larger network (one head, or one "
            "unit, cannot become several again)"
        )


def written_out(points: Sequence[Point], full: Program) -> list[Point]:
    """The points with what they leave out, where another one names it, as it is in the full program.

    Raises:
        InputError: a width that only some stages name.
    """
    chains = {name for point in points for name in point.depths}
    axes = {name for point in points for name in point.widths}
    sized = any(point.resolution for point in points)
    found = []
    for index, point in enumerate(points):
        missing = sorted(axes - point.widths.keys())
        if missing:
            raise InputError(f"stage {index} of the schedule leaves out {missing[0]}, which another has; write it out")
        depths = {name: point.depths.get(name, 0) or chains_of(full)[name].siblings for name in sorted(chains)}
        resolution = point.resolution or (_image(full) if sized else None)
        found.append(dataclasses.replace(point, depths=depths, resolution=resolution))
    return found


def _image(full: Program) -> tuple[int, int]:
    from progc.transforms.resolution.images import find_images

    height, width = find_images(full)[0].size
    return height, width
