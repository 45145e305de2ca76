"""Tells what a schedule cuts: weights that are trained already, and parts of the network that do not train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from progc.errors import first_of
from progc.schedule.building import network
from progc.transforms.freezing.setting import fixed_parameters

if TYPE_CHECKING:
    from progc.ir.program import Program
    from progc.schedule.point import Point


def cut_notes(full: Program, points: Sequence[Point], *, trained: bool) -> tuple[str, ...]:
    """Returns warnings about values that the stages of a schedule drop or resample, so that growth has to replace them.

    Args:
        full: the full network.
        points: the points of the stages.
        trained: whether the weights of the network are trained; otherwise only parameters that did not train when it
            was captured count.
    """
    kept = fixed_parameters(full)
    if not (trained or kept):
        return ()
    sizes = {name: tensor.shape for name, tensor in full.parameters() if trained or name in kept}
    lost: dict[int, int] = {}
    resampled: set[str] = set()
    for index, point in enumerate(points):
        if not (point.depths or point.widths or point.resolution):
            continue
        made = network(full.deferred, point.network)[0]
        still, small = fixed_parameters(made), dict(made.parameters())  # blocks may have other numbers here
        count = sum(shape.numel() for shape in sizes.values())
        count -= sum(tensor.numel() for name, tensor in small.items() if trained or name in still)
        if trained and point.resolution and not (point.depths or point.widths):
            resampled |= {name for name, shape in sizes.items() if name in small and small[name].shape != shape}
        elif count > 0:
            lost[index] = count
    total = sum(shape.numel() for shape in sizes.values())
    kind = "trained" if trained else "frozen"
    found = []
    if lost:
        most = max(lost.values())
        told = ", ".join(str(index + 1) for index in lost)
        found.append(
            f"warning: stage {told} of the plan cuts depth or width: up to {most:,} of {total:,} {kind} parameters "
            f"({most / total:.0%}) are dropped, and new ones are made when the network grows; leave out depths and "
            "widths to keep them"
        )
    if resampled:
        found.append(
            f"warning: smaller images resample {kind} parameters, and resample them again when the image grows: "
            f"{first_of(sorted(resampled), 3)}; leave out resolutions to keep them"
        )
    return tuple(found)
