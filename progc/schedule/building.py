"""From a point to its program, and from a smaller program to its point in the full one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from progc.analysis.axes import axes_of
from progc.analysis.chains import chains_of
from progc.errors import InputError, TargetError
from progc.ir.program import Program
from progc.lift.compose import composed
from progc.lift.lift import Lift
from progc.pipeline.manager import run
from progc.schedule.depth_levels import variable
from progc.schedule.point import Point, size_text
from progc.transforms.resolution.images import find_images
from progc.transforms.width.sizes import widths

if TYPE_CHECKING:
    from progc.schedule.space import Space


def network(full: Program, point: Point, *, storage: str = "share") -> tuple[Program, Lift | None]:
    """The network of a point, everything trainable that trains in `full`, and the lift from the full tensors to it.

    Args:
        storage: `share`: its tensors are those of `full`, or views of them; `copy`: it has memory of its own.

    Raises:
        TargetError: the network cannot have these sizes.
    """
    program, results = run(full, point.shrinking(storage), verify=False)
    lift: Lift | None = None
    for result in results:
        if result.lift is not None:
            lift = result.lift if lift is None else composed(lift, result.lift)
    return program, lift


def stage_program(full: Program, point: Point, *, storage: str = "share") -> Program:
    """The network of a point with its trainable set.

    Raises:
        TargetError, PassOptionError: the network cannot have these sizes, or this trainable set.
    """
    program, _ = network(full, point, storage=storage)
    return with_trainable_set(program, point)


def with_trainable_set(program: Program, point: Point) -> Program:
    """A network of a point with the point's trainable set.

    Raises:
        PassOptionError: the network cannot have this trainable set.
    """
    return run(program, point.freezing(program), verify=False)[0]


def start_point(full: Program, start: Program | Point) -> Point:
    """Depths, width and image size of a start where they are below the full network's."""
    if isinstance(start, Point):
        return start.network
    depths = {}
    for chain in variable(full):
        before, _, behind = chain.pattern.partition("#")
        number = re.compile(rf"{re.escape(before)}(\d+){re.escape(behind)}")
        found = {match[1] for name in start.tensors if (match := number.match(name))}
        if 0 < len(found) < chain.siblings:
            depths[chain.name] = len(found)
    here, there = widths(axes_of(start))[:1], widths(axes_of(full))[:1]
    sizes = [_image(start), _image(full)]
    smaller = sizes[0] is not None and sizes[1] is not None and sizes[0] != sizes[1]
    return Point(depths, {"width": here[0]} if here and here != there else {}, sizes[0] if smaller else None)


def check_smaller(full: Program, start: Point) -> None:
    """Raises InputError where a start is larger than the full network in some dimension."""
    image = _image(full)
    for name, depth in start.depths.items():
        if name not in [chain.name for chain in chains_of(full)] or depth > chains_of(full)[name].siblings:
            raise InputError(f"start: the full network has no {depth} blocks in {name}; start from a smaller network")
    width = start.widths.get("width", 0)
    if width and width > (widths(axes_of(full))[:1] or [0])[0]:
        raise InputError(f"start: its width {width} is more than the full network's; start from a smaller network")
    if start.resolution and (image is None or any(a > b for a, b in zip(start.resolution, image, strict=True))):
        raise InputError(
            f"start: its image {size_text(start.resolution)} is larger than the full network's; start smaller"
        )


def check_start(full: Program, space: Space, start: Program | Point) -> None:
    """Raises InputError where the smallest network of a space is not the start."""
    if isinstance(start, Point):
        return
    smallest = Point(
        space.depths[0] if space.depths else {},
        space.widths[0] if space.widths else {},
        _image(start) if _image(start) in space.resolutions else None,
    )
    made = network(full, smallest)[0]
    for name, tensor in start.tensors.items():
        other = made.tensors.get(name)
        if other is None or other.shape != tensor.shape:
            there = "is missing" if other is None else f"is {list(other.shape)}"
            raise InputError(
                f"start: its {name} {list(tensor.shape)} {there} in the smallest network, {smallest}; start from a "
                "network that differs in depth and in width with all sizes in proportion"
            )
    missing = made.tensors.keys() - start.tensors.keys()
    if missing:
        raise InputError(f"start: it has no {min(missing)}, which the smallest network, {smallest}, has")


def _image(program: Program) -> tuple[int, int] | None:
    try:
        return find_images(program)[0].size
    except TargetError:
        return None
