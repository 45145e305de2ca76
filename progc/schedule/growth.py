"""How the networks of a schedule's stages follow from one another, tried on shapes alone before anything trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from progc.analysis.chains import chains_of
from progc.errors import InputError, TargetError
from progc.ir.differences import differences
from progc.ir.program import Program
from progc.pipeline.base import Pass
from progc.pipeline.manager import run
from progc.schedule.point import Point


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
