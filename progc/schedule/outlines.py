"""How the programs of a schedule's stages follow from one another: the passes between them, tried on shapes alone.

Training, the table of a dry run, compiling ahead and a resumed run all take stages from here, so that they have the
same graphs: names of nodes depend on the passes that made a graph.
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
from progc.pipeline.text import MOGROW
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
    """Returns the programs of all stages as `progc.stages` makes them, with deferred tensors, which take no memory.

    Args:
        program, source, inits: as for `progc.stages`.

    Raises:
        InputError: the schedule is for another network.
        TargetError, NotLosslessError: a pass refuses.
    """
    schedule.check(program)
    points = written_out([stage.point for stage in schedule.stages], program)
    growth = SpaceGrowth(points, (), source is not None, inits, is_linear(program))
    return [way.program for way in outlined(program if source is None else source, schedule, growth)]


def outlined(first: Program, schedule: Schedule, growth: SpaceGrowth, stop: int | None = None) -> list[Way]:
    """Returns the ways from stage to stage, up to but without stage `stop`, on deferred tensors."""
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
    """The passes from one stage to the next, run as several pipelines.

    Attributes:
        before, program: the program at the beginning, and the program so far.
        results: results of the passes.
        notes: notes of the passes, followed by what could not be set.
    """

    def __init__(self, program: Program, *, verify: bool = True) -> None:
        self.before = self.program = program
        self.verify = verify
        self.results: list[PassResult] = []
        self._told: tuple[str, ...] = ()

    def lead(self, schedule: Schedule, growth: SpaceGrowth, stage: Stage, at: Point | None) -> None:
        """Runs the passes to a stage from `at`, the point of the previous stage (None at the beginning)."""
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
        """The lifts from the tensors before to the tensors after, in order."""
        return [result.lift for result in self.results if result.lift is not None]

    @property
    def lossless(self) -> bool:
        """Whether the function in eval mode does not change, by analysis."""
        return all(result.lossless is True for result in self.results if result.changed)

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the passes, and what could not be set."""
        return (*(note for result in self.results for note in result.notes), *self._told)


def _trainable(point: Point, before: Point | None, program: Program) -> list[Pass]:
    """The pass that sets a stage's trainable set; it unfreezes everything if only the previous stage froze blocks."""
    if point.unfreeze is None and before is not None and before.unfreeze is not None:
        from progc.passes.freeze import Freeze

        return [Freeze(measure=False)]
    return point.freezing(program)


def _identifier(program: Program, schedule: Schedule) -> list[Pass]:
    """The pass that makes the stage an input of the network, if the stages have identifiers."""
    from progc.passes.inject_sid import InjectSid

    rows = [stage.sid for stage in schedule.stages if stage.sid is not None]
    if not rows:
        return []
    if program.sid is None:
        init = schedule.settings.get("sid_init", "zero")
        if init not in ("zero", "normal"):
            raise InputError(f"schedule: settings: sid_init: expected zero or normal, got {init!r}; fix the plan")
        return [InjectSid(stages=max(len(schedule.stages), *(row + 1 for row in rows)), init=init, seed=schedule.seed)]
    if max(rows) >= program.sid.stages:
        raise InputError(
            f"the schedule uses row {max(rows)} of the stage identifier, but the network's has {program.sid.stages} "
            "stages; remove it with remove-sid, or plan fewer stages"
        )
    return [InjectSid(stage="input")] if program.sid.input is None else []


def _drops(schedule: Schedule) -> bool:
    return any(stage.regularisation.drop_path is not None for stage in schedule.stages)


@dataclasses.dataclass(frozen=True)
class SpaceGrowth:
    """The passes between the networks of all stages.

    Attributes:
        points: the points of the stages, with all sizes (see `written_out`).
        bounds: the epoch or step at which each stage begins, and the end of the last one.
        up: whether the first network is grown from a smaller one; otherwise it is cut out of the full one.
        inits: how new weights are made, see `progc.pipeline.text.parse_inits`.
        linear: whether drop-path is a linear ramp over the blocks of the full program.
    """

    points: Sequence[Point]
    bounds: Sequence[int]
    up: bool
    inits: Mapping[str, str] | None
    linear: bool = False

    def passes(self, index: int, at: Point | None) -> list[Pass]:
        """Returns the passes to stage `index` from `at`, the point of the previous stage (None at the beginning)."""
        point = self.points[index]
        if at is None and not self.up:
            return point.shrinking("copy")
        return point.growing(at or Point(), self.inits)

    @property
    def on_shapes(self) -> SpaceGrowth:
        """The same passes for deferred tensors; an init that reads values is replaced by one that does not."""
        known = {key: init for key, init in (self.inits or {}).items() if key not in MOGROW}
        inits = {key: "interpolate" if init == "mogrow" else init for key, init in known.items()}
        return dataclasses.replace(self, inits=inits)


def rehearse(program: Program, growth: SpaceGrowth, full: Program) -> None:
    """Runs all growth of a schedule on deferred tensors, which take no memory, before anything trains.

    Args:
        program: the program that the first stage is made from.
        full: the full program.

    Raises:
        TargetError, NotLosslessError: a pass refuses, or the last network is not the full one.
    """
    shapes = growth.on_shapes
    now, at = program.deferred, None
    for index, point in enumerate(growth.points):
        now, _ = run(now, shapes.passes(index, at), verify=False)
        at = point
    found = next(differences(now, full), None)
    if found is not None:
        raise TargetError(
            f"the last stage would not be {full.class_name}: {found}; start with a larger network (a single head or "
            "unit cannot become several again)"
        )


def written_out(points: Sequence[Point], full: Program) -> list[Point]:
    """Returns the points with all sizes: where a point leaves out what another one names, the full size is added.

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
            raise InputError(
                f"stage {index} of the schedule has no width for {missing[0]}, which another stage has; add it"
            )
        depths = {name: point.depths.get(name, 0) or chains_of(full)[name].siblings for name in sorted(chains)}
        resolution = point.resolution or (_image(full) if sized else None)
        found.append(dataclasses.replace(point, depths=depths, resolution=resolution))
    return found


def _image(full: Program) -> tuple[int, int]:
    from progc.transforms.resolution.images import find_images

    height, width = find_images(full)[0].size
    return height, width
