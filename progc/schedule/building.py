"""Programs of points: the sub-network of a full program that a stage trains. One definition for all."""

from __future__ import annotations

from progc.ir.program import Program
from progc.lift.lift import Lift, composed
from progc.pipeline.manager import run
from progc.schedule.point import Point


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
