"""From a point to its program, and from a smaller program to its point in the full one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from progc.analysis.axes import axes_of
from progc.analysis.chains import chains_of
from progc.errors import InputError, TargetError
from progc.ir.program import Program
from progc.lift.lift import Lift, composed
from progc.pipeline.manager import run
from progc.schedule.depth_levels import variable
from progc.schedule.point import Point, size_text
from progc.transforms.resolution.images import find_images
from progc.transforms.width.frozen import held_axes
from progc.transforms.width.sizes import widths

if TYPE_CHECKING:
    from progc.schedule.space import Space


def network(full: Program, point: Point, *, storage: str = "share") -> tuple[Program, Lift | None]:
    """Returns the network of a point, and the lift from the tensors of the full program to those of the network.

    Every parameter that trains in `full` trains in the network, whatever the point unfreezes.

    Args:
        storage: `share` uses the tensors of `full`, or views of them; `copy` allocates new ones.

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
    """Returns the network of a point with the point's trainable set; arguments as for `network`.

    Raises:
        TargetError, PassOptionError: the network cannot have these sizes, or this trainable set.
    """
    program, _ = network(full, point, storage=storage)
    return with_trainable_set(program, point)


def with_trainable_set(program: Program, point: Point) -> Program:
    """Sets the trainable set of a point in the network of that point.

    Raises:
        PassOptionError: the network cannot have this trainable set.
    """
    return run(program, point.freezing(program), verify=False)[0]


def start_point(full: Program, start: Program | Point) -> Point:
    """Returns the point of the network that training begins with: its depths, width and image size.

    A dimension in which it is as large as the full network is left out.
    """
    if isinstance(start, Point):
        return start.network
    depths = {}
    for chain in variable(full):
        before, _, after = chain.pattern.partition("#")
        number = re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}")
        found = {match[1] for name in start.tensors if (match := number.match(name))}
        if 0 < len(found) < chain.siblings:
            depths[chain.name] = len(found)
    here, there = (widths(axes_of(one), held=held_axes(one))[:1] for one in (start, full))
    sizes = [_image(start), _image(full)]
    smaller = sizes[0] is not None and sizes[1] is not None and sizes[0] != sizes[1]
    return Point(depths, {"width": here[0]} if here and here != there else {}, sizes[0] if smaller else None)


def check_smaller(full: Program, start: Point) -> None:
    """Checks that the start is not larger than the full network in any dimension.

    Raises:
        InputError: it is larger.
    """
    image = _image(full)
    for name, depth in start.depths.items():
        if name not in [chain.name for chain in chains_of(full)] or depth > chains_of(full)[name].siblings:
            raise InputError(
                f"start: it has {depth} blocks in {name}, more than the full network; start from a smaller network"
            )
    width = start.widths.get("width", 0)
    if width and width > (widths(axes_of(full), held=held_axes(full))[:1] or [0])[0]:
        raise InputError(f"start: its width {width} is larger than the full network's; start from a smaller network")
    if start.resolution and (image is None or any(a > b for a, b in zip(start.resolution, image, strict=True))):
        raise InputError(
            f"start: its image size {size_text(start.resolution)} is larger than the full network's; start from a "
            "network with a smaller one"
        )


def check_start(full: Program, space: Space, start: Program | Point) -> None:
    """Checks that the smallest network of a space is the start.

    Raises:
        InputError: a tensor differs in name or shape.
    """
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
            there = "is missing" if other is None else f"has shape {list(other.shape)}"
            raise InputError(
                f"start: {name} of shape {list(tensor.shape)} {there} in the smallest network of the space, "
                f"{smallest}; start from a network that differs only in depth, and in width with all sizes in "
                "proportion"
            )
    missing = made.tensors.keys() - start.tensors.keys()
    if missing:
        raise InputError(
            f"start: {min(missing)} of the smallest network of the space, {smallest}, is missing; start from a network "
            "that differs only in depth, and in width with all sizes in proportion"
        )


def _image(program: Program) -> tuple[int, int] | None:
    try:
        return find_images(program)[0].size
    except TargetError:
        return None
