"""What a run tells its user before it trains: what has no effect, what nothing reads, what depends on its processes."""

from __future__ import annotations

from progc.data.staged import not_set
from progc.data.task import Task
from progc.errors import InputError, first_of
from progc.ir.notation import module_path
from progc.ir.operations import argument, op_name
from progc.ir.program import Program
from progc.schedule.schedule import Schedule
from progc.train.pacing import batch_notes
from progc.train.settings import Settings
from progc.train.watching import never_told


def told(task: Task, schedule: Schedule, program: Program, settings: Settings, world: int = 1) -> tuple[str, ...]:
    """Returns the notes of a run.

    Args:
        task: samples and loss.
        schedule: the stages.
        program: the full network.
        settings: settings of the run.
        world: number of processes that train together.

    Raises:
        InputError: rules contradict each other, or the network has layers that need all processes (see `of_ranks`).
    """
    return (
        *task.notes, *not_set(task, schedule.regularisations, program), *never_told(task, schedule, settings),
        *batch_notes(schedule, settings), *of_ranks(program, world),
    )  # fmt: skip


def of_ranks(program: Program, world: int) -> tuple[str, ...]:
    """Returns a note if results depend on the number of processes.

    Raises:
        InputError: with several processes, the network was captured from one whose layers take statistics over all of
            them (`torch.nn.SyncBatchNorm`).
    """
    if world == 1:
        return ()
    if program.synced:
        raise InputError(
            f"{first_of(program.synced)} are SyncBatchNorm and were captured as layers of one process, so {world} "
            "processes would train with other statistics; train in one process, or use BatchNorm or GroupNorm layers"
        )
    graph = program.graphs["train"]
    moving = [node for node in graph.nodes if op_name(node) == "batch_norm" and argument(node, "training") is True]
    if not moving:
        return ()
    shown = first_of([module_path(node) or node.name for node in moving])
    return (
        f"batch norms ({shown}) take statistics of the samples of one process: results depend on the number of "
        "processes, and running statistics are those of rank 0",
    )
