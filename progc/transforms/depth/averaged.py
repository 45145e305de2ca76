"""MoGrow: inserted blocks take their values from an averaged copy of the weights (AutoProg, Li et al., CVPR 2022)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from progc.errors import PassOptionError
from progc.ir.average import Average
from progc.ir.program import Program
from progc.lift.entry import TensorLift


def chosen_average(program: Program, decay: float | None) -> Average | None:
    """The program's average of this decay, or the slowest one; None if it carries none.

    Raises:
        PassOptionError: it carries averages, and none of this decay.
    """
    if decay is None or not program.averages:
        # One of unknown decay is the only one there is, read from a file.
        return max(program.averages, key=lambda average: average.decay or 0.0, default=None)
    found = next((average for average in program.averages if average.decay == decay), None)
    if found is None:
        known = ", ".join("unknown" if average.decay is None else f"{average.decay}" for average in program.averages)
        raise PassOptionError(f"grow-depth: ema={decay} is no decay that is tracked; the program carries {known}")
    return found


def averaged_note(average: Average | None, source: str) -> str:
    """What the user should know of where the values come from."""
    if average is None:
        return "mogrow: the program carries no averaged copy (ema=...), so it is interpolation of its own weights"
    of = "an average" if average.decay is None else f"the average of decay {average.decay}"
    return f"mogrow: {'all tensors' if source == 'all' else 'new blocks'} are taken from {of}"


def averaged_lifts(
    origins: Mapping[str, str], lifts: Mapping[str, TensorLift], everything: bool
) -> dict[str, TensorLift]:
    """Lifts that read the average: those of inserted tensors, or of every tensor.

    Args:
        origins: every name after growth with the name it comes from.
        lifts: the lifts there are, by name after growth.
    """
    found = {name: entry for name, entry in lifts.items() if entry.fresh}
    if everything:
        found = {name: lifts.get(name, TensorLift(name, source)) for name, source in origins.items()}
    return {name: dataclasses.replace(entry, average=True) for name, entry in found.items()}
